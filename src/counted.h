/*
 * counted: shared ownership across threads. Embed it first; the last release discards the object.
 */
#ifndef PENSTOCK_COUNTED_H
#define PENSTOCK_COUNTED_H

#include <stdatomic.h>

struct counted {
	atomic_uint users;
	void (*discard)(
		struct counted *counted); /* frees the whole object; on the last user's thread */
};

static inline void
counted_init(struct counted *counted, void (*discard)(struct counted *))
{
	atomic_init(&counted->users, 1);
	counted->discard = discard;
}

static inline void
counted_hold(struct counted *counted)
{
	atomic_fetch_add_explicit(&counted->users, 1, memory_order_relaxed);
}

static inline void
counted_release(struct counted *counted)
{
	if (atomic_fetch_sub_explicit(&counted->users, 1, memory_order_acq_rel) == 1)
		counted->discard(counted);
}

#endif
