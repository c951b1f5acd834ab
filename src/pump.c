#include "pump.h"

#include "clock.h"
#include "pump_stream.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static const char *const wait_names[WAITS] = {
	[WAIT_MOVING] = "moving",
	[WAIT_CHOICE] = "choice",
	[WAIT_RESOLVER] = "resolver",
	[WAIT_CONNECT] = "connect",
	[WAIT_HANDSHAKE] = "handshake",
	[WAIT_NEAR_READABLE] = "near readable",
	[WAIT_NEAR_WRITABLE] = "near writable",
	[WAIT_FAR_READABLE] = "far readable",
	[WAIT_FAR_WRITABLE] = "far writable",
	[WAIT_LIMIT] = "limit",
	[WAIT_TURN] = "turn",
};

/* --- stacks --------------------------------------------------------------------------------------- */

static enum filter_flush
flush_of(bool ended, bool dry)
{
	if (ended)
		return FILTER_FINISHED;
	return dry ? FILTER_FLUSH : FILTER_NORMAL;
}

static size_t
room(const struct loop *loop, const struct evbuffer *buffer)
{
	size_t most = loop_read_most(loop) ? PUMP_STORE_BYTES : PUMP_CAPPED_ROOM_BYTES;
	size_t bytes = pump_stream_length(buffer);
	return bytes < most ? most - bytes : 0;
}

/* Steps the filters of one side: `in` is the flow that begins there, `out` the one that ends there. */
static enum step
step_stack(struct side *side, struct stream *in, struct stream *out, struct failure *why)
{
	struct pump *pump = in->pump;
	if (pump_stream_need(pump, &side->in, why) < 0 ||
	    pump_stream_need(pump, &side->out, why) < 0 ||
	    pump_stream_need(pump, &in->flow->store, why) < 0 ||
	    pump_stream_need(pump, pump_stream_leaving(out), why) < 0)
		return STEP_BROKEN;
	struct stack_flow flows[FILTER_FLOWS] = {
		[FILTER_IN] = { .src = side->in,
				.dst = in->flow->store,
				.room_bytes = room(pump->loop, in->flow->store),
				.flush = flush_of(in->flow->source_ended,
						  !side->endpoint.readable) },
		[FILTER_OUT] = { .src = *pump_stream_leaving(out),
				 .dst = side->out,
				 .room_bytes = room(pump->loop, side->out),
				 .flush = flush_of(pump_stream_core_ended(out),
						   !out->source->endpoint.readable) },
	};
	enum stack_result result = stack_step(side->stack, flows, why);
	if (result == STACK_FAILED)
		return STEP_BROKEN;
	bool ended = flows[FILTER_IN].ended != side->in_ended ||
		     flows[FILTER_OUT].ended != side->out_ended;
	side->in_ended = flows[FILTER_IN].ended;
	side->out_ended = flows[FILTER_OUT].ended;
	if (in->flow->state == FLOW_CUT)
		pump_stream_drop(pump, &in->flow->store);
	if (out->flow->state == FLOW_CUT)
		pump_stream_drop(pump, &side->out);
	if (result == STACK_REST && !ended)
		return STEP_REST;
	in->moved = true;
	return STEP_ON;
}

/* Filters that have all passed are not asked any more. */
static void
leave_out(struct side *side)
{
	if (!stack_is_empty(side->stack, FILTER_IN) || !stack_is_empty(side->stack, FILTER_OUT) ||
	    pump_stream_length(side->in) || pump_stream_length(side->out))
		return;
	stack_close(side->stack);
	side->stack = NULL;
	side->rests = false;
}

static void
account_flow(struct flow *flow, enum wait cause, uint64_t elapsed_ns)
{
	if (flow->state != FLOW_ENDED)
		flow->spent_ns[cause] += elapsed_ns;
}

