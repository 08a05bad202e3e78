/* SPDX-License-Identifier: Apache-2.0 */
/* Memory calls: what they do to the content, what they refuse. Passes on any x86-64 Linux since 5.7. `mm low`: of test_low() alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define MiB (1UL << 20)
#define GiB (1UL << 30)
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static int failures;

static bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

static __thread sigjmp_buf env;
static void on_fault(int s) { siglongjmp(env, s); }

/* 0, or the signal that an access raises. */
static int touch(char *p, bool write)
{
	volatile int s = sigsetjmp(env, 1);
	if (s == 0) {
		if (write)
			__asm__ volatile("lock addb $0, (%0)" : : "r"(p) : "memory");
		else
			__asm__ volatile("movb (%0), %%al" : : "r"(p) : "rax", "memory");
	}
	return s;
}

/* The same of a call. */
static int run(char *p)
{
	volatile int s = sigsetjmp(env, 1);
	if (s == 0)
		((void (*)(void))p)();
	return s;
}

static char *map(size_t len, int prot) { return mmap(NULL, len, prot, ANON, -1, 0); }

/* Raw results: -errno or the address. */
static long mm(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	long r = syscall(nr, a, b, c, d, e, f);
	return r == -1 ? -errno : r;
}
#define MMAP(a, l, p, fl, fd, o) mm(SYS_mmap, (uint64_t)(a), l, p, fl, (uint64_t)(long)(fd), o)
#define MUNMAP(a, l) mm(SYS_munmap, (uint64_t)(a), l, 0, 0, 0, 0)
#define MPROTECT(a, l, p) mm(SYS_mprotect, (uint64_t)(a), l, p, 0, 0, 0)
#define MREMAP(a, o, n, f, x) mm(SYS_mremap, (uint64_t)(a), o, n, f, (uint64_t)(x), 0)
#define MADVISE(a, l, v) mm(SYS_madvise, (uint64_t)(a), l, v, 0, 0, 0)

static void pattern(char *p, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i += 64)
		*(uint64_t *)(p + i) = (i + 1) * 0x9e3779b97f4a7c15 + seed;
}

static bool pattern_ok(const char *p, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i += 64)
		if (*(const uint64_t *)(p + i) != (i + 1) * 0x9e3779b97f4a7c15 + seed)
			return false;
	return true;
}

static bool zero(const char *p, size_t len)
{
	for (size_t i = 0; i < len; i += 8)
		if (*(const uint64_t *)(p + i))
			return false;
	return true;
}

/* ---- mmap, munmap, mprotect -------------------- */

