/* The limit tree's parts, one by one: arithmetic, heap, keys, nodes and their lifetime, cuts, workers. */
#include "limits_bucket.h"
#include "limits_key.h"
#include "limits_queue.h"
#include "limits_report.h"
#include "limits_tree.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define MS    UINT64_C(1000000)
#define S     UINT64_C(1000000000)
#define MB    UINT64_C(1000000)
#define BEGIN (S * 12345)

static struct limits *limits;
static struct limits_worker worker;
static unsigned int signals;
static uint64_t now_ns;

static void
on_signal(struct limits_worker *signalled)
{
	(void)signalled;
	signals++;
}

static int
open_tree(void **state)
{
	static const uint8_t seed[16] = "fifteen letters";
	(void)state;

	limits = limits_open(seed, NULL);
	worker = (struct limits_worker){ .signal = on_signal };
	limits_worker_open(limits, &worker);
	signals = 0;
	now_ns = BEGIN;
	return 0;
}

static int
close_tree(void **state)
{
	(void)state;
	limits_worker_close(&worker);
	limits_close(limits);
	return 0;
}

static struct limit *
add(const char *name, struct limit *parent, enum limit_per per, uint64_t rate, uint64_t burst)
{
	struct limit_spec spec = { .name = name,
				   .parent = parent,
				   .per = per,
				   .prefix_v4 = 24,
				   .prefix_v6 = 64,
				   .weight = 1,
				   .rate = { rate, rate },
				   .burst = { burst, burst } };
	struct failure why;
	struct limit *limit = limits_add(limits, &spec, now_ns, &why);

	if (!limit)
		fail_msg("%s", why.text);
	return limit;
}

static void
change(struct limit *limit, uint64_t rate, uint64_t burst)
{
	struct limit_spec spec;

	limits_spec(limit, &spec);
	spec.rate[LIMIT_UP] = spec.rate[LIMIT_DOWN] = rate;
	spec.burst[LIMIT_UP] = spec.burst[LIMIT_DOWN] = burst;
	assert_int_equal(limits_change(limit, &spec, now_ns, NULL), 0);
}

static void
open_flow(struct limit_flow *flow, struct limit_node *node)
{
	memset(flow, 0, sizeof(*flow));
	assert_int_equal(limits_flow_open(flow, &worker, node, LIMIT_UP, now_ns, NULL), 0);
}

/* Takes and spends at once. */
static uint64_t
move(struct limit_flow *flow, uint64_t want)
{
	uint64_t bytes = limits_take(flow, want, now_ns);

	if (bytes)
		limits_spend(flow, bytes);
	return bytes;
}

/* All that can be moved now, by one flow. */
static uint64_t
drain(struct limit_flow *flow)
{
	uint64_t sum = 0, bytes;

	while ((bytes = move(flow, 1 << 20)))
		sum += bytes;
	return sum;
}

/* Runs when it is due until somebody is granted something; the time goes there. */
static struct limit_flow *
wait_for_grant(void)
{
	struct limit_flow *flow;

	do {
		assert_true(limits_due_ns(limits) != LIMITS_NEVER);
		if (limits_due_ns(limits) > now_ns)
			now_ns = limits_due_ns(limits);
		limits_run(&worker, now_ns);
	} while (!(flow = limits_next(&worker)));
	return flow;
}

static struct limit_report
report(struct limit_node *node)
{
	struct limit_report out;

	limits_report(node, now_ns, &out);
	return out;
}

/* --- arithmetic --------------------------------------------------------------------------------- */

static struct limit_bucket
bucket_of(uint64_t rate, uint64_t burst, int64_t tokens)
{
	return (struct limit_bucket){
		.rate = rate, .burst = burst, .tokens = tokens, .stamp_ns = BEGIN
	};
}

static void
fractions_are_kept(void **state)
{
	static const uint64_t rates[] = { 1, 999, 1000, 1448, 333333, LIMITS_RATE_MOST };
	(void)state;
	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
		struct limit_bucket bucket = bucket_of(rates[i], LIMITS_BURST_MOST, 0);
		uint64_t at_ns = BEGIN;
		srand(1);
		while (at_ns < BEGIN + S) {
			at_ns += 1 + (uint64_t)rand() % 99991;
			limits_bucket_refill(&bucket, at_ns < BEGIN + S ? at_ns : BEGIN + S);
		}
		assert_int_equal(bucket.tokens, rates[i]);
		assert_int_equal(bucket.fraction, 0);
	}
}

static void
time_may_jump(void **state)
{
	struct limit_bucket bucket = bucket_of(LIMITS_RATE_MOST, 1000000, 5);
	(void)state;

	limits_bucket_refill(&bucket, BEGIN - 50000); /* another worker's clock */
	assert_int_equal(bucket.tokens, 5);
	assert_int_equal(bucket.stamp_ns, BEGIN);
	limits_bucket_refill(&bucket, UINT64_MAX); /* 584 years */
	assert_int_equal(bucket.tokens, 1000000);

	bucket = bucket_of(1, LIMITS_BURST_MOST, 0);
	limits_bucket_refill(&bucket, BEGIN + 13 * 86400 * S);
	assert_int_equal(bucket.tokens, 13 * 86400);
	bucket = bucket_of(LIMITS_RATE_MOST, LIMITS_BURST_MOST, -(INT64_C(1) << 61));
	limits_bucket_refill(&bucket, BEGIN + 5 * S);
	assert_int_equal(bucket.tokens, -(INT64_C(1) << 61) + 5 * (int64_t)LIMITS_RATE_MOST);
}

static void
when_is_the_first_moment(void **state)
{
	(void)state;
	srand(2);
	for (int i = 0; i < 100000; i++) {
		uint64_t rate = 1 + (uint64_t)rand() * (uint64_t)rand() % LIMITS_RATE_MOST;
		struct limit_bucket bucket = bucket_of(rate, LIMITS_BURST_MOST, rand() % 5000);
		bucket.fraction = (uint32_t)rand() % 1000000000;
		int64_t level = bucket.tokens + 1 + rand() % 100000;
		struct limit_bucket before = bucket;
		uint64_t when_ns = limits_bucket_when(&bucket, level);
		limits_bucket_refill(&bucket, when_ns);
		assert_true(bucket.tokens >= level);
		/* The fraction is left out of account only where a whole number of seconds is missing. */
		if ((uint64_t)(level - before.tokens) % rate == 0)
			continue;
		limits_bucket_refill(&before, when_ns - 1);
		assert_true(before.tokens < level);
	}
}

