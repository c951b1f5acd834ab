/* The list of targets without sockets, in invented time: which is chosen, and what is known of each. */
#include "clock.h"
#include "targets_list.h"

#include <sys/socket.h>

#define NONE 99 /* no target works */

static uint64_t now_ns;

/* Who connects, and to what: targets below `failing` do not work. */
static const struct socket_address *for_whom;
static size_t failing;

/* Which were tried. */
static size_t tried[16], tries;

static int
prepare(void **state)
{
	(void)state;
	now_ns = 1000 * NS_PER_S;
	for_whom = NULL;
	failing = tries = 0;
	return 0;
}

static int
finish(void **state)
{
	(void)state;
	targets_list_close();
	return 0;
}

/* One connect, as a dial does it. Returns the target that works. */
static size_t
connect_once(void)
{
	bool chosen[16] = { false };
	struct targets_search search = { .tried = chosen };
	struct failure why;

	targets_search(targets, &search, for_whom, NULL);
	while (search.untried) {
		size_t index = targets_choose(targets, &search, now_ns);
		if (targets_take(targets, index, &why) < 0)
			continue;
		tried[tries++] = index;
		if (index >= failing) {
			targets_worked(targets, index, false);
			return index;
		}
		targets_disconnected(targets, index);
		targets_failed(targets, index, false, now_ns);
	}
	return NONE;
}

static void
the_order_is_as_written(void **state)
{
	(void)state;
	set_targets(BALANCE_ORDER, "internal:a internal:b internal:c");
	for (unsigned int i = 0; i < 3; i++)
		assert_int_equal(connect_once(), 0);
	assert_int_equal(tries, 3);
	assert_int_equal(targets_active(targets, 0), 3);
	assert_string_equal(targets_name(targets, 1), "internal:b");
}

static void
round_robin_rotates(void **state)
{
	(void)state;
	set_targets(BALANCE_ROUND_ROBIN, "internal:a internal:b internal:c");
	for (unsigned int i = 0; i < 7; i++)
		assert_int_equal(connect_once(), i % 3);
}

static void
least_takes_the_one_with_the_fewest(void **state)
{
	(void)state;
	set_targets(BALANCE_LEAST, "internal:a internal:b internal:c");
	size_t once = 0;
	for (unsigned int i = 0; i < 6; i++)
		once |= (size_t)1 << (4 * connect_once());
	assert_int_equal(once, 0x111);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(targets_active(targets, i), 2);
	targets_disconnected(targets, 1);
	assert_int_equal(connect_once(), 1);
	targets_disconnected(targets, 2);
	targets_disconnected(targets, 2);
	assert_int_equal(connect_once(), 2);
	assert_int_equal(connect_once(), 2);
}

static void
what_is_known_is_carried_over(void **state)
{
	(void)state;
	set_targets(BALANCE_ORDER, "internal:a internal:b");
	failing = 1;
	assert_int_equal(connect_once(), 1);
	struct targets *old = targets;
	targets = configure("internal:a internal:new internal:b", BALANCE_ORDER, old);
	assert_int_equal(targets_active(targets, 2), 1);
	targets_disconnected(old, 1);
	assert_int_equal(targets_active(targets, 2), 0);
	targets_hold(targets);
	targets_release(targets);
	targets_release(old);
	failing = 0;
	assert_int_equal(connect_once(), 1);
}

/* How often each of some targets is what works for that many connects, which end with their connections. */
static void
count_connects(unsigned int connects, unsigned int *counts)
{
	while (connects--) {
		size_t index = connect_once();
		tries = 0;
		counts[index]++;
		targets_disconnected(targets, index);
	}
}

static void
weights_share_the_turns(void **state)
{
	const size_t order[] = { 0, 0, 1, 2, 0, 0, 0, 1, 2, 0 };
	uint64_t weights[] = { 3, 1, 1 };
	const struct count_list list = { weights, 3 };
	(void)state;

	making.weights = &list;
	set_targets(BALANCE_ROUND_ROBIN, "internal:a internal:b internal:c");
	for (size_t i = 0; i < 10; i++)
		assert_int_equal(connect_once(), order[i]);
	assert_memory_equal(tried, order, sizeof(order));
}

/* Of four the second has failed: its turns are not all the next one's. */
static void
the_turns_of_a_failed_target_are_shared(void **state)
{
	unsigned int counts[4] = { 0 };
	(void)state;

	set_targets(BALANCE_ROUND_ROBIN, "internal:a internal:b internal:c internal:d");
	assert_true(targets_checked(targets, 1, false, 1, 1));
	count_connects(12, counts);
	assert_true(counts[0] == 4 && counts[2] == 4 && counts[3] == 4);
}

