#include "failure.h"

#include "utf8.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const kind_names[FAILURE_KINDS] = {
	[FAILURE_NONE] = "none",           [FAILURE_CONFIG] = "config",
	[FAILURE_MEMORY] = "memory",       [FAILURE_DESCRIPTORS] = "descriptors",
	[FAILURE_REFUSED] = "refused",     [FAILURE_UNREACHABLE] = "unreachable",
	[FAILURE_TIMEOUT] = "timeout",     [FAILURE_RESET] = "reset",
	[FAILURE_TRUNCATED] = "truncated", [FAILURE_PROTOCOL] = "protocol",
	[FAILURE_RESOLVE] = "resolve",     [FAILURE_ADMISSION] = "admission",
	[FAILURE_STOPPED] = "stopped",     [FAILURE_SYSTEM] = "system",
};

static enum failure_kind
kind_of_errno(int error)
{
	switch (error) {
	case ENOMEM:
	case ENOBUFS:
		return FAILURE_MEMORY;
	case EMFILE:
	case ENFILE:
		return FAILURE_DESCRIPTORS;
	case ECONNREFUSED:
	case ENOENT:
		return FAILURE_REFUSED;
	case EHOSTUNREACH:
	case ENETUNREACH:
	case EHOSTDOWN:
	case ENETDOWN:
	case EADDRNOTAVAIL:
		return FAILURE_UNREACHABLE;
	case ECONNRESET:
	case ECONNABORTED:
	case EPIPE:
		return FAILURE_RESET;
	case ETIMEDOUT:
		return FAILURE_TIMEOUT;
	default:
		return FAILURE_SYSTEM;
	}
}

/* `length`: of the whole text, whatever of it is there. What was cut shows that: it may lack its remedy. */
static void
fill(struct failure *why, enum failure_kind kind, const char *text, int length)
{
	static const char mark[] = "…";
	size_t at = sizeof(why->text) - sizeof(mark);

	why->kind = kind;
	snprintf(why->text, sizeof(why->text), "%s", text);
	if (length >= (int)sizeof(why->text)) {
		for (int i = 0; i < 3 && ((unsigned char)why->text[at] & 0xc0) == 0x80; i++)
			at--; /* it was within a character */
		memcpy(why->text + at, mark, sizeof(mark));
	}
	utf8_mend(why->text);
}

int
failure_set(struct failure *why, enum failure_kind kind, const char *format, ...)
{
	if (why) {
		char text[sizeof(why->text)]; /* the arguments may point into why->text */
		va_list args;
		va_start(args, format);
		int length = vsnprintf(text, sizeof(text), format, args);
		va_end(args);
		fill(why, kind, text, length);
	}
	return -1;
}

int
failure_set_errno(struct failure *why, int error, const char *format, ...)
{
	if (why) {
		char text[sizeof(why->text)];
		char reason[64];
		va_list args;
		va_start(args, format);
		int length = vsnprintf(text, sizeof(text), format, args);
		va_end(args);
		const char *said = strerror_r(error, reason, sizeof(reason));
		if (length >= 0 && (size_t)length < sizeof(text))
			length += snprintf(text + length, sizeof(text) - (size_t)length, ": %s",
					   said);
		fill(why, kind_of_errno(error), text, length);
	}
	return -1;
}

const char *
failure_kind_name(enum failure_kind kind)
{
	return (unsigned int)kind < FAILURE_KINDS ? kind_names[kind] : "unknown";
}
