#include "config_diff.h"

#include "clock.h"
#include "config_files.h"
#include "confine.h"
#include "filter.h"
#include "units.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct diff {
	void (*tell)(const struct config_change *change, void *context);
	void *context;
	int count; /* -1 = no memory */
};

/* --- values --------------------------------------------------------------------------------------- */

static void
put_prefix(FILE *out, const struct prefix *prefix)
{
	char text[SOCKET_ADDRESS_TEXT];
	fputs(prefix_format(prefix, text), out);
}

static void
put_owner(FILE *out, const struct owner *owner)
{
	if (owner->uid != (uid_t)-1)
		fprintf(out, "%u", owner->uid);
	if (owner->gid != (gid_t)-1)
		fprintf(out, ":%u", owner->gid);
}

static void
put_frequency(FILE *out, const struct frequency *frequency)
{
	static const struct {
		uint64_t period_ns;
		const char *word;
	} periods[] = {
		{ NS_PER_S, "s" },
		{ 60 * NS_PER_S, "min" },
		{ 3600 * NS_PER_S, "h" },
		{ 86400 * NS_PER_S, "d" },
	};
	fprintf(out, "%" PRIu64, frequency->count);
	for (size_t i = 0; frequency->count && i < sizeof(periods) / sizeof(periods[0]); i++)
		if (periods[i].period_ns == frequency->period_ns)
			fprintf(out, "/%s", periods[i].word);
}

static size_t
count_items(const struct keyword *row, const void *slot)
{
	switch (row->type) {
	case KEYWORD_ADDRESSES:
		return ((const struct address_list *)slot)->count;
	case KEYWORD_PREFIXES:
		return ((const struct prefix_list *)slot)->count;
	case KEYWORD_COUNTS:
		return ((const struct count_list *)slot)->count;
	default:
		return ((const struct text_list *)slot)->count;
	}
}

static void
put_item(FILE *out, const struct keyword *row, const void *slot, size_t index)
{
	switch (row->type) {
	case KEYWORD_ADDRESSES:
		fprintf(out, "\"%s\"", ((const struct address_list *)slot)->at[index].text);
		break;
	case KEYWORD_PREFIXES:
		put_prefix(out, &((const struct prefix_list *)slot)->at[index]);
		break;
	case KEYWORD_COUNTS:
		fprintf(out, "%" PRIu64, ((const struct count_list *)slot)->at[index]);
		break;
	default:
		fprintf(out, "\"%s\"", ((const struct text_list *)slot)->at[index]);
		break;
	}
}

static void
put_list(FILE *out, const struct keyword *row, const void *slot)
{
	size_t count = count_items(row, slot);
	fputs("{ ", out);
	for (size_t i = 0; i < count; i++) {
		put_item(out, row, slot, i);
		fputs(i + 1 < count ? ", " : " ", out);
	}
	fputs("}", out);
}

static void
put_value(FILE *out, const struct keyword *row, const void *object)
{
	const void *slot = (const char *)object + row->offset;
	char text[UNITS_TEXT];

	switch (row->type) {
	case KEYWORD_FLAG:
		fputs(*(const bool *)slot ? "true" : "false", out);
		break;
	case KEYWORD_COUNT:
		fprintf(out, "%" PRIu64, *(const uint64_t *)slot);
		break;
	case KEYWORD_DURATION:
		fputs(units_format_duration(*(const uint64_t *)slot, text), out);
		break;
	case KEYWORD_SIZE:
		fputs(units_format_bytes(*(const uint64_t *)slot, text), out);
		break;
	case KEYWORD_RATE:
		fputs(units_format_rate(*(const uint64_t *)slot, text), out);
		break;
	case KEYWORD_FREQUENCY:
		put_frequency(out, slot);
		break;
	case KEYWORD_CHOICE:
		fputs(row->choices[*(const int *)slot], out);
		break;
	case KEYWORD_MODE:
		fprintf(out, "0%03o", *(const mode_t *)slot);
		break;
	case KEYWORD_OWNER:
		put_owner(out, slot);
		break;
	case KEYWORD_HOST:
		fputs(((const struct address *)slot)->text ? ((const struct address *)slot)->text
							   : "",
		      out);
		break;
	case KEYWORD_LOG_TARGET:
	case KEYWORD_TEXT:
	case KEYWORD_FILE:
		fprintf(out, "\"%s\"", *(char *const *)slot);
		break;
	case KEYWORD_ADDRESSES:
	case KEYWORD_PREFIXES:
	case KEYWORD_COUNTS:
	case KEYWORD_TEXTS:
	case KEYWORD_FILES:
	case KEYWORD_RIGHTS:
		put_list(out, row, slot);
		break;
	}
}

/* As an operator could write it; the caller's. NULL without memory. */
static char *
value_text(const struct keyword *row, const void *object)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	if (!out)
		return NULL;
	put_value(out, row, object);
	if (fclose(out) == 0)
		return text;
	free(text);
	return NULL;
}

