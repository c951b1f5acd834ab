#include "clock.h"
#include "log.h"
#include "log_record.h"

#include <event2/event.h>
#include <event2/event_struct.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define PATIENCE_NS (10 * NS_PER_S)
#define THREADS     8
#define LINES       3000
#define MANY        40000 /* more than pipe, output and queue hold */

static char folder[] = "/tmp/penstock-log-XXXXXX";
static char path[64], target[72], other_path[64], other_target[72];
static int stderr_before = -1, stderr_pipe[2] = { -1, -1 };

static int
make_folder(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/log", folder);
	snprintf(other_path, sizeof(other_path), "%s/other", folder);
	snprintf(target, sizeof(target), "file:%s", path);
	snprintf(other_target, sizeof(other_target), "file:%s", other_path);
	return 0;
}

static int
remove_folder(void **state)
{
	(void)state;
	return rmdir(folder);
}

/* After each test, also one that failed in the middle. */
static int
tidy(void **state)
{
	(void)state;
	if (stderr_before >= 0) {
		dup2(stderr_before, STDERR_FILENO);
		close(stderr_before);
		close(stderr_pipe[0]);
		stderr_before = -1;
	}
	log_stop();
	unlink(path);
	unlink(other_path);
	unsetenv("JOURNAL_STREAM");
	return 0;
}

/* From here on stderr is a pipe; nobody reads it but read_stderr. */
static void
take_stderr(void)
{
	assert_int_equal(pipe2(stderr_pipe, O_CLOEXEC), 0);
	stderr_before = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	dup2(stderr_pipe[1], STDERR_FILENO);
	close(stderr_pipe[1]);
}

/* Appends what comes on stderr to `text` until `wanted` is in it (NULL: until the pipe is empty). */
static bool
read_stderr(char *text, size_t size, const char *wanted)
{
	uint64_t by_ns = clock_now_ns() + PATIENCE_NS;
	size_t used = strlen(text);

	while (!wanted || !strstr(text, wanted)) {
		struct pollfd coming = { .fd = stderr_pipe[0], .events = POLLIN };
		if (poll(&coming, 1, wanted ? 100 : 0) == 1) {
			ssize_t got = read(stderr_pipe[0], text + used, size - used - 1);
			if (got <= 0)
				return false;
			used += (size_t)got;
			text[used] = '\0';
		} else if (!wanted || clock_now_ns() > by_ns) {
			return !wanted;
		}
	}
	return true;
}

static void
fill_stderr(void)
{
	int flags = fcntl(STDERR_FILENO, F_GETFL);
	char block[4096];
	memset(block, '.', sizeof(block));
	block[sizeof(block) - 1] = '\n';
	fcntl(STDERR_FILENO, F_SETFL, flags | O_NONBLOCK);
	while (write(STDERR_FILENO, block, sizeof(block)) > 0)
		;
	fcntl(STDERR_FILENO, F_SETFL, flags);
}

/* The whole file as a string of the caller's; "" if there is none. */
static char *
file_text(const char *name)
{
	FILE *file = fopen(name, "r");
	char *text = NULL;
	size_t size = 0;
	if (!file || getdelim(&text, &size, EOF, file) < 0) {
		free(text);
		text = strdup("");
	}
	if (file)
		fclose(file);
	return text;
}

static bool
file_holds(const char *name, const char *wanted)
{
	char *text = file_text(name);
	bool there = strstr(text, wanted);
	free(text);
	return there;
}

static bool
file_gets(const char *name, const char *wanted)
{
	uint64_t by_ns = clock_now_ns() + PATIENCE_NS;
	while (!file_holds(name, wanted) && clock_now_ns() < by_ns)
		poll(NULL, 0, 1);
	return file_holds(name, wanted);
}

static unsigned int
times(const char *text, const char *part)
{
	unsigned int count = 0;
	for (; (text = strstr(text, part)); text += strlen(part))
		count++;
	return count;
}

static void
start(const char *where, enum log_format format, enum log_level level)
{
	struct failure why = { 0 };
	log_start(where, format, level, &why);
	assert_string_equal(why.text, "");
}

