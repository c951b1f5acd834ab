/*
 * pair: two endpoints joined inside the process, without the network stack, on one loop. Wraps
 * libevent's paired bufferevents, which hand bytes over without copying them, with a close protocol
 * of their own (design section 7): no watermarks, the end only behind the last byte, an abort seen
 * as a reset.
 *
 * What was written belongs to the reader at once and stays readable whatever becomes of the writer;
 * behind it the reader finds
 *   END                     after shutdown, or after close if every byte sent to the closed end was read;
 *   BROKEN (FAILURE_RESET)  after abort, or after close with bytes unread, unless shutdown came before.
 * The survivor of a close or an abort is woken for writing too, and its writes are BROKEN
 * (FAILURE_RESET): nobody reads. Either end may be closed first, at any time, also from on_ready.
 *
 * Where room is short a write waits until all of it fits or the pair is empty, so that bytes change
 * hands and need no copy; only a `most` that cuts an extent makes one. Where memory is short (the loop
 * reads nothing that it would have to keep) it waits until the pair is empty. on_ready comes from a
 * task, in a later turn of the loop, once for any number of changes, and not again until something
 * changes or watch is called.
 */
#ifndef PENSTOCK_PAIR_H
#define PENSTOCK_PAIR_H

#include "endpoint.h"
#include "facts.h"

/* The most bytes one direction of a pair holds. They count in the loop's kept_bytes. */
#define PAIR_BYTES ((size_t)256 * 1024)

/* What an end takes itself, in libevent (as measured); counted in the loop's kept_bytes like its bytes. */
#define PAIR_END_BYTES ((size_t)1024)

/* Opens both ends. Their owners, on_ready, waiting and across may be set before or after. Fails with
 * FAILURE_MEMORY only, with both ends left as they were. Loop's thread. */
int pair_open(struct endpoint *a, struct endpoint *b, struct loop *loop, struct failure *why);

/* What answers at internal:NAME without a tunnel: echo, discard, chargen, later admin. */
struct service {
	const char *name;
	/* Makes the service's own object with an endpoint in it and opens `end` (the caller's) paired with
	 * that one. The object frees itself when its end is over. Loop's thread. */
	int (*open)(struct endpoint *end, struct loop *loop, const struct facts *facts,
		    struct failure *why);
};

#endif
