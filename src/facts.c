#include "facts.h"

#include <stdlib.h>
#include <string.h>

static const size_t texts[] = {
	offsetof(struct facts, alpn),
	offsetof(struct facts, tls_version),
	offsetof(struct facts, tls_cipher),
	offsetof(struct facts, certificate),
	offsetof(struct facts, common_name),
	offsetof(struct facts, sni),
	offsetof(struct facts, alpn_offered),
	offsetof(struct facts, authority),
	offsetof(struct facts, unique_id),
	offsetof(struct facts, told_alpn),
	offsetof(struct facts, told_tls_version),
	offsetof(struct facts, told_tls_cipher),
	offsetof(struct facts, told_common_name),
};
#define TEXTS (sizeof(texts) / sizeof(texts[0]))

static char **
slot_of(struct facts *facts, size_t index)
{
	return (char **)((char *)facts + texts[index]);
}

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

int
facts_copy(struct facts *to, const struct facts *from)
{
	int result = 0;
	*to = *from;
	for (size_t i = 0; i < TEXTS; i++) {
		char **slot = slot_of(to, i);
		const char *text = *slot;
		*slot = NULL;
		if (text && facts_set(slot, text, strlen(text)) < 0)
			result = -1;
	}
	return result;
}

void
facts_release(struct facts *facts)
{
	for (size_t i = 0; i < TEXTS; i++) {
		free(*slot_of(facts, i));
		*slot_of(facts, i) = NULL;
	}
}
