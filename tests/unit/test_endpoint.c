/*
 * The socket kind of endpoint, over TCP through loopback: what it makes of a peer's reset, which the kernel
 * tells once, and sometimes not at all.
 */
#include "endpoint.h"

#include <arpa/inet.h>
#include <event2/buffer.h>
#include <fcntl.h>
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

static struct world
begin(void)
{
	struct world world = { 0 };
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
	world.peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(world.peer, (struct sockaddr *)&address, sizeof(address)), 0);
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(fd >= 0);
	close(listener);
	assert_int_equal(loop_open(&world.loop, NULL), 0);
	world.loop.pipes_most = 1;
	endpoint_open_socket(&world.endpoint, &world.loop, fd, true);
	return world;
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
	struct world world = begin();
	(void)state;

	struct pipe *pipe = splice_until_short(&world);
	assert_int_equal(write(world.peer, "answer", 6), 6);
	reset(&world);
	assert_int_equal(what_follows(&world, pipe, "answer"), ENDPOINT_BROKEN);
	end(&world);
}

static void
reset_swallowed_by_a_splice(void **state)
{
	struct world world = begin();
	(void)state;

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
	struct world world = begin();
	(void)state;

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
	struct world world = begin();
	struct failure why;
	char got[4];
	size_t moved;
	(void)state;

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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reset_told_to_a_splice),
		cmocka_unit_test(reset_swallowed_by_a_splice),
		cmocka_unit_test(reset_behind_a_fin),
		cmocka_unit_test(every_way_of_reading_counts),
	};
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("endpoint", tests, NULL, NULL);
}
