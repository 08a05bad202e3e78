/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x87, SSE, AVX and AVX-512 state across signals, fork, vfork, threads and exec, as Linux leaves it; across calls
 * alone: regs. Passes on any x86-64 Linux with XSAVE.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define AREA 4096
#define MAGIC1 0x46505853u
#define MAGIC2 0x46505845u
#define MXCSR 0xff80u /* round to zero, flush to zero */
#define FCW 0x77f
#define AVX (1u << 2)
#define AVX512 (7u << 5)

static int failures;
static bool has_avx, has_avx512;

static bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

/*
 * The whole state is loaded, saved, the thing done, saved again: by assembly alone. What: 0 = the call, 1 = turn until
 * *flag, 2 = ud2, 3 = the call, by a site that nobody could patch (at jit). In a child of the call (result 0) the
 * state goes to `child`; it exits at once.
 */
struct run {
	long nr, a, b, c, ret;           /* 0 .. 32 */
	long what;                       /* 40 */
	void *jit;                       /* 48 */
	void *before, *after;            /* 56, 64 */
	void *pattern;                   /* 72 */
	long mode;                       /* 80: 0 SSE, 1 AVX, 2 AVX-512 */
	uint32_t mxcsr, mxcsr_dfl;       /* 88, 92 */
	uint16_t fcw, fcw_dfl, pad[2];   /* 96, 98 */
	void *child;                     /* 104 */
	volatile uint32_t flag, is_done; /* 112, 116 */
};

__asm__(".text\n.globl xrun\nxrun:\n"
	"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	"	mov %rdi, %rbx\n"
	"	mov 72(%rbx), %rbp\n"
	"	fninit\n	fldcw 96(%rbx)\n	fldpi\n	fld1\n	fldl2e\n	fldln2\n	fldlg2\n"
	"	ldmxcsr 88(%rbx)\n"
	"	cmpq $1, 80(%rbx)\n"
	"	jb 1f\n	je 2f\n"
	"	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
	"	vmovdqu64 64*\\n(%rbp), %zmm\\n\n	.endr\n"
	"	.irp n,0,1,2,3,4,5,6,7\n	kmovq 8*\\n(%rbp), %k\\n\n	.endr\n"
	"	jmp 3f\n"
	"1:	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n	movdqu 64*\\n(%rbp), %xmm\\n\n	.endr\n"
	"	jmp 3f\n"
	"2:	.irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n	vmovdqu 64*\\n(%rbp), %ymm\\n\n	.endr\n"
	"3:	mov $0xe7, %eax\n	xor %edx, %edx\n	mov 56(%rbx), %rcx\n	xsave64 (%rcx)\n"
	"xrun_loaded:\n"
	"	mov 40(%rbx), %rax\n"
	"	cmp $1, %rax\n	je 5f\n"
	"	cmp $2, %rax\n	je 6f\n"
	"	mov 8(%rbx), %rdi\n	mov 16(%rbx), %rsi\n	mov 24(%rbx), %rdx\n"
	"	xor %r10d, %r10d\n	xor %r8d, %r8d\n"
	"	cmp $3, %rax\n	mov 0(%rbx), %rax\n	je 4f\n"
	"	syscall\n"
	"	jmp 7f\n"
	"4:	mov 48(%rbx), %r15\n	lea 7f(%rip), %r12\n	jmp *%r15\n"
	"5:	pause\n	cmpl $0, 112(%rbx)\n	je 5b\n"
	"	jmp 7f\n"
	"6:	mov $1, %eax\n	ud2\n"
	"xrun_over:\n"
	/* The result is in a register until it is known whose it is: `run` is shared with a child of fork. */
	"7:	test %rax, %rax\n	jne 8f\n"
	"	mov 104(%rbx), %rcx\n	test %rcx, %rcx\n	jz 8f\n"
	"	mov $0xe7, %eax\n	xor %edx, %edx\n	xsave64 (%rcx)\n"
	"	movl $1, 116(%rbx)\n"
	"	mov $60, %eax\n	xor %edi, %edi\n	syscall\n"
	"8:	mov %rax, 32(%rbx)\n"
	"	mov $0xe7, %eax\n	xor %edx, %edx\n	mov 64(%rbx), %rcx\n	xsave64 (%rcx)\n"
	"	fninit\n	fldcw 98(%rbx)\n	ldmxcsr 92(%rbx)\n"
	"	cmpq $0, 80(%rbx)\n	je 9f\n	vzeroupper\n"
	"9:	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n	ret\n"
	/* The state as a handler finds it, before anything can change it. */
	".globl handler\nhandler:\n"
	"	mov %rdx, %r11\n"
	"	mov $0xe7, %eax\n	xor %edx, %edx\n	mov at_entry(%rip), %rcx\n	xsave64 (%rcx)\n"
	"	mov %r11, %rdx\n"
	"	jmp on_signal\n");
