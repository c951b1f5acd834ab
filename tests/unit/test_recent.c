#include "clock.h"
#include "recent.h"
#include "services/why.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define BEGIN_NS (UINT64_MAX / 2)

static struct pump pump;
static struct recent recent;

static int
set_up(void **state)
{
	(void)state;
	memset(&pump, 0, sizeof(pump));
	memset(&recent, 0, sizeof(recent));
	pump_open(&pump, NULL, WAIT_CONNECT, BEGIN_NS);
	return 0;
}

/* Both flows wait for so long, and so many bytes go up. */
static void
pass(enum wait up, enum wait down, uint64_t duration_ns, uint64_t bytes)
{
	pump.flow[FLOW_UP].waiting.cause = up;
	pump.flow[FLOW_DOWN].waiting.cause = down;
	pump.flow[FLOW_UP].bytes += bytes;
	pump_account(&pump, pump.clock_ns + duration_ns);
}

static struct recent_window
look(const struct recent *ring)
{
	struct recent_window window;
	recent_look(ring, &pump, BEGIN_NS, &window);
	return window;
}

static uint64_t
sum(const struct recent_window *window, int name)
{
	uint64_t ns = 0;
	for (int cause = 0; cause < WAITS; cause++)
		ns += window->sums.spent_ns[name][cause];
	return ns;
}

static void
test_the_very_young_have_no_great_rates(void **state)
{
	(void)state;
	pass(WAIT_NEAR_READABLE, WAIT_FAR_READABLE, NS_PER_MS, 100);
	assert_int_equal(look(NULL).rate[FLOW_UP], 1000);
	recent_begin(&recent, &pump, BEGIN_NS, true);
	assert_int_equal(look(&recent).rate[FLOW_UP], 1000);
}

static void
test_young_is_known_from_the_start(void **state)
{
	(void)state;
	pass(WAIT_CONNECT, WAIT_CONNECT, 300 * NS_PER_MS, 0);
	pass(WAIT_MOVING, WAIT_FAR_READABLE, 200 * NS_PER_MS, 5000);
	struct recent_window window = look(NULL);
	assert_int_equal(window.length_ns, 500 * NS_PER_MS);
	assert_int_equal(window.sums.spent_ns[FLOW_UP][WAIT_CONNECT], 300 * NS_PER_MS);
	assert_int_equal(window.sums.spent_ns[FLOW_DOWN][WAIT_FAR_READABLE], 200 * NS_PER_MS);
	assert_int_equal(window.rate[FLOW_UP], 10000);
}

static void
test_the_window_forgets(void **state)
{
	(void)state;
	recent_begin(&recent, &pump, BEGIN_NS, true);
	for (int second = 0; second < 30; second++) {
		pass(second < 15 ? WAIT_LIMIT : WAIT_NEAR_READABLE, WAIT_FAR_READABLE, NS_PER_S,
		     1000);
		recent_note(&recent, &pump);
		struct recent_window window = look(&recent);
		uint64_t length_s = second < 10 ? (uint64_t)second + 1 : 10;
		assert_int_equal(window.length_ns, length_s * NS_PER_S);
		assert_int_equal(sum(&window, FLOW_UP), window.length_ns);
		assert_int_equal(window.sums.bytes[FLOW_UP], length_s * 1000);
		assert_int_equal(window.rate[FLOW_UP], 1000);
		if (second >= 24)
			assert_int_equal(window.sums.spent_ns[FLOW_UP][WAIT_LIMIT], 0);
		if (second == 19)
			assert_int_equal(window.sums.spent_ns[FLOW_UP][WAIT_LIMIT], 5 * NS_PER_S);
	}
}

static void
test_what_is_in_no_slot_yet_counts(void **state)
{
	(void)state;
	recent_begin(&recent, &pump, BEGIN_NS, true);
	pass(WAIT_CONNECT, WAIT_CONNECT, NS_PER_S, 0);
	recent_note(&recent, &pump);
	pass(WAIT_FAR_WRITABLE, WAIT_FAR_READABLE, NS_PER_S / 2, 500);
	struct recent_window window = look(&recent);
	assert_int_equal(window.length_ns, 3 * NS_PER_S / 2);
	assert_int_equal(window.sums.spent_ns[FLOW_UP][WAIT_FAR_WRITABLE], NS_PER_S / 2);
	assert_int_equal(window.sums.bytes[FLOW_UP], 500);
}

