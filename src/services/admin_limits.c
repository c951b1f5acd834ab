#include "admin_answers.h"
#include "admin_survey.h"
#include "clock.h"
#include "connection_view.h"
#include "limits_report.h"
#include "units.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define FETCHED_MOST 256 /* nodes at a time: the least that limits_list takes */
#define PRINTED_MOST 64  /* and in a page */
#define SORTED_MOST  500
#define SORTED_USUAL 50

/* --- the list ------------------------------------------------------------------------------------- */

enum order { ORDER_NONE, ORDER_TOTAL, ORDER_ACTIVE, ORDER_WAITING, ORDER_SPEED };

static const char *const order_names[] = {
	[ORDER_TOTAL] = "total",
	[ORDER_ACTIVE] = "active",
	[ORDER_WAITING] = "waiting",
	[ORDER_SPEED] = "speed",
};

static const enum limit_measure measures[] = {
	[ORDER_TOTAL] = LIMIT_BY_TOTAL,
	[ORDER_ACTIVE] = LIMIT_BY_ACTIVE,
	[ORDER_WAITING] = LIMIT_BY_WAITING,
	[ORDER_SPEED] = LIMIT_BY_SPEED,
};

struct list {
	char name[65]; /* "" = all */
	enum order order;
	size_t cursor;
	bool is_over;   /* all are fetched */
	bool has_begun; /* to write, and then: one that others follow */
	bool has_written;
	size_t fetched, printed;
	struct limit_report *reports; /* owned; FETCHED_MOST */
	size_t count, most;           /* of the sorted ones */
	struct ranked {
		uint64_t rank;
		struct limit_report report;
	} * sorted; /* owned; the largest rank first; NULL = not to be sorted */
};

static int
begin_list(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	struct list *list = inquiry->state;
	char text[32] = "", *end;
	(void)argument;

	if (http_query(request->query, "name", list->name, sizeof(list->name)) &&
	    !limits_find(inquiry->control->limits, list->name))
		return inquiry_fail(inquiry, 404,
				    "there is no limit \"%.64s\"; penstockctl limits shows all",
				    list->name);
	if (http_query(request->query, "sort", text, sizeof(text))) {
		for (int order = ORDER_TOTAL; order <= ORDER_SPEED; order++)
			if (!strcmp(text, order_names[order]))
				list->order = (enum order)order;
		if (!list->order)
			return inquiry_fail(inquiry, 400,
					    "sort: one of total, active, waiting and speed");
		list->most = SORTED_USUAL;
	}
	if (list->order && http_query(request->query, "limit", text, sizeof(text))) {
		unsigned long most = strtoul(text, &end, 10);
		if (end == text || *end || !most || most > SORTED_MOST)
			return inquiry_fail(inquiry, 400, "limit: 1 to %d", SORTED_MOST);
		list->most = most;
	}
	list->reports = calloc(FETCHED_MOST, sizeof(*list->reports));
	list->sorted = list->order ? calloc(list->most, sizeof(*list->sorted)) : NULL;
	if (!list->reports || (list->order && !list->sorted))
		return inquiry_fail(inquiry, 503, "no memory for a list");
	return 0;
}

static uint64_t
rank_of(const struct list *list, const struct limit_report *report)
{
	const struct limit_report_direction *up = &report->direction[LIMIT_UP];
	const struct limit_report_direction *down = &report->direction[LIMIT_DOWN];

	switch (list->order) {
	case ORDER_ACTIVE:
		return up->active + down->active;
	case ORDER_WAITING:
		return up->waiting + down->waiting;
	case ORDER_SPEED:
		return up->speed + down->speed + (report->is_only ? LIMIT_SPEED_ONLY : 0);
	default:
		return up->total + down->total;
	}
}

