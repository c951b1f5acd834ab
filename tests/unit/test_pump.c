/*
 * The pump between two pairs or two socket pairs, single-stepped: no byte lost or added, ends and
 * breaks in order, bounded memory, waits that add up; and all of it with filters on both sides.
 */
#include "clock.h"
#include "filters/registry.h"
#include "pair.h"
#include "pump.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

/* A peer of the connection: says `say`, then ends; remembers what it heard. */
struct peer {
	struct endpoint endpoint;
	struct evbuffer *say, *heard;
	bool ends;  /* once all is said */
	bool ended; /* said so */
	bool deaf;  /* does not read */
	bool heard_end, heard_break;
};

struct rig {
	uint64_t opened_ns;
	struct loop loop;
	struct pump pump;
	struct peer client, target;
	enum pump_result result;
	struct failure why;
	int runs;
};

static void
run(struct rig *rig)
{
	if (rig->result != PUMP_GOING)
		return;
	rig->runs++;
	rig->result = pump_run(&rig->pump, &rig->why);
	if (rig->result == PUMP_BROKEN)
		pump_push(&rig->pump);
	if (rig->result != PUMP_GOING) /* an owner would close them now */
		for (int side = SIDE_NEAR; side <= SIDE_FAR; side++) {
			rig->pump.side[side].endpoint.want_readable = false;
			rig->pump.side[side].endpoint.want_writable = false;
		}
}

static void
on_side_ready(struct endpoint *endpoint)
{
	run(endpoint->owner);
}

static void
on_turn(struct task *task)
{
	run((struct rig *)((char *)task - offsetof(struct rig, pump.turn)));
}

static void
peer_act(struct peer *peer)
{
	struct endpoint *endpoint = &peer->endpoint;
	struct failure why;
	size_t moved;

	if (!endpoint->kind)
		return;
	while (endpoint->writable && evbuffer_get_length(peer->say))
		if (endpoint->kind->write(endpoint, peer->say, SIZE_MAX, &moved, &why) !=
		    ENDPOINT_MOVED)
			break;
	if (peer->ends && !peer->ended && !evbuffer_get_length(peer->say)) {
		endpoint->kind->shutdown(endpoint);
		peer->ended = true;
	}
	while (endpoint->readable && !peer->deaf && !peer->heard_end && !peer->heard_break) {
		enum endpoint_result result =
			endpoint->kind->read(endpoint, peer->heard, 65536, &moved, &why);
		peer->heard_end |= result == ENDPOINT_END;
		peer->heard_break |= result == ENDPOINT_BROKEN;
		if (result != ENDPOINT_MOVED)
			break;
	}
	endpoint->want_readable = !peer->deaf && !peer->heard_end && !peer->heard_break;
	endpoint->want_writable = evbuffer_get_length(peer->say) != 0;
	assert_int_equal(endpoint->kind->watch(endpoint, &why), 0);
}

static void
on_peer_ready(struct endpoint *endpoint)
{
	peer_act(endpoint->owner);
}

static void
open_sockets(struct rig *rig, struct endpoint *a, struct endpoint *b)
{
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds),
			 0);
	endpoint_open_socket(a, &rig->loop, fds[0], true);
	endpoint_open_socket(b, &rig->loop, fds[1], true);
	a->readable = b->readable = true;
}

static void
open_peer(struct rig *rig, struct peer *peer, enum pump_side side, bool sockets)
{
	struct endpoint *endpoint = &rig->pump.side[side].endpoint;

	if (sockets)
		open_sockets(rig, &peer->endpoint, endpoint);
	else
		assert_int_equal(pair_open(&peer->endpoint, endpoint, &rig->loop, &rig->why), 0);
	endpoint->owner = rig;
	endpoint->on_ready = on_side_ready;
	peer->endpoint.owner = peer;
	peer->endpoint.on_ready = on_peer_ready;
	peer->say = evbuffer_new();
	peer->heard = evbuffer_new();
}

static struct rig *
rig_open(bool near_socket, bool far_socket)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	assert_non_null(rig);
	assert_int_equal(loop_open(&rig->loop, &rig->why), 0);
	rig->loop.pipes_most = 4;
	rig->opened_ns = clock_now_ns();
	pump_open(&rig->pump, &rig->loop, WAIT_CONNECT, rig->opened_ns);
	rig->pump.turn.run = on_turn;
	open_peer(rig, &rig->client, SIDE_NEAR, near_socket);
	open_peer(rig, &rig->target, SIDE_FAR, far_socket);
	return rig;
}

