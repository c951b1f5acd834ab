#include "limit_conf.h"

#include "units.h"

#include <stdlib.h>
#include <string.h>

#define OVERHEAD_MOST   1000 /* bytes of a segment: less than a grant's least */
#define PREFIX_V4       32
#define PREFIX_V6       128
#define PREFIX_V6_USUAL 64 /* what one customer gets */
#define NODES_MOST      UINT64_C(10000000)

static const char *const count_words[] = {
	[LIMIT_COUNT_WIRE] = "wire", [LIMIT_COUNT_PAYLOAD] = "payload", NULL
};

#define RATE(field, sentence)                                                           \
	{                                                                               \
		.name = #field, .type = KEYWORD_RATE, .fallback = "0", .least = 1,      \
		.most = LIMITS_RATE_MOST, .offset = offsetof(struct limit_conf, field), \
		.effect = EFFECT_LIVE, .unit = "bytes a second", .help = (sentence)     \
	}
#define AT(field) offsetof(struct limit_conf, field)
const struct keyword limit_keywords[] = {
	{ .name = "parent",
	  .type = KEYWORD_TEXT,
	  .fallback = "",
	  .offset = AT(parent),
	  .effect = EFFECT_LIVE,
	  .help = "The limit that this one is a part of; empty = none." },
	{ .name = "per",
	  .type = KEYWORD_TEXT,
	  .fallback = "",
	  .offset = AT(per),
	  .effect = EFFECT_LIVE,
	  .help = "Makes it a template, with a bucket for each connection, source/N, source/N,M "
		  "(prefixes of IPv4 and IPv6), sni, certificate or uid; empty = one for all." },
	RATE(up, "Bytes a second from clients to targets; 0 = unlimited."),
	RATE(down, "Bytes a second from targets to clients; 0 = unlimited."),
	RATE(rate, "The same for up and for down, each."),
	{ .name = "burst",
	  .type = KEYWORD_SIZE,
	  .fallback = "0",
	  .least = LIMITS_SEGMENT_BYTES,
	  .most = LIMITS_BURST_MOST,
	  .offset = AT(burst),
	  .effect = EFFECT_LIVE,
	  .unit = "bytes",
	  .help = "Most bytes that may pass at once after a pause; 0 = what the rate brings in 50 "
		  "ms, but at least 8 KiB." },
	{ .name = "weight",
	  .type = KEYWORD_COUNT,
	  .fallback = "1",
	  .least = 1,
	  .most = LIMITS_WEIGHT_MOST,
	  .offset = AT(weight),
	  .effect = EFFECT_LIVE,
	  .help = "Its share of a parent that is short, beside those of the parent's other "
		  "children." },
	{ .name = "quantum",
	  .type = KEYWORD_SIZE,
	  .fallback = "0",
	  .least = LIMITS_SEGMENT_BYTES,
	  .most = UINT64_C(1) << 30,
	  .offset = AT(quantum),
	  .effect = EFFECT_LIVE,
	  .unit = "bytes",
	  .help = "Bytes that a connection is granted at a time; 0 = by its share of the rate." },
	{ .name = "count",
	  .type = KEYWORD_CHOICE,
	  .fallback = "wire",
	  .choices = count_words,
	  .offset = AT(count),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "What is counted of connections whose tunnel names this limit: the bytes on the "
		  "wire, or the payload inside of the filters." },
	{ .name = "overhead",
	  .type = KEYWORD_COUNT,
	  .fallback = "0",
	  .most = OVERHEAD_MOST,
	  .offset = AT(overhead),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .unit = "bytes",
	  .help = "Bytes added for each TCP segment, such as 40 for the headers of TCP and IPv4." },
	{ .name = "max_nodes",
	  .type = KEYWORD_COUNT,
	  .fallback = "100000",
	  .least = 1,
	  .most = NODES_MOST,
	  .offset = AT(max_nodes),
	  .effect = EFFECT_LIVE,
	  .unit = "buckets",
	  .help = "Most buckets of a template at once; then the oldest that nobody uses goes, and "
		  "if there is none a connection is refused." },
	{ .name = NULL },
};
#undef AT

static int
refuse_per(const struct limit_conf *conf, struct failure *why)
{
	return failure_set(
		why, FAILURE_CONFIG,
		"'%.60s' is unknown; write connection, source/32 for each client address, "
		"source/N, source/N,M, sni, certificate or uid",
		conf->per);
}

static int
understand_prefix(const char *text, size_t length, uint8_t most, uint8_t *out, struct failure *why)
{
	char digits[4] = "";
	uint64_t bits;

	if (length < sizeof(digits))
		memcpy(digits, text, length);
	if (units_parse_count(digits, &bits, NULL) < 0 || bits > most)
		return failure_set(why, FAILURE_CONFIG, "'%.*s' is no prefix; write 0 to %u",
				   length < 60 ? (int)length : 60, text, most);
	*out = (uint8_t)bits;
	return 0;
}

/* "24" or "24,64". */
static int
understand_prefixes(struct limit_conf *conf, const char *text, struct failure *why)
{
	size_t length = strcspn(text, ",");

	conf->prefix_v6 = PREFIX_V6_USUAL;
	if (understand_prefix(text, length, PREFIX_V4, &conf->prefix_v4, why) < 0)
		return -1;
	if (!text[length])
		return 0;
	text += length + 1;
	return understand_prefix(text, strlen(text), PREFIX_V6, &conf->prefix_v6, why);
}

int
limit_conf_understand_per(struct limit_conf *conf, struct failure *why)
{
	static const struct {
		const char *word;
		enum limit_per kind;
	} words[] = {
		{ "", LIMIT_PER_NONE },   { "connection", LIMIT_PER_CONNECTION },
		{ "sni", LIMIT_PER_SNI }, { "certificate", LIMIT_PER_CERTIFICATE },
		{ "uid", LIMIT_PER_UID },
	};

	if (strncmp(conf->per, "source/", 7) == 0) {
		conf->kind = LIMIT_PER_SOURCE;
		return understand_prefixes(conf, conf->per + 7, why);
	}
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(conf->per, words[i].word) == 0) {
			conf->kind = words[i].kind;
			return 0;
		}
	return refuse_per(conf, why);
}

struct limit_spec
limit_conf_spec(const struct limit_conf *conf)
{
	uint64_t up = conf->rate ? conf->rate : conf->up;
	uint64_t down = conf->rate ? conf->rate : conf->down;

	return (struct limit_spec){
		.name = conf->name,
		.parent = conf->above ? conf->above->live : NULL,
		.per = conf->kind,
		.prefix_v4 = conf->prefix_v4,
		.prefix_v6 = conf->prefix_v6,
		.weight = (uint16_t)conf->weight,
		.rate = { [LIMIT_UP] = up, [LIMIT_DOWN] = down },
		.burst = { [LIMIT_UP] = up ? conf->burst : 0,
			   [LIMIT_DOWN] = down ? conf->burst : 0 },
		.quantum = (uint32_t)conf->quantum,
		.nodes_most = (uint32_t)conf->max_nodes,
	};
}

void
limit_conf_release(struct limit_conf *conf)
{
	limits_drop(conf->live);
	free(conf->name);
	keyword_release(limit_keywords, conf);
	*conf = (struct limit_conf){ 0 };
}
