#include "limits.h"

#include "limits_bucket.h"
#include "limits_key.h"
#include "limits_lock.h"
#include "limits_nodes.h"
#include "limits_queue.h"
#include "units.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define WORK  256  /* grants, and nodes freed, in one lock hold of limits_run */
#define SLICE 1000 /* nodes changed in one */

#define BURST_FLOOR    UINT64_C(8192)
#define BURSTS_LEAST   250 /* a second's rate in bursts of 4 ms, the least */
#define BURSTS_DEFAULT 20  /* and of 50 ms */
#define BURSTS_LATE    500 /* what may come before a late timer serves a full segment: of 2 ms */

static uint64_t
armed_ns(const struct limits *limits)
{
	return atomic_load_explicit(&limits->armed_ns, memory_order_relaxed);
}

uint64_t
limits_due_ns(const struct limits *limits)
{
	return atomic_load_explicit(&limits->due_ns, memory_order_relaxed);
}

bool
limits_must_run(const struct limits *limits, uint64_t now_ns)
{
	uint64_t due_ns = limits_due_ns(limits);
	return due_ns <= now_ns || due_ns < armed_ns(limits);
}

/* As limits_unlock, after a change from outside the workers: one of them must set its timer if something is due
 * earlier now. */
static void
unlock_and_wake(struct limits *limits)
{
	struct limits_worker *worker = limits->armed_by ? limits->armed_by : limits->workers;

	if (limits_queue_next_ns(&limits->queue) >= armed_ns(limits))
		worker = NULL;
	limits_unlock(limits);
	if (worker)
		worker->signal(worker);
}

/* --- the tree and its workers ------------------------------------------------------------------- */

struct limits *
limits_open(const uint8_t seed[16], struct failure *why)
{
	struct limits *limits = calloc(1, sizeof(*limits));
	pthread_mutexattr_t kind;

	if (!limits) {
		failure_set(why, FAILURE_MEMORY, "no memory for the tree of limits");
		return NULL;
	}
	memcpy(limits->table.seed, seed, sizeof(limits->table.seed));
	limits_queue_open(&limits->queue);
	limits_nodes_open(limits);
	limits->work = WORK;
	atomic_init(&limits->due_ns, LIMITS_NEVER);
	atomic_init(&limits->armed_ns, LIMITS_NEVER);
	/* Held for less than a microsecond: a short spin is cheaper than a sleep. */
	pthread_mutexattr_init(&kind);
	pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ADAPTIVE_NP);
	pthread_mutex_init(&limits->lock, &kind);
	pthread_mutexattr_destroy(&kind);
	return limits;
}

void
limits_close(struct limits *limits)
{
	if (!limits)
		return;
	while (limits->first)
		limits_remove(limits->first, 0);
	assert(!limits->workers && !limits->table.nodes);
	limits_heap_release(&limits->queue.timers);
	free(limits->table.rows);
	pthread_mutex_destroy(&limits->lock);
	free(limits);
}

void
limits_worker_open(struct limits *limits, struct limits_worker *worker)
{
	worker->limits = limits;
	limits_tree_list(&worker->mail);
	limits_tree_list(&worker->mine);
	limits_lock(limits);
	worker->next = limits->workers;
	limits->workers = worker;
	limits_unlock(limits);
}

void
limits_worker_close(struct limits_worker *worker)
{
	struct limits *limits = worker->limits;
	struct limits_worker **link = &limits->workers;

	limits_lock(limits);
	assert(worker->mail.next == &worker->mail && worker->mine.next == &worker->mine);
	while (*link != worker)
		link = &(*link)->next;
	*link = worker->next;
	if (limits->armed_by == worker) {
		limits->armed_by = NULL;
		atomic_store_explicit(&limits->armed_ns, LIMITS_NEVER, memory_order_relaxed);
	}
	unlock_and_wake(limits);
}

/* Puts flows that were granted something into their workers' mail. Returns how many other workers must
 * be told of it. */
static size_t
deliver(struct limit_link *granted, const struct limits_worker *self,
	struct limits_worker *told[WORK], uint64_t now_ns)
{
	size_t count = 0;

