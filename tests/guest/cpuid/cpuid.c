/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `cpuid` in the program's text (answered by the LibOS in a pVM) against the same instruction in memory made
 * executable at run time (the processor's): results, registers, flags, red zone, signals, single steps. Passes on any
 * x86-64 Linux.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

static int failures;

static bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

/* rax rbx rcx rdx rsi rdi rbp rsp r8-r15 flags, two words of red zone */
enum { RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8, R15 = 15, FLAGS, ZONE0, ZONE1, NREGS };
typedef void site_fn(uint64_t *regs);

/* Load all registers from *rdi, cpuid, store them. rsp stays, so the words below it are red zone. */
extern const uint8_t site_mov[], site_tail[], site_bare[];
extern const uint8_t mov_cpuid[], tail_cpuid[], step_code[];
#define ENTER \
	"push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n push %rdi\n" \
	"mov 136(%rdi), %rax\n mov %rax, -8(%rsp)\n mov 144(%rdi), %rax\n mov %rax, -128(%rsp)\n" \
	"mov 128(%rdi), %rax\n mov %rax, -16(%rsp)\n lea -16(%rsp), %rsp\n popfq\n lea 8(%rsp), %rsp\n" \
	"mov 0(%rdi), %rax\n mov 8(%rdi), %rbx\n mov 16(%rdi), %rcx\n mov 24(%rdi), %rdx\n mov 32(%rdi), %rsi\n" \
	"mov 48(%rdi), %rbp\n mov 64(%rdi), %r8\n mov 72(%rdi), %r9\n mov 80(%rdi), %r10\n mov 88(%rdi), %r11\n" \
	"mov 96(%rdi), %r12\n mov 104(%rdi), %r13\n mov 112(%rdi), %r14\n mov 120(%rdi), %r15\n" \
	"mov 40(%rdi), %rdi\n"
#define LEAVE \
	"xchg %rdi, (%rsp)\n" \
	"mov %rax, 0(%rdi)\n mov %rbx, 8(%rdi)\n mov %rcx, 16(%rdi)\n mov %rdx, 24(%rdi)\n mov %rsi, 32(%rdi)\n" \
	"mov %rbp, 48(%rdi)\n mov %rsp, 56(%rdi)\n mov %r8, 64(%rdi)\n mov %r9, 72(%rdi)\n mov %r10, 80(%rdi)\n" \
	"mov %r11, 88(%rdi)\n mov %r12, 96(%rdi)\n mov %r13, 104(%rdi)\n mov %r14, 112(%rdi)\n" \
	"mov %r15, 120(%rdi)\n mov (%rsp), %rax\n mov %rax, 40(%rdi)\n" \
	"mov -8(%rsp), %rax\n mov %rax, 136(%rdi)\n mov -128(%rsp), %rax\n mov %rax, 144(%rdi)\n" \
	"pushfq\n popq 128(%rdi)\n lea 8(%rsp), %rsp\n pushq $0x202\n popfq\n" \
	"pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
__asm__(".text\n"
	/* the window before it */
	".balign 16\n.globl site_mov, mov_cpuid\n.type site_mov, @function\nsite_mov:\n.cfi_startproc\n" ENTER
	"mov %r14, %rsi\n mov %r13, %r10\nmov_cpuid: cpuid\n" LEAVE ".cfi_endproc\n.size site_mov, . - site_mov\n"
	/* and around it, with what uses the result */
	".balign 16\n.globl site_tail, tail_cpuid\n.type site_tail, @function\nsite_tail:\n.cfi_startproc\n" ENTER
	"jmp tail_cpuid\ntail_cpuid: cpuid\n mov %rax, %r9\n mov %rbx, %r8\n" LEAVE
	".cfi_endproc\n.size site_tail, . - site_tail\n"
	/* every window has a branch target: stays as it is */
	".balign 16\n.globl site_bare\n.type site_bare, @function\nsite_bare:\n.cfi_startproc\n" ENTER
	"jmp 1f\n1: jmp 2f\n2: cpuid\n jmp 3f\n3:\n" LEAVE ".cfi_endproc\n.size site_bare, . - site_bare\n"
	/* single steps: from the first nop to the last */
	".balign 16\n.globl step_code\n.type step_code, @function\n"
	"step_code:\n.cfi_startproc\n push %rbx\n lea -136(%rsp), %rsp\n pushfq\n orq $0x100, (%rsp)\n popfq\n"
	" nop\n mov %rsi, %r8\n mov %rdi, %rax\ncpuid\n mov %rax, %rsi\n nop\n"
	" xor %ecx, %ecx\n cpuid\n mov %rbx, %r8\n mov %rdx, %r9\n nop\n mov $39, %eax\n syscall\n nop\n"
	" pushfq\n andq $~0x100, (%rsp)\n popfq\n nop\n lea 136(%rsp), %rsp\n pop %rbx\n mov %r8, %rax\n ret\n"
	".cfi_endproc\n.size step_code, . - step_code\n");

static site_fn *unpatched; /* cpuid in memory of our own: regs[0..4) */

static bool make_unpatched(void)
{
	/* mov %rbx,%r8; mov (%rdi),%rax; mov 16(%rdi),%rcx; cpuid; store the four; mov %r8,%rbx; ret */
	static const uint8_t code[] = { 0x49, 0x89, 0xd8, 0x48, 0x8b, 0x07, 0x48, 0x8b, 0x4f, 0x10, 0x0f,
					0xa2, 0x48, 0x89, 0x07, 0x48, 0x89, 0x5f, 0x08, 0x48, 0x89, 0x4f,
					0x10, 0x48, 0x89, 0x57, 0x18, 0x4c, 0x89, 0xc3, 0xc3 };
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return false;
	unpatched = (site_fn *)memcpy(p, code, sizeof code);
	return true;
}

static uint64_t rnd_state = 0x9e3779b97f4a7c15;
static uint64_t rnd(void)
{
	rnd_state ^= rnd_state << 13;
	rnd_state ^= rnd_state >> 7;
	return rnd_state ^= rnd_state << 17;
}

static const struct {
	const char *name;
	site_fn *fn;
	int tail; /* rsi, r10 or r8, r9 are written by the code around */
} sites[] = {
	{ "before", (site_fn *)site_mov, 0 },
	{ "around", (site_fn *)site_tail, 1 },
	{ "bare", (site_fn *)site_bare, 2 },
};

/* One cpuid by the site against the processor's. The upper halves of rax and rcx are not looked at by it. */
static bool same(unsigned k, uint32_t leaf, uint32_t index)
{
	uint64_t r[NREGS], want[NREGS], raw[4] = { leaf, 0, index, 0 };
	for (int i = 0; i < NREGS; i++)
		r[i] = rnd();
	r[RAX] = (r[RAX] & ~0xffffffffull) | leaf;
	r[RCX] = (r[RCX] & ~0xffffffffull) | index;
	r[FLAGS] = (r[FLAGS] & 0x8d5) | 0x202; /* not DF: the C code around */
	memcpy(want, r, sizeof r);
	unpatched(raw);
	memcpy(want, raw, sizeof raw);
	if (sites[k].tail == 0) {
		want[RSI] = r[R15 - 1];
		want[R8 + 2] = r[R15 - 2];
	} else if (sites[k].tail == 1) {
		want[R8 + 1] = want[RAX];
		want[R8] = want[RBX];
	}
	sites[k].fn(r);
	want[RSP] = r[RSP];
	if (!memcmp(r, want, sizeof r))
		return true;
	for (int i = 0; i < NREGS; i++)
		if (r[i] != want[i])
			printf("%s %x/%x: register %d %lx, not %lx\n", sites[k].name, leaf, index, i, r[i], want[i]);
	return false;
}

static bool all_leaves(void)
{
	static const uint32_t ranges[][2] = {
		{ 0, 0x20 }, { 0x40000000, 0x40000002 }, { 0x80000000, 0x80000008 }, { 0x8000001d, 0x80000020 }
	};
	bool ok = true;
	for (unsigned k = 0; k < 3; k++) {
		for (unsigned r = 0; r < sizeof ranges / sizeof *ranges; r++)
			for (uint32_t leaf = ranges[r][0]; leaf <= ranges[r][1]; leaf++)
				for (uint32_t i = 0; i < 16; i++)
					ok &= same(k, leaf, i);
		for (int i = 0; i < 200; i++)
			ok &= same(k, i & 1 ? rnd() : rnd() % 0x24, i & 2 ? rnd() : rnd() % 64);
	}
	return ok;
}

static void *thread_leaves(void *arg)
{
	*(bool *)arg = all_leaves();
	return NULL;
}

/* ---- signals ----------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t hits, at_cpuid, wrong, storm_over;
#define BEFORE 0x123456789abcdef0

static void on_signal(int s, siginfo_t *i, void *u)
{
	greg_t *g = ((ucontext_t *)u)->uc_mcontext.gregs;
	uint64_t pc = g[REG_RIP];
	(void)s;
	(void)i;
	hits++;
	/* Where it has not run, it has changed nothing; and what is behind it sees 32 bits. */
	if (pc == (uint64_t)mov_cpuid || pc == (uint64_t)tail_cpuid) {
		at_cpuid++;
		wrong += g[REG_RBX] != BEFORE || g[REG_RDX] != BEFORE || g[REG_RAX] != 1l << 31;
	} else if (pc == (uint64_t)mov_cpuid + 2 || pc == (uint64_t)tail_cpuid + 2) {
		at_cpuid++;
		wrong += (g[REG_RBX] | g[REG_RDX] | g[REG_RAX] | g[REG_RCX]) >> 32 != 0;
	}
}

