#include "tls_psk.h"

#include "tls.h"
#include "tls_conf.h"
#include "tls_file.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IDENTITY_MOST 128 /* PSK_MAX_IDENTITY_LEN before OpenSSL 3 */

static int
nibble(char digit)
{
	const char *digits = "0123456789abcdef";
	const char *at =
		digit ? strchr(digits, digit | ('A' <= digit && digit <= 'F' ? 0x20 : 0)) : NULL;
	return at ? (int)(at - digits) : -1;
}

/* The key of `length` hex digits; 0 = it is none. */
static size_t
read_key(const char *text, size_t length, unsigned char key[TLS_PSK_MOST])
{
	if (length % 2 || length / 2 < TLS_PSK_LEAST || length / 2 > TLS_PSK_MOST)
		return 0;
	for (size_t i = 0; i < length; i += 2) {
		int high = nibble(text[i]), low = nibble(text[i + 1]);
		if (high < 0 || low < 0)
			return 0;
		key[i / 2] = (unsigned char)(high * 16 + low);
	}
	return length / 2;
}

/* A line never stands in a message: it holds a secret. */
static int
read_line(struct tls_psks *psks, const char *line, size_t length, struct failure *why)
{
	const char *colon = memrchr(line, ':', length);
	size_t name_length = colon ? (size_t)(colon - line) : 0;
	if (!name_length || name_length > IDENTITY_MOST || memchr(line, '\0', length))
		return failure_set(why, FAILURE_CONFIG,
				   "is not IDENTITY:HEX with an identity of 1 to %d bytes",
				   IDENTITY_MOST);
	struct tls_psk *at = reallocarray(psks->at, psks->count + 1, sizeof(*at));
	if (!at)
		return failure_set(why, FAILURE_MEMORY, "finds no memory");
	psks->at = at;
	at += psks->count;
	memset(at, 0, sizeof(*at));
	at->length = read_key(colon + 1, length - name_length - 1, at->key);
	if (!at->length)
		return failure_set(why, FAILURE_CONFIG, "holds no key of %d to %d hex digits",
				   2 * TLS_PSK_LEAST, 2 * TLS_PSK_MOST);
	SHA256((const unsigned char *)line, name_length, at->name);
	for (size_t i = 0; i < psks->count; i++)
		if (memcmp(psks->at[i].name, at->name, sizeof(at->name)) == 0)
			return failure_set(why, FAILURE_CONFIG, "repeats an identity");
	at->identity = strndup(line, name_length);
	if (!at->identity)
		return failure_set(why, FAILURE_MEMORY, "finds no memory");
	psks->count++;
	return 0;
}

static int
read_lines(struct tls_psks *psks, const struct tls_file *file, struct failure *why)
{
	const char *at = (const char *)file->bytes, *end = at + file->length;
	for (unsigned int number = 1; at < end; number++) {
		const char *feed = memchr(at, '\n', (size_t)(end - at));
		const char *stop = feed ? feed : end;
		size_t length = (size_t)(stop - at);
		if (length && at[length - 1] == '\r')
			length--;
		if (length && *at != '#' && read_line(psks, at, length, why))
			return failure_set(why, why->kind, "%s: line %u %s", file->path, number,
					   why->text);
		at = stop + 1;
	}
	if (!psks->count)
		return failure_set(why, FAILURE_CONFIG, "%s holds no line IDENTITY:HEX; write one",
				   file->path);
	return 0;
}

static int
find_own(struct tls_psks *psks, const char *own, const char *path, struct failure *why)
{
	for (size_t i = 0; *own && i < psks->count; i++) {
		if (strcmp(psks->at[i].identity, own) == 0) {
			psks->own = i;
			return 0;
		}
	}
	if (!*own)
		return 0;
	return failure_set(why, FAILURE_CONFIG, "%s has no identity '%.60s'; name one of its own",
			   path, own);
}

int
tls_psk_read(struct tls_psks *psks, const char *path, const char *own, struct failure *why)
{
	struct tls_file file;
	if (tls_file_read_secret(&file, path, why))
		return -1;
	int result = read_lines(psks, &file, why);
	if (!result)
		result = find_own(psks, own, path, why);
	tls_file_release(&file);
	return result;
}

void
tls_psk_release(struct tls_psks *psks)
{
	for (size_t i = 0; i < psks->count; i++)
		free(psks->at[i].identity);
	if (psks->at)
		OPENSSL_cleanse(psks->at, psks->count * sizeof(*psks->at));
	free(psks->at);
	*psks = (struct tls_psks){ 0 };
}

/* Takes as long for every identity, known or not, and wherever it stands. */
static unsigned int
find_key(const struct tls_psks *psks, const char *identity, unsigned char key[TLS_PSK_MOST])
{
	unsigned char name[32];
	unsigned int length = 0;
	SHA256((const unsigned char *)identity, strlen(identity), name);
	memset(key, 0, TLS_PSK_MOST);
	for (size_t i = 0; i < psks->count; i++) {
		const struct tls_psk *at = &psks->at[i];
		int differs = CRYPTO_memcmp(name, at->name, sizeof(name));
		unsigned int mask = ((unsigned int)differs - 1) >> 8; /* 0, or ones if the same */
		for (size_t j = 0; j < TLS_PSK_MOST; j++)
			key[j] |= (unsigned char)(at->key[j] & mask);
		length |= (unsigned int)at->length & mask;
	}
	return length;
}

/* Is asked about tickets as well, whose bytes nobody calls an identity: unknown is no failure yet. */
static unsigned int
on_client_names_itself(SSL *ssl, const char *identity, unsigned char *out, unsigned int most)
{
	struct tls *tls = tls_of(ssl);
	unsigned char key[TLS_PSK_MOST];
	unsigned int length = find_key(&tls->conf->psks, identity, key);
	if (length > most)
		length = 0;
	memcpy(out, key, length);
	OPENSSL_cleanse(key, sizeof(key));
	if (length)
		tls->by_psk = true;
	else
		tls->psk_is_unknown = true;
	return length;
}

static unsigned int
on_server_asks_name(SSL *ssl, const char *hint, char *identity, unsigned int identity_most,
		    unsigned char *out, unsigned int most)
{
	struct tls *tls = tls_of(ssl);
	const struct tls_psk *own = &tls->conf->psks.at[tls->conf->psks.own];
	(void)hint;
	if (strlen(own->identity) >= identity_most || own->length > most)
		return 0;
	snprintf(identity, identity_most, "%s", own->identity);
	memcpy(out, own->key, own->length);
	tls->by_psk = true;
	return (unsigned int)own->length;
}

void
tls_psk_use(SSL_CTX *context, bool is_server)
{
	if (is_server)
		SSL_CTX_set_psk_server_callback(context, on_client_names_itself);
	else
		SSL_CTX_set_psk_client_callback(context, on_server_asks_name);
}
