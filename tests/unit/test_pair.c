#include "pair.h"

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

/* One end with an owner that counts its calls and does what `act` says. */
struct end {
	struct endpoint endpoint;
	struct rig *rig;
	int calls;
	void (*act)(struct end *end);
};

struct rig {
	struct loop loop;
	struct end a, b;
	bool in_call; /* of an owner into an endpoint: on_ready must not come now */
	size_t sent, received, peak;
	bool over;
};

static bool no_memory;

static void *
allocate(size_t bytes)
{
	return no_memory ? NULL : malloc(bytes);
}

static void *
reallocate(void *memory, size_t bytes)
{
	return no_memory ? NULL : realloc(memory, bytes);
}

static void
on_ready(struct endpoint *endpoint)
{
	struct end *end = endpoint->owner;
	assert_false(end->rig->in_call);
	end->calls++;
	if (end->act)
		end->act(end);
}

static void
adopt(struct rig *rig, struct end *end)
{
	end->rig = rig;
	end->endpoint.owner = end;
	end->endpoint.on_ready = on_ready;
}

static struct rig *
rig_open(void)
{
	struct failure why;
	struct rig *rig = calloc(1, sizeof(*rig));
	assert_non_null(rig);
	assert_int_equal(loop_open(&rig->loop, &why), 0);
	adopt(rig, &rig->a);
	adopt(rig, &rig->b);
	assert_int_equal(pair_open(&rig->a.endpoint, &rig->b.endpoint, &rig->loop, &why), 0);
	return rig;
}

/* Turns the loop until nothing is left to do; returns how many turns that took. */
static int
settle(struct rig *rig)
{
	int turns = 0;
	do {
		event_base_loop(rig->loop.base, EVLOOP_NONBLOCK | EVLOOP_ONCE);
		assert_true(++turns < 10000);
	} while (rig->loop.tasks.first);
	return turns;
}

static void
end_close(struct end *end)
{
	end->rig->in_call = true;
	if (end->endpoint.kind)
		end->endpoint.kind->close(&end->endpoint);
	end->rig->in_call = false;
}

static void
end_abort(struct end *end)
{
	end->rig->in_call = true;
	if (end->endpoint.kind)
		end->endpoint.kind->abort(&end->endpoint);
	end->rig->in_call = false;
}

/* What the loop counts, but for the ends themselves. */
static size_t
kept_for_bytes(const struct rig *rig)
{
	size_t ends = rig->a.endpoint.kind ? 1 : 0;
	ends += rig->b.endpoint.kind ? 1 : 0;
	return rig->loop.kept_bytes - ends * PAIR_END_BYTES;
}

static void
rig_close(struct rig *rig)
{
	end_close(&rig->a);
	end_close(&rig->b);
	settle(rig);
	assert_int_equal(kept_for_bytes(rig), 0);
	loop_close(&rig->loop);
	free(rig);
}

static void
want(struct end *end, bool readable, bool writable)
{
	struct endpoint *endpoint = &end->endpoint;
	end->rig->in_call = true;
	endpoint->want_readable = readable;
	endpoint->want_writable = writable;
	assert_int_equal(endpoint->kind->watch(endpoint, NULL), 0);
	end->rig->in_call = false;
}

static enum endpoint_result
end_write(struct end *end, struct evbuffer *src, size_t most, size_t *moved, struct failure *why)
{
	struct endpoint *endpoint = &end->endpoint;
	end->rig->in_call = true;
	enum endpoint_result result = endpoint->kind->write(endpoint, src, most, moved, why);
	end->rig->in_call = false;
	return result;
}

static enum endpoint_result
end_read(struct end *end, struct evbuffer *dst, size_t most, size_t *moved, struct failure *why)
{
	struct endpoint *endpoint = &end->endpoint;
	end->rig->in_call = true;
	enum endpoint_result result = endpoint->kind->read(endpoint, dst, most, moved, why);
	end->rig->in_call = false;
	return result;
}

static void
end_shutdown(struct end *end)
{
	end->rig->in_call = true;
	end->endpoint.kind->shutdown(&end->endpoint);
	end->rig->in_call = false;
}

static char
byte_at(size_t place)
{
	return (char)(place * 31 + place / 251);
}

