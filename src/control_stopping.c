#include "control_stopping.h"

#include "admission.h"
#include "clock.h"
#include "log.h"
#include "manager.h"
#include "worker.h"

#include <event2/event.h>
#include <sys/time.h>

static void
set_timer(struct event *timer, uint64_t after_ns)
{
	struct timeval after;
	clock_to_timeval(after_ns, &after);
	event_add(timer, &after);
}

static void
on_give_up(evutil_socket_t fd, short what, void *context)
{
	struct control *control = context;
	(void)fd;
	(void)what;
	event_base_loopbreak(control->base);
}

static void
on_drain_over(evutil_socket_t fd, short what, void *context)
{
	struct control *control = context;
	struct failure why;
	(void)fd;
	(void)what;

	failure_set(&why, FAILURE_STOPPED, "timeouts: drain has passed");
	crew_reset(control->crew, &why);
	/* A side that was reset waits for the other's last bytes a second at most. */
	set_timer(control->give_up, 3 * NS_PER_S);
}

/* After so long nothing is left to wait for; 0 = there is no end. */
static uint64_t
longest_drain(const struct generation *generation)
{
	uint64_t longest_ns = generation->timeouts.drain;

	for (size_t i = 0; i < generation->tunnel_count && longest_ns; i++) {
		uint64_t drain_ns = generation->tunnels[i]->timeouts.drain;
		if (!drain_ns || drain_ns > longest_ns)
			longest_ns = drain_ns;
	}
	return longest_ns;
}

static void
drain(struct control *control)
{
	uint64_t drain_ns = longest_drain(control->generation);

	struct failure why;
	failure_set(&why, FAILURE_STOPPED, "not reloaded: the daemon is stopping");
	control_grant(&control->wishes, &why);
	control_grant(&control->next_wishes, &why);
	failure_set(&why, FAILURE_STOPPED, "not done: the daemon is stopping");
	control_grant(&control->drain_wishes, &why);
	admin_drain();
	control->drains = true;
	manager_stopping(control->manager, drain_ns);
	log_line(LOG_LEVEL_NOTICE, "draining: no new connections, %llu go on",
		 (unsigned long long)admission_open());
	crew_drain(control->crew);
	if (drain_ns)
		set_timer(control->drain_over, drain_ns);
}

void
control_stopping_next(struct control *control)
{
	if (!control->drains && !control->next && !control->drain_wish)
		drain(control);
}

void
control_stopping_ask(struct control *control)
{
	if (control->stops) {
		log_line(LOG_LEVEL_NOTICE, "stopping at once");
		event_base_loopbreak(control->base);
		return;
	}
	control->stops = true;
	control_stopping_next(control);
}

int
control_stopping_open(struct control *control, struct failure *why)
{
	control->drain_over = evtimer_new(control->base, on_drain_over, control);
	control->give_up = evtimer_new(control->base, on_give_up, control);
	if (!control->drain_over || !control->give_up)
		return failure_set(why, FAILURE_MEMORY, "cannot make a timer");
	return 0;
}

void
control_stopping_close(struct control *control)
{
	if (control->drain_over)
		event_free(control->drain_over);
	if (control->give_up)
		event_free(control->give_up);
}
