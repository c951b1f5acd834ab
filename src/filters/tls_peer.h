/*
 * tls_peer: who the other one has to be: authorities, revocations, the list of those let in, pinned
 * keys, the name. Each refusal is said in words an operator knows.
 */
#ifndef PENSTOCK_FILTERS_TLS_PEER_H
#define PENSTOCK_FILTERS_TLS_PEER_H

#include "../failure.h"
#include "../keyword.h"

#include <openssl/ssl.h>
#include <stdbool.h>

struct tls;

#define TLS_SPKI_BYTES 32 /* SHA-256 of a SubjectPublicKeyInfo, RFC 7469 2.4 */

enum tls_rule_kind {
	TLS_RULE_CN,
	TLS_RULE_OU,
	TLS_RULE_DNS,
	TLS_RULE_URI,
	TLS_RULE_IP,
	TLS_RULE_SPKI
};

struct tls_rule {
	enum tls_rule_kind kind;
	const char *text; /* behind the colon; borrowed from the keyword's value */
	unsigned char bytes[TLS_SPKI_BYTES]; /* of an address or a key */
	size_t length;
};

struct tls_rules {
	struct tls_rule *allow, *pin; /* any of them; none = everybody */
	size_t allow_count, pin_count;
	STACK_OF(X509_CRL) * crls; /* NULL = none */
};

/* Reads "cn:...", "spki:sha256/HEX" ... and, for `pin`, "sha256/HEX". HEX may be base64 as well. */
int tls_peer_read_rules(struct tls_rules *rules, const struct text_list *allow,
			const struct text_list *pin, struct failure *why);
void tls_peer_release(struct tls_rules *rules);

/* OpenSSL looks at what an authority may do when it first meets it, and if it has no memory then holds it for invalid
 * for ever. To be called before it is in use; without memory tls_memory_was_short tells. */
void tls_peer_prepare(X509 *authority);

/* Adds authorities and revocations (PEM) to a store; *crls gets the latter too. */
int tls_peer_add_ca(X509_STORE *store, const char *path, STACK_OF(X509_NAME) * names,
		    struct failure *why);
int tls_peer_add_crl(X509_STORE *store, const char *path, STACK_OF(X509_CRL) * *crls,
		     struct failure *why);

/* For SSL_CTX_set_cert_verify_callback. */
int tls_peer_on_verify(X509_STORE_CTX *store, void *unused);

/* Whether the certificate (NULL = none was shown) of a session that comes back may still come in: the
 * date, the revocations, the list, the pins; or who shows none. If not, tls_refuse has been told. */
bool tls_peer_may_return(struct tls *tls, X509 *certificate);

/* Whether that session may be taken up, by a client or by us. Who may not come in any more gets a full
 * handshake, and in it a proper refusal. */
bool tls_peer_is_welcome(struct tls *tls, SSL_SESSION *session);

/* The facts of a near peer's certificate. -1 without memory. */
int tls_peer_learn(struct tls *tls, X509 *certificate);

#endif
