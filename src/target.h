/*
 * target: where a tunnel connects to. Keeps for each target what is known of it across connections
 * (failing, active), chooses the order, and dials: one attempt after the other until one connects.
 * Knows nothing of tunnels; an internal target is handed back to the dialler to be admitted.
 */
#ifndef PENSTOCK_TARGET_H
#define PENSTOCK_TARGET_H

#include "address.h"
#include "loop.h"
#include "resolver.h"
#include "tunnel_conf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TARGET_FAILED_S 10   /* a target that failed is tried last for so long */
#define TARGET_LEAST_MS 1000 /* the least time an attempt gets, if that much is left */
#define DIAL_RACE_MS    250  /* between the addresses of one host (RFC 8305 section 8) */
#define DIAL_RETRY_MS   20   /* between tries of a UNIX socket whose backlog is full */

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

/* What a dial is waiting for. */
enum dial_step { DIAL_CONNECTING, DIAL_RESOLVING };

/* One search for a connected target. Zero it before dial_start. */
struct dial;

struct dial_options {
	struct targets *targets;
	struct resolver *resolver; /* NULL is allowed if no target is a host name */
	/* Source address for connecting; NULL or family AF_UNSPEC: the kernel's choice. UNIX and internal
	 * targets ignore it; an address of the other family cannot be reached from it and fails. */
	const struct address *bind;
	/* For whom, if that chooses the target; NULL = nobody. */
	const struct socket_address *client;
	/* Where a connection would only come back to who dials: no attempt is made there. NULL = nowhere. */
	const struct address_list *own;
	/* NULL, or the only target to be tried, by its index. */
	const size_t *only;
	/* The daemon's own: it counts as none of the target's connections, and meets no cap. */
	bool is_own;
	/* Over all attempts, 0 = none. Each gets what is left / targets left, at least 1 s. */
	uint64_t timeout_ns;
	/* Silence before TCP keepalive probes, up to whole seconds; 0 = off. */
	uint64_t keepalive_ns;
	/* Sockets with a descriptor from this on are none of the dial's to use; 0 = it may use all. */
	int descriptors_below;

	/* Asked when the turn comes to an internal target: 0 = admitted, the dial is over and the target
	 * counts as connected; -1 = refused with *why, the next target is tried. `index` is its place in
	 * the list. May be called inside dial_start; may not cancel the dial. May be NULL if no
	 * target is internal. */
	int (*admit)(struct dial *dial, size_t index, struct failure *why);

	/* dial->step has changed; it begins with DIAL_CONNECTING. May be called inside dial_start; may not
	 * cancel the dial. NULL is allowed. */
	void (*on_step)(struct dial *dial);

	/* The target at dial->index failed, where it worked before, and why; or works again (NULL). Once for
	 * each such change, over all workers. May be called inside dial_start; may not cancel the dial. NULL is
	 * allowed. Not called for the daemon's own dials. */
	void (*on_change)(struct dial *dial, const struct failure *why);

	/* The dial has ended, exactly once, unless cancelled: connected (fd >= 0, now the callee's, non-
	 * blocking, close-on-exec, no event on it), admitted (fd < 0, why NULL) or failed (why: of the last
	 * attempt, with the target's name in it; kind FAILURE_TIMEOUT if time ran out). `why` is valid
	 * during the call. May be called inside dial_start; may free the dial. */
	void (*on_end)(struct dial *dial, int fd, const struct failure *why);
};

struct dial {
	/* For the owner to read: */
	enum dial_step step;
	size_t index; /* the target being tried or connected */
	struct socket_address
		connected; /* the peer's address once connected (AF_UNIX: family only) */
	/* Connected, but reset by the peer before we looked: what it sent is still readable, yet the end of
	 * stream behind it is a reset (asking the kernel for the error has taken it away). */
	bool reset;
	/* The rest is target.c's. */
	struct loop *loop;
	const struct dial_options *options; /* borrowed until the end */
	struct dial_state *state;           /* NULL = not under way */
};

/* Starts. Returns with the dial under way or over (on_end has been called). Loop's thread.
 *
 * Every target failing, or having as many connections as it may (FAILURE_ADMISSION), the dial fails. A target that refuses or cannot be reached is left at once; all
 * addresses of a host are raced. Without descriptors or memory the dial fails at once and the target
 * is not blamed. A literal target costs socket, setsockopt, connect and one epoll_ctl, and a getsockopt only if
 * the wake-up could mean an error (or the peer spoke first); a getsockname if its port is in the
 * kernel's ephemeral range, since a connect to a closed port of our own host may then meet itself. */
void dial_start(struct dial *dial, struct loop *loop, const struct dial_options *options);

/* Gives up: nothing is called any more, attempts under way are closed. A dial that has ended, or was
 * never started, is left alone. Loop's thread. */
void dial_cancel(struct dial *dial);

/* The connection to target `index` of the list has ended: once for each dial that ended connected or
 * admitted and was not the daemon's own. Any thread. */
void targets_disconnected(struct targets *targets, size_t index);

/* A human name of the target at `index`: as written. Valid while targets are held. */
const char *targets_name(const struct targets *targets, size_t index);

/* What the checks of a target say. */
enum target_health { TARGET_UNCHECKED, TARGET_WORKS, TARGET_FAILS };
enum target_health targets_health(const struct targets *targets, size_t index); /* any thread */

/* A check of the target at `index` has found that it works or not. Counts towards `rise` or `fall` in a row; the
 * first of all decides at once. Returns whether its health has changed. One thread for each target. */
bool targets_checked(struct targets *targets, size_t index, bool works, uint64_t rise,
		     uint64_t fall);

/* It is not checked any more. */
void targets_unchecked(struct targets *targets, size_t index);

/* Until when the target at `index` is tried last, since it failed; 0 = it did not, or that is over. Any
 * thread. */
uint64_t targets_failed_until(const struct targets *targets, size_t index, uint64_t now_ns);

/* Connections and attempts under way of the target at `index`, by all its lists. Any thread. */
unsigned int targets_active(const struct targets *targets, size_t index);

#endif
