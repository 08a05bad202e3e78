/* SPDX-License-Identifier: Apache-2.0 */
/* System calls: what can be answered here is; the rest goes to the monitor. */
#include "ktime.h"
#include "libos.h"
#include "random.h"

#define NR_sched_yield 24
#define NR_getpid 39
#define NR_gettimeofday 96
#define NR_getppid 110
#define NR_futex 202
#define NR_futex_waitv 449

int64_t hypercall(struct kx_thread *t, uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
		  uint64_t f)
{
	int64_t ret;
	t->call = (struct kx_call){ nr, { a, b, c, d, e, f }, 0 };
	if (t->hand.since)
		futex_hand_learn(t);
	if (!t->hand.owed && serve_try(t, &ret))
		return ret;
	hypercall_exit();
	return t->call.ret;
}

_Noreturn void libos_panic(const char *msg)
{
	current()->panic_msg = (uint64_t)msg;
	for (;;)
		__asm__ volatile("out %%eax, %%dx" : : "a"(0), "d"(KX_PORT_PANIC) : "memory");
}

int user_read(void *dst, uint64_t src, size_t len)
{
	return user_ok(src, len) ? uaccess_copy(dst, (const void *)src, len) : -KX_EFAULT;
}

int user_write(uint64_t dst, const void *src, size_t len)
{
	return user_ok(dst, len) ? uaccess_copy((void *)dst, src, len) : -KX_EFAULT;
}

static void trace(struct kx_thread *t, struct kx_frame *f, int64_t ret);

/* Answered here after all, and told of: not for who looks at call.nr to do that. */
__attribute__((noinline)) static bool library_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret)
{
	if (!libfile_call(f, ret) && !libstart_call(t, f, ret))
		return false;
	if (SHARED->trace)
		trace(t, f, *ret);
	SHARED->local_calls++;
	t->call.nr = f->orig_rax;
	return true;
}

int64_t forward(struct kx_thread *t, struct kx_frame *f)
{
	int64_t r;
	if (((const struct kx_libfile *)KX_LIBFILE_BASE)->on && library_call(t, f, &r))
		return r;
	return hypercall(t, f->orig_rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);
}

/* ---- time ------------------------------------------------------------------------------------------------------ */

static int64_t sys_clock_gettime(struct kx_thread *t, struct kx_frame *f)
{
	int64_t ts[2];
	if (kt_clock_gettime((int)f->rdi, &ts[0], &ts[1]))
		return forward(t, f);
	return user_write(f->rsi, ts, sizeof ts);
}

static int64_t sys_gettimeofday(struct kx_thread *t, struct kx_frame *f)
{
	int64_t tv[2];
	if (f->rsi || kt_clock_gettime(0, &tv[0], &tv[1]))
		return forward(t, f);
	tv[1] /= 1000;
	return f->rdi ? user_write(f->rdi, tv, sizeof tv) : 0;
}

static int64_t sys_time(struct kx_thread *t, struct kx_frame *f)
{
	int64_t ts[2];
	if (kt_clock_gettime(0, &ts[0], &ts[1]))
		return forward(t, f);
	if (f->rdi && user_write(f->rdi, &ts[0], 8))
		return -KX_EFAULT;
	return ts[0];
}

static int64_t sys_getcpu(struct kx_thread *t, struct kx_frame *f)
{
	uint32_t node = 0;
	if ((f->rdi && user_write(f->rdi, &t->cpu, 4)) || (f->rsi && user_write(f->rsi, &node, 4)))
		return -KX_EFAULT;
	return 0;
}

/* ---- random ---------------------------------------------------------------------------------------------------- */

static int seed(void *buf, size_t len) { return (int)hypercall(current(), HC_seed, (uint64_t)buf, len, 0, 0, 0, 0); }

static int64_t sys_getrandom(struct kx_thread *t, struct kx_frame *f)
{
	uint8_t block[256];
	uint64_t done = 0, len = f->rsi;
	if (f->rdx & ~7ull || (f->rdx & 6) == 6)
		return -KX_EINVAL;
	if (len > 0x7ffff000)
		len = 0x7ffff000;
	if (!user_ok(f->rdi, len))
		return -KX_EFAULT;
	if (len > 65536) /* so much at once is cheaper by the host */
		return forward(t, f);
	while (done < len) {
		size_t n = len - done < sizeof block ? len - done : sizeof block;
		if (rand_fill(t, SHARED, block, n, seed) < 0)
			return forward(t, f);
		if (user_write(f->rdi + done, block, n))
			return done ? (int64_t)done : -KX_EFAULT;
		done += n;
	}
	__builtin_memset(block, 0, sizeof block);
	__asm__ volatile("" : : "r"(block) : "memory");
	return done;
}

/* ---- dispatch --------------------------------------------------------------------------------------------------- */

static int64_t sys_arch_prctl(struct kx_frame *f)
{
	uint64_t base;
	switch (f->rdi) {
	case 0x1002: /* ARCH_SET_FS */
		if (f->rsi >= 0x7ffffffff000)
			return -KX_EPERM;
		__asm__ volatile("wrfsbase %0" : : "r"(f->rsi));
		return 0;
	case 0x1003: /* ARCH_GET_FS */
		__asm__ volatile("rdfsbase %0" : "=r"(base));
		return user_write(f->rsi, &base, 8);
	case 0x1011: /* ARCH_GET_CPUID */
		return 1;
	}
	return -KX_EINVAL; /* GS belongs to the LibOS */
}

static int64_t sys_sched_yield(struct kx_thread *t, struct kx_frame *f)
{
	if (++t->yield_count % 16 == 0 || t->hand.owed)
		return forward(t, f);
	__builtin_ia32_pause();
	return 0;
}

