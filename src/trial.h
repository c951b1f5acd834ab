/*
 * trial: tries a tunnel's targets one by one, through its far chain, and tells step by step what
 * happened. For an operator at the command line: it blocks, opens a loop of its own and carries no
 * connection.
 */
#ifndef PENSTOCK_TRIAL_H
#define PENSTOCK_TRIAL_H

#include "tunnel_conf.h"

#include <stdio.h>

/* Tries every target of that tunnel: resolves, connects, opens the chain's handshakes and looks for
 * half a second whether the target ends the connection at once. An internal target is followed to the
 * tunnel that listens there, or to each of them, whose accept_filters are left out. 0 if all of them work, else -1. Takes at
 * most `connect` and `handshake` of the tunnel's timeouts for each target. */
int trial_run(const struct tunnel_conf *conf, FILE *out);

#endif
