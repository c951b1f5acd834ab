/*
 * The contract of filter.h, for every registered filter: a near and a far instance face each other
 * over a wire that is cut in every way, and each step is watched. A new filter needs a row in
 * `rows` and nothing else to be tested. A filter of the test's own, `framer`, breaks each rule in
 * turn to show that the watching works. SEED=n repeats the random cuts.
 */
#include "config_value.h"
#include "filters/registry.h"
#include "stack_ends.h"
#include "tls_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */

#include <cmocka.h>
/* clang-format on */

/* A keyword of the filter's section and what an operator would write there. */
struct setting {
	const char *keyword, *text;
};

#define SETTINGS 16

struct row {
	const char *filter;
	struct setting near[SETTINGS], far[SETTINGS];
	size_t mark_bytes; /* without FILTER_END_MARK: `in` of near wants at least so many */
};

/* Files of the test's own making. */
static char authority_file[128], certificate_file[128], psk_file[128];

static const struct row rows[] = {
	{ .filter = "zlib" },
	{ .filter = "zlib",
	  .near = { { "window", "512B" }, { "level", "9" }, { "adaptive", "true" } },
	  .far = { { "window", "512B" }, { "level", "1" } } },
	{ .filter = "zstd" },
	{ .filter = "zstd",
	  .near = { { "window", "1KiB" }, { "level", "9" }, { "adaptive", "true" } },
	  .far = { { "window", "1KiB" }, { "level", "1" } } },
	{ .filter = "tls",
	  .near = { { "certificate", certificate_file } },
	  .far = { { "ca", authority_file }, { "server_name", "near.example" } } },
	{ .filter = "tls",
	  .near = { { "psk", psk_file }, { "max_version", "1.2" } },
	  .far = { { "psk", psk_file } } },
#ifdef PENSTOCK_TEST_DOUBLES
	{ .filter = "stutter", .near = { { "seed", "5" } }, .far = { { "seed", "6" } } },
	{ .filter = "hoard" },
	{ .filter = "fail_after" },
#endif
	{ .filter = "proxy_protocol", .near = { { "trust", "192.0.2.0/24" } }, .mark_bytes = 35 },
	{ .filter = "proxy_protocol",
	  .near = { { "trust", "192.0.2.0/24" } },
	  .far = { { "version", "1" } },
	  .mark_bytes = sizeof("PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n") - 1 },
	{ .filter = NULL }, /* for a build without any filter */
};

/* --- What went wrong ------------------------------------------------------------------------ */

static char violation[256]; /* the first one; "" = none */
static uint64_t seed = 1;

static void __attribute__((format(printf, 1, 2))) violate(const char *format, ...)
{
	if (violation[0])
		return;
	va_list args;
	va_start(args, format);
	vsnprintf(violation, sizeof(violation), format, args);
	va_end(args);
}

static size_t
draw(size_t below)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (size_t)(seed >> 33) % below;
}

