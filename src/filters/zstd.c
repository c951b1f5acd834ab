/*
 * zstd: a filter that speaks RFC 8878, one stream in each flow.
 *
 * A stream is one frame with a checksum. A packer that is `adaptive` needs several, since the
 * library changes its level between frames only: before each frame but the last it puts a skippable
 * frame without content (`more`). So the end of the last frame is the end mark of the stream, and
 * any reader of RFC 8878 reads it. No other skippable frame, legacy format or dictionary is taken.
 */
#include "compression.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

/* The library's fastest: nothing is looked for, what does not shrink by itself becomes raw blocks. */
#define STORING_LEVEL ZSTD_minCLevel()

/* From this level on the library's tables are made for windows of 2 MiB and more. */
#define LARGE_TABLES_LEVEL 9
#define LARGE_TABLES_BITS  20

static const unsigned char more[8] = { 0x50, 0x2a, 0x4d, 0x18 },
			   magic[4] = { 0x28, 0xb5, 0x2f, 0xfd };

static const struct keyword keywords[] = {
	COMPRESSION_KEYWORDS("3", 19, "256KiB", 1024, 8 * 1024 * 1024),
};

static enum compression_result
fail(size_t result, struct failure *why)
{
	ZSTD_ErrorCode code = ZSTD_getErrorCode(result);
	failure_set(why, code == ZSTD_error_memory_allocation ? FAILURE_MEMORY : FAILURE_PROTOCOL,
		    "zstd: %s",
		    code == ZSTD_error_frameParameter_windowTooLarge
			    ? "the peer's window is larger than ours"
			    : ZSTD_getErrorName(result));
	return COMPRESSION_FAILED;
}

/* --- Packer --------------------------------------------------------------------------------- */

struct packer {
	ZSTD_CCtx *context;
	int level;
	bool stores; /* what the present frame does */
	enum { FRAME_NONE, FRAME_MARK, FRAME_OPEN, FRAME_LAST } frame;
	size_t mark_given_bytes;
};

static void
packer_close(void *opaque)
{
	struct packer *packer = opaque;
	ZSTD_freeCCtx(packer->context);
	free(packer);
}

static size_t
packer_held(const void *opaque)
{
	const struct packer *packer = opaque;
	return sizeof(*packer) + ZSTD_sizeof_CCtx(packer->context);
}

static int
set(ZSTD_CCtx *context, ZSTD_cParameter parameter, int value)
{
	return ZSTD_isError(ZSTD_CCtx_setParameter(context, parameter, value)) ? -1 : 0;
}

/* Tables larger than the window cost memory and find nothing more. */
static int
set_tables(ZSTD_CCtx *context, int level, int window_bits)
{
	if (level < LARGE_TABLES_LEVEL || window_bits >= LARGE_TABLES_BITS)
		return 0;
	return set(context, ZSTD_c_hashLog, window_bits + 1) ||
			       set(context, ZSTD_c_chainLog, window_bits + 1)
		       ? -1
		       : 0;
}

static void *
packer_open(const struct compression_conf *conf)
{
	struct packer *packer = calloc(1, sizeof(*packer));
	if (!packer)
		return NULL;
	packer->level = (int)conf->level;
	packer->frame = conf->adaptive ? FRAME_NONE : FRAME_LAST;
	packer->context = ZSTD_createCCtx();
	if (!packer->context || set(packer->context, ZSTD_c_compressionLevel, packer->level) ||
	    set(packer->context, ZSTD_c_windowLog, conf->window_bits) ||
	    set(packer->context, ZSTD_c_checksumFlag, 1) ||
	    set_tables(packer->context, packer->level, conf->window_bits)) {
		packer_close(packer);
		return NULL;
	}
	return packer;
}