/* Appends `bytes` bytes of the pattern, beginning at `place`. */
static void
add_pattern(struct evbuffer *buffer, size_t place, size_t bytes)
{
	char *text = malloc(bytes);
	assert_non_null(text);
	for (size_t i = 0; i < bytes; i++)
		text[i] = byte_at(place + i);
	assert_int_equal(evbuffer_add(buffer, text, bytes), 0);
	free(text);
}

/* Takes all of it and compares. */
static void
take_pattern(struct evbuffer *buffer, size_t place)
{
	size_t bytes = evbuffer_get_length(buffer);
	const char *text = (const char *)evbuffer_pullup(buffer, -1);
	for (size_t i = 0; i < bytes; i++)
		assert_true(text[i] == byte_at(place + i));
	evbuffer_drain(buffer, bytes);
}

static void
put(struct end *end, const char *text)
{
	struct evbuffer *src = evbuffer_new();
	size_t moved;
	evbuffer_add(src, text, strlen(text));
	assert_int_equal(end_write(end, src, SIZE_MAX, &moved, NULL), ENDPOINT_MOVED);
	assert_int_equal(moved, strlen(text));
	assert_int_equal(evbuffer_get_length(src), 0);
	evbuffer_free(src);
}

/* Reads once; the result is `result`, and the bytes are `text`. */
static void
expect(struct end *end, enum endpoint_result result, const char *text)
{
	struct evbuffer *dst = evbuffer_new();
	struct failure why = { .kind = FAILURE_NONE };
	size_t moved;
	assert_int_equal(end_read(end, dst, SIZE_MAX, &moved, &why), result);
	assert_int_equal(moved, strlen(text));
	assert_memory_equal(evbuffer_pullup(dst, -1), text, strlen(text));
	assert_int_equal(why.kind, result == ENDPOINT_BROKEN ? FAILURE_RESET : FAILURE_NONE);
	if (result == ENDPOINT_BROKEN)
		assert_true(strlen(why.text) > 0);
	evbuffer_free(dst);
}

static void
expect_unwritable(struct end *end)
{
	struct evbuffer *src = evbuffer_new();
	struct failure why = { .kind = FAILURE_NONE };
	size_t moved;
	evbuffer_add(src, "x", 1);
	assert_int_equal(end_write(end, src, SIZE_MAX, &moved, &why), ENDPOINT_BROKEN);
	assert_int_equal(moved, 0);
	assert_int_equal(why.kind, FAILURE_RESET);
	assert_int_equal(evbuffer_get_length(src), 1);
	evbuffer_free(src);
}

/* Writes `bytes` bytes of the pattern in one extent; they must fit. */
static void
fill(struct end *end, size_t bytes)
{
	struct evbuffer *src = evbuffer_new();
	size_t moved;
	add_pattern(src, 0, bytes);
	assert_int_equal(end_write(end, src, SIZE_MAX, &moved, NULL), ENDPOINT_MOVED);
	assert_int_equal(moved, bytes);
	evbuffer_free(src);
}

/* --- bytes ---------------------------------------------------------------------------------------- */

static void
test_bytes_go_both_ways(void **state)
{
	(void)state;
	struct rig *rig = rig_open();

	assert_false(rig->a.endpoint.readable);
	assert_true(rig->a.endpoint.writable);
	expect(&rig->b, ENDPOINT_WAIT, "");
	put(&rig->a, "up");
	put(&rig->b, "down");
	assert_true(rig->b.endpoint.readable);
	assert_int_equal(kept_for_bytes(rig), 6);
	assert_int_equal(rig->a.endpoint.kind->unsent(&rig->a.endpoint), 2);
	expect(&rig->b, ENDPOINT_MOVED, "up");
	assert_int_equal(rig->a.endpoint.kind->unsent(&rig->a.endpoint), 0);
	assert_false(rig->b.endpoint.readable);
	expect(&rig->a, ENDPOINT_MOVED, "down");
	expect(&rig->a, ENDPOINT_WAIT, "");
	rig_close(rig);
}

