/*
 * address: the two forms of an address.
 *
 * `struct address` is what an operator wrote ("10.0.0.5:6379", "unix:/run/x.sock", "internal:x");
 * `struct socket_address` is the compact numeric form that is kept for each connection. Neither
 * resolves names nor opens anything.
 */
#ifndef PENSTOCK_ADDRESS_H
#define PENSTOCK_ADDRESS_H

#include "failure.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* The longest text of a numeric address, with its end. */
#define SOCKET_ADDRESS_TEXT 72

/* A peer's or our own socket address in 24 bytes. IPv4-mapped IPv6 addresses are stored as IPv4. */
struct socket_address {
	sa_family_t family; /* AF_INET, AF_INET6, AF_UNIX; AF_UNSPEC = not known */
	uint16_t port;      /* host byte order; 0 for AF_UNIX */
	uint8_t ip[16];     /* network byte order; the first 4 for AF_INET */
	union {
		uint32_t scope; /* IPv6 zone index, 0 = none; AF_INET: 0 */
		uint32_t uid;   /* AF_UNIX: the peer's, SO_PEERCRED; UINT32_MAX = not known */
	};
};

enum address_kind {
	ADDRESS_IP,       /* a literal IPv4 or IPv6 address and port: `numeric` is valid */
	ADDRESS_HOST,     /* a host name and port, to be resolved: `name`, `port` */
	ADDRESS_UNIX,     /* unix:/path: `name` is the path */
	ADDRESS_ABSTRACT, /* unix:@name: `name` without the @ */
	ADDRESS_SYSTEMD,  /* systemd:NAME, listening only */
	ADDRESS_INTERNAL, /* internal:NAME */
};

struct address {
	enum address_kind kind;
	char *text; /* canonical form, for logs and comparison; owned */
	char *name; /* host, path or name without prefix; owned */
	uint16_t port;
	struct socket_address numeric;
};

struct address_list {
	struct address *at; /* owned array */
	size_t count;
};

/* "10.0.0.0/8", "2001:db8::/32", "127.0.0.1" (= /32): sources to allow, to deny, to trust. "unix": who
 * comes by a UNIX socket, "uid:1000": if it is that user. */
struct prefix {
	struct socket_address base; /* port 0, host bits zero */
	uint8_t bits;               /* AF_UNIX: 0, or 32 for the one uid */
};

struct prefix_list {
	struct prefix *at; /* owned array */
	size_t count;
};

/* Whether a name of ours is well formed (tunnel, internal:, systemd:): 1 to 64 letters, digits and any
 * of "_.-". */
bool address_name_is_valid(const char *name);

/* Parses one configured address. *out is owned by the caller (address_release) on success. The text
 * of a failure has the form "what is wrong; what would be right". */
int address_parse(const char *text, struct address *out, struct failure *why);
/* Parses the address of a host without a port: "10.0.0.9", "2001:db8::1", "fe80::1%eth0". */
int address_parse_host(const char *text, struct address *out, struct failure *why);
/* Frees what the address owns and zeroes it; a zeroed one is left alone. */
void address_release(struct address *address);
void address_list_release(struct address_list *list);

/* Parses "IP/BITS", "IP", "unix" or "uid:N"; host bits set are an error that names the network meant. */
int prefix_parse(const char *text, struct prefix *out, struct failure *why);
/* "10.0.0.0/8", "127.0.0.1", "unix", "uid:1000". Returns text. */
const char *prefix_format(const struct prefix *prefix, char text[SOCKET_ADDRESS_TEXT]);
bool prefix_contains(const struct prefix *prefix, const struct socket_address *address);
/* Whether all that `narrow` contains is in `wide`. */
bool prefix_covers(const struct prefix *wide, const struct prefix *narrow);
/* Whether any prefix of the list contains the address; false for an empty list. O(count). */
bool prefix_list_contains(const struct prefix_list *list, const struct socket_address *address);
void prefix_list_release(struct prefix_list *list);

/* From and to the kernel's form. from: an unknown family gives AF_UNSPEC. to: returns the length,
 * 0 for a family that has no numeric form (AF_UNIX). */
void socket_address_from(struct socket_address *out, const struct sockaddr *from, socklen_t length);
socklen_t socket_address_to(const struct socket_address *address, struct sockaddr_storage *out);

/* The kernel's form of a configured UNIX address (path or abstract). Fails when the path is longer
 * than sun_path takes (108 bytes). Returns the length, or 0 with *why filled. */
socklen_t address_to_unix(const struct address *address, struct sockaddr_storage *out,
			  struct failure *why);

/* Same family, address and scope (ports are compared only by socket_address_equal). */
bool socket_address_same_host(const struct socket_address *a, const struct socket_address *b);
bool socket_address_equal(const struct socket_address *a, const struct socket_address *b);

/* "10.0.0.7:41234", "[2001:db8::1%2]:80", "unix:uid=1000" ("unix" if not known), "unknown". Always
 * terminated; never fails. */
const char *socket_address_text(const struct socket_address *address,
				char text[SOCKET_ADDRESS_TEXT]);

#endif
