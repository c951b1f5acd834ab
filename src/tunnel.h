/*
 * tunnel: one connection through a tunnel, from the moment it was admitted: dialling, pumping,
 * deadlines, and the one door out. All of a connection happens on one worker's thread.
 */
#ifndef PENSTOCK_TUNNEL_H
#define PENSTOCK_TUNNEL_H

#include "facts.h"
#include "limits.h"
#include "loop.h"
#include "tunnel_conf.h"

#include <stdatomic.h>
#include <stdbool.h>

struct connection;
struct resolver;

/* The connections of one worker. Everything but `count` is its thread's alone. */
struct connections {
	struct loop *loop;
	struct resolver *resolver;
	struct limits_worker *limits;
	unsigned int worker;
	bool logged; /* whether each end is a line in the log (log { connections }) */
	/* Open ones, and those on their way here. Whoever places a connection counts it; its end counts
	 * down. Read by all workers, to hand over to the one that has least. */
	atomic_uint_fast64_t count;
	struct connection *first;
	uint64_t complained_ns; /* when lack of descriptors was last a line */
	void (*on_empty)(struct connections *connections); /* the last one has ended; may be NULL */
};

/* Begins a connection over an accepted socket that admission_enter let in and that is in `count`
 * already; takes the descriptor and the admission, and holds the configuration's generation until it ends. Without memory the peer is
 * reset. Never calls back. */
void tunnel_accept(struct connections *connections, const struct tunnel_conf *conf, int fd,
		   const struct facts *facts);

/* A meter's flow was granted something (limits_next): its connection moves. */
void tunnel_granted(struct limit_flow *flow);

/* Another generation is in force: every connection obeys the limits that its tunnel names there; `find`
 * gives the tunnel of a name, or NULL, and then its connections keep what they have. */
void tunnel_obey_limits(struct connections *connections,
			const struct tunnel_conf *(*find)(const void *context, const char *name),
			const void *context);

/* Resets all connections that are open, each with a line that gives `why`. */
void tunnel_reset_all(struct connections *connections, const struct failure *why);

#endif
