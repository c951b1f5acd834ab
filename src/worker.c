#include "worker.h"

#include "admission.h"
#include "check.h"
#include "clock.h"
#include "connection_view.h"
#include "endpoint.h"
#include "limits.h"
#include "log.h"
#include "mailbox.h"
#include "manager.h"
#include "pulse.h"
#include "recent.h"
#include "services/canary.h"
#include "tunnel.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* Pipes for splicing, of 1 MiB each, over all workers: an unprivileged user may have 64 MiB. */
#define PIPES_MOST     32
#define TIMER_SLACK_NS 1000UL
#define TRIM_EVERY_NS  (30 * NS_PER_S)
/* The limits' wake-ups are rounded up to this: many that are due soon after one another are one. */
#define LIMITS_GRAIN_NS (1 * NS_PER_MS)
/* How often in one turn what was granted may move and ask again before I/O has its turn. */
#define LIMITS_ROUNDS 4

/* An order to one worker, or its answer: a message that knows its worker. */
struct order {
	struct message message;
	struct worker *worker;
};

struct worker {
	struct crew *crew;
	struct loop loop;
	struct door door;
	struct connections connections;
	struct pulse pulse;
	struct checks checks;
	struct canary canary;
	const struct generation *generation; /* in force here; borrowed */
	struct event *trim;
	struct limits_worker limits;
	struct event *limits_timer;
	int limits_fd;                /* a timerfd */
	uint64_t limits_armed_ns;     /* what it is set to */
	bool limits_called;           /* it has fired, or another worker has granted us something */
	atomic_bool limits_signalled; /* `granted` is on its way */
	atomic_bool awaits_room;      /* its door was told that no worker has room */
	atomic_bool room_is_told;     /* `room` is on its way */
	pthread_t thread;
	bool runs;
	bool is_shut;           /* lets operators in alone, and hands nobody over any more */
	atomic_bool says_empty; /* `empty` is on its way */
	bool over;              /* its loop has ended: nobody moves in any more */
	struct order switch_over, switched, listen, listening, shut, shut_too, drain, empty, reset,
		stop, granted, room, ping, pong;
	struct manager_check check;
	bool is_well; /* as `pong` says */
	char name[24];
};

struct crew {
	struct crew_options options;
	const struct generation *generation;
	struct listener *const *listeners;
	size_t listener_count;
	struct mailbox *answers; /* of the workers, to the control thread */
	bool stopping;           /* they interest nobody any more */
	unsigned int
		switching; /* workers that have not switched yet, or not heard what to listen at */
	unsigned int shutting; /* workers whose doors are not closed yet */
	struct failure why;    /* of a reset */
	struct manager *manager;
	struct worker workers[];
};

/* A fresh connection on its way to another worker. */
struct handover {
	struct message message;
	struct worker *to;
	const struct tunnel_conf *conf;
	int fd;
	struct facts facts;
};

static struct worker *
worker_of(struct message *message)
{
	return ((struct order *)message)->worker;
}

static void
prepare_order(struct worker *worker, struct order *order, void (*deliver)(struct message *))
{
	order->worker = worker;
	order->message.deliver = deliver;
}

/* --- on the worker's thread ----------------------------------------------------------------------- */

static void
on_handover(struct message *message)
{
	struct handover *handover = (struct handover *)message;
	struct counted *generation = handover->conf->generation;
	struct connections *connections = &handover->to->connections;

	if (handover->to->over) {
		endpoint_reset_socket(handover->fd);
		admission_leave(handover->conf, &handover->facts.client);
		atomic_fetch_sub(&connections->count, 1);
	} else {
		tunnel_accept(connections, handover->conf, handover->fd, &handover->facts);
	}
	counted_release(generation);
	free(handover);
}

/* By what the asker goes by: while a reload comes another may still go by something else. */
static bool
has_room(const struct worker *worker, const struct worker *asker)
{
	return atomic_load(&worker->connections.handshakes) < asker->connections.handshakes_most;
}

static uint64_t
count_of(const struct worker *worker)
{
	return atomic_load_explicit(&worker->connections.count, memory_order_relaxed);
}

