/* choice: who gets into which tunnel, and what covers what. */
#include "choice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static void
test_names(void **unused)
{
	(void)unused;
	static const struct {
		const char *pattern, *name;
		bool fits;
	} table[] = {
		{ "a.example", "a.example", true },
		{ "a.example", "b.example", false },
		{ "a.example", "a.example.org", false },
		{ "*.example", "a.example", true },
		{ "*.example", "a.b.example", true },
		{ "*.example", "example", false },
		{ "*.example", ".example", false },
		{ "*.example", "anexample", false },
		{ "*.example", "a.example.org", false },
		{ "*", "a", true },
		{ "*", "", false },
		{ "a", "", false },
	};
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++)
		if (choice_name_fits(table[i].pattern, table[i].name) != table[i].fits)
			fail_msg("%s, %s", table[i].pattern, table[i].name);
}

static void
test_covering(void **unused)
{
	(void)unused;
	static const struct {
		const char *wide, *narrow;
		bool covers;
	} table[] = {
		{ "a.example", "a.example", true },
		{ "*.example", "a.example", true },
		{ "*.example", "*.a.example", true },
		{ "*.example", "*.example", true },
		{ "*.a.example", "*.example", false },
		{ "*.example", "*.anexample", false },
		{ "*", "*.example", true },
		{ "*", "*", true },
		{ "*", "a", true },
		{ "*.example", "*", false },
		{ "a.example", "*.a.example", false },
		{ "a.example", "*", false },
	};
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++)
		if (choice_name_covers(table[i].wide, table[i].narrow) != table[i].covers)
			fail_msg("%s, %s", table[i].wide, table[i].narrow);
}

/* By name "a*", by both "b.example" and h2, by source 10/8, the rest. */
static char a_name[] = "a.example", below_a[] = "*.a.example", b_name[] = "b.example";
static char h2[] = "h2", h3[] = "h3";
static char *a_names[] = { a_name, below_a }, *b_names[] = { b_name };
static char *b_protocols[] = { h2, h3 };
static struct prefix c_sources[] = {
	{ .base = { .family = AF_INET, .ip = { 10 } }, .bits = 8 },
};
static const struct tunnel_conf a = { .match.sni = { a_names, 2 } };
static const struct tunnel_conf b = { .match.sni = { b_names, 1 },
				      .match.alpn = { b_protocols, 2 } };
static const struct tunnel_conf c = { .match.source = { c_sources, 1 } };
static const struct tunnel_conf rest = { .name = NULL };
static const struct tunnel_conf *tunnels[] = { &a, &b, &c, &rest };

static struct facts
client(unsigned int first_byte)
{
	return (struct facts){ .client = { .family = AF_INET, .ip = { (uint8_t)first_byte } } };
}

static void
expect(size_t count, const struct facts *facts, bool looked, enum choice_result result,
       const struct tunnel_conf *want)
{
	const struct tunnel_group group = { tunnels, count, true };
	const struct tunnel_conf *chosen = NULL;
	assert_int_equal(choice_make(&group, facts, looked, &chosen), result);
	assert_ptr_equal(chosen, want);
}

static void
test_first_fit(void **unused)
{
	(void)unused;
	struct facts facts = client(9);
	expect(4, &facts, false, CHOICE_LOOK, NULL);
	expect(4, &facts, true, CHOICE_MADE, &rest);
	expect(3, &facts, true, CHOICE_NOBODY, NULL);
	facts = client(10);
	expect(4, &facts, true, CHOICE_MADE, &c);

	facts.begins_with_tls = true;
	expect(4, &facts, true, CHOICE_MADE, &c); /* TLS without a name */
	facts.sni = (char[]){ "x.a.example" };
	expect(4, &facts, true, CHOICE_MADE, &a);
	facts.sni = (char[]){ "b.example" };
	expect(4, &facts, true, CHOICE_MADE, &c); /* the protocol is missing */
	facts.alpn_offered = (char[]){ "http/1.1,h2" };
	expect(4, &facts, true, CHOICE_MADE, &b);
	facts.alpn_offered = (char[]){ "h22,xh2,http/1.1" };
	expect(4, &facts, true, CHOICE_MADE, &c);
	facts.alpn_offered = (char[]){ "h3" };
	expect(2, &facts, true, CHOICE_MADE, &b);
	facts.sni = (char[]){ "c.example" };
	expect(2, &facts, true, CHOICE_NOBODY, NULL);

	/* The name of a TLS that is over does not count. */
	facts.sni = (char[]){ "a.example" };
	facts.begins_with_tls = false;
	expect(4, &facts, true, CHOICE_MADE, &c);
}

/* Where the source decides nobody waits for a hello: the client may want to be spoken to first. */
static void
test_source_needs_no_hello(void **unused)
{
	(void)unused;
	const struct tunnel_conf *by_source[] = { &c, &a, &rest };
	const struct tunnel_group group = { by_source, 3, true };
	const struct tunnel_conf *chosen;
	struct facts facts = client(10);
	assert_int_equal(choice_make(&group, &facts, false, &chosen), CHOICE_MADE);
	assert_ptr_equal(chosen, &c);
	facts = client(11);
	assert_int_equal(choice_make(&group, &facts, false, &chosen), CHOICE_LOOK);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_covering),
		cmocka_unit_test(test_first_fit),
		cmocka_unit_test(test_source_needs_no_hello),
	};
	return cmocka_run_group_tests_name("choice", tests, NULL, NULL);
}
