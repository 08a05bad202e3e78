/* SPDX-License-Identifier: Apache-2.0 */
#include "vcpu.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/now.h"
#include "birth.h"
#include "fault.h"
#include "gmem.h"
#include "hcall.h"
#include "needs.h"
#include "pipe.h"
#include "rseq.h"
#include "sig.h"
#include "timepage.h"
#include "tsc.h"
#include "update.h"
#include "vcpu_lost.h"

#define VM_NUMBERS 4 /* of a VM's descriptor, for execs that follow each other */
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define CR0_PE_ET_NE_WP_AM_PG_MP 0x80050033ull
#define CR4_PAE 0x20ull
#define CR4_OSFXSR_OSXMMEXCPT 0x600ull
#define CR4_FSGSBASE 0x10000ull
#define CR4_OSXSAVE 0x40000ull
#define EFER_SCE_LME_LMA_NXE 0xd01ull
#define CS_KERNEL 0x10
#define DS_KERNEL 0x18
#define CS_USER 0x33
#define DS_USER 0x2b
#define SEL_TSS 0x40
/* Bit 1 is always set. IF, as a program finds it: ring 3 cannot set it by popf, which the way back to the program uses. */
#define RFLAGS_START 0x202ull
#define DF 0x400ull
#define PATIENCE_NS 2000000000ull /* with a limit of processes */
#define CPUID_MAX 256             /* as the kernel's KVM_MAX_CPUID_ENTRIES */
/* Offsets in a vCPU's 16 KiB block of the system region. */
#define BLOCK_PAGES 4
#define BLOCK_GDT 0x000
#define BLOCK_TSS 0x100
#define BLOCK_STACK_TOP 0x4000
#define REAL_MODE_TSS 0x1000ul
#define TSS_IOMAP 104
#define TSS_AVAILABLE 9
#define TSS_BUSY 11
#define OUT_EAX_DX 0xef
#define INSN_MAX 15
#define INT3 0xcc
#define INT 0xcd
#define INTO 0xce
#define REX 0x40

static const uint8_t legacy_prefixes[] = { 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3 };

static uint64_t block_of[KX_AREA_MAX];
static struct kvm_segment user_cs, user_ss;
static uint8_t tss_type = TSS_BUSY;    /* as a processor has it behind `ltr`, and VMX demands it */
static bool cpuid_adopted;             /* pvm.cpuid is what a vCPU has said */
static struct kvm_sregs initial_sregs; /* of a new vCPU: what we have no opinion on */

/* ---- making -------------------------------------------------------------------------------------------------- */

#define CAP_PRE_FAULT_MEMORY 236

/* Whether the processor translates guest-physical addresses. Newer kernels say it by a capability, others by parameters. */
static bool has_two_dimensions(void)
{
	static const char *const said[] = { "/sys/module/kvm_intel/parameters/ept",
					    "/sys/module/kvm_amd/parameters/npt" };
	bool has = ioctl(pvm.kvm_fd, KVM_CHECK_EXTENSION, CAP_PRE_FAULT_MEMORY) > 0;
	for (unsigned i = 0; i < 2 && !has; i++) {
		char c = 0;
		int fd = open(said[i], O_RDONLY | O_CLOEXEC);
		has = fd >= 0 && read(fd, &c, 1) == 1 && (c == 'Y' || c == '1');
		if (fd >= 0)
			close(fd);
	}
	return has;
}

#define FEATURES_STACK (256 << 10) /* thread-local variables are there, too */

static struct {
	struct kvm_cpuid2 *cpuid;
	int error;
	pthread_t thread;
	void *stack; /* NULL: there is no such thread */
} features;

static void *features_ask(void *arg)
{
	features.error = ioctl(pvm.kvm_fd, KVM_GET_SUPPORTED_CPUID, features.cpuid) < 0 ? errno : 0;
	return arg;
}

/* The answer is long in coming where `cpuid` itself traps: with a second processor, beside the rest of the start. */
static int features_begin(struct kx_err *err)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof *c + CPUID_MAX * sizeof c->entries[0]);
	pthread_attr_t attr;
	cpu_set_t set;
	if (!c)
		return kx_err_host(err, ENOMEM, "/dev/kvm: cannot read the CPU's features");
	c->nent = CPUID_MAX;
	features.cpuid = c;
	void *stack = MAP_FAILED;
	if (!sched_getaffinity(0, sizeof set, &set) && CPU_COUNT(&set) > 1)
		stack = mmap(NULL, FEATURES_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1,
			     0);
	if (stack != MAP_FAILED) {
		pthread_attr_init(&attr);
		pthread_attr_setstack(&attr, stack, FEATURES_STACK);
		if (!pthread_create(&features.thread, &attr, features_ask, NULL))
			features.stack = stack;
		else
			munmap(stack, FEATURES_STACK);
		pthread_attr_destroy(&attr);
	}
	if (!features.stack)
		features_ask(NULL);
	return 0;
}

