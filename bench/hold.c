#include "load.h"
#include "sockets.h"

#include <stdio.h>
#include <unistd.h>

void
hold_run(const struct options *options)
{
	char ignored[64];

	for (unsigned int i = 0; i < options->connections; i++) {
		int fd = options->narrow ? sockets_connect_narrow(&options->to)
					 : sockets_connect(&options->to);
		if (options->speak)
			sockets_exchange(fd);
	}
	puts("ready");
	fflush(stdout);
	while (read(STDIN_FILENO, ignored, sizeof(ignored)) > 0)
		;
}
