/*
 * penstockctl: sees and steers a running penstockd through its admin service.
 */
#include "client.h"
#include "limits.h"
#include "nearest.h"
#include "standard_streams.h"
#include "top.h"
#include "view.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct options {
	bool json;
	double seconds;
	unsigned int rounds;
	struct view_filter filter;
	const char *direction; /* NULL = both */
	bool given[128];       /* by the letters of `known` */
};

static const char usage[] =
	"penstockctl, sees and steers penstockd\n"
	"\n"
	"usage: penstockctl [--socket PATH] [--json] COMMAND ...\n"
	"\n"
	"  status                  how the daemon is\n"
	"  tunnels                 what each tunnel carries and has carried\n"
	"  targets                 where tunnels connect to, and whether that works\n"
	"  connections             open ones; [--tunnel NAME] [--source ADDRESS] [--state STATE]\n"
	"                          [--sort id|rate|bytes|age|idle|wait [--limit COUNT]]\n"
	"  top                     the same, live; [--tunnel ...] [--every SECONDS] [--rounds "
	"COUNT]\n"
	"  show ID                 everything of one connection\n"
	"  why [ID]                what holds a connection up; without ID: those held up most\n"
	"  ends                    who ended last, and why: well, and not\n"
	"  limits [NAME]           the tree of limits: rates, levels, who waits\n"
	"  limit NAME WORD=AMOUNT  new values: rate=20MB/s, up=, down=, burst=; until the next "
	"reload;\n"
	"                          NAME@KEY is one node of a limit with a per, here and below\n"
	"  charge NAME AMOUNT      take tokens from it, [--direction up|down]\n"
	"  credit NAME AMOUNT      give it tokens\n"
	"  reset NAME              begin its totals anew\n"
	"  kill ID                 reset a connection\n"
	"  drain TUNNEL            close its listeners, until undrain or the next reload\n"
	"  undrain TUNNEL          open them again\n"
	"  diff                    what a reload would change, from when on, for how many\n"
	"  reload                  read the configuration anew; waits, and fails if that failed\n"
	"  log-level LEVEL         error, warning, notice, info or debug, until the next reload\n"
	"\n"
	"  --socket PATH           where to ask (default $PENSTOCK_SOCKET, else " CLIENT_SOCKET
	")\n"
	"  --json                  what the daemon answers, for programs\n"
	"  --version, --help\n"
	"\n"
	"Exit status: 0 done, 1 not done, 2 wrong usage. See penstockctl(1).\n";

/* --- commands ------------------------------------------------------------------------------------- */

static void
run_status(const struct options *options, char **arguments)
{
	(void)arguments;
	view_status(options->json);
}

static void
run_tunnels(const struct options *options, char **arguments)
{
	(void)arguments;
	view_tunnels(options->json);
}

static void
run_targets(const struct options *options, char **arguments)
{
	(void)arguments;
	view_targets(options->json);
}

static void
run_connections(const struct options *options, char **arguments)
{
	(void)arguments;
	view_connections(options->json, &options->filter);
}

static void
run_top(const struct options *options, char **arguments)
{
	struct view_filter filter = options->filter;
	(void)arguments;
	if (!filter.sort)
		filter.sort = "rate";
	if (options->json) {
		view_connections(true, &filter);
		return;
	}
	top_run(&filter, options->seconds, options->rounds);
}

static void
run_show(const struct options *options, char **arguments)
{
	view_show(options->json, arguments[0]);
}

static void
run_why(const struct options *options, char **arguments)
{
	view_why(options->json, arguments[0]);
}

static void
run_ends(const struct options *options, char **arguments)
{
	(void)arguments;
	view_ends(options->json);
}

/* Says that it is done. */
static void
confirm(const struct options *options, const char *text)
{
	puts(options->json ? "{\"ok\":true}" : text);
}

static void
run_limits(const struct options *options, char **arguments)
{
	limits_view(options->json, arguments[0]);
}

static void
run_limit(const struct options *options, char **arguments)
{
	limits_tune(arguments[0], arguments + 1);
	confirm(options, "done; the next reload sets it back");
}

