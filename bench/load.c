#include "load.h"

#include "sockets.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const char help[] =
	"usage: load COMMAND [PORT] [option]...\n"
	"\n"
	"Targets and clients for measuring a TCP proxy on 127.0.0.1. Results are one line of "
	"JSON.\n"
	"\n"
	"  serve          the targets; prints their ports; ends when standard input ends\n"
	"                   sink    takes everything, answers the end with the count\n"
	"                   source  sends without end; one byte stops it: it adds its count\n"
	"                   echo    sends back what it gets\n"
	"                   answer  64 bytes of request, 64 bytes of answer, and closes\n"
	"                   spout   a source with send buffers of 32 KiB, small segments\n"
	"                   intake  takes as many bytes as its first 8 say, answers with the "
	"count\n"
	"  up PORT        bytes to a sink              --connections --seconds --bytes --block\n"
	"  down PORT      bytes from a source          --connections --seconds --bytes\n"
	"  watch PORT     bytes from a source that is held back: how much when, to whom\n"
	"                                              --connections --seconds --settle --rate\n"
	"  ping PORT      64 bytes there and back      --connections --seconds --count --gate\n"
	"  short PORT     connect, ask, be answered, close: --connections at a time\n"
	"                                              --connections --seconds --count\n"
	"  hold PORT      opens connections and keeps them until standard input ends\n"
	"                                              --connections --speak --narrow\n"
	"  selftest       all of these against each other, without a proxy\n"
	"\n"
	"  --connections N       how many at a time (1)\n"
	"  --seconds S           stop after so long (2)\n"
	"  --settle S            not counted at first (1)\n"
	"  --rate R              bytes a second that ought to come\n"
	"  --bytes B             stop after so many bytes in all (no end)\n"
	"  --block B             write so many bytes at a time (1048576, the most)\n"
	"  --count N             stop after so many pings or connections in all (no end)\n"
	"  --speak               one ping on each connection before falling silent\n"
	"  --narrow              held connections with small windows, to be blocked by not "
	"reading\n"
	"  --tls, --tls12        inside TLS 1.3 or 1.2; up to an intake, bulk by --bytes alone\n"
	"  --resume              TLS sessions are resumed\n"
	"  --gate                say \"ready\" and \"done\" around the pings, each time waiting "
	"for a\n"
	"                        line on standard input\n"
	"  --help\n"
	"\n"
	"A client that has not ended 60 s after its --seconds is stuck, and ends with status 3.\n";

enum option_id {
	OPTION_CONNECTIONS = 1,
	OPTION_SECONDS,
	OPTION_SETTLE,
	OPTION_RATE,
	OPTION_BYTES,
	OPTION_BLOCK,
	OPTION_COUNT,
	OPTION_SPEAK,
	OPTION_NARROW,
	OPTION_GATE,
	OPTION_TLS,
	OPTION_TLS12,
	OPTION_RESUME,
	OPTION_HELP,
};

static const struct option long_options[] = {
	{ "connections", required_argument, NULL, OPTION_CONNECTIONS },
	{ "seconds", required_argument, NULL, OPTION_SECONDS },
	{ "settle", required_argument, NULL, OPTION_SETTLE },
	{ "rate", required_argument, NULL, OPTION_RATE },
	{ "bytes", required_argument, NULL, OPTION_BYTES },
	{ "block", required_argument, NULL, OPTION_BLOCK },
	{ "count", required_argument, NULL, OPTION_COUNT },
	{ "speak", no_argument, NULL, OPTION_SPEAK },
	{ "narrow", no_argument, NULL, OPTION_NARROW },
	{ "gate", no_argument, NULL, OPTION_GATE },
	{ "tls", no_argument, NULL, OPTION_TLS },
	{ "tls12", no_argument, NULL, OPTION_TLS12 },
	{ "resume", no_argument, NULL, OPTION_RESUME },
	{ "help", no_argument, NULL, OPTION_HELP },
	{ 0 },
};

static double
to_number(const char *text)
{
	char *end;
	double number = strtod(text, &end);
	if (end == text || *end || !(number >= 0 && number < 1e18)) {
		fprintf(stderr, "load: '%s' is no number\n", text);
		exit(1);
	}
	return number;
}

