/* SPDX-License-Identifier: Apache-2.0 */
#include "procfs.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <linux/stat.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "../core/family.h"
#include "../core/gmem.h"
#include "../core/keeper.h"
#include "../core/spare.h"
#include "../core/thread.h"

#define PAGE 4096ul
#define TEXT_MAX (256u << 20)
#define MEM_NAME "kxproc:" /* our memory files in links of self/fd */
#define PRIVATE_STACK (128 << 10)

/* ---- text ------------------------------------------------------------------------------------------------------ */

struct text {
	char *p;
	size_t len, cap;
	int err; /* 0 or -errno: the first that happened */
};

static bool text_room(struct text *t, size_t more)
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

static void text_add(struct text *t, const void *s, size_t len)
{
	if (!text_room(t, len))
		return;
	memcpy(t->p + t->len, s, len);
	t->len += len;
	t->p[t->len] = 0;
}

__attribute__((format(printf, 2, 3))) static void text_printf(struct text *t, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0 || !text_room(t, (size_t)n))
		return;
	va_start(ap, fmt);
	vsnprintf(t->p + t->len, (size_t)n + 1, fmt, ap);
	va_end(ap);
	t->len += (size_t)n;
}

static void text_free(struct text *t)
{
	free(t->p);
	*t = (struct text){ 0 };
}

/* ---- a table of descriptors of one's own ---------------------------------------------------------------------------
 *
 * A descriptor of the host's /proc/self/maps or of a directory of procfs, open for an instant at a low number, could
 * be used by another thread of the guest in that instant. So such files are opened by a thread that lives for one
 * function, does not share the table, and for whose end the caller waits (it borrows our TLS). Not by CLONE_VFORK: who
 * waits so takes no part in a stop of the process, which would then wait for it for ever.
 * "self" is the same process for it; "thread-self" is not us.
 */
struct private_call {
	int (*fn)(void *arg);
	void *arg;
	int r;
};

static pthread_mutex_t proc_lock = PTHREAD_MUTEX_INITIALIZER; /* private_stack, entries in /proc; leaf but thr_lock */
static char private_stack[PRIVATE_STACK] __attribute__((aligned(64)));

static bool private_direct; /* no such thread could be had */
static pid_t private_last;  /* the thread last made so: it may still be closing its descriptors */

static __thread int proc_depth; /* who lists members looks at each */

/* A child of vfork takes no lock and has a stack of its own; what it finds in /proc is its own, too. */
static void proc_enter(void)
{
	if (!is_vfork_child() && !proc_depth++)
		pthread_mutex_lock(&proc_lock);
}

static void proc_leave(void)
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
		fd_limit_lift();
		c.r = fn(arg);
		fd_limit_drop();
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

