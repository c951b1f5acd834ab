#include "connection_deadline.h"

#include "clock.h"

#include <event2/event.h>
#include <sys/time.h>

/* How often a connection that does not read one of its peers looks whether that peer is still there,
 * and whether a peer that does not read makes progress all the same. */
#define LOOK_NS (2 * NS_PER_S)
/* How long a client may keep others from shaking hands. */
#define STALL_NS (1 * NS_PER_S)

/* Thousands that are throttled look at their peers every so often: in libevent's list of one time that is half the
 * work of its heap. Without memory for the list it is the heap. */
static void
use_list(struct connections *home, struct timeval *after)
{
	if (!home->look_after)
		home->look_after = event_base_init_common_timeout(home->loop->base, after);
	if (home->look_after)
		*after = *home->look_after;
}

void
connection_deadline_arm(struct connection *connection, uint64_t due_ns, uint64_t now_ns)
{
	struct timeval after;
	clock_to_timeval(due_ns > now_ns ? due_ns - now_ns : 0, &after);
	if (due_ns == now_ns + LOOK_NS)
		use_list(connection->home, &after);
	/* Without memory it is tried again at the next look at the active ones. */
	connection->armed_ns = event_add(&connection->timer, &after) < 0 ? 0 : due_ns;
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

void
connection_deadline_begin_handshake(struct connection *connection)
{
	connection->handshake_ns = clock_now_ns() - limited_ns(connection);
}

void
connection_deadline_set_lifetime(struct connection *connection)
{
	uint64_t lifetime_ns = connection->conf->timeouts.lifetime;
	/* Up to a tenth more, so that connections made together do not end together. */
	uint64_t spread = (connection->id * UINT64_C(0x9e3779b97f4a7c15)) >> 54; /* 0 .. 1023 */

	connection->over_ns =
		lifetime_ns ? connection->opened_ns + lifetime_ns + lifetime_ns / 10240 * spread
			    : 0;
	if (connection->home->drains && !connection->is_own)
		connection_deadline_drain(connection, connection->conf->timeouts.drain);
}

void
connection_deadline_drain(struct connection *connection, uint64_t drain_ns)
{
	uint64_t end_ns = clock_now_ns() + drain_ns;

	connection->drains = drain_ns && (!connection->over_ns || end_ns < connection->over_ns);
	if (connection->drains)
		connection->over_ns = end_ns;
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
		*said = connection->is_own ? "check" : connection->drains ? "drain" : "lifetime";
	}
	if (connection->state == CONNECTION_DIALLING)
		return due_ns; /* the dial has its own */
	uint64_t handshake_ns =
		connection->handshake_ns + timeouts->handshake + limited_ns(connection);
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

bool
connection_deadline_has_passed(const struct connection *connection, uint64_t now_ns,
			       struct failure *why)
{
	const char *said = "";
	uint64_t due_ns = deadline(connection, &said);

	if (now_ns < due_ns)
		return false;
	failure_set(why,
		    connection->drains && due_ns == connection->over_ns ? FAILURE_STOPPED
									: FAILURE_TIMEOUT,
		    "timeouts: %s has passed", said);
	return true;
}

/* How long its client's next words were waited for, or the limit that lets them in, up to the last account. */
static uint64_t
silent_ns(const struct connection *connection)
{
	const uint64_t *spent_ns = connection->pump.flow[FLOW_UP].spent_ns;
	return spent_ns[WAIT_CHOICE] + spent_ns[WAIT_HANDSHAKE] + spent_ns[WAIT_LIMIT];
}

bool
connection_deadline_is_stalled(const struct connection *connection)
{
	return connection->shakes_hands && silent_ns(connection) >= STALL_NS;
}

/* When it is to be looked whether it is stalled, if nothing moves until then. */
static uint64_t
stalled_ns(const struct connection *connection, uint64_t now_ns)
{
	if (connection_deadline_is_stalled(connection))
		return now_ns;
	if (connection->pump.turn.queued)
		return now_ns + STALL_NS; /* it is our turn */
	return connection->pump.clock_ns + STALL_NS - silent_ns(connection);
}

bool
connection_deadline_is_slow(const struct connection *connection)
{
	return connection->state == CONNECTION_DIALLING || pump_is_blocked(&connection->pump) ||
	       pump_is_limited(&connection->pump);
}

/* What the timer depends on. */
static bool
needs_looks(const struct connection *connection)
{
	return connection_deadline_is_slow(connection) || pump_is_half_open(&connection->pump);
}

bool
connection_deadline_has_changed(const struct connection *connection)
{
	return connection->slow != needs_looks(connection);
}

void
connection_deadline_set(struct connection *connection, uint64_t now_ns)
{
	const char *said;
	uint64_t due_ns = deadline(connection, &said);

	connection->slow = needs_looks(connection);
	if (connection_deadline_is_slow(connection)) {
		uint64_t idle_ns = connection->conf->timeouts.idle;
		uint64_t look_ns = idle_ns && idle_ns / 4 < LOOK_NS ? idle_ns / 4 : LOOK_NS;
		due_ns = sooner(due_ns, now_ns + look_ns);
	}
	if (connection->shakes_hands)
		due_ns = sooner(due_ns, stalled_ns(connection, now_ns));
	if (due_ns == UINT64_MAX)
		return;
	/* A timer that fires too early is set anew then; that is cheaper than to move it for each byte. */
	if (!connection->armed_ns || due_ns < connection->armed_ns)
		connection_deadline_arm(connection, due_ns, now_ns);
}

void
connection_deadline_look(struct connection *connection, const struct connection *from,
			 uint64_t now_ns)
{
	uint32_t unsent_bytes = 0;

	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		struct endpoint *endpoint = connection_endpoint(connection, side);
		struct connection *joined = connection_joined_at(endpoint);
		if (joined && joined != from) {
			connection_deadline_look(joined, connection, now_ns);
			if (joined->moved_ns > connection->moved_ns)
				connection->moved_ns = joined->moved_ns;
		}
		if (endpoint->kind)
			unsent_bytes += (uint32_t)endpoint->kind->unsent(endpoint);
	}
	if (unsent_bytes < connection->unsent_bytes)
		connection->moved_ns = now_ns;
	connection->unsent_bytes = unsent_bytes;
}
