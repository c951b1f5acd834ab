/* address: what an operator writes, what the kernel says, and what contains what. */
#include "address.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static void
test_good(void **state)
{
	(void)state;
	static const struct {
		const char *written;
		enum address_kind kind;
		const char *text, *name;
		uint16_t port;
	} table[] = {
		{ "10.0.0.5:6379", ADDRESS_IP, "10.0.0.5:6379", NULL, 6379 },
		{ "127.0.0.1:0", ADDRESS_IP, "127.0.0.1:0", NULL, 0 },
		{ "127.0.0.1:0080", ADDRESS_IP, "127.0.0.1:80", NULL, 80 },
		{ "[::1]:80", ADDRESS_IP, "[::1]:80", NULL, 80 },
		{ "[2001:DB8:0:0::1]:65535", ADDRESS_IP, "[2001:db8::1]:65535", NULL, 65535 },
		{ "[fe80::1%lo]:80", ADDRESS_IP, "[fe80::1%1]:80", NULL, 80 },
		{ "[::ffff:10.0.0.7]:80", ADDRESS_IP, "10.0.0.7:80", NULL, 80 },
		{ "Cache.Example:6379", ADDRESS_HOST, "cache.example:6379", "cache.example", 6379 },
		{ "Localhost.:8", ADDRESS_HOST, "localhost.:8", "localhost.", 8 },
		{ "a.example.:8", ADDRESS_HOST, "a.example.:8", "a.example.", 8 },
		{ "my_host-1:1", ADDRESS_HOST, "my_host-1:1", "my_host-1", 1 },
		{ "unix:/run/x.sock", ADDRESS_UNIX, "unix:/run/x.sock", "/run/x.sock", 0 },
		{ "unix:@name", ADDRESS_ABSTRACT, "unix:@name", "name", 0 },
		{ "systemd:cache", ADDRESS_SYSTEMD, "systemd:cache", "cache", 0 },
		{ "internal:admin", ADDRESS_INTERNAL, "internal:admin", "admin", 0 },
	};
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		struct address address;
		struct failure why = { 0 };
		if (address_parse(table[i].written, &address, &why))
			fail_msg("%s: %s", table[i].written, why.text);
		assert_int_equal(address.kind, table[i].kind);
		assert_string_equal(address.text, table[i].text);
		assert_int_equal(address.port, table[i].port);
		if (table[i].name)
			assert_string_equal(address.name, table[i].name);
		else
			assert_int_equal(address.numeric.port, table[i].port);
		address_release(&address);
		assert_null(address.text);
		address_release(&address);
	}
}

