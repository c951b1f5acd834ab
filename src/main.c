/*
 * penstockd: start order, signals, stop order.
 */
#include "admission.h"
#include "clock.h"
#include "command.h"
#include "config_diff.h"
#include "config_files.h"
#include "confine.h"
#include "limits.h"
#include "loader.h"
#include "log.h"
#include "mailbox.h"
#include "manager.h"
#include "renewal.h"
#include "resolver.h"
#include "services/admin.h"
#include "services/services.h"
#include "switchover.h"
#include "systemd.h"
#include "worker.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define RESOLVER_THREADS 4

/* A renewal leaves what penstockctl has set as it is; the file, when it is read for its own sake, counts. */
enum reload { RELOAD_NONE, RELOAD_RENEWAL, RELOAD_FILE };

/* The control thread's affairs. */
struct control {
	const char *file;
	struct event_base *base;
	struct event *signals[5];
	struct event *drain_over;
	struct resolver *resolver;
	struct limits *limits;
	struct crew *crew;
	struct manager *manager;
	struct loader *loader;
	struct renewal *renewal;
	struct timespec load_began;
	unsigned int workers;
	struct generation
		started; /* only what counts after a restart alone, as it was at the start */

	struct generation *generation, *next; /* next: the workers are switching to it */
	struct listeners listeners, next_listeners;
	bool ready;                /* "ready" was said */
	enum reload reload;        /* the one under way, or the last */
	enum reload reload_wanted; /* it was asked for while something else was under way */
	bool stops;                /* TERM came */
	bool drains;               /* ... and the workers were told */
	uint64_t generations;

	/* For the admin service. */
	struct admin_control admin;
	struct mailbox *mailbox;
	struct admin_wish *wishes, *next_wishes; /* next: for the reload after the one under way */
	struct admin_wish *comparison; /* what is being loaded is to be compared and thrown away */
	struct admin_wish *drain_wishes, *drain_wish; /* the first comes first; the one under way */
	double started_at, loaded_at, failed_at;      /* seconds since 1970, 0 = never */
	uint64_t reloads, failed_reloads;
	int log_level;
	struct failure reload_failure;
};

/* --- start-up ------------------------------------------------------------------------------------- */

static unsigned int
usable_cpus(void)
{
	cpu_set_t cpus;
	if (sched_getaffinity(0, sizeof(cpus), &cpus) < 0)
		return 1;
	int count = CPU_COUNT(&cpus);
	return count > 0 ? (unsigned int)count : 1;
}

/* The allocator keeps what it has got: giving pages back and faulting them in again on every turn
 * costs half of a TLS pump's time. loop_trim gives back after a quiet minute. */
static void
keep_memory(void)
{
	mallopt(M_MMAP_THRESHOLD, 64 * 1024 * 1024);
	mallopt(M_TRIM_THRESHOLD, 512 * 1024 * 1024);
	mallopt(M_TOP_PAD, 1024 * 1024);
}

static uint64_t
raise_descriptors(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 1024;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	getrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_cur > INT32_MAX ? INT32_MAX : limit.rlim_cur;
}

/* Values that stand for "what fits this machine". */
static void
fill_in(struct generation *generation, unsigned int workers)
{
	struct rlimit limit;
	struct sysinfo machine;

	if (!generation->max_connections && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		/* Two descriptors a connection, beside the reserve and what the daemon itself holds. */
		uint64_t own = ADMISSION_RESERVE + 32 + 8 * (uint64_t)workers;
		for (size_t i = 0; i < generation->tunnel_count; i++)
			own += generation->tunnels[i]->listen.count * workers;
		uint64_t all = limit.rlim_cur > INT32_MAX ? INT32_MAX : limit.rlim_cur;
		generation->max_connections = all > own + 2 ? (all - own) / 2 : 1;
	}
	if (!generation->max_memory && sysinfo(&machine) == 0)
		generation->max_memory = (uint64_t)machine.totalram * machine.mem_unit / 4;
}

static void
set_timer(struct event *timer, uint64_t after_ns)
{
	struct timeval after;
	clock_to_timeval(after_ns, &after);
	event_add(timer, &after);
}

