#include "limits_queue.h"

#include "limits_bucket.h"

#include <assert.h>

/* What a newcomer may claim of the past: enough for a handshake to be served at once. */
#define ALLOWANCE_BYTES 8192

/* A flow gets what its share brings in 25 ms, but no more than 64 KiB, unless a wake-up brings more: one
 * grant is all it gets for each wake-up, whatever arrives meanwhile goes to others. Wake-ups are taken to be
 * 4 ms apart, or more if they have lately been late: twice as late, down to 10 a second. */
#define SHARE_PER_QUANTUM 40 /* 1 s / 25 ms */
#define QUANTUM_BYTES     65536
#define WAKE_UP_NS        (4 * UINT64_C(1000000))
#define WAKE_UP_MOST_NS   (100 * UINT64_C(1000000))
#define LATE_FORGOTTEN    64    /* a part of it at each wake-up */
#define PIECE_BYTES       32768 /* who asks for less may want no more */
#define STALE_NS          (100 * UINT64_C(1000000))
#define VIRTUAL_SHIFT     20
#define PACE_UNLIMITED    LIMITS_RATE_MOST
#define DEBT_MOST         (INT64_C(1) << 61)
/* No served child is so far ahead (1 GiB for a weight of 1): it was away while v wrapped. */
#define AHEAD_MOST (INT64_C(1) << 50)
/* Each bucket's v wraps soon after its birth, so that wrapping is what always happens. */
#define VIRTUAL_START (UINT64_MAX - (UINT64_C(1) << 42))

#define SEGMENT LIMITS_SEGMENT_BYTES
#define least   limits_bucket_least
#define most    limits_bucket_most

static struct limit_bucket *
bucket_of(struct limit_child *child)
{
	return LIMITS_OBJECT(child, struct limit_bucket, child);
}

static struct limit_flow *
flow_of(struct limit_child *child)
{
	return LIMITS_OBJECT(child, struct limit_flow, child);
}

static struct limit_child *
first_ready(const struct limit_bucket *bucket)
{
	return LIMITS_OBJECT(bucket->ready.at[0].slot, struct limit_child, slot);
}

/* --- virtual time ------------------------------------------------------------------------------- */

static uint64_t
later(uint64_t a, uint64_t b)
{
	return (int64_t)(a - b) > 0 ? a : b;
}

static uint64_t
cost(const struct limit_child *child, uint64_t bytes)
{
	uint64_t v = bytes << VIRTUAL_SHIFT;
	return child->weight == 1 ? v : v / child->weight;
}

/* How many bytes the child may still get until its v is `v`; 0 if it is beyond. */
static uint64_t
bytes_until(const struct limit_child *child, uint64_t v)
{
	int64_t behind = (int64_t)(v - child->v);
	return behind > 0 ? ((uint64_t)behind >> VIRTUAL_SHIFT) * child->weight : 0;
}

/* In a second. */
static uint64_t
wake_ups(const struct limits_queue *queue)
{
	return queue->wake_ups ? queue->wake_ups : LIMITS_BILLION / WAKE_UP_NS;
}

/* What a child's share of the parent's pace brings between two wake-ups. */
static uint64_t
share_of_wake_up(const struct limits_queue *queue, const struct limit_bucket *parent,
		 const struct limit_child *child)
{
	uint64_t weights = most(1, parent->ready_weight);
	return parent->pace / wake_ups(queue) * child->weight / weights;
}

/* A child comes to the queue: bounds what it may claim of the time it was not there. Without that, one
 * that is back quickly each time falls ever further behind and shuts the others out. */
static void
lift(const struct limits_queue *queue, const struct limit_bucket *parent, struct limit_child *child)
{
	if (!child->seen) {
		child->v = parent->v - cost(child, ALLOWANCE_BYTES);
		child->seen = true;
		return;
	}
	int64_t ahead = (int64_t)(child->v - parent->v);
	if (ahead > AHEAD_MOST) {
		child->v = parent->v;
	} else if (ahead < 0) {
		uint64_t claim = most(ALLOWANCE_BYTES, share_of_wake_up(queue, parent, child));
		child->v = later(child->v, parent->v - cost(child, claim));
	}
}

