/* config: good files become what they say; every mistake of a bad one is named with its line, and no
 * file whatever disturbs the next. Each test runs in a directory of its own, where t.conf is the file. */
#include "config.h"
#include "config_kinds.h"
#include "pair.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static const struct service echo = { "echo", NULL };
static const struct service discard = { "discard", NULL };
static const struct service *const services[] = { &echo, &discard, NULL };

static char directory[] = "/tmp/test_config.XXXXXX";

/* What a tunnel needs at least, for tests of something else. */
#define TUNNEL "tunnel \"t\" { listen = \"127.0.0.1:7\" connect = \"127.0.0.1:8\" }\n"

static void
write_bytes(const char *name, const char *bytes, size_t length)
{
	FILE *file = fopen(name, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(bytes, 1, length, file), length);
	assert_int_equal(fclose(file), 0);
}

static void
write_file(const char *name, const char *text)
{
	write_bytes(name, text, strlen(text));
}

/* The report as it would be printed; to be freed. */
static char *
printed(const struct config_report *report)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	config_report_print(report, false, out);
	fclose(out);
	return text;
}

/* The named file must load with exactly these warnings. */
static struct generation *
load_with(const char *name, const char *warnings)
{
	struct config_report report;
	struct generation *generation = config_load(name, services, &report);
	char *text = printed(&report);
	assert_string_equal(text, warnings);
	assert_non_null(generation);
	assert_int_equal(report.errors, 0);
	free(text);
	config_report_release(&report);
	return generation;
}

static struct generation *
load(const char *text)
{
	write_file("t.conf", text);
	return load_with("t.conf", "");
}

static void
unload(struct generation *generation)
{
	counted_release(&generation->counted);
}

/* t.conf must be refused with exactly this report. */
static void
refuse_file(const char *expected)
{
	struct config_report report;
	assert_null(config_load("t.conf", services, &report));
	char *text = printed(&report);
	assert_string_equal(text, expected);
	assert_true(report.errors > 0);
	free(text);
	config_report_release(&report);
}

static void
refuse(const char *text, const char *expected)
{
	write_file("t.conf", text);
	refuse_file(expected);
}

static unsigned int
count_descriptors(void)
{
	unsigned int count = 0;
	DIR *open = opendir("/proc/self/fd");
	while (readdir(open))
		count++;
	closedir(open);
	return count;
}

/* ------------------------------------------------------------------ good files */

static void
test_defaults(void **state)
{
	(void)state;
	struct generation *generation = load(TUNNEL);
	assert_int_equal(generation->number, 0);
	assert_string_equal(generation->file, "t.conf");
	assert_int_equal(generation->workers, 0);
	assert_int_equal(generation->max_memory, 0);
	assert_string_equal(generation->log.target, "auto");
	assert_int_equal(generation->log.level, 3);
	assert_true(generation->log.connections);
	assert_true(generation->timeouts.idle == 3600000000000);
	assert_int_equal(generation->tunnel_count, 1);
	const struct tunnel_conf *tunnel = generation_find(generation, "t");
	assert_non_null(tunnel);
	assert_ptr_equal(tunnel->generation, &generation->counted);
	assert_string_equal(tunnel->origin.file, "t.conf");
	assert_int_equal(tunnel->origin.line, 1);
	assert_string_equal(tunnel->listen.at[0].text, "127.0.0.1:7");
	assert_string_equal(tunnel->connect.at[0].text, "127.0.0.1:8");
	assert_int_equal(tunnel->balance, BALANCE_ORDER);
	assert_int_equal(tunnel->bind.numeric.family, AF_UNSPEC);
	assert_int_equal(tunnel->allow.count, 0);
	assert_int_equal(tunnel->backlog, 4096);
	assert_int_equal(tunnel->unix_mode, 0600);
	assert_true(tunnel->unix_owner.uid == (uid_t)-1 && tunnel->unix_owner.gid == (gid_t)-1);
	assert_int_equal(tunnel->max_new_per_source.count, 0);
	assert_true(tunnel->timeouts.connect == 10000000000);
	assert_true(tunnel->timeouts.half_open == 60000000000);
	assert_null(tunnel->targets);
	assert_null(generation_find(generation, "u"));
	unload(generation);
}

static void
test_everything(void **state)
{
	(void)state;
	struct generation *generation = load(
		"# every keyword once\n"
		"workers = 010\nmax_connections = 500 max_memory = \"64MiB\"\n"
		"log { target = 'file:p.log' level = debug format = json connections = false }\n"
		"timeouts { idle = 5min drain = 1s }\n"
		"tunnel cache {\n"
		"  listen = { \"0.0.0.0:6380\", \"[::]:6380\", 'unix:c.sock', \"unix:@c\",\n"
		"             \"systemd:cache\", }\n"
		"  backup = \"internal:discard\" max_per_target = 7\n"
		"  connect = { cache.example:6379 } connect += { \"unix:/run/c\", "
		"\"internal:echo\" }\n"
		"  balance = least bind = 10.0.0.9 weights = { 3, 1, 2 }\n"
		"  allow = { 10.0.0.0/8, \"::1\", unix } deny = 10.1.0.0/16\n"
		"  keepalive = 30s backlog = 16 unix_mode = 0660 unix_owner = root:0\n"
		"  max_connections = 100 max_per_source = 5 max_new_per_source = 50/min\n"
		"  timeouts { idle = 2h connect = 250ms }\n"
		"}\n");
	assert_int_equal(generation->workers, 10);
	assert_int_equal(generation->max_connections, 500);
	assert_int_equal(generation->max_memory, 64 << 20);
	char path[64];
	snprintf(path, sizeof(path), "file:%s/p.log", directory);
	assert_string_equal(generation->log.target, path);
	assert_int_equal(generation->log.level, 4);
	assert_int_equal(generation->log.format, 1);
	assert_false(generation->log.connections);
	const struct tunnel_conf *tunnel = generation_find(generation, "cache");
	assert_int_equal(tunnel->origin.line, 6);
	assert_int_equal(tunnel->listen.count, 5);
	snprintf(path, sizeof(path), "unix:%s/c.sock", directory);
	assert_string_equal(tunnel->listen.at[2].text, path);
	assert_int_equal(tunnel->connect.count, 3);
	assert_string_equal(tunnel->connect.at[2].text, "internal:echo");
	assert_null(tunnel->internal[0].service);
	assert_ptr_equal(tunnel->internal[2].service, &echo);
	assert_int_equal(tunnel_conf_target_count(tunnel), 4);
	assert_string_equal(tunnel_conf_target(tunnel, 3)->text, "internal:discard");
	assert_ptr_equal(tunnel->internal[3].service, &discard);
	assert_int_equal(tunnel->max_per_target, 7);
	assert_int_equal(tunnel->weights.count, 3);
	assert_true(tunnel->weights.at[0] == 3 && tunnel->weights.at[2] == 2);
	assert_int_equal(tunnel->balance, BALANCE_LEAST);
	assert_int_equal(tunnel->bind.numeric.family, AF_INET);
	assert_int_equal(tunnel->allow.count, 3);
	assert_int_equal(tunnel->deny.at[0].bits, 16);
	assert_true(tunnel->keepalive == 30000000000);
	assert_int_equal(tunnel->backlog, 16);
	assert_int_equal(tunnel->unix_mode, 0660);
	assert_true(tunnel->unix_owner.uid == 0 && tunnel->unix_owner.gid == 0);
	assert_int_equal(tunnel->max_connections, 100);
	assert_int_equal(tunnel->max_per_source, 5);
	assert_true(tunnel->max_new_per_source.count == 50 &&
		    tunnel->max_new_per_source.period_ns == 60000000000);
	assert_true(tunnel->timeouts.idle == 7200000000000);
	assert_true(tunnel->timeouts.connect == 250000000);
	assert_true(tunnel->timeouts.drain == 1000000000);
	assert_true(generation->timeouts.idle == 300000000000);
	unload(generation);
}

