/*
 * What the stack promises: order, ends, room, flush, passing, failing, and no step without a
 * change. The filters here are small ones of the test's own, and the doubles of the registry.
 */
#include "filters/registry.h"
#include "stack_ends.h"

#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

/* --- A filter whose behaviour its conf says ------------------------------------------------- */

struct part {
	unsigned char add, times; /* each byte becomes (byte + add) * times; times 0 = 1 */
	size_t header_bytes;      /* `in` swallows so many and passes; `out` passes at once */
	size_t out_passes_after;  /* `out` copies so many and then passes; 0 = does not */
	bool is_gate;             /* `out` rests until `in` has copied something, then passes */
	const char *greeting;     /* far: `out` says it first; near: not ready until `in` read it */
	char alert_on;            /* `in` fails at this byte, after `out` has said "alert" */
	char end_at;              /* `in` ends at this byte, by its own mark */
	bool is_marked;           /* an end of `in` before end_at is a truncation */
	bool does_not_open;
};

struct part_state {
	const struct part *part;
	enum filter_side side;
	size_t header_left, out_left;
	size_t greeted; /* bytes of the greeting said or read */
	bool owes_alert, has_alerted, gate_opened;
};

static struct {
	unsigned int steps[FILTER_FLOWS], ends[FILTER_FLOWS], opened, closed;
	enum filter_flush last_flush[FILTER_FLOWS];
} seen;

static void *
part_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	const struct part *part = conf;
	(void)facts;
	if (part->does_not_open) {
		failure_set(why, FAILURE_MEMORY, "does not open");
		return NULL;
	}
	struct part_state *state = calloc(1, sizeof(*state));
	assert_non_null(state);
	state->part = part;
	state->side = side;
	state->header_left = part->header_bytes;
	state->out_left = part->out_passes_after;
	seen.opened++;
	return state;
}

static void
part_close(void *opaque)
{
	seen.closed++;
	free(opaque);
}

static bool
part_ready(const void *opaque)
{
	const struct part_state *state = opaque;
	if (state->part->header_bytes)
		return !state->header_left;
	return !state->part->greeting || state->part->greeting[state->greeted] == '\0';
}

static size_t
part_copy(const struct part *part, struct filter_io *io, size_t most)
{
	unsigned char bytes[4096];
	if (most > io->room_bytes)
		most = io->room_bytes;
	if (most > sizeof(bytes))
		most = sizeof(bytes);
	int taken = most ? evbuffer_remove(io->src, bytes, most) : 0;
	for (int i = 0; i < taken; i++)
		bytes[i] =
			(unsigned char)((bytes[i] + part->add) * (part->times ? part->times : 1));
	if (taken > 0)
		evbuffer_add(io->dst, bytes, (size_t)taken);
	return taken > 0 ? (size_t)taken : 0;
}

static enum filter_result
part_finish(enum filter_flow flow, const struct filter_io *io, size_t moved)
{
	if (evbuffer_get_length(io->src))
		return moved ? FILTER_MORE : FILTER_REST;
	if (io->flush != FILTER_FINISHED)
		return FILTER_REST;
	seen.ends[flow]++;
	return FILTER_END;
}

static enum filter_result
part_in(struct part_state *state, struct filter_io *io)
{
	const struct part *part = state->part;
	size_t length = evbuffer_get_length(io->src);
	if (state->has_alerted) {
		failure_set(io->why, FAILURE_PROTOCOL, "the alert byte came");
		return FILTER_FAIL;
	}
	if (part->header_bytes) {
		size_t drained = length < state->header_left ? length : state->header_left;
		evbuffer_drain(io->src, drained);
		state->header_left -= drained;
		return state->header_left ? FILTER_REST : FILTER_PASS;
	}
	if (part->greeting && state->side == FILTER_NEAR) {
		while (!part_ready(state) && evbuffer_get_length(io->src)) {
			evbuffer_drain(io->src, 1);
			state->greeted++;
		}
	}
	if (part->alert_on || part->end_at) {
		char special[2] = { part->alert_on ? part->alert_on : part->end_at, '\0' };
		struct evbuffer_ptr at = evbuffer_search(io->src, special, 1, NULL);
		if (at.pos == 0 && part->alert_on) {
			evbuffer_drain(io->src, 1);
			state->owes_alert = true;
			return FILTER_REST;
		}
		if (at.pos == 0) {
			evbuffer_drain(io->src, 1);
			seen.ends[FILTER_IN]++;
			return FILTER_END;
		}
		if (at.pos > 0)
			return part_copy(part, io, (size_t)at.pos) ? FILTER_MORE : FILTER_REST;
	}
	size_t moved = part_copy(part, io, SIZE_MAX);
	state->gate_opened |= moved != 0;
	if (part->is_marked && io->flush == FILTER_FINISHED && !evbuffer_get_length(io->src)) {
		failure_set(io->why, FAILURE_TRUNCATED, "no mark");
		return FILTER_FAIL;
	}
	return part_finish(FILTER_IN, io, moved);
}

