#include "config_check.h"

#include "config_groups.h"
#include "log.h"
#include "name_index.h"
#include "nearest.h"
#include "pair.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct check {
	struct generation *generation;
	struct config_places *listens; /* in the order of their addresses' texts */
	struct config_places *connects;
	const struct service *const *services;
	struct config_report *report;

	/* The search for cycles, by tunnel: */
	size_t *first_connect; /* tunnel_count + 1 indexes into connects */
	enum { NEW, ON_PATH, DONE } * states;
	size_t *hops; /* the most tunnels behind it */
	size_t *path; /* the tunnels from where the search began */
	size_t depth;
};

static struct tunnel_conf *
tunnel_of(const struct check *check, const struct config_place *place)
{
	return check->generation->tunnels[place->tunnel];
}

static const struct address *
listen_of(const struct check *check, const struct config_place *place)
{
	return &tunnel_of(check, place)->listen.at[place->index];
}

static const struct address *
connect_of(const struct check *check, const struct config_place *place)
{
	return tunnel_conf_target(tunnel_of(check, place), place->index);
}

/* ------------------------------------------------------------------ listeners */

static bool
has_no_port(const struct address *address)
{
	return address->kind == ADDRESS_IP && address->port == 0;
}

static int
compare_places(const void *a, const void *b, void *check)
{
	const struct config_place *place_a = a, *place_b = b;
	int order = strcmp(listen_of(check, place_a)->text, listen_of(check, place_b)->text);
	if (order == 0)
		order = (place_a->tunnel > place_b->tunnel) - (place_a->tunnel < place_b->tunnel);
	if (order == 0)
		order = (place_a->index > place_b->index) - (place_a->index < place_b->index);
	return order;
}

/* The first listener with that address, or NULL. */
static struct config_place *
find_listener(const struct check *check, const char *text)
{
	size_t low = 0, high = check->listens->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (strcmp(listen_of(check, &check->listens->at[middle])->text, text) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == check->listens->count ||
	    strcmp(listen_of(check, &check->listens->at[low])->text, text) != 0)
		return NULL;
	return &check->listens->at[low];
}

static bool
is_wildcard(const struct socket_address *address)
{
	static const uint8_t zeros[sizeof(address->ip)];
	return memcmp(address->ip, zeros, sizeof(zeros)) == 0;
}

static bool
is_loopback(const struct socket_address *address)
{
	static const uint8_t loopback_ipv6[16] = { [15] = 1 };
	if (address->family == AF_INET)
		return address->ip[0] == 127;
	return memcmp(address->ip, loopback_ipv6, sizeof(loopback_ipv6)) == 0;
}

/* A link-local address (RFC 4291 section 2.5.6) means nothing to the kernel without its zone. */
static bool
lacks_zone(const struct address *address)
{
	const struct socket_address *numeric = &address->numeric;
	return address->kind == ADDRESS_IP && numeric->family == AF_INET6 && !numeric->scope &&
	       numeric->ip[0] == 0xfe && (numeric->ip[1] & 0xc0) == 0x80;
}

static void
refuse_no_zone(const struct check *check, const struct config_place *place,
	       const struct address *address)
{
	int length = (int)strcspn(address->text, "]");
	config_report_error(check->report, place->origin,
			    "'%s' is link-local, which each interface has; write which, such as "
			    "%.*s%%eth0%s",
			    address->text, length, address->text, address->text + length);
}

/* The listener on every address of the machine with the family and port of `address`, or NULL. */
static struct config_place *
find_wildcard(const struct check *check, const struct socket_address *address)
{
	char text[SOCKET_ADDRESS_TEXT];
	struct socket_address wildcard = { .family = address->family, .port = address->port };
	return find_listener(check, socket_address_text(&wildcard, text));
}

static const struct service *
find_service(const struct check *check, const char *name)
{
	for (const struct service *const *service = check->services; *service; service++)
		if (strcmp((*service)->name, name) == 0)
			return *service;
	return NULL;
}

/* How many places from this one on share its address. */
static size_t
count_sharing(const struct check *check, size_t first)
{
	const struct address *address = listen_of(check, &check->listens->at[first]);
	size_t count = 1;
	while (!has_no_port(address) && first + count < check->listens->count &&
	       strcmp(listen_of(check, &check->listens->at[first + count])->text, address->text) ==
		       0)
		count++;
	return count;
}

