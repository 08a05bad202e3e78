/* SPDX-License-Identifier: Apache-2.0 */
#include "fork.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
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
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/together.h"
#include "../dev/procfs.h"
#include "apart.h"
#include "batch.h"
#include "dgram.h"
#include "birth.h"
#include "family.h"
#include "fsize.h"
#include "gmem.h"
#include "handover.h"
#include "hot.h"
#include "keeper.h"
#include "ipc.h"
#include "pipe.h"
#include "robust.h"
#include "rseq.h"
#include "serve.h"
#include "sig.h"
#include "spare.h"
#include "stats.h"
#include "thread.h"
#include "timepage.h"
#include "update.h"
#include "vcpu.h"
#include "vmend.h"
#include "whole.h"
#include "habit.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define VM_PATIENCE 512         /* ms of the last wait for a VM, each twice the one before */
#define VM_PATIENCE_SEEN 32     /* when the parent waits for it */
#define LIBC_THREAD 2304        /* bytes of libc's for a thread, from pthread_self() on */
#define VFORK_STACK (256 << 10) /* bytes of the host stack of a vfork child */

static uint8_t state_place[3 * 4096] __attribute__((aligned(4096))); /* of a struct fork_state */
static KX_TOGETHER bool state_taken;

/* ---- locks: a child must not inherit one that another thread held ------------------------------------------------ */

/* The service thread, with its lock, closes files and passes on descriptors: that comes before those of pipes and batch. */
static void first_prepare(void)
{
	serve_lock();
	pipe_fork_lock();
}

static void first_done(void)
{
	pipe_fork_unlock();
	serve_unlock();
}

static void hooks_prepare(void)
{
	batch_fork_lock();
	dgram_fork_lock();
	update_fork_prepare();
	pthread_mutex_lock(&pvm.mm_lock);
	pthread_mutex_lock(&pvm.thr_lock);
	procfs_fork_lock();
	timepage_fork_lock();
	fd_limit_fork_lock();
	fsize_fork_lock();
	alloc_fork_lock();
}

static void hooks_done(void)
{
	alloc_fork_unlock();
	fsize_fork_unlock();
	fd_limit_fork_unlock();
	timepage_fork_unlock();
	procfs_fork_unlock();
	pthread_mutex_unlock(&pvm.thr_lock);
	pthread_mutex_unlock(&pvm.mm_lock);
	update_fork_done();
	dgram_fork_unlock();
	batch_fork_unlock();
}

/* ---- fork ---------------------------------------------------------------------------------------------------------- */

/* Its kvm_run was not inherited: what is at its address is somebody else's. */
static void drop_vcpu(struct thread *t)
{
	t->run = NULL; /* SIGBUS and SIGSEGV come at any time, and the handler looks */
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
	thread_fork_child(t);
}

/*
 * CLONE_VFORK with memory of its own: the parent reads from a pipe until the child's end of it is closed, by its exec
 * or its end. The child's children must not keep it open.
 */
static KX_TOGETHER int held_gate = -1;

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
	if (is_vfork_child())
		return false;
	pthread_mutex_lock(&pvm.thr_lock);
	bool one = pvm.nr_threads == 1;
	pthread_mutex_unlock(&pvm.thr_lock);
	if (one)
		thread_join_ended();
	return one;
}

int *fork_tid_word(void)
{
	int *tid = NULL;
	return prctl(PR_GET_TID_ADDRESS, &tid) || (tid && *tid != my_tid()) ? NULL : tid;
}

/* libc's fork() but for what it does about other threads: there are none. */
static pid_t raw_fork(const struct fork_args *a, int *pidfd)
{
	int *tid = fork_tid_word();
	unsigned long flags = (a->flags & RAW_FLAGS) | (tid ? CLONE_CHILD_SETTID : 0) | (unsigned)a->exit_signal;
	return syscall(SYS_clone, flags, NULL, pidfd, tid, 0);
}

