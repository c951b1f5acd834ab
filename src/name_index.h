/*
 * name_index: things found by their names in O(log things), for a file with thousands of them. Names are borrowed
 * from the things, and both outlive their place in it. Not locked.
 */
#ifndef PENSTOCK_NAME_INDEX_H
#define PENSTOCK_NAME_INDEX_H

/* Zeroed: empty. */
struct name_index {
	void *root;
};

/* -1 without memory. Of things with one name the first is found. */
int name_index_add(struct name_index *index, const char *name, void *thing);

/* The thing of that name, or NULL. */
void *name_index_find(const struct name_index *index, const char *name);

void name_index_remove(struct name_index *index, const char *name);

/* Forgets all of them. */
void name_index_clear(struct name_index *index);

#endif
