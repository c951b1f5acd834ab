#include "tunnel.h"

#include "admission.h"
#include "choice.h"
#include "clock.h"
#include "filters/client_hello.h"
#include "log.h"
#include "pair.h"
#include "pump.h"
#include "recent.h"
#include "target.h"
#include "tunnel_limits.h"

#include <arpa/inet.h>
#include <event2/event.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

/* How often a connection that does not read one of its peers looks whether that peer is still there,
 * and whether a peer that does not read makes progress all the same. */
#define LOOK_NS (2 * NS_PER_S)
/* After one side's reset, how long the other side's kernel may take to pass on what was written
 * before it is reset, too, and how often that is looked at. */
#define FLUSH_NS      (1 * NS_PER_S)
#define FLUSH_LOOK_NS (10 * NS_PER_MS)

/* A slot is closed when it is this long; so many at a beat. */
#define SLOT_NS    (950 * NS_PER_MS)
#define BEAT_MOST  1024
#define DORMANT_NS (11 * NS_PER_S)

/* What connection_end is to reset at once; else a side, which is gone already. */
enum { RESET_BOTH = -1, RESET_NEITHER = -2 };

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
	struct connection *next, **link;
	struct connection *next_active, **active_link; /* active_link NULL = not among them */
	struct recent *recent;                         /* NULL = nothing of note in ten seconds */
	uint64_t looked_ns;                            /* when the last slot was closed */
	struct dialling *dialling;
	struct tunnel_check *check;   /* whose it is and that waits for it; NULL = nobody's */
	struct tunnel_limits *limits; /* NULL = none */
	struct event timer;

	uint64_t id;
	uint64_t opened_ns, moved_ns;  /* moved_ns: when the last byte moved */
	uint64_t armed_ns;             /* when the timer fires; 0 = not armed */
	uint64_t over_ns;              /* lifetime or flushing ends; 0 = never */
	uint64_t handshake_ns;         /* when the handshakes that go on began */
	uint64_t handshake_limited_ns; /* and how long the connection had waited for limits then */
	size_t unsent_bytes;           /* at the last look */
	size_t target;                 /* index in the connect list */
	struct facts facts;
	struct socket_address source; /* is_judged: what it was let in as */

	uint8_t state;     /* enum connection_state */
	uint8_t first_end; /* enum ended_by: whose end came first */
	bool has_target;   /* `target` counts as active */
	bool is_judged;    /* its source is counted */
	bool has_looked;   /* for a ClientHello, to choose its tunnel */
	bool is_own;       /* the daemon's: a check, or what is joined to one */
	bool slow;         /* half-open or blocked when the timer was last set */
};

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

static struct endpoint *
endpoint_of(struct connection *connection, enum pump_side side)
{
	return &connection->pump.side[side].endpoint;
}

static struct tunnel_counters *
counters_of(const struct connection *connection)
{
	return &connection->conf->live->counters[connection->home->worker % ADMISSION_COUNTERS];
}

static void
count_state(const struct connection *connection, int64_t change)
{
	if (connection->is_own)
		return;
	atomic_fetch_add_explicit(&counters_of(connection)->state[connection->state], change,
				  memory_order_relaxed);
}

static void
set_state(struct connection *connection, enum connection_state state)
{
	count_state(connection, -1);
	connection->state = (uint8_t)state;
	count_state(connection, 1);
}

/* --- the door out ------------------------------------------------------------------------------- */

static void
log_end(const struct connection *connection, enum ended_by ended_by, const struct failure *why)
{
	const struct pump *pump = &connection->pump;
	char client[SOCKET_ADDRESS_TEXT];
	char up_wait[PUMP_SHARES_TEXT], down_wait[PUMP_SHARES_TEXT];

	enum log_level level = connection->is_own ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO;

	if (!connection->home->logged || !log_wants(level))
		return;
	if (why && why->kind == FAILURE_DESCRIPTORS) { /* one for all of them, once a second */
		if (pump->clock_ns - connection->home->complained_ns < NS_PER_S)
			return;
		connection->home->complained_ns = pump->clock_ns;
	}
	struct log_field fields[] = {
		{ .name = "tunnel", .text = connection->conf->name },
		{ .name = "connection", .number = connection->id },
		{ .name = "client",
		  .text = socket_address_text(&connection->facts.client, client) },
		{ .name = "target",
		  .text = connection->conf->targets
				  ? targets_name(connection->conf->targets, connection->target)
				  : "" },
		{ .name = "up", .number = pump->flow[FLOW_UP].bytes },
		{ .name = "down", .number = pump->flow[FLOW_DOWN].bytes },
		{ .name = "duration_ms",
		  .number = (pump->clock_ns - connection->opened_ns) / NS_PER_MS },
		{ .name = "ended_by", .text = ended_by_names[ended_by] },
		{ .name = "reason", .text = why ? failure_kind_name(why->kind) : "ok" },
		{ .name = "up_wait", .text = pump_shares(&pump->flow[FLOW_UP], up_wait) },
		{ .name = "down_wait", .text = pump_shares(&pump->flow[FLOW_DOWN], down_wait) },
		{ .name = "worker", .number = connection->home->worker },
		{ .name = "why", .text = why ? why->text : "" },
	};
	unsigned int count = sizeof(fields) / sizeof(fields[0]);
	log_event(level, fields, why ? count : count - 1, "connection ended");
}

static void
count_down(struct connections *home)
{
	if (atomic_fetch_sub(&home->count, 1) == 1 && home->on_empty)
		home->on_empty(home);
}