static double
time_of_day(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / (double)NS_PER_S;
}

/* --- switching ------------------------------------------------------------------------------------ */

static void
say_unused(const char *name, int fd)
{
	log_line(LOG_LEVEL_WARNING,
		 "systemd passed the socket \"%s\" (descriptor %d), on which no tunnel listens",
		 name, fd);
}

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

/* Has the workers switch to a generation that loads, or says why not. */
static int
load(struct control *control, struct generation *next, struct failure *why)
{
	struct incumbent before = { .generation = control->generation,
				    .open = &control->listeners,
				    .is_steered = control->reload == RELOAD_RENEWAL };
	int level = before.is_steered ? control->log_level : next->log.level;

	if (switchover_prepare(next, &before, control->workers, control->limits,
			       &control->next_listeners, why) < 0)
		return -1;
	if (log_retarget(next->log.target, (enum log_format)next->log.format, (enum log_level)level,
			 why) < 0) {
		switchover_abandon(next, &control->next_listeners, &control->listeners);
		return -1;
	}
	next->number = ++control->generations;
	control->log_level = level;
	fill_in(next, control->workers);
	admission_set_most(next->max_connections);
	switchover_commit(next, &before, &control->next_listeners);
	switchover_store(&control->listeners, &control->next_listeners);
	control->next = next;
	crew_switch(control->crew, next, control->next_listeners.at, control->next_listeners.count);
	return 0;
}

static bool
is_reloading(const struct control *control)
{
	return control->next || loader_is_busy(control->loader);
}

/* Whether something is under way behind which the next has to wait. */
static bool
is_busy(const struct control *control)
{
	return is_reloading(control) || control->drain_wish;
}

static void go_on(struct control *control);

/* The reload that these wished for is over. */
static void
grant(struct admin_wish **wishes, const struct failure *why)
{
	while (*wishes) {
		struct admin_wish *wish = *wishes;
		*wishes = wish->next;
		wish->over(wish, why);
	}
}

static void
watch_files(struct control *control)
{
	struct failure why;
	if (renewal_watch(control->renewal, control->generation, control->load_began, &why) < 0)
		log_line(LOG_LEVEL_WARNING, "renewed files will need a reload: %s", why.text);
}

static void
on_switched(void *context)
{
	struct control *control = context;
	struct generation *old = control->generation;

	say_listening(&control->next_listeners, &control->listeners);
	switchover_finish(old, control->next);
	switchover_close(&control->listeners, &control->next_listeners);
	control->listeners = control->next_listeners;
	control->next_listeners = (struct listeners){ 0 };
	control->generation = control->next;
	control->next = NULL;
	if (old)
		counted_release(&old->counted);
	watch_files(control);
	struct log_field fields[] = {
		{ .name = "generation", .number = control->generation->number },
		{ .name = "tunnels", .number = control->generation->tunnel_count },
		{ .name = "workers", .number = control->workers },
	};
	log_event(LOG_LEVEL_NOTICE, fields, 3, control->ready ? "reloaded" : "ready");
	if (!control->ready) {
		systemd_tell_unused(say_unused);
		systemd_store_forget_rest();
	}
	control->reloads += control->ready;
	control->ready = true;
	control->loaded_at = time_of_day();
	grant(&control->wishes, NULL);
	manager_ready(control->manager, control->generation->number,
		      control->generation->tunnel_count);
	go_on(control);
}

static void
log_report(const struct config_report *report)
{
	for (size_t i = 0; i < report->count; i++) {
		const struct config_finding *finding = &report->at[i];
		enum log_level level = finding->is_error ? LOG_LEVEL_ERROR : LOG_LEVEL_WARNING;
		if (finding->origin.line)
			log_entry(level, NULL, 0, "%s:%u: %s", finding->origin.file,
				  finding->origin.line, finding->text);
		else
			log_entry(level, NULL, 0, "%s: %s", finding->origin.file, finding->text);
	}
}

