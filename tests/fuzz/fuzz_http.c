/* Any bytes as HTTP requests: read whole and read in pieces they are the same requests with the same end,
 * and nothing in them is longer than it may be. */
#include "services/http.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* What came of a stream, in short. */
struct outcome {
	unsigned int requests;
	int status;
	uint64_t digest;
};

static void
mix(struct outcome *outcome, const char *text, size_t count)
{
	for (size_t i = 0; i < count; i++)
		outcome->digest = (outcome->digest ^ (uint8_t)text[i]) * UINT64_C(0x100000001b3);
	outcome->digest = outcome->digest * 31 + count;
}

static void
note(struct outcome *outcome, const struct http_request *request)
{
	char value[16];
	if (strlen(request->path) >= HTTP_PATH_MOST || request->body_bytes > HTTP_BODY_MOST ||
	    request->body[request->body_bytes] || !request->method)
		abort();
	outcome->requests++;
	mix(outcome, request->method, strlen(request->method));
	mix(outcome, request->path, strlen(request->path));
	mix(outcome, request->query, strlen(request->query));
	mix(outcome, request->host, strlen(request->host));
	mix(outcome, request->content_type, strlen(request->content_type));
	mix(outcome, request->body, request->body_bytes);
	outcome->digest += request->is_marked + 2U * request->keeps_open + 4U * request->is_old;
	if (http_query(request->query, "limit", value, sizeof(value)) &&
	    strlen(value) >= sizeof(value))
		abort();
}

static struct outcome
read_all(const uint8_t *bytes, size_t size, size_t piece)
{
	struct outcome outcome = { 0 };
	struct http *http = http_open();
	size_t at = 0, used;

	while (http && at < size) {
		size_t count = size - at < piece ? size - at : piece;
		/* A copy of its own, so that a look behind it is found. */
		uint8_t *copy = malloc(count);
		if (!copy)
			break;
		memcpy(copy, bytes + at, count);
		enum http_result result = http_feed(http, copy, count, &used);
		free(copy);
		if (used > count || (result == HTTP_MORE && used != count))
			abort();
		at += used;
		if (result == HTTP_COMPLETE)
			note(&outcome, http_request(http));
		if (result == HTTP_WRONG) {
			outcome.status = http_status(http);
			break;
		}
	}
	http_close(http);
	return outcome;
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct outcome whole = read_all(bytes, size, SIZE_MAX);
	for (size_t piece = 1; piece < 100; piece = piece * 3 + 1) {
		struct outcome cut = read_all(bytes, size, piece);
		if (cut.requests != whole.requests || cut.digest != whole.digest ||
		    !cut.status != !whole.status)
			abort();
	}
	return 0;
}
