/* SPDX-License-Identifier: Apache-2.0 */
/* Forks while everything else goes on, and the registers that a child has. Part of fork.c. */
#ifndef KX_GUEST_FORK_MIDDLE_H
#define KX_GUEST_FORK_MIDDLE_H
#include "fork.h"

/* ---- forks in the middle of things --------------------------------------------------------------------------------- */

static volatile int stop;
static int nr_made;

static inline void *nothing(void *arg) { return arg; }

static inline void *allocating(void *arg)
{
	unsigned seed = (uintptr_t)arg;
	void *p[32] = { 0 };
	while (!stop) {
		unsigned i = rand_r(&seed) % 32;
		free(p[i]);
		p[i] = malloc(rand_r(&seed) % 20000);
		if (p[i])
			memset(p[i], 1, 16);
	}
	for (int i = 0; i < 32; i++)
		free(p[i]);
	return NULL;
}

static inline void *mapping(void *arg)
{
	while (!stop) {
		char *m = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (m != MAP_FAILED) {
			m[4096] = 1;
			mprotect(m, 4096, PROT_READ);
			munmap(m, 65536);
		}
		usleep(100);
	}
	return arg;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static inline void *locking(void *arg)
{
	while (!stop) {
		struct timespec ts;
		clock_gettime(CLOCK_REALTIME, &ts);
		ts.tv_nsec += 200000;
		if (ts.tv_nsec >= 1000000000) {
			ts.tv_sec++;
			ts.tv_nsec -= 1000000000;
		}
		pthread_mutex_lock(&lock);
		pthread_cond_timedwait(&cond, &lock, &ts);
		pthread_mutex_unlock(&lock);
		fprintf(arg, "line of text %d\n", 5);
	}
	return NULL;
}

static inline void *creating(void *arg)
{
	while (!stop) {
		pthread_t t;
		if (pthread_create(&t, NULL, nothing, NULL) == 0)
			pthread_join(t, NULL);
		else
			break;
		__atomic_add_fetch(&nr_made, 1, __ATOMIC_RELAXED);
		usleep(100);
	}
	return arg;
}

static inline void *forking(void *arg)
{
	int n = *(int *)arg, good = 0;
	for (int i = 0; i < n; i++) {
		pid_t p = FORK({
			char *m = malloc(100000);
			NEED(m);
			memset(m, i, 100000);
			free(m);
			if (i % 4 == 0) {
				pthread_t t;
				NEED(pthread_create(&t, NULL, nothing, NULL) == 0 && pthread_join(t, NULL) == 0);
			}
			NEED(getpid() == gettid());
		});
		good += fine(p);
	}
	*(int *)arg = good;
	return NULL;
}

#define NR_FORKS 200
static inline void busy(void)
{
	pthread_t t[4], f;
	FILE *null = fopen("/dev/null", "w");
	int n = NR_FORKS;
	stop = 0;
	int r = pthread_create(&t[0], NULL, allocating, (void *)7) | pthread_create(&t[1], NULL, mapping, NULL) |
		pthread_create(&t[2], NULL, locking, null) | pthread_create(&t[3], NULL, creating, NULL) |
		pthread_create(&f, NULL, forking, &n);
	errno = r;
	check(r == 0, "five threads made");
	if (r)
		return;
	pthread_join(f, NULL);
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	fclose(null);
	check(n == NR_FORKS, "200 forks while four threads allocate, map, lock, print, create threads");
	check(nr_made > 0, "and those go on");
}

static inline void storms(void)
{
	int *s = shared(4096);
	check(fine(FORK({
		      setpgid(0, 0);
		      on(SIGUSR1, SA_RESTART);
		      pid_t group = getpid();
		      pid_t q = FORK({
			      signal(SIGUSR1, SIG_IGN);
			      s[0] = 1;
			      for (int i = 0; !s[1]; i++) {
				      kill(-group, SIGUSR1);
				      if (i % 16 == 0)
					      ms(1);
			      }
		      });
		      NEED(await(&s[0], 1));
		      for (int i = 0; i < 30; i++) {
			      pid_t p = fork();
			      if (!p)
				      _exit(getpid() == gettid() ? i : 255);
			      NEED(p > 0 && exited(status_of(p), i));
		      }
		      s[1] = 1;
		      NEED(fine(q));
		      NEED(hits[SIGUSR1] > 0);
	      })),
	      "30 forks in a storm of signals to the group");
	on(SIGALRM, SA_RESTART);
	struct itimerval it = { { 0, 500 }, { 0, 500 } }, none = { 0 };
	setitimer(ITIMER_REAL, &it, NULL);
	bool good = true;
	for (int i = 0; i < 30; i++) {
		pid_t p = fork();
		if (!p)
			_exit(i);
		good = good && p > 0 && exited(status_of(p), i);
		if (i % 3 == 0) {
			p = vfork();
			if (!p)
				_exit(i);
			good = good && p > 0 && exited(status_of(p), i);
		}
	}
	setitimer(ITIMER_REAL, &none, NULL);
	check(good && hits[SIGALRM] > 0, "30 forks and 10 vforks in a storm of alarms");
	off(SIGALRM);
	munmap(s, 4096);
}

/* n threads, of which each makes the next one; the last one calls fn(). */
struct row {
	int n;
	int (*fn)(void);
	long r;
};

static inline void *row_run(void *arg)
{
	struct row *me = arg, next = { me->n - 1, me->fn, -1 };
	pthread_t t;
	if (me->n <= 1) {
		me->r = me->fn();
	} else if (!pthread_create(&t, NULL, row_run, &next)) {
		pthread_join(t, NULL);
		me->r = next.r;
	}
	return NULL;
}

static inline long row(int n, int (*fn)(void))
{
	struct row first = { n, fn, -1 };
	row_run(&first);
	return first.r;
}

static inline int end_of(pid_t p)
{
	const int st = p > 0 ? status_of(p) : -1;
	return p > 0 && WIFEXITED(st) ? WEXITSTATUS(st) : -1;
}

static inline int fork_once(void)
{
	const pid_t p = fork();
	if (!p)
		_exit(9);
	return end_of(p);
}

/* The child has one thread, whose number is high, and makes as many as there were. */
static inline int fork_to_a_row(void)
{
	const pid_t p = fork();
	if (!p)
		_exit((int)row(150, fork_once) + 1);
	return end_of(p);
}

static inline void far_threads(void)
{
	check(row(150, fork_to_a_row) == 10, "forks by the last of 150 threads, and by the last of a child's");
	check(row(150, fork_once) == 9 && fork_once() == 9, "again, and by the first");
}

static inline void crowd(void)
{
	int *s = shared(4096);
	pid_t p[50];
	for (int i = 0; i < 50; i++)
		p[i] = FORK({
			__atomic_add_fetch(&s[0], 1, __ATOMIC_SEQ_CST);
			while (!__atomic_load_n(&s[1], __ATOMIC_SEQ_CST))
				ms(20);
			_exit(i);
		});
	check(await(&s[0], 50), "50 children alive at once");
	s[1] = 1;
	bool good = true;
	for (int i = 0; i < 50; i++)
		good = good && exited(status_of(p[i]), i);
	check(good, "50 children end");
	s[0] = s[1] = 0;
	pid_t q = fork();
	for (int depth = 0; !q; depth++) {
		s[2 + depth] = getpid();
		NEED(depth == 0 || getppid() == s[1 + depth]);
		if (depth == 9)
			_exit(10);
		q = fork();
		if (q) {
			int st = status_of(q);
			_exit(WIFEXITED(st) ? WEXITSTATUS(st) : 1);
		}
	}
	check(exited(status_of(q), 10), "ten generations");
	munmap(s, 4096);
}

static inline void fd_limit(void)
{
	check(fine(FORK({
		      struct rlimit rl;
		      NEED(getrlimit(RLIMIT_NOFILE, &rl) == 0);
		      rl.rlim_cur = 64;
		      NEED(setrlimit(RLIMIT_NOFILE, &rl) == 0);
		      int n = 0;
		      while (dup(2) >= 0)
			      n++;
		      NEED(errno == EMFILE && n > 40);
		      NEED(fine(FORK(NEED(dup(2) == -1 && errno == EMFILE))));
		      NEED(fine(FORK({
			      close(63);
			      NEED(open("/dev/null", O_RDONLY) == 63);
		      })));
		      for (int i = 60; i < 64; i++)
			      fcntl(i, F_SETFD, FD_CLOEXEC); /* exec needs one for the libraries */
		      pid_t p = vfork();
		      if (!p) {
			      execl("/bin/true", "true", (char *)NULL);
			      _exit(1);
		      }
		      NEED(fine(p));
		      p = FORK(execl("/bin/sh", "sh", "-c", "exit $(ulimit -n)", (char *)NULL));
		      NEED(exited(status_of(p), 64));
		      pthread_t t;
		      NEED(pthread_create(&t, NULL, nothing, NULL) == 0 && pthread_join(t, NULL) == 0);
	      })),
	      "fork, exec and threads at the limit of descriptors");
}

static inline void randoms(void)
{
	uint64_t(*r)[2] = shared(8192);
	bool good = true;
	getrandom(&r[200][0], 8, 0);
	for (int i = 0; i < 100; i += 10) {
		pid_t p[10];
		for (int k = 0; k < 10; k++)
			p[k] = FORK({
				NEED(getrandom(&r[i + k][0], 8, 0) == 8);
#if __GLIBC_PREREQ(2, 36)
				arc4random_buf(&r[i + k][1], 8);
#else
				NEED(getrandom(&r[i + k][1], 8, 0) == 8);
#endif
			});
		for (int k = 0; k < 10; k++)
			good = fine(p[k]) && good;
	}
	getrandom(&r[100][0], 16, 0);
	uint64_t *all = &r[0][0];
	for (int i = 0; i < 202; i++)
		for (int k = 0; k < i; k++)
			good = good && all[i] != all[k] && all[i];
	check(good, "random numbers of 100 children and their parent all differ");
	munmap(r, 8192);
}

/* ---- registers ------------------------------------------------------------------------------------------------------ */

__attribute__((target("avx"))) static bool avx_fork(void)
{
	uint64_t in[16][4], out[16][4], parent[16][4];
	for (int i = 0; i < 16; i++)
		for (int k = 0; k < 4; k++)
			in[i][k] = i * 1000003ull + k * 77 + 1;
	uint16_t cw = 0x0e7f, cw2 = 0;
	unsigned csr = 0x7f80, csr2 = 0;
	double top = 0, pushed = 12.5;
	long pid;
	__asm__ volatile(
		"vmovdqu (%1), %%ymm0\n vmovdqu 32(%1), %%ymm1\n vmovdqu 224(%1), %%ymm7\n"
		"vmovdqu 480(%1), %%ymm15\n fldcw %3\n ldmxcsr %4\n fldl %5\n"
		"mov $57, %%eax\n syscall\n"
		"vmovdqu %%ymm0, (%2)\n vmovdqu %%ymm1, 32(%2)\n vmovdqu %%ymm7, 224(%2)\n vmovdqu %%ymm15, 480(%2)\n"
		"fnstcw %6\n stmxcsr %7\n fstpl %8\n"
		: "=&a"(pid)
		: "r"(in), "r"(out), "m"(cw), "m"(csr), "m"(pushed), "m"(cw2), "m"(csr2), "m"(top)
		: "rcx", "r11", "memory", "xmm0", "xmm1", "xmm7", "xmm15");
	_mm_setcsr(0x1f80);
	uint16_t dfl = 0x037f;
	__asm__ volatile("fldcw %0\n vzeroupper" : : "m"(dfl));
	memcpy(parent, out, sizeof parent);
	bool good = cw2 == cw && csr2 == csr && top == 12.5;
	for (int i = 0; i < 16; i++)
		if (i < 2 || i == 7 || i == 15)
			good = good && !memcmp(in[i], parent[i], 32);
	if (!pid)
		_exit(good ? 0 : 1);
	return fine(pid) && good;
}

static inline void registers(void)
{
	if (__builtin_cpu_supports("avx"))
		check(avx_fork(), "AVX, x87 and MXCSR across fork");
	uint64_t r[6];
	long pid;
	__asm__ volatile("mov $0x1111111111, %%rbx\n mov $0x2222222222, %%r12\n mov $0x3333333333, %%r13\n"
			 "mov $0x4444444444, %%r14\n mov $0x5555555555, %%r15\n mov $0x6666666666, %%r9\n"
			 "mov $57, %%eax\n syscall\n mov %%rbx, (%1)\n mov %%r12, 8(%1)\n mov %%r13, 16(%1)\n"
			 "mov %%r14, 24(%1)\n mov %%r15, 32(%1)\n mov %%r9, 40(%1)\n"
			 : "=&a"(pid)
			 : "D"(r)
			 : "rbx", "r12", "r13", "r14", "r15", "r9", "rcx", "r11", "memory");
	bool good = true;
	for (int i = 0; i < 6; i++)
		good = good && r[i] == 0x1111111111ull * (i + 1);
	if (!pid)
		_exit(good ? 0 : 1);
	check(good && fine(pid), "general registers across fork");
}
#endif
