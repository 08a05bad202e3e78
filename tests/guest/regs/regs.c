/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a system call leaves in the registers: every general register but rax, rcx and r11, the flags, the red zone
 * and all of the vector, mask and x87 state, at every form of call site. Passes on any x86-64 Linux.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int failures;

static bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

enum { RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8, R9, R10, R11, R12, R13, R14, R15, NREGS };
static const char *const reg_names[NREGS] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8",
					      "r9",  "r10", "r11", "r12", "r13", "r14", "r15" };

/* Read and written by the assembly below. */
struct state {
	uint64_t in[NREGS], in_flags;    /* 0 .. 127 */
	uint64_t out[NREGS], out_flags;  /* 128 .. 255 */
	uint64_t red[16];                /* 256: the red zone after the call */
	uint64_t rsp_before, rsp_after;  /* 384 */
	uint64_t host_rsp, target, next; /* 400: where it goes, the address after the site's instruction */
};
struct state st;

#define RED 0x5ed0ed5ed0ed0000ull

/*
 * run_site: load everything from st, jump to st.target; the site comes back to site_done. Red zone and registers
 * are filled by mov alone, after the flags.
 */
__asm__(".text\n"
	".globl run_site\n"
	"run_site:\n"
	"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	"	mov %rsp, 400+st(%rip)\n"
	"	sub $512, %rsp\n"
	"	and $-64, %rsp\n"
	"	mov %rsp, 384+st(%rip)\n"
	"	pushq 120+st(%rip)\n"
	"	popfq\n"
	"	mov $0x5ed0ed5ed0ed0000, %rax\n"
	"	i = 1\n"
	"	.rept 16\n"
	"	mov %rax, -8*i(%rsp)\n"
	"	movb $i, -8*i(%rsp)\n"
	"	i = i + 1\n"
	"	.endr\n"
	"	mov 8+st(%rip), %rbx\n"
	"	mov 16+st(%rip), %rcx\n"
	"	mov 24+st(%rip), %rdx\n"
	"	mov 32+st(%rip), %rsi\n"
	"	mov 40+st(%rip), %rdi\n"
	"	mov 48+st(%rip), %rbp\n"
	"	mov 56+st(%rip), %r8\n"
	"	mov 64+st(%rip), %r9\n"
	"	mov 72+st(%rip), %r10\n"
	"	mov 80+st(%rip), %r11\n"
	"	mov 88+st(%rip), %r12\n"
	"	mov 96+st(%rip), %r13\n"
	"	mov 104+st(%rip), %r14\n"
	"	mov 112+st(%rip), %r15\n"
	"	mov 0+st(%rip), %rax\n"
	"	jmp *408+st(%rip)\n"
	".globl site_done\n"
	"site_done:\n"
	"	mov %rax, 128+st(%rip)\n"
	"	mov %rbx, 136+st(%rip)\n"
	"	mov %rcx, 144+st(%rip)\n"
	"	mov %rdx, 152+st(%rip)\n"
	"	mov %rsi, 160+st(%rip)\n"
	"	mov %rdi, 168+st(%rip)\n"
	"	mov %rbp, 176+st(%rip)\n"
	"	mov %r8, 184+st(%rip)\n"
	"	mov %r9, 192+st(%rip)\n"
	"	mov %r10, 200+st(%rip)\n"
	"	mov %r11, 208+st(%rip)\n"
	"	mov %r12, 216+st(%rip)\n"
	"	mov %r13, 224+st(%rip)\n"
	"	mov %r14, 232+st(%rip)\n"
	"	mov %r15, 240+st(%rip)\n"
	"	mov %rsp, 392+st(%rip)\n"
	"	i = 1\n"
	"	.rept 16\n"
	"	mov -8*i(%rsp), %rax\n"
	"	mov %rax, 256+8*(i-1)+st(%rip)\n"
	"	i = i + 1\n"
	"	.endr\n"
	"	mov 400+st(%rip), %rsp\n"
	"	pushfq\n"
	"	popq 248+st(%rip)\n"
	"	pushq $2\n"
	"	popfq\n"
	"	cld\n"
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
	"	ret\n");
void run_site(void);
extern char site_done[];

/* Sites. after_<name> is the address that the call returns to. */
#define SITE(name, before, after) \
	__asm__(".text\n.p2align 4\n.globl site_" #name ", sys_" #name ", after_" #name "\n" \
		"site_" #name ":\n" before "\nsys_" #name ":\n	syscall\nafter_" #name ":\n" after \
		"\n	jmp site_done\n	.fill 16, 1, 0xcc\n"); \
	extern char site_##name[], sys_##name[], after_##name[]