static uint64_t
quantum_of(const struct limits_queue *queue, uint64_t pace, uint64_t fixed)
{
	if (fixed)
		return fixed;
	uint64_t times = wake_ups(queue);
	uint64_t cap = most(QUANTUM_BYTES, pace / times);
	return most(SEGMENT, least(pace / least(SHARE_PER_QUANTUM, times), cap));
}

/* What is worth a grant: never a sliver, and never the wait for the last byte. */
static uint64_t
enough(uint64_t want)
{
	return want < SEGMENT ? want : most(SEGMENT, want / 2);
}

/* --- the queues --------------------------------------------------------------------------------- */

static void
queue_at(const struct limits_queue *queue, struct limit_bucket *parent, struct limit_child *child,
	 uint64_t now_ns)
{
	lift(queue, parent, child);
	child->since_ns = now_ns;
	limits_heap_push(&parent->ready, child->v, &child->slot);
	limits_tree_append(&parent->waiting, &child->link);
	parent->ready_weight += child->weight;
}

static void
requeue(struct limit_bucket *parent, struct limit_child *child, uint64_t now_ns)
{
	child->since_ns = now_ns;
	limits_heap_rekey(&parent->ready, &child->slot, child->v);
	limits_tree_unlink(&child->link);
	limits_tree_append(&parent->waiting, &child->link);
}

/* The child can be served: queues it, and with it every bucket above that can be served through it. */
static void
enter(const struct limits_queue *queue, struct limit_child *child, uint64_t now_ns)
{
	struct limit_bucket *parent;

	for (; (parent = child->parent) && !child->slot; child = &parent->child) {
		queue_at(queue, parent, child, now_ns);
		if (parent->blocked)
			return;
	}
}

/* The child cannot be served any more, and so can no bucket that has nothing else ready. */
static void
leave(struct limit_child *child)
{
	struct limit_bucket *parent;

	for (; (parent = child->parent) && child->slot; child = &parent->child) {
		limits_heap_remove(&parent->ready, &child->slot);
		limits_tree_unlink(&child->link);
		parent->ready_weight -= child->weight;
		if (parent->ready.count)
			return;
	}
}

static void
count_waiting(struct limit_flow *flow, bool waiting)
{
	flow->waiting = waiting;
	for (struct limit_bucket *at = flow->child.parent; at; at = at->child.parent)
		if (waiting)
			at->flows_waiting++;
		else
			at->flows_waiting--;
}

static void
block(struct limits_queue *queue, struct limit_bucket *bucket, int64_t level)
{
	bucket->blocked = true;
	limits_tree_rest(bucket)->level = level;
	limits_heap_push(&queue->timers, limits_bucket_when(bucket, level), &bucket->timer_slot);
	leave(&bucket->child);
}

/* A blocked bucket. */
static uint64_t
comes_back_ns(struct limit_bucket *bucket)
{
	return limits_bucket_when(bucket, limits_tree_rest(bucket)->level);
}

/* After its tokens, its rate or its level have changed. */
static void
reset_timer(struct limits_queue *queue, struct limit_bucket *bucket)
{
	if (bucket->blocked)
		limits_heap_rekey(&queue->timers, &bucket->timer_slot, comes_back_ns(bucket));
}

/* The root above has something ready now, unless something between is blocked. */
static void
put_root_on_todo(struct limits_queue *queue, struct limit_bucket *bucket)
{
	while (bucket->child.parent)
		bucket = bucket->child.parent;
	if (bucket->on_todo || bucket->blocked || !bucket->ready.count)
		return;
	bucket->on_todo = true;
	limits_tree_append(&queue->todo, &bucket->child.link);
}

static void
take_off_todo(struct limit_bucket *root)
{
	if (root->on_todo)
		limits_tree_unlink(&root->child.link);
	root->on_todo = false;
}

/* --- one flow's path ---------------------------------------------------------------------------- */

/* What the buckets below a flow's cut allow now. */
struct path {
	uint64_t tokens;  /* the least */
	uint64_t half;    /* of the least burst: no grant is larger */
	uint64_t rate;    /* the slowest */
	uint64_t quantum; /* fixed by the nearest that fixes one; 0 = none */
	bool is_held;     /* somebody waits there already */
};

