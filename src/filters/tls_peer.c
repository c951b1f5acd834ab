#include "tls_peer.h"

#include "tls.h"
#include "tls_conf.h"
#include "tls_file.h"
#include "tls_identity.h"
#include "tls_words.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- The rules as written ----------------------------------------------------------------------- */

static const char *const kinds[] = {
	[TLS_RULE_CN] = "cn:",   [TLS_RULE_OU] = "ou:", [TLS_RULE_DNS] = "dns:",
	[TLS_RULE_URI] = "uri:", [TLS_RULE_IP] = "ip:", [TLS_RULE_SPKI] = "spki:",
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static bool
read_hex(const char *text, unsigned char out[TLS_SPKI_BYTES])
{
	long length;
	unsigned char *bytes = OPENSSL_hexstr2buf(text, &length);
	bool is_whole = bytes && length == TLS_SPKI_BYTES && !strchr(text, ':');
	if (is_whole)
		memcpy(out, bytes, TLS_SPKI_BYTES);
	OPENSSL_free(bytes);
	ERR_clear_error();
	return is_whole;
}

/* "sha256/" and 64 hex digits, or the same 32 bytes in base64. */
static int
read_spki(const char *text, unsigned char out[TLS_SPKI_BYTES], struct failure *why)
{
	unsigned char bytes[TLS_SPKI_BYTES + 1];
	const char *digits = text + strlen("sha256/");
	if (strncmp(text, "sha256/", strlen("sha256/")) == 0) {
		if (strlen(digits) == 2 * TLS_SPKI_BYTES && read_hex(digits, out))
			return 0;
		if (strlen(digits) == 44 && digits[43] == '=' && digits[42] != '=' &&
		    EVP_DecodeBlock(bytes, (const unsigned char *)digits, 44) == 33) {
			memcpy(out, bytes, TLS_SPKI_BYTES);
			return 0;
		}
	}
	return failure_set(why, FAILURE_CONFIG,
			   "'%.80s' is not the digest of a public key; write sha256/ and 64 hex "
			   "digits, or base64",
			   text);
}

static int
read_rule(struct tls_rule *rule, const char *text, struct failure *why)
{
	size_t kind = 0;
	while (kind < KINDS && strncmp(text, kinds[kind], strlen(kinds[kind])) != 0)
		kind++;
	if (kind == KINDS || !text[strlen(kinds[kind])])
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' allows nobody; write cn:, ou:, dns:, uri:, ip: or "
				   "spki:sha256/ and what the certificate has to hold",
				   text);
	*rule = (struct tls_rule){ .kind = (enum tls_rule_kind)kind,
				   .text = text + strlen(kinds[kind]) };
	if (rule->kind == TLS_RULE_SPKI)
		return read_spki(rule->text, rule->bytes, why);
	if (rule->kind != TLS_RULE_IP)
		return 0;
	rule->length = inet_pton(AF_INET, rule->text, rule->bytes) == 1    ? 4
		       : inet_pton(AF_INET6, rule->text, rule->bytes) == 1 ? 16
									   : 0;
	if (!rule->length)
		return failure_set(why, FAILURE_CONFIG, "'%.60s' is not ip: and an IP address",
				   text);
	return 0;
}

static struct tls_rule *
new_rules(const struct text_list *texts, struct failure *why)
{
	struct tls_rule *rules = calloc(texts->count + 1, sizeof(*rules));
	if (!rules)
		failure_set(why, FAILURE_MEMORY, "no memory for the list of those let in");
	return rules;
}

int
tls_peer_read_rules(struct tls_rules *rules, const struct text_list *allow,
		    const struct text_list *pin, struct failure *why)
{
	rules->allow = new_rules(allow, why);
	rules->pin = new_rules(pin, why);
	if (!rules->allow || !rules->pin)
		return -1;
	for (; rules->allow_count < allow->count; rules->allow_count++) {
		if (read_rule(&rules->allow[rules->allow_count], allow->at[rules->allow_count],
			      why))
			return -1;
	}
	for (; rules->pin_count < pin->count; rules->pin_count++) {
		struct tls_rule *rule = &rules->pin[rules->pin_count];
		rule->kind = TLS_RULE_SPKI;
		rule->text = pin->at[rules->pin_count];
		if (read_spki(rule->text, rule->bytes, why))
			return -1;
	}
	return 0;
}

