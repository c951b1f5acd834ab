#include "clock.h"
#include "dial.h"
#include "mailbox.h"
#include "targets_list.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

/* Waiting for something that must come; only a broken dial takes so long. */
static const struct timeval patience = { 20, 0 };

static struct loop loop;
static struct resolver *resolver;
static struct dial_options options;
static struct dial dial;
static unsigned int fds_before;

/* What on_end and admit were told. */
static struct {
	unsigned int ends;
	int fd;
	struct failure why;
	bool good;
	size_t admitted[16];
	size_t admits;
	enum failure_kind refuse; /* FAILURE_NONE: admit */
	size_t refuse_below;      /* indices below it are refused */
	enum dial_step steps[8];  /* as on_step was told */
	size_t step_count;
} seen;

/* Sockets of a test, closed at its end. */
static int opened[64];
static unsigned int opened_count;

static int
keep(int fd)
{
	assert_true(fd >= 0);
	opened[opened_count++] = fd;
	return fd;
}

static unsigned int
count_fds(void)
{
	unsigned int count = 0;
	DIR *folder = opendir("/proc/self/fd");

	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

static struct sockaddr_in
ipv4(const char *ip, uint16_t port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, ip, &address.sin_addr);
	return address;
}

/* A listener that nobody accepts from; port 0: the kernel's choice. Returns the port. */
static uint16_t
listen_at(const char *ip, uint16_t port, int backlog, int *fd)
{
	struct sockaddr_in address = ipv4(ip, port);
	socklen_t length = sizeof(address);
	const int on = 1;

	*fd = keep(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	assert_int_equal(bind(*fd, (struct sockaddr *)&address, length), 0);
	assert_int_equal(listen(*fd, backlog), 0);
	getsockname(*fd, (struct sockaddr *)&address, &length);
	return ntohs(address.sin_port);
}

/* A port on which a SYN gets no answer: the queue of its listener is full. */
static uint16_t
listen_deaf(const char *ip, uint16_t port)
{
	int fd;
	port = listen_at(ip, port, 0, &fd);
	for (unsigned int i = 0; i < 3; i++) {
		struct sockaddr_in address = ipv4(ip, port);
		int client = keep(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
		(void)connect(client, (struct sockaddr *)&address, sizeof(address));
	}
	return port;
}

/* A port on which nobody listens, and nobody else will while the test runs. */
static uint16_t
closed_port(void)
{
	struct sockaddr_in address = ipv4("127.0.0.1", 0);
	socklen_t length = sizeof(address);
	int fd = keep(socket(AF_INET, SOCK_STREAM, 0));

	assert_int_equal(bind(fd, (struct sockaddr *)&address, length), 0);
	getsockname(fd, (struct sockaddr *)&address, &length);
	return ntohs(address.sin_port);
}

/* The resolver of the tests. */
static enum resolver_outcome
look_up(const char *host, struct socket_address *at, size_t most, size_t *count,
	struct failure *why)
{
	unsigned int addresses = 0;
	(void)most;

	if (strcmp(host, "unknown") == 0) {
		failure_set(why, FAILURE_RESOLVE, "cannot resolve %s: invented", host);
		return RESOLVER_NO_SUCH_NAME;
	}
	/* "two": 127.0.0.1 and 127.0.0.2 */
	addresses = strcmp(host, "two") == 0 ? 2 : 1;
	for (unsigned int i = 0; i < addresses; i++)
		at[i] = (struct socket_address){ .family = AF_INET,
						 .ip = { 127, 0, 0, (uint8_t)(i + 1) } };
	*count = addresses;
	return RESOLVER_FOUND;
}

static int
admit(struct dial *asking, size_t index, struct failure *why)
{
	assert_ptr_equal(asking, &dial);
	assert_int_equal(index, dial.index);
	seen.admitted[seen.admits++] = index;
	if (seen.refuse == FAILURE_NONE || index >= seen.refuse_below)
		return 0;
	return failure_set(why, seen.refuse, "refused by the test");
}

static void
on_step(struct dial *stepping)
{
	assert_ptr_equal(stepping, &dial);
	seen.steps[seen.step_count++] = dial.step;
}

static void
on_end(struct dial *ended, int fd, const struct failure *why)
{
	assert_ptr_equal(ended, &dial);
	assert_null(dial.state);
	seen.ends++;
	seen.fd = fd;
	seen.good = !why;
	if (why)
		seen.why = *why;
	event_base_loopbreak(loop.base);
}

static int
prepare(void **state)
{
	struct event_config *config = event_config_new();
	const struct resolver_options resolving = { .threads = 1, .lookup = look_up };
	(void)state;

	memset(&seen, 0, sizeof(seen));
	fds_before = count_fds();
	event_config_set_flag(config, EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST);
	loop.base = event_base_new_with_config(config);
	event_config_free(config);
	loop.mailbox = mailbox_open(loop.base, NULL);
	resolver = resolver_start_with(&resolving, NULL);
	options = (struct dial_options){
		.resolver = resolver,
		.timeout_ns = 10 * NS_PER_S,
		.admit = admit,
		.on_step = on_step,
		.on_end = on_end,
	};
	return 0;
}

static int
finish(void **state)
{
	(void)state;
	dial_cancel(&dial);
	targets_list_close();
	mailbox_close(loop.mailbox);
	resolver_stop(resolver);
	event_base_free(loop.base);
	while (opened_count > 0)
		close(opened[--opened_count]);
	assert_int_equal(count_fds(), fds_before);
	return 0;
}

static void
start(void)
{
	memset(&dial, 0, sizeof(dial));
	options.targets = targets;
	dial_start(&dial, &loop, &options);
}

static void
wait_for_end(unsigned int ends)
{
	if (seen.ends < ends) {
		event_base_loopexit(loop.base, &patience);
		event_base_dispatch(loop.base);
	}
	assert_int_equal(seen.ends, ends);
}

/* One dial from start to end. */
static void
run(void)
{
	unsigned int ends = seen.ends;
	start();
	wait_for_end(ends + 1);
	if (seen.fd >= 0)
		keep(seen.fd);
}

static void
expect_connected(size_t index)
{
	if (!seen.good)
		fail_msg("%s", seen.why.text);
	assert_true(seen.fd >= 0);
	assert_int_equal(dial.index, index);
	assert_true(fcntl(seen.fd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(seen.fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(targets_active(targets, index), 1);
}

static void __attribute__((format(printf, 2, 3)))
expect_failed(enum failure_kind kind, const char *format, ...)
{
	char text[256];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	assert_false(seen.good);
	assert_int_equal(seen.fd, -1);
	assert_string_equal(seen.why.text, text);
	assert_int_equal(seen.why.kind, kind);
}

/* Runs one dial over internal targets and returns which was admitted. */
static size_t
admitted_by_a_dial(void)
{
	run();
	assert_true(seen.good);
	assert_int_equal(seen.fd, -1);
	return dial.index;
}

/* What the list is told. */

static void
a_refused_admission_moves_on_and_is_not_remembered(void **state)
{
	(void)state;
	set_targets(BALANCE_ORDER, "internal:a internal:b internal:c");
	seen.refuse = FAILURE_ADMISSION;
	seen.refuse_below = 2;
	assert_int_equal(admitted_by_a_dial(), 2);
	assert_int_equal(seen.admits, 3);
	assert_int_equal(targets_active(targets, 0), 0);
	assert_int_equal(targets_active(targets, 1), 0);
	seen.refuse = FAILURE_NONE;
	assert_int_equal(admitted_by_a_dial(), 0);
}

static void
what_failed_is_tried_last(void **state)
{
	const size_t order[] = { 0, 1, 2 /* then */, 2 /* then */, 2, 0, 1 };
	(void)state;
	set_targets(BALANCE_ORDER, "internal:a internal:b internal:c");
	seen.refuse = FAILURE_REFUSED;
	seen.refuse_below = 2;
	run();
	run();
	seen.refuse_below = 3;
	run();
	expect_failed(FAILURE_REFUSED, "connect to internal:b: refused by the test");
	assert_int_equal(seen.admits, 7);
	assert_memory_equal(seen.admitted, order, sizeof(order));
}

static void
a_full_target_is_passed_over(void **state)
{
	(void)state;
	making.most = 2;
	set_targets(BALANCE_ORDER, "internal:a|internal:b");
	for (unsigned int i = 0; i < 4; i++)
		assert_int_equal(admitted_by_a_dial(), i / 2);
	assert_int_equal(seen.admits, 4);
	run();
	expect_failed(FAILURE_ADMISSION, "connect to internal:b: max_per_target: it has 2 "
					 "connections already");
	assert_int_equal(seen.admits, 4); /* nobody was asked */
	assert_int_equal(targets_failed_until(targets, 0, 1), 0);
	assert_int_equal(targets_active(targets, 0), 2);
	targets_disconnected(targets, 0);
	assert_int_equal(admitted_by_a_dial(), 0);
}

static void
the_daemons_own_dials_do_not_count(void **state)
{
	(void)state;
	making.most = 1;
	set_targets(BALANCE_ORDER, "internal:a");
	options.is_own = true;
	assert_int_equal(admitted_by_a_dial(), 0);
	assert_int_equal(admitted_by_a_dial(), 0);
	assert_int_equal(targets_active(targets, 0), 0);
	options.is_own = false;
	assert_int_equal(admitted_by_a_dial(), 0);
	options.is_own = true;
	assert_int_equal(admitted_by_a_dial(), 0);
	assert_int_equal(targets_active(targets, 0), 1);
}

/* Connecting. */

static void
a_literal_target_is_connected(void **state)
{
	struct sockaddr_in peer;
	socklen_t length = sizeof(peer);
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u", port);
	start();
	assert_int_equal(seen.ends, 0);
	assert_int_equal(dial.step, DIAL_CONNECTING);
	wait_for_end(1);
	keep(seen.fd);
	expect_connected(0);
	assert_false(dial.reset);
	assert_int_equal(dial.connected.family, AF_INET);
	assert_int_equal(dial.connected.port, port);
	keep(accept(listener, (struct sockaddr *)&peer, &length));
	targets_disconnected(targets, 0);
	assert_int_equal(targets_active(targets, 0), 0);
}

static void
refused_moves_on_at_once(void **state)
{
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u unix:/nowhere/at.all 127.0.0.1:%u", closed_port(),
		    port);
	run();
	expect_connected(2);
	assert_int_equal(targets_active(targets, 0), 0);
	targets_disconnected(targets, 2);
	/* Both are remembered. */
	run();
	expect_connected(2);
}

static void
all_refused_is_a_failure(void **state)
{
	(void)state;
	uint16_t port = closed_port();
	set_targets(BALANCE_ORDER, "unix:/nowhere/at.all 127.0.0.1:%u", port);
	run();
	expect_failed(FAILURE_REFUSED, "connect to 127.0.0.1:%u: Connection refused", port);
	assert_int_equal(targets_active(targets, 1), 0);
}

static void
ipv6_is_connected(void **state)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback };
	socklen_t length = sizeof(address);
	(void)state;

	int listener = socket(AF_INET6, SOCK_STREAM, 0);
	if (listener < 0 || bind(keep(listener), (struct sockaddr *)&address, length) < 0)
		skip();
	listen(listener, 5);
	getsockname(listener, (struct sockaddr *)&address, &length);
	set_targets(BALANCE_ORDER, "[::1]:%u", ntohs(address.sin6_port));
	run();
	expect_connected(0);
	assert_int_equal(dial.connected.family, AF_INET6);
}

static void
no_answer_is_a_timeout(void **state)
{
	(void)state;
	uint16_t port = listen_deaf("127.0.0.1", 0);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u", port);
	options.timeout_ns = 150 * NS_PER_MS;
	uint64_t before_ns = clock_now_ns();
	run();
	uint64_t took_ns = clock_now_ns() - before_ns;
	assert_true(took_ns > 140 * NS_PER_MS);
	expect_failed(FAILURE_TIMEOUT, "connect to 127.0.0.1:%u: no answer within 0.15s", port);
}

static void
each_target_gets_its_share_of_the_time(void **state)
{
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u 127.0.0.1:%u", listen_deaf("127.0.0.1", 0), port);
	options.timeout_ns = 1300 * NS_PER_MS; /* the half of it is less than the least */
	uint64_t before_ns = clock_now_ns();
	run();
	expect_connected(1);
	assert_true(clock_now_ns() - before_ns > 990 * NS_PER_MS);
}

static void
time_runs_out_before_the_last_target(void **state)
{
	int listener;
	(void)state;

	uint16_t deaf = listen_deaf("127.0.0.1", 0);
	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u 127.0.0.1:%u", deaf, port);
	options.timeout_ns = 100 * NS_PER_MS;
	run();
	expect_failed(FAILURE_TIMEOUT, "connect to 127.0.0.1:%u: no answer within 0.1s", deaf);
}

static void
a_connection_reset_before_we_look_is_connected(void **state)
{
	const struct linger reset = { .l_onoff = 1 };
	char text[8];
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u", port);
	start();
	int server = accept(listener, NULL, NULL);
	assert_int_equal(write(server, "early", 5), 5);
	setsockopt(server, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(server);
	wait_for_end(1);
	keep(seen.fd);
	expect_connected(0);
	assert_true(dial.reset);
	assert_int_equal(read(seen.fd, text, sizeof(text)), 5);
	assert_int_equal(read(seen.fd, text, sizeof(text)), 0);
}

static void
a_server_that_speaks_first_is_connected(void **state)
{
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u", port);
	start();
	int server = keep(accept(listener, NULL, NULL));
	assert_int_equal(write(server, "hello", 5), 5);
	wait_for_end(1);
	keep(seen.fd);
	expect_connected(0);
	assert_false(dial.reset);
}

static void
a_connection_to_itself_is_refused(void **state)
{
	struct address source;
	char text[64];
	(void)state;

	/* What the kernel does by chance is forced by binding to the target's port. */
	struct sockaddr_in own = ipv4("127.0.0.1", 0);
	socklen_t length = sizeof(own);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&own, length), 0);
	getsockname(fd, (struct sockaddr *)&own, &length);
	close(fd);
	snprintf(text, sizeof(text), "127.0.0.1:%u", ntohs(own.sin_port));
	assert_int_equal(address_parse(text, &source, NULL), 0);
	options.bind = &source;
	set_targets(BALANCE_ORDER, "%s", text);
	run();
	expect_failed(FAILURE_REFUSED, "connect to %s: Connection refused", text);
	address_release(&source);
}

static void
on_readable(evutil_socket_t fd, short what, void *context)
{
	char text[8];
	(void)what;
	*(ssize_t *)context = read(fd, text, sizeof(text));
	event_base_loopbreak(loop.base);
}

static struct event next_owner;
static ssize_t next_owner_read;

static void
hand_over(struct dial *ended, int fd, const struct failure *why)
{
	on_end(ended, fd, why);
	event_assign(&next_owner, loop.base, fd, EV_READ, on_readable, &next_owner_read);
	event_add(&next_owner, NULL);
}

static void
another_event_may_take_over_in_the_same_turn(void **state)
{
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u", port);
	options.on_end = hand_over;
	run();
	expect_connected(0);
	int server = keep(accept(listener, NULL, NULL));
	assert_int_equal(write(server, "hello", 5), 5);
	next_owner_read = -1;
	event_base_loopexit(loop.base, &patience);
	event_base_dispatch(loop.base);
	assert_int_equal(next_owner_read, 5);
}

/* A refused connect whose descriptor number is taken by the next attempt in the same turn. */
static void
a_descriptor_number_may_be_used_again_in_the_same_turn(void **state)
{
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	uint16_t closed = closed_port();
	set_targets(BALANCE_ORDER, "127.0.0.1:%u 127.0.0.2:%u 127.0.0.3:%u 127.0.0.1:%u", closed,
		    closed, closed, port);
	run();
	expect_connected(3);
}

/* UNIX sockets. */

static int
listen_abstract(const char *name, int backlog)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = strlen(name);
	int fd = keep(socket(AF_UNIX, SOCK_STREAM, 0));

	memcpy(address.sun_path + 1, name, length);
	assert_int_equal(bind(fd, (struct sockaddr *)&address,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length)),
			 0);
	assert_int_equal(listen(fd, backlog), 0);
	return fd;
}