/* of_vfork: its parent is a child of vfork, whatever the area says, which is the guest's. */
static void child_identity(struct thread *t, const struct fork_args *a, bool of_vfork)
{
	struct kx_thread *area = t->area;
	pvm.is_child = pvm.has_family = true;
	pvm_fork_child();
	serve_fork_child();
	apart_fork_child();
	whole_fork_child();
	batch_fork_child();
	dgram_fork_child();
	if (of_vfork) { /* what was copied for it becomes the process's */
		memcpy(pvm.shared->sigaction, (uint8_t *)area + KX_AREA_ACTIONS, sizeof pvm.shared->sigaction);
		area->actions = KX_BOOT_BASE + offsetof(struct kx_shared, sigaction);
		limits_fork_of_vfork(t);
	}
	area->vfork = 0;
	area->pid = area->tid = pvm.pid;
	pvm.shared->pid = pvm.pid;
	hcall_look_at_parent(SYS_getppid);
	pvm.shared->fork_gen++;
	memset(pvm.shared->futex_waiters, 0, sizeof pvm.shared->futex_waiters);
	/* Pending signals are not inherited. */
	t->acc_signo = t->sig_stop = t->kicked = 0;
	area->sig.signo = 0;
	area->work = 0;
	rseq_fork_child(t);
	robust_fork_child(t);
	t->clear_tid = a->flags & CLONE_CHILD_CLEARTID ? a->child_tid : 0;
	if (a->flags & CLONE_CLEAR_SIGHAND)
		clear_handlers(t);
	uint32_t tid = t->tid;
	if (a->flags & CLONE_CHILD_SETTID)
		guest_write(a->child_tid, &tid, sizeof tid);
}

/* The child's VM over the inherited memory. */
static int machine_make(struct thread *t, const struct kvm_xsave *xsave, bool prove, struct kx_err *err)
{
	int r = vm_create(err);
	if (r)
		return r;
	t->vcpu_fd = -1;
	r = gmem_fork_child(true);
	if (!r)
		r = vcpu_create(t);
	if (!r && ioctl(t->vcpu_fd, KVM_SET_XSAVE, xsave) < 0)
		r = -errno;
	if (!r && prove)
		r = vcpu_prove(t);
	if (r) {
		struct kvm_run *run = t->run;
		t->run = NULL;
		if (run)
			munmap(run, pvm.kvm_run_size);
		close_if(t->vcpu_fd);
		close(pvm.vm_fd);
	}
	return r;
}

/* A child that can't be: told to the parent that waits, else the end of a process that the parent has. */
static _Noreturn void unborn(int slot, bool awaited, int e, const char *what, const char *why)
{
	kx_log(awaited ? KX_LOG_WARN : KX_LOG_ERROR, "fork", "%s for a child: %s", what, why);
	birth_tell(slot, e);
	while (awaited)
		host_call(SYS_exit_group, 127, 0, 0, 0, 0, 0);
	pvm_die_by_signal(SIGKILL);
}

/*
 * What is short now may be there in a moment, when others have ended: ask again for a second or so. If the parent has
 * gone on, as if nothing could fail, the child dies after that as if killed. If it waits (birth.h) it is told much
 * earlier, and nobody else hears of this child.
 */
static void child_machine(struct thread *t, const struct kvm_regs *regs, const struct kvm_sregs *sregs,
			  const struct kvm_xsave *xsave, int slot, bool awaited)
{
	struct kx_err err = { 0 };
	int r = spare_born() ? spare_machine(t, xsave) : -EAGAIN;
	for (long ms = 1;
	     r && (r = machine_make(t, xsave, awaited, &err)) && ms <= (awaited ? VM_PATIENCE_SEEN : VM_PATIENCE);
	     ms *= 2)
		host_call(SYS_nanosleep, (long)&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, 0, 0, 0, 0, 0);
	if (r)
		unborn(slot, awaited, -r, "no VM", err.code ? err.msg : strerror(-r));
	birth_tell(slot, 0);
	if (!spare_born())
		vmend_hold();
	vcpu_set_regs(t, regs, sregs);
}