void
tls_peer_release(struct tls_rules *rules)
{
	free(rules->allow);
	free(rules->pin);
	sk_X509_CRL_pop_free(rules->crls, X509_CRL_free);
	*rules = (struct tls_rules){ 0 };
}

/* --- Authorities and revocations ---------------------------------------------------------------- */

static int
finish_reading(const struct tls_file *file, int count, const char *what, struct failure *why)
{
	char reason[TLS_WORDS_REASON];
	bool is_over = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
	tls_words_reason(reason);
	if (!is_over)
		return failure_set(why, FAILURE_CONFIG, "%s holds a damaged %s: %s", file->path,
				   what, reason);
	if (!count)
		return failure_set(why, FAILURE_CONFIG, "%s holds no %s; name a PEM file that does",
				   file->path, what);
	return 0;
}

void
tls_peer_prepare(X509 *authority)
{
	X509_check_purpose(authority, -1, 0);
}

int
tls_peer_add_ca(X509_STORE *store, const char *path, STACK_OF(X509_NAME) * names,
		struct failure *why)
{
	struct tls_file file;
	int count = 0;
	if (tls_file_read(&file, path, why))
		return -1;
	BIO *bio = tls_file_open(&file, why);
	X509 *next;
	bool is_kept = bio != NULL;
	while (is_kept && (next = PEM_read_bio_X509(bio, NULL, tls_file_ask_nobody, NULL))) {
		X509_NAME *name = names ? X509_NAME_dup(X509_get_subject_name(next)) : NULL;
		is_kept = X509_STORE_add_cert(store, next) == 1;
		tls_peer_prepare(next);
		if (name && !sk_X509_NAME_push(names, name))
			X509_NAME_free(name);
		X509_free(next);
		count++;
	}
	BIO_free(bio);
	int result = is_kept ? finish_reading(&file, count, "certificate", why)
			     : failure_set(why, FAILURE_MEMORY, "no memory for %s", path);
	tls_file_release(&file);
	return result;
}

static int
check_crl(const X509_CRL *crl, const char *path, struct failure *why)
{
	char date[TLS_DATE_TEXT];
	const ASN1_TIME *next = X509_CRL_get0_nextUpdate(crl);
	if (!next || X509_cmp_current_time(next) > 0)
		return 0;
	return failure_set(why, FAILURE_CONFIG,
			   "%s expired %s, so nobody would be let in; fetch a "
			   "fresh one",
			   path, tls_identity_date(next, date));
}

int
tls_peer_add_crl(X509_STORE *store, const char *path, STACK_OF(X509_CRL) * *crls,
		 struct failure *why)
{
	struct tls_file file;
	int count = 0, result = 0;
	if (tls_file_read(&file, path, why))
		return -1;
	BIO *bio = tls_file_open(&file, why);
	X509_CRL *next;
	if (!*crls)
		*crls = sk_X509_CRL_new_null();
	while (bio && *crls && !result &&
	       (next = PEM_read_bio_X509_CRL(bio, NULL, tls_file_ask_nobody, NULL))) {
		result = check_crl(next, path, why);
		if (!X509_STORE_add_crl(store, next) || !sk_X509_CRL_push(*crls, next)) {
			result = failure_set(why, FAILURE_MEMORY, "no memory for %s", path);
			X509_CRL_free(next);
		}
		count++;
	}
	if (bio && !result)
		result = finish_reading(&file, count, "CRL", why);
	BIO_free(bio);
	tls_file_release(&file);
	X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
	return bio ? result : -1;
}

/* --- Matching ----------------------------------------------------------------------------------- */

static bool
hash_key(X509 *certificate, unsigned char out[TLS_SPKI_BYTES])
{
	unsigned char *bytes = NULL;
	int length = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate), &bytes);
	bool is_hashed =
		length > 0 && EVP_Digest(bytes, (size_t)length, out, NULL, EVP_sha256(), NULL);
	OPENSSL_free(bytes);
	return is_hashed;
}

