/*
 * switchover_limits: the limits of one generation become those of the next, in the tree they share: those
 * of the same name are changed in place, new ones are added, and what is gone is removed when nobody hangs
 * there any more. Control thread.
 */
#ifndef PENSTOCK_SWITCHOVER_LIMITS_H
#define PENSTOCK_SWITCHOVER_LIMITS_H

#include "generation.h"

/* Finds or adds every limit of `next`. What is in force does not change. `current` is NULL at the start.
 * On failure nothing was added. */
int switchover_limits_prepare(struct generation *next, const struct generation *current,
			      struct limits *limits, struct failure *why);

/* Removes again what was added. For a generation that does not come into force. */
void switchover_limits_abandon(struct generation *next);

/* The values of `next` count from now on: all, or, with `steered`, only those that were others there, so that
 * what an operator has set since goes on. What could not be changed for lack of memory is logged. */
void switchover_limits_commit(struct generation *next, const struct generation *steered);

/* Removes what `old` has and `next` has not. After every worker has switched. */
void switchover_limits_finish(const struct generation *old, const struct generation *next);

#endif
