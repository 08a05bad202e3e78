/* SPDX-License-Identifier: Apache-2.0 */
#include "fork.h"
#include <errno.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../dev/procfs.h"
#include "family.h"
#include "gmem.h"
#include "keeper.h"
#include "sig.h"
#include "stats.h"
#include "thread.h"
#include "timepage.h"
#include "vcpu.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define VFORK_STACK (256 << 10) /* bytes of the host stack of a vfork child */

/* ---- locks: a child must not inherit one that another thread held ------------------------------------------------ */

static void hooks_prepare(void)
{
	pthread_mutex_lock(&pvm.mm_lock);
	pthread_mutex_lock(&pvm.thr_lock);
	procfs_fork_lock();
	timepage_fork_lock();
	fd_limit_fork_lock();
	alloc_fork_lock();
}

static void hooks_done(void)
{
	alloc_fork_unlock();
	fd_limit_fork_unlock();
	timepage_fork_unlock();
	procfs_fork_unlock();
	pthread_mutex_unlock(&pvm.thr_lock);
	pthread_mutex_unlock(&pvm.mm_lock);
}

/* ---- fork ---------------------------------------------------------------------------------------------------------- */

static void drop_vcpu(struct thread *t)
{
	struct kvm_run *run = t->run;
	t->run = NULL; /* SIGBUS and SIGSEGV come at any time, and the handler looks */
	munmap(run, pvm.kvm_run_size);
	close(t->vcpu_fd);
}

/* CLONE_CLEAR_SIGHAND: what has a handler gets the default action. */
static void clear_handlers(struct thread *t)
{
	struct kx_sigaction *act = actions_of(t);
	for (int s = 1; s <= 64; s++)
		if (act[s].handler > (uint64_t)SIG_IGN) {
			memset(&act[s], 0, sizeof act[s]);
			sig_set_disposition(s, &act[s]);
		}
}

/* In the child: the pVM has this one thread, in a VM that is still to be made. */
static void child_threads(struct thread *t)
{
	struct thread *all = pvm.threads, *next;
	drop_vcpu(t);
	for (; all; all = next) {
		next = all->next;
		if (all == t)
			continue;
		drop_vcpu(all);
		free(all);
	}
	for (all = thread_pool_take(); all; all = next) {
		next = all->next;
		drop_vcpu(all);
		free(all);
	}
	t->next = NULL;
	pvm.threads = t;
	pvm.nr_threads = pvm.shared->nr_threads = 1;
	close(pvm.vm_fd);
}

static void child_identity(struct thread *t, const struct fork_args *a)
{
	struct kx_thread *area = t->area;
	pvm.pid = t->pid = t->tid = getpid();
	pvm.is_child = pvm.has_family = true;
	pvm_fork_child();
	if (area->vfork) { /* fork by a child of vfork: what was copied for it becomes the process's */
		memcpy(pvm.shared->sigaction, (uint8_t *)area + KX_AREA_ACTIONS, sizeof pvm.shared->sigaction);
		area->actions = KX_BOOT_BASE + offsetof(struct kx_shared, sigaction);
		area->vfork = 0;
	}
	area->pid = area->tid = pvm.pid;
	pvm.shared->pid = pvm.pid;
	pvm.shared->ppid = getppid();
	pvm.shared->fork_gen++;
	memset(pvm.shared->futex_waiters, 0, sizeof pvm.shared->futex_waiters);
	/* Pending signals are not inherited. */
	t->acc_signo = t->sig_stop = t->kicked = 0;
	area->sig.signo = 0;
	area->work = 0;
	t->robust_head = 0;
	t->clear_tid = a->flags & CLONE_CHILD_CLEARTID ? a->child_tid : 0;
	if (a->flags & CLONE_CLEAR_SIGHAND)
		clear_handlers(t);
	uint32_t tid = t->tid;
	if (a->flags & CLONE_CHILD_SETTID)
		guest_write(a->child_tid, &tid, sizeof tid);
}

/* The child's VM over the inherited memory. No way back: on failure the child dies as if killed. */
static void child_machine(struct thread *t, const struct kvm_regs *regs, const struct kvm_sregs *sregs,
			  const struct kvm_xsave *xsave)
{
	struct kx_err err = { 0 };
	int r = vm_create(&err);
	if (!r)
		r = gmem_fork_child();
	if (!r)
		r = vcpu_create(t);
	if (!r && ioctl(t->vcpu_fd, KVM_SET_XSAVE, xsave) < 0)
		r = -errno;
	if (!r)
		vcpu_set_regs(t, regs, sregs);
	if (r) {
		kx_log(KX_LOG_ERROR, "fork", "no VM for a child: %s", err.code ? err.msg : strerror(-r));
		pvm_die_by_signal(SIGKILL);
	}
}

