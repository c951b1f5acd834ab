#include "proxy_header.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#define TLS_HANDSHAKE 0x16 /* the first byte of a ClientHello, RFC 8446 5.1 */

static const uint8_t v1_signature[] = { 'P', 'R', 'O', 'X', 'Y', ' ' };
static const uint8_t v2_signature[] = { 0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d,
					0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a };

/* The 13th and 14th byte of version 2. */
enum { VERSION_2 = 0x20, COMMAND_LOCAL = 0, COMMAND_PROXY = 1 };
enum { FAMILY_UNSPEC = 0, FAMILY_INET = 1, FAMILY_INET6 = 2, FAMILY_UNIX = 3 };
enum { TRANSPORT_UNSPEC = 0, TRANSPORT_STREAM = 1, TRANSPORT_DATAGRAM = 2 };

/* Two addresses and two ports. */
static const size_t address_bytes[] = {
	[FAMILY_UNSPEC] = 0, [FAMILY_INET] = 12, [FAMILY_INET6] = 36, [FAMILY_UNIX] = 216
};

enum tlv_type {
	TLV_ALPN = 0x01,
	TLV_AUTHORITY = 0x02,
	TLV_CRC32C = 0x03,
	TLV_UNIQUE_ID = 0x05,
	TLV_SSL = 0x20,
	TLV_SSL_VERSION = 0x21,
	TLV_SSL_CN = 0x22,
	TLV_SSL_CIPHER = 0x23,
};
#define TLV_HEAD_BYTES 3
#define SSL_HEAD_BYTES \
	5 /* of the value of TLV_SSL: the client's bits and the result of verifying */
#define CRC_BYTES 4

enum { CLIENT_SSL = 1, CLIENT_CERT_CONN = 2, CLIENT_CERT_SESS = 4 };

static unsigned int
read_16(const uint8_t *at)
{
	return (unsigned int)at[0] << 8 | at[1];
}

static uint32_t
read_32(const uint8_t *at)
{
	return (uint32_t)read_16(at) << 16 | read_16(at + 2);
}

/* CRC32c (RFC 4960 appendix B) goes on over `count` more bytes. Four bits at a time: headers are short,
 * and 16 words need no kilobyte of cache. */
static uint32_t
crc32c(uint32_t crc, const uint8_t *bytes, size_t count)
{
	static const uint32_t table[16] = {
		0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
		0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
		0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
	};
	for (size_t i = 0; i < count; i++) {
		crc ^= bytes[i];
		crc = crc >> 4 ^ table[crc & 15];
		crc = crc >> 4 ^ table[crc & 15];
	}
	return crc;
}

/* Of a header whose checksum field stands at `field` and counts as zero. */
static uint32_t
checksum(const uint8_t *bytes, size_t count, size_t field)
{
	static const uint8_t zero[CRC_BYTES];
	uint32_t crc = crc32c(UINT32_MAX, bytes, field);
	crc = crc32c(crc, zero, CRC_BYTES);
	field += CRC_BYTES;
	return ~crc32c(crc, bytes + field, count - field);
}

/* `ip` in network byte order. IPv4-mapped addresses become IPv4. */
static void
set_address(struct socket_address *out, int family, const uint8_t *ip, unsigned int port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
	if (family == AF_INET) {
		memcpy(&in.sin_addr, ip, sizeof(in.sin_addr));
		socket_address_from(out, (const struct sockaddr *)&in, sizeof(in));
	} else {
		memcpy(&in6.sin6_addr, ip, sizeof(in6.sin6_addr));
		socket_address_from(out, (const struct sockaddr *)&in6, sizeof(in6));
	}
}

/* --- How long it is ----------------------------------------------------------------------------- */

static bool
begins_with(const uint8_t *bytes, size_t count, const uint8_t *signature, size_t signature_bytes)
{
	return memcmp(bytes, signature, count < signature_bytes ? count : signature_bytes) == 0;
}

