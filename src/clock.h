/*
 * clock: the one monotonic time of the daemon, in nanoseconds. Modules that decide by time take it
 * as an argument; only those who drive them ask here.
 */
#ifndef PENSTOCK_CLOCK_H
#define PENSTOCK_CLOCK_H

#include <stdint.h>

#define NS_PER_S  UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

/* Nanoseconds since an arbitrary point (CLOCK_MONOTONIC). Any thread; about 20 ns, no system call. */
uint64_t clock_now_ns(void);

struct timeval;
/* The duration as libevent wants it, rounded up to the next microsecond. */
void clock_to_timeval(uint64_t duration_ns, struct timeval *out);

#endif
