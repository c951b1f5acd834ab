#include "control_admin.h"

#include "control_drain.h"
#include "control_reload.h"
#include "log.h"
#include "mailbox.h"
#include "worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
		.reloads_now = control_reload_is_under_way(control),
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
on_reload(void *context, struct admin_wish *wish)
{
	control_reload_wish(context, wish);
}

static void
on_compare(void *context, struct admin_wish *wish)
{
	control_reload_compare(context, wish);
}

static void
on_drain(void *context, struct admin_wish *wish)
{
	control_drain_wish(context, wish);
}

/* The first workers may bring somebody here before the last one has begun. */
static const struct generation *
generation_now(const struct control *control)
{
	return control->generation ? control->generation : control->next;
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

int
control_admin_start(struct control *control, struct failure *why)
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
		.reload = on_reload,
		.compare = on_compare,
		.drain = on_drain,
		.set_log_level = set_log_level,
	};
	control->started_at = control_time_of_day();
	admin_start(&control->admin);
	return 0;
}
