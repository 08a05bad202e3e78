/* SPDX-License-Identifier: Apache-2.0 */
#include "fault.h"
#include <Zydis/Zydis.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <ucontext.h>
#include "../../util/log.h"
#include "../arch/x86_64/patch.h"
#include "gmem.h"
#include "sig.h"

#define PF_PRESENT 1
#define PF_WRITE 2
#define PF_FETCH 16
#define REPEAT_MAX 64

/* si_code values, by their kernel names */
enum { CODE_KERNEL = 0x80 };

/* A fault in the LibOS is one of its accesses to the program's memory, with a place to continue, or a bug. */
static int libos_fault(struct thread *t, struct kvm_regs *r, unsigned vec, uint64_t addr)
{
	(void)t;
	if (r->rip >= pvm.libos.uaccess_begin && r->rip < pvm.libos.uaccess_end) {
		r->rip = pvm.libos.uaccess_fixup;
		return 0;
	}
	pvm_panic("LibOS: exception %u at %#llx, address %#llx, flags %#llx", vec, (unsigned long long)r->rip,
		  (unsigned long long)addr, (unsigned long long)r->rflags);
}

/* What an access of that kind to addr deserves: 0 = nothing wrong with it, else SEGV_MAPERR or SEGV_ACCERR. */
static int segv_code(uint64_t addr, bool write, bool fetch)
{
	struct gmem_region g;
	if (addr >= KX_HIGH_END || !gmem_query(addr, &g) || g.start > addr)
		return SEGV_MAPERR;
	if (fetch)
		return g.prot & PROT_EXEC ? 0 : SEGV_ACCERR;
	if (write)
		return g.prot & PROT_WRITE ? 0 : SEGV_ACCERR;
	return g.prot & (PROT_READ | PROT_WRITE | PROT_EXEC) ? 0 : SEGV_ACCERR;
}

/* True the first REPEAT_MAX times in a row that this instruction faults without a reason that we can see. */
static bool may_retry(struct thread *t, uint64_t rip)
{
	if (t->fault_rip != rip) {
		t->fault_rip = rip;
		t->fault_repeat = 0;
	}
	return t->fault_repeat++ < REPEAT_MAX;
}

static int raise_signal(struct thread *t, int signo, int code, uint64_t addr, uint64_t trapno, uint64_t err,
			uint64_t cr2)
{
	t->fault_rip = 0;
	sig_force(t, signo, code, addr, trapno, err, cr2);
	return 1;
}

static int page_fault(struct thread *t, struct kvm_regs *r, uint64_t err, uint64_t cr2)
{
	if (gmem_populate(cr2))
		return 0;
	if (in_libos(r->rip))
		return libos_fault(t, r, 14, cr2);
	int code = segv_code(cr2, err & PF_WRITE, err & PF_FETCH);
	if (!code) {
		if (may_retry(t, r->rip))
			return 0;
		code = SEGV_ACCERR;
	}
	if (code == SEGV_MAPERR)
		err &= ~(uint64_t)PF_PRESENT;
	return raise_signal(t, SIGSEGV, code, cr2, 14, err | 4, cr2);
}

/* si_code of a vector or x87 exception: SDM vol. 1, 8.5 and 11.5; the first unmasked one in the kernel's order. */
static int fpe_code(struct thread *t, unsigned vec)
{
	struct kvm_xsave x;
	unsigned pending = 0;
	if (ioctl(t->vcpu_fd, KVM_GET_XSAVE, &x) == 0) { /* FXSAVE layout: FCW, FSW, ...; MXCSR at 24 */
		unsigned fcw = x.region[0] & 0xffff, fsw = x.region[0] >> 16, mxcsr = x.region[6];
		pending = vec == 16 ? fsw & ~fcw : ~(mxcsr >> 7) & mxcsr;
	}
	if (pending & 1)
		return FPE_FLTINV;
	if (pending & 4)
		return FPE_FLTDIV;
	if (pending & 8)
		return FPE_FLTOVF;
	if (pending & (16 | 2))
		return FPE_FLTUND;
	if (pending & 32)
		return FPE_FLTRES;
	return FPE_FLTINV;
}