int vm_open(struct kx_err *err)
{
	if (getauxval(AT_SYSINFO_EHDR) == KX_VDSO_BASE)
		return kx_err_set(err, ENOTSUP,
				  "run: this is a pVM already (start the program itself: it gets a pVM of its own)");
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
			return kx_err_set(err, errno,
					  "/dev/kvm: no such device (load the kvm module, or enable "
					  "virtualisation in the firmware or the cloud instance)");
		if (errno == EACCES || errno == EPERM)
			return kx_err_set(err, errno, "/dev/kvm: permission denied (add the user to the group kvm)");
		return kx_err_host(err, errno, "/dev/kvm");
	}
	int r = fd_keep(&pvm.kvm_fd, fd);
	if (r)
		return kx_err_set(err, -r, "/dev/kvm: no descriptor left (raise `ulimit -n`)");
	fd = pvm.kvm_fd;
	if (ioctl(fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return kx_err_set(err, ENOTSUP, "/dev/kvm: not the KVM API version 12 (use a current kernel)");
	if (ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0 ||
	    ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_MMU) <= 0 ||
	    (ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS) & (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS)) !=
		    (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS))
		return kx_err_set(err, ENOTSUP,
				  "/dev/kvm: lacks immediate exit, MMU notifiers or synced registers "
				  "(use Linux 5.10 or later)");
	pvm.kvm_run_size = ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	pvm.shadow_paging = !has_two_dimensions();
	return features_begin(err);
}

int vm_features(struct kx_err *err)
{
	struct kvm_cpuid2 *c = features.cpuid;
	if (cpuid_adopted)
		return 0;
	if (features.stack) {
		pthread_join(features.thread, NULL);
		munmap(features.stack, FEATURES_STACK);
		features.stack = NULL;
	}
	if (features.error)
		return kx_err_host(err, features.error, "/dev/kvm: cannot read the CPU's features");
	int r = needs_check(c, err);
	if (r)
		return r;
	pvm.xcr0 = 1;
	for (unsigned i = 0; i < c->nent; i++) {
		struct kvm_cpuid_entry2 *e = &c->entries[i];
		if (e->function == 7 && e->index == 0) {
			e->ecx &= ~(1u << 3 | 1u << 4); /* no protection keys: CR4.PKE is not set */
			e->edx &= ~(1u << 20);          /* no CET */
			e->ecx &= ~(1u << 7);
		}
		if (e->function == 0xd && e->index == 0)
			pvm.xcr0 = ((uint64_t)e->edx << 32 | e->eax) & 0xe7; /* x87, SSE, AVX, AVX-512 */
		if (e->function == 1)
			e->ecx &= ~(1u << 3); /* no MONITOR/MWAIT */
	}
	pvm.cpuid = c;
	return 0;
}

void vm_adopt(int kvm_fd, int kvm_run_size, uint64_t xcr0, struct kvm_cpuid2 *cpuid)
{
	fd_keep(&pvm.kvm_fd, kvm_fd);
	pvm.kvm_run_size = kvm_run_size;
	pvm.xcr0 = xcr0;
	pvm.cpuid = cpuid;
	cpuid_adopted = true;
}

/*
 * KVM names a VM's files in debugfs by its process and the number that its descriptor gets, and warns in the kernel's log
 * where there is one of that name. The VM of before an exec may be there for a moment more: so the number is another one.
 */
static int vm_new(void)
{
	int aside[VM_NUMBERS - 1], n = 0, fd;
	while (n < pvm.nr_execs % VM_NUMBERS && (aside[n] = fcntl(pvm.kvm_fd, F_DUPFD_CLOEXEC, 0)) >= 0)
		n++;
	do
		fd = ioctl(pvm.kvm_fd, KVM_CREATE_VM, 0);
	while (fd < 0 && errno == EINTR);
	const int e = errno;
	while (n)
		close(aside[--n]);
	errno = e;
	return fd;
}