static void
a_unix_socket_is_connected_at_once(void **state)
{
	char name[64];
	(void)state;

	snprintf(name, sizeof(name), "penstock-test-%d", (int)getpid());
	listen_abstract(name, 5);
	set_targets(BALANCE_ORDER, "unix:@%s", name);
	start();
	assert_int_equal(seen.ends, 1);
	keep(seen.fd);
	expect_connected(0);
	assert_int_equal(dial.connected.family, AF_UNIX);
}

static void
a_unix_path_is_connected(void **state)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	(void)state;

	snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/penstock-test-%d.sock",
		 (int)getpid());
	unlink(address.sun_path);
	int fd = keep(socket(AF_UNIX, SOCK_STREAM, 0));
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	set_targets(BALANCE_ORDER, "unix:%s", address.sun_path);
	run();
	expect_failed(FAILURE_REFUSED, "connect to unix:%s: Connection refused", address.sun_path);
	assert_int_equal(listen(fd, 5), 0);
	run();
	unlink(address.sun_path);
	expect_connected(0);
}

static void
on_time_to_accept(evutil_socket_t fd, short what, void *context)
{
	(void)fd;
	(void)what;
	keep(accept(*(int *)context, NULL, NULL));
}

static void
a_full_unix_backlog_is_tried_again(void **state)
{
	const struct timeval soon = { 0, 50000 };
	char name[64];
	(void)state;

	snprintf(name, sizeof(name), "penstock-test-%d", (int)getpid());
	int listener = listen_abstract(name, 0);
	set_targets(BALANCE_ORDER, "unix:@%s", name);
	run();
	expect_connected(0);
	targets_disconnected(targets, 0);
	event_base_once(loop.base, -1, EV_TIMEOUT, on_time_to_accept, &listener, &soon);
	run();
	expect_connected(0);
	targets_disconnected(targets, 0);

	options.timeout_ns = 100 * NS_PER_MS;
	run();
	expect_failed(FAILURE_TIMEOUT, "connect to unix:@%s: no answer within 0.1s", name);
}

