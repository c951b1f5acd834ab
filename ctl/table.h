/*
 * table: rows of cells in columns as wide as they must be, and amounts in words for people.
 */
#ifndef PENSTOCKCTL_TABLE_H
#define PENSTOCKCTL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TABLE_COLUMNS 12

struct table {
	/* NULL-terminated. One that begins with "?" may be left out where the terminal is narrow, the last
	 * of them first; one with ">" (behind it) is set to the right. */
	const char *const *titles;
	char ***rows;
	size_t count, columns;
};

void table_begin(struct table *table, const char *const *titles);
/* Appends a row; one text for each column, NULL = "-". */
void table_add(struct table *table, const char *const *cells);
/* Prints it, made to fit `width` columns of the terminal (0 = as wide as it is), and frees the rows. Returns
 * the lines. */
size_t table_print(struct table *table, size_t width);

/* The bytes of the text's first so many columns. */
size_t table_cut(const char *text, size_t columns);

/* Whether colours and line lengths are for a person. */
bool table_is_terminal(void);
/* Bold, red ... on a terminal; "" otherwise. */
const char *table_style(const char *sequence);

/* The width of the terminal, 0 = none. */
size_t table_width(void);

/* "12.3 MB", "4.1 kB/s", "3 d 4 h", "250 ms". Valid until the sixteenth call from now. */
const char *table_bytes(double bytes);
const char *table_rate(double bytes_per_s);
const char *table_duration(double seconds);
const char *table_count(int64_t count);
const char *table_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
