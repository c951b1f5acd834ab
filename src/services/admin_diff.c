#include "admin_answers.h"
#include "admin_survey.h"
#include "admission.h"
#include "config_diff.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/*
 * What a reload would change. The configuration is loaded as for one, by the control thread, compared with
 * the one in force and thrown away.
 */

struct comparison {
	struct admin_wish wish; /* first */
	struct inquiry *inquiry;
	bool has_been;
	char *text; /* the answer; owned */
};

/* Whether the tunnel has to do with that section of its generation. */
static bool
uses(const struct tunnel_conf *tunnel, const struct config_change *change,
     const struct filter_section *section)
{
	const struct chain *chains[] = { &tunnel->near_chain, &tunnel->far_chain };

	if (strcmp(change->section, "tunnel") == 0)
		return strcmp(tunnel->name, change->title) == 0;
	if (strcmp(change->section, "limit") == 0)
		return strcmp(tunnel->limit_name, change->title) == 0 ||
		       strcmp(tunnel->connect_limit_name, change->title) == 0;
	if (!section)
		return true; /* it concerns the whole daemon */
	for (int side = 0; side < 2; side++)
		for (size_t i = 0; i < chains[side]->count; i++)
			if (chains[side]->at[i].type == section->type &&
			    chains[side]->at[i].conf == section->conf)
				return true;
	return false;
}

static const struct filter_section *
section_of(const struct generation *generation, const struct config_change *change)
{
	for (size_t i = 0; i < generation->section_count; i++)
		if (strcmp(generation->sections[i]->type->name, change->section) == 0 &&
		    strcmp(generation->sections[i]->title, change->title) == 0)
			return generation->sections[i];
	return NULL;
}

/* How many connections of the configuration in force the change has to do with. */
static json_int_t
touched(const struct generation *generation, const struct config_change *change)
{
	const struct filter_section *section = section_of(generation, change);
	json_int_t count = 0;

	if (change->kind == CONFIG_ADDED)
		return 0;
	for (size_t i = 0; i < generation->tunnel_count; i++) {
		struct tunnel_sums sum;
		if (!uses(generation->tunnels[i], change, section))
			continue;
		admission_sum(generation->tunnels[i]->live, &sum);
		for (int state = 0; state < TUNNEL_STATES; state++)
			count += sum.state[state];
	}
	return count;
}

struct listing {
	const struct generation *old;
	json_t *list;
};

static const char *
effect_of(const struct config_change *change)
{
	static const char *const effects[] = {
		[EFFECT_LIVE] = "live",
		[EFFECT_NEW_CONNECTIONS] = "new connections",
		[EFFECT_RESTART] = "restart",
	};
	return effects[config_diff_effect(change)];
}

static void
list_change(const struct config_change *change, void *context)
{
	static const char *const kinds[] = {
		[CONFIG_CHANGED] = "changed",
		[CONFIG_ADDED] = "added",
		[CONFIG_REMOVED] = "removed",
	};
	struct listing *listing = context;
	json_t *one = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "kind", kinds[change->kind],
				"section", change->section, "title", change->title, "inside",
				change->inside, "effect", effect_of(change), "connections",
				touched(listing->old, change));
	if (change->row) {
		admin_survey_set(&one, "keyword", json_string(change->row->name));
		admin_survey_set(&one, "before", admin_survey_text(change->before));
		admin_survey_set(&one, "after", admin_survey_text(change->after));
	}
	admin_survey_append(&listing->list, one);
}

static void
on_compared(struct admin_wish *wish, const struct failure *why)
{
	struct comparison *comparison = (struct comparison *)wish;
	struct listing listing = { wish->old, json_array() };

	if (why) {
		inquiry_fail(comparison->inquiry, 409, "%s", why->text);
	} else if (config_diff_each(wish->old, wish->fresh, list_change, &listing) < 0) {
		inquiry_fail(comparison->inquiry, 503, "no memory to compare");
	} else {
		json_t *all = json_pack("{s:O}", "differences", listing.list);
		comparison->text = json_dumps(all, JSON_COMPACT);
		json_decref(all);
	}
	json_decref(listing.list);
	inquiry_go_home(comparison->inquiry);
}

static int
begin(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	(void)request;
	(void)argument;
	if (inquiry->may_change)
		return 0;
	return inquiry_fail(inquiry, 403,
			    "who may not reload has no use for this; see admin { change } in "
			    "penstock.conf(5)");
}

static bool
collect(struct inquiry *inquiry)
{
	struct comparison *comparison = inquiry->state;

	comparison->inquiry = inquiry;
	comparison->wish.over = on_compared;
	inquiry->control->compare(inquiry->control->context, &comparison->wish);
	return false;
}

static enum answer_step
write_diff(struct inquiry *inquiry, struct page *page)
{
	struct comparison *comparison = inquiry->state;

	if (!comparison->has_been) {
		comparison->has_been = true;
		inquiry->place = PLACE_CONTROL;
		return ANSWER_VISIT;
	}
	if (inquiry->status == 200 && comparison->text)
		page_print(page, "%s\n", comparison->text);
	else if (inquiry->status == 200)
		inquiry_fail(inquiry, 503, "no memory to compare");
	return ANSWER_DONE;
}

static void
end(struct inquiry *inquiry)
{
	free(((struct comparison *)inquiry->state)->text);
}

const struct answer admin_diff_all = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct comparison),
	.begin = begin,
	.write = write_diff,
	.collect = collect,
	.end = end,
};
