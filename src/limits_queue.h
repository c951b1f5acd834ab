/*
 * limits_queue: who is served when. Start-time fair queueing at every bucket: a waiting flow queues at its
 * bucket, a bucket with waiting children at its parent, in order of virtual time, so that the child that
 * had least for its weight is next. A bucket short of tokens leaves its parent's queue and comes back by
 * a timer. All under the lock.
 */
#ifndef PENSTOCK_LIMITS_QUEUE_H
#define PENSTOCK_LIMITS_QUEUE_H

#include "limits_bucket.h"

/* A zeroed queue becomes an empty one. */
void limits_queue_open(struct limits_queue *queue);

/* A zeroed bucket of a node becomes an empty one, full of tokens and without a parent. */
void limits_queue_init(struct limit_bucket *bucket, enum limit_direction direction, uint16_t weight,
		       uint64_t now_ns);

/* Hangs a child (a flow, or a bucket with all that hangs below it) at `parent`, NULL = nowhere, and takes
 * it away from where it hangs now. A flow must not wait. What it was served counts for nothing at the
 * new place. -1 without memory, and nothing has changed; never for NULL. */
int limits_queue_hang(struct limits_queue *queue, struct limit_child *child,
		      struct limit_bucket *parent, uint64_t now_ns);

/* Tokens for the flow to use now, at most `want`; or 0, and it waits. */
uint64_t limits_queue_take(struct limits_queue *queue, struct limit_flow *flow, uint64_t want,
			   uint64_t now_ns);

/* Whether the flow need not ask: nothing up to the root has a rate. It is then to say `pass` in place of taking,
 * for as long as the queue says the same and the second is the same, and to add what it moves to `passed`. */
bool limits_queue_pass(struct limits_queue *queue, struct limit_flow *flow, uint64_t now_ns);

/* The second that flows are counted in as active. Never 0. */
static inline uint32_t
limits_queue_second(uint64_t now_ns)
{
	return (uint32_t)(now_ns / LIMITS_BILLION) + 1;
}

/* Adds to the totals what such flows have moved: all of them; or this one, which is no such flow then. */
void limits_queue_settle(struct limits_queue *queue);
void limits_queue_settle_flow(struct limit_flow *flow);

/* Takes back that many of the tokens granted to the flow. Serves nobody: a flow that gives back and asks
 * again in the same turn must be queued before its neighbours get its tokens. */
void limits_queue_give_back(struct limits_queue *queue, struct limit_flow *flow, uint64_t bytes);

/* What keeps a waiting flow: the bucket that will be short for longest, or else the nearest where others
 * wait too. */
struct limit_bucket *limits_queue_waits_for(const struct limit_flow *flow);

/* A waiting flow waits no more. */
void limits_queue_leave(struct limit_flow *flow);

/* Lets every bucket whose time has come back into the queue. Stops at a timer of limits_queue_watch and
 * returns its bucket, taken off; NULL if nothing more is due. All that is due must be let in before the
 * first is served, or the first takes all. */
struct limit_bucket *limits_queue_due(struct limits_queue *queue, uint64_t now_ns);

/* Serves waiting flows, `work` of them at most, and appends them to `granted` by their links. */
void limits_queue_serve(struct limits_queue *queue, unsigned int work, uint64_t now_ns,
			struct limit_link *granted);

/* Something was done so much later than it was due: for a while larger grants make up for that. */
void limits_queue_note_late(struct limits_queue *queue, uint64_t late_ns);

/* When something is to be done next: 0 = at once, LIMITS_NEVER. */
uint64_t limits_queue_next_ns(const struct limits_queue *queue);

/* New values for a bucket; what waits comes back when they say. */
void limits_queue_retune(struct limits_queue *queue, struct limit_bucket *bucket, uint64_t rate,
			 uint64_t burst, uint64_t now_ns);
void limits_queue_weigh(struct limit_child *child, uint16_t weight);

/* Adds tokens, clipped to the burst, or takes some, into debt if need be. */
void limits_queue_adjust(struct limits_queue *queue, struct limit_bucket *bucket, int64_t tokens,
			 uint64_t now_ns);

/* A timer for a bucket with nothing below it, which cannot be blocked then; and off again. */
void limits_queue_watch(struct limits_queue *queue, struct limit_bucket *bucket, uint64_t at_ns);
void limits_queue_unwatch(struct limits_queue *queue, struct limit_bucket *bucket);

#endif
