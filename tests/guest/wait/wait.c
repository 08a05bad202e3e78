/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How processes end and how others learn of it: wait4, waitid, SIGCHLD's siginfo, pidfds, threads that wait or end
 * first, orphans. Passes on any x86-64 Linux since 5.10. The exit code is the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../check.h"
#include "../children.h"
#include "../groups.h"

#define P_PIDFD_ 3
#define PIDFD_NONBLOCK_ O_NONBLOCK

static volatile int *volatile nowhere = (int *)16;

static void forever(void)
{
	for (;;)
		pause();
}

static volatile int *s; /* shared with all children */

static bool until(volatile int *p, int n)
{
	for (int i = 0; i < 120000 && __atomic_load_n(p, __ATOMIC_SEQ_CST) < n; i++)
		ms(1);
	return __atomic_load_n(p, __ATOMIC_SEQ_CST) >= n;
}

static bool exited(int st, int code) { return WIFEXITED(st) && WEXITSTATUS(st) == code; }
static bool killed(int st, int sig) { return WIFSIGNALED(st) && WTERMSIG(st) == sig; }

static void kill_wait(pid_t p)
{
	kill(p, SIGKILL);
	status_of(p);
}

/* Wait until p's state is what `options` ask for, leaving it to be told again. */
static bool reached(pid_t p, int options)
{
	siginfo_t i;
	i.si_pid = 0;
	return waitid(P_PID, p, &i, options | WNOWAIT) == 0 && i.si_pid == p;
}

/* ---- options and states ------------------------------------------------------------------------------------------ */

enum { RUNNING, STOPPED, CONTINUED, EXITED, KILLED, NR_STATES };
static const char *const state_name[] = { "running", "stopped", "continued", "exited", "killed" };

static pid_t in_state(int state)
{
	pid_t p = FORK(if (state == EXITED) _exit(300); forever());
	if (state == STOPPED || state == CONTINUED) {
		kill(p, SIGSTOP);
		reached(p, WSTOPPED);
	}
	if (state == CONTINUED) {
		kill(p, SIGCONT);
		reached(p, WCONTINUED);
	}
	if (state == KILLED)
		kill(p, SIGTERM);
	if (state >= EXITED)
		reached(p, WEXITED);
	return p;
}

static int state_status(int state)
{
	return state == STOPPED     ? SIGSTOP << 8 | 0x7f
	       : state == CONTINUED ? 0xffff
	       : state == EXITED    ? 44 << 8
				    : SIGTERM;
}

