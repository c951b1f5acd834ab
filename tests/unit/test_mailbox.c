#include "mailbox.h"

#include <event2/event.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/time.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define POSTERS 4
#define LETTERS 20000

struct letter {
	struct message message; /* first */
	unsigned int poster, number;
};

static struct event_base *base;
static struct mailbox *mailbox;
static unsigned int delivered;
static unsigned int next_number[POSTERS];
static unsigned int wanted;

static int
open_mailbox(void **state)
{
	(void)state;
	delivered = 0;
	for (unsigned int i = 0; i < POSTERS; i++)
		next_number[i] = 0;
	base = event_base_new();
	mailbox = mailbox_open(base, NULL);
	return base && mailbox ? 0 : -1;
}

static int
close_mailbox(void **state)
{
	(void)state;
	mailbox_close(mailbox);
	event_base_free(base);
	mailbox = NULL;
	return 0;
}

static void
run_until_delivered(unsigned int count)
{
	const struct timeval patience = { 20, 0 };

	wanted = count;
	if (delivered >= wanted)
		return;
	event_base_loopexit(base, &patience);
	event_base_dispatch(base);
	assert_int_equal(delivered, wanted);
}

static void
count_one(void)
{
	if (++delivered == wanted)
		event_base_loopbreak(base);
}

static void
deliver_letter(struct message *message)
{
	struct letter *letter = (struct letter *)message;

	assert_int_equal(letter->number, next_number[letter->poster]);
	next_number[letter->poster]++;
	free(letter);
	count_one();
}

static void
post_letter(unsigned int poster, unsigned int number)
{
	struct letter *letter = calloc(1, sizeof(*letter));

	if (!letter)
		abort();
	letter->message.deliver = deliver_letter;
	letter->poster = poster;
	letter->number = number;
	mailbox_post(mailbox, &letter->message);
}

static void
order_is_kept(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < 100; i++)
		post_letter(0, i);
	assert_int_equal(delivered, 0);
	run_until_delivered(100);
}

static void *
post_many(void *context)
{
	for (unsigned int i = 0; i < LETTERS; i++)
		post_letter(*(unsigned int *)context, i);
	return NULL;
}

static void
nothing_is_lost_between_threads(void **state)
{
	pthread_t posters[POSTERS];
	unsigned int numbers[POSTERS];
	(void)state;

	for (unsigned int i = 0; i < POSTERS; i++) {
		numbers[i] = i;
		assert_int_equal(pthread_create(&posters[i], NULL, post_many, &numbers[i]), 0);
	}
	run_until_delivered(POSTERS * LETTERS);
	for (unsigned int i = 0; i < POSTERS; i++)
		pthread_join(posters[i], NULL);
}

static void
deliver_and_post_again(struct message *message)
{
	count_one();
	if (delivered < 50)
		mailbox_post(mailbox, message);
}

static void
a_message_may_be_posted_from_its_delivery(void **state)
{
	struct message message = { .deliver = deliver_and_post_again };
	(void)state;

	mailbox_post(mailbox, &message);
	run_until_delivered(50);
}

static void
a_mailbox_wakes_again_after_it_was_emptied(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < 3; i++) {
		post_letter(0, i);
		run_until_delivered(i + 1);
	}
}

static void
what_is_left_is_delivered_at_the_close(void **state)
{
	(void)state;
	post_letter(0, 0);
	post_letter(0, 1);
	mailbox_close(mailbox);
	mailbox = NULL;
	assert_int_equal(delivered, 2);
}

int
main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_mailbox, close_mailbox)
	const struct CMUnitTest tests[] = {
		CASE(order_is_kept),
		CASE(nothing_is_lost_between_threads),
		CASE(a_message_may_be_posted_from_its_delivery),
		CASE(a_mailbox_wakes_again_after_it_was_emptied),
		CASE(what_is_left_is_delivered_at_the_close),
	};
	return cmocka_run_group_tests_name("mailbox", tests, NULL, NULL);
}
