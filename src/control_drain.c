#include "control_drain.h"

#include "admission.h"
#include "worker.h"

#include <stdatomic.h>
#include <string.h>

/* Whether who comes to that tunnel may get to the admin service. */
static bool
leads_to_admin(const struct tunnel_conf *conf)
{
	if (conf->live->is_shut)
		return false;
	for (size_t i = 0; conf->group && i < conf->group->count; i++)
		if (leads_to_admin(conf->group->tunnels[i]))
			return true;
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

void
control_drain_next(struct control *control)
{
	struct admin_wish *wish = control->drain_wishes;
	const struct tunnel_conf *conf = generation_find(control->generation, wish->tunnel);
	struct failure why;
	int result = 0;

	control->drain_wishes = wish->next;
	control->drain_wish = wish;
	if (!conf)
		result = failure_set(&why, FAILURE_CONFIG,
				     "there is no tunnel \"%.64s\"; penstockctl tunnels shows all",
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

void
control_drain_listening(struct control *control)
{
	struct admin_wish *wish = control->drain_wish;
	const struct tunnel_conf *conf = generation_find(control->generation, wish->tunnel);

	/* Who waited in the queues of what is closed was let in; now the tunnel's other ways are shut as well. */
	atomic_store(&conf->live->drained, wish->drains);
	control_settle_listeners(control);
	control->drain_wish = NULL;
	wish->over(wish, NULL);
	control_go_on(control);
}

void
control_drain_wish(struct control *control, struct admin_wish *wish)
{
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
	control_go_on(control);
}
