/* SPDX-License-Identifier: Apache-2.0 */
/* Signals as one program sees them from itself. Passes on any x86-64 Linux. */
#define _GNU_SOURCE
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

static bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

static pid_t gettid_(void) { return (pid_t)syscall(SYS_gettid); }
static int tgkill_(pid_t tid, int s) { return (int)syscall(SYS_tgkill, getpid(), tid, s); }

static void nap(long ns)
{
	struct timespec ts = { ns / 1000000000, ns % 1000000000 };
	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static sigset_t one(int s)
{
	sigset_t m;
	sigemptyset(&m);
	if (s)
		sigaddset(&m, s);
	return m;
}

static void block(int s)
{
	sigset_t m = one(s);
	pthread_sigmask(SIG_BLOCK, &m, NULL);
}

static void unblock(int s)
{
	sigset_t m = one(s);
	pthread_sigmask(SIG_UNBLOCK, &m, NULL);
}

static bool blocked(int s)
{
	sigset_t m;
	pthread_sigmask(SIG_BLOCK, NULL, &m);
	return sigismember(&m, s);
}

static bool pending(int s)
{
	sigset_t m;
	sigpending(&m);
	return sigismember(&m, s);
}

static void on(int s, void (*h)(int, siginfo_t *, void *), int flags)
{
	struct sigaction a = { .sa_sigaction = h, .sa_flags = SA_SIGINFO | flags };
	sigemptyset(&a.sa_mask);
	sigaction(s, &a, NULL);
}

/* ---- what a handler sees -------------------- */

static volatile int count, last_signo, last_code, last_value;
static volatile pid_t last_pid, last_tid;
static volatile uid_t last_uid;
static volatile uintptr_t last_sp;

static void note(int s, siginfo_t *i, void *u)
{
	(void)u;
	char here;
	uintptr_t sp = (uintptr_t)&here;
	count++;
	last_signo = s == i->si_signo ? s : -1;
	last_code = i->si_code;
	last_pid = i->si_pid;
	last_uid = i->si_uid;
	last_value = i->si_value.sival_int;
	last_tid = gettid_();
	last_sp = sp;
}

static void test_origin(void)
{
	on(SIGUSR1, note, 0);
	on(RTN(1), note, 0);
	count = 0;
	kill(getpid(), SIGUSR1);
	check(count == 1 && last_signo == SIGUSR1 && last_code == SI_USER && last_pid == getpid() &&
		      last_uid == getuid(),
	      "kill: SI_USER, pid, uid");
	tgkill_(gettid_(), SIGUSR1);
	check(count == 2 && last_code == SI_TKILL && last_pid == getpid(), "tgkill: SI_TKILL");
	union sigval v = { .sival_int = 12345 };
	sigqueue(getpid(), RTN(1), v);
	check(count == 3 && last_signo == RTN(1) && last_code == SI_QUEUE && last_value == 12345 &&
		      last_pid == getpid(),
	      "sigqueue: SI_QUEUE, value");
	pthread_sigqueue(pthread_self(), RTN(1), v);
	check(count == 4 && last_code == SI_QUEUE && last_value == 12345, "pthread_sigqueue");
	raise(SIGUSR1);
	check(count == 5 && last_code == SI_TKILL, "raise");
	check(kill(getpid(), 0) == 0, "kill with signal 0");
	check(kill(getpid(), 65) == -1 && errno == EINVAL, "kill with signal 65");
	check(tgkill_(gettid_(), -1) == -1 && errno == EINVAL, "tgkill with signal -1");
	check(tgkill_(0, SIGUSR1) == -1 && errno == EINVAL, "tgkill to thread 0");
	struct sigaction a = { .sa_handler = SIG_DFL };
	check(sigaction(SIGKILL, &a, NULL) == -1 && errno == EINVAL && sigaction(SIGSTOP, &a, NULL) == -1 &&
		      sigaction(0, &a, NULL) == -1 && sigaction(65, &a, NULL) == -1,
	      "sigaction: EINVAL");
	check(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4) == -1 && errno == EINVAL, "rt_sigaction: size");
	check(syscall(SYS_rt_sigaction, SIGUSR1, (void *)8, NULL, 8) == -1 && errno == EFAULT, "rt_sigaction: EFAULT");
	check(sigaction(SIGUSR1, NULL, &a) == 0 && a.sa_sigaction == note && (a.sa_flags & SA_SIGINFO), "old action");
	signal(SIGUSR2, SIG_IGN);
	kill(getpid(), SIGUSR2);
	check(sigaction(SIGUSR2, NULL, &a) == 0 && a.sa_handler == SIG_IGN, "ignored");
	signal(SIGUSR2, SIG_DFL);
	signal(SIGCHLD, SIG_DFL);
	kill(getpid(), SIGCHLD);
	kill(getpid(), SIGURG);
	kill(getpid(), SIGWINCH);
	kill(getpid(), SIGCONT);
	check(true, "default: ignored ones");
}

static volatile int depth, max_depth;

static void nest(int s, siginfo_t *i, void *u)
{
	(void)i;
	(void)u;
	if (++depth > max_depth)
		max_depth = depth;
	if (count++ < 3)
		raise(s);
	depth--;
}

static volatile bool in_mask[4];

static void look_mask(int s, siginfo_t *i, void *u)
{
	(void)i;
	ucontext_t *c = u;
	in_mask[0] = blocked(s);
	in_mask[1] = blocked(SIGUSR2);
	in_mask[2] = blocked(SIGTERM);
	in_mask[3] = sigismember(&c->uc_sigmask, SIGHUP) && !sigismember(&c->uc_sigmask, s);
	count++;
}

static void add_to_mask(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)i;
	ucontext_t *c = u;
	sigaddset(&c->uc_sigmask, SIGUSR2);
	block(SIGTERM); /* gone at return */
}

static void test_flags(void)
{
	count = max_depth = 0;
	on(SIGUSR1, nest, SA_NODEFER);
	raise(SIGUSR1);
	check(count == 4 && max_depth == 4, "SA_NODEFER");
	count = max_depth = 0;
	on(SIGUSR1, nest, 0);
	raise(SIGUSR1);
	check(count == 4 && max_depth == 1 && !blocked(SIGUSR1), "without SA_NODEFER");
	count = 0;
	struct sigaction a;
	on(SIGUSR1, note, SA_RESETHAND);
	raise(SIGUSR1);
	sigaction(SIGUSR1, NULL, &a);
	check(count == 1 && a.sa_handler == SIG_DFL, "SA_RESETHAND");
	a = (struct sigaction){ .sa_sigaction = look_mask, .sa_flags = SA_SIGINFO };
	a.sa_mask = one(SIGUSR2);
	sigaction(SIGUSR1, &a, NULL);
	block(SIGHUP);
	count = 0;
	raise(SIGUSR1);
	unblock(SIGHUP);
	check(count == 1 && in_mask[0] && in_mask[1] && !in_mask[2] && in_mask[3], "sa_mask in the handler");
	check(!blocked(SIGUSR1) && !blocked(SIGUSR2), "mask after the handler");
	on(SIGUSR1, add_to_mask, 0);
	raise(SIGUSR1);
	check(blocked(SIGUSR2) && !blocked(SIGTERM), "mask changed through ucontext");
	unblock(SIGUSR2);
	sigset_t all, got;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	pthread_sigmask(SIG_SETMASK, NULL, &got);
	check(!sigismember(&got, SIGKILL) && !sigismember(&got, SIGSTOP) && sigismember(&got, SIGHUP),
	      "SIGKILL and SIGSTOP can't be blocked");
	sigemptyset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	check(syscall(SYS_rt_sigprocmask, 7, &all, NULL, 8) == -1 && errno == EINVAL, "rt_sigprocmask: how");
	check(syscall(SYS_rt_sigprocmask, 0, (void *)8, NULL, 8) == -1 && errno == EFAULT, "rt_sigprocmask: EFAULT");
	check(syscall(SYS_rt_sigprocmask, 0, &all, NULL, 16) == -1 && errno == EINVAL, "rt_sigprocmask: size");
}