static struct path
look_up(const struct limit_flow *flow, uint64_t now_ns)
{
	struct path path = { UINT64_MAX, UINT64_MAX, PACE_UNLIMITED, 0, false };
	struct limit_bucket *at;

	for (at = flow->child.parent; at && at != flow->cut; at = at->child.parent) {
		path.is_held |= at->blocked || at->ready.count;
		if (!path.quantum)
			path.quantum = at->quantum;
		if (!at->rate)
			continue;
		limits_bucket_refill(at, now_ns);
		path.tokens = least(path.tokens, at->tokens > 0 ? (uint64_t)at->tokens : 0);
		path.half = least(path.half, at->burst / 2);
		path.rate = least(path.rate, at->rate);
	}
	return path;
}

/* Counts the flow once for each second in which it gets something. */
static void
count_active(struct limit_flow *flow, uint32_t second)
{
	struct limit_bucket *at;

	if (flow->second == second)
		return;
	flow->second = second;
	for (at = flow->child.parent; at; at = at->child.parent) {
		if (at->second != second) {
			at->active_before = at->second + 1 == second ? at->active : 0;
			at->active = 0;
			at->second = second;
		}
		at->active++;
	}
}

/* Charges every bucket below the cut, and every child its turn. A flow that did not wait, and what is above
 * it, comes to each queue by that. */
static void
charge(const struct limits_queue *queue, struct limit_flow *flow, uint64_t bytes, bool waited,
       uint64_t now_ns)
{
	struct limit_child *child = &flow->child;
	struct limit_bucket *parent;

	for (; (parent = child->parent) && parent != flow->cut; child = &parent->child) {
		if (!waited)
			lift(queue, parent, child);
		parent->v = later(parent->v, child->v);
		child->v += cost(child, bytes);
		if (child->slot)
			requeue(parent, child, now_ns);
		if (parent->rate)
			parent->tokens -= (int64_t)bytes;
		parent->total += bytes;
	}
	count_active(flow, limits_queue_second(now_ns));
	flow->moves = queue->moves;
	flow->had = (uint32_t)least(bytes, UINT32_MAX);
}

static void
block_short(struct limits_queue *queue, struct limit_flow *flow, uint64_t need, uint64_t quantum)
{
	struct limit_bucket *at;

	for (at = flow->child.parent; at && at != flow->cut; at = at->child.parent)
		if (at->rate && !at->blocked && at->tokens < (int64_t)need)
			block(queue, at, limits_bucket_level(at, need, quantum));
}

/* What to grant a flow when its turn comes: bulk moves in pieces of whatever size its way has, and who asks for the
 * next after all that he had would take more at once. Else large pieces had more of each wake-up than small ones. */
static uint64_t
appetite(const struct limit_flow *flow, uint64_t want)
{
	return want < PIECE_BYTES ? want : most(want, 2 * (uint64_t)flow->had);
}

uint64_t
limits_queue_take(struct limits_queue *queue, struct limit_flow *flow, uint64_t want,
		  uint64_t now_ns)
{
	struct path path = look_up(flow, now_ns);
	uint64_t quantum = least(quantum_of(queue, path.rate, path.quantum), path.half);
	uint64_t fair = least(want, most(SEGMENT, quantum));
	uint64_t need = enough(fair);
	uint64_t bytes = least(fair, path.tokens);

	if (!path.is_held && bytes >= need) {
		charge(queue, flow, bytes, false, now_ns);
		return bytes;
	}
	flow->want = appetite(flow, want);
	count_waiting(flow, true);
	enter(queue, &flow->child, now_ns);
	if (!path.is_held)
		block_short(queue, flow, need, fair);
	return 0;
}

void
limits_queue_give_back(struct limits_queue *queue, struct limit_flow *flow, uint64_t bytes)
{
	struct limit_child *child = &flow->child;
	struct limit_bucket *parent;

	flow->had = 0;
	/* What was taken from another path does not belong to this one. */
	if (flow->moves != queue->moves)
		return;
	for (; (parent = child->parent) && parent != flow->cut; child = &parent->child) {
		child->v -= cost(child, bytes);
		if (child->slot)
			limits_heap_rekey(&parent->ready, &child->slot, child->v);
		parent->tokens += (int64_t)bytes;
		if (parent->tokens > limits_bucket_full(parent))
			parent->tokens = limits_bucket_full(parent);
		parent->total -= least(bytes, parent->total); /* it may have been reset */
		reset_timer(queue, parent);
	}
}

/* --- flows that need not ask -------------------------------------------------------------------- */

