/*
 * facts: what is known about a connection's two peers. Each fact is marked *seen* by us (the
 * socket's own address, SO_PEERCRED, a verified certificate) or *told* to us (a PROXY header, SNI).
 * What is told never grants a right. A second tunnel inherits the near facts of the first.
 */
#ifndef PENSTOCK_FACTS_H
#define PENSTOCK_FACTS_H

#include "address.h"

#include <stdbool.h>

struct facts {
	struct socket_address client;   /* the original client */
	struct socket_address accepted; /* the address it connected to */
	bool client_is_told;            /* by a header, not by the socket */
};

#endif
