#include "tls_counters.h"

#include <stdatomic.h>

static atomic_uint_least64_t counts[2][TLS_COUNTERS];
static atomic_uint_least64_t failures[2][TLS_FAILURES];

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

void
tls_counters_add_failure(enum filter_side side, enum tls_failure failure)
{
	atomic_fetch_add_explicit(&failures[side][failure], 1, memory_order_relaxed);
}

uint64_t
tls_counters_read_failures(enum filter_side side, enum tls_failure failure)
{
	return atomic_load_explicit(&failures[side][failure], memory_order_relaxed);
}

const char *
tls_counters_failure_name(enum tls_failure failure)
{
	static const char *const names[TLS_FAILURES] = {
		[TLS_BAD_CERTIFICATE] = "certificate",
		[TLS_BAD_SECRET] = "secret",
		[TLS_NOT_TLS] = "not_tls",
		[TLS_UNSUPPORTED] = "unsupported",
		[TLS_ALERT] = "alert",
		[TLS_BROKEN] = "protocol",
		[TLS_ENDED] = "ended",
		[TLS_RESET] = "reset",
		[TLS_TIMEOUT] = "timeout",
		[TLS_STOPPED] = "stopped",
		[TLS_NO_MEMORY] = "memory",
	};
	return names[failure];
}
