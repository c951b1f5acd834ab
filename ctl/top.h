/*
 * top: the connections live, in a terminal: sorted, with keys to sort anew and to kill.
 */
#ifndef PENSTOCKCTL_TOP_H
#define PENSTOCKCTL_TOP_H

#include "view.h"

/* Shows them every `seconds`, `rounds` times or (0) until q is pressed. Without a terminal it prints one
 * table after the other. */
void top_run(struct view_filter *filter, double seconds, unsigned int rounds);

#endif