/* The first mistake stands for all; the log has the others. */
static void
name_mistake(const struct config_report *report, struct failure *why)
{
	for (size_t i = 0; i < report->count; i++)
		if (report->at[i].is_error) {
			char line[16] = ""; /* a file as a whole has none */
			if (report->at[i].origin.line)
				snprintf(line, sizeof(line), ":%u", report->at[i].origin.line);
			failure_set(why, FAILURE_CONFIG,
				    "%zu mistake%s in the configuration, %s%s: %.120s",
				    report->errors, report->errors == 1 ? "" : "s",
				    report->at[i].origin.file, line, report->at[i].text);
			return;
		}
	failure_set(why, FAILURE_MEMORY, "no memory for a configuration");
}

static void
refuse_reload(struct control *control, const struct failure *why)
{
	log_line(LOG_LEVEL_ERROR, "not reloaded, nothing was changed: %s", why->text);
	manager_refused(control->manager, why);
	control->failed_at = time_of_day();
	control->failed_reloads++;
	control->reload_failure = *why;
	grant(&control->wishes, why);
	go_on(control);
}

static void
say_restart(const struct config_change *change, void *context)
{
	(void)context;
	log_line(LOG_LEVEL_WARNING, "%s: %s counts only after a restart; %s goes on",
		 change->row->name, *change->after ? change->after : "\"\"",
		 *change->before ? change->before : "\"\"");
}

/* What was loaded is not for use. */
static void
compare(struct control *control, struct generation *fresh, const struct config_report *report)
{
	struct admin_wish *wish = control->comparison;
	struct failure why;

	control->comparison = NULL;
	if (fresh)
		fill_in(fresh, control->workers); /* as what is in force is */
	else
		name_mistake(report, &why);
	wish->old = control->generation;
	wish->fresh = fresh;
	wish->over(wish, fresh ? NULL : &why);
	if (fresh)
		counted_release(&fresh->counted);
	go_on(control);
}

static void
on_loaded(struct generation *next, const struct config_report *report, void *context)
{
	struct control *control = context;
	struct failure why;

	if (control->comparison) {
		compare(control, next, report);
		return;
	}
	log_report(report);
	if (!next)
		name_mistake(report, &why);
	if (control->stops) {
		if (next)
			counted_release(&next->counted);
		return;
	}
	if (next)
		config_diff_restart(&control->started, next, say_restart, NULL);
	if (next && load(control, next, &why) == 0)
		return;
	if (next)
		counted_release(&next->counted);
	refuse_reload(control, &why);
}

static void
reload(struct control *control, enum reload kind)
{
	struct failure why;

	control->reload = kind;
	manager_reloading(control->manager);
	clock_gettime(CLOCK_REALTIME, &control->load_began);
	if (loader_begin(control->loader, &why) < 0)
		refuse_reload(control, &why);
}

/* --- tunnels that an operator drains --------------------------------------------------------------- */

/* Whether who comes to that tunnel may get to the admin service. */
static bool
leads_to_admin(const struct tunnel_conf *conf)
{
	if (conf->live->is_shut)
		return false;
	for (size_t i = 0; i < conf->connect.count; i++)
		if (!strcmp(conf->connect.at[i].text, "internal:admin") ||
		    (conf->internal && conf->internal[i].tunnel &&
		     leads_to_admin(conf->internal[i].tunnel)))
			return true;
	return false;
}

static bool
has_way_in(const struct generation *generation)
{
	for (size_t i = 0; i < generation->tunnel_count; i++) {
		const struct tunnel_conf *conf = generation->tunnels[i];
		for (size_t j = 0; j < conf->listen.count; j++)
			if (conf->listen.at[j].kind != ADDRESS_INTERNAL && leads_to_admin(conf))
				return true;
	}
	return false;
}

/* The listeners of a tunnel that is to be shut or not; the workers are told. */
static int
shut(struct control *control, const struct tunnel_conf *conf, bool is_shut, struct failure *why)
{
	bool had_way_in = has_way_in(control->generation);
	int result = 0;

	conf->live->is_shut = is_shut;
	if (had_way_in && !has_way_in(control->generation))
		result = failure_set(why, FAILURE_ADMISSION,
				     "tunnel \"%.64s\" is the last way to internal:admin: nobody "
				     "could open it again",
				     conf->name);
	else
		result = switchover_listen(control->generation, &control->listeners,
					   control->workers, &control->next_listeners, why);
	if (result < 0) {
		conf->live->is_shut = !is_shut;
		return -1;
	}
	if (!is_shut)
		atomic_store(&conf->live->drained, false); /* before the first one comes */
	switchover_store(&control->listeners, &control->next_listeners);
	crew_listen(control->crew, control->next_listeners.at, control->next_listeners.count);
	return 0;
}

