#include "canary.h"

#include "clock.h"
#include "services.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <sys/time.h>

static void
let_go(struct canary *canary)
{
	if (canary->endpoint.kind)
		canary->endpoint.kind->abort(&canary->endpoint);
	canary->sent_ns = 0;
	evbuffer_drain(canary->bytes, evbuffer_get_length(canary->bytes));
}

static void
on_ready(struct endpoint *endpoint)
{
	struct canary *canary = endpoint->owner;
	uint64_t now_ns = clock_now_ns();
	size_t moved;

	enum endpoint_result result =
		endpoint->kind->read(endpoint, canary->bytes, 16, &moved, NULL);
	if (result == ENDPOINT_WAIT)
		return;
	if (result == ENDPOINT_MOVED && canary->sent_ns) {
		atomic_store(&canary->took_ns, now_ns - canary->sent_ns);
		atomic_store(&canary->back_ns, now_ns);
		canary->sent_ns = 0;
		evbuffer_drain(canary->bytes, moved);
		return;
	}
	let_go(canary);
}

static int
open_echo(struct canary *canary)
{
	static const struct facts nobody;
	if (echo_service.open(&canary->endpoint, canary->loop, &nobody, NULL) < 0)
		return -1;
	canary->endpoint.owner = canary;
	canary->endpoint.on_ready = on_ready;
	canary->endpoint.want_readable = true;
	return 0;
}

static void
on_beat(evutil_socket_t fd, short what, void *context)
{
	struct canary *canary = context;
	size_t moved;
	(void)fd;
	(void)what;

	if (canary->sent_ns)
		return; /* the last one is still away: `back_ns` grows old */
	if (!canary->endpoint.kind && open_echo(canary) < 0)
		return;
	canary->sent_ns = clock_now_ns();
	if (evbuffer_add(canary->bytes, "c", 1) < 0 ||
	    canary->endpoint.kind->write(&canary->endpoint, canary->bytes, 1, &moved, NULL) !=
		    ENDPOINT_MOVED)
		let_go(canary);
	else
		canary->endpoint.kind->watch(&canary->endpoint, NULL);
}

int
canary_start(struct canary *canary, struct loop *loop, struct failure *why)
{
	struct timeval every = { .tv_sec = CANARY_S };

	canary->loop = loop;
	canary->bytes = evbuffer_new();
	canary->timer = event_new(loop->base, -1, EV_PERSIST, on_beat, canary);
	if (canary->bytes && canary->timer && event_add(canary->timer, &every) == 0)
		return 0;
	canary_stop(canary);
	return failure_set(why, FAILURE_MEMORY, "no memory for a canary");
}

void
canary_stop(struct canary *canary)
{
	if (canary->timer)
		event_free(canary->timer);
	if (canary->bytes)
		let_go(canary);
	if (canary->bytes)
		evbuffer_free(canary->bytes);
	canary->timer = NULL;
	canary->bytes = NULL;
}