/* Hosts. */

static void
a_host_is_resolved(void **state)
{
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "one:%u", port);
	start();
	assert_int_equal(dial.step, DIAL_RESOLVING);
	wait_for_end(1);
	keep(seen.fd);
	expect_connected(0);
	assert_int_equal(seen.step_count, 2);
	assert_int_equal(seen.steps[0], DIAL_RESOLVING);
	assert_int_equal(seen.steps[1], DIAL_CONNECTING);
	assert_int_equal(dial.connected.port, port);
	targets_disconnected(targets, 0);
	start();
	assert_int_equal(dial.step, DIAL_CONNECTING); /* known by now */
	wait_for_end(2);
	assert_int_equal(seen.step_count, 2);
	keep(seen.fd);
	expect_connected(0);
}

static void
a_name_that_leads_back_is_not_connected(void **state)
{
	int fd;
	uint16_t port = listen_at("0.0.0.0", 0, 5, &fd);
	char text[32];
	struct address at[2] = { { 0 } };
	const struct address_list own = { at, 2 };
	(void)state;

	snprintf(text, sizeof(text), "127.0.0.5:%u", port);
	assert_int_equal(address_parse(text, &at[0], NULL), 0);
	snprintf(text, sizeof(text), "0.0.0.0:%u", port);
	assert_int_equal(address_parse(text, &at[1], NULL), 0);
	options.own = &own;
	set_targets(BALANCE_ORDER, "one:%u", port);
	run();
	expect_failed(FAILURE_CONFIG,
		      "connect to one:%u: the tunnel itself listens on 127.0.0.1:%u; connect to "
		      "another address",
		      port, port);
	at[1].numeric.ip[0] = 10; /* another address of this machine is another's */
	run();
	expect_connected(0);
	options.own = NULL;
	address_release(&at[0]);
	address_release(&at[1]);
}

