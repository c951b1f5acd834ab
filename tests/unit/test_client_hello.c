/* client_hello: hellos made here byte by byte, as clients make them and as nobody should; every prefix,
 * every cut into records. */
#include "filters/client_hello.h"
#include "stack_ends.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

/* Bytes in the making. */
struct bytes {
	uint8_t at[8 * CLIENT_HELLO_MOST];
	size_t count;
};

static void
put(struct bytes *bytes, const void *more, size_t count)
{
	assert_true(bytes->count + count <= sizeof(bytes->at));
	memcpy(bytes->at + bytes->count, more, count);
	bytes->count += count;
}

static void
put_number(struct bytes *bytes, size_t number, size_t size)
{
	for (size_t i = size; i-- > 0;) {
		uint8_t byte = (uint8_t)(number >> 8 * i);
		put(bytes, &byte, 1);
	}
}

/* Behind its length. */
static void
put_part(struct bytes *bytes, size_t size, const void *more, size_t count)
{
	put_number(bytes, count, size);
	put(bytes, more, count);
}

static void
put_extension(struct bytes *bytes, size_t type, const void *content, size_t count)
{
	put_number(bytes, type, 2);
	put_part(bytes, 2, content, count);
}

static void
put_name(struct bytes *bytes, const void *name, size_t count)
{
	static struct bytes entry, list;
	entry.count = list.count = 0;
	put_number(&entry, 0, 1);
	put_part(&entry, 2, name, count);
	put_part(&list, 2, entry.at, entry.count);
	put_extension(bytes, 0, list.at, list.count);
}

/* `protocols`: each behind its length. */
static void
put_alpn(struct bytes *bytes, const void *protocols, size_t count)
{
	static struct bytes list;
	list.count = 0;
	put_part(&list, 2, protocols, count);
	put_extension(bytes, 16, list.at, list.count);
}

/* The message around extensions; NULL = none at all. */
static struct bytes *
message_of(const struct bytes *extensions)
{
	static struct bytes body, message;
	static const uint8_t random[32] = "0123456789abcdef0123456789abcdef";
	body.count = message.count = 0;
	put_number(&body, 0x0303, 2);
	put(&body, random, 32);
	put_part(&body, 1, random, 32);
	put_part(&body, 2, "\x0a\x0a\x13\x01\x13\x02\xc0\x2f", 8); /* the first is GREASE */
	put_part(&body, 1, "\0", 1);
	if (extensions)
		put_part(&body, 2, extensions->at, extensions->count);
	put_number(&message, 1, 1);
	put_part(&message, 3, body.at, body.count);
	return &message;
}

static struct bytes *
records_of(const struct bytes *message, size_t each)
{
	static struct bytes records;
	records.count = 0;
	for (size_t at = 0; at < message->count; at += each) {
		size_t count = message->count - at < each ? message->count - at : each;
		put(&records, "\x16\x03\x01", 3);
		put_part(&records, 2, message->at + at, count);
	}
	return &records;
}

static struct bytes *
hello_of(const struct bytes *extensions)
{
	return records_of(message_of(extensions), 16384);
}

static struct client_hello hello;
static struct failure why;

static enum client_hello_result
parse(const uint8_t *bytes, size_t count)
{
	uint8_t *copy = malloc(count ? count : 1); /* so that a sanitizer sees a step too far */
	memcpy(copy, bytes, count);
	why = (struct failure){ .kind = FAILURE_NONE };
	memset(&hello, 0x55, sizeof(hello));
	enum client_hello_result result = client_hello_parse(copy, count, &hello, &why);
	free(copy);
	assert_int_equal(result == CLIENT_HELLO_BAD, why.kind == FAILURE_PROTOCOL);
	return result;
}

static void
expect(const struct bytes *bytes, const char *sni)
{
	if (parse(bytes->at, bytes->count) != CLIENT_HELLO_FOUND)
		fail_msg("%s: %s", sni, why.text);
	assert_string_equal(hello.sni, sni);
}

static void
expect_bad(const struct bytes *bytes, const char *text)
{
	if (parse(bytes->at, bytes->count) != CLIENT_HELLO_BAD)
		fail_msg("taken in spite of: %s", text);
	if (!strstr(why.text, text))
		fail_msg("'%s' does not say '%s'", why.text, text);
}

