/*
 * endpoint: where a side's bytes enter and leave. Two kinds: a socket (endpoint.c) and one end of an
 * in-process pair (pair.c). An endpoint moves bytes and tells what happened; what to do about it is
 * the owner's. It lives on one loop and is owned by one connection or service.
 */
#ifndef PENSTOCK_ENDPOINT_H
#define PENSTOCK_ENDPOINT_H

#include "failure.h"
#include "loop.h"

#include <event2/event_struct.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct endpoint;

/* What a flow is waiting for; exactly one at any time (design section 4). */
enum wait {
	WAIT_MOVING, /* nothing: it moves */
	WAIT_CHOICE, /* choice of tunnel */
	WAIT_RESOLVER,
	WAIT_CONNECT,
	WAIT_HANDSHAKE, /* a filter's */
	WAIT_NEAR_READABLE,
	WAIT_NEAR_WRITABLE,
	WAIT_FAR_READABLE,
	WAIT_FAR_WRITABLE,
	WAIT_LIMIT,
	WAIT_TURN, /* the worker's turn */
	WAITS
};

/* What an owner's flow waits for at present, published for whoever is behind a pair. */
struct waiting {
	enum wait cause;
	const char *limit; /* WAIT_LIMIT: its name; valid while the owner waits */
};

enum endpoint_result {
	ENDPOINT_MOVED, /* at least one byte moved */
	ENDPOINT_WAIT,  /* nothing can move now; on_ready is called when that may have changed */
	ENDPOINT_END,   /* read only: the peer ended its flow in order; nothing follows */
	ENDPOINT_BROKEN /* read: the peer is gone, *why says how. write: nothing will ever be taken */
};

struct endpoint_kind {
	const char *name;

	/* Appends at most `most` (> 0) bytes to dst; *moved says how many. Clears `readable` when the
	 * source is known to be dry; a socket whose end is there already stays readable until that was
	 * read. After END or BROKEN it is not called again. */
	enum endpoint_result (*read)(struct endpoint *endpoint, struct evbuffer *dst, size_t most,
				     size_t *moved, struct failure *why);

	/* Takes at most `most` bytes from the front of src (not empty). Clears `writable` when no more is
	 * taken. After BROKEN, read still delivers what the peer sent before. */
	enum endpoint_result (*write)(struct endpoint *endpoint, struct evbuffer *src, size_t most,
				      size_t *moved, struct failure *why);

	/* Obeys `want_readable` and `want_writable` after the owner changed them: from then on on_ready is
	 * called when the endpoint becomes (or already is) what is wanted. */
	int (*watch)(struct endpoint *endpoint, struct failure *why);

	/* Ends our flow towards the peer in order, after all that was written. At most once. */
	void (*shutdown)(struct endpoint *endpoint);

	/* Bytes written that the peer has not taken yet, as far as can be known. */
	size_t (*unsent)(const struct endpoint *endpoint);

	/* Whether the peer of an endpoint that is not being read has reset: for the look, every few
	 * seconds, at paused connections. BROKEN: gone, its flow was cut. END: it takes nothing any more,
	 * but its own flow ended in order and stays readable. WAIT: neither. May cost system calls. */
	enum endpoint_result (*probe)(struct endpoint *endpoint, struct failure *why);

	/* What a flow that waits for this endpoint to be readable or writable really waits for: `own`, or
	 * what the partner's owner waits for behind a pair, over any number of hops. NULL = `own`. */
	struct waiting (*blame)(const struct endpoint *endpoint, struct waiting own);

	/* Releases everything; the peer sees an orderly end (close) or a reset (abort). The endpoint's
	 * memory is the owner's. on_ready is not called any more, not even from inside this. */
	void (*close)(struct endpoint *endpoint);
	void (*abort)(struct endpoint *endpoint);
};

