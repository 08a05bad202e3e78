/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stressors that check what they get, in one process: no fork. stress [NAME|all [SECONDS]]; 0.3 s for each when not
 * given. One line for each: "ok NAME: N ops" or "FAIL NAME: why".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MiB (1UL << 20)
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static uint64_t end_ns;
static char dir[90];
static const char *stressor_name;
static atomic_int failures;

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static bool over(void) { return now() >= end_ns; }

/* One line for each way to fail; ends the whole test after a few. */
__attribute__((format(printf, 2, 3))) static bool expect(bool ok, const char *format, ...)
{
	if (ok)
		return true;
	int e = errno;
	char text[300];
	va_list va;
	va_start(va, format);
	vsnprintf(text, sizeof(text), format, va);
	va_end(va);
	printf("FAIL %s: %s (errno %d)\n", stressor_name, text, e);
	fflush(stdout);
	if (atomic_fetch_add(&failures, 1) >= 20)
		_exit(1);
	return false;
}

/* For what nothing can go on without. */
#define must(ok) \
	do { \
		if (!expect(ok, "line %d: %s", __LINE__, #ok)) \
			_exit(1); \
	} while (0)

static __thread uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static uint64_t below(uint64_t n) { return rnd() % n; }

static pthread_t start(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	must(pthread_create(&t, NULL, fn, arg) == 0);
	return t;
}

static const char *path(char *buf, const char *name, uint64_t n)
{
	snprintf(buf, 256, "%s/%s%lu", dir, name, n);
	return buf;
}

static void fill(unsigned char *p, size_t len, uint64_t key)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (unsigned char)((key + i) * 0x9e3779b1u >> 24);
}

static size_t differs(const unsigned char *p, size_t len, uint64_t key)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != (unsigned char)((key + i) * 0x9e3779b1u >> 24))
			return i;
	return len;
}

static void set_handler(int sig, void (*fn)(int, siginfo_t *, void *), int flags)
{
	struct sigaction sa = { .sa_sigaction = fn, .sa_flags = SA_SIGINFO | flags };
	must(sigaction(sig, &sa, NULL) == 0);
}

/* ---- processor ---------------------------------------------------------------------------------------------- */

static uint32_t crc32_of(const char *s, size_t n)
{
	uint32_t c = ~0u;
	while (n--) {
		c ^= (unsigned char)*s++;
		for (int k = 0; k < 8; k++)
			c = c >> 1 ^ (c & 1 ? 0xedb88320 : 0);
	}
	return ~c;
}

static unsigned ackermann(unsigned m, unsigned n)
{
	return m == 0 ? n + 1 : ackermann(m - 1, n ? ackermann(m, n - 1) : 1);
}

static int queens(unsigned all, unsigned cols, unsigned left, unsigned right)
{
	int n = 0;
	if (cols == all)
		return 1;
	for (unsigned free = all & ~(cols | left | right); free; free &= free - 1) {
		unsigned bit = free & -free;
		n += queens(all, cols | bit, (left | bit) << 1, (right | bit) >> 1);
	}
	return n;
}

static int collatz(volatile uint64_t n)
{
	int steps = 0;
	for (; n != 1; steps++)
		n = n & 1 ? 3 * n + 1 : n / 2;
	return steps;
}

static int primes(int n)
{
	static __thread bool composite[100001];
	int count = 0;
	memset(composite, 0, sizeof(composite));
	for (int i = 2; i <= n; i++) {
		count += !composite[i];
		for (long j = (long)i * i; !composite[i] && j <= n; j += i)
			composite[j] = true;
	}
	return count;
}

static uint64_t bits_of(double d)
{
	uint64_t u;
	memcpy(&u, &d, 8);
	return u;
}

/* Machin's formula, and matrices whose product is known exactly. */
static void floats_check(void)
{
	volatile double a = 0.1, b = 0.2, one = 1, two = 2;
	volatile long double third = 1.0L / 3;
	double sum = 0, p5 = 1 / 5.0, p239 = 1 / 239.0;
	for (int k = 0; k < 30; k++) {
		sum += (k & 1 ? -1 : 1) * (4 * p5 - p239) / (2 * k + one);
		p5 /= 25;
		p239 /= 239.0 * 239;
	}
	double root;
	__asm__("sqrtsd %1, %0" : "=x"(root) : "m"(two));
	double m[2][2] = { { 1, 1 }, { 1, 0 } }, r[2][2] = { { 1, 0 }, { 0, 1 } };
	for (int i = 0; i < 78; i++) {
		double x = r[0][0] * m[0][0] + r[0][1] * m[1][0], y = r[0][0] * m[0][1] + r[0][1] * m[1][1];
		double z = r[1][0] * m[0][0] + r[1][1] * m[1][0], w = r[1][0] * m[0][1] + r[1][1] * m[1][1];
		r[0][0] = x;
		r[0][1] = y;
		r[1][0] = z;
		r[1][1] = w;
	}
	expect(bits_of(a + b) == 0x3fd3333333333334, "0.1 + 0.2 is %a", a + b);
	expect(bits_of(root) == 0x3ff6a09e667f3bcd, "the root of 2 is %a", root);
	expect(third * 3 == 1 && third != (double)third, "1/3 in 80 bits is %La", third);
	expect(sum * 4 > 3.14159265358979 && sum * 4 < 3.14159265358980, "pi is %.17g", sum * 4);
	expect(r[0][1] == 8944394323791464., "the 78th Fibonacci number is %.17g", r[0][1]);
}

