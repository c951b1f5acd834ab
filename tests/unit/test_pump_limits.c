/*
 * The pump under limits, single-stepped: every byte is paid for where it is counted, once, before it
 * moves; nothing is lost; what a flow holds goes back before it waits for anything else; who waits says for
 * which limit.
 */
#include "clock.h"
#include "filters/registry.h"
#include "limits_report.h"
#include "pair.h"
#include "pump.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define BYTES ((size_t)400 * 1000)
#define RATE  UINT64_C(16000000)
#define BURST 80000

static unsigned char zeros[BYTES];

/* A peer outside: what it has to say and what it has heard. */
struct peer {
	struct endpoint endpoint;
	struct evbuffer *say, *heard;
	bool deaf;
};

static struct rig {
	struct loop loop;
	struct pump pump;
	struct peer peers[2]; /* by enum pump_side */
	struct limits *limits;
	struct limits_worker worker;
	struct limit *limit[2];
	struct limit_node *node[2];
	struct meter meter[2][2];
	size_t most_kept;     /* in the stores, ever */
	unsigned int limited; /* runs that ended in a wait for a limit */
} rig;

static void
on_signal(struct limits_worker *worker)
{
	(void)worker;
}

static void
on_ready(struct endpoint *endpoint)
{
	(void)endpoint;
}

static void
on_turn(struct task *task)
{
	(void)task;
}

static void
open_end(enum pump_side side, bool socket)
{
	struct endpoint *inner = &rig.pump.side[side].endpoint;
	struct peer *peer = &rig.peers[side];
	struct failure why;
	int fds[2];

	if (socket) {
		assert_int_equal(
			socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
		endpoint_open_socket(inner, &rig.loop, fds[0], true);
		endpoint_open_socket(&peer->endpoint, &rig.loop, fds[1], true);
	} else {
		assert_int_equal(pair_open(inner, &peer->endpoint, &rig.loop, &why), 0);
	}
	inner->on_ready = peer->endpoint.on_ready = on_ready;
	peer->say = evbuffer_new();
	peer->heard = evbuffer_new();
}

static void
open_rig(bool near_socket, bool far_socket)
{
	static const uint8_t seed[16] = "fifteen letters";
	struct failure why;

	rig = (struct rig){ .most_kept = 0 };
	assert_int_equal(loop_open(&rig.loop, &why), 0);
	pump_open(&rig.pump, &rig.loop, WAIT_CONNECT, clock_now_ns());
	rig.pump.turn.run = on_turn;
	open_end(SIDE_NEAR, near_socket);
	open_end(SIDE_FAR, far_socket);
	rig.limits = limits_open(seed, &why);
	rig.worker.signal = on_signal;
	limits_worker_open(rig.limits, &rig.worker);
}

/* Meters a side; `rate` both ways. */
static void
meter(enum pump_side name, const char *limit, uint64_t rate, bool payload, uint16_t overhead)
{
	uint64_t burst = rate / 200 > BURST ? rate / 200 : BURST;
	struct limit_spec spec = {
		.name = limit, .weight = 1, .rate = { rate, rate }, .burst = { burst, burst }
	};
	struct side *side = &rig.pump.side[name];
	struct limit_who who = { .connection = 1 };
	uint64_t now_ns = clock_now_ns();
	struct failure why;

	rig.limit[name] = limits_add(rig.limits, &spec, now_ns, &why);
	assert_non_null(rig.limit[name]);
	assert_int_equal(limits_resolve(rig.limit[name], &who, now_ns, &rig.node[name], &why), 0);
	for (int i = 0; i < 2; i++) {
		struct meter *at = &rig.meter[name][i];
		at->overhead_bytes = overhead;
		at->segment_bytes = 1448;
		assert_int_equal(limits_flow_open(&at->flow, &rig.worker, rig.node[name],
						  (enum limit_direction)i, now_ns, &why),
				 0);
	}
	struct meter *up = &rig.meter[name][LIMIT_UP], *down = &rig.meter[name][LIMIT_DOWN];
	if (payload) {
		side->core_meter[FLOW_UP] = up;
		side->core_meter[FLOW_DOWN] = down;
		return;
	}
	side->in_meter = name == SIDE_NEAR ? up : down;
	side->out_meter = name == SIDE_NEAR ? down : up;
}

static void
close_rig(void)
{
	uint64_t now_ns = clock_now_ns();

	pump_close(&rig.pump);
	for (int side = 0; side < 2; side++) {
		for (int i = 0; i < 2; i++)
			limits_flow_close(&rig.meter[side][i].flow, now_ns);
		limits_release(rig.node[side], now_ns);
		rig.pump.side[side].endpoint.kind->close(&rig.pump.side[side].endpoint);
		rig.peers[side].endpoint.kind->close(&rig.peers[side].endpoint);
		evbuffer_free(rig.peers[side].say);
		evbuffer_free(rig.peers[side].heard);
	}
	limits_worker_close(&rig.worker);
	limits_close(rig.limits);
	event_base_loop(rig.loop.base, EVLOOP_NONBLOCK);
	assert_int_equal(rig.loop.kept_bytes, 0);
	loop_close(&rig.loop);
}

static void
act(struct peer *peer)
{
	struct endpoint *endpoint = &peer->endpoint;
	struct failure why;
	size_t moved;

	endpoint->writable = true;
	while (evbuffer_get_length(peer->say) &&
	       endpoint->kind->write(endpoint, peer->say, SIZE_MAX, &moved, &why) == ENDPOINT_MOVED)
		;
	endpoint->readable = true;
	while (!peer->deaf &&
	       endpoint->kind->read(endpoint, peer->heard, 65536, &moved, &why) == ENDPOINT_MOVED)
		;
}

/* Whoever does not wait for a limit holds nothing, unless only the turn is over. */
static void
check_meters(void)
{
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		const struct flow *flow = &rig.pump.flow[name];
		bool limited = flow->waiting.cause == WAIT_LIMIT;
		rig.limited += limited;
		if (limited)
			assert_non_null(flow->waiting.limit);
		for (int side = 0; side < 2; side++) {
			const struct limit_flow *at = &rig.meter[side][name].flow;
			if (flow->waiting.cause == WAIT_TURN)
				continue;
			bool is_first_of_two = (rig.pump.side[SIDE_NEAR].core_meter[0] &&
						rig.pump.side[SIDE_FAR].core_meter[0]) ||
					       rig.loop.kept_most;
			assert_true(!at->granted || at->asked || (limited && is_first_of_two));
			assert_true(limited || !at->asked);
		}
		size_t kept = flow->store ? evbuffer_get_length(flow->store) : 0;
		kept += flow->paid ? evbuffer_get_length(flow->paid) : 0;
		if (kept > rig.most_kept)
			rig.most_kept = kept;
	}
}

