/*
 * meter: one direction at one endpoint as the limits see it: a flow of the tree (limits.h), whom to wake
 * when it was granted something, and what is counted beside the bytes themselves. Who moves bytes asks
 * before and tells after; a connection without limits has no meters. Its worker's thread only.
 */
#ifndef PENSTOCK_METER_H
#define PENSTOCK_METER_H

#include "limits.h"

struct meter {
	struct limit_flow flow; /* first: what limits_next returns is a meter */
	void *owner;            /* whom to wake */
	/* So many bytes more are counted for each segment that is begun. 0 = none. */
	uint16_t overhead_bytes, segment_bytes;
};

/* How many of `want` bytes (more than 0) may move now; all of them, or not less than about a segment. 0:
 * the flow waits for its limit and will be woken. What is not told to meter_spend stays in hand. */
uint64_t meter_take(struct meter *meter, uint64_t want, uint64_t now_ns);

/* So many bytes of those that may move have moved. */
void meter_spend(struct meter *meter, uint64_t bytes);

/* Before it waits for anything else: gives back what is in hand, and does not wait for its limit any more.
 * Costs nothing if there is nothing of both. NULL is allowed. */
void meter_rest(struct meter *meter);

#endif