static void
test_internal_names(void **state)
{
	(void)state;
	struct generation *generation =
		load("tunnel a { listen = 127.0.0.1:1 connect = internal:b }\n"
		     "tunnel b { listen = internal:b connect = { internal:c, internal:discard } }\n"
		     "tunnel c { listen = internal:c connect = 127.0.0.1:2 }\n");
	struct tunnel_conf **tunnels = generation->tunnels;
	assert_ptr_equal(tunnels[0]->internal[0].tunnel, tunnels[1]);
	assert_ptr_equal(tunnels[1]->internal[0].tunnel, tunnels[2]);
	assert_null(tunnels[1]->internal[1].tunnel);
	assert_ptr_equal(tunnels[1]->internal[1].service, &discard);
	assert_null(tunnels[2]->internal[0].tunnel);
	unload(generation);
}

static void
test_include(void **state)
{
	(void)state;
	assert_int_equal(mkdir("d", 0700), 0);
	write_file("d/one.conf", "tunnel one { listen = unix:one.sock connect = 127.0.0.1:1 }\n"
				 "include(\"two.conf\")\n");
	write_file("d/two.conf",
		   "\n\ntunnel two { listen = unix:two.sock connect = 127.0.0.1:1 }\n");
	struct generation *generation = load("include('d/one.conf')\n" TUNNEL);
	char path[64];
	assert_int_equal(generation->file_count, 3);
	snprintf(path, sizeof(path), "unix:%s/d/two.sock", directory);
	const struct tunnel_conf *tunnel = generation_find(generation, "two");
	assert_string_equal(tunnel->listen.at[0].text, path);
	assert_string_equal(tunnel->origin.file, "d/two.conf");
	assert_int_equal(tunnel->origin.line, 3);
	unload(generation);
}

static void
test_quotes_and_variables(void **state)
{
	(void)state;
	setenv("TEST_PORT", "81", 1);
	unsetenv("TEST_UNSET");
	struct generation *generation =
		load("tunnel t { listen = \"127.0.0.1:${TEST_PORT}\" // a comment\n"
		     "connect = { \"127.0.0.1:${TEST_UNSET:-82}\", 'unix:/${TEST_PORT}',\n"
		     "/* more */ \"unix:/\\${x}\\\\\\\"\", # and more\n"
		     "unix:/a/b } }\n");
	const struct tunnel_conf *tunnel = generation->tunnels[0];
	assert_string_equal(tunnel->listen.at[0].text, "127.0.0.1:81");
	assert_string_equal(tunnel->connect.at[0].text, "127.0.0.1:82");
	assert_string_equal(tunnel->connect.at[1].text, "unix:/${TEST_PORT}");
	assert_string_equal(tunnel->connect.at[2].text, "unix:/${x}\\\"");
	assert_string_equal(tunnel->connect.at[3].text, "unix:/a/b");
	unload(generation);
}

static void
test_warnings(void **state)
{
	(void)state;
	write_file("t.conf",
		   "tunnel all { listen = { 0.0.0.0:80, \"[::]:80\" } connect = 127.0.0.1:9 }\n"
		   "tunnel one { listen = { 127.0.0.1:80,\n \"[::1]:80\",\n 127.0.0.1:81, "
		   "127.0.0.1:0,\n"
		   " internal:x }\n connect = unix:/x bind = ::1 }\n");
	unload(load_with(
		"t.conf",
		"t.conf:2: warning: 127.0.0.1:80 is also covered by 0.0.0.0:80 (t.conf:1); the "
		"exact "
		"address wins: its connections go to tunnel \"one\", all others to tunnel \"all\"\n"
		"t.conf:3: warning: [::1]:80 is also covered by [::]:80 (t.conf:1); the exact "
		"address "
		"wins: its connections go to tunnel \"one\", all others to tunnel \"all\"\n"
		"t.conf:5: warning: nobody connects to internal:x; leave it out or connect a "
		"tunnel to "
		"it\n"
		"t.conf:6: warning: bind has no effect, as no target has an IP address; leave it "
		"out\n"));
	write_file("t.conf",
		   "tunnel a { connect = internal:echo allow = \"::/0\" "
		   "listen = { \"[::]:80\",\n\"0.0.0.0:80\",\n\"unix:@a\", internal:i } }\n"
		   "tunnel b { connect = internal:i listen = \"[::]:81\"\nallow = 10.0.0.0/8 }\n");
	unload(load_with(
		"t.conf",
		"t.conf:2: warning: tunnel \"a\" lets nobody in at 0.0.0.0:80, as its allow "
		"lists none of that family; leave the listener out or add to allow, such as "
		"\"0.0.0.0/0\" for all of them\n"
		"t.conf:3: warning: tunnel \"a\" lets nobody in at unix:@a, as its allow "
		"lists none of that family; leave the listener out or add to allow, such as "
		"\"unix\" for all of them\n"
		"t.conf:4: warning: tunnel \"b\" lets nobody in at [::]:81, as its allow lists "
		"none of that family; leave the listener out or add to allow, such as \"::/0\" "
		"for all of them\n"));
}

/* ------------------------------------------------------------------ mistakes of form */

