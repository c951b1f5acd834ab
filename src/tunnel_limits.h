/*
 * tunnel_limits: the limits of one connection: at which nodes of the tree its sides hang, its meters, and
 * how both follow what becomes known of the client and what a reload changes. A connection that never had
 * a limit has none of this (NULL) and costs nothing. Its worker's thread only.
 */
#ifndef PENSTOCK_TUNNEL_LIMITS_H
#define PENSTOCK_TUNNEL_LIMITS_H

#include "facts.h"
#include "pump.h"
#include "tunnel_conf.h"

struct tunnel_limits {
	struct limit *limit[2];     /* of each side (enum pump_side), held; NULL = none */
	struct limit_node *node[2]; /* what it hangs at now, held; NULL = nothing */
	struct meter meter[2][2];   /* of each side, by enum limit_direction */
	bool is_payload[2];         /* counted in the core */
	bool waits_for_client; /* its address comes with the first bytes: the socket's is another */
	bool is_told;          /* it has come */
	bool is_settled;       /* nothing more is to be learnt of the client */
};

/* Whose limits they are; borrowed for the length of a call. */
struct tunnel_limits_of {
	void *owner; /* whom tunnel_granted is to wake */
	struct pump *pump;
	struct limits_worker *worker;
	const struct facts *facts;
	uint64_t id;
	bool is_settled;         /* what is not known of the client will not become known */
	bool awaits_far_filters; /* they come with the far side, which is not there yet */
};

/* Gives the connection what `conf` says, in place of what it had; *limits is NULL before the first time.
 * Fails without memory or without a place in the tree; the connection then has what it had before, or part
 * of what is new. What a flow waited for is to be asked for again: run the pump. Not cut yet. */
int tunnel_limits_obey(struct tunnel_limits **limits, const struct tunnel_conf *conf,
		       const struct tunnel_limits_of *of, struct failure *why);

/* Whether more is known of the client than the limits were told. Cheap. */
bool tunnel_limits_can_learn(const struct tunnel_limits *limits, const struct tunnel_limits_of *of);

/* The same limits, for what is known by now. Fails as tunnel_limits_obey does. */
int tunnel_limits_learn(struct tunnel_limits *limits, const struct tunnel_limits_of *of,
			struct failure *why);

/* A side's socket is there: how long its segments are. */
void tunnel_limits_measure(struct tunnel_limits *limits, const struct pump *pump,
			   enum pump_side side);

/* Where both sides meet at a node the far one is not counted there; and nothing is cut otherwise. Then:
 * where it meets `earlier`, which is nearer to the client, it is not counted either. To be said again of
 * all that are earlier after one of them has changed. As for a change, run the pump. */
void tunnel_limits_uncut(struct tunnel_limits *limits);
void tunnel_limits_cut(struct tunnel_limits *limits, const struct tunnel_limits *earlier);

/* Nothing is going to move for a while: what its meters hold goes back, and they wait for their limits no more.
 * NULL is allowed. */
void tunnel_limits_rest(struct tunnel_limits *limits);

/* Gives all back. NULL is allowed. */
void tunnel_limits_close(struct tunnel_limits **limits, struct pump *pump);

#endif
