/*
 * config_kinds: what may be written: the kinds of sections, the keywords and sections that stand in each.
 * The kinds themselves are constant; those of filters are made of the registry.
 */
#ifndef PENSTOCK_CONFIG_KINDS_H
#define PENSTOCK_CONFIG_KINDS_H

#include "filter.h"
#include "keyword.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define CONFIG_KINDS_ROWS_MOST 32 /* keywords of a section */

struct config_kind {
	const char *name; /* NULL = the file itself */
	const struct keyword *keywords;
	bool has_title;
	const struct config_kind *const *inside; /* ends with NULL */
	const struct filter_type *filter;        /* whose section it is, or NULL */
};

extern const struct config_kind config_kinds_file, config_kinds_log, config_kinds_admin,
	config_kinds_timeouts, config_kinds_match, config_kinds_check, config_kinds_tunnel,
	config_kinds_limit;

/* Adds the kinds of all registered filters to what a file may hold. Before the others, as often as one likes;
 * control thread or start-up. */
void config_kinds_prepare(void);

size_t config_kinds_count_keywords(const struct config_kind *kind);
size_t config_kinds_count_inside(const struct config_kind *kind);

/* What of that name may stand there; NULL = nothing. */
const struct keyword *config_kinds_keyword(const struct config_kind *kind, const char *name);
const struct config_kind *config_kinds_section(const struct config_kind *kind, const char *name);

/* Whether the section of that name is a filter's. */
bool config_kinds_is_filter(const char *name);

/* Every keyword with type, default, range, effect and sentence, one a line, sections indented: what
 * `penstockd --keywords` prints and the manual is checked against. */
void config_kinds_print(FILE *out);

#endif
