#include "tls_words.h"

#include <ctype.h>
#include <openssl/err.h>
#include <openssl/sslerr.h>
#include <stdio.h>
#include <string.h>

/* OpenSSL's reasons are for programmers. These are the ones that operators meet. */
static const struct {
	int reason;
	const char *words;
} translations[] = {
	{ SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE, "no certificate was sent" },
	{ SSL_R_NO_SHARED_CIPHER, "the peer offers no cipher that is allowed here" },
	{ SSL_R_NO_CIPHERS_AVAILABLE, "no cipher is left for the TLS versions allowed here" },
	{ SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM,
	  "no certificate here has a kind of key that the peer accepts" },
	{ SSL_R_NO_SUITABLE_KEY_SHARE, "the peer offers no group that is allowed here" },
	{ SSL_R_NO_SUITABLE_GROUPS, "the peer offers no group that is allowed here" },
	{ SSL_R_NO_SHARED_GROUPS, "the peer offers no group that is allowed here" },
	{ SSL_R_UNSUPPORTED_PROTOCOL, "the peer speaks no TLS version that is allowed here" },
	{ SSL_R_VERSION_TOO_LOW, "the peer speaks no TLS version that is allowed here" },
	{ SSL_R_VERSION_TOO_HIGH, "the peer speaks no TLS version that is allowed here" },
	{ SSL_R_WRONG_SSL_VERSION, "the peer speaks no TLS version that is allowed here" },
	{ SSL_R_INAPPROPRIATE_FALLBACK, "the peer was made to fall back to an older TLS version" },
	{ SSL_R_NO_APPLICATION_PROTOCOL, "the peer offers no ALPN protocol of those served here" },
	{ SSL_R_HTTP_REQUEST, "the peer does not speak TLS but HTTP" },
	{ SSL_R_HTTPS_PROXY_REQUEST, "the peer does not speak TLS but HTTP" },
	{ SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC, "a TLS record was changed on the way" },
	{ SSL_R_DIGEST_CHECK_FAILED, "the TLS handshake was changed on the way, or the shared "
				     "secrets differ" },
	{ SSL_R_BINDER_DOES_NOT_VERIFY, "the peer's shared secret is another" },
	{ SSL_R_PSK_IDENTITY_NOT_FOUND, "the peer's PSK identity is unknown" },
	{ SSL_R_CERTIFICATE_VERIFY_FAILED, "the peer's certificate is not trusted" },
	{ SSL_R_BAD_SIGNATURE, "the peer does not hold the key of its certificate" },
	{ SSL_R_NO_RENEGOTIATION, "the peer wants to renegotiate, which is refused" },
	{ SSL_R_EE_KEY_TOO_SMALL, "the peer's key is too small" },
	{ SSL_R_DH_KEY_TOO_SMALL, "the peer's key is too small" },
	{ SSL_R_EXCESSIVE_MESSAGE_SIZE, "the peer sends too long a chain of certificates" },
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

/* "certificate expired", of the alert of that number. */
static void
name_alert(int alert, char text[TLS_WORDS_REASON])
{
	const char *name = SSL_alert_desc_string_long(alert);
	if (strcmp(name, "unknown") == 0)
		snprintf(text, TLS_WORDS_REASON, "an alert without a name");
	else
		snprintf(text, TLS_WORDS_REASON, "%s", name);
}

const char *
tls_words_reason(char text[TLS_WORDS_REASON])
{
	unsigned long code = ERR_peek_last_error();
	const char *reason = ERR_reason_error_string(code);
	snprintf(text, TLS_WORDS_REASON, "%s",
		 code && ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code))
		 : reason                       ? reason
						: "it is damaged");
	ERR_clear_error();
	return text;
}

int
tls_words_failure(struct failure *why, const SSL *ssl, bool is_first)
{
	char text[TLS_WORDS_REASON];
	unsigned long code = ERR_peek_error();
	int reason = ERR_GET_REASON(code);
	bool is_tls = code && ERR_GET_LIB(code) == ERR_LIB_SSL;
	(void)ssl;
	if (!code || reason == ERR_R_MALLOC_FAILURE) {
		ERR_clear_error();
		return failure_set(why, FAILURE_MEMORY, "no memory for TLS");
	}
	for (size_t i = 0; is_tls && i < TRANSLATIONS; i++) {
		if (translations[i].reason == reason) {
			ERR_clear_error();
			return failure_set(why, FAILURE_PROTOCOL, "%s", translations[i].words);
		}
	}
	if (is_tls && reason >= SSL_AD_REASON_OFFSET) {
		name_alert(reason - SSL_AD_REASON_OFFSET, text);
		ERR_clear_error();
		return failure_set(why, FAILURE_PROTOCOL, "the peer refuses: %s", text);
	}
	if (is_tls && is_first && is_other_protocol(reason)) {
		ERR_clear_error();
		return failure_set(why, FAILURE_PROTOCOL, "the peer does not speak TLS");
	}
	tls_words_reason(text);
	return failure_set(why, FAILURE_PROTOCOL, "the peer breaks the rules of TLS: %s", text);
}

const char *
tls_words_printable(const char *bytes, size_t length, char text[TLS_WORDS_TEXT])
{
	size_t used = 0;
	for (; used < length && used < TLS_WORDS_TEXT - 1; used++)
		text[used] = isprint((unsigned char)bytes[used]) ? bytes[used] : '?';
	text[used] = '\0';
	return text;
}
