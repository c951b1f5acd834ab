#include "tls_system.h"

#include "tls_memory.h"
#include "tls_peer.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static X509_STORE *current; /* NULL = not read yet */
static struct tls_system_stamps read_at;

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

struct tls_system_stamps
tls_system_look(void)
{
	return (struct tls_system_stamps){ stamp_of(file()), stamp_of(directory()) };
}

static bool
is_current(const struct tls_system_stamps *now)
{
	return current && stamp_is_same(&now->file, &read_at.file) &&
	       stamp_is_same(&now->directory, &read_at.directory);
}

/* Those of the file. What the directory has is read when it is asked for. */
static void
prepare(X509_STORE *store)
{
	STACK_OF(X509_OBJECT) *objects = X509_STORE_get0_objects(store);
	for (int i = 0; i < sk_X509_OBJECT_num(objects); i++) {
		X509 *authority = X509_OBJECT_get0_X509(sk_X509_OBJECT_value(objects, i));
		if (authority)
			tls_peer_prepare(authority);
	}
}

static void
renew(const struct tls_system_stamps *now)
{
	X509_STORE *fresh = X509_STORE_new();
	bool is_whole = fresh && X509_STORE_set_default_paths(fresh);
	if (is_whole)
		prepare(fresh);
	if (is_whole && !tls_memory_was_short()) {
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
	X509_STORE *store = NULL;

	pthread_mutex_lock(&lock);
	/* Before they are read: a change meanwhile is seen the next time. */
	struct tls_system_stamps now = tls_system_look();
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
