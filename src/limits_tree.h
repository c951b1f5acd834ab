/*
 * limits_tree: the data behind limits.h, for the files limits*.c and their tests, with what must be true
 * of it whenever the lock is free:
 *
 * 1. A child is in its parent's `ready` exactly when it can be served: a flow when it waits; a bucket when
 *    it is not blocked and its own `ready` is not empty.
 * 2. A bucket is in `timers` exactly when it is blocked. (The first bucket of a node without users is
 *    there too, with the moment at which the node is full again.)
 * 3. Every root is blocked, or has nothing ready, or stands on `todo`: nothing that could pass waits.
 * 4. tokens <= burst. No grant makes tokens negative; only a charge by hand does. Every byte granted was
 *    taken from every bucket below the flow's cut.
 * 5. A flow that is neither moving nor waiting holds no tokens.
 */
#ifndef PENSTOCK_LIMITS_TREE_H
#define PENSTOCK_LIMITS_TREE_H

#include "limits.h"
#include "limits_heap.h"
#include "slab.h"

#include <pthread.h>
#include <stdatomic.h>

#define LIMITS_LINE_BYTES   64
#define LIMITS_OWN_KEY_MOST 65 /* what fills the last line of a node */

/* One direction of a node. Its children queue here while it, or something above it, is short. With a million
 * nodes what a grant costs is cache lines: what it looks at stands in these three, all else in the rest. */
struct limit_bucket {
	struct limit_child child; /* first */
	uint64_t rate;            /* bytes a second; 0 = never short */
	uint64_t v;               /* the latest v at which a child was served; only rises */

	struct limits_heap ready;  /* children that can be served, by v */
	struct limit_link waiting; /* the same children, by since */
	uint64_t ready_weight;     /* of the same, the sum */
	uint64_t pace;             /* bytes a second it was last estimated to get from above */

	int64_t tokens;
	uint64_t burst;
	uint64_t stamp_ns; /* up to when tokens are counted */
	uint64_t total;
	uint32_t fraction;   /* of a token, in 1 / 10^9 */
	uint32_t timer_slot; /* in `timers`; 0 = not there */
	uint32_t quantum;    /* for the flows below; 0 = as above it */
	uint32_t flows_waiting;
	uint32_t second, active,
		active_before; /* flows granted to in `second` and in the one before */
	uint8_t direction;     /* which one of its node's */
	bool blocked;
	bool on_todo;
};

_Static_assert(sizeof(struct limit_bucket) == (size_t)3 * LIMITS_LINE_BYTES, "three cache lines");

/* What no grant looks at. */
struct limit_rest {
	int64_t level;     /* while blocked: the tokens at which it comes back */
	uint32_t children; /* flows and buckets that hang here */
	uint32_t members;  /* flows that hang here and below */
	/* What a report saw: the total when it last began to measure, and what had passed before that. */
	uint64_t seen_total;
	uint64_t speed; /* bytes a second */
};

struct limit_node {
	struct limit_bucket bucket[2]; /* first */
	struct limit_rest rest[2];     /* of the same */
	struct limit *limit;
	struct limit_node *chained; /* the next of its row in the table */
	struct limit_link link;     /* in `used` or `idle` of the limit */
	const unsigned char *key;   /* limits_key.h: `own_key`, or owned */
	uint64_t seen_ns;           /* when a report last began to measure, or it was made */
	uint32_t hash;
	uint32_t users;
	uint32_t version; /* of the limit's values that it has */
	uint8_t key_length;
	bool is_among_many; /* from which slab it is */
	bool is_measured;   /* it was there for long enough to know its speed */
	unsigned char own_key[LIMITS_OWN_KEY_MOST];
};

/* An even number of lines would put what is hot in all of them into the same few sets of a cache. */
_Static_assert(sizeof(struct limit_node) % LIMITS_LINE_BYTES == 0 &&
		       sizeof(struct limit_node) / LIMITS_LINE_BYTES % 2 == 1,
	       "an odd number of cache lines");

struct limit {
	struct limits *limits;
	struct limit *next;
	struct limit_spec spec; /* owns its name, holds its parent */
	/* Nodes. In each list those whose version is old stand before all others. */
	struct limit_link used, idle;
	uint32_t nodes;
	uint32_t version;
	struct limit_node *only; /* held: the one node of a limit that depends on no key */
	uint64_t emptied_ns;     /* spec.starts_empty: when it was added */
	uint32_t users;          /* limits below, nodes, holders, and the list */
	bool is_removed;
	bool is_keyed;   /* it or a limit above it has a `per` */
	bool is_passing; /* its nodes are one connection's and never come again */
};

/* Who is served when: limits_queue.h. */
struct limits_queue {
	struct limits_heap timers; /* by ns */
	struct limit_link todo;    /* roots with something ready, by the links of their children */
	uint64_t late_ns;          /* how late it was lately at worst; decays */
	uint64_t wake_ups;         /* in a second, as far as can be relied on; 0 = as usual */
	uint32_t moves;            /* of buckets with flows below them, to another parent */
	struct limit_link passing; /* flows that need not ask, or needed not when they last moved */
	_Atomic(uint32_t)
		pass; /* written under the lock: another one, whenever they must ask again */
};

/* All nodes by limit, parent and key: linear hashing, a row is split with each node that comes. */
struct limits_table {
	struct limit_node **rows;
	size_t count, room, nodes;
	uint64_t seed[2];
};

struct limits {
	pthread_mutex_t lock;
	struct limits_queue queue;
	struct limits_table table;
	struct slab few, many; /* where nodes are: the first ones, and all others in huge pages */
	struct limit *first;   /* the newest */
	struct limits_worker *workers;
	struct limits_worker *armed_by;
	unsigned int work; /* grants in one lock hold of limits_run, 256 at most */
	/* Written under the lock, read without. */
	_Atomic(uint64_t) due_ns;   /* 0 = at once */
	_Atomic(uint64_t) armed_ns; /* the earliest that some worker's timer is set to */
};

#define LIMITS_OBJECT(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

static inline struct limit_node *
limits_tree_node(struct limit_bucket *bucket)
{
	return (struct limit_node *)(bucket - bucket->direction);
}

static inline struct limit_rest *
limits_tree_rest(struct limit_bucket *bucket)
{
	return &limits_tree_node(bucket)->rest[bucket->direction];
}

static inline void
limits_tree_list(struct limit_link *list)
{
	list->next = list->prev = list;
}

static inline void
limits_tree_unlink(struct limit_link *link)
{
	link->prev->next = link->next;
	link->next->prev = link->prev;
}

static inline void
limits_tree_append(struct limit_link *list, struct limit_link *link)
{
	link->next = list;
	link->prev = list->prev;
	link->prev->next = list->prev = link;
}

#endif
