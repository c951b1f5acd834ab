/*
 * mailbox: how threads talk. Anybody posts a message; it is delivered on the owning event loop's
 * thread. A message is an intrusive part of the poster's object: posting never allocates or fails.
 */
#ifndef PENSTOCK_MAILBOX_H
#define PENSTOCK_MAILBOX_H

#include "failure.h"

struct event_base;
struct mailbox;

struct message {
	struct message *next;
	/* Runs on the mailbox's thread and owns the message from then on: it may free or post it. */
	void (*deliver)(struct message *message);
};

/* Opens a mailbox whose messages are delivered by `base`'s loop. Loop's thread, or before it runs. */
struct mailbox *mailbox_open(struct event_base *base, struct failure *why);

/* Posts; any thread. The message must stay valid until delivered. Order is kept for each poster. One
 * atomic exchange; an eventfd write only if the mailbox was empty. The mailbox must still be open:
 * who closes it sees to it that nobody posts any more. */
void mailbox_post(struct mailbox *mailbox, struct message *message);

/* Delivers what is still in it, then frees it. NULL is allowed. Loop's thread. */
void mailbox_close(struct mailbox *mailbox);

#endif
