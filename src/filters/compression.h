/*
 * compression: what the filters of compressed streams share. `out` packs and `in` unpacks; here stands
 * when a coder is made, called, flushed and let go, how much it gets and may give, and what was
 * gained. It knows no format: a format is two coders (zlib.c, zstd.c).
 *
 * A stream ends with the format's own mark. What comes behind it is a failure, whenever it comes;
 * so the end is passed on when the source has ended too.
 */
#ifndef PENSTOCK_FILTERS_COMPRESSION_H
#define PENSTOCK_FILTERS_COMPRESSION_H

#include "../filter.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The object of a filter's section. */
struct compression_conf {
	uint64_t level;
	uint64_t window_bytes; /* of our packer, and the most that a peer's may need here */
	bool adaptive;
	int window_bits; /* window_bytes = 1 << window_bits; by compression_configure */
};

/* The rows of a section; levels and sizes as an operator writes them. */
#define COMPRESSION_KEYWORDS(level_default, level_most, window_default, window_least, window_most) \
	{                                                                                          \
		.name = "level",                                                                   \
		.type = KEYWORD_COUNT,                                                             \
		.fallback = (level_default),                                                       \
		.least = 1,                                                                        \
		.most = (level_most),                                                              \
		.offset = offsetof(struct compression_conf, level),                                \
		.effect = EFFECT_NEW_CONNECTIONS,                                                  \
		.help = "How hard to compress; more costs more time.",                             \
	},                                                                                         \
		{                                                                                  \
			.name = "window",                                                          \
			.type = KEYWORD_SIZE,                                                      \
			.fallback = (window_default),                                              \
			.least = (window_least),                                                   \
			.most = (window_most),                                                     \
			.offset = offsetof(struct compression_conf, window_bytes),                 \
			.effect = EFFECT_NEW_CONNECTIONS,                                          \
			.unit = "bytes",                                                           \
			.help = "How far back repetitions are found, and the most that a peer's "  \
				"stream may ask for; a power of two.",                             \
		},                                                                                 \
		{                                                                                  \
			.name = "adaptive",                                                        \
			.type = KEYWORD_FLAG,                                                      \
			.fallback = "false",                                                       \
			.offset = offsetof(struct compression_conf, adaptive),                     \
			.effect = EFFECT_NEW_CONNECTIONS,                                          \
			.help = "Whether to store instead of compress while that gains nothing.",  \
		},                                                                                 \
	{                                                                                          \
		.name = NULL                                                                       \
	}

/* What a packer is to reach in one call. Once it is asked to flush or finish it is asked again
 * until that is done; behind a finish comes no input. */
enum compression_goal {
	COMPRESSION_GO_ON,
	COMPRESSION_FLUSH,  /* give all that was taken */
	COMPRESSION_FINISH, /* and the end mark */
};

#define COMPRESSION_OUT_LEAST_BYTES 64

/* One call of a coder, which moves both ends forward by what it takes and gives. */
struct compression_pass {
	const unsigned char *in;
	size_t in_bytes; /* at most FILTER_KEPT_BYTES */
	unsigned char *out;
	size_t out_bytes; /* at first at least COMPRESSION_OUT_LEAST_BYTES */
	enum compression_goal goal;
	bool stores; /* packer: do not compress; changes only after a flush is done */
};

enum compression_result {
	COMPRESSION_ON,   /* all of in is taken or all of out is used */
	COMPRESSION_DONE, /* packer: the goal is reached. Unpacker: at the end mark, all is given */
	COMPRESSION_FAILED,
};

/* One direction of a format: const tables of functions. `run` fills *why when it fails. */
struct compression_coder {
	void *(*open)(const struct compression_conf *conf); /* NULL = no memory */
	enum compression_result (*run)(void *coder, struct compression_pass *pass,
				       struct failure *why);
	size_t (*held)(const void *coder); /* bytes of its memory */
	void (*close)(void *coder);
};

enum compression_kind { COMPRESSION_ZLIB, COMPRESSION_ZSTD, COMPRESSION_KINDS };

struct compression_format {
	const char *name; /* in failures */
	enum compression_kind kind;
	struct compression_coder coders[FILTER_FLOWS]; /* in: unpacker, out: packer */
};

/* The slots of a filter's table. The format outlives every state. A coder's memory is taken with
 * the first byte of its flow and given back with the last. */
int compression_configure(void *conf, struct failure *why);
void *compression_open(const struct compression_format *format, const struct compression_conf *conf,
		       const struct facts *facts, struct failure *why);
enum filter_result compression_step(void *state, enum filter_flow flow, struct filter_io *io);
size_t compression_kept(const void *state);
size_t compression_held(const void *state);
void compression_close(void *state);

/* What all connections of the process but its own checks have moved since its start. */
struct compression_totals {
	uint64_t plain_bytes;  /* on the core's side */
	uint64_t packed_bytes; /* on the wire's side */
	uint64_t stored_bytes; /* out: of plain_bytes those that `adaptive` did not compress */
};

/* From any thread; the numbers of one moment need not fit together to the byte. */
struct compression_totals compression_read_totals(enum compression_kind kind,
						  enum filter_flow flow);

#endif
