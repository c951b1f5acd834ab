#include "tls_conf.h"

#include "../clock.h"
#include "tls.h"
#include "tls_file.h"
#include "tls_system.h"
#include "tls_words.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>

#define SYSTEM_CA    "system"
#define SERVERS_MOST 256 /* sessions of servers that are remembered */

static const char *const verify_words[] = { "auto", "none", "optional", "required", NULL };
static const char *const version_words[] = { "1.2", "1.3", NULL };
static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
static const char *const truncation_words[] = { "reset", "eof", NULL };
static const char *const ca_words[] = { SYSTEM_CA, NULL };

#define ROW(row_name, field, row_type, row_fallback)                        \
	.name = (row_name), .type = (row_type), .fallback = (row_fallback), \
	.offset = offsetof(struct tls_conf, field), .effect = EFFECT_NEW_CONNECTIONS

const struct keyword tls_conf_keywords[] = {
	{ ROW("certificate", certificate, KEYWORD_FILES, ""),
	  .help = "PEM files of our certificates, each followed by its issuers; the name that a "
		  "client asks for chooses, the first is for all other names." },
	{ ROW("key", key, KEYWORD_FILES, ""), .help = "PEM files of their private keys, in the "
						      "same order; empty = in the certificates' "
						      "files." },
	{ ROW("pkcs12", pkcs12, KEYWORD_FILE, ""),
	  .help = "A PKCS#12 file with a certificate, its issuers and its key, beside or in place "
		  "of "
		  "certificate and key." },
	{ ROW("passphrase", passphrase, KEYWORD_FILE, ""),
	  .help = "A file whose first line decrypts the private keys and pkcs12." },
	{ ROW("client_ca", client_ca, KEYWORD_FILE, ""),
	  .help = "PEM file of the authorities that clients' certificates come from." },
	{ ROW("verify", verify, KEYWORD_CHOICE, "auto"), .choices = verify_words,
	  .help = "Whether the peer has to show a certificate that is trusted; auto = required of "
		  "a "
		  "server, and of a client if client_ca, allow or pin is there." },
	{ ROW("ca", ca, KEYWORD_FILE, SYSTEM_CA), .choices = ca_words,
	  .help = "PEM file of the authorities that servers' certificates come from; system = "
		  "those "
		  "that the system trusts." },
	{ ROW("server_name", server_name, KEYWORD_TEXT, ""),
	  .help = "The name that a server is asked for and that its certificate has to hold; empty "
		  "= the target's host." },
	{ ROW("crl", crl, KEYWORD_FILE, ""), .help = "PEM file of revocations, one list from each "
						     "authority; a peer's certificate that "
						     "no list speaks for is refused." },
	{ ROW("allow", allow, KEYWORD_TEXTS, ""),
	  .help = "What a verified certificate has to hold, any of it: cn:, ou:, dns:, uri:, ip: "
		  "or "
		  "spki:sha256/ and the value; empty = all." },
	{ ROW("pin", pin, KEYWORD_TEXTS, ""), .help = "Digests of the public keys that the peer's "
						      "certificate may have: sha256/ and hex "
						      "or base64; empty = all." },
	{ ROW("min_version", min_version, KEYWORD_CHOICE, "1.2"), .choices = version_words,
	  .help = "The oldest version of TLS that is spoken." },
	{ ROW("max_version", max_version, KEYWORD_CHOICE, "1.3"), .choices = version_words,
	  .help = "The newest version of TLS that is spoken." },
	{ ROW("ciphers", ciphers, KEYWORD_TEXT,
	      "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE-PSK-CHACHA20-POLY1305"),
	  .help = "Cipher suites of TLS 1.2, best first, as openssl-ciphers(1ssl) has them." },
	{ ROW("ciphersuites", ciphersuites, KEYWORD_TEXT,
	      "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"),
	  .help = "Cipher suites of TLS 1.3, best first." },
	{ ROW("groups", groups, KEYWORD_TEXT, "X25519:P-256:P-384"),
	  .help = "Groups for the exchange of keys, best first." },
	{ ROW("alpn", alpn, KEYWORD_TEXTS, ""),
	  .help = "Application protocols, best first: asked for as a client; as a server, one of "
		  "them is agreed on with a client that asks, or it is refused." },
	{ ROW("ocsp", ocsp, KEYWORD_FILES, ""),
	  .help = "OCSP answers (DER) that are shown along with the certificates they are about." },
	{ ROW("psk", psk, KEYWORD_FILE, ""), .help = "A file of shared secrets, IDENTITY:HEX in "
						     "each line, in place of certificates." },
	{ ROW("psk_identity", psk_identity, KEYWORD_TEXT, ""),
	  .help = "Which of them we are as a client; empty = the first." },
	{ ROW("tickets", tickets, KEYWORD_FLAG, "true"),
	  .help = "Whether clients may come back with a ticket instead of a whole handshake." },
	{ ROW("session_cache", session_cache, KEYWORD_COUNT, "1000"), .most = 1000000,
	  .unit = "sessions",
	  .help = "How many sessions of clients without tickets are kept; 0 = none." },
	{ ROW("session_lifetime", session_lifetime_ns, KEYWORD_DURATION, "2h"),
	  .least = 60 * NS_PER_S, .most = 7 * 24 * 3600 * NS_PER_S,
	  .help = "How long a session may be taken up again, and how often the keys of tickets "
		  "change." },
	{ ROW("truncation", truncation, KEYWORD_CHOICE, "reset"), .choices = truncation_words,
	  .help = "What an end without TLS's own mark is: reset = a broken connection, eof = an "
		  "end "
		  "like any other." },
	{ .name = NULL },
};