static void
test_bad(void **state)
{
	(void)state;
	static const struct {
		const char *written, *why;
	} table[] = {
		{ "", "'' has no port; write HOST:PORT, unix:/PATH or internal:NAME, or to listen "
		      "systemd:NAME" },
		{ "10.0.0.5",
		  "'10.0.0.5' has no port; write HOST:PORT, unix:/PATH or internal:NAME, or to "
		  "listen systemd:NAME" },
		{ "10.0.0.5:", "'10.0.0.5:' has the port ''; write a number from 0 to 65535" },
		{ "10.0.0.5:http", "'10.0.0.5:http' has the port 'http'; write a number from 0 to "
				   "65535" },
		{ "10.0.0.5:65536",
		  "'10.0.0.5:65536' has the port '65536'; write a number from 0 to "
		  "65535" },
		{ "10.0.0.5:-1",
		  "'10.0.0.5:-1' has the port '-1'; write a number from 0 to 65535" },
		{ "::1:80",
		  "'::1:80' has more than one ':'; write an IPv6 address as [ADDRESS]:PORT" },
		{ "[::1]", "'[::1]' has no port behind brackets; write [ADDRESS]:PORT" },
		{ "[::1", "'[::1' has no port behind brackets; write [ADDRESS]:PORT" },
		{ "[::g]:1", "'[::g]:1' has no IPv6 address in its brackets; write one, such as "
			     "[2001:db8::1]:1" },
		{ "[fe80::1%nosuch]:1", "'[fe80::1%nosuch]:1' has no IPv6 address in its brackets; "
					"write one, such as [2001:db8::1]:1" },
		{ ":80",
		  "':80' has neither an IP address nor a host name before its port; write one, "
		  "such as 0.0.0.0:80 for every IPv4 address of this machine" },
		{ "*:80", "'*:80' has neither an IP address nor a host name before its port; write "
			  "one, such as 0.0.0.0:80 for every IPv4 address of this machine" },
		{ "10.0.0.256:1", "'10.0.0.256:1' has neither an IP address nor a host name before "
				  "its port; write one, such as 10.0.0.5:1 or db.example:1" },
		{ "a..b:1", "'a..b:1' has neither an IP address nor a host name before its port; "
			    "write one, such as 10.0.0.5:1 or db.example:1" },
		{ "10.0.0.1.:1",
		  "'10.0.0.1.:1' has neither an IP address nor a host name before its port; "
		  "write one, such as 10.0.0.5:1 or db.example:1" },
		{ ".:1", "'.:1' has neither an IP address nor a host name before its port; "
			 "write one, such as 10.0.0.5:1 or db.example:1" },
		{ "a..:1", "'a..:1' has neither an IP address nor a host name before its port; "
			   "write one, such as 10.0.0.5:1 or db.example:1" },
		{ "Unix:80", "'Unix:80' is written in capitals; write it in small letters" },
		{ "tcp://10.0.0.1:80/",
		  "'tcp://10.0.0.1:80/' is a URL; write HOST:PORT, such as 10.0.0.1:80" },
		{ "fd://3", "'fd://3' is a URL; write HOST:PORT" },
		{ "a:1,b:2", "'a:1,b:2' is not one address; write one, or a list { \"ADDRESS\", "
			     "\"ADDRESS\" }" },
		{ "10.0.0.1 80", "'10.0.0.1 80' is not one address; write one, or a list { "
				 "\"ADDRESS\", \"ADDRESS\" }" },
		{ "8080", "'8080' is a port without an address; write 127.0.0.1:8080 for this "
			  "machine, or 0.0.0.0:8080 to listen on every IPv4 address of it" },
		{ "/run/x.sock", "'/run/x.sock' is a path; write unix:/run/x.sock" },
		{ "unix:", "'unix:' has no name; write unix:/path or unix:@name" },
		{ "unix:@", "'unix:@' has no name; write unix:/path or unix:@name" },
		{ "internal:",
		  "'internal:' is not a name; write internal:NAME with 1 to 64 letters, "
		  "digits or any of _ . -" },
		{ "systemd:a b", "'systemd:a b' is not a name; write systemd:NAME with 1 to 64 "
				 "letters, digits or any of _ . -" },
	};
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		struct address address;
		struct failure why = { 0 };
		if (address_parse(table[i].written, &address, &why) == 0)
			fail_msg("%s was taken", table[i].written);
		assert_string_equal(why.text, table[i].why);
		assert_int_equal(why.kind, FAILURE_CONFIG);
	}
}

static void
test_unix_lengths(void **state)
{
	(void)state;
	for (size_t length = 100; length < 120; length++) {
		char text[128] = "unix:/";
		memset(text + 6, 'x', length - 1);
		text[5 + length] = '\0';
		struct address address;
		struct failure why;
		int result = address_parse(text, &address, &why);
		assert_int_equal(result, length <= 107 ? 0 : -1);
		if (result)
			continue;
		struct sockaddr_storage storage;
		struct sockaddr_un *un = (struct sockaddr_un *)&storage;
		assert_int_equal(address_to_unix(&address, &storage, &why), 2 + length + 1);
		assert_string_equal(un->sun_path, text + 5);
		address_release(&address);
	}
}

static void
test_abstract(void **state)
{
	(void)state;
	struct address address;
	struct failure why;
	struct sockaddr_storage storage;
	struct sockaddr_un *un = (struct sockaddr_un *)&storage;
	assert_int_equal(address_parse("unix:@name", &address, &why), 0);
	assert_int_equal(address_to_unix(&address, &storage, &why), 2 + 1 + 4);
	assert_memory_equal(un->sun_path, "\0name", 6);
	address_release(&address);
}

static void
test_host_without_port(void **state)
{
	(void)state;
	struct address address;
	struct failure why;
	assert_int_equal(address_parse_host("10.0.0.9", &address, &why), 0);
	assert_string_equal(address.text, "10.0.0.9");
	assert_int_equal(address.numeric.family, AF_INET);
	address_release(&address);
	assert_int_equal(address_parse_host("2001:db8::9", &address, &why), 0);
	assert_string_equal(address.text, "2001:db8::9");
	assert_int_equal(address.numeric.family, AF_INET6);
	address_release(&address);
	assert_int_equal(address_parse_host("10.0.0.9:80", &address, &why), -1);
	assert_string_equal(why.text,
			    "'10.0.0.9:80' is not an IP address; write one without a port, "
			    "such as 10.0.0.9 or 2001:db8::9");
}

