/*
 * The pump's bounded turn: however much a source has ready, one run moves a bounded part of it. The calls
 * that move bytes are defined here: a source that never runs dry and a sink that takes everything, whatever
 * the kernel would have room for.
 */
#include "clock.h"
#include "pump.h"

#include <errno.h>
#include <event2/buffer.h>
#include <fcntl.h>
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

#define MOST_BYTES ((size_t)3 * 1024 * 1024)
#define GIVE_BYTES (4 * MOST_BYTES) /* then nothing more is ready, for a pump without a bound */
#define SWELL      1000             /* a filter that gives so many bytes for each it takes */

static struct {
	int near[2], far[2];
	size_t give_bytes, given_bytes, taken_bytes;
	unsigned int splices;
} line;

static bool
is_end(int fd)
{
	return fd == line.near[0] || fd == line.far[0];
}

static ssize_t
give(size_t bytes)
{
	if (line.given_bytes >= line.give_bytes) {
		errno = EAGAIN;
		return -1;
	}
	if (bytes > line.give_bytes - line.given_bytes)
		bytes = line.give_bytes - line.given_bytes;
	line.given_bytes += bytes;
	return (ssize_t)bytes;
}

static ssize_t
take(ssize_t bytes)
{
	if (bytes > 0)
		line.taken_bytes += (size_t)bytes;
	return bytes;
}

ssize_t
recv(int fd, void *to, size_t most, int flags)
{
	(void)flags;
	assert_true(is_end(fd));
	memset(to, 'x', most);
	return give(most);
}

ssize_t
send(int fd, const void *from, size_t bytes, int flags)
{
	(void)from;
	(void)flags;
	assert_true(is_end(fd));
	return take((ssize_t)bytes);
}

ssize_t
sendmsg(int fd, const struct msghdr *message, int flags)
{
	size_t bytes = 0;
	(void)flags;
	assert_true(is_end(fd));
	for (size_t i = 0; i < message->msg_iovlen; i++)
		bytes += message->msg_iov[i].iov_len;
	return take((ssize_t)bytes);
}

/* The pipe is a real one. */
ssize_t
splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t most, unsigned int flags)
{
	static unsigned char block[MOST_BYTES];
	(void)flags;
	assert_true(!in_at && !out_at && most <= sizeof(block));
	line.splices++;
	if (out == line.far[0])
		return take(read(in, block, most));
	assert_int_equal(in, line.near[0]);
	ssize_t n = give(most);
	return n > 0 ? write(out, block, most) : n;
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

static void *
swell_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	(void)conf;
	(void)side;
	(void)facts;
	(void)why;
	return calloc(1, sizeof(size_t));
}

static enum filter_result
swell_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	static const unsigned char block[64 * 1024];
	size_t *owed_bytes = state, taken = evbuffer_get_length(io->src), given = *owed_bytes;

	if (flow == FILTER_OUT)
		return FILTER_REST;
	if (taken > 1024)
		taken = 1024;
	if (given)
		taken = 0;
	evbuffer_drain(io->src, taken);
	*owed_bytes += taken * SWELL;
	if (given > io->room_bytes)
		given = io->room_bytes;
	if (given > sizeof(block))
		given = sizeof(block);
	evbuffer_add(io->dst, block, given);
	*owed_bytes -= given;
	return taken || given ? FILTER_MORE : FILTER_REST;
}

static const struct filter_type swell = {
	.name = "swell", .open = swell_open, .step = swell_step, .close = free
};

static enum filter_result
pass_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	size_t bytes = evbuffer_get_length(io->src);
	(void)state;
	(void)flow;
	if (bytes > io->room_bytes)
		bytes = io->room_bytes;
	return evbuffer_remove_buffer(io->src, io->dst, bytes) > 0 ? FILTER_MORE : FILTER_REST;
}

static const struct filter_type pass = {
	.name = "pass", .open = swell_open, .step = pass_step, .close = free
};

static struct loop loop;
static struct pump pump;

static void
begin(unsigned int pipes_most, const struct filter_type *filter)
{
	static struct facts facts;
	static struct chain_link link;
	struct failure why;

	memset(&line, 0, sizeof(line));
	memset(&pump, 0, sizeof(pump));
	link.type = filter;
	for (int i = 0; i < 2; i++)
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
					    i ? line.far : line.near),
				 0);
	assert_int_equal(loop_open(&loop, &why), 0);
	loop.pipes_most = pipes_most;
	pump_open(&pump, &loop, WAIT_CONNECT, clock_now_ns());
	pump.turn.run = on_turn;
	endpoint_open_socket(&pump.side[SIDE_NEAR].endpoint, &loop, line.near[0], true);
	endpoint_open_socket(&pump.side[SIDE_FAR].endpoint, &loop, line.far[0], true);
	pump.side[SIDE_NEAR].endpoint.on_ready = on_ready;
	pump.side[SIDE_FAR].endpoint.on_ready = on_ready;
	if (filter)
		assert_int_equal(stack_open(&pump.side[SIDE_NEAR].stack,
					    &(struct chain){ &link, 1 }, FILTER_NEAR, &facts, &why),
				 0);
}

