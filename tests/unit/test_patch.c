/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The patcher of `syscall` and `cpuid` sites: whole libraries (coverage, time, structure of every trampoline), each form of window,
 * damaged ELF files, and patched code executed against the same code unpatched. Links with patch*.c and Zydis.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <asm/prctl.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "../../monitor/arch/x86_64/patch.h"

static int failures;

__attribute__((format(printf, 2, 3))) static bool check(bool ok, const char *fmt, ...)
{
	va_list ap;

	printf("%s ", ok ? "ok  " : "FAIL");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	failures += !ok;
	return ok;
}

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static uint64_t rnd_state = 0x9e3779b97f4a7c15;

static uint32_t rnd(uint32_t below)
{
	rnd_state ^= rnd_state << 13;
	rnd_state ^= rnd_state >> 7;
	rnd_state ^= rnd_state << 17;
	return (rnd_state >> 20) % below;
}

static uint8_t *file_read(const char *path, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *p = NULL;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) == 0 && (p = malloc(st.st_size)) && read(fd, p, st.st_size) != st.st_size) {
		free(p);
		p = NULL;
	}
	*len = p ? st.st_size : 0;
	close(fd);
	return p;
}

/* The executable segment of a file, as an exact copy (so that a sanitizer sees overruns). */
static uint8_t *text_copy(const uint8_t *file, size_t len, size_t *text_len, uint64_t *gva)
{
	Elf64_Ehdr eh;

	if (len < sizeof(eh))
		return NULL;
	memcpy(&eh, file, sizeof(eh));
	if (eh.e_phoff > len || eh.e_phnum > (len - eh.e_phoff) / sizeof(Elf64_Phdr))
		return NULL;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;
		uint8_t *t;

		memcpy(&ph, file + eh.e_phoff + i * sizeof(ph), sizeof(ph));
		if (ph.p_type != PT_LOAD || !(ph.p_flags & PF_X) || ph.p_offset > len ||
		    ph.p_filesz > len - ph.p_offset)
			continue;
		*text_len = ph.p_filesz;
		*gva = ph.p_vaddr;
		t = malloc(ph.p_filesz ? ph.p_filesz : 1);
		memcpy(t, file + ph.p_offset, ph.p_filesz);
		return t;
	}
	return NULL;
}

/* ---- Structure of what was emitted ---------------------------------------------------------------------- */

static int32_t rel32(const uint8_t *p)
{
	int32_t v;

	memcpy(&v, p, 4);
	return v;
}

/* Length check by decoding the whole trampoline; every pc in it must translate to a boundary of the original. */
static bool site_valid(const struct kx_site *s, const uint8_t *orig, const uint8_t *text, uint64_t gva,
		       const uint8_t *tramp, uint64_t tramp_gva)
{
	const uint8_t *ow = orig + (s->start - gva), *nw = text + (s->start - gva), *t = tramp + (s->tramp - tramp_gva);
	bool boundary[17] = { [0] = true };
	unsigned off, win, last = 0, jumps = 0;
	uint64_t sys = s->start + s->sys_off;

	if (s->len < 5 || s->len > 15 || s->sys_off > s->len || ow[s->sys_off] != 0x0f ||
	    ow[s->sys_off + 1] != (s->cpuid ? 0xa2 : 0x05))
		return false;
	if (nw[0] != 0xe9 || s->start + 5 + rel32(nw + 1) != s->tramp)
		return false;
	for (win = 0; win < s->len; win += off) {
		off = patch_insn_len(ow + win, 15, 0);
		if (!off || win + off > s->len)
			return false;
		boundary[win + off] = true;
		if (win >= 5 && memcmp(ow + win, nw + win, off) != 0)
			return false;
	}
	if (memcmp(t, ow, s->sys_off) != 0 ||
	    memcmp(t + s->sys_off, s->cpuid ? "\x48\x8d\x1d" : "\x48\x8d\x0d", 3) != 0 ||
	    s->tramp + s->sys_off + 7 + rel32(t + s->sys_off + 3) != sys + 2)
		return false;
	for (off = 0; off < s->tramp_len; off += win) {
		uint64_t at;

		win = patch_insn_len(t + off, s->tramp_len - off, 0);
		if (!win)
			return false;
		at = patch_tramp_to_site(s, s->tramp + off) - s->start;
		if (patch_entering(s, s->tramp + off) && (at != s->sys_off || patch_step_ends(s, s->tramp + off)))
			return false;
		/* jmp *%gs: enters, and nothing before the first lea or behind it does. */
		if (t[off] == 0x65 && t[off + 1] == 0xff) {
			if (t[off + 4] != (s->cpuid ? KX_T_CPUID : KX_T_ENTRY) || !patch_entering(s, s->tramp + off) ||
			    patch_entering(s, s->tramp + off + win) || patch_entering(s, s->tramp + s->sys_off))
				return false;
			jumps++;
		}
		if (at < last || at > s->len || !boundary[at])
			return false;
		if (off >= s->sys_off && off < s->sys_off + 18u && at != s->sys_off)
			return false;
		if (at && at < s->len && patch_site_to_tramp(s, s->start + at) > s->tramp + off)
			return false;
		last = at;
	}
	for (win = 0; win <= s->len; win++) {
		uint64_t to = patch_site_to_tramp(s, s->start + win);

		if (!win || win == s->len || !boundary[win]) {
			if (to != s->start + win)
				return false;
		} else if (to == s->start + win || patch_tramp_to_site(s, to) != s->start + win) {
			return false;
		}
	}
	return off == s->tramp_len && jumps == 1;
}

