#include "tls_identity.h"

#include "tls_file.h"
#include "tls_words.h"

#include <openssl/err.h>
#include <openssl/ocsp.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *
tls_identity_date(const ASN1_TIME *time, char text[TLS_DATE_TEXT])
{
	struct tm date;
	if (!ASN1_TIME_to_tm(time, &date) || !strftime(text, TLS_DATE_TEXT, "%Y-%m-%d", &date))
		snprintf(text, TLS_DATE_TEXT, "at some time");
	return text;
}

/* --- Checks ------------------------------------------------------------------------------------- */

static int
check_dates(const X509 *certificate, const char *path, struct failure *why)
{
	char date[TLS_DATE_TEXT];
	const ASN1_TIME *first = X509_get0_notBefore(certificate);
	const ASN1_TIME *last = X509_get0_notAfter(certificate);
	if (X509_cmp_current_time(last) <= 0)
		return failure_set(why, FAILURE_CONFIG, "%s expired %s; renew the certificate",
				   path, tls_identity_date(last, date));
	if (X509_cmp_current_time(first) >= 0)
		return failure_set(
			why, FAILURE_CONFIG,
			"%s is valid only from %s; use one that is now, or set the clock", path,
			tls_identity_date(first, date));
	return 0;
}

static int
check_chain(const struct tls_identity *identity, const char *path, struct failure *why)
{
	X509 *below = identity->certificate;
	for (int i = 0; i < sk_X509_num(identity->chain); i++) {
		X509 *issuer = sk_X509_value(identity->chain, i);
		if (X509_check_issued(issuer, below) != X509_V_OK ||
		    X509_verify(below, X509_get0_pubkey(issuer)) != 1) {
			ERR_clear_error();
			return failure_set(why, FAILURE_CONFIG,
					   "%s: certificate %d did not issue certificate %d; put "
					   "each issuer behind what it issued",
					   path, i + 2, i + 1);
		}
		if (check_dates(issuer, path, why))
			return failure_set(why, why->kind, "certificate %d of %s", i + 2,
					   why->text);
		below = issuer;
	}
	return 0;
}

static int
check(const struct tls_identity *identity, const char *certificate_path, const char *key_path,
      struct failure *why)
{
	if (X509_check_private_key(identity->certificate, identity->key) != 1) {
		ERR_clear_error();
		return failure_set(why, FAILURE_CONFIG,
				   "the key in %s is not that of the certificate in %s; name those "
				   "that belong together, in the same order",
				   key_path, certificate_path);
	}
	if (check_dates(identity->certificate, certificate_path, why))
		return -1;
	return check_chain(identity, certificate_path, why);
}

/* --- Reading ------------------------------------------------------------------------------------ */

static void
identity_release(struct tls_identity *identity)
{
	X509_free(identity->certificate);
	sk_X509_pop_free(identity->chain, X509_free);
	EVP_PKEY_free(identity->key);
	OPENSSL_free(identity->staple);
}

void
tls_identity_release(struct tls_identities *identities)
{
	for (size_t i = 0; i < identities->count; i++)
		identity_release(&identities->at[i]);
	free(identities->at);
	*identities = (struct tls_identities){ 0 };
}

static int
append(struct tls_identities *identities, const struct tls_identity *identity, struct failure *why)
{
	struct tls_identity *at = reallocarray(identities->at, identities->count + 1, sizeof(*at));
	if (!at)
		return failure_set(why, FAILURE_MEMORY, "no memory for a certificate");
	identities->at = at;
	at[identities->count++] = *identity;
	return 0;
}

static bool
holds_key(const struct tls_file *file)
{
	return strstr((const char *)file->bytes, "PRIVATE KEY-----") != NULL;
}

static int
read_certificates(struct tls_identity *identity, const struct tls_file *file, struct failure *why)
{
	char reason[TLS_WORDS_REASON];
	BIO *bio = tls_file_open(file, why);
	X509 *next;
	if (!bio)
		return -1;
	identity->certificate = PEM_read_bio_X509(bio, NULL, tls_file_ask_nobody, NULL);
	identity->chain = sk_X509_new_null();
	while (identity->certificate && identity->chain &&
	       (next = PEM_read_bio_X509(bio, NULL, tls_file_ask_nobody, NULL))) {
		if (!sk_X509_push(identity->chain, next))
			X509_free(next);
	}
	BIO_free(bio);
	if (!identity->chain)
		return failure_set(why, FAILURE_MEMORY, "no memory for %s", file->path);
	bool is_over = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
	tls_words_reason(reason);
	if (!identity->certificate && is_over)
		return failure_set(why, FAILURE_CONFIG,
				   holds_key(file)
					   ? "%s holds no certificate but a private key; are "
					     "certificate and key exchanged?"
					   : "%s holds no certificate; name a PEM file that does",
				   file->path);
	if (!is_over)
		return failure_set(why, FAILURE_CONFIG, "%s holds a damaged certificate: %s",
				   file->path, reason);
	return 0;
}

