/*
 * tls: TLS 1.2 and 1.3 by OpenSSL, in either role. Records are read from the wire's evbuffer and
 * written to it without a buffer between: a byte is copied twice each way (into and out of OpenSSL's
 * record). What the in flow makes for the out flow (handshake, alert, KeyUpdate) waits here.
 */
#include "tls.h"

#include "../buffer.h"
#include "../clock.h"
#include "tls_conf.h"
#include "tls_counters.h"
#include "tls_memory.h"
#include "tls_words.h"

#include <event2/buffer.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_BYTES 16384             /* of plaintext, RFC 8446 5.1 */
#define STRETCH      (256 * 1024 - 64) /* read or written at once; a chain of a power of two */
/* By a connection that has not begun or is at rest, and in its handshake: with the allocator's loss, measured. */
#define HELD_BYTES           (16 * 1024)
#define HANDSHAKE_HELD_BYTES (48 * 1024)

/* Handshake messages behind the handshake (KeyUpdate, tickets) cost a peer nothing and us a good deal. So many
 * may come in a minute, counted from the first behind the last such minute: who rekeys when its cipher asks for that,
 * every 2^24 records or so (RFC 8446 5.5), never sends them, at once or one by one. */
#define UPDATES_MOST 64
#define UPDATES_NS   (60 * NS_PER_S)

static bool
sends_too_many(const struct tls *tls)
{
	return tls->updates > UPDATES_MOST;
}

/* --- The BIO: one for reading and writing ------------------------------------------------------- */

static int
on_bio_read(BIO *bio, char *bytes, int most)
{
	struct tls *tls = BIO_get_data(bio);
	BIO_clear_retry_flags(bio);
	bool may_read = tls->src && most > 0 && !sends_too_many(tls);
	int taken = may_read ? evbuffer_remove(tls->src, bytes, (size_t)most) : 0;
	for (int i = 0; i < taken && tls->first_count < sizeof(tls->first); i++)
		tls->first[tls->first_count++] = (uint8_t)bytes[i];
	if (taken > 0)
		return taken;
	BIO_set_retry_read(bio);
	return -1;
}

static struct evbuffer *
wire_of(struct tls *tls)
{
	if (tls->dst)
		return tls->dst;
	if (!tls->waiting)
		tls->waiting = evbuffer_new();
	return tls->waiting;
}

static int
on_bio_write(BIO *bio, const char *bytes, int count)
{
	struct tls *tls = BIO_get_data(bio);
	struct evbuffer *wire = wire_of(tls);
	BIO_clear_retry_flags(bio);
	if (tls->out_has_ended || count <= 0)
		return count; /* nobody hears it any more */
	if (!wire)
		return -1;
	size_t most = tls->dst ? tls->dst_most : FILTER_KEPT_BYTES;
	size_t length = evbuffer_get_length(wire), given = (size_t)count;
	if (length >= most) {
		BIO_set_retry_write(bio);
		return -1;
	}
	if (given > most - length)
		given = most - length;
	return evbuffer_add(wire, bytes, given) < 0 ? -1 : (int)given;
}

static long
on_bio_control(BIO *bio, int command, long number, void *pointer)
{
	(void)bio;
	(void)number;
	(void)pointer;
	return command == BIO_CTRL_FLUSH;
}

static BIO_METHOD *bio_method;

static void
make_bio_method(void)
{
	tls_memory_watch();
	BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "evbuffers");
	if (method && BIO_meth_set_read(method, on_bio_read) &&
	    BIO_meth_set_write(method, on_bio_write) && BIO_meth_set_ctrl(method, on_bio_control))
		bio_method = method;
	else
		BIO_meth_free(method);
}

static int
tls_configure(void *conf, struct failure *why)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, make_bio_method);
	if (!bio_method)
		return failure_set(why, FAILURE_MEMORY, "no memory for TLS");
	tls_memory_forget();
	int result = tls_conf_configure(conf, why);
	/* Whatever OpenSSL makes of it, it may be less than was asked for. */
	if (tls_memory_was_short())
		return failure_set(why, FAILURE_MEMORY, "no memory for TLS; free some");
	return result;
}

