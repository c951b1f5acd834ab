#include "config_parse.h"

#include "config_foreign.h"
#include "config_value.h"
#include "nearest.h"

#include <assert.h>
#include <confuse.h>
#include <stdlib.h>
#include <string.h>

/* Each unknown keyword costs one more parse of its file: so many are told at least, and so many more as the parses
 * that they take fit into this. A usual file's are all told, and the largest takes no more than seconds. */
#define UNKNOWN_LEAST 20
#define UNKNOWN_BYTES ((size_t)512 * 1024 * 1024)

/* What libconfuse 3.3 takes, measured: for a section, for a word, besides. */
#define SECTION_BYTES ((size_t)6 * 1024)
#define WORD_BYTES    ((size_t)256)
#define SPARE_BYTES   ((size_t)256 * 1024)
#define PIECE_BYTES   ((size_t)64 * 1024)

struct run {
	struct config_report *report;
	struct config_document *document;
	struct config_text *text;
	struct config_section *open; /* the innermost section */
	char *unknown;               /* a keyword that stopped the parse */
	unsigned int unknown_line;
};

/* libconfuse's callbacks have no argument of ours. */
static struct run *parsing;

void
config_parse_release(struct config_document *document)
{
	while (document->first) {
		struct config_section *section = document->first;
		document->first = section->next;
		while (section->first) {
			struct config_written *written = section->first;
			section->first = written->next;
			free(written->text);
			free(written);
		}
		free(section->title);
		free(section);
	}
	while (document->include_count)
		free(document->includes[--document->include_count].path);
	free(document->includes);
	document->includes = NULL;
}

static struct config_section *
add_section(struct run *run, const struct config_kind *kind, const char *title, unsigned int line)
{
	struct config_section *section = calloc(1, sizeof(*section));
	char *copy = title ? strdup(title) : NULL;
	if (!section || (title && !copy)) {
		free(section);
		free(copy);
		config_report_no_memory(run->report);
		return NULL;
	}
	section->parent = run->open;
	section->kind = kind;
	section->title = copy;
	section->line = line;
	section->last = &section->first;
	*run->document->last = section;
	run->document->last = &section->next;
	run->open = section;
	return section;
}

static void
add_written(struct run *run, const struct keyword *row, const char *text, unsigned int line,
	    bool is_first)
{
	struct config_written *written = calloc(1, sizeof(*written));
	char *copy = text ? strdup(text) : NULL;
	if (!written || (text && !copy)) {
		free(written);
		free(copy);
		config_report_no_memory(run->report);
		return;
	}
	*written = (struct config_written){ NULL, row, copy, line, is_first };
	*run->open->last = written;
	run->open->last = &written->next;
}

static void
add_include(struct run *run, char *path, struct origin origin)
{
	struct config_document *document = run->document;
	struct config_include *includes =
		reallocarray(document->includes, document->include_count + 1, sizeof(*includes));
	if (includes)
		document->includes = includes;
	if (!path || !includes) {
		free(path);
		config_report_no_memory(run->report);
		return;
	}
	includes[document->include_count++] = (struct config_include){ path, origin };
}

/* ------------------------------------------------------------------ libconfuse */

/* An option no operator can write, with a default that libconfuse hands over when a section begins:
 * the only way to learn where that is. */
#define BEGIN "{begin}"
static char begin_default[] = "begin";

static int
on_begin(cfg_t *cfg, cfg_opt_t *opt, const char *value, void *result)
{
	(void)opt;
	*(const char **)result = value;
	const struct config_kind *kind = config_kinds_section(parsing->open->kind, cfg_name(cfg));
	struct config_section *section = NULL;
	if (kind)
		section = add_section(parsing, kind, cfg_title(cfg), (unsigned int)cfg->line);
	if (section)
		section->parsed = cfg;
	return 0;
}

static int
on_value(cfg_t *cfg, cfg_opt_t *opt, const char *value, void *result)
{
	*(const char **)result = value;
	const struct keyword *row = config_kinds_keyword(parsing->open->kind, cfg_opt_name(opt));
	if (row)
		add_written(parsing, row, value, (unsigned int)cfg->line, cfg_opt_size(opt) <= 1);
	return 0;
}

