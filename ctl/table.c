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
	*is_right = title[0] == '>';
	return title + *is_right;
}

/* The cell as it is printed; the last column is cut off at the terminal's edge. */
static size_t
print_cell(const char *cell, size_t width, bool is_right, bool is_last, size_t room)
{
	size_t columns = columns_of(cell);
	size_t padding = width > columns ? width - columns : 0;

	if (is_right)
		printf("%*s", (int)padding, "");
	if (room && columns > room) {
		size_t bytes = 0;
		for (size_t seen = 0; cell[bytes] && seen < room; bytes++)
			seen += (cell[bytes + 1] & 0xc0) != 0x80;
		printf("%.*s", (int)bytes, cell);
	} else {
		fputs(cell, stdout);
	}
	if (!is_right && !is_last)
		printf("%*s", (int)padding, "");
	return width;
}

static void
print_line(const struct table *table, const size_t *widths, char *const *row, size_t width)
{
	size_t used = 0;

	for (size_t i = 0; i < table->columns; i++) {
		bool is_right, is_last = i + 1 == table->columns;
		const char *title = title_of(table, i, &is_right);
		if (i)
			used += (size_t)printf("  ");
		size_t room = width > used ? width - used : 0;
		if (width && !room)
			break;
		used += print_cell(row ? row[i] : title, widths[i], is_right, is_last, room);
	}
	putchar('\n');
}

size_t
table_print(struct table *table, size_t width)
{
	size_t widths[TABLE_COLUMNS] = { 0 };

	for (size_t i = 0; i < table->columns; i++) {
		bool is_right;
		widths[i] = columns_of(title_of(table, i, &is_right));
		for (size_t row = 0; row < table->count; row++) {
			size_t columns = columns_of(table->rows[row][i]);
			if (columns > widths[i])
				widths[i] = columns;
		}
	}
	fputs(table_style("\033[1m"), stdout);
	print_line(table, widths, NULL, width);
	fputs(table_style("\033[0m"), stdout);
	for (size_t row = 0; row < table->count; row++) {
		print_line(table, widths, table->rows[row], width);
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
	if (!table_is_terminal() || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0)
		return 0;
	return size.ws_col;
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
