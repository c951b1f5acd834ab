#include "address.h"

#include "units.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define NAME_MOST  64 /* of ours */
#define HOST_MOST  253
#define LABEL_MOST 63
#define PATH_MOST  (sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1)

#define UID_BITS 32

#define MAPPED_BYTES 12 /* of an IPv4 address inside an IPv6 one */
static const uint8_t mapped_prefix[MAPPED_BYTES] = { [10] = 0xff, [11] = 0xff };

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* isalnum depends on the locale. */
static bool
is_name_byte(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_' ||
	       c == '-';
}

bool
address_name_is_valid(const char *name)
{
	size_t length = 0;
	for (; name[length]; length++)
		if ((!is_name_byte(name[length]) && name[length] != '.') || length >= NAME_MOST)
			return false;
	return length > 0;
}

/* ------------------------------------------------------------------ numeric addresses */

static void
set_ipv4(struct socket_address *out, const void *ip)
{
	out->family = AF_INET;
	memcpy(out->ip, ip, 4);
}

static void
set_ipv6(struct socket_address *out, const void *ip, uint32_t scope)
{
	if (memcmp(ip, mapped_prefix, MAPPED_BYTES) == 0) {
		set_ipv4(out, (const uint8_t *)ip + MAPPED_BYTES);
		return;
	}
	out->family = AF_INET6;
	memcpy(out->ip, ip, 16);
	out->scope = scope;
}

/* 0 = there is no such interface. */
static uint32_t
zone_index(const char *zone)
{
	uint64_t index;
	if (units_parse_count(zone, &index, NULL) == 0)
		return index <= UINT32_MAX ? (uint32_t)index : 0;
	return if_nametoindex(zone);
}

/* "1.2.3.4", "2001:db8::1", "fe80::1%eth0" of that length. False: not a literal. */
static bool
parse_ip(const char *text, size_t length, struct socket_address *out)
{
	char ip[INET6_ADDRSTRLEN + IF_NAMESIZE];
	uint8_t bytes[16];
	uint32_t scope = 0;
	if (length >= sizeof(ip))
		return false;
	memcpy(ip, text, length);
	ip[length] = '\0';

	*out = (struct socket_address){ .family = AF_UNSPEC };
	if (inet_pton(AF_INET, ip, bytes) == 1) {
		set_ipv4(out, bytes);
		return true;
	}
	char *zone = strchr(ip, '%');
	if (zone) {
		*zone = '\0';
		scope = zone_index(zone + 1);
		if (scope == 0)
			return false;
	}
	if (inet_pton(AF_INET6, ip, bytes) != 1)
		return false;
	set_ipv6(out, bytes, scope);
	return true;
}

void
socket_address_from(struct socket_address *out, const struct sockaddr *from, socklen_t length)
{
	*out = (struct socket_address){ .family = AF_UNSPEC };
	if (length < (socklen_t)sizeof(from->sa_family))
		return;
	if (from->sa_family == AF_INET && length >= (socklen_t)sizeof(struct sockaddr_in)) {
		struct sockaddr_in in;
		memcpy(&in, from, sizeof(in));
		set_ipv4(out, &in.sin_addr);
		out->port = ntohs(in.sin_port);
	} else if (from->sa_family == AF_INET6 &&
		   length >= (socklen_t)sizeof(struct sockaddr_in6)) {
		struct sockaddr_in6 in6;
		memcpy(&in6, from, sizeof(in6));
		set_ipv6(out, &in6.sin6_addr, in6.sin6_scope_id);
		out->port = ntohs(in6.sin6_port);
	} else if (from->sa_family == AF_UNIX) {
		out->family = AF_UNIX;
		out->uid = UINT32_MAX;
	}
}

socklen_t
socket_address_to(const struct socket_address *address, struct sockaddr_storage *out)
{
	memset(out, 0, sizeof(*out));
	if (address->family == AF_INET) {
		struct sockaddr_in *in = (struct sockaddr_in *)out;
		in->sin_family = AF_INET;
		in->sin_port = htons(address->port);
		memcpy(&in->sin_addr, address->ip, 4);
		return sizeof(*in);
	}
	if (address->family == AF_INET6) {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(address->port);
		in6->sin6_scope_id = address->scope;
		memcpy(&in6->sin6_addr, address->ip, 16);
		return sizeof(*in6);
	}
	return 0;
}

