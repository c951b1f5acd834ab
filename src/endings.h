/*
 * endings: the last connections of a worker that ended, for who asks what happened a moment ago. Those that ended
 * well and the others are kept apart, so that many of the one push none of the other out. Texts are copies: what
 * they were of may be gone. Its worker's thread alone.
 */
#ifndef PENSTOCK_ENDINGS_H
#define PENSTOCK_ENDINGS_H

#include "address.h"

#include <stdbool.h>
#include <stdint.h>

#define ENDINGS_KEPT 12 /* of each kind */

struct ending {
	uint64_t id;
	uint64_t opened_ns, at_ns;
	uint64_t up_bytes, down_bytes;
	struct socket_address client;
	uint8_t ended_by; /* enum ended_by */
	uint8_t kind;     /* enum failure_kind; FAILURE_NONE: well */
	char tunnel[65];  /* these are cut off if longer; "" = none */
	char target[110], why[160];
};

/* Zeroed: none has ended. */
struct endings {
	struct ending kept[2][ENDINGS_KEPT]; /* well, and not */
	unsigned int count[2];               /* ever */
};

/* The place of one more, in that of the oldest of its kind; to be filled in. */
struct ending *endings_add(struct endings *endings, bool is_well);

/* Copies those that are kept to `out`, which has room for 2 * ENDINGS_KEPT; returns how many. */
unsigned int endings_copy(const struct endings *endings, struct ending *out);

/* Copies a text, cut off if longer. */
void endings_text(char *to, unsigned int size, const char *from);

#endif