static int private_run_dir(int (*fn)(void *arg, int dir), void *arg)
{
	struct with_dir w = { fn, arg };
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

/* There. The program may have all numbers in use that its limit allows: one less in our copy of the table. */
static long private_open(int dirfd, const char *path, int flags)
{
	long fd = HC6(SYS_openat, dirfd, path, flags | O_CLOEXEC, 0, 0, 0);
	if (fd != -EMFILE || private_direct)
		return fd;
	HC6(SYS_close, 0, 0, 0, 0, 0, 0);
	return HC6(SYS_openat, dirfd, path, flags | O_CLOEXEC, 0, 0, 0);
}

struct read_args {
	const char *rel;
	struct text *t;
};

static int read_fn(void *p, int dir)
{
	struct read_args *a = p;
	long fd = private_open(dir, a->rel, O_RDONLY | O_NOFOLLOW), n = fd;
	while (n >= 0) {
		if (!text_room(a->t, 16384)) {
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
static int host_read(const char *rel, struct text *t)
{
	struct read_args a = { rel, t };
	proc_enter();
	int r = private_run_dir(read_fn, &a);
	proc_leave();
	if (r < 0)
		t->err = r;
	else
		text_add(t, "", 0);
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
	struct text *t;
};

static int list_fn(void *p)
{
	struct list_args *a = p;
	char buf[8192];
	long n, fd = private_open(a->dirfd, a->path, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return (int)fd;
	while ((n = HC6(SYS_getdents64, fd, buf, sizeof buf, 0, 0, 0)) > 0)
		for (long i = 0; i < n;) {
			struct dirent64 *d = (void *)(buf + i);
			if (d->d_name[0] != '.')
				text_add(a->t, d->d_name, strlen(d->d_name) + 1);
			i += d->d_reclen;
		}
	HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	return n < 0 ? (int)n : a->t->err;
}

/* Append the names in a directory to t, each with its NUL. As private_run(). */
static int list_locked(int dirfd, const char *path, struct text *t)
{
	struct list_args a = { dirfd, path, t };
	return private_run(list_fn, &a);
}

int procfs_each(const char *rel, void (*fn)(const char *name, void *arg), void *arg)
{
	struct text t = { 0 };
	proc_enter();
	int r = list_locked(pvm.proc_fd, rel, &t);
	proc_leave();
	for (size_t i = 0; !r && i < t.len; i += strlen(t.p + i) + 1)
		fn(t.p + i, arg);
	text_free(&t);
	return r;
}

/* ---- names ----------------------------------------------------------------------------------------------------- */

enum kind {
	D_ROOT,
	D_PID,
	D_FD,
	D_FDINFO,
	D_TASKS,
	D_NET,
	D_SYSVIPC,
	D_SYS,
	L_SELF,
	L_THREAD,
	L_MOUNTS,
	L_NET,
	L_EXE,
	L_CWD,
	L_ROOT,
	L_FD,
	F_FDINFO,
	F_PID,
	F_GLOBAL,
	F_NET,
	F_SYS,
};

/* How a file about the process is made. */
enum gen {
	G_MAPS,
	G_SMAPS,
	G_ROLLUP,
	G_STATUS,
	G_STAT,
	G_STATM,
	G_CMDLINE,
	G_ENVIRON,
	G_AUXV,
	G_LIMITS,
	G_MOUNTS,
	G_COPY,   /* the host's text; it is about this process */
	G_THREAD, /* as G_COPY, but the same for all threads and gone with the first one: ask for a live one */
	G_REAL,   /* the host's file, which may be written */
};

/*
 * Not loginuid and sessionid: as on a kernel without auditing. One that can be read and not be written (nobody in the
 * jail may set it) makes PAM refuse a login.
 */
static const struct pid_file {
	const char *name;
	enum gen gen;
	bool members; /* also of other members of the family */
} pid_files[] = {
	{ "maps", G_MAPS, false },
	{ "smaps", G_SMAPS, false },
	{ "smaps_rollup", G_ROLLUP, false },
	{ "status", G_STATUS, true },
	{ "stat", G_STAT, true },
	{ "statm", G_STATM, true },
	{ "cmdline", G_CMDLINE, true },
	{ "environ", G_ENVIRON, true },
	{ "auxv", G_AUXV, false },
	{ "limits", G_LIMITS, true },
	{ "mounts", G_MOUNTS, true },
	{ "mountinfo", G_THREAD, true },
	{ "comm", G_REAL, true },
	{ "oom_score_adj", G_REAL, true },
	{ "oom_score", G_COPY, true },
	{ "oom_adj", G_COPY, true },
	{ "cgroup", G_THREAD, true },
	{ "io", G_COPY, true },
	{ "wchan", G_COPY, true },
	{ "schedstat", G_COPY, true },
	{ "personality", G_COPY, false },
	{ "coredump_filter", G_COPY, false },
	{ "uid_map", G_THREAD, true },
	{ "gid_map", G_THREAD, true },
	{ "setgroups", G_THREAD, true },
};

static const char *const global_files[] = { "meminfo",     "cpuinfo", "stat",  "uptime", "loadavg",
					    "filesystems", "version", "swaps", NULL };
static const char *const net_files[] = { "dev",      "tcp",  "tcp6",      "udp",     "udp6",     "unix", "route",
					 "if_inet6", "snmp", "protocols", "netstat", "sockstat", "arp",  NULL };
/* Of the family's IPC namespace. */
static const char *const sysvipc_files[] = { "msg", "sem", "shm", NULL };
/* Below sys/. A star: any name of [a-z0-9_] that starts so. */
static const char *const sys_files[] = { "vm/overcommit_memory",
					 "vm/overcommit_ratio",
					 "vm/max_map_count",
					 "vm/mmap_min_addr",
					 "vm/nr_hugepages",
					 "vm/swappiness",
					 "kernel/ngroups_max",
					 "kernel/cap_last_cap",
					 "kernel/pid_max",
					 "kernel/osrelease",
					 "kernel/ostype",
					 "kernel/hostname",
					 "kernel/domainname",
					 "kernel/version",
					 "kernel/threads-max",
					 "kernel/random/boot_id",
					 "kernel/random/uuid",
					 "kernel/random/entropy_avail",
					 "kernel/random/poolsize",
					 "kernel/shmmax",
					 "kernel/shmall",
					 "kernel/shmmni",
					 "kernel/sem",
					 "kernel/msgmax",
					 "kernel/msgmni",
					 "kernel/msgmnb",
					 "kernel/sched_rt_runtime_us",
					 "kernel/sched_rt_period_us",
					 "kernel/numa_balancing",
					 "net/core/somaxconn",
					 "net/core/rmem_max",
					 "net/core/wmem_max",
					 "net/core/rmem_default",
					 "net/core/wmem_default",
					 "net/core/netdev_max_backlog",
					 "net/ipv4/ip_local_port_range",
					 "net/ipv4/tcp_*",
					 "net/ipv4/ip_forward",
					 "net/ipv4/ip_nonlocal_bind",
					 "net/ipv6/bindv6only",
					 "net/ipv6/conf/all/disable_ipv6",
					 "fs/file-max",
					 "fs/file-nr",
					 "fs/nr_open",
					 "fs/pipe-max-size",
					 "fs/inotify/*",
					 "fs/mqueue/*",
					 "fs/aio-max-nr",
					 "fs/epoll/*",
					 NULL };

struct node {
	enum kind kind;
	pid_t pid; /* another member of the family; 0 = the caller */
	pid_t tid; /* of a path below task/; 0 = of the process */
	int fd;
	const struct pid_file *file;
	char name[256]; /* F_GLOBAL, F_NET: the name; D_SYS, F_SYS: path below sys/ */
};

static bool in_list(const char *const *list, const char *name)
{
	for (; *list; list++)
		if (!strcmp(*list, name))
			return true;
	return false;
}

/* Is path below sys/ a file (1), a directory on the way to one (2), or nothing? */
static int sys_kind(const char *path)
{
	size_t len = strlen(path);
	for (const char *const *l = sys_files; *l; l++) {
		const char *star = strchr(*l, '*');
		if (star) {
			size_t n = (size_t)(star - *l);
			if (!strncmp(path, *l, n) && path[n] &&
			    !path[n + strspn(path + n, "abcdefghijklmnopqrstuvwxyz0123456789_")])
				return 1;
		} else if (!strcmp(path, *l)) {
			return 1;
		}
		if (!len || (!strncmp(path, *l, len) && (*l)[len] == '/'))
			return 2;
	}
	return 0;
}

static bool number(const char **s, int *out)
{
	const char *p = *s;
	long v = 0;
	while (*p >= '0' && *p <= '9' && p - *s < 10)
		v = v * 10 + *p++ - '0';
	if (p == *s || v > INT32_MAX || (**s == '0' && p - *s > 1))
		return false;
	*s = p;
	*out = (int)v;
	return true;
}

static bool set_name(struct node *n, const char *s)
{
	return snprintf(n->name, sizeof n->name, "%s", s) < (int)sizeof n->name;
}

static bool task_is_shown(pid_t pid, pid_t tid);

/* What is below self/ or <pid>/ (n->pid), or task/<tid>/ of one (n->tid). */
static int parse_pid(const char *s, struct node *n)
{
	static const struct {
		const char *name;
		enum kind kind;
	} special[] = { { "", D_PID },  { "exe", L_EXE },       { "cwd", L_CWD }, { "root", L_ROOT },
			{ "fd", D_FD }, { "fdinfo", D_FDINFO }, { "net", D_NET } };
	for (unsigned i = 0; i < sizeof special / sizeof *special; i++)
		if (!strcmp(s, special[i].name)) {
			n->kind = special[i].kind;
			return n->pid && (n->kind == D_FD || n->kind == D_FDINFO || n->kind == D_NET) ? -ENOENT : 0;
		}
	for (unsigned i = 0; i < sizeof pid_files / sizeof *pid_files; i++)
		if (!strcmp(s, pid_files[i].name) && (!n->pid || pid_files[i].members)) {
			n->kind = F_PID;
			n->file = &pid_files[i];
			return 0;
		}
	bool info = !strncmp(s, "fdinfo/", 7);
	if (n->pid && strncmp(s, "task", 4))
		return -ENOENT;
	if (info || !strncmp(s, "fd/", 3)) {
		s += info ? 7 : 3;
		if (!number(&s, &n->fd) || *s || !fd_is_guest(n->fd))
			return -ENOENT;
		n->kind = info ? F_FDINFO : L_FD;
		return 0;
	}
	if (!strncmp(s, "net/", 4) && in_list(net_files, s + 4)) {
		n->kind = F_NET;
		return set_name(n, s + 4) ? 0 : -ENOENT;
	}
	if (n->tid || strncmp(s, "task", 4))
		return -ENOENT;
	if (!s[4]) {
		n->kind = D_TASKS;
		return 0;
	}
	s += 5;
	int tid;
	if (s[-1] != '/' || !number(&s, &tid) || !tid || (*s && *s != '/') ||
	    !(n->pid ? task_is_shown(n->pid, tid) : thread_is_ours(tid)))
		return -ENOENT;
	n->tid = tid;
	return parse_pid(*s ? s + 1 : s, n);
}

static int parse_plain(const char *s, struct node *n)
{
	static const struct {
		const char *name;
		enum kind kind;
	} special[] = { { "", D_ROOT },         { ".", D_ROOT },  { "self", L_SELF }, { "thread-self", L_THREAD },
			{ "mounts", L_MOUNTS }, { "net", L_NET }, { "sys", D_SYS },   { "sysvipc", D_SYSVIPC } };
	for (unsigned i = 0; i < sizeof special / sizeof *special; i++)
		if (!strcmp(s, special[i].name)) {
			n->kind = special[i].kind;
			return 0;
		}
	if (!strncmp(s, "self/", 5))
		return parse_pid(s + 5, n);
	if (!strncmp(s, "net/", 4))
		return parse_pid(s, n);
	int pid;
	if (number(&s, &pid)) {
		if ((*s && *s != '/') || !family_has(pid))
			return -ENOENT;
		n->pid = pid;
		return parse_pid(*s ? s + 1 : s, n);
	}
	if (in_list(global_files, s) || (!strncmp(s, "sysvipc/", 8) && in_list(sysvipc_files, s + 8))) {
		n->kind = F_GLOBAL;
		return set_name(n, s) ? 0 : -ENOENT;
	}
	int k = !strncmp(s, "sys/", 4) ? sys_kind(s + 4) : 0;
	if (!k || !set_name(n, s + 4))
		return -ENOENT;
	n->kind = k == 1 ? F_SYS : D_SYS;
	return 0;
}

static bool is_dir(const struct node *n) { return n->kind <= D_SYS; }
static bool is_link(const struct node *n) { return n->kind >= L_SELF && n->kind <= L_FD; }

static pid_t own_tid(void) { return (pid_t)host_call(SYS_gettid, 0, 0, 0, 0, 0, 0); }

/* Links whose target is in procfs itself. */
static void follow(struct node *n)
{
	switch (n->kind) {
	case L_SELF:
		n->kind = D_PID;
		break;
	case L_THREAD:
		n->kind = D_PID;
		n->tid = own_tid();
		break;
	case L_MOUNTS:
		parse_pid("mounts", n);
		break;
	case L_NET:
		n->kind = D_NET;
		break;
	default:
		break;
	}
}

static int parse(const char *rel, struct node *n)
{
	char buf[PATH_MAX + 64];
	size_t len = strnlen(rel, sizeof buf);
	if (len >= sizeof buf)
		return -ENAMETOOLONG;
	memcpy(buf, rel, len + 1);
	bool slash = len && buf[len - 1] == '/';
	if (slash)
		buf[len - 1] = 0;
	memset(n, 0, sizeof *n);
	int r = parse_plain(buf, n);
	if (r || !slash)
		return r;
	follow(n);
	return n->kind > L_NET && n->kind != L_CWD && n->kind != L_ROOT && n->kind != L_FD ? -ENOTDIR : 0;
}

/* Where the host's procfs has it. */
static void host_path(const struct node *n, char out[512])
{
	static const char *const link[] = { [L_EXE] = "exe", [L_CWD] = "cwd", [L_ROOT] = "root" };
	char who[64];
	if (n->pid && n->tid)
		snprintf(who, sizeof who, "%d/task/%d", n->pid, n->tid);
	else if (n->pid)
		snprintf(who, sizeof who, "%d", n->pid);
	else if (n->tid)
		snprintf(who, sizeof who, "self/task/%d", n->tid);
	else
		snprintf(who, sizeof who, "self");
	if (n->pid && n->kind >= L_EXE && n->kind <= L_ROOT) {
		snprintf(out, 512, "%s/%s", who, link[n->kind]);
		return;
	}
	switch (n->kind) {
	case L_SELF:
		strcpy(out, "self");
		break;
	case L_THREAD:
		strcpy(out, "thread-self");
		break;
	case L_MOUNTS:
		strcpy(out, "mounts");
		break;
	case L_NET:
		strcpy(out, "net");
		break;
	case L_EXE:
		snprintf(out, 512, "self/task/%d/exe", own_tid());
		break;
	case L_CWD:
		snprintf(out, 512, "self/task/%d/cwd", own_tid());
		break;
	case L_ROOT:
		snprintf(out, 512, "self/task/%d/root", own_tid());
		break;
	case L_FD:
		snprintf(out, 512, "self/task/%d/fd/%d", own_tid(), n->fd);
		break;
	case F_FDINFO:
		snprintf(out, 512, "self/task/%d/fdinfo/%d", own_tid(), n->fd);
		break;
	case F_PID:
		if (n->file->gen == G_COPY || n->file->gen == G_STAT || n->file->gen == G_STATUS ||
		    n->file->gen == G_REAL || n->file->gen == G_LIMITS ||
		    (n->pid && n->file->gen != G_THREAD && n->file->gen != G_MOUNTS))
			snprintf(out, 512, "%s/%s", who, n->file->name);
		else
			snprintf(out, 512, "self/task/%d/%s", own_tid(), n->file->name);
		break;
	case F_GLOBAL:
		snprintf(out, 512, "%s", n->name);
		break;
	case F_NET:
		snprintf(out, 512, "self/task/%d/net/%s", own_tid(), n->name);
		break;
	case F_SYS:
	case D_SYS:
		snprintf(out, 512, "sys/%s", n->name);
		break;
	default:
		out[0] = 0;
	}
}

/* ---- the memory map -------------------------------------------------------------------------------------------- */

#define FIELDS_MAX 40

/* A mapping of the host inside the guest's space. Strings point into the text that it was read from. */
struct hvma {
	uint64_t start, end, off; /* guest addresses */
	const char *dev, *inode, *name;
	int dev_len, inode_len, name_len;
	const char *fields; /* smaps: the lines below, up to fields_end */
	const char *fields_end;
	uint64_t left[FIELDS_MAX]; /* kB not yet told, by line */
	bool opened;
};

struct hmaps {
	struct text text;
	struct hvma *v;
	size_t n, cap;
};

static bool hvma_parse(const char *line, const char *eol, struct hvma *v)
{
	char *p;
	uint64_t base = (uint64_t)pvm.base;
	memset(v, 0, sizeof *v);
	uint64_t start = strtoull(line, &p, 16);
	if (*p != '-')
		return false;
	uint64_t end = strtoull(p + 1, &p, 16);
	if (start < base || end > base + (pvm.high_end ? pvm.high_end : KX_SPACE_SIZE) || p + 6 > eol)
		return false;
	v->start = start - base;
	v->end = end - base;
	v->off = strtoull(p + 6, &p, 16);
	while (p < eol && *p == ' ')
		p++;
	v->dev = p;
	while (p < eol && *p != ' ')
		p++;
	v->dev_len = (int)(p - v->dev);
	while (p < eol && *p == ' ')
		p++;
	v->inode = p;
	while (p < eol && *p != ' ')
		p++;
	v->inode_len = (int)(p - v->inode);
	while (p < eol && *p == ' ')
		p++;
	v->name = p;
	v->name_len = (int)(eol - p);
	return true;
}

static int hmaps_read(struct hmaps *m, bool smaps)
{
	char rel[64];
	memset(m, 0, sizeof *m);
	snprintf(rel, sizeof rel, "self/task/%d/%s", own_tid(), smaps ? "smaps" : "maps");
	int r = host_read(rel, &m->text);
	if (r < 0)
		return r;
	struct hvma *cur = NULL;
	const char *end = m->text.p + m->text.len;
	for (const char *s = m->text.p, *eol; s < end; s = eol + 1) {
		eol = memchr(s, '\n', (size_t)(end - s));
		if (!eol)
			break;
		if (*s >= 'A' && *s <= 'Z') { /* a field of smaps: addresses are in small letters */
			if (cur)
				cur->fields_end = eol + 1;
			continue;
		}
		if (m->n == m->cap) {
			size_t cap = m->cap ? m->cap * 2 : 64;
			struct hvma *v = realloc(m->v, cap * sizeof *v);
			if (!v)
				return -ENOMEM;
			m->v = v;
			m->cap = cap;
		}
		cur = NULL;
		if (hvma_parse(s, eol, &m->v[m->n])) {
			cur = &m->v[m->n++];
			cur->fields = cur->fields_end = eol + 1;
		}
	}
	return 0;
}

static void hmaps_free(struct hmaps *m)
{
	text_free(&m->text);
	free(m->v);
}

struct piece {
	uint64_t start, end;
	const struct gmem_region *r;
	struct hvma *v; /* NULL: the host has changed it meanwhile */
};

/* All of the program's regions, cut where the host's mappings are. */
static void for_pieces(struct hmaps *m, void (*fn)(void *arg, const struct piece *p), void *arg)
{
	struct gmem_region r;
	size_t i = 0;
	for (uint64_t at = 0; gmem_query(at, &r); at = r.end) {
		if (gmem_own(&r))
			continue;
		for (uint64_t a = r.start; a < r.end;) {
			while (i < m->n && m->v[i].end <= a)
				i++;
			struct piece p = { a, r.end, &r, NULL };
			if (i < m->n && m->v[i].start <= a)
				p.v = &m->v[i];
			uint64_t stop = p.v ? p.v->end : i < m->n ? m->v[i].start : r.end;
			if (stop < p.end)
				p.end = stop;
			fn(arg, &p);
			a = p.end;
		}
	}
}

static const char *region_label(const struct gmem_region *r, uint64_t brk)
{
	if (!(r->flags & MAP_ANONYMOUS) || r->flags & MAP_SHARED)
		return NULL;
	if (r->start < pvm.stack_top && r->end >= pvm.stack_top)
		return "[stack]";
	return r->start < brk && r->end > pvm.brk_start ? "[heap]" : NULL;
}

struct maps_out {
	struct text *t;
	uint64_t brk;
	bool smaps;
	uint64_t sums[FIELDS_MAX]; /* rollup */
	struct hmaps *m;
};

static void put_head(struct text *t, uint64_t start, uint64_t end, const char *perm, uint64_t off, const char *dev,
		     int dev_len, const char *inode, int inode_len, const char *name, int name_len)
{
	size_t at = t->len;
	text_printf(t, "%08" PRIx64 "-%08" PRIx64 " %s %08" PRIx64 " %.*s %.*s ", start, end, perm, off, dev_len, dev,
		    inode_len, inode);
	if (name_len) {
		int pad = 73 - (int)(t->len - at);
		text_printf(t, "%*s%.*s", pad > 0 ? pad : 0, "", name_len, name);
	}
	text_add(t, "\n", 1);
}

static bool field_kb(const char *s, const char *eol, int *key_len, uint64_t *kb)
{
	const char *colon = memchr(s, ':', (size_t)(eol - s));
	if (!colon || eol - s < 4 || memcmp(eol - 3, " kB", 3))
		return false;
	*key_len = (int)(colon - s) + 1;
	*kb = strtoull(colon + 1, NULL, 10);
	return true;
}

static bool key_is(const char *s, const char *key) { return !strncmp(s, key, strlen(key)); }

/*
 * The numbers of a host mapping that holds several pieces go to the first piece as far as they fit, then to the
 * next: sums stay right.
 */
static void put_fields(struct maps_out *o, const struct piece *p, bool sum)
{
	uint64_t size = (p->end - p->start) >> 10;
	int i = 0, key;
	if (!p->v)
		return;
	for (const char *s = p->v->fields, *eol; s < p->v->fields_end; s = eol + 1, i++) {
		uint64_t kb;
		eol = memchr(s, '\n', (size_t)(p->v->fields_end - s));
		if (!eol)
			break;
		if (!field_kb(s, eol, &key, &kb) || i >= FIELDS_MAX) {
			if (!sum)
				text_add(o->t, s, (size_t)(eol + 1 - s));
			continue;
		}
		if (key_is(s, "Size:")) {
			kb = size;
		} else if (!key_is(s, "KernelPageSize:") && !key_is(s, "MMUPageSize:")) {
			if (!p->v->opened)
				p->v->left[i] = kb;
			kb = p->v->left[i] < size ? p->v->left[i] : size;
			p->v->left[i] -= kb;
			o->sums[i] += kb;
		}
		if (!sum)
			text_printf(o->t, "%-16.*s%8" PRIu64 " kB\n", key, s, kb);
	}
	p->v->opened = true;
}

static void maps_piece(void *arg, const struct piece *p)
{
	struct maps_out *o = arg;
	int prot = p->r->prot;
	char perm[5] = { prot & PROT_READ ? 'r' : '-', prot & PROT_WRITE ? 'w' : '-', prot & PROT_EXEC ? 'x' : '-',
			 p->r->flags & MAP_SHARED ? 's' : 'p', 0 };
	const char *label = region_label(p->r, o->brk);
	const struct hvma *v = p->v;
	bool file = v && !(v->inode_len == 1 && v->inode[0] == '0');
	struct gmem_text_file f;
	if ((p->r->flags & GMEM_TEXT || p->r->origin) && gmem_text_file(p->start, &f)) {
		char dev[16], ino[24];
		int dl = snprintf(dev, sizeof dev, "%02x:%02x", major(f.dev), minor(f.dev));
		int il = snprintf(ino, sizeof ino, "%" PRIu64, f.ino);
		put_head(o->t, p->start, p->end, perm, f.off, dev, dl, ino, il, f.path, (int)strlen(f.path));
	} else if (label || !v)
		put_head(o->t, p->start, p->end, perm, 0, "00:00", 5, "0", 1, label ? label : "",
			 label ? (int)strlen(label) : 0);
	else
		put_head(o->t, p->start, p->end, perm, file ? v->off + (p->start - v->start) : 0, v->dev, v->dev_len,
			 v->inode, v->inode_len, v->name, v->name_len);
	if (o->smaps)
		put_fields(o, p, false);
}

static void rollup_piece(void *arg, const struct piece *p) { put_fields(arg, p, true); }

static int gen_maps(struct text *t, enum gen gen)
{
	struct hmaps m;
	struct maps_out o = { .t = t, .brk = gmem_brk(0), .smaps = gen == G_SMAPS };
	int r = hmaps_read(&m, gen != G_MAPS);
	if (!r && gen != G_ROLLUP) {
		for_pieces(&m, maps_piece, &o);
		put_head(t, KX_VDSO_BASE, KX_VDSO_BASE + 0x10000, "r-xp", 0, "00:00", 5, "0", 1, "[vdso]", 6);
		if (o.smaps)
			text_printf(t,
				    "%-16s%8d kB\n%-16s%8d kB\n%-16s%8d kB\n%-16s%8d kB\n%-16s%8d kB\nVmFlags: rd ex "
				    "mr mw me de \n",
				    "Size:", 64, "KernelPageSize:", 4, "MMUPageSize:", 4, "Rss:", 0, "Pss:", 0);
	} else if (!r) {
		struct gmem_region first = { 0 };
		gmem_query(0, &first);
		for_pieces(&m, rollup_piece, &o);
		put_head(t, first.start, KX_VDSO_BASE + 0x10000, "---p", 0, "00:00", 5, "0", 1, "[rollup]", 8);
		int i = 0, key;
		uint64_t kb;
		/* All mappings have the same lines: take the names from any. */
		for (const char *s = m.n ? m.v[0].fields : "", *eol; m.n && s < m.v[0].fields_end; s = eol + 1, i++) {
			eol = strchr(s, '\n');
			if (field_kb(s, eol, &key, &kb) && i < FIELDS_MAX && !key_is(s, "Size:") &&
			    !key_is(s, "KernelPageSize:") && !key_is(s, "MMUPageSize:"))
				text_printf(t, "%-16.*s%8" PRIu64 " kB\n", key, s, o.sums[i]);
		}
	}
	hmaps_free(&m);
	return r;
}

/* ---- sizes ----------------------------------------------------------------------------------------------------- */

struct vm_sizes {
	uint64_t total, peak, data, stack, exe, lib; /* bytes */
};

static struct vm_sizes vm_sizes(void)
{
	static uint64_t peak;
	struct vm_sizes s = { 0 };
	struct gmem_region r;
	for (uint64_t at = 0; gmem_query(at, &r); at = r.end) {
		uint64_t n = r.end - r.start;
		if (gmem_own(&r))
			continue;
		s.total += n;
		if (r.start < pvm.stack_top && r.end >= pvm.stack_top)
			s.stack += n;
		else if (r.prot & PROT_WRITE && !(r.flags & MAP_SHARED))
			s.data += n;
		else if (r.prot & PROT_EXEC)
			*(r.end <= pvm.brk_start ? &s.exe : &s.lib) += n;
	}
	s.peak = __atomic_load_n(&peak, __ATOMIC_RELAXED);
	if (s.total > s.peak)
		__atomic_store_n(&peak, s.peak = s.total, __ATOMIC_RELAXED);
	return s;
}

static int nr_threads(void) { return __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED); }

static int gen_status(struct text *t, const char *host)
{
	struct text in = { 0 };
	struct vm_sizes s = vm_sizes();
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	const struct {
		const char *key;
		uint64_t kb;
		bool cap; /* the host's number, but no more than this: it has the monitor in it */
	} size[] = { { "VmPeak:", s.peak >> 10, false }, { "VmSize:", s.total >> 10, false },
		     { "VmHWM:", s.total >> 10, true },  { "VmRSS:", s.total >> 10, true },
		     { "VmData:", s.data >> 10, false }, { "VmStk:", s.stack >> 10, false },
		     { "VmExe:", s.exe >> 10, false },   { "VmLib:", s.lib >> 10, false } };
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		unsigned i = 0, n = sizeof size / sizeof *size;
		while (i < n && !key_is(p, size[i].key))
			i++;
		if (i < n) {
			uint64_t v = strtoull(p + strlen(size[i].key), NULL, 10);
			if (!size[i].cap || v > size[i].kb)
				v = size[i].kb;
			text_printf(t, "%s\t%8" PRIu64 " kB\n", size[i].key, v);
		} else if (key_is(p, "State:\tD")) { /* it waits for private_run() */
			text_printf(t, "State:\tR (running)\n");
		} else if (key_is(p, "FDSize:")) {
			unsigned long n = strtoul(p + 7, NULL, 10);
			text_printf(t, "FDSize:\t%lu\n", n < 256 ? n : 256);
		} else if (key_is(p, "Threads:")) {
			text_printf(t, "Threads:\t%d\n", nr_threads());
		} else if (key_is(p, "NoNewPrivs:")) {
			text_printf(t, "NoNewPrivs:\t%d\n", pvm.no_new_privs);
		} else {
			text_add(t, p, (size_t)(eol + 1 - p));
		}
	}
	text_free(&in);
	return 0;
}

/* proc(5): fields by number; (2) is the name, which may hold anything. */
static int gen_stat(struct text *t, const char *host)
{
	struct text in = { 0 };
	struct vm_sizes s = vm_sizes();
	int r = host_read(host, &in), field = 3;
	if (r < 0)
		return r;
	char *p = strrchr(in.p, ')');
	if (!p) {
		text_free(&in);
		return -EIO;
	}
	text_add(t, in.p, (size_t)(p + 1 - in.p));
	for (char *save, *tok = strtok_r(p + 1, " \n", &save); tok; tok = strtok_r(NULL, " \n", &save), field++) {
		uint64_t v, pages = s.total / PAGE;
		switch (field) {
		case 3: /* it waits for private_run() */
			text_printf(t, " %s", *tok == 'D' ? "R" : tok);
			continue;
		case 20:
			v = (uint64_t)nr_threads();
			break;
		case 23:
			v = s.total;
			break;
		case 24:
			v = strtoull(tok, NULL, 10) < pages ? strtoull(tok, NULL, 10) : pages;
			break;
		case 28:
			v = pvm.stack_top;
			break;
		case 47:
			v = pvm.brk_start;
			break;
		case 48:
			v = pvm.arg_start;
			break;
		case 49:
			v = pvm.arg_end;
			break;
		case 50:
			v = pvm.env_start;
			break;
		case 51:
			v = pvm.env_end;
			break;
		case 26:
		case 27:
		case 29:
		case 30:
		case 35:
		case 45:
		case 46:
			v = 0;
			break;
		default:
			text_printf(t, " %s", tok);
			continue;
		}
		text_printf(t, " %" PRIu64, v);
	}
	text_add(t, "\n", 1);
	text_free(&in);
	return 0;
}

static int gen_statm(struct text *t, const char *host)
{
	struct text in = { 0 };
	struct vm_sizes s = vm_sizes();
	uint64_t total, rss = 0, shared = 0;
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	if (sscanf(in.p, "%" SCNu64 " %" SCNu64 " %" SCNu64, &total, &rss, &shared) != 3)
		rss = shared = 0;
	total = s.total / PAGE;
	rss = rss < total ? rss : total;
	shared = shared < rss ? shared : rss;
	text_printf(t, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " 0 %" PRIu64 " 0\n", total, rss, shared,
		    (s.exe + s.lib) / PAGE, (s.data + s.stack) / PAGE);
	text_free(&in);
	return 0;
}

/* ---- other members ---------------------------------------------------------------------------------------------
 *
 * What the host's procfs says of their monitors, without what is the monitors': addresses, the reservation of guest
 * memory in sizes, threads of the kernel's. The size of a member's memory is not known here; told is what it can be at
 * least.
 */

#define USER_WORKER 0x4000 /* PF_USER_WORKER in the flags of stat: KVM's */

static bool task_is_shown(pid_t pid, pid_t tid)
{
	struct text in = { 0 };
	char rel[64];
	unsigned long flags;
	snprintf(rel, sizeof rel, "%d/task/%d/stat", pid, tid);
	bool shown = false;
	if (host_read(rel, &in) >= 0) {
		char *name = strchr(in.p, '('), *p = strrchr(in.p, ')');
		shown = p && name && strncmp(name + 1, PVM_THREADS, sizeof PVM_THREADS - 1) &&
			sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %lu", &flags) == 1 && !(flags & USER_WORKER);
	}
	text_free(&in);
	return shown;
}

/* Append its threads, each with its NUL; returns their number. */
static int member_tasks(pid_t pid, struct text *t)
{
	struct text all = { 0 };
	char rel[64];
	int n = 0;
	snprintf(rel, sizeof rel, "%d/task", pid);
	proc_enter();
	int r = list_locked(pvm.proc_fd, rel, &all);
	proc_leave();
	for (size_t i = 0; !r && i < all.len; i += strlen(all.p + i) + 1)
		if (task_is_shown(pid, atoi(all.p + i))) {
			n++;
			if (t)
				text_add(t, all.p + i, strlen(all.p + i) + 1);
		}
	text_free(&all);
	return n;
}

static uint64_t line_kb(const char *text, const char *key)
{
	const char *p = strstr(text, key);
	return p ? strtoull(p + strlen(key), NULL, 10) : 0;
}

/* Kilobytes of private writable memory that a monitor has beside the program's: those of this one. */
static uint64_t own_overhead(void)
{
	static uint64_t known;
	uint64_t kb = __atomic_load_n(&known, __ATOMIC_RELAXED);
	struct text in = { 0 };
	if (!kb && host_read("self/status", &in) >= 0) {
		struct vm_sizes s = vm_sizes();
		uint64_t all = line_kb(in.p, "\nVmData:") + line_kb(in.p, "\nVmStk:"), guest = (s.data + s.stack) >> 10;
		kb = all > guest ? all - guest : 1;
		__atomic_store_n(&known, kb, __ATOMIC_RELAXED);
	}
	text_free(&in);
	return kb;
}

static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

static int member_status(struct text *t, const struct node *n, const char *host)
{
	struct text in = { 0 };
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	uint64_t rss = line_kb(in.p, "\nVmRSS:"), file = line_kb(in.p, "\nRssFile:") + line_kb(in.p, "\nRssShmem:");
	uint64_t data = line_kb(in.p, "\nVmData:") + line_kb(in.p, "\nVmStk:"), hwm = line_kb(in.p, "\nVmHWM:");
	data = less(data, own_overhead());
	uint64_t size = data + file > rss ? data + file : rss;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		if (key_is(p, "VmPeak:"))
			text_printf(t, "VmPeak:\t%8" PRIu64 " kB\n", size > hwm ? size : hwm);
		else if (key_is(p, "VmSize:"))
			text_printf(t, "VmSize:\t%8" PRIu64 " kB\n", size);
		else if (key_is(p, "VmData:"))
			text_printf(t, "VmData:\t%8" PRIu64 " kB\n", less(data, line_kb(in.p, "\nVmStk:")));
		else if (key_is(p, "VmExe:"))
			text_printf(t, "VmExe:\t%8d kB\n", 0);
		else if (key_is(p, "VmLib:"))
			text_printf(t, "VmLib:\t%8" PRIu64 " kB\n", file);
		else if (key_is(p, "FDSize:"))
			text_printf(t, "FDSize:\t256\n");
		else if (key_is(p, "Threads:"))
			text_printf(t, "Threads:\t%d\n", member_tasks(n->pid, NULL));
		else if (key_is(p, "NoNewPrivs:")) /* the monitor has it always */
			text_printf(t, "NoNewPrivs:\t%d\n", pvm.no_new_privs);
		else
			text_add(t, p, (size_t)(eol + 1 - p));
	}
	text_free(&in);
	return 0;
}

/* Pages: what statm says of the monitor, and the size. */
static int member_pages(const struct node *n, uint64_t *size, uint64_t *rss, uint64_t *shared, uint64_t *data)
{
	struct text in = { 0 };
	char rel[64];
	snprintf(rel, sizeof rel, "%d/statm", n->pid);
	int r = host_read(rel, &in);
	*rss = *shared = *data = 0;
	if (r >= 0 && sscanf(in.p, "%*u %" SCNu64 " %" SCNu64 " %*u %*u %" SCNu64, rss, shared, data) != 3)
		r = -EIO;
	text_free(&in);
	*data = less(*data, own_overhead() / (PAGE >> 10));
	*size = *data + *shared > *rss ? *data + *shared : *rss;
	return r;
}

static int member_stat(struct text *t, const struct node *n, const char *host)
{
	struct text in = { 0 };
	uint64_t size, rss, shared, data;
	int r = member_pages(n, &size, &rss, &shared, &data), field = 3;
	if (r < 0 || (r = host_read(host, &in)) < 0)
		return r;
	char *p = strrchr(in.p, ')'), *save;
	if (!p) {
		text_free(&in);
		return -EIO;
	}
	text_add(t, in.p, (size_t)(p + 1 - in.p));
	for (char *tok = strtok_r(p + 1, " \n", &save); tok; tok = strtok_r(NULL, " \n", &save), field++) {
		if (field == 20)
			text_printf(t, " %d", member_tasks(n->pid, NULL));
		else if (field == 23)
			text_printf(t, " %" PRIu64, size * PAGE);
		else if ((field >= 26 && field <= 30) || field == 35 || (field >= 45 && field <= 51))
			text_add(t, " 0", 2);
		else
			text_printf(t, " %s", tok);
	}
	text_add(t, "\n", 1);
	text_free(&in);
	return 0;
}

static int gen_limits(struct text *t, const char *host);
static int gen_mounts(struct text *t, const char *host);

static int member_file(const struct node *n, const char *host, struct text *t)
{
	uint64_t size, rss, shared, data;
	int r;
	switch (n->file->gen) {
	case G_STATUS:
		return member_status(t, n, host);
	case G_STAT:
		return member_stat(t, n, host);
	case G_STATM:
		r = member_pages(n, &size, &rss, &shared, &data);
		text_printf(t, "%" PRIu64 " %" PRIu64 " %" PRIu64 " 0 0 %" PRIu64 " 0\n", size, rss, shared, data);
		return r < 0 ? r : 0;
	case G_CMDLINE:
	case G_ENVIRON: /* whether it may be read is the kernel's to say */
		return pvm.args_shown ? host_read(host, t) : 0;
	case G_LIMITS:
		return gen_limits(t, host);
	case G_MOUNTS: /* all have the same */
		return gen_mounts(t, host);
	default:
		return host_read(host, t);
	}
}

/* ---- other files ------------------------------------------------------------------------------------------------ */

/* A range of guest memory; what can't be read is left out, as by the kernel. */
static void put_guest(struct text *t, uint64_t start, uint64_t end)
{
	if (end <= start || !gva_ok(start, end - start))
		return;
	while (start < end) {
		size_t n = end - start > 65536 ? 65536 : end - start;
		if (!text_room(t, n) || guest_read(t->p + t->len, start, n))
			return;
		t->len += n;
		start += n;
	}
}

/* As the kernel: a program that wrote over the NUL at the end of its arguments goes on into its environment. */
static void gen_cmdline(struct text *t)
{
	put_guest(t, pvm.arg_start, pvm.arg_end);
	if (!t->len || !t->p[t->len - 1])
		return;
	if (pvm.env_start == pvm.arg_end)
		put_guest(t, pvm.env_start, pvm.env_end);
	size_t n = strnlen(t->p, t->len);
	t->len = n < t->len ? n + 1 : n;
}

static int gen_limits(struct text *t, const char *host)
{
	struct text in = { 0 };
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		unsigned long long soft, hard;
		if (sscanf(p, "Max open files %llu %llu", &soft, &hard) == 2 && hard > pvm.fd_max)
			text_printf(t, "%-25s %-20llu %-20u %-10s\n", "Max open files", soft, pvm.fd_max, "files");
		else
			text_add(t, p, (size_t)(eol + 1 - p));
	}
	text_free(&in);
	return 0;
}

/* The view's mounts; its /proc looks as it should. */
static int gen_mounts(struct text *t, const char *host)
{
	static const char proc[] = "proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n";
	struct text in = { 0 };
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		char *dir = memchr(p, ' ', (size_t)(eol - p));
		if (!dir || strncmp(dir, " /proc ", 7))
			text_add(t, p, (size_t)(eol + 1 - p));
	}
	text_add(t, proc, sizeof proc - 1);
	text_free(&in);
	return 0;
}

