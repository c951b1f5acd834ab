#include "facts.h"

#include <stdlib.h>
#include <string.h>

static const size_t texts[] = {
	offsetof(struct facts, alpn),         offsetof(struct facts, certificate),
	offsetof(struct facts, common_name),  offsetof(struct facts, sni),
	offsetof(struct facts, alpn_offered),
};
static const size_t header_texts[] = {
	offsetof(struct header_facts, authority),  offsetof(struct header_facts, unique_id),
	offsetof(struct header_facts, alpn),       offsetof(struct header_facts, tls_version),
	offsetof(struct header_facts, tls_cipher), offsetof(struct header_facts, common_name),
};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

int
facts_set(char **slot, const char *text, size_t length)
{
	free(*slot);
	*slot = strndup(text, length);
	return *slot ? 0 : -1;
}

int
facts_set_host(char **slot, const char *name, size_t length)
{
	if (length > 1 && name[length - 1] == '.')
		length--;
	free(*slot);
	*slot = NULL;
	for (size_t i = 0; i < length; i++)
		if (name[i] <= ' ' || name[i] >= 0x7f)
			return 0;
	if (!length || (length == 1 && *name == '.'))
		return 0;
	*slot = strndup(name, length);
	if (!*slot)
		return -1;
	for (char *at = *slot; *at; at++)
		if (*at >= 'A' && *at <= 'Z')
			*at = (char)(*at + ('a' - 'A'));
	return 0;
}

/* Gives each text of `at`, which are another's, a copy. */
static int
copy_texts(void *at, const size_t *offsets, size_t count)
{
	int result = 0;
	for (size_t i = 0; i < count; i++) {
		char **slot = (char **)((char *)at + offsets[i]);
		const char *text = *slot;
		*slot = NULL;
		if (text && facts_set(slot, text, strlen(text)) < 0)
			result = -1;
	}
	return result;
}

static void
free_texts(void *at, const size_t *offsets, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		char **slot = (char **)((char *)at + offsets[i]);
		free(*slot);
		*slot = NULL;
	}
}

const struct header_facts *
facts_of_header(const struct facts *facts)
{
	static const struct header_facts nothing;
	return facts->header ? facts->header : &nothing;
}

struct header_facts *
facts_make_header(struct facts *facts)
{
	if (!facts->header)
		facts->header = calloc(1, sizeof(*facts->header));
	return facts->header;
}

int
facts_copy(struct facts *to, const struct facts *from)
{
	*to = *from;
	to->header = NULL;
	int result = copy_texts(to, texts, COUNT(texts));
	if (!from->header)
		return result;
	if (!facts_make_header(to))
		return -1;
	*to->header = *from->header;
	return copy_texts(to->header, header_texts, COUNT(header_texts)) < 0 ? -1 : result;
}

void
facts_release(struct facts *facts)
{
	free_texts(facts, texts, COUNT(texts));
	if (facts->header)
		free_texts(facts->header, header_texts, COUNT(header_texts));
	free(facts->header);
	facts->header = NULL;
}