static uint64_t st_cpu(void)
{
	uint64_t ops = 0;
	for (; !over(); ops++) {
		uint64_t x = 1;
		for (int i = 0; i < 100000; i++)
			x = x * 6364136223846793005u + 1442695040888963407u;
		expect(x == 0x6cfc9548ff6cbfa1, "the generator gives %#lx", x);
		expect(crc32_of("123456789", 9) == 0xcbf43926, "CRC-32");
		expect(ackermann(2, 60) == 123, "ackermann(2, 60)");
		expect(queens(255, 0, 0, 0) == 92, "8 queens");
		expect(collatz(837799) == 524, "collatz(837799)");
		expect(primes(100000) == 9592, "primes to 100000");
		floats_check();
	}
	return ops;
}

static atomic_int ticks;
static void on_tick(int sig, siginfo_t *si, void *uc)
{
	/* Vector registers change here; the interrupted code must not see it. */
	volatile double d = sig;
	(void)si, (void)uc;
	for (int i = 0; i < 8; i++)
		d = d * 1.5 + i;
	__asm__ volatile(
		"pcmpeqb %%xmm0, %%xmm0; movdqa %%xmm0, %%xmm7; movdqa %%xmm0, %%xmm15; fld1; fld1; faddp; fstp %%st(0)"
		:
		:
		: "xmm0", "xmm7", "xmm15");
	atomic_fetch_add(&ticks, 1);
}

typedef double vec __attribute__((vector_size(64)));

static void recurrence(double from, vec *out)
{
	vec x = { from, from + 1, from + 2, from + 3, from + 4, from + 5, from + 6, from + 7 }, y = x;
	for (int i = 0; i < 20000; i++)
		y = y * 0.999 + x * 0.5 + 0.25;
	*out = y;
}

static void *fpu_thread(void *arg)
{
	double from = (double)(long)arg;
	uint64_t ops = 0;
	vec want, got;
	recurrence(from, &want);
	for (; !over(); ops++) {
		recurrence(from, &got);
		expect(!memcmp(&got, &want, sizeof(got)), "a vector loop gives %a, then %a", want[0], got[0]);
	}
	return (void *)ops;
}

static void timer_start(timer_t *t, int sig, long ns)
{
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = sig };
	struct itimerspec it = { { 0, ns }, { 0, ns } };
	must(timer_create(CLOCK_MONOTONIC, &ev, t) == 0);
	must(timer_settime(*t, 0, &it, NULL) == 0);
}

/* Threads whose vector registers must survive switches and signals. */
static uint64_t st_fpu(void)
{
	pthread_t t[3];
	timer_t timer;
	void *n;
	uint64_t ops = 0;
	set_handler(SIGALRM, on_tick, SA_RESTART);
	timer_start(&timer, SIGALRM, 1000000);
	for (long i = 0; i < 3; i++)
		t[i] = start(fpu_thread, (void *)(i * 10));
	for (int i = 0; i < 3; i++) {
		pthread_join(t[i], &n);
		ops += (uint64_t)n;
	}
	timer_delete(timer);
	expect(ticks > 0, "no ticks");
	return ops;
}

/* ---- memory --------------------------------------------------------------------------------------------------- */

#define VM_WORDS (2 * MiB / 8)

static void vm_expect(volatile uint64_t *m, size_t i, uint64_t want, const char *what)
{
	uint64_t got = m[i];
	if (got != want)
		expect(false, "%s: word %zu is %#lx, not %#lx", what, i, got, want);
}

/* Up: read a, write ~a; down: read ~a, write a. */
static void moving_inversions(volatile uint64_t *m, uint64_t a)
{
	for (size_t i = 0; i < VM_WORDS; i++)
		m[i] = a;
	for (size_t i = 0; i < VM_WORDS; i++) {
		vm_expect(m, i, a, "inversion up");
		m[i] = ~a;
	}
	for (size_t i = VM_WORDS; i-- > 0;) {
		vm_expect(m, i, ~a, "inversion down");
		m[i] = a;
	}
}

/* A few cells inverted in a uniform field: they keep their value, and no other changes. */
static void galpat(volatile uint64_t *m, uint64_t a)
{
	size_t cell[64];
	for (size_t i = 0; i < VM_WORDS; i++)
		m[i] = a;
	for (int k = 0; k < 64; k++) {
		cell[k] = (size_t)k * (VM_WORDS / 64) + below(VM_WORDS / 64);
		m[cell[k]] = ~a;
	}
	for (size_t i = 0; i < VM_WORDS; i++)
		vm_expect(m, i, i == cell[i / (VM_WORDS / 64)] ? ~a : a, "galpat");
}

