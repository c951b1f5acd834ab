#include "pump_stream.h"

#include "buffer.h"

/* The most one connection moves in one turn of its worker: a fast one must not starve the others. Less
 * would wake the peers more often for the same bytes: with 16 connections, 512 KiB cost 1.12 times the
 * CPU of this, and 4 MiB 0.86. */
#define TURN_BYTES ((size_t)2048 * 1024)
/* Two reads in a row of this much make a flow bulk: from then on it is spliced. */
#define LONG_READ_BYTES ((size_t)64 * 1024)
/* Splices below this, so many in a row, and it is copied again: small pieces are cheaper that way. */
#define SHORT_SPLICE_BYTES ((size_t)16 * 1024)
#define SHORT_SPLICES      4
/* Through filters bulk is what came in so many reads of a piece, of about a TLS record, while the other flow said
 * nothing; enough at a time is what costs little more for each byte than all that one read may bring. */
#define BULK_READS   32
#define PIECE_BYTES  ((size_t)16 * 1024)
#define ENOUGH_BYTES ((size_t)128 * 1024)
/* What a flow that has no kernel to leave bytes in may still read at the cap of the memory: with its head
 * it fits libevent's smallest chain, of 1 KiB. */
#define CAPPED_READ_BYTES ((size_t)960)
/* Where the other side is metered, no more is read at a time than is likely to be let through soon: a
 * throttled connection keeps little in memory. One that never had to wait for so many large pieces in a row
 * is not throttled: its limit is far above it. */
#define METERED_READ_BYTES ((size_t)64 * 1024)
#define LARGE_BYTES        (METERED_READ_BYTES / 4)
#define LARGE_TAKES        8

int
pump_stream_need(struct pump *pump, struct evbuffer **buffer, struct failure *why)
{
	if (!*buffer)
		*buffer = loop_take_buffer(pump->loop);
	return *buffer ? 0 : failure_set(why, FAILURE_MEMORY, "no memory for a buffer");
}

void
pump_stream_drop(struct pump *pump, struct evbuffer **buffer)
{
	loop_give_buffer(pump->loop, *buffer);
	*buffer = NULL;
}

void
pump_stream_drop_pipe(struct pump *pump, struct flow *flow)
{
	if (flow->pipe)
		loop_give_pipe(pump->loop, flow->pipe);
	flow->pipe = NULL;
}

/* A limit that counts in the core has come or gone while bytes are there. What was paid for leaves first; and
 * behind an end that the filters have been told of nothing is left to be paid for. */
static void
obey_core_meters(struct stream *stream)
{
	struct flow *flow = stream->flow;
	bool is_metered = pump_stream_is_core_metered(stream);

	if (is_metered == flow->is_core_metered)
		return;
	bool has_ended = stream->source->stack ? stream->source->in_ended : flow->source_ended;
	flow->is_core_metered = is_metered;
	stream->source->rests = stream->sink->rests = false;
	if (is_metered && has_ended) {
		flow->paid = flow->store;
		flow->store = NULL;
	} else if (!is_metered && flow->paid) {
		if (flow->store)
			evbuffer_add_buffer(flow->paid, flow->store);
		pump_stream_drop(stream->pump, &flow->store);
		flow->store = flow->paid;
		flow->paid = NULL;
	}
}

struct evbuffer **
pump_stream_leaving(struct stream *stream)
{
	return pump_stream_is_core_metered(stream) ? &stream->flow->paid : &stream->flow->store;
}

struct evbuffer **
pump_stream_last(struct stream *stream)
{
	return stream->sink->stack ? &stream->sink->out : pump_stream_leaving(stream);
}

bool
pump_stream_core_ended(const struct stream *stream)
{
	if (pump_stream_is_core_metered(stream) && pump_stream_length(stream->flow->store))
		return false;
	return stream->source->stack ? stream->source->in_ended : stream->flow->source_ended;
}

static bool
is_handshaking(const struct stream *stream)
{
	return !stack_is_ready(stream->source->stack) || !stack_is_ready(stream->sink->stack);
}

static enum step
rest(struct stream *stream, enum wait cause)
{
	if (cause != WAIT_TURN && stream->pump->front)
		cause = (enum wait)stream->pump->front;
	else if (cause != WAIT_TURN && is_handshaking(stream))
		cause = WAIT_HANDSHAKE;
	stream->flow->waiting = (struct waiting){ .cause = cause };
	return STEP_REST;
}

static size_t
lesser(size_t a, size_t b)
{
	return a < b ? a : b;
}

static bool
has_filters(const struct stream *stream)
{
	return stream->source->stack || stream->sink->stack;
}

