/* SPDX-License-Identifier: Apache-2.0 */
/* Timers of all kinds. Part of sig.c. */
#ifndef KX_GUEST_SIG_TIMERS_H
#define KX_GUEST_SIG_TIMERS_H
#include "sig.h"

/* ---- timers -------------------- */

static volatile int thread_fired;
static void timer_thread(union sigval v) { thread_fired += v.sival_int; }

static void burn(void)
{
	for (int i = 0; i < 200000; i++)
		__asm__ volatile("");
}

static inline void test_timers(void)
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
#endif
