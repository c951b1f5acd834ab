#include "target.h"

#include "clock.h"
#include "counted.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct target {
	struct counted counted; /* first: lists of several generations share it */
	atomic_uint active;     /* connections and attempts */
	_Atomic uint64_t failed_until_ns;
	atomic_bool fails;    /* the last connect of a client's failed */
	atomic_int health;    /* enum target_health, by checks */
	atomic_uint in_a_row; /* checks that speak against it */
	struct address address;
	uint64_t digest; /* of its text */
};

/* A place in the rotation: a target has as many as its weight. */
struct place {
	uint32_t index;  /* of the target */
	uint32_t number; /* of the place among those of the target, from 0 */
	uint32_t weight;
};

struct targets {
	struct counted counted; /* first */
	enum balance balance;
	atomic_uint turn;       /* counts dials, for the rotation */
	unsigned int most;      /* connections of each; 0 = no cap */
	struct place *rotation; /* owned */
	size_t places;
	size_t backups; /* the first of them */
	size_t count;
	struct target *at[];
};

static void
discard_target(struct counted *counted)
{
	struct target *target = (struct target *)counted;

	address_release(&target->address);
	free(target);
}

static void
discard_targets(struct counted *counted)
{
	struct targets *targets = (struct targets *)counted;

	for (size_t i = 0; i < targets->count; i++)
		counted_release(&targets->at[i]->counted);
	free(targets->rotation);
	free(targets);
}