/* What a connection itself takes counts in max_memory, its events and small strings by a round sum. */
#define CONNECTION_BYTES (sizeof(struct connection) + 512)

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
on_end(struct task *task)
{
	struct connection *connection =
		(struct connection *)((char *)task - offsetof(struct connection, pump.turn));
	count_state(connection, -1);
	facts_release(&connection->facts);
	counted_release(connection->conf->generation);
	connection->home->loop->kept_bytes -= CONNECTION_BYTES;
	free(connection);
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

/* Something is about to happen to it: from now on what it does is kept. */
static void
note_active(struct connection *connection)
{
	struct pump *pump = &connection->pump;
	if (connection->active_link)
		return;
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

/* Gives back everything but the memory, which a caller up the stack may still look at. */
static void
release(struct connection *connection)
{
	struct connections *home = connection->home;

	set_state(connection, CONNECTION_CLOSED);
	event_del(&connection->timer);
	tunnel_limits_close(&connection->limits, &connection->pump);
	pump_close(&connection->pump);
	if (connection->has_target)
		targets_disconnected(connection->conf->targets, connection->target);
	if (!connection->is_own)
		admission_leave(connection->conf,
				connection->is_judged ? &connection->source : NULL);
	*connection->link = connection->next;
	if (connection->next)
		connection->next->link = connection->link;
	leave_active(connection);
	give_recent(connection);
	for (struct walk *walk = home->walks; walk; walk = walk->other)
		if (walk->next == connection)
			walk->next = connection->next;
	home->loop->busy_ns = 0;
	connection->pump.turn.run = on_end; /* no run of the pump is to come any more */
	loop_run_later(home->loop, &connection->pump.turn);
	if (!connection->is_own)
		count_down(home);
}

static void
stop_dialling(struct connection *connection)
{
	if (!connection->dialling)
		return;
	dial_cancel(&connection->dialling->dial);
	free(connection->dialling);
	connection->dialling = NULL;
}

static void arm(struct connection *connection, uint64_t due_ns, uint64_t now_ns);

/* The end of what is left of one side after the other was reset: behind the bytes that its kernel
 * still holds, but not for long. */
static void
flush_or_abort(struct connection *connection, uint64_t now_ns)
{
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		struct endpoint *endpoint = endpoint_of(connection, side);
		if (!endpoint->kind)
			continue;
		if (now_ns < connection->over_ns && endpoint->kind->unsent(endpoint)) {
			arm(connection, now_ns + FLUSH_LOOK_NS, now_ns);
			return;
		}
		endpoint->kind->abort(endpoint);
	}
	release(connection);
}

/* The check that this connection was made for, if it was, has its answer. */
static void
tell_check(struct connection *connection, const struct failure *why)
{
	struct tunnel_check *check = connection->check;
	if (!check)
		return;
	tunnel_check_stop(check);
	check->on_end(check, why);
}

/*
 * The one way out. Without `why` both sides have ended in order; with it, whatever is open is reset:
 * the side `at_once` (or RESET_BOTH, RESET_NEITHER) now, another behind the bytes that its kernel holds.
 */
static void
connection_end(struct connection *connection, enum ended_by ended_by, int at_once,
	       const struct failure *why)
{
	struct pump *pump = &connection->pump;
	uint64_t now_ns = clock_now_ns();

	stop_dialling(connection);
	tunnel_limits_close(&connection->limits, pump);
	pump_account(pump, now_ns);
	if (!connection->is_own)
		atomic_fetch_add_explicit(
			&counters_of(connection)->ended[ended_by][why ? why->kind : 0], 1,
			memory_order_relaxed);
	log_end(connection, ended_by, why);
	tell_check(connection, why);
	if (!why) {
		endpoint_close_both(endpoint_of(connection, SIDE_NEAR),
				    endpoint_of(connection, SIDE_FAR));
		release(connection);
		return;
	}
	set_state(connection, CONNECTION_FLUSHING);
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		struct endpoint *endpoint = endpoint_of(connection, side);
		endpoint->want_readable = endpoint->want_writable = false;
		if (endpoint->kind && ((int)side == at_once || at_once == RESET_BOTH))
			endpoint->kind->abort(endpoint);
	}
	connection->over_ns = now_ns + FLUSH_NS;
	flush_or_abort(connection, now_ns);
}

/* --- deadlines ---------------------------------------------------------------------------------- */

static void
arm(struct connection *connection, uint64_t due_ns, uint64_t now_ns)
{
	struct timeval after;
	clock_to_timeval(due_ns > now_ns ? due_ns - now_ns : 0, &after);
	connection->armed_ns = due_ns;
	event_add(&connection->timer, &after);
}

static uint64_t
sooner(uint64_t a_ns, uint64_t b_ns)
{
	return a_ns < b_ns ? a_ns : b_ns;
}

/* How long it has waited for limits, up to the last account. */
static uint64_t
limited_ns(const struct connection *connection)
{
	const struct flow *flow = connection->pump.flow;
	uint64_t up_ns = flow[FLOW_UP].spent_ns[WAIT_LIMIT];
	uint64_t down_ns = flow[FLOW_DOWN].spent_ns[WAIT_LIMIT];
	return up_ns > down_ns ? up_ns : down_ns;
}

