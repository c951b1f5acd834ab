/*
 * tunnel: one connection through a tunnel, from the moment it was admitted: dialling, pumping,
 * deadlines, and the one door out. All of a connection happens on one worker's thread.
 */
#ifndef PENSTOCK_TUNNEL_H
#define PENSTOCK_TUNNEL_H

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
	struct connection *active,
		**active_end; /* those that moved lately; the one looked at last comes last */
	struct slab recents;  /* what is kept of those */
	struct walk *walks;
	uint64_t walks_begun;
	unsigned int handshakes_most; /* that are gone on with in one turn (max_handshakes) */
	unsigned int handshakes,
		handshakes_turn; /* so many in the turn of that number (loop.turns) */
	uint64_t complained_ns;  /* when lack of descriptors was last a line */
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

/* --- to be looked at ---------------------------------------------------------------------------- */

enum connection_state {
	CONNECTION_CHOOSING, /* under the front of several tunnels, or of one that waits for a header */
	CONNECTION_OPENING, /* the near filters' handshakes come first */
	CONNECTION_DIALLING,
	CONNECTION_OPEN,
	CONNECTION_FLUSHING, /* over, and logged; a side waits to be reset behind its last bytes */
	CONNECTION_CLOSED,   /* waits for a later turn to be freed */
};
const char *tunnel_state_name(enum connection_state state); /* "opening" ... static */

/* Who ended a connection. */
enum ended_by { ENDED_BY_CLIENT, ENDED_BY_TARGET, ENDED_BY_US };
const char *tunnel_ender_name(enum ended_by ended_by); /* "client", "target", "us"; static */

/* A walk through a worker's list of connections, newest first. Between its steps connections come and go; those
 * that come are not met any more. begin gives its number, 0 without memory; walk the next connection, NULL =
 * no more. Who does not come back for TUNNEL_WALK_S seconds has ended it. All on the worker's thread. */
#define TUNNEL_WALK_S 120
uint64_t tunnel_walk_begin(struct connections *connections);
struct connection *tunnel_walk(struct connections *connections, uint64_t walk, uint64_t now_ns);
void tunnel_walk_end(struct connections *connections, uint64_t walk);
void tunnel_walk_end_all(struct connections *connections);

/* One by its number, on this worker, or NULL. O(connections). */
struct connection *tunnel_find(struct connections *connections, uint64_t id);

/* Ends it as the operator's wish: both sides are reset. One that is over already is left alone. */
void tunnel_kill(struct connection *connection);

/* What a connection is like now. */
struct connection_report {
	uint64_t id, partner[2]; /* by side: the connection behind a pair; 0 = none */
	unsigned int worker;
	enum connection_state state;
	bool is_half_open;
	uint64_t opened_ns, moved_ns; /* when; moved: the last byte */
	char tunnel[65], target[160];
	char client[SOCKET_ADDRESS_TEXT], accepted[SOCKET_ADDRESS_TEXT];
	bool client_is_told;
	char sni[64], alpn[16], tls_version[16], tls_cipher[48], common_name[64], certificate[80];
	struct flow_report {
		uint64_t bytes, rate; /* rate: bytes a second of the last seconds */
		bool is_over;
		struct waiting waiting; /* the limit's name is in `limit` */
		struct waiting
			blamed; /* what the partner's side of a pair waits for, if it is that */
		/* Of `blamed`, if it is one: whose bucket is short. */
		char limit[65], limit_key[80]; /* "" = none */
		uint64_t limit_rate;           /* bytes a second */
		uint32_t limit_active;         /* flows that got something in the last second */
		uint64_t since_ns;             /* when it last moved or began to wait so */
		uint64_t life_ns[WAITS], recent_ns[WAITS];
		uint64_t recent_bytes;
	} flow[2];
	uint64_t now_ns, recent_length_ns; /* the window of the recent shares */
	bool far_is_connected;             /* and not still dialled */
	bool near_shakes, far_shakes;      /* hands: that side's filters are not ready */
};
/* Costs some microseconds. */
void tunnel_report(struct connection *connection, uint64_t now_ns, struct connection_report *out);

/* The same for one number by which connections are sorted, cheaply. */
enum connection_order { ORDER_ID, ORDER_RATE, ORDER_BYTES, ORDER_AGE, ORDER_IDLE, ORDER_WAIT };
uint64_t tunnel_rank(struct connection *connection, enum connection_order order, uint64_t now_ns);

/* The endpoint of a side, for what only its kind can tell; kind NULL = not there. */
const struct endpoint *tunnel_endpoint(const struct connection *connection, enum pump_side side);

/* Resets all connections that are open, each with a line that gives `why`. */
void tunnel_reset_all(struct connections *connections, const struct failure *why);

#endif