/* Called behind a section's closing brace, with its parent. */
static int
on_end(cfg_t *cfg, cfg_opt_t *opt)
{
	struct config_section *section = parsing->open;
	(void)cfg;
	if (!section->parsed || strcmp(section->kind->name, cfg_opt_name(opt)) != 0)
		return 0; /* no memory at its begin */
	const cfg_t *parsed = section->parsed;
	for (cfg_opt_t *list = parsed->opts; list->name; list++)
		if ((list->flags & CFGF_LIST) && (list->flags & CFGF_MODIFIED) &&
		    list->nvalues == 0)
			add_written(parsing, config_kinds_keyword(section->kind, list->name), NULL,
				    section->line, true);
	section->is_whole = true;
	section->parsed = NULL;
	parsing->open = section->parent;
	return 0;
}

static int
on_include(cfg_t *cfg, cfg_opt_t *opt, int count, const char **values)
{
	(void)opt;
	assert(count == 1); /* config_text sees to it */
	const char *file = parsing->document->file, *slash = strrchr(file, '/');
	char *path;
	if (values[0][0] == '/' || !slash)
		path = strdup(values[0]);
	else if (asprintf(&path, "%.*s/%s", (int)(slash - file), file, values[0]) < 0)
		path = NULL;
	add_include(parsing, path, config_parse_origin(parsing->document, (unsigned int)cfg->line));
	return 0;
}

/* What would be right where libconfuse says what is wrong. */
static const struct {
	const char *wrong, *right;
} advice[] = {
	{ "unexpected token", "write KEYWORD = VALUE, KEYWORD = { VALUE, VALUE } with a comma "
			      "between values, or SECTION "
			      "{ ... }" },
	{ "unexpected closing brace", "leave it out, or open a section before it" },
	{ "missing equal sign", "write KEYWORD = VALUE" },
	{ "missing opening brace",
	  "write SECTION { ... }, or SECTION \"NAME\" { ... } for a tunnel" },
	{ "missing title", "write SECTION \"NAME\" { ... }" },
	{ "attempt to append", "write = instead of +=" },
	{ "missing parenthesis", "write include(\"FILE\")" },
	{ "premature end of file", "finish the last statement" },
	{ "", "see penstock.conf(5)" },
};

/* Says how the section is written that libconfuse quotes, if it is one. A tunnel's `limit` only names one. */
static bool
report_section(const char *wrong, unsigned int line)
{
	struct origin origin = config_parse_origin(parsing->document, line);
	const char *from = strchr(wrong, '\''), *to = from ? strchr(from + 1, '\'') : NULL;
	char name[32];
	if (!to || (size_t)(to - from) > sizeof(name))
		return false;
	snprintf(name, sizeof(name), "%.*s", (int)(to - from - 1), from + 1);
	const struct config_kind *kind = config_kinds_section(parsing->open->kind, name);
	if (strncmp(wrong, "missing opening brace", 21) == 0 && kind)
		config_report_error(parsing->report, origin, "%s; write %s %s{ ... }", wrong, name,
				    kind->has_title ? "\"NAME\" " : "");
	else if (strncmp(wrong, "missing equal sign", 18) == 0 &&
		 config_kinds_section(&config_kinds_file, name))
		config_report_error(
			parsing->report, origin,
			"%s; write %s = \"NAME\" here, and %s \"NAME\" { ... } outside of "
			"section %s",
			wrong, name, name, parsing->open->kind->name);
	else
		return false;
	return true;
}

static void __attribute__((format(printf, 2, 0)))
on_error(cfg_t *cfg, const char *format, va_list args)
{
	char wrong[512];
	unsigned int line = (unsigned int)cfg->line;
	if (strncmp(format, "no such option", 14) == 0) {
		free(parsing->unknown);
		parsing->unknown = strdup(va_arg(args, const char *));
		parsing->unknown_line = line;
		return;
	}
	vsnprintf(wrong, sizeof(wrong), format, args);
	if (parsing->text->is_cut && strncmp(wrong, "premature", 9) == 0)
		return; /* that end is ours */
	size_t i = 0;
	while (strncmp(wrong, advice[i].wrong, strlen(advice[i].wrong)) != 0)
		i++;
	if (!report_section(wrong, line))
		config_report_error(parsing->report, config_parse_origin(parsing->document, line),
				    "%s; %s", wrong, advice[i].right);
}

/* Frees what make_options made. */
static void
free_options(cfg_opt_t *options)
{
	for (cfg_opt_t *option = options; option && option->name; option++)
		free_options(option->subopts);
	free(options);
}

