#include "admin.h"

#include "admin_route.h"
#include "clock.h"
#include "inquiry.h"
#include "log.h"
#include "services.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#define READ_BYTES ((size_t)16 * 1024)

/* How long a client may take for a request once it has begun, be silent between two, not read its answer;
 * and how long others may take to tell what the answer needs. */
#define REQUEST_NS (10 * NS_PER_S)
#define IDLE_NS    (75 * NS_PER_S)
#define WRITE_NS   (30 * NS_PER_S)
#define ASK_NS     (60 * NS_PER_S)
/* How often a silent client looks whether the daemon drains. */
#define LOOK_NS (1 * NS_PER_S)

static const struct admin_control *control; /* NULL = not started, or stopped */
static atomic_bool drains;

struct client {
	struct endpoint endpoint;
	struct loop *loop;
	unsigned int worker;
	struct admin_peer peer;
	char name[SOCKET_ADDRESS_TEXT]; /* for the log */
	struct http *http;
	struct evbuffer *in;     /* read, and not yet part of a request */
	struct page out;         /* to be written: never more than a page and a head */
	struct page page;        /* of the answer, not yet in `out` */
	struct inquiry *inquiry; /* being answered; NULL = none */
	struct event *timer;
	uint64_t due_ns;
	bool travels;  /* the inquiry is under way */
	bool has_head; /* of this answer: it is in `out` or sent */
	bool is_chunked, wants_no_body, is_old;
	bool has_ended; /* it sends no more */
	bool is_last;   /* close behind `out` */
};

static void
client_close(struct client *client)
{
	if (client->inquiry)
		inquiry_leave(client->inquiry);
	if (client->endpoint.kind)
		client->endpoint.kind->close(&client->endpoint);
	if (client->timer)
		event_free(client->timer);
	if (client->in)
		evbuffer_free(client->in);
	page_close(&client->out);
	page_close(&client->page);
	http_close(client->http);
	free(client);
}

static void
client_abort(struct client *client)
{
	if (client->endpoint.kind)
		client->endpoint.kind->abort(&client->endpoint);
	client_close(client);
}

static void
expect_within(struct client *client, uint64_t duration_ns)
{
	client->due_ns = clock_now_ns() + duration_ns;
}

/* --- heads ---------------------------------------------------------------------------------------- */

static void
write_head(struct client *client, int status, const char *content_type, const char *allow,
	   ssize_t length)
{
	char date[64];
	time_t now = time(NULL);
	struct tm parts;

	strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &parts));
	page_print(&client->out,
		   "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: %s\r\n"
		   "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n",
		   status, http_reason(status), date, content_type);
	if (*allow)
		page_print(&client->out, "Allow: %s\r\n", allow);
	client->is_chunked = length < 0 && !client->is_old;
	if (length >= 0)
		page_print(&client->out, "Content-Length: %zd\r\n", length);
	else if (client->is_chunked)
		page_print(&client->out, "Transfer-Encoding: chunked\r\n");
	else
		client->is_last = true; /* its end is the answer's */
	page_print(&client->out, "Connection: %s\r\n\r\n",
		   client->is_last ? "close" : "keep-alive");
	client->has_head = true;
}

/* An answer of its own: an error. */
static void
write_failure(struct client *client, int status, const char *text, const char *allow)
{
	char body[2 * sizeof(((struct inquiry *)0)->failure) + 32];
	int length = snprintf(body, sizeof(body), "{\"error\":\"");
	for (; *text && (size_t)length < sizeof(body) - 16; text++) {
		if ((unsigned char)*text < ' ')
			continue;
		if (*text == '"' || *text == '\\')
			body[length++] = '\\';
		body[length++] = *text;
	}
	length += snprintf(body + length, sizeof(body) - (size_t)length, "\"}\n");
	write_head(client, status, "application/json", allow, length);
	if (!client->wants_no_body)
		page_add(&client->out, body, (size_t)length);
}

/* --- answers -------------------------------------------------------------------------------------- */

/* What was asked for or done, and by whom: once. */
static void
log_deed(struct client *client)
{
	struct inquiry *inquiry = client->inquiry;

	if (inquiry->log[0])
		log_entry(LOG_LEVEL_NOTICE, NULL, 0, "%s, by %s%s%s", inquiry->log, client->name,
			  client->peer.common_name[0] ? " cn=" : "", client->peer.common_name);
	inquiry->log[0] = '\0';
}

static void
end_answer(struct client *client)
{
	log_deed(client);
	inquiry_leave(client->inquiry);
	client->inquiry = NULL;
	expect_within(client, IDLE_NS);
}

/* Moves the page to `out`, in the shape that its head promised. */
static void
send_page(struct client *client, bool is_whole)
{
	size_t length = page_length(&client->page);

	if (client->wants_no_body) {
		page_clear(&client->page);
		return;
	}
	if (client->is_chunked && length)
		page_print(&client->out, "%zx\r\n", length);
	page_take(&client->out, &client->page);
	if (client->is_chunked && length)
		page_add(&client->out, "\r\n", 2);
	if (client->is_chunked && is_whole)
		page_add(&client->out, "0\r\n\r\n", 5);
}