/* As a browser has it: GREASE, extensions of no interest, key shares, an outer ECH. */
static struct bytes *
browser(void)
{
	static struct bytes extensions;
	static const uint8_t key[1216] = { 1, 2, 3 };
	extensions.count = 0;
	put_extension(&extensions, 0x8a8a, "", 0);
	put_extension(&extensions, 0xfe0d, key, 250);
	put_extension(&extensions, 51, key, sizeof(key));
	put_name(&extensions, "WWW.Example.org", 15);
	put_alpn(&extensions, "\2h2\10http/1.1", 12);
	put_extension(&extensions, 43, "\x04\x03\x04\x03\x03", 5);
	put_extension(&extensions, 0xfafa, "\0", 1);
	return &extensions;
}

static void
test_browser(void **unused)
{
	(void)unused;
	expect(hello_of(browser()), "www.example.org");
	assert_string_equal(hello.alpn, "h2,http/1.1");
}

static void
test_little(void **unused)
{
	(void)unused;
	static struct bytes extensions;
	extensions.count = 0;
	expect(hello_of(NULL), "");
	assert_string_equal(hello.alpn, "");
	expect(hello_of(&extensions), "");
	put_extension(&extensions, 43, "\x02\x03\x04", 3);
	expect(hello_of(&extensions), "");
	put_name(&extensions, "a.", 2);
	expect(hello_of(&extensions), "a");
}

/* Any prefix asks for more, and never for more than is missing; what follows changes nothing. */
static void
test_prefixes(void **unused)
{
	(void)unused;
	static const size_t cuts[] = { 16384, 1000, 37, 5, 4, 3, 1 };
	static struct bytes extensions;
	extensions.count = 0;
	put_name(&extensions, "example.org", 11);
	put_alpn(&extensions, "\2h2", 3);
	for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
		struct bytes *records = records_of(message_of(&extensions), cuts[i]);
		size_t whole = records->count;
		for (size_t count = 0; count < whole; count++) {
			assert_int_equal(parse(records->at, count), CLIENT_HELLO_MORE);
			assert_true(hello.wanted_bytes > count && hello.wanted_bytes <= whole);
		}
		put(records, "\x17\x03\x03\0\1x", 6);
		expect(records, "example.org");
		assert_string_equal(hello.alpn, "h2");
	}
}

static void
test_other_protocols(void **unused)
{
	(void)unused;
	static const struct {
		const char *bytes;
		size_t count, more; /* so many may still be TLS */
	} cases[] = {
		{ "GET / HTTP/1.1\r\n", 16, 0 },  { "SSH-2.0-OpenSSH", 15, 0 },
		{ "\x80\x2e\x01\x00\x02", 5, 0 }, /* SSLv2 */
		{ "\x15\x03\x01\0\2\1\0", 7, 0 }, /* an alert */
		{ "\x16\x02\x01\0\2\1\0", 7, 1 }, { "\x16\x03\x05\0\2\1\0", 7, 2 },
		{ "\x16\x03\x01\0\0\1\0", 7, 4 }, { "\x16\x03\x01\x40\1\1\0", 7, 4 },
		{ "\x16\x03\x01\0\2\2\0", 7, 5 }, /* a ServerHello */
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		for (size_t count = 0; count <= cases[i].count; count++)
			assert_int_equal(parse((const uint8_t *)cases[i].bytes, count),
					 count <= cases[i].more ? CLIENT_HELLO_MORE
								: CLIENT_HELLO_NOT_TLS);
}

static void
test_names(void **unused)
{
	(void)unused;
	static struct bytes extensions, raw;
	char name[300];
	memset(name, 'n', sizeof(name));
	for (size_t length = 253; length < 258; length++) {
		extensions.count = 0;
		put_name(&extensions, name, length);
		assert_int_equal(parse(hello_of(&extensions)->at, hello_of(&extensions)->count),
				 length <= 255 ? CLIENT_HELLO_FOUND : CLIENT_HELLO_BAD);
	}
	static const struct {
		const char *name;
		size_t length;
	} bad[] = { { "", 0 }, { "a\0b", 3 }, { "a b", 3 }, { "a\n", 2 }, { "\xc3\xa9", 2 } };
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		extensions.count = 0;
		put_name(&extensions, bad[i].name, bad[i].length);
		expect_bad(hello_of(&extensions), "the server's name");
	}
	extensions.count = 0;
	put_name(&extensions, "a", 1);
	put_name(&extensions, "b", 1);
	expect_bad(hello_of(&extensions), "twice");

	/* A list of its own: another type of name is stepped over, a second name of a host is not. */
	static const struct {
		const char *content;
		size_t count;
		const char *sni, *why;
	} lists[] = {
		{ "\0\x09\1\0\1x\0\0\2hi", 11, "hi", NULL },
		{ "\0\x08\0\0\1a\0\0\1b", 10, NULL, "two server names" },
		{ "\0\0", 2, NULL, "malformed" },
		{ "", 0, NULL, "malformed" },
		{ "\0\4\0\0\1ax", 7, NULL, "malformed" },
		{ "\0\5\0\0\1a", 6, NULL, "malformed" },
		{ "\0\4\0\0\2a", 6, NULL, "cut off" },
		{ "\0\1\0", 3, NULL, "cut off" },
	};
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
		raw.count = 0;
		put_extension(&raw, 0, lists[i].content, lists[i].count);
		if (lists[i].sni)
			expect(hello_of(&raw), lists[i].sni);
		else
			expect_bad(hello_of(&raw), lists[i].why);
	}
}

