#include "units.h"

#include "clock.h"
#include "keyword.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct unit {
	const char *name;
	uint64_t scale;
};

/* What can be measured. */
struct dimension {
	const char *what;
	const char *example;
	const char *zero;
	const struct unit *units; /* ends with name NULL */
};

#define US UINT64_C(1000)
static const struct unit duration_units[] = {
	{ "us", US },
	{ "ms", NS_PER_MS },
	{ "s", NS_PER_S },
	{ "min", 60 * NS_PER_S },
	{ "m", 60 * NS_PER_S },
	{ "h", 3600 * NS_PER_S },
	{ "d", 86400 * NS_PER_S },
	{ NULL, 0 },
};
static const struct dimension duration = { "duration", "10s", "0s", duration_units };

static const struct unit size_units[] = {
	{ "B", 1 },
	{ "kB", UINT64_C(1000) },
	{ "KiB", UINT64_C(1) << 10 },
	{ "MB", UINT64_C(1000000) },
	{ "MiB", UINT64_C(1) << 20 },
	{ "GB", UINT64_C(1000000000) },
	{ "GiB", UINT64_C(1) << 30 },
	{ "TB", UINT64_C(1000000000000) },
	{ "TiB", UINT64_C(1) << 40 },
	{ NULL, 0 },
};
static const struct dimension size = { "size", "64KiB", "0B", size_units };

/* Counted in bits, so that every unit is a whole number of them. */
#define BITS UINT64_C(8)
static const struct unit rate_units[] = {
	{ "bit/s", 1 },
	{ "B/s", BITS },
	{ "kbit/s", UINT64_C(1000) },
	{ "kB/s", BITS * 1000 },
	{ "KiB/s", BITS << 10 },
	{ "Mbit/s", UINT64_C(1000000) },
	{ "MB/s", BITS * 1000000 },
	{ "MiB/s", BITS << 20 },
	{ "Gbit/s", UINT64_C(1000000000) },
	{ "GB/s", BITS * 1000000000 },
	{ "GiB/s", BITS << 30 },
	{ NULL, 0 },
};
static const struct dimension rate = { "rate", "10MB/s", "0B/s", rate_units };

static const struct unit frequency_units[] = {
	{ "/s", NS_PER_S },
	{ "/min", 60 * NS_PER_S },
	{ "/h", 3600 * NS_PER_S },
	{ "/d", 86400 * NS_PER_S },
	{ NULL, 0 },
};
static const struct dimension frequency = { "frequency", "50/s", "0/s", frequency_units };

static const struct unit no_units[] = { { NULL, 0 } };
static const struct dimension count = { "count", "1000", "0", no_units };

/* Who counts by it multiplies the two, and adds two such products. */
#define FREQUENCY_MOST (UINT64_MAX / 2)

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* "us, ms, s, min" */
static const char *
list_units(const struct dimension *dimension, char list[128])
{
	size_t used = 0;
	list[0] = '\0';
	for (const struct unit *unit = dimension->units; unit->name; unit++)
		used += (size_t)snprintf(list + used, 128 - used, "%s%s", used ? ", " : "",
					 unit->name);
	return list;
}

static const struct unit *
find_unit(const struct dimension *dimension, const char *name)
{
	for (const struct unit *unit = dimension->units; unit->name; unit++)
		if (strcmp(unit->name, name) == 0)
			return unit;
	return NULL;
}

/* Exact, in the largest unit that keeps the amount whole. False if there is none. */
static bool
format_exact(const struct dimension *dimension, uint64_t amount, char text[UNITS_TEXT])
{
	const struct unit *best = NULL;
	for (const struct unit *unit = dimension->units; unit->name; unit++)
		if (amount % unit->scale == 0 && (!best || unit->scale > best->scale))
			best = unit;
	if (amount == 0)
		snprintf(text, UNITS_TEXT, "%s", dimension->zero);
	else if (best)
		snprintf(text, UNITS_TEXT, "%" PRIu64 "%s", amount / best->scale, best->name);
	return best != NULL;
}

/* `fraction` is the point or comma in `text`. */
static int
refuse_fraction(const struct dimension *dimension, const char *text, const char *fraction,
		uint64_t whole, struct failure *why)
{
	uint64_t part = 0, divisor = 1, amount, scaled;
	const char *at = fraction + 1;
	for (; is_digit(*at) && divisor < UINT64_C(1000000000); at++) {
		part = part * 10 + (uint64_t)(*at - '0');
		divisor *= 10;
	}
	const struct unit *unit = find_unit(dimension, at);
	char better[UNITS_TEXT];
	if (unit && !__builtin_mul_overflow(part, unit->scale, &scaled) && scaled % divisor == 0 &&
	    !__builtin_mul_overflow(whole, unit->scale, &amount) &&
	    !__builtin_add_overflow(amount, scaled / divisor, &amount) && dimension != &frequency &&
	    format_exact(dimension, amount, better))
		return failure_set(why, FAILURE_CONFIG, "'%.60s' has a fraction; write %s", text,
				   better);
	return failure_set(why, FAILURE_CONFIG, "'%.60s' has a fraction; write a whole number%s",
			   text,
			   dimension == &frequency  ? " for a longer period"
			   : dimension->units->name ? " of a smaller unit"
						    : "");
}

