/* name_index: what is found, and the first of one name. */
#include "name_index.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define MANY 1000

static void
test_finds_each_by_its_name(void **state)
{
	static char names[MANY][8];
	struct name_index index = { 0 };
	(void)state;

	assert_null(name_index_find(&index, "0"));
	for (int i = 0; i < MANY; i++) {
		snprintf(names[i], sizeof(names[i]), "%d", i);
		assert_int_equal(name_index_add(&index, names[i], names[i]), 0);
	}
	for (int i = 0; i < MANY; i += 2)
		name_index_remove(&index, names[i]);
	name_index_remove(&index, "never there");
	for (int i = 0; i < MANY; i++)
		assert_ptr_equal(name_index_find(&index, names[i]), i % 2 ? names[i] : NULL);
	name_index_clear(&index);
	assert_null(name_index_find(&index, "1"));
}

static void
test_the_first_of_a_name_stays(void **state)
{
	struct name_index index = { 0 };
	int first, second;
	(void)state;

	assert_int_equal(name_index_add(&index, "a", &first), 0);
	assert_int_equal(name_index_add(&index, "a", &second), 0);
	assert_ptr_equal(name_index_find(&index, "a"), &first);
	name_index_clear(&index);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_finds_each_by_its_name),
		cmocka_unit_test(test_the_first_of_a_name_stays),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
