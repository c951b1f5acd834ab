#include "recent.h"

#include "clock.h"

#include <string.h>

#define WINDOW_NS  (RECENT_SLOTS * NS_PER_S)
#define RATE_SLOTS 2
/* A pump without a ring that is younger than this has not been looked at yet. */
#define YOUNG_NS (2 * NS_PER_S)
/* What has passed in less is no rate yet: it counts as that of so long. */
#define RATE_LEAST_NS (100 * NS_PER_MS)

static struct recent_sums
sums_of(const struct pump *pump)
{
	struct recent_sums sums = { 0 };
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		memcpy(sums.spent_ns[name], pump->flow[name].spent_ns, sizeof(sums.spent_ns[name]));
		sums.bytes[name] = pump->flow[name].bytes;
	}
	return sums;
}

/* As the pump accounts it. */
static enum wait
cause_of(const struct pump *pump, int name)
{
	return pump_waiting(pump, (enum pump_flow)name).cause;
}

void
recent_begin(struct recent *recent, const struct pump *pump, uint64_t opened_ns, bool whole_life)
{
	recent->before[FLOW_UP] = (uint8_t)cause_of(pump, FLOW_UP);
	recent->before[FLOW_DOWN] = (uint8_t)cause_of(pump, FLOW_DOWN);
	recent->began_ns = recent->at_ns = whole_life ? opened_ns : pump->clock_ns;
	if (!whole_life)
		recent->until = sums_of(pump);
}

void
recent_note(struct recent *recent, const struct pump *pump)
{
	struct recent_slot *slot = &recent->slot[recent->next];
	struct recent_sums now = sums_of(pump);

	if (recent->count == RECENT_SLOTS)
		recent->began_ns += slot->length_us * UINT64_C(1000);
	else
		recent->count++;
	recent->next = (uint8_t)((recent->next + 1) % RECENT_SLOTS);
	slot->length_us = (uint32_t)((pump->clock_ns - recent->at_ns) / 1000);
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		slot->bytes[name] = now.bytes[name] - recent->until.bytes[name];
		for (int cause = 0; cause < WAITS; cause++)
			slot->spent_us[name][cause] =
				(uint32_t)((now.spent_ns[name][cause] -
					    recent->until.spent_ns[name][cause]) /
					   1000);
	}
	recent->until = now;
	recent->at_ns = pump->clock_ns;
}

static void
add_slot(struct recent_sums *sums, const struct recent_slot *slot)
{
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		sums->bytes[name] += slot->bytes[name];
		for (int cause = 0; cause < WAITS; cause++)
			sums->spent_ns[name][cause] += slot->spent_us[name][cause] * UINT64_C(1000);
	}
}

/* What happened since the last slot was closed. */
static struct recent_sums
unslotted(const struct recent *recent, const struct pump *pump)
{
	struct recent_sums sums = sums_of(pump);
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		sums.bytes[name] -= recent->until.bytes[name];
		for (int cause = 0; cause < WAITS; cause++)
			sums.spent_ns[name][cause] -= recent->until.spent_ns[name][cause];
	}
	return sums;
}

static uint64_t
rate_of(uint64_t bytes, uint64_t length_ns)
{
	if (length_ns < RATE_LEAST_NS)
		length_ns = RATE_LEAST_NS;
	return (uint64_t)((double)bytes * (double)NS_PER_S / (double)length_ns);
}

static void
set_rate(const struct recent *recent, const struct pump *pump, struct recent_window *out)
{
	struct recent_sums sums = unslotted(recent, pump);
	uint64_t length_ns = pump->clock_ns - recent->at_ns;

	for (int i = 1; i <= RATE_SLOTS && i <= recent->count; i++) {
		const struct recent_slot *slot =
			&recent->slot[(recent->next + RECENT_SLOTS - i) % RECENT_SLOTS];
		add_slot(&sums, slot);
		length_ns += slot->length_us * UINT64_C(1000);
	}
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++)
		out->rate[name] = rate_of(sums.bytes[name], length_ns);
}

static void
look_without(const struct pump *pump, uint64_t opened_ns, struct recent_window *out)
{
	uint64_t life_ns = pump->clock_ns - opened_ns;

	out->length_ns = life_ns < WINDOW_NS ? life_ns : WINDOW_NS;
	if (life_ns >= YOUNG_NS) {
		for (int name = FLOW_UP; name <= FLOW_DOWN; name++)
			if (pump->flow[name].state != FLOW_ENDED)
				out->sums.spent_ns[name][cause_of(pump, name)] = out->length_ns;
		return;
	}
	out->sums = sums_of(pump);
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++)
		out->rate[name] = rate_of(out->sums.bytes[name], life_ns);
}

void
recent_look(const struct recent *recent, const struct pump *pump, uint64_t opened_ns,
	    struct recent_window *out)
{
	*out = (struct recent_window){ 0 };
	if (!recent) {
		look_without(pump, opened_ns, out);
		return;
	}
	out->sums = unslotted(recent, pump);
	for (int i = 0; i < recent->count; i++)
		add_slot(&out->sums, &recent->slot[i]);
	out->length_ns = pump->clock_ns - recent->began_ns;
	set_rate(recent, pump, out);
	/* Before the first slot it was at rest. */
	uint64_t from_ns =
		pump->clock_ns - opened_ns < WINDOW_NS ? opened_ns : pump->clock_ns - WINDOW_NS;
	if (from_ns >= recent->began_ns)
		return;
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++)
		if (pump->flow[name].state != FLOW_ENDED)
			out->sums.spent_ns[name][recent->before[name]] +=
				recent->began_ns - from_ns;
	out->length_ns = pump->clock_ns - from_ns;
}
