#include "command.h"

#include "config.h"
#include "config_check.h"
#include "config_diff.h"
#include "config_files.h"
#include "config_kinds.h"
#include "config_parse.h"
#include "confine.h"
#include "filters/registry.h"
#include "nearest.h"
#include "services/services.h"
#include "systemd.h"
#include "trial.h"

#include <event2/event.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_FILE "/etc/penstock/penstock.conf"
#define WRONG_USAGE  2

static const char usage[] =
	"penstockd, a TCP tunnel daemon. It runs in the foreground.\n"
	"\n"
	"  penstockd [-c FILE]                           run\n"
	"  penstockd [-c FILE] --check                   say what is wrong with FILE\n"
	"  penstockd [-c FILE] --diff OLD                what a reload would change\n"
	"  penstockd [-c FILE] --test-connection TUNNEL  try its targets, step by step\n"
	"  penstockd --keywords                          every word of the configuration\n"
	"  penstockd --version | --help\n"
	"\n"
	"  -c, --config FILE   default " DEFAULT_FILE "\n"
	"\n"
	"Signals: HUP reloads. TERM and INT drain and stop, a second one stops at once.\n"
	"USR1 opens the log file anew.\n"
	"Exit status: 0 stopped as asked, or what was asked is so; 1 it could not start,\n"
	"the configuration is wrong, a target does not work, or the answer cannot be\n"
	"written; 2 wrong usage.\n"
	"\n"
	"See penstock(7), penstockd(8), penstock.conf(5).\n";

static void
print_version(void)
{
	printf("penstockd %s\n", PENSTOCK_VERSION);
	printf("libevent %s\n", event_get_version());
	printf("libconfuse %s\n", config_parse_library());
	printf("jansson %s\n", jansson_version_str());
	for (size_t i = 0; registry_filters[i]; i++)
		if (registry_filters[i]->library)
			printf("%s\n", registry_filters[i]->library());
}

int
command_parse(struct command *command, int argc, char **argv)
{
	static const struct option options[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "check", no_argument, NULL, 'C' },
		{ "diff", required_argument, NULL, 'D' },
		{ "test-connection", required_argument, NULL, 'T' },
		{ "keywords", no_argument, NULL, 'K' },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	*command = (struct command){ .file = DEFAULT_FILE };
	while ((option = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			command->file = optarg;
			break;
		case 'C':
			command->mode = COMMAND_CHECK;
			break;
		case 'D':
			command->mode = COMMAND_DIFF;
			command->argument = optarg;
			break;
		case 'T':
			command->mode = COMMAND_TEST;
			command->argument = optarg;
			break;
		case 'K':
			config_kinds_print(stdout);
			return EXIT_SUCCESS;
		case 'V':
			print_version();
			return EXIT_SUCCESS;
		case 'h':
			fputs(usage, stdout);
			return EXIT_SUCCESS;
		default:
			fputs("penstockd: see penstockd --help\n", stderr);
			return WRONG_USAGE;
		}
	}
	if (optind == argc)
		return -1;
	fprintf(stderr,
		"penstockd: \"%s\" is not understood; write -c %s to read that file, or see "
		"penstockd --help\n",
		argv[optind], argv[optind]);
	return WRONG_USAGE;
}

/* What a line about a mistake begins with: the journal takes that for its priority. */
static const char *
priority(void)
{
	return systemd_journal_on_stderr() ? "<3>" : "";
}

struct generation *
command_load(const char *file)
{
	struct config_report report = { 0 };
	struct generation *generation = config_load(file, services_builtin, &report);

	config_report_print(&report, systemd_journal_on_stderr(), stderr);
	if (!generation)
		fprintf(stderr, "%spenstockd: %s: %zu mistake%s, nothing was started\n", priority(),
			file, report.errors, report.errors == 1 ? "" : "s");
	config_report_release(&report);
	return generation;
}

static int
diff(const struct command *command, const struct generation *next)
{
	struct generation *old = command_load(command->argument);
	if (!old)
		return EXIT_FAILURE;
	int result = config_diff_print(old, next, stdout);
	counted_release(&old->counted);
	if (result == 0)
		return EXIT_SUCCESS;
	fputs("penstockd: no memory to compare\n", stderr);
	return EXIT_FAILURE;
}

static int
test(const struct command *command, const struct generation *generation)
{
	const struct tunnel_conf *conf = generation_find(generation, command->argument);
	struct nearest nearest;

	if (conf)
		return trial_run(conf, stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
	nearest_start(&nearest, command->argument);
	for (size_t i = 0; i < generation->tunnel_count; i++)
		nearest_offer(&nearest, generation->tunnels[i]->name);
	fprintf(stderr, "penstockd: %s has no tunnel \"%s\"", command->file, command->argument);
	if (nearest.best)
		fprintf(stderr, "; did you mean \"%s\"?", nearest.best);
	fputc('\n', stderr);
	return EXIT_FAILURE;
}

static void
warn_unreadable(const char *path, void *context)
{
	(void)context;
	if (faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) < 0)
		fprintf(stderr,
			"%s%s: warning: the user that the daemon becomes cannot read it, which "
			"a reload needs; let it\n",
			systemd_journal_on_stderr() ? "<4>" : "", path);
}

/* As the user that the daemon would become, if that is to be told. */
static int
check_as_user(const struct generation *generation)
{
	const struct log_conf *log = &generation->log;
	struct failure why;

	if (geteuid() != 0 ||
	    (generation->user.uid == (uid_t)-1 && generation->user.gid == (gid_t)-1))
		return 0;
	if (confine_become(&generation->user, &why) < 0) {
		fprintf(stderr, "%s%s: %s\n", priority(), generation->file, why.text);
		return -1;
	}
	if (config_check_log(log, &why) < 0) {
		fprintf(stderr, "%s%s:%u: %s\n", priority(), log->origin.file, log->origin.line,
			why.text);
		return -1;
	}
	config_files_each(generation, warn_unreadable, NULL);
	return 0;
}

static int
check(const struct command *command, const struct generation *generation)
{
	if (check_as_user(generation) < 0)
		return EXIT_FAILURE;
	printf("%s: no mistakes\n", command->file);
	return EXIT_SUCCESS;
}

int
command_do(const struct command *command, const struct generation *generation)
{
	switch (command->mode) {
	case COMMAND_DIFF:
		return diff(command, generation);
	case COMMAND_TEST:
		return test(command, generation);
	default:
		return check(command, generation);
	}
}
