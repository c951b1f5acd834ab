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

#define MOST 1000

static const struct slab kinds[] = {
	{ .object_bytes = 1100 },
	{ .object_bytes = 576 },
	{ .object_bytes = 576, .is_large = true },
	{ .object_bytes = SLAB_OBJECT_MOST, .is_large = true },
};

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

static unsigned char *objects[MOST];

/* Takes what is not taken at that place, gives back what is. */
static void
take_or_give(struct slab *slab, size_t at)
{
	unsigned char mark = (unsigned char)(at % 255 + 1);

	if (objects[at]) {
		for (size_t i = 0; i < slab->object_bytes; i++)
			assert_int_equal(objects[at][i], mark);
		slab_give(slab, objects[at]);
		objects[at] = NULL;
		return;
	}
	objects[at] = slab_take(slab);
	for (size_t i = 0; i < slab->object_bytes; i++)
		assert_int_equal(objects[at][i], 0);
	if (slab->object_bytes % 64 == 0)
		assert_int_equal((uintptr_t)objects[at] % 64, 0);
	memset(objects[at], mark, slab->object_bytes);
}

static void
test_objects(void **state)
{
	uint32_t random = 1;
	(void)state;

	for (size_t kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
		struct slab slab = kinds[kind];
		for (int i = 0; i < 20000; i++) {
			random = random * 1664525 + 1013904223;
			take_or_give(&slab, (random >> 8) % MOST);
		}
		for (size_t i = 0; i < MOST; i++)
			if (objects[i])
				take_or_give(&slab, i);
	}
}

static void
test_blocks_go_back(void **state)
{
	(void)state;

	for (size_t kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
		struct slab slab = kinds[kind];
		size_t block = slab.is_large ? SLAB_LARGE_BYTES : SLAB_BLOCK_BYTES;
		size_t before = mapped_bytes();
		for (size_t i = 0; i < MOST; i++)
			assert_non_null(objects[i] = slab_take(&slab));
		assert_true(mapped_bytes() - before >= MOST * slab.object_bytes);
		assert_true(mapped_bytes() - before <= MOST * slab.object_bytes * 9 / 8 + block);
		for (size_t i = 0; i < MOST; i++)
			slab_give(&slab, objects[i]);
		assert_true(mapped_bytes() - before <= block);
		slab_give(&slab, NULL);
	}
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