static size_t
ip_bytes(sa_family_t family)
{
	return family == AF_INET ? 4 : family == AF_INET6 ? 16 : 0;
}

bool
socket_address_same_host(const struct socket_address *a, const struct socket_address *b)
{
	if (a->family != b->family)
		return false;
	if (a->family == AF_UNIX)
		return a->uid == b->uid;
	return a->scope == b->scope && memcmp(a->ip, b->ip, ip_bytes(a->family)) == 0;
}

bool
socket_address_equal(const struct socket_address *a, const struct socket_address *b)
{
	return a->port == b->port && socket_address_same_host(a, b);
}

/* "10.0.0.7" or "2001:db8::1%2". */
#define IP_TEXT (INET6_ADDRSTRLEN + sizeof("%4294967295"))
static const char *
ip_text(const struct socket_address *address, char text[IP_TEXT])
{
	text[0] = '\0';
	inet_ntop(address->family, address->ip, text, INET6_ADDRSTRLEN);
	if (address->scope) {
		size_t used = strlen(text);
		snprintf(text + used, IP_TEXT - used, "%%%" PRIu32, address->scope);
	}
	return text;
}

const char *
socket_address_text(const struct socket_address *address, char text[SOCKET_ADDRESS_TEXT])
{
	char ip[IP_TEXT];
	if (address->family == AF_INET)
		snprintf(text, SOCKET_ADDRESS_TEXT, "%s:%u", ip_text(address, ip), address->port);
	else if (address->family == AF_INET6)
		snprintf(text, SOCKET_ADDRESS_TEXT, "[%s]:%u", ip_text(address, ip), address->port);
	else if (address->family == AF_UNIX && address->uid != UINT32_MAX)
		snprintf(text, SOCKET_ADDRESS_TEXT, "unix:uid=%" PRIu32, address->uid);
	else
		snprintf(text, SOCKET_ADDRESS_TEXT, "%s",
			 address->family == AF_UNIX ? "unix" : "unknown");
	return text;
}

/* ------------------------------------------------------------------ configured addresses */

void
address_release(struct address *address)
{
	free(address->text);
	free(address->name);
	*address = (struct address){ 0 };
}

void
address_list_release(struct address_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		address_release(&list->at[i]);
	free(list->at);
	*list = (struct address_list){ 0 };
}

/* Fills what is left to fill; `name` is NULL for a literal. */
static int
finish(struct address *out, const char *prefix, const char *name, const char *suffix,
       struct failure *why)
{
	if (asprintf(&out->text, "%s%s%s", prefix, name ? name : "", suffix) < 0)
		out->text = NULL; /* its value is undefined then */
	if (name)
		out->name = strdup(name);
	if (!out->text || (name && !out->name)) {
		address_release(out);
		return failure_set(why, FAILURE_MEMORY, "no memory for an address");
	}
	return 0;
}

static int
parse_unix(const char *path, struct address *out, struct failure *why)
{
	bool is_abstract = path[0] == '@';
	const char *name = path + is_abstract;
	size_t length = strlen(name);
	if (length == 0)
		return failure_set(why, FAILURE_CONFIG,
				   "'unix:%s' has no name; write unix:/path or unix:@name", path);
	if (length > PATH_MOST)
		return failure_set(
			why, FAILURE_CONFIG,
			"'unix:%.40s...' has a name of %zu bytes; the kernel takes at most "
			"%zu",
			path, length, PATH_MOST);
	*out = (struct address){ .kind = is_abstract ? ADDRESS_ABSTRACT : ADDRESS_UNIX };
	return finish(out, is_abstract ? "unix:@" : "unix:", name, "", why);
}

