#include "manager.h"

#include "admission.h"
#include "clock.h"
#include "log.h"
#include "systemd.h"

#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#define STATUS_EVERY_NS (5 * NS_PER_S)
/* What the manager is asked for beyond a drain: time to reset what is left and to end. */
#define STOP_NS      (15 * NS_PER_S)
#define STATUS_BYTES 512

struct manager {
	struct event *tick;
	struct manager_check *checks;
	uint64_t patience_ns; /* the watchdog's; 0 = none */
	uint64_t asked_ns;    /* when the round that is open began; 0 = none is */
	bool complained;      /* ... and that it lasts too long was said */

	bool is_ready, stops, drains_for_good;
	uint64_t generation;
	size_t tunnels;
	char verdict[sizeof(((struct failure *)0)->text) +
		     64]; /* of the last reload; "" = a good one */
	char told[STATUS_BYTES];
};

/* --- status --------------------------------------------------------------------------------------- */

static const char *
status(const struct manager *manager, char text[STATUS_BYTES])
{
	uint64_t open = admission_open();
	snprintf(text, STATUS_BYTES,
		 "%sgeneration %" PRIu64 ", %zu tunnel%s, %" PRIu64 " connection%s open%s%s",
		 manager->stops ? "draining; " : "", manager->generation, manager->tunnels,
		 manager->tunnels == 1 ? "" : "s", open, open == 1 ? "" : "s",
		 *manager->verdict ? "; " : "", manager->verdict);
	return text;
}

static void
tell_ready(struct manager *manager)
{
	systemd_notify_ready(status(manager, manager->told));
}

static void
refresh_status(struct manager *manager)
{
	char text[STATUS_BYTES];

	if (strcmp(status(manager, text), manager->told) == 0)
		return;
	memcpy(manager->told, text, sizeof(text));
	systemd_notify_status(text);
}

/* --- watchdog ------------------------------------------------------------------------------------- */

static bool
is_answered(const struct manager *manager)
{
	for (const struct manager_check *check = manager->checks; check; check = check->next)
		if (check->waits)
			return false;
	return true;
}

static void
complain(struct manager *manager)
{
	if (manager->complained || clock_now_ns() - manager->asked_ns < manager->patience_ns / 2)
		return;
	manager->complained = true;
	for (const struct manager_check *check = manager->checks; check; check = check->next)
		if (check->waits)
			log_line(LOG_LEVEL_ERROR,
				 "%s does not answer; the watchdog is not fed until it does",
				 check->name);
}

static void
ask_again(struct manager *manager)
{
	for (struct manager_check *check = manager->checks; check; check = check->next)
		if (check->again) {
			check->again = false;
			check->ask(check->context);
		}
}

static void
ask_all(struct manager *manager)
{
	if (manager->asked_ns) {
		complain(manager);
		ask_again(manager);
		return;
	}
	manager->asked_ns = clock_now_ns();
	for (struct manager_check *check = manager->checks; check; check = check->next)
		check->waits = true;
	for (struct manager_check *check = manager->checks; check; check = check->next)
		check->ask(check->context);
}

void
manager_add(struct manager *manager, struct manager_check *check)
{
	check->waits = check->again = false;
	check->next = manager->checks;
	manager->checks = check;
}

void
manager_answer(struct manager *manager, struct manager_check *check, bool is_well)
{
	check->again = !is_well;
	if (!is_well)
		return;
	check->waits = false;
	if (!manager->asked_ns || !is_answered(manager))
		return;
	manager->asked_ns = 0;
	manager->complained = false;
	systemd_notify_watchdog();
}

/* --- the whole ------------------------------------------------------------------------------------ */

static void
on_tick(evutil_socket_t fd, short what, void *context)
{
	struct manager *manager = context;
	(void)fd;
	(void)what;

	if (manager->is_ready && manager->patience_ns)
		ask_all(manager);
	if (manager->drains_for_good)
		systemd_notify_stopping(STATUS_EVERY_NS + STOP_NS);
	if (manager->is_ready)
		refresh_status(manager);
}

struct manager *
manager_start(struct event_base *base, struct failure *why)
{
	struct manager *manager = calloc(1, sizeof(*manager));
	struct timeval every;
	uint64_t every_ns = STATUS_EVERY_NS;

	if (!manager)
		goto fail;
	manager->patience_ns = systemd_watchdog_ns();
	if (!systemd_is_manager_there())
		return manager;
	if (manager->patience_ns && manager->patience_ns / 4 < every_ns)
		every_ns = manager->patience_ns / 4;
	clock_to_timeval(every_ns, &every);
	manager->tick = event_new(base, -1, EV_PERSIST, on_tick, manager);
	if (manager->tick && event_add(manager->tick, &every) == 0)
		return manager;
fail:
	manager_stop(manager);
	failure_set(why, FAILURE_MEMORY, "no memory for the service manager's affairs");
	return NULL;
}

void
manager_reloading(struct manager *manager)
{
	(void)manager;
	systemd_notify_reloading();
}

void
manager_ready(struct manager *manager, uint64_t generation, size_t tunnels)
{
	manager->generation = generation;
	manager->tunnels = tunnels;
	manager->verdict[0] = '\0';
	manager->is_ready = true;
	tell_ready(manager);
}

void
manager_refused(struct manager *manager, const struct failure *why)
{
	char when[32];
	time_t now = time(NULL);
	struct tm local;

	strftime(when, sizeof(when), "%H:%M:%S", localtime_r(&now, &local));
	snprintf(manager->verdict, sizeof(manager->verdict), "the reload at %s failed: %s", when,
		 why->text);
	tell_ready(manager);
}

void
manager_stopping(struct manager *manager, uint64_t drain_ns)
{
	manager->stops = true;
	manager->drains_for_good = !drain_ns;
	systemd_notify_stopping((drain_ns ? drain_ns : STATUS_EVERY_NS) + STOP_NS);
	refresh_status(manager);
}

void
manager_stop(struct manager *manager)
{
	if (manager && manager->tick)
		event_free(manager->tick);
	free(manager);
}
