/* SPDX-License-Identifier: Apache-2.0 */
/* Signals and threads; storms; all blocked. Part of sig.c. */
#ifndef KX_GUEST_SIG_THREADS_H
#define KX_GUEST_SIG_THREADS_H
#include "sig.h"

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
static inline void test_directed(void)
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

static inline void test_threads(void)
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

static inline void test_storm(void)
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

static inline void test_ending_threads(void)
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

static inline void test_all_blocked(void)
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
#endif
