/*
 * facts: what is known about a connection's client. Each fact is *seen* by us (the socket's own address,
 * SO_PEERCRED, a verified certificate, what TLS agreed on) or *told* to us (a PROXY header, a name the
 * client asks for). What is told never grants a right. A second tunnel inherits the facts of the first.
 */
#ifndef PENSTOCK_FACTS_H
#define PENSTOCK_FACTS_H

#include "address.h"

#include <stdbool.h>

/* What a PROXY header tells but addresses. Texts are owned; NULL = not told. */
struct header_facts {
	char *authority; /* the server's name, as TLS would ask for it */
	char *unique_id; /* printable */
	char *alpn, *tls_version, *tls_cipher, *common_name; /* tls_is_told */
};

/* Texts are owned, where nothing else is said; NULL = not known. Each connection has one of these: flags stand
 * together, and what few have is elsewhere. */
struct facts {
	struct socket_address client;   /* the original client */
	struct socket_address accepted; /* the address it connected to */
	struct socket_address
		peer; /* who connected to the socket, always seen: what trust looks at */

	bool is_own;          /* the daemon's own connection, a check: it counts nowhere */
	bool client_is_told;  /* by a header, and not by the socket; `accepted` too */
	bool begins_with_tls; /* a look at the first bytes found a ClientHello: see `sni` */
	bool tls_is_told;     /* a PROXY header tells of TLS between the client and its sender */
	bool certificate_is_told; /* the sender says it has verified one */
	bool tls_is_of_relay; /* what was seen of TLS, below, and the SNI are the relay's that sent the
				 header, not the client's: the header came inside of that TLS */

	/* Where the far side goes, as configured and without its port: what a far filter asks for and
	 * verifies. Borrowed, valid while the far stack is opened; "" = not known. */
	const char *target_host;

	/* Seen. */
	char *alpn;              /* that TLS agreed on */
	const char *tls_version; /* "TLSv1.3"; static */
	const char *tls_cipher;  /* static */
	char *certificate;       /* "sha256/HEX" of the public key, verified */
	char *common_name;       /* of that certificate */
	/* Told. */
	char *sni;          /* the server's name that TLS asks for; by facts_set_host */
	char *alpn_offered; /* "h2,http/1.1": what TLS offers, if a look at the first bytes found any */
	struct header_facts *header; /* owned; NULL = there was none, and see facts_of_header */
};

/* What a header told: nothing if there was none. Never NULL. */
const struct header_facts *facts_of_header(const struct facts *facts);
/* The same to be written to, made if there is none. NULL without memory. */
struct header_facts *facts_make_header(struct facts *facts);

/* Puts a copy of the first `length` bytes of `text`, up to a zero byte, into one of the texts above, in
 * place of what it held. -1 without memory: it then holds nothing. */
int facts_set(char **slot, const char *text, size_t length);

/* The same for the name of a host: in small letters, without a dot at its end. Where it is empty or has bytes
 * that no name has, the text is then not known. */
int facts_set_host(char **slot, const char *name, size_t length);

/* Makes `to`, whose texts are overwritten, equal to `from`, with texts of its own. -1 without memory: `to`
 * is then to be released as well. */
int facts_copy(struct facts *to, const struct facts *from);

/* Frees the texts. Zeroed facts are allowed. */
void facts_release(struct facts *facts);

#endif
