/*
 * admin_survey: a round through the control thread and all workers, for answers that need what they know.
 */
#ifndef PENSTOCK_ADMIN_SURVEY_H
#define PENSTOCK_ADMIN_SURVEY_H

#include "inquiry.h"
#include "pulse.h"

#include <jansson.h>

struct admin_survey {
	unsigned int visited; /* places */
	bool is_whole;
	struct admin_status status;
	struct admin_worker {
		uint64_t connections;
		uint64_t handshakes, handshakes_held; /* now; how often too many */
		size_t kept_bytes;
		struct pulse pulse; /* a copy: its numbers only */
	} * workers;                /* owned */
};

/* Sets inquiry->place to what comes next, the control thread first; false: all were visited, or the inquiry
 * has failed for want of memory. */
bool admin_survey_next(struct inquiry *inquiry, struct admin_survey *survey, bool with_workers);
void admin_survey_collect(struct inquiry *inquiry, struct admin_survey *survey);
void admin_survey_end(struct admin_survey *survey);

/* Appends a JSON value, and takes it; behind it `after`. Without memory the inquiry fails with 503. */
void admin_survey_print(struct inquiry *inquiry, struct evbuffer *page, json_t *value,
			const char *after);

/* A JSON string of any bytes: what is no UTF-8 is told as "?". NULL without memory. */
json_t *admin_survey_text(const char *text);

#endif