static uint64_t private_bytes(void)
{
	struct vm_sizes s = vm_sizes();
	return s.data + s.stack;
}

/* A program that may have less than the host has shall see less. */
static int gen_meminfo(struct text *t)
{
	struct text in = { 0 };
	int r = host_read("meminfo", &in);
	if (r < 0)
		return r;
	uint64_t limit = pvm.cfg->memory >> 10, used = private_bytes() >> 10, total = 0;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		const char *colon = memchr(p, ':', (size_t)(eol - p));
		uint64_t v = colon ? strtoull(colon + 1, NULL, 10) : 0, max = limit;
		if (key_is(p, "MemTotal:"))
			total = v;
		else if (key_is(p, "MemFree:") || key_is(p, "MemAvailable:"))
			max = used < limit ? limit - used : 0;
		else if (key_is(p, "SwapTotal:") || key_is(p, "SwapFree:") || key_is(p, "SwapCached:"))
			max = 0;
		bool kb = colon && !memcmp(eol - 3, " kB", 3) && !key_is(p, "Vmalloc") && !key_is(p, "DirectMap") &&
			  !key_is(p, "Hugepagesize");
		if (kb && total > limit && v > max)
			text_printf(t, "%-16.*s%8" PRIu64 " kB\n", (int)(colon + 1 - p), p, max);
		else
			text_add(t, p, (size_t)(eol + 1 - p));
	}
	text_free(&in);
	return 0;
}