static uint64_t st_vm(void)
{
	uint64_t ops = 0;
	for (; !over(); ops++) {
		volatile uint64_t *m = mmap(NULL, VM_WORDS * 8, RW, ANON, -1, 0);
		must(m != MAP_FAILED);
		for (size_t i = 0; i < VM_WORDS; i += PAGE / 8)
			vm_expect(m, i, 0, "new memory");
		for (size_t i = 0; i < VM_WORDS; i++)
			m[i] = (uint64_t)&m[i];
		for (size_t i = VM_WORDS; i-- > 0;)
			vm_expect(m, i, (uint64_t)&m[i], "own address");
		moving_inversions(m, rnd());
		moving_inversions(m, 0);
		galpat(m, 0);
		galpat(m, rnd());
		for (int bit = 0; bit < 64; bit++)
			m[(size_t)bit * PAGE / 8 + (size_t)bit] = 1ul << bit;
		for (int bit = 0; bit < 64; bit++)
			vm_expect(m, (size_t)bit * PAGE / 8 + (size_t)bit, 1ul << bit, "walking bit");
		must(munmap((void *)m, VM_WORDS * 8) == 0);
	}
	return ops;
}

#define SLOTS 48

/* Mappings of random sizes and kinds, each with stamps at the ends of its pages; parts are unmapped and replaced. */
static uint64_t st_mmap(void)
{
	static struct {
		char *p;
		size_t pages;
		uint64_t key;
	} slot[SLOTS];
	char name[256];
	uint64_t ops = 0;
	int fd = open(path(name, "mmap", 0), O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(fd >= 0 && unlink(name) == 0);
	for (size_t i = 0; i < 64; i++)
		must(pwrite(fd, &i, sizeof(i), (off_t)(i * PAGE)) == sizeof(i));
	must(ftruncate(fd, 64 * PAGE) == 0);
	for (; !over(); ops++) {
		size_t s = below(SLOTS);
		if (slot[s].p) {
			for (size_t i = 0; i < slot[s].pages; i++)
				if (!expect(*(uint64_t *)(slot[s].p + i * PAGE) == slot[s].key + i,
					    "page %zu of %zu changed", i, slot[s].pages))
					break;
			must(munmap(slot[s].p, slot[s].pages * PAGE) == 0);
			slot[s].p = NULL;
			continue;
		}
		size_t pages = 1 + below(ops % 16 ? 16 : 600);
		char *p = mmap(NULL, pages * PAGE, RW, ANON | (ops & 1 ? MAP_POPULATE : 0), -1, 0);
		must(p != MAP_FAILED);
		size_t half = pages / 2;
		if (ops % 4 == 0 && half && half <= 16) { /* a file in the place of one half */
			size_t at = below(64 - half);
			must(mmap(p + half * PAGE, half * PAGE, RW, MAP_PRIVATE | MAP_FIXED, fd, (off_t)(at * PAGE)) !=
			     MAP_FAILED);
			for (size_t i = 0; i < half; i++)
				expect(*(size_t *)(p + (half + i) * PAGE) == at + i, "page %zu of the file is another",
				       at + i);
		} else if (ops % 4 == 1 && half) { /* new memory in the place of written memory */
			memset(p, 0xa5, half * PAGE);
			must(mmap(p, half * PAGE, RW, ANON | MAP_FIXED, -1, 0) == p);
			expect(p[0] == 0 && p[half * PAGE - 1] == 0, "replaced memory is not zero");
		} else if (ops % 4 == 2 && half) { /* keep only the second half */
			must(munmap(p, half * PAGE) == 0);
			p += half * PAGE;
			pages -= half;
		}
		slot[s].p = p;
		slot[s].pages = pages;
		slot[s].key = rnd();
		for (size_t i = 0; i < pages; i++) {
			if (i < half && ops % 4 == 3)
				expect(*(uint64_t *)(p + i * PAGE) == 0, "new memory is not zero");
			*(uint64_t *)(p + i * PAGE) = slot[s].key + i;
		}
	}
	for (size_t s = 0; s < SLOTS; s++)
		if (slot[s].p)
			munmap(slot[s].p, slot[s].pages * PAGE);
	close(fd);
	return ops;
}

static uint64_t st_mremap(void)
{
	uint64_t ops = 0, key = 1;
	size_t pages = 8;
	char *p = mmap(NULL, pages * PAGE, RW, ANON, -1, 0);
	must(p != MAP_FAILED);
	for (size_t i = 0; i < pages; i++)
		*(uint64_t *)(p + i * PAGE) = key + i;
	for (; !over(); ops++) {
		size_t to = 1 + below(ops % 32 ? 64 : 1500);
		char *q, *place = NULL;
		if (ops % 3 == 0) {
			place = mmap(NULL, to * PAGE, PROT_NONE, ANON, -1, 0);
			must(place != MAP_FAILED);
			q = mremap(p, pages * PAGE, to * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
			must(q == place);
		} else {
			q = mremap(p, pages * PAGE, to * PAGE, MREMAP_MAYMOVE);
			must(q != MAP_FAILED);
		}
		for (size_t i = 0; i < to; i++)
			if (!expect(*(uint64_t *)(q + i * PAGE) == (i < pages ? key + i : 0),
				    "page %zu after %zu to %zu is %#lx", i, pages, to, *(uint64_t *)(q + i * PAGE)))
				break;
		p = q;
		pages = to;
		key = rnd();
		for (size_t i = 0; i < pages; i++)
			*(uint64_t *)(p + i * PAGE) = key + i;
	}
	munmap(p, pages * PAGE);
	return ops;
}

static sigjmp_buf fault_env;
static siginfo_t fault_info;
static void on_fault(int sig, siginfo_t *si, void *uc)
{
	(void)sig, (void)uc;
	fault_info = *si;
	siglongjmp(fault_env, 1);
}

/* The signal of an access, or 0. */
static int faults(char *p, bool write)
{
	if (sigsetjmp(fault_env, 1))
		return fault_info.si_signo;
	if (write)
		*(volatile char *)p = 7;
	else
		(void)*(volatile char *)p;
	return 0;
}

static uint64_t st_mprotect(void)
{
	static const int prots[] = { PROT_NONE, PROT_READ, RW };
	uint64_t ops = 0;
	int prot[32];
	char *p = mmap(NULL, 32 * PAGE, RW, ANON, -1, 0);
	must(p != MAP_FAILED);
	set_handler(SIGSEGV, on_fault, 0);
	for (int i = 0; i < 32; i++) {
		prot[i] = RW;
		p[(size_t)i * PAGE] = (char)i;
	}
	for (; !over(); ops++) {
		size_t from = below(32), n = 1 + below(32 - from), at = below(32);
		int to = prots[below(3)];
		must(mprotect(p + from * PAGE, n * PAGE, to) == 0);
		for (size_t i = from; i < from + n; i++)
			prot[i] = to;
		int r = faults(p + at * PAGE, false), w = faults(p + at * PAGE + 1, true);
		expect(r == (prot[at] == PROT_NONE ? SIGSEGV : 0), "read of protection %d gives signal %d", prot[at],
		       r);
		expect(w == (prot[at] == RW ? 0 : SIGSEGV), "write of protection %d gives signal %d", prot[at], w);
		expect(prot[at] == PROT_NONE || p[at * PAGE] == (char)at, "page %zu changed", at);
	}
	munmap(p, 32 * PAGE);
	signal(SIGSEGV, SIG_DFL);
	return ops;
}

static uint64_t st_sigsegv(void)
{
	uint64_t ops = 0;
	char name[256];
	char *p = mmap(NULL, 3 * PAGE, PROT_READ, ANON, -1, 0);
	int fd = open(path(name, "bus", 0), O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(p != MAP_FAILED && fd >= 0 && unlink(name) == 0);
	char *bus = mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0);
	must(bus != MAP_FAILED); /* before the hole is made, so as not to fill it */
	must(mprotect(p + PAGE, PAGE, PROT_NONE) == 0 && munmap(p + 2 * PAGE, PAGE) == 0);
	set_handler(SIGSEGV, on_fault, 0);
	set_handler(SIGBUS, on_fault, 0);
	for (; !over(); ops++) {
		char *at[] = { p + below(PAGE), p + PAGE + below(PAGE), p + 2 * PAGE + below(PAGE), (char *)below(PAGE),
			       bus + below(PAGE) };
		static const int code[] = { SEGV_ACCERR, SEGV_ACCERR, SEGV_MAPERR, SEGV_MAPERR, BUS_ADRERR };
		size_t k = ops % 5;
		int want = k == 4 ? SIGBUS : SIGSEGV, got = faults(at[k], true);
		expect(got == want, "access %zu gives signal %d", k, got);
		expect(fault_info.si_addr == at[k], "access %zu: address %p, not %p", k, fault_info.si_addr, at[k]);
		expect(fault_info.si_code == code[k], "access %zu: code %d", k, fault_info.si_code);
	}
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
	munmap(p, 2 * PAGE);
	munmap(bus, PAGE);
	close(fd);
	return ops;
}

/* ---- signals and time ----------------------------------------------------------------------------------------- */

static atomic_int usr_count;
static atomic_long value_sum;
static void on_usr(int sig, siginfo_t *si, void *uc)
{
	(void)sig, (void)uc;
	usr_count++;
	value_sum += si->si_value.sival_int;
}

static atomic_bool stop_peer;
static void *signal_peer(void *arg)
{
	(void)arg;
	while (!stop_peer)
		usleep(1000);
	return NULL;
}

static uint64_t st_signal(void)
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

static uint64_t st_timer(void)
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
static long futex(atomic_uint *p, int op, unsigned v)
{
	return syscall(SYS_futex, p, op | FUTEX_PRIVATE_FLAG, v, NULL, NULL, 0);
}

static bool ball_await(unsigned mine)
{
	unsigned v;
	while ((v = ball) != ~0u && (v & 1) != mine) {
		long r = futex(&ball, FUTEX_WAIT, v);
		expect(r == 0 || errno == EAGAIN || errno == EINTR, "FUTEX_WAIT");
	}
	return v != ~0u;
}

static void *futex_peer(void *arg)
{
	(void)arg;
	while (ball_await(1)) {
		ball++;
		expect(futex(&ball, FUTEX_WAKE, 1) <= 1, "FUTEX_WAKE");
	}
	return NULL;
}

static uint64_t st_futex(void)
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

static void *pthread_worker(void *arg)
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

static uint64_t st_pthread(void)
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

/* ---- descriptors ---------------------------------------------------------------------------------------------- */

static uint64_t st_poll(void)
{
	uint64_t ops = 0;
	int fd[16][2];
	struct pollfd p[16];
	for (int i = 0; i < 16; i++) {
		must(pipe(fd[i]) == 0);
		p[i] = (struct pollfd){ .fd = fd[i][0], .events = POLLIN };
	}
	for (; !over(); ops++) {
		unsigned set = (unsigned)below(65536);
		for (int i = 0; i < 16; i++)
			if (set >> i & 1)
				must(write(fd[i][1], &ops, 8) == 8);
		int n = poll(p, 16, 0);
		expect(n == __builtin_popcount(set), "poll gives %d of %d", n, __builtin_popcount(set));
		for (int i = 0; i < 16; i++) {
			uint64_t v = 0;
			expect(p[i].revents == (set >> i & 1 ? POLLIN : 0), "pipe %d: events %#x", i, p[i].revents);
			if (set >> i & 1)
				expect(read(fd[i][0], &v, 8) == 8 && v == ops, "pipe %d: %lu, not %lu", i, v, ops);
		}
		if (ops % 256 == 0) {
			uint64_t t = now();
			n = poll(p, 16, 2);
			expect(n == 0 && now() - t >= 2000000, "poll of 2 ms gives %d after %lu ns", n, now() - t);
		}
	}
	for (int i = 0; i < 16; i++) {
		close(fd[i][1]);
		expect(poll(p + i, 1, -1) == 1 && p[i].revents == POLLHUP, "no writer: events %#x", p[i].revents);
		close(fd[i][0]);
	}
	return ops;
}

static uint64_t st_epoll(void)
{
	uint64_t ops = 0, v;
	int fd[16][2], ep = epoll_create1(EPOLL_CLOEXEC);
	must(ep >= 0);
	for (int i = 0; i < 16; i++) {
		/* Edge-triggered and level-triggered ones. */
		struct epoll_event e = { EPOLLIN | (i & 1 ? EPOLLET : 0), { .u64 = (uint64_t)i << 32 | 7 } };
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, fd[i]) == 0);
		must(epoll_ctl(ep, EPOLL_CTL_ADD, fd[i][0], &e) == 0);
	}
	for (; !over(); ops++) {
		unsigned set = (unsigned)below(65536), seen = 0;
		struct epoll_event e[20];
		for (int i = 0; i < 16; i++)
			if (set >> i & 1)
				must(write(fd[i][1], &ops, 8) == 8);
		int n = epoll_wait(ep, e, 20, 0);
		for (int k = 0; k < n; k++)
			seen |= (e[k].data.u64 & 7) == 7 ? 1u << (e[k].data.u64 >> 32) : ~0u;
		expect(seen == set, "events of %#x, not of %#x", seen, set);
		n = epoll_wait(ep, e, 20, 0);
		expect(n == __builtin_popcount(set & 0x5555), "a second time %d events, not %d", n,
		       __builtin_popcount(set & 0x5555));
		for (int i = 0; i < 16; i++)
			if (set >> i & 1)
				expect(read(fd[i][0], &v, 8) == 8 && v == ops, "socket %d: %lu, not %lu", i, v, ops);
		expect(epoll_wait(ep, e, 20, 0) == 0, "events after all was read");
	}
	for (int i = 0; i < 16; i++) {
		close(fd[i][0]);
		close(fd[i][1]);
	}
	close(ep);
	return ops;
}

