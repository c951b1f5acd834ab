/*
 * config_value: what an operator wrote for a keyword becomes the value at its row's offset.
 */
#ifndef PENSTOCK_CONFIG_VALUE_H
#define PENSTOCK_CONFIG_VALUE_H

#include "failure.h"
#include "keyword.h"

/* Converts `text` and stores it in `object`; what a list already holds stays before it. Relative paths
 * are taken from `directory`, credential:NAME from systemd's. On failure (the text says what is wrong and what would be right) the
 * object is as before. May look up users, groups and interfaces. */
int config_value_store(const struct keyword *row, const char *text, const char *directory,
		       void *object, struct failure *why);

/* Stores the row's default in a zeroed `object`. Fails only without memory. */
int config_value_default(const struct keyword *row, void *object, struct failure *why);

/* Whether a keyword of this type takes a list. */
bool config_value_is_list(const struct keyword *row);

/* For people: "duration", "list of addresses"; and "1s to 9h", the words to choose from, or "" if
 * nothing is to be said. */
const char *config_value_type_name(const struct keyword *row);
#define CONFIG_VALUE_RANGE 160
const char *config_value_range(const struct keyword *row, char text[CONFIG_VALUE_RANGE]);

#endif