static void
heap_keeps_order_over_the_wrap(void **state)
{
	enum { OBJECTS = 500 };
	static uint32_t slots[OBJECTS];
	static uint64_t keys[OBJECTS];
	struct limits_heap heap = { 0 };
	(void)state;

	srand(3);
	assert_int_equal(limits_heap_reserve(&heap, OBJECTS), 0);
	for (int i = 0; i < 50000; i++) {
		int at = rand() % OBJECTS;
		uint64_t key = (uint64_t)rand() - (uint64_t)RAND_MAX / 2;
		if (!slots[at]) {
			limits_heap_push(&heap, key, &slots[at]);
			keys[at] = key;
		} else if (rand() % 2) {
			limits_heap_rekey(&heap, &slots[at], key);
			keys[at] = key;
		} else {
			limits_heap_remove(&heap, &slots[at]);
		}
	}
	int64_t last = INT64_MIN;
	while (heap.count) {
		size_t at = (size_t)(heap.at[0].slot - slots);
		assert_int_equal(heap.at[0].key, keys[at]);
		assert_true((int64_t)keys[at] >= last);
		last = (int64_t)keys[at];
		limits_heap_remove(&heap, &slots[at]);
	}
	limits_heap_release(&heap);
}

/* --- taking ------------------------------------------------------------------------------------- */

static void
without_limit_all_may_move(void **state)
{
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, NULL);
	assert_int_equal(limits_take(&flow, UINT64_MAX, now_ns), UINT64_MAX);
	limits_spend(&flow, UINT64_MAX);
	limits_give_back(&flow);
	limits_flow_close(&flow, now_ns);
	limits_flow_close(&flow, now_ns);
}

static void
a_bucket_begins_with_its_burst_and_no_more(void **state)
{
	struct limit_flow flow;
	struct limit *limit = add("l", NULL, LIMIT_PER_NONE, MB, 100000);
	(void)state;

	open_flow(&flow, limit->only);
	uint64_t first = drain(&flow);
	assert_true(first <= 100000 && first > 100000 - 1448);
	assert_true(report(limit->only).direction[LIMIT_UP].is_short);
	assert_int_equal(report(limit->only).direction[LIMIT_DOWN].level, 100000);
	/* In the next 100 ms not a byte more than its rate. */
	uint64_t end_ns = now_ns + 100 * MS, sum = first;
	for (;;) {
		assert_ptr_equal(wait_for_grant(), &flow);
		if (now_ns > end_ns)
			break;
		sum += drain(&flow);
		assert_true(sum <= 100000 + (now_ns - BEGIN) / 1000);
	}
	assert_true(sum > 100000 + 90000);
	limits_flow_close(&flow, now_ns);
	assert_int_equal(report(limit->only).direction[LIMIT_UP].total, sum);
}

static void
a_path_gives_the_least_and_charges_all(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 10 * MB, 900000);
	struct limit *low = add("low", top, LIMIT_PER_NONE, MB, 50000);
	struct limit_flow flow, aside;
	(void)state;

	open_flow(&flow, low->only);
	open_flow(&aside, top->only);
	uint64_t sum = drain(&flow);
	assert_true(sum <= 50000 && sum > 50000 - 1448);
	assert_int_equal(report(top->only).direction[LIMIT_UP].level, 900000 - sum);
	assert_int_equal(report(low->only).direction[LIMIT_UP].passing, 50000 - sum);
	assert_false(report(top->only).direction[LIMIT_UP].is_short);
	/* Whoever is not below the short one goes on. */
	assert_int_equal(move(&aside, 1000), 1000);
	limits_flow_close(&flow, now_ns);
	limits_flow_close(&aside, now_ns);
}

static void
nobody_overtakes_who_waits(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, MB, 10000);
	struct limit_flow first, second;
	(void)state;

	open_flow(&first, top->only);
	open_flow(&second, top->only);
	drain(&first);
	now_ns += 2 * MS; /* tokens are there, but nobody ran */
	assert_int_equal(limits_take(&second, 1000, now_ns), 0);
	limits_run(&worker, now_ns + 100 * MS);
	assert_non_null(limits_next(&worker));
	assert_non_null(limits_next(&worker));
	limits_flow_close(&first, now_ns);
	limits_flow_close(&second, now_ns);
}

