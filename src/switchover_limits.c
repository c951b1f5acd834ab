#include "switchover_limits.h"

#include "clock.h"
#include "log.h"

static int
prepare(struct limit_conf *limit, const struct generation *current, struct limits *limits,
	struct failure *why)
{
	const struct limit_conf *before =
		current ? generation_find_limit(current, limit->name) : NULL;
	struct limit_spec spec = limit_conf_spec(limit);

	if (before && limits_can_change(before->live, &spec)) {
		limit->live = before->live;
	} else {
		/* It takes the place of another: what that had given out must not come again. */
		spec.starts_empty = before;
		limit->live = limits_add(limits, &spec, clock_now_ns(), why);
		limit->is_new = true;
		if (!limit->live)
			return -1;
	}
	limits_hold(limit->live);
	return 0;
}

int
switchover_limits_prepare(struct generation *next, const struct generation *current,
			  struct limits *limits, struct failure *why)
{
	for (size_t i = 0; i < next->limit_count; i++)
		if (prepare(next->limits[i], current, limits, why) < 0) {
			switchover_limits_abandon(next);
			return -1;
		}
	return 0;
}

void
switchover_limits_abandon(struct generation *next)
{
	for (size_t i = next->limit_count; i-- > 0;) {
		struct limit_conf *limit = next->limits[i];
		if (limit->live && limit->is_new)
			limits_remove(limit->live, clock_now_ns());
		limits_drop(limit->live);
		limit->live = NULL;
	}
}

static bool
is_same(const struct limit_spec *a, const struct limit_spec *b)
{
	return a->parent == b->parent && a->weight == b->weight && a->quantum == b->quantum &&
	       a->nodes_most == b->nodes_most && a->rate[LIMIT_UP] == b->rate[LIMIT_UP] &&
	       a->rate[LIMIT_DOWN] == b->rate[LIMIT_DOWN] &&
	       a->burst[LIMIT_UP] == b->burst[LIMIT_UP] &&
	       a->burst[LIMIT_DOWN] == b->burst[LIMIT_DOWN];
}

static bool
is_as_written(const struct limit_conf *limit, const struct generation *before)
{
	const struct limit_conf *was = before ? generation_find_limit(before, limit->name) : NULL;

	if (!was || was->live != limit->live)
		return false;
	struct limit_spec then = limit_conf_spec(was), now = limit_conf_spec(limit);
	return is_same(&then, &now);
}

void
switchover_limits_commit(struct generation *next, const struct generation *steered)
{
	struct failure why;

	/* Parents come first: nowhere on the way is one of them below its child. */
	for (size_t i = 0; i < next->limit_count; i++) {
		struct limit_conf *limit = next->limits[i];
		struct limit_spec spec = limit_conf_spec(limit);
		if (!limit->is_new && !is_as_written(limit, steered) &&
		    limits_change(limit->live, &spec, clock_now_ns(), &why) < 0)
			log_line(LOG_LEVEL_ERROR, "limit \"%s\" keeps its old values: %s",
				 limit->name, why.text);
	}
}

void
switchover_limits_finish(const struct generation *old, const struct generation *next)
{
	for (size_t i = 0; i < old->limit_count; i++) {
		struct limit *live = old->limits[i]->live;
		const struct limit_conf *after = generation_find_limit(next, old->limits[i]->name);
		if (!after || after->live != live)
			limits_remove(live, clock_now_ns());
	}
}
