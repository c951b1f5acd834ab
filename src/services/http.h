/*
 * http: reads HTTP/1 requests out of bytes, one after the other, and writes the heads of answers. Does
 * no input or output and knows no route. The only file that knows the parser library.
 *
 * What a request may cost is fixed: HTTP_HEAD_MOST and HTTP_BODY_MOST bytes, all inside struct http.
 */
#ifndef PENSTOCK_HTTP_H
#define PENSTOCK_HTTP_H

#include <stdbool.h>
#include <stddef.h>

struct evbuffer;

#define HTTP_HEAD_MOST ((size_t)8 * 1024)
#define HTTP_BODY_MOST ((size_t)8 * 1024)
#define HTTP_PATH_MOST ((size_t)1024) /* path and query together */

struct http_request {
	const char *method;            /* "GET" ...; static */
	char path[HTTP_PATH_MOST];     /* decoded, begins with "/" */
	char query[HTTP_PATH_MOST];    /* as it came, without "?"; see http_query */
	char host[256];                /* "" = none was given */
	char content_type[128];        /* lower case, without parameters; "" = none was given */
	char body[HTTP_BODY_MOST + 1]; /* ends with a zero byte */
	size_t body_bytes;
	bool is_marked;  /* the header X-Penstock was there, which no foreign web page can send */
	bool keeps_open; /* the client wants to ask again on this connection */
	bool is_old;     /* HTTP/1.0: no chunked answer */
	bool expects;    /* waits for "100 Continue" before it sends the body */
};

enum http_result {
	HTTP_MORE,     /* the request is not whole yet */
	HTTP_COMPLETE, /* `request` is valid until the next feed */
	HTTP_WRONG,    /* answer with `status` and close: nothing more can be read */
};

struct http;

/* NULL without memory. */
struct http *http_open(void);
void http_close(struct http *http); /* NULL is allowed */

/* Takes bytes that came in; *used says how many: all of them, unless a request is complete: what follows it
 * belongs to the next one. After HTTP_COMPLETE the next feed begins a new request. */
enum http_result http_feed(struct http *http, const void *bytes, size_t count, size_t *used);

/* The request, complete after HTTP_COMPLETE. In between only `expects` is of use. */
const struct http_request *http_request(const struct http *http);

/* After HTTP_WRONG: 400, 413, 414, 431, 501 or 505. */
int http_status(const struct http *http);

/* Whether some bytes of a request have come that is not complete. */
bool http_is_inside(const struct http *http);

/* The decoded value of `name` in a query. Returns false if it is not there, or longer than fits. */
bool http_query(const char *query, const char *name, char *value, size_t size);

/* "Not Found" ...; static. */
const char *http_reason(int status);

#endif
