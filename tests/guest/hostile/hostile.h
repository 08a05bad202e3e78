/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of hostile.c share: the table of calls, randomness, failures, a hypercall. */
#ifndef KX_GUEST_HOSTILE_H
#define KX_GUEST_HOSTILE_H
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <mqueue.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../../../abi/kx_abi.h"
#include "../../../abi/kx_accept.h"
#include "../../../abi/kx_dgram.h"
#include "../../../abi/kx_recycle.h"
#include "../../../abi/kx_hcall.h"
#include "../../../abi/kx_ipc.h"
#include "../../../abi/kx_openahead.h"
#include "../../../abi/kx_pipe.h"

#define PAGE 4096ul
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define DIR "/tmp/hostile"
#define LEN(a) (sizeof(a) / sizeof(a)[0])

struct row {
	unsigned nr, flags;
	const char *name;
	struct kx_arg_desc arg[6];
};
static const struct row rows[] = {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) { nr, flags, #name, { a0, a1, a2, a3, a4, a5 } },
#include "../../../abi/hypercalls.def"
};

/*
 * Rows that may end, block or spoil the process that makes them, and why: made in a child, and in a new one after each
 * call that ended the child. How the child ended is its own affair; that it ends is ours. In addition, and for all:
 *   kill and kin    a signal other than 0 and SIGCONT goes only to the caller
 *   mmap            MAP_POPULATE and MAP_LOCKED only up to 64 MiB: the host's memory is not only ours
 *   fallocate       at most 1 MiB, for the same reason
 *   FD              never 0, 1, 2
 */
static const struct {
	const char *names, *why;
} in_child[] = {
	{ " exit exit_group sig_default sig_stack_fault ", "ends the caller" },
	{ " kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal ", "may end the caller" },
	{ " pause rt_sigsuspend rt_sigtimedwait futex ", "sleeps, with a signal mask that may hold back our alarm" },
	{ " alarm setitimer timer_create timer_settime mq_notify ",
	  "changes our alarm, or sends signals that end the caller" },
	{ " rt_sigaction rt_sigprocmask sigaltstack sigmask_sync sig_next ", "takes our alarm away" },
	{ " dup2 dup3 close close_range shutdown ", "closes what the test works with, standard streams included" },
	{ " chroot chdir fchdir umask ", "moves the working directory or changes what the test creates" },
	{ " setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset ",
	  "gives privileges up" },
	{ " setrlimit prlimit64 ", "lowers limits" },
	{ " setpgid setsid prctl personality sched_setaffinity setpriority ioprio_set ", "changes the process" },
	{ " sched_setparam sched_setscheduler sched_setattr ", "may starve the rest" },
	{ " execve execveat fork vfork clone clone3 ", "makes or replaces processes" },
	{ " mmap munmap mprotect pkey_mprotect mremap brk madvise mlock mlock2 mlockall shmat shmdt ",
	  "takes the test's own memory away" },
	{ " arch_prctl set_tid_address set_robust_list seed trace ", "spoils the caller's own thread state" },
};

static uint64_t rng_state = 1;
static inline uint64_t rnd(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state * 0x2545f4914f6cdd1dull;
}
static inline uint64_t below(uint64_t n) { return rnd() % n; }
static inline void rng_seed(uint64_t a, uint64_t b)
{
	rng_state = (a + 1) * 0x9e3779b97f4a7c15ull ^ (b + 1) * 0xd1342543de82ef95ull;
	for (int i = 0; i < 4; i++)
		rnd();
}

static int failures;
__attribute__((format(printf, 1, 2))) static inline void fail(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	printf("FAIL ");
	vprintf(fmt, ap);
	printf("\n");
	fflush(stdout);
	va_end(ap);
	failures++;
}
#endif
