/* SPDX-License-Identifier: Apache-2.0 */
#include "fork.h"
#include <errno.h>
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
#include "rseq.h"
#include "sig.h"
#include "thread.h"
#include "timepage.h"
#include "vcpu.h"

#define VFORK_STACK (256 << 10) /* bytes of the host stack of a vfork child */

/* ---- locks: a child must not inherit one that another thread held ------------------------------------------------ */

static void hooks_prepare(void)
{
	pthread_mutex_lock(&pvm.mm_lock);
	pthread_mutex_lock(&pvm.thr_lock);
	procfs_fork_lock();
	timepage_fork_lock();
	fd_limit_fork_lock();
}

static void hooks_done(void)
{
	fd_limit_fork_unlock();
	timepage_fork_unlock();
	procfs_fork_unlock();
	pthread_mutex_unlock(&pvm.thr_lock);
	pthread_mutex_unlock(&pvm.mm_lock);
}

/* ---- fork ---------------------------------------------------------------------------------------------------------- */

static void drop_vcpu(struct thread *t)
{
	munmap(t->run, pvm.kvm_run_size);
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
	pvm.is_child = true;
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
	t->k_info.si_signo = 0;
	area->sig.signo = 0;
	area->work = 0;
	rseq_fork_child(t);
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
	if (!r && (ioctl(t->vcpu_fd, KVM_SET_SREGS, sregs) < 0 || ioctl(t->vcpu_fd, KVM_SET_REGS, regs) < 0 ||
		   ioctl(t->vcpu_fd, KVM_SET_XSAVE, xsave) < 0))
		r = -errno;
	if (r) {
		kx_log(KX_LOG_ERROR, "fork", "no VM for a child: %s", err.code ? err.msg : strerror(-r));
		pvm_die_by_signal(SIGKILL);
	}
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
	old = sig_block_everything();
	hooks_prepare();
	pid_t pid = fork();
	int e = errno;
	hooks_done();
	if (pid == 0) {
		child_threads(t);
		child_identity(t, a);
		child_machine(t, &regs, &sregs, xsave);
		if (a->stack) {
			struct kx_frame *f = gva_ptr(t->area_gva + KX_AREA_SIZE - sizeof *f);
			f->rsp = a->stack;
		}
		free(xsave);
		family_add(pvm.pid);
		sig_thread_start(t);
		return 0;
	}
	free(xsave);
	if (pid > 0)
		family_add(pid);
	sig_restore(old, t);
	return pid < 0 ? -e : pid;
}

/* ---- vfork ----------------------------------------------------------------------------------------------------------- */

struct vfork_child {
	struct thread *t;
	const struct fork_args *a;
	uint64_t mask; /* of the parent's host thread */
};

/* A child that was killed in a call leaves locked what it had locked, in the name of the thread that it was cloned
 * from: they have one thread-local storage. That thread has locked nothing while it waited. */
static void unlock_for_the_dead(pthread_mutex_t *m)
{
	pthread_mutex_t mine = PTHREAD_MUTEX_INITIALIZER; /* tells that name */
	pthread_mutex_lock(&mine);
	if (__atomic_load_n(&m->__data.__owner, __ATOMIC_RELAXED) == mine.__data.__owner)
		pthread_mutex_unlock(m);
	pthread_mutex_unlock(&mine);
}

/* In the child, with the parent's memory, thread-local storage included: the parent's thread waits in the kernel. */
static int vfork_main(void *arg)
{
	struct vfork_child *v = arg;
	struct thread *t = v->t;
	self = t;
	t->pid = t->tid = host_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
	t->area->pid = t->area->tid = t->tid;
	uint32_t tid = t->tid;
	family_add(t->pid);
	if (v->a->flags & CLONE_CLEAR_SIGHAND)
		clear_handlers(t);
	if (v->a->flags & CLONE_CHILD_SETTID)
		guest_write(v->a->child_tid, &tid, sizeof tid);
	sig_thread_start(t);
	vcpu_loop(t);
	host_call(SYS_exit_group, 127, 0, 0, 0, 0, 0);
	return 127;
}

static int64_t vfork_vcpu(struct thread *t, const struct fork_args *a)
{
	int r = 0;
	struct thread *c = thread_clone(t, a->stack, a->flags & CLONE_SETTLS, a->tls, &r);
	if (!c)
		return r;
	c->area->vfork = 1;
	memcpy((uint8_t *)c->area + KX_AREA_ACTIONS, actions_of(t), 65 * sizeof(struct kx_sigaction));
	c->area->actions = c->area_gva + KX_AREA_ACTIONS;
	c->clear_tid = a->flags & CLONE_CHILD_CLEARTID ? a->child_tid : 0;
	uint8_t *stack = mmap(NULL, VFORK_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1,
			      0);
	if (stack == MAP_FAILED) {
		thread_pool_put(c);
		return -ENOMEM;
	}
	struct vfork_child v = { c, a, 0 };
	uint64_t old = sig_block_everything();
	struct thread *me = self;
	int flags = CLONE_VM | CLONE_VFORK | (a->flags & (CLONE_FILES | CLONE_FS)) | a->exit_signal;
	pid_t pid = clone(vfork_main, stack + VFORK_STACK, flags, &v);
	int e = errno;
	self = me;
	munmap(stack, VFORK_STACK);
	fd_limit_forget();
	unlock_for_the_dead(&pvm.thr_lock);
	unlock_for_the_dead(&pvm.mm_lock);
	/* However it went: by exec, exit or a signal, the child is done with the vCPU. */
	if (!c->hcall) { /* it was killed in the guest, perhaps as an exception was being delivered */
		struct kvm_vcpu_events none = { 0 };
		ioctl(c->vcpu_fd, KVM_SET_VCPU_EVENTS, &none);
	}
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
