#include "sockets.h"

#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void
sockets_die(const char *what)
{
	if (errno)
		fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	else
		fprintf(stderr, "load: %s\n", what);
	exit(2);
}

uint64_t
sockets_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

int
sockets_epoll(void)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		sockets_die("epoll_create1");
	return epoll;
}

void
sockets_watch(int epoll, int fd, uint32_t events, void *context)
{
	struct epoll_event event = { .events = events, .data.ptr = context };
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		sockets_die("epoll_ctl");
}

void
sockets_rewatch(int epoll, int fd, uint32_t events, void *context)
{
	struct epoll_event event = { .events = events, .data.ptr = context };
	if (epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) < 0)
		sockets_die("epoll_ctl");
}

static int
open_socket(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
	if (fd < 0)
		sockets_die("socket");
	return fd;
}

static void
set_option(int fd, int level, int option, int value)
{
	if (setsockopt(fd, level, option, &value, sizeof(value)) < 0)
		sockets_die("setsockopt");
}

int
sockets_listen(uint16_t *port)
{
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(address);
	int fd = open_socket(SOCK_NONBLOCK);

	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 4096) < 0 ||
	    getsockname(fd, (struct sockaddr *)&address, &size) < 0)
		sockets_die("listen");
	*port = ntohs(address.sin_port);
	return fd;
}

void
sockets_small_sender(int listener)
{
	set_option(listener, SOL_SOCKET, SO_SNDBUF, 32 * 1024);
	set_option(listener, IPPROTO_TCP, TCP_MAXSEG, 1460);
}

static int
connect_and_wait(int fd, const struct sockaddr_in *to)
{
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) < 0)
		sockets_die("connect");
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		sockets_die("O_NONBLOCK");
	return fd;
}

int
sockets_connect(const struct sockaddr_in *to)
{
	return connect_and_wait(open_socket(0), to);
}

int
sockets_connect_narrow(const struct sockaddr_in *to)
{
	int fd = open_socket(0);
	set_option(fd, SOL_SOCKET, SO_RCVBUF, 4096);
	set_option(fd, IPPROTO_TCP, TCP_MAXSEG, 1460);
	return connect_and_wait(fd, to);
}

int
sockets_start_connect(const struct sockaddr_in *to)
{
	int fd = open_socket(SOCK_NONBLOCK);

	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) == 0 || errno == EINPROGRESS)
		return fd;
	int error = errno;
	close(fd);
	errno = error;
	return -1;
}

void
sockets_exchange(int fd)
{
	unsigned char message[MESSAGE_BYTES] = { 0 };
	struct pollfd wait = { .fd = fd, .events = POLLIN };

	if (send(fd, message, sizeof(message), MSG_NOSIGNAL) != (ssize_t)sizeof(message))
		sockets_die("the first message");
	for (size_t got = 0; got < sizeof(message);) {
		poll(&wait, 1, -1);
		ssize_t n = recv(fd, message, sizeof(message) - got, 0);
		if (n <= 0)
			sockets_die("the first echo");
		got += (size_t)n;
	}
}

ssize_t
sockets_send_filler(int fd, size_t block_bytes)
{
	static unsigned char filler[SOCKETS_BLOCK_BYTES];
	return send(fd, filler, block_bytes, MSG_NOSIGNAL);
}

ssize_t
sockets_drop(int fd)
{
	static unsigned char unused[SOCKETS_BLOCK_BYTES];
	return recv(fd, unused, sizeof(unused), MSG_TRUNC);
}

void
sockets_mark_store(unsigned char *wire, uint64_t count)
{
	for (int i = SOCKETS_MARK_BYTES - 1; i >= 0; i--, count >>= 8)
		wire[i] = (unsigned char)count;
}

uint64_t
sockets_mark_load(const unsigned char *wire)
{
	uint64_t count = 0;
	for (int i = 0; i < SOCKETS_MARK_BYTES; i++)
		count = count << 8 | wire[i];
	return count;
}
