/*
 * fail_after: a test double that changes no byte, passes a set number of them, both flows counted
 * together, and fails when one more comes.
 */
#include "../filter.h"

#ifdef PENSTOCK_TEST_DOUBLES
#include <event2/buffer.h>
#include <stdint.h>
#include <stdlib.h>

struct fail_after_conf {
	uint64_t bytes;
};

struct fail_after {
	uint64_t bytes, left_bytes;
};

static const struct keyword keywords[] = {
	{
		.name = "bytes",
		.type = KEYWORD_SIZE,
		.fallback = "1MiB",
		.most = UINT64_MAX,
		.offset = offsetof(struct fail_after_conf, bytes),
		.effect = EFFECT_NEW_CONNECTIONS,
		.unit = "bytes",
		.help = "How many bytes pass before the failure.",
	},
	{ .name = NULL },
};

static void *
fail_after_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	const struct fail_after_conf *settings = conf;
	(void)side;
	(void)facts;
	struct fail_after *state = malloc(sizeof(*state));
	if (!state) {
		failure_set(why, FAILURE_MEMORY, "no memory for fail_after");
		return NULL;
	}
	state->bytes = state->left_bytes = settings->bytes;
	return state;
}

static enum filter_result
fail_after_step(void *opaque, enum filter_flow flow, struct filter_io *io)
{
	struct fail_after *state = opaque;
	size_t length = evbuffer_get_length(io->src);
	size_t most = length < io->room_bytes ? length : io->room_bytes;
	(void)flow;

	if (length && !state->left_bytes) {
		failure_set(io->why, FAILURE_PROTOCOL, "fail_after: %llu bytes have passed",
			    (unsigned long long)state->bytes);
		return FILTER_FAIL;
	}
	if (most > state->left_bytes)
		most = (size_t)state->left_bytes;
	if (most) {
		evbuffer_remove_buffer(io->src, io->dst, most);
		state->left_bytes -= most;
		return FILTER_MORE;
	}
	return io->flush == FILTER_FINISHED && !length ? FILTER_END : FILTER_REST;
}

const struct filter_type double_fail_after_filter = {
	.name = "fail_after",
	.conf_bytes = sizeof(struct fail_after_conf),
	.keywords = keywords,
	.open = fail_after_open,
	.step = fail_after_step,
	.close = free,
};
#endif