static bool
is_same_text(const unsigned char *bytes, int length, const char *text)
{
	return length >= 0 && (size_t)length == strlen(text) &&
	       memcmp(bytes, text, (size_t)length) == 0;
}

static bool
subject_holds(X509 *certificate, int nid, const char *text)
{
	const X509_NAME *name = X509_get_subject_name(certificate);
	bool is_there = false;
	for (int at = X509_NAME_get_index_by_NID(name, nid, -1); at >= 0 && !is_there;
	     at = X509_NAME_get_index_by_NID(name, nid, at)) {
		unsigned char *bytes = NULL;
		int length = ASN1_STRING_to_UTF8(
			&bytes, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at)));
		is_there = is_same_text(bytes, length, text);
		OPENSSL_free(bytes);
	}
	return is_there;
}

static bool
name_fits(const GENERAL_NAME *name, const struct tls_rule *rule)
{
	const ASN1_STRING *value;
	switch (rule->kind) {
	case TLS_RULE_DNS:
		value = name->type == GEN_DNS ? name->d.dNSName : NULL;
		return value && (size_t)ASN1_STRING_length(value) == strlen(rule->text) &&
		       strncasecmp((const char *)ASN1_STRING_get0_data(value), rule->text,
				   strlen(rule->text)) == 0;
	case TLS_RULE_URI:
		value = name->type == GEN_URI ? name->d.uniformResourceIdentifier : NULL;
		return value && is_same_text(ASN1_STRING_get0_data(value),
					     ASN1_STRING_length(value), rule->text);
	default:
		value = name->type == GEN_IPADD ? name->d.iPAddress : NULL;
		return value && (size_t)ASN1_STRING_length(value) == rule->length &&
		       memcmp(ASN1_STRING_get0_data(value), rule->bytes, rule->length) == 0;
	}
}

static bool
other_name_fits(X509 *certificate, const struct tls_rule *rule)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
	bool is_there = false;
	for (int i = 0; i < sk_GENERAL_NAME_num(names) && !is_there; i++)
		is_there = name_fits(sk_GENERAL_NAME_value(names, i), rule);
	GENERAL_NAMES_free(names);
	return is_there;
}

static bool
rule_fits(X509 *certificate, const struct tls_rule *rule)
{
	unsigned char hash[TLS_SPKI_BYTES];
	switch (rule->kind) {
	case TLS_RULE_CN:
		return subject_holds(certificate, NID_commonName, rule->text);
	case TLS_RULE_OU:
		return subject_holds(certificate, NID_organizationalUnitName, rule->text);
	case TLS_RULE_SPKI:
		return hash_key(certificate, hash) &&
		       CRYPTO_memcmp(hash, rule->bytes, sizeof(hash)) == 0;
	default:
		return other_name_fits(certificate, rule);
	}
}

static bool
any_fits(X509 *certificate, const struct tls_rule *rules, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (rule_fits(certificate, &rules[i]))
			return true;
	return false;
}

/* --- Refusing in words -------------------------------------------------------------------------- */

static bool
call_by(const X509_NAME *name, int nid, char text[TLS_WORDS_TEXT])
{
	unsigned char *bytes = NULL;
	int at = name ? X509_NAME_get_index_by_NID(name, nid, -1) : -1;
	int length = at < 0 ? -1
			    : ASN1_STRING_to_UTF8(&bytes, X509_NAME_ENTRY_get_data(
								  X509_NAME_get_entry(name, at)));
	if (length > 0)
		tls_words_printable((const char *)bytes, (size_t)length, text);
	OPENSSL_free(bytes);
	return length > 0;
}