static void
close_endpoint(struct endpoint *endpoint)
{
	if (endpoint->kind)
		endpoint->kind->close(endpoint);
}

static void
rig_close(struct rig *rig)
{
	pump_close(&rig->pump);
	close_endpoint(&rig->pump.side[SIDE_NEAR].endpoint);
	close_endpoint(&rig->pump.side[SIDE_FAR].endpoint);
	close_endpoint(&rig->client.endpoint);
	close_endpoint(&rig->target.endpoint);
	evbuffer_free(rig->client.say);
	evbuffer_free(rig->client.heard);
	evbuffer_free(rig->target.say);
	evbuffer_free(rig->target.heard);
	event_base_loop(rig->loop.base, EVLOOP_NONBLOCK);
	assert_int_equal(rig->loop.kept_bytes, 0);
	loop_close(&rig->loop);
	free(rig);
}

/* Each moment of a flow that has not ended was accounted, to one thing. */
static void
expect_accounted(const struct rig *rig)
{
	uint64_t life_ns = rig->pump.clock_ns - rig->opened_ns;

	for (enum pump_flow name = FLOW_UP; name <= FLOW_DOWN; name++) {
		const struct flow *flow = &rig->pump.flow[name];
		uint64_t sum_ns = 0;
		for (int cause = 0; cause < WAITS; cause++) {
			assert_true(flow->spent_ns[cause] <= life_ns);
			sum_ns += flow->spent_ns[cause];
		}
		assert_true(flow->state == FLOW_ENDED ? sum_ns <= life_ns : sum_ns == life_ns);
	}
}

/* Turns the loop until nothing happens any more. */
static void
settle(struct rig *rig)
{
	int quiet = 0;

	peer_act(&rig->client);
	peer_act(&rig->target);
	run(rig);
	for (int turns = 0; quiet < 3; turns++) {
		int runs = rig->runs;
		size_t said =
			evbuffer_get_length(rig->client.say) + evbuffer_get_length(rig->target.say);
		assert_true(turns < 100000); /* else it spins */
		loop_look(&rig->loop);
		event_base_loop(rig->loop.base, EVLOOP_NONBLOCK);
		bool same =
			runs == rig->runs && said == evbuffer_get_length(rig->client.say) +
							     evbuffer_get_length(rig->target.say);
		quiet = same ? quiet + 1 : 0;
	}
	expect_accounted(rig);
}

static unsigned char *
random_bytes(size_t count, unsigned int seed)
{
	unsigned char *bytes = malloc(count);
	assert_non_null(bytes);
	for (size_t i = 0; i < count; i++) {
		seed = seed * 1103515245U + 12345U;
		bytes[i] = (unsigned char)(seed >> 16);
	}
	return bytes;
}

static void
assert_heard(struct peer *peer, const unsigned char *bytes, size_t count)
{
	assert_int_equal(evbuffer_get_length(peer->heard), count);
	if (count)
		assert_memory_equal(evbuffer_pullup(peer->heard, -1), bytes, count);
}

static void
both_ways(struct rig *rig, size_t up, size_t down)
{
	unsigned char *upwards = random_bytes(up, 1), *downwards = random_bytes(down, 2);

	evbuffer_add(rig->client.say, upwards, up);
	evbuffer_add(rig->target.say, downwards, down);
	rig->client.ends = rig->target.ends = true;
	settle(rig);
	assert_int_equal(rig->result, PUMP_ENDED);
	close_endpoint(
		&rig->pump.side[SIDE_NEAR].endpoint); /* what ended last is told by closing */
	close_endpoint(&rig->pump.side[SIDE_FAR].endpoint);
	settle(rig);
	assert_heard(&rig->target, upwards, up);
	assert_heard(&rig->client, downwards, down);
	assert_true(rig->target.heard_end && rig->client.heard_end);
	assert_int_equal(rig->pump.flow[FLOW_UP].bytes, up);
	assert_int_equal(rig->pump.flow[FLOW_DOWN].bytes, down);
	free(upwards);
	free(downwards);
}

static const size_t sizes[] = { 0, 1, 64, 65536, 3000001 };
#define SIZES (sizeof(sizes) / sizeof(sizes[0]))