/* Stops the log; the file has exactly that after time and level of each of its lines. */
static void
assert_file_says(const char *level, const char *rest)
{
	log_stop();
	char *text = file_text(path), *space = strchr(text, ' ');
	assert_non_null(space);
	assert_int_equal(space - text, strlen("2026-11-24T03:28:17.123Z"));
	assert_int_equal(space[-1], 'Z');
	assert_int_equal(strncmp(space + 1, level, strlen(level)), 0);
	assert_string_equal(space + 1 + strlen(level) + 1, rest);
	free(text);
}

static void
text_has_time_level_and_fields(void **state)
{
	(void)state;
	const struct log_field fields[] = {
		{ .name = "tunnel", .text = "cache" },
		{ .name = "bytes", .number = UINT64_MAX },
		{ .name = "why", .text = "peer \"a\" said \\no" },
		{ .name = "sni", .text = "" },
		{ .name = "zero", .number = 0 },
	};
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_WARNING, fields, 5, "closed after %d s", 7);
	assert_file_says("warning", "closed after 7 s tunnel=cache bytes=18446744073709551615 "
				    "why=\"peer \\\"a\\\" said \\\\no\" sni=\"\" zero=0\n");
	struct stat status;
	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_mode & 0777 & ~0640u, 0);
}

static void
strange_bytes_are_escaped(void **state)
{
	(void)state;
	const struct log_field field = { .name = "sni", .text = "a\r\n\x1b[2Jb" };
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, &field, 1, "%s",
		  "\xc3\xa9\xe2\x82\xac\xf0\x9f\x9a\xb0 "   /* é, €, a tap */
		  "\n\x7f \xff \xc3 \xc0\xaf \xed\xa0\x80 " /* alone, overlong, surrogate */
		  "\xc2\x9b \xf4\x90\x80\x80 \xe2\x82");    /* C1, beyond the end, cut */
	assert_file_says("info", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x9a\xb0 "
				 "\\x0a\\x7f \\xff \\xc3 \\xc0\\xaf \\xed\\xa0\\x80 "
				 "\\xc2\\x9b \\xf4\\x90\\x80\\x80 \\xe2\\x82 "
				 "sni=a\\x0d\\x0a\\x1b[2Jb\n");
}

static void
long_text_is_cut_between_characters(void **state)
{
	(void)state;
	char text[700] = "", expected[600];
	for (int i = 0; i < 200; i++)
		strcat(text, "\xe2\x82\xac"); /* 166 of them are 498 bytes */
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_INFO, "%s", text);
	snprintf(expected, sizeof(expected), "%.498s\n", text);
	assert_file_says("info", expected);
}

static void
too_many_and_too_long_fields_are_left_out(void **state)
{
	(void)state;
	char long_text[LOG_FIELDS_BYTES];
	struct log_field fields[LOG_FIELDS + 1];
	memset(long_text, 'x', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = '\0';
	for (unsigned int i = 0; i <= LOG_FIELDS; i++)
		fields[i] = (struct log_field){ .name = "f", .number = i };
	fields[3] = (struct log_field){ .name = "long", .text = long_text };
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, fields, LOG_FIELDS + 1, "many");
	assert_file_says("info", "many f=0 f=1 f=2 f=4 f=5 f=6 f=7 f=8 f=9 f=10 f=11 f=12 f=13 "
				 "f=14 f=15 f=16 f=17 f=18 f=19 f=20 f=21 f=22 f=23\n");
}

