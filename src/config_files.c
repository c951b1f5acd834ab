#include "config_files.h"

#include "filter.h"

#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct collect {
	struct text_list *list;
	bool is_short; /* of memory */
};

static void
each_of(const struct keyword *rows, const void *object,
	void (*tell)(const char *path, void *context), void *context)
{
	for (const struct keyword *row = rows; rows && row->name; row++) {
		const void *slot = (const char *)object + row->offset;
		const struct text_list *list = slot;
		if (row->type == KEYWORD_FILE && **(char *const *)slot == '/')
			tell(*(char *const *)slot, context);
		for (size_t i = 0; row->type == KEYWORD_FILES && i < list->count; i++)
			if (*list->at[i] == '/')
				tell(list->at[i], context);
	}
}

void
config_files_each(const struct generation *generation,
		  void (*tell)(const char *path, void *context), void *context)
{
	for (size_t i = 0; i < generation->file_count; i++)
		tell(generation->files[i], context);
	each_of(generation_keywords, generation, tell, context);
	for (size_t i = 0; i < generation->tunnel_count; i++)
		each_of(tunnel_keywords, generation->tunnels[i], tell, context);
	for (size_t i = 0; i < generation->section_count; i++)
		each_of(generation->sections[i]->type->keywords, generation->sections[i]->conf,
			tell, context);
}

/* Takes the path, which it cuts to its directory. */
static void
add_directory(struct collect *collect, char *path)
{
	const char *directory = path ? dirname(path) : NULL;
	struct text_list *list = collect->list;

	for (size_t i = 0; directory && i < list->count; i++)
		if (strcmp(list->at[i], directory) == 0) {
			free(path);
			return;
		}
	char **at = reallocarray(list->at, list->count + 1, sizeof(*at));
	char *copy = directory ? strdup(directory) : NULL;
	if (at)
		list->at = at;
	if (at && copy)
		list->at[list->count++] = copy;
	else
		free(copy);
	collect->is_short |= !at || !copy;
	free(path);
}

static void
on_file(const char *path, void *context)
{
	char *copy = strdup(path);
	char *directory = copy ? realpath(dirname(copy), NULL) : NULL;
	char *real = realpath(path, NULL), *joined = NULL;

	/* The place it is named in, without links on the way, and the place it leads to. */
	if (directory && asprintf(&joined, "%s/x", directory) >= 0)
		add_directory(context, joined);
	if (real)
		add_directory(context, real);
	free(directory);
	free(copy);
}

int
config_files_directories(const struct generation *generation, struct text_list *directories,
			 struct failure *why)
{
	struct collect collect = { directories, false };

	*directories = (struct text_list){ 0 };
	config_files_each(generation, on_file, &collect);
	return collect.is_short
		       ? failure_set(why, FAILURE_MEMORY, "no memory for a list of directories")
		       : 0;
}
