/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signal frames, sigreturn, masks, actions. The frame is Linux's struct rt_sigframe for x86-64 (arch/x86/kernel/
 * signal_64.c), with the XSAVE area above it. The monitor hands one signal at a time over in kx_thread.sig.
 */
#include "libos.h"

#define SA_ONSTACK 0x08000000ull
#define SA_RESTART 0x10000000ull
#define SA_NODEFER 0x40000000ull
#define SA_RESETHAND 0x80000000ull
#define SA_RESTORER 0x04000000ull
#define SA_NOCLDSTOP 1ull
#define SA_NOCLDWAIT 2ull
#define SIG_DFL 0
#define SIG_IGN 1
#define SS_ONSTACK 1u
#define SS_DISABLE 2u
#define SS_AUTODISARM (1u << 31)
#define MINSIGSTKSZ 2048
#define FLAG_TF 0x100ull
#define FLAG_DF 0x400ull
#define FLAG_RF 0x10000ull
/* What a program may change by a frame: AC OF DF TF SF ZF AF PF CF. */
#define FLAGS_USER 0x50dd5ull
#define RED_ZONE 128
#define FP_MAGIC1 0x46505853u
#define FP_MAGIC2 0x46505845u
#define UC_FLAGS 7 /* UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */

struct stack {
	uint64_t sp;
	uint32_t flags, pad;
	uint64_t size;
};

struct sigcontext {
	uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
	uint16_t cs, gs, fs, ss;
	uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
};

struct ucontext {
	uint64_t flags, link;
	struct stack stack;
	struct sigcontext mc;
	uint64_t sigmask;
};

struct rt_sigframe {
	uint64_t pretcode;
	struct ucontext uc;
	uint8_t info[128];
};
_Static_assert(sizeof(struct sigcontext) == 256 && sizeof(struct ucontext) == 304, "Linux's layout");

/* Bytes 464..511 of the XSAVE area. */
struct fp_sw {
	uint32_t magic1, extended_size;
	uint64_t xfeatures;
	uint32_t xstate_size, pad[7];
};

/* XRSTOR from here gives the initial state: XSTATE_BV is 0; FCW and MXCSR as at exec. */
static const struct {
	uint16_t fcw, fsw;
	uint8_t pad[20];
	uint32_t mxcsr, mxcsr_mask;
	uint8_t rest[544];
} __attribute__((aligned(64))) init_fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 };
_Static_assert(sizeof init_fpu == 576, "legacy area and header");

uint64_t site_resume(uint64_t rip)
{
	const struct kx_site *sites = (const struct kx_site *)KX_SITES_BASE;
	for (;;) {
		uint64_t seq = __atomic_load_n(&SHARED->sites_seq, __ATOMIC_ACQUIRE), out = rip;
		size_t lo = 0, hi = SHARED->nr_sites;
		while (lo < hi) {
			size_t mid = (lo + hi) / 2;
			if (sites[mid].start <= rip)
				lo = mid + 1;
			else
				hi = mid;
		}
		if (lo) {
			const struct kx_site *s = &sites[lo - 1];
			uint64_t off = rip - s->start;
			for (unsigned i = 0; off && off < s->len && i < s->n && i < 6; i++)
				if (s->map[i].win == off)
					out = s->tramp + s->map[i].tramp;
		}
		if (!(seq & 1) && __atomic_load_n(&SHARED->sites_seq, __ATOMIC_ACQUIRE) == seq)
			return out;
	}
}

/* ---- masks and actions ------------------------------------------------------------------------------------------- */

/* False: a signal that mask blocks came before; it must be delivered, then this be done again. */
static bool set_mask(struct kx_thread *t, uint64_t mask)
{
	uint64_t old = t->sigmask;
	mask &= ~(SIGBIT(9) | SIGBIT(19));
	/* What the host holds back for us and we no longer do; queues that must stay in order. */
	if ((t->host_mask & ~mask) || (mask & SHARED->rt_handlers & ~t->host_mask))
		return hypercall(t, HC_sigmask_sync, mask, 0, 0, 0, 0, 0) == 0;
	t->sigmask = mask;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	/* A signal that came between the two looks was blocked yet, and the host blocks it from then on. */
	if (!(*(volatile uint64_t *)&t->host_mask & ~mask))
		return true;
	t->sigmask = old;
	return hypercall(t, HC_sigmask_sync, mask, 0, 0, 0, 0, 0) == 0;
}

