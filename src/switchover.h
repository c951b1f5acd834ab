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

/* Makes `next` ready: targets, live counters, limits, listeners for `workers` workers. `current` (NULL at
 * the start) and its listeners `open` are not changed. On failure nothing was opened or added. */
int switchover_prepare(struct generation *next, const struct generation *current,
		       const struct listeners *open, unsigned int workers, struct limits *limits,
		       struct listeners *listeners, struct failure *why);
/* Undoes it: `next` does not come into force. */
void switchover_abandon(struct generation *next, struct listeners *listeners,
			const struct listeners *open);

/* Points every listener at its tunnel in the generation it now belongs to, and gives limits their new
 * values; has systemd keep the sockets that are new. Just before crew_switch. */
void switchover_commit(struct generation *next, const struct listeners *listeners);

/* Removes the limits that `old` (NULL at the start) has and `next` has not. After every worker has switched. */
void switchover_finish(const struct generation *old, const struct generation *next);

/* Has systemd give up the listeners of `old` that are not in `kept`. Just before crew_switch; may wait
 * for systemd, a second at most. */
void switchover_forget(const struct listeners *old, const struct listeners *kept);

/* Closes the listeners of `old` that are not in `kept` (may be empty), frees the list. After every
 * worker has switched. */
void switchover_close(struct listeners *old, const struct listeners *kept);

#endif
