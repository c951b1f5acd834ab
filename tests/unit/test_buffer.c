/*
 * buffer: what libevent does when it has no memory to cut an extent, and that it is seen.
 */
#include "buffer.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static bool is_short;

static void *
allocate(size_t bytes)
{
	return is_short ? NULL : malloc(bytes);
}

static void *
allocate_again(void *memory, size_t bytes)
{
	return is_short ? NULL : realloc(memory, bytes);
}

static void
move(bool without_memory, size_t bytes, size_t arriving, size_t staying)
{
	static const char text[1000] = "the first of many";
	struct evbuffer *from = evbuffer_new(), *to = evbuffer_new();

	evbuffer_add(from, text, sizeof(text));
	is_short = without_memory;
	assert_int_equal(buffer_move(from, to, bytes), arriving);
	is_short = false;
	assert_int_equal(evbuffer_get_length(to), arriving);
	assert_int_equal(evbuffer_get_length(from), staying);
	if (arriving)
		assert_memory_equal(evbuffer_pullup(to, -1), text, arriving);
	evbuffer_free(from);
	evbuffer_free(to);
}

static void
bytes_arrive(void **state)
{
	(void)state;
	move(false, 0, 0, 1000);
	move(false, 17, 17, 983);
	move(false, 1000, 1000, 0);
}

static void
whole_extents_need_no_memory(void **state)
{
	(void)state;
	move(true, 1000, 1000, 0);
}

static void
what_could_not_be_cut_is_missed(void **state)
{
	(void)state;
	move(true, 17, 0, 983);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_arrive),
		cmocka_unit_test(whole_extents_need_no_memory),
		cmocka_unit_test(what_could_not_be_cut_is_missed),
	};
	event_set_mem_functions(allocate, allocate_again, free);
	return cmocka_run_group_tests_name("buffer", tests, NULL, NULL);
}
