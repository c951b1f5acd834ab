/*
 * proxy_protocol: the header that tells a server for whom its peer speaks. Near it is received from
 * the sources in `trust`, far it is sent; behind it both flows pass.
 */
#include "../filter.h"
#include "proxy_header.h"

#include <event2/buffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum untrusted { UNTRUSTED_REFUSE, UNTRUSTED_PLAIN };

struct proxy_protocol_conf {
	struct prefix_list trust;
	int untrusted; /* enum untrusted */
	int version;   /* index into version_words */
	int tlvs;      /* enum proxy_tlvs */
};

struct proxy_protocol {
	const struct proxy_protocol_conf *conf;
	struct facts *facts;
	enum filter_side side;
	bool is_done;        /* the header is taken, or given, or there is none */
	size_t wanted_bytes; /* before there are so many a look is of no use */
};

static const char *const untrusted_words[] = {
	[UNTRUSTED_REFUSE] = "refuse", [UNTRUSTED_PLAIN] = "plain", NULL
};
static const char *const version_words[] = { "1", "2", NULL };
static const char *const tlvs_words[] = { [PROXY_TLVS_NONE] = "none",
					  [PROXY_TLVS_CHECKSUM] = "checksum",
					  [PROXY_TLVS_ALL] = "all",
					  NULL };

