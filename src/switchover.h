/*
 * switchover: brings a generation into force. What goes on is carried over (listeners, what is known
 * of targets, counters), what is new is opened first, and only when all of it is there do the workers
 * switch. Control thread.
 */
#ifndef PENSTOCK_SWITCHOVER_H
#define PENSTOCK_SWITCHOVER_H

#include "generation.h"
#include "limits.h"
#include "listener.h"
#include "name_index.h"

/* The listeners of one generation; those that stay are in the lists of both. */
struct listeners {
	struct listener **at; /* owned array */
	size_t count;
	struct name_index keys;
};

/* What is in force when another generation is to come. */
struct incumbent {
	const struct generation *generation; /* NULL at the start */
	const struct listeners *open;
	bool is_steered; /* what an operator has set by hand goes on: drained tunnels, values of limits */
};

/* Makes `next` ready: targets, live counters, limits, listeners for `workers` workers. What is in force is
 * not changed. On failure nothing was opened or added. */
int switchover_prepare(struct generation *next, const struct incumbent *before,
		       unsigned int workers, struct limits *limits, struct listeners *listeners,
		       struct failure *why);
/* Undoes it: `next` does not come into force. */
void switchover_abandon(struct generation *next, struct listeners *listeners,
			const struct listeners *open);

/* Points every listener at its tunnel in the generation it now belongs to, and gives limits their new
 * values. Unless what is in force is steered, no tunnel is drained any more. Just before crew_switch. */
void switchover_commit(struct generation *next, const struct incumbent *before,
		       const struct listeners *listeners);

/* The listeners of a generation in force, those that are `open` and those that are not: all but the ones of
 * tunnels that are shut, which only stay where a socket unit holds them open anyhow. On failure nothing was
 * opened. */
int switchover_listen(const struct generation *generation, const struct listeners *open,
		      unsigned int workers, struct listeners *listeners, struct failure *why);

/* Removes the limits that `old` (NULL at the start) has and `next` has not, and forgets what checks have said of
 * targets that have none any more. After every worker has switched: no check of `old` is under way. */
void switchover_finish(const struct generation *old, const struct generation *next);

/* Has systemd keep those of `kept`, and give up the listeners of `old` that are not in it. Just before
 * crew_switch or crew_listen; may wait for systemd, a second at most. */
void switchover_store(const struct listeners *old, const struct listeners *kept);

/* Closes the listeners of `old` that are not in `kept` (may be empty), frees the list. After every
 * worker has switched. */
void switchover_close(struct listeners *old, const struct listeners *kept);

#endif