enum tls_verify
tls_conf_verify(const struct tls_conf *conf, enum filter_side side)
{
	if (conf->verify != TLS_VERIFY_AUTO)
		return (enum tls_verify)conf->verify;
	if (side == FILTER_FAR || *conf->client_ca || conf->allow.count || conf->pin.count)
		return TLS_VERIFY_REQUIRED;
	return TLS_VERIFY_NONE;
}

/* --- Who we are --------------------------------------------------------------------------------- */

/* The first line of the passphrase's file, in `text`; NULL in *out without one. */
static int
read_passphrase(const struct tls_conf *conf, char text[256], const char **out, struct failure *why)
{
	struct tls_file file;
	*out = NULL;
	if (!*conf->passphrase)
		return 0;
	if (tls_file_read_secret(&file, conf->passphrase, why))
		return -1;
	size_t length = strcspn((const char *)file.bytes, "\r\n");
	int result = 0;
	if (length == 0 || length >= 256)
		result = failure_set(why, FAILURE_CONFIG,
				     "%s holds no passphrase of 1 to 255 bytes in its first line",
				     conf->passphrase);
	else
		memcpy(text, file.bytes, length);
	text[result ? 0 : length] = '\0';
	*out = text;
	tls_file_release(&file);
	return result;
}

static int
add_identities(struct tls_conf *conf, const char *passphrase, struct failure *why)
{
	if (conf->key.count && conf->key.count != conf->certificate.count)
		return failure_set(why, FAILURE_CONFIG,
				   "there are %zu files in certificate and %zu in key; name a key "
				   "for each certificate, or none",
				   conf->certificate.count, conf->key.count);
	for (size_t i = 0; i < conf->certificate.count; i++) {
		const char *certificate = conf->certificate.at[i];
		if (tls_identity_add(&conf->identities, certificate,
				     conf->key.count ? conf->key.at[i] : certificate, passphrase,
				     why))
			return -1;
	}
	if (*conf->pkcs12 &&
	    tls_identity_add_pkcs12(&conf->identities, conf->pkcs12, passphrase, why))
		return -1;
	for (size_t i = 0; i < conf->ocsp.count; i++) {
		if (tls_identity_add_ocsp(&conf->identities, conf->ocsp.at[i], why))
			return -1;
	}
	return 0;
}

static int
read_identities(struct tls_conf *conf, struct failure *why)
{
	char text[256] = "";
	const char *passphrase;
	int result = read_passphrase(conf, text, &passphrase, why);
	if (!result)
		result = add_identities(conf, passphrase, why);
	OPENSSL_cleanse(text, sizeof(text));
	return result;
}

/* --- Ids: what has to be the same for a session to be taken up again ---------------------------- */

static void
add_bytes(EVP_MD_CTX *hash, const void *bytes, size_t length)
{
	uint64_t prefix = length;
	EVP_DigestUpdate(hash, &prefix, sizeof(prefix));
	EVP_DigestUpdate(hash, bytes, length);
}

