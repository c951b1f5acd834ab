/*
 * config_text: a configuration file as bytes and words. libconfuse trusts what it reads: an unclosed
 * comment or quote swallows the rest or poisons the next file, a directory ends the process, a word of
 * megabytes costs a minute. So the file is read here, and only what is sound goes on to libconfuse.
 * Knows nothing of keywords.
 */
#ifndef PENSTOCK_CONFIG_TEXT_H
#define PENSTOCK_CONFIG_TEXT_H

#include "config_report.h"
#include "failure.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define CONFIG_TEXT_MOST     (1024 * 1024) /* bytes of a file */
#define CONFIG_WORD_MOST     4096          /* bytes of a word or string */
#define CONFIG_WORDS_MOST    1000000       /* in all files */
#define CONFIG_SECTIONS_MOST 10000         /* in all files; libconfuse takes about 5 KiB for each */

/* What may still be read; shared by all files of one load. */
struct config_budget {
	size_t words;
	size_t sections;
};

struct config_word {
	char kind; /* 'a' = a word or a quoted string, 0 = blanked, else one of = + { } ( ) , */
	unsigned int line;
	size_t offset, length; /* in `bytes`, quotes included */
};

struct config_text {
	char *bytes; /* ends with a zero; comments are spaces; owned */
	size_t length;
	struct config_word *words; /* owned */
	size_t count;
	bool is_cut;  /* a mistake was reported; `bytes` end before it */
	size_t open;  /* braces not closed at the end */
	dev_t device; /* which file it is, whatever its name */
	ino_t inode;
};

/* Reads a regular file of at most CONFIG_TEXT_MOST bytes; never waits, opens no device. Zeroes *text
 * first; on success it is to be released. */
int config_text_read(struct config_text *text, const char *path, struct failure *why);

/* Finds the words. The first mistake of form (an unclosed comment, quote or brace, a control byte, a bad
 * escape ...) is reported and the text cut before it; an unset environment variable is reported, too. */
void config_text_scan(struct config_text *text, const char *file, struct config_budget *budget,
		      struct config_report *report);

/* Overwrites the statement that begins with that word on that line with spaces. False, and nothing done,
 * if there is none of the form of an assignment, a section or a call. */
bool config_text_blank(struct config_text *text, unsigned int line, const char *name);

/* Frees what it owns and zeroes it. */
void config_text_release(struct config_text *text);

#endif