/* When the connection is to be ended for taking too long, and what is to be said then. */
static uint64_t
deadline(const struct connection *connection, const char **said)
{
	const struct timeouts *timeouts = &connection->conf->timeouts;
	const struct pump *pump = &connection->pump;
	uint64_t due_ns = UINT64_MAX;

	if (connection->over_ns) {
		due_ns = connection->over_ns;
		*said = connection->is_own ? "check" : "lifetime";
	}
	if (connection->state == CONNECTION_DIALLING)
		return due_ns; /* the dial has its own */
	uint64_t handshake_ns = connection->handshake_ns + timeouts->handshake +
				limited_ns(connection) - connection->handshake_limited_ns;
	if (pump_is_handshaking(pump) && handshake_ns < due_ns) {
		due_ns = handshake_ns;
		*said = "handshake";
	}
	if (connection->state <= CONNECTION_OPENING)
		return due_ns;

	bool half_open = pump_is_half_open(pump);
	uint64_t idle_ns = half_open ? timeouts->half_open : timeouts->idle;
	if (idle_ns && connection->moved_ns + idle_ns < due_ns) {
		due_ns = connection->moved_ns + idle_ns;
		*said = half_open ? "half_open" : "idle";
	}
	const struct flow *up = &pump->flow[FLOW_UP];
	uint64_t first_byte_ns =
		connection->opened_ns + timeouts->first_byte + up->spent_ns[WAIT_LIMIT];
	if (timeouts->first_byte && !up->bytes && !up->store && !up->source_ended &&
	    first_byte_ns < due_ns) {
		due_ns = first_byte_ns;
		*said = "first_byte";
	}
	return due_ns;
}

/* When the tunnel's lifetime is over, counted from the connection's begin. */
static void
set_lifetime(struct connection *connection)
{
	uint64_t lifetime_ns = connection->conf->timeouts.lifetime;
	/* Up to a tenth more, so that connections made together do not end together. */
	uint64_t spread = (connection->id * UINT64_C(0x9e3779b97f4a7c15)) >> 54; /* 0 .. 1023 */

	connection->over_ns =
		lifetime_ns ? connection->opened_ns + lifetime_ns + lifetime_ns / 10240 * spread
			    : 0;
}

/* Whether some peer is not being read or does not read: the kernel tells nothing then, so we look. */
static bool
is_slow(const struct connection *connection)
{
	return connection->state == CONNECTION_DIALLING || pump_is_blocked(&connection->pump) ||
	       pump_is_limited(&connection->pump);
}

/* What the timer depends on. */
static bool
needs_looks(const struct connection *connection)
{
	return is_slow(connection) || pump_is_half_open(&connection->pump);
}

static void
set_timer(struct connection *connection, uint64_t now_ns)
{
	const char *said;
	uint64_t due_ns = deadline(connection, &said);

	connection->slow = needs_looks(connection);
	if (is_slow(connection)) {
		uint64_t idle_ns = connection->conf->timeouts.idle;
		uint64_t look_ns = idle_ns && idle_ns / 4 < LOOK_NS ? idle_ns / 4 : LOOK_NS;
		due_ns = sooner(due_ns, now_ns + look_ns);
	}
	if (due_ns == UINT64_MAX)
		return;
	/* A timer that fires too early is set anew then; that is cheaper than to move it for each byte. */
	if (!connection->armed_ns || due_ns < connection->armed_ns)
		arm(connection, due_ns, now_ns);
}

/* The connection that an internal endpoint leads to, or NULL: a socket, a service, or gone. */
static struct connection *
joined_at(const struct endpoint *endpoint)
{
	if (!endpoint->kind || endpoint_is_socket(endpoint))
		return NULL;
	const struct endpoint *partner = endpoint->pair.partner;
	return partner && partner->pair.across ? partner->owner : NULL;
}

/* A byte that the peer's kernel took out of ours is progress, though we see no event for it; and what
 * moves in the connection behind a pair is progress of this one. `from` is where the asker is, if one is:
 * a chain of internal hops is asked link by link, away from him. */
static void
look_for_progress(struct connection *connection, const struct connection *from, uint64_t now_ns)
{
	size_t unsent_bytes = 0;

	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		struct endpoint *endpoint = endpoint_of(connection, side);
		struct connection *joined = joined_at(endpoint);
		if (joined && joined != from) {
			look_for_progress(joined, connection, now_ns);
			if (joined->moved_ns > connection->moved_ns)
				connection->moved_ns = joined->moved_ns;
		}
		if (endpoint->kind)
			unsent_bytes += endpoint->kind->unsent(endpoint);
	}
	if (unsent_bytes < connection->unsent_bytes)
		connection->moved_ns = now_ns;
	connection->unsent_bytes = unsent_bytes;
}

/* Bytes by side and flow, so far. */
struct passed {
	uint64_t bytes[2][2];
};

static struct passed
passed(const struct connection *connection)
{
	const struct flow *flow = connection->pump.flow;
	return (struct passed){ .bytes = {
					[SIDE_NEAR] = { flow[FLOW_UP].read_bytes,
							flow[FLOW_DOWN].bytes },
					[SIDE_FAR] = { flow[FLOW_UP].bytes,
						       flow[FLOW_DOWN].read_bytes },
				} };
}

static void
count_passed(struct connection *connection, const struct passed *before)
{
	if (connection->is_own)
		return;
	struct tunnel_counters *counters = counters_of(connection);
	struct passed now = passed(connection);

	for (int side = SIDE_NEAR; side <= SIDE_FAR; side++)
		for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
			uint64_t bytes = now.bytes[side][name] - before->bytes[side][name];
			if (bytes)
				atomic_fetch_add_explicit(&counters->bytes[side][name], bytes,
							  memory_order_relaxed);
		}
}

static void
end_broken(struct connection *connection, enum pump_side side, const struct failure *why)
{
	/* A filter that failed may owe its peer an alert: that side is reset behind it. */
	int at_once = connection->pump.filter_failed ? RESET_NEITHER : (int)side;
	struct passed before = passed(connection);

	pump_push(&connection->pump);
	count_passed(connection, &before);
	connection_end(connection, side == SIDE_NEAR ? ENDED_BY_CLIENT : ENDED_BY_TARGET, at_once,
		       why);
}