static void
sort_in(struct list *list, const struct limit_report *report)
{
	uint64_t rank = rank_of(list, report);

	if (list->count == list->most && rank <= list->sorted[list->most - 1].rank)
		return;
	size_t at = list->count < list->most ? list->count++ : list->most - 1;
	for (; at > 0 && list->sorted[at - 1].rank < rank; at--)
		list->sorted[at] = list->sorted[at - 1];
	list->sorted[at].rank = rank;
	list->sorted[at].report = *report;
}

static void
fetch(struct inquiry *inquiry)
{
	struct list *list = inquiry->state;

	list->printed = 0;
	list->fetched = limits_list(inquiry->control->limits, &list->cursor, clock_now_ns(),
				    list->reports, FETCHED_MOST);
	list->is_over = !list->fetched;
}

static void
sift(struct inquiry *inquiry, uint64_t now_ns)
{
	struct list *list = inquiry->state;
	bool is_full = list->count == list->most;
	size_t count;

	list->is_over =
		!limits_sift(inquiry->control->limits, &list->cursor, now_ns, measures[list->order],
			     is_full ? list->sorted[list->most - 1].rank + 1 : 0, list->reports,
			     FETCHED_MOST, &count);
	for (size_t i = 0; i < count; i++)
		if (!*list->name || !strcmp(list->name, list->reports[i].name))
			sort_in(list, &list->reports[i]);
}

static void
fetch_sorted(struct inquiry *inquiry)
{
	const struct list *list = inquiry->state;
	uint64_t began_ns = clock_now_ns(), now_ns = began_ns;

	while (!list->is_over && now_ns - began_ns < PLACE_NS) {
		sift(inquiry, now_ns);
		now_ns = clock_now_ns();
	}
}

/* Tells nodes apart, and nothing of where they are. */
static const char *
identity(uintptr_t node, char text[20])
{
	static _Atomic(uint64_t) secret;
	uint64_t mask = secret, other = 0;

	if (!mask) {
		if (getrandom(&other, sizeof(other), 0) != (ssize_t)sizeof(other))
			other = clock_now_ns();
		other |= 1;
		mask = atomic_compare_exchange_strong(&secret, &mask, other) ? other : mask;
	}
	snprintf(text, 20, "%016" PRIx64, ((uint64_t)node ^ mask) * (mask | 1));
	return text;
}

static json_t *
direction_of(const struct limit_report_direction *direction)
{
	return json_pack(
		"{s:I, s:I, s:I, s:o, s:I, s:I, s:i, s:i, s:i, s:b}", "rate",
		(json_int_t)direction->rate, "burst", (json_int_t)direction->burst, "level",
		(json_int_t)direction->level, "passing",
		direction->passing == UINT64_MAX ? json_null()
						 : json_integer((json_int_t)direction->passing),
		"total", (json_int_t)direction->total, "speed", (json_int_t)direction->speed,
		"members", (int)direction->members, "active", (int)direction->active, "waiting",
		(int)direction->waiting, "short", (int)direction->is_short);
}

static json_t *
node_of(const struct limit_report *report)
{
	char id[20], parent[20];

	return json_pack("{s:s, s:o, s:s, s:o, s:i, s:i, s:o, s:o}", "id", identity(report->id, id),
			 "parent",
			 report->parent ? json_string(identity(report->parent, parent))
					: json_null(),
			 "name", report->name, "key", admin_survey_text(report->key), "weight",
			 (int)report->weight, "users", (int)report->users, "up",
			 direction_of(&report->direction[LIMIT_UP]), "down",
			 direction_of(&report->direction[LIMIT_DOWN]));
}

static void
print_node(struct inquiry *inquiry, struct page *page, const struct limit_report *report)
{
	struct list *list = inquiry->state;

	page_print(page, list->has_written ? ",\n" : "\n");
	list->has_written = true;
	admin_survey_print(inquiry, page, node_of(report), "");
}

