#include "clock.h"

#include <sys/time.h>
#include <time.h>

uint64_t
clock_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void
clock_to_timeval(uint64_t duration_ns, struct timeval *out)
{
	uint64_t us = duration_ns / 1000 + (duration_ns % 1000 != 0);
	out->tv_sec = (time_t)(us / 1000000);
	out->tv_usec = (suseconds_t)(us % 1000000);
}
