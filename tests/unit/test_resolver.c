#include "clock.h"
#include "resolver.h"

#include <arpa/inet.h>
#include <event2/event.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

/* Waiting for something that must come; only a broken resolver takes so long. */
static const struct timeval patience = { 20, 0 };

/* The invented name service. A name that begins with "stuck" is not answered until `release`. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum resolver_outcome outcome;
	const char *addresses; /* separated by spaces */
	unsigned int calls, inside, most_inside;
	bool release;
} names = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static _Atomic uint64_t invented_ns;  /* the age of answers goes by this */
static atomic_uint times_asked;       /* how often somebody wanted to know it */
static void (*_Atomic on_time)(void); /* called once, by who wants to know it next; may be NULL */

static uint64_t
now_ns(void)
{
	uint64_t now = invented_ns;
	void (*call)(void) = atomic_exchange(&on_time, NULL);

	if (call)
		call();
	times_asked++;
	return now;
}

static size_t
parse_addresses(const char *text, struct socket_address *at, size_t most)
{
	char copy[1024], *rest = copy, *word;
	size_t count = 0;

	snprintf(copy, sizeof(copy), "%s", text);
	while (count < most && (word = strsep(&rest, " "))) {
		memset(&at[count], 0, sizeof(at[count]));
		at[count].family = strchr(word, ':') ? AF_INET6 : AF_INET;
		assert_int_equal(inet_pton(at[count].family, word, at[count].ip), 1);
		count++;
	}
	return count;
}

static enum resolver_outcome
look_up(const char *host, struct socket_address *at, size_t most, size_t *count,
	struct failure *why)
{
	pthread_mutex_lock(&names.lock);
	names.calls++;
	if (++names.inside > names.most_inside)
		names.most_inside = names.inside;
	pthread_cond_broadcast(&names.changed);
	while (strncmp(host, "stuck", 5) == 0 && !names.release)
		pthread_cond_wait(&names.changed, &names.lock);
	names.inside--;
	enum resolver_outcome outcome = names.outcome;
	if (outcome == RESOLVER_FOUND)
		*count = parse_addresses(names.addresses, at, most);
	else
		failure_set(why, FAILURE_RESOLVE, "cannot resolve %s: invented", host);
	pthread_cond_broadcast(&names.changed);
	pthread_mutex_unlock(&names.lock);
	return outcome;
}

static void
wait_until_inside(unsigned int count)
{
	pthread_mutex_lock(&names.lock);
	while (names.inside != count)
		pthread_cond_wait(&names.changed, &names.lock);
	pthread_mutex_unlock(&names.lock);
}

static void
release_the_stuck(void)
{
	pthread_mutex_lock(&names.lock);
	names.release = true;
	pthread_cond_broadcast(&names.changed);
	pthread_mutex_unlock(&names.lock);
}

static void
say(enum resolver_outcome outcome, const char *addresses)
{
	pthread_mutex_lock(&names.lock);
	names.outcome = outcome;
	names.addresses = addresses;
	pthread_mutex_unlock(&names.lock);
}

static unsigned int
calls(void)
{
	pthread_mutex_lock(&names.lock);
	unsigned int count = names.calls;
	pthread_mutex_unlock(&names.lock);
	return count;
}

/* One asking thread: its loop, its mailbox and what it was answered. */
struct desk {
	struct event_base *base;
	struct mailbox *mailbox;
	unsigned int answered, wanted;
	struct resolver_answer answer;
	struct failure why;
};

static struct resolver *resolver;
static struct desk desk;

static void
open_desk(struct desk *opened)
{
	memset(opened, 0, sizeof(*opened));
	opened->base = event_base_new();
	opened->mailbox = mailbox_open(opened->base, NULL);
	assert_non_null(opened->mailbox);
}

static void
close_desk(struct desk *closed)
{
	mailbox_close(closed->mailbox);
	event_base_free(closed->base);
}

static void
start(unsigned int threads, uint64_t deadline_ns)
{
	const struct resolver_options options = {
		.threads = threads,
		.lookup = look_up,
		.now_ns = now_ns,
		.deadline_ns = deadline_ns,
	};
	resolver = resolver_start_with(&options, NULL);
	assert_non_null(resolver);
}

