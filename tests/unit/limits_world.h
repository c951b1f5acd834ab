/*
 * limits_world: the limit tree in invented time, for tests and simulations. Movers take from it as
 * connections do: a grant is used some microseconds after it came, in a turn that ends by asking again;
 * timers are late. One worker.
 */
#ifndef PENSTOCK_TEST_LIMITS_WORLD_H
#define PENSTOCK_TEST_LIMITS_WORLD_H

#include "limits_tree.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define US UINT64_C(1000)
#define MS UINT64_C(1000000)
#define S  UINT64_C(1000000000)

#define WORLD_BEGIN_NS (S * 1000)
#define WORLD_CHUNK    1448 /* how much a mover with a rate of its own gathers before it asks */

struct mover {
	struct limit_flow flow; /* first */
	uint32_t slot;          /* in the world's events */
	uint8_t part;           /* of 10: how much of each grant it uses */
	uint64_t bytes_per_s;   /* what it has to move; 0 = hungry */
	uint64_t piece;         /* it asks for no more at a time; 0 = for all it has */
	uint64_t arrived_ns;    /* up to when its backlog is counted */
	uint64_t backlog;
	uint64_t moved;
	uint64_t asked_ns, longest_ns; /* the longest that it waited between two grants */
	uint64_t left;                 /* it ends after so many bytes; 0 = never */
	uint64_t ended_ns;
};

struct world {
	struct limits *limits;
	struct limits_worker worker;
	uint64_t now_ns, armed_ns;
	uint64_t late_ns; /* timers are late by up to this */
	uint64_t turn_ns,
		turn_more_ns; /* a turn comes so much, and up to so much more, after a grant */
	struct limits_heap events;
	uint64_t random;
	uint64_t grants, takes, runs;
};

static inline uint64_t
world_random(struct world *world, uint64_t below)
{
	/* xorshift64* (S. Vigna, 2014) */
	world->random ^= world->random >> 12;
	world->random ^= world->random << 25;
	world->random ^= world->random >> 27;
	return world->random * UINT64_C(2685821657736338717) % below;
}

static inline void
world_signal(struct limits_worker *worker)
{
	(void)worker;
}

static inline void
world_open(struct world *world, uint32_t movers)
{
	static const uint8_t seed[16] = "not so secret..";

	*world = (struct world){ 0 };
	world->limits = limits_open(seed, NULL);
	world->worker.signal = world_signal;
	limits_worker_open(world->limits, &world->worker);
	world->now_ns = WORLD_BEGIN_NS;
	world->armed_ns = LIMITS_NEVER;
	world->late_ns = MS;
	world->turn_ns = 5 * US;
	world->turn_more_ns = 45 * US;
	world->random = 88172645463325252;
	if (limits_heap_reserve(&world->events, movers) < 0)
		abort();
}

static inline void
world_close(struct world *world)
{
	limits_worker_close(&world->worker);
	limits_close(world->limits);
	limits_heap_release(&world->events);
}

/* A limit with the same rate both ways; burst 0 = the default. */
static inline struct limit *
world_limit(struct world *world, struct limit *parent, uint64_t rate, uint64_t burst,
	    uint16_t weight)
{
	struct limit_spec spec = { .name = "limit",
				   .parent = parent,
				   .weight = weight,
				   .rate = { rate, rate },
				   .burst = { burst, burst } };
	struct failure why;
	struct limit *limit = limits_add(world->limits, &spec, world->now_ns, &why);

	if (!limit) {
		printf("%s\n", why.text);
		abort();
	}
	return limit;
}

static inline void
world_schedule(struct world *world, struct mover *mover, uint64_t at_ns)
{
	limits_heap_push(&world->events, at_ns, &mover->slot);
}

static inline uint64_t
world_turn_ns(struct world *world)
{
	return world->now_ns + world->turn_ns + world_random(world, world->turn_more_ns + 1);
}