/* Options for libconfuse: every value a text, every section as often as it likes. */
static cfg_opt_t *
make_options(const struct config_kind *kind)
{
	/* One more for {begin} or include, and the end. */
	size_t count = config_kinds_count_keywords(kind) + config_kinds_count_inside(kind) + 2;
	cfg_opt_t *options = calloc(count, sizeof(*options));
	cfg_opt_t *option = options;
	if (!options)
		return NULL;
	for (const struct keyword *row = kind->keywords; row->name; row++)
		*option++ =
			config_value_is_list(row)
				? (cfg_opt_t)CFG_STR_LIST_CB(row->name, NULL, CFGF_NODEFAULT,
							     on_value)
				: (cfg_opt_t)CFG_STR_CB(row->name, NULL, CFGF_NODEFAULT, on_value);
	for (const struct config_kind *const *inside = kind->inside; *inside; inside++) {
		cfg_opt_t *subopts = make_options(*inside);
		if (!subopts)
			goto fail;
		*option = (cfg_opt_t)CFG_SEC((*inside)->name, subopts,
					     CFGF_MULTI | ((*inside)->has_title ? CFGF_TITLE : 0));
		option++->validcb = on_end;
	}
	if (kind->name)
		*option = (cfg_opt_t)CFG_STR_LIST_CB(BEGIN, begin_default, CFGF_NONE, on_begin);
	else
		*option = (cfg_opt_t)CFG_FUNC("include", on_include);
	return options;

fail:
	free_options(options);
	return NULL;
}

/* What libconfuse takes at most for the text, with room to spare. */
static size_t
needed_bytes(const struct config_text *text)
{
	size_t sections = 1;
	for (size_t i = 1; i < text->count; i++)
		sections += text->words[i].kind == '{' && text->words[i - 1].kind != '=';
	return sections * SECTION_BYTES + text->count * WORD_BYTES + 4 * text->length + SPARE_BYTES;
}

/* libconfuse crashes or ends the process when memory ends while it reads: what that takes must be there
 * before. What a thread frees stays with its allocator, in pieces of this size and joined. */
static bool
has_memory(size_t bytes)
{
	struct piece {
		struct piece *next;
		char bytes[PIECE_BYTES];
	} *pieces = NULL;
	bool is_there = true;

	for (size_t have_bytes = 0; is_there && have_bytes < bytes; have_bytes += PIECE_BYTES) {
		struct piece *piece = malloc(sizeof(*piece));
		is_there = piece;
		if (piece) {
			piece->next = pieces;
			pieces = piece;
		}
	}
	while (pieces) {
		struct piece *next = pieces->next;
		free(pieces);
		pieces = next;
	}
	return is_there;
}

/* Parses run->text into run->document. True if it was read to the end. */
static bool
parse(struct run *run)
{
	bool is_read = false;
	size_t errors = run->report->errors;
	if (!has_memory(needed_bytes(run->text))) {
		config_report_no_memory(run->report);
		return false;
	}
	cfg_opt_t *options = make_options(&config_kinds_file);
	cfg_t *cfg = options ? cfg_init(options, CFGF_NONE) : NULL;
	run->document->last = &run->document->first;
	run->open = NULL;
	if (!cfg)
		config_report_no_memory(run->report);
	else if (add_section(run, &config_kinds_file, NULL, 0)) {
		cfg_set_error_function(cfg, on_error);
		parsing = run;
		is_read = cfg_parse_buf(cfg, run->text->bytes) == CFG_SUCCESS;
		parsing = NULL;
	}
	if (!is_read && !run->unknown && !run->text->is_cut && errors == run->report->errors)
		config_report_error(
			run->report,
			config_parse_origin(run->document, cfg ? (unsigned int)cfg->line : 0),
			"the text from here on cannot be read; see penstock.conf(5)");
	cfg_free(cfg);
	free_options(options);
	return is_read;
}

/* ------------------------------------------------------------------ unknown keywords */

static void
offer_words(struct nearest *nearest, const struct config_kind *kind)
{
	for (const struct keyword *row = kind->keywords; row->name; row++)
		nearest_offer(nearest, row->name);
	for (const struct config_kind *const *inside = kind->inside; *inside; inside++)
		nearest_offer(nearest, (*inside)->name);
	if (!kind->name)
		nearest_offer(nearest, "include");
}

