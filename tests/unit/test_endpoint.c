/*
 * The socket kind of endpoint, over TCP through loopback: what it makes of a peer's reset, which the kernel
 * tells once, and sometimes not at all; and of an end that is there already when bytes are read.
 */
#include "endpoint.h"

#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

struct world {
	struct loop loop;
	struct endpoint endpoint;
	int peer;
};

static void
begin(struct world *world)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memset(world, 0, sizeof(*world));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
	world->peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(world->peer, (struct sockaddr *)&address, sizeof(address)), 0);
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(fd >= 0);
	close(listener);
	assert_int_equal(loop_open(&world->loop, NULL), 0);
	world->loop.pipes_most = 1;
	endpoint_open_socket(&world->endpoint, &world->loop, fd, true);
}

static void
end(struct world *world)
{
	world->endpoint.kind->close(&world->endpoint);
	loop_close(&world->loop);
}

/* Splices until the peer's kernel takes no more; returns the pipe with what is left. */
static struct pipe *
splice_until_short(struct world *world)
{
	static const char bytes[64 * 1024];
	struct pipe *pipe = loop_take_pipe(&world->loop);
	size_t moved;

	assert_non_null(pipe);
	do {
		ssize_t n;
		while ((n = write(pipe->in, bytes, sizeof(bytes))) > 0)
			pipe->held_bytes += (size_t)n;
		assert_int_not_equal(
			endpoint_splice_out(&world->endpoint, pipe, SIZE_MAX, &moved, NULL),
			ENDPOINT_BROKEN);
	} while (!pipe->held_bytes);
	return pipe;
}

/* Takes the error away, as a splice does that meets it between two pieces. */
static void
swallow_the_reset(struct world *world)
{
	int error = 0;
	socklen_t length = sizeof(error);
	assert_int_equal(
		getsockopt(world->endpoint.socket.fd, SOL_SOCKET, SO_ERROR, &error, &length), 0);
	assert_int_not_equal(error, 0);
}

