/*
 * The pump's bounded turn: however much a source has ready, one run moves a bounded part of it. Over TCP,
 * whose buffers, once they have grown, hold more than that bound.
 */
#include "clock.h"
#include "pump.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define MOST_BYTES ((size_t)3 * 1024 * 1024)

static unsigned char block[256 * 1024];

/* Sends until nothing more is taken; how much. */
static size_t
fill(int fd)
{
	size_t total = 0;
	ssize_t n;
	while ((n = send(fd, block, sizeof(block), MSG_DONTWAIT)) > 0)
		total += (size_t)n;
	return total;
}

/* Receives until nothing more comes; how much. */
static size_t
drain(int fd)
{
	size_t total = 0;
	ssize_t n;
	while ((n = recv(fd, block, sizeof(block), MSG_DONTWAIT)) > 0)
		total += (size_t)n;
	return total;
}

/* A TCP connection through loopback whose buffers have grown in both directions. */
static void
connect_grown(int *a, int *b)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
	*a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(*a, (struct sockaddr *)&address, sizeof(address)), 0);
	*b = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(*b >= 0);
	close(listener);
	for (int i = 0; i < 4; i++) {
		fill(*a);
		drain(*b);
		fill(*b);
		drain(*a);
	}
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
one_run_moves_a_bounded_part(unsigned int pipes_most)
{
	struct loop loop = { 0 };
	struct pump pump = { 0 };
	struct failure why;
	int client, near, far, target, ready;

	connect_grown(&client, &near);
	connect_grown(&far, &target);
	assert_int_equal(loop_open(&loop, &why), 0);
	loop.pipes_most = pipes_most;
	pump_open(&pump, &loop, WAIT_CONNECT, clock_now_ns());
	pump.turn.run = on_turn;
	endpoint_open_socket(&pump.side[SIDE_NEAR].endpoint, &loop, near, true);
	endpoint_open_socket(&pump.side[SIDE_FAR].endpoint, &loop, far, true);
	pump.side[SIDE_NEAR].endpoint.on_ready = on_ready;
	pump.side[SIDE_FAR].endpoint.on_ready = on_ready;

	size_t offered = fill(client);
	assert_int_equal(ioctl(near, FIONREAD, &ready), 0);
	assert_true(offered > MOST_BYTES && ready > 1024 * 1024); /* else it could not fail */
	pump.side[SIDE_NEAR].endpoint.readable = true;
	assert_int_equal(pump_run(&pump, &why), PUMP_GOING);
	uint64_t moved = pump.flow[FLOW_UP].bytes;
	assert_true(moved > 0);
	assert_true(moved <= MOST_BYTES);

	pump_close(&pump);
	for (int side = SIDE_NEAR; side <= SIDE_FAR; side++)
		pump.side[side].endpoint.kind->close(&pump.side[side].endpoint);
	loop_close(&loop);
	close(client);
	close(target);
}

static void
test_copying(void **state)
{
	(void)state;
	one_run_moves_a_bounded_part(0);
}

static void
test_splicing(void **state)
{
	(void)state;
	one_run_moves_a_bounded_part(4);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_copying),
		cmocka_unit_test(test_splicing),
	};
	return cmocka_run_group_tests_name("pump's turn", tests, NULL, NULL);
}