struct waiting
pump_waiting(const struct pump *pump, enum pump_flow name)
{
	struct waiting own = pump->flow[name].waiting;
	const struct endpoint *endpoint;

	switch (own.cause) {
	case WAIT_NEAR_READABLE:
	case WAIT_NEAR_WRITABLE:
		endpoint = &pump->side[SIDE_NEAR].endpoint;
		break;
	case WAIT_FAR_READABLE:
	case WAIT_FAR_WRITABLE:
		endpoint = &pump->side[SIDE_FAR].endpoint;
		break;
	default:
		return own;
	}
	return endpoint->kind && endpoint->kind->blame ? endpoint->kind->blame(endpoint, own) : own;
}

/* As pump_account; tells what the time was accounted to. */
static void
account(struct pump *pump, uint64_t now_ns, enum wait cause[2])
{
	uint64_t elapsed_ns = now_ns - pump->clock_ns;

	for (enum pump_flow name = FLOW_UP; name <= FLOW_DOWN; name++) {
		cause[name] = pump_waiting(pump, name).cause;
		account_flow(&pump->flow[name], cause[name], elapsed_ns);
	}
	pump->clock_ns = now_ns;
}

void
pump_account(struct pump *pump, uint64_t now_ns)
{
	enum wait cause[2];
	account(pump, now_ns, cause);
}

/* What the flow waited for, and what was accounted, was there so long before the worker came to it. */
static void
account_to_worker(struct flow *flow, enum wait cause, uint64_t busy_ns)
{
	if (flow->state == FLOW_ENDED)
		return;
	switch (cause) {
	case WAIT_HANDSHAKE:
	case WAIT_NEAR_READABLE:
	case WAIT_NEAR_WRITABLE:
	case WAIT_FAR_READABLE:
	case WAIT_FAR_WRITABLE:
		flow->spent_ns[cause] -= busy_ns;
		flow->spent_ns[WAIT_TURN] += busy_ns;
		break;
	default:
		break;
	}
}

static enum step
run_stacks(struct stream streams[2], struct failure *why)
{
	struct pump *pump = streams[FLOW_UP].pump;
	enum step result = STEP_REST;

	for (uint8_t side = SIDE_NEAR; side <= SIDE_FAR; side++) {
		if (!pump->side[side].stack)
			continue;
		enum step next =
			step_stack(&pump->side[side], &streams[side], &streams[!side], why);
		if (next == STEP_BROKEN) {
			pump->broken_side = side;
			pump->filter_failed = true;
			return STEP_BROKEN;
		}
		if (next == STEP_ON)
			result = STEP_ON;
		leave_out(&pump->side[side]);
	}
	return result;
}

static bool
all_rest(const struct pump *pump)
{
	for (int i = 0; i < 2; i++)
		if (pump->side[i].stack && !pump->side[i].rests)
			return false;
	return true;
}

/* Runs both flows until neither can move. One that ends or is cut can wake the other, and so can the
 * filters between them. */
static enum step
run_flows(struct stream streams[2], struct failure *why)
{
	struct pump *pump = streams[FLOW_UP].pump;
	bool again, stacked, at_rest = all_rest(pump);

	do {
		stacked = pump->side[SIDE_NEAR].stack || pump->side[SIDE_FAR].stack;
		enum step stepped = stacked && !at_rest ? run_stacks(streams, why) : STEP_REST;
		if (stepped == STEP_BROKEN)
			return STEP_BROKEN;
		at_rest = false;
		/* A stack steps its filters until they rest; only what it gives wakes the other one. */
		again = stepped == STEP_ON && pump->side[SIDE_NEAR].stack &&
			pump->side[SIDE_FAR].stack;
		for (uint8_t name = FLOW_UP; name <= FLOW_DOWN; name++) {
			struct stream *stream = &streams[name];
			uint8_t state_before = stream->flow->state;
			enum step next;
			stream->progress = stream->wants_read = stream->wants_write = false;
			stream->waits_for = stream->keeps = NULL;
			while ((next = pump_stream_step(stream, why)) == STEP_ON)
				;
			if (next == STEP_BROKEN) {
				pump->broken_side = name;
				return STEP_BROKEN;
			}
			again |= stream->flow->state != state_before ||
				 (stacked && stream->progress);
		}
	} while (again);
	for (int i = 0; i < 2; i++)
		pump->side[i].rests = pump->side[i].stack;
	return STEP_REST;
}