/* Two trees with more to do than there is work in one lock hold take turns. */
static void
a_busy_root_holds_up_no_other(void **state)
{
	struct limit *busy = add("busy", NULL, LIMIT_PER_NONE, 1000 * MB, 100 * MB);
	struct limit *other = add("other", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit_flow flows[3], waiter, *flow;
	bool is_served = false;
	(void)state;

	limits->work = 1;
	open_flow(&waiter, other->only);
	drain(&waiter);
	limits_charge(busy->only, LIMIT_UP, 110 * MB, now_ns);
	for (int i = 0; i < 3; i++) {
		open_flow(&flows[i], busy->only);
		assert_int_equal(limits_take(&flows[i], 2000, now_ns), 0);
	}
	now_ns += 60 * S; /* the busy one was due first */
	for (int i = 0; i < 10; i++) {
		limits_run(&worker, now_ns);
		while ((flow = limits_next(&worker))) {
			is_served |= flow == &waiter;
			/* Those of the busy one want more at once. */
			move(flow, 2000);
			if (flow != &waiter)
				limits_take(flow, 2000, now_ns);
		}
	}
	assert_true(is_served);
	for (int i = 0; i < 3; i++)
		limits_flow_close(&flows[i], now_ns);
	limits_flow_close(&waiter, now_ns);
}

static void
what_is_given_back_wakes_who_waits_for_it(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit_flow holder, waiter;
	(void)state;

	open_flow(&holder, top->only);
	open_flow(&waiter, top->only);
	assert_int_equal(limits_take(&holder, 1448, now_ns), 1448);
	limits_charge(top->only, LIMIT_UP, 20000 - 1448, now_ns);
	assert_int_equal(limits_take(&waiter, 1448, now_ns), 0);
	uint64_t due_ns = limits_due_ns(limits);
	assert_true(due_ns > now_ns);
	limits_give_back(&holder);
	assert_true(limits_due_ns(limits) <= now_ns);
	limits_run(&worker, now_ns);
	assert_ptr_equal(limits_next(&worker), &waiter);
	assert_true(waiter.granted == 1448);
	limits_flow_close(&holder, now_ns);
	limits_flow_close(&waiter, now_ns);
}

static void
who_stops_waiting_holds_up_nobody(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit *low = add("low", top, LIMIT_PER_NONE, 0, 0);
	struct limit_flow big, small;
	(void)state;

	open_flow(&big, low->only);
	open_flow(&small, top->only);
	drain(&big);
	assert_int_equal(limits_take(&small, 100, now_ns), 0);
	assert_int_equal(report(top->only).direction[LIMIT_UP].waiting, 2);
	limits_give_back(&big);
	assert_int_equal(report(low->only).direction[LIMIT_UP].waiting, 0);
	assert_int_equal(report(top->only).direction[LIMIT_UP].waiting, 1);
	assert_ptr_equal(wait_for_grant(), &small);
	assert_int_equal(limits_take(&small, 100, now_ns), 100);
	/* Granted to, but gone before it looked: its tokens come back. */
	drain(&small);
	now_ns += 60 * S;
	limits_run(&worker, now_ns);
	assert_int_equal(report(top->only).direction[LIMIT_UP].level, 20000 - small.granted);
	limits_flow_close(&small, now_ns);
	assert_int_equal(report(top->only).direction[LIMIT_UP].level, 20000);
	assert_null(limits_next(&worker));
	limits_flow_close(&big, now_ns);
}

static void
a_cut_path_is_charged_once(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, MB, 50000);
	struct limit *group = add("group", top, LIMIT_PER_NONE, MB, 50000);
	struct limit *near = add("near", group, LIMIT_PER_NONE, MB, 50000);
	struct limit *far = add("far", group, LIMIT_PER_NONE, MB, 50000);
	struct limit *other = add("other", top, LIMIT_PER_NONE, MB, 50000);
	struct limit_flow first, second;
	(void)state;

	open_flow(&first, near->only);
	open_flow(&second, far->only);
	limits_flow_cut(&second, other->only); /* top is charged, group is not */
	assert_int_equal(move(&second, 1000), 1000);
	assert_int_equal(report(group->only).direction[LIMIT_UP].total, 1000);
	assert_int_equal(report(top->only).direction[LIMIT_UP].total, 0);
	limits_flow_cut(&second, near->only);
	limits_flow_cut(&second, other->only); /* the nearer cut stays */
	assert_int_equal(move(&first, 1000), 1000);
	assert_int_equal(move(&second, 1000), 1000);
	assert_int_equal(report(far->only).direction[LIMIT_UP].total, 2000);
	assert_int_equal(report(group->only).direction[LIMIT_UP].total, 2000);
	assert_int_equal(report(top->only).direction[LIMIT_UP].total, 1000);
	/* All of it is charged already: nothing to wait for. */
	drain(&first);
	limits_flow_move(&second, near->only, LIMIT_UP, now_ns, NULL);
	limits_flow_cut(&second, near->only);
	assert_int_equal(move(&second, 1000), 1000);
	limits_flow_close(&first, now_ns);
	limits_flow_close(&second, now_ns);
}

static void
a_moved_flow_is_charged_at_its_new_place(void **state)
{
	struct limit *a = add("a", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit *b = add("b", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, a->only);
	drain(&flow);
	assert_int_equal(limits_flow_move(&flow, b->only, LIMIT_DOWN, now_ns, NULL), 0);
	assert_int_equal(report(a->only).direction[LIMIT_UP].waiting, 0);
	assert_int_equal(report(a->only).direction[LIMIT_UP].members, 0);
	assert_int_equal(report(b->only).direction[LIMIT_DOWN].members, 1);
	assert_true(drain(&flow) > 18000);
	assert_int_equal(report(b->only).direction[LIMIT_DOWN].waiting, 1);
	/* Without a limit it waits for nothing. */
	assert_int_equal(limits_flow_move(&flow, NULL, LIMIT_UP, now_ns, NULL), 0);
	assert_int_equal(limits_take(&flow, 1 << 30, now_ns), 1 << 30);
	limits_flow_close(&flow, now_ns);
}

/* --- changes ------------------------------------------------------------------------------------ */

/* It is seen from outside: with the lock held by somebody else, a take would not return. */
static void
groups_take_no_lock(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 0, 0);
	struct limit *source = add("source", top, LIMIT_PER_NONE, 0, 0);
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, source->only);
	assert_int_equal(move(&flow, 1000), 1000);
	pthread_mutex_lock(&limits->lock);
	assert_int_equal(move(&flow, UINT64_C(1) << 40), UINT64_C(1) << 40);
	assert_int_equal(limits_take(&flow, 500, now_ns), 500);
	limits_give_back(&flow);
	pthread_mutex_unlock(&limits->lock);
	assert_int_equal(report(top->only).direction[LIMIT_UP].total, 1000 + (UINT64_C(1) << 40));
	assert_int_equal(report(source->only).direction[LIMIT_UP].total,
			 1000 + (UINT64_C(1) << 40));
	limits_reset_total(top->only, LIMIT_UP);

	/* It moves on before it asks again: counted where it was then. */
	assert_int_equal(limits_take(&flow, 7, now_ns), 7);
	change(top, 100000, 0);
	limits_spend(&flow, 7);
	assert_true(drain(&flow) <= 8192);
	assert_int_equal(report(source->only).direction[LIMIT_UP].total,
			 1007 + (UINT64_C(1) << 40) + report(top->only).direction[LIMIT_UP].total -
				 7);
	change(top, 0, 0);
	limits_give_back(&flow);
	assert_int_equal(move(&flow, 1 << 30), 1 << 30);
	now_ns += S;
	assert_int_equal(move(&flow, 1), 1);
	now_ns += S;
	assert_int_equal(report(top->only).direction[LIMIT_UP].active, 1);
	limits_flow_close(&flow, now_ns);
	assert_true(report(top->only).direction[LIMIT_UP].total > 1 << 30);
}

static void
tokens_and_totals_survive_a_change(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, MB, 100000);
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, top->only);
	assert_int_equal(move(&flow, 10000), 10000);
	change(top, MB, 50000);
	assert_int_equal(report(top->only).direction[LIMIT_UP].level, 50000);
	change(top, MB, 200000);
	assert_int_equal(report(top->only).direction[LIMIT_UP].level, 50000);
	assert_int_equal(report(top->only).direction[LIMIT_UP].total, 10000);
	change(top, 0, 0);
	assert_true(move(&flow, 1 << 30) > 1 << 20);
	change(top, MB, 30000);
	assert_int_equal(report(top->only).direction[LIMIT_UP].level, 30000);
	limits_flow_close(&flow, now_ns);
}

