#include "resolver.h"

#include "clock.h"
#include "counted.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>

#define BUCKETS      256 /* of the table of names; a power of two */
#define LOOKUP_MOST  64  /* addresses looked at before the families are interleaved */
#define STOP_WAIT_NS NS_PER_S
#define GOOD_NS      (RESOLVER_GOOD_S * NS_PER_S)
#define FAILED_NS    (RESOLVER_FAILED_S * NS_PER_S)
#define STALE_NS     (RESOLVER_STALE_S * NS_PER_S)

struct resolver_query {
	struct message message; /* first */
	struct resolver *resolver;
	struct resolver_query *next;
	struct name *name; /* what it waits for; NULL = the answer is on its way */
	struct mailbox *mailbox;
	void (*on_answer)(void *asker, const struct resolver_answer *answer,
			  const struct failure *why); /* asker's thread; NULL = cancelled */
	void *asker;
	uint16_t port;
	struct resolver_answer answer; /* count 0: why says why */
	struct failure why;
};

enum name_state { NAME_IDLE, NAME_QUEUED, NAME_LOOKING };

struct name {
	struct name *next_in_bucket;
	TAILQ_ENTRY(name) under_way; /* while QUEUED, or LOOKING and not overdue */
	struct resolver_query *waiting;
	enum name_state state;
	bool overdue; /* LOOKING, and its deadline has passed */
	uint64_t deadline_ns;
	uint64_t asked_ns;           /* last */
	uint64_t answered_ns;        /* when `good` was learned */
	uint64_t fresh_until_ns;     /* until then nothing is looked up */
	struct resolver_answer good; /* the last good answer, without ports; count 0 = none */
	struct failure why;          /* of the last failed lookup */
	char host[];
};

struct resolver {
	struct counted counted; /* first; its threads hold it, a stuck one beyond resolver_stop */
	struct resolver_options options;
	pthread_mutex_t lock; /* over all that follows, and over queries until they are posted */
	pthread_cond_t work;  /* a name was queued, or stopping */
	pthread_cond_t watch; /* the first deadline changed, or stopping */
	pthread_cond_t ended; /* a thread ended */
	unsigned int threads; /* that look up names, stuck ones included */
	unsigned int stuck;   /* of these, in an overdue lookup */
	unsigned int running; /* all, the watcher included */
	bool stopping;
	TAILQ_HEAD(names, name) under_way; /* in the order of their deadlines */
	struct name *buckets[BUCKETS];
	size_t names;
};

/* One query and its way to the asker. */

static void
deliver(struct message *message)
{
	struct resolver_query *query = (struct resolver_query *)message;

	/* Waits until who posted it is out of the mailbox, which may be closed after the last answer. */
	pthread_mutex_lock(&query->resolver->lock);
	pthread_mutex_unlock(&query->resolver->lock);
	if (query->on_answer && query->answer.count > 0)
		query->on_answer(query->asker, &query->answer, NULL);
	else if (query->on_answer)
		query->on_answer(query->asker, NULL, &query->why);
	free(query);
}

static void
copy_answer(struct resolver_answer *to, const struct resolver_answer *from, uint16_t port)
{
	*to = *from;
	for (unsigned int i = 0; i < to->count; i++)
		to->at[i].port = port;
}

/* Posted with the lock held, so that who cancels knows for sure whether it was posted. */
static void
answer(struct resolver_query *query, const struct name *name)
{
	query->name = NULL;
	copy_answer(&query->answer, &name->good, query->port);
	if (query->answer.count == 0)
		query->why = name->why;
	mailbox_post(query->mailbox, &query->message);
}

static void
answer_all(struct name *name)
{
	struct resolver_query *query = name->waiting;

	name->waiting = NULL;
	while (query) {
		struct resolver_query *next = query->next; /* posted, it is the asker's */
		answer(query, name);
		query = next;
	}
}

/* The table of names. */

static struct name **
bucket_of(struct resolver *resolver, const char *host)
{
	uint32_t hash = 2166136261u; /* FNV-1a */

	for (const char *c = host; *c; c++)
		hash = (hash ^ (unsigned char)*c) * 16777619u;
	return &resolver->buckets[hash & (BUCKETS - 1)];
}

static struct name *
find_name(struct resolver *resolver, const char *host)
{
	struct name *name = *bucket_of(resolver, host);

	while (name && strcmp(name->host, host) != 0)
		name = name->next_in_bucket;
	return name;
}

static int
forget_oldest_name(struct resolver *resolver)
{
	struct name **oldest = NULL;

	for (size_t i = 0; i < BUCKETS; i++)
		for (struct name **at = &resolver->buckets[i]; *at; at = &(*at)->next_in_bucket)
			if ((*at)->state == NAME_IDLE &&
			    (!oldest || (*at)->asked_ns < (*oldest)->asked_ns))
				oldest = at;
	if (!oldest)
		return -1;
	struct name *name = *oldest;
	*oldest = name->next_in_bucket;
	resolver->names--;
	free(name);
	return 0;
}