enum next { GO_ON, REST, CLOSE, ABORT };

/* What was sent of the answer must not look whole. */
static enum next
give_up(const struct client *client, const char *why)
{
	log_line(LOG_LEVEL_WARNING, "no whole answer for %s: %s", client->name, why);
	return ABORT;
}

/* Has the answer go on. */
static enum next
step_answer(struct client *client)
{
	struct inquiry *inquiry = client->inquiry;
	const struct answer *answer = inquiry->answer;
	enum answer_step step = ANSWER_DONE;

	if (inquiry->status == 200)
		step = answer->write(inquiry, &client->page);
	if (client->page.is_short)
		inquiry_fail(inquiry, 503, "no memory for this");
	if (inquiry->status != 200 && client->has_head)
		return give_up(client, inquiry->failure);
	if (inquiry->status != 200) {
		page_clear(&client->page);
		if (inquiry->failure[0])
			write_failure(client, inquiry->status, inquiry->failure, "");
		end_answer(client);
		return GO_ON;
	}
	size_t length = page_length(&client->page);
	if (!client->has_head && step == ANSWER_DONE)
		write_head(client, 200, answer->content_type, "", (ssize_t)length);
	else if (!client->has_head && length >= ANSWER_PAGE_BYTES)
		write_head(client, 200, answer->content_type, "", -1);
	if (step == ANSWER_DONE || (client->has_head && client->wants_no_body)) {
		send_page(client, true);
		end_answer(client);
		return GO_ON;
	}
	if (length >= ANSWER_PAGE_BYTES)
		send_page(client, false);
	if (step == ANSWER_VISIT) {
		client->travels = true;
		expect_within(client, ASK_NS);
		inquiry_visit(inquiry);
	}
	return GO_ON;
}

static void step(struct client *client);

static void
on_home(struct inquiry *inquiry)
{
	struct client *client = inquiry->client;
	client->travels = false;
	step(client);
}

static void
begin_answer(struct client *client)
{
	const struct http_request *request = http_request(client->http);
	const struct generation *generation =
		control->generation_of(control->context, client->worker);
	char argument[129] = "";
	const char *failure, *allow;
	int status;

	client->wants_no_body = !strcmp(request->method, "HEAD");
	client->is_old = request->is_old;
	client->is_last = !request->keeps_open || atomic_load(&drains);
	client->has_head = client->is_chunked = false;
	const struct answer *answer = admin_route_find(request, &client->peer, &generation->admin,
						       argument, &status, &failure, &allow);
	if (!answer) {
		write_failure(client, status, failure, allow);
		return;
	}
	struct inquiry *inquiry = inquiry_open(answer, control, client->worker);
	if (!inquiry) {
		write_failure(client, 503, "no memory for this", "");
		return;
	}
	inquiry->client = client;
	inquiry->on_home = on_home;
	inquiry->may_change = admin_route_may_change(&client->peer, &generation->admin);
	client->inquiry = inquiry;
	if (answer->begin)
		answer->begin(inquiry, request, argument);
	log_deed(client);
}

/* --- requests ------------------------------------------------------------------------------------- */

/* Gives the parser what was read. false: it wants more. */
static bool
parse(struct client *client)
{
	struct evbuffer_iovec extent;
	size_t used;

	while (evbuffer_peek(client->in, -1, NULL, &extent, 1) > 0 && extent.iov_len) {
		bool was_inside = http_is_inside(client->http);
		enum http_result result =
			http_feed(client->http, extent.iov_base, extent.iov_len, &used);
		evbuffer_drain(client->in, used);
		if (result == HTTP_COMPLETE) {
			begin_answer(client);
			return true;
		}
		if (result == HTTP_WRONG) {
			client->wants_no_body = client->is_old = false;
			client->is_last = true;
			evbuffer_drain(client->in, evbuffer_get_length(client->in));
			write_failure(client, http_status(client->http),
				      http_reason(http_status(client->http)), "");
			return true;
		}
		if (!was_inside && http_is_inside(client->http))
			expect_within(client, REQUEST_NS);
		if (http_request(client->http)->expects) {
			page_print(&client->out, "HTTP/1.1 100 Continue\r\n\r\n");
			return true;
		}
	}
	return false;
}

/* Reads once. false: there is nothing now. */
static bool
take_in(struct client *client, bool *broken)
{
	struct endpoint *endpoint = &client->endpoint;
	size_t moved;

	if (!endpoint->readable || client->has_ended)
		return false;
	enum endpoint_result result =
		endpoint->kind->read(endpoint, client->in, READ_BYTES, &moved, NULL);
	client->has_ended = result == ENDPOINT_END;
	*broken = result == ENDPOINT_BROKEN;
	return result == ENDPOINT_MOVED;
}

/* --- the exchange --------------------------------------------------------------------------------- */

