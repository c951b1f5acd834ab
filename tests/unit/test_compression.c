/*
 * zlib and zstd against the bare libraries at the other end: what our packer gives they read, what
 * they give our unpacker reads, whatever the cuts; flush, ends, garbage, bombs, memory and
 * `adaptive`. What holds for every filter is in test_contract.c.
 */
#include "filters/compression.h"
#include "filters/registry.h"

#include <event2/buffer.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HAS_OWN_MALLOC 1
#endif
#endif

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)

static uint64_t seed = 1;

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

struct bytes {
	unsigned char *at;
	size_t count;
};

static struct bytes
make(size_t count)
{
	struct bytes bytes = { malloc(count ? count : 1), count };
	assert_non_null(bytes.at);
	return bytes;
}

/* Compresses to about a third. */
static struct bytes
text(size_t count)
{
	static const char words[][8] = { "pipe ",  "gate ",  "tunnel ", "water ", "limit ",
					 "stone ", "river ", "weir ",   "mill ",  "flow " };
	struct bytes bytes = make(count);
	for (size_t at = 0; at < count;) {
		const char *word = words[draw(10)];
		size_t length = lesser(strlen(word), count - at);
		memcpy(bytes.at + at, word, length);
		at += length;
		if (at < count && !draw(4))
			bytes.at[at++] = (unsigned char)draw(256);
	}
	return bytes;
}

static struct bytes
noise(size_t count)
{
	struct bytes bytes = make(count);
	for (size_t i = 0; i < count; i++)
		bytes.at[i] = (unsigned char)draw(256);
	return bytes;
}

/* --- The bare libraries --------------------------------------------------------------------- */

/* Packs all of `plain` as one stream. */
static struct bytes
bare_deflate(struct bytes plain)
{
	uLongf count = compressBound(plain.count);
	struct bytes packed = make(count);
	assert_int_equal(compress2(packed.at, &count, plain.at, plain.count, 6), Z_OK);
	packed.count = count;
	return packed;
}

static struct bytes
bare_zstd(struct bytes plain)
{
	struct bytes packed = make(ZSTD_compressBound(plain.count));
	ZSTD_CCtx *context = ZSTD_createCCtx();
	ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, 18);
	packed.count = ZSTD_compress2(context, packed.at, packed.count, plain.at, plain.count);
	assert_false(ZSTD_isError(packed.count));
	ZSTD_freeCCtx(context);
	return packed;
}

/* How far a bare reader gets in `packed`: the bytes, at most `most` of them. */
struct reading {
	struct bytes plain;
	bool has_ended; /* by the end mark, with nothing behind it */
};

static struct reading
bare_inflate(struct bytes packed, size_t most)
{
	struct reading reading = { .plain = make(most) };
	z_stream stream = { .next_in = packed.at, .avail_in = (uInt)packed.count };
	assert_int_equal(inflateInit(&stream), Z_OK);
	stream.next_out = reading.plain.at;
	stream.avail_out = (uInt)most;
	int result = inflate(&stream, Z_SYNC_FLUSH);
	assert_true(result == Z_OK || result == Z_STREAM_END || result == Z_BUF_ERROR);
	reading.plain.count = most - stream.avail_out;
	reading.has_ended = result == Z_STREAM_END && !stream.avail_in;
	inflateEnd(&stream);
	return reading;
}

static struct reading
bare_unzstd(struct bytes packed, size_t most)
{
	struct reading reading = { .plain = make(most) };
	ZSTD_DCtx *context = ZSTD_createDCtx();
	ZSTD_inBuffer in = { packed.at, packed.count, 0 };
	ZSTD_outBuffer out = { reading.plain.at, most, 0 };
	size_t left = 1, before = 0;
	while (in.pos < in.size || (left && out.pos > before)) {
		before = out.pos;
		left = ZSTD_decompressStream(context, &out, &in);
		if (ZSTD_isError(left))
			fail_msg("bare zstd: %s", ZSTD_getErrorName(left));
	}
	reading.plain.count = out.pos;
	reading.has_ended = !left;
	ZSTD_freeDCtx(context);
	return reading;
}

struct format {
	const char *name;
	enum compression_kind kind;
	struct bytes (*pack)(struct bytes plain);
	struct reading (*unpack)(struct bytes packed, size_t most);
	uint64_t level_most, window_bytes;
};

