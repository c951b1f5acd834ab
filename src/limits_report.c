#include "limits_report.h"

#include "limits_bucket.h"
#include "limits_key.h"
#include "limits_lock.h"

#include <stdio.h>
#include <string.h>

#define ROWS_AHEAD 8

/* The flows that got something in the last full second. */
static uint32_t
active_flows(const struct limit_bucket *bucket, uint64_t now_ns)
{
	uint32_t second = limits_queue_second(now_ns);

	if (bucket->second == second)
		return bucket->active_before;
	return bucket->second + 1 == second ? bucket->active : 0;
}

/* Who asks often gets the speed of a second or two all the same. */
#define SPEED_NS LIMITS_BILLION

static uint64_t
speed_of(uint64_t bytes, uint64_t time_ns)
{
	return (uint64_t)((double)bytes * (double)LIMITS_BILLION / (double)time_ns);
}

/* Measures what has passed since it was last measured. */
static void
measure_speed(struct limit_node *node, uint64_t now_ns)
{
	uint64_t time_ns = now_ns > node->seen_ns ? now_ns - node->seen_ns : 0;
	bool is_due = time_ns >= SPEED_NS;

	if (!is_due && node->is_measured)
		return;
	for (int i = 0; i < 2; i++) {
		struct limit_rest *rest = &node->rest[i];
		uint64_t total = node->bucket[i].total;
		uint64_t passed = total > rest->seen_total ? total - rest->seen_total : 0;
		rest->speed = speed_of(passed, is_due ? time_ns : SPEED_NS);
		if (is_due)
			rest->seen_total = total;
	}
	if (is_due)
		node->seen_ns = now_ns;
	node->is_measured = is_due;
}

static void
report_direction(struct limit_bucket *bucket, uint64_t now_ns, struct limit_report_direction *out)
{
	limits_bucket_refill(bucket, now_ns);
	*out = (struct limit_report_direction){
		.rate = bucket->rate,
		.burst = bucket->burst,
		.level = bucket->rate ? bucket->tokens : 0,
		.passing = UINT64_MAX,
		.total = bucket->total,
		.speed = limits_tree_rest(bucket)->speed,
		.members = limits_tree_rest(bucket)->members,
		.active = active_flows(bucket, now_ns),
		.waiting = bucket->flows_waiting,
		.is_short = bucket->blocked,
	};
	for (struct limit_bucket *at = bucket; at; at = at->child.parent) {
		if (!at->rate)
			continue;
		limits_bucket_refill(at, now_ns);
		uint64_t level = at->tokens > 0 ? (uint64_t)at->tokens : 0;
		out->passing = limits_bucket_least(out->passing, level);
	}
}

static void
report(struct limit_node *node, uint64_t now_ns, struct limit_report *out)
{
	struct limit_bucket *above = node->bucket[0].child.parent;

	out->id = (uintptr_t)node;
	out->parent = above ? (uintptr_t)limits_tree_node(above) : 0;
	snprintf(out->name, sizeof(out->name), "%s", node->limit->spec.name);
	limits_key_text(node->key, node->key_length, out->key);
	out->weight = node->bucket[0].child.weight;
	out->users = node->users;
	out->is_only = node->limit->only == node;
	measure_speed(node, now_ns);
	for (int i = 0; i < 2; i++)
		report_direction(&node->bucket[i], now_ns, &out->direction[i]);
}

void
limits_report(struct limit_node *node, uint64_t now_ns, struct limit_report *out)
{
	struct limits *limits = node->limit->limits;

	limits_lock(limits);
	limits_queue_settle(&limits->queue);
	report(node, now_ns, out);
	limits_unlock(limits);
}

bool
limits_report_waits_for(struct limit_flow *flow, uint64_t now_ns, struct limit_report *out)
{
	if (!flow->child.parent)
		return false;
	struct limits *limits = flow->worker->limits;
	limits_lock(limits);
	bool waits = flow->waiting;
	if (waits)
		report(limits_tree_node(limits_queue_waits_for(flow)), now_ns, out);
	limits_unlock(limits);
	return waits;
}

void
limits_bound(struct limit_flow *flow, uintptr_t but, struct limit_bound *bound)
{
	if (!flow->child.parent)
		return;
	struct limits *limits = flow->worker->limits;
	limits_lock(limits);
	for (struct limit_bucket *at = flow->child.parent; at; at = at->child.parent) {
		const struct limit_node *node = limits_tree_node(at);
		if (!at->rate || (uintptr_t)node == but || (bound->rate && bound->rate <= at->rate))
			continue;
		bound->rate = at->rate;
		snprintf(bound->name, sizeof(bound->name), "%s", node->limit->spec.name);
	}
	limits_unlock(limits);
}

size_t
limits_list(struct limits *limits, size_t *cursor, uint64_t now_ns, struct limit_report *out,
	    size_t most)
{
	const struct limits_table *table = &limits->table;
	size_t count = 0;

	limits_lock(limits);
	if (!*cursor)
		limits_queue_settle(&limits->queue);
	/* A row stands on one page: while the lock is free, rows are only split into later ones. */
	for (; *cursor < table->count; ++*cursor) {
		size_t before = count;
		struct limit_node *node = table->rows[*cursor];
		for (; node && count < most; node = node->chained)
			report(node, now_ns, &out[count++]);
		if (node && before) {
			count = before;
			break;
		}
	}
	limits_unlock(limits);
	return count;
}