	while (granted->next != granted) {
		struct limit_flow *flow =
			LIMITS_OBJECT(granted->next, struct limit_flow, child.link);
		struct limits_worker *worker = flow->worker;
		limits_tree_unlink(&flow->child.link);
		if (worker->mail.next == &worker->mail)
			worker->mailed_ns = now_ns;
		limits_tree_append(&worker->mail, &flow->child.link);
		flow->mailed = true;
		if (worker == self || worker->signalled)
			continue;
		worker->signalled = true;
		told[count++] = worker;
	}
	return count;
}

static void
take_mail(struct limits_worker *worker)
{
	struct limit_link *mail = &worker->mail, *mine = &worker->mine;

	worker->signalled = false;
	if (mail->next == mail)
		return;
	mine->prev->next = mail->next;
	mail->next->prev = mine->prev;
	mail->prev->next = mine;
	mine->prev = mail->prev;
	limits_tree_list(mail);
}

/* One worker's timer is enough: the one that was set last keeps it up, unless another sees something that
 * is due earlier, or that the timer has passed. It does so at each run: the worker may have set it to come back
 * sooner, meanwhile. */
static void
arm(struct limits *limits, struct limits_worker *worker, uint64_t now_ns)
{
	uint64_t due_ns = limits_queue_next_ns(&limits->queue);
	uint64_t armed = armed_ns(limits);

	worker->arm_ns = 0;
	if (due_ns < now_ns)
		due_ns = now_ns;
	if (due_ns >= armed && armed > now_ns && limits->armed_by != worker)
		return;
	if (due_ns != LIMITS_NEVER)
		worker->arm_ns = due_ns;
	else if (armed > now_ns)
		return; /* it fires for nothing, once */
	limits->armed_by = worker;
	atomic_store_explicit(&limits->armed_ns, due_ns, memory_order_relaxed);
}

/* How late the worker comes to what is due, or to what it was granted. */
static uint64_t
late_ns(const struct limits_worker *worker, uint64_t now_ns)
{
	uint64_t due_ns = limits_queue_next_ns(&worker->limits->queue), late = 0;

	if (due_ns && due_ns < now_ns)
		late = now_ns - due_ns;
	if (worker->mail.next != &worker->mail && worker->mailed_ns < now_ns)
		late = limits_bucket_most(late, now_ns - worker->mailed_ns);
	return late;
}

void
limits_run(struct limits_worker *worker, uint64_t now_ns)
{
	struct limits *limits = worker->limits;
	struct limits_worker *told[WORK];
	struct limit_link granted;
	struct limit_bucket *idle;
	unsigned int frees = WORK;

	limits_tree_list(&granted);
	limits_lock(limits);
	limits_queue_note_late(&limits->queue, late_ns(worker, now_ns));
	while (frees-- && (idle = limits_queue_due(&limits->queue, now_ns)))
		limits_nodes_expire(idle, now_ns);
	limits_queue_serve(&limits->queue, limits->work, now_ns, &granted);
	size_t count = deliver(&granted, worker, told, now_ns);
	take_mail(worker);
	arm(limits, worker, now_ns);
	limits_unlock(limits);
	while (count--)
		told[count]->signal(told[count]);
}

struct limit_flow *
limits_next(struct limits_worker *worker)
{
	struct limit_link *first = worker->mine.next;

	if (first == &worker->mine)
		return NULL;
	struct limit_flow *flow = LIMITS_OBJECT(first, struct limit_flow, child.link);
	limits_tree_unlink(first);
	flow->mailed = false;
	flow->asked = false;
	return flow;
}

/* --- flows -------------------------------------------------------------------------------------- */

/* The flow neither waits nor holds anything any more. Under the lock. */
static void
let_go(struct limit_flow *flow)
{
	limits_queue_settle_flow(flow);
	if (flow->waiting)
		limits_queue_leave(flow);
	if (flow->mailed)
		limits_tree_unlink(&flow->child.link);
	if (flow->granted)
		limits_queue_give_back(&flow->worker->limits->queue, flow, flow->granted);
	flow->mailed = false;
	flow->asked = false;
	flow->granted = 0;
}

/* Under the lock. */
static int
hang(struct limit_flow *flow, struct limit_node *node, enum limit_direction direction,
     uint64_t now_ns, struct failure *why)
{
	struct limit_bucket *old = flow->child.parent;

	let_go(flow);
	if (limits_queue_hang(&flow->worker->limits->queue, &flow->child,
			      node ? &node->bucket[direction] : NULL, now_ns) < 0)
		return failure_set(why, FAILURE_MEMORY, "no memory to limit a flow");
	flow->cut = NULL;
	if (node)
		node->users++;
	if (old)
		limits_nodes_release(limits_tree_node(old), now_ns);
	return 0;
}