static int
prepare(void **state)
{
	(void)state;
	say(RESOLVER_FOUND, "192.0.2.1");
	names.calls = names.inside = names.most_inside = 0;
	names.release = false;
	invented_ns = 1000 * NS_PER_S;
	open_desk(&desk);
	return 0;
}

static int
finish(void **state)
{
	(void)state;
	release_the_stuck();
	close_desk(&desk);
	resolver_stop(resolver);
	resolver = NULL;
	return 0;
}

static void
on_answer(void *asker, const struct resolver_answer *answer, const struct failure *why)
{
	struct desk *asking = asker;

	if (answer && !why) {
		assert_true(answer->count > 0);
		asking->answer = *answer;
	} else if (why && !answer) {
		asking->answer.count = 0;
		asking->why = *why;
	} else {
		fail_msg("neither an answer nor a failure, or both");
	}
	if (++asking->answered == asking->wanted)
		event_base_loopbreak(asking->base);
}

static void
wait_for_answers(struct desk *asking, unsigned int count)
{
	asking->wanted = count;
	if (asking->answered < count) {
		event_base_loopexit(asking->base, &patience);
		event_base_dispatch(asking->base);
	}
	assert_int_equal(asking->answered, count);
}

static struct resolver_query *
ask(struct desk *asking, const char *host)
{
	struct resolver_query *query =
		resolver_ask(resolver, asking->mailbox, host, 6379, on_answer, asking);
	assert_non_null(query);
	return query;
}

/* Asks and waits; the answer is in desk. */
static void
resolve(const char *host)
{
	unsigned int before = desk.answered;

	ask(&desk, host);
	assert_int_equal(desk.answered, before);
	wait_for_answers(&desk, before + 1);
}

/* For tests with a deadline so short that a busy machine may miss it. */
static void
resolve_in_the_end(const char *host)
{
	resolve(host);
	for (unsigned int tries = 0; desk.answer.count == 0 && tries < 500; tries++) {
		invented_ns += RESOLVER_FAILED_S * NS_PER_S;
		resolve(host);
	}
}

/* Asks for a name that gets stuck, until its lookup is the count-th inside. */
static void
get_stuck(const char *host, unsigned int count)
{
	resolve(host);
	pthread_mutex_lock(&names.lock);
	while (names.inside < count) {
		pthread_mutex_unlock(&names.lock);
		invented_ns += RESOLVER_FAILED_S * NS_PER_S;
		resolve(host);
		pthread_mutex_lock(&names.lock);
	}
	pthread_mutex_unlock(&names.lock);
}

static void
expect_addresses(const char *addresses)
{
	struct socket_address at[RESOLVER_ADDRESSES];
	size_t count = parse_addresses(addresses, at, RESOLVER_ADDRESSES);

	assert_int_equal(desk.answer.count, count);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(desk.answer.at[i].family, at[i].family);
		assert_memory_equal(desk.answer.at[i].ip, at[i].ip, sizeof(at[i].ip));
		assert_int_equal(desk.answer.at[i].port, 6379);
	}
}

static void
families_alternate(void **state)
{
	(void)state;
	start(1, 0);
	say(RESOLVER_FOUND, "2001:db8::1 2001:db8::2 192.0.2.1 2001:db8::3");
	resolve("v6first");
	expect_addresses("2001:db8::1 192.0.2.1 2001:db8::2 2001:db8::3");
	say(RESOLVER_FOUND, "192.0.2.1 192.0.2.2 192.0.2.3 2001:db8::1");
	resolve("v4first");
	expect_addresses("192.0.2.1 2001:db8::1 192.0.2.2 192.0.2.3");
}

static void
both_families_stay_of_many_addresses(void **state)
{
	char many[1024];
	size_t length = 0;
	(void)state;

	start(1, 0);
	for (unsigned int i = 1; i <= 40; i++)
		length += (size_t)snprintf(many + length, sizeof(many) - length, "192.0.2.%u ", i);
	snprintf(many + length, sizeof(many) - length, "2001:db8::1");
	say(RESOLVER_FOUND, many);
	resolve("many");
	assert_int_equal(desk.answer.count, RESOLVER_ADDRESSES);
	assert_int_equal(desk.answer.at[1].family, AF_INET6);
	assert_int_equal(desk.answer.at[15].ip[3], 15);
}

