#include "http.h"

#include <ctype.h>
#include <http_parser.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Where the header's value that comes goes to. */
enum slot { SLOT_NONE, SLOT_HOST, SLOT_CONTENT_TYPE, SLOT_MARK, SLOT_EXPECT };

struct http {
	http_parser parser;
	struct http_request request;
	char target[HTTP_PATH_MOST];
	char name[16]; /* of the header that comes; longer ones are nobody's */
	char expect[16];
	size_t target_bytes, name_bytes, value_bytes;
	unsigned int hosts;
	enum slot slot;
	int status; /* set by a callback that refuses */
	bool in_value, begun, complete;
};

static const struct {
	const char *name;
	enum slot slot;
} known[] = {
	{ "host", SLOT_HOST },
	{ "content-type", SLOT_CONTENT_TYPE },
	{ "x-penstock", SLOT_MARK },
	{ "expect", SLOT_EXPECT },
};

static int
refuse(struct http *http, int status)
{
	http->status = status;
	return -1; /* not 1: behind a head that says "no body" */
}

/* --- callbacks of the parser: other than 0 stops it ------------------------------------------------ */

static int
on_begin(http_parser *parser)
{
	struct http *http = parser->data;
	http->begun = true;
	return 0;
}

static int
on_target(http_parser *parser, const char *at, size_t count)
{
	struct http *http = parser->data;
	if (count >= sizeof(http->target) - http->target_bytes)
		return refuse(http, 414);
	memcpy(http->target + http->target_bytes, at, count);
	http->target_bytes += count;
	return 0;
}

static int
on_name(http_parser *parser, const char *at, size_t count)
{
	struct http *http = parser->data;
	if (http->in_value) {
		http->in_value = false;
		http->name_bytes = 0;
	}
	size_t room = sizeof(http->name) - http->name_bytes;
	size_t taken = count < room ? count : room;
	memcpy(http->name + http->name_bytes, at, taken);
	http->name_bytes += taken;
	return 0;
}

static enum slot
slot_of(const struct http *http)
{
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (http->name_bytes == strlen(known[i].name) &&
		    !strncasecmp(http->name, known[i].name, http->name_bytes))
			return known[i].slot;
	return SLOT_NONE;
}

static int
append(struct http *http, char *to, size_t size, const char *at, size_t count)
{
	if (count >= size - http->value_bytes)
		return refuse(http, 431);
	memcpy(to + http->value_bytes, at, count);
	http->value_bytes += count;
	to[http->value_bytes] = '\0';
	return 0;
}

static int
on_value(http_parser *parser, const char *at, size_t count)
{
	struct http *http = parser->data;
	struct http_request *request = &http->request;

	if (!http->in_value) {
		http->in_value = true;
		http->value_bytes = 0;
		http->slot = slot_of(http);
		if (http->slot == SLOT_HOST && http->hosts++)
			return refuse(http, 400); /* RFC 9112 section 3.2 */
	}
	switch (http->slot) {
	case SLOT_HOST:
		return append(http, request->host, sizeof(request->host), at, count);
	case SLOT_CONTENT_TYPE:
		return append(http, request->content_type, sizeof(request->content_type), at,
			      count);
	case SLOT_EXPECT:
		return append(http, http->expect, sizeof(http->expect), at, count);
	case SLOT_MARK:
		request->is_marked = true;
		break;
	case SLOT_NONE:
		break;
	}
	return 0;
}

