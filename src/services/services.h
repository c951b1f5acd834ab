/*
 * services: what the daemon itself answers at internal names. Each owns its end of the pair and an
 * object of its own, and knows nothing of connections.
 */
#ifndef PENSTOCK_SERVICES_H
#define PENSTOCK_SERVICES_H

#include "pair.h"

/* All of them; ends with NULL. */
extern const struct service *const services_builtin[];

extern const struct service admin_service;   /* see admin.h */
extern const struct service echo_service;    /* RFC 862: sends back what it gets */
extern const struct service discard_service; /* RFC 863: takes everything, sends nothing */
extern const struct service
	chargen_service; /* RFC 864: sends a pattern for ever, ignores what it gets */

#endif