static const struct format formats[] = {
	{ "zlib", COMPRESSION_ZLIB, bare_deflate, bare_inflate, 9, 32 * 1024 },
	{ "zstd", COMPRESSION_ZSTD, bare_zstd, bare_unzstd, 9, 256 * 1024 },
};

#define FORMATS (sizeof(formats) / sizeof(formats[0]))
#define for_each_format(format) \
	for (const struct format *format = formats; format < formats + FORMATS; format++)

/* --- Our filters ---------------------------------------------------------------------------- */

struct side {
	const struct filter_type *type;
	struct compression_conf conf;
	void *state;
	struct evbuffer *src[FILTER_FLOWS], *dst[FILTER_FLOWS];
	struct failure why;
};

static void
side_open(struct side *side, const struct format *format, struct compression_conf conf)
{
	static struct facts facts;

	*side = (struct side){ .type = registry_find(format->name), .conf = conf };
	assert_non_null(side->type);
	if (!side->conf.level)
		side->conf.level = 6;
	if (!side->conf.window_bytes)
		side->conf.window_bytes = format->window_bytes;
	assert_int_equal(side->type->configure(&side->conf, &side->why), 0);
	side->state = side->type->open(&side->conf, FILTER_NEAR, &facts, &side->why);
	assert_non_null(side->state);
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		side->src[flow] = evbuffer_new();
		side->dst[flow] = evbuffer_new();
	}
}

static void
side_close(struct side *side)
{
	side->type->close(side->state);
	for (int flow = 0; flow < FILTER_FLOWS; flow++) {
		evbuffer_free(side->src[flow]);
		evbuffer_free(side->dst[flow]);
	}
}

static enum filter_result
step(struct side *side, enum filter_flow flow, enum filter_flush flush, size_t room_bytes)
{
	struct filter_io io = { .src = side->src[flow],
				.dst = side->dst[flow],
				.room_bytes = room_bytes,
				.flush = flush,
				.why = &side->why };
	size_t before = evbuffer_get_length(io.dst);
	enum filter_result result = side->type->step(side->state, flow, &io);
	size_t given = evbuffer_get_length(io.dst) - before;
	assert_true(given <= (room_bytes ? room_bytes + FILTER_RECORD_BYTES : 0));
	return result;
}

/* Adds the bytes and steps with much room until nothing moves any more. */
static enum filter_result
give(struct side *side, enum filter_flow flow, struct bytes bytes, enum filter_flush flush)
{
	struct evbuffer *src = side->src[flow], *dst = side->dst[flow];
	size_t had, gave;
	enum filter_result result;
	evbuffer_add(src, bytes.at, bytes.count);
	do {
		had = evbuffer_get_length(src);
		gave = evbuffer_get_length(dst);
		result = step(side, flow, flush, MIB);
	} while (result <= FILTER_MORE &&
		 (evbuffer_get_length(src) != had || evbuffer_get_length(dst) != gave));
	return result;
}

static struct bytes
taken(struct evbuffer *buffer)
{
	struct bytes bytes = make(evbuffer_get_length(buffer));
	evbuffer_remove(buffer, bytes.at, bytes.count);
	return bytes;
}

static void
expect_same(struct bytes got, struct bytes expected)
{
	assert_int_equal(got.count, expected.count);
	assert_memory_equal(got.at, expected.at, expected.count);
}

static void
expect_kind(const struct side *side, enum filter_result result, enum failure_kind kind)
{
	assert_int_equal(result, FILTER_FAIL);
	if (side->why.kind != kind)
		fail_msg("failed with %s: %s", failure_kind_name(side->why.kind), side->why.text);
}

/* --- Both ways, cut at random --------------------------------------------------------------- */