int vm_create(struct kx_err *err)
{
	fd_limit_lift();
	int fd = vm_new();
	fd_limit_drop();
	if (fd < 0)
		return kx_err_host(err, errno, "/dev/kvm: cannot make a VM");
	int r = fd_keep(&pvm.vm_fd, fd);
	if (r)
		return kx_err_set(err, -r, "/dev/kvm: no descriptor left (raise `ulimit -n`)");
	/*
	 * VMX without unrestricted guest puts three pages and one of its own into the guest's physical memory, for real mode,
	 * which no vCPU of ours is ever in. Where no slot of ours is, hence below KX_USER_MIN. No effect elsewhere.
	 */
	uint64_t identity_map = REAL_MODE_TSS + 0x3000;
	ioctl(pvm.vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map);
	ioctl(pvm.vm_fd, KVM_SET_TSS_ADDR, REAL_MODE_TSS);
	return 0;
}

/* Descriptor tables of one vCPU. */
static int vcpu_block(int index)
{
	uint64_t gpa = block_of[index];
	if (!gpa) {
		pthread_mutex_lock(&pvm.mm_lock);
		gpa = block_of[index] = gmem_sys_alloc(BLOCK_PAGES);
		pthread_mutex_unlock(&pvm.mm_lock);
	}
	if (!gpa)
		return -ENOMEM;
	uint64_t *gdt = gva_ptr(gpa + BLOCK_GDT);
	uint8_t *tss = gva_ptr(gpa + BLOCK_TSS);
	uint64_t tss_va = GMEM_SYS_VA(gpa + BLOCK_TSS), stack = GMEM_SYS_VA(gpa + BLOCK_STACK_TOP);
	const unsigned iomap_bytes = 0x520 / 8 + 1, limit = TSS_IOMAP + iomap_bytes - 1;
	gdt[2] = 0x00af9b000000ffff;
	gdt[3] = 0x00cf93000000ffff;
	gdt[5] = 0x00cff3000000ffff;
	gdt[6] = 0x00affb000000ffff;
	gdt[8] = 0x0000890000000000ull | limit | (tss_va & 0xffffff) << 16 | (tss_va >> 24 & 0xff) << 56;
	gdt[9] = tss_va >> 32;
	memcpy(tss + 4, &stack, 8);
	for (int ist = 0; ist < 7; ist++)
		memcpy(tss + 36 + 8 * ist, &stack, 8);
	tss[102] = TSS_IOMAP;
	memset(tss + TSS_IOMAP, 0xff, iomap_bytes);
	/* Ring 3 may use the hypercall ports and no other. */
	tss[TSS_IOMAP + KX_PORT_HCALL / 8] = 0;
	tss[TSS_IOMAP + KX_PORT_HCALL / 8 + 1] = 0;
	return 0;
}

/* Segments, tables and control registers of t's vCPU, apart from what the program can change: fs. */
static void fixed_sregs(struct thread *t, struct kvm_sregs *s)
{
	uint64_t gpa = block_of[t->index];
	struct kvm_segment ds = {
		.limit = 0xffffffff, .selector = DS_USER, .present = 1, .type = 3, .dpl = 3, .s = 1, .db = 1, .g = 1
	};
	*s = initial_sregs;
	s->cs = user_cs = (struct kvm_segment){
		.limit = 0xffffffff, .selector = CS_USER, .present = 1, .type = 11, .dpl = 3, .s = 1, .l = 1, .g = 1
	};
	s->ss = user_ss = ds;
	ds.selector = 0;
	s->ds = s->es = s->fs = s->gs = ds;
	s->gs.base = t->area_gva;
	s->tr = (struct kvm_segment){ .base = GMEM_SYS_VA(gpa + BLOCK_TSS),
				      .limit = TSS_IOMAP + 0x520 / 8,
				      .selector = SEL_TSS,
				      .present = 1,
				      .type = tss_type };
	s->ldt = (struct kvm_segment){ .unusable = 1, .type = 2 };
	s->gdt.base = GMEM_SYS_VA(gpa + BLOCK_GDT);
	s->gdt.limit = 127;
	s->idt.base = GMEM_SYS_VA(KX_SYS_BASE + GMEM_IDT);
	s->idt.limit = 4095;
	s->cr0 = CR0_PE_ET_NE_WP_AM_PG_MP;
	s->cr3 = KX_SYS_BASE + GMEM_PML4;
	s->cr4 = CR4_PAE | CR4_OSFXSR_OSXMMEXCPT | CR4_FSGSBASE | CR4_OSXSAVE;
	s->efer = EFER_SCE_LME_LMA_NXE;
}

