#include "address.h"
#include "admin_answers.h"
#include "admin_survey.h"
#include "clock.h"
#include "connection_view.h"
#include "endpoint_tcp.h"
#include "why.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define REPORTS_MOST 32 /* in a page */
#define LOOKS_MOST   64 /* at connections, between two at the clock */
#define SORTED_MOST  500
#define SORTED_USUAL 50

/* --- one connection as JSON ------------------------------------------------------------------------ */

static double
seconds(uint64_t ns)
{
	return (double)ns / (double)NS_PER_S;
}

static json_t *
text_or_null(const char *text)
{
	return *text ? admin_survey_text(text) : json_null();
}

static json_t *
number_or_null(uint64_t number)
{
	return number ? json_integer((json_int_t)number) : json_null();
}

static json_t *
flow_of(const struct connection_report *report, enum pump_flow name)
{
	const struct flow_report *flow = &report->flow[name];
	char wait[WHY_TEXT];

	return json_pack("{s:I, s:I, s:s, s:f, s:o, s:o, s:o, s:o, s:o, s:b}", "bytes",
			 (json_int_t)flow->bytes, "rate", (json_int_t)flow->rate, "waits_for",
			 why_wait(flow, wait), "for_s", seconds(report->now_ns - flow->since_ns),
			 "limit", text_or_null(flow->limit), "limit_rate",
			 number_or_null(flow->limit_rate), "limit_active",
			 number_or_null(flow->limit_active), "raised_to_at_most",
			 number_or_null(flow->raised.rate), "raised_then",
			 text_or_null(flow->raised.name), "ended", flow->is_over);
}

static json_t *
connection_of(const struct connection_report *report)
{
	char why[WHY_TEXT];
	const char *state =
		report->is_half_open ? "half_open" : connection_view_state_name(report->state);

	return json_pack(
		"{s:I, s:s, s:s, s:i, s:s, s:b, s:s, s:o, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o, "
		"s:o}",
		"id", (json_int_t)report->id, "tunnel", report->tunnel, "state", state, "worker",
		(int)report->worker, "client", report->client, "client_is_told",
		report->client_is_told, "accepted", report->accepted, "target",
		admin_survey_text(report->target), "age_s",
		seconds(report->now_ns - report->opened_ns), "idle_s",
		seconds(report->now_ns - report->moved_ns), "up", flow_of(report, FLOW_UP), "down",
		flow_of(report, FLOW_DOWN), "why", admin_survey_text(why_explain(report, why)),
		"near_partner", number_or_null(report->partner[SIDE_NEAR]), "far_partner",
		number_or_null(report->partner[SIDE_FAR]), "sni", text_or_null(report->sni),
		"common_name", text_or_null(report->common_name));
}

/* --- lists ---------------------------------------------------------------------------------------- */

static const char *const order_names[] = {
	[ORDER_ID] = "id",   [ORDER_RATE] = "rate", [ORDER_BYTES] = "bytes",
	[ORDER_AGE] = "age", [ORDER_IDLE] = "idle", [ORDER_WAIT] = "wait",
};

struct list {
	/* What is asked for; "" = all of them. */
	char tunnel[65], state[16];
	struct prefix source;
	uint16_t port; /* of the source; 0 = any */
	bool has_source, is_sorted;
	enum connection_order order;

	unsigned int worker; /* being visited */
	uint64_t walk;       /* there; 0 = not begun */
	bool is_over;        /* nothing more is to be fetched */
	bool has_begun;      /* to write */
	bool has_written;    /* a connection */
	size_t written;      /* of a sorted list */
	size_t count, most;  /* reports that are there, and that may be */
	struct ranked {
		uint64_t rank;
		struct connection_report report;
	} * reports; /* owned; sorted by rank if the list is, the largest first */
};

