/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks, sleeps and timers as a program sees them. Passes on any Linux. Nothing may come early; how late it comes
 * depends on the load of the machine, so that only gross lateness fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
#define SEC 1000000000LL
#define LATE (60 * SEC)

static int failures;

static void check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
}

static int64_t ts_ns(const struct timespec *ts) { return ts->tv_sec * SEC + ts->tv_nsec; }

static struct timespec ns_ts(int64_t ns) { return (struct timespec){ ns / SEC, ns % SEC }; }

static int64_t now(clockid_t clk)
{
	struct timespec ts = { 0 };

	if (clock_gettime(clk, &ts))
		return -1;
	return ts_ns(&ts);
}

static int64_t raw_now(clockid_t clk)
{
	struct timespec ts = { 0 };

	if (syscall(SYS_clock_gettime, clk, &ts))
		return -1;
	return ts_ns(&ts);
}

/* ---- clocks ---------------------------------------------------------------------------------------------- */
static int64_t newest[4];
static volatile int stop;
static unsigned long went_back;
static const clockid_t mono_clocks[4] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC };

/* No read may be older than one that another thread finished before it began. Clock 3 mixes both paths. */
static void *clock_reader(void *arg)
{
	unsigned long n = 0;

	(void)arg;
	while (!stop) {
		for (int i = 0; i < 4; i++) {
			int64_t seen = __atomic_load_n(&newest[i], __ATOMIC_SEQ_CST);
			int64_t ns = i == 3 && n % 16 == 0 ? raw_now(mono_clocks[i]) : now(mono_clocks[i]);

			if (ns < seen)
				__atomic_add_fetch(&went_back, 1, __ATOMIC_SEQ_CST);
			while (seen < ns && !__atomic_compare_exchange_n(&newest[i], &seen, ns, true, __ATOMIC_SEQ_CST,
									 __ATOMIC_SEQ_CST))
				;
		}
		n++;
	}
	return NULL;
}

static void test_threads(void)
{
	pthread_t t[3];

	for (int i = 0; i < 3; i++)
		pthread_create(&t[i], NULL, clock_reader, NULL);
	usleep(700000);
	stop = 1;
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	check(!went_back, "clocks are monotonic over threads");
}

static void test_paths(void)
{
	static const clockid_t clk[] = { CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW,
					 CLOCK_TAI };
	struct timeval tv, raw_tv;
	struct timespec ts;
	bool ok = true, coarse = true;
	time_t t;

	for (int i = 0; i < 20000; i++) {
		clockid_t c = clk[i % 5];
		int64_t a = raw_now(c), b = now(c), d = raw_now(c);

		ok &= a > 0 && a <= b && b <= d;
	}
	check(ok, "clock_gettime by vDSO and by system call");
	for (int i = 0; i < 1000; i++) {
		int64_t a = now(CLOCK_MONOTONIC), b = now(CLOCK_MONOTONIC_COARSE), d = now(CLOCK_MONOTONIC);

		coarse &= b <= d && b > a - SEC;
		a = now(CLOCK_REALTIME);
		b = now(CLOCK_REALTIME_COARSE);
		d = now(CLOCK_REALTIME);
		coarse &= b <= d && b > a - SEC;
	}
	check(coarse, "coarse clocks");
	ok = !syscall(SYS_gettimeofday, &raw_tv, NULL) && !gettimeofday(&tv, NULL);
	ok &= timercmp(&raw_tv, &tv, <=) && tv.tv_usec >= 0 && tv.tv_usec < 1000000;
	ok &= ts_ns(&(struct timespec){ tv.tv_sec, tv.tv_usec * 1000 }) <= now(CLOCK_REALTIME);
	check(ok, "gettimeofday");
	t = time(NULL);
	check(t >= raw_tv.tv_sec - 1 && t <= now(CLOCK_REALTIME) / SEC && syscall(SYS_time, &t) == t, "time");
	check(!clock_getres(CLOCK_MONOTONIC, &ts) && !ts.tv_sec && ts.tv_nsec > 0, "clock_getres");
	check(clock_gettime(12345, &ts) == -1 && errno == EINVAL, "no such clock");
	check(raw_now(CLOCK_MONOTONIC) > 0 && syscall(SYS_clock_gettime, CLOCK_MONOTONIC, (void *)1) == -1 &&
		      errno == EFAULT,
	      "bad pointer");
	check(sched_getcpu() >= 0, "getcpu");
}

