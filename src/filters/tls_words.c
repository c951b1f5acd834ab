#include "tls_words.h"

#include "../utf8.h"
#include "tls_memory.h"

#include <openssl/err.h>
#include <openssl/sslerr.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* OpenSSL's reasons are for programmers. These are the ones that operators meet. */
static const struct {
	int reason;
	enum tls_failure failure;
	const char *words;
} translations[] = {
	{ SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE, TLS_BAD_CERTIFICATE, "no certificate was sent" },
	{ SSL_R_NO_SHARED_CIPHER, TLS_UNSUPPORTED,
	  "the peer offers no cipher that is allowed here" },
	{ SSL_R_NO_CIPHERS_AVAILABLE, TLS_UNSUPPORTED,
	  "no cipher is left for the TLS versions allowed here" },
	{ SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM, TLS_UNSUPPORTED,
	  "no certificate here has a kind of key that the peer accepts" },
	{ SSL_R_NO_SUITABLE_KEY_SHARE, TLS_UNSUPPORTED,
	  "the peer offers no group that is allowed here" },
	{ SSL_R_NO_SUITABLE_GROUPS, TLS_UNSUPPORTED,
	  "the peer offers no group that is allowed here" },
	{ SSL_R_NO_SHARED_GROUPS, TLS_UNSUPPORTED,
	  "the peer offers no group that is allowed here" },
	{ SSL_R_UNSUPPORTED_PROTOCOL, TLS_UNSUPPORTED,
	  "the peer speaks no TLS version that is allowed here" },
	{ SSL_R_VERSION_TOO_LOW, TLS_UNSUPPORTED,
	  "the peer speaks no TLS version that is allowed here" },
	{ SSL_R_VERSION_TOO_HIGH, TLS_UNSUPPORTED,
	  "the peer speaks no TLS version that is allowed here" },
	{ SSL_R_WRONG_SSL_VERSION, TLS_UNSUPPORTED,
	  "the peer speaks no TLS version that is allowed here" },
	{ SSL_R_INAPPROPRIATE_FALLBACK, TLS_BROKEN,
	  "the peer was made to fall back to an older TLS version" },
	{ SSL_R_NO_APPLICATION_PROTOCOL, TLS_UNSUPPORTED,
	  "the peer offers no ALPN protocol of those served here" },
	{ SSL_R_HTTP_REQUEST, TLS_NOT_TLS, "the peer does not speak TLS but HTTP" },
	{ SSL_R_HTTPS_PROXY_REQUEST, TLS_NOT_TLS, "the peer does not speak TLS but HTTP" },
	{ SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC, TLS_BROKEN,
	  "a TLS record was changed on the way" },
	{ SSL_R_DIGEST_CHECK_FAILED, TLS_BROKEN, "the TLS handshake was changed on the way" },
	{ SSL_R_PSK_IDENTITY_NOT_FOUND, TLS_BAD_SECRET, "the peer's PSK identity is unknown" },
	{ SSL_R_CERTIFICATE_VERIFY_FAILED, TLS_BAD_CERTIFICATE,
	  "the peer's certificate is not trusted" },
	{ SSL_R_BAD_SIGNATURE, TLS_BAD_CERTIFICATE,
	  "the peer does not hold the key of its certificate" },
	{ SSL_R_NO_RENEGOTIATION, TLS_BROKEN, "the peer wants to renegotiate, which is refused" },
	{ SSL_R_EE_KEY_TOO_SMALL, TLS_BAD_CERTIFICATE, "the peer's key is too small" },
	{ SSL_R_DH_KEY_TOO_SMALL, TLS_UNSUPPORTED, "the peer's key is too small" },
	{ SSL_R_EXCESSIVE_MESSAGE_SIZE, TLS_BROKEN,
	  "the peer sends too long a chain of certificates" },
};
#define TRANSLATIONS (sizeof(translations) / sizeof(translations[0]))