static void
step(void)
{
	struct failure why;
	struct limit_flow *flow;

	act(&rig.peers[SIDE_NEAR]);
	act(&rig.peers[SIDE_FAR]);
	limits_run(&rig.worker, clock_now_ns());
	while ((flow = limits_next(&rig.worker)))
		;
	for (int side = 0; side < 2; side++) {
		rig.pump.side[side].endpoint.readable = true;
		rig.pump.side[side].endpoint.writable = true;
	}
	assert_int_equal(pump_run(&rig.pump, &why), PUMP_GOING);
	check_meters();
	event_base_loop(rig.loop.base, EVLOOP_NONBLOCK);
}

/* The client says BYTES, and the target too; both hear all of it. */
static void
cross(void)
{
	unsigned char *text = malloc(BYTES);
	uint64_t began_ns = clock_now_ns();

	for (size_t i = 0; i < BYTES; i++)
		text[i] = (unsigned char)(i * 7 + i / 251);
	for (int side = 0; side < 2; side++)
		evbuffer_add(rig.peers[side].say, text, BYTES);
	while (evbuffer_get_length(rig.peers[0].heard) < BYTES ||
	       evbuffer_get_length(rig.peers[1].heard) < BYTES) {
		assert_true(clock_now_ns() - began_ns < 20 * NS_PER_S);
		step();
	}
	for (int side = 0; side < 2; side++) {
		assert_int_equal(evbuffer_get_length(rig.peers[side].heard), BYTES);
		assert_memory_equal(evbuffer_pullup(rig.peers[side].heard, -1), text, BYTES);
	}
	free(text);
	assert_true(rig.limited > 0);
	/* A burst, then by rate. */
	if (rig.node[0])
		assert_true(clock_now_ns() - began_ns >= (BYTES - BURST) * NS_PER_S / RATE);
}

static uint64_t
total(enum pump_side side, enum limit_direction direction)
{
	struct limit_report report;
	limits_report(rig.node[side], clock_now_ns(), &report);
	return report.direction[direction].total;
}

static bool
open_stacks(void)
{
#ifdef PENSTOCK_TEST_DOUBLES
	static struct facts facts;
	const struct filter_type *type = registry_find("stutter");
	static void *conf;
	struct failure why;

	if (!conf)
		conf = calloc(1, type->conf_bytes + 1);
	struct chain_link link = { type, conf };
	struct chain chain = { .at = &link, .count = 1 };
	for (int side = 0; side < 2; side++)
		assert_int_equal(stack_open(&rig.pump.side[side].stack, &chain,
					    side ? FILTER_FAR : FILTER_NEAR, &facts, &why),
				 0);
	return true;
#else
	return false; /* there is no filter that needs nothing */
#endif
}