static enum filter_result
part_out(struct part_state *state, struct filter_io *io)
{
	const struct part *part = state->part;
	if (part->header_bytes)
		return FILTER_PASS;
	if (part->is_gate)
		return state->gate_opened ? FILTER_PASS : FILTER_REST;
	if (state->owes_alert && io->room_bytes) {
		evbuffer_add(io->dst, "alert", 5);
		state->owes_alert = false;
		state->has_alerted = true;
		return FILTER_REST;
	}
	if (part->greeting && state->side == FILTER_FAR && !part_ready(state) && io->room_bytes) {
		evbuffer_add(io->dst, part->greeting, strlen(part->greeting));
		state->greeted = strlen(part->greeting);
		return FILTER_MORE;
	}
	if (part->out_passes_after) {
		state->out_left -= part_copy(part, io, state->out_left);
		return state->out_left ? FILTER_REST : FILTER_PASS;
	}
	return part_finish(FILTER_OUT, io, part_copy(part, io, SIZE_MAX));
}

static enum filter_result
part_step(void *opaque, enum filter_flow flow, struct filter_io *io)
{
	struct part_state *state = opaque;
	seen.steps[flow]++;
	seen.last_flush[flow] = io->flush;
	return flow == FILTER_IN ? part_in(state, io) : part_out(state, io);
}

static const struct filter_type part_type = {
	.name = "part",
	.conf_bytes = sizeof(struct part),
	.open = part_open,
	.step = part_step,
	.ready = part_ready,
	.close = part_close,
};

/* --- A stack with its four buffers ---------------------------------------------------------- */

struct bench {
	struct chain_link links[CHAIN_FILTERS];
	struct chain chain;
	struct facts facts;
	struct stack *stack;
	struct stack_flow flows[FILTER_FLOWS];
	struct failure why;
};

static struct chain_link
link_of(const struct part *part)
{
	return (struct chain_link){ .type = &part_type, .conf = part };
}

static void
bench_add(struct bench *bench, struct chain_link link)
{
	bench->chain.at = bench->links;
	bench->links[bench->chain.count++] = link;
}

static void
bench_open(struct bench *bench, enum filter_side side)
{
	memset(&seen, 0, sizeof(seen));
	stack_ends_open(bench->flows, FILTER_FLUSH);
	assert_int_equal(stack_open(&bench->stack, &bench->chain, side, &bench->facts, &bench->why),
			 0);
}

/* Asks for no flush, which would be a reason to step. */
static void
be_quiet(struct bench *bench)
{
	bench->flows[FILTER_IN].flush = bench->flows[FILTER_OUT].flush = FILTER_NORMAL;
}

static void
bench_close(struct bench *bench)
{
	stack_close(bench->stack);
	stack_ends_close(bench->flows);
}

static enum stack_result
run(struct bench *bench)
{
	return stack_step(bench->stack, bench->flows, &bench->why);
}

static void
give(struct bench *bench, enum filter_flow flow, const char *text)
{
	evbuffer_add(bench->flows[flow].src, text, strlen(text));
}

static void
finish(struct bench *bench, enum filter_flow flow)
{
	bench->flows[flow].flush = FILTER_FINISHED;
}

/* What has come out of the flow is exactly `text`; it is taken away. */
static void
expect(struct bench *bench, enum filter_flow flow, const char *text)
{
	struct evbuffer *dst = bench->flows[flow].dst;
	size_t length = evbuffer_get_length(dst);
	char *got = calloc(1, length + 1);
	assert_non_null(got);
	evbuffer_remove(dst, got, length);
	assert_string_equal(got, text);
	free(got);
}

