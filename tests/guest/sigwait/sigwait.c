/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals to a process that waits for them by sigwaitinfo and its brothers: to and fro so fast that each finds the other
 * at it, and with everything that can happen meanwhile: other signals, timers, stops, handlers, time limits, the death of
 * either side. None is lost, none comes twice, and each tells of its sender. Passes on any x86-64 Linux. The exit code is
 * the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include "../check.h"
#include "../children.h"

#define ROUNDS 3000

static volatile int *s; /* shared with all children */

static sigset_t set_of(int a, int b, int c)
{
	sigset_t m;
	sigemptyset(&m);
	sigaddset(&m, a);
	if (b)
		sigaddset(&m, b);
	if (c)
		sigaddset(&m, c);
	return m;
}

static void block(int how, int a, int b, int c)
{
	sigset_t m = set_of(a, b, c);
	sigprocmask(how, &m, NULL);
}

/* The next of these; without `seconds` it waits for ever. Without libc, which makes SI_USER of SI_TKILL. */
static int next(const sigset_t *m, siginfo_t *info, int seconds)
{
	struct timespec ts = { seconds, 0 };
	memset(info, 0xa5, sizeof *info);
	return (int)syscall(SYS_rt_sigtimedwait, m, info, seconds ? &ts : NULL, 8);
}

static int send_to(pid_t p, int sig, int how) { return how ? (int)syscall(SYS_tgkill, p, p, sig) : kill(p, sig); }

static bool is_from(const siginfo_t *i, int sig, pid_t p, int how)
{
	return i->si_signo == sig && i->si_errno == 0 && i->si_code == (how ? SI_TKILL : SI_USER) && i->si_pid == p &&
	       i->si_uid == getuid();
}

/* Its messages: whose turn it is, by three signals in turn, each way of sending by turns. */
static void echo(pid_t to, int rounds)
{
	static const int sig[] = { SIGUSR1, SIGUSR2, SIGTERM };
	sigset_t m = set_of(SIGUSR1, SIGUSR2, SIGTERM);
	siginfo_t i;
	for (int n = 0; n < rounds; n++) {
		NEED(next(&m, &i, n % 2 ? 60 : 0) == sig[n % 3]);
		NEED(is_from(&i, sig[n % 3], to, n % 2));
		NEED(send_to(to, sig[n % 3], n % 2) == 0);
	}
}

static bool ping(pid_t p, int rounds)
{
	static const int sig[] = { SIGUSR1, SIGUSR2, SIGTERM };
	sigset_t m = set_of(SIGUSR1, SIGUSR2, SIGTERM), pending;
	siginfo_t i;
	for (int n = 0; n < rounds; n++)
		if (send_to(p, sig[n % 3], n % 2) || next(&m, &i, n % 4 ? 0 : 60) != sig[n % 3] ||
		    !is_from(&i, sig[n % 3], p, n % 2))
			return false;
	return sigpending(&pending) == 0 && !sigismember(&pending, SIGUSR1) && !sigismember(&pending, SIGUSR2) &&
	       !sigismember(&pending, SIGTERM);
}

static void to_and_fro(void)
{
	pid_t me = getpid(), p = FORK(echo(me, ROUNDS));
	bool good = ping(p, ROUNDS);
	check(good && fine(p), "to and fro: each once, with its sender");
	pid_t pair[3];
	for (int k = 0; k < 3; k++)
		pair[k] = FORK({
			pid_t parent = getpid(), child = FORK(echo(parent, ROUNDS / 3));
			NEED(ping(child, ROUNDS / 3) && fine(child));
		});
	good = true;
	for (int k = 0; k < 3; k++)
		good &= fine(pair[k]);
	check(good, "three pairs at a time");
}

/* What is not asked for stays, and what nobody blocks does as its action says. */
static volatile sig_atomic_t handled;
static void count(int sig)
{
	(void)sig;
	handled++;
}

