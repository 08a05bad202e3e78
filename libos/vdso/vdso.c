/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vDSO that AT_SYSINFO_EHDR names: clocks and CPU number as plain function calls. User code on the user's
 * stack; %gs is the LibOS's (struct kx_thread). What the time page cannot answer becomes a system call by the
 * LibOS entry, as a patched `syscall` site makes it: there is no `syscall` instruction in this image.
 */
#include <stddef.h>
#include <stdint.h>
#include "../core/ktime.h"

#define VVAR (kt_page())

#define NR_GETTIMEOFDAY 96
#define NR_TIME 201
#define NR_CLOCK_GETTIME 228
#define NR_CLOCK_GETRES 229
#define NR_GETCPU 309

struct vdso_timespec {
	int64_t sec, nsec;
};
struct vdso_timeval {
	int64_t sec, usec;
};

_Static_assert(offsetof(struct kx_thread, cpu) == 0x4c, "getcpu reads it");
_Static_assert(KX_T_ENTRY == 8, "kernel_call jumps through it");

static inline long kernel_call(long nr, const void *a, const void *b, const void *c)
{
	register long rax __asm__("rax") = nr;
	register const void *rdi __asm__("rdi") = a;
	register const void *rsi __asm__("rsi") = b;
	register const void *rdx __asm__("rdx") = c;

	/* The protocol of a trampoline: rcx = address after the call, r11 = where to resume. */
	__asm__ volatile("lea 1f(%%rip), %%rcx\n\t"
			 "mov %%rcx, %%r11\n\t"
			 "jmp *%%gs:8\n"
			 "1:"
			 : "+r"(rax)
			 : "r"(rdi), "r"(rsi), "r"(rdx)
			 : "rcx", "r11", "cc", "memory");
	return rax;
}

int __vdso_clock_gettime(int clk, struct vdso_timespec *ts);
int __vdso_clock_gettime(int clk, struct vdso_timespec *ts)
{
	int64_t sec, nsec;

	if (kt_read(VVAR, clk, &sec, &nsec))
		return (int)kernel_call(NR_CLOCK_GETTIME, (void *)(intptr_t)clk, ts, NULL);
	ts->sec = sec;
	ts->nsec = nsec;
	return 0;
}

int __vdso_gettimeofday(struct vdso_timeval *tv, void *tz);
int __vdso_gettimeofday(struct vdso_timeval *tv, void *tz)
{
	int64_t sec, nsec;

	if (tz || !tv || kt_read(VVAR, KT_REALTIME, &sec, &nsec))
		return (int)kernel_call(NR_GETTIMEOFDAY, tv, tz, NULL);
	tv->sec = sec;
	tv->usec = (int64_t)((uint64_t)nsec / 1000);
	return 0;
}

int64_t __vdso_time(int64_t *t);
int64_t __vdso_time(int64_t *t)
{
	int64_t sec, nsec;

	if (kt_read(VVAR, KT_REALTIME, &sec, &nsec))
		return kernel_call(NR_TIME, t, NULL, NULL);
	if (t)
		*t = sec;
	return sec;
}

int __vdso_clock_getres(int clk, struct vdso_timespec *res);
int __vdso_clock_getres(int clk, struct vdso_timespec *res)
{
	if (!kt_is_fine(clk) || !__atomic_load_n(&VVAR->valid, __ATOMIC_RELAXED))
		return (int)kernel_call(NR_CLOCK_GETRES, (void *)(intptr_t)clk, res, NULL);
	if (res) {
		res->sec = 0;
		res->nsec = 1;
	}
	return 0;
}

int __vdso_getcpu(unsigned *cpu, unsigned *node, void *unused);
int __vdso_getcpu(unsigned *cpu, unsigned *node, void *unused)
{
	unsigned n;

	if (node)
		return (int)kernel_call(NR_GETCPU, cpu, node, unused);
	__asm__ volatile("movl %%gs:0x4c, %0" : "=r"(n));
	if (cpu)
		*cpu = n;
	return 0;
}

#define WEAK_NAME(fn) __typeof__(__vdso_##fn) fn __attribute__((weak, alias("__vdso_" #fn)))

WEAK_NAME(clock_gettime);
WEAK_NAME(gettimeofday);
WEAK_NAME(time);
WEAK_NAME(clock_getres);
WEAK_NAME(getcpu);