static bool
read_order(struct list *list, const char *name)
{
	for (size_t i = 0; i < sizeof(order_names) / sizeof(order_names[0]); i++)
		if (!strcmp(name, order_names[i])) {
			list->order = (enum connection_order)i;
			list->is_sorted = true;
			return true;
		}
	return false;
}

static bool
is_state(const char *name)
{
	for (int state = CONNECTION_CHOOSING; state < CONNECTION_CLOSED; state++)
		if (!strcmp(name, connection_view_state_name((enum connection_state)state)))
			return true;
	return !strcmp(name, "half_open");
}

/* As networks are written in a file, or as a client stands in the list: with its port, or unix:uid=N. */
static int
read_source(struct list *list, const char *text, struct failure *why)
{
	char inner[SOCKET_ADDRESS_TEXT];
	struct address address;
	size_t length = strlen(text);

	list->has_source = true;
	if (prefix_parse(text, &list->source, why) == 0)
		return 0;
	if (text[0] == '[' && text[length - 1] == ']')
		snprintf(inner, sizeof(inner), "%.*s", (int)length - 2, text + 1);
	else if (strncmp(text, "unix:uid=", 9) == 0)
		snprintf(inner, sizeof(inner), "uid:%s", text + 9);
	else if (address_parse(text, &address, NULL) == 0) {
		bool is_ip = address.kind == ADDRESS_IP;
		list->port = address.port;
		list->source.base = address.numeric;
		list->source.base.port = 0;
		list->source.bits = address.numeric.family == AF_INET ? 32 : 128;
		address_release(&address);
		return is_ip ? 0 : -1;
	} else
		return -1;
	return prefix_parse(inner, &list->source, NULL);
}

static int
begin_list(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	struct list *list = inquiry->state;
	char text[SOCKET_ADDRESS_TEXT] = "", *end;
	struct failure why;
	(void)argument;

	http_query(request->query, "tunnel", list->tunnel, sizeof(list->tunnel));
	if (http_query(request->query, "source", text, sizeof(text)) && *text &&
	    read_source(list, text, &why) < 0)
		return inquiry_fail(inquiry, 400, "source: %s", why.text);
	http_query(request->query, "state", list->state, sizeof(list->state));
	if (*list->state && !is_state(list->state))
		return inquiry_fail(
			inquiry, 400,
			"state: one of choosing, opening, dialling, open, half_open and "
			"flushing");
	if (http_query(request->query, "sort", text, sizeof(text)) && !read_order(list, text))
		return inquiry_fail(inquiry, 400,
				    "sort: one of id, rate, bytes, age, idle and wait");
	list->most = list->is_sorted ? SORTED_USUAL : REPORTS_MOST;
	if (http_query(request->query, "limit", text, sizeof(text))) {
		unsigned long most = strtoul(text, &end, 10);
		if (!list->is_sorted)
			return inquiry_fail(inquiry, 400, "limit: only together with sort");
		if (end == text || *end || !most || most > SORTED_MOST)
			return inquiry_fail(inquiry, 400, "limit: 1 to %d", SORTED_MOST);
		list->most = most;
	}
	list->reports = calloc(list->most, sizeof(*list->reports));
	return list->reports ? 0 : inquiry_fail(inquiry, 503, "no memory for a list");
}

static bool
is_wanted(const struct list *list, const struct connection_report *report)
{
	if (*list->tunnel && strcmp(list->tunnel, report->tunnel) != 0)
		return false;
	if (list->has_source && (!prefix_contains(&list->source, &report->source) ||
				 (list->port && list->port != report->source.port)))
		return false;
	if (!*list->state)
		return true;
	return !strcmp(list->state, report->is_half_open
					    ? "half_open"
					    : connection_view_state_name(report->state));
}

static void
insert(struct list *list, uint64_t rank, const struct connection_report *report)
{
	size_t at = list->count < list->most ? list->count++ : list->most - 1;
	while (at > 0 && list->reports[at - 1].rank < rank) {
		list->reports[at] = list->reports[at - 1];
		at--;
	}
	list->reports[at].rank = rank;
	list->reports[at].report = *report;
}

