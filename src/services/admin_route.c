#include "admin_route.h"

#include "admin_answers.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define ARGUMENT_MOST 128

static const struct route {
	const char *path; /* "*" stands for one part */
	const struct answer *get, *post;
} routes[] = {
	{ "/", &admin_page_all, NULL },
	{ "/healthz", &admin_answers_health, NULL },
	{ "/readyz", &admin_answers_readiness, NULL },
	{ "/metrics", &admin_metrics_all, NULL },
	{ "/v1/status", &admin_answers_status, NULL },
	{ "/v1/tunnels", &admin_answers_tunnels, NULL },
	{ "/v1/targets", &admin_answers_targets, NULL },
	{ "/v1/connections", &admin_connections_list, NULL },
	{ "/v1/ends", &admin_ends_all, NULL },
	{ "/v1/connections/*", &admin_connections_one, NULL },
	{ "/v1/connections/*/kill", NULL, &admin_actions_kill },
	{ "/v1/tunnels/*/drain", NULL, &admin_actions_drain },
	{ "/v1/tunnels/*/undrain", NULL, &admin_actions_undrain },
	{ "/v1/limits", &admin_limits_list, NULL },
	{ "/v1/limits/*", NULL, &admin_limits_change },
	{ "/v1/diff", &admin_diff_all, NULL },
	{ "/v1/reload", NULL, &admin_actions_reload },
	{ "/v1/log-level", NULL, &admin_actions_log_level },
};

void
admin_route_know(struct admin_peer *peer, const struct facts *facts)
{
	peer->is_local = facts->client.family == AF_UNIX && !facts->client_is_told;
	peer->uid = peer->is_local ? facts->client.uid : UINT32_MAX;
	/* A name cut off would be somebody else's. */
	if (facts->common_name && strlen(facts->common_name) < sizeof(peer->common_name))
		snprintf(peer->common_name, sizeof(peer->common_name), "%s", facts->common_name);
}

bool
admin_route_may_change(const struct admin_peer *peer, const struct admin_conf *conf)
{
	if (!conf->change.count)
		return peer->uid == 0 || (peer->uid != UINT32_MAX && peer->uid == geteuid());
	for (size_t i = 0; i < conf->change.count; i++) {
		const char *who = conf->change.at[i];
		if (!strncmp(who, "uid:", 4) && peer->uid != UINT32_MAX &&
		    strtoul(who + 4, NULL, 10) == peer->uid)
			return true;
		if (!strncmp(who, "cn:", 3) && peer->common_name[0] &&
		    !strcmp(who + 3, peer->common_name))
			return true;
	}
	return false;
}

/* A web page of anybody can have a browser ask under a name that was made to mean this machine: that must
 * not be answered. */
static bool
host_is_ours(const char *host, const struct admin_conf *conf)
{
	char name[256];
	struct in6_addr ip;
	size_t length = host[0] == '[' ? strcspn(host, "]") : strcspn(host, ":");

	snprintf(name, sizeof(name), "%.*s", (int)length - (host[0] == '['),
		 host + (host[0] == '['));
	if (host[0] == '[')
		return inet_pton(AF_INET6, name, &ip) == 1;
	if (inet_pton(AF_INET, name, &ip) == 1 || !strcasecmp(name, "localhost"))
		return true;
	for (size_t i = 0; i < conf->names.count; i++)
		if (!strcasecmp(name, conf->names.at[i]))
			return true;
	return false;
}

static bool
matches(const char *pattern, const char *path, char argument[ARGUMENT_MOST + 1])
{
	const char *star = strchr(pattern, '*');
	if (!star)
		return !strcmp(pattern, path);
	size_t before = (size_t)(star - pattern);
	if (strncmp(pattern, path, before) != 0)
		return false;
	size_t length = strcspn(path + before, "/");
	if (!length || length > ARGUMENT_MOST || strcmp(star + 1, path + before + length) != 0)
		return false;
	memcpy(argument, path + before, length);
	argument[length] = '\0';
	return true;
}

static const struct route *
find(const char *path, char argument[ARGUMENT_MOST + 1])
{
	for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++)
		if (matches(routes[i].path, path, argument))
			return &routes[i];
	return NULL;
}

const struct answer *
admin_route_find(const struct http_request *request, const struct admin_peer *peer,
		 const struct admin_conf *conf, char argument[ARGUMENT_MOST + 1], int *status,
		 const char **failure, const char **allow)
{
	bool reads = !strcmp(request->method, "GET") || !strcmp(request->method, "HEAD");
	bool changes = !strcmp(request->method, "POST");

	*allow = "";
	*status = 403;
	*failure = "this Host is none of admin { names }";
	if (!peer->is_local && !host_is_ours(request->host, conf))
		return NULL;
	const struct route *route = find(request->path, argument);
	*status = 404;
	*failure = "there is nothing at this path";
	if (!route)
		return NULL;
	*status = 405;
	*failure = "this method means nothing here";
	*allow = route->post ? "POST" : "GET, HEAD";
	if ((!reads || !route->get) && (!changes || !route->post))
		return NULL;
	*allow = "";
	if (reads)
		return route->get;
	*status = 415;
	*failure = "changes want Content-Type: application/json";
	if (strcmp(request->content_type, "application/json") != 0)
		return NULL;
	*status = 403;
	*failure = "changes want the header X-Penstock: 1";
	if (!request->is_marked)
		return NULL;
	*failure = "you may look, and change nothing; see admin { change } in penstock.conf(5)";
	if (!admin_route_may_change(peer, conf))
		return NULL;
	return route->post;
}
