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

/* What a client must say to get into a tunnel: something of each list that is not empty. */
struct match_conf {
	struct text_list sni;      /* in small letters: "a.example", "*.example", "*" */
	struct text_list alpn;     /* "h2" */
	struct prefix_list source; /* of the client as it is known then, told or seen */
	struct origin origin;      /* line 0 = not written: the tunnel takes what no other wants */
};

/* The tunnels that listen on one address, which is behind their front. */
struct tunnel_group {
	const struct tunnel_conf **tunnels; /* in the order they are tried; owned array */
	size_t count;
	bool has_match; /* there is something to choose */
};

/* How its targets are tried without clients; origin.line 0 = they are not. */
struct check_conf {
	struct origin origin;
	uint64_t interval, timeout; /* ns */
	uint64_t rise, fall;        /* in a row, until a target counts as what they say */
};

enum balance { BALANCE_ORDER, BALANCE_ROUND_ROBIN, BALANCE_LEAST, BALANCE_SOURCE, BALANCES };
/* Which connections are lines of the log. */
enum logged { LOGGED_ALL, LOGGED_FAILED, LOGGED_NONE };

/* The most tunnels that one leads through by internal names: a connection is made through all of them in one go, on
 * the stack. */
#define TUNNEL_CONF_HOPS_MOST 64

extern const char *const tunnel_conf_balances[]; /* as an operator writes them; ends with NULL */

struct tunnel_conf {
	/* What was written. */
	char *name;
	struct origin origin;
	struct address_list listen;
	struct address_list connect, backup; /* together the targets, counted through */
	struct text_list accept_filters, connect_filters;
	char *limit_name;          /* what meters the near side; "" = nothing */
	char *connect_limit_name;  /* the same for the far side */
	int balance;               /* enum balance */
	struct count_list weights; /* of `connect`, in its order; empty = 1 each */
	uint64_t max_per_target;   /* 0 = no cap */
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
	int logged; /* enum logged */
	struct check_conf check;
	struct timeouts timeouts; /* with the global section's values filled in */
	struct match_conf match;

	/* What follows from it. */
	struct counted *generation;         /* hold it for as long as the conf is used */
	struct chain near_chain, far_chain; /* of accept_filters and connect_filters */
	bool shakes_hands; /* with clients, by a filter that max_handshakes is for; a front: one of its
			      tunnels does */
	struct limit_conf *limit, *connect_limit; /* NULL = none */
	struct targets *targets;                  /* its targets, ready to be dialled */
	struct tunnel_live
		*live; /* counters and caps that outlive generations; owned by the roster */

	/* A front stands before tunnels that share an address, that match, or that begin with a header
	 * about the client: it is what a connection is under until its tunnel is known. It has the
	 * leading filter as its near_chain, no targets and no rules of its own. */
	struct tunnel_group *group; /* of a front, owned; NULL = this is a tunnel */
	/* For each entry of `listen` the front that stands there, or NULL; owned array. */
	const struct tunnel_conf **fronts;

	/* For each target that is internal:NAME, the tunnel or the built-in service that
	 * listens there; both NULL for other kinds of address. */
	struct internal_target {
		const struct tunnel_conf *tunnel; /* or the front before it */
		const struct service *service;
	} * internal; /* an entry for each target, owned */
};

extern const struct keyword
	tunnel_keywords[]; /* offsets into struct tunnel_conf; ends with name NULL */
extern const struct keyword check_keywords[];    /* offsets into struct check_conf */
extern const struct keyword timeouts_keywords[]; /* offsets into struct timeouts */
extern const struct keyword match_keywords[];    /* offsets into struct match_conf */

/* Its targets: those of `connect`, then those of `backup`. */
size_t tunnel_conf_target_count(const struct tunnel_conf *conf);
const struct address *tunnel_conf_target(const struct tunnel_conf *conf, size_t index);

/* How many filters at the wire's end of near_chain the front has run: 0 or 1. */
size_t tunnel_conf_leading(const struct tunnel_conf *conf);

/* Whether a client's source is judged (allow, deny, caps) only after it was accepted: in a tunnel that the
 * front chooses, or after a filter of near_chain behind the leading one that may tell another client. */
bool tunnel_conf_judges_late(const struct tunnel_conf *conf);

/* Frees what was written and what follows from it, except generation, live and targets' users. */
void tunnel_conf_release(struct tunnel_conf *conf);

#endif
