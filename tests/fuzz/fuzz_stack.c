/* A script of cuts, rooms and flushes over two stacks that face each other with the same chain of registered
 * filters, drawn from the first bytes, each of them any number of times: whatever its course, nothing is lost, changed or invented, nothing grows
 * past its room and a record, a stack at rest is at rest, each flow ends once and behind its last byte, and a
 * wire that is cut is a truncation wherever a filter of the chain has an end mark. */
#include "../unit/stack_ends.h"
#include "config_value.h"
#include "filters/registry.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define CANDIDATES      9
#define CHAIN_MOST      5
#define CORE_MOST_BYTES (200 * 1024) /* each side sends: fewer than fail_after lets pass */

enum { NEAR = FILTER_NEAR, FAR = FILTER_FAR, SIDES = 2 };

struct end {
	struct facts facts;
	struct stack *stack;
	struct stack_flow flows[FILTER_FLOWS];
	size_t room_bytes[FILTER_FLOWS];
	struct failure why;
	bool has_failed, was_ended[FILTER_FLOWS], finishes, was_ready;
	size_t sent, got; /* core bytes */
	bool wire_is_cut; /* of what comes to this end */
};

static struct chain_link candidates[CANDIDATES];
static size_t candidate_count;

static struct chain_link links[CHAIN_MOST];
static struct chain chain = { .at = links };
static bool has_mark;
static size_t headers; /* filters that pass behind theirs; an end within it is a truncation */
/* TLS does at its mark: what the filters outside of it still have is left there. */
static bool ends_earlier;
static struct end ends[SIDES];

/* Of whom the headers of the far end tell, to a near end that trusts its peer. */
static const struct facts client_facts = {
	.client = { .family = AF_INET, .port = 4711, .ip = { 192, 0, 2, 7 } },
	.peer = { .family = AF_INET, .port = 4711, .ip = { 192, 0, 2, 7 } },
	.accepted = { .family = AF_INET, .port = 443, .ip = { 198, 51, 100, 1 } },
	.target_host = "",
};

/* --- What can be had with a word or two ----------------------------------------------------- */

static bool
fits(const struct filter_type *type, const void *conf)
{
	struct failure why;
	return !type->fits || (type->fits(conf, FILTER_NEAR, &why) == 0 &&
			       type->fits(conf, FILTER_FAR, &why) == 0);
}

/* A section with its defaults but for one keyword; NULL if such a one does not fit both sides. */
static void *
configure(const struct filter_type *type, const char *keyword, const char *value)
{
	struct failure why;
	void *conf = calloc(1, type->conf_bytes ? type->conf_bytes : 1);
	bool is_right = conf != NULL;
	for (const struct keyword *row = type->keywords; is_right && row && row->name; row++) {
		if (keyword && strcmp(row->name, keyword) == 0)
			is_right = config_value_store(row, value, "/", conf, &why) == 0;
		else
			is_right = row->fallback && config_value_default(row, conf, &why) == 0;
	}
	is_right = is_right && (!type->configure || type->configure(conf, &why) == 0);
	if (is_right && fits(type, conf))
		return conf;
	if (conf && type->discard)
		type->discard(conf);
	if (conf && type->keywords)
		keyword_release(type->keywords, conf);
	free(conf);
	return NULL;
}

static void
add_candidate(const struct filter_type *type, const char *keyword, const char *value)
{
	const void *conf = configure(type, keyword, value);
	if (conf && candidate_count < CANDIDATES)
		candidates[candidate_count++] = (struct chain_link){ type, conf };
}

/* By a shared secret, without signatures, so that many scripts run in a second. */
static void
add_tls(void)
{
	static const char secrets[] = "fuzz:000102030405060708090a0b0c0d0e0f\n";
	char path[] = "/tmp/fuzz-stack-XXXXXX";
	int fd = mkstemp(path);
	if (fd < 0 || write(fd, secrets, sizeof(secrets) - 1) < 0 || close(fd) < 0)
		abort();
	add_candidate(registry_find("tls"), "psk", path);
	unlink(path);
}

static void
find_candidates(void)
{
	for (const struct filter_type *const *type = registry_filters; *type; type++) {
		add_candidate(*type, NULL, NULL);
		for (const struct keyword *row = (*type)->keywords; row && row->name; row++) {
			if (strcmp(row->name, "adaptive") == 0)
				add_candidate(*type, "adaptive", "true");
		}
	}
	add_tls();
	add_candidate(registry_find("proxy_protocol"), "trust", "192.0.2.0/24");
	if (candidate_count != CANDIDATES)
		abort();
}

/* --- One stack ------------------------------------------------------------------------------ */

static void __attribute__((noreturn)) violated(const char *what, int side)
{
	fprintf(stderr, "%s, %s; chain:", what, side == NEAR ? "near" : "far");
	for (size_t i = 0; i < chain.count; i++)
		fprintf(stderr, " %s", links[i].type->name);
	fprintf(stderr, "; failure: %s\n", ends[side].why.text);
	abort();
}

