/*
 * tls_counters: what handshakes came to, in the whole process, but for those of the daemon's own checks.
 * Relaxed atomics; any thread.
 */
#ifndef PENSTOCK_FILTERS_TLS_COUNTERS_H
#define PENSTOCK_FILTERS_TLS_COUNTERS_H

#include "../filter.h"

#include <stdint.h>

enum tls_counter {
	TLS_FULL,   /* handshakes with everything */
	TLS_TICKET, /* a session is taken up again that its client kept */
	TLS_CACHE,  /* ... that its server kept */
	TLS_PSK,    /* with a pre-shared key, and no session */
	TLS_COUNTERS
};

/* Why there was no handshake. */
enum tls_failure {
	TLS_BAD_CERTIFICATE, /* the peer's is refused, or it has none */
	TLS_BAD_SECRET,      /* the pre-shared key, or its identity */
	TLS_NOT_TLS,         /* the peer speaks something else */
	TLS_UNSUPPORTED,     /* no version, cipher, group, kind of key or ALPN protocol in common */
	TLS_ALERT,           /* the peer refuses */
	TLS_BROKEN,          /* the peer breaks the rules of TLS */
	TLS_ENDED,           /* the peer ended first */
	TLS_RESET,           /* the peer reset */
	TLS_TIMEOUT,         /* a deadline passed */
	TLS_STOPPED,         /* the connection ended for a reason that is not the peer's */
	TLS_NO_MEMORY,
	TLS_FAILURES
};

void tls_counters_add(enum filter_side side, enum tls_counter counter);
uint64_t tls_counters_read(enum filter_side side, enum tls_counter counter);

void tls_counters_add_failure(enum filter_side side, enum tls_failure failure);
uint64_t tls_counters_read_failures(enum filter_side side, enum tls_failure failure);

/* One word for metrics: "certificate", "timeout" ... Static. */
const char *tls_counters_failure_name(enum tls_failure failure);

#endif
