#include "admin_survey.h"

#include "generation.h"
#include "tunnel.h"

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

/* Jansson gives some bytes at a time: the page is asked for room only now and then. */
struct print {
	struct page *page;
	size_t count;
	char text[4096];
};

static void
flush(struct print *print)
{
	page_add(print->page, print->text, print->count);
	print->count = 0;
}

static int
append(const char *text, size_t count, void *context)
{
	struct print *print = context;

	if (count > sizeof(print->text) - print->count)
		flush(print);
	if (count > sizeof(print->text)) {
		page_add(print->page, text, count);
		return 0;
	}
	memcpy(print->text + print->count, text, count);
	print->count += count;
	return 0;
}

void
admin_survey_print(struct inquiry *inquiry, struct page *page, json_t *value, const char *after)
{
	struct print print;

	print.page = page;
	print.count = 0;
	if (!value ||
	    json_dump_callback(value, append, &print, JSON_COMPACT | JSON_REAL_PRECISION(13)) < 0)
		inquiry_fail(inquiry, 503, "no memory for this");
	append(after, strlen(after), &print);
	flush(&print);
	json_decref(value);
}

void
admin_survey_set(json_t **object, const char *name, json_t *value)
{
	if (json_object_set_new(*object, name, value) == 0)
		return;
	json_decref(*object);
	*object = NULL;
}

void
admin_survey_append(json_t **array, json_t *value)
{
	if (json_array_append_new(*array, value) == 0)
		return;
	json_decref(*array);
	*array = NULL;
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
