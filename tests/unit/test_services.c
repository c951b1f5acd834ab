#include "services/services.h"

#include <event2/buffer.h>
#include <event2/event.h>
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

#define PERIOD_BYTES (95 * 74)

/* That one needs a daemon; tests/e2e/test_admin.py. */
static const struct service *const without_admin[] = { &echo_service, &discard_service,
						       &chargen_service, NULL };

static int allocations_left = -1; /* before memory runs out; below zero: never */

static bool
may_allocate(void)
{
	if (allocations_left == 0)
		return false;
	if (allocations_left > 0)
		allocations_left--;
	return true;
}

static void *
allocate(size_t bytes)
{
	return may_allocate() ? malloc(bytes) : NULL;
}

static void *
reallocate(void *memory, size_t bytes)
{
	return may_allocate() ? realloc(memory, bytes) : NULL;
}

/* The end that a connection would own. */
struct client {
	struct endpoint endpoint;
	struct loop *loop;
	struct evbuffer *out, *in;
};

static struct loop loop;
static unsigned int seed;

static int
open_loop(void **state)
{
	(void)state;
	memset(&loop, 0, sizeof(loop));
	seed = 862;
	return loop_open(&loop, NULL);
}

/* The leak sanitizer sees to it that every service has freed itself. */
static int
close_loop(void **state)
{
	(void)state;
	assert_int_equal(loop.kept_bytes, 0);
	assert_null(loop.tasks.first);
	loop_close(&loop);
	return 0;
}

static void
settle(void)
{
	int turns = 0;
	do {
		event_base_loop(loop.base, EVLOOP_NONBLOCK | EVLOOP_ONCE);
		assert_true(++turns < 1000);
	} while (loop.tasks.first);
}

static void
on_ready(struct endpoint *endpoint)
{
	(void)endpoint;
}

static const struct service *
find(const char *name)
{
	for (const struct service *const *service = without_admin; *service; service++)
		if (strcmp((*service)->name, name) == 0)
			return *service;
	fail();
	return NULL;
}

static void
client_open(struct client *client, const char *name)
{
	static const struct facts facts;
	memset(client, 0, sizeof(*client));
	client->in = evbuffer_new();
	client->out = evbuffer_new();
	client->endpoint.on_ready = on_ready;
	assert_int_equal(find(name)->open(&client->endpoint, &loop, &facts, NULL), 0);
}

static void
client_close(struct client *client)
{
	if (client->endpoint.kind)
		client->endpoint.kind->close(&client->endpoint);
	evbuffer_free(client->in);
	evbuffer_free(client->out);
	settle();
}

static size_t
client_write(struct client *client)
{
	size_t moved;
	if (!evbuffer_get_length(client->out))
		return 0;
	enum endpoint_result result = client->endpoint.kind->write(&client->endpoint, client->out,
								   SIZE_MAX, &moved, NULL);
	assert_int_not_equal(result, ENDPOINT_BROKEN);
	return moved;
}

static enum endpoint_result
client_read(struct client *client, size_t most)
{
	size_t moved;
	return client->endpoint.kind->read(&client->endpoint, client->in, most, &moved, NULL);
}

static void
client_shutdown(struct client *client)
{
	client->endpoint.kind->shutdown(&client->endpoint);
}

static void
add_random(struct evbuffer *buffer, size_t bytes)
{
	char *text = malloc(bytes);
	assert_non_null(text);
	for (size_t i = 0; i < bytes; i++)
		text[i] = (char)rand_r(&seed);
	assert_int_equal(evbuffer_add(buffer, text, bytes), 0);
	free(text);
}

/* Copies what stands in `from` to the end of `to`. */
static void
add_copy(struct evbuffer *to, struct evbuffer *from)
{
	size_t bytes = evbuffer_get_length(from);
	assert_int_equal(evbuffer_add(to, evbuffer_pullup(from, -1), bytes), 0);
}

static void
assert_same(struct evbuffer *one, struct evbuffer *other)
{
	size_t bytes = evbuffer_get_length(one);
	assert_int_equal(evbuffer_get_length(other), bytes);
	assert_memory_equal(evbuffer_pullup(one, -1), evbuffer_pullup(other, -1), bytes);
}

static void
test_table(void **state)
{
	(void)state;
	assert_ptr_equal(find("echo"), &echo_service);
	assert_ptr_equal(find("discard"), &discard_service);
	assert_ptr_equal(find("chargen"), &chargen_service);
}

/* --- echo ----------------------------------------------------------------------------------------- */

