#include "target.h"

#include "clock.h"
#include "counted.h"

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

struct target {
	struct counted counted; /* first: lists of several generations share it */
	atomic_uint active;     /* connections and attempts */
	_Atomic uint64_t failed_until_ns;
	atomic_bool fails;    /* the last connect of a client's failed */
	atomic_int health;    /* enum target_health, by checks */
	atomic_uint in_a_row; /* checks that speak against it */
	struct address address;
	uint64_t digest; /* of its text */
};

/* A place in the rotation: a target has as many as its weight. */
struct place {
	uint32_t index;  /* of the target */
	uint32_t number; /* of the place among those of the target, from 0 */
	uint32_t weight;
};

struct targets {
	struct counted counted; /* first */
	enum balance balance;
	atomic_uint turn;       /* counts dials, for the rotation */
	unsigned int most;      /* connections of each; 0 = no cap */
	struct place *rotation; /* owned */
	size_t places;
	size_t backups; /* the first of them */
	size_t count;
	struct target *at[];
};

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
	unsigned int turn; /* of the dial, in the rotation */
	uint64_t client;   /* a digest of who it is for */
	size_t untried;    /* targets */
	bool tried[];
};

/* Targets. */

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

static void
discard_target(struct counted *counted)
{
	struct target *target = (struct target *)counted;

	address_release(&target->address);
	free(target);
}

static void
discard_targets(struct counted *counted)
{
	struct targets *targets = (struct targets *)counted;

	for (size_t i = 0; i < targets->count; i++)
		counted_release(&targets->at[i]->counted);
	free(targets->rotation);
	free(targets);
}