static struct socket_address
numeric(const char *text)
{
	struct address address;
	struct failure why;
	if (address_parse_host(text, &address, &why))
		fail_msg("%s", why.text);
	struct socket_address result = address.numeric;
	address_release(&address);
	return result;
}

static void
test_prefixes(void **state)
{
	(void)state;
	static const struct {
		const char *prefix, *inside, *outside;
	} table[] = {
		{ "10.0.0.0/8", "10.255.0.1", "11.0.0.0" },
		{ "192.168.4.0/22", "192.168.7.255", "192.168.8.0" },
		{ "127.0.0.1", "127.0.0.1", "127.0.0.2" },
		{ "0.0.0.0/0", "255.1.2.3", "::1" },
		{ "2001:db8::/32", "2001:db8:ffff::1", "2001:db9::" },
		{ "2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::" },
		{ "::/0", "2001:db8::1", "10.0.0.1" },
		{ "::1", "::1", "::2" },
		{ "::ffff:10.0.0.0/8", "::ffff:10.1.2.3", "11.0.0.0" },
	};
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		struct prefix prefix;
		struct failure why;
		if (prefix_parse(table[i].prefix, &prefix, &why))
			fail_msg("%s", why.text);
		struct prefix_list list = { &prefix, 1 };
		struct socket_address inside = numeric(table[i].inside);
		struct socket_address outside = numeric(table[i].outside);
		assert_true(prefix_contains(&prefix, &inside));
		assert_false(prefix_contains(&prefix, &outside));
		assert_true(prefix_list_contains(&list, &inside));
		list.count = 0;
		assert_false(prefix_list_contains(&list, &inside));
	}
	const struct socket_address local = { .family = AF_UNIX, .uid = 0 };
	struct prefix all;
	assert_int_equal(prefix_parse("0.0.0.0/0", &all, NULL), 0);
	assert_false(prefix_contains(&all, &local));
}

static void
test_unix_peers(void **state)
{
	(void)state;
	const struct socket_address root = { .family = AF_UNIX, .uid = 0 };
	const struct socket_address user = { .family = AF_UNIX, .uid = 1000 };
	const struct socket_address unknown = { .family = AF_UNIX, .uid = UINT32_MAX };
	const struct socket_address none = { .family = AF_UNSPEC };
	struct socket_address ip = numeric("0.0.3.232");
	struct prefix any, one;
	assert_int_equal(prefix_parse("unix", &any, NULL), 0);
	assert_int_equal(prefix_parse("uid:1000", &one, NULL), 0);
	assert_true(prefix_contains(&any, &root) && prefix_contains(&any, &unknown));
	assert_true(prefix_contains(&one, &user));
	assert_false(prefix_contains(&one, &root) || prefix_contains(&one, &unknown));
	assert_false(prefix_contains(&any, &none) || prefix_contains(&any, &ip));
	assert_false(prefix_contains(&one, &none) || prefix_contains(&one, &ip));
}

static void
test_covering(void **state)
{
	(void)state;
	static const struct {
		const char *wide, *narrow;
		bool covers;
	} table[] = {
		{ "10.0.0.0/8", "10.0.0.0/8", true },
		{ "10.0.0.0/8", "10.3.0.0/16", true },
		{ "10.3.0.0/16", "10.0.0.0/8", false },
		{ "10.0.0.0/8", "11.0.0.0/16", false },
		{ "0.0.0.0/0", "::/0", false },
		{ "::/0", "::1", true },
		{ "unix", "uid:0", true },
		{ "uid:0", "unix", false },
		{ "uid:0", "uid:0", true },
		{ "uid:0", "uid:1", false },
		{ "unix", "unix", true },
		{ "0.0.0.0/0", "unix", false },
	};
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		struct prefix wide, narrow;
		assert_int_equal(prefix_parse(table[i].wide, &wide, NULL), 0);
		assert_int_equal(prefix_parse(table[i].narrow, &narrow, NULL), 0);
		if (prefix_covers(&wide, &narrow) != table[i].covers)
			fail_msg("%s, %s", table[i].wide, table[i].narrow);
	}
}

