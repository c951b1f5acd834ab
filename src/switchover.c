#include "switchover.h"

#include "admission.h"
#include "switchover_limits.h"
#include "systemd.h"
#include "target.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_BYTES 512

static int
prepare_tunnel(struct tunnel_conf *conf, const struct generation *current, struct failure *why)
{
	const struct tunnel_conf *previous = current ? generation_find(current, conf->name) : NULL;

	conf->live = admission_hold(conf->name, why);
	if (!conf->live)
		return -1;
	const struct targets_options options = {
		.balance = (enum balance)conf->balance,
		.backup = &conf->backup,
		.weights = &conf->weights,
		.most = conf->max_per_target,
	};
	conf->targets = targets_configure(&conf->connect, &options,
					  previous ? previous->targets : NULL, why);
	return conf->targets ? 0 : -1;
}

/* What makes a listener the same one in two generations: its address; where the kernel chooses the
 * port, its place in the file as well; of several sockets with one name, the number. */
static const char *
key_of(const struct tunnel_conf *conf, size_t index, unsigned int number, char *key, size_t size)
{
	const struct address *address = &conf->listen.at[index];
	if (address->kind == ADDRESS_IP && !address->port)
		snprintf(key, size, "%s of %s, %zu", address->text, conf->name, index);
	else if (number)
		snprintf(key, size, "%s, %u", address->text, number);
	else
		snprintf(key, size, "%s", address->text);
	return key;
}

/* A front counts as what it is: of one tunnel alone as that tunnel, of several for itself. */
static int
prepare_front(struct tunnel_conf *front, struct failure *why)
{
	const struct tunnel_group *group = front->group;
	front->live =
		admission_hold(group->count == 1 ? group->tunnels[0]->name : front->name, why);
	return front->live ? 0 : -1;
}

/* Under what a connection to that address is accepted. */
static const struct tunnel_conf *
accepts_for(const struct tunnel_conf *conf, size_t index)
{
	return conf->fronts[index] ? conf->fronts[index] : conf;
}

static bool
contains(const struct listeners *listeners, const struct listener *listener)
{
	return name_index_find(&listeners->keys, listener->key) == listener;
}

static bool
overlaps(const struct listeners *listeners, const struct address *address)
{
	for (size_t i = 0; i < listeners->count; i++)
		if (listener_overlaps(listeners->at[i], address))
			return true;
	return false;
}

/* How many listeners an address stands for: a name of systemd's for as many as it passed, but at least
 * one, which then fails to open. */
static unsigned int
listeners_of(const struct address *address)
{
	if (address->kind == ADDRESS_INTERNAL)
		return 0;
	unsigned int passed =
		address->kind == ADDRESS_SYSTEMD ? systemd_listen_count(address->name) : 1;
	return passed ? passed : 1;
}

/* What to look for, and where. */
struct search {
	const struct listeners *open;
	unsigned int workers;
	bool leaves_shut; /* tunnels that are shut get no listener */
	bool leaves_lost; /* one whose file is gone stays as it is */
	struct listeners *found;
};

/* The open one of that key, if it will do; the one that was there before is forgotten otherwise. */
static struct listener *
find_open(const struct search *search, const char *key)
{
	struct listener *listener = name_index_find(&search->open->keys, key);

	if (!listener || search->leaves_lost || !listener_is_lost(listener))
		return listener;
	listener_forget(listener); /* the new one is stored as the same */
	return NULL;
}

static int
listen_for(const struct tunnel_conf *conf, const struct search *search, struct failure *why)
{
	struct listeners *listeners = search->found;
	bool is_shut = search->leaves_shut && conf->live->is_shut;

	for (size_t i = 0; i < conf->listen.count; i++) {
		const struct address *address = &conf->listen.at[i];
		unsigned int count = listeners_of(address);
		for (unsigned int number = 0; number < count; number++) {
			char key[KEY_BYTES];
			key_of(conf, i, number, key, sizeof(key));
			if (name_index_find(&listeners->keys, key))
				continue; /* a tunnel before this one shares it */
			struct listener *listener = find_open(search, key);
			if (is_shut && !(listener && listener->is_inherited))
				continue;
			if (!listener)
				listener = listener_open(key, address, number, accepts_for(conf, i),
							 search->workers,
							 overlaps(search->open, address) ||
								 overlaps(listeners, address),
							 why);
			if (!listener)
				return failure_set(why, why->kind, "%s:%u: tunnel \"%s\": %s",
						   conf->origin.file, conf->origin.line, conf->name,
						   why->text);
			listeners->at[listeners->count++] = listener;
			if (name_index_add(&listeners->keys, listener->key, listener) < 0)
				return failure_set(why, FAILURE_MEMORY, "no memory for listeners");
		}
	}
	return 0;
}

