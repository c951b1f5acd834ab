/*
 * stack: the filters of one side, live. It alone decides which filter is stepped next and keeps
 * the rules of filter.h that are not the filters' own. It holds no socket, time or limit; its
 * caller (the pump) owns the four buffers at its ends.
 *
 * NULL is the empty chain's stack: every function takes it, in O(1), and bytes are passed on as
 * they are. All calls of one stack come from one thread; none calls back.
 */
#ifndef PENSTOCK_STACK_H
#define PENSTOCK_STACK_H

#include "filter.h"

struct chain_link {
	const struct filter_type *type;
	const void *conf; /* NULL if type->conf_bytes is 0 */
};

/* A side's configured filters, wire first. It and its confs outlive every stack opened from it. */
struct chain {
	struct chain_link *at;
	size_t count; /* at most CHAIN_FILTERS */
};
#define CHAIN_FILTERS 32

/* The most bytes that wait between two filters of one flow, give or take a FILTER_RECORD_BYTES. */
#define STACK_BETWEEN_BYTES (64 * 1024)

struct stack;

/* One flow at the stack's two ends, for one call. */
struct stack_flow {
	struct evbuffer *src; /* FILTER_IN: from the wire. FILTER_OUT: from the core */
	struct evbuffer *dst; /* FILTER_IN: to the core. FILTER_OUT: to the wire */

	/* How much dst may grow; on return what is left of it. dst may grow past it by
	 * FILTER_RECORD_BYTES and, once for each filter that passes, by what waited for it. */
	size_t room_bytes;

	/* FILTER_FLUSH when src has run dry for now, FILTER_FINISHED once it has ended (from then
	 * on it stays so); the stack sees to it that an end reaches each filter after the last
	 * byte. */
	enum filter_flush flush;

	/* Set unless the call fails: dst gets no more bytes. What still comes in src is not taken
	 * any more and is the caller's to throw away. Once true it stays true. */
	bool ended;
};

enum stack_result {
	STACK_REST,   /* nothing could move */
	STACK_MOVED,  /* something did, at the ends or inside; again nothing can move */
	STACK_FAILED, /* *why is filled; only stack_close may follow */
};

/* Opens all filters of the chain. *stack is NULL for an empty one. The facts outlive the stack. */
int stack_open(struct stack **stack, const struct chain *chain, enum filter_side side,
	       struct facts *facts, struct failure *why);

/* Steps the filters of both flows (flows[FILTER_IN], flows[FILTER_OUT]) until all rest: call it
 * after every change of a source, a room or an end, and once after stack_open. A call without a
 * change steps nothing. src and dst may differ from call to call; what was left in a src is
 * expected again at its front, and nothing but this function takes from it. In a flow where
 * stack_is_empty, src and dst may be one buffer, and otherwise never are. On STACK_FAILED
 * flows[FILTER_OUT].dst may hold last words for the peer (a TLS alert). */
enum stack_result stack_step(struct stack *stack, struct stack_flow flows[FILTER_FLOWS],
			     struct failure *why);

/* Whether all opening exchanges are over: the far side may be connected. While not, a flow that
 * can neither read nor write its wire waits for a handshake. O(1) once true. */
bool stack_is_ready(struct stack *stack);

/* The name of the first filter, from the wire, whose opening exchange is not over; "" = all are. */
const char *stack_unready(const struct stack *stack);

/* Whether no filter is left in that flow (empty chain, or all have passed) and the stack holds
 * nothing of it: the caller may use one buffer, or splice. When it is so for both flows the stack
 * may be closed and NULL take its place. Once true it stays true. */
bool stack_is_empty(const struct stack *stack, enum filter_flow flow);

/* Bytes of both flows that wait inside: between filters and in them. */
size_t stack_kept_bytes(const struct stack *stack);

/* Bytes of memory with which its filters work, beside those. */
size_t stack_held_bytes(const struct stack *stack);

/* The connection ends, and why, as far as the stack's own peer is concerned: filters that are not ready may
 * count it. Only stack_close comes after. NULL is allowed. */
void stack_abandon(struct stack *stack, enum failure_kind kind);

void stack_close(struct stack *stack);

#endif