SITE(mov39, "mov $39, %eax", "");
SITE(mov39_nop, "nop\n mov $39, %eax", "nop\n nop\n nop");
SITE(bare, "", "");
SITE(bare_jmp_into, "mov $39, %eax", "mov %rax, %rax");
SITE(xchg, "xchg %rax, %rax", "");
SITE(follow_mov, "", "mov %r12, %r12\n mov %r13, %r13");
SITE(follow_lea, "lea 0(%rdi), %rdi", "lea 0(%rsi), %rsi");
SITE(follow_rip, "", "mov st(%rip), %r9\n mov 64+st(%rip), %r9");
SITE(before_rip, "mov st(%rip), %rax", "");
SITE(twice, "mov $39, %eax\n syscall\n mov $39, %eax", "");
SITE(movl_rdi, "movl %eax, %eax\n movl $39, %eax", "");
/* The address after a syscall that is itself the target of a jump. */
__asm__(".text\n.p2align 4\n.globl site_loop, after_loop\nsite_loop:\n mov $39, %eax\n jmp 2f\n"
	"1:	nop\n2:	syscall\nafter_loop:\n jmp site_done\n .fill 16, 1, 0xcc\n");
extern char site_loop[], after_loop[];
/* libc's own error check directly behind. */
__asm__(".text\n.p2align 4\n.globl site_libc\nsite_libc:\n mov $39, %eax\n syscall\n"
	" cmp $0xfffffffffffff000, %rax\n ja 1f\n jmp site_done\n1: mov $-1, %rax\n jmp site_done\n .fill 16, 1, "
	"0xcc\n");
extern char site_libc[];

#define FLAGS_ALL 0x8d5ull /* CF PF AF ZF SF OF */
#define FLAG_DF 0x400ull
#define FLAG_AC 0x40000ull
#define FLAG_ID 0x200000ull

static void fill(uint64_t flags)
{
	memset(&st, 0, sizeof st);
	for (int i = 0; i < NREGS; i++)
		st.in[i] = 0x1111111111111111ull * (i + 1) ^ 0x8000000000000000ull;
	st.in_flags = 0x202 | flags;
}

/* What must hold after any call; `preserved` also of the flags. */
static bool intact(const char *what, const char *after, bool flags)
{
	bool ok = true;
	for (int i = 0; i < NREGS; i++)
		if (i != RAX && i != RCX && i != R11 && st.out[i] != st.in[i]) {
			printf("  %s: %s is %#lx, was %#lx\n", what, reg_names[i], (long)st.out[i], (long)st.in[i]);
			ok = false;
		}
	if (after && st.out[RCX] != (uint64_t)after) {
		printf("  %s: rcx is %#lx, not the return address %p\n", what, (long)st.out[RCX], (void *)after);
		ok = false;
	}
	if ((st.out[R11] & ~0x10000ull) != st.in_flags) {
		printf("  %s: r11 is %#lx, not the flags %#lx\n", what, (long)st.out[R11], (long)st.in_flags);
		ok = false;
	}
	if (flags && st.out_flags != st.in_flags) {
		printf("  %s: flags are %#lx, were %#lx\n", what, (long)st.out_flags, (long)st.in_flags);
		ok = false;
	}
	if (st.rsp_before != st.rsp_after) {
		printf("  %s: rsp %#lx, was %#lx\n", what, (long)st.rsp_after, (long)st.rsp_before);
		ok = false;
	}
	for (int i = 0; i < 16; i++)
		if (st.red[i] != (RED | (i + 1))) {
			printf("  %s: red zone at -%d is %#lx\n", what, 8 * (i + 1), (long)st.red[i]);
			ok = false;
			break;
		}
	return ok;
}

static int pid;

static const uint64_t flag_sets[] = { 0,       FLAGS_ALL,           0x1,     0x4,    0x10, 0x40, 0x80, 0x800,
				      FLAG_DF, FLAG_DF | FLAGS_ALL, FLAG_AC, FLAG_ID };