void xrun(struct run *r);
extern const char xrun_loaded[], xrun_over[];
void handler(int sig, siginfo_t *info, void *context);

/* All in memory that fork shares. */
static uint8_t *before, *after, *child, *in_frame, *pattern, *dirt;
uint8_t *at_entry __attribute__((used));
static void *jit;
static struct run *run;

enum edit { NOTHING, CHANGE, NO_MAGIC, NO_BV, NO_FPSTATE, FEATURES_SSE, BAD_MXCSR, BAD_BV };
static volatile enum edit edit;
static volatile bool frame_ok;
static volatile int signals;
static volatile bool early; /* the timer's, before the state was loaded */

/* Legacy: control and status without the last instruction's addresses; st and xmm. Offsets in the standard format. */
static const struct {
	const char *name;
	int from, to;
	uint64_t feature;
} parts[] = { { "x87 control", 0, 6, 1 },
	      { "mxcsr", 24, 28, 2 },
	      { "x87 stack", 32, 160, 1 },
	      { "xmm", 160, 416, 2 },
	      { "ymm", 576, 832, AVX },
	      { "k", 1088, 1152, 1u << 5 },
	      { "zmm high halves", 1152, 1664, 1u << 6 },
	      { "zmm16-31", 1664, 2688, 1u << 7 } };

static uint64_t features(void) { return 3u | (has_avx ? AVX : 0) | (has_avx512 ? AVX512 : 0); }

/* Of the 16 bytes of an x87 register six are reserved; QEMU leaves them as they were in memory. */
static bool is_state(int at) { return at < 32 || at >= 160 || at % 16 < 10; }

/* The first byte of [from, to) that differs; `to`: none. */
static int first_difference(const uint8_t *a, const uint8_t *b, int from, int to)
{
	while (from < to && (a[from] == b[from] || !is_state(from)))
		from++;
	return from;
}

/* The components of a and b that `which` names; those that it does not, are at their initial values in b. */
static bool same(const char *what, const uint8_t *a, const uint8_t *b, uint64_t which)
{
	static uint8_t initial[AREA];
	bool ok = true;
	initial[0] = 0x7f;
	initial[1] = 3;
	initial[24] = 0x80;
	initial[25] = 0x1f;
	for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++) {
		const uint8_t *want = which & parts[i].feature ? a : initial;
		if (!(features() & parts[i].feature))
			continue;
		int at = first_difference(want, b, parts[i].from, parts[i].to);
		if (at == parts[i].to)
			continue;
		printf("  %s: %s: byte %d is %#x, not %#x\n", what, parts[i].name, at, b[at], want[at]);
		ok = false;
	}
	return ok;
}

