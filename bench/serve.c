#include "load.h"
#include "sockets.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum service {
	SERVICE_SINK,
	SERVICE_SOURCE,
	SERVICE_ECHO,
	SERVICE_ANSWER,
	SERVICE_INTAKE,
	SERVICE_SPOUT,
	SERVICES
};

static const char *const service_names[SERVICES] = {
	[SERVICE_SINK] = "sink",     [SERVICE_SOURCE] = "source", [SERVICE_ECHO] = "echo",
	[SERVICE_ANSWER] = "answer", [SERVICE_INTAKE] = "intake", [SERVICE_SPOUT] = "spout",
};

struct peer {
	int fd;
	enum service service;
	bool listens;
	bool stopped;   /* source, spout: told to send no more than its count */
	uint64_t bytes; /* sink, intake: taken; source: sent; answer: of the request */
	uint64_t due;   /* intake: bytes still to come, once the first 8 have said how many */
	bool told;
};

struct serve {
	int epoll;
	struct peer *peers; /* by descriptor */
	size_t peers_max;
};

static void
peer_end(struct peer *peer)
{
	close(peer->fd);
	peer->fd = -1;
}

/* Nothing to do now is no end; everything else that fails is: the client judges what it got. */
static bool
is_over(ssize_t result)
{
	return result == 0 || (result < 0 && errno != EAGAIN);
}

static void
confirm_and_end(struct peer *peer)
{
	unsigned char mark[SOCKETS_MARK_BYTES];

	sockets_mark_store(mark, peer->bytes);
	ssize_t n = send(peer->fd, mark, sizeof(mark), MSG_NOSIGNAL);
	if (n < 0 && errno == EAGAIN)
		return; /* a source that was stopped with a full socket: once more when writable */
	if (n > 0 && n < (ssize_t)sizeof(mark))
		sockets_die("a torn mark");
	peer_end(peer);
}

static void
on_sink(struct peer *peer)
{
	ssize_t n = sockets_drop(peer->fd);
	if (n > 0)
		peer->bytes += (uint64_t)n;
	else if (n == 0)
		confirm_and_end(peer);
	else if (is_over(n))
		peer_end(peer);
}

static void
on_intake(struct peer *peer)
{
	if (!peer->told) {
		unsigned char mark[SOCKETS_MARK_BYTES];
		ssize_t n = recv(peer->fd, mark, sizeof(mark), MSG_PEEK);
		if (is_over(n))
			peer_end(peer);
		if (n < (ssize_t)sizeof(mark))
			return;
		(void)!recv(peer->fd, mark, sizeof(mark), 0);
		peer->due = sockets_mark_load(mark);
		peer->told = true;
		return;
	}
	ssize_t n = sockets_drop(peer->fd);
	if (n > 0)
		peer->bytes += (uint64_t)n;
	if (peer->bytes >= peer->due)
		confirm_and_end(peer);
	else if (is_over(n))
		peer_end(peer);
}

static void
on_source(const struct serve *serve, struct peer *peer, uint32_t events)
{
	if (peer->stopped) {
		confirm_and_end(peer);
		return;
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		ssize_t n = sockets_drop(peer->fd);
		peer->stopped = n > 0;
		if (peer->stopped)
			sockets_rewatch(serve->epoll, peer->fd, EPOLLOUT, peer);
		else if (is_over(n))
			peer_end(peer);
		return;
	}
	ssize_t n = sockets_send_filler(peer->fd, SOCKETS_BLOCK_BYTES);
	if (n > 0)
		peer->bytes += (uint64_t)n;
	else if (is_over(n))
		peer_end(peer);
}

static void
on_echo(struct peer *peer)
{
	unsigned char block[4096];
	ssize_t n = recv(peer->fd, block, sizeof(block), 0);
	/* One message at a time is under way, so it always fits. */
	if (is_over(n) || (n > 0 && send(peer->fd, block, (size_t)n, MSG_NOSIGNAL) != n))
		peer_end(peer);
}

static void
on_answer(struct peer *peer)
{
	unsigned char block[MESSAGE_BYTES];
	ssize_t n = recv(peer->fd, block, sizeof(block), 0);
	if (n > 0)
		peer->bytes += (uint64_t)n;
	if (peer->bytes >= MESSAGE_BYTES)
		(void)!send(peer->fd, block, sizeof(block), MSG_NOSIGNAL);
	if (is_over(n) || peer->bytes >= MESSAGE_BYTES)
		peer_end(peer);
}

static void
on_accept(struct serve *serve, const struct peer *listener)
{
	int fd;
	while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if ((size_t)fd >= serve->peers_max)
			sockets_die("too many connections");
		serve->peers[fd] = (struct peer){ .fd = fd, .service = listener->service };
		bool sends =
			listener->service == SERVICE_SOURCE || listener->service == SERVICE_SPOUT;
		uint32_t events = sends ? EPOLLIN | EPOLLOUT : EPOLLIN;
		sockets_watch(serve->epoll, fd, events, &serve->peers[fd]);
	}
	if (errno != EAGAIN && errno != ECONNABORTED)
		sockets_die("accept");
}

static void
on_peer(struct serve *serve, struct peer *peer, uint32_t events)
{
	if (peer->listens) {
		on_accept(serve, peer);
		return;
	}
	switch (peer->service) {
	case SERVICE_SINK:
		on_sink(peer);
		break;
	case SERVICE_SOURCE:
	case SERVICE_SPOUT:
		on_source(serve, peer, events);
		break;
	case SERVICE_ECHO:
		on_echo(peer);
		break;
	case SERVICE_ANSWER:
		on_answer(peer);
		break;
	case SERVICE_INTAKE:
		on_intake(peer);
		break;
	case SERVICES:
		break;
	}
}

static void
listen_all(struct serve *serve, int output_fd)
{
	dprintf(output_fd, "{");
	for (int service = 0; service < SERVICES; service++) {
		uint16_t port;
		int fd = sockets_listen(&port);
		if (service == SERVICE_SPOUT)
			sockets_small_sender(fd);
		serve->peers[fd] = (struct peer){ .fd = fd,
						  .service = (enum service)service,
						  .listens = true };
		sockets_watch(serve->epoll, fd, EPOLLIN, &serve->peers[fd]);
		dprintf(output_fd, "%s\"%s\": %u", service ? ", " : "", service_names[service],
			port);
	}
	dprintf(output_fd, "}\n");
}

void
serve_run(int input_fd, int output_fd)
{
	struct rlimit descriptors = { 0 };
	struct serve serve = { .epoll = sockets_epoll() };
	struct epoll_event events[64];
	char ignored[64];

	getrlimit(RLIMIT_NOFILE, &descriptors);
	serve.peers_max = descriptors.rlim_cur;
	serve.peers = calloc(serve.peers_max, sizeof(*serve.peers));
	if (!serve.peers)
		sockets_die("memory");
	listen_all(&serve, output_fd);
	sockets_watch(serve.epoll, input_fd, EPOLLIN, NULL);
	for (;;) {
		int count = epoll_wait(serve.epoll, events, 64, -1);
		for (int i = 0; i < count; i++) {
			if (events[i].data.ptr)
				on_peer(&serve, events[i].data.ptr, events[i].events);
			else if (read(input_fd, ignored, sizeof(ignored)) <= 0)
				goto out;
		}
	}
out:
	free(serve.peers);
	close(serve.epoll);
}
