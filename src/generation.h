/*
 * generation: one loaded configuration, immutable and counted. Connections made under it hold it;
 * the last of them frees it.
 */
#ifndef PENSTOCK_GENERATION_H
#define PENSTOCK_GENERATION_H

#include "counted.h"
#include "keyword.h"
#include "limit_conf.h"
#include "name_index.h"
#include "tunnel_conf.h"

/* One section of a filter, as chains name it. */
struct filter_section {
	const struct filter_type *type;
	char *title; /* owned; "" = the defaults, of no section */
	void *conf;  /* owned; NULL if type->conf_bytes is 0 */
	struct origin origin;
	bool is_configured; /* type->configure was called: discard follows */
	bool is_wrong;      /* it failed, or the values are: whether it fits is not to be told */
	bool is_used[FILTER_SIDES];
};

struct generation {
	struct counted counted; /* first: a connection knows it as tunnel_conf.generation */
	uint64_t number;        /* 1 for the first, set when it comes into force */
	char *file;             /* the configuration file as given */

	uint64_t workers;         /* 0 = one for each CPU this process may use */
	uint64_t max_connections; /* 0 = from the descriptor limit */
	bool has_fitting_cap;     /* it was 0 in the file and has been filled in */
	struct owner user;        /* whom the process becomes */
	bool landlock;            /* reading is confined to where the files lie */
	bool no_new_privs;
	uint64_t max_handshakes; /* with clients, that run on each worker at once; at least 1 */
	uint64_t max_memory; /* bytes buffered for connections; 0 = a quarter of the machine's */
	struct log_conf {
		char *target;
		int level;  /* enum log_level */
		int format; /* enum log_format */
		bool connections;
		struct origin origin; /* of target */
	} log;
	struct timeouts timeouts;
	struct admin_conf {
		struct text_list
			change; /* who may change things; empty = root and the daemon's user */
		struct text_list
			names; /* hosts under which the admin service may be asked over TCP */
	} admin;

	struct tunnel_conf **tunnels; /* owned, in the order of the files */
	size_t tunnel_count;
	struct name_index tunnel_names;

	struct tunnel_conf **fronts; /* owned: what stands before tunnels that share an address */
	size_t front_count;

	struct filter_section **sections; /* owned, in the order of the files */
	size_t section_count;

	struct limit_conf **limits; /* owned; parents before what is below them */
	size_t limit_count;
	struct name_index limit_names;

	char **files; /* all that was read, the main file first: what origins point to; owned */
	size_t file_count;
};

extern const struct keyword
	generation_keywords[];              /* top-level scalars, offsets into struct generation */
extern const struct keyword log_keywords[]; /* offsets into struct log_conf */
extern const struct keyword admin_keywords[]; /* offsets into struct admin_conf */

/* How many there are: the one in force, one that is being loaded, and those that connections still hold. Any
 * thread. */
unsigned int generation_count(void);

/* An empty generation with one user. */
struct generation *generation_new(const char *file, struct failure *why);

/* A section of that filter with its conf zeroed, or NULL without memory. */
struct filter_section *generation_add_section(struct generation *generation,
					      const struct filter_type *type, const char *title,
					      struct origin origin);

/* The section of that filter and title, or NULL. O(sections). */
struct filter_section *generation_find_section(const struct generation *generation,
					       const struct filter_type *type, const char *title);

/* A tunnel of that name, zeroed but for what it has from its generation, or NULL without memory. */
struct tunnel_conf *generation_add_tunnel(struct generation *generation, const char *name,
					  struct origin origin);

/* A limit of that name, zeroed, or NULL without memory. */
struct limit_conf *generation_add_limit(struct generation *generation, const char *name,
					struct origin origin);

/* The limit of that name, the first if there are several, or NULL. O(log limits). */
struct limit_conf *generation_find_limit(const struct generation *generation, const char *name);

/* What has counters of its own: each tunnel, and behind them each front of several. NULL = no more. */
const struct tunnel_conf *generation_counted(const struct generation *generation, size_t index);

/* The tunnel of that name, the first if there are several, or NULL. O(log tunnels). */
struct tunnel_conf *generation_find(const struct generation *generation, const char *name);

#endif