static bool site_getpid(const char *name, void *entry, const char *after, bool flags)
{
	bool ok = true;
	for (unsigned k = 0; k < sizeof flag_sets / sizeof flag_sets[0]; k++) {
		fill(flag_sets[k]);
		st.in[RAX] = SYS_getpid;
		if (entry == site_follow_rip)
			st.in[R9] = SYS_getpid;
		st.target = (uint64_t)entry;
		run_site();
		if (entry == site_follow_rip)
			st.out[R9] = st.in[R9];
		ok &= intact(name, after, flags);
		if ((int)st.out[RAX] != pid || st.out[RAX] >> 32) {
			printf("  %s: result %ld, not %d\n", name, (long)st.out[RAX], pid);
			ok = false;
		}
	}
	return ok;
}

static void test_sites(void)
{
#define T(n) check(site_getpid("site " #n, site_##n, after_##n, true), "site " #n)
	T(mov39);
	T(mov39_nop);
	T(bare);
	T(bare_jmp_into);
	T(xchg);
	T(follow_mov);
	T(follow_lea);
	T(follow_rip);
	T(before_rip);
	T(twice);
	T(movl_rdi);
	T(loop);
#undef T
	check(site_getpid("site libc form", site_libc, NULL, false), "site libc form");
}

/* Straight to the `syscall` instruction: the number is rax's, not that of the instruction before. */
static void test_jump_into(void)
{
	static char *const targets[] = { sys_mov39,      sys_mov39_nop,  sys_bare_jmp_into, sys_movl_rdi,
					 sys_follow_lea, sys_before_rip, sys_follow_mov };
	static char *const afters[] = { after_mov39,      after_mov39_nop,  after_bare_jmp_into, after_movl_rdi,
					after_follow_lea, after_before_rip, after_follow_mov };
	bool ok = true;
	for (unsigned i = 0; i < sizeof targets / sizeof targets[0]; i++) {
		fill(FLAGS_ALL);
		st.in[RAX] = SYS_getppid;
		st.target = (uint64_t)targets[i];
		run_site();
		ok &= intact("jump into", afters[i], true);
		if ((int)st.out[RAX] != getppid()) {
			printf("  jump into %u: %ld, not %d\n", i, (long)st.out[RAX], getppid());
			ok = false;
		}
	}
	check(ok, "jump straight to syscall");
	/* To what follows the syscall: nothing is called. */
	fill(FLAGS_ALL);
	st.target = (uint64_t)after_follow_mov;
	run_site();
	check(st.out[RAX] == st.in[RAX] && st.out[RCX] == st.in[RCX] && st.out_flags == st.in_flags,
	      "jump behind syscall");
	fill(FLAGS_ALL);
	st.target = (uint64_t)after_bare_jmp_into;
	run_site();
	check(st.out[RAX] == st.in[RAX] && st.out[RCX] == st.in[RCX] && st.out_flags == st.in_flags,
	      "jump behind syscall, 2");
}

static void test_libc_site(void)
{
	const unsigned char *p = (const unsigned char *)syscall;
	for (int i = 0; i < 128; i++)
		if (memcmp(p + i, "\x0f\x05\x48\x3d\x01\xf0\xff\xff", 8) == 0) {
			/* `syscall; cmp $-4095, %rax; jae; ret` */
			long ret;
			register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0, r9 __asm__("r9") = 0;
			__asm__ volatile("sub $256, %%rsp\n call *%1\n add $256, %%rsp"
					 : "=a"(ret)
					 : "r"(p + i), "0"((long)SYS_getppid), "r"(r10), "r"(r8), "r"(r9)
					 : "rcx", "r11", "memory", "cc");
			check(ret == getppid(), "jump to libc's syscall instruction");
			return;
		}
	check(true, "jump to libc's syscall instruction (none found)");
}

/* ---- code that no loader has seen -------------------- */

static unsigned char *jit;

static void emit_site(unsigned char *p)
{
	/* syscall; jmp *slot(%rip); the slot is aligned, as the flag AC asks */
	unsigned char *slot = (unsigned char *)(((uintptr_t)p + 15) & ~7ul);
	void *done = site_done;
	memcpy(p, "\x0f\x05\xff\x25\x00\x00\x00\x00", 8);
	p[4] = slot - (p + 8);
	memcpy(slot, &done, 8);
}

static void test_jit(void)
{
	jit = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!check(jit != MAP_FAILED, "RWX page"))
		return;
	emit_site(jit);
	check(site_getpid("RWX", jit, (char *)jit + 2, true), "site in RWX memory");
	/* An instruction across two pages. */
	unsigned char *p = jit + 4095;
	emit_site(p);
	check(site_getpid("RWX across", p, (char *)p + 2, true), "site across two pages");
	unsigned char *x = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	emit_site(x);
	mprotect(x, 4096, PROT_READ | PROT_EXEC);
	check(site_getpid("RX", x, (char *)x + 2, true), "site in RX memory");
	munmap(x, 4096);
}