static void
test_all_arrives(void **state)
{
	(void)state;
	for (int kinds = 0; kinds < 4; kinds++)
		for (size_t i = 0; i < SIZES; i++) {
			struct rig *rig = rig_open(kinds & 1, kinds & 2);
			both_ways(rig, sizes[i], sizes[SIZES - 1 - i]);
			rig_close(rig);
		}
}

/* The end of a socket that is there with the last bytes is passed on with them. */
static void
test_an_end_that_came_with_the_bytes_goes_with_them(void **state)
{
	(void)state;
	struct rig *rig = rig_open(true, true);

	settle(rig);
	int runs = rig->runs;
	evbuffer_add(rig->client.say, "last", 4);
	rig->client.ends = true;
	peer_act(&rig->client);
	while (!rig->pump.flow[FLOW_UP].bytes)
		event_base_loop(rig->loop.base, EVLOOP_ONCE);
	assert_int_equal(rig->runs, runs + 1);
	assert_int_equal(rig->pump.flow[FLOW_UP].state, FLOW_ENDED);
	settle(rig);
	assert_heard(&rig->target, (const unsigned char *)"last", 4);
	assert_true(rig->target.heard_end);
	rig_close(rig);
}

static void
test_splices_bulk_and_gives_the_pipe_back(void **state)
{
	(void)state;
	struct rig *rig = rig_open(true, true);
	both_ways(rig, 20000000, 5);
	assert_int_equal(rig->loop.pipes_made, 1);
	assert_non_null(rig->loop.pipes);
	rig_close(rig);
}

static void
test_copies_where_there_is_no_pipe(void **state)
{
	(void)state;
	struct rig *rig = rig_open(true, true);
	rig->loop.pipes_most = 0;
	both_ways(rig, 20000000, 5);
	assert_int_equal(rig->loop.pipes_made, 0);
	rig_close(rig);
}

static void
test_keeps_nothing_at_the_cap_of_memory(void **state)
{
	(void)state;
	struct rig *rig = rig_open(true, true);
	unsigned char *bytes = random_bytes(3000000, 3);

	rig->loop.pipes_most = 0;
	rig->loop.kept_most = 1;
	rig->loop.kept_bytes = 1; /* somebody else's */
	evbuffer_add(rig->client.say, bytes, 3000000);
	rig->client.ends = true;
	rig->target.deaf = true;
	settle(rig);
	assert_int_equal(rig->pump.flow[FLOW_UP].waiting.cause, WAIT_FAR_WRITABLE);
	assert_null(rig->pump.flow[FLOW_UP].store);
	assert_int_equal(rig->loop.kept_bytes, 1);
	rig->target.deaf = false;
	settle(rig);
	assert_heard(&rig->target, bytes, 3000000);
	assert_true(rig->target.heard_end);
	rig->loop.kept_bytes = 0;
	free(bytes);
	rig_close(rig);
}

static void
test_a_deaf_sink_stops_the_source(void **state)
{
	(void)state;
	for (int kinds = 0; kinds < 4; kinds++) {
		struct rig *rig = rig_open(kinds & 1, kinds & 2);
		unsigned char *bytes = random_bytes(5000000, 4);

		evbuffer_add(rig->client.say, bytes, 5000000);
		rig->client.ends = true;
		rig->target.deaf = true;
		settle(rig);
		assert_true(evbuffer_get_length(rig->client.say) > 2000000);
		assert_int_equal(rig->pump.flow[FLOW_UP].waiting.cause, WAIT_FAR_WRITABLE);
		assert_true(pump_is_blocked(&rig->pump));
		rig->target.deaf = false;
		settle(rig);
		assert_heard(&rig->target, bytes, 5000000);
		assert_true(pump_is_half_open(&rig->pump));
		free(bytes);
		rig_close(rig);
	}
}

static void
test_one_end_leaves_the_other_flow_open(void **state)
{
	(void)state;
	for (int kinds = 0; kinds < 4; kinds++) {
		struct rig *rig = rig_open(kinds & 1, kinds & 2);

		rig->client.ends = true;
		settle(rig);
		assert_true(rig->target.heard_end);
		assert_false(rig->client.heard_end);
		assert_int_equal(rig->result, PUMP_GOING);
		evbuffer_add(rig->target.say, "late", 4);
		settle(rig);
		assert_heard(&rig->client, (const unsigned char *)"late", 4);
		rig->target.ends = true;
		settle(rig);
		assert_int_equal(rig->result, PUMP_ENDED);
		rig_close(rig);
	}
}

