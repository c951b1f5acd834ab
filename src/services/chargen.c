#include "services.h"

#include <event2/buffer.h>
#include <pthread.h>
#include <stdlib.h>

/*
 * The pattern of RFC 864: the 95 printing characters in a ring, 72 of them a line, each line one
 * character further on. It repeats after 95 lines; some whole periods make one block, which every
 * client is sent by reference, again and again.
 */
#define RING          95
#define LINE_BYTES    (72 + 2)
#define PERIOD_BYTES  (RING * LINE_BYTES)
#define BLOCK_PERIODS 9

static char block[BLOCK_PERIODS * PERIOD_BYTES];
static pthread_once_t block_once = PTHREAD_ONCE_INIT;

/* One client of the service. */
struct chargen {
	struct endpoint endpoint;
	struct evbuffer *bytes; /* one block on its way; empty between two calls */
	struct evbuffer *waste; /* the same for what comes */
};

static void
make_block(void)
{
	char *to = block;

	for (int line = 0; line < BLOCK_PERIODS * RING; line++) {
		for (int column = 0; column < 72; column++)
			*to++ = (char)(' ' + (line + column) % RING);
		*to++ = '\r';
		*to++ = '\n';
	}
}

static void
chargen_close(struct chargen *chargen)
{
	if (chargen->endpoint.kind)
		chargen->endpoint.kind->close(&chargen->endpoint);
	if (chargen->bytes)
		evbuffer_free(chargen->bytes);
	if (chargen->waste)
		evbuffer_free(chargen->waste);
	free(chargen);
}

/* false: the client is gone, or wants no more. */
static bool
ignore_input(struct chargen *chargen)
{
	struct endpoint *endpoint = &chargen->endpoint;
	enum endpoint_result result;
	size_t moved;

	do {
		result = endpoint->kind->read(endpoint, chargen->waste, PAIR_BYTES, &moved, NULL);
		evbuffer_drain(chargen->waste, moved);
	} while (result == ENDPOINT_MOVED);
	return result == ENDPOINT_WAIT;
}

/* Fills the pair. false: the client is gone, or there is no memory. */
static bool
send_pattern(struct chargen *chargen)
{
	struct endpoint *endpoint = &chargen->endpoint;
	enum endpoint_result result = ENDPOINT_MOVED;
	size_t moved;

	while (endpoint->writable && result == ENDPOINT_MOVED) {
		if (!evbuffer_get_length(chargen->bytes) &&
		    evbuffer_add_reference(chargen->bytes, block, sizeof(block), NULL, NULL) < 0) {
			/* The pattern has no end: this must not look like one. */
			endpoint->kind->abort(endpoint);
			return false;
		}
		result = endpoint->kind->write(endpoint, chargen->bytes, SIZE_MAX, &moved, NULL);
	}
	/* All or nothing was taken. Even a reference takes a KiB of libevent's. */
	evbuffer_drain(chargen->bytes, evbuffer_get_length(chargen->bytes));
	return result != ENDPOINT_BROKEN;
}

static void
on_ready(struct endpoint *endpoint)
{
	struct chargen *chargen = endpoint->owner;

	if (!ignore_input(chargen) || !send_pattern(chargen)) {
		chargen_close(chargen);
		return;
	}
	endpoint->kind->watch(endpoint, NULL);
}

static int
chargen_open(struct endpoint *end, struct loop *loop, const struct facts *facts,
	     struct failure *why)
{
	(void)facts;
	struct chargen *chargen = calloc(1, sizeof(*chargen));
	if (!chargen)
		return failure_set(why, FAILURE_MEMORY, "no memory for chargen");
	pthread_once(&block_once, make_block);
	chargen->bytes = evbuffer_new();
	chargen->waste = evbuffer_new();
	if (!chargen->bytes || !chargen->waste) {
		failure_set(why, FAILURE_MEMORY, "no memory for chargen");
		goto fail;
	}
	if (pair_open(end, &chargen->endpoint, loop, why) < 0)
		goto fail;
	chargen->endpoint.owner = chargen;
	chargen->endpoint.on_ready = on_ready;
	chargen->endpoint.want_readable = true;
	chargen->endpoint.want_writable = true;
	chargen->endpoint.kind->watch(&chargen->endpoint, NULL); /* it speaks first */
	return 0;
fail:
	chargen_close(chargen);
	return -1;
}

const struct service chargen_service = { .name = "chargen", .open = chargen_open };