static enum proxy_result
measure_v1(const uint8_t *bytes, size_t count, size_t *header_bytes, struct failure *why)
{
	size_t most = count < PROXY_HEADER_V1_MOST ? count : PROXY_HEADER_V1_MOST;
	const uint8_t *cr = memchr(bytes, '\r', most), *lf = memchr(bytes, '\n', most);
	bool cr_is_last = cr && cr + 1 == bytes + most;
	if (lf ? lf - 1 != cr : cr && !cr_is_last) {
		failure_set(why, FAILURE_PROTOCOL,
			    "PROXY header, version 1: the line does not end with CR LF");
		return PROXY_BAD;
	}
	if (!lf && most == PROXY_HEADER_V1_MOST) {
		failure_set(why, FAILURE_PROTOCOL,
			    "PROXY header, version 1: the line is longer than %d bytes",
			    PROXY_HEADER_V1_MOST);
		return PROXY_BAD;
	}
	*header_bytes = lf ? (size_t)(lf - bytes) + 1 : count + 1;
	return lf ? PROXY_WHOLE : PROXY_MORE;
}

static enum proxy_result
measure_v2(const uint8_t *bytes, size_t count, size_t *header_bytes, struct failure *why)
{
	if (count > 12 && ((bytes[12] & 0xf0) != VERSION_2 || (bytes[12] & 0x0f) > COMMAND_PROXY)) {
		failure_set(why, FAILURE_PROTOCOL,
			    "PROXY header, version 2: unknown version or command 0x%02x",
			    bytes[12]);
		return PROXY_BAD;
	}
	*header_bytes = PROXY_HEADER_V2_MIN;
	if (count < PROXY_HEADER_V2_MIN)
		return PROXY_MORE;
	*header_bytes += read_16(bytes + 14);
	if (*header_bytes > PROXY_HEADER_MOST) {
		failure_set(why, FAILURE_PROTOCOL,
			    "PROXY header, version 2: %zu bytes are more than %d", *header_bytes,
			    PROXY_HEADER_MOST);
		return PROXY_BAD;
	}
	return count < *header_bytes ? PROXY_MORE : PROXY_WHOLE;
}

enum proxy_result
proxy_header_measure(const uint8_t *bytes, size_t count, size_t *header_bytes, struct failure *why)
{
	if (count == 0) {
		*header_bytes = 1;
		return PROXY_MORE;
	}
	if (begins_with(bytes, count, v2_signature, sizeof(v2_signature)))
		return measure_v2(bytes, count, header_bytes, why);
	if (begins_with(bytes, count, v1_signature, sizeof(v1_signature)))
		return measure_v1(bytes, count, header_bytes, why);
	failure_set(
		why, FAILURE_PROTOCOL,
		"no PROXY header: the bytes begin %s; does this peer, which is in trust, send one?",
		bytes[0] == TLS_HANDSHAKE ? "with TLS" : "otherwise");
	return PROXY_BAD;
}

/* --- Reading version 1 -------------------------------------------------------------------------- */

static int
refuse_v1(const char *what, struct failure *why)
{
	return failure_set(why, FAILURE_PROTOCOL, "PROXY header, version 1: %s", what);
}

/* Digits without leading zeros, 0 to 65535. */
static bool
read_port(const char *text, unsigned int *port)
{
	size_t length = strspn(text, "0123456789");
	if (!length || length > 5 || text[length] || (text[0] == '0' && length > 1))
		return false;
	*port = 0;
	for (; *text; text++)
		*port = *port * 10 + (unsigned int)(*text - '0');
	return *port <= UINT16_MAX;
}

static int
read_end(int family, const char *ip, const char *port_text, struct socket_address *out,
	 struct failure *why)
{
	uint8_t bytes[16];
	unsigned int port;
	if (inet_pton(family, ip, bytes) != 1)
		return refuse_v1(family == AF_INET ? "no IPv4 address where one belongs"
						   : "no IPv6 address where one belongs",
				 why);
	if (!read_port(port_text, &port))
		return refuse_v1("a port is no number from 0 to 65535", why);
	set_address(out, family, bytes, port);
	return 0;
}

