#include "utf8.h"

size_t
utf8_character(const char *text, uint32_t *code)
{
	const unsigned char *at = (const unsigned char *)text;
	size_t bytes;

	if (at[0] < 0x80) {
		*code = at[0];
		return 1;
	}
	if (at[0] >= 0xc2 && at[0] <= 0xdf) {
		bytes = 2;
		*code = at[0] & 0x1f;
	} else if ((at[0] & 0xf0) == 0xe0) {
		bytes = 3;
		*code = at[0] & 0x0f;
	} else if (at[0] >= 0xf0 && at[0] <= 0xf4) {
		bytes = 4;
		*code = at[0] & 0x07;
	} else {
		return 0;
	}
	for (size_t i = 1; i < bytes; i++) {
		if ((at[i] & 0xc0) != 0x80) /* the final zero, too */
			return 0;
		*code = *code << 6 | (at[i] & 0x3f);
	}
	if ((bytes == 3 && (*code < 0x800 || (*code >= 0xd800 && *code <= 0xdfff))) ||
	    (bytes == 4 && (*code < 0x10000 || *code > 0x10ffff)))
		return 0;
	return bytes;
}

void
utf8_mend(char *text)
{
	uint32_t code;

	while (*text) {
		size_t bytes = utf8_character(text, &code);
		if (!bytes)
			*text = '?';
		text += bytes ? bytes : 1;
	}
}
