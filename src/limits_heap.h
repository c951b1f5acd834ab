/*
 * limits_heap: a 4-ary heap of keys that may wrap. What stands in it keeps its own slot, so that it can
 * be removed or given another key without a search. Room is made beforehand: nothing else can fail.
 */
#ifndef PENSTOCK_LIMITS_HEAP_H
#define PENSTOCK_LIMITS_HEAP_H

#include <stdint.h>

struct limits_heap_entry {
	uint64_t key;   /* a is before b if (int64_t)(a - b) < 0 */
	uint32_t *slot; /* in the object: its place + 1, 0 = not in the heap */
};

/* Not to be moved while it has room. */
struct limits_heap {
	struct limits_heap_entry *at; /* owned, or `one` */
	uint32_t count, room;
	struct limits_heap_entry
		one; /* room for one object costs no memory of its own, nor a look there */
};

/* Makes room for so many objects in all, or gives back room for many more. -1 without memory. */
int limits_heap_reserve(struct limits_heap *heap, uint32_t objects);

/* O(log count) each. The object must not be in the heap; must be; must be. */
void limits_heap_push(struct limits_heap *heap, uint64_t key, uint32_t *slot);
void limits_heap_remove(struct limits_heap *heap, uint32_t *slot);
void limits_heap_rekey(struct limits_heap *heap, uint32_t *slot, uint64_t key);

/* Frees the array; what stands in it is not touched. */
void limits_heap_release(struct limits_heap *heap);

#endif
