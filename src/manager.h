/*
 * manager: what the service manager is told while the daemon runs, and when: the status text, the
 * beginning and the verdict of a reload, the end, and the watchdog's food, which it gets only while
 * everything that has to turn does turn. Without a service manager it does nothing.
 *
 * Control thread, all of it. How it is told is systemd's business.
 */
#ifndef PENSTOCK_MANAGER_H
#define PENSTOCK_MANAGER_H

#include "failure.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct event_base;
struct manager;

/* Something that has to answer before the watchdog is fed again: a worker's loop, a byte sent through
 * an internal connection. Part of the owner's object. */
struct manager_check {
	const char *name;           /* for the log, valid for as long as the check */
	void (*ask)(void *context); /* begins it; manager_answer follows, sooner or later */
	void *context;

	bool waits; /* the manager's: asked, and no good answer yet */
	bool again; /* the manager's: the last answer was a bad one */
	struct manager_check *next;
};

/* Starts what has to be done regularly. Checks are asked from manager_ready on. */
struct manager *manager_start(struct event_base *base, struct failure *why);

/* Adds a check, for as long as the manager lives; nobody waits for it before it is asked next time. */
void manager_add(struct manager *manager, struct manager_check *check);
/* The answer: whether all is well there. If not, it is asked again a moment later. */
void manager_answer(struct manager *manager, struct manager_check *check, bool is_well);

/* A reload begins; manager_ready or manager_refused ends it. */
void manager_reloading(struct manager *manager);

/* A generation is in force. */
void manager_ready(struct manager *manager, uint64_t generation, size_t tunnels);

/* A reload has failed and changed nothing: stays in the status text until one succeeds. */
void manager_refused(struct manager *manager, const struct failure *why);

/* The daemon stops and needs that long, 0 = for as long as it takes. */
void manager_stopping(struct manager *manager, uint64_t drain_ns);

void manager_stop(struct manager *manager); /* NULL is allowed */

#endif