/* What is told of one processor: from its own line on, or that line alone. */
static bool cpu_is_shown(const char *number)
{
	char *end;
	unsigned long n = strtoul(number, &end, 10);
	return end != number && n < CPU_SETSIZE && CPU_ISSET(n, &pvm.cpus);
}

static int gen_cpuinfo(struct text *t)
{
	struct text in = { 0 };
	bool shown = true;
	int r = host_read("cpuinfo", &in);
	for (char *p = in.p, *eol; r >= 0 && (eol = strchr(p, '\n')); p = eol + 1) {
		char *colon = memchr(p, ':', (size_t)(eol - p));
		if (key_is(p, "processor\t") && colon)
			shown = cpu_is_shown(colon + 2);
		if (shown)
			text_add(t, p, (size_t)(eol + 1 - p));
	}
	text_free(&in);
	return r < 0 ? r : 0;
}

#define STAT_COLUMNS 10

/* The line of all processors is the sum of those that are shown. */
static int gen_cpu_stat(struct text *t)
{
	struct text in = { 0 }, lines = { 0 }, rest = { 0 };
	uint64_t sum[STAT_COLUMNS] = { 0 };
	int r = host_read("stat", &in);
	for (char *p = in.p, *eol; r >= 0 && (eol = strchr(p, '\n')); p = eol + 1) {
		if (!key_is(p, "cpu")) {
			text_add(&rest, p, (size_t)(eol + 1 - p));
		} else if (p[3] != ' ' && cpu_is_shown(p + 3)) {
			char *at = strchr(p, ' ');
			for (int i = 0; i < STAT_COLUMNS && at && at < eol; i++)
				sum[i] += strtoull(at, &at, 10);
			text_add(&lines, p, (size_t)(eol + 1 - p));
		}
	}
	if (r >= 0) {
		text_printf(t, "cpu ");
		for (int i = 0; i < STAT_COLUMNS; i++)
			text_printf(t, " %" PRIu64, sum[i]);
		text_printf(t, "\n");
		text_add(t, lines.p ? lines.p : "", lines.len);
		text_add(t, rest.p ? rest.p : "", rest.len);
	}
	text_free(&in);
	text_free(&lines);
	text_free(&rest);
	return r < 0 ? r : 0;
}