/* What stays as it is for the life of the vCPU. Each call on a vCPU loads and unloads it, which may be dear. */
int vcpu_set_up(struct thread *t)
{
	static bool known;
	if (ioctl(t->vcpu_fd, KVM_SET_CPUID2, pvm.cpuid) < 0 ||
	    (!known && ioctl(t->vcpu_fd, KVM_GET_SREGS, &initial_sregs) < 0))
		return -errno;
	known = true;
	union {
		struct kvm_msrs h;
		uint8_t space[sizeof(struct kvm_msrs) + 3 * sizeof(struct kvm_msr_entry)];
	} m;
	memset(&m, 0, sizeof m);
	m.h.nmsrs = 3;
	struct kvm_msr_entry *e = m.h.entries;
	e[0] = (struct kvm_msr_entry){ .index = MSR_STAR,
				       .data = (uint64_t)(CS_USER - 16) << 48 | (uint64_t)CS_KERNEL << 32 };
	e[1] = (struct kvm_msr_entry){ .index = MSR_LSTAR, .data = GMEM_SYS_VA(KX_SYS_BASE + GMEM_LSTAR) };
	e[2] = (struct kvm_msr_entry){ .index = MSR_FMASK, .data = 0x47700 };
	if (ioctl(t->vcpu_fd, KVM_SET_MSRS, &m) != 3)
		return -EIO;
	struct kvm_xcrs x = { .nr_xcrs = 1 };
	x.xcrs[0].value = pvm.xcr0;
	tsc_set_up(t);
	return ioctl(t->vcpu_fd, KVM_SET_XCRS, &x) < 0 ? -errno : 0;
}

int vcpu_block_prepare(int index) { return vcpu_block(index); }

int vcpu_open(struct thread *t, int number)
{
	int r = vcpu_block(t->index), fd;
	if (r)
		return r;
	fd_limit_lift();
	do
		fd = ioctl(pvm.vm_fd, KVM_CREATE_VCPU, number);
	while (fd < 0 && errno == EINTR);
	fd_limit_drop();
	if (fd < 0)
		return -errno;
	if ((fd = fd_hide(fd)) < 0)
		return fd;
	t->vcpu_fd = fd;
	t->vcpu_pid = my_pid();
	struct kvm_run *run = mmap(NULL, pvm.kvm_run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (run == MAP_FAILED)
		return -errno;
	madvise(run, pvm.kvm_run_size, MADV_DONTFORK); /* drop_vcpu() in a child relies on it */
	run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	t->run = run;
	return 0;
}

int vcpu_prove(struct thread *t)
{
	t->run->immediate_exit = 1;
	int e = ioctl(t->vcpu_fd, KVM_RUN, 0) < 0 ? errno : 0;
	t->run->immediate_exit = 0;
	return e == EINTR ? 0 : -e;
}

int vcpu_create(struct thread *t)
{
	int r = vcpu_open(t, t->index);
	return r ? r : vcpu_set_up(t);
}

void vcpu_set_regs(struct thread *t, const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
	t->run->s.regs.regs = *regs;
	t->run->s.regs.sregs = *sregs;
	t->sregs_known = true;
	t->run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
}

/* What the instruction says depends on registers: ask when they are set. Exec passes the answer on. */
static int cpuid_learn(struct thread *t)
{
	struct kvm_sregs s;
	fixed_sregs(t, &s);
	struct kvm_cpuid2 *c = calloc(1, sizeof *c + CPUID_MAX * sizeof c->entries[0]);
	if (!c)
		return -ENOMEM;
	c->nent = CPUID_MAX;
	if (ioctl(t->vcpu_fd, KVM_SET_SREGS, &s) < 0 || ioctl(t->vcpu_fd, KVM_GET_CPUID2, c) < 0) {
		int r = -errno;
		free(c);
		return r;
	}
	/* Linux 6.1 and others leave the number as it was: it has as many as were set. */
	if (c->nent > pvm.cpuid->nent)
		c->nent = pvm.cpuid->nent;
	free(pvm.cpuid);
	pvm.cpuid = c;
	return 0;
}

int vcpu_cpuid_publish(struct thread *t)
{
	struct kx_cpuid *out = gva_ptr(KX_CPUID_BASE);
	int r = cpuid_adopted ? 0 : cpuid_learn(t);
	if (r)
		return r;
	const struct kvm_cpuid2 *c = pvm.cpuid;
	/* Of a longer table the rest is left to the instruction. */
	out->n = c->nent < KX_CPUID_MAX ? c->nent : KX_CPUID_MAX;
	for (unsigned i = 0; i < out->n; i++) {
		const struct kvm_cpuid_entry2 *e = &c->entries[i];
		bool indexed = e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
		out->entry[i] = (struct kx_cpuid_entry){ e->function, e->index, indexed ? KX_CPUID_INDEXED : 0,
							 e->eax,      e->ebx,   e->ecx,
							 e->edx,      0 };
	}
	return 0;
}

void vcpu_start_state(struct thread *t, uint64_t fs_base)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = pvm.libos.exit, .rsp = t->area->frame, .rflags = RFLAGS_START };
	t->at_user = false;
	fixed_sregs(t, &s);
	s.fs.base = fs_base;
	vcpu_set_regs(t, &r, &s);
}