static void
drain_next(struct control *control)
{
	struct admin_wish *wish = control->drain_wishes;
	const struct tunnel_conf *conf = generation_find(control->generation, wish->tunnel);
	struct failure why;
	int result = 0;

	control->drain_wishes = wish->next;
	control->drain_wish = wish;
	if (!conf)
		result = failure_set(&why, FAILURE_CONFIG, "there is no tunnel \"%.64s\"",
				     wish->tunnel);
	else if (conf->live->is_shut != wish->drains)
		result = shut(control, conf, wish->drains, &why);
	else
		result = 1; /* it is so already */
	if (result == 0)
		return;
	control->drain_wish = NULL;
	wish->over(wish, result < 0 ? &why : NULL);
}

/* Who waited in the queues of what is closed was let in; now the tunnel's other ways are shut as well. */
static void
on_listening(void *context)
{
	struct control *control = context;
	struct admin_wish *wish = control->drain_wish;
	const struct tunnel_conf *conf = generation_find(control->generation, wish->tunnel);

	atomic_store(&conf->live->drained, wish->drains);
	say_listening(&control->next_listeners, &control->listeners);
	switchover_close(&control->listeners, &control->next_listeners);
	control->listeners = control->next_listeners;
	control->next_listeners = (struct listeners){ 0 };
	control->drain_wish = NULL;
	wish->over(wish, NULL);
	go_on(control);
}

/* --- stopping ------------------------------------------------------------------------------------- */

static void
on_empty(void *context)
{
	struct control *control = context;
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
	set_timer(control->signals[4], 3 * NS_PER_S);
}

static void
drain(struct control *control)
{
	uint64_t drain_ns = control->generation->timeouts.drain;

	struct failure why;
	failure_set(&why, FAILURE_STOPPED, "not reloaded: the daemon is stopping");
	grant(&control->wishes, &why);
	grant(&control->next_wishes, &why);
	failure_set(&why, FAILURE_STOPPED, "not done: the daemon is stopping");
	grant(&control->drain_wishes, &why);
	admin_drain();
	control->drains = true;
	manager_stopping(control->manager, drain_ns);
	log_line(LOG_LEVEL_NOTICE, "draining: no new connections, %llu go on",
		 (unsigned long long)admission_open());
	crew_drain(control->crew);
	if (drain_ns)
		set_timer(control->drain_over, drain_ns);
}

/* What was asked for meanwhile comes now, one after the other. */
static void
go_on(struct control *control)
{
	if (control->stops) {
		if (!control->drains && !control->next && !control->drain_wish)
			drain(control);
		return;
	}
	while (control->drain_wishes && !is_busy(control))
		drain_next(control);
	if (!control->reload_wanted || is_busy(control))
		return;
	enum reload kind = control->reload_wanted;
	control->reload_wanted = RELOAD_NONE;
	control->wishes = control->next_wishes;
	control->next_wishes = NULL;
	reload(control, kind);
}

static void
reload_soon(struct control *control, enum reload kind)
{
	if (control->stops) {
		log_line(LOG_LEVEL_WARNING, "not reloaded: the daemon is stopping");
		return;
	}
	if (kind > control->reload_wanted)
		control->reload_wanted = kind;
	go_on(control);
}

static void
on_hangup(evutil_socket_t fd, short what, void *context)
{
	(void)fd;
	(void)what;
	reload_soon(context, RELOAD_FILE);
}

static void
on_renewed(const char *path, const char *config, void *context)
{
	if (config) {
		log_line(LOG_LEVEL_WARNING,
			 "%s has changed, and so has %s: not taken by itself; reload to take both",
			 path, config);
		return;
	}
	log_line(LOG_LEVEL_NOTICE, "%s has changed: reloading", path);
	reload_soon(context, RELOAD_RENEWAL);
}

