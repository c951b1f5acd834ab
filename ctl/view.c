#include "view.h"

#include "client.h"
#include "table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- reading answers ------------------------------------------------------------------------------ */

/* What strangers wrote (names in handshakes) must not steer the terminal. In place. */
static const char *
clean(const json_t *value)
{
	char *text = (char *)json_string_value(value);
	for (char *at = text; at && *at; at++) {
		unsigned char byte = (unsigned char)*at;
		bool is_c1 = byte == 0xc2 && (unsigned char)at[1] < 0xa0;
		if (byte < ' ' || byte == 0x7f || is_c1)
			*at = '?';
		if (is_c1)
			at[1] = '?';
	}
	return text;
}

static const char *
text(const json_t *object, const char *name)
{
	return clean(json_object_get(object, name));
}

static double
number(const json_t *object, const char *name)
{
	return json_number_value(json_object_get(object, name));
}

static json_int_t
whole(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static bool
flag(const json_t *object, const char *name)
{
	return json_is_true(json_object_get(object, name));
}

static void
print_json(const json_t *json)
{
	json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(13));
	putchar('\n');
}

/* A list of texts in one. */
static const char *
joined(const json_t *list)
{
	static char texts[4][512];
	static unsigned int next;
	char *to = texts[next++ % 4];
	size_t length = 0, index;
	json_t *item;

	to[0] = '\0';
	json_array_foreach(list, index, item)
	{
		int more = snprintf(to + length, sizeof(texts[0]) - length, "%s%s",
				    index ? ", " : "", clean(item));
		if (more < 0 || (size_t)more >= sizeof(texts[0]) - length)
			break;
		length += (size_t)more;
	}
	return to;
}

static const char *
moment(double seconds)
{
	char *to = (char *)table_text(" ");
	time_t whole_seconds = (time_t)seconds;
	struct tm parts;

	if (seconds <= 0)
		return "never";
	strftime(to, 64, "%Y-%m-%d %H:%M:%S", localtime_r(&whole_seconds, &parts));
	return to;
}

/* --- status --------------------------------------------------------------------------------------- */

static void
print_workers(const json_t *workers)
{
	static const char *const titles[] = { "WORKER",    ">CONNECTIONS", ">HANDSHAKES", ">HELD",
					      ">BUFFERED", ">LOOP LAG",    ">WORST",      NULL };
	struct table table;
	json_t *worker;
	size_t index;

	table_begin(&table, titles);
	json_array_foreach(workers, index, worker)
	{
		const char *cells[] = {
			table_count(whole(worker, "worker")),
			table_count(whole(worker, "connections")),
			table_count(whole(worker, "handshakes")),
			table_count(whole(worker, "handshakes_held")),
			table_bytes(number(worker, "kept_bytes")),
			table_text("%.2f ms", number(worker, "loop_lag_s") * 1000),
			table_text("%.2f ms", number(worker, "worst_loop_lag_s") * 1000),
		};
		table_add(&table, cells);
	}
	table_print(&table, table_width());
}

void
view_status(bool json)
{
	json_t *status = client_get("/v1/status");
	const json_t *reload = json_object_get(status, "reload");
	const json_t *connections = json_object_get(status, "connections");
	const json_t *log = json_object_get(status, "log");

	if (json) {
		print_json(status);
		json_decref(status);
		return;
	}
	printf("penstockd %s, pid %lld, up %s%s%s\n", text(status, "version"),
	       (long long)whole(status, "pid"), table_duration(number(status, "uptime_s")),
	       flag(status, "ready") ? "" : ", not ready",
	       flag(status, "draining") ? ", draining" : "");
	printf("generation %lld of %s, %lld tunnels, loaded %s\n",
	       (long long)whole(status, "generation"), text(status, "file"),
	       (long long)whole(status, "tunnels"), moment(number(reload, "loaded_at")));
	if (number(reload, "failed_at") > 0)
		printf("%slast failed reload %s: %s%s\n",
		       number(reload, "failed_at") > number(reload, "loaded_at")
			       ? table_style("\033[31m")
			       : "",
		       moment(number(reload, "failed_at")), text(reload, "failure"),
		       table_style("\033[0m"));
	printf("%lld of at most %lld connections; log level %s, %lld lines dropped\n\n",
	       (long long)whole(connections, "open"), (long long)whole(connections, "most"),
	       text(log, "level"), (long long)whole(log, "dropped"));
	print_workers(json_object_get(status, "workers"));
	json_decref(status);
}