/* What OpenSSL finds wrong with bytes that were never meant to be TLS. */
static bool
is_other_protocol(int reason)
{
	switch (reason) {
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_UNKNOWN_PROTOCOL:
	case SSL_R_UNEXPECTED_MESSAGE:
	case SSL_R_UNEXPECTED_RECORD:
	case SSL_R_BAD_RECORD_TYPE:
	case SSL_R_PACKET_LENGTH_TOO_LONG:
	case SSL_R_ENCRYPTED_LENGTH_TOO_LONG:
	case SSL_R_DATA_LENGTH_TOO_LONG:
	case SSL_R_BAD_LENGTH:
	case SSL_R_LENGTH_MISMATCH:
	case SSL_R_LENGTH_TOO_SHORT:
	case SSL_R_RECORD_LENGTH_MISMATCH:
	case SSL_R_RECORD_TOO_SMALL:
	case SSL_R_UNSUPPORTED_SSL_VERSION:
	case SSL_R_APP_DATA_IN_HANDSHAKE:
	case SSL_R_BAD_PACKET:
	case SSL_R_CCS_RECEIVED_EARLY:
	case SSL_R_UNKNOWN_ALERT_TYPE:
		return true;
	default:
		return false;
	}
}

/* Alerts of RFC 8446 6.2 and RFC 5246 7.2.2, as what the peer says. */
static const char *const alerts[] = {
	[SSL_AD_UNEXPECTED_MESSAGE] = "a message out of order",
	[SSL_AD_BAD_RECORD_MAC] = "a record was changed on the way",
	[SSL_AD_RECORD_OVERFLOW] = "a record is too long",
	[SSL_AD_HANDSHAKE_FAILURE] = "nothing in common to talk with",
	[SSL_AD_BAD_CERTIFICATE] = "bad certificate",
	[SSL_AD_UNSUPPORTED_CERTIFICATE] = "unsupported certificate",
	[SSL_AD_CERTIFICATE_REVOKED] = "certificate revoked",
	[SSL_AD_CERTIFICATE_EXPIRED] = "certificate expired",
	[SSL_AD_CERTIFICATE_UNKNOWN] = "certificate not accepted",
	[SSL_AD_ILLEGAL_PARAMETER] = "a value that is not allowed",
	[SSL_AD_UNKNOWN_CA] = "unknown CA",
	[SSL_AD_ACCESS_DENIED] = "access denied",
	[SSL_AD_DECODE_ERROR] = "a message it cannot read",
	[SSL_AD_DECRYPT_ERROR] = "a signature or secret that is wrong",
	[SSL_AD_PROTOCOL_VERSION] = "no TLS version in common",
	[SSL_AD_INSUFFICIENT_SECURITY] = "insufficient security",
	[SSL_AD_INTERNAL_ERROR] = "an error of its own",
	[SSL_AD_INAPPROPRIATE_FALLBACK] = "a fallback to an older TLS version",
	[SSL_AD_USER_CANCELLED] = "cancelled",
	[SSL_AD_NO_RENEGOTIATION] = "no renegotiation",
	[SSL_AD_MISSING_EXTENSION] = "an extension is missing",
	[SSL_AD_UNSUPPORTED_EXTENSION] = "an extension it did not ask for",
	[SSL_AD_UNRECOGNIZED_NAME] = "unknown server name",
	[SSL_AD_BAD_CERTIFICATE_STATUS_RESPONSE] = "bad OCSP answer",
	[SSL_AD_UNKNOWN_PSK_IDENTITY] = "unknown PSK identity",
	[SSL_AD_CERTIFICATE_REQUIRED] = "certificate required",
	[SSL_AD_NO_APPLICATION_PROTOCOL] = "no application protocol in common",
};
#define ALERTS (sizeof(alerts) / sizeof(alerts[0]))

static void
describe(unsigned long code, char text[TLS_WORDS_REASON])
{
	const char *reason = ERR_reason_error_string(code);
	snprintf(text, TLS_WORDS_REASON, "%s",
		 code && ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code))
		 : reason                       ? reason
						: "it is damaged");
}

const char *
tls_words_reason(char text[TLS_WORDS_REASON])
{
	describe(ERR_peek_last_error(), text);
	ERR_clear_error();
	return text;
}

/* Empties the queue; its last error is in `text`, in `reason` the first that is of TLS itself, if there is one:
 * what a cipher found comes before. Whether it is about memory: what that led to may look as if it were the
 * peer's fault. */
static bool
lacks_memory(char text[TLS_WORDS_REASON], int *reason)
{
	bool is_so = !ERR_peek_error() || tls_memory_was_short();
	unsigned long code, last = 0;
	while ((code = ERR_get_error())) {
		is_so |= ERR_GET_REASON(code) == ERR_R_MALLOC_FAILURE;
		if (!*reason && ERR_GET_LIB(code) == ERR_LIB_SSL)
			*reason = ERR_GET_REASON(code);
		last = code;
	}
	describe(last, text);
	return is_so;
}

