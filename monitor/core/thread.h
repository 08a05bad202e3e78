/* SPDX-License-Identifier: Apache-2.0 */
/* Guest threads: each a host thread with a vCPU. vCPUs of ended threads are kept and used again. */
#ifndef KX_THREAD_H
#define KX_THREAD_H
#include "hcall.h"

/* The first thread, on the calling host thread: area, vCPU. */
struct thread *thread_first(struct kx_err *err);
/* The calling guest thread ends (status is that of exit(2)); does not return. */
_Noreturn void thread_exit(struct thread *t, int status);
/* A thread with vCPU that will continue as a copy of p (which is in a hypercall), with 0 as the result. Not yet in the
 * list of threads, no host thread behind it. NULL and *r = -errno. */
struct thread *thread_clone(struct thread *p, uint64_t stack, bool set_tls, uint64_t tls, int *r);
/* What exit and exec do to the guest's memory: robust locks, the thread id that a joiner waits for, unless
 * t is the last user of its memory. */
void thread_release_guest(struct thread *t, bool is_last, bool is_exec);
/* For a process that ends: of every thread, what the host's kernel does not see to. */
void thread_release_all(void);
/*
 * A thread of the monitor's own, with no signal of the guest's ever: fn(arg) on a stack of so many bytes. Detached unless
 * `out` takes its handle. 0 or an errno, as pthread_create(3).
 */
int thread_own_start(pthread_t *out, size_t stack, void *(*fn)(void *arg), void *arg);
/* Back to the pool. Take all of it: only in a process with one thread. */
void thread_pool_put(struct thread *t);
/* fn for the descriptor of each vCPU in the pool, until one returns other than 0; that is returned. */
int thread_pool_fds(int (*fn)(int *fd));
struct thread *thread_pool_take(void);
/* fn for each vCPU that this process has made, in use or not, until one returns other than 0. None where another thread
 * holds the list: for the end of the process, when it may be stopped. */
void thread_each_vcpu(int (*fn)(int vcpu_fd, void *arg), void *arg);
/* Wait until the host threads of ended threads are out of libc. */
void thread_join_ended(void);
/* A process or thread could not be made (-errno). True: host threads of ended threads had places, and they are gone; try
 * again. No lock may be held. */
bool thread_make_room(int64_t error);
/* In a child of fork, whose VM is still to be made: no thread has ended, all indices but t's are free. */
void thread_fork_child(const struct thread *t);
/* True when tid is a live thread of this pVM. */
bool thread_is_ours(pid_t tid);
#endif