/* --- what a reload would change ------------------------------------------------------------------- */

/* "tunnel "web" timeouts", "daemon" for what stands outside of sections. */
static const char *
place_of(const json_t *difference)
{
	const char *section = text(difference, "section"), *title = text(difference, "title");
	const char *inside = text(difference, "inside");

	return table_text("%s%s%s%s%s%s", *section ? section : "daemon", *title ? " \"" : "", title,
			  *title ? "\"" : "", *inside ? " " : "", inside);
}

static const char *
words_of(const json_t *difference)
{
	const char *kind = text(difference, "kind");

	if (strcmp(kind, "changed") == 0)
		return table_text("%s: %s -> %s", text(difference, "keyword"),
				  text(difference, "before"), text(difference, "after"));
	return strcmp(kind, "added") == 0 ? "is new" : "is gone";
}

void
view_diff(bool json)
{
	static const char *const titles[] = { "WHERE", "WHAT", "COUNTS FOR", ">OPEN NOW", NULL };
	json_t *answer = client_get("/v1/diff"), *difference;
	const json_t *all = json_object_get(answer, "differences");
	struct table table;
	size_t i;

	if (json) {
		print_json(answer);
		json_decref(answer);
		return;
	}
	table_begin(&table, titles);
	json_array_foreach(all, i, difference)
	{
		const char *effect = text(difference, "effect");
		const char *cells[] = {
			place_of(difference),
			words_of(difference),
			strcmp(effect, "live") == 0      ? "all, at once"
			: strcmp(effect, "restart") == 0 ? "after a restart"
							 : "new connections",
			table_count(whole(difference, "connections")),
		};
		table_add(&table, cells);
	}
	if (json_array_size(all))
		table_print(&table, table_width());
	else
		puts("no differences");
	json_decref(answer);
}

/* --- tunnels and targets -------------------------------------------------------------------------- */

static json_int_t
sum_of(const json_t *object)
{
	json_int_t sum = 0;
	const char *name;
	json_t *value;

	json_object_foreach((json_t *)object, name, value) sum +=
		json_is_object(value) ? sum_of(value) : json_integer_value(value);
	return sum;
}

void
view_tunnels(bool json)
{
	static const char *const titles[] = { "TUNNEL",   ">OPEN", "?>ADMITTED", "?>REFUSED",
					      "?>FAILED", ">UP",   ">DOWN",      "?LISTEN",
					      "?CONNECT", NULL };
	json_t *all = client_get("/v1/tunnels"), *tunnel;
	struct table table;
	size_t index;

	if (json) {
		print_json(all);
		json_decref(all);
		return;
	}
	table_begin(&table, titles);
	json_array_foreach(json_object_get(all, "tunnels"), index, tunnel)
	{
		const json_t *ended = json_object_get(tunnel, "ended");
		const json_t *bytes = json_object_get(tunnel, "bytes");
		json_int_t good = whole(json_object_get(ended, "client"), "ok") +
				  whole(json_object_get(ended, "target"), "ok") +
				  whole(json_object_get(ended, "us"), "ok");
		const char *cells[] = {
			table_text("%s%s", text(tunnel, "name"),
				   flag(tunnel, "drained") ? " (drained)" : ""),
			table_count(whole(tunnel, "open")),
			table_count(whole(tunnel, "admitted")),
			table_count(sum_of(json_object_get(tunnel, "refused"))),
			table_count(sum_of(ended) - good),
			table_bytes(number(bytes, "near_up")),
			table_bytes(number(bytes, "near_down")),
			joined(json_object_get(tunnel, "listen")),
			joined(json_object_get(tunnel, "connect")),
		};
		table_add(&table, cells);
	}
	table_print(&table, table_width());
	json_decref(all);
}

