/* Any bytes as a PROXY header: what is found whole does not depend on what follows, what is taken can
 * be written again and means the same, what is refused says why. */
#include "filters/proxy_header.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static bool
same_span(struct proxy_span a, struct proxy_span b)
{
	return !a.at == !b.at && a.length == b.length &&
	       (!a.at || memcmp(a.at, b.at, a.length) == 0);
}

static bool
same(const struct proxy_header *a, const struct proxy_header *b)
{
	return a->is_local == b->is_local && socket_address_equal(&a->source, &b->source) &&
	       socket_address_equal(&a->destination, &b->destination) &&
	       same_span(a->alpn, b->alpn) && same_span(a->authority, b->authority) &&
	       same_span(a->unique_id, b->unique_id) && same_span(a->tls_version, b->tls_version) &&
	       same_span(a->tls_cipher, b->tls_cipher) &&
	       same_span(a->common_name, b->common_name) && a->is_tls == b->is_tls &&
	       a->has_certificate == b->has_certificate && a->is_verified == b->is_verified;
}

static void
check_again(const struct proxy_header *header)
{
	static uint8_t bytes[PROXY_HEADER_MOST];
	struct proxy_header again;
	struct failure why;
	size_t header_bytes, count = proxy_header_write(2, PROXY_TLVS_ALL, header, bytes);
	if (proxy_header_measure(bytes, count, &header_bytes, &why) != PROXY_WHOLE ||
	    header_bytes != count || proxy_header_parse(bytes, count, &again, &why))
		abort();
	/* A checksum of ours may be what makes it too long for all. */
	if (!same(header, &again) && count < PROXY_HEADER_MOST - 600)
		abort();
	count = proxy_header_write(1, PROXY_TLVS_ALL, header, bytes);
	if (proxy_header_measure(bytes, count, &header_bytes, &why) != PROXY_WHOLE ||
	    header_bytes != count || proxy_header_parse(bytes, count, &again, &why))
		abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct proxy_header header;
	struct failure why = { .kind = FAILURE_NONE };
	size_t header_bytes, ignored;
	enum proxy_result result = proxy_header_measure(bytes, size, &header_bytes, &why);
	if (result == PROXY_MORE && (header_bytes <= size || header_bytes > PROXY_HEADER_MOST))
		abort();
	if (result == PROXY_WHOLE) {
		if (header_bytes > size || header_bytes > PROXY_HEADER_MOST ||
		    proxy_header_measure(bytes, header_bytes, &ignored, &why) != PROXY_WHOLE ||
		    proxy_header_measure(bytes, header_bytes - 1, &ignored, &why) != PROXY_MORE)
			abort();
		if (proxy_header_parse(bytes, header_bytes, &header, &why) == 0)
			check_again(&header);
		else
			result = PROXY_BAD;
	}
	if (result == PROXY_BAD && (why.kind != FAILURE_PROTOCOL || !why.text[0]))
		abort();
	return 0;
}
