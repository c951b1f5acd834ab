#include "load.h"
#include "sockets.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

struct watched {
	int fd;
	uint64_t bytes; /* since all had settled */
	uint64_t last_ns;
};

struct watch {
	const struct options *options;
	struct watch_result *result;
	struct watched *flows;
	uint64_t settled_ns, last_ns;
	bool is_settled;
	double level; /* of a bucket that leaks the rate */
};

/* The level of such a bucket is the worst of all windows that end now. */
static void
note(struct watch *watch, struct watched *flow, uint64_t bytes, uint64_t now_ns)
{
	double leaked = watch->options->rate * (double)(now_ns - watch->last_ns) / 1e9;

	watch->level = (leaked < watch->level ? watch->level - leaked : 0) + (double)bytes;
	watch->last_ns = now_ns;
	if (watch->level > watch->result->worst_bytes)
		watch->result->worst_bytes = watch->level;
	if (!watch->is_settled)
		return;
	if (flow->last_ns)
		histogram_add(&watch->result->wait_ns, now_ns - flow->last_ns);
	flow->last_ns = now_ns;
	flow->bytes += bytes;
}

static void
sum_up(struct watch *watch, uint64_t now_ns)
{
	unsigned int count = watch->options->connections;
	double sum = 0, squares = 0;

	for (unsigned int i = 0; i < count; i++) {
		double bytes = (double)watch->flows[i].bytes;
		sum += bytes;
		squares += bytes * bytes;
	}
	watch->result->jain = squares > 0 ? sum * sum / count / squares : 0;
	watch->result->settled_bytes = (uint64_t)sum;
	watch->result->rate = sum / ((double)(now_ns - watch->settled_ns) / 1e9);
}

void
watch_run(const struct options *options, struct watch_result *result)
{
	struct watch watch = { .options = options, .result = result };
	struct epoll_event events[256];
	int epoll = sockets_epoll();

	watch.flows = calloc(options->connections, sizeof(*watch.flows));
	if (!watch.flows)
		sockets_die("memory");
	uint64_t now_ns;
	watch.last_ns = sockets_now_ns();
	for (unsigned int i = 0; i < options->connections; i++) {
		watch.flows[i].fd = sockets_connect(&options->to);
		sockets_watch(epoll, watch.flows[i].fd, EPOLLIN, &watch.flows[i]);
	}
	watch.settled_ns = sockets_now_ns() + options->settle_ns;
	do {
		int count = epoll_wait(epoll, events, 256, 100);
		for (int i = 0; i < count; i++) {
			struct watched *flow = events[i].data.ptr;
			ssize_t n = sockets_drop(flow->fd);
			if (n > 0)
				note(&watch, flow, (uint64_t)n, sockets_now_ns());
			else if (n == 0 || errno != EAGAIN)
				sockets_die("a watched connection ended");
		}
		now_ns = sockets_now_ns();
		if (!watch.is_settled && now_ns >= watch.settled_ns) {
			watch.settled_ns = now_ns;
			watch.is_settled = true;
			puts("settled");
			fflush(stdout);
		}
	} while (!watch.is_settled || now_ns - watch.settled_ns < options->duration_ns);
	sum_up(&watch, now_ns);
	puts("done");
	fflush(stdout);
	for (unsigned int i = 0; i < options->connections; i++)
		close(watch.flows[i].fd);
	free(watch.flows);
	close(epoll);
}
