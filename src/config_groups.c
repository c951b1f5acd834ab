#include "config_groups.h"

#include "choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MOST     253
#define PROTOCOL_MOST 255

/* ------------------------------------------------------------------ what a match says */

static bool
is_name_byte(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

/* "a.example", "*.example", "*", in small letters. */
static bool
is_pattern(const char *text)
{
	size_t length = strlen(text);
	if (strcmp(text, "*") == 0)
		return true;
	if (strncmp(text, "*.", 2) == 0)
		text += 2;
	if (!*text || length > NAME_MOST)
		return false;
	for (char before = '.'; *text; before = *text++)
		if (*text == '.' ? before == '.' || !text[1] : !is_name_byte(*text))
			return false;
	return true;
}

/* Names are compared without regard to case, and may end with the dot of the root. */
static void
prepare_name(char *text)
{
	size_t length = strlen(text);
	for (char *at = text; *at; at++)
		if (*at >= 'A' && *at <= 'Z')
			*at = (char)(*at + ('a' - 'A'));
	if (length > 1 && text[length - 1] == '.')
		text[length - 1] = '\0';
}

static bool
is_protocol(const char *text)
{
	size_t length = strlen(text);
	for (const char *at = text; *at; at++)
		if (*at <= ' ' || *at >= 0x7f || *at == ',')
			return false;
	return length > 0 && length <= PROTOCOL_MOST;
}

void
config_groups_prepare(struct tunnel_conf *tunnel, struct config_report *report)
{
	struct match_conf *match = &tunnel->match;
	if (!match->origin.line)
		return;
	for (size_t i = 0; i < match->sni.count; i++) {
		prepare_name(match->sni.at[i]);
		if (!is_pattern(match->sni.at[i]))
			config_report_error(report, match->origin,
					    "sni: '%.100s' is not a server name; write NAME, "
					    "*.DOMAIN or *",
					    match->sni.at[i]);
	}
	for (size_t i = 0; i < match->alpn.count; i++)
		if (!is_protocol(match->alpn.at[i]))
			config_report_error(report, match->origin,
					    "alpn: '%.100s' is not a protocol; write one such as "
					    "h2 or http/1.1",
					    match->alpn.at[i]);
	if (!match->sni.count && !match->alpn.count && !match->source.count)
		config_report_error(report, match->origin,
				    "match says nothing; write sni, alpn or source in it, or leave "
				    "it out");
}

/* ------------------------------------------------------------------ what is never reached */

/* Two tunnels at one address, the first of which is tried before the second. */
struct rivals {
	const struct tunnel_conf *first, *second;
	const char *address;
	struct config_report *report;
};

static bool
name_is_covered(const struct match_conf *first, const char *name)
{
	for (size_t i = 0; i < first->sni.count; i++)
		if (choice_name_covers(first->sni.at[i], name))
			return true;
	return !first->sni.count;
}

static bool
protocol_is_covered(const struct match_conf *first, const char *protocol)
{
	for (size_t i = 0; i < first->alpn.count; i++)
		if (strcmp(first->alpn.at[i], protocol) == 0)
			return true;
	return !first->alpn.count;
}

static bool
source_is_covered(const struct match_conf *first, const struct prefix *source)
{
	for (size_t i = 0; i < first->source.count; i++)
		if (prefix_covers(&first->source.at[i], source))
			return true;
	return !first->source.count;
}

/* Whether all that the second asks for in one list is what the first takes; a list that asks for nothing
 * is only covered by another such. */
static bool
names_are_covered(const struct match_conf *first, const struct match_conf *second)
{
	for (size_t i = 0; i < second->sni.count; i++)
		if (!name_is_covered(first, second->sni.at[i]))
			return false;
	return second->sni.count || !first->sni.count;
}

static bool
protocols_are_covered(const struct match_conf *first, const struct match_conf *second)
{
	for (size_t i = 0; i < second->alpn.count; i++)
		if (!protocol_is_covered(first, second->alpn.at[i]))
			return false;
	return second->alpn.count || !first->alpn.count;
}

static bool
sources_are_covered(const struct match_conf *first, const struct match_conf *second)
{
	for (size_t i = 0; i < second->source.count; i++)
		if (!source_is_covered(first, &second->source.at[i]))
			return false;
	return second->source.count || !first->source.count;
}

static void
refuse_entry(const struct rivals *rivals, const char *list, const char *entry)
{
	config_report_error(
		rivals->report, rivals->second->match.origin,
		"%s '%.100s' is never reached on %s: tunnel \"%s\" stands before it and "
		"takes those clients (%s:%u); put the narrower match first, or leave it "
		"out",
		list, entry, rivals->address, rivals->first->name, rivals->first->match.origin.file,
		rivals->first->match.origin.line);
}

static void
check_rivals(const struct rivals *rivals)
{
	const struct match_conf *first = &rivals->first->match, *second = &rivals->second->match;
	bool names = names_are_covered(first, second);
	bool protocols = protocols_are_covered(first, second);
	bool sources = sources_are_covered(first, second);
	char text[SOCKET_ADDRESS_TEXT];

	if (names && protocols && sources) {
		config_report_error(rivals->report, second->origin,
				    "tunnel \"%s\" is never reached on %s: tunnel \"%s\" stands "
				    "before it and takes all its clients (%s:%u); put the narrower "
				    "match first, or leave it out",
				    rivals->second->name, rivals->address, rivals->first->name,
				    first->origin.file, first->origin.line);
		return;
	}
	for (size_t i = 0; protocols && sources && i < second->sni.count; i++)
		if (name_is_covered(first, second->sni.at[i]))
			refuse_entry(rivals, "sni", second->sni.at[i]);
	for (size_t i = 0; names && sources && i < second->alpn.count; i++)
		if (protocol_is_covered(first, second->alpn.at[i]))
			refuse_entry(rivals, "alpn", second->alpn.at[i]);
	for (size_t i = 0; names && protocols && i < second->source.count; i++)
		if (source_is_covered(first, &second->source.at[i]))
			refuse_entry(rivals, "source", prefix_format(&second->source.at[i], text));
}

static void
check_reach(const struct tunnel_group *group, const char *address, struct config_report *report)
{
	for (size_t second = 1; second < group->count; second++)
		for (size_t first = 0; first < second && group->tunnels[second]->match.origin.line;
		     first++) {
			struct rivals rivals = { group->tunnels[first], group->tunnels[second],
						 address, report };
			check_rivals(&rivals);
		}
}

/* ------------------------------------------------------------------ what must be the same */

static const void *
leading_conf(const struct tunnel_conf *tunnel)
{
	return tunnel_conf_leading(tunnel) ? tunnel->near_chain.at[0].conf : NULL;
}

static void
check_alike(const struct config_place *place, const struct tunnel_conf *tunnel,
	    const struct tunnel_conf *other, struct config_report *report)
{
	const struct address *address = &tunnel->listen.at[place->index];
	if (leading_conf(tunnel) != leading_conf(other))
		config_report_error(
			report, place->origin,
			"tunnels \"%s\" and \"%s\" (%s:%u) share %s and do not begin with the same "
			"%s section; write the same one first in the accept_filters of both",
			tunnel->name, other->name, other->origin.file, other->origin.line,
			address->text,
			(tunnel_conf_leading(tunnel) ? tunnel : other)
				->near_chain.at[0]
				.type->name);
	if (address->kind == ADDRESS_UNIX && (tunnel->unix_mode != other->unix_mode ||
					      tunnel->unix_owner.uid != other->unix_owner.uid ||
					      tunnel->unix_owner.gid != other->unix_owner.gid))
		config_report_error(
			report, place->origin,
			"tunnels \"%s\" and \"%s\" (%s:%u) share %s and differ in unix_mode or "
			"unix_owner; write the same for both",
			tunnel->name, other->name, other->origin.file, other->origin.line,
			address->text);
}

/* ------------------------------------------------------------------ fronts */

static void
group_free(struct tunnel_group *group)
{
	if (group)
		free(group->tunnels);
	free(group);
}

/* In the order of the files, the one that takes the rest last. */
static struct tunnel_group *
group_new(const struct generation *generation, const struct config_place *places, size_t count)
{
	struct tunnel_group *group = calloc(1, sizeof(*group));
	const struct tunnel_conf *rest = NULL;
	if (!group)
		return NULL;
	group->tunnels = calloc(count, sizeof(struct tunnel_conf *));
	if (!group->tunnels) {
		free(group);
		return NULL;
	}
	for (size_t i = 0; i < count; i++) {
		const struct tunnel_conf *tunnel = generation->tunnels[places[i].tunnel];
		if (tunnel->match.origin.line)
			group->tunnels[group->count++] = tunnel;
		else
			rest = tunnel;
	}
	group->has_match = group->count > 0;
	if (rest)
		group->tunnels[group->count++] = rest;
	return group;
}

/* "web|mail|rest" */
static char *
join_names(const struct tunnel_group *group)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	if (!out)
		return NULL;
	for (size_t i = 0; i < group->count; i++)
		fprintf(out, "%s%s", i ? "|" : "", group->tunnels[i]->name);
	if (fclose(out) == 0)
		return text;
	free(text);
	return NULL;
}

