/* SPDX-License-Identifier: Apache-2.0 */
#include "fork.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../dev/procfs.h"
#include "family.h"
#include "gmem.h"
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
	thread_forget_ended();
}

/*
 * CLONE_VFORK with memory of its own: the parent reads from a pipe until the child's end of it is closed, by its exec
 * or its end. The child's children must not keep it open.
 */
static int held_gate = -1;

static void close_if(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* With the lock of the limit held, so that no other thread's child gets the write end: as fd_limit_lift(), fd_hide(). */
static int gate_open(int gate[2])
{
	struct rlimit old, all;
	int fd[2];
	getrlimit(RLIMIT_NOFILE, &old);
	all = (struct rlimit){ old.rlim_max, old.rlim_max };
	setrlimit(RLIMIT_NOFILE, &all);
	int r = pipe2(fd, O_CLOEXEC) ? -errno : 0;
	for (int i = 0; i < 2 && !r; i++) {
		gate[i] = fcntl(fd[i], F_DUPFD_CLOEXEC, pvm.fd_limit);
		close(fd[i]);
	}
	setrlimit(RLIMIT_NOFILE, &old);
	if (!r && (gate[0] < 0 || gate[1] < 0))
		r = -EMFILE;
	return r;
}

/* As vfork(2) waits: no signal ends it that is not deadly. */
static void gate_wait(int fd)
{
	char none;
	while (HC6(SYS_read, fd, &none, 1, 0, 0, 0) == -EINTR)
		;
	close(fd);
}

/* ---- forks that libc's fork() cannot make ----------------------------------------------------------------------- */

#define RAW_FLAGS (CLONE_FS | CLONE_PARENT | CLONE_PIDFD | CLONE_SYSVSEM | CLONE_IO)

static bool needs_raw(const struct fork_args *a) { return a->flags & RAW_FLAGS || a->exit_signal != SIGCHLD; }

/* No other thread uses this memory, so none can be in libc with a lock. */
static bool is_alone(void)
{
	pthread_mutex_lock(&pvm.thr_lock);
	bool one = pvm.nr_threads == 1;
	pthread_mutex_unlock(&pvm.thr_lock);
	if (one)
		thread_join_ended();
	return one;
}

/* libc's fork() but for what it does about other threads: there are none. The thread's number is where libc keeps
 * it, if the kernel tells. */
static pid_t raw_fork(const struct fork_args *a, int *pidfd)
{
	int *tid = NULL;
	if (prctl(PR_GET_TID_ADDRESS, &tid) || (tid && *tid != (int)host_call(SYS_gettid, 0, 0, 0, 0, 0, 0)))
		tid = NULL;
	unsigned long flags = (a->flags & RAW_FLAGS) | (tid ? CLONE_CHILD_SETTID : 0) | (unsigned)a->exit_signal;
	return syscall(SYS_clone, flags, NULL, pidfd, tid, 0);
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

static void tell_parent(const struct fork_args *a, pid_t pid, int pidfd)
{
	uint32_t tid = pid;
	if (a->flags & CLONE_PARENT_SETTID)
		guest_write(a->parent_tid, &tid, sizeof tid);
	if (a->flags & CLONE_PIDFD)
		guest_write(a->pidfd, &pidfd, sizeof pidfd);
}

/* The number that the pidfd will have, so that there is one; where the kernel does not make it at once. */
static int pidfd_reserve(void) { return fd_result(HC6(SYS_eventfd2, 0, EFD_CLOEXEC, 0, 0, 0, 0)); }

static void pidfd_make(int slot, pid_t pid)
{
	fd_limit_lift();
	int fd = (int)HC6(SYS_pidfd_open, pid, 0, 0, 0, 0, 0);
	if (fd >= 0)
		dup3(fd, slot, O_CLOEXEC);
	close_if(fd);
	fd_limit_drop();
}

static int64_t fork_vm(struct thread *t, const struct fork_args *a, bool raw)
{
	struct kvm_regs regs = t->run->s.regs.regs;
	struct kvm_sregs sregs = t->run->s.regs.sregs;
	bool waits = a->flags & CLONE_VFORK, reserves = a->flags & CLONE_PIDFD && !raw;
	struct kvm_xsave *xsave = calloc(1, sizeof *xsave);
	uint64_t old;
	int gate[2] = { -1, -1 }, pidfd = reserves ? pidfd_reserve() : -1, e = 0;
	if (!xsave)
		return -ENOMEM;
	if (ioctl(t->vcpu_fd, KVM_GET_XSAVE, xsave) < 0)
		e = errno;
	else if (reserves && pidfd < 0)
		e = -pidfd;
	regs.rip += 1; /* behind the `out` that made this call: the new vCPU knows nothing of it */
	if (a->flags & CLONE_SETTLS)
		sregs.fs.base = a->tls;
	old = sig_block_everything();
	hooks_prepare();
	if (waits && !e)
		e = -gate_open(gate);
	pid_t pid = e ? -1 : raw ? raw_fork(a, &pidfd) : fork();
	if (pid < 0 && !e)
		e = errno;
	if (pid)
		close_if(gate[1]);
	hooks_done();
	if (pid == 0) {
		close_if(held_gate);
		close_if(gate[0]);
		close_if(reserves ? pidfd : -1);
		held_gate = gate[1];
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
	if (pid > 0) {
		family_add(pid);
		if (reserves)
			pidfd_make(pidfd, pid);
		tell_parent(a, pid, pidfd);
		if (waits)
			gate_wait(gate[0]);
	} else {
		close_if(reserves ? pidfd : -1);
		close_if(gate[0]);
	}
	sig_restore(old, t);
	return pid < 0 ? -e : pid;
}

/* ---- vfork ----------------------------------------------------------------------------------------------------------- */

struct vfork_child {
	struct thread *t;
	const struct fork_args *a;
	int pidfd; /* the kernel's answer, before the child runs */
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
	tell_parent(v->a, t->pid, v->pidfd); /* the memory is the parent's, which sees it when it goes on */
	if (!(v->a->flags & CLONE_FILES))
		close_if(held_gate);
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
	struct vfork_child v = { c, a, -1 };
	uint64_t old = sig_block_everything();
	struct thread *me = self;
	int flags = CLONE_VM | CLONE_VFORK | (a->flags & (CLONE_FILES | RAW_FLAGS)) | a->exit_signal;
	pid_t pid = clone(vfork_main, stack + VFORK_STACK, flags, &v, &v.pidfd);
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

static int64_t not_here(const struct fork_args *a, const char *why)
{
	kx_log(KX_LOG_WARN, "fork", "clone with flags %#llx and signal %d: %s: ENOSYS", (unsigned long long)a->flags,
	       a->exit_signal, why);
	return -ENOSYS;
}

int64_t process_create(struct thread *t, const struct fork_args *a)
{
	bool vm = a->flags & CLONE_VM, vf = a->flags & CLONE_VFORK, raw = false;
	uint32_t word;
	if (a->flags & CLONE_PIDFD &&
	    (guest_read(&word, a->pidfd, sizeof word) || guest_write(a->pidfd, &word, sizeof word)))
		return -EFAULT;
	if (a->flags & CLONE_SIGHAND)
		return not_here(a, "a process that shares signal handlers");
	if (vm && !vf)
		return not_here(a, "a process that shares memory with a parent that runs on");
	if (!vm && a->flags & CLONE_FILES)
		return not_here(a, "a process that shares descriptors but not memory");
	if (!vm && needs_raw(a)) {
		raw = is_alone();
		struct fork_args rest = *a;
		rest.flags &= ~CLONE_PIDFD;
		if (!raw && needs_raw(&rest))
			return not_here(a, "of a process with threads");
	}
	sig_sync_plain(t);
	int64_t pid = vm ? vfork_vcpu(t, a) : fork_vm(t, a, raw);
	if (pid > 0)
		__atomic_add_fetch(&pvm.nr_forks, 1, __ATOMIC_RELAXED);
	return pid;
}

int64_t hc_fork(struct hcall *c)
{
	struct fork_args a = { .flags = c->nr == SYS_vfork ? CLONE_VM | CLONE_VFORK : 0, .exit_signal = SIGCHLD };
	return process_create(c->t, &a);
}
