#include "admission.h"

#include "clock.h"
#include "log.h"
#include "name_index.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* One source of one tunnel, for as long as it has connections or a spent rate to be remembered. */
struct source {
	struct source *next;
	struct socket_address host;
	uint64_t open;
	uint64_t tokens; /* new connections it may open now, in units of 1 / period_ns */
	uint64_t full;   /* the most of them, by the rate that they were counted under; 0 = none */
	uint64_t refilled_ns;
};

#define SOURCE_ROWS_LEAST 64

/* Above the daemon's cap, for those who come to see to it; each takes two descriptors at most. */
#define ADMIN_CONNECTIONS (ADMISSION_RESERVE / 2 - 4)

struct sources {
	pthread_mutex_t lock;
	struct source **rows;
	size_t row_count, count; /* row_count: a power of two, or 0 */
	size_t sweep;            /* the next row to be rid of the forgotten */
};

static struct {
	pthread_mutex_t lock;
	struct name_index names;
	atomic_uint_fast64_t open, most;
} roster = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Known under its name, with no user yet; NULL without memory. Under the roster's lock. */
static struct tunnel_live *
live_new(const char *name)
{
	struct tunnel_live *live = calloc(1, sizeof(*live));
	if (!live)
		return NULL;
	live->name = strdup(name);
	live->sources = calloc(1, sizeof(*live->sources));
	if (!live->name || !live->sources || name_index_add(&roster.names, live->name, live) < 0) {
		free(live->name);
		free(live->sources);
		free(live);
		return NULL;
	}
	pthread_mutex_init(&live->sources->lock, NULL);
	return live;
}

struct tunnel_live *
admission_hold(const char *name, struct failure *why)
{
	pthread_mutex_lock(&roster.lock);
	struct tunnel_live *live = name_index_find(&roster.names, name);
	if (!live)
		live = live_new(name);
	if (live)
		live->users++;
	else
		failure_set(why, FAILURE_MEMORY, "no memory for tunnel \"%s\"", name);
	pthread_mutex_unlock(&roster.lock);
	return live;
}

static void
discard_sources(struct sources *sources)
{
	for (size_t row = 0; row < sources->row_count; row++)
		while (sources->rows[row]) {
			struct source *source = sources->rows[row];
			sources->rows[row] = source->next;
			free(source);
		}
	free(sources->rows);
	pthread_mutex_destroy(&sources->lock);
	free(sources);
}

void
admission_release(struct tunnel_live *live)
{
	if (!live)
		return;
	pthread_mutex_lock(&roster.lock);
	bool last = !--live->users;
	if (last)
		name_index_remove(&roster.names, live->name);
	pthread_mutex_unlock(&roster.lock);
	if (!last)
		return;
	discard_sources(live->sources);
	free(live->name);
	free(live);
}

size_t
admission_sources(const struct tunnel_live *live)
{
	pthread_mutex_lock(&live->sources->lock);
	size_t count = live->sources->count;
	pthread_mutex_unlock(&live->sources->lock);
	return count;
}

void
admission_set_most(uint64_t connections)
{
	atomic_store(&roster.most, connections);
}

uint64_t
admission_most(void)
{
	return atomic_load(&roster.most);
}

static int descriptor_limit;

void
admission_set_descriptors(int limit)
{
	descriptor_limit = limit;
}

int
admission_first_reserved(void)
{
	if (!descriptor_limit)
		return 0;
	return descriptor_limit > ADMISSION_RESERVE ? descriptor_limit - ADMISSION_RESERVE : 1;
}

/* Internal hops are followed; there is no circle. A front leads where all of its tunnels do. */
static bool
leads_to_admin(const struct tunnel_conf *conf)
{
	if (conf->group)
		return admission_is_for_operators(conf);
	for (size_t i = 0; i < tunnel_conf_target_count(conf); i++)
		if (!strcmp(tunnel_conf_target(conf, i)->text, "internal:admin") ||
		    (conf->internal && conf->internal[i].tunnel &&
		     leads_to_admin(conf->internal[i].tunnel)))
			return true;
	return false;
}

/* How many of those that a connection accepted under `conf` may come to lead there. */
static size_t
count_leading_to_admin(const struct tunnel_conf *conf)
{
	size_t count = 0;
	if (!conf->group)
		return leads_to_admin(conf);
	for (size_t i = 0; i < conf->group->count; i++)
		count += leads_to_admin(conf->group->tunnels[i]);
	return count;
}