/* Answer f's call here if possible: true and *ret set. */
static bool local(struct kx_thread *t, struct kx_frame *f, int64_t *ret)
{
	switch (f->orig_rax) {
	case NR_getpid:
		*ret = t->pid;
		return true;
	case NR_getppid:
		if (t->vfork || SHARED->ppid_stale)
			return false;
		SHARED->ppid_asked++;
		*ret = SHARED->ppid;
		return true;
	case 186:
		*ret = t->tid;
		return true;
	case 102:
	case 104:
	case 107:
	case 108:
		if (t->vfork) /* the shared page speaks of the parent */
			return false;
		*ret = f->orig_rax == 102   ? SHARED->uid
		       : f->orig_rax == 104 ? SHARED->gid
		       : f->orig_rax == 107 ? SHARED->euid
					    : SHARED->egid;
		return true;
	case 158:
		*ret = sys_arch_prctl(f);
		return true;
	case 14:
		*ret = sys_rt_sigprocmask(t, f);
		return true;
	case 131:
		*ret = sys_sigaltstack(t, f);
		return true;
	case 219:
		*ret = -KX_EINTR;
		return true;
	case 273: /* set_robust_list, which libc calls first in a child, or a thread: as the monitor expects it */
		if (!t->robust_ready || f->rdi != t->robust_ready || f->rsi != 24)
			return false;
		t->robust_ready = 0;
		*ret = 0;
		return true;
	}
	return (SHARED->batch && batch_call(t, f, ret)) || (SHARED->dgram && dgram_call(t, f, ret));
}

/* As local(), but these may end up in the monitor. */
static int64_t call(struct kx_thread *t, struct kx_frame *f, bool *is_local)
{
	int64_t r;
	t->call.nr = ~0ull;
	switch (f->orig_rax) {
	case 0:
	case 1:
	case 19:
	case 20:
	case 44:
	case 45:
	case 46:
	case 47:
		if (!pipe_call(t, f, &r))
			r = forward(t, f);
		break;
	case 65:
	case 69:
	case 70:
	case 220:
	case 242:
	case 243:
		r = ipc_call(t, f);
		break;
	case 13:
		r = sys_rt_sigaction(t, f);
		break;
	case 62:
	case 234:
		r = sys_kill(t, f);
		break;
	case 128:
		r = sys_rt_sigtimedwait(t, f);
		break;
	case NR_sched_yield:
		r = sys_sched_yield(t, f);
		break;
	case NR_gettimeofday:
		r = sys_gettimeofday(t, f);
		break;
	case 201:
		r = sys_time(t, f);
		break;
	case NR_futex:
		r = sys_futex(t, f);
		break;
	case NR_futex_waitv:
		r = sys_futex_waitv(t, f);
		break;
	case 228:
		r = sys_clock_gettime(t, f);
		break;
	case 309:
		r = sys_getcpu(t, f);
		break;
	case 318:
		r = sys_getrandom(t, f);
		break;
	case 334:
		r = sys_rseq(t, f);
		break;
	default:
		*is_local = false;
		/* The hypercalls of our own are no system calls. */
		return f->orig_rax < HC_sig_next ? forward(t, f) : -KX_ENOSYS;
	}
	*is_local = t->call.nr != f->orig_rax;
	return r;
}

static void trace(struct kx_thread *t, struct kx_frame *f, int64_t ret)
{
	uint64_t args[6] = { f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9 };
	hypercall(t, HC_trace, f->orig_rax, (uint64_t)args, ret, 0, 0, 0);
}

/* From entry.S: the program's system call. */
void libos_syscall(struct kx_frame *f)
{
	struct kx_thread *t = current();
	int64_t ret;
	f->orig_rax = (int64_t)(int32_t)f->orig_rax; /* as the kernel: the number is an int */
	if (f->orig_rax == 15) {
		sys_rt_sigreturn(t, f);
		goto out;
	}
	/* A signal that is there already came after the instruction: it counts as one that comes during the call. */
	for (;;) {
		bool is_local = true;
		if (!local(t, f, &ret))
			ret = call(t, f, &is_local);
		if (is_local && SHARED->trace && ret != -KX_ERESTART_ALWAYS)
			trace(t, f, ret);
		if (is_local)
			SHARED->local_calls++;
		if (ret != -KX_ERESTART && ret != -KX_ERESTART_NOHAND && ret != -KX_ERESTART_ALWAYS)
			break;
		if (signals_deliver(t, f, ret))
			goto out;
		/* Nothing was delivered after all: as if it had not been interrupted. */
	}
	f->rax = ret;
out:
	t->slow = 0;
}

/* From entry.S: the program's `cpuid`. */
void libos_cpuid(struct kx_frame *f)
{
	const struct kx_cpuid *c = (const struct kx_cpuid *)KX_CPUID_BASE;
	const struct kx_cpuid_entry *e = c->entry, *end = e + (c->n < KX_CPUID_MAX ? c->n : KX_CPUID_MAX);
	uint32_t function = f->rax, index = f->rcx, a = function, b, ci = index, d;
	SHARED->cpuids++;
	while (e < end && (e->function != function || ((e->flags & KX_CPUID_INDEXED) && e->index != index)))
		e++;
	if (e < end) {
		f->rax = e->eax;
		f->rbx = e->ebx;
		f->rcx = e->ecx;
		f->rdx = e->edx;
		return;
	}
	SHARED->cpuids_real++;
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(ci), "=d"(d));
	f->rax = a;
	f->rbx = b;
	f->rcx = ci;
	f->rdx = d;
}

/* From entry.S: kx_thread.work is set, the program is about to go on by *f. */
void libos_work(struct kx_frame *f) { signals_deliver(current(), f, 0); }
