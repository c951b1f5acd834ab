#include "admin_answers.h"

#include "admin_survey.h"
#include "admission.h"
#include "clock.h"
#include "connection_view.h"
#include "generation.h"
#include "log.h"
#include "target.h"

#include <string.h>
#include <unistd.h>

/* What these answers keep: the survey first. */
struct state {
	struct admin_survey survey;
	size_t tunnel, target; /* the next to be written */
};

static const char *const level_names[] = {
	[LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARNING] = "warning", [LOG_LEVEL_NOTICE] = "notice",
	[LOG_LEVEL_INFO] = "info",   [LOG_LEVEL_DEBUG] = "debug",
};

static bool
collect(struct inquiry *inquiry)
{
	admin_survey_collect(inquiry, inquiry->state);
	return true;
}

static void
end(struct inquiry *inquiry)
{
	admin_survey_end(inquiry->state);
}

static json_t *
moment(double seconds)
{
	return seconds > 0 ? json_real(seconds) : json_null();
}

/* --- health --------------------------------------------------------------------------------------- */

static enum answer_step
write_health(struct inquiry *inquiry, struct page *page)
{
	(void)inquiry;
	page_print(page, "ok\n");
	return ANSWER_DONE;
}

const struct answer admin_answers_health = {
	.content_type = "text/plain; charset=utf-8",
	.write = write_health,
};

static enum answer_step
write_readiness(struct inquiry *inquiry, struct page *page)
{
	struct admin_survey *survey = inquiry->state;

	if (admin_survey_next(inquiry, survey, false))
		return ANSWER_VISIT;
	if (!survey->status.ready)
		inquiry_fail(inquiry, 503, "not ready yet");
	else if (survey->status.drains)
		inquiry_fail(inquiry, 503, "draining");
	else
		page_print(page, "ready\n");
	return ANSWER_DONE;
}

const struct answer admin_answers_readiness = {
	.content_type = "text/plain; charset=utf-8",
	.state_bytes = sizeof(struct state),
	.write = write_readiness,
	.collect = collect,
	.end = end,
};

/* --- status --------------------------------------------------------------------------------------- */

static json_t *
workers_of(const struct inquiry *inquiry, const struct admin_survey *survey)
{
	json_t *workers = json_array();

	for (unsigned int i = 0; i < inquiry->control->workers; i++) {
		const struct admin_worker *worker = &survey->workers[i];
		const struct pulse *pulse = &worker->pulse;
		double mean_s = pulse->beats ? (double)pulse->late_ns / (double)pulse->beats /
						       (double)NS_PER_S
					     : 0;
		admin_survey_append(
			&workers,
			json_pack("{s:i, s:I, s:I, s:I, s:I, s:f, s:f}", "worker", (int)i,
				  "connections", (json_int_t)worker->connections, "handshakes",
				  (json_int_t)worker->handshakes, "handshakes_held",
				  (json_int_t)worker->handshakes_held, "kept_bytes",
				  (json_int_t)worker->kept_bytes, "loop_lag_s", mean_s,
				  "worst_loop_lag_s", (double)pulse->latest_ns / (double)NS_PER_S));
	}
	return workers;
}

static enum answer_step
write_status(struct inquiry *inquiry, struct page *page)
{
	struct admin_survey *survey = inquiry->state;
	const struct admin_status *status = &survey->status;

	if (admin_survey_next(inquiry, survey, true))
		return ANSWER_VISIT;
	if (inquiry->status != 200)
		return ANSWER_DONE;
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	double now_s = (double)now.tv_sec + (double)now.tv_nsec / (double)NS_PER_S;
	const struct generation *generation = status->generation;
	json_t *reload = json_pack(
		"{s:o, s:o, s:o, s:I, s:I, s:b}", "loaded_at", moment(status->loaded_at),
		"failed_at", moment(status->failed_at), "failure",
		admin_survey_text(status->failure), "reloads", (json_int_t)status->reloads,
		"failed", (json_int_t)status->failed_reloads, "now", status->reloads_now);
	json_t *connections = json_pack("{s:I, s:I}", "open", (json_int_t)admission_open(), "most",
					(json_int_t)admission_most());
	json_t *log = json_pack("{s:s, s:I}", "level", level_names[status->log_level], "dropped",
				(json_int_t)log_dropped());
	json_t *all = json_pack(
		"{s:s, s:i, s:b, s:b, s:f, s:f, s:f, s:I, s:I, s:o, s:I, s:o, s:o, s:o, s:o, s:b}",
		"version", PENSTOCK_VERSION, "pid", (int)getpid(), "ready", status->ready,
		"draining", status->drains, "now", now_s, "started_at", status->started_at,
		"uptime_s", now_s - status->started_at, "generation",
		(json_int_t)(generation ? generation->number : 0), "generations",
		(json_int_t)generation_count(), "file",
		admin_survey_text(generation ? generation->file : ""), "tunnels",
		(json_int_t)(generation ? generation->tunnel_count : 0), "reload", reload,
		"connections", connections, "log", log, "workers", workers_of(inquiry, survey),
		"may_change", inquiry->may_change);
	admin_survey_print(inquiry, page, all, "\n");
	return ANSWER_DONE;
}