static size_t
lesser(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* --- A filter that is watched in each step -------------------------------------------------- */

struct watched_conf {
	const struct filter_type *type;
	const void *conf;
};

struct watched {
	const struct filter_type *type;
	void *state;
	bool is_over[FILTER_FLOWS], was_ready, has_failed;
};

#define COPY_BYTES 4096 /* buffers up to this size are compared byte by byte */

struct before {
	size_t length;
	unsigned char bytes[COPY_BYTES];
};

static void
look(struct before *before, struct evbuffer *buffer)
{
	before->length = evbuffer_get_length(buffer);
	if (before->length <= COPY_BYTES)
		evbuffer_copyout(buffer, before->bytes, before->length);
}

/* Whether `buffer` is what it was, less `drained` bytes at its front, perhaps longer. */
static bool
is_same(const struct before *before, size_t drained, struct evbuffer *buffer)
{
	unsigned char now[COPY_BYTES];
	size_t length = before->length - drained;
	if (before->length > COPY_BYTES)
		return true;
	return evbuffer_copyout(buffer, now, length) == (ev_ssize_t)length &&
	       memcmp(now, before->bytes + drained, length) == 0;
}

static void *
watched_open(const void *opaque, enum filter_side side, struct facts *facts, struct failure *why)
{
	const struct watched_conf *conf = opaque;
	struct watched *watched = calloc(1, sizeof(*watched));
	assert_non_null(watched);
	watched->type = conf->type;
	watched->state = conf->type->open(conf->conf, side, facts, why);
	if (!watched->state)
		violate("open failed: %s", why->text);
	return watched;
}

static void
watched_close(void *opaque)
{
	struct watched *watched = opaque;
	if (watched->state)
		watched->type->close(watched->state);
	free(watched);
}

static bool
watched_ready(const void *opaque)
{
	const struct watched *watched = opaque;
	return !watched->type->ready || watched->type->ready(watched->state);
}

static size_t
watched_kept(const void *opaque)
{
	const struct watched *watched = opaque;
	return watched->type->kept ? watched->type->kept(watched->state) : 0;
}

static void
watch_result(struct watched *watched, enum filter_flow flow, enum filter_result result,
	     const struct filter_io *io, bool moved)
{
	bool is_ready = watched_ready(watched);
	if (watched->was_ready && !is_ready)
		violate("rule 9: not ready any more");
	watched->was_ready = is_ready;
	if (watched_kept(watched) > 2 * FILTER_KEPT_BYTES)
		violate("rule 5: keeps %zu bytes", watched_kept(watched));

	switch (result) {
	case FILTER_REST:
		break;
	case FILTER_MORE:
		if (!moved)
			violate("rule 3: more without a move");
		break;
	case FILTER_END:
	case FILTER_PASS:
		watched->is_over[flow] = true;
		if (result == FILTER_PASS && watched->is_over[!flow] && !is_ready)
			violate("rule 10: passed and not ready");
		break;
	case FILTER_FAIL:
		watched->has_failed = true;
		if (io->why->kind == FAILURE_NONE || !io->why->text[0])
			violate("rule 7: a failure without kind or text");
		break;
	}
}

/* Rest means rest: with nothing changed, another step does nothing. */
static void
watch_rest(struct watched *watched, enum filter_flow flow, const struct filter_io *io, size_t given)
{
	if (given >= io->room_bytes)
		return; /* no room is a change */
	struct filter_io again = *io;
	again.room_bytes = io->room_bytes - given;
	size_t src = evbuffer_get_length(io->src), dst = evbuffer_get_length(io->dst);
	enum filter_result result = watched->type->step(watched->state, flow, &again);
	if (result != FILTER_REST || evbuffer_get_length(io->src) != src ||
	    evbuffer_get_length(io->dst) != dst)
		violate("rule 3: rested and could do more");
}

static enum filter_result
watched_step(void *opaque, enum filter_flow flow, struct filter_io *io)
{
	struct watched *watched = opaque;
	struct before src, dst;
	look(&src, io->src);
	look(&dst, io->dst);
	if (watched->is_over[flow] || watched->has_failed)
		violate("the stack stepped a flow that was over");

	*io->why = (struct failure){ .kind = FAILURE_NONE };
	enum filter_result result = watched->type->step(watched->state, flow, io);
	size_t left = evbuffer_get_length(io->src), now = evbuffer_get_length(io->dst);
	if (left > src.length || !is_same(&src, src.length - left, io->src)) {
		violate("rule 1: src is changed");
	} else if (now < dst.length || !is_same(&dst, 0, io->dst)) {
		violate("rule 1: the front of dst is changed");
	} else {
		size_t given = now - dst.length;
		bool moved = left != src.length || given;
		if (given && !io->room_bytes)
			violate("rule 2: gave %zu bytes without room", given);
		if (given > io->room_bytes + FILTER_RECORD_BYTES)
			violate("rule 2: gave %zu bytes into room for %zu", given, io->room_bytes);
		watch_result(watched, flow, result, io, moved);
		if (result == FILTER_REST && moved)
			watch_rest(watched, flow, io, given);
	}
	return result;
}

static const struct filter_type watched_type = {
	.name = "watched",
	.conf_bytes = sizeof(struct watched_conf),
	.open = watched_open,
	.step = watched_step,
	.ready = watched_ready,
	.kept = watched_kept,
	.close = watched_close,
};

/* --- Two instances and the wire between them ------------------------------------------------ */

enum cut { CUT_WHOLE, CUT_BYTES, CUT_RANDOM };

enum { NEAR = FILTER_NEAR, FAR = FILTER_FAR, SIDES = 2 };

struct plan {
	enum cut cut;
	size_t core_bytes;        /* each side sends so many */
	bool finishes;            /* and then ends */
	size_t wire_bytes[SIDES]; /* so many that a side says reach the other, then the wire ends */
	bool wire_stays_open;     /* then it goes silent instead */
	size_t flip_at; /* this byte (counted from 1) that far says is damaged; 0 = none */
	bool wire_out_is_full[SIDES], core_in_is_full[SIDES]; /* no room there */
};

struct end {
	struct watched_conf conf;
	struct chain_link link;
	struct chain chain;
	struct facts facts;
	struct stack *stack;
	struct stack_flow flows[FILTER_FLOWS];
	struct failure why;
	bool has_failed;
	size_t sent, got;      /* core bytes */
	bool got_other;        /* not what was sent */
	size_t heard;          /* wire bytes that came from the other end */
	bool wire_is_complete; /* all that the other end said, its end included */
};

struct talk {
	struct end ends[SIDES];
	struct plan plan;
};

/* 192.0.2.7:4711 has connected to 198.51.100.1:443. */
static const struct facts client_facts = {
	.client = { .family = AF_INET, .port = 4711, .ip = { 192, 0, 2, 7 } },
	.peer = { .family = AF_INET, .port = 4711, .ip = { 192, 0, 2, 7 } },
	.accepted = { .family = AF_INET, .port = 443, .ip = { 198, 51, 100, 1 } },
	.target_host = "",
};

static const char *
side_name(int side)
{
	return side == NEAR ? "near" : "far";
}

static unsigned char
core_byte(int side, size_t at)
{
	return (unsigned char)(at / 64 % 2 ? at * 7 / 3 + (size_t)side : 'a');
}

static void
talk_open(struct talk *talk, const struct watched_conf confs[SIDES], struct plan plan)
{
	*talk = (struct talk){ .plan = plan };
	for (int side = 0; side < SIDES; side++) {
		struct end *end = &talk->ends[side];
		end->conf = confs[side];
		end->link = (struct chain_link){ .type = &watched_type, .conf = &end->conf };
		end->chain = (struct chain){ .at = &end->link, .count = 1 };
		end->facts = client_facts;
		stack_ends_open(end->flows, FILTER_NORMAL);
		assert_int_equal(stack_open(&end->stack, &end->chain, (enum filter_side)side,
					    &end->facts, &end->why),
				 0);
	}
}

static void
talk_close(struct talk *talk)
{
	for (int side = 0; side < SIDES; side++) {
		const struct socket_address *peer = &talk->ends[side].facts.peer;
		if (peer->family != client_facts.peer.family ||
		    peer->port != client_facts.peer.port ||
		    memcmp(peer->ip, client_facts.peer.ip, sizeof(peer->ip)) != 0)
			violate("rule 11: %s tells the socket's peer", side_name(side));
		stack_close(talk->ends[side].stack);
		facts_release(&talk->ends[side].facts);
		stack_ends_close(talk->ends[side].flows);
	}
}

static size_t
amount(enum cut cut, size_t most)
{
	if (cut == CUT_WHOLE || !most)
		return most;
	if (cut == CUT_BYTES)
		return 1;
	return lesser(most, draw(4) ? draw(20) : draw(5000));
}

static size_t
room(enum cut cut, bool is_full)
{
	if (is_full)
		return 0;
	return cut == CUT_WHOLE ? 1 << 20 : cut == CUT_BYTES ? 1 : draw(3) * draw(2000);
}

/* What the core gives to the end, and how it goes on. */
static bool
feed_core(struct talk *talk, int side, enum cut cut)
{
	struct end *end = &talk->ends[side];
	struct stack_flow *out = &end->flows[FILTER_OUT];
	size_t held = evbuffer_get_length(out->src);
	size_t most = held < 65536 ? lesser(talk->plan.core_bytes - end->sent, 65536) : 0;
	size_t count = amount(cut, most);
	for (size_t i = 0; i < count; i++) {
		unsigned char byte = core_byte(side, end->sent++);
		evbuffer_add(out->src, &byte, 1);
	}
	if (talk->plan.finishes && end->sent == talk->plan.core_bytes)
		out->flush = FILTER_FINISHED;
	else if (out->flush != FILTER_FINISHED)
		out->flush = cut == CUT_RANDOM && draw(2) ? FILTER_NORMAL : FILTER_FLUSH;
	out->room_bytes = room(cut, talk->plan.wire_out_is_full[side]);
	return count != 0;
}

/* What the wire carries to the end from the other, and how it goes on. */
static bool
feed_wire(struct talk *talk, int side, enum cut cut)
{
	struct end *end = &talk->ends[side], *peer = &talk->ends[!side];
	struct stack_flow *in = &end->flows[FILTER_IN], *said = &peer->flows[FILTER_OUT];
	size_t allowed = talk->plan.wire_bytes[!side] - end->heard;
	size_t held = evbuffer_get_length(in->src), waits = evbuffer_get_length(said->dst);
	size_t count = amount(cut, held < 65536 ? lesser(lesser(waits, allowed), 65536) : 0);

	for (size_t i = 0; i < count; i++) {
		unsigned char byte;
		evbuffer_remove(said->dst, &byte, 1);
		if (++end->heard == talk->plan.flip_at && side == NEAR)
			byte ^= 0x55;
		evbuffer_add(in->src, &byte, 1);
	}
	bool is_cut = end->heard == talk->plan.wire_bytes[!side];
	end->wire_is_complete = said->ended && !evbuffer_get_length(said->dst);
	if (end->wire_is_complete || (is_cut && !talk->plan.wire_stays_open) || peer->has_failed)
		in->flush = FILTER_FINISHED;
	else if (in->flush != FILTER_FINISHED)
		in->flush = cut == CUT_RANDOM && draw(2) ? FILTER_NORMAL : FILTER_FLUSH;
	in->room_bytes = room(cut, talk->plan.core_in_is_full[side]);
	return count != 0;
}

static void
take_core(struct end *end, int side)
{
	unsigned char byte;
	while (evbuffer_remove(end->flows[FILTER_IN].dst, &byte, 1) == 1) {
		if (byte != core_byte(!side, end->got++))
			end->got_other = true;
	}
}

static bool
turn(struct talk *talk, enum cut cut)
{
	bool moved = false;
	for (int side = 0; side < SIDES; side++) {
		struct end *end = &talk->ends[side];
		if (end->has_failed)
			continue;
		enum filter_flush flush[] = { end->flows[0].flush, end->flows[1].flush };
		moved |= feed_core(talk, side, cut);
		moved |= feed_wire(talk, side, cut);
		moved |= flush[0] < end->flows[0].flush || flush[1] < end->flows[1].flush;
		enum stack_result result = stack_step(end->stack, end->flows, &end->why);
		end->has_failed = result == STACK_FAILED;
		moved |= result != STACK_REST;
		take_core(end, side);
	}
	return moved;
}

/* Goes on until nothing can move: three generous turns in a row must be quiet. */
static void
talk_run(struct talk *talk)
{
	enum cut cut = talk->plan.cut;
	for (int quiet = 0, turns = 0; quiet < 3; turns++) {
		quiet = turn(talk, quiet && cut == CUT_RANDOM ? CUT_WHOLE : cut) ? 0 : quiet + 1;
		if (turns > 1000000) {
			violate("moves for ever");
			return;
		}
	}
}

/* --- The cases, each for one filter --------------------------------------------------------- */

static const struct plan open_plan = { .wire_bytes = { SIZE_MAX, SIZE_MAX } };

static void
expect_arrived(const struct talk *talk, const char *when)
{
	for (int side = 0; side < SIDES; side++) {
		const struct end *end = &talk->ends[side];
		if (end->has_failed)
			violate("%s: %s failed: %s", when, side_name(side), end->why.text);
		if (end->got_other)
			violate("%s: %s got other bytes", when, side_name(side));
		if (end->got != talk->plan.core_bytes)
			violate("%s: %s got %zu of %zu bytes", when, side_name(side), end->got,
				talk->plan.core_bytes);
		if (!stack_is_ready(end->stack))
			violate("%s: %s is not ready", when, side_name(side));
	}
}

static void
expect_ended(const struct talk *talk, const char *when)
{
	expect_arrived(talk, when);
	for (int side = 0; side < SIDES; side++) {
		const struct end *end = &talk->ends[side];
		for (int flow = 0; flow < FILTER_FLOWS; flow++) {
			if (!end->flows[flow].ended)
				violate("%s: rule 6: %s %s has no end", when, side_name(side),
					flow == FILTER_IN ? "in" : "out");
		}
		if (stack_kept_bytes(end->stack))
			violate("%s: %s keeps bytes behind its end", when, side_name(side));
	}
}

/* All arrives with a flush alone; then the end follows. Returns what far said on the wire. */
static size_t
converse(const struct watched_conf confs[SIDES], enum cut cut, size_t core_bytes)
{
	struct plan plan = open_plan;
	plan.cut = cut;
	plan.core_bytes = core_bytes;
	struct talk talk;
	talk_open(&talk, confs, plan);
	talk_run(&talk);
	expect_arrived(&talk, "flush");
	talk.plan.core_bytes += core_bytes / 3;
	talk.plan.finishes = true;
	talk_run(&talk);
	expect_ended(&talk, "end");
	size_t heard = talk.ends[NEAR].heard;
	talk_close(&talk);
	return heard;
}

/* The wire from one side ends, or goes silent, after each of its bytes. */
static void
cut_wire(const struct watched_conf confs[SIDES], size_t mark_bytes, int from, bool stays_open)
{
	bool is_complete = false;
	for (size_t bytes = 0; !is_complete && !violation[0]; bytes++) {
		struct plan plan = open_plan;
		plan.core_bytes = 300;
		plan.finishes = true;
		plan.wire_bytes[from] = bytes;
		plan.wire_stays_open = stays_open;
		struct talk talk;
		talk_open(&talk, confs, plan);
		talk_run(&talk);
		const struct end *end = &talk.ends[!from];
		bool is_short = confs[!from].type->traits & FILTER_END_MARK
					? !end->wire_is_complete
					: from == FAR && bytes < mark_bytes;
		if (end->got_other)
			violate("after %zu wire bytes %s got other bytes", bytes, side_name(!from));
		if (!stays_open && is_short &&
		    (!end->has_failed || end->why.kind != FAILURE_TRUNCATED))
			violate("rule 6: %s took an end after %zu wire bytes for good",
				side_name(!from), bytes);
		if (!stays_open && !is_short && (end->has_failed || !end->flows[FILTER_IN].ended))
			violate("rule 6: %s took no end after %zu wire bytes", side_name(!from),
				bytes);
		if (stays_open && end->has_failed)
			violate("after %zu wire bytes %s failed: %s", bytes, side_name(!from),
				end->why.text);
		is_complete = end->wire_is_complete;
		talk_close(&talk);
	}
}

/* Each byte that far says is damaged in turn: anything may come of it but a stall or a crash. */
static void
damage(const struct watched_conf confs[SIDES], size_t wire_bytes)
{
	for (size_t at = 1; at <= wire_bytes && !violation[0]; at++) {
		struct plan plan = open_plan;
		plan.core_bytes = 300;
		plan.finishes = true;
		plan.flip_at = at;
		struct talk talk;
		talk_open(&talk, confs, plan);
		talk_run(&talk);
		struct end *end = &talk.ends[NEAR];
		/* A length may have grown: what is missing does not come, then the wire ends. */
		talk.plan.wire_bytes[FAR] = end->heard;
		talk_run(&talk);
		if (!end->has_failed && !end->flows[FILTER_IN].ended)
			violate("byte %zu damaged: near neither failed nor ended", at);
		talk_close(&talk);
	}
}

static void
give_garbage(const struct watched_conf confs[SIDES], int side)
{
	struct talk talk;
	talk_open(&talk, confs, open_plan);
	struct end *end = &talk.ends[side];
	size_t left = draw(3) ? draw(100) : draw(5000);
	while (!end->has_failed && end->flows[FILTER_IN].flush != FILTER_FINISHED) {
		for (size_t count = lesser(left, 1 + draw(300)); count; count--, left--) {
			unsigned char byte = (unsigned char)draw(256);
			evbuffer_add(end->flows[FILTER_IN].src, &byte, 1);
		}
		for (int flow = 0; flow < FILTER_FLOWS; flow++)
			end->flows[flow].room_bytes = 1 << 20;
		if (!left)
			end->flows[FILTER_IN].flush = FILTER_FINISHED;
		end->has_failed = stack_step(end->stack, end->flows, &end->why) == STACK_FAILED;
	}
	if (!end->has_failed && !end->flows[FILTER_IN].ended)
		violate("%s neither failed nor ended after garbage", side_name(side));
	if (!end->has_failed && end->conf.type->traits & FILTER_END_MARK)
		violate("%s took garbage for good", side_name(side));
	talk_close(&talk);
}

/* One side may not give to its wire, or not to its core, while the other says all it can: nothing
 * grows. Once it may, everything goes on. */
static void
stay_full(const struct watched_conf confs[SIDES], int side, bool at_core)
{
	struct plan plan = open_plan;
	plan.core_bytes = 400000;
	plan.wire_out_is_full[side] = !at_core;
	plan.core_in_is_full[side] = at_core;
	struct talk talk;
	talk_open(&talk, confs, plan);
	talk_run(&talk);
	for (int i = 0; i < 1000; i++)
		turn(&talk, i & 1 ? CUT_BYTES : CUT_WHOLE);
	const struct end *end = &talk.ends[side];
	if (at_core ? end->got : talk.ends[!side].heard)
		violate("rule 2: %s grew without room", side_name(side));
	if (stack_kept_bytes(end->stack) > 2 * FILTER_KEPT_BYTES)
		violate("rule 5: %s keeps %zu bytes", side_name(side),
			stack_kept_bytes(end->stack));
	talk.plan.wire_out_is_full[side] = talk.plan.core_in_is_full[side] = false;
	talk.plan.finishes = true;
	talk_run(&talk);
	expect_ended(&talk, at_core ? "after a full core" : "after a full wire");
	talk_close(&talk);
}

static void
check_contract(const struct watched_conf confs[SIDES], size_t mark_bytes)
{
	violation[0] = '\0';
	void *before[SIDES];
	for (int side = 0; side < SIDES; side++) {
		before[side] = malloc(confs[side].type->conf_bytes + 1);
		assert_non_null(before[side]);
		if (confs[side].conf)
			memcpy(before[side], confs[side].conf, confs[side].type->conf_bytes);
	}
	size_t wire_bytes = converse(confs, CUT_WHOLE, 225);
	converse(confs, CUT_WHOLE, 0);
	converse(confs, CUT_WHOLE, 300000);
	converse(confs, CUT_BYTES, 0);
	converse(confs, CUT_BYTES, 3000);
	for (int i = 0; i < 50 && !violation[0]; i++)
		converse(confs, CUT_RANDOM, draw(4) ? draw(1000) : draw(100000));
	for (int side = 0; side < SIDES && !violation[0]; side++) {
		cut_wire(confs, mark_bytes, side, false);
		cut_wire(confs, mark_bytes, side, true);
		stay_full(confs, side, false);
		stay_full(confs, side, true);
		for (int i = 0; i < 200; i++)
			give_garbage(confs, side);
	}
	damage(confs, wire_bytes);
	for (int side = 0; side < SIDES; side++) {
		if (confs[side].conf &&
		    memcmp(before[side], confs[side].conf, confs[side].type->conf_bytes) != 0)
			violate("rule 8: %s has changed its configuration", side_name(side));
		free(before[side]);
	}
}

/* --- Configuration from a row --------------------------------------------------------------- */

static void *
configure(const struct filter_type *type, const struct setting *settings)
{
	if (!type->conf_bytes)
		return NULL;
	void *conf = calloc(1, type->conf_bytes);
	assert_non_null(conf);
	struct failure why = { .kind = FAILURE_NONE };
	for (const struct keyword *keyword = type->keywords; keyword && keyword->name; keyword++) {
		bool is_set = false;
		for (int i = 0; i < SETTINGS && settings[i].keyword; i++) {
			if (strcmp(settings[i].keyword, keyword->name) != 0)
				continue;
			is_set = true;
			if (config_value_store(keyword, settings[i].text, "/", conf, &why))
				fail_msg("%s = \"%s\": %s", keyword->name, settings[i].text,
					 why.text);
		}
		if (!is_set && keyword->fallback && config_value_default(keyword, conf, &why))
			fail_msg("%s: %s", keyword->name, why.text);
	}
	if (type->configure && type->configure(conf, &why))
		fail_msg("%s: %s", type->name, why.text);
	return conf;
}

static void
discard(const struct filter_type *type, void *conf)
{
	if (type->discard)
		type->discard(conf);
	if (conf)
		keyword_release(type->keywords, conf);
	free(conf);
}

static void
test_registered_filters(void **unused)
{
	(void)unused;
	for (const struct row *row = rows; row->filter; row++) {
		const struct filter_type *type = registry_find(row->filter);
		assert_non_null(type);
		struct watched_conf confs[SIDES] = {
			[NEAR] = { type, configure(type, row->near) },
			[FAR] = { type, configure(type, row->far) },
		};
		uint64_t began = seed;
		check_contract(confs, row->mark_bytes);
		for (int side = 0; side < SIDES; side++)
			discard(type, (void *)confs[side].conf);
		if (violation[0])
			fail_msg("%s: %s (SEED=%llu)", row->filter, violation,
				 (unsigned long long)began);
	}
}

static void
test_every_filter_has_a_row(void **unused)
{
	(void)unused;
	for (const struct filter_type *const *type = registry_filters; *type; type++) {
		const struct row *row = rows;
		while (row->filter && strcmp(row->filter, (*type)->name) != 0)
			row++;
		if (!row->filter)
			fail_msg("%s has no row in the contract test", (*type)->name);
	}
}

static void
test_tables_are_complete(void **unused)
{
	(void)unused;
	for (const struct filter_type *const *at = registry_filters; *at; at++) {
		const struct filter_type *type = *at;
		assert_true(type->name && type->name[0]);
		assert_true(type->open && type->step && type->close);
		assert_ptr_equal(registry_find(type->name), type); /* no name twice */
		assert_true(type->conf_bytes || !type->keywords);
		for (const struct keyword *row = type->keywords; row && row->name; row++) {
			assert_non_null(row->help);
			assert_true(row->offset < type->conf_bytes);
		}
	}
	assert_null(registry_find("no such filter"));
}

/* --- framer: a filter as hard as they come, sound or with one fault ------------------------- */

/*
 * Far says "HI", near answers "OK"; then each flow is records of a length byte and so many bytes,
 * up to a record of none. Anything else is answered with "!" and fails.
 */
enum fault {
	SOUND,
	GIVES_WITHOUT_ROOM,
	MORE_FOR_NOTHING,
	RESTS_TOO_EARLY,
	RESTS_FOR_LITTLE_ROOM,
	WAITS_FOR_THE_END,
	LOSES_A_BYTE,
	CHANGES_A_BYTE,
	DRAINS_THE_TAIL,
	PUTS_IN_FRONT,
	TRUNCATION_IS_AN_END,
	NEVER_ENDS,
	FAILS_WITHOUT_A_WORD,
	IS_READY_NO_MORE,
	KEEPS_WITHOUT_BOUND,
	PASSES_UNREADY,
	COUNTS_IN_ITS_CONFIGURATION,
	TELLS_THE_PEER,
	FAULTS
};

struct framer_conf {
	enum fault fault;
	unsigned int opened;
};

struct framer {
	enum fault fault;
	enum filter_side side;
	bool is_open; /* the greeting is over */
	bool owes_hello, owes_alert, has_alerted;
	size_t passed;         /* records read */
	struct evbuffer *kept; /* KEEPS_WITHOUT_BOUND */
};

static void *
framer_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	(void)why;
	struct framer *framer = calloc(1, sizeof(*framer));
	assert_non_null(framer);
	framer->fault = ((const struct framer_conf *)conf)->fault;
	if (framer->fault == COUNTS_IN_ITS_CONFIGURATION)
		((struct framer_conf *)(uintptr_t)conf)->opened++;
	if (framer->fault == TELLS_THE_PEER)
		facts->peer.port++;
	framer->side = side;
	framer->owes_hello = side == FILTER_FAR;
	framer->kept = evbuffer_new();
	return framer;
}