bool
admission_is_for_operators(const struct tunnel_conf *conf)
{
	return count_leading_to_admin(conf) == (conf->group ? conf->group->count : 1);
}

bool
admission_is_reserved(int fd, const struct tunnel_conf *conf)
{
	return descriptor_limit && fd >= descriptor_limit - ADMISSION_RESERVE &&
	       !count_leading_to_admin(conf);
}

uint64_t
admission_open(void)
{
	return atomic_load(&roster.open);
}

static size_t
row_of(const struct sources *sources, const struct socket_address *host)
{
	/* FNV-1a over what makes a host; collisions cost time only, and rows grow with the sources. */
	uint64_t hash = UINT64_C(14695981039346656037) ^ host->family;
	const uint8_t *bytes = host->ip;
	size_t length = sizeof(host->ip);
	if (host->family == AF_UNIX) {
		bytes = (const uint8_t *)&host->uid;
		length = sizeof(host->uid);
	} else if (host->family == AF_INET) {
		length = 4;
	}
	for (size_t i = 0; i < length; i++)
		hash = (hash ^ bytes[i]) * UINT64_C(1099511628211);
	return (size_t)(hash ^ hash >> 32) & (sources->row_count - 1);
}

static struct source *
find(const struct sources *sources, const struct socket_address *host)
{
	if (!sources->row_count)
		return NULL;
	struct source *source = sources->rows[row_of(sources, host)];
	while (source && !socket_address_same_host(&source->host, host))
		source = source->next;
	return source;
}

/* A worker may have told the time before another one refilled. */
static uint64_t
since_refilled_ns(const struct source *source, uint64_t now_ns)
{
	return now_ns > source->refilled_ns ? now_ns - source->refilled_ns : 0;
}

static uint64_t
full_of(const struct frequency *rate)
{
	return rate->count * rate->period_ns;
}

static void
refill(struct source *source, const struct frequency *rate, uint64_t now_ns)
{
	uint64_t full = full_of(rate);
	uint64_t elapsed_ns = since_refilled_ns(source, now_ns);

	if (source->full != full) { /* a reload has changed the rate */
		double part = source->full ? (double)source->tokens / (double)source->full : 1;
		source->tokens = (uint64_t)(part * (double)full);
		source->full = full;
	}

	/* One period fills the bucket: beyond it the product could overflow and adds nothing. */
	if (elapsed_ns >= rate->period_ns)
		source->tokens = full;
	else
		source->tokens += elapsed_ns * rate->count;
	if (source->tokens > full)
		source->tokens = full;
	source->refilled_ns += elapsed_ns;
}

/* Forgets the sources of one row that have no connection and whose rate is fresh again. */
static void
sweep_row(struct sources *sources, const struct frequency *rate, uint64_t now_ns)
{
	struct source **link = &sources->rows[sources->sweep++ & (sources->row_count - 1)];
	while (*link) {
		struct source *source = *link;
		bool fresh = !rate->count || since_refilled_ns(source, now_ns) >= rate->period_ns;
		if (source->open || !fresh) {
			link = &source->next;
			continue;
		}
		*link = source->next;
		sources->count--;
		free(source);
	}
}

static void
grow(struct sources *sources)
{
	struct sources larger = { .row_count = sources->row_count ? sources->row_count * 2
								  : SOURCE_ROWS_LEAST };
	larger.rows = calloc(larger.row_count, sizeof(struct source *));
	if (!larger.rows)
		return; /* longer rows, then */
	for (size_t row = 0; row < sources->row_count; row++)
		while (sources->rows[row]) {
			struct source *source = sources->rows[row];
			struct source **to = &larger.rows[row_of(&larger, &source->host)];
			sources->rows[row] = source->next;
			source->next = *to;
			*to = source;
		}
	free(sources->rows);
	sources->rows = larger.rows;
	sources->row_count = larger.row_count;
}

static struct source *
find_or_add(struct sources *sources, const struct socket_address *host,
	    const struct frequency *rate, uint64_t now_ns)
{
	struct source *source = find(sources, host);
	if (source)
		return source;
	if (sources->count >= sources->row_count)
		grow(sources);
	if (!sources->row_count)
		return NULL;
	sweep_row(sources, rate, now_ns);
	sweep_row(sources, rate, now_ns);
	source = calloc(1, sizeof(*source));
	if (!source)
		return NULL;
	source->host = *host;
	source->tokens = source->full = full_of(rate);
	source->refilled_ns = now_ns;
	struct source **row = &sources->rows[row_of(sources, host)];
	source->next = *row;
	*row = source;
	sources->count++;
	return source;
}

