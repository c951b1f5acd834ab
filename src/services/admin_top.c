#include "admin_top.h"

#include "clock.h"
#include "generation.h"
#include "inquiry.h"
#include "limit_conf.h"

#include <stdlib.h>
#include <string.h>

static bool
has_keys(const struct limit_conf *conf, uint64_t now_ns)
{
	struct limit_node *only = limits_only(conf->live, now_ns);

	limits_release(only, now_ns);
	return !only && limits_count(conf->live);
}

static int
by_address(const void *left, const void *right)
{
	uintptr_t a = (uintptr_t)(*(struct limit_top *const *)left)->limit;
	uintptr_t b = (uintptr_t)(*(struct limit_top *const *)right)->limit;
	return a < b ? -1 : a > b;
}

/* false: there is nothing to go through for. */
static bool
begin(struct admin_top *top, const struct generation *generation, uint64_t now_ns)
{
	size_t most = 0;

	for (size_t i = 0; i < generation->limit_count; i++)
		most += has_keys(generation->limits[i], now_ns);
	if (!most)
		return false;
	top->limits = calloc(most, sizeof(*top->limits));
	top->order = calloc(most, sizeof(struct limit_top *));
	top->is_short = !top->limits || !top->order;
	if (top->is_short)
		return false;
	for (size_t i = 0; i < generation->limit_count && top->count < most; i++) {
		const struct limit_conf *conf = generation->limits[i];
		struct admin_top_limit *limit = &top->limits[top->count];
		if (!has_keys(conf, now_ns))
			continue;
		limit->top.limit = conf->live;
		limit->name = conf->name;
		top->order[top->count++] = &limit->top;
	}
	qsort(top->order, top->count, sizeof(struct limit_top *), by_address);
	return true;
}

bool
admin_top_gather(struct admin_top *top, struct limits *limits, const struct generation *generation)
{
	uint64_t began_ns = clock_now_ns(), now_ns = began_ns;

	if (!top->has_begun)
		top->is_over = !begin(top, generation, now_ns);
	top->has_begun = true;
	while (!top->is_over && now_ns - began_ns < PLACE_NS) {
		top->is_over = !limits_top(limits, &top->cursor, now_ns, top->order, top->count);
		now_ns = clock_now_ns();
	}
	return !top->is_over;
}

void
admin_top_end(struct admin_top *top)
{
	free(top->limits);
	free(top->order);
}

bool
admin_top_is_told(const struct admin_top_limit *limit, size_t index)
{
	const struct limit_top_node *node = &limit->top.nodes[index];

	for (size_t i = 0; i < index; i++) {
		const struct limit_top_node *before = &limit->top.nodes[i];
		if (!strcmp(before->report.key, node->report.key) &&
		    !strcmp(before->above, node->above))
			return true;
	}
	return false;
}
