#include "config.h"

#include "config_apply.h"
#include "config_chains.h"
#include "config_check.h"
#include "config_limits.h"
#include "config_text.h"
#include "confine.h"

#include <glob.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ files */

static char *
absolute_directory(const char *path)
{
	char *copy = strdup(path);
	char *directory = copy ? realpath(dirname(copy), NULL) : NULL;
	free(copy);
	return directory;
}

static const struct config_document *
find_document(const struct config_load *load, const struct config_text *text)
{
	for (size_t i = 0; i < load->document_count; i++)
		if (load->documents[i].device == text->device &&
		    load->documents[i].inode == text->inode)
			return &load->documents[i];
	return NULL;
}

static void
read_document(struct config_load *load, const char *path, struct config_text *text)
{
	const char *file = load->document_count ? config_report_file(load->report, path)
						: load->report->files[0];
	char *directory = absolute_directory(path);
	if (!file || !directory) {
		free(directory);
		config_report_no_memory(load->report);
		return;
	}
	struct config_document *document = &load->documents[load->document_count++];
	*document = (struct config_document){
		.file = file,
		.directory = directory,
		.device = text->device,
		.inode = text->inode,
	};
	config_text_scan(text, file, &load->budget, load->report);
	config_parse(document, text, load->report);
}

/* `origin` is where it is included, or the file itself. */
static void
read_file(struct config_load *load, const char *path, struct origin origin)
{
	struct config_text text;
	struct failure why;
	if (confine_may_read(path, &why)) {
		config_report_error(load->report, origin, "%s", why.text);
		return;
	}
	if (config_text_read(&text, path, &why)) {
		if (origin.line)
			config_report_error(load->report, origin, "the file %s %s", path, why.text);
		else
			config_report_error(load->report, origin, "%s", why.text);
		return;
	}
	const struct config_document *known = find_document(load, &text);
	if (known)
		config_report_error(load->report, origin,
				    "%s has been read already, as %s; include each file once", path,
				    known->file);
	else if (load->document_count == CONFIG_FILES_MOST)
		config_report_error(load->report, origin,
				    "more than %d files are included; join some of them",
				    CONFIG_FILES_MOST);
	else
		read_document(load, path, &text);
	config_text_release(&text);
}

/* Those of a directory, in the order of their names. What an operator adds there later can be read, too, since
 * the directory counts as one of the configuration's files. */
static void
read_files(struct config_load *load, const char *pattern, char *directory, struct origin origin)
{
	glob_t found;
	struct failure why;
	if (confine_may_read(directory, &why)) {
		config_report_error(load->report, origin, "%s", why.text);
		return;
	}
	config_report_file(load->report, directory);
	switch (glob(pattern, GLOB_ERR, NULL, &found)) {
	case 0:
		for (size_t i = 0; i < found.gl_pathc; i++)
			read_file(load, found.gl_pathv[i], origin);
		globfree(&found);
		break;
	case GLOB_NOMATCH:
		config_report_warning(
			load->report, origin,
			"no file is there for %s; it is read when there is one at a reload",
			pattern);
		break;
	case GLOB_NOSPACE:
		config_report_no_memory(load->report);
		break;
	default:
		config_report_error(load->report, origin,
				    "the directory of %s cannot be read; name one that can",
				    pattern);
		break;
	}
}

static void
read_include(struct config_load *load, const struct config_include *include)
{
	const char *slash = strrchr(include->path, '/'), *name = slash ? slash + 1 : include->path;
	char *directory;
	if (!strpbrk(name, "*?[")) {
		read_file(load, include->path, include->origin);
		return;
	}
	if (asprintf(&directory, "%.*s.", (int)(name - include->path), include->path) < 0) {
		config_report_no_memory(load->report);
		return;
	}
	if (strpbrk(directory, "*?["))
		config_report_error(
			load->report, include->origin,
			"the directory in %s is a pattern; write one only for the names of "
			"files",
			include->path);
	else
		read_files(load, include->path, directory, include->origin);
	free(directory);
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
	if (generation->log.origin.line)
		keep_file_name(generation, report, &generation->log.origin);
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
load_release(struct config_load *load)
{
	for (size_t i = 0; i < load->document_count; i++) {
		config_parse_release(&load->documents[i]);
		free(load->documents[i].directory);
	}
	free(load->listens.at);
	free(load->connects.at);
	free(load->binds.at);
	free(load->weights.at);
	free(load->accept_filters.at);
	free(load->connect_filters.at);
	free(load->limit_rows.at);
	free(load->limit_uses.at);
	free(load);
}

static void
run(struct config_load *load, const char *path, const struct service *const *services)
{
	struct failure why;
	load->generation = generation_new(path, &why);
	if (!load->generation) {
		config_report_no_memory(load->report);
		return;
	}
	read_file(load, path, (struct origin){ load->report->files[0], 0 });
	for (size_t i = 0; i < load->document_count; i++) {
		const struct config_document *document = &load->documents[i];
		for (size_t j = 0; j < document->include_count; j++)
			read_include(load, &document->includes[j]);
	}
	if (!load->report->lacks_memory)
		config_apply(load);
	if (load->report->lacks_memory)
		return; /* what is missing is no mistake, and none expects that */
	config_chains_check(load->generation, &load->accept_filters, &load->connect_filters,
			    load->report);
	config_limits_check(load->generation, &load->limit_rows, &load->limit_uses, load->report);
	config_check_generation(load->generation, &load->listens, &load->connects, &load->binds,
				&load->weights, services, load->report);
	if (load->report->errors == 0 && keep_file_names(load->generation, load->report))
		config_report_no_memory(load->report);
}

struct generation *
config_load(const char *path, const struct service *const *services, struct config_report *report)
{
	*report = (struct config_report){ 0 };
	struct config_load *load = calloc(1, sizeof(*load));
	if (!load || !config_report_file(report, path)) {
		free(load);
		report->errors++;
		return NULL;
	}
	config_kinds_prepare();
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