int
limits_flow_open(struct limit_flow *flow, struct limits_worker *worker, struct limit_node *node,
		 enum limit_direction direction, uint64_t now_ns, struct failure *why)
{
	flow->child.is_flow = true;
	flow->child.weight = 1;
	flow->worker = worker;
	return node ? limits_flow_move(flow, node, direction, now_ns, why) : 0;
}

int
limits_flow_move(struct limit_flow *flow, struct limit_node *node, enum limit_direction direction,
		 uint64_t now_ns, struct failure *why)
{
	struct limits *limits = flow->worker->limits;

	if (!node && !flow->child.parent)
		return 0;
	limits_lock(limits);
	int result = hang(flow, node, direction, now_ns, why);
	limits_unlock(limits);
	return result;
}

void
limits_flow_close(struct limit_flow *flow, uint64_t now_ns)
{
	if (flow->child.parent)
		limits_flow_move(flow, NULL, LIMIT_UP, now_ns, NULL);
}

static bool
is_above(const struct limit_bucket *bucket, const struct limit_bucket *below)
{
	while (below && below != bucket)
		below = below->child.parent;
	return below;
}

void
limits_flow_cut(struct limit_flow *flow, const struct limit_node *earlier)
{
	struct limit_bucket *at = flow->child.parent;

	if (!at)
		return;
	struct limits *limits = flow->worker->limits;
	limits_lock(limits);
	let_go(flow);
	while (at && at != flow->cut && !is_above(at, &earlier->bucket[at->direction]))
		at = at->child.parent;
	flow->cut = at;
	limits_unlock(limits);
}

void
limits_flow_uncut(struct limit_flow *flow)
{
	if (!flow->cut)
		return;
	limits_lock(flow->worker->limits);
	let_go(flow);
	flow->cut = NULL;
	limits_unlock(flow->worker->limits);
}

/* Whether the flow was found to have no rate above it, in this second, and nothing has changed since. */
static bool
has_pass(const struct limit_flow *flow, uint64_t now_ns)
{
	const struct limits_queue *queue = &flow->worker->limits->queue;

	return flow->pass == atomic_load_explicit(&queue->pass, memory_order_relaxed) &&
	       flow->second == limits_queue_second(now_ns);
}

/* With nothing in hand. */
static uint64_t
ask(struct limit_flow *flow, uint64_t want, uint64_t now_ns)
{
	struct limits *limits = flow->worker->limits;

	limits_lock(limits);
	if (limits_queue_pass(&limits->queue, flow, now_ns)) {
		limits_unlock(limits);
		return want;
	}
	uint64_t bytes = limits_queue_take(&limits->queue, flow, want, now_ns);
	flow->asked = !bytes;
	if (bytes)
		flow->granted = bytes;
	/* Else, from here on, `granted` is whoever's that grants. */
	limits_unlock(limits);
	return bytes;
}

uint64_t
limits_take(struct limit_flow *flow, uint64_t want, uint64_t now_ns)
{
	assert(want);
	if (!flow->child.parent)
		return want;
	if (flow->asked)
		return 0;
	if (flow->granted)
		return limits_bucket_least(flow->granted, want);
	return has_pass(flow, now_ns) ? want : ask(flow, want, now_ns);
}

const char *
limits_waits_for(struct limit_flow *flow)
{
	struct limits *limits = flow->worker->limits;

	limits_lock(limits);
	struct limit_bucket *bucket = limits_queue_waits_for(flow);
	const char *name = limits_tree_node(bucket)->limit->spec.name;
	limits_unlock(limits);
	return name;
}

void
limits_spend(struct limit_flow *flow, uint64_t bytes)
{
	if (!flow->child.parent)
		return;
	assert(!flow->asked);
	if (flow->pass) {
		atomic_fetch_add_explicit(&flow->passed, bytes, memory_order_relaxed);
		return;
	}
	assert(bytes <= flow->granted);
	flow->granted -= bytes;
}

void
limits_give_back(struct limit_flow *flow)
{
	if (!flow->asked && !flow->granted)
		return;
	limits_lock(flow->worker->limits);
	let_go(flow);
	limits_unlock(flow->worker->limits);
}

/* --- declared limits ---------------------------------------------------------------------------- */