/* What fork(3) does, and nothing that a child made ahead has not. */
static bool is_plain(const struct fork_args *a)
{
	const uint64_t plain = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | CLONE_PARENT_SETTID | CLONE_SETTLS |
			       CLONE_CLEAR_SIGHAND;
	return !(a->flags & ~plain) && a->exit_signal == SIGCHLD;
}

/* What the next fork will write of the monitor's, made this process's own again in few steps. */
void fork_populate(void)
{
	extern uint8_t together_start[] __asm__("__start_kx_together"), together_end[] __asm__("__stop_kx_together");
	const uintptr_t page = 4096, here = (uintptr_t)__builtin_frame_address(0) & -page,
			own = (uintptr_t)pthread_self();
	const uintptr_t from[] = { (uintptr_t)together_start & -page,
				   (uintptr_t)&pvm,
				   (uintptr_t)state_place,
				   here,
				   here - page,
				   own & -page };
	const uintptr_t end[] = { (uintptr_t)together_end,
				  (uintptr_t)&pvm + 1,
				  (uintptr_t)state_place + sizeof state_place,
				  here + page,
				  here,
				  own + LIBC_THREAD };
	for (unsigned i = 0; i < sizeof from / sizeof from[0]; i++)
		madvise((void *)from[i], ((end[i] + page - 1) & -page) - from[i], MADV_POPULATE_WRITE);
}

/* gate: to be opened, NULL = none. *e: errno. */
static pid_t fork_locked(struct thread *t, const struct fork_args *a, bool raw, int *pidfd, int *gate, int *e)
{
	first_prepare();
	pipe_fork_before();
	hooks_prepare();
	*e = gate ? -gate_open(gate) : 0;
	batch_fork_share();
	dgram_fork_share();
	pid_t pid = *e || !is_plain(a) ? -1 : spare_fork(t);
	bool again = pid < 0 && !*e;
	while (again) {
		spare_fork_before();
		hot_save();
		pid = raw ? raw_fork(a, pidfd) : fork();
		*e = pid < 0 ? errno : pid ? 0 : -hot_restore();
		if (!pid)
			spare_fork_child();
		again = pid < 0 && spare_make_room(*e);
	}
	/* With the locks: a thread that takes a table of its own has not got a copy that it would keep. */
	if (pid && gate) {
		close_if(gate[1]);
		gate[1] = -1;
	}
	hooks_done();
	if (pid)
		pipe_fork_after(pid);
	first_done();
	return pid;
}

void fork_locks_take(void)
{
	first_prepare();
	hooks_prepare();
}

void fork_locks_release(void)
{
	hooks_done();
	first_done();
}

/* It may be killed at any instant, so the keeper holds the locks, and libc, whose fork() has some of its own, knows
 * nothing of it. */
