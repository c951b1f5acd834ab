/*
 * page: what the admin service writes an answer on. Remembers whether memory was too short for any part of it:
 * such a page must not be taken for a whole one. Its owner's thread alone.
 */
#ifndef PENSTOCK_PAGE_H
#define PENSTOCK_PAGE_H

#include <stdbool.h>
#include <stddef.h>

struct evbuffer;

struct page {
	struct evbuffer *bytes;
	bool is_short; /* something is missing */
};

/* -1 without memory. page_close takes a zeroed one, too. */
int page_open(struct page *page);
void page_close(struct page *page);

size_t page_length(const struct page *page);

/* Appends. */
void page_print(struct page *page, const char *format, ...) __attribute__((format(printf, 2, 3)));
void page_add(struct page *page, const void *bytes, size_t count);
/* Bytes that outlive the page. */
void page_refer(struct page *page, const void *bytes, size_t count);
/* All of the other one, which is empty then. */
void page_take(struct page *page, struct page *other);

/* Empties it: nothing is missing any more. */
void page_clear(struct page *page);

#endif
