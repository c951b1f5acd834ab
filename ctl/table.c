#include "table.h"

#include "client.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TEXTS      64
#define TEXT_BYTES 192

#define GAP        2  /* between columns */
#define LAST_LEAST 24 /* the last column is not cut to less while another may be left out */
#define LAST_CUT   12 /* nor to less before others are cut */
#define CUT_LEAST  8

/* The next of some texts that are used in turn. */
static char *
next_text(void)
{
	static char texts[TEXTS][TEXT_BYTES];
	static unsigned int next;
	return texts[next++ % TEXTS];
}

/* What stands at the place of a character wider than one byte is one column all the same. */
static size_t
columns_of(const char *text)
{
	size_t columns = 0;
	for (; *text; text++)
		columns += (*text & 0xc0) != 0x80;
	return columns;
}

void
table_begin(struct table *table, const char *const *titles)
{
	*table = (struct table){ .titles = titles };
	while (titles[table->columns])
		table->columns++;
}

void
table_add(struct table *table, const char *const *cells)
{
	char ***rows = reallocarray(table->rows, table->count + 1, sizeof(*rows));
	char **row = calloc(table->columns, sizeof(*row));

	if (!rows || !row)
		client_fail("no memory");
	table->rows = rows;
	for (size_t i = 0; i < table->columns; i++) {
		row[i] = strdup(cells[i] && *cells[i] ? cells[i] : "-");
		if (!row[i])
			client_fail("no memory");
	}
	rows[table->count++] = row;
}

static const char *
title_of(const struct table *table, size_t column, bool *is_right)
{
	const char *title = table->titles[column];
	title += *title == '?';
	*is_right = *title == '>';
	return title + *is_right;
}

size_t
table_cut(const char *text, size_t columns)
{
	size_t bytes = 0;
	for (size_t seen = 0; text[bytes] && seen < columns; bytes++)
		seen += (text[bytes + 1] & 0xc0) != 0x80;
	return bytes;
}

/* How columns are shown: 0 = not at all. */
struct shape {
	size_t widths[TABLE_COLUMNS];
	size_t last; /* the last that is shown */
};

static void
measure(const struct table *table, struct shape *shape)
{
	for (size_t i = 0; i < table->columns; i++) {
		bool is_right;
		shape->widths[i] = columns_of(title_of(table, i, &is_right));
		for (size_t row = 0; row < table->count; row++) {
			size_t columns = columns_of(table->rows[row][i]);
			if (columns > shape->widths[i])
				shape->widths[i] = columns;
		}
		if (!shape->widths[i])
			shape->widths[i] = 1;
	}
	shape->last = table->columns - 1;
}

/* What it takes at least: the last column may be cut. */
static size_t
least_width(const struct table *table, const struct shape *shape, size_t last_least)
{
	size_t width = 0;

	for (size_t i = 0; i <= shape->last; i++) {
		size_t own = shape->widths[i];
		if (i == shape->last && i + 1 == table->columns && own > last_least)
			own = last_least;
		width += own ? own + (i < shape->last ? GAP : 0) : 0;
	}
	return width;
}

/* Leaves out a column: one that may be, or with `any` just the last. false: there is none. */
static bool
leave_out(const struct table *table, struct shape *shape, bool any)
{
	for (size_t i = shape->last + 1; i-- > (any ? 1 : 0);) {
		if (!shape->widths[i] || (!any && *table->titles[i] != '?'))
			continue;
		shape->widths[i] = 0;
		while (shape->last && !shape->widths[shape->last])
			shape->last--;
		return true;
	}
	return false;
}

/* Cuts the widest column of words, by one. false: all are short. */
static bool
cut(const struct table *table, struct shape *shape)
{
	size_t widest = SIZE_MAX;

	for (size_t i = 0; i < shape->last; i++) {
		bool is_right;
		title_of(table, i, &is_right);
		if (!is_right && shape->widths[i] > CUT_LEAST &&
		    (widest == SIZE_MAX || shape->widths[i] > shape->widths[widest]))
			widest = i;
	}
	if (widest == SIZE_MAX)
		return false;
	shape->widths[widest]--;
	return true;
}