static int
watch_side(struct side *side, struct failure *why)
{
	return side->endpoint.kind ? side->endpoint.kind->watch(&side->endpoint, why) : 0;
}

/* Asks the endpoints for the events that would end a wait, and for no others. */
static int
watch(struct stream streams[2], struct failure *why)
{
	struct pump *pump = streams[FLOW_UP].pump;

	for (uint8_t name = FLOW_UP; name <= FLOW_DOWN; name++) {
		struct stream *stream = &streams[name];
		bool turn = !pump_stream_is_over(stream->flow) &&
			    stream->flow->waiting.cause == WAIT_TURN;
		/* A socket with more to read says so by itself in the next turn. */
		bool told = turn && stream->filtered_budget &&
			    endpoint_is_socket(&stream->source->endpoint);
		stream->source->endpoint.want_readable = told || stream->wants_read;
		stream->sink->endpoint.want_writable = stream->wants_write;
		if (turn && !told)
			loop_run_later(pump->loop, &pump->turn);
	}
	for (uint8_t side = SIDE_NEAR; side <= SIDE_FAR; side++)
		if (watch_side(&pump->side[side], why) < 0) {
			pump->broken_side = side;
			return -1;
		}
	return 0;
}

/* What a flow's meters hold goes back, unless it is only the turn that is over. The one whose limit it
 * waits for is left waiting; where bytes need two at once the first keeps what it has until then, or each would
 * be given back for the other for ever. */
static void
rest_meters(struct stream *stream)
{
	struct meter *meters[] = { stream->source->in_meter, stream->sink->out_meter,
				   stream->core[0], stream->core[1] };
	bool is_on = !pump_stream_is_over(stream->flow);

	if (!meters[0] && !meters[1] && !pump_stream_is_core_metered(stream))
		return;
	if (is_on && stream->flow->waiting.cause == WAIT_TURN)
		return;
	for (int i = 0; i < 4; i++) {
		bool waits = meters[i] == stream->waits_for || meters[i] == stream->keeps;
		if (meters[i] && !(is_on && waits))
			meter_rest(meters[i]);
	}
}

/* An idle connection holds no buffer. */
static void
shed(struct pump *pump, struct evbuffer **buffer)
{
	if (*buffer && !evbuffer_get_length(*buffer))
		pump_stream_drop(pump, buffer);
}

static void
shed_all(struct pump *pump)
{
	for (int i = 0; i < 2; i++) {
		shed(pump, &pump->side[i].in);
		shed(pump, &pump->side[i].out);
		shed(pump, &pump->flow[i].store);
		shed(pump, &pump->flow[i].paid);
	}
}

/* What a socket gave is counted by the loop, what is in a pair by the pair; what filters have made of it,
 * and what has left a pair, is counted here. */
static bool
makes_bytes(const struct side *side)
{
	return side->stack || (side->endpoint.kind && !endpoint_is_socket(&side->endpoint));
}

static void
count_kept(struct pump *pump)
{
	size_t kept_bytes = 0;

	for (int i = 0; i < 2; i++) {
		const struct side *side = &pump->side[i];
		if (!makes_bytes(side))
			continue;
		kept_bytes += pump_stream_length(pump->flow[i].store) + /* i begins at side i */
			      pump_stream_length(pump->flow[i].paid);
		if (side->stack)
			kept_bytes += stack_kept_bytes(side->stack) +
				      stack_held_bytes(side->stack) + pump_stream_length(side->out);
	}
	pump->loop->kept_bytes += kept_bytes - pump->kept_bytes;
	pump->kept_bytes = kept_bytes;
}

static uint64_t
bytes_of(const struct flow *flow)
{
	return flow->read_bytes + flow->bytes;
}