static void
framer_close(void *state)
{
	evbuffer_free(((struct framer *)state)->kept);
	free(state);
}

static bool
framer_ready(const void *state)
{
	const struct framer *framer = state;
	if (framer->fault == IS_READY_NO_MORE && framer->passed > 1)
		return false;
	return framer->is_open && !framer->owes_hello && framer->fault != PASSES_UNREADY;
}

static size_t
framer_kept(const void *state)
{
	return evbuffer_get_length(((const struct framer *)state)->kept);
}

static enum filter_result
framer_truncated(const struct framer *framer, struct filter_io *io)
{
	if (framer->fault == TRUNCATION_IS_AN_END)
		return FILTER_END;
	failure_set(io->why, FAILURE_TRUNCATED, "framer: no mark");
	return FILTER_FAIL;
}

/* The greeting in `in`; FILTER_MORE when it is over. */
static enum filter_result
framer_greet(struct framer *framer, struct filter_io *io)
{
	char heard[2];
	if (evbuffer_copyout(io->src, heard, 2) < 2)
		return io->flush == FILTER_FINISHED ? framer_truncated(framer, io) : FILTER_REST;
	evbuffer_drain(io->src, 2);
	if (memcmp(heard, framer->side == FILTER_NEAR ? "HI" : "OK", 2) != 0) {
		framer->owes_alert = true;
		return FILTER_REST;
	}
	framer->is_open = true;
	framer->owes_hello = framer->side == FILTER_NEAR;
	return FILTER_MORE;
}

