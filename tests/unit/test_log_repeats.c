#include "clock.h"
#include "log_repeats.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define START_NS (UINT64_MAX - NS_PER_S / 2) /* the clock wraps within the first second */

/* What was written, each line in plain form with a newline. */
static char written[64 * 1024];
static struct log_repeats repeats;

static void
on_line(void *context, const struct log_record *record)
{
	char form[LOG_RECORD_FORM_BYTES];
	assert_ptr_equal(context, written);
	size_t used = strlen(written), bytes = log_record_plain(record, form);
	assert_true(used + bytes + 2 < sizeof(written));
	memcpy(written + used, form, bytes);
	strcpy(written + used + bytes, "\n");
}

static int
begin(void **state)
{
	(void)state;
	memset(&repeats, 0, sizeof(repeats));
	repeats.write = on_line;
	repeats.context = written;
	written[0] = '\0';
	log_repeats_pass(&repeats, START_NS);
	return 0;
}

__attribute__((format(printf, 3, 4))) static void
say(const struct log_field *fields, unsigned int count, const char *format, ...)
{
	struct log_record record;
	va_list args;
	va_start(args, format);
	log_record_fill(&record, LOG_LEVEL_INFO, fields, count, format, args);
	va_end(args);
	log_repeats_take(&repeats, &record);
}

/* A tunnel refuses client number `client`. */
static void
refuse(const char *tunnel, int client)
{
	char address[32];
	snprintf(address, sizeof(address), "10.0.%d.%d:%d", client / 250, client % 250, client + 1);
	const struct log_field fields[] = {
		{ .name = "tunnel", .text = tunnel },
		{ .name = "client", .text = address },
	};
	say(fields, 2, "refused");
}

static unsigned int
times(const char *wanted)
{
	unsigned int count = 0;
	for (const char *at = written; (at = strstr(at, wanted)); at += strlen(wanted))
		count++;
	return count;
}

/* What was written since the last call. */
static void
assert_written(const char *expected)
{
	assert_string_equal(written, expected);
	written[0] = '\0';
}

static void
the_same_is_counted_for_a_second(void **state)
{
	(void)state;
	for (int i = 0; i < 100; i++)
		say(NULL, 0, "no descriptors");
	assert_written("no descriptors\n");
	assert_true(log_repeats_pass(&repeats, START_NS + NS_PER_S - 1));
	assert_written("");
	assert_false(log_repeats_pass(&repeats, START_NS + NS_PER_S));
	assert_written("repeated 99 times: no descriptors\n");
	say(NULL, 0, "no descriptors");
	assert_written("no descriptors\n");
	assert_false(log_repeats_pass(&repeats, START_NS + 3 * NS_PER_S));
	assert_written("");
}

static void
of_one_kind_so_many_are_written(void **state)
{
	(void)state;
	for (int i = 0; i < 5000; i++)
		refuse("a", i);
	assert_int_equal(times("\n"), LOG_REPEATS_MOST);
	assert_int_equal(times("refused tunnel=a client=10.0."), LOG_REPEATS_MOST);
	refuse("b", 0); /* has its own account */
	assert_int_equal(times("refused tunnel=b client=10.0.0.0:1\n"), 1);
	written[0] = '\0';
	assert_true(log_repeats_pass(&repeats, START_NS + NS_PER_S - 1));
	assert_written("");
	assert_false(log_repeats_pass(&repeats, START_NS + NS_PER_S));
	assert_written("left out 4980 lines like: refused tunnel=a\n");
	refuse("a", 6000);
	assert_int_equal(times("refused tunnel=a client=10.0.24.0:6001\n"), 1);
	log_repeats_end(&repeats);
	assert_int_equal(times("left out"), 0);
}

/* Whatever comes how often: what is written and what is counted is what was said. */
static void
nothing_is_unaccounted_for(void **state)
{
	(void)state;
	unsigned int said = 0, told = 0;
	srandom(7);
	for (unsigned int step = 1; step <= 4000; step++) {
		char tunnel[16];
		snprintf(tunnel, sizeof(tunnel), "t%ld", random() % 60);
		for (long i = random() % 4; i >= 0; i--, said++)
			refuse(tunnel, (int)(random() % 40));
		if (step % 400 == 0) {
			if (step % 800 == 0)
				log_repeats_pass(&repeats, START_NS + step * NS_PER_S / 400);
			else
				log_repeats_end(&repeats);
			for (char *line = strtok(written, "\n"); line; line = strtok(NULL, "\n")) {
				unsigned int count = 1;
				sscanf(line, "%*s %u times", &count);
				sscanf(line, "left out %u line", &count);
				told += count;
			}
			written[0] = '\0';
		}
	}
	log_repeats_pass(&repeats, START_NS + 100 * NS_PER_S);
	assert_written("");
	assert_int_equal(told, said);
}

static void
a_flood_of_kinds_is_capped_too(void **state)
{
	(void)state;
	char tunnel[16];
	for (int i = 0; i < 2000; i++) {
		snprintf(tunnel, sizeof(tunnel), "t%d", i);
		refuse(tunnel, 0);
	}
	assert_int_equal(times("\n"), LOG_REPEATS_KINDS + LOG_REPEATS_MOST);
	written[0] = '\0';
	log_repeats_pass(&repeats, START_NS + NS_PER_S);
	assert_written("left out 1948 lines of other kinds\n");
}

static void
kinds_are_format_level_and_first_field(void **state)
{
	(void)state;
	for (int i = 0; i < 100; i++) {
		say(NULL, 0, "one %d", i);
		say(NULL, 0, "other %d", i);
		say(&(struct log_field){ .name = "limit", .text = "x" }, 1, "one %d", i);
		say(&(struct log_field){ .name = "tunnel", .text = "x" }, 1, "one %d", i);
	}
	assert_int_equal(times("\n"), 4 * LOG_REPEATS_MOST);
	written[0] = '\0';
	log_repeats_end(&repeats);
	assert_written("left out 80 lines like: one 0\n"
		       "left out 80 lines like: other 0\n"
		       "left out 80 lines like: one 0 limit=x\n"
		       "left out 80 lines like: one 0 tunnel=x\n");
}

/* Nor is such a line a repetition. */
static void
what_has_no_kind_is_always_written(void **state)
{
	(void)state;
	struct log_record record;
	say(NULL, 0, "entry");
	log_record_copy(&record, &repeats.lines[0].record);
	record.kind = NULL;
	for (int i = 0; i < 1000; i++)
		log_repeats_take(&repeats, &record);
	assert_int_equal(times("entry\n"), 1001);
	assert_false(log_repeats_pass(&repeats, START_NS));
}

/* Lines that come between them do not make repetitions new. */
static void
the_most_repeated_stays_remembered(void **state)
{
	(void)state;
	for (int i = 0; i < LOG_REPEATS_MOST - 1; i++) {
		say(NULL, 0, "no descriptors");
		say(NULL, 0, "another line %d", i);
	}
	assert_int_equal(times("no descriptors\n"), 1);
	assert_int_equal(times("another line"), LOG_REPEATS_MOST - 1);
	written[0] = '\0';
	log_repeats_end(&repeats);
	assert_written("repeated 18 times: no descriptors\n");
}

#define CASE(test) cmocka_unit_test_setup(test, begin)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(the_same_is_counted_for_a_second),
		CASE(of_one_kind_so_many_are_written),
		CASE(nothing_is_unaccounted_for),
		CASE(a_flood_of_kinds_is_capped_too),
		CASE(kinds_are_format_level_and_first_field),
		CASE(what_has_no_kind_is_always_written),
		CASE(the_most_repeated_stays_remembered),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