/* Prints what is there as far as a page goes. Whether there is more. */
static bool
print_some(struct inquiry *inquiry, struct page *page)
{
	struct list *list = inquiry->state;
	size_t count = list->order ? list->count : list->fetched;

	for (int i = 0; i < PRINTED_MOST && list->printed < count; i++) {
		size_t at = list->printed++;
		const struct limit_report *report =
			list->order ? &list->sorted[at].report : &list->reports[at];
		if (list->order || !*list->name || !strcmp(list->name, report->name))
			print_node(inquiry, page, report);
	}
	return list->printed < count;
}

static enum answer_step
write_list(struct inquiry *inquiry, struct page *page)
{
	struct list *list = inquiry->state;

	if (!list->has_begun)
		page_print(page, "{\"limits\":[");
	list->has_begun = true;
	if ((list->is_over || !list->order) && print_some(inquiry, page)) {
		inquiry->place = (int)inquiry->home;
		return ANSWER_VISIT; /* itself, in a later turn */
	}
	if (!list->is_over) {
		if (list->order)
			fetch_sorted(inquiry);
		else
			fetch(inquiry);
		inquiry->place = (int)inquiry->home;
		return ANSWER_VISIT;
	}
	page_print(page, "\n]}\n");
	return ANSWER_DONE;
}

static bool
collect_nothing(struct inquiry *inquiry)
{
	(void)inquiry;
	return true;
}

static void
end_list(struct inquiry *inquiry)
{
	struct list *list = inquiry->state;
	free(list->reports);
	free(list->sorted);
}

const struct answer admin_limits_list = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct list),
	.begin = begin_list,
	.write = write_list,
	.collect = collect_nothing,
	.end = end_list,
};

/* --- changes -------------------------------------------------------------------------------------- */

/* What is asked for, by direction; UINT64_MAX = nothing. */
struct change {
	char name[129], key[260];
	bool has_key, resets[2];
	uint64_t rate[2], burst[2], charge[2], credit[2];
	bool is_visited;
};

/* Takes `value`, an amount as the file would have it or a number, for one direction or both. */
static int
take_amount(struct inquiry *inquiry, const json_t *value, const char *name,
	    int (*parse)(const char *, uint64_t *, struct failure *), uint64_t to[2], int direction)
{
	struct failure why;
	uint64_t amount;

	if (json_is_string(value)) {
		if (parse(json_string_value(value), &amount, &why) < 0)
			return inquiry_fail(inquiry, 400, "%s: %s", name, why.text);
	} else if (json_is_integer(value) && json_integer_value(value) >= 0) {
		amount = (uint64_t)json_integer_value(value);
	} else {
		return inquiry_fail(inquiry, 400, "%s: write an amount, as \"10MB\"", name);
	}
	if (amount == UINT64_MAX)
		amount--; /* that would be nothing */
	for (int i = 0; i < 2; i++)
		if (direction < 0 || direction == i)
			to[i] = amount;
	return 0;
}

static int
direction_named(struct inquiry *inquiry, const json_t *body, int *direction)
{
	const char *text = json_string_value(json_object_get(body, "direction"));

	*direction = -1;
	if (!text || !strcmp(text, "both"))
		return 0;
	if (strcmp(text, "up") != 0 && strcmp(text, "down") != 0)
		return inquiry_fail(inquiry, 400, "direction: one of up, down and both");
	*direction = !strcmp(text, "up") ? LIMIT_UP : LIMIT_DOWN;
	return 0;
}