/* Files about the machine that the options change. */
static const struct machine_file {
	const char *name;
	int (*gen)(struct text *t);
	bool cpus; /* by --cpus, else by --memory */
} machine_files[] = { { "meminfo", gen_meminfo, false },
		      { "cpuinfo", gen_cpuinfo, true },
		      { "stat", gen_cpu_stat, true } };

/* NULL: as the host has it. */
static const struct machine_file *changed_file(const struct node *n)
{
	if (n->kind != F_GLOBAL || !pvm.cfg)
		return NULL;
	for (unsigned i = 0; i < sizeof machine_files / sizeof *machine_files; i++)
		if (!strcmp(n->name, machine_files[i].name))
			return (machine_files[i].cpus ? pvm.cfg->cpus != 0 : pvm.cfg->memory != 0) ? &machine_files[i]
												   : NULL;
	return NULL;
}

static int generate(const struct node *n, struct text *t)
{
	char host[512];
	host_path(n, host);
	if (n->kind != F_PID)
		return changed_file(n) ? changed_file(n)->gen(t) : host_read(host, t);
	if (n->pid)
		return member_file(n, host, t);
	switch (n->file->gen) {
	case G_MAPS:
	case G_SMAPS:
	case G_ROLLUP:
		return gen_maps(t, n->file->gen);
	case G_STATUS:
		return gen_status(t, host);
	case G_STAT:
		return gen_stat(t, host);
	case G_STATM:
		return gen_statm(t, host);
	case G_CMDLINE:
		gen_cmdline(t);
		return 0;
	case G_ENVIRON:
		put_guest(t, pvm.env_start, pvm.env_end);
		return 0;
	case G_AUXV:
		text_add(t, pvm.auxv, pvm.auxv_len < sizeof pvm.auxv ? pvm.auxv_len : sizeof pvm.auxv);
		return 0;
	case G_LIMITS:
		return gen_limits(t, host);
	case G_MOUNTS:
		return gen_mounts(t, host);
	default:
		return host_read(host, t);
	}
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

static void dir_path(const struct node *n, char out[512])
{
	char who[64];
	pid_t pid = n->pid ? n->pid : pvm.pid;
	if (n->tid)
		snprintf(who, sizeof who, "/proc/%d/task/%d", pid, n->tid);
	else
		snprintf(who, sizeof who, "/proc/%d", pid);
	switch (n->kind) {
	case D_PID:
		snprintf(out, 512, "%s", who);
		break;
	case D_FD:
		snprintf(out, 512, "%s/fd", who);
		break;
	case D_FDINFO:
		snprintf(out, 512, "%s/fdinfo", who);
		break;
	case D_TASKS:
		snprintf(out, 512, "%s/task", who);
		break;
	case D_NET:
		snprintf(out, 512, "%s/net", who);
		break;
	case D_SYSVIPC:
		strcpy(out, "/proc/sysvipc");
		break;
	case D_SYS:
		snprintf(out, 512, "/proc/sys%s%s", n->name[0] ? "/" : "", n->name);
		break;
	default:
		strcpy(out, "/proc");
	}
}

/* Members of all users make and remove entries there; what the guest is shown has other rights. */
static long make_dir(const char *path)
{
	long r = HC6(SYS_mkdir, path, 0777, 0, 0, 0, 0);
	if (r == 0) /* the mask is the program's */
		HC6(SYS_chmod, path, 0777, 0, 0, 0, 0);
	return r;
}

static int make_dirs(const char *path)
{
	char buf[512];
	snprintf(buf, sizeof buf, "%s", path);
	for (char *p = buf + 6; strlen(path) > 6; p++) {
		p += strcspn(p, "/");
		char c = *p;
		*p = 0;
		long r = make_dir(buf);
		if (r < 0 && r != -EEXIST)
			return r == -EROFS ? -EACCES : (int)r;
		if (!c)
			break;
		*p = c;
	}
	return 0;
}

struct fill {
	const char *dir;
	struct text names; /* what shall be there, each with its NUL */
};

static void fill_path(const struct fill *f, const char *name, char out[1024])
{
	snprintf(out, 1024, "%s/%s", f->dir, name);
}

static void put_name(struct fill *f, const char *name) { text_add(&f->names, name, strlen(name) + 1); }

static void put_file(struct fill *f, const char *name)
{
	char path[1024];
	fill_path(f, name, path);
	HC6(SYS_mknod, path, S_IFREG | 0444, 0, 0, 0, 0);
	put_name(f, name);
}

static void put_dir(struct fill *f, const char *name)
{
	char path[1024];
	fill_path(f, name, path);
	make_dir(path);
	put_name(f, name);
}

static void put_link(struct fill *f, const char *name, const char *target)
{
	char path[1024], old[PATH_MAX];
	fill_path(f, name, path);
	put_name(f, name);
	long n = HC6(SYS_readlink, path, old, sizeof old, 0, 0, 0);
	if (n == (long)strlen(target) && !memcmp(old, target, (size_t)n))
		return;
	HC6(SYS_unlink, path, 0, 0, 0, 0, 0);
	HC6(SYS_symlink, target, path, 0, 0, 0, 0);
}

static int link_text(const struct node *n, char out[PATH_MAX]);

static void fill_fds(struct fill *f, enum kind kind)
{
	struct text t = { 0 };
	char rel[64], target[PATH_MAX];
	snprintf(rel, sizeof rel, "self/task/%d/fd", own_tid());
	if (list_locked(pvm.proc_fd, rel, &t) == 0)
		for (size_t i = 0; i < t.len; i += strlen(t.p + i) + 1) {
			struct node n = { .kind = L_FD, .fd = atoi(t.p + i) };
			if (!fd_is_guest(n.fd))
				continue;
			if (kind == D_FDINFO)
				put_file(f, t.p + i);
			else if (link_text(&n, target) > 0)
				put_link(f, t.p + i, target);
		}
	text_free(&t);
}

/* tasks: of another member. */
static void fill_tasks(struct fill *f, const struct text *tasks)
{
	char name[16];
	if (tasks->p) {
		text_add(&f->names, tasks->p, tasks->len);
	} else if (is_vfork_child()) {
		snprintf(name, sizeof name, "%d", my_pid());
		text_add(&f->names, name, strlen(name) + 1);
	} else {
		pthread_mutex_lock(&pvm.thr_lock);
		for (struct thread *t = pvm.threads; t; t = t->next) {
			snprintf(name, sizeof name, "%d", t->tid);
			text_add(&f->names, name, strlen(name) + 1);
		}
		pthread_mutex_unlock(&pvm.thr_lock);
	}
	for (size_t i = 0, end = f->names.len; i < end; i += strlen(f->names.p + i) + 1) {
		char path[1024];
		fill_path(f, f->names.p + i, path);
		make_dir(path);
	}
}

static void fill_pid(struct fill *f, const struct node *n)
{
	struct node l = { .kind = L_EXE, .pid = n->pid };
	char target[PATH_MAX];
	for (unsigned i = 0; i < sizeof pid_files / sizeof *pid_files; i++)
		if (!n->pid || pid_files[i].members)
			put_file(f, pid_files[i].name);
	if (link_text(&l, target) > 0)
		put_link(f, "exe", target);
	l.kind = L_CWD;
	if (link_text(&l, target) > 0)
		put_link(f, "cwd", target);
	put_link(f, "root", "/");
	if (!n->pid) {
		put_dir(f, "fd");
		put_dir(f, "fdinfo");
		put_dir(f, "net");
	}
	if (!n->tid)
		put_dir(f, "task");
}

static void fill_sys(struct fill *f, const struct node *n)
{
	size_t len = strlen(n->name);
	for (const char *const *l = sys_files; *l; l++) {
		char name[128];
		const char *s = *l;
		if (len && (strncmp(s, n->name, len) || s[len] != '/'))
			continue;
		s += len ? len + 1 : 0;
		size_t k = strcspn(s, "/");
		snprintf(name, sizeof name, "%.*s", (int)k, s);
		char *star = strchr(name, '*');
		if (s[k]) {
			put_dir(f, name);
		} else if (!star) {
			put_file(f, name);
		} else {
			struct text t = { 0 };
			char rel[512], full[512];
			*star = 0;
			snprintf(rel, sizeof rel, "sys/%s", n->name);
			if (list_locked(pvm.proc_fd, rel, &t) == 0)
				for (size_t i = 0; i < t.len; i += strlen(t.p + i) + 1)
					if (!strncmp(t.p + i, name, strlen(name)) &&
					    snprintf(full, sizeof full, "%s/%s", n->name, t.p + i) < (int)sizeof full &&
					    sys_kind(full) == 1)
						put_file(f, t.p + i);
			text_free(&t);
		}
	}
}

static void put_member(pid_t pid, void *arg)
{
	char name[16];
	snprintf(name, sizeof name, "%d", pid);
	if (pid != pvm.pid)
		put_dir(arg, name);
}

static void fill_root(struct fill *f)
{
	char pid[16], task[64];
	snprintf(pid, sizeof pid, "%d", pvm.pid);
	snprintf(task, sizeof task, "%d/task/%d", pvm.pid, own_tid());
	put_dir(f, pid);
	family_each(put_member, f);
	put_link(f, "self", pid);
	put_link(f, "thread-self", task);
	put_link(f, "mounts", "self/mounts");
	put_link(f, "net", "self/net");
	put_dir(f, "sys");
	put_dir(f, "sysvipc");
	for (const char *const *l = global_files; *l; l++)
		put_file(f, *l);
}

static bool wanted(const struct fill *f, const char *name)
{
	for (size_t i = 0; i < f->names.len; i += strlen(f->names.p + i) + 1)
		if (!strcmp(f->names.p + i, name))
			return true;
	return false;
}

static int cmp_num(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;
	return x < y ? -1 : x > y;
}

#define PRUNE_DEPTH 3 /* <pid>/task/<tid>/fd */

/* A thread or process that ended: its directory may hold what was made to list it. */
static void prune_tree(const char *path, int depth)
{
	struct text in = { 0 };
	char sub[1024];
	if (HC6(SYS_rmdir, path, 0, 0, 0, 0, 0) != -ENOTEMPTY)
		return;
	if (list_locked(AT_FDCWD, path, &in) == 0)
		for (size_t i = 0; i < in.len; i += strlen(in.p + i) + 1)
			if (snprintf(sub, sizeof sub, "%s/%s", path, in.p + i) < (int)sizeof sub &&
			    HC6(SYS_unlink, sub, 0, 0, 0, 0, 0) && depth)
				prune_tree(sub, depth - 1);
	HC6(SYS_rmdir, path, 0, 0, 0, 0, 0);
	text_free(&in);
}

/* Remove what is no longer true; the numbered directories only, where names come and go. */
static void fill_prune(struct fill *f)
{
	struct text old = { 0 };
	size_t n = 0;
	char path[1024];
	int *ids = malloc((f->names.len / 2 + 1) * sizeof *ids);
	for (size_t i = 0; ids && i < f->names.len; i += strlen(f->names.p + i) + 1)
		ids[n++] = atoi(f->names.p + i);
	if (ids)
		qsort(ids, n, sizeof *ids, cmp_num);
	if (ids && list_locked(AT_FDCWD, f->dir, &old) == 0)
		for (size_t i = 0; i < old.len; i += strlen(old.p + i) + 1) {
			int id = atoi(old.p + i);
			if (bsearch(&id, ids, n, sizeof *ids, cmp_num) && (id || wanted(f, old.p + i)))
				continue;
			fill_path(f, old.p + i, path);
			if (HC6(SYS_unlink, path, 0, 0, 0, 0, 0) == 0)
				continue;
			prune_tree(path, PRUNE_DEPTH);
		}
	text_free(&old);
	free(ids);
}

static void fill_dir(const struct node *n, const char *dir)
{
	struct fill f = { .dir = dir };
	struct text tasks = { 0 };
	if (n->kind == D_TASKS && n->pid)
		member_tasks(n->pid, &tasks);
	proc_enter();
	switch (n->kind) {
	case D_ROOT:
		fill_root(&f);
		break;
	case D_PID:
		fill_pid(&f, n);
		break;
	case D_FD:
	case D_FDINFO:
		fill_fds(&f, n->kind);
		break;
	case D_TASKS:
		fill_tasks(&f, &tasks);
		break;
	case D_SYS:
		fill_sys(&f, n);
		break;
	case D_NET:
		for (const char *const *l = net_files; *l; l++)
			put_file(&f, *l);
		break;
	case D_SYSVIPC:
		for (const char *const *l = sysvipc_files; *l; l++)
			put_file(&f, *l);
		break;
	default:
		break;
	}
	if (n->kind == D_FD || n->kind == D_FDINFO || n->kind == D_TASKS || n->kind == D_ROOT)
		fill_prune(&f);
	proc_leave();
	text_free(&f.names);
	text_free(&tasks);
}

/* First the descriptor, then what is in the directory: a listing of self/fd holds itself, as on Linux. */
static int64_t open_dir(const struct node *n, int flags)
{
	char path[512];
	if ((flags & O_TMPFILE) == O_TMPFILE)
		return -EOPNOTSUPP;
	if (!(flags & O_PATH) && ((flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC)))
		return -EISDIR;
	dir_path(n, path);
	int r = make_dirs(path);
	if (r)
		return r;
	int keep = flags & (O_CLOEXEC | O_NONBLOCK | O_PATH);
	int64_t fd = fd_result(HC6(SYS_openat, AT_FDCWD, path, keep | O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0, 0, 0));
	if (fd >= 0)
		fill_dir(n, path);
	return fd;
}

/* ---- links ----------------------------------------------------------------------------------------------------- */

/* The host names our memory files and its own procfs in its own way. */
static long fd_link_text(const struct node *n, char out[PATH_MAX])
{
	static const char mem[] = "/memfd:" MEM_NAME, gone[] = " (deleted)";
	char rel[512], text[PATH_MAX];
	struct statfs fs;
	host_path(n, rel);
	long len = HC6(SYS_readlinkat, pvm.proc_fd, rel, text, sizeof text - 1, 0, 0);
	if (len < 0)
		return len;
	text[len] = 0;
	size_t tail = sizeof gone - 1;
	if (!strncmp(text, mem, sizeof mem - 1) && (size_t)len > sizeof mem + tail &&
	    !strcmp(text + len - tail, gone)) {
		text[len - (long)tail] = 0;
		const char *name = text + sizeof mem - 1;
		if (!strncmp(name, "self/", 5))
			return snprintf(out, PATH_MAX, "/proc/%d/%s", pvm.pid, name + 5);
		return snprintf(out, PATH_MAX, "/proc/%s", name);
	}
	if (text[0] == '/' && HC6(SYS_fstatfs, n->fd, &fs, 0, 0, 0, 0) == 0 && fs.f_type == PROC_SUPER_MAGIC &&
	    strncmp(text, "/proc/", 6) && len + 6 < PATH_MAX)
		return sprintf(out, "/proc%.*s", PATH_MAX - 7, text);
	memcpy(out, text, (size_t)len + 1);
	return len;
}

static int link_text(const struct node *n, char out[PATH_MAX])
{
	long r;
	switch (n->kind) {
	case L_SELF:
		return snprintf(out, PATH_MAX, "%d", pvm.pid);
	case L_THREAD:
		return snprintf(out, PATH_MAX, "%d/task/%d", pvm.pid, own_tid());
	case L_MOUNTS:
		return snprintf(out, PATH_MAX, "self/mounts");
	case L_NET:
		return snprintf(out, PATH_MAX, "self/net");
	case L_EXE:
		if (n->pid)
			return family_exe(n->pid, out, PATH_MAX) ? (int)strlen(out) : -ENOENT;
		return snprintf(out, PATH_MAX, "%.*s", PATH_MAX - 1, pvm.exe);
	case L_ROOT:
		return snprintf(out, PATH_MAX, "/");
	case L_FD:
		return (int)fd_link_text(n, out);
	case L_CWD:
		if (n->pid) {
			char rel[512];
			host_path(n, rel);
			r = HC6(SYS_readlinkat, pvm.proc_fd, rel, out, PATH_MAX - 1, 0, 0);
			if (r >= 0)
				out[r] = 0;
			return (int)r;
		}
		r = HC6(SYS_getcwd, out, PATH_MAX, 0, 0, 0, 0);
		return r > 0 ? (int)r - 1 : (int)r;
	default:
		return -EINVAL;
	}
}

int64_t procfs_readlink(const char *rel, char *buf, size_t len)
{
	struct node n;
	char text[PATH_MAX];
	int r = parse(rel, &n);
	if (!r)
		r = link_text(&n, text);
	if (r < 0)
		return r;
	size_t k = (size_t)r < len ? (size_t)r : len;
	memcpy(buf, text, k);
	return (int64_t)k;
}

enum procfs_target procfs_target(const char *rel, char *out, size_t len, int *fd)
{
	struct node n;
	char text[PATH_MAX > 512 ? PATH_MAX : 512];
	if (parse(rel, &n))
		return PROCFS_NONE;
	if (n.kind == L_FD) {
		host_path(&n, text);
		*fd = n.fd;
	} else if (n.kind != L_EXE && n.kind != L_CWD && n.kind != L_ROOT) {
		return PROCFS_NONE;
	} else if (link_text(&n, text) < 0) {
		return PROCFS_NONE;
	}
	if (strlen(text) >= len)
		return PROCFS_NONE;
	strcpy(out, text);
	return n.kind == L_FD ? PROCFS_FD : PROCFS_PATH;
}

/* A link itself (O_PATH | O_NOFOLLOW): its likeness in the tmpfs. */
static int64_t open_link(const struct node *n, int flags)
{
	static const char *const name[] = {
		[L_SELF] = "self", [L_THREAD] = "thread-self", [L_MOUNTS] = "mounts", [L_NET] = "net", [L_EXE] = "exe",
		[L_CWD] = "cwd",   [L_ROOT] = "root"
	};
	struct node d = { .kind = n->kind == L_FD    ? D_FD
				  : n->kind >= L_EXE ? D_PID
						     : D_ROOT,
			  .pid = n->pid,
			  .tid = n->tid };
	char path[512], full[600];
	dir_path(&d, path);
	int r = make_dirs(path);
	if (r)
		return r;
	fill_dir(&d, path);
	if (n->kind == L_FD)
		snprintf(full, sizeof full, "%s/%d", path, n->fd);
	else
		snprintf(full, sizeof full, "%s/%s", path, name[n->kind]);
	return fd_result(HC6(SYS_openat, AT_FDCWD, full, flags & (O_CLOEXEC | O_PATH | O_NOFOLLOW), 0, 0, 0));
}

/* ---- open ------------------------------------------------------------------------------------------------------ */

/*
 * May a guest hold a descriptor of this file of the host? It can't write it (nothing in the lists of readable files
 * that are opened so takes writes), but fchmod(2) on what its user owns would change the host's.
 */
static bool real_is_safe(const char *host)
{
	struct stat st;
	struct statfs fs;
	if (HC6(SYS_newfstatat, pvm.proc_fd, host, &st, AT_SYMLINK_NOFOLLOW, 0, 0))
		return false;
	return st.st_uid != geteuid() || (!HC6(SYS_fstatfs, pvm.proc_fd, &fs, 0, 0, 0, 0) && fs.f_flags & ST_RDONLY);
}

static int64_t open_text(const struct node *n, const char *rel, int flags)
{
	struct text t = { 0 };
	struct rlimit lim;
	char name[128];
	int64_t fd = generate(n, &t);
	if (!fd)
		fd = t.err;
	/* The limit would raise SIGXFSZ. */
	if (fd >= 0 && getrlimit(RLIMIT_FSIZE, &lim) == 0 && t.len > lim.rlim_cur)
		fd = -EFBIG;
	if (fd >= 0) {
		snprintf(name, sizeof name, MEM_NAME "%s", rel);
		fd = fd_result(HC6(SYS_memfd_create, name, MFD_ALLOW_SEALING | (flags & O_CLOEXEC ? MFD_CLOEXEC : 0), 0,
				   0, 0, 0));
	}
	if (fd >= 0) {
		/* The guest can put another file of its own in this place meanwhile; the harm is its own. */
		long r = 0;
		for (size_t done = 0; done < t.len && r >= 0; done += (size_t)r)
			if ((r = HC6(SYS_pwrite64, fd, t.p + done, t.len - done, done, 0, 0)) == 0)
				r = -EIO;
		HC6(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, 0, 0, 0);
	}
	text_free(&t);
	return fd;
}

static int64_t open_target(const struct node *n, int flags, unsigned mode)
{
	char path[PATH_MAX];
	if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		return -EEXIST;
	if ((flags & O_TMPFILE) != O_TMPFILE)
		flags &= ~O_CREAT;
	if (n->kind == L_FD) {
		struct statfs fs;
		host_path(n, path);
		if ((flags & (O_ACCMODE | O_PATH)) != O_RDONLY && HC6(SYS_fstatfs, n->fd, &fs, 0, 0, 0, 0) == 0 &&
		    fs.f_type == PROC_SUPER_MAGIC)
			return -EACCES;
		return fd_result(HB6(SYS_openat, pvm.proc_fd, path, flags, mode, 0, 0));
	}
	int r = link_text(n, path);
	if (r < 0)
		return r;
	return fd_result(HB6(SYS_openat, AT_FDCWD, n->kind == L_CWD && !n->pid ? "." : path, flags, mode, 0, 0));
}

static int64_t open_file(const struct node *n, const char *rel, int flags)
{
	char host[512];
	bool write = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
	if (write) /* of what a child inherits, perhaps */
		spare_forbid();
	if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL))
		return -EEXIST;
	if (flags & O_DIRECTORY)
		return -ENOTDIR;
	host_path(n, host);
	bool own = n->kind == F_PID && n->file->gen == G_REAL && !n->pid;
	if (!(flags & O_PATH) && write && !own)
		return -EACCES;
	bool real = own || ((n->kind == F_NET || (n->kind == F_GLOBAL && !changed_file(n))) && real_is_safe(host));
	if (!real || flags & O_PATH)
		return open_text(n, rel, flags);
	return fd_result(HC6(SYS_openat, pvm.proc_fd, host,
			     (flags & (O_ACCMODE | O_CLOEXEC | O_APPEND | O_NONBLOCK | O_TRUNC)) | O_NOFOLLOW, 0, 0,
			     0));
}