/* ---- calls -------------------- */

static int null_fd;
static uint32_t word;
static struct timespec ts;
static uint64_t sigset;
static char rnd[64];

static const struct call {
	const char *name;
	long nr, a, b, c, d, e, f;
	long result; /* -1000: any but an error */
} calls[] = {
	{ "getpid", SYS_getpid, 0, 0, 0, 0, 0, 0, -1000 },
	{ "gettid", SYS_gettid, 0, 0, 0, 0, 0, 0, -1000 },
	{ "write", SYS_write, -2, (long)rnd, 16, 0, 0, 0, 16 },
	{ "write EBADF", SYS_write, -1, (long)rnd, 16, 0, 0, 0, -EBADF },
	{ "futex wake", SYS_futex, (long)&word, 129, 1, 0, 0, 0, 0 },
	{ "futex wait", SYS_futex, (long)&word, 128, 5, 0, 0, 0, -EAGAIN },
	{ "futex wait timeout", SYS_futex, (long)&word, 128, 0, (long)&ts, 0, 0, -ETIMEDOUT },
	{ "futex wake_op", SYS_futex, (long)&word, 133, 1, 1, (long)&word, 0, 0 },
	{ "clock_gettime", SYS_clock_gettime, 1, (long)&ts, 0, 0, 0, 0, 0 },
	{ "gettimeofday", SYS_gettimeofday, (long)&ts, 0, 0, 0, 0, 0, 0 },
	{ "rt_sigprocmask", SYS_rt_sigprocmask, 0, 0, (long)&sigset, 8, 0, 0, 0 },
	{ "sched_yield", SYS_sched_yield, 0, 0, 0, 0, 0, 0, 0 },
	{ "getrandom", SYS_getrandom, (long)rnd, 64, 0, 0, 0, 0, 64 },
	{ "getcpu", SYS_getcpu, (long)&word, 0, 0, 0, 0, 0, 0 },
	{ "munmap EINVAL", SYS_munmap, 1, 4096, 0, 0, 0, 0, -EINVAL },
	{ "unknown 999", 999, 0, 0, 0, 0, 0, 0, -ENOSYS },
	{ "unknown 1024", 1024, 0, 0, 0, 0, 0, 0, -ENOSYS },
	{ "unknown 1027", 1027, 0, 0, 0, 0, 0, 0, -ENOSYS },
	{ "unknown 1030", 1030, 0, 0, 0, 0, 0, 0, -ENOSYS },
	{ "unknown 0x7fffffff", 0x7fffffff, 0, 0, 0, 0, 0, 0, -ENOSYS },
	{ "-1", -1, 0, 0, 0, 0, 0, 0, -ENOSYS },
	{ "unknown 0x80000027", 0x80000027, 0, 0, 0, 0, 0, 0, -ENOSYS },
	{ "getpid, high garbage", (long)0xffffffff00000027, 0, 0, 0, 0, 0, 0, -1000 },
	{ "getpid, high garbage 2", (long)0x1234567800000027, 0, 0, 0, 0, 0, 0, -1000 },
	{ "write, high garbage", (long)0x1234567800000001, -2, (long)rnd, 16, 0, 0, 0, 16 },
	{ "clock_gettime, high garbage", (long)0xabcdef00000000e4, 1, (long)&ts, 0, 0, 0, 0, 0 },
	{ "close EBADF, high garbage in fd", SYS_close, (long)0x00000001ffffffff, 0, 0, 0, 0, 0, -EBADF },
};

static void test_calls(void)
{
	static char *const entries[] = { site_bare, site_xchg, site_follow_mov, sys_mov39 };
	static char *const afters[] = { after_bare, after_xchg, after_follow_mov, after_mov39 };
	for (unsigned i = 0; i < sizeof calls / sizeof calls[0]; i++) {
		const struct call *c = &calls[i];
		bool ok = true;
		for (int site = 0; site < 5; site++) {
			fill(FLAGS_ALL);
			word = 0;
			ts = (struct timespec){ 0, 1000 };
			st.in[RAX] = c->nr;
			st.in[RDI] = c->a == -2 ? null_fd : c->a;
			st.in[RSI] = c->b;
			st.in[RDX] = c->c;
			st.in[R10] = c->d;
			st.in[R8] = c->e;
			st.in[R9] = c->f;
			st.target = (uint64_t)(site == 4 ? (char *)jit : entries[site]);
			run_site();
			ok &= intact(c->name, site == 4 ? (char *)jit + 2 : afters[site], true);
			long r = st.out[RAX];
			if (c->result == -1000 ? r < 0 : r != c->result) {
				printf("  %s: %ld, not %ld\n", c->name, r, c->result);
				ok = false;
			}
		}
		check(ok, c->name);
	}
}

