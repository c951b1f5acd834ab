/*
 * systemd: what the service manager and its journal are told, and what they handed to us. The only
 * file that knows libsystemd. Without systemd nothing here fails: notifications go nowhere.
 *
 * Any thread unless said otherwise. A notification is one datagram to the manager.
 */
#ifndef PENSTOCK_SYSTEMD_H
#define PENSTOCK_SYSTEMD_H

#include "address.h"
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

/* The daemon stops and asks for that much time to do so, whatever TimeoutStopSec says; 0 = asks for
 * nothing. Said again it asks anew, from now on. */
void systemd_notify_stopping(uint64_t patience_ns);

/* Whether there is a manager to tell. */
bool systemd_is_manager_there(void);

/* Feeds the watchdog. */
void systemd_notify_watchdog(void);

/* The watchdog's patience in nanoseconds, to be fed at half of it; 0 = no watchdog. */
uint64_t systemd_watchdog_ns(void);

/* How many sockets of that name (FileDescriptorName=) systemd passed to us. One socket unit may pass
 * several under one name. What is passed is read once, at the first call of any of these that finds
 * some. The control thread, for all that have to do with passed sockets. */
unsigned int systemd_listen_count(const char *name);

/* A duplicate (close-on-exec) of the one numbered `index`, counted from 0: the caller closes it, the
 * inherited one stays open for later reloads. -1 if there is none or if it does not listen on a
 * stream. Its file status flags (O_NONBLOCK) are shared with every other duplicate. */
int systemd_listen_fd(const char *name, unsigned int index, struct failure *why);

/* The same for the first one passed by a socket unit that listens on that address, whatever its name.
 * Returns 1 and sets *fd; 0 if there is none; -1 on failure. */
int systemd_listen_address(const struct address *address, int *fd, struct failure *why);

/* Calls `tell` for each socket of a socket unit that no call of the two above has asked for. */
void systemd_tell_unused(void (*tell)(const char *name, int fd));

/* The descriptor store: listening sockets that systemd keeps for us over a restart, so that clients wait
 * in their queues meanwhile. There is one if $FDSTORE says so, as the unit file does (systemd 254 does it
 * by itself). `key` is what the socket is found by: printable ASCII. */
bool systemd_keeps_sockets(void);

/* Hands over a duplicate. False if it cannot be kept (no store, a key too long). */
bool systemd_store(const char *key, int fd);

/* How many of that key were kept over the restart and not taken yet; and takes one: close-on-exec, the
 * caller's to close, still in the store. -1 = none is left. */
unsigned int systemd_stored_count(const char *key);
int systemd_stored_take(const char *key);

/* Has the store close all sockets of that key. */
void systemd_store_forget(const char *key);

/* Closes what was kept and nobody has taken, here and in the store. */
void systemd_store_forget_rest(void);

/* Waits until the manager has read all that it was told, for a second at most. */
void systemd_settle(void);

/* The path of the file that holds a credential of the service (LoadCredential=); whether there is one by
 * that name is not looked at. The caller frees it. Also for the commands that systemd runs to reload. */
int systemd_credential(const char *name, char **path, struct failure *why);

/* Whether stderr is a stream to the journal, which reads "<6>" at the start of a line as priority. */
bool systemd_journal_on_stderr(void);

/* Whether there is a journal to send to. */
bool systemd_journal_present(void);

/* Sends one entry of "NAME=value" fields to the journal; 0, or a negative errno value. Blocks while
 * the journal's queue is full. */
int systemd_journal_send(const struct iovec *fields, int count);

#endif
