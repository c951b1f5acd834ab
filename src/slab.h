/*
 * slab: objects of one size that many owners have for a while, in blocks of their own. A block goes back
 * to the system with its last object; on the heap their holes would stay between longer-lived neighbours.
 * One thread's.
 */
#ifndef PENSTOCK_SLAB_H
#define PENSTOCK_SLAB_H

#include <stdbool.h>
#include <stddef.h>

struct slab {
	/* Set before the first call, never changed. */
	size_t object_bytes; /* at most SLAB_OBJECT_MOST; a multiple of 64 begins at one, too */
	bool is_large;       /* blocks of SLAB_LARGE_BYTES, each one huge page if there is one */
	struct slab_block *open; /* blocks with room */
};

#define SLAB_BLOCK_BYTES ((size_t)64 * 1024)
#define SLAB_LARGE_BYTES ((size_t)2 * 1024 * 1024)
#define SLAB_OBJECT_MOST ((size_t)8 * 1024)

/* A zeroed object, or NULL without memory. O(object_bytes); a new block is one system call. */
void *slab_take(struct slab *slab);

/* Gives it back; NULL is allowed. O(1). */
void slab_give(struct slab *slab, void *object);

#endif