static unsigned objdump_count(const char *path, const char *insn)
{
	char cmd[256], line[32];
	unsigned n = 0;
	FILE *f;

	snprintf(cmd, sizeof(cmd), "objdump -d --no-show-raw-insn %s 2>/dev/null | grep -cP '\\t%s'", path, insn);
	f = popen(cmd, "r");
	if (f && fgets(line, sizeof(line), f))
		n = atoi(line);
	if (f)
		pclose(f);
	return n;
}

/* cpuids: instructions that the file must have at least */
static void test_library(const char *path, unsigned want_percent, unsigned cpuids)
{
	size_t len, text_len = 0;
	uint64_t gva = 0, tramp_gva;
	uint8_t *file = file_read(path, &len), *text, *orig, *tramp;
	double best_hints = 1e9, best_scan = 1e9;
	struct patch_hints hints = { 0 };
	struct patch_plan plan = { 0 }, linear;
	unsigned bad = 0, changed = 0, dis, syscalls;

	if (!file) {
		printf("skip %s: not here\n", path);
		return;
	}
	text = text_copy(file, len, &text_len, &gva);
	for (int i = 0; i < 5; i++) {
		double t0 = now_ms(), t1;

		patch_hints_free(&hints);
		patch_plan_free(&plan);
		if (patch_hints_from_elf(file, len, 0, &hints))
			break;
		t1 = now_ms();
		if (patch_scan(text, text_len, gva, &hints, &plan))
			break;
		best_scan = now_ms() - t1 < best_scan ? now_ms() - t1 : best_scan;
		best_hints = t1 - t0 < best_hints ? t1 - t0 : best_hints;
	}
	syscalls = plan.n - plan.cpuid_n;
	printf("     %s: %u functions %.2f ms, %u found, %u planned, %.1f%%, cpuid %u of %u (%u keep their bytes), "
	       "%.2f ms\n",
	       path, hints.n, best_hints, plan.found, syscalls, plan.found ? 100.0 * syscalls / plan.found : 0.0,
	       plan.cpuid_n, plan.cpuid_found, plan.intact, best_scan);
	check(syscalls * 100 >= plan.found * want_percent && plan.found, "%s: at least %u%% patched", path,
	      want_percent);
	check(plan.cpuid_n * 100 >= plan.cpuid_found * want_percent && plan.cpuid_found >= cpuids,
	      "%s: at least %u cpuid, of them %u%% patched", path, cpuids, want_percent);
	dis = objdump_count(path, "cpuid");
	if (dis || !cpuids)
		check(plan.cpuid_found == dis, "%s: found %u cpuid, objdump %u", path, plan.cpuid_found, dis);
	dis = objdump_count(path, "syscall");
	patch_scan(text, text_len, gva, NULL, &linear);
	if (dis)
		check(plan.found == dis && linear.found == dis, "%s: found %u, without hints %u, objdump %u", path,
		      plan.found, linear.found, dis);
	patch_plan_free(&linear);

	orig = malloc(text_len);
	memcpy(orig, text, text_len);
	tramp = malloc(plan.tramp_bytes);
	tramp_gva = (gva + text_len + 0xfff) & ~0xfffull;
	check(patch_apply(text, text_len, gva, &plan, tramp, tramp_gva, plan.tramp_bytes - 1) == -ENOSPC,
	      "%s: short trampoline area refused", path);
	check(patch_apply(text, text_len, gva, &plan, tramp, gva + (3ull << 30), plan.tramp_bytes) == -ERANGE &&
		      !memcmp(orig, text, text_len),
	      "%s: trampolines out of reach refused", path);
	check(patch_apply(text, text_len, gva, &plan, tramp, tramp_gva, plan.tramp_bytes) == 0, "%s: applied", path);
	for (unsigned i = 0; i < plan.n; i++) {
		const struct kx_site *s = &plan.sites[i];

		if (i && (plan.sites[i - 1].start + plan.sites[i - 1].len > s->start ||
			  plan.sites[i - 1].start + plan.sites[i - 1].sys_off + 2 > s->start))
			bad++;
		uint8_t win[PATCH_WINDOW_MAX];
		bad += !site_valid(s, orig, text, gva, tramp, tramp_gva);
		bad += patch_undo(s, tramp + (s->tramp - tramp_gva), win) != 0;
		memcpy(text + (s->start - gva), win, s->len);
	}
	for (size_t i = 0; i < text_len; i++)
		changed += text[i] != orig[i];
	check(!bad && !changed, "%s: sites well formed (%u bad), bytes changed elsewhere: %u", path, bad, changed);
	patch_plan_free(&plan);
	patch_hints_free(&hints);
	free(tramp);
	free(orig);
	free(text);
	free(file);
}

/* The length table against Zydis on all code of a library. */
static void test_lengths(const char *path)
{
	size_t len, n = 0;
	uint64_t gva, insns = 0, differ = 0;
	uint8_t *file = file_read(path, &len), *text = file ? text_copy(file, len, &n, &gva) : NULL;

	for (size_t off = 0; off < n && text;) {
		unsigned z = patch_insn_len(text + off, n - off, 0), f = patch_insn_len(text + off, n - off, 1);

		differ += z && z != f;
		insns++;
		off += z ? z : 1;
	}
	if (text)
		check(!differ, "%s: %lu instruction lengths, %lu differ from Zydis", path, insns, differ);
	free(text);
	free(file);
}

