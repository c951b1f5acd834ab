/* proxy_header: every header as the specification has it, every prefix, every cut of a TLV, garbage.
 * proxy_protocol: whom it trusts, what it learns and what it says. */
#include "config_value.h"
#include "filters/proxy_header.h"
#include "filters/registry.h"
#include "stack_ends.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define SIGNATURE "\r\n\r\n\0\r\nQUIT\n"

static struct socket_address
ip(const char *text)
{
	struct address parsed;
	struct failure why;
	if (address_parse(text, &parsed, &why))
		fail_msg("%s", why.text);
	struct socket_address numeric = parsed.numeric;
	address_release(&parsed);
	return numeric;
}

static struct proxy_span
span(const char *text)
{
	return (struct proxy_span){ (const uint8_t *)text, strlen(text) };
}

static void
assert_span(struct proxy_span got, const char *want)
{
	if (!want) {
		assert_null(got.at);
		return;
	}
	assert_non_null(got.at);
	assert_int_equal(got.length, strlen(want));
	assert_memory_equal(got.at, want, got.length);
}

static void
assert_address(const struct socket_address *got, const char *want)
{
	char text[SOCKET_ADDRESS_TEXT];
	assert_string_equal(socket_address_text(got, text), want);
}

/* Measures and reads exactly these bytes, out of a block that ends with them. */
static enum proxy_result
read_header(const void *bytes, size_t count, struct proxy_header *out, struct failure *why)
{
	uint8_t *copy = malloc(count ? count : 1); /* so that a sanitizer sees a step too far */
	size_t header_bytes;
	*why = (struct failure){ .kind = FAILURE_NONE };
	memcpy(copy, bytes, count);
	enum proxy_result result = proxy_header_measure(copy, count, &header_bytes, why);
	if (result == PROXY_WHOLE) {
		assert_true(header_bytes <= count);
		if (proxy_header_parse(copy, header_bytes, out, why))
			result = PROXY_BAD;
	} else if (result == PROXY_MORE) {
		assert_true(header_bytes > count && header_bytes <= PROXY_HEADER_MOST);
	}
	if ((result == PROXY_BAD) != (why->kind == FAILURE_PROTOCOL && why->text[0]))
		fail_msg("result %d with failure %d: %s", (int)result, (int)why->kind, why->text);
	free(copy);
	return result;
}

static void
expect_bad(const void *bytes, size_t count, const char *text)
{
	struct proxy_header header;
	struct failure why;
	if (read_header(bytes, count, &header, &why) != PROXY_BAD)
		fail_msg("taken: %.*s", (int)count, (const char *)bytes);
	if (!strstr(why.text, text))
		fail_msg("'%s' does not say '%s'", why.text, text);
}

/* --- Version 1 ---------------------------------------------------------------------------------- */

static void
test_v1_lines(void **unused)
{
	(void)unused;
	static const struct {
		const char *line, *source, *destination;
	} good[] = {
		{ "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "192.168.0.1:56324",
		  "192.168.0.11:443" },
		{ "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
		  "255.255.255.255:65535", "255.255.255.255:65535" },
		{ "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0:0", "0.0.0.0:0" },
		{ "PROXY TCP6 2001:db8::1 2001:DB8::2 4711 443\r\n", "[2001:db8::1]:4711",
		  "[2001:db8::2]:443" },
		{ "PROXY TCP6 ::ffff:10.0.0.1 ::ffff:a00:2 1 2\r\n", "10.0.0.1:1", "10.0.0.2:2" },
		{ "PROXY UNKNOWN\r\n", "unknown", "unknown" },
		{ "PROXY UNKNOWN whatever \1\2 this is\r\n", "unknown", "unknown" },
		{ "PROXY UNKNOWN ffff:f:f:f:f:f:f:ffff ffff:f:f:f:f:f:f:ffff 65535 65535\r\n",
		  "unknown", "unknown" },
	};
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		struct proxy_header header;
		struct failure why;
		size_t length = strlen(good[i].line);
		if (read_header(good[i].line, length, &header, &why) != PROXY_WHOLE)
			fail_msg("%s: %s", good[i].line, why.text);
		assert_address(&header.source, good[i].source);
		assert_address(&header.destination, good[i].destination);
		assert_false(header.is_local);
		for (size_t cut = 0; cut < length; cut++)
			assert_int_equal(read_header(good[i].line, cut, &header, &why), PROXY_MORE);
	}
}

