/* The limit tree under random operations: what limits_tree.h says is always true is recomputed from scratch
 * after each of them, and so is what each of them moved. */
#include "limits_bucket.h"
#include "limits_queue.h"
#include "limits_tree.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define MS      UINT64_C(1000000)
#define S       UINT64_C(1000000000)
#define BEGIN   (S * 77777)
#define FLOWS   24
#define LIMITS  8
#define NODES   64
#define WORKERS 2
#define STALE   50000 /* ns by which clocks differ */

#if defined(__SANITIZE_ADDRESS__) || defined(__has_feature)
#define OPERATIONS 150000
#else
#define OPERATIONS 1000000
#endif

static struct limits *limits;
static struct limits_worker workers[WORKERS];
static struct limit *declared[LIMITS];
static struct limit_flow flows[FLOWS];
static uint64_t held_before[FLOWS];
static uint64_t now_ns, random_state;
static unsigned int grants, closed_waiting, passes;

/* What each node had before an operation, and what it must have had added after it. */
static struct shadow {
	struct limit_node *node;
	uint64_t total[2];
	int64_t added[2];
	double level[2]; /* of a leaky bucket fed with all that was granted */
	double worst[2];
	uint64_t fed_ns[2];
} shadows[NODES];
static size_t shadow_count;

static uint64_t
chance(uint64_t below)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * UINT64_C(2685821657736338717) % below;
}

static void
on_signal(struct limits_worker *worker)
{
	(void)worker;
}

/* A clock that another worker may have read a little earlier. */
static uint64_t
clock_ns(void)
{
	return now_ns - chance(STALE);
}

static struct shadow *
shadow_of(const struct limit_node *node)
{
	for (size_t i = 0; i < shadow_count; i++)
		if (shadows[i].node == node)
			return &shadows[i];
	return NULL;
}

/* Calls for each node there is. */
static void
each_node(void (*call)(struct limit_node *))
{
	for (size_t row = 0; row < limits->table.count; row++)
		for (struct limit_node *node = limits->table.rows[row]; node; node = node->chained)
			call(node);
}

/* --- what is always true ------------------------------------------------------------------------ */

static void
check_ready(const struct limit_bucket *bucket)
{
	const struct limit_child *child = &bucket->child;
	bool ready = !bucket->blocked && bucket->ready.count;

	if (child->parent && ready != (child->slot != 0))
		fail_msg("a bucket is %squeued", ready ? "not " : "");
	if (bucket->blocked && !bucket->timer_slot)
		fail_msg("a blocked bucket has no timer");
	if (!child->parent && ready && !bucket->on_todo)
		fail_msg("a root with something ready stands nowhere");
	if (bucket->rate && bucket->tokens > (int64_t)bucket->burst)
		fail_msg("more tokens than the burst");
	uint32_t listed = 0;
	uint64_t weight = 0;
	for (struct limit_link *at = bucket->waiting.next; at != &bucket->waiting; at = at->next) {
		const struct limit_child *waits = LIMITS_OBJECT(at, struct limit_child, link);
		weight += waits->weight;
		listed++;
		assert_ptr_equal(waits->parent, bucket);
	}
	assert_int_equal(listed, bucket->ready.count);
	assert_int_equal(weight, bucket->ready_weight);
}

static uint32_t timers;

static void
check_node(struct limit_node *node)
{
	for (int i = 0; i < 2; i++) {
		check_ready(&node->bucket[i]);
		timers += node->bucket[i].timer_slot != 0;
		if (!node->users)
			assert_false(node->bucket[i].blocked);
		else if (node->bucket[i].timer_slot)
			assert_true(node->bucket[i].blocked);
	}
}

static void
check_all(void)
{
	timers = 0;
	each_node(check_node);
	assert_int_equal(timers, limits->queue.timers.count);
	for (int i = 0; i < FLOWS; i++) {
		const struct limit_flow *flow = &flows[i];
		assert_int_equal(flow->waiting, flow->child.slot != 0);
		if (flow->waiting)
			assert_int_equal(flow->granted, 0);
	}
	if (limits_due_ns(limits) > now_ns)
		assert_ptr_equal(limits->queue.todo.next, &limits->queue.todo);
}

/* --- what each operation adds ------------------------------------------------------------------- */

static void
remember_node(struct limit_node *node)
{
	struct shadow *shadow = shadow_of(node);

	if (!shadow) {
		assert_true(shadow_count < NODES);
		shadow = &shadows[shadow_count++];
		*shadow = (struct shadow){ .node = node };
	}
	for (int i = 0; i < 2; i++) {
		shadow->total[i] = node->bucket[i].total;
		shadow->added[i] = 0;
	}
}

static struct limit_node *there[NODES];
static size_t there_count;

static void
list_node(struct limit_node *node)
{
	there[there_count++] = node;
}

static void
remember(void)
{
	there_count = 0;
	each_node(list_node);
	for (size_t i = 0; i < shadow_count;) {
		size_t j = 0;
		while (j < there_count && there[j] != shadows[i].node)
			j++;
		if (j == there_count)
			shadows[i] = shadows[--shadow_count];
		else
			i++;
	}
	each_node(remember_node);
	for (int i = 0; i < FLOWS; i++)
		held_before[i] = flows[i].granted;
}

