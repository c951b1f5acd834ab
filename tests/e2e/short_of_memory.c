/*
 * short_of_memory: a library to be loaded in front of a daemon's own (LD_PRELOAD), that has its allocations fail
 * when it is told to. The orders are a file that both map, named by SHORT_OF_MEMORY; where each allocation that
 * failed came from is appended to that name with ".trace".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* As in short_of_memory.py. */
struct orders {
	_Atomic uint32_t order; /* odd while they hold */
	uint32_t one_in;        /* one of so many fails, chosen by the seed; 0 = none */
	uint64_t seed;
	uint64_t at;             /* this one fails, counted from 1; 0 = none */
	uint64_t run;            /* and so many behind it */
	_Atomic uint64_t seen;   /* allocations since */
	_Atomic uint64_t failed; /* of these */
	_Atomic int64_t held;    /* allocated and not given back, since the daemon began */
};

static struct orders *orders;
static int trace = -1;
/* This thread's; reached without a call, which could allocate. */
static _Thread_local __attribute__((tls_model("initial-exec"))) bool is_busy;

static void *(*next_malloc)(size_t);
static void *(*next_calloc)(size_t, size_t);
static void *(*next_realloc)(void *, size_t);
static int (*next_posix_memalign)(void **, size_t, size_t);
static void *(*next_aligned_alloc)(size_t, size_t);
static void (*next_free)(void *);
static void *(*next_mmap)(void *, size_t, int, int, int, off_t);

/* Others allocate before `begin` is called. */
#define FIND(name)                                                        \
	do {                                                              \
		if (!next_##name)                                         \
			*(void **)&next_##name = dlsym(RTLD_NEXT, #name); \
	} while (0)

__attribute__((constructor)) static void
begin(void)
{
	const char *path = getenv("SHORT_OF_MEMORY");
	char beside[4096];
	void *frames[2];
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

	if (fd < 0 || strlen(path) + sizeof(".trace") > sizeof(beside))
		return;
	backtrace(frames, 2); /* the first time it loads a library */
	stpcpy(stpcpy(beside, path), ".trace");
	trace = open(beside, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	void *mapped = mmap(NULL, sizeof(*orders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		orders = mapped;
}

/* The same for the same seed and number. */
static bool
is_unlucky(uint64_t number)
{
	uint64_t mixed = (number + orders->seed) * UINT64_C(0x9e3779b97f4a7c15);
	mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
	return orders->one_in && (mixed ^ mixed >> 31) % orders->one_in == 0;
}

/*
 * Where libraries crash or end the process: nothing fails there. What the daemon does about it stands in pair.c
 * and config_parse.c: the memory must be there before.
 */
static bool
is_spared(void *const *frames, int count)
{
	bool is_innermost = true;

	for (int i = 0; i < count; i++) {
		Dl_info found;
		if (!dladdr(frames[i], &found))
			continue;
		if (found.dli_sname && !strcmp(found.dli_sname, "bufferevent_pair_new"))
			return true;
		/* Of our own callbacks inside of it, all may fail. */
		if (is_innermost && strstr(found.dli_fname, "libconfuse"))
			return true;
		is_innermost &= strstr(found.dli_fname, "libc.so") ||
				strstr(found.dli_fname, "preloaded") ||
				strstr(found.dli_fname, "libasan");
	}
	return false;
}

/* Tells where it came from; false: from where nothing may fail. */
static bool
tell(void)
{
	void *frames[40];
	int count = backtrace(frames, 40);

	if (is_spared(frames, count))
		return false;
	backtrace_symbols_fd(frames, count, trace);
	(void)!write(trace, "\n", 1);
	return true;
}

static bool
fails(void)
{
	if (!orders || is_busy || !(atomic_load_explicit(&orders->order, memory_order_acquire) & 1))
		return false;
	uint64_t number = atomic_fetch_add(&orders->seen, 1) + 1;
	if ((!orders->at || number < orders->at || number > orders->at + orders->run) &&
	    !is_unlucky(number))
		return false;
	is_busy = true;
	bool is_told = tell();
	is_busy = false;
	if (!is_told)
		return false;
	atomic_fetch_add(&orders->failed, 1);
	errno = ENOMEM;
	return true;
}

static void *
count(void *memory)
{
	if (memory && orders)
		atomic_fetch_add_explicit(&orders->held, 1, memory_order_relaxed);
	return memory;
}

#define EXPORTED __attribute__((visibility("default")))

EXPORTED void *
malloc(size_t bytes)
{
	FIND(malloc);
	return fails() ? NULL : count(next_malloc(bytes));
}

EXPORTED void *
calloc(size_t number, size_t bytes)
{
	FIND(calloc);
	return fails() ? NULL : count(next_calloc(number, bytes));
}

EXPORTED void *
realloc(void *memory, size_t bytes)
{
	FIND(realloc);
	if (fails())
		return NULL;
	void *other = next_realloc(memory, bytes);
	return memory ? other : count(other);
}

EXPORTED int
posix_memalign(void **memory, size_t alignment, size_t bytes)
{
	FIND(posix_memalign);
	int error = fails() ? ENOMEM : next_posix_memalign(memory, alignment, bytes);
	if (!error)
		count(*memory);
	return error;
}

EXPORTED void *
aligned_alloc(size_t alignment, size_t bytes)
{
	FIND(aligned_alloc);
	return fails() ? NULL : count(next_aligned_alloc(alignment, bytes));
}

EXPORTED void
free(void *memory)
{
	static bool is_finding;
	if (!next_free) {
		if (is_finding)
			return; /* by dlsym itself: an old error's text */
		is_finding = true;
		FIND(free);
	}
	if (memory && orders)
		atomic_fetch_sub_explicit(&orders->held, 1, memory_order_relaxed);
	next_free(memory);
}

EXPORTED void *
mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	FIND(mmap);
	if ((flags & MAP_ANONYMOUS) && fails())
		return MAP_FAILED;
	return next_mmap(at, bytes, protection, flags, fd, offset);
}
