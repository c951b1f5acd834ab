/*
 * limits_key: what tells the nodes of a limit apart, as bytes, as a hash and as text.
 */
#ifndef PENSTOCK_LIMITS_KEY_H
#define PENSTOCK_LIMITS_KEY_H

#include "limits.h"

#define LIMITS_KEY_MOST 255
#define LIMITS_KEY_TEXT 260

struct limits_key {
	uint8_t length; /* 0 = a limit without `per` */
	unsigned char bytes[LIMITS_KEY_MOST];
};

/* The peer's key for a limit of this kind. false: what it needs is not known yet. */
bool limits_key_make(struct limits_key *key, const struct limit_spec *spec,
		     const struct limit_who *who);

/* SipHash-1-3 of the key and two more words. */
uint64_t limits_key_hash(const uint64_t seed[2], uint64_t limit, uint64_t parent,
			 const unsigned char *bytes, uint8_t length);

/* "10.0.0.0/24", "2001:db8::/64", "uid:1000", "#17" (a connection), a name, "none"; "" without a key.
 * Bytes that a terminal might obey are shown as "?". Returns text. */
const char *limits_key_text(const unsigned char *bytes, uint8_t length, char text[LIMITS_KEY_TEXT]);

#endif
