/*
 * tls: what the files of the TLS filter share: the state of one connection. Nobody outside
 * filters/tls*.c includes this. The state belongs to its connection's thread; everything that it
 * shares with others stands in its tls_conf.
 */
#ifndef PENSTOCK_FILTERS_TLS_H
#define PENSTOCK_FILTERS_TLS_H

#include "../filter.h"

#include <openssl/ssl.h>
#include <stdint.h>

struct tls_conf;

#define TLS_NAME_MOST 255 /* of a server, RFC 6066 3 */

struct tls {
	SSL *ssl; /* its one BIO reads from src and writes to dst, below */
	const struct tls_conf *conf;
	struct facts *facts;
	struct failure *refusal; /* why the peer is refused, in words; owned; NULL = not */
	struct failure *failure; /* reported once what waits has gone out; owned; NULL = none */
	char *session_name; /* far: what a session is remembered by; owned; NULL = nothing is */
	struct evbuffer *waiting; /* made by `in` for the out flow; NULL = nothing */

	/* For the length of a step: */
	struct evbuffer *src; /* the wire's bytes; NULL in an out step */
	struct evbuffer *dst; /* the wire; NULL in an in step: what is written waits */
	size_t dst_most;      /* the length that dst may reach */

	uint64_t updates_since_ns;
	uint8_t first[8]; /* what the peer began with, until it is understood */
	uint8_t first_count;
	uint8_t side;    /* enum filter_side */
	uint8_t updates; /* messages of the handshake behind it, since updates_since_ns; see tls.c */
	bool has_heard;  /* a message of the peer's that is TLS */
	bool is_ready;   /* the handshake is over, the peer is who it has to be */
	bool holds_buffers; /* of OpenSSL, which a handshake has left */
	bool is_torn;       /* some of `waiting` is lost for want of memory */
	bool out_has_ended;
	bool ticket_is_due; /* TLS 1.3: goes out in front of the first bytes to the client */
	bool has_session;   /* the peer came back with a session that was let in again */
	bool has_ticket;    /* ... out of its ticket */
	bool by_psk;        /* a pre-shared key was found for it */
	bool psk_is_unknown;
	bool is_counted; /* as a handshake that came to nothing */
};

/* The state behind an SSL of ours. */
static inline struct tls *
tls_of(const SSL *ssl)
{
	return BIO_get_data(SSL_get_rbio(ssl));
}

/* Says, once, why the peer is refused: what the connection's failure will tell. */
void tls_refuse(struct tls *tls, enum failure_kind kind, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#endif
