/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a child of fork has got a VM. Most parents go on before that is known. Where it may fail (the family had a
 * failure lately, memory is short, nothing was heard of a child lately) the parent waits, and a failure is its fork's.
 * One word per child, in the family's table.
 */
#ifndef KX_BIRTH_H
#define KX_BIRTH_H
#include <stdbool.h>
#include <sys/types.h>

/* Before the child of that place in the family's table is made. True: the parent is to wait with birth_await(). */
bool birth_begin(int slot);
/* In the child: 0 = it has all that it needs, else an errno. */
void birth_tell(int slot, int error);
/* In the parent, all signals blocked. 0, or -EAGAIN or -ENOMEM: the child is gone, waited for, and its signal taken out. */
int birth_await(int slot, pid_t pid, int exit_signal);
/* Wait for a child that nobody is to hear of, and take out its signal; likewise. */
void birth_forget(pid_t pid, int exit_signal);
#endif
