#include "systemd.h"

#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SD_JOURNAL_SUPPRESS_LOCATION /* the place in log.c would tell nobody anything */
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>

void
systemd_notify_ready(const char *status)
{
	sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

void
systemd_notify_status(const char *status)
{
	sd_notifyf(0, "STATUS=%s", status);
}

void
systemd_notify_reloading(void)
{
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_now_ns() / 1000);
}

void
systemd_notify_stopping(void)
{
	sd_notify(0, "STOPPING=1");
}

void
systemd_notify_watchdog(void)
{
	sd_notify(0, "WATCHDOG=1");
}

uint64_t
systemd_watchdog_ns(void)
{
	uint64_t patience_us = 0;
	return sd_watchdog_enabled(0, &patience_us) > 0 ? patience_us * 1000 : 0;
}

/* Counts the passed sockets of that name; *fd becomes the one numbered `index`, or stays. */
static unsigned int
find_passed(const char *name, unsigned int index, int *fd)
{
	char **names = NULL;
	unsigned int found = 0;
	int count = sd_listen_fds_with_names(0, &names);

	for (int i = 0; i < count; i++) {
		if (strcmp(names[i], name) == 0 && found++ == index)
			*fd = SD_LISTEN_FDS_START + i;
		free(names[i]);
	}
	free(names);
	return found;
}

unsigned int
systemd_listen_count(const char *name)
{
	int fd;
	return find_passed(name, 0, &fd);
}

int
systemd_listen_fd(const char *name, unsigned int index, struct failure *why)
{
	int passed = -1;
	find_passed(name, index, &passed);
	if (passed < 0)
		return failure_set(why, FAILURE_CONFIG, "systemd passed no socket named \"%s\"",
				   name);
	if (sd_is_socket(passed, AF_UNSPEC, SOCK_STREAM, 1) <= 0)
		return failure_set(why, FAILURE_CONFIG,
				   "systemd's socket \"%s\" is not a listening stream socket",
				   name);
	int fd = fcntl(passed, F_DUPFD_CLOEXEC, SD_LISTEN_FDS_START);
	if (fd < 0)
		return failure_set_errno(why, errno, "cannot duplicate systemd's socket \"%s\"",
					 name);
	return fd;
}

bool
systemd_journal_on_stderr(void)
{
	const char *stream = getenv("JOURNAL_STREAM"); /* "device:inode", systemd.exec(5) */
	uintmax_t device, inode;
	struct stat status;

	return stream && sscanf(stream, "%ju:%ju", &device, &inode) == 2 &&
	       fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device &&
	       status.st_ino == inode;
}

bool
systemd_journal_present(void)
{
	return access("/run/systemd/journal/socket", W_OK) == 0;
}

int
systemd_journal_send(const struct iovec *fields, int count)
{
	return sd_journal_sendv(fields, count);
}