static uint64_t last_jump(void) { return pvm.libos.exit_end - 8; } /* jmp *%gs:disp32 */

/*
 * The last jump's target is none that a program counter can hold with 48 bits: some processors say so at the jump, others
 * behind it. The program sees it behind, as of the kernel's way out; and no vCPU is given such a one, which VMX refuses.
 */
static bool leaves_for_nowhere(const struct kvm_regs *r, unsigned vec, uint64_t resume)
{
	const uint64_t upper = resume >> 47;
	return (vec == 13 || vec == 1) && r->rip == last_jump() && upper && upper != UINT64_MAX >> 47;
}

/*
 * The program steps itself (TF) through the LibOS, which is not to be seen: run on without, once the frame holds the
 * flag; the flags come back just before the last jump, and that is made here, so that the next step is the program's.
 */
static int step_in_libos(struct thread *t, struct kvm_regs *r, uint64_t resume)
{
	const struct kx_frame *f = frame_of(t);
	if (r->rip == last_jump()) {
		r->rip = resume;
		/* A step over a system call is not seen, one over a `cpuid` is. */
		if (f->orig_rax == KX_ORIG_CPUID)
			return raise_signal(t, SIGTRAP, TRAP_TRACE, gmem_pc_to_original(r->rip), 1, 0, 0);
	} else if (r->rip >= pvm.libos.flags_saved &&
		   (r->rip < pvm.libos.cpuid || r->rip >= pvm.libos.cpuid_flags_saved)) {
		r->rflags &= ~0x100ull;
	}
	return 0;
}

int fault_exception(struct thread *t, struct kvm_regs *r, unsigned vec, uint64_t err, uint64_t cr2, uint64_t fs_base)
{
	uint8_t code[2];
	(void)fs_base;
	if (vec == 14)
		return page_fault(t, r, err, cr2);
	const uint64_t resume = __atomic_load_n(&t->area->resume, __ATOMIC_RELAXED); /* the guest's */
	if (leaves_for_nowhere(r, vec, resume)) {
		r->rip = resume;
		return raise_signal(t, SIGSEGV, CODE_KERNEL, 0, 13, 0, cr2);
	}
	if (vec == 1 && in_libos(r->rip))
		return step_in_libos(t, r, resume);
	if (in_libos(r->rip))
		return libos_fault(t, r, vec, cr2);
	switch (vec) {
	case 0:
		return raise_signal(t, SIGFPE, FPE_INTDIV, r->rip, vec, 0, cr2);
	case 1:
		if (gmem_pc_step_hidden(r->rip))
			return 0;
		return raise_signal(t, SIGTRAP, TRAP_TRACE, gmem_pc_to_original(r->rip), vec, 0, cr2);
	case 3:
		return raise_signal(t, SIGTRAP, CODE_KERNEL, 0, vec, 0, cr2);
	case 6:
		/* Software KVM cannot emulate `int n` and says #UD; hardware says #GP with the gate's number. */
		if (guest_read(code, r->rip, 2) == 0 && code[0] == 0xcd)
			return raise_signal(t, SIGSEGV, CODE_KERNEL, 0, 13, code[1] * 8 + 2, cr2);
		return raise_signal(t, SIGILL, ILL_ILLOPN, r->rip, vec, 0, cr2);
	case 10:
	case 11:
	case 12:
		return raise_signal(t, SIGBUS, CODE_KERNEL, 0, vec, err, cr2);
	case 16:
	case 19:
		return raise_signal(t, SIGFPE, fpe_code(t, vec), r->rip, vec, 0, cr2);
	case 17:
		return raise_signal(t, SIGBUS, BUS_ADRALN, 0, vec, err, cr2);
	default: /* 4, 5, 7, 13 and whatever else ring 3 can cause */
		return raise_signal(t, SIGSEGV, CODE_KERNEL, 0, vec, err, cr2);
	}
}

/* ---- accesses that the host mapping refused ------------------------------------------------------------------ */

struct decode {
	ZydisDecodedInstruction ins;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	ZydisRegisterContext regs;
	uint64_t fs_base, gs_base, rip;
	int signo, code;
	uint64_t addr;
	bool write, fetch;
};