/* --- Opening and closing ------------------------------------------------------------------------ */

void
tls_refuse(struct tls *tls, enum failure_kind kind, const char *format, ...)
{
	va_list args;
	char text[sizeof(tls->refusal->text)];
	if (tls->refusal)
		return;
	tls->refusal = malloc(sizeof(*tls->refusal));
	if (!tls->refusal)
		return; /* OpenSSL's own words have to do */
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	failure_set(tls->refusal, kind, "%s", text);
}

static void
count_update(struct tls *tls)
{
	uint64_t now_ns = clock_now_ns();

	if (sends_too_many(tls))
		return;
	if (now_ns - tls->updates_since_ns >= UPDATES_NS) {
		tls->updates_since_ns = now_ns;
		tls->updates = 0;
	}
	tls->updates++;
}

static void
on_message(int is_written, int version, int content, const void *bytes, size_t length, SSL *ssl,
	   void *opaque)
{
	struct tls *tls = opaque;
	(void)version;
	(void)bytes;
	(void)length;
	(void)ssl;
	if (content == SSL3_RT_HANDSHAKE)
		tls->holds_buffers = true;
	if (is_written || content != SSL3_RT_HANDSHAKE)
		return;
	tls->has_heard = true;
	if (tls->is_ready)
		count_update(tls);
}

static void
tls_close(void *state)
{
	struct tls *tls = state;
	/* A connection that was cut short says nothing against its session (RFC 5246 7.2.1). */
	if (tls->is_ready && !tls->failure)
		SSL_set_shutdown(tls->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(tls->ssl);
	if (tls->waiting)
		evbuffer_free(tls->waiting);
	free(tls->session_name);
	free(tls->refusal);
	free(tls->failure);
	free(tls);
	ERR_clear_error();
}

/* Whom we ask for, and who has to answer; without the dot of the root (RFC 6066 3). */
static int
name_peer(struct tls *tls, const char *name, struct failure *why)
{
	if (!*name && tls_conf_needs_host(tls->conf))
		return failure_set(why, FAILURE_CONFIG,
				   "the target has no name that its certificate could be checked "
				   "for; write server_name");
	if (!*name)
		return 0;
	int is_set =
		tls_conf_is_address(name)
			? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls->ssl), name)
			: SSL_set1_host(tls->ssl, name) && SSL_set_tlsext_host_name(tls->ssl, name);
	if (!is_set)
		return failure_set(why, FAILURE_MEMORY, "no memory for the name to ask for");
	return 0;
}

static int
open_far(struct tls *tls, struct failure *why)
{
	const char *target = tls->facts->target_host ? tls->facts->target_host : "";
	char name[TLS_NAME_MOST + 1];
	size_t length = (size_t)snprintf(name, sizeof(name), "%s",
					 *tls->conf->server_name ? tls->conf->server_name : target);
	if (length > 1 && length < sizeof(name) && name[length - 1] == '.')
		name[length - 1] = '\0';
	if (name_peer(tls, name, why))
		return -1;
	if (asprintf(&tls->session_name, "%s %s", target, name) < 0) {
		tls->session_name = NULL;
		return failure_set(why, FAILURE_MEMORY, "no memory for a TLS session");
	}
	SSL_SESSION *session =
		tls_sessions_get(tls->conf->sessions, tls->session_name, strlen(tls->session_name));
	/* As one whose certificate has expired since: the server has another one by now. */
	if (session && tls_peer_is_welcome(tls, session))
		SSL_set_session(tls->ssl, session);
	SSL_SESSION_free(session);
	SSL_set_connect_state(tls->ssl);
	return 0;
}

