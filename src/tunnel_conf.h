/*
 * tunnel_conf: what the file says of one tunnel. Immutable once its generation is in force; valid for
 * as long as the caller holds the generation (`counted`).
 */
#ifndef PENSTOCK_TUNNEL_CONF_H
#define PENSTOCK_TUNNEL_CONF_H

#include "address.h"
#include "counted.h"
#include "keyword.h"
#include "stack.h"

struct limit_conf;
struct service;
struct targets;
struct tunnel_live;

/* All in nanoseconds; 0 = never. A tunnel's own section overrides the global one, row by row. */
struct timeouts {
	uint64_t connect;    /* until the far side is connected, over all attempts */
	uint64_t handshake;  /* until the filters' handshakes are done */
	uint64_t first_byte; /* until the client's first byte */
	uint64_t idle;       /* without a byte moving either way */
	uint64_t half_open;  /* the same, once one flow has ended */
	uint64_t lifetime;   /* of the whole connection; up to 10 % is added at random */
	uint64_t drain;      /* after TERM, until what is left is reset */
};

enum balance { BALANCE_ORDER, BALANCE_ROUND_ROBIN, BALANCE_LEAST };

struct tunnel_conf {
	/* What was written. */
	char *name;
	struct origin origin;
	struct address_list listen;
	struct address_list connect;
	struct text_list accept_filters, connect_filters;
	char *limit_name;         /* what meters the near side; "" = nothing */
	char *connect_limit_name; /* the same for the far side */
	int balance;              /* enum balance */
	struct address
		bind; /* source address for connecting; family AF_UNSPEC = the kernel's choice */
	struct prefix_list allow; /* empty = everybody */
	struct prefix_list deny;  /* deny wins over allow */
	uint64_t keepalive; /* ns of silence before TCP keepalive probes, both sides; 0 = off */
	uint64_t backlog;
	mode_t unix_mode;
	struct owner unix_owner;
	uint64_t max_connections; /* 0 = only the global cap */
	uint64_t max_per_source;  /* 0 = no cap */
	struct frequency max_new_per_source;
	struct timeouts timeouts; /* with the global section's values filled in */

	/* What follows from it. */
	struct counted *generation;               /* hold it for as long as the conf is used */
	struct chain near_chain, far_chain;       /* of accept_filters and connect_filters */
	struct limit_conf *limit, *connect_limit; /* NULL = none */
	struct targets *targets;                  /* the connect list, ready to be dialled */
	struct tunnel_live
		*live; /* counters and caps that outlive generations; owned by the roster */

	/* For each entry of `connect` that is internal:NAME, the tunnel or the built-in service that
	 * listens there; both NULL for other kinds of address. */
	struct internal_target {
		const struct tunnel_conf *tunnel;
		const struct service *service;
	} * internal; /* connect.count entries, owned */
};

extern const struct keyword
	tunnel_keywords[]; /* offsets into struct tunnel_conf; ends with name NULL */
extern const struct keyword timeouts_keywords[]; /* offsets into struct timeouts */

/* Frees what was written and what follows from it, except generation, live and targets' users. */
void tunnel_conf_release(struct tunnel_conf *conf);

#endif
