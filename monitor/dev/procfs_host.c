/* SPDX-License-Identifier: Apache-2.0 */
#include "procfs_priv.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include "../../util/together.h"
#include "../core/keeper.h"
#include "../core/thread.h"

#define TEXT_MAX (256u << 20)
#define PRIVATE_STACK (128 << 10)

/* ---- text ------------------------------------------------------------------------------------------------------ */

bool out_room(struct out *t, size_t more)
{
	if (t->err || t->len + more + 1 <= t->cap)
		return !t->err;
	size_t cap = (t->len + more + 1) * 2 < 4096 ? 4096 : (t->len + more + 1) * 2;
	char *p = cap <= TEXT_MAX ? realloc(t->p, cap) : NULL;
	if (!p) {
		t->err = -ENOMEM;
		return false;
	}
	t->p = p;
	t->cap = cap;
	return true;
}

void out_add(struct out *t, const void *s, size_t len)
{
	if (!out_room(t, len))
		return;
	memcpy(t->p + t->len, s, len);
	t->len += len;
	t->p[t->len] = 0;
}

void out_printf(struct out *t, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0 || !out_room(t, (size_t)n))
		return;
	va_start(ap, fmt);
	vsnprintf(t->p + t->len, (size_t)n + 1, fmt, ap);
	va_end(ap);
	t->len += (size_t)n;
}

void out_free(struct out *t)
{
	free(t->p);
	*t = (struct out){ 0 };
}

/* ---- a table of descriptors of one's own ---------------------------------------------------------------------------
 *
 * A descriptor of the host's /proc/self/maps or of a directory of procfs, open for an instant at a low number, could
 * be used by another thread of the guest in that instant. So such files are opened by a thread that lives for one
 * function, does not share the table, and for whose end the caller waits (it borrows our TLS). Not by CLONE_VFORK: who
 * waits so takes no part in a stop of the process, which would then wait for it for ever.
 * "self" is the same process for it; "thread-self" is not us.
 *
 * Where the caller is the program's only thread nobody can see the descriptor, and it reads the file itself. (But it does
 * not list directories: its own self/fd would have one more.) To make a thread copies the table, up to the monitor's own
 * numbers, which lie behind all that the program may have.
 */
struct private_call {
	int (*fn)(void *arg);
	void *arg;
	int r;
};

static KX_TOGETHER pthread_mutex_t proc_lock =
	PTHREAD_MUTEX_INITIALIZER; /* private_stack, entries in /proc; leaf but thr_lock */
static char private_stack[PRIVATE_STACK] __attribute__((aligned(64)));

static bool private_direct; /* no such thread could be had, or is needed */
static pid_t private_last;  /* the thread last made so: it may still be closing its descriptors */

static __thread int proc_depth; /* who lists members looks at each */

/* A child of vfork takes no lock and has a stack of its own; what it finds in /proc is its own, too. */
void proc_enter(void)
{
	if (!is_vfork_child() && !proc_depth++)
		pthread_mutex_lock(&proc_lock);
}

void proc_leave(void)
{
	if (!is_vfork_child() && !--proc_depth)
		pthread_mutex_unlock(&proc_lock);
}

static int private_entry(void *p)
{
	struct private_call *c = p;
	c->r = c->fn(c->arg);
	return 0;
}

/* Between proc_enter() and proc_leave(). */
static int private_run(int (*fn)(void *arg), void *arg)
{
	struct private_call c = { fn, arg, -EIO };
	char *stack = is_vfork_child() ? malloc(PRIVATE_STACK) : private_stack;
	uint64_t all = ~0ull, old = 0;
	if (!stack)
		return -ENOMEM;
	int *running = &self->private_tid; /* cleared by the kernel at its end */
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&old, 8, 0, 0);
	int tid = clone(private_entry, stack + PRIVATE_STACK,
			CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PARENT_SETTID |
				CLONE_CHILD_CLEARTID,
			&c, running, NULL, running);
	int e = errno;
	/* Nothing here may use the TLS, errno included. */
	for (int v; tid > 0 && (v = __atomic_load_n(running, __ATOMIC_ACQUIRE));)
		host_call(SYS_futex, (long)running, FUTEX_WAIT, v, 0, 0, 0);
	if (!is_vfork_child())
		private_last = tid;
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&old, 0, 8, 0, 0);
	if (stack != private_stack)
		free(stack);
	if (tid < 0 && e == EAGAIN && !is_vfork_child() && pvm.nr_threads == 1) {
		/* The limit of processes. Nobody else of the program's is there to see a descriptor. */
		private_direct = true;
		c.r = fn(arg);
		private_direct = false;
		return c.r;
	}
	return tid < 0 ? -e : c.r;
}