static void set_regs(ZydisRegisterContext *c, const struct kvm_regs *r)
{
	const uint64_t v[16] = { r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi,
				 r->r8,  r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15 };
	static const int bases[] = { ZYDIS_REGISTER_RAX, ZYDIS_REGISTER_EAX };
	for (int i = 0; i < 16; i++) {
		c->values[bases[0] + i] = v[i];
		c->values[bases[1] + i] = (uint32_t)v[i];
	}
	c->values[ZYDIS_REGISTER_RIP] = r->rip;
	c->values[ZYDIS_REGISTER_EIP] = (uint32_t)r->rip;
	c->values[ZYDIS_REGISTER_RFLAGS] = r->rflags;
	c->values[ZYDIS_REGISTER_AL] = (uint8_t)r->rax;
}

/* Does [addr, addr+len) explain the fault? Look by the map first, then by touching it as the guest did. */
static bool blame(struct decode *d, uint64_t addr, uint64_t len, bool write)
{
	for (uint64_t a = addr, end = addr + (len ? len : 1); a < end; a = (a | 4095) + 1) {
		int code = segv_code(a, write, false);
		if (code) {
			d->signo = SIGSEGV;
			d->code = code;
		} else {
			/* Mapped and permitted: beyond the end of its file, or memory that the host can't give. */
			uint8_t byte;
			if (guest_read(&byte, a, 1) == 0)
				continue;
			d->signo = SIGBUS;
			d->code = BUS_ADRERR;
		}
		d->addr = a;
		d->write = write;
		return true;
	}
	return false;
}

static bool operand_address(struct decode *d, const ZydisDecodedOperand *o, uint64_t *addr)
{
	if (!ZYAN_SUCCESS(ZydisCalcAbsoluteAddressEx(&d->ins, o, d->rip, &d->regs, addr)))
		return false;
	if (o->mem.segment == ZYDIS_REGISTER_FS)
		*addr += d->fs_base;
	if (o->mem.segment == ZYDIS_REGISTER_GS)
		*addr += d->gs_base;
	return true;
}

/* Where the XSAVE area (standard form) has a component; it is not the same on all processors. False: nowhere. */
static bool component_at(unsigned nr, size_t size, size_t *at)
{
	for (unsigned i = 0; i < pvm.cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &pvm.cpuid->entries[i];
		if (e->function == 0xd && e->index == nr && e->eax >= size &&
		    e->ebx <= sizeof(struct kvm_xsave) - size) {
			*at = e->ebx;
			return true;
		}
	}
	return false;
}

/* A vector register, zeros where it has no more: SDM vol. 1, 13.4 and 13.5. */
static void vector_get(const struct kvm_xsave *x, unsigned reg, uint8_t v[64])
{
	const uint8_t *area = (const uint8_t *)x->region;
	size_t at;
	memset(v, 0, 64);
	if (reg >= 16) {
		if (component_at(7, 64 * 16, &at))
			memcpy(v, area + at + 64 * (reg - 16), 64);
		return;
	}
	memcpy(v, area + 160 + 16 * reg, 16);
	if (component_at(2, 16 * 16, &at))
		memcpy(v + 16, area + at + 16 * reg, 16);
	if (component_at(6, 32 * 16, &at))
		memcpy(v + 32, area + at + 32 * reg, 32);
}

/* vpgatherqd and vpgatherdq: of 64 bits are the indices of the first, of the other the elements. */
static bool index_is_wide(const char *name)
{
	const char *g = strstr(name, "gather"), *s = strstr(name, "scatter");
	return (g && g[6] == 'q') || (s && s[7] == 'q');
}

