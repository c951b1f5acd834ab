#include "tls_system.h"

#include "../stamp.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

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

static bool
is_current(const struct stamps *now)
{
	return current && stamp_is_same(&now->file, &read_at.file) &&
	       stamp_is_same(&now->directory, &read_at.directory);
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
	/* Before they are read: a change meanwhile is seen the next time. */
	now.file = stamp_of(file());
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