/*
 * The end of such a thread closes its copies of all descriptors, and for a message queue that counts as the process's own
 * close: the kernel drops the process's mq_notify(2) registration. So before there is one, a thread is made that stays,
 * with procfs alone in its table, and from then on does what needs nothing else.
 */
static struct {
	pid_t pid; /* the process that it belongs to, 0 = there is none */
	int dir;   /* procfs, in its table */
	uint32_t asked, done;
	int (*fn)(void *arg, int dir);
	void *arg;
	int r;
	char stack[PRIVATE_STACK] __attribute__((aligned(64)));
} * resident;

static int resident_main(void *p)
{
	(void)p;
	HC6(SYS_prctl, PR_SET_NAME, PVM_THREADS "proc", 0, 0, 0, 0);
	if (HC6(SYS_close_range, 0, (unsigned)resident->dir - 1, 0, 0, 0, 0) ||
	    HC6(SYS_close_range, (unsigned)resident->dir + 1, ~0u, 0, 0, 0, 0))
		return 0; /* `pid` stays 0: it was no use */
	for (uint32_t n = 0;; n++) {
		__atomic_store_n(&resident->done, n + 1, __ATOMIC_SEQ_CST);
		HC6(SYS_futex, &resident->done, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
		while (__atomic_load_n(&resident->asked, __ATOMIC_SEQ_CST) == n)
			HC6(SYS_futex, &resident->asked, FUTEX_WAIT_PRIVATE, n, 0, 0, 0);
		resident->r = resident->fn(resident->arg, resident->dir);
	}
}

static void resident_wait(uint32_t n)
{
	for (uint32_t v; (v = __atomic_load_n(&resident->done, __ATOMIC_SEQ_CST)) != n;)
		HC6(SYS_futex, &resident->done, FUTEX_WAIT_PRIVATE, v, 0, 0, 0);
}

int procfs_keep_notify(void)
{
	const int flags = CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	uint64_t all = ~0ull, old = 0;
	int r = 0;
	if (is_vfork_child())
		return 0;
	proc_enter();
	if (!resident && !(resident = calloc(1, sizeof *resident)))
		r = -ENOMEM;
	if (!r && resident->pid != pvm.pid) {
		while (private_last > 0 && !host_call(SYS_tgkill, pvm.pid, private_last, 0, 0, 0, 0))
			host_call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
		resident->dir = pvm.proc_fd;
		resident->asked = resident->done = 0;
		host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&old, 8, 0, 0);
		if (clone(resident_main, resident->stack + PRIVATE_STACK, flags, NULL) < 0)
			r = -errno;
		host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&old, 0, 8, 0, 0);
		if (!r) {
			resident_wait(1);
			resident->pid = pvm.pid;
		}
	}
	proc_leave();
	return r;
}

/* fn with a descriptor of procfs, where nobody sees what it opens. Between proc_enter() and proc_leave(). */
struct with_dir {
	int (*fn)(void *arg, int dir);
	void *arg;
};

static int with_dir_entry(void *p)
{
	struct with_dir *w = p;
	return w->fn(w->arg, pvm.proc_fd);
}

static bool is_alone(void)
{
	return !is_vfork_child() && self && self->vcpu_fd >= 0 &&
	       __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) == 1;
}