static void
count_passed(struct limit_flow *flow)
{
	struct limit_bucket *at;

	if (!atomic_load_explicit(&flow->passed, memory_order_relaxed))
		return;
	uint64_t bytes = atomic_exchange_explicit(&flow->passed, 0, memory_order_relaxed);
	for (at = flow->child.parent; at && at != flow->cut; at = at->child.parent)
		at->total += bytes;
}

void
limits_queue_settle(struct limits_queue *queue)
{
	struct limit_link *at = queue->passing.next;

	for (; at != &queue->passing; at = at->next)
		count_passed(LIMITS_OBJECT(at, struct limit_flow, child.link));
}

void
limits_queue_settle_flow(struct limit_flow *flow)
{
	/* It may have moved something since it was taken from the list. */
	count_passed(flow);
	if (flow->has_passed)
		limits_tree_unlink(&flow->child.link);
	flow->has_passed = false;
	flow->pass = 0;
}

/* Before a path changes: all must ask again. */
static void
end_passes(struct limits_queue *queue)
{
	uint32_t pass = atomic_load_explicit(&queue->pass, memory_order_relaxed) + 1;

	limits_queue_settle(queue);
	while (queue->passing.next != &queue->passing) {
		struct limit_flow *flow =
			LIMITS_OBJECT(queue->passing.next, struct limit_flow, child.link);
		limits_tree_unlink(&flow->child.link);
		flow->has_passed = false;
	}
	atomic_store_explicit(&queue->pass, pass ? pass : 1, memory_order_relaxed);
}

bool
limits_queue_pass(struct limits_queue *queue, struct limit_flow *flow, uint64_t now_ns)
{
	for (struct limit_bucket *at = flow->child.parent; at; at = at->child.parent)
		if (at->rate) {
			limits_queue_settle_flow(flow);
			return false;
		}
	count_passed(flow);
	count_active(flow, limits_queue_second(now_ns));
	flow->pass = atomic_load_explicit(&queue->pass, memory_order_relaxed);
	if (!flow->has_passed)
		limits_tree_append(&queue->passing, &flow->child.link);
	flow->has_passed = true;
	return true;
}

struct limit_bucket *
limits_queue_waits_for(const struct limit_flow *flow)
{
	struct limit_bucket *nearest = flow->child.parent, *longest = NULL;
	uint64_t longest_ns = 0;

	for (struct limit_bucket *at = nearest; at; at = at->child.parent) {
		uint64_t when_ns = at->blocked ? comes_back_ns(at) : 0;
		if (at->blocked && when_ns >= longest_ns) {
			longest_ns = when_ns;
			longest = at;
		}
		if (!nearest->rate && at->rate)
			nearest = at;
	}
	return longest ? longest : nearest;
}

void
limits_queue_leave(struct limit_flow *flow)
{
	count_waiting(flow, false);
	leave(&flow->child);
}

/* --- serving ------------------------------------------------------------------------------------ */

/* Whose turn it is, and how much of it. */
struct turn {
	struct limit_flow *flow;
	uint64_t pace;   /* bytes a second that are its fair share */
	uint64_t behind; /* bytes that it, or a bucket above it, has to catch up on */
};

/* A child that got a large grant while it was alone would wait until all newcomers have had as much. If the
 * one that waits longest waits too long, its lead is cut. */
static void
cut_old_lead(struct limit_bucket *bucket, uint64_t now_ns)
{
	struct limit_child *child = LIMITS_OBJECT(bucket->waiting.next, struct limit_child, link);

	if ((int64_t)(now_ns - child->since_ns) <= (int64_t)STALE_NS)
		return;
	uint64_t share = bucket->pace * child->weight / bucket->ready_weight;
	uint64_t turn = cost(child, most(SEGMENT, share / SHARE_PER_QUANTUM));
	if ((int64_t)(child->v - bucket->v) > (int64_t)(4 * turn))
		child->v = bucket->v + turn;
	requeue(bucket, child, now_ns);
}

/* Goes down to the flow that is next, estimating its share on the way: before any look at tokens, since
 * whether a bucket is short depends on what the chosen flow needs. */
