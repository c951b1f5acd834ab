#include "log.h"

#include "clock.h"
#include "log_record.h"
#include "log_repeats.h"
#include "log_sink.h"
#include "systemd.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#define RING_BYTES     (1024 * 1024)
#define OUTPUT_BYTES   (32 * 1024)
#define TELL_DROPS_NS  NS_PER_S
#define TELL_BROKEN_NS (60 * NS_PER_S)
#define DOZE_MS        10 /* lines are gathered that long before the next write */
#define PENDING_MS     100
#define DIRECT_MS      100  /* patience with a full stderr while there is no log thread */
#define STOP_MS        2000 /* the promise of log_stop */
#define STOP_WRITE_NS  (1800 * NS_PER_MS) /* of which the log thread may try to write */

/*
 * One thread's queue: written by its owner, read by the log thread. `head` and `tail` count bytes
 * since birth; a position is the count modulo RING_BYTES. A record that starts before the end may run
 * over it, into the extra room of one record, and the next starts at position 0, so that every record
 * is in one piece. A ring whose thread has ended waits for the next new thread.
 */
struct ring {
	struct ring *next;  /* constant once the ring is in the list */
	atomic_bool in_use; /* has an owner */
	atomic_size_t head; /* the owner's */
	atomic_uint_fast64_t dropped;
	_Alignas(struct log_record) char bytes[RING_BYTES + sizeof(struct log_record)];
	/* Of the log thread, and a megabyte away from the owner's cache line. */
	atomic_size_t tail;
	size_t end; /* head when this drain began */
};

/* The log thread's own things. */
struct writer {
	struct log_sink *sink;
	struct log_repeats repeats;
	uint64_t pass_ns; /* monotonic time of this drain */
	uint64_t told_dropped, told_dropped_ns;
	uint64_t told_broken_ns;
	bool torn; /* the last line written is incomplete */
	size_t used_bytes;
	char output[OUTPUT_BYTES];
};

/* What the log thread is doing, that is, when it wants to be woken. */
enum attention {
	AWAKE,  /* never: it will look again */
	DOZING, /* when a ring fills up */
	ASLEEP  /* at the first line */
};

static _Atomic(struct ring *) rings; /* only ever grows, at its front */
static _Thread_local struct ring *own_ring;
static pthread_key_t own_ring_key; /* for its destructor only */
static atomic_uint_fast64_t lost;  /* lines that had no ring, or could not be written */

static atomic_int wanted_level = LOG_LEVEL_INFO;
static atomic_int direct_format = LOG_FORMAT_TEXT; /* of lines without a log thread */
static atomic_int attention;

/* Orders to the log thread: set, then wake_fd is written. */
static _Atomic(struct log_sink *) next_sink;
static atomic_bool reopen_wanted;
static atomic_uint_fast64_t ordered_ns; /* when one of them came, as lines tell it; 0 = none */
static atomic_uint_fast64_t stop_by_ns; /* 0 = go on */

/* The descriptors stay open for good: a late line may still want to wake a thread that has ended. */
static int wake_fd = -1, ended_fd = -1;
static pthread_t thread;
static atomic_bool running;
static bool abandoned; /* the thread did not end in time */
static struct writer writer;

