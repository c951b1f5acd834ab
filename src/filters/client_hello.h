/*
 * client_hello: what a TLS client says first, read without answering and without taking a byte: the
 * server's name it asks for and the protocols it offers. Pure functions over byte strings. Not a
 * judge of TLS: what it does not need it steps over. Sources: RFC 8446 4.1.2, 4.2 and 5.1, RFC 6066 3
 * (server_name), RFC 7301 3.1 (ALPN). Of an encrypted hello (ECH) the outer one is read.
 */
#ifndef PENSTOCK_FILTERS_CLIENT_HELLO_H
#define PENSTOCK_FILTERS_CLIENT_HELLO_H

#include "../failure.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most bytes that are looked at, the heads of records included. Browsers send 0.5 to 2 KiB. */
#define CLIENT_HELLO_MOST (16 * 1024)
#define CLIENT_HELLO_NAME 255

enum client_hello_result {
	CLIENT_HELLO_MORE,    /* so far it is the beginning of one: *wanted_bytes is set */
	CLIENT_HELLO_NOT_TLS, /* whatever may follow */
	CLIENT_HELLO_FOUND,
	CLIENT_HELLO_BAD, /* it begins as TLS and is no sound hello: *why is filled, FAILURE_PROTOCOL */
};

struct client_hello {
	char sni[CLIENT_HELLO_NAME + 1]; /* in small letters, without a dot at its end; "" = none */
	size_t wanted_bytes;             /* to look again is of no use before there are so many */

	const uint8_t *alpn; /* the list, each protocol behind its length; into `message` */
	size_t alpn_bytes;
	size_t message_bytes;
	uint8_t message[CLIENT_HELLO_MOST]; /* the handshake message out of its records */
};

/* Looks at the first `count` bytes of a stream. O(count) up to CLIENT_HELLO_MOST; more are not looked
 * at. */
enum client_hello_result client_hello_parse(const uint8_t *bytes, size_t count,
					    struct client_hello *out, struct failure *why);

/* Whether a hello that was found offers that protocol ("h2"). O(bytes of its list). */
bool client_hello_offers(const struct client_hello *hello, const char *protocol);

#endif