int64_t procfs_open(const char *rel, int flags, unsigned mode)
{
	struct node n;
	int r = parse(rel, &n);
	if (r)
		return r;
	if (is_link(&n)) {
		if (flags & O_NOFOLLOW)
			return flags & O_PATH ? open_link(&n, flags) : -ELOOP;
		follow(&n);
	}
	if (is_dir(&n))
		return open_dir(&n, flags);
	if (is_link(&n))
		return open_target(&n, flags, mode);
	return open_file(&n, rel, flags);
}

/* ---- status ---------------------------------------------------------------------------------------------------- */

static int dir_stat(const struct node *n, struct stat *st)
{
	char path[512];
	dir_path(n, path);
	int r = make_dirs(path);
	if (!r)
		r = (int)HC6(SYS_lstat, path, st, 0, 0, 0, 0);
	if (r)
		return r;
	if (n->kind == D_PID || n->kind == D_TASKS) { /* who made the directory says nothing */
		struct stat host;
		char rel[64];
		snprintf(rel, sizeof rel, "%d", n->pid ? n->pid : pvm.pid);
		if (HC6(SYS_newfstatat, pvm.proc_fd, rel, &host, 0, 0, 0) == 0) {
			st->st_uid = host.st_uid;
			st->st_gid = host.st_gid;
		}
	}
	st->st_mode = S_IFDIR | (n->kind == D_FD ? 0500 : 0555);
	st->st_size = 0;
	if (n->kind == D_TASKS)
		st->st_nlink = 2 + (nlink_t)(n->pid ? member_tasks(n->pid, NULL) : nr_threads());
	return 0;
}

