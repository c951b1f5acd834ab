/*
 * control_drain: tunnels that an operator drains, and opens again: their listeners are closed or opened,
 * one tunnel at a time, in the order asked for; connections go on. The last way to internal:admin stays
 * open, since nobody could open it again.
 *
 * Control thread.
 */
#ifndef PENSTOCK_CONTROL_DRAIN_H
#define PENSTOCK_CONTROL_DRAIN_H

#include "control.h"

/* Takes the wish into the queue; `over` is called when the tunnel is as wished or cannot be, maybe before
 * this returns. FAILURE_CONFIG: there is no such tunnel. */
void control_drain_wish(struct control *control, struct admin_wish *wish);

/* control_go_on's: nothing is under way, the first wish of the queue, which is not empty, has its turn. */
void control_drain_next(struct control *control);

/* The crew's: every worker accepts by control->next_listeners. */
void control_drain_listening(struct control *control);

#endif
