#include "renewal.h"

#include "clock.h"
#include "config_files.h"
#include "generation.h"
#include "stamp.h"

#include <event2/event.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_S  2
#define TICK_NS (int64_t)(10 * NS_PER_MS) /* files are dated by a clock that ticks so at worst */
#define CUT_NS  (int64_t)(60 * NS_PER_S)  /* so long one that may be cut has to rest */

struct watched {
	const char *path; /* the generation's */
	struct stamp loaded, seen, doubted;
	bool is_config;
};

struct renewal {
	struct renewal_options options;
	struct event *look;
	struct generation *generation;
	struct watched *files;
	size_t count, room;
	bool is_short; /* of memory for all files */
};

static int64_t
nanoseconds(struct timespec time)
{
	return (int64_t)time.tv_sec * (int64_t)NS_PER_S + time.tv_nsec;
}

/* Looks at all; whether nothing has changed since the last look. */
static bool
rests(struct renewal *renewal)
{
	bool result = true;

	for (size_t i = 0; i < renewal->count; i++) {
		struct watched *file = &renewal->files[i];
		struct stamp now = stamp_of(file->path);
		result &= stamp_is_same(&now, &file->seen);
		file->seen = now;
	}
	return result;
}

/* The first that is not what was loaded; NULL = none. */
static struct watched *
changed(struct renewal *renewal, bool is_config)
{
	for (size_t i = 0; i < renewal->count; i++) {
		struct watched *file = &renewal->files[i];
		if (file->is_config == is_config && !stamp_is_same(&file->seen, &file->loaded))
			return file;
	}
	return NULL;
}

/* Whether it was written in place and is a good part shorter than what was loaded. One of several certificates
 * may be cut between two of them, and what is there is right as it stands. */
static bool
may_be_cut(const struct watched *file)
{
	const struct stamp *seen = &file->seen, *loaded = &file->loaded;
	struct timespec now;

	if (file->is_config || seen->device != loaded->device || seen->inode != loaded->inode ||
	    seen->size >= loaded->size - loaded->size / 10)
		return false;
	clock_gettime(CLOCK_REALTIME, &now);
	int64_t age_ns = nanoseconds(now) - nanoseconds(seen->changed);
	return age_ns >= 0 && age_ns < CUT_NS; /* below 0 the clock was set back */
}

/* Tells each once. */
static bool
one_may_be_cut(struct renewal *renewal)
{
	bool result = false;

	for (size_t i = 0; i < renewal->count; i++) {
		struct watched *file = &renewal->files[i];
		if (!may_be_cut(file))
			continue;
		result = true;
		if (!stamp_is_same(&file->doubted, &file->seen))
			renewal->options.on_doubt(file->path, renewal->options.context);
		file->doubted = file->seen;
	}
	return result;
}

static void
on_look(evutil_socket_t fd, short what, void *context)
{
	struct renewal *renewal = context;
	(void)fd;
	(void)what;

	if (!rests(renewal) || one_may_be_cut(renewal))
		return;
	const struct watched *file = changed(renewal, false);
	if (!file)
		return;
	const struct watched *config = changed(renewal, true);
	/* Whatever comes of it: it is tried again when something has changed again. */
	for (size_t i = 0; i < renewal->count; i++)
		if (!renewal->files[i].is_config)
			renewal->files[i].loaded = renewal->files[i].seen;
	renewal->options.on_renewed(file->path, config ? config->path : NULL,
				    renewal->options.context);
}

struct renewal *
renewal_start(const struct renewal_options *options, struct failure *why)
{
	struct renewal *renewal = calloc(1, sizeof(*renewal));
	if (renewal)
		renewal->look = event_new(options->base, -1, EV_PERSIST, on_look, renewal);
	if (!renewal || !renewal->look ||
	    event_add(renewal->look, &(struct timeval){ LOOK_S, 0 }) < 0) {
		failure_set(why, FAILURE_MEMORY, "no memory to watch files");
		renewal_stop(renewal);
		return NULL;
	}
	renewal->options = *options;
	return renewal;
}

static void
add(const char *path, void *context)
{
	struct renewal *renewal = context;

	if (renewal->count == renewal->room) {
		size_t room = renewal->room ? 2 * renewal->room : 16;
		struct watched *files = reallocarray(renewal->files, room, sizeof(*files));
		renewal->is_short |= !files;
		if (!files)
			return;
		renewal->files = files;
		renewal->room = room;
	}
	renewal->files[renewal->count++] = (struct watched){ .path = path };
}

static void
forget(struct renewal *renewal)
{
	if (renewal->generation)
		counted_release(&renewal->generation->counted);
	renewal->generation = NULL;
	renewal->count = 0;
	renewal->is_short = false;
}

int
renewal_watch(struct renewal *renewal, struct generation *generation, struct timespec since,
	      struct failure *why)
{
	forget(renewal);
	config_files_each(generation, add, renewal);
	if (renewal->is_short) {
		renewal->count = 0;
		return failure_set(why, FAILURE_MEMORY, "no memory to watch files");
	}
	renewal->generation = generation;
	counted_hold(&generation->counted);
	rests(renewal);
	for (size_t i = 0; i < renewal->count; i++) {
		struct watched *file = &renewal->files[i];
		int64_t before_ns = nanoseconds(since) - nanoseconds(file->seen.changed);
		file->is_config = i < generation->file_count; /* they are told first */
		/* What the configuration was read from is read first; another one, changed so shortly before
		 * that the date may be that of a moment later, is rather loaded once too often. */
		file->loaded = file->seen;
		if (before_ns <= (file->is_config ? 0 : TICK_NS))
			file->loaded.changed = (struct timespec){ 0 };
	}
	return 0;
}

void
renewal_stop(struct renewal *renewal)
{
	if (!renewal)
		return;
	if (renewal->look)
		event_free(renewal->look);
	forget(renewal);
	free(renewal->files);
	free(renewal);
}
