/*
 * pump_stream: one direction of a pump, from its source's endpoint to its sink's, for the length of one run. A step
 * moves what is held, or passes the end on, or reads more. For pump.c alone.
 */
#ifndef PENSTOCK_PUMP_STREAM_H
#define PENSTOCK_PUMP_STREAM_H

#include "pump.h"

#include <event2/buffer.h>

/* The room that a filter has at the cap: its largest record fits. */
#define PUMP_CAPPED_ROOM_BYTES ((size_t)16 * 1024)
/* The most that waits in one buffer of a connection, give or take a record (filter.h, rule 2). */
#define PUMP_STORE_BYTES BLOCK_BYTES

/* One flow, with the sides it runs between, for the length of one run. */
struct stream {
	struct pump *pump;
	struct flow *flow;
	struct flow *other;
	struct side *source, *sink;
	struct meter *core[2]; /* of the source's side, and of the sink's */
	const struct meter
		*waits_for;        /* whose limit ended the last step; NULL = something else did */
	const struct meter *keeps; /* has paid for the same bytes meanwhile; NULL = none */
	enum wait unreadable, unwritable; /* what waiting for them is called */
	size_t budget;                    /* that may be read in this run */
	size_t filtered_budget;           /* that may be written in it, of what filters have made */
	bool wants_read, wants_write;     /* the events that would wake it */
	enum loop_run run;                /* what reading was */
	bool moved;                       /* in this run */
	bool progress;                    /* since the stacks were stepped last */
};

enum step {
	STEP_ON,   /* something changed: go on */
	STEP_REST, /* nothing can move now; flow->waiting says why */
	STEP_BROKEN,
};

static inline bool
pump_stream_is_over(const struct flow *flow)
{
	return flow->state == FLOW_ENDED || (flow->state == FLOW_CUT && flow->source_ended);
}

static inline bool
pump_stream_is_core_metered(const struct stream *stream)
{
	return stream->core[0] || stream->core[1];
}

static inline size_t
pump_stream_length(const struct evbuffer *buffer)
{
	return buffer ? evbuffer_get_length(buffer) : 0;
}

/* Begins a run of a flow, under the limits that its sides have now. */
struct stream pump_stream_begin(struct pump *pump, enum pump_flow name);

/* The next step of a flow, in the order that keeps its bytes in order: what is held, the end, more. */
enum step pump_stream_step(struct stream *stream, struct failure *why);

/* Writes what waits in the pipe or in the last buffer; there is something. */
enum step pump_stream_drain(struct stream *stream);

/* The buffer with what may leave the core, and the one that writes come from: the core itself where no
 * filter is. */
struct evbuffer **pump_stream_leaving(struct stream *stream);
struct evbuffer **pump_stream_last(struct stream *stream);

/* Whether the flow's end has come out of the source's stack. */
bool pump_stream_core_ended(const struct stream *stream);

/* A buffer where there is none yet; fails without memory. And back. */
int pump_stream_need(struct pump *pump, struct evbuffer **buffer, struct failure *why);
void pump_stream_drop(struct pump *pump, struct evbuffer **buffer);
void pump_stream_drop_pipe(struct pump *pump, struct flow *flow);

#endif
