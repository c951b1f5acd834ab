#include "admin_survey.h"

#include "generation.h"
#include "tunnel.h"

#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

bool
admin_survey_next(struct inquiry *inquiry, struct admin_survey *survey, bool with_workers)
{
	const struct admin_control *control = inquiry->control;

	if (!survey->visited) {
		survey->workers = calloc(control->workers, sizeof(*survey->workers));
		if (!survey->workers) {
			inquiry_fail(inquiry, 503, "no memory for this");
			return false;
		}
		survey->visited = 1;
		inquiry->place = PLACE_CONTROL;
		return true;
	}
	if (!with_workers || survey->visited > control->workers)
		return false;
	inquiry->place = (int)survey->visited++ - 1;
	return true;
}

void
admin_survey_collect(struct inquiry *inquiry, struct admin_survey *survey)
{
	const struct admin_control *control = inquiry->control;

	if (inquiry->place == PLACE_CONTROL) {
		control->describe(control->context, &survey->status);
		return;
	}
	unsigned int place = (unsigned int)inquiry->place;
	struct connections *connections = control->connections_of(control->context, place);
	survey->workers[place] = (struct admin_worker){
		.connections = atomic_load_explicit(&connections->count, memory_order_relaxed),
		.handshakes = atomic_load_explicit(&connections->handshakes, memory_order_relaxed),
		.handshakes_held = connections->handshakes_held,
		.kept_bytes = connections->loop->kept_bytes,
		.pulse = *control->pulse_of(control->context, place),
	};
}

void
admin_survey_end(struct admin_survey *survey)
{
	if (survey->status.generation)
		counted_release((struct counted *)&survey->status.generation->counted);
	free(survey->status.listeners);
	free(survey->workers);
}

/* Jansson gives some bytes at a time: an evbuffer is asked for room only now and then. */
struct print {
	struct evbuffer *page;
	size_t count;
	char text[4096];
};

static int
flush(struct print *print)
{
	size_t count = print->count;
	print->count = 0;
	return evbuffer_add(print->page, print->text, count);
}

static int
append(const char *text, size_t count, void *context)
{
	struct print *print = context;

	if (count > sizeof(print->text) - print->count && flush(print) < 0)
		return -1;
	if (count > sizeof(print->text))
		return evbuffer_add(print->page, text, count);
	memcpy(print->text + print->count, text, count);
	print->count += count;
	return 0;
}

void
admin_survey_print(struct inquiry *inquiry, struct evbuffer *page, json_t *value, const char *after)
{
	struct print print;

	print.page = page;
	print.count = 0;
	if (!value ||
	    json_dump_callback(value, append, &print, JSON_COMPACT | JSON_REAL_PRECISION(13)) < 0 ||
	    append(after, strlen(after), &print) < 0 || flush(&print) < 0)
		inquiry_fail(inquiry, 503, "no memory for this");
	json_decref(value);
}

json_t *
admin_survey_text(const char *text)
{
	json_t *string = json_string(text);
	if (string)
		return string;
	char *copy = strdup(text);
	if (!copy)
		return NULL;
	for (char *at = copy; *at; at++)
		if ((unsigned char)*at >= 0x80)
			*at = '?';
	string = json_string(copy);
	free(copy);
	return string;
}