static int
parse_named(enum address_kind kind, const char *prefix, const char *name, struct address *out,
	    struct failure *why)
{
	if (!address_name_is_valid(name))
		return failure_set(
			why, FAILURE_CONFIG,
			"'%s%.60s' is not a name; write %sNAME with 1 to %d letters, digits "
			"or any of _ . -",
			prefix, name, prefix, NAME_MOST);
	*out = (struct address){ .kind = kind };
	return finish(out, prefix, name, "", why);
}

static int
parse_port(const char *text, const char *port, uint16_t *out, struct failure *why)
{
	uint64_t number;
	if (units_parse_count(port, &number, NULL) || number > UINT16_MAX)
		return failure_set(why, FAILURE_CONFIG,
				   "'%.100s' has the port '%.20s'; write a number from 0 to 65535",
				   text, port);
	*out = (uint16_t)number;
	return 0;
}

/* RFC 1123 section 2.1, and "_" as used in practice; a dot behind it makes it absolute. What looks like an IPv4 address is none, so that
 * "10.0.0.256" is not looked up. */
static bool
is_host_name(const char *name, size_t length)
{
	size_t label = 0;
	bool label_is_number = true;
	if (length > 1 && name[length - 1] == '.')
		length--;
	if (length == 0 || length > HOST_MOST)
		return false;
	for (size_t i = 0; i < length; i++) {
		if (name[i] == '.') {
			if (label == 0)
				return false;
			label = 0;
			label_is_number = true;
			continue;
		}
		if (!is_name_byte(name[i]) || ++label > LABEL_MOST)
			return false;
		label_is_number = label_is_number && is_digit(name[i]);
	}
	return !label_is_number;
}

static int
finish_literal(struct address *out, bool with_port, struct failure *why)
{
	char text[SOCKET_ADDRESS_TEXT];
	out->kind = ADDRESS_IP;
	if (with_port)
		socket_address_text(&out->numeric, text);
	else
		ip_text(&out->numeric, text);
	return finish(out, "", NULL, text, why);
}

static int
finish_host(struct address *out, const char *host, size_t length, struct failure *why)
{
	char name[HOST_MOST + sizeof(".")], suffix[sizeof(":65535")];
	for (size_t i = 0; i < length; i++)
		name[i] =
			(char)(host[i] >= 'A' && host[i] <= 'Z' ? host[i] + ('a' - 'A') : host[i]);
	name[length] = '\0';
	if (strcmp(name, "unix") == 0 || strcmp(name, "systemd") == 0 ||
	    strcmp(name, "internal") == 0)
		return failure_set(why, FAILURE_CONFIG,
				   "'%.100s' is written in capitals; write it in small letters",
				   host);
	snprintf(suffix, sizeof(suffix), ":%u", out->port);
	out->kind = ADDRESS_HOST;
	return finish(out, "", name, suffix, why);
}

/* "[v6]:port" */
static int
parse_bracketed(const char *text, struct address *out, struct failure *why)
{
	const char *end = strchr(text, ']');
	*out = (struct address){ 0 };
	if (!end || end[1] != ':')
		return failure_set(why, FAILURE_CONFIG,
				   "'%.100s' has no port behind brackets; write [ADDRESS]:PORT",
				   text);
	if (parse_port(text, end + 2, &out->port, why))
		return -1;
	if (!parse_ip(text + 1, (size_t)(end - text) - 1, &out->numeric))
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.100s' has no IPv6 address in its brackets; write one, such as "
			"[2001:db8::1]:%u",
			text, out->port);
	out->numeric.port = out->port;
	return finish_literal(out, true, why);
}

/* What is written in the place of an address elsewhere. Whether it was one of these. */
static bool
refuse_other(const char *text, struct failure *why)
{
	const char *url = strstr(text, "://");
	size_t digits = strspn(text, "0123456789");
	if (url)
		failure_set(why, FAILURE_CONFIG, "'%.100s' is a URL; write HOST:PORT%s%.*s", text,
			    strchr(url + 3, ':') ? ", such as " : "",
			    strchr(url + 3, ':') ? (int)strcspn(url + 3, "/") : 0, url + 3);
	else if (strpbrk(text, ", \t"))
		failure_set(why, FAILURE_CONFIG,
			    "'%.100s' is not one address; write one, or a list { \"ADDRESS\", "
			    "\"ADDRESS\" }",
			    text);
	else if (digits && !text[digits])
		failure_set(why, FAILURE_CONFIG,
			    "'%.20s' is a port without an address; write 127.0.0.1:%.20s for this "
			    "machine, or 0.0.0.0:%.20s to listen on every IPv4 address of it",
			    text, text, text);
	else if (strchr(text, '/') && !strchr(text, ':'))
		failure_set(why, FAILURE_CONFIG, "'%.100s' is a path; write unix:%.100s", text,
			    text);
	else
		return false;
	return true;
}

