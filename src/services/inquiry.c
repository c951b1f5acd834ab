#include "inquiry.h"

#include "utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_bool stopped;

static void
discard(struct counted *counted)
{
	struct inquiry *inquiry =
		(struct inquiry *)((char *)counted - offsetof(struct inquiry, counted));
	if (inquiry->answer->end)
		inquiry->answer->end(inquiry);
	free(inquiry->state);
	free(inquiry);
}

struct inquiry *
inquiry_open(const struct answer *answer, const struct admin_control *control, unsigned int home)
{
	struct inquiry *inquiry = calloc(1, sizeof(*inquiry));
	if (!inquiry)
		return NULL;
	inquiry->state = calloc(1, answer->state_bytes ? answer->state_bytes : 1);
	if (!inquiry->state) {
		free(inquiry);
		return NULL;
	}
	counted_init(&inquiry->counted, discard);
	inquiry->answer = answer;
	inquiry->control = control;
	inquiry->home = home;
	inquiry->status = 200;
	return inquiry;
}

void
inquiry_leave(struct inquiry *inquiry)
{
	atomic_store(&inquiry->is_left, true);
	counted_release(&inquiry->counted);
}

static void
on_home(struct message *message)
{
	struct inquiry *inquiry = (struct inquiry *)message;
	if (!atomic_load(&stopped) && !atomic_load(&inquiry->is_left))
		inquiry->on_home(inquiry);
	counted_release(&inquiry->counted);
}

static void
on_visit(struct message *message)
{
	struct inquiry *inquiry = (struct inquiry *)message;
	if (atomic_load(&stopped) || atomic_load(&inquiry->is_left))
		counted_release(&inquiry->counted);
	else if (inquiry->answer->collect(inquiry))
		inquiry_go_home(inquiry);
}

void
inquiry_go_home(struct inquiry *inquiry)
{
	const struct admin_control *control = inquiry->control;
	if (atomic_load(&stopped)) {
		counted_release(&inquiry->counted);
		return;
	}
	inquiry->message.deliver = on_home;
	mailbox_post(control->mailbox_of(control->context, inquiry->home), &inquiry->message);
}

void
inquiry_visit(struct inquiry *inquiry)
{
	const struct admin_control *control = inquiry->control;
	if (atomic_load(&stopped))
		return; /* the client goes as well */
	counted_hold(&inquiry->counted);
	inquiry->message.deliver = on_visit;
	mailbox_post(inquiry->place == PLACE_CONTROL
			     ? control->mailbox
			     : control->mailbox_of(control->context, (unsigned int)inquiry->place),
		     &inquiry->message);
}

int
inquiry_fail(struct inquiry *inquiry, int status, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(inquiry->failure, sizeof(inquiry->failure), format, arguments);
	va_end(arguments);
	utf8_mend(inquiry->failure);
	inquiry->status = status;
	return -1;
}

void
inquiry_stop_all(void)
{
	atomic_store(&stopped, true);
}