/* ---- alternate stacks -------------------- */

static char alt[65536] __attribute__((aligned(64))), alt2[65536] __attribute__((aligned(64)));
static volatile int ss_in_handler, err_in_handler;
static volatile bool on_alt[2];

static bool within(uintptr_t p, const char *area) { return p - (uintptr_t)area < 65536; }

static void alt_nested(int s, siginfo_t *i, void *u)
{
	note(s, i, u);
	on_alt[1] = within(last_sp, alt);
}

static void alt_handler(int s, siginfo_t *i, void *u)
{
	stack_t ss, new = { .ss_sp = alt2, .ss_size = sizeof alt2 };
	note(s, i, u);
	on_alt[0] = within(last_sp, alt);
	sigaltstack(NULL, &ss);
	ss_in_handler = ss.ss_flags;
	err_in_handler = sigaltstack(&new, NULL) ? errno : 0;
	raise(SIGUSR2);
}

static volatile stack_t uc_stack;

static void autodisarm_handler(int s, siginfo_t *i, void *u)
{
	ucontext_t *c = u;
	stack_t ss, new = { .ss_sp = alt2, .ss_size = sizeof alt2 };
	note(s, i, u);
	on_alt[0] = within(last_sp, alt);
	sigaltstack(NULL, &ss);
	ss_in_handler = ss.ss_flags;
	uc_stack = c->uc_stack;
	err_in_handler = sigaltstack(&new, NULL) ? errno : 0;
	raise(SIGUSR2); /* now on alt2 */
}

static void alt2_handler(int s, siginfo_t *i, void *u)
{
	note(s, i, u);
	on_alt[1] = within(last_sp, alt2);
}

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

static void test_altstack(void)
{
	stack_t ss = { .ss_sp = alt, .ss_size = sizeof alt }, old;
	sigaltstack(NULL, &old);
	check(old.ss_flags == SS_DISABLE, "no alternate stack at first");
	check(sigaltstack(&ss, NULL) == 0, "sigaltstack");
	on(SIGUSR1, alt_handler, SA_ONSTACK);
	on(SIGUSR2, alt_nested, SA_ONSTACK);
	count = 0;
	raise(SIGUSR1);
	check(count == 2 && on_alt[0] && on_alt[1] && ss_in_handler == SS_ONSTACK && err_in_handler == EPERM,
	      "on the alternate stack, nested, EPERM");
	sigaltstack(NULL, &old);
	check(old.ss_flags == 0 && old.ss_sp == alt && old.ss_size == sizeof alt, "still there");
	on(SIGUSR1, note, 0);
	raise(SIGUSR1);
	check(!within(last_sp, alt), "not without SA_ONSTACK");
	ss.ss_flags = SS_AUTODISARM;
	if (sigaltstack(&ss, NULL) == 0) {
		on(SIGUSR1, autodisarm_handler, SA_ONSTACK);
		on(SIGUSR2, alt2_handler, SA_ONSTACK);
		on_alt[0] = on_alt[1] = false;
		raise(SIGUSR1);
		check(on_alt[0] && on_alt[1] && (ss_in_handler & SS_DISABLE) && err_in_handler == 0,
		      "SS_AUTODISARM: disarmed, another set, used");
		check(uc_stack.ss_sp == alt && uc_stack.ss_size == sizeof alt &&
			      ((unsigned)uc_stack.ss_flags & SS_AUTODISARM),
		      "SS_AUTODISARM: uc_stack");
		sigaltstack(NULL, &old);
		check(old.ss_sp == alt && ((unsigned)old.ss_flags & SS_AUTODISARM),
		      "SS_AUTODISARM: armed again at return");
	}
	ss = (stack_t){ .ss_sp = alt, .ss_size = 1000 };
	check(sigaltstack(&ss, NULL) == -1 && errno == ENOMEM, "too small: ENOMEM");
	ss = (stack_t){ .ss_sp = alt, .ss_size = sizeof alt, .ss_flags = 77 };
	check(sigaltstack(&ss, NULL) == -1 && errno == EINVAL, "bad flags: EINVAL");
	ss = (stack_t){ .ss_flags = SS_DISABLE };
	check(sigaltstack(&ss, NULL) == 0 && sigaltstack(NULL, &old) == 0 && old.ss_flags == SS_DISABLE, "SS_DISABLE");
	on(SIGUSR1, note, SA_ONSTACK);
	raise(SIGUSR1);
	check(!within(last_sp, alt), "SA_ONSTACK without a stack");
}

/* ---- pending and queued -------------------- */

static int got[512];
static volatile int nr_got;

static void collect(int s, siginfo_t *i, void *u)
{
	(void)u;
	if (nr_got < 512)
		got[nr_got++] = s * 1000 + i->si_value.sival_int;
}