static void
fit(const struct table *table, struct shape *shape, size_t width)
{
	size_t others = 0;

	while (least_width(table, shape, LAST_LEAST) > width && leave_out(table, shape, false))
		;
	while (least_width(table, shape, LAST_CUT) > width && cut(table, shape))
		;
	while (least_width(table, shape, LAST_CUT) > width && leave_out(table, shape, true))
		;
	for (size_t i = 0; i < shape->last; i++)
		others += shape->widths[i] ? shape->widths[i] + GAP : 0;
	size_t room = width > others ? width - others : 1;
	if (shape->widths[shape->last] > room)
		shape->widths[shape->last] = room;
}

/* The cell as it is printed: in so many columns, but for spaces at the end of a line. */
static void
print_cell(const char *cell, size_t width, bool is_right, bool is_last)
{
	size_t columns = columns_of(cell);

	if (columns > width) {
		printf("%.*s…", (int)table_cut(cell, width - 1), cell);
		return;
	}
	if (is_right)
		printf("%*s", (int)(width - columns), "");
	fputs(cell, stdout);
	if (!is_right && !is_last)
		printf("%*s", (int)(width - columns), "");
}

static void
print_line(const struct table *table, const struct shape *shape, char *const *row)
{
	for (size_t i = 0; i <= shape->last; i++) {
		bool is_right;
		const char *title = title_of(table, i, &is_right);
		if (!shape->widths[i])
			continue;
		print_cell(row ? row[i] : title, shape->widths[i], is_right, i == shape->last);
		if (i < shape->last)
			printf("%*s", GAP, "");
	}
	putchar('\n');
}

size_t
table_print(struct table *table, size_t width)
{
	struct shape shape;

	measure(table, &shape);
	if (width)
		fit(table, &shape, width);
	fputs(table_style("\033[1m"), stdout);
	print_line(table, &shape, NULL);
	fputs(table_style("\033[0m"), stdout);
	for (size_t row = 0; row < table->count; row++) {
		print_line(table, &shape, table->rows[row]);
		for (size_t i = 0; i < table->columns; i++)
			free(table->rows[row][i]);
		free(table->rows[row]);
	}
	free(table->rows);
	size_t lines = table->count + 1;
	*table = (struct table){ 0 };
	return lines;
}

bool
table_is_terminal(void)
{
	static int is_terminal = -1;
	if (is_terminal < 0)
		is_terminal = isatty(STDOUT_FILENO);
	return is_terminal;
}

const char *
table_style(const char *sequence)
{
	return table_is_terminal() && !getenv("NO_COLOR") ? sequence : "";
}

size_t
table_width(void)
{
	struct winsize size;
	const char *columns = getenv("COLUMNS");

	if (!table_is_terminal())
		return 0;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col)
		return size.ws_col;
	return columns ? strtoul(columns, NULL, 10) : 0;
}

/* Three digits and a unit of 1000. */
static const char *
amount(double value, const char *suffix)
{
	static const char *const units[] = { "", "k", "M", "G", "T", "P" };
	size_t unit = 0;
	char *text = next_text();

	while (value >= 999.5 && unit < 5) {
		value /= 1000;
		unit++;
	}
	snprintf(text, TEXT_BYTES, "%.*f %sB%s", unit && value < 9.995 ? 2 : unit && value < 99.95,
		 value, units[unit], suffix);
	return text;
}

const char *
table_bytes(double bytes)
{
	return amount(bytes, "");
}

const char *
table_rate(double bytes_per_s)
{
	return amount(bytes_per_s, "/s");
}

const char *
table_duration(double seconds)
{
	char *text = next_text();
	long whole = (long)seconds;

	if (seconds < 1)
		snprintf(text, TEXT_BYTES, "%.0f ms", seconds * 1000);
	else if (seconds < 60)
		snprintf(text, TEXT_BYTES, "%.1f s", seconds);
	else if (whole < 3600)
		snprintf(text, TEXT_BYTES, "%ld min %ld s", whole / 60, whole % 60);
	else if (whole < 86400)
		snprintf(text, TEXT_BYTES, "%ld h %ld min", whole / 3600, whole / 60 % 60);
	else
		snprintf(text, TEXT_BYTES, "%ld d %ld h", whole / 86400, whole / 3600 % 24);
	return text;
}

const char *
table_count(int64_t count)
{
	char *text = next_text();
	snprintf(text, TEXT_BYTES, "%" PRId64, count);
	return text;
}

const char *
table_text(const char *format, ...)
{
	char *text = next_text();
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, TEXT_BYTES, format, arguments);
	va_end(arguments);
	return text;
}
