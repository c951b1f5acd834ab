/*
 * control_reload: a generation comes into force, the first and every later one: it is loaded (the first
 * was, before), the workers switch to it, and the log, the service manager and whoever wished for it are
 * told how it went. A failure changes nothing. What is loaded may also be only compared.
 *
 * Control thread.
 */
#ifndef PENSTOCK_CONTROL_RELOAD_H
#define PENSTOCK_CONTROL_RELOAD_H

#include "control.h"

/* Starts the loader and the renewal, and has the workers switch to `first`: control_reload_switched follows.
 * Needs the crew, the manager, the limits. On failure `first` stays the caller's. */
int control_reload_start(struct control *control, struct generation *first, struct failure *why);
/* Nothing is loaded any more. Returns whether no thread was left: see loader_stop. Allowed without a start. */
bool control_reload_stop(struct control *control);

/* A reload that somebody asked for: now, or when what is under way is over. Refused with a line of log
 * while the daemon stops. */
void control_reload_soon(struct control *control, enum reload kind);
/* The same for the file and somebody who waits for the end; `over` may be called before it returns. */
void control_reload_wish(struct control *control, struct admin_wish *wish);
/* Loads the file to compare it with what is in force. It does not wait: while a file is read or the workers
 * switch, `over` says so before it returns. */
void control_reload_compare(struct control *control, struct admin_wish *wish);

/* Whether a file is being read, for whatever use, or the workers are switching. */
bool control_reload_is_under_way(const struct control *control);

/* control_go_on's: nothing is under way, the reload that was asked for begins, if one was. */
void control_reload_next(struct control *control);

/* The crew's: every worker has switched to control->next. */
void control_reload_switched(struct control *control);

#endif