/* "v4:port", "name:port" */
static int
parse_host_port(const char *text, struct address *out, struct failure *why)
{
	const char *colon = strchr(text, ':');
	*out = (struct address){ 0 };
	if (refuse_other(text, why))
		return -1;
	if (!colon)
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.100s' has no port; write HOST:PORT, unix:/PATH or internal:NAME, or to "
			"listen systemd:NAME",
			text);
	if (strchr(colon + 1, ':'))
		return failure_set(why, FAILURE_CONFIG,
				   "'%.100s' has more than one ':'; write an IPv6 address as "
				   "[ADDRESS]:PORT",
				   text);
	if (parse_port(text, colon + 1, &out->port, why))
		return -1;
	size_t length = (size_t)(colon - text);
	if (parse_ip(text, length, &out->numeric)) {
		out->numeric.port = out->port;
		return finish_literal(out, true, why);
	}
	if (!is_host_name(text, length) && length && strncmp(text, "*:", 2) != 0)
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.100s' has neither an IP address nor a host name before its port; "
			"write one, such as 10.0.0.5:%u or db.example:%u",
			text, out->port, out->port);
	if (!is_host_name(text, length))
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.100s' has neither an IP address nor a host name before its port; "
			"write one, such as 0.0.0.0:%u for every IPv4 address of this "
			"machine",
			text, out->port);
	return finish_host(out, text, length, why);
}

int
address_parse(const char *text, struct address *out, struct failure *why)
{
	if (strncmp(text, "unix:", 5) == 0)
		return parse_unix(text + 5, out, why);
	if (strncmp(text, "systemd:", 8) == 0)
		return parse_named(ADDRESS_SYSTEMD, "systemd:", text + 8, out, why);
	if (strncmp(text, "internal:", 9) == 0)
		return parse_named(ADDRESS_INTERNAL, "internal:", text + 9, out, why);
	if (text[0] == '[')
		return parse_bracketed(text, out, why);
	return parse_host_port(text, out, why);
}

int
address_parse_host(const char *text, struct address *out, struct failure *why)
{
	*out = (struct address){ 0 };
	if (!parse_ip(text, strlen(text), &out->numeric))
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.100s' is not an IP address; write one without a port, such as "
			"10.0.0.9 or 2001:db8::9",
			text);
	return finish_literal(out, false, why);
}

