/*
 * config_diff: what one configuration says otherwise than another, row by row, and from when on each
 * change counts. Compares what is written; what is in the files that it names is not looked at.
 */
#ifndef PENSTOCK_CONFIG_DIFF_H
#define PENSTOCK_CONFIG_DIFF_H

#include "generation.h"

#include <stdio.h>

enum config_change_kind { CONFIG_CHANGED, CONFIG_ADDED, CONFIG_REMOVED };

/* One difference. Valid during the call that tells it. */
struct config_change {
	enum config_change_kind kind;
	const char *section; /* its word: "tunnel", "limit", "log" ...; "" = outside of sections */
	const char *title;   /* "" = it has none */
	const char *inside;  /* a section inside of it: "timeouts", "match", "check"; "" = none */
	const struct keyword *row;  /* CONFIG_CHANGED; else NULL: the whole section */
	const char *before, *after; /* CONFIG_CHANGED: as an operator could write them */
};

/* Tells every difference between two generations, sections in the order of `next`, removed ones behind.
 * A timeout that a tunnel merely inherits is told once, where it is written. Returns how many there
 * are, or -1 without memory. Any thread that may read both. O(sections squared). */
int config_diff_each(const struct generation *old, const struct generation *next,
		     void (*tell)(const struct config_change *change, void *context),
		     void *context);

/* The same for the keywords that count only after a restart. */
int config_diff_restart(const struct generation *old, const struct generation *next,
			void (*tell)(const struct config_change *change, void *context),
			void *context);

/* From when on it counts. A section as a whole does for the connections that are made from then on; a limit
 * and a check do at once. */
enum keyword_effect config_diff_effect(const struct config_change *change);

/* Writes them for people, one a line, with their effects, and a last line that sums up. Returns -1
 * without memory. */
int config_diff_print(const struct generation *old, const struct generation *next, FILE *out);

#endif