const struct answer admin_answers_status = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct state),
	.write = write_status,
	.collect = collect,
	.end = end,
};

/* --- tunnels -------------------------------------------------------------------------------------- */

static json_t *
states_of(const struct tunnel_sums *sum)
{
	json_t *states = json_object();
	for (int state = CONNECTION_OPENING; state <= CONNECTION_FLUSHING; state++)
		admin_survey_set(&states, connection_view_state_name((enum connection_state)state),
				 json_integer((json_int_t)sum->state[state]));
	return states;
}

/* Only what happened at least once. */
static json_t *
ends_of(const struct tunnel_sums *sum)
{
	json_t *ends = json_object();
	for (int who = 0; who < TUNNEL_ENDERS; who++) {
		json_t *reasons = json_object();
		for (int kind = 0; kind < FAILURE_KINDS; kind++)
			if (sum->ended[who][kind])
				admin_survey_set(&reasons,
						 kind ? failure_kind_name((enum failure_kind)kind)
						      : "ok",
						 json_integer((json_int_t)sum->ended[who][kind]));
		admin_survey_set(&ends, connection_view_ender_name((enum ended_by)who), reasons);
	}
	return ends;
}

static json_t *
refusals_of(const struct tunnel_live *live)
{
	json_t *refusals = json_object();
	for (int reason = 0; reason < REFUSALS; reason++)
		if (live->refused[reason])
			admin_survey_set(&refusals, admission_refusal_name((enum refusal)reason),
					 json_integer((json_int_t)live->refused[reason]));
	return refusals;
}

static json_t *
addresses_of(const struct address_list *list)
{
	json_t *texts = json_array();
	for (size_t i = 0; i < list->count; i++)
		admin_survey_append(&texts, admin_survey_text(list->at[i].text));
	return texts;
}

static json_t *
texts_of(const struct text_list *list)
{
	json_t *texts = json_array();
	for (size_t i = 0; i < list->count; i++)
		admin_survey_append(&texts, admin_survey_text(list->at[i]));
	return texts;
}

static bool
listens_for(const struct tunnel_conf *listening, const struct tunnel_conf *conf)
{
	const struct tunnel_group *group = listening->group;
	for (size_t i = 0; group && i < group->count; i++)
		if (group->tunnels[i] == conf)
			return true;
	return listening == conf;
}

/* Where it listens in fact, internal names too. */
static json_t *
listeners_of(const struct admin_status *status, const struct tunnel_conf *conf)
{
	json_t *texts = json_array();
	for (size_t i = 0; i < status->listener_count; i++)
		if (listens_for(status->listeners[i].conf, conf))
			admin_survey_append(&texts,
					    admin_survey_text(status->listeners[i].address));
	for (size_t i = 0; i < conf->listen.count; i++)
		if (conf->listen.at[i].kind == ADDRESS_INTERNAL)
			admin_survey_append(&texts, admin_survey_text(conf->listen.at[i].text));
	return texts;
}

/* Stands before several tunnels, and chooses between them. */
static bool
is_front(const struct tunnel_conf *conf)
{
	return conf->group && !conf->connect.count;
}