static bool
call_by_other(const GENERAL_NAME *name, char text[TLS_WORDS_TEXT])
{
	const ASN1_STRING *value = name->type == GEN_DNS     ? name->d.dNSName
				   : name->type == GEN_URI   ? name->d.uniformResourceIdentifier
				   : name->type == GEN_EMAIL ? name->d.rfc822Name
				   : name->type == GEN_IPADD ? name->d.iPAddress
							     : NULL;
	const unsigned char *bytes = value ? ASN1_STRING_get0_data(value) : NULL;
	int length = value ? ASN1_STRING_length(value) : 0;
	if (value && name->type == GEN_IPADD)
		return (length == 4 || length == 16) &&
		       inet_ntop(length == 4 ? AF_INET : AF_INET6, bytes, text, TLS_WORDS_TEXT);
	if (length > 0)
		tls_words_printable((const char *)bytes, (size_t)length, text);
	return length > 0;
}

/* Whom a name of an authority names, printable: its CN, else its OU or O. */
static const char *
call(const X509_NAME *name, char text[TLS_WORDS_TEXT])
{
	if (!call_by(name, NID_commonName, text) &&
	    !call_by(name, NID_organizationalUnitName, text) &&
	    !call_by(name, NID_organizationName, text))
		snprintf(text, TLS_WORDS_TEXT, "without a name");
	return text;
}

/* The first of a certificate's other names, in `text`; returns how many there are. */
static int
call_by_others(const X509 *certificate, char text[TLS_WORDS_TEXT])
{
	GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
	char ignored[TLS_WORDS_TEXT] = "";
	int count = 0;
	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++)
		count += call_by_other(sk_GENERAL_NAME_value(names, i), count ? ignored : text);
	GENERAL_NAMES_free(names);
	return count;
}

/* The same of a certificate, which without a CN has its other names. */
static const char *
call_holder(const X509 *certificate, char text[TLS_WORDS_TEXT])
{
	const X509_NAME *subject = X509_get_subject_name(certificate);
	if (call_by(subject, NID_commonName, text) || call_by_others(certificate, text))
		return text;
	return call(subject, text);
}

static void
refuse_date(struct tls *tls, const char *words, const ASN1_TIME *time, const char *name)
{
	char date[TLS_DATE_TEXT];
	tls_refuse(tls, FAILURE_PROTOCOL, "%s %s: '%s'", words, tls_identity_date(time, date),
		   name);
}

/* Where there are other names, they are what counts, and not the CN (RFC 6125 6.4.4). */
static void
explain_name(struct tls *tls, const X509 *certificate)
{
	X509_VERIFY_PARAM *param = SSL_get0_param(tls->ssl);
	char *address = X509_VERIFY_PARAM_get1_ip_asc(param);
	const char *host = X509_VERIFY_PARAM_get0_host(param, 0);
	char name[TLS_WORDS_TEXT], more[32] = "";
	int count = call_by_others(certificate, name);
	if (!count)
		call_holder(certificate, name);
	if (count > 1)
		snprintf(more, sizeof(more), " and %d more", count - 1);
	tls_refuse(tls, FAILURE_PROTOCOL, "certificate is for '%s'%s, not for %s", name, more,
		   host      ? host
		   : address ? address
			     : "what was asked for");
	OPENSSL_free(address);
}

/* The rest of what can be wrong with a chain, by OpenSSL's number. */
static void
explain_other(struct tls *tls, int error, const char *name)
{
	switch (error) {
	case X509_V_ERR_CERT_REVOKED:
		tls_refuse(tls, FAILURE_PROTOCOL, "certificate revoked: '%s'", name);
		break;
	case X509_V_ERR_UNABLE_TO_GET_CRL:
		tls_refuse(tls, FAILURE_PROTOCOL,
			   "no CRL here says whether the certificate is revoked: '%s'", name);
		break;
	case X509_V_ERR_CRL_HAS_EXPIRED:
		tls_refuse(tls, FAILURE_PROTOCOL,
			   "the CRL has expired that would say whether the certificate is revoked: "
			   "'%s'",
			   name);
		break;
	case X509_V_ERR_INVALID_PURPOSE:
		tls_refuse(tls, FAILURE_PROTOCOL, "certificate is not meant for a %s: '%s'",
			   tls->side == FILTER_NEAR ? "client" : "server", name);
		break;
	case X509_V_ERR_OUT_OF_MEM:
		tls_refuse(tls, FAILURE_MEMORY, "no memory to look at the certificate '%s'", name);
		break;
	case X509_V_ERR_EE_KEY_TOO_SMALL:
	case X509_V_ERR_CA_KEY_TOO_SMALL:
	case X509_V_ERR_CA_MD_TOO_WEAK:
		tls_refuse(tls, FAILURE_PROTOCOL, "certificate is too weak: '%s'", name);
		break;
	default:
		tls_refuse(tls, FAILURE_PROTOCOL, "certificate is refused (%s): '%s'",
			   X509_verify_cert_error_string(error), name);
	}
}

