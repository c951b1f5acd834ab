#include "log_record.h"

#include "clock.h"
#include "utf8.h"

#include <assert.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <syslog.h>
#include <time.h>

#define DIGITS 20 /* of the largest number */

static const struct {
	const char *name;
	int priority;
} levels[] = {
	[LOG_LEVEL_ERROR] = { "error", LOG_ERR },
	[LOG_LEVEL_WARNING] = { "warning", LOG_WARNING },
	[LOG_LEVEL_NOTICE] = { "notice", LOG_NOTICE },
	[LOG_LEVEL_INFO] = { "info", LOG_INFO },
	[LOG_LEVEL_DEBUG] = { "debug", LOG_DEBUG },
};

static_assert(sizeof(((struct log_record *)0)->fields) >= LOG_FIELDS * sizeof(struct log_field) +
								  LOG_TEXT_BYTES + 1 +
								  LOG_FIELDS_BYTES + LOG_FIELDS + 7,
	      "a record has room for the longest line");

/* The length of the character at `text`, 0 if it is none or a control character: a terminal obeys U+0080 to
 * U+009F as it does ESC. */
static size_t
printable_bytes(const char *text)
{
	uint32_t code;
	size_t bytes = utf8_character(text, &code);
	return bytes && (code < 0x20 || (code >= 0x7f && code < 0xa0)) ? 0 : bytes;
}

/* How much of a text cut after `length` bytes stays, so that no character is cut in two. */
static size_t
whole_characters(const char *text, size_t length)
{
	size_t start = length;
	for (int i = 0; i < 3 && start > 0 && (text[start - 1] & 0xc0) == 0x80; i++)
		start--;
	if (start > 0 && (text[start - 1] & 0xc0) == 0xc0 && !printable_bytes(text + start - 1))
		return start - 1;
	return length;
}

uint64_t
log_record_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void
log_record_fill(struct log_record *record, enum log_level level, const struct log_field *fields,
		unsigned int count, const char *format, va_list args)
{
	record->time_ns = log_record_now_ns();
	record->kind = format;
	record->level = (uint16_t)level;
	record->field_count = 0;

	if (count > LOG_FIELDS)
		count = LOG_FIELDS;
	char *end = (char *)(record->fields + count);
	record->text = end;
	*end = '\0';
	int wanted = vsnprintf(end, LOG_TEXT_BYTES + 1, format, args);
	if (wanted > LOG_TEXT_BYTES)
		end += whole_characters(end, LOG_TEXT_BYTES);
	else if (wanted > 0)
		end += wanted;
	*end++ = '\0';

	size_t room = LOG_FIELDS_BYTES;
	for (unsigned int i = 0; i < count; i++) {
		size_t value_bytes = fields[i].text ? strlen(fields[i].text) : DIGITS;
		size_t bytes = strlen(fields[i].name) + value_bytes;
		if (bytes > room)
			continue;
		room -= bytes;
		struct log_field *field = &record->fields[record->field_count++];
		*field = fields[i];
		if (field->text) {
			field->text = memcpy(end, fields[i].text, value_bytes + 1);
			end += value_bytes + 1;
		}
	}
	record->size_bytes = (uint32_t)((size_t)(end - (char *)record) + 7) & ~UINT32_C(7);
}

void
log_record_copy(struct log_record *to, const struct log_record *from)
{
	memcpy(to, from, from->size_bytes);
	to->text = (char *)to + (from->text - (const char *)from);
	for (unsigned int i = 0; i < to->field_count; i++)
		if (from->fields[i].text)
			to->fields[i].text =
				(char *)to + (from->fields[i].text - (const char *)from);
}

bool
log_record_same_field(const struct log_field *one, const struct log_field *other)
{
	if (strcmp(one->name, other->name) != 0 || !one->text != !other->text ||
	    one->same_bytes != other->same_bytes)
		return false;
	if (!one->text)
		return one->number == other->number;
	return one->same_bytes ? strncmp(one->text, other->text, one->same_bytes) == 0
			       : strcmp(one->text, other->text) == 0;
}

bool
log_record_same(const struct log_record *one, const struct log_record *other)
{
	if (one->level != other->level || one->field_count != other->field_count ||
	    strcmp(one->text, other->text) != 0)
		return false;
	for (unsigned int i = 0; i < one->field_count; i++)
		if (!log_record_same_field(&one->fields[i], &other->fields[i]))
			return false;
	return true;
}

/* Both return where the next byte goes. */