static void *
tls_open(const void *opaque, enum filter_side side, struct facts *facts, struct failure *why)
{
	const struct tls_conf *conf = opaque;
	struct tls *tls = calloc(1, sizeof(*tls));
	BIO *bio = BIO_new(bio_method);
	if (!tls || !bio)
		goto no_memory;
	*tls = (struct tls){ .conf = conf,
			     .facts = facts,
			     .side = (uint8_t)side,
			     .ssl = SSL_new(conf->contexts[side]) };
	if (!tls->ssl)
		goto no_memory;
	BIO_set_data(bio, tls);
	BIO_set_init(bio, 1);
	SSL_set_bio(tls->ssl, bio, bio);
	SSL_set_msg_callback(tls->ssl, on_message);
	SSL_set_msg_callback_arg(tls->ssl, tls);
	if (side == FILTER_NEAR)
		SSL_set_accept_state(tls->ssl);
	else if (open_far(tls, why))
		goto fail;
	ERR_clear_error();
	return tls;
no_memory:
	failure_set(why, FAILURE_MEMORY, "no memory for TLS");
	if (!tls || !tls->ssl)
		BIO_free(bio);
fail:
	if (tls)
		tls_close(tls);
	ERR_clear_error();
	return NULL;
}

/* --- Failing ------------------------------------------------------------------------------------ */

static bool
has_waiting(const struct tls *tls)
{
	return tls->waiting && evbuffer_get_length(tls->waiting);
}

/* *io->why is what went wrong: it is told in the next step, or behind an alert. */
static enum filter_result
fail_with(struct tls *tls, struct filter_io *io)
{
	tls->failure = malloc(sizeof(*tls->failure));
	if (!tls->failure)
		return FILTER_FAIL;
	*tls->failure = *io->why;
	return FILTER_REST;
}

static void
count_failure(struct tls *tls, enum tls_failure failure)
{
	if (tls->is_ready || tls->is_counted || tls->facts->is_own)
		return;
	tls->is_counted = true;
	tls_counters_add_failure((enum filter_side)tls->side, failure);
}

static void
tls_abandon(void *state, enum failure_kind kind)
{
	count_failure(state, kind == FAILURE_TIMEOUT  ? TLS_TIMEOUT
			     : kind == FAILURE_RESET  ? TLS_RESET
			     : kind == FAILURE_MEMORY ? TLS_NO_MEMORY
						      : TLS_STOPPED);
}

/* Says what the peer speaks in place of TLS, where its first bytes tell. */
static void
name_protocol(struct tls *tls, struct failure *why)
{
	unsigned char begin[sizeof(tls->first)];
	size_t count = tls->first_count;

	memcpy(begin, tls->first, count);
	if (tls->src && count < sizeof(begin)) {
		ev_ssize_t more = evbuffer_copyout(tls->src, begin + count, sizeof(begin) - count);
		count += more > 0 ? (size_t)more : 0;
	}
	const char *words = tls_words_protocol(begin, count, tls->side == FILTER_FAR);
	if (words)
		failure_set(why, why->kind, "the peer does not speak TLS but %s", words);
}

/* OpenSSL has failed. */
static enum filter_result
fail_by_library(struct tls *tls, struct filter_io *io)
{
	enum tls_stage stage = !tls->has_heard                 ? TLS_STAGE_FIRST
			       : tls->by_psk && !tls->is_ready ? TLS_STAGE_SECRET
							       : TLS_STAGE_OTHER;
	enum tls_failure failure = tls_words_failure(io->why, stage);
	if (tls_memory_was_short()) {
		count_failure(tls, failure); /* a refusal may come of it, too */
		return fail_with(tls, io);
	}
	if (tls->refusal)
		failure =
			tls->refusal->kind == FAILURE_MEMORY ? TLS_NO_MEMORY : TLS_BAD_CERTIFICATE;
	if (tls->psk_is_unknown && !tls->by_psk && !tls->conf->identities.count) {
		tls_refuse(tls, FAILURE_PROTOCOL, "the peer's PSK identity is unknown");
		failure = TLS_BAD_SECRET;
	}
	if (tls->refusal)
		*io->why = *tls->refusal;
	else if (failure == TLS_NOT_TLS)
		name_protocol(tls, io->why);
	else if (failure == TLS_ALERT && tls->side == FILTER_FAR && tls->conf->psks.count &&
		 !tls->is_ready)
		failure_set(io->why, io->why->kind,
			    "%s; does it know this secret by this identity?", io->why->text);
	count_failure(tls, failure);
	return fail_with(tls, io);
}

