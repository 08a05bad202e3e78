/* SPDX-License-Identifier: Apache-2.0 */
#include "thread.h"
#include <errno.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <stddef.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/together.h"
#include "birth.h"
#include "family.h"
#include "futexes.h"
#include "fork.h"
#include "gmem.h"
#include "handover.h"
#include "hot.h"
#include "keeper.h"
#include "robust.h"
#include "room.h"
#include "rseq.h"
#include "sig.h"
#include "spare.h"
#include "stats.h"
#include "vcpu.h"

#define HOST_STACK (256 << 10) /* bytes of a vCPU thread's host stack */
#define SET_TID_MAX 32         /* levels of PID namespaces */
#define PID_LIMIT (4 << 20)    /* of Linux on 64 bits */
#define ENDING_LOOK_NS 100000

/* Where a host thread continues when its guest thread has ended: thread_main() returns. pthread_exit() will not do:
 * it loads libgcc_s, and the jail maps nothing executable. */
static __thread jmp_buf thread_end;
static KX_TOGETHER struct thread *pool; /* ended threads with their vCPUs; thr_lock */
/* The host thread that ended last, not joined yet. Each one joins the one before it, so whoever joins this one knows
 * that all are out of libc. thr_lock */
static pthread_t last_ended;
static KX_TOGETHER bool has_ended;
static KX_TOGETHER int nr_renewed;      /* vCPUs in this VM; thr_lock */
static KX_TOGETHER unsigned nr_ending;  /* that will be that, but nobody knows them yet; thr_lock */
static KX_TOGETHER int kept_index = -1; /* of the thread that made a fork, in the child: whatever next_index says */

/*
 * A fresh one is zero. The host touches all of it where KVM maps the neighbours of a page, if they are there; else each page
 * would cost more than what the guest saves by it.
 */
static void area_init(struct thread *t, bool fresh)
{
	struct kx_thread *a = t->area;
	if (!fresh || pvm.shadow_paging)
		memset(a, 0, KX_AREA_SIZE);
	a->self = t->area_gva;
	a->entry = pvm.libos.entry;
	a->cpuid_entry = pvm.libos.cpuid;
	a->frame_top = t->area_gva + KX_AREA_SIZE;
	a->frame = frame_gva(t);
	a->altstack_flags = 2; /* SS_DISABLE */
	a->index = t->index;
	a->pid = pvm.pid;
	a->actions = KX_BOOT_BASE + offsetof(struct kx_shared, sigaction);
}

/* Of an area and vCPU; -1 = none is left. thr_lock */
static int index_take(void)
{
	pvm.next_index += pvm.next_index == kept_index;
	return pvm.next_index < KX_AREA_MAX ? pvm.next_index++ : -1;
}

static struct thread *pool_get(void)
{
	int number = -1;
	pthread_mutex_lock(&pvm.thr_lock);
	struct thread *t = pool;
	if (t)
		pool = t->next;
	if (t && handover_pays(nr_renewed)) {
		number = index_take();
		nr_renewed++;
	}
	pthread_mutex_unlock(&pvm.thr_lock);
	if (t)
		t->had = number < 0 || handover_renew(t, number);
	return t;
}

/* A new thread, with all but its vCPU. NULL = none left, or no memory. */
static struct thread *thread_new(void)
{
	pthread_mutex_lock(&pvm.thr_lock);
	int index = index_take();
	pthread_mutex_unlock(&pvm.thr_lock);
	const uint64_t area = KX_AREA_BASE + (uint64_t)index * KX_AREA_SIZE;
	struct thread *t = index < 0 || vcpu_block_prepare(index) || gmem_sys_open(area) ? NULL : calloc(1, sizeof *t);
	if (!t)
		return NULL;
	t->index = index;
	t->area_gva = area;
	t->area = gva_ptr(area);
	return t;
}

static void thread_free(struct thread *t)
{
	if (keeper_needed())
		KEEPER6(free, t, 0, 0, 0, 0, 0);
	else
		free(t);
}

/* A thread with vCPU, from the pool or new. NULL and *r set on failure. The pool's are its process's: their descriptors
 * may not be there in a child of vfork. */
