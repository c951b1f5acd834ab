#include "services.h"

#include <event2/buffer.h>
#include <stdlib.h>

struct discard {
	struct endpoint endpoint;
	struct evbuffer *waste; /* always empty between two calls */
};

static void
discard_close(struct discard *discard)
{
	if (discard->endpoint.kind)
		discard->endpoint.kind->close(&discard->endpoint);
	if (discard->waste)
		evbuffer_free(discard->waste);
	free(discard);
}

static void
on_ready(struct endpoint *endpoint)
{
	struct discard *discard = endpoint->owner;
	enum endpoint_result result;
	size_t moved;

	do {
		result = endpoint->kind->read(endpoint, discard->waste, PAIR_BYTES, &moved, NULL);
		evbuffer_drain(discard->waste, moved);
	} while (result == ENDPOINT_MOVED);
	if (result == ENDPOINT_END || result == ENDPOINT_BROKEN)
		discard_close(discard);
}

static int
discard_open(struct endpoint *end, struct loop *loop, const struct facts *facts,
	     struct failure *why)
{
	(void)facts;
	struct discard *discard = calloc(1, sizeof(*discard));
	if (!discard)
		return failure_set(why, FAILURE_MEMORY, "no memory for discard");
	discard->waste = evbuffer_new();
	if (!discard->waste) {
		failure_set(why, FAILURE_MEMORY, "no memory for discard");
		goto fail;
	}
	if (pair_open(end, &discard->endpoint, loop, why) < 0)
		goto fail;
	discard->endpoint.owner = discard;
	discard->endpoint.on_ready = on_ready;
	discard->endpoint.want_readable = true;
	return 0;
fail:
	discard_close(discard);
	return -1;
}

const struct service discard_service = { .name = "discard", .open = discard_open };