/* --- The cases ------------------------------------------------------------------------------ */

static void
test_empty_chain(void **unused)
{
	(void)unused;
	struct bench bench = { 0 };
	bench_open(&bench, FILTER_NEAR);
	assert_null(bench.stack);
	assert_true(stack_is_ready(NULL));
	assert_true(stack_is_empty(NULL, FILTER_IN));
	assert_int_equal(stack_kept_bytes(NULL), 0);

	give(&bench, FILTER_IN, "up");
	give(&bench, FILTER_OUT, "down");
	assert_int_equal(run(&bench), STACK_MOVED);
	expect(&bench, FILTER_IN, "up");
	expect(&bench, FILTER_OUT, "down");
	assert_int_equal(run(&bench), STACK_REST);

	bench.flows[FILTER_IN].room_bytes = 0;
	give(&bench, FILTER_IN, "later");
	finish(&bench, FILTER_IN);
	assert_int_equal(run(&bench), STACK_REST);
	assert_false(bench.flows[FILTER_IN].ended);
	bench.flows[FILTER_IN].room_bytes = 5;
	assert_int_equal(run(&bench), STACK_MOVED);
	assert_int_equal(bench.flows[FILTER_IN].room_bytes, 0);
	assert_true(bench.flows[FILTER_IN].ended);
	assert_false(bench.flows[FILTER_OUT].ended);
	expect(&bench, FILTER_IN, "later");
	bench_close(&bench);
}

static void
test_empty_chain_with_one_buffer(void **unused)
{
	(void)unused;
	struct evbuffer *up = evbuffer_new(), *down = evbuffer_new();
	struct stack_flow flows[FILTER_FLOWS] = {
		{ .src = up, .dst = up, .flush = FILTER_FINISHED },
		{ .src = down, .dst = down, .flush = FILTER_FLUSH },
	};
	evbuffer_add(up, "rest", 4);
	assert_int_equal(stack_step(NULL, flows, NULL), STACK_REST);
	assert_true(flows[FILTER_IN].ended);
	assert_false(flows[FILTER_OUT].ended);
	assert_int_equal(evbuffer_get_length(up), 4);
	evbuffer_free(up);
	evbuffer_free(down);
}

static void
test_order_is_wire_first(void **unused)
{
	(void)unused;
	struct part adds = { .add = 1 }, doubles = { .times = 2 };
	struct bench bench = { 0 };
	bench_add(&bench, link_of(&adds));
	bench_add(&bench, link_of(&doubles));
	bench_open(&bench, FILTER_NEAR);
	give(&bench, FILTER_IN, "\x10");
	give(&bench, FILTER_OUT, "\x10");
	assert_int_equal(run(&bench), STACK_MOVED);
	expect(&bench, FILTER_IN, "\x22");  /* (16 + 1) * 2 */
	expect(&bench, FILTER_OUT, "\x21"); /* 16 * 2 + 1 */
	bench_close(&bench);
}

static void
test_no_step_without_a_change(void **unused)
{
	(void)unused;
	struct part copy = { 0 };
	struct bench bench = { 0 };
	bench_add(&bench, link_of(&copy));
	bench_open(&bench, FILTER_NEAR);
	be_quiet(&bench);
	assert_int_equal(run(&bench), STACK_REST);
	assert_int_equal(seen.steps[FILTER_IN], 1); /* once at open */
	assert_int_equal(seen.steps[FILTER_OUT], 1);
	for (int i = 0; i < 100; i++) {
		bench.flows[FILTER_IN].room_bytes -= 10; /* some remains some */
		assert_int_equal(run(&bench), STACK_REST);
	}
	assert_int_equal(seen.steps[FILTER_IN], 1);
	assert_int_equal(seen.steps[FILTER_OUT], 1);

	give(&bench, FILTER_IN, "x");
	assert_int_equal(run(&bench), STACK_MOVED);
	assert_int_equal(seen.steps[FILTER_IN], 2);
	assert_int_equal(seen.steps[FILTER_OUT], 2); /* its other flow moved */

	bench.flows[FILTER_IN].room_bytes = 0;
	assert_int_equal(run(&bench), STACK_REST);
	assert_int_equal(seen.steps[FILTER_IN], 2);
	give(&bench, FILTER_IN, "y");
	assert_int_equal(run(&bench), STACK_REST);
	assert_int_equal(run(&bench), STACK_REST);
	assert_int_equal(seen.steps[FILTER_IN], 3);
	bench.flows[FILTER_IN].room_bytes = 1;
	assert_int_equal(run(&bench), STACK_MOVED);
	assert_int_equal(seen.steps[FILTER_IN], 4);
	expect(&bench, FILTER_IN, "xy");
	bench_close(&bench);
}