static int
parse_v1(const uint8_t *bytes, size_t count, struct proxy_header *out, struct failure *why)
{
	enum { PROXY, FAMILY, SOURCE, DESTINATION, SOURCE_PORT, DESTINATION_PORT, WORDS };
	char line[PROXY_HEADER_V1_MOST + 1], *words[WORDS] = { line };
	size_t length = count - 2, found = 1;

	memcpy(line, bytes, length);
	line[length] = '\0';
	if (strncmp(line, "PROXY UNKNOWN", 13) == 0 && (length == 13 || line[13] == ' '))
		return 0; /* whatever the rest is */
	if (memchr(line, '\0', length))
		return refuse_v1("a zero byte in the line", why);
	for (char *at = strchr(line, ' '); at; at = strchr(at, ' ')) {
		if (found == WORDS)
			return refuse_v1("more than six words", why);
		*at++ = '\0';
		words[found++] = at;
	}
	bool is_v4 = found > FAMILY && strcmp(words[FAMILY], "TCP4") == 0;
	if (!is_v4 && (found <= FAMILY || strcmp(words[FAMILY], "TCP6") != 0))
		return refuse_v1("neither TCP4, TCP6 nor UNKNOWN", why);
	if (found < WORDS)
		return refuse_v1("less than six words", why);
	int family = is_v4 ? AF_INET : AF_INET6;
	if (read_end(family, words[SOURCE], words[SOURCE_PORT], &out->source, why))
		return -1;
	return read_end(family, words[DESTINATION], words[DESTINATION_PORT], &out->destination,
			why);
}

/* --- Reading version 2 -------------------------------------------------------------------------- */

static int
refuse_v2(const char *what, size_t at, struct failure *why)
{
	failure_set(why, FAILURE_PROTOCOL, "PROXY header, version 2: %s at byte %zu", what, at);
	return -1; /* said here, for a compiler that looks no further */
}

struct tlv {
	unsigned int type;
	struct proxy_span value;
};

/* Takes the TLV at *at of `count` bytes and moves *at behind it. */
static int
next_tlv(const uint8_t *bytes, size_t count, size_t *at, struct tlv *out, struct failure *why)
{
	if (count - *at < TLV_HEAD_BYTES)
		return refuse_v2("a TLV is cut off", *at, why);
	size_t length = read_16(bytes + *at + 1);
	if (length > count - *at - TLV_HEAD_BYTES)
		return refuse_v2("a TLV is longer than what is left", *at, why);
	*out = (struct tlv){ bytes[*at], { bytes + *at + TLV_HEAD_BYTES, length } };
	*at += TLV_HEAD_BYTES + length;
	return 0;
}

/* What is told twice stays as it was told first. */
static void
keep(struct proxy_span *span, struct proxy_span value)
{
	if (!span->at)
		*span = value;
}

static int
parse_ssl(const uint8_t *bytes, struct proxy_span value, struct proxy_header *out,
	  struct failure *why)
{
	size_t at = (size_t)(value.at - bytes), count = at + value.length;
	if (value.length < SSL_HEAD_BYTES)
		return refuse_v2("the TLV about TLS is too short", at, why);
	unsigned int client = value.at[0];
	bool was_told = out->is_tls;
	if (!was_told) {
		out->is_tls = client & CLIENT_SSL;
		out->has_certificate =
			out->is_tls && client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS);
		out->is_verified = out->has_certificate && !read_32(value.at + 1);
	}
	at += SSL_HEAD_BYTES;
	while (at < count) {
		struct tlv tlv;
		if (next_tlv(bytes, count, &at, &tlv, why))
			return -1;
		if (was_told || !out->is_tls)
			continue;
		if (tlv.type == TLV_SSL_VERSION)
			keep(&out->tls_version, tlv.value);
		else if (tlv.type == TLV_SSL_CIPHER)
			keep(&out->tls_cipher, tlv.value);
		else if (tlv.type == TLV_SSL_CN)
			keep(&out->common_name, tlv.value);
	}
	return 0;
}

