#include "admin_answers.h"
#include "admin_survey.h"
#include "admin_top.h"
#include "admission.h"
#include "canary.h"
#include "clock.h"
#include "connection_view.h"
#include "filters/compression.h"
#include "filters/tls_counters.h"
#include "generation.h"
#include "limit_conf.h"
#include "log.h"
#include "target.h"

#include <event2/event.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

/*
 * The text format of Prometheus, version 0.0.4: all samples of one metric stand together, so tunnels are gone
 * through once for each metric. A page may end between two metrics, or two tunnels of one.
 */

struct metrics {
	struct admin_survey survey;
	bool is_surveyed;
	size_t metric, tunnel; /* the next to be written */
	size_t limit_metric, limit;
	struct admin_top top;
	size_t top_metric, top_limit;
};

#define LABEL_TEXT 700

/* A label's value. Configured names hold no control bytes but newlines at worst. */
static const char *
escape(const char *from, char to[LABEL_TEXT])
{
	size_t length = 0;
	for (; *from && length < LABEL_TEXT - 3; from++) {
		if (*from == '\\' || *from == '"' || *from == '\n')
			to[length++] = '\\';
		to[length++] = *from == '\n' ? 'n' : *from;
	}
	to[length] = '\0';
	return to;
}

static unsigned long long
number(uint64_t value)
{
	return (unsigned long long)value;
}

/* --- of each tunnel ------------------------------------------------------------------------------- */

static void
write_states(struct page *page, const struct tunnel_conf *conf, const char *tunnel)
{
	struct tunnel_sums sum;
	admission_sum(conf->live, &sum);
	for (int state = CONNECTION_OPENING; state <= CONNECTION_FLUSHING; state++)
		page_print(page, "penstock_connections{tunnel=\"%s\",state=\"%s\"} %lld\n", tunnel,
			   connection_view_state_name((enum connection_state)state),
			   (long long)sum.state[state]);
}

static void
write_admitted(struct page *page, const struct tunnel_conf *conf, const char *tunnel)
{
	page_print(page, "penstock_connections_admitted_total{tunnel=\"%s\"} %llu\n", tunnel,
		   number(conf->live->admitted));
}

static void
write_refused(struct page *page, const struct tunnel_conf *conf, const char *tunnel)
{
	for (int reason = 0; reason < REFUSALS; reason++)
		page_print(page,
			   "penstock_connections_refused_total{tunnel=\"%s\",reason=\"%s\"} %llu\n",
			   tunnel, admission_refusal_name((enum refusal)reason),
			   number(conf->live->refused[reason]));
}

static void
write_ended(struct page *page, const struct tunnel_conf *conf, const char *tunnel)
{
	struct tunnel_sums sum;
	admission_sum(conf->live, &sum);
	for (int who = 0; who < TUNNEL_ENDERS; who++)
		for (int kind = 0; kind < FAILURE_KINDS; kind++)
			if (sum.ended[who][kind] || !kind)
				page_print(
					page,
					"penstock_connections_ended_total{tunnel=\"%s\",by=\"%s\","
					"reason=\"%s\"} %llu\n",
					tunnel, connection_view_ender_name((enum ended_by)who),
					kind ? failure_kind_name((enum failure_kind)kind) : "ok",
					number(sum.ended[who][kind]));
}

static void
write_bytes(struct page *page, const struct tunnel_conf *conf, const char *tunnel)
{
	struct tunnel_sums sum;
	admission_sum(conf->live, &sum);
	for (int side = SIDE_NEAR; side <= SIDE_FAR; side++)
		for (int name = FLOW_UP; name <= FLOW_DOWN; name++)
			page_print(page,
				   "penstock_bytes_total{tunnel=\"%s\",side=\"%s\",flow="
				   "\"%s\"} %llu\n",
				   tunnel, side == SIDE_NEAR ? "near" : "far",
				   name == FLOW_UP ? "up" : "down", number(sum.bytes[side][name]));
}

static void
write_drained(struct page *page, const struct tunnel_conf *conf, const char *tunnel)
{
	page_print(page, "penstock_tunnel_drained{tunnel=\"%s\"} %d\n", tunnel,
		   conf->live->drained ? 1 : 0);
}