static void
a_change_wakes_who_waits(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, top->only);
	drain(&flow);
	limits_run(&worker, now_ns);
	assert_true(worker.arm_ns > now_ns);
	change(top, 100 * MB, 5 * MB);
	assert_int_equal(signals, 1);
	assert_true(limits_must_run(limits, now_ns));
	assert_ptr_equal(wait_for_grant(), &flow);
	assert_true(now_ns < BEGIN + 5 * MS);
	change(top, 1000, 20000);
	drain(&flow);
	limits_run(&worker, now_ns);
	change(top, 0, 0);
	assert_ptr_equal(wait_for_grant(), &flow);
	assert_true(now_ns < BEGIN + 5 * MS);
	limits_flow_close(&flow, now_ns);
}

static void
values_out_of_range_change_nothing(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, MB, 100000);
	struct limit_spec spec, bad;
	struct failure why;
	(void)state;

	limits_spec(top, &spec);
	bad = spec;
	bad.burst[LIMIT_DOWN] = 3999;
	assert_int_equal(limits_change(top, &bad, now_ns, &why), -1);
	assert_non_null(strstr(why.text, "4kB"));
	bad = spec;
	bad.rate[LIMIT_UP] = LIMITS_RATE_MOST + 1;
	assert_int_equal(limits_check(&bad, &why), -1);
	bad = spec;
	bad.weight = 0;
	assert_int_equal(limits_check(&bad, &why), -1);
	bad = spec;
	bad.quantum = 100;
	assert_int_equal(limits_check(&bad, &why), -1);
	bad.quantum = 200000; /* more than the burst */
	assert_int_equal(limits_check(&bad, &why), -1);
	assert_null(limits_add(limits, &bad, now_ns, &why));
	assert_int_equal(report(top->only).direction[LIMIT_DOWN].burst, 100000);
	assert_int_equal(limits_burst_default(MB, 0), 50000);
	assert_int_equal(limits_burst_default(1000, 0), 8192);
	assert_int_equal(limits_burst_default(1000, 65536), 65536);
}

static void
charge_and_credit_by_hand(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 10000, 20000);
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, top->only);
	limits_credit(top->only, LIMIT_UP, 1 << 30, now_ns);
	assert_int_equal(report(top->only).direction[LIMIT_UP].level, 20000);
	limits_charge(top->only, LIMIT_UP, 30000, now_ns);
	assert_int_equal(report(top->only).direction[LIMIT_UP].level, -10000);
	assert_int_equal(report(top->only).direction[LIMIT_UP].passing, 0);
	assert_int_equal(limits_take(&flow, 1448, now_ns), 0);
	assert_true(limits_due_ns(limits) > now_ns + S);
	limits_credit(top->only, LIMIT_UP, 25000, now_ns);
	assert_ptr_equal(wait_for_grant(), &flow);
	assert_true(now_ns == BEGIN);
	limits_spend(&flow, 1448);
	assert_int_equal(report(top->only).direction[LIMIT_UP].total, 1448);
	limits_reset_total(top->only, LIMIT_UP);
	assert_int_equal(report(top->only).direction[LIMIT_UP].total, 0);
	limits_flow_close(&flow, now_ns);
}

static void
a_limit_moves_with_all_below_it(void **state)
{
	struct limit *a = add("a", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit *b = add("b", NULL, LIMIT_PER_NONE, 100 * MB, 5 * MB);
	struct limit *mid = add("mid", a, LIMIT_PER_NONE, 0, 0);
	struct limit *low = add("low", mid, LIMIT_PER_NONE, 0, 0);
	struct limit_spec spec;
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, low->only);
	drain(&flow);
	assert_int_equal(report(a->only).direction[LIMIT_UP].waiting, 1);
	limits_spec(mid, &spec);
	spec.parent = b;
	assert_true(limits_can_change(mid, &spec));
	assert_int_equal(limits_change(mid, &spec, now_ns, NULL), 0);
	assert_int_equal(report(a->only).direction[LIMIT_UP].waiting, 0);
	assert_int_equal(report(a->only).direction[LIMIT_UP].members, 0);
	assert_int_equal(report(b->only).direction[LIMIT_UP].waiting, 1);
	assert_ptr_equal(wait_for_grant(), &flow);
	assert_true(now_ns == BEGIN);
	limits_spend(&flow, flow.granted);
	/* And to be a root of its own. */
	spec.parent = NULL;
	assert_int_equal(limits_change(mid, &spec, now_ns, NULL), 0);
	assert_true(move(&flow, 1 << 20) > 1 << 16);
	assert_int_equal(report(b->only).direction[LIMIT_UP].members, 0);
	limits_flow_close(&flow, now_ns);
}

