#include "failure.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static void
set_fills_and_returns_the_error(void **state)
{
	(void)state;
	struct failure why;
	assert_int_equal(failure_set(&why, FAILURE_TIMEOUT, "no answer in %d s", 3), -1);
	assert_int_equal(why.kind, FAILURE_TIMEOUT);
	assert_string_equal(why.text, "no answer in 3 s");
	assert_int_equal(failure_set(NULL, FAILURE_TIMEOUT, "nobody asks"), -1);
	assert_int_equal(failure_set_errno(NULL, EIO, "nobody asks"), -1);
}

static void
an_errno_gives_kind_and_reason(void **state)
{
	(void)state;
	static const struct {
		int error;
		enum failure_kind kind;
		const char *text;
	} rows[] = {
		{ ENOMEM, FAILURE_MEMORY, "connect: Cannot allocate memory" },
		{ EMFILE, FAILURE_DESCRIPTORS, "connect: Too many open files" },
		{ ECONNREFUSED, FAILURE_REFUSED, "connect: Connection refused" },
		{ ENOENT, FAILURE_REFUSED, "connect: No such file or directory" },
		{ EHOSTUNREACH, FAILURE_UNREACHABLE, "connect: No route to host" },
		{ ECONNRESET, FAILURE_RESET, "connect: Connection reset by peer" },
		{ EPIPE, FAILURE_RESET, "connect: Broken pipe" },
		{ ETIMEDOUT, FAILURE_TIMEOUT, "connect: Connection timed out" },
		{ EIO, FAILURE_SYSTEM, "connect: Input/output error" },
		{ 99999, FAILURE_SYSTEM, "connect: Unknown error 99999" },
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct failure why;
		assert_int_equal(failure_set_errno(&why, rows[i].error, "%s", "connect"), -1);
		assert_int_equal(why.kind, rows[i].kind);
		assert_string_equal(why.text, rows[i].text);
	}
}

static void
a_failure_may_quote_itself(void **state)
{
	(void)state;
	struct failure why;
	failure_set(&why, FAILURE_RESET, "inner");
	failure_set(&why, FAILURE_RESET, "outer: %s", why.text);
	assert_string_equal(why.text, "outer: inner");
	failure_set_errno(&why, EIO, "outermost: %s", why.text);
	assert_string_equal(why.text, "outermost: outer: inner: Input/output error");
}

static void
long_text_is_cut(void **state)
{
	(void)state;
	struct failure why;
	char text[1000];
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	failure_set(&why, FAILURE_PROTOCOL, "%s", text);
	assert_int_equal(strlen(why.text), sizeof(why.text) - 1);
	failure_set_errno(&why, EIO, "%s", text);
	assert_int_equal(strlen(why.text), sizeof(why.text) - 1);
	failure_set_errno(&why, EIO, "%.*s", (int)sizeof(why.text) - 4, text);
	assert_int_equal(strlen(why.text), sizeof(why.text) - 1);
	assert_int_equal(memchr(why.text, '\0', sizeof(why.text)) != NULL, 1);
	assert_string_equal(why.text + sizeof(why.text) - 5, "x…");
	failure_set(&why, FAILURE_CONFIG, "%.*s", (int)sizeof(why.text) - 1, text);
	assert_string_equal(why.text + sizeof(why.text) - 3, "xx"); /* it is all there */
	failure_set(&why, FAILURE_CONFIG, "%.*s→→", (int)sizeof(why.text) - 6, text);
	assert_string_equal(why.text + sizeof(why.text) - 7, "x…");
}

static void
a_text_is_utf8_whatever_it_quotes(void **state)
{
	(void)state;
	struct failure why;
	char cut[sizeof(why.text) + 1];
	failure_set(&why, FAILURE_CONFIG, "%s",
		    "a → b, \xff\xe4, \xed\xa0\x80, \xc0\x80, \xf4\x90\x80\x80");
	assert_string_equal(why.text, "a → b, ??, ???, ??, ????");
	failure_set(&why, FAILURE_CONFIG, "'%.4s'", "ab→");
	assert_string_equal(why.text, "'ab?\?'");
	memset(cut, 'x', sizeof(why.text));
	memcpy(cut + sizeof(why.text) - 3, "→", sizeof("→"));
	failure_set(&why, FAILURE_CONFIG, "%s", cut);
	assert_string_equal(why.text + sizeof(why.text) - 5, "x…");
	memset(cut, 0x80, sizeof(why.text));
	failure_set(&why, FAILURE_CONFIG, "%s", cut);
	assert_string_equal(why.text + strlen(why.text) - 4, "?…");
	failure_set_errno(&why, 5, "%s", "\xe2");
	assert_string_equal(why.text, "?: Input/output error");
}

static void
every_kind_has_its_own_name(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < FAILURE_KINDS; i++) {
		const char *name = failure_kind_name((enum failure_kind)i);
		assert_non_null(name);
		for (unsigned int j = 0; j < i; j++)
			assert_string_not_equal(name, failure_kind_name((enum failure_kind)j));
	}
	assert_string_equal(failure_kind_name(FAILURE_KINDS), "unknown");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(set_fills_and_returns_the_error),
		cmocka_unit_test(an_errno_gives_kind_and_reason),
		cmocka_unit_test(a_failure_may_quote_itself),
		cmocka_unit_test(long_text_is_cut),
		cmocka_unit_test(a_text_is_utf8_whatever_it_quotes),
		cmocka_unit_test(every_kind_has_its_own_name),
	};
	return cmocka_run_group_tests_name("failure", tests, NULL, NULL);
}
