#include "compression.h"

#include <event2/buffer.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Most of one reservation: less than libevent's own header below a power of two. */
#define OUT_MOST_BYTES (64 * 1024 - 64)
#define OUT_SOME_BYTES (1024 - 64)

/* `adaptive`: a sample that gains less than a sixteenth does not pay. What is stored before the next
 * try doubles from try to try, so that data which never pays costs one sample in 256. */
#define SAMPLE_BYTES      (64 * 1024)
#define GAIN_SHARE        16
#define STORE_FIRST_BYTES (512 * 1024)
#define STORE_MOST_BYTES  (16 * 1024 * 1024)

struct flow {
	void *coder;          /* NULL = not yet, or no more */
	size_t waiting_bytes; /* out: taken since the last flush was done */
	bool is_flushing;     /* out: a flush is not done yet */
	bool is_full;         /* in: the last pass used all its space: there may be more */
	bool is_done;         /* in: behind the end mark */
};

struct adaption {
	size_t sampled_bytes, gave_bytes; /* of the sample that is being taken */
	size_t store_left_bytes;          /* 0 = a sample is being taken */
	size_t store_bytes;               /* of the last time */
};

struct compression {
	const struct compression_format *format;
	const struct compression_conf *conf;
	bool is_counted; /* in the totals: not the daemon's own checks */
	struct flow flows[FILTER_FLOWS];
	struct adaption adaption;
};

static struct {
	atomic_uint_fast64_t plain_bytes, packed_bytes, stored_bytes;
} totals[COMPRESSION_KINDS][FILTER_FLOWS];

int
compression_configure(void *opaque, struct failure *why)
{
	struct compression_conf *conf = opaque;
	if (!conf->window_bytes || conf->window_bytes & (conf->window_bytes - 1))
		return failure_set(why, FAILURE_CONFIG,
				   "window is %llu bytes; it must be a power of two",
				   (unsigned long long)conf->window_bytes);
	conf->window_bits = __builtin_ctzll(conf->window_bytes);
	return 0;
}

void *
compression_open(const struct compression_format *format, const struct compression_conf *conf,
		 const struct facts *facts, struct failure *why)
{
	struct compression *compression = calloc(1, sizeof(*compression));
	if (!compression) {
		failure_set(why, FAILURE_MEMORY, "no memory for %s", format->name);
		return NULL;
	}
	compression->format = format;
	compression->conf = conf;
	compression->is_counted = !facts->is_own;
	return compression;
}

static void
let_go(struct compression *compression, enum filter_flow flow)
{
	if (compression->flows[flow].coder)
		compression->format->coders[flow].close(compression->flows[flow].coder);
	compression->flows[flow].coder = NULL;
}

void
compression_close(void *state)
{
	let_go(state, FILTER_IN);
	let_go(state, FILTER_OUT);
	free(state);
}

size_t
compression_kept(const void *state)
{
	return ((const struct compression *)state)->flows[FILTER_OUT].waiting_bytes;
}

size_t
compression_held(const void *state)
{
	const struct compression *compression = state;
	size_t bytes = 0;
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		if (compression->flows[flow].coder)
			bytes += compression->format->coders[flow].held(
				compression->flows[flow].coder);
	}
	return bytes;
}

struct compression_totals
compression_read_totals(enum compression_kind kind, enum filter_flow flow)
{
	return (struct compression_totals){
		.plain_bytes =
			atomic_load_explicit(&totals[kind][flow].plain_bytes, memory_order_relaxed),
		.packed_bytes = atomic_load_explicit(&totals[kind][flow].packed_bytes,
						     memory_order_relaxed),
		.stored_bytes = atomic_load_explicit(&totals[kind][flow].stored_bytes,
						     memory_order_relaxed),
	};
}