static void *eventfd_peer(void *arg)
{
	int *fd = arg;
	uint64_t v, sum = 0;
	while (read(fd[0], &v, 8) == 8 && v < 1ul << 40) {
		sum += v;
		must(write(fd[1], &v, 8) == 8);
	}
	return (void *)sum;
}

static uint64_t st_eventfd(void)
{
	uint64_t ops = 0, sum = 0, v;
	int fd[2] = { eventfd(0, 0), eventfd(0, 0) }, sem = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
	must(fd[0] >= 0 && fd[1] >= 0 && sem >= 0);
	pthread_t peer = start(eventfd_peer, fd);
	for (; !over(); ops++) {
		uint64_t want = 1 + below(1000);
		must(write(fd[0], &want, 8) == 8);
		must(read(fd[1], &v, 8) == 8);
		expect(v == want, "%lu, not %lu, came back", v, want);
		sum += want;
		for (int i = 0; i < 3; i++)
			expect(read(sem, &v, 8) == 8 && v == 1, "semaphore");
		expect(read(sem, &v, 8) < 0 && errno == EAGAIN, "semaphore below 0");
		v = 3;
		must(write(sem, &v, 8) == 8);
	}
	void *r;
	v = 1ul << 40;
	must(write(fd[0], &v, 8) == 8);
	pthread_join(peer, &r);
	expect((uint64_t)r == sum, "the peer counted %lu, not %lu", (uint64_t)r, sum);
	close(fd[0]);
	close(fd[1]);
	close(sem);
	return ops;
}

