/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two who wake each other by futexes and wait in turn, on one CPU and on all: as processes with shared memory, and as threads
 * with private futexes. What FUTEX_WAKE returns is how many it has woken, to the last one, whatever timeouts, signals, stops
 * and deaths come between; a wake comes although whoever made it goes on without a call, or is killed; a word is known by
 * what is mapped, not by its address. Passes on any x86-64 Linux. The exit code is the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include "../asleep.h"
#include "../check.h"
#include "../children.h"
#include "../cpus.h"

#ifndef FUTEX /* tests/unit/test_fnap.c has one of its own, for memory that lies low */
#define FUTEX(...) syscall(SYS_futex, __VA_ARGS__)
#define MAP_LOW 0
#endif
#define ROUNDS 600
#define TRAIN 40 /* rounds after which each knows of the other */
#define TIMES 12

static struct area {
	uint32_t word[2][16];
	volatile long woken, zeros; /* what wakes returned, waits that returned 0 */
	volatile long had, more[4];
	pthread_mutex_t m;
	pthread_cond_t c[2];
	int turn;
} * s;
static int private; /* FUTEX_PRIVATE_FLAG, of threads */

static long fx(uint32_t *w, int op, uint32_t v, const struct timespec *ts)
{
	return FUTEX(w, op | private, v, ts, NULL, 0);
}
static uint32_t now_of(const uint32_t *w) { return __atomic_load_n(w, __ATOMIC_SEQ_CST); }

/* Tell the other one `v`; how many were woken. */
static long give(uint32_t *w, uint32_t v)
{
	__atomic_store_n(w, v, __ATOMIC_SEQ_CST);
	return fx(w, FUTEX_WAKE, 1, NULL);
}

/* Until *w is v, or 5 s. us: how long each wait may last; 0: for ever. */
static bool take(uint32_t *w, uint32_t v, int us)
{
	const struct timespec ts = { 0, us * 1000l };
	uint32_t is;
	while ((is = now_of(w)) != v) {
		long r = fx(w, FUTEX_WAIT, is, us ? &ts : NULL);
		if (!r)
			__atomic_add_fetch(&s->zeros, 1, __ATOMIC_SEQ_CST);
		else if (errno != EAGAIN && errno != EINTR && errno != ETIMEDOUT)
			return false;
	}
	return true;
}

static void fresh(void)
{
	memset(s, 0, sizeof *s);
	pthread_mutexattr_t ma;
	pthread_condattr_t ca;
	pthread_mutexattr_init(&ma);
	pthread_condattr_init(&ca);
	pthread_mutexattr_setpshared(&ma, !private);
	pthread_condattr_setpshared(&ca, !private);
	pthread_mutex_init(&s->m, &ma);
	for (int i = 0; i < 2; i++)
		pthread_cond_init(&s->c[i], &ca);
}

/* Whoever answers: `way` 1 begins. us as take() has it, by turns of its own. */
static bool rounds(int way, int n, int us)
{
	for (int i = 1; i <= n; i++) {
		if (way)
			s->more[way] += give(s->word[1], (uint32_t)i);
		if (!take(s->word[!way], (uint32_t)i, us ? us + i * 7 % 13 * 50 : 0))
			return false;
		if (!way)
			s->more[way] += give(s->word[0], (uint32_t)i);
	}
	return true;
}

static void told(const char *what, bool good)
{
	char name[120];
	cpu_set_t set;
	sched_getaffinity(0, sizeof set, &set);
	snprintf(name, sizeof name, "%s: %s, %s", private ? "threads" : "processes", what,
		 CPU_COUNT(&set) == 1 ? "one CPU" : "all CPUs");
	check(good, name);
}

/* ---- what wakes return -------------------------------------------------------------------------------------------- */

static int us_of_other;
static void *other(void *p) { return rounds(0, *(int *)p, us_of_other) ? p : NULL; }

/* The other side as a thread, or a process. */
static bool beside(int n, int us)
{
	us_of_other = us;
	if (private) {
		pthread_t t;
		void *r = NULL;
		bool good = !pthread_create(&t, NULL, other, &n) && rounds(1, n, us);
		return !pthread_join(t, &r) && r && good;
	}
	pid_t p = FORK(NEED(rounds(0, n, us)));
	bool good = rounds(1, n, us);
	return fine(p) && good;
}

static void on_signal(int sig) { (void)sig; }

