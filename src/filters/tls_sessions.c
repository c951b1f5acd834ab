#include "tls_sessions.h"

#include "tls.h"
#include "tls_conf.h"

#include <pthread.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>

struct remembered {
	TAILQ_ENTRY(remembered) order;
	SSL_SESSION *session;
	size_t length;
	const void *name; /* behind it, if it is remembered */
};

TAILQ_HEAD(order, remembered);

struct tls_sessions {
	struct tls_lasting lasting;
	size_t most, count;
	void *by_name;      /* of tsearch(3) */
	struct order order; /* put first = first */
};

static int
compare(const void *one, const void *other)
{
	const struct remembered *a = one, *b = other;
	if (a->length != b->length)
		return a->length < b->length ? -1 : 1;
	return memcmp(a->name, b->name, a->length);
}

static void
forget(struct tls_sessions *sessions, struct remembered *at)
{
	tdelete(at, &sessions->by_name, compare);
	TAILQ_REMOVE(&sessions->order, at, order);
	sessions->count--;
	SSL_SESSION_free(at->session);
	free(at);
}

static void
on_end(struct tls_lasting *lasting)
{
	struct tls_sessions *sessions = (struct tls_sessions *)lasting;
	while (sessions->count)
		forget(sessions, TAILQ_FIRST(&sessions->order));
}

static struct tls_lasting_kind kind = {
	.bytes = sizeof(struct tls_sessions),
	.end = on_end,
	.lock = PTHREAD_MUTEX_INITIALIZER,
};
/* For what is remembered, in all of them: held for a look through one. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct tls_sessions *
tls_sessions_hold(const unsigned char id[TLS_ID_BYTES], size_t most)
{
	struct tls_sessions *sessions = (struct tls_sessions *)tls_lasting_hold(&kind, id);
	if (!sessions)
		return NULL;
	pthread_mutex_lock(&lock);
	sessions->most = most;
	if (!sessions->count)
		TAILQ_INIT(&sessions->order);
	pthread_mutex_unlock(&lock);
	return sessions;
}

void
tls_sessions_release(struct tls_sessions *sessions)
{
	tls_lasting_release(&kind, (struct tls_lasting *)sessions);
}

static struct remembered *
find(struct tls_sessions *sessions, const void *name, size_t length)
{
	struct remembered wanted = { .name = name, .length = length };
	struct remembered **found = tfind(&wanted, &sessions->by_name, compare);
	return found ? *found : NULL;
}

static bool
is_over(const SSL_SESSION *session)
{
	return !SSL_SESSION_is_resumable(session) ||
	       (long)time(NULL) - SSL_SESSION_get_time(session) > SSL_SESSION_get_timeout(session);
}

static void
make_room(struct tls_sessions *sessions)
{
	struct remembered *first;
	while ((first = TAILQ_FIRST(&sessions->order)) &&
	       (sessions->count >= sessions->most || is_over(first->session)))
		forget(sessions, first);
}

static void
remember(struct tls_sessions *sessions, const void *name, size_t length, SSL_SESSION *session)
{
	struct remembered *fresh = malloc(sizeof(*fresh) + length);
	if (!fresh)
		return;
	*fresh = (struct remembered){
		.session = session,
		.length = length,
		.name = memcpy(fresh + 1, name, length),
	};
	if (!tsearch(fresh, &sessions->by_name, compare)) {
		free(fresh);
		return;
	}
	SSL_SESSION_up_ref(session);
	TAILQ_INSERT_TAIL(&sessions->order, fresh, order);
	sessions->count++;
}

void
tls_sessions_put(struct tls_sessions *sessions, const void *name, size_t length,
		 SSL_SESSION *session)
{
	pthread_mutex_lock(&lock);
	struct remembered *before = find(sessions, name, length);
	if (before)
		forget(sessions, before);
	make_room(sessions);
	remember(sessions, name, length, session);
	pthread_mutex_unlock(&lock);
}

SSL_SESSION *
tls_sessions_get(struct tls_sessions *sessions, const void *name, size_t length)
{
	SSL_SESSION *session = NULL;
	pthread_mutex_lock(&lock);
	struct remembered *found = find(sessions, name, length);
	if (found && !is_over(found->session) && SSL_SESSION_up_ref(found->session))
		session = found->session;
	pthread_mutex_unlock(&lock);
	return session;
}

/* --- OpenSSL's side, of a server ----------------------------------------------------------------- */

static int
on_session(SSL *ssl, SSL_SESSION *session)
{
	const struct tls_conf *conf = tls_of(ssl)->conf;
	unsigned int length;
	const unsigned char *name = SSL_SESSION_get_id(session, &length);
	/* In TLS 1.3 the one that the client carries home itself is told, too. */
	if (SSL_version(ssl) != TLS1_3_VERSION || !conf->tickets)
		tls_sessions_put(conf->kept, name, length, session);
	return 0; /* the reference stays OpenSSL's */
}

static SSL_SESSION *
on_session_wanted(SSL *ssl, const unsigned char *name, int length, int *copy)
{
	struct tls *tls = tls_of(ssl);
	SSL_SESSION *session = tls_sessions_get(tls->conf->kept, name, (size_t)length);
	*copy = 0; /* the reference becomes OpenSSL's */
	if (session && !tls_peer_is_welcome(tls, session)) {
		SSL_SESSION_free(session);
		return NULL;
	}
	return session;
}

void
tls_sessions_use(SSL_CTX *context)
{
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL);
	SSL_CTX_sess_set_new_cb(context, on_session);
	SSL_CTX_sess_set_get_cb(context, on_session_wanted);
}
