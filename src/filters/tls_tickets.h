/*
 * tls_tickets: the keys under which clients carry their sessions home; they outlive reloads (tls_lasting).
 * A key encrypts for one lifetime and decrypts for one more; its age follows from the time given. Any
 * thread.
 */
#ifndef PENSTOCK_FILTERS_TLS_TICKETS_H
#define PENSTOCK_FILTERS_TLS_TICKETS_H

#include "tls_lasting.h"

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>

struct tls_tickets;

struct tls_ticket_key {
	unsigned char name[16];
	unsigned char cipher[32]; /* AES-256 */
	unsigned char mac[32];    /* HMAC-SHA256 */
};

/* NULL without memory. `lifetime_ns` counts from now on for all who hold it. */
struct tls_tickets *tls_tickets_hold(const unsigned char id[TLS_ID_BYTES], uint64_t lifetime_ns);
void tls_tickets_release(struct tls_tickets *tickets); /* NULL is allowed */

/* The key to encrypt with at that time; makes a new one when it is due. -1 without randomness. */
int tls_tickets_newest(struct tls_tickets *tickets, uint64_t now_ns, struct tls_ticket_key *out);

/* The key of that name if it still counts. *is_newest: no need to give a fresh ticket. */
bool tls_tickets_find(struct tls_tickets *tickets, uint64_t now_ns, const unsigned char name[16],
		      struct tls_ticket_key *out, bool *is_newest);

/* Makes a server's context use them; who comes back is asked about with tls_peer_is_welcome. */
void tls_tickets_use(SSL_CTX *context);

#endif