static void test_refusals(void)
{
	char *p = map(8 * PAGE, RW);
	check(MMAP(0, 0, RW, ANON, -1, 0) == -EINVAL, "mmap: length 0");
	check(MMAP(0, PAGE, RW, MAP_ANONYMOUS, -1, 0) == -EINVAL, "mmap: neither shared nor private");
	check(MMAP(p + 1, PAGE, RW, ANON | MAP_FIXED, -1, 0) == -EINVAL, "mmap: fixed, not aligned");
	check(MMAP(0, PAGE, PROT_READ, MAP_PRIVATE, -1, 0) == -EBADF, "mmap: no file");
	check(MMAP(0, PAGE, PROT_READ, MAP_PRIVATE, 77777777, 0) == -EBADF, "mmap: bad file");
	check(MMAP(0, -PAGE, RW, ANON, -1, 0) == -ENOMEM, "mmap: far too long");
	check(MMAP(0, 1UL << 50, RW, ANON | MAP_NORESERVE, -1, 0) == -ENOMEM, "mmap: too long");
	check(MMAP(0x7ffffffff000, PAGE, RW, ANON | MAP_FIXED, -1, 0) == -ENOMEM, "mmap: beyond user space");
	check(MMAP(0xffff800000000000, PAGE, RW, ANON | MAP_FIXED, -1, 0) == -ENOMEM, "mmap: in the kernel's half");
	int fd = memfd_create("r", 0), ro = open("/dev/null", O_RDONLY), dir = open("/", O_RDONLY | O_DIRECTORY);
	int wo = fd >= 0 ? open("/dev/null", O_WRONLY) : -1;
	check(MMAP(0, PAGE, PROT_READ, MAP_PRIVATE, fd, 1) == -EINVAL, "mmap: offset not aligned");
	check(MMAP(0, PAGE, PROT_READ, MAP_PRIVATE, dir, 0) == -ENODEV, "mmap: a directory");
	check(MMAP(0, PAGE, PROT_READ, MAP_PRIVATE, wo, 0) == -EACCES, "mmap: a file not open for reading");
	close(ro);
	close(wo);
	close(dir);
	close(fd);
	check(MMAP(p, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == -EEXIST, "MAP_FIXED_NOREPLACE: taken");
	check(MMAP(p - PAGE, 2 * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == -EEXIST,
	      "MAP_FIXED_NOREPLACE: taken in part");
	MUNMAP(p + 2 * PAGE, 2 * PAGE);
	check(MMAP(p + 2 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == (long)(p + 2 * PAGE),
	      "MAP_FIXED_NOREPLACE: free");
	check(MMAP(p + 3 * PAGE, PAGE, RW, ANON, -1, 0) != (long)(p + 3 * PAGE), "a hint that is taken");
	check(MUNMAP(p, 0) == -EINVAL && MUNMAP(p + 5, PAGE) == -EINVAL && MUNMAP(0xffff800000000000, PAGE) == -EINVAL,
	      "munmap: EINVAL");
	check(MUNMAP(p + 4 * PAGE, PAGE) == 0 && MUNMAP(p + 4 * PAGE, PAGE) == 0, "munmap of a hole");
	check(MPROTECT(p, 8 * PAGE, PROT_READ) == -ENOMEM, "mprotect over a hole: ENOMEM");
	check(touch(p, true) == SIGSEGV && touch(p + 5 * PAGE, true) == 0, "what comes before the hole has changed");
	check(MPROTECT(p + 1, PAGE, RW) == -EINVAL && MPROTECT(p, PAGE, 0x100) == -EINVAL && MPROTECT(p, 0, RW) == 0,
	      "mprotect: EINVAL, length 0");
	check(MPROTECT(p + 4 * PAGE, PAGE, RW) == -ENOMEM, "mprotect of a hole");
	check(MUNMAP(p, 8 * PAGE) == 0 && touch(p, false) == SIGSEGV && touch(p + 7 * PAGE, false) == SIGSEGV,
	      "munmap over a hole");
}

static void test_basic(void)
{
	char *p = map(16 * PAGE, RW);
	bool ok = zero(p, 16 * PAGE);
	pattern(p, 16 * PAGE, 1);
	ok &= pattern_ok(p, 16 * PAGE, 1);
	check(ok, "zero at first, then what was written");
	/* Protections of parts, back and forth, content stays. */
	ok = true;
	for (int i = 0; i < 16; i += 2)
		ok &= MPROTECT(p + i * PAGE, PAGE, i % 4 ? PROT_NONE : PROT_READ) == 0;
	for (int i = 0; i < 16; i++) {
		ok &= touch(p + i * PAGE, true) == (i % 2 ? 0 : SIGSEGV);
		ok &= touch(p + i * PAGE, false) == (i % 4 == 2 ? SIGSEGV : 0);
	}
	ok &= MPROTECT(p, 16 * PAGE, RW) == 0 && pattern_ok(p, 16 * PAGE, 1);
	check(ok, "mprotect of every other page");
	ok = MMAP(p + 4 * PAGE, 2 * PAGE, RW, ANON | MAP_FIXED, -1, 0) == (long)(p + 4 * PAGE) &&
	     zero(p + 4 * PAGE, 2 * PAGE) && pattern_ok(p, 4 * PAGE, 1);
	check(ok, "MAP_FIXED replaces");
	MUNMAP(p + 8 * PAGE, PAGE);
	check(touch(p + 8 * PAGE, false) == SIGSEGV && touch(p + 7 * PAGE, true) == 0 && touch(p + 9 * PAGE, true) == 0,
	      "a hole in the middle");
	MUNMAP(p, 16 * PAGE);
	char *a = map(PAGE, RW), *b = mmap(a, PAGE, RW, ANON, -1, 0);
	check(a != b, "a hint does not replace");
	MUNMAP(a, PAGE);
	check(mmap(a, PAGE, RW, ANON, -1, 0) == a, "a hint that is free");
	MUNMAP(a, PAGE);
	MUNMAP(b, PAGE);
	p = mmap(NULL, PAGE, RW, ANON | MAP_32BIT, -1, 0);
	check(p != MAP_FAILED && (uint64_t)p + PAGE <= 0x80000000 && touch(p, true) == 0, "MAP_32BIT");
	MUNMAP(p, PAGE);
	p = mmap(NULL, 4 * PAGE, RW, ANON | MAP_GROWSDOWN | MAP_STACK | MAP_NORESERVE, -1, 0);
	check(p != MAP_FAILED && touch(p, true) == 0, "MAP_GROWSDOWN, MAP_STACK");
	MUNMAP(p, 4 * PAGE);
	p = mmap(NULL, 4 * PAGE, RW, ANON | MAP_POPULATE, -1, 0);
	check(p != MAP_FAILED && zero(p, 4 * PAGE), "MAP_POPULATE");
	MUNMAP(p, 4 * PAGE);
	/* Write-only is readable on x86; execute-only too without protection keys. */
	p = map(PAGE, PROT_WRITE);
	check(touch(p, true) == 0, "PROT_WRITE alone");
	MUNMAP(p, PAGE);
	/* No protection keys: programs ask (V8), and do without. */
	p = map(PAGE, RW);
	if (syscall(SYS_pkey_alloc, 0, 0) == -1) { /* natively there may be some */
		check(errno == EINVAL, "pkey_alloc: EINVAL");
		check(syscall(SYS_pkey_free, 1) == -1 && errno == EINVAL, "pkey_free: EINVAL");
		check(syscall(SYS_pkey_mprotect, p, PAGE, PROT_READ, 1) == -1 && errno == EINVAL && touch(p, true) == 0,
		      "pkey_mprotect with a key: EINVAL");
	}
	check(syscall(SYS_pkey_mprotect, p, PAGE, PROT_READ, -1) == 0 && touch(p, true) == SIGSEGV,
	      "pkey_mprotect without a key");
	MUNMAP(p, PAGE);
	/* Across 2 MiB boundaries. */
	p = map(9 * MiB, RW);
	pattern(p, 9 * MiB, 2);
	char *edge = (char *)(((uintptr_t)p + 2 * MiB) & ~(2 * MiB - 1));
	ok = MPROTECT(edge - PAGE, 2 * PAGE, PROT_READ) == 0 && touch(edge - 1, true) == SIGSEGV &&
	     touch(edge, true) == SIGSEGV && touch(edge + PAGE, true) == 0 && touch(edge - PAGE - 1, true) == 0;
	ok &= MPROTECT(edge - PAGE, 2 * PAGE, RW) == 0 && pattern_ok(p, 9 * MiB, 2);
	check(ok, "across 2 MiB boundaries");
	ok = MUNMAP(edge + PAGE, 2 * MiB) == 0 && touch(edge + PAGE, false) == SIGSEGV && touch(edge, false) == 0 &&
	     touch(edge + 2 * MiB + PAGE, false) == 0 && touch(edge + 2 * MiB, false) == SIGSEGV;
	check(ok, "2 MiB out of the middle");
	MUNMAP(p, 9 * MiB);
}

/* Where some kinds of KVM have pages of their own. */
static void test_low(void)
{
	char *top = mmap((void *)0xffe00000, 2 * MiB, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
	if (check(top == (char *)0xffe00000, "the last of the low 4 GiB")) {
		pattern(top, 2 * MiB, 3);
		check(pattern_ok(top, 2 * MiB, 3), "the last of the low 4 GiB: written");
	}
	MUNMAP(top, 2 * MiB);
	char *low = mmap((void *)0x10000, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0);
	bool ok = low == (char *)0x10000 && touch(low, true) == 0 && touch(low + PAGE, false) == SIGSEGV;
	for (char *p = NULL; p < low; p += PAGE)
		ok &= touch(p, false) == SIGSEGV && touch(p, true) == SIGSEGV;
	check(ok, "the lowest page, and nothing below it");
	MUNMAP(low, PAGE);
}

static void test_huge(void)
{
	char *p = mmap(NULL, 4 * GiB, RW, ANON | MAP_NORESERVE, -1, 0);
	if (!check(p != MAP_FAILED, "4 GiB, MAP_NORESERVE"))
		return;
	madvise(p, 4 * GiB, MADV_NOHUGEPAGE);
	bool ok = true;
	for (size_t i = 0; i < 4 * GiB; i += 64 * MiB)
		*(size_t *)(p + i + 8) = i;
	for (size_t i = 0; i < 4 * GiB; i += 64 * MiB)
		ok &= *(size_t *)(p + i + 8) == i && *(size_t *)(p + i) == 0;
	check(ok, "touched here and there");
	check(MUNMAP(p, 4 * GiB) == 0 && touch(p + GiB, false) == SIGSEGV, "and gone");
	p = mmap(NULL, 64 * GiB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
	ok = p != MAP_FAILED && MPROTECT(p + 32 * GiB, 4 * MiB, RW) == 0;
	if (ok) {
		pattern(p + 32 * GiB, 4 * MiB, 3);
		ok = pattern_ok(p + 32 * GiB, 4 * MiB, 3) && touch(p + 32 * GiB - 1, false) == SIGSEGV &&
		     touch(p + 32 * GiB + 4 * MiB, false) == SIGSEGV;
	}
	check(ok, "64 GiB reserved, a part opened");
	MUNMAP(p, 64 * GiB);
}

#define MANY 10000
static void test_many(void)
{
	static char *at[MANY];
	bool ok = true;
	/* Alternating protections: nothing merges. */
	for (int i = 0; i < MANY; i++) {
		at[i] = map(PAGE, i % 2 ? RW : PROT_READ);
		ok &= at[i] != MAP_FAILED;
	}
	check(ok, "10,000 mappings");
	for (int i = 1; i < MANY; i += 14)
		*(int *)at[i] = i;
	for (int i = 1; i < MANY; i += 14)
		ok &= *(int *)at[i] == i;
	check(ok, "all of them usable");
	for (int i = 0; i < MANY; i += 2)
		ok &= MUNMAP(at[i], PAGE) == 0;
	for (int i = 1; i < MANY; i += 14)
		ok &= *(int *)at[i] == i;
	for (int i = 1; i < MANY; i += 2)
		ok &= MUNMAP(at[i], PAGE) == 0;
	check(ok && touch(at[1], false) == SIGSEGV, "and gone again");
}

/* ---- mremap -------------------- */

static void test_mremap(void)
{
	char *p = map(16 * PAGE, RW), *q;
	pattern(p, 16 * PAGE, 4);
	q = (char *)MREMAP(p, 16 * PAGE, 8 * PAGE, 0, 0);
	check(q == p && touch(p + 8 * PAGE, false) == SIGSEGV && pattern_ok(p, 8 * PAGE, 4), "mremap: shrink");
	q = (char *)MREMAP(p, 8 * PAGE, 12 * PAGE, 0, 0);
	check(q == p && pattern_ok(p, 8 * PAGE, 4) && zero(p + 8 * PAGE, 4 * PAGE), "mremap: grow in place");
	MMAP(p + 12 * PAGE, PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0);
	check(MREMAP(p, 12 * PAGE, 20 * PAGE, 0, 0) == -ENOMEM, "mremap: no room");
	q = (char *)MREMAP(p, 12 * PAGE, 2 * MiB, MREMAP_MAYMOVE, 0);
	check((long)q > 0 && q != p && pattern_ok(q, 8 * PAGE, 4) && zero(q + 8 * PAGE, 2 * MiB - 8 * PAGE) &&
		      touch(p, false) == SIGSEGV,
	      "mremap: move and grow");
	MUNMAP(p, 16 * PAGE);
	char *to = map(32 * PAGE, PROT_NONE);
	p = (char *)MREMAP(q, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + 8 * PAGE);
	check(p == to + 8 * PAGE && pattern_ok(p, 8 * PAGE, 4) && touch(to, false) == SIGSEGV &&
		      touch(q, false) == SIGSEGV && touch(q + 8 * PAGE, false) == 0,
	      "mremap: fixed, a part of the mapping");
	MUNMAP(q, 2 * MiB);
	q = (char *)MREMAP(p, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	check((long)q > 0 && q != p && pattern_ok(q, 8 * PAGE, 4) && touch(p, true) == 0 && zero(p, 8 * PAGE),
	      "mremap: MREMAP_DONTUNMAP");
	MUNMAP(q, 8 * PAGE);
	check(MREMAP(p + 1, PAGE, PAGE, 0, 0) == -EINVAL && MREMAP(p, PAGE, 0, 0, 0) == -EINVAL &&
		      MREMAP(p, PAGE, PAGE, 0x80, 0) == -EINVAL && MREMAP(p, PAGE, PAGE, MREMAP_FIXED, to) == -EINVAL &&
		      MREMAP(p, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + PAGE) == -EINVAL,
	      "mremap: EINVAL");
	check(MREMAP(p, 0, PAGE, MREMAP_MAYMOVE, 0) == -EINVAL, "mremap: old size 0 of private memory");
	MUNMAP(to, 32 * PAGE);
	check(MREMAP(to, PAGE, 2 * PAGE, MREMAP_MAYMOVE, 0) == -EFAULT, "mremap: EFAULT");
	p = mmap(NULL, 4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pattern(p, 4 * PAGE, 5);
	q = (char *)MREMAP(p, 0, 4 * PAGE, MREMAP_MAYMOVE, 0);
	bool ok = (long)q > 0 && q != p && pattern_ok(q, 4 * PAGE, 5);
	if (ok) {
		q[100] = 42;
		ok = p[100] == 42;
	}
	check(ok, "mremap: old size 0 of shared memory gives a second view");
	MUNMAP(p, 4 * PAGE);
	MUNMAP(q, 4 * PAGE);
	p = map(6 * MiB, RW);
	pattern(p, 6 * MiB, 6);
	q = (char *)MREMAP(p, 6 * MiB, 24 * MiB, MREMAP_MAYMOVE, 0);
	check((long)q > 0 && pattern_ok(q, 6 * MiB, 6) && touch(q + 24 * MiB - 1, true) == 0, "mremap: 6 to 24 MiB");
	MUNMAP(q, 24 * MiB);
}

/* ---- the break -------------------- */

static void test_brk(void)
{
	char *start = (char *)syscall(SYS_brk, 0), *top;
	top = (char *)syscall(SYS_brk, start + 3 * MiB + 123);
	bool ok = top == start + 3 * MiB + 123;
	check(ok, "brk: grow");
	if (!ok)
		return;
	char *a = (char *)(((uintptr_t)start + 63) & ~63UL);
	memset(start, 0, a - start);
	ok = zero(a, 3 * MiB - 64);
	pattern(a, 3 * MiB - 64, 7);
	check(ok && pattern_ok(a, 3 * MiB - 64, 7), "brk: content");
	check((char *)syscall(SYS_brk, start + MiB) == start + MiB && pattern_ok(a, MiB - 64, 7), "brk: shrink");
	char *gone = (char *)(((uintptr_t)start + MiB + 2 * PAGE) & ~(PAGE - 1));
	check(touch(gone, false) == SIGSEGV, "brk: what was above is gone");
	check((char *)syscall(SYS_brk, start + 2 * MiB) == start + 2 * MiB && zero(gone, MiB / 2),
	      "brk: zero when it grows again");
	check((char *)syscall(SYS_brk, 16) == start + 2 * MiB && (char *)syscall(SYS_brk, -PAGE) == start + 2 * MiB,
	      "brk: nonsense leaves it");
	syscall(SYS_brk, start);
	check((char *)syscall(SYS_brk, 0) == start, "brk: back");
}

/* ---- advice and the like -------------------- */

static void test_advice(void)
{
	char *p = map(8 * PAGE, RW);
	pattern(p, 8 * PAGE, 8);
	check(MADVISE(p + 2 * PAGE, 2 * PAGE, MADV_DONTNEED) == 0 && zero(p + 2 * PAGE, 2 * PAGE) &&
		      pattern_ok(p, 2 * PAGE, 8),
	      "MADV_DONTNEED");
	pattern(p, 8 * PAGE, 8);
	bool ok = MADVISE(p, 8 * PAGE, MADV_FREE) == 0;
	pattern(p, 8 * PAGE, 9);
	check(ok && pattern_ok(p, 8 * PAGE, 9), "MADV_FREE");
	ok = true;
	static const int advices[] = { MADV_NORMAL,     MADV_RANDOM,     MADV_SEQUENTIAL, MADV_WILLNEED,
				       MADV_DONTFORK,   MADV_DOFORK,     MADV_DONTDUMP,   MADV_DODUMP,
				       MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_COLD };
	for (unsigned i = 0; i < sizeof advices / sizeof advices[0]; i++)
		ok &= MADVISE(p, 8 * PAGE, advices[i]) == 0;
	check(ok && pattern_ok(p, 8 * PAGE, 9), "advice that changes nothing");
	check(MADVISE(p, 8 * PAGE, 9999) == -EINVAL && MADVISE(p + 1, PAGE, MADV_DONTNEED) == -EINVAL &&
		      MADVISE(p, 0, MADV_DONTNEED) == 0,
	      "madvise: EINVAL, length 0");
	MUNMAP(p + 4 * PAGE, PAGE);
	check(MADVISE(p, 8 * PAGE, MADV_DONTNEED) == -ENOMEM && zero(p, 4 * PAGE) && zero(p + 5 * PAGE, 3 * PAGE),
	      "madvise over a hole: done, ENOMEM");
	unsigned char vec[8];
	MADVISE(p, 4 * PAGE, MADV_DONTNEED);
	*p = 1;
	check(mincore(p, 4 * PAGE, vec) == 0 && (vec[0] & 1) && !(vec[2] & 1), "mincore");
	check(mincore(p, 8 * PAGE, vec) == -1 && errno == ENOMEM, "mincore over a hole");
	check(mincore(p + 1, PAGE, vec) == -1 && errno == EINVAL, "mincore: EINVAL");
	check(mincore(p, PAGE, (void *)8) == -1 && errno == EFAULT, "mincore: EFAULT");
	check(msync(p, 4 * PAGE, MS_SYNC) == 0 && msync(p + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL, "msync");
	check(msync(p, 8 * PAGE, MS_SYNC) == -1 && errno == ENOMEM, "msync over a hole");
	check(msync(p, PAGE, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL, "msync: both flags");
	check(mlock(p, 4 * PAGE) == 0 && mincore(p, 4 * PAGE, vec) == 0 && (vec[3] & 1) && munlock(p, 4 * PAGE) == 0,
	      "mlock");
	check(mlock(p, 8 * PAGE) == -1 && errno == ENOMEM, "mlock over a hole");
	munlock(p, 8 * PAGE);
	MUNMAP(p, 8 * PAGE);
	p = map(8 * MiB, RW);
	ok = MADVISE(p, 8 * MiB, MADV_HUGEPAGE) == 0 || errno == EINVAL;
	pattern(p, 8 * MiB, 10);
	ok &= MADVISE(p + MiB, 4 * MiB, MADV_DONTNEED) == 0 && zero(p + MiB, 4 * MiB) && pattern_ok(p, MiB, 10);
	check(ok, "MADV_HUGEPAGE, then a part given back");
	MUNMAP(p, 8 * MiB);
}

/* ---- files and sharing -------------------- */

static void test_files(void)
{
	int fd = memfd_create("mm", 0);
	if (fd < 0 || ftruncate(fd, 8 * PAGE)) {
		check(false, "memfd");
		return;
	}
	char *a = mmap(NULL, 8 * PAGE, RW, MAP_SHARED, fd, 0), *b = mmap(NULL, 4 * PAGE, RW, MAP_SHARED, fd, 4 * PAGE);
	char *c = mmap(NULL, 8 * PAGE, RW, MAP_PRIVATE, fd, 0), *r = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	pattern(a, 8 * PAGE, 11);
	check(memcmp(a + 4 * PAGE, b, 4 * PAGE) == 0 && memcmp(a, c, 8 * PAGE) == 0, "one file at several addresses");
	b[5] = 55;
	check(a[4 * PAGE + 5] == 55 && r[4 * PAGE + 5] == 55 && c[4 * PAGE + 5] == 55, "coherent");
	c[4 * PAGE + 6] = 66;
	check(a[4 * PAGE + 6] != 66, "a private copy is private");
	b[7] = 77;
	check(c[4 * PAGE + 7] != 77 && c[7] == a[7], "and stays one");
	char buf[16] = "written";
	check(pwrite(fd, buf, 8, 100) == 8 && memcmp(a + 100, buf, 8) == 0 && memcmp(c + 100, buf, 8) == 0,
	      "write(2) shows in the mappings");
	memcpy(a + 200, "mapped", 7);
	check(pread(fd, buf, 7, 200) == 7 && memcmp(buf, "mapped", 7) == 0, "a mapping's change shows in read(2)");
	check(msync(a, 8 * PAGE, MS_SYNC) == 0 && msync(a, 8 * PAGE, MS_ASYNC) == 0, "msync of a file");
	check(touch(r, true) == SIGSEGV && MPROTECT(r, PAGE, RW) == 0 && touch(r, true) == 0,
	      "read-only view made writable");
	check(MADVISE(a, PAGE, MADV_DONTNEED) == 0 && memcmp(a + 200, "mapped", 7) == 0,
	      "MADV_DONTNEED of shared memory");
	check(MADVISE(c + 4 * PAGE, PAGE, MADV_DONTNEED) == 0 && c[4 * PAGE + 7] == 77,
	      "MADV_DONTNEED of a private copy");
	check(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4 * PAGE, PAGE) == 0 && zero(b, PAGE),
	      "punched hole");
	close(fd);
	a[1] = 99;
	check(r[1] == 99, "after close");
	MUNMAP(a, 8 * PAGE);
	MUNMAP(b, 4 * PAGE);
	MUNMAP(c, 8 * PAGE);
	MUNMAP(r, 8 * PAGE);
	fd = memfd_create("sealed", MFD_ALLOW_SEALING);
	bool ok = ftruncate(fd, PAGE) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0;
	check(ok && MMAP(0, PAGE, RW, MAP_SHARED, fd, 0) == -EPERM, "sealed: no writable mapping");
	close(fd);
	fd = open("/proc/self/exe", O_RDONLY);
	if (fd < 0)
		fd = open("/bin/sh", O_RDONLY);
	check(MMAP(0, PAGE, RW, MAP_SHARED, fd, 0) == -EACCES, "shared and writable of a read-only file: EACCES");
	a = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
	check(a != MAP_FAILED && memcmp(a, "\177ELF", 4) == 0 && touch(a, true) == 0,
	      "private and writable of a read-only file");
	r = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	check(MPROTECT(r, PAGE, RW) == -EACCES, "mprotect: EACCES");
	MUNMAP(a, PAGE);
	MUNMAP(r, PAGE);
	close(fd);
	int id = shmget(IPC_PRIVATE, 3 * PAGE, IPC_CREAT | 0600);
	if (id >= 0) {
		a = shmat(id, NULL, 0);
		b = shmat(id, NULL, SHM_RDONLY);
		shmctl(id, IPC_RMID, NULL);
		ok = a != (void *)-1 && b != (void *)-1;
		if (ok) {
			pattern(a, 3 * PAGE, 12);
			ok = pattern_ok(b, 3 * PAGE, 12) && touch(b, true) == SIGSEGV;
			ok &= shmdt(b) == 0 && touch(b, false) == SIGSEGV && pattern_ok(a, 3 * PAGE, 12) &&
			      shmdt(a) == 0;
		}
		check(ok && shmdt(a) == -1 && errno == EINVAL, "SysV shared memory");
	}
}

/* ---- code -------------------- */

__attribute__((noinline, aligned(4096), section(".text.two"))) static int answer(void) { return 42; }
__attribute__((noinline, aligned(4096), section(".text.two"))) static int other(void)
{
	return (int)syscall(SYS_getpid);
}

static void test_code(void)
{
	int (*volatile call)(void) = answer, (*volatile call_other)(void) = other;
	char *page = (char *)((uintptr_t)answer & ~(PAGE - 1));
	volatile bool ok = call() == 42 && call_other() == getpid();
	ok &= MPROTECT(page, PAGE, PROT_READ) == 0 && call_other() == getpid() && *page == *(char *)answer;
	volatile int s = sigsetjmp(env, 1);
	if (s == 0) {
		call();
		ok = false;
	}
	ok &= s == SIGSEGV && MPROTECT(page, PAGE, PROT_READ | PROT_EXEC) == 0 && call() == 42 &&
	      call_other() == getpid();
	check(ok, "mprotect of a part of the program's text");
	/* Made writable, changed, sealed: text of a file. */
	ok = MPROTECT(page, PAGE, RW | PROT_EXEC) == 0 && call() == 42;
	unsigned char *volatile at = (unsigned char *)answer, *f = at, save[6];
	memcpy(save, f, 6);
	memcpy(f, "\xb8\x07\0\0\0\xc3", 6);
	__asm__ volatile("" : : : "memory");
	ok &= call() == 7;
	memcpy(f, save, 6);
	ok &= MPROTECT(page, PAGE, PROT_READ | PROT_EXEC) == 0 && call() == 42 && call_other() == getpid();
	check(ok, "text changed and changed back");
	/* A copy of a function with a system call, moved and run. */
	char *p = map(2 * PAGE, RW);
	memcpy(p, "\xb8\x27\0\0\0\x0f\x05\xc3", 8);
	MPROTECT(p, PAGE, PROT_READ | PROT_EXEC);
	ok = ((int (*)(void))p)() == getpid();
	char *q = (char *)MREMAP(p, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + PAGE);
	ok &= q == p + PAGE && ((int (*)(void))q)() == getpid();
	check(ok, "code moved by mremap");
	MUNMAP(q, PAGE);
}

#define GROWS (RW | PROT_EXEC | PROT_GROWSDOWN)

/* PROT_GROWSDOWN: all of the stack below, as glibc asks for it when a library wants an executable stack. */
static void test_stack(void)
{
	char *top = (char *)((uintptr_t)__builtin_frame_address(0) & -PAGE), *low = top - 64 * PAGE, *q = map(PAGE, RW);
	for (char *p = top - PAGE; p >= low; p -= PAGE)
		*(volatile char *)p = (char)0xc3;
	check(run(low) == SIGSEGV, "stack: not executable");
	check(MPROTECT(q, PAGE, GROWS) == -EINVAL && run(q) == SIGSEGV, "mprotect: nothing that grows down");
	check(MPROTECT(top, PAGE, RW | PROT_GROWSUP) == -EINVAL, "mprotect: nothing grows up");
	check(MPROTECT(top, PAGE, GROWS | PROT_GROWSUP) == -EINVAL, "mprotect: both ways");
	check(MPROTECT(top, PAGE, GROWS) == 0 && run(low) == 0, "stack: executable, also below");
	check(MPROTECT(top, PAGE, RW | PROT_GROWSDOWN) == 0 && run(low) == SIGSEGV, "stack: as before");
	MUNMAP(q, PAGE);
}

/* A mapping that the host refuses where the program had one: what was there stays, as it was. */
static void test_refused_over(void)
{
	int fd = open("/proc/self/exe", O_RDONLY), over = MAP_PRIVATE | MAP_FIXED | MAP_HUGETLB;
	char *p = map(3 * PAGE, RW);
	for (int i = 0; i < 3; i++)
		memcpy(p + i * PAGE, "\xb8\x4d\0\0\0\xc3", 6);
	MPROTECT(p + PAGE, PAGE, PROT_READ | PROT_EXEC);
	check(MMAP(p, PAGE, PROT_READ | PROT_EXEC, over, fd, 0) == -EINVAL && run(p) == SIGSEGV,
	      "refused: not executable");
	check(touch(p, true) == 0 && p[1] == 0x4d, "refused: writable, and what it was");
	check(MMAP(p + PAGE, PAGE, RW, over, fd, 0) == -EINVAL && run(p + PAGE) == 0, "refused: still executable");
	check(touch(p + PAGE, true) == SIGSEGV, "refused: still read-only");
	check(MMAP(p, 3 * PAGE, PROT_READ, over, fd, 0) == -EINVAL && touch(p + 2 * PAGE, true) == 0 &&
		      run(p + 2 * PAGE) == SIGSEGV && run(p + PAGE) == 0 && touch(p, true) == 0,
	      "refused: over several");
	MUNMAP(p, 3 * PAGE);
	close(fd);
}

/* ---- threads -------------------- */

static volatile uint64_t *shared_words;

static void *sharer(void *arg)
{
	long n = (long)arg;
	for (int i = 0; i < 20000; i++)
		__atomic_fetch_add(&shared_words[n * 8 + i % 8], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&shared_words[500], 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static volatile bool churn_bad;

static void *churn(void *arg)
{
	unsigned seed = (unsigned)(long)arg * 7919 + 1;
	char *keep[8] = { 0 };
	size_t len[8] = { 0 };
	unsigned tag[8] = { 0 };
	for (int i = 0; i < 400; i++) {
		int k = (seed = seed * 1103515245 + 12345) >> 16 & 7;
		if (keep[k]) {
			if (!pattern_ok(keep[k], len[k], tag[k]))
				churn_bad = true;
			switch (i % 4) {
			case 0:
				MPROTECT(keep[k], PAGE, PROT_READ);
				if (!pattern_ok(keep[k], len[k], tag[k]) || touch(keep[k], true) != SIGSEGV)
					churn_bad = true;
				break;
			case 1: {
				char *q = (char *)MREMAP(keep[k], len[k], len[k] + 4 * PAGE, MREMAP_MAYMOVE, 0);
				if ((long)q < 0 || !pattern_ok(q, len[k], tag[k]))
					churn_bad = true;
				keep[k] = q;
				len[k] += 4 * PAGE;
				break;
			}
			}
			MUNMAP(keep[k], len[k]);
			keep[k] = NULL;
		} else {
			len[k] = (1 + (seed >> 8) % 64) * PAGE;
			tag[k] = seed;
			keep[k] = map(len[k], RW);
			if (keep[k] == MAP_FAILED || !zero(keep[k], len[k]))
				churn_bad = true;
			pattern(keep[k], len[k], tag[k]);
		}
	}
	for (int k = 0; k < 8; k++)
		if (keep[k])
			MUNMAP(keep[k], len[k]);
	return NULL;
}

static void test_threads(void)
{
	pthread_t t[4];
	shared_words = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (long i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, sharer, (void *)i);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	bool ok = shared_words[500] == 4;
	for (int i = 0; i < 32; i++)
		ok &= shared_words[i] == 2500;
	check(ok, "shared anonymous memory between threads");
	for (long i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, churn, (void *)i);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	check(!churn_bad, "four threads that map, change and unmap");
}

/* RLIMIT_AS ends what runs away, and the rest goes on; children have it, too. */
static void test_limit(void)
{
	int status = -1;
	pid_t pid = fork();
	if (!pid) {
		struct rlimit r = { GiB, GiB };
		bool ok = setrlimit(RLIMIT_AS, &r) == 0;
		errno = 0;
		ok = ok && mmap(NULL, 2 * GiB, RW, ANON, -1, 0) == MAP_FAILED && errno == ENOMEM;
		char *p = mmap(NULL, 64 * MiB, RW, ANON, -1, 0);
		ok = ok && p != MAP_FAILED && touch(p, true) == 0;
		ok = ok && mremap(p, 64 * MiB, 2 * GiB, MREMAP_MAYMOVE) == MAP_FAILED && sbrk(2 * GiB) == (void *)-1;
		ok = ok && MREMAP(p, 64 * MiB, 2 * GiB, MREMAP_MAYMOVE | MREMAP_FIXED, 400 * GiB) == -ENOMEM;
		/* What lies behind it stays, when it moves. */
		char *q = mmap(NULL, 700 * MiB, RW, ANON | MAP_NORESERVE, -1, 0);
		ok = ok && q != MAP_FAILED && munmap(q + 600 * MiB, 100 * MiB) == 0 &&
		     mmap(q, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == q;
		ok = ok && MREMAP(q, PAGE, 600 * MiB, MREMAP_MAYMOVE, 0) == -ENOMEM && munmap(q, 600 * MiB) == 0;
		ok = ok && munmap(p, 64 * MiB) == 0;
		pid = fork();
		if (!pid)
			_exit(mmap(NULL, 2 * GiB, RW, ANON, -1, 0) != MAP_FAILED);
		ok = ok && waitpid(pid, &status, 0) == pid && status == 0;
		_exit(!ok);
	}
	check(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "RLIMIT_AS");
	pid = fork();
	if (!pid) {
		struct rlimit most = { RLIM_INFINITY - PAGE, RLIM_INFINITY - 1 };
		_exit(setrlimit(RLIMIT_AS, &most) || mmap(NULL, 64 * MiB, RW, ANON, -1, 0) == MAP_FAILED);
	}
	check(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "RLIMIT_AS: hardly any");
}

/* There or not, and both ways of asking say so; not there is SIGSEGV. */
static bool is_sure(char *p)
{
	unsigned char there;
	bool mapped = mincore(p, PAGE, &there) == 0;
	return touch(p, false) == (mapped ? 0 : SIGSEGV);
}

/* Calls that the kernel refuses when it has unmapped already what was there; which, depends on its version. */
static void test_lost(void)
{
	char *p = map(4 * PAGE, RW), *q = map(4 * PAGE, RW);
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	memset(p, 1, 4 * PAGE);
	memset(q, 2, 4 * PAGE);
	check(MMAP(p + PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, s, 0) < 0 && is_sure(p + PAGE),
	      "a file that can't be mapped, over memory");
	check(touch(p, true) == 0 && p[0] == 1 && p[2 * PAGE] == 1, "and what is beside it stays");
	check(MMAP(p, 4 * PAGE, RW, ANON | MAP_FIXED, -1, 0) == (long)p && !p[PAGE] && touch(p + PAGE, true) == 0,
	      "and can be mapped again");
	MADVISE(q + 2 * PAGE, 2 * PAGE, MADV_RANDOM); /* two mappings to the kernel */
	long r = MREMAP(q, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p);
	bool same = true;
	for (int i = 0; i < 4; i++)
		same &= is_sure(p + i * PAGE);
	check(same && (r == (long)p || (r < 0 && is_sure(q) && is_sure(q + 3 * PAGE))),
	      "two mappings moved over memory");
	close(s);
	munmap(p, 4 * PAGE);
	munmap(q, 4 * PAGE);
}

static int result(void)
{
	if (failures) {
		printf("FAILED %d\n", failures);
		return 1;
	}
	puts("SUCCESS");
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction a = { .sa_handler = on_fault };
	sigaction(SIGSEGV, &a, NULL);
	sigaction(SIGBUS, &a, NULL);
	test_low();
	if (argc > 1 && !strcmp(argv[1], "low"))
		return result();
	test_refusals();
	test_basic();
	test_huge();
	test_many();
	test_mremap();
	test_brk();
	test_advice();
	test_files();
	test_code();
	test_stack();
	test_refused_over();
	test_lost();
	test_threads();
	test_limit();
	return result();
}