static void
json_is_valid_at_its_longest(void **state)
{
	(void)state;
	char text[LOG_TEXT_BYTES + 1], value[LOG_FIELDS_BYTES - 4];
	memset(text, '\x01', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	memset(value, '\xff', sizeof(value) - 1);
	value[sizeof(value) - 1] = '\0';
	const struct log_field longest = { .name = "last", .text = value };
	const struct log_field usual[] = { { .name = "sni", .text = "\"\\\n" },
					   { .name = "bytes", .number = 123 } };
	start(target, LOG_FORMAT_JSON, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, &longest, 1, "%s", text);
	log_event(LOG_LEVEL_ERROR, usual, 2, "quote \" and %s", "\xc3\xa9");
	log_stop();

	char *lines = file_text(path), *second = strchr(lines, '\n') + 1;
	json_t *line = json_loads(lines, JSON_DISABLE_EOF_CHECK, NULL);
	assert_non_null(line);
	assert_int_equal(json_string_length(json_object_get(line, "message")), 4 * LOG_TEXT_BYTES);
	assert_int_equal(json_string_length(json_object_get(line, "last")), 4 * strlen(value));
	json_decref(line);
	line = json_loads(second, 0, NULL);
	assert_non_null(line);
	assert_int_equal(json_object_size(line), 5);
	assert_string_equal(json_string_value(json_object_get(line, "level")), "error");
	assert_string_equal(json_string_value(json_object_get(line, "message")),
			    "quote \" and \xc3\xa9");
	assert_string_equal(json_string_value(json_object_get(line, "sni")), "\"\\\\x0a");
	assert_int_equal(json_integer_value(json_object_get(line, "bytes")), 123);
	assert_int_equal(json_string_length(json_object_get(line, "time")), 24);
	json_decref(line);
	free(lines);
}

__attribute__((format(printf, 4, 5))) static void
fill(struct log_record *record, const struct log_field *fields, unsigned int count,
     const char *format, ...)
{
	va_list args;
	va_start(args, format);
	log_record_fill(record, LOG_LEVEL_NOTICE, fields, count, format, args);
	va_end(args);
}

static void
journal_gets_fields_in_capitals(void **state)
{
	(void)state;
	const struct log_field fields[] = { { .name = "client_port", .number = 77 },
					    { .name = "sni", .text = "a b\n" } };
	static char bytes[2 * LOG_RECORD_FORM_BYTES];
	struct iovec entry[LOG_FIELDS + 2];
	struct log_record record;
	fill(&record, fields, 2, "hello");
	assert_int_equal(log_record_journal(&record, entry, bytes), 4);
	const char *expected[] = { "MESSAGE=hello client_port=77 sni=\"a b\\x0a\"", "PRIORITY=5",
				   "CLIENT_PORT=77", "SNI=a b\\x0a" };
	for (int i = 0; i < 4; i++) {
		assert_int_equal(entry[i].iov_len, strlen(expected[i]));
		assert_memory_equal(entry[i].iov_base, expected[i], entry[i].iov_len);
	}
}

static void
levels_are_obeyed(void **state)
{
	(void)state;
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_NOTICE);
	assert_true(log_wants(LOG_LEVEL_ERROR));
	assert_true(log_wants(LOG_LEVEL_NOTICE));
	assert_false(log_wants(LOG_LEVEL_INFO));
	log_line(LOG_LEVEL_INFO, "not this");
	log_line(LOG_LEVEL_NOTICE, "this");
	assert_file_says("notice", "this\n");
}

static void
without_a_thread_lines_go_to_stderr(void **state)
{
	(void)state;
	static char text[4096];
	text[0] = '\0';
	take_stderr();
	log_line(LOG_LEVEL_ERROR, "before");
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_ERROR, "during");
	log_stop();
	log_stop();
	log_line(LOG_LEVEL_ERROR, "after");
	assert_true(read_stderr(text, sizeof(text), NULL));
	assert_int_equal(times(text, "Z error before\n"), 1);
	assert_int_equal(times(text, "Z error after\n"), 1);
	assert_int_equal(times(text, "during"), 0);
}

static void
under_the_journal_stderr_has_priorities(void **state)
{
	(void)state;
	static char text[4096];
	char stream[64];
	struct stat status;
	text[0] = '\0';
	take_stderr();
	fstat(STDERR_FILENO, &status);
	snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)status.st_dev,
		 (uintmax_t)status.st_ino);
	setenv("JOURNAL_STREAM", stream, 1);
	start("stderr", LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_INFO, "hello");
	log_stop();
	log_line(LOG_LEVEL_ERROR, "bye");
	assert_true(read_stderr(text, sizeof(text), NULL));
	assert_string_equal(text, "<6>hello\n<3>bye\n");
}

