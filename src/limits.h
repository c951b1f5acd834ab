/*
 * limits: who may move how many bytes, and when. A tree of token buckets, one for each direction at
 * each node, shared by all workers: exact, fair by weight at every level, live. Pure: time is an
 * argument, nothing here knows sockets, loops, clocks or logs.
 *
 * A *limit* is what an operator declares; a *node* is one instance of it: the only one, or one for each
 * key if it, or a limit above it, has a `per`. A *flow* is one direction at one endpoint. It hangs at a
 * node and takes from every node up to the root. What is not there yet is waited for: the flow comes back
 * through its worker, by limits_run and limits_next.
 *
 * Threads: one lock, held for microseconds, never across a callback. A flow belongs to its worker's
 * thread; limits are declared, changed and removed by one thread at a time; the rest says so itself.
 *
 * Time is monotonic nanoseconds; the clocks of workers may differ by how stale they are.
 */
#ifndef PENSTOCK_LIMITS_H
#define PENSTOCK_LIMITS_H

#include "address.h"
#include "failure.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LIMITS_SEGMENT_BYTES 1448 /* no grant is cut below it to no purpose */
#define LIMITS_RATE_MOST \
	UINT64_C(18000000000) /* bytes a second: above it the arithmetic overflows */
#define LIMITS_BURST_MOST  (UINT64_C(1) << 50) /* bytes */
#define LIMITS_WEIGHT_MOST UINT16_MAX
#define LIMITS_NEVER       UINT64_MAX /* a due time that does not come */

enum limit_direction { LIMIT_UP, LIMIT_DOWN };

enum limit_per {
	LIMIT_PER_NONE,
	LIMIT_PER_CONNECTION,
	LIMIT_PER_SOURCE,
	LIMIT_PER_SNI,
	LIMIT_PER_CERTIFICATE,
	LIMIT_PER_UID,
};

struct limits;       /* the tree */
struct limit;        /* as declared */
struct limit_node;   /* one instance of it */
struct limit_bucket; /* one direction of a node */

/* What is declared of a limit. */
struct limit_spec {
	const char *name;     /* copied */
	struct limit *parent; /* NULL = a root */
	enum limit_per per;
	uint8_t prefix_v4, prefix_v6; /* LIMIT_PER_SOURCE: bits that count */
	uint16_t weight;              /* among its parent's children, from 1 */
	uint64_t rate[2];  /* bytes a second by direction; 0 = unlimited, it only groups */
	uint64_t burst[2]; /* bytes; 0 = limits_burst_default */
	uint32_t quantum;  /* bytes a flow gets at a time; 0 = by its share of the rate */
	uint32_t
		nodes_most; /* with a `per`, 0 = as many as come: at the cap the oldest without users
				goes, and if there is none a new key is refused */
	bool starts_empty; /* nodes are born as if emptied when the limit was added: for one that takes
				the place of another */
};

/* Whose bytes they are. What is not known yet is NULL: the connection then hangs at the nearest node
 * above that needs it not. Of a text, "" = known that there is none. */
struct limit_who {
	uint64_t connection; /* unique */
	const struct socket_address *source;
	const char *sni;
	const char *certificate; /* whatever text tells one from another, up to 254 bytes */
};

struct limit_link {
	struct limit_link *next, *prev;
};

/* What takes its turn at a bucket: a flow or another bucket. All of it is limits.c's. */
struct limit_child {
	struct limit_bucket *parent; /* NULL = a root, or a flow without limit */
	uint64_t v;                  /* virtual time: bytes served * 2^20 / weight */
	uint32_t slot;               /* in `ready` of the parent; 0 = not there */
	uint16_t weight;
	bool is_flow;
	bool seen;         /* v means something */
	uint64_t since_ns; /* in `waiting` of the parent, or on the way through the mail */
	struct limit_link link;
};

/* A worker as the limits see it. Zero it, set `signal` and give it to limits_worker_open. */
struct limits_worker {
	/* Called without the lock, from any thread: have the worker call limits_run soon. Must be callable
	 * until every worker is closed. */
	void (*signal)(struct limits_worker *worker);
	/* After limits_run: set the worker's timer to this time and call limits_run then. 0 = leave the
	 * timer as it is. */
	uint64_t arm_ns;
	/* The rest is limits.c's. */
	struct limits *limits;
	struct limits_worker *next;
	struct limit_link mail; /* under the lock: flows granted to since its last run */
	struct limit_link mine; /* flows not yet returned by limits_next */
	uint64_t mailed_ns;     /* when the oldest of them was granted */
	bool signalled;         /* and has not run since */
};