/* What each call may tell of; the rest is "nothing yet". */
static void states(void)
{
	static const struct {
		int options;
		unsigned sees;
	} w4[] = {
		{ WNOHANG, 1 << EXITED | 1 << KILLED },
		{ WNOHANG | WUNTRACED, 1 << STOPPED | 1 << EXITED | 1 << KILLED },
		{ WNOHANG | WCONTINUED, 1 << CONTINUED | 1 << EXITED | 1 << KILLED },
		{ WNOHANG | WUNTRACED | WCONTINUED, 1 << STOPPED | 1 << CONTINUED | 1 << EXITED | 1 << KILLED },
		{ WNOHANG | __WALL, 1 << EXITED | 1 << KILLED },
		{ WNOHANG | __WNOTHREAD | WUNTRACED, 1 << STOPPED | 1 << EXITED | 1 << KILLED },
	}, wid[] = {
		{ WNOHANG | WEXITED, 1 << EXITED | 1 << KILLED },
		{ WNOHANG | WSTOPPED, 1 << STOPPED },
		{ WNOHANG | WCONTINUED, 1 << CONTINUED },
		{ WNOHANG | WSTOPPED | WCONTINUED, 1 << STOPPED | 1 << CONTINUED },
		{ WNOHANG | WEXITED | WSTOPPED, 1 << STOPPED | 1 << EXITED | 1 << KILLED },
		{ WNOHANG | WEXITED | WNOWAIT, 1 << EXITED | 1 << KILLED },
		{ WNOHANG | WCONTINUED | WNOWAIT, 1 << CONTINUED },
		{ WNOHANG | WEXITED | __WALL, 1 << EXITED | 1 << KILLED },
	};
	static const int code[] = { 0, CLD_STOPPED, CLD_CONTINUED, CLD_EXITED, CLD_KILLED };
	static const int value[] = { 0, SIGSTOP, SIGCONT, 44, SIGTERM };
	for (int st = 0; st < NR_STATES; st++) {
		bool good = true;
		for (unsigned k = 0; k < sizeof w4 / sizeof w4[0]; k++) {
			pid_t p = in_state(st);
			int status = 4711;
			struct rusage ru;
			pid_t r = wait4(p, &status, w4[k].options, &ru);
			bool sees = w4[k].sees >> st & 1;
			bool ok = sees ? r == p && status == state_status(st) : r == 0 && status == 4711;
			if (!ok)
				printf("  wait4 options %#x, %s: %d, status %#x\n", w4[k].options, state_name[st], r,
				       status);
			good &= ok;
			/* Told once. */
			r = waitpid(p, &status, WNOHANG | (w4[k].options & (WUNTRACED | WCONTINUED)));
			ok = st >= EXITED ? r == -1 && errno == ECHILD : r == 0;
			if (!ok)
				printf("  wait4 options %#x, %s: again %d\n", w4[k].options, state_name[st], r);
			good &= ok;
			if (st < EXITED)
				kill_wait(p);
		}
		for (unsigned k = 0; k < sizeof wid / sizeof wid[0]; k++) {
			pid_t p = in_state(st);
			bool sees = wid[k].sees >> st & 1, keeps = wid[k].options & WNOWAIT, ok = true;
			for (int turn = 0; turn < 2; turn++) {
				siginfo_t i;
				memset(&i, 0x55, sizeof i);
				int r = waitid(P_PID, p, &i, wid[k].options);
				if (sees && (keeps || !turn))
					ok &= r == 0 && i.si_signo == SIGCHLD && i.si_errno == 0 && i.si_pid == p &&
					      i.si_code == code[st] && i.si_status == value[st] && i.si_uid == getuid();
				else if (st >= EXITED) /* also when asked for other ends than this */
					ok &= r == -1 && errno == ECHILD;
				else
					ok &= r == 0 && i.si_signo == 0 && i.si_pid == 0;
			}
			if (!ok)
				printf("  waitid options %#x, %s\n", wid[k].options, state_name[st]);
			good &= ok;
			if (st < EXITED || !sees || keeps)
				kill_wait(p);
		}
		check(good, state_name[st]);
	}
	static const int bad4[] = { WNOWAIT, WEXITED, 0x40, 1 << 28 };
	bool good = true;
	for (unsigned k = 0; k < sizeof bad4 / sizeof bad4[0]; k++)
		good &= wait4(-1, NULL, bad4[k] | WNOHANG, NULL) == -1 && errno == EINVAL;
	check(good, "wait4: options that it does not take");
	siginfo_t i;
	check(waitid(P_ALL, 0, &i, WNOHANG) == -1 && errno == EINVAL, "waitid: nothing asked for");
	check(waitid(99, 0, &i, WEXITED) == -1 && errno == EINVAL, "waitid: no such type");
	check(waitid(P_PID, 0, &i, WEXITED) == -1 && errno == EINVAL, "waitid: pid 0");
	check(waitid(P_PID, -5, &i, WEXITED) == -1 && errno == EINVAL, "waitid: pid -5");
	check(waitid(P_PGID, -5, &i, WEXITED) == -1 && errno == EINVAL, "waitid: group -5");
	check(waitid(P_ALL, 0, &i, WEXITED | WNOHANG) == -1 && errno == ECHILD, "waitid: nobody");
	check(wait4(INT32_MIN, NULL, 0, NULL) == -1 && errno == ESRCH, "wait4: INT_MIN");
	pid_t p = FORK();
	reached(p, WEXITED);
	check(wait4(p, (int *)16, 0, NULL) == -1 && errno == EFAULT, "wait4: bad pointer");
	check(wait4(p, NULL, WNOHANG, NULL) == -1 && errno == ECHILD, "wait4: and the child is gone");
}

/* ---- exit codes ---------------------------------------------------------------------------------------------------- */

static void codes(void)
{
	check(exited(status_of(FORK(_exit(256))), 0), "exit(256)");
	check(exited(status_of(FORK(_exit(-1))), 255), "exit(-1)");
	check(exited(status_of(FORK(syscall(SYS_exit, 0x1234))), 0x34), "SYS_exit of the only thread");
	check(exited(status_of(FORK(syscall(SYS_exit_group, 0x1ff))), 0xff), "SYS_exit_group");
	/* Every signal that ends a process, by kill and by raise. */
	static const int ends[] = { SIGHUP,  SIGINT,  SIGQUIT, SIGILL,    SIGTRAP, SIGABRT, SIGBUS,    SIGFPE,  SIGKILL,
				    SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE,   SIGALRM, SIGTERM, SIGSTKFLT, SIGXCPU, SIGXFSZ,
				    SIGPROF, SIGIO,   SIGPWR,  SIGVTALRM, SIGSYS,  34,      50,        64 };
	bool good = true;
	struct rlimit none = { 0, 0 };
	for (unsigned k = 0; k < sizeof ends / sizeof ends[0]; k++) {
		int sig = ends[k];
		pid_t a = FORK(setrlimit(RLIMIT_CORE, &none); forever()),
		      b = FORK(setrlimit(RLIMIT_CORE, &none); raise(sig); _exit(1));
		kill(a, sig);
		int sa = status_of(a), sb = status_of(b);
		if (!killed(sa, sig) || !killed(sb, sig)) {
			printf("  signal %d: %#x %#x\n", sig, sa, sb);
			good = false;
		}
	}
	check(good, "signals that end a process");
}