static void
pack_and_read(const struct format *format, struct compression_conf conf, struct bytes plain)
{
	struct side side;
	side_open(&side, format, conf);
	enum filter_result result = FILTER_REST;
	size_t at = 0;
	while (result != FILTER_END) {
		size_t count = lesser(plain.count - at, draw(4) ? draw(3000) : draw(100000));
		evbuffer_add(side.src[FILTER_OUT], plain.at + at, count);
		at += count;
		enum filter_flush flush =
			at == plain.count ? FILTER_FINISHED : (enum filter_flush)draw(2);
		result = step(&side, FILTER_OUT, flush, draw(3) ? draw(20000) : draw(10));
		assert_int_not_equal(result, FILTER_FAIL);
	}
	assert_int_equal(side.type->kept(side.state), 0);
	struct bytes packed = taken(side.dst[FILTER_OUT]);
	struct reading reading = format->unpack(packed, plain.count + 1);
	assert_true(reading.has_ended);
	expect_same(reading.plain, plain);
	free(reading.plain.at);
	free(packed.at);
	side_close(&side);
}

static void
test_bare_library_reads_what_we_pack(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		for (uint64_t level = 1; level <= format->level_most; level += 2) {
			for (int bits = format->kind == COMPRESSION_ZLIB ? 9 : 10;
			     (uint64_t)1 << bits <= format->window_bytes; bits += 3) {
				struct compression_conf conf = { .level = level,
								 .window_bytes = 1U << bits,
								 .adaptive = draw(2) };
				struct bytes plain =
					draw(2) ? text(draw(500000)) : noise(draw(500000));
				pack_and_read(format, conf, plain);
				free(plain.at);
			}
		}
	}
}

static void
test_we_read_what_the_bare_library_packs(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		for (int round = 0; round < 30; round++) {
			struct bytes plain = round % 3 ? text(draw(300000)) : noise(draw(300000));
			struct bytes packed = format->pack(plain);
			struct side side;
			side_open(&side, format, (struct compression_conf){ 0 });
			enum filter_result result = FILTER_REST;
			for (size_t at = 0; result != FILTER_END;) {
				size_t count = lesser(packed.count - at, draw(5000));
				evbuffer_add(side.src[FILTER_IN], packed.at + at, count);
				at += count;
				result = step(&side, FILTER_IN,
					      at == packed.count ? FILTER_FINISHED : FILTER_FLUSH,
					      draw(3) ? draw(20000) : draw(10));
				assert_int_not_equal(result, FILTER_FAIL);
			}
			struct bytes got = taken(side.dst[FILTER_IN]);
			expect_same(got, plain);
			free(got.at);
			free(packed.at);
			free(plain.at);
			side_close(&side);
		}
	}
}

/* --- Flush ---------------------------------------------------------------------------------- */

/* After each flush a bare reader has all; a second flush has nothing to say, nor has one at first. */
static void
test_flush_gives_all_and_nothing_twice(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		for (int adaptive = 0; adaptive < 2; adaptive++) {
			struct side side;
			struct bytes plain = text(90000);
			side_open(&side, format,
				  (struct compression_conf){ .adaptive = adaptive == 1 });
			assert_int_equal(step(&side, FILTER_OUT, FILTER_FLUSH, MIB), FILTER_REST);
			assert_int_equal(evbuffer_get_length(side.dst[FILTER_OUT]), 0);
			for (size_t at = 0; at < plain.count;) {
				size_t count = lesser(plain.count - at, 1 + draw(6000));
				give(&side, FILTER_OUT, (struct bytes){ plain.at + at, count },
				     FILTER_FLUSH);
				at += count;
				size_t length = evbuffer_get_length(side.dst[FILTER_OUT]);
				struct bytes so_far = { evbuffer_pullup(side.dst[FILTER_OUT], -1),
							length };
				struct reading reading = format->unpack(so_far, plain.count);
				expect_same(reading.plain, (struct bytes){ plain.at, at });
				free(reading.plain.at);
				give(&side, FILTER_OUT, (struct bytes){ NULL, 0 }, FILTER_FLUSH);
				assert_int_equal(evbuffer_get_length(side.dst[FILTER_OUT]), length);
				assert_int_equal(side.type->kept(side.state), 0);
			}
			free(plain.at);
			side_close(&side);
		}
	}
}