static void
add_texts(EVP_MD_CTX *hash, const struct text_list *texts)
{
	uint64_t count = texts->count;
	EVP_DigestUpdate(hash, &count, sizeof(count));
	for (size_t i = 0; i < texts->count; i++)
		add_bytes(hash, texts->at[i], strlen(texts->at[i]));
}

static int
add_file(EVP_MD_CTX *hash, const char *path, struct failure *why)
{
	struct tls_file file = { .path = path };
	bool is_named = *path && strcmp(path, SYSTEM_CA) != 0;
	if (is_named && tls_file_read(&file, path, why))
		return -1;
	add_bytes(hash, path, strlen(path));
	add_bytes(hash, file.bytes ? file.bytes : (const unsigned char *)"", file.length);
	tls_file_release(&file);
	return 0;
}

/* `far`: what servers gave us also depends on who we are. */
static int
add_all(const struct tls_conf *conf, bool far, EVP_MD_CTX *hash, struct failure *why)
{
	add_bytes(hash, far ? "far" : "near", far ? 3 : 4);
	if (add_file(hash, conf->client_ca, why) || add_file(hash, conf->ca, why) ||
	    add_file(hash, conf->crl, why) || add_file(hash, conf->psk, why))
		return -1;
	if (far && strcmp(conf->ca, SYSTEM_CA) == 0) {
		struct tls_system_stamps system = tls_system_look();
		add_bytes(hash, &system, sizeof(system));
	}
	add_bytes(hash, &conf->verify, sizeof(conf->verify));
	add_texts(hash, &conf->allow);
	add_texts(hash, &conf->pin);
	add_texts(hash, &conf->certificate);
	/* A session of TLS 1.2 keeps its own. */
	add_bytes(hash, conf->ciphers, strlen(conf->ciphers));
	add_bytes(hash, conf->pkcs12, strlen(conf->pkcs12));
	add_bytes(hash, conf->psk_identity, strlen(conf->psk_identity));
	for (size_t i = 0; far && i < conf->identities.count; i++) {
		unsigned char digest[EVP_MAX_MD_SIZE];
		unsigned int length = 0;
		X509_digest(conf->identities.at[i].certificate, EVP_sha256(), digest, &length);
		add_bytes(hash, digest, length);
	}
	return 0;
}

static int
make_id(const struct tls_conf *conf, bool far, unsigned char id[TLS_ID_BYTES], struct failure *why)
{
	EVP_MD_CTX *hash = EVP_MD_CTX_new();
	int result = -1;
	if (!hash || !EVP_DigestInit_ex(hash, EVP_sha256(), NULL))
		failure_set(why, FAILURE_MEMORY, "no memory for TLS");
	else
		result = add_all(conf, far, hash, why);
	if (!result)
		EVP_DigestFinal_ex(hash, id, NULL);
	EVP_MD_CTX_free(hash);
	return result;
}

/* --- Contexts ----------------------------------------------------------------------------------- */

static int
set_algorithms(const struct tls_conf *conf, SSL_CTX *context, struct failure *why)
{
	if (!SSL_CTX_set_cipher_list(context, conf->ciphers))
		return failure_set(why, FAILURE_CONFIG,
				   "'%.80s' names no cipher of TLS 1.2; openssl ciphers lists them",
				   conf->ciphers);
	if (!SSL_CTX_set_ciphersuites(context, conf->ciphersuites))
		return failure_set(why, FAILURE_CONFIG,
				   "'%.80s' are not ciphersuites of TLS 1.3; openssl ciphers -s "
				   "-tls1_3 lists them",
				   conf->ciphersuites);
	if (!SSL_CTX_set1_groups_list(context, conf->groups))
		return failure_set(why, FAILURE_CONFIG,
				   "'%.80s' are not groups; X25519:P-256:P-384 are", conf->groups);
	return 0;
}

static int
make_alpn(struct tls_conf *conf, struct failure *why)
{
	size_t length = 0;
	for (size_t i = 0; i < conf->alpn.count; i++)
		length += 1 + strlen(conf->alpn.at[i]);
	unsigned char *wire = conf->alpn_wire = malloc(length + 1);
	if (!wire)
		return failure_set(why, FAILURE_MEMORY, "no memory for alpn");
	for (size_t i = 0; i < conf->alpn.count; i++) {
		size_t most = strlen(conf->alpn.at[i]);
		if (strchr(conf->alpn.at[i], ','))
			return failure_set(
				why, FAILURE_CONFIG,
				"alpn '%.60s' is one name with a comma in it; write a list, "
				"such as { \"h2\", \"http/1.1\" }",
				conf->alpn.at[i]);
		if (!most || most > 255)
			return failure_set(why, FAILURE_CONFIG,
					   "'%.60s' is no name of a protocol; write 1 to 255 bytes",
					   conf->alpn.at[i]);
		*wire++ = (unsigned char)most;
		memcpy(wire, conf->alpn.at[i], most);
		wire += most;
	}
	conf->alpn_length = length;
	return length <= 65535 ? 0 : failure_set(why, FAILURE_CONFIG, "alpn is longer than 64 KiB");
}

