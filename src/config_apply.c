#include "config_apply.h"

#include "config_chains.h"
#include "config_value.h"

#include <stdlib.h>
#include <string.h>

static int
add_place(struct config_load *load, struct config_places *places, size_t owner, size_t index,
	  struct origin origin)
{
	if ((places->count & (places->count - 1)) == 0) {
		size_t room = places->count ? places->count * 2 : 1;
		struct config_place *at = reallocarray(places->at, room, sizeof(*at));
		if (!at) {
			config_report_no_memory(load->report);
			return -1;
		}
		places->at = at;
	}
	places->at[places->count++] =
		(struct config_place){ owner, index, origin, SIZE_MAX, false, false };
	return 0;
}

/* Its place among the targets is known when all of the tunnel is: see count_backups. */
static void
add_backup(struct config_load *load, size_t owner, size_t index, struct origin origin)
{
	if (add_place(load, &load->connects, owner, index, origin) == 0)
		load->connects.at[load->connects.count - 1].is_backup = true;
}

/* Those of the tunnel, from `first` on, are targets behind those of connect. */
static void
count_backups(struct config_load *load, size_t first, const struct tunnel_conf *tunnel)
{
	for (size_t i = first; i < load->connects.count; i++)
		if (load->connects.at[i].is_backup)
			load->connects.at[i].index += tunnel->connect.count;
}

