#include "admission.h"
#include "clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

/* Invented time that begins shortly before a wrap of 32 bits of seconds would matter. */
#define BEGIN_NS (UINT64_C(4294967290) * NS_PER_S)

static struct tunnel_conf conf;
static struct failure why;

static struct socket_address
host(uint8_t last)
{
	return (struct socket_address){ .family = AF_INET, .port = 4000, .ip = { 10, 0, 0, last } };
}

static int
set_up(void **state)
{
	(void)state;
	memset(&conf, 0, sizeof(conf));
	conf.name = (char[]){ "t" };
	conf.live = admission_hold("t", &why);
	admission_set_most(0);
	return conf.live ? 0 : -1;
}

static int
tear_down(void **state)
{
	(void)state;
	assert_int_equal(admission_open(), 0);
	admission_release(conf.live);
	return 0;
}

static int
enter(uint8_t last, uint64_t now_ns)
{
	struct socket_address source = host(last);
	why.kind = FAILURE_NONE;
	int result = admission_enter(&conf, &source, now_ns, &why);
	assert_int_equal(why.kind, result ? FAILURE_ADMISSION : FAILURE_NONE);
	return result;
}

static void
leave(uint8_t last)
{
	struct socket_address source = host(last);
	admission_leave(&conf, &source);
}

static void
test_caps_are_exact(void **state)
{
	(void)state;
	conf.max_connections = 2;
	assert_int_equal(enter(1, BEGIN_NS), 0);
	assert_int_equal(enter(2, BEGIN_NS), 0);
	assert_int_equal(enter(3, BEGIN_NS), -1);
	assert_int_equal(admission_open(), 2);
	leave(1);
	assert_int_equal(enter(3, BEGIN_NS), 0);
	admission_set_most(2);
	conf.max_connections = 0;
	assert_int_equal(enter(4, BEGIN_NS), -1);
	leave(2);
	leave(3);
	assert_int_equal(conf.live->refused[REFUSAL_TUNNEL_FULL], 1);
	assert_int_equal(conf.live->refused[REFUSAL_DAEMON_FULL], 1);
	assert_int_equal(conf.live->admitted, 3);
}

static void
test_a_source_is_a_host_and_not_a_port(void **state)
{
	(void)state;
	struct socket_address other_port = host(1);

	conf.max_per_source = 2;
	other_port.port = 4001;
	assert_int_equal(enter(1, BEGIN_NS), 0);
	assert_int_equal(admission_enter(&conf, &other_port, BEGIN_NS, &why), 0);
	assert_int_equal(enter(1, BEGIN_NS), -1);
	assert_int_equal(enter(2, BEGIN_NS), 0);
	leave(1);
	assert_int_equal(enter(1, BEGIN_NS), 0);
	leave(1);
	leave(1);
	leave(2);
}

/* Workers tell the time before they wait for each other: some come with an earlier one. */
static void
test_an_earlier_time_forgives_nothing(void **state)
{
	(void)state;
	conf.max_new_per_source = (struct frequency){ .count = 1, .period_ns = NS_PER_S };
	assert_int_equal(enter(0, BEGIN_NS), 0);
	leave(0);
	for (uint8_t other = 1; other < 100; other++) {
		assert_int_equal(enter(other, BEGIN_NS - 1), 0);
		leave(other);
	}
	assert_int_equal(enter(0, BEGIN_NS - NS_PER_S), -1);
	assert_int_equal(enter(0, BEGIN_NS + NS_PER_S / 2), -1);
	assert_int_equal(enter(0, BEGIN_NS + NS_PER_S), 0);
	leave(0);
}

static void
test_a_rate_of_new_ones(void **state)
{
	(void)state;
	conf.max_new_per_source = (struct frequency){ .count = 5, .period_ns = NS_PER_S };
	for (int i = 0; i < 5; i++) {
		assert_int_equal(enter(1, BEGIN_NS), 0);
		leave(1);
	}
	assert_int_equal(enter(1, BEGIN_NS), -1); /* reconnecting does not refill it */
	assert_int_equal(enter(1, BEGIN_NS + 199 * NS_PER_MS), -1);
	assert_int_equal(enter(1, BEGIN_NS + 200 * NS_PER_MS), 0);
	leave(1);
	assert_int_equal(enter(1, BEGIN_NS + 201 * NS_PER_MS), -1);
	assert_int_equal(enter(2, BEGIN_NS + 201 * NS_PER_MS), 0); /* others have their own */
	leave(2);
	for (int i = 0; i < 5; i++) { /* a year of silence saves up no more than one burst */
		assert_int_equal(enter(1, BEGIN_NS + 31536000 * NS_PER_S), 0);
		leave(1);
	}
	assert_int_equal(enter(1, BEGIN_NS + 31536000 * NS_PER_S), -1);
}

static void
test_deny_wins_over_allow(void **state)
{
	(void)state;
	struct prefix tens = { .base = { .family = AF_INET, .ip = { 10 } }, .bits = 8 };
	struct prefix one = { .base = host(1), .bits = 32 };

	one.base.port = 0;
	conf.allow = (struct prefix_list){ .at = &tens, .count = 1 };
	conf.deny = (struct prefix_list){ .at = &one, .count = 1 };
	assert_int_equal(enter(1, BEGIN_NS), -1);
	assert_int_equal(enter(2, BEGIN_NS), 0);
	leave(2);
	struct socket_address stranger = { .family = AF_INET, .ip = { 192, 0, 2, 1 } };
	assert_int_equal(admission_enter(&conf, &stranger, BEGIN_NS, &why), -1);
}