enum pump_result
pump_run(struct pump *pump, struct failure *why)
{
	struct stream streams[2] = { pump_stream_begin(pump, FLOW_UP),
				     pump_stream_begin(pump, FLOW_DOWN) };
	uint64_t began_ns = clock_now_ns();
	uint64_t busy_ns = loop_busy_ns(pump->loop, pump->clock_ns, began_ns);
	enum wait waited_for[2];
	const uint64_t bytes[2] = { bytes_of(&pump->flow[FLOW_UP]),
				    bytes_of(&pump->flow[FLOW_DOWN]) };
	const enum wait before[2] = { pump->flow[FLOW_UP].waiting.cause,
				      pump->flow[FLOW_DOWN].waiting.cause };

	account(pump, began_ns, waited_for);
	enum step result = run_flows(streams, why);
	pump->moved = streams[FLOW_UP].moved || streams[FLOW_DOWN].moved;

	/* The time of a run is moving for the flow that moved, waiting for the other. */
	pump->clock_ns = clock_now_ns();
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		struct stream *stream = &streams[name];
		if (bytes_of(stream->flow) != bytes[name])
			account_to_worker(stream->flow, waited_for[name], busy_ns);
		account_flow(stream->flow,
			     stream->moved ? WAIT_MOVING : stream->flow->waiting.cause,
			     pump->clock_ns - began_ns);
		if (stream->moved || stream->flow->waiting.cause != before[name])
			stream->flow->since_ns = pump->clock_ns;
	}
	loop_note_run(pump->loop, streams[FLOW_UP].run > streams[FLOW_DOWN].run
					  ? streams[FLOW_UP].run
					  : streams[FLOW_DOWN].run);
	shed_all(pump);
	if (pump->kept_bytes || makes_bytes(&pump->side[SIDE_NEAR]) ||
	    makes_bytes(&pump->side[SIDE_FAR]))
		count_kept(pump);
	rest_meters(&streams[FLOW_UP]);
	rest_meters(&streams[FLOW_DOWN]);
	if (result == STEP_BROKEN)
		return PUMP_BROKEN;
	if (pump_stream_is_over(&pump->flow[FLOW_UP]) &&
	    pump_stream_is_over(&pump->flow[FLOW_DOWN]))
		return PUMP_ENDED;
	return watch(streams, why) < 0 ? PUMP_BROKEN : PUMP_GOING;
}

/* Writes what waits in front of the sink. */
static void
drain(struct stream *stream)
{
	while ((stream->flow->pipe || pump_stream_length(*pump_stream_last(stream))) &&
	       pump_stream_drain(stream) == STEP_ON)
		;
}

/* Has the filters of a side give what they have of a flow of which nothing more comes; those that failed are
 * not asked any more. */
static void
push_stack(struct pump *pump, struct stream streams[2], uint8_t side)
{
	struct failure ignored;

	if (pump->side[side].stack && !(pump->filter_failed && side == pump->broken_side))
		step_stack(&pump->side[side], &streams[side], &streams[!side], &ignored);
}

void
pump_push(struct pump *pump)
{
	struct stream streams[2] = { pump_stream_begin(pump, FLOW_UP),
				     pump_stream_begin(pump, FLOW_DOWN) };
	uint8_t side = pump->broken_side;
	struct stream *stream = &streams[side], *back = &streams[!side];

	if (stream->sink->endpoint.kind && stream->flow->state == FLOW_OPEN) {
		stream->source->endpoint.readable = false;
		stream->sink->endpoint.writable = true;
		drain(stream);
		push_stack(pump, streams, side);
		push_stack(pump, streams, !side);
		drain(stream);
	}
	/* A filter that failed may owe its own peer some last words. */
	if (stream->source->stack && back->flow->state == FLOW_OPEN &&
	    pump_stream_length(stream->source->out))
		drain(back);
}

void
pump_open(struct pump *pump, struct loop *loop, enum wait cause, uint64_t now_ns)
{
	pump->loop = loop;
	pump->clock_ns = now_ns;
	pump->may_splice = true;
	pump->flow[FLOW_UP].waiting.cause = cause;
	pump->flow[FLOW_DOWN].waiting.cause = cause;
	pump->flow[FLOW_UP].since_ns = now_ns;
	pump->flow[FLOW_DOWN].since_ns = now_ns;
}

