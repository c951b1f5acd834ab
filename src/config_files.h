/*
 * config_files: which files a configuration names, by its rows.
 */
#ifndef PENSTOCK_CONFIG_FILES_H
#define PENSTOCK_CONFIG_FILES_H

#include "generation.h"

/* Calls `tell` for every file that the generation was read from or that a row of type file names, once for
 * each place it is named in. */
void config_files_each(const struct generation *generation,
		       void (*tell)(const char *path, void *context), void *context);

/* The directories that these files lie in, and those of what they lead to if they are symbolic links. The
 * caller releases the list (texts are owned). -1 without memory. */
int config_files_directories(const struct generation *generation, struct text_list *directories,
			     struct failure *why);

#endif
