/*
 * recent: what the flows of a connection did in the last ten seconds: a ring of slots of about a second
 * each. Kept only for connections that are active; one that has done nothing for so long is still in the
 * wait it was in. Pure: time is an argument.
 */
#ifndef PENSTOCK_RECENT_H
#define PENSTOCK_RECENT_H

#include "pump.h"

#include <stdint.h>

#define RECENT_SLOTS 10

/* What happened up to a moment, or within a window. */
struct recent_sums {
	uint64_t
		spent_ns[2]
			[WAITS]; /* by flow; of a flow that has ended the time is in none of them */
	uint64_t bytes[2];
};

struct recent {
	uint64_t began_ns, at_ns; /* the slots tell of the time between */
	uint8_t before[2];        /* enum wait: what the flows waited for before that */
	uint8_t next, count;      /* of the slots */
	struct recent_sums until; /* at_ns */
	struct recent_slot {
		uint64_t bytes[2];
		uint32_t length_us;
		uint32_t spent_us[2][WAITS];
	} slot[RECENT_SLOTS];
};

/* Begins a zeroed ring: of a pump's whole life that began at `opened_ns`, if `whole_life`, else from now on,
 * in the waits it is in. The pump's account must reach up to now. */
void recent_begin(struct recent *recent, const struct pump *pump, uint64_t opened_ns,
		  bool whole_life);

/* Closes a slot, for the time since the last one. The pump's account must reach up to now. */
void recent_note(struct recent *recent, const struct pump *pump);

struct recent_window {
	uint64_t length_ns; /* up to ten seconds and a slot, and not before the pump was opened */
	struct recent_sums sums;
	uint64_t rate[2]; /* bytes a second of the last two to three slots */
};

/* The window up to now. `recent` NULL: the pump has been in the waits it is in for all of it, or is younger
 * than a slot. The pump's account must reach up to now. */
void recent_look(const struct recent *recent, const struct pump *pump, uint64_t opened_ns,
		 struct recent_window *out);

#endif