/* Random bytes: the table may accept what is invalid, but a valid instruction must have its length. */
static void test_lengths_random(void)
{
	unsigned differ = 0;
	uint8_t b[15];

	for (int i = 0; i < 300000; i++) {
		unsigned z, f;

		for (unsigned k = 0; k < sizeof(b); k++)
			b[k] = rnd(256);
		if (i & 1)
			b[rnd(2)] = 0x0f;
		z = patch_insn_len(b, sizeof(b), 0);
		f = patch_insn_len(b, sizeof(b), 1);
		if (z && z != f && differ++ < 5)
			printf("     %02x %02x %02x %02x %02x %02x: %u, not %u\n", b[0], b[1], b[2], b[3], b[4], b[5],
			       f, z);
	}
	check(!differ, "random instruction lengths: %u differ from Zydis", differ);
}

/* ---- Damaged ELF files ---------------------------------------------------------------------------------- */

static void test_damaged(const char *path, int rounds)
{
	size_t len, n;
	uint8_t *file = file_read(path, &len);
	Elf64_Ehdr eh;
	unsigned bad = 0, accepted = 0;

	if (!file)
		return;
	memcpy(&eh, file, sizeof(eh));
	for (int i = 0; i < rounds; i++) {
		size_t cut = rnd(4) ? len : rnd(len);
		uint8_t *f = malloc(cut ? cut : 1), *text;
		struct patch_hints h;
		struct patch_plan plan;
		uint64_t gva;

		memcpy(f, file, cut);
		for (unsigned k = rnd(40); k--;) {
			size_t at;

			switch (rnd(4)) {
			case 0:
				at = rnd(64 + 56 * eh.e_phnum);
				break;
			case 1:
				at = eh.e_shoff + rnd(64 * eh.e_shnum);
				break;
			default:
				at = len * 2 / 3 + rnd(len / 3);
				break;
			}
			if (at < cut)
				f[at] = rnd(3) ? rnd(256) : rnd(2) * 0xff;
		}
		if (patch_hints_from_elf(f, cut, (uint64_t)rnd(2) << 46, &h)) {
			free(f);
			continue;
		}
		accepted++;
		for (unsigned k = 0; k < h.n; k++)
			bad += h.fn[k].start >= h.fn[k].end || (k && h.fn[k - 1].end > h.fn[k].start);
		text = text_copy(f, cut, &n, &gva);
		if (text && !patch_scan(text, n, gva, &h, &plan)) {
			uint8_t *tramp = malloc(plan.tramp_bytes + 1);

			if (patch_apply(text, n, gva, &plan, tramp, gva + n + 4096, plan.tramp_bytes))
				bad++;
			free(tramp);
			patch_plan_free(&plan);
		}
		free(text);
		patch_hints_free(&h);
		free(f);
	}
	check(!bad, "%s: %d damaged copies (%u accepted) survived", path, rounds, accepted);
	free(file);
}

static void test_noise(void)
{
	enum { N = 20000 };
	uint8_t *text = malloc(N), *tramp;
	bool ok = true;

	for (int i = 0; i < 60; i++) {
		struct patch_range fn = { 0x400000, 0x400000 + N, 0 };
		struct patch_hints h = { .fn = &fn, .n = 1 };
		struct patch_plan plan;

		for (unsigned k = 0; k < N; k++)
			text[k] = rnd(3) ? rnd(256) : rnd(2) ? 0x0f : 0x05;
		if (i == 0)
			for (unsigned k = 0; k < N; k++)
				text[k] = k & 1 ? 0x05 : 0x0f;
		ok &= !patch_scan(text, N, 0x400000, i & 1 ? &h : NULL, &plan);
		tramp = malloc(plan.tramp_bytes + 1);
		ok &= !patch_apply(text, N, 0x400000, &plan, tramp, 0x500000, plan.tramp_bytes);
		free(tramp);
		patch_plan_free(&plan);
	}
	check(ok, "noise scanned and patched without harm");
	free(text);
}

/* ---- Execution ------------------------------------------------------------------------------------------ */

enum { RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8, R9, R10, R11, R12, R13, R14, R15, FLAGS, NREGS };

/* What %gs points at while a snippet runs; the asm below knows the offsets. */
static struct {
	uint64_t self, entry; /* 0x00 0x08 */
	uint64_t pad[3];
	uint64_t resume, rcx;      /* 0x28 0x30 */
	uint64_t exit;             /* 0x38 */
	uint64_t host_rsp, target; /* 0x40 0x48 */
	uint64_t entries;          /* 0x50: calls that came by a trampoline */
	uint64_t pad2[13];
	uint64_t cpuid_entry; /* 0xc0 */
	uint64_t pad3[23];
	uint64_t out[NREGS]; /* 0x180 */
	uint64_t pad4[15];
	uint64_t in[NREGS]; /* 0x280 */
} area __attribute__((aligned(64)));
_Static_assert(__builtin_offsetof(__typeof__(area), in) == 0x280, "asm");
_Static_assert(__builtin_offsetof(__typeof__(area), cpuid_entry) == KX_T_CPUID, "trampolines");
_Static_assert(__builtin_offsetof(__typeof__(area), out) == 0x180, "asm");

void snippet_run(void);
void snippet_exit(void);
void snippet_entry(void);
void snippet_cpuid(void);