static void
signal_fd(int fd)
{
	uint64_t one = 1;
	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void
clear_fd(int fd)
{
	uint64_t count;
	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

__attribute__((format(printf, 5, 6))) static void
fill(struct log_record *record, enum log_level level, const struct log_field *fields,
     unsigned int count, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	log_record_fill(record, level, fields, count, format, args);
	va_end(args);
}

/* Lines without the log thread */

static bool
wait_briefly(int fd)
{
	struct pollfd room = { .fd = fd, .events = POLLOUT };
	return poll(&room, 1, DIRECT_MS) == 1;
}

/* Straight to stderr, for when there is no log thread or its target is broken. A full stderr that
 * stays full loses the line instead of holding up the caller. */
static void
write_direct(const struct log_record *record)
{
	char line[LOG_SINK_FORM_BYTES];
	struct log_sink sink = log_sink_stderr((enum log_format)atomic_load(&direct_format));
	size_t bytes = log_sink_form(&sink, record, line);
	if (bytes == 0 || log_sink_write(&sink, line, bytes, wait_briefly) < bytes)
		atomic_fetch_add(&lost, 1);
}

/* Rings, from their owner's side */

static void
on_thread_end(void *ring)
{
	own_ring = NULL;
	atomic_store(&((struct ring *)ring)->in_use, false);
}

static struct ring *
ring_claim(void)
{
	struct ring *ring;

	for (ring = atomic_load(&rings); ring; ring = ring->next) {
		bool in_use = false;
		if (atomic_compare_exchange_strong(&ring->in_use, &in_use, true))
			break;
	}
	if (!ring) {
		ring = calloc(1, sizeof(*ring));
		if (!ring)
			return NULL;
		atomic_store(&ring->in_use, true);
		ring->next = atomic_load(&rings);
		while (!atomic_compare_exchange_weak(&rings, &ring->next, ring))
			;
	}
	pthread_setspecific(own_ring_key, ring);
	return own_ring = ring;
}

static size_t
ring_used(const struct ring *ring)
{
	return atomic_load(&ring->head) - atomic_load(&ring->tail);
}

static struct log_record *
record_at(struct ring *ring, size_t count)
{
	return (struct log_record *)(void *)(ring->bytes + count % RING_BYTES);
}

static size_t
count_behind(size_t count, const struct log_record *record)
{
	size_t left = RING_BYTES - count % RING_BYTES;
	return count + (record->size_bytes < left ? record->size_bytes : left);
}

/* What a ring holds when a log thread that rests that way gets up. */
static size_t
worth_waking(enum attention how)
{
	return how == DOZING ? RING_BYTES / 2 : 1;
}

/* Wakes the log thread if it wants that. Sequentially consistent, as rest() is: either we see that it
 * rests, or it sees our line. */
static void
wake_for(const struct ring *ring)
{
	enum attention how = (enum attention)atomic_load(&attention);
	if (how != AWAKE && ring_used(ring) >= worth_waking(how) &&
	    atomic_exchange(&attention, AWAKE) != AWAKE)
		signal_fd(wake_fd);
}

/* `whole`: the line is never left out. */
__attribute__((format(printf, 5, 0))) static void
write_line(bool whole, enum log_level level, const struct log_field *fields, unsigned int count,
	   const char *format, va_list args)
{
	if (!atomic_load(&running)) {
		struct log_record record;
		log_record_fill(&record, level, fields, count, format, args);
		write_direct(&record);
		return;
	}
	struct ring *ring = own_ring ? own_ring : ring_claim();
	if (!ring) {
		atomic_fetch_add(&lost, 1);
		return;
	}
	if (RING_BYTES - ring_used(ring) < sizeof(struct log_record)) {
		atomic_fetch_add_explicit(&ring->dropped, 1, memory_order_relaxed);
	} else {
		size_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
		struct log_record *record = record_at(ring, head);
		log_record_fill(record, level, fields, count, format, args);
		if (whole)
			record->kind = NULL;
		atomic_store(&ring->head, count_behind(head, record));
	}
	wake_for(ring);
}

bool
log_wants(enum log_level level)
{
	return (int)level <= atomic_load_explicit(&wanted_level, memory_order_relaxed);
}

void
log_line(enum log_level level, const char *format, ...)
{
	if (!log_wants(level))
		return;
	va_list args;
	va_start(args, format);
	write_line(false, level, NULL, 0, format, args);
	va_end(args);
}

void
log_event(enum log_level level, const struct log_field *fields, unsigned int count,
	  const char *format, ...)
{
	if (!log_wants(level))
		return;
	va_list args;
	va_start(args, format);
	write_line(false, level, fields, count, format, args);
	va_end(args);
}

void
log_entry(enum log_level level, const struct log_field *fields, unsigned int count,
	  const char *format, ...)
{
	if (!log_wants(level))
		return;
	va_list args;
	va_start(args, format);
	write_line(true, level, fields, count, format, args);
	va_end(args);
}

static uint64_t
ring_dropped(void)
{
	uint64_t dropped = 0;
	for (struct ring *ring = atomic_load(&rings); ring; ring = ring->next)
		dropped += atomic_load_explicit(&ring->dropped, memory_order_relaxed);
	return dropped;
}

uint64_t
log_dropped(void)
{
	return ring_dropped() + atomic_load_explicit(&lost, memory_order_relaxed);
}

/* The log thread: writing */

/* How long the log thread may wait for its reader: not past the end of its time, nor at all if another
 * sink is there; -1 = for ever. */
static int
patience_ms(void)
{
	uint64_t by_ns = atomic_load(&stop_by_ns), now_ns = clock_now_ns();
	if (atomic_load(&next_sink) || (by_ns && now_ns >= by_ns))
		return 0;
	return by_ns ? (int)((by_ns - now_ns) / NS_PER_MS) + 1 : -1;
}

static bool
wait_for_reader(int fd)
{
	for (;;) {
		struct pollfd fds[2] = { { fd, POLLOUT, 0 }, { wake_fd, POLLIN, 0 } };
		int patience = patience_ms();
		poll(fds, 2, patience);
		if (fds[0].revents) /* or an error: write will tell */
			return true;
		if (patience == 0)
			return false;
		clear_fd(wake_fd);
	}
}

static void
tell_broken(struct writer *self, int error)
{
	uint64_t now_ns = clock_now_ns();
	if (self->told_broken_ns && now_ns - self->told_broken_ns < TELL_BROKEN_NS)
		return;
	self->told_broken_ns = now_ns;
	struct log_record record;
	const char *target = self->sink->kind == LOG_SINK_FILE ? self->sink->path : "the journal";
	fill(&record, LOG_LEVEL_ERROR, NULL, 0, "cannot write to %s, lines are lost: %s", target,
	     strerrordesc_np(error));
	write_direct(&record);
}

static void
flush(struct writer *self)
{
	struct log_sink *sink = self->sink;
	if (self->used_bytes == 0)
		return;
	size_t done = log_sink_write(sink, self->output, self->used_bytes, wait_for_reader);
	if (done < self->used_bytes && errno && sink->kind == LOG_SINK_FILE)
		tell_broken(self, errno);
	if (done > 0)
		self->torn = self->output[done - 1] != '\n';
	for (; done < self->used_bytes; done++)
		if (self->output[done] == '\n')
			atomic_fetch_add(&lost, 1);
	self->used_bytes = 0;
}

static void
send_to_journal(struct writer *self, const struct log_record *record)
{
	char bytes[2 * LOG_RECORD_FORM_BYTES];
	struct iovec entry[LOG_FIELDS + 2];
	int error = systemd_journal_send(entry, log_record_journal(record, entry, bytes));
	if (error < 0) {
		atomic_fetch_add(&lost, 1);
		tell_broken(self, -error);
	}
}

static void
write_record(void *context, const struct log_record *record)
{
	struct writer *self = context;
	if (self->sink->kind == LOG_SINK_JOURNAL) {
		send_to_journal(self, record);
		return;
	}
	if (OUTPUT_BYTES - self->used_bytes < LOG_SINK_FORM_BYTES + 1)
		flush(self);
	if (self->torn) {
		self->output[self->used_bytes++] = '\n';
		self->torn = false;
	}
	size_t bytes = log_sink_form(self->sink, record, self->output + self->used_bytes);
	self->used_bytes += bytes;
	if (bytes == 0)
		atomic_fetch_add(&lost, 1);
}

/* The log thread: its turns */

/* The ring with the oldest line among those that were there when the drain began. */
static struct ring *
oldest_ring(void)
{
	struct ring *oldest = NULL;
	uint64_t oldest_ns = UINT64_MAX;

	for (struct ring *ring = atomic_load(&rings); ring; ring = ring->next) {
		size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
		if (tail != ring->end && record_at(ring, tail)->time_ns < oldest_ns) {
			oldest = ring;
			oldest_ns = record_at(ring, tail)->time_ns;
		}
	}
	return oldest;
}

/* Whether the reader of the sink has stopped and there is no waiting for it. */
static bool
is_given_up(const struct log_sink *sink)
{
	struct pollfd room = { .fd = sink->fd, .events = POLLOUT };
	return sink->kind != LOG_SINK_JOURNAL && !sink->regular && patience_ms() == 0 &&
	       poll(&room, 1, 0) == 0;
}

/* Notes what is there: the next drain takes no more. */
static void
look(void)
{
	for (struct ring *ring = atomic_load(&rings); ring; ring = ring->next)
		ring->end = atomic_load_explicit(&ring->head, memory_order_acquire);
}

/* Writes what was queued up to that time, or leaves the rest if the sink is given up. Returns whether there
 * was something. */
static bool
drain(struct writer *self, uint64_t until_ns)
{
	struct ring *ring;
	bool found = false;

	while ((ring = oldest_ring()) && !is_given_up(self->sink)) {
		size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
		const struct log_record *record = record_at(ring, tail);
		if (record->time_ns > until_ns)
			break;
		log_repeats_take(&self->repeats, record);
		atomic_store_explicit(&ring->tail, count_behind(tail, record),
				      memory_order_release);
		found = true;
	}
	return found;
}

/* What the last drain left is lost. */
static void
discard(void)
{
	struct ring *ring;

	while ((ring = oldest_ring())) {
		size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
		atomic_store(&ring->tail, count_behind(tail, record_at(ring, tail)));
		atomic_fetch_add(&lost, 1);
	}
}

/* Returns whether there is more to tell later. */
static bool
tell_dropped(struct writer *self, bool now)
{
	uint64_t dropped = ring_dropped() - self->told_dropped;
	if (dropped == 0)
		return false;
	if (!now && self->pass_ns - self->told_dropped_ns < TELL_DROPS_NS)
		return true;
	self->told_dropped += dropped;
	self->told_dropped_ns = self->pass_ns;
	struct log_record record;
	fill(&record, LOG_LEVEL_WARNING, NULL, 0,
	     "%" PRIu64 " line%s dropped: the log's reader is too slow", dropped,
	     dropped == 1 ? "" : "s");
	write_record(self, &record);
	return false;
}

static void
reopen(struct writer *self)
{
	struct failure why;
	if (log_sink_reopen(self->sink, &why) < 0) {
		struct log_record record;
		fill(&record, LOG_LEVEL_ERROR, NULL, 0, "the old log file stays: %s", why.text);
		write_record(self, &record);
		flush(self);
		return;
	}
	self->torn = false;
}

static void
obey(struct writer *self)
{
	atomic_store(&ordered_ns, 0); /* first: what is ordered from now on is obeyed next time */
	struct log_sink *next = atomic_exchange(&next_sink, NULL);
	if (next) {
		log_sink_close(self->sink);
		self->sink = next;
		self->torn = false;
		self->told_broken_ns = 0;
	}
	if (atomic_exchange(&reopen_wanted, false))
		reopen(self);
}

static bool
worth_rising(enum attention how)
{
	for (struct ring *ring = atomic_load(&rings); ring; ring = ring->next)
		if (ring_used(ring) >= worth_waking(how))
			return true;
	return false;
}

/* Waits for lines or orders. */
static void
rest(enum attention how, int patience_ms)
{
	struct pollfd woken = { .fd = wake_fd, .events = POLLIN };

	atomic_store(&attention, (int)how);
	if (!worth_rising(how))
		poll(&woken, 1, patience_ms);
	atomic_store(&attention, AWAKE);
	clear_fd(wake_fd);
}

static void *
run(void *context)
{
	struct writer *self = context;

	for (;;) {
		/* What was queued before an order is written before it, and nothing else: what is there
		 * without an order came before it; with one, lines tell the time. */
		look();
		bool stopping = atomic_load(&stop_by_ns) != 0;
		uint64_t ordered = atomic_load(&ordered_ns);
		if (stopping || ordered)
			look();
		self->pass_ns = clock_now_ns();
		bool pending = log_repeats_pass(&self->repeats, self->pass_ns);
		bool found = drain(self, ordered ? ordered : UINT64_MAX);
		pending |= tell_dropped(self, stopping);
		if (stopping && !ordered)
			break;
		flush(self);
		if (ordered)
			obey(self);
		else if (found)
			rest(DOZING, DOZE_MS);
		else if (!atomic_load(&ordered_ns)) /* its wake-up may have been taken */
			rest(ASLEEP, pending ? PENDING_MS : -1);
	}
	log_repeats_end(&self->repeats);
	flush(self);
	discard();
	log_sink_close(self->sink);
	self->sink = NULL;
	signal_fd(ended_fd);
	return NULL;
}

/* Starting, changing, stopping */

static int
prepare(struct failure *why)
{
	static bool have_key;

	if (!have_key && pthread_key_create(&own_ring_key, on_thread_end) != 0)
		return failure_set(why, FAILURE_SYSTEM, "no thread-specific key for the log");
	have_key = true;
	if (wake_fd < 0)
		wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ended_fd < 0)
		ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (wake_fd < 0 || ended_fd < 0)
		return failure_set_errno(why, errno, "cannot open an eventfd for the log");
	return 0;
}

static void
set(enum log_format format, enum log_level level)
{
	atomic_store(&direct_format, (int)format);
	atomic_store(&wanted_level, (int)level);
}

int
log_start(const char *target, enum log_format format, enum log_level level, struct failure *why)
{
	sigset_t all, before;

	if (abandoned)
		return failure_set(why, FAILURE_SYSTEM, "an earlier log thread has not ended");
	if (prepare(why) < 0)
		return -1;
	memset(&writer, 0, sizeof(writer));
	writer.repeats.write = write_record;
	writer.repeats.context = &writer;
	writer.sink = log_sink_open(target, format, why);
	if (!writer.sink)
		return -1;
	writer.told_dropped = ring_dropped();
	atomic_store(&stop_by_ns, 0);
	atomic_store(&ordered_ns, 0);
	sigfillset(&all); /* SIGPIPE too: a reader that went away is an error of write */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&thread, NULL, run, &writer);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		log_sink_close(writer.sink);
		return failure_set_errno(why, error, "cannot start the log thread");
	}
	set(format, level);
	atomic_store(&running, true);
	return 0;
}

