#include "generation.h"

#include "admission.h"
#include "log.h"
#include "target.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_uint alive;

#define AT(field) offsetof(struct generation, field)
const struct keyword generation_keywords[] = {
	{ .name = "workers",
	  .type = KEYWORD_COUNT,
	  .fallback = "0",
	  .most = 256,
	  .offset = AT(workers),
	  .effect = EFFECT_RESTART,
	  .unit = "threads",
	  .help = "Threads that carry connections; 0 = one for each CPU this process may use." },
	{ .name = "max_connections",
	  .type = KEYWORD_COUNT,
	  .fallback = "0",
	  .most = UINT32_MAX,
	  .offset = AT(max_connections),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .unit = "connections",
	  .help = "Most connections at once over all tunnels; 0 = what the descriptor limit "
		  "carries." },
	{ .name = "max_handshakes",
	  .type = KEYWORD_COUNT,
	  .fallback = "1024",
	  .least = 1,
	  .most = 65536,
	  .offset = AT(max_handshakes),
	  .effect = EFFECT_LIVE,
	  .unit = "handshakes",
	  .help = "Most handshakes with clients that run on each worker at once; while so many do, "
		  "further clients wait to be accepted." },
	{ .name = "max_memory",
	  .type = KEYWORD_SIZE,
	  .fallback = "0",
	  .least = UINT64_C(8) << 20,
	  .most = UINT64_C(1) << 50,
	  .offset = AT(max_memory),
	  .effect = EFFECT_LIVE,
	  .unit = "bytes",
	  .help = "Most bytes that connections take, with what is buffered for them and held by "
		  "their filters; 0 = a quarter of the machine's memory." },
	{ .name = "user",
	  .type = KEYWORD_OWNER,
	  .fallback = "",
	  .offset = AT(user),
	  .effect = EFFECT_RESTART,
	  .help = "Whom the daemon becomes when root starts it: USER, USER:GROUP or :GROUP; empty "
		  "= "
		  "it stays who it is." },
	{ .name = "landlock",
	  .type = KEYWORD_FLAG,
	  .fallback = "true",
	  .offset = AT(landlock),
	  .effect = EFFECT_RESTART,
	  .help = "Whether it may read only beneath the directories of its files, and those of the "
		  "system." },
	{ .name = "no_new_privs",
	  .type = KEYWORD_FLAG,
	  .fallback = "true",
	  .offset = AT(no_new_privs),
	  .effect = EFFECT_RESTART,
	  .help = "Whether it gives up for good to gain privileges by executing something." },
	{ .name = NULL },
};
#undef AT

static const char *const level_words[] = {
	[LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARNING] = "warning", [LOG_LEVEL_NOTICE] = "notice",
	[LOG_LEVEL_INFO] = "info",   [LOG_LEVEL_DEBUG] = "debug",     NULL
};
static const char *const format_words[] = {
	[LOG_FORMAT_TEXT] = "text", [LOG_FORMAT_JSON] = "json", NULL
};

#define AT(field) offsetof(struct log_conf, field)
const struct keyword log_keywords[] = {
	{ .name = "target",
	  .type = KEYWORD_LOG_TARGET,
	  .fallback = "auto",
	  .offset = AT(target),
	  .effect = EFFECT_LIVE,
	  .help = "Where lines go: auto (the journal under systemd, else stderr), stderr, journal "
		  "or "
		  "file:PATH." },
	{ .name = "level",
	  .type = KEYWORD_CHOICE,
	  .fallback = "info",
	  .choices = level_words,
	  .offset = AT(level),
	  .effect = EFFECT_LIVE,
	  .help = "The least urgent lines that are written." },
	{ .name = "format",
	  .type = KEYWORD_CHOICE,
	  .fallback = "text",
	  .choices = format_words,
	  .offset = AT(format),
	  .effect = EFFECT_LIVE,
	  .help = "Lines for people or one JSON object a line; the journal has its own." },
	{ .name = "connections",
	  .type = KEYWORD_FLAG,
	  .fallback = "true",
	  .offset = AT(connections),
	  .effect = EFFECT_LIVE,
	  .help = "Whether each connection's end is a line." },
	{ .name = NULL },
};
#undef AT

#define AT(field) offsetof(struct admin_conf, field)
const struct keyword admin_keywords[] = {
	{ .name = "change",
	  .type = KEYWORD_RIGHTS,
	  .fallback = "",
	  .offset = AT(change),
	  .effect = EFFECT_LIVE,
	  .help = "Who may change things by internal:admin, beside those who may only look: users "
		  "of "
		  "a UNIX socket (uid:NUMBER), names in verified certificates (cn:NAME); left out "
		  "= "
		  "root and the daemon's own user." },
	{ .name = "names",
	  .type = KEYWORD_TEXTS,
	  .fallback = "",
	  .offset = AT(names),
	  .effect = EFFECT_LIVE,
	  .help = "Host names under which internal:admin answers over TCP, beside localhost and IP "
		  "addresses." },
	{ .name = NULL },
};
#undef AT

static void
section_free(struct filter_section *section)
{
	if (section->is_configured && section->type->discard)
		section->type->discard(section->conf);
	if (section->conf)
		keyword_release(section->type->keywords, section->conf);
	free(section->conf);
	free(section->title);
	free(section);
}