static void others(void)
{
	pid_t me = getpid(), p = FORK({
				     sigset_t m = set_of(SIGUSR1, 0, 0), both = set_of(SIGUSR2, SIGUSR1, 0);
				     siginfo_t i;
				     for (int n = 0; n < 300; n++) {
					     NEED(next(&m, &i, 0) == SIGUSR1 && is_from(&i, SIGUSR1, me, 0));
					     NEED(next(&both, &i, 0) == SIGUSR2 && is_from(&i, SIGUSR2, me, 0));
					     NEED(kill(me, SIGUSR1) == 0);
				     }
			     });
	sigset_t m = set_of(SIGUSR1, 0, 0);
	siginfo_t i;
	bool good = true;
	for (int n = 0; n < 300 && good; n++)
		good = !kill(p, SIGUSR2) && !kill(p, SIGUSR1) && next(&m, &i, 0) == SIGUSR1;
	check(good && fine(p), "one that is not asked for stays pending");

	signal(SIGHUP, count);
	p = FORK({
		sigset_t all = set_of(SIGUSR1, SIGUSR2, 0);
		int got = 0;
		int broken = 0;
		while (got < 200) {
			int r = next(&all, &i, 60);
			NEED(r == SIGUSR1 || (r < 0 && errno == EINTR));
			got += r > 0;
			broken += r < 0;
			if (r > 0 && got < 200)
				NEED(kill(me, SIGUSR1) == 0);
		}
		NEED(handled > 0 && broken <= handled);
	});
	good = true;
	for (int n = 0; n < 200 && good; n++)
		good = !kill(p, SIGHUP) && !kill(p, SIGUSR1) && (n == 199 || next(&m, &i, 0) == SIGUSR1);
	check(good && fine(p), "a handler's signal ends the wait with EINTR");
	signal(SIGHUP, SIG_DFL);

	/* Blocked nowhere and ignored: never seen. */
	signal(SIGURG, SIG_IGN);
	p = FORK({
		sigset_t with = set_of(SIGURG, SIGUSR1, 0);
		for (int n = 0; n < 300; n++)
			NEED(next(&with, &i, 0) == SIGUSR1 && kill(me, SIGUSR1) == 0);
	});
	good = true;
	for (int n = 0; n < 300 && good; n++)
		good = !kill(p, SIGURG) && !kill(p, SIGUSR1) && next(&m, &i, 0) == SIGUSR1;
	check(good && fine(p), "one that is ignored is not had");
	signal(SIGURG, SIG_DFL);
}

/* The kernel's own, and queued ones, among those of the other process. */
static void mixed(void)
{
	pid_t me = getpid(),
	      p = FORK({
		      sigset_t m = set_of(SIGUSR1, SIGALRM, SIGRTMIN + 3);
		      siginfo_t i;
		      struct itimerval it = { { 0, 2000 }, { 0, 2000 } };
		      int user = 0;
		      int alarms = 0;
		      int queued = 0;
		      setitimer(ITIMER_REAL, &it, NULL);
		      while (user < 500 || queued < 500 || alarms < 20) {
			      int r = next(&m, &i, 60);
			      NEED(r > 0);
			      if (r == SIGALRM) {
				      NEED(i.si_code == SI_KERNEL);
				      alarms++;
			      } else if (r == SIGUSR1) {
				      NEED(is_from(&i, SIGUSR1, me, 0));
				      user++;
				      NEED(kill(me, SIGUSR1) == 0);
			      } else {
				      NEED(i.si_code == SI_QUEUE && i.si_value.sival_int == queued && i.si_pid == me);
				      queued++;
			      }
		      }
		      it = (struct itimerval){ { 0, 0 }, { 0, 0 } };
		      setitimer(ITIMER_REAL, &it, NULL);
	      });
	sigset_t m = set_of(SIGUSR1, 0, 0);
	siginfo_t i;
	bool good = true;
	for (int n = 0; n < 500 && good; n++)
		good = !sigqueue(p, SIGRTMIN + 3, (union sigval){ .sival_int = n }) && !kill(p, SIGUSR1) &&
		       next(&m, &i, 0) == SIGUSR1;
	check(good && fine(p), "with a timer's and with queued ones: each once, queued ones in order");
}

/* Several senders, of which one is told what another one has done: the receiver has it already. */
static void ordered(void)
{
	pid_t p = FORK({
		sigset_t m = set_of(SIGUSR1, SIGUSR2, 0);
		siginfo_t i;
		for (int n = 0; n < 400; n++) {
			int a = next(&m, &i, 60);
			__atomic_store_n(&s[1], n * 2 + 1, __ATOMIC_SEQ_CST);
			int b = next(&m, &i, 60);
			NEED((a == SIGUSR1 && b == SIGUSR2) || (a == SIGUSR2 && b == SIGUSR1));
			__atomic_store_n(&s[1], n * 2 + 2, __ATOMIC_SEQ_CST);
		}
	});
	pid_t q[2];
	for (int k = 0; k < 2; k++)
		q[k] = FORK({
			for (int n = 0; n < 400; n++) {
				while (__atomic_load_n(&s[1], __ATOMIC_SEQ_CST) < n * 2)
					sched_yield();
				NEED(kill(p, k ? SIGUSR2 : SIGUSR1) == 0);
			}
		});
	bool good = fine(q[0]);
	good &= fine(q[1]);
	check(good && fine(p), "two senders: one each of both");
}