static void
test_protocols(void **unused)
{
	(void)unused;
	static struct bytes extensions;
	static const struct {
		const char *protocols;
		size_t count;
		const char *why;
	} bad[] = { { "", 0, "malformed" },
		    { "\0", 1, "empty" },
		    { "\3h2", 3, "cut off" },
		    { "\2h2\0", 4, "empty" },
		    { "\2h2\5", 4, "cut off" } };
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		extensions.count = 0;
		put_alpn(&extensions, bad[i].protocols, bad[i].count);
		expect_bad(hello_of(&extensions), bad[i].why);
	}
	extensions.count = 0;
	put_alpn(&extensions, "\2h2", 3);
	put_alpn(&extensions, "\2h2", 3);
	expect_bad(hello_of(&extensions), "twice");

	/* What nobody can ask for is left out, and so is what there is no room for. */
	extensions.count = 0;
	put_alpn(&extensions, "\2\x8a\x8a\3a,b\3a b\1\0\2h2\1x", 18);
	expect(hello_of(&extensions), "");
	assert_string_equal(hello.alpn, "h2,x");
	static uint8_t many[1536];
	memset(many, 'p', sizeof(many));
	for (size_t at = 0; at < sizeof(many); at += 256)
		many[at] = 255;
	extensions.count = 0;
	put_alpn(&extensions, many, sizeof(many));
	expect(hello_of(&extensions), "");
	assert_int_equal(strlen(hello.alpn), 255 * 4 + 3);
}

/* Each length in the message, made wrong in turn, is either refused or changes what is skipped. */
static void
test_damage(void **unused)
{
	(void)unused;
	static struct bytes damaged;
	damaged = *hello_of(browser());
	for (size_t at = 0; at < damaged.count; at++) {
		uint8_t was = damaged.at[at];
		for (unsigned int other = 0; other < 256; other += 51) {
			damaged.at[at] = (uint8_t)other;
			parse(damaged.at, damaged.count);
		}
		damaged.at[at] = was;
	}
	struct bytes *message = message_of(browser());
	for (size_t count = 4; count < message->count; count++) { /* it says that it is shorter */
		static struct bytes shorter;
		shorter = *message;
		shorter.count = count;
		shorter.at[1] = 0;
		shorter.at[2] = (uint8_t)((count - 4) >> 8);
		shorter.at[3] = (uint8_t)(count - 4);
		struct bytes *records = records_of(&shorter, 16384);
		bool has_no_extensions = count == 4 + 2 + 32 + 33 + 10 + 2;
		assert_int_equal(parse(records->at, records->count),
				 has_no_extensions ? CLIENT_HELLO_FOUND : CLIENT_HELLO_BAD);
	}
}

static void
test_sizes(void **unused)
{
	(void)unused;
	static struct bytes extensions, big;
	static const uint8_t padding[2 * CLIENT_HELLO_MOST];
	extensions.count = 0;
	put_name(&extensions, "example.org", 11);
	put_extension(&extensions, 21, padding, 8000);
	put_extension(&extensions, 22, padding, 8000);
	expect(hello_of(&extensions), "example.org");
	/* The same in records of one byte takes six times as much. */
	expect_bad(records_of(message_of(&extensions), 1), "longer than 16 KiB");
	extensions.count = 0;
	put_extension(&extensions, 21, padding, 17000);
	expect_bad(hello_of(&extensions), "longer than 16 KiB");

	/* Known from the head alone. */
	big.count = 0;
	put(&big, "\x16\x03\x01\x40\0\1\1\0\0", 9);
	expect_bad(&big, "longer than 16 KiB");

	big.count = 0;
	put(&big, "\x16\x03\x01\0\1\1\x17\x03\x03\0\1\1", 12);
	expect_bad(&big, "another record");
	big.count = 0;
	put(&big, "\x16\x03\x01\0\1\1\x16\x03\x01\0\0", 11);
	expect_bad(&big, "empty");
}

