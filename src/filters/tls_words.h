/*
 * tls_words: what went wrong, in words an operator knows; never a bare code, never a secret.
 */
#ifndef PENSTOCK_FILTERS_TLS_WORDS_H
#define PENSTOCK_FILTERS_TLS_WORDS_H

#include "../failure.h"

#include <openssl/ssl.h>
#include <stdbool.h>

/* Fills *why from OpenSSL's queue of errors, which it empties. `is_first`: nothing was understood of
 * the peer yet. Returns -1. */
int tls_words_failure(struct failure *why, const SSL *ssl, bool is_first);

/* What OpenSSL says of a file or a value ("no start line"), in `text`; empties the queue. Returns it. */
#define TLS_WORDS_REASON 80
const char *tls_words_reason(char text[TLS_WORDS_REASON]);

/* The first `length` bytes of a stranger, printable, in `text`; returns it. */
#define TLS_WORDS_TEXT 64
const char *tls_words_printable(const char *bytes, size_t length, char text[TLS_WORDS_TEXT]);

#endif
