/*
 * limits-sim: the limit tree alone, in invented time, at sizes that this machine cannot hold connections
 * for. First what one grant costs, by how many are hungry; then a large tree with skewed demands.
 *
 *	limits-sim [NODES [ACTIVE [SECONDS]]]
 */
#include "../../tests/unit/limits_world.h"

#include <inttypes.h>
#include <time.h>
#include <unistd.h>

#define MB             UINT64_C(1000000)
#define CLIENTS_OF_NET 1024
#define WINDOW_NS      (10 * S) /* over which shares are compared */
#define GRANTS         2000000  /* for one row of costs */

/* Of this process's CPU: the machine may do other things. */
static uint64_t
cpu_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * S + (uint64_t)now.tv_nsec;
}

/* What the process has in memory. */
static double
resident_bytes(void)
{
	long all = 0, resident = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	if (!file || fscanf(file, "%ld %ld", &all, &resident) != 2)
		exit(1);
	fclose(file);
	return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

static double
seconds_since(uint64_t begin_ns)
{
	return (double)(cpu_now_ns() - begin_ns) / 1e9;
}

static struct limit *
declare(struct world *world, const char *name, struct limit *parent, uint8_t prefix, uint64_t rate)
{
	struct limit_spec spec = { .name = name,
				   .parent = parent,
				   .per = prefix ? LIMIT_PER_SOURCE : LIMIT_PER_NONE,
				   .prefix_v4 = prefix,
				   .prefix_v6 = 64,
				   .weight = 1,
				   .rate = { rate, rate } };
	struct failure why;
	struct limit *limit = limits_add(world->limits, &spec, world->now_ns, &why);

	if (!limit) {
		printf("%s\n", why.text);
		exit(1);
	}
	return limit;
}

static struct limit_node *
node_of(struct world *world, struct limit *limit, uint32_t client)
{
	struct socket_address source = { .family = AF_INET };
	struct limit_who who = { .connection = client, .source = &source };
	struct limit_node *node;
	uint32_t address = client / CLIENTS_OF_NET << 10 | client % CLIENTS_OF_NET;

	for (int i = 0; i < 4; i++)
		source.ip[i] = (uint8_t)(address >> (24 - 8 * i));
	if (limits_resolve(limit, &who, world->now_ns, &node, NULL) < 0) {
		printf("no memory for client %" PRIu32 "\n", client);
		exit(1);
	}
	return node;
}

/* --- what a grant costs ----------------------------------------------------------------------------- */

/* Each flow takes again as soon as it was granted something. */
static void
measure_grants(struct world *world, uint32_t hungry, struct limit_flow *flows, uint64_t rate,
	       const char *where)
{
	struct limit_flow *flow;
	uint64_t grants = 0;

	/* First the burst goes, and what newcomers may claim. */
	for (uint32_t i = 0; i < hungry; i++) {
		uint64_t bytes = limits_take(&flows[i], UINT64_C(1) << 40, world->now_ns);
		while (bytes) {
			limits_spend(&flows[i], bytes);
			bytes = limits_take(&flows[i], UINT64_C(1) << 40, world->now_ns);
		}
	}
	uint64_t begin_ns = cpu_now_ns(), from_ns = world->now_ns, most = GRANTS;
	if (most < 2 * (uint64_t)hungry)
		most = 2 * (uint64_t)hungry;
	while (grants < most) {
		uint64_t due_ns = limits_due_ns(world->limits);
		if (due_ns > world->now_ns)
			world->now_ns = due_ns + MS / 2; /* a timer's grain */
		limits_run(&world->worker, world->now_ns);
		while ((flow = limits_next(&world->worker))) {
			limits_spend(flow, limits_take(flow, UINT64_MAX / 2, world->now_ns));
			limits_take(flow, UINT64_C(1) << 40, world->now_ns);
			grants++;
		}
	}
	double took = seconds_since(begin_ns);
	printf("grant, %8" PRIu32
	       " hungry, %s: %.2f us, with asking again and timers (%.1f s at %" PRIu64 " MB/s)\n",
	       hungry, where, took * 1e6 / (double)grants, (double)(world->now_ns - from_ns) / 1e9,
	       rate / MB);
}

static void
cost_of_grants(uint32_t hungry, uint32_t nodes, bool flat)
{
	struct world world;
	struct limit_flow *flows = calloc(hungry, sizeof(*flows));
	uint64_t rate = 10000 * MB;

	world_open(&world, 1);
	struct limit *uplink = declare(&world, "uplink", NULL, 0, rate);
	struct limit *net = declare(&world, "net", uplink, 22, 0);
	struct limit *client = declare(&world, "client", net, 32, 0);
	for (uint32_t i = 0; i < hungry; i++) {
		struct limit_node *node = node_of(&world, flat ? uplink : client,
						  (uint32_t)((uint64_t)i * nodes / hungry));
		if (limits_flow_open(&flows[i], &world.worker, node, LIMIT_DOWN, world.now_ns,
				     NULL) < 0)
			exit(1);
		limits_release(node, world.now_ns);
	}
	measure_grants(&world, hungry, flows, rate,
		       flat ? "one limit" : "one each of as many clients, three levels");
	for (uint32_t i = 0; i < hungry; i++)
		limits_flow_close(&flows[i], world.now_ns);
	world_close(&world);
	free(flows);
}

static void
cost_of_takes(struct limit_flow *flows, uint32_t count, struct world *world, const char *what)
{
	const uint32_t rounds = 3000000;
	uint64_t begin_ns = cpu_now_ns();

	for (uint32_t i = 0; i < rounds; i++) {
		struct limit_flow *flow = &flows[i % count];
		world->now_ns += 100;
		limits_spend(flow, limits_take(flow, 1000, world->now_ns));
		limits_give_back(flow);
	}
	printf("take at once, path of 3, %s: %.0f ns\n", what,
	       seconds_since(begin_ns) * 1e9 / rounds);
}

/* --- a large tree ----------------------------------------------------------------------------------- */

/* Of the active ones one in a hundred is hungry; the others move 1/1 to 1/1000 of what they could. */
static uint64_t
demand(struct world *world, uint64_t fair)
{
	if (!world_random(world, 100))
		return 0;
	uint64_t rate = fair * 2 / (1 + world_random(world, 1000));
	return rate ? rate : 1;
}

/* Among the hungry ones of each network: networks share by weight, however many clients they have. The
 * mean over all networks with two or more. */
static double
jain_of_hungry(const struct mover *movers, const uint64_t *before, uint32_t active, uint32_t nodes,
	       uint64_t *hungry)
{
	double sum = 0, squares = 0, jains = 0;
	uint32_t net = 0, count = 0, nets = 0;

	*hungry = 0;
	for (uint32_t i = 0; i <= active; i++) {
		uint32_t at = (uint32_t)((uint64_t)i * nodes / active / CLIENTS_OF_NET);
		if (i == active || at != net) {
			jains += count > 1 ? sum * sum / count / squares : 0;
			nets += count > 1;
			sum = squares = 0;
			count = 0;
			net = at;
		}
		if (i == active || movers[i].bytes_per_s)
			continue;
		double moved = (double)(movers[i].moved - before[i]);
		sum += moved;
		squares += moved * moved;
		count++;
		++*hungry;
	}
	return nets ? jains / nets : 1;
}

static uint64_t
worst_wait_ns(const struct mover *movers, uint32_t active)
{
	uint64_t worst_ns = 0;

	for (uint32_t i = 0; i < active; i++)
		if (!movers[i].bytes_per_s && movers[i].longest_ns > worst_ns)
			worst_ns = movers[i].longest_ns;
	return worst_ns;
}

static void
large_tree(uint32_t nodes, uint32_t active, uint64_t duration_ns)
{
	struct world world;
	struct limit_node **held = calloc(nodes, sizeof(struct limit_node *));
	struct mover *movers = calloc(active, sizeof(*movers));
	uint64_t *before = calloc(active, sizeof(*before)), hungry;
	uint64_t rate = (uint64_t)active * 1000, fair = 20000;

	world_open(&world, active);
	struct limit *uplink = declare(&world, "uplink", NULL, 0, rate);
	struct limit *net = declare(&world, "net", uplink, 22, 0);
	struct limit *client = declare(&world, "client", net, 32, 5 * fair);
	double memory = resident_bytes();
	uint64_t begin_ns = cpu_now_ns();
	for (uint32_t i = 0; i < nodes; i++)
		held[i] = node_of(&world, client, i);
	printf("%" PRIu32 " nodes: %.0f bytes each, %.2f us to make each\n", nodes,
	       (resident_bytes() - memory) / nodes, seconds_since(begin_ns) * 1e6 / nodes);
	for (uint32_t i = 0; i < active; i++) {
		movers[i].bytes_per_s = demand(&world, fair);
		world_add(&world, &movers[i], held[(uint64_t)i * nodes / active]);
	}
	begin_ns = cpu_now_ns();
	world_run(&world, world.now_ns + 2 * S);
	for (uint32_t i = 0; i < active; i++) {
		before[i] = movers[i].moved;
		movers[i].longest_ns = 0;
	}
	uint64_t total = uplink->only->bucket[LIMIT_DOWN].total, from_ns = world.now_ns;
	world_run(&world, world.now_ns + duration_ns);
	double took = seconds_since(begin_ns), invented = (double)(world.now_ns - from_ns) / 1e9;
	double passed = (double)(uplink->only->bucket[LIMIT_DOWN].total - total) / invented;
	double jain = jain_of_hungry(movers, before, active, nodes, &hungry);
	printf("%" PRIu32 " active, %" PRIu64 " of them hungry, under %" PRIu64
	       " MB/s: %.1f MB/s passed, %" PRIu64 " grants, %.0f grants for each second of CPU\n",
	       active, hungry, rate / MB, passed / 1e6, world.grants, (double)world.grants / took);
	printf("hungry over %.0f s: Jain %.4f within a network; their longest wait between two "
	       "grants "
	       "%.0f ms\n",
	       invented, jain, (double)worst_wait_ns(movers, active) / 1e6);
	for (uint32_t i = 0; i < active; i++)
		world_drop(&world, &movers[i]);
	for (uint32_t i = 0; i < nodes; i++)
		limits_release(held[i], world.now_ns);
	world_close(&world);
	free(held);
	free(movers);
	free(before);
}

static void
takes(uint32_t nodes)
{
	struct world world;
	struct limit_flow *flows = calloc(nodes, sizeof(*flows));

	world_open(&world, 1);
	struct limit *uplink = declare(&world, "uplink", NULL, 0, 18000 * MB);
	struct limit *net = declare(&world, "net", uplink, 22, 18000 * MB);
	struct limit *client = declare(&world, "client", net, 32, 18000 * MB);
	for (uint32_t i = 0; i < nodes; i++) {
		struct limit_node *node = node_of(&world, client, i);
		if (limits_flow_open(&flows[i], &world.worker, node, LIMIT_DOWN, world.now_ns,
				     NULL) < 0)
			exit(1);
		limits_release(node, world.now_ns);
	}
	cost_of_takes(flows, 1, &world, "hot");
	cost_of_takes(flows, nodes, &world, "each of all in turn");
	for (uint32_t i = 0; i < nodes; i++)
		limits_flow_close(&flows[i], world.now_ns);
	world_close(&world);
	free(flows);
}

int
main(int argc, char **argv)
{
	static const uint32_t sizes[] = { 10, 1000, 100000, 1000000 };
	uint32_t nodes = argc > 1 ? (uint32_t)atol(argv[1]) : 1000000;
	uint32_t active = argc > 2 ? (uint32_t)atol(argv[2]) : 100000;
	uint64_t seconds = argc > 3 ? (uint64_t)atol(argv[3]) : 10;

	if (!nodes || !active || active > nodes || !seconds) {
		fprintf(stderr, "usage: limits-sim [NODES [ACTIVE [SECONDS]]]\n");
		return 2;
	}
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		for (int flat = 1; flat >= 0 && sizes[i] <= nodes; flat--)
			cost_of_grants(sizes[i], nodes, flat);
	takes(nodes);
	large_tree(nodes, active, seconds * S);
	return 0;
}