static struct turn
choose(const struct limits_queue *queue, struct limit_bucket *root, uint64_t now_ns)
{
	struct turn turn = { .pace = root->rate ? root->rate : PACE_UNLIMITED };
	struct limit_bucket *bucket = root;

	for (;;) {
		struct limit_child *child = first_ready(bucket);
		bucket->pace = turn.pace;
		cut_old_lead(bucket, now_ns);
		turn.behind = most(turn.behind, bytes_until(child, bucket->v));
		turn.pace = turn.pace * child->weight / bucket->ready_weight;
		if (child->is_flow) {
			turn.flow = flow_of(child);
			return turn;
		}
		bucket = bucket_of(child);
		if (!bucket->rate)
			continue;
		turn.pace = least(turn.pace, bucket->rate);
		turn.behind = least(turn.behind, bucket->rate / wake_ups(queue));
	}
}

/* Serves the next flow below the root, or blocks what is short for it. NULL = blocked. */
static struct limit_flow *
serve_next(struct limits_queue *queue, struct limit_bucket *root, uint64_t now_ns)
{
	struct turn turn = choose(queue, root, now_ns);
	struct path path = look_up(turn.flow, now_ns);
	uint64_t quantum = quantum_of(queue, turn.pace, path.quantum);
	/* With a small one of its own it would fall behind further with each wake-up. */
	quantum += least(turn.behind, most(quantum, quantum_of(queue, turn.pace, 0)));
	quantum = most(SEGMENT, least(quantum, path.half));
	uint64_t fair = least(turn.flow->want, quantum);
	uint64_t need = enough(fair);
	uint64_t bytes = least(fair, path.tokens);

	if (bytes < need) {
		block_short(queue, turn.flow, need, quantum);
		return NULL;
	}
	/* First, so that nothing is put in order that goes. */
	limits_queue_leave(turn.flow);
	charge(queue, turn.flow, bytes, true, now_ns);
	turn.flow->granted = bytes;
	return turn.flow;
}

void
limits_queue_serve(struct limits_queue *queue, unsigned int work, uint64_t now_ns,
		   struct limit_link *granted)
{
	while (work && queue->todo.next != &queue->todo) {
		struct limit_bucket *root =
			LIMITS_OBJECT(queue->todo.next, struct limit_bucket, child.link);
		while (work && root->ready.count && !root->blocked) {
			struct limit_flow *flow = serve_next(queue, root, now_ns);
			if (!flow)
				continue;
			limits_tree_append(granted, &flow->child.link);
			work--;
		}
		/* What it leaves comes behind the others: it may always have more than there is work. */
		take_off_todo(root);
		put_root_on_todo(queue, root);
	}
}

struct limit_bucket *
limits_queue_due(struct limits_queue *queue, uint64_t now_ns)
{
	while (queue->timers.count && (int64_t)(queue->timers.at[0].key - now_ns) <= 0) {
		uint32_t *slot = queue->timers.at[0].slot;
		struct limit_bucket *bucket = LIMITS_OBJECT(slot, struct limit_bucket, timer_slot);
		limits_heap_remove(&queue->timers, slot);
		if (!bucket->blocked)
			return bucket;
		bucket->blocked = false;
		if (!bucket->ready.count)
			continue;
		enter(queue, &bucket->child, now_ns);
		put_root_on_todo(queue, bucket);
	}
	return NULL;
}

void
limits_queue_note_late(struct limits_queue *queue, uint64_t late_ns)
{
	uint64_t before_ns = queue->late_ns - queue->late_ns / LATE_FORGOTTEN;

	queue->late_ns = least(most(late_ns, before_ns), WAKE_UP_MOST_NS);
	uint64_t apart_ns = least(most(2 * queue->late_ns, WAKE_UP_NS), WAKE_UP_MOST_NS);
	queue->wake_ups = LIMITS_BILLION / apart_ns;
}

uint64_t
limits_queue_next_ns(const struct limits_queue *queue)
{
	if (queue->todo.next != &queue->todo)
		return 0;
	return queue->timers.count ? queue->timers.at[0].key : LIMITS_NEVER;
}

/* --- changes ------------------------------------------------------------------------------------ */

void
limits_queue_open(struct limits_queue *queue)
{
	limits_tree_list(&queue->todo);
	limits_tree_list(&queue->passing);
	atomic_init(&queue->pass, 1);
}

void
limits_queue_init(struct limit_bucket *bucket, enum limit_direction direction, uint16_t weight,
		  uint64_t now_ns)
{
	bucket->direction = (uint8_t)direction;
	bucket->child.weight = weight;
	bucket->stamp_ns = now_ns;
	bucket->v = VIRTUAL_START;
	bucket->pace = PACE_UNLIMITED;
	limits_tree_list(&bucket->waiting);
}

