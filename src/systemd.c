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
#include <sys/un.h>
#include <unistd.h>

#define SD_JOURNAL_SUPPRESS_LOCATION /* the place in log.c would tell nobody anything */
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>

#define SETTLE_US 1000000

/* --- notifications -------------------------------------------------------------------------------- */

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
systemd_notify_stopping(uint64_t patience_ns)
{
	if (patience_ns)
		sd_notifyf(0, "STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64, patience_ns / 1000);
	else
		sd_notify(0, "STOPPING=1");
}

bool
systemd_is_manager_there(void)
{
	return getenv("NOTIFY_SOCKET") != NULL;
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

/* --- passed sockets ------------------------------------------------------------------------------- */

/* A name in the store: systemd allows 255 printable characters, none of them a colon. */
#define STORED      "penstock "
#define STORED_MOST 255

struct passed {
	char *name;
	int fd;
	bool is_used; /* of a socket unit: asked for; of the store: taken */
};

static struct passed *all_passed; /* kept for the life of the process */
static int passed_count;

static void
read_passed(void)
{
	char **names = NULL;

	if (passed_count)
		return;
	int count = sd_listen_fds_with_names(0, &names);
	if (count <= 0)
		return;
	all_passed = calloc((size_t)count, sizeof(*all_passed));
	for (int i = 0; i < count; i++) {
		if (all_passed)
			all_passed[passed_count++] =
				(struct passed){ names[i], SD_LISTEN_FDS_START + i, false };
		else
			free(names[i]);
	}
	free(names);
}

static bool
is_stored(const struct passed *passed)
{
	return strncmp(passed->name, STORED, strlen(STORED)) == 0;
}

/* The one numbered `index` of those that are named so, or NULL. */
static struct passed *
find_named(const char *name, unsigned int index)
{
	read_passed();
	for (int i = 0; i < passed_count; i++)
		if (strcmp(all_passed[i].name, name) == 0 && index-- == 0)
			return &all_passed[i];
	return NULL;
}

unsigned int
systemd_listen_count(const char *name)
{
	unsigned int count = 0;
	while (find_named(name, count))
		count++;
	return count;
}

static int
use(struct passed *passed, struct failure *why)
{
	if (sd_is_socket(passed->fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0)
		return failure_set(why, FAILURE_CONFIG,
				   "systemd's socket \"%s\" is not a listening stream socket",
				   passed->name);
	int fd = fcntl(passed->fd, F_DUPFD_CLOEXEC, SD_LISTEN_FDS_START);
	if (fd < 0)
		return failure_set_errno(why, errno, "cannot duplicate systemd's socket \"%s\"",
					 passed->name);
	passed->is_used = true;
	return fd;
}

int
systemd_listen_fd(const char *name, unsigned int index, struct failure *why)
{
	struct passed *passed = find_named(name, index);
	if (!passed)
		return failure_set(why, FAILURE_CONFIG, "systemd passed no socket named \"%s\"",
				   name);
	return use(passed, why);
}

/* Whether the socket is bound to that address. */
static bool
is_at(int fd, const struct address *address)
{
	struct sockaddr_storage bound = { 0 }, wanted = { 0 };
	struct socket_address numeric;
	socklen_t bytes = sizeof(bound), wanted_bytes;

	if (getsockname(fd, (struct sockaddr *)&bound, &bytes) < 0)
		return false;
	if (address->kind == ADDRESS_IP) {
		socket_address_from(&numeric, (struct sockaddr *)&bound, bytes);
		return socket_address_equal(&numeric, &address->numeric);
	}
	wanted_bytes = address_to_unix(address, &wanted, NULL);
	/* The kernel tells a path's final zero, the one who bound it need not have counted it. */
	if (address->kind == ADDRESS_UNIX)
		return wanted_bytes && bound.ss_family == AF_UNIX &&
		       strcmp(((struct sockaddr_un *)&bound)->sun_path,
			      ((struct sockaddr_un *)&wanted)->sun_path) == 0;
	return bytes == wanted_bytes && memcmp(&bound, &wanted, bytes) == 0;
}

int
systemd_listen_address(const struct address *address, int *fd, struct failure *why)
{
	read_passed();
	for (int i = 0; i < passed_count; i++)
		if (!is_stored(&all_passed[i]) && is_at(all_passed[i].fd, address)) {
			*fd = use(&all_passed[i], why);
			return *fd < 0 ? -1 : 1;
		}
	return 0;
}

void
systemd_tell_unused(void (*tell)(const char *name, int fd))
{
	read_passed();
	for (int i = 0; i < passed_count; i++)
		if (!is_stored(&all_passed[i]) && !all_passed[i].is_used)
			tell(all_passed[i].name, all_passed[i].fd);
}

/* --- the descriptor store ------------------------------------------------------------------------- */

bool
systemd_keeps_sockets(void)
{
	const char *most = getenv("FDSTORE");
	return most && atoi(most) > 0 && systemd_is_manager_there();
}

/* The store's name for a key; false if it would be too long to be one. */
static bool
name_of(const char *key, char name[STORED_MOST + 1])
{
	int length = snprintf(name, STORED_MOST + 1, STORED "%s", key);
	for (char *at = name; *at; at++)
		if (*at == ':')
			*at = '+';
	return length <= STORED_MOST;
}

bool
systemd_store(const char *key, int fd)
{
	char name[STORED_MOST + 1], state[STORED_MOST + 64];

	if (!systemd_keeps_sockets() || !name_of(key, name))
		return false;
	snprintf(state, sizeof(state), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	return sd_pid_notify_with_fds(0, 0, state, &fd, 1) > 0;
}

static struct passed *
find_stored(const char *key)
{
	char name[STORED_MOST + 1];

	read_passed();
	if (!name_of(key, name))
		return NULL;
	for (int i = 0; i < passed_count; i++)
		if (strcmp(all_passed[i].name, name) == 0 && !all_passed[i].is_used)
			return &all_passed[i];
	return NULL;
}

unsigned int
systemd_stored_count(const char *key)
{
	char name[STORED_MOST + 1];
	unsigned int count = 0;

	read_passed();
	for (int i = 0; i < passed_count && name_of(key, name); i++)
		count += strcmp(all_passed[i].name, name) == 0 && !all_passed[i].is_used;
	return count;
}

int
systemd_stored_take(const char *key)
{
	struct passed *stored = find_stored(key);
	if (!stored)
		return -1;
	stored->is_used = true;
	fcntl(stored->fd, F_SETFD, FD_CLOEXEC);
	return stored->fd;
}

static void
forget_named(const char *name)
{
	sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

void
systemd_store_forget(const char *key)
{
	char name[STORED_MOST + 1];
	if (name_of(key, name))
		forget_named(name);
}

void
systemd_store_forget_rest(void)
{
	read_passed();
	for (int i = 0; i < passed_count; i++) {
		struct passed *passed = &all_passed[i];
		if (!is_stored(passed) || passed->is_used)
			continue;
		passed->is_used = true;
		close(passed->fd);
		forget_named(passed->name);
	}
}

void
systemd_settle(void)
{
	sd_notify_barrier(0, SETTLE_US);
}

int
systemd_credential(const char *name, char **path, struct failure *why)
{
	const char *directory = getenv("CREDENTIALS_DIRECTORY"); /* systemd.exec(5) */
	const char *daemon = getenv("MAINPID");
	int length;

	if (!directory)
		return failure_set(
			why, FAILURE_CONFIG,
			"credential:%s is known to the service only, and needs "
			"LoadCredential=%s:PATH in its unit; without systemd name a file",
			name, name);
	/* systemd 252 names the directory to an ExecReload command, and hides it; but the daemon's own view
	 * of it can be seen by its user. */
	if (daemon && access(directory, R_OK | X_OK) < 0)
		length = asprintf(path, "/proc/%s/root%s/%s", daemon, directory, name);
	else
		length = asprintf(path, "%s/%s", directory, name);
	return length < 0 ? failure_set(why, FAILURE_MEMORY, "no memory for a path") : 0;
}

/* --- the journal ---------------------------------------------------------------------------------- */

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
