/*
 * tls_counters: what handshakes came to, in the whole process. Relaxed atomics; any thread.
 */
#ifndef PENSTOCK_FILTERS_TLS_COUNTERS_H
#define PENSTOCK_FILTERS_TLS_COUNTERS_H

#include "../filter.h"

#include <stdint.h>

enum tls_counter {
	TLS_FULL,    /* handshakes with everything */
	TLS_RESUMED, /* by ticket or session cache */
	TLS_PSK,     /* with a pre-shared key, not resumed */
	TLS_REFUSED, /* the peer's certificate, key or lack of one */
	TLS_FAILED,  /* for any other reason, before they were over */
	TLS_COUNTERS
};

void tls_counters_add(enum filter_side side, enum tls_counter counter);
uint64_t tls_counters_read(enum filter_side side, enum tls_counter counter);

#endif
