#include "endpoint_tcp.h"

/* The kernel's header and not <netinet/tcp.h>, whose tcp_info lacks the newer fields. */
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

bool
endpoint_tcp_report(const struct endpoint *endpoint, struct endpoint_tcp *out)
{
	struct tcp_info info = { 0 };
	socklen_t length = sizeof(info);

	if (!endpoint->kind || !endpoint_is_socket(endpoint) ||
	    getsockopt(endpoint->socket.fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
		return false;
	*out = (struct endpoint_tcp){
		.rtt_us = info.tcpi_rtt,
		.rtt_variance_us = info.tcpi_rttvar,
		.window_segments = info.tcpi_snd_cwnd,
		.segment_bytes = info.tcpi_snd_mss,
		.unacknowledged = info.tcpi_unacked,
		.retransmits = info.tcpi_total_retrans,
		.peer_window_bytes = info.tcpi_snd_wnd,
		.unsent_bytes = info.tcpi_notsent_bytes,
		.delivery_bytes_per_s = info.tcpi_delivery_rate,
		.busy_us = info.tcpi_busy_time,
		.peer_limited_us = info.tcpi_rwnd_limited,
		.buffer_limited_us = info.tcpi_sndbuf_limited,
	};
	return true;
}
