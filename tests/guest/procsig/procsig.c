/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals between processes: what a receiver sees of the sender, queues in order, masks that nobody but the receiver
 * knows of, signals to a process that is being forked or executes a program.
 * Passes on any x86-64 Linux. Arguments: names of groups (all without). The exit code is the number of the first
 * check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../check.h"
#include "../children.h"
#include "../groups.h"
#include "../hits.h"

#define RTN(n) (SIGRTMIN + (n))

static void forever(void)
{
	for (;;)
		pause();
}

static bool killed(int st, int sig) { return WIFSIGNALED(st) && WTERMSIG(st) == sig; }

static void blocking(int how, int sig)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, sig);
	pthread_sigmask(how, &set, NULL);
}

static bool is_pending(int sig)
{
	sigset_t set;
	sigpending(&set);
	return sigismember(&set, sig);
}

static bool await_hits(int sig, int n)
{
	for (int i = 0; i < 120000 && __atomic_load_n(&hits[sig], __ATOMIC_SEQ_CST) < n; i++)
		ms(1);
	return hits[sig] == n;
}

/* ---- who sent what ------------------------------------------------------------------------------------------------- */

static int send_kill(pid_t p, pid_t tid)
{
	(void)tid;
	return kill(p, SIGUSR1);
}
static int send_tgkill(pid_t p, pid_t tid) { return (int)syscall(SYS_tgkill, p, tid, SIGUSR1); }
static int send_tkill(pid_t p, pid_t tid)
{
	(void)p;
	return (int)syscall(SYS_tkill, tid, SIGUSR1);
}
static int send_queue(pid_t p, pid_t tid)
{
	(void)tid;
	return sigqueue(p, SIGUSR1, (union sigval){ .sival_ptr = (void *)0x123456789abcl });
}
static int send_tgqueue(pid_t p, pid_t tid)
{
	siginfo_t i;
	memset(&i, 0, sizeof i);
	i.si_code = SI_QUEUE;
	i.si_pid = getpid();
	i.si_uid = getuid();
	i.si_value.sival_ptr = (void *)0x123456789abcl;
	return (int)syscall(SYS_rt_tgsigqueueinfo, p, tid, SIGUSR1, &i);
}
static int send_pidfd(pid_t p, pid_t tid)
{
	(void)tid;
	int fd = (int)syscall(SYS_pidfd_open, p, 0), r = (int)syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0);
	close(fd);
	return r;
}

static void *second(void *arg)
{
	(void)arg;
	s[1] = gettid();
	for (;;)
		ms(1000);
	return NULL;
}

