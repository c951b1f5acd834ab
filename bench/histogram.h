/*
 * histogram: values counted in bins of 0.2 % of their size, so that percentiles of any number of
 * samples cost one fixed array.
 */
#ifndef PENSTOCK_BENCH_HISTOGRAM_H
#define PENSTOCK_BENCH_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_STEP_BITS 9 /* each power of two is cut into 2^9 bins */
#define HISTOGRAM_BINS      ((65 - HISTOGRAM_STEP_BITS) << HISTOGRAM_STEP_BITS)

struct histogram { /* all zero is an empty one */
	uint64_t total;
	uint64_t bins[HISTOGRAM_BINS];
};

void histogram_add(struct histogram *histogram, uint64_t value);

/* The least value of the bin below or in which `share` (0 to 1) of the samples lie; 0 if empty. */
uint64_t histogram_percentile(const struct histogram *histogram, double share);

#endif