/* ---- clone children ------------------------------------------------------------------------------------------------ */

static int leave(void *arg)
{
	syscall(SYS_exit, (int)(intptr_t)arg);
	return 0;
}

static volatile sig_atomic_t hits[65];
static siginfo_t last[65];
static void count(int sig, siginfo_t *info, void *uc)
{
	(void)uc;
	hits[sig]++;
	last[sig] = *info;
}

static void on(int sig, int flags)
{
	struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO | flags };
	sigaction(sig, &sa, NULL);
	hits[sig] = 0;
}

static void clones(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	char *top = stack + sizeof stack;
	int st;
	siginfo_t i;
	on(SIGCHLD, 0);
	on(SIGUSR1, 0);
	/* The parent goes on a little before the child can be waited for. */
	pid_t p = clone(leave, top, CLONE_VM | CLONE_VFORK, (void *)5);
	check(p > 0 && waitpid(p, &st, WNOHANG) == -1 && errno == ECHILD, "clone without signal: not a child for wait");
	check(waitpid(p, &st, __WCLONE) == p && exited(st, 5) && hits[SIGCHLD] == 0,
	      "clone without signal: __WCLONE, no SIGCHLD");
	p = clone(leave, top, CLONE_VM | CLONE_VFORK | SIGUSR1, (void *)6);
	check(waitid(P_PID, p, &i, WEXITED | __WALL) == 0 && i.si_signo == SIGCHLD && i.si_status == 6,
	      "clone with SIGUSR1: __WALL");
	check(hits[SIGUSR1] == 1 && hits[SIGCHLD] == 0 && last[SIGUSR1].si_pid == p &&
		      last[SIGUSR1].si_code == CLD_EXITED && last[SIGUSR1].si_status == 6,
	      "clone with SIGUSR1 as its signal");
	p = FORK();
	check(reached(p, WEXITED) && waitpid(p, &st, WNOHANG | __WCLONE) == -1 && errno == ECHILD,
	      "__WCLONE: not a child of fork");
	check(fine(p), "and without it");
	signal(SIGCHLD, SIG_DFL);
	signal(SIGUSR1, SIG_DFL);
}

/* ---- threads ------------------------------------------------------------------------------------------------------- */

static void *waits(void *arg)
{
	pid_t p = *(pid_t *)arg;
	int st = 0;
	pid_t r = waitpid(p, &st, WNOHANG | __WNOTHREAD);
	bool good = r == -1 && errno == ECHILD;
	if (s)
		s[0] = 1;
	good &= waitpid(p, &st, 0) == p && exited(st, 9);
	return (void *)good;
}

static void *forks(void *arg)
{
	(void)arg;
	pid_t p = FORK(NEED(until(&s[0], 1)); _exit(9));
	return (void *)(intptr_t)p;
}

static void *forks_dies(void *arg)
{
	(void)arg;
	pid_t parent = getpid(), p;
	s[1] = 0;
	p = FORK({
		NEED(prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0);
		signal(SIGUSR2, SIG_DFL);
		s[1] = 1;
		NEED(getppid() == parent);
		forever();
	});
	until(&s[1], 1);
	return (void *)(intptr_t)p;
}

static void *stays(void *arg)
{
	pid_t *out = arg;
	*out = (pid_t)(intptr_t)forks_dies(NULL);
	until(&s[2], 1);
	return NULL;
}

static void *naps(void *arg)
{
	(void)arg;
	for (;;)
		ms(1000);
	return NULL;
}

static void *exits(void *arg)
{
	until(&s[0], 1);
	ms(20);
	switch ((intptr_t)arg) {
	case 0:
		syscall(SYS_exit_group, 7);
		break;
	case 1:
		syscall(SYS_exit, 5);
		break;
	case 2:
		raise(SIGTERM);
		break;
	case 3:
		abort();
	case 4:
		*nowhere = 0;
		break;
	case 5:
		kill(getpid(), SIGKILL);
		break;
	case 6:
		exit(8);
	}
	forever();
	return NULL;
}

