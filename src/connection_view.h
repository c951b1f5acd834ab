/*
 * connection_view: connections as others see them: one by one through a worker's list, by number, sorted, and
 * what one is like now. All on the worker's thread.
 */
#ifndef PENSTOCK_CONNECTION_VIEW_H
#define PENSTOCK_CONNECTION_VIEW_H

#include "limits_report.h"
#include "tunnel.h"

enum connection_state {
	CONNECTION_CHOOSING, /* under the front of several tunnels, or of one that waits for a header */
	CONNECTION_OPENING, /* the near filters' handshakes come first */
	CONNECTION_DIALLING,
	CONNECTION_OPEN,
	CONNECTION_FLUSHING, /* over, and logged; a side waits to be reset behind its last bytes */
	CONNECTION_CLOSED,   /* waits for a later turn to be freed */
};
const char *connection_view_state_name(enum connection_state state); /* "opening" ... static */

/* Who ended a connection. */
enum ended_by { ENDED_BY_CLIENT, ENDED_BY_TARGET, ENDED_BY_US };
const char *
connection_view_ender_name(enum ended_by ended_by); /* "client", "target", "us"; static */

/* A walk through a worker's list of connections, newest first. Between its steps connections come and go; those
 * that come are not met any more. begin gives its number, 0 without memory; walk the next connection, NULL =
 * no more. Who does not come back for CONNECTION_VIEW_S seconds has ended it. All on the worker's thread. */
#define CONNECTION_VIEW_S 120
uint64_t connection_view_begin(struct connections *connections);
struct connection *connection_view_next(struct connections *connections, uint64_t walk,
					uint64_t now_ns);
void connection_view_end(struct connections *connections, uint64_t walk);
void connection_view_end_all(struct connections *connections);

/* One by its number, on this worker, or NULL. O(connections). */
struct connection *connection_view_find(struct connections *connections, uint64_t id);

/* What a connection is like now. */
struct connection_report {
	uint64_t id, partner[2]; /* by side: the connection behind a pair; 0 = none */
	unsigned int worker;
	enum connection_state state;
	bool is_half_open;
	uint64_t opened_ns, moved_ns; /* when; moved: the last byte */
	char tunnel[65], target[160];
	struct socket_address source; /* the client */
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
		struct limit_bound raised;     /* what it could get at most without that one */
		uint64_t since_ns;             /* when it last moved or began to wait so */
		uint64_t life_ns[WAITS], recent_ns[WAITS];
		uint64_t recent_bytes;
	} flow[2];
	uint64_t now_ns, recent_length_ns; /* the window of the recent shares */
	bool far_is_connected;             /* and not still dialled */
	bool near_shakes, far_shakes;      /* hands: that side's filters are not ready */
};
/* Costs some microseconds. */
void connection_view_report(struct connection *connection, uint64_t now_ns,
			    struct connection_report *out);

/* The same for one number by which connections are sorted, cheaply. */
enum connection_order { ORDER_ID, ORDER_RATE, ORDER_BYTES, ORDER_AGE, ORDER_IDLE, ORDER_WAIT };
uint64_t connection_view_rank(struct connection *connection, enum connection_order order,
			      uint64_t now_ns);

/* The endpoint of a side, for what only its kind can tell; kind NULL = not there. */
const struct endpoint *connection_view_endpoint(const struct connection *connection,
						enum pump_side side);

/* Ends the walks whose owners have not come back. */
void connection_view_end_old(struct connections *connections, uint64_t now_ns);
/* A connection is about to leave the list: walks go on behind it. */
void connection_view_forget(const struct connection *connection);

#endif
