#include "admin_answers.h"
#include "admin_survey.h"
#include "clock.h"
#include "connection_view.h"
#include "endings.h"
#include "failure.h"

#include <stdlib.h>

/* Of each worker. */
#define WORKER_MOST ((size_t)2 * ENDINGS_KEPT)

struct ends {
	unsigned int visited; /* workers */
	struct ending *all;   /* owned; room for all of them */
	size_t count;
};

static int
begin_ends(struct inquiry *inquiry, const struct http_request *request, const char *argument)
{
	struct ends *ends = inquiry->state;
	(void)request;
	(void)argument;

	ends->all = calloc(inquiry->control->workers * WORKER_MOST, sizeof(*ends->all));
	return ends->all ? 0 : inquiry_fail(inquiry, 503, "no memory for a list");
}

static bool
collect_ends(struct inquiry *inquiry)
{
	const struct admin_control *control = inquiry->control;
	struct ends *ends = inquiry->state;
	const struct connections *connections =
		control->connections_of(control->context, (unsigned int)inquiry->place);

	ends->count += endings_copy(&connections->endings, ends->all + ends->count);
	return true;
}

static int
later_first(const void *left, const void *right)
{
	uint64_t a = ((const struct ending *)left)->at_ns;
	uint64_t b = ((const struct ending *)right)->at_ns;
	return a < b ? 1 : a > b ? -1 : 0;
}

static double
seconds(uint64_t ns)
{
	return (double)ns / (double)NS_PER_S;
}

static json_t *
end_of(const struct ending *ending, uint64_t now_ns)
{
	char client[SOCKET_ADDRESS_TEXT];

	return json_pack("{s:I, s:s, s:s, s:o, s:I, s:I, s:f, s:f, s:s, s:s, s:o}", "id",
			 (json_int_t)ending->id, "tunnel", ending->tunnel, "client",
			 socket_address_text(&ending->client, client), "target",
			 admin_survey_text(ending->target), "up", (json_int_t)ending->up_bytes,
			 "down", (json_int_t)ending->down_bytes, "duration_s",
			 seconds(ending->at_ns - ending->opened_ns), "ago_s",
			 seconds(now_ns > ending->at_ns ? now_ns - ending->at_ns : 0), "by",
			 connection_view_ender_name((enum ended_by)ending->ended_by), "reason",
			 ending->kind ? failure_kind_name((enum failure_kind)ending->kind) : "ok",
			 "why", admin_survey_text(ending->why));
}

/* Those of all workers: as many of each kind as a worker keeps. */
static enum answer_step
write_ends(struct inquiry *inquiry, struct page *page)
{
	struct ends *ends = inquiry->state;
	unsigned int told[2] = { 0 };
	uint64_t now_ns = clock_now_ns();
	const char *before = "\n";

	if (ends->visited < inquiry->control->workers) {
		inquiry->place = (int)ends->visited++;
		return ANSWER_VISIT;
	}
	qsort(ends->all, ends->count, sizeof(*ends->all), later_first);
	page_print(page, "{\"ends\":[");
	for (size_t i = 0; i < ends->count; i++) {
		if (told[!ends->all[i].kind]++ >= ENDINGS_KEPT)
			continue;
		page_print(page, "%s", before);
		admin_survey_print(inquiry, page, end_of(&ends->all[i], now_ns), "");
		before = ",\n";
	}
	page_print(page, "\n]}\n");
	return ANSWER_DONE;
}

static void
end_ends(struct inquiry *inquiry)
{
	struct ends *ends = inquiry->state;
	free(ends->all);
}

const struct answer admin_ends_all = {
	.content_type = "application/json",
	.state_bytes = sizeof(struct ends),
	.begin = begin_ends,
	.write = write_ends,
	.collect = collect_ends,
	.end = end_ends,
};