/* The kind of section a keyword belongs to, if to any. */
static const struct config_kind *
find_home(const struct config_kind *kind, const char *name)
{
	if (config_kinds_keyword(kind, name) || config_kinds_section(kind, name) ||
	    (!kind->name && strcmp(name, "include") == 0))
		return kind;
	for (const struct config_kind *const *inside = kind->inside; *inside; inside++) {
		const struct config_kind *home = find_home(*inside, name);
		if (home)
			return home;
	}
	return NULL;
}

/* What can be no keyword. Whether it was one of these. */
static bool
refuse_no_word(struct run *run, struct origin origin)
{
	const char *word = run->unknown;
	if (strspn(word, ";") == strlen(word))
		config_report_error(
			run->report, origin,
			"'%.60s' ends nothing here; leave it out, as the next statement "
			"begins by itself",
			word);
	else if (*word == '[')
		config_report_error(run->report, origin,
				    "'%.60s' is no section; write tunnel \"NAME\" { ... }", word);
	else if (strpbrk(word, ".:/, ") && word[strlen(word) - 1] != ':')
		config_report_error(
			run->report, origin,
			"'%.60s' stands where a keyword should; write KEYWORD = VALUE, and "
			"several values as { VALUE, VALUE }",
			word);
	else
		return false;
	return true;
}

static void
refuse_unknown(struct run *run)
{
	struct origin origin = config_parse_origin(run->document, run->unknown_line);
	const struct config_kind *kind = run->open->kind;
	const struct config_kind *home = find_home(&config_kinds_file, run->unknown);
	const char *where = kind->name ? "in section " : "at the top level";
	const char *name = kind->name ? kind->name : "";
	const char *foreign = config_foreign_advice(run->unknown);
	struct nearest nearest;
	if (refuse_no_word(run, origin))
		return;
	nearest_start(&nearest, run->unknown);
	offer_words(&nearest, kind);
	/* But for one letter; a longer word that begins so is not nearer than one that is the same. */
	bool is_near = nearest.best && nearest.distance <= 1 &&
		       strlen(nearest.best) <= strlen(run->unknown) + 1;
	if (home && home->filter == NULL && config_kinds_is_filter(run->unknown) &&
	    kind == &config_kinds_tunnel)
		config_report_error(
			run->report, origin,
			"'%.60s' does not belong in section tunnel; write %s \"NAME\" { ... "
			"} outside of it, and here accept_filters = \"%s:NAME\", towards "
			"clients, or connect_filters, towards targets",
			run->unknown, run->unknown, run->unknown);
	else if (foreign && !home)
		config_report_error(run->report, origin, "unknown keyword '%.60s' %s%s; %s",
				    run->unknown, where, name, foreign);
	else if (home && !is_near)
		config_report_error(
			run->report, origin, "'%.60s' does not belong %s%s; write it %s%s",
			run->unknown, where, name,
			home->name ? "in section " : "at the top level, behind a closing }",
			home->name ? home->name : "");
	else if (nearest.best)
		config_report_error(run->report, origin,
				    "unknown keyword '%.60s' %s%s; did you mean '%s'?",
				    run->unknown, where, name, nearest.best);
	else
		config_report_error(run->report, origin,
				    "unknown keyword '%.60s' %s%s; penstockd --keywords lists all",
				    run->unknown, where, name);
}

/* ------------------------------------------------------------------ the whole */

static void
mark_unfinished(struct run *run)
{
	struct config_section *last = NULL;
	for (struct config_section *section = run->document->first; section;
	     section = section->next)
		if (section->parent == run->document->first)
			last = section;
	for (; last; last = last->next)
		last->is_whole = false;
}

/* Until nothing unknown stops it any more. */
void
config_parse(struct config_document *document, struct config_text *text,
	     struct config_report *report)
{
	struct run run = { .report = report, .document = document, .text = text };
	bool goes_on;
	size_t most = UNKNOWN_LEAST + UNKNOWN_BYTES / needed_bytes(text);
	do {
		bool is_read = parse(&run);
		if (text->open || !is_read)
			mark_unfinished(&run);
		if (!run.unknown)
			return;
		refuse_unknown(&run);
		goes_on = config_text_blank(text, run.unknown_line, run.unknown);
		if (goes_on && !--most) {
			config_report_error(report, config_parse_origin(document, run.unknown_line),
					    "too many keywords are unknown to read on behind this "
					    "one; correct them first");
			goes_on = false;
		}
		if (goes_on)
			config_parse_release(document);
		free(run.unknown);
		run.unknown = NULL;
	} while (goes_on);
}

const char *
config_parse_library(void)
{
	return confuse_version;
}
