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
	systemd_notify_stopping(0);
	assert_string_equal(told(), "STOPPING=1");
	systemd_notify_stopping(90 * NS_PER_S);
	assert_string_equal(told(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000");

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

#define PASSED 7

/* Sockets from descriptor 3 on, as sd_listen_fds(3) says: two of one name, a datagram socket between
 * them, a UNIX one, and three of the store. All TCP ones are on ports that the kernel chose. */
static int
pass_sockets(void **state)
{
	(void)state;
	struct sockaddr_un path = { .sun_family = AF_UNIX };
	snprintf(path.sun_path, sizeof(path.sun_path), "/tmp/penstock-test-%ld", (long)getpid());
	for (int i = 0; i < PASSED; i++) {
		int fd = socket(i == 3 ? AF_UNIX : AF_INET, i == 1 ? SOCK_DGRAM : SOCK_STREAM, 0);
		if (i == 3 && bind(fd, (struct sockaddr *)&path, sizeof(path)) < 0)
			return -1;
		if (i != 1 && listen(fd, 1) < 0)
			return -1;
		if (fd != 3 + i && (dup2(fd, 3 + i) != 3 + i || close(fd) < 0))
			return -1;
	}
	set_number("LISTEN_FDS", PASSED);
	set_number("LISTEN_PID", getpid());
	setenv("LISTEN_FDNAMES",
	       "web:datagram:web:local:penstock 1.2.3.4+80:penstock 1.2.3.4+80:penstock unix+/x",
	       1);
	return unlink(path.sun_path);
}

static uint16_t
port_of(int fd)
{
	struct sockaddr_in bound;
	socklen_t bytes = sizeof(bound);
	getsockname(fd, (struct sockaddr *)&bound, &bytes);
	return ntohs(bound.sin_port);
}

static void
note_unused(const char *name, int fd)
{
	assert_string_equal(name, "datagram");
	assert_int_equal(fd, 4);
}

static void
sockets_are_found_by_address(void **state)
{
	(void)state;
	struct failure why;
	struct address address;
	char text[64];
	int fd = -1;

	snprintf(text, sizeof(text), "0.0.0.0:%d", port_of(5));
	assert_int_equal(address_parse(text, &address, &why), 0);
	assert_int_equal(systemd_listen_address(&address, &fd, &why), 1);
	assert_int_equal(port_of(fd), port_of(5));
	close(fd);
	address_release(&address);

	snprintf(text, sizeof(text), "unix:/tmp/penstock-test-%ld", (long)getpid());
	assert_int_equal(address_parse(text, &address, &why), 0);
	assert_int_equal(systemd_listen_address(&address, &fd, &why), 1);
	close(fd);
	address_release(&address);

	snprintf(text, sizeof(text), "127.0.0.1:%d", port_of(5)); /* that is another one */
	assert_int_equal(address_parse(text, &address, &why), 0);
	assert_int_equal(systemd_listen_address(&address, &fd, &why), 0);
	address_release(&address);

	/* What the store holds is found by its key alone. */
	snprintf(text, sizeof(text), "0.0.0.0:%d", port_of(7));
	assert_int_equal(address_parse(text, &address, &why), 0);
	assert_int_equal(systemd_listen_address(&address, &fd, &why), 0);
	address_release(&address);
	systemd_tell_unused(note_unused);
}

static void
the_store_gives_back(void **state)
{
	(void)state;
	open_manager(NULL);
	assert_int_equal(systemd_stored_count("1.2.3.4:80"), 2);
	assert_int_equal(systemd_stored_take("1.2.3.4:80"), 7);
	assert_int_equal(systemd_stored_take("1.2.3.4:80"), 8);
	assert_int_equal(systemd_stored_take("1.2.3.4:80"), -1);
	assert_int_equal(systemd_stored_count("1.2.3.4:80"), 0);
	assert_int_equal(fcntl(8, F_GETFD), FD_CLOEXEC);
	systemd_store_forget_rest();
	assert_string_equal(told(), "FDSTOREREMOVE=1\nFDNAME=penstock unix+/x");
	assert_int_equal(fcntl(9, F_GETFD), -1);
	assert_int_equal(fcntl(8, F_GETFD), FD_CLOEXEC);
	systemd_store_forget("1.2.3.4:80");
	assert_string_equal(told(), "FDSTOREREMOVE=1\nFDNAME=penstock 1.2.3.4+80");

	assert_false(systemd_store("1.2.3.4:80", 8)); /* there is none */
	setenv("FDSTORE", "8", 1);
	assert_true(systemd_store("[::1]:80", 8));
	assert_string_equal(told(), "FDSTORE=1\nFDPOLL=0\nFDNAME=penstock [++1]+80");
	char key[300];
	memset(key, 'k', sizeof(key) - 1);
	key[sizeof(key) - 1] = '\0';
	assert_false(systemd_store(key, 8));
	unsetenv("FDSTORE");
	close_manager(NULL);
}

static void
sockets_are_found_by_name(void **state)
{
	(void)state;
	struct failure why;
	assert_int_equal(systemd_listen_count("web"), 2);
	assert_int_equal(systemd_listen_count("mail"), 0);
	for (unsigned int i = 0; i < 2; i++) {
		int fd = systemd_listen_fd("web", i, &why);
		assert_true(fd >= 3 + PASSED);
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
		cmocka_unit_test_setup(sockets_are_found_by_name, pass_sockets),
		cmocka_unit_test(sockets_are_found_by_address),
		cmocka_unit_test(the_store_gives_back),
	};
	for (int fd = 3; fd < 3 + PASSED; fd++) /* whoever started us may have left some open */
		close(fd);
	unsetenv("NOTIFY_SOCKET");
	return cmocka_run_group_tests_name("systemd", tests, NULL, NULL);
}