static void test_queue(void)
{
	on(SIGUSR1, note, 0);
	block(SIGUSR1);
	count = 0;
	check(!pending(SIGUSR1), "not pending");
	for (int i = 0; i < 5; i++)
		kill(getpid(), SIGUSR1);
	check(pending(SIGUSR1) && count == 0, "pending while blocked");
	unblock(SIGUSR1);
	check(count == 1 && !pending(SIGUSR1), "a standard signal is not queued");
	block(SIGUSR1);
	kill(getpid(), SIGUSR1);
	tgkill_(gettid_(), SIGUSR1);
	unblock(SIGUSR1);
	check(count == 3, "process and thread each hold one");

	for (int s = 0; s < 3; s++) {
		on(RTN(s), collect, 0);
		block(RTN(s));
	}
	bool ok = true;
	nr_got = 0;
	for (int i = 0; i < 120; i++) {
		union sigval v = { .sival_int = i };
		ok &= sigqueue(getpid(), RTN(i % 3), v) == 0;
	}
	check(ok && pending(RTN(0)) && pending(RTN(2)) && nr_got == 0, "120 real-time signals queued");
	for (int s = 0; s < 3; s++) /* the handlers block nothing more than their own */
		unblock(RTN(s));
	bool order = nr_got == 120;
	for (int s = 0; s < 3 && order; s++)
		for (int i = 0; i < 40; i++)
			order &= got[s * 40 + i] == RTN(s) * 1000 + i * 3 + s;
	check(order, "delivered in order with their values");

	/* All at once: the handler of the lowest runs first to its end when the mask holds the others. */
	sigset_t set = one(0);
	nr_got = 0;
	for (int s = 0; s < 3; s++) {
		struct sigaction a = { .sa_sigaction = collect, .sa_flags = SA_SIGINFO };
		sigfillset(&a.sa_mask);
		sigaction(RTN(s), &a, NULL);
		sigaddset(&set, RTN(s));
	}
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < 99; i++) {
		union sigval v = { .sival_int = i };
		ok &= sigqueue(getpid(), RTN(2 - i % 3), v) == 0;
	}
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	order = nr_got == 99;
	for (int s = 0; s < 3 && order; s++)
		for (int i = 0; i < 33; i++)
			order &= got[s * 33 + i] == RTN(s) * 1000 + i * 3 + 2 - s;
	check(order, "lowest number first, each in order");
	/* Ignoring throws pending ones away. */
	block(SIGUSR1);
	raise(SIGUSR1);
	signal(SIGUSR1, SIG_IGN);
	check(!pending(SIGUSR1), "SIG_IGN discards what is pending");
	on(SIGUSR1, note, 0);
	unblock(SIGUSR1);
}

/* ---- waiting for signals -------------------- */

static void test_wait(void)
{
	sigset_t empty = one(0), set = one(SIGUSR1);
	siginfo_t info;
	struct timespec ts = { 0, 20 * MS }, zero = { 0, 0 };
	on(SIGUSR1, note, 0);
	block(SIGUSR1);
	count = 0;
	kill(getpid(), SIGUSR1);
	check(sigsuspend(&empty) == -1 && errno == EINTR && count == 1 && blocked(SIGUSR1), "sigsuspend, pending");
	timer_t tm;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 99 };
	struct itimerspec its = { .it_value = { 0, 20 * MS } };
	timer_create(CLOCK_MONOTONIC, &ev, &tm);
	timer_settime(tm, 0, &its, NULL);
	check(sigsuspend(&empty) == -1 && errno == EINTR && count == 2 && last_code == SI_TIMER && last_value == 99 &&
		      blocked(SIGUSR1),
	      "sigsuspend, by a timer: SI_TIMER, value");
	int s;
	kill(getpid(), SIGUSR1);
	check(sigwait(&set, &s) == 0 && s == SIGUSR1 && count == 2 && !pending(SIGUSR1), "sigwait");
	check(sigtimedwait(&set, &info, &ts) == -1 && errno == EAGAIN, "sigtimedwait: timeout");
	check(sigtimedwait(&set, &info, &zero) == -1 && errno == EAGAIN, "sigtimedwait: poll");
	timer_settime(tm, 0, &its, NULL);
	ts.tv_sec = 5;
	check(sigtimedwait(&set, &info, &ts) == SIGUSR1 && info.si_code == SI_TIMER && info.si_value.sival_int == 99 &&
		      count == 2,
	      "sigtimedwait: by a timer");
	union sigval v = { .sival_int = 4711 };
	set = one(RTN(1));
	block(RTN(1));
	sigqueue(getpid(), RTN(1), v);
	v.sival_int++;
	sigqueue(getpid(), RTN(1), v);
	check(sigwaitinfo(&set, &info) == RTN(1) && info.si_value.sival_int == 4711 && info.si_code == SI_QUEUE &&
		      sigwaitinfo(&set, &info) == RTN(1) && info.si_value.sival_int == 4712,
	      "sigwaitinfo: two in order");
	/* Another signal's handler interrupts. */
	on(SIGALRM, note, SA_RESTART);
	struct itimerval it = { { 0, 20000 }, { 0, 20000 } }, off = { 0 };
	setitimer(ITIMER_REAL, &it, NULL);
	check(sigwaitinfo(&set, &info) == -1 && errno == EINTR && last_signo == SIGALRM && last_code == SI_KERNEL,
	      "sigwaitinfo: EINTR");
	check(pause() == -1 && errno == EINTR, "pause");
	setitimer(ITIMER_REAL, &off, NULL);
	/* signalfd */
	set = one(SIGUSR1);
	sigaddset(&set, RTN(1));
	int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	struct signalfd_siginfo si[4];
	check(fd >= 0 && read(fd, si, sizeof si) == -1 && errno == EAGAIN, "signalfd: EAGAIN");
	v.sival_int = 5;
	sigqueue(getpid(), RTN(1), v);
	kill(getpid(), SIGUSR1);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	check(poll(&p, 1, 1000) == 1 && p.revents == POLLIN, "signalfd: poll");
	check(read(fd, si, sizeof si) == 2 * sizeof si[0] && (int)si[0].ssi_signo == SIGUSR1 &&
		      si[0].ssi_code == SI_USER && (pid_t)si[0].ssi_pid == getpid() && (int)si[1].ssi_signo == RTN(1) &&
		      si[1].ssi_int == 5,
	      "signalfd: read two");
	fcntl(fd, F_SETFL, 0);
	timer_settime(tm, 0, &its, NULL);
	check(read(fd, si, sizeof si) == sizeof si[0] && si[0].ssi_code == SI_TIMER, "signalfd: blocking read");
	close(fd);
	timer_delete(tm);
	/* ppoll, pselect, epoll_pwait with a mask */
	count = 0;
	kill(getpid(), SIGUSR1);
	ts.tv_sec = 2;
	check(ppoll(NULL, 0, &ts, &empty) == -1 && errno == EINTR && count == 1 && blocked(SIGUSR1), "ppoll's mask");
	kill(getpid(), SIGUSR1);
	check(pselect(0, NULL, NULL, NULL, &ts, &empty) == -1 && errno == EINTR && count == 2 && blocked(SIGUSR1),
	      "pselect's mask");
	int ep = epoll_create1(0);
	struct epoll_event ee;
	kill(getpid(), SIGUSR1);
	check(epoll_pwait(ep, &ee, 1, 2000, &empty) == -1 && errno == EINTR && count == 3 && blocked(SIGUSR1),
	      "epoll_pwait's mask");
	kill(getpid(), SIGUSR1);
	set = one(SIGUSR1);
	check(epoll_pwait(ep, &ee, 1, 10, &set) == 0 && count == 3, "epoll_pwait's mask holds");
	check(ppoll(NULL, 0, &zero, &set) == 0 && count == 3 && pending(SIGUSR1), "ppoll's mask holds");
	close(ep);
	unblock(SIGUSR1);
	check(count == 4, "and then it comes");
	unblock(RTN(1));
}

/* ---- interrupted calls -------------------- */

static int pipefd[2], listener, pair_[2], epfd;
static sem_t sem;
static uint32_t word;
static pthread_t main_thread;

