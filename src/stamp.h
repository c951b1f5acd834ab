/*
 * stamp: what tells one state of a file or directory from another without reading it.
 */
#ifndef PENSTOCK_STAMP_H
#define PENSTOCK_STAMP_H

#include <stdbool.h>
#include <sys/stat.h>

/* All zero = it cannot be looked at. The time of the last change of the inode, not of its contents: it also
 * moves when an older file is renamed over it. */
struct stamp {
	dev_t device;
	ino_t inode;
	off_t size;
	struct timespec changed;
};

/* Of what path leads to now, links followed: one system call. Any thread. */
struct stamp stamp_of(const char *path);

bool stamp_is_same(const struct stamp *a, const struct stamp *b);

#endif