static void make_dirty(void)
{
	__asm__ volatile("fninit; fldz; fldz; ldmxcsr %0" : : "m"(*(uint32_t *)dirt));
	if (has_avx512)
		__asm__ volatile(".irp n,0,1,2,3,4,5,6,7,8,15,16,24,31\n vmovdqu64 (%0), %%zmm\\n\n .endr\n"
				 "kxnorq %%k1, %%k1, %%k1\n kxnorq %%k7, %%k7, %%k7"
				 :
				 : "r"(dirt + 64)
				 : "memory");
	else if (has_avx)
		__asm__ volatile(".irp n,0,1,2,3,4,5,6,7,8,15\n vmovdqu (%0), %%ymm\\n\n .endr"
				 :
				 : "r"(dirt + 64)
				 : "memory");
	else
		__asm__ volatile(".irp n,0,1,2,3,4,5,6,7,8,15\n movdqu (%0), %%xmm\\n\n .endr"
				 :
				 : "r"(dirt + 64)
				 : "memory");
}

__attribute__((used)) void on_signal(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;
	uint32_t sw[4], magic2;
	uint64_t xfeatures, bv;
	(void)info;
	uint64_t at = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
	if (sig == SIGALRM && (at < (uint64_t)xrun_loaded || at > (uint64_t)xrun_over)) {
		early = true;
		run->flag = 1;
		return;
	}
	memcpy(sw, fp + 464, sizeof sw);
	memcpy(&xfeatures, fp + 472, 8);
	memcpy(&bv, fp + 512, 8);
	memcpy(&magic2, fp + sw[1] - 4, 4);
	frame_ok = sw[0] == MAGIC1 && magic2 == MAGIC2 && ((uintptr_t)fp & 63) == 0 &&
		   (xfeatures & features()) == features() && (bv & features()) == features();
	memcpy(in_frame, fp, sw[1] < AREA ? sw[1] : AREA);
	switch (edit) {
	case CHANGE:
		for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++)
			if (parts[i].from >= 160 && (features() & parts[i].feature))
				for (int k = parts[i].from; k < parts[i].to; k++)
					fp[k] ^= 0x55;
		fp[1] ^= 4; /* rounding of x87, flush to zero off */
		fp[25] ^= 0x80;
		memcpy(before, fp, 2688);
		break;
	case NO_MAGIC:
		memset(fp + 464, 0, 4);
		break;
	case NO_BV:
		bv &= ~(uint64_t)(AVX | AVX512);
		memcpy(fp + 512, &bv, 8);
		break;
	case NO_FPSTATE:
		uc->uc_mcontext.fpregs = NULL;
		break;
	case FEATURES_SSE:
		xfeatures = 3;
		memcpy(fp + 472, &xfeatures, 8);
		break;
	case BAD_MXCSR:
		fp[27] = 0x80;
		break;
	case BAD_BV:
		bv |= 1ull << 60;
		memcpy(fp + 512, &bv, 8);
		break;
	case NOTHING:
		break;
	}
	if (sig == SIGILL)
		uc->uc_mcontext.gregs[REG_RIP] += 2;
	signals++;
	make_dirty();
	run->flag = 1;
}

static void prepare(long what, long nr, long a, long b, long c)
{
	*run = (struct run){ .nr = nr,
			     .a = a,
			     .b = b,
			     .c = c,
			     .what = what,
			     .jit = jit,
			     .before = before,
			     .after = after,
			     .pattern = pattern,
			     .mode = has_avx512 ? 2 : has_avx,
			     .mxcsr = MXCSR,
			     .mxcsr_dfl = 0x1f80,
			     .fcw = FCW,
			     .fcw_dfl = 0x37f };
	memset(before, 0, AREA);
	memset(after, 0, AREA);
	memset(child, 0, AREA);
	memset(in_frame, 0, AREA);
	memset(at_entry, 0, AREA);
	signals = 0;
	frame_ok = false;
}

/* ---- signals ------------------------------------------------------------------------------------------------------ */

static bool as_expected(const char *what, uint64_t restored)
{
	bool ok = signals == 1 && frame_ok;
	if (!ok)
		printf("  %s: %d signals, frame %d\n", what, signals, frame_ok);
	if (edit != CHANGE)
		ok &= same("the frame", before, in_frame, ~0ull);
	ok &= same("a handler's start", before, at_entry, 0);
	return ok & same(what, before, after, restored);
}