static void senders(void)
{
	static const struct {
		const char *name;
		int (*send)(pid_t p, pid_t tid);
		int code;
		bool value, to_thread;
	} all[] = {
		{ "kill", send_kill, SI_USER, false, false },
		{ "tgkill", send_tgkill, SI_TKILL, false, true },
		{ "tkill", send_tkill, SI_TKILL, false, true },
		{ "sigqueue", send_queue, SI_QUEUE, true, false },
		{ "rt_tgsigqueueinfo", send_tgqueue, SI_QUEUE, true, true },
		{ "pidfd_send_signal", send_pidfd, SI_USER, false, false },
	};
	for (unsigned k = 0; k < sizeof all / sizeof all[0]; k++)
		for (int thread = 0; thread <= all[k].to_thread; thread++) {
			s[0] = s[1] = s[2] = 0;
			pid_t p = FORK({
				pthread_t t;
				on(SIGUSR1, SA_RESTART);
				if (thread)
					NEED(pthread_create(&t, NULL, second, NULL) == 0 && until(&s[1], 1));
				s[0] = 1;
				NEED(await_hits(SIGUSR1, 1));
				siginfo_t *i = &last[SIGUSR1];
				NEED(i->si_signo == SIGUSR1 && i->si_code == all[k].code);
				NEED(i->si_pid == getppid() && i->si_uid == getuid() && i->si_errno == 0);
				NEED(!all[k].value || i->si_value.sival_ptr == (void *)0x123456789abcl);
				NEED(last_tid == (thread ? s[1] : getpid()));
			});
			until(&s[0], 1);
			char name[64];
			snprintf(name, sizeof name, "%s%s: what the handler sees", all[k].name,
				 thread ? " to a thread" : "");
			int r = all[k].send(p, thread ? s[1] : p);
			if (r)
				kill(p, SIGKILL);
			check(fine(p) && r == 0, name);
		}
	/* Numbers that are nobody's. */
	pid_t p = FORK();
	status_of(p);
	check(kill(p, 0) == -1 && errno == ESRCH && kill(p, SIGUSR1) == -1 && errno == ESRCH, "kill: gone");
	check(send_tgkill(p, p) == -1 && errno == ESRCH, "tgkill: gone");
	check(send_queue(p, p) == -1 && errno == ESRCH, "sigqueue: gone");
	p = FORK(forever());
	check(send_tgkill(getpid(), p) == -1 && errno == ESRCH, "tgkill: a thread of another process");
	check(kill(p, 65) == -1 && errno == EINVAL && kill(p, -1) == -1 && errno == EINVAL, "kill: no such signal");
	siginfo_t i;
	memset(&i, 0, sizeof i);
	check(syscall(SYS_rt_sigqueueinfo, p, SIGUSR1, &i) == -1 && errno == EPERM,
	      "rt_sigqueueinfo: SI_USER is kill's");
	i.si_code = SI_TKILL;
	check(syscall(SYS_rt_sigqueueinfo, p, SIGUSR1, &i) == -1 && errno == EPERM, "rt_sigqueueinfo: SI_TKILL");
	i.si_code = SI_TIMER;
	check(syscall(SYS_rt_sigqueueinfo, p, 0, &i) == 0, "rt_sigqueueinfo: signal 0");
	kill(p, SIGKILL);
	check(kill(p, SIGUSR1) == 0, "kill: a zombie");
	check(killed(status_of(p), SIGKILL), "and it is waited for");
}

/* ---- masks that others don't know of ------------------------------------------------------------------------------- */

/* The receiver blocks a signal and makes no call at all before another process sends it. */
static void masks(void)
{
	static const int sigs[] = { SIGTERM, SIGUSR2, SIGINT, SIGHUP, SIGALRM, SIGPIPE, 45 };
	for (unsigned k = 0; k < sizeof sigs / sizeof sigs[0]; k++) {
		int sig = sigs[k];
		s[0] = s[1] = s[2] = 0;
		pid_t p = FORK({
			blocking(SIG_BLOCK, sig);
			__atomic_store_n(&s[0], 1, __ATOMIC_SEQ_CST);
			while (!__atomic_load_n(&s[1], __ATOMIC_SEQ_CST))
				__builtin_ia32_pause();
			s[2] = is_pending(sig);
			blocking(SIG_UNBLOCK, sig);
			_exit(98);
		});
		until(&s[0], 1);
		kill(p, sig);
		ms(5);
		s[1] = 1;
		char name[64];
		snprintf(name, sizeof name, "signal %d blocked without another call", sig);
		int st = status_of(p);
		check(s[2] && killed(st, sig), name);
	}
	bool good = true;
	for (int k = 0; k < 30; k++) {
		s[2] = 0;
		pid_t q = FORK({
			blocking(SIG_BLOCK, SIGTERM);
			s[2] = 1;
			for (volatile int n = 0; n < 20000; n++)
				;
			NEED(k % 2 || !is_pending(SIGUSR1));
			for (int n = 0; n < 120000 && !is_pending(SIGTERM); n++)
				ms(1);
			NEED(is_pending(SIGTERM));
		});
		good &= until(&s[2], 1) && kill(q, SIGTERM) == 0 && fine(q);
	}
	check(good, "30 children that block SIGTERM, and get it");
}

/* ---- processes on their way ---------------------------------------------------------------------------------------- */