static void
refuse_duplicate(const struct check *check, struct config_place *place, struct config_place *other)
{
	const struct address *address = listen_of(check, place);
	place->is_used = other->is_used = true; /* which of them is meant is not known */
	config_report_error(
		check->report, place->origin,
		"tunnel \"%s\" listens on %s, where tunnel \"%s\" listens already (%s:%u); "
		"choose another address",
		tunnel_of(check, place)->name, address->text, tunnel_of(check, other)->name,
		other->origin.file, other->origin.line);
}

/* Of those who share an address only one may take every client. */
static void
check_sharing(const struct check *check, size_t first, size_t count)
{
	struct config_place *rest = NULL;
	size_t errors = check->report->errors;
	for (size_t i = 0; i < count; i++) {
		struct config_place *place = &check->listens->at[first + i];
		bool is_twice = i > 0 && place[-1].tunnel == place->tunnel;
		if (is_twice)
			refuse_duplicate(check, place, place - 1);
		if (is_twice || tunnel_of(check, place)->match.origin.line)
			continue;
		if (rest)
			refuse_duplicate(check, place, rest);
		rest = place;
	}
	if (errors == check->report->errors)
		config_groups_join(check->generation, &check->listens->at[first], count,
				   check->report);
}

static void
check_covered(const struct check *check, const struct config_place *place)
{
	const struct address *address = listen_of(check, place);
	if (address->kind != ADDRESS_IP || has_no_port(address) || is_wildcard(&address->numeric))
		return;
	const struct config_place *wildcard = find_wildcard(check, &address->numeric);
	if (wildcard)
		config_report_warning(check->report, place->origin,
				      "%s is also covered by %s (%s:%u); the exact address wins: "
				      "its connections go "
				      "to tunnel \"%s\", all others to tunnel \"%s\"",
				      address->text, listen_of(check, wildcard)->text,
				      wildcard->origin.file, wildcard->origin.line,
				      tunnel_of(check, place)->name,
				      tunnel_of(check, wildcard)->name);
}

/* The family of who comes there; AF_UNSPEC = not known from the address. */
static sa_family_t
family_of_clients(const struct address *address)
{
	switch (address->kind) {
	case ADDRESS_IP:
		return address->numeric.family;
	case ADDRESS_UNIX:
	case ADDRESS_ABSTRACT:
		return AF_UNIX;
	default:
		return AF_UNSPEC;
	}
}

/* An allow of one family shuts the other out, which is easily overlooked. */
static void
check_allow(const struct check *check, const struct config_place *place)
{
	const struct tunnel_conf *tunnel = tunnel_of(check, place);
	const struct address *address = listen_of(check, place);
	sa_family_t family = family_of_clients(address);
	const char *all = family == AF_UNIX ? "unix" : family == AF_INET ? "0.0.0.0/0" : "::/0";

	if (!tunnel->allow.count || family == AF_UNSPEC || tunnel_conf_judges_late(tunnel))
		return;
	for (size_t i = 0; i < tunnel->allow.count; i++)
		if (tunnel->allow.at[i].base.family == family)
			return;
	config_report_warning(check->report, place->origin,
			      "tunnel \"%s\" lets nobody in at %s, as its allow lists none of "
			      "that family; leave the listener out or add to allow, such as "
			      "\"%s\" for all of them",
			      tunnel->name, address->text, all);
}

static void
check_listener(const struct check *check, const struct config_place *place)
{
	const struct address *address = listen_of(check, place);
	if (address->kind == ADDRESS_HOST)
		config_report_error(check->report, place->origin,
				    "'%s' is a host name; listen on an IP address, such as "
				    "127.0.0.1:%u",
				    address->text, address->port);
	if (address->kind == ADDRESS_INTERNAL && find_service(check, address->name))
		config_report_error(check->report, place->origin,
				    "'%s' is a built-in service; listen on another name",
				    address->text);
	if (lacks_zone(address))
		refuse_no_zone(check, place, address);
	check_covered(check, place);
	check_allow(check, place);
}

/* ------------------------------------------------------------------ targets */

