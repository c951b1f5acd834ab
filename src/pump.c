#include "pump.h"

#include "clock.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <string.h>

/* The most one connection moves in one turn of its worker: a fast one must not starve the others. */
#define TURN_BYTES ((size_t)512 * 1024)
/* Two reads in a row of this much make a flow bulk: from then on it is spliced. */
#define LONG_READ_BYTES ((size_t)64 * 1024)
/* Splices below this, so many in a row, and it is copied again: small pieces are cheaper that way. */
#define SHORT_SPLICE_BYTES ((size_t)16 * 1024)
#define SHORT_SPLICES      4
/* What a flow at a pair may still read at the cap of the memory: it has no kernel to leave bytes in. */
#define PAIR_READ_BYTES ((size_t)1024)

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

/* One flow, with the endpoints it runs between, for the length of one run. */
struct stream {
	struct pump *pump;
	struct flow *flow;
	const struct flow *other;
	struct endpoint *source, *sink;
	enum wait unreadable, unwritable; /* what waiting for them is called */
	size_t budget;
	bool moved;
};

enum step {
	STEP_ON,   /* something changed: go on */
	STEP_REST, /* nothing can move now; flow->waiting says why */
	STEP_BROKEN,
};

static enum step
rest(struct stream *stream, enum wait cause)
{
	stream->flow->waiting.cause = cause;
	return STEP_REST;
}

static bool
is_over(const struct flow *flow)
{
	return flow->state == FLOW_ENDED || (flow->state == FLOW_CUT && flow->source_ended);
}

static bool
holds_bytes(const struct flow *flow)
{
	return flow->pipe || flow->store;
}

static void
drop_held(struct pump *pump, struct flow *flow)
{
	if (flow->store) {
		evbuffer_free(flow->store);
		flow->store = NULL;
	}
	if (flow->pipe) {
		loop_give_pipe(pump->loop, flow->pipe);
		flow->pipe = NULL;
	}
}

/* The sink takes nothing any more. What its peer sent before that is still to be read to its end, so
 * the flow that comes from there is woken; what comes from the source is read and dropped. */
static void
cut(struct stream *stream)
{
	stream->flow->state = FLOW_CUT;
	drop_held(stream->pump, stream->flow);
	stream->sink->readable = true;
	stream->moved = true;
}

static int
keep(struct stream *stream, const char *from, size_t bytes, struct failure *why)
{
	struct flow *flow = stream->flow;
	if (!flow->store) {
		flow->store = evbuffer_new();
		if (!flow->store)
			return failure_set(why, FAILURE_MEMORY, "no memory to keep %zu bytes",
					   bytes);
	}
	return loop_keep(stream->pump->loop, flow->store, from, bytes, why);
}

static void
count(struct stream *stream, size_t bytes)
{
	stream->flow->bytes += bytes;
	stream->moved = true;
}

static void
spend(struct stream *stream, size_t bytes)
{
	stream->budget -= bytes < stream->budget ? bytes : stream->budget;
}

/* What a read that moved nothing means. */
static enum step
not_read(struct stream *stream, enum endpoint_result result)
{
	switch (result) {
	case ENDPOINT_END:
		stream->flow->source_ended = true;
		stream->moved = true;
		return STEP_ON;
	case ENDPOINT_BROKEN:
		return STEP_BROKEN;
	case ENDPOINT_MOVED:
	case ENDPOINT_WAIT:
		break;
	}
	return rest(stream, stream->unreadable);
}

