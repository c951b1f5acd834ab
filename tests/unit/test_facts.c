/* The facts' texts: owned, copied whole, released once. */
#include "facts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static void
test_set(void **state)
{
	struct facts facts = { 0 };
	(void)state;
	assert_int_equal(facts_set(&facts.sni, "www.example.org!", 15), 0);
	assert_string_equal(facts.sni, "www.example.org");
	assert_int_equal(facts_set(&facts.sni, "a\0b", 3), 0);
	assert_string_equal(facts.sni, "a");
	facts_release(&facts);
	assert_null(facts.sni);
	facts_release(&facts);
}

static void
test_copy(void **state)
{
	struct facts from = { .client = { .family = AF_INET, .port = 7 }, .client_is_told = true };
	struct facts to;
	(void)state;
	facts_set(&from.common_name, "ops", 3);
	facts_set(&from.unique_id, "x", 1);
	assert_int_equal(facts_copy(&to, &from), 0);
	facts_release(&from);
	assert_string_equal(to.common_name, "ops");
	assert_string_equal(to.unique_id, "x");
	assert_null(to.sni);
	assert_true(to.client_is_told);
	assert_int_equal(to.client.port, 7);
	facts_release(&to);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_copy),
	};
	return cmocka_run_group_tests_name("facts", tests, NULL, NULL);
}