static void
test_bytes_are_not_copied(void **state)
{
	(void)state;
	static const char text[100000];
	struct rig *rig = rig_open();
	struct evbuffer *buffer = evbuffer_new();
	struct evbuffer_iovec extents[2];
	size_t moved;

	evbuffer_add_reference(buffer, text, 60000, NULL, NULL);
	evbuffer_add_reference(buffer, text + 60000, 40000, NULL, NULL);
	assert_int_equal(end_write(&rig->a, buffer, SIZE_MAX, &moved, NULL), ENDPOINT_MOVED);
	assert_int_equal(evbuffer_get_length(buffer), 0);
	assert_int_equal(end_read(&rig->b, buffer, PAIR_BYTES, &moved, NULL), ENDPOINT_MOVED);
	assert_int_equal(moved, sizeof(text));
	assert_int_equal(evbuffer_peek(buffer, -1, NULL, extents, 2), 2);
	assert_ptr_equal(extents[0].iov_base, text);
	assert_ptr_equal(extents[1].iov_base, text + 60000);
	evbuffer_free(buffer);
	rig_close(rig);
}

static void
test_cut_at_most(void **state)
{
	(void)state;
	struct rig *rig = rig_open();
	struct evbuffer *src = evbuffer_new(), *dst = evbuffer_new();
	size_t moved;

	for (size_t place = 0; place < 3000; place += 1000)
		add_pattern(src, place, 1000);
	for (size_t place = 0; place < 3000; place += moved) {
		assert_int_equal(end_write(&rig->a, src, 700, &moved, NULL), ENDPOINT_MOVED);
		assert_true(moved > 0 && moved <= 700);
	}
	assert_int_equal(kept_for_bytes(rig), 3000);
	for (size_t place = 0; place < 3000; place += moved) {
		assert_int_equal(end_read(&rig->b, dst, 123, &moved, NULL), ENDPOINT_MOVED);
		assert_true(moved > 0 && moved <= 123);
	}
	assert_int_equal(evbuffer_get_length(dst), 3000);
	take_pattern(dst, 0);
	evbuffer_free(src);
	evbuffer_free(dst);
	rig_close(rig);
}

static void
test_room(void **state)
{
	(void)state;
	struct rig *rig = rig_open();
	struct evbuffer *src = evbuffer_new(), *dst = evbuffer_new();
	size_t moved;

	fill(&rig->a, PAIR_BYTES - 100);
	add_pattern(src, 0, 300);
	want(&rig->a, false, true);
	settle(rig);
	assert_int_equal(rig->a.calls, 1); /* it was writable already */

	/* What does not fit waits, and is not told of room that is too little. */
	assert_int_equal(end_write(&rig->a, src, SIZE_MAX, &moved, NULL), ENDPOINT_WAIT);
	assert_int_equal(moved, 0);
	assert_false(rig->a.endpoint.writable);
	assert_int_equal(end_read(&rig->b, dst, 199, &moved, NULL), ENDPOINT_MOVED);
	settle(rig);
	assert_int_equal(rig->a.calls, 1);
	assert_int_equal(end_read(&rig->b, dst, 1, &moved, NULL), ENDPOINT_MOVED);
	assert_true(rig->a.endpoint.writable);
	settle(rig);
	assert_int_equal(rig->a.calls, 2);
	assert_int_equal(end_write(&rig->a, src, SIZE_MAX, &moved, NULL), ENDPOINT_MOVED);
	assert_int_equal(moved, 300);
	assert_int_equal(rig->a.endpoint.kind->unsent(&rig->a.endpoint), PAIR_BYTES);
	assert_false(rig->a.endpoint.writable);
	evbuffer_free(src);
	evbuffer_free(dst);
	rig_close(rig);
}

/* --- ten MiB to a slow reader -------------------------------------------------------------------- */

#define LONG_BYTES ((size_t)10 * 1024 * 1024)
#define SIP_BYTES  9973

static struct evbuffer *store; /* what is still to be written */

static void
write_on(struct end *end)
{
	size_t moved;
	while (end->endpoint.writable && evbuffer_get_length(store)) {
		end_write(end, store, SIZE_MAX, &moved, NULL);
		end->rig->sent += moved;
		if (end->endpoint.kind->unsent(&end->endpoint) > end->rig->peak)
			end->rig->peak = end->endpoint.kind->unsent(&end->endpoint);
		assert_int_equal(kept_for_bytes(end->rig), end->rig->sent - end->rig->received);
	}
	if (!evbuffer_get_length(store))
		end_shutdown(end);
	want(end, false, evbuffer_get_length(store) > 0);
}

