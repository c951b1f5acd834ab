#include "tunnel_limits.h"

#include "clock.h"
#include "limit_conf.h"

#include <stdlib.h>

static const struct limit_conf *
conf_of(const struct tunnel_conf *conf, enum pump_side side)
{
	return side == SIDE_NEAR ? conf->limit : conf->connect_limit;
}

/* --- meters ------------------------------------------------------------------------------------- */

/* Puts the side's meters where its bytes are counted, or takes them away. */
static void
place(struct tunnel_limits *limits, struct pump *pump, enum pump_side name)
{
	struct side *side = &pump->side[name];
	struct meter *up = &limits->meter[name][LIMIT_UP];
	struct meter *down = &limits->meter[name][LIMIT_DOWN];

	side->in_meter = side->out_meter = NULL;
	side->core_meter[FLOW_UP] = side->core_meter[FLOW_DOWN] = NULL;
	if (!limits->limit[name])
		return;
	if (limits->is_payload[name]) {
		side->core_meter[FLOW_UP] = up;
		side->core_meter[FLOW_DOWN] = down;
		return;
	}
	side->in_meter = name == SIDE_NEAR ? up : down;
	side->out_meter = name == SIDE_NEAR ? down : up;
}

void
tunnel_limits_measure(struct tunnel_limits *limits, const struct pump *pump, enum pump_side side)
{
	struct meter *meter = limits->meter[side];
	const struct endpoint *endpoint = &pump->side[side].endpoint;

	if (!meter[LIMIT_UP].overhead_bytes || !endpoint->kind)
		return;
	size_t segment_bytes = endpoint_segment(endpoint);
	for (int i = 0; i < 2; i++) {
		meter[i].segment_bytes = (uint16_t)segment_bytes;
		if (!segment_bytes)
			meter[i].overhead_bytes = 0;
	}
}

/* How the side is counted is settled when it gets its first limit. */
static void
prepare(struct tunnel_limits *limits, enum pump_side side, const struct tunnel_conf *conf,
	const struct tunnel_limits_of *of)
{
	const struct limit_conf *limit = conf_of(conf, side);

	for (int i = 0; i < 2; i++) {
		struct meter *meter = &limits->meter[side][i];
		meter->owner = of->owner;
		meter->overhead_bytes = (uint16_t)limit->overhead;
		meter->segment_bytes = LIMITS_SEGMENT_BYTES;
		limits_flow_open(&meter->flow, of->worker, NULL, (enum limit_direction)i, 0, NULL);
	}
	/* Without filters payload is what is on the wire. */
	bool has_filters =
		of->pump->side[side].stack || (side == SIDE_FAR && of->awaits_far_filters);
	limits->is_payload[side] = limit->count == LIMIT_COUNT_PAYLOAD && has_filters;
	tunnel_limits_measure(limits, of->pump, side);
}

/* --- nodes -------------------------------------------------------------------------------------- */

static struct limit_who
who(const struct tunnel_limits *limits, const struct tunnel_limits_of *of)
{
	const struct facts *facts = of->facts;
	const char *none = of->is_settled ? "" : NULL;
	bool waits = limits->waits_for_client && !of->is_settled && !facts->client_is_told;

	return (struct limit_who){
		.connection = of->id,
		.source = waits ? NULL : &facts->client,
		.sni = facts->sni ? facts->sni : none,
		.certificate = facts->certificate ? facts->certificate : none,
	};
}

/* Hangs both directions of a side at the node, which becomes the side's. */
static int
hang(struct tunnel_limits *limits, enum pump_side side, struct limit_node *node, uint64_t now_ns,
     struct failure *why)
{
	for (int i = 0; i < 2; i++)
		if (limits_flow_move(&limits->meter[side][i].flow, node, (enum limit_direction)i,
				     now_ns, why) < 0) {
			limits_release(node, now_ns);
			return -1;
		}
	limits_release(limits->node[side], now_ns);
	limits->node[side] = node;
	return 0;
}