int procfs_stat(const char *rel, struct stat *st, bool nofollow)
{
	struct node n;
	char host[512];
	int r = parse(rel, &n);
	if (r)
		return r;
	if (!nofollow || rel[0] == 0 || rel[strlen(rel) - 1] == '/') {
		follow(&n);
		if (n.pid && n.kind >= L_EXE && n.kind <= L_ROOT) {
			char path[PATH_MAX];
			r = link_text(&n, path);
			return r < 0 ? r : (int)HC6(SYS_stat, path, st, 0, 0, 0, 0);
		}
		switch (n.kind) {
		case L_EXE:
			return (int)HC6(SYS_stat, pvm.exe, st, 0, 0, 0, 0);
		case L_CWD:
			return (int)HC6(SYS_stat, ".", st, 0, 0, 0, 0);
		case L_ROOT:
			return (int)HC6(SYS_stat, "/", st, 0, 0, 0, 0);
		case L_FD:
			r = (int)HC6(SYS_fstat, n.fd, st, 0, 0, 0, 0);
			return r == -EBADF ? -ENOENT : r;
		default:
			break;
		}
	}
	if (is_dir(&n))
		return dir_stat(&n, st);
	host_path(&n, host);
	return (int)HC6(SYS_newfstatat, pvm.proc_fd, host, st, AT_SYMLINK_NOFOLLOW, 0, 0);
}

