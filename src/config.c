#include "config.h"

#include "config_chains.h"
#include "config_check.h"
#include "config_limits.h"
#include "config_text.h"
#include "config_value.h"
#include "confine.h"
#include "filters/registry.h"
#include "nearest.h"

#include <assert.h>
#include <confuse.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>

#define FILES_MOST   64
#define UNKNOWN_MOST 20 /* unknown keywords reported for a file: each costs a parse */
#define ROWS_MOST    32 /* keywords of a section */

/* ------------------------------------------------------------------ what may be written */

struct section_kind {
	const char *name;
	const struct keyword *keywords;
	bool has_title;
	const struct section_kind *const *inside; /* ends with NULL */
	const struct filter_type *filter;         /* whose section it is, or NULL */
};

#define OWN_KINDS    5  /* of in_file: what stands there beside the filters' */
#define FILTERS_MOST 16 /* registered */

static const struct section_kind *const nothing[] = { NULL };
static const struct section_kind timeouts_kind = { .name = "timeouts",
						   .keywords = timeouts_keywords,
						   .inside = nothing };
static const struct section_kind log_kind = { .name = "log",
					      .keywords = log_keywords,
					      .inside = nothing };
static const struct section_kind admin_kind = { .name = "admin",
						.keywords = admin_keywords,
						.inside = nothing };
static const struct section_kind match_kind = { .name = "match",
						.keywords = match_keywords,
						.inside = nothing };
static const struct section_kind check_kind = { .name = "check",
						.keywords = check_keywords,
						.inside = nothing };
static const struct section_kind *const in_tunnel[] = { &timeouts_kind, &match_kind, &check_kind,
							NULL };
static const struct section_kind tunnel_kind = {
	.name = "tunnel", .keywords = tunnel_keywords, .has_title = true, .inside = in_tunnel
};
static const struct section_kind limit_kind = {
	.name = "limit", .keywords = limit_keywords, .has_title = true, .inside = nothing
};
static struct section_kind filter_kinds[FILTERS_MOST];
static const struct section_kind *in_file[OWN_KINDS + FILTERS_MOST + 1] = {
	&log_kind, &timeouts_kind, &admin_kind, &limit_kind, &tunnel_kind
};
static const struct section_kind file_kind = { .keywords = generation_keywords, .inside = in_file };

/* Each registered filter is a kind of section. */
static void
prepare_kinds(void)
{
	static const struct keyword no_keywords[] = { { .name = NULL } };
	for (size_t i = 0; registry_filters[i]; i++) {
		const struct filter_type *type = registry_filters[i];
		assert(i < FILTERS_MOST);
		filter_kinds[i] = (struct section_kind){
			.name = type->name,
			.keywords = type->keywords ? type->keywords : no_keywords,
			.has_title = true,
			.inside = nothing,
			.filter = type,
		};
		in_file[OWN_KINDS + i] = &filter_kinds[i];
	}
}

static size_t
count_keywords(const struct section_kind *kind)
{
	size_t count = 0;
	while (kind->keywords[count].name)
		count++;
	assert(count <= ROWS_MOST);
	return count;
}

static size_t
count_inside(const struct section_kind *kind)
{
	size_t count = 0;
	while (kind->inside[count])
		count++;
	return count;
}

static const struct keyword *
find_keyword(const struct section_kind *kind, const char *name)
{
	for (const struct keyword *row = kind->keywords; row->name; row++)
		if (strcmp(row->name, name) == 0)
			return row;
	return NULL;
}

static const struct section_kind *
find_section(const struct section_kind *kind, const char *name)
{
	for (const struct section_kind *const *inside = kind->inside; *inside; inside++)
		if (strcmp((*inside)->name, name) == 0)
			return *inside;
	return NULL;
}

/* ------------------------------------------------------------------ what was written */

struct written {
	struct written *next;
	const struct keyword *row;
	char *text; /* NULL = an empty list */
	unsigned int line;
	bool is_first; /* of its assignment */
};

struct section {
	struct section *next; /* in the order of their first lines */
	struct section *parent;
	const struct section_kind *kind;
	char *title;
	unsigned int line;
	bool is_whole; /* read to its closing brace */
	struct written *first, **last;
	cfg_t *parsed; /* during the parse */
};

