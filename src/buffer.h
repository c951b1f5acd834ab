/*
 * buffer: what libevent's buffers keep to themselves.
 */
#ifndef PENSTOCK_BUFFER_H
#define PENSTOCK_BUFFER_H

#include <stddef.h>

struct evbuffer;

/* Moves the first `bytes` bytes, which `from` must hold. Returns how many arrived: fewer only without memory, and then
 * the others are lost. evbuffer_remove_buffer drops an extent that it has no memory to cut, and returns the count
 * that it was asked for (libevent 2.1.12). O(extents), and a copy of the part of one. */
size_t buffer_move(struct evbuffer *from, struct evbuffer *to, size_t bytes);

#endif