static int
check_crc(const uint8_t *bytes, size_t count, struct proxy_span value, struct failure *why)
{
	size_t at = (size_t)(value.at - bytes);
	if (value.length != CRC_BYTES)
		return refuse_v2("the checksum has not 4 bytes", at, why);
	if (checksum(bytes, count, at) != read_32(value.at))
		return refuse_v2("the checksum does not match", at, why);
	return 0;
}

static int
take_tlv(const uint8_t *bytes, size_t count, const struct tlv *tlv, struct proxy_header *out,
	 struct failure *why)
{
	switch (tlv->type) {
	case TLV_ALPN:
		keep(&out->alpn, tlv->value);
		return 0;
	case TLV_AUTHORITY:
		keep(&out->authority, tlv->value);
		return 0;
	case TLV_UNIQUE_ID:
		if (tlv->value.length > PROXY_UNIQUE_ID_MOST)
			return refuse_v2("a unique id is too long", (size_t)(tlv->value.at - bytes),
					 why);
		keep(&out->unique_id, tlv->value);
		return 0;
	case TLV_CRC32C:
		return check_crc(bytes, count, tlv->value, why);
	case TLV_SSL:
		return parse_ssl(bytes, tlv->value, out, why);
	default:
		return 0;
	}
}

/* LOCAL: the receiver must discard the block whatever it is, but where a checksum is to be found it has
 * to be right. */
static int
parse_local(const uint8_t *bytes, size_t count, size_t at, struct failure *why)
{
	while (at < count) {
		struct tlv tlv;
		if (next_tlv(bytes, count, &at, &tlv, NULL))
			return 0;
		if (tlv.type == TLV_CRC32C && check_crc(bytes, count, tlv.value, why))
			return -1;
	}
	return 0;
}

static void
take_addresses(unsigned int family, const uint8_t *at, struct proxy_header *out)
{
	if (family == FAMILY_INET) {
		set_address(&out->source, AF_INET, at, read_16(at + 8));
		set_address(&out->destination, AF_INET, at + 4, read_16(at + 10));
	} else if (family == FAMILY_INET6) {
		set_address(&out->source, AF_INET6, at, read_16(at + 32));
		set_address(&out->destination, AF_INET6, at + 16, read_16(at + 34));
	} else if (family == FAMILY_UNIX) {
		out->source = out->destination =
			(struct socket_address){ .family = AF_UNIX, .uid = UINT32_MAX };
	}
}

static int
parse_v2(const uint8_t *bytes, size_t count, struct proxy_header *out, struct failure *why)
{
	unsigned int family = bytes[13] >> 4, transport = bytes[13] & 0x0f;
	size_t at = PROXY_HEADER_V2_MIN;
	bool is_known = family <= FAMILY_UNIX && transport <= TRANSPORT_DATAGRAM;

	out->is_local = (bytes[12] & 0x0f) == COMMAND_LOCAL;
	if (out->is_local) {
		if (is_known && count - at >= address_bytes[family])
			at += address_bytes[family];
		return parse_local(bytes, count, at, why);
	}
	if (!is_known)
		return refuse_v2("an unknown address family or protocol", 13, why);
	if (count - at < address_bytes[family])
		return refuse_v2("addresses are cut off", at, why);
	/* Datagrams have no place here; as with UNSPEC the socket's own addresses hold. */
	if (transport == TRANSPORT_STREAM)
		take_addresses(family, bytes + at, out);
	at += address_bytes[family];
	while (at < count) {
		struct tlv tlv;
		if (next_tlv(bytes, count, &at, &tlv, why) ||
		    take_tlv(bytes, count, &tlv, out, why))
			return -1;
	}
	return 0;
}

int
proxy_header_parse(const uint8_t *bytes, size_t count, struct proxy_header *out,
		   struct failure *why)
{
	*out = (struct proxy_header){ 0 };
	return bytes[0] == v1_signature[0] ? parse_v1(bytes, count, out, why)
					   : parse_v2(bytes, count, out, why);
}