/* The one with the fewest connections, of those with room if it shakes hands; NULL = none has. */
static struct worker *
least_loaded(struct worker *own, bool shakes_hands)
{
	struct crew *crew = own->crew;
	struct worker *least = !shakes_hands || has_room(own, own) ? own : NULL;

	for (unsigned int i = 0; i < crew->options.workers; i++) {
		struct worker *other = &crew->workers[i];
		if ((!least || count_of(other) < count_of(least)) &&
		    (!shakes_hands || has_room(other, own)))
			least = other;
	}
	return least;
}

static struct worker *
choose(struct worker *own, const struct tunnel_conf *conf)
{
	struct worker *least = least_loaded(own, conf->shakes_hands);

	if (!least)
		return own; /* it had room, or has to take it all the same */
	if (conf->shakes_hands && !has_room(own, own))
		return least;
	/* The new one counted as our own: moving it has its price, so small differences stay. */
	uint64_t least_count = count_of(least);
	return count_of(own) + 1 >= least_count + 2 + least_count / 8 ? least : own;
}

static void
on_place(struct door *door, const struct tunnel_conf *conf, int fd, const struct facts *facts)
{
	struct worker *own = (struct worker *)((char *)door - offsetof(struct worker, door));
	bool is_alone = own->crew->options.workers == 1 || own->is_shut;
	struct worker *to = is_alone ? own : choose(own, conf);
	struct handover *handover = to == own ? NULL : malloc(sizeof(*handover));

	if (!handover)
		to = own;
	atomic_fetch_add(&to->connections.count, 1);
	if (conf->shakes_hands)
		atomic_fetch_add(&to->connections.handshakes, 1);
	if (!handover) {
		tunnel_accept(&own->connections, conf, fd, facts);
		return;
	}
	*handover = (struct handover){
		.message.deliver = on_handover, .to = to, .conf = conf, .fd = fd, .facts = *facts
	};
	counted_hold(conf->generation);
	mailbox_post(to->loop.mailbox, &handover->message);
}

/* --- handshakes, on the worker's thread ------------------------------------------------------------- */

static bool
can_place(struct worker *worker)
{
	return has_room(worker, worker) || (!worker->is_shut && least_loaded(worker, true));
}

static bool
on_has_room(struct door *door)
{
	struct worker *worker = (struct worker *)((char *)door - offsetof(struct worker, door));

	if (can_place(worker))
		return true;
	atomic_store(&worker->awaits_room, true);
	return can_place(worker); /* there may be some since, of one who did not know */
}

static void
on_room(struct message *message)
{
	struct worker *worker = worker_of(message);
	atomic_store(&worker->room_is_told, false);
	atomic_store(&worker->awaits_room, false);
	door_go_on(&worker->door);
}

/* There is room here, and nobody waits for it at our own door. */
static void
tell_others(struct worker *worker)
{
	struct crew *crew = worker->crew;

	for (unsigned int i = 0; i < crew->options.workers; i++) {
		struct worker *other = &crew->workers[i];
		if (other != worker && atomic_load(&other->awaits_room) &&
		    !atomic_exchange(&other->room_is_told, true))
			mailbox_post(other->loop.mailbox, &other->room.message);
	}
}

static void
on_held(struct door *door)
{
	struct worker *worker = (struct worker *)((char *)door - offsetof(struct worker, door));
	struct connections *connections = &worker->connections;

	connections->handshakes_held++;
	log_line(LOG_LEVEL_WARNING,
		 "max_handshakes: %llu run on each worker, and further clients wait to be "
		 "accepted; raise it, at 48KiB each, or have more workers",
		 (unsigned long long)connections->handshakes_most);
}

static void
on_handshake(struct connections *connections)
{
	struct worker *worker =
		(struct worker *)((char *)connections - offsetof(struct worker, connections));
	if (worker->door.held.first)
		door_go_on(&worker->door);
	else
		tell_others(worker);
}

static void
on_free(struct door *door)
{
	tell_others((struct worker *)((char *)door - offsetof(struct worker, door)));
}

/* --- limits, on the worker's thread ---------------------------------------------------------------- */

static void
on_limits_timer(evutil_socket_t fd, short what, void *context)
{
	struct worker *worker = context;
	(void)fd;
	(void)what;
	/* Edge-triggered: it need not be read to fall silent. */
	worker->limits_armed_ns = 0;
	worker->limits_called = true;
}

