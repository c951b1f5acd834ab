/*
 * endpoint_tcp: what the kernel knows of a socket endpoint's TCP connection, for people who ask why it is slow.
 */
#ifndef PENSTOCK_ENDPOINT_TCP_H
#define PENSTOCK_ENDPOINT_TCP_H

#include "endpoint.h"

struct endpoint_tcp {
	uint32_t rtt_us, rtt_variance_us;
	uint32_t window_segments; /* congestion window */
	uint32_t segment_bytes;
	uint32_t unacknowledged;       /* segments on their way */
	uint32_t retransmits;          /* segments sent again, in all */
	uint32_t peer_window_bytes;    /* what the peer takes now; 0 may mean an old kernel */
	uint32_t unsent_bytes;         /* in the kernel, not sent yet */
	uint64_t delivery_bytes_per_s; /* as last measured */
	uint64_t busy_us;              /* with something to send, and of that: */
	uint64_t peer_limited_us;      /* the peer's window was full */
	uint64_t buffer_limited_us;    /* the send buffer was */
};

/* false: no TCP socket. One system call. */
bool endpoint_tcp_report(const struct endpoint *endpoint, struct endpoint_tcp *out);

#endif
