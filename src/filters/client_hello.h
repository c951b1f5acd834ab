/*
 * client_hello: what a TLS client says first, read without answering and without taking a byte: the
 * server's name it asks for and the protocols it offers. Pure functions over byte strings, and a filter
 * that looks and passes. Not a judge of TLS: what it does not need it steps over. Sources: RFC 8446 4.1.2, 4.2 and 5.1, RFC 6066 3
 * (server_name), RFC 7301 3.1 (ALPN). Of an encrypted hello (ECH) the outer one is read.
 */
#ifndef PENSTOCK_FILTERS_CLIENT_HELLO_H
#define PENSTOCK_FILTERS_CLIENT_HELLO_H

#include "../filter.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most bytes that are looked at, the heads of records included. Browsers send 0.5 to 2 KiB. */
#define CLIENT_HELLO_MOST (16 * 1024)
#define CLIENT_HELLO_NAME 255
#define CLIENT_HELLO_ALPN 1024

enum client_hello_result {
	CLIENT_HELLO_MORE,    /* so far it is the beginning of one: *wanted_bytes is set */
	CLIENT_HELLO_NOT_TLS, /* whatever may follow */
	CLIENT_HELLO_FOUND,
	CLIENT_HELLO_BAD, /* it begins as TLS and is no sound hello: *why is filled, FAILURE_PROTOCOL */
};

struct client_hello {
	char sni[CLIENT_HELLO_NAME + 1]; /* in small letters, without a dot at its end; "" = none */
	/* "h2,http/1.1": what it offers, as far as those are plain words and there is room. */
	char alpn[CLIENT_HELLO_ALPN];
	size_t wanted_bytes; /* to look again is of no use before there are so many */

	size_t message_bytes;
	uint8_t message[CLIENT_HELLO_MOST]; /* the handshake message out of its records */
};

/* Looks at the first `count` bytes of a stream. O(count) up to CLIENT_HELLO_MOST; more are not looked
 * at. */
enum client_hello_result client_hello_parse(const uint8_t *bytes, size_t count,
					    struct client_hello *out, struct failure *why);

/* Near; for a tunnel that is still to be chosen, and in no chain of an operator's: a client that waits to
 * be spoken to would wait for ever. It is ready once the first bytes are known to be a ClientHello
 * (facts.sni, alpn_offered, begins_with_tls are set) or not to be one, and passes without having taken
 * any. A hello that is not sound, or longer than CLIENT_HELLO_MOST, is FAILURE_PROTOCOL. */
extern const struct filter_type client_hello_filter;

#endif