/* snippet_entry and snippet_cpuid stand for the LibOS. lea, mov and jmp leave the flags alone. */
__asm__(".text\n"
	".globl snippet_entry, snippet_cpuid, snippet_run, snippet_exit\n"
	"snippet_entry:\n"
	"	mov %r11, %gs:0x28\n"
	"	mov %rcx, %gs:0x30\n"
	"	mov %gs:0x50, %rcx\n"
	"	lea 1(%rcx), %rcx\n"
	"	mov %rcx, %gs:0x50\n"
	"	syscall\n"
	"	mov %gs:0x30, %rcx\n"
	"	jmp *%gs:0x28\n"
	"snippet_cpuid:\n"
	"	mov %rdx, %gs:0x28\n"
	"	mov %gs:0x50, %rdx\n"
	"	lea 1(%rdx), %rdx\n"
	"	mov %rdx, %gs:0x50\n"
	"	cpuid\n"
	"	jmp *%gs:0x28\n"
	"snippet_run:\n"
	"	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
	"	mov %rsp, %gs:0x40\n"
	"	pushq %gs:0x300\n	popfq\n"
	"	mov %gs:0x280, %rax\n	mov %gs:0x288, %rbx\n	mov %gs:0x290, %rcx\n	mov %gs:0x298, %rdx\n"
	"	mov %gs:0x2a0, %rsi\n	mov %gs:0x2a8, %rdi\n	mov %gs:0x2b0, %rbp\n	mov %gs:0x2b8, %rsp\n"
	"	mov %gs:0x2c0, %r8\n	mov %gs:0x2c8, %r9\n	mov %gs:0x2d0, %r10\n	mov %gs:0x2d8, %r11\n"
	"	mov %gs:0x2e0, %r12\n	mov %gs:0x2e8, %r13\n	mov %gs:0x2f0, %r14\n	mov %gs:0x2f8, %r15\n"
	"	jmp *%gs:0x48\n"
	"snippet_exit:\n"
	"	mov %rax, %gs:0x180\n	mov %rbx, %gs:0x188\n	mov %rcx, %gs:0x190\n	mov %rdx, %gs:0x198\n"
	"	mov %rsi, %gs:0x1a0\n	mov %rdi, %gs:0x1a8\n	mov %rbp, %gs:0x1b0\n	mov %rsp, %gs:0x1b8\n"
	"	mov %r8, %gs:0x1c0\n	mov %r9, %gs:0x1c8\n	mov %r10, %gs:0x1d0\n	mov %r11, %gs:0x1d8\n"
	"	mov %r12, %gs:0x1e0\n	mov %r13, %gs:0x1e8\n	mov %r14, %gs:0x1f0\n	mov %r15, %gs:0x1f8\n"
	"	mov %gs:0x40, %rsp\n"
	"	pushfq\n	popq %gs:0x200\n"
	"	pushq $0x202\n	popfq\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n"
	"	ret\n");

enum { CODE = 0x1000, CODE_PAGE = 0x4000, TRAMP_OFF = 0x2000 };

static uint8_t *page;           /* code at +CODE, trampolines at +TRAMP_OFF */
static uint64_t stack_mem[128]; /* the snippet's stack: rsp in the middle, red zone below */

struct result {
	uint64_t reg[NREGS], stack[128], entries;
};

static void execute(const uint64_t *in, struct result *r)
{
	for (unsigned i = 0; i < 128; i++)
		stack_mem[i] = 0xabcd0000 + i;
	memcpy(area.in, in, sizeof(area.in));
	area.in[RSP] = (uint64_t)&stack_mem[64];
	stack_mem[64] = (uint64_t)snippet_exit; /* for code that ends with ret */
	area.exit = (uint64_t)snippet_exit;
	area.entry = (uint64_t)snippet_entry;
	area.cpuid_entry = (uint64_t)snippet_cpuid;
	area.target = (uint64_t)(page + CODE);
	area.entries = 0;
	snippet_run();
	memcpy(r->reg, area.out, sizeof(area.out));
	memcpy(r->stack, stack_mem, sizeof(stack_mem));
	r->entries = area.entries;
}

/*
 * Single-stepping: the pcs that a run goes through in the code, or translated to it, without repetitions. The pc
 * after a syscall is left out, as the kernel does for a real one, and that after a cpuid where the processor does so:
 * below some hypervisors that answer it the step over it is not told.
 */
enum { STEPS_MAX = 256 };
static uint64_t step_pc[STEPS_MAX];
static unsigned n_steps;
static unsigned steps_wrong;
static uint64_t step_at;                   /* where the last one ended, also when it is left out */
static const struct patch_plan *step_plan; /* NULL: unpatched */
static const uint8_t *step_code;           /* as it was before patching */
static bool cpuid_told = true;             /* the processor traps behind a cpuid that is stepped over */

