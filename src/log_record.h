/*
 * log_record: one line of the log as a record, and the forms it is written in. No thread, no
 * descriptor, no policy: log.c queues records and decides where they go.
 */
#ifndef PENSTOCK_LOG_RECORD_H
#define PENSTOCK_LOG_RECORD_H

#include "log.h"

#include <stdarg.h>
#include <stddef.h>

struct iovec;

#define LOG_TEXT_BYTES   500 /* log_line's promise */
#define LOG_FIELDS_BYTES 900 /* names and values together; a number counts as its 20 digits */
#define LOG_FIELDS       24

/* No form is longer: each byte becomes at most four ("\xNN"), five in JSON, beside some punctuation. */
#define LOG_RECORD_FORM_BYTES 8192

/* Only the first size_bytes count: `fields` holds field_count fields and behind them the bytes that
 * they and `text` point to. So a record is moved with log_record_copy alone. */
struct log_record {
	uint64_t time_ns; /* CLOCK_REALTIME */
	const char *kind; /* the format; static; NULL = a line that is never left out */
	const char *text;
	uint32_t size_bytes; /* a multiple of 8 */
	uint16_t level;      /* enum log_level */
	uint16_t field_count;
	struct log_field fields[LOG_FIELDS + 60];
};

/* Now, as records tell it. */
uint64_t log_record_now_ns(void);

/* Makes a record of now; what is too long is cut or left out. The arguments are copied, except for
 * the fields' names and the format itself, which becomes the kind. */
void log_record_fill(struct log_record *record, enum log_level level,
		     const struct log_field *fields, unsigned int count, const char *format,
		     va_list args) __attribute__((format(printf, 5, 0)));

void log_record_copy(struct log_record *to, const struct log_record *from);

/* Whether both have the same name and, as far as it counts (same_bytes), the same value. */
bool log_record_same_field(const struct log_field *one, const struct log_field *other);

/* Whether both say the same: level, text and fields, of these what counts. */
bool log_record_same(const struct log_record *one, const struct log_record *other);

/* The forms. Each writes at most LOG_RECORD_FORM_BYTES, no newline, and returns their number.
 * Control bytes and bytes that are not UTF-8 are `\xNN` in all of them. */

/* text name=value name="a value" */
size_t log_record_plain(const struct log_record *record, char *form);

/* 2026-11-24T03:28:17.123Z info, then as log_record_plain */
size_t log_record_stamped(const struct log_record *record, char *form);

/* {"time":…,"level":…,"message":…,"name":value}; 0 without memory */
size_t log_record_json(const struct log_record *record, char *form);

/* Fields for the journal: MESSAGE is the plain form, then PRIORITY and every field under its name in
 * capitals. Fills at most LOG_FIELDS + 2 of `entry`; `bytes` has 2 * LOG_RECORD_FORM_BYTES and holds
 * what they point to. Returns their number. */
int log_record_journal(const struct log_record *record, struct iovec *entry, char *bytes);

/* The level as syslog(3) numbers it. */
int log_record_priority(const struct log_record *record);

#endif
