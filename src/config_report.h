/*
 * config_report: what was found wrong in the operator's files, in the order of file and line.
 */
#ifndef PENSTOCK_CONFIG_REPORT_H
#define PENSTOCK_CONFIG_REPORT_H

#include "keyword.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define CONFIG_FINDINGS_MOST 1000 /* kept; further ones are only counted */

/* One finding. Errors forbid the generation; warnings do not. `text` is "what is wrong; what would be
 * right"; line 0 = the file as a whole. */
struct config_finding {
	bool is_error;
	struct origin origin; /* its file belongs to the report */
	char *text;           /* without control bytes */
};

/* Zero it before first use. */
struct config_report {
	struct config_finding *at; /* in the order of file and line; owned */
	size_t count;
	size_t errors; /* also those that were not kept */
	size_t left_out;
	bool lacks_memory; /* something that was written is missing in what was read */

	char **files; /* in the order they were read; owned */
	size_t file_count;
};

/* Makes a file's name known; further files come after it. Returns the report's own copy, which is what
 * origins are to point to, or NULL without memory (which counts as an error). */
const char *config_report_file(struct config_report *report, const char *name);

/* Adds a finding at its place. Lack of memory leaves it out but counts it. O(findings behind it). */
void config_report_error(struct config_report *report, struct origin origin, const char *format,
			 ...) __attribute__((format(printf, 3, 4)));
void config_report_warning(struct config_report *report, struct origin origin, const char *format,
			   ...) __attribute__((format(printf, 3, 4)));

/* Of the configuration as a whole; its file is known. Sets lacks_memory. */
void config_report_no_memory(struct config_report *report);

/* One line each: "file:line: text", a warning as "file:line: warning: text". With `priorities` it begins with
 * its priority, sd-daemon(3): the journal reads them. */
void config_report_print(const struct config_report *report, bool priorities, FILE *out);

/* Frees what it owns and zeroes it. */
void config_report_release(struct config_report *report);

#endif
