#include "trial.h"

#include "clock.h"
#include "dial.h"
#include "loop.h"
#include "resolver.h"
#include "stack.h"
#include "target.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LISTEN_MS  500 /* for what a target says, or does, right after the handshake */
#define ROOM_BYTES ((size_t)64 * 1024)

struct trial {
	FILE *out;
	struct loop loop;
	struct resolver *resolver;
	uint64_t began_ns; /* of the step under way */

	struct dial dial; /* and what came of it */
	bool is_over;
	int fd;
	struct failure why;
};

static void
tell(struct trial *trial, const char *what, const char *text)
{
	uint64_t now_ns = clock_now_ns();
	fprintf(trial->out, "  %-10s %s (%" PRIu64 " ms)\n", what, text,
		(now_ns - trial->began_ns) / NS_PER_MS);
	fflush(trial->out);
	trial->began_ns = now_ns;
}

/* --- connecting ----------------------------------------------------------------------------------- */

static void
on_step(struct dial *dial)
{
	struct trial *trial = (struct trial *)((char *)dial - offsetof(struct trial, dial));
	if (dial->step == DIAL_CONNECTING)
		tell(trial, "resolved", "the name has addresses");
}

static void
on_end(struct dial *dial, int fd, const struct failure *why)
{
	struct trial *trial = (struct trial *)((char *)dial - offsetof(struct trial, dial));
	trial->is_over = true;
	trial->fd = fd;
	if (why)
		trial->why = *why;
	event_base_loopbreak(trial->loop.base);
}

static int
dial(struct trial *trial, const struct tunnel_conf *conf, const struct address *address)
{
	const struct address_list one = { (struct address *)address, 1 };
	char text[SOCKET_ADDRESS_TEXT];
	const struct targets_options in_order = { .balance = BALANCE_ORDER };
	struct targets *targets = targets_configure(&one, &in_order, NULL, &trial->why);
	if (!targets)
		return -1;
	struct dial_options options = {
		.targets = targets,
		.resolver = trial->resolver,
		.bind = &conf->bind,
		.timeout_ns = conf->timeouts.connect,
		.on_step = address->kind == ADDRESS_HOST ? on_step : NULL,
		.on_end = on_end,
	};
	trial->dial = (struct dial){ 0 };
	trial->is_over = false;
	trial->fd = -1;
	dial_start(&trial->dial, &trial->loop, &options);
	while (!trial->is_over)
		event_base_loop(trial->loop.base, EVLOOP_NO_EXIT_ON_EMPTY);
	if (trial->fd >= 0)
		targets_disconnected(targets, 0);
	targets_release(targets);
	if (trial->fd < 0)
		return -1;
	if (trial->dial.connected.family == AF_UNIX)
		tell(trial, "connected", "to the UNIX socket");
	else
		tell(trial, "connected", socket_address_text(&trial->dial.connected, text));
	return 0;
}

/* --- the far chain -------------------------------------------------------------------------------- */

struct wire {
	struct stack *stack;
	int fd;
	struct evbuffer *from_wire, *to_core, *from_core, *to_wire;
	struct stack_flow flows[FILTER_FLOWS];
};

static int
open_wire(struct wire *wire, int fd, struct failure *why)
{
	wire->fd = fd;
	wire->from_wire = evbuffer_new();
	wire->to_core = evbuffer_new();
	wire->from_core = evbuffer_new();
	wire->to_wire = evbuffer_new();
	if (!wire->from_wire || !wire->to_core || !wire->from_core || !wire->to_wire)
		return failure_set(why, FAILURE_MEMORY, "no memory to try a connection");
	wire->flows[FILTER_IN] =
		(struct stack_flow){ .src = wire->from_wire, .dst = wire->to_core };
	wire->flows[FILTER_OUT] =
		(struct stack_flow){ .src = wire->from_core, .dst = wire->to_wire };
	return 0;
}

static void
close_wire(struct wire *wire)
{
	struct evbuffer *buffers[] = { wire->from_wire, wire->to_core, wire->from_core,
				       wire->to_wire };
	stack_close(wire->stack);
	for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
		if (buffers[i])
			evbuffer_free(buffers[i]);
	close(wire->fd);
}

static int
step(struct wire *wire, struct failure *why)
{
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		wire->flows[flow].room_bytes = ROOM_BYTES;
		if (wire->flows[flow].flush != FILTER_FINISHED)
			wire->flows[flow].flush = FILTER_FLUSH;
	}
	int result = stack_step(wire->stack, wire->flows, why) == STACK_FAILED ? -1 : 0;
	while (evbuffer_get_length(wire->to_wire) && evbuffer_write(wire->to_wire, wire->fd) > 0)
		;
	return result;
}

/* Waits for the socket and reads it; what is to be written goes out, too. 0 = something happened, 1 = time
 * is over, -1 = the connection is, with *why. */
static int
exchange(struct wire *wire, uint64_t due_ns, struct failure *why)
{
	uint64_t now_ns = clock_now_ns();
	short out = evbuffer_get_length(wire->to_wire) ? POLLOUT : 0;
	struct pollfd ready = { .fd = wire->fd, .events = (short)(POLLIN | out) };
	uint64_t left_ms = now_ns < due_ns ? (due_ns - now_ns) / NS_PER_MS + 1 : 0;
	int wait_ms = left_ms < INT_MAX ? (int)left_ms : INT_MAX; /* 24 days; it is asked again */

	if (poll(&ready, 1, wait_ms) == 0)
		return clock_now_ns() >= due_ns;
	if (!(ready.revents & (POLLIN | POLLHUP | POLLERR)))
		return step(wire, why);
	int got = evbuffer_read(wire->from_wire, wire->fd, (int)ROOM_BYTES);
	if (got < 0 && errno != EAGAIN && errno != EINTR)
		return failure_set_errno(why, errno, "the target");
	if (got == 0)
		wire->flows[FILTER_IN].flush = FILTER_FINISHED;
	if (step(wire, why) < 0)
		return -1;
	if (got == 0)
		return failure_set(why, FAILURE_RESET, "the target ends the connection");
	return 0;
}

