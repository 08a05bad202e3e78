/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hypercalls without an exit. While a service thread of the monitor polls (`on`), a guest thread that has filled its
 * kx_thread.call names itself in `slot` and spins:
 *
 *   guest    slot: 0 -> REQUEST       (own index + 1, a new sequence number above)
 *   monitor  copies the call;         slot: REQUEST -> REQUEST | TAKEN
 *   monitor  performs it; ret;        slot: -> DONE, or EXIT: to be made by an exit, nothing has been done
 *   guest    takes ret;               slot: -> 0
 *
 * A request that nobody takes in take_ticks is withdrawn (REQUEST -> 0), and the guest exits. The sequence number keeps
 * a request from being taken for the one before it. There is one slot: whoever finds it in use exits.
 */
#ifndef KX_SERVE_H
#define KX_SERVE_H
#include "kx_abi.h"

/* Among the eight pages that software KVM maps at one fault; the LibOS reads all of them at each call. */
#define KX_SERVE_BASE (KX_BOOT_BASE + 0x4000)
#define KX_SLOT_INDEX 0xffffull
#define KX_SLOT_TAKEN (1ull << 16)
#define KX_SLOT_DONE (1ull << 17)
#define KX_SLOT_EXIT (1ull << 18)
#define KX_SLOT_SLEEPS (1ull << 19) /* the guest sleeps in the serve_wait hypercall until the slot changes */
#define KX_SLOT_FLAGS (KX_SLOT_TAKEN | KX_SLOT_DONE | KX_SLOT_EXIT | KX_SLOT_SLEEPS)
#define KX_SLOT_SEQ 32 /* first bit of the sequence number */

struct kx_serve {
	uint32_t on, seq;
	uint64_t slot;
	int64_t ret;
	uint64_t take_ticks, wait_ticks; /* of the TSC: until a request is withdrawn, until its answer is slept for */
	uint64_t plain;                  /* signals whose action the host performs; a lag of their mask needs an exit */
	uint64_t failed;                 /* requests withdrawn (statistics; approximate) */
};
_Static_assert(sizeof(struct kx_serve) <= 0x1000, "one page");
_Static_assert(sizeof(struct kx_shared) <= 0x4000, "does not reach it");

/* How a call is served; 0 = by an exit. None of these depends on the thread that makes it. */
#define KX_SERVE_PLAIN 1   /* its handler never sleeps */
#define KX_SERVE_DATA 2    /* read, write and vectors */
#define KX_SERVE_MSG 3     /* sockets: without sleep, or not at all */
#define KX_SERVE_READY 4   /* poll, epoll_wait: when something is ready */
#define KX_SERVE_CLOSE 5   /* of files, and of sockets that do not linger */
#define KX_SERVE_CHECKED 6 /* by its arguments: serve.c */
#define KX_SERVE_FILE 7    /* sendfile: from a file into a non-blocking socket */

#define KX_SERVE_CALLS 448
/* clang-format off */
#define KX_SERVED \
	[0] = KX_SERVE_DATA,      /* read */          [1] = KX_SERVE_DATA,      /* write */ \
	[2] = KX_SERVE_PLAIN,     /* open */          [3] = KX_SERVE_CLOSE,     /* close */ \
	[4] = KX_SERVE_PLAIN,     /* stat */          [5] = KX_SERVE_PLAIN,     /* fstat */ \
	[6] = KX_SERVE_PLAIN,     /* lstat */         [7] = KX_SERVE_READY,     /* poll */ \
	[8] = KX_SERVE_PLAIN,     /* lseek */         [9] = KX_SERVE_CHECKED,   /* mmap */ \
	[10] = KX_SERVE_CHECKED,  /* mprotect */      [11] = KX_SERVE_PLAIN,    /* munmap */ \
	[12] = KX_SERVE_PLAIN,    /* brk */           [16] = KX_SERVE_CHECKED,  /* ioctl */ \
	[17] = KX_SERVE_DATA,     /* pread64 */       [18] = KX_SERVE_DATA,   /* pwrite64 */ \
	[19] = KX_SERVE_DATA,     /* readv */         [20] = KX_SERVE_DATA,     /* writev */ \
	[21] = KX_SERVE_PLAIN,    /* access */        [28] = KX_SERVE_CHECKED,  /* madvise */ \
	[40] = KX_SERVE_FILE,     /* sendfile */      [41] = KX_SERVE_PLAIN,    /* socket */ \
	[42] = KX_SERVE_PLAIN,    /* connect */       [43] = KX_SERVE_PLAIN,    /* accept */ \
	[44] = KX_SERVE_MSG,      /* sendto */        [45] = KX_SERVE_MSG,      /* recvfrom */ \
	[46] = KX_SERVE_MSG,      /* sendmsg */       [47] = KX_SERVE_MSG,      /* recvmsg */ \
	[48] = KX_SERVE_PLAIN,    /* shutdown */ \
	[51] = KX_SERVE_PLAIN,    /* getsockname */   [52] = KX_SERVE_PLAIN,    /* getpeername */ \
	[54] = KX_SERVE_PLAIN,    /* setsockopt */    [55] = KX_SERVE_PLAIN,    /* getsockopt */ \
	[63] = KX_SERVE_PLAIN,    /* uname */         [72] = KX_SERVE_CHECKED,  /* fcntl */ \
	[79] = KX_SERVE_PLAIN,    /* getcwd */        [89] = KX_SERVE_PLAIN,    /* readlink */ \
	[98] = KX_SERVE_CHECKED,  /* getrusage */     [111] = KX_SERVE_PLAIN,   /* getpgrp */ \
	[121] = KX_SERVE_PLAIN,   /* getpgid */       [137] = KX_SERVE_PLAIN,   /* statfs */ \
	[138] = KX_SERVE_PLAIN,   /* fstatfs */       [202] = KX_SERVE_CHECKED, /* futex */ \
	[217] = KX_SERVE_PLAIN,   /* getdents64 */    [232] = KX_SERVE_READY,   /* epoll_wait */ \
	[233] = KX_SERVE_PLAIN,   /* epoll_ctl */     [257] = KX_SERVE_PLAIN,   /* openat */ \
	[262] = KX_SERVE_PLAIN,   /* newfstatat */    [267] = KX_SERVE_PLAIN,   /* readlinkat */ \
	[269] = KX_SERVE_PLAIN,   /* faccessat */     [281] = KX_SERVE_READY,   /* epoll_pwait */ \
	[286] = KX_SERVE_PLAIN,   /* timerfd_settime */ [287] = KX_SERVE_PLAIN, /* timerfd_gettime */ \
	[288] = KX_SERVE_PLAIN,   /* accept4 */       [299] = KX_SERVE_MSG,     /* recvmmsg */ \
	[307] = KX_SERVE_MSG,     /* sendmmsg */      [332] = KX_SERVE_PLAIN,   /* statx */ \
	[439] = KX_SERVE_PLAIN,   /* faccessat2 */
/* clang-format on */
#endif
