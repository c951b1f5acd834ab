/* Any bytes as a compressed stream, cut at will into rooms of any size: our unpacker never gives more than
 * there is room for, never stalls, and of a zlib stream it makes what zlib makes of it in one call. The first
 * byte chooses the format, the second where the cuts begin. */
#include "filters/compression.h"
#include "filters/registry.h"

#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define PLAIN_MOST_BYTES (1024 * 1024)

struct outcome {
	unsigned char plain[PLAIN_MOST_BYTES];
	size_t count;
	enum { ENDED, TRUNCATED, REFUSED, TOO_LARGE } end;
};

static struct outcome expected, seen;
static uint32_t random_state;

static size_t
draw(size_t below)
{
	random_state = random_state * 1664525 + 1013904223;
	return (random_state >> 8) % below;
}

static void
inflate_at_once(const uint8_t *bytes, size_t size)
{
	z_stream stream = { .next_in = (Bytef *)(uintptr_t)bytes, .avail_in = (uInt)size };
	if (inflateInit(&stream) != Z_OK)
		abort();
	stream.next_out = expected.plain;
	stream.avail_out = PLAIN_MOST_BYTES;
	int result = inflate(&stream, Z_SYNC_FLUSH);
	expected.count = PLAIN_MOST_BYTES - stream.avail_out;
	if (result == Z_STREAM_END)
		expected.end = stream.avail_in ? REFUSED : ENDED;
	else if (!stream.avail_out)
		expected.end = TOO_LARGE;
	else
		expected.end = result == Z_OK || result == Z_BUF_ERROR ? TRUNCATED : REFUSED;
	inflateEnd(&stream);
}

/* One step with a room of its own; what it gives is taken away. */
static enum filter_result
step(const struct filter_type *type, void *state, struct filter_io *io)
{
	io->room_bytes = draw(4) ? draw(8) * draw(20000) : draw(3);
	size_t length = evbuffer_get_length(io->src);
	enum filter_result result = type->step(state, FILTER_IN, io);
	size_t given = evbuffer_get_length(io->dst);
	if (given > (io->room_bytes ? io->room_bytes + FILTER_RECORD_BYTES : 0) ||
	    evbuffer_get_length(io->src) > length)
		abort();
	if (seen.count + given > PLAIN_MOST_BYTES)
		seen.end = TOO_LARGE;
	else
		evbuffer_remove(io->dst, seen.plain + seen.count, given);
	seen.count += given;
	return result;
}

static void
unpack(const struct filter_type *type, const struct compression_conf *conf, const uint8_t *bytes,
       size_t size)
{
	struct failure why = { .kind = FAILURE_NONE };
	struct filter_io io = { .src = evbuffer_new(), .dst = evbuffer_new(), .why = &why };
	static struct facts facts;
	void *state = type->open(conf, FILTER_NEAR, &facts, &why);
	if (!io.src || !io.dst || !state)
		abort();
	enum filter_result result = FILTER_REST;
	size_t at = 0;
	unsigned int quiet = 0;
	seen.count = 0;
	seen.end = ENDED;
	while (result != FILTER_END && result != FILTER_FAIL && seen.end == ENDED) {
		size_t count = draw(3) ? draw(20) : draw(5000), before = seen.count + size - at;
		count = count < size - at ? count : size - at;
		evbuffer_add_reference(io.src, bytes + at, count, NULL, NULL);
		at += count;
		io.flush = at == size ? FILTER_FINISHED : FILTER_FLUSH;
		size_t had = evbuffer_get_length(io.src);
		result = step(type, state, &io);
		quiet = before == seen.count + size - at && had == evbuffer_get_length(io.src)
				? quiet + 1
				: 0;
		if (quiet > 1000)
			abort(); /* neither moves nor ends */
	}
	if (result == FILTER_FAIL)
		seen.end = why.kind == FAILURE_TRUNCATED ? TRUNCATED : REFUSED;
	if (result == FILTER_FAIL && !why.text[0])
		abort();
	type->close(state);
	evbuffer_free(io.src);
	evbuffer_free(io.dst);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	if (size < 2)
		return 0;
	bool is_zlib = !(bytes[0] & 1);
	struct compression_conf conf = { .level = 1,
					 .window_bytes = is_zlib ? 32 * 1024 : 1024 * 1024 };
	struct failure why;
	const struct filter_type *type = registry_find(is_zlib ? "zlib" : "zstd");
	if (!type || type->configure(&conf, &why))
		abort();
	random_state = bytes[1];
	unpack(type, &conf, bytes + 2, size - 2);
	if (!is_zlib)
		return 0;
	inflate_at_once(bytes + 2, size - 2);
	if (seen.end != expected.end)
		abort();
	if (seen.end != TOO_LARGE &&
	    (seen.count != expected.count || memcmp(seen.plain, expected.plain, seen.count) != 0))
		abort();
	return 0;
}
