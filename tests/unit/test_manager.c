#include "clock.h"
#include "manager.h"

#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static int socket_fd = -1;
static unsigned int asked[2];

static void
ask(void *context)
{
	(*(unsigned int *)context)++;
}

/* A socket that stands for the service manager, with a watchdog that is patient for 40 ms. */
static int
open_socket(void **state)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char name[sizeof(address.sun_path)];
	(void)state;
	snprintf(name, sizeof(name), "@penstock-test-manager-%ld", (long)getpid());
	setenv("NOTIFY_SOCKET", name, 1);
	setenv("WATCHDOG_USEC", "40000", 1);
	memcpy(address.sun_path, name, sizeof(name));
	address.sun_path[0] = '\0';
	socket_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return bind(socket_fd, (struct sockaddr *)&address,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name)));
}

static bool
was_fed(void)
{
	char text[1024];
	bool fed = false;
	ssize_t got;
	while ((got = recv(socket_fd, text, sizeof(text) - 1, 0)) > 0) {
		text[got] = '\0';
		fed |= strcmp(text, "WATCHDOG=1") == 0;
	}
	return fed;
}

static void
turn_until(struct event_base *base, const unsigned int *counter, unsigned int least)
{
	uint64_t by_ns = clock_now_ns() + 20 * NS_PER_S;
	while (*counter < least && clock_now_ns() < by_ns)
		event_base_loop(base, EVLOOP_ONCE);
	assert_true(*counter >= least);
}

static void
it_is_fed_when_all_are_well(void **state)
{
	(void)state;
	struct failure why;
	struct event_base *base = event_base_new();
	struct manager *manager = manager_start(base, &why);
	struct manager_check checks[2] = {
		{ .name = "one", .ask = ask, .context = &asked[0] },
		{ .name = "two", .ask = ask, .context = &asked[1] },
	};
	assert_non_null(manager);
	manager_add(manager, &checks[0]);
	manager_add(manager, &checks[1]);
	manager_ready(manager, 1, 1);
	turn_until(base, &asked[0], 1);
	assert_int_equal(asked[1], 1);
	manager_answer(manager, &checks[0], true);
	assert_false(was_fed());
	manager_answer(manager, &checks[1], false); /* not well: asked again, alone, and not fed */
	assert_false(was_fed());
	turn_until(base, &asked[1], 2);
	assert_int_equal(asked[0], 1);
	assert_false(was_fed());
	manager_answer(manager, &checks[1], true);
	assert_true(was_fed());
	turn_until(base, &asked[0], 2); /* the next round */
	assert_false(was_fed());
	manager_stop(manager);
	event_base_free(base);
	close(socket_fd);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(it_is_fed_when_all_are_well, open_socket),
	};
	return cmocka_run_group_tests_name("manager", tests, NULL, NULL);
}