static void
on_doubt(const char *path, void *context)
{
	(void)context;
	log_line(LOG_LEVEL_NOTICE,
		 "%s was written in place and is much shorter than before: it is taken if it has "
		 "not "
		 "changed in a minute; reload to take it now",
		 path);
}

static void
on_stop(evutil_socket_t fd, short what, void *context)
{
	struct control *control = context;
	(void)fd;
	(void)what;

	if (control->stops) {
		log_line(LOG_LEVEL_NOTICE, "stopping at once");
		event_base_loopbreak(control->base);
		return;
	}
	control->stops = true;
	if (!control->next && !control->drain_wish) /* else when the workers have obeyed */
		drain(control);
}

static void
on_reopen(evutil_socket_t fd, short what, void *context)
{
	(void)fd;
	(void)what;
	(void)context;
	log_reopen();
}

static void
on_give_up(evutil_socket_t fd, short what, void *context)
{
	struct control *control = context;
	(void)fd;
	(void)what;
	event_base_loopbreak(control->base);
}

/* --- what the admin service asks for -------------------------------------------------------------- */

static struct mailbox *
mailbox_of(void *context, unsigned int worker)
{
	return crew_mailbox(((struct control *)context)->crew, worker);
}

static struct connections *
connections_of(void *context, unsigned int worker)
{
	return crew_connections(((struct control *)context)->crew, worker);
}

static const struct pulse *
pulse_of(void *context, unsigned int worker)
{
	return crew_pulse(((struct control *)context)->crew, worker);
}

static const struct canary *
canary_of(void *context, unsigned int worker)
{
	return crew_canary(((struct control *)context)->crew, worker);
}

static const struct generation *
generation_of(void *context, unsigned int worker)
{
	return crew_generation(((struct control *)context)->crew, worker);
}

static void
describe(void *context, struct admin_status *out)
{
	struct control *control = context;
	const struct listeners *listeners = &control->listeners;

	*out = (struct admin_status){
		.generation = control->generation,
		.started_at = control->started_at,
		.loaded_at = control->loaded_at,
		.failed_at = control->failed_at,
		.reloads = control->reloads,
		.failed_reloads = control->failed_reloads,
		.ready = control->ready,
		.reloads_now = is_reloading(control),
		.drains = control->stops,
		.log_level = control->log_level,
	};
	if (control->generation)
		counted_hold(&control->generation->counted);
	if (control->failed_reloads)
		memcpy(out->failure, control->reload_failure.text, sizeof(out->failure));
	out->listeners = calloc(listeners->count ? listeners->count : 1, sizeof(*out->listeners));
	for (size_t i = 0; out->listeners && i < listeners->count; i++) {
		struct admin_listener *listener = &out->listeners[out->listener_count++];
		char text[SOCKET_ADDRESS_TEXT];
		listener->conf = listeners->at[i]->conf;
		snprintf(listener->address, sizeof(listener->address), "%s",
			 listener_text(listeners->at[i], text));
	}
}

static void
wish_reload(void *context, struct admin_wish *wish)
{
	struct control *control = context;
	struct failure why;

	if (control->stops) {
		failure_set(&why, FAILURE_STOPPED, "not reloaded: the daemon is stopping");
		wish->over(wish, &why);
		return;
	}
	wish->next = control->next_wishes;
	control->next_wishes = wish;
	reload_soon(control, RELOAD_FILE);
}

static void
wish_comparison(void *context, struct admin_wish *wish)
{
	struct control *control = context;
	struct failure why;

	if (control->stops || is_reloading(control))
		failure_set(&why, FAILURE_SYSTEM, "not compared: the daemon is %s; ask again",
			    control->stops ? "stopping" : "reading a configuration already");
	else if (loader_begin(control->loader, &why) == 0) {
		control->comparison = wish;
		return;
	}
	wish->over(wish, &why);
}

/* The first workers may bring somebody here before the last one has begun. */
static const struct generation *
generation_now(const struct control *control)
{
	return control->generation ? control->generation : control->next;
}

