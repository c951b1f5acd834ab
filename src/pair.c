#include "pair.h"

#include "buffer.h"

#include <assert.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <stddef.h>
#include <stdlib.h>

/*
 * Both bufferevents stay enabled, so what is written to one is in the input of the other at once and
 * its own output is always empty. Their callbacks are not used: they run in the same turn, before any
 * I/O, so that two busy ends would keep everybody else waiting, and nobody calls them when an end is
 * freed or its input is drained.
 */

static struct evbuffer *
input_of(const struct endpoint *end)
{
	return bufferevent_get_input(end->pair.bev);
}

static size_t
unread(const struct endpoint *end)
{
	return evbuffer_get_length(input_of(end));
}

static bool
is_wanted(const struct endpoint *end)
{
	return (end->want_readable && end->readable) || (end->want_writable && end->writable);
}

static void
wake(struct endpoint *end)
{
	if (is_wanted(end))
		loop_run_later(end->loop, &end->pair.ready);
}

static void
on_turn(struct task *task)
{
	struct endpoint *end =
		(struct endpoint *)((char *)task - offsetof(struct endpoint, pair.ready));
	if (is_wanted(end))
		end->on_ready(end);
}

/* Tells the partner, behind the bytes it has still to read, how the flow towards it is over. */
static void
finish(struct endpoint *partner, bool in_order)
{
	if (!partner->pair.ended && !partner->pair.reset) {
		partner->pair.ended = in_order;
		partner->pair.reset = !in_order;
	}
	partner->readable = true;
	wake(partner);
}

/* Takes the ends apart. */
static void
part(struct endpoint *end, bool in_order)
{
	struct endpoint *partner = end->pair.partner;
	if (!partner)
		return;
	end->pair.partner = NULL;
	partner->pair.partner = NULL;
	partner->writable = true; /* worth trying: the failure tells */
	finish(partner, in_order);
}

static enum endpoint_result
broken(struct failure *why, enum failure_kind kind, const char *text)
{
	failure_set(why, kind, "%s", text);
	return ENDPOINT_BROKEN;
}

static enum endpoint_result
pair_read(struct endpoint *end, struct evbuffer *dst, size_t most, size_t *moved,
	  struct failure *why)
{
	struct pair_endpoint *pair = &end->pair;
	struct endpoint *partner = pair->partner;
	size_t held = unread(end);
	size_t bytes = most < held ? most : held;

	*moved = 0;
	if (!held) {
		end->readable = false;
		if (pair->ended)
			return ENDPOINT_END;
		if (pair->reset)
			return broken(why, FAILURE_RESET, "reset by the other end of the pair");
		return ENDPOINT_WAIT;
	}
	*moved = buffer_move(input_of(end), dst, bytes);
	end->loop->kept_bytes -= bytes;
	end->readable = bytes < held || pair->ended || pair->reset;
	if (partner && !partner->writable && PAIR_BYTES - unread(end) >= partner->pair.need_bytes) {
		partner->writable = true;
		wake(partner);
	}
	if (*moved < bytes)
		return broken(why, FAILURE_MEMORY, "no memory to read from a pair");
	return ENDPOINT_MOVED;
}

static enum endpoint_result
pair_write(struct endpoint *end, struct evbuffer *src, size_t most, size_t *moved,
	   struct failure *why)
{
	struct pair_endpoint *pair = &end->pair;
	struct endpoint *partner = pair->partner;
	size_t bytes = evbuffer_get_length(src);

	*moved = 0;
	if (!partner) {
		end->writable = false;
		return broken(why, FAILURE_RESET, "the other end of the pair is closed");
	}
	assert(!partner->pair.ended); /* nothing is written after shutdown */
	size_t held = unread(partner);
	if (bytes > most)
		bytes = most;
	if (bytes > PAIR_BYTES)
		bytes = PAIR_BYTES;
	/* At the cap of the memory one piece at a time: a reader that is blocked holds no more than that,
	 * and one that is not still gets everything. */
	size_t need_bytes = loop_read_most(end->loop) ? bytes : PAIR_BYTES;
	if (need_bytes > PAIR_BYTES - held) {
		end->writable = false;
		pair->need_bytes = need_bytes;
		return ENDPOINT_WAIT;
	}
	evbuffer_remove_buffer(src, bufferevent_get_output(pair->bev), bytes);
	*moved = unread(partner) - held;
	end->loop->kept_bytes += *moved;
	end->writable = held + *moved < PAIR_BYTES;
	pair->need_bytes = 1;
	if (*moved < bytes) {
		/* As in pair_read; what comes behind the gap must not reach the reader. */
		part(end, false);
		pair->reset = true;
		return broken(why, FAILURE_MEMORY, "no memory to write to a pair");
	}
	partner->readable = true;
	wake(partner);
	return ENDPOINT_MOVED;
}