static void
explain(struct tls *tls, X509_STORE_CTX *store)
{
	char name[TLS_WORDS_TEXT], issuer[TLS_WORDS_TEXT];
	X509 *at = X509_STORE_CTX_get_current_cert(store);
	if (!at)
		at = X509_STORE_CTX_get0_cert(store);
	call_holder(at, name);
	switch (X509_STORE_CTX_get_error(store)) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		refuse_date(tls, "certificate expired", X509_get0_notAfter(at), name);
		break;
	case X509_V_ERR_CERT_NOT_YET_VALID:
		refuse_date(tls, "certificate is valid only from", X509_get0_notBefore(at), name);
		break;
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_CERT_UNTRUSTED:
		/* Of the peer's own, however long the way was to that CA. */
		call_holder(X509_STORE_CTX_get0_cert(store), name);
		tls_refuse(tls, FAILURE_PROTOCOL, "unknown CA '%s' of the certificate '%s'",
			   call(X509_get_issuer_name(at), issuer), name);
		break;
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
		tls_refuse(tls, FAILURE_PROTOCOL,
			   "certificate is self-signed and not known here: "
			   "'%s'",
			   name);
		break;
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		explain_name(tls, at);
		break;
	default:
		explain_other(tls, X509_STORE_CTX_get_error(store), name);
	}
}

/* --- Deciding ----------------------------------------------------------------------------------- */

static bool
is_let_in(struct tls *tls, X509 *certificate)
{
	const struct tls_rules *rules = &tls->conf->rules;
	char name[TLS_WORDS_TEXT];
	call_holder(certificate, name);
	if (rules->pin_count && !any_fits(certificate, rules->pin, rules->pin_count))
		tls_refuse(tls, FAILURE_ADMISSION, "no pin fits the key of the certificate '%s'",
			   name);
	else if (rules->allow_count && !any_fits(certificate, rules->allow, rules->allow_count))
		tls_refuse(tls, FAILURE_ADMISSION, "nothing in allow fits the certificate '%s'",
			   name);
	else
		return true;
	return false;
}

static bool
is_over(const ASN1_TIME *last)
{
	return last && X509_cmp_current_time(last) <= 0;
}

/* What the lists that are by the certificate's authority, as far as there are any, say of it: X509_V_OK or
 * another of OpenSSL's numbers. */
static int
look_up(const struct tls_rules *rules, X509 *certificate)
{
	X509_REVOKED *entry;
	for (int i = 0; i < sk_X509_CRL_num(rules->crls); i++) {
		X509_CRL *crl = sk_X509_CRL_value(rules->crls, i);
		if (X509_NAME_cmp(X509_CRL_get_issuer(crl), X509_get_issuer_name(certificate)) != 0)
			continue;
		if (X509_CRL_get0_by_cert(crl, &entry, certificate) == 1)
			return X509_V_ERR_CERT_REVOKED;
		if (is_over(X509_CRL_get0_nextUpdate(crl)))
			return X509_V_ERR_CRL_HAS_EXPIRED;
	}
	return X509_V_OK;
}

/* OpenSSL wants a list about the last of the chain as well, though its own authority, unless it is a root,
 * stands not in the chain and so cannot vouch for the list. */
