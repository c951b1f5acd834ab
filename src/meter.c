#include "meter.h"

/* What `bytes` bytes cost. */
static uint64_t
cost(const struct meter *meter, uint64_t bytes)
{
	if (!meter->overhead_bytes)
		return bytes;
	uint64_t segments = (bytes + meter->segment_bytes - 1) / meter->segment_bytes;
	return bytes + segments * meter->overhead_bytes;
}

/* How many bytes so much pays for. */
static uint64_t
paid_by(const struct meter *meter, uint64_t tokens)
{
	if (!meter->overhead_bytes)
		return tokens;
	uint64_t whole = (uint64_t)meter->segment_bytes + meter->overhead_bytes;
	uint64_t rest = tokens % whole;
	return tokens / whole * meter->segment_bytes +
	       (rest > meter->overhead_bytes ? rest - meter->overhead_bytes : 0);
}

uint64_t
meter_take(struct meter *meter, uint64_t want, uint64_t now_ns)
{
	uint64_t need = cost(meter, want);
	uint64_t tokens = limits_take(&meter->flow, need, now_ns);

	/* The last crumbs of a grant would make for a crumb of a segment. */
	if (tokens && tokens < need && tokens < LIMITS_SEGMENT_BYTES) {
		limits_give_back(&meter->flow);
		tokens = limits_take(&meter->flow, need, now_ns);
	}
	return tokens < need ? paid_by(meter, tokens) : want;
}

void
meter_spend(struct meter *meter, uint64_t bytes)
{
	limits_spend(&meter->flow, cost(meter, bytes));
}

void
meter_rest(struct meter *meter)
{
	if (meter)
		limits_give_back(&meter->flow);
}