static void
a_stopped_reader_stops_nobody(void **state)
{
	(void)state;
	static char text[1024 * 1024];
	uint64_t dropped = log_dropped();
	text[0] = '\0';
	take_stderr();
	fill_stderr();
	start("stderr", LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	for (int i = 0; i < MANY; i++)
		log_entry(LOG_LEVEL_INFO, NULL, 0, "line number %d of those that nobody reads", i);
	assert_true(log_dropped() - dropped > 10000);
	uint64_t before_ns = clock_now_ns();
	log_stop();
	assert_true(clock_now_ns() - before_ns < 2 * NS_PER_S + 500 * NS_PER_MS);
	assert_true(log_dropped() - dropped >= MANY); /* and what tells of them */
	before_ns = clock_now_ns();
	log_line(LOG_LEVEL_INFO, "nor this one");
	assert_true(clock_now_ns() - before_ns < NS_PER_S);

	/* The next log finds nothing left of it. */
	assert_true(read_stderr(text, sizeof(text), NULL));
	assert_int_equal(times(text, "line number"), 0);
	start("stderr", LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_INFO, "again");
	log_stop();
	assert_true(read_stderr(text, sizeof(text), "again\n"));
}

/* Reads stderr to its end into a string of the caller's. */
static void *
read_to_end(void *context)
{
	FILE *file = fdopen(dup(stderr_pipe[0]), "r");
	char *text = NULL;
	size_t size = 0;
	(void)context;
	assert_non_null(file);
	if (getdelim(&text, &size, EOF, file) < 0)
		abort();
	fclose(file);
	return text;
}

static void
dropped_lines_are_told(void **state)
{
	(void)state;
	uint64_t dropped = log_dropped();
	pthread_t reader;
	void *text;
	char told[80];
	take_stderr();
	fill_stderr();
	start("stderr", LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	for (int i = 0; i < MANY; i++)
		log_entry(LOG_LEVEL_INFO, NULL, 0, "line number %d of those that are read late", i);
	dropped = log_dropped() - dropped;
	assert_true(dropped > 0);
	pthread_create(&reader, NULL, read_to_end, NULL);
	log_stop();
	dup2(stderr_before, STDERR_FILENO); /* closes the pipe */
	pthread_join(reader, &text);
	snprintf(told, sizeof(told),
		 "Z warning %" PRIu64 " lines dropped: the log's reader is too slow\n", dropped);
	assert_int_equal(times(text, told), 1);
	assert_int_equal(times(text, "line number") + dropped, MANY);
	free(text);
}

static void
retarget_leaves_a_stopped_reader(void **state)
{
	(void)state;
	take_stderr();
	fill_stderr();
	start("stderr", LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_INFO, "nobody reads this");
	assert_int_equal(log_retarget(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO, NULL), 0);
	assert_int_equal(log_retarget(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO, NULL), 0);
	log_line(LOG_LEVEL_INFO, "but this");
	assert_true(file_gets(path, "but this\n"));
}

static void
retarget_keeps_the_order(void **state)
{
	(void)state;
	struct failure why = { 0 };
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_INFO, "one");
	assert_int_equal(
		log_retarget("file:/nonexistent/log", LOG_FORMAT_JSON, LOG_LEVEL_ERROR, &why), -1);
	assert_non_null(strstr(why.text, "/nonexistent/log: No such file"));
	assert_int_equal(log_retarget("syslog", LOG_FORMAT_JSON, LOG_LEVEL_ERROR, &why), -1);
	assert_int_equal(why.kind, FAILURE_CONFIG);
	log_line(LOG_LEVEL_INFO, "two");
	assert_int_equal(log_retarget(other_target, LOG_FORMAT_JSON, LOG_LEVEL_WARNING, &why), 0);
	log_line(LOG_LEVEL_INFO, "three");
	log_line(LOG_LEVEL_WARNING, "four");
	log_stop();
	char *text = file_text(path), *other = file_text(other_path);
	assert_int_equal(times(text, "one\n") + times(text, "two\n"), 2);
	assert_int_equal(times(text, "three") + times(other, "three"), 0);
	assert_int_equal(times(other, "\"level\":\"warning\",\"message\":\"four"), 1);
	assert_int_equal(times(other, "\n"), 1);
	free(text);
	free(other);
}

static void
lines_right_behind_a_retarget_go_there(void **state)
{
	(void)state;
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	for (int i = 0; i < 300; i++) {
		bool other = i % 2 == 0;
		char line[32];
		log_entry(LOG_LEVEL_INFO, NULL, 0, "for %d, %d before", !other, i);
		assert_int_equal(log_retarget(other ? other_target : target, LOG_FORMAT_TEXT,
					      LOG_LEVEL_INFO, NULL),
				 0);
		snprintf(line, sizeof(line), "for %d, %d behind", other, i);
		log_entry(LOG_LEVEL_INFO, NULL, 0, "%s", line);
		assert_true(file_gets(other ? other_path : path, line));
	}
	log_stop();
	char *text = file_text(path), *other = file_text(other_path);
	assert_int_equal(times(text, "for 1"), 0);
	assert_int_equal(times(other, "for 0"), 0);
	free(text);
	free(other);
}

static void
reopen_follows_a_rotation(void **state)
{
	(void)state;
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_INFO, "one");
	assert_true(file_gets(path, "one\n"));
	assert_int_equal(rename(path, other_path), 0);
	log_line(LOG_LEVEL_INFO, "two");
	assert_true(file_gets(other_path, "two\n"));
	log_reopen();
	for (uint64_t by_ns = clock_now_ns() + PATIENCE_NS;
	     access(path, F_OK) < 0 && clock_now_ns() < by_ns; poll(NULL, 0, 1))
		;
	log_line(LOG_LEVEL_INFO, "three");
	assert_file_says("info", "three\n");
}