/* A second thread sends one signal and then, a little later, ends the wait. */
enum {
	C_READ,
	C_NANOSLEEP,
	C_POLL,
	C_EPOLL,
	C_FUTEX,
	C_FUTEX_TIMED,
	C_ACCEPT,
	C_RECV,
	C_RECV_TIMEO,
	C_SEM,
	C_SEM_TIMED,
	C_SELECT,
	C_CLOCK_NANOSLEEP,
	C_MAX
};

static const struct {
	const char *name;
	int plain, restart; /* errno, 0 = completes */
} table[C_MAX] = {
	[C_READ] = { "read", EINTR, 0 },
	[C_NANOSLEEP] = { "nanosleep", EINTR, EINTR },
	[C_POLL] = { "poll", EINTR, EINTR },
	[C_EPOLL] = { "epoll_wait", EINTR, EINTR },
	[C_FUTEX] = { "futex", EINTR, 0 },
	[C_FUTEX_TIMED] = { "futex with timeout", EINTR, EINTR },
	[C_ACCEPT] = { "accept", EINTR, 0 },
	[C_RECV] = { "recv", EINTR, 0 },
	[C_RECV_TIMEO] = { "recv with SO_RCVTIMEO", EINTR, EINTR },
	[C_SEM] = { "sem_wait", EINTR, 0 },
	[C_SEM_TIMED] = { "sem_timedwait", EINTR, -1 },
	[C_SELECT] = { "select", EINTR, EINTR },
	[C_CLOCK_NANOSLEEP] = { "clock_nanosleep", EINTR, EINTR },
};

#define WAIT 100 /* seconds, which nobody waits */

static int wait_call(int k)
{
	char c;
	struct timespec ts = { WAIT, 0 }, rem;
	struct timeval tv = { WAIT, 0 };
	struct pollfd p = { .fd = pipefd[0], .events = POLLIN };
	struct epoll_event ee;
	switch (k) {
	case C_READ:
		return read(pipefd[0], &c, 1) == 1 ? 0 : errno;
	case C_NANOSLEEP:
		return nanosleep(&ts, &rem) == 0 ? 0 : rem.tv_sec < WAIT ? errno : 999;
	case C_POLL:
		return poll(&p, 1, WAIT * 1000) >= 0 ? 0 : errno;
	case C_EPOLL:
		return epoll_wait(epfd, &ee, 1, WAIT * 1000) >= 0 ? 0 : errno;
	case C_FUTEX:
		return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) == 0 || errno == EAGAIN ? 0
													       : errno;
	case C_FUTEX_TIMED:
		return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0) == 0 || errno == EAGAIN ? 0
													      : errno;
	case C_ACCEPT: {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			return errno;
		close(fd);
		return 0;
	}
	case C_RECV:
	case C_RECV_TIMEO:
		return recv(pair_[0], &c, 1, 0) == 1 ? 0 : errno;
	case C_SEM:
		return sem_wait(&sem) == 0 ? 0 : errno;
	case C_SEM_TIMED: {
		clock_gettime(CLOCK_REALTIME, &ts);
		ts.tv_sec += WAIT;
		return sem_timedwait(&sem, &ts) == 0 ? 0 : errno;
	}
	case C_SELECT: {
		fd_set f;
		FD_ZERO(&f);
		FD_SET(pipefd[0], &f);
		return select(pipefd[0] + 1, &f, NULL, NULL, &tv) >= 0 ? 0 : errno;
	}
	case C_CLOCK_NANOSLEEP:
		return clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, &rem);
	}
	return -1;
}

static struct sockaddr_un addr;
static socklen_t addr_len;

static void wake_call(int k)
{
	switch (k) {
	case C_READ:
	case C_POLL:
	case C_EPOLL:
	case C_SELECT:
		if (write(pipefd[1], "x", 1) != 1)
			failures++;
		break;
	case C_FUTEX:
	case C_FUTEX_TIMED:
		__atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		break;
	case C_ACCEPT: {
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(fd, (void *)&addr, addr_len))
			failures++;
		close(fd);
		break;
	}
	case C_RECV:
	case C_RECV_TIMEO:
		if (send(pair_[1], "x", 1, 0) != 1)
			failures++;
		break;
	case C_SEM:
	case C_SEM_TIMED:
		sem_post(&sem);
		break;
	}
}

static volatile int current_call;

static void *poker(void *arg)
{
	(void)arg;
	asleep(getpid(), getpid());
	pthread_kill(main_thread, SIGUSR1);
	nap(15 * MS);
	wake_call(current_call);
	return NULL;
}

static void drain(int k)
{
	char c;
	int f = 0;
	switch (k) {
	case C_READ:
	case C_POLL:
	case C_EPOLL:
	case C_SELECT:
		f = read(pipefd[0], &c, 1) == 1;
		break;
	case C_ACCEPT:
		f = accept(listener, NULL, NULL);
		close(f);
		break;
	case C_RECV:
	case C_RECV_TIMEO:
		f = recv(pair_[0], &c, 1, 0) == 1;
		break;
	case C_SEM:
	case C_SEM_TIMED:
		f = sem_wait(&sem) == 0;
		break;
	}
	(void)f;
	word = 0;
}

