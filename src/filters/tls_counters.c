#include "tls_counters.h"

#include <stdatomic.h>

static atomic_uint_least64_t counts[2][TLS_COUNTERS];

void
tls_counters_add(enum filter_side side, enum tls_counter counter)
{
	atomic_fetch_add_explicit(&counts[side][counter], 1, memory_order_relaxed);
}

uint64_t
tls_counters_read(enum filter_side side, enum tls_counter counter)
{
	return atomic_load_explicit(&counts[side][counter], memory_order_relaxed);
}