static void
write_target_connections(struct page *page, const struct tunnel_conf *conf, const char *tunnel)
{
	char target[LABEL_TEXT];
	for (size_t i = 0; i < tunnel_conf_target_count(conf); i++)
		page_print(page, "penstock_target_connections{tunnel=\"%s\",target=\"%s\"} %u\n",
			   tunnel, escape(targets_name(conf->targets, i), target),
			   targets_active(conf->targets, i));
}

static bool
is_up(const struct targets *targets, size_t index, uint64_t now_ns)
{
	return targets_health(targets, index) != TARGET_FAILS &&
	       !targets_failed_until(targets, index, now_ns);
}

static void
write_target_up(struct page *page, const struct tunnel_conf *conf, const char *tunnel)
{
	char target[LABEL_TEXT];
	uint64_t now_ns = clock_now_ns();
	for (size_t i = 0; i < tunnel_conf_target_count(conf); i++)
		page_print(page, "penstock_target_up{tunnel=\"%s\",target=\"%s\"} %d\n", tunnel,
			   escape(targets_name(conf->targets, i), target),
			   is_up(conf->targets, i, now_ns) ? 1 : 0);
}

static const struct metric {
	const char *name, *type, *help;
	void (*write)(struct page *page, const struct tunnel_conf *conf, const char *tunnel);
} by_tunnel[] = {
	{ "penstock_connections", "gauge", "Connections now, by state.", write_states },
	{ "penstock_connections_admitted_total", "counter", "Connections that were let in.",
	  write_admitted },
	{ "penstock_connections_refused_total", "counter",
	  "Connections that were not let in, by reason.", write_refused },
	{ "penstock_connections_ended_total", "counter",
	  "Connections that have ended, by who ended them and why.", write_ended },
	{ "penstock_bytes_total", "counter",
	  "Bytes read and written, by side (near: client) and flow (up: away from the client).",
	  write_bytes },
	{ "penstock_tunnel_drained", "gauge",
	  "Whether an operator has drained the tunnel, so that it lets nobody in.", write_drained },
	{ "penstock_target_connections", "gauge",
	  "Connections to a target and attempts to connect, over all tunnels with it.",
	  write_target_connections },
	{ "penstock_target_up", "gauge",
	  "Whether a target passes its checks and did not fail lately.", write_target_up },
};
#define BY_TUNNEL (sizeof(by_tunnel) / sizeof(by_tunnel[0]))

/* --- of each limit -------------------------------------------------------------------------------- */

struct limit_metric {
	const char *name, *type, *help;
	double (*value)(const struct limit_report_direction *direction);
};

static double
rate_of(const struct limit_report_direction *direction)
{
	return (double)direction->rate;
}

static double
level_of(const struct limit_report_direction *direction)
{
	return (double)direction->level;
}

static double
waiting_of(const struct limit_report_direction *direction)
{
	return (double)direction->waiting;
}

static double
total_of(const struct limit_report_direction *direction)
{
	return (double)direction->total;
}

static double
speed_of(const struct limit_report_direction *direction)
{
	return (double)direction->speed;
}

static const struct limit_metric by_limit[] = {
	{ "penstock_limit_rate_bytes_per_second", "gauge", "The rate in force; 0 = unlimited.",
	  rate_of },
	{ "penstock_limit_level_bytes", "gauge", "Tokens there are; below 0: in debt.", level_of },
	{ "penstock_limit_waiting_flows", "gauge", "Flows below the limit that wait.", waiting_of },
	{ "penstock_limit_bytes_total", "counter", "Bytes that passed, or since the last reset.",
	  total_of },
	{ "penstock_limit_nodes", "gauge", "Nodes of a limit, one for each key.", NULL },
};
#define BY_LIMIT (sizeof(by_limit) / sizeof(by_limit[0]))