void
view_targets(bool json)
{
	static const char *const titles[] = { "TUNNEL", "TARGET", "STATE", ">ACTIVE", "", NULL };
	json_t *all = client_get("/v1/targets"), *target;
	struct table table;
	size_t index;

	if (json) {
		print_json(all);
		json_decref(all);
		return;
	}
	table_begin(&table, titles);
	json_array_foreach(json_object_get(all, "targets"), index, target)
	{
		double later_s = number(target, "tried_last_for_s");
		json_int_t most = whole(target, "most");
		const char *cells[] = {
			text(target, "tunnel"),
			table_text("%s%s", text(target, "target"),
				   flag(target, "backup") ? " (backup)" : ""),
			text(target, "state"),
			most ? table_text("%s of %s", table_count(whole(target, "active")),
					  table_count(most))
			     : table_count(whole(target, "active")),
			later_s > 0 ? table_text("tried last for %s", table_duration(later_s))
				    : " ",
		};
		table_add(&table, cells);
	}
	table_print(&table, table_width());
	json_decref(all);
}

/* --- connections ---------------------------------------------------------------------------------- */

static void
append_query(char *path, size_t size, const char *name, const char *value)
{
	size_t length = strlen(path);
	if (value)
		snprintf(path + length, size - length, "%c%s=%s", strchr(path, '?') ? '&' : '?',
			 name, client_escape(value));
}

json_t *
view_fetch(const struct view_filter *filter)
{
	char path[900] = "/v1/connections", limit[16];

	append_query(path, sizeof(path), "tunnel", filter->tunnel);
	append_query(path, sizeof(path), "source", filter->source);
	append_query(path, sizeof(path), "state", filter->state);
	append_query(path, sizeof(path), "sort",
		     filter->sort || !filter->limit ? filter->sort : "id");
	snprintf(limit, sizeof(limit), "%u", filter->limit);
	append_query(path, sizeof(path), "limit", filter->limit ? limit : NULL);
	return client_get(path);
}

static void
add_connection(struct table *table, const json_t *connection, bool is_marked)
{
	const json_t *up = json_object_get(connection, "up");
	const json_t *down = json_object_get(connection, "down");
	const char *cells[] = {
		table_text("%s%lld", is_marked ? ">" : " ", (long long)whole(connection, "id")),
		text(connection, "tunnel"),
		text(connection, "client"),
		text(connection, "target"),
		text(connection, "state"),
		table_duration(number(connection, "age_s")),
		table_rate(number(up, "rate")),
		table_rate(number(down, "rate")),
		table_bytes(number(up, "bytes")),
		table_bytes(number(down, "bytes")),
		text(connection, "why"),
	};
	table_add(table, cells);
}

size_t
view_list(const json_t *connections, size_t most, json_int_t marked)
{
	static const char *const titles[] = { "  ID",        "TUNNEL",        "CLIENT", "?TARGET",
					      "?STATE",      "?>AGE",         ">UP",    ">DOWN",
					      "?>UP IN ALL", "?>DOWN IN ALL", "WHY",    NULL };
	struct table table;
	json_t *connection;
	size_t index;

	table_begin(&table, titles);
	json_array_foreach(json_object_get(connections, "connections"), index,
			   connection) if (!most || index < most)
		add_connection(&table, connection, whole(connection, "id") == marked);
	return table_print(&table, table_width());
}

/* It may be there and have no connection. */
static void
expect_tunnel(const char *name)
{
	json_t *all = client_get("/v1/tunnels"), *tunnel;
	bool is_there = false;
	size_t index;

	json_array_foreach(json_object_get(all, "tunnels"), index, tunnel) is_there =
		is_there || strcmp(text(tunnel, "name"), name) == 0;
	if (!is_there)
		client_fail("there is no tunnel \"%s\"; penstockctl tunnels shows all", name);
	json_decref(all);
}

void
view_connections(bool json, const struct view_filter *filter)
{
	json_t *all = view_fetch(filter);
	bool is_empty = !json_array_size(json_object_get(all, "connections"));

	if (is_empty && filter->tunnel)
		expect_tunnel(filter->tunnel);
	if (json)
		print_json(all);
	else if (is_empty)
		puts("no connections");
	else
		view_list(all, 0, 0);
	json_decref(all);
}