static void
test_after_a_long_rest(void **state)
{
	(void)state;
	/* An hour of silence, without a ring: ten seconds of the same. */
	pass(WAIT_NEAR_READABLE, WAIT_FAR_READABLE, 3600 * NS_PER_S, 0);
	struct recent_window window = look(NULL);
	assert_int_equal(window.length_ns, 10 * NS_PER_S);
	assert_int_equal(window.sums.spent_ns[FLOW_UP][WAIT_NEAR_READABLE], 10 * NS_PER_S);
	/* Then two seconds of something else: the other eight are still known. */
	recent_begin(&recent, &pump, BEGIN_NS, false);
	for (int second = 0; second < 2; second++) {
		pass(WAIT_LIMIT, WAIT_FAR_READABLE, NS_PER_S, 10);
		recent_note(&recent, &pump);
	}
	window = look(&recent);
	assert_int_equal(window.length_ns, 10 * NS_PER_S);
	assert_int_equal(window.sums.spent_ns[FLOW_UP][WAIT_NEAR_READABLE], 8 * NS_PER_S);
	assert_int_equal(window.sums.spent_ns[FLOW_UP][WAIT_LIMIT], 2 * NS_PER_S);
	assert_int_equal(window.rate[FLOW_UP], 10);
}

static void
test_a_flow_that_has_ended_waits_for_nothing(void **state)
{
	(void)state;
	pump.flow[FLOW_UP].state = FLOW_ENDED;
	pass(WAIT_NEAR_READABLE, WAIT_FAR_READABLE, 60 * NS_PER_S, 0);
	struct recent_window window = look(NULL);
	assert_int_equal(sum(&window, FLOW_UP), 0);
	assert_int_equal(sum(&window, FLOW_DOWN), 10 * NS_PER_S);
}

/* --- the sentence --------------------------------------------------------------------------------- */

static struct connection_report
report_of(enum wait up, unsigned int up_percent, enum wait down, unsigned int down_percent)
{
	struct connection_report report = {
		.state = CONNECTION_OPEN,
		.now_ns = BEGIN_NS,
		.moved_ns = BEGIN_NS - 3 * NS_PER_S,
		.recent_length_ns = 10 * NS_PER_S,
		.target = "10.0.0.5:80",
	};
	report.flow[FLOW_UP].recent_ns[up] = up_percent * NS_PER_S / 10;
	report.flow[FLOW_DOWN].recent_ns[down] = down_percent * NS_PER_S / 10;
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++)
		report.flow[name].waiting.cause = report.flow[name].blamed.cause =
			name == FLOW_UP ? up : down;
	return report;
}

static void
assert_says(const struct connection_report *report, const char *text)
{
	char why[WHY_TEXT];
	assert_string_equal(why_explain(report, why), text);
}

