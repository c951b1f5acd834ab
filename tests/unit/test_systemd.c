#include "clock.h"
#include "systemd.h"

#include <fcntl.h>
#include <inttypes.h>
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

static int manager = -1;

static void
set_number(const char *name, long number)
{
	char text[32];
	snprintf(text, sizeof(text), "%ld", number);
	setenv(name, text, 1);
}

/* A socket that stands for the service manager. */
static int
open_manager(void **state)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char name[sizeof(address.sun_path)];
	(void)state;
	snprintf(name, sizeof(name), "@penstock-test-%ld", (long)getpid());
	setenv("NOTIFY_SOCKET", name, 1);
	memcpy(address.sun_path, name, sizeof(name));
	address.sun_path[0] = '\0';
	manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return bind(manager, (struct sockaddr *)&address,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name)));
}

static int
close_manager(void **state)
{
	(void)state;
	unsetenv("NOTIFY_SOCKET");
	return close(manager);
}

static const char *
told(void)
{
	static char text[256];
	ssize_t got = recv(manager, text, sizeof(text) - 1, 0);
	text[got > 0 ? got : 0] = '\0';
	return text;
}

static void
the_manager_is_told(void **state)
{
	(void)state;
	systemd_notify_ready("3 tunnels");
	assert_string_equal(told(), "READY=1\nSTATUS=3 tunnels");
	systemd_notify_status("100% busy");
	assert_string_equal(told(), "STATUS=100% busy");
	systemd_notify_watchdog();
	assert_string_equal(told(), "WATCHDOG=1");
	systemd_notify_stopping();
	assert_string_equal(told(), "STOPPING=1");

	uint64_t before_us = clock_now_ns() / 1000, us;
	systemd_notify_reloading();
	assert_int_equal(sscanf(told(), "RELOADING=1\nMONOTONIC_USEC=%" SCNu64, &us), 1);
	assert_in_range(us, before_us, clock_now_ns() / 1000);
}

static void
without_a_manager_nothing_happens(void **state)
{
	(void)state;
	systemd_notify_ready("nobody listens");
	assert_int_equal(systemd_watchdog_ns(), 0);
	assert_int_equal(systemd_listen_count("web"), 0);
	assert_false(systemd_journal_on_stderr());
}

static void
the_watchdog_has_nanoseconds(void **state)
{
	(void)state;
	setenv("WATCHDOG_USEC", "1500000", 1);
	set_number("WATCHDOG_PID", getpid());
	assert_int_equal(systemd_watchdog_ns(), 1500 * NS_PER_MS);
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
}

static void
sockets_are_found_by_name(void **state)
{
	(void)state;
	struct failure why;
	const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_STREAM };
	for (int i = 0; i < 3; i++) { /* from descriptor 3 on, as sd_listen_fds(3) says */
		int fd = socket(AF_INET, types[i], 0);
		if (types[i] == SOCK_STREAM)
			assert_int_equal(listen(fd, 1), 0);
		assert_true(fd == 3 + i || (dup2(fd, 3 + i) == 3 + i && close(fd) == 0));
	}
	setenv("LISTEN_FDS", "3", 1);
	set_number("LISTEN_PID", getpid());
	setenv("LISTEN_FDNAMES", "web:datagram:web", 1);

	assert_int_equal(systemd_listen_count("web"), 2);
	assert_int_equal(systemd_listen_count("mail"), 0);
	for (unsigned int i = 0; i < 2; i++) {
		int fd = systemd_listen_fd("web", i, &why);
		assert_true(fd > 5);
		assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
		struct sockaddr_storage passed, ours;
		socklen_t passed_bytes = sizeof(passed), bytes = sizeof(ours);
		getsockname(3 + 2 * (int)i, (struct sockaddr *)&passed, &passed_bytes);
		getsockname(fd, (struct sockaddr *)&ours, &bytes);
		assert_int_equal(bytes, passed_bytes);
		assert_memory_equal(&ours, &passed, bytes);
		close(fd);
	}
	assert_int_equal(systemd_listen_fd("web", 2, &why), -1);
	assert_int_equal(why.kind, FAILURE_CONFIG);
	assert_int_equal(systemd_listen_fd("datagram", 0, &why), -1);
	assert_non_null(strstr(why.text, "not a listening stream socket"));
	assert_int_equal(fcntl(3, F_GETFD), FD_CLOEXEC);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_a_manager_nothing_happens),
		cmocka_unit_test_setup_teardown(the_manager_is_told, open_manager, close_manager),
		cmocka_unit_test(the_watchdog_has_nanoseconds),
		cmocka_unit_test(sockets_are_found_by_name),
	};
	for (int fd = 3; fd < 6; fd++) /* whoever started us may have left some open */
		close(fd);
	unsetenv("NOTIFY_SOCKET");
	return cmocka_run_group_tests_name("systemd", tests, NULL, NULL);
}