/* Six arguments: mmap of the file's second page, and pselect6's last one. */
static void test_sixth(void)
{
	char page[8192];
	int fd = memfd_create("six", 0);
	memset(page, 'a', 4096);
	memset(page + 4096, 'b', 4096);
	bool ok = write(fd, page, sizeof page) == sizeof page;
	for (int k = 0; k < 3; k++) {
		fill(0);
		st.in[RAX] = SYS_mmap;
		st.in[RDI] = 0;
		st.in[RSI] = 4096;
		st.in[RDX] = PROT_READ;
		st.in[R10] = MAP_SHARED;
		st.in[R8] = fd;
		st.in[R9] = 4096;
		st.target = (uint64_t)(k == 0 ? site_bare : k == 1 ? (char *)jit : sys_mov39);
		run_site();
		ok &= intact("mmap", NULL, true);
		char *p = (char *)st.out[RAX];
		if ((long)p < 0 && (long)p > -4096) {
			printf("  mmap: %ld\n", (long)p);
			ok = false;
			continue;
		}
		ok &= *p == 'b';
		munmap(p, 4096);
	}
	check(ok, "sixth argument");
	close(fd);
}

/* ---- vector and x87 state -------------------- */

static bool has_avx, has_avx512;
static uint8_t xs_before[4096] __attribute__((aligned(64))), xs_after[4096] __attribute__((aligned(64)));
static uint8_t pattern[2048] __attribute__((aligned(64)));

static uint64_t xcr0(void)
{
	uint32_t a, d;
	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return (uint64_t)d << 32 | a;
}

/* The whole state is loaded, saved, one call made, saved again: by assembly alone. */
struct xcall {
	long nr, a, b, c, d, ret;  /* 0 .. 40 */
	void *jit;                 /* 48: site to jump to, NULL = a site of its own */
	void *before, *after;      /* 56, 64 */
	void *pattern;             /* 72 */
	long mode;                 /* 80: 0 SSE, 1 AVX, 2 AVX-512 */
	uint32_t mxcsr, mxcsr_dfl; /* 88, 92 */
	uint16_t fcw, fcw_dfl;     /* 96, 98 */
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
	"	mov 0(%rbx), %rax\n	mov 8(%rbx), %rdi\n	mov 16(%rbx), %rsi\n	mov 24(%rbx), %rdx\n"
	"	mov 32(%rbx), %r10\n	xor %r8d, %r8d\n	xor %r9d, %r9d\n"
	"	mov 48(%rbx), %r15\n	test %r15, %r15\n	jz 4f\n"
	"	lea 5f(%rip), %r12\n	mov %r12, 8(%r15)\n	jmp *%r15\n"
	"4:	mov 0(%rbx), %rax\n	syscall\n"
	"5:	mov %rax, 40(%rbx)\n"
	"	mov $0xe7, %eax\n	xor %edx, %edx\n	mov 64(%rbx), %rcx\n	xsave64 (%rcx)\n"
	"	fninit\n	fldcw 98(%rbx)\n	ldmxcsr 92(%rbx)\n"
	"	cmpq $0, 80(%rbx)\n	je 6f\n	vzeroupper\n"
	"6:	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n	ret\n");
void xrun(struct xcall *x);

static bool xstate_same(const char *what)
{
	/* Legacy: control and status without the last instruction's addresses; st and xmm. */
	static const struct {
		const char *name;
		int from, to;
	} parts[] = { { "x87 control", 0, 6 },
		      { "mxcsr", 24, 28 },
		      { "x87 stack", 32, 160 },
		      { "xmm", 160, 416 },
		      { "ymm", 576, 832 },
		      { "k", 1088, 1152 },
		      { "zmm high halves", 1152, 1664 },
		      { "zmm16-31", 1664, 2688 } };
	bool ok = true;
	for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++) {
		if ((i == 4 && !has_avx) || (i > 4 && !has_avx512))
			continue;
		if (memcmp(xs_before + parts[i].from, xs_after + parts[i].from, parts[i].to - parts[i].from)) {
			int at = parts[i].from;
			while (xs_before[at] == xs_after[at])
				at++;
			printf("  %s: %s changed at byte %d\n", what, parts[i].name, at);
			ok = false;
		}
	}
	return ok;
}