static int
take_word(struct inquiry *inquiry, struct change *change, const char *name, const json_t *value,
	  int direction)
{
	if (!strcmp(name, "rate"))
		return take_amount(inquiry, value, name, units_parse_rate, change->rate, -1);
	if (!strcmp(name, "up"))
		return take_amount(inquiry, value, name, units_parse_rate, change->rate, LIMIT_UP);
	if (!strcmp(name, "down"))
		return take_amount(inquiry, value, name, units_parse_rate, change->rate,
				   LIMIT_DOWN);
	if (!strcmp(name, "burst"))
		return take_amount(inquiry, value, name, units_parse_size, change->burst, -1);
	if (!strcmp(name, "charge"))
		return take_amount(inquiry, value, name, units_parse_size, change->charge,
				   direction);
	if (!strcmp(name, "credit"))
		return take_amount(inquiry, value, name, units_parse_size, change->credit,
				   direction);
	if (!strcmp(name, "reset") && json_is_true(value)) {
		change->resets[LIMIT_UP] = direction != LIMIT_DOWN;
		change->resets[LIMIT_DOWN] = direction != LIMIT_UP;
		return 0;
	}
	if (!strcmp(name, "key") && json_is_string(value) &&
	    json_string_length(value) < sizeof(change->key)) {
		memcpy(change->key, json_string_value(value), json_string_length(value) + 1);
		change->has_key = true;
		return 0;
	}
	if (!strcmp(name, "direction"))
		return 0;
	return inquiry_fail(inquiry, 400,
			    "%.40s: write rate, up, down, burst, charge, credit, reset (true), "
			    "direction or key",
			    name);
}

static int
begin_change(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	struct change *change = inquiry->state;
	json_t *body = json_loadb(request->body, request->body_bytes, JSON_REJECT_DUPLICATES, NULL);
	int direction, result = -1;
	const char *name;
	json_t *value;

	snprintf(change->name, sizeof(change->name), "%s", argument);
	for (int i = 0; i < 2; i++)
		change->rate[i] = change->burst[i] = change->charge[i] = change->credit[i] =
			UINT64_MAX;
	if (!json_is_object(body) || !json_object_size(body)) {
		inquiry_fail(inquiry, 400, "write what to change, as {\"rate\":\"10MB/s\"}");
	} else if (direction_named(inquiry, body, &direction) == 0) {
		result = 0;
		json_object_foreach(body, name, value) if (!result) result =
			take_word(inquiry, change, name, value, direction);
	}
	json_decref(body);
	return result;
}

static bool
has_values(const struct change *change)
{
	for (int i = 0; i < 2; i++)
		if (change->rate[i] != UINT64_MAX || change->burst[i] != UINT64_MAX)
			return true;
	return false;
}

static void
merge(const struct change *change, struct limit_spec *spec)
{
	for (int i = 0; i < 2; i++) {
		if (change->rate[i] != UINT64_MAX)
			spec->rate[i] = change->rate[i];
		if (change->burst[i] != UINT64_MAX)
			spec->burst[i] = change->burst[i];
	}
}

/* New values for the limit, with all its nodes, or for one node. */
static int
set_values(const struct change *change, struct limit *limit, struct limit_node *node,
	   struct failure *why)
{
	struct limit_spec spec;
	uint64_t now_ns = clock_now_ns();

	limits_spec(limit, &spec);
	if (change->has_key) {
		struct limit_report report;
		limits_report(node, now_ns, &report);
		for (int i = 0; i < 2; i++) {
			uint64_t rate = report.direction[i].rate, burst = report.direction[i].burst;
			spec.rate[i] = rate;
			if (spec.burst[i] || burst != limits_burst_default(rate, spec.quantum))
				spec.burst[i] = burst;
		}
	}
	merge(change, &spec);
	if (!change->has_key)
		return limits_change(limit, &spec, now_ns, why);
	if (limits_check(&spec, why) < 0)
		return -1;
	for (int i = 0; i < 2; i++)
		limits_retune(node, (enum limit_direction)i, spec.rate[i],
			      spec.burst[i] ? spec.burst[i]
					    : limits_burst_default(spec.rate[i], spec.quantum),
			      now_ns);
	return 0;
}

static void
adjust(const struct change *change, struct limit_node *node)
{
	uint64_t now_ns = clock_now_ns();

	for (int i = 0; i < 2; i++) {
		enum limit_direction direction = (enum limit_direction)i;
		if (change->charge[i] != UINT64_MAX)
			limits_charge(node, direction, change->charge[i], now_ns);
		if (change->credit[i] != UINT64_MAX)
			limits_credit(node, direction, change->credit[i], now_ns);
		if (change->resets[i])
			limits_reset_total(node, direction);
	}
}