static void
test_echo_of_random_sizes(void **state)
{
	(void)state;
	struct client client;
	struct evbuffer *sent = evbuffer_new();
	client_open(&client, "echo");

	for (int round = 0; round < 300; round++) {
		struct evbuffer *piece = evbuffer_new();
		add_random(piece, 1 + (size_t)rand_r(&seed) % (round % 10 ? 3000 : 100000));
		add_copy(sent, piece);
		evbuffer_add_buffer(client.out, piece);
		evbuffer_free(piece);
		client_write(&client);
		if (round % 3)
			settle();
		client_read(&client, 1 + (size_t)rand_r(&seed) % 50000);
		settle();
	}
	while (evbuffer_get_length(client.out)) {
		client_write(&client);
		settle();
		client_read(&client, PAIR_BYTES);
		settle();
	}
	client_shutdown(&client);
	settle();
	while (client_read(&client, 70000) == ENDPOINT_MOVED)
		settle();
	assert_same(sent, client.in);
	assert_int_equal(client_read(&client, 1), ENDPOINT_END);
	evbuffer_free(sent);
	client_close(&client);
}

static void
test_echo_of_nothing(void **state)
{
	(void)state;
	struct client client;
	client_open(&client, "echo");

	settle();
	assert_int_equal(client_read(&client, 1), ENDPOINT_WAIT);
	client_shutdown(&client);
	settle();
	assert_int_equal(client_read(&client, 1), ENDPOINT_END);
	client_close(&client);
}

static void
test_echo_to_one_who_does_not_read(void **state)
{
	(void)state;
	struct client client;
	struct evbuffer *sent = evbuffer_new();
	size_t taken = 0;
	client_open(&client, "echo");

	for (int round = 0; round < 100; round++) {
		if (!evbuffer_get_length(client.out)) {
			add_random(client.out, 60000);
			add_copy(sent, client.out);
		}
		taken += client_write(&client);
		settle();
	}
	/* Both directions of the pair, and what the service holds. */
	assert_true(taken <= 3 * PAIR_BYTES);
	assert_true(taken > 2 * PAIR_BYTES);
	while (evbuffer_get_length(client.in) < evbuffer_get_length(sent)) {
		assert_int_equal(client_read(&client, 50000), ENDPOINT_MOVED);
		settle();
		if (client.endpoint.writable)
			client_write(&client);
		settle();
	}
	client_shutdown(&client);
	settle();
	assert_int_equal(client_read(&client, 1), ENDPOINT_END);
	assert_same(sent, client.in);
	evbuffer_free(sent);
	client_close(&client);
}

/* --- discard -------------------------------------------------------------------------------------- */

static void
test_discard(void **state)
{
	(void)state;
	struct client client;
	client_open(&client, "discard");

	for (int round = 0; round < 40; round++) {
		add_random(client.out, 131072);
		assert_int_equal(client_write(&client), 131072);
		settle();
		assert_int_equal(loop.kept_bytes, 2 * PAIR_END_BYTES);
	}
	assert_int_equal(client_read(&client, 1), ENDPOINT_WAIT);
	add_random(client.out, 1000);
	client_write(&client);
	client_shutdown(&client);
	settle();
	assert_int_equal(client_read(&client, 1), ENDPOINT_END);
	client_close(&client);
}

/* --- chargen -------------------------------------------------------------------------------------- */

/* Compares with the pattern and drops it. */
static void
take_pattern(struct client *client, size_t *place)
{
	size_t bytes = evbuffer_get_length(client->in);
	const char *text = (const char *)evbuffer_pullup(client->in, -1);
	for (size_t i = 0; i < bytes; i++) {
		size_t line = (*place + i) / 74, column = (*place + i) % 74;
		char right = column == 72   ? '\r'
			     : column == 73 ? '\n'
					    : (char)(' ' + (line + column) % 95);
		assert_int_equal(text[i], right);
	}
	evbuffer_drain(client->in, bytes);
	*place += bytes;
}