/* Looks after peers that are not being read. Returns whether the connection goes on. */
static bool
look_at_peers(struct connection *connection)
{
	struct failure why;

	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		struct endpoint *endpoint = endpoint_of(connection, side);
		if (!endpoint->kind ||
		    (endpoint->want_readable && connection->state != CONNECTION_DIALLING))
			continue;
		if (endpoint->kind->probe(endpoint, &why) != ENDPOINT_BROKEN)
			continue;
		connection->pump.broken_side = (uint8_t)side;
		end_broken(connection, side, &why);
		return false;
	}
	return true;
}

static void
on_timer(evutil_socket_t fd, short what, void *context)
{
	struct connection *connection = context;
	uint64_t now_ns = clock_now_ns();
	const char *said = "";
	(void)fd;
	(void)what;

	connection->armed_ns = 0;
	if (connection->state == CONNECTION_FLUSHING) {
		flush_or_abort(connection, now_ns);
		return;
	}
	if (is_slow(connection)) {
		if (!look_at_peers(connection))
			return;
		look_for_progress(connection, NULL, now_ns);
	}
	/* Who waits for our own tokens, or for somebody who does, is not idle. */
	pump_account(&connection->pump, now_ns);
	if (pump_is_held_up(&connection->pump))
		connection->moved_ns = now_ns;
	if (now_ns >= deadline(connection, &said)) {
		struct failure why;
		failure_set(&why, FAILURE_TIMEOUT, "timeouts: %s has passed", said);
		connection_end(connection, ENDED_BY_US, RESET_BOTH, &why);
		return;
	}
	set_timer(connection, now_ns);
}

/* --- moving ------------------------------------------------------------------------------------- */

static void
note_first_end(struct connection *connection)
{
	const struct flow *flow = connection->pump.flow;
	if (connection->first_end != ENDED_BY_US)
		return;
	if (flow[FLOW_UP].source_ended)
		connection->first_end = ENDED_BY_CLIENT;
	else if (flow[FLOW_DOWN].source_ended)
		connection->first_end = ENDED_BY_TARGET;
}

static void learn(struct connection *connection);
static void choose(struct connection *connection);
static void go_on(struct connection *connection);

/* The near filters have done their part: what comes next. */
static void
leave_opening(struct connection *connection)
{
	if (connection->state == CONNECTION_CHOOSING)
		choose(connection);
	else
		go_on(connection);
}

/* What is left of it may take a second to end in order. */
static void
pass_check(struct connection *connection)
{
	connection->over_ns = connection->pump.clock_ns + NS_PER_S;
	set_timer(connection, connection->pump.clock_ns);
	tell_check(connection, NULL);
}

/* A step of a handshake can cost as much as a thousand messages: a storm of them must not keep the other
 * connections waiting. True if this one has to wait for its turn; it is in line for that, and its peers are
 * not listened to meanwhile. */
static bool
must_queue(struct connection *connection)
{
	struct connections *home = connection->home;
	struct loop *loop = home->loop;

	if (!pump_is_handshaking(&connection->pump))
		return false;
	if (home->handshakes_turn != loop->turns) {
		home->handshakes_turn = loop->turns;
		home->handshakes = 0;
	}
	if (!loop->heavy.first && home->handshakes < loop->heavy_most) {
		home->handshakes++;
		return false;
	}
	endpoint_of(connection, SIDE_NEAR)->want_readable = false;
	endpoint_of(connection, SIDE_FAR)->want_readable = false;
	loop_run_heavy(loop, &connection->pump.turn);
	return true;
}

static void
run_now(struct connection *connection)
{
	struct pump *pump = &connection->pump;
	struct failure why;

	if (connection->state > CONNECTION_OPEN || connection->state == CONNECTION_DIALLING)
		return;
	note_active(connection);
	struct passed before = passed(connection);
	enum pump_result result = pump_run(pump, &why);
	note_first_end(connection);
	if (pump->moved) {
		connection->moved_ns = pump->clock_ns;
		count_passed(connection, &before);
	}
	switch (result) {
	case PUMP_GOING:
		break;
	case PUMP_ENDED:
		connection_end(connection, connection->first_end, RESET_NEITHER, NULL);
		return;
	case PUMP_BROKEN:
		end_broken(connection, pump->broken_side, &why);
		return;
	}
	if (connection->limits)
		learn(connection);
	if (connection->check && connection->state == CONNECTION_OPEN && !pump_is_handshaking(pump))
		pass_check(connection);
	if (connection->state <= CONNECTION_OPENING) {
		if (!pump_is_handshaking(pump))
			leave_opening(connection);
		return;
	}
	/* Only a change of what the deadlines hang on is worth a look at the timer. */
	if (connection->slow != needs_looks(connection))
		set_timer(connection, pump->clock_ns);
}

static void
run(struct connection *connection)
{
	if (!must_queue(connection))
		run_now(connection);
}

static void
on_ready(struct endpoint *endpoint)
{
	run(endpoint->owner);
}

static void
on_turn(struct task *task)
{
	struct connection *connection =
		(struct connection *)((char *)task - offsetof(struct connection, pump.turn));
	if (task->is_heavy)
		run_now(connection);
	else
		run(connection);
}

static void
begin_handshake(struct connection *connection)
{
	connection->handshake_ns = clock_now_ns();
	connection->handshake_limited_ns = limited_ns(connection);
}

/* The handshakes of a side's filters begin. On failure the connection is over. */
static int
open_stack(struct connection *connection, enum pump_side side, const struct chain *chain)
{
	struct failure why;

	if (!chain->count)
		return 0;
	if (stack_open(&connection->pump.side[side].stack, chain,
		       side == SIDE_NEAR ? FILTER_NEAR : FILTER_FAR, &connection->facts, &why) == 0)
		return 0;
	connection_end(connection, ENDED_BY_US, RESET_BOTH, &why);
	return -1;
}

