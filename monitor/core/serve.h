/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The service thread: answers hypercalls over shared memory (abi/kx_serve.h), so that they cost no exit.
 *
 * It is made at the first time that the process is busy with calls and a processor is free, polls while calls come, and
 * sleeps otherwise. It is a guest thread to the handlers that it calls, with a struct thread of its own in which no
 * blocking call may begin: what would sleep is left to an exit. Nothing that it does may depend on whose call it is.
 * So it has the credentials and the affinity of the thread that made it, and ends before either changes.
 *
 * Locks: `gate` (the thread is made or ended), then `work` (a request is being served), before all locks of pvm.h.
 */
#ifndef KX_SERVE_INTERNAL_H
#define KX_SERVE_INTERNAL_H
#include "hcall.h"

/* Before the program runs. */
void serve_init(void);
/* Around each call that exits, by the thread that makes it: what it does to the service, and whether there is to be one. */
void serve_before(struct hcall *c);
void serve_after(struct hcall *c);
/* Nothing is being served in between. */
void serve_lock(void);
void serve_unlock(void);
/* In a forked child: there is no such thread, nor a request. */
void serve_fork_child(void);
/* The signals whose action the host performs. */
void serve_plain_signals(uint64_t set);
/* The caller is the service thread: a signal that it got was meant for the process, and is passed on. */
bool serve_signal(int signo);
/* A descriptor near the limit was made: true in the service thread, which can't move those of the monitor. */
bool serve_near_limit(void);
/* There is such a thread: with one guest thread there are two that make calls. */
bool serve_runs(void);
/* End the thread until it pays again; no call is being answered. */
void serve_stop(void);
#endif
