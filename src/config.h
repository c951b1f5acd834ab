/*
 * config: the operator's file becomes a generation. The only place that knows libconfuse; with its
 * parts config_text (the file's words), config_value (a word becomes a value), config_check (what the
 * values mean together) and config_report the only source of user-facing configuration errors.
 */
#ifndef PENSTOCK_CONFIG_H
#define PENSTOCK_CONFIG_H

#include "config_report.h"
#include "generation.h"

#include <stdio.h>

struct service;

/* Reads, converts and checks the file and all it includes. `services` are the built-in services an
 * internal name may mean (pair.h), ended by NULL; they must outlive the generation. Opens nothing but
 * those files; does not change anything in the process (no descriptor leaks, also after a thousand
 * broken files). Returns a generation with one user and a number of 0, its tunnels without targets and
 * live; or NULL if there was at least one error. *report is filled either way and is to be released.
 * May take seconds for a hostile file, never unbounded memory: 1 MiB a file, 64 files, a million words.
 * Control thread or start-up: libconfuse keeps global state. */
struct generation *config_load(const char *path, const struct service *const *services,
			       struct config_report *report);

/* The version of libconfuse that it runs with. */
const char *config_library(void);

/* Every keyword with type, default, range, effect and sentence, one a line, sections indented: what
 * `penstockd --keywords` prints and the manual is checked against. */
void config_print_keywords(FILE *out);

#endif