static void
test_end_follows_the_last_byte(void **unused)
{
	(void)unused;
	struct part copy = { 0 };
	struct bench bench = { 0 };
	for (int i = 0; i < 3; i++)
		bench_add(&bench, link_of(&copy));
	bench_open(&bench, FILTER_NEAR);
	bench.flows[FILTER_IN].room_bytes = 2;
	give(&bench, FILTER_IN, "abcdef");
	finish(&bench, FILTER_IN);
	run(&bench);
	expect(&bench, FILTER_IN, "ab");
	assert_int_equal(seen.ends[FILTER_IN], 2);
	assert_false(bench.flows[FILTER_IN].ended);
	bench.flows[FILTER_IN].room_bytes = 4;
	run(&bench);
	expect(&bench, FILTER_IN, "cdef");
	assert_true(bench.flows[FILTER_IN].ended);
	assert_int_equal(seen.ends[FILTER_IN], 3);

	/* An ended flow is not stepped any more, not even after its other flow moved. */
	unsigned int steps = seen.steps[FILTER_IN];
	give(&bench, FILTER_OUT, "back");
	finish(&bench, FILTER_OUT);
	assert_int_equal(run(&bench), STACK_MOVED);
	expect(&bench, FILTER_OUT, "back");
	assert_true(bench.flows[FILTER_OUT].ended);
	assert_int_equal(seen.steps[FILTER_IN], steps);
	assert_int_equal(run(&bench), STACK_REST);
	bench_close(&bench);
}

static void
test_end_by_a_mark(void **unused)
{
	(void)unused;
	struct part copy = { 0 }, marked = { .end_at = '.', .is_marked = true };
	struct bench bench = { 0 };
	bench_add(&bench, link_of(&copy));
	bench_add(&bench, link_of(&marked));
	bench_add(&bench, link_of(&copy));
	bench_open(&bench, FILTER_NEAR);
	give(&bench, FILTER_IN, "ab.cd");
	run(&bench);
	expect(&bench, FILTER_IN, "ab");
	assert_true(bench.flows[FILTER_IN].ended);
	assert_int_equal(seen.ends[FILTER_IN], 2);
	give(&bench, FILTER_IN, "more");
	run(&bench);
	expect(&bench, FILTER_IN, "");
	give(&bench, FILTER_OUT, "still goes");
	run(&bench);
	expect(&bench, FILTER_OUT, "still goes");
	bench_close(&bench);
}

static void
test_end_before_the_mark_fails(void **unused)
{
	(void)unused;
	struct part copy = { 0 }, marked = { .end_at = '.', .is_marked = true };
	struct bench bench = { 0 };
	bench_add(&bench, link_of(&copy));
	bench_add(&bench, link_of(&marked));
	bench_open(&bench, FILTER_NEAR);
	give(&bench, FILTER_IN, "ab");
	finish(&bench, FILTER_IN);
	assert_int_equal(run(&bench), STACK_FAILED);
	assert_int_equal(bench.why.kind, FAILURE_TRUNCATED);
	assert_false(bench.flows[FILTER_IN].ended);
	expect(&bench, FILTER_IN, "ab");
	bench_close(&bench);
}