static unsigned char
core_byte(int side, size_t at)
{
	return (unsigned char)(at / 4096 % 2 ? at * at / 7 + (size_t)side : 'a' + at / 512 % 3);
}

static void
end_open(int side)
{
	struct end *end = &ends[side];
	*end = (struct end){ .room_bytes = { SIZE_MAX / 4, SIZE_MAX / 4 }, .facts = client_facts };
	stack_ends_open(end->flows, FILTER_NORMAL);
	if (stack_open(&end->stack, &chain, (enum filter_side)side, &end->facts, &end->why))
		violated("does not open", side);
}

static void
end_close(struct end *end)
{
	stack_close(end->stack);
	facts_release(&end->facts);
	stack_ends_close(end->flows);
}

static bool
all_is_said(const struct end *peer)
{
	return peer->flows[FILTER_OUT].ended && !evbuffer_get_length(peer->flows[FILTER_OUT].dst);
}

static void
take_core(int side)
{
	struct end *end = &ends[side];
	unsigned char bytes[4096];
	int count;
	while ((count = evbuffer_remove(end->flows[FILTER_IN].dst, bytes, sizeof(bytes))) > 0) {
		for (int i = 0; i < count; i++)
			if (bytes[i] != core_byte(!side, end->got++))
				violated("other bytes arrived", side);
	}
	if (end->got > ends[!side].sent)
		violated("more arrived than was sent", side);
}

static void
check_step(int side, enum filter_flow flow, size_t had_bytes)
{
	const struct end *end = &ends[side];
	size_t given = evbuffer_get_length(end->flows[flow].dst) - had_bytes;
	size_t room = end->room_bytes[flow];
	/* What waits for a filter that passes goes on whether there is room or not. */
	size_t passing = headers * (STACK_BETWEEN_BYTES + FILTER_RECORD_BYTES);
	if (given > passing + (room ? room + FILTER_RECORD_BYTES : 0))
		violated("grew past its room", side);
	if (end->was_ended[flow] && (given || (!end->has_failed && !end->flows[flow].ended)))
		violated("went on behind its end", side);
}

static enum stack_result
step_once(int side)
{
	struct end *end = &ends[side];
	size_t had[FILTER_FLOWS];
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		had[flow] = evbuffer_get_length(end->flows[flow].dst);
		end->flows[flow].room_bytes = end->room_bytes[flow];
	}
	enum stack_result result = stack_step(end->stack, end->flows, &end->why);
	end->has_failed = result == STACK_FAILED;
	for (int flow = 0; flow < FILTER_FLOWS; flow++)
		check_step(side, (enum filter_flow)flow, had[flow]);
	return result;
}

/* Returns whether anything moved. */
static bool
step(int side)
{
	struct end *end = &ends[side];
	if (end->has_failed)
		return false;
	enum stack_result result = step_once(side);
	if (end->has_failed) {
		if (!end->wire_is_cut || end->why.kind != FAILURE_TRUNCATED)
			violated("failed", side);
		return true;
	}
	if (end->was_ready && !stack_is_ready(end->stack))
		violated("is not ready any more", side);
	end->was_ready = stack_is_ready(end->stack);
	take_core(side);
	for (int flow = 0; flow < FILTER_FLOWS; flow++)
		end->was_ended[flow] = end->flows[flow].ended;
	if (end->was_ended[FILTER_IN] && !end->wire_is_cut &&
	    !(ends[!side].finishes && end->got == ends[!side].sent))
		violated("ended before its last byte", side);
	if (stack_kept_bytes(end->stack) >
	    chain.count * 2 * (FILTER_KEPT_BYTES + STACK_BETWEEN_BYTES + FILTER_RECORD_BYTES))
		violated("keeps too much", side);
	return result != STACK_REST;
}

/* --- The script ----------------------------------------------------------------------------- */

static void
speak(int side, size_t count)
{
	static unsigned char bytes[65536];
	struct end *end = &ends[side];
	if (end->finishes)
		return;
	if (count > CORE_MOST_BYTES - end->sent)
		count = CORE_MOST_BYTES - end->sent;
	for (size_t i = 0; i < count; i++)
		bytes[i] = core_byte(side, end->sent++);
	evbuffer_add(end->flows[FILTER_OUT].src, bytes, count);
}

static void
finish(int side)
{
	ends[side].finishes = true;
	ends[side].flows[FILTER_OUT].flush = FILTER_FINISHED;
}

/* From the wire of `side` to the other; the end follows the last byte. Returns whether anything moved. */
static bool
carry(int side, size_t count)
{
	struct stack_flow *said = &ends[side].flows[FILTER_OUT],
			  *in = &ends[!side].flows[FILTER_IN];
	if (ends[!side].wire_is_cut)
		return false;
	size_t length = evbuffer_get_length(said->dst);
	if (count > length)
		count = length;
	evbuffer_remove_buffer(said->dst, in->src, count);
	if (all_is_said(&ends[side]) && in->flush != FILTER_FINISHED) {
		in->flush = FILTER_FINISHED;
		return true;
	}
	return count != 0;
}