static void
run_charge(const struct options *options, char **arguments)
{
	limits_adjust("charge", arguments[0], arguments[1], options->direction);
	confirm(options, "charged");
}

static void
run_credit(const struct options *options, char **arguments)
{
	limits_adjust("credit", arguments[0], arguments[1], options->direction);
	confirm(options, "credited");
}

static void
run_reset(const struct options *options, char **arguments)
{
	limits_reset(arguments[0]);
	confirm(options, "done");
}

static void
run_kill(const struct options *options, char **arguments)
{
	char path[64];
	snprintf(path, sizeof(path), "/v1/connections/%.20s/kill", view_number(arguments[0]));
	client_post(path, NULL);
	confirm(options, "killed");
}

static void
steer_tunnel(const char *name, const char *act)
{
	char path[512];
	snprintf(path, sizeof(path), "/v1/tunnels/%.400s/%s", client_escape(name), act);
	client_post(path, NULL);
}

static void
run_drain(const struct options *options, char **arguments)
{
	steer_tunnel(arguments[0], "drain");
	confirm(options, "drained: nobody is let in until undrain or the next reload; who is there "
			 "goes on");
}

static void
run_undrain(const struct options *options, char **arguments)
{
	steer_tunnel(arguments[0], "undrain");
	confirm(options, "open again");
}

static void
run_reload(const struct options *options, char **arguments)
{
	(void)arguments;
	client_post("/v1/reload", NULL);
	confirm(options, "reloaded");
}

static void
run_diff(const struct options *options, char **arguments)
{
	(void)arguments;
	view_diff(options->json);
}

static void
run_log_level(const struct options *options, char **arguments)
{
	client_post("/v1/log-level", json_pack("{s:s}", "level", arguments[0]));
	confirm(options, "done; the next reload sets it back");
}

