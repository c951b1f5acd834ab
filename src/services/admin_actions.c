#include "admin_answers.h"
#include "admin_survey.h"
#include "connection_view.h"
#include "log.h"
#include "tunnel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct action {
	struct admin_wish wish; /* of a reload */
	struct inquiry *inquiry;
	uint64_t id;          /* of a connection */
	unsigned int visited; /* places */
	bool is_done;
	int level;
	char name[129];
};

static void
write_done(struct page *page)
{
	page_print(page, "{\"ok\":true}\n");
}

/* For what is done in one place: the control thread. */
static enum answer_step
write_after_visit(struct inquiry *inquiry, struct page *page)
{
	struct action *action = inquiry->state;

	if (!action->visited++) {
		inquiry->place = PLACE_CONTROL;
		return ANSWER_VISIT;
	}
	write_done(page);
	return ANSWER_DONE;
}

/* --- kill ----------------------------------------------------------------------------------------- */

static int
begin_kill(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	struct action *action = inquiry->state;
	char *end;
	(void)request;

	action->id = strtoull(argument, &end, 10);
	if (*end || argument[0] == '-' || !action->id)
		return inquiry_fail(inquiry, 404, "no connection has such a number");
	return 0;
}

static bool
collect_kill(struct inquiry *inquiry)
{
	const struct admin_control *control = inquiry->control;
	struct action *action = inquiry->state;
	struct connection *connection = connection_view_find(
		control->connections_of(control->context, (unsigned int)inquiry->place),
		action->id);

	action->is_done = connection != NULL;
	if (connection)
		tunnel_kill(connection);
	return true;
}

static enum answer_step
write_kill(struct inquiry *inquiry, struct page *page)
{
	struct action *action = inquiry->state;

	if (!action->is_done && action->visited < inquiry->control->workers) {
		inquiry->place = (int)action->visited++;
		return ANSWER_VISIT;
	}
	if (!action->is_done) {
		inquiry_fail(inquiry, 404, "connection %llu is not open",
			     (unsigned long long)action->id);
		return ANSWER_DONE;
	}
	snprintf(inquiry->log, sizeof(inquiry->log), "connection %llu killed",
		 (unsigned long long)action->id);
	write_done(page);
	return ANSWER_DONE;
}

const struct answer admin_actions_kill = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct action),
	.begin = begin_kill,
	.write = write_kill,
	.collect = collect_kill,
};

/* --- drain ---------------------------------------------------------------------------------------- */

static int
begin_drain(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	struct action *action = inquiry->state;
	(void)request;
	snprintf(action->name, sizeof(action->name), "%s", argument);
	return 0;
}

static void
on_drained(struct admin_wish *wish, const struct failure *why)
{
	struct action *action = (struct action *)wish;
	struct inquiry *inquiry = action->inquiry;

	if (why)
		inquiry_fail(inquiry, why->kind == FAILURE_CONFIG ? 404 : 409, "%s", why->text);
	else
		snprintf(inquiry->log, sizeof(inquiry->log), "tunnel \"%.80s\" %s", action->name,
			 wish->drains ? "drained until the next reload" : "open again");
	inquiry_go_home(inquiry);
}

static bool
wish_drain(struct inquiry *inquiry, bool drains)
{
	const struct admin_control *control = inquiry->control;
	struct action *action = inquiry->state;

	action->inquiry = inquiry;
	action->wish.over = on_drained;
	action->wish.tunnel = action->name;
	action->wish.drains = drains;
	control->drain(control->context, &action->wish);
	return false;
}

static bool
collect_drain(struct inquiry *inquiry)
{
	return wish_drain(inquiry, true);
}

static bool
collect_undrain(struct inquiry *inquiry)
{
	return wish_drain(inquiry, false);
}

const struct answer admin_actions_drain = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct action),
	.begin = begin_drain,
	.write = write_after_visit,
	.collect = collect_drain,
};

const struct answer admin_actions_undrain = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct action),
	.begin = begin_drain,
	.write = write_after_visit,
	.collect = collect_undrain,
};

/* --- reload --------------------------------------------------------------------------------------- */

/* The log says who asked before it says what came of it. */
static int
begin_reload(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	(void)request;
	(void)argument;
	snprintf(inquiry->log, sizeof(inquiry->log), "reload asked for");
	return 0;
}

static void
on_reloaded(struct admin_wish *wish, const struct failure *why)
{
	struct action *action = (struct action *)wish;
	if (why)
		inquiry_fail(action->inquiry, 409, "%s", why->text);
	inquiry_go_home(action->inquiry);
}

static bool
collect_reload(struct inquiry *inquiry)
{
	const struct admin_control *control = inquiry->control;
	struct action *action = inquiry->state;

	action->inquiry = inquiry;
	action->wish.over = on_reloaded;
	control->reload(control->context, &action->wish);
	return false;
}

const struct answer admin_actions_reload = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct action),
	.begin = begin_reload,
	.write = write_after_visit,
	.collect = collect_reload,
};

/* --- log level ------------------------------------------------------------------------------------ */

static const char *const level_names[] = {
	[LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARNING] = "warning", [LOG_LEVEL_NOTICE] = "notice",
	[LOG_LEVEL_INFO] = "info",   [LOG_LEVEL_DEBUG] = "debug",
};

static int
begin_log_level(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	struct action *action = inquiry->state;
	json_t *body = json_loadb(request->body, request->body_bytes, 0, NULL);
	const char *name = json_string_value(json_object_get(body, "level"));
	(void)argument;

	action->level = -1;
	for (int level = LOG_LEVEL_ERROR; name && level <= LOG_LEVEL_DEBUG; level++)
		if (!strcmp(name, level_names[level]))
			action->level = level;
	if (action->level < 0 && name)
		inquiry_fail(
			inquiry, 400,
			"there is no level '%.60s'; it is error, warning, notice, info or debug",
			name);
	else if (action->level < 0)
		inquiry_fail(
			inquiry, 400,
			"write {\"level\":\"...\"} with error, warning, notice, info or debug");
	json_decref(body);
	return action->level < 0 ? -1 : 0;
}

static bool
collect_log_level(struct inquiry *inquiry)
{
	const struct admin_control *control = inquiry->control;
	struct action *action = inquiry->state;
	struct failure why;

	if (control->set_log_level(control->context, action->level, &why) < 0)
		inquiry_fail(inquiry, 409, "%s", why.text);
	else
		snprintf(inquiry->log, sizeof(inquiry->log),
			 "log level is %s until the next reload", level_names[action->level]);
	return true;
}

const struct answer admin_actions_log_level = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct action),
	.begin = begin_log_level,
	.write = write_after_visit,
	.collect = collect_log_level,
};
