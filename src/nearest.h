/*
 * nearest: of several known words the one somebody may have meant.
 */
#ifndef PENSTOCK_NEAREST_H
#define PENSTOCK_NEAREST_H

#include <stddef.h>

struct nearest {
	const char *written;
	const char *best; /* NULL = none is near enough; borrowed from who offered it */
	size_t distance;  /* of `best` */
};

/* `written` is borrowed. At first no word is near enough that differs in more than a third, small and capital
 * letters being the same; of which it is the beginning is as near as what differs in one letter. */
void nearest_start(struct nearest *nearest, const char *written);

/* O(length of both). Words of more than 64 bytes are near to nothing. */
void nearest_offer(struct nearest *nearest, const char *candidate);

#endif