static struct name *
add_name(struct resolver *resolver, const char *host)
{
	if (resolver->names >= RESOLVER_NAMES && forget_oldest_name(resolver) < 0)
		return NULL;
	size_t length = strlen(host) + 1;
	struct name *name = calloc(1, sizeof(*name) + length);
	if (!name)
		return NULL;
	memcpy(name->host, host, length);
	struct name **bucket = bucket_of(resolver, host);
	name->next_in_bucket = *bucket;
	*bucket = name;
	resolver->names++;
	return name;
}

static void
drop_stale(struct name *name, uint64_t now_ns)
{
	if (now_ns - name->answered_ns > STALE_NS)
		name->good.count = 0;
}

/* Whether what is known of the name is given without looking it up. */
static bool
is_settled(struct name *name, uint64_t now_ns)
{
	drop_stale(name, now_ns);
	return name->overdue || now_ns < name->fresh_until_ns;
}

/* What a lookup said. */

/* Families alternate, beginning with that of the first address. */
static void
interleave(struct resolver_answer *out, const struct socket_address *at, size_t count)
{
	sa_family_t first = at[0].family;
	size_t own = 0, other = 0;
	bool want_first = true;

	out->count = 0;
	while (out->count < RESOLVER_ADDRESSES) {
		while (own < count && at[own].family != first)
			own++;
		while (other < count && at[other].family == first)
			other++;
		if (own == count && other == count)
			break;
		if ((want_first && own < count) || other == count)
			out->at[out->count++] = at[own++];
		else
			out->at[out->count++] = at[other++];
		want_first = !want_first;
	}
}

static void
record_good(struct resolver *resolver, struct name *name, const struct socket_address *at,
	    size_t count)
{
	interleave(&name->good, at, count);
	name->answered_ns = resolver->options.now_ns();
	name->fresh_until_ns = name->answered_ns + GOOD_NS;
}

static void
record_failure(struct resolver *resolver, struct name *name, bool keep_good,
	       const struct failure *why)
{
	name->why = *why;
	if (!keep_good)
		name->good.count = 0;
	uint64_t now_ns = resolver->options.now_ns();
	drop_stale(name, now_ns);
	name->fresh_until_ns = now_ns + FAILED_NS;
}

static enum resolver_outcome
look_up(const char *host, struct socket_address *at, size_t most, size_t *count,
	struct failure *why)
{
	const struct addrinfo hints = {
		.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_ADDRCONFIG,
	};
	struct addrinfo *found = NULL;

	int error = getaddrinfo(host, NULL, &hints, &found);
	if (error == EAI_SYSTEM)
		failure_set_errno(why, errno, "cannot resolve %.120s", host);
	else if (error != 0)
		failure_set(why, error == EAI_MEMORY ? FAILURE_MEMORY : FAILURE_RESOLVE,
			    "cannot resolve %.120s: %s", host, gai_strerror(error));
	if (error != 0) {
		bool is_answer =
			error == EAI_NONAME || error == EAI_NODATA || error == EAI_ADDRFAMILY;
		return is_answer ? RESOLVER_NO_SUCH_NAME : RESOLVER_FAILING;
	}
	*count = 0;
	for (const struct addrinfo *one = found; one && *count < most; one = one->ai_next) {
		socket_address_from(&at[*count], one->ai_addr, one->ai_addrlen);
		if (at[*count].family != AF_UNSPEC)
			++*count;
	}
	freeaddrinfo(found);
	if (*count > 0)
		return RESOLVER_FOUND;
	failure_set(why, FAILURE_RESOLVE, "cannot resolve %.120s: it has no IP address", host);
	return RESOLVER_NO_SUCH_NAME;
}

/* The threads. */

/* Called and returns with the lock held; not while the name is looked up. */
static void
look_up_one(struct resolver *resolver, struct name *name)
{
	struct socket_address at[LOOKUP_MOST];
	size_t count = 0;
	struct failure why;

	name->state = NAME_LOOKING;
	pthread_mutex_unlock(&resolver->lock);
	enum resolver_outcome outcome =
		resolver->options.lookup(name->host, at, LOOKUP_MOST, &count, &why);
	pthread_mutex_lock(&resolver->lock);

	if (name->overdue)
		resolver->stuck--;
	else
		TAILQ_REMOVE(&resolver->under_way, name, under_way);
	name->overdue = false;
	name->state = NAME_IDLE;
	if (outcome == RESOLVER_FOUND)
		record_good(resolver, name, at, count);
	else
		record_failure(resolver, name, outcome == RESOLVER_FAILING, &why);
	answer_all(name);
}