static void
weights_are_what_least_divides_by(void **state)
{
	uint64_t weights[] = { 1, 4 };
	const struct count_list list = { weights, 2 };
	(void)state;

	making.weights = &list;
	set_targets(BALANCE_LEAST, "internal:a internal:b");
	for (unsigned int i = 0; i < 10; i++)
		connect_once();
	assert_int_equal(targets_active(targets, 0), 2);
	assert_int_equal(targets_active(targets, 1), 8);
}

static void
in_order_weights_mean_nothing(void **state)
{
	uint64_t weights[] = { 1, 100 };
	const struct count_list list = { weights, 2 };
	(void)state;

	making.weights = &list;
	set_targets(BALANCE_ORDER, "internal:a internal:b");
	for (unsigned int i = 0; i < 3; i++)
		assert_int_equal(connect_once(), 0);
}

static void
a_backup_is_for_when_none_of_the_others_works(void **state)
{
	unsigned int counts[4] = { 0 };
	(void)state;

	set_targets(BALANCE_ROUND_ROBIN, "internal:a internal:b|internal:c internal:d");
	count_connects(4, counts);
	assert_true(counts[0] == 2 && counts[1] == 2);
	failing = 1;
	count_connects(4, counts);
	assert_true(counts[0] == 2 && counts[1] == 6 && counts[2] == 0 && counts[3] == 0);
	failing = 2;
	count_connects(4, counts);
	assert_true(counts[1] == 6 && counts[2] == 2 && counts[3] == 2);
	/* Both of the others have just failed: a backup comes before them, and they before nothing. */
	failing = 4;
	assert_int_equal(connect_once(), NONE);
	assert_int_equal(tries, 4);
	assert_true(tried[0] >= 2 && tried[1] >= 2);
}

static void
a_failed_check_is_worse_than_being_a_backup(void **state)
{
	(void)state;
	set_targets(BALANCE_ORDER, "internal:a|internal:b");
	assert_true(targets_checked(targets, 0, false, 1, 1));
	assert_int_equal(connect_once(), 1);
	assert_true(targets_checked(targets, 0, true, 1, 1));
	assert_int_equal(connect_once(), 0);
}

/* Of 256 clients, where each goes; their connections end. */
static void
send_clients(uint8_t where[256])
{
	for (unsigned int i = 0; i < 256; i++) {
		const struct socket_address client = { .family = AF_INET,
						       .port = (uint16_t)(1024 + i),
						       .ip = { 10, 0, 0, (uint8_t)i } };
		for_whom = &client;
		where[i] = (uint8_t)connect_once();
		tries = 0;
		targets_disconnected(targets, where[i]);
	}
	for_whom = NULL;
}

static void
source_keeps_a_client_at_its_target(void **state)
{
	uint8_t first[256], then[256];
	unsigned int counts[3] = { 0 }, moved = 0;
	(void)state;

	set_targets(BALANCE_SOURCE, "internal:a internal:b internal:c");
	send_clients(first);
	send_clients(then);
	assert_memory_equal(first, then, sizeof(first));
	for (unsigned int i = 0; i < 256; i++)
		counts[first[i]]++;
	for (unsigned int i = 0; i < 3; i++)
		assert_in_range(counts[i], 60, 110);
	/* Only the clients of one that fails move, to both of the others, and they come back. */
	failing = 1;
	send_clients(then);
	for (unsigned int i = 0; i < 256; i++) {
		assert_true(first[i] == then[i] || first[i] == 0);
		moved += then[i] == 1 && first[i] == 0;
	}
	assert_in_range(moved, 20, 70);
	failing = 0;
	struct targets *old = targets;
	targets = configure("internal:c internal:a internal:b", BALANCE_SOURCE, NULL);
	targets_release(old);
	send_clients(then); /* the order of the list is nothing */
	for (unsigned int i = 0; i < 256; i++)
		assert_int_equal((then[i] + 2) % 3, first[i]);
}

static void
source_heeds_weights(void **state)
{
	uint64_t weights[] = { 3, 1 };
	const struct count_list list = { weights, 2 };
	uint8_t where[256];
	unsigned int second = 0;
	(void)state;

	making.weights = &list;
	set_targets(BALANCE_SOURCE, "internal:a internal:b");
	send_clients(where);
	for (unsigned int i = 0; i < 256; i++)
		second += where[i];
	assert_in_range(second, 40, 90);
}