static void
wish_drain(void *context, struct admin_wish *wish)
{
	struct control *control = context;
	struct admin_wish **end = &control->drain_wishes;
	struct failure why;

	if (control->stops) {
		failure_set(&why, FAILURE_STOPPED, "not done: the daemon is stopping");
		wish->over(wish, &why);
		return;
	}
	while (*end)
		end = &(*end)->next;
	wish->next = NULL;
	*end = wish;
	go_on(control);
}

static int
set_log_level(void *context, int level, struct failure *why)
{
	struct control *control = context;
	const struct log_conf *conf = &generation_now(control)->log;

	if (log_retarget(conf->target, (enum log_format)conf->format, (enum log_level)level, why) <
	    0)
		return -1;
	control->log_level = level;
	return 0;
}

static int
open_admin(struct control *control, struct failure *why)
{
	control->mailbox = mailbox_open(control->base, why);
	if (!control->mailbox)
		return -1;
	control->admin = (struct admin_control){
		.context = control,
		.workers = control->workers,
		.mailbox = control->mailbox,
		.limits = control->limits,
		.mailbox_of = mailbox_of,
		.connections_of = connections_of,
		.canary_of = canary_of,
		.pulse_of = pulse_of,
		.generation_of = generation_of,
		.describe = describe,
		.reload = wish_reload,
		.compare = wish_comparison,
		.drain = wish_drain,
		.set_log_level = set_log_level,
	};
	control->started_at = time_of_day();
	admin_start(&control->admin);
	return 0;
}

/* --- the whole ------------------------------------------------------------------------------------ */

static int
open_control(struct control *control, struct failure *why)
{
	control->base = event_base_new();
	if (!control->base)
		return failure_set(why, FAILURE_SYSTEM, "cannot make an event loop");
	control->signals[0] = evsignal_new(control->base, SIGHUP, on_hangup, control);
	control->signals[1] = evsignal_new(control->base, SIGTERM, on_stop, control);
	control->signals[2] = evsignal_new(control->base, SIGINT, on_stop, control);
	control->signals[3] = evsignal_new(control->base, SIGUSR1, on_reopen, control);
	control->signals[4] = evtimer_new(control->base, on_give_up, control);
	control->drain_over = evtimer_new(control->base, on_drain_over, control);
	for (int i = 0; i < 5; i++)
		if (!control->signals[i] || (i < 4 && event_add(control->signals[i], NULL) < 0))
			return failure_set(why, FAILURE_MEMORY, "cannot watch for signals");
	if (!control->drain_over)
		return failure_set(why, FAILURE_MEMORY, "cannot make a timer");
	return 0;
}

static int
open_limits(struct control *control, struct failure *why)
{
	uint8_t seed[16];

	if (getrandom(seed, sizeof(seed), 0) != sizeof(seed))
		return failure_set_errno(why, errno, "cannot get random numbers");
	control->limits = limits_open(seed, why);
	return control->limits ? 0 : -1;
}

static int
start(struct control *control, struct generation *first, struct failure *why)
{
	control->workers = first->workers ? (unsigned int)first->workers : usable_cpus();
	control->started = (struct generation){ .workers = first->workers,
						.user = first->user,
						.landlock = first->landlock,
						.no_new_privs = first->no_new_privs };
	if (log_start(first->log.target, (enum log_format)first->log.format,
		      (enum log_level)first->log.level, why) < 0 ||
	    open_control(control, why) < 0)
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
	if (!control->manager || open_admin(control, why) < 0)
		return -1;
	control->crew = crew_start(&options, why);
	if (!control->crew)
		return -1;
	crew_watch(control->crew, control->manager);
	struct loader_options loading = {
		.file = control->file,
		.services = services_builtin,
		.base = control->base,
		.on_loaded = on_loaded,
		.context = control,
	};
	control->loader = loader_new(&loading, why);
	if (!control->loader)
		return -1;
	struct renewal_options watching = {
		.base = control->base,
		.on_renewed = on_renewed,
		.on_doubt = on_doubt,
		.context = control,
	};
	control->renewal = renewal_start(&watching, why);
	if (!control->renewal)
		return -1;
	return load(control, first, why);
}