static void
an_unknown_host_moves_on(void **state)
{
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "unknown:1 127.0.0.1:%u", port);
	run();
	expect_connected(1);
	assert_int_equal(seen.step_count, 2);
	assert_int_equal(seen.steps[1], DIAL_CONNECTING);
	targets_release(targets);
	set_targets(BALANCE_ORDER, "unknown:1");
	run();
	expect_failed(FAILURE_RESOLVE, "connect to unknown:1: cannot resolve unknown: invented");
}

static void
a_silent_address_of_a_host_is_overtaken(void **state)
{
	int listener;
	(void)state;

	uint16_t port = listen_deaf("127.0.0.1", 0);
	listen_at("127.0.0.2", port, 5, &listener);
	set_targets(BALANCE_ORDER, "two:%u", port);
	uint64_t before_ns = clock_now_ns();
	run();
	uint64_t took_ns = clock_now_ns() - before_ns;
	expect_connected(0);
	assert_int_equal(dial.connected.ip[3], 2);
	assert_true(took_ns > (DIAL_RACE_MS - 10) * NS_PER_MS);
	assert_true(took_ns < 4 * NS_PER_S);
}

static void
free_descriptors(evutil_socket_t fd, short what, void *context)
{
	(void)fd;
	(void)what;
	(void)context;
	options.descriptors_below = 0;
}