static void
open_side(struct connection *connection, enum pump_side side)
{
	struct endpoint *endpoint = endpoint_of(connection, side);
	endpoint->owner = connection;
	endpoint->on_ready = on_ready;
}

/* --- limits ------------------------------------------------------------------------------------- */

static struct tunnel_limits_of
limits_of(struct connection *connection)
{
	return (struct tunnel_limits_of){
		.owner = connection,
		.pump = &connection->pump,
		.worker = connection->home->limits,
		.facts = &connection->facts,
		.id = connection->id,
		.is_settled = stack_is_ready(connection->pump.side[SIDE_NEAR].stack),
	};
}

/* What is counted nearer to the client is not counted again: here, and at what comes behind. */
static void
cut(struct connection *connection)
{
	const struct connection *earlier = connection;

	if (!connection->limits)
		return;
	tunnel_limits_uncut(connection->limits);
	for (enum pump_flow name = FLOW_UP; name <= FLOW_DOWN; name++)
		connection->pump.flow[name].waiting.limit = NULL; /* it may be gone */
	while ((earlier = joined_at(&earlier->pump.side[SIDE_NEAR].endpoint)))
		if (earlier->limits)
			tunnel_limits_cut(connection->limits, earlier->limits);
}

static void
learn(struct connection *connection)
{
	struct tunnel_limits_of of = limits_of(connection);

	if (!tunnel_limits_learn(connection->limits, &of))
		return;
	cut(connection);
	loop_run_later(connection->home->loop, &connection->pump.turn);
}

/* On failure the connection is over. */
static int
obey_limits(struct connection *connection)
{
	struct tunnel_limits_of of = limits_of(connection);
	struct failure why;

	if (connection->is_own)
		return 0;
	if (tunnel_limits_obey(&connection->limits, connection->conf, &of, &why) < 0) {
		connection_end(connection, ENDED_BY_US, RESET_BOTH, &why);
		return -1;
	}
	cut(connection);
	return 0;
}

void
tunnel_granted(struct limit_flow *flow)
{
	run(((struct meter *)flow)->owner);
}

void
tunnel_obey_limits(struct connections *connections,
		   const struct tunnel_conf *(*find)(const void *context, const char *name),
		   const void *context)
{
	struct connection *connection, *next;
	struct failure ignored; /* it keeps what it has */

	for (connection = connections->first; connection; connection = connection->next) {
		const struct tunnel_conf *conf = find(context, connection->conf->name);
		struct tunnel_limits_of of = limits_of(connection);
		/* Under its front it has none, and obeys once it is in a tunnel. */
		if (conf && connection->state < CONNECTION_FLUSHING &&
		    connection->state != CONNECTION_CHOOSING)
			tunnel_limits_obey(&connection->limits, conf, &of, &ignored);
	}
	for (connection = connections->first; connection; connection = connection->next)
		cut(connection);
	for (connection = connections->first; connection; connection = next) {
		next = connection->next;
		if (pump_is_limited(&connection->pump))
			run(connection);
	}
}

/* The target's host as configured, "" for what has none. */
static const char *
target_host(const struct connection *connection, char text[INET6_ADDRSTRLEN])
{
	const struct address *address = &connection->conf->connect.at[connection->target];
	if (address->kind == ADDRESS_HOST)
		return address->name;
	if (address->kind != ADDRESS_IP ||
	    !inet_ntop(address->numeric.family, address->numeric.ip, text, INET6_ADDRSTRLEN))
		return "";
	return text;
}

/* The far side is there: from here on bytes move. */
static void
open_far(struct connection *connection)
{
	open_side(connection, SIDE_FAR);
	connection->has_target = true;
	set_state(connection, CONNECTION_OPEN);
	char host[INET6_ADDRSTRLEN];
	/* Only filters ask, and an address takes a while to write. */
	if (connection->conf->far_chain.count)
		connection->facts.target_host = target_host(connection, host);
	begin_handshake(connection);
	int opened = open_stack(connection, SIDE_FAR, &connection->conf->far_chain);
	connection->facts.target_host = "";
	if (opened < 0)
		return;
	if (connection->limits)
		tunnel_limits_measure(connection->limits, &connection->pump, SIDE_FAR);
	pump_wait(&connection->pump, WAIT_TURN, clock_now_ns());
	/* A client that speaks first has most often done so by now: a read is tried before it is told. */
	endpoint_of(connection, SIDE_NEAR)->readable = true;
	connection->moved_ns = connection->pump.clock_ns;
	run(connection);
	if (connection->state == CONNECTION_OPEN)
		set_timer(connection, connection->pump.clock_ns);
}

/* --- dialling ----------------------------------------------------------------------------------- */

static struct connection *connection_new(struct connections *home, const struct tunnel_conf *conf,
					 const struct facts *facts, bool is_own);
static void begin(struct connection *connection);