static void
test_an_abort_breaks_the_side_it_came_from(void **state)
{
	(void)state;
	struct rig *rig = rig_open(false, false);

	settle(rig);
	rig->client.endpoint.kind->abort(&rig->client.endpoint);
	settle(rig);
	assert_int_equal(rig->result, PUMP_BROKEN);
	assert_int_equal(rig->pump.broken_side, SIDE_NEAR);
	assert_int_equal(rig->why.kind, FAILURE_RESET);
	assert_false(rig->target.heard_end);
	rig_close(rig);
}

/* The target answers early and goes: what it said arrives whole, though writing to it fails. */
static void
test_an_early_answer_is_still_an_answer(void **state)
{
	(void)state;
	struct rig *rig = rig_open(false, false);
	unsigned char *bytes = random_bytes(2000000, 5);

	evbuffer_add(rig->client.say, bytes, 2000000);
	rig->target.deaf = true;
	settle(rig);
	evbuffer_add(rig->target.say, "enough", 6);
	peer_act(&rig->target);
	rig->target.endpoint.kind->abort(&rig->target.endpoint);
	settle(rig);
	assert_int_equal(rig->result, PUMP_BROKEN);
	assert_int_equal(rig->pump.broken_side, SIDE_FAR);
	assert_heard(&rig->client, (const unsigned char *)"enough", 6);
	free(bytes);
	rig_close(rig);
}

static void
test_shares_add_up(void **state)
{
	(void)state;
	struct rig *rig = rig_open(true, true);
	char text[PUMP_SHARES_TEXT];
	double sum = 0;

	both_ways(rig, 3000000, 100000);
	for (const char *at = pump_shares(&rig->pump.flow[FLOW_UP], text); at;) {
		const char *percent = strchr(at, '%');
		assert_non_null(percent);
		while (percent[-1] != ' ')
			percent--;
		sum += strtod(percent, NULL);
		at = strchr(at, ',');
		at = at ? at + 1 : NULL;
	}
	assert_true(sum > 99.0 && sum < 101.0);
	rig_close(rig);
}

static void
test_one_run_moves_a_bounded_number_of_bytes(void **state)
{
	(void)state;
	struct rig *rig = rig_open(true, true);
	unsigned char *bytes = random_bytes(100000, 6);
	uint64_t most = 0;

	for (int i = 0; i < 200; i++) {
		uint64_t before = rig->pump.flow[FLOW_UP].bytes;
		evbuffer_add(rig->client.say, bytes, 100000);
		peer_act(&rig->client);
		rig->pump.side[SIDE_NEAR].endpoint.readable = true;
		run(rig);
		peer_act(&rig->target);
		if (rig->pump.flow[FLOW_UP].bytes - before > most)
			most = rig->pump.flow[FLOW_UP].bytes - before;
		if (rig->result != PUMP_GOING)
			break;
	}
	assert_true(most > 0 && most <= 2 * 1024 * 1024);
	free(bytes);
	rig_close(rig);
}

/* A filter whose handshake never goes on. */
static void *
mute_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	(void)conf;
	(void)side;
	(void)facts;
	(void)why;
	return malloc(1);
}

static enum filter_result
mute_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	(void)state;
	(void)flow;
	(void)io;
	return FILTER_REST;
}

static bool
mute_ready(const void *state)
{
	(void)state;
	return false;
}

static const struct filter_type mute = {
	.name = "mute", .open = mute_open, .step = mute_step, .ready = mute_ready, .close = free
};

static void
give_stack(struct rig *rig, enum pump_side side, struct chain *chain)
{
	static struct facts facts;
	assert_int_equal(stack_open(&rig->pump.side[side].stack, chain,
				    side == SIDE_NEAR ? FILTER_NEAR : FILTER_FAR, &facts,
				    &rig->why),
			 0);
}

