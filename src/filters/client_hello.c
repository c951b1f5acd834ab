#include "client_hello.h"

#include <event2/buffer.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_HEAD_BYTES    5
#define RECORD_MOST          16384
#define MESSAGE_HEAD_BYTES   4
#define RANDOM_BYTES         32
#define SESSION_ID_MOST      32
#define EXTENSION_HEAD_BYTES 4

enum { RECORD_HANDSHAKE = 22, MESSAGE_CLIENT_HELLO = 1 };
enum { EXTENSION_SERVER_NAME = 0, EXTENSION_ALPN = 16 };
enum { NAME_HOST = 0 };

/* Bytes still to be read of one part of the message. */
struct part {
	const uint8_t *at;
	size_t left;
};

static int
refuse(const char *what, struct failure *why)
{
	failure_set(why, FAILURE_PROTOCOL, "ClientHello: %s", what);
	return -1;
}

/* Takes a number of `size` bytes. */
static int
take_number(struct part *part, size_t size, size_t *out)
{
	if (part->left < size)
		return -1;
	*out = 0;
	for (size_t i = 0; i < size; i++)
		*out = *out << 8 | part->at[i];
	part->at += size;
	part->left -= size;
	return 0;
}

static int
take_bytes(struct part *part, size_t count, struct part *out)
{
	if (part->left < count)
		return -1;
	*out = (struct part){ part->at, count };
	part->at += count;
	part->left -= count;
	return 0;
}

/* Takes what stands behind its length, a number of `size` bytes. */
static int
take_part(struct part *part, size_t size, struct part *out)
{
	size_t count;
	return take_number(part, size, &count) || take_bytes(part, count, out) ? -1 : 0;
}

/* --- The message out of its records ------------------------------------------------------------- */

/* What the first bytes of a connection can be. */
static enum client_hello_result
guess(const uint8_t *bytes, size_t count)
{
	if ((count > 0 && bytes[0] != RECORD_HANDSHAKE) || (count > 1 && bytes[1] != 3) ||
	    (count > 2 && bytes[2] > 4))
		return CLIENT_HELLO_NOT_TLS;
	if (count >= RECORD_HEAD_BYTES) {
		size_t length = (size_t)bytes[3] << 8 | bytes[4];
		if (length == 0 || length > RECORD_MOST)
			return CLIENT_HELLO_NOT_TLS;
	}
	if (count > RECORD_HEAD_BYTES && bytes[RECORD_HEAD_BYTES] != MESSAGE_CLIENT_HELLO)
		return CLIENT_HELLO_NOT_TLS;
	return CLIENT_HELLO_MORE;
}

/* How long the message is, once that is known. */
static size_t
message_length(const struct client_hello *hello)
{
	const uint8_t *head = hello->message;
	if (hello->message_bytes < MESSAGE_HEAD_BYTES)
		return SIZE_MAX;
	return MESSAGE_HEAD_BYTES + ((size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3]);
}

/* Appends the part of a record that is there. */
static void
append(struct client_hello *hello, const uint8_t *bytes, size_t count)
{
	memcpy(hello->message + hello->message_bytes, bytes, count);
	hello->message_bytes += count;
}

/* Joins what is there of the records' contents. -1: these are no records of a handshake. */
static int
join(struct part wire, struct client_hello *out, struct failure *why)
{
	size_t type, version, length;
	while (out->message_bytes < message_length(out)) {
		struct part content;
		if (take_number(&wire, 1, &type) || take_number(&wire, 2, &version) ||
		    take_number(&wire, 2, &length))
			return 0;
		if (type != RECORD_HANDSHAKE || version >> 8 != 3)
			return refuse("another record stands within it", why);
		if (length == 0 || length > RECORD_MOST)
			return refuse("a record is empty or too long", why);
		take_bytes(&wire, length < wire.left ? length : wire.left, &content);
		append(out, content.at, content.left);
	}
	return 0;
}

