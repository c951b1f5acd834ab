/*
 * tls_identity: who we are: certificates with their chains, keys and OCSP answers, and which of them
 * a name that a client asks for gets.
 */
#ifndef PENSTOCK_FILTERS_TLS_IDENTITY_H
#define PENSTOCK_FILTERS_TLS_IDENTITY_H

#include "../failure.h"
#include "../keyword.h"

#include <openssl/ssl.h>
#include <stdbool.h>
#include <time.h>

struct tls_identity {
	const char *path; /* of the certificate's file; borrowed from the keyword's value */
	X509 *certificate;
	STACK_OF(X509) * chain; /* its issuers, nearest first; NULL = none */
	EVP_PKEY *key;
	unsigned char *staple; /* OCSP answer, DER; NULL = none */
	size_t staple_length;
	time_t staple_until; /* 0 = for ever */
};

/* In the order written; the first is for whoever asks for no name, or for one that nobody has. */
struct tls_identities {
	struct tls_identity *at;
	size_t count;
};

/* Adds the certificate (leaf first, then its issuers) and key of two PEM files, which may be one.
 * `passphrase` is NULL without one. Fails with the file's name if one cannot be read or decrypted, if
 * the key can be read by everybody or is another's, if the chain is broken or a date is wrong. */
int tls_identity_add(struct tls_identities *identities, const char *certificate_path,
		     const char *key_path, const char *passphrase, struct failure *why);

/* The same from a PKCS#12 file, in whatever order its issuers stand. */
int tls_identity_add_pkcs12(struct tls_identities *identities, const char *path,
			    const char *passphrase, struct failure *why);

/* Whether less than a tenth of its time is left. */
bool tls_identity_is_old(const X509 *certificate);

/* Gives an OCSP answer (DER) to the certificate that it is about. */
int tls_identity_add_ocsp(struct tls_identities *identities, const char *path, struct failure *why);

/* Puts the first identity, and those of its name with another type of key, into a context. Fails with its
 * file's name if any may not be shown there, such as one whose key is too short. */
int tls_identity_show(const struct tls_identities *identities, SSL_CTX *context,
		      struct failure *why);

/* For a handshake: shows what fits the name better than the context does, if anything. Returns -1
 * without memory. O(identities). */
int tls_identity_choose(const struct tls_identities *identities, SSL *ssl, const char *name);

/* The OCSP answer to go with that certificate at that time, or NULL. */
const struct tls_identity *tls_identity_staple(const struct tls_identities *identities,
					       const X509 *certificate, time_t now);

void tls_identity_release(struct tls_identities *identities);

/* "2026-11-01" of an ASN.1 time, in `text`; returns it. */
#define TLS_DATE_TEXT 16
const char *tls_identity_date(const ASN1_TIME *time, char text[TLS_DATE_TEXT]);

#endif
