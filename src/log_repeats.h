/*
 * log_repeats: which lines of the log are written as they come, and which are only counted. Time is an
 * argument; what is written leaves through a function of the owner's. One thread.
 *
 * Two rules, both for the length of a second, after which the counts are told as a line:
 * - A line that says the same as one of the last eight is one more repetition of it.
 * - Of the lines of one kind, that is of one format, level and first field (as a rule the tunnel), the
 *   first LOG_REPEATS_MOST different ones are written.
 * Lines without a kind (log_entry's) are always written.
 */
#ifndef PENSTOCK_LOG_REPEATS_H
#define PENSTOCK_LOG_REPEATS_H

#include "log_record.h"

#include <stdbool.h>
#include <stdint.h>

#define LOG_REPEATS_MOST  20
#define LOG_REPEATS_LINES 8  /* different lines remembered */
#define LOG_REPEATS_KINDS 32 /* different kinds remembered; all others are one more */

/* What began with that line; zeros = nothing. */
struct log_repeats_row {
	bool is_there;
	uint64_t since_ns;
	unsigned int written, counted;
	struct log_record record;
};

/* Begins as zeros, but for `write`. */
struct log_repeats {
	void (*write)(void *context, const struct log_record *record);
	void *context;
	uint64_t now_ns;
	struct log_repeats_row lines[LOG_REPEATS_LINES];
	struct log_repeats_row kinds[LOG_REPEATS_KINDS + 1];
};

/* It is so late now (monotonic): tells the counts whose second is over. Returns whether others wait. */
bool log_repeats_pass(struct log_repeats *repeats, uint64_t now_ns);

/* Writes the line, or counts it. */
void log_repeats_take(struct log_repeats *repeats, const struct log_record *record);

/* Tells all counts. */
void log_repeats_end(struct log_repeats *repeats);

#endif
