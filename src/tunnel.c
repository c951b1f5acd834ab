#include "tunnel.h"

#include "admission.h"
#include "choice.h"
#include "clock.h"
#include "connection.h"
#include "connection_deadline.h"
#include "connection_view.h"
#include "filters/client_hello.h"
#include "log.h"
#include "pair.h"
#include "target.h"
#include "tunnel_limits.h"

#include <arpa/inet.h>
#include <event2/event.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* After one side's reset, how long the other side's kernel may take to pass on what was written
 * before it is reset, too, and how often that is looked at. */
#define FLUSH_NS      (1 * NS_PER_S)
#define FLUSH_LOOK_NS (10 * NS_PER_MS)

/* What end_connection is to reset at once; else a side, which is gone already. */
enum { RESET_BOTH = -1, RESET_NEITHER = -2 };

/* --- the door out ------------------------------------------------------------------------------- */

static void
stop_dialling(struct connection *connection)
{
	if (!connection->dialling)
		return;
	connection->target = (uint32_t)connection->dialling->dial.index;
	dial_cancel(&connection->dialling->dial);
	free(connection->dialling);
	connection->dialling = NULL;
}

/* The end of what is left of one side after the other was reset: behind the bytes that its kernel
 * still holds, but not for long. */
static void
flush_or_abort(struct connection *connection, uint64_t now_ns)
{
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		struct endpoint *endpoint = connection_endpoint(connection, side);
		if (!endpoint->kind)
			continue;
		if (now_ns < connection->over_ns && endpoint->kind->unsent(endpoint)) {
			connection_deadline_arm(connection, now_ns + FLUSH_LOOK_NS, now_ns);
			return;
		}
		endpoint->kind->abort(endpoint);
	}
	connection_release(connection);
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

/* Whoever was shaking hands gets to know why nothing came of it: what one side did is none of the other's. */
static void
abandon_handshakes(const struct connection *connection, enum ended_by ended_by,
		   const struct failure *why)
{
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		enum ended_by peer = side == SIDE_NEAR ? ENDED_BY_CLIENT : ENDED_BY_TARGET;
		bool concerns = why && (ended_by == peer || ended_by == ENDED_BY_US);
		stack_abandon(connection->pump.side[side].stack,
			      concerns ? why->kind : FAILURE_STOPPED);
	}
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

/* For the tunnel that it has now. */
static void
count_since(const struct connection *connection, const struct passed *before)
{
	if (connection->is_own)
		return;
	struct tunnel_counters *counters = connection_counters(connection);
	struct passed now = passed(connection);

	for (int side = SIDE_NEAR; side <= SIDE_FAR; side++)
		for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
			uint64_t bytes = now.bytes[side][name] - before->bytes[side][name];
			if (bytes)
				atomic_fetch_add_explicit(&counters->bytes[side][name], bytes,
							  memory_order_relaxed);
		}
}

/* What was read until the choice is counted with it, for the tunnel that gets the client. */
static void
count_passed(const struct connection *connection, const struct passed *before)
{
	if (connection->state != CONNECTION_CHOOSING)
		count_since(connection, before);
}

/*
 * The one way out. Without `why` both sides have ended in order; with it, whatever is open is reset:
 * the side `at_once` (or RESET_BOTH, RESET_NEITHER) now, another behind the bytes that its kernel holds.
 */
