#include "stack.h"

#include "buffer.h"

#include <assert.h>
#include <event2/buffer.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One filter of the chain. `due`: something changed for that flow since it was last stepped. */
struct member {
	const struct filter_type *type;
	void *state; /* NULL = not opened, or closed after passing in both flows */
	bool due[FILTER_FLOWS];
	bool passed[FILTER_FLOWS];
};

/* A filter's place in one flow. */
struct place {
	struct member *member;
	struct evbuffer
		*waiting; /* for it, from the place before; NULL = nothing, or first place */
};

/* One flow through the filters that have not passed, in the order of the flow. */
struct path {
	struct place *places;
	size_t count;
	size_t ended; /* so many first places are over, the last of them by its FILTER_END */

	/* As the last stack_step left them: what differs at the next one is a change. */
	size_t left_bytes;
	bool had_room;
	enum filter_flush flush;
};

struct stack {
	struct path paths[FILTER_FLOWS];
	bool is_ready;
	size_t count;
	struct member members[]; /* wire first; behind them the places of both paths */
};

/* One call of stack_step. */
struct run {
	struct stack *stack;
	struct stack_flow *flows;
	struct failure *why;
	struct member *failed;
	bool moved;
};

int
stack_open(struct stack **out, const struct chain *chain, enum filter_side side,
	   struct facts *facts, struct failure *why)
{
	*out = NULL;
	if (!chain->count)
		return 0;
	assert(chain->count <= CHAIN_FILTERS);

	size_t count = chain->count;
	struct stack *stack = calloc(1, sizeof(*stack) + count * sizeof(struct member) +
						2 * count * sizeof(struct place));
	if (!stack)
		return failure_set(why, FAILURE_MEMORY, "no memory for a stack of filters");
	stack->count = count;

	struct place *places = (struct place *)(stack->members + count);
	stack->paths[FILTER_IN] = (struct path){ .places = places, .count = count };
	stack->paths[FILTER_OUT] = (struct path){ .places = places + count, .count = count };
	for (size_t i = 0; i < count; i++) {
		struct member *member = &stack->members[i];
		member->type = chain->at[i].type;
		member->due[FILTER_IN] = member->due[FILTER_OUT] = true;
		stack->paths[FILTER_IN].places[i].member = member;
		stack->paths[FILTER_OUT].places[count - 1 - i].member = member;
		member->state = member->type->open(chain->at[i].conf, side, facts, why);
		if (!member->state)
			goto fail;
	}
	*out = stack;
	return 0;
fail:
	stack_close(stack);
	return -1;
}

void
stack_abandon(struct stack *stack, enum failure_kind kind)
{
	for (size_t i = 0; stack && i < stack->count; i++) {
		struct member *member = &stack->members[i];
		if (member->state && member->type->abandon)
			member->type->abandon(member->state, kind);
	}
}

void
stack_close(struct stack *stack)
{
	if (!stack)
		return;
	for (size_t i = 0; i < stack->count; i++) {
		if (stack->members[i].state)
			stack->members[i].type->close(stack->members[i].state);
	}
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		for (size_t i = 0; i < stack->paths[flow].count; i++) {
			if (stack->paths[flow].places[i].waiting)
				evbuffer_free(stack->paths[flow].places[i].waiting);
		}
	}
	free(stack);
}

static void
forget_waiting(struct place *place)
{
	if (place->waiting)
		evbuffer_free(place->waiting);
	place->waiting = NULL;
}

/* The buffer in front of places[at]; behind the last place there is dst. */
static struct evbuffer *
buffer_before(struct path *path, const struct stack_flow *ends, size_t at)
{
	if (at == 0)
		return ends->src;
	if (at == path->count)
		return ends->dst;
	if (!path->places[at].waiting)
		path->places[at].waiting = evbuffer_new();
	return path->places[at].waiting;
}

static enum filter_flush
flush_at(const struct path *path, const struct stack_flow *ends, size_t at)
{
	if (at == 0)
		return ends->flush;
	if (at == path->ended)
		return FILTER_FINISHED;
	return ends->flush == FILTER_NORMAL ? FILTER_NORMAL : FILTER_FLUSH;
}