static int leader_first(int how, int leader_status)
{
	s[0] = 0;
	pid_t p = FORK({
		struct rlimit none = { 0, 0 };
		pthread_t t;
		setrlimit(RLIMIT_CORE, &none);
		NEED(pthread_create(&t, NULL, exits, (void *)(intptr_t)how) == 0);
		s[0] = 1;
		syscall(SYS_exit, leader_status);
	});
	return status_of(p);
}

static void threads(void)
{
	pthread_t t;
	void *r;
	s[0] = s[1] = s[2] = 0;
	pid_t p = FORK(NEED(until(&s[0], 1)); ms(10); _exit(9));
	pthread_create(&t, NULL, waits, &p);
	pthread_join(t, &r);
	check(r, "another thread waits; __WNOTHREAD does not see the child");
	s[0] = 0;
	pthread_create(&t, NULL, forks, NULL);
	pthread_join(t, &r);
	p = (pid_t)(intptr_t)r;
	int st;
	check(waitpid(p, &st, WNOHANG) == 0, "a child of a thread that has ended");
	s[0] = 1;
	check(waitpid(p, &st, 0) == p && exited(st, 9), "is waited for by another");
	pthread_create(&t, NULL, forks_dies, NULL);
	pthread_join(t, &r);
	check(killed(status_of((pid_t)(intptr_t)r), SIGUSR2), "PR_SET_PDEATHSIG: the thread that forked ends");
	s[1] = 0;
	pthread_create(&t, NULL, stays, &p);
	check(until(&s[1], 1), "PR_SET_PDEATHSIG: set");
	ms(20);
	check(waitpid(p, &st, WNOHANG) == 0, "PR_SET_PDEATHSIG: not while the thread lives");
	s[2] = 1;
	pthread_join(t, NULL);
	check(killed(status_of(p), SIGUSR2), "PR_SET_PDEATHSIG: then");

	check(exited(leader_first(0, 3), 7), "the leader ends first, a thread calls exit_group(7)");
	int how = leader_first(1, 3); /* the last one's code since Linux 5.17, before it the leader's */
	check(exited(how, 5) || exited(how, 3), "the leader ends first with 3, the last thread with 5");
	check(killed(leader_first(2, 3), SIGTERM), "the leader ends first, a thread raises SIGTERM");
	check(killed(leader_first(3, 3), SIGABRT), "the leader ends first, a thread aborts");
	check(killed(leader_first(4, 3), SIGSEGV), "the leader ends first, a thread faults");
	check(killed(leader_first(5, 3), SIGKILL), "the leader ends first, SIGKILL from inside");
	check(exited(leader_first(6, 3), 8), "the leader ends first, a thread calls exit(8)");
	s[0] = 0;
	p = FORK({
		pthread_create(&t, NULL, naps, NULL);
		s[0] = 1;
		pthread_exit(NULL);
	});
	until(&s[0], 1);
	ms(20);
	check(waitpid(p, &st, WNOHANG) == 0 && kill(p, 0) == 0, "leader gone, process there");
	check(kill(p, SIGINT) == 0 && killed(status_of(p), SIGINT), "and ended by a signal to the process");
	/* Signals to a process with many threads. */
	static const int ends[] = { SIGKILL, SIGTERM, SIGQUIT, 40 };
	for (unsigned k = 0; k < sizeof ends / sizeof ends[0]; k++) {
		s[0] = 0;
		p = FORK({
			struct rlimit none = { 0, 0 };
			setrlimit(RLIMIT_CORE, &none);
			for (int n = 0; n < 6; n++)
				NEED(pthread_create(&t, NULL, naps, NULL) == 0);
			s[0] = 1;
			for (;;)
				s[3]++;
		});
		until(&s[0], 1);
		kill(p, ends[k]);
		char name[64];
		snprintf(name, sizeof name, "seven threads, signal %d", ends[k]);
		check(killed(status_of(p), ends[k]), name);
	}
}

static void *counting(void *arg)
{
	for (volatile int *c = arg;; (*c)++)
		;
	return NULL;
}

static void *ticking(void *arg)
{
	for (volatile int *c = arg;; (*c)++)
		ms(1);
	return NULL;
}

static bool moves(volatile int *c, int n)
{
	int was[3] = { c[0], c[1], c[2] };
	for (int i = 0; i < 12000; i++) {
		ms(5);
		if (c[0] != was[0] && c[1] != was[1] && c[2] != was[2])
			return true;
		if (n && i >= n)
			break;
	}
	return c[0] != was[0] || c[1] != was[1] || c[2] != was[2];
}