static void
test_form(void **state)
{
	(void)state;
	static const struct {
		const char *text, *report;
	} table[] = {
		{ "",
		  "t.conf: no tunnel is declared; write tunnel \"NAME\" { listen = { \"IP:PORT\" } "
		  "connect = { \"HOST:PORT\" } }\n" },
		{ "workers = 3 /* half\n" TUNNEL,
		  "t.conf:1: the comment opened here is not closed; close it with */\n" },
		{ "\nworkers = \"3\n" TUNNEL, "t.conf:2: the quote opened here is not closed; "
					      "write \" at the end of the text, on "
					      "the same line\n" },
		{ "workers = '3", "t.conf:1: the quote opened here is not closed; write ' at the "
				  "end of the text, on "
				  "the same line\n" },
		{ "log { target = \"a\\n\" }", "t.conf:1: '\\n' is unknown; write \\\\, \\\" or "
					       "\\$ in double quotes, or use single "
					       "quotes\n" },
		{ "workers = 3\ntunnel x {\n listen = {\n 127.0.0.1:1,\n",
		  "t.conf:3: the brace opened here is not closed; close it with }\n" },
		{ TUNNEL "}\n",
		  "t.conf:2: unexpected closing brace; leave it out, or open a section "
		  "before it\n" },
		{ "workers 3\n",
		  "t.conf:1: missing equal sign after option 'workers'; write KEYWORD = "
		  "VALUE\n" },
		{ "workers = = 3\n", "t.conf:1: unexpected token '='; write KEYWORD = VALUE, "
				     "KEYWORD = { VALUE, VALUE } with a comma between values, or "
				     "SECTION { ... }\n" },
		{ "workers += 3\n", "t.conf:1: attempt to append to non-list option 'workers'; "
				    "write = instead of +=\n" },
		{ "\ntunnel { }\n", "t.conf:2: missing title for section 'tunnel'; write SECTION "
				    "\"NAME\" { ... }\n" },
		{ "log \"x\" { }\n",
		  "t.conf:1: missing opening brace for section 'log'; write log { ... }\n" },
		{ "workers =\n", "t.conf:2: premature end of file; finish the last statement\n" },
		{ "a:b = 3\n",
		  "t.conf:1: 'a:b' is not a keyword; keywords are made of letters, digits "
		  "and '_'\n" },
		{ "\"tunnel=x|listen\" = 3\n",
		  "t.conf:1: '\"tunnel=x|listen\"' is not a keyword; keywords are made of letters, "
		  "digits and '_'\n" },
		{ "workers = *\n",
		  "t.conf:1: '*' does not belong here; put values in double quotes\n" },
		{ "workers = ${X}\n", "t.conf:1: '${' stands outside quotes; write \"${NAME}\"\n" },
		{ "workers = \"${\"\n", "t.conf:1: '${' does not begin a variable; write ${NAME} "
					"or ${NAME:-TEXT}, or \\${ "
					"for the characters\n" },
		{ "workers = \"3${TEST_UNSET}\"\n" TUNNEL,
		  "t.conf:1: the environment has no variable 'TEST_UNSET'; set it, or write "
		  "${TEST_UNSET:-TEXT} for a default\n" },
		{ "workers = 3\n\001", "t.conf:2: the byte 0x01 is not text; write a text file\n" },
		{ "include(a, b)\n", "t.conf:1: '(' is not followed by one text and ')'; write "
				     "include(\"FILE\")\n" },
		{ "include \"a\"\n", "t.conf:1: missing parenthesis for function 'include'; write "
				     "include(\"FILE\")\n" },
		{ "\"\" = 1\n",
		  "t.conf:1: '\"\"' is not a keyword; keywords are made of letters, digits "
		  "and '_'\n" },
	};
	unsetenv("TEST_UNSET");
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++)
		refuse(table[i].text, table[i].report);
}

/* What stands before a mistake of form is still checked; what stands in the middle of a section is not
 * said to be missing. */
static void
test_before_the_mistake(void **state)
{
	(void)state;
	refuse("workers = many\ntunnel a { listen = 1.2.3.4:5 }\ntunnel x { listen = y:0\n/*",
	       "t.conf:1: workers: 'many' does not begin with a digit; write a count such as "
	       "'1000'\n"
	       "t.conf:2: tunnel \"a\" has no connect; write connect = { \"ADDRESS\" } in it\n"
	       "t.conf:3: 'y:0' is a host name; listen on an IP address, such as 127.0.0.1:0\n"
	       "t.conf:4: the comment opened here is not closed; close it with */\n");
}

static void
test_unknown(void **state)
{
	(void)state;
	refuse("wrokers = 3\nlog { levl = debug\n timeout { a = { b, c } d { } } }\n"
	       "tunnle x {\n listen = z }\nlisten = 1.2.3.4:5\n"
	       "tunnel x { lisen = { 1.2.3.4:1 } listen = 1.2.3.4:5 connect = 1.2.3.4:6\n workers "
	       "= 2\n"
	       "qqqqqq(\"x\") }\nmax_memory = lots\n",
	       "t.conf:1: unknown keyword 'wrokers' at the top level; did you mean 'workers'?\n"
	       "t.conf:2: unknown keyword 'levl' in section log; did you mean 'level'?\n"
	       "t.conf:3: 'timeout' does not belong in section log; write it in section check\n"
	       "t.conf:4: unknown keyword 'tunnle' at the top level; did you mean 'tunnel'?\n"
	       "t.conf:6: 'listen' does not belong at the top level; write it in section tunnel\n"
	       "t.conf:7: unknown keyword 'lisen' in section tunnel; did you mean 'listen'?\n"
	       "t.conf:8: 'workers' does not belong in section tunnel; write it at the top level, "
	       "behind a closing }\n"
	       "t.conf:9: unknown keyword 'qqqqqq' in section tunnel; penstockd --keywords lists "
	       "all\n"
	       "t.conf:10: max_memory: 'lots' does not begin with a digit; write a size such as "
	       "'64KiB'\n");
}

/* However many there are in a file of a usual size, all are told, and what is wrong behind them. In a huge one,
 * where each costs a long parse, it is said that some are not. */
static void
test_many_unknown(void **state)
{
	(void)state;
	char *text, *expected;
	size_t size;
	FILE *file = open_memstream(&text, &size);
	for (int i = 1; i <= 300; i++)
		fprintf(file, "qqqqqq%d = 1\n", i);
	fputs("workers = many\n" TUNNEL, file);
	fclose(file);
	file = open_memstream(&expected, &size);
	for (int i = 1; i <= 300; i++)
		fprintf(file,
			"t.conf:%d: unknown keyword 'qqqqqq%d' at the top level; penstockd "
			"--keywords lists all\n",
			i, i);
	fputs("t.conf:301: workers: 'many' does not begin with a digit; write a count such as "
	      "'1000'\n",
	      file);
	fclose(file);
	refuse(text, expected);
	free(text);
	free(expected);

	struct config_report report;
	file = open_memstream(&text, &size);
	for (int i = 1; i <= 100000; i++)
		fputs("x = 1\n", file);
	fclose(file);
	write_file("t.conf", text);
	free(text);
	assert_null(config_load("t.conf", services, &report));
	assert_true(report.count > 20 && report.count < 100);
	assert_non_null(strstr(report.at[report.count - 1].text, "correct them first"));
	config_report_release(&report);
}

static void
test_repeated(void **state)
{
	(void)state;
	write_file("more.conf", "\nworkers = 2\nlog { }\n");
	refuse("workers = 1\nlog { level = debug\n level = info }\n"
	       "timeouts { }\ntimeouts { idle = x }\ninclude(more.conf)\n"
	       "tunnel a { listen = 1.2.3.4:5\n listen = 1.2.3.4:6\n connect = 1.2.3.4:6\n"
	       " timeouts { }\n timeouts { } }\n"
	       "tunnel a { listen = internal:y connect = 1.2.3.4:7 }\n"
	       "tunnel b { listen = 1.2.3.4:8 connect = internal:y }\n",
	       "t.conf:3: 'level' is written twice (t.conf:2); keep one of them\n"
	       "t.conf:5: section 'timeouts' is written twice (t.conf:4); join them\n"
	       "t.conf:8: 'listen' is written twice (t.conf:7); keep one of them\n"
	       "t.conf:11: section 'timeouts' is written twice (t.conf:10); join them\n"
	       "t.conf:12: tunnel \"a\" is declared already (t.conf:7); choose another name\n"
	       "more.conf:2: 'workers' is written twice (t.conf:1); keep one of them\n"
	       "more.conf:3: section 'log' is written twice (t.conf:2); join them\n");
}

