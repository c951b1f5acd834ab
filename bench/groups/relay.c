/*
 * groups: a relay as libevent's manual would have it, under one of libevent's own rate-limit groups: where
 * penstock's limits started from. Counted is what goes to the clients.
 *
 *	groups RATE PORT:TARGET [RATE PORT:TARGET]...      bytes a second; all on 127.0.0.1
 */
#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_MS    10
#define BURSTS     20 /* a second's rate in bursts of 50 ms, as penstock's are */
#define MOST_BYTES ((size_t)256 * 1024)

struct door {
	struct bufferevent_rate_limit_group *group;
	struct sockaddr_in target;
};

/* Each of the two ends has the other one as its context. */
static void
on_read(struct bufferevent *from, void *context)
{
	struct bufferevent *to = context;

	evbuffer_add_buffer(bufferevent_get_output(to), bufferevent_get_input(from));
	if (evbuffer_get_length(bufferevent_get_output(to)) >= MOST_BYTES)
		bufferevent_disable(from, EV_READ);
}

static void
on_written(struct bufferevent *to, void *context)
{
	(void)to;
	bufferevent_enable(context, EV_READ);
}

static void
on_event(struct bufferevent *bev, short what, void *context)
{
	if (what & BEV_EVENT_CONNECTED)
		return;
	bufferevent_free(bev);
	bufferevent_free(context);
}

static struct bufferevent *
open_end(struct event_base *base, int fd)
{
	struct bufferevent *end = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);

	if (!end)
		exit(2);
	bufferevent_set_max_single_read(end, MOST_BYTES);
	bufferevent_set_max_single_write(end, MOST_BYTES);
	bufferevent_setwatermark(end, EV_WRITE, MOST_BYTES / 2, 0);
	return end;
}

static void
on_accept(struct evconnlistener *listener, int fd, struct sockaddr *address, int length,
	  void *context)
{
	struct event_base *base = evconnlistener_get_base(listener);
	struct door *door = context;
	struct bufferevent *near = open_end(base, fd), *far = open_end(base, -1);
	(void)address;
	(void)length;

	bufferevent_setcb(near, on_read, on_written, on_event, far);
	bufferevent_setcb(far, on_read, on_written, on_event, near);
	if (bufferevent_add_to_rate_limit_group(near, door->group) < 0 ||
	    bufferevent_socket_connect(far, (struct sockaddr *)&door->target,
				       sizeof(door->target)) < 0)
		exit(2);
	bufferevent_enable(near, EV_READ | EV_WRITE);
	bufferevent_enable(far, EV_READ | EV_WRITE);
}

static void
open_door(struct event_base *base, const char *rate_text, const char *ports)
{
	static const struct timeval tick = { .tv_usec = TICK_MS * 1000 };
	struct sockaddr_in own = { .sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct door *door = calloc(1, sizeof(*door));
	size_t rate = strtoul(rate_text, NULL, 10);
	const char *colon = strchr(ports, ':');

	if (!door || !colon || !rate)
		exit(1);
	door->target = own;
	own.sin_port = htons((uint16_t)strtoul(ports, NULL, 10));
	door->target.sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
	struct ev_token_bucket_cfg *cfg = ev_token_bucket_cfg_new(
		rate * TICK_MS / 1000, rate / BURSTS, rate * TICK_MS / 1000, rate / BURSTS, &tick);
	door->group = cfg ? bufferevent_rate_limit_group_new(base, cfg) : NULL;
	if (!door->group || !evconnlistener_new_bind(base, on_accept, door, LEV_OPT_REUSEABLE, 4096,
						     (struct sockaddr *)&own, sizeof(own))) {
		perror("groups");
		exit(2);
	}
}

int
main(int argc, char **argv)
{
	struct event_base *base = event_base_new();

	signal(SIGPIPE, SIG_IGN);
	if (!base || argc < 3 || argc % 2 == 0) {
		fprintf(stderr, "usage: groups RATE PORT:TARGET [RATE PORT:TARGET]...\n");
		return 1;
	}
	for (int i = 1; i < argc; i += 2)
		open_door(base, argv[i], argv[i + 1]);
	return event_base_dispatch(base) < 0 ? 2 : 0;
}
