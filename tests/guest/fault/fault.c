/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults as signals: number, code, address and registers of each, and that the program can mend the cause and go on.
 * Passes on any x86-64 Linux. What an emulated processor does not do is skipped; tests/run.py compares the two runs'
 * lines, so that it is skipped in a pVM only where it is natively.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096
#define ANY (-1L)
#define ERR_P 1 /* of a page fault's error code */
#define ERR_W 2
#define ERR_U 4
#define ERR_I 16

static int failures;

static bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

/* ---- catching one fault -------------------- */

struct seen {
	int signo, code;
	uint64_t addr, trapno, err, cr2, rip, rsp, rcx, rsi, rdi;
};
static __thread struct seen seen;
static __thread sigjmp_buf env;
static char altstack[65536];

static void catch (int s, siginfo_t *i, void *u)
{
	greg_t *g = ((ucontext_t *)u)->uc_mcontext.gregs;
	/* A handler runs with the flag AC as it was. */
	__asm__ volatile("sub $128, %%rsp\n pushfq\n andq $~0x40000, (%%rsp)\n popfq\n add $128, %%rsp"
			 :
			 :
			 : "memory", "cc");
	seen = (struct seen){ s,          i->si_code, (uint64_t)i->si_addr, g[REG_TRAPNO], g[REG_ERR], g[REG_CR2],
			      g[REG_RIP], g[REG_RSP], g[REG_RCX],           g[REG_RSI],    g[REG_RDI] };
	siglongjmp(env, 1);
}

