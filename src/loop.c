#include "loop.h"

#include "clock.h"
#include "mailbox.h"

#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* A read's rest below this is copied: it would hold a block at less than a quarter of its size. */
#define PIN_BYTES (BLOCK_BYTES / 4)
/* Above three quarters of the memory a read brings in no more than this: with its head a chain of 4 KiB,
 * since libevent rounds up to a power of two. */
#define LEAN_READ_BYTES ((size_t)4000)
/* What libevent takes for a reference: its smallest chain. */
#define REFERENCE_BYTES ((size_t)1024)
/* More free blocks than these go back to the allocator at once. */
#define FREE_BLOCKS 16
#define PIPE_BYTES  (1024 * 1024)
#define HEAVY_NS    NS_PER_MS /* for heavy tasks in each turn, if the others need less */
/* So many turns in a row with nothing but bulk: there is nobody whom a rest would keep waiting. */
#define LONELY_TURNS 16
#define QUIET_NS     (60 * NS_PER_S)

struct block {
	struct loop *loop;
	struct block *next;
	unsigned int references;
	size_t used_bytes; /* below this, bytes are referenced */
	char bytes[];
};

/* A small rest of a read, copied out of its block. */
struct rest {
	struct loop *loop;
	size_t size_bytes;
	char bytes[];
};

/* A timer of zero and not event_active, which would run in this turn, before any I/O. Without memory it is asked
 * for again by loop_look. */
static void
ask_for_turn(struct loop *loop)
{
	event_add(loop->turn, &(struct timeval){ 0, 0 });
}

static void
run_first(struct loop *loop, const struct task_list *list)
{
	struct task *task = list->first;
	loop_forget(loop, task);
	task->run(task);
}

/* At least one, and then for as long as the rest of the turn took: beside bulk they get half of the time, and
 * beside messages alone they hold these up by HEAVY_NS and one task at most. What is queued meanwhile, in turn
 * `loop->turns`, waits. */
static void
run_heavy(struct loop *loop)
{
	uint64_t began_ns = clock_now_ns(), now_ns = began_ns;
	uint64_t others_ns = loop->looked_ns ? began_ns - loop->looked_ns : 0;
	uint64_t most_ns = others_ns > HEAVY_NS ? others_ns : HEAVY_NS;

	while (loop->heavy.first && loop->heavy.first->turn != loop->turns &&
	       now_ns - began_ns < most_ns) {
		run_first(loop, &loop->heavy);
		now_ns = clock_now_ns();
	}
}

static void
on_turn(evutil_socket_t fd, short what, void *context)
{
	struct loop *loop = context;
	(void)fd;
	(void)what;

	/* What is queued from now on runs in the turn after this one, so that I/O comes in between. */
	unsigned int this = loop->turns++;
	while (loop->tasks.first && loop->tasks.first->turn == this)
		run_first(loop, &loop->tasks);
	if (loop->heavy.first)
		run_heavy(loop);
	if (loop->tasks.first || loop->heavy.first)
		ask_for_turn(loop);
}

int
loop_open(struct loop *loop, struct failure *why)
{
	struct event_config *config = event_config_new();
	loop->tasks.end = &loop->tasks.first;
	loop->heavy.end = &loop->heavy.first;
	if (config) {
		/* One worker's loop is touched by its own thread only. The changelist merges a del and an
		 * add of one turn into one epoll_ctl. */
		event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK |
						      EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST);
		loop->base = event_base_new_with_config(config);
		event_config_free(config);
	}
	if (!loop->base) {
		failure_set(why, FAILURE_SYSTEM, "cannot make an event loop");
		goto fail;
	}
	loop->turn = evtimer_new(loop->base, on_turn, loop);
	if (!loop->turn) {
		failure_set(why, FAILURE_MEMORY, "no memory for an event loop");
		goto fail;
	}
	loop->mailbox = mailbox_open(loop->base, why);
	if (!loop->mailbox)
		goto fail;
	return 0;
fail:
	loop_close(loop);
	return -1;
}

static void
close_pipe(struct loop *loop, struct pipe *pipe)
{
	close(pipe->in);
	close(pipe->out);
	free(pipe);
	loop->pipes_made--;
}

static void
free_spares(struct loop *loop)
{
	while (loop->blocks) {
		struct block *block = loop->blocks;
		loop->blocks = block->next;
		free(block);
	}
	loop->blocks_free = 0;
	while (loop->buffers_spare)
		evbuffer_free(loop->buffers[--loop->buffers_spare]);
	while (loop->pipes) {
		struct pipe *pipe = loop->pipes;
		loop->pipes = pipe->next;
		close_pipe(loop, pipe);
	}
}

