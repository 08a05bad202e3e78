/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does anything in the program still refer to a version of a library that was replaced? If not, it is unmapped.
 *
 * Every word of the program's memory that may be an address in such a version counts, aligned to 4 bytes, and words as
 * glibc mangles them (atexit, jmp_buf). Most of it is looked through while the program runs, and what is written then is
 * noted (written.h); at a moment at which all threads stand, what has been written since, their stacks, their registers,
 * those of vectors too, and what the LibOS and the monitor keep for them. Pages that were never written are none of the
 * program's words; those that can't be read, and memory that changes without being written, are reason to keep all.
 *
 * What is only referred to in its constants loses all but these: nobody can come to its code.
 *
 * The service thread of updates is the only user.
 */
#ifndef KX_RETIRE_H
#define KX_RETIRE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "relink.h"

struct retire;
struct thread;
struct unwind_regs;

/* While the program runs, with nothing noted: begin to note what is written. NULL: there is nothing to do, or it can't be. */
struct retire *retire_new(void);
/* After that: look through all memory, but for stacks. pause is called now and then, for who waits. False: no version can go. */
bool retire_ahead(struct retire *x, void (*pause)(void));
/* At what has been written since. How many pages that were; -1: no version can go. */
long retire_again(struct retire *x);
/* All threads stand, with these registers, and both locks are held: the rest. False: no version can go now. */
bool retire_stopped(struct retire *x, struct thread *const *t, const struct unwind_regs *u, unsigned nr);
/* The program runs again: unmap what can go. How many versions are left. */
unsigned retire_done(struct retire *x, bool proven);
#endif
