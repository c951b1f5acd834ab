/*
 * client: asks penstockd's admin service over its UNIX socket. One question after the other, on one
 * connection. What cannot be asked or is refused ends the program with 1 and a line that says why.
 */
#ifndef PENSTOCKCTL_CLIENT_H
#define PENSTOCKCTL_CLIENT_H

#include <jansson.h>
#include <stdbool.h>

#define CLIENT_SOCKET "/run/penstock/admin.sock"

/* Where to ask from now on; borrowed. A leading "@" stands for an abstract name. */
void client_begin(const char *socket);
void client_end(void);

/* The answer to GET `path`, owned by the caller. */
json_t *client_get(const char *path);

/* The same, but NULL where the daemon says that there is no such thing (404). */
json_t *client_find(const char *path);

/* Has the daemon do something; `body` may be NULL and is taken. */
void client_post(const char *path, json_t *body);

/* The same; a refusal is returned (owned, never NULL), NULL = it is done. */
char *client_try(const char *path, json_t *body);

/* `text` as a part of a path: valid until the next call but three. */
const char *client_escape(const char *text);

/* What is to be done first: the terminal is given back, so that what is said can be read. NULL = nothing. */
extern void (*client_leave)(void);

/* Says what is wrong and ends the program with 1. */
void client_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

#endif
