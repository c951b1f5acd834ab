/*
 * admin_route: which request gets which answer, and who may ask for it.
 */
#ifndef PENSTOCK_ADMIN_ROUTE_H
#define PENSTOCK_ADMIN_ROUTE_H

#include "facts.h"
#include "generation.h"
#include "inquiry.h"

/* What of the client matters: facts that were seen by the daemon itself. */
struct admin_peer {
	bool is_local;        /* of a UNIX socket, and no header says otherwise */
	uint32_t uid;         /* of such a one; UINT32_MAX = not known */
	char common_name[65]; /* of a verified certificate; "" = none */
};
void admin_route_know(struct admin_peer *peer, const struct facts *facts);

/* Whether the peer may change things. */
bool admin_route_may_change(const struct admin_peer *peer, const struct admin_conf *conf);

/* Finds the answer to a request; *argument is what stands for "*" in the route, at most 128 bytes. NULL: the
 * request is refused with *status and *failure; *allow is then what an Allow header says, "" = none. */
const struct answer *admin_route_find(const struct http_request *request,
				      const struct admin_peer *peer, const struct admin_conf *conf,
				      char argument[129], int *status, const char **failure,
				      const char **allow);

#endif