/* How many of `want` bytes the meter lets through now. 0: the flow rests, its limit will wake it. */
static size_t
allow(struct stream *stream, struct meter *meter, size_t want)
{
	if (!meter)
		return want;
	struct flow *flow = stream->flow;
	size_t bytes = (size_t)meter_take(meter, want, stream->pump->clock_ns);
	if (bytes < want)
		flow->large_takes = 0;
	else if (want >= LARGE_BYTES && flow->large_takes < LARGE_TAKES)
		flow->large_takes++;
	if (bytes)
		return bytes;
	stream->waits_for = meter;
	flow->waiting = (struct waiting){ WAIT_LIMIT, limits_waits_for(&meter->flow) };
	return 0;
}

/* The same, of what `first` has let through already for the same bytes. */
static size_t
allow_also(struct stream *stream, struct meter *first, struct meter *meter, size_t want)
{
	size_t bytes = want ? allow(stream, meter, want) : 0;

	if (want && !bytes)
		stream->keeps = first;
	return bytes;
}

static void
pay(struct meter *meter, size_t bytes)
{
	if (meter && bytes)
		meter_spend(meter, bytes);
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
	/* A sink that takes bytes does not tell again that it does: what is missing are the filters before it. */
	stream->wants_write = !stream->sink->endpoint.writable;
	return rest(stream, stream->unwritable);
}

static void
progress(struct stream *stream)
{
	stream->moved = true;
	stream->progress = true;
}

/* The buffer that reads go to: the core itself where no filter is. */
static struct evbuffer **
first(struct stream *stream)
{
	return stream->source->stack ? &stream->source->in : &stream->flow->store;
}

static bool
all_ended(const struct stream *stream)
{
	return stream->sink->stack ? stream->sink->out_ended : pump_stream_core_ended(stream);
}

/* The sink takes nothing any more. What its peer sent before that is still to be read to its end, so
 * the flow that comes from there is woken; what comes from the source is read and dropped. */
static void
cut(struct stream *stream)
{
	stream->flow->state = FLOW_CUT;
	pump_stream_drop(stream->pump, pump_stream_last(stream));
	pump_stream_drop(stream->pump, &stream->flow->store);
	pump_stream_drop(stream->pump, &stream->flow->paid);
	pump_stream_drop_pipe(stream->pump, stream->flow);
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
	stream->budget -= lesser(bytes, stream->budget);
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
	pump_stream_drop_pipe(stream->pump, flow);
	return STEP_ON;
}