static void test_eintr(void)
{
	main_thread = pthread_self();
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	addr.sun_family = AF_UNIX;
	snprintf(addr.sun_path + 1, sizeof addr.sun_path - 1, "kx-sig-test-%d", getpid());
	addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(addr.sun_path + 1));
	epfd = epoll_create1(0);
	if (pipe(pipefd) || bind(listener, (void *)&addr, addr_len) || listen(listener, 5) ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, pair_) || sem_init(&sem, 0, 0)) {
		check(false, "things to wait for");
		return;
	}
	struct epoll_event ee = { .events = EPOLLIN };
	epoll_ctl(epfd, EPOLL_CTL_ADD, pipefd[0], &ee);
	for (int restart = 0; restart < 2; restart++)
		for (int k = 0; k < C_MAX; k++) {
			pthread_t t;
			char name[80];
			struct timeval tv = { k == C_RECV_TIMEO ? WAIT : 0, 0 };
			int want = restart ? table[k].restart : table[k].plain;
			setsockopt(pair_[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
			on(SIGUSR1, note, restart ? SA_RESTART : 0);
			count = 0;
			current_call = k;
			pthread_create(&t, NULL, poker, NULL);
			int r = wait_call(k);
			pthread_join(t, NULL);
			if (r != 0)
				drain(k);
			word = 0;
			snprintf(name, sizeof name, "%s %s", table[k].name,
				 restart ? "with SA_RESTART" : "without SA_RESTART");
			bool ok = count == 1 && (want == -1 ? r == 0 || r == EINTR : r == want);
			if (!ok)
				printf("  %s: errno %d, not %d; %d handlers\n", name, r, want, count);
			check(ok, name);
		}
	/* An ignored signal interrupts nothing, a blocked one neither. */
	signal(SIGUSR1, SIG_IGN);
	pthread_t t;
	current_call = C_POLL;
	pthread_create(&t, NULL, poker, NULL);
	int r = wait_call(C_POLL);
	pthread_join(t, NULL);
	drain(C_POLL);
	check(r == 0, "an ignored signal interrupts nothing");
	on(SIGUSR1, note, 0);
	block(SIGUSR1);
	count = 0;
	pthread_create(&t, NULL, poker, NULL);
	r = wait_call(C_POLL);
	pthread_join(t, NULL);
	drain(C_POLL);
	check(r == 0 && count == 0, "a blocked signal interrupts nothing");
	unblock(SIGUSR1);
	check(count == 1, "and comes when unblocked");
}

/* ---- timers -------------------- */

static volatile int thread_fired;
static void timer_thread(union sigval v) { thread_fired += v.sival_int; }

static void burn(void)
{
	for (int i = 0; i < 200000; i++)
		__asm__ volatile("");
}

static void test_timers(void)
{
	struct itimerval it = { .it_value = { 0, 10000 }, .it_interval = { 0, 5000 } }, off = { 0 }, cur;
	static const struct {
		int which, signo;
		const char *name;
	} kinds[] = { { ITIMER_REAL, SIGALRM, "ITIMER_REAL" },
		      { ITIMER_VIRTUAL, SIGVTALRM, "ITIMER_VIRTUAL" },
		      { ITIMER_PROF, SIGPROF, "ITIMER_PROF" } };
	for (int k = 0; k < 3; k++) {
		on(kinds[k].signo, note, SA_RESTART);
		count = 0;
		bool ok = setitimer(kinds[k].which, &it, NULL) == 0;
		for (int i = 0; i < 20000 && count < 3; i++)
			burn();
		ok &= getitimer(kinds[k].which, &cur) == 0 && cur.it_interval.tv_usec >= 1000;
		setitimer(kinds[k].which, &off, NULL);
		check(ok && count >= 3 && last_signo == kinds[k].signo && last_code == SI_KERNEL, kinds[k].name);
	}
	sigset_t all_but;
	sigprocmask(0, NULL, &all_but);
	sigdelset(&all_but, SIGALRM);
	count = 0;
	block(SIGALRM);
	ualarm(10000, 0);
	sigsuspend(&all_but);
	unblock(SIGALRM);
	check(count == 1, "alarm");
	alarm(1000);
	check(alarm(0) > 800, "alarm: what was left");
	timer_t t;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = RTN(3), .sigev_value.sival_int = 31 };
	struct itimerspec its = { .it_value = { 0, 5 * MS }, .it_interval = { 0, 5 * MS } }, none = { 0 };
	on(RTN(3), note, SA_RESTART);
	count = 0;
	timer_create(CLOCK_REALTIME, &ev, &t);
	timer_settime(t, 0, &its, NULL);
	while (count < 3)
		nap(2 * MS);
	check(last_code == SI_TIMER && last_value == 31 && last_signo == RTN(3), "timer, SIGEV_SIGNAL, periodic");
	timer_delete(t);
	ev = (struct sigevent){ .sigev_notify = SIGEV_THREAD,
				.sigev_value.sival_int = 1,
				.sigev_notify_function = timer_thread };
	timer_create(CLOCK_MONOTONIC, &ev, &t);
	timer_settime(t, 0, &its, NULL);
	for (int i = 0; i < 12000 && thread_fired < 2; i++)
		nap(5 * MS);
	timer_settime(t, 0, &none, NULL);
	timer_delete(t);
	check(thread_fired >= 2, "timer, SIGEV_THREAD");
	nap(10 * MS);
	ev = (struct sigevent){ .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = RTN(3), .sigev_value.sival_int = 32 };
	ev._sigev_un._tid = gettid_();
	its.it_interval = (struct timespec){ 0, 0 };
	count = 0;
	bool ok = timer_create(CLOCK_MONOTONIC, &ev, &t) == 0 && timer_settime(t, 0, &its, NULL) == 0;
	while (ok && count < 1)
		nap(2 * MS);
	check(ok && last_value == 32 && last_tid == gettid_() && last_code == SI_TIMER, "timer, SIGEV_THREAD_ID");
	timer_delete(t);
	/* Overruns. */
	block(RTN(3));
	ev = (struct sigevent){ .sigev_notify = SIGEV_SIGNAL, .sigev_signo = RTN(3) };
	timer_create(CLOCK_MONOTONIC, &ev, &t);
	its = (struct itimerspec){ .it_value = { 0, MS }, .it_interval = { 0, MS } };
	timer_settime(t, 0, &its, NULL);
	nap(30 * MS);
	siginfo_t info;
	sigset_t set = one(RTN(3));
	check(sigwaitinfo(&set, &info) == RTN(3) && info.si_overrun >= 10 && timer_getoverrun(t) >= 10,
	      "timer: overruns");
	timer_delete(t);
	unblock(RTN(3));
	/* SIGPIPE */
	on(SIGPIPE, note, 0);
	int p[2];
	count = 0;
	ok = pipe(p) == 0;
	close(p[0]);
	check(ok && write(p[1], "x", 1) == -1 && errno == EPIPE && count == 1 && last_signo == SIGPIPE,
	      "SIGPIPE of a pipe");
	close(p[1]);
	ok = socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0;
	close(p[0]);
	check(ok && send(p[1], "x", 1, 0) == -1 && errno == EPIPE && count == 2, "SIGPIPE of a socket");
	check(send(p[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE && count == 2, "MSG_NOSIGNAL");
	close(p[1]);
	signal(SIGPIPE, SIG_DFL);
}

/* ---- jumps and contexts -------------------- */

static sigjmp_buf env;
static void jumper(int s) { siglongjmp(env, s); }

static ucontext_t uc_main, uc_a, uc_b;
static char stack_a[65536], stack_b[65536];
static volatile int steps;

static void co_a(void)
{
	steps = steps * 10 + 1;
	swapcontext(&uc_a, &uc_b);
	steps = steps * 10 + 3;
}

static void co_b(int x)
{
	steps = steps * 10 + x;
	swapcontext(&uc_b, &uc_a);
	steps = 0; /* never */
}

static void test_jumps(void)
{
	volatile int n = 0;
	signal(SIGUSR1, jumper);
	for (volatile int i = 0; i < 100; i++)
		if (sigsetjmp(env, 1) == 0)
			raise(SIGUSR1);
		else
			n++;
	check(n == 100 && !blocked(SIGUSR1), "siglongjmp out of a handler, 100 times");
	if (sigsetjmp(env, 0) == 0)
		raise(SIGUSR1);
	check(blocked(SIGUSR1), "without the mask");
	unblock(SIGUSR1);
	/* Out of a sleep. */
	signal(SIGALRM, jumper);
	struct itimerval it = { .it_value = { 0, 10000 } };
	n = 0;
	if (sigsetjmp(env, 1) == 0) {
		setitimer(ITIMER_REAL, &it, NULL);
		for (;;)
			pause();
	} else {
		n = 1;
	}
	check(n == 1 && !blocked(SIGALRM), "siglongjmp out of pause");
	getcontext(&uc_a);
	uc_a.uc_stack.ss_sp = stack_a;
	uc_a.uc_stack.ss_size = sizeof stack_a;
	uc_a.uc_link = &uc_main;
	makecontext(&uc_a, co_a, 0);
	getcontext(&uc_b);
	uc_b.uc_stack.ss_sp = stack_b;
	uc_b.uc_stack.ss_size = sizeof stack_b;
	uc_b.uc_link = NULL;
	makecontext(&uc_b, (void (*)(void))co_b, 1, 2);
	swapcontext(&uc_main, &uc_a);
	check(steps == 123, "makecontext, swapcontext");
	n = 0;
	getcontext(&uc_main);
	if (n++ < 3)
		setcontext(&uc_main);
	check(n == 4, "getcontext, setcontext");
}

extern char bad_insn[], good_insn[];
static volatile long seen_regs[16];

static void fix_rip(int s, siginfo_t *i, void *u)
{
	(void)s;
	ucontext_t *c = u;
	greg_t *g = c->uc_mcontext.gregs;
	static const int order[] = { REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RBP, REG_R8,
				     REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
	for (int k = 0; k < 14; k++)
		seen_regs[k] = g[order[k]];
	seen_regs[14] = g[REG_RIP] == (greg_t)bad_insn && i->si_addr == (void *)bad_insn;
	seen_regs[15] = g[REG_EFL];
	g[REG_RIP] = (greg_t)good_insn;
	g[REG_RAX] = 4242;
	g[REG_R15] = 77;
	g[REG_EFL] = (g[REG_EFL] & ~0x8d5) | 0x41;
	/* And the vector state: xmm5 through the frame. */
	c->uc_mcontext.fpregs->_xmm[5].element[0] = 0xabcd1234;
}

static void test_ucontext(void)
{
	long rax, flags;
	uint32_t x;
	on(SIGILL, fix_rip, 0);
	__asm__ volatile(
		"push %%rbp\n"
		"mov $1, %%ebx\n mov $2, %%ecx\n mov $3, %%edx\n mov $4, %%esi\n mov $5, %%edi\n mov $6, %%ebp\n"
		"mov $7, %%r8\n mov $8, %%r9\n mov $9, %%r10\n mov $10, %%r11\n mov $11, %%r12\n mov $12, %%r13\n"
		"mov $13, %%r14\n mov $14, %%r15\n xorps %%xmm5, %%xmm5\n"
		"cmp %%eax, %%eax\n"
		".globl bad_insn, good_insn\nbad_insn: ud2\n ud2\n ud2\n"
		"good_insn: pushfq\n pop %%rdx\n pop %%rbp\n movd %%xmm5, %%ecx"
		: "=a"(rax), "=d"(flags), "=c"(x)
		:
		: "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm5", "memory", "cc");
	bool ok = true;
	for (int k = 0; k < 14; k++)
		ok &= seen_regs[k] == k + 1;
	check(ok, "gregs as they were");
	check(seen_regs[14] && (seen_regs[15] & 0x8d5) == 0x44, "RIP, si_addr, flags");
	check(rax == 4242, "RIP and RAX changed by the handler");
	check((flags & 0x8d5) == 0x41, "flags changed by the handler");
	check(x == 0xabcd1234, "xmm5 changed by the handler");
	signal(SIGILL, SIG_DFL);
}

/* ---- threads -------------------- */

static volatile bool go_on, ready;
static volatile pid_t thread_tid;

static void *blocker(void *arg)
{
	(void)arg;
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	thread_tid = gettid_();
	ready = true;
	while (!go_on)
		nap(MS);
	return NULL;
}

static void *open_thread(void *arg)
{
	(void)arg;
	unblock(SIGUSR1);
	thread_tid = gettid_();
	ready = true;
	while (!go_on)
		nap(MS);
	return NULL;
}

static void *spinner(void *arg)
{
	(void)arg;
	thread_tid = gettid_();
	ready = true;
	while (!__atomic_load_n(&go_on, __ATOMIC_RELAXED))
		__asm__ volatile("pause");
	return NULL;
}

static void run_thread(pthread_t *t, void *(*f)(void *))
{
	go_on = ready = false;
	pthread_create(t, NULL, f, NULL);
	while (!ready)
		sched_yield();
}

static bool wait_count(int n)
{
	for (int i = 0; i < 2000 && count < n; i++)
		nap(MS);
	return count == n;
}

static void *blocked_spinner(void *arg)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	return spinner(arg);
}

/* Before there are handlers of other signals. */
static void test_directed(void)
{
	pthread_t t;
	union sigval v = { .sival_int = 1 };
	on(SIGUSR1, note, 0);
	count = 0;
	run_thread(&t, blocked_spinner);
	pthread_sigqueue(t, SIGUSR1, v);
	pthread_kill(t, SIGUSR1);
	nap(10 * MS);
	go_on = true;
	pthread_join(t, NULL);
	check(count == 0, "sent to a thread that blocks it: no other takes it");
	run_thread(&t, blocked_spinner);
	sigqueue(getpid(), SIGUSR1, v);
	check(wait_count(1) && last_value == 1, "sent to the process: one that does not block it takes it");
	go_on = true;
	pthread_join(t, NULL);
}

static void test_threads(void)
{
	pthread_t t;
	on(SIGUSR1, note, 0);
	count = 0;
	run_thread(&t, spinner);
	pthread_kill(t, SIGUSR1);
	check(wait_count(1) && last_tid == thread_tid && last_tid != gettid_(), "pthread_kill to a computing thread");
	block(SIGUSR1);
	kill(getpid(), SIGUSR1);
	check(wait_count(2) && last_tid == thread_tid, "a process's signal goes to the computing thread that takes it");
	go_on = true;
	pthread_join(t, NULL);
	unblock(SIGUSR1);
	run_thread(&t, blocker);
	kill(getpid(), SIGUSR1);
	check(wait_count(3) && last_tid == gettid_(), "not to a thread that blocks it");
	pthread_kill(t, SIGUSR1);
	go_on = true;
	pthread_join(t, NULL);
	check(count == 3, "pending for a thread that ends: gone");
	block(SIGUSR1);
	run_thread(&t, open_thread);
	kill(getpid(), SIGUSR1);
	check(wait_count(4) && last_tid == thread_tid, "to the sleeping thread that takes it");
	go_on = true;
	pthread_join(t, NULL);
	/* A thread inherits the mask; its own pending set is empty. */
	pthread_kill(pthread_self(), SIGUSR1);
	run_thread(&t, spinner);
	check(pending(SIGUSR1), "pending here only");
	go_on = true;
	pthread_join(t, NULL);
	check(count == 4, "mask inherited");
	unblock(SIGUSR1);
	check(count == 5, "and delivered here");
	check(pthread_kill(pthread_self(), 0) == 0, "pthread_kill 0");
}

/* ---- storm -------------------- */

#define STORM 20000
static volatile int rt_count, usr_count;
static volatile bool rt_order_ok = true, storm_over, storm_bad;
static volatile int rt_next;

static void storm_rt(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)u;
	rt_order_ok &= i->si_value.sival_int == rt_next;
	rt_next = i->si_value.sival_int + 1;
	rt_count++;
	__asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n pcmpeqd %%xmm7, %%xmm7\n fninit\n fldpi" : : : "xmm0", "xmm7");
}

static void storm_usr(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)i;
	(void)u;
	usr_count++;
}