uint64_t
limits_burst_least(uint64_t rate, uint32_t quantum)
{
	uint64_t segment = LIMITS_SEGMENT_BYTES + (rate + BURSTS_LATE - 1) / BURSTS_LATE;
	uint64_t least = limits_bucket_most((rate + BURSTS_LEAST - 1) / BURSTS_LEAST, segment);
	return limits_bucket_most(least, quantum);
}

uint64_t
limits_burst_default(uint64_t rate, uint32_t quantum)
{
	uint64_t burst = limits_bucket_most(rate / BURSTS_DEFAULT, BURST_FLOOR);
	return limits_bucket_most(burst, quantum);
}

static int
check_direction(const struct limit_spec *spec, int i, struct failure *why)
{
	uint64_t rate = spec->rate[i], burst = spec->burst[i];

	if (rate > LIMITS_RATE_MOST)
		return failure_set(why, FAILURE_CONFIG,
				   "a rate of %" PRIu64 " bytes a second; the most is %" PRIu64,
				   rate, LIMITS_RATE_MOST);
	if (burst > LIMITS_BURST_MOST)
		return failure_set(why, FAILURE_CONFIG,
				   "a burst of %" PRIu64 " bytes; the most is %" PRIu64, burst,
				   LIMITS_BURST_MOST);
	uint64_t least = limits_burst_least(rate, spec->quantum);
	char has[UNITS_TEXT], needs[UNITS_TEXT];
	if (rate && burst && burst < least)
		return failure_set(why, FAILURE_CONFIG,
				   "a burst of %s; the least for this rate and quantum is %s",
				   units_format_bytes(burst, has),
				   units_format_bytes(least, needs));
	return 0;
}

int
limits_check(const struct limit_spec *spec, struct failure *why)
{
	if (!spec->weight)
		return failure_set(why, FAILURE_CONFIG, "a weight of 0; the least is 1");
	if (spec->quantum && spec->quantum < LIMITS_SEGMENT_BYTES)
		return failure_set(why, FAILURE_CONFIG,
				   "a quantum of %" PRIu32 " bytes; the least is %d", spec->quantum,
				   LIMITS_SEGMENT_BYTES);
	for (int i = 0; i < 2; i++)
		if (check_direction(spec, i, why) < 0)
			return -1;
	return 0;
}

/* The numbers of a spec. */
static void
copy_values(struct limit_spec *to, const struct limit_spec *from)
{
	to->weight = from->weight;
	to->quantum = from->quantum;
	to->nodes_most = from->nodes_most;
	for (int i = 0; i < 2; i++) {
		to->rate[i] = from->rate[i];
		to->burst[i] = from->burst[i];
	}
}

/* Every limit that depends on no key has its node from the start: it counts, and is listed. Under the
 * lock. */
static int
make_only(struct limit *limit, uint64_t now_ns, struct failure *why)
{
	struct limits_key key = { .length = 0 };
	struct limit *parent = limit->spec.parent;

	if (limit->is_keyed)
		return 0;
	limit->only = limits_nodes_find(limit, parent ? parent->only : NULL, &key, now_ns, why);
	return limit->only ? 0 : -1;
}

struct limit *
limits_add(struct limits *limits, const struct limit_spec *spec, uint64_t now_ns,
	   struct failure *why)
{
	struct limit *limit, *parent = spec->parent;

	if (limits_check(spec, why) < 0)
		return NULL;
	limit = calloc(1, sizeof(*limit));
	char *name = strdup(spec->name);
	if (!limit || !name) {
		free(limit);
		free(name);
		failure_set(why, FAILURE_MEMORY, "no memory for limit \"%s\"", spec->name);
		return NULL;
	}
	limit->limits = limits;
	limit->spec = *spec;
	limit->spec.name = name;
	limits_tree_list(&limit->used);
	limits_tree_list(&limit->idle);
	limit->emptied_ns = now_ns;
	limit->users = 1;

	limits_lock(limits);
	if (parent)
		parent->users++;
	limit->is_keyed = spec->per != LIMIT_PER_NONE || (parent && parent->is_keyed);
	limit->is_passing = spec->per == LIMIT_PER_CONNECTION || (parent && parent->is_passing);
	if (make_only(limit, now_ns, why) < 0) {
		limits_nodes_drop_limit(limit);
		limit = NULL;
	} else {
		limit->next = limits->first;
		limits->first = limit;
	}
	limits_unlock(limits);
	return limit;
}