static void
thread_ended(struct resolver *resolver)
{
	resolver->running--;
	pthread_cond_broadcast(&resolver->ended);
	pthread_mutex_unlock(&resolver->lock);
	counted_release(&resolver->counted);
}

static struct name *
first_queued(const struct resolver *resolver)
{
	struct name *name = TAILQ_FIRST(&resolver->under_way);

	while (name && name->state != NAME_QUEUED)
		name = TAILQ_NEXT(name, under_way);
	return name;
}

static void *
look_up_names(void *context)
{
	struct resolver *resolver = context;

	pthread_setname_np(pthread_self(), "resolver");
	pthread_mutex_lock(&resolver->lock);
	/* A thread that was stuck and has been replaced ends when it returns. */
	while (!resolver->stopping &&
	       resolver->threads - resolver->stuck <= resolver->options.threads) {
		struct name *name = first_queued(resolver);
		if (name)
			look_up_one(resolver, name);
		else
			pthread_cond_wait(&resolver->work, &resolver->lock);
	}
	resolver->threads--;
	thread_ended(resolver);
	return NULL;
}

/* With the lock held, or before there is a second thread. */
static int
start_thread(struct resolver *resolver, void *(*run)(void *), struct failure *why)
{
	pthread_attr_t attributes;
	pthread_t thread;
	sigset_t all;

	sigfillset(&all); /* signals are for the control thread */
	int error = pthread_attr_init(&attributes);
	if (error)
		return failure_set_errno(why, error, "cannot start a resolver thread");
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setsigmask_np(&attributes, &all);
	counted_hold(&resolver->counted);
	error = pthread_create(&thread, &attributes, run, resolver);
	pthread_attr_destroy(&attributes);
	if (error) {
		counted_release(&resolver->counted);
		return failure_set_errno(why, error, "cannot start a resolver thread");
	}
	resolver->running++;
	return 0;
}

static int
start_lookup_thread(struct resolver *resolver, struct failure *why)
{
	if (start_thread(resolver, look_up_names, why) < 0)
		return -1;
	resolver->threads++;
	return 0;
}

static void
expire(struct resolver *resolver, struct name *name)
{
	struct failure why;

	TAILQ_REMOVE(&resolver->under_way, name, under_way);
	if (name->state == NAME_QUEUED) {
		name->state = NAME_IDLE;
	} else {
		name->overdue = true;
		resolver->stuck++;
		if (resolver->threads < resolver->options.threads + RESOLVER_SPARE_THREADS)
			start_lookup_thread(resolver, NULL); /* if not, fewer look up */
	}
	failure_set(&why, FAILURE_RESOLVE, "cannot resolve %.120s: no answer within %gs",
		    name->host, (double)resolver->options.deadline_ns / (double)NS_PER_S);
	record_failure(resolver, name, true, &why);
	answer_all(name);
}

static void
wait_until(pthread_cond_t *condition, struct resolver *resolver, uint64_t due_ns)
{
	struct timespec due = {
		.tv_sec = (time_t)(due_ns / NS_PER_S),
		.tv_nsec = (long)(due_ns % NS_PER_S),
	};
	pthread_cond_timedwait(condition, &resolver->lock, &due);
}

static void *
watch_deadlines(void *context)
{
	struct resolver *resolver = context;

	pthread_setname_np(pthread_self(), "resolver-watch");
	pthread_mutex_lock(&resolver->lock);
	while (!resolver->stopping) {
		struct name *first = TAILQ_FIRST(&resolver->under_way);
		if (!first)
			pthread_cond_wait(&resolver->watch, &resolver->lock);
		else if (clock_now_ns() < first->deadline_ns)
			wait_until(&resolver->watch, resolver, first->deadline_ns);
		else
			expire(resolver, first);
	}
	thread_ended(resolver);
	return NULL;
}

/* Start and stop. */

static void
discard(struct counted *counted)
{
	struct resolver *resolver = (struct resolver *)counted;

	for (size_t i = 0; i < BUCKETS; i++)
		while (resolver->buckets[i]) {
			struct name *name = resolver->buckets[i];
			resolver->buckets[i] = name->next_in_bucket;
			free(name);
		}
	pthread_cond_destroy(&resolver->ended);
	pthread_cond_destroy(&resolver->watch);
	pthread_cond_destroy(&resolver->work);
	pthread_mutex_destroy(&resolver->lock);
	free(resolver);
}

