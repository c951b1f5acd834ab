#include "clock.h"
#include "loop.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static struct loop loop;
static struct failure why;

static int
set_up(void **state)
{
	(void)state;
	memset(&loop, 0, sizeof(loop));
	return loop_open(&loop, &why);
}

static int
tear_down(void **state)
{
	(void)state;
	assert_int_equal(loop.kept_bytes, 0);
	loop_close(&loop);
	return 0;
}

/* --- tasks -------------------------------------------------------------------------------------- */

static char order[32];
static struct task a, b, c;

static void
note(char name)
{
	size_t length = strlen(order);
	assert_true(length < sizeof(order) - 1);
	order[length] = name;
}

static void
run_a(struct task *task)
{
	note('a');
	loop_run_later(&loop, task); /* again, in the next turn */
}

static void
run_b(struct task *task)
{
	(void)task;
	note('b');
	loop_forget(&loop, &c);
}

static void
run_c(struct task *task)
{
	(void)task;
	note('c');
}

static void
turn(void)
{
	/* The timer of zero is due once libevent's clock has been read again. */
	event_base_loop(loop.base, EVLOOP_ONCE);
	note('|');
}

static void
test_tasks_run_in_order_and_once_a_turn(void **state)
{
	(void)state;
	memset(order, 0, sizeof(order));
	a = (struct task){ .run = run_a };
	b = (struct task){ .run = run_b };
	c = (struct task){ .run = run_c };
	loop_run_later(&loop, &a);
	loop_run_later(&loop, &c);
	loop_run_later(&loop, &c);
	turn();
	turn();
	loop_run_later(&loop, &b);
	loop_run_later(&loop, &c); /* b forgets it: the rest of the turn goes on, and ends */
	turn();
	loop_forget(&loop, &a);
	loop_forget(&loop, &a);
	assert_string_equal(order, "ac|a|ab|");
}

static bool is_short_of_memory;

static void *
reallocate(void *memory, size_t bytes)
{
	return is_short_of_memory ? NULL : realloc(memory, bytes);
}

static void
ignore(evutil_socket_t fd, short what, void *context)
{
	(void)fd;
	(void)what;
	(void)context;
}

/* The timer of the turn takes memory if many others are set. */
static void
test_tasks_run_though_memory_was_short(void **state)
{
	struct event *timers[64];
	int count = 0;
	(void)state;

	memset(order, 0, sizeof(order));
	c = (struct task){ .run = run_c };
	is_short_of_memory = true;
	while (count < 64) {
		timers[count] = evtimer_new(loop.base, ignore, NULL);
		assert_non_null(timers[count]);
		if (event_add(timers[count++], &(struct timeval){ 3600, 0 }) < 0)
			break;
	}
	assert_true(count < 64);
	loop_run_later(&loop, &c);
	is_short_of_memory = false;
	loop_look(&loop);
	event_base_loop(loop.base, EVLOOP_NONBLOCK);
	assert_string_equal(order, "c");
	while (count)
		event_free(timers[--count]);
}

static void
run_b_again(struct task *task)
{
	note('b');
	loop_run_heavy(&loop, task);
}

static void
test_heavy_tasks_run_once_a_turn(void **state)
{
	(void)state;
	memset(order, 0, sizeof(order));
	a = (struct task){ .run = run_a };
	b = (struct task){ .run = run_b_again };
	c = (struct task){ .run = run_c };
	loop_run_heavy(&loop, &b);
	loop_run_heavy(&loop, &c);
	loop_run_later(&loop, &c); /* it has its place */
	loop_run_later(&loop, &a);
	turn();
	turn();
	loop_run_heavy(&loop, &c);
	loop_forget(&loop, &b);
	turn();
	loop_run_heavy(&loop, &b);
	loop_run_heavy(&loop, &c);
	turn();
	loop_forget(&loop, &a);
	loop_forget(&loop, &b);
	assert_string_equal(order, "abc|ab|ac|abc|");
	assert_null(loop.heavy.first);
}

static void
run_long(struct task *task)
{
	uint64_t began_ns = clock_now_ns();
	(void)task;
	note('l');
	while (clock_now_ns() - began_ns < 3 * NS_PER_MS)
		;
}

/* How many of three tasks of 3 ms run in a turn whose rest took so long. */
static size_t
run_beside(uint64_t rest_ns)
{
	struct task tasks[3];
	memset(order, 0, sizeof(order));
	for (int i = 0; i < 3; i++) {
		tasks[i] = (struct task){ .run = run_long };
		loop_run_heavy(&loop, &tasks[i]);
	}
	loop_look(&loop);
	loop.looked_ns -= rest_ns;
	turn();
	for (int i = 0; i < 3; i++)
		loop_forget(&loop, &tasks[i]);
	return strcspn(order, "|");
}

/* The machine may take the processor away, which looks like a longer rest: once in so many times it does not. */
static void
expect_beside(uint64_t rest_ns, size_t count)
{
	for (int i = 0; i < 100; i++)
		if (run_beside(rest_ns) == count)
			return;
	fail_msg("never %zu", count);
}