/* Takes one record of `in` whose length is known to be there. */
static void
framer_take(struct framer *framer, struct filter_io *io, unsigned char length)
{
	unsigned char bytes[256];
	evbuffer_remove(io->src, bytes, (size_t)length + 1);
	framer->passed++;
	size_t lost = framer->fault == LOSES_A_BYTE && framer->passed == 3;
	if (framer->fault == CHANGES_A_BYTE && framer->passed == 3)
		bytes[1]++;
	if (framer->fault == PUTS_IN_FRONT)
		evbuffer_prepend(io->dst, bytes + 1, length);
	else
		evbuffer_add(io->dst, bytes + 1, length - lost);
	if (framer->fault == DRAINS_THE_TAIL) {
		struct evbuffer *rest = evbuffer_new();
		size_t left = evbuffer_get_length(io->src);
		evbuffer_remove_buffer(io->src, rest, left ? left - 1 : 0);
		evbuffer_drain(io->src, 1);
		evbuffer_add_buffer(io->src, rest);
		evbuffer_free(rest);
	}
}

static enum filter_result
framer_in(struct framer *framer, struct filter_io *io)
{
	unsigned char length;
	size_t taken = 0;
	if (framer->owes_alert)
		return FILTER_REST;
	if (framer->has_alerted) {
		failure_set(io->why, FAILURE_PROTOCOL, "framer: no greeting");
		if (framer->fault == FAILS_WITHOUT_A_WORD)
			io->why->text[0] = '\0';
		return FILTER_FAIL;
	}
	struct filter_io inside = *io;
	if (framer->fault == KEEPS_WITHOUT_BOUND && !io->room_bytes) {
		inside.dst = framer->kept;
		inside.room_bytes = SIZE_MAX;
		io = &inside;
	} else {
		evbuffer_add_buffer(io->dst, framer->kept);
	}
	if (!framer->is_open)
		return framer_greet(framer, io);
	size_t need = framer->fault == RESTS_FOR_LITTLE_ROOM ? 2 : 1;
	while ((io->room_bytes >= need + taken || framer->fault == GIVES_WITHOUT_ROOM) &&
	       evbuffer_copyout(io->src, &length, 1) == 1 &&
	       evbuffer_get_length(io->src) > length && length) {
		framer_take(framer, io, length);
		taken += length;
		if (framer->fault == RESTS_TOO_EARLY)
			return FILTER_REST;
	}
	if (io == &inside)
		return FILTER_REST;
	if (evbuffer_copyout(io->src, &length, 1) == 1 && !length && framer->fault != NEVER_ENDS) {
		evbuffer_drain(io->src, 1);
		return FILTER_END;
	}
	if (io->flush == FILTER_FINISHED && io->room_bytes > taken)
		return framer_truncated(framer, io);
	return framer->fault == MORE_FOR_NOTHING ? FILTER_MORE : FILTER_REST;
}