static void
end(void)
{
	pump_close(&pump);
	for (int side = SIDE_NEAR; side <= SIDE_FAR; side++)
		pump.side[side].endpoint.kind->close(&pump.side[side].endpoint);
	loop_close(&loop);
	close(line.near[1]);
	close(line.far[1]);
}

static void
one_run_moves_a_bounded_part(unsigned int pipes_most, bool swells)
{
	struct failure why;

	begin(pipes_most, swells ? &swell : NULL);
	line.give_bytes = swells ? GIVE_BYTES / 64 : GIVE_BYTES;
	pump.side[SIDE_NEAR].endpoint.readable = true;
	assert_int_equal(pump_run(&pump, &why), PUMP_GOING);
	uint64_t moved = pump.flow[FLOW_UP].bytes;
	assert_true(moved > 0);
	assert_true(moved <= MOST_BYTES);
	assert_int_equal(pump.flow[FLOW_UP].waiting.cause, WAIT_TURN); /* not for either end */
	assert_int_equal(line.taken_bytes, moved);
	assert_true((line.splices > 0) == (pipes_most > 0));
	if (swells)
		assert_true(
			pump.turn.queued); /* no socket would tell of what waits in the filter */
	else
		assert_int_equal(line.given_bytes, moved);

	end();
}

static void
test_copying(void **state)
{
	(void)state;
	one_run_moves_a_bounded_part(0, false);
}

static void
test_splicing(void **state)
{
	(void)state;
	one_run_moves_a_bounded_part(4, false);
}

/* A decompression bomb: little is read, and a thousand times as much is to be written. */
static void
test_swelling(void **state)
{
	(void)state;
	one_run_moves_a_bounded_part(0, true);
}

/* What the loop was told of a run that reads so much there. */
static enum loop_run
run_with(enum pump_side from, size_t bytes)
{
	struct failure why;

	loop.runs = 0;
	line.given_bytes = 0;
	line.give_bytes = bytes;
	pump.side[from].endpoint.readable = true;
	assert_int_equal(pump_run(&pump, &why), PUMP_GOING);
	assert_int_equal(line.given_bytes, bytes);
	for (enum loop_run run = LOOP_RUN_MESSAGE; run <= LOOP_RUN_PIECE; run++)
		if (loop.runs == 1u << run)
			return run;
	fail_msg("one run was %u", loop.runs);
	return LOOP_RUN_MESSAGE;
}

static void
expect_then(enum loop_run first, size_t bytes, enum loop_run run)
{
	for (int i = 0; i < 32; i++)
		assert_int_equal(run_with(SIDE_NEAR, bytes), first);
	assert_int_equal(run_with(SIDE_NEAR, bytes), run);
}

static void
test_bulk_comes_in_pieces(void **state)
{
	size_t piece = (size_t)16 * 1024;
	(void)state;
	begin(0, &pass);
	expect_then(LOOP_RUN_MESSAGE, piece, LOOP_RUN_PIECE);
	assert_int_equal(run_with(SIDE_NEAR, 128 * 1024), LOOP_RUN_BULK);
	assert_int_equal(run_with(SIDE_NEAR, piece), LOOP_RUN_PIECE);
	/* Whoever is answered is not bulk. */
	assert_int_equal(run_with(SIDE_FAR, 10), LOOP_RUN_MESSAGE);
	expect_then(LOOP_RUN_MESSAGE, piece, LOOP_RUN_PIECE);
	/* Little is no reason to rest, and whose it is has no need to be answered at once. */
	assert_int_equal(run_with(SIDE_NEAR, piece - 1), LOOP_RUN_BULK);
	expect_then(LOOP_RUN_BULK, piece, LOOP_RUN_PIECE);
	/* A rest that was good for nothing. */
	loop.has_rested = true;
	assert_int_equal(run_with(SIDE_NEAR, 2 * piece), LOOP_RUN_PIECE);
	assert_int_equal(run_with(SIDE_NEAR, piece), LOOP_RUN_BULK);
	loop.has_rested = false;
	expect_then(LOOP_RUN_BULK, piece, LOOP_RUN_PIECE);
	assert_int_equal(run_with(SIDE_FAR, 10), LOOP_RUN_MESSAGE);
	assert_int_equal(run_with(SIDE_NEAR, piece), LOOP_RUN_MESSAGE);
	end();
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_copying),
		cmocka_unit_test(test_splicing),
		cmocka_unit_test(test_swelling),
		cmocka_unit_test(test_bulk_comes_in_pieces),
	};
	return cmocka_run_group_tests_name("pump's turn", tests, NULL, NULL);
}