static void
what_depends_on_keys_does_not_move(void **state)
{
	struct limit *a = add("a", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit *client = add("client", a, LIMIT_PER_SOURCE, 1000, 20000);
	struct limit *below = add("below", client, LIMIT_PER_NONE, 1000, 20000);
	struct limit_spec spec;
	(void)state;

	limits_spec(below, &spec);
	spec.parent = a;
	assert_false(limits_can_change(below, &spec));
	assert_int_equal(limits_change(below, &spec, now_ns, NULL), -1);
	limits_spec(client, &spec);
	spec.prefix_v4 = 32;
	assert_false(limits_can_change(client, &spec));
	limits_spec(a, &spec);
	spec.parent = client;
	assert_false(limits_can_change(a, &spec));
}

static void
a_removed_limit_lives_as_long_as_its_users(void **state)
{
	struct limit *a = add("a", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit *b = add("b", a, LIMIT_PER_NONE, 1000, 20000);
	struct limit_who who = { .connection = 1 };
	struct limit_node *node;
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, b->only);
	limits_hold(b);
	limits_remove(a, now_ns);
	limits_remove(b, now_ns);
	assert_null(limits_find(limits, "a"));
	assert_true(drain(&flow) > 18000);
	assert_int_equal(limits_resolve(b, &who, now_ns, &node, NULL), 0);
	limits_release(node, now_ns);
	limits_drop(b);
	limits_flow_close(&flow, now_ns);
	assert_int_equal(limits->table.nodes, 0);
}

/* --- keys and nodes ----------------------------------------------------------------------------- */

static struct socket_address
address(const char *text)
{
	struct socket_address out = { .family = AF_INET };

	if (strchr(text, ':')) {
		out.family = AF_INET6;
		assert_int_equal(inet_pton(AF_INET6, text, out.ip), 1);
	} else {
		assert_int_equal(inet_pton(AF_INET, text, out.ip), 1);
	}
	return out;
}

static const char *
key_of(struct limit *limit, const struct limit_who *who)
{
	static struct limit_report out;
	struct limit_node *node;

	assert_int_equal(limits_resolve(limit, who, now_ns, &node, NULL), 0);
	if (!node)
		return NULL;
	out = report(node);
	limits_release(node, now_ns);
	return strcmp(out.name, limits_name(limit)) == 0 ? out.key : out.name;
}

static void
keys_are_what_they_say(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 0, 0);
	struct limit *source = add("source", top, LIMIT_PER_SOURCE, 0, 0);
	struct limit *uid = add("uid", NULL, LIMIT_PER_UID, 0, 0);
	struct limit *sni = add("sni", source, LIMIT_PER_SNI, 0, 0);
	struct limit *each = add("each", sni, LIMIT_PER_CONNECTION, 0, 0);
	struct limit *certificate = add("certificate", NULL, LIMIT_PER_CERTIFICATE, 0, 0);
	struct socket_address v4 = address("10.1.2.3"), v6 = address("2001:db8:1:2:3::4");
	struct socket_address local = { .family = AF_UNIX, .uid = 1000 };
	struct limit_who who = { .connection = 17, .source = &v4 };
	char longest[400];
	(void)state;

	assert_string_equal(key_of(source, &who), "10.1.2.0/24");
	assert_string_equal(key_of(uid, &who), "none");
	assert_string_equal(key_of(top, &who), "");
	who.source = &v6;
	assert_string_equal(key_of(source, &who), "2001:db8:1:2::/64");
	who.source = &local;
	assert_string_equal(key_of(source, &who), "uid:1000");
	assert_string_equal(key_of(uid, &who), "uid:1000");
	/* Not known yet: at the nearest above that needs it not. */
	assert_string_equal(key_of(sni, &who), "source");
	assert_string_equal(key_of(each, &who), "source");
	assert_null(key_of(certificate, &who));
	who.sni = "WWW.Example.org";
	assert_string_equal(key_of(sni, &who), "www.example.org");
	assert_string_equal(key_of(each, &who), "#17");
	who.sni = "";
	assert_string_equal(key_of(sni, &who), "none");
	who.sni = "a\nb";
	assert_string_equal(key_of(sni, &who), "a?b");
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	who.sni = longest;
	assert_string_equal(key_of(sni, &who), "none");
	for (size_t length = 90; length <= 250; length += 40) {
		longest[length] = '\0';
		who.sni = longest;
		assert_string_equal(key_of(sni, &who), longest);
		longest[length] = 'x';
	}
	who.certificate = "sha256:ab";
	assert_string_equal(key_of(certificate, &who), "sha256:ab");
	who.source = NULL;
	assert_string_equal(key_of(source, &who), "top");
}

static struct limit_node *
node_for(struct limit *limit, uint32_t host)
{
	struct socket_address source = { .family = AF_INET };
	struct limit_who who = { .connection = host, .source = &source, .sni = "name" };
	struct limit_node *node;

	source.ip[0] = (uint8_t)(host >> 16);
	source.ip[1] = (uint8_t)(host >> 8);
	source.ip[2] = (uint8_t)host;
	return limits_resolve(limit, &who, now_ns, &node, NULL) < 0 ? NULL : node;
}

/* More than there is place for in the small blocks, one after the other and all together. */
static void
many_nodes_come_and_go(void **state)
{
	static struct limit_node *nodes[5000];
	const uint32_t count = sizeof(nodes) / sizeof(nodes[0]);
	struct limit *source = add("source", NULL, LIMIT_PER_SOURCE, MB, 0);
	(void)state;

	for (uint32_t round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < count; i++)
			assert_non_null(nodes[i] = node_for(source, i));
		assert_int_equal(limits->table.nodes, count);
		for (uint32_t i = 0; i < count; i++) {
			uint32_t at = (i * 2741 + round) % count;
			struct limit_node *same = node_for(source, at);
			assert_ptr_equal(same, nodes[at]);
			limits_release(same, now_ns);
			limits_release(nodes[at], now_ns);
		}
		assert_int_equal(limits->table.nodes, 0);
	}
}

static void
keys_compose(void **state)
{
	struct limit *source = add("source", NULL, LIMIT_PER_SOURCE, MB, 0);
	struct limit *sni = add("sni", source, LIMIT_PER_SNI, MB, 0);
	struct limit_node *one = node_for(sni, 1), *same = node_for(sni, 1);
	struct limit_node *other = node_for(sni, 2);
	(void)state;

	assert_ptr_equal(one, same);
	assert_ptr_not_equal(one, other);
	assert_true(report(one).parent != report(other).parent);
	assert_int_equal(report(one).users, 2);
	limits_release(one, now_ns);
	limits_release(same, now_ns);
	limits_release(other, now_ns);
	assert_int_equal(limits->table.nodes, 0);
}

static void
reconnecting_does_not_refill(void **state)
{
	struct limit *client = add("client", NULL, LIMIT_PER_SOURCE, 10000, 20000);
	struct limit_flow flow;
	(void)state;

	for (int i = 0; i < 5; i++) {
		struct limit_node *node = node_for(client, 1);
		open_flow(&flow, node);
		limits_release(node, now_ns);
		uint64_t sum = drain(&flow);
		assert_true(i ? sum < 1448 : sum > 18000);
		limits_flow_close(&flow, now_ns);
		assert_int_equal(limits->table.nodes, 1);
	}
	/* It goes when it is full. */
	assert_true(limits_due_ns(limits) > now_ns + S);
	now_ns += S;
	limits_run(&worker, now_ns);
	assert_int_equal(limits->table.nodes, 1);
	now_ns += S;
	limits_run(&worker, now_ns);
	assert_int_equal(limits->table.nodes, 0);
}

static void
a_node_charged_while_idle_stays(void **state)
{
	struct limit *client = add("client", NULL, LIMIT_PER_SOURCE, 10000, 20000);
	struct limit_node *node = node_for(client, 1);
	(void)state;

	limits_charge(node, LIMIT_DOWN, 10000, now_ns);
	limits_release(node, now_ns);
	limits_charge(node, LIMIT_DOWN, 10000, now_ns); /* by somebody who still knows it */
	now_ns += S;
	limits_run(&worker, now_ns);
	assert_int_equal(limits->table.nodes, 1);
	now_ns += S;
	limits_run(&worker, now_ns);
	assert_int_equal(limits->table.nodes, 0);
}

static void
a_connections_own_node_goes_with_it(void **state)
{
	struct limit *each = add("each", NULL, LIMIT_PER_CONNECTION, 10000, 20000);
	struct limit *below = add("below", each, LIMIT_PER_NONE, 10000, 20000);
	struct limit_node *node = node_for(below, 1);
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, node);
	limits_release(node, now_ns);
	drain(&flow);
	assert_int_equal(limits->table.nodes, 2);
	limits_flow_close(&flow, now_ns);
	assert_int_equal(limits->table.nodes, 0);
}

