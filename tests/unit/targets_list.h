/*
 * What tests of the targets and of dials share: the list of a test, from text.
 */
#ifndef PENSTOCK_TESTS_TARGETS_LIST_H
#define PENSTOCK_TESTS_TARGETS_LIST_H

#include "target.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

static struct targets *targets;

/* What the lists of a test are made with, beside their balance. */
static struct targets_options making;

static void
targets_list_close(void)
{
	targets_release(targets);
	targets = NULL;
	making = (struct targets_options){ 0 };
}

static void
parse_list(const char *texts, struct address_list *list)
{
	char copy[1024], *rest = copy, *word;
	struct failure why;

	snprintf(copy, sizeof(copy), "%s", texts);
	while ((word = strsep(&rest, " "))) {
		if (address_parse(word, &list->at[list->count], &why) < 0)
			fail_msg("%s: %s", word, why.text);
		list->count++;
	}
}

/* Behind a "|" stand the backups. */
static struct targets *
configure(const char *texts, enum balance balance, const struct targets *previous)
{
	struct address at[16], backup_at[4];
	struct address_list list = { at, 0 }, backup = { backup_at, 0 };
	char copy[1024], *backups = copy;
	struct failure why;

	snprintf(copy, sizeof(copy), "%s", texts);
	parse_list(strsep(&backups, "|"), &list);
	if (backups)
		parse_list(backups, &backup);
	making.balance = balance;
	making.backup = &backup;
	struct targets *made = targets_configure(&list, &making, previous, &why);
	assert_non_null(made);
	for (size_t i = 0; i < list.count; i++)
		address_release(&at[i]);
	for (size_t i = 0; i < backup.count; i++)
		address_release(&backup_at[i]);
	return made;
}

/* The targets of a test: names separated by spaces, with the port in the place of each %u. */
static void __attribute__((format(printf, 2, 3)))
set_targets(enum balance balance, const char *format, ...)
{
	char texts[1024];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(texts, sizeof(texts), format, arguments);
	va_end(arguments);
	targets = configure(texts, balance, NULL);
}

#endif