/* ------------------------------------------------------------------ mistakes of meaning */

static void
test_values(void **state)
{
	(void)state;
	refuse("workers = 257\nmax_memory = 1.5MB\n"
	       "log { target = x\n level = loud\n connections = yes }\n"
	       "timeouts { idle = 10\n connect = 0s\n drain = -1s }\n"
	       "tunnel \"a b\" { listen = ::1:80\n connect = { 10.0.0.1, 127.0.0.1:99999 }\n"
	       " bind = 10.0.0.1:5\n allow = { }\n deny = 10.0.0.1/8\n keepalive = 1ms\n backlog = "
	       "0\n"
	       " unix_mode = 0888\n unix_owner = \"no such user\"\n balance = random\n"
	       " max_new_per_source = 50 }\n",
	       "t.conf:1: workers: '257' is out of range; write 0 to 256\n"
	       "t.conf:2: max_memory: '1.5MB' has a fraction; write 1500kB\n"
	       "t.conf:3: target: 'x' is not a log target; write auto, stderr, journal or "
	       "file:PATH\n"
	       "t.conf:4: level: 'loud' is unknown here; write one of error, warning, notice, "
	       "info, "
	       "debug\n"
	       "t.conf:5: connections: 'yes' is neither true nor false; write one of them\n"
	       "t.conf:6: idle: '10' has no unit; write one of us, ms, s, min, m, h, d after it, "
	       "as in "
	       "'10s'\n"
	       "t.conf:7: connect: '0s' is out of range; write 100ms to 366d\n"
	       "t.conf:8: drain: '-1s' has a sign; write the duration without it, as in '10s'\n"
	       "t.conf:9: 'a b' is not a name; write 1 to 64 letters, digits or any of _ . -\n"
	       "t.conf:9: listen: '::1:80' has more than one ':'; write an IPv6 address as "
	       "[ADDRESS]:PORT\n"
	       "t.conf:9: 'allow' is an empty list; name something in it, or leave it out\n"
	       "t.conf:10: connect: '10.0.0.1' has no port; write HOST:PORT, unix:/PATH or "
	       "internal:NAME, or to listen systemd:NAME\n"
	       "t.conf:10: connect: '127.0.0.1:99999' has the port '99999'; write a number from 0 "
	       "to "
	       "65535\n"
	       "t.conf:11: bind: '10.0.0.1:5' is not an IP address; write one without a port, such "
	       "as "
	       "10.0.0.9 or 2001:db8::9\n"
	       "t.conf:13: deny: '10.0.0.1/8' has bits set behind its length; write 10.0.0.0/8 or "
	       "10.0.0.1\n"
	       "t.conf:14: keepalive: '1ms' is out of range; write 1s to 32767s, or 0\n"
	       "t.conf:15: backlog: '0' is out of range; write 1 to 65535\n"
	       "t.conf:16: unix_mode: '0888' is not a mode; write octal digits, such as "
	       "0660\n"
	       "t.conf:17: unix_owner: the system has no user 'no such user'; name one it has, or "
	       "a "
	       "number\n"
	       "t.conf:18: balance: 'random' is unknown here; write one of order, round_robin, "
	       "least, source\n"
	       "t.conf:19: max_new_per_source: '50' has no unit; write one of /s, /min, /h, /d "
	       "after "
	       "it, as in '50/s'\n");
}

static void
test_targets(void **state)
{
	(void)state;
	refuse("tunnel a { listen = 127.0.0.1:1\n weights = { 1,\n 2 }\n backup = { internal:b,\n "
	       "systemd:x }\n connect = internal:discrad }\n"
	       "tunnel b { listen = internal:b connect = 127.0.0.1:2\n backup = internal:c\n }\n"
	       "tunnel c { listen = internal:c connect = internal:echo\n backup = { \"internal:b\" "
	       "} }\n"
	       "tunnel d { listen = 127.0.0.1:4 connect = 127.0.0.1:5\n weights = { 0, 101 }\n"
	       " max_per_target = -1 }\n",
	       "t.conf:2: tunnel \"a\" has 1 target in connect and 2 weights; write one for each "
	       "of "
	       "them, in the same order\n"
	       "t.conf:5: 'systemd:x' is a socket to listen on; connect to an address\n"
	       "t.conf:6: nothing listens on internal:discrad; did you mean internal:discard?\n"
	       "t.conf:11: internal names form a cycle: b → c → b; let one of them connect "
	       "elsewhere\n"
	       "t.conf:13: weights: '0' is out of range; write 1 to 100\n"
	       "t.conf:13: weights: '101' is out of range; write 1 to 100\n"
	       "t.conf:14: max_per_target: '-1' has a sign; write the count without it, as in "
	       "'1000'\n");
}

static void
test_addresses(void **state)
{
	(void)state;
	refuse("tunnel a { listen = { 127.0.0.1:80,\n 127.0.0.1:080, unix:/x,\n localhost:1,\n"
	       " internal:echo }\n"
	       " connect = { 127.0.0.1:80,\n systemd:a,\n b:0, unix:/y }\n bind = ::1 }\n"
	       "tunnel b { listen = { unix:/y,\n unix:/x, 0.0.0.0:81, \"[::]:81\" }\n"
	       " connect = { 127.0.0.1:81,\n \"[::1]:81\", 10.0.0.1:81 } bind = \"\" }\n",
	       "t.conf:2: tunnel \"a\" listens on 127.0.0.1:80, where tunnel \"a\" listens already "
	       "(t.conf:1); choose another address\n"
	       "t.conf:3: 'localhost:1' is a host name; listen on an IP address, such as "
	       "127.0.0.1:1\n"
	       "t.conf:4: 'internal:echo' is a built-in service; listen on another name\n"
	       "t.conf:5: tunnel \"a\" connects to itself at 127.0.0.1:80; connect to another "
	       "address\n"
	       "t.conf:6: 'systemd:a' is a socket to listen on; connect to an address\n"
	       "t.conf:7: 'b:0' has no port to connect to; write one from 1 to 65535\n"
	       "t.conf:8: an IPv6 address cannot reach the target 127.0.0.1:80; bind an IPv4 "
	       "address\n"
	       "t.conf:10: tunnel \"b\" listens on unix:/x, where tunnel \"a\" listens already "
	       "(t.conf:2); choose another address\n"
	       "t.conf:11: tunnel \"b\" connects to itself at 127.0.0.1:81; connect to another "
	       "address\n"
	       "t.conf:12: tunnel \"b\" connects to itself at [::1]:81; connect to another "
	       "address\n");
}