static struct thread *thread_get(int *r)
{
	bool child = is_vfork_child();
	struct thread *t = child ? NULL : pool_get();
	if (t) {
		area_init(t, false);
		return t;
	}
	*r = -EAGAIN;
	t = keeper_needed() ? (struct thread *)KEEPER6(thread_new, 0, 0, 0, 0, 0, 0) : thread_new();
	if (!t)
		return NULL;
	area_init(t, true);
	*r = vcpu_create(t);
	if (*r) {
		kx_log(KX_LOG_WARN, "thread", "no vCPU for a thread: %s", strerror(-*r));
		if (t->vcpu_fd > 0)
			close(t->vcpu_fd);
		thread_free(t);
		*r = -EAGAIN;
		return NULL;
	}
	return t;
}

int thread_pool_fds(int (*fn)(int *fd))
{
	int r = 0;
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread *t = pool; t && !r; t = t->next)
		r = fn(&t->vcpu_fd);
	pthread_mutex_unlock(&pvm.thr_lock);
	return r;
}

void thread_each_vcpu(int (*fn)(int vcpu_fd, void *arg), void *arg)
{
	int r = 0;
	if (pthread_mutex_trylock(&pvm.thr_lock))
		return;
	for (struct thread *t = pvm.threads; t && !r; t = t->next)
		if (t->vcpu_fd > 0 && t->vcpu_pid == pvm.pid)
			r = fn(t->vcpu_fd, arg);
	for (struct thread *t = pool; t && !r; t = t->next)
		r = fn(t->vcpu_fd, arg);
	pthread_mutex_unlock(&pvm.thr_lock);
}

struct thread *thread_pool_take(void)
{
	struct thread *all = pool;
	pool = NULL;
	return all;
}

void thread_pool_put(struct thread *t)
{
	rseq_release(t);
	t->seat_kicked = t->seat_restart = 0;
	t->clear_tid = t->robust_head = t->area->robust_ready = 0;
	t->woken_ns = 0;
	t->robust_host = 0;
	t->acc_signo = t->sig_stop = t->kicked = 0;
	t->held = 0;
	t->hcall = NULL;
	t->scratch = NULL;
	t->asked_keeper = false;
	t->vfork_child = NULL;
	t->vfork_tid = t->private_tid = 0;
	if (t->vcpu_pid != pvm.pid) { /* a child of vfork made it: the descriptor is not its parent's */
		munmap(t->run, pvm.kvm_run_size);
		close(t->vcpu_fd);
		thread_free(t);
		return;
	}
	pthread_mutex_lock(&pvm.thr_lock);
	t->next = pool;
	pool = t;
	pthread_mutex_unlock(&pvm.thr_lock);
}

static void thread_link(struct thread *t)
{
	pthread_mutex_lock(&pvm.thr_lock);
	t->next = pvm.threads;
	pvm.threads = t;
	pvm.nr_threads++;
	pvm.shared->nr_threads = pvm.nr_threads;
	t->live = true;
	pthread_mutex_unlock(&pvm.thr_lock);
}

/* Returns how many threads are left. */
static int thread_unlink(struct thread *t)
{
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread **p = &pvm.threads; *p; p = &(*p)->next)
		if (*p == t) {
			*p = t->next;
			break;
		}
	int left = --pvm.nr_threads;
	pvm.shared->nr_threads = left;
	t->live = false;
	nr_ending += t->tid != t->pid;
	pthread_mutex_unlock(&pvm.thr_lock);
	return left;
}

bool thread_is_ours(pid_t tid)
{
	bool found = false;
	if (is_vfork_child())
		return tid == my_pid();
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread *t = pvm.threads; t && !found; t = t->next)
		found = t->tid == tid;
	pthread_mutex_unlock(&pvm.thr_lock);
	return found || tid == my_pid();
}

struct thread *thread_first(struct kx_err *err)
{
	int r = 0;
	struct thread *t = thread_get(&r);
	if (!t) {
		kx_err_host(err, -r, "/dev/kvm: cannot make a vCPU");
		return NULL;
	}
	t->tid = t->pid = pvm.pid;
	t->area->tid = t->area->pid = t->tid;
	self = t;
	thread_link(t);
	return t;
}

/* ---- end -------------------------------------------------------------------------------------------------- */

static void futex_wake_shared(uint64_t gva, int n)
{
	if (gva_ok(gva, 4))
		host_call(SYS_futex, (long)gva_ptr(gva), FUTEX_WAKE, n, 0, 0, 0);
}