static int
on_verify_step(int is_right, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
	X509 *at = X509_STORE_CTX_get_current_cert(store);
	int error = X509_STORE_CTX_get_error(store), depth = X509_STORE_CTX_get_error_depth(store);
	bool is_about_list = error == X509_V_ERR_UNABLE_TO_GET_CRL ||
			     error == X509_V_ERR_UNABLE_TO_GET_CRL_ISSUER ||
			     error == X509_V_ERR_CRL_SIGNATURE_FAILURE;
	if (is_right || !is_about_list || depth == 0 ||
	    depth != sk_X509_num(X509_STORE_CTX_get0_chain(store)) - 1 ||
	    X509_get_extension_flags(at) & EXFLAG_SS)
		return is_right;
	error = look_up(&tls_of(ssl)->conf->rules, at);
	X509_STORE_CTX_set_error(store, error);
	return error == X509_V_OK;
}

int
tls_peer_on_verify(X509_STORE_CTX *store, void *unused)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls *tls = tls_of(ssl);
	bool is_checked =
		tls_conf_verify(tls->conf, (enum filter_side)tls->side) != TLS_VERIFY_NONE;
	(void)unused;
	if (tls->side == FILTER_FAR && tls->conf->psks.count) {
		tls_refuse(tls, FAILURE_PROTOCOL,
			   "the peer shows a certificate and not that it knows the shared secret");
		X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
		return 0;
	}
	X509_STORE_CTX_set_verify_cb(store, on_verify_step);
	if (is_checked && X509_verify_cert(store) <= 0) {
		explain(tls, store);
		return 0;
	}
	if (!is_let_in(tls, X509_STORE_CTX_get0_cert(store))) {
		X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
		return 0;
	}
	X509_STORE_CTX_set_error(store, X509_V_OK);
	return 1;
}

bool
tls_peer_may_return(struct tls *tls, X509 *certificate)
{
	enum tls_verify verify = tls_conf_verify(tls->conf, (enum filter_side)tls->side);
	char name[TLS_WORDS_TEXT];
	if (!certificate) {
		/* Where one is required, only a shared secret has come in without. */
		if (verify != TLS_VERIFY_REQUIRED || tls->conf->psks.count)
			return true;
		tls_refuse(tls, FAILURE_PROTOCOL, "no certificate was sent");
		return false;
	}
	call_holder(certificate, name);
	if (verify != TLS_VERIFY_NONE && is_over(X509_get0_notAfter(certificate))) {
		refuse_date(tls, "certificate expired", X509_get0_notAfter(certificate), name);
		return false;
	}
	int error = look_up(&tls->conf->rules, certificate);
	if (error != X509_V_OK)
		explain_other(tls, error, name);
	return error == X509_V_OK && is_let_in(tls, certificate);
}

bool
tls_peer_is_welcome(struct tls *tls, SSL_SESSION *session)
{
	tls->has_session = tls_peer_may_return(tls, SSL_SESSION_get0_peer(session));
	if (!tls->has_session) {
		free(tls->refusal);
		tls->refusal = NULL;
	}
	return tls->has_session;
}

int
tls_peer_learn(struct tls *tls, X509 *certificate)
{
	unsigned char hash[TLS_SPKI_BYTES], *name = NULL;
	char text[sizeof("sha256/") + 2 * sizeof(hash)] = "sha256/";
	int result = 0;
	if (!hash_key(certificate, hash))
		return -1;
	for (size_t i = 0; i < sizeof(hash); i++)
		snprintf(text + strlen("sha256/") + 2 * i, 3, "%02x", hash[i]);
	if (facts_set(&tls->facts->certificate, text, strlen(text)))
		return -1;
	free(tls->facts->common_name); /* another's, whom a tunnel before this one has seen */
	tls->facts->common_name = NULL;
	const X509_NAME *subject = X509_get_subject_name(certificate);
	int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
	/* Behind a pin alone nobody vouches for the name. */
	if (at < 0 || tls_conf_verify(tls->conf, (enum filter_side)tls->side) == TLS_VERIFY_NONE)
		return 0;
	int length = ASN1_STRING_to_UTF8(
		&name, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
	if (length > 0 && !memchr(name, '\0', (size_t)length))
		result = facts_set(&tls->facts->common_name, (const char *)name, (size_t)length);
	OPENSSL_free(name);
	return result;
}
