/*
 * check: tries the targets of tunnels with a `check` section, now and then, through all of their far side, and
 * tells target.h what came of it. Each target is one worker's. Knows nothing of clients.
 */
#ifndef PENSTOCK_CHECK_H
#define PENSTOCK_CHECK_H

#include "generation.h"

struct connections;

/* The checks of one worker. Zero it and set the first group. Its worker's thread only. */
struct checks {
	struct connections *connections;
	unsigned int worker, workers;

	struct checker *first;
};

/* Checks the targets of this generation that are this worker's, and no others, from now on. What is known of
 * a target goes on. Holds the generation. */
void check_switch(struct checks *checks, struct generation *generation);

/* Checks no more. A worker that ends must have called it before its loop turns for the last time. */
void check_close(struct checks *checks);

#endif