#define AT(field) offsetof(struct proxy_protocol_conf, field)
static const struct keyword keywords[] = {
	{ .name = "trust",
	  .type = KEYWORD_PREFIXES,
	  .fallback = "",
	  .offset = AT(trust),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Peers that begin with a PROXY header; required where one is received." },
	{ .name = "untrusted",
	  .type = KEYWORD_CHOICE,
	  .fallback = "refuse",
	  .choices = untrusted_words,
	  .offset = AT(untrusted),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "What becomes of peers that are not in trust: refused, or taken as they come, "
		  "without a header." },
	{ .name = "version",
	  .type = KEYWORD_CHOICE,
	  .fallback = "2",
	  .choices = version_words,
	  .offset = AT(version),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Of the header that is sent: a line of text, or binary with more in it." },
	{ .name = "tlvs",
	  .type = KEYWORD_CHOICE,
	  .fallback = "all",
	  .choices = tlvs_words,
	  .offset = AT(tlvs),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "What a header of version 2 has beside the addresses: nothing, a checksum, or "
		  "that and all that is known of the client." },
	{ .name = NULL },
};
#undef AT

static int
proxy_protocol_fits(const void *conf, enum filter_side side, struct failure *why)
{
	const struct proxy_protocol_conf *settings = conf;
	if (side == FILTER_NEAR && !settings->trust.count)
		return failure_set(why, FAILURE_CONFIG,
				   "trust is missing, and no header is received without it; write "
				   "trust = { \"PREFIX\" }");
	return 0;
}

static void *
proxy_protocol_open(const void *conf, enum filter_side side, struct facts *facts,
		    struct failure *why)
{
	const struct proxy_protocol_conf *settings = conf;
	bool is_trusted = prefix_list_contains(&settings->trust, &facts->peer);
	if (side == FILTER_NEAR && !is_trusted && settings->untrusted == UNTRUSTED_REFUSE) {
		failure_set(why, FAILURE_ADMISSION,
			    "proxy_protocol: this peer is not in trust and may not come in");
		return NULL;
	}
	struct proxy_protocol *state = calloc(1, sizeof(*state));
	if (!state) {
		failure_set(why, FAILURE_MEMORY, "no memory for proxy_protocol");
		return NULL;
	}
	state->conf = settings;
	state->facts = facts;
	state->side = side;
	state->is_done = side == FILTER_NEAR && !is_trusted;
	state->wanted_bytes = 1;
	return state;
}

/* --- Received ----------------------------------------------------------------------------------- */

#define TEXT_MOST 255

static bool
is_text(struct proxy_span span)
{
	if (!span.length || span.length > TEXT_MOST)
		return false;
	for (size_t i = 0; i < span.length; i++) {
		if (span.at[i] < 0x20 || span.at[i] == 0x7f)
			return false;
	}
	return true;
}

/* What is no text is as if it were not told. */
static int
tell(char **slot, struct proxy_span span)
{
	free(*slot);
	*slot = NULL;
	return is_text(span) ? facts_set(slot, (const char *)span.at, span.length) : 0;
}

/* A unique id is any bytes: those that are no plain word become "hex:" and digits, so that it can be
 * shown, and sent on as it came. */
#define HEX_MARK "hex:"

static int
tell_unique_id(char **slot, struct proxy_span id)
{
	char text[sizeof(HEX_MARK) + (size_t)2 * PROXY_UNIQUE_ID_MOST] = HEX_MARK;
	bool is_plain =
		is_text(id) && !memchr(id.at, ' ', id.length) &&
		(id.length < strlen(HEX_MARK) || memcmp(id.at, HEX_MARK, strlen(HEX_MARK)) != 0);
	size_t length = strlen(HEX_MARK);
	if (is_plain || !id.length)
		return tell(slot, id);
	for (size_t i = 0; i < id.length; i++)
		length += (size_t)snprintf(text + length, 3, "%02x", id.at[i]);
	return facts_set(slot, text, length);
}

static int
learn(struct facts *facts, const struct proxy_header *header, struct failure *why)
{
	if (header->is_local)
		return 0;
	if (header->source.family != AF_UNSPEC) {
		facts->client = header->source;
		facts->accepted = header->destination;
		facts->client_is_told = true;
	}
	facts->tls_is_of_relay = facts->tls_version != NULL;
	facts->tls_is_told = header->is_tls;
	facts->certificate_is_told = header->is_verified;
	struct header_facts *told = facts_make_header(facts);
	if (!told || tell(&told->authority, header->authority) ||
	    tell_unique_id(&told->unique_id, header->unique_id) ||
	    tell(&told->alpn, header->alpn) || tell(&told->tls_version, header->tls_version) ||
	    tell(&told->tls_cipher, header->tls_cipher) ||
	    tell(&told->common_name, header->common_name))
		return failure_set(why, FAILURE_MEMORY, "no memory for what a PROXY header tells");
	return 0;
}

static enum filter_result
refuse_truncated(size_t count, struct failure *why)
{
	failure_set(why, FAILURE_TRUNCATED,
		    count ? "the PROXY header ends after %zu bytes"
			  : "the end came before a PROXY header (%zu bytes)",
		    count);
	return FILTER_FAIL;
}

static enum filter_result
receive(struct proxy_protocol *state, struct filter_io *io)
{
	uint8_t bytes[PROXY_HEADER_MOST];
	struct proxy_header header;
	size_t length = evbuffer_get_length(io->src), count, header_bytes;

	if (length < state->wanted_bytes && io->flush != FILTER_FINISHED)
		return FILTER_REST;
	count = (size_t)evbuffer_copyout(io->src, bytes, sizeof(bytes));
	switch (proxy_header_measure(bytes, count, &header_bytes, io->why)) {
	case PROXY_MORE:
		state->wanted_bytes = header_bytes;
		return io->flush == FILTER_FINISHED ? refuse_truncated(count, io->why)
						    : FILTER_REST;
	case PROXY_BAD:
		return FILTER_FAIL;
	case PROXY_WHOLE:
		break;
	}
	if (proxy_header_parse(bytes, header_bytes, &header, io->why))
		return FILTER_FAIL;
	if (learn(state->facts, &header, io->why))
		return FILTER_FAIL;
	evbuffer_drain(io->src, header_bytes);
	state->is_done = true;
	return FILTER_PASS;
}

/* --- Sent --------------------------------------------------------------------------------------- */

static struct proxy_span
span_of(const char *text)
{
	return (struct proxy_span){ (const uint8_t *)text, text ? strlen(text) : 0 };
}

static unsigned int
hex_digit(char digit)
{
	return (unsigned int)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
}

/* The bytes that tell_unique_id was told. */
static struct proxy_span
unique_id_of(const char *text, uint8_t bytes[PROXY_UNIQUE_ID_MOST])
{
	size_t count = 0;
	if (!text || strncmp(text, HEX_MARK, strlen(HEX_MARK)) != 0)
		return span_of(text);
	text += strlen(HEX_MARK);
	for (; text[0] && text[1] && count < PROXY_UNIQUE_ID_MOST; text += 2)
		bytes[count++] = (uint8_t)(hex_digit(text[0]) << 4 | hex_digit(text[1]));
	return (struct proxy_span){ bytes, count };
}

/* What a relay told of its client is sent on; what was seen here is the client's only if no relay stands
 * between. */
static void
add_tls(struct proxy_header *header, const struct facts *facts)
{
	const struct header_facts *told = facts_of_header(facts);
	if (facts->tls_is_told) {
		header->is_tls = true;
		header->has_certificate = header->is_verified = facts->certificate_is_told;
		header->tls_version = span_of(told->tls_version);
		header->tls_cipher = span_of(told->tls_cipher);
		header->common_name = span_of(told->common_name);
	} else if (facts->tls_version && !facts->tls_is_of_relay) {
		header->is_tls = true;
		header->has_certificate = header->is_verified = facts->certificate != NULL;
		header->tls_version = span_of(facts->tls_version);
		header->tls_cipher = span_of(facts->tls_cipher);
		header->common_name = span_of(facts->common_name);
	}
}

static enum filter_result
send_header(struct proxy_protocol *state, struct filter_io *io)
{
	const struct facts *facts = state->facts;
	const struct header_facts *told = facts_of_header(facts);
	bool is_clients = !facts->tls_is_of_relay;
	uint8_t bytes[PROXY_HEADER_MOST], id[PROXY_UNIQUE_ID_MOST];
	struct proxy_header header = {
		.is_local = facts->client.family == AF_UNSPEC,
		.source = facts->client,
		.destination = facts->accepted,
		.alpn = span_of(told->alpn || !is_clients ? told->alpn : facts->alpn),
		.authority = span_of(told->authority || !is_clients ? told->authority : facts->sni),
		.unique_id = unique_id_of(told->unique_id, id),
	};
	add_tls(&header, facts);
	if (!io->room_bytes)
		return FILTER_REST;
	size_t count = proxy_header_write(state->conf->version + 1,
					  (enum proxy_tlvs)state->conf->tlvs, &header, bytes);
	if (evbuffer_add(io->dst, bytes, count)) {
		failure_set(io->why, FAILURE_MEMORY, "no memory for a PROXY header");
		return FILTER_FAIL;
	}
	state->is_done = true;
	return FILTER_PASS;
}

/* Near, nothing goes out before the header has come in: who speaks first must know to whom. */
static enum filter_result
proxy_protocol_step(void *opaque, enum filter_flow flow, struct filter_io *io)
{
	struct proxy_protocol *state = opaque;
	if (state->is_done)
		return FILTER_PASS;
	if (state->side == FILTER_NEAR)
		return flow == FILTER_IN ? receive(state, io) : FILTER_REST;
	return flow == FILTER_OUT ? send_header(state, io) : FILTER_PASS;
}

/* Far it is ready at once: nobody answers the header. */
static bool
proxy_protocol_ready(const void *opaque)
{
	const struct proxy_protocol *state = opaque;
	return state->is_done || state->side == FILTER_FAR;
}

const struct filter_type proxy_protocol_filter = {
	.name = "proxy_protocol",
	.traits = FILTER_TELLS_CLIENT,
	.conf_bytes = sizeof(struct proxy_protocol_conf),
	.keywords = keywords,
	.fits = proxy_protocol_fits,
	.open = proxy_protocol_open,
	.step = proxy_protocol_step,
	.ready = proxy_protocol_ready,
	.close = free,
};