void
pump_wait(struct pump *pump, enum wait cause, uint64_t now_ns)
{
	pump_account(pump, now_ns);
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		if (pump->flow[name].waiting.cause != cause)
			pump->flow[name].since_ns = now_ns;
		pump->flow[name].waiting = (struct waiting){ .cause = cause };
	}
}

bool
pump_is_limited(const struct pump *pump)
{
	for (enum pump_flow name = FLOW_UP; name <= FLOW_DOWN; name++)
		if (!pump_stream_is_over(&pump->flow[name]) &&
		    pump->flow[name].waiting.cause == WAIT_LIMIT)
			return true;
	return false;
}

bool
pump_is_held_up(const struct pump *pump)
{
	for (enum pump_flow name = FLOW_UP; name <= FLOW_DOWN; name++)
		if (pump->flow[name].state == FLOW_OPEN &&
		    pump_waiting(pump, name).cause == WAIT_LIMIT)
			return true;
	return false;
}

void
pump_unread(struct pump *pump)
{
	struct side *near = &pump->side[SIDE_NEAR];
	struct flow *up = &pump->flow[FLOW_UP];

	assert(stack_is_empty(near->stack, FILTER_IN) && stack_is_empty(near->stack, FILTER_OUT));
	stack_close(near->stack);
	near->stack = NULL;
	near->in_ended = near->out_ended = near->rests = false;
	if (!near->in) {
		near->in = up->store;
		up->store = NULL;
	} else if (up->store) {
		evbuffer_prepend_buffer(near->in, up->store);
		pump_stream_drop(pump, &up->store);
	}
}

bool
pump_is_handshaking(const struct pump *pump)
{
	return !stack_is_ready(pump->side[SIDE_NEAR].stack) ||
	       !stack_is_ready(pump->side[SIDE_FAR].stack);
}

bool
pump_is_half_open(const struct pump *pump)
{
	return pump_stream_is_over(&pump->flow[FLOW_UP]) !=
	       pump_stream_is_over(&pump->flow[FLOW_DOWN]);
}

bool
pump_is_blocked(const struct pump *pump)
{
	return (!pump_stream_is_over(&pump->flow[FLOW_UP]) &&
		pump->flow[FLOW_UP].waiting.cause == WAIT_FAR_WRITABLE) ||
	       (!pump_stream_is_over(&pump->flow[FLOW_DOWN]) &&
		pump->flow[FLOW_DOWN].waiting.cause == WAIT_NEAR_WRITABLE);
}

void
pump_close(struct pump *pump)
{
	for (int i = 0; i < 2; i++) {
		pump_stream_drop_pipe(pump, &pump->flow[i]);
		pump_stream_drop(pump, &pump->flow[i].store);
		pump_stream_drop(pump, &pump->flow[i].paid);
		pump_stream_drop(pump, &pump->side[i].in);
		pump_stream_drop(pump, &pump->side[i].out);
		stack_close(pump->side[i].stack);
		pump->side[i].stack = NULL;
	}
	pump->loop->kept_bytes -= pump->kept_bytes;
	pump->kept_bytes = 0;
	loop_forget(pump->loop, &pump->turn);
}

const char *
pump_wait_name(enum wait cause)
{
	return wait_names[cause];
}

const char *
pump_shares(const struct flow *flow, char text[PUMP_SHARES_TEXT])
{
	uint64_t total_ns = 0;
	size_t length = 0;
	bool told[WAITS] = { false };

	for (int cause = 0; cause < WAITS; cause++)
		total_ns += flow->spent_ns[cause];
	text[0] = '\0';
	while (total_ns && length < PUMP_SHARES_TEXT - 1) {
		int largest = -1;
		for (int cause = 0; cause < WAITS; cause++)
			if (!told[cause] &&
			    (largest < 0 || flow->spent_ns[cause] > flow->spent_ns[largest]))
				largest = cause;
		if (largest < 0)
			break;
		double share = 100.0 * (double)flow->spent_ns[largest] / (double)total_ns;
		if (share < 0.05)
			break;
		told[largest] = true;
		length += (size_t)snprintf(text + length, PUMP_SHARES_TEXT - length, "%s%s %.1f%%",
					   length ? "," : "", wait_names[largest], share);
	}
	return text;
}
