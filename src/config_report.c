#include "config_report.h"

#include "utf8.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char *
config_report_file(struct config_report *report, const char *name)
{
	char *copy = strdup(name);
	char **files = reallocarray(report->files, report->file_count + 1, sizeof(*files));
	if (files)
		report->files = files;
	if (!copy || !files) {
		free(copy);
		report->errors++;
		report->left_out++;
		report->lacks_memory = true;
		return NULL;
	}
	files[report->file_count++] = copy;
	return copy;
}

static size_t
file_index(const struct config_report *report, const char *file)
{
	size_t i = 0;
	while (i < report->file_count && report->files[i] != file)
		i++;
	return i;
}

static bool
comes_after(const struct config_report *report, struct origin a, struct origin b)
{
	size_t file_a = file_index(report, a.file), file_b = file_index(report, b.file);
	return file_a != file_b ? file_a > file_b : a.line > b.line;
}

static void
insert(struct config_report *report, struct config_finding finding)
{
	struct config_finding *at = reallocarray(report->at, report->count + 1, sizeof(*at));
	if (!at) {
		free(finding.text);
		report->left_out++;
		return;
	}
	report->at = at;
	size_t place = report->count++;
	for (; place > 0 && comes_after(report, at[place - 1].origin, finding.origin); place--)
		at[place] = at[place - 1];
	at[place] = finding;
}

static void __attribute__((format(printf, 4, 0)))
add(struct config_report *report, bool is_error, struct origin origin, const char *format,
    va_list args)
{
	char *text;
	report->errors += is_error;
	if (report->count >= CONFIG_FINDINGS_MOST || vasprintf(&text, format, args) < 0) {
		report->left_out++;
		return;
	}
	/* The text quotes what somebody wrote, and may be shown on a terminal. */
	for (char *at = text; *at; at++)
		if ((unsigned char)*at < ' ' || *at == 0x7f)
			*at = '?';
	utf8_mend(text);
	insert(report, (struct config_finding){ is_error, origin, text });
}

void
config_report_error(struct config_report *report, struct origin origin, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	add(report, true, origin, format, args);
	va_end(args);
}

void
config_report_warning(struct config_report *report, struct origin origin, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	add(report, false, origin, format, args);
	va_end(args);
}

void
config_report_no_memory(struct config_report *report)
{
	report->lacks_memory = true;
	config_report_error(report, (struct origin){ report->files[0], 0 },
			    "no memory to read the configuration; free some");
}

void
config_report_print(const struct config_report *report, bool priorities, FILE *out)
{
	for (size_t i = 0; i < report->count; i++) {
		const struct config_finding *finding = &report->at[i];
		if (priorities)
			fputs(finding->is_error ? "<3>" : "<4>", out);
		fputs(finding->origin.file, out);
		if (finding->origin.line)
			fprintf(out, ":%u", finding->origin.line);
		fprintf(out, ": %s%s\n", finding->is_error ? "" : "warning: ", finding->text);
	}
	if (report->left_out)
		fprintf(out, "%s%zu more not shown\n", priorities ? "<4>" : "", report->left_out);
}

void
config_report_release(struct config_report *report)
{
	for (size_t i = 0; i < report->count; i++)
		free(report->at[i].text);
	free(report->at);
	for (size_t i = 0; i < report->file_count; i++)
		free(report->files[i]);
	free(report->files);
	*report = (struct config_report){ 0 };
}
