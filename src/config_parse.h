/*
 * config_parse: the text of a file becomes sections and what was written in them, unconverted. The only
 * place that knows libconfuse, which keeps global state: control thread or start-up.
 */
#ifndef PENSTOCK_CONFIG_PARSE_H
#define PENSTOCK_CONFIG_PARSE_H

#include "config_kinds.h"
#include "config_report.h"
#include "config_text.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct config_written {
	struct config_written *next;
	const struct keyword *row;
	char *text; /* NULL = an empty list */
	unsigned int line;
	bool is_first; /* of its assignment */
};

struct config_section {
	struct config_section *next; /* in the order of their first lines */
	struct config_section *parent;
	const struct config_kind *kind;
	char *title;
	unsigned int line;
	bool is_whole; /* read to its closing brace */
	struct config_written *first, **last;
	void *parsed; /* during the parse */
};

/* Another file that is to be read. */
struct config_include {
	char *path;
	struct origin origin;
};

/* A file. */
struct config_document {
	const char *file; /* the report's copy of its name */
	char *directory;  /* absolute */
	dev_t device;
	ino_t inode;
	struct config_section *first, **last; /* the first is the file itself */
	struct config_include *includes;      /* owned, with their paths */
	size_t include_count;
};

/* Fills sections and includes of the document, whose `file` is set; reports what is not of the language,
 * each unknown keyword with the nearest match. The text is changed. */
void config_parse(struct config_document *document, struct config_text *text,
		  struct config_report *report);

/* Frees the sections and the includes. */
void config_parse_release(struct config_document *document);

static inline struct origin
config_parse_origin(const struct config_document *document, unsigned int line)
{
	return (struct origin){ document->file, line };
}

/* The version of libconfuse that it runs with. */
const char *config_parse_library(void);

#endif