/* Those of a section that has revocations of its own; others share a store, once they need it. */
static int
trust_system_alone(const struct tls_conf *conf, X509_STORE *store, struct failure *why)
{
	if (!*conf->crl || X509_STORE_set_default_paths(store))
		return 0;
	return failure_set(why, FAILURE_MEMORY, "no memory for the system's CAs");
}

static int
set_authorities(struct tls_conf *conf, SSL_CTX *context, enum filter_side side, struct failure *why)
{
	X509_STORE *store = SSL_CTX_get_cert_store(context);
	const char *path = side == FILTER_NEAR ? conf->client_ca : conf->ca;
	int result = 0;
	if (strcmp(path, SYSTEM_CA) == 0) {
		result = trust_system_alone(conf, store, why);
	} else if (*path) {
		STACK_OF(X509_NAME) *names = sk_X509_NAME_new_null();
		result = tls_peer_add_ca(store, path, names, why);
		if (side == FILTER_NEAR && !result)
			SSL_CTX_set_client_CA_list(context, names);
		else
			sk_X509_NAME_pop_free(names, X509_NAME_free);
		/* Whoever stands in the file is trusted, also without its own issuer. */
		X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
	}
	if (result || !*conf->crl)
		return result;
	sk_X509_CRL_pop_free(conf->rules.crls, X509_CRL_free);
	conf->rules.crls = NULL;
	return tls_peer_add_crl(store, conf->crl, &conf->rules.crls, why);
}

static void
set_verification(const struct tls_conf *conf, SSL_CTX *context, enum filter_side side)
{
	enum tls_verify verify = tls_conf_verify(conf, side);
	bool is_wanted =
		verify != TLS_VERIFY_NONE || conf->pin.count || (side == FILTER_FAR && *conf->psk);
	bool is_needed = is_wanted && verify != TLS_VERIFY_OPTIONAL;
	SSL_CTX_set_verify(context,
			   (is_wanted ? SSL_VERIFY_PEER : SSL_VERIFY_NONE) |
				   (is_needed ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0),
			   NULL);
	SSL_CTX_set_cert_verify_callback(context, tls_peer_on_verify, NULL);
	X509_VERIFY_PARAM_set_hostflags(SSL_CTX_get0_param(context),
					X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
}

static SSL_CTX *
new_context(struct tls_conf *conf, enum filter_side side, struct failure *why)
{
	SSL_CTX *context =
		SSL_CTX_new(side == FILTER_NEAR ? TLS_server_method() : TLS_client_method());
	if (!context) {
		ERR_clear_error();
		failure_set(why, FAILURE_MEMORY, "no memory for TLS");
		return NULL;
	}
	conf->contexts[side] = context;
	SSL_CTX_set_min_proto_version(context, versions[conf->min_version]);
	SSL_CTX_set_max_proto_version(context, versions[conf->max_version]);
	SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
					     SSL_OP_CIPHER_SERVER_PREFERENCE |
					     SSL_OP_PRIORITIZE_CHACHA);
	SSL_CTX_clear_options(context, SSL_OP_LEGACY_SERVER_CONNECT);
	SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	set_verification(conf, context, side);
	if (set_algorithms(conf, context, why) || set_authorities(conf, context, side, why) ||
	    tls_identity_show(&conf->identities, context, why)) {
		ERR_clear_error();
		return NULL;
	}
	if (conf->psks.count)
		tls_psk_use(context, side == FILTER_NEAR);
	return context;
}

/* --- The server's context ----------------------------------------------------------------------- */

/* The name that is asked for, also by who comes back: of a session of TLS 1.2 OpenSSL has none. What is
 * malformed OpenSSL refuses. */
