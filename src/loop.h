/*
 * loop: what the modules of one worker share on its thread: the event base, its mailbox, scratch
 * memory for reading, pipes for splicing, tasks to run in the next turn. Knows nothing of connections.
 */
#ifndef PENSTOCK_LOOP_H
#define PENSTOCK_LOOP_H

#include "failure.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct evbuffer;
struct event;
struct event_base;
struct mailbox;

/* Something to be run in a later turn of the loop, once for each time it is asked for. Embedded in its
 * owner; zero it before first use. */
struct task {
	struct task *next;
	unsigned int turn; /* that it was queued in */
	bool queued;
	bool is_heavy; /* queued, or just run, among the heavy ones */
	void (*run)(struct task *task);
};

/* The most that one read brings in. Bytes land in a block of the loop's and are passed on from there;
 * what could not be passed on at once stays in the block by reference, or, if it is little, is copied
 * out so that it does not hold the whole block. An idle connection holds none. */
#define BLOCK_BYTES ((size_t)256 * 1024)

/* A kernel pipe to splice through. Empty whenever it is in the pool. */
struct pipe {
	struct pipe *next;
	int in, out;       /* write end, read end */
	size_t held_bytes; /* spliced in and not yet out */
	size_t room_bytes; /* its size as the kernel gave it */
};

/* Empty evbuffers that are kept: one run of a connection with filters takes up to eight. */
#define LOOP_BUFFERS 16

struct task_list {
	struct task *first, **end;
};

struct block;

struct loop {
	struct event_base *base;
	struct mailbox *mailbox;

	struct task_list tasks; /* for the next turn */
	struct task_list heavy; /* first come, first served, for some time in each turn */
	unsigned int turns;     /* in which tasks were run, so far; wraps */
	struct event *turn;

	/* When its turns began: this one's look for events, what it does since then, and what the turn before
	 * did. 0 = nothing yet, or nobody says when. */
	uint64_t looked_ns, woke_ns, woke_before_ns;

	/* What connections did since the last look, a bit for each loop_run, and how many turns in a row that was
	 * nothing but bulk. */
	uint8_t runs, bulk_turns;
	bool has_rested;     /* in front of this turn, to have more than a piece */
	uint64_t message_ns; /* when a connection last did anything else */

	struct block *block;  /* where the next read lands; NULL = take one */
	struct block *blocks; /* free ones */
	unsigned int blocks_free;

	struct evbuffer *buffers[LOOP_BUFFERS]; /* empty ones, to be used again */
	unsigned int buffers_spare;

	struct pipe *pipes; /* free ones */
	unsigned int pipes_made, pipes_most;
	int pipes_below; /* they are made of descriptors below it; 0 = of any */

	/* Memory kept for connections by this worker: themselves, pinned blocks, small rests, pairs and the
	 * bytes in them, what filters hold; and the worker's share of max_memory, 0 = unlimited. */
	size_t kept_bytes, kept_most;
	uint64_t
		busy_ns; /* when memory was last taken: the allocator is trimmed a quiet minute later */
};

/* Opens a loop; it must be zeroed. On failure it is closed again. Its thread, or before that runs. */
int loop_open(struct loop *loop, struct failure *why);
void loop_close(struct loop *loop);

/* To be called in front of each turn of the event loop: loop_busy_ns and loop_run_heavy measure from there. Where the
 * turns before brought bulk alone, in pieces (loop_note_run), it rests first: for LOOP_REST_NS and what the kernel adds,
 * or, where nothing but bulk came for LOOP_SILENCE_NS, for LOOP_LONG_REST_NS. */
void loop_look(struct loop *loop);
/* What a connection did in this turn. */
enum loop_run {
	LOOP_RUN_MESSAGE, /* anything else */
	LOOP_RUN_BULK,    /* read some more of what long since came one way alone */
	LOOP_RUN_PIECE,   /* the same, little, and that was all that was there */
};
/* A worker that keeps up with a fast sender is woken for each piece that this sends, and pays more for that than for
 * the bytes; for sender and receiver it is the same. A rest lets pieces come together. */
static inline void
loop_note_run(struct loop *loop, enum loop_run run)
{
	loop->runs |= (uint8_t)(1u << run);
}
#define LOOP_REST_NS      UINT64_C(30000)
#define LOOP_LONG_REST_NS UINT64_C(240000)
#define LOOP_SILENCE_NS   UINT64_C(100000000)
/* Something that was waited for since since_ns is there, and is looked after now: how much of that time the loop
 * was at work for others instead of looking. What came while it was at work counts as having come at once: that
 * is wrong by one turn at most. */
uint64_t loop_busy_ns(struct loop *loop, uint64_t since_ns, uint64_t now_ns);

/* Queues the task for the next turn; nothing if it is queued already. O(1). */
void loop_run_later(struct loop *loop, struct task *task);
/* Queues one that takes long. In the order they came, one of these runs in each turn, and more of them for a
 * millisecond or as long as the rest of the turn took (loop_look): what comes from the sockets does not wait for
 * all of them, nor they for it. One that queues itself again waits for a later turn. Nothing if it is queued already,
 * there or above. */
void loop_run_heavy(struct loop *loop, struct task *task);
/* Takes it out of the queue again; a task not queued is left alone. O(queued). */
void loop_forget(struct loop *loop, struct task *task);

/* BLOCK_BYTES of scratch memory to read into, valid until the next call of this, of loop_keep or of
 * the event loop. NULL without memory. */
void *loop_scratch(struct loop *loop);

/* Appends `bytes` bytes to `dst` that begin at `from`, inside the scratch memory last given, without
 * copying them if they are many. -1 without memory. */
int loop_keep(struct loop *loop, struct evbuffer *dst, const void *from, size_t bytes,
	      struct failure *why);

/* How much one read may bring in now: BLOCK_BYTES, less above three quarters of the memory, 0 at the
 * cap: then only what can be passed on at once may be read. */
size_t loop_read_most(const struct loop *loop);

/* An empty evbuffer, or NULL without memory. Cheaper than a new one: filters need several for each piece that
 * passes, and an idle connection holds none. */
struct evbuffer *loop_take_buffer(struct loop *loop);
/* Gives it back, with what is in it, to be freed. NULL is allowed. */
void loop_give_buffer(struct loop *loop, struct evbuffer *buffer);

/* An empty pipe from the pool, or NULL if none is to be had (all in use, or the kernel refuses). */
struct pipe *loop_take_pipe(struct loop *loop);
/* Gives it back; one that still holds bytes is closed. */
void loop_give_pipe(struct loop *loop, struct pipe *pipe);

/* Gives memory back to the system if the last minute was quiet. Called about every minute. */
void loop_trim(struct loop *loop, uint64_t now_ns);

#endif
