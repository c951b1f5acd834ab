#include "config_text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------ the file */

static int
check_file(int fd, struct config_text *text, struct failure *why)
{
	struct stat status;
	if (fstat(fd, &status))
		return failure_set_errno(why, errno, "cannot be looked at");
	if (S_ISDIR(status.st_mode))
		return failure_set(why, FAILURE_CONFIG, "is a directory; name a file in it");
	if (!S_ISREG(status.st_mode))
		return failure_set(why, FAILURE_CONFIG, "is not a file; name a regular file");
	text->device = status.st_dev;
	text->inode = status.st_ino;
	return 0;
}

/* One byte more than is allowed tells that there is more. */
static int
read_bytes(int fd, struct config_text *text, struct failure *why)
{
	text->bytes = malloc(CONFIG_TEXT_MOST + 1);
	if (!text->bytes)
		return failure_set(why, FAILURE_MEMORY, "cannot be read: no memory");
	while (text->length <= CONFIG_TEXT_MOST) {
		ssize_t got =
			read(fd, text->bytes + text->length, CONFIG_TEXT_MOST + 1 - text->length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return failure_set_errno(why, errno, "cannot be read");
		if (got == 0) {
			text->bytes[text->length] = '\0';
			return 0;
		}
		text->length += (size_t)got;
	}
	return failure_set(why, FAILURE_CONFIG,
			   "is larger than 1 MiB; split it with include(\"FILE\")");
}

int
config_text_read(struct config_text *text, const char *path, struct failure *why)
{
	*text = (struct config_text){ 0 };
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return failure_set(why, FAILURE_CONFIG,
				   "cannot be opened: %s; name a readable file", strerror(errno));
	int result = check_file(fd, text, why);
	if (result == 0)
		result = read_bytes(fd, text, why);
	close(fd);
	if (result)
		config_text_release(text);
	return result;
}

void
config_text_release(struct config_text *text)
{
	free(text->bytes);
	free(text->words);
	*text = (struct config_text){ 0 };
}

/* ------------------------------------------------------------------ the words */

struct scanner {
	struct config_text *text;
	const char *file;
	struct config_budget *budget;
	struct config_report *report;
	size_t at; /* the next byte */
	unsigned int line;
};

static bool
is_keyword_byte(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c == '_';
}

static void
blank(struct config_text *text, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		if (text->bytes[i] != '\n')
			text->bytes[i] = ' ';
}

/* Reports the mistake at `offset` and ends the text there. */
static void __attribute__((format(printf, 3, 4)))
cut(struct scanner *scanner, size_t offset, const char *format, ...)
{
	char what[CONFIG_WORD_MOST];
	va_list args;
	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	config_report_error(scanner->report, (struct origin){ scanner->file, scanner->line }, "%s",
			    what);
	scanner->text->is_cut = true;
	scanner->text->length = offset;
	scanner->text->bytes[offset] = '\0';
}

static const struct config_word *
last_word(const struct config_text *text)
{
	static const struct config_word none = { 0 };
	return text->count ? &text->words[text->count - 1] : &none;
}

/* libconfuse takes "a|b" and "a=b" for paths to other sections. */
static bool
check_keyword(struct scanner *scanner)
{
	const struct config_word *word = last_word(scanner->text);
	const char *bytes = scanner->text->bytes + word->offset;
	size_t from = word->kind == 'a' && (*bytes == '"' || *bytes == '\'');
	size_t to = word->length - from;
	bool is_good = word->kind != 'a' || from < to;
	for (size_t i = from; word->kind == 'a' && i < to; i++)
		is_good = is_good && is_keyword_byte(bytes[i]);
	if (is_good)
		return true;
	char better[64] = "";
	bool is_spelt = to > from && to - from < sizeof(better);
	for (size_t i = from; is_spelt && i < to; i++) {
		better[i - from] = (char)(bytes[i] == '-' ? '_' : bytes[i]);
		is_spelt = is_keyword_byte(better[i - from]);
	}
	if (is_spelt)
		cut(scanner, word->offset, "'%.*s' is not a keyword; did you mean '%.*s'?",
		    (int)(to - from), bytes + from, (int)(to - from), better);
	else
		cut(scanner, word->offset,
		    "'%.*s' is not a keyword; keywords are made of letters, digits and '_'",
		    (int)(word->length < 60 ? word->length : 60), bytes);
	return false;
}

static void
add_word(struct scanner *scanner, char kind, size_t length)
{
	struct config_text *text = scanner->text;
	bool opens_section = kind == '{' && !strchr("=+", last_word(text)->kind);
	if (strchr("=+(", kind) && !check_keyword(scanner))
		return;
	if (scanner->budget->words == 0 || (opens_section && scanner->budget->sections == 0)) {
		cut(scanner, scanner->at, "the configuration has too many %s; make it smaller",
		    scanner->budget->words == 0 ? "words" : "sections");
		return;
	}
	if (length > CONFIG_WORD_MOST) {
		cut(scanner, scanner->at, "a word is longer than %d bytes; write a shorter one",
		    CONFIG_WORD_MOST);
		return;
	}
	if ((text->count & (text->count - 1)) == 0) {
		size_t room = text->count ? text->count * 2 : 1;
		struct config_word *words = reallocarray(text->words, room, sizeof(*words));
		if (!words) {
			cut(scanner, scanner->at, "no memory for this configuration");
			return;
		}
		text->words = words;
	}
	text->words[text->count++] =
		(struct config_word){ kind, scanner->line, scanner->at, length };
	scanner->budget->words--;
	scanner->budget->sections -= opens_section;
	scanner->at += length;
}

static void
scan_line_comment(struct scanner *scanner)
{
	struct config_text *text = scanner->text;
	const char *end = memchr(text->bytes + scanner->at, '\n', text->length - scanner->at);
	size_t to = end ? (size_t)(end - text->bytes) : text->length;
	blank(text, scanner->at, to);
	scanner->at = to;
}

static void
scan_block_comment(struct scanner *scanner)
{
	struct config_text *text = scanner->text;
	size_t from = scanner->at + 2;
	const char *end = memmem(text->bytes + from, text->length - from, "*/", 2);
	if (!end) {
		cut(scanner, scanner->at,
		    "the comment opened here is not closed; close it with */");
		return;
	}
	size_t to = (size_t)(end - text->bytes) + 2;
	for (size_t i = scanner->at; i < to; i++)
		scanner->line += text->bytes[i] == '\n';
	blank(text, scanner->at, to);
	scanner->at = to;
}

/* "${NAME}" or "${NAME:-instead}" at `from`. Returns where it ends, or 0 after a mistake. */
static size_t
scan_variable(struct scanner *scanner, size_t from)
{
	const char *bytes = scanner->text->bytes;
	char name[128];
	size_t length = 0, end = from + 2;
	while (is_keyword_byte(bytes[end]) && length < sizeof(name) - 1)
		name[length++] = bytes[end++];
	name[length] = '\0';
	bool has_instead = bytes[end] == ':' && bytes[end + 1] == '-';
	if (has_instead)
		end += strcspn(bytes + end, "}\"\\\n");
	if (length == 0 || bytes[end] != '}') {
		cut(scanner, scanner->at,
		    "'${' does not begin a variable; write ${NAME} or ${NAME:-TEXT}, or \\${ for "
		    "the "
		    "characters");
		return 0;
	}
	if (!has_instead && !getenv(name))
		config_report_error(scanner->report,
				    (struct origin){ scanner->file, scanner->line },
				    "the environment has no variable '%s'; set it, or write "
				    "${%s:-TEXT} for a default",
				    name, name);
	return end + 1;
}

static void
scan_string(struct scanner *scanner)
{
	const char *bytes = scanner->text->bytes;
	char quote = bytes[scanner->at];
	size_t i = scanner->at + 1;
	while (bytes[i] != quote) {
		if ((unsigned char)bytes[i] < ' ' && bytes[i] != '\t') {
			cut(scanner, scanner->at,
			    "the quote opened here is not closed; write %c at the end of the text, "
			    "on "
			    "the same line",
			    quote);
			return;
		}
		if (quote == '"' && bytes[i] == '$' && bytes[i + 1] == '{') {
			i = scan_variable(scanner, i);
			if (i == 0)
				return;
			continue;
		}
		if (bytes[i] == '\\' && quote == '"' && !strchr("\"\\$\n", bytes[i + 1])) {
			cut(scanner, scanner->at,
			    "'\\%c' is unknown; write \\\\, \\\" or \\$ in double quotes, or use "
			    "single "
			    "quotes",
			    bytes[i + 1]);
			return;
		}
		i += bytes[i] == '\\' && strchr("\"\\$'", bytes[i + 1]) && bytes[i + 1] ? 2 : 1;
	}
	add_word(scanner, 'a', i + 1 - scanner->at);
}

#define ENDS_WORD " #\"'\t\n\r={}()+,*"

/* What libconfuse's scanner takes for one word: a '/' belongs to it only if another byte of it follows. */
static void
scan_bare_word(struct scanner *scanner)
{
	const char *bytes = scanner->text->bytes + scanner->at;
	size_t length = 0;
	while ((unsigned char)bytes[length] > ' ' && !strchr(ENDS_WORD, bytes[length])) {
		if (bytes[length] == '/' && (bytes[length + 1] == '/' || !bytes[length + 1] ||
					     strchr(ENDS_WORD, bytes[length + 1])))
			break;
		length += bytes[length] == '/' ? 2 : 1;
	}
	if (length == 0)
		cut(scanner, scanner->at, "'%c' does not belong here; put values in double quotes",
		    *bytes);
	else if (bytes[length] == '{' && bytes[length - 1] == '$')
		cut(scanner, scanner->at, "'${' stands outside quotes; write \"${NAME}\"");
	else
		add_word(scanner, 'a', length);
}

static void
scan_one(struct scanner *scanner)
{
	const char *bytes = scanner->text->bytes + scanner->at;
	switch (*bytes) {
	case '\n':
		scanner->line++;
		scanner->at++;
		return;
	case ' ':
	case '\t':
	case '\r':
		scanner->at++;
		return;
	case '=':
	case '{':
	case '}':
	case '(':
	case ')':
	case ',':
		add_word(scanner, *bytes, 1);
		return;
	case '"':
	case '\'':
		scan_string(scanner);
		return;
	case '#':
		scan_line_comment(scanner);
		return;
	default:
		break;
	}
	if (bytes[0] == '/' && bytes[1] == '/')
		scan_line_comment(scanner);
	else if (bytes[0] == '/' && bytes[1] == '*')
		scan_block_comment(scanner);
	else if (bytes[0] == '+' && bytes[1] == '=')
		add_word(scanner, '+', 2);
	else if ((unsigned char)bytes[0] < ' ')
		cut(scanner, scanner->at, "the byte 0x%02x is not text; write a text file",
		    (unsigned int)bytes[0]);
	else
		scan_bare_word(scanner);
}

/* A call with anything but one text makes libconfuse lose memory when it stops there. */
static void
check_calls(struct scanner *scanner)
{
	struct config_text *text = scanner->text;
	for (size_t i = 0; i < text->count; i++) {
		if (text->words[i].kind != '(')
			continue;
		if (i > 0 && text->words[i - 1].kind == 'a' && i + 2 < text->count &&
		    text->words[i + 1].kind == 'a' && text->words[i + 2].kind == ')')
			continue;
		scanner->line = text->words[i].line;
		text->count = i;
		cut(scanner, text->words[i].offset,
		    "'(' is not followed by one text and ')'; write include(\"FILE\")");
		return;
	}
}

/* libconfuse takes the end of the file for any number of closing braces. */
static void
check_braces(struct scanner *scanner)
{
	struct config_text *text = scanner->text;
	const struct config_word *innermost = NULL;
	size_t closed = 0;
	for (size_t i = text->count; i-- > 0;) {
		if (text->words[i].kind == '}') {
			closed++;
		} else if (text->words[i].kind == '{' && closed > 0) {
			closed--;
		} else if (text->words[i].kind == '{') {
			text->open++;
			innermost = innermost ? innermost : &text->words[i];
		}
	}
	if (innermost && !text->is_cut) {
		config_report_error(scanner->report,
				    (struct origin){ scanner->file, innermost->line },
				    "the brace opened here is not closed; close it with }");
		text->is_cut = true;
	}
}

void
config_text_scan(struct config_text *text, const char *file, struct config_budget *budget,
		 struct config_report *report)
{
	struct scanner scanner = { text, file, budget, report, .line = 1 };
	/* Some editors begin UTF-8 so; nobody can see it. */
	if (text->length >= 3 && memcmp(text->bytes, "\xef\xbb\xbf", 3) == 0)
		memset(text->bytes, ' ', 3);
	while (scanner.at < text->length)
		scan_one(&scanner);
	check_calls(&scanner);
	check_braces(&scanner);
}

/* ------------------------------------------------------------------ statements */

static char
kind_at(const struct config_text *text, size_t i)
{
	return i < text->count ? text->words[i].kind : '\0';
}

/* The word behind the brace that closes the one at `i`. */
static size_t
behind_brace(const struct config_text *text, size_t i)
{
	size_t depth = 0;
	for (; i < text->count; i++) {
		if (kind_at(text, i) == '{')
			depth++;
		else if (kind_at(text, i) == '}' && --depth == 0)
			return i + 1;
	}
	return i;
}

/* The word behind the statement that begins at `i`; i + 1 if it is none. */
static size_t
behind_statement(const struct config_text *text, size_t i)
{
	char kind = kind_at(text, i + 1);
	if ((kind == '=' || kind == '+') && kind_at(text, i + 2) == 'a')
		return i + 3;
	if ((kind == '=' || kind == '+') && kind_at(text, i + 2) == '{')
		return behind_brace(text, i + 2);
	if (kind == '(')
		return i + 4;
	if (kind == 'a' && kind_at(text, i + 2) == '{')
		return behind_brace(text, i + 2);
	return kind == '{' ? behind_brace(text, i + 1) : i + 1;
}

static bool
is_word(const struct config_text *text, const struct config_word *word, const char *name)
{
	const char *bytes = text->bytes + word->offset;
	size_t quotes = *bytes == '"' || *bytes == '\'';
	return word->kind == 'a' && word->length == strlen(name) + 2 * quotes &&
	       memcmp(bytes + quotes, name, strlen(name)) == 0;
}

bool
config_text_blank(struct config_text *text, unsigned int line, const char *name)
{
	for (size_t i = 0; i < text->count && text->words[i].line <= line; i++) {
		if (text->words[i].line != line || !is_word(text, &text->words[i], name))
			continue;
		size_t end = behind_statement(text, i);
		if (end == i + 1)
			continue;
		const struct config_word *last = &text->words[end - 1];
		blank(text, text->words[i].offset, last->offset + last->length);
		for (; i < end; i++)
			text->words[i].kind = 0;
		return true;
	}
	return false;
}