static int
read_digits(const struct dimension *dimension, const char *text, const char **end, uint64_t *out,
	    struct failure *why)
{
	if (*text == '-' || *text == '+')
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' has a sign; write the %s without it, as in '%s'", text,
				   dimension->what, dimension->example);
	if (!is_digit(*text))
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' does not begin with a digit; write a %s such as '%s'",
				   text, dimension->what, dimension->example);
	uint64_t value = 0;
	const char *at = text;
	for (; is_digit(*at); at++)
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
			return failure_set(why, FAILURE_CONFIG,
					   "'%.60s' is too large; numbers end at %" PRIu64, text,
					   UINT64_MAX);
	*end = at;
	*out = value;
	return 0;
}

static int
refuse_unit(const struct dimension *dimension, const char *text, const char *unit,
	    struct failure *why)
{
	char list[128];
	if (!dimension->units->name)
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' is not a whole number; write digits only, as in '%s'",
				   text, dimension->example);
	if (*unit == '\0')
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' has no unit; write one of %s after it, as in '%s'",
				   text, list_units(dimension, list), dimension->example);
	if (*unit == ' ' || *unit == '\t')
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.60s' has a space in it; write the unit right behind the number, "
			"as in '%s'",
			text, dimension->example);
	/* Who leaves out what a letter stands for, or "/s", may mean either. */
	char prefix = (char)(*unit == 'K'                   ? 'k'
			     : *unit == 'm' || *unit == 'g' ? *unit - 'a' + 'A'
							    : *unit);
	if (dimension == &rate && strchr("kMG", prefix))
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.60s' has the unknown unit '%.30s'; write %.*s%cB/s for bytes or "
			"%.*s%cbit/s for bits",
			text, unit, (int)(unit - text), text, prefix, (int)(unit - text), text,
			prefix);
	return failure_set(why, FAILURE_CONFIG,
			   "'%.60s' has the unknown unit '%.30s'; the units of a %s are %s", text,
			   unit, dimension->what, list_units(dimension, list));
}

/* The number and the unit behind it: `bare` for a count and for a 0 without a unit. */
static int
parse(const struct dimension *dimension, const char *text, uint64_t *number,
      const struct unit **unit, struct failure *why)
{
	static const struct unit bare = { "", 1 };
	const char *end = text;
	*number = 0;
	*unit = &bare;
	if (read_digits(dimension, text, &end, number, why))
		return -1;
	if (*end == '.' || *end == ',')
		return refuse_fraction(dimension, text, end, *number, why);
	if (*end == '\0' && (*number == 0 || dimension == &count))
		return 0;
	const struct unit *found = find_unit(dimension, end);
	if (!found)
		return refuse_unit(dimension, text, end, why);
	*unit = found;
	return 0;
}

static int
parse_amount(const struct dimension *dimension, const char *text, uint64_t *out,
	     struct failure *why)
{
	uint64_t number, amount;
	const struct unit *unit;
	if (parse(dimension, text, &number, &unit, why))
		return -1;
	if (__builtin_mul_overflow(number, unit->scale, &amount))
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' is too large; the most is %" PRIu64 "%s", text,
				   UINT64_MAX / unit->scale, unit->name);
	*out = amount;
	return 0;
}

int
units_parse_count(const char *text, uint64_t *out, struct failure *why)
{
	return parse_amount(&count, text, out, why);
}

int
units_parse_duration(const char *text, uint64_t *out_ns, struct failure *why)
{
	return parse_amount(&duration, text, out_ns, why);
}

int
units_parse_size(const char *text, uint64_t *out_bytes, struct failure *why)
{
	return parse_amount(&size, text, out_bytes, why);
}

int
units_parse_rate(const char *text, uint64_t *out_bytes_per_s, struct failure *why)
{
	uint64_t bits = 0;
	if (parse_amount(&rate, text, &bits, why))
		return -1;
	if (bits % BITS)
		return failure_set(
			why, FAILURE_CONFIG,
			"'%.60s' is not a whole number of bytes a second; the nearest below "
			"is %" PRIu64 "B/s",
			text, bits / BITS);
	*out_bytes_per_s = bits / BITS;
	return 0;
}

int
units_parse_frequency(const char *text, struct frequency *out, struct failure *why)
{
	uint64_t number;
	const struct unit *unit;
	if (parse(&frequency, text, &number, &unit, why))
		return -1;
	if (number > FREQUENCY_MOST / unit->scale)
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' is too often; the most is %" PRIu64 "%s", text,
				   FREQUENCY_MOST / unit->scale, unit->name);
	out->count = number;
	out->period_ns = unit->scale;
	return 0;
}

const char *
units_format_duration(uint64_t ns, char text[UNITS_TEXT])
{
	if (ns % NS_PER_MS == 0) {
		format_exact(&duration, ns, text);
	} else if (ns < NS_PER_S) {
		uint64_t us = (ns + US / 2) / US;
		snprintf(text, UNITS_TEXT, "%" PRIu64 ".%03" PRIu64 "ms", us / 1000, us % 1000);
	} else {
		uint64_t ms = ns / NS_PER_MS + (ns % NS_PER_MS >= NS_PER_MS / 2);
		snprintf(text, UNITS_TEXT, "%" PRIu64 ".%03" PRIu64 "s", ms / 1000, ms % 1000);
	}
	return text;
}

const char *
units_format_bytes(uint64_t bytes, char text[UNITS_TEXT])
{
	format_exact(&size, bytes, text);
	return text;
}

const char *
units_format_rate(uint64_t bytes_per_s, char text[UNITS_TEXT])
{
	uint64_t bits;
	if (__builtin_mul_overflow(bytes_per_s, BITS, &bits))
		snprintf(text, UNITS_TEXT, "%" PRIu64 "B/s", bytes_per_s);
	else
		format_exact(&rate, bits, text);
	return text;
}
