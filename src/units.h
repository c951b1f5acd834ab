/*
 * units: what operators write for an amount, and back. Exact: a text is either one whole number of
 * nanoseconds, bytes or bytes a second, or an error of the form "what is wrong; what would be right".
 * No locale, no errno, no floating point. Decimal digits only ("010" is ten), at most 2^64 - 1.
 *
 * Durations: us ms s m min h d. Sizes: B kB MB GB TB (powers of 1000), KiB MiB GiB TiB (powers of
 * 1024). Rates: a size unit or bit kbit Mbit Gbit, then "/s". Frequencies: a count, then /s /min /h /d.
 * "0" needs no unit.
 */
#ifndef PENSTOCK_UNITS_H
#define PENSTOCK_UNITS_H

#include "failure.h"

#include <stdint.h>

struct frequency;

/* Each fills *out and returns 0, or leaves it alone and fills *why (FAILURE_CONFIG). */
int units_parse_count(const char *text, uint64_t *out, struct failure *why);
int units_parse_duration(const char *text, uint64_t *out_ns, struct failure *why);
int units_parse_size(const char *text, uint64_t *out_bytes, struct failure *why);
int units_parse_rate(const char *text, uint64_t *out_bytes_per_s, struct failure *why);
int units_parse_frequency(const char *text, struct frequency *out, struct failure *why);

/* Each fills `text` and returns it. Sizes and rates are exact, in the largest unit that keeps them whole
 * ("64KiB", "900Mbit/s"). So are durations of whole milliseconds ("1500ms", "1h"); others are rounded
 * for reading: to 1 us below a second, else to 1 ms ("1.235ms", "12.346s"). */
#define UNITS_TEXT 32
const char *units_format_duration(uint64_t ns, char text[UNITS_TEXT]);
const char *units_format_bytes(uint64_t bytes, char text[UNITS_TEXT]);
const char *units_format_rate(uint64_t bytes_per_s, char text[UNITS_TEXT]);

#endif