struct limit *
limits_find(struct limits *limits, const char *name)
{
	limits_lock(limits);
	struct limit *limit = limits->first;
	while (limit && strcmp(limit->spec.name, name) != 0)
		limit = limit->next;
	limits_unlock(limits);
	return limit;
}

const char *
limits_name(const struct limit *limit)
{
	return limit->spec.name;
}

void
limits_spec(struct limit *limit, struct limit_spec *out)
{
	limits_lock(limit->limits);
	*out = limit->spec;
	limits_unlock(limit->limits);
}

bool
limits_can_change(const struct limit *limit, const struct limit_spec *spec)
{
	const struct limit_spec *now = &limit->spec;

	if (spec->per != now->per)
		return false;
	if (spec->per == LIMIT_PER_SOURCE &&
	    (spec->prefix_v4 != now->prefix_v4 || spec->prefix_v6 != now->prefix_v6))
		return false;
	if (spec->parent == now->parent)
		return true;
	return !limit->is_keyed && !(spec->parent && spec->parent->is_keyed);
}

/* The limit's only node, and all below it, moves to the new parent's. Under the lock. */
static int
change_parent(struct limit *limit, struct limit *parent, uint64_t now_ns, struct failure *why)
{
	struct limits_queue *queue = &limit->limits->queue;
	struct limit_node *node = limit->only, *above = parent ? parent->only : NULL;
	struct limit_bucket *left = node->bucket[0].child.parent;
	struct limit *old = limit->spec.parent;

	for (int i = 0; i < 2; i++)
		if (above &&
		    limits_heap_reserve(&above->bucket[i].ready, above->rest[i].children + 1) < 0)
			return failure_set(why, FAILURE_MEMORY, "no memory to move limit \"%s\"",
					   limit->spec.name);
	for (int i = 0; i < 2; i++) {
		limits_queue_hang(queue, &node->bucket[i].child, above ? &above->bucket[i] : NULL,
				  now_ns);
	}
	limit->spec.parent = parent;
	if (parent) {
		parent->users++;
		above->users++;
	}
	if (left)
		limits_nodes_release(limits_tree_node(left), now_ns);
	limits_nodes_drop_limit(old);
	return 0;
}

int
limits_change(struct limit *limit, const struct limit_spec *spec, uint64_t now_ns,
	      struct failure *why)
{
	struct limits *limits = limit->limits;
	int result = 0;

	if (limits_check(spec, why) < 0)
		return -1;
	if (!limits_can_change(limit, spec))
		return failure_set(why, FAILURE_CONFIG,
				   "limit \"%s\" would need other nodes; add a new one",
				   limit->spec.name);
	limits_lock(limits);
	if (spec->parent != limit->spec.parent)
		result = change_parent(limit, spec->parent, now_ns, why);
	if (result < 0) {
		limits_unlock(limits);
		return result;
	}
	copy_values(&limit->spec, spec);
	limit->version++;
	while (limits_nodes_update(limit, SLICE, now_ns)) {
		unlock_and_wake(limits);
		limits_lock(limits);
	}
	unlock_and_wake(limits);
	return 0;
}

void
limits_remove(struct limit *limit, uint64_t now_ns)
{
	struct limits *limits = limit->limits;
	struct limit **link = &limits->first;

	limits_lock(limits);
	while (*link != limit)
		link = &(*link)->next;
	*link = limit->next;
	limit->is_removed = true;
	while (limits_nodes_forget(limit, SLICE, now_ns)) {
		limits_unlock(limits);
		limits_lock(limits);
	}
	if (limit->only)
		limits_nodes_release(limit->only, now_ns);
	limit->only = NULL;
	limits_nodes_drop_limit(limit);
	limits_unlock(limits);
}

void
limits_hold(struct limit *limit)
{
	limits_lock(limit->limits);
	limit->users++;
	limits_unlock(limit->limits);
}

void
limits_drop(struct limit *limit)
{
	if (!limit)
		return;
	struct limits *limits = limit->limits;
	limits_lock(limits);
	limits_nodes_drop_limit(limit);
	limits_unlock(limits);
}

/* --- nodes -------------------------------------------------------------------------------------- */

/* The node of this limit, or the nearest above that is known, with one more user. `complete`: it is this
 * limit's. Under the lock. */