static void
at_the_cap_the_oldest_idle_one_goes(void **state)
{
	struct limit *client = add("client", NULL, LIMIT_PER_SOURCE, 10000, 20000);
	struct limit *below = add("below", client, LIMIT_PER_SNI, 10000, 20000);
	struct limit_node *nodes[4];
	struct limit_spec spec;
	(void)state;

	limits_spec(client, &spec);
	spec.nodes_most = 3;
	assert_int_equal(limits_change(client, &spec, now_ns, NULL), 0);
	for (uint32_t i = 0; i < 3; i++) {
		nodes[i] = node_for(client, i);
		limits_charge(nodes[i], LIMIT_UP, 1000 + i, now_ns);
	}
	assert_null(node_for(client, 3));
	limits_release(nodes[1], now_ns);
	limits_release(nodes[0], now_ns);
	nodes[3] = node_for(client, 3); /* 1 went */
	assert_non_null(nodes[3]);
	nodes[0] = node_for(client, 0);
	assert_int_equal(report(nodes[0]).direction[LIMIT_UP].level, 19000);
	assert_null(node_for(client, 1));
	limits_release(nodes[0], now_ns);
	/* One that is kept only by an idle node below it. */
	nodes[0] = node_for(below, 0);
	limits_charge(nodes[0], LIMIT_UP, 1000, now_ns);
	limits_release(nodes[0], now_ns);
	nodes[1] = node_for(client, 1);
	assert_non_null(nodes[1]);
	for (int i = 1; i < 4; i++)
		limits_release(nodes[i], now_ns);
}

static void
a_successor_starts_empty(void **state)
{
	struct limit_spec spec = { .name = "next",
				   .per = LIMIT_PER_SOURCE,
				   .weight = 1,
				   .rate = { 10000, 10000 },
				   .burst = { 20000, 20000 },
				   .starts_empty = true };
	struct limit *next = limits_add(limits, &spec, now_ns, NULL);
	struct limit_node *node = node_for(next, 1);
	(void)state;

	assert_int_equal(report(node).direction[LIMIT_UP].level, 0);
	limits_release(node, now_ns);
	now_ns += S;
	node = node_for(next, 2);
	assert_int_equal(report(node).direction[LIMIT_UP].level, 10000);
	limits_release(node, now_ns);
	now_ns += 100 * S;
	node = node_for(next, 3);
	assert_int_equal(report(node).direction[LIMIT_UP].level, 20000);
	limits_release(node, now_ns);
}

static void
many_nodes_are_found_listed_and_changed(void **state)
{
	enum { MANY = 5000 };
	static struct limit_node *nodes[MANY];
	static struct limit_report page[256];
	static uint8_t listed[MANY];
	struct limit *client = add("client", NULL, LIMIT_PER_SOURCE, 10000, 20000);
	size_t cursor = 0, count;
	(void)state;

	for (uint32_t i = 0; i < MANY; i++) {
		nodes[i] = node_for(client, i);
		limits_charge(nodes[i], LIMIT_UP, i, now_ns);
	}
	for (uint32_t i = 0; i < MANY; i++) {
		assert_ptr_equal(node_for(client, i), nodes[i]);
		limits_release(nodes[i], now_ns);
	}
	for (uint32_t i = 0; i < MANY; i += 2) {
		limits_release(nodes[i], now_ns);
	}
	while ((count = limits_list(limits, &cursor, now_ns, page, 256)))
		for (size_t i = 0; i < count; i++)
			listed[20000 - page[i].direction[LIMIT_UP].level]++;
	for (uint32_t i = 1; i < MANY; i++)
		assert_int_equal(listed[i], 1);
	change(client, 20000, 10000);
	for (uint32_t i = 0; i < MANY; i++) {
		if (i % 2 == 0)
			nodes[i] = node_for(client, i);
		assert_int_equal(report(nodes[i]).direction[LIMIT_UP].rate, 20000);
		assert_int_equal(report(nodes[i]).direction[LIMIT_DOWN].burst, 10000);
	}
	for (uint32_t i = 0; i < MANY; i++)
		limits_release(nodes[i], now_ns);
	limits_remove(client, now_ns);
	assert_int_equal(limits->table.nodes, 0);
}

/* Whether one after the other in each top has the total that it ought to. */
static void
assert_top(const struct limit_top *top, uint64_t first, uint64_t step)
{
	assert_int_equal(top->count, LIMITS_TOP_MOST);
	for (size_t i = 0; i < top->count; i++) {
		const struct limit_report_direction *told = top->nodes[i].report.direction;
		assert_int_equal(told[LIMIT_UP].total + told[LIMIT_DOWN].total, first - i * step);
	}
}

static void
only_what_has_so_much_is_sifted_out(void **state)
{
	enum { MANY = 3000 };
	static struct limit_node *nodes[MANY];
	static struct limit_report page[256];
	static uint8_t seen[MANY];
	struct limit *client = add("client", NULL, LIMIT_PER_SOURCE, MB, 0);
	size_t cursor = 0, count, calls = 0;
	bool more = true;
	(void)state;

	for (uint32_t i = 0; i < MANY; i++) {
		nodes[i] = node_for(client, i * 256);
		nodes[i]->bucket[LIMIT_UP].total = i / 2;
		nodes[i]->bucket[LIMIT_DOWN].total = i - i / 2;
	}
	while (more) {
		calls++;
		more = limits_sift(limits, &cursor, now_ns, LIMIT_BY_TOTAL, 2000, page, 256,
				   &count);
		for (size_t i = 0; i < count; i++)
			seen[page[i].direction[LIMIT_UP].total +
			     page[i].direction[LIMIT_DOWN].total]++;
	}
	assert_true(calls > MANY / 256); /* one after the other, each in a short lock */
	for (uint32_t i = 0; i < MANY; i++)
		assert_int_equal(seen[i], i >= 2000);
	cursor = 0;
	more = limits_sift(limits, &cursor, now_ns, LIMIT_BY_WAITING, 1, page, 256, &count);
	assert_true(more);
	assert_int_equal(count, 0);
	for (uint32_t i = 0; i < MANY; i++)
		limits_release(nodes[i], now_ns);
}