static enum step
drain_buffer(struct stream *stream)
{
	struct endpoint *sink = &stream->sink->endpoint;
	struct evbuffer **buffer = pump_stream_last(stream);
	struct meter *meter = stream->sink->out_meter;
	struct failure ignored;
	size_t held = evbuffer_get_length(*buffer);
	size_t moved = 0, most = allow(stream, meter, held);

	if (!most)
		return STEP_REST;
	sink->is_last = most == held && all_ended(stream);
	enum endpoint_result result = sink->kind->write(sink, *buffer, most, &moved, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	pay(meter, moved);
	if (has_filters(stream))
		stream->filtered_budget -= lesser(moved, stream->filtered_budget);
	if (moved) {
		stream->flow->bytes += moved;
		stream->moved = true;
		/* Where there was room already, more of it is nothing new to the filters. */
		stream->progress |= held >= PUMP_CAPPED_ROOM_BYTES;
	}
	/* Not all of it may have been allowed, or have gone into one write. */
	if (moved < held)
		return sink->writable ? STEP_ON : rest_unwritable(stream);
	pump_stream_drop(stream->pump, buffer);
	return STEP_ON;
}

enum step
pump_stream_drain(struct stream *stream)
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
	if (pump_stream_need(stream->pump, &waste, why) < 0)
		return STEP_BROKEN;
	enum endpoint_result result = source->kind->read(source, waste, most, &moved, why);
	pump_stream_drop(stream->pump, &waste);
	pay(stream->source->in_meter, moved);
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	/* No movement, for the deadlines' sake: a peer that talks on for ever is not listened to for ever. */
	stream->budget -= lesser(moved, stream->budget);
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
	most = allow_also(stream, in, out, most);
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
	if (seen < most)
		flow->source_ended = endpoint_is_at_end(&stream->source->endpoint);

	size_t may = allow(stream, out, seen);
	if (may) {
		stream->sink->endpoint.is_last = flow->source_ended && may == seen;
		result = endpoint_send(&stream->sink->endpoint, scratch, may, &sent, &ignored);
	}
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	pay(out, sent);
	count(stream, sent);
	if (sent < seen &&
	    (pump_stream_need(stream->pump, &flow->store, why) < 0 ||
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
		if (result == ENDPOINT_BROKEN)
			return STEP_BROKEN;
		if (result == ENDPOINT_WAIT && source->readable) {
			stream->pump->may_splice = false; /* not with these sockets */
			return STEP_ON;
		}
		/* A splice stops in front of urgent data as if nothing else were there, or nothing more came:
		 * only a read gets past it, and knows. */
		flow->long_reads = 0;
		source->readable = true;
		return STEP_ON;
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

/* Bulk is of a flow that alone speaks, and long since; a piece of it is all that its socket had. If a rest of the
 * worker gave it no more than one, its sender is the slower of the two, and resting is of no use for a while. */
static void
note_read(struct stream *stream, size_t most, size_t seen)
{
	struct flow *flow = stream->flow;
	bool is_bulk = flow->bulk_reads == BULK_READS;

	stream->other->bulk_reads = 0;
	stream->other->was_bulk = false;
	if (flow->was_bulk)
		stream->run = LOOP_RUN_BULK;
	if (seen < PIECE_BYTES ||
	    (is_bulk && stream->pump->loop->has_rested && seen < 2 * PIECE_BYTES)) {
		flow->bulk_reads = 0;
	} else if (!is_bulk) {
		flow->bulk_reads++;
		flow->was_bulk |= flow->bulk_reads == BULK_READS;
	} else if (seen < most && seen < ENOUGH_BYTES) {
		stream->run = LOOP_RUN_PIECE;
	}
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
	if (most > METERED_READ_BYTES && stream->flow->large_takes < LARGE_TAKES &&
	    (stream->sink->out_meter || pump_stream_is_core_metered(stream)))
		most = METERED_READ_BYTES;
	if (most > PUMP_STORE_BYTES - pump_stream_length(*buffer))
		most = PUMP_STORE_BYTES - pump_stream_length(*buffer);
	most = allow(stream, in, most);
	if (!most)
		return STEP_REST;
	if (pump_stream_need(stream->pump, buffer, why) < 0)
		return STEP_BROKEN;
	enum endpoint_result result = source->kind->read(source, *buffer, most, &moved, why);
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	if (endpoint_is_socket(source))
		note_read(stream, most, moved);
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
	size_t bytes = allow(stream, stream->core[0], pump_stream_length(flow->store));

	bytes = allow_also(stream, stream->core[0], stream->core[1], bytes);
	if (!bytes)
		return STEP_REST;
	if (pump_stream_need(stream->pump, &flow->paid, why) < 0)
		return STEP_BROKEN;
	if (buffer_move(flow->store, flow->paid, bytes) != bytes) {
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
	if (has_filters(stream) || pump_stream_is_core_metered(stream) ||
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
	if (!pump_stream_is_over(stream->other))
		sink->kind->shutdown(sink);
	stream->flow->state = FLOW_ENDED;
}

/* Whether reading more would only pile it up: the sink does not take what there is. */
static bool
is_full(struct stream *stream)
{
	if (has_filters(stream) || pump_stream_is_core_metered(stream))
		return pump_stream_length(stream->flow->store) >= PUMP_STORE_BYTES ||
		       pump_stream_length(*first(stream)) >= PUMP_STORE_BYTES;
	return !stream->sink->endpoint.writable;
}

enum step
pump_stream_step(struct stream *stream, struct failure *why)
{
	struct flow *flow = stream->flow;

	if (flow->state == FLOW_ENDED)
		return STEP_REST;
	if (stream->pump->owed_bytes && !settle(stream))
		return STEP_REST;
	if (flow->pipe || pump_stream_length(*pump_stream_last(stream)))
		/* What filters have made of a few bytes may be a thousand times as much. */
		return stream->filtered_budget ? pump_stream_drain(stream)
					       : rest(stream, WAIT_TURN);
	if (pump_stream_is_core_metered(stream) && pump_stream_length(flow->store) &&
	    !pump_stream_length(flow->paid) && flow->state == FLOW_OPEN)
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
	if (flow->state == FLOW_CUT || pump_stream_core_ended(stream))
		return discard(stream, why);
	if (is_full(stream))
		return rest_unwritable(stream);
	return fill(stream, why);
}

struct stream
pump_stream_begin(struct pump *pump, enum pump_flow name)
{
	struct side *source = &pump->side[name == FLOW_UP ? SIDE_NEAR : SIDE_FAR];
	struct side *sink = &pump->side[name == FLOW_UP ? SIDE_FAR : SIDE_NEAR];

	struct stream stream = {
		.pump = pump,
		.flow = &pump->flow[name],
		.other = &pump->flow[name == FLOW_UP ? FLOW_DOWN : FLOW_UP],
		.source = source,
		.sink = sink,
		.core = { source->core_meter[name], sink->core_meter[name] },
		.unreadable = name == FLOW_UP ? WAIT_NEAR_READABLE : WAIT_FAR_READABLE,
		.unwritable = name == FLOW_UP ? WAIT_FAR_WRITABLE : WAIT_NEAR_WRITABLE,
		.budget = TURN_BYTES,
		.filtered_budget = TURN_BYTES,
	};
	obey_core_meters(&stream);
	return stream;
}