static int
on_client_hello(SSL *ssl, int *alert, void *unused)
{
	enum { HEAD_BYTES = 5 }; /* the list's length, the name's kind and length, RFC 6066 3 */
	const unsigned char *list;
	size_t length;
	struct tls *tls = tls_of(ssl);
	(void)unused;
	if (!SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_server_name, &list, &length) ||
	    length <= HEAD_BYTES || list[2] != TLSEXT_NAMETYPE_host_name ||
	    ((size_t)list[3] << 8 | list[4]) != length - HEAD_BYTES)
		return SSL_CLIENT_HELLO_SUCCESS;
	if (facts_set_host(&tls->facts->sni, (const char *)list + HEAD_BYTES,
			   length - HEAD_BYTES) == 0)
		return SSL_CLIENT_HELLO_SUCCESS;
	tls_refuse(tls, FAILURE_MEMORY, "no memory for what TLS tells");
	*alert = SSL_AD_INTERNAL_ERROR;
	return SSL_CLIENT_HELLO_ERROR;
}

static int
on_certificate_wanted(SSL *ssl, void *opaque)
{
	const struct tls_conf *conf = opaque;
	const char *asked = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
	char name[TLS_NAME_MOST + 1];
	size_t length = (size_t)snprintf(name, sizeof(name), "%s", asked ? asked : "");
	if (length > 1 && length < sizeof(name) && name[length - 1] == '.')
		name[length - 1] = '\0';
	if (*name && conf->identities.count > 1 &&
	    tls_identity_choose(&conf->identities, ssl, name))
		return 0;
	return 1;
}