static int
make_room(const struct generation *generation, struct listeners *listeners, struct failure *why)
{
	size_t most = 0;

	for (size_t i = 0; i < generation->tunnel_count; i++)
		for (size_t j = 0; j < generation->tunnels[i]->listen.count; j++)
			most += listeners_of(&generation->tunnels[i]->listen.at[j]);
	*listeners = (struct listeners){ 0 };
	listeners->at = calloc(most ? most : 1, sizeof(struct listener *));
	if (!listeners->at)
		return failure_set(why, FAILURE_MEMORY, "no memory for %zu listeners", most);
	return 0;
}

int
switchover_prepare(struct generation *next, const struct incumbent *before, unsigned int workers,
		   struct limits *limits, struct listeners *listeners, struct failure *why)
{
	const struct listeners *open = before->open;
	struct search search = { .open = open,
				 .workers = workers,
				 .leaves_shut = before->is_steered,
				 .found = listeners };

	if (make_room(next, listeners, why) < 0)
		return -1;
	if (switchover_limits_prepare(next, before->generation, limits, why) < 0) {
		switchover_close(listeners, open);
		return -1;
	}
	for (size_t i = 0; i < next->front_count; i++)
		if (prepare_front(next->fronts[i], why) < 0) {
			switchover_abandon(next, listeners, open);
			return -1;
		}
	for (size_t i = 0; i < next->tunnel_count; i++)
		if (prepare_tunnel(next->tunnels[i], before->generation, why) < 0 ||
		    listen_for(next->tunnels[i], &search, why) < 0) {
			switchover_abandon(next, listeners, open);
			return -1;
		}
	return 0;
}

int
switchover_listen(const struct generation *generation, const struct listeners *open,
		  unsigned int workers, struct listeners *listeners, struct failure *why)
{
	struct search search = { .open = open,
				 .workers = workers,
				 .leaves_shut = true,
				 .leaves_lost = true,
				 .found = listeners };

	if (make_room(generation, listeners, why) < 0)
		return -1;
	for (size_t i = 0; i < generation->tunnel_count; i++)
		if (listen_for(generation->tunnels[i], &search, why) < 0) {
			switchover_close(listeners, open);
			return -1;
		}
	return 0;
}

void
switchover_abandon(struct generation *next, struct listeners *listeners,
		   const struct listeners *open)
{
	switchover_close(listeners, open);
	switchover_limits_abandon(next);
}

void
switchover_finish(const struct generation *old, const struct generation *next)
{
	if (old)
		switchover_limits_finish(old, next);
	for (size_t i = 0; i < next->tunnel_count; i++) {
		const struct tunnel_conf *conf = next->tunnels[i];
		for (size_t j = 0; !conf->check.origin.line && j < tunnel_conf_target_count(conf);
		     j++)
			targets_unchecked(conf->targets, j);
	}
}

void
switchover_commit(struct generation *next, const struct incumbent *before,
		  const struct listeners *listeners)
{
	switchover_limits_commit(next, before->is_steered ? before->generation : NULL);
	for (size_t i = 0; i < next->tunnel_count; i++) {
		const struct tunnel_conf *conf = next->tunnels[i];
		if (!before->is_steered) {
			conf->live->is_shut = false;
			atomic_store(&conf->live->drained, false);
		}
		for (size_t j = 0; j < conf->listen.count; j++) {
			unsigned int count = listeners_of(&conf->listen.at[j]);
			for (unsigned int number = 0; number < count; number++) {
				char key[KEY_BYTES];
				key_of(conf, j, number, key, sizeof(key));
				struct listener *listener = name_index_find(&listeners->keys, key);
				if (listener)
					listener_adopt(listener, accepts_for(conf, j));
			}
		}
	}
}

void
switchover_store(const struct listeners *old, const struct listeners *kept)
{
	bool forgot = false;

	for (size_t i = 0; i < kept->count; i++)
		listener_store(kept->at[i]);
	for (size_t i = 0; i < old->count; i++)
		if (!contains(kept, old->at[i]))
			forgot |= listener_forget(old->at[i]);
	if (forgot)
		systemd_settle();
}

void
switchover_close(struct listeners *old, const struct listeners *kept)
{
	for (size_t i = 0; i < old->count; i++)
		if (!contains(kept, old->at[i]))
			listener_close(old->at[i]);
	free(old->at);
	name_index_clear(&old->keys);
	old->at = NULL;
	old->count = 0;
}
