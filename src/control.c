#include "control.h"

#include "clock.h"
#include "control_admin.h"
#include "control_drain.h"
#include "control_reload.h"
#include "control_stopping.h"
#include "limits.h"
#include "log.h"
#include "mailbox.h"
#include "manager.h"
#include "process.h"
#include "resolver.h"
#include "worker.h"

#include <errno.h>
#include <event2/event.h>
#include <sys/random.h>

#define RESOLVER_THREADS 4

/* --- for control_*.c ------------------------------------------------------------------------------ */

static void
say_listening(const struct listeners *listeners, const struct listeners *before)
{
	for (size_t i = 0; i < listeners->count; i++) {
		const struct listener *listener = listeners->at[i];
		char text[SOCKET_ADDRESS_TEXT];
		bool known = false;
		for (size_t j = 0; j < before->count; j++)
			known |= before->at[j] == listener;
		if (known)
			continue;
		struct log_field fields[] = {
			{ .name = "tunnel", .text = listener->conf->name },
			{ .name = "address", .text = listener_text(listener, text) },
		};
		log_entry(LOG_LEVEL_NOTICE, fields, 2, "listening");
	}
}

void
control_settle_listeners(struct control *control)
{
	say_listening(&control->next_listeners, &control->listeners);
	switchover_close(&control->listeners, &control->next_listeners);
	control->listeners = control->next_listeners;
	control->next_listeners = (struct listeners){ 0 };
}

double
control_time_of_day(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / (double)NS_PER_S;
}

/* Whether something is under way behind which the next has to wait. */
static bool
is_busy(const struct control *control)
{
	return control_reload_is_under_way(control) || control->drain_wish;
}

void
control_grant(struct admin_wish **wishes, const struct failure *why)
{
	while (*wishes) {
		struct admin_wish *wish = *wishes;
		*wishes = wish->next;
		wish->over(wish, why);
	}
}

void
control_go_on(struct control *control)
{
	if (control->stops) {
		control_stopping_next(control);
		return;
	}
	while (control->drain_wishes && !is_busy(control))
		control_drain_next(control);
	if (control->reload_wanted && !is_busy(control))
		control_reload_next(control);
}

/* --- the whole ------------------------------------------------------------------------------------ */

static int
open_limits(struct control *control, struct failure *why)
{
	uint8_t seed[16];

	if (getrandom(seed, sizeof(seed), 0) != sizeof(seed))
		return failure_set_errno(why, errno, "cannot get random numbers");
	control->limits = limits_open(seed, why);
	return control->limits ? 0 : -1;
}

static void
on_switched(void *context)
{
	control_reload_switched(context);
}

static void
on_listening(void *context)
{
	control_drain_listening(context);
}

static void
on_empty(void *context)
{
	struct control *control = context;
	event_base_loopbreak(control->base);
}

int
control_start(struct control *control, struct generation *first, struct failure *why)
{
	control->workers = first->workers ? (unsigned int)first->workers : process_cpus();
	if (control_stopping_open(control, why) < 0)
		return -1;
	control->resolver = resolver_start(RESOLVER_THREADS, why);
	if (!control->resolver)
		return -1;
	if (open_limits(control, why) < 0)
		return -1;
	struct crew_options options = {
		.workers = control->workers,
		.resolver = control->resolver,
		.base = control->base,
		.limits = control->limits,
		.on_switched = on_switched,
		.on_listening = on_listening,
		.on_empty = on_empty,
		.context = control,
	};
	control->manager = manager_start(control->base, why);
	if (!control->manager || control_admin_start(control, why) < 0)
		return -1;
	control->crew = crew_start(&options, why);
	if (!control->crew)
		return -1;
	crew_watch(control->crew, control->manager);
	return control_reload_start(control, first, why);
}

bool
control_stop(struct control *control)
{
	static const struct listeners none;
	struct failure why;
	bool is_quiet = control_reload_stop(control);

	admin_stop();
	failure_set(&why, FAILURE_STOPPED, "the daemon stops");
	control_grant(&control->wishes, &why);
	control_grant(&control->next_wishes, &why);
	control_grant(&control->comparison, &why);
	control_grant(&control->drain_wishes, &why);
	if (control->drain_wish)
		control->drain_wish->over(control->drain_wish, &why);
	crew_stop(control->crew);
	mailbox_close(control->mailbox);
	resolver_stop(control->resolver);
	switchover_close(&control->next_listeners, &control->listeners);
	switchover_close(&control->listeners, &none);
	if (control->next)
		counted_release(&control->next->counted);
	if (control->generation)
		counted_release(&control->generation->counted);
	limits_close(control->limits);
	control_stopping_close(control);
	manager_stop(control->manager);
	return is_quiet;
}