static unsigned char buf[2][65536];

static uint64_t st_memfd(void)
{
	uint64_t ops = 0;
	for (; !over(); ops++) {
		size_t len = 1 + below(sizeof(buf[0]));
		struct stat st;
		int fd = memfd_create("stress", MFD_ALLOW_SEALING | MFD_CLOEXEC);
		must(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
		unsigned char *p = mmap(NULL, len, RW, MAP_SHARED, fd, 0);
		must(p != MAP_FAILED);
		fill(p, len, ops);
		must(pread(fd, buf[0], len, 0) == (ssize_t)len);
		expect(differs(buf[0], len, ops) == len, "the file differs at %zu", differs(buf[0], len, ops));
		fill(buf[1], len, ops + 1);
		must(pwrite(fd, buf[1], len, 0) == (ssize_t)len);
		expect(differs(p, len, ops + 1) == len, "the mapping differs at %zu", differs(p, len, ops + 1));
		must(munmap(p, len) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE) == 0);
		expect(pwrite(fd, "x", 1, 0) < 0 && errno == EPERM, "a write after the seal");
		expect(ftruncate(fd, 0) < 0 && errno == EPERM, "truncation after the seal");
		expect(mmap(NULL, len, RW, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM,
		       "a mapping after the seal");
		must(fstat(fd, &st) == 0 && close(fd) == 0);
		expect(st.st_size == (off_t)len, "size %ld", (long)st.st_size);
	}
	return ops;
}

/* ---- files ---------------------------------------------------------------------------------------------------- */

#define FILE_LEN (256 * 1024)

static uint64_t st_file(void)
{
	static unsigned char model[FILE_LEN];
	char a[256], b[256];
	uint64_t ops = 0;
	size_t size = 0;
	int fd = open(path(a, "file", 0), O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(fd >= 0);
	for (; !over(); ops++) {
		size_t len = 1 + below(8192), at = below(FILE_LEN - len);
		switch (below(5)) {
		case 0: /* past the end: a hole of zeros */
		case 1:
			fill(model + at, len, ops);
			must(pwrite(fd, model + at, len, (off_t)at) == (ssize_t)len);
			size = at + len > size ? at + len : size;
			break;
		case 2:
			must(ftruncate(fd, (off_t)at) == 0);
			if (at < size)
				memset(model + at, 0, size - at);
			size = at;
			break;
		case 3: {
			must(lseek(fd, 0, SEEK_END) == (off_t)size);
			len = size + len > FILE_LEN ? FILE_LEN - size : len;
			fill(model + size, len, ops);
			struct iovec {
				void *p;
				size_t n;
			} v[2] = { { model + size, len / 2 }, { model + size + len / 2, len - len / 2 } };
			must(syscall(SYS_writev, fd, v, 2) == (ssize_t)len);
			size += len;
			break;
		}
		default:
			must(rename(a, path(b, "renamed", 0)) == 0 && rename(b, a) == 0);
		}
		at = below(FILE_LEN);
		ssize_t n = pread(fd, buf[0], 16384, (off_t)at), want = at >= size          ? 0
									: size - at < 16384 ? (ssize_t)(size - at)
											    : 16384;
		expect(n == want, "read of %zd bytes at %zu of %zu, not %zd", n, at, size, want);
		expect(n <= 0 || !memcmp(buf[0], model + at, (size_t)n), "other content at %zu", at);
	}
	struct stat st;
	must(fsync(fd) == 0 && close(fd) == 0 && stat(a, &st) == 0 && unlink(a) == 0);
	expect((size_t)st.st_size == size, "size %ld, not %zu", (long)st.st_size, size);
	return ops;
}

static uint64_t st_dir(void)
{
	uint64_t ops = 0;
	char top[256], name[600];
	for (; !over(); ops++) {
		int n = 1 + (int)below(40), seen = 0, sum = 0;
		must(mkdir(path(top, "dir", ops), 0700) == 0);
		for (int i = 0; i < n; i++) {
			snprintf(name, sizeof(name), "%s/e%d", top, i);
			if (i & 1)
				must(mkdir(name, 0700) == 0);
			else
				must(close(open(name, O_CREAT | O_EXCL | O_WRONLY, 0600)) == 0);
		}
		expect(mkdir(name, 0700) < 0 && errno == EEXIST, "mkdir of what exists");
		DIR *d = opendir(top);
		must(d);
		for (struct dirent *e; (e = readdir(d));) {
			int i;
			if (sscanf(e->d_name, "e%d", &i) != 1)
				continue;
			seen++;
			sum += i;
			expect(e->d_type == DT_UNKNOWN || e->d_type == (i & 1 ? DT_DIR : DT_REG), "type of %s",
			       e->d_name);
		}
		closedir(d);
		expect(seen == n && sum == n * (n - 1) / 2, "%d of %d names", seen, n);
		expect(rmdir(top) < 0 && errno == ENOTEMPTY, "rmdir of a full directory");
		for (int i = 0; i < n; i++) {
			snprintf(name, sizeof(name), "%s/e%d", top, i);
			must((i & 1 ? rmdir(name) : unlink(name)) == 0);
		}
		must(rmdir(top) == 0);
		expect(access(top, F_OK) < 0 && errno == ENOENT, "it is still there");
	}
	return ops;
}

static uint64_t st_link(void)
{
	uint64_t ops = 0;
	char base[256], name[256], got[256];
	int fd = open(path(base, "base", 0), O_CREAT | O_RDWR | O_TRUNC, 0600);
	must(fd >= 0 && write(fd, "base", 4) == 4);
	for (; !over(); ops++) {
		struct stat a, b;
		unsigned n = 1 + (unsigned)below(8);
		for (unsigned i = 0; i < n; i++)
			must(link(base, path(name, "hard", i)) == 0);
		must(fstat(fd, &a) == 0 && stat(name, &b) == 0);
		expect(a.st_nlink == n + 1 && a.st_ino == b.st_ino, "%u links, not %u", (unsigned)a.st_nlink, n + 1);
		for (unsigned i = 0; i < n; i++)
			must(unlink(path(name, "hard", i)) == 0);
		must(symlink(base, path(name, "soft", 0)) == 0);
		ssize_t len = readlink(name, got, sizeof(got));
		expect(len == (ssize_t)strlen(base) && !memcmp(got, base, (size_t)len), "readlink gives %zd bytes",
		       len);
		must(lstat(name, &b) == 0 && S_ISLNK(b.st_mode) && stat(name, &b) == 0 && b.st_ino == a.st_ino);
		must(unlink(name) == 0 && symlink(name, name) == 0);
		expect(open(name, O_RDONLY) < 0 && errno == ELOOP, "a link to itself");
		must(unlink(name) == 0);
	}
	close(fd);
	unlink(base);
	return ops;
}

/* ---- sockets -------------------------------------------------------------------------------------------------- */

static bool all_io(int fd, unsigned char *p, size_t len, bool out)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = out ? send(fd, p + done, len - done, MSG_NOSIGNAL) : recv(fd, p + done, len - done, 0);
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

/* Sends back what comes, until the end, from as many connections as come; argument: a listening socket. */
static void *echo_server(void *arg)
{
	int fd, lfd = *(int *)arg;
	static unsigned char b[65536];
	while ((fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		ssize_t n;
		while ((n = recv(fd, b, sizeof(b), 0)) > 0)
			expect(all_io(fd, b, (size_t)n, true), "echo");
		close(fd);
	}
	return NULL;
}

static uint64_t echo_client(int lfd, const struct sockaddr *addr, socklen_t len)
{
	uint64_t ops = 0;
	pthread_t peer = start(echo_server, &lfd);
	while (!over()) {
		int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		must(fd >= 0 && connect(fd, addr, len) == 0);
		for (int i = 0; i < 50 && !over(); i++, ops++) {
			size_t n = 1 + below(i % 8 ? 1000 : 30000);
			fill(buf[0], n, ops);
			must(all_io(fd, buf[0], n, true) && all_io(fd, buf[1], n, false));
			expect(differs(buf[1], n, ops) == n, "byte %zu of %zu differs", differs(buf[1], n, ops), n);
		}
		must(shutdown(fd, SHUT_WR) == 0);
		expect(recv(fd, buf[0], 1, 0) == 0, "no end of file");
		close(fd);
	}
	must(shutdown(lfd, SHUT_RDWR) == 0);
	/* A listening UNIX socket does not wake an accept by shutdown on every kernel; a connection does. */
	int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	(void)!connect(fd, addr, len);
	close(fd);
	pthread_join(peer, NULL);
	close(lfd);
	return ops;
}

static uint64_t st_tcp(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(fd >= 0 && bind(fd, (void *)&a, len) == 0 && listen(fd, 8) == 0 && getsockname(fd, (void *)&a, &len) == 0);
	return echo_client(fd, (void *)&a, len);
}

static uint64_t st_udp(void)
{
	uint64_t ops = 0;
	struct sockaddr_in a[2], from;
	struct timeval limit = { 5, 0 };
	int fd[2];
	for (int i = 0; i < 2; i++) {
		socklen_t len = sizeof(a[i]);
		a[i] = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		fd[i] = socket(AF_INET, SOCK_DGRAM, 0);
		must(fd[i] >= 0 && bind(fd[i], (void *)&a[i], len) == 0 &&
		     getsockname(fd[i], (void *)&a[i], &len) == 0);
		must(setsockopt(fd[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0);
	}
	for (; !over(); ops++) {
		size_t n[4];
		int s = (int)(ops & 1);
		for (int i = 0; i < 4; i++) {
			n[i] = below(4000);
			fill(buf[0], n[i], ops + (uint64_t)i);
			must(sendto(fd[s], buf[0], n[i], 0, (void *)&a[!s], sizeof(a[0])) == (ssize_t)n[i]);
		}
		for (int i = 0; i < 4; i++) {
			socklen_t len = sizeof(from);
			ssize_t r = recvfrom(fd[!s], buf[1], sizeof(buf[1]), 0, (void *)&from, &len);
			if (r < 0 && errno == EAGAIN)
				continue; /* lost: it may be */
			expect(r == (ssize_t)n[i] && from.sin_port == a[s].sin_port, "%zd of %zu bytes from %d", r,
			       n[i], ntohs(from.sin_port));
			expect(r < 0 || differs(buf[1], (size_t)r, ops + (uint64_t)i) == (size_t)r,
			       "a datagram differs");
		}
	}
	close(fd[0]);
	close(fd[1]);
	return ops;
}

/* An eventfd through a socket: the received one must be the same object. */
static void fd_pass(int out, int in, uint64_t value)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(sizeof(int))];
	} c = { .space = { 0 } };
	char byte = 'x';
	struct {
		void *p;
		size_t n;
	} v = { &byte, 1 };
	struct msghdr m = { .msg_iov = (void *)&v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c) };
	int fd = eventfd(0, EFD_NONBLOCK), got = -1;
	uint64_t r = 0;
	must(fd >= 0);
	c.h.cmsg_level = SOL_SOCKET;
	c.h.cmsg_type = SCM_RIGHTS;
	c.h.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&c.h), &fd, sizeof(int));
	must(sendmsg(out, &m, 0) == 1);
	memset(&c, 0, sizeof(c));
	must(recvmsg(in, &m, MSG_CMSG_CLOEXEC) == 1);
	must(m.msg_controllen >= CMSG_LEN(sizeof(int)) && c.h.cmsg_type == SCM_RIGHTS);
	memcpy(&got, CMSG_DATA(&c.h), sizeof(int));
	must(got >= 0 && got != fd && write(got, &value, 8) == 8);
	expect(read(fd, &r, 8) == 8 && r == value, "a passed descriptor is another");
	close(fd);
	close(got);
}