static void
parse(int argc, char **argv, struct options *options)
{
	int id;

	*options = (struct options){ .to = { .sin_family = AF_INET,
					     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) },
				     .connections = 1,
				     .count = UINT64_MAX,
				     .bytes = UINT64_MAX,
				     .block_bytes = SOCKETS_BLOCK_BYTES,
				     .duration_ns = 2 * NS_PER_S,
				     .settle_ns = NS_PER_S };
	while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		double number = optarg ? to_number(optarg) : 0;
		if (id == OPTION_CONNECTIONS && number >= 1 && number <= 19000)
			options->connections = (unsigned int)number;
		else if (id == OPTION_SECONDS)
			options->duration_ns = (uint64_t)(number * (double)NS_PER_S);
		else if (id == OPTION_SETTLE)
			options->settle_ns = (uint64_t)(number * (double)NS_PER_S);
		else if (id == OPTION_RATE)
			options->rate = number;
		else if (id == OPTION_BYTES)
			options->bytes = (uint64_t)number;
		else if (id == OPTION_BLOCK && number >= 1 && number <= SOCKETS_BLOCK_BYTES)
			options->block_bytes = (size_t)number;
		else if (id == OPTION_COUNT)
			options->count = (uint64_t)number;
		else if (id == OPTION_SPEAK)
			options->speak = true;
		else if (id == OPTION_NARROW)
			options->narrow = true;
		else if (id == OPTION_GATE)
			options->gate = true;
		else if (id == OPTION_TLS || id == OPTION_TLS12)
			options->tls = true, options->tls12 = id == OPTION_TLS12;
		else if (id == OPTION_RESUME)
			options->resume = true;
		else {
			fputs(help, id == OPTION_HELP ? stdout : stderr);
			exit(id == OPTION_HELP ? 0 : 1);
		}
	}
}

static double
own_cpu_s(void)
{
	struct timespec used;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

static void
print_bulk(const struct bulk_result *result)
{
	printf("{\"bytes\": %llu, \"elapsed_s\": %.6f, \"client_cpu_s\": %.6f}\n",
	       (unsigned long long)result->bytes, (double)result->elapsed_ns / 1e9, own_cpu_s());
}

static void
print_watch(const struct watch_result *result)
{
	printf("{\"bytes\": %llu, \"rate\": %.0f, \"worst_bytes\": %.0f, \"jain\": %.5f, "
	       "\"wait_p99_us\": %.3f}\n",
	       (unsigned long long)result->settled_bytes, result->rate, result->worst_bytes,
	       result->jain, (double)histogram_percentile(&result->wait_ns, 0.99) / 1e3);
}

static void
print_exchange(const struct exchange_result *result)
{
	printf("{\"count\": %llu, \"failed\": %llu, \"resumed\": %llu, \"elapsed_s\": %.6f, "
	       "\"p50_us\": %.3f, "
	       "\"p99_us\": %.3f, \"client_cpu_s\": %.6f}\n",
	       (unsigned long long)result->count, (unsigned long long)result->failed,
	       (unsigned long long)result->resumed, (double)result->elapsed_ns / 1e9,
	       (double)histogram_percentile(&result->latency_ns, 0.50) / 1e3,
	       (double)histogram_percentile(&result->latency_ns, 0.99) / 1e3, own_cpu_s());
}

static void
on_deadline(int signal)
{
	static const char text[] = "load: stuck\n";
	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(3);
}

static void
run_client(const char *command, const struct options *options)
{
	static struct exchange_result exchanges;
	static struct watch_result watched;
	struct bulk_result bulk = { 0 };

	if (!strcmp(command, "up")) {
		(options->tls ? tls_up : bulk_up)(options, &bulk);
		print_bulk(&bulk);
	} else if (!strcmp(command, "down")) {
		(options->tls ? tls_down : bulk_down)(options, &bulk);
		print_bulk(&bulk);
	} else if (!strcmp(command, "watch")) {
		watch_run(options, &watched);
		print_watch(&watched);
	} else if (!strcmp(command, "ping")) {
		(options->tls ? tls_ping : ping_run)(options, &exchanges);
		print_exchange(&exchanges);
	} else if (!strcmp(command, "short")) {
		(options->tls ? tls_short : short_run)(options, &exchanges);
		print_exchange(&exchanges);
	} else if (!strcmp(command, "hold")) {
		(options->tls ? tls_hold : hold_run)(options);
	} else {
		fprintf(stderr, "load: no command '%s'; see load --help\n", command);
		exit(1);
	}
}

static void
raise_descriptor_limit(void)
{
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int
main(int argc, char **argv)
{
	struct options options;

	parse(argc, argv, &options);
	raise_descriptor_limit();
	if (argc - optind == 1 && !strcmp(argv[optind], "serve")) {
		serve_run(STDIN_FILENO, STDOUT_FILENO);
		return 0;
	}
	if (argc - optind == 1 && !strcmp(argv[optind], "selftest")) {
		alarm(60);
		selftest_run();
		return 0;
	}
	if (argc - optind != 2) {
		fputs(help, stderr);
		return 1;
	}
	options.to.sin_port = htons((uint16_t)to_number(argv[optind + 1]));
	signal(SIGALRM, on_deadline);
	if (strcmp(argv[optind], "hold") != 0)
		alarm((unsigned int)((options.duration_ns + options.settle_ns) / NS_PER_S) + 60);
	run_client(argv[optind], &options);
	return 0;
}