static void
end_connection(struct connection *connection, enum ended_by ended_by, int at_once,
	       const struct failure *why)
{
	struct pump *pump = &connection->pump;
	uint64_t now_ns = clock_now_ns();

	stop_dialling(connection);
	tunnel_limits_close(&connection->limits, pump);
	pump_account(pump, now_ns);
	if (connection->state == CONNECTION_CHOOSING) /* nobody wanted it */
		count_since(connection, &(struct passed){ 0 });
	if (!connection->is_own)
		atomic_fetch_add_explicit(
			&connection_counters(connection)->ended[ended_by][why ? why->kind : 0], 1,
			memory_order_relaxed);
	connection_log_end(connection, ended_by, why);
	connection_keep_end(connection, ended_by, why);
	tell_check(connection, why);
	abandon_handshakes(connection, ended_by, why);
	if (!why) {
		endpoint_close_both(connection_endpoint(connection, SIDE_NEAR),
				    connection_endpoint(connection, SIDE_FAR));
		connection_release(connection);
		return;
	}
	connection_set_state(connection, CONNECTION_FLUSHING);
	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		struct endpoint *endpoint = connection_endpoint(connection, side);
		endpoint->want_readable = endpoint->want_writable = false;
		if (endpoint->kind && ((int)side == at_once || at_once == RESET_BOTH))
			endpoint->kind->abort(endpoint);
	}
	connection->over_ns = now_ns + FLUSH_NS;
	flush_or_abort(connection, now_ns);
}

/* --- deadlines ---------------------------------------------------------------------------------- */

static void
end_broken(struct connection *connection, enum pump_side side, const struct failure *why)
{
	/* A filter that failed may owe its peer an alert: that side is reset behind it. */
	int at_once = connection->pump.filter_failed ? RESET_NEITHER : (int)side;
	struct passed before = passed(connection);

	pump_push(&connection->pump);
	count_passed(connection, &before);
	end_connection(connection, side == SIDE_NEAR ? ENDED_BY_CLIENT : ENDED_BY_TARGET, at_once,
		       why);
}

