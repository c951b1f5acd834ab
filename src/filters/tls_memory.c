#include "tls_memory.h"

#include <openssl/crypto.h>
#include <stdlib.h>

static _Thread_local bool was_short;

/* As CRYPTO_malloc and CRYPTO_realloc are without us. */
static void *
allocate(size_t bytes, const char *file, int line)
{
	(void)file;
	(void)line;
	void *memory = bytes ? malloc(bytes) : NULL;
	was_short |= bytes && !memory;
	return memory;
}

static void
give_back(void *memory, const char *file, int line)
{
	(void)file;
	(void)line;
	free(memory);
}

static void *
allocate_again(void *memory, size_t bytes, const char *file, int line)
{
	if (!bytes) {
		give_back(memory, file, line);
		return NULL;
	}
	memory = realloc(memory, bytes);
	was_short |= !memory;
	return memory;
}

void
tls_memory_watch(void)
{
	CRYPTO_set_mem_functions(allocate, allocate_again, give_back);
}

void
tls_memory_forget(void)
{
	was_short = false;
}

bool
tls_memory_was_short(void)
{
	return was_short;
}
