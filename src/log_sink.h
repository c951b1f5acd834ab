/*
 * log_sink: where the lines of the log go: stderr, a file or the journal. Knows forms and
 * descriptors; when and what is written is log.c's business. One thread at a time for each sink.
 */
#ifndef PENSTOCK_LOG_SINK_H
#define PENSTOCK_LOG_SINK_H

#include "failure.h"
#include "log_record.h"

enum log_sink_kind { LOG_SINK_STDERR, LOG_SINK_FILE, LOG_SINK_JOURNAL };

struct log_sink {
	enum log_sink_kind kind;
	enum log_format format; /* not of the journal, which has its own */
	bool prefixed;          /* stderr leads to the journal: "<6>" instead of a time */
	bool regular;           /* a regular file: no reader to wait for */
	int fd;
	const char *path; /* of a file, else NULL */
};

/* What log_sink_form writes at most. */
#define LOG_SINK_FORM_BYTES (LOG_RECORD_FORM_BYTES + 8)

/* Opens the target as log_start names it; NULL on failure. */
struct log_sink *log_sink_open(const char *target, enum log_format format, struct failure *why);
void log_sink_close(struct log_sink *sink); /* NULL is allowed */

/* The process's stderr as a sink; nothing to close. */
struct log_sink log_sink_stderr(enum log_format format);

/* Whether log_sink_open would work, as far as that can be told without making a file. */
int log_sink_check(const char *target, struct failure *why);

/* Opens a file's path anew; on failure the old descriptor stays. Nothing for other kinds. */
int log_sink_reopen(struct log_sink *sink, struct failure *why);

/* One line in the sink's form, newline included; returns its bytes, 0 without memory. */
size_t log_sink_form(const struct log_sink *sink, const struct log_record *record, char *line);

/* Writes as much as it can of whole lines and returns how much that was. Asks `wait`, unless the sink
 * is a regular file, before each write whether PIPE_BUF bytes can be written without blocking: false
 * gives up, and errno becomes 0. Otherwise errno is the reason for what was not written. */
size_t log_sink_write(const struct log_sink *sink, const char *bytes, size_t count,
		      bool (*wait)(int fd));

#endif