int vcpu_copy_fpu(struct thread *dst, struct thread *src)
{
	int size = ioctl(pvm.vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	if (size < (int)sizeof(struct kvm_xsave))
		size = sizeof(struct kvm_xsave);
	struct kvm_xsave *x = calloc(1, size);
	if (!x)
		return -ENOMEM;
	/* KVM_GET_XSAVE is right: no feature that we enable needs more than 4 KiB. */
	int r = ioctl(src->vcpu_fd, KVM_GET_XSAVE, x) < 0 || ioctl(dst->vcpu_fd, KVM_SET_XSAVE, x) < 0 ? -errno : 0;
	free(x);
	return r;
}

/*
 * KVM_RUN does not bring them: to read them all is some forty VMREADs, most of which are exits of their own where this host is
 * a guest itself, and nearly no exit needs any.
 */
int vcpu_sregs(struct thread *t, struct kvm_sregs *out)
{
	if (!t->sregs_known && ioctl(t->vcpu_fd, KVM_GET_SREGS, out) == 0)
		return 0;
	const int r = t->sregs_known ? 0 : -errno;
	*out = t->run->s.regs.sregs;
	return r;
}

uint64_t vcpu_fs_base(struct thread *t)
{
	struct kvm_sregs s;
	vcpu_sregs(t, &s);
	return s.fs.base;
}

/* The calling thread's, to be changed. */
static struct kvm_sregs *own_sregs(struct thread *t)
{
	if (!t->sregs_known && ioctl(t->vcpu_fd, KVM_GET_SREGS, &t->run->s.regs.sregs) < 0)
		pvm_panic("vCPU %d: cannot read segments: %s", t->index, strerror(errno));
	t->sregs_known = true;
	return &t->run->s.regs.sregs;
}

/* ---- running ------------------------------------------------------------------------------------------------- */

static void set_user_segments(struct thread *t)
{
	struct kvm_sregs *s = own_sregs(t);
	s->cs = user_cs;
	s->ss = user_ss;
	t->run->kvm_dirty_regs |= KVM_SYNC_X86_SREGS;
}

static void regs_changed(struct thread *t) { t->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS; }

/* The program was stopped at r (in its own code, not in the LibOS): save that in the frame, continue in the LibOS. */
static void enter_work(struct thread *t, const struct kvm_regs *r)
{
	struct kx_frame *f = frame_of(t);
	uint64_t rip = gmem_pc_to_original(r->rip);
	*f = (struct kx_frame){ r->r15, r->r14, r->r13, r->r12, r->rbp, r->rbx, r->r11, r->r10,    r->r9, r->r8,
				r->rdi, r->rsi, r->rdx, r->rcx, r->rax, -1ull,  rip,    r->rflags, r->rsp };
	t->area->resume = gmem_pc_to_resume(rip);
	struct kvm_regs *n = &t->run->s.regs.regs;
	memset(n, 0, sizeof *n);
	n->rip = pvm.libos.work;
	n->rsp = frame_gva(t);
	n->rflags = RFLAGS_START;
	regs_changed(t);
}

void vcpu_events_drop(struct thread *t)
{
	struct kvm_vcpu_events none = { 0 };
	ioctl(t->vcpu_fd, KVM_SET_VCPU_EVENTS, &none);
}

void vcpu_events_take(struct thread *t, struct kvm_vcpu_events *out)
{
	struct kvm_vcpu_events e;
	memset(out, 0, sizeof *out);
	if (ioctl(t->vcpu_fd, KVM_GET_VCPU_EVENTS, &e) == 0)
		out->exception = e.exception;
	vcpu_events_drop(t);
}

void vcpu_events_give(struct thread *t, const struct kvm_vcpu_events *e)
{
	if (e->exception.injected || e->exception.pending)
		ioctl(t->vcpu_fd, KVM_SET_VCPU_EVENTS, e);
}

/* Is what the guest has at rip an instruction that makes an exception or interrupt of its own accord: int3, int, into? */
static bool at_software_interrupt(uint64_t rip)
{
	uint8_t b;
	for (unsigned i = 0; i < INSN_MAX && !guest_read(&b, rip + i, 1); i++) {
		if (b == INT3 || b == INT || b == INTO)
			return true;
		if (!memchr(legacy_prefixes, b, sizeof legacy_prefixes) && (b & 0xf0) != REX)
			break;
	}
	return false;
}

/*
 * An exception is on its way into the guest: it belongs to the state as it is. KVM tells nobody of one by an instruction,
 * at which the vCPU still stands; where registers change it would be delivered with those. Dropped, it comes when the
 * instruction is executed again.
 */
static bool exception_pending(struct thread *t)
{
	struct kvm_vcpu_events e;
	if (ioctl(t->vcpu_fd, KVM_GET_VCPU_EVENTS, &e))
		return false;
	if (e.exception.injected || e.exception.pending)
		return true;
	if (at_software_interrupt(t->run->s.regs.regs.rip))
		vcpu_events_drop(t);
	return false;
}

/* KVM_RUN was interrupted and there is work: make the guest see it before its next instruction of its own. */
static void redirect_to_work(struct thread *t)
{
	struct kvm_regs *r = &t->run->s.regs.regs;
	uint64_t rip = r->rip;
	if (exception_pending(t) || rip == GMEM_SYS_VA(KX_SYS_BASE + GMEM_LSTAR))
		return; /* its exit comes first */
	if (in_libos(rip)) {
		if (rip >= pvm.libos.exit_begin && rip < pvm.libos.exit_end) {
			r->rip = pvm.libos.work;
			r->rsp = frame_gva(t);
			regs_changed(t);
		}
		return; /* elsewhere in the LibOS: it looks before it leaves */
	}
	if (gmem_pc_entering(rip)) /* on its way into the LibOS, with registers that the program may not see */
		return;
	struct kvm_regs user = *r;
	enter_work(t, &user);
}

/*
 * A trapped `syscall`: rcx and r11 are as the instruction left them. With hardware support the `hlt` at LSTAR exits;
 * software KVM arrives at LSTAR still in ring 3, where the page can't be fetched, so an exception tells of it.
 */
static void slow_syscall(struct thread *t)
{
	struct kvm_regs *r = &t->run->s.regs.regs;
	set_user_segments(t);
	t->nr_slow++;
	t->area->slow = 1;
	r->rip = pvm.libos.entry;
	r->rflags = (r->r11 & 0x244dd5) | 0x202; /* what a program may set: the guest can get here with any r11 */
	r->r11 = r->rcx;
	regs_changed(t);
}

/* guest_read() has no way into the LibOS, which the guest can't write to. */
static bool at_gate(uint64_t rip) { return in_libos(rip) && *(const uint8_t *)gva_ptr(rip) == OUT_EAX_DX; }

void vcpu_behind_gate(struct kvm_regs *r)
{
	if (at_gate(r->rip))
		r->rip++;
}

/*
 * Processors that QEMU emulates look into the I/O bitmap of a TSS only that is called available, and refuse the gate's
 * `out` otherwise. True: it is called so from now on (enter_guest()), to be tried again. KVM may read it back as busy.
 */
static bool gate_refused(struct thread *t, const struct kvm_regs *r)
{
	const uint16_t port = (uint16_t)r->rdx;
	if (t->tss_available || !at_gate(r->rip) || port < KX_PORT_HCALL || port + 3 > KX_PORT_LAST)
		return false;
	t->tss_available = true;
	tss_type = TSS_AVAILABLE;
	return true;
}

static void exception(struct thread *t, unsigned vec)
{
	static const uint32_t with_error = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;
	struct kvm_regs *r = &t->run->s.regs.regs;
	struct kvm_sregs *s = own_sregs(t);
	uint64_t block = block_of[t->index], sp = r->rsp - 0xffffffff80000000ull + KX_SYS_BASE, f[6];
	int has_err = vec < 32 && (with_error >> vec & 1);
	unsigned words = 5 + has_err;
	if (sp < block || sp + words * 8 > block + BLOCK_STACK_TOP)
		pvm_panic("vCPU %d: exception %u with a bad stack", t->index, vec);
	memcpy(f, gva_ptr(sp), words * 8);
	uint64_t err = has_err ? f[0] : 0, *frame = f + has_err;
	if ((frame[1] & 3) != 3)
		pvm_panic("vCPU %d: exception %u in ring 0 at %#llx", t->index, vec, (unsigned long long)frame[0]);
	r->rip = frame[0];
	r->rflags = frame[2];
	r->rsp = frame[3];
	set_user_segments(t);
	regs_changed(t);
	if (frame[0] == GMEM_SYS_VA(KX_SYS_BASE + GMEM_LSTAR)) {
		slow_syscall(t);
		return;
	}
	if (vec == 13 && gate_refused(t, r))
		return;
	t->nr_faults++;
	uint64_t cr2 = s->cr2;
	struct kvm_regs user = *r;
	if (fault_exception(t, &user, vec, err, cr2, s->fs.base)) {
		enter_work(t, &user);
	} else {
		*r = user;
		t->at_user = true;
	}
}

static void halted(struct thread *t)
{
	uint64_t va = t->run->s.regs.regs.rip - 1, stubs = GMEM_SYS_VA(KX_SYS_BASE + GMEM_STUBS),
		 lstar = GMEM_SYS_VA(KX_SYS_BASE + GMEM_LSTAR);
	if (va >= lstar && va < lstar + 16)
		slow_syscall(t);
	else if (va >= stubs && va < stubs + 4096)
		exception(t, (va - stubs) / 16);
	else
		pvm_panic("vCPU %d: halted at %#llx", t->index, (unsigned long long)va);
}

static void io_exit(struct thread *t)
{
	struct kvm_run *run = t->run;
	if (run->io.port == KX_PORT_HCALL && run->io.direction == KVM_EXIT_IO_OUT) {
		hcall_dispatch(t);
		return;
	}
	if (run->io.port == KX_PORT_RETURN && (update_returned(t) || tsc_differs(t)))
		return;
	if (run->io.port == KX_PORT_PANIC) {
		char msg[128] = "?";
		uint64_t at = t->area->panic_msg; /* a constant of the LibOS's image */
		if (at >= KX_LIBOS_BASE && at < KX_VDSO_BASE - sizeof msg)
			memcpy(msg, gva_ptr(at), sizeof msg - 1);
		for (char *p = msg; *p; p++)
			if (*p < ' ' || *p > '~')
				*p = '?';
		pvm_panic("LibOS: %s", msg);
	}
	pvm_panic("vCPU %d: I/O on port %#x", t->index, run->io.port);
}

static void access_refused(struct thread *t)
{
	struct kvm_regs *r = &t->run->s.regs.regs;
	struct kvm_sregs *s = own_sregs(t);
	t->nr_faults++;
	if ((s->cs.selector & 3) != 3)
		pvm_panic("vCPU %d: memory fault in ring 0 at %#llx", t->index, (unsigned long long)r->rip);
	struct kvm_regs user = *r;
	if (fault_access(t, &user, s->fs.base, s->gs.base)) {
		enter_work(t, &user);
	} else {
		t->at_user = true;
		if (memcmp(r, &user, sizeof user)) {
			*r = user;
			regs_changed(t);
		}
	}
}

/* Registers after an exit that KVM_RUN reports by errno: they are not synced then. */
static void fetch_regs(struct thread *t)
{
	if (ioctl(t->vcpu_fd, KVM_GET_REGS, &t->run->s.regs.regs) < 0)
		pvm_panic("vCPU %d: cannot read registers: %s", t->index, strerror(errno));
}

static uint64_t lacks_since; /* when KVM_RUN began to lack a process; 0: it does not */

/* KVM makes a thread of its own at a VM's first run: at the limit of processes that fails. Others may end in a moment. */
static void lacks_process(void)
{
	const uint64_t now = now_ns();
	birth_lacks();
	if (!lacks_since)
		lacks_since = now;
	if (now - lacks_since < PATIENCE_NS) {
		host_call(SYS_nanosleep, (long)&(struct timespec){ 0, 1000000 }, 0, 0, 0, 0, 0);
		return;
	}
	const char *why = "no VM: the limit of processes is reached (raise `ulimit -u`, or pids.max of the cgroup)";
	if (!pvm.is_child)
		pvm_panic("%s", why);
	kx_log(KX_LOG_ERROR, "vcpu", "%s", why);
	pvm_die_by_signal(SIGKILL);
}

/* Ring 0's stack has room for one exception: each is delivered at its top. */
static _Noreturn void lost(struct thread *t, const struct vcpu_entered *entered)
{
	struct vcpu_lost l = { .entered = *entered,
			       .last_hcall = t->nr_hcalls ? t->last_hcall : -1ull,
			       .regs = t->run->s.regs.regs,
			       .sregs = *own_sregs(t) };
	char text[700];
	memcpy(&l.frame, gva_ptr(block_of[t->index] + BLOCK_STACK_TOP - sizeof l.frame), sizeof l.frame);
	vcpu_lost_text(text, sizeof text, &l);
	pvm_panic("vCPU %d: %s", t->index, text);
}

static void enter_guest(struct thread *t)
{
	struct kvm_run *run = t->run;
	const struct kvm_regs *to = &run->s.regs.regs;
	const struct vcpu_entered entered = { to->rip, to->rsp, to->rflags };
	t->gate_call = false;
	run->s.regs.sregs.tr.type = tss_type;
	int r = ioctl(t->vcpu_fd, KVM_RUN, 0), e = errno;
	if (lacks_since && !(r < 0 && e == EAGAIN))
		lacks_since = 0;
	/* A registers' copy that is marked was not taken over. */
	const bool ran = r == 0 || !(run->kvm_dirty_regs && (e == EINTR || e == EAGAIN));
	if (ran)
		t->sregs_known = false;
	if (r < 0 && ran)
		fetch_regs(t);
	t->gate_call = r == 0 && run->exit_reason == KVM_EXIT_IO && run->io.port == KX_PORT_HCALL;
	update_left(t);
	rseq_leave(t);
	errno = e;
	t->nr_exits++;
	if (r == 0) {
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			io_exit(t);
			return;
		case KVM_EXIT_HLT:
			halted(t);
			return;
		case KVM_EXIT_INTR:
			return;
		case KVM_EXIT_SHUTDOWN:
			lost(t, &entered);
		case KVM_EXIT_INTERNAL_ERROR:
			pvm_panic("vCPU %d: KVM internal error %u at %#llx", t->index, run->internal.suberror,
				  (unsigned long long)run->s.regs.regs.rip);
		case KVM_EXIT_FAIL_ENTRY:
			pvm_panic("vCPU %d: entry failed: %#llx", t->index,
				  (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		case KVM_EXIT_MMIO:
			pvm_panic("vCPU %d: MMIO at %#llx", t->index, (unsigned long long)run->mmio.phys_addr);
		default:
			pvm_panic("vCPU %d: exit reason %u", t->index, run->exit_reason);
		}
	}
	if (errno == EINTR || errno == EAGAIN) {
		/* The registers that it was given KVM has not taken over then. It takes back the mark when it has. */
		if (errno == EAGAIN)
			lacks_process();
		sig_prepare(t);
		if (!t->area->work)
			t->at_user = true; /* work that comes from here on stops it again */
		else if ((own_sregs(t)->cs.selector & 3) == 3)
			redirect_to_work(t);
		return;
	}
	if (errno == EFAULT || errno == EHWPOISON) {
		access_refused(t);
		return;
	}
	pvm_panic("vCPU %d: KVM_RUN: %s", t->index, strerror(errno));
}

void vcpu_step(struct thread *t)
{
	/* Cleared first: a handler that comes later sets it again and KVM_RUN returns at once. */
	t->run->immediate_exit = 0;
	t->kicked = 0;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	sig_prepare(t);
	if (t->acc_signo && !t->area->sig.signo)
		return;
	if (update_poked() || pipe_poked() || update_gate(t) || update_call(t))
		return;
	rseq_enter(t);
	if (t->area->work && t->at_user) /* the program's own code is what runs next: stop there first */
		t->run->immediate_exit = 1;
	t->at_user = false;
	if (t->pid == pvm.pid) /* not with a lock that a child of vfork could die with */
		timepage_update(pvm.vvar);
	enter_guest(t);
}

void vcpu_loop(struct thread *t)
{
	for (;;)
		vcpu_step(t);
}
