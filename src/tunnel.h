/*
 * tunnel: one connection through a tunnel, from the moment it was admitted: dialling, pumping,
 * deadlines, and the one door out. All of a connection happens on one worker's thread.
 */
#ifndef PENSTOCK_TUNNEL_H
#define PENSTOCK_TUNNEL_H

#include "endings.h"
#include "facts.h"
#include "limits.h"
#include "loop.h"
#include "pump.h"
#include "slab.h"
#include "tunnel_conf.h"

#include <stdatomic.h>
#include <stdbool.h>

struct connection;
struct resolver;

/* The connections of one worker. Everything but the two counts is its thread's alone. */
struct connections {
	struct loop *loop;
	struct resolver *resolver;
	struct limits_worker *limits;
	/* As tunnel_obey_limits was told last; NULL before. */
	const struct tunnel_conf *(*find)(const void *context, const char *name);
	const void *find_context;
	unsigned int worker;
	bool logged; /* whether each end is a line in the log (log { connections }) */
	bool drains; /* after tunnel_drain_all */
	/* Open ones, and those on their way here. Whoever places a connection counts it; its end counts
	 * down. Read by all workers, to hand over to the one that has least. */
	atomic_uint_fast64_t count;
	/* Those of them whose tunnel shakes hands with clients (tunnel_conf.shakes_hands) and has not done so yet,
	 * but for those that kept us waiting or waited for a limit. Counted in the same way; and how many there may
	 * be, and how often that was in the way, for whoever lets connections in. */
	atomic_uint_fast64_t handshakes;
	uint64_t handshakes_most, handshakes_held;
	struct connection *first;
	struct connection *active,
		**active_end; /* those that moved lately; the one looked at last comes last */
	struct slab recents;  /* what is kept of those */
	struct walk *walks;
	uint64_t walks_begun;
	struct endings endings;
	const struct timeval *look_after; /* of connection_deadline's looks; NULL = not yet */
	uint64_t handshake_looked_ns;     /* the loop's turn in which one went on at once */
	void (*on_empty)(struct connections *connections); /* the last one has ended; may be NULL */
	/* One of `handshakes` is over, or does not count any more; may be NULL. */
	void (*on_handshake)(struct connections *connections);
};

/* Begins a connection over an accepted socket that admission_enter let in and that is in `count`, and, where
 * its tunnel shakes hands, in `handshakes` already; takes the descriptor and the admission, and holds the
 * configuration's generation until it ends. Without memory the peer is reset. Never calls back. */
void tunnel_accept(struct connections *connections, const struct tunnel_conf *conf, int fd,
		   const struct facts *facts);

/* A meter's flow was granted something (limits_next): its connection moves. */
void tunnel_granted(struct limit_flow *flow);

/* Another generation is in force: every connection, also one still to come, obeys the limits that its tunnel
 * names there; `find` gives the tunnel of a name, or NULL, and then its connections keep what they have. So does,
 * with a warning, who finds no place in the new ones. The context must stay valid until the next time. */
void tunnel_obey_limits(struct connections *connections,
			const struct tunnel_conf *(*find)(const void *context, const char *name),
			const void *context);

/* At each beat of the worker's pulse: keeps what the active connections did in the last seconds. At most a
 * bounded number of them at a time. */
void tunnel_beat(struct connections *connections, uint64_t now_ns);

/* A connection of the daemon's own through all of a tunnel's far side to one target, which takes no limit and
 * counts nowhere. Zero it before it is started; then it is tunnel.c's until on_end. */
struct tunnel_check {
	/* Once: it works (why NULL), the target is connected and the filters are ready; or it does not. May
	 * be called before tunnel_check_start returns. */
	void (*on_end)(struct tunnel_check *check, const struct failure *why);

	struct connection *connection; /* NULL = it has ended */
	struct endpoint endpoint;      /* where a client would be */
	size_t target;
};
void tunnel_check_start(struct connections *connections, const struct tunnel_conf *conf,
			size_t target, uint64_t timeout_ns, struct tunnel_check *check);
/* Gives up; on_end is not called any more. One that has ended is left alone. */
void tunnel_check_stop(struct tunnel_check *check);

/* The daemon stops: connections go on for as long as their tunnels' `drain` says in the generation in force;
 * those of a tunnel that is gone, for drain_ns. 0 = until they end. */
void tunnel_drain_all(struct connections *connections, uint64_t drain_ns);

/* Resets all connections that are open, each with a line that gives `why`. */
void tunnel_reset_all(struct connections *connections, const struct failure *why);

/* Ends it as the operator's wish: both sides are reset. One that is over already is left alone. */
void tunnel_kill(struct connection *connection);

#endif
