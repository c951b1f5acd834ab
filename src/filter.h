/*
 * filter: the contract of one transformation of a byte stream. No code here.
 *
 * A filter has two flows, in (endpoint -> core) and out (core -> endpoint). It moves bytes between
 * two evbuffers and knows neither socket, clock, log nor neighbour; the stack steps it.
 * Configuration is one object, shared by all workers; state is another, one for each connection
 * and on its thread.
 *
 *  1. A step takes from the front of `src`, appends to the end of `dst`, and does nothing else.
 *  2. Room is a matter of some or none. With some, `dst` may grow past it by at most
 *     FILTER_RECORD_BYTES, and the filter does not rest for lack of room. With none it does not
 *     grow.
 *  3. A filter at rest is stepped again only when its source, its end, its flush mode or its room
 *     (none became some) changed, or its other flow moved. A step that takes nothing, gives
 *     nothing and does not end is at rest, whatever it returns.
 *  4. After a step that moved anything the filter's other flow is stepped once, even with an empty
 *     source. Both are stepped once at open.
 *  5. What waits inside to be given in a flow, taken by it or made for it by the other flow
 *     (handshake, alert, KeyUpdate, ticket), is at most FILTER_KEPT_BYTES; full means that who
 *     would add rests. What a codec needs to work (window, tables, one block that its format does
 *     not divide) is of fixed size, stated in the manual, and told by `held`, not counted here.
 *  6. End of stream is explicit. A flow whose source has ended (FILTER_FINISHED) delivers all, its
 *     own trailer included, then returns FILTER_END, once; a flow whose protocol has an end mark
 *     may do so at the mark already. An end before the mark is FAILURE_TRUNCATED, never
 *     FILTER_END. An ended flow is not stepped again; its other flow goes on.
 *  7. A failure is returned once, with kind and text; afterwards only close is called. A filter
 *     that owes its peer an alert gives that out first and fails in a later step of either flow.
 *  8. Configuration is read-only and outlives every state opened from it.
 *  9. `ready` says whether the opening exchange is over: until then the far side is not connected,
 *     so an unproved stranger costs no connection. Once true it stays true.
 * 10. FILTER_PASS: all that the flow took has been given and from here on it would only copy. The
 *     stack leaves it out of that flow; what still waits in `src` goes on, in order. A filter that
 *     has passed in both flows is ready, and is closed at once.
 * 11. What a near filter learns of the client goes to the connection's facts, marked as seen or as
 *     told; never from told to seen. A far filter reads them.
 *
 * A filter stands in its own file and in one line of filters/registry.c; the contract test
 * (tests/unit/test_contract.c) drives every registered filter through all this.
 */
#ifndef PENSTOCK_FILTER_H
#define PENSTOCK_FILTER_H

#include "facts.h"
#include "failure.h"
#include "keyword.h"

#include <stdbool.h>
#include <stddef.h>

struct evbuffer;

#define FILTER_RECORD_BYTES (5 + 16384 + 2048) /* the largest TLS record, RFC 5246 6.2.3 */
#define FILTER_KEPT_BYTES   (32 * 1024)

enum filter_side {
	FILTER_NEAR, /* the peer connected to us: server role */
	FILTER_FAR,  /* we connected to the peer: client role */
	FILTER_SIDES
};

enum filter_flow { FILTER_IN, FILTER_OUT, FILTER_FLOWS };

/* libevent's three modes, in rising order. */
enum filter_flush {
	FILTER_NORMAL, /* more is coming: give when convenient */
	FILTER_FLUSH, /* the source has run dry: once src is taken, give all that was taken. Nothing
			    taken since the last flush = nothing to give */
	FILTER_FINISHED, /* src gets no more */
};

enum filter_result {
	FILTER_REST, /* nothing more can be done now, whether or not this step moved anything */
	FILTER_MORE, /* something moved and more may be possible: step again */
	FILTER_END,
	FILTER_PASS,
	FILTER_FAIL, /* *why is filled */
};

/* One step's surroundings; borrowed for its length. src and dst are never the same buffer. */
struct filter_io {
	struct evbuffer *src;
	struct evbuffer *dst;
	size_t room_bytes; /* how much dst may grow now; 0 = not at all */
	enum filter_flush flush;
	struct failure *why;
};

enum filter_trait {
	/* An end of the in flow's source is checked against a mark (rule 6). */
	FILTER_END_MARK = 1 << 0,
	/* Near: the client's address comes in the bytes; the socket's is another's. */
	FILTER_TELLS_CLIENT = 1 << 1,
	/* What it gives to the wire is smaller, if there is a pattern in it ... */
	FILTER_PACKS = 1 << 2,
	/* ... and has none any more. */
	FILTER_ENCRYPTS = 1 << 3,
	/* Near: its opening takes so much that max_handshakes bounds how many there are. */
	FILTER_SHAKES_HANDS = 1 << 4,
};

/* One kind of filter: a const table. Slots marked "or NULL" may be left out. */
struct filter_type {
	const char *name; /* of its section in the file, and before the colon in a chain */
	unsigned int traits;

	/* Configuration: a zeroed object of conf_bytes gets the values of a section by `keywords`
	 * (ends with name NULL), then `configure` checks them together and prepares what
	 * connections share (reads files, may take long), or fails. `discard` frees what configure
	 * made, also when it failed; not the object, nor the values that belong to rows.
	 * `fits` says whether a configured section may stand in a chain of that side, and prepares what
	 * only that side needs; before any connection is opened there. `doubt` fails, with a text like that
	 * of an error, if there is something suspicious but possible in a configured section.
	 * `suits` is asked at last, with the sides where the section stands: -1 = a word of it has no effect
	 * there and the operator must have meant another, 1 = it has none, 0 = all have.
	 * `needs_host` says whether its far side asks for the target's host (facts.target_host).
	 * conf_bytes 0: conf is NULL. */
	size_t conf_bytes;
	const struct keyword *keywords;
	int (*configure)(void *conf, struct failure *why);                         /* or NULL */
	void (*discard)(void *conf);                                               /* or NULL */
	int (*fits)(const void *conf, enum filter_side side, struct failure *why); /* or NULL */
	int (*doubt)(const void *conf, struct failure *why);                       /* or NULL */
	int (*suits)(const void *conf, const bool sides[FILTER_SIDES],
		     struct failure *why);    /* or NULL */
	bool (*needs_host)(const void *conf); /* or NULL */

	/* State of one connection; NULL only with *why filled. The facts are the connection's and
	 * outlive the state. */
	void *(*open)(const void *conf, enum filter_side side, struct facts *facts,
		      struct failure *why);
	enum filter_result (*step)(void *state, enum filter_flow flow, struct filter_io *io);
	bool (*ready)(const void *state); /* or NULL: always */
	size_t (*kept)(
		const void *state); /* bytes of both flows waiting inside; or NULL: none ever */
	/* Bytes of memory it holds to work with, beside what waits; O(1). They count in max_memory. */
	size_t (*held)(const void *state); /* or NULL: next to none */
	/* The connection ends, and the filter is not ready yet: why, as far as its own peer is concerned
	 * (FAILURE_STOPPED: for something else). For counters; only close comes after. */
	void (*abandon)(void *state, enum failure_kind kind); /* or NULL */
	void (*close)(void *state);

	/* Name and version of the library that it runs with; static. */
	const char *(*library)(void); /* or NULL */
};

#endif