static void
test_chargen_pattern(void **state)
{
	(void)state;
	static const char first[] = " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				    "[\\]^_`abcdefg\r\n!\"#$%&'()";
	struct client client;
	size_t place = 0;
	client_open(&client, "chargen");

	settle();
	assert_int_equal(client_read(&client, sizeof(first) - 1), ENDPOINT_MOVED);
	assert_memory_equal(evbuffer_pullup(client.in, -1), first, sizeof(first) - 1);
	while (place < 100 * (size_t)PERIOD_BYTES * 9) {
		take_pattern(&client, &place);
		assert_int_equal(client_read(&client, 1 + (size_t)rand_r(&seed) % PAIR_BYTES),
				 ENDPOINT_MOVED);
		if (rand_r(&seed) % 2) /* it ignores this */
			add_random(client.out, 1000);
		if (client.endpoint.writable)
			client_write(&client);
		settle();
	}
	client_shutdown(&client);
	settle();
	enum endpoint_result result;
	while ((result = client_read(&client, PAIR_BYTES)) == ENDPOINT_MOVED)
		take_pattern(&client, &place);
	assert_int_equal(result, ENDPOINT_END);
	client_close(&client);
}

static void
test_chargen_to_one_who_does_not_read(void **state)
{
	(void)state;
	struct client client;
	client_open(&client, "chargen");

	settle();
	size_t held = loop.kept_bytes;
	assert_true(held > PAIR_BYTES / 2 && held <= PAIR_BYTES);
	for (int turn = 0; turn < 100; turn++)
		settle();
	assert_int_equal(loop.kept_bytes, held);
	client_close(&client);
}

static void
test_chargen_does_not_copy(void **state)
{
	(void)state;
	struct client one, other;
	struct evbuffer_iovec extents[2];
	client_open(&one, "chargen");
	client_open(&other, "chargen");

	settle();
	client_read(&one, SIZE_MAX);
	client_read(&other, SIZE_MAX);
	evbuffer_peek(one.in, 1, NULL, &extents[0], 1);
	evbuffer_peek(other.in, 1, NULL, &extents[1], 1);
	assert_ptr_equal(extents[0].iov_base, extents[1].iov_base);
	client_close(&one);
	client_close(&other);
}

/* --- all of them ---------------------------------------------------------------------------------- */

static void
test_client_goes_away(void **state)
{
	(void)state;
	for (const struct service *const *service = without_admin; *service; service++) {
		for (int way = 0; way < 32; way++) {
			struct client client;
			client_open(&client, (*service)->name);
			if (way & 1)
				settle();
			add_random(client.out, way & 2 ? PAIR_BYTES : 100);
			client_write(&client);
			if (way & 4)
				settle();
			if (way & 8)
				client_shutdown(&client);
			if (way & 16)
				client.endpoint.kind->abort(&client.endpoint);
			client_close(&client);
			assert_true(loop.kept_bytes <=
				    PAIR_END_BYTES); /* the service ends a turn later */
		}
	}
}

static void
test_loop_closed_with_them_open(void **state)
{
	(void)state;
	/* A daemon that stops at once closes its own ends; the services then need one more turn. */
	struct client clients[3];
	int count = 0;
	for (const struct service *const *service = without_admin; *service; service++)
		client_open(&clients[count++], (*service)->name);
	while (count)
		client_close(&clients[--count]);
}

static void
test_no_memory(void **state)
{
	(void)state;
	static const struct facts facts;
	/* No further than to a pair's first piece: libevent does not survive the loss of a later one. */
	for (const struct service *const *service = without_admin; *service; service++) {
		int pieces = *service == &chargen_service ? 3 : 2;
		for (int left = 0; left < pieces; left++) {
			struct endpoint end = { .kind = NULL };
			struct failure why = { .kind = FAILURE_NONE };
			allocations_left = left;
			assert_int_equal((*service)->open(&end, &loop, &facts, &why), -1);
			allocations_left = -1;
			assert_int_equal(why.kind, FAILURE_MEMORY);
			assert_null(end.kind);
		}
	}
}

static void
test_no_memory_for_chargen_is_no_end(void **state)
{
	(void)state;
	struct client client;
	client_open(&client, "chargen");

	settle();
	client_read(&client, PAIR_BYTES);
	allocations_left = 0;
	settle();
	allocations_left = -1;
	enum endpoint_result result;
	while ((result = client_read(&client, PAIR_BYTES)) == ENDPOINT_MOVED)
		;
	assert_int_equal(result, ENDPOINT_BROKEN);
	client_close(&client);
}

int
main(void)
{
	event_set_mem_functions(allocate, reallocate, free);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table),
		cmocka_unit_test_setup_teardown(test_echo_of_random_sizes, open_loop, close_loop),
		cmocka_unit_test_setup_teardown(test_echo_of_nothing, open_loop, close_loop),
		cmocka_unit_test_setup_teardown(test_echo_to_one_who_does_not_read, open_loop,
						close_loop),
		cmocka_unit_test_setup_teardown(test_discard, open_loop, close_loop),
		cmocka_unit_test_setup_teardown(test_chargen_pattern, open_loop, close_loop),
		cmocka_unit_test_setup_teardown(test_chargen_to_one_who_does_not_read, open_loop,
						close_loop),
		cmocka_unit_test_setup_teardown(test_chargen_does_not_copy, open_loop, close_loop),
		cmocka_unit_test_setup_teardown(test_client_goes_away, open_loop, close_loop),
		cmocka_unit_test_setup_teardown(test_loop_closed_with_them_open, open_loop,
						close_loop),
		cmocka_unit_test_setup_teardown(test_no_memory, open_loop, close_loop),
		cmocka_unit_test_setup_teardown(test_no_memory_for_chargen_is_no_end, open_loop,
						close_loop),
	};
	return cmocka_run_group_tests_name("services", tests, NULL, NULL);
}
