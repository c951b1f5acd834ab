#include "tls_tickets.h"

#include "../clock.h"
#include "tls.h"
#include "tls_conf.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct dated_key {
	struct tls_ticket_key key;
	uint64_t made_ns;
	bool is_there;
};

struct tls_tickets {
	struct tls_lasting lasting;
	uint64_t lifetime_ns;
	struct dated_key newest, before;
};

static struct tls_lasting_kind kind = {
	.bytes = sizeof(struct tls_tickets),
	.lock = PTHREAD_MUTEX_INITIALIZER,
};
/* For the keys of all: held for a copy of one, or to make one. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct tls_tickets *
tls_tickets_hold(const unsigned char id[TLS_ID_BYTES], uint64_t lifetime_ns)
{
	struct tls_tickets *tickets = (struct tls_tickets *)tls_lasting_hold(&kind, id);
	if (!tickets)
		return NULL;
	pthread_mutex_lock(&lock);
	tickets->lifetime_ns = lifetime_ns;
	pthread_mutex_unlock(&lock);
	return tickets;
}

void
tls_tickets_release(struct tls_tickets *tickets)
{
	tls_lasting_release(&kind, (struct tls_lasting *)tickets);
}

static bool
is_younger(const struct dated_key *key, uint64_t now_ns, uint64_t age_ns)
{
	return key->is_there && (now_ns < key->made_ns || now_ns - key->made_ns < age_ns);
}

/* Also forgets what no longer counts: nobody is to find it in memory. */
static void
age(struct tls_tickets *tickets, uint64_t now_ns)
{
	if (tickets->before.is_there &&
	    !is_younger(&tickets->before, now_ns, 2 * tickets->lifetime_ns))
		OPENSSL_cleanse(&tickets->before, sizeof(tickets->before));
	if (tickets->newest.is_there &&
	    !is_younger(&tickets->newest, now_ns, 2 * tickets->lifetime_ns))
		OPENSSL_cleanse(&tickets->newest, sizeof(tickets->newest));
}

static int
renew(struct tls_tickets *tickets, uint64_t now_ns)
{
	struct dated_key fresh = { .made_ns = now_ns, .is_there = true };
	if (RAND_bytes(fresh.key.name, sizeof(fresh.key.name)) != 1 ||
	    RAND_priv_bytes(fresh.key.cipher, sizeof(fresh.key.cipher)) != 1 ||
	    RAND_priv_bytes(fresh.key.mac, sizeof(fresh.key.mac)) != 1)
		return -1;
	tickets->before = tickets->newest;
	tickets->newest = fresh;
	OPENSSL_cleanse(&fresh, sizeof(fresh));
	return 0;
}

int
tls_tickets_newest(struct tls_tickets *tickets, uint64_t now_ns, struct tls_ticket_key *out)
{
	int result = 0;
	pthread_mutex_lock(&lock);
	age(tickets, now_ns);
	if (!is_younger(&tickets->newest, now_ns, tickets->lifetime_ns))
		result = renew(tickets, now_ns);
	*out = tickets->newest.key;
	pthread_mutex_unlock(&lock);
	return result;
}

bool
tls_tickets_find(struct tls_tickets *tickets, uint64_t now_ns, const unsigned char name[16],
		 struct tls_ticket_key *out, bool *is_newest)
{
	const struct dated_key *found = NULL;
	pthread_mutex_lock(&lock);
	age(tickets, now_ns);
	if (tickets->newest.is_there && memcmp(tickets->newest.key.name, name, 16) == 0)
		found = &tickets->newest;
	else if (tickets->before.is_there && memcmp(tickets->before.key.name, name, 16) == 0)
		found = &tickets->before;
	if (found)
		*out = found->key;
	*is_newest = found == &tickets->newest && is_younger(found, now_ns, tickets->lifetime_ns);
	pthread_mutex_unlock(&lock);
	return found != NULL;
}

/* --- OpenSSL's side ------------------------------------------------------------------------------ */

static int
start(const struct tls_ticket_key *key, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
      int is_encrypting)
{
	OSSL_PARAM digest[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0),
		OSSL_PARAM_construct_end(),
	};
	return EVP_CipherInit_ex(cipher, EVP_aes_256_cbc(), NULL, key->cipher, iv, is_encrypting) ==
		       1 &&
	       EVP_MAC_init(mac, key->mac, sizeof(key->mac), digest) == 1;
}

/* 1 = used, 2 = used and to be renewed, 0 = no ticket, -1 = failure. */
static int
on_ticket_key(SSL *ssl, unsigned char name[16], unsigned char *iv, EVP_CIPHER_CTX *cipher,
	      EVP_MAC_CTX *mac, int is_encrypting)
{
	struct tls_tickets *tickets = tls_of(ssl)->conf->keys;
	struct tls_ticket_key key;
	bool is_newest = true;
	int result = 1;
	if (!tickets)
		return 0;
	if (is_encrypting) {
		if (tls_tickets_newest(tickets, clock_now_ns(), &key) ||
		    RAND_bytes(iv, EVP_MAX_IV_LENGTH) != 1)
			return -1;
		memcpy(name, key.name, sizeof(key.name));
	} else if (!tls_tickets_find(tickets, clock_now_ns(), name, &key, &is_newest)) {
		return 0;
	}
	if (!start(&key, iv, cipher, mac, is_encrypting))
		result = -1;
	OPENSSL_cleanse(&key, sizeof(key));
	return result < 0 ? -1 : is_newest ? 1 : 2;
}

static SSL_TICKET_RETURN
on_ticket_shown(SSL *ssl, SSL_SESSION *session, const unsigned char *name, size_t name_length,
		SSL_TICKET_STATUS status, void *unused)
{
	(void)name;
	(void)name_length;
	(void)unused;
	if (status != SSL_TICKET_SUCCESS && status != SSL_TICKET_SUCCESS_RENEW)
		return SSL_TICKET_RETURN_IGNORE_RENEW;
	if (!tls_peer_is_welcome(tls_of(ssl), session))
		return SSL_TICKET_RETURN_IGNORE_RENEW;
	tls_of(ssl)->has_ticket = true;
	return status == SSL_TICKET_SUCCESS ? SSL_TICKET_RETURN_USE : SSL_TICKET_RETURN_USE_RENEW;
}

void
tls_tickets_use(SSL_CTX *context)
{
	SSL_CTX_set_tlsext_ticket_key_evp_cb(context, on_ticket_key);
	SSL_CTX_set_session_ticket_cb(context, NULL, on_ticket_shown, NULL);
}
