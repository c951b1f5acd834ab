/*
 * tls_sessions: the sessions that servers gave us, to be taken up again; they outlive reloads
 * (tls_lasting). One session for each name, at most
 * TLS_SESSIONS_MOST names; the oldest goes first. Any thread.
 */
#ifndef PENSTOCK_FILTERS_TLS_SESSIONS_H
#define PENSTOCK_FILTERS_TLS_SESSIONS_H

#include "tls_lasting.h"

#include <openssl/ssl.h>

#define TLS_SESSIONS_MOST 256

struct tls_sessions;

struct tls_sessions *tls_sessions_hold(const unsigned char id[TLS_ID_BYTES]);
void tls_sessions_release(struct tls_sessions *sessions); /* NULL is allowed */

/* Keeps `session` (a reference of its own) for `name` (target and server name). */
void tls_sessions_put(struct tls_sessions *sessions, const char *name, SSL_SESSION *session);

/* A reference for the caller, or NULL. */
SSL_SESSION *tls_sessions_get(struct tls_sessions *sessions, const char *name);

#endif