int64_t sys_rt_sigprocmask(struct kx_thread *t, struct kx_frame *f)
{
	uint64_t set, old = t->sigmask;
	if (f->r10 != 8)
		return -KX_EINVAL;
	if (f->rsi) {
		if (user_read(&set, f->rsi, 8))
			return -KX_EFAULT;
		switch ((int)f->rdi) {
		case 0:
			set |= old;
			break;
		case 1:
			set = old & ~set;
			break;
		case 2:
			break;
		default:
			return -KX_EINVAL;
		}
		if (!set_mask(t, set))
			return -KX_ERESTART_ALWAYS;
	}
	return f->rdx ? user_write(f->rdx, &old, 8) : 0;
}

/* What of an action the host has to know. */
static uint64_t host_view(const struct kx_sigaction *a)
{
	return (a->handler <= SIG_IGN ? a->handler : 2) | (a->flags & (SA_NOCLDSTOP | SA_NOCLDWAIT)) << 8;
}

int64_t sys_rt_sigaction(struct kx_thread *t, struct kx_frame *f)
{
	int s = (int)f->rdi;
	struct kx_sigaction act, old;
	int64_t r = 0;
	if (f->r10 != 8 || s < 1 || s > 64)
		return -KX_EINVAL;
	old = ACTION(t, s);
	if (f->rsi) {
		if (s == 9 || s == 19)
			return -KX_EINVAL;
		if (user_read(&act, f->rsi, sizeof act))
			return -KX_EFAULT;
		act.mask &= ~(SIGBIT(9) | SIGBIT(19));
		ACTION(t, s) = act;
		if (s > 33 && act.handler > SIG_IGN)
			__atomic_or_fetch(&SHARED->rt_handlers, SIGBIT(s), __ATOMIC_RELAXED);
	}
	/* Before the monitor is told, since it may trace the call. On Linux, too, the action changes when this fails. */
	if (f->rdx)
		r = user_write(f->rdx, &old, sizeof old);
	if (f->rsi && host_view(&act) != host_view(&old)) {
		int64_t host = hypercall(t, 13, s, f->rsi, f->rdx, 8, 0, 0);
		if (host) {
			ACTION(t, s) = old;
			return host;
		}
	}
	return r;
}

static bool on_altstack(const struct kx_thread *t, uint64_t sp)
{
	return !(t->altstack_flags & SS_AUTODISARM) && t->altstack_size && sp > t->altstack_sp &&
	       sp - t->altstack_sp <= t->altstack_size;
}

static uint32_t altstack_state(const struct kx_thread *t, uint64_t sp)
{
	return !t->altstack_size ? SS_DISABLE : on_altstack(t, sp) ? SS_ONSTACK : 0;
}

static int64_t altstack_set(struct kx_thread *t, const struct stack *s, uint64_t sp)
{
	uint32_t mode = s->flags & ~SS_AUTODISARM;
	if (on_altstack(t, sp))
		return -KX_EPERM;
	if (mode != 0 && mode != SS_ONSTACK && mode != SS_DISABLE)
		return -KX_EINVAL;
	if (mode == SS_DISABLE) {
		t->altstack_sp = t->altstack_size = 0;
	} else {
		if (s->size < MINSIGSTKSZ)
			return -KX_ENOMEM;
		t->altstack_sp = s->sp;
		t->altstack_size = s->size;
	}
	t->altstack_flags = s->flags;
	return 0;
}

int64_t sys_sigaltstack(struct kx_thread *t, struct kx_frame *f)
{
	struct stack new, old = { t->altstack_sp, altstack_state(t, f->rsp) | (t->altstack_flags & SS_AUTODISARM), 0,
				  t->altstack_size };
	if (f->rdi) {
		if (user_read(&new, f->rdi, sizeof new))
			return -KX_EFAULT;
		int64_t r = altstack_set(t, &new, f->rsp);
		if (r)
			return r;
	}
	return f->rsi ? user_write(f->rsi, &old, sizeof old) : 0;
}

/* ---- frames -------------------------------------------------------------------------------------------------------- */

