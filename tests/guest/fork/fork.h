/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of fork.c share: waiting, and signals that are counted. */
#ifndef KX_GUEST_FORK_H
#define KX_GUEST_FORK_H
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../check.h"
#include "../children.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static volatile int *volatile nowhere = (int *)16;
static char dir[128];

static inline bool exited(int st, int code) { return WIFEXITED(st) && WEXITSTATUS(st) == code; }
static inline bool killed(int st, int sig) { return WIFSIGNALED(st) && WTERMSIG(st) == sig; }

static inline void *shared(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		abort();
	return p;
}

static inline double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Until *p is n, two minutes at most. */
static inline bool await(volatile int *p, int n)
{
	for (int i = 0; i < 120000 && __atomic_load_n(p, __ATOMIC_SEQ_CST) < n; i++)
		ms(1);
	return __atomic_load_n(p, __ATOMIC_SEQ_CST) >= n;
}

static volatile sig_atomic_t hits[65];
static siginfo_t last[65];
static volatile int queued[64], nr_queued;

static inline void count(int s, siginfo_t *info, void *uc)
{
	(void)uc;
	hits[s]++;
	last[s] = *info;
	if (info->si_code == SI_QUEUE && nr_queued < 64)
		queued[nr_queued++] = info->si_value.sival_int;
}

static inline void on(int s, int flags)
{
	struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO | flags };
	sigaction(s, &sa, NULL);
	hits[s] = 0;
}

static inline void off(int s) { signal(s, SIG_DFL); }

static inline void blocking(int how, int s)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, s);
	sigprocmask(how, &set, NULL);
}

static inline bool is_pending(int s)
{
	sigset_t set;
	sigpending(&set);
	return sigismember(&set, s);
}
#endif
