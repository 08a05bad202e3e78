/* SPDX-License-Identifier: Apache-2.0 */
/* Threads: raw clone and clone3, pthreads and C11 on top, futexes by hand. Passes on any x86-64 Linux. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"

/* As linux/futex.h, which not every libc's compiler finds. */
enum {
	FUTEX_WAIT,
	FUTEX_WAKE,
	FUTEX_REQUEUE = 3,
	FUTEX_CMP_REQUEUE,
	FUTEX_WAKE_OP,
	FUTEX_LOCK_PI,
	FUTEX_UNLOCK_PI,
	FUTEX_TRYLOCK_PI,
	FUTEX_WAIT_BITSET,
	FUTEX_WAKE_BITSET,
	FUTEX_PRIVATE_FLAG = 128,
	FUTEX_CLOCK_REALTIME = 256
};
#define FUTEX_WAIT_PRIVATE (FUTEX_WAIT | FUTEX_PRIVATE_FLAG)
#define FUTEX_WAKE_PRIVATE (FUTEX_WAKE | FUTEX_PRIVATE_FLAG)
/* *w2 += 1; wake there too if it was 5 */
#define FUTEX_OP_ADD_1_CMP_EQ_5 (1u << 28 | 0u << 24 | 1u << 12 | 5u)

#define MS 1000000L
#define STACK 65536

static int failures;

static bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

static pid_t tid_of(void) { return (pid_t)syscall(SYS_gettid); }

