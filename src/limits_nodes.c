#include "limits_nodes.h"

#include "limits_bucket.h"
#include "limits_queue.h"

#include <stdlib.h>
#include <string.h>

#define ROWS_LEAST     64
#define EVICTIONS_MOST 1000 /* to find a place for one node */
#define FEW            1000 /* nodes that stand in small blocks */

/* --- the table ---------------------------------------------------------------------------------- */

/* Linear hashing (W. Litwin, 1980): `count` rows, of which those below the last power of two that were
 * split already use one more bit of the hash. */
static size_t
row_of(const struct limits_table *table, uint32_t hash)
{
	size_t mask = ROWS_LEAST;

	if (table->count > ROWS_LEAST)
		mask = (size_t)1 << (64 - __builtin_clzl(table->count - 1));
	size_t row = hash & (mask - 1);
	return row < table->count ? row : row & (mask / 2 - 1);
}

static bool
make_rows(struct limits_table *table)
{
	size_t room = table->room ? table->room * 2 : ROWS_LEAST;
	struct limit_node **rows = realloc(table->rows, room * sizeof(struct limit_node *));

	if (!rows)
		return false;
	table->rows = rows;
	table->room = room;
	return true;
}

/* One row more: its nodes come from the one row that shares the lower bits. So no insertion costs more
 * than a short while, however many nodes there are. */
static void
split_row(struct limits_table *table)
{
	if (table->count == table->room && !make_rows(table))
		return; /* longer rows, then */
	size_t from = row_of(table, (uint32_t)table->count);
	struct limit_node *node = table->rows[from];
	table->rows[from] = NULL;
	table->rows[table->count++] = NULL;
	while (node) {
		struct limit_node *next = node->chained;
		struct limit_node **row = &table->rows[row_of(table, node->hash)];
		node->chained = *row;
		*row = node;
		node = next;
	}
}

static bool
insert(struct limits_table *table, struct limit_node *node)
{
	if (!table->rows) {
		if (!make_rows(table))
			return false;
		memset(table->rows, 0, ROWS_LEAST * sizeof(struct limit_node *));
		table->count = ROWS_LEAST;
	}
	if (++table->nodes > table->count)
		split_row(table);
	struct limit_node **row = &table->rows[row_of(table, node->hash)];
	node->chained = *row;
	*row = node;
	return true;
}

static void
take_out(struct limits_table *table, struct limit_node *node)
{
	struct limit_node **link = &table->rows[row_of(table, node->hash)];

	while (*link != node)
		link = &(*link)->chained;
	*link = node->chained;
	table->nodes--;
}

static struct limit_node *
parent_of(struct limit_node *node)
{
	struct limit_bucket *above = node->bucket[0].child.parent;
	return above ? limits_tree_node(above) : NULL;
}

static struct limit_node *
look_up(const struct limits_table *table, uint32_t hash, const struct limit *limit,
	const struct limit_node *parent, const struct limits_key *key)
{
	if (!table->count)
		return NULL;
	struct limit_node *node = table->rows[row_of(table, hash)];
	for (; node; node = node->chained)
		if (node->hash == hash && node->limit == limit && parent_of(node) == parent &&
		    node->key_length == key->length && !memcmp(node->key, key->bytes, key->length))
			break;
	return node;
}

/* --- where they are ------------------------------------------------------------------------------- */

void
limits_nodes_open(struct limits *limits)
{
	limits->few.object_bytes = limits->many.object_bytes = sizeof(struct limit_node);
	limits->many.is_large = true;
}

static void
release_memory(struct limits *limits, struct limit_node *node)
{
	if (node->key != node->own_key)
		free((unsigned char *)node->key);
	slab_give(node->is_among_many ? &limits->many : &limits->few, node);
}

/* A zeroed node with its key. */
static struct limit_node *
take_memory(struct limits *limits, const struct limits_key *key)
{
	bool is_among_many = limits->table.nodes >= FEW;
	struct limit_node *node = slab_take(is_among_many ? &limits->many : &limits->few);
	unsigned char *bytes;

	if (!node)
		return NULL;
	node->is_among_many = is_among_many;
	bytes = key->length > sizeof(node->own_key) ? malloc(key->length) : node->own_key;
	node->key = bytes;
	node->key_length = key->length;
	if (bytes)
		memcpy(bytes, key->bytes, key->length);
	else
		release_memory(limits, node);
	return bytes ? node : NULL;
}

/* --- birth, change and death -------------------------------------------------------------------- */