void thread_release_guest(struct thread *t, bool is_last, bool is_exec)
{
	if (!is_exec ||
	    !robust_by_host(t)) /* an exec may fail yet; the host's kernel follows the list when it does not */
		robust_exit(t);
	/* As the kernel: only where somebody else uses the memory. */
	if (t->clear_tid && !is_last) {
		uint32_t zero = 0;
		if (guest_write(t->clear_tid, &zero, 4) == 0)
			futex_wake_shared(t->clear_tid, 1);
	}
}

void thread_release_all(void)
{
	if (my_pid() != pvm.pid) { /* a child of vfork: itself alone */
		futexes_uncount(self);
		thread_release_guest(self, false, false);
		return;
	}
	/* Whoever holds the lock may have been killed with it: then the others' locks are lost, but not the end. */
	struct timespec soon;
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_sec += 1;
	if (pthread_mutex_timedlock(&pvm.thr_lock, &soon))
		return;
	/* Robust locks alone: a thread id that is cleared tells a joiner that its thread is gone, and it would go on. */
	for (struct thread *t = pvm.threads; t; t = t->next) {
		futexes_uncount(t);
		if (!robust_by_host(t))
			robust_exit(t);
	}
	pthread_mutex_unlock(&pvm.thr_lock);
}

_Noreturn void thread_exit(struct thread *t, int status)
{
	sig_block_all();
	if (t->area->vfork || t->pid != pvm.pid) /* a child of vfork has no other threads; the parent tidies up */
		pvm_exit_group(status);
	sig_give_back(t, false); /* what it took of the process's, another thread must get */
	/* The vCPU goes to the pool first: whoever joins this thread may start another at once. */
	int left = thread_unlink(t);
	stats_thread_done(t);
	thread_release_guest(t, left == 0, false);
	if (left == 0)
		pvm_exit_group(status);
	bool first = t->tid == t->pid;
	self = NULL;
	thread_pool_put(t);
	if (first) /* the process lives on; the leader is a zombie until the last thread ends, as on Linux */
		for (;;)
			host_call(SYS_exit, status, 0, 0, 0, 0, 0);
	longjmp(thread_end, 1);
}

int64_t hc_exit(struct hcall *c) { thread_exit(c->t, (int)c->arg[0]); }

int64_t hc_exit_group(struct hcall *c) { pvm_exit_group((int)c->arg[0] & 0xff); }

static void join_and_leave(const pthread_t *me)
{
	pthread_mutex_lock(&pvm.thr_lock);
	pthread_t before = last_ended;
	bool any = has_ended;
	if (me) {
		last_ended = *me;
		nr_ending--;
	}
	has_ended = me;
	pthread_mutex_unlock(&pvm.thr_lock);
	if (any)
		pthread_join(before, NULL);
}

void thread_join_ended(void) { join_and_leave(NULL); }

bool thread_make_room(int64_t error)
{
	unsigned ending;
	bool some;
	if (error != -EAGAIN || my_pid() != pvm.pid)
		return false;
	for (;;) {
		pthread_mutex_lock(&pvm.thr_lock);
		ending = nr_ending;
		some = has_ended;
		pthread_mutex_unlock(&pvm.thr_lock);
		if (!ending)
			break;
		host_call(SYS_nanosleep, (long)&(struct timespec){ 0, ENDING_LOOK_NS }, 0, 0, 0, 0, 0);
	}
	if (some) {
		thread_join_ended();
		room_soon();
	}
	return some;
}

void thread_fork_child(const struct thread *t)
{
	kept_index = t->index;
	pvm.next_index = 0;
	has_ended = false;
	nr_ending = 0;
	nr_renewed = 0;
}

/* ---- start ------------------------------------------------------------------------------------------------ */

struct start {
	struct thread *t, *parent;
	uint64_t flags, stack, tls, parent_tid, child_tid, pidfd, robust;
	int exit_signal;
	sem_t ready;
};

static void *thread_main(void *arg)
{
	struct start *s = arg;
	struct thread *t = s->t;
	if (setjmp(thread_end)) {
		pthread_t me = pthread_self();
		join_and_leave(&me);
		return NULL;
	}
	t->tid = my_tid();
	t->pid = pvm.pid;
	t->area->tid = t->tid;
	self = t;
	uint32_t tid = t->tid;
	if (s->flags & CLONE_PARENT_SETTID)
		guest_write(s->parent_tid, &tid, 4);
	if (s->flags & CLONE_CHILD_SETTID)
		guest_write(s->child_tid, &tid, 4);
	thread_link(t);
	/* What its creator has blocked for the moment, and the host was not told of, it does not learn by its part either. */
	sig_thread_start(t, s->parent->hmask);
	robust_thread_start(t, s->robust);
	sem_post(&s->ready);
	if (t->had)
		handover_learn(t);
	vcpu_loop(t);
}

