/*
 * config: the operator's file becomes a generation. Its parts, in the order a file goes through them:
 * config_text (the file's words), config_parse (libconfuse: sections and what is written in them, by the
 * kinds of config_kinds), config_apply and config_value (a word becomes a value), config_check with
 * config_chains, config_limits and config_groups (what the values mean together), config_report. Together
 * they are the only source of user-facing configuration errors.
 */
#ifndef PENSTOCK_CONFIG_H
#define PENSTOCK_CONFIG_H

#include "config_report.h"
#include "generation.h"

struct service;

/* Reads, converts and checks the file and all it includes. `services` are the built-in services an
 * internal name may mean (pair.h), ended by NULL; they must outlive the generation. Opens nothing but
 * those files and a log file that is there; does not change anything in the process (no descriptor leaks, also after a thousand
 * broken files). Returns a generation with one user and a number of 0, its tunnels without targets and
 * live; or NULL if there was at least one error. *report is filled either way and is to be released.
 * May take seconds for a hostile file, never unbounded memory: 1 MiB a file, 64 files, a million words.
 * Control thread or start-up: libconfuse keeps global state. */
struct generation *config_load(const char *path, const struct service *const *services,
			       struct config_report *report);

#endif
