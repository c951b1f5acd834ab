/* units: exact amounts, and a clear word for everything else. */
#include "keyword.h"
#include "units.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

struct good {
	const char *text;
	uint64_t amount;
};

struct bad {
	const char *text, *why;
};

typedef int parse_function(const char *, uint64_t *, struct failure *);

static void
check_good(parse_function *parse, const struct good *table)
{
	for (; table->text; table++) {
		struct failure why = { 0 };
		uint64_t amount = 42;
		if (parse(table->text, &amount, &why))
			fail_msg("%s: %s", table->text, why.text);
		if (amount != table->amount)
			fail_msg("%s is %llu", table->text, (unsigned long long)amount);
	}
}

static void
check_bad(parse_function *parse, const struct bad *table)
{
	for (; table->text; table++) {
		struct failure why = { 0 };
		uint64_t amount = 42;
		assert_int_equal(parse(table->text, &amount, &why), -1);
		assert_string_equal(why.text, table->why);
		assert_int_equal(why.kind, FAILURE_CONFIG);
		assert_true(amount == 42);
	}
}

static void
test_counts(void **state)
{
	(void)state;
	static const struct good good[] = { { "0", 0 },
					    { "1000", 1000 },
					    { "010", 10 },
					    { "18446744073709551615", UINT64_MAX },
					    { NULL, 0 } };
	static const struct bad bad[] = {
		{ "", "'' does not begin with a digit; write a count such as '1000'" },
		{ "10k", "'10k' is not a whole number; write digits only, as in '1000'" },
		{ "0x10", "'0x10' is not a whole number; write digits only, as in '1000'" },
		{ " 1", "' 1' does not begin with a digit; write a count such as '1000'" },
		{ "-1", "'-1' has a sign; write the count without it, as in '1000'" },
		{ "+1", "'+1' has a sign; write the count without it, as in '1000'" },
		{ "1.5", "'1.5' has a fraction; write a whole number" },
		{ "18446744073709551616",
		  "'18446744073709551616' is too large; numbers end at 18446744073709551615" },
		{ NULL, NULL }
	};
	check_good(units_parse_count, good);
	check_bad(units_parse_count, bad);
}

static void
test_durations(void **state)
{
	(void)state;
	static const struct good good[] = {
		{ "0", 0 },
		{ "0s", 0 },
		{ "7us", 7000 },
		{ "250ms", 250000000 },
		{ "10s", 10000000000 },
		{ "010s", 10000000000 },
		{ "5min", 300000000000 },
		{ "5m", 300000000000 },
		{ "1h", 3600000000000 },
		{ "1d", 86400000000000 },
		{ "18446744073s", 18446744073000000000U },
		{ NULL, 0 },
	};
	static const struct bad bad[] = {
		{ "10", "'10' has no unit; write one of us, ms, s, min, m, h, d after it, as in "
			"'10s'" },
		{ "10 s", "'10 s' has a space in it; write the unit right behind the number, as in "
			  "'10s'" },
		{ "10S",
		  "'10S' has the unknown unit 'S'; the units of a duration are us, ms, s, min, "
		  "m, h, d" },
		{ "1h30m",
		  "'1h30m' has the unknown unit 'h30m'; the units of a duration are us, ms, "
		  "s, min, m, h, d" },
		{ "s", "'s' does not begin with a digit; write a duration such as '10s'" },
		{ "-5s", "'-5s' has a sign; write the duration without it, as in '10s'" },
		{ "1.5s", "'1.5s' has a fraction; write 1500ms" },
		{ "1,5h", "'1,5h' has a fraction; write 90min" },
		{ "0.25d", "'0.25d' has a fraction; write 6h" },
		{ "0.5us", "'0.5us' has a fraction; write a whole number of a smaller unit" },
		{ "1.5", "'1.5' has a fraction; write a whole number of a smaller unit" },
		{ "1.s", "'1.s' has a fraction; write 1s" },
		{ "1.12345678901s",
		  "'1.12345678901s' has a fraction; write a whole number of a smaller unit" },
		{ "18446744074s", "'18446744074s' is too large; the most is 18446744073s" },
		{ "213504d", "'213504d' is too large; the most is 213503d" },
		{ NULL, NULL },
	};
	check_good(units_parse_duration, good);
	check_bad(units_parse_duration, bad);
}

static void
test_sizes(void **state)
{
	(void)state;
	static const struct good good[] = {
		{ "0", 0 },
		{ "1B", 1 },
		{ "1kB", 1000 },
		{ "64KiB", 65536 },
		{ "10MB", 10000000 },
		{ "1MiB", 1048576 },
		{ "1GB", 1000000000 },
		{ "2GiB", 2147483648 },
		{ "1TB", 1000000000000 },
		{ "16777215TiB", 18446742974197923840U },
		{ NULL, 0 },
	};
	static const struct bad bad[] = {
		{ "1.5KiB", "'1.5KiB' has a fraction; write 1536B" },
		{ "10KB",
		  "'10KB' has the unknown unit 'KB'; the units of a size are B, kB, KiB, MB, "
		  "MiB, GB, GiB, TB, TiB" },
		{ "10",
		  "'10' has no unit; write one of B, kB, KiB, MB, MiB, GB, GiB, TB, TiB after "
		  "it, as in '64KiB'" },
		{ "16777216TiB", "'16777216TiB' is too large; the most is 16777215TiB" },
		{ NULL, NULL },
	};
	check_good(units_parse_size, good);
	check_bad(units_parse_size, bad);
}