/* Remembers where what a tunnel names was written. */
static void
note_place(struct config_load *load, const struct keyword *row, const void *object,
	   struct origin origin)
{
	const struct tunnel_conf *tunnel = object;
	size_t owner = load->generation->tunnel_count - 1;
	if (row->type == KEYWORD_HOST)
		add_place(load, &load->binds, owner, 0, origin);
	else if (row->type == KEYWORD_ADDRESSES &&
		 row->offset == offsetof(struct tunnel_conf, listen))
		add_place(load, &load->listens, owner, tunnel->listen.count - 1, origin);
	else if (row->type == KEYWORD_COUNTS)
		add_place(load, &load->weights, owner, tunnel->weights.count - 1, origin);
	else if (row->offset == offsetof(struct tunnel_conf, connect))
		add_place(load, &load->connects, owner, tunnel->connect.count - 1, origin);
	else if (row->offset == offsetof(struct tunnel_conf, backup))
		add_backup(load, owner, tunnel->backup.count - 1, origin);
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

static void
report_value(struct config_load *load, struct origin origin, const struct keyword *row,
	     const struct failure *why)
{
	load->report->lacks_memory |= why->kind == FAILURE_MEMORY;
	config_report_error(load->report, origin, "%s: %s", row->name, why->text);
}

/* Converts one section into `object`. `seen` says where a row was written before. */
static void
apply_written(struct config_load *load, const struct config_document *document,
	      const struct config_section *section, void *object,
	      struct origin seen[CONFIG_KINDS_ROWS_MOST])
{
	bool is_repeated[CONFIG_KINDS_ROWS_MOST] = { false };
	for (const struct config_written *written = section->first; written;
	     written = written->next) {
		const struct keyword *row = written->row;
		size_t index = (size_t)(row - section->kind->keywords);
		struct origin origin = config_parse_origin(document, written->line);
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
			report_value(load, origin, row, &why);
		else if (row->type == KEYWORD_LOG_TARGET)
			load->generation->log.origin = origin;
		else if (section->kind == &config_kinds_tunnel)
			note_place(load, row, object, origin);
		else if (section->kind == &config_kinds_limit)
			add_place(load, &load->limit_rows, load->generation->limit_count - 1, index,
				  origin);
	}
}

/* Defaults for what was not written. `section` is NULL if there is none. */
static void
apply_defaults(struct config_load *load, const struct config_kind *kind,
	       const struct config_section *section, struct origin origin, void *object,
	       const struct origin seen[CONFIG_KINDS_ROWS_MOST])
{
	struct failure why;
	for (size_t i = 0; kind->keywords[i].name; i++) {
		const struct keyword *row = &kind->keywords[i];
		if (seen[i].line)
			continue;
		if (row->fallback) {
			if (config_value_default(row, object, &why))
				report_value(load, origin, row, &why);
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
is_repeated_section(struct config_load *load, const struct config_document *document,
		    const struct config_section *section, struct origin *first)
{
	struct origin origin = config_parse_origin(document, section->line);
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
apply_global(struct config_load *load, const struct config_kind *kind, void *object)
{
	struct origin seen[CONFIG_KINDS_ROWS_MOST] = { { 0 } }, first = { 0 };
	for (size_t i = 0; i < load->document_count; i++) {
		const struct config_document *document = &load->documents[i];
		const struct config_section *section = document->first;
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
check_title(struct config_load *load, const struct config_section *section, struct origin origin,
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
apply_inside(struct config_load *load, const struct config_document *document,
	     const struct config_section *section, const struct config_kind *kind, void *object,
	     struct origin *first)
{
	struct origin seen[CONFIG_KINDS_ROWS_MOST] = { { 0 } };
	for (const struct config_section *inner = section->next; inner && inner->parent == section;
	     inner = inner->next)
		if (inner->kind == kind && !is_repeated_section(load, document, inner, first))
			apply_written(load, document, inner, object, seen);
}

static void
apply_tunnel(struct config_load *load, const struct config_document *document,
	     const struct config_section *section)
{
	struct origin origin = config_parse_origin(document, section->line);
	struct origin seen[CONFIG_KINDS_ROWS_MOST] = { { 0 } }, first = { 0 };
	static const struct origin nowhere[CONFIG_KINDS_ROWS_MOST];
	const struct tunnel_conf *other = generation_find(load->generation, section->title);
	check_title(load, section, origin, other ? &other->origin : NULL);
	struct tunnel_conf *tunnel =
		generation_add_tunnel(load->generation, section->title, origin);
	if (!tunnel) {
		config_report_no_memory(load->report);
		return;
	}
	size_t first_target = load->connects.count;
	apply_written(load, document, section, tunnel, seen);
	count_backups(load, first_target, tunnel);
	apply_defaults(load, section->kind, section, origin, tunnel, seen);
	apply_inside(load, document, section, &config_kinds_timeouts, &tunnel->timeouts, &first);
	apply_inside(load, document, section, &config_kinds_match, &tunnel->match,
		     &tunnel->match.origin);
	apply_defaults(load, &config_kinds_check, NULL, origin, &tunnel->check, nowhere);
	apply_inside(load, document, section, &config_kinds_check, &tunnel->check,
		     &tunnel->check.origin);
}

static void
apply_filter(struct config_load *load, const struct config_document *document,
	     const struct config_section *section)
{
	const struct filter_type *type = section->kind->filter;
	struct origin origin = config_parse_origin(document, section->line);
	struct origin seen[CONFIG_KINDS_ROWS_MOST] = { { 0 } };
	size_t errors = load->report->errors;
	const struct filter_section *other =
		generation_find_section(load->generation, type, section->title);
	check_title(load, section, origin, other ? &other->origin : NULL);
	struct filter_section *made =
		generation_add_section(load->generation, type, section->title, origin);
	if (!made) {
		config_report_no_memory(load->report);
		return;
	}
	apply_written(load, document, section, made->conf, seen);
	apply_defaults(load, section->kind, section, origin, made->conf, seen);
	if (errors == load->report->errors)
		config_chains_configure(made, load->report);
	else
		made->is_wrong = true;
}

static void
apply_limit(struct config_load *load, const struct config_document *document,
	    const struct config_section *section)
{
	struct origin origin = config_parse_origin(document, section->line);
	struct origin seen[CONFIG_KINDS_ROWS_MOST] = { { 0 } };
	const struct limit_conf *other = generation_find_limit(load->generation, section->title);
	check_title(load, section, origin, other ? &other->origin : NULL);
	struct limit_conf *limit = generation_add_limit(load->generation, section->title, origin);
	if (!limit) {
		config_report_no_memory(load->report);
		return;
	}
	apply_written(load, document, section, limit, seen);
	apply_defaults(load, section->kind, section, origin, limit, seen);
}

/* Calls `apply` for each section of that kind; NULL = of any filter. */
static void
apply_titled(struct config_load *load, const struct config_kind *kind,
	     void (*apply)(struct config_load *, const struct config_document *,
			   const struct config_section *))
{
	for (size_t i = 0; i < load->document_count; i++) {
		const struct config_document *document = &load->documents[i];
		const struct config_section *section = document->first;
		for (; section; section = section->next)
			if (kind ? section->kind == kind : section->kind->filter != NULL)
				apply(load, document, section);
	}
}

void
config_apply(struct config_load *load)
{
	apply_global(load, &config_kinds_file, load->generation);
	apply_global(load, &config_kinds_log, &load->generation->log);
	apply_global(load, &config_kinds_admin, &load->generation->admin);
	apply_global(load, &config_kinds_timeouts, &load->generation->timeouts);
	apply_titled(load, NULL, apply_filter);
	apply_titled(load, &config_kinds_limit, apply_limit);
	apply_titled(load, &config_kinds_tunnel, apply_tunnel);
	if (load->generation->tunnel_count == 0 && load->report->errors == 0)
		config_report_error(load->report, (struct origin){ load->report->files[0], 0 },
				    "no tunnel is declared; write tunnel \"NAME\" { listen = { "
				    "\"IP:PORT\" } connect = { \"HOST:PORT\" } }");
}
