#include "why.h"

#include "clock.h"
#include "units.h"

#include <stdio.h>
#include <string.h>

/* Below this share a wait is not worth a word. */
#define WORTH_PERCENT  10
#define SILENT_PERCENT 80
/* Before this nothing can be said. */
#define YOUNG_NS (200 * NS_PER_MS)

static bool
is_silence(int cause)
{
	return cause == WAIT_NEAR_READABLE || cause == WAIT_FAR_READABLE || cause == WAIT_MOVING;
}

static uint64_t
held_up_ns(const struct flow_report *flow)
{
	uint64_t ns = 0;
	for (int cause = 0; cause < WAITS; cause++)
		if (!is_silence(cause))
			ns += flow->recent_ns[cause];
	return ns;
}

static int
largest(const struct flow_report *flow, bool silence)
{
	int largest = -1;
	for (int cause = 0; cause < WAITS; cause++)
		if (is_silence(cause) == silence &&
		    (largest < 0 || flow->recent_ns[cause] > flow->recent_ns[largest]))
			largest = cause;
	return largest;
}

static double
percent(uint64_t part_ns, const struct connection_report *report)
{
	return report->recent_length_ns ? 100.0 * (double)part_ns / (double)report->recent_length_ns
					: 0;
}

/* "94 % of the last 10 s". */
static void
say_share(const struct connection_report *report, uint64_t ns, char *text, size_t size)
{
	double length_s = (double)report->recent_length_ns / (double)NS_PER_S;
	double share = percent(ns, report);

	snprintf(text, size, "%.0f %% of the last %.*f s", share > 100 ? 100 : share,
		 length_s < 2 ? 1 : 0, length_s > 10 ? 10.0 : length_s);
}

static void
explain_limit(const struct flow_report *flow, const char *share, char text[WHY_TEXT])
{
	char rate[UNITS_TEXT];
	int length;

	if (flow->blamed.cause != WAIT_LIMIT) { /* it moves just now */
		snprintf(text, WHY_TEXT, "throttled %s by its limits", share);
		return;
	}
	length = snprintf(text, WHY_TEXT, "throttled %s by limit \"%s\"", share, flow->limit);
	if (flow->limit_key[0])
		length += snprintf(text + length, WHY_TEXT - (size_t)length, " of %s",
				   flow->limit_key);
	if (!flow->limit_rate || length >= WHY_TEXT)
		return;
	length += snprintf(text + length, WHY_TEXT - (size_t)length, " (%s/s",
			   units_format_bytes(flow->limit_rate, rate));
	if (flow->limit_active > 1 && length < WHY_TEXT)
		length += snprintf(text + length, WHY_TEXT - (size_t)length,
				   " shared by %u active connections", flow->limit_active);
	if (flow->waiting.cause != WAIT_LIMIT && length < WHY_TEXT)
		length += snprintf(text + length, WHY_TEXT - (size_t)length, ", behind the pair");
	if (length < WHY_TEXT)
		snprintf(text + length, WHY_TEXT - (size_t)length, ")");
}

static void
explain_held_up(const struct connection_report *report, enum pump_flow name, char text[WHY_TEXT])
{
	const struct flow_report *flow = &report->flow[name];
	int cause = largest(flow, false);
	char share[64];
	const char *peer = cause == WAIT_NEAR_WRITABLE ? "client" : "target";

	say_share(report, flow->recent_ns[cause], share, sizeof(share));
	switch (cause) {
	case WAIT_LIMIT:
		explain_limit(flow, share, text);
		break;
	case WAIT_NEAR_WRITABLE:
	case WAIT_FAR_WRITABLE:
		snprintf(text, WHY_TEXT, "the %s reads slowly: %s waiting to write to it", peer,
			 share);
		break;
	case WAIT_TURN:
		snprintf(text, WHY_TEXT, "worker %u is busy: %s waiting for its turn",
			 report->worker, share);
		break;
	case WAIT_RESOLVER:
		snprintf(text, WHY_TEXT,
			 "the resolver is slow: %s waiting for the address of %.100s", share,
			 report->target);
		break;
	case WAIT_CONNECT:
		snprintf(text, WHY_TEXT, "the target is slow to answer: %s connecting to %.100s",
			 share, report->target);
		break;
	case WAIT_HANDSHAKE:
		snprintf(text, WHY_TEXT, "the handshake with the %s is slow: %s waiting for it",
			 report->far_shakes && !report->near_shakes ? "target" : "client", share);
		break;
	default:
		snprintf(text, WHY_TEXT, "%s waiting for %s", share,
			 pump_wait_name((enum wait)cause));
		break;
	}
}