static int
resolve(struct limit *limit, const struct limit_who *who, uint64_t now_ns, struct limit_node **out,
	bool *complete, struct failure *why)
{
	struct limit_node *parent = NULL;
	struct limits_key key;

	*out = limit->only;
	*complete = true;
	if (limit->only) {
		limit->only->users++;
		return 0;
	}
	if (limit->spec.parent &&
	    resolve(limit->spec.parent, who, now_ns, &parent, complete, why) < 0)
		return -1;
	*out = parent;
	if (!*complete)
		return 0;
	*complete = limits_key_make(&key, &limit->spec, who);
	if (!*complete)
		return 0;
	*out = limits_nodes_find(limit, parent, &key, now_ns, why);
	if (parent)
		limits_nodes_release(parent, now_ns);
	return *out ? 0 : -1;
}

int
limits_resolve(struct limit *limit, const struct limit_who *who, uint64_t now_ns,
	       struct limit_node **out, struct failure *why)
{
	bool complete;

	limits_lock(limit->limits);
	int result = resolve(limit, who, now_ns, out, &complete, why);
	limits_unlock(limit->limits);
	return result;
}

void
limits_release(struct limit_node *node, uint64_t now_ns)
{
	if (!node)
		return;
	struct limits *limits = node->limit->limits;
	limits_lock(limits);
	limits_nodes_release(node, now_ns);
	limits_unlock(limits);
}

struct limit_node *
limits_only(struct limit *limit, uint64_t now_ns)
{
	limits_lock(limit->limits);
	struct limit_node *node = limit->only;
	if (node)
		limits_nodes_hold(node, now_ns);
	limits_unlock(limit->limits);
	return node;
}

static bool
is_called(const struct limit_node *node, const char *name, const char *key)
{
	char text[LIMITS_KEY_TEXT];
	return !strcmp(node->limit->spec.name, name) &&
	       !strcmp(limits_key_text(node->key, node->key_length, text), key);
}

struct limit_node *
limits_by_key(struct limits *limits, const char *name, const char *key, uint64_t now_ns)
{
	struct limit_node *found = NULL;
	const struct limits_table *table = &limits->table;
	size_t row = 0;
	bool more = true;

	while (more && !found) {
		limits_lock(limits);
		for (int i = 0; i < LIMITS_ROWS_A_LOCK && row < table->count && !found; i++, row++)
			for (struct limit_node *node = table->rows[row]; node && !found;
			     node = node->chained)
				if (is_called(node, name, key))
					found = node;
		if (found)
			limits_nodes_hold(found, now_ns);
		more = row < table->count;
		limits_unlock(limits);
	}
	return found;
}

uint32_t
limits_count(struct limit *limit)
{
	limits_lock(limit->limits);
	uint32_t nodes = limit->nodes;
	limits_unlock(limit->limits);
	return nodes;
}

void
limits_retune(struct limit_node *node, enum limit_direction direction, uint64_t rate,
	      uint64_t burst, uint64_t now_ns)
{
	struct limits *limits = node->limit->limits;

	limits_lock(limits);
	limits_queue_retune(&limits->queue, &node->bucket[direction], rate, burst, now_ns);
	unlock_and_wake(limits);
}

static void
adjust(struct limit_node *node, enum limit_direction direction, int64_t tokens, uint64_t now_ns)
{
	struct limits *limits = node->limit->limits;

	limits_lock(limits);
	limits_queue_adjust(&limits->queue, &node->bucket[direction], tokens, now_ns);
	unlock_and_wake(limits);
}

void
limits_charge(struct limit_node *node, enum limit_direction direction, uint64_t bytes,
	      uint64_t now_ns)
{
	adjust(node, direction, -(int64_t)limits_bucket_least(bytes, LIMITS_BURST_MOST), now_ns);
}

void
limits_credit(struct limit_node *node, enum limit_direction direction, uint64_t bytes,
	      uint64_t now_ns)
{
	adjust(node, direction, (int64_t)limits_bucket_least(bytes, INT64_MAX), now_ns);
}

void
limits_reset_total(struct limit_node *node, enum limit_direction direction)
{
	struct limits *limits = node->limit->limits;

	limits_lock(limits);
	limits_queue_settle(&limits->queue);
	node->bucket[direction].total = 0;
	node->rest[direction].seen_total = 0;
	limits_unlock(limits);
}