static void
test_open_fails_half_way(void **unused)
{
	(void)unused;
	struct part copy = { 0 }, broken = { .does_not_open = true };
	struct chain_link links[] = { link_of(&copy), link_of(&copy), link_of(&broken),
				      link_of(&copy) };
	struct chain chain = { .at = links, .count = 4 };
	struct stack *stack = (struct stack *)links;
	struct facts facts = { 0 };
	struct failure why;
	memset(&seen, 0, sizeof(seen));
	assert_int_equal(stack_open(&stack, &chain, FILTER_NEAR, &facts, &why), -1);
	assert_null(stack);
	assert_string_equal(why.text, "does not open");
	assert_int_equal(seen.opened, 2);
	assert_int_equal(seen.closed, 2);
}

static void
test_ready_after_the_greeting(void **unused)
{
	(void)unused;
	struct part copy = { 0 }, greets = { .greeting = "hello" };
	struct bench near = { 0 }, far = { 0 };
	bench_add(&near, link_of(&greets));
	bench_add(&far, link_of(&copy)); /* so that room on the wire is not its reason to speak */
	bench_add(&far, link_of(&greets));
	bench_open(&near, FILTER_NEAR);
	bench_open(&far, FILTER_FAR);
	be_quiet(&far);
	assert_int_equal(run(&far), STACK_MOVED); /* speaks first, with an empty source */
	assert_true(stack_is_ready(far.stack));
	assert_int_equal(run(&near), STACK_REST);
	assert_false(stack_is_ready(near.stack));
	give(&near, FILTER_IN, "hel");
	run(&near);
	assert_false(stack_is_ready(near.stack));
	give(&near, FILTER_IN, "lo you");
	run(&near);
	assert_true(stack_is_ready(near.stack));
	expect(&near, FILTER_IN, " you");
	expect(&far, FILTER_OUT, "hello");
	bench_close(&near);
	bench_close(&far);
}

/* A filter passes at each place of a chain; what waits for it and behind it stays in order. */
static void
test_passing(void **unused)
{
	(void)unused;
	for (size_t length = 1; length <= 4; length++) {
		for (size_t at = 0; at < length; at++) {
			struct part header = { .header_bytes = 3 }, copy = { 0 };
			struct bench bench = { 0 };
			for (size_t i = 0; i < length; i++)
				bench_add(&bench, link_of(i == at ? &header : &copy));
			bench_open(&bench, FILTER_NEAR);
			give(&bench, FILTER_OUT, "early");
			give(&bench, FILTER_IN, "he");
			run(&bench);
			assert_false(stack_is_ready(bench.stack));
			expect(&bench, FILTER_OUT, "early");
			assert_int_equal(stack_is_empty(bench.stack, FILTER_OUT), length == 1);
			assert_false(stack_is_empty(bench.stack, FILTER_IN));
			give(&bench, FILTER_IN, "ad and body");
			run(&bench);
			expect(&bench, FILTER_IN, "d and body");
			assert_true(stack_is_ready(bench.stack));
			assert_int_equal(stack_is_empty(bench.stack, FILTER_IN), length == 1);
			give(&bench, FILTER_IN, "more");
			finish(&bench, FILTER_IN);
			finish(&bench, FILTER_OUT);
			run(&bench);
			expect(&bench, FILTER_IN, "more");
			assert_true(bench.flows[FILTER_IN].ended);
			assert_true(bench.flows[FILTER_OUT].ended);
			assert_int_equal(seen.closed, 1);
			bench_close(&bench);
			assert_int_equal(seen.closed, seen.opened);
		}
	}
}

/* The filter next to the wire passes while all before it is full: what waits goes on, within the
 * room. */
static void
test_passing_while_full(void **unused)
{
	(void)unused;
	static const char bytes[200000];
	struct part gate = { .is_gate = true }, copy = { 0 };
	struct bench bench = { 0 };
	bench_add(&bench, link_of(&gate));
	bench_add(&bench, link_of(&copy));
	bench_add(&bench, link_of(&copy));
	bench_open(&bench, FILTER_NEAR);
	struct stack_flow *out = &bench.flows[FILTER_OUT];
	out->room_bytes = 100000;
	evbuffer_add(out->src, bytes, sizeof(bytes));
	run(&bench);
	assert_int_equal(stack_kept_bytes(bench.stack), 2 * STACK_BETWEEN_BYTES);
	give(&bench, FILTER_IN, "open");
	run(&bench);
	assert_int_equal(evbuffer_get_length(out->dst), 100000);
	assert_int_equal(out->room_bytes, 0);
	bench_close(&bench);
}