/* It asks from the next moment on. A zeroed one is hungry and uses all it gets. */
static inline void
world_add(struct world *world, struct mover *mover, struct limit_node *node)
{
	if (!mover->part)
		mover->part = 10;
	mover->asked_ns = mover->arrived_ns = world->now_ns;
	if (limits_flow_open(&mover->flow, &world->worker, node, LIMIT_DOWN, world->now_ns, NULL) <
	    0)
		abort();
	world_schedule(world, mover, world_turn_ns(world));
}

static inline void
world_drop(struct world *world, struct mover *mover)
{
	if (mover->slot)
		limits_heap_remove(&world->events, &mover->slot);
	limits_flow_close(&mover->flow, world->now_ns);
}

static inline void
world_gather(struct world *world, struct mover *mover)
{
	uint64_t elapsed_ns = world->now_ns - mover->arrived_ns;
	uint64_t bytes = elapsed_ns / MS * mover->bytes_per_s / 1000;

	mover->arrived_ns += elapsed_ns / MS * MS;
	mover->backlog += bytes;
}

static inline uint64_t
world_wants(struct world *world, struct mover *mover)
{
	if (mover->left)
		return mover->left;
	if (!mover->bytes_per_s)
		return UINT64_C(1) << 40;
	world_gather(world, mover);
	return mover->backlog < WORLD_CHUNK ? 0 : mover->backlog;
}

static inline void
world_move(struct world *world, struct mover *mover, uint64_t bytes)
{
	uint64_t used = bytes * mover->part / 10;

	if (world->now_ns - mover->asked_ns > mover->longest_ns)
		mover->longest_ns = world->now_ns - mover->asked_ns;
	mover->asked_ns = world->now_ns;
	limits_spend(&mover->flow, used);
	mover->moved += used;
	if (mover->bytes_per_s)
		mover->backlog -= used;
	if (mover->left && !(mover->left -= used))
		mover->ended_ns = world->now_ns;
}

/* One turn of a mover: uses what it holds, gives back the rest, asks again. */
static inline void
world_turn(struct world *world, struct mover *mover)
{
	uint64_t held = mover->flow.granted;

	if (held)
		world_move(world, mover, held);
	limits_give_back(&mover->flow);
	if (mover->ended_ns)
		return;
	uint64_t want = world_wants(world, mover);
	if (!want) {
		mover->asked_ns = world->now_ns;
		world_schedule(world, mover,
			       world->now_ns + MS + WORLD_CHUNK * S / mover->bytes_per_s);
		return;
	}
	if (mover->piece && want > mover->piece)
		want = mover->piece;
	world->takes++;
	if (limits_take(&mover->flow, want, world->now_ns)) {
		world->grants++;
		world_schedule(world, mover, world_turn_ns(world));
	}
}

static inline void
world_run_limits(struct world *world)
{
	struct limit_flow *flow;

	limits_run(&world->worker, world->now_ns);
	world->runs++;
	if (world->worker.arm_ns)
		world->armed_ns = world->worker.arm_ns +
				  (world->late_ns ? world_random(world, world->late_ns) : 0);
	while ((flow = limits_next(&world->worker))) {
		world->grants++;
		world_schedule(world, LIMITS_OBJECT(flow, struct mover, flow),
			       world_turn_ns(world));
	}
}

static inline void
world_run(struct world *world, uint64_t until_ns)
{
	for (;;) {
		uint64_t next_ns = world->events.count ? world->events.at[0].key : LIMITS_NEVER;
		bool timer = world->armed_ns <= next_ns;
		uint64_t at_ns = timer ? world->armed_ns : next_ns;
		if (at_ns > until_ns)
			break;
		if (at_ns > world->now_ns)
			world->now_ns = at_ns;
		if (timer) {
			world->armed_ns = LIMITS_NEVER;
			world_run_limits(world);
			continue;
		}
		uint32_t *slot = world->events.at[0].slot;
		limits_heap_remove(&world->events, slot);
		world_turn(world, LIMITS_OBJECT(slot, struct mover, slot));
		if (limits_must_run(world->limits, world->now_ns))
			world_run_limits(world);
	}
	world->now_ns = until_ns;
}

#endif