struct thread *thread_clone(struct thread *p, uint64_t stack, bool set_tls, uint64_t tls, int *r)
{
	struct thread *t = thread_get(r);
	if (!t)
		return NULL;
	struct kx_frame *cf = frame_of(t);
	*cf = *frame_of(p);
	cf->rax = 0;
	if (stack)
		cf->rsp = stack;
	t->area->resume = p->area->resume;
	t->area->sigmask = p->area->sigmask;
	*r = vcpu_copy_fpu(t, p);
	if (*r) {
		thread_pool_put(t);
		return NULL;
	}
	vcpu_start_state(t, set_tls ? tls : vcpu_fs_base(p));
	return t;
}

static int64_t thread_create(struct start *s)
{
	int r = fd_grow();
	spare_changed();
	pthread_mutex_lock(&pvm.mm_lock);
	hot_drop();
	pthread_mutex_unlock(&pvm.mm_lock);
	if (r)
		return -EAGAIN;
	struct thread *t = thread_clone(s->parent, s->stack, s->flags & CLONE_SETTLS, s->tls, &r);
	if (!t)
		return r;
	s->t = t;
	s->robust = s->flags & CLONE_SETTLS ? robust_expect(s->parent, s->tls) : 0;
	t->clear_tid = s->flags & CLONE_CHILD_CLEARTID ? s->child_tid : 0;
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, HOST_STACK);
	sem_init(&s->ready, 0, 0);
	birth_unsure();
	{
		/* The new host thread starts with everything blocked and takes its own mask when it is complete. */
		uint64_t all = ~(SIGBIT(SIGSEGV) | SIGBIT(SIGBUS)), old;
		host_call(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, (long)&all, (long)&old, 8, 0, 0);
		do
			r = -pthread_create(&t->pthread, &attr, thread_main, s);
		while (r && (thread_make_room(r) || spare_make_room(-r)));
		if (!r)
			while (sem_wait(&s->ready))
				;
		host_call(SYS_rt_sigprocmask, 2, (long)&old, 0, 8, 0, 0);
	}
	pthread_attr_destroy(&attr);
	sem_destroy(&s->ready);
	if (r) {
		thread_pool_put(t);
		return r == -ENOMEM ? -EAGAIN : r;
	}
	return t->tid;
}

#define THREAD_FLAGS \
	(CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_SETTLS | \
	 CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | CLONE_DETACHED | CLONE_IO)
/* What means nothing for a thread, or where nobody traces. */
#define IDLE_FLAGS (CLONE_PARENT | CLONE_PTRACE | CLONE_UNTRACED)
#define NAMESPACES \
	(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | \
	 CLONE_NEWTIME)
#define TLS_END 0x7ffffffff000ull /* of what Linux takes as a base of fs */

/* What Linux refuses, in its order; 0 if it would not. */
static int clone_refused(const struct start *s)
{
	uint64_t f = s->flags;
	if ((f & CLONE_PIDFD && f & CLONE_PARENT_SETTID && s->pidfd == s->parent_tid) ||
	    (f & CLONE_FS && f & (CLONE_NEWNS | CLONE_NEWUSER)) || (f & CLONE_THREAD && !(f & CLONE_SIGHAND)) ||
	    (f & CLONE_SIGHAND && !(f & CLONE_VM)))
		return -EINVAL;
	/* As the first process of a PID namespace: its parent is no process of the program's. */
	if (f & CLONE_PARENT && !(f & CLONE_THREAD) && !family_has(getppid()))
		return -EINVAL;
	/* A pidfd of a thread is new in Linux 6.9. */
	if (f & CLONE_THREAD && f & (CLONE_NEWUSER | CLONE_NEWPID | CLONE_PIDFD))
		return -EINVAL;
	if (f & CLONE_PIDFD && f & CLONE_DETACHED)
		return -EINVAL;
	if (f & NAMESPACES || (f & CLONE_SETTLS && s->tls >= TLS_END))
		return -EPERM;
	return 0;
}