static char *
put(char *at, const char *text)
{
	return stpcpy(at, text);
}

static char *
put_escaped(char *at, const char *text, bool quoted)
{
	static const char digits[] = "0123456789abcdef";

	while (*text) {
		size_t bytes = printable_bytes(text);
		if (bytes == 0) {
			unsigned char byte = (unsigned char)*text++;
			*at++ = '\\';
			*at++ = 'x';
			*at++ = digits[byte >> 4];
			*at++ = digits[byte & 15];
			continue;
		}
		if (quoted && (*text == '"' || *text == '\\'))
			*at++ = '\\';
		for (; bytes > 0; bytes--)
			*at++ = *text++;
	}
	*at = '\0';
	return at;
}

static char *
put_plain(char *at, const struct log_record *record)
{
	at = put_escaped(at, record->text, false);
	for (unsigned int i = 0; i < record->field_count; i++) {
		const struct log_field *field = &record->fields[i];
		*at++ = ' ';
		at = put(at, field->name);
		*at++ = '=';
		if (!field->text) {
			at += sprintf(at, "%" PRIu64, field->number);
		} else if (*field->text && !strpbrk(field->text, " \"=\\")) {
			at = put_escaped(at, field->text, false);
		} else {
			*at++ = '"';
			at = put_escaped(at, field->text, true);
			*at++ = '"';
		}
	}
	return at;
}

static char *
put_time(char *at, uint64_t time_ns)
{
	time_t seconds = (time_t)(time_ns / NS_PER_S);
	struct tm utc;
	gmtime_r(&seconds, &utc);
	at += strftime(at, sizeof("-2147483648-01-01T00:00:00"), "%Y-%m-%dT%H:%M:%S", &utc);
	return at + sprintf(at, ".%03uZ", (unsigned int)(time_ns % NS_PER_S / NS_PER_MS));
}

size_t
log_record_plain(const struct log_record *record, char *form)
{
	return (size_t)(put_plain(form, record) - form);
}

size_t
log_record_stamped(const struct log_record *record, char *form)
{
	char *at = put_time(form, record->time_ns);
	*at++ = ' ';
	at = put(at, levels[record->level].name);
	*at++ = ' ';
	return (size_t)(put_plain(at, record) - form);
}

size_t
log_record_json(const struct log_record *record, char *form)
{
	char text[4 * LOG_FIELDS_BYTES + 1];
	int missing = 0;
	json_t *line = json_object();

	put_time(text, record->time_ns);
	missing |= json_object_set_new(line, "time", json_string(text));
	missing |= json_object_set_new(line, "level", json_string(levels[record->level].name));
	put_escaped(text, record->text, false);
	missing |= json_object_set_new(line, "message", json_string(text));
	for (unsigned int i = 0; i < record->field_count; i++) {
		const struct log_field *field = &record->fields[i];
		json_t *value;
		if (field->text) {
			put_escaped(text, field->text, false);
			value = json_string(text);
		} else { /* the library's numbers are signed */
			value = json_integer((json_int_t)(field->number < INT64_MAX ? field->number
										    : INT64_MAX));
		}
		missing |= json_object_set_new(line, field->name, value);
	}
	size_t bytes = missing ? 0 : json_dumpb(line, form, LOG_RECORD_FORM_BYTES, JSON_COMPACT);
	json_decref(line);
	return bytes;
}

int
log_record_priority(const struct log_record *record)
{
	return levels[record->level].priority;
}

int
log_record_journal(const struct log_record *record, struct iovec *entry, char *bytes)
{
	char *at = bytes;
	int count = 0;

	at = put_plain(put(at, "MESSAGE="), record);
	entry[count++] = (struct iovec){ bytes, (size_t)(at - bytes) };
	bytes = at;
	at += sprintf(at, "PRIORITY=%d", log_record_priority(record));
	entry[count++] = (struct iovec){ bytes, (size_t)(at - bytes) };
	for (unsigned int i = 0; i < record->field_count; i++) {
		const struct log_field *field = &record->fields[i];
		bytes = at;
		for (const char *name = field->name; *name; name++)
			*at++ = (char)(*name >= 'a' && *name <= 'z' ? *name - 'a' + 'A' : *name);
		*at++ = '=';
		if (field->text)
			at = put_escaped(at, field->text, false);
		else
			at += sprintf(at, "%" PRIu64, field->number);
		entry[count++] = (struct iovec){ bytes, (size_t)(at - bytes) };
	}
	return count;
}