/* Also while rows are split: nodes that stand in them are seen twice, and told once. */
static void
the_busiest_of_each_limit_are_told(void **state)
{
	enum { MANY = 3000, LATER = 6000 };
	static struct limit_node *nodes[2][LATER];
	static struct limit_top tops[2];
	struct limit *group = add("group", NULL, LIMIT_PER_SNI, 0, 0);
	struct limit *limit[2] = { add("a", group, LIMIT_PER_SOURCE, MB, 0),
				   add("b", NULL, LIMIT_PER_SOURCE, MB, 0) };
	struct limit_top *order[2] = { &tops[limit[0] > limit[1]], &tops[limit[0] < limit[1]] };
	size_t cursor = 0, calls = 0;
	(void)state;

	for (int i = 0; i < 2; i++)
		tops[i] = (struct limit_top){ .limit = limit[i] };
	for (uint32_t i = 0; i < MANY; i++) {
		nodes[0][i] = node_for(limit[0], i * 256);
		nodes[0][i]->bucket[LIMIT_UP].total = i * 7 % MANY;
		nodes[1][i] = node_for(limit[1], i * 256);
		nodes[1][i]->bucket[LIMIT_UP].total = i;
		nodes[1][i]->bucket[LIMIT_DOWN].total = i;
	}
	uint32_t count = MANY;
	while (limits_top(limits, &cursor, now_ns, order, 2)) {
		calls++;
		for (int i = 0; i < 300 && count < LATER; i++, count++)
			for (int j = 0; j < 2; j++)
				nodes[j][count] = node_for(limit[j], count * 256);
	}
	assert_true(calls > 10);
	assert_int_equal(count, LATER);
	assert_top(&tops[0], MANY - 1, 1);
	assert_top(&tops[1], 2 * (MANY - 1), 2);
	assert_string_equal(tops[0].nodes[0].above, "name");
	assert_string_equal(tops[1].nodes[0].above, "");
	assert_string_equal(tops[1].nodes[0].report.key, "11.183.0.0/24");
	for (uint32_t i = 0; i < LATER; i++)
		for (int j = 0; j < 2; j++)
			limits_release(nodes[j][i], now_ns);
}

/* The first of the top of that limit, after all nodes were gone through. */
static const struct limit_top_node *
busiest(struct limit *limit)
{
	static struct limit_top top;
	struct limit_top *order = &top;
	size_t cursor = 0;

	top = (struct limit_top){ .limit = limit };
	while (limits_top(limits, &cursor, now_ns, &order, 1))
		;
	return &top.nodes[0];
}

/* By what passes now and not by what once has: the totals are whole all the same. */
static void
the_busiest_are_so_now(void **state)
{
	struct limit *client = add("client", NULL, LIMIT_PER_SOURCE, 0, 0);
	struct limit_node *old = node_for(client, 0), *fresh = node_for(client, 256), *late;
	const struct limit_top_node *first;
	(void)state;

	old->bucket[LIMIT_UP].total = 1000 * MB;
	fresh->bucket[LIMIT_DOWN].total = 10;
	now_ns += 2 * S;
	first = busiest(client);
	assert_int_equal(first->report.id, (uintptr_t)old);
	assert_int_equal(first->report.direction[LIMIT_UP].speed, 500 * MB); /* since it was made */

	now_ns += 4 * S;
	fresh->bucket[LIMIT_DOWN].total += 40000;
	first = busiest(client);
	assert_int_equal(first->report.id, (uintptr_t)fresh);
	assert_int_equal(first->report.direction[LIMIT_DOWN].speed, 10000);
	assert_int_equal(first->report.direction[LIMIT_UP].speed, 0);
	assert_int_equal(first->report.direction[LIMIT_DOWN].total, 40010);

	/* Who asks again at once is told the same. */
	now_ns += S / 2;
	old->bucket[LIMIT_UP].total += 1000 * MB;
	first = busiest(client);
	assert_int_equal(first->report.id, (uintptr_t)fresh);
	assert_int_equal(first->report.direction[LIMIT_DOWN].speed, 10000);
	now_ns += S / 2;
	first = busiest(client);
	assert_int_equal(first->report.id, (uintptr_t)old);
	assert_int_equal(first->report.direction[LIMIT_UP].speed, 1000 * MB);

	/* One that has just come has no second behind it: what it passed counts as that of one. */
	late = node_for(client, 512);
	now_ns += S / 100;
	late->bucket[LIMIT_UP].total = 2000 * MB;
	first = busiest(client);
	assert_int_equal(first->report.id, (uintptr_t)late);
	assert_int_equal(first->report.direction[LIMIT_UP].speed, 2000 * MB);

	/* When nothing passes any more, those with the most come first; a reset is no speed below zero. */
	limits_reset_total(late, LIMIT_UP);
	for (int i = 0; i < 2; i++) {
		now_ns += 2 * S;
		first = busiest(client);
	}
	assert_int_equal(first->report.id, (uintptr_t)old);
	assert_int_equal(first->report.direction[LIMIT_UP].speed, 0);
	assert_int_equal(first->report.direction[LIMIT_UP].total, 2000 * MB);
	limits_release(old, now_ns);
	limits_release(fresh, now_ns);
	limits_release(late, now_ns);
}

/* --- workers ------------------------------------------------------------------------------------ */

static void
a_grant_for_another_worker_signals_it_once(void **state)
{
	struct limits_worker other = { .signal = on_signal };
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, MB, 20000);
	struct limit_flow mine, theirs[2] = { { .second = 0 } };
	(void)state;

	limits_worker_open(limits, &other);
	open_flow(&mine, top->only);
	for (int i = 0; i < 2; i++)
		limits_flow_open(&theirs[i], &other, top->only, LIMIT_UP, now_ns, NULL);
	drain(&mine);
	for (int i = 0; i < 2; i++)
		assert_int_equal(limits_take(&theirs[i], 2000, now_ns), 0);
	limits_run(&worker, now_ns); /* arms */
	assert_int_equal(worker.arm_ns, limits_due_ns(limits));
	assert_false(limits_must_run(limits, now_ns));
	limits_run(&other, now_ns); /* need not */
	assert_int_equal(other.arm_ns, 0);
	now_ns += 20 * MS;
	limits_run(&worker, now_ns);
	assert_int_equal(signals, 1);
	assert_ptr_equal(limits_next(&worker), &mine);
	assert_null(limits_next(&worker));
	limits_run(&other, now_ns);
	assert_non_null(limits_next(&other));
	/* One goes before it looks. */
	limits_flow_close(&theirs[0], now_ns);
	limits_flow_close(&theirs[1], now_ns);
	assert_null(limits_next(&other));
	limits_worker_close(&other);
	limits_flow_close(&mine, now_ns);
}