static void
refuse_name(const struct check *check, const struct config_place *place, const char *name)
{
	struct nearest nearest;
	nearest_start(&nearest, name);
	for (const struct service *const *service = check->services; *service; service++)
		nearest_offer(&nearest, (*service)->name);
	for (size_t i = 0; i < check->listens->count; i++) {
		const struct address *address = listen_of(check, &check->listens->at[i]);
		if (address->kind == ADDRESS_INTERNAL)
			nearest_offer(&nearest, address->name);
	}
	if (nearest.best)
		config_report_error(check->report, place->origin,
				    "nothing listens on internal:%s; did you mean internal:%s?",
				    name, nearest.best);
	else
		config_report_error(check->report, place->origin,
				    "nothing listens on internal:%s; let a tunnel listen there",
				    name);
}

static void
resolve(const struct check *check, struct config_place *place)
{
	struct tunnel_conf *tunnel = tunnel_of(check, place);
	const struct address *address = connect_of(check, place);
	struct internal_target *internal = &tunnel->internal[place->index];
	internal->service = find_service(check, address->name);
	if (internal->service)
		return;
	struct config_place *listener = find_listener(check, address->text);
	if (!listener) {
		refuse_name(check, place, address->name);
		return;
	}
	const struct tunnel_conf *target = tunnel_of(check, listener);
	const struct tunnel_conf *front = target->fronts[listener->index];
	internal->tunnel = front ? front : target;
	place->next = (size_t)(listener - check->listens->at);
	for (size_t i = 0; i < count_sharing(check, place->next); i++)
		listener[i].is_used = true;
}

/* Internal names are left to the search for cycles. */
static bool
is_own_listener(const struct check *check, const struct config_place *place)
{
	const struct address *address = connect_of(check, place);
	const struct config_place *listener = find_listener(check, address->text);
	if (!listener && address->kind == ADDRESS_IP && is_loopback(&address->numeric))
		listener = find_wildcard(check, &address->numeric);
	return listener && listener->tunnel == place->tunnel;
}

static void
check_target(const struct check *check, struct config_place *place)
{
	const struct address *address = connect_of(check, place);
	if (address->kind == ADDRESS_INTERNAL)
		resolve(check, place);
	else if (address->kind == ADDRESS_SYSTEMD)
		config_report_error(check->report, place->origin,
				    "'%s' is a socket to listen on; connect to an address",
				    address->text);
	else if ((address->kind == ADDRESS_IP || address->kind == ADDRESS_HOST) &&
		 address->port == 0)
		config_report_error(check->report, place->origin,
				    "'%s' has no port to connect to; write one from 1 to 65535",
				    address->text);
	else if (lacks_zone(address) && !tunnel_of(check, place)->bind.numeric.scope)
		refuse_no_zone(check, place, address);
	else if (is_own_listener(check, place))
		config_report_error(check->report, place->origin,
				    "tunnel \"%s\" connects to itself at %s; connect to another "
				    "address",
				    tunnel_of(check, place)->name, address->text);
}

/* Two of one address would be told apart by nobody: neither in what is counted, nor in their checks. */
static void
check_twice(const struct check *check)
{
	struct name_index seen = { 0 };
	size_t tunnel = SIZE_MAX;

	for (size_t i = 0; i < check->connects->count; i++) {
		struct config_place *place = &check->connects->at[i];
		const char *text = connect_of(check, place)->text;
		if (place->tunnel != tunnel)
			name_index_clear(&seen);
		tunnel = place->tunnel;
		if (name_index_find(&seen, text))
			config_report_error(check->report, place->origin,
					    "'%s' stands twice among the targets of tunnel \"%s\"; "
					    "write it once, with weights if it is to get more",
					    text, tunnel_of(check, place)->name);
		else if (name_index_add(&seen, text, place) < 0)
			break; /* who has no memory here fails elsewhere */
	}
	name_index_clear(&seen);
}