/* --- Writing ------------------------------------------------------------------------------------ */

static bool
is_ip(const struct socket_address *address)
{
	return address->family == AF_INET || address->family == AF_INET6;
}

/* The family in which both addresses can be told. */
static unsigned int
common_family(const struct proxy_header *header)
{
	const struct socket_address *source = &header->source, *destination = &header->destination;
	if (header->is_local)
		return FAMILY_UNSPEC;
	if (source->family == AF_INET && destination->family == AF_INET)
		return FAMILY_INET;
	if (is_ip(source) && is_ip(destination))
		return FAMILY_INET6;
	if (source->family == AF_UNIX && destination->family == AF_UNIX)
		return FAMILY_UNIX;
	return FAMILY_UNSPEC;
}

/* The address as 16 bytes of IPv6. */
static void
to_ipv6(const struct socket_address *address, uint8_t out[16])
{
	if (address->family == AF_INET6) {
		memcpy(out, address->ip, 16);
		return;
	}
	memset(out, 0, 16);
	out[10] = out[11] = 0xff;
	memcpy(out + 12, address->ip, 4);
}

/* In hexadecimal groups alone: the form of the specification has no dots, which inet_ntop writes for
 * some addresses. */
static const char *
ipv6_text(const struct socket_address *address, char text[INET6_ADDRSTRLEN])
{
	uint8_t ip[16];
	to_ipv6(address, ip);
	inet_ntop(AF_INET6, ip, text, INET6_ADDRSTRLEN);
	if (strchr(text, '.'))
		snprintf(text, INET6_ADDRSTRLEN, "%x:%x:%x:%x:%x:%x:%x:%x", read_16(ip),
			 read_16(ip + 2), read_16(ip + 4), read_16(ip + 6), read_16(ip + 8),
			 read_16(ip + 10), read_16(ip + 12), read_16(ip + 14));
	return text;
}

static size_t
write_v1(const struct proxy_header *header, uint8_t out[PROXY_HEADER_MOST])
{
	char source[INET6_ADDRSTRLEN], destination[INET6_ADDRSTRLEN];
	unsigned int family = common_family(header);
	int length;
	if (family != FAMILY_INET && family != FAMILY_INET6)
		return (size_t)snprintf((char *)out, PROXY_HEADER_MOST, "PROXY UNKNOWN\r\n");
	if (family == FAMILY_INET) {
		inet_ntop(AF_INET, header->source.ip, source, sizeof(source));
		inet_ntop(AF_INET, header->destination.ip, destination, sizeof(destination));
	} else {
		ipv6_text(&header->source, source);
		ipv6_text(&header->destination, destination);
	}
	length = snprintf((char *)out, PROXY_HEADER_MOST, "PROXY %s %s %s %u %u\r\n",
			  family == FAMILY_INET ? "TCP4" : "TCP6", source, destination,
			  header->source.port, header->destination.port);
	return (size_t)length;
}

/* A version 2 header as it grows. */
struct writer {
	uint8_t *out;
	size_t count, most;
};

static void
put(struct writer *writer, const void *bytes, size_t count)
{
	memcpy(writer->out + writer->count, bytes, count);
	writer->count += count;
}

static void
put_16(struct writer *writer, unsigned int value)
{
	uint8_t bytes[] = { (uint8_t)(value >> 8), (uint8_t)value };
	put(writer, bytes, sizeof(bytes));
}