static enum filter_result
fail_truncated(struct tls *tls, struct filter_io *io)
{
	failure_set(io->why, FAILURE_TRUNCATED,
		    tls->is_ready ? "the peer ended without TLS's close_notify; truncation = "
				    "\"eof\" takes that for an end"
				  : "the peer ended during the TLS handshake");
	count_failure(tls, TLS_ENDED);
	return fail_with(tls, io);
}

/* --- The handshake ------------------------------------------------------------------------------ */

static int
learn(struct tls *tls)
{
	struct facts *facts = tls->facts;
	const unsigned char *alpn = NULL;
	unsigned int length = 0;
	SSL_get0_alpn_selected(tls->ssl, &alpn, &length);
	/* These two are OpenSSL's own texts, not the connection's. */
	facts->tls_version = SSL_get_version(tls->ssl);
	facts->tls_cipher = SSL_get_cipher_name(tls->ssl);
	if (length && facts_set(&facts->alpn, (const char *)alpn, length))
		return -1;
	X509 *certificate = SSL_get0_peer_certificate(tls->ssl);
	return certificate ? tls_peer_learn(tls, certificate) : 0;
}

static bool
is_by_ticket(const struct tls *tls)
{
	return tls->side == FILTER_NEAR ? tls->has_ticket
					: SSL_SESSION_has_ticket(SSL_get_session(tls->ssl));
}

/* OpenSSL calls a secret that both sides know a session, too. */
static bool
is_resumed(const struct tls *tls)
{
	if (!SSL_session_reused(tls->ssl) || !tls->by_psk)
		return SSL_session_reused(tls->ssl);
	return tls->side == FILTER_NEAR ? tls->has_session : is_by_ticket(tls);
}

static enum tls_counter
kind_of_handshake(const struct tls *tls)
{
	if (is_resumed(tls))
		return is_by_ticket(tls) ? TLS_TICKET : TLS_CACHE;
	return tls->by_psk && !SSL_get0_peer_certificate(tls->ssl) ? TLS_PSK : TLS_FULL;
}

/* The handshake is over: is it the one that was wanted? FILTER_MORE if so. */
static enum filter_result
finish_handshake(struct tls *tls, struct filter_io *io)
{
	enum tls_counter kind = kind_of_handshake(tls);
	X509 *certificate = SSL_get0_peer_certificate(tls->ssl);
	/* In these OpenSSL has verified nothing: the latter has a cipher without authentication. */
	bool is_unverified =
		kind == TLS_TICKET || kind == TLS_CACHE || (kind == TLS_FULL && !certificate);
	if (is_unverified && !tls_peer_may_return(tls, certificate)) {
		if (tls_memory_was_short())
			return fail_by_library(tls, io);
		failure_set(io->why, FAILURE_PROTOCOL, "the peer's certificate is refused");
		if (tls->refusal)
			*io->why = *tls->refusal;
		count_failure(tls, TLS_BAD_CERTIFICATE);
		return fail_with(tls, io);
	}
	if (tls->side == FILTER_NEAR && learn(tls)) {
		failure_set(io->why, FAILURE_MEMORY, "no memory for what TLS tells");
		count_failure(tls, TLS_NO_MEMORY);
		return fail_with(tls, io);
	}
	if (!tls->facts->is_own)
		tls_counters_add((enum filter_side)tls->side, kind);
	tls->ticket_is_due = tls->side == FILTER_NEAR &&
			     (tls->conf->tickets || tls->conf->session_cache) &&
			     SSL_version(tls->ssl) == TLS1_3_VERSION;
	tls->is_ready = true;
	return FILTER_MORE;
}

/* Goes on with a handshake, or with a message that found no room. FILTER_MORE = nothing is left of it. */
static enum filter_result
shake_hands(struct tls *tls, struct filter_io *io)
{
	if (tls->is_ready && !SSL_in_init(tls->ssl))
		return FILTER_MORE;
	/* A server speaks second: who says nothing gets no handshake's 40 KiB. */
	if (tls->side == FILTER_NEAR && SSL_in_before(tls->ssl) &&
	    !(tls->src && evbuffer_get_length(tls->src)))
		return FILTER_REST;
	int result = SSL_do_handshake(tls->ssl);
	if (tls_memory_was_short())
		return fail_by_library(tls, io); /* or it waits for a peer that waits for it */
	if (result == 1)
		return tls->is_ready ? FILTER_MORE : finish_handshake(tls, io);
	int error = SSL_get_error(tls->ssl, result);
	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
		return FILTER_REST;
	return error == SSL_ERROR_ZERO_RETURN ? fail_truncated(tls, io) : fail_by_library(tls, io);
}

