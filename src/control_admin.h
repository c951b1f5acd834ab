/*
 * control_admin: what the admin service is given by the control thread: what it knows, ways to the workers,
 * and the doing of what an operator wishes.
 *
 * Control thread, except what struct admin_control says of single callbacks.
 */
#ifndef PENSTOCK_CONTROL_ADMIN_H
#define PENSTOCK_CONTROL_ADMIN_H

#include "control.h"

/* internal:admin answers from the moment on at which there are workers. Before the crew starts; admin_stop,
 * and later, when the crew has ended, mailbox_close(control->mailbox) undo it. */
int control_admin_start(struct control *control, struct failure *why);

#endif