struct filter_section *
generation_add_section(struct generation *generation, const struct filter_type *type,
		       const char *title, struct origin origin)
{
	struct filter_section **sections = reallocarray(
		generation->sections, generation->section_count + 1, sizeof(*sections));
	struct filter_section *section = calloc(1, sizeof(*section));
	if (sections)
		generation->sections = sections;
	if (!sections || !section)
		goto fail;
	section->type = type;
	section->origin = origin;
	section->title = strdup(title);
	section->conf = type->conf_bytes ? calloc(1, type->conf_bytes) : NULL;
	if (!section->title || (type->conf_bytes && !section->conf))
		goto fail;
	sections[generation->section_count++] = section;
	return section;

fail:
	if (section)
		section_free(section);
	return NULL;
}

struct filter_section *
generation_find_section(const struct generation *generation, const struct filter_type *type,
			const char *title)
{
	for (size_t i = 0; i < generation->section_count; i++) {
		struct filter_section *section = generation->sections[i];
		if (section->type == type && strcmp(section->title, title) == 0)
			return section;
	}
	return NULL;
}

struct tunnel_conf *
generation_add_tunnel(struct generation *generation, const char *name, struct origin origin)
{
	struct tunnel_conf **tunnels =
		reallocarray(generation->tunnels, generation->tunnel_count + 1, sizeof(*tunnels));
	struct tunnel_conf *tunnel = calloc(1, sizeof(*tunnel));
	char *copy = strdup(name);
	if (tunnels)
		generation->tunnels = tunnels;
	if (!tunnels || !tunnel || !copy ||
	    name_index_add(&generation->tunnel_names, copy, tunnel) < 0) {
		free(tunnel);
		free(copy);
		return NULL;
	}
	tunnel->name = copy;
	tunnel->origin = origin;
	tunnel->generation = &generation->counted;
	tunnel->timeouts = generation->timeouts;
	tunnels[generation->tunnel_count++] = tunnel;
	return tunnel;
}

struct limit_conf *
generation_add_limit(struct generation *generation, const char *name, struct origin origin)
{
	struct limit_conf **limits =
		reallocarray(generation->limits, generation->limit_count + 1, sizeof(*limits));
	struct limit_conf *limit = calloc(1, sizeof(*limit));
	char *copy = strdup(name);
	if (limits)
		generation->limits = limits;
	if (!limits || !limit || !copy ||
	    name_index_add(&generation->limit_names, copy, limit) < 0) {
		free(limit);
		free(copy);
		return NULL;
	}
	limit->name = copy;
	limit->origin = origin;
	limits[generation->limit_count++] = limit;
	return limit;
}

struct limit_conf *
generation_find_limit(const struct generation *generation, const char *name)
{
	return name_index_find(&generation->limit_names, name);
}

static void
discard_tunnels(struct tunnel_conf **tunnels, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		targets_release(tunnels[i]->targets);
		admission_release(tunnels[i]->live);
		tunnel_conf_release(tunnels[i]);
		free(tunnels[i]);
	}
	free(tunnels);
}

static void
discard(struct counted *counted)
{
	struct generation *generation = (struct generation *)counted;
	name_index_clear(&generation->tunnel_names);
	name_index_clear(&generation->limit_names);
	discard_tunnels(generation->fronts, generation->front_count);
	discard_tunnels(generation->tunnels, generation->tunnel_count);
	for (size_t i = 0; i < generation->section_count; i++)
		section_free(generation->sections[i]);
	free(generation->sections);
	for (size_t i = 0; i < generation->limit_count; i++) {
		limit_conf_release(generation->limits[i]);
		free(generation->limits[i]);
	}
	free(generation->limits);
	for (size_t i = 0; i < generation->file_count; i++)
		free(generation->files[i]);
	free(generation->files);
	keyword_release(log_keywords, &generation->log);
	keyword_release(admin_keywords, &generation->admin);
	free(generation->file);
	free(generation);
	atomic_fetch_sub_explicit(&alive, 1, memory_order_relaxed);
}

unsigned int
generation_count(void)
{
	return atomic_load_explicit(&alive, memory_order_relaxed);
}

struct generation *
generation_new(const char *file, struct failure *why)
{
	struct generation *generation = calloc(1, sizeof(*generation));
	if (!generation)
		goto fail;
	counted_init(&generation->counted, discard);
	atomic_fetch_add_explicit(&alive, 1, memory_order_relaxed);
	generation->file = strdup(file);
	if (!generation->file)
		goto fail;
	return generation;

fail:
	if (generation)
		counted_release(&generation->counted);
	failure_set(why, FAILURE_MEMORY, "no memory for a configuration");
	return NULL;
}

struct tunnel_conf *
generation_find(const struct generation *generation, const char *name)
{
	return name_index_find(&generation->tunnel_names, name);
}

const struct tunnel_conf *
generation_counted(const struct generation *generation, size_t index)
{
	if (index < generation->tunnel_count)
		return generation->tunnels[index];
	index -= generation->tunnel_count;
	for (size_t i = 0; i < generation->front_count; i++)
		if (generation->fronts[i]->group->count > 1 && !index--)
			return generation->fronts[i];
	return NULL;
}
