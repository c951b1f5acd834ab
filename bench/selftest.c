#include "load.h"
#include "sockets.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct targets {
	pid_t pid;
	int stop_fd;                                /* closed: they end */
	uint16_t sink, source, echo, answer, spout; /* the intake is for TLS: that needs a proxy */
};

static void
expect(bool holds, const char *what)
{
	errno = 0;
	if (!holds)
		sockets_die(what);
	printf("ok  %s\n", what);
	fflush(stdout);
}

static void
start_targets(struct targets *targets)
{
	int input[2], output[2];
	char line[256];

	if (pipe(input) < 0 || pipe(output) < 0 || (targets->pid = fork()) < 0)
		sockets_die("start the targets");
	if (targets->pid == 0) {
		close(input[1]);
		serve_run(input[0], output[1]);
		_exit(0);
	}
	close(input[0]);
	targets->stop_fd = input[1];
	for (size_t got = 0; !memchr(line, '\n', got); got++) {
		if (got == sizeof(line) || read(output[0], line + got, 1) != 1)
			sockets_die("the targets' ports");
	}
	if (sscanf(line,
		   "{\"sink\": %hu, \"source\": %hu, \"echo\": %hu, \"answer\": "
		   "%hu, \"intake\": %*u, \"spout\": %hu}",
		   &targets->sink, &targets->source, &targets->echo, &targets->answer,
		   &targets->spout) != 5)
		sockets_die("the targets' ports");
}

static struct options
options_for(uint16_t port, unsigned int connections)
{
	return (struct options){
		.to = { .sin_family = AF_INET,
			.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
			.sin_port = htons(port) },
		.connections = connections,
		.count = UINT64_MAX,
		.bytes = UINT64_MAX,
		.block_bytes = SOCKETS_BLOCK_BYTES,
		.duration_ns = 10 * NS_PER_S,
	};
}

static void
test_histogram(void)
{
	static struct histogram histogram;
	for (uint64_t value = 1; value <= 100000; value++)
		histogram_add(&histogram, value * 1000);
	uint64_t median = histogram_percentile(&histogram, 0.5);
	uint64_t p99 = histogram_percentile(&histogram, 0.99);
	expect(histogram.total == 100000, "a histogram counts every sample");
	expect(median > 49900000 && median <= 50000000, "a median within 0.2 %");
	expect(p99 > 98800000 && p99 <= 99000000, "a 99th percentile within 0.2 %");
}

static void
test_bulk(const struct targets *targets)
{
	struct bulk_result result;
	for (unsigned int connections = 1; connections <= 16; connections += 15) {
		struct options up = options_for(targets->sink, connections);
		struct options down = options_for(targets->source, connections);
		up.bytes = down.bytes = 256 << 20;
		bulk_up(&up, &result);
		expect(result.bytes >= up.bytes, "a sink confirms the bytes sent up");
		bulk_down(&down, &result);
		expect(result.bytes >= down.bytes, "a source confirms the bytes sent down");
	}
	struct options timed = options_for(targets->sink, 1);
	timed.duration_ns = NS_PER_S / 5;
	bulk_up(&timed, &result);
	expect(result.elapsed_ns >= timed.duration_ns && result.elapsed_ns < NS_PER_S * 2,
	       "a bulk run ends by time");
}

static void
test_watch(const struct targets *targets)
{
	static struct watch_result result;
	struct options options = options_for(targets->spout, 4);
	options.settle_ns = options.duration_ns = NS_PER_S / 5;
	options.rate = 1000;
	watch_run(&options, &result);
	expect(result.settled_bytes > 0 && result.rate > options.rate &&
		       result.worst_bytes > (double)result.settled_bytes * 0.9,
	       "a watcher sees what comes beyond a rate");
	expect(result.jain > 0.25 && result.jain <= 1 && result.wait_ns.total > 100,
	       "and to whom, and when");
}

static void
test_exchanges(const struct targets *targets)
{
	static struct exchange_result result;
	struct options options = options_for(targets->echo, 7);
	options.count = 5000;
	ping_run(&options, &result);
	expect(result.count == 5000 && result.latency_ns.total == 5000, "5000 pings, each echoed");
	options = options_for(targets->answer, 32);
	options.count = 3000;
	short_run(&options, &result);
	expect(result.count == 3000 && result.failed == 0, "3000 short connections, each answered");
}

/* The command must end the program: a bulk stream to a target that hangs up has lost bytes. */
static void
test_loss_is_seen(const struct targets *targets)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		struct options options = options_for(targets->answer, 1);
		struct bulk_result result;
		(void)!freopen("/dev/null", "w", stderr);
		bulk_up(&options, &result);
		_exit(0);
	}
	expect(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 2,
	       "lost bytes end the client");
}

void
selftest_run(void)
{
	struct targets targets = { 0 };
	int status;

	test_histogram();
	start_targets(&targets);
	test_bulk(&targets);
	test_watch(&targets);
	test_exchanges(&targets);
	test_loss_is_seen(&targets);
	close(targets.stop_fd);
	expect(waitpid(targets.pid, &status, 0) == targets.pid && status == 0,
	       "the targets end with their input");
}
