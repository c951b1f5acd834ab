/*
 * slab: objects of one size that many owners have for a while, in blocks of their own. A block goes back
 * to the system with its last object; on the heap their holes would stay between longer-lived neighbours.
 * One thread's.
 */
#ifndef PENSTOCK_SLAB_H
#define PENSTOCK_SLAB_H

#include <stddef.h>

struct slab {
	size_t object_bytes; /* set before the first call, never changed; at most SLAB_OBJECT_MOST */
	struct slab_block *open; /* blocks with room */
};

#define SLAB_BLOCK_BYTES ((size_t)64 * 1024)
#define SLAB_OBJECT_MOST ((size_t)8 * 1024)

/* A zeroed object, or NULL without memory. O(object_bytes); a new block is one system call. */
void *slab_take(struct slab *slab);

/* Gives it back; NULL is allowed. O(1). */
void slab_give(struct slab *slab, void *object);

#endif