static void
test_v1_mistakes(void **unused)
{
	(void)unused;
	static const struct {
		const char *line, *why;
	} bad[] = {
		{ "GET / HTTP/1.1\r\n", "no PROXY header: the bytes begin otherwise" },
		{ "\x16\x03\x01", "no PROXY header: the bytes begin with TLS" },
		{ "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "no PROXY header" },
		{ "PROXYTCP4 1.2.3.4 1.2.3.4 1 2\r\n", "no PROXY header" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", "CR LF" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rx", "CR LF" },
		{ "PROXY TCP4 1.2.3.4\r 1.2.3.4 1 2\r\n", "CR LF" },
		{ "PROXY UNKNOWN\rx\r\n", "CR LF" },
		{ "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "more than six" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", "more than six" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4  1 2\r\n", "more than six" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "less than six" },
		{ "PROXY TCP4\r\n", "less than six" },
		{ "PROXY \r\n", "neither TCP4" },
		{ "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", "neither TCP4" },
		{ "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "neither TCP4" },
		{ "PROXY UNKNOWNS\r\n", "neither TCP4" },
		{ "PROXY TCP4 ::1 ::1 1 2\r\n", "no IPv4" },
		{ "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "no IPv6" },
		{ "PROXY TCP6 ::1 ::1%1 1 2\r\n", "no IPv6" },
		{ "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n", "no IPv4" },
		{ "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", "no IPv4" },
		{ "PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", "no IPv4" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", "a port" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", "a port" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4 1 -2\r\n", "a port" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4 1 999999\r\n", "a port" },
		{ "PROXY TCP4 1.2.3.4 1.2.3.4  2\r\n", "a port" },
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		expect_bad(bad[i].line, strlen(bad[i].line), bad[i].why);
	static const char zero[] = "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\0\r\n";
	expect_bad(zero, sizeof(zero) - 1, "zero byte");
}

static void
test_v1_longest(void **unused)
{
	(void)unused;
	struct proxy_header header;
	struct failure why;
	char line[PROXY_HEADER_V1_MOST + 1];
	memset(line, 'x', sizeof(line));
	memcpy(line, "PROXY UNKNOWN ", 14);
	assert_int_equal(read_header(line, 106, &header, &why), PROXY_MORE);
	expect_bad(line, 107, "longer than 107");
	memcpy(line + 105, "\r\n", 2);
	assert_int_equal(read_header(line, 107, &header, &why), PROXY_WHOLE);
	memcpy(line + 105, "x\r\n", 3);
	expect_bad(line, 108, "");
}

/* --- Version 2 ---------------------------------------------------------------------------------- */

/* A header of version 2 as bytes; add() appends, done() sets the length. */
struct raw {
	uint8_t bytes[PROXY_HEADER_MOST + 64];
	size_t count;
};

static void
add(struct raw *raw, const void *bytes, size_t count)
{
	memcpy(raw->bytes + raw->count, bytes, count);
	raw->count += count;
}

static void
done(struct raw *raw)
{
	raw->bytes[14] = (uint8_t)((raw->count - 16) >> 8);
	raw->bytes[15] = (uint8_t)(raw->count - 16);
}

static struct raw
begin(unsigned int command, unsigned int family)
{
	struct raw raw = { .count = 0 };
	uint8_t head[4] = { (uint8_t)command, (uint8_t)family };
	add(&raw, SIGNATURE, 12);
	add(&raw, head, 4);
	return raw;
}

static struct raw
begin_ipv4(void)
{
	struct raw raw = begin(0x21, 0x11);
	add(&raw, "\xc0\x00\x02\x07\xc0\x00\x02\x01\x12\x67\x01\xbb", 12);
	done(&raw);
	return raw;
}

static void
add_tlv(struct raw *raw, unsigned int type, const void *value, size_t count)
{
	uint8_t head[3] = { (uint8_t)type, (uint8_t)(count >> 8), (uint8_t)count };
	add(raw, head, 3);
	add(raw, value, count);
	done(raw);
}

static enum proxy_result
read_raw(const struct raw *raw, struct proxy_header *header, struct failure *why)
{
	return read_header(raw->bytes, raw->count, header, why);
}

static void
test_v2_addresses(void **unused)
{
	(void)unused;
	struct proxy_header header;
	struct failure why;
	struct raw raw = begin_ipv4();
	assert_int_equal(read_raw(&raw, &header, &why), PROXY_WHOLE);
	assert_address(&header.source, "192.0.2.7:4711");
	assert_address(&header.destination, "192.0.2.1:443");

	raw = begin(0x21, 0x21);
	add(&raw, "\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01", 16);
	add(&raw, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\x02", 16);
	add(&raw, "\x12\x67\x01\xbb", 4);
	done(&raw);
	assert_int_equal(read_raw(&raw, &header, &why), PROXY_WHOLE);
	assert_address(&header.source, "[2001:db8::1]:4711");
	assert_address(&header.destination, "10.0.0.2:443");

	raw = begin(0x21, 0x31);
	memset(raw.bytes + 16, 'u', 216);
	raw.count += 216;
	done(&raw);
	assert_int_equal(read_raw(&raw, &header, &why), PROXY_WHOLE);
	assert_address(&header.source, "unix");
	assert_int_equal(header.source.uid, UINT32_MAX);
}

/* What tells no address of a stream is taken, and the socket's own hold. */
static void
test_v2_without_addresses(void **unused)
{
	(void)unused;
	static const struct {
		unsigned int command, family;
		size_t bytes;
		bool is_local;
	} cases[] = {
		{ 0x20, 0x00, 0, true },   { 0x20, 0x11, 12, true },  { 0x20, 0x11, 5, true },
		{ 0x20, 0x00, 99, true },  { 0x20, 0xff, 40, true },  { 0x20, 0x31, 216, true },
		{ 0x21, 0x00, 0, false },  { 0x21, 0x01, 0, false },  { 0x21, 0x10, 12, false },
		{ 0x21, 0x12, 12, false }, { 0x21, 0x22, 36, false }, { 0x21, 0x32, 216, false },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct proxy_header header;
		struct failure why;
		struct raw raw = begin(cases[i].command, cases[i].family);
		memset(raw.bytes + raw.count, 0xee, cases[i].bytes);
		raw.count += cases[i].bytes;
		done(&raw);
		if (read_raw(&raw, &header, &why) != PROXY_WHOLE)
			fail_msg("case %zu: %s", i, why.text);
		assert_int_equal(header.is_local, cases[i].is_local);
		assert_int_equal(header.source.family, AF_UNSPEC);
		assert_int_equal(header.destination.family, AF_UNSPEC);
		assert_null(header.authority.at);
	}
}

static void
test_v2_mistakes(void **unused)
{
	(void)unused;
	static const struct {
		unsigned int command, family;
		size_t bytes;
		const char *why;
	} cases[] = {
		{ 0x11, 0x11, 12, "version or command" },
		{ 0x31, 0x11, 12, "version or command" },
		{ 0x22, 0x11, 12, "version or command" },
		{ 0x2f, 0x11, 12, "version or command" },
		{ 0x21, 0x41, 12, "unknown address family" },
		{ 0x21, 0xf1, 12, "unknown address family" },
		{ 0x21, 0x13, 12, "unknown address family" },
		{ 0x21, 0x1f, 12, "unknown address family" },
		{ 0x21, 0x11, 11, "addresses are cut off" },
		{ 0x21, 0x12, 11, "addresses are cut off" },
		{ 0x21, 0x21, 35, "addresses are cut off" },
		{ 0x21, 0x31, 215, "addresses are cut off" },
		{ 0x21, 0x11, 14, "a TLV is cut off" },
		{ 0x21, 0x00, 2, "a TLV is cut off" },
		{ 0x21, 0x00, 30, "longer than what is left" },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct raw raw = begin(cases[i].command, cases[i].family);
		memset(raw.bytes + raw.count, 0xee, cases[i].bytes);
		raw.count += cases[i].bytes;
		done(&raw);
		expect_bad(raw.bytes, raw.count, cases[i].why);
	}
}

/* What is wrong is said as soon as it is there: nobody waits for the rest of something else. */
static void
test_early(void **unused)
{
	(void)unused;
	expect_bad("X", 1, "begin otherwise");
	expect_bad("PX", 2, "begin otherwise");
	expect_bad("\r\n\r\nQ", 5, "begin otherwise");
	expect_bad(SIGNATURE "\x11", 13, "version or command");
	expect_bad(SIGNATURE "\x21\x11\x0f\xf1", 16, "more than 4096");
	struct proxy_header header;
	struct failure why;
	assert_int_equal(read_header(SIGNATURE "\x21\x11\x0f\xf0", 16, &header, &why), PROXY_MORE);
}

static void
test_v2_checksum(void **unused)
{
	(void)unused;
	/* CRC32c by another hand: bit by bit, the polynomial of RFC 4960 appendix B. */
	struct raw raw = begin_ipv4();
	add_tlv(&raw, 0x04, "pad", 3);
	size_t field = raw.count + 3;
	add_tlv(&raw, 0x03, "\0\0\0\0", 4);
	add_tlv(&raw, 0x02, "example.org", 11);
	uint32_t crc = UINT32_MAX;
	for (size_t i = 0; i < raw.count * 8; i++) {
		crc ^= (uint32_t)raw.bytes[i / 8] >> i % 8 & 1;
		crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
	}
	crc = htonl(~crc);
	memcpy(raw.bytes + field, &crc, 4);

	struct proxy_header header;
	struct failure why;
	assert_int_equal(read_raw(&raw, &header, &why), PROXY_WHOLE);
	assert_span(header.authority, "example.org");
	for (size_t bit = 0; bit < raw.count * 8; bit++) {
		struct raw other = raw;
		other.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		bool is_checksum = bit / 8 >= field - 3 && bit / 8 < field;
		if (read_raw(&other, &header, &why) == PROXY_WHOLE && !is_checksum &&
		    bit / 8 != 12 && bit / 8 != 13)
			fail_msg("bit %zu may change", bit);
	}

	raw = begin_ipv4();
	add_tlv(&raw, 0x03, "\0\0\0", 3);
	expect_bad(raw.bytes, raw.count, "has not 4 bytes");
	raw = begin(0x20, 0x00);
	add_tlv(&raw, 0x03, "\1\2\3\4", 4);
	expect_bad(raw.bytes, raw.count, "does not match");
}

/* Each TLV cut at each byte is refused, and so is a prefix of the whole. */
static void
test_v2_cut_tlvs(void **unused)
{
	(void)unused;
	struct raw whole = begin_ipv4();
	size_t boundaries[16], boundary_count = 0;
	boundaries[boundary_count++] = whole.count;
	static const struct {
		unsigned int type;
		const char *value;
		size_t count;
	} tlvs[] = {
		{ 0x01, "h2", 2 },
		{ 0x02, "example.org", 11 },
		{ 0x05, "id", 2 },
		{ 0x20,
		  "\x07\0\0\0\0\x21\0\x07TLSv1.3\x22\0\x05"
		  "alice\x23\0\x02XY",
		  5 + 10 + 8 + 5 },
		{ 0x30, "ns", 2 },
		{ 0xea, "\1vpce-1234", 10 },
	};
	for (size_t i = 0; i < sizeof(tlvs) / sizeof(tlvs[0]); i++) {
		add_tlv(&whole, tlvs[i].type, tlvs[i].value, tlvs[i].count);
		boundaries[boundary_count++] = whole.count;
	}
	struct proxy_header header;
	struct failure why;
	for (size_t cut = 28; cut <= whole.count; cut++) {
		struct raw raw = whole;
		bool is_boundary = false;
		raw.count = cut;
		for (size_t i = 0; i < boundary_count; i++)
			is_boundary = is_boundary || boundaries[i] == cut;
		if (cut < whole.count)
			assert_int_equal(read_raw(&raw, &header, &why), PROXY_MORE);
		done(&raw); /* now it says that it is shorter */
		enum proxy_result want = is_boundary ? PROXY_WHOLE : PROXY_BAD;
		if (read_raw(&raw, &header, &why) != want)
			fail_msg("cut at %zu: %s", cut, why.text);
	}
	/* And the parts of the TLV about TLS. */
	for (size_t length = 0; length <= tlvs[3].count; length++) {
		struct raw raw = begin_ipv4();
		add_tlv(&raw, 0x20, tlvs[3].value, length);
		enum proxy_result want = length == 5 || length == 15 || length == 23 || length == 28
						 ? PROXY_WHOLE
						 : PROXY_BAD;
		if (read_raw(&raw, &header, &why) != want)
			fail_msg("TLS cut at %zu: %s", length, why.text);
	}
}

static void
test_v2_tls(void **unused)
{
	(void)unused;
	struct proxy_header header;
	struct failure why;
	struct raw raw = begin_ipv4();
	add_tlv(&raw, 0x20,
		"\x05\0\0\0\0\x21\0\x07TLSv1.2\x22\0\x03"
		"bob",
		5 + 10 + 6);
	add_tlv(&raw, 0x20,
		"\x05\0\0\0\0\x22\0\x03"
		"eve\x23\0\x01"
		"C",
		5 + 6 + 4);
	uint8_t bytes[sizeof(raw.bytes)]; /* for as long as the spans are looked at */
	memcpy(bytes, raw.bytes, raw.count);
	assert_int_equal(proxy_header_parse(bytes, raw.count, &header, &why), 0);
	assert_true(header.is_tls && header.has_certificate && header.is_verified);
	assert_span(header.tls_version, "TLSv1.2");
	assert_span(header.common_name, "bob"); /* what is told twice stays as it was first */
	assert_span(header.tls_cipher, NULL);

	raw = begin_ipv4();
	add_tlv(&raw, 0x20,
		"\x03\0\0\0\x12\x22\0\x03"
		"bob",
		5 + 6);
	assert_int_equal(read_raw(&raw, &header, &why), PROXY_WHOLE);
	assert_true(header.is_tls && header.has_certificate && !header.is_verified);
	raw = begin_ipv4();
	add_tlv(&raw, 0x20,
		"\x06\0\0\0\0\x22\0\x03"
		"bob",
		5 + 6);
	assert_int_equal(read_raw(&raw, &header, &why), PROXY_WHOLE);
	assert_false(header.is_tls || header.has_certificate || header.is_verified);
	assert_null(header.common_name.at);

	char id[129];
	memset(id, 'i', sizeof(id));
	raw = begin_ipv4();
	add_tlv(&raw, 0x05, id, 128);
	assert_int_equal(read_raw(&raw, &header, &why), PROXY_WHOLE);
	raw = begin_ipv4();
	add_tlv(&raw, 0x05, id, 129);
	expect_bad(raw.bytes, raw.count, "unique id is too long");
}

/* --- Both ways ---------------------------------------------------------------------------------- */

static void
check_round(int version, enum proxy_tlvs tlvs, const struct proxy_header *said, const char *source,
	    const char *destination)
{
	uint8_t bytes[PROXY_HEADER_MOST];
	struct proxy_header header;
	struct failure why;
	size_t header_bytes, count = proxy_header_write(version, tlvs, said, bytes);
	assert_true(count && count <= sizeof(bytes));
	for (size_t cut = 0; cut < count; cut++)
		assert_int_equal(proxy_header_measure(bytes, cut, &header_bytes, &why), PROXY_MORE);
	assert_int_equal(proxy_header_measure(bytes, count, &header_bytes, &why), PROXY_WHOLE);
	assert_int_equal(header_bytes, count);
	if (proxy_header_parse(bytes, count, &header, &why))
		fail_msg("%s", why.text);
	assert_address(&header.source, source);
	assert_address(&header.destination, destination);
	bool has_all = version == 2 && tlvs == PROXY_TLVS_ALL && !said->is_local;
	assert_span(header.authority, has_all ? "example.org" : NULL);
	assert_span(header.alpn, has_all ? "h2" : NULL);
	assert_span(header.unique_id, has_all ? "4711" : NULL);
	assert_span(header.tls_version, has_all ? "TLSv1.3" : NULL);
	assert_span(header.tls_cipher, has_all ? "TLS_AES_256_GCM_SHA384" : NULL);
	assert_span(header.common_name, has_all ? "alice" : NULL);
	assert_int_equal(header.is_tls, has_all);
	assert_int_equal(header.is_verified, has_all);
	if (version == 2)
		assert_int_equal(header.is_local, said->is_local);
}

static void
test_round_trips(void **unused)
{
	(void)unused;
	static const struct {
		const char *source, *destination; /* "unix", NULL = not known */
		const char *got[2], *got_v1[2];   /* v1 only where it differs */
	} cases[] = {
		{ "10.0.0.1:1", "10.0.0.2:65535", { "10.0.0.1:1", "10.0.0.2:65535" }, { 0 } },
		{ "[2001:db8::1]:1", "[::1]:2", { "[2001:db8::1]:1", "[::1]:2" }, { 0 } },
		{ "10.0.0.1:1", "[::1]:2", { "10.0.0.1:1", "[::1]:2" }, { 0 } },
		{ "[::1]:1", "10.0.0.2:2", { "[::1]:1", "10.0.0.2:2" }, { 0 } },
		{ "[::1.2.3.4]:1", "[::]:2", { "[::1.2.3.4]:1", "[::]:2" }, { 0 } },
		{ "unix", "unix", { "unix", "unix" }, { "unknown", "unknown" } },
		{ "unix", "10.0.0.2:2", { "unknown", "unknown" }, { 0 } },
		{ "10.0.0.2:2", NULL, { "unknown", "unknown" }, { 0 } },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct proxy_header said = {
			.authority = span("example.org"),
			.alpn = span("h2"),
			.unique_id = span("4711"),
			.tls_version = span("TLSv1.3"),
			.common_name = span("alice"),
			.tls_cipher = span("TLS_AES_256_GCM_SHA384"),
			.is_tls = true,
			.has_certificate = true,
			.is_verified = true,
		};
		struct socket_address *ends[] = { &said.source, &said.destination };
		const char *texts[] = { cases[i].source, cases[i].destination };
		for (int end = 0; end < 2; end++) {
			if (texts[end] && strcmp(texts[end], "unix") == 0)
				ends[end]->family = AF_UNIX;
			else if (texts[end])
				*ends[end] = ip(texts[end]);
		}
		const char *const *v1 = cases[i].got_v1[0] ? cases[i].got_v1 : cases[i].got;
		check_round(1, PROXY_TLVS_ALL, &said, v1[0], v1[1]);
		for (enum proxy_tlvs tlvs = PROXY_TLVS_NONE; tlvs <= PROXY_TLVS_ALL; tlvs++)
			check_round(2, tlvs, &said, cases[i].got[0], cases[i].got[1]);
		said.is_local = true;
		check_round(1, PROXY_TLVS_ALL, &said, "unknown", "unknown");
		check_round(2, PROXY_TLVS_ALL, &said, "unknown", "unknown");
	}
}

static void
test_exact_bytes(void **unused)
{
	(void)unused;
	uint8_t bytes[PROXY_HEADER_MOST];
	struct proxy_header said = { .source = ip("192.0.2.7:4711"),
				     .destination = ip("[2001:db8::1]:443") };
	static const char line[] = "PROXY TCP6 0:0:0:0:0:ffff:c000:207 2001:db8::1 4711 443\r\n";
	assert_int_equal(proxy_header_write(1, PROXY_TLVS_ALL, &said, bytes), sizeof(line) - 1);
	assert_memory_equal(bytes, line, sizeof(line) - 1);

	said.destination = ip("192.0.2.1:443");
	struct raw raw = begin_ipv4();
	assert_int_equal(proxy_header_write(2, PROXY_TLVS_NONE, &said, bytes), raw.count);
	assert_memory_equal(bytes, raw.bytes, raw.count);

	said.is_local = true;
	assert_int_equal(proxy_header_write(2, PROXY_TLVS_ALL, &said, bytes), 16);
	assert_memory_equal(bytes, SIGNATURE "\x20\0\0\0", 16);
}

/* What does not fit is left out, and the rest is sound. */
static void
test_too_much_to_tell(void **unused)
{
	(void)unused;
	static char text[70000];
	memset(text, 'x', sizeof(text) - 1);
	for (size_t length = 0; length < sizeof(text); length += length < 4200 ? 7 : 9001) {
		struct proxy_span value = { (const uint8_t *)text, length };
		struct proxy_header said = {
			.source = ip("192.0.2.7:4711"),
			.destination = ip("192.0.2.1:443"),
			.alpn = value,
			.authority = value,
			.unique_id = value,
			.tls_version = value,
			.tls_cipher = value,
			.common_name = value,
			.is_tls = true,
		};
		uint8_t bytes[PROXY_HEADER_MOST];
		struct proxy_header header;
		struct failure why;
		size_t header_bytes, count = proxy_header_write(2, PROXY_TLVS_ALL, &said, bytes);
		assert_true(count <= sizeof(bytes));
		assert_int_equal(proxy_header_measure(bytes, count, &header_bytes, &why),
				 PROXY_WHOLE);
		if (proxy_header_parse(bytes, count, &header, &why))
			fail_msg("%zu: %s", length, why.text);
		if (length < 600)
			assert_int_equal(header.common_name.length, length);
		assert_int_equal(header.unique_id.at != NULL, length <= PROXY_UNIQUE_ID_MOST);
		if (length > 4080)
			assert_null(header.alpn.at);
	}
}

static void
test_garbage(void **unused)
{
	(void)unused;
	uint64_t seed = 1;
	for (int i = 0; i < 200000; i++) {
		uint8_t bytes[256];
		struct proxy_header header;
		struct failure why;
		size_t count = sizeof(bytes);
		for (size_t at = 0; at < count; at++) {
			seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
			bytes[at] = (uint8_t)(seed >> 56) & (i & 1 ? 0xff : 0x31);
		}
		if (i % 3) { /* further in */
			memcpy(bytes, SIGNATURE "\x21\x11", 14);
			bytes[14] = 0;
		} else {
			memcpy(bytes, "PROXY TCP4 1", 12);
		}
		read_header(bytes, count, &header, &why);
	}
}

/* --- The filter --------------------------------------------------------------------------------- */

/* One end of a connection whose chain is that filter alone. */
struct end {
	const struct filter_type *type;
	void *conf;
	struct chain_link link;
	struct facts facts;
	struct stack *stack;
	struct stack_flow flows[FILTER_FLOWS];
	struct failure why;
};

static void
set(void *conf, const struct keyword *rows, const char *name, const char *text)
{
	struct failure why;
	for (const struct keyword *row = rows; row->name; row++) {
		int failed = 0;
		if (!name && row->fallback)
			failed = config_value_default(row, conf, &why);
		else if (name && strcmp(row->name, name) == 0)
			failed = config_value_store(row, text, "/", conf, &why);
		if (failed)
			fail_msg("%s: %s", row->name, why.text);
	}
}

/* `settings`: pairs of keyword and value, then NULL. False if it does not open. */
static bool
end_open(struct end *end, enum filter_side side, const char *const *settings,
	 const struct facts *facts)
{
	*end = (struct end){ .type = registry_find("proxy_protocol") };
	assert_non_null(end->type);
	end->conf = calloc(1, end->type->conf_bytes);
	assert_non_null(end->conf);
	set(end->conf, end->type->keywords, NULL, NULL);
	for (; *settings; settings += 2)
		set(end->conf, end->type->keywords, settings[0], settings[1]);
	end->link = (struct chain_link){ end->type, end->conf };
	assert_int_equal(facts_copy(&end->facts, facts), 0);
	stack_ends_open(end->flows, FILTER_FLUSH);
	struct chain chain = { &end->link, 1 };
	return stack_open(&end->stack, &chain, side, &end->facts, &end->why) == 0;
}

static void
end_close(struct end *end)
{
	stack_close(end->stack);
	facts_release(&end->facts);
	stack_ends_close(end->flows);
	keyword_release(end->type->keywords, end->conf);
	free(end->conf);
}

static enum stack_result
end_step(struct end *end)
{
	return stack_step(end->stack, end->flows, &end->why);
}

static void
give(struct end *end, enum filter_flow flow, const void *bytes, size_t count)
{
	evbuffer_add(end->flows[flow].src, bytes, count);
}

static size_t
left(struct evbuffer *buffer)
{
	return evbuffer_get_length(buffer);
}

static const char *const trusting[] = { "trust", "192.0.2.0/24", NULL };
static const char *const plain[] = { "trust", "192.0.2.0/24", "untrusted", "plain", NULL };
static const char *const defaults[] = { NULL };

static struct facts
facts_of(const char *peer)
{
	struct facts facts = { .target_host = "" };
	facts.accepted = ip("198.51.100.1:443");
	facts.client = facts.peer = ip(peer);
	return facts;
}

/* Not one byte more than the header is taken, nobody speaks before it is there, then both flows are
 * empty of filters. */
static void
test_filter_receives(void **unused)
{
	(void)unused;
	static const char line[] = "PROXY TCP4 203.0.113.9 203.0.113.1 1234 443\r\n";
	struct facts facts = facts_of("192.0.2.7:4711");
	struct end end;
	assert_true(end_open(&end, FILTER_NEAR, trusting, &facts));
	give(&end, FILTER_OUT, "220 hello", 9);
	for (size_t i = 0; i < sizeof(line) - 1; i++) {
		assert_false(stack_is_ready(end.stack));
		give(&end, FILTER_IN, line + i, 1);
		if (i == sizeof(line) - 2)
			give(&end, FILTER_IN, "payload", 7);
		assert_int_not_equal(end_step(&end), STACK_FAILED);
		assert_int_equal(left(end.flows[FILTER_OUT].dst), i == sizeof(line) - 2 ? 9 : 0);
	}
	assert_true(stack_is_ready(end.stack));
	assert_true(stack_is_empty(end.stack, FILTER_IN) && stack_is_empty(end.stack, FILTER_OUT));
	assert_int_equal(left(end.flows[FILTER_IN].dst), 7);
	assert_memory_equal(evbuffer_pullup(end.flows[FILTER_IN].dst, -1), "payload", 7);
	assert_address(&end.facts.client, "203.0.113.9:1234");
	assert_address(&end.facts.accepted, "203.0.113.1:443");
	assert_address(&end.facts.peer, "192.0.2.7:4711");
	assert_true(end.facts.client_is_told);
	end_close(&end);
}

static void
test_filter_needs_a_header(void **unused)
{
	(void)unused;
	struct facts facts = facts_of("192.0.2.7:4711");
	struct end end;
	assert_true(end_open(&end, FILTER_NEAR, trusting, &facts));
	give(&end, FILTER_IN, "GET / HTTP/1.0\r\n", 16);
	assert_int_equal(end_step(&end), STACK_FAILED);
	assert_int_equal(end.why.kind, FAILURE_PROTOCOL);
	end_close(&end);

	static const char *const starts[] = { "", "P", "PROXY TCP4 1.2.3.4 ", "\r\n\r\n" };
	for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
		assert_true(end_open(&end, FILTER_NEAR, trusting, &facts));
		give(&end, FILTER_IN, starts[i], strlen(starts[i]));
		assert_int_not_equal(end_step(&end), STACK_FAILED);
		end.flows[FILTER_IN].flush = FILTER_FINISHED;
		assert_int_equal(end_step(&end), STACK_FAILED);
		assert_int_equal(end.why.kind, FAILURE_TRUNCATED);
		assert_false(end.facts.client_is_told);
		end_close(&end);
	}
}

/* The source of the socket decides, never what was told before, and never the bytes. */
static void
test_filter_trust(void **unused)
{
	(void)unused;
	static const char line[] = "PROXY TCP4 192.0.2.9 203.0.113.1 1234 443\r\n";
	struct facts facts = facts_of("203.0.113.66:4711");
	struct end end;
	facts.client = ip("192.0.2.9:1234"); /* told by a first tunnel's header */
	facts.client_is_told = true;
	assert_false(end_open(&end, FILTER_NEAR, trusting, &facts));
	assert_int_equal(end.why.kind, FAILURE_ADMISSION);
	end_close(&end);

	assert_true(end_open(&end, FILTER_NEAR, plain, &facts));
	assert_true(stack_is_ready(end.stack));
	give(&end, FILTER_IN, line, sizeof(line) - 1);
	assert_int_not_equal(end_step(&end), STACK_FAILED);
	assert_int_equal(left(end.flows[FILTER_IN].dst), sizeof(line) - 1);
	end_close(&end);

	facts = facts_of("192.0.2.7:4711");
	assert_true(end_open(&end, FILTER_NEAR, plain, &facts));
	assert_false(stack_is_ready(end.stack));
	end_close(&end);

	static const char *const by_unix[] = { "trust", "uid:33", NULL };
	facts.peer = (struct socket_address){ .family = AF_UNIX, .uid = 33 };
	assert_true(end_open(&end, FILTER_NEAR, by_unix, &facts));
	end_close(&end);
	facts.peer.uid = 34;
	assert_false(end_open(&end, FILTER_NEAR, by_unix, &facts));
	end_close(&end);
}

static void
test_filter_fits(void **unused)
{
	(void)unused;
	struct failure why;
	struct facts facts = facts_of("192.0.2.7:4711");
	struct end end;
	assert_true(end_open(&end, FILTER_FAR, defaults, &facts));
	assert_int_equal(end.type->fits(end.conf, FILTER_FAR, &why), 0);
	assert_int_equal(end.type->fits(end.conf, FILTER_NEAR, &why), -1);
	assert_non_null(strstr(why.text, "trust"));
	end_close(&end);
}

static void
test_filter_local(void **unused)
{
	(void)unused;
	struct facts facts = facts_of("192.0.2.7:4711");
	struct end end;
	assert_true(end_open(&end, FILTER_NEAR, trusting, &facts));
	give(&end, FILTER_IN,
	     SIGNATURE "\x20\x11\0\x0c"
		       "twelve bytes",
	     28);
	assert_int_not_equal(end_step(&end), STACK_FAILED);
	assert_true(stack_is_ready(end.stack));
	assert_address(&end.facts.client, "192.0.2.7:4711");
	assert_false(end.facts.client_is_told);
	end_close(&end);

	/* Whatever else it holds; and TLS with the peer, inside of which it came, is the peer's own. */
	struct raw raw = begin(0x20, 0x11);
	add(&raw, "\xc0\x00\x02\x09\xc0\x00\x02\x01\x12\x67\x01\xbb", 12);
	done(&raw);
	add_tlv(&raw, 0x02, "example.org", 11);
	add_tlv(&raw, 0x20,
		"\x07\0\0\0\0\x22\0\x03"
		"eve",
		11);
	facts.tls_version = "TLSv1.3";
	assert_true(end_open(&end, FILTER_NEAR, trusting, &facts));
	give(&end, FILTER_IN, raw.bytes, raw.count);
	assert_int_not_equal(end_step(&end), STACK_FAILED);
	assert_true(stack_is_ready(end.stack));
	assert_address(&end.facts.client, "192.0.2.7:4711");
	assert_address(&end.facts.accepted, "198.51.100.1:443");
	assert_false(end.facts.client_is_told || end.facts.tls_is_told ||
		     end.facts.certificate_is_told || end.facts.tls_is_of_relay);
	assert_null(facts_of_header(&end.facts)->authority);
	assert_null(facts_of_header(&end.facts)->common_name);
	end_close(&end);
}

/* What far says of `said`, as near learns it from a peer in trust. */
static void
tell(struct facts *said, struct end *near)
{
	struct facts facts = facts_of("192.0.2.7:4711");
	struct end far;
	assert_true(end_open(&far, FILTER_FAR, defaults, said));
	assert_true(end_open(near, FILTER_NEAR, trusting, &facts));
	far.flows[FILTER_OUT].room_bytes = 0;
	assert_int_not_equal(end_step(&far), STACK_FAILED);
	assert_int_equal(left(far.flows[FILTER_OUT].dst), 0);
	far.flows[FILTER_OUT].room_bytes = 1;
	assert_int_not_equal(end_step(&far), STACK_FAILED);
	evbuffer_add_buffer(near->flows[FILTER_IN].src, far.flows[FILTER_OUT].dst);
	if (end_step(near) == STACK_FAILED)
		fail_msg("%s", near->why.text);
	assert_true(stack_is_ready(near->stack));
	end_close(&far);
}

static void
assert_text(const char *got, const char *want)
{
	if (!want)
		assert_null(got);
	else
		assert_string_equal(got, want);
}

static void
test_filter_tells_all(void **unused)
{
	(void)unused;
	struct facts said = facts_of("203.0.113.9:1234");
	struct end near, next;
	said.sni = strdup("example.org");
	said.alpn = strdup("h2");
	said.tls_version = "TLSv1.3";
	said.tls_cipher = "TLS_AES_256_GCM_SHA384";
	said.certificate = strdup("sha256/00");
	said.common_name = strdup("alice");
	facts_make_header(&said)->unique_id = strdup("hex:00ff20");
	tell(&said, &near);
	assert_address(&near.facts.client, "203.0.113.9:1234");
	assert_address(&near.facts.accepted, "198.51.100.1:443");
	assert_true(near.facts.tls_is_told && near.facts.certificate_is_told);
	assert_text(facts_of_header(&near.facts)->authority, "example.org");
	assert_text(facts_of_header(&near.facts)->alpn, "h2");
	assert_text(facts_of_header(&near.facts)->tls_version, "TLSv1.3");
	assert_text(facts_of_header(&near.facts)->tls_cipher, "TLS_AES_256_GCM_SHA384");
	assert_text(facts_of_header(&near.facts)->common_name, "alice");
	assert_text(facts_of_header(&near.facts)->unique_id, "hex:00ff20");
	/* Told is not seen. */
	assert_text(near.facts.certificate, NULL);
	assert_text(near.facts.common_name, NULL);
	assert_text(near.facts.tls_version, NULL);
	assert_text(near.facts.sni, NULL);

	/* And on to the next. */
	tell(&near.facts, &next);
	assert_address(&next.facts.client, "203.0.113.9:1234");
	assert_text(facts_of_header(&next.facts)->authority, "example.org");
	assert_text(facts_of_header(&next.facts)->common_name, "alice");
	assert_text(facts_of_header(&next.facts)->unique_id, "hex:00ff20");
	assert_true(next.facts.certificate_is_told);
	end_close(&next);
	end_close(&near);
	facts_release(&said);
}

/* TLS with the relay itself, inside of which the header came, is not the client's. */
static void
test_filter_keeps_relay_apart(void **unused)
{
	(void)unused;
	static const char line[] = "PROXY TCP4 203.0.113.9 203.0.113.1 1234 443\r\n";
	struct facts facts = facts_of("192.0.2.7:4711");
	struct end near, next;
	facts.tls_version = "TLSv1.3";
	facts.sni = strdup("inside.example");
	facts.alpn = strdup("relay");
	facts.certificate = strdup("sha256/00");
	facts.common_name = strdup("relay");
	assert_true(end_open(&near, FILTER_NEAR, trusting, &facts));
	give(&near, FILTER_IN, line, sizeof(line) - 1);
	assert_int_not_equal(end_step(&near), STACK_FAILED);
	assert_text(near.facts.common_name, "relay"); /* seen stays seen */
	tell(&near.facts, &next);
	assert_address(&next.facts.client, "203.0.113.9:1234");
	assert_false(next.facts.tls_is_told);
	assert_text(facts_of_header(&next.facts)->authority, NULL);
	assert_text(facts_of_header(&next.facts)->alpn, NULL);
	assert_text(facts_of_header(&next.facts)->common_name, NULL);
	end_close(&next);
	end_close(&near);
	facts_release(&facts);
}

static void
test_filter_unique_ids(void **unused)
{
	(void)unused;
	static const struct {
		const char *bytes;
		size_t count;
		const char *kept;
	} cases[] = {
		{ "plain-1", 7, "plain-1" },
		{ "two words", 9, "hex:74776f20776f726473" },
		{ "hex:61", 6, "hex:6865783a3631" },
		{ "\0", 1, "hex:00" },
		{ "hex", 3, "hex" },
		{ "", 0, NULL },
		{ "\xff\n", 2, "hex:ff0a" },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct facts facts = facts_of("192.0.2.7:4711");
		struct end near, next;
		struct raw raw = begin_ipv4();
		add_tlv(&raw, 0x05, cases[i].bytes, cases[i].count);
		add_tlv(&raw, 0x02, "no\ntext", 7);
		assert_true(end_open(&near, FILTER_NEAR, trusting, &facts));
		give(&near, FILTER_IN, raw.bytes, raw.count);
		assert_int_not_equal(end_step(&near), STACK_FAILED);
		assert_text(facts_of_header(&near.facts)->unique_id, cases[i].kept);
		assert_text(facts_of_header(&near.facts)->authority, NULL);
		tell(&near.facts, &next);
		assert_text(facts_of_header(&next.facts)->unique_id, cases[i].kept);
		end_close(&next);
		end_close(&near);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_v1_lines),
		cmocka_unit_test(test_v1_mistakes),
		cmocka_unit_test(test_v1_longest),
		cmocka_unit_test(test_v2_addresses),
		cmocka_unit_test(test_v2_without_addresses),
		cmocka_unit_test(test_v2_mistakes),
		cmocka_unit_test(test_early),
		cmocka_unit_test(test_v2_checksum),
		cmocka_unit_test(test_v2_cut_tlvs),
		cmocka_unit_test(test_v2_tls),
		cmocka_unit_test(test_round_trips),
		cmocka_unit_test(test_exact_bytes),
		cmocka_unit_test(test_too_much_to_tell),
		cmocka_unit_test(test_garbage),
		cmocka_unit_test(test_filter_receives),
		cmocka_unit_test(test_filter_needs_a_header),
		cmocka_unit_test(test_filter_trust),
		cmocka_unit_test(test_filter_fits),
		cmocka_unit_test(test_filter_local),
		cmocka_unit_test(test_filter_tells_all),
		cmocka_unit_test(test_filter_keeps_relay_apart),
		cmocka_unit_test(test_filter_unique_ids),
	};
	return cmocka_run_group_tests_name("proxy_protocol", tests, NULL, NULL);
}