static int save_fpu(uint64_t area)
{
	static const uint8_t zero[64];
	uint64_t size = SHARED->xsave_size;
	struct fp_sw sw = { FP_MAGIC1, (uint32_t)size + 4, SHARED->xfeatures, (uint32_t)size, { 0 } };
	uint32_t magic2 = FP_MAGIC2;
	uint64_t there; /* XSTATE_BV */
	/* The header first: XSAVE leaves most of it alone. */
	if (user_write(area + 512, zero, 64) || uaccess_xsave((void *)area, SHARED->xfeatures) ||
	    user_read(&there, area + 512, 8))
		return -KX_EFAULT;
	/*
	 * x87 and SSE always, as Linux: a handler may change them without a look at the header, which lacks what was in its
	 * initial state. XSAVE has written that, too.
	 */
	there |= 3;
	if (user_write(area + 512, &there, 8) || user_write(area + 464, &sw, sizeof sw) ||
	    user_write(area + size, &magic2, 4))
		return -KX_EFAULT;
	return 0;
}

static int restore_fpu(uint64_t area)
{
	struct fp_sw sw;
	uint64_t all = SHARED->xfeatures, use = 3;
	if (!area)
		return uaccess_xrstor(&init_fpu, all);
	if ((area & 63) || !user_ok(area, 8192) || user_read(&sw, area + 464, sizeof sw))
		return -KX_EFAULT;
	if (sw.magic1 == FP_MAGIC1 && sw.xstate_size >= 576 && sw.xstate_size <= SHARED->xsave_size)
		use = sw.xfeatures & all;
	if (use != all && uaccess_xrstor(&init_fpu, all))
		return -KX_EFAULT;
	return uaccess_xrstor((const void *)area, use);
}

static void to_context(struct sigcontext *m, const struct kx_frame *f)
{
	m->r8 = f->r8;
	m->r9 = f->r9;
	m->r10 = f->r10;
	m->r11 = f->r11;
	m->r12 = f->r12;
	m->r13 = f->r13;
	m->r14 = f->r14;
	m->r15 = f->r15;
	m->rdi = f->rdi;
	m->rsi = f->rsi;
	m->rbp = f->rbp;
	m->rbx = f->rbx;
	m->rdx = f->rdx;
	m->rax = f->rax;
	m->rcx = f->rcx;
	m->rsp = f->rsp;
	m->rip = f->rip;
	m->eflags = f->rflags;
	m->cs = 0x33;
	m->ss = 0x2b;
}

static void from_context(struct kx_frame *f, const struct sigcontext *m)
{
	f->r8 = m->r8;
	f->r9 = m->r9;
	f->r10 = m->r10;
	f->r11 = m->r11;
	f->r12 = m->r12;
	f->r13 = m->r13;
	f->r14 = m->r14;
	f->r15 = m->r15;
	f->rdi = m->rdi;
	f->rsi = m->rsi;
	f->rbp = m->rbp;
	f->rbx = m->rbx;
	f->rdx = m->rdx;
	f->rax = m->rax;
	f->rcx = m->rcx;
	f->rsp = m->rsp;
	f->rip = m->rip;
	f->rflags = (f->rflags & ~FLAGS_USER) | (m->eflags & FLAGS_USER);
}

static int make_frame(struct kx_thread *t, struct kx_frame *f, const struct kx_signal *s, const struct kx_sigaction *a)
{
	struct rt_sigframe fr;
	uint64_t sp = f->rsp - RED_ZONE, fp;
	bool entering_alt = false;
	__builtin_memset(&fr, 0, sizeof fr);
	if ((a->flags & SA_ONSTACK) && t->altstack_size && !on_altstack(t, f->rsp)) {
		sp = t->altstack_sp + t->altstack_size;
		entering_alt = true;
	}
	bool nested_alt = on_altstack(t, f->rsp) || entering_alt;
	fp = (sp - SHARED->xsave_size - 4) & ~63ull;
	sp = ((fp - sizeof fr) & ~15ull) - 8;
	/* A frame that would run out of the alternate stack is a fault, not an overwrite of what is below. */
	if (nested_alt && !(t->altstack_flags & SS_AUTODISARM) &&
	    (sp < t->altstack_sp || sp > t->altstack_sp + t->altstack_size))
		return -KX_EFAULT;
	fr.pretcode = a->restorer;
	fr.uc.flags = UC_FLAGS;
	fr.uc.stack = (struct stack){ t->altstack_sp, altstack_state(t, f->rsp) | (t->altstack_flags & SS_AUTODISARM),
				      0, t->altstack_size };
	to_context(&fr.uc.mc, f);
	fr.uc.mc.err = s->err;
	fr.uc.mc.trapno = s->trapno;
	fr.uc.mc.cr2 = s->cr2;
	fr.uc.mc.fpstate = fp;
	fr.uc.sigmask = t->has_saved_mask ? t->saved_mask : t->sigmask;
	fr.uc.mc.oldmask = fr.uc.sigmask;
	__builtin_memcpy(fr.info, s->info, sizeof fr.info);
	if (!user_ok(fp, 8192) || save_fpu(fp) || user_write(sp, &fr, sizeof fr))
		return -KX_EFAULT;
	if (t->altstack_flags & SS_AUTODISARM && entering_alt) {
		t->altstack_sp = t->altstack_size = 0;
		t->altstack_flags = SS_DISABLE;
	}
	uaccess_xrstor(&init_fpu, SHARED->xfeatures);
	f->rdi = s->signo;
	f->rsi = sp + __builtin_offsetof(struct rt_sigframe, info);
	f->rdx = sp + __builtin_offsetof(struct rt_sigframe, uc);
	f->rax = 0;
	f->rsp = sp;
	f->rip = a->handler;
	f->rflags &= ~(FLAG_TF | FLAG_DF | FLAG_RF);
	t->resume = site_resume(f->rip);
	return 0;
}

