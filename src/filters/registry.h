/*
 * registry: the list of all filters of this build.
 */
#ifndef PENSTOCK_FILTERS_REGISTRY_H
#define PENSTOCK_FILTERS_REGISTRY_H

#include "../filter.h"

/* In the order of registry.c; ends with NULL. */
extern const struct filter_type *const registry_filters[];

/* The filter of that name, or NULL. O(filters). */
const struct filter_type *registry_find(const char *name);

#endif