static int
on_passphrase(char *out, int most, int is_writing, void *opaque)
{
	const char *passphrase = opaque;
	(void)is_writing;
	size_t length = passphrase ? strlen(passphrase) : 0;
	if (!length || length >= (size_t)most)
		return -1;
	return snprintf(out, (size_t)most, "%s", passphrase);
}

static int
read_key(struct tls_identity *identity, const struct tls_file *file, const char *passphrase,
	 struct failure *why)
{
	char reason[TLS_WORDS_REASON];
	if (!holds_key(file))
		return failure_set(why, FAILURE_CONFIG,
				   "%s holds no private key; name the PEM file that does with key",
				   file->path);
	if (file->is_public)
		return tls_file_refuse_public(file, why);
	BIO *bio = tls_file_open(file, why);
	if (!bio)
		return -1;
	bool is_encrypted = strstr((const char *)file->bytes, "ENCRYPTED") != NULL;
	identity->key = PEM_read_bio_PrivateKey(bio, NULL, on_passphrase, (void *)passphrase);
	BIO_free(bio);
	tls_words_reason(reason);
	if (identity->key)
		return 0;
	if (is_encrypted && !passphrase)
		return failure_set(why, FAILURE_CONFIG,
				   "%s is encrypted; name the file of its passphrase with "
				   "passphrase",
				   file->path);
	if (is_encrypted)
		return failure_set(why, FAILURE_CONFIG,
				   "%s cannot be decrypted (%s); is passphrase the right one?",
				   file->path, reason);
	return failure_set(why, FAILURE_CONFIG, "%s holds a damaged private key: %s", file->path,
			   reason);
}

int
tls_identity_add(struct tls_identities *identities, const char *certificate_path,
		 const char *key_path, const char *passphrase, struct failure *why)
{
	struct tls_identity identity = { .path = certificate_path };
	struct tls_file certificates = { 0 }, key = { 0 };
	int result = -1;
	if (tls_file_read(&certificates, certificate_path, why) == 0 &&
	    tls_file_read(&key, key_path, why) == 0 &&
	    read_certificates(&identity, &certificates, why) == 0 &&
	    read_key(&identity, &key, passphrase, why) == 0 &&
	    check(&identity, certificate_path, key_path, why) == 0)
		result = append(identities, &identity, why);
	if (result < 0)
		identity_release(&identity);
	tls_file_release(&certificates);
	tls_file_release(&key);
	return result;
}

/* Puts each issuer behind what it issued, as far as they belong together. */
static void
order_chain(const struct tls_identity *identity)
{
	X509 *below = identity->certificate;
	for (int done = 0; done < sk_X509_num(identity->chain); done++) {
		int at = done;
		while (at < sk_X509_num(identity->chain) &&
		       X509_check_issued(sk_X509_value(identity->chain, at), below) != X509_V_OK)
			at++;
		if (at == sk_X509_num(identity->chain))
			return;
		below = sk_X509_delete(identity->chain, at);
		sk_X509_insert(identity->chain, below, done); /* where one was just taken out */
	}
}

static int
refuse_pkcs12(PKCS12 *container, const char *path, const char *passphrase, struct failure *why)
{
	char reason[TLS_WORDS_REASON];
	tls_words_reason(reason);
	if (PKCS12_verify_mac(container, passphrase ? passphrase : "", -1))
		return failure_set(why, FAILURE_CONFIG,
				   "%s is encrypted in a way that is not supported any more (%s); "
				   "export it anew",
				   path, reason);
	return failure_set(why, FAILURE_CONFIG,
			   passphrase ? "%s cannot be opened with that passphrase; is it the right "
					"one?"
				      : "%s is encrypted; name the file of its passphrase",
			   path);
}

