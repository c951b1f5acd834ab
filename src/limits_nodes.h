/*
 * limits_nodes: the nodes of all limits by key: found or made at first use, kept without users until they
 * are full again, changed in slices. All under the lock.
 */
#ifndef PENSTOCK_LIMITS_NODES_H
#define PENSTOCK_LIMITS_NODES_H

#include "limits_key.h"
#include "limits_tree.h"

/* A zeroed tree is ready for nodes. */
void limits_nodes_open(struct limits *limits);

/* The limit's node below `parent` (NULL = a root) with that key, with one more user. NULL without memory
 * or at the cap. */
struct limit_node *limits_nodes_find(struct limit *limit, struct limit_node *parent,
				     const struct limits_key *key, uint64_t now_ns,
				     struct failure *why);

/* One user more of a node that is there. */
void limits_nodes_hold(struct limit_node *node, uint64_t now_ns);

/* One user less. Without any the node waits until it is full, or goes at once if it is, or if its key
 * cannot come again. That may free the limit, and nodes above. */
void limits_nodes_release(struct limit_node *node, uint64_t now_ns);

/* The time of a node without users has come: `bucket` is what limits_queue_due returned. */
void limits_nodes_expire(struct limit_bucket *bucket, uint64_t now_ns);

/* Gives up to `most` nodes of the limit its values. Whether there may be more. */
bool limits_nodes_update(struct limit *limit, unsigned int most, uint64_t now_ns);

/* Frees up to `most` nodes without users. Whether there may be more; if not, the limit may be gone. */
bool limits_nodes_forget(struct limit *limit, unsigned int most, uint64_t now_ns);

/* The limit has one user less; without any it is freed. */
void limits_nodes_drop_limit(struct limit *limit);

#endif
