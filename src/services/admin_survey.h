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
		uint64_t kept_bytes;
		struct pulse pulse; /* a copy: its numbers only */
	} * workers;                /* owned */
};

/* Sets inquiry->place to what comes next, the control thread first; false: all were visited, or the inquiry
 * has failed for want of memory. */
bool admin_survey_next(struct inquiry *inquiry, struct admin_survey *survey, bool with_workers);
void admin_survey_collect(struct inquiry *inquiry, struct admin_survey *survey);
void admin_survey_end(struct admin_survey *survey);

/* Appends a JSON value, and takes it; behind it `after`. Without memory the inquiry fails with 503. */
void admin_survey_print(struct inquiry *inquiry, struct page *page, json_t *value,
			const char *after);

/* Give an object a member and an array an element, and take it. Without memory for that, for the value or before,
 * all of it is gone and NULL, so that admin_survey_print has nothing to print: what is told is whole. */
void admin_survey_set(json_t **object, const char *name, json_t *value);
void admin_survey_append(json_t **array, json_t *value);

/* A JSON string of any bytes: what is no UTF-8 is told as "?". NULL without memory. */
json_t *admin_survey_text(const char *text);

#endif