/* `place` is where the tunnel's bind was written. */
static void
check_bind(const struct check *check, const struct config_place *place)
{
	const struct tunnel_conf *tunnel = tunnel_of(check, place);
	sa_family_t family = tunnel->bind.numeric.family;
	bool is_of_use = false;
	if (family == AF_UNSPEC)
		return; /* "": the kernel's choice */
	if (lacks_zone(&tunnel->bind))
		refuse_no_zone(check, place, &tunnel->bind);
	for (size_t i = 0; i < tunnel_conf_target_count(tunnel); i++) {
		const struct address *address = tunnel_conf_target(tunnel, i);
		is_of_use =
			is_of_use || address->kind == ADDRESS_IP || address->kind == ADDRESS_HOST;
		if (address->kind == ADDRESS_IP && address->numeric.family != family)
			config_report_error(check->report, place->origin,
					    "an %s address cannot reach the target %s; bind an %s "
					    "address",
					    family == AF_INET ? "IPv4" : "IPv6", address->text,
					    family == AF_INET ? "IPv6" : "IPv4");
	}
	if (!is_of_use && tunnel->connect.count)
		config_report_warning(
			check->report, place->origin,
			"bind has no effect, as no target has an IP address; leave it "
			"out");
}

/* `place` is where the tunnel's weights begin. */
static void
check_weights(const struct check *check, const struct config_place *place)
{
	const struct tunnel_conf *tunnel = tunnel_of(check, place);
	size_t weights = tunnel->weights.count, targets = tunnel->connect.count;
	if (targets && weights != targets)
		config_report_error(
			check->report, place->origin,
			"tunnel \"%s\" has %zu target%s in connect and %zu weight%s; write "
			"one for each of them, in the same order",
			tunnel->name, targets, targets == 1 ? "" : "s", weights,
			weights == 1 ? "" : "s");
	else if (tunnel->balance == BALANCE_ORDER)
		config_report_warning(
			check->report, place->origin,
			"weights have no effect with balance = \"order\", which takes "
			"the first that works; write \"round_robin\", \"least\" or "
			"\"source\", or leave them out");
}

/* ------------------------------------------------------------------ cycles of internal names */

/* `place` leads back to the tunnel `next`. */
static void
refuse_cycle(const struct check *check, const struct config_place *place, size_t next)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	if (!out) {
		config_report_error(check->report, place->origin,
				    "internal names form a cycle; let one tunnel of it connect "
				    "elsewhere");
		return;
	}
	size_t from = 0;
	while (check->path[from] != next)
		from++;
	for (size_t i = from; i < check->depth; i++)
		fprintf(out, "%s → ", check->generation->tunnels[check->path[i]]->name);
	fprintf(out, "%s", check->generation->tunnels[next]->name);
	if (fclose(out) == 0)
		config_report_error(check->report, place->origin,
				    "internal names form a cycle: %s; let one of them connect "
				    "elsewhere",
				    text);
	free(text);
}

/* Recursion as deep as the longest chain of tunnels, at most CONFIG_SECTIONS_MOST. */
static void search_cycles(struct check *check, size_t tunnel);

/* Goes on to every tunnel that may be chosen where `place` connects. */
static void
follow(struct check *check, const struct config_place *place)
{
	if (place->next == SIZE_MAX)
		return;
	size_t count = count_sharing(check, place->next);
	for (size_t i = 0; i < count; i++) {
		size_t next = check->listens->at[place->next + i].tunnel;
		if (check->states[next] == ON_PATH) {
			refuse_cycle(check, place, next);
			continue;
		}
		if (check->states[next] == NEW)
			search_cycles(check, next);
		if (check->hops[place->tunnel] <= check->hops[next])
			check->hops[place->tunnel] = check->hops[next] + 1;
	}
}

static void
check_hops(const struct check *check, size_t tunnel)
{
	const struct tunnel_conf *conf = check->generation->tunnels[tunnel];
	if (check->hops[tunnel] == TUNNEL_CONF_HOPS_MOST + 1) /* those before it are no news */
		config_report_error(check->report, conf->origin,
				    "tunnel \"%s\" leads through more than %d others by internal "
				    "names; connect it nearer to its target",
				    conf->name, TUNNEL_CONF_HOPS_MOST);
}

static void
search_cycles(struct check *check, size_t tunnel)
{
	check->states[tunnel] = ON_PATH;
	check->path[check->depth++] = tunnel;
	for (size_t i = check->first_connect[tunnel]; i < check->first_connect[tunnel + 1]; i++)
		follow(check, &check->connects->at[i]);
	check->depth--;
	check->states[tunnel] = DONE;
	check_hops(check, tunnel);
}