static void
test_bad_prefixes(void **state)
{
	(void)state;
	static const struct {
		const char *written, *why;
	} table[] = {
		{ "10.1.2.3/8", "'10.1.2.3/8' has bits set behind its length; write 10.0.0.0/8 or "
				"10.1.2.3" },
		{ "2001:db8::1/32", "'2001:db8::1/32' has bits set behind its length; write "
				    "2001:db8::/32 or 2001:db8::1" },
		{ "10.0.0.0/33", "'10.0.0.0/33' has the length '33'; write a number from 0 to 32" },
		{ "::/129", "'::/129' has the length '129'; write a number from 0 to 128" },
		{ "10.0.0.0/", "'10.0.0.0/' has the length ''; write a number from 0 to 32" },
		{ "10.0.0/8",
		  "'10.0.0/8' is not an address or network; write IP or IP/BITS, such as "
		  "10.0.0.0/8, or unix or uid:NUMBER for UNIX sockets" },
		{ "",
		  "'' is not an address or network; write IP or IP/BITS, such as 10.0.0.0/8, or "
		  "unix or uid:NUMBER for UNIX sockets" },
		{ "uid:root",
		  "'uid:root' is not an address or network; write IP or IP/BITS, such as "
		  "10.0.0.0/8, or unix or uid:NUMBER for UNIX sockets" },
		{ "uid:4294967295",
		  "'uid:4294967295' is not an address or network; write IP or IP/BITS, such as "
		  "10.0.0.0/8, or unix or uid:NUMBER for UNIX sockets" },
	};
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		struct prefix prefix;
		struct failure why = { 0 };
		assert_int_equal(prefix_parse(table[i].written, &prefix, &why), -1);
		assert_string_equal(why.text, table[i].why);
	}
}

static void
test_kernel_form(void **state)
{
	(void)state;
	static const char *const texts[] = { "10.0.0.7:41234", "[2001:db8::1]:80",
					     "[fe80::1%1]:7" };
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		struct address address;
		struct sockaddr_storage storage;
		struct socket_address back;
		char text[SOCKET_ADDRESS_TEXT];
		assert_int_equal(address_parse(texts[i], &address, NULL), 0);
		socklen_t length = socket_address_to(&address.numeric, &storage);
		assert_true(length > 0);
		socket_address_from(&back, (struct sockaddr *)&storage, length);
		assert_true(socket_address_equal(&back, &address.numeric));
		assert_string_equal(socket_address_text(&back, text), texts[i]);
		back.port++;
		assert_false(socket_address_equal(&back, &address.numeric));
		assert_true(socket_address_same_host(&back, &address.numeric));
		address_release(&address);
	}
}

static void
test_other_families(void **state)
{
	(void)state;
	struct sockaddr_storage storage = { .ss_family = AF_UNIX };
	struct sockaddr_in6 mapped = { .sin6_family = AF_INET6, .sin6_port = htons(80) };
	struct socket_address address;
	char text[SOCKET_ADDRESS_TEXT];
	socket_address_from(&address, (struct sockaddr *)&storage, sizeof(sa_family_t));
	assert_int_equal(address.family, AF_UNIX);
	assert_string_equal(socket_address_text(&address, text), "unix");
	assert_int_equal(socket_address_to(&address, &storage), 0);
	address.uid = 1000;
	assert_string_equal(socket_address_text(&address, text), "unix:uid=1000");

	assert_int_equal(inet_pton(AF_INET6, "::ffff:10.0.0.7", &mapped.sin6_addr), 1);
	socket_address_from(&address, (struct sockaddr *)&mapped, sizeof(mapped));
	assert_string_equal(socket_address_text(&address, text), "10.0.0.7:80");

	socket_address_from(&address, (struct sockaddr *)&mapped, 4);
	assert_int_equal(address.family, AF_UNSPEC);
	assert_string_equal(socket_address_text(&address, text), "unknown");
	socket_address_from(&address, (struct sockaddr *)&mapped, 0);
	assert_int_equal(address.family, AF_UNSPEC);
}

static void
test_longest_text(void **state)
{
	(void)state;
	struct socket_address address = { .family = AF_INET6, .port = 65535, .scope = UINT32_MAX };
	char text[SOCKET_ADDRESS_TEXT];
	memset(address.ip, 0xff, sizeof(address.ip));
	assert_string_equal(socket_address_text(&address, text),
			    "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_unix_lengths),
		cmocka_unit_test(test_abstract),
		cmocka_unit_test(test_host_without_port),
		cmocka_unit_test(test_prefixes),
		cmocka_unit_test(test_unix_peers),
		cmocka_unit_test(test_covering),
		cmocka_unit_test(test_bad_prefixes),
		cmocka_unit_test(test_kernel_form),
		cmocka_unit_test(test_other_families),
		cmocka_unit_test(test_longest_text),
	};
	return cmocka_run_group_tests_name("address", tests, NULL, NULL);
}
