/*
 * tls_psk: secrets that two sites share in place of certificates, from a file of lines
 * "identity:hex".
 */
#ifndef PENSTOCK_FILTERS_TLS_PSK_H
#define PENSTOCK_FILTERS_TLS_PSK_H

#include "../failure.h"

#include <openssl/ssl.h>
#include <stdbool.h>

#define TLS_PSK_LEAST 16
#define TLS_PSK_MOST  64

struct tls_psk {
	unsigned char name[32]; /* SHA-256 of the identity: what is compared */
	unsigned char key[TLS_PSK_MOST];
	size_t length;
	char *identity;
};

struct tls_psks {
	struct tls_psk *at;
	size_t count;
	size_t own; /* index of what we call ourselves as a client */
};

/* Reads the file. `own` is the identity we use as a client; "" = the first. */
int tls_psk_read(struct tls_psks *psks, const char *path, const char *own, struct failure *why);
void tls_psk_release(struct tls_psks *psks);

/* Makes a context of that role use them. */
void tls_psk_use(SSL_CTX *context, bool is_server);

#endif