static size_t
lesser(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* Tells the neighbours of places[at] what its step changed for them. */
static void
wake(struct run *run, enum filter_flow flow, size_t at, size_t had_bytes, size_t left_bytes,
     size_t given_bytes)
{
	struct path *path = &run->stack->paths[flow];
	if (had_bytes == left_bytes && !given_bytes)
		return;
	run->moved = true;
	path->places[at].member->due[!flow] = true;
	if (given_bytes && at + 1 < path->count)
		path->places[at + 1].member->due[flow] = true;
	if (at > path->ended && had_bytes >= STACK_BETWEEN_BYTES &&
	    left_bytes < STACK_BETWEEN_BYTES)
		path->places[at - 1].member->due[flow] = true;
}

/* places[at] has reported its end: what stands before it in the flow is over with it. */
static void
end_place(struct path *path, enum filter_flow flow, size_t at)
{
	for (size_t i = path->ended; i <= at; i++)
		forget_waiting(&path->places[i]);
	path->ended = at + 1;
	if (path->ended < path->count)
		path->places[path->ended].member->due[flow] = true;
}

/* places[at] has passed: takes it out of the flow. What waits for it joins what waits behind it. */
static void
drop_place(struct run *run, enum filter_flow flow, size_t at)
{
	struct path *path = &run->stack->paths[flow];
	struct stack_flow *ends = &run->flows[flow];
	struct place *place = &path->places[at], *next = place + 1;
	bool is_last = at + 1 == path->count;

	if (at == 0 && !is_last && next->waiting) {
		evbuffer_prepend_buffer(ends->src, next->waiting);
		forget_waiting(next);
	} else if (place->waiting && !is_last && next->waiting) {
		evbuffer_add_buffer(next->waiting, place->waiting);
	} else if (place->waiting && !is_last) {
		next->waiting = place->waiting;
		place->waiting = NULL;
	} else if (place->waiting) {
		size_t length = evbuffer_get_length(place->waiting);
		ends->room_bytes -= lesser(ends->room_bytes, length);
		evbuffer_add_buffer(ends->dst, place->waiting);
	}
	forget_waiting(place);

	if (!is_last)
		next->member->due[flow] = true;
	if (at > path->ended)
		path->places[at - 1].member->due[flow] = true;
	struct member *member = place->member;
	memmove(place, next, (path->count - at - 1) * sizeof(*place));
	path->count--;
	run->moved = true;

	member->passed[flow] = true;
	if (member->passed[!flow]) {
		member->type->close(member->state);
		member->state = NULL;
	}
}

static int
step_place(struct run *run, enum filter_flow flow, size_t at)
{
	struct path *path = &run->stack->paths[flow];
	struct stack_flow *ends = &run->flows[flow];
	struct member *member = path->places[at].member;
	bool is_last = at + 1 == path->count;
	struct filter_io io = {
		.src = buffer_before(path, ends, at),
		.dst = buffer_before(path, ends, at + 1),
		.flush = flush_at(path, ends, at),
		.why = run->why,
	};
	run->failed = member;
	if (!io.src || !io.dst)
		return failure_set(run->why, FAILURE_MEMORY, "no memory between filters");

	size_t had_src = evbuffer_get_length(io.src), had_dst = evbuffer_get_length(io.dst);
	io.room_bytes = is_last                         ? ends->room_bytes
			: had_dst < STACK_BETWEEN_BYTES ? STACK_BETWEEN_BYTES - had_dst
							: 0;
	enum filter_result result = member->type->step(member->state, flow, &io);
	size_t left_src = evbuffer_get_length(io.src),
	       given = evbuffer_get_length(io.dst) - had_dst;
	assert(left_src <= had_src);

	if (is_last)
		ends->room_bytes -= lesser(ends->room_bytes, given);
	wake(run, flow, at, had_src, left_src, given);
	member->due[flow] = result == FILTER_MORE && (left_src < had_src || given);

	if (result == FILTER_END)
		end_place(path, flow, at);
	else if (result == FILTER_PASS)
		drop_place(run, flow, at);
	return result == FILTER_FAIL ? -1 : 0;
}

/* Steps once each filter of the flow that is due and stands nearer to the wire than `limit`. One
 * step each, not one filter until it rests: a small piece moves on before the next is made.
 * Returns whether any was stepped, or -1. */
static int
sweep(struct run *run, enum filter_flow flow, const struct member *limit)
{
	struct path *path = &run->stack->paths[flow];
	int stepped = 0;
	for (size_t at = path->ended; at < path->count; at++) {
		struct member *member = path->places[at].member;
		if (!member->due[flow] || member >= limit)
			continue;
		if (step_place(run, flow, at))
			return -1;
		stepped = 1;
	}
	return stepped;
}

/* A filter has failed and may have left an alert behind: the filters between it and the wire carry
 * that out, as far as there is room. */
static void
carry_last_words(const struct run *failed)
{
	struct failure ignored;
	struct run run = *failed;
	const struct member *limit = failed->failed;
	struct stack_flow *out = &run.flows[FILTER_OUT];
	enum filter_flush flush = out->flush;

	run.why = &ignored;
	if (flush == FILTER_NORMAL) {
		out->flush = FILTER_FLUSH;
		for (struct member *member = run.stack->members; member < limit; member++)
			member->due[FILTER_OUT] = true;
	}
	while (sweep(&run, FILTER_OUT, limit) > 0)
		;
	out->flush = flush;
}

/* A flow without filters. Returns whether anything moved, or -1. */
static int
pass_on(struct stack_flow *ends, struct failure *why)
{
	size_t length = ends->src == ends->dst ? 0 : evbuffer_get_length(ends->src);
	size_t moving = lesser(length, ends->room_bytes);
	if (moving && length - moving <= FILTER_RECORD_BYTES) {
		moving = length; /* whole chains go without a copy */
		evbuffer_add_buffer(ends->dst, ends->src);
	} else if (moving) {
		if (buffer_move(ends->src, ends->dst, moving) != moving)
			return failure_set(why, FAILURE_MEMORY, "no memory to pass bytes on");
	}
	ends->room_bytes -= lesser(ends->room_bytes, moving);
	ends->ended = ends->flush == FILTER_FINISHED && moving == length;
	return moving != 0;
}

/* Marks the filters for which the caller has changed something since the last call (rule 3). */
static void
mark_due(struct path *path, enum filter_flow flow, const struct stack_flow *ends)
{
	if (path->ended == path->count)
		return;
	if (path->flush == FILTER_NORMAL && ends->flush != FILTER_NORMAL) {
		for (size_t at = path->ended; at < path->count; at++)
			path->places[at].member->due[flow] = true;
	}
	if (!path->ended &&
	    (ends->flush > path->flush || evbuffer_get_length(ends->src) != path->left_bytes))
		path->places[0].member->due[flow] = true;
	if (!path->had_room && ends->room_bytes)
		path->places[path->count - 1].member->due[flow] = true;
}

/* Remembers what the caller gets back, and lets go of buffers that hold nothing. */
static void
settle(struct path *path, struct stack_flow *ends)
{
	for (size_t at = path->ended; at < path->count; at++) {
		struct place *place = &path->places[at];
		if (place->waiting && !evbuffer_get_length(place->waiting))
			forget_waiting(place);
	}
	path->left_bytes = evbuffer_get_length(ends->src);
	path->had_room = ends->room_bytes != 0;
	path->flush = ends->flush;
	if (path->count)
		ends->ended = path->ended == path->count;
}

enum stack_result
stack_step(struct stack *stack, struct stack_flow flows[FILTER_FLOWS], struct failure *why)
{
	struct run run = { .stack = stack, .flows = flows, .why = why };
	int stepped[FILTER_FLOWS] = { 0 };

	if (stack) {
		mark_due(&stack->paths[FILTER_IN], FILTER_IN, &flows[FILTER_IN]);
		mark_due(&stack->paths[FILTER_OUT], FILTER_OUT, &flows[FILTER_OUT]);
		const struct member *limit = stack->members + stack->count;
		do {
			stepped[FILTER_IN] = sweep(&run, FILTER_IN, limit);
			if (stepped[FILTER_IN] >= 0)
				stepped[FILTER_OUT] = sweep(&run, FILTER_OUT, limit);
			if (stepped[FILTER_IN] < 0 || stepped[FILTER_OUT] < 0)
				goto fail;
		} while (stepped[FILTER_IN] || stepped[FILTER_OUT]);
	}
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		if (stack_is_empty(stack, (enum filter_flow)flow)) {
			int passed = pass_on(&flows[flow], why);
			if (passed < 0)
				return STACK_FAILED;
			run.moved |= passed;
		}
		if (stack)
			settle(&stack->paths[flow], &flows[flow]);
	}
	return run.moved ? STACK_MOVED : STACK_REST;
fail:
	carry_last_words(&run);
	return STACK_FAILED;
}

