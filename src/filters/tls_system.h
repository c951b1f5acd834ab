/*
 * tls_system: the authorities that the system trusts, read once and shared by all sections and generations
 * until the system's change: reading them takes as long as a hundred certificates, and as much memory.
 */
#ifndef PENSTOCK_FILTERS_TLS_SYSTEM_H
#define PENSTOCK_FILTERS_TLS_SYSTEM_H

#include "../failure.h"
#include "../stamp.h"

#include <openssl/x509.h>
#include <stdbool.h>

/* A store to look into and not to change, with a reference of the caller's; NULL without memory. Any thread. */
X509_STORE *tls_system_hold(struct failure *why);

/* What their files are like now: the default's file and directory. */
struct tls_system_stamps {
	struct stamp file, directory;
};
struct tls_system_stamps tls_system_look(void);

/* Whether there is anything to read. */
bool tls_system_exists(void);

#endif
