#include "stamp.h"

#include <string.h>

struct stamp
stamp_of(const char *path)
{
	struct stat status;
	struct stamp stamp;

	memset(&stamp, 0, sizeof(stamp)); /* compared as a whole */
	if (stat(path, &status) < 0)
		return stamp;
	stamp.device = status.st_dev;
	stamp.inode = status.st_ino;
	stamp.size = status.st_size;
	stamp.changed = status.st_ctim;
	return stamp;
}

bool
stamp_is_same(const struct stamp *a, const struct stamp *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}
