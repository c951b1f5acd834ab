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
	struct tls_sessions *next;
	unsigned char id[TLS_ID_BYTES];
	unsigned int users;
	pthread_mutex_t lock; /* for what stands below */
	uint64_t puts;
	size_t count;
	struct remembered at[TLS_SESSIONS_MOST];
};

static struct tls_sessions *all;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* for the list and `users` */

struct tls_sessions *
tls_sessions_hold(const unsigned char id[TLS_ID_BYTES])
{
	pthread_mutex_lock(&lock);
	struct tls_sessions *at = all;
	while (at && memcmp(at->id, id, TLS_ID_BYTES) != 0)
		at = at->next;
	if (!at) {
		at = calloc(1, sizeof(*at));
		if (at) {
			memcpy(at->id, id, TLS_ID_BYTES);
			pthread_mutex_init(&at->lock, NULL);
			at->next = all;
			all = at;
		}
	}
	if (at)
		at->users++;
	pthread_mutex_unlock(&lock);
	return at;
}

static void
sessions_free(struct tls_sessions *sessions)
{
	for (size_t i = 0; i < sessions->count; i++) {
		free(sessions->at[i].name);
		SSL_SESSION_free(sessions->at[i].session);
	}
	pthread_mutex_destroy(&sessions->lock);
	free(sessions);
}

void
tls_sessions_release(struct tls_sessions *sessions)
{
	if (!sessions)
		return;
	pthread_mutex_lock(&lock);
	bool is_last = --sessions->users == 0;
	for (struct tls_sessions **at = &all; is_last && *at; at = &(*at)->next) {
		if (*at == sessions) {
			*at = sessions->next;
			break;
		}
	}
	pthread_mutex_unlock(&lock);
	if (is_last)
		sessions_free(sessions);
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
	pthread_mutex_lock(&sessions->lock);
	struct remembered *place = find(sessions, name);
	if (!place)
		place = make_place(sessions, name);
	if (place) {
		gone = place->session;
		SSL_SESSION_up_ref(session);
		place->session = session;
		place->put = ++sessions->puts;
	}
	pthread_mutex_unlock(&sessions->lock);
	SSL_SESSION_free(gone);
}

SSL_SESSION *
tls_sessions_get(struct tls_sessions *sessions, const char *name)
{
	SSL_SESSION *session = NULL;
	pthread_mutex_lock(&sessions->lock);
	struct remembered *place = find(sessions, name);
	if (place && SSL_SESSION_is_resumable(place->session) && SSL_SESSION_up_ref(place->session))
		session = place->session;
	pthread_mutex_unlock(&sessions->lock);
	return session;
}