/* Spreads what differs little over all of 64 bits (the finalizer of splitmix64). */
static uint64_t
mix(uint64_t number)
{
	number = (number ^ number >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	number = (number ^ number >> 27) * UINT64_C(0x94d049bb133111eb);
	return number ^ number >> 31;
}

static uint64_t
digest(const void *bytes, size_t length)
{
	const uint8_t *at = bytes;
	uint64_t number = length;

	while (length--)
		number = mix(number << 8 ^ *at++ ^ number);
	return number;
}

static struct target *
make_target(const struct address *address, struct failure *why)
{
	struct target *target = calloc(1, sizeof(*target));
	if (!target) {
		failure_set(why, FAILURE_MEMORY, "no memory for target %.120s", address->text);
		return NULL;
	}
	target->digest = digest(address->text, strlen(address->text));
	if (address_parse(address->text, &target->address, why) < 0) {
		free(target);
		return NULL;
	}
	counted_init(&target->counted, discard_target);
	return target;
}

static struct target *
find_target(const struct targets *targets, const char *text)
{
	for (size_t i = 0; targets && i < targets->count; i++)
		if (strcmp(targets->at[i]->address.text, text) == 0)
			return targets->at[i];
	return NULL;
}

static int
add_targets(struct targets *targets, const struct address_list *addresses,
	    const struct targets *previous, struct failure *why)
{
	for (size_t i = 0; i < addresses->count; i++) {
		struct target *target = find_target(previous, addresses->at[i].text);
		if (target)
			counted_hold(&target->counted);
		else if (!(target = make_target(&addresses->at[i], why)))
			return -1;
		targets->at[targets->count++] = target;
	}
	return 0;
}

/* Places of one target lie as far apart as can be: that of number n where (n + 1/2) / weight of the rotation
 * has passed. */
static int
compare_places(const void *a, const void *b)
{
	const struct place *place_a = a, *place_b = b;
	uint64_t at_a = (2 * (uint64_t)place_a->number + 1) * place_b->weight;
	uint64_t at_b = (2 * (uint64_t)place_b->number + 1) * place_a->weight;
	if (at_a != at_b)
		return at_a < at_b ? -1 : 1;
	return (place_a->index > place_b->index) - (place_a->index < place_b->index);
}

static int
make_rotation(struct targets *targets, const struct count_list *weights, struct failure *why)
{
	bool has_weights = weights && targets->balance != BALANCE_ORDER;
	size_t most = targets->count;

	for (size_t i = 0; has_weights && i < weights->count; i++)
		most += weights->at[i];
	targets->rotation = calloc(most, sizeof(*targets->rotation));
	if (!targets->rotation)
		return failure_set(why, FAILURE_MEMORY, "no memory for the targets");
	for (size_t i = 0; i < targets->count; i++) {
		uint32_t weight = has_weights && i < weights->count ? (uint32_t)weights->at[i] : 1;
		for (uint32_t number = 0; number < weight; number++)
			targets->rotation[targets->places++] =
				(struct place){ (uint32_t)i, number, weight };
	}
	if (has_weights)
		qsort(targets->rotation, targets->places, sizeof(*targets->rotation),
		      compare_places);
	return 0;
}

struct targets *
targets_configure(const struct address_list *connect, const struct targets_options *options,
		  const struct targets *previous, struct failure *why)
{
	static const struct address_list nothing;
	const struct address_list *backup = options->backup ? options->backup : &nothing;
	struct targets *targets = calloc(1, sizeof(*targets) + (connect->count + backup->count) *
								       sizeof(*targets->at));
	if (!targets) {
		failure_set(why, FAILURE_MEMORY, "no memory for the targets");
		return NULL;
	}
	counted_init(&targets->counted, discard_targets);
	targets->balance = options->balance;
	targets->most = (unsigned int)options->most;
	targets->backups = connect->count;
	if (add_targets(targets, connect, previous, why) < 0 ||
	    add_targets(targets, backup, previous, why) < 0 ||
	    make_rotation(targets, options->weights, why) < 0) {
		targets_release(targets);
		return NULL;
	}
	return targets;
}

void
targets_hold(struct targets *targets)
{
	counted_hold(&targets->counted);
}

void
targets_release(struct targets *targets)
{
	if (targets)
		counted_release(&targets->counted);
}

void
targets_disconnected(struct targets *targets, size_t index)
{
	atomic_fetch_sub_explicit(&targets->at[index]->active, 1, memory_order_relaxed);
}

size_t
targets_count(const struct targets *targets)
{
	return targets->count;
}

const struct address *
targets_address(const struct targets *targets, size_t index)
{
	return &targets->at[index]->address;
}

const char *
targets_name(const struct targets *targets, size_t index)
{
	return targets->at[index]->address.text;
}

unsigned int
targets_active(const struct targets *targets, size_t index)
{
	return atomic_load_explicit(&targets->at[index]->active, memory_order_relaxed);
}

uint64_t
targets_failed_until(const struct targets *targets, size_t index, uint64_t now_ns)
{
	uint64_t until_ns =
		atomic_load_explicit(&targets->at[index]->failed_until_ns, memory_order_relaxed);
	return until_ns > now_ns ? until_ns : 0;
}

enum target_health
targets_health(const struct targets *targets, size_t index)
{
	return (enum target_health)atomic_load_explicit(&targets->at[index]->health,
							memory_order_relaxed);
}

bool
targets_checked(struct targets *targets, size_t index, bool works, uint64_t rise, uint64_t fall)
{
	struct target *target = targets->at[index];
	enum target_health now = targets_health(targets, index);
	enum target_health says = works ? TARGET_WORKS : TARGET_FAILS;
	unsigned int in_a_row = 0;

	if (says != now)
		in_a_row = atomic_load_explicit(&target->in_a_row, memory_order_relaxed) + 1;
	if (says == now || (now != TARGET_UNCHECKED && in_a_row < (works ? rise : fall))) {
		atomic_store_explicit(&target->in_a_row, in_a_row, memory_order_relaxed);
		return false;
	}
	atomic_store_explicit(&target->in_a_row, 0, memory_order_relaxed);
	atomic_store_explicit(&target->health, (int)says, memory_order_relaxed);
	return true;
}

void
targets_unchecked(struct targets *targets, size_t index)
{
	atomic_store_explicit(&targets->at[index]->health, TARGET_UNCHECKED, memory_order_relaxed);
	atomic_store_explicit(&targets->at[index]->in_a_row, 0, memory_order_relaxed);
}

/* How little is to be expected of a target: a failed check outweighs a failure of late, and either that it is
 * a backup. */
static unsigned int
badness(const struct targets *targets, size_t index, uint64_t now_ns)
{
	unsigned int is_backup = index >= targets->backups ? 1 : 0;

	if (targets_health(targets, index) == TARGET_FAILS)
		return 4 + is_backup;
	return (targets_failed_until(targets, index, now_ns) ? 2 : 0) + is_backup;
}

/* The same for all of a client's connections: of an IPv6 address the network of 64 bits. */
static uint64_t
digest_client(const struct socket_address *client)
{
	if (!client || client->family == AF_UNSPEC)
		return 0;
	if (client->family == AF_UNIX)
		return digest(&client->uid, sizeof(client->uid));
	return digest(client->ip, client->family == AF_INET ? 4 : 8);
}

/* What speaks against a place, the least wins. With `source` each client has an order of its own of all places,
 * so a target that comes or goes moves only the clients that are, or were, its own. */
struct demerit {
	unsigned int badness;
	uint64_t load, weight; /* compared as load / weight */
};

static bool
is_less(const struct demerit *a, const struct demerit *b)
{
	if (a->badness != b->badness)
		return a->badness < b->badness;
	return a->load * b->weight < b->load * a->weight;
}

static struct demerit
judge(const struct targets *targets, const struct place *place, uint64_t client, uint64_t now_ns)
{
	struct demerit demerit = { badness(targets, place->index, now_ns), 0, 1 };

	if (targets->balance == BALANCE_LEAST) {
		demerit.load = (uint64_t)targets_active(targets, place->index) + 1;
		demerit.weight = place->weight;
	} else if (targets->balance == BALANCE_SOURCE) {
		demerit.load = mix(targets->at[place->index]->digest ^ mix(client + place->number));
	}
	return demerit;
}

/* The best target not tried yet: not failed and no backup, then with the fewest connections (least) or for this
 * client (source). Those that are as good as each other have their turns, whatever the others are. */
static size_t
choose(const struct targets *targets, const struct targets_search *search, uint64_t now_ns)
{
	size_t best = targets->count, ties = 0;
	struct demerit least = { 0 };

	for (size_t i = 0; i < targets->places; i++) {
		const struct place *place = &targets->rotation[i];
		if (search->tried[place->index])
			continue;
		struct demerit demerit = judge(targets, place, search->client, now_ns);
		if (ties && is_less(&least, &demerit))
			continue;
		if (!ties || is_less(&demerit, &least)) {
			best = place->index;
			least = demerit;
			ties = 0;
		}
		ties++;
	}
	assert(ties > 0); /* whoever calls has an untried one */
	size_t skip = search->turn % ties;
	for (size_t i = 0; ties > 1 && i < targets->places; i++) {
		const struct place *place = &targets->rotation[i];
		if (search->tried[place->index])
			continue;
		struct demerit demerit = judge(targets, place, search->client, now_ns);
		if (!is_less(&least, &demerit) && !is_less(&demerit, &least) && skip-- == 0)
			return place->index;
	}
	return best; /* another worker has changed what was counted */
}

void
targets_search(struct targets *targets, struct targets_search *search,
	       const struct socket_address *client, const size_t *only)
{
	search->untried = targets->count;
	search->client = digest_client(client);
	if (only) {
		memset(search->tried, true, targets->count * sizeof(search->tried[0]));
		search->tried[*only] = false;
		search->untried = 1;
	}
	if (targets->balance != BALANCE_ORDER)
		search->turn = atomic_fetch_add_explicit(&targets->turn, 1, memory_order_relaxed);
}

size_t
targets_choose(const struct targets *targets, struct targets_search *search, uint64_t now_ns)
{
	size_t index = choose(targets, search, now_ns);

	search->tried[index] = true;
	search->untried--;
	return index;
}

int
targets_take(struct targets *targets, size_t index, struct failure *why)
{
	struct target *target = targets->at[index];
	unsigned int active = atomic_load_explicit(&target->active, memory_order_relaxed);

	do
		if (targets->most && active >= targets->most)
			return failure_set(
				why, FAILURE_ADMISSION,
				"connect to %.120s: max_per_target: it has %u connections already",
				target->address.text, targets->most);
	while (!atomic_compare_exchange_weak_explicit(&target->active, &active, active + 1,
						      memory_order_relaxed, memory_order_relaxed));
	return 0;
}

/* A client's dial has come to that: whether it is a change. */
static bool
has_turned(struct target *target, bool fails)
{
	if (atomic_load_explicit(&target->fails, memory_order_relaxed) == fails)
		return false;
	return atomic_exchange_explicit(&target->fails, fails, memory_order_relaxed) != fails;
}

bool
targets_failed(struct targets *targets, size_t index, bool is_own, uint64_t now_ns)
{
	struct target *target = targets->at[index];

	atomic_store_explicit(&target->failed_until_ns, now_ns + TARGET_FAILED_S * NS_PER_S,
			      memory_order_relaxed);
	return !is_own && has_turned(target, true);
}

bool
targets_worked(struct targets *targets, size_t index, bool is_own)
{
	struct target *target = targets->at[index];

	atomic_store_explicit(&target->failed_until_ns, 0, memory_order_relaxed);
	return !is_own && has_turned(target, false);
}
