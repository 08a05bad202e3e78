/* SPDX-License-Identifier: Apache-2.0 */
/* Stressors of signals, timers and threads. Part of stress.c. */
#ifndef KX_GUEST_STRESS_THREADS_H
#define KX_GUEST_STRESS_THREADS_H
#include "processor.h"

/* ---- signals and time ----------------------------------------------------------------------------------------- */

static atomic_int usr_count;
static atomic_long value_sum;
static inline void on_usr(int sig, siginfo_t *si, void *uc)
{
	(void)sig, (void)uc;
	usr_count++;
	value_sum += si->si_value.sival_int;
}

static atomic_bool stop_peer;
static inline void *signal_peer(void *arg)
{
	(void)arg;
	while (!stop_peer)
		usleep(1000);
	return NULL;
}

static inline uint64_t st_signal(void)
{
	uint64_t ops = 0;
	long sum = 0;
	char *alt = mmap(NULL, 64 * 1024, RW, ANON, -1, 0);
	stack_t ss = { .ss_sp = alt, .ss_size = 64 * 1024 }, off = { .ss_flags = SS_DISABLE };
	must(alt != MAP_FAILED && sigaltstack(&ss, NULL) == 0);
	sigset_t rt, old, pending;
	sigemptyset(&rt);
	sigaddset(&rt, SIGRTMIN + 1);
	set_handler(SIGUSR1, on_usr, SA_ONSTACK | SA_RESTART);
	set_handler(SIGRTMIN + 1, on_usr, SA_RESTART);
	stop_peer = false;
	pthread_t peer = start(signal_peer, NULL);
	for (; !over(); ops++) {
		int before = usr_count;
		must(raise(SIGUSR1) == 0);
		expect(usr_count == before + 1, "raise: not at once");
		must(kill(getpid(), 0) == 0);
		/* Blocked, queued in order, and then all of them. */
		must(pthread_sigmask(SIG_BLOCK, &rt, &old) == 0);
		int n = 1 + (int)below(5);
		for (int i = 0; i < n; i++) {
			siginfo_t si = { .si_signo = SIGRTMIN + 1, .si_code = SI_QUEUE };
			si.si_pid = getpid();
			si.si_uid = getuid();
			si.si_value.sival_int = (int)ops + i;
			sum += (int)ops + i;
			must(syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGRTMIN + 1, &si) == 0);
		}
		must(sigpending(&pending) == 0);
		expect(sigismember(&pending, SIGRTMIN + 1) == 1 && usr_count == before + 1, "queued: not pending");
		if (ops & 1) {
			siginfo_t si;
			must(sigwaitinfo(&rt, &si) == SIGRTMIN + 1);
			expect(si.si_value.sival_int == (int)ops, "the first of %d has value %d, not %d", n,
			       si.si_value.sival_int, (int)ops);
			value_sum += si.si_value.sival_int;
			usr_count++;
		}
		must(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
		expect(usr_count == before + 1 + n, "%d of %d queued signals came", usr_count - before - 1, n);
		expect(value_sum == sum, "their values sum to %ld, not %ld", value_sum, sum);
		/* To a thread that sleeps. */
		before = usr_count;
		must(pthread_kill(peer, SIGUSR1) == 0);
		for (uint64_t limit = now() + 60000000000; usr_count == before && now() < limit;)
			sched_yield();
		expect(usr_count == before + 1, "a sleeping thread got no signal");
	}
	stop_peer = true;
	pthread_join(peer, NULL);
	sigaltstack(&off, NULL);
	munmap(alt, 64 * 1024);
	return ops;
}

static inline uint64_t st_timer(void)
{
	uint64_t ops = 0, expired = 0;
	timer_t timer;
	int tfd = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec it = { { 0, 500000 }, { 0, 500000 } };
	must(tfd >= 0);
	ticks = 0;
	set_handler(SIGALRM, on_tick, SA_RESTART);
	uint64_t begin = now();
	timer_start(&timer, SIGALRM, 2000000);
	must(timerfd_settime(tfd, 0, &it, NULL) == 0);
	uint64_t armed = now();
	for (; !over(); ops++) {
		uint64_t n, t = now();
		struct timespec ts = { 0, 200000 }, rest;
		int r;
		while ((r = nanosleep(&ts, &rest)) < 0 && errno == EINTR)
			ts = rest;
		expect(r == 0 && now() - t >= 200000, "slept %lu ns of 200000", now() - t);
		must(read(tfd, &n, 8) == 8);
		expired += n;
		uint64_t most = (now() - begin) / 500000 + 1;
		expect(expired <= most, "%lu expirations in the time of %lu", expired, most);
	}
	/* Each time is taken on that side of what it limits on which it may be late. */
	uint64_t n, least = (now() - armed) / 500000;
	must(read(tfd, &n, 8) == 8);
	expect(expired + n + 1 >= least, "%lu expirations in the time of %lu", expired + n, least);
	timer_delete(timer);
	uint64_t most = (now() - begin) / 2000000 + 1;
	expect((uint64_t)ticks <= most && ticks >= 1, "%d ticks in the time of %lu", ticks, most);
	close(tfd);
	return ops;
}