void
loop_close(struct loop *loop)
{
	mailbox_close(loop->mailbox);
	if (loop->turn)
		event_free(loop->turn);
	if (loop->base)
		event_base_free(loop->base);
	free_spares(loop);
	free(loop->block);
	memset(loop, 0, sizeof(*loop));
}

static void
rest_for_more(struct loop *loop)
{
	if (loop->runs & 1u << LOOP_RUN_MESSAGE)
		loop->message_ns = loop->looked_ns;
	if (loop->runs & 1u << LOOP_RUN_MESSAGE || loop->tasks.first || loop->heavy.first)
		loop->bulk_turns = 0;
	else if (loop->runs && loop->bulk_turns < LONELY_TURNS)
		loop->bulk_turns++;
	loop->has_rested = loop->runs & 1u << LOOP_RUN_PIECE && loop->bulk_turns == LONELY_TURNS;
	loop->runs = 0;
	if (!loop->has_rested)
		return;
	bool is_silent = loop->looked_ns - loop->message_ns >= LOOP_SILENCE_NS;
	nanosleep(&(struct timespec){ .tv_nsec = is_silent ? LOOP_LONG_REST_NS : LOOP_REST_NS },
		  NULL);
}

void
loop_look(struct loop *loop)
{
	loop->looked_ns = clock_now_ns();
	loop->woke_before_ns = loop->woke_ns ? loop->woke_ns : loop->looked_ns;
	loop->woke_ns = 0;
	if ((loop->tasks.first || loop->heavy.first) &&
	    !event_pending(loop->turn, EV_TIMEOUT, NULL))
		ask_for_turn(loop);
	rest_for_more(loop);
}

static uint64_t
time_between(uint64_t from_ns, uint64_t to_ns)
{
	return to_ns > from_ns ? to_ns - from_ns : 0;
}

static uint64_t
later(uint64_t a_ns, uint64_t b_ns)
{
	return a_ns > b_ns ? a_ns : b_ns;
}

/* What was ready in front of the last look but one would have been told by it. So it became so since the turn
 * before began: while that one worked, or in the look behind it, which may have been a long sleep and counts for
 * nothing. */
uint64_t
loop_busy_ns(struct loop *loop, uint64_t since_ns, uint64_t now_ns)
{
	if (!loop->looked_ns)
		return 0;
	if (!loop->woke_ns)
		loop->woke_ns = now_ns;
	return time_between(later(since_ns, loop->woke_before_ns), loop->looked_ns) +
	       time_between(later(since_ns, loop->woke_ns), now_ns);
}

static void
queue_task(struct loop *loop, struct task_list *list, struct task *task)
{
	task->queued = true;
	task->is_heavy = list == &loop->heavy;
	task->turn = loop->turns;
	task->next = NULL;
	if (!loop->tasks.first && !loop->heavy.first)
		ask_for_turn(loop);
	*list->end = task;
	list->end = &task->next;
}

void
loop_run_later(struct loop *loop, struct task *task)
{
	if (!task->queued)
		queue_task(loop, &loop->tasks, task);
}

void
loop_run_heavy(struct loop *loop, struct task *task)
{
	if (!task->queued)
		queue_task(loop, &loop->heavy, task);
}

void
loop_forget(struct loop *loop, struct task *task)
{
	if (!task->queued)
		return;
	struct task_list *list = task->is_heavy ? &loop->heavy : &loop->tasks;
	struct task **link = &list->first;
	while (*link != task)
		link = &(*link)->next;
	*link = task->next;
	if (!*link)
		list->end = link;
	task->next = NULL;
	task->queued = false;
}

void *
loop_scratch(struct loop *loop)
{
	struct block *block = loop->block;

	if (block && !block->references)
		block->used_bytes = 0;
	if (block && block->used_bytes) {
		/* Its rest would do for a shorter read, but a whole block keeps reads long; the pinned
		 * one comes back by its last reference. */
		loop->block = NULL;
		block = NULL;
	}
	if (!block) {
		block = loop->blocks;
		if (block) {
			loop->blocks = block->next;
			loop->blocks_free--;
		} else {
			block = malloc(sizeof(*block) + BLOCK_BYTES);
			if (!block)
				return NULL;
		}
		block->loop = loop;
		block->next = NULL;
		block->references = 0;
		block->used_bytes = 0;
		loop->block = block;
	}
	return block->bytes;
}

static void
unpin_block(const void *bytes, size_t size, void *context)
{
	struct block *block = context;
	struct loop *loop = block->loop;
	(void)bytes;
	(void)size;

	if (--block->references)
		return;
	loop->kept_bytes -= BLOCK_BYTES;
	if (block == loop->block)
		return;
	if (loop->blocks_free >= FREE_BLOCKS) {
		free(block);
		return;
	}
	block->next = loop->blocks;
	loop->blocks = block;
	loop->blocks_free++;
}

