/* What limits give to whom, in invented time: rates, windows, shares, waits. */
#include "limits_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define MOVERS 10200
#define MB     UINT64_C(1000000)

static struct world world;
static struct mover movers[MOVERS];
static uint32_t used;

static int
open_world(void **state)
{
	(void)state;
	memset(movers, 0, sizeof(movers));
	used = 0;
	world_open(&world, MOVERS);
	return 0;
}

static int
close_world(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < used; i++)
		world_drop(&world, &movers[i]);
	world_close(&world);
	return 0;
}

static void
again(void)
{
	close_world(NULL);
	open_world(NULL);
}

/* Adds `count` hungry movers at the limit and returns the first. */
static struct mover *
crowd(struct limit *limit, uint32_t count)
{
	struct mover *first = &movers[used];

	assert_true(used + count <= MOVERS);
	for (uint32_t i = 0; i < count; i++)
		world_add(&world, &movers[used++], limit->only);
	return first;
}

static void
run_for(uint64_t duration_ns)
{
	world_run(&world, world.now_ns + duration_ns);
}

static uint64_t
moved_by(const struct mover *first, uint32_t count)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += first[i].moved;
	return sum;
}

/* What `count` movers move in `duration_ns`. */
static uint64_t
moved_in(const struct mover *first, uint32_t count, uint64_t duration_ns)
{
	uint64_t before = moved_by(first, count);
	run_for(duration_ns);
	return moved_by(first, count) - before;
}

static double
jain(const struct mover *first, uint32_t count, const uint64_t *before)
{
	double sum = 0, squares = 0;

	for (uint32_t i = 0; i < count; i++) {
		double moved = (double)(first[i].moved - before[i]);
		sum += moved;
		squares += moved * moved;
	}
	return squares > 0 ? sum * sum / count / squares : 0;
}

static double
jain_over(const struct mover *first, uint32_t count, uint64_t duration_ns)
{
	static uint64_t before[MOVERS];

	for (uint32_t i = 0; i < count; i++)
		before[i] = first[i].moved;
	run_for(duration_ns);
	return jain(first, count, before);
}

static double
larger(double a, double b)
{
	return a > b ? a : b;
}

static double
smaller(double a, double b)
{
	return a < b ? a : b;
}

static void
assert_near(double value, double wanted, double tolerance)
{
	if (!(value >= wanted - tolerance && value <= wanted + tolerance))
		fail_msg("%g instead of %g +- %g", value, wanted, tolerance);
}

/* --- rates and windows -------------------------------------------------------------------------- */

static const uint64_t rates[] = {
	1000, 10000, 100000, MB, 10 * MB, 100 * MB, 1000 * MB, 10000 * MB,
};
#define RATES (sizeof(rates) / sizeof(rates[0]))

/* Five levels, of which one is the narrow one. */
static struct limit *
stack_of_five(uint64_t rate, int narrow)
{
	struct limit *limit = NULL;

	for (int level = 0; level < 5; level++) {
		uint64_t wide = rate * 17 / 10;
		limit = world_limit(&world, limit, level == narrow ? rate : wide, 0, 1);
	}
	return limit;
}

static void
each_level_keeps_its_rate(void **state)
{
	(void)state;
	for (size_t r = 0; r < RATES; r++) {
		for (int level = 0; level < 5; level += 2) {
			uint64_t duration_ns = rates[r] < 100000 ? 100 * S : 10 * S;
			if (rates[r] > 100 * MB)
				duration_ns = 3 * S;
			struct mover *all = crowd(stack_of_five(rates[r], level), 3);
			run_for(2 * S);
			double moved = (double)moved_in(all, 3, duration_ns);
			double wanted = (double)rates[r] * (double)duration_ns / 1e9;
			double quantum = larger(1448, smaller(65536, (double)rates[r] / 40));
			assert_near(moved, wanted, larger(wanted / 100, quantum));
			again();
		}
	}
}