static void
an_address_without_a_descriptor_is_tried_later(void **state)
{
	const struct timeval later = { 0, 400000 };
	int listener;
	(void)state;

	uint16_t port = listen_deaf("127.0.0.1", 0);
	listen_at("127.0.0.2", port, 5, &listener);
	set_targets(BALANCE_ORDER, "two:%u", port);
	int first = dup(listener); /* the number that the first attempt gets */
	close(first);
	options.descriptors_below = first + 1;
	event_base_once(loop.base, -1, EV_TIMEOUT, free_descriptors, NULL, &later);
	run();
	expect_connected(0);
	assert_int_equal(dial.connected.ip[3], 2);
}

static void
a_refusing_address_of_a_host_is_left_at_once(void **state)
{
	int listener;
	(void)state;

	uint16_t port = closed_port();
	listen_at("127.0.0.2", port, 5, &listener);
	set_targets(BALANCE_ORDER, "two:%u", port);
	run();
	expect_connected(0);
	assert_int_equal(dial.connected.ip[3], 2);
	targets_disconnected(targets, 0);

	uint16_t other = closed_port();
	targets_release(targets);
	set_targets(BALANCE_ORDER, "two:%u", other);
	run();
	expect_failed(FAILURE_REFUSED, "connect to two:%u (127.0.0.2:%u): Connection refused",
		      other, other);
}