static enum filter_result
framer_out(struct framer *framer, struct filter_io *io)
{
	size_t length = evbuffer_get_length(io->src), given = 0;
	if ((!io->room_bytes && framer->fault != GIVES_WITHOUT_ROOM) || framer->has_alerted)
		return FILTER_REST;
	if (framer->owes_alert) {
		evbuffer_add(io->dst, "!", 1);
		framer->owes_alert = false;
		framer->has_alerted = true;
		return FILTER_REST;
	}
	if (framer->owes_hello) {
		evbuffer_add(io->dst, framer->side == FILTER_FAR ? "HI" : "OK", 2);
		framer->owes_hello = false;
		return FILTER_MORE;
	}
	if (!framer->is_open)
		return FILTER_REST;
	if (framer->fault == PASSES_UNREADY)
		return FILTER_PASS;
	size_t least = io->flush == FILTER_NORMAL ? 255 : 1;
	if (framer->fault == WAITS_FOR_THE_END && io->flush != FILTER_FINISHED)
		least = 255;
	while (length >= least && given < io->room_bytes) {
		unsigned char record[256] = { (unsigned char)lesser(length, 255) };
		evbuffer_remove(io->src, record + 1, record[0]);
		evbuffer_add(io->dst, record, (size_t)record[0] + 1);
		length -= record[0];
		given += (size_t)record[0] + 1;
	}
	if (io->flush != FILTER_FINISHED || length || given >= io->room_bytes)
		return FILTER_REST;
	evbuffer_add(io->dst, "", 1);
	return FILTER_END;
}