static void
test_sentences(void **state)
{
	(void)state;
	struct connection_report report = report_of(WAIT_NEAR_READABLE, 99, WAIT_NEAR_WRITABLE, 88);
	assert_says(&report,
		    "the client reads slowly: 88 % of the last 10 s waiting to write to it");
	report = report_of(WAIT_FAR_WRITABLE, 50, WAIT_FAR_READABLE, 99);
	assert_says(&report,
		    "the target reads slowly: 50 % of the last 10 s waiting to write to it");
	report = report_of(WAIT_CONNECT, 100, WAIT_CONNECT, 100);
	assert_says(&report, "the target is slow to answer: 100 % of the last 10 s connecting to "
			     "10.0.0.5:80");
	report = report_of(WAIT_RESOLVER, 100, WAIT_RESOLVER, 100);
	assert_says(&report,
		    "the resolver is slow: 100 % of the last 10 s waiting for the address of "
		    "10.0.0.5:80");
	report = report_of(WAIT_TURN, 40, WAIT_FAR_READABLE, 99);
	report.worker = 3;
	assert_says(&report, "worker 3 is busy: 40 % of the last 10 s waiting for its turn");
	report = report_of(WAIT_HANDSHAKE, 90, WAIT_HANDSHAKE, 90);
	report.far_shakes = true;
	assert_says(&report, "the handshake with the target is slow: 90 % of the last 10 s waiting "
			     "for it");
	report = report_of(WAIT_NEAR_READABLE, 99, WAIT_FAR_READABLE, 99);
	assert_says(&report, "idle: no byte in either direction for 3 s");
	report.flow[FLOW_DOWN].recent_bytes = 1000;
	assert_says(&report,
		    "the target sends slowly: 99 % of the last 10 s waiting for its bytes");
	report.flow[FLOW_UP].recent_bytes = 10;
	assert_says(&report, "nothing holds it up: 99 % of the last 10 s neither side had anything "
			     "to say");
	report.flow[FLOW_UP].recent_bytes = 1001; /* and the end, all at once */
	report.flow[FLOW_UP].recent_ns[WAIT_NEAR_READABLE] = 0;
	report.flow[FLOW_UP].is_over = true;
	assert_says(&report,
		    "the target sends slowly: 99 % of the last 10 s waiting for its bytes");
	report.flow[FLOW_UP].recent_bytes = report.flow[FLOW_DOWN].recent_bytes = 0;
	assert_says(&report, "idle: the client has ended, the target has not, and no byte for 3 s");
	report = report_of(WAIT_NEAR_READABLE, 99, WAIT_FAR_READABLE, 0);
	report.flow[FLOW_DOWN].is_over = true;
	assert_says(&report, "idle: the target has ended, the client has not, and no byte for 3 s");
	report = report_of(WAIT_MOVING, 95, WAIT_FAR_READABLE, 99);
	report.flow[FLOW_UP].recent_bytes = 1 << 30;
	assert_says(&report, "nothing holds it up: 95 % of the last 10 s moving");
	report.recent_length_ns = NS_PER_MS;
	assert_says(&report, "it has just begun");
	report.state = CONNECTION_FLUSHING;
	assert_says(&report, "it is over; its last bytes are on their way");
}

static void
test_sentences_about_limits(void **state)
{
	(void)state;
	struct connection_report report = report_of(WAIT_LIMIT, 94, WAIT_FAR_READABLE, 99);
	struct flow_report *up = &report.flow[FLOW_UP];
	snprintf(up->limit, sizeof(up->limit), "customer");
	up->limit_rate = 50000000;
	up->limit_active = 3;
	assert_says(&report,
		    "throttled 94 % of the last 10 s by limit \"customer\" (50MB/s shared by "
		    "3 active connections)");
	up->limit_active = 1;
	snprintf(up->limit_key, sizeof(up->limit_key), "10.0.0.7/32");
	assert_says(&report, "throttled 94 % of the last 10 s by limit \"customer\" of 10.0.0.7/32 "
			     "(50MB/s)");
	up->waiting.cause = WAIT_FAR_WRITABLE;
	assert_says(&report, "throttled 94 % of the last 10 s by limit \"customer\" of 10.0.0.7/32 "
			     "(50MB/s, behind the pair)");
	up->blamed.cause = up->waiting.cause = WAIT_MOVING;
	assert_says(&report, "throttled 94 % of the last 10 s by its limits");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_the_very_young_have_no_great_rates, set_up),
		cmocka_unit_test_setup(test_young_is_known_from_the_start, set_up),
		cmocka_unit_test_setup(test_the_window_forgets, set_up),
		cmocka_unit_test_setup(test_what_is_in_no_slot_yet_counts, set_up),
		cmocka_unit_test_setup(test_after_a_long_rest, set_up),
		cmocka_unit_test_setup(test_a_flow_that_has_ended_waits_for_nothing, set_up),
		cmocka_unit_test(test_sentences),
		cmocka_unit_test(test_sentences_about_limits),
	};
	return cmocka_run_group_tests_name("recent", tests, NULL, NULL);
}
