/*
 * confine: what the process gives up at its start, for itself and for whoever may get hold of it: another
 * user's rights, new privileges, and, by Landlock, reading and executing what lies elsewhere than its
 * files. Knows nothing of configurations. Linux only, and without a library: capabilities and Landlock
 * are plain system calls.
 */
#ifndef PENSTOCK_CONFINE_H
#define PENSTOCK_CONFINE_H

#include "failure.h"
#include "keyword.h"

/* Becomes that user and group (those it is already are fine), keeping of all capabilities only the one to
 * bind low ports. Before any other thread is started. On failure the process is in no state to go on. */
int confine_become(const struct owner *owner, struct failure *why);

/* Forbids that executing anything brings privileges. */
int confine_no_new_privileges(struct failure *why);

/* Allows reading beneath these directories (absolute; those that do not exist are left out), beneath what
 * the system's libraries need (CONFINE_SYSTEM in the .c), and nowhere else, for good and for all threads that
 * are started afterwards. Writing is left to the rights of files. On failure, an old kernel's too, nothing
 * is confined. Needs confine_no_new_privileges, or root. Once. */
int confine_reading(const struct text_list *directories, struct failure *why);

/* Whether the path, and what it leads to, lies beneath one of the directories or the system's. */
bool confine_covers(const struct text_list *directories, const char *path);

/* 0 unless reading is confined and the path lies outside: then *why is the sentence for an operator. Any
 * thread. */
int confine_may_read(const char *path, struct failure *why);

#endif
