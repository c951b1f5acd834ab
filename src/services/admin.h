/*
 * admin: internal:admin, where an operator sees and steers the daemon over HTTP. Which tunnel leads there,
 * over what, how fast and for whom is ordinary configuration; there is no second way in.
 *
 * What it shows of other threads it fetches by messages, so that asking never blocks a loop; what it does
 * is done by those to whom it belongs, through `struct admin_control`, which control_admin fills in.
 */
#ifndef PENSTOCK_ADMIN_H
#define PENSTOCK_ADMIN_H

#include "failure.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct canary;
struct connections;
struct generation;
struct limits;
struct mailbox;
struct pulse;
struct tunnel_conf;

/* Somebody waits for the end of a reload, of a comparison, or until a tunnel is drained or open again. */
struct admin_wish {
	struct admin_wish *next; /* the control thread's, until `over` */
	/* On the control thread, once: `why` NULL = the new configuration is in force, or loads, or the
	 * tunnel is as wished. */
	void (*over)(struct admin_wish *wish, const struct failure *why);
	/* Of a tunnel: its name, the asker's until `over`, and whether it is to be drained. */
	const char *tunnel;
	bool drains;
	/* A comparison's, for the length of `over` without a failure: what is in force, and what a reload
	 * would bring. */
	const struct generation *old, *fresh;
};

/* Where a tunnel listens in fact. */
struct admin_listener {
	const struct tunnel_conf
		*conf; /* of the generation in admin_status; a front's, if it has one */
	char address[128];
};

/* What the control thread knows. */
struct admin_status {
	const struct generation *generation; /* held for the asker */
	double started_at;                   /* seconds since 1970, and so below; 0 = never */
	double loaded_at, failed_at; /* the last reload that worked, and the last that did not */
	uint64_t reloads, failed_reloads; /* the start counts as none */
	char failure[232];                /* of the last reload that did not */
	bool ready, reloads_now, drains;
	int log_level;                    /* in force */
	struct admin_listener *listeners; /* owned by the asker: free() */
	size_t listener_count;
};

struct admin_control {
	void *context;
	unsigned int workers;
	struct mailbox *mailbox; /* the control thread's */
	struct limits *limits;   /* the tree */

	/* Any thread. */
	struct mailbox *(*mailbox_of)(void *context, unsigned int worker);
	const struct canary *(*canary_of)(void *context, unsigned int worker);

	/* That worker's thread. The generation is to be held by whoever keeps it. */
	struct connections *(*connections_of)(void *context, unsigned int worker);
	const struct pulse *(*pulse_of)(void *context, unsigned int worker);
	const struct generation *(*generation_of)(void *context, unsigned int worker);

	/* The control thread. */
	void (*describe)(void *context, struct admin_status *out);
	void (*reload)(void *context,
		       struct admin_wish *wish); /* `over` may be called before it returns */
	void (*compare)(void *context, struct admin_wish *wish); /* the same */
	/* The same. FAILURE_CONFIG: there is no such tunnel. */
	void (*drain)(void *context, struct admin_wish *wish);
	int (*set_log_level)(void *context, int level, struct failure *why);
};

/* Begins to answer; *control stays valid until admin_stop. Before the workers run; until then, and after
 * admin_stop, internal:admin refuses. */
void admin_start(const struct admin_control *control);
/* From now on each client is answered and then closed, so that none holds the end up. Any thread. */
void admin_drain(void);
/* From now on nothing is sent to other threads any more. Before the workers end. */
void admin_stop(void);

#endif