static void stops(void)
{
	volatile int *c = s + 16;
	static const int how[] = { SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU };
	siginfo_t i;
	pid_t p = FORK({
		pthread_t t;
		/* The group must not be an orphaned one. */
		NEED(pthread_create(&t, NULL, counting, (void *)&c[0]) == 0);
		NEED(pthread_create(&t, NULL, ticking, (void *)&c[1]) == 0);
		ticking((void *)&c[2]);
	});
	setpgid(p, p);
	check(moves(c, 0), "three threads run");
	on(SIGCHLD, SA_RESTART);
	for (int k = 0; k < 4; k++) {
		char name[64];
		hits[SIGCHLD] = 0;
		kill(p, how[k]);
		int r = waitid(P_PID, p, &i, WSTOPPED);
		snprintf(name, sizeof name, "stopped by signal %d: waitid and SIGCHLD", how[k]);
		for (int n = 0; n < 60000 && !hits[SIGCHLD]; n++)
			ms(1);
		check(r == 0 && i.si_code == CLD_STOPPED && i.si_status == how[k] && i.si_pid == p &&
			      hits[SIGCHLD] == 1 && last[SIGCHLD].si_code == CLD_STOPPED &&
			      last[SIGCHLD].si_status == how[k] && last[SIGCHLD].si_pid == p &&
			      last[SIGCHLD].si_uid == getuid(),
		      name);
		ms(2);
		check(!moves(c, 6), "all threads stand still");
		kill(p, SIGCONT);
		r = waitid(P_PID, p, &i, WCONTINUED);
		for (int n = 0; n < 60000 && hits[SIGCHLD] < 2; n++)
			ms(1);
		check(r == 0 && i.si_code == CLD_CONTINUED && i.si_status == SIGCONT && hits[SIGCHLD] == 2 &&
			      last[SIGCHLD].si_code == CLD_CONTINUED && last[SIGCHLD].si_status == SIGCONT,
		      "continued: waitid and SIGCHLD");
		check(moves(c, 0), "all threads go on");
	}
	on(SIGCHLD, SA_RESTART | SA_NOCLDSTOP);
	kill(p, SIGSTOP);
	check(waitid(P_PID, p, &i, WSTOPPED) == 0 && hits[SIGCHLD] == 0, "SA_NOCLDSTOP: told to waitid alone");
	kill(p, SIGTERM);
	ms(20);
	int st;
	check(waitpid(p, &st, WNOHANG) == 0, "SIGTERM to a stopped process waits");
	kill(p, SIGCONT);
	check(killed(status_of(p), SIGTERM), "until SIGCONT");
	check(hits[SIGCHLD] == 1 && last[SIGCHLD].si_code == CLD_KILLED && last[SIGCHLD].si_status == SIGTERM,
	      "SIGCHLD: killed");
	p = FORK(forever());
	kill(p, SIGSTOP);
	reached(p, WSTOPPED);
	kill(p, SIGKILL);
	check(killed(status_of(p), SIGKILL), "SIGKILL to a stopped process does not");
	/* SIGCONT takes pending stops away and the other way round. */
	p = FORK({
		sigset_t m, got;
		sigemptyset(&m);
		sigaddset(&m, SIGTSTP);
		sigaddset(&m, SIGCONT);
		sigprocmask(SIG_BLOCK, &m, NULL);
		kill(getpid(), SIGTSTP);
		NEED(sigpending(&got) == 0 && sigismember(&got, SIGTSTP));
		kill(getpid(), SIGCONT);
		NEED(sigpending(&got) == 0 && !sigismember(&got, SIGTSTP) && sigismember(&got, SIGCONT));
		kill(getpid(), SIGTSTP);
		NEED(sigpending(&got) == 0 && sigismember(&got, SIGTSTP) && !sigismember(&got, SIGCONT));
	});
	check(fine(p), "SIGCONT and stop signals take each other away");
	signal(SIGCHLD, SIG_DFL);
}

/* ---- what is known of a dead child --------------------------------------------------------------------------------- */

static double seconds(struct timeval t) { return t.tv_sec + t.tv_usec / 1e6; }

static void burn(int n)
{
	struct timespec a;
	do
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
	while (a.tv_sec * 1000 + a.tv_nsec / 1000000 < n);
}