/* --- one connection ------------------------------------------------------------------------------- */

const char *
view_number(const char *text)
{
	size_t digits = strspn(text, "0123456789");
	if (!digits || text[digits] || digits > 20)
		client_fail("\"%s\" is no connection's number; penstockctl connections lists them",
			    text);
	return text;
}

static json_t *
fetch_one(const char *id)
{
	char path[64];
	snprintf(path, sizeof(path), "/v1/connections/%.20s", view_number(id));
	json_t *connection = client_find(path);
	if (!connection)
		client_fail("connection %s is not open", id);
	return connection;
}

/* "near readable 97.1 %, moving 2.9 %". */
static const char *
shares(const json_t *object)
{
	static char texts[4][512];
	static unsigned int next;
	char *to = texts[next++ % 4];
	bool told[32] = { false };
	size_t length = 0;

	to[0] = '\0';
	for (size_t turn = 0; turn < json_object_size(object) && turn < 32; turn++) {
		const char *name, *largest = NULL;
		double most = 0;
		size_t index = 0, at = 0;
		json_t *value;
		json_object_foreach((json_t *)object, name, value)
		{
			if (index < 32 && !told[index] && json_number_value(value) > most) {
				most = json_number_value(value);
				largest = name;
				at = index;
			}
			index++;
		}
		if (!largest || most < 0.0005)
			break;
		told[at] = true;
		length += (size_t)snprintf(to + length, sizeof(texts[0]) - length, "%s%s %.1f %%",
					   length ? ", " : "", largest, most * 100);
	}
	return to;
}

/* Of the limit that holds it up: who else is there, and what it is good for to raise it. */
static void
print_limit(const json_t *flow)
{
	double rate = number(flow, "limit_rate"), most = number(flow, "raised_to_at_most");
	json_int_t active = whole(flow, "limit_active");

	if (rate <= 0)
		return;
	printf("      that lets %s pass, to %lld active connection%s; ", table_rate(rate),
	       (long long)active, active == 1 ? "" : "s");
	if (most > 0)
		printf("raised, it gives %s at most: then limit \"%s\" holds it up\n",
		       table_rate(most), text(flow, "raised_then"));
	else
		printf("raised, no other limit is in the way\n");
}

static void
print_flow(const json_t *connection, const char *name)
{
	const json_t *flow = json_object_get(connection, name);

	printf("\n%s%-5s%s %s, now %s\n", table_style("\033[1m"), name, table_style("\033[0m"),
	       table_bytes(number(flow, "bytes")), table_rate(number(flow, "rate")));
	if (flag(flow, "ended"))
		printf("      it has ended\n");
	else
		printf("      waits for: %s, for %s\n", text(flow, "waits_for"),
		       table_duration(number(flow, "for_s")));
	print_limit(flow);
	printf("      last %.0f s: %s\n", number(connection, "recent_s"),
	       shares(json_object_get(flow, "recent_shares")));
	printf("      whole life: %s\n", shares(json_object_get(flow, "shares")));
}

static void
print_tcp(const json_t *connection, const char *name, const char *title)
{
	const json_t *tcp = json_object_get(connection, name);

	if (!json_is_object(tcp))
		return;
	printf("\n%s%s%s round trip %.2f ms (± %.2f), congestion window %lld × %lld bytes,\n"
	       "      %lld segments sent again, %s on their way or unsent; peer takes %s\n",
	       table_style("\033[1m"), title, table_style("\033[0m"), number(tcp, "rtt_s") * 1000,
	       number(tcp, "rtt_variance_s") * 1000,
	       (long long)whole(tcp, "congestion_window_segments"),
	       (long long)whole(tcp, "segment_bytes"),
	       (long long)whole(tcp, "retransmitted_segments"),
	       table_bytes(number(tcp, "unsent_bytes") +
			   number(tcp, "unacknowledged_segments") * number(tcp, "segment_bytes")),
	       table_bytes(number(tcp, "peer_window_bytes")));
}