/* In one tunnel; two tunnels may share a target. */
static void
test_targets_written_twice(void **state)
{
	(void)state;
	refuse("tunnel a { listen = 127.0.0.1:1 connect = { 10.0.0.1:80, 10.0.0.2:80,\n"
	       " 10.0.0.1:080,\n unix:/x, unix:/x } }\n"
	       "tunnel b { listen = 127.0.0.1:2 connect = { 10.0.0.1:80, x:80,\n x:80 } }\n",
	       "t.conf:2: '10.0.0.1:80' stands twice among the targets of tunnel \"a\"; write it "
	       "once, with weights if it is to get more\n"
	       "t.conf:3: 'unix:/x' stands twice among the targets of tunnel \"a\"; write it once, "
	       "with weights if it is to get more\n"
	       "t.conf:5: 'x:80' stands twice among the targets of tunnel \"b\"; write it once, "
	       "with weights if it is to get more\n");
}

static void
test_names(void **state)
{
	(void)state;
	refuse("tunnel a { listen = 127.0.0.1:1 connect = { internal:b, internal:ehco } }\n"
	       "tunnel b { listen = internal:b connect = internal:c }\n"
	       "tunnel c { listen = internal:c connect = { internal:d,\n internal:b } }\n"
	       "tunnel d { listen = internal:d connect = { internal:nothing_like_it, internal:d } "
	       "}\n"
	       "tunnel e { listen = { internal:d, 127.0.0.1:2 } connect = 127.0.0.1:3 }\n",
	       "t.conf:1: nothing listens on internal:ehco; did you mean internal:echo?\n"
	       "t.conf:4: internal names form a cycle: b → c → b; let one of them connect "
	       "elsewhere\n"
	       "t.conf:5: nothing listens on internal:nothing_like_it; let a tunnel listen there\n"
	       "t.conf:5: internal names form a cycle: d → d; let one of them connect elsewhere\n"
	       "t.conf:6: tunnel \"e\" listens on internal:d, where tunnel \"d\" listens already "
	       "(t.conf:5); choose another address\n");
}

/* ------------------------------------------------------------------ tunnels on one address */

#define AT_ONE  "listen = { 127.0.0.1:1, \"[::1]:1\" } connect = 127.0.0.1:2"
#define LEADING "proxy_protocol lb { trust = 127.0.0.1 }\n"

static void
test_groups(void **state)
{
	(void)state;
	struct generation *generation = load(
		LEADING
		"tunnel rest { " AT_ONE " accept_filters = proxy_protocol:lb }\n"
		"tunnel a { " AT_ONE " accept_filters = { proxy_protocol:lb, proxy_protocol:lb }\n"
		" match { sni = { A.Example., \"*.B.example\" } } }\n"
		"tunnel b { listen = { 127.0.0.1:1, 127.0.0.1:3 } connect = internal:c\n"
		" accept_filters = proxy_protocol:lb match { alpn = h2 source = unix } }\n"
		"tunnel c { listen = internal:c connect = 127.0.0.1:2 match { sni = \"*\" } }\n"
		"tunnel d { listen = 127.0.0.1:4 connect = 127.0.0.1:2 }\n");
	struct tunnel_conf **tunnels = generation->tunnels;
	assert_int_equal(generation->front_count, 4);
	const struct tunnel_conf *front = tunnels[0]->fronts[0];
	assert_non_null(front);
	assert_ptr_equal(tunnels[1]->fronts[0], front);
	assert_ptr_equal(tunnels[2]->fronts[0], front);
	assert_string_equal(front->name, "a|b|rest"); /* who takes the rest comes last */
	assert_true(front->group->has_match);
	assert_ptr_equal(front->group->tunnels[2], tunnels[0]);
	assert_int_equal(front->near_chain.count, 1);
	assert_int_equal(front->timeouts.handshake, generation->timeouts.handshake);
	assert_true(tunnel_conf_judges_late(front));
	assert_int_equal(tunnel_conf_leading(tunnels[0]), 1);
	assert_false(tunnel_conf_judges_late(tunnels[0]));
	assert_true(tunnel_conf_judges_late(tunnels[1])); /* behind the second header */
	assert_string_equal(tunnels[1]->match.sni.at[0], "a.example");
	assert_string_equal(tunnels[1]->match.sni.at[1], "*.b.example");

	assert_ptr_not_equal(tunnels[0]->fronts[1], front); /* b is not there */
	assert_ptr_equal(tunnels[0]->fronts[1], tunnels[1]->fronts[1]);
	assert_string_equal(tunnels[2]->fronts[1]->name, "b");
	assert_string_equal(tunnels[2]->internal[0].tunnel->name, "c");
	assert_non_null(tunnels[2]->internal[0].tunnel->group);
	assert_null(tunnels[4]->fronts[0]);
	unload(generation);
}

static void
test_bad_matches(void **state)
{
	(void)state;
	refuse("tunnel a { listen = 127.0.0.1:1 connect = 127.0.0.1:2 match {\n"
	       " sni = { \"a.*\", \"a..b\", \"*a\" } alpn = { \"h 2\", \"h2,h3\" }\n"
	       "} }\n"
	       "tunnel b { listen = 127.0.0.1:3 connect = 127.0.0.1:2 match { } }\n"
	       "tunnel c { listen = 127.0.0.1:4 connect = 127.0.0.1:2 match { sni = a }\n"
	       " match { sni = a } }\n",
	       "t.conf:1: sni: 'a.*' is not a server name; write NAME, *.DOMAIN or *\n"
	       "t.conf:1: sni: 'a..b' is not a server name; write NAME, *.DOMAIN or *\n"
	       "t.conf:1: sni: '*a' is not a server name; write NAME, *.DOMAIN or *\n"
	       "t.conf:1: alpn: 'h 2' is not a protocol; write one such as h2 or http/1.1\n"
	       "t.conf:1: alpn: 'h2,h3' is not a protocol; write one such as h2 or http/1.1\n"
	       "t.conf:4: match says nothing; write sni, alpn or source in it, or leave it out\n"
	       "t.conf:6: section 'match' is written twice (t.conf:5); join them\n");
}