/* Spreads what differs little over all of 64 bits (the finalizer of splitmix64). */
static uint64_t
mix(uint64_t number)
{
	number = (number ^ number >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	number = (number ^ number >> 27) * UINT64_C(0x94d049bb133111eb);
	return number ^ number >> 31;
}

static uint64_t
digest(const void *bytes, size_t length)
{
	const uint8_t *at = bytes;
	uint64_t number = length;

	while (length--)
		number = mix(number << 8 ^ *at++ ^ number);
	return number;
}

static struct target *
make_target(const struct address *address, struct failure *why)
{
	struct target *target = calloc(1, sizeof(*target));
	if (!target) {
		failure_set(why, FAILURE_MEMORY, "no memory for target %.120s", address->text);
		return NULL;
	}
	target->digest = digest(address->text, strlen(address->text));
	if (address_parse(address->text, &target->address, why) < 0) {
		free(target);
		return NULL;
	}
	counted_init(&target->counted, discard_target);
	return target;
}

static struct target *
find_target(const struct targets *targets, const char *text)
{
	for (size_t i = 0; targets && i < targets->count; i++)
		if (strcmp(targets->at[i]->address.text, text) == 0)
			return targets->at[i];
	return NULL;
}

static int
add_targets(struct targets *targets, const struct address_list *addresses,
	    const struct targets *previous, struct failure *why)
{
	for (size_t i = 0; i < addresses->count; i++) {
		struct target *target = find_target(previous, addresses->at[i].text);
		if (target)
			counted_hold(&target->counted);
		else if (!(target = make_target(&addresses->at[i], why)))
			return -1;
		targets->at[targets->count++] = target;
	}
	return 0;
}

/* Places of one target lie as far apart as can be: that of number n where (n + 1/2) / weight of the rotation
 * has passed. */
static int
compare_places(const void *a, const void *b)
{
	const struct place *place_a = a, *place_b = b;
	uint64_t at_a = (2 * (uint64_t)place_a->number + 1) * place_b->weight;
	uint64_t at_b = (2 * (uint64_t)place_b->number + 1) * place_a->weight;
	if (at_a != at_b)
		return at_a < at_b ? -1 : 1;
	return (place_a->index > place_b->index) - (place_a->index < place_b->index);
}

static int
make_rotation(struct targets *targets, const struct count_list *weights, struct failure *why)
{
	bool has_weights = weights && targets->balance != BALANCE_ORDER;
	size_t most = targets->count;

	for (size_t i = 0; has_weights && i < weights->count; i++)
		most += weights->at[i];
	targets->rotation = calloc(most, sizeof(*targets->rotation));
	if (!targets->rotation)
		return failure_set(why, FAILURE_MEMORY, "no memory for the targets");
	for (size_t i = 0; i < targets->count; i++) {
		uint32_t weight = has_weights && i < weights->count ? (uint32_t)weights->at[i] : 1;
		for (uint32_t number = 0; number < weight; number++)
			targets->rotation[targets->places++] =
				(struct place){ (uint32_t)i, number, weight };
	}
	if (has_weights)
		qsort(targets->rotation, targets->places, sizeof(*targets->rotation),
		      compare_places);
	return 0;
}

struct targets *
targets_configure(const struct address_list *connect, const struct targets_options *options,
		  const struct targets *previous, struct failure *why)
{
	static const struct address_list nothing;
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const struct address_list *backup = options->backup ? options->backup : &nothing;
	struct targets *targets = calloc(1, sizeof(*targets) + (connect->count + backup->count) *
								       sizeof(*targets->at));
	if (!targets) {
		failure_set(why, FAILURE_MEMORY, "no memory for the targets");
		return NULL;
	}
	pthread_once(&once, read_ephemeral_range);
	counted_init(&targets->counted, discard_targets);
	targets->balance = options->balance;
	targets->most = (unsigned int)options->most;
	targets->backups = connect->count;
	if (add_targets(targets, connect, previous, why) < 0 ||
	    add_targets(targets, backup, previous, why) < 0 ||
	    make_rotation(targets, options->weights, why) < 0) {
		targets_release(targets);
		return NULL;
	}
	return targets;
}

void
targets_hold(struct targets *targets)
{
	counted_hold(&targets->counted);
}

void
targets_release(struct targets *targets)
{
	if (targets)
		counted_release(&targets->counted);
}

void
targets_disconnected(struct targets *targets, size_t index)
{
	atomic_fetch_sub_explicit(&targets->at[index]->active, 1, memory_order_relaxed);
}

const char *
targets_name(const struct targets *targets, size_t index)
{
	return targets->at[index]->address.text;
}

unsigned int
targets_active(const struct targets *targets, size_t index)
{
	return atomic_load_explicit(&targets->at[index]->active, memory_order_relaxed);
}

uint64_t
targets_failed_until(const struct targets *targets, size_t index, uint64_t now_ns)
{
	uint64_t until_ns =
		atomic_load_explicit(&targets->at[index]->failed_until_ns, memory_order_relaxed);
	return until_ns > now_ns ? until_ns : 0;
}

enum target_health
targets_health(const struct targets *targets, size_t index)
{
	return (enum target_health)atomic_load_explicit(&targets->at[index]->health,
							memory_order_relaxed);
}

bool
targets_checked(struct targets *targets, size_t index, bool works, uint64_t rise, uint64_t fall)
{
	struct target *target = targets->at[index];
	enum target_health now = targets_health(targets, index);
	enum target_health says = works ? TARGET_WORKS : TARGET_FAILS;
	unsigned int in_a_row = 0;

	if (says != now)
		in_a_row = atomic_load_explicit(&target->in_a_row, memory_order_relaxed) + 1;
	if (says == now || (now != TARGET_UNCHECKED && in_a_row < (works ? rise : fall))) {
		atomic_store_explicit(&target->in_a_row, in_a_row, memory_order_relaxed);
		return false;
	}
	atomic_store_explicit(&target->in_a_row, 0, memory_order_relaxed);
	atomic_store_explicit(&target->health, (int)says, memory_order_relaxed);
	return true;
}

void
targets_unchecked(struct targets *targets, size_t index)
{
	atomic_store_explicit(&targets->at[index]->health, TARGET_UNCHECKED, memory_order_relaxed);
	atomic_store_explicit(&targets->at[index]->in_a_row, 0, memory_order_relaxed);
}

/* How little is to be expected of a target: a failed check outweighs a failure of late, and either that it is
 * a backup. */
static unsigned int
badness(const struct targets *targets, size_t index, uint64_t now_ns)
{
	unsigned int is_backup = index >= targets->backups ? 1 : 0;

	if (targets_health(targets, index) == TARGET_FAILS)
		return 4 + is_backup;
	return (targets_failed_until(targets, index, now_ns) ? 2 : 0) + is_backup;
}

/* The same for all of a client's connections: of an IPv6 address the network of 64 bits. */
static uint64_t
digest_client(const struct socket_address *client)
{
	if (!client || client->family == AF_UNSPEC)
		return 0;
	if (client->family == AF_UNIX)
		return digest(&client->uid, sizeof(client->uid));
	return digest(client->ip, client->family == AF_INET ? 4 : 8);
}

/* What speaks against a place, the least wins. With `source` each client has an order of its own of all places,
 * so a target that comes or goes moves only the clients that are, or were, its own. */
struct demerit {
	unsigned int badness;
	uint64_t load, weight; /* compared as load / weight */
};

static bool
is_less(const struct demerit *a, const struct demerit *b)
{
	if (a->badness != b->badness)
		return a->badness < b->badness;
	return a->load * b->weight < b->load * a->weight;
}

static struct demerit
judge(const struct targets *targets, const struct place *place, uint64_t client, uint64_t now_ns)
{
	struct demerit demerit = { badness(targets, place->index, now_ns), 0, 1 };

	if (targets->balance == BALANCE_LEAST) {
		demerit.load = (uint64_t)targets_active(targets, place->index) + 1;
		demerit.weight = place->weight;
	} else if (targets->balance == BALANCE_SOURCE) {
		demerit.load = mix(targets->at[place->index]->digest ^ mix(client + place->number));
	}
	return demerit;
}

/* The best target not tried yet: not failed and no backup, then with the fewest connections (least) or for this
 * client (source). Those that are as good as each other have their turns, whatever the others are. */
static size_t
choose(const struct targets *targets, const struct dial_state *state, uint64_t now_ns)
{
	size_t best = targets->count, ties = 0;
	struct demerit least = { 0 };

	for (size_t i = 0; i < targets->places; i++) {
		const struct place *place = &targets->rotation[i];
		if (state->tried[place->index])
			continue;
		struct demerit demerit = judge(targets, place, state->client, now_ns);
		if (ties && is_less(&least, &demerit))
			continue;
		if (!ties || is_less(&demerit, &least)) {
			best = place->index;
			least = demerit;
			ties = 0;
		}
		ties++;
	}
	assert(ties > 0); /* whoever calls has an untried one */
	size_t skip = state->turn % ties;
	for (size_t i = 0; ties > 1 && i < targets->places; i++) {
		const struct place *place = &targets->rotation[i];
		if (state->tried[place->index])
			continue;
		struct demerit demerit = judge(targets, place, state->client, now_ns);
		if (!is_less(&least, &demerit) && !is_less(&demerit, &least) && skip-- == 0)
			return place->index;
	}
	return best; /* another worker has changed what was counted */
}

/* Counts one more connection of the target, unless it has as many as it may. */
static bool
take_target(const struct dial *dial)
{
	const struct targets *targets = dial->options->targets;
	struct target *target = targets->at[dial->index];
	unsigned int active = atomic_load_explicit(&target->active, memory_order_relaxed);

	if (dial->options->is_own)
		return true;
	do
		if (targets->most && active >= targets->most)
			return false;
	while (!atomic_compare_exchange_weak_explicit(&target->active, &active, active + 1,
						      memory_order_relaxed, memory_order_relaxed));
	return true;
}

static void
give_target(const struct dial *dial)
{
	if (!dial->options->is_own)
		targets_disconnected(dial->options->targets, dial->index);
}

/* The end of a dial. */

static struct target *
target_of(const struct dial *dial)
{
	return dial->options->targets->at[dial->index];
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

/* A client's connect has come to that. */
static void
note_outcome(struct dial *dial, bool fails, const struct failure *why)
{
	const struct dial_options *options = dial->options;
	if (options->is_own ||
	    atomic_load_explicit(&target_of(dial)->fails, memory_order_relaxed) == fails)
		return;
	if (atomic_exchange_explicit(&target_of(dial)->fails, fails, memory_order_relaxed) !=
		    fails &&
	    options->on_change)
		options->on_change(dial, why);
}

static enum progress
end_well(struct dial *dial, int fd)
{
	withdraw(dial);
	note_outcome(dial, false, NULL);
	free(dial->state);
	dial->state = NULL;
	atomic_store_explicit(&target_of(dial)->failed_until_ns, 0, memory_order_relaxed);
	dial->options->on_end(dial, fd, NULL);
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

static const char *
attempt_name(const struct attempt *attempt, char text[NAME_TEXT])
{
	const struct address *address = &target_of(attempt->dial)->address;
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
		length = address_to_unix(&target_of(dial)->address, &peer, &state->why);
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
		if (is_our_own_lack(state->why.kind))
			break;
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
	const struct address *address = &target_of(dial)->address;

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
	struct dial_state *state = dial->state;

	dial->index = choose(dial->options->targets, state, now_ns);
	if (state->deadline_ns == UINT64_MAX) {
		state->target_deadline_ns = UINT64_MAX;
	} else {
		uint64_t left_ns = state->deadline_ns - now_ns;
		uint64_t share_ns = left_ns / state->untried;
		if (share_ns < TARGET_LEAST_MS * NS_PER_MS)
			share_ns = TARGET_LEAST_MS * NS_PER_MS;
		state->target_timeout_ns = share_ns < left_ns ? share_ns : left_ns;
		state->target_deadline_ns = now_ns + state->target_timeout_ns;
	}
	state->tried[dial->index] = true;
	state->untried--;
	if (take_target(dial))
		return try_target(dial);
	failure_set(&state->why, FAILURE_ADMISSION,
		    "connect to %.120s: max_per_target: it has %u connections already",
		    targets_name(dial->options->targets, dial->index),
		    dial->options->targets->most);
	return FULL;
}

static void
leave_target(struct dial *dial, uint64_t now_ns)
{
	enum failure_kind kind = dial->state->why.kind;

	withdraw(dial);
	give_target(dial);
	if (is_our_own_lack(kind) || kind == FAILURE_ADMISSION)
		return;
	atomic_store_explicit(&target_of(dial)->failed_until_ns,
			      now_ns + TARGET_FAILED_S * NS_PER_S, memory_order_relaxed);
	note_outcome(dial, true, &dial->state->why);
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
		if (state->untried == 0 || is_our_own_lack(state->why.kind) ||
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
	struct targets *targets = dial->options->targets;
	struct dial_state *state = calloc(1, sizeof(*state) + targets->count);
	if (!state)
		return NULL;
	state->untried = targets->count;
	state->client = digest_client(dial->options->client);
	if (dial->options->only) {
		memset(state->tried, true, targets->count * sizeof(state->tried[0]));
		state->tried[*dial->options->only] = false;
		state->untried = 1;
	}
	if (targets->balance != BALANCE_ORDER)
		state->turn = atomic_fetch_add_explicit(&targets->turn, 1, memory_order_relaxed);
	evtimer_assign(&state->timer, dial->loop->base, on_due, dial);
	return state;
}

void
dial_start(struct dial *dial, struct loop *loop, const struct dial_options *options)
{
	uint64_t now_ns = clock_now_ns();

	assert(options->targets->count > 0);
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