static void counted(void)
{
	struct sigaction sa = { .sa_handler = on_signal };
	for (int us = 0; us <= 300; us += 150) {
		fresh();
		bool good = beside(ROUNDS, us);
		told(us ? "as many wait in vain no more as were woken, with timeouts" : "as many go on as were woken",
		     good && s->more[0] + s->more[1] == s->zeros);
	}
	fresh();
	sigaction(SIGALRM, &sa, NULL);
	struct itimerval it = { { 0, 700 }, { 0, 700 } }, none = { { 0, 0 }, { 0, 0 } };
	setitimer(ITIMER_REAL, &it, NULL);
	bool good = beside(ROUNDS, 0);
	setitimer(ITIMER_REAL, &none, NULL);
	told("as many as were woken, with signals", good && s->more[0] + s->more[1] == s->zeros);
}

static bool turns(int me, int n)
{
	for (int i = 0; i < n; i++) {
		pthread_mutex_lock(&s->m);
		while (s->turn != me)
			pthread_cond_wait(&s->c[me], &s->m);
		s->turn = !me;
		pthread_cond_signal(&s->c[!me]);
		pthread_mutex_unlock(&s->m);
	}
	return true;
}
static void *turns_of_other(void *p)
{
	turns(0, ROUNDS);
	return p;
}

static void condition(void)
{
	fresh();
	pthread_t t;
	pid_t p = -1;
	bool good = true;
	if (private)
		good = !pthread_create(&t, NULL, turns_of_other, NULL);
	else
		p = FORK(turns(0, ROUNDS));
	turns(1, ROUNDS);
	good = (private ? !pthread_join(t, NULL) : fine(p)) && good;
	told("mutex and condition, to and fro", good);
}

/* ---- who wakes ---------------------------------------------------------------------------------------------------- */

static bool comes(volatile long *at, long v, int ms_most)
{
	struct timespec a, b;
	clock_gettime(CLOCK_MONOTONIC, &a);
	do {
		if (*at == v)
			return true;
		clock_gettime(CLOCK_MONOTONIC, &b);
	} while ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < ms_most);
	return *at == v;
}

static void computes(void)
{
	fresh();
	pid_t p = FORK({
		for (int n = 0; n < TIMES; n++) {
			NEED(rounds(0, TRAIN, 0) && take(s->word[1], 1000, 0));
			s->had = n + 1;
		}
	});
	bool good = true;
	for (int n = 0; n < TIMES && good; n++) {
		good = rounds(1, TRAIN, 0);
		sched_yield(), sched_yield();
		give(s->word[1], 1000);
		good = good && comes(&s->had, n + 1, 2000);
	}
	told("who has woken goes on without a call", fine(p) && good);
}

static void waker_killed(void)
{
	bool good = true;
	for (int n = 0; n < TIMES && good; n++) {
		fresh();
		pid_t p = FORK(NEED(rounds(0, TRAIN + n, 0) && take(s->word[1], 1000, 0)));
		pid_t q = FORK({
			NEED(rounds(1, TRAIN + n, 0));
			give(s->word[1], 1000);
			s->more[2] = 1;
			for (;;)
				;
		});
		while (!s->more[2])
			sched_yield();
		kill(q, SIGKILL);
		good = WIFSIGNALED(status_of(q)) && fine(p);
	}
	told("who has woken is killed", good);
}

/* ---- who waits ---------------------------------------------------------------------------------------------------- */

/* A process that knows of this one by now, and waits for 1000. */
static pid_t waiter(bool *good)
{
	fresh();
	pid_t p = FORK(NEED(rounds(0, TRAIN, 0) && take(s->word[1], 1000, 0)));
	*good = rounds(1, TRAIN, 0);
	return p;
}

static void waiter_killed(void)
{
	bool good = true;
	for (int n = 0; n < TIMES && good; n++) {
		pid_t p = waiter(&good);
		usleep((unsigned)(n % 6 * 120));
		kill(p, SIGKILL);
		good = WIFSIGNALED(status_of(p)) && good && give(s->word[1], 1000) == 0;
	}
	told("who waited was killed: nobody is woken", good);
	for (int n = 0; n < TIMES && good; n++) {
		pid_t p = waiter(&good);
		pid_t q = FORK(NEED(take(s->word[1], 1000, 0)));
		usleep((unsigned)(n % 6 * 120));
		kill(p, SIGKILL);
		good = give(s->word[1], 1000) <= 1 && good && status_of(p) != -1;
		fx(s->word[1], FUTEX_WAKE, 1, NULL); /* who was killed may have had the first */
		good = fine(q) && good;
	}
	told("one of two who wait is killed", good);
}