/* The flow's path was given, or gave back, so much. */
static void
expect(const struct limit_flow *flow, int64_t bytes)
{
	for (struct limit_bucket *at = flow->child.parent; at && at != flow->cut;
	     at = at->child.parent) {
		struct shadow *shadow = shadow_of(limits_tree_node(at));
		uint8_t side = at->direction;
		if (!shadow)
			continue;
		shadow->added[side] += bytes;
		if (bytes < 0) {
			shadow->level[side] -= (double)-bytes < shadow->level[side]
						       ? (double)-bytes
						       : shadow->level[side];
			continue;
		}
		double leaked = (double)(now_ns - shadow->fed_ns[side]) * (double)at->rate / 1e9;
		shadow->fed_ns[side] = now_ns;
		shadow->level[side] =
			leaked < shadow->level[side] ? shadow->level[side] - leaked : 0;
		shadow->level[side] += (double)bytes;
		if (shadow->level[side] > shadow->worst[side])
			shadow->worst[side] = shadow->level[side];
	}
}

static void
check_node_total(struct limit_node *node)
{
	const struct shadow *shadow = shadow_of(node);

	for (int i = 0; shadow && i < 2; i++)
		if (node->bucket[i].total != shadow->total[i] + (uint64_t)shadow->added[i])
			fail_msg("a total of %" PRIu64 " instead of %" PRIu64,
				 node->bucket[i].total,
				 shadow->total[i] + (uint64_t)shadow->added[i]);
}

/* --- operations --------------------------------------------------------------------------------- */

static void
open_flow(struct limit_flow *flow)
{
	struct limit_who who = { .connection = chance(20), .sni = chance(2) ? "a" : "b" };
	struct limit *limit = declared[chance(LIMITS)];
	enum limit_direction direction = chance(2) ? LIMIT_UP : LIMIT_DOWN;
	struct limit_node *node;

	*flow = (struct limit_flow){ .second = 0 };
	assert_int_equal(limits_resolve(limit, &who, now_ns, &node, NULL), 0);
	assert_int_equal(
		limits_flow_open(flow, &workers[chance(WORKERS)], node, direction, now_ns, NULL),
		0);
	limits_release(node, now_ns);
}

static void
give_back(struct limit_flow *flow, bool close)
{
	if (flow->granted && flow->moves == limits->queue.moves)
		expect(flow, -(int64_t)flow->granted);
	closed_waiting += close && flow->waiting;
	if (close)
		limits_flow_close(flow, now_ns);
	else
		limits_give_back(flow);
}

static void
take(struct limit_flow *flow)
{
	uint64_t want = 1 + chance(chance(2) ? 2000 : 200000);
	uint64_t before = flow->granted;
	uint64_t bytes = limits_take(flow, want, clock_ns());

	assert_true(bytes <= want);
	if (flow->child.parent && bytes && !before) {
		expect(flow, (int64_t)flow->granted);
		assert_true(bytes >= (want < 1448 ? want : 1448));
	}
	if (!bytes)
		return;
	uint64_t used = chance(3) ? bytes : chance(bytes + 1);
	limits_spend(flow, used);
	if (flow->child.parent && flow->pass) {
		assert_int_equal(bytes, want);
		expect(flow, (int64_t)used);
		passes++;
	}
}

static void
run(struct limits_worker *worker)
{
	struct limit_flow *flow;

	limits->work = 1 + (unsigned int)chance(5);
	limits_run(worker, clock_ns());
	for (int i = 0; i < FLOWS; i++)
		if (flows[i].granted > held_before[i]) {
			assert_int_equal(held_before[i], 0);
			grants++;
			expect(&flows[i], (int64_t)flows[i].granted);
		}
	while ((flow = limits_next(worker)))
		if (chance(4))
			limits_spend(flow, flow->granted);
}

static void
cut(struct limit_flow *flow)
{
	struct limit_node *node = limits_tree_node(flow->child.parent);
	struct limit_bucket *above = node->bucket[0].child.parent;

	if (flow->granted && flow->moves == limits->queue.moves)
		expect(flow, -(int64_t)flow->granted);
	limits_flow_cut(flow, above && chance(2) ? limits_tree_node(above) : node);
}

static void
change(void)
{
	static const uint64_t rates[] = { 0, 1000, 20000, 3000000, 500000000 };
	struct limit *limit = declared[chance(LIMITS)];
	struct limit_spec spec;

	limits_spec(limit, &spec);
	switch (chance(4)) {
	case 0: /* only upwards in the list: no circles */
		spec.parent = limit == declared[0] ? NULL : declared[0];
		if (!limits_can_change(limit, &spec))
			limits_spec(limit, &spec);
		break;
	case 1:
		spec.weight = (uint16_t)(1 + chance(5));
		break;
	default:
		for (int i = 0; i < 2; i++) {
			spec.rate[i] = rates[chance(5)];
			spec.burst[i] = chance(2) ? 0 : limits_burst_least(spec.rate[i], 0);
		}
	}
	assert_int_equal(limits_change(limit, &spec, now_ns, NULL), 0);
}