/* Elements of a gather or scatter: the index register is a vector; any element may be at fault. */
static bool blame_gather(struct decode *d, struct thread *t, const ZydisDecodedOperand *o, bool write)
{
	struct kvm_xsave x;
	int index = o->mem.index, lanes = d->ins.avx.vector_length / 8 / 4;
	if (ioctl(t->vcpu_fd, KVM_GET_XSAVE, &x) < 0)
		return false;
	int reg = index >= ZYDIS_REGISTER_ZMM0   ? index - ZYDIS_REGISTER_ZMM0
		  : index >= ZYDIS_REGISTER_YMM0 ? index - ZYDIS_REGISTER_YMM0
						 : index - ZYDIS_REGISTER_XMM0;
	uint8_t v[64];
	vector_get(&x, (unsigned)reg & 31, v);
	uint64_t base = o->mem.base != ZYDIS_REGISTER_NONE ? d->regs.values[o->mem.base] : 0;
	base += o->mem.disp.has_displacement ? o->mem.disp.value : 0;
	bool wide = index_is_wide(ZydisMnemonicGetString(d->ins.mnemonic));
	for (int i = 0; i < (lanes ? lanes : 16) && i < 16; i++) {
		int64_t idx = 0;
		if (wide && i < 8) {
			memcpy(&idx, v + 8 * i, 8);
			if (blame(d, base + idx * o->mem.scale, 4, write))
				return true;
		}
		int32_t idx32;
		memcpy(&idx32, v + 4 * i, 4);
		if (!wide && blame(d, base + (int64_t)idx32 * o->mem.scale, 4, write))
			return true;
	}
	return false;
}

static bool blame_operand(struct decode *d, struct thread *t, const ZydisDecodedOperand *o)
{
	uint64_t addr, len = o->size / 8;
	bool write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE, read = o->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
	if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
		return false;
	if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
		return blame_gather(d, t, o, write);
	if (!operand_address(d, o, &addr))
		return false;
	/* push and call write below the stack pointer; Zydis gives the pointer before that. */
	if (write && !read && o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && o->mem.base == ZYDIS_REGISTER_RSP)
		addr -= len;
	return blame(d, addr, len, write);
}

static bool find_culprit(struct thread *t, struct kvm_regs *r, struct decode *d)
{
	uint8_t code[16] = { 0 };
	size_t have = 4096 - r->rip % 4096;
	ZydisDecoder dec;
	if (segv_code(r->rip, false, true)) {
		d->signo = SIGSEGV;
		d->code = segv_code(r->rip, false, true);
		d->addr = r->rip;
		d->fetch = true;
		return true;
	}
	if (have > 15)
		have = 15;
	if (guest_read(code, r->rip, have)) {
		d->signo = SIGBUS;
		d->code = BUS_ADRERR;
		d->addr = r->rip;
		return true;
	}
	if (have < 15 && guest_read(code + have, r->rip + have, 15 - have) == 0)
		have = 15;
	patch_decoder_init(&dec);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&dec, code, have, &d->ins, d->op))) {
		/* The instruction goes on in the next page, and that can't be read. */
		uint64_t next = (r->rip | 4095) + 1;
		int c = segv_code(next, false, true);
		d->signo = c ? SIGSEGV : SIGBUS;
		d->code = c ? c : BUS_ADRERR;
		d->addr = next;
		d->fetch = true;
		return have < 15;
	}
	d->rip = r->rip;
	set_regs(&d->regs, r);
	for (int i = 0; i < d->ins.operand_count; i++)
		if (blame_operand(d, t, &d->op[i]))
			return true;
	return false;
}

int fault_access(struct thread *t, struct kvm_regs *r, uint64_t fs_base, uint64_t gs_base)
{
	struct decode d;
	if (in_libos(r->rip))
		return libos_fault(t, r, 14, 0);
	memset(&d, 0, sizeof d);
	d.fs_base = fs_base;
	d.gs_base = gs_base;
	if (find_culprit(t, r, &d)) {
		uint64_t err = 4 | (d.write ? PF_WRITE : 0) | (d.fetch ? PF_FETCH : 0) |
			       (d.code == SEGV_ACCERR ? PF_PRESENT : 0);
		return raise_signal(t, d.signo, d.code, d.addr, 14, err, d.addr);
	}
	/* Nothing is wrong any more: another thread changed the map meanwhile. */
	if (may_retry(t, r->rip))
		return 0;
	kx_log(KX_LOG_WARN, "fault", "unexplained memory fault at %#llx", (unsigned long long)r->rip);
	return raise_signal(t, SIGSEGV, CODE_KERNEL, 0, 13, 0, 0);
}