/* A file. */
struct document {
	const char *file; /* the report's copy of its name */
	char *directory;  /* absolute */
	dev_t device;
	ino_t inode;
	struct section *first, **last; /* the first is the file itself */
};

struct include {
	char *path;
	struct origin origin;
};

struct load {
	struct config_report *report;
	struct config_budget budget;
	struct document documents[FILES_MOST];
	size_t document_count;
	struct include *includes; /* what to read, the main file first */
	size_t include_count;

	/* Of the file that is being parsed: */
	struct document *document;
	struct config_text *text;
	struct section *open; /* the innermost section */
	char *unknown;        /* a keyword that stopped the parse */
	unsigned int unknown_line;

	/* Of what is made: */
	struct generation *generation;
	struct config_places listens, connects, binds;
	struct config_places accept_filters, connect_filters;
	struct config_places limit_rows, limit_uses;
};

/* libconfuse's callbacks have no argument of ours. */
static struct load *parsing;

static void
refuse_memory(struct load *load)
{
	config_report_error(load->report, (struct origin){ load->report->files[0], 0 },
			    "no memory to read the configuration; free some");
}

static struct origin
origin_of(const struct document *document, unsigned int line)
{
	return (struct origin){ document->file, line };
}

static void
document_release(struct document *document)
{
	while (document->first) {
		struct section *section = document->first;
		document->first = section->next;
		while (section->first) {
			struct written *written = section->first;
			section->first = written->next;
			free(written->text);
			free(written);
		}
		free(section->title);
		free(section);
	}
}

static struct section *
add_section(struct load *load, const struct section_kind *kind, const char *title,
	    unsigned int line)
{
	struct section *section = calloc(1, sizeof(*section));
	char *copy = title ? strdup(title) : NULL;
	if (!section || (title && !copy)) {
		free(section);
		free(copy);
		refuse_memory(load);
		return NULL;
	}
	section->parent = load->open;
	section->kind = kind;
	section->title = copy;
	section->line = line;
	section->last = &section->first;
	*load->document->last = section;
	load->document->last = &section->next;
	load->open = section;
	return section;
}

static void
add_written(struct load *load, const struct keyword *row, const char *text, unsigned int line,
	    bool is_first)
{
	struct written *written = calloc(1, sizeof(*written));
	char *copy = text ? strdup(text) : NULL;
	if (!written || (text && !copy)) {
		free(written);
		free(copy);
		refuse_memory(load);
		return;
	}
	*written = (struct written){ NULL, row, copy, line, is_first };
	*load->open->last = written;
	load->open->last = &written->next;
}

static int
add_include(struct load *load, char *path, struct origin origin)
{
	struct include *includes =
		reallocarray(load->includes, load->include_count + 1, sizeof(*includes));
	if (includes)
		load->includes = includes;
	if (!path || !includes) {
		free(path);
		refuse_memory(load);
		return -1;
	}
	includes[load->include_count++] = (struct include){ path, origin };
	return 0;
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
	const struct section_kind *kind = find_section(parsing->open->kind, cfg_name(cfg));
	struct section *section = NULL;
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
	const struct keyword *row = find_keyword(parsing->open->kind, cfg_opt_name(opt));
	if (row)
		add_written(parsing, row, value, (unsigned int)cfg->line, cfg_opt_size(opt) <= 1);
	return 0;
}

