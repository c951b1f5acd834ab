/* Two TLS filters with a wire between them, and a script that says what the wire does: how much it
 * carries, which bits it turns, what it adds, when it ends, and how much room there is. Whatever comes of it,
 * nothing but a prefix of what one core said reaches the other, and an end only behind all of it. */
#include "../unit/stack_ends.h"
#include "config_value.h"
#include "filters/registry.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define SECRETS "fuzz:000102030405060708090a0b0c0d0e0f\n"

struct end {
	struct chain_link link;
	struct chain chain;
	struct facts facts;
	struct stack *stack;
	struct stack_flow flows[FILTER_FLOWS];
	struct failure why;
	bool has_failed;
	size_t sent, got;
};

/* A section of shared secrets: no signatures, so that many scripts run in a second. */
static void *
make_section(const char *version)
{
	char path[] = "/tmp/fuzz-tls-XXXXXX";
	const struct filter_type *type = registry_find("tls");
	struct failure why;
	int fd = mkstemp(path);
	if (fd < 0 || write(fd, SECRETS, strlen(SECRETS)) < 0 || close(fd) < 0)
		abort();
	void *conf = calloc(1, type->conf_bytes);
	for (const struct keyword *row = type->keywords; conf && row->name; row++) {
		const char *text = strcmp(row->name, "psk") == 0           ? path
				   : strcmp(row->name, "max_version") == 0 ? version
									   : NULL;
		if (text ? config_value_store(row, text, "/", conf, &why)
			 : config_value_default(row, conf, &why))
			abort();
	}
	if (!conf || type->configure(conf, &why))
		abort();
	unlink(path);
	return conf;
}

static void
open_end(struct end *end, const void *conf, enum filter_side side)
{
	*end = (struct end){ .link = { registry_find("tls"), conf } };
	end->chain = (struct chain){ &end->link, 1 };
	end->facts.target_host = "";
	stack_ends_open(end->flows, FILTER_FLUSH);
	if (stack_open(&end->stack, &end->chain, side, &end->facts, &end->why))
		abort();
}

static void
close_end(struct end *end)
{
	stack_close(end->stack);
	facts_release(&end->facts);
	stack_ends_close(end->flows);
}

static void
say(struct end *end, size_t count)
{
	while (end->flows[FILTER_OUT].flush != FILTER_FINISHED && count--) {
		unsigned char byte = (unsigned char)(end->sent++ % 251);
		evbuffer_add(end->flows[FILTER_OUT].src, &byte, 1);
	}
}

static void
step(struct end *end, const struct end *peer, size_t room)
{
	unsigned char byte;
	if (end->has_failed)
		return;
	end->flows[FILTER_IN].room_bytes = end->flows[FILTER_OUT].room_bytes = room;
	end->has_failed = stack_step(end->stack, end->flows, &end->why) == STACK_FAILED;
	if (end->has_failed && !end->why.text[0])
		abort();
	if (!end->has_failed && stack_kept_bytes(end->stack) > 2 * FILTER_KEPT_BYTES)
		abort();
	while (evbuffer_remove(end->flows[FILTER_IN].dst, &byte, 1) == 1)
		if (byte != end->got++ % 251 || end->got > peer->sent)
			abort();
	if (!end->has_failed && end->flows[FILTER_IN].ended && end->got != peer->sent)
		abort();
}

/* What `from` said reaches `to`, up to `count` bytes, one of them changed by `mask`. */
static void
carry(struct end *from, struct end *to, size_t count, unsigned char mask)
{
	unsigned char byte;
	if (to->flows[FILTER_IN].flush == FILTER_FINISHED)
		return;
	while (count-- && evbuffer_remove(from->flows[FILTER_OUT].dst, &byte, 1) == 1) {
		byte ^= mask;
		mask = 0;
		evbuffer_add(to->flows[FILTER_IN].src, &byte, 1);
	}
}

static void
obey(struct end ends[2], uint8_t order, uint8_t amount)
{
	struct end *end = &ends[order & 1], *peer = &ends[!(order & 1)];
	switch (order >> 1 & 7) {
	case 0:
	case 1:
		carry(peer, end, (size_t)amount * amount + 1, 0);
		break;
	case 2:
		say(end, (size_t)amount * 64);
		break;
	case 3:
		carry(peer, end, amount + 1u, order & 0x80 ? (unsigned char)(order | 1) : 0);
		break;
	case 4:
		if (end->flows[FILTER_IN].flush != FILTER_FINISHED && amount & 0x80)
			evbuffer_add(end->flows[FILTER_IN].src, &amount, 1);
		break;
	case 5:
		end->flows[FILTER_OUT].flush = FILTER_FINISHED;
		break;
	case 6:
		if (amount > 250)
			end->flows[FILTER_IN].flush = FILTER_FINISHED;
		break;
	default:
		break; /* only a step */
	}
	step(end, peer, order & 0x40 ? amount & 7 : (size_t)1 << 18);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static void *sections[2];
	struct end ends[2];
	if (!sections[0]) {
		sections[0] = make_section("1.2");
		sections[1] = make_section("1.3");
	}
	if (!size || size > 4096)
		return 0;
	open_end(&ends[FILTER_NEAR], sections[bytes[0] & 1], FILTER_NEAR);
	open_end(&ends[FILTER_FAR], sections[bytes[0] >> 1 & 1], FILTER_FAR);
	step(&ends[FILTER_FAR], &ends[FILTER_NEAR], 1 << 18);
	for (size_t i = 1; i + 1 < size; i += 2)
		obey(ends, bytes[i], bytes[i + 1]);
	close_end(&ends[FILTER_NEAR]);
	close_end(&ends[FILTER_FAR]);
	return 0;
}