/* A leaky bucket in double: its level is the most that passed in any window beyond rate * window. */
static void
no_window_has_more_than_burst_and_rate(void **state)
{
	(void)state;
	for (size_t r = 0; r < RATES; r++) {
		struct limit *top = world_limit(&world, NULL, rates[r], 0, 1);
		struct limit_bucket *bucket = &top->only->bucket[LIMIT_DOWN];
		uint64_t end_ns = world.now_ns + (rates[r] < MB ? 60 * S : S);
		double level = 0, worst = 0;
		uint64_t total = 0, at_ns = world.now_ns;
		crowd(world_limit(&world, top, rates[r] * 13 / 10, 0, 1), 3);
		while (world.now_ns < end_ns) {
			uint64_t next_ns = world.events.count ? world.events.at[0].key : end_ns;
			if (world.armed_ns < next_ns)
				next_ns = world.armed_ns;
			world_run(&world, next_ns < end_ns ? next_ns : end_ns);
			level -= (double)rates[r] * (double)(world.now_ns - at_ns) / 1e9;
			level = larger(0, level) + (double)bucket->total - (double)total;
			worst = larger(worst, level);
			total = bucket->total;
			at_ns = world.now_ns;
		}
		assert_true(worst <= (double)bucket->burst + 1);
		assert_true(worst >= (double)bucket->burst / 2);
		again();
	}
}

static void
idle_siblings_cost_nothing(void **state)
{
	(void)state;
	struct limit *top = world_limit(&world, NULL, 10 * MB, 0, 1);
	for (int i = 0; i < 10000; i++)
		assert_int_equal(limits_flow_open(&movers[used++].flow, &world.worker, top->only,
						  LIMIT_DOWN, world.now_ns, NULL),
				 0);
	for (int i = 0; i < 50; i++)
		world_limit(&world, top, 10 * MB, 0, 100);
	struct mover *one = crowd(world_limit(&world, top, 8 * MB, 0, 1), 1);
	run_for(S);
	assert_near((double)moved_in(one, 1, 10 * S), 80e6, 80e4);
}

/* Every other one has less than its share of the parent; the rest share what these leave. */
static void
a_thousand_children_keep_their_bounds(void **state)
{
	enum { CHILDREN = 1000 };
	static struct limit *children[CHILDREN];
	static double level[CHILDREN + 1];
	static uint64_t total[CHILDREN + 1], before[CHILDREN];
	struct limit *top = world_limit(&world, NULL, 10 * MB, 0, 1);
	(void)state;

	memset(level, 0, sizeof(level));
	memset(total, 0, sizeof(total));
	for (int i = 0; i < CHILDREN; i++) {
		children[i] = world_limit(&world, top, i % 2 ? 5000 : 40000, 0, 1);
		crowd(children[i], 1);
	}
	for (int ms = 0; ms < 15000; ms++) {
		run_for(MS);
		for (int i = 0; i <= CHILDREN; i++) {
			struct limit *limit = i < CHILDREN ? children[i] : top;
			struct limit_bucket *bucket = &limit->only->bucket[LIMIT_DOWN];
			double in_ms = (double)bucket->rate / 1000;
			level[i] = larger(0, level[i] - in_ms) + (double)(bucket->total - total[i]);
			assert_true(level[i] <= (double)bucket->burst + in_ms + 1);
			total[i] = bucket->total;
		}
		if (ms == 4999)
			for (int i = 0; i < CHILDREN; i++)
				before[i] = movers[i].moved;
	}
	for (int i = 0; i < CHILDREN; i++)
		assert_near((double)(movers[i].moved - before[i]), i % 2 ? 50e3 : 150e3,
			    i % 2 ? 1448 : 4 * 1448);
}

static void
small_bursts_of_four_milliseconds_keep_the_rate(void **state)
{
	(void)state;
	world.late_ns = 2 * MS;
	struct limit *top = world_limit(&world, NULL, 100 * MB, 400000, 1);
	struct mover *all = crowd(top, 10);
	run_for(S);
	assert_near((double)moved_in(all, 10, 5 * S), 500e6, 5e6);
}

static void
the_least_burst_keeps_the_rate(void **state)
{
	(void)state;
	for (uint64_t rate = 10000; rate <= 100 * MB; rate = rate * 19 / 10) {
		world.late_ns = 2 * MS;
		struct limit *top = world_limit(&world, NULL, rate, limits_burst_least(rate, 0), 1);
		struct mover *all = crowd(top, 3);
		run_for(S);
		double wanted = (double)rate * 10;
		assert_near((double)moved_in(all, 3, 10 * S), wanted, larger(1448, wanted / 100));
		again();
	}
}

/* --- shares ------------------------------------------------------------------------------------- */