static void
adjust(void)
{
	struct limit_node *node = declared[chance(4)]->only;
	enum limit_direction direction = chance(2) ? LIMIT_UP : LIMIT_DOWN;

	if (chance(2))
		limits_charge(node, direction, chance(100000), now_ns);
	else
		limits_credit(node, direction, chance(100000), now_ns);
}

static void
operate(bool changes)
{
	struct limit_flow *flow = &flows[chance(FLOWS)];
	uint64_t what = chance(100);

	if (!flow->child.parent && what < 70) {
		open_flow(flow);
		remember(); /* it may have made nodes */
	} else if (what < 45) {
		take(flow);
	} else if (what < 52) {
		give_back(flow, false);
	} else if (what < 56) {
		give_back(flow, true);
	} else if (what < 58) {
		if (flow->child.parent)
			cut(flow);
	} else if (what < 62 && changes) {
		change();
	} else if (what < 64 && changes) {
		adjust();
	} else {
		now_ns += chance(100) ? chance(MS) : chance(S / 2);
		if (!chance(20000))
			now_ns += 13 * 86400 * S;
		run(&workers[chance(WORKERS)]);
	}
}

/* --- the tests ---------------------------------------------------------------------------------- */

static void
declare(int i, struct limit *parent, enum limit_per per, uint64_t rate)
{
	struct limit_spec spec = { .name = "limit",
				   .parent = parent,
				   .per = per,
				   .weight = (uint16_t)(1 + i % 3),
				   .rate = { rate, rate * 2 } };
	declared[i] = limits_add(limits, &spec, now_ns, NULL);
	assert_non_null(declared[i]);
}

static int
open_tree(void **state)
{
	static const uint8_t seed[16] = "fifteen letters";
	(void)state;

	limits = limits_open(seed, NULL);
	now_ns = BEGIN;
	random_state = 88172645463325252;
	shadow_count = 0;
	grants = closed_waiting = 0;
	memset(flows, 0, sizeof(flows));
	for (int i = 0; i < WORKERS; i++) {
		workers[i] = (struct limits_worker){ .signal = on_signal };
		limits_worker_open(limits, &workers[i]);
	}
	declare(0, NULL, LIMIT_PER_NONE, 5000000);
	declare(1, declared[0], LIMIT_PER_NONE, 2000000);
	declare(2, declared[0], LIMIT_PER_NONE, 0);
	declare(3, declared[2], LIMIT_PER_NONE, 1000000);
	declare(4, declared[3], LIMIT_PER_SNI, 300000);
	declare(5, declared[4], LIMIT_PER_CONNECTION, 100000);
	declare(6, NULL, LIMIT_PER_CONNECTION, 200000);
	declare(7, declared[1], LIMIT_PER_NONE, 700000);
	return 0;
}

static int
close_tree(void **state)
{
	(void)state;
	for (int i = 0; i < FLOWS; i++)
		limits_flow_close(&flows[i], now_ns);
	for (int i = 0; i < WORKERS; i++)
		limits_worker_close(&workers[i]);
	limits_close(limits);
	return 0;
}

static void
what_must_hold_holds_after_each_operation(void **state)
{
	(void)state;
	for (int i = 0; i < OPERATIONS; i++) {
		remember();
		operate(true);
		check_all();
		limits_queue_settle(&limits->queue);
		each_node(check_node_total);
	}
	if (grants < OPERATIONS / 200)
		fail_msg("%u grants", grants);
	if (passes < OPERATIONS / 200)
		fail_msg("%u passes", passes);
	if (closed_waiting < OPERATIONS / 2000)
		fail_msg("%u closed while waiting", closed_waiting);
}

/* The level of the leaky bucket is the most that was granted beyond rate * window in any window. */
static void
check_worst(struct limit_node *node)
{
	const struct shadow *shadow = shadow_of(node);

	for (int i = 0; shadow && i < 2; i++) {
		const struct limit_bucket *bucket = &node->bucket[i];
		double stale = (double)bucket->rate * STALE / 1e9;
		if (bucket->rate && shadow->worst[i] > (double)bucket->burst + stale + 1)
			fail_msg("%s: %f granted beyond the rate, a burst of %" PRIu64,
				 node->limit->spec.name, shadow->worst[i], bucket->burst);
	}
}

static void
no_window_has_more_than_burst_and_rate(void **state)
{
	(void)state;
	for (int i = 0; i < OPERATIONS; i++) {
		remember();
		operate(false);
		each_node(check_worst);
	}
	/* And not only because little was asked for. */
	double worst = 0;
	for (int i = 0; i < 2; i++)
		if (shadow_of(declared[0]->only)->worst[i] > worst)
			worst = shadow_of(declared[0]->only)->worst[i];
	assert_true(worst > 200000);
}

int
main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_tree, close_tree)
	const struct CMUnitTest tests[] = {
		CASE(what_must_hold_holds_after_each_operation),
		CASE(no_window_has_more_than_burst_and_rate),
	};
	return cmocka_run_group_tests_name("limits_random", tests, NULL, NULL);
}