static enum step
drain_pipe(struct stream *stream)
{
	struct flow *flow = stream->flow;
	struct failure ignored;
	size_t moved;

	enum endpoint_result result =
		endpoint_splice_out(stream->sink, flow->pipe, &moved, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	count(stream, moved);
	if (flow->pipe->held_bytes)
		return rest(stream, stream->unwritable);
	loop_give_pipe(stream->pump->loop, flow->pipe);
	flow->pipe = NULL;
	return STEP_ON;
}

static enum step
drain_store(struct stream *stream)
{
	struct flow *flow = stream->flow;
	struct failure ignored;
	size_t moved = 0;

	enum endpoint_result result =
		stream->sink->kind->write(stream->sink, flow->store, SIZE_MAX, &moved, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	if (moved)
		count(stream, moved);
	if (evbuffer_get_length(flow->store))
		return rest(stream, stream->unwritable);
	evbuffer_free(flow->store);
	flow->store = NULL;
	return STEP_ON;
}

static enum step
drain(struct stream *stream)
{
	if (!stream->sink->writable)
		return rest(stream, stream->unwritable);
	return stream->flow->pipe ? drain_pipe(stream) : drain_store(stream);
}

/* Reads what nobody wants any more, so that the peer's last bytes are not answered by a reset. */
static enum step
discard(struct stream *stream, struct failure *why)
{
	struct evbuffer *waste = evbuffer_new();
	size_t moved = 0;
	enum endpoint_result result = ENDPOINT_BROKEN;

	if (waste) {
		result =
			stream->source->kind->read(stream->source, waste, BLOCK_BYTES, &moved, why);
		evbuffer_free(waste);
	} else {
		failure_set(why, FAILURE_MEMORY, "no memory to read");
	}
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	spend(stream, moved);
	return STEP_ON;
}

/* At the cap of the memory nothing may be kept: the bytes stay in the kernel until they are passed on. */
static enum step
copy_without_keeping(struct stream *stream, struct failure *why)
{
	struct failure ignored;
	size_t seen, sent;
	char *scratch = loop_scratch(stream->pump->loop);
	if (!scratch) {
		failure_set(why, FAILURE_MEMORY, "no memory to read");
		return STEP_BROKEN;
	}
	enum endpoint_result result =
		endpoint_peek(stream->source, scratch, BLOCK_BYTES, &seen, why);
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	result = endpoint_send(stream->sink, scratch, seen, &sent, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	endpoint_skip(stream->source, scratch, sent);
	spend(stream, sent);
	count(stream, sent);
	if (sent == seen)
		return STEP_ON;
	stream->source->readable = true;
	return rest(stream, stream->unwritable);
}

/* From socket to socket with no filter between: one read, one write, and no buffer unless the write
 * falls short. */
static enum step
copy(struct stream *stream, size_t most, struct failure *why)
{
	struct failure ignored;
	size_t seen, sent;
	char *scratch = loop_scratch(stream->pump->loop);
	if (!scratch) {
		failure_set(why, FAILURE_MEMORY, "no memory to read");
		return STEP_BROKEN;
	}
	enum endpoint_result result = endpoint_receive(stream->source, scratch, most, &seen, why);
	if (result != ENDPOINT_MOVED)
		return not_read(stream, result);
	spend(stream, seen);
	if (seen < LONG_READ_BYTES)
		stream->flow->long_reads = 0;
	else if (stream->flow->long_reads < 2)
		stream->flow->long_reads++;

	result = endpoint_send(stream->sink, scratch, seen, &sent, &ignored);
	if (result == ENDPOINT_BROKEN) {
		cut(stream);
		return STEP_ON;
	}
	count(stream, sent);
	if (sent < seen && keep(stream, scratch + sent, seen - sent, why) < 0)
		return STEP_BROKEN;
	return STEP_ON;
}

static enum step
splice_bulk(struct stream *stream, struct pipe *pipe, struct failure *why)
{
	struct flow *flow = stream->flow;
	size_t moved;

	enum endpoint_result result = endpoint_splice_in(stream->source, pipe, &moved, why);
	if (result != ENDPOINT_MOVED) {
		loop_give_pipe(stream->pump->loop, pipe);
		if (result == ENDPOINT_WAIT && stream->source->readable) {
			stream->pump->may_splice = false; /* not with these sockets */
			return STEP_ON;
		}
		return not_read(stream, result);
	}
	spend(stream, moved);
	flow->short_splices = moved < SHORT_SPLICE_BYTES ? (uint8_t)(flow->short_splices + 1) : 0;
	if (flow->short_splices >= SHORT_SPLICES) {
		flow->short_splices = 0;
		flow->long_reads = 0;
	}
	flow->pipe = pipe;
	return drain_pipe(stream);
}

/* Through buffers: where a pair is at one end. */
static enum step
fill_store(struct stream *stream, size_t most, struct failure *why)
{
	struct flow *flow = stream->flow;
	size_t moved = 0;

	if (!most)
		most = PAIR_READ_BYTES;
	flow->store = evbuffer_new();
	if (!flow->store) {
		failure_set(why, FAILURE_MEMORY, "no memory to read");
		return STEP_BROKEN;
	}
	enum endpoint_result result =
		stream->source->kind->read(stream->source, flow->store, most, &moved, why);
	if (result == ENDPOINT_MOVED) {
		spend(stream, moved);
		return STEP_ON;
	}
	evbuffer_free(flow->store);
	flow->store = NULL;
	return not_read(stream, result);
}

static enum step
fill(struct stream *stream, struct failure *why)
{
	struct pump *pump = stream->pump;
	size_t most = loop_read_most(pump->loop);

	if (most > stream->budget)
		most = stream->budget;
	if (!endpoint_is_socket(stream->source) || !endpoint_is_socket(stream->sink))
		return fill_store(stream, most, why);
	if (pump->may_splice && stream->flow->long_reads >= 2) {
		struct pipe *pipe = loop_take_pipe(pump->loop);
		if (pipe)
			return splice_bulk(stream, pipe, why);
	}
	return most ? copy(stream, most, why) : copy_without_keeping(stream, why);
}

static void
pass_end(struct stream *stream)
{
	/* If the other flow is over as well, closing the sink says the same, without a call of its own. */
	if (!is_over(stream->other))
		stream->sink->kind->shutdown(stream->sink);
	stream->flow->state = FLOW_ENDED;
}

/* The next step of a flow, in the order that keeps its bytes in order: what is held, the end, more. */
static enum step
step(struct stream *stream, struct failure *why)
{
	struct flow *flow = stream->flow;

	if (flow->state == FLOW_ENDED)
		return STEP_REST;
	if (holds_bytes(flow))
		return drain(stream);
	if (flow->source_ended) {
		if (flow->state == FLOW_OPEN)
			pass_end(stream);
		return STEP_REST;
	}
	if (!stream->source->readable)
		return rest(stream, stream->unreadable);
	if (!stream->budget)
		return rest(stream, WAIT_TURN);
	if (flow->state == FLOW_CUT)
		return discard(stream, why);
	if (!stream->sink->writable)
		return rest(stream, stream->unwritable);
	return fill(stream, why);
}

static struct stream
stream_of(struct pump *pump, enum pump_flow name)
{
	return (struct stream){
		.pump = pump,
		.flow = &pump->flow[name],
		.other = &pump->flow[name == FLOW_UP ? FLOW_DOWN : FLOW_UP],
		.source = &pump->side[name == FLOW_UP ? SIDE_NEAR : SIDE_FAR].endpoint,
		.sink = &pump->side[name == FLOW_UP ? SIDE_FAR : SIDE_NEAR].endpoint,
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

void
pump_account(struct pump *pump, uint64_t now_ns)
{
	uint64_t elapsed_ns = now_ns - pump->clock_ns;
	account_flow(&pump->flow[FLOW_UP], pump->flow[FLOW_UP].waiting.cause, elapsed_ns);
	account_flow(&pump->flow[FLOW_DOWN], pump->flow[FLOW_DOWN].waiting.cause, elapsed_ns);
	pump->clock_ns = now_ns;
}

/* Runs both flows until neither can move. A flow that ends or is cut can wake the other one. */
static enum step
run_flows(struct stream streams[2], struct failure *why)
{
	bool again;

	do {
		again = false;
		for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
			struct stream *stream = &streams[name];
			uint8_t state_before = stream->flow->state;
			enum step next;
			while ((next = step(stream, why)) == STEP_ON)
				;
			if (next == STEP_BROKEN) {
				stream->pump->broken_side = name == FLOW_UP ? SIDE_NEAR : SIDE_FAR;
				return STEP_BROKEN;
			}
			again |= stream->flow->state != state_before;
		}
	} while (again);
	return STEP_REST;
}

static bool
waits(const struct flow *flow, enum wait cause)
{
	return !is_over(flow) && flow->waiting.cause == cause;
}

/* Asks the endpoints for the events that would end a wait, and for no others. */
static int
watch(struct stream streams[2], struct failure *why)
{
	struct pump *pump = streams[0].pump;

	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		struct stream *stream = &streams[name];
		bool turn = waits(stream->flow, WAIT_TURN);
		/* A socket with more to read says so by itself in the next turn. */
		stream->source->want_readable = turn || waits(stream->flow, stream->unreadable);
		stream->sink->want_writable = waits(stream->flow, stream->unwritable);
		if (turn && !endpoint_is_socket(stream->source))
			loop_run_later(pump->loop, &pump->turn);
	}
	if (streams[0].source->kind->watch(streams[0].source, why) < 0) {
		pump->broken_side = SIDE_NEAR;
		return -1;
	}
	if (streams[0].sink->kind->watch(streams[0].sink, why) < 0) {
		pump->broken_side = SIDE_FAR;
		return -1;
	}
	return 0;
}

enum pump_result
pump_run(struct pump *pump, struct failure *why)
{
	struct stream streams[2] = { stream_of(pump, FLOW_UP), stream_of(pump, FLOW_DOWN) };
	uint64_t began_ns = clock_now_ns();

	pump_account(pump, began_ns);
	enum step last = run_flows(streams, why);
	pump->moved = streams[FLOW_UP].moved || streams[FLOW_DOWN].moved;

	/* The time of a run is moving for the flow that moved, waiting for the other. */
	pump->clock_ns = clock_now_ns();
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		struct stream *stream = &streams[name];
		account_flow(stream->flow,
			     stream->moved ? WAIT_MOVING : stream->flow->waiting.cause,
			     pump->clock_ns - began_ns);
	}
	if (last == STEP_BROKEN)
		return PUMP_BROKEN;
	if (is_over(&pump->flow[FLOW_UP]) && is_over(&pump->flow[FLOW_DOWN]))
		return PUMP_ENDED;
	return watch(streams, why) < 0 ? PUMP_BROKEN : PUMP_GOING;
}

void
pump_push(struct pump *pump)
{
	enum pump_flow name = pump->broken_side == SIDE_NEAR ? FLOW_UP : FLOW_DOWN;
	struct stream stream = stream_of(pump, name);

	if (!stream.sink->kind || stream.flow->state != FLOW_OPEN)
		return;
	stream.sink->writable = true;
	while (holds_bytes(stream.flow) && drain(&stream) == STEP_ON)
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
}

void
pump_wait(struct pump *pump, enum wait cause, uint64_t now_ns)
{
	pump_account(pump, now_ns);
	pump->flow[FLOW_UP].waiting.cause = cause;
	pump->flow[FLOW_DOWN].waiting.cause = cause;
}

bool
pump_is_half_open(const struct pump *pump)
{
	return is_over(&pump->flow[FLOW_UP]) != is_over(&pump->flow[FLOW_DOWN]);
}

bool
pump_is_blocked(const struct pump *pump)
{
	return waits(&pump->flow[FLOW_UP], WAIT_FAR_WRITABLE) ||
	       waits(&pump->flow[FLOW_DOWN], WAIT_NEAR_WRITABLE);
}

void
pump_close(struct pump *pump)
{
	drop_held(pump, &pump->flow[FLOW_UP]);
	drop_held(pump, &pump->flow[FLOW_DOWN]);
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
