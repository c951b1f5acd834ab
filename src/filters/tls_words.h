/*
 * tls_words: what went wrong, in words an operator knows; never a bare code, never a secret.
 */
#ifndef PENSTOCK_FILTERS_TLS_WORDS_H
#define PENSTOCK_FILTERS_TLS_WORDS_H

#include "../failure.h"
#include "tls_counters.h"

#include <openssl/ssl.h>
#include <stdbool.h>

enum tls_stage {
	TLS_STAGE_FIRST,  /* nothing was understood of the peer yet */
	TLS_STAGE_SECRET, /* a handshake with a shared secret */
	TLS_STAGE_OTHER,
};

/* What somebody speaks who began with these bytes in place of TLS, to stand behind "but"; `is_far`: we connected to
 * him. NULL = cannot be told. Static. */
const char *tls_words_protocol(const unsigned char *bytes, size_t length, bool is_far);

/* Fills *why from OpenSSL's queue of errors, which it empties. Returns what a handshake that ends by it is
 * counted as. */
enum tls_failure tls_words_failure(struct failure *why, enum tls_stage stage);

/* What OpenSSL says of a file or a value ("no start line"), in `text`; empties the queue. Returns it. */
#define TLS_WORDS_REASON 80
const char *tls_words_reason(char text[TLS_WORDS_REASON]);

/* The first `length` bytes of a stranger, UTF-8 as far as it is printable, in `text`; returns it. */
#define TLS_WORDS_TEXT 64
const char *tls_words_printable(const char *bytes, size_t length, char text[TLS_WORDS_TEXT]);

#endif