/* A filter passes while bytes wait on both sides of it: none of them overtakes another. */
static void
test_passing_between_waiting_bytes(void **unused)
{
	(void)unused;
	for (size_t at = 0; at < 3; at++) {
		struct part leaves = { .out_passes_after = 70000 }, copy = { 0 };
		struct bench bench = { 0 };
		for (size_t i = 0; i < 3; i++)
			bench_add(&bench, link_of(i == 2 - at ? &leaves : &copy));
		bench_open(&bench, FILTER_NEAR);
		struct stack_flow *out = &bench.flows[FILTER_OUT];
		unsigned char next_in = 0, next_out = 0;
		size_t sent = 0, got = 0;
		out->room_bytes = 0;
		while (got < 1000000) {
			for (; sent < 1000000 && evbuffer_get_length(out->src) < 300000; sent++)
				evbuffer_add(out->src, &(unsigned char){ next_in++ }, 1);
			assert_int_not_equal(run(&bench), STACK_FAILED);
			unsigned char byte;
			for (; evbuffer_remove(out->dst, &byte, 1) == 1; got++)
				assert_int_equal(byte, next_out++);
			out->room_bytes = 1500;
		}
		assert_int_equal(got, 1000000);
		bench_close(&bench);
	}
}

/* --- Memory --------------------------------------------------------------------------------- */

static size_t allocations; /* alive, libevent's */
static size_t allocations_made;

static void *
count_malloc(size_t size)
{
	void *memory = malloc(size);
	allocations += memory != NULL;
	allocations_made++;
	return memory;
}

static void *
count_realloc(void *memory, size_t size)
{
	allocations += memory == NULL;
	return realloc(memory, size);
}

static void
count_free(void *memory)
{
	allocations -= memory != NULL;
	free(memory);
}

static void
test_idle_stack_holds_no_buffer(void **unused)
{
	(void)unused;
	struct part copy = { 0 };
	struct bench bench = { 0 };
	for (int i = 0; i < 5; i++)
		bench_add(&bench, link_of(&copy));
	bench_open(&bench, FILTER_NEAR);
	size_t before = allocations;
	for (int i = 0; i < 10; i++) {
		give(&bench, FILTER_IN, "ping");
		give(&bench, FILTER_OUT, "pong");
		run(&bench);
		expect(&bench, FILTER_IN, "ping");
		expect(&bench, FILTER_OUT, "pong");
		assert_int_equal(allocations, before);
	}
	bench_close(&bench);
	assert_int_equal(allocations, 0);
}

static void
test_one_filter_allocates_nothing(void **unused)
{
	(void)unused;
	struct part copy = { 0 };
	struct bench bench = { 0 };
	bench_add(&bench, link_of(&copy));
	bench_open(&bench, FILTER_NEAR);
	for (int i = 0; i < 10; i++) {
		evbuffer_add(bench.flows[FILTER_IN].dst, "x", 1); /* has a chain with space */
		give(&bench, FILTER_IN, "ping");
		size_t before = allocations_made;
		run(&bench);
		assert_int_equal(allocations_made, before);
		expect(&bench, FILTER_IN, "xping");
	}
	bench_close(&bench);
}

/* --- With the doubles: a build without them leaves these out -------------------------------- */

#ifdef PENSTOCK_TEST_DOUBLES
static const struct {
	uint64_t number;
} double_conf = { 7 }; /* what the first number of a double's conf is: a seed, or bytes */
static const struct {
	uint64_t number;
} generous_conf = { UINT64_MAX };

static struct chain_link
link_double(const char *name)
{
	const struct filter_type *type = registry_find(name);
	assert_non_null(type);
	bool counts = strcmp(name, "fail_after") == 0;
	return (struct chain_link){ .type = type,
				    .conf = counts ? (const void *)&generous_conf : &double_conf };
}