/* --- The in flow -------------------------------------------------------------------------------- */

static size_t
lesser(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* What SSL_read said instead of bytes. FILTER_REST = it wants more to read, or room for what it owes. */
static enum filter_result
read_nothing(struct tls *tls, struct filter_io *io)
{
	switch (SSL_get_error(tls->ssl, 0)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		return FILTER_REST;
	case SSL_ERROR_ZERO_RETURN:
		return FILTER_END;
	default:
		return fail_by_library(tls, io);
	}
}

/* Fills at most `most` bytes of what was reserved. Returns what stopped it, FILTER_MORE = being full. */
static enum filter_result
fill(struct tls *tls, struct filter_io *io, struct evbuffer_iovec *space, size_t most)
{
	size_t length = lesser(space->iov_len, most), got;
	enum filter_result result = FILTER_MORE;
	space->iov_len = 0;
	while (result == FILTER_MORE && space->iov_len < length) {
		char *at = (char *)space->iov_base + space->iov_len;
		if (SSL_read_ex(tls->ssl, at, length - space->iov_len, &got))
			space->iov_len += got;
		else
			result = read_nothing(tls, io);
	}
	return result;
}

/* Reads once into one reservation of dst. */
static enum filter_result
read_stretch(struct tls *tls, struct filter_io *io, size_t room)
{
	struct evbuffer_iovec space[2];
	char byte;
	size_t got;
	enum filter_result result = FILTER_MORE;
	/* Nothing is reserved in vain: an idle connection's buffer stays empty. */
	if (!SSL_pending(tls->ssl) && !SSL_peek_ex(tls->ssl, &byte, 1, &got))
		return read_nothing(tls, io);
	size_t pending = (size_t)SSL_pending(tls->ssl);
	size_t most =
		lesser(pending + evbuffer_get_length(io->src), room > pending ? room : pending);
	most = lesser(most, STRETCH);
	int count = evbuffer_reserve_space(io->dst, (ev_ssize_t)most, space, 2), used = 0;
	if (count < 0) {
		failure_set(io->why, FAILURE_MEMORY, "no memory for what TLS carries");
		return fail_with(tls, io);
	}
	while (used < count && most && result == FILTER_MORE) {
		result = fill(tls, io, &space[used], most);
		most -= space[used++].iov_len;
	}
	evbuffer_commit_space(io->dst, space, used);
	return result;
}

static enum filter_result
read_all(struct tls *tls, struct filter_io *io)
{
	size_t before = evbuffer_get_length(io->dst), given = 0;
	enum filter_result result = FILTER_MORE;
	/* OpenSSL takes no more from the wire than the record that it works on. */
	while (result == FILTER_MORE && given < io->room_bytes &&
	       (evbuffer_get_length(io->src) || SSL_pending(tls->ssl))) {
		result = read_stretch(tls, io, io->room_bytes - given);
		given = evbuffer_get_length(io->dst) - before;
	}
	return result == FILTER_MORE ? FILTER_REST : result;
}

static enum filter_result
fail_flooded(struct tls *tls, struct filter_io *io)
{
	failure_set(io->why, FAILURE_PROTOCOL,
		    "the peer %s without end: more than %d times in a minute",
		    SSL_version(tls->ssl) == TLS1_3_VERSION ? "sends KeyUpdates"
							    : "wants to renegotiate",
		    UPDATES_MOST);
	return fail_with(tls, io);
}

/* The wire has ended and all of it is taken. */
static enum filter_result
end_without_mark(struct tls *tls, struct filter_io *io)
{
	/* "read header": between two records, of the next of which nothing has come. */
	bool is_between =
		strcmp(SSL_rstate_string(tls->ssl), "RH") == 0 && !SSL_has_pending(tls->ssl);
	if (tls->is_ready && tls->conf->truncation == TLS_TRUNCATION_EOF && is_between)
		return FILTER_END;
	return fail_truncated(tls, io);
}

static enum filter_result
step_in(struct tls *tls, struct filter_io *io)
{
	enum filter_result result = FILTER_REST;
	if (evbuffer_get_length(io->src) || SSL_pending(tls->ssl)) {
		result = shake_hands(tls, io);
		if (result == FILTER_MORE)
			result = read_all(tls, io);
	}
	if (result == FILTER_REST && !tls->failure && sends_too_many(tls))
		return fail_flooded(tls, io);
	if (result == FILTER_REST && !tls->failure && io->flush == FILTER_FINISHED &&
	    !evbuffer_get_length(io->src) && !SSL_pending(tls->ssl))
		return end_without_mark(tls, io);
	return result;
}

/* --- The out flow ------------------------------------------------------------------------------- */

static bool
has_room(const struct tls *tls, const struct filter_io *io)
{
	return evbuffer_get_length(io->dst) + FILTER_RECORD_BYTES < tls->dst_most;
}

static void
drop_waiting(struct tls *tls)
{
	if (tls->waiting)
		evbuffer_free(tls->waiting);
	tls->waiting = NULL;
}

/* Gives what waits. Whether nothing is left and there still is room. */
static bool
give_waiting(struct tls *tls, struct filter_io *io)
{
	size_t waiting = tls->waiting ? evbuffer_get_length(tls->waiting) : 0;
	if (!io->room_bytes)
		return false;
	if (waiting > io->room_bytes + FILTER_RECORD_BYTES) {
		tls->is_torn = buffer_move(tls->waiting, io->dst, io->room_bytes) != io->room_bytes;
		return false;
	}
	if (waiting)
		evbuffer_add_buffer(io->dst, tls->waiting);
	drop_waiting(tls);
	return has_room(tls, io);
}

/* One SSL_write: whole records of the first extent, or small extents gathered into one record. */
static enum filter_result
write_stretch(struct tls *tls, struct filter_io *io)
{
	unsigned char gathered[RECORD_BYTES];
	struct evbuffer_iovec extent;
	size_t length = evbuffer_get_length(io->src), written;
	size_t room = tls->dst_most - FILTER_RECORD_BYTES - evbuffer_get_length(io->dst);
	if (room < RECORD_BYTES)
		room = RECORD_BYTES; /* a whole record may go past it */
	evbuffer_peek(io->src, -1, NULL, &extent, 1);
	size_t count = lesser(extent.iov_len, lesser(room, STRETCH));
	const void *bytes = extent.iov_base;
	if (count >= RECORD_BYTES) {
		count -= count % RECORD_BYTES;
	} else if (extent.iov_len < length) {
		count = lesser(length, RECORD_BYTES);
		evbuffer_copyout(io->src, gathered, count);
		bytes = gathered;
	}
	if (!SSL_write_ex(tls->ssl, bytes, count, &written)) {
		int error = SSL_get_error(tls->ssl, 0);
		return error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ
			       ? FILTER_REST
			       : fail_by_library(tls, io);
	}
	evbuffer_drain(io->src, written);
	return FILTER_MORE;
}

/* A client that only writes and closes never meets a ticket: it would answer it with a reset. */
static enum filter_result
give_ticket(struct tls *tls, struct filter_io *io)
{
	tls->ticket_is_due = false;
	if (!SSL_new_session_ticket(tls->ssl))
		ERR_clear_error(); /* then without */
	return shake_hands(tls, io);
}

static enum filter_result
write_all(struct tls *tls, struct filter_io *io)
{
	enum filter_result result = FILTER_MORE;
	if (tls->ticket_is_due && evbuffer_get_length(io->src))
		result = give_ticket(tls, io);
	while (result == FILTER_MORE && has_room(tls, io) && evbuffer_get_length(io->src))
		result = write_stretch(tls, io);
	if (result != FILTER_MORE)
		return result;
	if (io->flush != FILTER_FINISHED || evbuffer_get_length(io->src) || !has_room(tls, io))
		return FILTER_REST;
	if (SSL_shutdown(tls->ssl) < 0)
		return fail_by_library(tls, io);
	tls->out_has_ended = true;
	return FILTER_END;
}

static enum filter_result
step_out(struct tls *tls, struct filter_io *io)
{
	if (!give_waiting(tls, io))
		return FILTER_REST;
	enum filter_result result = shake_hands(tls, io);
	return result == FILTER_MORE ? write_all(tls, io) : result;
}

/* --- The table ---------------------------------------------------------------------------------- */

/* A failure is told once the last words have gone out, and never in the step that gave them. */
static enum filter_result
step_failed(struct tls *tls, enum filter_flow flow, struct filter_io *io, bool has_given)
{
	if (flow == FILTER_OUT && has_waiting(tls)) {
		give_waiting(tls, io);
		return FILTER_MORE;
	}
	if (has_given)
		return FILTER_MORE;
	if (has_waiting(tls) && !tls->out_has_ended)
		return FILTER_REST;
	*io->why = *tls->failure;
	return FILTER_FAIL;
}

static enum filter_result
tls_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	struct tls *tls = state;
	size_t had_src = evbuffer_get_length(io->src), had = evbuffer_get_length(io->dst);
	enum filter_result result;
	tls_memory_forget();
	if (tls->failure)
		return step_failed(tls, flow, io, false);
	/* OpenSSL takes whatever is in the thread's queue of errors for this connection's. Reading and writing
	 * leave nothing there unless they fail, and to clear it costs as much as a good part of them. */
	bool may_err = !tls->is_ready || SSL_in_init(tls->ssl);
	if (flow == FILTER_IN) {
		tls->src = io->src;
		result = step_in(tls, io);
	} else {
		tls->dst = io->dst;
		tls->dst_most = had + io->room_bytes + FILTER_RECORD_BYTES;
		result = step_out(tls, io);
	}
	tls->src = tls->dst = NULL;
	/* A message of a handshake leaves buffers of 16 KiB behind, both of them, for what may come. */
	if (tls->holds_buffers && !SSL_in_init(tls->ssl) && SSL_free_buffers(tls->ssl))
		tls->holds_buffers = false;
	if (may_err || tls->failure || result == FILTER_FAIL)
		ERR_clear_error();
	if (tls->is_torn) {
		failure_set(io->why, FAILURE_MEMORY, "no memory for what TLS says");
		return FILTER_FAIL;
	}
	if (!tls->failure)
		return result;
	/* The out flow is stepped for the last words if this one has moved anything, and else they must not be
	 * waited for. */
	if (flow == FILTER_IN && evbuffer_get_length(io->src) == had_src)
		drop_waiting(tls);
	return step_failed(tls, FILTER_IN, io, evbuffer_get_length(io->dst) > had);
}