static void nap(long ns)
{
	struct timespec ts = { ns / 1000000000, ns % 1000000000 };
	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static int64_t now_ns(clockid_t c)
{
	struct timespec ts;
	clock_gettime(c, &ts);
	return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

static struct timespec in_ns(clockid_t c, long ns)
{
	int64_t t = now_ns(c) + ns;
	return (struct timespec){ t / 1000000000, t % 1000000000 };
}

static long futex(void *w, int op, uint32_t val, const void *timeout, void *w2, uint32_t val3)
{
	long r = syscall(SYS_futex, w, op, val, timeout, w2, val3);
	return r == -1 ? -errno : r;
}

/* ---- raw clone -------------------- */

#define RAW_FLAGS \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | \
	 CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID)

/*
 * long raw_clone(flags, stack, ptid, ctid, tls, fn, arg): the child calls fn(arg) on its stack and ends. Registers
 * that the call must keep are the way in which fn and arg get to the child.
 */
__asm__(".text\n.globl raw_clone\nraw_clone:\n"
	"	push %r12\n	push %r13\n"
	"	mov %r9, %r12\n	mov 24(%rsp), %r13\n"
	"	mov %rcx, %r10\n"
	"	mov $56, %eax\n	syscall\n"
	"	test %rax, %rax\n	jz 1f\n	pop %r13\n	pop %r12\n	ret\n"
	"1:	xor %ebp, %ebp\n	and $-16, %rsp\n	mov %r13, %rdi\n	call *%r12\n"
	"	mov %eax, %edi\n	mov $60, %eax\n	syscall\n	hlt\n");
long raw_clone(unsigned long flags, void *stack, void *ptid, void *ctid, void *tls, int (*fn)(void *), void *arg);
/* The same by clone3. */
__asm__(".text\n.globl raw_clone3\nraw_clone3:\n"
	"	mov %rdx, %r8\n	mov %rcx, %r9\n	mov $435, %eax\n	syscall\n"
	"	test %rax, %rax\n	jz 1f\n	ret\n"
	"1:	xor %ebp, %ebp\n	mov %r9, %rdi\n	call *%r8\n"
	"	mov %eax, %edi\n	mov $60, %eax\n	syscall\n	hlt\n");
struct args3 {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
		cgroup;
};
long raw_clone3(struct args3 *a, size_t size, int (*fn)(void *), void *arg);

struct raw {
	uint64_t tls[8];  /* fs:0 is its own address */
	pid_t ptid, ctid; /* set by the kernel */
	pid_t seen_tid, seen_ctid;
	uint64_t seen_tls, sp;
	uint32_t go;
	volatile uint32_t done;
	char *stack;
};

/* No libc here: its thread pointer is not set up. */
static long sys3(long nr, long a, long b, long c)
{
	long r;
	register long r10 __asm__("r10") = 0;
	__asm__ volatile("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}

static int raw_thread(void *arg)
{
	struct raw *w = arg;
	uint64_t tls;
	w->seen_tid = (pid_t)sys3(SYS_gettid, 0, 0, 0);
	w->seen_ctid = w->ctid;
	__asm__ volatile("mov %%fs:0, %0" : "=r"(tls));
	w->seen_tls = tls;
	__asm__ volatile("mov %%rsp, %0" : "=r"(w->sp));
	while (!__atomic_load_n(&w->go, __ATOMIC_ACQUIRE))
		sys3(SYS_futex, (long)&w->go, FUTEX_WAIT_PRIVATE, 0);
	w->done = 1;
	return 0;
}

static void raw_prepare(struct raw *w)
{
	memset(w, 0, sizeof *w);
	w->tls[0] = (uint64_t)w->tls;
	w->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	w->ctid = -1;
}

/* CLONE_CHILD_CLEARTID: the word becomes 0 and one waiter is woken. */
static bool raw_join(struct raw *w)
{
	int tid;
	__atomic_store_n(&w->go, 1, __ATOMIC_RELEASE);
	futex(&w->go, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	struct timespec ts = { 5, 0 };
	while ((tid = __atomic_load_n(&w->ctid, __ATOMIC_ACQUIRE)) != 0)
		if (futex(&w->ctid, FUTEX_WAIT, (uint32_t)tid, &ts, NULL, 0) == -ETIMEDOUT)
			return false;
	munmap(w->stack, STACK);
	return w->done;
}

static bool raw_ok(const struct raw *w, long tid)
{
	return tid > 0 && w->ptid == tid && w->seen_tid == tid && w->seen_ctid == tid &&
	       w->seen_tls == (uint64_t)w->tls && w->sp > (uint64_t)w->stack && w->sp <= (uint64_t)w->stack + STACK;
}

static void test_raw(void)
{
	static struct raw w[64];
	raw_prepare(&w[0]);
	long tid = raw_clone(RAW_FLAGS, w[0].stack + STACK, &w[0].ptid, &w[0].ctid, w[0].tls, raw_thread, &w[0]);
	check(tid > 0 && w[0].ptid == tid, "clone: PARENT_SETTID before it returns");

	check(syscall(SYS_tgkill, getpid(), tid, 0) == 0, "the thread is there");
	bool joined = raw_join(&w[0]);
	check(joined && raw_ok(&w[0], tid), "clone: CHILD_SETTID, SETTLS, own stack, CHILD_CLEARTID");
	for (int i = 0; i < 1000 && syscall(SYS_tgkill, getpid(), tid, 0) == 0; i++)
		nap(MS);
	check(syscall(SYS_tgkill, getpid(), tid, 0) == -1 && errno == ESRCH, "and gone");

	raw_prepare(&w[0]);
	struct args3 a = { .flags = RAW_FLAGS,
			   .child_tid = (uint64_t)&w[0].ctid,
			   .parent_tid = (uint64_t)&w[0].ptid,
			   .stack = (uint64_t)w[0].stack,
			   .stack_size = STACK,
			   .tls = (uint64_t)w[0].tls };
	tid = raw_clone3(&a, sizeof a, raw_thread, &w[0]);
	if (tid == -ENOSYS) {
		check(true, "clone3 (this kernel has none: skipped)");
		munmap(w[0].stack, STACK);
	} else {
		joined = tid > 0 && raw_join(&w[0]);
		check(joined && raw_ok(&w[0], tid), "clone3");
		check(raw_clone3(&a, 8, raw_thread, NULL) == -EINVAL, "clone3: size");
		check(raw_clone3((void *)8, sizeof a, raw_thread, NULL) == -EFAULT, "clone3: EFAULT");
		a.exit_signal = SIGCHLD;
		check(raw_clone3(&a, sizeof a, raw_thread, NULL) == -EINVAL, "clone3: a thread with an exit signal");
	}
	check(raw_clone(CLONE_THREAD, NULL, NULL, NULL, NULL, raw_thread, NULL) == -EINVAL,
	      "clone: THREAD without SIGHAND");
	check(raw_clone(CLONE_SIGHAND, NULL, NULL, NULL, NULL, raw_thread, NULL) == -EINVAL,
	      "clone: SIGHAND without VM");

	bool ok = true;
	static long tids[64];
	for (int i = 0; i < 64; i++) {
		raw_prepare(&w[i]);
		tids[i] = raw_clone(RAW_FLAGS, w[i].stack + STACK, &w[i].ptid, &w[i].ctid, w[i].tls, raw_thread, &w[i]);
		ok &= tids[i] > 0;
	}
	for (int i = 0; i < 64 && ok; i++)
		ok &= raw_join(&w[i]) && raw_ok(&w[i], tids[i]);
	check(ok, "64 raw threads at once");
}

/* ---- pthreads -------------------- */

static __thread int tls_init = 1234, tls_zero;
static __thread char tls_big[5000];
static uint32_t counter;

static void *plain(void *arg)
{
	bool ok = tls_init == 1234 && tls_zero == 0 && tls_big[4999] == 0;
	tls_init = tls_zero = (int)(long)arg;
	memset(tls_big, (int)(long)arg, sizeof tls_big);
	sched_yield();
	ok &= tls_init == (int)(long)arg && tls_zero == (int)(long)arg && tls_big[4999] == (char)(long)arg;
	__atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
	return ok ? arg : NULL;
}

static pthread_barrier_t barrier;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static long guarded;
static int turn;

static void *meet(void *arg)
{
	volatile char deep[20000];
	memset((char *)deep, 1, sizeof deep);
	int r = pthread_barrier_wait(&barrier);
	for (int i = 0; i < 500; i++) {
		pthread_mutex_lock(&mutex);
		guarded++;
		pthread_mutex_unlock(&mutex);
	}
	pthread_barrier_wait(&barrier);
	(void)arg;
	return (void *)(long)(r == PTHREAD_BARRIER_SERIAL_THREAD);
}

static void *in_turn(void *arg)
{
	int me = (int)(long)arg;
	for (int i = 0; i < 50; i++) {
		pthread_mutex_lock(&mutex);
		while (turn != me)
			pthread_cond_wait(&cond, &mutex);
		turn = (turn + 1) % 4;
		guarded++;
		pthread_cond_broadcast(&cond);
		pthread_mutex_unlock(&mutex);
	}
	return NULL;
}

static pthread_key_t key;
static int destroyed;
static void destroy(void *v) { __atomic_fetch_add(&destroyed, (int)(long)v, __ATOMIC_SEQ_CST); }
static void *keyed(void *arg)
{
	pthread_setspecific(key, arg);
	return NULL;
}

static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static volatile int readers, writers, rw_bad;

static void *reader(void *arg)
{
	(void)arg;
	for (int i = 0; i < 200; i++) {
		pthread_rwlock_rdlock(&rw);
		__atomic_fetch_add(&readers, 1, __ATOMIC_SEQ_CST);
		if (writers)
			rw_bad = 1;
		__atomic_fetch_sub(&readers, 1, __ATOMIC_SEQ_CST);
		pthread_rwlock_unlock(&rw);
	}
	return NULL;
}

static void *writer(void *arg)
{
	(void)arg;
	for (int i = 0; i < 100; i++) {
		pthread_rwlock_wrlock(&rw);
		writers++;
		if (writers != 1 || readers)
			rw_bad = 1;
		writers--;
		pthread_rwlock_unlock(&rw);
	}
	return NULL;
}

static void test_pthreads(void)
{
	pthread_t t[64];
	void *r;
	bool ok = true;
	for (long i = 1; i <= 200; i++)
		ok &= pthread_create(t, NULL, plain, (void *)i) == 0 && pthread_join(t[0], &r) == 0 && r == (void *)i;
	check(ok && counter == 200 && tls_init == 1234, "200 threads one after the other, each with its own data");
	for (long i = 0; i < 64; i++)
		ok &= pthread_create(&t[i], NULL, plain, (void *)(i + 1)) == 0;
	for (long i = 0; i < 64; i++)
		ok &= pthread_join(t[i], &r) == 0 && r == (void *)(i + 1);
	check(ok, "64 at once");
	pthread_attr_t at;
	pthread_attr_init(&at);
	pthread_attr_setstacksize(&at, 65536);
	pthread_barrier_init(&barrier, NULL, 64);
	int serial = 0;
	for (long i = 0; i < 64; i++)
		ok &= pthread_create(&t[i], &at, meet, NULL) == 0;
	for (long i = 0; i < 64; i++) {
		ok &= pthread_join(t[i], &r) == 0;
		serial += (int)(long)r;
	}
	check(ok && serial == 1 && guarded == 64 * 500, "64 threads through a barrier and a mutex");
	pthread_attr_setdetachstate(&at, PTHREAD_CREATE_DETACHED);
	counter = 0;
	for (long i = 0; i < 20; i++)
		ok &= pthread_create(t, &at, plain, (void *)1) == 0;
	for (int i = 0; i < 60000 && counter != 20; i++)
		nap(MS);
	check(ok && counter == 20, "detached");
	pthread_attr_destroy(&at);
	guarded = 0;
	for (long i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, in_turn, (void *)i);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	check(guarded == 200 && turn == 0, "condition variable: four threads in turn");
	pthread_key_create(&key, destroy);
	for (long i = 0; i < 10; i++) {
		pthread_create(t, NULL, keyed, (void *)(i + 1));
		pthread_join(t[0], NULL);
	}
	check(destroyed == 55, "keys and their destructors");
	for (int i = 0; i < 6; i++)
		pthread_create(&t[i], NULL, i < 4 ? reader : writer, NULL);
	for (int i = 0; i < 6; i++)
		pthread_join(t[i], NULL);
	check(!rw_bad, "rwlock");
}

/* ---- mutexes of every kind -------------------- */

static pthread_mutex_t robust, pi;

static void *die_holding(void *m)
{
	pthread_mutex_lock(m);
	return NULL;
}

static volatile int64_t got_at;
static void *take(void *m)
{
	int e = pthread_mutex_lock(m);
	got_at = now_ns(CLOCK_MONOTONIC);
	guarded = e;
	if (e == EOWNERDEAD)
		pthread_mutex_consistent(m);
	pthread_mutex_unlock(m);
	return NULL;
}

static volatile bool holding;
static void *hold_then_die(void *m)
{
	pthread_mutex_lock(m);
	holding = true;
	nap(20 * MS);
	return NULL;
}

static void test_mutexes(void)
{
	pthread_mutexattr_t a;
	pthread_t t, u;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &a);
	pthread_create(&t, NULL, die_holding, &robust);
	pthread_join(t, NULL);
	int e = pthread_mutex_lock(&robust);
	check(e == EOWNERDEAD && pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0 &&
		      pthread_mutex_lock(&robust) == 0 && pthread_mutex_unlock(&robust) == 0,
	      "robust mutex: EOWNERDEAD");
	holding = false;
	guarded = -1;
	pthread_create(&t, NULL, hold_then_die, &robust);
	while (!holding)
		nap(MS);
	pthread_create(&u, NULL, take, &robust);
	pthread_join(t, NULL);
	pthread_join(u, NULL);
	check(guarded == EOWNERDEAD, "robust mutex: a waiter is woken by the owner's death");
	pthread_create(&t, NULL, die_holding, &robust);
	pthread_join(t, NULL);
	e = pthread_mutex_lock(&robust);
	pthread_mutex_unlock(&robust);
	check(e == EOWNERDEAD && pthread_mutex_lock(&robust) == ENOTRECOVERABLE, "robust mutex: ENOTRECOVERABLE");
	pthread_mutexattr_init(&a);
	if (pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT) == 0) {
		pthread_mutex_init(&pi, &a);
		bool ok = pthread_mutex_lock(&pi) == 0;
		guarded = -1;
		pthread_create(&t, NULL, take, &pi);
		nap(20 * MS);
		int64_t released = now_ns(CLOCK_MONOTONIC);
		ok &= guarded == -1 && pthread_mutex_trylock(&pi) == EBUSY && pthread_mutex_unlock(&pi) == 0;
		pthread_join(t, NULL);
		check(ok && guarded == 0 && got_at >= released, "PI mutex");
		pthread_mutex_lock(&pi);
		struct timespec ts = in_ns(CLOCK_REALTIME, 20 * MS);
		check(pthread_mutex_timedlock(&pi, &ts) != 0, "PI mutex: locked twice");
		pthread_mutex_unlock(&pi);
		pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
		pthread_mutex_t rpi;
		if (pthread_mutex_init(&rpi, &a) == 0) {
			pthread_create(&t, NULL, die_holding, &rpi);
			pthread_join(t, NULL);
			check(pthread_mutex_lock(&rpi) == EOWNERDEAD, "robust PI mutex: EOWNERDEAD");
		}
	}
	pthread_mutexattr_init(&a);
	pthread_mutexattr_settype(&a, PTHREAD_MUTEX_ERRORCHECK);
	pthread_mutex_t ec;
	pthread_mutex_init(&ec, &a);
	check(pthread_mutex_lock(&ec) == 0 && pthread_mutex_lock(&ec) == EDEADLK && pthread_mutex_unlock(&ec) == 0 &&
		      pthread_mutex_unlock(&ec) == EPERM,
	      "error-checking mutex");
	pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&ec, &a);
	check(pthread_mutex_lock(&ec) == 0 && pthread_mutex_lock(&ec) == 0 && pthread_mutex_unlock(&ec) == 0 &&
		      pthread_mutex_unlock(&ec) == 0,
	      "recursive mutex");
	pthread_mutex_lock(&mutex);
	struct timespec ts = in_ns(CLOCK_REALTIME, 20 * MS);
	int64_t t0 = now_ns(CLOCK_MONOTONIC);
	check(pthread_mutex_timedlock(&mutex, &ts) == ETIMEDOUT && now_ns(CLOCK_MONOTONIC) - t0 >= 19 * MS,
	      "timedlock");
	ts = in_ns(CLOCK_REALTIME, 20 * MS);
	t0 = now_ns(CLOCK_MONOTONIC);
	check(pthread_cond_timedwait(&cond, &mutex, &ts) == ETIMEDOUT && now_ns(CLOCK_MONOTONIC) - t0 >= 19 * MS,
	      "condition variable: timeout, realtime");
	pthread_condattr_t ca;
	pthread_cond_t mono;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&mono, &ca);
	ts = in_ns(CLOCK_MONOTONIC, 20 * MS);
	t0 = now_ns(CLOCK_MONOTONIC);
	check(pthread_cond_timedwait(&mono, &mutex, &ts) == ETIMEDOUT && now_ns(CLOCK_MONOTONIC) - t0 >= 19 * MS,
	      "condition variable: timeout, monotonic");
	pthread_mutex_unlock(&mutex);
	sem_t s;
	sem_init(&s, 0, 1);
	ts = in_ns(CLOCK_REALTIME, 20 * MS);
	check(sem_wait(&s) == 0 && sem_trywait(&s) == -1 && errno == EAGAIN && sem_timedwait(&s, &ts) == -1 &&
		      errno == ETIMEDOUT && sem_post(&s) == 0 && sem_wait(&s) == 0,
	      "semaphore");
}