/* Options. */

static void
the_source_address_is_bound(void **state)
{
	struct address source;
	struct sockaddr_in peer;
	socklen_t length = sizeof(peer);
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	assert_int_equal(address_parse("127.0.0.9:0", &source, NULL), 0);
	options.bind = &source;
	set_targets(BALANCE_ORDER, "127.0.0.1:%u", port);
	run();
	expect_connected(0);
	keep(accept(listener, (struct sockaddr *)&peer, &length));
	assert_int_equal(peer.sin_addr.s_addr, htonl(0x7f000009));
	address_release(&source);

	assert_int_equal(address_parse("[::1]:0", &source, NULL), 0);
	run();
	expect_failed(FAILURE_UNREACHABLE,
		      "connect to 127.0.0.1:%u: not the family of the source address [::1]:0",
		      port);
	address_release(&source);

	assert_int_equal(address_parse("192.0.2.77:0", &source, NULL), 0);
	run();
	expect_failed(FAILURE_UNREACHABLE,
		      "connect to 127.0.0.1:%u from 192.0.2.77:0: Cannot assign requested address",
		      port);
	address_release(&source);
}

static void
keepalive_is_set(void **state)
{
	int listener, value = 0;
	socklen_t length = sizeof(value);
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u", port);
	options.keepalive_ns = 41500 * NS_PER_MS;
	run();
	expect_connected(0);
	getsockopt(seen.fd, SOL_SOCKET, SO_KEEPALIVE, &value, &length);
	assert_int_equal(value, 1);
	getsockopt(seen.fd, IPPROTO_TCP, TCP_KEEPIDLE, &value, &length);
	assert_int_equal(value, 42);
	getsockopt(seen.fd, IPPROTO_TCP, TCP_KEEPINTVL, &value, &length);
	assert_int_equal(value, 42); /* as of the near side */
}

