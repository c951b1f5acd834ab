/*
 * stutter: a test double that changes no byte and passes them on in random pieces: steps that only
 * take, steps that only give, mostly small ones. It cuts for its neighbours what a quiet network
 * delivers whole. A seed repeats itself exactly.
 */
#include "../filter.h"

#ifdef PENSTOCK_TEST_DOUBLES
#include <event2/buffer.h>
#include <stdint.h>
#include <stdlib.h>

struct stutter_conf {
	uint64_t seed;
};

struct stutter {
	uint64_t random;
	struct evbuffer *taken[FILTER_FLOWS]; /* and not given yet */
};

static const struct keyword keywords[] = {
	{
		.name = "seed",
		.type = KEYWORD_COUNT,
		.fallback = "1",
		.most = UINT64_MAX,
		.offset = offsetof(struct stutter_conf, seed),
		.effect = EFFECT_NEW_CONNECTIONS,
		.help = "Where the random sizes of the pieces start.",
	},
	{ .name = NULL },
};

static void
stutter_close(void *state)
{
	struct stutter *stutter = state;
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		if (stutter->taken[flow])
			evbuffer_free(stutter->taken[flow]);
	}
	free(stutter);
}

static void *
stutter_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	const struct stutter_conf *settings = conf;
	(void)facts;
	struct stutter *stutter = calloc(1, sizeof(*stutter));
	if (!stutter)
		goto fail;
	stutter->random = settings->seed * 2 + side;
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		stutter->taken[flow] = evbuffer_new();
		if (!stutter->taken[flow])
			goto fail;
	}
	return stutter;
fail:
	if (stutter)
		stutter_close(stutter);
	failure_set(why, FAILURE_MEMORY, "no memory for stutter");
	return NULL;
}

/* splitmix64 */
static uint64_t
draw(struct stutter *stutter)
{
	uint64_t z = stutter->random += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

/* 0 to most; half of the time at most 8. */
static size_t
piece(struct stutter *stutter, size_t most)
{
	if (most > 8 && draw(stutter) & 1)
		most = 8;
	return (size_t)(draw(stutter) % ((uint64_t)most + 1));
}

static size_t
lesser(size_t a, size_t b)
{
	return a < b ? a : b;
}

static enum filter_result
stutter_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	struct stutter *stutter = state;
	struct evbuffer *taken = stutter->taken[flow];
	size_t had = evbuffer_get_length(taken);
	size_t take_most = lesser(evbuffer_get_length(io->src), FILTER_KEPT_BYTES - had);
	size_t give_most = lesser(had, io->room_bytes);

	size_t give = piece(stutter, give_most);
	size_t take = piece(stutter, take_most);
	/* A step that moved nothing would be at rest for good (rule 3). */
	if (!give && !take && give_most)
		give = 1;
	else if (!give && !take && take_most)
		take = 1;

	evbuffer_remove_buffer(taken, io->dst, give);
	evbuffer_remove_buffer(io->src, taken, take);
	if (give || take)
		return FILTER_MORE;
	if (io->flush == FILTER_FINISHED && !had && !evbuffer_get_length(io->src))
		return FILTER_END;
	return FILTER_REST;
}

static size_t
stutter_kept(const void *state)
{
	const struct stutter *stutter = state;
	return evbuffer_get_length(stutter->taken[FILTER_IN]) +
	       evbuffer_get_length(stutter->taken[FILTER_OUT]);
}

const struct filter_type double_stutter_filter = {
	.name = "stutter",
	.conf_bytes = sizeof(struct stutter_conf),
	.keywords = keywords,
	.open = stutter_open,
	.step = stutter_step,
	.kept = stutter_kept,
	.close = stutter_close,
};
#endif
