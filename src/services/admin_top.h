/*
 * admin_top: the busiest nodes of each limit that has one for each key, for the metrics: a few, however many
 * nodes there are.
 */
#ifndef PENSTOCK_ADMIN_TOP_H
#define PENSTOCK_ADMIN_TOP_H

#include "limits_report.h"

struct generation;

/* Zeroed it is empty, and may be ended. */
struct admin_top {
	struct admin_top_limit {
		struct limit_top top;
		const char *name; /* of its limit; the generation's */
	} * limits;               /* owned; in the order of the file */
	struct limit_top **order; /* owned; by address */
	size_t count, cursor;
	bool has_begun, is_over;
	bool is_short; /* there was no memory to go through them: there are none */
};

/* Goes through nodes for at most PLACE_NS and a page. true: there is more; false is final. The
 * generation has to stay as long as what is here is read. */
bool admin_top_gather(struct admin_top *top, struct limits *limits,
		      const struct generation *generation);
void admin_top_end(struct admin_top *top);

/* Whether a label would not tell this one from one before it: of a key too long, or not printable. */
bool admin_top_is_told(const struct admin_top_limit *limit, size_t index);

#endif
