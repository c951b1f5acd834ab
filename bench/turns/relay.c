/*
 * turns: the least that carries bytes at a rate, as a yardstick: no events, no limits, no account of anything. Each
 * connection in turn is one recv and one send; so this is what the kernel alone takes for few and for many.
 *
 *	turns RATE PIECE PORT:TARGET      bytes a second, bytes; all on 127.0.0.1
 */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_CONNECTIONS 10000
#define MOST_BYTES       ((size_t)1024 * 1024)
#define WAKE_UP_NS       1000000
#define BURSTS           20 /* a second's rate in bursts of 50 ms, as penstock's are */

static struct ends {
	int near, far;
} ends[MOST_CONNECTIONS];
static unsigned int count, turn;

static double
now_s(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int
die(const char *what)
{
	perror(what);
	exit(2);
}

static void
accept_all(int listener, const struct sockaddr_in *target)
{
	int near;

	while (count < MOST_CONNECTIONS &&
	       (near = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		int far = socket(AF_INET, SOCK_STREAM, 0);
		if (far < 0 || connect(far, (const struct sockaddr *)target, sizeof(*target)) < 0)
			die("connect");
		ends[count++] = (struct ends){ near, far };
	}
}

/* One turn of the next connection: the bytes that it moved. */
static size_t
move(size_t piece)
{
	static char bytes[MOST_BYTES];
	struct ends *at = &ends[turn = (turn + 1) % count];
	ssize_t n = recv(at->far, bytes, piece, MSG_DONTWAIT);

	if (n < 0)
		return 0;
	if (n && send(at->near, bytes, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) == n)
		return (size_t)n;
	close(at->near);
	close(at->far);
	*at = ends[--count];
	return 0;
}

int
main(int argc, char **argv)
{
	struct sockaddr_in own = { .sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in target = own;
	const char *colon = argc == 4 ? strchr(argv[3], ':') : NULL;
	double rate = argc == 4 ? strtod(argv[1], NULL) : 0;
	size_t piece = argc == 4 ? strtoul(argv[2], NULL, 10) : 0;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;

	if (!colon || rate <= 0 || !piece || piece > MOST_BYTES) {
		fprintf(stderr, "usage: turns RATE PIECE PORT:TARGET\n");
		return 1;
	}
	own.sin_port = htons((uint16_t)strtoul(argv[3], NULL, 10));
	target.sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
	if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0 ||
	    bind(listener, (struct sockaddr *)&own, sizeof(own)) < 0 || listen(listener, 4096) < 0)
		die("listen");
	double due = 0, before_s = now_s();
	for (;;) {
		struct pollfd waiting = { .fd = listener, .events = POLLIN };
		if (!count)
			poll(&waiting, 1, -1);
		else
			nanosleep(&(struct timespec){ .tv_nsec = WAKE_UP_NS }, NULL);
		accept_all(listener, &target);
		double at_s = now_s();
		due += (at_s - before_s) * rate;
		due = due > rate / BURSTS ? rate / BURSTS : due;
		before_s = at_s;
		for (unsigned int i = count; i && count && due > 0; i--)
			due -= (double)move(piece);
	}
}