static uint64_t st_unix(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };
	uint64_t ops = 0, all = end_ns, half = now() + (end_ns - now()) / 2;
	int fd[2];
	for (end_ns = half; !over(); ops++) {
		int type = types[ops % 3];
		size_t n = 1 + below(4000), m = 1 + below(4000);
		must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fd) == 0);
		fill(buf[0], n + m, ops);
		must(send(fd[0], buf[0], n, 0) == (ssize_t)n && send(fd[0], buf[0] + n, m, 0) == (ssize_t)m);
		ssize_t r = recv(fd[1], buf[1], sizeof(buf[1]), 0), want = (ssize_t)(type == SOCK_STREAM ? n + m : n);
		expect(r == want && !memcmp(buf[0], buf[1], (size_t)want), "type %d: %zd of %zd bytes", type, r, want);
		if (type != SOCK_STREAM)
			expect(recv(fd[1], buf[1], 1, MSG_TRUNC) == (ssize_t)m, "type %d: the second", type);
		fd_pass(fd[1], fd[0], ops + 1);
		close(fd[0]);
		close(fd[1]);
	}
	end_ns = all;
	snprintf(a.sun_path, sizeof(a.sun_path), "%s/s", dir);
	fd[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(fd[0] >= 0 && bind(fd[0], (void *)&a, sizeof(a)) == 0 && listen(fd[0], 8) == 0);
	ops += echo_client(fd[0], (void *)&a, sizeof(a));
	unlink(a.sun_path);
	return ops;
}