static void
test_heavy_tasks_get_as_much_time_as_the_rest(void **state)
{
	(void)state;
	expect_beside(0, 1);
	expect_beside(5 * NS_PER_MS, 2);
	assert_int_equal(run_beside(NS_PER_S), 3);
}

/* --- memory ------------------------------------------------------------------------------------- */

static void
test_long_rests_are_referenced_and_short_ones_copied(void **state)
{
	(void)state;
	struct evbuffer *buffer = evbuffer_new();
	char *first = loop_scratch(&loop);

	memset(first, 'x', BLOCK_BYTES);
	assert_int_equal(loop_keep(&loop, buffer, first + 100, BLOCK_BYTES - 100, &why), 0);
	struct evbuffer_iovec extent;
	assert_int_equal(evbuffer_peek(buffer, 1, NULL, &extent, 1), 1);
	assert_ptr_equal(extent.iov_base, first + 100);
	assert_int_equal(loop.kept_bytes, BLOCK_BYTES);

	char *second = loop_scratch(&loop);
	assert_ptr_not_equal(second, first); /* those bytes are still wanted */
	memcpy(second, "rest", 4);
	assert_int_equal(loop_keep(&loop, buffer, second, 4, &why), 0);
	assert_ptr_equal(loop_scratch(&loop), second);
	assert_true(loop.kept_bytes < BLOCK_BYTES + 2000); /* with its head */
	memset(second, 'y', BLOCK_BYTES);
	assert_int_equal(evbuffer_drain(buffer, BLOCK_BYTES - 100), 0);
	assert_memory_equal(evbuffer_pullup(buffer, 4), "rest", 4);
	evbuffer_free(buffer);
	assert_int_equal(loop.kept_bytes, 0);
}

static void
test_reads_shrink_as_memory_is_used(void **state)
{
	(void)state;
	assert_int_equal(loop_read_most(&loop), BLOCK_BYTES);
	loop.kept_most = 1000;
	loop.kept_bytes = 749;
	assert_int_equal(loop_read_most(&loop), BLOCK_BYTES);
	loop.kept_bytes = 750;
	assert_true(loop_read_most(&loop) > 0 && loop_read_most(&loop) < BLOCK_BYTES / 8);
	loop.kept_bytes = 1000;
	assert_int_equal(loop_read_most(&loop), 0);
	loop.kept_bytes = 0;
}

static void
test_a_quiet_minute_frees_what_is_spare(void **state)
{
	(void)state;
	struct evbuffer *buffer = evbuffer_new();
	uint64_t now_ns = UINT64_C(4294967290) * NS_PER_S;

	loop.pipes_most = 1;
	for (int i = 0; i < 4; i++) {
		char *scratch = loop_scratch(&loop);
		assert_int_equal(loop_keep(&loop, buffer, scratch, BLOCK_BYTES, &why), 0);
	}
	loop_give_pipe(&loop, loop_take_pipe(&loop));
	evbuffer_free(buffer);
	assert_true(loop.blocks_free >= 3);
	loop_trim(&loop, now_ns);
	loop_trim(&loop, now_ns + 59 * NS_PER_S);
	assert_true(loop.blocks_free >= 3);
	loop_trim(&loop, now_ns + 60 * NS_PER_S);
	assert_int_equal(loop.blocks_free, 0);
	assert_int_equal(loop.pipes_made, 0);
}

/* --- pipes -------------------------------------------------------------------------------------- */

static void
test_pipes_are_few_and_come_back_empty(void **state)
{
	(void)state;
	loop.pipes_most = 2;
	struct pipe *first = loop_take_pipe(&loop), *second = loop_take_pipe(&loop);
	assert_non_null(first);
	assert_non_null(second);
	assert_null(loop_take_pipe(&loop));
	first->held_bytes = 1; /* of a connection that was reset */
	loop_give_pipe(&loop, first);
	assert_int_equal(loop.pipes_made, 1);
	loop_give_pipe(&loop, second);
	assert_ptr_equal(loop_take_pipe(&loop), second);
	loop_give_pipe(&loop, second);
}

/* --- who had to wait for it ------------------------------------------------------------------------ */

/* The turn before looked at 1000 and worked from 1010 on, this one looked at 2000. */
static void
look_at_2000(uint64_t woke_ns)
{
	loop.woke_before_ns = 1010;
	loop.looked_ns = 2000;
	loop.woke_ns = woke_ns;
}

static void
nobody_waits_for_a_loop_that_says_nothing_of_its_turns(void **state)
{
	(void)state;
	assert_int_equal(loop_busy_ns(&loop, 100, 5000), 0);
}

static void
who_is_not_first_waits_for_those_in_front(void **state)
{
	(void)state;
	look_at_2000(0);
	loop.woke_before_ns = loop.looked_ns;
	assert_int_equal(loop_busy_ns(&loop, 2000, 2010), 0);
	assert_int_equal(loop_busy_ns(&loop, 2000, 2500), 490);
	assert_int_equal(loop_busy_ns(&loop, 2100, 2500), 400);
}

