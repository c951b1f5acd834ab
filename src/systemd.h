/*
 * systemd: what the service manager and its journal are told, and what they handed to us. The only
 * file that knows libsystemd. Without systemd nothing here fails: notifications go nowhere.
 *
 * Any thread unless said otherwise. A notification is one datagram to the manager.
 */
#ifndef PENSTOCK_SYSTEMD_H
#define PENSTOCK_SYSTEMD_H

#include "failure.h"

#include <stdbool.h>
#include <stdint.h>

struct iovec;

/* Start-up is over, or a reload is: READY=1 with the text that `systemctl status` shows. */
void systemd_notify_ready(const char *status);

/* Changes the text that `systemctl status` shows. */
void systemd_notify_status(const char *status);

/* A reload begins: RELOADING=1 with the monotonic time, as Type=notify-reload wants it (sd_notify(3)).
 * systemd_notify_ready ends it, whether it went well or not. */
void systemd_notify_reloading(void);

/* The daemon stops. */
void systemd_notify_stopping(void);

/* Feeds the watchdog. */
void systemd_notify_watchdog(void);

/* The watchdog's patience in nanoseconds, to be fed at half of it; 0 = no watchdog. */
uint64_t systemd_watchdog_ns(void);

/* How many sockets of that name (FileDescriptorName=) systemd passed to us. One socket unit may pass
 * several under one name. */
unsigned int systemd_listen_count(const char *name);

/* A duplicate (close-on-exec) of the one numbered `index`, counted from 0: the caller closes it, the
 * inherited one stays open for later reloads. -1 if there is none or if it does not listen on a
 * stream. Its file status flags (O_NONBLOCK) are shared with every other duplicate. */
int systemd_listen_fd(const char *name, unsigned int index, struct failure *why);

/* Whether stderr is a stream to the journal, which reads "<6>" at the start of a line as priority. */
bool systemd_journal_on_stderr(void);

/* Whether there is a journal to send to. */
bool systemd_journal_present(void);

/* Sends one entry of "NAME=value" fields to the journal; 0, or a negative errno value. Blocks while
 * the journal's queue is full. */
int systemd_journal_send(const struct iovec *fields, int count);

#endif