static bool
counts_sources(const struct tunnel_conf *conf)
{
	return conf->max_per_source || conf->max_new_per_source.count;
}

static int
enter_source(const struct tunnel_conf *conf, const struct socket_address *host, uint64_t now_ns,
	     enum refusal *refusal, struct failure *why)
{
	struct sources *sources = conf->live->sources;
	const struct frequency *rate = &conf->max_new_per_source;
	int result = 0;

	pthread_mutex_lock(&sources->lock);
	struct source *source = find_or_add(sources, host, rate, now_ns);
	if (!source) {
		*refusal = REFUSAL_MEMORY;
		result = failure_set(why, FAILURE_MEMORY, "no memory to count a source");
	} else if (conf->max_per_source && source->open >= conf->max_per_source) {
		*refusal = REFUSAL_SOURCE_FULL;
		result = failure_set(why, FAILURE_ADMISSION,
				     "max_per_source: %llu connections of this source are open",
				     (unsigned long long)source->open);
	} else if (rate->count) {
		refill(source, rate, now_ns);
		*refusal = REFUSAL_SOURCE_RATE;
		if (source->tokens < rate->period_ns)
			result = failure_set(why, FAILURE_ADMISSION,
					     "max_new_per_source: this source connects too often");
		else
			source->tokens -= rate->period_ns;
	}
	if (!result)
		source->open++;
	pthread_mutex_unlock(&sources->lock);
	return result;
}

static int
allowed(const struct tunnel_conf *conf, const struct socket_address *source, enum refusal *refusal,
	struct failure *why)
{
	*refusal = REFUSAL_DRAINED;
	if (atomic_load_explicit(&conf->live->drained, memory_order_relaxed))
		return failure_set(why, FAILURE_ADMISSION, "the tunnel is drained");
	*refusal = REFUSAL_DENY;
	if (prefix_list_contains(&conf->deny, source))
		return failure_set(why, FAILURE_ADMISSION, "deny: this source is denied");
	*refusal = REFUSAL_ALLOW;
	if (conf->allow.count && !prefix_list_contains(&conf->allow, source))
		return failure_set(why, FAILURE_ADMISSION, "allow: this source is not listed");
	return 0;
}

static const char *const refusal_names[REFUSALS] = {
	[REFUSAL_DENY] = "deny",
	[REFUSAL_ALLOW] = "allow",
	[REFUSAL_DAEMON_FULL] = "max_connections",
	[REFUSAL_TUNNEL_FULL] = "tunnel_max_connections",
	[REFUSAL_SOURCE_FULL] = "max_per_source",
	[REFUSAL_SOURCE_RATE] = "max_new_per_source",
	[REFUSAL_DRAINED] = "drained",
	[REFUSAL_UNMATCHED] = "match",
	[REFUSAL_DESCRIPTORS] = "descriptors",
	[REFUSAL_MEMORY] = "memory",
};

const char *
admission_refusal_name(enum refusal refusal)
{
	return refusal_names[refusal];
}

void
admission_sum(const struct tunnel_live *live, struct tunnel_sums *out)
{
	*out = (struct tunnel_sums){ 0 };
	for (int i = 0; i < ADMISSION_COUNTERS; i++) {
		const struct tunnel_counters *counters = &live->counters[i];
		for (int side = 0; side < 2; side++)
			for (int name = 0; name < 2; name++)
				out->bytes[side][name] += counters->bytes[side][name];
		for (int state = 0; state < TUNNEL_STATES; state++)
			out->state[state] += counters->state[state];
		for (int who = 0; who < TUNNEL_ENDERS; who++)
			for (int kind = 0; kind < FAILURE_KINDS; kind++)
				out->ended[who][kind] += counters->ended[who][kind];
	}
}

/* Counts one more, unless that would be more than `most` (0 = no cap). */
static bool
count_up(atomic_uint_fast64_t *counter, uint64_t most)
{
	if (atomic_fetch_add(counter, 1) < most || !most)
		return true;
	atomic_fetch_sub(counter, 1);
	return false;
}