static json_t *
tunnel_of(const struct admin_status *status, const struct tunnel_conf *conf)
{
	const struct tunnel_live *live = conf->live;
	struct tunnel_sums sum;
	admission_sum(live, &sum);
	json_t *bytes = json_pack("{s:I, s:I, s:I, s:I}", "near_up",
				  (json_int_t)sum.bytes[SIDE_NEAR][FLOW_UP], "near_down",
				  (json_int_t)sum.bytes[SIDE_NEAR][FLOW_DOWN], "far_up",
				  (json_int_t)sum.bytes[SIDE_FAR][FLOW_UP], "far_down",
				  (json_int_t)sum.bytes[SIDE_FAR][FLOW_DOWN]);
	return json_pack(
		"{s:s, s:b, s:o, s:o, s:o, s:s, s:o, s:o, s:I, s:I, s:b, s:I, s:o, s:o, s:o, s:o}",
		"name", conf->name, "is_front", is_front(conf), "listen",
		listeners_of(status, conf), "connect", addresses_of(&conf->connect), "backup",
		addresses_of(&conf->backup), "balance", tunnel_conf_balances[conf->balance],
		"accept_filters", texts_of(&conf->accept_filters), "connect_filters",
		texts_of(&conf->connect_filters), "open", (json_int_t)live->open, "max_connections",
		(json_int_t)conf->max_connections, "drained", (int)live->drained, "admitted",
		(json_int_t)live->admitted, "states", states_of(&sum), "refused", refusals_of(live),
		"ended", ends_of(&sum), "bytes", bytes);
}

static enum answer_step
write_tunnels(struct inquiry *inquiry, struct page *page)
{
	struct state *state = inquiry->state;

	if (admin_survey_next(inquiry, &state->survey, false))
		return ANSWER_VISIT;
	if (inquiry->status != 200)
		return ANSWER_DONE;
	const struct generation *generation = state->survey.status.generation;
	const struct tunnel_conf *conf;
	if (!state->tunnel)
		page_print(page, "{\"tunnels\":[");
	while (generation && (conf = generation_counted(generation, state->tunnel))) {
		page_print(page, state->tunnel++ ? ",\n" : "\n");
		admin_survey_print(inquiry, page, tunnel_of(&state->survey.status, conf), "");
		if (page_length(page) >= ANSWER_PAGE_BYTES)
			return ANSWER_MORE;
	}
	page_print(page, "\n]}\n");
	return ANSWER_DONE;
}

const struct answer admin_answers_tunnels = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct state),
	.write = write_tunnels,
	.collect = collect,
	.end = end,
};

/* --- targets -------------------------------------------------------------------------------------- */

static json_t *
target_of(const struct tunnel_conf *conf, size_t index, uint64_t now_ns)
{
	uint64_t until_ns = targets_failed_until(conf->targets, index, now_ns);
	enum target_health health = targets_health(conf->targets, index);
	const char *state = health == TARGET_FAILS ? "down" : until_ns ? "failed" : "up";
	return json_pack("{s:s, s:o, s:b, s:I, s:I, s:s, s:b, s:f}", "tunnel", conf->name, "target",
			 admin_survey_text(targets_name(conf->targets, index)), "backup",
			 index >= conf->connect.count, "active",
			 (json_int_t)targets_active(conf->targets, index), "most",
			 (json_int_t)conf->max_per_target, "state", state, "checked",
			 health != TARGET_UNCHECKED, "tried_last_for_s",
			 until_ns ? (double)(until_ns - now_ns) / (double)NS_PER_S : 0.0);
}

static enum answer_step
write_targets(struct inquiry *inquiry, struct page *page)
{
	struct state *state = inquiry->state;

	if (admin_survey_next(inquiry, &state->survey, false))
		return ANSWER_VISIT;
	if (inquiry->status != 200)
		return ANSWER_DONE;
	const struct generation *generation = state->survey.status.generation;
	uint64_t now_ns = clock_now_ns();
	bool is_first = !state->tunnel && !state->target;
	if (is_first)
		page_print(page, "{\"targets\":[");
	for (; generation && state->tunnel < generation->tunnel_count; state->tunnel++) {
		const struct tunnel_conf *conf = generation->tunnels[state->tunnel];
		while (state->target < tunnel_conf_target_count(conf)) {
			page_print(page, is_first ? "\n" : ",\n");
			is_first = false;
			admin_survey_print(inquiry, page, target_of(conf, state->target++, now_ns),
					   "");
			if (page_length(page) >= ANSWER_PAGE_BYTES)
				return ANSWER_MORE;
		}
		state->target = 0;
	}
	page_print(page, "\n]}\n");
	return ANSWER_DONE;
}

const struct answer admin_answers_targets = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct state),
	.write = write_targets,
	.collect = collect,
	.end = end,
};
