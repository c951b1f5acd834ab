/* Objects that do not overlap, are zeroed, and whose blocks go back with the last of them. */
#include "slab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define OBJECT_BYTES 1100
#define MOST         1000

static size_t
mapped_bytes(void)
{
	size_t pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");
	assert_non_null(file);
	assert_int_equal(fscanf(file, "%zu", &pages), 1);
	fclose(file);
	return pages * 4096;
}

static void
test_objects(void **state)
{
	static unsigned char *objects[MOST];
	struct slab slab = { .object_bytes = OBJECT_BYTES };
	uint32_t random = 1;
	(void)state;

	for (int i = 0; i < 100000; i++) {
		random = random * 1664525 + 1013904223;
		size_t at = (random >> 8) % MOST;
		unsigned char mark = (unsigned char)(at + 1);
		if (objects[at]) {
			for (size_t j = 0; j < OBJECT_BYTES; j++)
				assert_int_equal(objects[at][j], mark);
			slab_give(&slab, objects[at]);
			objects[at] = NULL;
			continue;
		}
		objects[at] = slab_take(&slab);
		for (size_t j = 0; j < OBJECT_BYTES; j++)
			assert_int_equal(objects[at][j], 0);
		memset(objects[at], mark, OBJECT_BYTES);
	}
	for (size_t i = 0; i < MOST; i++)
		slab_give(&slab, objects[i]);
}

static void
test_blocks_go_back(void **state)
{
	static void *objects[MOST];
	struct slab slab = { .object_bytes = OBJECT_BYTES };
	(void)state;

	size_t before = mapped_bytes();
	for (size_t i = 0; i < MOST; i++)
		assert_non_null(objects[i] = slab_take(&slab));
	assert_true(mapped_bytes() - before >= MOST * OBJECT_BYTES);
	for (size_t i = 0; i < MOST; i++)
		slab_give(&slab, objects[i]);
	assert_true(mapped_bytes() - before <= 2 * SLAB_BLOCK_BYTES);
	slab_give(&slab, NULL);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_objects),
		cmocka_unit_test(test_blocks_go_back),
	};
	return cmocka_run_group_tests_name("slab", tests, NULL, NULL);
}