static void
what_came_while_it_worked_waited_for_it(void **state)
{
	(void)state;
	look_at_2000(2010);
	assert_int_equal(loop_busy_ns(&loop, 1500, 2510), 500 + 500);
	assert_int_equal(loop_busy_ns(&loop, 5, 2510), 990 + 500); /* not longer ago than a turn */
}

static void
its_sleep_is_none_of_its_work(void **state)
{
	uint64_t woke_ns = 2000 + NS_PER_S;
	(void)state;
	look_at_2000(woke_ns);
	assert_int_equal(loop_busy_ns(&loop, 2000, woke_ns), 0);
	assert_int_equal(loop_busy_ns(&loop, 1990, woke_ns + 70), 10 + 70);
}

static void
a_look_begins_a_turn(void **state)
{
	(void)state;
	loop_look(&loop);
	uint64_t first_ns = loop.looked_ns, woke_ns = first_ns + 10;
	assert_true(first_ns > 0);
	assert_int_equal(loop_busy_ns(&loop, 0, woke_ns), 0);
	loop_look(&loop);
	assert_int_equal(loop.woke_before_ns, woke_ns);
	assert_int_equal(loop.woke_ns, 0);
	loop_look(&loop); /* nothing was done: it may all have been sleep */
	assert_int_equal(loop.woke_before_ns, loop.looked_ns);
}

/* How long a look took, of a loop in which so many turns had these runs. */
static uint64_t
look_after(int turns, enum loop_run run, enum loop_run other)
{
	for (int i = 0; i < turns; i++) {
		if (i)
			loop_look(&loop);
		loop_note_run(&loop, run);
		loop_note_run(&loop, other);
	}
	loop_look(&loop);
	return clock_now_ns() - loop.looked_ns;
}

static void
pieces_of_bulk_are_let_come_together(void **state)
{
	(void)state;
	look_after(15, LOOP_RUN_PIECE, LOOP_RUN_BULK);
	assert_false(loop.has_rested);
	assert_true(look_after(1, LOOP_RUN_PIECE, LOOP_RUN_BULK) >= LOOP_REST_NS);
	assert_true(loop.has_rested);
	look_after(1, LOOP_RUN_BULK, LOOP_RUN_BULK); /* enough at a time */
	assert_false(loop.has_rested);
	look_after(1, LOOP_RUN_PIECE, LOOP_RUN_PIECE);
	assert_true(loop.has_rested);
	loop_look(&loop); /* nothing came */
	assert_false(loop.has_rested);
}

static void
a_rest_is_long_where_nobody_speaks(void **state)
{
	uint64_t least_ns = UINT64_MAX;
	(void)state;
	/* What the kernel adds may be more than either. */
	for (int i = 0; i < 200; i++) {
		look_after(1, LOOP_RUN_MESSAGE, LOOP_RUN_PIECE);
		uint64_t took_ns = look_after(16, LOOP_RUN_PIECE, LOOP_RUN_PIECE);
		least_ns = took_ns < least_ns ? took_ns : least_ns;
	}
	assert_in_range(least_ns, LOOP_REST_NS, LOOP_LONG_REST_NS - 1);
	loop.message_ns -= LOOP_SILENCE_NS;
	assert_true(look_after(1, LOOP_RUN_PIECE, LOOP_RUN_PIECE) >= LOOP_LONG_REST_NS);
}

static void
nobody_else_is_kept_waiting_for_bulk(void **state)
{
	(void)state;
	look_after(20, LOOP_RUN_PIECE, LOOP_RUN_PIECE);
	look_after(1, LOOP_RUN_PIECE, LOOP_RUN_MESSAGE);
	assert_false(loop.has_rested);
	look_after(15, LOOP_RUN_PIECE, LOOP_RUN_PIECE);
	assert_false(loop.has_rested);
	c = (struct task){ .run = run_c };
	loop_run_later(&loop, &c);
	look_after(1, LOOP_RUN_PIECE, LOOP_RUN_PIECE);
	assert_false(loop.has_rested);
	loop_forget(&loop, &c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_tasks_run_in_order_and_once_a_turn),
		TEST(test_tasks_run_though_memory_was_short),
		TEST(test_heavy_tasks_run_once_a_turn),
		TEST(test_heavy_tasks_get_as_much_time_as_the_rest),
		TEST(test_long_rests_are_referenced_and_short_ones_copied),
		TEST(test_reads_shrink_as_memory_is_used),
		TEST(test_a_quiet_minute_frees_what_is_spare),
		TEST(test_pipes_are_few_and_come_back_empty),
		TEST(nobody_waits_for_a_loop_that_says_nothing_of_its_turns),
		TEST(who_is_not_first_waits_for_those_in_front),
		TEST(what_came_while_it_worked_waited_for_it),
		TEST(its_sleep_is_none_of_its_work),
		TEST(a_look_begins_a_turn),
		TEST(pieces_of_bulk_are_let_come_together),
		TEST(a_rest_is_long_where_nobody_speaks),
		TEST(nobody_else_is_kept_waiting_for_bulk),
	};
	event_set_mem_functions(malloc, reallocate, free);
	return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}