static uint64_t
burst_of(const struct limit_spec *spec, int i)
{
	if (spec->burst[i] || !spec->rate[i])
		return spec->burst[i];
	return limits_burst_default(spec->rate[i], spec->quantum);
}

static void
take_values(struct limit_node *node, uint64_t now_ns)
{
	struct limit *limit = node->limit;

	for (int i = 0; i < 2; i++) {
		struct limit_bucket *bucket = &node->bucket[i];
		limits_queue_weigh(&bucket->child, limit->spec.weight);
		bucket->quantum = limit->spec.quantum;
		limits_queue_retune(&limit->limits->queue, bucket, limit->spec.rate[i],
				    burst_of(&limit->spec, i), now_ns);
	}
	node->version = limit->version;
}

/* As if its buckets had been emptied when the limit came. */
static void
begin_empty(struct limit_node *node, uint64_t now_ns)
{
	for (int i = 0; i < 2; i++) {
		struct limit_bucket *bucket = &node->bucket[i];
		if (!bucket->rate)
			continue;
		bucket->tokens = 0;
		bucket->stamp_ns = limits_bucket_least(node->limit->emptied_ns, now_ns);
		limits_bucket_refill(bucket, now_ns);
	}
}

static void
free_node(struct limit_node *node, uint64_t now_ns)
{
	struct limit_node *parent = parent_of(node);
	struct limit *limit = node->limit;
	struct limits *limits = limit->limits;

	take_out(&limits->table, node);
	for (int i = 0; i < 2; i++) {
		limits_queue_unwatch(&limits->queue, &node->bucket[i]);
		limits_queue_hang(&limits->queue, &node->bucket[i].child, NULL, now_ns);
		limits_heap_release(&node->bucket[i].ready);
	}
	limits_tree_unlink(&node->link);
	release_memory(limits, node);
	limits_heap_reserve(&limits->queue.timers, (uint32_t)(limits->table.nodes * 2));
	limit->nodes--;
	limits_nodes_drop_limit(limit);
	if (parent)
		limits_nodes_release(parent, now_ns);
}

/* A node with everything but values, and a user. */
static struct limit_node *
make_node(struct limit *limit, struct limit_node *parent, const struct limits_key *key,
	  uint32_t hash, uint64_t now_ns)
{
	struct limits *limits = limit->limits;
	struct limit_node *node = take_memory(limits, key);

	if (!node)
		return NULL;
	node->limit = limit;
	node->hash = hash;
	node->users = 1;
	node->seen_ns = now_ns;
	for (int i = 0; i < 2; i++)
		limits_queue_init(&node->bucket[i], (enum limit_direction)i, limit->spec.weight,
				  now_ns);
	if (limits_heap_reserve(&limits->queue.timers, (uint32_t)(limits->table.nodes + 1) * 2) < 0)
		goto fail;
	for (int i = 0; i < 2; i++)
		if (limits_queue_hang(&limits->queue, &node->bucket[i].child,
				      parent ? &parent->bucket[i] : NULL, now_ns) < 0)
			goto fail;
	if (!insert(&limits->table, node))
		goto fail;
	return node;
fail:
	for (int i = 0; i < 2; i++)
		limits_queue_hang(&limits->queue, &node->bucket[i].child, NULL, now_ns);
	release_memory(limits, node);
	return NULL;
}

static bool
is_full(const struct limit *limit)
{
	return limit->spec.nodes_most && limit->nodes >= limit->spec.nodes_most;
}

/* Frees the oldest node without users of the limit, or else of one below it: such nodes keep those above. */
static bool
evict(struct limit *limit, uint64_t now_ns)
{
	if (limit->idle.next != &limit->idle) {
		free_node(LIMITS_OBJECT(limit->idle.next, struct limit_node, link), now_ns);
		return true;
	}
	for (struct limit *below = limit->limits->first; below; below = below->next)
		if (below->spec.parent == limit && evict(below, now_ns))
			return true;
	return false;
}

static int
make_place(struct limit *limit, uint64_t now_ns, struct failure *why)
{
	unsigned int tries = EVICTIONS_MOST;

	while (is_full(limit) && tries-- && evict(limit, now_ns))
		;
	if (!is_full(limit))
		return 0;
	return failure_set(why, FAILURE_ADMISSION, "limit \"%s\" has its most of %u nodes in use",
			   limit->spec.name, limit->spec.nodes_most);
}

static void
hold_again(struct limit_node *node, uint64_t now_ns)
{
	struct limit *limit = node->limit;

	limits_queue_unwatch(&limit->limits->queue, &node->bucket[0]);
	limits_tree_unlink(&node->link);
	/* Old versions stand first in a list, and this comes last. */
	if (node->version != limit->version)
		take_values(node, now_ns);
	limits_tree_append(&limit->used, &node->link);
}