static int private_run_dir(int (*fn)(void *arg, int dir), void *arg)
{
	struct with_dir w = { fn, arg };
	if (is_alone()) {
		private_direct = true;
		int r = fn(arg, pvm.proc_fd);
		private_direct = false;
		return r;
	}
	if (!resident || resident->pid != pvm.pid || is_vfork_child())
		return private_run(with_dir_entry, &w);
	uint32_t n = resident->asked + 1;
	resident->fn = fn;
	resident->arg = arg;
	__atomic_store_n(&resident->asked, n, __ATOMIC_SEQ_CST);
	HC6(SYS_futex, &resident->asked, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
	resident_wait(n + 1);
	return resident->r;
}

/* There. The program may have all numbers in use that its limit allows: one less in our copy of the table, or one above it. */
static long private_open(int dirfd, const char *path, int flags)
{
	long fd = HC6(SYS_openat, dirfd, path, flags | O_CLOEXEC, 0, 0, 0);
	if (fd != -EMFILE)
		return fd;
	if (private_direct)
		fd_limit_lift();
	else
		HC6(SYS_close, 0, 0, 0, 0, 0, 0);
	fd = HC6(SYS_openat, dirfd, path, flags | O_CLOEXEC, 0, 0, 0);
	if (private_direct)
		fd_limit_drop();
	return fd;
}

struct read_args {
	const char *rel;
	struct out *t;
};

static int read_fn(void *p, int dir)
{
	struct read_args *a = p;
	long fd = private_open(dir, a->rel, O_RDONLY | O_NOFOLLOW), n = fd;
	while (n >= 0) {
		if (!out_room(a->t, 16384)) {
			n = a->t->err;
			break;
		}
		n = HC6(SYS_read, fd, a->t->p + a->t->len, a->t->cap - a->t->len - 1, 0, 0, 0);
		if (n == -EINTR)
			n = 0;
		else if (n == 0)
			break;
		if (n > 0)
			a->t->len += (size_t)n;
	}
	if (a->t->p)
		a->t->p[a->t->len] = 0;
	if (fd >= 0)
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	return n < 0 ? (int)n : 0;
}

/* Append the host's file to t (NUL-terminated). */
int host_read(const char *rel, struct out *t)
{
	struct read_args a = { rel, t };
	proc_enter();
	int r = private_run_dir(read_fn, &a);
	proc_leave();
	if (r < 0)
		t->err = r;
	else
		out_add(t, "", 0);
	return r;
}

struct peek_args {
	const char *rel;
	char *buf;
	size_t len;
};

static int peek_fn(void *p, int dir)
{
	struct peek_args *a = p;
	long fd = private_open(dir, a->rel, O_RDONLY | O_NOFOLLOW), n = fd;
	if (fd >= 0) {
		n = HC6(SYS_read, fd, a->buf, a->len - 1, 0, 0, 0);
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	}
	a->buf[n > 0 ? n : 0] = 0;
	return (int)n;
}

int procfs_peek(const char *rel, char *buf, size_t len)
{
	struct peek_args a = { rel, buf, len };
	proc_enter();
	int r = private_run_dir(peek_fn, &a);
	proc_leave();
	return r;
}

struct list_args {
	int dirfd;
	const char *path;
	struct out *t;
	unsigned
		below; /* not 0: names are numbers, which the kernel lists in rising order; until one that is not below */
};

#define FEW_BYTES 320 /* of a list that may end early: the kernel makes an inode for each descriptor that it lists */

static int list_fn(void *p)
{
	struct list_args *a = p;
	char buf[8192];
	const size_t size = a->below ? FEW_BYTES : sizeof buf;
	bool more = true;
	long n = 0, fd = private_open(a->dirfd, a->path, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return (int)fd;
	while (more && (n = HC6(SYS_getdents64, fd, buf, size, 0, 0, 0)) > 0)
		for (long i = 0; i < n;) {
			struct dirent64 *d = (void *)(buf + i);
			if (d->d_name[0] != '.') {
				more = !a->below || strtoul(d->d_name, NULL, 10) < a->below;
				out_add(a->t, d->d_name, strlen(d->d_name) + 1);
			}
			i += d->d_reclen;
		}
	HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	return n < 0 ? (int)n : a->t->err;
}

/* Append the names in a directory to t, each with its NUL. As private_run(). */
int list_locked(int dirfd, const char *path, struct out *t)
{
	struct list_args a = { dirfd, path, t, 0 };
	return private_run(list_fn, &a);
}

/* r: 0, or why t has not all names. Frees t. */
static int each_of(struct out *t, int r, void (*fn)(const char *name, void *arg), void *arg)
{
	for (size_t i = 0; !r && i < t->len; i += strlen(t->p + i) + 1)
		fn(t->p + i, arg);
	out_free(t);
	return r;
}

int procfs_each(const char *rel, void (*fn)(const char *name, void *arg), void *arg)
{
	struct out t = { 0 };
	proc_enter();
	int r = list_locked(pvm.proc_fd, rel, &t);
	proc_leave();
	return each_of(&t, r, fn, arg);
}

int procfs_each_early(const char *rel, void (*fn)(const char *name, void *arg), void *arg)
{
	struct out t = { 0 };
	struct list_args a = { pvm.proc_fd, rel, &t, pvm.fd_limit };
	private_direct = true;
	int r = list_fn(&a);
	private_direct = false;
	return each_of(&t, r, fn, arg);
}

void procfs_fork_lock(void) { pthread_mutex_lock(&proc_lock); }
void procfs_fork_unlock(void) { pthread_mutex_unlock(&proc_lock); }