static void *storm(void *arg)
{
	pid_t tid = *(pid_t *)arg;
	while (!storm_over) {
		syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
		usleep(300);
	}
	return NULL;
}

static void test_signals(void)
{
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerval it = { { 0, 1000 }, { 0, 1000 } }, off = { { 0, 0 }, { 0, 0 } };
	struct timespec t0, t;
	pid_t tid = syscall(SYS_gettid);
	pthread_t th;
	bool ok = true;
	unsigned n = 0;
	sigaction(SIGALRM, &sa, NULL);
	sigaction(SIGUSR1, &sa, NULL);
	hits = at_cpuid = wrong = 0;
	pthread_create(&th, NULL, storm, &tid);
	setitimer(ITIMER_REAL, &it, NULL);
	clock_gettime(CLOCK_MONOTONIC, &t0);
	do {
		uint64_t r[NREGS] = { 0 };
		for (int i = 0; i < 200; i++) {
			r[RAX] = 1u << 31;
			r[RCX] = 0;
			r[RBX] = r[RDX] = BEFORE;
			r[R15] = r[R8 + 4] = n;
			r[FLAGS] = 0x202;
			sites[i & 1].fn(r);
			ok &= r[R15] == n && r[R8 + 4] == n && r[RAX] >= 0x80000000 && r[RAX] < 0x80010000;
		}
		n++;
		clock_gettime(CLOCK_MONOTONIC, &t);
	} while ((t.tv_sec - t0.tv_sec) * 1000 + (t.tv_nsec - t0.tv_nsec) / 1000000 < 1500 ||
		 (hits <= 50 &&
		  t.tv_sec - t0.tv_sec < 100)); /* a busy machine: it takes its time until they have come */
	setitimer(ITIMER_REAL, &off, NULL);
	storm_over = 1;
	pthread_join(th, NULL);
	printf("%d signals, %d of them at cpuid\n", (int)hits, (int)at_cpuid);
	check(ok && !wrong && hits > 50, "cpuid under a storm of signals");
}