void
limits_nodes_hold(struct limit_node *node, uint64_t now_ns)
{
	if (!node->users++)
		hold_again(node, now_ns);
}

struct limit_node *
limits_nodes_find(struct limit *limit, struct limit_node *parent, const struct limits_key *key,
		  uint64_t now_ns, struct failure *why)
{
	struct limits_table *table = &limit->limits->table;
	uint32_t hash = (uint32_t)limits_key_hash(table->seed, (uintptr_t)limit, (uintptr_t)parent,
						  key->bytes, key->length);
	struct limit_node *node = look_up(table, hash, limit, parent, key);

	if (node) {
		limits_nodes_hold(node, now_ns);
		return node;
	}
	if (make_place(limit, now_ns, why) < 0)
		return NULL;
	node = make_node(limit, parent, key, hash, now_ns);
	if (!node) {
		failure_set(why, FAILURE_MEMORY, "no memory for a node of limit \"%s\"",
			    limit->spec.name);
		return NULL;
	}
	limits_tree_append(&limit->used, &node->link);
	limit->nodes++;
	limit->users++;
	if (parent)
		parent->users++;
	take_values(node, now_ns);
	if (limit->spec.starts_empty)
		begin_empty(node, now_ns);
	return node;
}

static uint64_t
full_at_ns(struct limit_node *node, uint64_t now_ns)
{
	uint64_t at_ns = now_ns;

	for (int i = 0; i < 2; i++) {
		struct limit_bucket *bucket = &node->bucket[i];
		if (!bucket->rate)
			continue;
		limits_bucket_refill(bucket, now_ns);
		uint64_t when_ns = limits_bucket_when(bucket, limits_bucket_full(bucket));
		if (bucket->tokens < limits_bucket_full(bucket))
			at_ns = limits_bucket_most(at_ns, when_ns);
	}
	return at_ns;
}

void
limits_nodes_release(struct limit_node *node, uint64_t now_ns)
{
	struct limit *limit = node->limit;

	if (--node->users)
		return;
	if (node->version != limit->version)
		take_values(node, now_ns);
	uint64_t at_ns = full_at_ns(node, now_ns);
	/* Of a limit that is not in force any more nothing needs to be remembered. */
	if (limit->is_passing || limit->is_removed || at_ns <= now_ns) {
		free_node(node, now_ns);
		return;
	}
	limits_queue_unwatch(&limit->limits->queue, &node->bucket[1]);
	limits_queue_watch(&limit->limits->queue, &node->bucket[0], at_ns);
	limits_tree_unlink(&node->link);
	limits_tree_append(&limit->idle, &node->link);
}

void
limits_nodes_expire(struct limit_bucket *bucket, uint64_t now_ns)
{
	struct limit_node *node = limits_tree_node(bucket);
	uint64_t at_ns = full_at_ns(node, now_ns);

	/* It may have been charged by hand, or retuned, since. */
	if (at_ns <= now_ns)
		free_node(node, now_ns);
	else
		limits_queue_watch(&node->limit->limits->queue, bucket, at_ns);
}

static bool
update_list(struct limit *limit, struct limit_link *list, unsigned int *most, uint64_t now_ns)
{
	while (list->next != list) {
		struct limit_node *node = LIMITS_OBJECT(list->next, struct limit_node, link);
		if (node->version == limit->version)
			break;
		if (!*most)
			return true;
		take_values(node, now_ns);
		limits_tree_unlink(&node->link);
		limits_tree_append(list, &node->link);
		--*most;
	}
	return false;
}

bool
limits_nodes_update(struct limit *limit, unsigned int most, uint64_t now_ns)
{
	return update_list(limit, &limit->used, &most, now_ns) ||
	       update_list(limit, &limit->idle, &most, now_ns);
}

bool
limits_nodes_forget(struct limit *limit, unsigned int most, uint64_t now_ns)
{
	limit->users++;
	while (most-- && limit->idle.next != &limit->idle) {
		struct limit_link *oldest = limit->idle.next;
		free_node(LIMITS_OBJECT(oldest, struct limit_node, link), now_ns);
	}
	bool more = limit->idle.next != &limit->idle;
	limits_nodes_drop_limit(limit);
	return more;
}

void
limits_nodes_drop_limit(struct limit *limit)
{
	while (limit && !--limit->users) {
		struct limit *parent = limit->spec.parent;
		free((char *)limit->spec.name);
		free(limit);
		limit = parent;
	}
}
