#include "connection_view.h"

#include "clock.h"
#include "connection.h"
#include "recent.h"
#include "target.h"
#include "tunnel_limits.h"

#include <stdlib.h>
#include <string.h>

/* Somebody's place in the list of connections. */
struct walk {
	struct walk *other;
	struct connection *next;
	uint64_t number, used_ns;
};

static const char *const state_names[] = {
	[CONNECTION_CHOOSING] = "choosing", [CONNECTION_OPENING] = "opening",
	[CONNECTION_DIALLING] = "dialling", [CONNECTION_OPEN] = "open",
	[CONNECTION_FLUSHING] = "flushing", [CONNECTION_CLOSED] = "closed",
};

static const char *const ended_by_names[] = {
	[ENDED_BY_CLIENT] = "client",
	[ENDED_BY_TARGET] = "target",
	[ENDED_BY_US] = "us",
};

const char *
connection_view_state_name(enum connection_state state)
{
	return state_names[state];
}

const char *
connection_view_ender_name(enum ended_by ended_by)
{
	return ended_by_names[ended_by];
}

uint64_t
connection_view_begin(struct connections *connections)
{
	struct walk *walk = calloc(1, sizeof(*walk));
	if (!walk)
		return 0;
	walk->number = ++connections->walks_begun;
	walk->used_ns = clock_now_ns();
	walk->next = connections->first;
	walk->other = connections->walks;
	connections->walks = walk;
	return walk->number;
}

struct connection *
connection_view_next(struct connections *connections, uint64_t number, uint64_t now_ns)
{
	struct walk *walk = connections->walks;
	while (walk && walk->number != number)
		walk = walk->other;
	if (!walk)
		return NULL;
	while (walk->next && walk->next->is_own)
		walk->next = walk->next->next;
	struct connection *connection = walk->next;
	if (!connection)
		return NULL;
	walk->next = connection->next;
	walk->used_ns = now_ns;
	return connection;
}

void
connection_view_end(struct connections *connections, uint64_t number)
{
	struct walk **link = &connections->walks;
	while (*link && (*link)->number != number)
		link = &(*link)->other;
	struct walk *walk = *link;
	if (!walk)
		return;
	*link = walk->other;
	free(walk);
}

void
connection_view_end_all(struct connections *connections)
{
	while (connections->walks)
		connection_view_end(connections, connections->walks->number);
}

void
connection_view_end_old(struct connections *connections, uint64_t now_ns)
{
	struct walk *walk = connections->walks;
	while (walk) {
		struct walk *other = walk->other;
		if (walk->used_ns + CONNECTION_VIEW_S * NS_PER_S < now_ns)
			connection_view_end(connections, walk->number);
		walk = other;
	}
}

void
connection_view_forget(const struct connection *connection)
{
	for (struct walk *walk = connection->home->walks; walk; walk = walk->other)
		if (walk->next == connection)
			walk->next = connection->next;
}

struct connection *
connection_view_find(struct connections *connections, uint64_t id)
{
	for (struct connection *connection = connections->first; connection;
	     connection = connection->next)
		if (connection->id == id)
			return connection;
	return NULL;
}

const struct endpoint *
connection_view_endpoint(const struct connection *connection, enum pump_side side)
{
	return &connection->pump.side[side].endpoint;
}

static uint64_t
partner_at(const struct connection *connection, enum pump_side side)
{
	const struct connection *joined =
		connection_joined_at(connection_view_endpoint(connection, side));
	return joined ? joined->id : 0;
}

static void
copy_text(char *to, size_t size, const char *from)
{
	size_t length = from ? strnlen(from, size - 1) : 0;
	if (length)
		memcpy(to, from, length);
	to[length] = '\0';
}

static void
report_facts(const struct facts *facts, struct connection_report *out)
{
	out->source = facts->client;
	socket_address_text(&facts->client, out->client);
	socket_address_text(&facts->accepted, out->accepted);
	out->client_is_told = facts->client_is_told;
	copy_text(out->sni, sizeof(out->sni), facts->sni);
	copy_text(out->alpn, sizeof(out->alpn), facts->alpn);
	copy_text(out->tls_version, sizeof(out->tls_version), facts->tls_version);
	copy_text(out->tls_cipher, sizeof(out->tls_cipher), facts->tls_cipher);
	copy_text(out->common_name, sizeof(out->common_name), facts->common_name);
	copy_text(out->certificate, sizeof(out->certificate), facts->certificate);
}

/* The connection behind the endpoint that a flow waits for, or NULL. */
static struct connection *
behind(const struct connection *connection, enum wait cause)
{
	switch (cause) {
	case WAIT_NEAR_READABLE:
	case WAIT_NEAR_WRITABLE:
		return connection_joined_at(connection_view_endpoint(connection, SIDE_NEAR));
	case WAIT_FAR_READABLE:
	case WAIT_FAR_WRITABLE:
		return connection_joined_at(connection_view_endpoint(connection, SIDE_FAR));
	default:
		return NULL;
	}
}

/* Which bucket keeps a flow waiting; up is up through every hop. */
static void
report_limit(struct connection *connection, enum pump_flow name, uint64_t now_ns,
	     struct flow_report *out)
{
	struct limit_report report;

