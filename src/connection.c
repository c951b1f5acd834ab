#include "connection.h"

#include "admission.h"
#include "clock.h"
#include "connection_deadline.h"
#include "connection_view.h"
#include "log.h"
#include "recent.h"
#include "target.h"
#include "tunnel_limits.h"

#include <event2/event.h>
#include <stddef.h>
#include <stdlib.h>

/* A slot is closed when it is this long; so many at a beat. */
#define SLOT_NS    (950 * NS_PER_MS)
#define BEAT_MOST  1024
#define DORMANT_NS (11 * NS_PER_S)

/* What a connection itself takes counts in max_memory, its events and small strings by a round sum. */
#define CONNECTION_BYTES (sizeof(struct connection) + 512)

struct tunnel_counters *
connection_counters(const struct connection *connection)
{
	return &connection->conf->live->counters[connection->home->worker % ADMISSION_COUNTERS];
}

void
connection_count_state(const struct connection *connection, int64_t change)
{
	if (connection->is_own)
		return;
	atomic_fetch_add_explicit(&connection_counters(connection)->state[connection->state],
				  change, memory_order_relaxed);
}

void
connection_count_handshake_down(struct connections *home)
{
	atomic_fetch_sub(&home->handshakes, 1);
	if (home->on_handshake)
		home->on_handshake(home);
}

void
connection_leave_handshakes(struct connection *connection)
{
	if (!connection->shakes_hands)
		return;
	connection->shakes_hands = false;
	connection_count_handshake_down(connection->home);
}

void
connection_set_state(struct connection *connection, enum connection_state state)
{
	connection_count_state(connection, -1);
	connection->state = (uint8_t)state;
	connection_count_state(connection, 1);
	if (state > CONNECTION_OPENING)
		connection_leave_handshakes(connection);
}

void
connection_log_end(const struct connection *connection, enum ended_by ended_by,
		   const struct failure *why)
{
	const struct pump *pump = &connection->pump;
	char client[SOCKET_ADDRESS_TEXT];
	char up_wait[PUMP_SHARES_TEXT], down_wait[PUMP_SHARES_TEXT];
	enum log_level level = connection->is_own ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO;

	if (!connection->home->logged || !log_wants(level) ||
	    connection->conf->logged >= (why ? LOGGED_NONE : LOGGED_FAILED))
		return;
	struct log_field fields[] = {
		{ .name = "tunnel", .text = connection->conf->name },
		{ .name = "connection", .number = connection->id },
		{ .name = "client",
		  .text = socket_address_text(&connection->facts.client, client) },
		{ .name = "target",
		  .text = connection->has_dialled
				  ? targets_name(connection->conf->targets, connection->target)
				  : "" },
		{ .name = "up", .number = pump->flow[FLOW_UP].bytes },
		{ .name = "down", .number = pump->flow[FLOW_DOWN].bytes },
		{ .name = "duration_ms",
		  .number = (pump->clock_ns - connection->opened_ns) / NS_PER_MS },
		{ .name = "ended_by", .text = connection_view_ender_name(ended_by) },
		{ .name = "reason", .text = why ? failure_kind_name(why->kind) : "ok" },
		{ .name = "up_wait", .text = pump_shares(&pump->flow[FLOW_UP], up_wait) },
		{ .name = "down_wait", .text = pump_shares(&pump->flow[FLOW_DOWN], down_wait) },
		{ .name = "worker", .number = connection->home->worker },
		{ .name = "why", .text = why ? why->text : "" },
	};
	unsigned int count = sizeof(fields) / sizeof(fields[0]);
	bool is_short = why && why->kind == FAILURE_DESCRIPTORS; /* it has not begun, as others */
	(is_short ? log_event : log_entry)(level, fields, why ? count : count - 1,
					   "connection ended");
}