/* Without a flush what waits inside stays bounded, and small data waits at all. */
static void
test_normal_mode_waits_within_bounds(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		struct side side;
		struct bytes zeros = { calloc(1, 100 * KIB), 100 * KIB };
		side_open(&side, format, (struct compression_conf){ 0 });
		give(&side, FILTER_OUT, (struct bytes){ zeros.at, 100 }, FILTER_NORMAL);
		size_t began = evbuffer_get_length(side.dst[FILTER_OUT]);
		for (int i = 0; i < 100; i++) {
			give(&side, FILTER_OUT, (struct bytes){ zeros.at, 100 }, FILTER_NORMAL);
			assert_int_equal(evbuffer_get_length(side.dst[FILTER_OUT]), began);
		}
		assert_true(side.type->kept(side.state) > 0);
		give(&side, FILTER_OUT, zeros, FILTER_NORMAL);
		assert_int_equal(evbuffer_get_length(side.src[FILTER_OUT]), 0);
		assert_true(side.type->kept(side.state) <= FILTER_KEPT_BYTES);
		free(zeros.at);
		side_close(&side);
	}
}

/* --- Ends ----------------------------------------------------------------------------------- */

static void
test_end_before_the_mark_is_a_truncation(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		struct bytes plain = text(2000), packed = format->pack(plain);
		for (size_t count = 0; count <= packed.count; count++) {
			struct side side;
			side_open(&side, format, (struct compression_conf){ 0 });
			enum filter_result result =
				give(&side, FILTER_IN, (struct bytes){ packed.at, count },
				     FILTER_FINISHED);
			if (count == packed.count)
				assert_int_equal(result, FILTER_END);
			else
				expect_kind(&side, result, FAILURE_TRUNCATED);
			side_close(&side);
		}
		free(packed.at);
		free(plain.at);
	}
}

/* At once, later, with the source's end or without: it is the same failure. */
static void
test_bytes_behind_the_mark_fail(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		struct bytes plain = text(2000), packed = format->pack(plain);
		for (int way = 0; way < 4; way++) {
			struct side side;
			side_open(&side, format, (struct compression_conf){ 0 });
			evbuffer_add(side.src[FILTER_IN], packed.at, packed.count);
			if (way & 1)
				assert_int_equal(give(&side, FILTER_IN, (struct bytes){ NULL, 0 },
						      FILTER_FLUSH),
						 FILTER_REST);
			enum filter_result result =
				give(&side, FILTER_IN,
				     (struct bytes){ packed.at, way & 2 ? packed.count : 1 },
				     way & 2 ? FILTER_FINISHED : FILTER_FLUSH);
			expect_kind(&side, result, FAILURE_PROTOCOL);
			side_close(&side);
		}
		free(packed.at);
		free(plain.at);
	}
}

static void
test_a_stream_of_nothing(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		for (int adaptive = 0; adaptive < 2; adaptive++)
			pack_and_read(format,
				      (struct compression_conf){ .adaptive = adaptive == 1 },
				      (struct bytes){ (unsigned char *)"", 0 });
	}
}

/* --- Strangers ------------------------------------------------------------------------------ */

static size_t
allocated(void)
{
	struct mallinfo2 now = mallinfo2();
	return now.uordblks + now.hblkhd;
}

/* 1 GiB of zeros, made by the bare library as they are needed, through a room of 64 KiB. */
struct bomb {
	z_stream deflate;
	ZSTD_CCtx *zstd;
	size_t left_bytes;
};

static size_t
bomb_next(struct bomb *bomb, const struct format *format, unsigned char *packed, size_t most)
{
	static unsigned char zeros[1024 * 1024];
	size_t count = lesser(bomb->left_bytes, sizeof(zeros));
	bomb->left_bytes -= count;
	if (format->kind == COMPRESSION_ZLIB) {
		bomb->deflate.next_in = zeros;
		bomb->deflate.avail_in = (uInt)count;
		bomb->deflate.next_out = packed;
		bomb->deflate.avail_out = (uInt)most;
		deflate(&bomb->deflate, bomb->left_bytes ? Z_SYNC_FLUSH : Z_FINISH);
		return most - bomb->deflate.avail_out;
	}
	ZSTD_inBuffer in = { zeros, count, 0 };
	ZSTD_outBuffer out = { packed, most, 0 };
	ZSTD_compressStream2(bomb->zstd, &out, &in, bomb->left_bytes ? ZSTD_e_flush : ZSTD_e_end);
	return out.pos;
}