static enum filter_result
framer_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	struct framer *framer = state;
	if (flow == FILTER_OUT)
		return framer_out(framer, io);
	if (framer->fault == PASSES_UNREADY && framer->is_open)
		return FILTER_PASS;
	return framer_in(framer, io);
}

static const struct filter_type framer_type = {
	.name = "framer",
	.traits = FILTER_END_MARK,
	.conf_bytes = sizeof(struct framer_conf),
	.open = framer_open,
	.step = framer_step,
	.ready = framer_ready,
	.kept = framer_kept,
	.close = framer_close,
};

static void
test_contract_sees_faults(void **unused)
{
	(void)unused;
	for (enum fault fault = SOUND; fault < FAULTS; fault++) {
		struct framer_conf conf = { .fault = fault };
		struct watched_conf confs[SIDES] = { { &framer_type, &conf },
						     { &framer_type, &conf } };
		check_contract(confs, 0);
		if ((violation[0] != '\0') != (fault != SOUND))
			fail_msg("framer with fault %d: %s", (int)fault,
				 violation[0] ? violation : "nothing found");
	}
}

/* Certificates for the rows above. */
static int
write_files(void **unused)
{
	(void)unused;
	world_open();
	struct paper authority = paper_make((struct paper_plan){ .name = "CA", .is_ca = true });
	struct paper near = paper_make((struct paper_plan){
		.name = "near", .others = "DNS:near.example", .issuer = &authority });
	strcpy(authority_file, paper_write("ca.pem", "w", authority.certificate, NULL));
	strcpy(certificate_file, paper_write("near.pem", "w", near.certificate, near.key));
	strcpy(psk_file, text_write("psk", "someone:000102030405060708090a0b0c0d0e0f\n"));
	paper_free(&authority);
	paper_free(&near);
	return 0;
}

static int
remove_files(void **unused)
{
	(void)unused;
	world_close();
	return 0;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tables_are_complete),
		cmocka_unit_test(test_every_filter_has_a_row),
		cmocka_unit_test(test_contract_sees_faults),
		cmocka_unit_test(test_registered_filters),
	};
	const char *given = getenv("SEED");
	if (given)
		seed = strtoull(given, NULL, 10);
	printf("SEED=%llu\n", (unsigned long long)seed);
	return cmocka_run_group_tests_name("contract", tests, write_files, remove_files);
}
