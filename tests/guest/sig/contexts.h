/* SPDX-License-Identifier: Apache-2.0 */
/* Jumps out of handlers, contexts, registers across an asynchronous signal. Part of sig.c. */
#ifndef KX_GUEST_SIG_CONTEXTS_H
#define KX_GUEST_SIG_CONTEXTS_H
#include "sig.h"

/* ---- jumps and contexts -------------------- */

static sigjmp_buf env;
static void jumper(int s) { siglongjmp(env, s); }

static ucontext_t uc_main, uc_a, uc_b;
static char stack_a[65536], stack_b[65536];
static volatile int steps;

static void co_a(void)
{
	steps = steps * 10 + 1;
	swapcontext(&uc_a, &uc_b);
	steps = steps * 10 + 3;
}

static void co_b(int x)
{
	steps = steps * 10 + x;
	swapcontext(&uc_b, &uc_a);
	steps = 0; /* never */
}

static inline void test_jumps(void)
{
	volatile int n = 0;
	signal(SIGUSR1, jumper);
	for (volatile int i = 0; i < 100; i++)
		if (sigsetjmp(env, 1) == 0)
			raise(SIGUSR1);
		else
			n++;
	check(n == 100 && !blocked(SIGUSR1), "siglongjmp out of a handler, 100 times");
	if (sigsetjmp(env, 0) == 0)
		raise(SIGUSR1);
	check(blocked(SIGUSR1), "without the mask");
	unblock(SIGUSR1);
	/* Out of a sleep. */
	signal(SIGALRM, jumper);
	struct itimerval it = { .it_value = { 0, 10000 } };
	n = 0;
	if (sigsetjmp(env, 1) == 0) {
		setitimer(ITIMER_REAL, &it, NULL);
		for (;;)
			pause();
	} else {
		n = 1;
	}
	check(n == 1 && !blocked(SIGALRM), "siglongjmp out of pause");
	getcontext(&uc_a);
	uc_a.uc_stack.ss_sp = stack_a;
	uc_a.uc_stack.ss_size = sizeof stack_a;
	uc_a.uc_link = &uc_main;
	makecontext(&uc_a, co_a, 0);
	getcontext(&uc_b);
	uc_b.uc_stack.ss_sp = stack_b;
	uc_b.uc_stack.ss_size = sizeof stack_b;
	uc_b.uc_link = NULL;
	makecontext(&uc_b, (void (*)(void))co_b, 1, 2);
	swapcontext(&uc_main, &uc_a);
	check(steps == 123, "makecontext, swapcontext");
	n = 0;
	getcontext(&uc_main);
	if (n++ < 3)
		setcontext(&uc_main);
	check(n == 4, "getcontext, setcontext");
}

extern char bad_insn[], good_insn[];
static volatile long seen_regs[16];

static void fix_rip(int s, siginfo_t *i, void *u)
{
	(void)s;
	ucontext_t *c = u;
	greg_t *g = c->uc_mcontext.gregs;
	static const int order[] = { REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RBP, REG_R8,
				     REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
	for (int k = 0; k < 14; k++)
		seen_regs[k] = g[order[k]];
	seen_regs[14] = g[REG_RIP] == (greg_t)bad_insn && i->si_addr == (void *)bad_insn;
	seen_regs[15] = g[REG_EFL];
	g[REG_RIP] = (greg_t)good_insn;
	g[REG_RAX] = 4242;
	g[REG_R15] = 77;
	g[REG_EFL] = (g[REG_EFL] & ~0x8d5) | 0x41;
	/* And the vector state: xmm5 through the frame. */
	c->uc_mcontext.fpregs->_xmm[5].element[0] = 0xabcd1234;
}

static inline void test_ucontext(void)
{
	long rax, flags;
	uint32_t x;
	on(SIGILL, fix_rip, 0);
	__asm__ volatile(
		"push %%rbp\n"
		"mov $1, %%ebx\n mov $2, %%ecx\n mov $3, %%edx\n mov $4, %%esi\n mov $5, %%edi\n mov $6, %%ebp\n"
		"mov $7, %%r8\n mov $8, %%r9\n mov $9, %%r10\n mov $10, %%r11\n mov $11, %%r12\n mov $12, %%r13\n"
		"mov $13, %%r14\n mov $14, %%r15\n"
		/* XSAVE's header may say that SSE is in its initial state. */
		".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n xorps %%xmm\\i, %%xmm\\i\n .endr\n"
		"cmp %%eax, %%eax\n"
		".globl bad_insn, good_insn\nbad_insn: ud2\n ud2\n ud2\n"
		"good_insn: pushfq\n pop %%rdx\n pop %%rbp\n movd %%xmm5, %%ecx"
		: "=a"(rax), "=d"(flags), "=c"(x)
		:
		: "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
		  "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
		  "xmm15", "memory", "cc");
	bool ok = true;
	for (int k = 0; k < 14; k++)
		ok &= seen_regs[k] == k + 1;
	check(ok, "gregs as they were");
	check(seen_regs[14] && (seen_regs[15] & 0x8d5) == 0x44, "RIP, si_addr, flags");
	check(rax == 4242, "RIP and RAX changed by the handler");
	check((flags & 0x8d5) == 0x41, "flags changed by the handler");
	check(x == 0xabcd1234, "xmm5 changed by the handler");
	signal(SIGILL, SIG_DFL);
}

/* ---- registers across an asynchronous signal -------------------- */

static volatile int ticks;

static void wreck(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)i;
	(void)u;
	ticks++;
	__asm__ volatile("fninit\n fldz\n pcmpeqd %%xmm0, %%xmm0\n pcmpeqd %%xmm1, %%xmm1\n pcmpeqd %%xmm15, %%xmm15"
			 :
			 :
			 : "xmm0", "xmm1", "xmm15");
}