static void
equals_get_the_same(void **state)
{
	static const struct {
		uint64_t rate;
		uint32_t count;
	} cases[] = { { 100000, 8 },    { MB, 10 },         { MB, 80 },        { 10 * MB, 100 },
		      { 100 * MB, 10 }, { 100 * MB, 2000 }, { 10000 * MB, 10 } };
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct limit *top = world_limit(&world, NULL, cases[i].rate, 0, 1);
		struct mover *all = crowd(top, cases[i].count);
		run_for(S);
		double index = jain_over(all, cases[i].count, S);
		if (index < 0.99)
			fail_msg("%d: %g over 1 s", (int)i, index);
		if (cases[i].rate / cases[i].count < 4 * 10 * 1448)
			goto next;
		index = jain_over(all, cases[i].count, 100 * MS);
		if (index < 0.95)
			fail_msg("%d: %g over 100 ms", (int)i, index);
	next:
		again();
	}
}

static void
a_client_with_a_hundred_gets_what_one_gets(void **state)
{
	(void)state;
	for (uint64_t turn_ns = 5 * US; turn_ns <= 2 * MS; turn_ns *= 20) {
		for (uint64_t rate = 10 * MB; rate <= 1000 * MB; rate *= 100) {
			world.turn_ns = turn_ns;
			world.late_ns = turn_ns > MS ? 2 * MS : MS;
			struct limit *top = world_limit(&world, NULL, rate, 0, 1);
			struct mover *one = crowd(world_limit(&world, top, 0, 0, 1), 1);
			struct mover *many = crowd(world_limit(&world, top, 0, 0, 1), 100);
			run_for(S);
			uint64_t many_before = moved_by(many, 100);
			double alone = (double)moved_in(one, 1, 3 * S);
			double together = (double)(moved_by(many, 100) - many_before);
			assert_near(alone / together, 1, 0.02);
			again();
		}
	}
}

/* A machine with too much to do: timers come tens of milliseconds late. */
static void
shares_hold_where_all_is_late(void **state)
{
	(void)state;
	for (uint64_t late_ns = 10 * MS; late_ns <= 40 * MS; late_ns *= 2) {
		world.late_ns = late_ns;
		struct limit *top = world_limit(&world, NULL, 20 * MB, 5 * MB, 1);
		struct mover *one = crowd(world_limit(&world, top, 0, 0, 1), 1);
		struct mover *many = crowd(world_limit(&world, top, 0, 0, 1), 100);
		run_for(S);
		uint64_t many_before = moved_by(many, 100);
		double alone = (double)moved_in(one, 1, 5 * S);
		double together = (double)(moved_by(many, 100) - many_before);
		assert_near(alone / together, 1, 0.03);
		again();
	}
}

static void
weights_come_out(void **state)
{
	static const uint16_t weights[2][3] = { { 1, 2, 4 }, { 1, 10, 100 } };
	(void)state;
	for (int w = 0; w < 2; w++) {
		for (uint64_t rate = MB; rate <= 1000 * MB; rate *= 10) {
			struct limit *top = world_limit(&world, NULL, rate, 0, 1);
			double before[3], sum = 0, weight = 0;
			for (int i = 0; i < 3; i++)
				crowd(world_limit(&world, top, 0, 0, weights[w][i]), 2);
			run_for(S);
			for (int i = 0; i < 3; i++)
				before[i] = (double)moved_by(&movers[2 * i], 2);
			run_for(rate == MB ? 20 * S : 4 * S);
			for (int i = 0; i < 3; i++) {
				before[i] = (double)moved_by(&movers[2 * i], 2) - before[i];
				sum += before[i];
				weight += weights[w][i];
			}
			for (int i = 0; i < 3; i++)
				assert_near(before[i] / sum * weight / weights[w][i], 1, 0.02);
			again();
		}
	}
}

/* Beside others that get more at a time, its few bytes for each wake-up would be all that it gets. */
static void
a_small_quantum_costs_no_share(void **state)
{
	static const uint32_t quanta[] = { 1448, 16384, 65536 };
	(void)state;
	for (size_t q = 0; q < sizeof(quanta) / sizeof(quanta[0]); q++) {
		for (uint64_t rate = MB; rate <= 1000 * MB; rate *= 10) {
			struct limit_spec spec = { .name = "small",
						   .weight = 1,
						   .quantum = quanta[q] };
			struct limit *top = world_limit(&world, NULL, rate, 0, 1);
			spec.parent = top;
			struct limit *small = limits_add(world.limits, &spec, world.now_ns, NULL);
			struct mover *mine = crowd(small, 1);
			crowd(world_limit(&world, top, 0, 0, 1), 1);
			crowd(world_limit(&world, top, 0, 0, 1), 1);
			run_for(S);
			double share = (double)moved_in(mine, 1, 10 * S) / (double)rate / 10;
			/* Bounded by what it may claim where wake-ups are rarer than it is to be served. */
			double least = quanta[q] == 1448 ? 0.75 : 0.97;
			if (share * 3 < least || share * 3 > 1.03)
				fail_msg("%u at %g: %g", quanta[q], (double)rate, share * 3);
			again();
		}
	}
}