static void install(void (*h)(int, siginfo_t *, void *))
{
	static const int sigs[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
	struct sigaction a = { .sa_sigaction = h, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	for (unsigned i = 0; i < sizeof sigs / sizeof sigs[0]; i++)
		sigaction(sigs[i], &a, NULL);
}

/* Runs the statement; true when it faulted. */
#define FAULTS(...) \
	({ \
		volatile bool f_ = true; \
		memset(&seen, 0, sizeof seen); \
		if (sigsetjmp(env, 1) == 0) { \
			__VA_ARGS__; \
			f_ = false; \
		} \
		f_; \
	})

static bool expect(bool faulted, const char *name, int signo, int code, long addr, int trapno, long err)
{
	bool ok = faulted && seen.signo == signo && seen.code == code && (addr == ANY || seen.addr == (uint64_t)addr) &&
		  (int)seen.trapno == trapno && (err == ANY || seen.err == (uint64_t)err) &&
		  (trapno != 14 || seen.cr2 == seen.addr);
	if (!ok)
		printf("  %s: %s signal %d (%d), code %d (%d), address %#lx (%#lx), trap %ld (%d), err %ld (%ld), cr2 "
		       "%#lx\n",
		       name, faulted ? "" : "no fault;", seen.signo, signo, seen.code, code, (long)seen.addr, addr,
		       (long)seen.trapno, trapno, (long)seen.err, err, (long)seen.cr2);
	return check(ok, name);
}

/* The processor does not do what the manuals say: leave that out. */
static bool skipped(bool lacking, const char *name)
{
	if (lacking)
		printf("skip %s: not done by this processor\n", name);
	return lacking;
}

static char *none, *ro, *rw, *hole, *nx;

static char *map(int pages, int prot)
{
	char *p = mmap(NULL, (size_t)pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(2);
	}
	return p;
}

/* Three pages of which the middle one is usable and the outer ones are holes. */
static char *island(int prot)
{
	char *p = map(3, PROT_READ | PROT_WRITE);
	memset(p, 0x90, 3 * PAGE);
	mprotect(p + PAGE, PAGE, prot);
	munmap(p, PAGE);
	munmap(p + 2 * PAGE, PAGE);
	return p + PAGE;
}

static void rd(const char *p) { __asm__ volatile("movb (%0), %%al" : : "r"(p) : "rax", "memory"); }
static void wr(char *p) { __asm__ volatile("movb $1, (%0)" : : "r"(p) : "memory"); }

/* ---- plain accesses -------------------- */

static void test_plain(void)
{
	none = island(PROT_NONE);
	ro = island(PROT_READ);
	rw = island(PROT_READ | PROT_WRITE);
	nx = island(PROT_READ | PROT_WRITE);
	hole = rw + PAGE;
	rd(ro);
#define R(p) FAULTS(rd(p))
#define W(p) FAULTS(wr(p))
	expect(R(hole + 5), "read unmapped", SIGSEGV, SEGV_MAPERR, (long)hole + 5, 14, ERR_U);
	expect(W(hole + 5), "write unmapped", SIGSEGV, SEGV_MAPERR, (long)hole + 5, 14, ERR_U | ERR_W);
	expect(R(rw - 1), "read below", SIGSEGV, SEGV_MAPERR, (long)rw - 1, 14, ERR_U);
	/* PROT_NONE pages are not present, except that some kernels give their error code otherwise. */
	expect(R(none + 7), "read PROT_NONE", SIGSEGV, SEGV_ACCERR, (long)none + 7, 14, ANY);
	expect(W(none + 7), "write PROT_NONE", SIGSEGV, SEGV_ACCERR, (long)none + 7, 14, ANY);
	expect(W(ro + 9), "write read-only", SIGSEGV, SEGV_ACCERR, (long)ro + 9, 14, ERR_U | ERR_W | ERR_P);
	expect(R((char *)0), "read page 0", SIGSEGV, SEGV_MAPERR, 0, 14, ERR_U);
	expect(W((char *)8), "write page 0", SIGSEGV, SEGV_MAPERR, 8, 14, ERR_U | ERR_W);
	expect(R((char *)0x7ffffffff000), "read at the end of user space", SIGSEGV, SEGV_MAPERR, 0x7ffffffff000, 14,
	       ANY);
	expect(R((char *)0xffff800000000000), "read kernel space", SIGSEGV, SEGV_MAPERR, (long)0xffff800000000000, 14,
	       ANY);
	expect(W((char *)0xffffffff80000000), "write kernel space", SIGSEGV, SEGV_MAPERR, (long)0xffffffff80000000, 14,
	       ANY);
	expect(R((char *)0x800000000000), "read non-canonical", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(W((char *)0xdead000000000000), "write non-canonical", SIGSEGV, SI_KERNEL, 0, 13, 0);
	bool f = FAULTS(__asm__ volatile("mov %%rsp, %%rcx\n mov %0, %%rsp\n push %%rax\n mov %%rcx, %%rsp"
					 :
					 : "r"(0x800000000100)
					 : "rcx", "memory"));
	/* QEMU's emulated processors have no stack fault. */
	if (!skipped(f && seen.signo == SIGSEGV && seen.trapno == 13, "push, non-canonical rsp"))
		expect(f, "push, non-canonical rsp", SIGBUS, SI_KERNEL, 0, 12, 0);
#undef R
#undef W
	char buf[64] __attribute__((aligned(64)));
	memset(buf, 0, sizeof buf);
	/* The first byte in reach, the last not, or the reverse. */
	char *e = rw + PAGE;
#define A8(p, st) FAULTS(__asm__ volatile(st : : "r"(p), "r"(buf) : "rax", "xmm0", "memory"))
	expect(A8(e - 4, "mov (%0), %%rax"), "8 bytes across the end", SIGSEGV, SEGV_MAPERR, (long)e, 14, ERR_U);
	expect(A8(e - 1, "mov %%rax, (%0)"), "8 bytes written across the end", SIGSEGV, SEGV_MAPERR, (long)e, 14,
	       ERR_U | ERR_W);
	expect(A8(e - 15, "movdqu (%0), %%xmm0"), "16 bytes across the end", SIGSEGV, SEGV_MAPERR, (long)e, 14, ERR_U);
	expect(A8(e - 8, "movdqu %%xmm0, (%0)"), "16 bytes written across the end", SIGSEGV, SEGV_MAPERR, (long)e, 14,
	       ERR_U | ERR_W);
	expect(A8(rw - 4, "mov (%0), %%rax"), "8 bytes across the start", SIGSEGV, SEGV_MAPERR, (long)rw - 4, 14,
	       ERR_U);
	expect(A8(rw - 2, "movdqu (%0), %%xmm0"), "16 bytes across the start", SIGSEGV, SEGV_MAPERR, (long)rw - 2, 14,
	       ERR_U);
	if (__builtin_cpu_supports("avx512f"))
		expect(A8(e - 60, "vmovdqu64 (%0), %%zmm0"), "64 bytes across the end", SIGSEGV, SEGV_MAPERR, (long)e,
		       14, ERR_U);
	if (__builtin_cpu_supports("avx"))
		expect(A8(e - 31, "vmovdqu (%0), %%ymm0"), "32 bytes across the end", SIGSEGV, SEGV_MAPERR, (long)e, 14,
		       ERR_U);
	expect(A8(rw + 8, "movaps (%0), %%xmm0"), "movaps misaligned", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(A8(hole + 8, "movaps (%0), %%xmm0"), "movaps misaligned and unmapped", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(A8(ro, "lock cmpxchg %%rdx, (%0)"), "lock cmpxchg on read-only", SIGSEGV, SEGV_ACCERR, (long)ro, 14,
	       ERR_U | ERR_W | ERR_P);
	expect(A8(ro + 16, "xchg %%rax, (%0)"), "xchg on read-only", SIGSEGV, SEGV_ACCERR, (long)ro + 16, 14,
	       ERR_U | ERR_W | ERR_P);
	expect(A8(ro + 24, "incl (%0)"), "inc on read-only", SIGSEGV, SEGV_ACCERR, (long)ro + 24, 14,
	       ERR_U | ERR_W | ERR_P);
	expect(A8(ro + 32, "lock xadd %%rax, (%0)"), "lock xadd on read-only", SIGSEGV, SEGV_ACCERR, (long)ro + 32, 14,
	       ERR_U | ERR_W | ERR_P);
	expect(A8((uintptr_t)hole / 4, "mov 0x10(,%0,4), %%rax"), "index alone", SIGSEGV, SEGV_MAPERR,
	       (long)((uintptr_t)hole / 4 * 4 + 0x10), 14, ERR_U);
	expect(A8(0x1000, "mov %%fs:0x7ffffff(%0), %%rax"), "fs segment", SIGSEGV, SEGV_MAPERR, ANY, 14, ERR_U);
	expect(A8(hole, "fldl 24(%0)\n fstp %%st(0)"), "x87 load", SIGSEGV, SEGV_MAPERR, (long)hole + 24, 14, ERR_U);
	expect(A8(hole, "prefetcht0 (%0)\n mov 8(%0), %%al"), "prefetch is silent", SIGSEGV, SEGV_MAPERR,
	       (long)hole + 8, 14, ERR_U);
	expect(A8(hole, "fxsave (%0)"), "fxsave", SIGSEGV, SEGV_MAPERR, ANY, 14, ERR_U | ERR_W);
	expect(A8(hole, "testb $1, 3(%0)"), "test", SIGSEGV, SEGV_MAPERR, (long)hole + 3, 14, ERR_U);
	expect(A8(hole, "movntdq %%xmm0, (%0)"), "movntdq", SIGSEGV, SEGV_MAPERR, (long)hole, 14, ERR_U | ERR_W);
	expect(A8(hole, "setc (%0)"), "setc", SIGSEGV, SEGV_MAPERR, (long)hole, 14, ERR_U | ERR_W);
	expect(A8(hole, "call *(%0)"), "call through memory", SIGSEGV, SEGV_MAPERR, (long)hole, 14, ERR_U);
	expect(A8(hole, "movbe (%0), %%rax"), "movbe", SIGSEGV, SEGV_MAPERR, (long)hole, 14, ERR_U);
#undef A8
}

/* ---- stack and strings -------------------- */

static void test_stack(void)
{
#define SP(sp, st) \
	FAULTS(__asm__ volatile("mov %%rsp, %%rcx\n mov %0, %%rsp\n" st "\n mov %%rcx, %%rsp" \
				: \
				: "r"(sp) \
				: "rax", "rcx", "memory"))
	expect(SP(hole + 64, "push %%rax"), "push to a hole", SIGSEGV, SEGV_MAPERR, (long)hole + 56, 14, ERR_U | ERR_W);
	check(seen.rsp == (uint64_t)hole + 64, "rsp as before the push");
	expect(SP(hole + 64, "pop %%rax"), "pop from a hole", SIGSEGV, SEGV_MAPERR, (long)hole + 64, 14, ERR_U);
	expect(SP(hole + 64, "call 1f\n1:"), "call with a bad rsp", SIGSEGV, SEGV_MAPERR, (long)hole + 56, 14,
	       ERR_U | ERR_W);
	expect(SP(ro + 64, "push $5"), "push to read-only", SIGSEGV, SEGV_ACCERR, (long)ro + 56, 14,
	       ERR_U | ERR_W | ERR_P);
	expect(SP(hole + 64, "pushfq"), "pushfq", SIGSEGV, SEGV_MAPERR, (long)hole + 56, 14, ERR_U | ERR_W);
	expect(SP(hole + 64, "popfq"), "popfq", SIGSEGV, SEGV_MAPERR, (long)hole + 64, 14, ERR_U);
	expect(SP(hole + 64, "ret"), "ret", SIGSEGV, SEGV_MAPERR, (long)hole + 64, 14, ERR_U);
	expect(SP(hole + 64, "mov %%rsp, %%rbp\n leave"), "leave", SIGSEGV, SEGV_MAPERR, (long)hole + 64, 14, ERR_U);
	expect(SP(rw, "push %%rax"), "push just below a page", SIGSEGV, SEGV_MAPERR, (long)rw - 8, 14, ERR_U | ERR_W);
	expect(SP(rw + 4, "push %%rax"), "push across a page's start", SIGSEGV, SEGV_MAPERR, (long)rw - 4, 14,
	       ERR_U | ERR_W);
	expect(SP(hole + 64, "pushq (%%rsp)"), "push of memory", SIGSEGV, SEGV_MAPERR, ANY, 14, ANY);
#undef SP
#define STR(si, di, cx, st) \
	FAULTS(long a_ = (long)(si), b_ = (long)(di), c_ = (cx); __asm__ volatile(st \
										  : "+S"(a_), "+D"(b_), "+c"(c_) \
										  : "a"(0) \
										  : "memory", "cc"))
	static char buf[2 * PAGE];
	char *e = rw + PAGE;
	expect(STR(e - 100, buf, 200, "rep movsb"), "rep movsb, source ends", SIGSEGV, SEGV_MAPERR, (long)e, 14, ERR_U);
	check(seen.rcx == 100 && seen.rsi == (uint64_t)e && seen.rdi == (uint64_t)buf + 100,
	      "rep movsb: registers midway");
	expect(STR(buf, e - 100, 200, "rep movsb"), "rep movsb, destination ends", SIGSEGV, SEGV_MAPERR, (long)e, 14,
	       ERR_U | ERR_W);
	check(seen.rcx == 100 && seen.rdi == (uint64_t)e, "rep movsb: registers midway, 2");
	expect(STR(buf, e - 64, 100, "rep stosq"), "rep stosq", SIGSEGV, SEGV_MAPERR, (long)e, 14, ERR_U | ERR_W);
	check(seen.rcx == 92 && seen.rdi == (uint64_t)e, "rep stosq: registers midway");
	memset(buf, 0, sizeof buf);
	memset(e - 100, 0, 100);
	expect(STR(buf, e - 100, 200, "repe cmpsb"), "repe cmpsb", SIGSEGV, SEGV_MAPERR, (long)e, 14, ERR_U);
	memset(e - 100, 1, 100);
	expect(STR(buf, e - 100, 200, "repne scasb"), "repne scasb", SIGSEGV, SEGV_MAPERR, (long)e, 14, ERR_U);
	expect(STR(e - 8, buf, 100, "rep lodsb"), "rep lodsb", SIGSEGV, SEGV_MAPERR, (long)e, 14, ERR_U);
	expect(STR(rw + 8, buf + PAGE, PAGE, "std\n rep movsb\n cld"), "rep movsb downwards", SIGSEGV, SEGV_MAPERR,
	       (long)rw - 1, 14, ERR_U);
	check(seen.rsi == (uint64_t)rw - 1, "rep movsb downwards: registers");
	__asm__ volatile("cld");
	expect(STR(buf, ro, 5, "movsb"), "movsb to read-only", SIGSEGV, SEGV_ACCERR, (long)ro, 14,
	       ERR_U | ERR_W | ERR_P);
#undef STR
	volatile size_t n;
	memset(e - 200, 'a', 200);
	expect(FAULTS(n = strlen(e - 200); (void)n), "strlen over the end", SIGSEGV, SEGV_MAPERR, (long)e, 14, ERR_U);
	e[-1] = 0;
	check(strlen(e - 200) == 199, "strlen up to the end");
}

/* ---- vectors -------------------- */

static void test_vector(void)
{
	if (!__builtin_cpu_supports("avx2")) {
		check(true, "AVX2 (none: skipped)");
		return;
	}
	int32_t idx[8] __attribute__((aligned(32))) = { 0, 1, 2, 3, 4, PAGE / 4, 6, 7 };
	int64_t idx64[4] __attribute__((aligned(32))) = { 0, 8, PAGE, 16 };
	expect(FAULTS(__asm__ volatile("vmovdqa (%1), %%ymm1\n vpcmpeqd %%ymm2, %%ymm2, %%ymm2\n"
				       "vpgatherdd %%ymm2, (%0,%%ymm1,4), %%ymm0"
				       :
				       : "r"(rw), "r"(idx)
				       : "xmm0", "xmm1", "xmm2", "memory")),
	       "vpgatherdd, one lane bad", SIGSEGV, SEGV_MAPERR, (long)rw + PAGE, 14, ERR_U);
	expect(FAULTS(__asm__ volatile("vmovdqa (%1), %%ymm1\n vpcmpeqd %%ymm2, %%ymm2, %%ymm2\n"
				       "vpgatherqq %%ymm2, (%0,%%ymm1,1), %%ymm0"
				       :
				       : "r"(rw), "r"(idx64)
				       : "xmm0", "xmm1", "xmm2", "memory")),
	       "vpgatherqq, one lane bad", SIGSEGV, SEGV_MAPERR, (long)rw + PAGE, 14, ERR_U);
	int32_t idx32[4] __attribute__((aligned(32))) = { 0, 1, PAGE / 8, 2 };
	expect(FAULTS(__asm__ volatile("vmovdqa (%1), %%xmm1\n vpcmpeqd %%ymm2, %%ymm2, %%ymm2\n"
				       "vpgatherdq %%ymm2, (%0,%%xmm1,8), %%ymm0"
				       :
				       : "r"(rw), "r"(idx32)
				       : "xmm0", "xmm1", "xmm2", "memory")),
	       "vpgatherdq, one lane bad", SIGSEGV, SEGV_MAPERR, (long)rw + PAGE, 14, ERR_U);
	/* A lane that the mask leaves out does not fault. */
	int32_t mask[8] __attribute__((aligned(32))) = { -1, -1, -1, -1, -1, 0, -1, -1 };
	bool f = FAULTS(__asm__ volatile("vmovdqa (%1), %%ymm1\n vmovdqa (%2), %%ymm2\n"
					 "vpgatherdd %%ymm2, (%0,%%ymm1,4), %%ymm0"
					 :
					 : "r"(rw), "r"(idx), "r"(mask)
					 : "xmm0", "xmm1", "xmm2", "memory"));
	check(!f, "vpgatherdd, bad lane masked");
	/* Masked load whose unwanted lanes are in the hole. */
	f = FAULTS(__asm__ volatile("vmovdqa (%1), %%ymm2\n vpmaskmovd (%0), %%ymm2, %%ymm0"
				    :
				    : "r"(rw + PAGE - 20), "r"(mask)
				    : "xmm0", "xmm2", "memory"));
	check(f && seen.signo == SIGSEGV && seen.addr >= (uint64_t)hole && seen.addr < (uint64_t)hole + 12,
	      "vpmaskmovd, wanted lanes in the hole");
	int32_t low[8] __attribute__((aligned(32))) = { -1, -1, -1, -1, -1, 0, 0, 0 };
	f = FAULTS(__asm__ volatile("vmovdqa (%1), %%ymm2\n vpmaskmovd (%0), %%ymm2, %%ymm0"
				    :
				    : "r"(rw + PAGE - 20), "r"(low)
				    : "xmm0", "xmm2", "memory"));
	if (!skipped(f, "vpmaskmovd, unwanted lanes in the hole"))
		puts("ok vpmaskmovd, unwanted lanes in the hole");
	if (__builtin_cpu_supports("avx512f")) {
		f = FAULTS(__asm__ volatile("mov $0xf, %%eax\n kmovw %%eax, %%k1\n vmovdqu32 (%0), %%zmm0%{%%k1%}%{z%}"
					    :
					    : "r"(rw + PAGE - 16)
					    : "rax", "xmm0", "memory"));
		check(!f, "AVX-512 masked load beside the hole");
		f = FAULTS(__asm__ volatile("mov $0x1f, %%eax\n kmovw %%eax, %%k1\n vmovdqu32 %%zmm0, (%0)%{%%k1%}"
					    :
					    : "r"(rw + PAGE - 16)
					    : "rax", "xmm0", "memory"));
		check(f && seen.signo == SIGSEGV && seen.code == SEGV_MAPERR, "AVX-512 masked store into the hole");
	}
}

/* ---- execution -------------------- */

#define ASTRAY 0x800000000000
static void go_astray(int signo, siginfo_t *info, void *uc)
{
	(void)signo;
	(void)info;
	((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP] = ASTRAY;
}

static void call(void *p)
{
	void (*volatile f)(void) = (void (*)(void))p;
	f();
}

static void test_exec(void)
{
	nx[0] = (char)0xc3;
	expect(FAULTS(call(nx)), "execute non-executable", SIGSEGV, SEGV_ACCERR, (long)nx, 14, ERR_U | ERR_P | ERR_I);
	check(seen.rip == (uint64_t)nx, "rip at the target");
	expect(FAULTS(call(hole)), "execute unmapped", SIGSEGV, SEGV_MAPERR, (long)hole, 14, ERR_U | ERR_I);
	expect(FAULTS(call(none)), "execute PROT_NONE", SIGSEGV, SEGV_ACCERR, (long)none, 14, ANY);
	expect(FAULTS(call(NULL)), "execute page 0", SIGSEGV, SEGV_MAPERR, 0, 14, ERR_U | ERR_I);
	char *x = island(PROT_READ | PROT_WRITE);
	memcpy(x + PAGE - 4, "\x90\x90\x48\xb8", 4); /* mov $imm64, %rax goes on in the hole */
	x[0] = (char)0xc3;
	mprotect(x, PAGE, PROT_READ | PROT_EXEC);
	bool f = FAULTS(call(x));
	check(!f, "mprotect to executable");
	expect(FAULTS(call(x + PAGE - 4)), "instruction across into a hole", SIGSEGV, SEGV_MAPERR, (long)x + PAGE, 14,
	       ERR_U | ERR_I);
	check(seen.rip == (uint64_t)x + PAGE - 2, "rip of the cut instruction");
	mprotect(x, PAGE, PROT_READ);
	expect(FAULTS(call(x)), "mprotect: no longer executable", SIGSEGV, SEGV_ACCERR, (long)x, 14,
	       ERR_U | ERR_P | ERR_I);
	mprotect(x, PAGE, PROT_READ | PROT_EXEC);
	f = FAULTS(call(x));
	check(!f, "executable again");
	expect(FAULTS(wr(x + 3)), "write to executable", SIGSEGV, SEGV_ACCERR, (long)x + 3, 14, ERR_U | ERR_W | ERR_P);
	munmap(x, PAGE);
	expect(FAULTS(call(x)), "execute just unmapped", SIGSEGV, SEGV_MAPERR, (long)x, 14, ERR_U | ERR_I);
	expect(FAULTS(call((void *)0x800000000000)), "call non-canonical", SIGSEGV, SI_KERNEL, 0, 13, 0);

	struct sigaction astray = { .sa_sigaction = go_astray, .sa_flags = SA_SIGINFO }, before;
	sigaction(SIGUSR1, &astray, &before);
	expect(FAULTS(raise(SIGUSR1)), "sigreturn to a non-canonical address", SIGSEGV, SI_KERNEL, 0, 13, 0);
	check(seen.rip == ASTRAY, "and the address is seen there");
	sigaction(SIGUSR1, &before, NULL);

	/* Code written, sealed, run, opened: 1,000 times. */
	volatile bool ok = true;
	char *w = map(1, PROT_READ | PROT_WRITE);
	for (volatile int i = 0; i < 1000 && ok; i++) {
		w[0] = (char)0xb8;
		memcpy(w + 1, (int[]){ i }, 4);
		w[5] = (char)0xc3;
		ok &= mprotect(w, PAGE, PROT_READ | PROT_EXEC) == 0;
		ok &= ((int (*)(void))w)() == i;
		ok &= mprotect(w, PAGE, PROT_READ | PROT_WRITE) == 0;
		if (i % 100 == 0) {
			f = FAULTS(call(w));
			ok &= f && seen.signo == SIGSEGV && seen.code == SEGV_ACCERR;
		}
	}
	check(ok, "W^X toggled 1,000 times");
	char *j = map(1, PROT_READ | PROT_WRITE | PROT_EXEC);
	ok = true;
	for (int i = 0; i < 1000 && ok; i++) { /* RWX: changed code is seen at once */
		j[0] = (char)0xb8;
		memcpy(j + 1, &i, 4);
		j[5] = (char)0xc3;
		__asm__ volatile("" : : : "memory");
		ok &= ((int (*)(void))j)() == i;
	}
	check(ok, "RWX code changed 1,000 times");
	munmap(w, PAGE);
	munmap(j, PAGE);
}

/* ---- instructions -------------------- */

static volatile int traps;
static volatile uint64_t trap_rips;

static void step(int s, siginfo_t *i, void *u)
{
	ucontext_t *c = u;
	(void)s;
	if (i->si_code == TRAP_TRACE && i->si_addr == (void *)c->uc_mcontext.gregs[REG_RIP])
		traps++;
	trap_rips = c->uc_mcontext.gregs[REG_RIP];
}

/*
 * The error code that this processor has for `int n` of a gate that ring 3 may not use: the place of the gate's selector,
 * 8 a vector, as Intel and AMD say. QEMU's emulated processors count the gates' own 16 bytes; no kernel does.
 */
static long int_error(unsigned n)
{
	bool f = FAULTS(__asm__ volatile("int $0x22"));
	uint64_t a = seen.err;
	f &= FAULTS(__asm__ volatile("int $0x23"));
	return n * (f && a == 0x22 * 16 + 2 && seen.err == 0x23 * 16 + 2 ? 16 : 8) + 2;
}

/*
 * Does a processor that has gone on behind the instruction (f: it has not) never raise exceptions of SSE? Then the
 * status says that there was one, while the mask says that it is wanted: QEMU's emulated processors.
 */
static bool never_raises(bool f, uint32_t csr, uint32_t unmask)
{
	return !f && !(csr & unmask) && (csr & (unmask >> 7));
}

static void test_instructions(void)
{
	uint64_t at;
#define I(...) FAULTS(__asm__ volatile(__VA_ARGS__))
#define AT "lea 1f(%%rip), %%rax\n mov %%rax, %0\n 1:"
	bool f = I(AT "int3" : "=m"(at) : : "rax");
	expect(f, "int3", SIGTRAP, SI_KERNEL, 0, 3, 0);
	check(seen.rip == at + 1, "rip behind int3");
	f = I(AT "ud2" : "=m"(at) : : "rax");
	expect(f, "ud2", SIGILL, ILL_ILLOPN, (long)at, 6, 0);
	check(seen.rip == at, "rip at ud2");
	f = I(AT ".byte 0x0f, 0xff" : "=m"(at) : : "rax");
	expect(f, "ud0", SIGILL, ILL_ILLOPN, (long)at, 6, 0);
	f = I("xor %%ecx, %%ecx\n xor %%edx, %%edx\n mov $5, %%eax\n lea 1f(%%rip), %%rsi\n mov %%rsi, %0\n1: div %%ecx"
	      : "=m"(at)
	      :
	      : "rax", "rcx", "rdx", "rsi");
	expect(f, "division by zero", SIGFPE, FPE_INTDIV, (long)at, 0, 0);
	f = I("mov $-1, %%ecx\n mov $0x80000000, %%eax\n cltd\n lea 1f(%%rip), %%rsi\n mov %%rsi, %0\n1: idiv %%ecx"
	      : "=m"(at)
	      :
	      : "rax", "rcx", "rdx", "rsi");
	expect(f, "division overflow", SIGFPE, FPE_INTDIV, (long)at, 0, 0);
	expect(I("hlt"), "hlt", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("cli"), "cli", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("sti"), "sti", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("mov $0x80, %%dx\n in %%dx, %%al" : : : "rax", "rdx"), "in", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("mov $0x80, %%dx\n out %%al, %%dx" : : : "rax", "rdx"), "out", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("mov $0xc0000080, %%ecx\n rdmsr" : : : "rax", "rcx", "rdx"), "rdmsr", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("mov %%cr0, %%rax" : : : "rax"), "mov from cr0", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("mov %%rax, %%cr3" : : : "rax"), "mov to cr3", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("mov %%db7, %%rax" : : : "rax"), "mov from dr7", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("wbinvd"), "wbinvd", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("invlpg (%%rax)" : : : "rax"), "invlpg", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("lgdt (%0)" : : "r"(rw)), "lgdt", SIGSEGV, SI_KERNEL, 0, 13, 0);
	expect(I("mov $0x123, %%eax\n mov %%eax, %%ss" : : : "rax"), "bad segment", SIGSEGV, SI_KERNEL, 0, 13, 0x120);
	expect(I("int $0x21"), "int 0x21", SIGSEGV, SI_KERNEL, 0, 13, int_error(0x21));
	expect(I("swapgs"), "swapgs", SIGSEGV, SI_KERNEL, 0, 13, 0);
	/* Single steps. */
	struct sigaction a = { .sa_sigaction = step, .sa_flags = SA_SIGINFO }, old;
	sigaction(SIGTRAP, &a, &old);
	__asm__ volatile("pushfq\n orq $0x100, (%%rsp)\n popfq\n nop\n nop\n nop\n nop\n nop\n pushfq\n"
			 "andq $~0x100, (%%rsp)\n popfq\n nop"
			 :
			 :
			 : "memory", "cc");
	check(traps == 8, "single steps"); /* five nop, pushfq, andq, popfq */
	sigaction(SIGTRAP, &old, NULL);
	/* Floating point: masked off, then each with its code. */
	uint32_t csr;
	static const struct {
		const char *name;
		double x, y;
		int op, code;
		uint32_t unmask;
	} fp[] = { { "SSE invalid", 0, 0, '/', FPE_FLTINV, 0x80 },
		   { "SSE divide by zero", 1, 0, '/', FPE_FLTDIV, 0x200 },
		   { "SSE overflow", 1e300, 1e300, '*', FPE_FLTOVF, 0x400 },
		   { "SSE underflow", 1e-300, 1e-300, '*', FPE_FLTUND, 0x800 },
		   { "SSE inexact", 1, 3, '/', FPE_FLTRES, 0x1000 } };
	for (volatile unsigned i = 0; i < sizeof fp / sizeof fp[0]; i++) {
		csr = 0x1f80 & ~fp[i].unmask;
		if (fp[i].op == '/')
			f = I("ldmxcsr %0\n movsd %1, %%xmm0\n divsd %2, %%xmm0\n stmxcsr %0"
			      : "+m"(csr)
			      : "m"(fp[i].x), "m"(fp[i].y)
			      : "xmm0");
		else
			f = I("ldmxcsr %0\n movsd %1, %%xmm0\n mulsd %2, %%xmm0\n stmxcsr %0"
			      : "+m"(csr)
			      : "m"(fp[i].x), "m"(fp[i].y)
			      : "xmm0");
		bool without = never_raises(f, csr, fp[i].unmask);
		csr = 0x1f80;
		__asm__ volatile("ldmxcsr %0" : : "m"(csr));
		if (!skipped(without, fp[i].name))
			expect(f, fp[i].name, SIGFPE, fp[i].code, (long)seen.rip, 19, 0);
	}
	uint16_t cw = 0x37f & ~4;
	f = I("fninit\n fldcw %0\n fld1\n fldz\n fdivrp\n fwait" : : "m"(cw));
	__asm__ volatile("fninit");
	expect(f, "x87 divide by zero", SIGFPE, FPE_FLTDIV, (long)seen.rip, 16, 0);
	cw = 0x37f & ~1;
	f = I("fninit\n fldcw %0\n fldz\n fldz\n fdivrp\n fwait" : : "m"(cw));
	__asm__ volatile("fninit");
	expect(f, "x87 invalid", SIGFPE, FPE_FLTINV, (long)seen.rip, 16, 0);
	/* Alignment checks. */
	f = I("pushfq\n orq $0x40000, (%%rsp)\n popfq\n mov 1(%0), %%eax\n pushfq\n andq $~0x40000, (%%rsp)\n popfq"
	      :
	      : "r"(rw)
	      : "rax", "memory", "cc");
	__asm__ volatile("pushfq\n andq $~0x40000, (%%rsp)\n popfq" : : : "memory", "cc");
	if (!skipped(!f, "alignment check"))
		expect(f, "alignment check", SIGBUS, BUS_ADRALN, ANY, 17, 0);
#undef I
#undef AT
}

/* ---- files -------------------- */

static void test_files(void)
{
	int fd = memfd_create("fault", 0);
	if (fd < 0 || ftruncate(fd, 100)) {
		check(false, "memfd");
		return;
	}
	char *s = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	s[4000] = 7; /* the rest of the last page is there */
	check(p[4000] == 7, "rest of the last page");
	expect(FAULTS(rd(s + PAGE + 10)), "read beyond the end, shared", SIGBUS, BUS_ADRERR, (long)s + PAGE + 10, 14,
	       ANY);
	expect(FAULTS(wr(s + PAGE + 10)), "write beyond the end, shared", SIGBUS, BUS_ADRERR, (long)s + PAGE + 10, 14,
	       ANY);
	expect(FAULTS(rd(p + 3 * PAGE)), "read beyond the end, private", SIGBUS, BUS_ADRERR, (long)p + 3 * PAGE, 14,
	       ANY);
	expect(FAULTS(wr(p + 3 * PAGE)), "write beyond the end, private", SIGBUS, BUS_ADRERR, (long)p + 3 * PAGE, 14,
	       ANY);
	volatile bool ok = ftruncate(fd, 4 * PAGE) == 0;
	bool f = FAULTS(wr(s + 3 * PAGE); wr(p + 2 * PAGE));
	check(ok && !f && p[3 * PAGE] == 1, "after growing");
	ok = ftruncate(fd, PAGE) == 0;
	expect(FAULTS(rd(s + 3 * PAGE)), "read after truncation", SIGBUS, BUS_ADRERR, (long)s + 3 * PAGE, 14, ANY);
	expect(FAULTS(rd(p + 2 * PAGE)), "private copy after truncation", SIGBUS, BUS_ADRERR, (long)p + 2 * PAGE, 14,
	       ANY);
	f = FAULTS(__asm__ volatile("movdqu (%0), %%xmm0" : : "r"(p + PAGE - 8) : "xmm0"));
	check(f && seen.signo == SIGBUS && seen.addr >= (uint64_t)p + PAGE && seen.addr < (uint64_t)p + PAGE + 8,
	      "load across the file's end");
	/* The kernel's own access does not raise a signal. */
	int pipefd[2];
	ok &= pipe(pipefd) == 0;
	check(ok && write(pipefd[1], s + 2 * PAGE, 10) == -1 && errno == EFAULT,
	      "write(2) from beyond the end: EFAULT");
	check(write(pipefd[1], hole, 10) == -1 && errno == EFAULT, "write(2) from a hole: EFAULT");
	check(write(pipefd[1], "0123456789", 10) == 10 && read(pipefd[0], ro, 10) == -1 && errno == EFAULT,
	      "read(2) into read-only: EFAULT");
	check(syscall(SYS_clock_gettime, 0, hole) == -1 && errno == EFAULT, "clock_gettime: EFAULT");
	check(syscall(SYS_clock_gettime, 0, ro) == -1 && errno == EFAULT, "clock_gettime to read-only: EFAULT");
	check(syscall(SYS_rt_sigprocmask, 0, NULL, hole - 4, 8) == -1 && errno == EFAULT, "rt_sigprocmask: EFAULT");
	check(syscall(SYS_getrandom, ro, 16, 0) == -1 && errno == EFAULT, "getrandom to read-only: EFAULT");
	check(syscall(SYS_futex, hole, 128, 0, NULL, NULL, 0) == -1 && errno == EFAULT, "futex in a hole: EFAULT");
	check(syscall(SYS_clock_gettime, 0, 0xffffffff80000000) == -1 && errno == EFAULT, "kernel address: EFAULT");
	check(syscall(SYS_clock_gettime, 0, 0x800000000000) == -1 && errno == EFAULT, "non-canonical address: EFAULT");
	close(pipefd[0]);
	close(pipefd[1]);
	munmap(s, 4 * PAGE);
	munmap(p, 4 * PAGE);
	close(fd);
}

/* ---- mending -------------------- */

static volatile int mended;

static void mend(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)u;
	char *page = (char *)((uintptr_t)i->si_addr & ~(uintptr_t)(PAGE - 1));
	mended++;
	if (i->si_code == SEGV_MAPERR)
		mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	else
		mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
}

static int recurse(int n)
{
	volatile char frame[512];
	frame[0] = (char)n;
	return n == 0 ? 0 : recurse(n - 1) + frame[0] + 1;
}

static void *overflow(void *arg)
{
	static char alt[65536];
	stack_t ss = { .ss_sp = alt, .ss_size = sizeof alt };
	char *guard = arg;
	sigaltstack(&ss, NULL);
	bool f = FAULTS(recurse(100000000));
	bool ok = f && seen.signo == SIGSEGV && seen.code == SEGV_ACCERR && seen.addr >= (uint64_t)guard &&
		  seen.addr < (uint64_t)guard + PAGE;
	if (!ok)
		printf("  signal %d, code %d, address %#lx, guard %p\n", seen.signo, seen.code, (long)seen.addr, guard);
	ss.ss_flags = SS_DISABLE;
	sigaltstack(&ss, NULL);
	return (void *)(long)ok;
}

static void *many(void *arg)
{
	char *p = map(1, PROT_READ);
	volatile long n = 0;
	(void)arg;
	for (volatile int i = 0; i < 1000; i++) {
		bool f = FAULTS(wr(p + i));
		n += f && seen.signo == SIGSEGV && seen.addr == (uint64_t)p + i && seen.code == SEGV_ACCERR;
	}
	munmap(p, PAGE);
	return (void *)(long)(n == 1000);
}

static void test_mending(void)
{
	install(mend);
	char *p = map(64, PROT_NONE);
	mended = 0;
	for (int i = 0; i < 64; i++)
		p[i * PAGE + 5] = (char)i;
	bool ok = mended == 64;
	for (int i = 0; i < 64; i++)
		ok &= p[i * PAGE + 5] == i;
	check(ok, "mprotect in the handler, retry");
	munmap(p, 64 * PAGE);
	mended = 0;
	memset(p, 0x5a, 64 * PAGE); /* rep or vector stores, resumed in the middle */
	ok = mended == 64;
	for (int i = 0; i < 64 * PAGE; i++)
		ok &= p[i] == 0x5a;
	check(ok, "mmap in the handler, retry of memset");
	mprotect(p, 64 * PAGE, PROT_READ);
	mended = 0;
	long old = 1;
	__asm__ volatile("lock xadd %0, (%1)" : "+r"(old) : "r"(p) : "memory");
	check(mended == 1 && old == 0x5a5a5a5a5a5a5a5a && *(long *)p == 0x5a5a5a5a5a5a5a5b,
	      "retry of a locked instruction");
	p[2 * PAGE - 1] = (char)0xb8; /* mov $imm, %eax across two pages, both not executable */
	memcpy(p + 2 * PAGE, "\x2a\0\0\0\xc3", 5);
	mprotect(p, 64 * PAGE, PROT_READ);
	mended = 0;
	check(((int (*)(void))(p + 2 * PAGE - 1))() == 42 && mended >= 2, "retry of an instruction across two pages");
	munmap(p, 64 * PAGE);
	install(catch);

	pthread_attr_t at;
	pthread_t t[4];
	void *r;
	char *stack = map(20, PROT_READ | PROT_WRITE);
	mprotect(stack, PAGE, PROT_NONE);
	pthread_attr_init(&at);
	pthread_attr_setstack(&at, stack + PAGE, 19 * PAGE);
	ok = pthread_create(t, &at, overflow, stack) == 0 && pthread_join(t[0], &r) == 0 && r;
	check(ok, "stack overflow, caught on the alternate stack");
	pthread_attr_destroy(&at);
	ok = true;
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, many, NULL);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], &r);
		ok &= r != NULL;
	}
	check(ok, "1,000 faults in each of four threads");
}

int main(void)
{
	stack_t ss = { .ss_sp = altstack, .ss_size = sizeof altstack };
	sigaltstack(&ss, NULL);
	install(catch);
	test_plain();
	test_stack();
	test_vector();
	test_exec();
	test_instructions();
	test_files();
	test_mending();
	if (failures) {
		printf("FAILED %d\n", failures);
		return 1;
	}
	puts("SUCCESS");
	return 0;
}
