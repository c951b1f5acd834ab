/*
 * tls_lasting: what lives in the process and not in a configuration, so that a reload keeps it: whoever asks with
 * the same id, before or after it, gets the same, for as long as anybody holds it. Any thread.
 */
#ifndef PENSTOCK_FILTERS_TLS_LASTING_H
#define PENSTOCK_FILTERS_TLS_LASTING_H

#include <pthread.h>
#include <stddef.h>

#define TLS_ID_BYTES 32

/* The first member of what lasts. */
struct tls_lasting {
	struct tls_lasting *next;
	unsigned char id[TLS_ID_BYTES];
	unsigned int users;
};

/* All of one kind; static. */
struct tls_lasting_kind {
	size_t bytes;                      /* of one, which begins as zeros */
	void (*end)(struct tls_lasting *); /* before its memory is wiped and freed; may be NULL */
	struct tls_lasting *all;
	pthread_mutex_t lock; /* PTHREAD_MUTEX_INITIALIZER */
};

/* NULL without memory. Costs O(those there are). */
struct tls_lasting *tls_lasting_hold(struct tls_lasting_kind *kind,
				     const unsigned char id[TLS_ID_BYTES]);
void tls_lasting_release(struct tls_lasting_kind *kind,
			 struct tls_lasting *lasting); /* NULL is allowed */

#endif