/* One signal. True when the program now is at its handler. */
static bool deliver_one(struct kx_thread *t, struct kx_frame *f, int64_t *ret)
{
	struct kx_signal s = t->sig;
	int signo = s.signo;
	if (signo < 1 || signo > 64) {
		t->sig.signo = 0;
		return false;
	}
	/* If it is blocked by now, it came before the call that blocks it was over: its handler runs before that ends. */
	t->sig.signo = 0;
	struct kx_sigaction a = ACTION(t, signo);
	if (a.handler <= SIG_IGN) {
		if (a.handler != SIG_IGN || s.forced)
			hypercall(t, HC_sig_default, signo, s.forced, 0, 0, 0, 0);
		set_mask(t, t->sigmask); /* the host has blocked what a handler's mask would have */
		return false;
	}
	if (*ret == -KX_ERESTART || *ret == -KX_ERESTART_NOHAND || *ret == -KX_ERESTART_ALWAYS) {
		if (*ret == -KX_ERESTART_ALWAYS || (*ret == -KX_ERESTART && (a.flags & SA_RESTART))) {
			f->rip -= 2;
			f->rax = f->orig_rax;
		} else {
			f->rax = -KX_EINTR;
		}
		*ret = 0;
	}
	rseq_fixup(t, f);
	if (make_frame(t, f, &s, &a))
		hypercall(t, HC_sig_stack_fault, signo, 0, 0, 0, 0, 0);
	uint64_t mask = t->sigmask | a.mask;
	if (!(a.flags & SA_NODEFER))
		mask |= SIGBIT(signo);
	t->has_saved_mask = 0;
	t->sigmask = mask & ~(SIGBIT(9) | SIGBIT(19));
	if (a.flags & SA_RESETHAND) {
		ACTION(t, signo).handler = SIG_DFL;
		hypercall(t, 13, signo, 0, 0, 8, 0, 0);
	}
	return true;
}

bool signals_deliver(struct kx_thread *t, struct kx_frame *f, int64_t ret)
{
	bool delivered = false;
	for (;;) {
		uint32_t work = __atomic_exchange_n(&t->work, 0, __ATOMIC_ACQ_REL);
		if (!work) {
			/* No handler ran: the mask of before comes back. */
			if (!t->has_saved_mask || set_mask(t, t->saved_mask))
				break;
			continue;
		}
		if (work & KX_WORK_RSEQ)
			rseq_work(t, f);
		if (t->sig.signo)
			delivered |= deliver_one(t, f, &ret);
		if (work & KX_WORK_MORE)
			hypercall(t, HC_sig_next, 0, 0, 0, 0, 0, 0);
	}
	t->has_saved_mask = 0;
	return delivered;
}

void sys_rt_sigreturn(struct kx_thread *t, struct kx_frame *f)
{
	struct rt_sigframe fr;
	uint64_t at = f->rsp - 8;
	if (user_read(&fr, at, sizeof fr) || restore_fpu(fr.uc.mc.fpstate)) {
		hypercall(t, HC_sig_stack_fault, 11, 0, 0, 0, 0, 0);
		return;
	}
	from_context(f, &fr.uc.mc);
	f->orig_rax = -1ull;
	t->resume = site_resume(f->rip);
	altstack_set(t, &fr.uc.stack, f->rsp);
	if (!set_mask(t, fr.uc.sigmask)) { /* it is set once the signals that came before are delivered */
		t->saved_mask = fr.uc.sigmask;
		t->has_saved_mask = 1;
	}
}