/* One direction at one endpoint, embedded in its owner. Zeroed it is a flow without limit that may be
 * closed. All fields are limits.c's. */
struct limit_flow {
	struct limit_child child; /* first */
	struct limit_bucket *cut; /* the path ends below it; NULL = at the root */
	uint64_t want;
	uint64_t granted; /* tokens in hand */
	struct limits_worker *worker;
	uint32_t second; /* in which it was last counted as active */
	uint32_t moves;  /* how often paths had changed when `granted` was taken */
	uint32_t had;    /* how much it was granted last; 0 = it gave some of that back */
	uint32_t pass; /* while this is limits_queue.pass, no rate is on its path; 0 = not known */
	_Atomic(uint64_t) passed; /* bytes moved by that, not in the totals yet */
	bool has_passed;          /* under the lock: in limits_queue.passing, by the child's link */
	bool waiting;             /* under the lock: in the queue */
	bool mailed;              /* under the lock: in mail or mine */
	bool asked;               /* the owner's: from a take that got nothing until limits_next */
};

/* --- the tree and its workers ------------------------------------------------------------------- */

/* Opens an empty tree. `seed` is secret: peers choose keys, and shall not choose collisions. */
struct limits *limits_open(const uint8_t seed[16], struct failure *why);
/* Frees it and all limits; flows and workers must be closed before. NULL is allowed. */
void limits_close(struct limits *limits);

void limits_worker_open(struct limits *limits, struct limits_worker *worker);
/* Its flows must be closed before. */
void limits_worker_close(struct limits_worker *worker);

/* Whether limits_run is called for now: something is due, or a timer must be set. To be asked at the end
 * of each turn of the worker. Two atomic loads. */
bool limits_must_run(const struct limits *limits, uint64_t now_ns);

/* When something is due next; LIMITS_NEVER. One atomic load. */
uint64_t limits_due_ns(const struct limits *limits);

/* Grants what is due, to flows of all workers, at most 256 at a time; sets worker->arm_ns; signals other
 * workers that got something. Afterwards limits_next gives the worker's own. Called at the end of a turn
 * if limits_must_run, when the worker's timer fires, and when it was signalled. */
void limits_run(struct limits_worker *worker, uint64_t now_ns);

/* The next flow of this worker that was granted something: it is to move now, by limits_take. NULL = no
 * more. Without a lock; flows may be closed in between. */
struct limit_flow *limits_next(struct limits_worker *worker);

/* --- flows -------------------------------------------------------------------------------------- */

/* Hangs a zeroed flow at the node, which it keeps alive; NULL = without limit. Fails only for want of
 * memory, and is then without limit. */
int limits_flow_open(struct limit_flow *flow, struct limits_worker *worker, struct limit_node *node,
		     enum limit_direction direction, uint64_t now_ns, struct failure *why);

/* Gives back what it holds and takes it off the tree. A zeroed or closed one is left alone. O(depth *
 * log waiting). */
void limits_flow_close(struct limit_flow *flow, uint64_t now_ns);

/* Hangs it at another node (NULL = none); nothing is charged again. If it waited it does so no more: ask
 * again. The cut is forgotten. On failure it stays where it was. */
int limits_flow_move(struct limit_flow *flow, struct limit_node *node,
		     enum limit_direction direction, uint64_t now_ns, struct failure *why);

/* The flow's bytes have been charged to `earlier` and all above it already, at another endpoint: from
 * now on they are not charged there again. May be said of several. As limits_flow_move, ends its wait. */
void limits_flow_cut(struct limit_flow *flow, const struct limit_node *earlier);

/* Takes all cuts back. Ends its wait, if it had any. */
void limits_flow_uncut(struct limit_flow *flow);

/* How many of `want` bytes (more than 0) may move now: up to `want`, paid for and in hand. 0: the flow
 * waits, and limits_next will give it. Calling again changes nothing: neither while it waits nor while
 * it holds tokens. Who asks for one large piece after the other may be granted several of them at once.
 * Without limit: want, without a lock; where nothing up to the root has a rate the same, but for once a
 * second. Else one short lock, O(depth), and if it must wait O(depth * log waiting). */