/* Nothing has changed since the last step, unless that has used up its room. */
static void
rest(int side)
{
	const struct end *end = &ends[side];
	for (int flow = 0; flow < FILTER_FLOWS; flow++)
		if (end->room_bytes[flow] && !end->flows[flow].room_bytes)
			return;
	if (!end->has_failed && step_once(side) != STACK_REST)
		violated("rested and could do more", side);
}

static void
set_flush(struct end *end, enum filter_flow flow, bool is_dry)
{
	if (end->flows[flow].flush != FILTER_FINISHED)
		end->flows[flow].flush = is_dry ? FILTER_FLUSH : FILTER_NORMAL;
}

static void
act(uint8_t what, uint8_t how)
{
	static const size_t rooms[] = { 0, 1, 7, 100, 5000, 65536, SIZE_MAX / 4, 0 };
	int side = what & 1;
	enum filter_flow flow = what & 2 ? FILTER_OUT : FILTER_IN;
	switch (what >> 2 & 7) {
	case 0:
	case 1:
		speak(side, (size_t)how * how);
		break;
	case 2:
		carry(side, (size_t)how * how);
		break;
	case 3:
		ends[side].room_bytes[flow] = rooms[how & 7];
		break;
	case 4:
		set_flush(&ends[side], flow, how & 1);
		break;
	case 5:
		if (how > 200)
			finish(side);
		break;
	case 6:
		step(side);
		if (how & 1)
			rest(side);
		break;
	default:
		carry(!side, SIZE_MAX);
		step(side);
		break;
	}
}

/* With room for all, and told that it is dry: everything that was said arrives. */
static void
settle(void)
{
	for (int side = 0; side < SIDES; side++) {
		for (int flow = 0; flow < FILTER_FLOWS; flow++) {
			ends[side].room_bytes[flow] = SIZE_MAX / 4;
			set_flush(&ends[side], (enum filter_flow)flow, true);
		}
	}
	for (int quiet = 0, turns = 0; quiet < 2; turns++) {
		bool moved = false;
		for (int side = 0; side < SIDES; side++) {
			moved |= step(side);
			moved |= carry(side, SIZE_MAX);
		}
		quiet = moved ? 0 : quiet + 1;
		if (turns > 1000000)
			violated("moves for ever", NEAR);
	}
}

static void
expect_all(bool has_ended)
{
	for (int side = 0; side < SIDES; side++) {
		const struct end *end = &ends[side];
		if (end->got != ends[!side].sent)
			violated("bytes are missing", side);
		for (int flow = 0; has_ended && flow < FILTER_FLOWS; flow++)
			if (!end->flows[flow].ended)
				violated("has no end", side);
		if (has_ended && !ends_earlier && stack_kept_bytes(end->stack))
			violated("keeps bytes behind its end", side);
	}
}

/* The wire to `side` ends where it is. What a filter has ended by its own mark before is no cut. */
static void
cut(int side)
{
	struct end *end = &ends[side];
	if (end->flows[FILTER_IN].flush == FILTER_FINISHED)
		return;
	end->wire_is_cut = true;
	end->flows[FILTER_IN].flush = FILTER_FINISHED;
	settle();
	bool has_ended = !end->has_failed && end->flows[FILTER_IN].ended;
	bool is_whole = ends[!side].finishes && end->got == ends[!side].sent;
	if (has_mark && !end->has_failed && !(has_ended && is_whole))
		violated("took a cut for an end", side);
	if (!has_ended && !end->has_failed)
		violated("did not end", side);
	if (!has_mark && !headers && end->has_failed)
		violated("failed at a cut", side);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	if (!candidate_count)
		find_candidates();
	if (size < 2)
		return 0;
	size_t at = 1;
	chain.count = bytes[0] % (CHAIN_MOST + 1);
	has_mark = ends_earlier = false;
	headers = 0;
	for (size_t i = 0; i < chain.count; i++) {
		links[i] = candidates[(at < size ? bytes[at++] : 0) % candidate_count];
		has_mark |= (links[i].type->traits & FILTER_END_MARK) != 0;
		headers += (links[i].type->traits & FILTER_TELLS_CLIENT) != 0;
		ends_earlier |= i && (links[i].type->traits & FILTER_ENCRYPTS);
	}
	end_open(NEAR);
	end_open(FAR);
	for (; at + 1 < size; at += 2)
		act(bytes[at], bytes[at + 1]);
	if (bytes[0] & 0x80) {
		cut(bytes[0] >> 6 & 1);
	} else {
		settle();
		expect_all(false);
		finish(NEAR);
		finish(FAR);
		settle();
		expect_all(true);
	}
	end_close(&ends[NEAR]);
	end_close(&ends[FAR]);
	return 0;
}
