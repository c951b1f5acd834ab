/* The facts' texts: owned, copied whole, released once. */
#include "facts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

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
test_hosts(void **state)
{
	static const struct {
		const char *name, *told;
	} cases[] = {
		{ "a.example", "a.example" },
		{ "A.Example.", "a.example" },
		{ "192.0.2.1", "192.0.2.1" },
		{ "[::1]", "[::1]" },
		{ "", NULL },
		{ ".", NULL },
		{ "a b", NULL },
		{ "a\x1b[2J", NULL },
		{ "a\x7f", NULL },
		{ "\xc3\xa9.example", NULL },
	};
	struct facts facts = { .target_host = "" };
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(facts_set(&facts.sni, "before", 6), 0);
		assert_int_equal(facts_set_host(&facts.sni, cases[i].name, strlen(cases[i].name)),
				 0);
		if (cases[i].told)
			assert_string_equal(facts.sni, cases[i].told);
		else
			assert_null(facts.sni);
	}
	assert_int_equal(facts_set_host(&facts.sni, "a\0b", 3), 0);
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
	facts_set(&facts_make_header(&from)->unique_id, "x", 1);
	assert_int_equal(facts_copy(&to, &from), 0);
	facts_release(&from);
	assert_string_equal(to.common_name, "ops");
	assert_string_equal(facts_of_header(&to)->unique_id, "x");
	assert_null(facts_of_header(&to)->authority);
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
		cmocka_unit_test(test_hosts),
		cmocka_unit_test(test_copy),
	};
	return cmocka_run_group_tests_name("facts", tests, NULL, NULL);
}
