#include "registry.h"

#include <string.h>

#ifdef PENSTOCK_TEST_DOUBLES
#define TEST_DOUBLES(FILTER)      \
	FILTER(double_stutter)    \
	FILTER(double_fail_after) \
	FILTER(double_hoard)
#else
#define TEST_DOUBLES(FILTER)
#endif

/* One line a filter: the file NAME.c defines `const struct filter_type NAME_filter`. */
#define FILTERS(FILTER)        \
	FILTER(proxy_protocol) \
	FILTER(tls)            \
	FILTER(zlib)           \
	FILTER(zstd)           \
	TEST_DOUBLES(FILTER)

#define DECLARE(file) extern const struct filter_type file##_filter;
FILTERS(DECLARE)

#define ENTRY(file) &file##_filter,
const struct filter_type *const registry_filters[] = { FILTERS(ENTRY) NULL };

const struct filter_type *
registry_find(const char *name)
{
	for (const struct filter_type *const *type = registry_filters; *type; type++) {
		if (strcmp((*type)->name, name) == 0)
			return *type;
	}
	return NULL;
}