/* --- The filter --------------------------------------------------------------------------------- */

struct look {
	struct facts facts;
	struct stack *stack;
	struct stack_flow flows[FILTER_FLOWS];
};

static void
look_open(struct look *look)
{
	struct chain_link link = { &client_hello_filter, NULL };
	struct chain chain = { &link, 1 };
	*look = (struct look){ .facts.target_host = "" };
	stack_ends_open(look->flows, FILTER_FLUSH);
	assert_int_equal(stack_open(&look->stack, &chain, FILTER_NEAR, &look->facts, &why), 0);
}

static void
look_close(struct look *look)
{
	stack_close(look->stack);
	facts_release(&look->facts);
	stack_ends_close(look->flows);
}

static enum stack_result
look_step(struct look *look, const void *bytes, size_t count)
{
	evbuffer_add(look->flows[FILTER_IN].src, bytes, count);
	return stack_step(look->stack, look->flows, &why);
}

static void
assert_untouched(struct look *look, const void *bytes, size_t count)
{
	assert_true(stack_is_ready(look->stack));
	assert_true(stack_is_empty(look->stack, FILTER_IN) &&
		    stack_is_empty(look->stack, FILTER_OUT));
	struct evbuffer *got = look->flows[FILTER_IN].dst;
	assert_int_equal(evbuffer_get_length(got), count);
	assert_memory_equal(evbuffer_pullup(got, -1), bytes, count);
}

/* Nothing moves until it is known; then all does, as it came. */
static void
test_filter_looks(void **unused)
{
	(void)unused;
	struct look look;
	struct bytes *said = hello_of(browser());
	look_open(&look);
	for (size_t at = 0; at < said->count; at++) {
		assert_false(stack_is_ready(look.stack));
		assert_int_equal(evbuffer_get_length(look.flows[FILTER_IN].dst), 0);
		assert_int_not_equal(look_step(&look, said->at + at, 1), STACK_FAILED);
	}
	assert_untouched(&look, said->at, said->count);
	assert_true(look.facts.begins_with_tls);
	assert_string_equal(look.facts.sni, "www.example.org");
	assert_string_equal(look.facts.alpn_offered, "h2,http/1.1");
	look_close(&look);
}

static void
test_filter_sees_no_tls(void **unused)
{
	(void)unused;
	struct look look;
	look_open(&look);
	/* What a tunnel before this one has learnt of a TLS that is over stays known, but is not this. */
	assert_int_equal(facts_set(&look.facts.sni, "before", 6), 0);
	look.facts.begins_with_tls = true;
	assert_int_not_equal(look_step(&look, "G", 1), STACK_FAILED);
	assert_untouched(&look, "G", 1);
	assert_false(look.facts.begins_with_tls);
	assert_string_equal(look.facts.sni, "before");
	look_close(&look);

	look_open(&look); /* half a hello and the end */
	assert_int_not_equal(look_step(&look, "\x16\x03\x01\0\x80\1", 6), STACK_FAILED);
	assert_false(stack_is_ready(look.stack));
	look.flows[FILTER_IN].flush = FILTER_FINISHED;
	assert_int_not_equal(look_step(&look, "", 0), STACK_FAILED);
	assert_untouched(&look, "\x16\x03\x01\0\x80\1", 6);
	assert_true(look.flows[FILTER_IN].ended);
	look_close(&look);

	look_open(&look); /* a hello without a name */
	assert_int_equal(facts_set(&look.facts.sni, "before", 6), 0);
	struct bytes *said = hello_of(NULL);
	assert_int_not_equal(look_step(&look, said->at, said->count), STACK_FAILED);
	assert_true(look.facts.begins_with_tls);
	assert_null(look.facts.sni);
	look_close(&look);

	look_open(&look);
	assert_int_equal(look_step(&look, "\x16\x03\x01\0\1\1\x17\x03\x03\0\1\1", 12),
			 STACK_FAILED);
	assert_int_equal(why.kind, FAILURE_PROTOCOL);
	assert_false(stack_is_ready(look.stack));
	look_close(&look);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_browser),      cmocka_unit_test(test_little),
		cmocka_unit_test(test_prefixes),     cmocka_unit_test(test_other_protocols),
		cmocka_unit_test(test_names),        cmocka_unit_test(test_protocols),
		cmocka_unit_test(test_damage),       cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_filter_looks), cmocka_unit_test(test_filter_sees_no_tls),
	};
	return cmocka_run_group_tests_name("client_hello", tests, NULL, NULL);
}
