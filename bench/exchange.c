/* ping and short: one message there, one message back. */
#include "load.h"
#include "sockets.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct slot {
	int fd;
	uint64_t began_ns;
	size_t got_bytes;
	bool asked; /* short: the request is on its way */
};

struct exchange {
	const struct options *options;
	struct exchange_result *result;
	int epoll;
	uint64_t end_ns;
	uint64_t started;
	unsigned int busy; /* slots with something under way */
	struct slot *slots;
};

static const unsigned char message[MESSAGE_BYTES];

static void
exchange_open(struct exchange *exchange, const struct options *options,
	      struct exchange_result *result)
{
	memset(result, 0, sizeof(*result));
	*exchange = (struct exchange){ .options = options, .result = result };
	exchange->epoll = sockets_epoll();
	exchange->slots = calloc(options->connections, sizeof(*exchange->slots));
	if (!exchange->slots)
		sockets_die("memory");
}

static void
exchange_close(struct exchange *exchange)
{
	free(exchange->slots);
	close(exchange->epoll);
}

static void
exchange_loop(struct exchange *exchange, void (*on_slot)(struct exchange *, struct slot *),
	      void (*start)(struct exchange *, struct slot *))
{
	struct epoll_event events[64];
	uint64_t began_ns = sockets_now_ns();

	exchange->end_ns = began_ns + exchange->options->duration_ns;
	for (unsigned int i = 0; i < exchange->options->connections; i++)
		start(exchange, &exchange->slots[i]);
	while (exchange->busy) {
		int count = epoll_wait(exchange->epoll, events, 64, -1);
		for (int i = 0; i < count; i++)
			on_slot(exchange, events[i].data.ptr);
	}
	exchange->result->elapsed_ns = sockets_now_ns() - began_ns;
}

/* Whether there is one more to start; if so, it counts as under way. */
static bool
take_one(struct exchange *exchange, struct slot *slot)
{
	slot->began_ns = sockets_now_ns();
	if (exchange->started >= exchange->options->count || slot->began_ns >= exchange->end_ns)
		return false;
	exchange->started++;
	exchange->busy++;
	slot->got_bytes = 0;
	slot->asked = false;
	return true;
}

static void
finish_one(struct exchange *exchange, const struct slot *slot)
{
	exchange->busy--;
	exchange->result->count++;
	histogram_add(&exchange->result->latency_ns, sockets_now_ns() - slot->began_ns);
}

static void
ping_start(struct exchange *exchange, struct slot *slot)
{
	if (!take_one(exchange, slot))
		return;
	if (send(slot->fd, message, sizeof(message), MSG_NOSIGNAL) != (ssize_t)sizeof(message))
		sockets_die("a ping");
}

static void
on_ping(struct exchange *exchange, struct slot *slot)
{
	unsigned char echo[MESSAGE_BYTES];
	ssize_t n = recv(slot->fd, echo, sizeof(echo) - slot->got_bytes, 0);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0)
		sockets_die("a ping connection ended");
	slot->got_bytes += (size_t)n;
	if (slot->got_bytes < sizeof(echo))
		return;
	finish_one(exchange, slot);
	ping_start(exchange, slot);
}

static void
wait_at_gate(const struct options *options, const char *word)
{
	char ignored[64];
	if (!options->gate)
		return;
	puts(word);
	fflush(stdout);
	(void)!read(STDIN_FILENO, ignored, sizeof(ignored));
}

void
ping_run(const struct options *options, struct exchange_result *result)
{
	struct exchange exchange;

	exchange_open(&exchange, options, result);
	for (unsigned int i = 0; i < options->connections; i++) {
		struct slot *slot = &exchange.slots[i];
		slot->fd = sockets_connect(&options->to);
		sockets_exchange(slot->fd);
		sockets_watch(exchange.epoll, slot->fd, EPOLLIN, slot);
	}
	wait_at_gate(options, "ready");
	exchange_loop(&exchange, on_ping, ping_start);
	wait_at_gate(options, "done");
	for (unsigned int i = 0; i < options->connections; i++)
		close(exchange.slots[i].fd);
	exchange_close(&exchange);
}

static void
short_ask(struct slot *slot)
{
	ssize_t n = send(slot->fd, message, sizeof(message), MSG_NOSIGNAL);
	/* One that failed will never go: the read tells how it ended. */
	slot->asked = n == (ssize_t)sizeof(message) || errno != EAGAIN;
}

static void
short_start(struct exchange *exchange, struct slot *slot)
{
	if (!take_one(exchange, slot))
		return;
	slot->fd = sockets_start_connect(&exchange->options->to);
	if (slot->fd < 0)
		sockets_die("connect");
	/* On loopback the connection is there already, unless the listener's queue is full. */
	short_ask(slot);
	sockets_watch(exchange->epoll, slot->fd, slot->asked ? EPOLLRDHUP : EPOLLOUT, slot);
}

/* Woken by the end alone: the answer lies before it. */
static void
on_short(struct exchange *exchange, struct slot *slot)
{
	unsigned char answer[MESSAGE_BYTES + 1]; /* one more than there may be */

	if (!slot->asked) {
		short_ask(slot);
		if (slot->asked)
			sockets_rewatch(exchange->epoll, slot->fd, EPOLLRDHUP, slot);
		return;
	}
	if (recv(slot->fd, answer, sizeof(answer), 0) != MESSAGE_BYTES)
		exchange->result->failed++;
	close(slot->fd);
	finish_one(exchange, slot);
	short_start(exchange, slot);
}

void
short_run(const struct options *options, struct exchange_result *result)
{
	struct exchange exchange;

	exchange_open(&exchange, options, result);
	exchange_loop(&exchange, on_short, short_start);
	exchange_close(&exchange);
}