/* It may have woken for something else, and so lost its timer: it is set again to what it was. */
static void
a_run_that_came_early_sets_the_timer_again(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 1000, 20000);
	struct limit_flow flow;
	(void)state;

	open_flow(&flow, top->only);
	drain(&flow);
	limits_run(&worker, now_ns);
	uint64_t due_ns = limits_due_ns(limits);
	assert_int_equal(worker.arm_ns, due_ns);
	now_ns += MS;
	limits_run(&worker, now_ns);
	assert_int_equal(worker.arm_ns, due_ns);
	limits_flow_close(&flow, now_ns);
}

static void
a_worker_that_ends_leaves_its_timer_to_another(void **state)
{
	struct limits_worker other = { .signal = on_signal };
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, MB, 20000);
	struct limit_flow flow;
	(void)state;

	limits_worker_open(limits, &other);
	open_flow(&flow, top->only);
	drain(&flow);
	limits_run(&other, now_ns);
	assert_true(other.arm_ns);
	limits_worker_close(&other);
	assert_int_equal(signals, 1);
	limits_run(&worker, now_ns);
	assert_true(worker.arm_ns);
	limits_flow_close(&flow, now_ns);
}

/* Real threads on one tree, each with flows of its own, while the main thread changes rates. Time is a
 * counter that all advance. */
#define THREADS 3
#define TURNS   20000
#define FLOWS   4

static _Atomic(uint64_t) shared_ns;

static void
nothing(struct limits_worker *signalled)
{
	(void)signalled;
}

static void *
work_for_a_while(void *context)
{
	struct limits_worker *self = context;
	struct limit *limit = limits_find(limits, "client");
	struct limit_flow flows[FLOWS] = { { .second = 0 } };

	for (unsigned int i = 0; i < TURNS; i++) {
		uint64_t at_ns = atomic_fetch_add(&shared_ns, 10000);
		struct limit_flow *flow = &flows[i % FLOWS];
		if (i % 100 < FLOWS) {
			struct limit_node *node;
			struct limit_who who = { .connection = i, .sni = i % 3 ? "a" : "b" };
			limits_flow_close(flow, at_ns);
			*flow = (struct limit_flow){ .second = 0 };
			if (limits_resolve(limit, &who, at_ns, &node, NULL) < 0 ||
			    limits_flow_open(flow, self, node, LIMIT_DOWN, at_ns, NULL) < 0)
				abort();
			limits_release(node, at_ns);
		}
		uint64_t bytes = limits_take(flow, 5000, at_ns);
		if (bytes)
			limits_spend(flow, bytes - i % 2);
		if (i % 7 == 0)
			limits_give_back(flow);
		if (i % 16 == 0 || limits_must_run(limits, at_ns))
			limits_run(self, at_ns);
		while ((flow = limits_next(self)))
			limits_spend(flow, limits_take(flow, 1000, at_ns));
	}
	for (int i = 0; i < FLOWS; i++)
		limits_flow_close(&flows[i], atomic_load(&shared_ns));
	return NULL;
}

static void
threads_share_a_tree(void **state)
{
	struct limit *top = add("top", NULL, LIMIT_PER_NONE, 100 * MB, 0);
	struct limit *client = add("client", top, LIMIT_PER_SNI, 50 * MB, 0);
	struct limits_worker workers[THREADS] = { { .arm_ns = 0 } };
	static struct limit_report page[256];
	static struct limit_top top_clients;
	struct limit_top *order = &top_clients;
	pthread_t threads[THREADS];
	(void)state;

	top_clients.limit = client;
	atomic_store(&shared_ns, BEGIN);
	for (int i = 0; i < THREADS; i++) {
		workers[i].signal = nothing;
		limits_worker_open(limits, &workers[i]);
	}
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, work_for_a_while, &workers[i]),
				 0);
	for (uint64_t i = 0; i < 300; i++) {
		size_t cursor = 0;
		now_ns = atomic_load(&shared_ns);
		change(i % 2 ? top : client, i % 5 * 30 * MB, 0);
		limits_charge(top->only, LIMIT_DOWN, 1000, now_ns);
		while (limits_list(limits, &cursor, now_ns, page, 256))
			;
		cursor = 0;
		while (limits_top(limits, &cursor, now_ns, &order, 1))
			;
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	now_ns = atomic_load(&shared_ns);
	assert_int_equal(report(top->only).direction[LIMIT_DOWN].members, 0);
	assert_int_equal(report(top->only).direction[LIMIT_DOWN].waiting, 0);
	for (int i = 0; i < THREADS; i++)
		limits_worker_close(&workers[i]);
}

int
main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_tree, close_tree)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fractions_are_kept),
		cmocka_unit_test(time_may_jump),
		cmocka_unit_test(when_is_the_first_moment),
		cmocka_unit_test(heap_keeps_order_over_the_wrap),
		CASE(without_limit_all_may_move),
		CASE(a_bucket_begins_with_its_burst_and_no_more),
		CASE(a_path_gives_the_least_and_charges_all),
		CASE(nobody_overtakes_who_waits),
		CASE(a_busy_root_holds_up_no_other),
		CASE(what_is_given_back_wakes_who_waits_for_it),
		CASE(who_stops_waiting_holds_up_nobody),
		CASE(a_cut_path_is_charged_once),
		CASE(a_moved_flow_is_charged_at_its_new_place),
		CASE(groups_take_no_lock),
		CASE(tokens_and_totals_survive_a_change),
		CASE(a_change_wakes_who_waits),
		CASE(values_out_of_range_change_nothing),
		CASE(charge_and_credit_by_hand),
		CASE(a_limit_moves_with_all_below_it),
		CASE(what_depends_on_keys_does_not_move),
		CASE(a_removed_limit_lives_as_long_as_its_users),
		CASE(keys_are_what_they_say),
		CASE(many_nodes_come_and_go),
		CASE(keys_compose),
		CASE(reconnecting_does_not_refill),
		CASE(a_node_charged_while_idle_stays),
		CASE(a_connections_own_node_goes_with_it),
		CASE(at_the_cap_the_oldest_idle_one_goes),
		CASE(a_successor_starts_empty),
		CASE(many_nodes_are_found_listed_and_changed),
		CASE(only_what_has_so_much_is_sifted_out),
		CASE(the_busiest_of_each_limit_are_told),
		CASE(the_busiest_are_so_now),
		CASE(a_grant_for_another_worker_signals_it_once),
		CASE(a_run_that_came_early_sets_the_timer_again),
		CASE(a_worker_that_ends_leaves_its_timer_to_another),
		CASE(threads_share_a_tree),
	};
	return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