/* Joins the connection's far end to another tunnel of the same generation. */
static int
join_tunnel(struct connection *connection, const struct tunnel_conf *conf, struct failure *why)
{
	struct connections *home = connection->home;
	const struct socket_address *client = &connection->facts.client;
	const struct socket_address *judged = tunnel_conf_judges_late(conf) ? NULL : client;

	if (!connection->is_own && admission_enter(conf, judged, clock_now_ns(), why) < 0)
		return -1;
	struct connection *joined =
		connection_new(home, conf, &connection->facts, connection->is_own);
	if (!joined) {
		if (!connection->is_own)
			admission_leave(conf, judged);
		return failure_set(why, FAILURE_MEMORY, "no memory for a connection");
	}
	if (!connection->is_own)
		atomic_fetch_add(&home->count, 1);
	struct endpoint *near = endpoint_of(joined, SIDE_NEAR);
	struct endpoint *far = endpoint_of(connection, SIDE_FAR);
	if (pair_open(far, near, home->loop, why) < 0) {
		release(joined);
		return -1;
	}
	open_side(joined, SIDE_NEAR);
	far->owner = connection; /* whom the joined one finds there, for limits that both share */
	near->pair.waiting[FLOW_UP] = &joined->pump.flow[FLOW_UP].waiting;
	near->pair.waiting[FLOW_DOWN] = &joined->pump.flow[FLOW_DOWN].waiting;
	far->pair.waiting[FLOW_UP] = &connection->pump.flow[FLOW_UP].waiting;
	far->pair.waiting[FLOW_DOWN] = &connection->pump.flow[FLOW_DOWN].waiting;
	near->pair.across = endpoint_of(joined, SIDE_FAR);
	far->pair.across = endpoint_of(connection, SIDE_NEAR);
	begin(joined);
	return 0;
}

static int
on_admit(struct dial *dialled, size_t index, struct failure *why)
{
	struct dialling *dialling =
		(struct dialling *)((char *)dialled - offsetof(struct dialling, dial));
	struct connection *connection = dialling->connection;
	const struct internal_target *target = &connection->conf->internal[index];

	if (target->tunnel)
		return join_tunnel(connection, target->tunnel, why);
	return target->service->open(endpoint_of(connection, SIDE_FAR), connection->home->loop,
				     &connection->facts, why);
}

static void
on_dialled(struct dial *dialled, int fd, const struct failure *why)
{
	struct dialling *dialling =
		(struct dialling *)((char *)dialled - offsetof(struct dialling, dial));
	struct connection *connection = dialling->connection;
	bool is_unix = dialled->connected.family == AF_UNIX;
	bool reset = dialled->reset;

	connection->target = dialled->index;
	connection->dialling = NULL;
	free(dialling);
	if (why) {
		connection_end(connection, ENDED_BY_TARGET, RESET_BOTH, why);
		return;
	}
	if (fd >= 0 && admission_is_reserved(fd, connection->conf)) {
		struct failure short_of;
		failure_set(&short_of, FAILURE_DESCRIPTORS, "out of descriptors");
		endpoint_reset_socket(fd);
		targets_disconnected(connection->conf->targets, connection->target);
		connection_end(connection, ENDED_BY_US, RESET_BOTH, &short_of);
		return;
	}
	if (fd >= 0) {
		struct endpoint *far = endpoint_of(connection, SIDE_FAR);
		endpoint_open_socket(far, connection->home->loop, fd, is_unix);
		far->socket.reset_seen = reset;
	}
	open_far(connection);
}

static void
on_step(struct dial *dialled)
{
	struct dialling *dialling =
		(struct dialling *)((char *)dialled - offsetof(struct dialling, dial));
	bool resolves = dialled->step == DIAL_RESOLVING;
	note_active(dialling->connection);
	pump_wait(&dialling->connection->pump, resolves ? WAIT_RESOLVER : WAIT_CONNECT,
		  clock_now_ns());
}

static void
dial(struct connection *connection)
{
	const struct tunnel_conf *conf = connection->conf;
	struct dialling *dialling = calloc(1, sizeof(*dialling));
	if (!dialling) {
		struct failure why;
		failure_set(&why, FAILURE_MEMORY, "no memory to connect to a target");
		connection_end(connection, ENDED_BY_US, RESET_BOTH, &why);
		return;
	}
	dialling->connection = connection;
	dialling->options = (struct dial_options){
		.targets = conf->targets,
		.resolver = connection->home->resolver,
		.bind = &conf->bind,
		.timeout_ns = conf->timeouts.connect,
		.only = connection->check ? &connection->check->target : NULL,
		.keepalive_ns = conf->keepalive,
		.admit = on_admit,
		.on_step = on_step,
		.on_end = on_dialled,
	};
	connection->dialling = dialling;
	set_state(connection, CONNECTION_DIALLING);
	endpoint_of(connection, SIDE_NEAR)->want_readable = false;
	dial_start(&dialling->dial, connection->home->loop, &dialling->options);
	/* It may be connected, over or even closed by now; the memory is there until a later turn. */
	if (connection->state == CONNECTION_DIALLING)
		set_timer(connection, connection->opened_ns);
}

/* --- before dialling ---------------------------------------------------------------------------- */

static void
refuse(struct connection *connection, const struct failure *why)
{
	connection_end(connection, ENDED_BY_US, RESET_BOTH, why);
}

/* Who the client is said to be is known now. */
static int
judge(struct connection *connection, struct failure *why)
{
	if (admission_judge(connection->conf, &connection->facts.client, clock_now_ns(), why) < 0)
		return -1;
	connection->source = connection->facts.client;
	connection->is_judged = true;
	return 0;
}

static void
go_on(struct connection *connection)
{
	struct failure why;
	if (!connection->is_judged && judge(connection, &why) < 0)
		refuse(connection, &why);
	else
		dial(connection);
}

/* Runs near filters that were just opened, until they have done their part. */
static void
open_near(struct connection *connection)
{
	if (!pump_is_handshaking(&connection->pump)) {
		leave_opening(connection);
		return;
	}
	/* A client that speaks first has most often done so by now: a read is tried before it is told. */
	endpoint_of(connection, SIDE_NEAR)->readable = true;
	run(connection);
	if (connection->state <= CONNECTION_OPENING)
		set_timer(connection, connection->pump.clock_ns);
}

