/*
 * resolver: host names to addresses outside the event loops. A small pool of threads runs
 * getaddrinfo; answers are cached; while nobody answers, the last good answer is given though stale.
 * It knows nothing of targets. Whoever asks for a name that is being looked up waits for that same
 * lookup: there is never more than one for a name.
 */
#ifndef PENSTOCK_RESOLVER_H
#define PENSTOCK_RESOLVER_H

#include "address.h"
#include "mailbox.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RESOLVER_ADDRESSES     16   /* most for one name; further ones are left out */
#define RESOLVER_NAMES         1024 /* most names kept; the least recently asked for is forgotten */
#define RESOLVER_GOOD_S        30   /* a good answer is given without asking again */
#define RESOLVER_FAILED_S      2    /* a failure is */
#define RESOLVER_STALE_S       3600 /* a good answer is given while the resolver fails */
#define RESOLVER_DEADLINE_S    5    /* after it the askers get a failure, or the stale answer */
#define RESOLVER_SPARE_THREADS 14   /* most threads started in place of stuck ones */

struct resolver;
struct resolver_query; /* one question under way; the resolver's */

/* In the order to be tried: RFC 6724's, then families alternating (RFC 8305 section 4). With ports. */
struct resolver_answer {
	struct socket_address at[RESOLVER_ADDRESSES];
	unsigned int count;
};

enum resolver_outcome {
	RESOLVER_FOUND,
	RESOLVER_NO_SUCH_NAME, /* an answer too: what was known before is no longer true */
	RESOLVER_FAILING       /* nobody could say: what was known before may still be true */
};

struct resolver_options {
	unsigned int threads;
	/* Looks one name up: fills at most `most` (>= 1) addresses, or *why. Called on the pool's threads,
	 * for several names at once; may be slow. NULL = getaddrinfo. */
	enum resolver_outcome (*lookup)(const char *host, struct socket_address *at, size_t most,
					size_t *count, struct failure *why);
	uint64_t (*now_ns)(void); /* the age of answers is measured by it; NULL = clock_now_ns */
	uint64_t deadline_ns;     /* by the real clock; 0 = RESOLVER_DEADLINE_S */
};

struct resolver *resolver_start(unsigned int threads, struct failure *why);
struct resolver *resolver_start_with(const struct resolver_options *options, struct failure *why);

/* Comes after the mailboxes of all who asked were closed; nobody may be waiting for an answer. Waits for
 * the threads, but one that is stuck in a lookup is left behind after a second. NULL is allowed. */
void resolver_stop(struct resolver *resolver);

/* Fills *answer from the cache and returns true when no lookup is needed; else false, also when a
 * failure is known. Any thread, no waiting; a lock held for a microsecond. */
bool resolver_cached(struct resolver *resolver, const char *host, uint16_t port,
		     struct resolver_answer *answer);

/* Asks for a name (copied). The answer comes later through `mailbox`, exactly once unless cancelled: a
 * good one (why NULL) or none (answer NULL). Both are valid during the call only, and the query is gone.
 * A stuck getaddrinfo does not hold anybody up: the askers are answered at the deadline, and as long as
 * it stays stuck whoever asks for that name is answered at once with what is known. Names are compared
 * byte by byte. Never calls back before returning. Returns NULL when there is no memory for
 * it, or RESOLVER_NAMES names are being looked up. */
struct resolver_query *
resolver_ask(struct resolver *resolver, struct mailbox *mailbox, const char *host, uint16_t port,
	     void (*on_answer)(void *asker, const struct resolver_answer *answer,
			       const struct failure *why),
	     void *asker);

/* Withdraws a question that was not answered yet: on_answer will not be called. On the thread of the
 * asker's mailbox, which may be closed once all its questions are answered or withdrawn. NULL is
 * allowed. */
void resolver_cancel(struct resolver *resolver, struct resolver_query *query);

#endif