static void
sip(struct end *end)
{
	struct evbuffer *dst = evbuffer_new();
	size_t moved;
	enum endpoint_result result = end_read(end, dst, SIP_BYTES, &moved, NULL);
	take_pattern(dst, end->rig->received);
	end->rig->received += moved;
	evbuffer_free(dst);
	if (result == ENDPOINT_END) {
		assert_int_equal(end->rig->received, LONG_BYTES);
		end->rig->over = true;
	}
	want(end, !end->rig->over, false);
}

/* At the cap of the memory a pair takes one piece at a time, so a blocked reader piles nothing up. */
static void
test_memory_is_short(void **state)
{
	(void)state;
	struct rig *rig = rig_open();
	struct evbuffer *src = evbuffer_new(), *dst = evbuffer_new();
	size_t moved;

	rig->loop.kept_most = 1000;
	add_pattern(src, 0, 3000);
	want(&rig->a, false, true);
	settle(rig);
	assert_int_equal(end_write(&rig->a, src, 1000, &moved, NULL), ENDPOINT_MOVED);
	assert_int_equal(end_write(&rig->a, src, 1, &moved, NULL), ENDPOINT_WAIT);
	assert_false(rig->a.endpoint.writable);
	int calls = rig->a.calls;

	/* Room alone is not enough; the writer is told when all was read, even of a cap still reached. */
	rig->loop.kept_bytes += 5000;
	assert_int_equal(end_read(&rig->b, dst, 999, &moved, NULL), ENDPOINT_MOVED);
	settle(rig);
	assert_int_equal(rig->a.calls, calls);
	assert_int_equal(end_read(&rig->b, dst, 999, &moved, NULL), ENDPOINT_MOVED);
	settle(rig);
	assert_int_equal(rig->a.calls, calls + 1);
	assert_int_equal(end_write(&rig->a, src, SIZE_MAX, &moved, NULL), ENDPOINT_MOVED);
	assert_int_equal(moved, 2000);
	rig->loop.kept_bytes -= 5000;
	evbuffer_free(src);
	evbuffer_free(dst);
	rig_close(rig);
}

static void
test_slow_reader(void **state)
{
	(void)state;
	struct rig *rig = rig_open();

	store = evbuffer_new();
	add_pattern(store, 0, LONG_BYTES);
	rig->a.act = write_on;
	rig->b.act = sip;
	want(&rig->a, false, true);
	want(&rig->b, true, false);
	settle(rig);
	assert_true(rig->over);
	assert_int_equal(rig->received, LONG_BYTES);
	assert_int_equal(rig->peak, PAIR_BYTES);
	/* One call of the reader for each sip and the end, of the writer for each filling. */
	assert_true(rig->b.calls <=
		    (int)(LONG_BYTES / SIP_BYTES + 1 + 1 + LONG_BYTES / PAIR_BYTES));
	assert_true(rig->a.calls <= (int)(2 * LONG_BYTES / PAIR_BYTES + 1));
	evbuffer_free(store);
	rig_close(rig);
}

/* --- being told ----------------------------------------------------------------------------------- */

static void
test_told_once_and_only_if_wanted(void **state)
{
	(void)state;
	struct rig *rig = rig_open();

	put(&rig->a, "one");
	assert_null(rig->loop.tasks.first);
	settle(rig);
	assert_int_equal(rig->b.calls, 0);
	want(&rig->b, true, false); /* it is already */
	settle(rig);
	assert_int_equal(rig->b.calls, 1);
	put(&rig->a, "two");
	put(&rig->a, "three");
	end_shutdown(&rig->a);
	settle(rig);
	assert_int_equal(rig->b.calls, 2);
	for (int turn = 0; turn < 100; turn++)
		assert_int_equal(settle(rig), 1);
	assert_int_equal(rig->b.calls, 2);

	/* Not wanted any more before its turn came. */
	want(&rig->b, true, false);
	rig->b.endpoint.want_readable = false;
	settle(rig);
	assert_int_equal(rig->b.calls, 2);
	assert_int_equal(rig->a.calls, 0);
	rig_close(rig);
}

