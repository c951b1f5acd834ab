/*
 * pump: moves the bytes of one connection. Two sides, each an endpoint and a stack of filters, meet in
 * the core; two flows cross it. One call moves everything that can move and leaves each flow waiting
 * for exactly one thing. It is called again after every change of state, from its owner's thread and
 * never from inside itself. What an end or a failure means for the connection is its owner's affair.
 */
#ifndef PENSTOCK_PUMP_H
#define PENSTOCK_PUMP_H

#include "endpoint.h"
#include "loop.h"
#include "meter.h"
#include "stack.h"

enum pump_side { SIDE_NEAR, SIDE_FAR };
enum pump_flow { FLOW_UP, FLOW_DOWN }; /* FLOW_UP begins at SIDE_NEAR, FLOW_DOWN at SIDE_FAR */

enum flow_state {
	FLOW_OPEN,
	FLOW_ENDED, /* its end was passed on, behind its last byte */
	FLOW_CUT,   /* its sink takes nothing any more; what still comes is read and dropped */
};

struct flow {
	struct waiting waiting;   /* what it waits for now; published to the partner of a pair */
	uint64_t spent_ns[WAITS]; /* how long it has waited for each, until pump.clock_ns */
	uint64_t since_ns;        /* when it last moved, or began to wait for what it waits for */
	uint64_t bytes;           /* that the sink took */
	uint64_t read_bytes;      /* that the source gave */
	struct evbuffer *store;   /* read and not yet passed on; NULL = nothing */
	struct evbuffer
		*paid; /* the same, where the core is metered: past those meters; NULL = nothing */
	struct pipe *pipe;    /* the same, in the kernel; NULL = nothing */
	uint8_t state;        /* enum flow_state */
	bool source_ended;    /* the source's end was read */
	bool is_core_metered; /* as the last run had it */
	uint8_t long_reads;   /* in a row: two make it bulk */
	uint8_t bulk_reads;   /* through filters, in a row, while the other flow said nothing */
	bool was_bulk; /* it had so many of them, and the other flow has said nothing since */
	uint8_t short_splices; /* in a row: some make it no bulk any more */
	uint8_t large_takes;   /* in a row, that its meters let through whole */
};

struct side {
	struct endpoint endpoint; /* kind NULL = not there yet */
	/* What is read and written here, and what crosses the core on behalf of this side (by enum
	 * pump_flow); the owner's, NULL = not metered. */
	struct meter *in_meter, *out_meter, *core_meter[2];
	struct stack *stack;      /* NULL = no filter, or all have passed */
	struct evbuffer *in;      /* read, and not yet through the stack; NULL = nothing */
	struct evbuffer *out;     /* through the stack, and not yet written; NULL = nothing */
	bool in_ended, out_ended; /* what the stack said of its flows */
	bool rests; /* the stack was left at rest by a run: only reading and writing wake it */
};

struct pump {
	struct loop *loop;
	struct side side[2];
	struct flow flow[2];
	struct task
		turn; /* queued while a flow that no event would wake waits for the worker's turn */
	uint64_t clock_ns; /* up to when the waits are accounted */
	/* What its filters have made and what has left a pair, for as long as it waits, and what filters hold
	 * to work with. In the loop's kept_bytes, too. */
	size_t kept_bytes;
	size_t owed_bytes; /* read under a front; charged to the limit that it then has, before all else */
	/* While it is under a front: what its flows wait for, WAIT_CHOICE or WAIT_HANDSHAKE; else 0. */
	uint8_t front;
	bool may_splice;
	bool moved;          /* whether the last run moved a byte */
	uint8_t broken_side; /* valid after PUMP_BROKEN */
	bool filter_failed;  /* the same: not the endpoint but a filter of that side broke */
};

enum pump_result {
	PUMP_GOING,
	PUMP_ENDED, /* both flows are over and nothing can come any more: close both sides */
	PUMP_BROKEN, /* broken_side is gone and its flow was cut, *why says how: the other side is to be
			reset, after pump_push */
};

/* Begins a pump at time now_ns, zeroed before, with nothing opened: both flows wait for `cause`. The
 * owner opens the endpoints and sets their owner and on_ready; the stacks, once given, are the pump's.
 * pump_run may be called with the near side alone, for its handshakes. turn.run is the owner's, too: it
 * is to call pump_run. */
void pump_open(struct pump *pump, struct loop *loop, enum wait cause, uint64_t now_ns);

/* Moves what can move, at most a bounded number of bytes. Costs two looks at the clock beside the system
 * calls that move bytes. After a result other than PUMP_GOING it is not called again. */
enum pump_result pump_run(struct pump *pump, struct failure *why);

/* After PUMP_BROKEN: passes on what was read from the broken side, through the filters and as far as the other
 * side takes it now. */
void pump_push(struct pump *pump);

/* Sets what both flows wait for while the pump does not run, accounting the time so far. */
void pump_wait(struct pump *pump, enum wait cause, uint64_t now_ns);

/* Accounts the time up to now, for a report in between. */
void pump_account(struct pump *pump, uint64_t now_ns);

/* Takes back what has come through the near side's stack, which has passed: it is closed, and a new one
 * may be given to work on those bytes again. */
void pump_unread(struct pump *pump);

/* Whether the filters' handshakes are not done yet: of the sides whose stacks are open. */
bool pump_is_handshaking(const struct pump *pump);

/* Whether one flow is over and the other is not. */
bool pump_is_half_open(const struct pump *pump);

/* What a flow waits for, and behind pairs what their other ends' flows do. */
struct waiting pump_waiting(const struct pump *pump, enum pump_flow name);

/* Whether some flow waits for a limit of its own. */
bool pump_is_limited(const struct pump *pump);

/* Whether some flow whose bytes are still of use waits for a limit, its own or, behind pairs, another's. */
bool pump_is_held_up(const struct pump *pump);

/* Whether some flow waits for an endpoint to take bytes. */
bool pump_is_blocked(const struct pump *pump);

/* Frees what flows hold and the stacks; endpoints are closed by the owner, before or after. */
void pump_close(struct pump *pump);

/* "near readable", "limit" ... static. */
const char *pump_wait_name(enum wait cause);

/* Writes the shares of the flow's time, largest first: "near readable 97.1%,moving 2.9%". Shares below
 * 0.05 % are left out. Returns text. */
#define PUMP_SHARES_TEXT 160
const char *pump_shares(const struct flow *flow, char text[PUMP_SHARES_TEXT]);

#endif