/* --- sections ------------------------------------------------------------------------------------- */

static void
tell(struct diff *diff, const struct config_change *change)
{
	if (diff->count < 0)
		return;
	diff->count++;
	diff->tell(change, diff->context);
}

static void
compare_row(struct diff *diff, const struct config_change *where, const struct keyword *row,
	    const void *old, const void *next)
{
	char *before = value_text(row, old), *after = value_text(row, next);
	if (!before || !after)
		diff->count = -1;
	else if (strcmp(before, after) != 0)
		tell(diff, &(struct config_change){ CONFIG_CHANGED, where->section, where->title,
						    where->inside, row, before, after });
	free(before);
	free(after);
}

static void
compare(struct diff *diff, const char *section, const char *title, const struct keyword *rows,
	const void *old, const void *next)
{
	const struct config_change where = { .section = section, .title = title, .inside = "" };
	for (const struct keyword *row = rows; row->name; row++)
		compare_row(diff, &where, row, old, next);
}

static void
tell_whole(struct diff *diff, enum config_change_kind kind, const char *section, const char *title)
{
	tell(diff, &(struct config_change){
			   .kind = kind, .section = section, .title = title, .inside = "" });
}

/* Without the section nothing is checked, whatever its defaults are. */
static void
compare_checks(struct diff *diff, const struct tunnel_conf *before, const struct tunnel_conf *after)
{
	bool was_there = before->check.origin.line, is_there = after->check.origin.line;
	struct config_change where = { .kind = is_there ? CONFIG_ADDED : CONFIG_REMOVED,
				       .section = "tunnel",
				       .title = after->name,
				       .inside = "check" };

	if (was_there != is_there)
		tell(diff, &where);
	for (const struct keyword *row = check_keywords; was_there && is_there && row->name; row++)
		compare_row(diff, &where, row, &before->check, &after->check);
}

static bool
is_inherited(const struct keyword *row, const struct timeouts *own, const struct timeouts *global)
{
	return *(const uint64_t *)((const char *)own + row->offset) ==
	       *(const uint64_t *)((const char *)global + row->offset);
}

static void
compare_tunnel(struct diff *diff, const struct generation *old, const struct generation *next,
	       const struct tunnel_conf *before, const struct tunnel_conf *after)
{
	struct config_change where = { .section = "tunnel", .title = after->name };

	compare(diff, "tunnel", after->name, tunnel_keywords, before, after);
	where.inside = "match";
	for (const struct keyword *row = match_keywords; row->name; row++)
		compare_row(diff, &where, row, &before->match, &after->match);
	compare_checks(diff, before, after);
	where.inside = "timeouts";
	for (const struct keyword *row = timeouts_keywords; row->name; row++)
		if (!is_inherited(row, &before->timeouts, &old->timeouts) ||
		    !is_inherited(row, &after->timeouts, &next->timeouts))
			compare_row(diff, &where, row, &before->timeouts, &after->timeouts);
}

static void
compare_tunnels(struct diff *diff, const struct generation *old, const struct generation *next)
{
	for (size_t i = 0; i < next->tunnel_count; i++) {
		const struct tunnel_conf *after = next->tunnels[i];
		const struct tunnel_conf *before = generation_find(old, after->name);
		if (before)
			compare_tunnel(diff, old, next, before, after);
		else
			tell_whole(diff, CONFIG_ADDED, "tunnel", after->name);
	}
	for (size_t i = 0; i < old->tunnel_count; i++)
		if (!generation_find(next, old->tunnels[i]->name))
			tell_whole(diff, CONFIG_REMOVED, "tunnel", old->tunnels[i]->name);
}

static void
compare_limits(struct diff *diff, const struct generation *old, const struct generation *next)
{
	for (size_t i = 0; i < next->limit_count; i++) {
		const struct limit_conf *after = next->limits[i];
		const struct limit_conf *before = generation_find_limit(old, after->name);
		if (before)
			compare(diff, "limit", after->name, limit_keywords, before, after);
		else
			tell_whole(diff, CONFIG_ADDED, "limit", after->name);
	}
	for (size_t i = 0; i < old->limit_count; i++)
		if (!generation_find_limit(next, old->limits[i]->name))
			tell_whole(diff, CONFIG_REMOVED, "limit", old->limits[i]->name);
}

/* A section without a title stands for defaults: no operator has written it. */
static void
compare_filters(struct diff *diff, const struct generation *old, const struct generation *next)
{
	for (size_t i = 0; i < next->section_count; i++) {
		const struct filter_section *after = next->sections[i];
		const struct filter_section *before =
			generation_find_section(old, after->type, after->title);
		if (!*after->title)
			continue;
		if (!before)
			tell_whole(diff, CONFIG_ADDED, after->type->name, after->title);
		else if (after->type->keywords)
			compare(diff, after->type->name, after->title, after->type->keywords,
				before->conf, after->conf);
	}
	for (size_t i = 0; i < old->section_count; i++) {
		const struct filter_section *before = old->sections[i];
		if (*before->title && !generation_find_section(next, before->type, before->title))
			tell_whole(diff, CONFIG_REMOVED, before->type->name, before->title);
	}
}