static void
test_blocked_writer_does_not_spin(void **state)
{
	(void)state;
	struct rig *rig = rig_open();

	store = evbuffer_new();
	add_pattern(store, 0, 2 * PAIR_BYTES);
	rig->a.act = write_on;
	want(&rig->a, false, true);
	for (int turn = 0; turn < 100; turn++)
		settle(rig);
	assert_true(rig->a.calls <= 2);
	assert_int_equal(rig->sent, PAIR_BYTES);
	evbuffer_free(store);
	rig_close(rig);
}

/* --- ends ----------------------------------------------------------------------------------------- */

static void
test_data_and_end_together(void **state)
{
	(void)state;
	struct rig *rig = rig_open();

	want(&rig->b, true, false);
	put(&rig->a, "last words");
	end_shutdown(&rig->a);
	settle(rig);
	assert_int_equal(rig->b.calls, 1);
	expect(&rig->b, ENDPOINT_MOVED, "last words");
	assert_true(rig->b.endpoint.readable);
	expect(&rig->b, ENDPOINT_END, "");
	want(&rig->b, true, false);
	settle(rig);
	assert_int_equal(rig->b.calls, 1); /* an end is told once */
	rig_close(rig);
}

static void
test_half_open(void **state)
{
	(void)state;
	for (int turned = 0; turned < 2; turned++) {
		struct rig *rig = rig_open();
		struct end *first = turned ? &rig->b : &rig->a, *other = turned ? &rig->a : &rig->b;

		end_shutdown(first);
		expect(other, ENDPOINT_END, "");
		for (int i = 0; i < 3; i++) {
			put(other, "still here");
			expect(first, ENDPOINT_MOVED, "still here");
		}
		put(other, "bye");
		end_shutdown(other);
		expect(first, ENDPOINT_MOVED, "bye");
		expect(first, ENDPOINT_END, "");
		rig_close(rig);
	}
}

static void
test_close_is_an_end(void **state)
{
	(void)state;
	for (int shut = 0; shut < 2; shut++) {
		struct rig *rig = rig_open();

		put(&rig->a, "rest");
		if (shut)
			end_shutdown(&rig->a);
		want(&rig->b, false, true);
		settle(rig);
		end_close(&rig->a);
		assert_int_equal(rig->b.endpoint.kind->probe(&rig->b.endpoint, NULL), ENDPOINT_END);
		assert_int_equal(rig->b.endpoint.kind->unsent(&rig->b.endpoint), 0);
		settle(rig);
		assert_int_equal(rig->b.calls, 2); /* once at once, once for the close */
		expect_unwritable(&rig->b);
		expect(&rig->b, ENDPOINT_MOVED, "rest");
		expect(&rig->b, ENDPOINT_END, "");
		end_shutdown(&rig->b); /* to nobody */
		rig_close(rig);
	}
}

static void
test_close_with_bytes_unread_is_a_reset(void **state)
{
	(void)state;
	struct rig *rig = rig_open();

	put(&rig->a, "answer");
	put(&rig->b, "never read");
	end_close(&rig->a);
	assert_int_equal(kept_for_bytes(rig), 6);
	expect(&rig->b, ENDPOINT_MOVED, "answer");
	expect(&rig->b, ENDPOINT_BROKEN, "");
	rig_close(rig);

	rig = rig_open(); /* but not if it had ended its flow before */
	end_shutdown(&rig->a);
	put(&rig->b, "never read");
	end_close(&rig->a);
	expect_unwritable(&rig->b);
	expect(&rig->b, ENDPOINT_END, "");
	rig_close(rig);
}

static void
test_abort_is_a_reset(void **state)
{
	(void)state;
	for (int with_bytes = 0; with_bytes < 2; with_bytes++) {
		struct rig *rig = rig_open();
		struct failure why;

		if (with_bytes)
			put(&rig->a, "early answer");
		want(&rig->b, !with_bytes, with_bytes);
		settle(rig);
		rig->b.calls = 0;
		end_abort(&rig->a);
		assert_int_equal(rig->b.endpoint.kind->probe(&rig->b.endpoint, &why),
				 ENDPOINT_BROKEN);
		assert_int_equal(why.kind, FAILURE_RESET);
		settle(rig);
		assert_int_equal(rig->b.calls, 1);
		expect_unwritable(&rig->b);
		if (with_bytes)
			expect(&rig->b, ENDPOINT_MOVED, "early answer");
		expect(&rig->b, ENDPOINT_BROKEN, "");
		rig_close(rig);
	}
}

