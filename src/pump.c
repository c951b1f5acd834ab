#include "pump.h"

#include "clock.h"

#include <assert.h>
#include <event2/buffer.h>
#include <stdio.h>
#include <string.h>

/* The most one connection moves in one turn of its worker: a fast one must not starve the others. Less
 * would wake the peers more often for the same bytes: with 16 connections, 512 KiB cost 1.12 times the
 * CPU of this, and 4 MiB 0.86. */
#define TURN_BYTES ((size_t)2048 * 1024)
/* Two reads in a row of this much make a flow bulk: from then on it is spliced. */
#define LONG_READ_BYTES ((size_t)64 * 1024)
/* Splices below this, so many in a row, and it is copied again: small pieces are cheaper that way. */
#define SHORT_SPLICE_BYTES ((size_t)16 * 1024)
#define SHORT_SPLICES      4
/* What a flow that has no kernel to leave bytes in may still read at the cap of the memory: with its head
 * it fits libevent's smallest chain, of 1 KiB. */
#define CAPPED_READ_BYTES ((size_t)960)
/* The room that a filter has at the cap: its largest record fits. */
#define CAPPED_ROOM_BYTES ((size_t)16 * 1024)
/* Where the other side is metered, no more is read at a time than is likely to be let through soon: a
 * throttled connection keeps little in memory. */
#define METERED_READ_BYTES ((size_t)64 * 1024)
/* The most that waits in one buffer of a connection, give or take a record (filter.h, rule 2). */
#define STORE_BYTES BLOCK_BYTES

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

/* One flow, with the sides it runs between, for the length of one run. */
struct stream {
	struct pump *pump;
	struct flow *flow;
	const struct flow *other;
	struct side *source, *sink;
	struct meter *core[2]; /* of the source's side, and of the sink's */
	const struct meter
		*waits_for; /* whose limit ended the last step; NULL = something else did */
	enum wait unreadable, unwritable; /* what waiting for them is called */
	size_t budget;
	bool wants_read, wants_write; /* the events that would wake it */
	bool moved;                   /* in this run */
	bool progress;                /* since the stacks were stepped last */
};

enum step {
	STEP_ON,   /* something changed: go on */
	STEP_REST, /* nothing can move now; flow->waiting says why */
	STEP_BROKEN,
};

static bool
is_over(const struct flow *flow)
{
	return flow->state == FLOW_ENDED || (flow->state == FLOW_CUT && flow->source_ended);
}

static bool
is_handshaking(const struct stream *stream)
{
	return !stack_is_ready(stream->source->stack) || !stack_is_ready(stream->sink->stack);
}

static enum step
rest(struct stream *stream, enum wait cause)
{
	if (stream->pump->front)
		cause = (enum wait)stream->pump->front;
	else if (is_handshaking(stream))
		cause = WAIT_HANDSHAKE;
	stream->flow->waiting = (struct waiting){ .cause = cause };
	return STEP_REST;
}

/* How many of `want` bytes the meter lets through now. 0: the flow rests, its limit will wake it. */
static size_t
allow(struct stream *stream, struct meter *meter, size_t want)
{
	if (!meter)
		return want;
	size_t bytes = (size_t)meter_take(meter, want, stream->pump->clock_ns);
	if (bytes)
		return bytes;
	stream->waits_for = meter;
	stream->flow->waiting = (struct waiting){ WAIT_LIMIT, limits_waits_for(&meter->flow) };
	return 0;
}

static void
pay(struct meter *meter, size_t bytes)
{
	if (meter && bytes)
		meter_spend(meter, bytes);
}

static bool
is_core_metered(const struct stream *stream)
{
	return stream->core[0] || stream->core[1];
}

static enum step
rest_unreadable(struct stream *stream)
{
	stream->wants_read = true;
	return rest(stream, stream->unreadable);
}

static enum step
rest_unwritable(struct stream *stream)
{
	stream->wants_write = true;
	return rest(stream, stream->unwritable);
}

static void
progress(struct stream *stream)
{
	stream->moved = true;
	stream->progress = true;
}

/* The buffer that reads go to, what may leave the core, and the one that writes come from: the core itself
 * where no filter is. */
static struct evbuffer **
first(struct stream *stream)
{
	return stream->source->stack ? &stream->source->in : &stream->flow->store;
}

static struct evbuffer **
leaving(struct stream *stream)
{
	return is_core_metered(stream) ? &stream->flow->paid : &stream->flow->store;
}

