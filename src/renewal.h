/*
 * renewal: notices that a file which the configuration names, a certificate say, is another one than when
 * it was loaded, so that what was renewed is taken without anybody's signal. It looks every other second
 * and follows links: it sees a file written anew, one renamed over it, a link swung to another. What it
 * has found it tells when a whole look has passed in which nothing changed any more, so not in the middle
 * of a renewal. One that was written in place and is a tenth shorter than it was has to rest for a minute:
 * where it is cut between two certificates, nothing else would show it. What the configuration itself is read from is never taken by itself: it may be half edited.
 */
#ifndef PENSTOCK_RENEWAL_H
#define PENSTOCK_RENEWAL_H

#include "failure.h"

#include <stdbool.h>
#include <time.h>

struct event_base;
struct generation;
struct renewal;

struct renewal_options {
	struct event_base *base; /* the control thread's, which makes all calls */
	/* `path`, and maybe others, have changed and rest; told once for each change. `config` is a file that
	 * the configuration was read from and that has changed as well since then; NULL = none has. */
	void (*on_renewed)(const char *path, const char *config, void *context);
	/* `path` may be cut, and is waited for. */
	void (*on_doubt)(const char *path, void *context);
	void *context;
};

struct renewal *renewal_start(const struct renewal_options *options, struct failure *why);

/* From now on the files of this generation, which it holds, are looked at; loading it began at `since`
 * (CLOCK_REALTIME): what has changed after that may not be what was loaded. Without memory nothing is
 * looked at, which *why then says. One system call for each file now and every other second. */
int renewal_watch(struct renewal *renewal, struct generation *generation, struct timespec since,
		  struct failure *why);

/* NULL is allowed. */
void renewal_stop(struct renewal *renewal);

#endif