static int
count_in_tunnel(const struct tunnel_conf *conf, struct failure *why)
{
	if (count_up(&conf->live->open, conf->max_connections))
		return 0;
	return failure_set(why, FAILURE_ADMISSION,
			   "max_connections: the tunnel has %llu connections open",
			   (unsigned long long)conf->max_connections);
}

void
admission_refused(const struct tunnel_conf *conf, enum refusal refusal)
{
	atomic_fetch_add_explicit(&conf->live->refused[refusal], 1, memory_order_relaxed);
}

/* How much of a client's text is its host: from another port it is the same client. */
static size_t
host_bytes(const struct socket_address *client, const char *text)
{
	const char *port = client->family == AF_UNIX ? NULL : strrchr(text, ':');
	return port ? (size_t)(port - text) + 1 : 0;
}

void
admission_log_refusal(const struct tunnel_conf *conf, const struct socket_address *client,
		      const struct failure *why)
{
	char text[SOCKET_ADDRESS_TEXT];

	if (!log_wants(LOG_LEVEL_INFO) || conf->logged == LOGGED_NONE)
		return;
	socket_address_text(client, text);
	struct log_field fields[] = {
		{ .name = "tunnel", .text = conf->name },
		{ .name = "client", .text = text, .same_bytes = host_bytes(client, text) },
		{ .name = "reason", .text = failure_kind_name(why->kind) },
		{ .name = "why", .text = why->text },
	};
	log_event(LOG_LEVEL_INFO, fields, sizeof(fields) / sizeof(fields[0]), "connection refused");
}

static void
count_admitted(const struct tunnel_conf *conf)
{
	atomic_fetch_add_explicit(&conf->live->admitted, 1, memory_order_relaxed);
}

int
admission_enter(const struct tunnel_conf *conf, const struct socket_address *source,
		uint64_t now_ns, struct failure *why)
{
	struct tunnel_live *live = conf->live;
	uint64_t most = atomic_load_explicit(&roster.most, memory_order_relaxed);
	enum refusal refusal;

	if (source && allowed(conf, source, &refusal, why) < 0)
		goto refused;
	if (!count_up(&roster.open, most) && !(admission_is_for_operators(conf) &&
					       count_up(&roster.open, most + ADMIN_CONNECTIONS))) {
		refusal = REFUSAL_DAEMON_FULL;
		failure_set(why, FAILURE_ADMISSION,
			    "max_connections: the daemon has %llu connections open",
			    (unsigned long long)most);
		goto refused;
	}
	refusal = REFUSAL_TUNNEL_FULL;
	if (count_in_tunnel(conf, why) < 0)
		goto leave_daemon;
	if (source && counts_sources(conf) && enter_source(conf, source, now_ns, &refusal, why) < 0)
		goto leave_tunnel;
	if (source)
		count_admitted(conf);
	return 0;
leave_tunnel:
	atomic_fetch_sub(&live->open, 1);
leave_daemon:
	atomic_fetch_sub(&roster.open, 1);
refused:
	admission_refused(conf, refusal);
	return -1;
}

int
admission_judge(const struct tunnel_conf *conf, const struct socket_address *source,
		uint64_t now_ns, struct failure *why)
{
	enum refusal refusal;

	if (allowed(conf, source, &refusal, why) < 0 ||
	    (counts_sources(conf) && enter_source(conf, source, now_ns, &refusal, why) < 0)) {
		admission_refused(conf, refusal);
		return -1;
	}
	count_admitted(conf);
	return 0;
}

int
admission_move(const struct tunnel_conf *front, const struct tunnel_conf *conf, struct failure *why)
{
	if (front->live == conf->live)
		return 0;
	if (count_in_tunnel(conf, why) < 0) {
		admission_refused(conf, REFUSAL_TUNNEL_FULL);
		return -1;
	}
	atomic_fetch_sub(&front->live->open, 1);
	return 0;
}

void
admission_leave(const struct tunnel_conf *conf, const struct socket_address *source)
{
	struct sources *sources = conf->live->sources;

	atomic_fetch_sub(&roster.open, 1);
	atomic_fetch_sub(&conf->live->open, 1);
	if (!source || !counts_sources(conf))
		return;
	pthread_mutex_lock(&sources->lock);
	struct source *known = find(sources, source);
	if (known && known->open)
		known->open--;
	pthread_mutex_unlock(&sources->lock);
}
