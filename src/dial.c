#include "dial.h"

#include "clock.h"
#include "target.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

/* Less than this is not worth an attempt; libevent's clock may be that much early, too. */
#define TIME_IS_OUT_NS (10 * NS_PER_MS)

#define NAME_TEXT 192 /* a target's name in a failure, with the address tried */

/* What the dial's timer is set for. */
enum due { DUE_DEADLINE, DUE_NEXT_ADDRESS, DUE_RETRY };

/* How trying goes on: the target failed, or is full and was not tried, and dial_state.why says why; or the
 * outcome comes by an event; or on_end was called and the dial may be gone. */
enum progress { FAILED, FULL, UNDER_WAY, ENDED };

/* One socket on its way to one address. */
struct attempt {
	struct attempt *next;
	struct dial *dial;
	struct event event;
	int fd;
	struct socket_address address; /* AF_UNIX: family only */
};

struct dial_state {
	uint64_t deadline_ns;       /* UINT64_MAX = none */
	uint64_t target_timeout_ns; /* of the target being tried */
	uint64_t target_deadline_ns;
	struct event timer;
	enum due due;
	struct resolver_query *query;
	struct resolver_answer addresses; /* of the target being tried */
	unsigned int next_address;
	struct attempt *attempts;
	bool retry; /* the only attempt met a full backlog */
	struct failure why;
	struct targets_search search;
	bool tried[]; /* of the search */
};

/* The end of a dial. */

static void
give_target(const struct dial *dial)
{
	if (!dial->options->is_own)
		targets_disconnected(dial->options->targets, dial->index);
}

static void
close_attempt(struct attempt *attempt)
{
	struct attempt **at = &attempt->dial->state->attempts;

	while (*at != attempt)
		at = &(*at)->next;
	*at = attempt->next;
	if (event_initialized(&attempt->event))
		event_del(&attempt->event);
	if (attempt->fd >= 0)
		close(attempt->fd);
	free(attempt);
}

/* Withdraws all that is under way for the target being tried. */
static void
withdraw(struct dial *dial)
{
	struct dial_state *state = dial->state;

	event_del(&state->timer);
	resolver_cancel(dial->options->resolver, state->query);
	state->query = NULL;
	state->retry = false;
	while (state->attempts)
		close_attempt(state->attempts);
}

static enum progress
end_failed(struct dial *dial)
{
	struct failure why = dial->state->why;

	free(dial->state);
	dial->state = NULL;
	dial->options->on_end(dial, -1, &why);
	return ENDED;
}

static enum progress
end_well(struct dial *dial, int fd)
{
	const struct dial_options *options = dial->options;

	withdraw(dial);
	if (targets_worked(options->targets, dial->index, options->is_own) && options->on_change)
		options->on_change(dial, NULL);
	free(dial->state);
	dial->state = NULL;
	options->on_end(dial, fd, NULL);
	return ENDED;
}

/* Attempts. */

static void
set_step(struct dial *dial, enum dial_step step)
{
	if (dial->step == step)
		return;
	dial->step = step;
	if (dial->options->on_step)
		dial->options->on_step(dial);
}

static const struct address *
address_of(const struct dial *dial)
{
	return targets_address(dial->options->targets, dial->index);
}

static const char *
attempt_name(const struct attempt *attempt, char text[NAME_TEXT])
{
	const struct address *address = address_of(attempt->dial);
	char tried[SOCKET_ADDRESS_TEXT];

	if (address->kind == ADDRESS_HOST)
		snprintf(text, NAME_TEXT, "%.120s (%s)", address->text,
			 socket_address_text(&attempt->address, tried));
	else
		snprintf(text, NAME_TEXT, "%s", address->text);
	return text;
}

static enum progress
attempt_failed(struct attempt *attempt, int error)
{
	char text[NAME_TEXT];

	failure_set_errno(&attempt->dial->state->why, error, "connect to %s",
			  attempt_name(attempt, text));
	close_attempt(attempt);
	return FAILED;
}

static uint16_t ephemeral_first = 32768, ephemeral_last = 60999; /* the kernel's defaults */