/* ---- threads -------------------------------------------------------------------------------------------------- */

static atomic_uint ball, nobody; /* nobody wakes `nobody`: a late wake-up of `ball` would do */
static inline long futex(atomic_uint *p, int op, unsigned v)
{
	return syscall(SYS_futex, p, op | FUTEX_PRIVATE_FLAG, v, NULL, NULL, 0);
}

static inline bool ball_await(unsigned mine)
{
	unsigned v;
	while ((v = ball) != ~0u && (v & 1) != mine) {
		long r = futex(&ball, FUTEX_WAIT, v);
		expect(r == 0 || errno == EAGAIN || errno == EINTR, "FUTEX_WAIT");
	}
	return v != ~0u;
}

static inline void *futex_peer(void *arg)
{
	(void)arg;
	while (ball_await(1)) {
		ball++;
		expect(futex(&ball, FUTEX_WAKE, 1) <= 1, "FUTEX_WAKE");
	}
	return NULL;
}

static inline uint64_t st_futex(void)
{
	uint64_t ops = 0;
	ball = 0;
	pthread_t peer = start(futex_peer, NULL);
	for (; !over(); ops++) {
		ball++;
		futex(&ball, FUTEX_WAKE, 1);
		ball_await(0);
		expect(ball == (unsigned)(ops + 1) * 2, "the ball is %u after %lu rounds", ball, ops);
		struct timespec ts = { 0, 100000 };
		if (ops % 64 == 0) {
			uint64_t t = now();
			long r = syscall(SYS_futex, &nobody, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0);
			expect(r < 0 && errno == ETIMEDOUT && now() - t >= 100000,
			       "FUTEX_WAIT with a time limit gives %ld", r);
			expect(futex(&nobody, FUTEX_WAIT, 1) < 0 && errno == EAGAIN, "FUTEX_WAIT of another value");
		}
	}
	ball = ~0u;
	futex(&ball, FUTEX_WAKE, 1);
	pthread_join(peer, NULL);
	return ops;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static __thread long own;
static long shared, turn, pair[2];

static inline void *pthread_worker(void *arg)
{
	long me = (long)arg;
	expect(own == 0, "a new thread's variable is %ld", own);
	own = me;
	for (int i = 0; i < 100; i++) {
		pthread_mutex_lock(&lock);
		shared++;
		pthread_mutex_unlock(&lock);
		if (i % 10 == 0) {
			pthread_rwlock_wrlock(&rwlock);
			pair[0]++;
			pair[1]--;
			pthread_rwlock_unlock(&rwlock);
		} else {
			pthread_rwlock_rdlock(&rwlock);
			expect(pair[0] == -pair[1], "a reader sees half of a write");
			pthread_rwlock_unlock(&rwlock);
		}
	}
	pthread_barrier_wait(&barrier);
	expect(shared % 400 == 0, "after the barrier the count is %ld", shared);
	pthread_mutex_lock(&lock);
	while (turn != me)
		pthread_cond_wait(&cond, &lock);
	turn++;
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&lock);
	expect(own == me, "a thread's variable is %ld", own);
	return (void *)(me * me);
}

static inline uint64_t st_pthread(void)
{
	uint64_t ops = 0;
	pthread_barrier_init(&barrier, NULL, 4);
	for (; !over(); ops++) {
		pthread_t t[4];
		turn = 0;
		for (long i = 0; i < 4; i++)
			t[i] = start(pthread_worker, (void *)i);
		for (long i = 0; i < 4; i++) {
			void *r;
			must(pthread_join(t[i], &r) == 0);
			expect((long)r == i * i, "thread %ld returns %ld", i, (long)r);
		}
		expect(shared == (long)(ops + 1) * 400, "the count is %ld", shared);
		expect(turn == 4 && pair[0] == (long)(ops + 1) * 40, "turn %ld, %ld writes", turn, pair[0]);
	}
	pthread_barrier_destroy(&barrier);
	return ops;
}

#endif
