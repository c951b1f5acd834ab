#include "page.h"

#include <event2/buffer.h>
#include <stdarg.h>

int
page_open(struct page *page)
{
	page->bytes = evbuffer_new();
	return page->bytes ? 0 : -1;
}

void
page_close(struct page *page)
{
	if (page->bytes)
		evbuffer_free(page->bytes);
	page->bytes = NULL;
}

size_t
page_length(const struct page *page)
{
	return evbuffer_get_length(page->bytes);
}

void
page_print(struct page *page, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	page->is_short |= evbuffer_add_vprintf(page->bytes, format, args) < 0;
	va_end(args);
}

void
page_add(struct page *page, const void *bytes, size_t count)
{
	page->is_short |= evbuffer_add(page->bytes, bytes, count) < 0;
}

void
page_refer(struct page *page, const void *bytes, size_t count)
{
	page->is_short |= evbuffer_add_reference(page->bytes, bytes, count, NULL, NULL) < 0;
}

void
page_take(struct page *page, struct page *other)
{
	page->is_short |= other->is_short || evbuffer_add_buffer(page->bytes, other->bytes) < 0;
	page_clear(other);
}

void
page_clear(struct page *page)
{
	evbuffer_drain(page->bytes, evbuffer_get_length(page->bytes));
	page->is_short = false;
}