static void
test_abort_after_end_keeps_the_end(void **state)
{
	(void)state;
	struct rig *rig = rig_open();

	assert_int_equal(rig->b.endpoint.kind->probe(&rig->b.endpoint, NULL), ENDPOINT_WAIT);
	put(&rig->a, "all of it");
	end_shutdown(&rig->a);
	assert_int_equal(rig->b.endpoint.kind->probe(&rig->b.endpoint, NULL), ENDPOINT_WAIT);
	end_abort(&rig->a);
	assert_int_equal(rig->b.endpoint.kind->probe(&rig->b.endpoint, NULL), ENDPOINT_END);
	expect_unwritable(&rig->b);
	expect(&rig->b, ENDPOINT_MOVED, "all of it");
	expect(&rig->b, ENDPOINT_END, "");
	rig_close(rig);
}

static void
test_blocked_writer_learns_of_abort(void **state)
{
	(void)state;
	struct rig *rig = rig_open();

	fill(&rig->a, PAIR_BYTES);
	want(&rig->a, false, true);
	settle(rig);
	assert_int_equal(rig->a.calls, 0);
	end_abort(&rig->b);
	assert_int_equal(kept_for_bytes(rig), 0);
	settle(rig);
	assert_int_equal(rig->a.calls, 1);
	expect_unwritable(&rig->a);
	expect(&rig->a, ENDPOINT_BROKEN, "");
	rig_close(rig);
}

/* --- either end freed first, in every state, from outside or from on_ready ------------------------ */

enum { STATES = 64 };

static void
bring_to(struct rig *rig, int bits)
{
	if (bits & 1)
		put(&rig->a, "some bytes");
	if (bits & 2)
		fill(&rig->b, PAIR_BYTES / 2);
	if (bits & 4)
		end_shutdown(&rig->a);
	if (bits & 8)
		end_shutdown(&rig->b);
	want(&rig->a, bits & 16, bits & 16);
	want(&rig->b, bits & 32, bits & 32);
}

static void
close_partner(struct end *end)
{
	end_close(end == &end->rig->a ? &end->rig->b : &end->rig->a);
}

static void
abort_partner(struct end *end)
{
	end_abort(end == &end->rig->a ? &end->rig->b : &end->rig->a);
}

static void
close_both(struct end *end)
{
	end_close(end);
	close_partner(end);
}

static void
abort_both(struct end *end)
{
	abort_partner(end);
	end_abort(end);
}

static void
test_freed_in_every_state(void **state)
{
	(void)state;
	static void (*const acts[])(struct end *) = {
		end_close, end_abort, close_partner, abort_partner, close_both, abort_both,
	};
	int cases = 0;

	for (int bits = 0; bits < STATES; bits++) {
		for (size_t act = 0; act < sizeof(acts) / sizeof(acts[0]); act++) {
			for (int way = 0; way < 4; way++) {
				struct rig *rig = rig_open();
				struct end *end = way & 1 ? &rig->b : &rig->a;
				bring_to(rig, bits);
				if (way & 2)
					end->act = acts[act];
				else
					acts[act](end);
				settle(rig);
				rig_close(rig);
				cases++;
			}
		}
	}
	assert_int_equal(cases, STATES * 6 * 4);
}

static void
test_freed_without_another_turn(void **state)
{
	(void)state;
	for (int bits = 0; bits < STATES; bits++) {
		struct rig *rig = rig_open();
		bring_to(rig, bits);
		end_abort(&rig->b);
		end_close(&rig->a);
		assert_int_equal(kept_for_bytes(rig), 0);
		assert_null(rig->loop.tasks.first);
		loop_close(&rig->loop);
		free(rig);
	}
}

static void
on_released(const void *bytes, size_t size, void *context)
{
	(void)bytes;
	(void)size;
	*(bool *)context = true;
}

