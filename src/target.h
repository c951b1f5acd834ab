/*
 * target: where a tunnel may connect to. Keeps for each target what is known of it across connections
 * (failing, active, checked), and chooses which is tried next. Knows nothing of sockets, and of time only
 * what it is told: who connects says what came of it.
 */
#ifndef PENSTOCK_TARGET_H
#define PENSTOCK_TARGET_H

#include "address.h"
#include "tunnel_conf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TARGET_FAILED_S 10 /* a target that failed is tried last for so long */

struct targets; /* one tunnel's list: shared by all workers, counted, outlives generations */

/* How the targets of a list are chosen. All is copied. */
struct targets_options {
	enum balance balance;
	const struct address_list *backup; /* tried when no other works or has room; NULL = none */
	const struct count_list *weights;  /* of `connect`; NULL or shorter: the others have 1 */
	uint64_t most;                     /* connections of each at once; 0 = no cap */
};

/* Makes the list: `connect`, then the backups. What is known of an address that stands in `previous` too
 * (may be NULL), by its text, is shared with it. The addresses are copied. Owned by the caller. */
struct targets *targets_configure(const struct address_list *connect,
				  const struct targets_options *options,
				  const struct targets *previous, struct failure *why);
void targets_hold(struct targets *targets);
void targets_release(struct targets *targets); /* NULL is allowed */

size_t targets_count(const struct targets *targets);

/* As it was configured. Valid while targets are held. */
const struct address *targets_address(const struct targets *targets, size_t index);

/* A human name of the target at `index`: as written. Valid while targets are held. */
const char *targets_name(const struct targets *targets, size_t index);

/* What the checks of a target say. */
enum target_health { TARGET_UNCHECKED, TARGET_WORKS, TARGET_FAILS };
enum target_health targets_health(const struct targets *targets, size_t index); /* any thread */

/* A check of the target at `index` has found that it works or not. Counts towards `rise` or `fall` in a row; the
 * first of all decides at once. Returns whether its health has changed. One thread for each target. */
bool targets_checked(struct targets *targets, size_t index, bool works, uint64_t rise,
		     uint64_t fall);

/* It is not checked any more: comes after the last targets_checked. Any thread. */
void targets_unchecked(struct targets *targets, size_t index);

/* Until when the target at `index` is tried last, since it failed; 0 = it did not, or that is over. Any
 * thread. */
uint64_t targets_failed_until(const struct targets *targets, size_t index, uint64_t now_ns);

/* Connections and attempts under way of the target at `index`, by all its lists. Any thread. */
unsigned int targets_active(const struct targets *targets, size_t index);

/* --- for who connects: one target after the other ----------------------------------------------- */

/* One search for a target that works. Zero it, but for `tried`, before targets_search. */
struct targets_search {
	bool *tried;       /* the caller's: as many as there are targets, all false at first */
	size_t untried;    /* how many may be chosen yet; for the caller to read */
	unsigned int turn; /* in the rotation */
	uint64_t client;   /* a digest of who it is for */
};

/* Begins, and takes a turn in the rotation. `client`: for whom, if that chooses the target; NULL = nobody.
 * `only`: NULL, or the only target to be tried, by its index. Any thread. */
void targets_search(struct targets *targets, struct targets_search *search,
		    const struct socket_address *client, const size_t *only);

/* The best that has not been chosen by this search; there must be one. O(weights). Any thread. */
size_t targets_choose(const struct targets *targets, struct targets_search *search,
		      uint64_t now_ns);

/* Counts one more connection of the target at `index`, unless it has as many as it may (FAILURE_ADMISSION). Any
 * thread. */
int targets_take(struct targets *targets, size_t index, struct failure *why);

/* Takes that back: the connection has ended, or did not come about. Any thread. */
void targets_disconnected(struct targets *targets, size_t index);

/* What connecting to the target at `index` has come to: it failed, and is tried last for a while; or it works.
 * Returns whether that is a change, once for each over all workers; never for the daemon's own connects, which
 * say nothing of the clients'. Any thread. */
bool targets_failed(struct targets *targets, size_t index, bool is_own, uint64_t now_ns);
bool targets_worked(struct targets *targets, size_t index, bool is_own);

#endif
