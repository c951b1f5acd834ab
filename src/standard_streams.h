/*
 * standard_streams: standard input, output and error as penstockd and penstockctl need them: there from the
 * begin, and not silent at the end when an answer could not be written. Main thread.
 */
#ifndef PENSTOCK_STANDARD_STREAMS_H
#define PENSTOCK_STANDARD_STREAMS_H

/* What is opened must not become one of them, or lines are written into it. Standard output only for
 * reading: who asked for an answer and closed it is told that it could not be written. First of all. */
void standard_streams_fill(void);

/* The exit status of a process that has printed something: `status`, unless that could not be written; then
 * standard error is told, in the name of `program`. */
int standard_streams_end(const char *program, int status);

#endif