/* Where a header is to tell the source, only the caps of all are asked for until it is there. */
static void
test_judged_later(void **state)
{
	(void)state;
	struct socket_address source = host(1);
	conf.max_connections = 3;
	conf.max_per_source = 1;
	for (int i = 0; i < 3; i++)
		assert_int_equal(admission_enter(&conf, NULL, BEGIN_NS, &why), 0);
	assert_int_equal(admission_enter(&conf, NULL, BEGIN_NS, &why), -1);
	assert_int_equal(admission_judge(&conf, &source, BEGIN_NS, &why), 0);
	assert_int_equal(admission_judge(&conf, &source, BEGIN_NS, &why), -1);
	assert_int_equal(why.kind, FAILURE_ADMISSION);
	assert_int_equal(conf.live->open, 3);
	assert_int_equal(conf.live->admitted, 1);
	assert_int_equal(conf.live->refused[REFUSAL_TUNNEL_FULL], 1);
	assert_int_equal(conf.live->refused[REFUSAL_SOURCE_FULL], 1);
	admission_leave(&conf, NULL);
	admission_leave(&conf, &source);
	assert_int_equal(admission_judge(&conf, &source, BEGIN_NS, &why), 0);
	admission_leave(&conf, &source);
	assert_int_equal(conf.live->open, 0);
}

static void
test_from_the_front_into_a_tunnel(void **state)
{
	(void)state;
	const struct tunnel_conf *tunnels[] = { &conf };
	struct tunnel_group group = { tunnels, 1, true };
	struct tunnel_conf front = { .group = &group, .live = admission_hold("front", &why) };
	assert_non_null(front.live);
	conf.max_connections = 1;
	assert_int_equal(admission_enter(&front, NULL, BEGIN_NS, &why), 0);
	assert_int_equal(admission_enter(&front, NULL, BEGIN_NS, &why), 0);
	assert_int_equal(admission_move(&front, &conf, &why), 0);
	assert_int_equal(admission_move(&front, &conf, &why), -1);
	assert_int_equal(front.live->open, 1);
	assert_int_equal(conf.live->open, 1);
	assert_int_equal(admission_open(), 2);
	admission_leave(&conf, NULL);
	admission_leave(&front, NULL);
	assert_int_equal(front.live->open, 0);
	admission_release(front.live);

	front.live = conf.live; /* before one tunnel alone */
	front.max_connections = 1;
	assert_int_equal(admission_enter(&front, NULL, BEGIN_NS, &why), 0);
	assert_int_equal(admission_move(&front, &conf, &why), 0);
	assert_int_equal(conf.live->open, 1);
	admission_leave(&conf, NULL);
}

static void
test_counters_outlive_a_generation(void **state)
{
	(void)state;
	assert_int_equal(enter(1, BEGIN_NS), 0);
	struct tunnel_live *next = admission_hold("t", &why);
	assert_ptr_equal(next, conf.live);
	assert_int_equal(next->open, 1);
	admission_release(next);
	leave(1);
}

/* Many sources come once: what is remembered of them does not grow without bound. */
static void
test_sources_are_forgotten(void **state)
{
	(void)state;
	uint64_t now_ns = BEGIN_NS;

	conf.max_new_per_source = (struct frequency){ .count = 1, .period_ns = NS_PER_S };
	for (uint32_t i = 0; i < 200000; i++, now_ns += NS_PER_MS) {
		struct socket_address source = { .family = AF_INET6 };
		memcpy(source.ip, &i, sizeof(i));
		assert_int_equal(admission_enter(&conf, &source, now_ns, &why), 0);
		admission_leave(&conf, &source);
	}
	assert_true(admission_sources(conf.live) < 20000);
}

static void
test_the_last_descriptors_are_the_operators(void **state)
{
	(void)state;
	struct address admin = { .kind = ADDRESS_INTERNAL, .text = (char[]){ "internal:admin" } };

	admission_set_descriptors(1000);
	assert_false(admission_is_reserved(935, &conf));
	assert_true(admission_is_reserved(936, &conf));
	conf.connect = (struct address_list){ .at = &admin, .count = 1 };
	assert_false(admission_is_reserved(999, &conf));
	struct tunnel_conf web = { .name = NULL };
	const struct tunnel_conf *tunnels[] = { &web, &conf };
	struct tunnel_group group = { tunnels, 2, true };
	struct tunnel_conf front = { .group = &group };
	assert_false(admission_is_reserved(999, &front));
	group.count = 1;
	assert_true(admission_is_reserved(999, &front));
	admission_set_descriptors(0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_caps_are_exact),
		TEST(test_a_source_is_a_host_and_not_a_port),
		TEST(test_an_earlier_time_forgives_nothing),
		TEST(test_a_rate_of_new_ones),
		TEST(test_deny_wins_over_allow),
		TEST(test_judged_later),
		TEST(test_from_the_front_into_a_tunnel),
		TEST(test_counters_outlive_a_generation),
		TEST(test_sources_are_forgotten),
		TEST(test_the_last_descriptors_are_the_operators),
	};
	return cmocka_run_group_tests_name("admission", tests, NULL, NULL);
}
