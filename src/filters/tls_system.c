#include "tls_system.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What tells one state of a file or directory from another. */
struct stamp {
	dev_t device;
	ino_t inode;
	off_t size;
	struct timespec changed;
};

struct stamps {
	struct stamp file, directory;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static X509_STORE *current; /* NULL = not read yet */
static struct stamps read_at;

static const char *
file(void)
{
	const char *named = getenv(X509_get_default_cert_file_env());
	return named ? named : X509_get_default_cert_file();
}

static const char *
directory(void)
{
	const char *named = getenv(X509_get_default_cert_dir_env());
	return named ? named : X509_get_default_cert_dir();
}

static struct stamp
stamp_of(const char *path)
{
	struct stamp stamp;
	struct stat status;

	memset(&stamp, 0, sizeof(stamp)); /* compared as a whole */
	if (stat(path, &status) < 0)
		return stamp;
	stamp.device = status.st_dev;
	stamp.inode = status.st_ino;
	stamp.size = status.st_size;
	stamp.changed = status.st_ctim;
	return stamp;
}

static bool
is_current(const struct stamps *now)
{
	return current && memcmp(now, &read_at, sizeof(*now)) == 0;
}

static void
renew(const struct stamps *now)
{
	X509_STORE *fresh = X509_STORE_new();
	if (fresh && X509_STORE_set_default_paths(fresh)) {
		X509_STORE_free(current);
		current = fresh;
		read_at = *now;
	} else {
		X509_STORE_free(fresh);
	}
}

X509_STORE *
tls_system_hold(struct failure *why)
{
	struct stamps now;
	X509_STORE *store = NULL;

	pthread_mutex_lock(&lock);
	now.file =
		stamp_of(file()); /* before it is read: a change meanwhile is seen the next time */
	now.directory = stamp_of(directory());
	if (!is_current(&now))
		renew(&now);
	if (is_current(&now) && X509_STORE_up_ref(current))
		store = current;
	pthread_mutex_unlock(&lock);
	if (!store)
		failure_set(why, FAILURE_MEMORY, "no memory for the system's CAs");
	return store;
}

bool
tls_system_exists(void)
{
	return access(file(), R_OK) == 0 || access(directory(), R_OK) == 0;
}
