#include "config_foreign.h"

#include <stddef.h>
#include <strings.h>

#define A_TUNNEL "write tunnel \"NAME\" { listen = \"IP:PORT\" connect = \"HOST:PORT\" }"
#define TLS_CLIENTS \
	"write accept_filters = \"tls:NAME\", and tls \"NAME\" { ... } outside of tunnels"
#define TLS_TARGETS \
	"write connect_filters = \"tls:NAME\", and tls \"NAME\" { ... } outside of tunnels"
#define TIMEOUTS "write timeouts { connect = ... idle = ... }"

/* In small letters, with '_' for '-'. */
static const struct {
	const char *word, *advice;
} words[] = {
	{ "frontend", A_TUNNEL },
	{ "backend", A_TUNNEL },
	{ "stream", A_TUNNEL },
	{ "service", A_TUNNEL },
	{ "upstream", "write connect = { \"HOST:PORT\", \"HOST:PORT\" } in a tunnel" },
	{ "accept", "write listen = \"IP:PORT\"" },
	{ "server", "write connect = { \"HOST:PORT\", \"HOST:PORT\" } in a tunnel" },
	{ "proxy_pass", "write connect = \"HOST:PORT\"" },
	{ "default_backend", "write connect = \"HOST:PORT\"" },
	{ "failover", "write connect = { ... } with balance = \"order\", or backup = { ... }" },
	{ "maxconn", "write max_connections, max_per_source or max_per_target" },
	{ "max_conns", "write max_per_target" },
	{ "worker_connections", "write max_connections" },
	{ "limit_conn", "write max_per_source" },
	{ "proxy_download_rate",
	  "write limit \"NAME\" { down = \"10MB/s\" }, and limit = \"NAME\"" },
	{ "proxy_upload_rate", "write limit \"NAME\" { up = \"10MB/s\" }, and limit = \"NAME\"" },
	{ "bandwidth", "write limit \"NAME\" { rate = \"10MB/s\" }, and limit = \"NAME\"" },
	{ "ssl", TLS_CLIENTS },
	{ "filters", "write accept_filters, towards clients, or connect_filters, towards targets" },
	{ "proxy_ssl", TLS_TARGETS },
	{ "sni",
	  "write server_name in the section tls, or match { sni = ... } to choose a tunnel" },
	{ "crt", "write certificate and key in a section tls" },
	{ "ssl_certificate", "write certificate in a section tls" },
	{ "ssl_certificate_key", "write key in a section tls" },
	{ "cafile", "write client_ca for clients, or ca for servers, in a section tls" },
	{ "ca_file", "write client_ca for clients, or ca for servers, in a section tls" },
	{ "ssl_client_certificate", "write client_ca in a section tls" },
	{ "verifychain", "write verify = \"required\", as it is by default towards servers" },
	{ "checkhost", "write server_name" },
	{ "verifyhost", "write server_name" },
	{ "insecure", "write verify = \"none\"" },
	{ "send_proxy", "write connect_filters = \"proxy_protocol\"" },
	{ "send_proxy_v2", "write connect_filters = \"proxy_protocol\"" },
	{ "accept_proxy", "write accept_filters = \"proxy_protocol:NAME\", and proxy_protocol "
			  "\"NAME\" { trust = ... }" },
	{ "compression", "write \"zlib\" or \"zstd\" in accept_filters or connect_filters" },
	{ "timeout_client", TIMEOUTS },
	{ "timeout_server", TIMEOUTS },
	{ "timeoutidle", TIMEOUTS },
	{ "proxy_timeout", TIMEOUTS },
	{ "proxy_connect_timeout", TIMEOUTS },
	{ "threads", "write workers" },
	{ "nbthread", "write workers" },
	{ "nbproc", "write workers" },
	{ "worker_processes", "write workers" },
	{ "access_log", "write log { target = \"file:/PATH\" }" },
	{ "error_log", "write log { target = \"file:/PATH\"  level = ... }" },
	{ "output", "write log { target = \"file:/PATH\" }" },
	{ "file", "write target = \"file:/PATH\"" },
	{ "stats", "write a tunnel that connects to \"internal:admin\"" },
	{ "group", "write user = \"USER:GROUP\"" },
	{ "setuid", "write user = \"USER:GROUP\"" },
	{ "setgid", "write user = \"USER:GROUP\"" },
	{ "daemon", "leave it out: it stays in the foreground, for a service manager" },
	{ "foreground", "leave it out: it stays in the foreground, for a service manager" },
	{ "pid", "leave it out: a service manager knows the process" },
	{ "pidfile", "leave it out: a service manager knows the process" },
	{ "chroot", "leave it out: landlock keeps it from reading elsewhere" },
};

const char *
config_foreign_advice(const char *word)
{
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcasecmp(word, words[i].word) == 0)
			return words[i].advice;
	return NULL;
}