static void
order(void)
{
	uint64_t none = 0;
	atomic_compare_exchange_strong(&ordered_ns, &none, log_record_now_ns());
	signal_fd(wake_fd);
}

int
log_retarget(const char *target, enum log_format format, enum log_level level, struct failure *why)
{
	struct log_sink *sink = log_sink_open(target, format, why);
	if (!sink)
		return -1;
	log_sink_close(atomic_exchange(&next_sink, sink));
	set(format, level);
	order();
	return 0;
}

int
log_check_target(const char *target, struct failure *why)
{
	return log_sink_check(target, why);
}

void
log_reopen(void)
{
	atomic_store(&reopen_wanted, true);
	order();
}

void
log_stop(void)
{
	if (!atomic_exchange(&running, false))
		return;
	uint64_t now_ns = clock_now_ns(), by_ns = now_ns + STOP_MS * NS_PER_MS;
	atomic_store(&stop_by_ns, now_ns + STOP_WRITE_NS);
	signal_fd(wake_fd);
	struct pollfd ended = { .fd = ended_fd, .events = POLLIN };
	int ready;
	do {
		now_ns = clock_now_ns();
		ready = poll(&ended, 1, now_ns < by_ns ? (int)((by_ns - now_ns) / NS_PER_MS) : 0);
	} while (ready < 0 && errno == EINTR);
	if (ready == 1) {
		clear_fd(ended_fd);
		pthread_join(thread, NULL);
	} else { /* blocked in a system call; the end of the process is its end */
		abandoned = true;
		pthread_detach(thread);
	}
	log_sink_close(atomic_exchange(&next_sink, NULL));
}

/* libevent's own messages */

static void
on_libevent_message(int severity, const char *text)
{
	static const enum log_level levels[] = {
		[EVENT_LOG_DEBUG] = LOG_LEVEL_DEBUG,
		[EVENT_LOG_MSG] = LOG_LEVEL_INFO,
		[EVENT_LOG_WARN] = LOG_LEVEL_WARNING,
		[EVENT_LOG_ERR] = LOG_LEVEL_ERROR,
	};
	log_line(levels[severity], "libevent: %s", text);
}

static void
on_libevent_fatal(int error)
{
	log_line(LOG_LEVEL_ERROR, "libevent gave up (error %d)", error);
	log_stop();
	abort();
}

void
log_adopt_libevent(void)
{
	event_set_log_callback(on_libevent_message);
	event_set_fatal_callback(on_libevent_fatal);
}