static void
test_a_bomb_gets_no_more_than_the_room(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		struct bomb bomb = { .left_bytes = 1024 * MIB };
		unsigned char packed[16 * 1024];
		struct side side;
		deflateInit(&bomb.deflate, 1);
		bomb.zstd = ZSTD_createCCtx();
		ZSTD_CCtx_setParameter(bomb.zstd, ZSTD_c_windowLog, 18);
		side_open(&side, format, (struct compression_conf){ 0 });
		size_t got = 0, began = 0, peak = 0;
		enum filter_result result = FILTER_REST;
		while (result != FILTER_END) {
			if (!evbuffer_get_length(side.src[FILTER_IN]) && bomb.left_bytes)
				evbuffer_add(side.src[FILTER_IN], packed,
					     bomb_next(&bomb, format, packed, sizeof(packed)));
			result = step(&side, FILTER_IN,
				      bomb.left_bytes ? FILTER_FLUSH : FILTER_FINISHED, 64 * KIB);
			assert_int_not_equal(result, FILTER_FAIL);
			size_t count = evbuffer_get_length(side.dst[FILTER_IN]);
			began = began ? began : allocated();
			peak = allocated() > peak ? allocated() : peak;
			got += count;
			evbuffer_drain(side.dst[FILTER_IN], count);
		}
		assert_int_equal(got, 1024 * MIB);
		assert_true(peak <= began + 256 * KIB);
		deflateEnd(&bomb.deflate);
		ZSTD_freeCCtx(bomb.zstd);
		side_close(&side);
	}
}

/* What asks for a larger window than ours is refused before it gets one. */
static void
test_a_larger_window_is_refused(void **unused)
{
	(void)unused;
	static const unsigned char zlib_header[] = { 0x78, 0x9c, 0x03, 0x00 };
	static const unsigned char zstd_header[] = { 0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3 };
	const struct bytes headers[] = {
		{ (unsigned char *)(uintptr_t)zlib_header, sizeof(zlib_header) },
		{ (unsigned char *)(uintptr_t)zstd_header, sizeof(zstd_header) },
	};
	for_each_format(format)
	{
		struct side side;
		side_open(&side, format,
			  (struct compression_conf){ .window_bytes = format->window_bytes / 2 });
		size_t began = allocated();
		enum filter_result result =
			give(&side, FILTER_IN, headers[format - formats], FILTER_FLUSH);
		expect_kind(&side, result, FAILURE_PROTOCOL);
		assert_non_null(strstr(side.why.text, "the peer's window is larger than ours"));
		assert_true(allocated() < began + 256 * KIB);
		side_close(&side);
	}
}

static enum filter_result
give_hex(struct side *side, const char *hex)
{
	unsigned char bytes[64];
	size_t count = strlen(hex) / 2;
	for (size_t i = 0; i < count; i++) {
		char digits[3] = { hex[2 * i], hex[2 * i + 1], '\0' };
		bytes[i] = (unsigned char)strtoul(digits, NULL, 16);
	}
	return give(side, FILTER_IN, (struct bytes){ bytes, count }, FILTER_FINISHED);
}

/* An empty frame is magic, descriptor 00, window 40, and one last raw block of no bytes. */
#define EMPTY_FRAME "28b52ffd0040010000"
#define MORE        "502a4d1800000000"

static void
test_streams_that_are_refused(void **unused)
{
	(void)unused;
	static const struct {
		const char *format, *hex;
		enum failure_kind kind; /* FAILURE_NONE: it is taken */
	} cases[] = {
		{ "zlib", "789c030000000001", FAILURE_NONE },
		{ "zlib", "789c030000000002", FAILURE_PROTOCOL },     /* checksum */
		{ "zlib", "78bb0000000003000000", FAILURE_PROTOCOL }, /* preset dictionary */
		{ "zlib", "1f8b08000000000000030300000000", FAILURE_PROTOCOL }, /* gzip */
		{ "zstd", EMPTY_FRAME, FAILURE_NONE },
		{ "zstd", MORE EMPTY_FRAME EMPTY_FRAME, FAILURE_NONE },
		{ "zstd", MORE EMPTY_FRAME MORE EMPTY_FRAME EMPTY_FRAME, FAILURE_NONE },
		{ "zstd", MORE, FAILURE_TRUNCATED },
		{ "zstd", MORE EMPTY_FRAME, FAILURE_TRUNCATED },
		{ "zstd", MORE MORE EMPTY_FRAME, FAILURE_PROTOCOL },
		{ "zstd", EMPTY_FRAME EMPTY_FRAME, FAILURE_PROTOCOL },
		{ "zstd", EMPTY_FRAME MORE, FAILURE_PROTOCOL },
		{ "zstd", "502a4d180100000061" EMPTY_FRAME, FAILURE_PROTOCOL }, /* skippable */
		{ "zstd", "512a4d1800000000" EMPTY_FRAME, FAILURE_PROTOCOL },
		{ "zstd", "27b52ffd0040010000", FAILURE_PROTOCOL },   /* legacy v0.7 */
		{ "zstd", "28b52ffd014007010000", FAILURE_PROTOCOL }, /* dictionary 7 */
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct format *format = &formats[strcmp(cases[i].format, "zstd") == 0];
		struct side side;
		side_open(&side, format, (struct compression_conf){ 0 });
		enum filter_result result = give_hex(&side, cases[i].hex);
		if (cases[i].kind)
			expect_kind(&side, result, cases[i].kind);
		else
			assert_int_equal(result, FILTER_END);
		side_close(&side);
	}
}

