#include "mailbox.h"

#include <errno.h>
#include <event2/event.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct mailbox {
	_Atomic(struct message *) newest; /* a stack, newest first: reversed at delivery */
	int fd;
	struct event *event;
};

/* What is there now; false: nothing. */
static bool
deliver_some(struct mailbox *mailbox)
{
	struct message *newest =
		atomic_exchange_explicit(&mailbox->newest, NULL, memory_order_acquire);
	struct message *oldest = NULL;
	bool some = newest != NULL;

	while (newest) {
		struct message *next = newest->next;
		newest->next = oldest;
		oldest = newest;
		newest = next;
	}
	while (oldest) {
		struct message *next = oldest->next; /* deliver may free it */
		oldest->deliver(oldest);
		oldest = next;
	}
	return some;
}

static void
on_mail(evutil_socket_t fd, short what, void *context)
{
	struct mailbox *mailbox = context;
	uint64_t count;
	(void)what;

	/* Cleared before the stack is taken: a post after that writes again. */
	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	/* What is posted meanwhile comes in a later turn: two that write to each other must not keep all others
	 * waiting. */
	deliver_some(mailbox);
}

struct mailbox *
mailbox_open(struct event_base *base, struct failure *why)
{
	struct mailbox *mailbox = calloc(1, sizeof(*mailbox));
	if (!mailbox) {
		failure_set(why, FAILURE_MEMORY, "no memory for a mailbox");
		return NULL;
	}
	mailbox->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (mailbox->fd < 0) {
		failure_set_errno(why, errno, "cannot open an eventfd for a mailbox");
		goto fail;
	}
	mailbox->event = event_new(base, mailbox->fd, EV_READ | EV_PERSIST, on_mail, mailbox);
	if (!mailbox->event || event_add(mailbox->event, NULL) < 0) {
		failure_set(why, FAILURE_MEMORY, "cannot watch a mailbox");
		goto fail;
	}
	return mailbox;
fail:
	mailbox_close(mailbox);
	return NULL;
}

void
mailbox_post(struct mailbox *mailbox, struct message *message)
{
	struct message *newest = atomic_load_explicit(&mailbox->newest, memory_order_relaxed);
	do
		message->next = newest;
	while (!atomic_compare_exchange_weak_explicit(&mailbox->newest, &newest, message,
						      memory_order_release, memory_order_relaxed));
	if (!newest) {
		uint64_t one = 1;
		while (write(mailbox->fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
	}
}

void
mailbox_close(struct mailbox *mailbox)
{
	if (!mailbox)
		return;
	while (deliver_some(mailbox))
		;
	if (mailbox->event)
		event_free(mailbox->event);
	if (mailbox->fd >= 0)
		close(mailbox->fd);
	free(mailbox);
}