static void
read_ephemeral_range(void)
{
	uint16_t first, last;
	FILE *file = fopen("/proc/sys/net/ipv4/ip_local_port_range", "re");

	if (!file)
		return;
	if (fscanf(file, "%hu %hu", &first, &last) == 2) {
		ephemeral_first = first;
		ephemeral_last = last;
	}
	fclose(file);
}

/* A connect to a port of our own host on which nobody listens succeeds, with itself at the other end,
 * if the kernel happens to choose that same port as the source (TCP's simultaneous open). */
static bool
is_connected_to_itself(const struct attempt *attempt)
{
	struct sockaddr_storage name;
	socklen_t length = sizeof(name);
	struct socket_address own;

	if (attempt->address.family == AF_UNIX || attempt->address.port < ephemeral_first ||
	    attempt->address.port > ephemeral_last)
		return false;
	if (getsockname(attempt->fd, (struct sockaddr *)&name, &length) < 0)
		return false;
	socket_address_from(&own, (struct sockaddr *)&name, length);
	return socket_address_equal(&own, &attempt->address);
}

static enum progress
attempt_connected(struct attempt *attempt)
{
	struct dial *dial = attempt->dial;

	if (is_connected_to_itself(attempt)) {
		/* Reset, or its TIME_WAIT would keep the port from whoever should listen there. */
		const struct linger reset = { .l_onoff = 1 };
		setsockopt(attempt->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		return attempt_failed(attempt, ECONNREFUSED);
	}
	int fd = attempt->fd;
	attempt->fd = -1;
	dial->connected = attempt->address;
	return end_well(dial, fd);
}

static enum progress race(struct dial *dial);
static void proceed(struct dial *dial, enum progress progress);

/* Asked for readable too, since an error is told as both: writable alone proves the connect. */
static void
on_connect(evutil_socket_t fd, short what, void *context)
{
	struct attempt *attempt = context;
	struct dial *dial = attempt->dial;
	int error = 0;
	socklen_t length = sizeof(error);

	if (what & EV_READ)
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
	/* What only an established connection can meet is not a failed connect. */
	dial->reset = error == ECONNRESET || error == EPIPE;
	enum progress progress = error == 0 || dial->reset ? attempt_connected(attempt)
							   : attempt_failed(attempt, error);
	proceed(dial, progress == FAILED ? race(dial) : progress);
}

static enum progress
attempt_connect(struct attempt *attempt)
{
	struct dial *dial = attempt->dial;
	struct dial_state *state = dial->state;
	struct sockaddr_storage peer;
	socklen_t length;

	if (attempt->address.family == AF_UNIX)
		length = address_to_unix(address_of(dial), &peer, &state->why);
	else
		length = socket_address_to(&attempt->address, &peer);
	if (length == 0) {
		close_attempt(attempt);
		return FAILED;
	}
	if (connect(attempt->fd, (struct sockaddr *)&peer, length) == 0)
		return attempt_connected(attempt);
	if (errno == EAGAIN && attempt->address.family == AF_UNIX) {
		state->retry = true;
		return UNDER_WAY;
	}
	if (errno != EINPROGRESS)
		return attempt_failed(attempt, errno);
	event_assign(&attempt->event, dial->loop->base, attempt->fd, EV_READ | EV_WRITE, on_connect,
		     attempt);
	return event_add(&attempt->event, NULL) < 0 ? attempt_failed(attempt, ENOMEM) : UNDER_WAY;
}

static int
bind_source(const struct attempt *attempt, const struct address *source, struct failure *why)
{
	const int on = 1;
	struct sockaddr_storage own;
	char text[NAME_TEXT];

	if (source->numeric.family != attempt->address.family)
		return failure_set(why, FAILURE_UNREACHABLE,
				   "connect to %s: not the family of the source address %s",
				   attempt_name(attempt, text), source->text);
	/* The port is chosen by connect, so that it may be shared between different peers. */
	setsockopt(attempt->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
	socklen_t length = socket_address_to(&source->numeric, &own);
	if (bind(attempt->fd, (struct sockaddr *)&own, length) < 0)
		return failure_set_errno(why, errno, "connect to %s from %s",
					 attempt_name(attempt, text), source->text);
	return 0;
}

static int
prepare_tcp(const struct attempt *attempt, const struct dial_options *options, struct failure *why)
{
	if (options->bind && options->bind->numeric.family != AF_UNSPEC &&
	    bind_source(attempt, options->bind, why) < 0)
		return -1;
	if (options->keepalive_ns > 0) {
		const int on = 1;
		uint64_t seconds = (options->keepalive_ns + NS_PER_S - 1) / NS_PER_S;
		const int idle = seconds < 32767 ? (int)seconds : 32767; /* the kernel's most */
		/* Neither can fail on a TCP socket. */
		setsockopt(attempt->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
		setsockopt(attempt->fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
		setsockopt(attempt->fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof(idle));
	}
	return 0;
}

/* A name may lead to where the tunnel itself listens, which no check of the file can tell: then each connection
 * would make another one, up to the caps. */
static bool
leads_back(const struct address_list *own, const struct socket_address *address)
{
	static const uint8_t zeros[sizeof(address->ip)], loopback_ipv6[16] = { [15] = 1 };
	bool is_loopback = address->family == AF_INET ? address->ip[0] == 127
						      : memcmp(address->ip, loopback_ipv6, 16) == 0;

	for (size_t i = 0; own && i < own->count && address->family != AF_UNIX; i++) {
		const struct socket_address *at = &own->at[i].numeric;
		if (own->at[i].kind != ADDRESS_IP || at->port != address->port ||
		    at->family != address->family || !at->port)
			continue;
		if (socket_address_equal(at, address) ||
		    (is_loopback && memcmp(at->ip, zeros, sizeof(zeros)) == 0))
			return true;
	}
	return false;
}

static enum progress
start_attempt(struct dial *dial, const struct socket_address *address)
{
	const int on = 1;
	struct dial_state *state = dial->state;
	char text[NAME_TEXT];
	if (leads_back(dial->options->own, address)) {
		failure_set(
			&state->why, FAILURE_CONFIG,
			"connect to %.120s: the tunnel itself listens on %s; connect to another "
			"address",
			targets_name(dial->options->targets, dial->index),
			socket_address_text(address, text));
		return FAILED;
	}
	struct attempt *attempt = calloc(1, sizeof(*attempt));
	if (!attempt) {
		failure_set(&state->why, FAILURE_MEMORY, "connect to %.120s: no memory",
			    targets_name(dial->options->targets, dial->index));
		return FAILED;
	}
	attempt->dial = dial;
	attempt->address = *address;
	attempt->next = state->attempts;
	state->attempts = attempt;
	attempt->fd = socket(address->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (attempt->fd < 0) {
		failure_set_errno(&state->why, errno, "connect to %s: cannot open a socket",
				  attempt_name(attempt, text));
		goto fail;
	}
	if (dial->options->descriptors_below && attempt->fd >= dial->options->descriptors_below) {
		failure_set(&state->why, FAILURE_DESCRIPTORS, "connect to %s: out of descriptors",
			    attempt_name(attempt, text));
		goto fail;
	}
	/* An urgent byte is a byte of the stream. */
	setsockopt(attempt->fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on));
	if (address->family != AF_UNIX && prepare_tcp(attempt, dial->options, &state->why) < 0)
		goto fail;
	return attempt_connect(attempt);
fail:
	close_attempt(attempt);
	return FAILED;
}

/* Trying one target. */

static bool
is_our_own_lack(enum failure_kind kind)
{
	return kind == FAILURE_DESCRIPTORS || kind == FAILURE_MEMORY;
}

/* Starts with the next address that can be started with. */
static enum progress
race(struct dial *dial)
{
	struct dial_state *state = dial->state;

	while (state->next_address < state->addresses.count) {
		enum progress progress =
			start_attempt(dial, &state->addresses.at[state->next_address++]);
		if (progress != FAILED)
			return progress;
		if (is_our_own_lack(state->why.kind)) {
			state->next_address--; /* its turn comes again, while others are under way */
			break;
		}
	}
	return state->attempts ? UNDER_WAY : FAILED;
}

static void
on_answer(void *asker, const struct resolver_answer *answer, const struct failure *why)
{
	struct dial *dial = asker;
	struct dial_state *state = dial->state;

	state->query = NULL;
	if (answer) {
		state->addresses = *answer;
		set_step(dial, DIAL_CONNECTING);
		proceed(dial, race(dial));
	} else {
		failure_set(&state->why, why->kind, "connect to %.120s: %s",
			    targets_name(dial->options->targets, dial->index), why->text);
		proceed(dial, FAILED);
	}
}

static enum progress
try_host(struct dial *dial, const struct address *address)
{
	struct dial_state *state = dial->state;
	struct resolver *resolver = dial->options->resolver;

	if (resolver_cached(resolver, address->name, address->port, &state->addresses))
		return race(dial);
	state->query = resolver_ask(resolver, dial->loop->mailbox, address->name, address->port,
				    on_answer, dial);
	if (state->query) {
		set_step(dial, DIAL_RESOLVING);
		return UNDER_WAY;
	}
	failure_set(&state->why, FAILURE_MEMORY, "connect to %.120s: no memory to resolve it",
		    address->text);
	return FAILED;
}

static enum progress
try_internal(struct dial *dial)
{
	struct failure *why = &dial->state->why;

	if (dial->options->admit(dial, dial->index, why) == 0)
		return end_well(dial, -1);
	failure_set(why, why->kind, "connect to %.120s: %s",
		    targets_name(dial->options->targets, dial->index), why->text);
	return FAILED;
}

static enum progress
try_target(struct dial *dial)
{
	static const struct socket_address local = { .family = AF_UNIX, .uid = UINT32_MAX };
	struct dial_state *state = dial->state;
	const struct address *address = address_of(dial);

	set_step(dial, DIAL_CONNECTING);
	state->next_address = 0;
	state->addresses.count = 1;
	switch (address->kind) {
	case ADDRESS_IP:
		state->addresses.at[0] = address->numeric;
		return race(dial);
	case ADDRESS_UNIX:
	case ADDRESS_ABSTRACT:
		state->addresses.at[0] = local;
		return race(dial);
	case ADDRESS_HOST:
		return try_host(dial, address);
	case ADDRESS_INTERNAL:
		return try_internal(dial);
	case ADDRESS_SYSTEMD:
		failure_set(&state->why, FAILURE_CONFIG, "connect to %.120s: only for listening",
			    address->text);
		break;
	}
	return FAILED;
}

/* One target after the other. */

static uint64_t
later(uint64_t now_ns, uint64_t duration_ns)
{
	return duration_ns < UINT64_MAX - now_ns ? now_ns + duration_ns : UINT64_MAX;
}

static enum progress
try_next_target(struct dial *dial, uint64_t now_ns)
{
	const struct dial_options *options = dial->options;
	struct dial_state *state = dial->state;

	if (state->deadline_ns == UINT64_MAX) {
		state->target_deadline_ns = UINT64_MAX;
	} else {
		uint64_t left_ns = state->deadline_ns - now_ns;
		uint64_t share_ns = left_ns / state->search.untried;
		if (share_ns < DIAL_LEAST_MS * NS_PER_MS)
			share_ns = DIAL_LEAST_MS * NS_PER_MS;
		state->target_timeout_ns = share_ns < left_ns ? share_ns : left_ns;
		state->target_deadline_ns = now_ns + state->target_timeout_ns;
	}
	dial->index = targets_choose(options->targets, &state->search, now_ns);
	if (!options->is_own && targets_take(options->targets, dial->index, &state->why) < 0)
		return FULL;
	return try_target(dial);
}

static void
leave_target(struct dial *dial, uint64_t now_ns)
{
	const struct dial_options *options = dial->options;
	const struct failure *why = &dial->state->why;

	withdraw(dial);
	give_target(dial);
	if (is_our_own_lack(why->kind) || why->kind == FAILURE_ADMISSION)
		return;
	if (targets_failed(options->targets, dial->index, options->is_own, now_ns) &&
	    options->on_change)
		options->on_change(dial, why);
}

/* Sets the timer for whatever is due next of the target being tried. */
static int
set_timer(struct dial *dial)
{
	struct dial_state *state = dial->state;
	uint64_t now_ns = clock_now_ns();
	uint64_t due_ns = UINT64_MAX;
	struct timeval wait;

	state->due = DUE_DEADLINE;
	if (state->retry) {
		due_ns = now_ns + DIAL_RETRY_MS * NS_PER_MS;
		state->due = DUE_RETRY;
	} else if (!state->query && state->next_address < state->addresses.count) {
		due_ns = now_ns + DIAL_RACE_MS * NS_PER_MS;
		state->due = DUE_NEXT_ADDRESS;
	}
	if (state->target_deadline_ns <= due_ns) {
		due_ns = state->target_deadline_ns;
		state->due = DUE_DEADLINE;
	}
	if (due_ns == UINT64_MAX)
		return 0;
	clock_to_timeval(due_ns > now_ns ? due_ns - now_ns : 0, &wait);
	return event_add(&state->timer, &wait);
}

/* Goes on from what an attempt came to, until something is under way or the dial has ended. */
static void
proceed(struct dial *dial, enum progress progress)
{
	while (progress != ENDED) {
		struct dial_state *state = dial->state;
		if (progress == UNDER_WAY) {
			if (set_timer(dial) == 0)
				return;
			failure_set(&state->why, FAILURE_MEMORY, "connect to %.120s: no memory",
				    targets_name(dial->options->targets, dial->index));
		}
		uint64_t now_ns = clock_now_ns();
		if (progress != FULL)
			leave_target(dial, now_ns);
		if (state->search.untried == 0 || is_our_own_lack(state->why.kind) ||
		    later(now_ns, TIME_IS_OUT_NS) >= state->deadline_ns)
			progress = end_failed(dial);
		else
			progress = try_next_target(dial, now_ns);
	}
}

static void
on_due(evutil_socket_t fd, short what, void *context)
{
	struct dial *dial = context;
	struct dial_state *state = dial->state;
	(void)fd;
	(void)what;

	switch (state->due) {
	case DUE_NEXT_ADDRESS:
		proceed(dial, race(dial));
		break;
	case DUE_RETRY:
		state->retry = false;
		proceed(dial, attempt_connect(state->attempts));
		break;
	case DUE_DEADLINE:
		failure_set(&state->why, FAILURE_TIMEOUT, "connect to %.120s: no %s within %.10gs",
			    targets_name(dial->options->targets, dial->index),
			    dial->step == DIAL_RESOLVING ? "address" : "answer",
			    (double)(state->target_timeout_ns / NS_PER_MS) / 1000);
		proceed(dial, FAILED);
		break;
	}
}

static struct dial_state *
make_state(struct dial *dial)
{
	const struct dial_options *options = dial->options;
	struct dial_state *state = calloc(1, sizeof(*state) + targets_count(options->targets));
	if (!state)
		return NULL;
	state->search.tried = state->tried;
	targets_search(options->targets, &state->search, options->client, options->only);
	evtimer_assign(&state->timer, dial->loop->base, on_due, dial);
	return state;
}

void
dial_start(struct dial *dial, struct loop *loop, const struct dial_options *options)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	uint64_t now_ns = clock_now_ns();

	assert(targets_count(options->targets) > 0);
	pthread_once(&once, read_ephemeral_range);
	dial->loop = loop;
	dial->options = options;
	dial->state = make_state(dial);
	if (!dial->state) {
		struct failure why;
		failure_set(&why, FAILURE_MEMORY, "no memory to connect");
		options->on_end(dial, -1, &why);
		return;
	}
	dial->state->deadline_ns =
		options->timeout_ns > 0 ? later(now_ns, options->timeout_ns) : UINT64_MAX;
	proceed(dial, try_next_target(dial, now_ns));
}

void
dial_cancel(struct dial *dial)
{
	if (!dial->state)
		return;
	withdraw(dial);
	give_target(dial);
	free(dial->state);
	dial->state = NULL;
}