static int64_t clone_common(struct start *s)
{
	int r = clone_refused(s);
	if (r)
		return r;
	s->flags &= ~(uint64_t)(CLONE_PTRACE | CLONE_UNTRACED);
	if (!(s->flags & CLONE_THREAD)) {
		struct fork_args a = {
			s->flags, s->exit_signal, s->stack, s->parent_tid, s->child_tid, s->tls, s->pidfd
		};
		return process_create(s->parent, &a);
	}
	if (!(s->flags & CLONE_FS) || !(s->flags & CLONE_FILES) || s->flags & CLONE_VFORK) {
		kx_log(KX_LOG_WARN, "thread",
		       "clone with flags %#llx: threads that do not share files or directory, or are waited for: "
		       "ENOSYS",
		       (unsigned long long)s->flags);
		return -ENOSYS;
	}
	/* The thread would outlive the memory that it was lent. What the area says of it is the guest's. */
	if (is_vfork_child())
		return -EAGAIN;
	if (s->flags & ~(uint64_t)(THREAD_FLAGS | IDLE_FLAGS))
		return -EINVAL;
	return thread_create(s);
}

int64_t hc_clone(struct hcall *c)
{
	struct start s = { .parent = c->t,
			   .flags = (uint32_t)c->arg[0] & ~0xffu,
			   .stack = c->arg[1],
			   .parent_tid = c->arg[2],
			   .child_tid = c->arg[3],
			   .tls = c->arg[4],
			   .exit_signal = c->arg[0] & 0xff,
			   .pidfd = c->arg[2] };
	return clone_common(&s);
}

/* set_tid, as without the privilege for it: each number must be one, and then it is refused. */
static int set_tid_refused(const struct clone_args *a)
{
	int32_t tid[SET_TID_MAX];
	if (a->set_tid_size > SET_TID_MAX || !a->set_tid != !a->set_tid_size)
		return -EINVAL;
	if (!a->set_tid)
		return 0;
	if (guest_read(tid, a->set_tid, a->set_tid_size * sizeof tid[0]))
		return -EFAULT;
	return tid[0] < 1 || tid[0] >= PID_LIMIT ? -EINVAL : -EPERM;
}

int64_t hc_clone3(struct hcall *c)
{
	struct clone_args a = { 0 };
	uint64_t size = c->arg[1];
	const uint64_t flags = 0xffffffffu | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;
	if (size > 4096)
		return -E2BIG;
	if (size < CLONE_ARGS_SIZE_VER0)
		return -EINVAL;
	if (guest_read(&a, c->arg[0], size < sizeof a ? size : sizeof a))
		return -EFAULT;
	for (uint64_t i = sizeof a; i < size; i++) {
		char b;
		if (guest_read(&b, c->arg[0] + i, 1))
			return -EFAULT;
		if (b)
			return -E2BIG;
	}
	int tid = set_tid_refused(&a);
	if (tid == -EFAULT || a.exit_signal > 64 ||
	    (a.flags & CLONE_INTO_CGROUP && (a.cgroup > INT32_MAX || size < CLONE_ARGS_SIZE_VER2)))
		return tid == -EFAULT ? tid : -EINVAL;
	if (a.flags & ~flags || a.flags & (CLONE_DETACHED | (0xff & ~CLONE_NEWTIME)) ||
	    (a.flags & CLONE_SIGHAND && a.flags & CLONE_CLEAR_SIGHAND) ||
	    (a.flags & (CLONE_THREAD | CLONE_PARENT) && a.exit_signal) || !a.stack != !a.stack_size ||
	    !gva_ok(a.stack, a.stack_size))
		return -EINVAL;
	struct start s = { .parent = c->t,
			   .flags = a.flags & ~CLONE_INTO_CGROUP,
			   .stack = a.stack ? a.stack + a.stack_size : 0,
			   .parent_tid = a.parent_tid,
			   .child_tid = a.child_tid,
			   .tls = a.tls,
			   .pidfd = a.pidfd,
			   .exit_signal = a.exit_signal };
	int r = clone_refused(&s);
	if (r || tid)
		return r ? r : tid;
	if (a.flags & CLONE_INTO_CGROUP) /* no cgroup file system is in the view, so that is none of its directories */
		return -EBADF;
	return clone_common(&s);
}

int thread_own_start(pthread_t *out, size_t stack, void *(*fn)(void *arg), void *arg)
{
	pthread_attr_t attr;
	pthread_t thread;
	spare_changed();
	birth_unsure();
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, stack);
	if (!out)
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	uint64_t old = sig_block_everything();
	int r = pthread_create(out ? out : &thread, &attr, fn, arg);
	sig_restore(old, self);
	pthread_attr_destroy(&attr);
	return r;
}