socklen_t
address_to_unix(const struct address *address, struct sockaddr_storage *out, struct failure *why)
{
	struct sockaddr_un *un = (struct sockaddr_un *)out;
	size_t length = strlen(address->name);
	bool is_abstract = address->kind == ADDRESS_ABSTRACT;
	memset(out, 0, sizeof(*out));
	if (length > PATH_MOST) {
		failure_set(why, FAILURE_CONFIG,
			    "%.100s: longer than the %zu bytes the kernel takes", address->text,
			    PATH_MOST);
		return 0;
	}
	un->sun_family = AF_UNIX;
	memcpy(un->sun_path + is_abstract, address->name, length);
	/* With the zero in front of an abstract name or behind a path. */
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

/* ------------------------------------------------------------------ prefixes */

/* Zeroes what is behind the first `bits` bits; returns whether it was zero before. */
static bool
mask(struct socket_address *base, unsigned int bits)
{
	bool was_clean = true;
	for (unsigned int i = 0; i < ip_bytes(base->family); i++) {
		unsigned int kept = bits > i * 8 ? bits - i * 8 : 0;
		uint8_t keep = (uint8_t)(kept >= 8 ? 0xff : 0xff00 >> kept);
		was_clean = was_clean && (base->ip[i] & ~keep) == 0;
		base->ip[i] &= keep;
	}
	return was_clean;
}

/* "unix", "uid:N". False: neither. */
static bool
parse_unix_peer(const char *text, struct prefix *out)
{
	uint64_t uid = UINT32_MAX;
	bool is_any = strcmp(text, "unix") == 0;
	if (!is_any && (strncmp(text, "uid:", 4) != 0 || units_parse_count(text + 4, &uid, NULL) ||
			uid >= UINT32_MAX))
		return false;
	*out = (struct prefix){ .base = { .family = AF_UNIX, .uid = (uint32_t)uid },
				.bits = is_any ? 0 : UID_BITS };
	return true;
}

int
prefix_parse(const char *text, struct prefix *out, struct failure *why)
{
	size_t length = strcspn(text, "/");
	struct prefix prefix;
	uint64_t bits;
	if (parse_unix_peer(text, out))
		return 0;
	if (strpbrk(text, ", "))
		return failure_set(why, FAILURE_CONFIG,
				   "'%.100s' is not one network; write a list { \"IP/BITS\", "
				   "\"IP/BITS\" }",
				   text);
	if (strcmp(text, "all") == 0 || strcmp(text, "any") == 0 || strcmp(text, "*") == 0)
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.100s' is not an address or network; everybody is 0.0.0.0/0, ::/0 "
			"and unix",
			text);
	if (!parse_ip(text, length, &prefix.base))
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.100s' is not an address or network; write IP or IP/BITS, such as "
			"10.0.0.0/8, or unix or uid:NUMBER for UNIX sockets",
			text);
	uint64_t most = ip_bytes(prefix.base.family) * 8;
	if (text[length] == '\0')
		bits = most;
	else if (units_parse_count(text + length + 1, &bits, NULL) || bits > most)
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.100s' has the length '%.20s'; write a number from 0 to %" PRIu64, text,
			text + length + 1, most);
	prefix.bits = (uint8_t)bits;
	if (!mask(&prefix.base, prefix.bits)) {
		char ip[IP_TEXT];
		return failure_set(why, FAILURE_CONFIG,
				   "'%.100s' has bits set behind its length; write %s/%u or %.*s",
				   text, ip_text(&prefix.base, ip), prefix.bits, (int)length, text);
	}
	*out = prefix;
	return 0;
}

const char *
prefix_format(const struct prefix *prefix, char text[SOCKET_ADDRESS_TEXT])
{
	char ip[IP_TEXT];
	if (prefix->base.family == AF_UNIX && !prefix->bits)
		snprintf(text, SOCKET_ADDRESS_TEXT, "unix");
	else if (prefix->base.family == AF_UNIX)
		snprintf(text, SOCKET_ADDRESS_TEXT, "uid:%" PRIu32, prefix->base.uid);
	else if (prefix->bits == ip_bytes(prefix->base.family) * 8)
		snprintf(text, SOCKET_ADDRESS_TEXT, "%s", ip_text(&prefix->base, ip));
	else
		snprintf(text, SOCKET_ADDRESS_TEXT, "%s/%u", ip_text(&prefix->base, ip),
			 prefix->bits);
	return text;
}

bool
prefix_contains(const struct prefix *prefix, const struct socket_address *address)
{
	if (prefix->base.family != address->family)
		return false;
	if (address->family == AF_UNIX)
		return !prefix->bits || prefix->base.uid == address->uid;
	struct socket_address network = *address;
	mask(&network, prefix->bits);
	return memcmp(network.ip, prefix->base.ip, ip_bytes(network.family)) == 0;
}

bool
prefix_covers(const struct prefix *wide, const struct prefix *narrow)
{
	return wide->bits <= narrow->bits && prefix_contains(wide, &narrow->base);
}

bool
prefix_list_contains(const struct prefix_list *list, const struct socket_address *address)
{
	for (size_t i = 0; i < list->count; i++)
		if (prefix_contains(&list->at[i], address))
			return true;
	return false;
}

void
prefix_list_release(struct prefix_list *list)
{
	free(list->at);
	*list = (struct prefix_list){ 0 };
}
