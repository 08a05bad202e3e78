/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of robust locks (set_robust_list(2)): at a thread's end, whatever it is, the locks on its list get
 * FUTEX_OWNER_DIED and a waiter wakes. Programs' libcs keep the list by plain stores, at any instant and without a call,
 * and SIGKILL leaves the monitor no instant. So the host's kernel has to follow the guest's list, which holds guest
 * addresses: that is why the space is reserved where host address = guest address (pvm.base is NULL).
 *
 * The kernel follows it through all of the monitor's memory, and where a word holds the thread's number, it writes:
 * the guest must not get that while the process lives on. When a thread ends before its process, the monitor walks
 * the list itself, in guest memory alone, and takes it from the kernel; a child of vfork, which shares its living
 * parent's memory, never gives it its own. What is left is the end of the process, or its exec: then the memory goes,
 * too, and what others share of the monitor's is the family's table, whose members trust each other.
 *
 * Where the space could not be had there (sanitizers), and in a child of vfork, the monitor's own walk is all there is,
 * and who waits for a lock looks whether its owner still lives (sys_time.c).
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
/* t ends, or its process: walk its list now. The calling thread's is taken from the kernel. */
void robust_exit(struct thread *t);
#endif