static void
reset(struct world *world)
{
	struct linger now = { .l_onoff = 1 };
	setsockopt(world->peer, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(world->peer);
}

/* Nothing can be written any more; what was sent is read; returns what comes then. */
static enum endpoint_result
what_follows(struct world *world, struct pipe *pipe, const char *sent)
{
	struct failure why;
	char got[16];
	size_t moved;

	world->endpoint.writable = true;
	assert_int_equal(endpoint_splice_out(&world->endpoint, pipe, SIZE_MAX, &moved, &why),
			 ENDPOINT_BROKEN);
	assert_int_equal(endpoint_receive(&world->endpoint, got, sizeof(got), &moved, &why),
			 ENDPOINT_MOVED);
	assert_int_equal(moved, strlen(sent));
	assert_memory_equal(got, sent, moved);
	enum endpoint_result result =
		endpoint_receive(&world->endpoint, got, sizeof(got), &moved, &why);
	loop_give_pipe(&world->loop, pipe);
	return result;
}

static void
reset_told_to_a_splice(void **state)
{
	struct world world;
	(void)state;

	begin(&world);
	struct pipe *pipe = splice_until_short(&world);
	assert_int_equal(write(world.peer, "answer", 6), 6);
	reset(&world);
	assert_int_equal(what_follows(&world, pipe, "answer"), ENDPOINT_BROKEN);
	end(&world);
}

static void
reset_swallowed_by_a_splice(void **state)
{
	struct world world;
	(void)state;

	begin(&world);
	struct pipe *pipe = splice_until_short(&world);
	assert_int_equal(write(world.peer, "answer", 6), 6);
	reset(&world);
	swallow_the_reset(&world);
	assert_int_equal(what_follows(&world, pipe, "answer"), ENDPOINT_BROKEN);
	end(&world);
}

static void
reset_behind_a_fin(void **state)
{
	struct world world;
	(void)state;

	begin(&world);
	struct pipe *pipe = splice_until_short(&world);
	assert_int_equal(write(world.peer, "answer", 6), 6);
	shutdown(world.peer, SHUT_WR);
	reset(&world);
	swallow_the_reset(&world);
	assert_int_equal(what_follows(&world, pipe, "answer"), ENDPOINT_END);
	end(&world);
}

/* However the bytes were read: the count that tells a FIN from a reset holds. */
static void
every_way_of_reading_counts(void **state)
{
	struct world world;
	struct failure why;
	char got[4];
	size_t moved;
	(void)state;

	begin(&world);
	struct pipe *pipe = splice_until_short(&world);
	assert_int_equal(write(world.peer, "abcdefghijklmnop", 16), 16);
	endpoint_receive(&world.endpoint, got, 3, &moved, &why);
	endpoint_peek(&world.endpoint, got, 4, &moved, &why);
	endpoint_skip(&world.endpoint, got, 4);
	struct pipe *other = (world.loop.pipes_most = 2, loop_take_pipe(&world.loop));
	assert_non_null(other);
	other->room_bytes = 2;
	assert_int_equal(endpoint_splice_in(&world.endpoint, other, SIZE_MAX, &moved, &why),
			 ENDPOINT_MOVED);
	struct evbuffer *buffer = evbuffer_new();
	assert_int_equal(world.endpoint.kind->read(&world.endpoint, buffer, 1, &moved, &why),
			 ENDPOINT_MOVED);
	evbuffer_free(buffer);
	reset(&world);
	swallow_the_reset(&world);
	assert_int_equal(what_follows(&world, pipe, "klmnop"), ENDPOINT_BROKEN);
	loop_give_pipe(&world.loop, other);
	end(&world);
}

static void
on_ready(struct endpoint *endpoint)
{
	event_base_loopbreak(endpoint->loop->base);
}

/* Waits until there is something to read, and reads it. */
static void
receive(struct world *world, const char *expected)
{
	struct failure why;
	char got[16];
	size_t moved;

	world->endpoint.on_ready = on_ready;
	world->endpoint.want_readable = true;
	assert_int_equal(world->endpoint.kind->watch(&world->endpoint, &why), 0);
	event_base_dispatch(world->loop.base);
	assert_int_equal(endpoint_receive(&world->endpoint, got, sizeof(got), &moved, &why),
			 ENDPOINT_MOVED);
	assert_int_equal(moved, strlen(expected));
	assert_memory_equal(got, expected, moved);
}

static void
an_end_behind_the_bytes_is_known(void **state)
{
	struct world world;
	(void)state;

	begin(&world);
	assert_int_equal(write(world.peer, "one", 3), 3);
	receive(&world, "one");
	assert_false(world.endpoint.readable);
	assert_false(endpoint_is_at_end(&world.endpoint));
	assert_int_equal(send(world.peer, "two", 3, MSG_MORE), 3);
	shutdown(world.peer, SHUT_WR);
	receive(&world, "two");
	assert_true(world.endpoint.readable);
	assert_true(endpoint_is_at_end(&world.endpoint));
	assert_false(world.endpoint.readable);
	close(world.peer);
	end(&world);
}

static void
a_reset_behind_the_bytes_is_no_end(void **state)
{
	struct world world;
	struct failure why;
	char got[4];
	size_t moved;
	(void)state;

	begin(&world);
	assert_int_equal(write(world.peer, "one", 3), 3);
	receive(&world, "one");
	reset(&world);
	/* As if the end had been told before the reset came. */
	world.endpoint.socket.end_is_due = world.endpoint.readable = true;
	assert_false(endpoint_is_at_end(&world.endpoint));
	assert_int_equal(endpoint_receive(&world.endpoint, got, sizeof(got), &moved, &why),
			 ENDPOINT_BROKEN);
	end(&world);
}

static uint32_t
segments_in(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);
	assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length), 0);
	return info.tcpi_segs_in;
}

/* The kernel sends what waits for more after 200 ms: a machine that is slower than that may try again. */
static void
the_last_bytes_share_a_segment_with_the_end(void **state)
{
	uint32_t segments = 0;
	(void)state;

	for (int tries = 0; segments != 1 && tries < 3; tries++) {
		struct world world;
		struct failure why;
		char got[4];
		size_t moved;

		begin(&world);
		uint32_t before = segments_in(world.peer);
		world.endpoint.is_last = true;
		assert_int_equal(endpoint_send(&world.endpoint, "bye", 3, &moved, &why),
				 ENDPOINT_MOVED);
		world.endpoint.kind->shutdown(&world.endpoint);
		assert_int_equal(recv(world.peer, got, 3, MSG_WAITALL), 3);
		assert_int_equal(recv(world.peer, got, 1, 0), 0);
		segments = segments_in(world.peer) - before;
		close(world.peer);
		end(&world);
	}
	assert_int_equal(segments, 1);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reset_told_to_a_splice),
		cmocka_unit_test(reset_swallowed_by_a_splice),
		cmocka_unit_test(reset_behind_a_fin),
		cmocka_unit_test(every_way_of_reading_counts),
		cmocka_unit_test(an_end_behind_the_bytes_is_known),
		cmocka_unit_test(a_reset_behind_the_bytes_is_no_end),
		cmocka_unit_test(the_last_bytes_share_a_segment_with_the_end),
	};
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("endpoint", tests, NULL, NULL);
}