/* Whether both sides spoke, and neither of them most of the time. */
static bool
is_conversation(const struct connection_report *report)
{
	const struct flow_report *up = &report->flow[FLOW_UP], *down = &report->flow[FLOW_DOWN];
	return up->recent_bytes && down->recent_bytes &&
	       percent(up->recent_ns[WAIT_NEAR_READABLE], report) >= SILENT_PERCENT &&
	       percent(down->recent_ns[WAIT_FAR_READABLE], report) >= SILENT_PERCENT;
}

static void
explain_moving(const struct connection_report *report, enum pump_flow name, char text[WHY_TEXT])
{
	const struct flow_report *flow = &report->flow[name];
	int cause = largest(flow, true);
	char share[64];

	say_share(report, flow->recent_ns[cause], share, sizeof(share));
	if (is_conversation(report))
		snprintf(text, WHY_TEXT, "nothing holds it up: %s neither side had anything to say",
			 share);
	else if (cause == WAIT_MOVING)
		snprintf(text, WHY_TEXT, "nothing holds it up: %s moving", share);
	else
		snprintf(text, WHY_TEXT, "the %s sends slowly: %s waiting for its bytes",
			 cause == WAIT_NEAR_READABLE ? "client" : "target", share);
}

/* The flow that a connection without a hold-up is about: the one that has not ended, or the larger. */
static enum pump_flow
telling_flow(const struct flow_report *flow)
{
	if (flow[FLOW_UP].is_over != flow[FLOW_DOWN].is_over)
		return flow[FLOW_UP].is_over ? FLOW_DOWN : FLOW_UP;
	return flow[FLOW_DOWN].recent_bytes > flow[FLOW_UP].recent_bytes ? FLOW_DOWN : FLOW_UP;
}

static void
explain_idle(const struct connection_report *report, char text[WHY_TEXT])
{
	const struct flow_report *flow = report->flow;
	double idle_s = (double)(report->now_ns - report->moved_ns) / (double)NS_PER_S;

	if (flow[FLOW_UP].is_over == flow[FLOW_DOWN].is_over)
		snprintf(text, WHY_TEXT, "idle: no byte in either direction for %.0f s", idle_s);
	else
		snprintf(text, WHY_TEXT,
			 "idle: the %s has ended, the %s has not, and no byte for %.0f s",
			 flow[FLOW_UP].is_over ? "client" : "target",
			 flow[FLOW_UP].is_over ? "target" : "client", idle_s);
}

const char *
why_explain(const struct connection_report *report, char text[WHY_TEXT])
{
	const struct flow_report *flow = report->flow;
	bool down = held_up_ns(&flow[FLOW_DOWN]) > held_up_ns(&flow[FLOW_UP]);

	if (report->state >= CONNECTION_FLUSHING) {
		snprintf(text, WHY_TEXT, "it is over; its last bytes are on their way");
	} else if (report->state == CONNECTION_OPEN && report->recent_length_ns < YOUNG_NS) {
		snprintf(text, WHY_TEXT, "it has just begun");
	} else if (percent(held_up_ns(&flow[down]), report) >= WORTH_PERCENT) {
		explain_held_up(report, down ? FLOW_DOWN : FLOW_UP, text);
	} else if (flow[FLOW_UP].recent_bytes || flow[FLOW_DOWN].recent_bytes) {
		explain_moving(report, telling_flow(flow), text);
	} else {
		explain_idle(report, text);
	}
	return text;
}

const char *
why_wait(const struct flow_report *flow, char text[WHY_TEXT])
{
	if (flow->is_over)
		snprintf(text, WHY_TEXT, "ended");
	else if (flow->blamed.cause == WAIT_LIMIT && flow->limit[0])
		snprintf(text, WHY_TEXT, "limit \"%s\"", flow->limit);
	else if (flow->blamed.cause != flow->waiting.cause)
		snprintf(text, WHY_TEXT, "%s (behind the pair: %s)",
			 pump_wait_name(flow->waiting.cause), pump_wait_name(flow->blamed.cause));
	else
		snprintf(text, WHY_TEXT, "%s", pump_wait_name(flow->waiting.cause));
	return text;
}
