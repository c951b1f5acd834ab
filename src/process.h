/*
 * process: what the daemon is as a process, before and beside its work: memory, descriptors,
 * CPUs, what it keeps of its rights, and how much of a configuration fits in there. Main
 * thread, before any other is started, except where it says otherwise.
 */
#ifndef PENSTOCK_PROCESS_H
#define PENSTOCK_PROCESS_H

#include "failure.h"
#include "generation.h"

/* The allocator keeps what it has got: giving pages back and faulting them in again on every turn
 * costs half of a TLS pump's time. loop_trim gives back after a quiet minute. */
void process_keep_memory(void);

/* As many descriptors as the hard limit allows; returns how many that are. */
int process_raise_descriptors(void);

/* Gives up what the configuration says (another user, no new privileges, Landlock), and logs what it
 * cannot do that can be done without. Before anything is opened: what can be opened now can be opened by
 * a reload. On failure the process is in no state to go on. */
int process_confine(const struct generation *first, struct failure *why);

/* The CPUs it may use, at least 1. Any thread. */
unsigned int process_cpus(void);

/* Fills in the values that stand for "what fits this machine", for that many workers. After
 * process_raise_descriptors; any thread that owns the generation. */
void process_fill_in(struct generation *generation, unsigned int workers);

#endif
