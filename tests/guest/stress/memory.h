/* SPDX-License-Identifier: Apache-2.0 */
/* Stressors of memory. Part of stress.c. */
#ifndef KX_GUEST_STRESS_MEMORY_H
#define KX_GUEST_STRESS_MEMORY_H
#include "stress.h"

/* ---- memory --------------------------------------------------------------------------------------------------- */

#define VM_WORDS (2 * MiB / 8)

static inline void vm_expect(volatile uint64_t *m, size_t i, uint64_t want, const char *what)
{
	uint64_t got = m[i];
	if (got != want)
		expect(false, "%s: word %zu is %#lx, not %#lx", what, i, got, want);
}

/* Up: read a, write ~a; down: read ~a, write a. */
static inline void moving_inversions(volatile uint64_t *m, uint64_t a)
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
static inline void galpat(volatile uint64_t *m, uint64_t a)
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

static inline uint64_t st_vm(void)
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
static inline uint64_t st_mmap(void)
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

static inline uint64_t st_mremap(void)
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
static inline void on_fault(int sig, siginfo_t *si, void *uc)
{
	(void)sig, (void)uc;
	fault_info = *si;
	siglongjmp(fault_env, 1);
}

/* The signal of an access, or 0. */
static inline int faults(char *p, bool write)
{
	if (sigsetjmp(fault_env, 1))
		return fault_info.si_signo;
	if (write)
		*(volatile char *)p = 7;
	else
		(void)*(volatile char *)p;
	return 0;
}

static inline uint64_t st_mprotect(void)
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

static inline uint64_t st_sigsegv(void)
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

#endif