static enum compression_result
packer_call(const struct packer *packer, struct compression_pass *pass, enum compression_goal goal,
	    size_t in_bytes, struct failure *why)
{
	static const ZSTD_EndDirective directives[] = {
		[COMPRESSION_GO_ON] = ZSTD_e_continue,
		[COMPRESSION_FLUSH] = ZSTD_e_flush,
		[COMPRESSION_FINISH] = ZSTD_e_end,
	};
	ZSTD_inBuffer in = { pass->in, in_bytes, 0 };
	ZSTD_outBuffer out = { pass->out, pass->out_bytes, 0 };
	size_t left = ZSTD_compressStream2(packer->context, &out, &in, directives[goal]);
	pass->in = in_bytes ? pass->in + in.pos : pass->in;
	pass->in_bytes -= in.pos;
	pass->out += out.pos;
	pass->out_bytes -= out.pos;
	if (ZSTD_isError(left))
		return fail(left, why);
	return left || goal == COMPRESSION_GO_ON ? COMPRESSION_ON : COMPRESSION_DONE;
}

/* One move of the frames of an adaptive stream. COMPRESSION_DONE is only that of `goal`. */
static enum compression_result
packer_move(struct packer *packer, struct compression_pass *pass, struct failure *why)
{
	enum compression_result result;
	size_t count;
	switch (packer->frame) {
	case FRAME_NONE:
		packer->stores = pass->stores;
		packer->mark_given_bytes = 0;
		packer->frame = pass->in_bytes ? FRAME_MARK : FRAME_LAST;
		if (set(packer->context, ZSTD_c_compressionLevel,
			packer->stores ? STORING_LEVEL : packer->level) == 0)
			return COMPRESSION_ON;
		failure_set(why, FAILURE_SYSTEM, "zstd: the level cannot be set");
		return COMPRESSION_FAILED;
	case FRAME_MARK:
		count = sizeof(more) - packer->mark_given_bytes;
		count = count < pass->out_bytes ? count : pass->out_bytes;
		memcpy(pass->out, more + packer->mark_given_bytes, count);
		pass->out += count;
		pass->out_bytes -= count;
		packer->mark_given_bytes += count;
		if (packer->mark_given_bytes == sizeof(more))
			packer->frame = FRAME_OPEN;
		return COMPRESSION_ON;
	case FRAME_OPEN:
		if (packer->stores == pass->stores && pass->goal != COMPRESSION_FINISH)
			return packer_call(packer, pass, pass->goal, pass->in_bytes, why);
		result = packer_call(packer, pass, COMPRESSION_FINISH,
				     packer->stores == pass->stores ? pass->in_bytes : 0, why);
		if (result == COMPRESSION_DONE)
			packer->frame = FRAME_NONE;
		return result == COMPRESSION_DONE ? COMPRESSION_ON : result;
	case FRAME_LAST:
		break;
	}
	return packer_call(packer, pass, pass->goal, pass->in_bytes, why);
}

static enum compression_result
packer_run(void *opaque, struct compression_pass *pass, struct failure *why)
{
	struct packer *packer = opaque;
	enum compression_result result;
	do {
		result = packer_move(packer, pass, why);
	} while (result == COMPRESSION_ON && pass->out_bytes &&
		 (pass->in_bytes || pass->goal != COMPRESSION_GO_ON));
	return result;
}

/* --- Unpacker ------------------------------------------------------------------------------- */

struct unpacker {
	ZSTD_DCtx *context;
	const unsigned char *expected; /* what the present frame began with: `more`, `magic` */
	size_t seen_bytes;             /* of it */
	bool is_in_frame;
	bool is_not_last; /* the present frame, or the next one */
};

static void
unpacker_close(void *opaque)
{
	struct unpacker *unpacker = opaque;
	ZSTD_freeDCtx(unpacker->context);
	free(unpacker);
}

static size_t
unpacker_held(const void *opaque)
{
	const struct unpacker *unpacker = opaque;
	return sizeof(*unpacker) + ZSTD_sizeof_DCtx(unpacker->context);
}

static void *
unpacker_open(const struct compression_conf *conf)
{
	struct unpacker *unpacker = calloc(1, sizeof(*unpacker));
	if (!unpacker)
		return NULL;
	unpacker->context = ZSTD_createDCtx();
	if (!unpacker->context ||
	    ZSTD_isError(ZSTD_DCtx_setParameter(unpacker->context, ZSTD_d_windowLogMax,
						conf->window_bits))) {
		unpacker_close(unpacker);
		return NULL;
	}
	return unpacker;
}