static int
digit(char letter)
{
	if (letter >= '0' && letter <= '9')
		return letter - '0';
	letter = (char)tolower((unsigned char)letter);
	return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

/* Undoes %XX; "+" stands for a space in a query. -1: not well formed, a zero byte, or too long. */
static int
decode(const char *from, size_t count, bool is_query, char *to, size_t size)
{
	size_t length = 0;

	for (size_t i = 0; i < count; i++) {
		char letter = from[i];
		if (letter == '%') {
			int high = i + 2 < count ? digit(from[i + 1]) : -1;
			int low = i + 2 < count ? digit(from[i + 2]) : -1;
			if (high < 0 || low < 0 || !(high | low))
				return -1;
			letter = (char)(high << 4 | low);
			i += 2;
		} else if (is_query && letter == '+') {
			letter = ' ';
		}
		if (length + 1 >= size)
			return -1;
		to[length++] = letter;
	}
	to[length] = '\0';
	return 0;
}

static void
copy_part(const struct http *http, const struct http_parser_url *url,
	  enum http_parser_url_fields part, char *to, size_t size)
{
	size_t count = url->field_data[part].len;
	if (count >= size)
		count = size - 1;
	memcpy(to, http->target + url->field_data[part].off, count);
	to[count] = '\0';
}

/* The target in its absolute form names the host, whatever the header says (RFC 9112 section 3.2.2). */
static int
split_target(struct http *http)
{
	struct http_request *request = &http->request;
	struct http_parser_url url;

	if (http->parser.method == HTTP_CONNECT ||
	    (http->target_bytes == 1 && http->target[0] == '*')) {
		request->path[0] = '\0'; /* names nothing that is here */
		return 0;
	}
	http_parser_url_init(&url);
	if (http_parser_parse_url(http->target, http->target_bytes, 0, &url))
		return -1;
	if (url.field_set & 1 << UF_HOST)
		copy_part(http, &url, UF_HOST, request->host, sizeof(request->host));
	if (url.field_set & 1 << UF_QUERY)
		copy_part(http, &url, UF_QUERY, request->query, sizeof(request->query));
	if (!(url.field_set & 1 << UF_PATH)) {
		request->path[0] = '/';
		return 0;
	}
	return decode(http->target + url.field_data[UF_PATH].off, url.field_data[UF_PATH].len,
		      false, request->path, sizeof(request->path));
}

static void
trim_content_type(char *text)
{
	text[strcspn(text, "; \t")] = '\0';
	for (; *text; text++)
		*text = (char)tolower((unsigned char)*text);
}

static int
on_head(http_parser *parser)
{
	struct http *http = parser->data;
	struct http_request *request = &http->request;

	if (parser->http_major != 1 || parser->http_minor > 1)
		return refuse(http, 505);
	request->is_old = !parser->http_minor;
	request->method = http_method_str((enum http_method)parser->method);
	request->keeps_open = http_should_keep_alive(parser);
	if (!request->is_old && !http->hosts)
		return refuse(http, 400);
	if (split_target(http) < 0)
		return refuse(http, 400);
	trim_content_type(request->content_type);
	if (parser->content_length != UINT64_MAX && parser->content_length > HTTP_BODY_MOST)
		return refuse(http, 413);
	request->expects = !request->is_old && !strcasecmp(http->expect, "100-continue");
	return 0;
}

static int
on_body(http_parser *parser, const char *at, size_t count)
{
	struct http *http = parser->data;
	struct http_request *request = &http->request;
	if (count > HTTP_BODY_MOST - request->body_bytes)
		return refuse(http, 413);
	memcpy(request->body + request->body_bytes, at, count);
	request->body_bytes += count;
	request->expects = false; /* it did not wait */
	return 0;
}

/* The head of a chunk: what it belongs to is under way. */
static int
on_chunk(http_parser *parser)
{
	struct http *http = parser->data;
	http->request.expects = false;
	return 0;
}

static int
on_complete(http_parser *parser)
{
	struct http *http = parser->data;
	http->complete = true;
	http->request.expects = false;
	http->request.body[http->request.body_bytes] = '\0';
	http_parser_pause(parser, 1);
	return 0;
}

static const http_parser_settings callbacks = {
	.on_message_begin = on_begin,
	.on_url = on_target,
	.on_header_field = on_name,
	.on_header_value = on_value,
	.on_headers_complete = on_head,
	.on_chunk_header = on_chunk,
	.on_body = on_body,
	.on_message_complete = on_complete,
};

/* --- the outside ---------------------------------------------------------------------------------- */

static void
set_limits(void)
{
	http_parser_set_max_header_size((uint32_t)HTTP_HEAD_MOST);
}

static void
begin(struct http *http)
{
	memset(http, 0, sizeof(*http));
	http_parser_init(&http->parser, HTTP_REQUEST);
	http->parser.data = http;
}

struct http *
http_open(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct http *http = malloc(sizeof(*http));

	pthread_once(&once, set_limits);
	if (http)
		begin(http);
	return http;
}

void
http_close(struct http *http)
{
	free(http);
}

static int
status_of(const struct http *http)
{
	if (http->status)
		return http->status;
	switch (HTTP_PARSER_ERRNO(&http->parser)) {
	case HPE_HEADER_OVERFLOW:
		/* Chunks' heads and trailers are counted as well; the client cannot tell. */
		return 431;
	case HPE_INVALID_METHOD:
		return 501;
	case HPE_INVALID_VERSION:
		return 505;
	default:
		return 400;
	}
}

enum http_result
http_feed(struct http *http, const void *bytes, size_t count, size_t *used)
{
	*used = 0;
	if (http->complete)
		begin(http);
	if (http->status)
		return HTTP_WRONG;
	if (!count) /* to the parser this would be the end of stream */
		return HTTP_MORE;
	size_t taken = http_parser_execute(&http->parser, &callbacks, bytes, count);
	*used = taken < count ? taken : count;
	if (http->complete)
		return HTTP_COMPLETE;
	if (HTTP_PARSER_ERRNO(&http->parser) != HPE_OK) {
		http->status = status_of(http);
		return HTTP_WRONG;
	}
	return HTTP_MORE;
}

const struct http_request *
http_request(const struct http *http)
{
	return &http->request;
}

int
http_status(const struct http *http)
{
	return http->status;
}

bool
http_is_inside(const struct http *http)
{
	return http->begun && !http->complete;
}

bool
http_query(const char *query, const char *name, char *value, size_t size)
{
	size_t length = strlen(name);

	while (*query) {
		size_t pair = strcspn(query, "&");
		if (pair > length && query[length] == '=' && !strncmp(query, name, length))
			return decode(query + length + 1, pair - length - 1, true, value, size) ==
			       0;
		query += pair + (query[pair] == '&');
	}
	return false;
}

const char *
http_reason(int status)
{
	switch (status) {
#define REASON(number, name, text) \
	case number:               \
		return #text;
		HTTP_STATUS_MAP(REASON)
#undef REASON
	default:
		return "Unknown";
	}
}
