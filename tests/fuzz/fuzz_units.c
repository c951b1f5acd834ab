/* Any text as an amount, an address or a prefix: what is taken can be written out and read again with
 * the same meaning, what is refused says why. */
#include "address.h"
#include "keyword.h"
#include "units.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

typedef int parse_function(const char *, uint64_t *, struct failure *);
typedef const char *format_function(uint64_t, char *);

static void
check_amount(const char *text, parse_function *parse, format_function *format, uint64_t grain)
{
	uint64_t amount, again;
	struct failure why = { 0 };
	char written[UNITS_TEXT];
	if (parse(text, &amount, &why)) {
		if (!strchr(why.text, ';'))
			abort();
	} else if (amount % grain == 0 &&
		   (parse(format(amount, written), &again, &why) || again != amount)) {
		abort();
	}
}

static void
check_address(const char *text)
{
	struct address address, again;
	struct failure why;
	if (address_parse(text, &address, &why))
		return;
	if (address_parse(address.text, &again, &why) || strcmp(address.text, again.text) != 0 ||
	    address.kind != again.kind || address.port != again.port ||
	    !socket_address_equal(&address.numeric, &again.numeric))
		abort();
	address_release(&address);
	address_release(&again);
}

static void
check_prefix(const char *text)
{
	struct prefix prefix;
	struct failure why;
	if (prefix_parse(text, &prefix, &why) == 0 && !prefix_contains(&prefix, &prefix.base))
		abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char *text = malloc(size + 1);
	uint64_t count;
	struct frequency frequency;
	struct failure why;
	if (!text)
		return 0;
	memcpy(text, bytes, size);
	text[size] = '\0';
	units_parse_count(text, &count, &why);
	check_amount(text, units_parse_duration, units_format_duration, 1000000);
	check_amount(text, units_parse_size, units_format_bytes, 1);
	check_amount(text, units_parse_rate, units_format_rate, 1);
	if (units_parse_frequency(text, &frequency, &why) == 0 && frequency.period_ns == 0)
		abort();
	check_address(text);
	check_prefix(text);
	free(text);
	return 0;
}
