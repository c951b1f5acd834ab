/*
 * tls_file: the files that a section of TLS names, read whole. Messages begin with the file's name.
 */
#ifndef PENSTOCK_FILTERS_TLS_FILE_H
#define PENSTOCK_FILTERS_TLS_FILE_H

#include "../failure.h"

#include <openssl/bio.h>
#include <stdbool.h>
#include <stddef.h>

struct tls_file {
	const char *path; /* borrowed */
	unsigned char *bytes;
	size_t length;
	bool is_public; /* everybody on this machine may read it */
};

/* Reads a regular file of at most 64 MiB. */
int tls_file_read(struct tls_file *file, const char *path, struct failure *why);

/* The same for a file that holds a secret: one that everybody may read is refused. */
int tls_file_read_secret(struct tls_file *file, const char *path, struct failure *why);
int tls_file_refuse_public(const struct tls_file *file, struct failure *why);

/* Its bytes as OpenSSL reads them, valid as long as the file; NULL without memory. */
BIO *tls_file_open(const struct tls_file *file, struct failure *why);

/* For OpenSSL where no passphrase is known: nobody sits at a terminal to be asked for one. */
int tls_file_ask_nobody(char *out, int most, int is_writing, void *unused);

/* Wipes and frees the bytes. A zeroed file is allowed. */
void tls_file_release(struct tls_file *file);

#endif
