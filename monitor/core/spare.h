/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child made ahead. While a process waits for a child, having forked before, its monitor forks: the copy, the spare,
 * makes its VM and sleeps. The next fork hands it the pages that were written since, and the descriptors as they are
 * then; so it has become what a fork at that moment would have made, and the parent has waited for neither the host's
 * fork nor the faults behind one.
 *
 * What was written: the host's fork left each page to both. A page that is the parent's alone by now (the kernel tells
 * by /proc/self/pagemap) was written by one of the two; all others are the same in both. That counts for guest memory and
 * the monitor's own alike. The table of descriptors is shared (CLONE_FILES) until the parent takes a copy of its own and
 * leaves the shared one to the child. Signal actions are set anew where they have changed. Whatever else a process inherits must be as it was: a call that may have changed it makes the spare useless
 * (spare_changed), and what others can change (limits, scheduling) is compared with what it was when the spare was made.
 *
 * Nobody sees it but the host: it is in no list of the family's, in a process group of its own, and waits are answered
 * as without it. It ends with its process, or gives its memory back when it has not been used for some seconds.
 */
#ifndef KX_SPARE_H
#define KX_SPARE_H
#include "hcall.h"

/* Before a wait: there is one, or would be. Before one that will sleep, nothing locked: make one if it is likely to be
 * used. */
bool spare_look(struct thread *t);
bool spare_wanted(struct thread *t);
void spare_make(struct thread *t);
/* In fork, with all of its locks. The child's pid, in the child 0; -1: there is none to be had, fork by the host. */
pid_t spare_fork(struct thread *t);
/* After that in the child, whose threads of before are gone: its VM and vCPU. 0 or -errno. */
int spare_machine(struct thread *t, const struct kvm_xsave *xsave);
/* The calling process is a child that came from a spare. */
bool spare_born(void);
/* In the parent: the last fork had one. */
bool spare_was_used(void);
/* Around a fork by the host: in the parent before it, in the child after it. */
void spare_fork_before(void);
void spare_fork_child(void);
/* A fork was made that a spare could have been. */
void spare_fork_seen(void);

/* Something that a child inherits, or a mapping, may change: the spare is useless from here on. */
void spare_changed(void);
/* ... at any time: none for this process any more. */
void spare_forbid(void);
/* A shared mapping goes, or SysV memory comes: others can see who has it. */
void spare_unmapped(void);
void spare_shm(void);
/* The same for the calls that do. */
void spare_call(const struct hcall *c);
/* There is one that may be used: no thread may be started that shares descriptors. */
bool spare_waits(void);

/* For waits. Is it that process? Is it the only child? */
bool spare_is(pid_t pid);
bool spare_is_last(void);
/* It was waited for. */
void spare_ended(pid_t pid);
/* Before exec: no trace is left. */
void spare_remove(void);
/* A process or thread could not be made. True: there was one that took a place, and it is gone; try again. */
bool spare_make_room(int error);
/* At the end of the process. */
void spare_exit(void);
#endif
