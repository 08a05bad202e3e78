/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of ipc.c share: lines of output, children, what sleeps in one. */
#ifndef KX_GUEST_IPC_H
#define KX_GUEST_IPC_H
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/select.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "../clock.h"
#include "../told.h"

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
	struct seminfo *info;
};

static void *volatile bad_address = (void *)8;
#define BAD bad_address

/* A function of the pthread kind returns its error. */
#define P(expr) \
	do { \
		int e_ = (expr); \
		printf("%s: %s\n", #expr, e_ ? strerrorname_np(e_) : "0"); \
		fflush(stdout); \
	} while (0)

static inline void ms(int n) { usleep(n * 1000); }

static inline struct timespec in_ms(clockid_t clock, int n)
{
	struct timespec ts;
	clock_gettime(clock, &ts);
	ts.tv_nsec += n % 1000 * 1000000L;
	ts.tv_sec += n / 1000 + ts.tv_nsec / 1000000000;
	ts.tv_nsec %= 1000000000;
	return ts;
}

static inline void *shared(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		exit(1);
	return p;
}

/* Whose turn it is to print: that of the child that is waited for. 1: of all children. */
static volatile pid_t *turn;
static inline void my_turn(void)
{
	while (*turn != getpid() && *turn != 1)
		ms(1);
}
/* In a child: the call may end at any time, but its line comes when the parent waits. */
#define LATE(what, call) \
	do { \
		errno = 0; \
		long r_ = (long)(call); \
		int e_ = errno; \
		my_turn(); \
		errno = e_; \
		line(what, r_); \
	} while (0)

/* The same, waited for: its status, or 1000 + signal. */
static inline long status_of(pid_t p)
{
	int st;
	*turn = p;
	if (waitpid(p, &st, 0) != p)
		exit(1);
	return WIFSIGNALED(st) ? 1000 + WTERMSIG(st) : WEXITSTATUS(st);
}
#define IN_CHILD(...) status_of(CHILD(__VA_ARGS__))
/* As somebody else, who has no privilege */
#define AS_NOBODY(...) \
	IN_CHILD(if (geteuid() == 0 && (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))) _exit(9); \
		 __VA_ARGS__)

static volatile sig_atomic_t got;
static siginfo_t got_info;
static inline void handler(int s, siginfo_t *i, void *u)
{
	(void)u;
	got = s;
	got_info = *i;
}
static inline void handle(int s, int flags)
{
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };
	sigaction(s, &sa, NULL);
	got = 0;
}

/* A child in a call that sleeps gets a signal with a handler, or dies, or sees its object go. */
#define SLEEPER(before, call, after) \
	do { \
		pid_t s_ = CHILD(before; LATE(#call, call)); \
		asleep(s_, s_); \
		after; \
		long st_ = status_of(s_); \
		if (st_) \
			line("its status", st_); \
	} while (0)
#endif
