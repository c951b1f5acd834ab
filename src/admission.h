/*
 * admission: who may come in. Exact counters of open connections, for the daemon, for each tunnel and,
 * where a cap asks for it, for each source. They outlive generations: a tunnel is known by its name.
 */
#ifndef PENSTOCK_ADMISSION_H
#define PENSTOCK_ADMISSION_H

#include "address.h"
#include "failure.h"
#include "tunnel_conf.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Why one was not let in. */
enum refusal {
	REFUSAL_DENY,
	REFUSAL_ALLOW,
	REFUSAL_DAEMON_FULL,
	REFUSAL_TUNNEL_FULL,
	REFUSAL_SOURCE_FULL,
	REFUSAL_SOURCE_RATE,
	REFUSAL_DRAINED,
	REFUSAL_UNMATCHED,
	REFUSAL_DESCRIPTORS,
	REFUSAL_MEMORY,
	REFUSALS
};
const char *admission_refusal_name(enum refusal refusal); /* "deny", "max_connections" ... static */

/* What workers count for a tunnel, each in a block of its own, so that they do not meet. Relaxed. */
enum { ADMISSION_COUNTERS = 8, TUNNEL_STATES = 6, TUNNEL_ENDERS = 3 };
struct tunnel_counters {
	atomic_uint_fast64_t bytes[2][2];         /* by side and flow: read or written there */
	atomic_int_fast64_t state[TUNNEL_STATES]; /* connections now, by enum connection_state */
	atomic_uint_fast64_t ended[TUNNEL_ENDERS]
				  [FAILURE_KINDS]; /* by whom, and why (NONE: well) */
	char apart[64];
};

/* What of a tunnel goes on while its configuration changes. Relaxed statistics, exact `open`. */
struct tunnel_live {
	struct tunnel_counters counters[ADMISSION_COUNTERS]; /* of worker N modulo their number */
	atomic_uint_fast64_t open;                           /* connections now */
	atomic_uint_fast64_t admitted;                       /* since the start */
	atomic_uint_fast64_t refused[REFUSALS];
	atomic_bool drained;     /* by an operator: nobody is let in */
	bool is_shut;            /* the same, of its listeners: the control thread's */
	struct sources *sources; /* by source; its own lock */
	char *name;
	unsigned int users; /* generations; under the roster's lock */
};

/* All workers' counters of a tunnel together. Any thread. */
struct tunnel_sums {
	uint64_t bytes[2][2];
	int64_t state[TUNNEL_STATES];
	uint64_t ended[TUNNEL_ENDERS][FAILURE_KINDS];
};
void admission_sum(const struct tunnel_live *live, struct tunnel_sums *out);

/* The live part of the tunnel of that name, made if there is none. Control thread. */
struct tunnel_live *admission_hold(const char *name, struct failure *why);
void admission_release(struct tunnel_live *live); /* NULL is allowed. Any thread */

/* How many sources are remembered: those with connections, and those whose rate is not fresh yet. */
size_t admission_sources(const struct tunnel_live *live);

/* The daemon's own cap, 0 = none; some more may come to tunnels that lead to internal:admin. Any thread;
 * counts from then on. */
void admission_set_most(uint64_t connections);
uint64_t admission_most(void);
uint64_t admission_open(void); /* connections of all tunnels now */

/* The descriptor limit, set once at start. The last ADMISSION_RESERVE below it are for tunnels to
 * internal:admin: an operator gets in when nobody else does. */
#define ADMISSION_RESERVE 64
void admission_set_descriptors(int limit);
int admission_first_reserved(void); /* 0 = the limit is not known */
/* Whether connections of this tunnel, or of each that its front may choose, get to internal:admin. O(tunnels of the
 * front and their connect addresses). */
bool admission_is_for_operators(const struct tunnel_conf *conf);
/* Whether a descriptor just got is one of those and `conf` has no right to it. O(connect addresses) near
 * the limit, else O(1). */
bool admission_is_reserved(int fd, const struct tunnel_conf *conf);

/* Asks for one more connection from `source` (allow, deny, caps, rate). 0: counted, and admission_leave
 * must follow with the same arguments. -1: refused with *why (FAILURE_ADMISSION), counted as that. Any
 * thread; a lock is taken only if the tunnel has a cap or a rate for each source. `source` NULL: only
 * max_connections are asked for, as it is to be judged later. */
int admission_enter(const struct tunnel_conf *conf, const struct socket_address *source,
		    uint64_t now_ns, struct failure *why);
void admission_leave(const struct tunnel_conf *conf, const struct socket_address *source);

/* Judges one that has entered without a source, which is known now. 0: admission_leave must follow with
 * that source. -1: refused with *why, counted as that; it is still to leave, without a source. */
int admission_judge(const struct tunnel_conf *conf, const struct socket_address *source,
		    uint64_t now_ns, struct failure *why);

/* One that has entered the front, without a source, goes on into one of its tunnels. -1: refused with
 * *why, counted as that; it is still in the front. */
int admission_move(const struct tunnel_conf *front, const struct tunnel_conf *conf,
		   struct failure *why);

/* Counts a refusal that somebody else has decided on. */
void admission_refused(const struct tunnel_conf *conf, enum refusal refusal);
/* The line of a client that got no connection, as far as the tunnel wants one. */
void admission_log_refusal(const struct tunnel_conf *conf, const struct socket_address *client,
			   const struct failure *why);

#endif