static size_t
lesser(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* --- One call of a coder -------------------------------------------------------------------- */

/* How one call went. */
struct run {
	enum compression_result result;
	size_t taken_bytes, given_bytes;
	bool is_full; /* all space was used */
};

static void
count(const struct compression *compression, enum filter_flow flow, const struct run *run)
{
	size_t plain = flow == FILTER_OUT ? run->taken_bytes : run->given_bytes;
	size_t packed = flow == FILTER_OUT ? run->given_bytes : run->taken_bytes;
	enum compression_kind kind = compression->format->kind;

	if (!compression->is_counted)
		return;
	atomic_fetch_add_explicit(&totals[kind][flow].plain_bytes, plain, memory_order_relaxed);
	atomic_fetch_add_explicit(&totals[kind][flow].packed_bytes, packed, memory_order_relaxed);
	if (flow == FILTER_OUT && compression->adaption.store_left_bytes)
		atomic_fetch_add_explicit(&totals[kind][flow].stored_bytes, plain,
					  memory_order_relaxed);
}

/* Room for what the coder will probably give; if it is more there will be another pass. */
static int
reserve(enum filter_flow flow, struct filter_io *io, size_t in_bytes, struct evbuffer_iovec *space)
{
	size_t wanted = OUT_SOME_BYTES + (flow == FILTER_IN ? 4 * in_bytes : in_bytes);
	size_t most = io->room_bytes < COMPRESSION_OUT_LEAST_BYTES ? COMPRESSION_OUT_LEAST_BYTES
								   : io->room_bytes;
	wanted = lesser(lesser(wanted, OUT_MOST_BYTES), most);
	if (evbuffer_reserve_space(io->dst, (ev_ssize_t)wanted, space, 1) != 1)
		return -1;
	space->iov_len = lesser(space->iov_len, most);
	return 0;
}

static enum compression_result
no_memory(const struct compression *compression, struct failure *why)
{
	failure_set(why, FAILURE_MEMORY, "no memory for %s", compression->format->name);
	return COMPRESSION_FAILED;
}

/* Lets the coder take of the front of src, `front`, and give to dst. */
static struct run
run(struct compression *compression, enum filter_flow flow, struct filter_io *io,
    const struct evbuffer_iovec *front, enum compression_goal goal)
{
	const struct compression_coder *type = &compression->format->coders[flow];
	void **coder = &compression->flows[flow].coder;
	struct run run = { .result = COMPRESSION_FAILED };
	struct evbuffer_iovec space;

	if (!*coder)
		*coder = type->open(compression->conf);
	if (!*coder || reserve(flow, io, front->iov_len, &space)) {
		run.result = no_memory(compression, io->why);
		return run;
	}
	struct compression_pass pass = {
		.in = front->iov_base,
		.in_bytes = front->iov_len,
		.out = space.iov_base,
		.out_bytes = space.iov_len,
		.goal = goal,
		.stores = flow == FILTER_OUT && compression->adaption.store_left_bytes,
	};
	run.result = type->run(*coder, &pass, io->why);
	run.taken_bytes = front->iov_len - pass.in_bytes;
	run.given_bytes = space.iov_len - pass.out_bytes;
	run.is_full = !pass.out_bytes;

	space.iov_len = run.given_bytes;
	if (run.given_bytes && evbuffer_commit_space(io->dst, &space, 1)) {
		run.result = no_memory(compression, io->why);
		return run;
	}
	evbuffer_drain(io->src, run.taken_bytes);
	io->room_bytes -= lesser(io->room_bytes, run.given_bytes);
	count(compression, flow, &run);
	return run;
}

/* The first extent of src, at most `most_bytes` of it. */
static struct evbuffer_iovec
front_of(struct evbuffer *src, size_t most_bytes)
{
	struct evbuffer_iovec front = { .iov_base = NULL, .iov_len = 0 };
	if (evbuffer_peek(src, 1, NULL, &front, 1) < 1)
		front.iov_len = 0;
	front.iov_len = lesser(front.iov_len, most_bytes);
	return front;
}

/* --- Out: packing --------------------------------------------------------------------------- */

/* A flush is done: does compressing still pay, or is it time to try again? */
static void
adapt(struct adaption *adaption)
{
	size_t sampled = adaption->sampled_bytes;
	if (adaption->store_left_bytes) {
		adaption->store_left_bytes -= lesser(adaption->store_left_bytes, sampled);
	} else if (sampled < SAMPLE_BYTES) {
		return;
	} else if (adaption->gave_bytes <= sampled - sampled / GAIN_SHARE) {
		adaption->store_bytes = 0;
	} else {
		size_t twice = 2 * adaption->store_bytes;
		adaption->store_bytes = twice ? lesser(twice, STORE_MOST_BYTES) : STORE_FIRST_BYTES;
		adaption->store_left_bytes = adaption->store_bytes;
	}
	adaption->sampled_bytes = adaption->gave_bytes = 0;
}

/* What the packer is to reach with `front`. Also in the middle of a stream it may hold no more than
 * FILTER_KEPT_BYTES of what it took; that costs less than half a percent of what is gained. */
static enum compression_goal
goal_of(const struct flow *packing, const struct filter_io *io, size_t front_bytes)
{
	bool is_all = front_bytes == evbuffer_get_length(io->src);
	if (is_all && io->flush == FILTER_FINISHED)
		return COMPRESSION_FINISH;
	if (packing->is_flushing || (is_all && io->flush == FILTER_FLUSH) ||
	    packing->waiting_bytes + front_bytes >= FILTER_KEPT_BYTES)
		return COMPRESSION_FLUSH;
	return COMPRESSION_GO_ON;
}

static void
note_packed(struct compression *compression, const struct run *run, enum compression_goal goal)
{
	struct flow *packing = &compression->flows[FILTER_OUT];
	packing->waiting_bytes += run->taken_bytes;
	packing->is_flushing = goal == COMPRESSION_FLUSH && run->result == COMPRESSION_ON;
	compression->adaption.sampled_bytes += run->taken_bytes;
	compression->adaption.gave_bytes += run->given_bytes;
	if (run->result != COMPRESSION_DONE || goal == COMPRESSION_GO_ON)
		return;
	packing->waiting_bytes = 0;
	if (compression->conf->adaptive)
		adapt(&compression->adaption);
}

static enum filter_result
pack(struct compression *compression, struct filter_io *io)
{
	struct flow *packing = &compression->flows[FILTER_OUT];
	while (io->room_bytes) {
		struct evbuffer_iovec front =
			front_of(io->src, FILTER_KEPT_BYTES - packing->waiting_bytes);
		enum compression_goal goal = goal_of(packing, io, front.iov_len);
		if (!front.iov_len && goal != COMPRESSION_FINISH && !packing->waiting_bytes)
			return FILTER_REST;
		if (!front.iov_len && goal == COMPRESSION_GO_ON)
			return FILTER_REST;
		struct run done = run(compression, FILTER_OUT, io, &front, goal);
		if (done.result == COMPRESSION_FAILED)
			return FILTER_FAIL;
		note_packed(compression, &done, goal);
		if (done.result == COMPRESSION_DONE && goal == COMPRESSION_FINISH) {
			let_go(compression, FILTER_OUT);
			return FILTER_END;
		}
		if (done.result == COMPRESSION_ON && !done.taken_bytes && !done.given_bytes)
			return FILTER_REST;
	}
	return FILTER_REST;
}

/* --- In: unpacking -------------------------------------------------------------------------- */

static enum filter_result
behind_the_mark(const struct compression *compression, const struct filter_io *io)
{
	if (evbuffer_get_length(io->src)) {
		failure_set(io->why, FAILURE_PROTOCOL, "%s: bytes behind the end of the stream",
			    compression->format->name);
		return FILTER_FAIL;
	}
	return io->flush == FILTER_FINISHED ? FILTER_END : FILTER_REST;
}

static enum filter_result
unpack(struct compression *compression, struct filter_io *io)
{
	struct flow *unpacking = &compression->flows[FILTER_IN];
	while (!unpacking->is_done && io->room_bytes) {
		struct evbuffer_iovec front = front_of(io->src, FILTER_KEPT_BYTES);
		if (!front.iov_len && !unpacking->is_full) {
			if (io->flush != FILTER_FINISHED)
				return FILTER_REST;
			failure_set(io->why, FAILURE_TRUNCATED,
				    "%s: the stream ends without its end mark",
				    compression->format->name);
			return FILTER_FAIL;
		}
		struct run done = run(compression, FILTER_IN, io, &front, COMPRESSION_GO_ON);
		if (done.result == COMPRESSION_FAILED)
			return FILTER_FAIL;
		unpacking->is_full = done.is_full;
		unpacking->is_done = done.result == COMPRESSION_DONE;
	}
	if (!unpacking->is_done)
		return FILTER_REST;
	let_go(compression, FILTER_IN);
	return behind_the_mark(compression, io);
}

enum filter_result
compression_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	struct filter_io rest = *io;
	return flow == FILTER_OUT ? pack(state, &rest) : unpack(state, &rest);
}