static bool
has_adjustments(const struct change *change)
{
	for (int i = 0; i < 2; i++)
		if (change->charge[i] != UINT64_MAX || change->credit[i] != UINT64_MAX ||
		    change->resets[i])
			return true;
	return false;
}

/* The control thread is the one that changes limits, so `limit` stays. */
static bool
collect_change(struct inquiry *inquiry)
{
	struct change *change = inquiry->state;
	struct limit *limit = limits_find(inquiry->control->limits, change->name);
	uint64_t now_ns = clock_now_ns();
	struct failure why;

	if (!limit) {
		inquiry_fail(inquiry, 404,
			     "there is no limit \"%.64s\"; penstockctl limits shows all",
			     change->name);
		return true;
	}
	struct limit_node *node = change->has_key ? limits_by_key(inquiry->control->limits,
								  change->name, change->key, now_ns)
						  : limits_only(limit, now_ns);
	if (change->has_key && !node)
		inquiry_fail(inquiry, 404,
			     "limit \"%.64s\" has no node for the key \"%.80s\"; penstockctl "
			     "limits %.64s shows its keys",
			     change->name, change->key, change->name);
	else if (!node && has_adjustments(change))
		inquiry_fail(inquiry, 400,
			     "limit \"%.64s\" has a node for each key; say which, "
			     "in penstockctl as %.64s@KEY",
			     change->name, change->name);
	else if (has_values(change) && set_values(change, limit, node, &why) < 0)
		inquiry_fail(inquiry, 400, "%s", why.text);
	else if (node)
		adjust(change, node);
	limits_release(node, now_ns);
	return true;
}

/* What was changed, in words as an operator gives them. */
static void
note_change(const struct change *change, char *text, size_t size)
{
	static const char *const sides[] = { [LIMIT_UP] = "up", [LIMIT_DOWN] = "down" };
	size_t used = 0;
	char amount[UNITS_TEXT];

	for (int i = 0; i < 2 && used < size; i++) {
		const struct {
			const char *word;
			uint64_t bytes;
			const char *(*format)(uint64_t, char[UNITS_TEXT]);
		} values[] = { { "", change->rate[i], units_format_rate },
			       { " burst", change->burst[i], units_format_bytes },
			       { " charge", change->charge[i], units_format_bytes },
			       { " credit", change->credit[i], units_format_bytes } };
		for (size_t at = 0; at < sizeof(values) / sizeof(values[0]) && used < size; at++)
			if (values[at].bytes != UINT64_MAX)
				used += (size_t)snprintf(
					text + used, size - used, "%s %s%s %s", used ? "," : ":",
					sides[i], values[at].word,
					values[at].format(values[at].bytes, amount));
		if (change->resets[i] && used < size)
			used += (size_t)snprintf(text + used, size - used,
						 "%s %s totals begin anew", used ? "," : ":",
						 sides[i]);
	}
}

static enum answer_step
write_change(struct inquiry *inquiry, struct page *page)
{
	struct change *change = inquiry->state;

	if (!change->is_visited) {
		change->is_visited = true;
		inquiry->place = PLACE_CONTROL;
		return ANSWER_VISIT;
	}
	size_t used = (size_t)snprintf(inquiry->log, sizeof(inquiry->log),
				       "limit \"%.64s\"%s%.64s changed", change->name,
				       change->has_key ? " of " : "", change->key);
	note_change(change, inquiry->log + used, sizeof(inquiry->log) - used);
	page_print(page, "{\"ok\":true}\n");
	return ANSWER_DONE;
}

const struct answer admin_limits_change = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct change),
	.begin = begin_change,
	.write = write_change,
	.collect = collect_change,
};