static void
a_good_answer_is_kept_for_a_while(void **state)
{
	struct resolver_answer answer;
	(void)state;

	start(1, 0);
	assert_false(resolver_cached(resolver, "good", 80, &answer));
	resolve("good");
	assert_true(resolver_cached(resolver, "good", 80, &answer));
	assert_int_equal(answer.count, 1);
	assert_int_equal(answer.at[0].port, 80);
	invented_ns += RESOLVER_GOOD_S * NS_PER_S - 1;
	assert_true(resolver_cached(resolver, "good", 80, &answer));
	resolve("good");
	assert_int_equal(calls(), 1);
	invented_ns += 1;
	assert_false(resolver_cached(resolver, "good", 80, &answer));
	resolve("good");
	assert_int_equal(calls(), 2);
}

static void
a_failure_is_kept_for_a_moment(void **state)
{
	struct resolver_answer answer;
	(void)state;

	start(1, 0);
	say(RESOLVER_NO_SUCH_NAME, NULL);
	resolve("bad");
	assert_int_equal(desk.answer.count, 0);
	assert_int_equal(desk.why.kind, FAILURE_RESOLVE);
	assert_string_equal(desk.why.text, "cannot resolve bad: invented");
	assert_false(resolver_cached(resolver, "bad", 80, &answer));
	say(RESOLVER_FOUND, "192.0.2.7");
	resolve("bad");
	assert_int_equal(desk.answer.count, 0);
	assert_int_equal(calls(), 1);
	invented_ns += RESOLVER_FAILED_S * NS_PER_S;
	resolve("bad");
	expect_addresses("192.0.2.7");
}

static void
the_stale_answer_is_given_while_the_resolver_fails(void **state)
{
	struct resolver_answer answer;
	(void)state;

	start(1, 0);
	resolve("good");
	say(RESOLVER_FAILING, NULL);
	invented_ns += RESOLVER_GOOD_S * NS_PER_S;
	resolve("good");
	expect_addresses("192.0.2.1");
	assert_true(resolver_cached(resolver, "good", 80, &answer));
	assert_int_equal(calls(), 2);
	invented_ns += RESOLVER_FAILED_S * NS_PER_S;
	assert_false(resolver_cached(resolver, "good", 80, &answer));
	resolve("good");
	expect_addresses("192.0.2.1");
	assert_int_equal(calls(), 3);
	invented_ns += RESOLVER_STALE_S * NS_PER_S;
	resolve("good");
	assert_int_equal(desk.answer.count, 0);
	assert_string_equal(desk.why.text, "cannot resolve good: invented");
}

static void
a_name_that_is_gone_is_not_given_any_more(void **state)
{
	(void)state;
	start(1, 0);
	resolve("good");
	invented_ns += RESOLVER_GOOD_S * NS_PER_S;
	say(RESOLVER_NO_SUCH_NAME, NULL);
	resolve("good");
	assert_int_equal(desk.answer.count, 0);
	invented_ns += RESOLVER_FAILED_S * NS_PER_S;
	say(RESOLVER_FAILING, NULL);
	resolve("good");
	assert_int_equal(desk.answer.count, 0);
}

static void
many_askers_share_one_lookup(void **state)
{
	(void)state;
	start(4, 0);
	for (unsigned int i = 0; i < 10; i++)
		ask(&desk, "stuck");
	wait_until_inside(1);
	for (unsigned int i = 0; i < 10; i++)
		ask(&desk, "stuck");
	release_the_stuck();
	wait_for_answers(&desk, 20);
	assert_int_equal(calls(), 1);
}

/* Until the thread that looks up has noted when that was, or cannot for a tenth of a second. */
static void
finish_the_lookup(void)
{
	unsigned int before = times_asked;
	uint64_t began_ns = clock_now_ns();

	invented_ns++;
	release_the_stuck();
	while (times_asked == before && clock_now_ns() - began_ns < NS_PER_S / 10)
		sched_yield();
}

