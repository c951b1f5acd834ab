/*
 * tls_memory: whether OpenSSL found no memory. Its own reasons often do not tell that: they call it an internal
 * error, a damaged certificate or the peer's fault, or nothing has failed and it waits for ever. Each thread is
 * told of what it did itself.
 */
#ifndef PENSTOCK_FILTERS_TLS_MEMORY_H
#define PENSTOCK_FILTERS_TLS_MEMORY_H

#include <stdbool.h>

/* Before OpenSSL has allocated anything; later it has no effect. */
void tls_memory_watch(void);

/* What was before does not count any more. */
void tls_memory_forget(void);
bool tls_memory_was_short(void);

#endif
