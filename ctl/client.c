#include "client.h"

#include <curl/curl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* More than this is not an answer of ours: 100 000 connections are 60 MB. */
#define ANSWER_MOST ((size_t)256 << 20)
/* A reload waits for names to be looked up and files to be read. */
#define ANSWER_SECONDS 60L

static CURL *curl;
static const char *socket_path;
static struct curl_slist *headers;

/* What has come of an answer. */
struct answer {
	char *bytes;
	size_t length;
};

void (*client_leave)(void);

void
client_fail(const char *format, ...)
{
	va_list arguments;

	if (client_leave)
		client_leave();
	fputs("penstockctl: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputs("\n", stderr);
	exit(EXIT_FAILURE);
}

void
client_begin(const char *socket)
{
	socket_path = socket;
	curl = curl_easy_init();
	headers = curl_slist_append(headers, "Content-Type: application/json");
	headers = curl_slist_append(headers, "X-Penstock: 1");
	if (!curl || !headers)
		client_fail("no memory");
	if (socket[0] == '@')
		curl_easy_setopt(curl, CURLOPT_ABSTRACT_UNIX_SOCKET, socket + 1);
	else
		curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_PROXY, "");
	curl_easy_setopt(curl, CURLOPT_TIMEOUT, ANSWER_SECONDS);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
}

void
client_end(void)
{
	curl_easy_cleanup(curl);
	curl_slist_free_all(headers);
	curl = NULL;
	headers = NULL;
}

static size_t
on_bytes(char *bytes, size_t one, size_t count, void *context)
{
	struct answer *answer = context;
	(void)one;

	if (answer->length + count > ANSWER_MOST)
		return 0;
	char *more = realloc(answer->bytes, answer->length + count + 1);
	if (!more)
		return 0;
	memcpy(more + answer->length, bytes, count);
	answer->bytes = more;
	answer->length += count;
	more[answer->length] = '\0';
	return count;
}

static _Noreturn void
fail_to_ask(CURLcode code)
{
	struct stat status;
	const char *path = socket_path;

	if (path[0] != '@' && stat(path, &status) < 0)
		client_fail(
			"there is no socket %s; is penstockd running, and does one of its tunnels "
			"lead from there to internal:admin?",
			path);
	if (path[0] != '@' && access(path, W_OK) < 0)
		client_fail("you may not connect to %s", path);
	if (code == CURLE_COULDNT_CONNECT)
		client_fail("nobody answers at %s; is penstockd running?", path);
	if (code == CURLE_OPERATION_TIMEDOUT)
		client_fail("no answer from %s within %ld seconds", path, ANSWER_SECONDS);
	client_fail("%s: %s", path, curl_easy_strerror(code));
}

/* Asks; returns the HTTP status. The answer's bytes are the caller's. */
static long
ask(const char *path, const char *body, struct answer *answer)
{
	char url[1024];
	long status = 0;

	snprintf(url, sizeof(url), "http://localhost%s", path);
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_bytes);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
	if (body)
		curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	else
		curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L);
	CURLcode code = curl_easy_perform(curl);
	if (code != CURLE_OK)
		fail_to_ask(code);
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	return status;
}

/* What the daemon says is wrong, as a text to be freed. */
static char *
complaint(const struct answer *answer, long status)
{
	json_t *json = json_loads(answer->bytes ? answer->bytes : "", 0, NULL);
	const char *text = json_string_value(json_object_get(json, "error"));
	char other[64];

	snprintf(other, sizeof(other), "the daemon answers with status %ld", status);
	char *copy = strdup(text ? text : other);
	json_decref(json);
	if (!copy)
		client_fail("no memory");
	return copy;
}

static json_t *
get(const char *path, bool may_be_missing)
{
	struct answer answer = { 0 };
	json_error_t error;
	long status = ask(path, NULL, &answer);

	if (status == 404 && may_be_missing) {
		free(answer.bytes);
		return NULL;
	}
	if (status != 200)
		client_fail("%s", complaint(&answer, status));
	json_t *json = json_loadb(answer.bytes ? answer.bytes : "", answer.length, 0, &error);
	if (!json)
		client_fail("%s answers, but not as penstockd would (%s)", socket_path, error.text);
	free(answer.bytes);
	return json;
}

json_t *
client_get(const char *path)
{
	return get(path, false);
}

json_t *
client_find(const char *path)
{
	return get(path, true);
}

char *
client_try(const char *path, json_t *body)
{
	struct answer answer = { 0 };
	char *text = body ? json_dumps(body, JSON_COMPACT) : strdup("{}");
	char *refusal = NULL;

	json_decref(body);
	if (!text)
		client_fail("no memory");
	long status = ask(path, text, &answer);
	if (status != 200)
		refusal = complaint(&answer, status);
	free(text);
	free(answer.bytes);
	return refusal;
}

void
client_post(const char *path, json_t *body)
{
	char *refusal = client_try(path, body);
	if (refusal)
		client_fail("%s", refusal);
}

const char *
client_escape(const char *text)
{
	static char *kept[4];
	static unsigned int next;
	char **slot = &kept[next++ % 4];

	curl_free(*slot);
	*slot = curl_easy_escape(curl, text, 0);
	if (!*slot)
		client_fail("no memory");
	return *slot;
}