static void
print_line(const json_t *connection, const char *title, const char *name)
{
	const json_t *value = json_object_get(connection, name);
	if (json_is_string(value))
		printf("%-12s %s\n", title, clean(value));
	else if (json_is_integer(value))
		printf("%-12s %lld\n", title, (long long)json_integer_value(value));
}

void
view_show(bool json, const char *id)
{
	json_t *connection = fetch_one(id);

	if (json) {
		print_json(connection);
		json_decref(connection);
		return;
	}
	printf("%s\n\n", text(connection, "why"));
	print_line(connection, "connection", "id");
	print_line(connection, "tunnel", "tunnel");
	print_line(connection, "client", "client");
	if (flag(connection, "client_is_told"))
		printf("%-12s so a header says\n", "");
	print_line(connection, "accepted at", "accepted");
	print_line(connection, "target", "target");
	print_line(connection, "state", "state");
	print_line(connection, "worker", "worker");
	print_line(connection, "comes from", "near_partner");
	print_line(connection, "leads to", "far_partner");
	print_line(connection, "sni", "sni");
	print_line(connection, "alpn", "alpn");
	print_line(connection, "tls", "tls_version");
	print_line(connection, "cipher", "tls_cipher");
	print_line(connection, "name", "common_name");
	print_line(connection, "certificate", "certificate");
	printf("%-12s %s, the last byte moved %s ago\n", "age",
	       table_duration(number(connection, "age_s")),
	       table_duration(number(connection, "idle_s")));
	print_flow(connection, "up");
	print_flow(connection, "down");
	print_tcp(connection, "near_tcp", "near");
	print_tcp(connection, "far_tcp", "far ");
	json_decref(connection);
}

static void
print_why_all(bool json)
{
	static const char *const titles[] = { "  ID", "TUNNEL", "CLIENT", "WHY", NULL };
	struct view_filter filter = { .sort = "wait" };
	json_t *all = view_fetch(&filter), *connection;
	struct table table;
	size_t index;

	if (json) {
		print_json(all);
		json_decref(all);
		return;
	}
	table_begin(&table, titles);
	json_array_foreach(json_object_get(all, "connections"), index, connection)
	{
		const char *cells[] = {
			table_text(" %lld", (long long)whole(connection, "id")),
			text(connection, "tunnel"),
			text(connection, "client"),
			text(connection, "why"),
		};
		table_add(&table, cells);
	}
	table_print(&table, table_width());
	json_decref(all);
}

void
view_why(bool json, const char *id)
{
	if (!id) {
		print_why_all(json);
		return;
	}
	json_t *connection = fetch_one(id);
	if (json) {
		print_json(connection);
	} else {
		printf("%s\n", text(connection, "why"));
		print_flow(connection, "up");
		print_flow(connection, "down");
		print_tcp(connection, "near_tcp", "near");
		print_tcp(connection, "far_tcp", "far ");
	}
	json_decref(connection);
}

/* --- ends ----------------------------------------------------------------------------------------- */

void
view_ends(bool json)
{
	static const char *const titles[] = { "ID",       "TUNNEL",  "CLIENT", "?TARGET",
					      ">AGO",     "?>LIVED", "?>UP",   "?>DOWN",
					      "ENDED BY", "REASON",  "WHY",    NULL };
	json_t *all = client_get("/v1/ends"), *end;
	struct table table;
	size_t index;

	if (json) {
		print_json(all);
		json_decref(all);
		return;
	}
	table_begin(&table, titles);
	json_array_foreach(json_object_get(all, "ends"), index, end)
	{
		const char *cells[] = {
			table_text("%lld", (long long)whole(end, "id")),
			text(end, "tunnel"),
			text(end, "client"),
			text(end, "target"),
			table_duration(number(end, "ago_s")),
			table_duration(number(end, "duration_s")),
			table_bytes(number(end, "up")),
			table_bytes(number(end, "down")),
			text(end, "by"),
			text(end, "reason"),
			text(end, "why"),
		};
		table_add(&table, cells);
	}
	table_print(&table, table_width());
	json_decref(all);
}