static void
test_never_reached(void **state)
{
	(void)state;
	refuse("tunnel a { " AT_ONE " match { sni = { \"*.example\", b.org } } }\n"
	       "tunnel b { " AT_ONE " match { sni = { a.example, c.org } } }\n"
	       "tunnel c { " AT_ONE " match { sni = b.org alpn = h2 } }\n"
	       "tunnel d { " AT_ONE " match { source = { 10.0.0.0/8, unix } } }\n"
	       "tunnel e { " AT_ONE " match { source = { 10.1.0.0/16, 11.0.0.1 } } }\n"
	       "tunnel f { " AT_ONE " match { alpn = h2 source = uid:7 } }\n"
	       "tunnel g { " AT_ONE " match { alpn = { h2, h3 } } }\n"
	       "tunnel h { " AT_ONE " match { alpn = { h3, h4 } } }\n"
	       "tunnel i { " AT_ONE " }\n",
	       "t.conf:2: sni 'a.example' is never reached on 127.0.0.1:1: tunnel \"a\" stands "
	       "before it and takes those clients (t.conf:1); put the narrower match first, or "
	       "leave it out\n"
	       "t.conf:3: tunnel \"c\" is never reached on 127.0.0.1:1: tunnel \"a\" stands "
	       "before it and takes all its clients (t.conf:1); put the narrower match first, or "
	       "leave it out\n"
	       "t.conf:5: source '10.1.0.0/16' is never reached on 127.0.0.1:1: tunnel \"d\" "
	       "stands before it and takes those clients (t.conf:4); put the narrower match first, "
	       "or leave it out\n"
	       "t.conf:6: tunnel \"f\" is never reached on 127.0.0.1:1: tunnel \"d\" stands "
	       "before it and takes all its clients (t.conf:4); put the narrower match first, or "
	       "leave it out\n"
	       "t.conf:8: alpn 'h3' is never reached on 127.0.0.1:1: tunnel \"g\" stands before "
	       "it and takes those clients (t.conf:7); put the narrower match first, or leave it "
	       "out\n");
}

static void
test_bad_groups(void **state)
{
	(void)state;
	refuse(LEADING "tunnel a { listen = 127.0.0.1:1 connect = 127.0.0.1:2 match { sni = a } }\n"
		       "tunnel b { listen = 127.0.0.1:1 connect = 127.0.0.1:2\n"
		       " accept_filters = proxy_protocol:lb }\n"
		       "tunnel c { listen = 127.0.0.1:1 connect = 127.0.0.1:2 }\n"
		       "tunnel d { listen = unix:/d connect = 127.0.0.1:2 match { sni = a } }\n"
		       "tunnel e { listen = unix:/d connect = 127.0.0.1:2 unix_mode = 0666 }\n"
		       "tunnel f { listen = 127.0.0.1:3 connect = 127.0.0.1:2 match { sni = a } }\n"
		       "tunnel g { listen = 127.0.0.1:3 connect = 127.0.0.1:2\n"
		       " accept_filters = proxy_protocol:lb }\n"
		       "tunnel h { listen = internal:h connect = 127.0.0.1:2 match { sni = a } }\n"
		       "tunnel i { listen = internal:h connect = internal:j }\n"
		       "tunnel j { listen = internal:j connect = internal:h }\n",
	       "t.conf:5: tunnel \"c\" listens on 127.0.0.1:1, where tunnel \"b\" listens already "
	       "(t.conf:3); choose another address\n"
	       "t.conf:7: tunnels \"e\" and \"d\" (t.conf:6) share unix:/d and differ in "
	       "unix_mode or unix_owner; write the same for both\n"
	       "t.conf:9: tunnels \"g\" and \"f\" (t.conf:8) share 127.0.0.1:3 and do not begin "
	       "with the same proxy_protocol section; write the same one first in the "
	       "accept_filters of both\n"
	       "t.conf:13: internal names form a cycle: i → j → i; let one of them connect "
	       "elsewhere\n");
	refuse("proxy_protocol p { version = 1 }\n"
	       "tunnel a { listen = 127.0.0.1:1 connect = 127.0.0.1:2\n"
	       " accept_filters = proxy_protocol:p }\n",
	       "t.conf:3: proxy_protocol:p: trust is missing, and no header is received without "
	       "it; write trust = { \"PREFIX\" }\n");
}

/* ------------------------------------------------------------------ bad files */

static void
test_includes(void **state)
{
	(void)state;
	assert_int_equal(mkdir("dir", 0700), 0);
	write_file("loop.conf", "include(./t.conf)\n");
	write_file("broken.conf", "\n\nworkers = \"");
	refuse("include(missing.conf)\ninclude(dir)\ninclude(loop.conf)\ninclude(broken.conf)\n"
	       "include(/dev/null)\n" TUNNEL,
	       "t.conf:1: the file missing.conf cannot be opened: No such file or directory; name "
	       "a "
	       "readable file\n"
	       "t.conf:2: the file dir is a directory; name a file in it\n"
	       "t.conf:5: the file /dev/null is not a file; name a regular file\n"
	       "loop.conf:1: ./t.conf has been read already, as t.conf; include each file once\n"
	       "broken.conf:3: the quote opened here is not closed; write \" at the end of the "
	       "text, "
	       "on the same line\n");
}

static void
test_many_includes(void **state)
{
	(void)state;
	for (int i = 0; i < 1010; i++) {
		char name[32], text[64];
		snprintf(name, sizeof(name), "i%d.conf", i);
		snprintf(text, sizeof(text), "include(i%d.conf)\n", i + 1);
		write_file(name, text);
	}
	refuse("include(i0.conf)\n" TUNNEL,
	       "i998.conf:1: more than 1000 files are included; join some of them\n");
}

static void
test_no_files(void **state)
{
	(void)state;
	refuse_file("t.conf: cannot be opened: No such file or directory; name a readable file\n");
	assert_int_equal(mkdir("t.conf", 0700), 0);
	refuse_file("t.conf: is a directory; name a file in it\n");
	rmdir("t.conf");
	assert_int_equal(mkfifo("t.conf", 0600), 0);
	refuse_file("t.conf: is not a file; name a regular file\n");
	unlink("t.conf");
}

static void
refuse_filled(char byte, size_t length, const char *report)
{
	char *bytes = malloc(length);
	memset(bytes, byte, length);
	write_bytes("t.conf", bytes, length);
	free(bytes);
	refuse_file(report);
}

static void
test_garbage(void **state)
{
	(void)state;
	static const char large[] =
		"t.conf: is larger than 1 MiB; split it with include(\"FILE\")\n";
	refuse_filled('x', 10 << 20, large);
	refuse_filled('x', (1 << 20) + 1, large);
	refuse_filled('x', 1 << 20,
		      "t.conf:1: a word is longer than 4096 bytes; write a shorter one\n");
	refuse_filled('"', 4096,
		      "t.conf:1: the text from here on cannot be read; see penstock.conf(5)\n");
	refuse_filled('\0', 4096, "t.conf:1: the byte 0x00 is not text; write a text file\n");
	refuse_filled(
		'{', 1 << 20,
		"t.conf:1: the configuration has too many sections; make it "
		"smaller\nt.conf:1: unexpected token '{'; write KEYWORD = VALUE, "
		"KEYWORD = { VALUE, VALUE } with a comma between values, or SECTION { ... }\n");
	refuse_filled('}', 1 << 19,
		      "t.conf:1: unexpected closing brace; leave it out, or open a section "
		      "before it\n");
	refuse_filled('\n', 1 << 20,
		      "t.conf: no tunnel is declared; write tunnel \"NAME\" { listen = { "
		      "\"IP:PORT\" } connect = { \"HOST:PORT\" } }\n");
	char report[256], word[61] = "";
	memset(word, '?', sizeof(word) - 1); /* what is no UTF-8 */
	snprintf(
		report, sizeof(report),
		"t.conf:1: unknown keyword '%s' at the top level; penstockd --keywords lists all\n",
		word);
	refuse_filled('\xff', 4096, report);
}