static enum next
write_out(struct client *client)
{
	struct endpoint *endpoint = &client->endpoint;
	size_t moved = 0;

	if (!endpoint->writable)
		return REST;
	if (endpoint->kind->write(endpoint, client->out.bytes, SIZE_MAX, &moved, NULL) ==
	    ENDPOINT_BROKEN)
		return ABORT;
	if (moved)
		expect_within(client, WRITE_NS);
	return moved ? GO_ON : REST;
}

static enum next
step_once(struct client *client)
{
	bool broken = false;

	if (client->out.is_short)
		return give_up(client, "no memory for this");
	if (page_length(&client->out))
		return write_out(client);
	if (client->travels)
		return client->endpoint.kind->probe(&client->endpoint, NULL) == ENDPOINT_WAIT
			       ? REST
			       : ABORT;
	if (client->inquiry)
		return step_answer(client);
	if (client->is_last)
		return CLOSE;
	if (parse(client))
		return GO_ON;
	if (take_in(client, &broken))
		return GO_ON;
	if (broken)
		return ABORT;
	return client->has_ended ? CLOSE : REST;
}

/* Between two requests. */
static bool
is_silent(const struct client *client)
{
	return !client->inquiry && !page_length(&client->out) && !http_is_inside(client->http);
}

static int
watch(struct client *client)
{
	struct endpoint *endpoint = &client->endpoint;
	struct timeval after;
	uint64_t now_ns = clock_now_ns();

	endpoint->want_writable = page_length(&client->out) > 0;
	endpoint->want_readable = !endpoint->want_writable;
	/* While an inquiry is under way only the client's end is of interest: a change, and not what there
	 * is to be read already. */
	if (!client->travels)
		endpoint->kind->watch(endpoint, NULL);
	uint64_t after_ns = client->due_ns > now_ns ? client->due_ns - now_ns : 0;
	clock_to_timeval(after_ns > LOOK_NS && is_silent(client) ? LOOK_NS : after_ns, &after);
	return event_add(client->timer, &after);
}

static void
step(struct client *client)
{
	enum next next;

	do
		next = step_once(client);
	while (next == GO_ON);
	if (next == REST && watch(client) < 0)
		next = ABORT; /* without a timer it could stay for ever */
	if (next == ABORT) {
		client_abort(client);
	} else if (next == CLOSE) {
		/* What it still sends must not turn the end of the answer into a reset. */
		client->endpoint.kind->shutdown(&client->endpoint);
		client_close(client);
	}
}

static void
on_ready(struct endpoint *endpoint)
{
	step(endpoint->owner);
}

static void
on_timer(evutil_socket_t fd, short what, void *context)
{
	struct client *client = context;
	(void)fd;
	(void)what;

	if (is_silent(client)) {
		client->is_last = atomic_load(&drains) || clock_now_ns() >= client->due_ns;
		step(client);
	} else if (client->inquiry || page_length(&client->out)) {
		client_abort(client);
	} else {
		client->is_last = true;
		client->wants_no_body = client->is_old = false;
		write_failure(client, 408, "the request took too long", "");
		expect_within(client, WRITE_NS);
		step(client);
	}
}

static unsigned int
worker_of(const struct loop *loop)
{
	unsigned int worker = 0;
	while (worker + 1 < control->workers &&
	       control->mailbox_of(control->context, worker) != loop->mailbox)
		worker++;
	return worker;
}

static struct client *
client_new(struct loop *loop, const struct facts *facts)
{
	struct client *client = calloc(1, sizeof(*client));
	if (!client)
		return NULL;
	client->loop = loop;
	client->worker = worker_of(loop);
	admin_route_know(&client->peer, facts);
	socket_address_text(&facts->client, client->name);
	client->http = http_open();
	client->in = evbuffer_new();
	client->timer = evtimer_new(loop->base, on_timer, client);
	if (page_open(&client->out) == 0 && page_open(&client->page) == 0 && client->http &&
	    client->in && client->timer)
		return client;
	client_close(client);
	return NULL;
}

static int
admin_open(struct endpoint *end, struct loop *loop, const struct facts *facts, struct failure *why)
{
	if (!control)
		return failure_set(why, FAILURE_STOPPED, "internal:admin is closed");
	struct client *client = client_new(loop, facts);
	if (!client)
		return failure_set(why, FAILURE_MEMORY, "no memory for admin");
	if (pair_open(end, &client->endpoint, loop, why) < 0) {
		client_close(client);
		return -1;
	}
	client->endpoint.owner = client;
	client->endpoint.on_ready = on_ready;
	expect_within(client, IDLE_NS);
	if (watch(client) < 0)
		client_abort(client);
	return 0;
}

const struct service admin_service = { .name = "admin", .open = admin_open };

void
admin_start(const struct admin_control *by)
{
	control = by;
}

void
admin_drain(void)
{
	atomic_store(&drains, true);
}

void
admin_stop(void)
{
	inquiry_stop_all();
}
