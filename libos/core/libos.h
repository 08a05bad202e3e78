/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the LibOS share. Freestanding: no libc, no writable data, no floating point. */
#ifndef KX_LIBOS_H
#define KX_LIBOS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../../abi/kx_abi.h"
#include "../../abi/kx_libfile.h"

#define KX_ENOENT 2
#define KX_ENOSYS 38
#define KX_EINTR 4
#define KX_EAGAIN 11
#define KX_ENOMEM 12
#define KX_EFAULT 14
#define KX_EINVAL 22
#define KX_ENOTTY 25
#define KX_EBUSY 16
#define KX_EPERM 1
#define KX_E2BIG 7
#define KX_ENOMSG 42

enum {
	HC_sig_next = 1024,
	HC_sigmask_sync,
	HC_sig_default,
	HC_trace,
	HC_sig_stack_fault,
	HC_seed,
	HC_pipe_wake = 1120,
	HC_ipc_owed,
	HC_futex_owed = 1140,
	HC_batch_flush = 1200,
	HC_serve_wait = 1220
};

#define SHARED ((struct kx_shared *)KX_BOOT_BASE)
#define ACTION(t, s) (((struct kx_sigaction *)(t)->actions)[s])

static inline struct kx_thread *current(void)
{
	struct kx_thread *t;
	__asm__("mov %%gs:0, %0" : "=r"(t));
	return t;
}

/* Make a hypercall. Returns its result; -KX_ERESTART and -KX_ERESTART_NOHAND are for libos_syscall(). */
int64_t hypercall(struct kx_thread *t, uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
		  uint64_t f);

/* The exit of one, in kx_thread.call. */
static inline void hypercall_exit(void)
{
	__asm__ volatile("out %%eax, %%dx" : : "a"(0), "d"(KX_PORT_HCALL) : "memory");
}
/* serve.c: kx_thread.call answered without an exit. False: nothing was done. */
bool serve_try(struct kx_thread *t, int64_t *ret);
/* A signal is blocked that the host, which does not know it yet, would ignore. */
bool serve_mask_lags(const struct kx_thread *t);
/* Pass a call on as it is. */
int64_t forward(struct kx_thread *t, struct kx_frame *f);

/* The program's memory: 0 or -KX_EFAULT. */
int uaccess_copy(void *dst, const void *src, size_t len);
int uaccess_load32(uint32_t *dst, const void *src);
int uaccess_xsave(void *area, uint64_t features);
int uaccess_xrstor(const void *area, uint64_t features);
int user_read(void *dst, uint64_t src, size_t len);
int user_write(uint64_t dst, const void *src, size_t len);
static inline bool user_ok(uint64_t p, size_t len)
{
	return p < KX_USER_END ? len <= KX_USER_END - p
			       : p >= KX_SPACE_SIZE && p < KX_HIGH_END && len <= KX_HIGH_END - p;
}

/* futex.c */
int64_t sys_futex(struct kx_thread *t, struct kx_frame *f);
int64_t sys_futex_waitv(struct kx_thread *t, struct kx_frame *f);
/* An exit begins, the first since this thread has woken somebody. */
void futex_hand_learn(struct kx_thread *t);
/* Before waiting without an exit for what others do: those whom this thread has woken may be the ones. */
static inline void futex_pay(struct kx_thread *t)
{
	if (t->hand.owed)
		hypercall(t, HC_futex_owed, 0, 0, 0, 0, 0, 0);
}

/* rseq.c */
int64_t sys_rseq(struct kx_thread *t, struct kx_frame *f);
/* The program is about to go on by *f elsewhere than it stood: abort the section it is in. */
void rseq_fixup(struct kx_thread *t, struct kx_frame *f);
/* KX_WORK_RSEQ: the fields as they are now, too. */
void rseq_work(struct kx_thread *t, struct kx_frame *f);

/* pipe.c: read, write and their brothers on a pipe or socket pair of the family's. False: the monitor's. */
bool pipe_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret);

/* ipc.c: semop, semtimedop, msgsnd, msgrcv, mq_timedsend, mq_timedreceive. */
int64_t ipc_call(struct kx_thread *t, struct kx_frame *f);

/* sigwait.c */
int64_t sys_kill(struct kx_thread *t, struct kx_frame *f);
int64_t sys_rt_sigtimedwait(struct kx_thread *t, struct kx_frame *f);

/* signal.c */
#define SIGBIT(n) (1ull << ((n)-1))
/* Deliver what is there. ret: result of the interrupted call, or 0. True when a handler's frame was made. */
bool signals_deliver(struct kx_thread *t, struct kx_frame *f, int64_t ret);
int64_t sys_rt_sigprocmask(struct kx_thread *t, struct kx_frame *f);
int64_t sys_rt_sigaction(struct kx_thread *t, struct kx_frame *f);
int64_t sys_sigaltstack(struct kx_thread *t, struct kx_frame *f);
/* Restores everything from the frame on the program's stack, rax included. */
void sys_rt_sigreturn(struct kx_thread *t, struct kx_frame *f);
/* Where to continue so that the program counts as being at rip (which may lie in a patched window). */
uint64_t site_resume(uint64_t rip);

/* libfile.c: what a dynamic linker does with a library that it has opened. False: somebody else's. */
bool libfile_call(struct kx_frame *f, int64_t *ret);
/* libstart.c: what is asked at a start. */
bool libstart_call(struct kx_thread *t, const struct kx_frame *f, int64_t *ret);
/* Before anything that others see, or by which news may come, without an exit: what was noted for the next exit is made, and
 * what the monitor has told of files and paths may be true no more. */
void libfile_flush_now(struct kx_thread *t);
static inline void libfile_flush(struct kx_thread *t)
{
	struct kx_libfile *l = (struct kx_libfile *)KX_LIBFILE_BASE;
	if (l->on & KX_LIBFILE_TOLD)
		__atomic_and_fetch(&l->on, ~KX_LIBFILE_TOLD, __ATOMIC_RELAXED);
	if (l->later_asked)
		libfile_flush_now(t);
}

/* openahead.c: files that the monitor has opened ahead. False: the monitor's. Only where there are batches. */
bool openahead_call(struct kx_frame *f, int64_t *ret);
/* That of them which the program has open as fd, and its number for records; NULL: fd is none. */
struct kx_openahead_file *openahead_file(uint64_t fd, int32_t *as);
/* What was told of files counts no more. */
void openahead_stale(void);

/* batch.c: this thread may learn of what the monitor did not know of at the last exit: as if it had made one. */
void batch_news(struct kx_thread *t, bool outside);
/* Before anything without an exit that could bring news, of another thread's or, if outside, of another process. */
static inline void before_news_of(struct kx_thread *t, bool outside)
{
	libfile_flush(t);
	if (SHARED->batch)
		batch_news(t, outside);
}
static inline void before_news(struct kx_thread *t) { before_news_of(t, true); }

/* batch.c: reads and writes of sockets that need no exit. False: the monitor must make the call. */
bool batch_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret);
/* Before something that other processes see without the monitor: what this thread has written comes first. */
void batch_flush(struct kx_thread *t);

/* recycle.c: memory that is taken and given back for each read. False: the monitor's. Only where there are batches. */
bool recycle_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret);

/* dgram.c: datagrams that need no exit. False: the monitor's. */
bool dgram_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret);
/* As batch_flush(), which calls it; and what was received ahead counts no more as all that there is. */
void dgram_flush(struct kx_thread *t);

_Noreturn void libos_panic(const char *msg);
#endif