static int
pair_watch(struct endpoint *end, struct failure *why)
{
	(void)why;
	wake(end);
	return 0;
}

static void
pair_shutdown(struct endpoint *end)
{
	if (end->pair.partner)
		finish(end->pair.partner, true);
}

static size_t
pair_unsent(const struct endpoint *end)
{
	return end->pair.partner ? unread(end->pair.partner) : 0;
}

static enum endpoint_result
pair_probe(struct endpoint *end, struct failure *why)
{
	if (end->pair.partner)
		return ENDPOINT_WAIT;
	if (end->pair.ended)
		return ENDPOINT_END;
	return broken(why, FAILURE_RESET, "reset by the other end of the pair");
}

static bool
is_for_bytes(enum wait cause)
{
	return cause == WAIT_NEAR_READABLE || cause == WAIT_FAR_READABLE;
}

static bool
is_for_room(enum wait cause)
{
	return cause == WAIT_NEAR_WRITABLE || cause == WAIT_FAR_WRITABLE;
}

static struct waiting
pair_blame(const struct endpoint *end, struct waiting own)
{
	const struct endpoint *partner = end->pair.partner;
	/* Up is up through every hop, and one flow reads here what the same flow wrote there. */
	bool is_down = own.cause == WAIT_NEAR_WRITABLE || own.cause == WAIT_FAR_READABLE;
	const struct waiting *theirs = partner ? partner->pair.waiting[is_down] : NULL;

	if (!theirs || theirs->cause == WAIT_MOVING)
		return own;
	if (!is_for_bytes(theirs->cause) && !is_for_room(theirs->cause))
		return *theirs;
	/* A flow that should read from us and waits for bytes, or write to us and waits for room, waits
	 * for this end: it will be woken. Otherwise it waits for its owner's other endpoint. */
	if (is_for_bytes(theirs->cause) != is_for_bytes(own.cause))
		return own;
	const struct endpoint *across = partner->pair.across;
	if (across && across->kind && across->kind->blame)
		return across->kind->blame(across, *theirs);
	return *theirs;
}

static void
release(struct endpoint *end, bool in_order)
{
	struct evbuffer *input = input_of(end);
	size_t bytes = evbuffer_get_length(input);

	part(end, in_order);
	loop_forget(end->loop, &end->pair.ready);
	/* libevent frees a bufferevent in a later turn; the memory of its bytes goes back now. */
	evbuffer_drain(input, bytes);
	end->loop->kept_bytes -= bytes + PAIR_END_BYTES;
	bufferevent_free(end->pair.bev);
	end->kind = NULL;
}

static void
pair_close(struct endpoint *end)
{
	release(end, !unread(end));
}

static void
pair_abort(struct endpoint *end)
{
	release(end, false);
}

static const struct endpoint_kind pair_kind = {
	.name = "pair",
	.read = pair_read,
	.write = pair_write,
	.watch = pair_watch,
	.shutdown = pair_shutdown,
	.unsent = pair_unsent,
	.probe = pair_probe,
	.blame = pair_blame,
	.close = pair_close,
	.abort = pair_abort,
};

static void
open_end(struct endpoint *end, struct endpoint *partner, struct bufferevent *bev, struct loop *loop)
{
	bufferevent_enable(bev, EV_READ | EV_WRITE);
	end->kind = &pair_kind;
	end->loop = loop;
	end->readable = false;
	end->writable = true;
	end->pair.bev = bev;
	end->pair.partner = partner;
	end->pair.need_bytes = 1;
	end->pair.ended = false;
	end->pair.reset = false;
	end->pair.ready = (struct task){ .run = on_turn };
}

/* libevent 2.1.12 crashes when memory ends inside bufferevent_pair_new: what that takes (2 KB) must be
 * there before. What a thread frees stays with its allocator. */
static bool
has_memory(void)
{
	void *volatile memory = malloc(4096); /* volatile: or the compiler leaves it all out */
	bool is_there = memory;
	free(memory);
	return is_there;
}

int
pair_open(struct endpoint *a, struct endpoint *b, struct loop *loop, struct failure *why)
{
	struct bufferevent *bevs[2];

	if (!has_memory() || bufferevent_pair_new(loop->base, 0, bevs) < 0)
		return failure_set(why, FAILURE_MEMORY, "no memory for a pair");
	open_end(a, b, bevs[0], loop);
	open_end(b, a, bevs[1], loop);
	loop->kept_bytes += 2 * PAIR_END_BYTES;
	return 0;
}