	while (connection && connection->pump.flow[name].waiting.cause != WAIT_LIMIT)
		connection = behind(connection, connection->pump.flow[name].waiting.cause);
	for (int side = SIDE_NEAR; connection && connection->limits && side <= SIDE_FAR; side++) {
		enum limit_direction direction = name == FLOW_UP ? LIMIT_UP : LIMIT_DOWN;
		struct meter *meter = &connection->limits->meter[side][direction];
		if (!limits_report_waits_for(&meter->flow, now_ns, &report))
			continue;
		copy_text(out->limit, sizeof(out->limit), report.name);
		copy_text(out->limit_key, sizeof(out->limit_key), report.key);
		out->limit_rate = report.direction[direction].rate;
		out->limit_active = report.direction[direction].active;
		for (int other = SIDE_NEAR; other <= SIDE_FAR; other++)
			limits_bound(&connection->limits->meter[other][direction].flow, report.id,
				     &out->raised);
		return;
	}
}

static void
report_flow(struct connection *connection, enum pump_flow name, uint64_t now_ns,
	    const struct recent_window *window, struct flow_report *out)
{
	const struct flow *flow = &connection->pump.flow[name];

	out->bytes = flow->bytes;
	out->rate = window->rate[name];
	out->is_over = flow->state == FLOW_ENDED;
	out->waiting = flow->waiting;
	out->blamed = pump_waiting(&connection->pump, name);
	copy_text(out->limit, sizeof(out->limit),
		  out->blamed.cause == WAIT_LIMIT ? out->blamed.limit : NULL);
	out->waiting.limit = out->blamed.limit = NULL;
	if (out->blamed.cause == WAIT_LIMIT)
		report_limit(connection, name, now_ns, out);
	out->since_ns = flow->since_ns;
	memcpy(out->life_ns, flow->spent_ns, sizeof(out->life_ns));
	memcpy(out->recent_ns, window->sums.spent_ns[name], sizeof(out->recent_ns));
	out->recent_bytes = window->sums.bytes[name];
}

static struct recent_window
look(struct connection *connection, uint64_t now_ns)
{
	struct recent_window window;
	if (now_ns > connection->pump.clock_ns)
		pump_account(&connection->pump, now_ns);
	recent_look(connection->recent, &connection->pump, connection->opened_ns, &window);
	return window;
}

void
connection_view_report(struct connection *connection, uint64_t now_ns,
		       struct connection_report *out)
{
	struct pump *pump = &connection->pump;
	struct recent_window window;

	*out = (struct connection_report){
		.id = connection->id,
		.partner = { partner_at(connection, SIDE_NEAR), partner_at(connection, SIDE_FAR) },
		.worker = connection->home->worker,
		.state = connection->state,
		.is_half_open = connection->state == CONNECTION_OPEN && pump_is_half_open(pump),
		.opened_ns = connection->opened_ns,
		.moved_ns = connection->moved_ns,
		.now_ns = now_ns,
		.far_is_connected = connection->has_target,
		.near_shakes = !stack_is_ready(pump->side[SIDE_NEAR].stack),
		.far_shakes = !stack_is_ready(pump->side[SIDE_FAR].stack),
	};
	size_t target =
		connection->dialling ? connection->dialling->dial.index : connection->target;
	copy_text(out->tunnel, sizeof(out->tunnel), connection->conf->name);
	copy_text(out->target, sizeof(out->target),
		  connection->has_dialled ? targets_name(connection->conf->targets, target) : NULL);
	report_facts(&connection->facts, out);
	window = look(connection, now_ns);
	out->recent_length_ns = window.length_ns;
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++)
		report_flow(connection, (enum pump_flow)name, now_ns, &window, &out->flow[name]);
}

/* How long the flow that was kept waiting most was, in the window, by other things than silence. */
static uint64_t
kept_waiting_ns(const struct recent_window *window)
{
	uint64_t most_ns = 0;
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		uint64_t ns = 0;
		for (int cause = 0; cause < WAITS; cause++)
			if (!connection_is_silence((enum wait)cause))
				ns += window->sums.spent_ns[name][cause];
		if (ns > most_ns)
			most_ns = ns;
	}
	/* Little of it is nothing. */
	return most_ns >= window->length_ns / 10 ? most_ns : 0;
}

uint64_t
connection_view_rank(struct connection *connection, enum connection_order order, uint64_t now_ns)
{
	const struct pump *pump = &connection->pump;
	struct recent_window window;

	switch (order) {
	case ORDER_RATE:
		if (!connection->active_link)
			return 0;
		window = look(connection, now_ns);
		return window.rate[FLOW_UP] + window.rate[FLOW_DOWN];
	case ORDER_BYTES:
		return pump->flow[FLOW_UP].bytes + pump->flow[FLOW_DOWN].bytes;
	case ORDER_AGE:
		return UINT64_MAX - connection->opened_ns;
	case ORDER_IDLE:
		return UINT64_MAX - connection->moved_ns;
	case ORDER_WAIT:
		if (!connection->active_link && connection->is_silent)
			return 0;
		window = look(connection, now_ns);
		return kept_waiting_ns(&window);
	case ORDER_ID:
		break;
	}
	return UINT64_MAX - connection->id;
}
