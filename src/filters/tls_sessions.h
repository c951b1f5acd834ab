/*
 * tls_sessions: sessions to be taken up again, at most so many under one id; they outlive reloads
 * (tls_lasting). Towards servers those that we were given, by target and server name; for clients
 * without tickets of their own, by the session's id. What is put first, or is over, goes first. Any
 * thread.
 */
#ifndef PENSTOCK_FILTERS_TLS_SESSIONS_H
#define PENSTOCK_FILTERS_TLS_SESSIONS_H

#include "tls_lasting.h"

#include <openssl/ssl.h>

struct tls_sessions;

/* `most` counts from now on for all who hold it. NULL without memory. */
struct tls_sessions *tls_sessions_hold(const unsigned char id[TLS_ID_BYTES], size_t most);
void tls_sessions_release(struct tls_sessions *sessions); /* NULL is allowed */

/* Keeps `session` (a reference of its own) under `name`, or nothing without memory. Costs O(log n), and
 * what goes. */
void tls_sessions_put(struct tls_sessions *sessions, const void *name, size_t length,
		      SSL_SESSION *session);

/* A reference for the caller, or NULL: none of that name, or none that may still be taken up. */
SSL_SESSION *tls_sessions_get(struct tls_sessions *sessions, const void *name, size_t length);

/* Makes a server's context keep its sessions in its section's `kept`, without limit of its own; who
 * comes back is asked about with tls_peer_is_welcome. */
void tls_sessions_use(SSL_CTX *context);

#endif
