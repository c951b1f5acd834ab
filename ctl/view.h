/*
 * view: what penstockctl shows. Each command gets its own arguments, the name of the command first.
 */
#ifndef PENSTOCKCTL_VIEW_H
#define PENSTOCKCTL_VIEW_H

#include <jansson.h>
#include <stdbool.h>

/* What to show of which connections; texts are borrowed, NULL = all. */
struct view_filter {
	const char *tunnel, *source, *state, *sort;
	unsigned int limit; /* 0 = the daemon's usual */
};

void view_status(bool json);
void view_tunnels(bool json);
void view_targets(bool json);
void view_connections(bool json, const struct view_filter *filter);
void view_show(bool json, const char *id);
void view_ends(bool json);
void view_why(bool json, const char *id); /* NULL = those that are held up most */

void view_diff(bool json);

/* The connections asked for; owned by the caller. */
json_t *view_fetch(const struct view_filter *filter);
/* A table of them, at most `most` lines (0 = all), with `marked` in inverse. Returns the lines printed. */
size_t view_list(const json_t *connections, size_t most, json_int_t marked);

/* A connection's number, checked; ends the program if it is none. */
const char *view_number(const char *text);

#endif