static void
count_members(struct limit_child *child, bool come)
{
	uint32_t members = 1, waiting = 0;

	if (!child->is_flow) {
		struct limit_bucket *bucket = bucket_of(child);
		members = limits_tree_rest(bucket)->members;
		waiting = bucket->flows_waiting;
	}
	for (struct limit_bucket *at = child->parent; at; at = at->child.parent) {
		limits_tree_rest(at)->members += come ? members : -members;
		at->flows_waiting += come ? waiting : -waiting;
	}
}

int
limits_queue_hang(struct limits_queue *queue, struct limit_child *child,
		  struct limit_bucket *parent, uint64_t now_ns)
{
	if (parent &&
	    limits_heap_reserve(&parent->ready, limits_tree_rest(parent)->children + 1) < 0)
		return -1;
	if (child->parent) {
		leave(child);
		count_members(child, false);
		limits_heap_reserve(&child->parent->ready,
				    --limits_tree_rest(child->parent)->children);
	} else if (!child->is_flow) {
		take_off_todo(bucket_of(child));
	}
	if (!child->is_flow && limits_tree_rest(bucket_of(child))->members) {
		end_passes(queue);
		queue->moves++;
	}
	child->parent = parent;
	if (parent) {
		limits_tree_rest(parent)->children++;
		count_members(child, true);
		child->v = parent->v;
	}
	if (!child->is_flow && !bucket_of(child)->blocked && bucket_of(child)->ready.count) {
		enter(queue, child, now_ns);
		put_root_on_todo(queue, bucket_of(child));
	}
	return 0;
}

void
limits_queue_retune(struct limits_queue *queue, struct limit_bucket *bucket, uint64_t rate,
		    uint64_t burst, uint64_t now_ns)
{
	limits_bucket_refill(bucket, now_ns);
	if (rate && !bucket->rate && limits_tree_rest(bucket)->members)
		end_passes(queue);
	if (!bucket->rate) {
		bucket->tokens = (int64_t)burst;
		bucket->fraction = 0;
		bucket->stamp_ns = most(bucket->stamp_ns, now_ns);
	}
	bucket->rate = rate;
	bucket->burst = burst;
	if (bucket->tokens > limits_bucket_full(bucket))
		bucket->tokens = limits_bucket_full(bucket);
	if (!bucket->ready.count)
		bucket->pace = rate ? rate : PACE_UNLIMITED;
	if (bucket->blocked) {
		/* The old level may be far away at the new rate. One too low is found out and corrected. */
		int64_t level = limits_bucket_level(bucket, SEGMENT, SEGMENT);
		if (limits_tree_rest(bucket)->level > level)
			limits_tree_rest(bucket)->level = level;
		reset_timer(queue, bucket);
	}
}

void
limits_queue_weigh(struct limit_child *child, uint16_t weight)
{
	if (child->slot) {
		child->parent->ready_weight -= child->weight;
		child->parent->ready_weight += weight;
	}
	child->weight = weight;
}

void
limits_queue_adjust(struct limits_queue *queue, struct limit_bucket *bucket, int64_t tokens,
		    uint64_t now_ns)
{
	if (!bucket->rate)
		return;
	limits_bucket_refill(bucket, now_ns);
	if (tokens > limits_bucket_full(bucket) - bucket->tokens)
		bucket->tokens = limits_bucket_full(bucket);
	else if (tokens < -DEBT_MOST - bucket->tokens)
		bucket->tokens = -DEBT_MOST;
	else
		bucket->tokens += tokens;
	reset_timer(queue, bucket);
}

void
limits_queue_watch(struct limits_queue *queue, struct limit_bucket *bucket, uint64_t at_ns)
{
	assert(!bucket->ready.count && !bucket->child.slot);
	if (bucket->blocked) {
		bucket->blocked = false;
		limits_heap_remove(&queue->timers, &bucket->timer_slot);
	}
	limits_heap_push(&queue->timers, at_ns, &bucket->timer_slot);
}

void
limits_queue_unwatch(struct limits_queue *queue, struct limit_bucket *bucket)
{
	bucket->blocked = false;
	if (bucket->timer_slot)
		limits_heap_remove(&queue->timers, &bucket->timer_slot);
}