static void
test_bytes_are_released_at_once(void **state)
{
	(void)state;
	struct rig *rig = rig_open();
	struct evbuffer *src = evbuffer_new();
	bool released = false;
	size_t moved;

	evbuffer_add_reference(src, "unread", 6, on_released, &released);
	end_write(&rig->a, src, SIZE_MAX, &moved, NULL);
	end_close(&rig->a);
	assert_false(released);
	end_close(&rig->b);
	assert_true(released);
	evbuffer_free(src);
	rig_close(rig);
}

/* --- memory --------------------------------------------------------------------------------------- */

static void
test_no_memory_for_a_pair(void **state)
{
	(void)state;
	struct rig *rig = rig_open();
	struct endpoint one = { .kind = NULL }, other = { .kind = NULL };
	struct failure why;

	no_memory = true;
	assert_int_equal(pair_open(&one, &other, &rig->loop, &why), -1);
	no_memory = false;
	assert_int_equal(why.kind, FAILURE_MEMORY);
	assert_null(one.kind);
	assert_null(other.kind);
	rig_close(rig);
}

static void
test_no_memory_to_cut(void **state)
{
	(void)state;
	struct rig *rig = rig_open();
	struct evbuffer *src = evbuffer_new();
	struct failure why;
	size_t moved;

	put(&rig->a, "before the gap");
	add_pattern(src, 0, 10000);
	no_memory = true;
	assert_int_equal(end_write(&rig->a, src, 5000, &moved, &why), ENDPOINT_BROKEN);
	no_memory = false;
	assert_int_equal(why.kind, FAILURE_MEMORY);
	expect(&rig->b, ENDPOINT_MOVED, "before the gap");
	expect(&rig->b, ENDPOINT_BROKEN, "");
	expect(&rig->a, ENDPOINT_BROKEN, "");
	expect_unwritable(&rig->a);
	rig_close(rig);

	rig = rig_open();
	evbuffer_drain(src, evbuffer_get_length(src));
	fill(&rig->b, 10000);
	no_memory = true;
	assert_int_equal(end_read(&rig->a, src, 5000, &moved, &why), ENDPOINT_BROKEN);
	no_memory = false;
	assert_int_equal(why.kind, FAILURE_MEMORY);
	evbuffer_free(src);
	rig_close(rig);
}

/* --- blame ---------------------------------------------------------------------------------------- */

static struct waiting
blame(struct end *end, enum wait cause)
{
	return end->endpoint.kind->blame(&end->endpoint, (struct waiting){ .cause = cause });
}

static void
test_blame(void **state)
{
	(void)state;
	static const enum wait plain[] = { WAIT_CHOICE, WAIT_RESOLVER, WAIT_CONNECT, WAIT_HANDSHAKE,
					   WAIT_TURN };
	struct rig *rig = rig_open();
	struct waiting up = { .cause = WAIT_MOVING }, down = { .cause = WAIT_MOVING };

	/* a is the far end of the first connection, b the near end of the second. */
	assert_int_equal(blame(&rig->a, WAIT_FAR_WRITABLE).cause, WAIT_FAR_WRITABLE);
	rig->b.endpoint.pair.waiting[0] = &up;
	rig->b.endpoint.pair.waiting[1] = &down;
	assert_int_equal(blame(&rig->a, WAIT_FAR_WRITABLE).cause, WAIT_FAR_WRITABLE);
	assert_int_equal(blame(&rig->a, WAIT_FAR_READABLE).cause, WAIT_FAR_READABLE);

	for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
		up.cause = plain[i];
		assert_int_equal(blame(&rig->a, WAIT_FAR_WRITABLE).cause, plain[i]);
		assert_int_equal(blame(&rig->a, WAIT_FAR_READABLE).cause, WAIT_FAR_READABLE);
	}
	down = (struct waiting){ .cause = WAIT_LIMIT, .limit = "client" };
	assert_int_equal(blame(&rig->a, WAIT_FAR_READABLE).cause, WAIT_LIMIT);
	assert_string_equal(blame(&rig->a, WAIT_FAR_READABLE).limit, "client");

	/* The far side's own waits keep their names; waits for each other go no further. */
	up.cause = WAIT_FAR_WRITABLE;
	down.cause = WAIT_FAR_READABLE;
	assert_int_equal(blame(&rig->a, WAIT_FAR_WRITABLE).cause, WAIT_FAR_WRITABLE);
	assert_int_equal(blame(&rig->a, WAIT_FAR_READABLE).cause, WAIT_FAR_READABLE);
	up.cause = WAIT_NEAR_READABLE;
	down.cause = WAIT_NEAR_WRITABLE;
	assert_int_equal(blame(&rig->a, WAIT_FAR_WRITABLE).cause, WAIT_FAR_WRITABLE);
	assert_int_equal(blame(&rig->a, WAIT_FAR_READABLE).cause, WAIT_FAR_READABLE);

	end_close(&rig->b);
	assert_int_equal(blame(&rig->a, WAIT_FAR_WRITABLE).cause, WAIT_FAR_WRITABLE);
	rig_close(rig);
}

