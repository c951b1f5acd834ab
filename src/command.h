/*
 * command: the command line, and all that penstockd does without becoming a daemon: checking, comparing,
 * trying, telling about itself.
 */
#ifndef PENSTOCK_COMMAND_H
#define PENSTOCK_COMMAND_H

#include "generation.h"

struct command {
	const char *file; /* the configuration */
	enum { COMMAND_RUN, COMMAND_CHECK, COMMAND_DIFF, COMMAND_TEST } mode;
	const char *argument; /* COMMAND_DIFF: the old file; COMMAND_TEST: a tunnel's name */
};

/* Understands the command line. Returns -1 if there is something to be done with the configuration, or the
 * exit status: what was asked for has been printed, or was not understood. */
int command_parse(struct command *command, int argc, char **argv);

/* Loads the configuration and reports its mistakes to stderr; NULL if there are any. */
struct generation *command_load(const char *file);

/* Does what the mode says, other than COMMAND_RUN; returns the exit status. COMMAND_CHECK may leave the process
 * as the user that the configuration names. */
int command_do(const struct command *command, const struct generation *generation);

#endif
