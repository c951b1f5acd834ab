#include "endpoint.h"

#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sockios.h>
#include <linux/tcp.h> /* netinet/tcp.h ends its tcp_info too early */
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* A write takes no more extents of a buffer at once than this. */
#define WRITE_EXTENTS 64

/*
 * recv and send, not read and write: for a small message the two together cost a fortieth less, since they
 * go past what the kernel does for files. And a peer that is gone raises no signal.
 */

static const struct endpoint_kind socket_kind;

static enum endpoint_result
broken(struct failure *why, int error, const char *doing)
{
	failure_set_errno(why, error, "%s", doing);
	return ENDPOINT_BROKEN;
}

/* Whether the peer's FIN has arrived, all that came before it being read: the kernel counts it as a byte
 * received. Where the kernel does not say (a UNIX socket), the end is believed. */
static bool
has_fin(const struct socket_endpoint *socket)
{
	struct tcp_info told = { 0 };
	socklen_t length = sizeof(told);

	if (getsockopt(socket->fd, IPPROTO_TCP, TCP_INFO, &told, &length) < 0 ||
	    length < offsetof(struct tcp_info, tcpi_bytes_received) +
			     sizeof(told.tcpi_bytes_received))
		return true;
	return (uint32_t)told.tcpi_bytes_received != socket->read_bytes;
}

/*
 * What a read-like call that returned `n` for `most` bytes means.
 *
 * A reset is told once: as the error of the first call that has nothing better to return. After that
 * reads end and writes give EPIPE, as if the peer had ended in order. So whoever is told keeps it in
 * mind; and a splice to the socket is told in the middle of its work, between two of its pieces, and then
 * returns the bytes of the first ones only (seen: splice 393216 of 524288, splice EPIPE, read 0). Only the
 * count of what the peer sent tells then whether a FIN was with it.
 */
static enum endpoint_result
after_read(struct endpoint *endpoint, ssize_t n, size_t most, size_t *moved, struct failure *why)
{
	*moved = 0;
	if (n > 0) {
		*moved = (size_t)n;
		/* A short read means dry; the level-triggered event tells of what comes later. */
		if ((size_t)n < most)
			endpoint->readable = endpoint->socket.end_is_due;
		return ENDPOINT_MOVED;
	}
	endpoint->readable = false;
	if (n == 0) {
		if (endpoint->socket.reset_seen ||
		    (endpoint->socket.muffled && !has_fin(&endpoint->socket)))
			return broken(why, ECONNRESET, "read");
		return ENDPOINT_END;
	}
	if (errno == EAGAIN)
		return ENDPOINT_WAIT;
	endpoint->socket.reset_seen = true;
	return broken(why, errno, "read");
}

/* What a write-like call that returned `n` for `bytes` bytes means. */
static enum endpoint_result
after_write(struct endpoint *endpoint, ssize_t n, size_t bytes, size_t *moved, struct failure *why)
{
	*moved = 0;
	if (n >= 0) {
		*moved = (size_t)n;
		if ((size_t)n < bytes)
			endpoint->writable = false;
		return n ? ENDPOINT_MOVED : ENDPOINT_WAIT;
	}
	endpoint->writable = false;
	if (errno == EAGAIN)
		return ENDPOINT_WAIT;
	/* EPIPE as a first error means that the peer's FIN came before its reset (tcp_reset in
	 * CLOSE_WAIT): what it sent ends in order. Anything else cuts its flow, too. */
	if (errno != EPIPE)
		endpoint->socket.reset_seen = true;
	return broken(why, errno, "write");
}

enum endpoint_result
endpoint_receive(struct endpoint *endpoint, void *to, size_t most, size_t *moved,
		 struct failure *why)
{
	ssize_t n;
	do
		n = recv(endpoint->socket.fd, to, most, 0);
	while (n < 0 && errno == EINTR);
	enum endpoint_result result = after_read(endpoint, n, most, moved, why);
	endpoint->socket.read_bytes += (uint32_t)*moved;
	return result;
}

/* Nagle's delay can only hurt from the second write on, while the first is unacknowledged: a
 * connection of one request is spared the system call. */