static void
check_cycles(struct check *check)
{
	size_t tunnels = check->generation->tunnel_count, at = 0;
	check->first_connect = calloc(tunnels + 1, sizeof(*check->first_connect));
	check->states = calloc(tunnels + 1, sizeof(*check->states));
	check->hops = calloc(tunnels + 1, sizeof(*check->hops));
	check->path = calloc(tunnels + 1, sizeof(*check->path));
	if (!check->first_connect || !check->states || !check->hops || !check->path) {
		config_report_error(check->report, (struct origin){ check->report->files[0], 0 },
				    "no memory to look for cycles; free some");
	} else {
		for (size_t i = 0; i <= tunnels; i++) {
			while (at < check->connects->count && check->connects->at[at].tunnel < i)
				at++;
			check->first_connect[i] = at;
		}
		for (size_t i = 0; i < tunnels; i++)
			if (check->states[i] == NEW)
				search_cycles(check, i);
	}
	free(check->first_connect);
	free(check->states);
	free(check->hops);
	free(check->path);
}

/* ------------------------------------------------------------------ the log */

int
config_check_log(const struct log_conf *log, struct failure *why)
{
	if (!log->origin.line || log_check_target(log->target, why) == 0)
		return 0;
	bool is_file = strncmp(log->target, "file:", 5) == 0;
	return failure_set(
		why, why->kind, "target: %s; %s", why->text,
		is_file ? "name a file that the daemon may write, in a directory that is there"
			: "write auto, stderr or file:PATH");
}

/* ------------------------------------------------------------------ all together */

static int
allocate_internal(const struct check *check)
{
	for (size_t i = 0; i < check->generation->tunnel_count; i++) {
		struct tunnel_conf *tunnel = check->generation->tunnels[i];
		tunnel->internal =
			calloc(tunnel_conf_target_count(tunnel) + 1, sizeof(*tunnel->internal));
		tunnel->fronts = calloc(tunnel->listen.count + 1, sizeof(*tunnel->fronts));
		if (!tunnel->internal || !tunnel->fronts)
			return -1;
	}
	return 0;
}

void
config_check_generation(struct generation *generation, struct config_places *listens,
			struct config_places *connects, const struct config_places *binds,
			const struct config_places *weights, const struct service *const *services,
			struct config_report *report)
{
	struct check check = { .generation = generation,
			       .listens = listens,
			       .connects = connects,
			       .services = services,
			       .report = report };
	struct failure why;
	if (allocate_internal(&check)) {
		config_report_error(report, (struct origin){ report->files[0], 0 },
				    "no memory for the internal names; free some");
		return;
	}
	if (listens->count)
		qsort_r(listens->at, listens->count, sizeof(*listens->at), compare_places, &check);
	for (size_t i = 0; i < generation->tunnel_count; i++)
		config_groups_prepare(generation->tunnels[i], report);
	for (size_t i = 0; i < listens->count; i++)
		check_listener(&check, &listens->at[i]);
	for (size_t i = 0; i < listens->count; i += count_sharing(&check, i))
		check_sharing(&check, i, count_sharing(&check, i));
	for (size_t i = 0; i < connects->count; i++)
		check_target(&check, &connects->at[i]);
	check_twice(&check);
	for (size_t i = 0; i < binds->count; i++)
		check_bind(&check, &binds->at[i]);
	for (size_t i = 0; i < weights->count; i++)
		if (weights->at[i].index == 0)
			check_weights(&check, &weights->at[i]);
	check_cycles(&check);
	if (config_check_log(&generation->log, &why) < 0)
		config_report_error(report, generation->log.origin, "%s", why.text);
	for (size_t i = 0; i < listens->count; i++) {
		const struct address *address = listen_of(&check, &listens->at[i]);
		if (address->kind == ADDRESS_INTERNAL && !listens->at[i].is_used &&
		    !find_service(&check, address->name))
			config_report_warning(
				report, listens->at[i].origin,
				"nobody connects to %s; leave it out or connect a tunnel "
				"to it",
				address->text);
	}
}
