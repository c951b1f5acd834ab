#include "tls_file.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MOST ((off_t)64 * 1024 * 1024)

static int
read_all(int fd, struct tls_file *file, struct failure *why)
{
	struct stat status;
	if (fstat(fd, &status) < 0)
		return failure_set_errno(why, errno, "%s", file->path);
	if (!S_ISREG(status.st_mode))
		return failure_set(why, FAILURE_CONFIG, "%s is not a file; name one", file->path);
	if (status.st_size > FILE_MOST)
		return failure_set(why, FAILURE_CONFIG, "%s is larger than 64 MiB; name another",
				   file->path);
	file->is_public = status.st_mode & S_IROTH;
	size_t most = (size_t)status.st_size;
	file->bytes = malloc(most + 1); /* a byte of it even for nothing */
	if (!file->bytes)
		return failure_set(why, FAILURE_MEMORY, "no memory for %s", file->path);
	while (file->length < most) {
		ssize_t got = read(fd, file->bytes + file->length, most - file->length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return failure_set_errno(why, errno, "%s", file->path);
		if (got == 0)
			break;
		file->length += (size_t)got;
	}
	file->bytes[file->length] = '\0';
	return 0;
}

static int
refuse_unopened(const char *path, int error, struct failure *why)
{
	failure_set_errno(why, error, "%s", path);
	return failure_set(why, why->kind, "%s; %s", why->text,
			   error == EACCES ? "let the user that penstockd runs as read it"
					   : "name a file that can be read");
}

int
tls_file_read(struct tls_file *file, const char *path, struct failure *why)
{
	*file = (struct tls_file){ .path = path };
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	int result = fd < 0 ? refuse_unopened(path, errno, why) : read_all(fd, file, why);
	if (fd >= 0)
		close(fd);
	if (result < 0 && why->kind != FAILURE_MEMORY)
		why->kind = FAILURE_CONFIG; /* it is the operator's to put right */
	if (result < 0)
		tls_file_release(file);
	return result;
}

int
tls_file_refuse_public(const struct tls_file *file, struct failure *why)
{
	return failure_set(why, FAILURE_CONFIG,
			   "%s holds a secret and everybody may read it; chmod 640 it", file->path);
}

int
tls_file_read_secret(struct tls_file *file, const char *path, struct failure *why)
{
	if (tls_file_read(file, path, why))
		return -1;
	if (!file->is_public)
		return 0;
	tls_file_refuse_public(file, why);
	tls_file_release(file);
	return -1;
}

BIO *
tls_file_open(const struct tls_file *file, struct failure *why)
{
	BIO *bio = BIO_new_mem_buf(file->bytes, (int)file->length);
	if (!bio)
		failure_set(why, FAILURE_MEMORY, "no memory for %s", file->path);
	return bio;
}

int
tls_file_ask_nobody(char *out, int most, int is_writing, void *unused)
{
	(void)is_writing;
	(void)unused;
	if (most > 0)
		*out = '\0';
	return -1;
}

void
tls_file_release(struct tls_file *file)
{
	if (file->bytes)
		OPENSSL_cleanse(file->bytes, file->length);
	free(file->bytes);
	file->bytes = NULL;
	file->length = 0;
}