static int
take_leading(struct tunnel_conf *front, const struct tunnel_conf *first)
{
	if (!tunnel_conf_leading(first))
		return 0;
	front->near_chain.at = malloc(sizeof(struct chain_link));
	if (!front->near_chain.at)
		return -1;
	front->near_chain.at[0] = first->near_chain.at[0];
	front->near_chain.count = 1;
	return 0;
}

/* What fits none of them is a line if it would be one in any. */
static int
least_logged(const struct tunnel_group *group)
{
	int logged = group->tunnels[0]->logged;
	for (size_t i = 1; i < group->count; i++)
		if (group->tunnels[i]->logged < logged)
			logged = group->tunnels[i]->logged;
	return logged;
}

static bool
some_shake_hands(const struct tunnel_group *group)
{
	for (size_t i = 0; i < group->count; i++)
		if (group->tunnels[i]->shakes_hands)
			return true;
	return false;
}

/* Takes the group. `first` is the first of the files: its listener's options hold. */
static struct tunnel_conf *
front_new(struct generation *generation, struct tunnel_group *group,
	  const struct tunnel_conf *first)
{
	struct tunnel_conf **fronts =
		reallocarray(generation->fronts, generation->front_count + 1, sizeof(*fronts));
	struct tunnel_conf *front = calloc(1, sizeof(*front));
	if (fronts)
		generation->fronts = fronts;
	if (!fronts || !front) {
		free(front);
		group_free(group);
		return NULL;
	}
	bool is_alone = group->count == 1;
	*front = (struct tunnel_conf){
		.name = join_names(group),
		.origin = first->origin,
		.generation = &generation->counted,
		.group = group,
		.timeouts = is_alone ? first->timeouts : generation->timeouts,
		.max_connections = is_alone ? first->max_connections : 0,
		.keepalive = first->keepalive,
		.backlog = first->backlog,
		.unix_mode = first->unix_mode,
		.unix_owner = first->unix_owner,
		.logged = least_logged(group),
		.shakes_hands = some_shake_hands(group),
	};
	fronts[generation->front_count++] = front;
	return front->name && take_leading(front, first) == 0 ? front : NULL;
}

