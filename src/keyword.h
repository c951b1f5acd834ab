/*
 * keyword: the shape of a row. Every word an operator may write in the file is one row, standing in
 * the module that obeys it; config_value converts the text and stores the value at the row's offset.
 * Manual, samples and `--keywords` are made from or checked against these rows.
 */
#ifndef PENSTOCK_KEYWORD_H
#define PENSTOCK_KEYWORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What a value is, and the C type that stands at the row's offset. */
enum keyword_type {
	KEYWORD_FLAG,      /* bool: "true" or "false" */
	KEYWORD_COUNT,     /* uint64_t */
	KEYWORD_COUNTS,    /* struct count_list; `least` and `most` are of each */
	KEYWORD_DURATION,  /* uint64_t, nanoseconds: "250ms", "10s", "1h" */
	KEYWORD_SIZE,      /* uint64_t, bytes: "64KiB", "10MB" */
	KEYWORD_RATE,      /* uint64_t, bytes a second: "10MB/s", "900Mbit/s" */
	KEYWORD_FREQUENCY, /* struct frequency: "50/s", "10/min" */
	KEYWORD_LOG_TARGET, /* char *, owned by the section's object: auto, stderr, journal, file:/PATH */
	KEYWORD_CHOICE,    /* int: index into `choices` */
	KEYWORD_MODE,      /* mode_t: "0660", octal */
	KEYWORD_OWNER,     /* struct owner: "user", "user:group", ":group" */
	KEYWORD_HOST,      /* struct address: an IP address without a port; "" = family AF_UNSPEC */
	KEYWORD_ADDRESSES, /* struct address_list */
	KEYWORD_PREFIXES,  /* struct prefix_list */
	KEYWORD_TEXT,      /* char *, owned by the section's object: any text; never NULL */
	KEYWORD_TEXTS,     /* struct text_list */
	KEYWORD_FILE,      /* char *, owned: an absolute path, "" = none; never NULL */
	KEYWORD_FILES,     /* struct text_list of absolute paths */
	KEYWORD_RIGHTS,    /* struct text_list of "uid:NUMBER" and "cn:NAME" */
};

struct text_list {
	char **at; /* owned, and so are the texts */
	size_t count;
};

struct count_list {
	uint64_t *at; /* owned */
	size_t count;
};

/* From when on a changed value counts after a reload. */
enum keyword_effect {
	EFFECT_LIVE,            /* at once, on open connections too */
	EFFECT_NEW_CONNECTIONS, /* on connections accepted from then on */
	EFFECT_RESTART,         /* only after a restart; a reload that changes it says so */
};

struct frequency {
	uint64_t count; /* 0 = unlimited */
	uint64_t period_ns;
};

struct owner {
	uid_t uid; /* (uid_t)-1 = leave as it is */
	gid_t gid;
};

struct keyword {
	const char *name;
	enum keyword_type type;
	enum keyword_effect effect;
	const char *fallback; /* the default, as an operator would write it; "" = an empty text or
				 list; NULL = none, required */
	uint64_t least, most; /* inclusive range of a count, duration, size or rate; the default is
				 allowed even where it lies outside (0 = none) */
	const char *const *choices; /* KEYWORD_CHOICE: NULL-terminated words; KEYWORD_FILE: words
				       that are no paths */
	size_t offset;              /* of the value in the section's object */
	const char *unit;           /* for the manual: "bytes", "connections"; NULL = none */
	const char *help;           /* one sentence */
};

/* Frees what the rows' values own in the section's object, and empties those values. For the owner of
 * the object; an object that was only zeroed is allowed. `rows` ends with name NULL. */
void keyword_release(const struct keyword *rows, void *object);

/* Where the operator wrote something: for messages. line 0 = not written, a default. */
struct origin {
	const char *file; /* interned for as long as the generation lives */
	unsigned int line;
};

#endif