static void
test_flush_reaches_every_filter(void **unused)
{
	(void)unused;
	struct bench bench = { 0 };
	bench_add(&bench, link_double("stutter"));
	bench_add(&bench, link_double("hoard"));
	bench_add(&bench, link_double("stutter"));
	bench_open(&bench, FILTER_FAR);
	bench.flows[FILTER_IN].flush = bench.flows[FILTER_OUT].flush = FILTER_NORMAL;
	give(&bench, FILTER_IN, "one");
	give(&bench, FILTER_OUT, "two");
	assert_int_equal(run(&bench), STACK_MOVED);
	expect(&bench, FILTER_IN, "");
	assert_int_equal(stack_kept_bytes(bench.stack), 6);
	bench.flows[FILTER_IN].flush = FILTER_FLUSH;
	assert_int_equal(run(&bench), STACK_MOVED);
	expect(&bench, FILTER_IN, "one");
	expect(&bench, FILTER_OUT, "");
	finish(&bench, FILTER_OUT);
	assert_int_equal(run(&bench), STACK_MOVED);
	expect(&bench, FILTER_OUT, "two");
	assert_true(bench.flows[FILTER_OUT].ended);
	assert_false(bench.flows[FILTER_IN].ended);

	/* After a change back to normal it keeps again. */
	bench.flows[FILTER_IN].flush = FILTER_NORMAL;
	give(&bench, FILTER_IN, "three");
	run(&bench);
	expect(&bench, FILTER_IN, "");
	bench.flows[FILTER_IN].flush = FILTER_FLUSH;
	run(&bench);
	expect(&bench, FILTER_IN, "three");
	bench_close(&bench);
}

static void
test_failure_carries_an_alert_out(void **unused)
{
	(void)unused;
	struct part alerts = { .alert_on = '!' };
	struct bench bench = { 0 };
	bench_add(&bench, link_double("hoard"));
	bench_add(&bench, link_double("stutter"));
	bench_add(&bench, link_of(&alerts));
	bench_open(&bench, FILTER_NEAR);
	bench.flows[FILTER_IN].flush = FILTER_FLUSH;
	bench.flows[FILTER_OUT].flush = FILTER_NORMAL;
	give(&bench, FILTER_IN, "ab!cd");
	assert_int_equal(run(&bench), STACK_FAILED);
	assert_string_equal(bench.why.text, "the alert byte came");
	expect(&bench, FILTER_IN, "ab");
	expect(&bench, FILTER_OUT, "alert");
	bench_close(&bench);
}

static void
test_failing_filter(void **unused)
{
	(void)unused;
	const uint64_t three = 3;
	struct bench bench = { 0 };
	bench_add(&bench, link_double("stutter"));
	bench_add(&bench,
		  (struct chain_link){ .type = registry_find("fail_after"), .conf = &three });
	bench_open(&bench, FILTER_FAR);
	give(&bench, FILTER_OUT, "abc");
	assert_int_equal(run(&bench), STACK_MOVED);
	expect(&bench, FILTER_OUT, "abc");
	give(&bench, FILTER_IN, "d");
	assert_int_equal(run(&bench), STACK_FAILED);
	assert_int_equal(bench.why.kind, FAILURE_PROTOCOL);
	expect(&bench, FILTER_IN, "");
	bench_close(&bench);
}

static void
test_room_and_kept_are_bounded(void **unused)
{
	(void)unused;
	static const char kib[1024];
	struct bench bench = { 0 };
	bench_add(&bench, link_double("stutter"));
	bench_add(&bench, link_double("hoard"));
	bench_add(&bench, link_double("fail_after"));
	bench_add(&bench, link_double("stutter"));
	bench_open(&bench, FILTER_NEAR);
	struct stack_flow *in = &bench.flows[FILTER_IN];
	in->room_bytes = 0;
	for (int i = 0; i < 10000; i++) {
		if (evbuffer_get_length(in->src) < 64 * sizeof(kib))
			evbuffer_add(in->src, kib, sizeof(kib));
		run(&bench);
	}
	assert_int_equal(evbuffer_get_length(in->dst), 0);
	assert_in_range(stack_kept_bytes(bench.stack), 3 * STACK_BETWEEN_BYTES,
			3 * (STACK_BETWEEN_BYTES + FILTER_RECORD_BYTES) + 3 * FILTER_KEPT_BYTES);
	in->room_bytes = 1;
	run(&bench);
	assert_int_equal(evbuffer_get_length(in->dst), 1);
	assert_int_equal(in->room_bytes, 0);
	bench_close(&bench);
}

static uint64_t seed = 1;