struct endpoint {
	const struct endpoint_kind *kind; /* NULL = closed or never opened */
	struct loop *loop;
	void (*on_ready)(
		struct endpoint *endpoint); /* never called from inside a call of the owner's */
	void *owner;
	bool readable, writable;           /* worth trying */
	bool want_readable, want_writable; /* set by the owner, then watch */
	bool is_last; /* set by the owner: shutdown or close follows the write of all that there is, which
		       * may therefore wait for it and share its segment */

	union {
		struct socket_endpoint {
			int fd;
			bool armed_readable, armed_writable;
			bool reset_seen; /* somebody met the reset: a later end of stream is none */
			bool end_is_due; /* the peer's FIN is there, behind what can be read */
			bool muffled; /* a splice may have met it without a word: see after_read */
			bool nodelay; /* TCP_NODELAY is on */
			bool written; /* at least once: NODELAY is set before the second write */
			uint32_t read_bytes;       /* so far, modulo 2^32 */
			struct event *write_event; /* made when the first write blocks */
			struct event read_event;
		} socket;
		struct pair_endpoint {
			struct bufferevent *bev;
			struct endpoint *partner; /* NULL = it was closed or aborted */
			size_t need_bytes;        /* the room that makes it writable again */
			bool ended, reset;        /* what follows the bytes still to be read */
			struct task ready;        /* calls on_ready */

			/* The owner's, for whoever asks the partner what it waits for (blame): what its
			 * flows wait for, up and down, and its other endpoint. NULL = not told. */
			const struct waiting *waiting[2];
			const struct endpoint *across;
		} pair;
	};
};

/* Opens a socket endpoint over a connected non-blocking stream socket. `nodelay` says that TCP_NODELAY
 * is already set or has no meaning. Takes the descriptor; cannot fail. */
void endpoint_open_socket(struct endpoint *endpoint, struct loop *loop, int fd, bool nodelay);

/* Whether bytes may take the short ways below. */
bool endpoint_is_socket(const struct endpoint *endpoint);

/* The same as read and write, from and to plain memory. Sockets only. */
enum endpoint_result endpoint_receive(struct endpoint *endpoint, void *to, size_t most,
				      size_t *moved, struct failure *why);
enum endpoint_result endpoint_send(struct endpoint *endpoint, const void *from, size_t bytes,
				   size_t *moved, struct failure *why);

/* receive in two halves: `peek` leaves the bytes in the kernel, `skip` then drops the first `bytes` of
 * them (scratch: as large as that). For when there is no memory to keep what cannot be passed on. */
enum endpoint_result endpoint_peek(struct endpoint *endpoint, void *to, size_t most, size_t *seen,
				   struct failure *why);
void endpoint_skip(struct endpoint *endpoint, void *scratch, size_t bytes);

/* Whether the end is the next thing that would be read. Asks the kernel only where a short read left the
 * endpoint readable. After true the endpoint need not be read any more. */
bool endpoint_is_at_end(struct endpoint *endpoint);

/* Moves at most `most` bytes between a socket and a pipe in the kernel; held_bytes follows. A splice that is not
 * supported gives ENDPOINT_WAIT with *moved 0 and `readable` still set. */
enum endpoint_result endpoint_splice_in(struct endpoint *endpoint, struct pipe *pipe, size_t most,
					size_t *moved, struct failure *why);
enum endpoint_result endpoint_splice_out(struct endpoint *endpoint, struct pipe *pipe, size_t most,
					 size_t *moved, struct failure *why);

/* The bytes of a TCP segment without its headers, as the kernel sends them now; 0 for all other kinds of
 * endpoint. A system call. */
size_t endpoint_segment(const struct endpoint *endpoint);

/* Closes both in order, as their kinds would; a pair of sockets with neighbouring descriptors, which
 * is what an accept and the connect after it most often get, costs one system call. */
void endpoint_close_both(struct endpoint *a, struct endpoint *b);

/* Refuses a socket nobody wants: the peer sees a reset. For descriptors that are no endpoint yet. */
void endpoint_reset_socket(int fd);

#endif