static bool
tls_ready(const void *state)
{
	return ((const struct tls *)state)->is_ready;
}

static size_t
tls_kept(const void *state)
{
	const struct tls *tls = state;
	return (tls->waiting ? evbuffer_get_length(tls->waiting) : 0) +
	       (size_t)SSL_pending(tls->ssl);
}

static size_t
tls_held(const void *state)
{
	const struct tls *tls = state;
	return tls->is_ready || SSL_in_before(tls->ssl) ? HELD_BYTES : HANDSHAKE_HELD_BYTES;
}

static const char *
tls_library(void)
{
	return OpenSSL_version(OPENSSL_VERSION);
}

const struct filter_type tls_filter = {
	.name = "tls",
	.traits = FILTER_END_MARK | FILTER_ENCRYPTS | FILTER_SHAKES_HANDS,
	.conf_bytes = sizeof(struct tls_conf),
	.keywords = tls_conf_keywords,
	.configure = tls_configure,
	.discard = tls_conf_discard,
	.fits = tls_conf_fits,
	.suits = tls_conf_suits,
	.needs_host = tls_conf_needs_host,
	.doubt = tls_conf_doubt,
	.open = tls_open,
	.step = tls_step,
	.ready = tls_ready,
	.kept = tls_kept,
	.held = tls_held,
	.abandon = tls_abandon,
	.close = tls_close,
	.library = tls_library,
};
