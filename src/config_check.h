/*
 * config_check: what the values of a configuration mean together: addresses that clash, internal names
 * that lead nowhere or in a circle, targets that cannot be reached. Resolves internal names.
 */
#ifndef PENSTOCK_CONFIG_CHECK_H
#define PENSTOCK_CONFIG_CHECK_H

#include "config_report.h"
#include "generation.h"

struct service;

/* Where one address of a tunnel was written; or another thing that it, or a limit, names. */
struct config_place {
	size_t tunnel; /* index into the generation's tunnels (or limits) */
	size_t index;  /* into its listens or targets */
	struct origin origin;
	size_t next; /* connect: the first that listens there, into the sorted listens; SIZE_MAX = none */
	bool is_used;   /* listen: somebody connects there */
	bool is_backup; /* connect: it stands in backup */
};

struct config_places {
	struct config_place *at; /* owned */
	size_t count;
};

/* Checks the generation and fills `internal` of its tunnels. The places stand in the order of the
 * tunnels, one for each address; `binds` has one for each tunnel with a bind, `weights` one for each weight.
 * Listens are reordered.
 * `services` ends with NULL. O(addresses * log addresses). */
void config_check_generation(struct generation *generation, struct config_places *listens,
			     struct config_places *connects, const struct config_places *binds,
			     const struct config_places *weights,
			     const struct service *const *services, struct config_report *report);

/* Whether lines can be written where the file says, as the user that the process is now. The text of a
 * failure has the form "what is wrong; what would be right". Makes no file. */
int config_check_log(const struct log_conf *log, struct failure *why);

#endif