static void
before_write(struct endpoint *endpoint)
{
	struct socket_endpoint *socket = &endpoint->socket;
	if (socket->nodelay)
		return;
	if (!socket->written) {
		socket->written = true;
		return;
	}
	int on = 1;
	setsockopt(socket->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	socket->nodelay = true;
}

static int
send_flags(const struct endpoint *endpoint)
{
	return endpoint->is_last ? MSG_NOSIGNAL | MSG_MORE : MSG_NOSIGNAL;
}

enum endpoint_result
endpoint_send(struct endpoint *endpoint, const void *from, size_t bytes, size_t *moved,
	      struct failure *why)
{
	ssize_t n;
	before_write(endpoint);
	do
		n = send(endpoint->socket.fd, from, bytes, send_flags(endpoint));
	while (n < 0 && errno == EINTR);
	return after_write(endpoint, n, bytes, moved, why);
}

static enum endpoint_result
send_extents(struct endpoint *endpoint, struct evbuffer_iovec *extents, size_t count, size_t bytes,
	     size_t *moved, struct failure *why)
{
	struct msghdr message = { .msg_iov = extents, .msg_iovlen = count };
	ssize_t n;
	before_write(endpoint);
	do
		n = sendmsg(endpoint->socket.fd, &message, send_flags(endpoint));
	while (n < 0 && errno == EINTR);
	return after_write(endpoint, n, bytes, moved, why);
}

enum endpoint_result
endpoint_peek(struct endpoint *endpoint, void *to, size_t most, size_t *seen, struct failure *why)
{
	ssize_t n;
	do
		n = recv(endpoint->socket.fd, to, most, MSG_PEEK);
	while (n < 0 && errno == EINTR);
	return after_read(endpoint, n, most, seen, why);
}

bool
endpoint_is_at_end(struct endpoint *endpoint)
{
	struct failure ignored; /* it is told to the read that follows: see after_read */
	char byte;
	size_t seen;

	return endpoint->readable && endpoint->socket.end_is_due &&
	       endpoint_peek(endpoint, &byte, sizeof(byte), &seen, &ignored) == ENDPOINT_END;
}

void
endpoint_skip(struct endpoint *endpoint, void *scratch, size_t bytes)
{
	while (bytes) {
		/* TCP drops them without copying; a UNIX socket ignores the flag and copies. */
		ssize_t n = recv(endpoint->socket.fd, scratch, bytes, MSG_TRUNC);
		if (n < 0 && errno == EINTR)
			continue;
		assert(n > 0); /* peeked at before */
		endpoint->socket.read_bytes += (uint32_t)n;
		bytes -= (size_t)n;
	}
}

enum endpoint_result
endpoint_splice_in(struct endpoint *endpoint, struct pipe *pipe, size_t most, size_t *moved,
		   struct failure *why)
{
	size_t room_bytes = pipe->room_bytes - pipe->held_bytes;
	ssize_t n;

	if (most > room_bytes)
		most = room_bytes;
	do
		n = splice(endpoint->socket.fd, NULL, pipe->in, NULL, most,
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EINVAL || errno == ENOSYS || errno == EPERM)) {
		*moved = 0;
		return ENDPOINT_WAIT;
	}
	enum endpoint_result result = after_read(endpoint, n, most, moved, why);
	pipe->held_bytes += *moved;
	endpoint->socket.read_bytes += (uint32_t)*moved;
	return result;
}

