#include "services/http.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static struct http *http;

static int
set_up(void **state)
{
	(void)state;
	http = http_open();
	return http ? 0 : -1;
}

static int
tear_down(void **state)
{
	(void)state;
	http_close(http);
	return 0;
}

/* Feeds all of it; what is behind a complete request is left alone. */
static enum http_result
feed(const char *text)
{
	size_t used;
	return http_feed(http, text, strlen(text), &used);
}

static const struct http_request *
complete(const char *text)
{
	assert_int_equal(feed(text), HTTP_COMPLETE);
	return http_request(http);
}

static void
assert_wrong(const char *text, int status)
{
	http_close(http);
	http = http_open();
	assert_int_equal(feed(text), HTTP_WRONG);
	assert_int_equal(http_status(http), status);
	assert_int_equal(feed("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), HTTP_WRONG);
}

static void
test_request_is_taken_apart(void **state)
{
	(void)state;
	const struct http_request *request =
		complete("GET /v1/conn%65ctions?sort=rate&limit=5 HTTP/1.1\r\n"
			 "hOsT: example:80\r\nX-PENSTOCK: 1\r\nOther: x\r\n\r\n");
	assert_string_equal(request->method, "GET");
	assert_string_equal(request->path, "/v1/connections");
	assert_string_equal(request->query, "sort=rate&limit=5");
	assert_string_equal(request->host, "example:80");
	assert_string_equal(request->content_type, "");
	assert_true(request->is_marked);
	assert_true(request->keeps_open);
	assert_false(request->is_old);
}

static void
test_body_and_type(void **state)
{
	(void)state;
	const struct http_request *request =
		complete("POST /x HTTP/1.1\r\nHost: a\r\n"
			 "Content-Type: Application/JSON; charset=utf-8\r\n"
			 "Content-Length: 7\r\n\r\n{\"a\":1}");
	assert_string_equal(request->content_type, "application/json");
	assert_int_equal(request->body_bytes, 7);
	assert_string_equal(request->body, "{\"a\":1}");
	assert_false(request->is_marked);
	request = complete("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
			   "2\r\n{}\r\n1\r\n \r\n0\r\n\r\n");
	assert_string_equal(request->body, "{} ");
}

static void
test_one_byte_at_a_time_and_pipelined(void **state)
{
	(void)state;
	static const char text[] = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
				   "GET /b HTTP/1.1\r\nHost: b\r\n\r\n\r\nGET /c HTTP/1.0\r\n\r\n";
	static const char *const paths[] = { "/a", "/b", "/c" };

	for (size_t piece = 1; piece < sizeof(text); piece++) {
		size_t found = 0;
		for (size_t at = 0, used; at < sizeof(text) - 1; at += used) {
			size_t count = sizeof(text) - 1 - at;
			enum http_result result =
				http_feed(http, text + at, count < piece ? count : piece, &used);
			assert_int_not_equal(result, HTTP_WRONG);
			if (result == HTTP_COMPLETE)
				assert_string_equal(http_request(http)->path, paths[found++]);
		}
		assert_int_equal(found, 3);
		assert_false(http_is_inside(http));
	}
}

static void
test_when_a_connection_stays(void **state)
{
	(void)state;
	assert_false(complete("GET / HTTP/1.0\r\n\r\n")->keeps_open);
	assert_true(http_request(http)->is_old);
	assert_true(complete("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")->keeps_open);
	assert_false(
		complete("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")->keeps_open);
}

static void
test_absolute_target_names_the_host(void **state)
{
	(void)state;
	const struct http_request *request =
		complete("GET http://other.example:1/x?y HTTP/1.1\r\nHost: a\r\n\r\n");
	assert_string_equal(request->host, "other.example");
	assert_string_equal(request->path, "/x");
	assert_string_equal(request->query, "y");
	assert_string_equal(complete("GET http://b HTTP/1.1\r\nHost: a\r\n\r\n")->path, "/");
	assert_string_equal(complete("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")->path, "");
	assert_string_equal(complete("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")->path, "");
}

static void
test_what_is_refused(void **state)
{
	(void)state;
	assert_wrong("\x16\x03\x01\x02", 501); /* TLS to a plain port */
	assert_wrong("GET / HTTP/1.1\r\n\r\n", 400);
	assert_wrong("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400);
	assert_wrong("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400);
	assert_wrong("GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n", 400);
	assert_wrong("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505);
	assert_wrong("FETCH / HTTP/1.1\r\nHost: a\r\n\r\n", 501);
	assert_wrong("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8193\r\n\r\n", 413);
	assert_wrong("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
		     400);
	assert_wrong("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
		     "Transfer-Encoding: chunked\r\n\r\n",
		     400);
	assert_wrong("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400);
}

static void
test_what_is_too_long(void **state)
{
	(void)state;
	char text[12 * 1024];
	static const char post[] =
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

	snprintf(text, sizeof(text), "GET /%01100d HTTP/1.1\r\nHost: a\r\n\r\n", 0);
	assert_wrong(text, 414);
	snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: a\r\nX: %09000d\r\n\r\n", 0);
	assert_wrong(text, 431);
	snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: %0300d\r\n\r\n", 0);
	assert_wrong(text, 431);
	snprintf(text, sizeof(text), "%s2001\r\n%08193d", post, 0);
	assert_wrong(text, 413);
}

static void
test_who_waits_for_a_word(void **state)
{
	(void)state;
	assert_int_equal(feed("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n"
			      "Content-Length: 2\r\n\r\n"),
			 HTTP_MORE);
	assert_true(http_request(http)->expects);
	assert_true(http_is_inside(http));
	assert_int_equal(feed("{}"), HTTP_COMPLETE);
	assert_false(http_request(http)->expects);
	assert_int_equal(feed("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n"
			      "Transfer-Encoding: chunked\r\n\r\n"),
			 HTTP_MORE);
	assert_true(http_request(http)->expects);
	assert_int_equal(feed("2\r\n"), HTTP_MORE);
	assert_false(http_request(http)->expects);
	assert_int_equal(feed("{}\r\n0\r\n\r\n"), HTTP_COMPLETE);
}

static void
test_query(void **state)
{
	(void)state;
	char value[8];
	static const char query[] = "a=1&sort=r%20+&b&long=12345678&sorted=2&bad=%zz";

	assert_true(http_query(query, "sort", value, sizeof(value)));
	assert_string_equal(value, "r  ");
	assert_true(http_query(query, "sorted", value, sizeof(value)));
	assert_string_equal(value, "2");
	assert_false(http_query(query, "b", value, sizeof(value)));
	assert_false(http_query(query, "long", value, sizeof(value)));
	assert_false(http_query(query, "bad", value, sizeof(value)));
	assert_false(http_query(query, "other", value, sizeof(value)));
	assert_false(http_query("", "a", value, sizeof(value)));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_request_is_taken_apart, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_body_and_type, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_one_byte_at_a_time_and_pipelined, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(test_when_a_connection_stays, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_absolute_target_names_the_host, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(test_what_is_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_what_is_too_long, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_who_waits_for_a_word, set_up, tear_down),
		cmocka_unit_test(test_query),
	};
	return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
