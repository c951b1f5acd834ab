#include "control_reload.h"

#include "admission.h"
#include "config_diff.h"
#include "loader.h"
#include "log.h"
#include "manager.h"
#include "process.h"
#include "renewal.h"
#include "services/services.h"
#include "systemd.h"
#include "worker.h"

#include <stdio.h>

bool
control_reload_is_under_way(const struct control *control)
{
	return control->next || loader_is_busy(control->loader);
}

/* --- into force ----------------------------------------------------------------------------------- */

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
	process_fill_in(next, control->workers);
	admission_set_most(next->max_connections);
	switchover_commit(next, &before, &control->next_listeners);
	switchover_store(&control->listeners, &control->next_listeners);
	control->next = next;
	crew_switch(control->crew, next, control->next_listeners.at, control->next_listeners.count);
	return 0;
}

static void
say_unused(const char *name, int fd)
{
	log_line(LOG_LEVEL_WARNING,
		 "systemd passed the socket \"%s\" (descriptor %d), on which no tunnel listens",
		 name, fd);
}

static void
watch_files(struct control *control)
{
	struct failure why;
	if (renewal_watch(control->renewal, control->generation, control->load_began, &why) < 0)
		log_line(LOG_LEVEL_WARNING, "renewed files will need a reload: %s", why.text);
}

void
control_reload_switched(struct control *control)
{
	struct generation *old = control->generation;

	switchover_finish(old, control->next);
	control_settle_listeners(control);
	control->generation = control->next;
	control->next = NULL;
	if (old)
		counted_release(&old->counted);
	watch_files(control);
	/* The first field makes the kind of a line, of which only so many are written in a second: it is not the
	 * number, which no other line has. */
	struct log_field fields[] = {
		{ .name = "tunnels", .number = control->generation->tunnel_count },
		{ .name = "generation", .number = control->generation->number },
		{ .name = "workers", .number = control->workers },
	};
	log_event(LOG_LEVEL_NOTICE, fields, 3, control->ready ? "reloaded" : "ready");
	if (!control->ready) {
		systemd_tell_unused(say_unused);
		systemd_store_forget_rest();
	}
	control->reloads += control->ready;
	control->ready = true;
	control->loaded_at = control_time_of_day();
	control_grant(&control->wishes, NULL);
	manager_ready(control->manager, control->generation->number,
		      control->generation->tunnel_count);
	control_go_on(control);
}

/* --- loaded, or not ------------------------------------------------------------------------------- */

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
	control->failed_at = control_time_of_day();
	control->failed_reloads++;
	control->reload_failure = *why;
	control_grant(&control->wishes, why);
	control_go_on(control);
}

static void
say_restart(const struct config_change *change, void *context)
{
	(void)context;
	log_line(LOG_LEVEL_WARNING, "%s: %s counts only after a restart; %s goes on",
		 change->row->name, *change->after ? change->after : "\"\"",
		 *change->before ? change->before : "\"\"");
}

/* As what is in force is. What fits depends on how many listeners there are: a cap that the file does not
 * have, before or after, is no difference. */
static void
fill_in_to_compare(const struct control *control, struct generation *fresh)
{
	process_fill_in(fresh, control->workers);
	if (fresh->has_fitting_cap && control->generation->has_fitting_cap)
		fresh->max_connections = control->generation->max_connections;
}

/* What counts only after a restart is in force as it was: a later comparison shall tell the difference
 * again. */
static void
keep_started(const struct generation *old, struct generation *next)
{
	config_diff_restart(old, next, say_restart, NULL);
	next->workers = old->workers;
	next->user = old->user;
	next->landlock = old->landlock;
	next->no_new_privs = old->no_new_privs;
}

/* What was loaded is not for use. */
static void
compare(struct control *control, struct generation *fresh, const struct config_report *report)
{
	struct admin_wish *wish = control->comparison;
	struct failure why;

	control->comparison = NULL;
	if (fresh)
		fill_in_to_compare(control, fresh);
	else
		name_mistake(report, &why);
	wish->old = control->generation;
	wish->fresh = fresh;
	wish->over(wish, fresh ? NULL : &why);
	if (fresh)
		counted_release(&fresh->counted);
	control_go_on(control);
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
		keep_started(control->generation, next);
	if (next && load(control, next, &why) == 0)
		return;
	if (next)
		counted_release(&next->counted);
	refuse_reload(control, &why);
}

/* --- asked for ------------------------------------------------------------------------------------ */

void
control_reload_next(struct control *control)
{
	struct failure why;

	control->reload = control->reload_wanted;
	control->reload_wanted = RELOAD_NONE;
	control->wishes = control->next_wishes;
	control->next_wishes = NULL;
	manager_reloading(control->manager);
	clock_gettime(CLOCK_REALTIME, &control->load_began);
	if (loader_begin(control->loader, &why) < 0)
		refuse_reload(control, &why);
}

void
control_reload_soon(struct control *control, enum reload kind)
{
	if (control->stops) {
		log_line(LOG_LEVEL_WARNING, "not reloaded: the daemon is stopping");
		return;
	}
	if (kind > control->reload_wanted)
		control->reload_wanted = kind;
	control_go_on(control);
}

void
control_reload_wish(struct control *control, struct admin_wish *wish)
{
	struct failure why;

	if (control->stops) {
		failure_set(&why, FAILURE_STOPPED, "not reloaded: the daemon is stopping");
		wish->over(wish, &why);
		return;
	}
	wish->next = control->next_wishes;
	control->next_wishes = wish;
	control_reload_soon(control, RELOAD_FILE);
}

void
control_reload_compare(struct control *control, struct admin_wish *wish)
{
	struct failure why;

	if (control->stops || control_reload_is_under_way(control))
		failure_set(&why, FAILURE_SYSTEM, "not compared: the daemon is %s; ask again",
			    control->stops ? "stopping" : "reading a configuration already");
	else if (loader_begin(control->loader, &why) == 0) {
		control->comparison = wish;
		return;
	}
	wish->over(wish, &why);
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
	control_reload_soon(context, RELOAD_RENEWAL);
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

/* --- the whole ------------------------------------------------------------------------------------ */

int
control_reload_start(struct control *control, struct generation *first, struct failure *why)
{
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

bool
control_reload_stop(struct control *control)
{
	bool is_quiet = loader_stop(control->loader);

	renewal_stop(control->renewal);
	return is_quiet;
}