/* Reading. Setting is not for us: asked for without privileges only, since natively it could be done. */
static void test_adjtimex(void)
{
	struct timex tx = { 0 }, ro = { 0 };
	int64_t before = now(CLOCK_REALTIME), us;
	long r = syscall(SYS_adjtimex, &tx);

	us = tx.time.tv_sec * 1000000ll + (tx.status & STA_NANO ? tx.time.tv_usec / 1000 : tx.time.tv_usec);
	check(r >= TIME_OK && r <= TIME_ERROR && tx.tick >= 9000 && tx.tick <= 11000 && us >= before / 1000 - 1 &&
		      us <= now(CLOCK_REALTIME) / 1000 + 1,
	      "adjtimex");
	ro.modes = ADJ_OFFSET_SS_READ;
	check(syscall(SYS_adjtimex, &ro) == r && ro.tick == tx.tick, "adjtimex: ADJ_OFFSET_SS_READ");
	memset(&tx, 0, sizeof tx);
	check(syscall(SYS_clock_adjtime, CLOCK_REALTIME, &tx) == r && tx.tick == ro.tick, "clock_adjtime");
	check(syscall(SYS_clock_adjtime, CLOCK_MONOTONIC, &tx) == -1 && errno == EOPNOTSUPP,
	      "clock_adjtime: monotonic");
	check(syscall(SYS_clock_adjtime, 12345, &tx) == -1 && errno == EINVAL &&
		      syscall(SYS_clock_adjtime, -5, &tx) == -1 && errno == EINVAL,
	      "clock_adjtime: no such clock");
	check(syscall(SYS_adjtimex, (void *)1) == -1 && errno == EFAULT, "adjtimex: bad pointer");
	pid_t p = fork();
	if (!p) {
		if (geteuid() == 0 && setresuid(65534, 65534, 65534))
			_exit(2);
		tx.modes = ADJ_FREQUENCY;
		_exit(!(syscall(SYS_adjtimex, &tx) == -1 && errno == EPERM &&
			syscall(SYS_clock_adjtime, CLOCK_REALTIME, &tx) == -1 && errno == EPERM));
	}
	int st = -1;
	check(p > 0 && waitpid(p, &st, 0) == p && st == 0, "adjtimex: nothing can be set");
}

static void test_cpu_clocks(void)
{
	int64_t p = now(CLOCK_PROCESS_CPUTIME_ID), t = now(CLOCK_THREAD_CPUTIME_ID);
	int64_t end = now(CLOCK_MONOTONIC) + 50 * MS;

	while (now(CLOCK_MONOTONIC) < end)
		;
	check(now(CLOCK_PROCESS_CPUTIME_ID) > p && now(CLOCK_THREAD_CPUTIME_ID) > t, "CPU clocks advance");
}

/* Longer than the time page is valid without the monitor, and without any call in between. */
static void test_spin(void)
{
	int64_t a = now(CLOCK_MONOTONIC), r = now(CLOCK_REALTIME), b, s, last = a;
	bool ok = true;

	while (last < a + 300 * MS) {
		b = now(CLOCK_MONOTONIC);
		ok &= b >= last;
		last = b;
	}
	s = now(CLOCK_REALTIME) - r;
	check(ok && s > 299 * MS && s < 300 * MS + LATE, "spinning on the clock");
	for (volatile int i = 0; i < 200000000; i++)
		;
	check(raw_now(CLOCK_MONOTONIC) >= last && now(CLOCK_MONOTONIC) >= last, "computing without calls");
}

/* ---- sleeps ---------------------------------------------------------------------------------------------- */
static volatile sig_atomic_t signals;

static void on_signal(int sig)
{
	(void)sig;
	signals++;
}

static void handle(int sig, int flags)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = flags };

	sigaction(sig, &sa, NULL);
}

static bool slept(int64_t start, int64_t want)
{
	int64_t d = now(CLOCK_MONOTONIC) - start;

	return d >= want && d < want + LATE;
}

static void test_sleep(void)
{
	struct timespec ts = ns_ts(30 * MS), rem;
	int64_t a = now(CLOCK_MONOTONIC);

	check(!nanosleep(&ts, NULL) && slept(a, 30 * MS), "nanosleep");
	a = now(CLOCK_MONOTONIC);
	ts = ns_ts(a + 30 * MS);
	check(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) && slept(a, 30 * MS),
	      "clock_nanosleep absolute");
	check(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL), "clock_nanosleep in the past");
	a = now(CLOCK_MONOTONIC);
	ts = ns_ts(now(CLOCK_REALTIME) + 30 * MS);
	check(!clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &ts, NULL) && slept(a, 29 * MS),
	      "clock_nanosleep absolute, realtime");
	ts = (struct timespec){ 0, SEC };
	check(nanosleep(&ts, NULL) == -1 && errno == EINVAL, "nanosleep: bad time");
	a = now(CLOCK_MONOTONIC);
	check(!poll(NULL, 0, 30) && slept(a, 30 * MS), "poll timeout");

	/* A handler ends it early also with SA_RESTART, and the rest is told. */
	handle(SIGALRM, SA_RESTART);
	signals = 0;
	a = now(CLOCK_MONOTONIC);
	setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 50000 }, { 0, 50000 } }, NULL);
	ts = ns_ts(200 * SEC);
	check(nanosleep(&ts, &rem) == -1 && errno == EINTR && signals >= 1 && slept(a, 49 * MS) &&
		      ts_ns(&rem) < 200 * SEC && ts_ns(&rem) > 200 * SEC - LATE,
	      "nanosleep interrupted");
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
}

