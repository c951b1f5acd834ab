#include "config_chains.h"

#include "config_value.h"
#include "filters/registry.h"
#include "nearest.h"

#include <stdlib.h>
#include <string.h>

struct check {
	struct generation *generation;
	struct config_report *report;
	struct origin origin; /* of the name that is looked at */
};

void
config_chains_configure(struct filter_section *section, struct config_report *report)
{
	struct failure why;
	section->is_configured = true;
	section->is_wrong =
		section->type->configure && section->type->configure(section->conf, &why) < 0;
	if (section->is_wrong)
		config_report_error(report, section->origin, "%s \"%s\": %s", section->type->name,
				    section->title, why.text);
	else if (section->type->doubt && section->type->doubt(section->conf, &why) < 0)
		config_report_warning(report, section->origin, "%s \"%s\": %s", section->type->name,
				      section->title, why.text);
}

static void
refuse_memory(const struct check *check)
{
	config_report_error(check->report, check->origin, "no memory for a chain; free some");
}

/* The filter that others call so, or NULL. */
static const char *
our_filter(const char *name)
{
	static const char *const words[][2] = {
		{ "ssl", "tls" },          { "proxy", "proxy_protocol" },
		{ "gzip", "zlib" },        { "send-proxy", "proxy_protocol" },
		{ "deflate", "zlib" },     { "send-proxy-v2", "proxy_protocol" },
		{ "compression", "zstd" }, { "accept-proxy", "proxy_protocol" },
	};
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(name, words[i][0]) == 0)
			return words[i][1];
	return NULL;
}

/* The first section of a filter that has this title, or NULL. */
static const struct filter_section *
titled(const struct check *check, const char *title)
{
	for (size_t i = 0; i < check->generation->section_count; i++)
		if (*title && strcmp(check->generation->sections[i]->title, title) == 0)
			return check->generation->sections[i];
	return NULL;
}

static void
refuse_type(const struct check *check, const char *name)
{
	struct nearest nearest;
	char all[256] = "";
	size_t used = 0;
	const char *better = our_filter(name);
	const struct filter_section *section = titled(check, name);
	nearest_start(&nearest, name);
	for (size_t i = 0; registry_filters[i]; i++) {
		nearest_offer(&nearest, registry_filters[i]->name);
		if (used < sizeof(all))
			used += (size_t)snprintf(all + used, sizeof(all) - used, "%s%s",
						 used ? ", " : "", registry_filters[i]->name);
	}
	if (!better)
		better = nearest.best;
	if (section)
		config_report_error(check->report, check->origin,
				    "there is no filter '%.60s'; did you mean '%s:%s'?", name,
				    section->type->name, section->title);
	else if (better)
		config_report_error(check->report, check->origin,
				    "there is no filter '%.60s'; did you mean '%s'?", name, better);
	else
		config_report_error(check->report, check->origin,
				    "there is no filter '%.60s'; write one of %s", name, all);
}

static void
refuse_title(const struct check *check, const struct filter_type *type, const char *title)
{
	struct nearest nearest;
	nearest_start(&nearest, title);
	for (size_t i = 0; i < check->generation->section_count; i++)
		if (check->generation->sections[i]->type == type)
			nearest_offer(&nearest, check->generation->sections[i]->title);
	if (nearest.best)
		config_report_error(check->report, check->origin,
				    "there is no section %s \"%.60s\"; did you mean \"%s\"?",
				    type->name, title, nearest.best);
	else
		config_report_error(check->report, check->origin,
				    "there is no section %s \"%.60s\"; write one, or \"%s\" alone "
				    "for its defaults",
				    type->name, title, type->name);
}

/* The section of a filter that is named alone. */
static struct filter_section *
default_section(const struct check *check, const struct filter_type *type)
{
	struct failure why;
	struct filter_section *section = generation_find_section(check->generation, type, "");
	if (section)
		return section;
	section = generation_add_section(check->generation, type, "", check->origin);
	if (!section) {
		refuse_memory(check);
		return NULL;
	}
	for (const struct keyword *row = type->keywords; row && row->name; row++) {
		if (!row->fallback) {
			config_report_error(check->report, check->origin,
					    "%s needs a section, as its %s has no default; write "
					    "%s \"NAME\" { %s = ... } and name \"%s:NAME\"",
					    type->name, row->name, type->name, row->name,
					    type->name);
			return NULL;
		}
		if (config_value_default(row, section->conf, &why))
			refuse_memory(check);
	}
	config_chains_configure(section, check->report);
	return section;
}