static struct statx_timestamp stamp(struct timespec t)
{
	return (struct statx_timestamp){ .tv_sec = t.tv_sec, .tv_nsec = (uint32_t)t.tv_nsec };
}

int procfs_statx(const char *rel, int flags, unsigned mask, void *statx_buf)
{
	struct stat st = { 0 };
	(void)mask;
	int r = procfs_stat(rel, &st, flags & AT_SYMLINK_NOFOLLOW);
	if (r)
		return r;
	struct statx x = {
		.stx_mask = STATX_BASIC_STATS,
		.stx_blksize = (uint32_t)st.st_blksize,
		.stx_nlink = (uint32_t)st.st_nlink,
		.stx_uid = st.st_uid,
		.stx_gid = st.st_gid,
		.stx_mode = (uint16_t)st.st_mode,
		.stx_ino = st.st_ino,
		.stx_size = (uint64_t)st.st_size,
		.stx_blocks = (uint64_t)st.st_blocks,
		.stx_atime = stamp(st.st_atim),
		.stx_mtime = stamp(st.st_mtim),
		.stx_ctime = stamp(st.st_ctim),
		.stx_rdev_major = major(st.st_rdev),
		.stx_rdev_minor = minor(st.st_rdev),
		.stx_dev_major = major(st.st_dev),
		.stx_dev_minor = minor(st.st_dev),
	};
	_Static_assert(sizeof x == 256, "as the row says");
	memcpy(statx_buf, &x, sizeof x);
	return 0;
}

int procfs_access(const char *rel, int mode)
{
	struct node n;
	struct stat st;
	char host[512];
	if (mode & ~(R_OK | W_OK | X_OK))
		return -EINVAL;
	int r = parse(rel, &n);
	if (!r)
		r = procfs_stat(rel, &st, false);
	if (r || !mode)
		return r;
	follow(&n);
	if (n.pid && n.kind >= L_EXE && n.kind <= L_ROOT) {
		char path[PATH_MAX];
		r = link_text(&n, path);
		return r < 0 ? r : (int)HC6(SYS_access, path, mode, 0, 0, 0, 0);
	}
	host_path(&n, host);
	switch (n.kind) {
	case L_FD:
		return (int)HC6(SYS_faccessat, pvm.proc_fd, host, mode, 0, 0, 0);
	case L_EXE:
		return (int)HC6(SYS_access, pvm.exe, mode, 0, 0, 0, 0);
	case L_CWD:
		return (int)HC6(SYS_access, ".", mode, 0, 0, 0, 0);
	case L_ROOT:
		return (int)HC6(SYS_access, "/", mode, 0, 0, 0, 0);
	default:
		break;
	}
	if (is_dir(&n))
		return mode & W_OK ? -EACCES : 0;
	if (mode & X_OK || (mode & W_OK && !(n.kind == F_PID && n.file->gen == G_REAL && !n.pid)))
		return -EACCES;
	return 0;
}

int64_t procfs_chdir(const char *rel)
{
	struct node n;
	char path[PATH_MAX];
	int r = parse(rel, &n);
	if (r)
		return r;
	follow(&n);
	switch (n.kind) {
	case L_FD:
		return HC6(SYS_fchdir, n.fd, 0, 0, 0, 0, 0);
	case L_CWD:
		if (n.pid && (r = link_text(&n, path)) < 0)
			return r;
		return HC6(SYS_chdir, n.pid ? path : ".", 0, 0, 0, 0, 0);
	case L_ROOT:
		return HC6(SYS_chdir, "/", 0, 0, 0, 0, 0);
	default:
		break;
	}
	if (!is_dir(&n))
		return -ENOTDIR;
	dir_path(&n, path);
	if ((r = make_dirs(path)))
		return r;
	fill_dir(&n, path);
	return HC6(SYS_chdir, path, 0, 0, 0, 0, 0);
}

pid_t procfs_pid(int fd)
{
	char rel[64], path[64];
	snprintf(rel, sizeof rel, "self/task/%d/fd/%d", own_tid(), fd);
	long n = fd_is_guest(fd) ? HC6(SYS_readlinkat, pvm.proc_fd, rel, path, sizeof path - 1, 0, 0) : -EBADF;
	int pid;
	if (n < 7)
		return 0;
	path[n] = 0;
	const char *s = path + 6;
	return !strncmp(path, "/proc/", 6) && number(&s, &pid) && !*s ? pid : 0;
}

void procfs_fork_lock(void) { pthread_mutex_lock(&proc_lock); }
void procfs_fork_unlock(void) { pthread_mutex_unlock(&proc_lock); }