void
connection_keep_end(const struct connection *connection, enum ended_by ended_by,
		    const struct failure *why)
{
	const struct pump *pump = &connection->pump;
	const struct targets *targets = connection->conf->targets;

	if (connection->is_own)
		return;
	struct ending *ending = endings_add(&connection->home->endings, !why);
	ending->id = connection->id;
	ending->opened_ns = connection->opened_ns;
	ending->at_ns = pump->clock_ns;
	ending->up_bytes = pump->flow[FLOW_UP].bytes;
	ending->down_bytes = pump->flow[FLOW_DOWN].bytes;
	ending->client = connection->facts.client;
	ending->ended_by = (uint8_t)ended_by;
	ending->kind = why ? (uint8_t)why->kind : FAILURE_NONE;
	endings_text(ending->tunnel, sizeof(ending->tunnel), connection->conf->name);
	endings_text(ending->target, sizeof(ending->target),
		     targets ? targets_name(targets, connection->target) : "");
	endings_text(ending->why, sizeof(ending->why), why ? why->text : "");
}

void
connection_count_down(struct connections *home)
{
	if (atomic_fetch_sub(&home->count, 1) == 1 && home->on_empty)
		home->on_empty(home);
}

/* --- those that moved lately --------------------------------------------------------------------- */

static struct recent *
take_recent(struct connections *home)
{
	struct recent *recent = slab_take(&home->recents);
	if (recent)
		home->loop->kept_bytes += sizeof(*recent);
	return recent;
}

static void
give_recent(struct connection *connection)
{
	if (connection->recent)
		connection->home->loop->kept_bytes -= sizeof(*connection->recent);
	slab_give(&connection->home->recents, connection->recent);
	connection->recent = NULL;
}

static void
leave_active(struct connection *connection)
{
	struct connections *home = connection->home;

	if (!connection->active_link)
		return;
	*connection->active_link = connection->next_active;
	if (connection->next_active)
		connection->next_active->active_link = connection->active_link;
	else
		home->active_end = connection->active_link;
	connection->active_link = NULL;
}

static void
join_active(struct connection *connection)
{
	struct connections *home = connection->home;

	if (!home->active_end)
		home->active_end = &home->active;
	connection->next_active = NULL;
	connection->active_link = home->active_end;
	*home->active_end = connection;
	home->active_end = &connection->next_active;
}

bool
connection_is_silence(enum wait cause)
{
	return cause == WAIT_MOVING || cause == WAIT_NEAR_READABLE || cause == WAIT_FAR_READABLE;
}

void
connection_note_active(struct connection *connection)
{
	struct pump *pump = &connection->pump;
	if (connection->active_link)
		return;
	connection->is_silent = false;
	pump_account(pump, clock_now_ns());
	/* One that is younger than a slot gets what is kept of it at the next beat, if it lives so long. */
	if (pump->clock_ns - connection->opened_ns >= SLOT_NS) {
		connection->recent = take_recent(connection->home);
		if (!connection->recent)
			return; /* the next time, then */
		recent_begin(connection->recent, pump, connection->opened_ns, false);
	}
	connection->looked_ns = pump->clock_ns;
	join_active(connection);
}

/* Closes a slot of an active connection, which then is the last in line, or none of them any more. */
static void
look_at_active(struct connection *connection, uint64_t now_ns)
{
	struct pump *pump = &connection->pump;
	bool rests = pump->flow[FLOW_UP].since_ns + DORMANT_NS < now_ns &&
		     pump->flow[FLOW_DOWN].since_ns + DORMANT_NS < now_ns;

	leave_active(connection);
	if (!connection->armed_ns)
		connection_deadline_set(connection, now_ns);
	if (rests) {
		connection->is_silent = connection_is_silence(pump->flow[FLOW_UP].waiting.cause) &&
					connection_is_silence(pump->flow[FLOW_DOWN].waiting.cause);
		give_recent(connection);
		return;
	}
	pump_account(pump, now_ns);
	if (!connection->recent) {
		connection->recent = take_recent(connection->home);
		if (connection->recent)
			recent_begin(connection->recent, pump, connection->opened_ns, true);
	}
	if (connection->recent)
		recent_note(connection->recent, pump);
	connection->looked_ns = now_ns;
	join_active(connection);
}