static void
checking_a_target_makes_nothing(void **state)
{
	(void)state;
	struct failure why = { 0 };
	assert_int_equal(log_check_target("auto", &why), 0);
	assert_int_equal(log_check_target("stderr", &why), 0);
	assert_int_equal(log_check_target(target, &why), 0);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(log_check_target("file:/nonexistent/log", &why), -1);
	assert_int_equal(log_check_target("file:/", &why), -1);
	assert_int_equal(log_check_target("file:", &why), -1);
	assert_int_equal(log_check_target("", &why), -1);
}

static void
a_full_disk_is_told_once(void **state)
{
	(void)state;
	static char text[16384];
	uint64_t dropped = log_dropped();
	text[0] = '\0';
	take_stderr();
	start("file:/dev/full", LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_INFO, "one");
	assert_true(read_stderr(text, sizeof(text), "are lost: No space left on device\n"));
	log_line(LOG_LEVEL_INFO, "two");
	log_stop();
	assert_true(read_stderr(text, sizeof(text), NULL));
	assert_int_equal(times(text, "\n"), 1);
	assert_int_equal(log_dropped() - dropped, 2);
}

static void
repeated_lines_are_counted(void **state)
{
	(void)state;
	const struct log_field one = { .name = "port", .number = 1 };
	const struct log_field two = { .name = "port", .number = 2 };
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	for (int i = 0; i < 100; i++) {
		log_event(LOG_LEVEL_WARNING, &one, 1, "no descriptors");
		log_event(LOG_LEVEL_WARNING, &two, 1, "no descriptors");
		log_entry(LOG_LEVEL_INFO, NULL, 0, "another line %d", i);
		log_line(LOG_LEVEL_INFO, "one of many %d", i);
	}
	log_stop();
	char *text = file_text(path);
	assert_int_equal(times(text, "warning no descriptors port=1\n"), 1);
	assert_int_equal(times(text, "warning no descriptors port=2\n"), 1);
	assert_int_equal(times(text, "warning repeated 99 times: no descriptors port=1\n"), 1);
	assert_int_equal(times(text, "warning repeated 99 times: no descriptors port=2\n"), 1);
	assert_int_equal(times(text, "info another line"), 100);
	assert_int_equal(times(text, "info one of many"), 20);
	assert_int_equal(times(text, "info left out 80 lines like: one of many 0\n"), 1);
	free(text);
}

/* As a client that knocks from one port after the other. */
static void
only_what_counts_of_a_text_is_compared(void **state)
{
	(void)state;
	char texts[2][100][24];
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	for (int i = 0; i < 100; i++)
		for (int host = 0; host < 2; host++) {
			snprintf(texts[host][i], 24, "10.0.0.%d:%d", host + 1, i * 11 + 1);
			log_event(LOG_LEVEL_INFO,
				  &(struct log_field){ .name = "client",
						       .text = texts[host][i],
						       .same_bytes = strlen("10.0.0.1:") },
				  1, "connection refused");
		}
	log_stop();
	char *text = file_text(path);
	assert_int_equal(times(text, "info connection refused client=10.0.0.1:1\n"), 1);
	assert_int_equal(times(text, "info connection refused client=10.0.0.2:1\n"), 1);
	assert_int_equal(times(text, "repeated 99 times: connection refused client=10.0.0.1:1\n"),
			 1);
	assert_int_equal(times(text, "repeated 99 times: connection refused client=10.0.0.2:1\n"),
			 1);
	assert_int_equal(times(text, "\n"), 4);
	free(text);
}