static void
test_blame_over_hops(void **state)
{
	(void)state;
	/* Three connections: first.a | first.b - second.a | second.b. */
	struct rig *first = rig_open(), *second = rig_open();
	struct waiting one[2], two[2], three[2];

	for (int flow = 0; flow < 2; flow++) {
		first->a.endpoint.pair.waiting[flow] = &one[flow];
		first->b.endpoint.pair.waiting[flow] = &two[flow];
		second->a.endpoint.pair.waiting[flow] = &two[flow];
		second->b.endpoint.pair.waiting[flow] = &three[flow];
	}
	first->b.endpoint.pair.across = &second->a.endpoint;
	second->a.endpoint.pair.across = &first->b.endpoint;

	one[0] = two[0] = (struct waiting){ .cause = WAIT_FAR_WRITABLE };
	three[0] = (struct waiting){ .cause = WAIT_LIMIT, .limit = "uplink" };
	struct waiting found = blame(&first->a, WAIT_FAR_WRITABLE);
	assert_int_equal(found.cause, WAIT_LIMIT);
	assert_string_equal(found.limit, "uplink");

	/* The other way: the last one waits for bytes that a limit at the first holds back. */
	one[0] = (struct waiting){ .cause = WAIT_LIMIT, .limit = "client" };
	two[0] = three[0] = (struct waiting){ .cause = WAIT_NEAR_READABLE };
	found = blame(&second->b, WAIT_NEAR_READABLE);
	assert_int_equal(found.cause, WAIT_LIMIT);
	assert_string_equal(found.limit, "client");

	/* Down, and the last target is still being connected. */
	one[1] = two[1] = (struct waiting){ .cause = WAIT_FAR_READABLE };
	three[1] = (struct waiting){ .cause = WAIT_CONNECT };
	assert_int_equal(blame(&first->a, WAIT_FAR_READABLE).cause, WAIT_CONNECT);
	rig_close(first);
	rig_close(second);
}

int
main(void)
{
	event_set_mem_functions(allocate, reallocate, free);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bytes_go_both_ways),
		cmocka_unit_test(test_bytes_are_not_copied),
		cmocka_unit_test(test_cut_at_most),
		cmocka_unit_test(test_room),
		cmocka_unit_test(test_memory_is_short),
		cmocka_unit_test(test_slow_reader),
		cmocka_unit_test(test_told_once_and_only_if_wanted),
		cmocka_unit_test(test_blocked_writer_does_not_spin),
		cmocka_unit_test(test_data_and_end_together),
		cmocka_unit_test(test_half_open),
		cmocka_unit_test(test_close_is_an_end),
		cmocka_unit_test(test_close_with_bytes_unread_is_a_reset),
		cmocka_unit_test(test_abort_is_a_reset),
		cmocka_unit_test(test_abort_after_end_keeps_the_end),
		cmocka_unit_test(test_blocked_writer_learns_of_abort),
		cmocka_unit_test(test_freed_in_every_state),
		cmocka_unit_test(test_freed_without_another_turn),
		cmocka_unit_test(test_bytes_are_released_at_once),
		cmocka_unit_test(test_no_memory_for_a_pair),
		cmocka_unit_test(test_no_memory_to_cut),
		cmocka_unit_test(test_blame),
		cmocka_unit_test(test_blame_over_hops),
	};
	return cmocka_run_group_tests_name("pair", tests, NULL, NULL);
}