/* The client says more than is kept while the target's handshake takes its time: nobody spins. */
static void
test_a_slow_handshake_is_waited_for(void **state)
{
	(void)state;
	for (int kinds = 0; kinds < 4; kinds++) {
		struct rig *rig = rig_open(kinds & 1, kinds & 2);
		unsigned char *bytes = random_bytes(1000000, 4);
		struct chain_link far[] = { { &mute, NULL } };

		give_stack(rig, SIDE_FAR, &(struct chain){ far, 1 });
		evbuffer_add(rig->client.say, bytes, 1000000);
		settle(rig);
		assert_true(evbuffer_get_length(rig->client.say) > 0);
		assert_int_equal(rig->pump.flow[FLOW_UP].waiting.cause, WAIT_HANDSHAKE);
		free(bytes);
		rig_close(rig);
	}
}

#ifdef PENSTOCK_TEST_DOUBLES

static void *
conf_of(const char *name, const char *keyword, uint64_t value)
{
	const struct filter_type *type = registry_find(name);
	char *conf = calloc(1, type->conf_bytes + 1); /* a filter without keywords has none */
	assert_non_null(conf);
	for (const struct keyword *row = type->keywords; row && row->name; row++)
		if (keyword && !strcmp(row->name, keyword))
			memcpy(conf + row->offset, &value, sizeof(value));
	return conf;
}

static void
test_filters_on_both_sides(void **state)
{
	(void)state;
	for (int kinds = 0; kinds < 4; kinds++)
		for (size_t i = 0; i < SIZES; i++) {
			struct rig *rig = rig_open(kinds & 1, kinds & 2);
			void *seven = conf_of("stutter", "seed", 7 + i);
			void *hoard = conf_of("hoard", NULL, 0);
			struct chain_link near[] = { { registry_find("stutter"), seven },
						     { registry_find("hoard"), hoard } };
			struct chain_link far[] = { { registry_find("stutter"), seven } };

			give_stack(rig, SIDE_NEAR, &(struct chain){ near, 2 });
			give_stack(rig, SIDE_FAR, &(struct chain){ far, 1 });
			both_ways(rig, sizes[i], sizes[SIZES - 1 - i]);
			rig_close(rig);
			free(seven);
			free(hoard);
		}
}

static void
test_a_filter_that_fails_breaks_its_side(void **state)
{
	(void)state;
	struct rig *rig = rig_open(true, true);
	void *after = conf_of("fail_after", "bytes", 100000);
	struct chain_link near[] = { { registry_find("fail_after"), after } };
	unsigned char *bytes = random_bytes(200000, 8);

	give_stack(rig, SIDE_NEAR, &(struct chain){ near, 1 });
	evbuffer_add(rig->client.say, bytes, 200000);
	settle(rig);
	assert_int_equal(rig->result, PUMP_BROKEN);
	assert_int_equal(rig->pump.broken_side, SIDE_NEAR);
	size_t heard = evbuffer_get_length(rig->target.heard);
	assert_true(heard <= 100000);
	assert_heard(&rig->target, bytes, heard);
	assert_false(rig->target.heard_end);
	free(bytes);
	rig_close(rig);
	free(after);
}

/* What was read before the reset is passed on, through whatever filters there are. */
static void
test_filters_pass_on_what_came_before_a_reset(void **state)
{
	(void)state;
	for (int sides = 0; sides < 4; sides++)
		for (int kinds = 0; kinds < 4; kinds++) {
			struct rig *rig = rig_open(kinds & 1, kinds & 2);
			void *hoard = conf_of("hoard", NULL, 0);
			struct chain_link links[] = { { registry_find("hoard"), hoard } };
			unsigned char *bytes = random_bytes(100000, 8);

			if (sides & 1)
				give_stack(rig, SIDE_NEAR, &(struct chain){ links, 1 });
			if (sides & 2)
				give_stack(rig, SIDE_FAR, &(struct chain){ links, 1 });
			settle(rig);
			/* Nothing but a reset comes from a UNIX socket whose peer has left bytes unread. */
			if (kinds & 1)
				assert_int_equal(write(rig->pump.side[SIDE_NEAR].endpoint.socket.fd,
						       "unread", 6),
						 6);
			evbuffer_add(rig->client.say, bytes, 100000);
			rig->client.deaf = true;
			peer_act(&rig->client);
			rig->client.endpoint.kind->abort(&rig->client.endpoint);
			settle(rig);
			assert_int_equal(rig->result, PUMP_BROKEN);
			assert_heard(&rig->target, bytes, 100000);
			assert_false(rig->target.heard_end);
			free(bytes);
			rig_close(rig);
			free(hoard);
		}
}

