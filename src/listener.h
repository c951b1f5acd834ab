/*
 * listener: listening sockets and what comes in by them. A listener is one configured address; the
 * control thread opens and closes it. An acceptor is one worker's share of it: TCP listeners have a
 * socket for each worker (SO_REUSEPORT), UNIX and inherited ones a single one, on worker 0.
 */
#ifndef PENSTOCK_LISTENER_H
#define PENSTOCK_LISTENER_H

#include "facts.h"
#include "loop.h"
#include "tunnel_conf.h"

#include <stdbool.h>

struct listener {
	struct listener *next;
	char *key;                      /* what makes it the same one in the next generation */
	char *text;                     /* the address as configured */
	struct socket_address bound;    /* TCP: with the real port */
	const struct tunnel_conf *conf; /* whose connections it brings, under its generation */
	unsigned int socket_count;
	bool is_tcp;
	char *path; /* of a UNIX socket's file, removed at close if it is still ours */
	uint64_t path_device, path_inode;
	bool is_inherited; /* a socket unit's: never stored, its file never removed */
	bool is_stored;    /* systemd keeps duplicates over a restart */
	int sockets
		[]; /* one for each worker or more, or one; -1 = handed to an acceptor or not open */
};

/* Opens the address for `workers` workers: bound and listening, nobody accepts yet. A socket that a
 * socket unit has opened for that address, or that systemd kept of the last run, is used instead of a
 * new one; of systemd:NAME it is the one numbered `index`. An address that some other process listens
 * on is refused, though SO_REUSEPORT would share it; `is_beside`: the port is held by a listener of ours
 * that overlaps, so that this cannot be found out. Refused is a UNIX socket's file, too, if somebody listens
 * there, while a stale one is replaced. Control thread. */
struct listener *listener_open(const char *key, const struct address *address, unsigned int index,
			       const struct tunnel_conf *conf, unsigned int workers, bool is_beside,
			       struct failure *why);

/* Whether it holds the port of `address` at every address of the machine, or at one where `address` means
 * every one: the kernel lets us have both, and a client gets to the exact one. */
bool listener_overlaps(const struct listener *listener, const struct address *address);

/* Has systemd keep the sockets over a restart, if it keeps any; before acceptors take them. From then on
 * a UNIX socket's file stays when the listener is closed. */
void listener_store(struct listener *listener);

/* Undoes listener_store, for a listener that the configuration has no more. Returns whether there was
 * something to undo: until systemd_settle, clients may still enter a queue that nobody serves. */
bool listener_forget(struct listener *listener);

/* Whether its file is gone or has become somebody else's, so that no client gets here any more. */
bool listener_is_lost(const struct listener *listener);

/* Gives an open listener to the tunnel that its address belongs to now. */
void listener_adopt(struct listener *listener, const struct tunnel_conf *conf);

/* Closes the sockets that no acceptor has taken, removes a UNIX socket's file, frees. NULL is allowed. */
void listener_close(struct listener *listener);

/* "127.0.0.1:6380" with the real port, "unix:/path". */
const char *listener_text(const struct listener *listener, char text[SOCKET_ADDRESS_TEXT]);

struct acceptor;

/* In the order in which they wait. */
struct acceptor_queue {
	struct acceptor *first, **end;
};

/* What the acceptors of one worker share. Zero it, set the first group, then door_open. */
struct door {
	struct loop *loop;
	unsigned int worker, workers;
	/* Where admitted connections go: takes descriptor and admission (see tunnel_accept). */
	void (*place)(struct door *door, const struct tunnel_conf *conf, int fd,
		      const struct facts *facts);
	/* Whether one more may come that shakes hands (tunnel_conf.shakes_hands). While not, those who would
	 * bring one are held: clients wait in the kernel until door_go_on. */
	bool (*has_room)(struct door *door);
	void (*on_held)(struct door *door); /* the first of them is held */
	void (*on_free)(struct door *door); /* the last of them is held no more */
	bool logged;                        /* refusals, too, are lines of the connection log */

	struct acceptor *first;
	struct acceptor_queue held;
	struct task go_on;   /* queued while held ones may accept */
	struct event *pause; /* runs while descriptors are short */
	uint64_t pause_ns;   /* how long the next pause is */
	int spare;           /* a descriptor to refuse waiting clients with; -1 = none */
};

int door_open(struct door *door, struct failure *why);
/* Closes all acceptors; what waits in their queues is reset. */
void door_close(struct door *door);

/* There may be room again. In a later turn those who are held accept, one connection each in turn. */
void door_go_on(struct door *door);

/* Begins to accept what comes by the worker's socket of `listener`, or changes the configuration under
 * which it is accepted. Nothing if the worker has no socket of it. The worker's thread. */
int door_serve(struct door *door, struct listener *listener, const struct tunnel_conf *conf,
	       struct failure *why);

/* Stops the acceptors that door_serve was not called for since door_begin: what is in their queues is
 * still accepted first, room or not, since closing would reset it. */
void door_begin(struct door *door);
void door_finish(struct door *door);
/* Stops them all in the same way, but those of tunnels for which `stays` is true. */
void door_shut(struct door *door, bool (*stays)(const struct tunnel_conf *conf));

#endif
