/*
 * limits_lock: the one lock of the tree, for the files limits*.c.
 */
#ifndef PENSTOCK_LIMITS_LOCK_H
#define PENSTOCK_LIMITS_LOCK_H

#include "limits_queue.h"
#include "limits_tree.h"

#include <pthread.h>
#include <stdatomic.h>

#define LIMITS_ROWS_A_LOCK 256 /* of the table, looked through for a key, or for what passed */

static inline void
limits_lock(struct limits *limits)
{
	pthread_mutex_lock(&limits->lock);
}

/* Frees the lock, having published when something is due. */
static inline void
limits_unlock(struct limits *limits)
{
	uint64_t due_ns = limits_queue_next_ns(&limits->queue);

	if (atomic_load_explicit(&limits->due_ns, memory_order_relaxed) != due_ns)
		atomic_store_explicit(&limits->due_ns, due_ns, memory_order_relaxed);
	pthread_mutex_unlock(&limits->lock);
}

#endif