/* ---- single steps ------------------------------------------------------------------------------------------ */

static uint64_t pcs[64];
static unsigned n_pcs;
static uint64_t step_base;
static int step_bad;

static void on_trap(int s, siginfo_t *i, void *u)
{
	greg_t *g = ((ucontext_t *)u)->uc_mcontext.gregs;
	(void)s;
	step_bad += (uint64_t)i->si_addr != (uint64_t)g[REG_RIP] || i->si_code != TRAP_TRACE;
	if (n_pcs < 64)
		pcs[n_pcs++] = g[REG_RIP] - step_base;
	else
		g[REG_EFL] &= ~0x100ull; /* going nowhere */
}

/*
 * Does the processor tell the step over a cpuid of its own? Below some hypervisors that answer it, it does not, and the
 * next trap is behind the instruction that follows.
 */
static bool steps_told(void)
{
	/* push %rbx; pushfq; orq $0x100,(%rsp); popfq; nop; cpuid; nop; nop; pushfq; andq $~0x100,(%rsp); popfq; nop;
	 * pop %rbx; ret */
	static const uint8_t code[] = { 0x53, 0x9c, 0x48, 0x81, 0x0c, 0x24, 0,    1,    0,    0,
					0x9d, 0x90, 0x0f, 0xa2, 0x90, 0x90, 0x9c, 0x48, 0x81, 0x24,
					0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d, 0x90, 0x5b, 0xc3 };
	enum { BEHIND_CPUID = 14 };
	uint8_t *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool told = false;
	if (!check(p != MAP_FAILED, "memory for single steps"))
		return true;
	memcpy(p, code, sizeof code);
	step_base = (uint64_t)p;
	((void (*)(void))p)();
	for (unsigned k = 0; k < n_pcs; k++)
		told |= pcs[k] == BEHIND_CPUID;
	n_pcs = 0;
	munmap(p, 4096);
	return told;
}

