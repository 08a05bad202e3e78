/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of robust locks (set_robust_list(2)): at a thread's end, whatever it is, the locks on its list get
 * FUTEX_OWNER_DIED and a waiter wakes. Programs' libcs keep the list by plain stores, at any instant and without a call,
 * and SIGKILL leaves the monitor no instant. So the host's kernel has to follow the guest's list, which holds guest
 * addresses: that is why the space is reserved where host address = guest address (pvm.base is NULL).
 *
 * The kernel follows it through all of the monitor's memory, and where a word holds the thread's number, it writes:
 * the guest must not get that while the memory is in use. When a thread ends before its process, the monitor walks
 * the list itself, in guest memory alone, and takes it from the kernel. A child of vfork uses its parent's memory, also
 * when that is dead: as long as there is one, no thread's list is with the kernel. What is left is the end of the
 * process, or its exec: then the memory goes, too, and what others share of the monitor's is the family's table, whose
 * members trust each other, and no text: a forked child has a LibOS of its own where the host can write to it.
 *
 * Meanwhile, and where the space could not be had there (sanitizers), the monitor's own walk is all there is, and who
 * waits for a lock looks whether its owner still lives (sys_futex.c).
 */
#ifndef KX_ROBUST_H
#define KX_ROBUST_H
#include "pvm.h"

/* The guest's struct robust_list_head. */
struct robust_head {
	uint64_t next;
	int64_t offset;
	uint64_t pending;
};

/* As set_robust_list(2) by t, the calling thread. head: guest address, 0 = none. */
void robust_set(struct thread *t, uint64_t head);
/* Will the host's kernel follow t's list when t's process ends? */
bool robust_by_host(const struct thread *t);
/*
 * Around a vfork of the calling thread: take all lists from the kernel, give the caller's back. False: a thread did not
 * let go in time; end is to be called all the same. In the signal handler, by a kick: let go, or take it up
 * again, as is due; the latter before a hypercall, too. pause: before the caller sleeps where no kick gets through. In a
 * child of fork: there is nobody else.
 */
bool robust_vfork_begin(void);
void robust_vfork_end(void);
void robust_kicked(struct thread *t);
void robust_renew(struct thread *t);
void robust_pause(void);
void robust_fork_child(struct thread *t);
/*
 * A thread that `creator`, the caller, is about to make, with that thread pointer: where its libc will tell that the list is, as
 * the creator's did; 0 = not known. In the new thread, before it runs: if an empty list is there, it is taken as told, and the
 * LibOS answers that call.
 */
uint64_t robust_expect(struct thread *creator, uint64_t tls);
void robust_thread_start(struct thread *t, uint64_t head);
/* t ends, or its process: walk its list now. The calling thread's is taken from the kernel. */
void robust_exit(struct thread *t);
#endif
