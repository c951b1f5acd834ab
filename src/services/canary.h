/*
 * canary: a byte that a worker sends through internal:echo every few seconds, over a pair of its own, as any
 * connection's bytes would go. While it comes back, the worker's loop turns and its pairs carry.
 */
#ifndef PENSTOCK_CANARY_H
#define PENSTOCK_CANARY_H

#include "endpoint.h"

#include <stdatomic.h>

#define CANARY_S 2

/* One worker's. Zero it before it is started. */
struct canary {
	/* To be read by any thread: when a byte last came back, 0 = never yet; and how long that took. */
	_Atomic uint64_t back_ns, took_ns;

	struct endpoint
		endpoint; /* kind NULL = no echo at the other end; the next beat makes one */
	struct loop *loop;
	struct event *timer;
	struct evbuffer *bytes;
	uint64_t sent_ns; /* 0 = none is under way */
};

/* Begins; -1 without memory. Loop's thread, or before that runs. */
int canary_start(struct canary *canary, struct loop *loop, struct failure *why);
/* A zeroed one is left alone. Loop's thread. */
void canary_stop(struct canary *canary);

#endif
