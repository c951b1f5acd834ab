/*
 * config_limits: what the limits of a configuration mean together: parents that are not there or form a
 * circle, values that contradict each other, limits nobody uses.
 */
#ifndef PENSTOCK_CONFIG_LIMITS_H
#define PENSTOCK_CONFIG_LIMITS_H

#include "config_check.h"

/* Checks the limits and joins them, and the tunnels, to those they name. Of `rows` each place is a row of
 * a limit: `tunnel` the limit's index, `index` the row's. Of `uses` each is a limit that a tunnel names:
 * `index` 0 = limit, 1 = connect_limit. */
void config_limits_check(struct generation *generation, const struct config_places *rows,
			 const struct config_places *uses, struct config_report *report);

#endif