static void test_steps(void)
{
	struct sigaction sa = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };
	/* Lengths from the first nop on; what is behind the syscall is left out by the kernel. */
	static const uint8_t lens[] = { 3, 3, 2, 3, 1, 2, 2, 3, 3, 1, 5, 2 + 1, 1, 8, 1 };
	enum { CPUID_1 = 2, CPUID_2 = 6 };
	uint64_t n;
	sigaction(SIGTRAP, &sa, NULL);
	bool told = steps_told();
	step_base = (uint64_t)step_code;
	((uint64_t(*)(uint64_t, uint64_t))step_code)(0, 7);
	n = pcs[0];
	bool ok = lens[CPUID_1] == 2 && lens[CPUID_2] == 2 && n_pcs > 0;
	unsigned at = 1;
	for (unsigned k = 0; k < sizeof lens; k++) {
		n += lens[k];
		if (at < n_pcs && pcs[at] == n)
			at++;
		else
			ok &= !told && (k == CPUID_1 || k == CPUID_2);
	}
	ok &= at == n_pcs;
	for (unsigned k = 0; !ok && k < n_pcs; k++)
		printf(" +%lu", pcs[k]);
	check(ok && !step_bad, "single steps over cpuid: every instruction once");
}

int main(void)
{
	cpu_set_t one;
	pthread_t th;
	bool ok = false;
	/* cpuid tells processors apart */
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof one, &one);
	if (!check(make_unpatched(), "memory for code"))
		return 1;
	check(all_leaves(), "answers, registers, flags and red zone");
	pthread_create(&th, NULL, thread_leaves, &ok);
	pthread_join(th, NULL);
	check(ok, "the same in another thread");
	test_signals();
	test_steps();
	printf("%s: %d failed\n", failures ? "FAIL" : "PASS", failures);
	return failures != 0;
}