static void
source_takes_an_ipv6_network_for_a_client(void **state)
{
	struct socket_address client = { .family = AF_INET6, .ip = { 0x20, 1, 0xd, 0xb8 } };
	unsigned int counts[4] = { 0 }, targets_seen = 0;
	(void)state;

	set_targets(BALANCE_SOURCE, "internal:a internal:b internal:c internal:d");
	for_whom = &client;
	for (client.ip[15] = 1; client.ip[15] < 20; client.ip[15]++)
		count_connects(1, counts);
	assert_true(counts[0] == 19 || counts[1] == 19 || counts[2] == 19 || counts[3] == 19);
	for (client.ip[7] = 1; client.ip[7] < 40; client.ip[7]++)
		count_connects(1, counts);
	for (unsigned int i = 0; i < 4; i++)
		targets_seen += counts[i] > 0;
	assert_int_equal(targets_seen, 4);
	for_whom = NULL;
}

static void
what_failed_is_tried_last_for_a_while(void **state)
{
	const size_t order[] = { 0, 1, 2 /* then */, 2 /* then */, 0, 1, 2 };
	(void)state;
	set_targets(BALANCE_ORDER, "internal:a internal:b internal:c");
	failing = 2;
	assert_int_equal(connect_once(), 2);
	assert_int_equal(targets_failed_until(targets, 0, now_ns),
			 now_ns + TARGET_FAILED_S * NS_PER_S);
	now_ns += TARGET_FAILED_S * NS_PER_S - 1;
	assert_int_equal(connect_once(), 2);
	now_ns++;
	assert_int_equal(targets_failed_until(targets, 0, now_ns), 0);
	assert_int_equal(connect_once(), 2);
	assert_int_equal(tries, 7);
	assert_memory_equal(tried, order, sizeof(order));
}

static void
a_full_target_is_not_taken(void **state)
{
	struct failure why;
	(void)state;

	making.most = 2;
	set_targets(BALANCE_ORDER, "internal:a internal:b");
	for (unsigned int i = 0; i < 4; i++)
		assert_int_equal(connect_once(), i / 2);
	assert_int_equal(connect_once(), NONE);
	assert_int_equal(targets_take(targets, 1, &why), -1);
	assert_int_equal(why.kind, FAILURE_ADMISSION);
	assert_int_equal(targets_active(targets, 1), 2);
	targets_disconnected(targets, 0);
	assert_int_equal(connect_once(), 0);
}

static void
only_the_wanted_one_is_chosen(void **state)
{
	bool chosen[3] = { false };
	struct targets_search search = { .tried = chosen };
	const size_t only = 1;
	(void)state;

	set_targets(BALANCE_ROUND_ROBIN, "internal:a internal:b internal:c");
	targets_search(targets, &search, NULL, &only);
	assert_int_equal(search.untried, 1);
	assert_int_equal(targets_choose(targets, &search, now_ns), 1);
	assert_int_equal(search.untried, 0);
}

/* Each change is told once, and none that the daemon's own connects make. */
static void
a_change_is_told_once(void **state)
{
	(void)state;
	set_targets(BALANCE_ORDER, "internal:a");
	assert_false(targets_worked(targets, 0, false));
	assert_false(targets_failed(targets, 0, true, now_ns));
	assert_true(targets_failed(targets, 0, false, now_ns));
	assert_false(targets_failed(targets, 0, false, now_ns));
	assert_false(targets_worked(targets, 0, true));
	assert_int_equal(targets_failed_until(targets, 0, now_ns), 0);
	assert_true(targets_worked(targets, 0, false));
	assert_false(targets_worked(targets, 0, false));
}

int
main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, prepare, finish)
	const struct CMUnitTest tests[] = {
		CASE(the_order_is_as_written),
		CASE(round_robin_rotates),
		CASE(least_takes_the_one_with_the_fewest),
		CASE(what_is_known_is_carried_over),
		CASE(weights_share_the_turns),
		CASE(the_turns_of_a_failed_target_are_shared),
		CASE(weights_are_what_least_divides_by),
		CASE(in_order_weights_mean_nothing),
		CASE(a_backup_is_for_when_none_of_the_others_works),
		CASE(a_failed_check_is_worse_than_being_a_backup),
		CASE(source_keeps_a_client_at_its_target),
		CASE(source_heeds_weights),
		CASE(source_takes_an_ipv6_network_for_a_client),
		CASE(what_failed_is_tried_last_for_a_while),
		CASE(a_full_target_is_not_taken),
		CASE(only_the_wanted_one_is_chosen),
		CASE(a_change_is_told_once),
	};
	return cmocka_run_group_tests_name("target", tests, NULL, NULL);
}