static void
on_granted(struct message *message)
{
	struct worker *worker = worker_of(message);
	atomic_store(&worker->limits_signalled, false);
	worker->limits_called = true;
}

/* Any thread. */
static void
on_limits_signal(struct limits_worker *limits)
{
	struct worker *worker = (struct worker *)((char *)limits - offsetof(struct worker, limits));
	if (!atomic_exchange(&worker->limits_signalled, true))
		mailbox_post(worker->loop.mailbox, &worker->granted.message);
}

static void
arm_limits(struct worker *worker, uint64_t at_ns, uint64_t now_ns)
{
	uint64_t grains = (at_ns + LIMITS_GRAIN_NS - 1) / LIMITS_GRAIN_NS;
	uint64_t rounded_ns = at_ns > now_ns ? grains * LIMITS_GRAIN_NS : now_ns;
	struct itimerspec at = { .it_value = { .tv_sec = (time_t)(rounded_ns / NS_PER_S),
					       .tv_nsec = (long)(rounded_ns % NS_PER_S) } };

	if (worker->limits_armed_ns == rounded_ns)
		return;
	worker->limits_armed_ns = rounded_ns;
	timerfd_settime(worker->limits_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/* The end of a turn: grants what is due, and what was granted to this worker's connections moves now. */
static void
obey_limits(struct worker *worker)
{
	struct limits_worker *limits = &worker->limits;
	struct limit_flow *flow;
	uint64_t now_ns = 0;

	if (!worker->limits_called && limits_due_ns(limits->limits) == LIMITS_NEVER)
		return;
	for (unsigned int round = 0; round < LIMITS_ROUNDS; round++) {
		now_ns = clock_now_ns();
		if (!worker->limits_called && !limits_must_run(limits->limits, now_ns))
			return;
		worker->limits_called = false;
		limits_run(limits, now_ns);
		if (limits->arm_ns)
			arm_limits(worker, limits->arm_ns, now_ns);
		while ((flow = limits_next(limits)))
			tunnel_granted(flow);
	}
	/* The rest comes in the next turn. */
	if (limits_must_run(limits->limits, now_ns))
		worker->limits_called = true;
	if (worker->limits_called)
		arm_limits(worker, now_ns, now_ns);
}

static int
open_limits(struct worker *worker, struct failure *why)
{
	prepare_order(worker, &worker->granted, on_granted);
	worker->limits_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (worker->limits_fd < 0)
		return failure_set_errno(why, errno, "cannot make a timer");
	worker->limits_timer = event_new(worker->loop.base, worker->limits_fd,
					 EV_READ | EV_PERSIST | EV_ET, on_limits_timer, worker);
	if (!worker->limits_timer || event_add(worker->limits_timer, NULL) < 0)
		return failure_set(why, FAILURE_MEMORY, "no memory for a worker");
	worker->limits.signal = on_limits_signal;
	limits_worker_open(worker->crew->options.limits, &worker->limits);
	return 0;
}

/* After all threads have ended: until then any of them may signal it. */
static void
close_limits(struct worker *worker)
{
	if (worker->limits.limits)
		limits_worker_close(&worker->limits);
	if (worker->limits_timer)
		event_free(worker->limits_timer);
	if (worker->limits_fd >= 0)
		close(worker->limits_fd);
}

/* --- orders ------------------------------------------------------------------------------------------ */

static void
answer(struct worker *worker, struct order *order)
{
	mailbox_post(worker->crew->answers, &order->message);
}

static const struct tunnel_conf *
find_tunnel(const void *generation, const char *name)
{
	return generation_find(generation, name);
}

/* Accepts by the crew's listeners and no others. */
static void
serve_listeners(struct worker *worker)
{
	struct crew *crew = worker->crew;
	struct failure why;

	door_begin(&worker->door);
	for (size_t i = 0; i < crew->listener_count; i++)
		if (door_serve(&worker->door, crew->listeners[i], crew->listeners[i]->conf, &why) <
		    0)
			log_line(LOG_LEVEL_ERROR, "worker %u does not accept at %s: %s",
				 worker->connections.worker, crew->listeners[i]->text, why.text);
	door_finish(&worker->door);
}

static void
on_switch_over(struct message *message)
{
	struct worker *worker = worker_of(message);
	struct crew *crew = worker->crew;
	const struct generation *generation = crew->generation;

	worker->generation = generation;
	worker->connections.logged = worker->door.logged = generation->log.connections;
	worker->connections.handshakes_most = generation->max_handshakes;
	worker->loop.kept_most = generation->max_memory / crew->options.workers;
	serve_listeners(worker);
	door_go_on(&worker->door);
	tunnel_obey_limits(&worker->connections, find_tunnel, generation);
	if (!worker->connections.drains)
		check_switch(&worker->checks, (struct generation *)generation);
	answer(worker, &worker->switched);
}

static void
on_listen(struct message *message)
{
	struct worker *worker = worker_of(message);
	serve_listeners(worker);
	answer(worker, &worker->listening);
}

static void
say_if_empty(struct worker *worker)
{
	if (worker->connections.drains && !atomic_load(&worker->connections.count) &&
	    !atomic_exchange(&worker->says_empty, true))
		answer(worker, &worker->empty);
}

static void
on_empty_connections(struct connections *connections)
{
	say_if_empty((struct worker *)((char *)connections - offsetof(struct worker, connections)));
}

static void
on_shut(struct message *message)
{
	struct worker *worker = worker_of(message);

	/* An operator still gets in, to see who holds the stop up. */
	door_shut(&worker->door, admission_is_for_operators);
	check_close(&worker->checks);
	worker->is_shut = true;
	answer(worker, &worker->shut_too);
}

static void
on_drain(struct message *message)
{
	struct worker *worker = worker_of(message);
	tunnel_drain_all(&worker->connections, worker->generation->timeouts.drain);
	say_if_empty(worker);
}

static void
on_reset(struct message *message)
{
	struct worker *worker = worker_of(message);
	tunnel_reset_all(&worker->connections, &worker->crew->why);
}

static void
on_stop(struct message *message)
{
	event_base_loopbreak(worker_of(message)->loop.base);
}

static void
on_ping(struct message *message)
{
	struct worker *worker = worker_of(message);
	uint64_t sent_ns = worker->canary.sent_ns;

	/* The loop turns; but do its connections' bytes move? */
	worker->is_well = !sent_ns || clock_now_ns() - sent_ns < CANARY_S * NS_PER_S;
	answer(worker, &worker->pong);
}

static void
on_trim(evutil_socket_t fd, short what, void *context)
{
	struct worker *worker = context;
	(void)fd;
	(void)what;
	loop_trim(&worker->loop, clock_now_ns());
}

static void
on_beat(struct pulse *pulse, uint64_t now_ns)
{
	struct worker *worker = (struct worker *)((char *)pulse - offsetof(struct worker, pulse));
	tunnel_beat(&worker->connections, now_ns);
}

static void *
run_worker(void *context)
{
	struct worker *worker = context;

	pthread_setname_np(pthread_self(), worker->name);
	/* Or the kernel adds its 50 us to rests that are shorter than that (prctl(2)). */
	prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0);
	do {
		loop_look(&worker->loop);
		event_base_loop(worker->loop.base, EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY);
		obey_limits(worker);
	} while (!event_base_got_break(worker->loop.base));
	worker->over = true;
	door_close(&worker->door);
	/* What is still open ends now; its memory goes in a later turn. */
	struct failure why;
	failure_set(&why, FAILURE_STOPPED, "the daemon stops");
	check_close(&worker->checks);
	canary_stop(&worker->canary);
	tunnel_reset_all(&worker->connections, &why);
	event_base_loop(worker->loop.base, EVLOOP_NONBLOCK);
	connection_view_end_all(&worker->connections);
	return NULL;
}

/* --- on the control thread ------------------------------------------------------------------------ */

/* Gives each worker the order that stands there in it. */
static void
post_all(struct crew *crew, size_t order)
{
	for (unsigned int i = 0; i < crew->options.workers; i++) {
		struct worker *worker = &crew->workers[i];
		struct order *own = (struct order *)((char *)worker + order);
		mailbox_post(worker->loop.mailbox, &own->message);
	}
}

static void
on_switched(struct message *message)
{
	struct crew *crew = worker_of(message)->crew;
	if (!--crew->switching && !crew->stopping)
		crew->options.on_switched(crew->options.context);
}

static void
on_listening(struct message *message)
{
	struct crew *crew = worker_of(message)->crew;
	if (!--crew->switching && !crew->stopping)
		crew->options.on_listening(crew->options.context);
}

/* Only now, when nothing is handed over any more, does an empty worker stay empty. */
static void
on_shut_too(struct message *message)
{
	struct crew *crew = worker_of(message)->crew;
	if (!--crew->shutting && !crew->stopping)
		post_all(crew, offsetof(struct worker, drain));
}

static void
on_empty(struct message *message)
{
	struct worker *worker = worker_of(message);
	struct crew *crew = worker->crew;

	atomic_store(&worker->says_empty, false);
	/* Operators come and go: one that is empty may have been so before another was, and be so no more. */
	for (unsigned int i = 0; i < crew->options.workers; i++)
		if (atomic_load(&crew->workers[i].connections.count))
			return;
	if (!crew->stopping)
		crew->options.on_empty(crew->options.context);
}

static void
on_pong(struct message *message)
{
	struct worker *worker = worker_of(message);
	manager_answer(worker->crew->manager, &worker->check, worker->is_well);
}

static void
ask(void *context)
{
	struct worker *worker = context;
	mailbox_post(worker->loop.mailbox, &worker->ping.message);
}

static int
open_worker(struct crew *crew, unsigned int index, struct failure *why)
{
	struct worker *worker = &crew->workers[index];
	struct timeval every;

	worker->crew = crew;
	worker->door.spare = -1;
	prepare_order(worker, &worker->switch_over, on_switch_over);
	prepare_order(worker, &worker->switched, on_switched);
	prepare_order(worker, &worker->listen, on_listen);
	prepare_order(worker, &worker->listening, on_listening);
	prepare_order(worker, &worker->shut, on_shut);
	prepare_order(worker, &worker->shut_too, on_shut_too);
	prepare_order(worker, &worker->drain, on_drain);
	prepare_order(worker, &worker->empty, on_empty);
	prepare_order(worker, &worker->reset, on_reset);
	prepare_order(worker, &worker->stop, on_stop);
	prepare_order(worker, &worker->room, on_room);
	prepare_order(worker, &worker->ping, on_ping);
	prepare_order(worker, &worker->pong, on_pong);
	snprintf(worker->name, sizeof(worker->name), "worker-%u", index);
	if (loop_open(&worker->loop, why) < 0)
		return -1;
	worker->loop.pipes_most = PIPES_MOST / crew->options.workers;
	worker->loop.pipes_below = admission_first_reserved();
	worker->door.loop = &worker->loop;
	worker->door.worker = index;
	worker->door.workers = crew->options.workers;
	worker->door.place = on_place;
	worker->door.has_room = on_has_room;
	worker->door.on_held = on_held;
	worker->door.on_free = on_free;
	worker->connections.loop = &worker->loop;
	worker->connections.recents.object_bytes = sizeof(struct recent);
	worker->connections.resolver = crew->options.resolver;
	worker->connections.worker = index;
	worker->connections.limits = &worker->limits;
	worker->connections.on_empty = on_empty_connections;
	worker->connections.on_handshake = on_handshake;
	clock_to_timeval(TRIM_EVERY_NS, &every);
	if (open_limits(worker, why) < 0)
		return -1;
	worker->trim = event_new(worker->loop.base, -1, EV_PERSIST, on_trim, worker);
	if (!worker->trim || event_add(worker->trim, &every) < 0)
		return failure_set(why, FAILURE_MEMORY, "no memory for a worker");
	worker->checks.connections = &worker->connections;
	worker->checks.worker = index;
	worker->checks.workers = crew->options.workers;
	worker->pulse.beat = on_beat;
	if (pulse_open(&worker->pulse, &worker->loop, why) < 0 ||
	    canary_start(&worker->canary, &worker->loop, why) < 0)
		return -1;
	return door_open(&worker->door, why);
}

static int
start_threads(struct crew *crew, struct failure *why)
{
	sigset_t all, before;
	int error = 0;

	/* Signals are the control thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (unsigned int i = 0; i < crew->options.workers && !error; i++) {
		struct worker *worker = &crew->workers[i];
		error = pthread_create(&worker->thread, NULL, run_worker, worker);
		worker->runs = !error;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error ? failure_set_errno(why, error, "cannot start a worker thread") : 0;
}

struct crew *
crew_start(const struct crew_options *options, struct failure *why)
{
	struct crew *crew = calloc(1, sizeof(*crew) + options->workers * sizeof(struct worker));

	if (!crew) {
		failure_set(why, FAILURE_MEMORY, "no memory for %u workers", options->workers);
		return NULL;
	}
	crew->options = *options;
	for (unsigned int i = 0; i < options->workers; i++)
		crew->workers[i].limits_fd = -1;
	crew->answers = mailbox_open(options->base, why);
	if (!crew->answers)
		goto fail;
	for (unsigned int i = 0; i < options->workers; i++)
		if (open_worker(crew, i, why) < 0)
			goto fail;
	if (start_threads(crew, why) < 0)
		goto fail;
	return crew;
fail:
	crew_stop(crew);
	return NULL;
}

void
crew_switch(struct crew *crew, const struct generation *generation,
	    struct listener *const *listeners, size_t count)
{
	crew->generation = generation;
	crew->listeners = listeners;
	crew->listener_count = count;
	crew->switching = crew->options.workers;
	post_all(crew, offsetof(struct worker, switch_over));
}

void
crew_listen(struct crew *crew, struct listener *const *listeners, size_t count)
{
	crew->listeners = listeners;
	crew->listener_count = count;
	crew->switching = crew->options.workers;
	post_all(crew, offsetof(struct worker, listen));
}

struct mailbox *
crew_mailbox(struct crew *crew, unsigned int worker)
{
	return crew->workers[worker].loop.mailbox;
}

struct connections *
crew_connections(struct crew *crew, unsigned int worker)
{
	return &crew->workers[worker].connections;
}

const struct pulse *
crew_pulse(struct crew *crew, unsigned int worker)
{
	return &crew->workers[worker].pulse;
}

const struct canary *
crew_canary(struct crew *crew, unsigned int worker)
{
	return &crew->workers[worker].canary;
}

const struct generation *
crew_generation(struct crew *crew, unsigned int worker)
{
	return crew->workers[worker].generation;
}

void
crew_drain(struct crew *crew)
{
	crew->shutting = crew->options.workers;
	post_all(crew, offsetof(struct worker, shut));
}

void
crew_reset(struct crew *crew, const struct failure *why)
{
	crew->why = *why;
	post_all(crew, offsetof(struct worker, reset));
}

void
crew_watch(struct crew *crew, struct manager *manager)
{
	crew->manager = manager;
	for (unsigned int i = 0; i < crew->options.workers; i++) {
		struct worker *worker = &crew->workers[i];
		worker->check = (struct manager_check){ .name = worker->name,
							.ask = ask,
							.context = worker };
		manager_add(manager, &worker->check);
	}
}

void
crew_stop(struct crew *crew)
{
	if (!crew)
		return;
	for (unsigned int i = 0; i < crew->options.workers; i++)
		if (crew->workers[i].runs)
			mailbox_post(crew->workers[i].loop.mailbox, &crew->workers[i].stop.message);
	for (unsigned int i = 0; i < crew->options.workers; i++)
		if (crew->workers[i].runs)
			pthread_join(crew->workers[i].thread, NULL);
	/* The answers still under way are parts of the workers. */
	crew->stopping = true;
	mailbox_close(crew->answers);
	for (unsigned int i = 0; i < crew->options.workers; i++)
		close_limits(&crew->workers[i]);
	for (unsigned int i = 0; i < crew->options.workers; i++) {
		struct worker *worker = &crew->workers[i];
		if (worker->trim)
			event_free(worker->trim);
		if (!worker->runs)
			door_close(&worker->door);
		pulse_close(&worker->pulse);
		canary_stop(&worker->canary);
		loop_close(&worker->loop);
	}
	free(crew);
}