static void
look(struct list *list, struct connection *connection, uint64_t now_ns)
{
	struct connection_report report;
	uint64_t rank = 0;

	if (list->is_sorted) {
		rank = connection_view_rank(connection, list->order, now_ns);
		if (list->order == ORDER_WAIT && !rank)
			return;
		if (list->count == list->most && rank <= list->reports[list->most - 1].rank)
			return;
	}
	connection_view_report(connection, now_ns, &report);
	if (!is_wanted(list, &report))
		return;
	if (list->is_sorted)
		insert(list, rank, &report);
	else
		list->reports[list->count++].report = report;
}

static bool
collect_list(struct inquiry *inquiry)
{
	const struct admin_control *control = inquiry->control;
	struct list *list = inquiry->state;
	struct connections *connections = control->connections_of(control->context, list->worker);
	struct connection *connection = NULL;
	uint64_t now_ns = clock_now_ns();

	if (!list->walk)
		list->walk = connection_view_begin(connections);
	if (!list->walk) {
		inquiry_fail(inquiry, 503, "no memory for a list");
		return true;
	}
	for (int looks = 1;; looks++) {
		if (looks % LOOKS_MOST == 0 && clock_now_ns() - now_ns > PLACE_NS)
			return true;
		if (!list->is_sorted && list->count == list->most)
			return true;
		connection = connection_view_next(connections, list->walk, now_ns);
		if (!connection)
			break;
		look(list, connection, now_ns);
	}
	connection_view_end(connections, list->walk);
	list->walk = 0;
	list->is_over = ++list->worker == control->workers;
	return true;
}

/* Writes reports from `first` on as far as the page goes; returns the next one. */
static size_t
print_reports(struct inquiry *inquiry, struct page *page, size_t first)
{
	struct list *list = inquiry->state;
	size_t next = first;

	while (next < list->count && next < first + REPORTS_MOST) {
		page_print(page, list->has_written ? ",\n" : "\n");
		list->has_written = true;
		admin_survey_print(inquiry, page, connection_of(&list->reports[next++].report), "");
	}
	return next;
}

static enum answer_step
write_list(struct inquiry *inquiry, struct page *page)
{
	struct list *list = inquiry->state;

	if (!list->has_begun)
		page_print(page, "{\"connections\":[");
	list->has_begun = true;
	if (list->is_sorted && list->is_over) {
		list->written = print_reports(inquiry, page, list->written);
		if (list->written < list->count)
			return ANSWER_MORE;
	} else if (!list->is_sorted) {
		print_reports(inquiry, page, 0);
		list->count = 0;
	}
	if (!list->is_over) {
		inquiry->place = (int)list->worker;
		return ANSWER_VISIT;
	}
	page_print(page, "\n]}\n");
	return ANSWER_DONE;
}

static void
end_list(struct inquiry *inquiry)
{
	struct list *list = inquiry->state;
	free(list->reports);
}

const struct answer admin_connections_list = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct list),
	.begin = begin_list,
	.write = write_list,
	.collect = collect_list,
	.end = end_list,
};

/* --- one ------------------------------------------------------------------------------------------ */

struct one {
	uint64_t id;
	unsigned int visited; /* workers */
	bool is_found;
	struct connection_report report;
	bool has_tcp[2];
	struct endpoint_tcp tcp[2];
};

static int
begin_one(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	struct one *one = inquiry->state;
	char *end;
	(void)request;

	one->id = strtoull(argument, &end, 10);
	if (*end || argument[0] == '-' || !one->id)
		return inquiry_fail(inquiry, 404, "no connection has such a number");
	return 0;
}