static void
who_asks_for_pieces_gets_the_same(void **state)
{
	(void)state;
	for (uint64_t rate = 10 * MB; rate <= 1000 * MB; rate *= 10) {
		struct limit *top = world_limit(&world, NULL, rate, 0, 1);
		for (int i = 0; i < 3; i++)
			movers[i].piece = UINT64_C(65536) << 2 * i;
		crowd(top, 4);
		run_for(S);
		uint64_t before = moved_by(movers, 1);
		double all = (double)moved_in(movers, 4, 5 * S);
		assert_near((double)(moved_by(movers, 1) - before) / all, 0.25, 0.01);
		again();
	}
}

static void
who_uses_little_of_each_grant_gets_half_all_the_same(void **state)
{
	(void)state;
	struct limit *top = world_limit(&world, NULL, 100 * MB, 0, 1);
	struct mover *picky = &movers[0], *hungry;

	picky->part = 3;
	crowd(top, 1);
	hungry = crowd(top, 1);
	run_for(S);
	uint64_t before = hungry->moved;
	double mine = (double)moved_in(picky, 1, 5 * S);
	double theirs = (double)(hungry->moved - before);
	assert_near(mine / (mine + theirs), 0.5, 0.03);
}

static void
new_small_flows_gain_nothing_over_the_clients_share(void **state)
{
	(void)state;
	struct limit *top = world_limit(&world, NULL, 10 * MB, 0, 1);
	struct mover *honest = crowd(world_limit(&world, top, 0, 0, 1), 20);
	struct limit *cheat = world_limit(&world, top, 0, 0, 1);
	uint64_t cheated = 0;

	run_for(S);
	uint64_t before = moved_by(honest, 20);
	/* 7000 flows a second, a segment each, would be the whole rate. */
	struct mover *ring = &movers[used];
	for (int i = 0; i < 35000; i++) {
		struct mover *mover = &ring[i % 1000];
		if (mover->part) {
			cheated += mover->moved;
			world_drop(&world, mover);
		}
		*mover = (struct mover){ .left = 1448 };
		world_add(&world, mover, cheat->only);
		run_for(142 * US);
	}
	used += 1000;
	double kept = (double)(moved_by(honest, 20) - before);
	assert_true(kept >= 0.48 * 10e6 * 35000 * 142e-6);
	assert_true(cheated > 0);
}

/* --- waits -------------------------------------------------------------------------------------- */

static void
an_old_flow_is_not_silenced_by_newcomers(void **state)
{
	(void)state;
	struct limit *top = world_limit(&world, NULL, 10 * MB, 0, 1);
	struct mover *old = crowd(top, 1);

	run_for(S);
	old->longest_ns = 0;
	crowd(top, 1000);
	run_for(10 * S);
	assert_true(old->longest_ns <= 1300 * MS);
}

static void
an_old_flow_is_not_silenced_by_a_retune(void **state)
{
	(void)state;
	struct limit *top = world_limit(&world, NULL, 100 * MB, 0, 1);
	struct limit_spec spec;

	crowd(top, 10);
	run_for(S);
	limits_spec(top, &spec);
	spec.rate[0] = spec.rate[1] = 100000;
	spec.burst[0] = spec.burst[1] = 0;
	assert_int_equal(limits_change(top, &spec, world.now_ns, NULL), 0);
	for (int i = 0; i < 10; i++)
		movers[i].longest_ns = 0;
	run_for(5 * S);
	for (int i = 0; i < 10; i++)
		assert_true(movers[i].longest_ns <= S);
}

/* Sends a fresh request of 1 KiB at each of many moments; returns the longest that one took. Each comes
 * from a client of its own, unless `shared`. */