static void stops(void)
{
	pid_t me = getpid(), p = FORK({
				     sigset_t m = set_of(SIGUSR1, 0, 0);
				     siginfo_t i;
				     for (int n = 0; n < 200;) {
					     int r = next(&m, &i, 0);
					     NEED(r == SIGUSR1 || errno == EINTR);
					     if (r != SIGUSR1)
						     continue;
					     s[2]++;
					     n++;
					     NEED(kill(me, SIGUSR1) == 0);
				     }
			     });
	sigset_t m = set_of(SIGUSR1, 0, 0);
	siginfo_t i;
	int st;
	bool good = true;
	for (int n = 0; n < 200 && good; n++) {
		if (n % 20 == 10) {
			good = !kill(p, SIGSTOP) && waitpid(p, &st, WUNTRACED) == p && WIFSTOPPED(st);
			int before = s[2];
			good &= !kill(p, SIGUSR1) && !kill(p, SIGUSR1);
			ms(2);
			good &= s[2] == before && !kill(p, SIGCONT);
		} else {
			good = !kill(p, SIGUSR1);
		}
		good = good && next(&m, &i, 0) == SIGUSR1;
	}
	check(good && fine(p) && s[2] == 200, "to one that is stopped: pending once until it goes on");
}

static void killed(void)
{
	bool good = true;
	sigset_t m = set_of(SIGUSR1, 0, 0);
	siginfo_t i;
	pid_t me = getpid();
	struct timespec zero = { 0, 0 };
	for (int n = 0; n < 40 && good; n++) {
		pid_t p = FORK({
			for (;;)
				if (next(&m, &i, 0) == SIGUSR1)
					kill(me, SIGUSR1);
		});
		pid_t killer = FORK({
			ms(n % 5);
			kill(p, SIGKILL);
		});
		while (!kill(p, SIGUSR1) && waitpid(p, NULL, WNOHANG) == 0)
			sigtimedwait(&m, &i, &zero);
		good = kill(p, SIGUSR1) < 0 && errno == ESRCH;
		good &= fine(killer);
		while (sigtimedwait(&m, &i, &zero) > 0)
			;
	}
	check(good, "the receiver is killed: ESRCH once it has been waited for");
	for (int n = 0; n < 40 && good; n++) {
		pid_t p = FORK({
			for (;;) {
				kill(me, SIGUSR1);
				next(&m, &i, 0);
			}
		});
		struct timespec end, now;
		clock_gettime(CLOCK_MONOTONIC, &end);
		end.tv_nsec += n % 5 * 1000000;
		do {
			good = good && next(&m, &i, 60) == SIGUSR1 && is_from(&i, SIGUSR1, p, 0) && !kill(p, SIGUSR1);
			clock_gettime(CLOCK_MONOTONIC, &now);
		} while (good && (now.tv_sec - end.tv_sec) * 1000000000l + now.tv_nsec - end.tv_nsec < 0);
		kill(p, SIGKILL);
		status_of(p);
		while (sigtimedwait(&m, &i, &zero) > 0)
			;
	}
	pid_t p = FORK(echo(me, 300));
	check(good && ping(p, 300) && fine(p), "the sender is killed: the next one's come as before");
}

static void limits(void)
{
	sigset_t m = set_of(SIGUSR1, 0, 0);
	siginfo_t i;
	struct timespec a, b, ts = { 0, 20000000 };
	clock_gettime(CLOCK_MONOTONIC, &a);
	bool good = sigtimedwait(&m, &i, &ts) < 0 && errno == EAGAIN;
	good &= next(&m, &i, 1) < 0 && errno == EAGAIN;
	clock_gettime(CLOCK_MONOTONIC, &b);
	good &= (b.tv_sec - a.tv_sec) * 1000000000l + b.tv_nsec - a.tv_nsec >= 1020000000l;
	ts = (struct timespec){ 1, 1000000000 };
	good &= sigtimedwait(&m, &i, &ts) < 0 && errno == EINVAL;
	good &= syscall(SYS_rt_sigtimedwait, &m, NULL, NULL, 4) < 0 && errno == EINVAL;
	good &= syscall(SYS_rt_sigtimedwait, (void *)8, NULL, NULL, 8) < 0 && errno == EFAULT;
	good &= kill(getpid(), SIGUSR1) == 0 && syscall(SYS_rt_sigtimedwait, &m, NULL, NULL, 8) == SIGUSR1;
	good &= syscall(SYS_tgkill, getpid(), getpid(), SIGUSR1) == 0 && next(&m, &i, 1) == SIGUSR1 &&
		is_from(&i, SIGUSR1, getpid(), 1);
	good &= kill(getppid() + 1000000, SIGUSR1) < 0 && errno == ESRCH;
	good &= kill(getpid(), 65) < 0 && errno == EINVAL;
	check(good, "time limits and errors");
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	block(SIG_BLOCK, SIGUSR1, SIGUSR2, SIGTERM);
	block(SIG_BLOCK, SIGALRM, SIGRTMIN + 3, 0);
	limits();
	to_and_fro();
	others();
	mixed();
	ordered();
	stops();
	killed();
	limits();
	to_and_fro();
	check(wait(NULL) == -1 && errno == ECHILD, "no child left");
	return verdict();
}
