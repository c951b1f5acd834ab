/*
 * zlib: a filter that speaks RFC 1950 streams, one in each flow.
 */
#include "compression.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define ZLIB_CONST
#include <zlib.h>

/* Blocks end with each flush at the latest, so that of more memory (8 is the library's default)
 * nothing is gained: measured 0.1620 of a text either way. */
#define MEMORY_LEVEL 7

static const struct keyword keywords[] = {
	COMPRESSION_KEYWORDS("6", 9, "32KiB", 512, 32 * 1024),
};

struct coder {
	z_stream stream;
	size_t held_bytes; /* by the library */
	int level;
	bool stores; /* packer: what it does at present */
};

static void *
take_memory(void *opaque, unsigned int count, unsigned int size)
{
	struct coder *coder = opaque;
	void *memory = malloc((size_t)count * size);
	coder->held_bytes += malloc_usable_size(memory);
	return memory;
}

static void
give_memory(void *opaque, void *memory)
{
	struct coder *coder = opaque;
	coder->held_bytes -= malloc_usable_size(memory);
	free(memory);
}

static struct coder *
coder_open(void)
{
	struct coder *coder = calloc(1, sizeof(*coder));
	if (!coder)
		return NULL;
	coder->stream.zalloc = take_memory;
	coder->stream.zfree = give_memory;
	coder->stream.opaque = coder;
	return coder;
}

static size_t
coder_held(const void *opaque)
{
	const struct coder *coder = opaque;
	return sizeof(*coder) + coder->held_bytes;
}

static void
lend(z_stream *stream, const struct compression_pass *pass)
{
	stream->next_in = pass->in;
	stream->avail_in = (uInt)pass->in_bytes;
	stream->next_out = pass->out;
	stream->avail_out = (uInt)pass->out_bytes;
}

static void
take_back(const z_stream *stream, struct compression_pass *pass)
{
	pass->in = stream->next_in;
	pass->in_bytes = stream->avail_in;
	pass->out = stream->next_out;
	pass->out_bytes = stream->avail_out;
}

/* What an operator may meet, by what the library calls it. */
static const struct {
	const char *said, *words;
} translations[] = {
	{ "incorrect header check",
	  "the bytes are no zlib stream; does the other end compress the same way?" },
	{ "unknown compression method",
	  "the bytes are no zlib stream; does the other end compress the same way?" },
	{ "invalid window size", "the peer's window is larger than ours" },
	{ "need dictionary", "the stream wants a dictionary" },
};

static enum compression_result
fail(const z_stream *stream, int result, struct failure *why)
{
	const char *words = stream->msg ? stream->msg : zError(result);
	for (size_t i = 0; i < sizeof(translations) / sizeof(translations[0]); i++)
		if (strcmp(words, translations[i].said) == 0)
			words = translations[i].words;
	failure_set(why, result == Z_MEM_ERROR ? FAILURE_MEMORY : FAILURE_PROTOCOL, "zlib: %s",
		    words);
	return COMPRESSION_FAILED;
}

/* --- Packer --------------------------------------------------------------------------------- */

static void *
packer_open(const struct compression_conf *conf)
{
	struct coder *packer = coder_open();
	if (!packer)
		return NULL;
	packer->level = (int)conf->level;
	if (deflateInit2(&packer->stream, packer->level, Z_DEFLATED, conf->window_bits,
			 MEMORY_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK) {
		free(packer);
		return NULL;
	}
	return packer;
}

static void
packer_close(void *opaque)
{
	struct coder *packer = opaque;
	deflateEnd(&packer->stream);
	free(packer);
}

/* Behind a flush the library has nothing left to write under the old level. */
static void
packer_turn(struct coder *packer, const struct compression_pass *pass)
{
	packer->stream.avail_in = 0;
	if (deflateParams(&packer->stream, pass->stores ? 0 : packer->level, Z_DEFAULT_STRATEGY) ==
	    Z_OK)
		packer->stores = pass->stores;
	packer->stream.avail_in = (uInt)pass->in_bytes;
}

static enum compression_result
packer_run(void *opaque, struct compression_pass *pass, struct failure *why)
{
	static const int flushes[] = {
		[COMPRESSION_GO_ON] = Z_NO_FLUSH,
		[COMPRESSION_FLUSH] = Z_SYNC_FLUSH,
		[COMPRESSION_FINISH] = Z_FINISH,
	};
	struct coder *packer = opaque;
	lend(&packer->stream, pass);
	if (pass->stores != packer->stores)
		packer_turn(packer, pass);
	int result = deflate(&packer->stream, flushes[pass->goal]);
	take_back(&packer->stream, pass);

	if (result == Z_STREAM_END)
		return COMPRESSION_DONE;
	if (result != Z_OK && result != Z_BUF_ERROR)
		return fail(&packer->stream, result, why);
	return pass->goal == COMPRESSION_FLUSH && pass->out_bytes ? COMPRESSION_DONE
								  : COMPRESSION_ON;
}

/* --- Unpacker ------------------------------------------------------------------------------- */

static void *
unpacker_open(const struct compression_conf *conf)
{
	struct coder *unpacker = coder_open();
	if (!unpacker)
		return NULL;
	if (inflateInit2(&unpacker->stream, conf->window_bits) != Z_OK) {
		free(unpacker);
		return NULL;
	}
	return unpacker;
}

static void
unpacker_close(void *opaque)
{
	struct coder *unpacker = opaque;
	inflateEnd(&unpacker->stream);
	free(unpacker);
}

static enum compression_result
unpacker_run(void *opaque, struct compression_pass *pass, struct failure *why)
{
	struct coder *unpacker = opaque;
	lend(&unpacker->stream, pass);
	int result = inflate(&unpacker->stream, Z_NO_FLUSH);
	take_back(&unpacker->stream, pass);

	if (result == Z_STREAM_END)
		return COMPRESSION_DONE;
	if (result == Z_OK || result == Z_BUF_ERROR)
		return COMPRESSION_ON;
	return fail(&unpacker->stream, result, why);
}

/* --- Filter --------------------------------------------------------------------------------- */

static const struct compression_format format = {
	.name = "zlib",
	.kind = COMPRESSION_ZLIB,
	.coders = {
		[FILTER_IN] = { unpacker_open, unpacker_run, coder_held, unpacker_close },
		[FILTER_OUT] = { packer_open, packer_run, coder_held, packer_close },
	},
};

static void *
zlib_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	(void)side;
	return compression_open(&format, conf, facts, why);
}

static const char *
zlib_library(void)
{
	static char text[32];
	snprintf(text, sizeof(text), "zlib %s", zlibVersion());
	return text;
}

const struct filter_type zlib_filter = {
	.name = "zlib",
	.traits = FILTER_END_MARK | FILTER_PACKS,
	.conf_bytes = sizeof(struct compression_conf),
	.keywords = keywords,
	.configure = compression_configure,
	.open = zlib_open,
	.step = compression_step,
	.kept = compression_kept,
	.held = compression_held,
	.close = compression_close,
	.library = zlib_library,
};
