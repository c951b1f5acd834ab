#include "pulse.h"

#include "clock.h"

#include <errno.h>
#include <event2/event.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define PULSE_NS (PULSE_MS * NS_PER_MS)

const uint64_t pulse_bounds_ns[PULSE_BUCKETS] = {
	100000,         250000,         1 * NS_PER_MS,   2500000,          5 * NS_PER_MS,
	10 * NS_PER_MS, 50 * NS_PER_MS, 250 * NS_PER_MS, 1000 * NS_PER_MS,
};

static void
note(struct pulse *pulse, uint64_t late_ns)
{
	int bucket = 0;
	while (bucket < PULSE_BUCKETS && late_ns > pulse_bounds_ns[bucket])
		bucket++;
	pulse->late[bucket]++;
	pulse->late_ns += late_ns;
	pulse->beats++;
	if (late_ns > pulse->latest_ns)
		pulse->latest_ns = late_ns;
}

static void
on_beat(evutil_socket_t fd, short what, void *context)
{
	struct pulse *pulse = context;
	uint64_t beats, now_ns = clock_now_ns();
	(void)what;

	if (read(fd, &beats, sizeof(beats)) != (ssize_t)sizeof(beats))
		return;
	note(pulse, now_ns > pulse->due_ns ? now_ns - pulse->due_ns : 0);
	pulse->due_ns += beats * PULSE_NS;
	pulse->beat(pulse, now_ns);
}

int
pulse_open(struct pulse *pulse, struct loop *loop, struct failure *why)
{
	struct itimerspec every = {
		.it_value.tv_nsec = PULSE_NS,
		.it_interval.tv_nsec = PULSE_NS,
	};

	pulse->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (pulse->fd < 0)
		return failure_set_errno(why, errno, "cannot make a timer");
	pulse->event = event_new(loop->base, pulse->fd, EV_READ | EV_PERSIST, on_beat, pulse);
	pulse->due_ns = clock_now_ns() + PULSE_NS;
	if (!pulse->event || event_add(pulse->event, NULL) < 0 ||
	    timerfd_settime(pulse->fd, 0, &every, NULL) < 0) {
		pulse_close(pulse);
		return failure_set(why, FAILURE_MEMORY, "no memory for a timer");
	}
	return 0;
}

void
pulse_close(struct pulse *pulse)
{
	if (pulse->event)
		event_free(pulse->event);
	if (pulse->fd > 0)
		close(pulse->fd);
	pulse->event = NULL;
	pulse->fd = 0;
}
