/*
 * log: lines for the operator, from any thread, never blocking the one who writes.
 *
 * A line is formatted into a record of the calling thread's own bounded queue (1 MiB, 2500 lines with
 * a dozen fields); one log thread writes the records of all threads out in the order of their times:
 * to stderr, journal or file, as text or JSON. A full queue drops the line, counts it and says so once
 * a second. A line that says the same as one of the last eight within a second is counted, and so is one
 * of whose kind (format and first field) a second has had twenty; log_repeats tells how. What a line means
 * is the caller's business.
 */
#ifndef PENSTOCK_LOG_H
#define PENSTOCK_LOG_H

#include "failure.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARNING,
	LOG_LEVEL_NOTICE,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG
};
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

/* Structured fields that go beside the text: `name` is a static lower-case word ("tunnel", "client");
 * a number is written without quotes in JSON. The journal gets the name in capitals. Not "time",
 * "level", "message" or "priority". */
struct log_field {
	const char *name;
	const char *text; /* NULL: `number` counts */
	uint64_t number;
	size_t same_bytes; /* so many at the text's begin tell whether a line says the same; 0 = all */
};

/* Starts the log thread. target: "auto" (journal under systemd, else stderr), "stderr", "journal" or
 * "file:/path" (opened for appending, created 0640). Start-up, once. Before it, and after log_stop,
 * lines go straight to stderr, where a full pipe holds up a line for at most 100 ms. Lines on stderr
 * carry "<priority>" instead of time and level if systemd reads them; the journal takes no format. */
int log_start(const char *target, enum log_format format, enum log_level level,
	      struct failure *why);

/* Changes target, format and level of the running log (a reload). On failure nothing has changed.
 * Lines queued before go to the old target, unless its reader has stopped, and later ones to the new. */
int log_retarget(const char *target, enum log_format format, enum log_level level,
		 struct failure *why);

/* Whether log_retarget with this target would work: opens and closes a file that exists, else looks
 * whether its directory is writable. Changes nothing. */
int log_check_target(const char *target, struct failure *why);

/* Opens the log file anew (SIGUSR1, after a rotation). Returns at once; the log thread does it. */
void log_reopen(void);

/* Writes what is queued, for at most two seconds, and ends the thread (or leaves it behind, if it hangs
 * in a system call; then log_start fails from now on). Idempotent. */
void log_stop(void);

/* Whether a line of that level would be written: ask before costly preparations. */
bool log_wants(enum log_level level);

/* One line, at most 500 bytes of text, longer ones are cut. Control bytes and non-UTF-8 are written
 * as \xNN, so a stranger's bytes cannot forge lines. Any thread; about a microsecond; never blocks. */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same with fields (at most 24, all together at most 900 bytes; what does not fit is left out).
 * In text form the fields follow the text as name=value, quoted where they hold spaces. */
void log_event(enum log_level level, const struct log_field *fields, unsigned int count,
	       const char *format, ...) __attribute__((format(printf, 4, 5)));

/* The same for a line of a list that has to be whole: who came, who did what, all that is wrong. It is
 * written as often as it is said. Not for what strangers can cause without anything else being limited. */
void log_entry(enum log_level level, const struct log_field *fields, unsigned int count,
	       const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Lines lost since the start of the process, for the metrics: dropped by a full queue, or not taken by
 * the target. */
uint64_t log_dropped(void);

/* Sends libevent's own messages here; a fatal error of its writes the log out and aborts. Start-up. */
void log_adopt_libevent(void);

#endif