/* A file of many sections and one of many mistakes end in bounded time and memory. */
static void
test_large(void **state)
{
	(void)state;
	FILE *file = fopen("t.conf", "w");
	for (int i = 0; i < 9000; i++)
		if (i % 60 < 59)
			fprintf(file,
				"tunnel t%d { listen = internal:n%d connect = internal:n%d }\n", i,
				i, i + 1);
		else
			fprintf(file,
				"tunnel t%d { listen = internal:n%d connect = internal:echo }\n", i,
				i);
	fprintf(file, "tunnel first { listen = 127.0.0.1:1 connect = { internal:echo");
	for (int i = 0; i < 9000; i += 60)
		fprintf(file, ", internal:n%d", i);
	fprintf(file, " } }\n");
	fclose(file);
	unload(load_with("t.conf", ""));

	file = fopen("t.conf", "w");
	for (int i = 0; i < 50000; i++)
		fprintf(file, "workers = x\n");
	fclose(file);
	struct config_report report;
	assert_null(config_load("t.conf", services, &report));
	assert_int_equal(report.count, CONFIG_FINDINGS_MOST);
	assert_int_equal(report.errors, 50000);
	assert_int_equal(report.left_out, 49000);
	config_report_release(&report);
}

/* Whatever was refused before, a good file loads, and nothing was left open. */
static void
test_thousand_broken(void **state)
{
	(void)state;
	static const char *const broken[] = {
		"workers = \"",
		"workers = '",
		"/* ",
		"workers = \"\\9\"",
		"workers = \"\\",
		"workers = \"${x",
		"workers = ${x",
		"include(broken.conf)",
		"include(dir)",
		"include(",
		"include(\"a\" \"b\")",
		"tunnel t {",
		"tunnel t { listen = {",
		"tunnel t { nonsense = { a, b } timeouts { x",
		"tunnel",
		"log|level = 3",
		"\"\" {",
		"\"tunnel=t|timeouts\" { idle = 3s }",
		"tunnel t { } tunnel t { \"tunnel=t|listen\" { } }",
		"{begin} = x",
		"\"{begin}\" {",
		"a b c d e f",
		"+ += = ( ) { }",
	};
	size_t count = sizeof(broken) / sizeof(*broken);
	assert_int_equal(mkdir("dir", 0700), 0);
	write_file("broken.conf", "workers = \"");
	write_file("good.conf", TUNNEL);
	unsigned int descriptors = count_descriptors();
	for (unsigned int i = 0; i < 1000; i++) {
		struct config_report report;
		write_file("t.conf", broken[i % count]);
		assert_null(config_load(i % 50 ? "t.conf" : "dir", services, &report));
		assert_true(report.errors > 0 && report.count > 0);
		config_report_release(&report);
		if (i % 10 == 0)
			unload(load_with("good.conf", ""));
	}
	for (unsigned int i = 0; i < count; i++) {
		struct config_report report;
		write_file("t.conf", broken[i]);
		assert_null(config_load("t.conf", services, &report));
		config_report_release(&report);
		unload(load_with("good.conf", ""));
	}
	assert_int_equal(count_descriptors(), descriptors);
}

static void
test_keywords(void **state)
{
	(void)state;
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	config_kinds_print(out);
	fclose(out);
	assert_non_null(strstr(text,
			       "\nmax_memory: size; default 0; 8MiB to 1024TiB, or 0; effect live; "
			       "Most bytes"));
	assert_non_null(strstr(text,
			       "\ntunnel \"NAME\" {\n        listen: list of addresses; required; "
			       "effect live; Where"));
	assert_non_null(
		strstr(text, "\n                idle: duration; default as outside of the tunnel; "
			     "0s to 366d; effect new connections; Without"));
	free(text);
}

/* ------------------------------------------------------------------ the run */

static int
on_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
	(void)status;
	(void)type;
	(void)walk;
	return remove(path);
}

/* ------------------------------------------------------------------ limits */

#define USE(limit)                                                                           \
	"tunnel \"t\" { listen = \"127.0.0.1:1\" connect = \"127.0.0.1:2\" limit = \"" limit \
	"\" }\n"

static void
test_limits(void **state)
{
	(void)state;
	struct generation *generation = load(
		"limit \"each\" { parent = \"client\" per = \"connection\" rate = \"5MB/s\" }\n"
		"limit \"client\" { parent = \"uplink\" per = \"source/24,48\" up = \"2MB/s\"\n"
		"down = \"10MB/s\" burst = \"1MB\" weight = 3 quantum = \"16KiB\" max_nodes = 7 }\n"
		"limit \"uplink\" { rate = \"80Mbit/s\" count = \"payload\" overhead = 40 }\n"
		"tunnel \"t\" { listen = \"127.0.0.1:1\" connect = \"127.0.0.1:2\"\n"
		"limit = \"each\" connect_limit = \"uplink\" }\n");
	const struct tunnel_conf *tunnel = generation->tunnels[0];
	const struct limit_conf *client = generation_find_limit(generation, "client");
	const struct limit_conf *uplink = generation_find_limit(generation, "uplink");
	assert_string_equal(tunnel->limit->name, "each");
	assert_ptr_equal(tunnel->limit->above, client);
	assert_ptr_equal(client->above, uplink);
	assert_ptr_equal(tunnel->connect_limit, uplink);
	assert_null(uplink->above);
	assert_int_equal(uplink->count, LIMIT_COUNT_PAYLOAD);
	assert_int_equal(uplink->overhead, 40);
	struct limit_spec spec = limit_conf_spec(client);
	assert_int_equal(spec.per, LIMIT_PER_SOURCE);
	assert_int_equal(spec.prefix_v4, 24);
	assert_int_equal(spec.prefix_v6, 48);
	assert_int_equal(spec.rate[LIMIT_UP], 2000000);
	assert_int_equal(spec.rate[LIMIT_DOWN], 10000000);
	assert_int_equal(spec.burst[LIMIT_UP], 1000000);
	assert_int_equal(spec.weight, 3);
	assert_int_equal(spec.quantum, 16384);
	assert_int_equal(spec.nodes_most, 7);
	spec = limit_conf_spec(uplink);
	assert_int_equal(spec.rate[LIMIT_UP], 10000000);
	assert_int_equal(spec.rate[LIMIT_DOWN], 10000000);
	unload(generation);

	unload(load("limit \"a\" { per = \"source/32\" }" USE("a")));
	unload(load("limit \"a\" { per = \"sni\" }" USE("a")));
	unload(load("limit \"a\" { per = \"certificate\" }" USE("a")));
	unload(load("limit \"a\" { per = \"uid\" rate = 0 }" USE("a")));
}