static void
free_rest(const void *bytes, size_t size, void *context)
{
	struct rest *rest = context;
	(void)bytes;
	(void)size;

	rest->loop->kept_bytes -= rest->size_bytes;
	free(rest);
}

static int
keep_rest(struct loop *loop, struct evbuffer *dst, const void *from, size_t bytes)
{
	struct rest *rest = malloc(sizeof(*rest) + bytes);
	if (!rest)
		return -1;
	rest->loop = loop;
	rest->size_bytes = sizeof(*rest) + bytes + REFERENCE_BYTES;
	memcpy(rest->bytes, from, bytes);
	if (evbuffer_add_reference(dst, rest->bytes, bytes, free_rest, rest) < 0) {
		free(rest);
		return -1;
	}
	loop->kept_bytes += rest->size_bytes;
	return 0;
}

static int
pin_block(struct loop *loop, struct evbuffer *dst, const char *from, size_t bytes)
{
	struct block *block = loop->block;
	assert(from >= block->bytes && from + bytes <= block->bytes + BLOCK_BYTES);

	if (evbuffer_add_reference(dst, from, bytes, unpin_block, block) < 0)
		return -1;
	if (!block->references++)
		loop->kept_bytes += BLOCK_BYTES;
	block->used_bytes = (size_t)(from + bytes - block->bytes);
	return 0;
}

int
loop_keep(struct loop *loop, struct evbuffer *dst, const void *from, size_t bytes,
	  struct failure *why)
{
	loop->busy_ns = 0;
	if ((bytes >= PIN_BYTES ? pin_block(loop, dst, from, bytes)
				: keep_rest(loop, dst, from, bytes)) < 0)
		return failure_set(why, FAILURE_MEMORY, "no memory to keep %zu bytes", bytes);
	return 0;
}

size_t
loop_read_most(const struct loop *loop)
{
	if (!loop->kept_most || loop->kept_bytes < loop->kept_most - loop->kept_most / 4)
		return BLOCK_BYTES;
	return loop->kept_bytes < loop->kept_most ? LEAN_READ_BYTES : 0;
}

struct evbuffer *
loop_take_buffer(struct loop *loop)
{
	return loop->buffers_spare ? loop->buffers[--loop->buffers_spare] : evbuffer_new();
}

void
loop_give_buffer(struct loop *loop, struct evbuffer *buffer)
{
	if (!buffer)
		return;
	if (loop->buffers_spare == LOOP_BUFFERS) {
		evbuffer_free(buffer);
		return;
	}
	evbuffer_drain(buffer, evbuffer_get_length(buffer));
	loop->buffers[loop->buffers_spare++] = buffer;
}

struct pipe *
loop_take_pipe(struct loop *loop)
{
	struct pipe *pipe = loop->pipes;
	int ends[2];

	if (pipe) {
		loop->pipes = pipe->next;
		return pipe;
	}
	if (loop->pipes_made >= loop->pipes_most)
		return NULL;
	pipe = calloc(1, sizeof(*pipe));
	if (!pipe)
		return NULL;
	if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0) {
		free(pipe);
		return NULL;
	}
	pipe->out = ends[0];
	pipe->in = ends[1];
	loop->pipes_made++;
	if (loop->pipes_below && (ends[0] >= loop->pipes_below || ends[1] >= loop->pipes_below)) {
		close_pipe(loop, pipe);
		return NULL;
	}
	/* An unprivileged user has 64 MiB of pipes in all; a small pipe is worse than copying. */
	int size = fcntl(pipe->in, F_SETPIPE_SZ, PIPE_BYTES);
	if (size < PIPE_BYTES) {
		loop->pipes_most = loop->pipes_made - 1;
		close_pipe(loop, pipe);
		return NULL;
	}
	pipe->room_bytes = (size_t)size;
	return pipe;
}

void
loop_give_pipe(struct loop *loop, struct pipe *pipe)
{
	if (pipe->held_bytes) {
		close_pipe(loop, pipe);
		return;
	}
	pipe->next = loop->pipes;
	loop->pipes = pipe;
}

void
loop_trim(struct loop *loop, uint64_t now_ns)
{
	if (loop->busy_ns == UINT64_MAX)
		return; /* trimmed, and nothing was kept since */
	if (!loop->busy_ns) {
		loop->busy_ns = now_ns;
		return;
	}
	if (now_ns - loop->busy_ns < QUIET_NS)
		return;
	loop->busy_ns = UINT64_MAX;
	free_spares(loop);
	malloc_trim(0);
}
