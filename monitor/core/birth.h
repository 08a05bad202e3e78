/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a child of fork has got a VM. Most parents go on before that is known. Where it may fail (the family had a
 * failure lately, memory is short, nothing was heard of a child lately or since the last thread) the parent waits, and a failure is its fork's.
 * One word per child, in the family's table.
 */
#ifndef KX_BIRTH_H
#define KX_BIRTH_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Before the child of that place in the family's table is made. True: the parent is to wait with birth_await(). */
bool birth_begin(int slot);
/* This process has one thread more: what was heard of a child says nothing any more about the limit of processes. */
void birth_unsure(void);
/* In a child that waits for what its VM lacks, which may be had when others have ended. */
void birth_lacks(void);
/* Has anybody of the family failed to get a VM, or waited for what one lacks, since then, or lately? */
bool birth_short_since(uint64_t ns);
bool birth_is_short(void);
/* In the child: 0 = it has all that it needs, else an errno. */
void birth_tell(int slot, int error);
/* In the parent, all signals blocked. 0, or -EAGAIN or -ENOMEM: the child is gone, waited for, and its signal taken out. */
int birth_await(int slot, pid_t pid, int exit_signal);
/* Wait for a child that nobody is to hear of, and take out its signal; likewise. */
void birth_forget(pid_t pid, int exit_signal);
#endif