/* The near side is there. Its filters' handshakes come first: an unproved stranger costs no target. */
static void
begin(struct connection *connection)
{
	const struct tunnel_conf *conf = connection->conf;
	const struct tunnel_group *group = conf->group;

	set_state(connection, group ? CONNECTION_CHOOSING : CONNECTION_OPENING);
	if (group)
		connection->pump.front = group->has_match ? WAIT_CHOICE : WAIT_HANDSHAKE;
	begin_handshake(connection);
	if (open_stack(connection, SIDE_NEAR, &conf->near_chain) == 0 &&
	    obey_limits(connection) == 0)
		open_near(connection);
}

/* What its front was given because another tunnel behind it may have it, is not for this one. */
static bool
is_reserved(const struct connection *connection, const struct tunnel_conf *conf,
	    struct failure *why)
{
	const struct endpoint *near = &connection->pump.side[SIDE_NEAR].endpoint;
	if (!endpoint_is_socket(near) || !admission_is_reserved(near->socket.fd, conf))
		return false;
	failure_set(why, FAILURE_DESCRIPTORS, "out of descriptors");
	return true;
}

/* From here on the connection is that tunnel's; what its front's filters have left unread is for those of
 * its own. */
static void
enter(struct connection *connection, const struct tunnel_conf *conf)
{
	struct chain chain = conf->near_chain;
	struct failure why;

	if (is_reserved(connection, conf, &why) ||
	    (!connection->is_own && admission_move(connection->conf, conf, &why) < 0)) {
		refuse(connection, &why);
		return;
	}
	count_state(connection, -1);
	connection->conf = conf;
	connection->state = CONNECTION_OPENING;
	count_state(connection, 1);
	connection->pump.front = 0;
	begin_handshake(connection);
	set_lifetime(connection);
	if (!connection->is_own && !tunnel_conf_judges_late(conf) && judge(connection, &why) < 0) {
		refuse(connection, &why);
		return;
	}
	if (tunnel_conf_leading(conf)) {
		chain.at++;
		chain.count--;
	}
	if (chain.count)
		pump_unread(&connection->pump);
	if (open_stack(connection, SIDE_NEAR, &chain) == 0 && obey_limits(connection) == 0)
		open_near(connection);
}

static void
look_for_hello(struct connection *connection)
{
	static const struct chain_link link = { .type = &client_hello_filter };
	const struct chain chain = { (struct chain_link *)&link, 1 };

	connection->has_looked = true;
	pump_unread(&connection->pump);
	if (open_stack(connection, SIDE_NEAR, &chain) == 0)
		open_near(connection);
}

static void
refuse_unwanted(struct connection *connection)
{
	const struct facts *facts = &connection->facts;
	bool has_name = connection->has_looked && facts->begins_with_tls && facts->sni;
	const char *name = has_name ? facts->sni : "";
	struct failure why;
	admission_refused(connection->conf, REFUSAL_UNMATCHED);
	failure_set(&why, FAILURE_ADMISSION, "match: no tunnel wants this client%s%.128s",
		    *name ? ", who asks for " : "", name);
	refuse(connection, &why);
}

static void
choose(struct connection *connection)
{
	const struct tunnel_conf *chosen;
	switch (choice_make(connection->conf->group, &connection->facts, connection->has_looked,
			    &chosen)) {
	case CHOICE_MADE:
		enter(connection, chosen);
		break;
	case CHOICE_LOOK:
		look_for_hello(connection);
		break;
	case CHOICE_NOBODY:
		refuse_unwanted(connection);
		break;
	}
}

/* --- birth -------------------------------------------------------------------------------------- */

static atomic_uint_fast64_t last_id;

static enum wait
first_wait(const struct tunnel_conf *conf)
{
	if (conf->group && conf->group->has_match)
		return WAIT_CHOICE;
	return conf->near_chain.count ? WAIT_HANDSHAKE : WAIT_CONNECT;
}

static struct connection *
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
	connection->home = home;
	connection->conf = conf;
	counted_hold(conf->generation);
	connection->id = atomic_fetch_add_explicit(&last_id, 1, memory_order_relaxed) + 1;
	connection->opened_ns = clock_now_ns();
	connection->first_end = ENDED_BY_US;
	set_lifetime(connection);
	connection->is_own = is_own;
	connection->is_judged = is_own || !tunnel_conf_judges_late(conf);
	connection->source = facts->client;
	home->loop->kept_bytes += CONNECTION_BYTES;
	pump_open(&connection->pump, home->loop, first_wait(conf), connection->opened_ns);
	connection->pump.turn.run = on_turn;
	evtimer_assign(&connection->timer, home->loop->base, on_timer, connection);
	connection->next = home->first;
	connection->link = &home->first;
	if (home->first)
		home->first->link = &connection->next;
	home->first = connection;
	connection->moved_ns = connection->looked_ns = connection->opened_ns;
	join_active(connection);
	count_state(connection, 1);
	return connection;
}

void
tunnel_accept(struct connections *connections, const struct tunnel_conf *conf, int fd,
	      const struct facts *facts)
{
	struct connection *connection = connection_new(connections, conf, facts, false);
	if (!connection) {
		admission_leave(conf, tunnel_conf_judges_late(conf) ? NULL : &facts->client);
		endpoint_reset_socket(fd);
		count_down(connections);
		return;
	}
	/* TCP_NODELAY came with the listener. */
	endpoint_open_socket(endpoint_of(connection, SIDE_NEAR), connections->loop, fd, true);
	open_side(connection, SIDE_NEAR);
	begin(connection);
}

void
tunnel_reset_all(struct connections *connections, const struct failure *why)
{
	struct connection *connection, *next;
	for (connection = connections->first; connection; connection = next) {
		next = connection->next;
		if (connection->state < CONNECTION_FLUSHING) {
			connection_end(connection, ENDED_BY_US, RESET_BOTH, why);
		} else if (connection->state == CONNECTION_FLUSHING) {
			connection->over_ns = 0;
			flush_or_abort(connection, 1);
		}
	}
}