static void usage(void)
{
	struct rusage before, after, one, small;
	siginfo_t i;
	int st;
	getrusage(RUSAGE_CHILDREN, &before);
	on(SIGCHLD, SA_RESTART);
	pid_t p = FORK({
		char *m = malloc(96 << 20);
		memset(m, 1, 96 << 20);
		__asm__ volatile("" : : "r"(m) : "memory");
		burn(150);
		_exit(m[12345] == 1 ? 3 : 4);
	});
	reached(p, WEXITED);
	struct rusage now;
	getrusage(RUSAGE_CHILDREN, &now);
	/* A process made ahead that is not needed counts with its few milliseconds. */
	check(seconds(now.ru_utime) < seconds(before.ru_utime) + 0.05, "RUSAGE_CHILDREN: not before the wait");
	check(wait4(p, &st, 0, &one) == p && exited(st, 3), "a child that works");
	getrusage(RUSAGE_CHILDREN, &after);
	double used = seconds(one.ru_utime) + seconds(one.ru_stime),
	       more = seconds(after.ru_utime) + seconds(after.ru_stime) - seconds(before.ru_utime) -
		      seconds(before.ru_stime);
	if (used < 0.14 || used > 5)
		printf("  %f s\n", used);
	check(used >= 0.14 && used < 5, "its time");
	check(more >= used - 0.001 && more < used + 0.1, "RUSAGE_CHILDREN: its time");
	check(one.ru_maxrss >= 96 << 10 && one.ru_maxrss < 160 << 10, "its ru_maxrss");
	check(after.ru_maxrss >= one.ru_maxrss && after.ru_maxrss < 300 << 10, "RUSAGE_CHILDREN: ru_maxrss");
	/* Clock ticks, of 10 ms, as the timer's interrupts found it at work: beside others at fewer of them. */
	check(hits[SIGCHLD] == 1 && last[SIGCHLD].si_code == CLD_EXITED && last[SIGCHLD].si_status == 3 &&
		      last[SIGCHLD].si_utime + last[SIGCHLD].si_stime >= 1 &&
		      last[SIGCHLD].si_utime + last[SIGCHLD].si_stime < 500,
	      "SIGCHLD: si_utime, si_stime");
	signal(SIGCHLD, SIG_DFL);
	p = FORK();
	check(syscall(SYS_waitid, P_PID, p, &i, WEXITED, &small) == 0 && i.si_pid == p, "waitid: with rusage");
	check(small.ru_maxrss > 0 && small.ru_maxrss < 64 << 10 && seconds(small.ru_utime) < 1,
	      "a small child's rusage");
	/* A grandchild's counts once its parent was waited for. */
	getrusage(RUSAGE_CHILDREN, &before);
	fine(FORK(NEED(fine(FORK(burn(100))))));
	getrusage(RUSAGE_CHILDREN, &after);
	more = seconds(after.ru_utime) + seconds(after.ru_stime) - seconds(before.ru_utime) - seconds(before.ru_stime);
	check(more >= 0.09, "RUSAGE_CHILDREN: a grandchild that was waited for");
	/* What nobody waits for does not count. */
	struct sigaction nowait = { .sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT };
	sigaction(SIGCHLD, &nowait, NULL);
	getrusage(RUSAGE_CHILDREN, &before);
	FORK(burn(100));
	check(wait(NULL) == -1 && errno == ECHILD, "SA_NOCLDWAIT: wait lasts until the end, then ECHILD");
	getrusage(RUSAGE_CHILDREN, &after);
	check(seconds(after.ru_utime) == seconds(before.ru_utime), "SA_NOCLDWAIT: not counted");
	signal(SIGCHLD, SIG_IGN);
	p = FORK(ms(20));
	FORK(ms(40));
	check(waitpid(p, &st, 0) == -1 && errno == ECHILD, "SIGCHLD ignored: waitpid lasts until that child's end");
	check(wait(&st) == -1 && errno == ECHILD, "SIGCHLD ignored: and wait until all have ended");
	check(is_gone(p), "SIGCHLD ignored: no zombie");
	signal(SIGCHLD, SIG_DFL);
}

/* ---- pidfd --------------------------------------------------------------------------------------------------------- */

static int pidfd_open_(pid_t p, unsigned flags) { return (int)syscall(SYS_pidfd_open, p, flags); }
static int pidfd_kill(int fd, int sig, siginfo_t *i) { return (int)syscall(SYS_pidfd_send_signal, fd, sig, i, 0); }

