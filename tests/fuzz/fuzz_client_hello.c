/* Any bytes as what a TLS client says first: the result does not depend on what follows, asks for bytes
 * that are still missing, and comes at a bounded size. */
#include "filters/client_hello.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void
check_found(const struct client_hello *hello)
{
	size_t length = strlen(hello->sni);
	if (length > CLIENT_HELLO_NAME || hello->message_bytes > sizeof(hello->message) ||
	    (length > 1 && hello->sni[length - 1] == '.' && hello->sni[length - 2] != '.'))
		abort();
	for (const char *at = hello->sni; *at; at++)
		if (*at <= ' ' || *at >= 0x7f || (*at >= 'A' && *at <= 'Z'))
			abort();
	if (strlen(hello->alpn) >= sizeof(hello->alpn) || strpbrk(hello->alpn, " \n\x7f"))
		abort();
}

static bool
is_same(const struct client_hello *a, const struct client_hello *b)
{
	return strcmp(a->sni, b->sni) == 0 && strcmp(a->alpn, b->alpn) == 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static struct client_hello hello, part;
	struct failure why = { .kind = FAILURE_NONE };
	enum client_hello_result result = client_hello_parse(bytes, size, &hello, &why);
	if (result == CLIENT_HELLO_FOUND)
		check_found(&hello);
	if (result == CLIENT_HELLO_MORE &&
	    (size >= CLIENT_HELLO_MOST || hello.wanted_bytes <= size ||
	     hello.wanted_bytes > CLIENT_HELLO_MOST))
		abort();
	if ((result == CLIENT_HELLO_BAD) != (why.kind == FAILURE_PROTOCOL))
		abort();
	for (size_t cut = 0; cut < size; cut += 1 + size / 64) {
		enum client_hello_result early = client_hello_parse(bytes, cut, &part, &why);
		if (early == CLIENT_HELLO_MORE) {
			if (part.wanted_bytes > size && result == CLIENT_HELLO_FOUND)
				abort();
			continue;
		}
		if (early != result || (early == CLIENT_HELLO_FOUND && !is_same(&hello, &part)))
			abort();
	}
	return 0;
}
