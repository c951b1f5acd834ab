/*
 * connection: what one connection is made of. Only the modules connection_* and tunnel know its parts; others
 * look at it through connection_view. All of a connection happens on one worker's thread.
 */
#ifndef PENSTOCK_CONNECTION_H
#define PENSTOCK_CONNECTION_H

#include "connection_view.h"
#include "dial.h"

#include <event2/event_struct.h>

/* The search for a target: gone once the far side is there. */
struct dialling {
	struct dial dial;
	struct dial_options options;
	struct connection *connection;
};

struct connection {
	struct pump pump;
	const struct tunnel_conf *conf;
	struct connections *home;
	/* What a walk through all of them looks at stands together: of most it is all that is looked at. */
	struct connection *next, **link;
	struct connection *next_active, **active_link; /* active_link NULL = not among them */
	bool is_own;           /* the daemon's: a check, or what is joined to one */
	bool is_silent;        /* not among the active ones: nothing has held it up since it was */
	uint32_t target;       /* index in the connect list */
	struct recent *recent; /* NULL = nothing of note in ten seconds */
	uint64_t looked_ns;    /* when the last slot was closed */
	struct dialling *dialling;
	struct tunnel_check *check;   /* whose it is and that waits for it; NULL = nobody's */
	struct tunnel_limits *limits; /* NULL = none */
	struct event timer;

	uint64_t id;
	uint64_t opened_ns, moved_ns; /* moved_ns: when the last byte moved */
	uint64_t armed_ns;            /* when the timer fires; 0 = not armed */
	uint64_t over_ns;             /* lifetime, drain or flushing ends; 0 = never */
	uint64_t handshake_ns;        /* when handshakes began, less waits for limits until then */
	struct facts facts;
	struct socket_address source; /* is_judged: what it was let in as */

	uint32_t unsent_bytes; /* at the last look, in both directions; wraps */
	uint8_t state;         /* enum connection_state */
	uint8_t first_end;     /* enum ended_by: whose end came first */
	bool has_target : 1;   /* `target` counts as active */
	bool has_dialled : 1;  /* `target` says something */
	bool is_judged : 1;    /* its source is counted */
	bool has_looked : 1;   /* for a ClientHello, to choose its tunnel */
	bool slow : 1;         /* half-open or blocked when the timer was last set */
	bool drains : 1;       /* over_ns is the end of its tunnel's drain */
	bool shakes_hands : 1; /* it is one of the worker's handshakes */
};

static inline struct endpoint *
connection_endpoint(struct connection *connection, enum pump_side side)
{
	return &connection->pump.side[side].endpoint;
}

/* One under `conf`, whose generation it holds, with a copy of the facts, in its worker's list, without endpoints;
 * is_own: the daemon's, which counts nowhere. The caller assigns pump.turn.run and the timer. NULL without memory. */
struct connection *connection_new(struct connections *home, const struct tunnel_conf *conf,
				  const struct facts *facts, bool is_own);

/* Gives back everything but the memory, which a caller up the stack may still look at until a later turn. */
void connection_release(struct connection *connection);

/* One connection fewer is on this worker, or on its way there. */
void connection_count_down(struct connections *home);

/* One of the worker's handshakes fewer, of a connection that did not come to be. */
void connection_count_handshake_down(struct connections *home);
/* It is none of the worker's handshakes any more; one that was none is left alone. */
void connection_leave_handshakes(struct connection *connection);

/* The worker's counters of its tunnel. */
struct tunnel_counters *connection_counters(const struct connection *connection);

void connection_set_state(struct connection *connection, enum connection_state state);
/* Its tunnel counts it, or no more, in the state it is in: around a change of the tunnel. */
void connection_count_state(const struct connection *connection, int64_t change);

/* The closing line, if the configuration wants one. Without `why` it has ended in order. */
void connection_log_end(const struct connection *connection, enum ended_by ended_by,
			const struct failure *why);

/* The same for who asks soon after. */
void connection_keep_end(const struct connection *connection, enum ended_by ended_by,
			 const struct failure *why);

/* Whether who waits for this is not held up: nobody has anything for him, or he moves. */
bool connection_is_silence(enum wait cause);

/* Something is about to happen to it: from now on what it does is kept. */
void connection_note_active(struct connection *connection);

/* At each beat of the worker's pulse: keeps what the active ones did in the last seconds. At most a bounded
 * number of them at a time. */
void connection_beat(struct connections *connections, uint64_t now_ns);

/* The connection that an internal endpoint leads to, or NULL: a socket, a service, or gone. */
struct connection *connection_joined_at(const struct endpoint *endpoint);

#endif