static void
a_repeated_line_is_told_after_its_second(void **state)
{
	(void)state;
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_line(LOG_LEVEL_WARNING, "no descriptors");
	log_line(LOG_LEVEL_WARNING, "no descriptors");
	assert_true(file_gets(path, "repeated 1 time: no descriptors\n"));
	log_line(LOG_LEVEL_WARNING, "no descriptors");
	log_stop();
	char *text = file_text(path);
	assert_int_equal(times(text, "warning no descriptors\n"), 2);
	free(text);
}

static void *
write_lines(void *context)
{
	const struct log_field fields[] = { { .name = "thread", .number = (uintptr_t)context } };
	for (int i = 0; i < LINES; i++)
		log_entry(LOG_LEVEL_INFO, fields, 1, "line %d", i);
	return NULL;
}

static void
many_threads_keep_their_order(void **state)
{
	(void)state;
	uint64_t dropped = log_dropped();
	pthread_t threads[THREADS];
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	for (uintptr_t round = 0; round < 2; round++) { /* the second reuses the queues */
		for (uintptr_t i = 0; i < THREADS; i++)
			pthread_create(&threads[i], NULL, write_lines,
				       (void *)(round * THREADS + i));
		for (int i = 0; i < THREADS; i++)
			pthread_join(threads[i], NULL);
	}
	log_stop();
	dropped = log_dropped() - dropped;

	char *text = file_text(path), *rest = text, *line;
	int last[2 * THREADS];
	unsigned int found = 0;
	memset(last, -1, sizeof(last));
	while ((line = strsep(&rest, "\n")) && *line) {
		int number;
		unsigned int thread;
		if (sscanf(line, "%*s info line %d thread=%u", &number, &thread) != 2)
			continue;
		assert_true(thread < 2 * THREADS);
		assert_true(number > last[thread]);
		last[thread] = number;
		found++;
	}
	free(text);
	assert_int_equal(found + dropped, 2 * THREADS * LINES);
}

static void
libevent_speaks_through_the_log(void **state)
{
	(void)state;
	struct event event = { 0 };
	log_adopt_libevent();
	start(target, LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	event_add(&event, NULL);
	event_set_log_callback(NULL);
	event_set_fatal_callback(NULL);
	assert_file_says("warning", "libevent: event_add: event has no event_base set.\n");
}

int
main(void)
{
#define CASE(name) cmocka_unit_test_teardown(name, tidy)
	const struct CMUnitTest tests[] = {
		CASE(text_has_time_level_and_fields),
		CASE(strange_bytes_are_escaped),
		CASE(long_text_is_cut_between_characters),
		CASE(too_many_and_too_long_fields_are_left_out),
		CASE(json_is_valid_at_its_longest),
		CASE(journal_gets_fields_in_capitals),
		CASE(levels_are_obeyed),
		CASE(without_a_thread_lines_go_to_stderr),
		CASE(under_the_journal_stderr_has_priorities),
		CASE(a_stopped_reader_stops_nobody),
		CASE(dropped_lines_are_told),
		CASE(retarget_leaves_a_stopped_reader),
		CASE(retarget_keeps_the_order),
		CASE(lines_right_behind_a_retarget_go_there),
		CASE(reopen_follows_a_rotation),
		CASE(checking_a_target_makes_nothing),
		CASE(a_full_disk_is_told_once),
		CASE(repeated_lines_are_counted),
		CASE(only_what_counts_of_a_text_is_compared),
		CASE(a_repeated_line_is_told_after_its_second),
		CASE(many_threads_keep_their_order),
		CASE(libevent_speaks_through_the_log),
	};
	return cmocka_run_group_tests_name("log", tests, make_folder, remove_folder);
}
