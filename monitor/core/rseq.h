/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restartable sequences, the monitor's part: who may call which CPU number its own.
 *
 * Linux aborts a critical section when its thread was preempted or migrated, so that no two threads are in sections
 * for one CPU at a time. Nobody tells the monitor of preemptions of a vCPU. So the numbers are lent instead: a thread
 * that has registered a struct rseq runs in the guest only while it has a number ("seat"), of those that its affinity
 * allows, to itself. Preempted, it keeps it, and nobody else is in a section for that number. It may lose it to another
 * thread only outside the guest; before its next instruction the LibOS aborts the section that it stood in.
 *
 * With no more threads than CPUs all have a seat for good. Else they take turns: a thread in the monitor can be robbed
 * at once, one in the guest is sent out after a slice.
 */
#ifndef KX_RSEQ_H
#define KX_RSEQ_H
#include "pvm.h"

/* Is there a signature before an abort handler in a file's text? Where one becomes executable, seats are switched on.
 * What has none never registers: rseq(2) is ENOSYS. */
bool rseq_text(const uint8_t *text, size_t len);
void rseq_switch_on(void);
/* Around KVM_RUN. enter() waits for a seat if t needs one; may set KX_WORK_RSEQ. */
void rseq_enter(struct thread *t);
void rseq_leave(struct thread *t);
/* t is about to make a call that may sleep: whoever waits for a seat gets its. */
void rseq_idle(struct thread *t);
/* t ends or has unregistered. */
void rseq_release(struct thread *t);
/* In the child of a fork, with one thread. */
void rseq_fork_child(struct thread *t);
/* Some thread may run on other CPUs than before. */
void rseq_affinity_changed(void);
/* Abort the sections of all threads, or of the one on that CPU, as membarrier(2) does; cpu < 0 = all. */
void rseq_fence(int cpu);
/* From the signal handler: a kick of this module's? */
bool rseq_is_kick(const siginfo_t *info);
#endif