static uint64_t
worst_request_ns(struct limit *limit, bool shared)
{
	struct mover *fresh = &movers[used++];
	uint64_t worst_ns = 0;

	for (int i = 0; i < 100; i++) {
		struct limit *client = shared ? limit : world_limit(&world, limit, 0, 0, 1);
		*fresh = (struct mover){ .left = 1024 };
		uint64_t begin_ns = world.now_ns;
		world_add(&world, fresh, client->only);
		while (!fresh->ended_ns)
			run_for(MS);
		if (fresh->ended_ns - begin_ns > worst_ns)
			worst_ns = fresh->ended_ns - begin_ns;
		world_drop(&world, fresh);
		run_for(world_random(&world, 50 * MS));
	}
	return worst_ns;
}

static void
a_fresh_request_does_not_starve(void **state)
{
	(void)state;
	for (uint64_t rate = 100000; rate <= 10 * MB; rate *= 10) {
		uint64_t bound_ns = rate < MB ? 60 * MS : 10 * MS;
		/* 200 flows in one client; 200 flows; 200 clients. First their own allowances pass. */
		struct limit *top = world_limit(&world, NULL, rate, 0, 1);
		crowd(world_limit(&world, top, 0, 0, 1), 200);
		run_for(20 * S);
		assert_true(worst_request_ns(top, false) <= bound_ns);
		again();

		top = world_limit(&world, NULL, rate, 0, 1);
		crowd(top, 200);
		run_for(20 * S);
		assert_true(worst_request_ns(top, true) <= bound_ns);
		again();

		top = world_limit(&world, NULL, rate, 0, 1);
		for (int i = 0; i < 200; i++)
			crowd(world_limit(&world, top, 0, 0, 1), 1);
		run_for(20 * S);
		assert_true(worst_request_ns(top, false) <= bound_ns);
		again();
	}
}

static void
a_retune_is_obeyed_within_100_ms(void **state)
{
	(void)state;
	struct limit *top = world_limit(&world, NULL, 1000, 0, 1);
	struct mover *all = crowd(top, 10);
	struct limit_spec spec;

	run_for(10 * S);
	limits_spec(top, &spec);
	spec.rate[1] = 100 * MB;
	spec.burst[1] = 0;
	assert_int_equal(limits_change(top, &spec, world.now_ns, NULL), 0);
	if (limits_must_run(world.limits, world.now_ns))
		world_run_limits(&world);
	assert_near((double)moved_in(all, 10, 100 * MS), 10e6, 1e6);

	spec.rate[1] = 0;
	assert_int_equal(limits_change(top, &spec, world.now_ns, NULL), 0);
	if (limits_must_run(world.limits, world.now_ns))
		world_run_limits(&world);
	assert_true(moved_in(all, 10, 100 * MS) > 100 * MB);

	spec.rate[1] = MB;
	spec.burst[1] = 50000;
	assert_int_equal(limits_change(top, &spec, world.now_ns, NULL), 0);
	uint64_t held = 0;
	for (int i = 0; i < 10; i++)
		held += all[i].flow.granted;
	assert_near((double)moved_in(all, 10, S), 1.05e6 + (double)held, 2e4);
}

/* --- random trees ------------------------------------------------------------------------------- */

#define NODES  30
#define LEAVES 60

struct plan {
	int parent; /* < its own index; -1 = a root */
	uint64_t rate;
	uint16_t weight;
	double useful; /* the most that can be used below */
	struct limit *limit;
};

static struct plan plans[NODES];
static int leaf_at[LEAVES];
static double leaf_useful[LEAVES], leaf_share[LEAVES];

/* Shares what a node gets among those below by weight, none more than it can use; max-min. */
static void
pour(int node, double amount)
{
	bool done[NODES + LEAVES] = { false };
	double left = amount, weights;
	bool again_;

	do {
		weights = 0;
		for (int i = 0; i < NODES; i++)
			if (plans[i].parent == node && i != node && !done[i])
				weights += plans[i].weight;
		for (int i = 0; i < LEAVES; i++)
			if (leaf_at[i] == node && !done[NODES + i])
				weights += 1;
		again_ = false;
		double share = left / weights;
		for (int i = 0; i < NODES; i++) {
			if (plans[i].parent != node || done[i] ||
			    plans[i].useful > share * plans[i].weight)
				continue;
			done[i] = again_ = true;
			left -= plans[i].useful;
			pour(i, plans[i].useful);
		}
		for (int i = 0; i < LEAVES; i++) {
			if (leaf_at[i] != node || done[NODES + i] || leaf_useful[i] > share)
				continue;
			done[NODES + i] = again_ = true;
			left -= leaf_useful[i];
			leaf_share[i] = leaf_useful[i];
		}
	} while (again_);
	for (int i = 0; i < NODES; i++)
		if (plans[i].parent == node && !done[i])
			pour(i, left / weights * plans[i].weight);
	for (int i = 0; i < LEAVES; i++)
		if (leaf_at[i] == node && !done[NODES + i])
			leaf_share[i] = left / weights;
}