const char *
stack_unready(const struct stack *stack)
{
	for (size_t i = 0; stack && i < stack->count; i++) {
		const struct member *member = &stack->members[i];
		if (member->state && member->type->ready && !member->type->ready(member->state))
			return member->type->name;
	}
	return "";
}

bool
stack_is_ready(struct stack *stack)
{
	if (!stack || stack->is_ready)
		return true;
	return stack->is_ready = !*stack_unready(stack);
}

bool
stack_is_empty(const struct stack *stack, enum filter_flow flow)
{
	return !stack || !stack->paths[flow].count;
}

size_t
stack_kept_bytes(const struct stack *stack)
{
	size_t kept = 0;
	if (!stack)
		return 0;
	for (size_t i = 0; i < stack->count; i++) {
		const struct member *member = &stack->members[i];
		if (member->state && member->type->kept)
			kept += member->type->kept(member->state);
	}
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		for (size_t at = 0; at < stack->paths[flow].count; at++) {
			if (stack->paths[flow].places[at].waiting)
				kept += evbuffer_get_length(stack->paths[flow].places[at].waiting);
		}
	}
	return kept;
}

size_t
stack_held_bytes(const struct stack *stack)
{
	size_t held = 0;
	for (size_t i = 0; stack && i < stack->count; i++) {
		const struct member *member = &stack->members[i];
		if (member->state && member->type->held)
			held += member->type->held(member->state);
	}
	return held;
}