typedef long v4 __attribute__((vector_size(32)));

__attribute__((target("avx2"))) static bool avx_round(long k)
{
	v4 a = { k, k + 1, k + 2, k + 3 }, b = { k * 3, k * 5, k * 7, k * 11 }, c = a, d = b;
	for (int i = 0; i < 50; i++) {
		__asm__ volatile("vpaddq %2, %0, %0\n vpxor %0, %1, %1" : "+x"(c), "+x"(d) : "x"(b));
		a += b;
		b ^= a;
		__asm__ volatile("vpsubq %2, %0, %0\n vpaddq %2, %0, %0" : "+x"(c), "+x"(d) : "x"(b));
		c = a;
		d = b;
	}
	/* The same without vectors. */
	long x[4] = { k, k + 1, k + 2, k + 3 }, y[4] = { k * 3, k * 5, k * 7, k * 11 };
	bool ok = true;
	for (int i = 0; i < 4; i++) {
		for (int j = 0; j < 50; j++) {
			x[i] += y[i];
			y[i] ^= x[i];
			__asm__ volatile("" : "+r"(x[i]));
		}
		ok &= c[i] == x[i] && d[i] == y[i];
	}
	return ok;
}

static bool have_avx2;

static void *storm_worker(void *arg)
{
	(void)arg;
	int fd = open("/dev/null", O_WRONLY);
	pid_t pid = getpid();
	char buf[64];
	thread_tid = gettid_();
	ready = true;
	for (long k = 1; !storm_over; k++) {
		if (have_avx2 && !avx_round(k))
			storm_bad = true;
		if (syscall(SYS_getpid) != pid || write(fd, buf, sizeof buf) != sizeof buf)
			storm_bad = true;
		size_t len = 1000 + k % 5000;
		char *p = malloc(len);
		memset(p, (int)k, len);
		if (p[len - 1] != (char)k)
			storm_bad = true;
		free(p);
	}
	close(fd);
	return NULL;
}

