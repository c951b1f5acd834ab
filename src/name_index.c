#include "name_index.h"

#include <search.h>
#include <stdlib.h>
#include <string.h>

struct named {
	const char *name;
	void *thing;
};

static int
compare(const void *one, const void *other)
{
	return strcmp(((const struct named *)one)->name, ((const struct named *)other)->name);
}

int
name_index_add(struct name_index *index, const char *name, void *thing)
{
	struct named *named = malloc(sizeof(*named));
	if (!named)
		return -1;
	*named = (struct named){ name, thing };
	struct named **place = tsearch(named, &index->root, compare);
	if (!place || *place != named)
		free(named);
	return place ? 0 : -1;
}

void *
name_index_find(const struct name_index *index, const char *name)
{
	struct named wanted = { .name = name };
	struct named **place = tfind(&wanted, &index->root, compare);
	return place ? (*place)->thing : NULL;
}

void
name_index_remove(struct name_index *index, const char *name)
{
	struct named wanted = { .name = name };
	struct named **place = tfind(&wanted, &index->root, compare);
	struct named *named = place ? *place : NULL;
	if (!named)
		return;
	tdelete(named, &index->root, compare);
	free(named);
}

void
name_index_clear(struct name_index *index)
{
	tdestroy(index->root, free);
	index->root = NULL;
}
