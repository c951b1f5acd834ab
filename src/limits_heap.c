#include "limits_heap.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

#define ARITY 4

static bool
is_before(uint64_t a, uint64_t b)
{
	return (int64_t)(a - b) < 0;
}

static void
place(struct limits_heap *heap, uint32_t index, struct limits_heap_entry entry)
{
	heap->at[index] = entry;
	*entry.slot = index + 1;
}

static void
sift_up(struct limits_heap *heap, uint32_t index, struct limits_heap_entry entry)
{
	while (index) {
		uint32_t above = (index - 1) / ARITY;
		if (!is_before(entry.key, heap->at[above].key))
			break;
		place(heap, index, heap->at[above]);
		index = above;
	}
	place(heap, index, entry);
}

/* The first of the entries below `index`; `count` if there is none. */
static uint32_t
first_below(const struct limits_heap *heap, uint32_t index)
{
	uint64_t begin = (uint64_t)index * ARITY + 1;
	if (begin >= heap->count)
		return heap->count;
	uint32_t first = (uint32_t)begin;
	uint32_t end = heap->count - first < ARITY ? heap->count : first + ARITY;
	for (uint32_t i = first + 1; i < end; i++)
		if (is_before(heap->at[i].key, heap->at[first].key))
			first = i;
	return first;
}

static void
sift_down(struct limits_heap *heap, uint32_t index, struct limits_heap_entry entry)
{
	uint32_t below;

	while ((below = first_below(heap, index)) < heap->count) {
		if (!is_before(heap->at[below].key, entry.key))
			break;
		place(heap, index, heap->at[below]);
		index = below;
	}
	place(heap, index, entry);
}

static void
settle(struct limits_heap *heap, uint32_t index, struct limits_heap_entry entry)
{
	if (index && is_before(entry.key, heap->at[(index - 1) / ARITY].key))
		sift_up(heap, index, entry);
	else
		sift_down(heap, index, entry);
}

int
limits_heap_reserve(struct limits_heap *heap, uint32_t objects)
{
	bool was_one = heap->at == &heap->one;
	uint64_t room;

	if (objects == 1 && !heap->room) {
		heap->at = &heap->one;
		heap->room = 1;
		return 0;
	}
	if (objects > heap->room)
		room = objects + (uint64_t)objects / 2;
	else if (objects < heap->room / 4)
		room = (uint64_t)objects * 2;
	else
		return 0;
	if (room > UINT32_MAX)
		return -1;
	if (!room) {
		limits_heap_release(heap);
		return 0;
	}
	struct limits_heap_entry *at = realloc(was_one ? NULL : heap->at, room * sizeof(*at));
	if (!at)
		return objects > heap->room ? -1 : 0;
	if (was_one)
		*at = heap->one;
	heap->at = at;
	heap->room = (uint32_t)room;
	return 0;
}

void
limits_heap_push(struct limits_heap *heap, uint64_t key, uint32_t *slot)
{
	assert(!*slot && heap->count < heap->room);
	heap->count++;
	sift_up(heap, heap->count - 1, (struct limits_heap_entry){ key, slot });
}

void
limits_heap_remove(struct limits_heap *heap, uint32_t *slot)
{
	assert(*slot && *slot <= heap->count);
	uint32_t index = *slot - 1;
	struct limits_heap_entry last = heap->at[--heap->count];
	if (index < heap->count)
		settle(heap, index, last);
	*slot = 0;
}

void
limits_heap_rekey(struct limits_heap *heap, uint32_t *slot, uint64_t key)
{
	assert(*slot && *slot <= heap->count);
	settle(heap, *slot - 1, (struct limits_heap_entry){ key, slot });
}

void
limits_heap_release(struct limits_heap *heap)
{
	if (heap->at != &heap->one)
		free(heap->at);
	*heap = (struct limits_heap){ 0 };
}