static pid_t fork_by_vfork_child(int *gate, int *e)
{
	struct keeper_hold h;
	pipe_plain_all();
	bool held = keeper_hold(&h, fork_locks_take, fork_locks_release);
	*e = gate ? -gate_open(gate) : 0;
	spare_fork_before();
	hot_drop();
	pid_t pid = *e ? -1 : (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (pid < 0 && !*e)
		*e = errno;
	if (pid == 0) { /* those of somebody who is not here */
		spare_fork_child();
		fork_locks_release();
	} else if (held)
		keeper_release(&h);
	return pid;
}

static void tell_parent(const struct fork_args *a, pid_t pid, int pidfd)
{
	uint32_t tid = pid;
	if (a->flags & CLONE_PARENT_SETTID)
		guest_write(a->parent_tid, &tid, sizeof tid);
	if (a->flags & CLONE_PIDFD)
		guest_write(a->pidfd, &pidfd, sizeof pidfd);
}

/* The number that the pidfd will have, so that there is one; where the kernel does not make it at once. Should the
 * child be gone with nobody having waited for it, what is there can be polled as one of a process that has ended. */
static int pidfd_reserve(void) { return fd_result(HC6(SYS_eventfd2, 1, EFD_CLOEXEC, 0, 0, 0, 0)); }

static void pidfd_make(int slot, pid_t pid)
{
	fd_limit_lift();
	int fd = (int)HC6(SYS_pidfd_open, pid, 0, 0, 0, 0, 0);
	if (fd >= 0)
		dup3(fd, slot, O_CLOEXEC);
	close_if(fd);
	fd_limit_drop();
}

/* What the child needs that it can't have by copy-on-write. */
struct fork_state {
	uint8_t xsave[sizeof(struct kvm_xsave)] __attribute__((aligned(16)));
	unsigned head, from; /* of the area: its first bytes, and those from here on */
	uint8_t area[];      /* the two, one behind the other: each page is a copy on both sides */
};

/* Of the LibOS's stack only what is in use. */
static struct fork_state *state_new(struct thread *t, uint64_t rsp)
{
	const unsigned head = is_vfork_child() ? KX_AREA_ACTIONS + sizeof pvm.shared->sigaction : sizeof *t->area;
	uint64_t used = rsp - 128 - t->area_gva;
	unsigned from = used < head || used >= KX_AREA_SIZE ? head : (unsigned)used;
	struct fork_state *s;
	const size_t len = sizeof *s + head + KX_AREA_SIZE - from;
	/* As a rule the same pages again, which a spare's parent has made its own (fork_populate). */
	bool taken = len > sizeof state_place || is_vfork_child() ||
		     __atomic_exchange_n(&state_taken, true, __ATOMIC_ACQUIRE);
	s = taken ? malloc(len) : (void *)state_place;
	if (s) {
		s->head = head;
		s->from = from;
	}
	return s;
}

static void state_free(struct fork_state *s)
{
	if ((void *)s == state_place)
		__atomic_store_n(&state_taken, false, __ATOMIC_RELEASE);
	else
		free(s);
}

static void area_save(struct fork_state *s, struct thread *t)
{
	memcpy(s->area, t->area, s->head);
	memcpy(s->area + s->head, (uint8_t *)t->area + s->from, KX_AREA_SIZE - s->from);
}

static void area_restore(const struct fork_state *s, struct thread *t, int slot, bool awaited)
{
	int r = spare_born() ? 0 : gmem_fork_areas(t->area_gva);
	if (r)
		unborn(slot, awaited, -r, "no memory", strerror(-r));
	memcpy(t->area, s->area, s->head);
	memcpy((uint8_t *)t->area + s->from, s->area + s->head, KX_AREA_SIZE - s->from);
}

static uint64_t user_sp(struct thread *t)
{
	const struct kx_frame *f = frame_of(t);
	return __atomic_load_n(&f->rsp, __ATOMIC_RELAXED);
}

/* Sent ones, too, which have the handler look at the vCPU and the area: until the child has its own, they wait. */
static void faults_wait(bool wait)
{
	uint64_t set = 1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1);
	host_call(SYS_rt_sigprocmask, wait ? SIG_BLOCK : SIG_UNBLOCK, (long)&set, 0, 8, 0, 0);
}

