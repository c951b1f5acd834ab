/*
 * limits: the tree of limits as penstockctl draws and tunes it.
 */
#ifndef PENSTOCKCTL_LIMITS_H
#define PENSTOCKCTL_LIMITS_H

#include <stdbool.h>

/* All nodes, parents above what is below them; `name` NULL = all, else that limit's alone. */
void limits_view(bool json, const char *name);

/* NAME[@KEY] of a limit and WORD=AMOUNT ... of its new values. */
void limits_tune(const char *name, char *const *words);

/* Charges or credits an amount to NAME[@KEY]; direction NULL = both. */
void limits_adjust(const char *verb, const char *name, const char *amount, const char *direction);

/* Begins the totals of NAME[@KEY] anew. */
void limits_reset(const char *name);

#endif
