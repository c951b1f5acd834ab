#include "standard_streams.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void
standard_streams_fill(void)
{
	static const int modes[] = { O_RDWR, O_RDONLY, O_RDWR };
	for (int fd = 0; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			open("/dev/null", modes[fd]);
}

int
standard_streams_end(const char *program, int status)
{
	bool was_torn = ferror(stdout);

	errno = 0;
	if (fflush(stdout) == 0 && !was_torn)
		return status;
	fprintf(stderr, "%s: cannot write to standard output%s%s\n", program, errno ? ": " : "",
		errno ? strerrordesc_np(errno) : "");
	return EXIT_FAILURE;
}
