#include "keyword.h"

#include "address.h"

#include <stdlib.h>

static void
release_text(char **text)
{
	free(*text);
	*text = NULL;
}

static void
release_counts(struct count_list *list)
{
	free(list->at);
	*list = (struct count_list){ 0 };
}

static void
release_texts(struct text_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		free(list->at[i]);
	free(list->at);
	*list = (struct text_list){ 0 };
}

void
keyword_release(const struct keyword *rows, void *object)
{
	for (const struct keyword *row = rows; row->name; row++) {
		void *slot = (char *)object + row->offset;
		switch (row->type) {
		case KEYWORD_LOG_TARGET:
		case KEYWORD_TEXT:
		case KEYWORD_FILE:
			release_text(slot);
			break;
		case KEYWORD_TEXTS:
		case KEYWORD_FILES:
		case KEYWORD_RIGHTS:
			release_texts(slot);
			break;
		case KEYWORD_COUNTS:
			release_counts(slot);
			break;
		case KEYWORD_HOST:
			address_release(slot);
			break;
		case KEYWORD_ADDRESSES:
			address_list_release(slot);
			break;
		case KEYWORD_PREFIXES:
			prefix_list_release(slot);
			break;
		default:
			break; /* values that own nothing */
		}
	}
}