static void
each_byte_is_paid_for_where_it_is_counted(void **state)
{
	(void)state;
	/* Bits: near socket, far socket, near metered, far metered, payload, filters, pipes. */
	for (int way = 0; way < 128; way++) {
		bool near = way & 4, far = way & 8, payload = way & 16;
		if (!near && !far)
			continue;
		open_rig(way & 1, way & 2);
		rig.loop.pipes_most = way & 64 ? 4 : 0;
		if (way & 32)
			open_stacks();
		if (near)
			meter(SIDE_NEAR, "near", RATE, payload, 0);
		if (far)
			meter(SIDE_FAR, "far", near ? RATE * 5 / 4 : RATE, payload, 0);
		if (!near)
			rig.node[SIDE_NEAR] = NULL;
		cross();
		for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++)
			for (int i = 0; rig.node[side] && i < 2; i++)
				assert_int_equal(total(side, (enum limit_direction)i), BYTES);
		close_rig();
	}
}

static void
overhead_is_paid_for_too(void **state)
{
	(void)state;
	open_rig(true, true);
	meter(SIDE_NEAR, "near", RATE, false, 52);
	cross();
	/* At least what whole segments cost; more where a piece ended before its segment did. */
	uint64_t least = BYTES + BYTES / 1448 * 52;
	for (int i = 0; i < 2; i++) {
		uint64_t paid = total(SIDE_NEAR, (enum limit_direction)i);
		assert_true(paid >= least && paid <= least + least / 20);
	}
	close_rig();
}

/* A throttled client does not fill the memory: what it cannot get yet stays with the target's kernel. */
static void
what_may_not_be_written_is_not_read(void **state)
{
	(void)state;
	open_rig(true, true);
	meter(SIDE_NEAR, "near", 1000000, false, 0);
	evbuffer_add(rig.peers[SIDE_FAR].say, zeros, BYTES);
	for (int i = 0; i < 100; i++)
		step();
	assert_true(rig.pump.flow[FLOW_DOWN].bytes >= 70000);
	assert_int_equal(rig.most_kept, 0);
	assert_int_equal(rig.pump.flow[FLOW_DOWN].waiting.cause, WAIT_LIMIT);
	assert_string_equal(rig.pump.flow[FLOW_DOWN].waiting.limit, "near");
	assert_true(pump_is_limited(&rig.pump));
	close_rig();
}

/* Through buffers, under a limit that it never has to wait for, a flow is read in pieces as large as without one;
 * under one that it waits for, what was read and may not go on is little. */
static void
a_far_limit_does_not_cut_reads(void **state)
{
	(void)state;
	for (int is_far = 0; is_far < 2; is_far++) {
		const struct flow *down = &rig.pump.flow[FLOW_DOWN];
		open_rig(false, true);
		meter(SIDE_NEAR, "near", is_far ? 1000 * RATE : 4 * RATE, false, 0);
		while (down->bytes < 20 * BYTES) {
			if (evbuffer_get_length(rig.peers[SIDE_FAR].say) < BYTES)
				evbuffer_add(rig.peers[SIDE_FAR].say, zeros, BYTES);
			/* Now and then somebody does not listen, and what was read stays. */
			rig.peers[SIDE_NEAR].deaf =
				down->bytes > 4 * BYTES && !rig.peers[SIDE_NEAR].deaf;
			step();
		}
		if (is_far)
			assert_true(rig.most_kept > 65536 && rig.most_kept <= BLOCK_BYTES);
		else
			assert_true(rig.most_kept <= 65536);
		rig.peers[SIDE_NEAR].deaf = false;
		close_rig();
	}
}

/* Until bytes wait there. */
static void
step_until_held(struct evbuffer *const *held)
{
	uint64_t began_ns = clock_now_ns();

	while (!*held) {
		assert_true(clock_now_ns() - began_ns < 20 * NS_PER_S);
		step();
	}
}