/* Looks after peers that are not being read. Returns whether the connection goes on. */
static bool
look_at_peers(struct connection *connection)
{
	struct failure why;

	for (enum pump_side side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		struct endpoint *endpoint = connection_endpoint(connection, side);
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

/* Who did not come to an end with what, if there is a handshake. */
static void
blame_handshake(const struct connection *connection, struct failure *why)
{
	struct stack *near = connection->pump.side[SIDE_NEAR].stack;
	struct stack *far = connection->pump.side[SIDE_FAR].stack;

	if (connection->has_looked && connection->state == CONNECTION_CHOOSING)
		failure_set(why, why->kind,
			    "%s, and the client had not said enough to choose its tunnel",
			    why->text);
	else if (!stack_is_ready(near))
		failure_set(why, why->kind, "%s, and the client was not through %s", why->text,
			    stack_unready(near));
	else if (!stack_is_ready(far))
		failure_set(why, why->kind, "%s, and the target was not through %s", why->text,
			    stack_unready(far));
}

static void
on_timer(evutil_socket_t fd, short what, void *context)
{
	struct connection *connection = context;
	uint64_t now_ns = clock_now_ns();
	struct failure why;
	(void)fd;
	(void)what;

	connection->armed_ns = 0;
	if (connection->state == CONNECTION_FLUSHING) {
		flush_or_abort(connection, now_ns);
		return;
	}
	bool slow = connection_deadline_is_slow(connection);
	if (slow && !look_at_peers(connection))
		return;
	/* Who waits for our own tokens, or for somebody who does, is not idle, whatever his peers take. */
	pump_account(&connection->pump, now_ns);
	if (connection_deadline_is_stalled(connection))
		connection_leave_handshakes(connection);
	if (pump_is_held_up(&connection->pump))
		connection->moved_ns = now_ns;
	else if (slow)
		connection_deadline_look(connection, NULL, now_ns);
	if (connection_deadline_has_passed(connection, now_ns, &why)) {
		blame_handshake(connection, &why);
		end_connection(connection, ENDED_BY_US, RESET_BOTH, &why);
		return;
	}
	connection_deadline_set(connection, now_ns);
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

static int learn(struct connection *connection);
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
	connection_deadline_set(connection, connection->pump.clock_ns);
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
	if (!loop->heavy.first && home->handshake_looked_ns != loop->looked_ns) {
		home->handshake_looked_ns = loop->looked_ns; /* one comes first, as it came */
		return false;
	}
	connection_endpoint(connection, SIDE_NEAR)->want_readable = false;
	connection_endpoint(connection, SIDE_FAR)->want_readable = false;
	/* From here on it is not the client who is waited for. */
	if (connection->state <= CONNECTION_OPENING && !connection->pump.turn.queued)
		pump_wait(&connection->pump, WAIT_TURN, clock_now_ns());
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
	connection_note_active(connection);
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
		end_connection(connection, connection->first_end, RESET_NEITHER, NULL);
		return;
	case PUMP_BROKEN:
		end_broken(connection, pump->broken_side, &why);
		return;
	}
	if (connection->limits && learn(connection) < 0)
		return;
	if (connection->check && connection->state == CONNECTION_OPEN && !pump_is_handshaking(pump))
		pass_check(connection);
	if (connection->state <= CONNECTION_OPENING) {
		if (!pump_is_handshaking(pump))
			leave_opening(connection);
		return;
	}
	/* Only a change of what the deadlines hang on is worth a look at the timer. */
	if (connection_deadline_has_changed(connection))
		connection_deadline_set(connection, pump->clock_ns);
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
	end_connection(connection, ENDED_BY_US, RESET_BOTH, &why);
	return -1;
}

static void
open_side(struct connection *connection, enum pump_side side)
{
	struct endpoint *endpoint = connection_endpoint(connection, side);
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
		.awaits_far_filters = !connection_endpoint(connection, SIDE_FAR)->kind &&
				      connection->conf->far_chain.count,
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
	while ((earlier = connection_joined_at(&earlier->pump.side[SIDE_NEAR].endpoint)))
		if (earlier->limits)
			tunnel_limits_cut(connection->limits, earlier->limits);
}

/* On failure the connection is over: where there is no place for it, it is not to go without its limit. */
static int
learn(struct connection *connection)
{
	struct tunnel_limits_of of = limits_of(connection);
	struct failure why;

	if (!tunnel_limits_can_learn(connection->limits, &of))
		return 0;
	if (tunnel_limits_learn(connection->limits, &of, &why) < 0) {
		end_connection(connection, ENDED_BY_US, RESET_BOTH, &why);
		return -1;
	}
	cut(connection);
	loop_run_later(connection->home->loop, &connection->pump.turn);
	return 0;
}

/* Its tunnel as it is in the generation in force. The connection's own may be older: it shook hands, or was on its
 * way from another worker, while that came. */
static const struct tunnel_conf *
conf_in_force(const struct connection *connection)
{
	const struct connections *home = connection->home;
	const struct tunnel_conf *own = connection->conf, *now = NULL;

	/* A front has no limit, and may be called as a tunnel. */
	if (home->find && !own->group)
		now = home->find(home->find_context, own->name);
	return now ? now : own;
}

/* On failure the connection is over. */
static int
obey_limits(struct connection *connection)
{
	struct tunnel_limits_of of = limits_of(connection);
	struct failure why;

	if (connection->is_own)
		return 0;
	if (tunnel_limits_obey(&connection->limits, conf_in_force(connection), &of, &why) < 0) {
		end_connection(connection, ENDED_BY_US, RESET_BOTH, &why);
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
	unsigned long long kept = 0;
	struct failure why;

	connections->find = find;
	connections->find_context = context;
	for (connection = connections->first; connection; connection = connection->next) {
		const struct tunnel_conf *conf = find(context, connection->conf->name);
		struct tunnel_limits_of of = limits_of(connection);
		/* Under its front it has none, and obeys once it is in a tunnel. */
		if (conf && !connection->is_own && connection->state < CONNECTION_FLUSHING &&
		    connection->state != CONNECTION_CHOOSING)
			kept += tunnel_limits_obey(&connection->limits, conf, &of, &why) < 0;
	}
	if (kept)
		log_line(LOG_LEVEL_WARNING,
			 "connections that keep the limits they had: %llu of worker %u; the last "
			 "one: %s",
			 kept, connections->worker, why.text);
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
	const struct address *address = tunnel_conf_target(connection->conf, connection->target);
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
	connection_set_state(connection, CONNECTION_OPEN);
	char host[INET6_ADDRSTRLEN];
	/* Only filters ask, and an address takes a while to write. */
	if (connection->conf->far_chain.count)
		connection->facts.target_host = target_host(connection, host);
	connection_deadline_begin_handshake(connection);
	int opened = open_stack(connection, SIDE_FAR, &connection->conf->far_chain);
	connection->facts.target_host = "";
	if (opened < 0)
		return;
	if (connection->limits)
		tunnel_limits_measure(connection->limits, &connection->pump, SIDE_FAR);
	pump_wait(&connection->pump, WAIT_TURN, clock_now_ns());
	/* A client that speaks first has most often done so by now: a read is tried before it is told. */
	connection_endpoint(connection, SIDE_NEAR)->readable = true;
	connection->moved_ns = connection->pump.clock_ns;
	run(connection);
	if (connection->state == CONNECTION_OPEN)
		connection_deadline_set(connection, connection->pump.clock_ns);
}

/* --- dialling ----------------------------------------------------------------------------------- */

static void begin(struct connection *connection);

/* In the list, with what makes it move. */
static struct connection *
new_connection(struct connections *home, const struct tunnel_conf *conf, const struct facts *facts,
	       bool is_own)
{
	struct connection *connection = connection_new(home, conf, facts, is_own);
	if (!connection)
		return NULL;
	connection->pump.turn.run = on_turn;
	evtimer_assign(&connection->timer, home->loop->base, on_timer, connection);
	return connection;
}

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
		new_connection(home, conf, &connection->facts, connection->is_own);
	if (!joined) {
		if (!connection->is_own)
			admission_leave(conf, judged);
		return failure_set(why, FAILURE_MEMORY, "no memory for a connection");
	}
	if (!connection->is_own)
		atomic_fetch_add(&home->count, 1);
	/* There is no queue where it could wait, and it may be what others wait for. */
	joined->shakes_hands = conf->shakes_hands && !connection->is_own;
	if (joined->shakes_hands)
		atomic_fetch_add(&home->handshakes, 1);
	struct endpoint *near = connection_endpoint(joined, SIDE_NEAR);
	struct endpoint *far = connection_endpoint(connection, SIDE_FAR);
	if (pair_open(far, near, home->loop, why) < 0) {
		connection_release(joined);
		return -1;
	}
	open_side(joined, SIDE_NEAR);
	far->owner = connection; /* whom the joined one finds there, for limits that both share */
	near->pair.waiting[FLOW_UP] = &joined->pump.flow[FLOW_UP].waiting;
	near->pair.waiting[FLOW_DOWN] = &joined->pump.flow[FLOW_DOWN].waiting;
	far->pair.waiting[FLOW_UP] = &connection->pump.flow[FLOW_UP].waiting;
	far->pair.waiting[FLOW_DOWN] = &connection->pump.flow[FLOW_DOWN].waiting;
	near->pair.across = connection_endpoint(joined, SIDE_FAR);
	far->pair.across = connection_endpoint(connection, SIDE_NEAR);
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
	return target->service->open(connection_endpoint(connection, SIDE_FAR),
				     connection->home->loop, &connection->facts, why);
}

static void
on_dialled(struct dial *dialled, int fd, const struct failure *why)
{
	struct dialling *dialling =
		(struct dialling *)((char *)dialled - offsetof(struct dialling, dial));
	struct connection *connection = dialling->connection;
	bool is_unix = dialled->connected.family == AF_UNIX;
	bool reset = dialled->reset;

	connection->target = (uint32_t)dialled->index;
	connection->dialling = NULL;
	free(dialling);
	if (why) {
		bool is_ours = why->kind == FAILURE_ADMISSION || why->kind == FAILURE_DESCRIPTORS;
		end_connection(connection, is_ours ? ENDED_BY_US : ENDED_BY_TARGET, RESET_BOTH,
			       why);
		return;
	}
	if (fd >= 0) {
		struct endpoint *far = connection_endpoint(connection, SIDE_FAR);
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
	connection_note_active(dialling->connection);
	pump_wait(&dialling->connection->pump, resolves ? WAIT_RESOLVER : WAIT_CONNECT,
		  clock_now_ns());
}

/* Whoever has another target, or connections without lines of their own, hears of it all the same. */
static void
on_change(struct dial *dialled, const struct failure *why)
{
	struct dialling *dialling =
		(struct dialling *)((char *)dialled - offsetof(struct dialling, dial));
	const struct tunnel_conf *conf = dialling->connection->conf;
	struct log_field fields[] = {
		{ .name = "tunnel", .text = conf->name },
		{ .name = "target", .text = targets_name(conf->targets, dialled->index) },
		{ .name = "why", .text = why ? why->text : "" },
	};
	if (why)
		log_event(LOG_LEVEL_WARNING, fields, 3, "target failed");
	else
		log_event(LOG_LEVEL_NOTICE, fields, 2, "target works again");
}

static void
dial(struct connection *connection)
{
	const struct tunnel_conf *conf = connection->conf;
	struct dialling *dialling = calloc(1, sizeof(*dialling));
	if (!dialling) {
		struct failure why;
		failure_set(&why, FAILURE_MEMORY, "no memory to connect to a target");
		end_connection(connection, ENDED_BY_US, RESET_BOTH, &why);
		return;
	}
	dialling->connection = connection;
	dialling->options = (struct dial_options){
		.targets = conf->targets,
		.resolver = connection->home->resolver,
		.bind = &conf->bind,
		.own = &conf->listen,
		.timeout_ns = conf->timeouts.connect,
		.client = &connection->facts.client,
		.only = connection->check ? &connection->check->target : NULL,
		.is_own = connection->is_own,
		.keepalive_ns = conf->keepalive,
		.descriptors_below =
			admission_is_reserved(INT_MAX, conf) ? admission_first_reserved() : 0,
		.admit = on_admit,
		.on_step = on_step,
		.on_change = on_change,
		.on_end = on_dialled,
	};
	connection->dialling = dialling;
	connection->has_dialled = true;
	connection_set_state(connection, CONNECTION_DIALLING);
	connection_endpoint(connection, SIDE_NEAR)->want_readable = false;
	tunnel_limits_rest(connection->limits);
	pump_wait(&connection->pump, WAIT_CONNECT, clock_now_ns());
	dial_start(&dialling->dial, connection->home->loop, &dialling->options);
	/* It may be connected, over or even closed by now; the memory is there until a later turn. */
	if (connection->state == CONNECTION_DIALLING)
		connection_deadline_set(connection, connection->pump.clock_ns);
}

/* --- before dialling ---------------------------------------------------------------------------- */

static void
refuse(struct connection *connection, const struct failure *why)
{
	end_connection(connection, ENDED_BY_US, RESET_BOTH, why);
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
	connection_endpoint(connection, SIDE_NEAR)->readable = true;
	run(connection);
	if (connection->state <= CONNECTION_OPENING)
		connection_deadline_set(connection, connection->pump.clock_ns);
}

/* The near side is there. Its filters' handshakes come first: an unproved stranger costs no target. */
static void
begin(struct connection *connection)
{
	const struct tunnel_conf *conf = connection->conf;
	const struct tunnel_group *group = conf->group;

	connection_set_state(connection, group ? CONNECTION_CHOOSING : CONNECTION_OPENING);
	if (group)
		connection->pump.front = group->has_match ? WAIT_CHOICE : WAIT_HANDSHAKE;
	connection_deadline_begin_handshake(connection);
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
	connection_count_state(connection, -1);
	connection->conf = conf;
	connection->state = CONNECTION_OPENING;
	connection_count_state(connection, 1);
	count_since(connection, &(struct passed){ 0 });
	connection->pump.front = 0;
	connection_deadline_begin_handshake(connection);
	connection_deadline_set_lifetime(connection);
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
	bool has_name = facts->begins_with_tls && facts->sni && *facts->sni;
	const char *said = !connection->has_looked   ? ""
			   : !facts->begins_with_tls ? ", who does not speak TLS"
			   : has_name                ? ", who asks for "
						     : ", who asks for no name";
	struct failure why;
	admission_refused(connection->conf, REFUSAL_UNMATCHED);
	failure_set(&why, FAILURE_ADMISSION, "match: no tunnel wants this client%s%.128s", said,
		    connection->has_looked && has_name ? facts->sni : "");
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

void
tunnel_accept(struct connections *connections, const struct tunnel_conf *conf, int fd,
	      const struct facts *facts)
{
	struct connection *connection = new_connection(connections, conf, facts, false);
	if (!connection) {
		struct failure why;
		failure_set(&why, FAILURE_MEMORY, "no memory for a connection");
		admission_refused(conf, REFUSAL_MEMORY);
		if (connections->logged)
			admission_log_refusal(conf, &facts->client, &why);
		admission_leave(conf, tunnel_conf_judges_late(conf) ? NULL : &facts->client);
		endpoint_reset_socket(fd);
		if (conf->shakes_hands)
			connection_count_handshake_down(connections);
		connection_count_down(connections);
		return;
	}
	connection->shakes_hands = conf->shakes_hands;
	/* TCP_NODELAY came with the listener. */
	endpoint_open_socket(connection_endpoint(connection, SIDE_NEAR), connections->loop, fd,
			     true);
	open_side(connection, SIDE_NEAR);
	begin(connection);
}

void
tunnel_drain_all(struct connections *connections, uint64_t drain_ns)
{
	uint64_t now_ns = clock_now_ns();

	connections->drains = true;
	for (struct connection *connection = connections->first; connection;
	     connection = connection->next) {
		const struct tunnel_conf *conf =
			connections->find(connections->find_context, connection->conf->name);
		if (connection->is_own || connection->state >= CONNECTION_FLUSHING)
			continue;
		connection_deadline_drain(connection, conf ? conf->timeouts.drain : drain_ns);
		connection_deadline_set(connection, now_ns);
	}
}

void
tunnel_reset_all(struct connections *connections, const struct failure *why)
{
	struct connection *connection, *next;
	for (connection = connections->first; connection; connection = next) {
		next = connection->next;
		if (connection->state < CONNECTION_FLUSHING) {
			end_connection(connection, ENDED_BY_US, RESET_BOTH, why);
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
	struct connection *connection = new_connection(connections, conf, &nobody, true);
	struct failure why;

	if (!connection) {
		failure_set(&why, FAILURE_MEMORY, "no memory for a connection");
		check->on_end(check, &why);
		return;
	}
	check->target = target;
	if (pair_open(&check->endpoint, connection_endpoint(connection, SIDE_NEAR),
		      connections->loop, &why) < 0) {
		connection_release(connection);
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

/* --- from outside --------------------------------------------------------------------------------- */

void
tunnel_kill(struct connection *connection)
{
	struct failure why;
	if (connection->state >= CONNECTION_FLUSHING)
		return;
	failure_set(&why, FAILURE_STOPPED, "killed by an operator");
	end_connection(connection, ENDED_BY_US, RESET_BOTH, &why);
}

void
tunnel_beat(struct connections *connections, uint64_t now_ns)
{
	connection_view_end_old(connections, now_ns);
	connection_beat(connections, now_ns);
}
