#include "tunnel_conf.h"

#include "clock.h"

#include <stdlib.h>

#define DURATION_MOST (UINT64_C(366) * 86400 * NS_PER_S)

const char *const tunnel_conf_balances[] = { [BALANCE_ORDER] = "order",
					     [BALANCE_ROUND_ROBIN] = "round_robin",
					     [BALANCE_LEAST] = "least",
					     [BALANCE_SOURCE] = "source",
					     [BALANCES] = NULL };

static const char *const logged_words[] = {
	[LOGGED_ALL] = "all", [LOGGED_FAILED] = "failed", [LOGGED_NONE] = "none", NULL
};

#define AT(field) offsetof(struct tunnel_conf, field)
const struct keyword tunnel_keywords[] = {
	{ .name = "listen",
	  .type = KEYWORD_ADDRESSES,
	  .offset = AT(listen),
	  .effect = EFFECT_LIVE,
	  .help = "Where to accept connections: IP:PORT, unix:/PATH, unix:@NAME, systemd:NAME or "
		  "internal:NAME." },
	{ .name = "connect",
	  .type = KEYWORD_ADDRESSES,
	  .offset = AT(connect),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Targets to connect to: HOST:PORT, unix:/PATH, unix:@NAME or internal:NAME." },
	{ .name = "backup",
	  .type = KEYWORD_ADDRESSES,
	  .fallback = "",
	  .offset = AT(backup),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Targets for when none of connect works or has room." },
	{ .name = "accept_filters",
	  .type = KEYWORD_TEXTS,
	  .fallback = "",
	  .offset = AT(accept_filters),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "What transforms the near side's bytes, wire first: FILTER:NAME of a filter's "
		  "section, "
		  "or FILTER with its defaults." },
	{ .name = "connect_filters",
	  .type = KEYWORD_TEXTS,
	  .fallback = "",
	  .offset = AT(connect_filters),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "The same for the far side, wire first too." },
	{ .name = "limit",
	  .type = KEYWORD_TEXT,
	  .fallback = "",
	  .offset = AT(limit_name),
	  .effect = EFFECT_LIVE,
	  .help = "The limit that meters the near side's bytes; empty = none." },
	{ .name = "connect_limit",
	  .type = KEYWORD_TEXT,
	  .fallback = "",
	  .offset = AT(connect_limit_name),
	  .effect = EFFECT_LIVE,
	  .help = "The limit that meters the far side's bytes; empty = none." },
	{ .name = "balance",
	  .type = KEYWORD_CHOICE,
	  .fallback = "order",
	  .choices = tunnel_conf_balances,
	  .offset = AT(balance),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Which target is tried first: the first that works, each in turn, the one with "
		  "the fewest connections, or for each client address the same." },
	{ .name = "weights",
	  .type = KEYWORD_COUNTS,
	  .fallback = "",
	  .least = 1,
	  .most = 100,
	  .offset = AT(weights),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "How much of the connections each of connect gets, beside the others, in the "
		  "same order; empty = all as much." },
	{ .name = "bind",
	  .type = KEYWORD_HOST,
	  .fallback = "",
	  .offset = AT(bind),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Source address for connecting to targets; empty = the kernel's choice." },
	{ .name = "allow",
	  .type = KEYWORD_PREFIXES,
	  .fallback = "",
	  .offset = AT(allow),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Client addresses that may connect; empty = all." },
	{ .name = "deny",
	  .type = KEYWORD_PREFIXES,
	  .fallback = "",
	  .offset = AT(deny),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Client addresses that may not connect, even where allow names them." },
	{ .name = "keepalive",
	  .type = KEYWORD_DURATION,
	  .fallback = "0s",
	  .least = NS_PER_S,
	  .most = UINT64_C(32767) * NS_PER_S,
	  .offset = AT(keepalive),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Silence on a TCP connection before the kernel probes the peer, on both sides; 0 "
		  "= "
		  "never." },
	{ .name = "backlog",
	  .type = KEYWORD_COUNT,
	  .fallback = "4096",
	  .least = 1,
	  .most = 65535,
	  .offset = AT(backlog),
	  .effect = EFFECT_LIVE,
	  .unit = "connections",
	  .help = "Connections the kernel keeps waiting to be accepted at each listener." },
	{ .name = "unix_mode",
	  .type = KEYWORD_MODE,
	  .fallback = "0600",
	  .offset = AT(unix_mode),
	  .effect = EFFECT_LIVE,
	  .help = "Permissions of the tunnel's UNIX sockets: who may write may connect." },
	{ .name = "unix_owner",
	  .type = KEYWORD_OWNER,
	  .fallback = "",
	  .offset = AT(unix_owner),
	  .effect = EFFECT_LIVE,
	  .help = "Owner of the tunnel's UNIX sockets: USER, USER:GROUP or :GROUP; empty = the "
		  "daemon's." },
	{ .name = "max_connections",
	  .type = KEYWORD_COUNT,
	  .fallback = "0",
	  .most = UINT32_MAX,
	  .offset = AT(max_connections),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .unit = "connections",
	  .help = "Most connections through this tunnel at once; 0 = only the global cap." },
	{ .name = "max_per_source",
	  .type = KEYWORD_COUNT,
	  .fallback = "0",
	  .most = UINT32_MAX,
	  .offset = AT(max_per_source),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .unit = "connections",
	  .help = "Most connections from one client address at once; 0 = no cap." },
	{ .name = "max_per_target",
	  .type = KEYWORD_COUNT,
	  .fallback = "0",
	  .most = UINT32_MAX,
	  .offset = AT(max_per_target),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .unit = "connections",
	  .help = "Most connections to each target at once, after which the next one is tried; 0 "
		  "= no cap." },
	{ .name = "max_new_per_source",
	  .type = KEYWORD_FREQUENCY,
	  .fallback = "0",
	  .offset = AT(max_new_per_source),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .unit = "connections",
	  .help = "Most new connections from one client address in a period; 0 = no cap." },
	{ .name = "log_connections",
	  .type = KEYWORD_CHOICE,
	  .fallback = "all",
	  .choices = logged_words,
	  .offset = AT(logged),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Which of its connections are lines of the log: all, those that failed or were "
		  "refused, or none." },
	{ .name = NULL },
};
#undef AT

#define AT(field) offsetof(struct check_conf, field)
const struct keyword check_keywords[] = {
	{ .name = "interval",
	  .type = KEYWORD_DURATION,
	  .fallback = "10s",
	  .least = 100 * NS_PER_MS,
	  .most = DURATION_MOST,
	  .offset = AT(interval),
	  .effect = EFFECT_LIVE,
	  .help = "From the end of one check of a target to the next." },
	{ .name = "timeout",
	  .type = KEYWORD_DURATION,
	  .fallback = "3s",
	  .least = 100 * NS_PER_MS,
	  .most = DURATION_MOST,
	  .offset = AT(timeout),
	  .effect = EFFECT_LIVE,
	  .help = "Until the target must be connected and the filters' handshakes done." },
	{ .name = "rise",
	  .type = KEYWORD_COUNT,
	  .fallback = "2",
	  .least = 1,
	  .most = 100,
	  .offset = AT(rise),
	  .effect = EFFECT_LIVE,
	  .unit = "checks",
	  .help = "Good checks in a row after which a failed target counts as working again." },
	{ .name = "fall",
	  .type = KEYWORD_COUNT,
	  .fallback = "3",
	  .least = 1,
	  .most = 100,
	  .offset = AT(fall),
	  .effect = EFFECT_LIVE,
	  .unit = "checks",
	  .help = "Failed checks in a row after which a target counts as failed." },
	{ .name = NULL },
};
#undef AT

#define TIMEOUT(field, standard, at_least, sentence)                                          \
	{                                                                                     \
		.name = #field, .type = KEYWORD_DURATION, .fallback = (standard),             \
		.least = (at_least), .most = DURATION_MOST,                                   \
		.offset = offsetof(struct timeouts, field), .effect = EFFECT_NEW_CONNECTIONS, \
		.help = (sentence)                                                            \
	}
const struct keyword timeouts_keywords[] = {
	TIMEOUT(connect, "10s", 100 * NS_PER_MS,
		"Until the far side is connected, over all attempts."),
	TIMEOUT(handshake, "10s", 100 * NS_PER_MS, "Until the handshakes of the filters are done."),
	TIMEOUT(first_byte, "0s", 0, "Until the client's first byte; 0 = never."),
	TIMEOUT(idle, "1h", 0, "Without a byte moving in either direction; 0 = never."),
	TIMEOUT(half_open, "60s", 0,
		"Without a byte moving once one direction has ended; 0 = never."),
	TIMEOUT(lifetime, "0s", 0,
		"Of the whole connection, plus up to a tenth at random; 0 = no end."),
	{ .name = "drain",
	  .type = KEYWORD_DURATION,
	  .fallback = "30s",
	  .most = DURATION_MOST,
	  .offset = offsetof(struct timeouts, drain),
	  .effect = EFFECT_LIVE,
	  .help = "After the order to stop, until what is left is reset; 0 = wait for all." },
	{ .name = NULL },
};
#undef TIMEOUT

#define AT(field) offsetof(struct match_conf, field)
const struct keyword match_keywords[] = {
	{ .name = "sni",
	  .type = KEYWORD_TEXTS,
	  .fallback = "",
	  .offset = AT(sni),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Server names that a TLS client asks for: NAME, *.DOMAIN for all below it, or * "
		  "for any." },
	{ .name = "alpn",
	  .type = KEYWORD_TEXTS,
	  .fallback = "",
	  .offset = AT(alpn),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Protocols of which a TLS client offers one, such as h2." },
	{ .name = "source",
	  .type = KEYWORD_PREFIXES,
	  .fallback = "",
	  .offset = AT(source),
	  .effect = EFFECT_NEW_CONNECTIONS,
	  .help = "Addresses that a client comes from, by a PROXY header if one is received." },
	{ .name = NULL },
};
#undef AT

size_t
tunnel_conf_target_count(const struct tunnel_conf *conf)
{
	return conf->connect.count + conf->backup.count;
}

const struct address *
tunnel_conf_target(const struct tunnel_conf *conf, size_t index)
{
	return index < conf->connect.count ? &conf->connect.at[index]
					   : &conf->backup.at[index - conf->connect.count];
}

size_t
tunnel_conf_leading(const struct tunnel_conf *conf)
{
	const struct chain *chain = &conf->near_chain;
	return chain->count && chain->at[0].type->traits & FILTER_TELLS_CLIENT;
}

bool
tunnel_conf_judges_late(const struct tunnel_conf *conf)
{
	if (conf->group)
		return true;
	for (size_t i = tunnel_conf_leading(conf); i < conf->near_chain.count; i++)
		if (conf->near_chain.at[i].type->traits & FILTER_TELLS_CLIENT)
			return true;
	return false;
}

void
tunnel_conf_release(struct tunnel_conf *conf)
{
	free(conf->name);
	keyword_release(tunnel_keywords, conf);
	free(conf->near_chain.at);
	free(conf->far_chain.at);
	free(conf->internal);
	free(conf->fronts);
	keyword_release(match_keywords, &conf->match);
	if (conf->group)
		free(conf->group->tunnels);
	free(conf->group);
	*conf = (struct tunnel_conf){ 0 };
}
