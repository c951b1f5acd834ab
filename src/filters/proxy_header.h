/*
 * proxy_header: the PROXY protocol's header as bytes, both versions, both ways. Pure functions over
 * byte strings: they know neither buffers nor trust. Source of everything here: HAProxy's
 * doc/proxy-protocol.txt, sections 2.1 (version 1, a line of text) and 2.2 (version 2, binary).
 */
#ifndef PENSTOCK_FILTERS_PROXY_HEADER_H
#define PENSTOCK_FILTERS_PROXY_HEADER_H

#include "../address.h"
#include "../failure.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The longest header that is taken or made, all included. The specification lets version 2 have
 * 65551 bytes; what is sent in practice stays below 600. */
#define PROXY_HEADER_MOST    4096
#define PROXY_HEADER_V1_MOST 107
#define PROXY_HEADER_V2_MIN  16

#define PROXY_UNIQUE_ID_MOST 128

/* Bytes inside of somebody else's memory; `at` NULL = nothing was told. Any bytes at all. */
struct proxy_span {
	const uint8_t *at;
	size_t length;
};

struct proxy_header {
	/* The sender speaks for itself (LOCAL): the socket's own addresses hold, nothing else is set. */
	bool is_local;
	/* Of the original connection; both AF_UNSPEC = not told (UNKNOWN, UNSPEC, datagrams): the
	 * socket's own hold. AF_UNIX stands without its path and user. */
	struct socket_address source, destination;

	/* Version 2 only. */
	struct proxy_span alpn, authority, unique_id;
	struct proxy_span tls_version, tls_cipher, common_name;
	bool is_tls;          /* the original client came by TLS */
	bool has_certificate; /* and gave a certificate, now or when the session began, */
	bool is_verified;     /* which the sender has verified */
};

enum proxy_result {
	PROXY_MORE,  /* so far it is the beginning of a header */
	PROXY_WHOLE, /* a header of *header_bytes, and perhaps more behind it */
	PROXY_BAD,   /* whatever may follow: *why is filled, FAILURE_PROTOCOL */
};

/* How long the header at the front of `count` bytes is. PROXY_MORE: asking again is of no use before
 * there are *header_bytes of them. O(count), at most PROXY_HEADER_V1_MOST bytes are looked at. */
enum proxy_result proxy_header_measure(const uint8_t *bytes, size_t count, size_t *header_bytes,
				       struct failure *why);

/* Reads the `count` bytes of a header that proxy_header_measure found whole. The spans point into
 * `bytes`. -1: malformed, *why is FAILURE_PROTOCOL. O(count). */
int proxy_header_parse(const uint8_t *bytes, size_t count, struct proxy_header *out,
		       struct failure *why);

enum proxy_tlvs {
	PROXY_TLVS_NONE,
	PROXY_TLVS_CHECKSUM, /* the CRC32c */
	PROXY_TLVS_ALL,      /* and all that is set */
};

/* Writes a header of version 1 or 2 and returns its length. IPv4 beside IPv6 becomes IPv4-mapped
 * IPv6; other mixtures and unknown addresses become UNKNOWN in version 1 and UNSPEC in version 2;
 * LOCAL is UNKNOWN in version 1. Spans that are too long for the whole to fit are left out. */
size_t proxy_header_write(int version, enum proxy_tlvs tlvs, const struct proxy_header *header,
			  uint8_t out[PROXY_HEADER_MOST]);

#endif