static const struct command {
	const char *name;
	int least, most; /* arguments */
	void (*run)(const struct options *options, char **arguments);
	const char *arguments;
	const char *takes; /* of the options that not every command takes, by their letters */
} commands[] = {
	{ "status", 0, 0, run_status, "", "" },
	{ "tunnels", 0, 0, run_tunnels, "", "" },
	{ "targets", 0, 0, run_targets, "", "" },
	{ "connections", 0, 0, run_connections, "", "tfSol" },
	{ "top", 0, 0, run_top, "", "tfSoler" },
	{ "show", 1, 1, run_show, "ID", "" },
	{ "why", 0, 1, run_why, "[ID]", "" },
	{ "ends", 0, 0, run_ends, "", "" },
	{ "limits", 0, 1, run_limits, "[NAME]", "" },
	{ "limit", 2, 5, run_limit, "NAME WORD=AMOUNT ...", "" },
	{ "charge", 2, 2, run_charge, "NAME AMOUNT", "d" },
	{ "credit", 2, 2, run_credit, "NAME AMOUNT", "d" },
	{ "reset", 1, 1, run_reset, "NAME", "" },
	{ "kill", 1, 1, run_kill, "ID", "" },
	{ "drain", 1, 1, run_drain, "TUNNEL", "" },
	{ "undrain", 1, 1, run_undrain, "TUNNEL", "" },
	{ "diff", 0, 0, run_diff, "", "" },
	{ "reload", 0, 0, run_reload, "", "" },
	{ "log-level", 1, 1, run_log_level, "LEVEL", "" },
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

/* --- the command line ----------------------------------------------------------------------------- */

static _Noreturn void
misused(const char *what, const char *name)
{
	fprintf(stderr, "penstockctl: %s%s; see penstockctl --help\n", what, name);
	exit(2);
}

static _Noreturn void
misused_command(const struct command *command)
{
	fprintf(stderr, "penstockctl: write %s%s%s; see penstockctl --help\n", command->name,
		*command->arguments ? " " : " alone", command->arguments);
	exit(2);
}

static const struct command *
find_command(const char *name)
{
	struct nearest nearest;

	nearest_start(&nearest, name);
	for (size_t i = 0; i < COMMANDS; i++) {
		if (!strcmp(name, commands[i].name))
			return &commands[i];
		nearest_offer(&nearest, commands[i].name);
	}
	if (!nearest.best)
		misused("there is no command ", name);
	fprintf(stderr, "penstockctl: there is no command %s; did you mean %s?\n", name,
		nearest.best);
	exit(2);
}

static unsigned int
read_count(const char *text)
{
	char *end;
	unsigned long count = strtoul(text, &end, 10);
	if (end == text || *end || count < 1 || count > 1000000)
		misused("this is no count: ", text);
	return (unsigned int)count;
}

static double
read_seconds(const char *text)
{
	char *end;
	double seconds = strtod(text, &end);
	if (end == text || *end || !(seconds >= 0.1 && seconds <= 3600))
		misused("from 0.1 to 3600 seconds, and not ", text);
	return seconds;
}

static const struct option known[] = {
	{ "socket", required_argument, NULL, 's' },
	{ "json", no_argument, NULL, 'j' },
	{ "tunnel", required_argument, NULL, 't' },
	{ "source", required_argument, NULL, 'f' },
	{ "state", required_argument, NULL, 'S' },
	{ "sort", required_argument, NULL, 'o' },
	{ "limit", required_argument, NULL, 'l' },
	{ "every", required_argument, NULL, 'e' },
	{ "direction", required_argument, NULL, 'd' },
	{ "rounds", required_argument, NULL, 'r' },
	{ "version", no_argument, NULL, 'V' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static void
read_options(int argc, char **argv, struct options *options, const char **socket)
{
	int option;

	while ((option = getopt_long(argc, argv, "s:jh", known, NULL)) != -1) {
		options->given[option & 127] = true;
		switch (option) {
		case 's':
			*socket = optarg;
			break;
		case 'j':
			options->json = true;
			break;
		case 't':
			options->filter.tunnel = optarg;
			break;
		case 'f':
			options->filter.source = optarg;
			break;
		case 'S':
			options->filter.state = optarg;
			break;
		case 'o':
			options->filter.sort = optarg;
			break;
		case 'l':
			options->filter.limit = read_count(optarg);
			break;
		case 'e':
			options->seconds = read_seconds(optarg);
			break;
		case 'd':
			options->direction = optarg;
			break;
		case 'r':
			options->rounds = read_count(optarg);
			break;
		case 'V':
			puts("penstockctl " PENSTOCK_VERSION);
			exit(standard_streams_end("penstockctl", EXIT_SUCCESS));
		case 'h':
			fputs(usage, stdout);
			exit(standard_streams_end("penstockctl", EXIT_SUCCESS));
		default: /* getopt has said it */
			fputs("see penstockctl --help\n", stderr);
			exit(2);
		}
	}
}

/* What would be ignored is a mistake. */
static void
check_options(const struct options *options, const struct command *command)
{
	for (const struct option *option = known; option->name; option++)
		if (options->given[option->val] && !strchr("sj", option->val) &&
		    !strchr(command->takes, option->val)) {
			fprintf(stderr, "penstockctl: %s takes no --%s; see penstockctl --help\n",
				command->name, option->name);
			exit(2);
		}
}

int
main(int argc, char **argv)
{
	const char *socket = getenv("PENSTOCK_SOCKET");
	struct options options = { .seconds = 1 };

	standard_streams_fill();
	argv[0] = (char *)"penstockctl"; /* as it is called in what is said */
	if (!socket || !*socket)
		socket = CLIENT_SOCKET;
	read_options(argc, argv, &options, &socket);
	if (optind >= argc) {
		fputs(usage, stderr);
		return 2;
	}
	if (!strcmp(argv[optind], "help")) {
		fputs(usage, stdout);
		exit(standard_streams_end("penstockctl", EXIT_SUCCESS));
	}
	const struct command *command = find_command(argv[optind]);
	int count = argc - optind - 1;
	if (count < command->least || count > command->most)
		misused_command(command);
	check_options(&options, command);
	client_begin(socket);
	command->run(&options, argv + optind + 1);
	client_end();
	return standard_streams_end("penstockctl", EXIT_SUCCESS);
}