static void
plan_tree(void)
{
	for (int i = 0; i < NODES; i++) {
		plans[i].parent = i ? (int)world_random(&world, (uint64_t)(i < 6 ? i : i / 2)) : -1;
		plans[i].rate = world_random(&world, 4) ? MB + world_random(&world, 20 * MB) : 0;
		if (!i)
			plans[i].rate = 40 * MB;
		plans[i].weight = (uint16_t)(1 + world_random(&world, 4));
		plans[i].useful = 0;
		uint64_t burst = plans[i].rate / 20 < 16384 ? 16384 : plans[i].rate / 20;
		plans[i].limit =
			world_limit(&world, i ? plans[plans[i].parent].limit : NULL, plans[i].rate,
				    plans[i].rate ? burst : 0, plans[i].weight);
	}
	for (int i = 0; i < LEAVES; i++) {
		leaf_at[i] = (int)world_random(&world, NODES);
		movers[i].bytes_per_s =
			world_random(&world, 3) ? 0 : 50000 + world_random(&world, 2 * MB);
		leaf_useful[i] = movers[i].bytes_per_s ? (double)movers[i].bytes_per_s : 1e18;
		plans[leaf_at[i]].useful += leaf_useful[i];
	}
	for (int i = NODES - 1; i >= 0; i--) {
		if (plans[i].rate)
			plans[i].useful = smaller(plans[i].useful, (double)plans[i].rate);
		if (i)
			plans[plans[i].parent].useful += plans[i].useful;
	}
}

static void
random_trees_share_as_water_does(void **state)
{
	int wrong = 0, flows = 0;
	double errors = 0;
	const double seconds = 20;
	(void)state;

	for (int tree = 0; tree < 60; tree++) {
		uint64_t before[LEAVES];
		world.random = 1 + (uint64_t)tree * UINT64_C(7777777777777);
		plan_tree();
		for (int i = 0; i < LEAVES; i++)
			world_add(&world, &movers[used++], plans[leaf_at[i]].limit->only);
		pour(0, plans[0].useful);
		run_for(S);
		for (int i = 0; i < LEAVES; i++)
			before[i] = movers[i].moved;
		run_for((uint64_t)seconds * S);
		for (int i = 0; i < LEAVES; i++) {
			double wanted = leaf_share[i] * seconds;
			double got = (double)(movers[i].moved - before[i]);
			double error = larger(got - wanted, wanted - got);
			flows++;
			errors += error / wanted;
			if (error > 0.02 * wanted + 4 * 1448)
				wrong++;
		}
		again();
	}
	if (wrong > flows / 100 || errors / flows > 0.005)
		fail_msg("%d of %d flows, mean error %g", wrong, flows, errors / flows);
}

int
main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_world, close_world)
	const struct CMUnitTest tests[] = {
		CASE(each_level_keeps_its_rate),
		CASE(no_window_has_more_than_burst_and_rate),
		CASE(idle_siblings_cost_nothing),
		CASE(a_thousand_children_keep_their_bounds),
		CASE(small_bursts_of_four_milliseconds_keep_the_rate),
		CASE(the_least_burst_keeps_the_rate),
		CASE(equals_get_the_same),
		CASE(a_client_with_a_hundred_gets_what_one_gets),
		CASE(shares_hold_where_all_is_late),
		CASE(weights_come_out),
		CASE(a_small_quantum_costs_no_share),
		CASE(who_asks_for_pieces_gets_the_same),
		CASE(who_uses_little_of_each_grant_gets_half_all_the_same),
		CASE(new_small_flows_gain_nothing_over_the_clients_share),
		CASE(an_old_flow_is_not_silenced_by_newcomers),
		CASE(an_old_flow_is_not_silenced_by_a_retune),
		CASE(a_fresh_request_does_not_starve),
		CASE(a_retune_is_obeyed_within_100_ms),
		CASE(random_trees_share_as_water_does),
	};
	return cmocka_run_group_tests_name("limits_fair", tests, NULL, NULL);
}
