#include "nearest.h"

#include <ctype.h>
#include <string.h>

#define WORD_MOST    64
#define PREFIX_LEAST 3

void
nearest_start(struct nearest *nearest, const char *written)
{
	*nearest = (struct nearest){
		.written = written, .distance = (strlen(written) + 2) / 3 + 1, /* one too far */
	};
}

/* Levenshtein: how many letters to add, leave out or change. */
static size_t
distance(const char *a, const char *b)
{
	size_t row[WORD_MOST + 1], length = strlen(b);
	for (size_t j = 0; j <= length; j++)
		row[j] = j;
	for (size_t i = 1; a[i - 1]; i++) {
		size_t diagonal = row[0];
		row[0] = i;
		for (size_t j = 1; j <= length; j++) {
			size_t least = diagonal + (tolower((unsigned char)a[i - 1]) !=
						   tolower((unsigned char)b[j - 1]));
			if (row[j] + 1 < least)
				least = row[j] + 1;
			if (row[j - 1] + 1 < least)
				least = row[j - 1] + 1;
			diagonal = row[j];
			row[j] = least;
		}
	}
	return row[length];
}

void
nearest_offer(struct nearest *nearest, const char *candidate)
{
	if (strlen(candidate) > WORD_MOST || strlen(nearest->written) > WORD_MOST)
		return;
	size_t found = distance(nearest->written, candidate), length = strlen(nearest->written);
	if (length >= PREFIX_LEAST && found > 1 &&
	    strncmp(candidate, nearest->written, length) == 0)
		found = 1;
	if (found < nearest->distance) {
		nearest->distance = found;
		nearest->best = candidate;
	}
}