static void
write_16(uint8_t *at, size_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* Nothing if it was not told, or there is no room for it. */
static void
put_tlv(struct writer *writer, enum tlv_type type, struct proxy_span value)
{
	if (!value.at || value.length > writer->most ||
	    writer->most - value.length < writer->count + TLV_HEAD_BYTES)
		return;
	uint8_t head = (uint8_t)type;
	put(writer, &head, 1);
	put_16(writer, (unsigned int)value.length);
	put(writer, value.at, value.length);
}

static void
put_addresses(struct writer *writer, unsigned int family, const struct proxy_header *header)
{
	uint8_t ip[16];
	if (family == FAMILY_INET) {
		put(writer, header->source.ip, 4);
		put(writer, header->destination.ip, 4);
	} else if (family == FAMILY_INET6) {
		to_ipv6(&header->source, ip);
		put(writer, ip, sizeof(ip));
		to_ipv6(&header->destination, ip);
		put(writer, ip, sizeof(ip));
	} else if (family == FAMILY_UNIX) { /* of sockets without a name */
		memset(writer->out + writer->count, 0, address_bytes[FAMILY_UNIX]);
		writer->count += address_bytes[FAMILY_UNIX];
	}
	if (family == FAMILY_INET || family == FAMILY_INET6) {
		put_16(writer, header->source.port);
		put_16(writer, header->destination.port);
	}
}

static void
put_ssl(struct writer *writer, const struct proxy_header *header)
{
	uint8_t client =
		CLIENT_SSL | (header->has_certificate ? CLIENT_CERT_CONN | CLIENT_CERT_SESS : 0);
	uint8_t head[SSL_HEAD_BYTES] = { client, 0, 0, 0, !header->is_verified };
	size_t began = writer->count;
	if (!header->is_tls || writer->most - began < TLV_HEAD_BYTES + SSL_HEAD_BYTES)
		return;
	put_tlv(writer, TLV_SSL, (struct proxy_span){ head, sizeof(head) });
	put_tlv(writer, TLV_SSL_VERSION, header->tls_version);
	put_tlv(writer, TLV_SSL_CIPHER, header->tls_cipher);
	put_tlv(writer, TLV_SSL_CN, header->common_name);
	write_16(writer->out + began + 1, writer->count - began - TLV_HEAD_BYTES);
}

static size_t
write_v2(enum proxy_tlvs tlvs, const struct proxy_header *header, uint8_t out[PROXY_HEADER_MOST])
{
	struct writer writer = { .out = out, .most = PROXY_HEADER_MOST };
	unsigned int family = common_family(header);
	unsigned int transport = family == FAMILY_UNSPEC ? TRANSPORT_UNSPEC : TRANSPORT_STREAM;
	unsigned int command = header->is_local ? COMMAND_LOCAL : COMMAND_PROXY;

	put(&writer, v2_signature, sizeof(v2_signature));
	put_16(&writer, (VERSION_2 | command) << 8 | family << 4 | transport);
	put_16(&writer, 0);
	if (header->is_local) /* "should not present any address so it sets this field to zero" */
		return writer.count;
	put_addresses(&writer, family, header);

	/* First, so that there is room for it. */
	size_t crc = writer.count + TLV_HEAD_BYTES;
	if (tlvs != PROXY_TLVS_NONE)
		put_tlv(&writer, TLV_CRC32C,
			(struct proxy_span){ (const uint8_t[CRC_BYTES]){ 0 }, CRC_BYTES });
	if (tlvs == PROXY_TLVS_ALL) {
		put_tlv(&writer, TLV_ALPN, header->alpn);
		put_tlv(&writer, TLV_AUTHORITY, header->authority);
		if (header->unique_id.length <= PROXY_UNIQUE_ID_MOST)
			put_tlv(&writer, TLV_UNIQUE_ID, header->unique_id);
		put_ssl(&writer, header);
	}
	write_16(out + 14, writer.count - PROXY_HEADER_V2_MIN);
	if (tlvs != PROXY_TLVS_NONE) {
		uint32_t sum = htonl(checksum(out, writer.count, crc));
		memcpy(out + crc, &sum, sizeof(sum));
	}
	return writer.count;
}

size_t
proxy_header_write(int version, enum proxy_tlvs tlvs, const struct proxy_header *header,
		   uint8_t out[PROXY_HEADER_MOST])
{
	return version == 1 ? write_v1(header, out) : write_v2(tlvs, header, out);
}