static bool one_signal(const char *what, uint64_t restored)
{
	xrun(run);
	return as_expected(what, restored);
}

/* A signal of a timer while the state is loaded. On a busy machine it may come before that: then once more. */
static void timed(long what, long nr)
{
	struct itimerval soon = { { 0, 2000 }, { 0, 2000 } }, off = { 0 };
	for (int i = 0; i < 1000; i++) {
		prepare(what, nr, 0, 0, 0);
		early = false;
		soon.it_interval.tv_usec = what ? 0 : 2000; /* the call could miss the only one */
		setitimer(ITIMER_REAL, &soon, NULL);
		xrun(run);
		setitimer(ITIMER_REAL, &off, NULL);
		if (!early && signals == 1)
			break;
	}
}

static bool by_timer(const char *what, uint64_t restored)
{
	timed(1, 0);
	return as_expected(what, restored);
}

static bool by_kill(long what, const char *name, uint64_t restored)
{
	prepare(what, SYS_tgkill, getpid(), (long)syscall(SYS_gettid), SIGUSR1);
	return one_signal(name, restored);
}

static bool by_pause(void)
{
	timed(0, SYS_pause);
	return as_expected("pause", ~0ull) && run->ret == -EINTR;
}

static bool by_fault(const char *what, uint64_t restored)
{
	prepare(2, 0, 0, 0, 0);
	return one_signal(what, restored);
}

static void edits(enum edit e, uint64_t restored, const char *name)
{
	bool ok = true;
	edit = e;
	ok &= by_timer("timer", restored);
	ok &= by_kill(0, "tgkill", restored);
	ok &= by_kill(3, "tgkill, slow", restored);
	ok &= by_fault("ud2", restored);
	edit = NOTHING;
	check(ok, name);
}

/* Whether XRSTOR itself faults at a reserved bit of MXCSR: QEMU's does not. */
static bool minds_mxcsr(void)
{
	pid_t pid = fork();
	int status = 0;
	if (!pid) {
		uint8_t *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		__asm__ volatile("xsave64 (%0)\n orb $0x80, 27(%0)\n orb $2, 512(%0)\n xrstor64 (%0)"
				 :
				 : "r"(area), "a"(3), "d"(0)
				 : "memory");
		_exit(0);
	}
	waitpid(pid, &status, 0);
	return WIFSIGNALED(status);
}

