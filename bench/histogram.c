#include "histogram.h"

#include <stddef.h>

#define STEPS (UINT64_C(1) << HISTOGRAM_STEP_BITS)

static size_t
bin_of(uint64_t value)
{
	if (value < STEPS)
		return (size_t)value;
	unsigned int shift = 63U - (unsigned int)__builtin_clzll(value) - HISTOGRAM_STEP_BITS;
	return (size_t)((shift + 1) * STEPS + ((value >> shift) & (STEPS - 1)));
}

static uint64_t
least_of(size_t bin)
{
	if (bin < STEPS)
		return bin;
	return (STEPS + bin % STEPS) << (bin / STEPS - 1);
}

void
histogram_add(struct histogram *histogram, uint64_t value)
{
	histogram->total++;
	histogram->bins[bin_of(value)]++;
}

uint64_t
histogram_percentile(const struct histogram *histogram, double share)
{
	double wanted = share * (double)histogram->total;
	uint64_t seen = 0;

	for (size_t bin = 0; bin < HISTOGRAM_BINS; bin++) {
		seen += histogram->bins[bin];
		if (histogram->bins[bin] && (double)seen >= wanted)
			return least_of(bin);
	}
	return 0;
}
