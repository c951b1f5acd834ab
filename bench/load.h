/*
 * load: the bench's load generator and its targets in one program. It measures what it sees from
 * outside and knows nothing of any proxy; bench/run starts both, and reads what the proxy used.
 * Every command checks what arrived: a wrong byte count ends the program, so that no number is
 * ever printed for a proxy that lost something.
 */
#ifndef PENSTOCK_BENCH_LOAD_H
#define PENSTOCK_BENCH_LOAD_H

#include "histogram.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MESSAGE_BYTES 64 /* of one ping, one request, one answer */

struct options {
	struct sockaddr_in to;
	unsigned int connections;
	uint64_t count;          /* pings or short connections in all */
	uint64_t bytes;          /* bulk stops after so many … */
	size_t block_bytes;      /* up: of one write */
	uint64_t duration_ns;    /* … or so long; whichever comes first. The same for count */
	uint64_t settle_ns;      /* watch: not yet counted */
	double rate;             /* watch: bytes a second that are to be had */
	bool narrow;             /* hold: small windows, for flows that shall stand still */
	bool speak;              /* hold: one ping on each connection before falling silent */
	bool tls, tls12, resume; /* inside TLS 1.3, or 1.2; sessions are resumed */
	bool gate; /* ping: wait for standard input before the first and after the last */
};

struct bulk_result {
	uint64_t bytes; /* delivered, both ends agreeing */
	uint64_t elapsed_ns;
};

struct exchange_result {
	uint64_t count;
	uint64_t failed;  /* short: refused, reset, or closed before the whole answer */
	uint64_t resumed; /* TLS: sessions */
	uint64_t elapsed_ns;
	struct histogram latency_ns;
};

struct watch_result {
	double worst_bytes; /* the most in any window beyond its length times the rate */
	/* Since all had settled: */
	uint64_t settled_bytes;
	double rate;
	double jain;              /* of what each connection got */
	struct histogram wait_ns; /* of a connection for its next bytes */
};

/* All of these end the program (status 2, one line on standard error) when something goes wrong. */

/* The targets, each on a port of its own, named in one line of JSON. Returns when input_fd ends. */
void serve_run(int input_fd, int output_fd);

/* Bytes as fast as they go, through connections to a sink (up) or from a source (down). */
void bulk_up(const struct options *options, struct bulk_result *result);
void bulk_down(const struct options *options, struct bulk_result *result);

/* Bytes from a source that something holds back: how much came when, and to whom. What came is not compared
   with what was sent: that is left unread at the end. Says "settled" and "done" when it was. */
void watch_run(const struct options *options, struct watch_result *result);

/* Each connection sends a message, waits for its echo, and sends the next. */
void ping_run(const struct options *options, struct exchange_result *result);

/* Connect, send a message, read the answer and the end, close; `connections` of them at a time. */
void short_run(const struct options *options, struct exchange_result *result);

/* Opens the connections and keeps them, silent and unread, until standard input ends. */
void hold_run(const struct options *options);

/* The same inside TLS, unverified; up goes to the intake. bytes must be given for bulk. */
void tls_up(const struct options *options, struct bulk_result *result);
void tls_down(const struct options *options, struct bulk_result *result);
void tls_ping(const struct options *options, struct exchange_result *result);
void tls_short(const struct options *options, struct exchange_result *result);
void tls_hold(const struct options *options);

/* Runs the commands against our own targets and checks what they count. Returns only if all is well. */
void selftest_run(void);

#endif