static enum compression_result
unpacker_call(struct unpacker *unpacker, struct compression_pass *pass, ZSTD_inBuffer *in,
	      struct failure *why)
{
	ZSTD_outBuffer out = { pass->out, pass->out_bytes, 0 };
	size_t left = ZSTD_decompressStream(unpacker->context, &out, in);
	pass->out += out.pos;
	pass->out_bytes -= out.pos;
	if (ZSTD_isError(left))
		return fail(left, why);
	return left ? COMPRESSION_ON : COMPRESSION_DONE;
}

/* Takes one byte of what stands before a frame's header. */
static enum compression_result
unpacker_begin(struct unpacker *unpacker, struct compression_pass *pass, struct failure *why)
{
	if (!unpacker->seen_bytes)
		unpacker->expected = !unpacker->is_not_last && *pass->in == more[0] ? more : magic;
	if (*pass->in != unpacker->expected[unpacker->seen_bytes]) {
		failure_set(why, FAILURE_PROTOCOL,
			    "zstd: the bytes are no zstd stream; does the other end compress the "
			    "same way?");
		return COMPRESSION_FAILED;
	}
	pass->in++;
	pass->in_bytes--;
	unpacker->seen_bytes++;
	if (unpacker->expected == more && unpacker->seen_bytes == sizeof(more)) {
		unpacker->is_not_last = true;
		unpacker->seen_bytes = 0;
	} else if (unpacker->expected == magic && unpacker->seen_bytes == sizeof(magic)) {
		unpacker->is_in_frame = true;
		unpacker->seen_bytes = 0;
		ZSTD_inBuffer in = { magic, sizeof(magic), 0 };
		return unpacker_call(unpacker, pass, &in, why);
	}
	return COMPRESSION_ON;
}

static enum compression_result
unpacker_frame(struct unpacker *unpacker, struct compression_pass *pass, struct failure *why)
{
	ZSTD_inBuffer in = { pass->in, pass->in_bytes, 0 };
	enum compression_result result = unpacker_call(unpacker, pass, &in, why);
	if (in.pos)
		pass->in += in.pos;
	pass->in_bytes -= in.pos;
	if (result != COMPRESSION_DONE)
		return result;
	unpacker->is_in_frame = false;
	bool is_last = !unpacker->is_not_last;
	unpacker->is_not_last = false;
	return is_last ? COMPRESSION_DONE : COMPRESSION_ON;
}

static enum compression_result
unpacker_run(void *opaque, struct compression_pass *pass, struct failure *why)
{
	struct unpacker *unpacker = opaque;
	enum compression_result result = COMPRESSION_ON;
	do { /* also without input: it may hold what found no space before */
		if (unpacker->is_in_frame)
			result = unpacker_frame(unpacker, pass, why);
		else if (pass->in_bytes)
			result = unpacker_begin(unpacker, pass, why);
	} while (result == COMPRESSION_ON && pass->in_bytes && pass->out_bytes);
	return result;
}

/* --- Filter --------------------------------------------------------------------------------- */

static const struct compression_format format = {
	.name = "zstd",
	.kind = COMPRESSION_ZSTD,
	.coders = {
		[FILTER_IN] = { unpacker_open, unpacker_run, unpacker_held, unpacker_close },
		[FILTER_OUT] = { packer_open, packer_run, packer_held, packer_close },
	},
};

static void *
zstd_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	(void)side;
	return compression_open(&format, conf, facts, why);
}

static const char *
zstd_library(void)
{
	static char text[32];
	snprintf(text, sizeof(text), "libzstd %s", ZSTD_versionString());
	return text;
}

const struct filter_type zstd_filter = {
	.name = "zstd",
	.traits = FILTER_END_MARK | FILTER_PACKS,
	.conf_bytes = sizeof(struct compression_conf),
	.keywords = keywords,
	.configure = compression_configure,
	.open = zstd_open,
	.step = compression_step,
	.kept = compression_kept,
	.held = compression_held,
	.close = compression_close,
	.library = zstd_library,
};