/* The answer is younger than the question: it must not pass for one of a very old age. */
static void
an_answer_that_comes_with_the_question_is_given(void **state)
{
	struct desk late;
	(void)state;

	start(1, 0);
	open_desk(&late);
	ask(&desk, "stuck");
	wait_until_inside(1);
	on_time = finish_the_lookup;
	ask(&late, "stuck");
	wait_for_answers(&desk, 1);
	wait_for_answers(&late, 1);
	assert_int_equal(desk.answer.count, 1);
	assert_int_equal(late.answer.count, 1);
	close_desk(&late);
}

static void
a_stuck_lookup_is_answered_at_the_deadline(void **state)
{
	struct resolver_answer answer;
	(void)state;

	start(1, 50 * NS_PER_MS);
	get_stuck("stuck", 1);
	assert_int_equal(desk.answer.count, 0);
	assert_string_equal(desk.why.text, "cannot resolve stuck: no answer within 0.05s");

	/* While it is stuck, nobody waits for it and it is not looked up again. */
	invented_ns += 60 * NS_PER_S;
	resolve("stuck");
	assert_int_equal(desk.answer.count, 0);
	assert_int_equal(calls(), 1);

	/* The stuck thread was replaced. */
	resolve_in_the_end("good");
	expect_addresses("192.0.2.1");

	/* A late answer is an answer. */
	release_the_stuck();
	wait_until_inside(0);
	while (!resolver_cached(resolver, "stuck", 80, &answer))
		sched_yield();
}

static void
the_stale_answer_is_given_when_a_lookup_is_stuck(void **state)
{
	(void)state;
	start(1, 50 * NS_PER_MS);
	names.release = true;
	resolve_in_the_end("stuck");
	invented_ns += RESOLVER_GOOD_S * NS_PER_S;
	pthread_mutex_lock(&names.lock);
	names.release = false;
	pthread_mutex_unlock(&names.lock);
	resolve("stuck");
	expect_addresses("192.0.2.1");
	invented_ns += RESOLVER_STALE_S * NS_PER_S;
	resolve("stuck");
	assert_int_equal(desk.answer.count, 0);
}

static void
stuck_threads_are_bounded(void **state)
{
	enum { MOST = 1 + RESOLVER_SPARE_THREADS };
	char host[16];
	(void)state;

	start(1, 20 * NS_PER_MS);
	for (unsigned int i = 0; i < MOST; i++) {
		snprintf(host, sizeof(host), "stuck-%u", i);
		get_stuck(host, i + 1);
		assert_int_equal(desk.answer.count, 0);
	}
	/* All are stuck: whoever asks gets an answer at the deadline. */
	resolve("good");
	assert_string_equal(desk.why.text, "cannot resolve good: no answer within 0.02s");
	assert_int_equal(names.most_inside, MOST);
	release_the_stuck();
	wait_until_inside(0);
	resolve_in_the_end("good");
	expect_addresses("192.0.2.1");
}

static void
a_withdrawn_question_is_not_answered(void **state)
{
	(void)state;
	start(1, 0);
	struct resolver_query *waiting = ask(&desk, "stuck");
	ask(&desk, "stuck");
	struct resolver_query *other = ask(&desk, "stuck");
	resolver_cancel(resolver, waiting);
	resolver_cancel(resolver, other);
	release_the_stuck();
	wait_for_answers(&desk, 1);

	/* The answer is in the mailbox already. */
	struct resolver_query *posted = ask(&desk, "stuck");
	resolver_cancel(resolver, posted);
	resolve("stuck");
	assert_int_equal(desk.answered, 2);
	resolver_cancel(resolver, NULL);
}

static void
a_question_may_be_asked_and_withdrawn_from_an_answer(void *asker,
						     const struct resolver_answer *answer,
						     const struct failure *why)
{
	struct desk *asking = asker;
	resolver_cancel(resolver, ask(asking, "other"));
	on_answer(asker, answer, why);
}