/* ---- timers ---------------------------------------------------------------------------------------------- */
static volatile sig_atomic_t rt_value, rt_code;

static void on_timer(int sig, siginfo_t *si, void *uc)
{
	(void)sig;
	(void)uc;
	rt_value = si->si_value.sival_int;
	rt_code = si->si_code;
	signals++;
}

static bool wait_signals(int n)
{
	int64_t end = now(CLOCK_MONOTONIC) + LATE;
	struct timespec ts = ns_ts(5 * MS);

	while (signals < n && now(CLOCK_MONOTONIC) < end)
		nanosleep(&ts, NULL);
	return signals >= n;
}

static void on_thread(union sigval v) { __atomic_add_fetch((int *)v.sival_ptr, 1, __ATOMIC_SEQ_CST); }

static void test_posix_timers(void)
{
	struct sigaction sa = { .sa_sigaction = on_timer, .sa_flags = SA_SIGINFO };
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3 };
	struct itimerspec it = { { 0, 10 * MS }, { 0, 20 * MS } }, cur;
	static int fired;
	sigset_t set;
	siginfo_t si;
	timer_t t;
	int64_t a;

	sigaction(SIGRTMIN + 3, &sa, NULL);
	ev.sigev_value.sival_int = 4242;
	signals = 0;
	check(!timer_create(CLOCK_MONOTONIC, &ev, &t), "timer_create");
	a = now(CLOCK_MONOTONIC);
	check(!timer_settime(t, 0, &it, NULL) && wait_signals(3) && slept(a, 39 * MS), "timer_settime, periodic");
	check(rt_value == 4242 && rt_code == SI_TIMER, "siginfo of a timer");
	check(!timer_gettime(t, &cur) && ts_ns(&cur.it_interval) == 10 * MS && ts_ns(&cur.it_value) <= 10 * MS,
	      "timer_gettime");
	it = (struct itimerspec){ 0 };
	check(!timer_settime(t, 0, &it, NULL), "timer_settime, disarm");

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &set, NULL);
	while (!sigtimedwait(&set, NULL, &(struct timespec){ 0, 0 }))
		;
	it = (struct itimerspec){ { 0, 5 * MS }, ns_ts(now(CLOCK_MONOTONIC) + 20 * MS) };
	timer_settime(t, TIMER_ABSTIME, &it, NULL);
	usleep(100000);
	check(sigtimedwait(&set, &si, &(struct timespec){ 2, 0 }) == SIGRTMIN + 3 && si.si_value.sival_int == 4242 &&
		      si.si_overrun > 0 && timer_getoverrun(t) > 0,
	      "blocked timer signal, overrun");
	check(!timer_delete(t) && timer_settime(t, 0, &it, NULL) == -1 && errno == EINVAL, "timer_delete");
	while (sigtimedwait(&set, NULL, &(struct timespec){ 0, 0 }) > 0)
		;
	sigprocmask(SIG_UNBLOCK, &set, NULL);

	ev = (struct sigevent){ .sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread };
	ev.sigev_value.sival_ptr = &fired;
	it = (struct itimerspec){ { 0, 0 }, { 0, 20 * MS } };
	a = now(CLOCK_MONOTONIC);
	check(!timer_create(CLOCK_REALTIME, &ev, &t) && !timer_settime(t, 0, &it, NULL), "timer with a thread");
	while (!__atomic_load_n(&fired, __ATOMIC_SEQ_CST) && now(CLOCK_MONOTONIC) < a + LATE)
		usleep(2000);
	check(__atomic_load_n(&fired, __ATOMIC_SEQ_CST) == 1, "timer with a thread fired");
	timer_delete(t);
}