static int64_t fork_vm(struct thread *t, const struct fork_args *a, bool raw)
{
	struct kvm_regs regs = t->run->s.regs.regs;
	struct kvm_sregs sregs;
	const bool of_vfork = is_vfork_child();
	bool waits = a->flags & CLONE_VFORK, reserves = a->flags & CLONE_PIDFD && !raw;
	struct fork_state *st = state_new(t, regs.rsp);
	uint64_t old;
	int gate[2] = { -1, -1 }, e = 0;
	if (!st)
		return -ENOMEM;
	e = -vcpu_sregs(t, &sregs);
	int pidfd = reserves ? pidfd_reserve() : -1;
	if (!e && ioctl(t->vcpu_fd, KVM_GET_XSAVE, st->xsave) < 0)
		e = errno;
	else if (reserves && pidfd < 0)
		e = -pidfd;
	vcpu_behind_gate(&regs);
	if (a->flags & CLONE_SETTLS)
		sregs.fs.base = a->tls;
	int slot = family_reserve();
	if (slot < 0) {
		close_if(pidfd);
		state_free(st);
		return slot;
	}
	old = sig_block_everything();
	faults_wait(true);
	uint64_t held = t->held;
	area_save(st, t);
	t->held = 0; /* pending signals are not inherited; what the child gets from here on is its own */
	/* Whoever is not its parent could not forget it. */
	bool awaited = birth_begin(slot) && !(a->flags & CLONE_PARENT);
	int *opens = waits ? gate : NULL;
	pid_t pid = e                  ? -1
		    : is_vfork_child() ? fork_by_vfork_child(opens, &e)
				       : fork_locked(t, a, raw, &pidfd, opens, &e);
	if (pid) {
		faults_wait(false);
		__atomic_or_fetch(&t->held, held, __ATOMIC_RELEASE);
		close_if(gate[1]);
	}
	if (pid == 0) {
		if (e)
			unborn(slot, awaited, e, "no memory", strerror(e));
		hot_fork_child();
		area_restore(st, t, slot, awaited);
		close_if(held_gate);
		close_if(gate[0]);
		close_if(reserves ? pidfd : -1);
		held_gate = -1;
		if (gate[1] >= 0)
			fd_keep(&held_gate, gate[1]);
		child_threads(t);
		pvm.pid = t->pid = t->tid = getpid();
		child_machine(t, &regs, &sregs, (const struct kvm_xsave *)st->xsave, slot, awaited);
		faults_wait(false);
		child_identity(t, a, of_vfork);
		pipe_fork_child(!of_vfork);
		ipc_fork_child(!of_vfork);
		if (pvm.cfg->stats)
			stats_fork_child();
		update_fork_child();
		if (a->stack) {
			struct kx_frame *f = frame_of(t);
			f->rsp = a->stack;
		}
		gmem_fork_populate(user_sp(t));
		state_free(st);
		state_taken = false; /* it may have been another thread's */
		family_child_later(slot);
		sig_thread_start(t, ~0ull);
		return 0;
	}
	state_free(st);
	bool ahead = pid > 0 && spare_was_used();
	if (pid > 0 && awaited && !ahead && (e = -birth_await(slot, pid, a->exit_signal))) {
		close_if(raw ? pidfd : -1);
		pid = -1;
	}
	if (pid > 0) {
		family_born(slot, pid);
		if (reserves)
			pidfd_make(pidfd, pid);
		tell_parent(a, pid, pidfd);
		if (is_plain(a) && !is_vfork_child())
			spare_fork_seen();
		if (!ahead)
			gmem_fork_populate(user_sp(t));
		if (gmem_is_large())
			whole_due();
		if (waits) {
			robust_pause();
			gate_wait(gate[0]);
		}
	} else {
		family_cancel(slot);
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
	int slot;  /* in the family's table */
	int pidfd; /* its number in the parent, -1 = none */
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
	pipe_vfork_child();
	family_child(v->slot, !(v->a->flags & CLONE_FILES));
	tell_parent(v->a, t->pid, v->pidfd); /* the memory is the parent's, which sees it when it goes on */
	if (!(v->a->flags & CLONE_FILES)) {
		close_if(held_gate);
		close_if(v->pidfd);
	}
	if (v->a->flags & CLONE_CLEAR_SIGHAND)
		clear_handlers(t);
	if (v->a->flags & CLONE_CHILD_SETTID)
		guest_write(v->a->child_tid, &tid, sizeof tid);
	sig_thread_start(t, ~0ull);
	if (t->had)
		handover_learn(t);
	vcpu_loop(t);
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
	int pidfd = a->flags & CLONE_PIDFD ? pidfd_reserve() : -1;
	if (a->flags & CLONE_PIDFD && pidfd < 0)
		return pidfd;
	int r = keeper_start();
	while (r && spare_make_room(-r))
		r = keeper_start();
	int slot = r ? r : family_reserve();
	if (slot < 0) {
		close_if(pidfd);
		return slot;
	}
	struct thread *c = thread_clone(t, a->stack, a->flags & CLONE_SETTLS, a->tls, &r);
	if (!c) {
		close_if(pidfd);
		family_cancel(slot);
		return r;
	}
	c->area->vfork = 1;
	memcpy((uint8_t *)c->area + KX_AREA_ACTIONS, actions_of(t), 65 * sizeof(struct kx_sigaction));
	c->area->actions = c->area_gva + KX_AREA_ACTIONS;
	limits_vfork(c);
	c->clear_tid = a->flags & CLONE_CHILD_CLEARTID ? a->child_tid : 0;
	void *stack_top;
	struct scratch *scratch = scratch_make(VFORK_STACK, &stack_top);
	if (!scratch) {
		close_if(pidfd);
		family_cancel(slot);
		thread_pool_put(c);
		return -ENOMEM;
	}
#ifdef __SANITIZE_ADDRESS__ /* what it remembers of an earlier stack at this place */
	__asan_unpoison_memory_region((uint8_t *)stack_top - VFORK_STACK, VFORK_STACK);
#endif
	c->scratch = scratch;
	struct vfork_child v = { c, a, slot, pidfd };
	if (!robust_vfork_begin()) {
		robust_vfork_end();
		close_if(pidfd);
		family_cancel(slot);
		scratch_unmake(scratch);
		thread_pool_put(c);
		return -EAGAIN;
	}
	pipe_vfork_before(a->flags & CLONE_FILES);
	uint64_t old = sig_block_everything();
	struct thread *me = self;
	int flags = CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID |
		    (a->flags & (CLONE_FILES | (RAW_FLAGS & ~CLONE_PIDFD))) | a->exit_signal;
	t->vfork_child = c;
	batch_vfork_begin();
	dgram_fork_lock();
	dgram_fork_share();
	dgram_fork_unlock();
	pid_t pid;
	int e;
	do {
		pid = clone(vfork_main, stack_top, flags, &v, &t->vfork_tid, NULL, &t->vfork_tid);
		e = errno;
	} while (pid < 0 && spare_make_room(e));
	bool others = wait_for_all(c);
	self = me;
	t->vfork_tid = 0; /* not cleared for the last process that has the memory */
	t->vfork_child = NULL;
	batch_vfork_end();
	fd_limit_forget();
	if (c->asked_keeper || others)
		keeper_settle();
	pipe_vfork_after();
	scratch_unmake(scratch);
	robust_vfork_end();
	/* However it went: by exec, exit or a signal, the child is done with the vCPU. */
	if (!c->hcall) /* it was killed in the guest, perhaps as an exception was being delivered */
		vcpu_events_drop(c);
	stats_thread_done(c);
	if (pid > 0) {
		family_born(slot, pid);
		if (pidfd >= 0)
			pidfd_make(pidfd, pid);
	} else {
		family_cancel(slot);
		close_if(pidfd);
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
	int64_t pid;
	do {
		batch_lease_begin(a->flags & CLONE_FILES);
		pid = vm ? vfork_vcpu(t, a) : fork_vm(t, a, raw);
		if (pid)
			batch_lease_end();
	} while (thread_make_room(pid));
	if (pid > 0) {
		pvm.has_family = true;
		habit_born();
		__atomic_add_fetch(&pvm.nr_forks, 1, __ATOMIC_RELAXED);
	}
	return pid;
}

int64_t hc_fork(struct hcall *c)
{
	struct fork_args a = { .flags = c->nr == SYS_vfork ? CLONE_VM | CLONE_VFORK : 0, .exit_signal = SIGCHLD };
	return process_create(c->t, &a);
}
