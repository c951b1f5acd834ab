/*
 * control: the control thread's affairs: which generation is in force, and what comes next. One thing at a
 * time: while a file is read, or the workers switch to a generation, or to the listeners that are left
 * when a tunnel is drained, whatever else was asked for waits until that is over.
 *
 * The state stands here, for control*.c alone: main sets what is said to be its own and calls
 * control_start and control_stop. Everything is the control thread's, all callbacks run on it.
 */
#ifndef PENSTOCK_CONTROL_H
#define PENSTOCK_CONTROL_H

#include "failure.h"
#include "services/admin.h"
#include "switchover.h"

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct crew;
struct event;
struct event_base;
struct limits;
struct loader;
struct mailbox;
struct manager;
struct renewal;
struct resolver;

/* A renewal leaves what penstockctl has set as it is; the file, when it is read for its own sake, counts. */
enum reload { RELOAD_NONE, RELOAD_RENEWAL, RELOAD_FILE };

struct control {
	/* main's, set before control_start; all else is zero then. */
	const char *file;
	struct event_base *base;
	struct timespec
		load_began; /* CLOCK_REALTIME; of the first generation. Later control_reload's */

	/* What it works with; owned. */
	struct resolver *resolver;
	struct limits *limits;
	struct crew *crew;
	struct manager *manager;
	struct loader *loader;
	struct renewal *renewal;
	unsigned int workers;

	/* What is in force, held (NULL before the first), and what the workers are switching to. */
	struct generation *generation, *next;
	struct listeners listeners, next_listeners;
	int log_level;

	/* control_reload: how it changes. */
	bool ready;                /* "ready" was said */
	enum reload reload;        /* the one under way, or the last */
	enum reload reload_wanted; /* it was asked for while something else was under way */
	struct admin_wish *wishes, *next_wishes; /* next: for the reload after the one under way */
	struct admin_wish *comparison; /* what is being loaded is to be compared and thrown away */
	uint64_t generations;
	uint64_t reloads, failed_reloads;
	double loaded_at, failed_at; /* seconds since 1970, 0 = never */
	struct failure reload_failure;

	/* control_drain: tunnels that an operator drains. */
	struct admin_wish *drain_wishes, *drain_wish; /* the first comes first; the one under way */

	/* control_stopping: the end. */
	bool stops;  /* TERM came */
	bool drains; /* ... and the workers were told */
	struct event *drain_over, *give_up;

	/* control_admin: what the admin service is given. */
	struct admin_control admin;
	struct mailbox *mailbox;
	double started_at; /* seconds since 1970 */
};

/* Starts everything but the loop, and has the workers switch to `first`, which is the control's from then
 * on. On failure it stays the caller's, and control_stop frees what was started. */
int control_start(struct control *control, struct generation *first, struct failure *why);

/* Ends it all, whatever control_start made of it: who still waits for something is told, open connections
 * are reset, threads are waited for. Returns whether no thread is left that still works: see loader_stop. */
bool control_stop(struct control *control);

/* --- for control_*.c ------------------------------------------------------------------------------ */

/* Something is over or was asked for: what can come now does, one after the other. */
void control_go_on(struct control *control);

/* What these wished for is over; *wishes is empty then. */
void control_grant(struct admin_wish **wishes, const struct failure *why);

/* Every worker accepts by next_listeners: says which are new, closes those of `listeners` that are left
 * out, and has them in force. */
void control_settle_listeners(struct control *control);

/* Seconds since 1970. */
double control_time_of_day(void);

#endif