static inline void test_async(void)
{
	struct itimerval it = { .it_value = { 0, 1000 }, .it_interval = { 0, 1000 } }, off = { 0 };
	on(SIGALRM, wreck, SA_RESTART);
	setitimer(ITIMER_REAL, &it, NULL);
	long bad = 0, unused;
	/* All registers hold known values, flags too; the loop leaves when one does not or when ticks have come. */
	__asm__ volatile(
		"push %%rbp\n push %%rbx\n"
		"lea %2, %%rbx\n"
		"fninit\n fld1\n fldpi\n"
		"mov $0x0102030405060708, %%rcx\n movq %%rcx, %%xmm0\n movq %%rcx, %%xmm15\n pshufd $0x1b, %%xmm0, "
		"%%xmm1\n"
		"mov $0x11, %%r8d\n mov $0x22, %%r9d\n mov $0x33, %%r10d\n mov $0x44, %%r11d\n mov $0x55, %%r12d\n"
		"mov $0x66, %%r13d\n mov $0x77, %%r14d\n mov $0x88, %%r15d\n mov $0x99, %%esi\n mov $0xaa, %%edi\n"
		"mov $0xbb, %%ebp\n xor %%eax, %%eax\n"
		"movq $0x5a5a, -8(%%rsp)\n movq $0x5b5b, -128(%%rsp)\n"
		"1:\n"
		/* CF and OF, SF: set by a subtraction, then a long stretch that touches no flags */
		"mov $0x80000000, %%edx\n cmp $1, %%edx\n"
		".rept 60\n mov %%r8, %%r8\n lea 0(%%r9), %%r9\n .endr\n"
		"jno 9f\n js 9f\n jz 9f\n jc 9f\n"
		"stc\n .rept 30\n mov %%r10, %%r10\n .endr\n jnc 9f\n"
		"cmp $0x11, %%r8\n jne 9f\n cmp $0x22, %%r9\n jne 9f\n cmp $0x33, %%r10\n jne 9f\n cmp $0x44, %%r11\n "
		"jne 9f\n"
		"cmp $0x55, %%r12\n jne 9f\n cmp $0x66, %%r13\n jne 9f\n cmp $0x77, %%r14\n jne 9f\n cmp $0x88, "
		"%%r15\n jne 9f\n"
		"cmp $0x99, %%rsi\n jne 9f\n cmp $0xaa, %%rdi\n jne 9f\n cmp $0xbb, %%rbp\n jne 9f\n"
		"movq %%xmm0, %%rdx\n cmp %%rcx, %%rdx\n jne 9f\n movq %%xmm15, %%rdx\n cmp %%rcx, %%rdx\n jne 9f\n"
		"cmpq $0x5a5a, -8(%%rsp)\n jne 9f\n cmpq $0x5b5b, -128(%%rsp)\n jne 9f\n"
		"fxam\n fnstsw %%ax\n and $0x4500, %%ax\n cmp $0x0400, %%ax\n jne 9f\n"
		"cmpl $300, (%%rbx)\n jl 1b\n"
		"mov $0, %%eax\n jmp 8f\n"
		"9: mov $1, %%eax\n"
		"8: fstp %%st(0)\n fstp %%st(0)\n pop %%rbx\n pop %%rbp"
		: "=a"(bad), "=d"(unused)
		: "m"(ticks)
		: "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm15",
		  "memory", "cc", "st", "st(1)");
	setitimer(ITIMER_REAL, &off, NULL);
	check(!bad && ticks >= 300, "registers, flags, red zone and x87 across 300 ticks");
}
#endif