static void
test_limits_that_cannot_be(void **state)
{
	(void)state;
	refuse("limit \"a\" { parent = \"b\" }\nlimit \"b\" { parent = \"c\" }\n"
	       "limit \"c\" {\nparent = \"b\" }\n" USE("a"),
	       "t.conf:2: limits form a circle: b → c → b; let one of them have no parent\n");
	refuse("limit \"a\" { parent = \"a\" }\n" USE("a"),
	       "t.conf:1: limits form a circle: a → a; let one of them have no parent\n");
	refuse("limit \"uplink\" { rate = \"1MB/s\" }\nlimit \"a\" {\nparent = \"uplonk\" }\n" USE(
		       "a"),
	       "t.conf:1: warning: no tunnel uses limit \"uplink\"; leave it out, or write limit = "
	       "\"uplink\" in a tunnel\n"
	       "t.conf:3: there is no limit \"uplonk\"; did you mean \"uplink\"?\n");
	refuse("limit \"a\" { rate = \"10MB/s\"\nburst = \"39999B\" }\n" USE("a"),
	       "t.conf:2: limit \"a\" has a burst of 39999B; the least for this rate and "
	       "quantum "
	       "is 40kB\n");
	refuse("limit \"a\" { rate = \"1MB/s\" burst = \"64KiB\"\nquantum = \"128KiB\" }\n" USE(
		       "a"),
	       "t.conf:1: limit \"a\" has a burst of 64KiB; the least for this rate and "
	       "quantum "
	       "is 128KiB\n");
	refuse("limit \"a\" { rate = \"10MB/s\"\nup = \"1MB/s\" }\n" USE("a"),
	       "t.conf:2: 'up' and 'rate' (t.conf:1) are both written; rate is up and down "
	       "together, "
	       "so keep up and down, or rate\n");
	refuse("limit \"a\" { rate = \"19GB/s\" }\n" USE("a"),
	       "t.conf:1: rate: '19GB/s' is out of range; write 1B/s to 18GB/s, or 0\n");
	refuse("limit \"a\" { weight = 0 }\n" USE("a"),
	       "t.conf:1: weight: '0' is out of range; write 1 to 65535\n");
	refuse("limit \"a\" { }\nlimit \"a\" { }\n" USE("a"),
	       "t.conf:2: limit \"a\" is declared already (t.conf:1); choose another name\n"
	       "t.conf:2: warning: no tunnel uses limit \"a\"; leave it out, or write limit = "
	       "\"a\" in a "
	       "tunnel\n");
	refuse(USE("a"),
	       "t.conf:1: there is no limit \"a\"; write limit \"a\" { rate = \"10MB/s\" }\n");

	static const char *const wrong[] = { "source",     "source/33", "source/24,129",
					     "source/24,", "source/-1", "source/0x1",
					     "who" };
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct config_report report;
		char text[300];
		snprintf(text, sizeof(text), "limit \"a\" { per = \"%s\" }\n" USE("a"), wrong[i]);
		write_file("t.conf", text);
		assert_null(config_load("t.conf", services, &report));
		assert_int_equal(report.errors, 1);
		config_report_release(&report);
	}
	write_file("t.conf", "limit \"a\" { burst = \"1MB\" }\n" USE("a"));
	unload(load_with("t.conf",
			 "t.conf:1: warning: burst has no effect without a rate; leave it "
			 "out, or write up, down or rate\n"));
}

#ifdef PENSTOCK_TEST_DOUBLES
static void
test_chains(void **state)
{
	(void)state;
	struct generation *generation = load(
		"stutter \"a\" { seed = 7 }\n"
		"tunnel \"t\" { listen = \"127.0.0.1:1\" connect = \"127.0.0.1:2\"\n"
		"accept_filters = { \"stutter:a\", \"hoard\" } connect_filters = \"stutter\" }\n");
	const struct tunnel_conf *tunnel = generation->tunnels[0];
	assert_int_equal(tunnel->near_chain.count, 2);
	assert_string_equal(tunnel->near_chain.at[0].type->name, "stutter");
	assert_string_equal(tunnel->near_chain.at[1].type->name, "hoard");
	assert_int_equal(tunnel->far_chain.count, 1);
	assert_ptr_not_equal(tunnel->far_chain.at[0].conf, tunnel->near_chain.at[0].conf);
	unload(generation);

	write_file("t.conf", "stutter \"a\" { seed = x }\n"
			     "stutter \"a\" { }\n"
			     "stutter \"unused\" { }\n"
			     "tunnel \"t\" { listen = \"127.0.0.1:1\" connect = \"127.0.0.1:2\"\n"
			     "accept_filters = { \"stutter:b\", \"stuter\",\n"
			     "\"hoard:x\", \"what\" }\n"
			     "connect_filters = \"stutter:a\" }\n");
	refuse_file(
		"t.conf:1: seed: 'x' does not begin with a digit; write a count such as '1000'\n"
		"t.conf:2: stutter \"a\" is declared already (t.conf:1); choose another name\n"
		"t.conf:2: warning: no tunnel uses stutter \"a\"; leave it out, or name "
		"\"stutter:a\" in "
		"accept_filters or connect_filters\n"
		"t.conf:3: warning: no tunnel uses stutter \"unused\"; leave it out, or name "
		"\"stutter:unused\" in accept_filters or connect_filters\n"
		"t.conf:5: there is no section stutter \"b\"; did you mean \"a\"?\n"
		"t.conf:5: there is no filter 'stuter'; did you mean 'stutter'?\n"
		"t.conf:6: there is no section hoard \"x\"; write one, or \"hoard\" alone for its "
		"defaults\n"
		"t.conf:6: there is no filter 'what'; write one of proxy_protocol, tls, zlib, "
		"zstd, "
		"stutter, fail_after, hoard\n");
}
#endif

static int
enter_directory(void **state)
{
	(void)state;
	strcpy(directory + strlen(directory) - 6, "XXXXXX");
	return mkdtemp(directory) ? chdir(directory) : -1;
}

static int
leave_directory(void **state)
{
	(void)state;
	return chdir("/") || nftw(directory, on_entry, 8, FTW_DEPTH | FTW_PHYS);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, enter_directory, leave_directory)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_defaults),
		TEST(test_everything),
		TEST(test_internal_names),
		TEST(test_include),
		TEST(test_quotes_and_variables),
		TEST(test_warnings),
		TEST(test_form),
		TEST(test_before_the_mistake),
		TEST(test_unknown),
		TEST(test_many_unknown),
		TEST(test_repeated),
		TEST(test_values),
		TEST(test_addresses),
		TEST(test_targets_written_twice),
		TEST(test_targets),
		TEST(test_names),
		TEST(test_groups),
		TEST(test_bad_matches),
		TEST(test_never_reached),
		TEST(test_bad_groups),
		TEST(test_includes),
		TEST(test_many_includes),
		TEST(test_no_files),
		TEST(test_garbage),
		TEST(test_large),
		TEST(test_thousand_broken),
		TEST(test_keywords),
		TEST(test_limits),
		TEST(test_limits_that_cannot_be),
#ifdef PENSTOCK_TEST_DOUBLES
		TEST(test_chains),
#endif
	};
	return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
