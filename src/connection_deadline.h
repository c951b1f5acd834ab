/*
 * connection_deadline: when a connection has taken too long, by what its tunnel's timeouts say of the state it
 * is in, and the one timer it has for that.
 */
#ifndef PENSTOCK_CONNECTION_DEADLINE_H
#define PENSTOCK_CONNECTION_DEADLINE_H

#include "connection.h"

/* The handshakes of a side's filters begin: they have their own time, in which waiting for limits does not count. */
void connection_deadline_begin_handshake(struct connection *connection);

/* The lifetime that its tunnel says, counted from the connection's begin; or, while the daemon stops, the end of
 * the drain, if that comes first. */
void connection_deadline_set_lifetime(struct connection *connection);
/* The daemon stops: it may go on for drain_ns; 0 = as long as it likes. */
void connection_deadline_drain(struct connection *connection, uint64_t drain_ns);

/* Sets the timer for what the connection waits for now, if it has to be sooner than it is. */
void connection_deadline_set(struct connection *connection, uint64_t now_ns);
/* Whether something has changed since that the deadlines hang on. */
bool connection_deadline_has_changed(const struct connection *connection);
/* Sets it for `due_ns`, whatever the deadlines are. */
void connection_deadline_arm(struct connection *connection, uint64_t due_ns, uint64_t now_ns);

/* Whether it is to be ended; the failure names the timeout. */
bool connection_deadline_has_passed(const struct connection *connection, uint64_t now_ns,
				    struct failure *why);

/* Whether it shakes hands and has kept us waiting or waited for a limit, over all and up to the last account, for a
 * second: it is not to keep others out any longer. */
bool connection_deadline_is_stalled(const struct connection *connection);

/* Whether some peer is not being read or does not read: the kernel tells nothing then, so we look. */
bool connection_deadline_is_slow(const struct connection *connection);
/* A byte that the peer's kernel took out of ours is progress, though we see no event for it; and what
 * moves in the connection behind a pair is progress of this one. `from` is where the asker is, if one is:
 * a chain of internal hops is asked link by link, away from him. */
void connection_deadline_look(struct connection *connection, const struct connection *from,
			      uint64_t now_ns);

#endif