static pid_t fork_locked(int *e)
{
	hooks_prepare();
	pid_t pid = fork();
	*e = errno;
	hooks_done();
	return pid;
}

/* It may be killed at any instant, so the keeper holds the locks, and libc, whose fork() has some of its own, knows
 * nothing of it. */
static pid_t fork_by_vfork_child(int *e)
{
	struct keeper_hold h;
	bool held = keeper_hold(&h, hooks_prepare, hooks_done);
	pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	*e = errno;
	if (pid == 0) /* those of somebody who is not here */
		hooks_done();
	else if (held)
		keeper_release(&h);
	return pid;
}

static int64_t fork_vm(struct thread *t, const struct fork_args *a)
{
	struct kvm_regs regs = t->run->s.regs.regs;
	struct kvm_sregs sregs = t->run->s.regs.sregs;
	struct kvm_xsave *xsave = calloc(1, sizeof *xsave);
	uint64_t old;
	if (!xsave)
		return -ENOMEM;
	if (ioctl(t->vcpu_fd, KVM_GET_XSAVE, xsave) < 0) {
		free(xsave);
		return -errno;
	}
	regs.rip += 1; /* behind the `out` that made this call: the new vCPU knows nothing of it */
	if (a->flags & CLONE_SETTLS)
		sregs.fs.base = a->tls;
	int slot = family_reserve();
	if (slot < 0) {
		free(xsave);
		return slot;
	}
	old = sig_block_everything();
	uint64_t held = t->held;
	t->held = 0; /* pending signals are not inherited; what the child gets from here on is its own */
	int e = 0;
	pid_t pid = is_vfork_child() ? fork_by_vfork_child(&e) : fork_locked(&e);
	if (pid)
		__atomic_or_fetch(&t->held, held, __ATOMIC_RELEASE);
	if (pid == 0) {
		child_threads(t);
		child_identity(t, a);
		if (pvm.cfg->stats)
			stats_fork_child();
		child_machine(t, &regs, &sregs, xsave);
		if (a->stack) {
			struct kx_frame *f = gva_ptr(t->area_gva + KX_AREA_SIZE - sizeof *f);
			f->rsp = a->stack;
		}
		free(xsave);
		family_child(slot, true);
		sig_thread_start(t);
		return 0;
	}
	free(xsave);
	if (pid > 0)
		family_born(slot, pid);
	else
		family_cancel(slot);
	sig_restore(old, t);
	return pid < 0 ? -e : pid;
}

/* ---- vfork ----------------------------------------------------------------------------------------------------------- */

struct vfork_child {
	struct thread *t;
	const struct fork_args *a;
	int slot; /* in the family's table */
};

/* In the child, with the parent's memory, thread-local storage included: the parent's thread waits in the kernel.
 * What the child may do with that memory: keeper.h. */
static int vfork_main(void *arg)
{
	struct vfork_child *v = arg;
	struct thread *t = v->t;
	self = t;
	t->pid = t->tid = host_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
	t->area->pid = t->area->tid = t->tid;
	uint32_t tid = t->tid;
	family_child(v->slot, !(v->a->flags & CLONE_FILES));
	if (v->a->flags & CLONE_CLEAR_SIGHAND)
		clear_handlers(t);
	if (v->a->flags & CLONE_CHILD_SETTID)
		guest_write(v->a->child_tid, &tid, sizeof tid);
	sig_thread_start(t);
	vcpu_loop(t);
	host_call(SYS_exit_group, 127, 0, 0, 0, 0, 0);
	return 127;
}

/*
 * A child that has a child of vfork in its turn, or reads from procfs, shares its parent's storage with those, too. When
 * it is killed they go on for a while, and the parent's thread must not, as long as they have not let go of it.
 */
static bool wait_for_all(struct thread *c)
{
	bool others = false;
	for (; c; c = c->vfork_child) {
		for (int v; (v = __atomic_load_n(&c->private_tid, __ATOMIC_SEQ_CST));)
			host_call(SYS_futex, (long)&c->private_tid, FUTEX_WAIT, v, 0, 0, 0);
		for (int v; (v = __atomic_load_n(&c->vfork_tid, __ATOMIC_SEQ_CST)); others = true)
			host_call(SYS_futex, (long)&c->vfork_tid, FUTEX_WAIT, v, 0, 0, 0);
	}
	return others;
}