/* In words for an operator, whatever the library calls it. */
static void
test_words_of_refusals(void **unused)
{
	(void)unused;
	static const struct {
		const char *format, *hex, *words;
	} cases[] = {
		{ "zlib", "47455420",
		  "zlib: the bytes are no zlib stream; does the other end compress the same way?" },
		{ "zlib", "1f8b08000000000000030300000000",
		  "zlib: the bytes are no zlib stream; does the other end compress the same way?" },
		{ "zlib", "881c01", "zlib: the peer's window is larger than ours" },
		{ "zlib", "78bb0000000003000000", "zlib: the stream wants a dictionary" },
		{ "zlib", "789c030000000002", "zlib: incorrect data check" },
		{ "zstd", "47455420",
		  "zstd: the bytes are no zstd stream; does the other end compress the same way?" },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct side side;
		side_open(&side, &formats[strcmp(cases[i].format, "zstd") == 0],
			  (struct compression_conf){ 0 });
		expect_kind(&side, give_hex(&side, cases[i].hex), FAILURE_PROTOCOL);
		assert_string_equal(side.why.text, cases[i].words);
		side_close(&side);
	}
}

/* --- Memory --------------------------------------------------------------------------------- */

#ifndef HAS_OWN_MALLOC /* a sanitizer's cannot be asked */

static struct bytes
packed_by_us(const struct format *format, struct compression_conf conf, struct bytes plain)
{
	struct side side;
	side_open(&side, format, conf);
	assert_int_equal(give(&side, FILTER_OUT, plain, FILTER_FINISHED), FILTER_END);
	struct bytes packed = taken(side.dst[FILTER_OUT]);
	side_close(&side);
	return packed;
}

static void
expect_held(const struct format *format, struct compression_conf conf, size_t most_bytes)
{
	struct bytes plain = text(300000), packed = packed_by_us(format, conf, plain);
	struct bytes last = { packed.at + --packed.count, 1 }, nothing = { NULL, 0 };
	size_t empty = allocated();
	struct side side;
	side_open(&side, format, conf);
	step(&side, FILTER_IN, FILTER_FLUSH, MIB);
	step(&side, FILTER_OUT, FILTER_FLUSH, MIB);
	assert_true(allocated() - empty < 2 * KIB);
	assert_int_equal(side.type->held(side.state), 0);
	give(&side, FILTER_IN, packed, FILTER_FLUSH);
	give(&side, FILTER_OUT, plain, FILTER_FLUSH);
	for (int flow = 0; flow < FILTER_FLOWS; flow++)
		evbuffer_drain(side.dst[flow], SIZE_MAX);
	size_t full = allocated() - empty;
	print_message("%s, level %d, window %zu KiB: %zu KiB for a connection\n", format->name,
		      (int)conf.level, (size_t)conf.window_bytes / KIB, full / KIB);
	assert_true(full <= most_bytes);
	assert_in_range(side.type->held(side.state), full - full / 16 - 2 * KIB, full + full / 16);
	assert_int_equal(give(&side, FILTER_IN, last, FILTER_FINISHED), FILTER_END);
	assert_int_equal(give(&side, FILTER_OUT, nothing, FILTER_FINISHED), FILTER_END);
	for (int flow = 0; flow < FILTER_FLOWS; flow++)
		evbuffer_drain(side.dst[flow], SIZE_MAX);
	assert_true(allocated() - empty < 2 * KIB);
	assert_int_equal(side.type->held(side.state), 0);
	side_close(&side);
	free(packed.at);
	free(plain.at);
}