static void test_storm(void)
{
	pthread_t t;
	have_avx2 = __builtin_cpu_supports("avx2");
	on(RTN(4), storm_rt, SA_RESTART);
	on(SIGUSR2, storm_usr, SA_RESTART);
	ready = false;
	pthread_create(&t, NULL, storm_worker, NULL);
	while (!ready)
		sched_yield();
	int sent = 0;
	for (int i = 0; i < STORM / 2; i++) {
		union sigval v = { .sival_int = sent };
		int e = pthread_sigqueue(t, RTN(4), v);
		if (e == EAGAIN) {
			nap(MS);
			i--;
			continue;
		}
		if (e) {
			storm_bad = true;
			break;
		}
		sent++;
		if (pthread_kill(t, SIGUSR2)) /* EAGAIN does not happen to standard signals */
			storm_bad = true;
	}
	for (int i = 0; i < 5000 && rt_count < sent; i++)
		nap(MS);
	storm_over = true;
	pthread_join(t, NULL);
	if (rt_count != sent || usr_count < 1)
		printf("  sent %d, real-time %d, SIGUSR2 %d\n", sent, rt_count, usr_count);
	check(rt_count == sent && sent == STORM / 2, "storm: no real-time signal is lost");
	check(rt_order_ok, "storm: in order");
	check(usr_count > 0, "storm: standard signals");
	check(!storm_bad, "storm: registers, memory and calls");
}

/* ---- signals that threads take and leave behind -------------------- */

#define LEFT 1500
static volatile int left_count;

static void count_left(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)i;
	(void)u;
	__atomic_add_fetch(&left_count, 1, __ATOMIC_SEQ_CST);
}

static void *short_thread(void *arg)
{
	unblock(RTN(5));
	for (volatile long i = 0; i < (long)arg * 3000; i++)
		;
	syscall(SYS_exit, 0); /* libc would block all signals first */
	return NULL;
}

static void *left_sender(void *arg)
{
	bool ok = true;
	for (int i = 0; i < LEFT; i++) {
		union sigval v = { .sival_int = i };
		int e;
		while ((e = sigqueue(getpid(), RTN(5), v)) && errno == EAGAIN)
			nap(MS);
		ok &= !e;
		if (i % 8 == 0)
			nap(MS / 10);
	}
	*(bool *)arg = ok;
	storm_over = true;
	return NULL;
}

static void test_ending_threads(void)
{
	pthread_t sender;
	bool ok = false;
	on(RTN(5), count_left, SA_RESTART);
	block(RTN(5));
	storm_over = false;
	pthread_create(&sender, NULL, left_sender, &ok);
	while (!storm_over) {
		pthread_t t[3];
		for (long i = 0; i < 3; i++)
			pthread_create(&t[i], NULL, short_thread, (void *)i);
		for (int i = 0; i < 3; i++)
			pthread_join(t[i], NULL);
	}
	pthread_join(sender, NULL);
	unblock(RTN(5));
	if (left_count != LEFT)
		printf("  %d of %d\n", left_count, LEFT);
	check(ok && left_count == LEFT, "sent to the process: none is lost with a thread that ends");
}

/* ---- everything blocked -------------------- */