void
connection_beat(struct connections *connections, uint64_t now_ns)
{
	for (int i = 0; i < BEAT_MOST; i++) {
		struct connection *connection = connections->active;
		if (!connection || connection->looked_ns + SLOT_NS > now_ns)
			return;
		look_at_active(connection, now_ns);
	}
}

/* --- birth and end ------------------------------------------------------------------------------- */

static atomic_uint_fast64_t last_id;

static enum wait
first_wait(const struct tunnel_conf *conf)
{
	if (conf->group && conf->group->has_match)
		return WAIT_CHOICE;
	return conf->near_chain.count ? WAIT_HANDSHAKE : WAIT_CONNECT;
}

struct connection *
connection_new(struct connections *home, const struct tunnel_conf *conf, const struct facts *facts,
	       bool is_own)
{
	struct connection *connection = calloc(1, sizeof(*connection));
	if (!connection)
		return NULL;
	if (facts_copy(&connection->facts, facts) < 0) {
		facts_release(&connection->facts);
		free(connection);
		return NULL;
	}
	connection->facts.target_host = "";
	connection->facts.is_own = is_own;
	connection->home = home;
	connection->conf = conf;
	counted_hold(conf->generation);
	connection->id = atomic_fetch_add_explicit(&last_id, 1, memory_order_relaxed) + 1;
	connection->opened_ns = clock_now_ns();
	connection->first_end = ENDED_BY_US;
	connection->is_own = is_own;
	connection_deadline_set_lifetime(connection);
	connection->is_judged = is_own || !tunnel_conf_judges_late(conf);
	connection->source = facts->client;
	home->loop->kept_bytes += CONNECTION_BYTES;
	pump_open(&connection->pump, home->loop, first_wait(conf), connection->opened_ns);
	connection->next = home->first;
	connection->link = &home->first;
	if (home->first)
		home->first->link = &connection->next;
	home->first = connection;
	connection->moved_ns = connection->looked_ns = connection->opened_ns;
	join_active(connection);
	connection_count_state(connection, 1);
	return connection;
}

static void
on_end(struct task *task)
{
	struct connection *connection =
		(struct connection *)((char *)task - offsetof(struct connection, pump.turn));
	connection_count_state(connection, -1);
	facts_release(&connection->facts);
	counted_release(connection->conf->generation);
	connection->home->loop->kept_bytes -= CONNECTION_BYTES;
	free(connection);
}

void
connection_release(struct connection *connection)
{
	struct connections *home = connection->home;

	connection_set_state(connection, CONNECTION_CLOSED);
	event_del(&connection->timer);
	tunnel_limits_close(&connection->limits, &connection->pump);
	pump_close(&connection->pump);
	if (connection->has_target && !connection->is_own)
		targets_disconnected(connection->conf->targets, connection->target);
	if (!connection->is_own)
		admission_leave(connection->conf,
				connection->is_judged ? &connection->source : NULL);
	*connection->link = connection->next;
	if (connection->next)
		connection->next->link = connection->link;
	leave_active(connection);
	give_recent(connection);
	connection_view_forget(connection);
	home->loop->busy_ns = 0;
	connection->pump.turn.run = on_end; /* no run of the pump is to come any more */
	loop_run_later(home->loop, &connection->pump.turn);
	if (!connection->is_own)
		connection_count_down(home);
}

struct connection *
connection_joined_at(const struct endpoint *endpoint)
{
	if (!endpoint->kind || endpoint_is_socket(endpoint))
		return NULL;
	const struct endpoint *partner = endpoint->pair.partner;
	return partner && partner->pair.across ? partner->owner : NULL;
}