static enum client_hello_result
assemble(const uint8_t *bytes, size_t count, struct client_hello *out, struct failure *why)
{
	size_t most = count < CLIENT_HELLO_MOST ? count : CLIENT_HELLO_MOST;
	if (join((struct part){ bytes, most }, out, why))
		return CLIENT_HELLO_BAD;
	size_t length = message_length(out);
	if (out->message_bytes >= length) {
		out->message_bytes = length;
		return CLIENT_HELLO_FOUND;
	}
	/* At least so many are missing; heads of further records may come in between. */
	out->wanted_bytes = most + (length == SIZE_MAX ? 1 : length - out->message_bytes);
	if (out->wanted_bytes > CLIENT_HELLO_MOST) {
		refuse("it is longer than 16 KiB with its records", why);
		return CLIENT_HELLO_BAD;
	}
	return CLIENT_HELLO_MORE;
}

/* --- What stands in it -------------------------------------------------------------------------- */

static int
take_host_name(struct part name, struct client_hello *out, struct failure *why)
{
	if (name.left > 1 && name.at[name.left - 1] == '.')
		name.left--;
	if (!name.left || name.left > CLIENT_HELLO_NAME)
		return refuse("the server's name is empty or too long", why);
	for (size_t i = 0; i < name.left; i++) {
		uint8_t c = name.at[i];
		if (c <= ' ' || c >= 0x7f)
			return refuse("the server's name has bytes that no name has", why);
		out->sni[i] = (char)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
	}
	out->sni[name.left] = '\0';
	return 0;
}

static int
read_server_name(struct part extension, struct client_hello *out, struct failure *why)
{
	struct part list;
	if (take_part(&extension, 2, &list) || extension.left || !list.left)
		return refuse("the list of server names is malformed", why);
	while (list.left) {
		size_t type;
		struct part name;
		if (take_number(&list, 1, &type) || take_part(&list, 2, &name))
			return refuse("a server name is cut off", why);
		if (type != NAME_HOST)
			continue;
		if (out->sni[0])
			return refuse("two server names", why);
		if (take_host_name(name, out, why))
			return -1;
	}
	return 0;
}

/* What is no plain word no operator can ask for: it is left out. */
static void
list_protocol(struct part protocol, struct client_hello *out)
{
	size_t length = strlen(out->alpn);
	if (protocol.left + 2 > sizeof(out->alpn) - length)
		return;
	for (size_t i = 0; i < protocol.left; i++)
		if (protocol.at[i] <= ' ' || protocol.at[i] >= 0x7f || protocol.at[i] == ',')
			return;
	if (length)
		out->alpn[length++] = ',';
	memcpy(out->alpn + length, protocol.at, protocol.left);
	out->alpn[length + protocol.left] = '\0';
}

static int
read_alpn(struct part extension, struct client_hello *out, struct failure *why)
{
	struct part list, protocol;
	if (take_part(&extension, 2, &list) || extension.left || !list.left)
		return refuse("the list of protocols is malformed", why);
	while (list.left) {
		if (take_part(&list, 1, &protocol) || !protocol.left)
			return refuse("a protocol is empty or cut off", why);
		list_protocol(protocol, out);
	}
	return 0;
}

static int
read_extensions(struct part extensions, struct client_hello *out, struct failure *why)
{
	bool has_name = false, has_alpn = false;
	while (extensions.left) {
		size_t type;
		struct part extension;
		if (take_number(&extensions, 2, &type) || take_part(&extensions, 2, &extension))
			return refuse("an extension is cut off", why);
		bool is_name = type == EXTENSION_SERVER_NAME, is_alpn = type == EXTENSION_ALPN;
		if ((is_name && has_name) || (is_alpn && has_alpn))
			return refuse("an extension stands there twice", why);
		has_name = has_name || is_name;
		has_alpn = has_alpn || is_alpn;
		if ((is_name && read_server_name(extension, out, why)) ||
		    (is_alpn && read_alpn(extension, out, why)))
			return -1;
	}
	return 0;
}

