/*
 * pulse: a worker's heartbeat, ten times a second by a precise timer: how late each beat comes is how long
 * others had to wait for the loop. Whoever must do something now and then without a timer of his own hangs on it.
 */
#ifndef PENSTOCK_PULSE_H
#define PENSTOCK_PULSE_H

#include "loop.h"

#include <stdint.h>

#define PULSE_MS      100
#define PULSE_BUCKETS 9

/* Upper bounds of the buckets, in nanoseconds; behind the last there is one without. */
extern const uint64_t pulse_bounds_ns[PULSE_BUCKETS];

struct pulse {
	/* The owner's, set before pulse_open. Called at each beat. */
	void (*beat)(struct pulse *pulse, uint64_t now_ns);

	/* To be read on the loop's thread. */
	uint64_t late[PULSE_BUCKETS + 1]; /* beats by how late they came */
	uint64_t late_ns, latest_ns;      /* sum, and the worst of all */
	uint64_t beats;

	struct event *event;
	uint64_t due_ns;
	int fd;
};

/* Opens a zeroed pulse on a loop; on failure it is closed again. Loop's thread, or before that runs. */
int pulse_open(struct pulse *pulse, struct loop *loop, struct failure *why);
/* A zeroed one is left alone. */
void pulse_close(struct pulse *pulse);

#endif