int
tls_identity_add_pkcs12(struct tls_identities *identities, const char *path, const char *passphrase,
			struct failure *why)
{
	struct tls_identity identity = { .path = path };
	struct tls_file file;
	if (tls_file_read(&file, path, why))
		return -1;
	const unsigned char *bytes = file.bytes;
	PKCS12 *container = d2i_PKCS12(NULL, &bytes, (long)file.length);
	int result = -1;
	if (!container)
		failure_set(why, FAILURE_CONFIG, "%s is not a PKCS#12 file; name one", path);
	else if (file.is_public)
		tls_file_refuse_public(&file, why);
	else if (!PKCS12_parse(container, passphrase ? passphrase : "", &identity.key,
			       &identity.certificate, &identity.chain))
		refuse_pkcs12(container, path, passphrase, why);
	else if (!identity.key || !identity.certificate)
		failure_set(why, FAILURE_CONFIG, "%s holds no certificate with its key", path);
	else {
		order_chain(&identity);
		result =
			check(&identity, path, path, why) ? -1 : append(identities, &identity, why);
	}
	if (result < 0)
		identity_release(&identity);
	PKCS12_free(container);
	ERR_clear_error();
	tls_file_release(&file);
	return result;
}

bool
tls_identity_is_old(const X509 *certificate)
{
	const ASN1_TIME *first = X509_get0_notBefore(certificate);
	const ASN1_TIME *last = X509_get0_notAfter(certificate);
	int all_days, all_seconds, left_days, left_seconds;
	if (!ASN1_TIME_diff(&all_days, &all_seconds, first, last) ||
	    !ASN1_TIME_diff(&left_days, &left_seconds, NULL, last))
		return false;
	return 10 * (left_days * INT64_C(86400) + left_seconds) <
	       all_days * INT64_C(86400) + all_seconds;
}

/* --- OCSP --------------------------------------------------------------------------------------- */

/* Whether the answer's id names the certificate: its serial number, and its issuer's name hashed. */
static bool
is_about(OCSP_CERTID *id, const X509 *certificate)
{
	ASN1_OCTET_STRING *name_hash;
	ASN1_OBJECT *digest;
	ASN1_INTEGER *serial;
	unsigned char hash[EVP_MAX_MD_SIZE];
	unsigned int length;
	if (!OCSP_id_get0_info(&name_hash, &digest, NULL, &serial, id))
		return false;
	const EVP_MD *type = EVP_get_digestbyobj(digest);
	return type && ASN1_INTEGER_cmp(serial, X509_get0_serialNumber(certificate)) == 0 &&
	       X509_NAME_digest(X509_get_issuer_name(certificate), type, hash, &length) &&
	       (int)length == ASN1_STRING_length(name_hash) &&
	       memcmp(hash, ASN1_STRING_get0_data(name_hash), length) == 0;
}

static int
check_answer(OCSP_SINGLERESP *answer, const char *path, time_t *until, struct failure *why)
{
	ASN1_GENERALIZEDTIME *this = NULL, *next = NULL;
	char date[TLS_DATE_TEXT];
	struct tm parts;
	int status = OCSP_single_get0_status(answer, NULL, NULL, &this, &next);
	if (status != V_OCSP_CERTSTATUS_GOOD)
		return failure_set(why, FAILURE_CONFIG,
				   "%s says that the certificate is %s; use another certificate",
				   path, OCSP_cert_status_str(status));
	if (this && X509_cmp_current_time(this) > 0)
		return failure_set(
			why, FAILURE_CONFIG,
			"%s is valid only from %s; fetch one that is now, or set the clock", path,
			tls_identity_date(this, date));
	*until = 0;
	if (!next)
		return 0;
	if (X509_cmp_current_time(next) <= 0)
		return failure_set(why, FAILURE_CONFIG, "%s expired %s; fetch a fresh answer", path,
				   tls_identity_date(next, date));
	if (ASN1_TIME_to_tm(next, &parts))
		*until = timegm(&parts);
	return 0;
}

static int
give_answer(struct tls_identities *identities, OCSP_BASICRESP *basic, const struct tls_file *file,
	    struct failure *why)
{
	for (int i = 0; i < OCSP_resp_count(basic); i++) {
		OCSP_SINGLERESP *answer = OCSP_resp_get0(basic, i);
		OCSP_CERTID *id = (OCSP_CERTID *)OCSP_SINGLERESP_get0_id(answer);
		for (size_t j = 0; j < identities->count; j++) {
			struct tls_identity *identity = &identities->at[j];
			if (!is_about(id, identity->certificate))
				continue;
			if (check_answer(answer, file->path, &identity->staple_until, why))
				return -1;
			OPENSSL_free(identity->staple);
			identity->staple = OPENSSL_memdup(file->bytes, file->length);
			identity->staple_length = file->length;
			return identity->staple ? 0
						: failure_set(why, FAILURE_MEMORY,
							      "no memory for %s", file->path);
		}
	}
	return failure_set(why, FAILURE_CONFIG,
			   "%s is about none of the certificates here; fetch that of one",
			   file->path);
}