/* Who fails like this does not know the secret, or another one. */
static bool
is_other_secret(int reason)
{
	return reason == SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC ||
	       reason == SSL_R_DIGEST_CHECK_FAILED || reason == SSL_R_BINDER_DOES_NOT_VERIFY;
}

/* NULL: there are none. */
static const char *
translate(int reason, enum tls_stage stage, enum tls_failure *failure)
{
	if (stage == TLS_STAGE_SECRET && is_other_secret(reason)) {
		*failure = TLS_BAD_SECRET;
		return "the peer's shared secret is another";
	}
	for (size_t i = 0; i < TRANSLATIONS; i++)
		if (translations[i].reason == reason) {
			*failure = translations[i].failure;
			return translations[i].words;
		}
	if (stage != TLS_STAGE_FIRST || !is_other_protocol(reason))
		return NULL;
	*failure = TLS_NOT_TLS;
	return "the peer does not speak TLS";
}

const char *
tls_words_protocol(const unsigned char *bytes, size_t length, bool is_far)
{
	static const struct {
		const char *bytes;
		size_t length;
		const char *words;
	} begins[] = {
		{ "\0\0\0\x08\x04\xd2\x16\x2f", 8,
		  "PostgreSQL, which asks for TLS in its own way; sslnegotiation=direct makes "
		  "libpq 17 "
		  "begin with TLS" },
		{ "\0\0\0\x08\x04\xd2\x16\x30", 8, "PostgreSQL" },
		{ "PROXY ", 6, "begins with a PROXY header; write proxy_protocol before tls" },
		{ "\r\n\r\n\0\r\n", 7,
		  "begins with a PROXY header; write proxy_protocol before tls" },
		{ "SSH-", 4, "SSH" },
		{ "*1\r\n$", 5, "the protocol of Redis" },
		{ "*2\r\n$", 5, "the protocol of Redis" },
		{ "*3\r\n$", 5, "the protocol of Redis" },
		{ "HTTP/", 5, "HTTP" },
	};
	for (size_t i = 0; i < sizeof(begins) / sizeof(begins[0]); i++)
		if (length >= begins[i].length &&
		    memcmp(bytes, begins[i].bytes, begins[i].length) == 0)
			return begins[i].words;
	if (is_far && length >= 5 && bytes[3] == 0 && bytes[4] == 10)
		return "the protocol of MySQL, which asks for TLS in its own way";
	if (is_far && length >= 4 &&
	    (memcmp(bytes, "220", 3) == 0 || memcmp(bytes, "* OK", 4) == 0 ||
	     memcmp(bytes, "+OK", 3) == 0))
		return "a protocol in which it greets first, and TLS begins by STARTTLS";
	return NULL;
}

enum tls_failure
tls_words_failure(struct failure *why, enum tls_stage stage)
{
	char text[TLS_WORDS_REASON];
	unsigned long code = ERR_peek_error();
	int reason = 0;
	enum tls_failure failure = TLS_BROKEN;
	bool is_memory = lacks_memory(text, &reason);
	const char *words = reason ? translate(reason, stage, &failure) : NULL;
	size_t alert =
		reason >= SSL_AD_REASON_OFFSET ? (size_t)(reason - SSL_AD_REASON_OFFSET) : ALERTS;
	if (is_memory) {
		failure_set(why, FAILURE_MEMORY, "no memory for TLS");
		return TLS_NO_MEMORY;
	}
	if (ERR_FATAL_ERROR(code)) {
		failure_set(why, FAILURE_SYSTEM, "TLS fails here: %s", text);
		return TLS_STOPPED;
	}
	if (words) {
		failure_set(why, FAILURE_PROTOCOL, "%s", words);
		return failure;
	}
	if (alert < ALERTS && alerts[alert]) {
		failure_set(why, FAILURE_PROTOCOL, "the peer refuses: %s", alerts[alert]);
		return TLS_ALERT;
	}
	failure_set(why, FAILURE_PROTOCOL, "the peer breaks the rules of TLS: %s", text);
	return TLS_BROKEN;
}

const char *
tls_words_printable(const char *bytes, size_t length, char text[TLS_WORDS_TEXT])
{
	uint32_t code;
	if (length > TLS_WORDS_TEXT - 1)
		length = TLS_WORDS_TEXT - 1;
	memcpy(text, bytes, length);
	text[length] = '\0';
	for (size_t at = 0, count; at < length; at += count) {
		count = utf8_character(text + at, &code);
		if (count && code >= 0x20 && (code < 0x7f || code >= 0xa0))
			continue;
		count = 1;
		text[at] = '?';
	}
	return text;
}