/* Returns whether no thread is left that still works. */
static bool
stop(struct control *control)
{
	static const struct listeners none;
	struct failure why;
	bool is_quiet = loader_stop(control->loader);

	renewal_stop(control->renewal);
	admin_stop();
	failure_set(&why, FAILURE_STOPPED, "the daemon stops");
	grant(&control->wishes, &why);
	grant(&control->next_wishes, &why);
	grant(&control->comparison, &why);
	grant(&control->drain_wishes, &why);
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
	for (int i = 0; i < 5; i++)
		if (control->signals[i])
			event_free(control->signals[i]);
	if (control->drain_over)
		event_free(control->drain_over);
	manager_stop(control->manager);
	if (control->base)
		event_base_free(control->base);
	libevent_global_shutdown();
	return is_quiet;
}

/* Signals wait while nobody would handle them: before the loop turns, and again when it has ended, since
 * libevent then gives them back to the system, whose way with a TERM is to kill. */
static void
hold_signals(int how)
{
	sigset_t ours;

	sigemptyset(&ours);
	sigaddset(&ours, SIGHUP);
	sigaddset(&ours, SIGTERM);
	sigaddset(&ours, SIGINT);
	sigaddset(&ours, SIGUSR1);
	pthread_sigmask(how, &ours, NULL);
}

static void
say_unreadable(const char *path, void *context)
{
	(void)context;
	if (faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) < 0)
		log_line(LOG_LEVEL_WARNING,
			 "%s cannot be read any more by the daemon's user: a reload will fail",
			 path);
}

/* Before anything is opened: what can be opened now can be opened by a reload. */
static int
confine(const struct generation *first, struct failure *why)
{
	struct text_list directories;
	int result = config_files_directories(first, &directories, why);

	if (result == 0 && (first->user.uid != (uid_t)-1 || first->user.gid != (gid_t)-1)) {
		result = confine_become(&first->user, why);
		if (result == 0)
			config_files_each(first, say_unreadable, NULL);
	}
	if (result == 0 && first->no_new_privs)
		result = confine_no_new_privileges(why);
	if (result == 0 && first->landlock && confine_reading(&directories, why) != 0) {
		log_line(LOG_LEVEL_NOTICE, "reading is not confined: %s", why->text);
	}
	for (size_t i = 0; i < directories.count; i++)
		free(directories.at[i]);
	free(directories.at);
	return result;
}

/* What is opened must not become one of them, or lines are written into it. Standard output only for
 * reading: who asked for an answer and closed it is told that it could not be written. */
static void
fill_standard_streams(void)
{
	static const int modes[] = { O_RDWR, O_RDONLY, O_RDWR };
	for (int fd = 0; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			open("/dev/null", modes[fd]);
}

static int
run(struct control *control, struct generation *first)
{
	struct failure why;
	int status = EXIT_SUCCESS;

	signal(SIGPIPE, SIG_IGN);
	keep_memory();
	admission_set_descriptors((int)raise_descriptors());
	if (confine(first, &why) == 0 && start(control, first, &why) == 0) {
		hold_signals(SIG_UNBLOCK);
		event_base_loop(control->base, EVLOOP_NO_EXIT_ON_EMPTY);
		hold_signals(SIG_BLOCK);
		log_line(LOG_LEVEL_NOTICE, "stopped");
	} else {
		/* Straight to stderr: the journal does not know whose line it is once its writer is gone. */
		log_stop();
		log_line(LOG_LEVEL_ERROR, "cannot start: %s", why.text);
		if (!control->next)
			counted_release(&first->counted);
		status = EXIT_FAILURE;
	}
	bool is_quiet = stop(control);
	log_stop();
	if (!is_quiet)
		_exit(status);
	return status;
}

int
main(int argc, char **argv)
{
	struct command command;

	fill_standard_streams();
	int status = command_parse(&command, argc, argv);

	if (status >= 0)
		return command_end(status);
	if (command.mode == COMMAND_RUN)
		hold_signals(SIG_BLOCK);
	struct control control = { .file = command.file };
	clock_gettime(CLOCK_REALTIME, &control.load_began);
	struct generation *first = command_load(command.file);
	if (!first)
		return EXIT_FAILURE;
	if (command.mode == COMMAND_RUN)
		return run(&control, first);
	status = command_do(&command, first);
	counted_release(&first->counted);
	return command_end(status);
}