int
tls_identity_add_ocsp(struct tls_identities *identities, const char *path, struct failure *why)
{
	struct tls_file file;
	if (tls_file_read(&file, path, why))
		return -1;
	const unsigned char *bytes = file.bytes;
	OCSP_RESPONSE *response = d2i_OCSP_RESPONSE(NULL, &bytes, (long)file.length);
	OCSP_BASICRESP *basic = NULL;
	int result = -1;
	if (response && OCSP_response_status(response) == OCSP_RESPONSE_STATUS_SUCCESSFUL)
		basic = OCSP_response_get1_basic(response);
	if (basic)
		result = give_answer(identities, basic, &file, why);
	else
		failure_set(why, FAILURE_CONFIG,
			    "%s is not a successful OCSP answer (DER); fetch one", path);
	OCSP_BASICRESP_free(basic);
	OCSP_RESPONSE_free(response);
	ERR_clear_error();
	tls_file_release(&file);
	return result;
}

const struct tls_identity *
tls_identity_staple(const struct tls_identities *identities, const X509 *certificate, time_t now)
{
	for (size_t i = 0; certificate && i < identities->count; i++) {
		const struct tls_identity *identity = &identities->at[i];
		if (identity->staple && X509_cmp(identity->certificate, certificate) == 0 &&
		    (!identity->staple_until || now < identity->staple_until))
			return identity;
	}
	return NULL;
}

/* --- Choosing ----------------------------------------------------------------------------------- */

static bool
is_for(const struct tls_identity *identity, const char *name, unsigned int flags)
{
	return X509_check_host(identity->certificate, name, 0,
			       flags | X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, NULL) == 1;
}

/* One of the certificate's names, for the caller to free; NULL = it has none. */
static char *
first_name(X509 *certificate)
{
	char *name = NULL;
	GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
	for (int i = 0; i < sk_GENERAL_NAME_num(names) && !name; i++) {
		const GENERAL_NAME *at = sk_GENERAL_NAME_value(names, i);
		if (at->type == GEN_DNS)
			name = strndup((const char *)ASN1_STRING_get0_data(at->d.dNSName),
				       (size_t)ASN1_STRING_length(at->d.dNSName));
	}
	GENERAL_NAMES_free(names);
	if (!name) {
		char text[256];
		int length = X509_NAME_get_text_by_NID(X509_get_subject_name(certificate),
						       NID_commonName, text, sizeof(text));
		name = length > 0 ? strdup(text) : NULL;
	}
	if (name && strncmp(name, "*.", 2) == 0)
		*name = 'x'; /* a name that the wildcard covers */
	return name;
}

static int
check_use(const struct tls_identity *identity, SSL_CTX *context, struct failure *why)
{
	char reason[TLS_WORDS_REASON];
	SSL *probe = SSL_new(context);
	if (!probe)
		return failure_set(why, FAILURE_MEMORY, "no memory for %s", identity->path);
	int is_used = SSL_use_cert_and_key(probe, identity->certificate, identity->key,
					   identity->chain, 1);
	SSL_free(probe);
	if (is_used == 1)
		return 0;
	return failure_set(why, FAILURE_CONFIG, "%s: the certificate cannot be used: %s",
			   identity->path, tls_words_reason(reason));
}

int
tls_identity_show(const struct tls_identities *identities, SSL_CTX *context, struct failure *why)
{
	for (size_t i = 0; i < identities->count; i++)
		if (check_use(&identities->at[i], context, why))
			return -1;
	char *name = identities->count > 1 ? first_name(identities->at[0].certificate) : NULL;
	for (size_t i = 0; i < identities->count; i++) {
		const struct tls_identity *at = &identities->at[i];
		/* Without override the first of each type of key stays. */
		if (i == 0 || (name && is_for(at, name, 0)))
			SSL_CTX_use_cert_and_key(context, at->certificate, at->key, at->chain, 0);
	}
	free(name);
	ERR_clear_error();
	return 0;
}

int
tls_identity_choose(const struct tls_identities *identities, SSL *ssl, const char *name)
{
	static const unsigned int passes[] = { X509_CHECK_FLAG_NO_WILDCARDS, 0 };
	bool is_cleared = false;
	for (size_t pass = 0; pass < 2 && !is_cleared; pass++) {
		for (size_t i = 0; i < identities->count; i++) {
			const struct tls_identity *at = &identities->at[i];
			if (!is_for(at, name, passes[pass]))
				continue;
			if (i == 0)
				return 0; /* which the context shows */
			if (!is_cleared)
				SSL_certs_clear(ssl);
			if (SSL_use_cert_and_key(ssl, at->certificate, at->key, at->chain, 0) !=
				    1 &&
			    !is_cleared)
				return -1;
			is_cleared = true;
		}
	}
	ERR_clear_error();
	return 0;
}