static int
shake_hands(struct trial *trial, struct wire *wire, const struct tunnel_conf *conf)
{
	uint64_t due_ns = clock_now_ns() + conf->timeouts.handshake;

	if (step(wire, &trial->why) < 0)
		return -1;
	while (!stack_is_ready(wire->stack)) {
		int result = exchange(wire, due_ns, &trial->why);
		if (result < 0)
			return -1;
		if (result > 0)
			return failure_set(&trial->why, FAILURE_TIMEOUT,
					   "timeouts: handshake has passed, and the target was not "
					   "through %s",
					   stack_unready(wire->stack));
	}
	tell(trial, "ready", "the handshakes of connect_filters are done");
	return 0;
}

/* In order, as filters understand it: a trial is no broken connection in the target's log. */
static void
take_leave(struct wire *wire)
{
	struct failure ignored;

	wire->flows[FILTER_OUT].flush = FILTER_FINISHED;
	step(wire, &ignored);
}

/* Who refuses our certificate in TLS 1.3 does so only now; who speaks first is heard. */
static int
listen_to(struct trial *trial, struct wire *wire)
{
	char text[64];
	uint64_t due_ns = clock_now_ns() + LISTEN_MS * NS_PER_MS;
	int result;

	while ((result = exchange(wire, due_ns, &trial->why)) == 0)
		if (evbuffer_get_length(wire->to_core))
			break;
	if (result < 0)
		return -1;
	snprintf(text, sizeof(text), "the target speaks first, %zu bytes",
		 evbuffer_get_length(wire->to_core));
	tell(trial, "open", result ? "the target waits for us to speak" : text);
	take_leave(wire);
	return 0;
}

static const char *
host_of(const struct trial *trial, const struct address *address, char text[INET6_ADDRSTRLEN])
{
	const struct socket_address *peer = &trial->dial.connected;
	if (address->kind == ADDRESS_HOST)
		return address->name;
	if (address->kind == ADDRESS_IP &&
	    inet_ntop(peer->family, peer->ip, text, INET6_ADDRSTRLEN))
		return text;
	return "";
}

static int
try_chain(struct trial *trial, const struct tunnel_conf *conf, const struct address *address)
{
	struct wire wire = { 0 };
	struct facts facts = { 0 };
	char host[INET6_ADDRSTRLEN];
	int result = -1;

	facts.target_host = host_of(trial, address, host);
	if (open_wire(&wire, trial->fd, &trial->why) == 0 &&
	    stack_open(&wire.stack, &conf->far_chain, FILTER_FAR, &facts, &trial->why) == 0 &&
	    shake_hands(trial, &wire, conf) == 0)
		result = listen_to(trial, &wire);
	close_wire(&wire);
	facts_release(&facts);
	return result;
}

/* --- the whole ------------------------------------------------------------------------------------ */

static int try_tunnel(struct trial *trial, const struct tunnel_conf *conf);

static int
enter(struct trial *trial, const struct tunnel_conf *conf)
{
	fprintf(trial->out, "  %-10s tunnel \"%s\"; its accept_filters are not tried\n", "leads to",
		conf->name);
	return try_tunnel(trial, conf);
}

static int
follow(struct trial *trial, const struct tunnel_conf *conf, size_t index)
{
	const struct internal_target *target = &conf->internal[index];
	const struct tunnel_group *group = target->tunnel ? target->tunnel->group : NULL;
	int result = 0;

	if (!target->tunnel) {
		fprintf(trial->out, "  %-10s %s is built in\n", "open",
			tunnel_conf_target(conf, index)->name);
		return 0;
	}
	if (!group)
		return enter(trial, target->tunnel);
	for (size_t i = 0; i < group->count; i++)
		result |= enter(trial, group->tunnels[i]);
	return result;
}

static int
try_target(struct trial *trial, const struct tunnel_conf *conf, size_t index)
{
	const struct address *address = tunnel_conf_target(conf, index);

	fprintf(trial->out, "tunnel \"%s\", target %s\n", conf->name, address->text);
	if (address->kind == ADDRESS_INTERNAL)
		return follow(trial, conf, index);
	trial->began_ns = clock_now_ns();
	if (dial(trial, conf, address) == 0 && try_chain(trial, conf, address) == 0)
		return 0;
	tell(trial, "failed", trial->why.text);
	return -1;
}

static int
try_tunnel(struct trial *trial, const struct tunnel_conf *conf)
{
	int result = 0;
	for (size_t i = 0; i < tunnel_conf_target_count(conf); i++)
		result |= try_target(trial, conf, i);
	return result;
}

int
trial_run(const struct tunnel_conf *conf, FILE *out)
{
	struct trial trial = { .out = out };
	int result = -1;

	signal(SIGPIPE, SIG_IGN); /* that the target has gone is for write to tell */
	if (loop_open(&trial.loop, &trial.why) < 0) {
		fprintf(out, "%s\n", trial.why.text);
		return -1;
	}
	trial.resolver = resolver_start(1, &trial.why);
	if (trial.resolver)
		result = try_tunnel(&trial, conf);
	else
		fprintf(out, "%s\n", trial.why.text);
	loop_close(&trial.loop);
	resolver_stop(trial.resolver);
	return result;
}