static struct resolver *
make(const struct resolver_options *options)
{
	struct resolver *resolver = calloc(1, sizeof(*resolver));
	if (!resolver)
		return NULL;
	counted_init(&resolver->counted, discard);
	resolver->options = *options;
	if (!resolver->options.lookup)
		resolver->options.lookup = look_up;
	if (!resolver->options.now_ns)
		resolver->options.now_ns = clock_now_ns;
	if (!resolver->options.deadline_ns)
		resolver->options.deadline_ns = RESOLVER_DEADLINE_S * NS_PER_S;
	TAILQ_INIT(&resolver->under_way);

	/* None of these can fail with glibc. */
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_mutex_init(&resolver->lock, NULL);
	pthread_cond_init(&resolver->work, &attributes);
	pthread_cond_init(&resolver->watch, &attributes);
	pthread_cond_init(&resolver->ended, &attributes);
	pthread_condattr_destroy(&attributes);
	return resolver;
}

struct resolver *
resolver_start_with(const struct resolver_options *options, struct failure *why)
{
	struct resolver *resolver = make(options);
	if (!resolver) {
		failure_set(why, FAILURE_MEMORY, "no memory for the resolver");
		return NULL;
	}
	pthread_mutex_lock(&resolver->lock);
	int result = start_thread(resolver, watch_deadlines, why);
	while (result == 0 && resolver->threads < resolver->options.threads)
		result = start_lookup_thread(resolver, why);
	pthread_mutex_unlock(&resolver->lock);
	if (result < 0) {
		resolver_stop(resolver);
		return NULL;
	}
	return resolver;
}

struct resolver *
resolver_start(unsigned int threads, struct failure *why)
{
	const struct resolver_options options = { .threads = threads };
	return resolver_start_with(&options, why);
}

void
resolver_stop(struct resolver *resolver)
{
	if (!resolver)
		return;
	pthread_mutex_lock(&resolver->lock);
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct name *name = resolver->buckets[i]; name; name = name->next_in_bucket)
			assert(!name->waiting);
	resolver->stopping = true;
	pthread_cond_broadcast(&resolver->work);
	pthread_cond_broadcast(&resolver->watch);
	uint64_t due_ns = clock_now_ns() + STOP_WAIT_NS;
	while (resolver->running > 0 && clock_now_ns() < due_ns)
		wait_until(&resolver->ended, resolver, due_ns);
	pthread_mutex_unlock(&resolver->lock);
	counted_release(&resolver->counted);
}

/* Asking. */

bool
resolver_cached(struct resolver *resolver, const char *host, uint16_t port,
		struct resolver_answer *answer)
{
	pthread_mutex_lock(&resolver->lock);
	uint64_t now_ns = resolver->options.now_ns(); /* not before an answer that is there */
	struct name *name = find_name(resolver, host);
	bool known = name && is_settled(name, now_ns) && name->good.count > 0;
	if (known) {
		name->asked_ns = now_ns;
		copy_answer(answer, &name->good, port);
	}
	pthread_mutex_unlock(&resolver->lock);
	return known;
}

static void
start_lookup(struct resolver *resolver, struct name *name)
{
	if (TAILQ_EMPTY(&resolver->under_way))
		pthread_cond_signal(&resolver->watch);
	name->state = NAME_QUEUED;
	name->deadline_ns = clock_now_ns() + resolver->options.deadline_ns;
	TAILQ_INSERT_TAIL(&resolver->under_way, name, under_way);
	pthread_cond_signal(&resolver->work);
}

struct resolver_query *
resolver_ask(struct resolver *resolver, struct mailbox *mailbox, const char *host, uint16_t port,
	     void (*on_answer)(void *asker, const struct resolver_answer *answer,
			       const struct failure *why),
	     void *asker)
{
	struct resolver_query *query = calloc(1, sizeof(*query));
	if (!query)
		return NULL;
	query->message.deliver = deliver;
	query->resolver = resolver;
	query->mailbox = mailbox;
	query->on_answer = on_answer;
	query->asker = asker;
	query->port = port;

	pthread_mutex_lock(&resolver->lock);
	uint64_t now_ns = resolver->options.now_ns(); /* not before an answer that is there */
	struct name *name = find_name(resolver, host);
	if (!name && !(name = add_name(resolver, host))) {
		pthread_mutex_unlock(&resolver->lock);
		free(query);
		return NULL;
	}
	name->asked_ns = now_ns;
	if (is_settled(name, now_ns)) {
		answer(query, name);
	} else {
		query->name = name;
		query->next = name->waiting;
		name->waiting = query;
		if (name->state == NAME_IDLE)
			start_lookup(resolver, name);
	}
	pthread_mutex_unlock(&resolver->lock);
	return query;
}

void
resolver_cancel(struct resolver *resolver, struct resolver_query *query)
{
	if (!query)
		return;
	pthread_mutex_lock(&resolver->lock);
	bool waiting = query->name != NULL;
	if (waiting) {
		struct resolver_query **at = &query->name->waiting;
		while (*at != query)
			at = &(*at)->next;
		*at = query->next;
	}
	pthread_mutex_unlock(&resolver->lock);
	if (waiting)
		free(query);
	else
		query->on_answer = NULL; /* deliver, on this same thread, frees it */
}