/* What penstock.conf(5) says of a connection's memory, and that a silent one has none. */
static void
test_memory_of_a_connection(void **unused)
{
	(void)unused;
	static const struct {
		uint64_t level, window_kib;
		size_t most_kib;
	} zstds[] = {
		{ 1, 256, 1946 },   { 3, 256, 2662 },   { 6, 256, 5018 },    { 9, 256, 5018 },
		{ 12, 256, 5018 },  { 19, 256, 6758 },  { 1, 8192, 18432 },  { 3, 8192, 19456 },
		{ 6, 8192, 21504 }, { 9, 8192, 30720 }, { 12, 8192, 67584 }, { 19, 8192, 101376 },
	};
	for (uint64_t window = 512; window <= 32 * KIB; window *= 2)
		expect_held(&formats[0],
			    (struct compression_conf){ .level = 9, .window_bytes = window },
			    5 * window + 80 * KIB);
	for (size_t i = 0; i < sizeof(zstds) / sizeof(zstds[0]); i++)
		expect_held(&formats[1],
			    (struct compression_conf){ .level = zstds[i].level,
						       .window_bytes = zstds[i].window_kib * KIB,
						       .adaptive = i % 2 },
			    zstds[i].most_kib * KIB);
}

#endif

/* --- Adaptive ------------------------------------------------------------------------------- */

static size_t
packed_by(struct side *side, struct bytes plain, struct evbuffer *all)
{
	give(side, FILTER_OUT, plain, FILTER_FLUSH);
	size_t count = evbuffer_get_length(side->dst[FILTER_OUT]);
	evbuffer_add_buffer(all, side->dst[FILTER_OUT]);
	return count;
}

static void
test_adaptive_stores_what_does_not_pay(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		struct bytes random = noise(4 * MIB), plain = text(24 * MIB);
		struct compression_totals before =
			compression_read_totals(format->kind, FILTER_OUT);
		struct evbuffer *all = evbuffer_new();
		struct side side;
		side_open(&side, format, (struct compression_conf){ .level = 1, .adaptive = true });

		/* What pays is compressed, and nothing of it stored. */
		assert_true(packed_by(&side, (struct bytes){ plain.at, MIB }, all) < MIB / 2);
		struct compression_totals then = compression_read_totals(format->kind, FILTER_OUT);
		assert_int_equal(then.stored_bytes, before.stored_bytes);
		/* Of what does not, nearly all is stored, and costs next to nothing on the wire. */
		assert_true(packed_by(&side, random, all) < random.count + random.count / 1000);
		then = compression_read_totals(format->kind, FILTER_OUT);
		assert_true(then.stored_bytes - before.stored_bytes > 3 * MIB);
		/* It is tried again: before long most of the text is compressed. */
		assert_true(packed_by(&side, plain, all) < 16 * MIB);

		assert_int_equal(
			give(&side, FILTER_OUT, (struct bytes){ NULL, 0 }, FILTER_FINISHED),
			FILTER_END);
		evbuffer_add_buffer(all, side.dst[FILTER_OUT]);
		then = compression_read_totals(format->kind, FILTER_OUT);
		assert_int_equal(then.plain_bytes - before.plain_bytes, 29 * MIB);
		assert_int_equal(then.packed_bytes - before.packed_bytes, evbuffer_get_length(all));

		/* The bare library reads it, and so do we. */
		struct bytes packed = taken(all);
		struct reading reading = format->unpack(packed, 30 * MIB);
		assert_true(reading.has_ended);
		assert_int_equal(reading.plain.count, 29 * MIB);
		assert_memory_equal(reading.plain.at + MIB, random.at, random.count);
		assert_memory_equal(reading.plain.at + MIB + random.count, plain.at, plain.count);
		before = compression_read_totals(format->kind, FILTER_IN);
		assert_int_equal(give(&side, FILTER_IN, packed, FILTER_FINISHED), FILTER_END);
		then = compression_read_totals(format->kind, FILTER_IN);
		assert_int_equal(then.plain_bytes - before.plain_bytes, 29 * MIB);
		assert_int_equal(then.packed_bytes - before.packed_bytes, packed.count);

		free(reading.plain.at);
		free(packed.at);
		evbuffer_free(all);
		free(random.at);
		free(plain.at);
		side_close(&side);
	}
}