static int64_t vfork_vcpu(struct thread *t, const struct fork_args *a)
{
	int r = keeper_start(), slot = r ? r : family_reserve();
	if (slot < 0)
		return slot;
	struct thread *c = thread_clone(t, a->stack, a->flags & CLONE_SETTLS, a->tls, &r);
	if (!c) {
		family_cancel(slot);
		return r;
	}
	c->area->vfork = 1;
	memcpy((uint8_t *)c->area + KX_AREA_ACTIONS, actions_of(t), 65 * sizeof(struct kx_sigaction));
	c->area->actions = c->area_gva + KX_AREA_ACTIONS;
	c->clear_tid = a->flags & CLONE_CHILD_CLEARTID ? a->child_tid : 0;
	void *stack_top;
	struct scratch *scratch = scratch_make(VFORK_STACK, &stack_top);
	if (!scratch) {
		family_cancel(slot);
		thread_pool_put(c);
		return -ENOMEM;
	}
#ifdef __SANITIZE_ADDRESS__ /* what it remembers of an earlier stack at this place */
	__asan_unpoison_memory_region((uint8_t *)stack_top - VFORK_STACK, VFORK_STACK);
#endif
	c->scratch = scratch;
	struct vfork_child v = { c, a, slot };
	uint64_t old = sig_block_everything();
	struct thread *me = self;
	int flags = CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID |
		    (a->flags & (CLONE_FILES | CLONE_FS)) | a->exit_signal;
	t->vfork_child = c;
	pid_t pid = clone(vfork_main, stack_top, flags, &v, &t->vfork_tid, NULL, &t->vfork_tid);
	int e = errno;
	bool others = wait_for_all(c);
	self = me;
	t->vfork_tid = 0; /* not cleared for the last process that has the memory */
	t->vfork_child = NULL;
	fd_limit_forget();
	if (c->asked_keeper || others)
		keeper_settle();
	scratch_unmake(scratch);
	/* However it went: by exec, exit or a signal, the child is done with the vCPU. */
	if (!c->hcall) { /* it was killed in the guest, perhaps as an exception was being delivered */
		struct kvm_vcpu_events none = { 0 };
		ioctl(c->vcpu_fd, KVM_SET_VCPU_EVENTS, &none);
	}
	stats_thread_done(c);
	if (pid > 0)
		family_born(slot, pid);
	else
		family_cancel(slot);
	thread_pool_put(c);
	sig_restore(old, t);
	return pid < 0 ? -e : pid;
}

int64_t process_create(struct thread *t, const struct fork_args *a)
{
	const uint64_t known = CLONE_VM | CLONE_VFORK | CLONE_FS | CLONE_FILES | CLONE_SETTLS | CLONE_PARENT_SETTID |
			       CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | CLONE_PIDFD | CLONE_SYSVSEM |
			       CLONE_DETACHED | CLONE_CLEAR_SIGHAND | CLONE_IO | CLONE_UNTRACED;
	bool vm = a->flags & CLONE_VM, vf = a->flags & CLONE_VFORK;
	if (a->flags >> 34) /* behind CLONE_INTO_CGROUP */
		return -EINVAL;
	if (a->flags & CLONE_THREAD || a->flags & (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUSER | CLONE_NEWNET |
						   CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP))
		return a->flags & CLONE_THREAD ? -EINVAL : -EPERM;
	if (a->flags & ~known || (vm && !vf) || (!vm && (a->flags & (CLONE_FILES | CLONE_FS | CLONE_SIGHAND))) ||
	    (!vm && a->exit_signal != SIGCHLD) || (a->flags & CLONE_SIGHAND)) {
		kx_log(KX_LOG_WARN, "fork", "clone with flags %#llx and signal %d is not implemented: ENOSYS",
		       (unsigned long long)a->flags, a->exit_signal);
		return -ENOSYS;
	}
	sig_sync_plain(t);
	int64_t pid = vm ? vfork_vcpu(t, a) : fork_vm(t, a);
	if (pid <= 0)
		return pid;
	pvm.has_family = true;
	__atomic_add_fetch(&pvm.nr_forks, 1, __ATOMIC_RELAXED);
	uint32_t tid = pid;
	if (a->flags & CLONE_PARENT_SETTID)
		guest_write(a->parent_tid, &tid, sizeof tid);
	if (a->flags & CLONE_PIDFD) {
		int32_t fd = fd_result(HC6(SYS_pidfd_open, pid, 0, 0, 0, 0, 0));
		guest_write(a->pidfd, &fd, sizeof fd);
	}
	/* A parent that vforks waits for the child; a plain fork with CLONE_VFORK does too. */
	if (vf && !vm) {
		siginfo_t info;
		HC6(SYS_waitid, P_PID, pid, &info, WEXITED | WNOWAIT, 0, 0);
	}
	return pid;
}

int64_t hc_fork(struct hcall *c)
{
	struct fork_args a = { .flags = c->nr == SYS_vfork ? CLONE_VM | CLONE_VFORK : 0, .exit_signal = SIGCHLD };
	return process_create(c->t, &a);
}