/* One front serves all the addresses that the same tunnels share. */
static struct tunnel_conf *
find_front(const struct generation *generation, const struct tunnel_group *group)
{
	for (size_t i = 0; i < generation->front_count; i++) {
		const struct tunnel_group *known = generation->fronts[i]->group;
		if (known->count == group->count &&
		    memcmp(known->tunnels, group->tunnels,
			   group->count * sizeof(*group->tunnels)) == 0)
			return generation->fronts[i];
	}
	return NULL;
}

void
config_groups_join(struct generation *generation, const struct config_place *places, size_t count,
		   struct config_report *report)
{
	const struct tunnel_conf *first = generation->tunnels[places[0].tunnel];
	if (count == 1 && !first->match.origin.line && !tunnel_conf_leading(first))
		return;
	struct tunnel_group *group = group_new(generation, places, count);
	struct tunnel_conf *front = group ? find_front(generation, group) : NULL;
	if (group && !front)
		check_reach(group, first->listen.at[places[0].index].text, report);
	for (size_t i = 1; i < count; i++)
		check_alike(&places[i], generation->tunnels[places[i].tunnel], first, report);
	if (front)
		group_free(group);
	else if (group)
		front = front_new(generation, group, first);
	if (!front) {
		config_report_error(report, places[0].origin,
				    "no memory for tunnels that share an address; free some");
		return;
	}
	for (size_t i = 0; i < count; i++)
		generation->tunnels[places[i].tunnel]->fronts[places[i].index] = front;
}
