/*
 * loader: reads a configuration on a thread of its own, so that the control thread goes on answering
 * while certificates are loaded or a file of thousands of tunnels is checked.
 */
#ifndef PENSTOCK_LOADER_H
#define PENSTOCK_LOADER_H

#include "config.h"
#include "failure.h"

#include <stdbool.h>

struct event_base;
struct loader;

struct loader_options {
	const char *file; /* this and services: see config_load */
	const struct service *const *services;
	struct event_base *base; /* the control thread's */
	/* What config_load gave, on the control thread: the generation (NULL = there are mistakes) is
	 * the callee's, the report is released afterwards. */
	void (*on_loaded)(struct generation *generation, const struct config_report *report,
			  void *context);
	void *context;
};

/* All calls are the control thread's. What the options point to must outlive the process's threads. */
struct loader *loader_new(const struct loader_options *options, struct failure *why);

/* Begins to load; on_loaded follows. One at a time: not while loader_is_busy. */
int loader_begin(struct loader *loader, struct failure *why);
bool loader_is_busy(const struct loader *loader);

/* Frees it; on_loaded will not be called any more. What is being loaded is thrown away, which is waited
 * for two seconds at most: a thread that takes longer is left behind with what it works on. Only at the
 * end of the process, which must then end without its exit handlers: the libraries still need what those take
 * away. Returns whether no thread was left. NULL is allowed. */
bool loader_stop(struct loader *loader);

#endif