static size_t
draw(size_t below)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (size_t)(seed >> 33) % below;
}

struct journey {
	size_t length, sent, got;
	unsigned char first;
};

static void
travel(struct journey *journey, struct stack_flow *flow)
{
	size_t most = draw(3) ? draw(200) : draw(40000);
	for (; most-- && journey->sent < journey->length; journey->sent++) {
		unsigned char byte = (unsigned char)(journey->first + journey->sent * 31 / 7);
		evbuffer_add(flow->src, &byte, 1);
	}
	flow->room_bytes = draw(3) ? draw(1000) : draw(100000);
	if (flow->flush != FILTER_FINISHED)
		flow->flush = draw(2) ? FILTER_FLUSH : FILTER_NORMAL;
	if (journey->sent == journey->length)
		flow->flush = FILTER_FINISHED;
}

static void
arrive(struct journey *journey, struct stack_flow *flow)
{
	unsigned char byte;
	for (; evbuffer_remove(flow->dst, &byte, 1) == 1; journey->got++)
		assert_int_equal(byte, (unsigned char)(journey->first + journey->got * 31 / 7));
	if (flow->ended)
		assert_int_equal(journey->got, journey->length);
}

static void
test_random_chains(void **unused)
{
	(void)unused;
	static const char *const names[] = { "stutter", "hoard", "fail_after" };
	for (int round = 0; round < 300; round++) {
		uint64_t round_seed = seed;
		struct bench bench = { 0 };
		for (size_t i = draw(6); i--;)
			bench_add(&bench, link_double(names[draw(3)]));
		bench_open(&bench, draw(2) ? FILTER_NEAR : FILTER_FAR);
		struct journey journeys[FILTER_FLOWS] = {
			{ .length = draw(2) ? draw(100) : draw(200000), .first = 3 },
			{ .length = draw(2) ? draw(100) : draw(200000), .first = 111 },
		};
		size_t turns = 0;
		while (!bench.flows[FILTER_IN].ended || !bench.flows[FILTER_OUT].ended) {
			for (int flow = 0; flow < FILTER_FLOWS; flow++)
				travel(&journeys[flow], &bench.flows[flow]);
			if (run(&bench) == STACK_FAILED || ++turns > 100000)
				fail_msg("SEED=%llu: %s after %zu turns",
					 (unsigned long long)round_seed, bench.why.text, turns);
			for (int flow = 0; flow < FILTER_FLOWS; flow++)
				arrive(&journeys[flow], &bench.flows[flow]);
		}
		assert_int_equal(stack_kept_bytes(bench.stack), 0);
		bench_close(&bench);
	}
}
#endif

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty_chain),
		cmocka_unit_test(test_empty_chain_with_one_buffer),
		cmocka_unit_test(test_order_is_wire_first),
		cmocka_unit_test(test_no_step_without_a_change),
		cmocka_unit_test(test_end_follows_the_last_byte),
		cmocka_unit_test(test_end_by_a_mark),
		cmocka_unit_test(test_end_before_the_mark_fails),
		cmocka_unit_test(test_open_fails_half_way),
		cmocka_unit_test(test_ready_after_the_greeting),
		cmocka_unit_test(test_passing),
		cmocka_unit_test(test_passing_while_full),
		cmocka_unit_test(test_passing_between_waiting_bytes),
		cmocka_unit_test(test_idle_stack_holds_no_buffer),
		cmocka_unit_test(test_one_filter_allocates_nothing),
#ifdef PENSTOCK_TEST_DOUBLES
		cmocka_unit_test(test_flush_reaches_every_filter),
		cmocka_unit_test(test_failure_carries_an_alert_out),
		cmocka_unit_test(test_failing_filter),
		cmocka_unit_test(test_room_and_kept_are_bounded),
		cmocka_unit_test(test_random_chains),
#endif
	};
#ifdef PENSTOCK_TEST_DOUBLES
	const char *given = getenv("SEED");
	if (given)
		seed = strtoull(given, NULL, 10);
	printf("SEED=%llu\n", (unsigned long long)seed);
#endif
	event_set_mem_functions(count_malloc, count_realloc, count_free);
	return cmocka_run_group_tests_name("stack", tests, NULL, NULL);
}
