/*
 * worker: threads, each with its own loop, door and connections, and the orders that the control
 * thread gives them. A connection stays on one worker for life; a fresh one may be handed over.
 */
#ifndef PENSTOCK_WORKER_H
#define PENSTOCK_WORKER_H

#include "generation.h"
#include "listener.h"

struct canary;
struct connections;
struct crew;
struct event_base;
struct limits;
struct manager;
struct pulse;
struct resolver;

/* Every call is the control thread's, and the callbacks run on it, from `base`'s loop. */
struct crew_options {
	unsigned int workers; /* at least 1 */
	struct resolver *resolver;
	struct event_base *base;
	struct limits *limits;               /* must outlive the crew */
	void (*on_switched)(void *context);  /* every worker has obeyed crew_switch */
	void (*on_listening)(void *context); /* after crew_listen */
	void (*on_empty)(void *context);     /* after crew_drain: no connection is left */
	void *context;
};

struct crew *crew_start(const struct crew_options *options, struct failure *why);

/* Has every worker accept by these listeners, under each listener's conf, and by no others, and every
 * connection obey the limits that its tunnel has in that generation. One at a time:
 * not before on_switched of the last. The array is borrowed until then. */
void crew_switch(struct crew *crew, const struct generation *generation,
		 struct listener *const *listeners, size_t count);

/* The same for the listeners alone: the generation goes on. Not while one of the two is under way. */
void crew_listen(struct crew *crew, struct listener *const *listeners, size_t count);

/* Where messages for a worker go. Any thread, until crew_stop returns. */
struct mailbox *crew_mailbox(struct crew *crew, unsigned int worker);

/* A worker's own, for its thread alone. The generation is that under which it accepts now: to be held by
 * whoever keeps it; NULL = none yet. */
struct connections *crew_connections(struct crew *crew, unsigned int worker);
/* Any thread. */
const struct canary *crew_canary(struct crew *crew, unsigned int worker);

const struct pulse *crew_pulse(struct crew *crew, unsigned int worker);
const struct generation *crew_generation(struct crew *crew, unsigned int worker);

/* Closes all doors, having accepted what waits there, but those to internal:admin; connections go on. */
void crew_drain(struct crew *crew);

/* Resets every connection, with `why` as the reason in the log. */
void crew_reset(struct crew *crew, const struct failure *why);

/* Has the manager ask each worker whether its loop turns: a message there and back. */
void crew_watch(struct crew *crew, struct manager *manager);

/* Resets what is still open, ends the threads and waits for them. No callback comes any more, not even
 * for what the workers had answered by then. NULL is allowed. */
void crew_stop(struct crew *crew);

#endif