static int
resolve(struct tunnel_limits *limits, enum pump_side side, const struct tunnel_limits_of *of,
	uint64_t now_ns, struct failure *why)
{
	struct limit_who client = who(limits, of);
	struct limit_node *node = NULL;

	if (limits->limit[side] &&
	    limits_resolve(limits->limit[side], &client, now_ns, &node, why) < 0)
		return -1;
	/* Who stays where it is keeps its place in the queue. */
	if (node == limits->node[side]) {
		limits_release(node, now_ns);
		return 0;
	}
	return hang(limits, side, node, now_ns, why);
}

static int
obey_side(struct tunnel_limits *limits, enum pump_side side, const struct tunnel_conf *conf,
	  const struct tunnel_limits_of *of, struct failure *why)
{
	const struct limit_conf *limit = conf_of(conf, side);
	struct limit *before = limits->limit[side];
	uint64_t now_ns = clock_now_ns();

	if (limit && !limits->meter[side][0].owner)
		prepare(limits, side, conf, of);
	limits->limit[side] = limit ? limit->live : NULL;
	if (resolve(limits, side, of, now_ns, why) < 0) {
		limits->limit[side] = before;
		return -1;
	}
	if (limit)
		limits_hold(limit->live);
	limits_drop(before);
	place(limits, of->pump, side);
	return 0;
}

int
tunnel_limits_obey(struct tunnel_limits **limits, const struct tunnel_conf *conf,
		   const struct tunnel_limits_of *of, struct failure *why)
{
	if (!*limits && !conf->limit && !conf->connect_limit)
		return 0;
	if (!*limits) {
		*limits = calloc(1, sizeof(**limits));
		if (!*limits)
			return failure_set(why, FAILURE_MEMORY, "no memory for limits");
		(*limits)->waits_for_client = tunnel_conf_judges_late(conf);
	}
	(*limits)->is_settled = of->is_settled;
	(*limits)->is_told = of->facts->client_is_told;
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++)
		if (obey_side(*limits, side, conf, of, why) < 0)
			return -1;
	return 0;
}

bool
tunnel_limits_can_learn(const struct tunnel_limits *limits, const struct tunnel_limits_of *of)
{
	return !limits->is_settled &&
	       (of->is_settled || limits->is_told != of->facts->client_is_told);
}

int
tunnel_limits_learn(struct tunnel_limits *limits, const struct tunnel_limits_of *of,
		    struct failure *why)
{
	limits->is_settled = of->is_settled;
	limits->is_told = of->facts->client_is_told;
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++)
		if (resolve(limits, side, of, clock_now_ns(), why) < 0)
			return -1;
	return 0;
}

/* --- cuts --------------------------------------------------------------------------------------- */

static void
cut_side(struct tunnel_limits *limits, enum pump_side side, const struct limit_node *earlier)
{
	for (int i = 0; earlier && i < 2; i++)
		limits_flow_cut(&limits->meter[side][i].flow, earlier);
}

void
tunnel_limits_uncut(struct tunnel_limits *limits)
{
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++)
		for (int i = 0; i < 2; i++)
			limits_flow_uncut(&limits->meter[side][i].flow);
	cut_side(limits, SIDE_FAR, limits->node[SIDE_NEAR]);
}

void
tunnel_limits_cut(struct tunnel_limits *limits, const struct tunnel_limits *earlier)
{
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++)
		for (enum pump_side from = SIDE_NEAR; from <= SIDE_FAR; from++)
			cut_side(limits, side, earlier->node[from]);
}

void
tunnel_limits_rest(struct tunnel_limits *limits)
{
	for (enum pump_side side = SIDE_NEAR; limits && side <= SIDE_FAR; side++)
		for (int i = 0; i < 2; i++)
			meter_rest(&limits->meter[side][i]);
}

void
tunnel_limits_close(struct tunnel_limits **limits, struct pump *pump)
{
	uint64_t now_ns = clock_now_ns();

	if (!*limits)
		return;
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		for (int i = 0; i < 2; i++)
			limits_flow_close(&(*limits)->meter[side][i].flow, now_ns);
		limits_release((*limits)->node[side], now_ns);
		limits_drop((*limits)->limit[side]);
		(*limits)->limit[side] = NULL;
		place(*limits, pump, side);
	}
	/* The name of what a flow waited for may be gone. */
	for (enum pump_flow name = FLOW_UP; name <= FLOW_DOWN; name++)
		pump->flow[name].waiting.limit = NULL;
	free(*limits);
	*limits = NULL;
}