/* --- checks --------------------------------------------------------------------------------------- */

static void
on_ready_check(struct endpoint *endpoint)
{
	(void)endpoint; /* nothing is expected of it but its end */
}

void
tunnel_check_start(struct connections *connections, const struct tunnel_conf *conf, size_t target,
		   uint64_t timeout_ns, struct tunnel_check *check)
{
	static const struct facts nobody = { .target_host = "" };
	struct connection *connection = connection_new(connections, conf, &nobody, true);
	struct failure why;

	if (!connection) {
		failure_set(&why, FAILURE_MEMORY, "no memory for a connection");
		check->on_end(check, &why);
		return;
	}
	check->target = target;
	if (pair_open(&check->endpoint, endpoint_of(connection, SIDE_NEAR), connections->loop,
		      &why) < 0) {
		release(connection);
		check->on_end(check, &why);
		return;
	}
	check->endpoint.on_ready = on_ready_check;
	check->connection = connection;
	connection->check = check;
	connection->over_ns = connection->opened_ns + timeout_ns;
	open_side(connection, SIDE_NEAR);
	dial(connection);
}

void
tunnel_check_stop(struct tunnel_check *check)
{
	if (!check->connection)
		return;
	check->connection->check = NULL;
	check->connection = NULL;
	if (check->endpoint.kind)
		check->endpoint.kind->close(&check->endpoint);
}

/* --- to be looked at ------------------------------------------------------------------------------ */

const char *
tunnel_state_name(enum connection_state state)
{
	return state_names[state];
}

const char *
tunnel_ender_name(enum ended_by ended_by)
{
	return ended_by_names[ended_by];
}

uint64_t
tunnel_walk_begin(struct connections *connections)
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
tunnel_walk(struct connections *connections, uint64_t number, uint64_t now_ns)
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
tunnel_walk_end(struct connections *connections, uint64_t number)
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
tunnel_walk_end_all(struct connections *connections)
{
	while (connections->walks)
		tunnel_walk_end(connections, connections->walks->number);
}

static void
end_old_walks(struct connections *connections, uint64_t now_ns)
{
	struct walk *walk = connections->walks;
	while (walk) {
		struct walk *other = walk->other;
		if (walk->used_ns + TUNNEL_WALK_S * NS_PER_S < now_ns)
			tunnel_walk_end(connections, walk->number);
		walk = other;
	}
}

/* Closes a slot of an active connection, which then is the last in line, or none of them any more. */
static void
look_at_active(struct connection *connection, uint64_t now_ns)
{
	struct pump *pump = &connection->pump;
	bool rests = pump->flow[FLOW_UP].since_ns + DORMANT_NS < now_ns &&
		     pump->flow[FLOW_DOWN].since_ns + DORMANT_NS < now_ns;

	leave_active(connection);
	if (rests) {
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
tunnel_beat(struct connections *connections, uint64_t now_ns)
{
	end_old_walks(connections, now_ns);
	for (int i = 0; i < BEAT_MOST; i++) {
		struct connection *connection = connections->active;
		if (!connection || connection->looked_ns + SLOT_NS > now_ns)
			return;
		look_at_active(connection, now_ns);
	}
}

struct connection *
tunnel_find(struct connections *connections, uint64_t id)
{
	for (struct connection *connection = connections->first; connection;
	     connection = connection->next)
		if (connection->id == id)
			return connection;
	return NULL;
}

void
tunnel_kill(struct connection *connection)
{
	struct failure why;
	if (connection->state >= CONNECTION_FLUSHING)
		return;
	failure_set(&why, FAILURE_STOPPED, "killed by an operator");
	connection_end(connection, ENDED_BY_US, RESET_BOTH, &why);
}

const struct endpoint *
tunnel_endpoint(const struct connection *connection, enum pump_side side)
{
	return &connection->pump.side[side].endpoint;
}

static uint64_t
partner_at(const struct connection *connection, enum pump_side side)
{
	const struct connection *joined = joined_at(tunnel_endpoint(connection, side));
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
		return joined_at(tunnel_endpoint(connection, SIDE_NEAR));
	case WAIT_FAR_READABLE:
	case WAIT_FAR_WRITABLE:
		return joined_at(tunnel_endpoint(connection, SIDE_FAR));
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

static bool
is_silence(enum wait cause)
{
	return cause == WAIT_MOVING || cause == WAIT_NEAR_READABLE || cause == WAIT_FAR_READABLE;
}

/* Whether neither flow is held up now. */
static bool
is_silent(const struct pump *pump)
{
	return is_silence(pump->flow[FLOW_UP].waiting.cause) &&
	       is_silence(pump->flow[FLOW_DOWN].waiting.cause);
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
tunnel_report(struct connection *connection, uint64_t now_ns, struct connection_report *out)
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
		  connection->conf->targets ? targets_name(connection->conf->targets, target)
					    : NULL);
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
			if (!is_silence((enum wait)cause))
				ns += window->sums.spent_ns[name][cause];
		if (ns > most_ns)
			most_ns = ns;
	}
	/* Little of it is nothing. */
	return most_ns >= window->length_ns / 10 ? most_ns : 0;
}

uint64_t
tunnel_rank(struct connection *connection, enum connection_order order, uint64_t now_ns)
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
		if (!connection->active_link && is_silent(pump))
			return 0;
		window = look(connection, now_ns);
		return kept_waiting_ns(&window);
	case ORDER_ID:
		break;
	}
	return UINT64_MAX - connection->id;
}
