/*
 * limit_conf: what the file says of one limit. Immutable once its generation is in force; what it becomes
 * in the tree (limits.h) lives on from one generation to the next.
 */
#ifndef PENSTOCK_LIMIT_CONF_H
#define PENSTOCK_LIMIT_CONF_H

#include "keyword.h"
#include "limits.h"

/* What of a connection whose tunnel names the limit is counted. */
enum limit_count { LIMIT_COUNT_WIRE, LIMIT_COUNT_PAYLOAD };

struct limit_conf {
	/* What was written. */
	char *name;
	struct origin origin;
	char *parent;            /* its name; "" = none */
	char *per;               /* as written; "" = one node */
	uint64_t up, down, rate; /* bytes a second; 0 = unlimited. rate: up and down */
	uint64_t burst;          /* bytes; 0 = the default */
	uint64_t weight;
	uint64_t quantum;  /* bytes; 0 = by share */
	int count;         /* enum limit_count */
	uint64_t overhead; /* bytes that are added for each TCP segment */
	uint64_t max_nodes;

	/* What follows from it. */
	struct limit_conf *above; /* NULL = a root */
	enum limit_per kind;
	uint8_t prefix_v4, prefix_v6;
	struct limit *live; /* held; NULL until the generation was prepared */
	bool is_new;        /* `live` was added for this generation */
	bool is_used;       /* some tunnel names it, or a limit below it */
};

extern const struct keyword
	limit_keywords[]; /* offsets into struct limit_conf; ends with name NULL */

/* Understands `per`: fills kind and prefixes. */
int limit_conf_understand_per(struct limit_conf *conf, struct failure *why);

/* The same for the tree, below `above->live`. Borrows the name. */
struct limit_spec limit_conf_spec(const struct limit_conf *conf);

/* Frees what was written, and lets go of `live`. */
void limit_conf_release(struct limit_conf *conf);

#endif
