/*
 * What tests and fuzzers that step a stack share: the four buffers at its two ends.
 */
#ifndef PENSTOCK_TESTS_STACK_ENDS_H
#define PENSTOCK_TESTS_STACK_ENDS_H

#include "stack.h"

#include <event2/buffer.h>
#include <stdint.h>
#include <stdlib.h>

/* With room for everything. */
static inline void
stack_ends_open(struct stack_flow flows[FILTER_FLOWS], enum filter_flush flush)
{
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		flows[flow] = (struct stack_flow){
			.src = evbuffer_new(),
			.dst = evbuffer_new(),
			.room_bytes = SIZE_MAX / 4,
			.flush = flush,
		};
		if (!flows[flow].src || !flows[flow].dst)
			abort();
	}
}

static inline void
stack_ends_close(struct stack_flow flows[FILTER_FLOWS])
{
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		evbuffer_free(flows[flow].src);
		evbuffer_free(flows[flow].dst);
	}
}

#endif
