#include "log_sink.h"

#include "systemd.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int
open_file(const char *path, int flags)
{
	/* O_NONBLOCK is for a FIFO: without a reader it is refused instead of waited for. */
	return open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | flags, 0640);
}

static bool
is_regular(int fd)
{
	struct stat status;
	return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

/* Kind and path of a target; the rest is left alone. */
static int
parse_target(struct log_sink *sink, const char *target, struct failure *why)
{
	sink->path = NULL;
	if (strncmp(target, "file:", 5) == 0 && target[5]) {
		sink->kind = LOG_SINK_FILE;
		sink->path = target + 5;
	} else if (strcmp(target, "journal") == 0) {
		sink->kind = LOG_SINK_JOURNAL;
		if (!systemd_journal_present())
			return failure_set(why, FAILURE_CONFIG,
					   "the log target is the journal, but none runs here");
	} else if (strcmp(target, "auto") == 0) {
		sink->kind = systemd_journal_on_stderr() ? LOG_SINK_JOURNAL : LOG_SINK_STDERR;
	} else if (strcmp(target, "stderr") == 0) {
		sink->kind = LOG_SINK_STDERR;
	} else {
		return failure_set(why, FAILURE_CONFIG,
				   "log target \"%s\" is none of auto, stderr, journal, file:PATH",
				   target);
	}
	return 0;
}

struct log_sink
log_sink_stderr(enum log_format format)
{
	return (struct log_sink){
		.kind = LOG_SINK_STDERR,
		.format = format,
		.prefixed = systemd_journal_on_stderr(),
		.regular = is_regular(STDERR_FILENO),
		.fd = STDERR_FILENO,
	};
}

struct log_sink *
log_sink_open(const char *target, enum log_format format, struct failure *why)
{
	struct log_sink parsed = log_sink_stderr(format);
	if (parse_target(&parsed, target, why) < 0)
		return NULL;
	size_t path_bytes = parsed.path ? strlen(parsed.path) + 1 : 0;
	struct log_sink *sink = malloc(sizeof(*sink) + path_bytes);
	if (!sink) {
		failure_set(why, FAILURE_MEMORY, "no memory for the log target");
		return NULL;
	}
	*sink = parsed;
	if (sink->kind != LOG_SINK_FILE)
		return sink;
	sink->path = memcpy(sink + 1, parsed.path, path_bytes);
	sink->prefixed = false;
	sink->fd = open_file(sink->path, O_CREAT);
	if (sink->fd < 0) {
		failure_set_errno(why, errno, "cannot open the log file %s", parsed.path);
		log_sink_close(sink);
		return NULL;
	}
	sink->regular = is_regular(sink->fd);
	return sink;
}

void
log_sink_close(struct log_sink *sink)
{
	if (sink && sink->kind == LOG_SINK_FILE && sink->fd >= 0)
		close(sink->fd);
	free(sink);
}

int
log_sink_check(const char *target, struct failure *why)
{
	struct log_sink sink;
	if (parse_target(&sink, target, why) < 0)
		return -1;
	if (sink.kind != LOG_SINK_FILE)
		return 0;
	int fd = open_file(sink.path, 0);
	if (fd >= 0) {
		close(fd);
		return 0;
	}
	int error = errno;
	char *path = error == ENOENT ? strdup(sink.path) : NULL;
	if (path)
		error = faccessat(AT_FDCWD, dirname(path), W_OK | X_OK, AT_EACCESS) ? errno : 0;
	free(path);
	return error ? failure_set_errno(why, error, "cannot open the log file %s", sink.path) : 0;
}

int
log_sink_reopen(struct log_sink *sink, struct failure *why)
{
	if (sink->kind != LOG_SINK_FILE)
		return 0;
	int fd = open_file(sink->path, O_CREAT);
	if (fd < 0)
		return failure_set_errno(why, errno, "cannot open the log file %s", sink->path);
	close(sink->fd);
	sink->fd = fd;
	sink->regular = is_regular(fd);
	return 0;
}

size_t
log_sink_form(const struct log_sink *sink, const struct log_record *record, char *line)
{
	size_t prefix = 0, bytes;

	if (sink->prefixed)
		prefix = (size_t)sprintf(line, "<%d>", log_record_priority(record));
	if (sink->format == LOG_FORMAT_JSON)
		bytes = log_record_json(record, line + prefix);
	else if (sink->prefixed)
		bytes = log_record_plain(record, line + prefix);
	else
		bytes = log_record_stamped(record, line + prefix);
	if (bytes == 0)
		return 0;
	line[prefix + bytes] = '\n';
	return prefix + bytes + 1;
}

/* How many of the bytes may be written at once without blocking and without being mixed with another
 * process's lines: whole lines up to PIPE_BUF, or that much of a longer one. */
static size_t
pipe_share(const char *bytes, size_t count)
{
	if (count <= PIPE_BUF)
		return count;
	const char *end = memrchr(bytes, '\n', PIPE_BUF);
	return end ? (size_t)(end - bytes) + 1 : PIPE_BUF;
}

size_t
log_sink_write(const struct log_sink *sink, const char *bytes, size_t count, bool (*wait)(int fd))
{
	size_t done = 0;

	while (done < count) {
		size_t share = count - done;
		if (!sink->regular) {
			share = pipe_share(bytes + done, share);
			if (!wait(sink->fd)) {
				errno = 0;
				break;
			}
		}
		ssize_t written = write(sink->fd, bytes + done, share);
		if (written > 0)
			done += (size_t)written;
		else if (written < 0 && errno != EINTR && errno != EAGAIN)
			break;
	}
	return done;
}