static int
read_message(struct client_hello *out, struct failure *why)
{
	struct part message = { out->message, out->message_bytes }, ignored, part;
	size_t version;
	take_bytes(&message, MESSAGE_HEAD_BYTES, &ignored);
	if (take_number(&message, 2, &version) || version >> 8 != 3 ||
	    take_bytes(&message, RANDOM_BYTES, &ignored))
		return refuse("no version and random bytes", why);
	if (take_part(&message, 1, &part) || part.left > SESSION_ID_MOST)
		return refuse("no session id where one belongs", why);
	if (take_part(&message, 2, &part) || !part.left || part.left % 2)
		return refuse("no cipher suites where they belong", why);
	if (take_part(&message, 1, &part) || !part.left)
		return refuse("no compression methods where they belong", why);
	if (!message.left) /* before TLS 1.3 extensions may be missing */
		return 0;
	if (take_part(&message, 2, &part) || message.left)
		return refuse("the extensions do not fill the rest", why);
	return read_extensions(part, out, why);
}

enum client_hello_result
client_hello_parse(const uint8_t *bytes, size_t count, struct client_hello *out,
		   struct failure *why)
{
	out->sni[0] = out->alpn[0] = '\0';
	out->wanted_bytes = 1;
	out->message_bytes = 0;

	enum client_hello_result result = guess(bytes, count);
	if (result == CLIENT_HELLO_MORE && count > 0)
		result = assemble(bytes, count, out, why);
	if (result == CLIENT_HELLO_FOUND && read_message(out, why))
		result = CLIENT_HELLO_BAD;
	return result;
}

/* --- The filter --------------------------------------------------------------------------------- */

struct look {
	struct facts *facts;
	size_t wanted_bytes;
	bool is_done;
};

static void *
look_open(const void *conf, enum filter_side side, struct facts *facts, struct failure *why)
{
	struct look *look = calloc(1, sizeof(*look));
	(void)conf;
	(void)side;
	if (!look) {
		failure_set(why, FAILURE_MEMORY, "no memory to look at a ClientHello");
		return NULL;
	}
	look->facts = facts;
	look->wanted_bytes = 1;
	return look;
}

static int
set_or_clear(char **slot, const char *text)
{
	free(*slot);
	*slot = NULL;
	return *text ? facts_set(slot, text, strlen(text)) : 0;
}

static int
learn(struct facts *facts, const struct client_hello *hello, struct failure *why)
{
	facts->begins_with_tls = true;
	if (set_or_clear(&facts->sni, hello->sni) ||
	    set_or_clear(&facts->alpn_offered, hello->alpn))
		return failure_set(why, FAILURE_MEMORY, "no memory for what a ClientHello has");
	return 0;
}

static enum filter_result
look_at(struct look *look, struct filter_io *io)
{
	uint8_t bytes[CLIENT_HELLO_MOST];
	struct client_hello hello;
	if (evbuffer_get_length(io->src) < look->wanted_bytes && io->flush != FILTER_FINISHED)
		return FILTER_REST;
	size_t count = (size_t)evbuffer_copyout(io->src, bytes, sizeof(bytes));
	look->facts->begins_with_tls = false;
	switch (client_hello_parse(bytes, count, &hello, io->why)) {
	case CLIENT_HELLO_MORE:
		look->wanted_bytes = hello.wanted_bytes;
		if (io->flush != FILTER_FINISHED)
			return FILTER_REST;
		break; /* it never will be one */
	case CLIENT_HELLO_NOT_TLS:
		break;
	case CLIENT_HELLO_BAD:
		return FILTER_FAIL;
	case CLIENT_HELLO_FOUND:
		if (learn(look->facts, &hello, io->why))
			return FILTER_FAIL;
		break;
	}
	look->is_done = true;
	return FILTER_PASS;
}

static enum filter_result
look_step(void *state, enum filter_flow flow, struct filter_io *io)
{
	struct look *look = state;
	if (look->is_done || flow == FILTER_OUT)
		return FILTER_PASS;
	return look_at(look, io);
}

static bool
look_ready(const void *state)
{
	return ((const struct look *)state)->is_done;
}

const struct filter_type client_hello_filter = {
	.name = "client_hello",
	.open = look_open,
	.step = look_step,
	.ready = look_ready,
	.close = free,
};
