#include "tls_sessions.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct remembered {
	char *name;
	SSL_SESSION *session;
	uint64_t put; /* the count of puts at the time */
};

struct tls_sessions {
	struct tls_lasting lasting;
	uint64_t puts;
	size_t count;
	struct remembered at[TLS_SESSIONS_MOST];
};

static void
on_end(struct tls_lasting *lasting)
{
	struct tls_sessions *sessions = (struct tls_sessions *)lasting;
	for (size_t i = 0; i < sessions->count; i++) {
		free(sessions->at[i].name);
		SSL_SESSION_free(sessions->at[i].session);
	}
}

static struct tls_lasting_kind kind = {
	.bytes = sizeof(struct tls_sessions),
	.end = on_end,
	.lock = PTHREAD_MUTEX_INITIALIZER,
};
/* For what is remembered, in all of them: held for a look through one. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct tls_sessions *
tls_sessions_hold(const unsigned char id[TLS_ID_BYTES])
{
	return (struct tls_sessions *)tls_lasting_hold(&kind, id);
}

void
tls_sessions_release(struct tls_sessions *sessions)
{
	tls_lasting_release(&kind, (struct tls_lasting *)sessions);
}

static struct remembered *
find(struct tls_sessions *sessions, const char *name)
{
	for (size_t i = 0; i < sessions->count; i++)
		if (strcmp(sessions->at[i].name, name) == 0)
			return &sessions->at[i];
	return NULL;
}

/* A place for a name that has none: a free one, or the one that was put first. */
static struct remembered *
make_place(struct tls_sessions *sessions, const char *name)
{
	char *copy = strdup(name);
	if (!copy)
		return NULL;
	struct remembered *place = &sessions->at[sessions->count];
	if (sessions->count == TLS_SESSIONS_MOST) {
		place = sessions->at;
		for (size_t i = 1; i < sessions->count; i++)
			if (sessions->at[i].put < place->put)
				place = &sessions->at[i];
		free(place->name);
	} else {
		sessions->count++;
	}
	place->name = copy;
	return place;
}

void
tls_sessions_put(struct tls_sessions *sessions, const char *name, SSL_SESSION *session)
{
	SSL_SESSION *gone = NULL;
	pthread_mutex_lock(&lock);
	struct remembered *place = find(sessions, name);
	if (!place)
		place = make_place(sessions, name);
	if (place) {
		gone = place->session;
		SSL_SESSION_up_ref(session);
		place->session = session;
		place->put = ++sessions->puts;
	}
	pthread_mutex_unlock(&lock);
	SSL_SESSION_free(gone);
}

SSL_SESSION *
tls_sessions_get(struct tls_sessions *sessions, const char *name)
{
	SSL_SESSION *session = NULL;
	pthread_mutex_lock(&lock);
	struct remembered *place = find(sessions, name);
	if (place && SSL_SESSION_is_resumable(place->session) && SSL_SESSION_up_ref(place->session))
		session = place->session;
	pthread_mutex_unlock(&lock);
	return session;
}
