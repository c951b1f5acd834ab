#include "slab.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif
#endif
#ifndef ASAN_POISON_MEMORY_REGION
#define ASAN_POISON_MEMORY_REGION(address, bytes)   ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

struct hole {
	struct hole *next;
};

/* Begins at a multiple of its size, so that an object's address tells its block. */
struct slab_block {
	struct slab_block *next, **link; /* among those with room; link NULL = it is full */
	struct hole *holes;              /* given back */
	size_t used;                     /* objects taken */
	size_t fresh_bytes;              /* from here on nothing was ever taken */
};

#define HEAD_BYTES ((sizeof(struct slab_block) + 63) / 64 * 64)

static size_t
block_bytes(const struct slab *slab)
{
	return slab->is_large ? SLAB_LARGE_BYTES : SLAB_BLOCK_BYTES;
}

static size_t
slot_bytes(const struct slab *slab)
{
	return (slab->object_bytes + 15) / 16 * 16;
}

/* Twice as much is mapped, and what stands before and behind the aligned part is let go. */
static void *
map_aligned(size_t bytes)
{
	char *all =
		mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (all == MAP_FAILED)
		return NULL;
	size_t before = -(uintptr_t)all & (bytes - 1);
	if (before)
		munmap(all, before);
	munmap(all + before + bytes, bytes - before);
	return all + before;
}

static void
link_block(struct slab *slab, struct slab_block *block)
{
	block->next = slab->open;
	block->link = &slab->open;
	if (block->next)
		block->next->link = &block->next;
	slab->open = block;
}

static void
unlink_block(struct slab_block *block)
{
	*block->link = block->next;
	if (block->next)
		block->next->link = block->link;
	block->link = NULL;
}

static struct slab_block *
add_block(struct slab *slab)
{
	struct slab_block *block = map_aligned(block_bytes(slab));
	if (!block)
		return NULL;
	/* Without huge pages it is as good as any other memory. */
	if (slab->is_large)
		madvise(block, SLAB_LARGE_BYTES, MADV_HUGEPAGE);
	block->fresh_bytes = HEAD_BYTES;
	link_block(slab, block);
	return block;
}

void *
slab_take(struct slab *slab)
{
	struct slab_block *block = slab->open ? slab->open : add_block(slab);
	void *object;

	assert(slab->object_bytes && slab->object_bytes <= SLAB_OBJECT_MOST);
	if (!block)
		return NULL;
	if (block->holes) {
		object = block->holes;
		block->holes = block->holes->next;
	} else {
		object = (char *)block + block->fresh_bytes;
		block->fresh_bytes += slot_bytes(slab);
	}
	block->used++;
	if (!block->holes && block->fresh_bytes + slot_bytes(slab) > block_bytes(slab))
		unlink_block(block);
	ASAN_UNPOISON_MEMORY_REGION(object, slab->object_bytes);
	return memset(object, 0, slab->object_bytes);
}

void
slab_give(struct slab *slab, void *object)
{
	if (!object)
		return;
	size_t offset = (uintptr_t)object & (block_bytes(slab) - 1);
	struct slab_block *block = (struct slab_block *)((char *)object - offset);
	struct hole *hole = object;

	hole->next = block->holes;
	block->holes = hole;
	ASAN_POISON_MEMORY_REGION(hole + 1, slab->object_bytes - sizeof(*hole));
	if (!block->link)
		link_block(slab, block);
	if (--block->used)
		return;
	/* The last one stays, so that a single owner who comes and goes costs no system calls. */
	if (slab->open == block && !block->next)
		return;
	unlink_block(block);
	ASAN_UNPOISON_MEMORY_REGION(block, block_bytes(slab));
	munmap(block, block_bytes(slab));
}