/* Nodes are all over the memory: what is looked at of those in later rows is fetched meanwhile. */
static void
fetch_ahead(const struct limits_table *table, size_t row)
{
	const struct limit_node *node = row < table->count ? table->rows[row] : NULL;

	if (!node)
		return;
	__builtin_prefetch(&node->bucket[LIMIT_UP].total);
	__builtin_prefetch(&node->bucket[LIMIT_DOWN].total);
	__builtin_prefetch(&node->rest);
	__builtin_prefetch(&node->limit);
}

static uint64_t
measure(struct limit_node *node, enum limit_measure by, uint64_t now_ns)
{
	const struct limit_bucket *up = &node->bucket[LIMIT_UP], *down = &node->bucket[LIMIT_DOWN];

	switch (by) {
	case LIMIT_BY_ACTIVE:
		return active_flows(up, now_ns) + active_flows(down, now_ns);
	case LIMIT_BY_WAITING:
		return up->flows_waiting + down->flows_waiting;
	case LIMIT_BY_SPEED:
		measure_speed(node, now_ns);
		return node->rest[LIMIT_UP].speed + node->rest[LIMIT_DOWN].speed +
		       (node->limit->only == node ? LIMIT_SPEED_ONLY : 0);
	default:
		return up->total + down->total;
	}
}

bool
limits_sift(struct limits *limits, size_t *cursor, uint64_t now_ns, enum limit_measure by,
	    uint64_t least, struct limit_report *out, size_t most, size_t *count)
{
	const struct limits_table *table = &limits->table;

	*count = 0;
	limits_lock(limits);
	if (!*cursor)
		limits_queue_settle(&limits->queue);
	for (int i = 0; i < LIMITS_ROWS_A_LOCK && *cursor < table->count; i++, ++*cursor) {
		size_t before = *count;
		fetch_ahead(table, *cursor + ROWS_AHEAD);
		struct limit_node *node = table->rows[*cursor];
		for (; node && *count < most; node = node->chained)
			if (measure(node, by, now_ns) >= least)
				report(node, now_ns, &out[(*count)++]);
		if (node && before) {
			*count = before;
			break;
		}
	}
	bool more = *cursor < table->count;
	limits_unlock(limits);
	return more;
}

/* The keys of the nodes from the root down to this one. */
static size_t
write_keys(const struct limit_bucket *bucket, char *text, size_t size)
{
	char key[LIMITS_KEY_TEXT];

	if (!bucket)
		return 0;
	const struct limit_node *node = limits_tree_node((struct limit_bucket *)bucket);
	size_t length = write_keys(bucket->child.parent, text, size);
	limits_key_text(node->key, node->key_length, key);
	if (!*key || length >= size)
		return length;
	return length +
	       (size_t)snprintf(text + length, size - length, "%s%s", length ? " " : "", key);
}

static struct limit_top *
top_of(const struct limit *limit, struct limit_top *const *tops, size_t count)
{
	size_t first = 0;

	while (count) {
		struct limit_top *middle = tops[first + count / 2];
		if (middle->limit == limit)
			return middle;
		if ((uintptr_t)middle->limit < (uintptr_t)limit) {
			first += count / 2 + 1;
			count -= count / 2 + 1;
		} else {
			count /= 2;
		}
	}
	return NULL;
}

/* A row that was split in between shows its nodes again. */
static void
forget(struct limit_top *top, uintptr_t id)
{
	for (size_t i = 0; i < top->count; i++)
		if (top->nodes[i].report.id == id) {
			top->count--;
			memmove(&top->nodes[i], &top->nodes[i + 1],
				(top->count - i) * sizeof(top->nodes[0]));
			return;
		}
}

static bool
goes_before(const struct limit_node *node, const struct limit_top_node *entry)
{
	const struct limit_report_direction *told = entry->report.direction;
	uint64_t speed = node->rest[LIMIT_UP].speed + node->rest[LIMIT_DOWN].speed;
	uint64_t other = told[LIMIT_UP].speed + told[LIMIT_DOWN].speed;

	if (speed != other)
		return speed > other;
	return node->bucket[LIMIT_UP].total + node->bucket[LIMIT_DOWN].total >
	       told[LIMIT_UP].total + told[LIMIT_DOWN].total;
}

static void
enter_top(struct limit_top *top, struct limit_node *node, uint64_t now_ns)
{
	measure_speed(node, now_ns);
	if (top->count == LIMITS_TOP_MOST && !goes_before(node, &top->nodes[LIMITS_TOP_MOST - 1]))
		return;
	forget(top, (uintptr_t)node);
	size_t at = top->count < LIMITS_TOP_MOST ? top->count++ : LIMITS_TOP_MOST - 1;
	for (; at > 0 && goes_before(node, &top->nodes[at - 1]); at--)
		top->nodes[at] = top->nodes[at - 1];
	struct limit_top_node *entry = &top->nodes[at];
	entry->above[0] = '\0';
	write_keys(node->bucket[0].child.parent, entry->above, sizeof(entry->above));
	report(node, now_ns, &entry->report);
}

bool
limits_top(struct limits *limits, size_t *cursor, uint64_t now_ns, struct limit_top *const *tops,
	   size_t count)
{
	const struct limits_table *table = &limits->table;

	limits_lock(limits);
	if (!*cursor)
		limits_queue_settle(&limits->queue);
	for (int i = 0; i < LIMITS_ROWS_A_LOCK && *cursor < table->count; i++, ++*cursor) {
		fetch_ahead(table, *cursor + ROWS_AHEAD);
		for (struct limit_node *node = table->rows[*cursor]; node; node = node->chained) {
			struct limit_top *top = top_of(node->limit, tops, count);
			if (top)
				enter_top(top, node, now_ns);
		}
	}
	bool more = *cursor < table->count;
	limits_unlock(limits);
	return more;
}
