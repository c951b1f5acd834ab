#include "services.h"

#include <event2/buffer.h>
#include <stdlib.h>

/* One client of the service. It never holds more than one pair's worth of bytes. */
struct echo {
	struct endpoint endpoint;
	struct evbuffer *bytes; /* read and not yet sent back */
	bool ended;             /* the client sends no more */
};

static void
echo_close(struct echo *echo)
{
	if (echo->endpoint.kind)
		echo->endpoint.kind->close(&echo->endpoint);
	if (echo->bytes)
		evbuffer_free(echo->bytes);
	free(echo);
}

/* Reads or sends back what it can. false: it is over. */
static bool
echo_step(struct echo *echo, bool *again)
{
	struct endpoint *endpoint = &echo->endpoint;
	size_t moved;
	enum endpoint_result result = ENDPOINT_WAIT;

	if (evbuffer_get_length(echo->bytes)) {
		if (endpoint->writable)
			result = endpoint->kind->write(endpoint, echo->bytes, SIZE_MAX, &moved,
						       NULL);
	} else if (echo->ended) {
		return false;
	} else if (endpoint->readable) {
		result = endpoint->kind->read(endpoint, echo->bytes, PAIR_BYTES, &moved, NULL);
		echo->ended = result == ENDPOINT_END;
	}
	*again = result == ENDPOINT_MOVED || result == ENDPOINT_END;
	return result != ENDPOINT_BROKEN;
}

static void
on_ready(struct endpoint *endpoint)
{
	struct echo *echo = endpoint->owner;
	bool again;

	do {
		if (!echo_step(echo, &again)) {
			echo_close(echo);
			return;
		}
	} while (again);
	endpoint->want_writable = evbuffer_get_length(echo->bytes) > 0;
	endpoint->want_readable = !endpoint->want_writable;
	endpoint->kind->watch(endpoint, NULL);
}

static int
echo_open(struct endpoint *end, struct loop *loop, const struct facts *facts, struct failure *why)
{
	(void)facts;
	struct echo *echo = calloc(1, sizeof(*echo));
	if (!echo)
		return failure_set(why, FAILURE_MEMORY, "no memory for echo");
	echo->bytes = evbuffer_new();
	if (!echo->bytes) {
		failure_set(why, FAILURE_MEMORY, "no memory for echo");
		goto fail;
	}
	if (pair_open(end, &echo->endpoint, loop, why) < 0)
		goto fail;
	echo->endpoint.owner = echo;
	echo->endpoint.on_ready = on_ready;
	echo->endpoint.want_readable = true;
	return 0;
fail:
	echo_close(echo);
	return -1;
}

const struct service echo_service = { .name = "echo", .open = echo_open };