static void
write_limit(struct page *page, const struct limit_metric *metric, const struct limit_conf *conf)
{
	struct limit_report report;
	uint64_t now_ns = clock_now_ns();

	if (!metric->value) {
		page_print(page, "%s{limit=\"%s\"} %u\n", metric->name, conf->name,
			   limits_count(conf->live));
		return;
	}
	struct limit_node *node = limits_only(conf->live, now_ns);
	if (!node)
		return;
	limits_report(node, now_ns, &report);
	limits_release(node, now_ns);
	for (int i = LIMIT_UP; i <= LIMIT_DOWN; i++)
		page_print(page, "%s{limit=\"%s\",direction=\"%s\"} %.17g\n", metric->name,
			   conf->name, i == LIMIT_UP ? "up" : "down",
			   metric->value(&report.direction[i]));
}

/* Nodes by key come and go and may be many: only some of them are told, by metrics of their own, so that
 * nobody takes those for all. */
static const struct limit_metric by_key[] = {
	{ "penstock_limit_top_passing_bytes_per_second", "gauge",
	  "What passes, measured since anybody asked before, but at least over a second. Of the "
	  "ten busiest nodes of a limit by key: those through which most passes now.",
	  speed_of },
	{ "penstock_limit_top_rate_bytes_per_second", "gauge",
	  "The rate in force; 0 = unlimited. Of the ten busiest nodes of a limit by key.",
	  rate_of },
	{ "penstock_limit_top_level_bytes", "gauge",
	  "Tokens there are; below 0: in debt. Of the ten busiest nodes of a limit by key.",
	  level_of },
	{ "penstock_limit_top_waiting_flows", "gauge",
	  "Flows below the node that wait. Of the ten busiest nodes of a limit by key.",
	  waiting_of },
	{ "penstock_limit_top_bytes_total", "counter",
	  "Bytes that passed. Of the ten busiest nodes of a limit by key.", total_of },
};
#define BY_KEY (sizeof(by_key) / sizeof(by_key[0]))

static void
write_top_node(struct page *page, const struct limit_metric *metric, const char *limit,
	       const struct limit_top_node *node)
{
	char key[LABEL_TEXT], above[LABEL_TEXT];

	for (int i = LIMIT_UP; i <= LIMIT_DOWN; i++)
		page_print(page,
			   "%s{limit=\"%s\",above=\"%s\",key=\"%s\",direction=\"%s\"} %.17g\n",
			   metric->name, limit, escape(node->above, above),
			   escape(node->report.key, key), i == LIMIT_UP ? "up" : "down",
			   metric->value(&node->report.direction[i]));
}

/* --- of the daemon -------------------------------------------------------------------------------- */