static void
test_an_idle_connection_with_filters_holds_no_buffer(void **state)
{
	(void)state;
	struct rig *rig = rig_open(true, true);
	void *seed = conf_of("stutter", "seed", 9);
	struct chain_link near[] = { { registry_find("stutter"), seed } };

	give_stack(rig, SIDE_NEAR, &(struct chain){ near, 1 });
	evbuffer_add(rig->client.say, "ping", 4);
	settle(rig);
	assert_heard(&rig->target, (const unsigned char *)"ping", 4);
	for (int i = 0; i < 2; i++) {
		assert_null(rig->pump.side[i].in);
		assert_null(rig->pump.side[i].out);
		assert_null(rig->pump.flow[i].store);
	}
	rig_close(rig);
	free(seed);
}

/* What is in memory between two deaf ends, each behind a filter. */
static size_t
held(const struct rig *rig)
{
	size_t bytes = 0;
	for (int i = 0; i < 2; i++) {
		const struct evbuffer *buffers[] = { rig->pump.side[i].in, rig->pump.side[i].out,
						     rig->pump.flow[i].store };
		for (int j = 0; j < 3; j++)
			if (buffers[j])
				bytes += evbuffer_get_length(buffers[j]);
		bytes += stack_kept_bytes(rig->pump.side[i].stack) +
			 stack_held_bytes(rig->pump.side[i].stack);
	}
	return bytes;
}

static void
test_what_filters_make_counts(void **state)
{
	(void)state;
	for (int capped = 0; capped < 2; capped++) {
		struct rig *rig = rig_open(true, true);
		unsigned char *bytes = random_bytes(3000000, 8);
		void *seed = conf_of("stutter", "seed", 3);
		struct chain_link links[] = { { registry_find("stutter"), seed } };
		struct chain chain = { links, 1 };

		give_stack(rig, SIDE_NEAR, &chain);
		give_stack(rig, SIDE_FAR, &chain);
		rig->loop.kept_most = (size_t)1024 * 1024;
		if (capped)
			rig->loop.kept_bytes = rig->loop.kept_most;
		size_t before = rig->loop.kept_bytes;
		rig->target.deaf = true;
		evbuffer_add(rig->client.say, bytes, 3000000);
		settle(rig);
		assert_true(evbuffer_get_length(rig->client.say) > 0);
		assert_true(rig->loop.kept_bytes - before >= held(rig));
		if (capped)
			assert_true(held(rig) < (size_t)32 * 1024);
		else
			assert_true(held(rig) > (size_t)128 * 1024);

		rig->target.deaf = false;
		rig->client.ends = true;
		peer_act(&rig->client);
		peer_act(&rig->target);
		settle(rig);
		assert_heard(&rig->target, bytes, 3000000);
		assert_int_equal(rig->loop.kept_bytes, before);
		rig->loop.kept_bytes -= before;
		rig_close(rig);
		free(seed);
		free(bytes);
	}
}

#endif

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_arrives),
		cmocka_unit_test(test_an_end_that_came_with_the_bytes_goes_with_them),
		cmocka_unit_test(test_splices_bulk_and_gives_the_pipe_back),
		cmocka_unit_test(test_copies_where_there_is_no_pipe),
		cmocka_unit_test(test_keeps_nothing_at_the_cap_of_memory),
		cmocka_unit_test(test_a_deaf_sink_stops_the_source),
		cmocka_unit_test(test_one_end_leaves_the_other_flow_open),
		cmocka_unit_test(test_an_abort_breaks_the_side_it_came_from),
		cmocka_unit_test(test_an_early_answer_is_still_an_answer),
		cmocka_unit_test(test_shares_add_up),
		cmocka_unit_test(test_one_run_moves_a_bounded_number_of_bytes),
		cmocka_unit_test(test_a_slow_handshake_is_waited_for),
#ifdef PENSTOCK_TEST_DOUBLES
		cmocka_unit_test(test_filters_on_both_sides),
		cmocka_unit_test(test_a_filter_that_fails_breaks_its_side),
		cmocka_unit_test(test_filters_pass_on_what_came_before_a_reset),
		cmocka_unit_test(test_an_idle_connection_with_filters_holds_no_buffer),
		cmocka_unit_test(test_what_filters_make_counts),
#endif
	};
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("pump", tests, NULL, NULL);
}
