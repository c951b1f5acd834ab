#include "config_kinds.h"

#include "config_value.h"
#include "filters/registry.h"
#include "generation.h"

#include <assert.h>
#include <string.h>

#define OWN_KINDS    5  /* of in_file: what stands there beside the filters' */
#define FILTERS_MOST 16 /* registered */

static const struct config_kind *const nothing[] = { NULL };
const struct config_kind config_kinds_timeouts = { .name = "timeouts",
						   .keywords = timeouts_keywords,
						   .inside = nothing };
const struct config_kind config_kinds_log = { .name = "log",
					      .keywords = log_keywords,
					      .inside = nothing };
const struct config_kind config_kinds_admin = { .name = "admin",
						.keywords = admin_keywords,
						.inside = nothing };
const struct config_kind config_kinds_match = { .name = "match",
						.keywords = match_keywords,
						.inside = nothing };
const struct config_kind config_kinds_check = { .name = "check",
						.keywords = check_keywords,
						.inside = nothing };
static const struct config_kind *const in_tunnel[] = { &config_kinds_timeouts, &config_kinds_match,
						       &config_kinds_check, NULL };
const struct config_kind config_kinds_tunnel = {
	.name = "tunnel", .keywords = tunnel_keywords, .has_title = true, .inside = in_tunnel
};
const struct config_kind config_kinds_limit = {
	.name = "limit", .keywords = limit_keywords, .has_title = true, .inside = nothing
};
static struct config_kind filter_kinds[FILTERS_MOST];
static const struct config_kind *in_file[OWN_KINDS + FILTERS_MOST + 1] = {
	&config_kinds_log, &config_kinds_timeouts, &config_kinds_admin, &config_kinds_limit,
	&config_kinds_tunnel
};
const struct config_kind config_kinds_file = { .keywords = generation_keywords, .inside = in_file };

void
config_kinds_prepare(void)
{
	static const struct keyword no_keywords[] = { { .name = NULL } };
	for (size_t i = 0; registry_filters[i]; i++) {
		const struct filter_type *type = registry_filters[i];
		assert(i < FILTERS_MOST);
		filter_kinds[i] = (struct config_kind){
			.name = type->name,
			.keywords = type->keywords ? type->keywords : no_keywords,
			.has_title = true,
			.inside = nothing,
			.filter = type,
		};
		in_file[OWN_KINDS + i] = &filter_kinds[i];
	}
}

size_t
config_kinds_count_keywords(const struct config_kind *kind)
{
	size_t count = 0;
	while (kind->keywords[count].name)
		count++;
	assert(count <= CONFIG_KINDS_ROWS_MOST);
	return count;
}

size_t
config_kinds_count_inside(const struct config_kind *kind)
{
	size_t count = 0;
	while (kind->inside[count])
		count++;
	return count;
}

const struct keyword *
config_kinds_keyword(const struct config_kind *kind, const char *name)
{
	for (const struct keyword *row = kind->keywords; row->name; row++)
		if (strcmp(row->name, name) == 0)
			return row;
	return NULL;
}

const struct config_kind *
config_kinds_section(const struct config_kind *kind, const char *name)
{
	for (const struct config_kind *const *inside = kind->inside; *inside; inside++)
		if (strcmp((*inside)->name, name) == 0)
			return *inside;
	return NULL;
}

bool
config_kinds_is_filter(const char *name)
{
	const struct config_kind *kind = config_kinds_section(&config_kinds_file, name);
	return kind && kind->filter;
}

static void
print_keyword(FILE *out, int depth, const struct keyword *row, bool is_override)
{
	static const char *const effects[] = { [EFFECT_LIVE] = "live",
					       [EFFECT_NEW_CONNECTIONS] = "new connections",
					       [EFFECT_RESTART] = "restart" };
	char range[CONFIG_VALUE_RANGE];
	config_value_range(row, range);
	fprintf(out, "%*s%s: %s", depth * 8, "", row->name, config_value_type_name(row));
	if (is_override)
		fprintf(out, "; default as outside of the tunnel");
	else if (row->fallback)
		fprintf(out, "; default %s", *row->fallback ? row->fallback : "empty");
	else
		fprintf(out, "; required");
	fprintf(out, "%s%s; effect %s; %s\n", *range ? "; " : "", range, effects[row->effect],
		row->help);
}

static void
print_section(FILE *out, int depth, const struct config_kind *kind)
{
	for (const struct keyword *row = kind->keywords; row->name; row++)
		print_keyword(out, depth, row, depth > 1 && kind == &config_kinds_timeouts);
	for (const struct config_kind *const *inside = kind->inside; *inside; inside++) {
		fprintf(out, "%*s%s %s{\n", depth * 8, "", (*inside)->name,
			(*inside)->has_title ? "\"NAME\" " : "");
		print_section(out, depth + 1, *inside);
		fprintf(out, "%*s}\n", depth * 8, "");
	}
}

void
config_kinds_print(FILE *out)
{
	config_kinds_prepare();
	print_section(out, 0, &config_kinds_file);
	fprintf(out, "include(\"FILE\"): Reads another file; a relative name is taken from the "
		     "directory of the file it stands in.\n");
}