/* Called behind a section's closing brace, with its parent. */
static int
on_end(cfg_t *cfg, cfg_opt_t *opt)
{
	struct section *section = parsing->open;
	(void)cfg;
	if (!section->parsed || strcmp(section->kind->name, cfg_opt_name(opt)) != 0)
		return 0; /* no memory at its begin */
	for (cfg_opt_t *list = section->parsed->opts; list->name; list++)
		if ((list->flags & CFGF_LIST) && (list->flags & CFGF_MODIFIED) &&
		    list->nvalues == 0)
			add_written(parsing, find_keyword(section->kind, list->name), NULL,
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
	add_include(parsing, path, origin_of(parsing->document, (unsigned int)cfg->line));
	return 0;
}

/* What would be right where libconfuse says what is wrong. */
static const struct {
	const char *wrong, *right;
} advice[] = {
	{ "unexpected token",
	  "write KEYWORD = VALUE, KEYWORD = { VALUE, VALUE } or SECTION { ... }" },
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
	config_report_error(parsing->report, origin_of(parsing->document, line), "%s; %s", wrong,
			    advice[i].right);
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
make_options(const struct section_kind *kind)
{
	/* One more for {begin} or include, and the end. */
	size_t count = count_keywords(kind) + count_inside(kind) + 2;
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
	for (const struct section_kind *const *inside = kind->inside; *inside; inside++) {
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

/* Parses load->text into load->document. True if it was read to the end. */
static bool
parse(struct load *load)
{
	bool is_read = false;
	size_t errors = load->report->errors;
	cfg_opt_t *options = make_options(&file_kind);
	cfg_t *cfg = options ? cfg_init(options, CFGF_NONE) : NULL;
	load->document->last = &load->document->first;
	load->open = NULL;
	if (cfg && add_section(load, &file_kind, NULL, 0)) {
		cfg_set_error_function(cfg, on_error);
		parsing = load;
		is_read = cfg_parse_buf(cfg, load->text->bytes) == CFG_SUCCESS;
		parsing = NULL;
	}
	if (!is_read && !load->unknown && !load->text->is_cut && errors == load->report->errors)
		config_report_error(load->report,
				    origin_of(load->document, cfg ? (unsigned int)cfg->line : 0),
				    "the text from here on cannot be read; see penstock.conf(5)");
	cfg_free(cfg);
	free_options(options);
	return is_read;
}

/* ------------------------------------------------------------------ unknown keywords */

static void
offer_words(struct nearest *nearest, const struct section_kind *kind)
{
	for (const struct keyword *row = kind->keywords; row->name; row++)
		nearest_offer(nearest, row->name);
	for (const struct section_kind *const *inside = kind->inside; *inside; inside++)
		nearest_offer(nearest, (*inside)->name);
	if (!kind->name)
		nearest_offer(nearest, "include");
}

/* The kind of section a keyword belongs to, if to any. */
static const struct section_kind *
find_home(const struct section_kind *kind, const char *name)
{
	if (find_keyword(kind, name) || find_section(kind, name) ||
	    (!kind->name && strcmp(name, "include") == 0))
		return kind;
	for (const struct section_kind *const *inside = kind->inside; *inside; inside++) {
		const struct section_kind *home = find_home(*inside, name);
		if (home)
			return home;
	}
	return NULL;
}

static void
refuse_unknown(struct load *load)
{
	struct origin origin = origin_of(load->document, load->unknown_line);
	const struct section_kind *kind = load->open->kind;
	const struct section_kind *home = find_home(&file_kind, load->unknown);
	const char *where = kind->name ? "in section " : "at the top level";
	const char *name = kind->name ? kind->name : "";
	struct nearest nearest;
	nearest_start(&nearest, load->unknown);
	offer_words(&nearest, kind);
	if (home)
		config_report_error(
			load->report, origin, "'%.60s' does not belong %s%s; write it %s%s",
			load->unknown, where, name,
			home->name ? "in section " : "at the top level, behind a closing }",
			home->name ? home->name : "");
	else if (nearest.best)
		config_report_error(load->report, origin,
				    "unknown keyword '%.60s' %s%s; did you mean '%s'?",
				    load->unknown, where, name, nearest.best);
	else
		config_report_error(load->report, origin,
				    "unknown keyword '%.60s' %s%s; penstockd --keywords lists all",
				    load->unknown, where, name);
}

/* ------------------------------------------------------------------ files */

/* Forgets what the last parse has found. */
static void
forget_parse(struct load *load, size_t include_count)
{
	document_release(load->document);
	while (load->include_count > include_count)
		free(load->includes[--load->include_count].path);
}

static void
mark_unfinished(struct load *load)
{
	struct section *last = NULL;
	for (struct section *section = load->document->first; section; section = section->next)
		if (section->parent == load->document->first)
			last = section;
	for (; last; last = last->next)
		last->is_whole = false;
}

/* Parses until nothing unknown stops it any more. */
static void
parse_all(struct load *load)
{
	size_t include_count = load->include_count;
	bool goes_on;
	unsigned int tries = 0;
	do {
		bool is_read = parse(load);
		if (load->text->open || !is_read)
			mark_unfinished(load);
		if (!load->unknown)
			return;
		refuse_unknown(load);
		goes_on = tries++ < UNKNOWN_MOST &&
			  config_text_blank(load->text, load->unknown_line, load->unknown);
		if (goes_on)
			forget_parse(load, include_count);
		free(load->unknown);
		load->unknown = NULL;
	} while (goes_on);
}

static char *
absolute_directory(const char *path)
{
	char *copy = strdup(path);
	char *directory = copy ? realpath(dirname(copy), NULL) : NULL;
	free(copy);
	return directory;
}

static const struct document *
find_document(const struct load *load, const struct config_text *text)
{
	for (size_t i = 0; i < load->document_count; i++)
		if (load->documents[i].device == text->device &&
		    load->documents[i].inode == text->inode)
			return &load->documents[i];
	return NULL;
}

static void
read_document(struct load *load, const char *path, struct config_text *text)
{
	const char *file = load->document_count ? config_report_file(load->report, path)
						: load->report->files[0];
	char *directory = absolute_directory(path);
	if (!file || !directory) {
		free(directory);
		refuse_memory(load);
		return;
	}
	struct document *document = &load->documents[load->document_count++];
	*document = (struct document){ file, directory, text->device, text->inode, NULL, NULL };
	config_text_scan(text, file, &load->budget, load->report);
	load->document = document;
	load->text = text;
	parse_all(load);
}

/* `include` may move while the file is read. */
static void
read_file(struct load *load, struct include include)
{
	struct config_text text;
	struct failure why;
	if (confine_may_read(include.path, &why)) {
		config_report_error(load->report, include.origin, "%s", why.text);
		return;
	}
	if (config_text_read(&text, include.path, &why)) {
		if (include.origin.line)
			config_report_error(load->report, include.origin, "the file %s %s",
					    include.path, why.text);
		else
			config_report_error(load->report, include.origin, "%s", why.text);
		return;
	}
	const struct document *known = find_document(load, &text);
	if (known)
		config_report_error(load->report, include.origin,
				    "%s has been read already, as %s; include each file once",
				    include.path, known->file);
	else if (load->document_count == FILES_MOST)
		config_report_error(load->report, include.origin,
				    "more than %d files are included; join some of them",
				    FILES_MOST);
	else
		read_document(load, include.path, &text);
	config_text_release(&text);
}

/* ------------------------------------------------------------------ values */

static int
add_place(struct load *load, struct config_places *places, size_t owner, size_t index,
	  struct origin origin)
{
	if ((places->count & (places->count - 1)) == 0) {
		size_t room = places->count ? places->count * 2 : 1;
		struct config_place *at = reallocarray(places->at, room, sizeof(*at));
		if (!at) {
			refuse_memory(load);
			return -1;
		}
		places->at = at;
	}
	places->at[places->count++] =
		(struct config_place){ owner, index, origin, SIZE_MAX, false };
	return 0;
}

/* Remembers where what a tunnel names was written. */
static void
note_place(struct load *load, const struct keyword *row, const void *object, struct origin origin)
{
	const struct tunnel_conf *tunnel = object;
	size_t owner = load->generation->tunnel_count - 1;
	if (row->type == KEYWORD_HOST)
		add_place(load, &load->binds, owner, 0, origin);
	else if (row->type == KEYWORD_ADDRESSES &&
		 row->offset == offsetof(struct tunnel_conf, listen))
		add_place(load, &load->listens, owner, tunnel->listen.count - 1, origin);
	else if (row->type == KEYWORD_ADDRESSES)
		add_place(load, &load->connects, owner, tunnel->connect.count - 1, origin);
	else if (row->offset == offsetof(struct tunnel_conf, accept_filters))
		add_place(load, &load->accept_filters, owner, tunnel->accept_filters.count - 1,
			  origin);
	else if (row->offset == offsetof(struct tunnel_conf, connect_filters))
		add_place(load, &load->connect_filters, owner, tunnel->connect_filters.count - 1,
			  origin);
	else if (row->offset == offsetof(struct tunnel_conf, limit_name))
		add_place(load, &load->limit_uses, owner, 0, origin);
	else if (row->offset == offsetof(struct tunnel_conf, connect_limit_name))
		add_place(load, &load->limit_uses, owner, 1, origin);
}

/* Converts one section into `object`. `seen` says where a row was written before. */
static void
apply_written(struct load *load, const struct document *document, const struct section *section,
	      void *object, struct origin seen[ROWS_MOST])
{
	bool is_repeated[ROWS_MOST] = { false };
	for (const struct written *written = section->first; written; written = written->next) {
		const struct keyword *row = written->row;
		size_t index = (size_t)(row - section->kind->keywords);
		struct origin origin = origin_of(document, written->line);
		struct failure why;
		if (written->is_first) {
			is_repeated[index] = seen[index].line != 0;
			if (is_repeated[index])
				config_report_error(
					load->report, origin,
					"'%s' is written twice (%s:%u); keep one of them",
					row->name, seen[index].file, seen[index].line);
			else
				seen[index] = origin;
		}
		if (is_repeated[index])
			continue;
		if (!written->text)
			config_report_error(
				load->report, origin,
				"'%s' is an empty list; name something in it, or leave it "
				"out",
				row->name);
		else if (config_value_store(row, written->text, document->directory, object, &why))
			config_report_error(load->report, origin, "%s: %s", row->name, why.text);
		else if (section->kind == &tunnel_kind)
			note_place(load, row, object, origin);
		else if (section->kind == &limit_kind)
			add_place(load, &load->limit_rows, load->generation->limit_count - 1, index,
				  origin);
	}
}

/* Defaults for what was not written. `section` is NULL if there is none. */
static void
apply_defaults(struct load *load, const struct section_kind *kind, const struct section *section,
	       struct origin origin, void *object, const struct origin seen[ROWS_MOST])
{
	struct failure why;
	for (size_t i = 0; kind->keywords[i].name; i++) {
		const struct keyword *row = &kind->keywords[i];
		if (seen[i].line)
			continue;
		if (row->fallback) {
			if (config_value_default(row, object, &why))
				config_report_error(load->report, origin, "%s: %s", row->name,
						    why.text);
		} else if (section && section->is_whole) {
			const char *example = row->type == KEYWORD_ADDRESSES ? "ADDRESS" : "...";
			bool is_list = config_value_is_list(row);
			config_report_error(load->report, origin,
					    "%s \"%s\" has no %s; write %s = %s\"%s\"%s in it",
					    kind->name, section->title, row->name, row->name,
					    is_list ? "{ " : "", example, is_list ? " }" : "");
		}
	}
}

/* Reports `section` as repeated if *first is set; else sets it. */
static bool
is_repeated_section(struct load *load, const struct document *document,
		    const struct section *section, struct origin *first)
{
	struct origin origin = origin_of(document, section->line);
	if (first->line)
		config_report_error(load->report, origin,
				    "section '%s' is written twice (%s:%u); join them",
				    section->kind->name, first->file, first->line);
	else
		*first = origin;
	return first->line != origin.line || first->file != origin.file;
}

/* Converts the one section of that kind which stands outside of all others. */
static void
apply_global(struct load *load, const struct section_kind *kind, void *object)
{
	struct origin seen[ROWS_MOST] = { { 0 } }, first = { 0 };
	for (size_t i = 0; i < load->document_count; i++) {
		const struct document *document = &load->documents[i];
		const struct section *section = document->first;
		for (; section; section = section->next) {
			if (section->kind != kind ||
			    (section->parent != document->first && kind->name))
				continue;
			if (!kind->name || !is_repeated_section(load, document, section, &first))
				apply_written(load, document, section, object, seen);
		}
	}
	apply_defaults(load, kind, NULL, (struct origin){ load->report->files[0], 0 }, object,
		       seen);
}

/* `other` is where a section of that kind and title was declared before, or NULL. */
static void
check_title(struct load *load, const struct section *section, struct origin origin,
	    const struct origin *other)
{
	if (other)
		config_report_error(load->report, origin,
				    "%s \"%s\" is declared already (%s:%u); choose another name",
				    section->kind->name, section->title, other->file, other->line);
	if (!address_name_is_valid(section->title))
		config_report_error(
			load->report, origin,
			"'%s' is not a name; write 1 to 64 letters, digits or any of _ . -",
			section->title);
}

/* Converts the sections of that kind inside of a tunnel's into `object`; *first says where. */
static void
apply_inside(struct load *load, const struct document *document, const struct section *section,
	     const struct section_kind *kind, void *object, struct origin *first)
{
	struct origin seen[ROWS_MOST] = { { 0 } };
	for (const struct section *inner = section->next; inner && inner->parent == section;
	     inner = inner->next)
		if (inner->kind == kind && !is_repeated_section(load, document, inner, first))
			apply_written(load, document, inner, object, seen);
}

static void
apply_tunnel(struct load *load, const struct document *document, const struct section *section)
{
	struct origin origin = origin_of(document, section->line);
	struct origin seen[ROWS_MOST] = { { 0 } }, first = { 0 };
	static const struct origin nowhere[ROWS_MOST];
	const struct tunnel_conf *other = generation_find(load->generation, section->title);
	check_title(load, section, origin, other ? &other->origin : NULL);
	struct tunnel_conf *tunnel =
		generation_add_tunnel(load->generation, section->title, origin);
	if (!tunnel) {
		refuse_memory(load);
		return;
	}
	apply_written(load, document, section, tunnel, seen);
	apply_defaults(load, section->kind, section, origin, tunnel, seen);
	apply_inside(load, document, section, &timeouts_kind, &tunnel->timeouts, &first);
	apply_inside(load, document, section, &match_kind, &tunnel->match, &tunnel->match.origin);
	apply_defaults(load, &check_kind, NULL, origin, &tunnel->check, nowhere);
	apply_inside(load, document, section, &check_kind, &tunnel->check, &tunnel->check.origin);
}

static void
apply_filter(struct load *load, const struct document *document, const struct section *section)
{
	const struct filter_type *type = section->kind->filter;
	struct origin origin = origin_of(document, section->line);
	struct origin seen[ROWS_MOST] = { { 0 } };
	size_t errors = load->report->errors;
	const struct filter_section *other =
		generation_find_section(load->generation, type, section->title);
	check_title(load, section, origin, other ? &other->origin : NULL);
	struct filter_section *made =
		generation_add_section(load->generation, type, section->title, origin);
	if (!made) {
		refuse_memory(load);
		return;
	}
	apply_written(load, document, section, made->conf, seen);
	apply_defaults(load, section->kind, section, origin, made->conf, seen);
	if (errors == load->report->errors)
		config_chains_configure(made, load->report);
}

static void
apply_limit(struct load *load, const struct document *document, const struct section *section)
{
	struct origin origin = origin_of(document, section->line);
	struct origin seen[ROWS_MOST] = { { 0 } };
	const struct limit_conf *other = generation_find_limit(load->generation, section->title);
	check_title(load, section, origin, other ? &other->origin : NULL);
	struct limit_conf *limit = generation_add_limit(load->generation, section->title, origin);
	if (!limit) {
		refuse_memory(load);
		return;
	}
	apply_written(load, document, section, limit, seen);
	apply_defaults(load, section->kind, section, origin, limit, seen);
}

/* Calls `apply` for each section of that kind; NULL = of any filter. */
static void
apply_titled(struct load *load, const struct section_kind *kind,
	     void (*apply)(struct load *, const struct document *, const struct section *))
{
	for (size_t i = 0; i < load->document_count; i++) {
		const struct document *document = &load->documents[i];
		const struct section *section = document->first;
		for (; section; section = section->next)
			if (kind ? section->kind == kind : section->kind->filter != NULL)
				apply(load, document, section);
	}
}

static void
apply_all(struct load *load)
{
	apply_global(load, &file_kind, load->generation);
	apply_global(load, &log_kind, &load->generation->log);
	apply_global(load, &admin_kind, &load->generation->admin);
	apply_global(load, &timeouts_kind, &load->generation->timeouts);
	apply_titled(load, NULL, apply_filter);
	apply_titled(load, &limit_kind, apply_limit);
	apply_titled(load, &tunnel_kind, apply_tunnel);
	if (load->generation->tunnel_count == 0 && load->report->errors == 0)
		config_report_error(load->report, (struct origin){ load->report->files[0], 0 },
				    "no tunnel is declared; write tunnel \"NAME\" { listen = { "
				    "\"IP:PORT\" } connect = { \"HOST:PORT\" } }");
}

/* ------------------------------------------------------------------ the whole */

static void
keep_file_name(const struct generation *generation, const struct config_report *report,
	       struct origin *origin)
{
	size_t file = 0;
	while (report->files[file] != origin->file)
		file++;
	origin->file = generation->files[file];
}

/* The generation outlives the report: its origins get names of their own. */
static int
keep_file_names(struct generation *generation, const struct config_report *report)
{
	generation->files = calloc(report->file_count, sizeof(*generation->files));
	if (!generation->files)
		return -1;
	while (generation->file_count < report->file_count) {
		char *file = strdup(report->files[generation->file_count]);
		if (!file)
			return -1;
		generation->files[generation->file_count++] = file;
	}
	for (size_t i = 0; i < generation->tunnel_count; i++) {
		keep_file_name(generation, report, &generation->tunnels[i]->origin);
		if (generation->tunnels[i]->match.origin.line)
			keep_file_name(generation, report, &generation->tunnels[i]->match.origin);
	}
	for (size_t i = 0; i < generation->front_count; i++)
		keep_file_name(generation, report, &generation->fronts[i]->origin);
	for (size_t i = 0; i < generation->section_count; i++)
		keep_file_name(generation, report, &generation->sections[i]->origin);
	for (size_t i = 0; i < generation->limit_count; i++)
		keep_file_name(generation, report, &generation->limits[i]->origin);
	return 0;
}

static void
load_release(struct load *load)
{
	for (size_t i = 0; i < load->document_count; i++) {
		document_release(&load->documents[i]);
		free(load->documents[i].directory);
	}
	for (size_t i = 0; i < load->include_count; i++)
		free(load->includes[i].path);
	free(load->includes);
	free(load->listens.at);
	free(load->connects.at);
	free(load->binds.at);
	free(load->accept_filters.at);
	free(load->connect_filters.at);
	free(load->limit_rows.at);
	free(load->limit_uses.at);
	free(load);
}

static void
run(struct load *load, const char *path, const struct service *const *services)
{
	struct failure why;
	load->generation = generation_new(path, &why);
	if (!load->generation ||
	    add_include(load, strdup(path), (struct origin){ load->report->files[0], 0 })) {
		refuse_memory(load);
		return;
	}
	for (size_t i = 0; i < load->include_count; i++)
		read_file(load, load->includes[i]);
	apply_all(load);
	config_chains_check(load->generation, &load->accept_filters, &load->connect_filters,
			    load->report);
	config_limits_check(load->generation, &load->limit_rows, &load->limit_uses, load->report);
	config_check_generation(load->generation, &load->listens, &load->connects, &load->binds,
				services, load->report);
	if (load->report->errors == 0 && keep_file_names(load->generation, load->report))
		refuse_memory(load);
}

struct generation *
config_load(const char *path, const struct service *const *services, struct config_report *report)
{
	*report = (struct config_report){ 0 };
	struct load *load = calloc(1, sizeof(*load));
	if (!load || !config_report_file(report, path)) {
		free(load);
		report->errors++;
		return NULL;
	}
	prepare_kinds();
	load->report = report;
	load->budget = (struct config_budget){ CONFIG_WORDS_MOST, CONFIG_SECTIONS_MOST };
	run(load, path, services);
	struct generation *generation = load->generation;
	load_release(load);
	if (report->errors && generation) {
		counted_release(&generation->counted);
		generation = NULL;
	}
	return generation;
}

const char *
config_library(void)
{
	return confuse_version;
}

/* ------------------------------------------------------------------ the list of keywords */

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
print_section(FILE *out, int depth, const struct section_kind *kind)
{
	for (const struct keyword *row = kind->keywords; row->name; row++)
		print_keyword(out, depth, row, depth > 1 && kind == &timeouts_kind);
	for (const struct section_kind *const *inside = kind->inside; *inside; inside++) {
		fprintf(out, "%*s%s %s{\n", depth * 8, "", (*inside)->name,
			(*inside)->has_title ? "\"NAME\" " : "");
		print_section(out, depth + 1, *inside);
		fprintf(out, "%*s}\n", depth * 8, "");
	}
}

void
config_print_keywords(FILE *out)
{
	prepare_kinds();
	print_section(out, 0, &file_kind);
	fprintf(out, "include(\"FILE\"): Reads another file; a relative name is taken from the "
		     "directory of the file it stands in.\n");
}
