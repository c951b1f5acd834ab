/*
 * limits_bucket: the arithmetic of one bucket. Exact: fractions of a token are kept, products fit into
 * 64 bits for rates up to LIMITS_RATE_MOST, and time may jump by any amount, or backwards.
 */
#ifndef PENSTOCK_LIMITS_BUCKET_H
#define PENSTOCK_LIMITS_BUCKET_H

#include "limits_tree.h"

#define LIMITS_BILLION UINT64_C(1000000000)

static inline uint64_t
limits_bucket_least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t
limits_bucket_most(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* The burst as a level. */
static inline int64_t
limits_bucket_full(const struct limit_bucket *bucket)
{
	return (int64_t)bucket->burst;
}

/* Counts the tokens up to now. To be called before every charge: one that is charged unrefilled lets
 * nearly two bursts through. A `now` of the past changes nothing: clocks of workers differ. */
static inline void
limits_bucket_refill(struct limit_bucket *bucket, uint64_t now_ns)
{
	if (!bucket->rate || now_ns <= bucket->stamp_ns)
		return;
	uint64_t elapsed_ns = now_ns - bucket->stamp_ns;
	bucket->stamp_ns = now_ns;
	if (elapsed_ns >= LIMITS_BILLION) {
		/* Whole seconds first: years times gigabytes do not fit. */
		uint64_t seconds = elapsed_ns / LIMITS_BILLION;
		uint64_t missing = (uint64_t)(limits_bucket_full(bucket) - bucket->tokens);
		if (seconds > missing / bucket->rate) {
			bucket->tokens = limits_bucket_full(bucket);
			bucket->fraction = 0;
			return;
		}
		bucket->tokens += (int64_t)(seconds * bucket->rate);
		elapsed_ns %= LIMITS_BILLION;
	}
	uint64_t earned = bucket->rate * elapsed_ns + bucket->fraction;
	bucket->tokens += (int64_t)(earned / LIMITS_BILLION);
	bucket->fraction = (uint32_t)(earned % LIMITS_BILLION);
	if (bucket->tokens >= limits_bucket_full(bucket)) {
		bucket->tokens = limits_bucket_full(bucket);
		bucket->fraction = 0;
	}
}

/* When it will have so many tokens, at most some 30 years ahead; the past if it has. */
static inline uint64_t
limits_bucket_when(const struct limit_bucket *bucket, int64_t level)
{
	if (!bucket->rate || level <= bucket->tokens)
		return bucket->stamp_ns;
	uint64_t missing = (uint64_t)(level - bucket->tokens);
	uint64_t seconds = limits_bucket_least(missing / bucket->rate, LIMITS_BILLION);
	uint64_t rest = missing % bucket->rate * LIMITS_BILLION;
	rest = rest > bucket->fraction ? rest - bucket->fraction : 0;
	return bucket->stamp_ns + seconds * LIMITS_BILLION +
	       (rest / bucket->rate + (rest % bucket->rate != 0));
}

/* The tokens at which a bucket that is short of `need` comes back. A little more than the need, so that
 * one wake-up serves several, but no more than half the burst: the timer may be late, and tokens stop
 * at the burst. */
static inline int64_t
limits_bucket_level(const struct limit_bucket *bucket, uint64_t need, uint64_t quantum)
{
	uint64_t ample = limits_bucket_most(quantum, bucket->rate / 500); /* 2 ms */
	ample = limits_bucket_least(bucket->burst / 2, ample);
	return (int64_t)limits_bucket_least(bucket->burst, limits_bucket_most(need, ample));
}

#endif
