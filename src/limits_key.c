#include "limits_key.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The first byte of a key. */
enum tag {
	TAG_NONE = 'n',
	TAG_CONNECTION = '#',
	TAG_V4 = '4',
	TAG_V6 = '6',
	TAG_UID = 'u',
	TAG_TEXT = 't'
};

static void
begin(struct limits_key *key, enum tag tag)
{
	key->length = 1;
	key->bytes[0] = (unsigned char)tag;
}

static void
append(struct limits_key *key, const void *bytes, size_t length)
{
	memcpy(key->bytes + key->length, bytes, length);
	key->length = (uint8_t)(key->length + length);
}

/* The first `bits` of an address, the rest zero, behind their number. */
static void
append_prefix(struct limits_key *key, const uint8_t *ip, uint8_t size, uint8_t bits)
{
	uint8_t network[16] = { 0 };

	if (bits > size * 8)
		bits = (uint8_t)(size * 8);
	memcpy(network, ip, bits / 8);
	if (bits % 8)
		network[bits / 8] = (uint8_t)(ip[bits / 8] & (0xff00 >> bits % 8));
	append(key, &bits, 1);
	append(key, network, size);
}

static void
by_source(struct limits_key *key, const struct limit_spec *spec,
	  const struct socket_address *source)
{
	switch (source->family) {
	case AF_INET:
		begin(key, TAG_V4);
		append_prefix(key, source->ip, 4, spec->prefix_v4);
		break;
	case AF_INET6:
		begin(key, TAG_V6);
		append_prefix(key, source->ip, 16, spec->prefix_v6);
		break;
	case AF_UNIX:
		begin(key, TAG_UID);
		append(key, &source->uid, sizeof(source->uid));
		break;
	default:
		begin(key, TAG_NONE);
	}
}

/* Host names are compared without case; certificates are texts of our own, in one case anyway. One that
 * is too long to be told apart counts as none. */
static void
by_text(struct limits_key *key, const char *text)
{
	size_t length = strlen(text);

	if (!length || length >= LIMITS_KEY_MOST) {
		begin(key, TAG_NONE);
		return;
	}
	begin(key, TAG_TEXT);
	for (size_t i = 0; i < length; i++) {
		char c = text[i] >= 'A' && text[i] <= 'Z' ? (char)(text[i] - 'A' + 'a') : text[i];
		append(key, &c, 1);
	}
}

bool
limits_key_make(struct limits_key *key, const struct limit_spec *spec, const struct limit_who *who)
{
	key->length = 0;
	switch (spec->per) {
	case LIMIT_PER_NONE:
		break;
	case LIMIT_PER_CONNECTION:
		begin(key, TAG_CONNECTION);
		append(key, &who->connection, sizeof(who->connection));
		break;
	case LIMIT_PER_SOURCE:
		if (!who->source)
			return false;
		by_source(key, spec, who->source);
		break;
	case LIMIT_PER_UID:
		if (!who->source)
			return false;
		if (who->source->family == AF_UNIX)
			by_source(key, spec, who->source);
		else
			begin(key, TAG_NONE);
		break;
	case LIMIT_PER_SNI:
		if (!who->sni)
			return false;
		by_text(key, who->sni);
		break;
	case LIMIT_PER_CERTIFICATE:
		if (!who->certificate)
			return false;
		by_text(key, who->certificate);
		break;
	}
	return true;
}

/* --- SipHash-1-3 (J.-P. Aumasson, D. J. Bernstein: SipHash, 2012) ------------------------------- */

static uint64_t
rotate(uint64_t x, unsigned int bits)
{
	return x << bits | x >> (64 - bits);
}

static void
sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = rotate(v[1], 13) ^ v[0];
	v[3] = rotate(v[3], 16) ^ v[2];
	v[0] = rotate(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = rotate(v[1], 17) ^ v[2];
	v[3] = rotate(v[3], 21) ^ v[0];
	v[2] = rotate(v[2], 32);
}

static void
sip_word(uint64_t v[4], uint64_t word)
{
	v[3] ^= word;
	sip_round(v);
	v[0] ^= word;
}

uint64_t
limits_key_hash(const uint64_t seed[2], uint64_t limit, uint64_t parent, const unsigned char *bytes,
		uint8_t length)
{
	uint64_t v[4] = { seed[0] ^ UINT64_C(0x736f6d6570736575),
			  seed[1] ^ UINT64_C(0x646f72616e646f6d),
			  seed[0] ^ UINT64_C(0x6c7967656e657261),
			  seed[1] ^ UINT64_C(0x7465646279746573) };
	uint64_t word;
	size_t at;

	sip_word(v, limit);
	sip_word(v, parent);
	for (at = 0; at + sizeof(word) <= length; at += sizeof(word)) {
		memcpy(&word, bytes + at, sizeof(word));
		sip_word(v, word);
	}
	word = 0;
	memcpy(&word, bytes + at, length - at);
	sip_word(v, word | (uint64_t)length << 56);
	v[2] ^= 0xff;
	for (int i = 0; i < 3; i++)
		sip_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* --- as text ------------------------------------------------------------------------------------ */

static void
printable(const unsigned char *bytes, size_t length, char *text)
{
	for (size_t i = 0; i < length; i++)
		text[i] = bytes[i] < 0x7f && isgraph(bytes[i]) ? (char)bytes[i] : '?';
	text[length] = '\0';
}

static void
prefix_text(int family, const unsigned char *bytes, char text[LIMITS_KEY_TEXT])
{
	char ip[INET6_ADDRSTRLEN] = "";

	inet_ntop(family, bytes + 1, ip, sizeof(ip));
	snprintf(text, LIMITS_KEY_TEXT, "%s/%u", ip, bytes[0]);
}

const char *
limits_key_text(const unsigned char *bytes, uint8_t length, char text[LIMITS_KEY_TEXT])
{
	const unsigned char *value = bytes + 1;
	uint64_t connection;
	uint32_t uid;

	text[0] = '\0';
	switch (length ? bytes[0] : 0) {
	case TAG_NONE:
		snprintf(text, LIMITS_KEY_TEXT, "none");
		break;
	case TAG_CONNECTION:
		memcpy(&connection, value, sizeof(connection));
		snprintf(text, LIMITS_KEY_TEXT, "#%" PRIu64, connection);
		break;
	case TAG_V4:
		prefix_text(AF_INET, value, text);
		break;
	case TAG_V6:
		prefix_text(AF_INET6, value, text);
		break;
	case TAG_UID:
		memcpy(&uid, value, sizeof(uid));
		if (uid == UINT32_MAX)
			snprintf(text, LIMITS_KEY_TEXT, "uid:unknown");
		else
			snprintf(text, LIMITS_KEY_TEXT, "uid:%" PRIu32, uid);
		break;
	case TAG_TEXT:
		printable(value, length - 1U, text);
		break;
	default:
		break;
	}
	return text;
}
