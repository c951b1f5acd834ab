/*
 * sockets: what the clients and the targets do with sockets alike. Whatever fails here ends the
 * program: a bench has nobody to recover for.
 */
#ifndef PENSTOCK_BENCH_SOCKETS_H
#define PENSTOCK_BENCH_SOCKETS_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define NS_PER_S UINT64_C(1000000000)
/* Of one bulk read or write; for writes tried from 64 KiB up, with sendfile too: the cheapest here. */
#define SOCKETS_BLOCK_BYTES ((size_t)1 << 20)
#define SOCKETS_MARK_BYTES  8 /* the count with which a bulk stream is confirmed */

/* One line on standard error, with errno's text when errno is not 0; status 2. */
_Noreturn void sockets_die(const char *what);

/* CLOCK_MONOTONIC. */
uint64_t sockets_now_ns(void);

/* An epoll instance, and a descriptor added to it; `context` comes back in data.ptr. */
int sockets_epoll(void);
void sockets_watch(int epoll, int fd, uint32_t events, void *context);
void sockets_rewatch(int epoll, int fd, uint32_t events, void *context);

/* A listener on 127.0.0.1 and a port the kernel chose; accepted sockets inherit TCP_NODELAY. */
int sockets_listen(uint16_t *port);

/* Accepted sockets inherit that the kernel keeps 32 KiB to be sent, never more, in segments of an Ethernet. */
void sockets_small_sender(int listener);

/* An established, non-blocking connection. */
int sockets_connect(const struct sockaddr_in *to);

/* The same for one that will not read: with a small window and the segments of an Ethernet, so that
   hundreds of them do not fill the kernel's memory for TCP. */
int sockets_connect_narrow(const struct sockaddr_in *to);

/* A connection under way, non-blocking; -1 with errno when it was refused at once. */
int sockets_start_connect(const struct sockaddr_in *to);

/* Sends a message and waits for its echo. */
void sockets_exchange(int fd);

/* Sends up to block_bytes (≤ SOCKETS_BLOCK_BYTES) of filler. Returns as send(2). */
ssize_t sockets_send_filler(int fd, size_t block_bytes);

/* Reads and drops, uncopied, up to SOCKETS_BLOCK_BYTES. Returns as recv(2). */
ssize_t sockets_drop(int fd);

/* The count as SOCKETS_MARK_BYTES on the wire, and back. */
void sockets_mark_store(unsigned char *wire, uint64_t count);
uint64_t sockets_mark_load(const unsigned char *wire);

#endif