static void
head(struct page *page, const char *name, const char *type, const char *help)
{
	page_print(page, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void
one(struct page *page, const char *name, const char *type, const char *help, double value)
{
	head(page, name, type, help);
	page_print(page, "%s %.17g\n", name, value);
}

static void
write_process(struct page *page, const struct admin_status *status)
{
	struct rusage usage = { 0 };
	long pages = 0;
	FILE *file = fopen("/proc/self/statm", "re");

	if (file && fscanf(file, "%*s %ld", &pages) != 1)
		pages = 0;
	if (file)
		fclose(file);
	getrusage(RUSAGE_SELF, &usage);
	one(page, "process_cpu_seconds_total", "counter", "CPU time of the daemon.",
	    (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
		    (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
	one(page, "process_resident_memory_bytes", "gauge", "Resident memory of the daemon.",
	    (double)pages * (double)sysconf(_SC_PAGESIZE));
	one(page, "process_start_time_seconds", "gauge", "When the daemon started, since 1970.",
	    status->started_at);
}

static void
write_daemon(struct page *page, const struct admin_status *status)
{
	head(page, "penstock_build_info", "gauge", "Always 1; the labels tell what is running.");
	page_print(page, "penstock_build_info{version=\"%s\",libevent=\"%s\"} 1\n",
		   PENSTOCK_VERSION, event_get_version());
	one(page, "penstock_ready", "gauge", "Whether every listener is open.", status->ready);
	one(page, "penstock_draining", "gauge", "Whether the daemon is stopping.", status->drains);
	one(page, "penstock_generation", "gauge", "The configuration in force, counted from 1.",
	    status->generation ? (double)status->generation->number : 0);
	one(page, "penstock_generations", "gauge",
	    "Configurations in memory: the one in force and older ones that connections hold.",
	    generation_count());
	head(page, "penstock_reloads_total", "counter", "Reloads, by result.");
	page_print(page,
		   "penstock_reloads_total{result=\"good\"} %llu\n"
		   "penstock_reloads_total{result=\"failed\"} %llu\n",
		   number(status->reloads), number(status->failed_reloads));
	one(page, "penstock_last_good_reload_timestamp_seconds", "gauge",
	    "When a configuration last came into force, since 1970.", status->loaded_at);
	one(page, "penstock_last_failed_reload_timestamp_seconds", "gauge",
	    "When a reload last failed, since 1970; 0 = never.", status->failed_at);
	one(page, "penstock_connections_max", "gauge", "The daemon's max_connections.",
	    (double)admission_most());
	one(page, "penstock_log_dropped_lines_total", "counter", "Lines that were lost.",
	    (double)log_dropped());
}

static void
write_handshakes(struct page *page)
{
	static const char *const sides[] = { [FILTER_NEAR] = "near", [FILTER_FAR] = "far" };
	static const char *const results[TLS_COUNTERS] = {
		[TLS_FULL] = "full",
		[TLS_TICKET] = "ticket",
		[TLS_CACHE] = "cache",
		[TLS_PSK] = "psk",
	};

	head(page, "penstock_tls_handshakes_total", "counter",
	     "TLS handshakes that succeeded, by side and kind; ticket, cache: a session was taken "
	     "up again that the client or the server had kept.");
	for (int side = FILTER_NEAR; side <= FILTER_FAR; side++)
		for (int i = 0; i < TLS_COUNTERS; i++)
			page_print(
				page,
				"penstock_tls_handshakes_total{side=\"%s\",result=\"%s\"} %llu\n",
				sides[side], results[i],
				number(tls_counters_read((enum filter_side)side,
							 (enum tls_counter)i)));
	head(page, "penstock_tls_handshake_failures_total", "counter",
	     "TLS handshakes that came to nothing, by side and reason.");
	for (int side = FILTER_NEAR; side <= FILTER_FAR; side++)
		for (int i = 0; i < TLS_FAILURES; i++)
			page_print(page,
				   "penstock_tls_handshake_failures_total{side=\"%s\","
				   "reason=\"%s\"} %llu\n",
				   sides[side], tls_counters_failure_name((enum tls_failure)i),
				   number(tls_counters_read_failures((enum filter_side)side,
								     (enum tls_failure)i)));
}

static void
write_compression(struct page *page)
{
	static const char *const kinds[COMPRESSION_KINDS] = {
		[COMPRESSION_ZLIB] = "zlib", [COMPRESSION_ZSTD] = "zstd"
	};
	static const char *const flows[FILTER_FLOWS] = { [FILTER_IN] = "in", [FILTER_OUT] = "out" };

	head(page, "penstock_compression_bytes_total", "counter",
	     "Bytes through filters that compress (out) or the reverse (in), plain and packed.");
	for (int kind = 0; kind < COMPRESSION_KINDS; kind++)
		for (int flow = FILTER_IN; flow < FILTER_FLOWS; flow++) {
			struct compression_totals totals = compression_read_totals(
				(enum compression_kind)kind, (enum filter_flow)flow);
			page_print(page,
				   "penstock_compression_bytes_total{filter=\"%s\",flow=\"%s\","
				   "form=\"plain\"} %llu\n"
				   "penstock_compression_bytes_total{filter=\"%s\",flow=\"%s\","
				   "form=\"packed\"} %llu\n",
				   kinds[kind], flows[flow], number(totals.plain_bytes),
				   kinds[kind], flows[flow], number(totals.packed_bytes));
		}
	head(page, "penstock_compression_stored_bytes_total", "counter",
	     "Of the plain bytes out those that adaptive did not compress, since it did not pay.");
	for (int kind = 0; kind < COMPRESSION_KINDS; kind++)
		page_print(page, "penstock_compression_stored_bytes_total{filter=\"%s\"} %llu\n",
			   kinds[kind],
			   number(compression_read_totals((enum compression_kind)kind, FILTER_OUT)
					  .stored_bytes));
}

static void
write_lag(struct page *page, unsigned int worker, const struct pulse *pulse)
{
	static const char name[] = "penstock_worker_loop_lag_seconds";
	uint64_t sum = 0;

	for (int i = 0; i < PULSE_BUCKETS; i++) {
		sum += pulse->late[i];
		page_print(page, "%s_bucket{worker=\"%u\",le=\"%g\"} %llu\n", name, worker,
			   (double)pulse_bounds_ns[i] / (double)NS_PER_S, number(sum));
	}
	page_print(page,
		   "%s_bucket{worker=\"%u\",le=\"+Inf\"} %llu\n"
		   "%s_sum{worker=\"%u\"} %.9g\n%s_count{worker=\"%u\"} %llu\n",
		   name, worker, number(pulse->beats), name, worker,
		   (double)pulse->late_ns / (double)NS_PER_S, name, worker, number(pulse->beats));
}

static void
write_canaries(struct page *page, const struct admin_control *control)
{
	uint64_t now_ns = clock_now_ns();

	head(page, "penstock_worker_canary_age_seconds", "gauge",
	     "Since a byte last came back from internal:echo; one is sent every 2 s.");
	for (unsigned int i = 0; i < control->workers; i++) {
		uint64_t back_ns = control->canary_of(control->context, i)->back_ns;
		if (back_ns)
			page_print(page, "penstock_worker_canary_age_seconds{worker=\"%u\"} %.9g\n",
				   i,
				   now_ns > back_ns ? (double)(now_ns - back_ns) / (double)NS_PER_S
						    : 0);
	}
	head(page, "penstock_worker_canary_seconds", "gauge", "How long that byte was away.");
	for (unsigned int i = 0; i < control->workers; i++) {
		const struct canary *canary = control->canary_of(control->context, i);
		if (canary->back_ns)
			page_print(page, "penstock_worker_canary_seconds{worker=\"%u\"} %.9g\n", i,
				   (double)canary->took_ns / (double)NS_PER_S);
	}
}

static const struct worker_metric {
	const char *name, *type, *help;
	size_t offset; /* in struct admin_worker, of a uint64_t */
} by_worker[] = {
	{ "penstock_worker_connections", "gauge", "Connections of a worker.",
	  offsetof(struct admin_worker, connections) },
	{ "penstock_worker_handshakes", "gauge",
	  "Handshakes with clients that run, of max_handshakes.",
	  offsetof(struct admin_worker, handshakes) },
	{ "penstock_worker_handshakes_held_total", "counter",
	  "How often a worker stopped accepting for max_handshakes.",
	  offsetof(struct admin_worker, handshakes_held) },
	{ "penstock_worker_kept_bytes", "gauge", "Bytes that connections take, of max_memory.",
	  offsetof(struct admin_worker, kept_bytes) },
};
#define BY_WORKER (sizeof(by_worker) / sizeof(by_worker[0]))

static uint64_t
worker_number(const struct admin_worker *worker, const struct worker_metric *metric)
{
	return *(const uint64_t *)((const char *)worker + metric->offset);
}

static void
write_workers(struct page *page, const struct inquiry *inquiry, const struct admin_survey *survey)
{
	unsigned int count = inquiry->control->workers;

	for (size_t i = 0; i < BY_WORKER; i++) {
		const struct worker_metric *metric = &by_worker[i];
		head(page, metric->name, metric->type, metric->help);
		for (unsigned int worker = 0; worker < count; worker++)
			page_print(page, "%s{worker=\"%u\"} %llu\n", metric->name, worker,
				   number(worker_number(&survey->workers[worker], metric)));
	}
	head(page, "penstock_worker_loop_lag_seconds", "histogram",
	     "How late a worker's loop came to a timer that beats ten times a second.");
	for (unsigned int i = 0; i < count; i++)
		write_lag(page, i, &survey->workers[i].pulse);
	head(page, "penstock_worker_loop_lag_max_seconds", "gauge", "The worst of these.");
	for (unsigned int i = 0; i < count; i++)
		page_print(page, "penstock_worker_loop_lag_max_seconds{worker=\"%u\"} %.9g\n", i,
			   (double)survey->workers[i].pulse.latest_ns / (double)NS_PER_S);
}

/* Whether there is more to come. */
static bool
write_limits(struct metrics *metrics, const struct generation *generation, struct page *page)
{
	for (; metrics->limit_metric < BY_LIMIT; metrics->limit_metric++) {
		const struct limit_metric *metric = &by_limit[metrics->limit_metric];
		if (!metrics->limit)
			head(page, metric->name, metric->type, metric->help);
		while (metrics->limit < generation->limit_count) {
			write_limit(page, metric, generation->limits[metrics->limit++]);
			if (page_length(page) >= ANSWER_PAGE_BYTES)
				return true;
		}
		metrics->limit = 0;
	}
	return false;
}

static bool
write_top(struct metrics *metrics, struct page *page)
{
	for (; metrics->top_metric < BY_KEY; metrics->top_metric++) {
		const struct limit_metric *metric = &by_key[metrics->top_metric];
		if (!metrics->top_limit)
			head(page, metric->name, metric->type, metric->help);
		while (metrics->top_limit < metrics->top.count) {
			const struct admin_top_limit *limit =
				&metrics->top.limits[metrics->top_limit++];
			for (size_t i = 0; i < limit->top.count; i++)
				if (!admin_top_is_told(limit, i))
					write_top_node(page, metric, limit->name,
						       &limit->top.nodes[i]);
			if (page_length(page) >= ANSWER_PAGE_BYTES)
				return true;
		}
		metrics->top_limit = 0;
	}
	return false;
}

static bool
write_tunnels(struct metrics *metrics, const struct generation *generation, struct page *page)
{
	char tunnel[LABEL_TEXT];

	for (; metrics->metric < BY_TUNNEL; metrics->metric++) {
		const struct metric *metric = &by_tunnel[metrics->metric];
		if (!metrics->tunnel)
			head(page, metric->name, metric->type, metric->help);
		const struct tunnel_conf *conf;
		while ((conf = generation_counted(generation, metrics->tunnel))) {
			metrics->tunnel++;
			metric->write(page, conf, escape(conf->name, tunnel));
			if (page_length(page) >= ANSWER_PAGE_BYTES)
				return true;
		}
		metrics->tunnel = 0;
	}
	return false;
}

static enum answer_step
write_metrics(struct inquiry *inquiry, struct page *page)
{
	struct metrics *metrics = inquiry->state;
	const struct admin_status *status = &metrics->survey.status;
	if (admin_survey_next(inquiry, &metrics->survey, true))
		return ANSWER_VISIT;
	if (inquiry->status != 200)
		return ANSWER_DONE;
	const struct generation *generation = status->generation;
	metrics->is_surveyed = true;
	if (generation && admin_top_gather(&metrics->top, inquiry->control->limits, generation)) {
		inquiry->place = (int)inquiry->home;
		return ANSWER_VISIT; /* itself, in a later turn */
	}
	if (metrics->top.is_short) {
		inquiry_fail(inquiry, 503, "no memory for this");
		return ANSWER_DONE;
	}
	if (generation && (write_tunnels(metrics, generation, page) ||
			   write_limits(metrics, generation, page) || write_top(metrics, page)))
		return ANSWER_MORE;
	write_daemon(page, status);
	write_handshakes(page);
	write_compression(page);
	write_process(page, status);
	write_workers(page, inquiry, &metrics->survey);
	write_canaries(page, inquiry->control);
	return ANSWER_DONE;
}

static bool
collect(struct inquiry *inquiry)
{
	struct metrics *metrics = inquiry->state;
	if (!metrics->is_surveyed)
		admin_survey_collect(inquiry, &metrics->survey);
	return true;
}

static void
end(struct inquiry *inquiry)
{
	struct metrics *metrics = inquiry->state;
	admin_top_end(&metrics->top);
	admin_survey_end(&metrics->survey);
}

const struct answer admin_metrics_all = {
	.content_type = "text/plain; version=0.0.4; charset=utf-8",
	.state_bytes = sizeof(struct metrics),
	.write = write_metrics,
	.collect = collect,
	.end = end,
};
