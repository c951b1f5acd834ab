#include "log_repeats.h"

#include "clock.h"

#include <stdarg.h>
#include <string.h>

#define LENGTH_NS NS_PER_S

__attribute__((format(printf, 3, 4))) static void
tell(struct log_repeats *repeats, const struct log_record *first, const char *format, ...)
{
	struct log_record record;
	va_list args;
	va_start(args, format);
	log_record_fill(&record, (enum log_level)first->level, first->fields, first->field_count,
			format, args);
	va_end(args);
	repeats->write(repeats->context, &record);
}

static const char *
plural(unsigned int count)
{
	return count == 1 ? "" : "s";
}

static void
end_line(struct log_repeats *repeats, struct log_repeats_row *line)
{
	if (line->is_there && line->counted)
		tell(repeats, &line->record, "repeated %u time%s: %s", line->counted,
		     plural(line->counted), line->record.text);
	line->is_there = false;
	line->counted = 0;
}

static bool
is_rest(const struct log_repeats *repeats, const struct log_repeats_row *kind)
{
	return kind == &repeats->kinds[LOG_REPEATS_KINDS];
}

static void
end_kind(struct log_repeats *repeats, struct log_repeats_row *kind)
{
	if (kind->is_there && kind->counted && is_rest(repeats, kind))
		tell(repeats, &kind->record, "left out %u line%s of other kinds", kind->counted,
		     plural(kind->counted));
	else if (kind->is_there && kind->counted)
		tell(repeats, &kind->record, "left out %u line%s like: %s", kind->counted,
		     plural(kind->counted), kind->record.text);
	kind->is_there = false;
	kind->counted = 0;
}

static bool
is_over(const struct log_repeats *repeats, const struct log_repeats_row *row)
{
	return repeats->now_ns - row->since_ns >= LENGTH_NS;
}

bool
log_repeats_pass(struct log_repeats *repeats, uint64_t now_ns)
{
	bool waits = false;
	repeats->now_ns = now_ns;
	for (int i = 0; i < LOG_REPEATS_LINES; i++) {
		if (is_over(repeats, &repeats->lines[i]))
			end_line(repeats, &repeats->lines[i]);
		waits |= repeats->lines[i].counted > 0;
	}
	for (int i = 0; i <= LOG_REPEATS_KINDS; i++) {
		if (is_over(repeats, &repeats->kinds[i]))
			end_kind(repeats, &repeats->kinds[i]);
		waits |= repeats->kinds[i].counted > 0;
	}
	return waits;
}

void
log_repeats_end(struct log_repeats *repeats)
{
	for (int i = 0; i < LOG_REPEATS_LINES; i++)
		end_line(repeats, &repeats->lines[i]);
	for (int i = 0; i <= LOG_REPEATS_KINDS; i++)
		end_kind(repeats, &repeats->kinds[i]);
}

static bool
is_repeated(struct log_repeats *repeats, const struct log_record *record)
{
	for (int i = 0; i < LOG_REPEATS_LINES; i++) {
		struct log_repeats_row *line = &repeats->lines[i];
		if (line->is_there && log_record_same(&line->record, record)) {
			line->counted++;
			return true;
		}
	}
	return false;
}

static void
begin(struct log_repeats *repeats, struct log_repeats_row *row, const struct log_record *record)
{
	row->is_there = true;
	row->since_ns = repeats->now_ns;
	row->written = 0;
	row->counted = 0;
	log_record_copy(&row->record, record);
}

/* In the place of the one that was repeated least, then of the oldest. */
static void
remember(struct log_repeats *repeats, const struct log_record *record)
{
	struct log_repeats_row *least = &repeats->lines[0];
	for (int i = 0; i < LOG_REPEATS_LINES && least->is_there; i++) {
		struct log_repeats_row *line = &repeats->lines[i];
		uint64_t age_ns = repeats->now_ns - line->since_ns;
		if (!line->is_there || line->counted < least->counted ||
		    (line->counted == least->counted && age_ns > repeats->now_ns - least->since_ns))
			least = line;
	}
	end_line(repeats, least);
	begin(repeats, least, record);
}

static bool
is_same_kind(const struct log_record *one, const struct log_record *other)
{
	return one->kind == other->kind && one->level == other->level &&
	       (one->field_count > 0) == (other->field_count > 0) &&
	       (one->field_count == 0 || log_record_same_field(&one->fields[0], &other->fields[0]));
}

static struct log_repeats_row *
kind_of(struct log_repeats *repeats, const struct log_record *record)
{
	struct log_repeats_row *spare = &repeats->kinds[LOG_REPEATS_KINDS];
	for (int i = 0; i < LOG_REPEATS_KINDS; i++) {
		struct log_repeats_row *kind = &repeats->kinds[i];
		if (kind->is_there && is_same_kind(&kind->record, record))
			return kind;
		if (!kind->is_there && is_rest(repeats, spare))
			spare = kind;
	}
	if (!spare->is_there) {
		begin(repeats, spare, record);
		/* Beside what makes the kind the lines it stands for differ. */
		unsigned int same = is_rest(repeats, spare) ? 0 : 1;
		if (spare->record.field_count > same)
			spare->record.field_count = (uint16_t)same;
	}
	return spare;
}

void
log_repeats_take(struct log_repeats *repeats, const struct log_record *record)
{
	if (!record->kind) {
		repeats->write(repeats->context, record);
		return;
	}
	if (is_repeated(repeats, record))
		return;
	struct log_repeats_row *kind = kind_of(repeats, record);
	if (kind->written == LOG_REPEATS_MOST) {
		kind->counted++;
		return;
	}
	kind->written++;
	remember(repeats, record);
	repeats->write(repeats->context, record);
}
