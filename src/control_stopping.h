/*
 * control_stopping: from the signal that ends the daemon to the end of its loop: no new connections, those
 * that are open go on until they end, timeouts: drain passes, or a second signal comes.
 *
 * Control thread.
 */
#ifndef PENSTOCK_CONTROL_STOPPING_H
#define PENSTOCK_CONTROL_STOPPING_H

#include "control.h"

/* Makes the timers. */
int control_stopping_open(struct control *control, struct failure *why);
/* Half-opened is allowed. */
void control_stopping_close(struct control *control);

/* The daemon is to stop: begins, or, the second time, breaks the loop. */
void control_stopping_ask(struct control *control);

/* control_go_on's, when the daemon is to stop: the workers are told, once, as soon as they have obeyed the
 * order before. */
void control_stopping_next(struct control *control);

#endif