static void test_timerfd(void)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	struct itimerspec it = { { 0, 10 * MS }, { 0, 30 * MS } }, cur;
	struct pollfd p = { fd, POLLIN, 0 };
	uint64_t n = 0;
	int64_t a;

	check(fd >= 0, "timerfd_create");
	check(read(fd, &n, 8) == -1 && errno == EAGAIN, "timerfd: not yet");
	a = now(CLOCK_MONOTONIC);
	check(!timerfd_settime(fd, 0, &it, NULL) && poll(&p, 1, 60000) == 1 && slept(a, 30 * MS), "timerfd: poll");
	check(read(fd, &n, 8) == 8 && n >= 1, "timerfd: read");
	usleep(50000);
	check(read(fd, &n, 8) == 8 && n >= 4, "timerfd: several expirations");
	check(!timerfd_gettime(fd, &cur) && ts_ns(&cur.it_interval) == 10 * MS, "timerfd_gettime");
	close(fd);

	fd = timerfd_create(CLOCK_REALTIME, 0);
	a = now(CLOCK_MONOTONIC);
	it = (struct itimerspec){ { 0, 0 }, ns_ts(now(CLOCK_REALTIME) + 30 * MS) };
	check(!timerfd_settime(fd, TFD_TIMER_ABSTIME, &it, NULL) && read(fd, &n, 8) == 8 && n == 1 && slept(a, 29 * MS),
	      "timerfd: absolute, blocking");
	close(fd);
}

static void test_itimers(void)
{
	struct itimerval it = { { 0, 10000 }, { 0, 20000 } }, old;
	int64_t a;

	handle(SIGALRM, SA_RESTART);
	handle(SIGVTALRM, SA_RESTART);
	handle(SIGPROF, SA_RESTART);
	signals = 0;
	a = now(CLOCK_MONOTONIC);
	check(!setitimer(ITIMER_REAL, &it, NULL) && wait_signals(3) && slept(a, 39 * MS), "setitimer");
	check(!getitimer(ITIMER_REAL, &old) && old.it_interval.tv_usec == 10000 && old.it_value.tv_usec <= 10000,
	      "getitimer");
	it = (struct itimerval){ 0 };
	check(!setitimer(ITIMER_REAL, &it, &old) && old.it_interval.tv_usec == 10000, "setitimer, disarm");

	signals = 0;
	it.it_value.tv_usec = 20000;
	a = now(CLOCK_MONOTONIC);
	setitimer(ITIMER_PROF, &it, NULL);
	setitimer(ITIMER_VIRTUAL, &it, NULL);
	while (signals < 2 && now(CLOCK_MONOTONIC) < a + LATE)
		;
	check(signals == 2, "profiling and virtual timers");

	signals = 0;
	a = now(CLOCK_MONOTONIC);
	sigset_t set, old_set;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigprocmask(SIG_BLOCK, &set, &old_set);
	check(!alarm(1000) && alarm(1) >= 900, "alarm replaces");
	sigsuspend(&old_set);
	sigprocmask(SIG_SETMASK, &old_set, NULL);
	check(signals == 1 && slept(a, 999 * MS), "alarm");
	check(!alarm(1000) && alarm(0) >= 900, "alarm cancelled");

	/* A thread that makes no system call gets its signal too. */
	signals = 0;
	it.it_value.tv_usec = 30000;
	setitimer(ITIMER_REAL, &it, NULL);
	for (volatile uint64_t i = 0; !signals && i < 20000000000; i++)
		;
	check(signals == 1, "signal without system calls");
}

/* ---- the processor's counter ------------------------------------------------------------------------------ */
/* Between processors it may differ a little, as their own clocks allow. */
static bool tsc_goes_on(uint64_t since) { return __builtin_ia32_rdtsc() - since + 1000000 < 1ull << 40; }

static void *tsc_reader(void *arg) { return tsc_goes_on(*(uint64_t *)arg) ? arg : NULL; }

static bool tsc_child(bool exec)
{
	char text[32];
	uint64_t before = __builtin_ia32_rdtsc();
	snprintf(text, sizeof text, "%llu", (unsigned long long)before);
	pid_t pid = fork();
	if (pid == 0 && exec)
		execl("/proc/self/exe", "time", "tsc", text, NULL);
	if (pid == 0)
		_exit(exec ? 2 : !tsc_goes_on(before));
	int status = -1;
	return waitpid(pid, &status, 0) == pid && status == 0 && tsc_goes_on(before);
}

static void test_tsc(void)
{
	uint64_t now = __builtin_ia32_rdtsc();
	pthread_t t;
	void *r = NULL;
	check(!pthread_create(&t, NULL, tsc_reader, &now) && !pthread_join(t, &r) && r, "rdtsc goes on in a thread");
	check(tsc_child(false), "rdtsc goes on in a child");
	check(tsc_child(true), "rdtsc goes on behind exec");
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "tsc"))
		return !tsc_goes_on(strtoull(argv[2], NULL, 10));
	test_threads();
	test_paths();
	test_adjtimex();
	test_cpu_clocks();
	test_spin();
	test_sleep();
	test_posix_timers();
	test_timerfd();
	test_itimers();
	test_tsc(); /* last: a counter that begins anew is behind by then */
	puts(failures ? "FAILED" : "SUCCESS");
	return failures != 0;
}