/* A limit that counts payload goes, or comes, by a reload while bytes wait in the core. */
static void
a_core_limit_comes_and_goes(void **state)
{
	(void)state;
	const size_t size = 3 * BYTES; /* more than fits into everything behind the core */
	/* Bits: near socket, far socket, filters, it comes. */
	for (int way = 0; way < 16; way++) {
		struct meter *meters[2];
		struct side *near = &rig.pump.side[SIDE_NEAR];
		unsigned char *text = malloc(size);

		for (size_t i = 0; i < size; i++)
			text[i] = (unsigned char)(i * 7 + i / 251);
		open_rig(way & 1, way & 2);
		bool is_filtered = way & 4 && open_stacks();
		meter(SIDE_NEAR, "near", RATE, true, 0);
		memcpy(meters, near->core_meter, sizeof(meters));
		if (way & 8)
			memset(near->core_meter, 0, sizeof(near->core_meter));
		evbuffer_add(rig.peers[SIDE_NEAR].say, text, size);
		rig.peers[SIDE_FAR].deaf = true;
		struct flow *up = &rig.pump.flow[FLOW_UP];
		step_until_held(is_filtered ? &rig.pump.side[SIDE_FAR].out
				: way & 8   ? &up->store
					    : &up->paid);
		for (int i = 0; i < 2; i++) {
			near->core_meter[i] = way & 8 ? meters[i] : NULL;
			meter_rest(meters[i]);
		}
		rig.peers[SIDE_FAR].deaf = false;
		uint64_t began_ns = clock_now_ns();
		while (evbuffer_get_length(rig.peers[SIDE_FAR].heard) < size) {
			assert_true(clock_now_ns() - began_ns < 20 * NS_PER_S);
			step();
		}
		assert_memory_equal(evbuffer_pullup(rig.peers[SIDE_FAR].heard, -1), text, size);
		free(text);
		close_rig();
	}
}

/* At the cap of the memory bytes need both sides' tokens at once. Beside others at both limits each of them is
 * waited for, and the first is not given back meanwhile. */
static void
two_limits_that_others_want_too_are_no_trap(void **state)
{
	struct limit_flow rivals[2] = { { .second = 0 } };
	struct flow *up = &rig.pump.flow[FLOW_UP];
	(void)state;

	open_rig(true, true);
	rig.loop.kept_most = 1;
	rig.loop.kept_bytes = 1; /* somebody else's */
	meter(SIDE_NEAR, "near", RATE, false, 0);
	meter(SIDE_FAR, "far", RATE, false, 0);
	for (int side = 0; side < 2; side++)
		assert_int_equal(limits_flow_open(&rivals[side], &rig.worker, rig.node[side],
						  LIMIT_UP, clock_now_ns(), NULL),
				 0);
	evbuffer_add(rig.peers[SIDE_NEAR].say, zeros, BYTES);
	uint64_t began_ns = clock_now_ns();
	while (up->bytes < BYTES / 2) {
		uint64_t bytes;
		assert_true(clock_now_ns() - began_ns < 10 * NS_PER_S);
		for (int side = 0; side < 2; side++)
			while ((bytes = limits_take(&rivals[side], 1 << 20, clock_now_ns())))
				limits_spend(&rivals[side], bytes);
		step();
		for (int side = 0; side < 2; side++)
			if (rivals[side].granted && !rivals[side].asked)
				limits_spend(&rivals[side], rivals[side].granted);
	}
	for (int side = 0; side < 2; side++)
		limits_flow_close(&rivals[side], clock_now_ns());
	rig.loop.kept_bytes--;
	close_rig();
}

/* Tokens for a sink that takes nothing are not kept from others. */
static void
a_blocked_sink_holds_no_tokens(void **state)
{
	(void)state;
	open_rig(true, true);
	meter(SIDE_NEAR, "near", RATE, false, 0);
	rig.peers[SIDE_NEAR].deaf = true;
	evbuffer_add(rig.peers[SIDE_FAR].say, zeros, BYTES);
	uint64_t began_ns = clock_now_ns();
	while (rig.pump.flow[FLOW_DOWN].waiting.cause != WAIT_NEAR_WRITABLE &&
	       clock_now_ns() - began_ns < 10 * NS_PER_S)
		step();
	assert_int_equal(rig.pump.flow[FLOW_DOWN].waiting.cause, WAIT_NEAR_WRITABLE);
	assert_int_equal(total(SIDE_NEAR, LIMIT_DOWN), rig.pump.flow[FLOW_DOWN].bytes);
	close_rig();
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_byte_is_paid_for_where_it_is_counted),
		cmocka_unit_test(overhead_is_paid_for_too),
		cmocka_unit_test(what_may_not_be_written_is_not_read),
		cmocka_unit_test(a_far_limit_does_not_cut_reads),
		cmocka_unit_test(a_core_limit_comes_and_goes),
		cmocka_unit_test(two_limits_that_others_want_too_are_no_trap),
		cmocka_unit_test(a_blocked_sink_holds_no_tokens),
	};
	return cmocka_run_group_tests_name("pump_limits", tests, NULL, NULL);
}
