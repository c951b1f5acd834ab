#include "load.h"
#include "sockets.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct flow {
	int fd;
	uint64_t bytes;                         /* of filler */
	unsigned char mark[SOCKETS_MARK_BYTES]; /* the last bytes received */
	size_t mark_bytes;
};

struct bulk {
	int epoll;
	bool up;
	bool stopping;
	unsigned int open;
	size_t block_bytes; /* of one write */
	uint64_t bytes;     /* of all flows */
	struct flow *flows;
};

static void
flow_end(struct bulk *bulk, struct flow *flow)
{
	errno = 0;
	if (flow->mark_bytes < SOCKETS_MARK_BYTES || !bulk->stopping)
		sockets_die("a bulk connection ended early");
	if (!bulk->up)
		flow->bytes -= SOCKETS_MARK_BYTES;
	if (sockets_mark_load(flow->mark) != flow->bytes)
		sockets_die("the ends of a bulk connection counted different bytes");
	close(flow->fd);
	bulk->open--;
}

/* Keeps the last SOCKETS_MARK_BYTES of everything that was received. */
static void
remember(struct flow *flow, const unsigned char *block, size_t size)
{
	if (size >= SOCKETS_MARK_BYTES) {
		memcpy(flow->mark, block + size - SOCKETS_MARK_BYTES, SOCKETS_MARK_BYTES);
		flow->mark_bytes = SOCKETS_MARK_BYTES;
		return;
	}
	size_t kept = flow->mark_bytes;
	if (kept + size > SOCKETS_MARK_BYTES)
		kept = SOCKETS_MARK_BYTES - size;
	memmove(flow->mark, flow->mark + flow->mark_bytes - kept, kept);
	memcpy(flow->mark + kept, block, size);
	flow->mark_bytes = kept + size;
}

/* The last bytes matter only after the stop, since the target sends its count in answer to that. */
static void
receive(struct bulk *bulk, struct flow *flow)
{
	static unsigned char block[SOCKETS_BLOCK_BYTES];
	ssize_t n =
		bulk->stopping ? recv(flow->fd, block, sizeof(block), 0) : sockets_drop(flow->fd);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0)
		sockets_die("a bulk connection");
	if (n == 0) {
		flow_end(bulk, flow);
		return;
	}
	if (bulk->stopping)
		remember(flow, block, (size_t)n);
	if (!bulk->up) {
		flow->bytes += (uint64_t)n;
		bulk->bytes += (uint64_t)n;
	}
}

static void
on_flow(struct bulk *bulk, struct flow *flow, uint32_t events)
{
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		receive(bulk, flow);
		return;
	}
	if (bulk->stopping)
		return;
	ssize_t n = sockets_send_filler(flow->fd, bulk->block_bytes);
	if (n < 0 && errno != EAGAIN)
		sockets_die("a bulk connection");
	if (n > 0) {
		flow->bytes += (uint64_t)n;
		bulk->bytes += (uint64_t)n;
	}
}

/* A sink is told by the end of the stream, a source by one byte. */
static void
stop_all(struct bulk *bulk, unsigned int connections)
{
	bulk->stopping = true;
	for (unsigned int i = 0; i < connections; i++) {
		struct flow *flow = &bulk->flows[i];
		if (bulk->up) {
			sockets_rewatch(bulk->epoll, flow->fd, EPOLLIN, flow);
			shutdown(flow->fd, SHUT_WR);
		} else if (send(flow->fd, "", 1, MSG_NOSIGNAL) != 1) {
			sockets_die("the stop of a bulk connection");
		}
	}
}

static void
bulk_run(const struct options *options, bool up, struct bulk_result *result)
{
	struct bulk bulk = { .epoll = sockets_epoll(),
			     .up = up,
			     .open = options->connections,
			     .block_bytes = options->block_bytes };
	struct epoll_event events[64];

	bulk.flows = calloc(options->connections, sizeof(*bulk.flows));
	if (!bulk.flows)
		sockets_die("memory");
	uint64_t began_ns = sockets_now_ns();
	for (unsigned int i = 0; i < options->connections; i++) {
		bulk.flows[i].fd = sockets_connect(&options->to);
		sockets_watch(bulk.epoll, bulk.flows[i].fd, up ? EPOLLIN | EPOLLOUT : EPOLLIN,
			      &bulk.flows[i]);
	}
	while (bulk.open) {
		int count = epoll_wait(bulk.epoll, events, 64, 100);
		for (int i = 0; i < count; i++)
			on_flow(&bulk, events[i].data.ptr, events[i].events);
		if (!bulk.stopping && (bulk.bytes >= options->bytes ||
				       sockets_now_ns() - began_ns >= options->duration_ns))
			stop_all(&bulk, options->connections);
	}
	result->elapsed_ns = sockets_now_ns() - began_ns;
	result->bytes = bulk.bytes;
	free(bulk.flows);
	close(bulk.epoll);
}

void
bulk_up(const struct options *options, struct bulk_result *result)
{
	bulk_run(options, true, result);
}

void
bulk_down(const struct options *options, struct bulk_result *result)
{
	bulk_run(options, false, result);
}
