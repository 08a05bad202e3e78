/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of sig.c share: its checks, masks, and a handler that notes what it was told. */
#ifndef KX_GUEST_SIG_H
#define KX_GUEST_SIG_H
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include "../asleep.h"

#define MS 1000000L
#define RTN(n) (SIGRTMIN + (n))

static int failures;

static inline bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

static inline pid_t gettid_(void) { return (pid_t)syscall(SYS_gettid); }
static inline int tgkill_(pid_t tid, int s) { return (int)syscall(SYS_tgkill, getpid(), tid, s); }

static inline void nap(long ns)
{
	struct timespec ts = { ns / 1000000000, ns % 1000000000 };
	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static inline sigset_t one(int s)
{
	sigset_t m;
	sigemptyset(&m);
	if (s)
		sigaddset(&m, s);
	return m;
}

static inline void block(int s)
{
	sigset_t m = one(s);
	pthread_sigmask(SIG_BLOCK, &m, NULL);
}

static inline void unblock(int s)
{
	sigset_t m = one(s);
	pthread_sigmask(SIG_UNBLOCK, &m, NULL);
}

static inline bool blocked(int s)
{
	sigset_t m;
	pthread_sigmask(SIG_BLOCK, NULL, &m);
	return sigismember(&m, s);
}

static inline bool pending(int s)
{
	sigset_t m;
	sigpending(&m);
	return sigismember(&m, s);
}

static inline void on(int s, void (*h)(int, siginfo_t *, void *), int flags)
{
	struct sigaction a = { .sa_sigaction = h, .sa_flags = SA_SIGINFO | flags };
	sigemptyset(&a.sa_mask);
	sigaction(s, &a, NULL);
}

static volatile int count, last_signo, last_code, last_value;
static volatile pid_t last_pid, last_tid;
static volatile uid_t last_uid;
static volatile uintptr_t last_sp;

static inline void note(int s, siginfo_t *i, void *u)
{
	(void)u;
	char here;
	uintptr_t sp = (uintptr_t)&here;
	last_signo = s == i->si_signo ? s : -1;
	last_code = i->si_code;
	last_pid = i->si_pid;
	last_uid = i->si_uid;
	last_value = i->si_value.sival_int;
	last_tid = gettid_();
	last_sp = sp;
	count++; /* last: another thread that sees it reads the rest */
}
#endif