static void pidfds(void)
{
	siginfo_t i;
	s[0] = 0;
	pid_t p = FORK({
		on(SIGUSR1, 0);
		s[0] = 1;
		while (!hits[SIGUSR1])
			ms(1);
		NEED(last[SIGUSR1].si_code == SI_QUEUE && last[SIGUSR1].si_value.sival_int == 77);
		NEED(last[SIGUSR1].si_pid == getppid());
		_exit(6);
	});
	int fd = pidfd_open_(p, 0), nb = pidfd_open_(p, PIDFD_NONBLOCK_), ep = epoll_create1(EPOLL_CLOEXEC);
	check(fd >= 0 && nb >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC), "pidfd_open");
	check(pidfd_open_(p, 1) == -1 && errno == EINVAL, "pidfd_open: flags");
	check(pidfd_open_(-1, 0) == -1 && errno == EINVAL, "pidfd_open: pid -1");
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 5 };
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
	struct pollfd pf = { fd, POLLIN, 0 };
	check(poll(&pf, 1, 0) == 0 && epoll_wait(ep, &ev, 1, 0) == 0, "alive: not readable");
	i.si_pid = 1;
	check(waitid(P_PIDFD_, fd, &i, WEXITED | WNOHANG) == 0 && i.si_pid == 0, "alive: waitid with WNOHANG");
	check(waitid(P_PIDFD_, nb, &i, WEXITED) == -1 && errno == EAGAIN, "alive: waitid, PIDFD_NONBLOCK");
	check(read(fd, &i, 1) == -1 && errno == EINVAL, "a pidfd can't be read");
	until(&s[0], 1);
	memset(&i, 0, sizeof i);
	i.si_signo = SIGUSR1;
	i.si_code = SI_QUEUE;
	i.si_pid = getpid();
	i.si_uid = getuid();
	i.si_value.sival_int = 77;
	check(pidfd_kill(fd, SIGUSR2, &i) == -1 && errno == EINVAL, "pidfd_send_signal: another signal in siginfo");
	check(pidfd_kill(fd, SIGUSR1, &i) == 0, "pidfd_send_signal: with siginfo");
	check(poll(&pf, 1, 100000) == 1 && pf.revents == POLLIN, "ended: readable");
	check(epoll_wait(ep, &ev, 1, 100000) == 1 && ev.data.u64 == 5 && ev.events == EPOLLIN, "ended: epoll");
	check(pidfd_kill(fd, 0, NULL) == 0, "a zombie can be signalled");
	check(waitid(P_PIDFD_, fd, &i, WEXITED | WNOWAIT) == 0 && i.si_pid == p && i.si_status == 6, "waitid: WNOWAIT");
	check(waitid(P_PIDFD_, nb, &i, WEXITED) == 0 && i.si_pid == p && i.si_code == CLD_EXITED && i.si_status == 6,
	      "waitid");
	check(waitid(P_PIDFD_, fd, &i, WEXITED) == -1 && errno == ECHILD, "once");
	check(pidfd_kill(fd, 0, NULL) == -1 && errno == ESRCH, "gone: ESRCH");
	check(poll(&pf, 1, 0) == 1 && (pf.revents & POLLIN), "gone: readable");
	check(pidfd_open_(p, 0) == -1 && errno == ESRCH, "gone: pidfd_open");
	close(fd);
	close(nb);
	close(ep);
	check(waitid(P_PIDFD_, 0, &i, WEXITED) == -1 && errno == EBADF, "waitid: no pidfd");
	check(waitid(P_PIDFD_, 999, &i, WEXITED) == -1 && errno == EBADF, "waitid: no descriptor");
	fd = pidfd_open_(getpid(), 0);
	check(waitid(P_PIDFD_, fd, &i, WEXITED) == -1 && errno == ECHILD, "waitid: not a child");
	close(fd);
	s[0] = 0;
	p = FORK(NEED(until(&s[0], 1)));
	fd = pidfd_open_(p, 0);
	pid_t q = FORK({
		NEED(waitid(P_PIDFD_, fd, &i, WEXITED) == -1 && errno == ECHILD);
		NEED(pidfd_kill(fd, SIGTERM, NULL) == 0);
		NEED(poll(&pf, 1, 100000) == 1);
	});
	check(killed(status_of(p), SIGTERM) && fine(q), "a sibling's pidfd");
	close(fd);
}

/* ---- families ------------------------------------------------------------------------------------------------------ */