static void test_all_blocked(void)
{
	sigset_t all, old, set = one(SIGSEGV);
	struct pollfd *volatile nowhere = (void *)16;
	int s = 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	nap(MS);
	check(poll(nowhere, 1, 0) == -1 && errno == EFAULT, "all signals blocked: EFAULT");
	check(syscall(SYS_ppoll, NULL, 0, nowhere, NULL, 8) == -1 && errno == EFAULT, "and again");
	kill(getpid(), SIGSEGV);
	check(pending(SIGSEGV), "SIGSEGV by kill, blocked: pending");
	check(sigwait(&set, &s) == 0 && s == SIGSEGV && !pending(SIGSEGV), "and waited for");
	on(SIGSEGV, note, 0);
	count = 0;
	kill(getpid(), SIGSEGV);
	check(count == 0, "blocked");
	unblock(SIGSEGV);
	check(count == 1 && last_signo == SIGSEGV && last_code == SI_USER, "and delivered");
	signal(SIGSEGV, SIG_DFL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* ---- registers across an asynchronous signal -------------------- */

static volatile int ticks;

static void wreck(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)i;
	(void)u;
	ticks++;
	__asm__ volatile("fninit\n fldz\n pcmpeqd %%xmm0, %%xmm0\n pcmpeqd %%xmm1, %%xmm1\n pcmpeqd %%xmm15, %%xmm15"
			 :
			 :
			 : "xmm0", "xmm1", "xmm15");
}

static void test_async(void)
{
	struct itimerval it = { .it_value = { 0, 1000 }, .it_interval = { 0, 1000 } }, off = { 0 };
	on(SIGALRM, wreck, SA_RESTART);
	setitimer(ITIMER_REAL, &it, NULL);
	long bad = 0, unused;
	/* All registers hold known values, flags too; the loop leaves when one does not or when ticks have come. */
	__asm__ volatile(
		"push %%rbp\n push %%rbx\n"
		"lea %2, %%rbx\n"
		"fninit\n fld1\n fldpi\n"
		"mov $0x0102030405060708, %%rcx\n movq %%rcx, %%xmm0\n movq %%rcx, %%xmm15\n pshufd $0x1b, %%xmm0, "
		"%%xmm1\n"
		"mov $0x11, %%r8d\n mov $0x22, %%r9d\n mov $0x33, %%r10d\n mov $0x44, %%r11d\n mov $0x55, %%r12d\n"
		"mov $0x66, %%r13d\n mov $0x77, %%r14d\n mov $0x88, %%r15d\n mov $0x99, %%esi\n mov $0xaa, %%edi\n"
		"mov $0xbb, %%ebp\n xor %%eax, %%eax\n"
		"movq $0x5a5a, -8(%%rsp)\n movq $0x5b5b, -128(%%rsp)\n"
		"1:\n"
		/* CF and OF, SF: set by a subtraction, then a long stretch that touches no flags */
		"mov $0x80000000, %%edx\n cmp $1, %%edx\n"
		".rept 60\n mov %%r8, %%r8\n lea 0(%%r9), %%r9\n .endr\n"
		"jno 9f\n js 9f\n jz 9f\n jc 9f\n"
		"stc\n .rept 30\n mov %%r10, %%r10\n .endr\n jnc 9f\n"
		"cmp $0x11, %%r8\n jne 9f\n cmp $0x22, %%r9\n jne 9f\n cmp $0x33, %%r10\n jne 9f\n cmp $0x44, %%r11\n "
		"jne 9f\n"
		"cmp $0x55, %%r12\n jne 9f\n cmp $0x66, %%r13\n jne 9f\n cmp $0x77, %%r14\n jne 9f\n cmp $0x88, "
		"%%r15\n jne 9f\n"
		"cmp $0x99, %%rsi\n jne 9f\n cmp $0xaa, %%rdi\n jne 9f\n cmp $0xbb, %%rbp\n jne 9f\n"
		"movq %%xmm0, %%rdx\n cmp %%rcx, %%rdx\n jne 9f\n movq %%xmm15, %%rdx\n cmp %%rcx, %%rdx\n jne 9f\n"
		"cmpq $0x5a5a, -8(%%rsp)\n jne 9f\n cmpq $0x5b5b, -128(%%rsp)\n jne 9f\n"
		"fxam\n fnstsw %%ax\n and $0x4500, %%ax\n cmp $0x0400, %%ax\n jne 9f\n"
		"cmpl $300, (%%rbx)\n jl 1b\n"
		"mov $0, %%eax\n jmp 8f\n"
		"9: mov $1, %%eax\n"
		"8: fstp %%st(0)\n fstp %%st(0)\n pop %%rbx\n pop %%rbp"
		: "=a"(bad), "=d"(unused)
		: "m"(ticks)
		: "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm15",
		  "memory", "cc", "st", "st(1)");
	setitimer(ITIMER_REAL, &off, NULL);
	check(!bad && ticks >= 300, "registers, flags, red zone and x87 across 300 ticks");
}

/* Calls on files don't end in EINTR, whatever the handler's flags: they do not wait for events. */
static volatile long file_ticks;
static void on_tick(int s) { (void)s, file_ticks++; }

static void test_files(void)
{
	struct sigaction sa = { .sa_handler = on_tick }, old;
	struct itimerval tv = { { 0, 300 }, { 0, 300 } }, off = { 0 };
	char name[] = "/tmp/kx-sig-XXXXXX", buf[64] = { 0 };
	int fd = mkstemp(name);
	bool good = true;
	sigaction(SIGALRM, &sa, &old);
	unblock(SIGALRM);
	setitimer(ITIMER_REAL, &tv, NULL);
	for (int i = 0; i < 1000 || (file_ticks < 300 && i < 20000); i++) {
		struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		int f = open(name, O_RDWR);
		if (f < 0 || pwrite(f, buf, sizeof buf, 0) != sizeof buf ||
		    pread(f, buf, sizeof buf, 0) != sizeof buf || fdatasync(f) || fcntl(f, F_SETLK, &fl)) {
			printf("call %d: %s\n", i, strerror(errno));
			good = false;
			break;
		}
		close(f);
	}
	setitimer(ITIMER_REAL, &off, NULL);
	sigaction(SIGALRM, &old, NULL);
	check(good && file_ticks > 50, "no EINTR from files");
	close(fd);
	unlink(name);
}

/* ---- a signal on the way into a call -------------------- */

#define ON_THE_WAY 400

static volatile int entering, seen_entering;

static void note_entering(int s, siginfo_t *i, void *u)
{
	seen_entering = entering;
	note(s, i, u);
}

/*
 * The first system call from a place in a program's text. Where that is slow, as in a VM, a signal that comes meanwhile
 * must still count as one that came while the call slept: natively there is nothing between the instruction and the
 * kernel. A few may come between `entering` and the instruction.
 */
static void test_on_the_way(void)
{
	static const uint8_t insns[] = { 0x0f, 0x05, 0xc3 }; /* syscall, ret */
	uint8_t *code = mmap(NULL, 4096l * ON_THE_WAY, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);
	int within = 0, lost = 0, strange = 0;
	on(SIGALRM, note_entering, 0);
	unblock(SIGALRM);
	for (int i = 0; i < ON_THE_WAY; i++) {
		struct timespec ts = { 0, 20 * MS };
		struct itimerval it = { { 0, 0 }, { 0, 1 + i % 100 * 2 } };
		uint8_t *at = code + 4096l * i;
		long r = SYS_nanosleep;
		memcpy(at + 64, insns, sizeof insns);
		at[0] = 0xc3;
		((void (*)(void))at)(); /* the page is there */
		count = seen_entering = entering = 0;
		setitimer(ITIMER_REAL, &it, NULL);
		entering = 1;
		__asm__ volatile("sub $128, %%rsp; call *%[at]; add $128, %%rsp"
				 : "+a"(r)
				 : "D"(&ts), "S"(0), [at] "r"(at + 64)
				 : "rcx", "r11", "memory", "cc");
		while (!count)
			nap(MS);
		within += seen_entering;
		lost += r == 0 && seen_entering;
		strange += r != -EINTR && r != 0;
	}
	munmap(code, 4096l * ON_THE_WAY);
	printf("  %d of %d calls slept over a signal, %d failed otherwise\n", lost, within, strange);
	check(lost <= ON_THE_WAY / 50 && !strange, "a signal on the way into a call ends its sleep");
}

int main(void)
{
	test_directed();
	test_origin();
	test_flags();
	test_altstack();
	test_queue();
	test_wait();
	test_eintr();
	test_files();
	test_on_the_way();
	test_timers();
	test_jumps();
	test_ucontext();
	test_threads();
	test_async();
	test_storm();
	test_ending_threads();
	test_all_blocked();
	if (failures) {
		printf("FAILED %d\n", failures);
		return 1;
	}
	puts("SUCCESS");
	return 0;
}
