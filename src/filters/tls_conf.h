/*
 * tls_conf: a section of TLS: its keywords, and the contexts made of them, one for each role. It is
 * read-only once configured and shared by all workers.
 */
#ifndef PENSTOCK_FILTERS_TLS_CONF_H
#define PENSTOCK_FILTERS_TLS_CONF_H

#include "../filter.h"
#include "tls_identity.h"
#include "tls_peer.h"
#include "tls_psk.h"
#include "tls_sessions.h"
#include "tls_tickets.h"

#include <openssl/ssl.h>

enum tls_verify { TLS_VERIFY_AUTO, TLS_VERIFY_NONE, TLS_VERIFY_OPTIONAL, TLS_VERIFY_REQUIRED };
enum tls_truncation { TLS_TRUNCATION_RESET, TLS_TRUNCATION_EOF };

struct tls_conf {
	/* As written. */
	struct text_list certificate, key, ocsp, allow, pin, alpn;
	char *pkcs12, *passphrase, *client_ca, *ca, *crl, *psk;
	char *psk_identity, *server_name, *ciphers, *ciphersuites, *groups;
	int verify, min_version, max_version, truncation;
	bool tickets;
	uint64_t session_cache, session_lifetime_ns;

	/* Made by tls_conf_configure. */
	SSL_CTX *contexts[2]; /* by enum filter_side; NEAR is NULL without anything to show */
	struct tls_identities identities;
	struct tls_rules rules;
	struct tls_psks psks;
	struct tls_tickets *keys;      /* of tickets to clients; NULL = none are given */
	struct tls_sessions *kept;     /* of clients without tickets; NULL = none are */
	struct tls_sessions *sessions; /* of servers */
	unsigned char *alpn_wire;      /* RFC 7301 ProtocolNameList without its length */
	size_t alpn_length;
};

extern const struct keyword tls_conf_keywords[];

/* As struct filter_type's slots. Reads files. */
int tls_conf_configure(void *conf, struct failure *why);
int tls_conf_doubt(const void *conf, struct failure *why);
void tls_conf_discard(void *conf);
int tls_conf_fits(const void *conf, enum filter_side side, struct failure *why);
int tls_conf_suits(const void *conf, const bool sides[FILTER_SIDES], struct failure *why);
bool tls_conf_needs_host(const void *conf);

/* Whether it is an IP address. */
bool tls_conf_is_address(const char *name);

/* What `verify` comes to on that side. */
enum tls_verify tls_conf_verify(const struct tls_conf *conf, enum filter_side side);

#endif
