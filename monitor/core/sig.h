/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals. The host kernel keeps dispositions, pending signals and masks; the monitor's handler accepts one signal
 * at a time for the thread that it runs on and hands it to the LibOS, which builds the frame.
 *
 * The guest's mask (kx_thread.sigmask) changes without an exit, so the host thread's mask (thread.hmask) may lag
 * behind: a standard signal that the guest blocks but the host does not is blocked and queued again by the handler.
 * What the host blocks but the guest no longer does, the LibOS reports by the sigmask_sync hypercall. Queueing again
 * would cost real-time signals their order, so those with a handler are blocked on the host at once, and one that was
 * accepted and can't be delivered is held by its thread (thread.held), ahead of what the host has queued of it.
 */
#ifndef KX_SIG_H
#define KX_SIG_H
#include "pvm.h"

/* Interrupts a host thread. Real-time signal 33 is glibc's and musl's own, so programs neither block nor use it by
 * themselves; theirs still gets through (told apart by its value). */
#define KICK_SIG 33
#define SIGBIT(n) (1ull << ((n)-1))

/* Install handlers; before any thread exists. */
void sig_init(void);
/* Make the host's disposition of signo follow the guest's action. Returns 0 or -errno. */
int sig_set_disposition(int signo, const struct kx_sigaction *act);
/* On entry of a host thread that runs a guest thread: mask as inherited, but the host blocks no more than `most` yet. */
void sig_thread_start(struct thread *t, uint64_t most);
/* Before the guest runs on and after each hypercall: hand over an accepted signal. */
void sig_prepare(struct thread *t);
/* The guest's mask must be the host's before a call that sleeps with a timeout. */
void sig_sync_block(struct thread *t);
/* The host must know that a signal is blocked whose action it performs by itself, or that action is what comes of the
 * signal. Before every call that something can come of, so that no program can tell the lag. */
void sig_sync_plain(struct thread *t);
/* The guest unblocked something that the host still blocks, or blocked a queued signal that has a handler. False: a
 * signal that mask blocks came before; nothing is changed until it is delivered. */
bool sig_mask_set(struct thread *t, uint64_t mask);
/* Temporary mask of ppoll, pselect6, epoll_pwait, rt_sigsuspend. False as above: the call must be made again
 * (-KX_ERESTART_ALWAYS). leave() returns ret. */
bool sig_mask_enter(struct thread *t, uint64_t mask);
int64_t sig_mask_leave(struct thread *t, int64_t ret);
/* A fault of the guest at user state that is already in t's frame. */
void sig_force(struct thread *t, int signo, int code, uint64_t addr, uint64_t trapno, uint64_t err, uint64_t cr2);
/* info is about to be queued for one thread. */
void sig_mark_thread(siginfo_t *info);
/* Make thread t leave the guest or its blocking call. */
void sig_kick(struct thread *t);
/* Queue again on the host whatever was accepted or handed over and not delivered; without `own`, what is for the
 * process. With it, for an exec, real-time signals that the program blocks stay in t->held: they are ahead of what the host
 * has queued, and go to the next monitor so. Signals are blocked. */
void sig_give_back(struct thread *t, bool own);
/* Behind an exec, before t starts: what was in the held and held_info of the thread that made it. */
void sig_carry(struct thread *t, uint64_t held, const void *info);
/* A signal of set, when one is held (thread.held): the first of what is held and of what is pending; or 0. */
int sig_take_held(struct thread *t, uint64_t set, siginfo_t *info);
/* Around a fork: hold all signals back; returns the mask of before, for sig_restore(). */
uint64_t sig_block_everything(void);
void sig_restore(uint64_t mask, struct thread *t);
/* Block everything on this host thread (it is about to end). */
void sig_block_all(void);
#endif
