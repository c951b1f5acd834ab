/* The clients once more, each connection inside TLS. */
#include "load.h"
#include "sockets.h"

#include <errno.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define READ_AHEAD_BYTES ((size_t)256 * 1024)

struct line {
	int fd;
	SSL *ssl;
	uint64_t bytes; /* up: sent; down: received */
	uint64_t began_ns;
	size_t got_bytes; /* of the answer */
	bool asked, stopping;
	unsigned char mark[SOCKETS_MARK_BYTES];
};

struct client {
	const struct options *options;
	SSL_CTX *context;
	SSL_SESSION *session; /* the newest, to be resumed */
	int epoll;
	struct line *lines;
	unsigned int open;
	uint64_t started, end_ns;
	struct exchange_result *result;
};

static unsigned char block[SOCKETS_BLOCK_BYTES];

static int
on_session(SSL *ssl, SSL_SESSION *session)
{
	struct client *client = SSL_get_app_data(ssl);
	SSL_SESSION_free(client->session);
	client->session = session;
	return 1;
}

static void
client_open(struct client *client, const struct options *options)
{
	*client = (struct client){ .options = options, .epoll = sockets_epoll() };
	int version = options->tls12 ? TLS1_2_VERSION : TLS1_3_VERSION;

	client->lines = calloc(options->connections, sizeof(*client->lines));
	client->context = SSL_CTX_new(TLS_client_method());
	errno = 0;
	if (!client->lines || !client->context ||
	    !SSL_CTX_set_min_proto_version(client->context, version) ||
	    !SSL_CTX_set_max_proto_version(client->context, version) ||
	    !SSL_CTX_set_ciphersuites(client->context, "TLS_AES_256_GCM_SHA384") ||
	    !SSL_CTX_set_cipher_list(client->context, "ECDHE-ECDSA-AES256-GCM-SHA384"))
		sockets_die("TLS"); /* one suite, whatever a server would prefer */
	/* Few and large reads: the client shall not be what is measured. */
	SSL_CTX_set_read_ahead(client->context, 1);
	SSL_CTX_set_default_read_buffer_len(client->context, READ_AHEAD_BYTES);
	SSL_CTX_set_options(client->context,
			    SSL_OP_IGNORE_UNEXPECTED_EOF); /* counts are compared */
	SSL_CTX_set_mode(client->context, SSL_MODE_ENABLE_PARTIAL_WRITE);
	SSL_CTX_set_session_cache_mode(client->context,
				       SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	SSL_CTX_sess_set_new_cb(client->context, on_session);
}

static void
client_close(struct client *client)
{
	SSL_SESSION_free(client->session);
	SSL_CTX_free(client->context);
	free(client->lines);
	close(client->epoll);
}

/* 1: done; 0: not now; dies otherwise. */
static int
went(struct line *line, int result, const char *what)
{
	int error = SSL_get_error(line->ssl, result);
	if (result > 0)
		return 1;
	if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
		sockets_die(what);
	return 0;
}

static void
line_open(struct client *client, struct line *line)
{
	*line = (struct line){ .fd = sockets_connect(&client->options->to) };
	line->ssl = SSL_new(client->context);
	if (!line->ssl || !SSL_set_fd(line->ssl, line->fd) ||
	    !SSL_set_app_data(line->ssl, (void *)client))
		sockets_die("a TLS connection");
	if (client->options->resume && client->session)
		SSL_set_session(line->ssl, client->session);
	SSL_set_connect_state(line->ssl);
}

static void
line_close(struct line *line)
{
	SSL_free(line->ssl);
	close(line->fd);
}

static void
shake_hands(struct line *line)
{
	while (!went(line, SSL_do_handshake(line->ssl), "a handshake"))
		usleep(100);
}

static void
open_all(struct client *client, uint32_t events)
{
	for (unsigned int i = 0; i < client->options->connections; i++) {
		struct line *line = &client->lines[i];
		line_open(client, line);
		shake_hands(line);
		sockets_watch(client->epoll, line->fd, events, line);
		client->open++;
	}
}

/* --- bulk ----------------------------------------------------------------------------------------- */

static void
end_bulk(struct client *client, struct line *line)
{
	errno = 0;
	if (sockets_mark_load(line->mark) != line->bytes)
		sockets_die("the ends of a bulk connection counted different bytes");
	line_close(line);
	client->open--;
}

/* The intake is told how much comes, in front of it, and answers with what came. */
static void
on_up(struct client *client, struct line *line, uint64_t total)
{
	size_t done = 0;

	if (line->bytes == total) {
		int result = SSL_read(line->ssl, line->mark, sizeof(line->mark));
		if (went(line, result, "the answer of the intake"))
			end_bulk(client, line);
		return;
	}
	if (!line->asked) {
		sockets_mark_store(line->mark, total);
		if (!went(line, SSL_write(line->ssl, line->mark, sizeof(line->mark)), "a write"))
			return;
		line->asked = true;
	}
	uint64_t left = total - line->bytes;
	size_t most = left < sizeof(block) ? (size_t)left : sizeof(block);
	if (!went(line, SSL_write_ex(line->ssl, block, most, &done), "a write"))
		return;
	line->bytes += done;
	if (line->bytes == total)
		sockets_rewatch(client->epoll, line->fd, EPOLLIN, line);
}

/* The source is stopped by a byte and adds its count. */
static void
on_down(struct client *client, struct line *line)
{
	uint64_t share = client->options->bytes / client->options->connections;
	int result;

	while ((result = SSL_read(line->ssl, block, sizeof(block))) > 0) {
		size_t size = (size_t)result, kept = SOCKETS_MARK_BYTES;
		line->bytes += size;
		if (size < kept) {
			memmove(line->mark, line->mark + size, kept - size);
			memcpy(line->mark + kept - size, block, size);
		} else {
			memcpy(line->mark, block + size - kept, kept);
		}
		if (line->bytes >= share && !line->stopping) {
			line->stopping = true;
			went(line, SSL_write(line->ssl, "", 1), "the stop");
		}
	}
	if (SSL_get_error(line->ssl, result) != SSL_ERROR_ZERO_RETURN) {
		went(line, result, "a bulk connection");
		return;
	}
	line->bytes -= SOCKETS_MARK_BYTES;
	end_bulk(client, line);
}

static void
bulk(const struct options *options, bool up, struct bulk_result *result)
{
	struct client client;
	struct epoll_event events[64];
	uint64_t share = options->bytes / options->connections;

	*result = (struct bulk_result){ 0 };
	client_open(&client, options);
	open_all(&client, up ? EPOLLOUT : EPOLLIN);
	uint64_t began_ns = sockets_now_ns();
	while (client.open) {
		int count = epoll_wait(client.epoll, events, 64, 100);
		for (int i = 0; i < count; i++) {
			if (up)
				on_up(&client, events[i].data.ptr, share);
			else
				on_down(&client, events[i].data.ptr);
		}
	}
	result->elapsed_ns = sockets_now_ns() - began_ns;
	for (unsigned int i = 0; i < options->connections; i++)
		result->bytes += client.lines[i].bytes;
	client_close(&client);
}

void
tls_up(const struct options *options, struct bulk_result *result)
{
	bulk(options, true, result);
}

void
tls_down(const struct options *options, struct bulk_result *result)
{
	bulk(options, false, result);
}

/* --- ping and short ------------------------------------------------------------------------------- */

static bool
take_one(struct client *client, struct line *line)
{
	uint64_t now_ns = sockets_now_ns();
	if (client->started >= client->options->count || now_ns >= client->end_ns)
		return false;
	client->started++;
	line->began_ns = now_ns;
	line->got_bytes = 0;
	return true;
}

static void
finish_one(struct client *client, const struct line *line)
{
	client->result->count++;
	histogram_add(&client->result->latency_ns, sockets_now_ns() - line->began_ns);
}

static void
on_ping(struct client *client, struct line *line)
{
	while (line->got_bytes < MESSAGE_BYTES) {
		int size = (int)(MESSAGE_BYTES - line->got_bytes);
		int result = SSL_read(line->ssl, block, size);
		if (!went(line, result, "a ping"))
			return;
		line->got_bytes += (size_t)result;
	}
	finish_one(client, line);
	if (take_one(client, line))
		went(line, SSL_write(line->ssl, block, MESSAGE_BYTES), "a ping");
	else
		client->open--;
}

static void
loop(struct client *client, void (*on_line)(struct client *, struct line *))
{
	struct epoll_event events[64];
	uint64_t began_ns = sockets_now_ns();

	client->end_ns = began_ns + client->options->duration_ns;
	for (unsigned int i = 0; i < client->options->connections; i++) {
		client->lines[i].got_bytes = MESSAGE_BYTES;
		on_line(client, &client->lines[i]);
	}
	client->result->count = 0; /* those that were only begun */
	memset(&client->result->latency_ns, 0, sizeof(client->result->latency_ns));
	while (client->open) {
		int count = epoll_wait(client->epoll, events, 64, -1);
		for (int i = 0; i < count; i++)
			on_line(client, events[i].data.ptr);
	}
	client->result->elapsed_ns = sockets_now_ns() - began_ns;
}

void
tls_ping(const struct options *options, struct exchange_result *result)
{
	struct client client;

	memset(result, 0, sizeof(*result));
	client_open(&client, options);
	client.result = result;
	open_all(&client, EPOLLIN);
	if (options->gate) {
		/* What follows the first handshake, tickets for instance, is not a ping. */
		puts("ready");
		fflush(stdout);
		(void)!read(STDIN_FILENO, block, 64);
	}
	loop(&client, on_ping);
	if (options->gate) {
		puts("done");
		fflush(stdout);
		(void)!read(STDIN_FILENO, block, 64);
	}
	for (unsigned int i = 0; i < options->connections; i++)
		line_close(&client.lines[i]);
	client_close(&client);
}

/* As far as the handshake goes now, and once it is over the request. */
static void
ask(struct client *client, struct line *line)
{
	if (!went(line, SSL_do_handshake(line->ssl), "a handshake") ||
	    !went(line, SSL_write(line->ssl, block, MESSAGE_BYTES), "a request"))
		return;
	line->asked = true;
	client->result->resumed += (uint64_t)SSL_session_reused(line->ssl);
}

static void
start_short(struct client *client, struct line *line)
{
	uint64_t began_ns = line->began_ns;
	line_open(client, line);
	line->began_ns = began_ns;
	sockets_watch(client->epoll, line->fd, EPOLLIN, line);
	ask(client, line);
}

/* The handshake, a message there, a message back, the end. */
static void
on_short(struct client *client, struct line *line)
{
	if (line->ssl && !line->asked) {
		ask(client, line);
		return;
	}
	if (line->ssl) {
		int result;
		/* To the end of what was read ahead: no event tells of that. */
		while ((result = SSL_read(line->ssl, block, MESSAGE_BYTES + 1)) > 0)
			line->got_bytes += (size_t)result;
		if (SSL_get_error(line->ssl, result) == SSL_ERROR_WANT_READ)
			return;
		client->result->failed += line->got_bytes != MESSAGE_BYTES;
		finish_one(client, line);
		SSL_shutdown(line->ssl); /* else OpenSSL does not resume the session */
		line_close(line);
		client->open--;
	}
	if (take_one(client, line)) {
		client->open++;
		start_short(client, line);
	}
}

/* A first connection, which is not counted, for the session that the others resume. */
static void
get_session(struct client *client)
{
	struct line line;
	int result;

	line_open(client, &line);
	shake_hands(&line);
	went(&line, SSL_write(line.ssl, block, MESSAGE_BYTES), "a request");
	while ((result = SSL_read(line.ssl, block, MESSAGE_BYTES)) > 0 ||
	       SSL_get_error(line.ssl, result) == SSL_ERROR_WANT_READ)
		usleep(100);
	SSL_shutdown(line.ssl);
	line_close(&line);
}

void
tls_short(const struct options *options, struct exchange_result *result)
{
	struct client client;

	memset(result, 0, sizeof(*result));
	client_open(&client, options);
	client.result = result;
	if (options->resume)
		get_session(&client);
	loop(&client, on_short);
	client_close(&client);
}

void
tls_hold(const struct options *options)
{
	struct client client;

	client_open(&client, options);
	for (unsigned int i = 0; i < options->connections; i++) {
		struct line *line = &client.lines[i];
		line_open(&client, line);
		shake_hands(line);
		if (!options->speak)
			continue;
		went(line, SSL_write(line->ssl, block, MESSAGE_BYTES), "the first message");
		while (!went(line, SSL_read(line->ssl, block, MESSAGE_BYTES), "the first echo"))
			usleep(100);
	}
	puts("ready");
	fflush(stdout);
	while (read(STDIN_FILENO, block, 64) > 0)
		;
	client_close(&client);
}
