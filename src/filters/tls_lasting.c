#include "tls_lasting.h"

#include <openssl/crypto.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct tls_lasting *
tls_lasting_hold(struct tls_lasting_kind *kind, const unsigned char id[TLS_ID_BYTES])
{
	pthread_mutex_lock(&kind->lock);
	struct tls_lasting *at = kind->all;
	while (at && memcmp(at->id, id, TLS_ID_BYTES) != 0)
		at = at->next;
	if (!at) {
		at = calloc(1, kind->bytes);
		if (at) {
			memcpy(at->id, id, TLS_ID_BYTES);
			at->next = kind->all;
			kind->all = at;
		}
	}
	if (at)
		at->users++;
	pthread_mutex_unlock(&kind->lock);
	return at;
}

void
tls_lasting_release(struct tls_lasting_kind *kind, struct tls_lasting *lasting)
{
	if (!lasting)
		return;
	pthread_mutex_lock(&kind->lock);
	bool is_last = --lasting->users == 0;
	for (struct tls_lasting **at = &kind->all; is_last && *at; at = &(*at)->next) {
		if (*at == lasting) {
			*at = lasting->next;
			break;
		}
	}
	pthread_mutex_unlock(&kind->lock);
	if (!is_last)
		return;
	if (kind->end)
		kind->end(lasting);
	OPENSSL_cleanse(lasting, kind->bytes);
	free(lasting);
}