/* Our order, not the client's. */
static int
on_protocols_offered(SSL *ssl, const unsigned char **out, unsigned char *out_length,
		     const unsigned char *offered, unsigned int offered_length, void *opaque)
{
	const struct tls_conf *conf = opaque;
	unsigned char *chosen;
	(void)ssl;
	if (SSL_select_next_proto(&chosen, out_length, conf->alpn_wire,
				  (unsigned int)conf->alpn_length, offered,
				  offered_length) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

static int
on_status_wanted(SSL *ssl, void *opaque)
{
	const struct tls_conf *conf = opaque;
	const struct tls_identity *identity =
		tls_identity_staple(&conf->identities, SSL_get_certificate(ssl), time(NULL));
	unsigned char *copy =
		identity ? OPENSSL_memdup(identity->staple, identity->staple_length) : NULL;
	if (!copy)
		return SSL_TLSEXT_ERR_NOACK;
	SSL_set_tlsext_status_ocsp_resp(ssl, copy, (long)identity->staple_length);
	return SSL_TLSEXT_ERR_OK;
}

static int
set_resumption(struct tls_conf *conf, SSL_CTX *context, struct failure *why)
{
	unsigned char id[TLS_ID_BYTES];
	if (make_id(conf, false, id, why))
		return -1;
	SSL_CTX_set_session_id_context(context, id, sizeof(id));
	SSL_CTX_set_timeout(context, (long)(conf->session_lifetime_ns / NS_PER_S));
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(context, 0); /* they go out with the first bytes, see tls.c */
	if (conf->session_cache) {
		conf->kept = tls_sessions_hold(id, conf->session_cache);
		if (!conf->kept)
			return failure_set(why, FAILURE_MEMORY, "no memory for sessions");
		tls_sessions_use(context);
	}
	if (!conf->tickets) {
		SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
		return 0;
	}
	conf->keys = tls_tickets_hold(id, conf->session_lifetime_ns);
	if (!conf->keys)
		return failure_set(why, FAILURE_MEMORY, "no memory for the keys of tickets");
	tls_tickets_use(context);
	return 0;
}

static int
make_near(struct tls_conf *conf, struct failure *why)
{
	SSL_CTX *context = new_context(conf, FILTER_NEAR, why);
	if (!context)
		return -1;
	SSL_CTX_set_client_hello_cb(context, on_client_hello, NULL);
	SSL_CTX_set_cert_cb(context, on_certificate_wanted, conf);
	if (conf->alpn.count)
		SSL_CTX_set_alpn_select_cb(context, on_protocols_offered, conf);
	if (conf->ocsp.count) {
		SSL_CTX_set_tlsext_status_cb(context, on_status_wanted);
		SSL_CTX_set_tlsext_status_arg(context, conf);
	}
	return set_resumption(conf, context, why);
}

/* --- The client's context ----------------------------------------------------------------------- */

static int
on_session(SSL *ssl, SSL_SESSION *session)
{
	struct tls *tls = tls_of(ssl);
	/* With a session of TLS 1.2 at hand OpenSSL does not offer the secret to a server of 1.3. */
	if (!tls->conf->psks.count || SSL_version(ssl) == TLS1_3_VERSION)
		tls_sessions_put(tls->conf->sessions, tls->session_name, strlen(tls->session_name),
				 session);
	return 0; /* the reference stays OpenSSL's */
}

static int
make_far(struct tls_conf *conf, struct failure *why)
{
	unsigned char id[TLS_ID_BYTES];
	SSL_CTX *context = new_context(conf, FILTER_FAR, why);
	if (!context || make_id(conf, true, id, why))
		return -1;
	conf->sessions = tls_sessions_hold(id, SERVERS_MOST);
	if (!conf->sessions)
		return failure_set(why, FAILURE_MEMORY, "no memory for sessions");
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	SSL_CTX_sess_set_new_cb(context, on_session);
	if (conf->alpn.count &&
	    SSL_CTX_set_alpn_protos(context, conf->alpn_wire, (unsigned int)conf->alpn_length))
		return failure_set(why, FAILURE_MEMORY, "no memory for alpn");
	return 0;
}

/* --- The section as a whole --------------------------------------------------------------------- */

bool
tls_conf_is_address(const char *name)
{
	unsigned char bytes[sizeof(struct in6_addr)];
	return inet_pton(AF_INET, name, bytes) == 1 || inet_pton(AF_INET6, name, bytes) == 1;
}

static bool
is_server_name(const char *name)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789-_.";
	return tls_conf_is_address(name) || name[strspn(name, letters)] == '\0';
}

static int
check(const struct tls_conf *conf, struct failure *why)
{
	if (!is_server_name(conf->server_name))
		return failure_set(
			why, FAILURE_CONFIG,
			"server_name '%.100s' is neither the name of one server nor an IP "
			"address; write what its certificate holds, such as db.example",
			conf->server_name);
	if (conf->min_version > conf->max_version)
		return failure_set(why, FAILURE_CONFIG,
				   "min_version is above max_version; raise the latter");
	if (strlen(conf->server_name) > TLS_NAME_MOST)
		return failure_set(why, FAILURE_CONFIG,
				   "server_name is longer than %d bytes; write a host's name",
				   TLS_NAME_MOST);
	if (conf->key.count && !conf->certificate.count)
		return failure_set(why, FAILURE_CONFIG, "key needs certificate; name its file");
	if (*conf->psk_identity && !*conf->psk)
		return failure_set(why, FAILURE_CONFIG,
				   "psk_identity needs psk; name the file that has it");
	if (conf->allow.count &&
	    (conf->verify == TLS_VERIFY_NONE || conf->verify == TLS_VERIFY_OPTIONAL))
		return failure_set(why, FAILURE_CONFIG,
				   "allow says nothing about certificates that nobody verifies; "
				   "write verify = \"required\", or leave allow out");
	return 0;
}

int
tls_conf_configure(void *opaque, struct failure *why)
{
	struct tls_conf *conf = opaque;
	if (check(conf, why) || read_identities(conf, why) ||
	    (*conf->psk && tls_psk_read(&conf->psks, conf->psk, conf->psk_identity, why)) ||
	    tls_peer_read_rules(&conf->rules, &conf->allow, &conf->pin, why) ||
	    make_alpn(conf, why) || make_far(conf, why))
		return -1;
	if (!conf->identities.count && !conf->psks.count)
		return 0; /* has nothing to show to a client */
	return make_near(conf, why);
}

/* A daemon that is started with a certificate that has expired does not start. */
int
tls_conf_doubt(const void *opaque, struct failure *why)
{
	const struct tls_conf *conf = opaque;
	char date[TLS_DATE_TEXT];
	for (size_t i = 0; i < conf->identities.count; i++) {
		const X509 *certificate = conf->identities.at[i].certificate;
		if (tls_identity_is_old(certificate))
			return failure_set(
				why, FAILURE_CONFIG, "%s expires %s; renew it before",
				i < conf->certificate.count ? conf->certificate.at[i]
							    : conf->pkcs12,
				tls_identity_date(X509_get0_notAfter(certificate), date));
	}
	return 0;
}

void
tls_conf_discard(void *opaque)
{
	struct tls_conf *conf = opaque;
	SSL_CTX_free(conf->contexts[FILTER_NEAR]);
	SSL_CTX_free(conf->contexts[FILTER_FAR]);
	tls_identity_release(&conf->identities);
	tls_peer_release(&conf->rules);
	tls_psk_release(&conf->psks);
	tls_tickets_release(conf->keys);
	tls_sessions_release(conf->kept);
	tls_sessions_release(conf->sessions);
	free(conf->alpn_wire);
}

static int
fits_near(const struct tls_conf *conf, struct failure *why)
{
	enum tls_verify verify = tls_conf_verify(conf, FILTER_NEAR);
	if (!conf->contexts[FILTER_NEAR])
		return failure_set(why, FAILURE_CONFIG,
				   "in accept_filters it needs certificate, pkcs12 or psk; write "
				   "one of them");
	if (verify != TLS_VERIFY_NONE && !*conf->client_ca)
		return failure_set(why, FAILURE_CONFIG,
				   "clients' certificates cannot be verified without client_ca; "
				   "name the file of their authority");
	if (*conf->client_ca && verify == TLS_VERIFY_NONE)
		return failure_set(why, FAILURE_CONFIG,
				   "client_ca is not used with verify = \"none\"; leave one out");
	if (conf->psks.count && conf->identities.count && conf->verify == TLS_VERIFY_AUTO &&
	    verify == TLS_VERIFY_NONE)
		return failure_set(
			why, FAILURE_CONFIG,
			"beside a certificate psk keeps nobody out; write client_ca too, "
			"or verify = \"none\" if that is meant");
	return 0;
}

/* Reading the system's authorities takes longer than all else of a section: only for one that asks them. */
static int
trust_system(const struct tls_conf *conf, struct failure *why)
{
	if (!tls_system_exists())
		return failure_set(why, FAILURE_CONFIG,
				   "the system trusts no authority; install ca-certificates, or "
				   "name a file with ca");
	if (*conf->crl)
		return 0;
	X509_STORE *store = tls_system_hold(why);
	if (!store)
		return -1;
	SSL_CTX_set_cert_store(conf->contexts[FILTER_FAR], store);
	return 0;
}

static int
fits_far(const struct tls_conf *conf, struct failure *why)
{
	enum tls_verify verify = tls_conf_verify(conf, FILTER_FAR);
	if (verify == TLS_VERIFY_OPTIONAL)
		return failure_set(
			why, FAILURE_CONFIG,
			"in connect_filters verify is \"required\" or \"none\", as every "
			"server shows a certificate");
	if (verify == TLS_VERIFY_REQUIRED && !conf->psks.count && strcmp(conf->ca, SYSTEM_CA) == 0)
		return trust_system(conf, why);
	return 0;
}

int
tls_conf_fits(const void *conf, enum filter_side side, struct failure *why)
{
	return side == FILTER_NEAR ? fits_near(conf, why) : fits_far(conf, why);
}

bool
tls_conf_needs_host(const void *opaque)
{
	const struct tls_conf *conf = opaque;
	return !*conf->server_name && !conf->psks.count &&
	       tls_conf_verify(conf, FILTER_FAR) != TLS_VERIFY_NONE;
}

int
tls_conf_suits(const void *opaque, const bool sides[FILTER_SIDES], struct failure *why)
{
	const struct tls_conf *conf = opaque;
	bool is_near = sides[FILTER_NEAR], is_far = sides[FILTER_FAR];
	bool has_ca = strcmp(conf->ca, SYSTEM_CA) != 0;
	/* Whoever wrote it may believe that only clients with a certificate come in. */
	if (!is_far && has_ca && !*conf->client_ca)
		return failure_set(why, FAILURE_CONFIG,
				   "ca is about servers and has no effect in accept_filters; write "
				   "client_ca to let in only clients with a certificate of it");
	if (!is_far && (has_ca || *conf->server_name))
		failure_set(why, FAILURE_CONFIG,
			    "%s is about servers and has no effect in accept_filters; leave it out",
			    has_ca ? "ca" : "server_name");
	else if (!is_near && *conf->client_ca)
		failure_set(why, FAILURE_CONFIG,
			    "client_ca is about clients and has no effect in connect_filters; %s",
			    has_ca ? "leave it out" : "write ca for the authority of servers");
	else if (is_far && has_ca && conf->verify == TLS_VERIFY_NONE)
		failure_set(why, FAILURE_CONFIG,
			    "ca has no effect with verify = \"none\"; leave one out");
	else
		return 0;
	return 1;
}
