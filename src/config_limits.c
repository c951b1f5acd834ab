#include "config_limits.h"

#include "nearest.h"

#include <stdlib.h>
#include <string.h>

struct check {
	struct generation *generation;
	const struct config_places *rows; /* in the order of the limits */
	struct config_report *report;
};

/* Where a row of the limit was written; line 0 = nowhere. `at` is the limit's first place. */
static struct origin
where(const struct check *check, size_t limit, size_t at, const char *name)
{
	for (; at < check->rows->count && check->rows->at[at].tunnel == limit; at++) {
		const struct config_place *place = &check->rows->at[at];
		if (strcmp(limit_keywords[place->index].name, name) == 0)
			return place->origin;
	}
	return (struct origin){ check->generation->limits[limit]->origin.file, 0 };
}

/* The limit of that name, or NULL, having said which one may be meant. */
static struct limit_conf *
find(const struct check *check, const char *name, struct origin origin)
{
	struct limit_conf *limit = generation_find_limit(check->generation, name);
	struct nearest nearest;

	if (limit)
		return limit;
	nearest_start(&nearest, name);
	for (size_t i = 0; i < check->generation->limit_count; i++)
		nearest_offer(&nearest, check->generation->limits[i]->name);
	if (nearest.best)
		config_report_error(check->report, origin,
				    "there is no limit \"%.60s\"; did you mean \"%s\"?", name,
				    nearest.best);
	else if (!address_name_is_valid(name))
		config_report_error(
			check->report, origin,
			"'%.60s' is not the name of a limit; write limit \"NAME\" { rate = "
			"\"10MB/s\" } outside of tunnels, and here its name",
			name);
	else
		config_report_error(check->report, origin,
				    "there is no limit \"%.60s\"; write limit \"%.60s\" { rate = "
				    "\"10MB/s\" }",
				    name, name);
	return NULL;
}

static void
check_rates(const struct check *check, size_t index, size_t at)
{
	static const char *const alone[] = { "up", "down" };
	struct origin rate = where(check, index, at, "rate");

	for (size_t i = 0; rate.line && i < 2; i++) {
		struct origin other = where(check, index, at, alone[i]);
		if (other.line)
			config_report_error(check->report, other,
					    "'%s' and 'rate' (%s:%u) are both written; rate is up "
					    "and down together, so keep up and down, or rate",
					    alone[i], rate.file, rate.line);
	}
}

/* What the values of one limit mean together. */
static void
check_values(const struct check *check, size_t index, size_t at)
{
	struct limit_conf *limit = check->generation->limits[index];
	struct origin burst = where(check, index, at, "burst");
	struct origin quantum = where(check, index, at, "quantum");
	struct failure why;

	check_rates(check, index, at);
	if (limit_conf_understand_per(limit, &why) < 0) {
		config_report_error(check->report, where(check, index, at, "per"), "per: %s",
				    why.text);
		return;
	}
	if (!limit->weight)
		limit->weight = 1; /* reported where it was read */
	struct limit_spec spec = limit_conf_spec(limit);
	bool is_limited = spec.rate[LIMIT_UP] || spec.rate[LIMIT_DOWN];
	if (limits_check(&spec, &why) < 0)
		config_report_error(check->report,
				    burst.line     ? burst
				    : quantum.line ? quantum
						   : limit->origin,
				    "limit \"%s\" has %s", limit->name, why.text);
	else if (burst.line && !is_limited)
		config_report_warning(check->report, burst,
				      "burst has no effect without a rate; leave it out, or write "
				      "up, down or rate");
}

/* ------------------------------------------------------------------ the tree */

static void
refuse_circle(const struct check *check, const struct limit_conf *limit, struct origin origin)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	if (out) {
		for (const struct limit_conf *at = limit->above; at != limit; at = at->above)
			fprintf(out, "%s → ", at->name);
		fprintf(out, "%s", limit->name);
	}
	if (out && fclose(out) == 0)
		config_report_error(check->report, origin,
				    "limits form a circle: %s → %s; let one of them have no parent",
				    limit->name, text);
	else
		config_report_error(check->report, origin,
				    "limits form a circle; let one of them have no parent");
	free(text);
}

/* Whether the limit is above itself. No more steps than there are limits: another circle may stand above
 * it, which is reported for its own limits. */
static bool
is_in_circle(const struct check *check, const struct limit_conf *limit)
{
	const struct limit_conf *at = limit->above;

	for (size_t i = 0; at && at != limit && i < check->generation->limit_count; i++)
		at = at->above;
	return at == limit;
}

/* Joins each limit to its parent. */
static void
join(const struct check *check, const size_t *first)
{
	struct generation *generation = check->generation;

	for (size_t i = 0; i < generation->limit_count; i++) {
		struct limit_conf *limit = generation->limits[i];
		if (*limit->parent)
			limit->above =
				find(check, limit->parent, where(check, i, first[i], "parent"));
	}
}

/* Of each circle the limit that was written first is reported. */
static void
check_circles(const struct check *check, const size_t *first)
{
	struct generation *generation = check->generation;

	for (size_t i = 0; i < generation->limit_count; i++) {
		struct limit_conf *limit = generation->limits[i];
		if (!is_in_circle(check, limit))
			continue;
		refuse_circle(check, limit, where(check, i, first[i], "parent"));
		limit->above = NULL;
	}
}

/* ------------------------------------------------------------------ who uses it */

static void
use(const struct check *check, const struct config_place *place)
{
	struct tunnel_conf *tunnel = check->generation->tunnels[place->tunnel];
	const char *name = place->index ? tunnel->connect_limit_name : tunnel->limit_name;
	struct limit_conf *limit = *name ? find(check, name, place->origin) : NULL;

	if (place->index)
		tunnel->connect_limit = limit;
	else
		tunnel->limit = limit;
	while (limit && !limit->is_used) {
		limit->is_used = true;
		limit = limit->above;
	}
}

static size_t
depth(const struct limit_conf *limit)
{
	size_t levels = 0;

	while ((limit = limit->above))
		levels++;
	return levels;
}

static int
compare_depth(const void *a, const void *b)
{
	size_t depth_a = depth(*(struct limit_conf *const *)a);
	size_t depth_b = depth(*(struct limit_conf *const *)b);
	return (depth_a > depth_b) - (depth_a < depth_b);
}

void
config_limits_check(struct generation *generation, const struct config_places *rows,
		    const struct config_places *uses, struct config_report *report)
{
	struct check check = { generation, rows, report };
	size_t *first = calloc(generation->limit_count + 1, sizeof(*first)), at = 0;

	if (!first) {
		config_report_error(report, (struct origin){ report->files[0], 0 },
				    "no memory to check the limits; free some");
		return;
	}
	for (size_t i = 0; i < generation->limit_count; i++) {
		while (at < rows->count && rows->at[at].tunnel < i)
			at++;
		first[i] = at;
		check_values(&check, i, at);
	}
	join(&check, first);
	for (size_t i = 0; i < uses->count; i++)
		use(&check, &uses->at[i]);
	check_circles(&check, first);
	free(first);
	if (generation->limit_count)
		qsort(generation->limits, generation->limit_count, sizeof(struct limit_conf *),
		      compare_depth);
	for (size_t i = 0; i < generation->limit_count; i++) {
		const struct limit_conf *limit = generation->limits[i];
		if (!limit->is_used)
			config_report_warning(report, limit->origin,
					      "no tunnel uses limit \"%s\"; leave it out, or write "
					      "limit = \"%s\" in a tunnel",
					      limit->name, limit->name);
	}
}
