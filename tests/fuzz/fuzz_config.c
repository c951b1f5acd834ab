/* Any bytes as a configuration file: refused with a report or loaded, and never in the way of the next
 * file, which is a good one. */
#include "config.h"
#include "pair.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static const struct service echo = { "echo", NULL };
static const struct service *const services[] = { &echo, NULL };

static struct generation *
load(const void *bytes, size_t size, struct config_report *report)
{
	char path[32];
	int file = memfd_create("configuration", MFD_CLOEXEC);
	if (file < 0 || write(file, bytes, size) != (ssize_t)size)
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	struct generation *generation = config_load(path, services, report);
	close(file);
	return generation;
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static const char good[] = "workers = '1' tunnel \"t\" { listen = 127.0.0.1:1 connect = "
				   "internal:echo }";
	struct config_report report;
	struct generation *generation = load(bytes, size, &report);
	if (!generation != (report.errors > 0))
		abort();
	for (size_t i = 1; i < report.count; i++)
		if (report.at[i].origin.file == report.at[i - 1].origin.file &&
		    report.at[i].origin.line < report.at[i - 1].origin.line)
			abort();
	config_report_release(&report);
	if (generation)
		counted_release(&generation->counted);

	generation = load(good, strlen(good), &report);
	if (!generation || report.count)
		abort();
	config_report_release(&report);
	counted_release(&generation->counted);
	return 0;
}