static bool xstate_one(const char *what, long nr, long a, long b, long c, long d, long want, void *site, long *ret)
{
	struct xcall x = { .nr = nr,
			   .a = a,
			   .b = b,
			   .c = c,
			   .d = d,
			   .jit = site,
			   .before = xs_before,
			   .after = xs_after,
			   .pattern = pattern,
			   .mode = has_avx512 ? 2 : has_avx,
			   .mxcsr = 0x1f80 | 0x6000 | 0x8000,
			   .mxcsr_dfl = 0x1f80,
			   .fcw = 0x77f,
			   .fcw_dfl = 0x37f };
	memset(xs_before, 0, sizeof xs_before);
	memset(xs_after, 0, sizeof xs_after);
	xrun(&x);
	if (ret)
		*ret = x.ret;
	bool ok = xstate_same(what);
	if (want == -1000 ? x.ret < 0 && x.ret > -4096 : x.ret != want) {
		printf("  %s: %ld, not %ld\n", what, x.ret, want);
		ok = false;
	}
	return ok;
}

static void test_xstate(void)
{
	unsigned a, b, c, d;
	for (unsigned i = 0; i < sizeof pattern; i++)
		pattern[i] = 0x80 | (i * 7 + (i >> 6));
	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) {
		check(true, "vector state (no XSAVE: skipped)");
		return;
	}
	has_avx = (c & bit_AVX) && (xcr0() & 6) == 6;
	has_avx512 = has_avx && (xcr0() & 0xe0) == 0xe0 && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
		     (b & bit_AVX512F) && (b & bit_AVX512BW);
	printf("  AVX %d, AVX-512 %d\n", has_avx, has_avx512);
	bool ok = true;
	for (int k = 0; k < 2; k++) {
		void *site = k ? jit : NULL;
		long p;
		struct timespec t = { 0, 200000 };
		for (int i = 0; i < 20; i++) {
			ok &= xstate_one("getpid", SYS_getpid, 0, 0, 0, 0, pid, site, NULL);
			ok &= xstate_one("write", SYS_write, null_fd, (long)rnd, 16, 0, 16, site, NULL);
			ok &= xstate_one("futex", SYS_futex, (long)&word, 129, 1, 0, 0, site, NULL);
			ok &= xstate_one("clock_gettime", SYS_clock_gettime, 1, (long)&ts, 0, 0, 0, site, NULL);
			ok &= xstate_one("getrandom", SYS_getrandom, (long)rnd, 64, 0, 0, 64, site, NULL);
			ok &= xstate_one("mmap", SYS_mmap, 0, 8192, 3, 0x22, -1000, site, &p);
			if (p > 0)
				*(volatile char *)p = 1;
			ok &= xstate_one("munmap", SYS_munmap, p, 8192, 0, 0, 0, site, NULL);
		}
		ok &= xstate_one("nanosleep", SYS_nanosleep, (long)&t, 0, 0, 0, 0, site, NULL);
	}
	check(ok, "vector, mask and x87 state across calls");
}

/* What a compiler may do around a call in a leaf: the red zone in use while libc is not. */
static void test_red_zone_many(void)
{
	bool ok = true;
	for (int i = 0; i < 2000; i++) {
		fill(i & 0xd5);
		st.in[RAX] = i % 3 ? SYS_getpid : SYS_gettid;
		st.target = (uint64_t)(i % 2 ? site_bare : site_xchg);
		run_site();
		ok &= intact("many", i % 2 ? after_bare : after_xchg, true) && st.out[RAX] == (uint64_t)pid;
	}
	check(ok, "2,000 calls");
}

int main(void)
{
	pid = getpid();
	null_fd = open("/dev/null", O_WRONLY);
	if (null_fd < 0)
		return 2;
	test_sites();
	test_jump_into();
	test_libc_site();
	test_jit();
	test_calls();
	test_sixth();
	test_xstate();
	test_red_zone_many();
	if (failures) {
		printf("FAILED %d\n", failures);
		return 1;
	}
	puts("SUCCESS");
	return 0;
}