uint64_t limits_take(struct limit_flow *flow, uint64_t want, uint64_t now_ns);

/* While the flow waits: the name of the limit that keeps it, the one that will be short for longest. Valid
 * until the flow is moved or closed. */
const char *limits_waits_for(struct limit_flow *flow);

/* So many of the tokens in hand have been used: bytes have moved. */
void limits_spend(struct limit_flow *flow, uint64_t bytes);

/* The flow is about to wait for something else: what it still holds goes back, and if it was waiting for
 * tokens it does so no more. Costs nothing if it holds nothing. */
void limits_give_back(struct limit_flow *flow);

/* --- declared limits ---------------------------------------------------------------------------- */

/* The least burst that keeps the rate with timers some milliseconds late, and what it is by default. */
uint64_t limits_burst_least(uint64_t rate, uint32_t quantum);
uint64_t limits_burst_default(uint64_t rate, uint32_t quantum);

/* Whether the values are in range; the failure names the value and what would be right. */
int limits_check(const struct limit_spec *spec, struct failure *why);

/* Adds a limit; it stays until limits_remove. Names need not differ: limits_find gives the newest. */
struct limit *limits_add(struct limits *limits, const struct limit_spec *spec, uint64_t now_ns,
			 struct failure *why);
struct limit *limits_find(struct limits *limits, const char *name);
const char *limits_name(const struct limit *limit);

/* The values in force, as they were given: a burst of 0 follows from the rate. Name and parent are valid as long
 * as the limit is. */
void limits_spec(struct limit *limit, struct limit_spec *out);

/* Whether limits_change can do it: `per` is the same, and so is the parent, unless neither the limit's
 * old place nor its new one depends on a key. Otherwise add a new one (starts_empty) and remove this. */
bool limits_can_change(const struct limit *limit, const struct limit_spec *spec);

/* Gives it and all its nodes new values, in place: tokens are kept, clipped to the burst (coming from
 * unlimited: one burst), totals too. Nodes change in slices, the lock is free in between. Nothing is
 * changed if the values are out of range or limits_can_change says no. */
int limits_change(struct limit *limit, const struct limit_spec *spec, uint64_t now_ns,
		  struct failure *why);

/* Takes it from the list; nodes live on as long as they have users. The pointer is valid only for those
 * who hold it, and still gives nodes. */
void limits_remove(struct limit *limit, uint64_t now_ns);
void limits_hold(struct limit *limit);
void limits_drop(struct limit *limit); /* NULL is allowed */

/* --- nodes -------------------------------------------------------------------------------------- */

/* The node of the limit for this peer, made if there is none, and the chain above it. *out is to be
 * released; it is NULL if nothing is known that the topmost limit needs. Fails without memory, or with
 * FAILURE_ADMISSION at the cap of a limit's nodes. Any thread. O(depth). */
int limits_resolve(struct limit *limit, const struct limit_who *who, uint64_t now_ns,
		   struct limit_node **out, struct failure *why);

/* A node without users is kept until both its buckets are full, so that to reconnect does not refill
 * them. NULL is allowed. Any thread. */
void limits_release(struct limit_node *node, uint64_t now_ns);

/* The one node of a limit that depends on no key, held; NULL for others. Any thread that holds the limit. */
struct limit_node *limits_only(struct limit *limit, uint64_t now_ns);

/* The node of a limit of that name with that key, as a report tells both, held; NULL = there is none. Any
 * thread. O(nodes), in short locks. */
struct limit_node *limits_by_key(struct limits *limits, const char *name, const char *key,
				 uint64_t now_ns);

/* How many nodes the limit has. Any thread that holds the limit. */
uint32_t limits_count(struct limit *limit);

/* By hand, any thread. A charge may leave the bucket in debt; a credit is clipped to the burst. Values
 * set by limits_retune last until limits_change. They must be in range (limits_check). */
void limits_retune(struct limit_node *node, enum limit_direction direction, uint64_t rate,
		   uint64_t burst, uint64_t now_ns);
void limits_charge(struct limit_node *node, enum limit_direction direction, uint64_t bytes,
		   uint64_t now_ns);
void limits_credit(struct limit_node *node, enum limit_direction direction, uint64_t bytes,
		   uint64_t now_ns);
void limits_reset_total(struct limit_node *node, enum limit_direction direction);

#endif