static void stopped(void)
{
	bool good = true;
	for (int n = 0; n < TIMES && good; n++) {
		pid_t p = waiter(&good);
		usleep((unsigned)(n % 6 * 120));
		int st;
		kill(p, SIGSTOP);
		good = waitpid(p, &st, WUNTRACED) == p && WIFSTOPPED(st) && good;
		long first = give(s->word[1], 1000), second = fx(s->word[1], FUTEX_WAKE, 1, NULL);
		good = first <= 1 && !second && good; /* 0: it was not waiting yet */
		kill(p, SIGCONT);
		good = fine(p) && good;
	}
	told("who waits is stopped", good);
}

static void several(void)
{
	bool good;
	pid_t p = waiter(&good);
	pid_t q = FORK(NEED(take(s->word[1], 1000, 0)));
	asleep(p, p);
	asleep(q, q);
	__atomic_store_n(s->word[1], 1000, __ATOMIC_SEQ_CST);
	good = fx(s->word[1], FUTEX_WAKE, INT_MAX, NULL) == 2 && good;
	told("all are woken", fine(p) && fine(q) && good);
	p = waiter(&good);
	asleep(p, p);
	good = FUTEX(s->word[1], FUTEX_CMP_REQUEUE, 0, (void *)1l, s->word[0], TRAIN) == 1 && good;
	good = fx(s->word[1], FUTEX_WAKE, 1, NULL) == 0 && good;
	__atomic_store_n(s->word[1], 1000, __ATOMIC_SEQ_CST);
	good = fx(s->word[0], FUTEX_WAKE, 1, NULL) == 1 && good;
	told("moved to another word", fine(p) && good);
}

/* ---- which word --------------------------------------------------------------------------------------------------- */

static void *map_of(int fd, void *at)
{
	return mmap(at, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : MAP_LOW), fd, 0);
}

static void mapped_anew(void)
{
	struct area *usual = s;
	int fd = memfd_create("words", MFD_CLOEXEC), fd2 = memfd_create("others", MFD_CLOEXEC);
	bool good = fd >= 0 && fd2 >= 0 && !ftruncate(fd, 4096) && !ftruncate(fd2, 4096);
	s = map_of(fd, NULL);
	struct area *second = map_of(fd, NULL);
	good = good && s != MAP_FAILED && second != MAP_FAILED;
	for (int n = 0; n < TIMES && good; n++) {
		memset(s, 0, sizeof *s);
		/* It knows the words by other addresses. */
		pid_t p = FORK({
			s = second;
			NEED(rounds(0, TRAIN, 0) && take(s->word[1], 1000, 0));
			s->had = 1;
		});
		good = rounds(1, TRAIN, 0);
		usleep((unsigned)(n % 6 * 120));
		/* Another page's word, at the address that was the first one's. */
		good = map_of(fd2, s) == s && good && give(s->word[1], 1000) == 0;
		good = good && second->word[1][0] == TRAIN && !second->had;
		second->word[1][0] = 1000;
		long r = FUTEX(second->word[1], FUTEX_WAKE, 1, NULL, NULL, 0);
		good = (r == 0 || r == 1) && fine(p) && good;
		good = map_of(fd, s) == s && good;
	}
	told("other memory at the same address", good);
	munmap(second, 4096);
	munmap(s, 4096);
	close(fd);
	close(fd2);
	s = usual;
}

int main(int argc, char **argv)
{
	cpu_set_t all, one;
	setvbuf(stdout, NULL, _IOLBF, 0);
	struct area *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_LOW, -1, 0);
	struct area *own = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOW, -1, 0);
	cpus_read(&all, &one);
	for (int cpus = 1; cpus <= 2; cpus++) {
		sched_setaffinity(0, sizeof one, cpus == 1 ? &one : &all);
		s = shared;
		private = 0;
		if (is_wanted(argc, argv, "counted"))
			counted();
		if (is_wanted(argc, argv, "condition"))
			condition();
		if (is_wanted(argc, argv, "waker"))
			computes(), waker_killed();
		if (is_wanted(argc, argv, "waiter"))
			waiter_killed(), stopped(), several();
		if (is_wanted(argc, argv, "mapped"))
			mapped_anew();
		s = own;
		private = FUTEX_PRIVATE_FLAG;
		if (is_wanted(argc, argv, "threads"))
			counted(), condition();
	}
	check(wait(NULL) == -1 && errno == ECHILD, "no child left");
	check_named(argc);
	return verdict();
}