static void refused(enum edit e, const char *name)
{
	pid_t pid = fork();
	int status = 0;
	if (!pid) {
		edit = e;
		by_kill(0, "tgkill", ~0ull);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	check(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, name);
}

static void test_signals(void)
{
	bool ok = true;
	for (int i = 0; i < 20; i++)
		ok &= by_timer("timer", ~0ull);
	check(ok, "a signal in the program's code");
	ok = true;
	for (int i = 0; i < 20; i++)
		ok &= by_kill(0, "tgkill", ~0ull) && by_kill(3, "tgkill, slow", ~0ull) && by_pause();
	check(ok, "a signal at a call");
	check(by_fault("ud2", ~0ull), "a signal by a fault");
	edits(CHANGE, ~0ull, "what a handler changes in the frame");
	edits(NO_MAGIC, 3, "a frame without magic: the legacy state alone");
	edits(NO_BV, 3, "a frame without AVX in XSTATE_BV");
	edits(FEATURES_SSE, 3, "a frame of SSE alone");
	edits(NO_FPSTATE, 0, "a frame without state");
	if (minds_mxcsr())
		refused(BAD_MXCSR, "a reserved bit of MXCSR: SIGSEGV");
	refused(BAD_BV, "a reserved bit of XSTATE_BV: SIGSEGV");
}

/* ---- processes and threads ---------------------------------------------------------------------------------------- */

static bool one_child(const char *what, bool process)
{
	int status = 0;
	run->child = child;
	xrun(run);
	if (run->ret <= 0) {
		printf("  %s: %ld\n", what, run->ret);
		return false;
	}
	if (process)
		waitpid((pid_t)run->ret, &status, 0);
	while (!process && !run->is_done)
		sched_yield();
	bool ok = run->is_done && status == 0;
	ok &= same("the parent", before, after, ~0ull);
	return ok & same("the child", before, child, ~0ull);
}

static void test_children(void)
{
	bool f = true, v = true, t = true;
	static char stacks[8][65536]
		__attribute__((aligned(64))); /* one for each thread: who knows when it has ended */
	const long thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	for (int i = 0; i < 8; i++) {
		char *top = stacks[i] + sizeof stacks[i];
		long what = i % 2 ? 3 : 0;
		prepare(what, SYS_fork, 0, 0, 0);
		f &= one_child("fork", true);
		prepare(what, SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, (long)top, 0);
		v &= one_child("vfork", true);
		prepare(what, SYS_clone, thread, (long)top, 0);
		t &= one_child("thread", false);
	}
	check(f, "fork");
	check(v, "vfork");
	check(t, "a thread starts with its creator's state");
}

/* A new program starts afresh; its libc has used the vector registers by now, but not these. */
static int fresh(void)
{
	uint32_t mxcsr;
	uint16_t fcw;
	__asm__ volatile("stmxcsr %0; fnstcw %1" : "=m"(mxcsr), "=m"(fcw));
	return (mxcsr & ~0x3fu) != 0x1f80 || fcw != 0x37f;
}

static void test_exec(void)
{
	int status = 1;
	pid_t pid = fork();
	if (!pid) {
		uint32_t mxcsr = MXCSR;
		uint16_t fcw = FCW;
		__asm__ volatile("ldmxcsr %0; fldcw %1; fldpi" : : "m"(mxcsr), "m"(fcw));
		execl("/proc/self/exe", "xstate", "fresh", NULL);
		_exit(1);
	}
	waitpid(pid, &status, 0);
	check(status == 0, "exec starts with the default modes");
}

static bool probe(void)
{
	unsigned a, b, c, d;
	uint32_t lo, hi;
	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return false;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	has_avx = (c & bit_AVX) && (lo & 6) == 6;
	has_avx512 = has_avx && (lo & 0xe0) == 0xe0 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX512F) &&
		     (b & bit_AVX512BW);
	if (!has_avx512)
		return true;
	/* AVX-512 is not at the same place everywhere. */
	static const struct {
		unsigned leaf, at;
	} places[] = { { 5, 1088 }, { 6, 1152 }, { 7, 1664 } };
	for (int i = 0; i < 3; i++) {
		__cpuid_count(0xd, places[i].leaf, a, b, c, d);
		if (b != places[i].at)
			has_avx512 = false;
	}
	return true;
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "fresh"))
		return fresh();
	(void)argv;
	if (!probe()) {
		printf("no XSAVE here\n");
		return 77;
	}
	printf("  AVX %d, AVX-512 %d\n", has_avx, has_avx512);
	uint8_t *m = mmap(NULL, 16 * AREA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	jit = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m == MAP_FAILED || jit == MAP_FAILED)
		return 1;
	memcpy(jit, "\x0f\x05\x41\xff\xe4", 5); /* syscall; jmp *%r12 */
	before = m;
	after = m + AREA;
	child = m + 2 * AREA;
	in_frame = m + 3 * AREA;
	at_entry = m + 4 * AREA;
	pattern = m + 5 * AREA;
	dirt = m + 6 * AREA;
	run = (struct run *)(m + 7 * AREA);
	for (unsigned i = 0; i < 2048; i++)
		pattern[i] = (uint8_t)(0x80 | (i * 7 + (i >> 6)));
	memset(dirt, 0xee, AREA);
	*(uint32_t *)dirt = 0x3f80;
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	sigaction(SIGALRM, &sa, NULL);
	sigaction(SIGUSR1, &sa, NULL);
	sigaction(SIGILL, &sa, NULL);
	test_signals();
	test_children();
	test_exec();
	printf("%d failed\n", failures);
	return failures != 0;
}