enum endpoint_result
endpoint_splice_out(struct endpoint *endpoint, struct pipe *pipe, size_t most, size_t *moved,
		    struct failure *why)
{
	size_t bytes = pipe->held_bytes < most ? pipe->held_bytes : most;
	ssize_t n;
	before_write(endpoint);
	do
		n = splice(pipe->out, NULL, endpoint->socket.fd, NULL, bytes,
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	while (n < 0 && errno == EINTR);
	enum endpoint_result result = after_write(endpoint, n, bytes, moved, why);
	pipe->held_bytes -= *moved;
	if (*moved && pipe->held_bytes)
		endpoint->socket.muffled = true;
	return result;
}

static enum endpoint_result
socket_read(struct endpoint *endpoint, struct evbuffer *dst, size_t most, size_t *moved,
	    struct failure *why)
{
	void *scratch = loop_scratch(endpoint->loop);
	*moved = 0;
	if (!scratch) {
		failure_set(why, FAILURE_MEMORY, "no memory to read into");
		return ENDPOINT_BROKEN;
	}
	if (most > BLOCK_BYTES)
		most = BLOCK_BYTES;
	enum endpoint_result result = endpoint_receive(endpoint, scratch, most, moved, why);
	if (result == ENDPOINT_MOVED && loop_keep(endpoint->loop, dst, scratch, *moved, why) < 0)
		return ENDPOINT_BROKEN;
	return result;
}

static enum endpoint_result
socket_write(struct endpoint *endpoint, struct evbuffer *src, size_t most, size_t *moved,
	     struct failure *why)
{
	struct evbuffer_iovec extents[WRITE_EXTENTS];
	int count = evbuffer_peek(src, most < SSIZE_MAX ? (ev_ssize_t)most : -1, NULL, extents,
				  WRITE_EXTENTS);
	if (count > WRITE_EXTENTS)
		count = WRITE_EXTENTS;
	size_t bytes = 0;
	for (int i = 0; i < count; i++) {
		if (extents[i].iov_len > most - bytes)
			extents[i].iov_len = most - bytes;
		bytes += extents[i].iov_len;
	}
	enum endpoint_result result =
		count == 1 ? endpoint_send(endpoint, extents[0].iov_base, bytes, moved, why)
			   : send_extents(endpoint, extents, (size_t)count, bytes, moved, why);
	evbuffer_drain(src, *moved);
	return result;
}

static void
on_readable(evutil_socket_t fd, short what, void *context)
{
	struct endpoint *endpoint = context;
	(void)fd;

	endpoint->readable = true;
	endpoint->socket.end_is_due |= (what & EV_CLOSED) != 0;
	if (endpoint->want_readable) {
		endpoint->on_ready(endpoint);
		return;
	}
	/* Only now, when an unwanted event really came, is it worth a system call to be rid of it. */
	event_del(&endpoint->socket.read_event);
	endpoint->socket.armed_readable = false;
}

static void
on_writable(evutil_socket_t fd, short what, void *context)
{
	struct endpoint *endpoint = context;
	(void)fd;
	(void)what;

	endpoint->socket.armed_writable = false; /* not persistent */
	endpoint->writable = true;
	if (endpoint->want_writable)
		endpoint->on_ready(endpoint);
}

static int
socket_watch(struct endpoint *endpoint, struct failure *why)
{
	struct socket_endpoint *socket = &endpoint->socket;

	if (endpoint->want_readable && !socket->armed_readable) {
		if (event_add(&socket->read_event, NULL) < 0)
			goto fail;
		socket->armed_readable = true;
	}
	if (endpoint->want_writable && !socket->armed_writable) {
		if (!socket->write_event)
			socket->write_event = event_new(endpoint->loop->base, socket->fd, EV_WRITE,
							on_writable, endpoint);
		if (!socket->write_event || event_add(socket->write_event, NULL) < 0)
			goto fail;
		socket->armed_writable = true;
	}
	return 0;
fail:
	return failure_set(why, FAILURE_MEMORY, "cannot watch a socket");
}

static void
socket_shutdown(struct endpoint *endpoint)
{
	/* A peer that is gone is noticed by the next read. */
	shutdown(endpoint->socket.fd, SHUT_WR);
}

static size_t
socket_unsent(const struct endpoint *endpoint)
{
	int bytes = 0;
	if (ioctl(endpoint->socket.fd, SIOCOUTQ, &bytes) < 0 || bytes < 0)
		return 0;
	return (size_t)bytes;
}

static enum endpoint_result
socket_probe(struct endpoint *endpoint, struct failure *why)
{
	struct pollfd state = { .fd = endpoint->socket.fd };
	int error = 0;
	socklen_t length = sizeof(error);

	if (poll(&state, 1, 0) <= 0 || !(state.revents & POLLERR))
		return ENDPOINT_WAIT;
	if (getsockopt(endpoint->socket.fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0 || !error)
		return ENDPOINT_WAIT;
	if (error == EPIPE)
		return ENDPOINT_END;
	endpoint->socket.reset_seen = true;
	return broken(why, error, "connection lost");
}

static void
forget(struct endpoint *endpoint)
{
	struct socket_endpoint *socket = &endpoint->socket;
	if (socket->armed_readable)
		event_del(&socket->read_event);
	if (socket->write_event)
		event_free(socket->write_event);
	endpoint->kind = NULL;
}

static void
socket_close(struct endpoint *endpoint)
{
	forget(endpoint);
	close(endpoint->socket.fd);
}

static void
set_abort(int fd)
{
	struct linger now = { .l_onoff = 1, .l_linger = 0 };
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

static void
socket_abort(struct endpoint *endpoint)
{
	set_abort(endpoint->socket.fd);
	socket_close(endpoint);
}

void
endpoint_close_both(struct endpoint *a, struct endpoint *b)
{
	bool sockets = endpoint_is_socket(a) && endpoint_is_socket(b);
	int first = sockets && b->socket.fd < a->socket.fd ? b->socket.fd : a->socket.fd;

	if (sockets && abs(a->socket.fd - b->socket.fd) == 1) {
		forget(a);
		forget(b);
		if (close_range((unsigned int)first, (unsigned int)first + 1, 0) == 0)
			return;
		close(a->socket.fd); /* a kernel before 5.9 */
		close(b->socket.fd);
		return;
	}
	a->kind->close(a);
	b->kind->close(b);
}

void
endpoint_reset_socket(int fd)
{
	set_abort(fd);
	close(fd);
}

static const struct endpoint_kind socket_kind = {
	.name = "socket",
	.read = socket_read,
	.write = socket_write,
	.watch = socket_watch,
	.shutdown = socket_shutdown,
	.unsent = socket_unsent,
	.probe = socket_probe,
	.close = socket_close,
	.abort = socket_abort,
};

void
endpoint_open_socket(struct endpoint *endpoint, struct loop *loop, int fd, bool nodelay)
{
	endpoint->kind = &socket_kind;
	endpoint->loop = loop;
	endpoint->readable = false;
	endpoint->writable = true;
	endpoint->is_last = false;
	endpoint->socket = (struct socket_endpoint){ .fd = fd, .nodelay = nodelay };
	event_assign(&endpoint->socket.read_event, loop->base, fd, EV_READ | EV_CLOSED | EV_PERSIST,
		     on_readable, endpoint);
}

size_t
endpoint_segment(const struct endpoint *endpoint)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);

	if (!endpoint_is_socket(endpoint) ||
	    getsockopt(endpoint->socket.fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
		return 0;
	return info.tcpi_snd_mss < UINT16_MAX ? info.tcpi_snd_mss : UINT16_MAX;
}

bool
endpoint_is_socket(const struct endpoint *endpoint)
{
	return endpoint->kind == &socket_kind;
}
