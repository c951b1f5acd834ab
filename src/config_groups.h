/*
 * config_groups: tunnels that share an address, and the fronts before them. Says what of a match can
 * never be reached.
 */
#ifndef PENSTOCK_CONFIG_GROUPS_H
#define PENSTOCK_CONFIG_GROUPS_H

#include "config_check.h"

/* Checks what the tunnel's match says, and brings its names into the form that is compared. */
void config_groups_prepare(struct tunnel_conf *tunnel, struct config_report *report);

/* Gives the tunnels that listen at these places, which are one address, the front that stands there, if
 * they need one. The places stand in the order of the tunnels, each of another tunnel; at most one has no
 * match. O(entries of matches squared). */
void config_groups_join(struct generation *generation, const struct config_place *places,
			size_t count, struct config_report *report);

#endif