static struct evbuffer **
last(struct stream *stream)
{
	return stream->sink->stack ? &stream->sink->out : leaving(stream);
}

static size_t
length(const struct evbuffer *buffer)
{
	return buffer ? evbuffer_get_length(buffer) : 0;
}

static int
need(struct pump *pump, struct evbuffer **buffer, struct failure *why)
{
	if (!*buffer)
		*buffer = loop_take_buffer(pump->loop);
	return *buffer ? 0 : failure_set(why, FAILURE_MEMORY, "no memory for a buffer");
}

static void
drop(struct pump *pump, struct evbuffer **buffer)
{
	loop_give_buffer(pump->loop, *buffer);
	*buffer = NULL;
}

/* An idle connection holds no buffer. */
static void
shed(struct pump *pump, struct evbuffer **buffer)
{
	if (*buffer && !evbuffer_get_length(*buffer))
		drop(pump, buffer);
}

/* Whether the flow's end has come out of the source's stack, and out of the sink's. */
static bool
core_ended(const struct stream *stream)
{
	if (is_core_metered(stream) && length(stream->flow->store))
		return false;
	return stream->source->stack ? stream->source->in_ended : stream->flow->source_ended;
}

static bool
all_ended(const struct stream *stream)
{
	return stream->sink->stack ? stream->sink->out_ended : core_ended(stream);
}

static void
drop_pipe(struct pump *pump, struct flow *flow)
{
	if (flow->pipe)
		loop_give_pipe(pump->loop, flow->pipe);
	flow->pipe = NULL;
}

/* The sink takes nothing any more. What its peer sent before that is still to be read to its end, so
 * the flow that comes from there is woken; what comes from the source is read and dropped. */
static void
cut(struct stream *stream)
{
	stream->flow->state = FLOW_CUT;
	drop(stream->pump, last(stream));
	drop(stream->pump, &stream->flow->store);
	drop(stream->pump, &stream->flow->paid);
	drop_pipe(stream->pump, stream->flow);
	stream->sink->endpoint.readable = true;
	progress(stream);
}

static void
count(struct stream *stream, size_t bytes)
{
	stream->flow->bytes += bytes;
	progress(stream);
}

static void
spend(struct stream *stream, size_t bytes)
{
	stream->budget -= bytes < stream->budget ? bytes : stream->budget;
	stream->flow->read_bytes += bytes;
	progress(stream);
}

/* What a read that moved nothing means. */
static enum step
not_read(struct stream *stream, enum endpoint_result result)
{
	if (result == ENDPOINT_BROKEN)
		return STEP_BROKEN;
	if (result != ENDPOINT_END) {
		stream->progress = true; /* to filters: what they hold back for more is now to go */
		return rest_unreadable(stream);
	}
	stream->flow->source_ended = true;
	progress(stream);
	return STEP_ON;
}

