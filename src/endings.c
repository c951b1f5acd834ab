#include "endings.h"

#include <string.h>

struct ending *
endings_add(struct endings *endings, bool is_well)
{
	return &endings->kept[!is_well][endings->count[!is_well]++ % ENDINGS_KEPT];
}

unsigned int
endings_copy(const struct endings *endings, struct ending *out)
{
	unsigned int count = 0;

	for (int i = 0; i < 2; i++) {
		unsigned int kept =
			endings->count[i] < ENDINGS_KEPT ? endings->count[i] : ENDINGS_KEPT;
		memcpy(out + count, endings->kept[i], kept * sizeof(*out));
		count += kept;
	}
	return count;
}

void
endings_text(char *to, unsigned int size, const char *from)
{
	size_t length = strnlen(from, size - 1);
	memcpy(to, from, length);
	to[length] = '\0';
}
