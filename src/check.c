#include "check.h"

#include "clock.h"
#include "log.h"
#include "target.h"
#include "tunnel.h"

#include <event2/event.h>
#include <stdlib.h>
#include <sys/time.h>

/* The first checks of many targets are spread over so long. */
#define FIRST_NS (250 * NS_PER_MS)
#define STEP_NS  (7 * NS_PER_MS)

struct checker {
	struct tunnel_check check; /* first */
	struct checker *next;
	struct checks *home;
	const struct tunnel_conf *conf; /* its generation is held */
	size_t target;
	struct event *timer;
};

static void
check_in(struct checker *checker, uint64_t after_ns)
{
	struct timeval after;
	clock_to_timeval(after_ns, &after);
	event_add(checker->timer, &after);
}

static void
say(const struct checker *checker, const struct failure *why)
{
	struct log_field fields[] = {
		{ .name = "tunnel", .text = checker->conf->name },
		{ .name = "target", .text = targets_name(checker->conf->targets, checker->target) },
		{ .name = "why", .text = why ? why->text : "" },
	};
	if (why)
		log_event(LOG_LEVEL_WARNING, fields, 3, "target fails its checks");
	else
		log_event(LOG_LEVEL_NOTICE, fields, 2, "target passes its checks");
}

static void
on_end(struct tunnel_check *check, const struct failure *why)
{
	struct checker *checker = (struct checker *)check;
	const struct check_conf *conf = &checker->conf->check;

	/* That we are short of something says nothing about the target. */
	if (why && (why->kind == FAILURE_MEMORY || why->kind == FAILURE_DESCRIPTORS)) {
		check_in(checker, conf->interval);
		return;
	}
	if (targets_checked(checker->conf->targets, checker->target, !why, conf->rise, conf->fall))
		say(checker, why);
	check_in(checker, conf->interval);
}

static void
on_timer(evutil_socket_t fd, short what, void *context)
{
	struct checker *checker = context;
	(void)fd;
	(void)what;

	checker->check = (struct tunnel_check){ .on_end = on_end };
	tunnel_check_start(checker->home->connections, checker->conf, checker->target,
			   checker->conf->check.timeout, &checker->check);
}

static void
checker_close(struct checker *checker)
{
	tunnel_check_stop(&checker->check);
	event_free(checker->timer);
	counted_release(checker->conf->generation);
	free(checker);
}

static void
add(struct checks *checks, const struct tunnel_conf *conf, size_t target, uint64_t after_ns)
{
	struct checker *checker = calloc(1, sizeof(*checker));
	if (checker)
		checker->timer = evtimer_new(checks->connections->loop->base, on_timer, checker);
	if (!checker || !checker->timer) {
		free(checker);
		log_line(LOG_LEVEL_ERROR, "no memory to check target %s of tunnel %s",
			 targets_name(conf->targets, target), conf->name);
		return;
	}
	checker->home = checks;
	checker->conf = conf;
	checker->target = target;
	counted_hold(conf->generation);
	checker->next = checks->first;
	checks->first = checker;
	check_in(checker, after_ns);
}

void
check_switch(struct checks *checks, struct generation *generation)
{
	uint64_t after_ns = STEP_NS;
	size_t number = 0;

	check_close(checks);
	for (size_t i = 0; i < generation->tunnel_count; i++) {
		const struct tunnel_conf *conf = generation->tunnels[i];
		for (size_t target = 0; target < tunnel_conf_target_count(conf); target++) {
			if (number++ % checks->workers != checks->worker)
				continue;
			if (!conf->check.origin.line)
				continue;
			add(checks, conf, target, after_ns);
			after_ns = (after_ns + STEP_NS) % FIRST_NS;
		}
	}
}

void
check_close(struct checks *checks)
{
	while (checks->first) {
		struct checker *checker = checks->first;
		checks->first = checker->next;
		checker_close(checker);
	}
}