static enum step
drain_pipe(struct stream *stream)
{
	struct flow *flow = stream->flow;
	struct meter *meter = stream->sink->out_meter;
	struct failure ignored;
	size_t moved, most = allow(stream, meter, flow->pipe->held_bytes);

	if (!most)
		return STEP_REST;
	enum endpoint_result result =
		endpoint_splice_out(&stream->sink->endpoint, flow->pipe, most, &moved, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	pay(meter, moved);
	count(stream, moved);
	if (flow->pipe->held_bytes)
		return moved == most ? STEP_ON : rest_unwritable(stream);
	drop_pipe(stream->pump, flow);
	return STEP_ON;
}

static enum step
drain_buffer(struct stream *stream)
{
	struct endpoint *sink = &stream->sink->endpoint;
	struct evbuffer **buffer = last(stream);
	struct meter *meter = stream->sink->out_meter;
	struct failure ignored;
	size_t held = evbuffer_get_length(*buffer);
	size_t moved = 0, most = allow(stream, meter, held);

	if (!most)
		return STEP_REST;
	enum endpoint_result result = sink->kind->write(sink, *buffer, most, &moved, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	pay(meter, moved);
	if (moved) {
		stream->flow->bytes += moved;
		stream->moved = true;
		/* Where there was room already, more of it is nothing new to the filters. */
		stream->progress |= held >= CAPPED_ROOM_BYTES;
	}
	if (moved < held)
		return moved == most ? STEP_ON : rest_unwritable(stream);
	drop(stream->pump, buffer);
	return STEP_ON;
}

static enum step
drain(struct stream *stream)
{
	if (!stream->sink->endpoint.writable)
		return rest_unwritable(stream);
	return stream->flow->pipe ? drain_pipe(stream) : drain_buffer(stream);
}

/* Reads what nobody wants any more, so that the peer's last bytes are not answered by a reset. */
static enum step
discard(struct stream *stream, struct failure *why)
{
	struct endpoint *source = &stream->source->endpoint;
	struct evbuffer *waste = NULL;
	size_t moved = 0, most = allow(stream, stream->source->in_meter, BLOCK_BYTES);

	if (!most)
		return STEP_REST;
	if (need(stream->pump, &waste, why) < 0)
		return STEP_BROKEN;
	enum endpoint_result result = source->kind->read(source, waste, most, &moved, why);
	drop(stream->pump, &waste);
	pay(stream->source->in_meter, moved);
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	/* No movement, for the deadlines' sake: a peer that talks on for ever is not listened to for ever. */
	stream->budget -= moved < stream->budget ? moved : stream->budget;
	return STEP_ON;
}

/* At the cap of the memory nothing may be kept: the bytes stay in the kernel until they are passed on. */
static enum step
copy_without_keeping(struct stream *stream, struct failure *why)
{
	struct endpoint *source = &stream->source->endpoint;
	struct meter *in = stream->source->in_meter, *out = stream->sink->out_meter;
	struct failure ignored;
	size_t seen, sent, most = allow(stream, in, BLOCK_BYTES);
	char *scratch = loop_scratch(stream->pump->loop);

	if (!scratch) {
		failure_set(why, FAILURE_MEMORY, "no memory to read");
		return STEP_BROKEN;
	}
	most = most ? allow(stream, out, most) : 0;
	if (!most)
		return STEP_REST;
	enum endpoint_result result = endpoint_peek(source, scratch, most, &seen, why);
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	result = endpoint_send(&stream->sink->endpoint, scratch, seen, &sent, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	endpoint_skip(source, scratch, sent);
	pay(in, sent);
	pay(out, sent);
	spend(stream, sent);
	count(stream, sent);
	if (sent == seen)
		return STEP_ON;
	source->readable = true;
	return rest_unwritable(stream);
}

static void
note_length(struct flow *flow, size_t seen)
{
	if (seen < LONG_READ_BYTES)
		flow->long_reads = 0;
	else if (flow->long_reads < 2)
		flow->long_reads++;
}

/* From socket to socket with no filter between: one read, one write, and no buffer unless the write
 * falls short. Where the sink alone is metered no more is read than may be written. */
static enum step
copy(struct stream *stream, size_t most, struct failure *why)
{
	struct meter *in = stream->source->in_meter, *out = stream->sink->out_meter;
	struct flow *flow = stream->flow;
	struct failure ignored;
	size_t seen, sent = 0;
	char *scratch = loop_scratch(stream->pump->loop);

	if (!scratch) {
		failure_set(why, FAILURE_MEMORY, "no memory to read");
		return STEP_BROKEN;
	}
	most = allow(stream, in ? in : out, most);
	if (!most)
		return STEP_REST;
	enum endpoint_result result =
		endpoint_receive(&stream->source->endpoint, scratch, most, &seen, why);
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	pay(in, seen);
	spend(stream, seen);
	note_length(flow, seen);

	size_t may = allow(stream, out, seen);
	if (may)
		result = endpoint_send(&stream->sink->endpoint, scratch, may, &sent, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	pay(out, sent);
	count(stream, sent);
	if (sent < seen &&
	    (need(stream->pump, &flow->store, why) < 0 ||
	     loop_keep(stream->pump->loop, flow->store, scratch + sent, seen - sent, why) < 0))
		return STEP_BROKEN;
	return STEP_ON;
}

static enum step
splice_bulk(struct stream *stream, struct pipe *pipe, struct failure *why)
{
	struct endpoint *source = &stream->source->endpoint;
	struct meter *in = stream->source->in_meter, *out = stream->sink->out_meter;
	struct flow *flow = stream->flow;
	size_t moved, most = allow(stream, in ? in : out, pipe->room_bytes);

	if (!most) {
		loop_give_pipe(stream->pump->loop, pipe);
		return STEP_REST;
	}
	enum endpoint_result result = endpoint_splice_in(source, pipe, most, &moved, why);
	if (result != ENDPOINT_MOVED) {
		loop_give_pipe(stream->pump->loop, pipe);
		if (result == ENDPOINT_WAIT && source->readable) {
			stream->pump->may_splice = false; /* not with these sockets */
			return STEP_ON;
		}
		return not_read(stream, result);
	}
	pay(in, moved);
	spend(stream, moved);
	flow->short_splices = moved < SHORT_SPLICE_BYTES ? (uint8_t)(flow->short_splices + 1) : 0;
	if (flow->short_splices >= SHORT_SPLICES) {
		flow->short_splices = 0;
		flow->long_reads = 0;
	}
	flow->pipe = pipe;
	return drain_pipe(stream);
}

/* Through buffers: where there is a filter or a pair. */
static enum step
fill_buffer(struct stream *stream, size_t most, struct failure *why)
{
	struct endpoint *source = &stream->source->endpoint;
	struct meter *in = stream->source->in_meter;
	struct evbuffer **buffer = first(stream);
	size_t moved = 0;

	if (!most)
		most = CAPPED_READ_BYTES;
	if (most > METERED_READ_BYTES && (stream->sink->out_meter || is_core_metered(stream)))
		most = METERED_READ_BYTES;
	if (most > STORE_BYTES - length(*buffer))
		most = STORE_BYTES - length(*buffer);
	most = allow(stream, in, most);
	if (!most)
		return STEP_REST;
	if (need(stream->pump, buffer, why) < 0)
		return STEP_BROKEN;
	enum endpoint_result result = source->kind->read(source, *buffer, most, &moved, why);
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	pay(in, moved);
	if (stream->pump->front)
		stream->pump->owed_bytes += moved;
	spend(stream, moved);
	return STEP_ON;
}

/* Whether what was read before the tunnel was known is paid for. */
static bool
settle(struct stream *stream)
{
	struct pump *pump = stream->pump;
	struct meter *in = stream->source->in_meter;

	if (pump->front || stream->source != &pump->side[SIDE_NEAR])
		return true;
	while (pump->owed_bytes && in) {
		size_t bytes = allow(stream, in, pump->owed_bytes);
		if (!bytes)
			return false;
		pay(in, bytes);
		pump->owed_bytes -= bytes;
	}
	pump->owed_bytes = 0;
	return true;
}

/* Lets bytes out of a metered core. */
static enum step
leave_core(struct stream *stream, struct failure *why)
{
	struct flow *flow = stream->flow;
	size_t bytes = allow(stream, stream->core[0], length(flow->store));

	bytes = bytes ? allow(stream, stream->core[1], bytes) : 0;
	if (!bytes)
		return STEP_REST;
	if (need(stream->pump, &flow->paid, why) < 0)
		return STEP_BROKEN;
	if (evbuffer_remove_buffer(flow->store, flow->paid, bytes) != (int)bytes) {
		failure_set(why, FAILURE_MEMORY, "no memory to move %zu bytes", bytes);
		return STEP_BROKEN;
	}
	pay(stream->core[0], bytes);
	pay(stream->core[1], bytes);
	progress(stream);
	return STEP_ON;
}

static enum step
fill(struct stream *stream, struct failure *why)
{
	struct pump *pump = stream->pump;
	struct side *source = stream->source, *sink = stream->sink;
	size_t most = loop_read_most(pump->loop);

	if (most > stream->budget)
		most = stream->budget;
	if (source->stack || sink->stack || is_core_metered(stream) ||
	    !endpoint_is_socket(&source->endpoint) || !endpoint_is_socket(&sink->endpoint))
		return fill_buffer(stream, most, why);
	/* Metered on both sides, what was read may have to wait for the other meter: not in a pipe. */
	if (pump->may_splice && stream->flow->long_reads >= 2 &&
	    !(source->in_meter && sink->out_meter)) {
		struct pipe *pipe = loop_take_pipe(pump->loop);
		if (pipe)
			return splice_bulk(stream, pipe, why);
	}
	return most ? copy(stream, most, why) : copy_without_keeping(stream, why);
}

static void
pass_end(struct stream *stream)
{
	struct endpoint *sink = &stream->sink->endpoint;

	/* If the other flow is over as well, closing the sink says the same, without a call of its own. */
	if (!is_over(stream->other))
		sink->kind->shutdown(sink);
	stream->flow->state = FLOW_ENDED;
}

/* Whether reading more would only pile it up: the sink does not take what there is. */
static bool
is_full(struct stream *stream)
{
	if (stream->source->stack || stream->sink->stack || is_core_metered(stream))
		return length(stream->flow->store) >= STORE_BYTES ||
		       length(*first(stream)) >= STORE_BYTES;
	return !stream->sink->endpoint.writable;
}

/* The next step of a flow, in the order that keeps its bytes in order: what is held, the end, more. */
static enum step
step(struct stream *stream, struct failure *why)
{
	struct flow *flow = stream->flow;

	if (flow->state == FLOW_ENDED)
		return STEP_REST;
	if (stream->pump->owed_bytes && !settle(stream))
		return STEP_REST;
	if (flow->pipe || length(*last(stream)))
		return drain(stream);
	if (is_core_metered(stream) && length(flow->store) && !length(flow->paid) &&
	    flow->state == FLOW_OPEN)
		return leave_core(stream, why);
	/* An end that comes within the near handshake waits for the far side. */
	if (flow->state == FLOW_OPEN && all_ended(stream) && stream->sink->endpoint.kind) {
		pass_end(stream);
		return STEP_REST;
	}
	if (flow->source_ended)
		return rest(stream, stream->unwritable);
	if (!stream->source->endpoint.readable)
		return rest_unreadable(stream);
	if (!stream->budget)
		return rest(stream, WAIT_TURN);
	if (flow->state == FLOW_CUT || core_ended(stream))
		return discard(stream, why);
	if (is_full(stream))
		return rest_unwritable(stream);
	return fill(stream, why);
}

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
	size_t most = loop_read_most(loop) ? STORE_BYTES : CAPPED_ROOM_BYTES;
	size_t bytes = length(buffer);
	return bytes < most ? most - bytes : 0;
}

/* Steps the filters of one side: `in` is the flow that begins there, `out` the one that ends there. */
static enum step
step_stack(struct side *side, struct stream *in, struct stream *out, struct failure *why)
{
	struct pump *pump = in->pump;
	if (need(pump, &side->in, why) < 0 || need(pump, &side->out, why) < 0 ||
	    need(pump, &in->flow->store, why) < 0 || need(pump, leaving(out), why) < 0)
		return STEP_BROKEN;
	struct stack_flow flows[FILTER_FLOWS] = {
		[FILTER_IN] = { .src = side->in,
				.dst = in->flow->store,
				.room_bytes = room(pump->loop, in->flow->store),
				.flush = flush_of(in->flow->source_ended,
						  !side->endpoint.readable) },
		[FILTER_OUT] = { .src = *leaving(out),
				 .dst = side->out,
				 .room_bytes = room(pump->loop, side->out),
				 .flush = flush_of(core_ended(out),
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
		drop(pump, &in->flow->store);
	if (out->flow->state == FLOW_CUT)
		drop(pump, &side->out);
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
	    length(side->in) || length(side->out))
		return;
	stack_close(side->stack);
	side->stack = NULL;
	side->rests = false;
}

static struct stream
stream_of(struct pump *pump, enum pump_flow name)
{
	struct side *source = &pump->side[name == FLOW_UP ? SIDE_NEAR : SIDE_FAR];
	struct side *sink = &pump->side[name == FLOW_UP ? SIDE_FAR : SIDE_NEAR];

	return (struct stream){
		.pump = pump,
		.flow = &pump->flow[name],
		.other = &pump->flow[name == FLOW_UP ? FLOW_DOWN : FLOW_UP],
		.source = source,
		.sink = sink,
		.core = { source->core_meter[name], sink->core_meter[name] },
		.unreadable = name == FLOW_UP ? WAIT_NEAR_READABLE : WAIT_FAR_READABLE,
		.unwritable = name == FLOW_UP ? WAIT_FAR_WRITABLE : WAIT_NEAR_WRITABLE,
		.budget = TURN_BYTES,
	};
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

void
pump_account(struct pump *pump, uint64_t now_ns)
{
	uint64_t elapsed_ns = now_ns - pump->clock_ns;
	account_flow(&pump->flow[FLOW_UP], pump_waiting(pump, FLOW_UP).cause, elapsed_ns);
	account_flow(&pump->flow[FLOW_DOWN], pump_waiting(pump, FLOW_DOWN).cause, elapsed_ns);
	pump->clock_ns = now_ns;
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
			stream->waits_for = NULL;
			while ((next = step(stream, why)) == STEP_ON)
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
		bool turn = !is_over(stream->flow) && stream->flow->waiting.cause == WAIT_TURN;
		/* A socket with more to read says so by itself in the next turn. */
		bool told = turn && endpoint_is_socket(&stream->source->endpoint);
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
 * waits for is left waiting; of a core metered twice the first keeps what it has until then. */
static void
rest_meters(struct stream *stream)
{
	struct meter *meters[] = { stream->source->in_meter, stream->sink->out_meter,
				   stream->core[0], stream->core[1] };
	bool is_on = !is_over(stream->flow);

	if (!meters[0] && !meters[1] && !is_core_metered(stream))
		return;
	if (is_on && stream->flow->waiting.cause == WAIT_TURN)
		return;
	for (int i = 0; i < 4; i++) {
		bool waits = meters[i] == stream->waits_for ||
			     (meters[i] == stream->core[0] && stream->waits_for == stream->core[1]);
		if (meters[i] && !(is_on && waits))
			meter_rest(meters[i]);
	}
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
		kept_bytes += length(pump->flow[i].store) + /* i begins at side i */
			      length(pump->flow[i].paid);
		if (side->stack)
			kept_bytes += stack_kept_bytes(side->stack) +
				      stack_held_bytes(side->stack) + length(side->out);
	}
	pump->loop->kept_bytes += kept_bytes - pump->kept_bytes;
	pump->kept_bytes = kept_bytes;
}

enum pump_result
pump_run(struct pump *pump, struct failure *why)
{
	struct stream streams[2] = { stream_of(pump, FLOW_UP), stream_of(pump, FLOW_DOWN) };
	uint64_t began_ns = clock_now_ns();
	const enum wait before[2] = { pump->flow[FLOW_UP].waiting.cause,
				      pump->flow[FLOW_DOWN].waiting.cause };

	pump_account(pump, began_ns);
	enum step result = run_flows(streams, why);
	pump->moved = streams[FLOW_UP].moved || streams[FLOW_DOWN].moved;

	/* The time of a run is moving for the flow that moved, waiting for the other. */
	pump->clock_ns = clock_now_ns();
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		struct stream *stream = &streams[name];
		account_flow(stream->flow,
			     stream->moved ? WAIT_MOVING : stream->flow->waiting.cause,
			     pump->clock_ns - began_ns);
		if (stream->moved || stream->flow->waiting.cause != before[name])
			stream->flow->since_ns = pump->clock_ns;
	}
	shed_all(pump);
	if (pump->kept_bytes || makes_bytes(&pump->side[SIDE_NEAR]) ||
	    makes_bytes(&pump->side[SIDE_FAR]))
		count_kept(pump);
	rest_meters(&streams[FLOW_UP]);
	rest_meters(&streams[FLOW_DOWN]);
	if (result == STEP_BROKEN)
		return PUMP_BROKEN;
	if (is_over(&pump->flow[FLOW_UP]) && is_over(&pump->flow[FLOW_DOWN]))
		return PUMP_ENDED;
	return watch(streams, why) < 0 ? PUMP_BROKEN : PUMP_GOING;
}

void
pump_push(struct pump *pump)
{
	struct stream stream = stream_of(pump, (enum pump_flow)pump->broken_side);
	struct stream back = stream_of(pump, (enum pump_flow) !pump->broken_side);

	if (stream.sink->endpoint.kind && stream.flow->state == FLOW_OPEN) {
		stream.sink->endpoint.writable = true;
		while ((stream.flow->pipe || length(*last(&stream))) && drain(&stream) == STEP_ON)
			;
	}
	/* A filter that failed may owe its own peer some last words. */
	if (stream.source->stack && back.flow->state == FLOW_OPEN)
		while (length(stream.source->out) && drain(&back) == STEP_ON)
			;
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
		if (!is_over(&pump->flow[name]) && pump->flow[name].waiting.cause == WAIT_LIMIT)
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
		drop(pump, &up->store);
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
	return is_over(&pump->flow[FLOW_UP]) != is_over(&pump->flow[FLOW_DOWN]);
}

bool
pump_is_blocked(const struct pump *pump)
{
	return (!is_over(&pump->flow[FLOW_UP]) &&
		pump->flow[FLOW_UP].waiting.cause == WAIT_FAR_WRITABLE) ||
	       (!is_over(&pump->flow[FLOW_DOWN]) &&
		pump->flow[FLOW_DOWN].waiting.cause == WAIT_NEAR_WRITABLE);
}

void
pump_close(struct pump *pump)
{
	for (int i = 0; i < 2; i++) {
		drop_pipe(pump, &pump->flow[i]);
		drop(pump, &pump->flow[i].store);
		drop(pump, &pump->flow[i].paid);
		drop(pump, &pump->side[i].in);
		drop(pump, &pump->side[i].out);
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