int
config_diff_each(const struct generation *old, const struct generation *next,
		 void (*tell_change)(const struct config_change *change, void *context),
		 void *context)
{
	struct diff diff = { tell_change, context, 0 };

	compare(&diff, "", "", generation_keywords, old, next);
	compare(&diff, "log", "", log_keywords, &old->log, &next->log);
	compare(&diff, "timeouts", "", timeouts_keywords, &old->timeouts, &next->timeouts);
	compare(&diff, "admin", "", admin_keywords, &old->admin, &next->admin);
	compare_limits(&diff, old, next);
	compare_filters(&diff, old, next);
	compare_tunnels(&diff, old, next);
	return diff.count;
}

int
config_diff_restart(const struct generation *old, const struct generation *next,
		    void (*tell_change)(const struct config_change *change, void *context),
		    void *context)
{
	struct diff diff = { tell_change, context, 0 };
	const struct config_change where = { .section = "", .title = "", .inside = "" };

	for (const struct keyword *row = generation_keywords; row->name; row++)
		if (row->effect == EFFECT_RESTART)
			compare_row(&diff, &where, row, old, next);
	return diff.count;
}

/* --- for people ----------------------------------------------------------------------------------- */

struct print {
	FILE *out;
	unsigned int effects[EFFECT_RESTART + 1];
};

enum keyword_effect
config_diff_effect(const struct config_change *change)
{
	if (change->row)
		return change->row->effect;
	return strcmp(change->section, "limit") == 0 || strcmp(change->inside, "check") == 0
		       ? EFFECT_LIVE
		       : EFFECT_NEW_CONNECTIONS;
}

static void
print_change(const struct config_change *change, void *context)
{
	static const char *const effects[] = { [EFFECT_LIVE] = "live",
					       [EFFECT_NEW_CONNECTIONS] = "new connections",
					       [EFFECT_RESTART] = "needs a restart" };
	struct print *print = context;
	enum keyword_effect effect = config_diff_effect(change);

	print->effects[effect]++;
	if (*change->section)
		fprintf(print->out, "%s ", change->section);
	if (*change->title)
		fprintf(print->out, "\"%s\" ", change->title);
	if (*change->inside)
		fprintf(print->out, "%s ", change->inside);
	if (change->kind == CONFIG_CHANGED)
		fprintf(print->out, "%s: %s -> %s (%s)\n", change->row->name, change->before,
			change->after, effects[effect]);
	else if (change->kind == CONFIG_ADDED)
		fprintf(print->out, "is new (%s)\n", effects[effect]);
	else if (strcmp(change->section, "tunnel") == 0 && !*change->inside)
		fputs("is gone: it accepts no more, its connections go on\n", print->out);
	else
		fprintf(print->out, "is gone (%s)\n", effects[effect]);
}

struct outside {
	struct print *print;
	struct text_list directories; /* that the daemon of the old configuration may read */
	int count;
};

static void
print_outside(const char *path, void *context)
{
	struct outside *outside = context;
	if (confine_covers(&outside->directories, path))
		return;
	outside->count++;
	outside->print->effects[EFFECT_RESTART]++;
	fprintf(outside->print->out,
		"%s: lies outside of what the running daemon may read (needs a restart)\n", path);
}

/* Returns how many files a reload could not read, -1 without memory. */
static int
print_all_outside(const struct generation *old, const struct generation *next, struct print *print)
{
	struct outside outside = { .print = print };
	static const struct keyword list[] = {
		{ .name = "",
		  .type = KEYWORD_FILES,
		  .offset = offsetof(struct outside, directories) },
		{ .name = NULL },
	};

	if (!old->landlock)
		return 0;
	if (config_files_directories(old, &outside.directories, NULL) == 0)
		config_files_each(next, print_outside, &outside);
	else
		outside.count = -1;
	keyword_release(list, &outside);
	return outside.count;
}

int
config_diff_print(const struct generation *old, const struct generation *next, FILE *out)
{
	struct print print = { .out = out };
	int count = config_diff_each(old, next, print_change, &print);
	int outside = print_all_outside(old, next, &print);

	if (count < 0 || outside < 0)
		return -1;
	count += outside;
	if (count == 0)
		fputs("no differences\n", out);
	else
		fprintf(out,
			"%d difference%s: %u live, %u for new connections, %u after a restart\n",
			count, count == 1 ? "" : "s", print.effects[EFFECT_LIVE],
			print.effects[EFFECT_NEW_CONNECTIONS], print.effects[EFFECT_RESTART]);
	return 0;
}