static void orphans(void)
{
	s[0] = s[1] = s[2] = 0;
	pid_t p = FORK({
		pid_t me = getpid();
		FORK({
			s[0] = getpid();
			NEED(prctl(PR_SET_PDEATHSIG, 0) == 0);
			for (int n = 0; n < 60000 && getppid() == me; n++)
				ms(1);
			s[1] = getppid() != me ? 1 : 2;
		});
		NEED(until(&s[0], 1));
	});
	check(fine(p) && until(&s[1], 1) && s[1] == 1, "an orphan has another parent");
	check(waitpid(s[0], NULL, WNOHANG) == -1 && errno == ECHILD, "and is not ours");

	check(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "subreaper");
	s[0] = s[1] = 0;
	p = FORK({
		int sub = 7;
		NEED(prctl(PR_GET_CHILD_SUBREAPER, &sub) == 0 && sub == 0); /* not inherited */
		FORK({
			FORK(s[0] = getpid(); NEED(until(&s[1], 1)); _exit(21));
			_exit(22);
		});
		NEED(until(&s[0], 1));
		ms(10);
	});
	check(fine(p), "subreaper: parent ends");
	s[1] = 1;
	int st, sum = 0, n = 0;
	pid_t r;
	while ((r = wait(&st)) > 0) {
		sum += WEXITSTATUS(st);
		n++;
	}
	check(errno == ECHILD && n == 2 && sum == 43, "subreaper: waits for both orphans");
	/* SIGCHLD of an adopted child. */
	on(SIGCHLD, SA_RESTART);
	s[0] = s[1] = 0;
	p = FORK(FORK(s[0] = getpid(); NEED(until(&s[1], 1)); _exit(23)); NEED(until(&s[0], 1)));
	check(fine(p), "subreaper: again");
	hits[SIGCHLD] = 0;
	s[1] = 1;
	check(exited(status_of(s[0]), 23), "subreaper: by pid");
	for (n = 0; n < 60000 && !hits[SIGCHLD]; n++)
		ms(1);
	check(hits[SIGCHLD] == 1 && last[SIGCHLD].si_pid == s[0] && last[SIGCHLD].si_status == 23,
	      "subreaper: SIGCHLD");
	check(kill(s[0], 0) == -1 && errno == ESRCH, "subreaper: nobody left");
	signal(SIGCHLD, SIG_DFL);
	prctl(PR_SET_CHILD_SUBREAPER, 0);

	/* PR_SET_PDEATHSIG: told what it is, not inherited, kept by exec. */
	p = FORK({
		int sig = -1;
		NEED(prctl(PR_SET_PDEATHSIG, 65) == -1 && errno == EINVAL);
		NEED(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0 && prctl(PR_GET_PDEATHSIG, &sig) == 0 && sig == SIGUSR1);
		NEED(fine(FORK({
			int sig2 = -1;
			NEED(prctl(PR_GET_PDEATHSIG, &sig2) == 0 && sig2 == 0);
		})));
	});
	check(fine(p), "PR_SET_PDEATHSIG: set, told, not inherited");
	int pipefd[2];
	if (pipe(pipefd))
		abort();
	p = FORK({
		FORK({
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(pipefd[0]);
			dup2(pipefd[1], 3);
			execl("/bin/sh", "sh", "-c", "echo x >&3; exec sleep 100", NULL);
		});
		char c;
		close(pipefd[1]);
		NEED(read(pipefd[0], &c, 1) == 1);
	});
	close(pipefd[1]);
	char c;
	check(fine(p) && read(pipefd[0], &c, 1) <= 1, "PR_SET_PDEATHSIG: parent of an exec'd child ends");
	struct pollfd pf = { pipefd[0], POLLIN, 0 };
	while (poll(&pf, 1, 100000) == 1 && (pf.revents & POLLIN) && read(pipefd[0], &c, 1) == 1)
		;
	check(pf.revents == POLLHUP, "PR_SET_PDEATHSIG: kept by exec");
	close(pipefd[0]);
}

static void groups(void)
{
	int st;
	siginfo_t i;
	pid_t a = FORK(setpgid(0, 0); NEED(until(&s[0], 1)); _exit(1));
	setpgid(a, a);
	pid_t b = FORK(forever()), d = FORK(NEED(until(&s[0], 1)); _exit(2));
	setpgid(b, a);
	s[0] = 0;
	check(waitpid(-a, &st, WNOHANG) == 0 && waitid(P_PGID, a, &i, WNOHANG | WEXITED) == 0 && i.si_pid == 0,
	      "group: nobody has ended");
	s[0] = 1;
	check(waitpid(-a, &st, 0) == a && exited(st, 1), "group: the first");
	kill(-a, SIGTERM);
	check(waitid(P_PGID, a, &i, WEXITED) == 0 && i.si_pid == b && i.si_code == CLD_KILLED, "group: the second");
	check(waitpid(-a, &st, 0) == -1 && errno == ECHILD, "group: empty");
	check(waitpid(0, &st, 0) == d && exited(st, 2), "own group");
	d = FORK(_exit(3));
	check(waitid(P_PGID, 0, &i, WEXITED) == 0 && i.si_pid == d && i.si_status == 3, "own group by waitid");
}

int main(int argc, char **argv)
{
	static const struct group all[] = { { "states", states },   { "codes", codes },     { "clones", clones },
					    { "threads", threads }, { "stops", stops },     { "usage", usage },
					    { "pidfds", pidfds },   { "orphans", orphans }, { "groups", groups } };
	setvbuf(stdout, NULL, _IOLBF, 0);
	s = mmap(NULL, GROUPS_WORDS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	groups_run(all, sizeof all / sizeof all[0], argc, argv, s);
	return verdict();
}