/* What "FILTER" or "FILTER:TITLE" means, or NULL. */
static struct filter_section *
find(const struct check *check, const char *text)
{
	const char *colon = strchr(text, ':');
	if (strpbrk(text, ", ")) {
		config_report_error(check->report, check->origin,
				    "'%.60s' is no filter; write a list, such as { \"tls:NAME\", "
				    "\"zlib\" }",
				    text);
		return NULL;
	}
	char *name = strndup(text, colon ? (size_t)(colon - text) : strlen(text));
	if (!name) {
		refuse_memory(check);
		return NULL;
	}
	const struct filter_type *type = registry_find(name);
	struct filter_section *section = NULL;
	if (!type)
		refuse_type(check, name);
	else if (!colon)
		section = default_section(check, type);
	else
		section = generation_find_section(check->generation, type, colon + 1);
	if (type && colon && !section)
		refuse_title(check, type, colon + 1);
	free(name);
	return section;
}

static void
add_link(const struct check *check, struct chain *chain, struct filter_section *section,
	 enum filter_side side)
{
	struct failure why;
	section->is_used[side] = true;
	if (section->type->fits && !section->is_wrong &&
	    section->type->fits(section->conf, side, &why) < 0)
		config_report_error(check->report, check->origin, "%s%s%s: %s", section->type->name,
				    *section->title ? ":" : "", section->title, why.text);
	if (chain->count == CHAIN_FILTERS) {
		config_report_error(check->report, check->origin,
				    "a chain has more than %d filters; leave some out",
				    CHAIN_FILTERS);
		return;
	}
	struct chain_link *at = reallocarray(chain->at, chain->count + 1, sizeof(*at));
	if (!at) {
		refuse_memory(check);
		return;
	}
	chain->at = at;
	chain->at[chain->count++] = (struct chain_link){ section->type, section->conf };
}

/* Where the tunnel's filters towards targets ask for a host, each target has one. */
static void
check_hosts(const struct check *check, const struct tunnel_conf *tunnel,
	    const struct filter_section *section)
{
	if (section->is_wrong || !section->type->needs_host ||
	    !section->type->needs_host(section->conf))
		return;
	for (size_t i = 0; i < tunnel_conf_target_count(tunnel); i++) {
		const struct address *address = tunnel_conf_target(tunnel, i);
		if (address->kind != ADDRESS_IP && address->kind != ADDRESS_HOST)
			config_report_error(
				check->report, check->origin,
				"%s%s%s: the target %s has no name that its certificate "
				"could be checked for; write server_name in the section",
				section->type->name, *section->title ? ":" : "", section->title,
				address->text);
	}
}

/* The chain's last filter stands inside of the others. */
static void
check_order(const struct check *check, const struct chain *chain)
{
	const struct filter_type *inner = chain->at[chain->count - 1].type;
	for (size_t i = 0; inner->traits & FILTER_ENCRYPTS && i + 1 < chain->count; i++)
		if (chain->at[i].type->traits & FILTER_PACKS)
			config_report_warning(
				check->report, check->origin,
				"%s stands outside of %s, and nothing that is encrypted "
				"gets smaller; the wire comes first, so write %s before "
				"it",
				chain->at[i].type->name, inner->name, inner->name);
}

static void
check_chains(struct check *check, const struct config_places *places, enum filter_side side)
{
	for (size_t i = 0; i < places->count; i++) {
		const struct config_place *place = &places->at[i];
		struct tunnel_conf *tunnel = check->generation->tunnels[place->tunnel];
		bool near = side == FILTER_NEAR;
		const struct text_list *names =
			near ? &tunnel->accept_filters : &tunnel->connect_filters;
		check->origin = place->origin;
		struct filter_section *section = find(check, names->at[place->index]);
		if (!section)
			continue;
		struct chain *chain = near ? &tunnel->near_chain : &tunnel->far_chain;
		add_link(check, chain, section, side);
		if (chain->count)
			check_order(check, chain);
		if (!near)
			check_hosts(check, tunnel, section);
		else if (section->type->traits & FILTER_SHAKES_HANDS)
			tunnel->shakes_hands = true;
	}
}

static void
check_use(const struct filter_section *section, struct config_report *report)
{
	struct failure why;
	if (section->is_wrong || !section->type->suits)
		return;
	int found = section->type->suits(section->conf, section->is_used, &why);
	if (found)
		(found < 0 ? config_report_error
			   : config_report_warning)(report, section->origin, "%s \"%s\": %s",
						    section->type->name, section->title, why.text);
}

void
config_chains_check(struct generation *generation, const struct config_places *accept_filters,
		    const struct config_places *connect_filters, struct config_report *report)
{
	struct check check = { .generation = generation, .report = report };
	check_chains(&check, accept_filters, FILTER_NEAR);
	check_chains(&check, connect_filters, FILTER_FAR);
	for (size_t i = 0; i < generation->section_count; i++) {
		const struct filter_section *section = generation->sections[i];
		if (section->is_used[FILTER_NEAR] || section->is_used[FILTER_FAR])
			check_use(section, report);
		else
			config_report_warning(report, section->origin,
					      "no tunnel uses %s \"%s\"; leave it out, or name "
					      "\"%s:%s\" in accept_filters or connect_filters",
					      section->type->name, section->title,
					      section->type->name, section->title);
	}
}
