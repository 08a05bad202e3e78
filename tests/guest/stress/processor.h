/* SPDX-License-Identifier: Apache-2.0 */
/* Stressors of the processor. Part of stress.c. */
#ifndef KX_GUEST_STRESS_PROCESSOR_H
#define KX_GUEST_STRESS_PROCESSOR_H
#include "stress.h"

/* ---- processor ---------------------------------------------------------------------------------------------- */

static inline uint32_t crc32_of(const char *s, size_t n)
{
	uint32_t c = ~0u;
	while (n--) {
		c ^= (unsigned char)*s++;
		for (int k = 0; k < 8; k++)
			c = c >> 1 ^ (c & 1 ? 0xedb88320 : 0);
	}
	return ~c;
}

static inline unsigned ackermann(unsigned m, unsigned n)
{
	return m == 0 ? n + 1 : ackermann(m - 1, n ? ackermann(m, n - 1) : 1);
}

static inline int queens(unsigned all, unsigned cols, unsigned left, unsigned right)
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

static inline int collatz(volatile uint64_t n)
{
	int steps = 0;
	for (; n != 1; steps++)
		n = n & 1 ? 3 * n + 1 : n / 2;
	return steps;
}

static inline int primes(int n)
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

static inline uint64_t bits_of(double d)
{
	uint64_t u;
	memcpy(&u, &d, 8);
	return u;
}

/* Machin's formula, and matrices whose product is known exactly. */
static inline void floats_check(void)
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

static inline uint64_t st_cpu(void)
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
static inline void on_tick(int sig, siginfo_t *si, void *uc)
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

static inline void recurrence(double from, vec *out)
{
	vec x = { from, from + 1, from + 2, from + 3, from + 4, from + 5, from + 6, from + 7 }, y = x;
	for (int i = 0; i < 20000; i++)
		y = y * 0.999 + x * 0.5 + 0.25;
	*out = y;
}

static inline void *fpu_thread(void *arg)
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

static inline void timer_start(timer_t *t, int sig, long ns)
{
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = sig };
	struct itimerspec it = { { 0, ns }, { 0, ns } };
	must(timer_create(CLOCK_MONOTONIC, &ev, t) == 0);
	must(timer_settime(*t, 0, &it, NULL) == 0);
}

/* Threads whose vector registers must survive switches and signals. */
static inline uint64_t st_fpu(void)
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

#endif
