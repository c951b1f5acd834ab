#include "choice.h"

#include <string.h>

bool
choice_name_fits(const char *pattern, const char *name)
{
	size_t length = strlen(name), tail = strlen(pattern + (*pattern == '*'));
	if (*pattern != '*')
		return strcmp(pattern, name) == 0;
	return length > tail && strcmp(name + length - tail, pattern + 1) == 0;
}

bool
choice_name_covers(const char *wide, const char *narrow)
{
	if (*narrow != '*')
		return choice_name_fits(wide, narrow);
	/* What "*.a.example" fits ends with ".a.example", and so with ".example". */
	return strcmp(wide, narrow) == 0 || choice_name_fits(wide, narrow + 1) ||
	       (*wide == '*' && wide[1] == '\0');
}

static bool
name_fits(const struct text_list *patterns, const char *name)
{
	for (size_t i = 0; name && i < patterns->count; i++)
		if (choice_name_fits(patterns->at[i], name))
			return true;
	return !patterns->count;
}

/* Whether a list with commas between names that one. */
static bool
is_listed(const char *list, const char *name)
{
	size_t length = strlen(name);
	while (list) {
		const char *comma = strchr(list, ',');
		size_t here = comma ? (size_t)(comma - list) : strlen(list);
		if (here == length && memcmp(list, name, length) == 0)
			return true;
		list = comma ? comma + 1 : NULL;
	}
	return false;
}

static bool
protocol_fits(const struct text_list *protocols, const char *offered)
{
	for (size_t i = 0; i < protocols->count; i++)
		if (is_listed(offered, protocols->at[i]))
			return true;
	return !protocols->count;
}

static bool
source_fits(const struct prefix_list *sources, const struct socket_address *client)
{
	return !sources->count || prefix_list_contains(sources, client);
}

enum choice_result
choice_make(const struct tunnel_group *group, const struct facts *facts, bool looked,
	    const struct tunnel_conf **chosen)
{
	for (size_t i = 0; i < group->count; i++) {
		const struct match_conf *match = &group->tunnels[i]->match;
		if (!source_fits(&match->source, &facts->client))
			continue;
		if (!looked && (match->sni.count || match->alpn.count))
			return CHOICE_LOOK;
		/* A name asked for in TLS that a tunnel before this one has ended is not meant. */
		const char *name = facts->begins_with_tls ? facts->sni : NULL;
		const char *offered = facts->begins_with_tls ? facts->alpn_offered : NULL;
		if (!name_fits(&match->sni, name) || !protocol_fits(&match->alpn, offered))
			continue;
		*chosen = group->tunnels[i];
		return CHOICE_MADE;
	}
	return CHOICE_NOBODY;
}