/* The longer it has not paid, the less is spent on trying again, up to a sample in 16 MiB; a sample that
 * pays ends that. */
static void
test_adaptive_tries_less_and_less(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		struct bytes random = noise(4 * MIB), plain = text(MIB);
		struct evbuffer *all = evbuffer_new();
		struct side side;
		side_open(&side, format, (struct compression_conf){ .level = 1, .adaptive = true });
		for (int round = 0; round < 2; round++) {
			struct compression_totals before =
				compression_read_totals(format->kind, FILTER_OUT);
			for (int i = 0; i < 12; i++)
				packed_by(&side, random, all);
			struct compression_totals then =
				compression_read_totals(format->kind, FILTER_OUT);
			size_t tried = (size_t)(then.plain_bytes - before.plain_bytes -
						(then.stored_bytes - before.stored_bytes));
			/* 0.5, 1, 2, 4, 8, 16 and 16 MiB, a sample in front of each. */
			assert_in_range(tried, 7 * 64 * KIB, 9 * 64 * KIB);
			for (int i = 0; i < 18; i++)
				packed_by(&side, plain, all);
			assert_true(packed_by(&side, plain, all) < MIB / 2);
			evbuffer_drain(all, SIZE_MAX);
		}
		evbuffer_free(all);
		free(random.at);
		free(plain.at);
		side_close(&side);
	}
}

static void
test_without_adaptive_nothing_is_stored(void **unused)
{
	(void)unused;
	for_each_format(format)
	{
		struct bytes random = noise(MIB);
		struct compression_totals before =
			compression_read_totals(format->kind, FILTER_OUT);
		struct side side;
		side_open(&side, format, (struct compression_conf){ .level = 1 });
		give(&side, FILTER_OUT, random, FILTER_FLUSH);
		struct compression_totals then = compression_read_totals(format->kind, FILTER_OUT);
		assert_int_equal(then.stored_bytes, before.stored_bytes);
		free(random.at);
		side_close(&side);
	}
}

/* --- Configuration -------------------------------------------------------------------------- */

static void
test_window_is_a_power_of_two(void **unused)
{
	(void)unused;
	struct failure why = { .kind = FAILURE_NONE };
	struct compression_conf conf = { .level = 1, .window_bytes = 10000 };
	assert_int_equal(compression_configure(&conf, &why), -1);
	assert_int_equal(why.kind, FAILURE_CONFIG);
	conf.window_bytes = 16384;
	assert_int_equal(compression_configure(&conf, &why), 0);
	assert_int_equal(conf.window_bits, 14);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bare_library_reads_what_we_pack),
		cmocka_unit_test(test_we_read_what_the_bare_library_packs),
		cmocka_unit_test(test_flush_gives_all_and_nothing_twice),
		cmocka_unit_test(test_normal_mode_waits_within_bounds),
		cmocka_unit_test(test_end_before_the_mark_is_a_truncation),
		cmocka_unit_test(test_bytes_behind_the_mark_fail),
		cmocka_unit_test(test_a_stream_of_nothing),
		cmocka_unit_test(test_a_bomb_gets_no_more_than_the_room),
		cmocka_unit_test(test_a_larger_window_is_refused),
		cmocka_unit_test(test_streams_that_are_refused),
		cmocka_unit_test(test_words_of_refusals),
#ifndef HAS_OWN_MALLOC
		cmocka_unit_test(test_memory_of_a_connection),
#endif
		cmocka_unit_test(test_adaptive_stores_what_does_not_pay),
		cmocka_unit_test(test_adaptive_tries_less_and_less),
		cmocka_unit_test(test_without_adaptive_nothing_is_stored),
		cmocka_unit_test(test_window_is_a_power_of_two),
	};
	const char *given = getenv("SEED");
	if (given)
		seed = strtoull(given, NULL, 10);
	print_message("SEED=%llu\n", (unsigned long long)seed);
	return cmocka_run_group_tests_name("compression", tests, NULL, NULL);
}
