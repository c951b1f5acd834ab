/*
 * dial: connects to one of a tunnel's targets (target.h): one attempt after the other until one connects,
 * the addresses of a host in a race. Knows nothing of tunnels; an internal target is handed back to who
 * dials, to be admitted.
 */
#ifndef PENSTOCK_DIAL_H
#define PENSTOCK_DIAL_H

#include "address.h"
#include "loop.h"
#include "resolver.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIAL_LEAST_MS 1000 /* the least time a target gets, if that much is left */
#define DIAL_RACE_MS  250  /* between the addresses of one host (RFC 8305 section 8) */
#define DIAL_RETRY_MS 20   /* between tries of a UNIX socket whose backlog is full */

struct targets; /* target.h */

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
	/* The rest is dial.c's. */
	struct loop *loop;
	const struct dial_options *options; /* borrowed until the end */
	struct dial_state *state;           /* NULL = not under way */
};

/* Starts. Returns with the dial under way or over (on_end has been called). Loop's thread.
 *
 * Every target failing, or having as many connections as it may (FAILURE_ADMISSION), the dial fails. A target
 * that refuses or cannot be reached is left at once; all addresses of a host are raced. Without descriptors or
 * memory the dial fails at once and the target is not blamed. A literal target costs socket, setsockopt, connect
 * and one epoll_ctl, and a getsockopt only if the wake-up could mean an error (or the peer spoke first); a
 * getsockname if its port is in the kernel's ephemeral range, since a connect to a closed port of our own host
 * may then meet itself. */
void dial_start(struct dial *dial, struct loop *loop, const struct dial_options *options);

/* Gives up: nothing is called any more, attempts under way are closed. A dial that has ended, or was
 * never started, is left alone. Loop's thread. */
void dial_cancel(struct dial *dial);

#endif