static bool
collect_one(struct inquiry *inquiry)
{
	const struct admin_control *control = inquiry->control;
	struct one *one = inquiry->state;
	struct connection *connection = connection_view_find(
		control->connections_of(control->context, (unsigned int)inquiry->place), one->id);

	if (!connection)
		return true;
	one->is_found = true;
	connection_view_report(connection, clock_now_ns(), &one->report);
	for (int side = SIDE_NEAR; side <= SIDE_FAR; side++)
		one->has_tcp[side] = endpoint_tcp_report(
			connection_view_endpoint(connection, (enum pump_side)side),
			&one->tcp[side]);
	return true;
}

static json_t *
shares_of(const uint64_t spent_ns[WAITS])
{
	json_t *shares = json_object();
	uint64_t total_ns = 0;

	for (int cause = 0; cause < WAITS; cause++)
		total_ns += spent_ns[cause];
	for (int cause = 0; cause < WAITS; cause++)
		if (spent_ns[cause])
			admin_survey_set(&shares, pump_wait_name((enum wait)cause),
					 json_real((double)spent_ns[cause] / (double)total_ns));
	return shares;
}

static json_t *
tcp_of(const struct one *one, int side)
{
	const struct endpoint_tcp *tcp = &one->tcp[side];

	if (!one->has_tcp[side])
		return json_null();
	return json_pack(
		"{s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "rtt_s",
		tcp->rtt_us / 1e6, "rtt_variance_s", tcp->rtt_variance_us / 1e6,
		"congestion_window_segments", (json_int_t)tcp->window_segments, "segment_bytes",
		(json_int_t)tcp->segment_bytes, "unacknowledged_segments",
		(json_int_t)tcp->unacknowledged, "retransmitted_segments",
		(json_int_t)tcp->retransmits, "peer_window_bytes",
		(json_int_t)tcp->peer_window_bytes, "unsent_bytes", (json_int_t)tcp->unsent_bytes,
		"delivery_bytes_per_s", (json_int_t)tcp->delivery_bytes_per_s, "busy_s",
		(double)tcp->busy_us / 1e6, "peer_limited_s", (double)tcp->peer_limited_us / 1e6,
		"buffer_limited_s", (double)tcp->buffer_limited_us / 1e6);
}

static enum answer_step
write_one(struct inquiry *inquiry, struct page *page)
{
	struct one *one = inquiry->state;
	const struct connection_report *report = &one->report;

	if (!one->is_found && one->visited < inquiry->control->workers) {
		inquiry->place = (int)one->visited++;
		return ANSWER_VISIT;
	}
	if (!one->is_found) {
		inquiry_fail(inquiry, 404, "connection %llu is not open",
			     (unsigned long long)one->id);
		return ANSWER_DONE;
	}
	json_t *all = connection_of(report);
	admin_survey_set(&all, "alpn", text_or_null(report->alpn));
	admin_survey_set(&all, "tls_version", text_or_null(report->tls_version));
	admin_survey_set(&all, "tls_cipher", text_or_null(report->tls_cipher));
	admin_survey_set(&all, "certificate", text_or_null(report->certificate));
	admin_survey_set(&all, "recent_s", json_real(seconds(report->recent_length_ns)));
	for (int name = FLOW_UP; name <= FLOW_DOWN; name++) {
		const char *key = name == FLOW_UP ? "up" : "down";
		json_t *flow = json_incref(json_object_get(all, key));
		admin_survey_set(&flow, "shares", shares_of(report->flow[name].life_ns));
		admin_survey_set(&flow, "recent_shares", shares_of(report->flow[name].recent_ns));
		admin_survey_set(&all, key, flow);
	}
	admin_survey_set(&all, "near_tcp", tcp_of(one, SIDE_NEAR));
	admin_survey_set(&all, "far_tcp", tcp_of(one, SIDE_FAR));
	admin_survey_print(inquiry, page, all, "\n");
	return ANSWER_DONE;
}

const struct answer admin_connections_one = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct one),
	.begin = begin_one,
	.write = write_one,
	.collect = collect_one,
};
