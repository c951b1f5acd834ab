#include "buffer.h"

#include <event2/buffer.h>

size_t
buffer_move(struct evbuffer *from, struct evbuffer *to, size_t bytes)
{
	size_t had_bytes = evbuffer_get_length(to);
	evbuffer_remove_buffer(from, to, bytes);
	return evbuffer_get_length(to) - had_bytes;
}