static void
test_rates(void **state)
{
	(void)state;
	static const struct good good[] = {
		{ "0", 0 },
		{ "8bit/s", 1 },
		{ "1kbit/s", 125 },
		{ "900Mbit/s", 112500000 },
		{ "1Gbit/s", 125000000 },
		{ "10MB/s", 10000000 },
		{ "1MiB/s", 1048576 },
		{ "1B/s", 1 },
		{ NULL, 0 },
	};
	static const struct bad bad[] = {
		{ "12bit/s",
		  "'12bit/s' is not a whole number of bytes a second; the nearest below is "
		  "1B/s" },
		{ "1.5Mbit/s", "'1.5Mbit/s' has a fraction; write 1500kbit/s" },
		{ "10MB",
		  "'10MB' has the unknown unit 'MB'; write 10MB/s for bytes or 10Mbit/s for bits" },
		{ "10m",
		  "'10m' has the unknown unit 'm'; write 10MB/s for bytes or 10Mbit/s for bits" },
		{ "100Kbps", "'100Kbps' has the unknown unit 'Kbps'; write 100kB/s for bytes or "
			     "100kbit/s for bits" },
		{ NULL, NULL },
	};
	check_good(units_parse_rate, good);
	check_bad(units_parse_rate, bad);
}

static void
test_frequencies(void **state)
{
	(void)state;
	struct frequency frequency;
	struct failure why;
	assert_int_equal(units_parse_frequency("50/s", &frequency, &why), 0);
	assert_true(frequency.count == 50 && frequency.period_ns == 1000000000);
	assert_int_equal(units_parse_frequency("10/min", &frequency, &why), 0);
	assert_true(frequency.count == 10 && frequency.period_ns == 60000000000);
	assert_int_equal(units_parse_frequency("0", &frequency, &why), 0);
	assert_true(frequency.count == 0 && frequency.period_ns > 0);
	assert_int_equal(units_parse_frequency("50", &frequency, &why), -1);
	assert_string_equal(
		why.text, "'50' has no unit; write one of /s, /min, /h, /d after it, as in '50/s'");
	assert_int_equal(units_parse_frequency("1.5/s", &frequency, &why), -1);
	assert_string_equal(why.text,
			    "'1.5/s' has a fraction; write a whole number for a longer period");
	assert_int_equal(units_parse_frequency("9/week", &frequency, &why), -1);
	assert_string_equal(why.text,
			    "'9/week' has the unknown unit '/week'; the units of a frequency "
			    "are /s, /min, /h, /d");
	assert_int_equal(units_parse_frequency("106751/d", &frequency, &why), 0);
	assert_true(frequency.count <= UINT64_MAX / 2 / frequency.period_ns);
	assert_int_equal(units_parse_frequency("213504/d", &frequency, &why), -1);
	assert_string_equal(why.text, "'213504/d' is too often; the most is 106751/d");
	assert_int_equal(units_parse_frequency("18446744073709551615", &frequency, &why), -1);
}

static void
test_formats(void **state)
{
	(void)state;
	static const struct {
		uint64_t ns;
		const char *text;
	} durations[] = {
		{ 0, "0s" },
		{ 1, "0.000ms" },
		{ 1234567, "1.235ms" },
		{ 250000000, "250ms" },
		{ 999999999, "1000.000ms" },
		{ 1500000000, "1500ms" },
		{ 12345678901, "12.346s" },
		{ 60000000000, "1min" },
		{ 90000000000, "90s" },
		{ 3600000000000, "1h" },
		{ UINT64_MAX, "18446744073.710s" },
	};
	static const struct {
		uint64_t bytes;
		const char *size, *rate;
	} amounts[] = {
		{ 0, "0B", "0B/s" },
		{ 65536, "64KiB", "64KiB/s" },
		{ 10000000, "10MB", "10MB/s" },
		{ 112500000, "112500kB", "900Mbit/s" },
		{ 1234567, "1234567B", "1234567B/s" },
		{ UINT64_MAX, "18446744073709551615B", "18446744073709551615B/s" },
	};
	char text[UNITS_TEXT];
	for (size_t i = 0; i < sizeof(durations) / sizeof(*durations); i++)
		assert_string_equal(units_format_duration(durations[i].ns, text),
				    durations[i].text);
	for (size_t i = 0; i < sizeof(amounts) / sizeof(*amounts); i++) {
		assert_string_equal(units_format_bytes(amounts[i].bytes, text), amounts[i].size);
		assert_string_equal(units_format_rate(amounts[i].bytes, text), amounts[i].rate);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_counts),      cmocka_unit_test(test_durations),
		cmocka_unit_test(test_sizes),       cmocka_unit_test(test_rates),
		cmocka_unit_test(test_frequencies), cmocka_unit_test(test_formats),
	};
	return cmocka_run_group_tests_name("units", tests, NULL, NULL);
}
