/* SPDX-License-Identifier: Apache-2.0 */
/* New processes: fork as a fork of the monitor with a VM of its own, vfork as a process on a vCPU of the same VM. */
#ifndef KX_FORK_H
#define KX_FORK_H
#include "hcall.h"

struct fork_args {
	uint64_t flags; /* CLONE_*, without the exit signal */
	int exit_signal;
	uint64_t stack, parent_tid, child_tid, tls, pidfd;
};

/* Returns the child's pid (in the child: 0) or -errno. */
int64_t process_create(struct thread *t, const struct fork_args *a);
/* Where libc keeps the calling thread's number, for CLONE_CHILD_SETTID; NULL: the kernel doesn't tell. */
int *fork_tid_word(void);
/* All locks that a child must not inherit from another thread. */
void fork_locks_take(void);
void fork_locks_release(void);
/* After a fork: the pages of the monitor's that the next one will write are made this process's own, ahead of the faults. */
void fork_populate(void);

/* sys_proc.c: the limits that the host does not know. In the parent: its child of vfork gets a copy of the caller's. */
void limits_vfork(struct thread *child);
/* In a fork by such a child: its are the process's. */
void limits_fork_of_vfork(const struct thread *t);
#endif
