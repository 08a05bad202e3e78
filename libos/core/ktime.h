/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks without an exit: the reader of struct kx_vvar, shared by the LibOS and the vDSO.
 *
 * The page is a seqlock written by the monitor (monitor/core/timepage.c). The writer makes `seq` odd, then takes
 * the time stamp at which the new parameters begin, then writes; a reader whose `seq` did not change therefore
 * read its own time stamp before that point. Together with segments that never start below the end of the
 * previous one this makes the monotonic clocks monotonic between threads, not only within one.
 */
#ifndef KX_KTIME_H
#define KX_KTIME_H
#include <stdint.h>
#include "../../abi/kx_abi.h"

#define KT_REALTIME 0
#define KT_MONOTONIC 1
#define KT_MONOTONIC_RAW 4
#define KT_REALTIME_COARSE 5
#define KT_MONOTONIC_COARSE 6
#define KT_BOOTTIME 7
#define KT_TAI 11

#define KT_NS_PER_SEC 1000000000
#define KT_TRIES 1000 /* a writer that lost its CPU: let the monitor answer instead of spinning on */

/* The page in the guest. Opaque to the compiler, or it would load each field by a 10-byte absolute address. */
static inline const struct kx_vvar *kt_page(void)
{
	const struct kx_vvar *v = (const struct kx_vvar *)KX_VVAR_BASE;

	__asm__("" : "+r"(v));
	return v;
}

/* Time stamp that is not taken before earlier loads of this thread were done. */
static inline uint64_t kt_rdtsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence\n\trdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

/* Nanoseconds of clock clk. Returns 0, or 1 when the page has no answer (other clock, too old, not valid). */
static inline int kt_read_ns(const struct kx_vvar *v, int clk, int64_t *ns)
{
	const uint64_t *tsc_base = &v->tsc_base, *mult = &v->mult;
	const int64_t *base;

	/* A coarse clock may be as fine as it likes; equal to the fine one it can be compared with it. */
	if (clk == KT_MONOTONIC || clk == KT_MONOTONIC_COARSE) {
		base = &v->mono_ns;
	} else if (clk == KT_REALTIME || clk == KT_REALTIME_COARSE) {
		base = &v->real_ns;
	} else if (clk == KT_BOOTTIME) {
		base = &v->boot_ns;
	} else if (clk == KT_TAI) {
		base = &v->tai_ns;
	} else if (clk == KT_MONOTONIC_RAW) {
		base = &v->raw_ns;
		tsc_base = &v->raw_tsc_base;
		mult = &v->raw_mult;
	} else {
		return 1;
	}
	for (int i = 0; i < KT_TRIES; i++) {
		uint32_t seq = __atomic_load_n(&v->seq, __ATOMIC_ACQUIRE);
		uint64_t b = __atomic_load_n(tsc_base, __ATOMIC_RELAXED);
		uint64_t m = __atomic_load_n(mult, __ATOMIC_RELAXED);
		uint64_t max = __atomic_load_n(&v->max_delta, __ATOMIC_RELAXED);
		int64_t start = __atomic_load_n(base, __ATOMIC_RELAXED);
		uint32_t valid = __atomic_load_n(&v->valid, __ATOMIC_RELAXED);
		uint64_t delta = kt_rdtsc() - b;

		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if ((seq & 1) || __atomic_load_n(&v->seq, __ATOMIC_RELAXED) != seq) {
			__builtin_ia32_pause();
			continue;
		}
		if ((int64_t)delta < 0 && -delta <= max) /* another processor's, a little behind */
			delta = 0;
		if (!valid || delta > max)
			return 1;
		*ns = start + (int64_t)(delta * m >> 32);
		return 0;
	}
	return 1;
}

/*
 * The two clocks that everybody reads, once: what follows rdtsc is the whole latency of a call, so there is no
 * division in it. 1 = try again by kt_read_ns(): a writer was there, or the page has no answer.
 */
static inline int kt_read_fast(const struct kx_vvar *v, int clk, int64_t *sec, int64_t *nsec)
{
	uint32_t seq = __atomic_load_n(&v->seq, __ATOMIC_ACQUIRE);
	uint64_t base = v->tsc_base, mult = v->mult, max = v->max_delta;
	int64_t s = v->fast[clk].sec, n = v->fast[clk].nsec;
	uint32_t valid = v->valid;
	uint64_t delta = kt_rdtsc() - base; /* below the base: huge, so beyond max */

	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (__builtin_expect((seq & 1) | (delta > max) | !valid | (__atomic_load_n(&v->seq, __ATOMIC_RELAXED) != seq),
			     0))
		return 1;
	n += (int64_t)(delta * mult >> 32);
	while (__builtin_expect(n >= KT_NS_PER_SEC, 0)) {
		n -= KT_NS_PER_SEC;
		s++;
	}
	*sec = s;
	*nsec = n;
	return 0;
}

static inline int kt_read(const struct kx_vvar *v, int clk, int64_t *sec, int64_t *nsec)
{
	int64_t ns;

	if ((unsigned)clk <= KT_MONOTONIC && !kt_read_fast(v, clk, sec, nsec))
		return 0;

	if (kt_read_ns(v, clk, &ns))
		return 1;
	*sec = (int64_t)((uint64_t)ns / KT_NS_PER_SEC);
	*nsec = (int64_t)((uint64_t)ns % KT_NS_PER_SEC);
	return 0;
}

/* True for the clocks whose resolution is 1 ns (clock_getres(2)); the others are for the monitor. */
static inline int kt_is_fine(int clk)
{
	return clk == KT_REALTIME || clk == KT_MONOTONIC || clk == KT_MONOTONIC_RAW || clk == KT_BOOTTIME ||
	       clk == KT_TAI;
}

/* For the LibOS (ktime.c): 0, or 1 = ask the monitor. */
int kt_clock_gettime(int clk, int64_t *sec, int64_t *nsec);
#endif