static const struct {
	const char *name;
	uint64_t (*fn)(void);
} stressors[] = {
	{ "cpu", st_cpu },       { "fpu", st_fpu },           { "vm", st_vm },           { "mmap", st_mmap },
	{ "mremap", st_mremap }, { "mprotect", st_mprotect }, { "sigsegv", st_sigsegv }, { "signal", st_signal },
	{ "timer", st_timer },   { "futex", st_futex },       { "pthread", st_pthread }, { "poll", st_poll },
	{ "epoll", st_epoll },   { "eventfd", st_eventfd },   { "memfd", st_memfd },     { "file", st_file },
	{ "dir", st_dir },       { "link", st_link },         { "tcp", st_tcp },         { "udp", st_udp },
	{ "unix", st_unix },
};

int main(int argc, char **argv)
{
	const char *only = argc > 1 ? argv[1] : "all", *tmp = getenv("TMPDIR");
	double seconds = argc > 2 ? atof(argv[2]) : 0.3;
	bool found = false;
	snprintf(dir, sizeof(dir), "%s/stressXXXXXX", tmp ? tmp : "/tmp");
	stressor_name = "mkdtemp";
	must(strlen(dir) == strlen(tmp ? tmp : "/tmp") + 13 && mkdtemp(dir));
	for (size_t i = 0; i < sizeof(stressors) / sizeof(*stressors); i++) {
		if (strcmp(only, "all") != 0 && strcmp(only, stressors[i].name) != 0)
			continue;
		int before = failures;
		found = true;
		stressor_name = stressors[i].name;
		end_ns = now() + (uint64_t)(seconds * 1e9);
		uint64_t ops = stressors[i].fn();
		if (failures == before)
			printf("ok %s: %lu ops\n", stressor_name, ops);
		fflush(stdout);
	}
	stressor_name = "rmdir";
	expect(rmdir(dir) == 0, "%s is not empty", dir);
	if (!found)
		printf("no stressor %s\n", only);
	if (failures || !found)
		return 1;
	printf("SUCCESS\n");
	return 0;
}
