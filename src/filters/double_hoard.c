/*
 * hoard: a test double that changes no byte and keeps all it can until it is told to flush or its
 * source ends. It shows who forgets to flush.
 */
#include "../filter.h"

#ifdef PENSTOCK_TEST_DOUBLES
#include <event2/buffer.h>
#include <stdlib.h>

struct hoard {
	struct evbuffer *taken[FILTER_FLOWS];
};

static void
hoard_close(void *state)
{
	struct hoard *hoard = state;
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		if (hoard->taken[flow])
			evbuffer_free(hoard->taken[flow]);
	}
	free(hoard);
}

static void *
hoard_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	(void)conf;
	(void)side;
	(void)facts;
	struct hoard *hoard = calloc(1, sizeof(*hoard));
	if (!hoard)
		goto fail;
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		hoard->taken[flow] = evbuffer_new();
		if (!hoard->taken[flow])
			goto fail;
	}
	return hoard;
fail:
	if (hoard)
		hoard_close(hoard);
	failure_set(why, FAILURE_MEMORY, "no memory for hoard");
	return NULL;
}

/* Moves at most `most` bytes; returns how many. */
static size_t
move(struct evbuffer *from, struct evbuffer *to, size_t most)
{
	int moved = most ? evbuffer_remove_buffer(from, to, most) : 0;
	return moved > 0 ? (size_t)moved : 0;
}

static enum filter_result
hoard_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	struct evbuffer *taken = ((struct hoard *)state)->taken[flow];
	size_t moved = move(io->src, taken, FILTER_KEPT_BYTES - evbuffer_get_length(taken));

	/* Also when full: what it keeps is bounded (rule 5). */
	if (io->flush != FILTER_NORMAL || evbuffer_get_length(taken) == FILTER_KEPT_BYTES)
		moved += move(taken, io->dst, io->room_bytes);
	if (moved)
		return FILTER_MORE;
	if (io->flush == FILTER_FINISHED && !evbuffer_get_length(taken) &&
	    !evbuffer_get_length(io->src))
		return FILTER_END;
	return FILTER_REST;
}

static size_t
hoard_kept(const void *state)
{
	const struct hoard *hoard = state;
	return evbuffer_get_length(hoard->taken[FILTER_IN]) +
	       evbuffer_get_length(hoard->taken[FILTER_OUT]);
}

const struct filter_type double_hoard_filter = {
	.name = "hoard",
	.open = hoard_open,
	.step = hoard_step,
	.kept = hoard_kept,
	.close = hoard_close,
};
#endif