static void
an_answer_may_ask_again(void **state)
{
	(void)state;
	start(1, 0);
	resolver_ask(resolver, desk.mailbox, "good", 6379,
		     a_question_may_be_asked_and_withdrawn_from_an_answer, &desk);
	wait_for_answers(&desk, 1);
	resolve("other");
	assert_int_equal(desk.answered, 2);
}

static void
the_number_of_names_is_bounded(void **state)
{
	struct resolver_answer answer;
	char host[32];
	(void)state;

	start(2, 0);
	for (unsigned int i = 0; i <= RESOLVER_NAMES; i++) {
		snprintf(host, sizeof(host), "name-%u", i);
		invented_ns++;
		resolve(host);
		invented_ns++;
		assert_true(resolver_cached(resolver, "name-0", 80, &answer));
	}
	assert_false(resolver_cached(resolver, "name-1", 80, &answer));
	assert_true(resolver_cached(resolver, "name-2", 80, &answer));
	assert_true(resolver_cached(resolver, host, 80, &answer));
}

static void *
ask_and_withdraw(void *context)
{
	unsigned int seed = *(unsigned int *)context;
	struct desk own;
	struct resolver_query *last = NULL;
	char host[16];
	unsigned int wanted = 0;
	open_desk(&own);
	for (unsigned int i = 0; i < 2000; i++) {
		snprintf(host, sizeof(host), "name-%u", (unsigned int)rand_r(&seed) % 50);
		if (i % 3 == 1) {
			resolver_cancel(resolver, last);
			wanted--;
		}
		last = ask(&own, host);
		wanted++;
		if (i % 3 == 2) {
			last = NULL;
			wait_for_answers(&own, wanted);
		}
		if (i % 100 == 99)
			invented_ns += RESOLVER_GOOD_S * NS_PER_S;
	}
	wait_for_answers(&own, wanted);
	close_desk(&own);
	return NULL;
}

static void
two_threads_may_ask(void **state)
{
	pthread_t threads[2];
	unsigned int seeds[2] = { 1, 2 };
	(void)state;

	start(2, 0);
	for (unsigned int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_and_withdraw, &seeds[i]), 0);
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

static void
a_stuck_thread_does_not_hold_up_the_stop(void **state)
{
	(void)state;
	start(1, 0);
	struct resolver_query *query = ask(&desk, "stuck");
	wait_until_inside(1);
	resolver_cancel(resolver, query);
	uint64_t before_ns = clock_now_ns();
	resolver_stop(resolver);
	resolver = NULL;
	assert_true(clock_now_ns() - before_ns < 10 * NS_PER_S);
	release_the_stuck();
	wait_until_inside(0);
}

static void
getaddrinfo_is_asked(void **state)
{
	(void)state;
	resolver = resolver_start(2, NULL);
	assert_non_null(resolver);
	resolve("localhost");
	assert_true(desk.answer.count > 0);
	assert_int_equal(desk.answer.at[0].port, 6379);
	resolve("127.0.0.9");
	expect_addresses("127.0.0.9");
}

int
main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, prepare, finish)
	const struct CMUnitTest tests[] = {
		CASE(families_alternate),
		CASE(both_families_stay_of_many_addresses),
		CASE(a_good_answer_is_kept_for_a_while),
		CASE(a_failure_is_kept_for_a_moment),
		CASE(the_stale_answer_is_given_while_the_resolver_fails),
		CASE(a_name_that_is_gone_is_not_given_any_more),
		CASE(many_askers_share_one_lookup),
		CASE(an_answer_that_comes_with_the_question_is_given),
		CASE(a_stuck_lookup_is_answered_at_the_deadline),
		CASE(the_stale_answer_is_given_when_a_lookup_is_stuck),
		CASE(stuck_threads_are_bounded),
		CASE(a_withdrawn_question_is_not_answered),
		CASE(an_answer_may_ask_again),
		CASE(the_number_of_names_is_bounded),
		CASE(two_threads_may_ask),
		CASE(a_stuck_thread_does_not_hold_up_the_stop),
		CASE(getaddrinfo_is_asked),
	};
	return cmocka_run_group_tests_name("resolver", tests, NULL, NULL);
}