static void on_trap(int sig, siginfo_t *si, void *uc)
{
	uint64_t pc = ((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP];

	(void)sig;
	(void)si;
	if (step_plan)
		for (unsigned i = 0; i < step_plan->n; i++) {
			const struct kx_site *s = &step_plan->sites[i];
			bool hidden = pc - s->tramp < s->tramp_len && !patch_step_ends(s, pc);

			pc = patch_tramp_to_site(s, pc);
			/* A step that is to be hidden has not left the instruction where the last one ended. */
			steps_wrong += hidden && n_steps && pc != step_at;
		}
	if (pc < (uint64_t)(page + CODE) || pc >= (uint64_t)(page + TRAMP_OFF) || n_steps == STEPS_MAX)
		return;
	step_at = pc;
	if (n_steps) {
		uint64_t last = step_pc[n_steps - 1], off = last - (uint64_t)(page + CODE);

		if (pc == last)
			return;
		if (pc == last + 2 && step_code[off] == 0x0f &&
		    (step_code[off + 1] == 0x05 || (step_code[off + 1] == 0xa2 && !cpuid_told)))
			return;
	}
	step_pc[n_steps++] = pc;
}

static unsigned execute_steps(const uint64_t *in, const struct patch_plan *plan, uint64_t *pcs)
{
	uint64_t stepped[NREGS];
	struct result r;

	memcpy(stepped, in, sizeof(stepped));
	stepped[FLAGS] |= 0x100;
	step_plan = plan;
	n_steps = 0;
	execute(stepped, &r);
	memcpy(pcs, step_pc, sizeof(step_pc));
	return n_steps;
}

static const uint8_t exit_code[] = { 0x65, 0xff, 0x24, 0x25, 0x38, 0, 0, 0 }; /* jmp *%gs:0x38 */

static bool cpuid_is_told(void)
{
	static const uint8_t code[] = { 0x90, 0x0f, 0xa2, 0x90, 0x90 };
	uint64_t in[NREGS] = { [FLAGS] = 0x202 }, pcs[STEPS_MAX], behind = (uint64_t)(page + CODE) + 3;
	unsigned n;

	memcpy(page + CODE, code, sizeof(code));
	memcpy(page + CODE + sizeof(code), exit_code, sizeof(exit_code));
	step_code = code;
	n = execute_steps(in, NULL, pcs);
	for (unsigned i = 0; i < n; i++)
		if (pcs[i] == behind)
			return true;
	return false;
}

enum { NO_SITE = 255 };

struct snippet {
	const char *name;
	uint8_t start, len, sys_off; /* expected window; start NO_SITE = none */
	uint8_t entries[2];          /* trampoline entries expected for rdi = 0 and 1 */
	uint8_t n;
	uint8_t code[64]; /* n and exit_code fit */
};

/* Run the code with rdi = 0 and 1, before and after patching. */
static bool snippet_test(const struct snippet *sn, bool strict)
{
	uint64_t gva = (uint64_t)(page + CODE), in[NREGS];
	struct patch_range fn = { gva, gva + sn->n + sizeof(exit_code), PATCH_FN_UNWIND };
	struct patch_hints h = { .fn = &fn, .n = 1 };
	struct patch_plan plan;
	static uint64_t pc_before[2][STEPS_MAX], pc_after[STEPS_MAX];
	struct result before[2], after[2];
	unsigned steps[2];
	bool ok = true;

	step_code = sn->code;
	memset(page, 0xcc, CODE_PAGE);
	memcpy(page + CODE, sn->code, sn->n);
	memcpy(page + CODE + sn->n, exit_code, sizeof(exit_code));
	for (unsigned i = 0; i < NREGS; i++)
		in[i] = 0x1111111111111111 * (i & 7) + i;
	in[RAX] = in[R8] = in[R9] = in[R12] = SYS_getppid;
	in[FLAGS] = 0x8d7 ^ 0x40; /* CF PF AF SF OF, ZF clear, IF as always */
	in[FLAGS] |= 0x202;
	for (unsigned i = 0; i < 2; i++) {
		in[RDI] = i;
		execute(in, &before[i]);
		steps[i] = execute_steps(in, NULL, pc_before[i]);
	}
	if (patch_scan(page + CODE, sn->n + sizeof(exit_code), gva, &h, &plan))
		return false;
	if (strict) {
		const struct kx_site *s = plan.sites;

		if (sn->start == NO_SITE)
			ok = plan.n == 0;
		else
			ok = plan.n == 1 && s->start == gva + sn->start && s->len == sn->len &&
			     s->sys_off == sn->sys_off;
		if (!ok && plan.n)
			printf("     %s: start %lu len %u sys_off %u\n", sn->name, plan.sites[0].start - gva,
			       plan.sites[0].len, plan.sites[0].sys_off);
	}
	uint8_t was[CODE_PAGE], win[PATCH_WINDOW_MAX];
	memcpy(was, page + CODE, sn->n);
	ok &= !patch_apply(page + CODE, sn->n + sizeof(exit_code), gva, &plan, page + TRAMP_OFF,
			   (uint64_t)(page + TRAMP_OFF), CODE_PAGE - TRAMP_OFF);
	for (unsigned i = 0; i < plan.n; i++) {
		const struct kx_site *s = &plan.sites[i];

		ok &= !patch_undo(s, (const uint8_t *)s->tramp, win) && !memcmp(win, was + (s->start - gva), s->len);
	}
	for (unsigned i = 0; i < 2; i++) {
		in[RDI] = i;
		execute(in, &after[i]);
		for (unsigned r = 0; r < NREGS; r++)
			if (before[i].reg[r] != after[i].reg[r]) {
				printf("     %s: register %u: %lx, not %lx\n", sn->name, r, after[i].reg[r],
				       before[i].reg[r]);
				ok = false;
			}
		ok &= !memcmp(before[i].stack, after[i].stack, sizeof(stack_mem));
		if (execute_steps(in, &plan, pc_after) != steps[i] || !steps[i] ||
		    memcmp(pc_before[i], pc_after, steps[i] * sizeof(pc_after[0])) != 0) {
			printf("     %s: translated steps differ\n", sn->name);
			ok = false;
		}
		if (strict && after[i].entries != sn->entries[i]) {
			printf("     %s: %lu entries with rdi = %u\n", sn->name, after[i].entries, i);
			ok = false;
		}
	}
	patch_plan_free(&plan);
	return ok;
}

#define SYSCALL 0x0f, 0x05
#define MOV_NR 0xb8, SYS_getpid, 0, 0, 0
#define CPUID 0x0f, 0xa2
#define MOV_LEAF 0xb8, 0x02, 0, 0, 0x80

static const struct snippet snippets[] = {
	{ "mov $nr,%eax; syscall", 0, 5, 5, { 1, 1 }, 7, { MOV_NR, SYSCALL } },
	{ "mov; syscall; cmp; jae",
	  0,
	  5,
	  5,
	  { 1, 1 },
	  18,
	  { MOV_NR, SYSCALL, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x73, 0x03, 0x48, 0xff, 0xc3 } },
	{ "mov; syscall; lea x(%rip): not displaced",
	  0,
	  5,
	  5,
	  { 1, 1 },
	  14,
	  { MOV_NR, SYSCALL, 0x48, 0x8d, 0x35, 1, 0, 0, 0 } },
	{ "mov $nr,%rax; syscall", 0, 7, 7, { 1, 1 }, 9, { 0x48, 0xc7, 0xc0, SYS_getpid, 0, 0, 0, SYSCALL } },
	{ "mov %r9,%rax; mov %rbx,%rsi; syscall",
	  0,
	  6,
	  6,
	  { 1, 1 },
	  8,
	  { 0x4c, 0x89, 0xc8, 0x48, 0x89, 0xde, SYSCALL } },
	{ "syscall; cmp", 0, 8, 0, { 1, 1 }, 8, { SYSCALL, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff } },
	{ "syscall; test; je", 0, 6, 0, { 1, 1 }, 9, { SYSCALL, 0x85, 0xc0, 0x74, 0x03, 0x48, 0xff, 0xc3 } },
	{ "syscall; test; jne", 0, 6, 0, { 1, 1 }, 9, { SYSCALL, 0x85, 0xc0, 0x75, 0x03, 0x48, 0xff, 0xc3 } },
	{ "syscall; jne near", 0, 8, 0, { 1, 1 }, 11, { SYSCALL, 0x0f, 0x85, 3, 0, 0, 0, 0x48, 0xff, 0xc3 } },
	{ "syscall; nop; jmp short", 0, 5, 0, { 1, 1 }, 8, { SYSCALL, 0x90, 0xeb, 0x03, 0x48, 0xff, 0xc3 } },
	{ "syscall; jmp near", 0, 7, 0, { 1, 1 }, 10, { SYSCALL, 0xe9, 3, 0, 0, 0, 0x48, 0xff, 0xc3 } },
	{ "xor; syscall; ret", 0, 5, 2, { 1, 1 }, 5, { 0x31, 0xc0, SYSCALL, 0xc3 } },
	{ "mov %r12d,%eax; syscall", 0, 5, 3, { 1, 1 }, 5, { 0x44, 0x89, 0xe0, SYSCALL } },
	{ "mov; syscall; lea x(%rip): not displaced (short)",
	  NO_SITE,
	  0,
	  0,
	  { 0, 0 },
	  11,
	  { 0x89, 0xc0, SYSCALL, 0x48, 0x8d, 0x35, 1, 0, 0, 0 } },
	{ "call before: its return address starts the window",
	  5,
	  6,
	  4,
	  { 1, 1 },
	  12,
	  { 0xe8, 0, 0, 0, 0, 0x44, 0x8d, 0x24, 0x24, SYSCALL, 0x5b } },
	{ "endbr64 is not displaced", NO_SITE, 0, 0, { 0, 0 }, 7, { 0xf3, 0x0f, 0x1e, 0xfa, SYSCALL, 0x90 } },
	{ "red zone before and after",
	  0,
	  5,
	  5,
	  { 1, 1 },
	  17,
	  { 0x48, 0x89, 0x5c, 0x24, 0xf8, SYSCALL, 0x48, 0x03, 0x5c, 0x24, 0xf8, 0x48, 0x89, 0x44, 0x24, 0x80 } },
	{ "red zone, displaced after",
	  0,
	  7,
	  0,
	  { 1, 1 },
	  12,
	  { SYSCALL, 0x48, 0x89, 0x44, 0x24, 0xf8, 0x48, 0x8b, 0x5c, 0x24, 0xf8 } },
	{ "flags: stc; mov; syscall; adc",
	  1,
	  5,
	  5,
	  { 1, 1 },
	  13,
	  { 0xf9, MOV_NR, SYSCALL, 0x48, 0x83, 0xd3, 0x00, 0x90 } },
	{ "rcx and r11 in the tail", 0, 5, 0, { 1, 1 }, 8, { SYSCALL, 0x48, 0x89, 0xcb, 0x4c, 0x89, 0xdd } },
	{ "rcx and r11 before", 0, 6, 6, { 1, 1 }, 8, { 0x48, 0x01, 0xcb, 0x4c, 0x01, 0xdd, SYSCALL } },
	{ "syscall is a branch target", 4, 5, 5, { 0, 1 }, 11, { 0x85, 0xff, 0x74, 0x05, MOV_NR, SYSCALL } },
	{ "branch into the window: another window",
	  7,
	  5,
	  3,
	  { 1, 1 },
	  12,
	  { 0x85, 0xff, 0x74, 0x03, 0x4c, 0x89, 0xc8, 0x48, 0x89, 0xde, SYSCALL } },
	{ "branches into every window: rejected",
	  NO_SITE,
	  0,
	  0,
	  { 0, 0 },
	  14,
	  { 0x85, 0xff, 0x74, 0x05, 0x75, 0x06, 0x4c, 0x89, 0xc8, 0x48, 0x89, 0xde, SYSCALL } },
	{ "near branches into every window: rejected",
	  NO_SITE,
	  0,
	  0,
	  { 0, 0 },
	  18,
	  { 0x85, 0xff, 0x0f, 0x84, 5, 0, 0, 0, 0x75, 0x06, 0x4c, 0x89, 0xc8, 0x48, 0x89, 0xde, SYSCALL } },
	{ "branch to an instruction that stays",
	  4,
	  7,
	  7,
	  { 0, 1 },
	  13,
	  { 0x85, 0xff, 0x74, 0x06, 0x41, 0xb8, 39, 0, 0, 0, 0x90, SYSCALL } },
	{ "branches to instructions that stay",
	  6,
	  8,
	  8,
	  { 0, 0 },
	  16,
	  { 0x85, 0xff, 0x74, 0x07, 0x75, 0x08, 0x90, 0x4c, 0x89, 0xc8, 0x90, 0x48, 0x89, 0xde, SYSCALL } },
	{ "mov $leaf,%eax; cpuid", 0, 5, 5, { 1, 1 }, 7, { MOV_LEAF, CPUID } },
	{ "xor %ecx,%ecx; mov; cpuid; mov: rbx and rdx before",
	  0,
	  6,
	  6,
	  { 1, 1 },
	  12,
	  { 0x48, 0x01, 0xda, 0x48, 0x01, 0xd3, CPUID, 0x48, 0x89, 0xde, 0x90 } },
	{ "cpuid; results in the tail", 0, 5, 0, { 1, 1 }, 8, { CPUID, 0x48, 0x89, 0xde, 0x48, 0x89, 0xd7 } },
	{ "cpuid; test; jne", 0, 6, 0, { 1, 1 }, 9, { CPUID, 0x85, 0xc0, 0x75, 0x03, 0x48, 0xff, 0xc3 } },
	{ "xor; cpuid; ret", 0, 5, 2, { 1, 1 }, 5, { 0x31, 0xc0, CPUID, 0xc3 } },
	{ "flags: stc; mov; cpuid; adc",
	  1,
	  5,
	  5,
	  { 1, 1 },
	  13,
	  { 0xf9, MOV_LEAF, CPUID, 0x48, 0x83, 0xd3, 0x00, 0x90 } },
	{ "red zone around cpuid",
	  0,
	  5,
	  5,
	  { 1, 1 },
	  17,
	  { 0x48, 0x89, 0x5c, 0x24, 0xf8, CPUID, 0x48, 0x03, 0x5c, 0x24, 0xf8, 0x48, 0x89, 0x44, 0x24, 0x80 } },
	{ "cpuid is a branch target", 4, 5, 5, { 0, 1 }, 11, { 0x85, 0xff, 0x74, 0x05, MOV_LEAF, CPUID } },
	{ "a cpuid is not displaced by a syscall", NO_SITE, 0, 0, { 0, 0 }, 6, { CPUID, SYSCALL, CPUID } },
	{ "loop to the first byte of the window",
	  3,
	  5,
	  5,
	  { 1, 2 },
	  14,
	  { 0x90, 0x90, 0x90, MOV_NR, SYSCALL, 0xff, 0xcf, 0x74, 0xf5 } },
};

static void test_snippets(void)
{
	for (unsigned i = 0; i < sizeof(snippets) / sizeof(snippets[0]); i++)
		check(snippet_test(&snippets[i], true), "snippet: %s", snippets[i].name);
}

/* Random straight-line code around one or two system calls or cpuids. */
static void test_random_code(int rounds)
{
	static const uint8_t pre[3][6] = { { 5, MOV_NR }, { 3, 0x4c, 0x89, 0xe0 }, { 3, 0x44, 0x89, 0xe0 } };
	static const uint8_t insns[][12] = {
		/* length, bytes; branches bring the nops that they skip */
		{ 2, 0x31, 0xdb },
		{ 3, 0x48, 0x89, 0xf3 },
		{ 3, 0x4c, 0x89, 0xc8 },
		{ 3, 0x4c, 0x89, 0xc0 },
		{ 5, 0xb8, 39, 0, 0, 0 },
		{ 6, 0x41, 0xb8, 39, 0, 0, 0 },
		{ 1, 0x90 },
		{ 1, 0xf8 },
		{ 1, 0xf9 },
		{ 4, 0x48, 0x83, 0xd3, 0x05 },
		{ 5, 0x48, 0x89, 0x44, 0x24, 0xf0 },
		{ 5, 0x48, 0x8b, 0x5c, 0x24, 0xf0 },
		{ 7, 0x48, 0x8d, 0x35, 0x10, 0, 0, 0 },
		{ 3, 0x48, 0x01, 0xcb },
		{ 3, 0x4c, 0x01, 0xdd },
		{ 4, 0x0f, 0xb6, 0xd2, 0x90 },
		{ 3, 0x48, 0xff, 0xc3 },
		{ 2, 0x73, 0x00 },
		{ 2, 0xeb, 0x00 },
		{ 5, 0x75, 0x02, 0x90, 0x90, 0x90 },
		{ 2, 0x85, 0xc0 },
		{ 6, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff },
		{ 4, 0x48, 0x0f, 0x43, 0xd8 },
		{ 2, 0x50, 0x5b },
		{ 2, 0x9c, 0x5d },
		{ 6, 0x0f, 0x84, 0, 0, 0, 0 },
		{ 10, 0x0f, 0x82, 3, 0, 0, 0, 0x90, 0x90, 0x90, 0x90 },
	};
	unsigned bad = 0;

	for (int r = 0; r < rounds; r++) {
		struct snippet sn = { .name = "random" };
		unsigned calls = 1 + rnd(2);

		for (unsigned c = 0; c <= calls; c++) {
			for (unsigned k = rnd(5); k--;) {
				const uint8_t *in = insns[rnd(sizeof(insns) / sizeof(insns[0]))];

				if (sn.n + in[0] + 32u > sizeof(sn.code))
					continue;
				memcpy(sn.code + sn.n, in + 1, in[0]);
				sn.n += in[0];
			}
			if (c < calls && sn.n + 30u < sizeof(sn.code)) {
				const uint8_t *p = pre[rnd(3)];

				memcpy(sn.code + sn.n, p + 1, p[0]);
				sn.n += p[0];
				memcpy(sn.code + sn.n, rnd(2) ? "\x0f\x05" : "\x0f\xa2", 2);
				sn.n += 2;
			}
		}
		if (!snippet_test(&sn, false)) {
			bad++;
			printf("     code:");
			for (unsigned i = 0; i < sn.n; i++)
				printf(" %02x", sn.code[i]);
			printf("\n");
		}
	}
	check(!bad, "%d random pieces of code behave as before (%u differ)", rounds, bad);
}

static void test_restorer(void)
{
	static const uint8_t code[] = { 0x90, 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05, 0x90, 0x90 };
	struct patch_range fn = { 0x1000, 0x1000 + sizeof(code), 0 };
	struct patch_hints h = { .fn = &fn, .n = 1 };
	struct patch_plan plan;

	patch_scan(code, sizeof(code), 0x1000, &h, &plan);
	check(plan.found == 1 && plan.n == 0, "signal restorer without unwind data keeps its bytes");
	patch_plan_free(&plan);
	fn.flags = PATCH_FN_UNWIND;
	patch_scan(code, sizeof(code), 0x1000, &h, &plan);
	check(plan.n == 1 && plan.sites[0].len == 7, "signal restorer with unwind data is patched");
	patch_plan_free(&plan);
}

static void test_bounds(void)
{
	static const uint8_t two[] = { MOV_NR, SYSCALL, MOV_NR, SYSCALL };
	struct patch_range fn[2] = { { 0x1000, 0x1005, 0 }, { 0x1005, 0x1007, 0 } };
	struct patch_hints h = { .fn = fn, .n = 2 };
	struct patch_plan plan;
	struct kx_site wild;

	patch_scan(two, 7, 0x1000, &h, &plan);
	check(plan.found == 1 && plan.n == 0, "no window across a function's start");
	patch_plan_free(&plan);
	patch_scan(two, sizeof(two), 0x1000, NULL, &plan);
	check(plan.n == 2 && plan.sites[1].start == 0x1007, "adjacent sites");
	patch_plan_free(&plan);
	patch_scan(two + 5, 2, 0x1000, NULL, &plan);
	check(plan.found == 1 && plan.n == 0, "two bytes of text");
	patch_plan_free(&plan);
	check(!patch_scan(NULL, 0, 0x1000, NULL, &plan) && !plan.found, "no text");
	check(patch_scan(two, 1ul << 31, 0x1000, NULL, &plan) == -E2BIG, "text of 2 GiB refused");
	memset(&wild, 0xff, sizeof(wild));
	for (unsigned i = 0; i < 300; i++) {
		patch_site_to_tramp(&wild, wild.start + i);
		patch_tramp_to_site(&wild, wild.tramp + i);
	}
	check(true, "a wild site entry is translated without harm");
}

static void stepping_start(void)
{
	struct sigaction sa = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t ss = { .ss_size = 1 << 16 };

	ss.ss_sp = mmap(NULL, ss.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigaltstack(&ss, NULL);
	sigaction(SIGTRAP, &sa, NULL);
}

int main(void)
{
	static const char *const libs[] = { "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2",
					    "/usr/lib/x86_64-linux-musl/libc.so", "/bin/busybox" };
	cpu_set_t one;

	/* cpuid tells processors apart */
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (unsigned i = 0; i < sizeof(libs) / sizeof(libs[0]); i++)
		test_library(libs[i], 95, i == 1 ? 30 : 0);
	test_lengths(libs[0]);
	test_lengths(libs[2]);
	test_lengths_random();
	test_damaged(libs[1], 300);
	test_damaged(libs[2], 100);
	test_noise();
	test_restorer();
	test_bounds();

	page = mmap(NULL, CODE_PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || syscall(SYS_arch_prctl, ARCH_SET_GS, &area)) {
		printf("skip execution: no writable code here\n");
		return failures != 0;
	}
	stepping_start();
	cpuid_told = cpuid_is_told();
	test_snippets();
	test_random_code(400);
	check(!steps_wrong, "steps to be hidden: %u went on", steps_wrong);
	printf("%s: %d failed\n", failures ? "FAIL" : "PASS", failures);
	return failures != 0;
}
