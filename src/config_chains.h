/*
 * config_chains: the sections of filters, and the chains of tunnels that name them.
 */
#ifndef PENSTOCK_CONFIG_CHAINS_H
#define PENSTOCK_CONFIG_CHAINS_H

#include "config_check.h"

/* Has the filter check and prepare a section whose values are all stored. Reads the files it names. */
void config_chains_configure(struct filter_section *section, struct config_report *report);

/* Builds the chains of all tunnels; reports names that are unknown and sections that do not fit or that
 * nobody names. A filter named without a section gets one with its defaults. The places stand in the
 * order of the tunnels, one for each name. */
void config_chains_check(struct generation *generation, const struct config_places *accept_filters,
			 const struct config_places *connect_filters, struct config_report *report);

#endif