/* ---- futexes by hand -------------------- */

static uint32_t w1, w2;
static int woken, about_to_wait;

struct waiter {
	uint32_t *word, bits;
	int op;
	pid_t tid;
	long result;
};

static void *wait_on(void *arg)
{
	struct waiter *w = arg;
	struct timespec ts = in_ns(CLOCK_MONOTONIC, 600000 * MS);
	w->tid = tid_of();
	__atomic_fetch_add(&about_to_wait, 1, __ATOMIC_SEQ_CST);
	w->result = w->bits ? futex(w->word, FUTEX_WAIT_BITSET | w->op, 0, &ts, NULL, w->bits)
			    : futex(w->word, FUTEX_WAIT | w->op, 0, NULL, NULL, 0);
	__atomic_fetch_add(&woken, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static struct waiter ws[8];
static pthread_t wt[8];

static void start(int n, uint32_t *word, int op, uint32_t bits)
{
	woken = about_to_wait = 0;
	for (int i = 0; i < n; i++) {
		ws[i] = (struct waiter){ word, bits << (bits ? i : 0), op, 0, -1 };
		pthread_create(&wt[i], NULL, wait_on, &ws[i]);
	}
	while (__atomic_load_n(&about_to_wait, __ATOMIC_SEQ_CST) < n)
		nap(MS);
	for (int i = 0; i < n; i++)
		asleep(getpid(), ws[i].tid);
}

static bool woken_are(int n)
{
	for (int i = 0; i < 60000 && __atomic_load_n(&woken, __ATOMIC_SEQ_CST) < n; i++)
		nap(MS);
	nap(3 * MS);
	return __atomic_load_n(&woken, __ATOMIC_SEQ_CST) == n;
}

static void finish(int n)
{
	for (int i = 0; i < n; i++)
		pthread_join(wt[i], NULL);
}

static void test_futex(int op, const char *kind)
{
	char name[80];
#define N(x) (snprintf(name, sizeof name, "futex, %s: %s", kind, x), name)
	start(4, &w1, op, 0);
	check(futex(&w1, FUTEX_WAKE | op, 1, NULL, NULL, 0) == 1 && woken_are(1), N("wake one"));
	check(futex(&w1, FUTEX_WAKE | op, 2, NULL, NULL, 0) == 2 && woken_are(3), N("wake two"));
	check(futex(&w1, FUTEX_WAKE | op, INT_MAX, NULL, NULL, 0) == 1 && woken_are(4), N("wake all"));
	finish(4);
	check(futex(&w1, FUTEX_WAKE | op, 1, NULL, NULL, 0) == 0, N("nobody left"));
	start(4, &w1, op, 0);
	check(futex(&w1, FUTEX_REQUEUE | op, 1, (void *)2, &w2, 0) == 3, N("requeue"));
	check(woken_are(1), N("requeue wakes one"));
	check(futex(&w2, FUTEX_WAKE | op, 9, NULL, NULL, 0) == 2 && woken_are(3), N("the two that moved"));
	check(futex(&w1, FUTEX_WAKE | op, 9, NULL, NULL, 0) == 1 && woken_are(4), N("the one that stayed"));
	finish(4);
	start(3, &w1, op, 0);
	check(futex(&w1, FUTEX_CMP_REQUEUE | op, 0, (void *)9, &w2, 77) == -EAGAIN, N("cmp_requeue: EAGAIN"));
	check(futex(&w1, FUTEX_CMP_REQUEUE | op, 0, (void *)9, &w2, 0) == 3, N("cmp_requeue"));
	check(futex(&w1, FUTEX_WAKE | op, 9, NULL, NULL, 0) == 0 && futex(&w2, FUTEX_WAKE | op, 9, NULL, NULL, 0) == 3,
	      N("all have moved"));
	finish(3);
	start(2, &w1, op, 0);
	w2 = 5;
	/* w2: add 1, wake one there if the old value was 5 (nobody waits there); wake two at w1. */
	check(futex(&w1, FUTEX_WAKE_OP | op, 2, (void *)1, &w2, FUTEX_OP_ADD_1_CMP_EQ_5) == 2 && w2 == 6, N("wake_op"));
	finish(2);
	w2 = 0;
	start(3, &w1, op, 1);
	check(futex(&w1, FUTEX_WAKE_BITSET | op, 9, NULL, NULL, 2) == 1 && woken_are(1) && ws[1].result == 0,
	      N("bitset: one"));
	check(futex(&w1, FUTEX_WAKE_BITSET | op, 9, NULL, NULL, 8) == 0, N("bitset: none"));
	check(futex(&w1, FUTEX_WAKE_BITSET | op, 9, NULL, NULL, ~0u) == 2, N("bitset: the rest"));
	finish(3);
	struct timespec rel = { 0, 15 * MS }, bad = { 0, 2000000000 }, abs_ = in_ns(CLOCK_REALTIME, 15 * MS);
	int64_t t0 = now_ns(CLOCK_MONOTONIC);
	check(futex(&w1, FUTEX_WAIT | op, 0, &rel, NULL, 0) == -ETIMEDOUT && now_ns(CLOCK_MONOTONIC) - t0 >= 15 * MS,
	      N("relative timeout"));
	check(futex(&w1, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME | op, 0, &abs_, NULL, ~0u) == -ETIMEDOUT &&
		      now_ns(CLOCK_REALTIME) >= abs_.tv_sec * 1000000000L + abs_.tv_nsec,
	      N("absolute timeout, realtime"));
	abs_ = in_ns(CLOCK_MONOTONIC, 15 * MS);
	check(futex(&w1, FUTEX_WAIT_BITSET | op, 0, &abs_, NULL, ~0u) == -ETIMEDOUT &&
		      now_ns(CLOCK_MONOTONIC) >= abs_.tv_sec * 1000000000L + abs_.tv_nsec,
	      N("absolute timeout, monotonic"));
	check(futex(&w1, FUTEX_WAIT | op, 1, NULL, NULL, 0) == -EAGAIN, N("other value: EAGAIN"));
	check(futex(&w1, FUTEX_WAIT | op, 0, &bad, NULL, 0) == -EINVAL, N("bad timeout: EINVAL"));
	check(futex((char *)&w1 + 1, FUTEX_WAIT | op, 0, &rel, NULL, 0) == -EINVAL &&
		      futex((char *)&w1 + 1, FUTEX_WAKE | op, 1, NULL, NULL, 0) == -EINVAL,
	      N("not aligned: EINVAL"));
	check(futex((void *)8, FUTEX_WAIT | op, 0, &rel, NULL, 0) == -EFAULT, N("EFAULT"));
	check(futex(&w1, FUTEX_WAIT_BITSET | op, 0, &abs_, NULL, 0) == -EINVAL &&
		      futex(&w1, FUTEX_WAKE_BITSET | op, 1, NULL, NULL, 0) == -EINVAL,
	      N("empty bitset: EINVAL"));
	check(futex(&w1, 99 | op, 0, NULL, NULL, 0) == -ENOSYS, N("unknown: ENOSYS"));
	uint32_t pw = 0;
	check(futex(&pw, FUTEX_LOCK_PI | op, 0, NULL, NULL, 0) == 0 && (pid_t)pw == tid_of() &&
		      futex(&pw, FUTEX_LOCK_PI | op, 0, NULL, NULL, 0) == -EDEADLK &&
		      futex(&pw, FUTEX_TRYLOCK_PI | op, 0, NULL, NULL, 0) == -EDEADLK &&
		      futex(&pw, FUTEX_UNLOCK_PI | op, 0, NULL, NULL, 0) == 0 && pw == 0 &&
		      futex(&pw, FUTEX_UNLOCK_PI | op, 0, NULL, NULL, 0) == -EPERM,
	      N("PI operations"));
#undef N
}

/* A private wait is not seen at another mapping of the page; a shared one is. */
static void test_futex_shared(void)
{
	int fd = memfd_create("futex", 0);
	if (fd < 0 || ftruncate(fd, 4096))
		return;
	uint32_t *a = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uint32_t *b = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	start(2, a, 0, 0);
	check(futex(b, FUTEX_WAKE, 9, NULL, NULL, 0) == 2 && woken_are(2), "shared futex by two addresses");
	finish(2);
	munmap(a, 4096);
	munmap(b, 4096);
	close(fd);
}

/* ---- C11, cancellation, affinity -------------------- */

static mtx_t cm;
static cnd_t cc;
static tss_t ct;
static int c_count;
static once_flag once = ONCE_FLAG_INIT;
static void once_fn(void) { c_count += 100; }

static int c_thread(void *arg)
{
	tss_set(ct, arg);
	call_once(&once, once_fn);
	mtx_lock(&cm);
	c_count++;
	cnd_signal(&cc);
	mtx_unlock(&cm);
	return tss_get(ct) == arg ? (int)(long)arg : -1;
}

static void test_c11(void)
{
	thrd_t t[4];
	int r;
	bool ok = mtx_init(&cm, mtx_timed) == thrd_success && cnd_init(&cc) == thrd_success &&
		  tss_create(&ct, NULL) == thrd_success;
	for (long i = 0; i < 4; i++)
		ok &= thrd_create(&t[i], c_thread, (void *)(i + 1)) == thrd_success;
	mtx_lock(&cm);
	while (c_count < 104)
		cnd_wait(&cc, &cm);
	struct timespec ts = in_ns(CLOCK_REALTIME, 10 * MS);
	ok &= cnd_timedwait(&cc, &cm, &ts) == thrd_timedout;
	mtx_unlock(&cm);
	for (int i = 0; i < 4; i++)
		ok &= thrd_join(t[i], &r) == thrd_success && r == i + 1;
	check(ok && c_count == 104, "C11 threads");
}

static int pfd[2];
static volatile int cleaned;
static volatile bool at_it, cancelled;
static void cleanup(void *arg) { cleaned += (int)(long)arg; }

static void *cancel_me(void *arg)
{
	int how = (int)(long)arg, old;
	char c;
	volatile ssize_t n = 0;
	pthread_cleanup_push(cleanup, (void *)1L);
	switch (how) {
	case 0:
		at_it = true;
		n = read(pfd[0], &c, 1);
		break;
	case 1:
		at_it = true;
		sleep(100);
		break;
	case 2:
		pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
		at_it = true;
		for (;;)
			__asm__ volatile("pause");
	case 3:
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
		at_it = true;
		while (!cancelled)
			nap(MS);
		nap(30 * MS);
		cleaned += 10;
		pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
		pthread_testcancel();
		break;
	case 4:
		pthread_mutex_lock(&mutex);
		pthread_cleanup_push((void (*)(void *))(void *)pthread_mutex_unlock, &mutex);
		at_it = true;
		for (;;)
			pthread_cond_wait(&cond, &mutex);
		pthread_cleanup_pop(0);
	}
	pthread_cleanup_pop(0);
	return (void *)(n + 7);
}

static void test_cancel(void)
{
	static const char *const names[] = { "cancel in read", "cancel in sleep", "cancel, asynchronous",
					     "cancel, disabled", "cancel in pthread_cond_wait" };
	if (pipe(pfd))
		return;
	for (long how = 0; how < 5; how++) {
		pthread_t t;
		void *r;
		cleaned = 0;
		at_it = cancelled = false;
		pthread_create(&t, NULL, cancel_me, (void *)how);
		while (!at_it)
			nap(MS);
		nap(5 * MS);
		pthread_cancel(t);
		cancelled = true;
		pthread_join(t, &r);
		check(r == PTHREAD_CANCELED && cleaned == (how == 3 ? 11 : 1), names[how]);
	}
	check(pthread_mutex_trylock(&mutex) == 0 && pthread_mutex_unlock(&mutex) == 0, "the mutex came back");
	close(pfd[0]);
	close(pfd[1]);
}

static void *run_on(void *arg)
{
	cpu_set_t s;
	int cpu = (int)(long)arg, bad = 0;
	CPU_ZERO(&s);
	CPU_SET(cpu, &s);
	if (pthread_setaffinity_np(pthread_self(), sizeof s, &s))
		return (void *)-1L;
	for (int i = 0; i < 20; i++) {
		bad += sched_getcpu() != cpu;
		sched_yield();
	}
	CPU_ZERO(&s);
	pthread_getaffinity_np(pthread_self(), sizeof s, &s);
	return (void *)(long)(CPU_COUNT(&s) == 1 && CPU_ISSET(cpu, &s) ? bad : -2);
}

static void test_affinity(void)
{
	cpu_set_t all, now;
	bool ok = sched_getaffinity(0, sizeof all, &all) == 0 && CPU_COUNT(&all) >= 1;
	for (int c = 0; c < CPU_SETSIZE; c++)
		if (CPU_ISSET(c, &all)) {
			pthread_t t;
			void *r;
			pthread_create(&t, NULL, run_on, (void *)(long)c);
			pthread_join(t, &r);
			if (r)
				printf("  on CPU %d: %ld\n", c, (long)r);
			ok &= r == NULL;
		}
	check(ok, "affinity and sched_getcpu");
	sched_getaffinity(0, sizeof now, &now);
	check(CPU_EQUAL(&all, &now), "other threads' affinity does not touch this one");
	CPU_ZERO(&now);
	check(sched_setaffinity(0, sizeof now, &now) == -1 && errno == EINVAL, "empty set: EINVAL");
	check(sysconf(_SC_NPROCESSORS_ONLN) >= 1, "processors");
	check(pthread_setname_np(pthread_self(), "a-name") == 0, "name");
	char name[32] = "";
	check(pthread_getname_np(pthread_self(), name, sizeof name) == 0 && strcmp(name, "a-name") == 0, "name again");
}

/* ---- the end: main's thread goes first -------------------- */

static pthread_t main_thread;

static void *last(void *arg)
{
	void *r = NULL;
	(void)arg;
	int e = pthread_join(main_thread, &r);
	check(e == 0 && r == (void *)99, "main's thread joined by another");
	check(getpid() == *(pid_t *)arg && tid_of() != getpid(), "the process lives on without its first thread");
	nap(20 * MS);
	if (failures) {
		printf("FAILED %d\n", failures);
		exit(1);
	}
	puts("SUCCESS");
	return NULL; /* the last thread's end is exit(0) */
}

int main(void)
{
	static pid_t pid;
	pthread_t t;
	pid = getpid();
	main_thread = pthread_self();
	check(tid_of() == pid, "the first thread's number is the process's");
	test_raw();
	test_pthreads();
	test_mutexes();
	test_futex(FUTEX_PRIVATE_FLAG, "private");
	test_futex(0, "shared");
	test_futex_shared();
	test_c11();
	test_cancel();
	test_affinity();
	fflush(stdout);
	if (pthread_create(&t, NULL, last, &pid))
		return 2;
	pthread_exit((void *)99);
}