static volatile int rt_next;
static volatile bool rt_bad;

static void in_order(int sig, siginfo_t *i, void *uc)
{
	(void)sig;
	(void)uc;
	rt_bad |= i->si_value.sival_int != rt_next++;
}

/* A child gets signals from its first instruction on. */
static void young(void)
{
	bool good = true;
	for (int k = 0; k < 20; k++) {
		pid_t p = FORK(forever());
		good &= kill(p, SIGTERM) == 0 && killed(status_of(p), SIGTERM);
	}
	check(good, "SIGTERM to 20 new children");
	good = true;
	for (int k = 0; k < 20; k++) {
		pid_t p = FORK(forever());
		good &= kill(p, SIGBUS) == 0 && kill(p, SIGSEGV) == 0;
		int st = status_of(p);
		good &= killed(st, SIGBUS) || killed(st, SIGSEGV);
	}
	check(good, "SIGBUS and SIGSEGV to 20 new children");
	on(SIGUSR1, 0);
	on(SIGSEGV, 0);
	good = true;
	for (int k = 0; k < 20; k++) {
		pid_t p = FORK(NEED(await_hits(SIGUSR1, 1) && await_hits(SIGSEGV, 1));
			       NEED(last[SIGUSR1].si_pid == getppid()));
		good &= kill(p, SIGUSR1) == 0 && kill(p, SIGSEGV) == 0 && fine(p);
	}
	check(good && !hits[SIGUSR1] && !hits[SIGSEGV], "a handler in 20 new children");
	signal(SIGUSR1, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	struct sigaction sa = { .sa_sigaction = in_order, .sa_flags = SA_SIGINFO };
	sigaction(RTN(3), &sa, NULL);
	good = true;
	for (int k = 0; k < 10; k++) {
		pid_t p = FORK({
			for (int n = 0; n < 60000 && rt_next < 100; n++)
				ms(1);
			NEED(rt_next == 100 && !rt_bad);
		});
		for (int n = 0; n < 100; n++)
			good &= sigqueue(p, RTN(3), (union sigval){ .sival_int = n }) == 0;
		good &= fine(p);
	}
	check(good, "100 queued signals in order to each of 10 new children");
	/* And with another signal and a mask in between. */
	good = true;
	on(SIGUSR1, SA_RESTART);
	for (int k = 0; k < 4; k++) {
		pid_t p = FORK({
			for (int n = 0; n < 20000 && rt_next < 1000; n++) {
				blocking(SIG_BLOCK, RTN(3));
				is_pending(RTN(3));
				blocking(SIG_UNBLOCK, RTN(3));
				sigset_t m;
				sigemptyset(&m);
				sigaddset(&m, n % 2 ? RTN(3) : SIGUSR1);
				struct timespec ts = { 0, 500000 };
				ppoll(NULL, 0, &ts, &m);
			}
			NEED(rt_next == 1000 && !rt_bad);
		});
		for (int n = 0; n < 1000; n++) {
			good &= sigqueue(p, RTN(3), (union sigval){ .sival_int = n }) == 0;
			if (n % 3 == 0)
				kill(p, SIGUSR1);
			if (n % 50 == 0)
				ms(1);
		}
		good &= fine(p);
	}
	check(good, "1,000 queued signals in order to a process that blocks and polls");
	signal(RTN(3), SIG_DFL);
	/* Stopped and continued while it is made. */
	good = true;
	for (int k = 0; k < 10; k++) {
		siginfo_t i;
		pid_t p = FORK(forever());
		kill(p, SIGSTOP);
		good &= waitid(P_PID, p, &i, WSTOPPED) == 0 && i.si_code == CLD_STOPPED;
		kill(p, SIGCONT);
		good &= waitid(P_PID, p, &i, WCONTINUED) == 0 && i.si_code == CLD_CONTINUED;
		kill(p, SIGTERM);
		good &= killed(status_of(p), SIGTERM);
	}
	check(good, "stopped, continued, ended while new");
}

#define EXECS 5
#define EXEC_SIGNALS 400

/* After exec: `procsig executed N`. The queue goes on where it was. */
static int executed(int turn)
{
	sigset_t set;
	siginfo_t i;
	struct timespec wait = { 60, 0 };
	struct sigaction sa;
	sigemptyset(&set);
	sigaddset(&set, RTN(3));
	s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	NEED(s != MAP_FAILED);
	sigprocmask(SIG_SETMASK, NULL, &set);
	NEED(sigismember(&set, RTN(3)) && !sigismember(&set, SIGUSR1));
	NEED(sigaction(SIGUSR2, NULL, &sa) == 0 && sa.sa_handler == SIG_IGN);
	NEED(sigaction(SIGURG, NULL, &sa) == 0 && sa.sa_handler == SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, RTN(3));
	for (int n = 0; n < EXEC_SIGNALS / EXECS; n++) {
		NEED(sigtimedwait(&set, &i, &wait) == RTN(3));
		NEED(i.si_code == SI_QUEUE && i.si_pid == getppid() && i.si_value.sival_int == s[0]);
		s[0]++;
	}
	if (turn == EXECS)
		return 0;
	char number[16];
	snprintf(number, sizeof number, "%d", turn + 1);
	execl("/proc/self/exe", "procsig", "executed", number, NULL);
	return 97;
}

static void exec(void)
{
	int fd = memfd_create("shared", 0);
	if (fd != 3) {
		dup2(fd, 3);
		close(fd);
	}
	if (ftruncate(3, 4096))
		abort();
	volatile int *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	pid_t p = FORK({
		blocking(SIG_BLOCK, RTN(3));
		on(SIGURG, 0);
		signal(SIGUSR2, SIG_IGN);
		m[1] = 1;
		execl("/proc/self/exe", "procsig", "executed", "1", NULL);
		_exit(96);
	});
	until(&m[1], 1);
	bool good = true;
	for (int n = 0; n < EXEC_SIGNALS; n++) {
		good &= sigqueue(p, RTN(3), (union sigval){ .sival_int = n }) == 0;
		good &= kill(p, SIGUSR2) == 0 && kill(p, SIGURG) == 0;
		if (n % 10 == 0)
			ms(1);
	}
	check(fine(p) && good && m[0] == EXEC_SIGNALS, "queued signals in order across five execs");
	close(3);
	/* One that ends it, at any time. */
	good = true;
	for (int k = 0; k < 12; k++) {
		s[0] = 0;
		p = FORK({
			s[0] = 1;
			execl("/bin/sleep", "sleep", "100", NULL);
		});
		until(&s[0], 1);
		struct timespec ts = { 0, k * 700000 };
		nanosleep(&ts, NULL);
		kill(p, SIGTERM);
		good &= killed(status_of(p), SIGTERM);
	}
	check(good, "SIGTERM at any time of an exec");
	/* A handler is gone after it, a signal before it was seen or is the end. */
	good = true;
	on(SIGUSR1, 0);
	for (int k = 0; k < 6; k++) {
		p = FORK({
			for (;;) {
				execl("/nonexistent/program", "x", NULL);
				if (hits[SIGUSR1])
					_exit(55);
			}
		});
		ms(k + 1);
		kill(p, SIGUSR1);
		int st = status_of(p);
		good &= WIFEXITED(st) && WEXITSTATUS(st) == 55;
	}
	check(good, "a handler during an exec that fails");
	signal(SIGUSR1, SIG_DFL);
}

int main(int argc, char **argv)
{
	static const struct group all[] = {
		{ "senders", senders }, { "masks", masks }, { "young", young }, { "exec", exec }
	};
	if (argc > 2 && !strcmp(argv[1], "executed"))
		return executed(atoi(argv[2]));
	setvbuf(stdout, NULL, _IOLBF, 0);
	s = mmap(NULL, GROUPS_WORDS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	groups_run(all, sizeof all / sizeof all[0], argc, argv, s);
	return verdict();
}