static void
without_descriptors_the_dial_ends(void **state)
{
	struct rlimit before, none;
	int listener;
	(void)state;

	uint16_t port = listen_at("127.0.0.1", 0, 5, &listener);
	set_targets(BALANCE_ORDER, "127.0.0.1:%u internal:next", port);
	getrlimit(RLIMIT_NOFILE, &before);
	none = before;
	none.rlim_cur = 0;
	setrlimit(RLIMIT_NOFILE, &none);
	run();
	setrlimit(RLIMIT_NOFILE, &before);
	expect_failed(FAILURE_DESCRIPTORS,
		      "connect to 127.0.0.1:%u: cannot open a socket: Too many open files", port);
	assert_int_equal(seen.admits, 0);
	assert_int_equal(targets_active(targets, 0), 0);
	/* It is not the target's fault. */
	run();
	expect_connected(0);
}

/* Cancelling. */

static void
a_dial_can_be_cancelled(void **state)
{
	const struct timeval soon = { 0, 20000 };
	char name[64];
	(void)state;

	snprintf(name, sizeof(name), "penstock-test-%d", (int)getpid());
	listen_abstract(name, 0);
	uint16_t deaf = listen_deaf("127.0.0.1", 0);
	set_targets(BALANCE_ORDER, "two:%u", deaf);
	struct targets *two = targets;
	start(); /* resolving */
	dial_cancel(&dial);
	start();
	event_base_loopexit(loop.base, &soon);
	event_base_dispatch(loop.base); /* connecting by now, or still resolving */
	dial_cancel(&dial);
	dial_cancel(&dial);
	assert_int_equal(targets_active(targets, 0), 0);

	set_targets(BALANCE_ORDER, "unix:@%s", name);
	targets_release(two);
	run();
	targets_disconnected(targets, 0);
	start(); /* waits for room in the backlog */
	event_base_loopexit(loop.base, &soon);
	event_base_dispatch(loop.base);
	assert_int_equal(targets_active(targets, 0), 1);
	dial_cancel(&dial);
	assert_int_equal(targets_active(targets, 0), 0);
	assert_int_equal(seen.ends, 1);
}

int
main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, prepare, finish)
	const struct CMUnitTest tests[] = {
		CASE(a_refused_admission_moves_on_and_is_not_remembered),
		CASE(what_failed_is_tried_last),
		CASE(a_full_target_is_passed_over),
		CASE(the_daemons_own_dials_do_not_count),
		CASE(a_literal_target_is_connected),
		CASE(refused_moves_on_at_once),
		CASE(all_refused_is_a_failure),
		CASE(ipv6_is_connected),
		CASE(no_answer_is_a_timeout),
		CASE(each_target_gets_its_share_of_the_time),
		CASE(time_runs_out_before_the_last_target),
		CASE(a_connection_reset_before_we_look_is_connected),
		CASE(a_server_that_speaks_first_is_connected),
		CASE(a_connection_to_itself_is_refused),
		CASE(another_event_may_take_over_in_the_same_turn),
		CASE(a_descriptor_number_may_be_used_again_in_the_same_turn),
		CASE(a_unix_socket_is_connected_at_once),
		CASE(a_unix_path_is_connected),
		CASE(a_full_unix_backlog_is_tried_again),
		CASE(a_host_is_resolved),
		CASE(a_name_that_leads_back_is_not_connected),
		CASE(an_unknown_host_moves_on),
		CASE(a_silent_address_of_a_host_is_overtaken),
		CASE(an_address_without_a_descriptor_is_tried_later),
		CASE(a_refusing_address_of_a_host_is_left_at_once),
		CASE(the_source_address_is_bound),
		CASE(keepalive_is_set),
		CASE(without_descriptors_the_dial_ends),
		CASE(a_dial_can_be_cancelled),
	};
	return cmocka_run_group_tests_name("dial", tests, NULL, NULL);
}
