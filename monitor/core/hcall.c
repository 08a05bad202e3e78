/* SPDX-License-Identifier: Apache-2.0 */
#include "hcall.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/together.h"
#include "../../abi/kx_ipc.h"
#include "../dev/procfs.h"
#include "admit.h"
#include "batch.h"
#include "dgram.h"
#include "family.h"
#include "futex_nap.h"
#include "hot.h"
#include "keeper.h"
#include "libfile.h"
#include "pipe.h"
#include "thread.h"
#include "robust.h"
#include "rseq.h"
#include "serve.h"
#include "spare.h"
#include "sig.h"
#include "sizes.h"
#include "strace.h"
#include "trim.h"
#include "update.h"
#include "vfs.h"
#include "whole.h"
#include "written.h"

#define IOV_LIMIT 1024

enum {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) ROW_##name,
#include "../../abi/hypercalls.def"
	NR_ROWS
};

const struct hc_row hc_rows[] = {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) { #name, nr, flags, { a0, a1, a2, a3, a4, a5 } },
#include "../../abi/hypercalls.def"
};
const unsigned hc_nr_rows = NR_ROWS;

static const hc_handler handlers[] = {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) hc_##handler,
#include "../../abi/hypercalls.def"
};

#define NR_LIMIT 1280
#define PARENT_IDLE 64 /* calls without a question for the parent */
static const unsigned short row_of[NR_LIMIT] = {
/* its index and 1 */
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) [nr] = 1 + ROW_##name,
#include "../../abi/hypercalls.def"
};

const struct hc_row *hc_row_find(uint64_t nr) { return nr < NR_LIMIT && row_of[nr] ? &hc_rows[row_of[nr] - 1] : NULL; }

hc_handler hc_fn(const struct hc_row *row) { return handlers[row - hc_rows]; }

/* Room for one call's paths and vector, per host thread: a call is never nested. */
static __thread char path_space[2][PATH_MAX];
static __thread struct iovec iov_space[IOV_LIMIT];

/* ---- checks ------------------------------------------------------------------------------------------------ */

static int check_buffer(struct hcall *c, int i, uint64_t len)
{
	if (!c->arg[i] && !len) {
		c->host[i] = 0;
		return 0;
	}
	if (c->row->arg[i].kind == KX_A_IN && c->arg[i] >= KX_USER_END && gva_readable(c->arg[i], len)) {
		c->host[i] = (long)gva_ptr(c->arg[i]);
		return 0;
	}
	/* The kernel cuts lengths at MAX_RW_COUNT and takes a range that a program can name; so do we. */
	if (!gva_ok(c->arg[i], len))
		return -EFAULT;
	c->host[i] = (long)gva_ptr(c->arg[i]);
	return 0;
}

static int check_struct(struct hcall *c, int i, unsigned size, bool optional)
{
	if (optional && !c->arg[i]) {
		c->host[i] = 0;
		return 0;
	}
	if (!gva_ok(c->arg[i], size))
		return -EFAULT;
	c->host[i] = (long)gva_ptr(c->arg[i]);
	return 0;
}

static int check_path(struct hcall *c, int i)
{
	const struct kx_arg_desc *d = &c->row->arg[i];
	if (d->kind == KX_A_PATHO && !c->arg[i]) {
		c->host[i] = 0;
		return 0;
	}
	char *buf = path_space[c->nr_paths];
	c->path_buf[c->nr_paths++] = buf;
	ssize_t n = guest_read_str(buf, c->arg[i], PATH_MAX);
	if (n < 0)
		return n;
	c->host[i] = (long)buf;
	if (d->kind == KX_A_STR || n == 0)
		return 0;
	return vfs_path(c, d->aux < 0 ? AT_FDCWD : (int)c->arg[d->aux], buf, &c->proc[i]);
}

static int check_iov(struct hcall *c, int i)
{
	uint64_t n = c->row->arg[c->row->arg[i].aux].kind == KX_A_SIZE ? c->arg[c->row->arg[i].aux]
								       : (uint32_t)c->arg[c->row->arg[i].aux];
	uint64_t total = 0;
	bool (*ok)(uint64_t, uint64_t) = c->row->arg[i].kind == KX_A_IOVI ? gva_readable : gva_ok;
	if (n > IOV_LIMIT)
		return -EINVAL;
	if (guest_read(iov_space, c->arg[i], n * sizeof *iov_space))
		return -EFAULT;
	for (uint64_t k = 0; k < n; k++) {
		uint64_t base = (uint64_t)iov_space[k].iov_base, len = iov_space[k].iov_len;
		if ((int64_t)len < 0 || (total += len) > INT64_MAX)
			return -EINVAL;
		if (len && !ok(base, len))
			return -EFAULT;
		iov_space[k].iov_base = len ? gva_ptr(base) : NULL;
	}
	c->iov = iov_space;
	c->host[i] = (long)iov_space;
	return 0;
}

static int check_arg(struct hcall *c, int i)
{
	const struct kx_arg_desc *d = &c->row->arg[i];
	c->host[i] = (long)c->arg[i];
	switch (d->kind) {
	case KX_A_PTR:
	case KX_A_ADDR: /* nobody has checked it: it never gets to the host as one of the host's own */
		c->host[i] = 0;
		return 0;
	case KX_A_FD:
		return fd_is_guest((int)c->arg[i]) ? 0 : -EBADF;
	case KX_A_ATFD:
	case KX_A_FDN:
		return (int)c->arg[i] < 0 || fd_is_guest((int)c->arg[i]) ? 0 : -EBADF;
	case KX_A_FDNEW:
		return 0; /* dup2(fd, fd) and limits are the handler's */
	case KX_A_PATH:
	case KX_A_PATHE:
	case KX_A_PATHO:
	case KX_A_STR:
		return check_path(c, i);
	case KX_A_IN:
	case KX_A_OUT: {
		const struct kx_arg_desc *l = &c->row->arg[d->aux];
		uint64_t len = l->kind == KX_A_SIZE ? c->arg[d->aux] : (uint32_t)c->arg[d->aux];
		return check_buffer(c, i, len);
	}
	case KX_A_IOVI:
	case KX_A_IOVO:
		return check_iov(c, i);
	case KX_A_INS:
	case KX_A_OUTS:
	case KX_A_INOUTS:
		return check_struct(c, i, d->aux, false);
	case KX_A_INSO:
	case KX_A_OUTSO:
	case KX_A_INOUTSO:
		return check_struct(c, i, d->aux, true);
	}
	return 0;
}

/* What the kernel looks at before all else. */
static bool has_bad_offset(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_pread64:
	case SYS_pwrite64:
	case SYS_preadv:
	case SYS_pwritev:
		return (int64_t)c->arg[3] < 0;
	case SYS_truncate:
	case SYS_ftruncate:
		return (int64_t)c->arg[1] < 0;
	}
	return false;
}

int hcall_check(struct hcall *c)
{
	for (int i = 0; i < 6 && c->row->arg[i].kind != KX_A_NONE; i++) {
		int r = check_arg(c, i);
		if (r)
			return has_bad_offset(c) ? -EINVAL : r;
	}
	return 0;
}

/* A socket with a timeout is not restarted (signal(7)). */
static bool has_timeout(struct hcall *c)
{
	int opt = c->nr == SYS_read || c->nr == SYS_readv ? SO_RCVTIMEO : SO_SNDTIMEO;
	struct timeval tv = { 0, 0 };
	socklen_t len = sizeof tv;
	if (c->nr != SYS_read && c->nr != SYS_readv && c->nr != SYS_write && c->nr != SYS_writev)
		return false;
	return getsockopt((int)c->arg[0], SOL_SOCKET, opt, &tv, &len) == 0 && (tv.tv_sec || tv.tv_usec);
}

/*
 * The kernel interrupts nothing on files of these kinds: programs don't expect EINTR there. A signal that has come
 * before the call must not be taken for one that woke it.
 */
static bool never_interrupted(struct hcall *c)
{
	static const short calls[] = { SYS_read,   SYS_write,   SYS_pread64, SYS_pwrite64, SYS_readv,    SYS_writev,
				       SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2, SYS_fallocate };
	struct stat st;
	for (unsigned i = 0; i < sizeof calls / sizeof calls[0]; i++)
		if (c->nr == (uint64_t)calls[i])
			return fstat((int)c->arg[0], &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode));
	return false;
}

/* ---- generic handlers ----------------------------------------------------------------------------------------- */

int64_t hc_FWD(struct hcall *c)
{
	for (int i = 0; i < 6; i++)
		if (c->proc[i])
			return vfs_proc_generic(c);
	long (*call)(long, long, long, long, long, long, long) = c->row->flags & KX_F_BLOCK ? host_call_blocking
											    : host_call;
	int64_t r = call(c->nr, c->host[0], c->host[1], c->host[2], c->host[3], c->host[4], c->host[5]);
	if (r == -EINTR && call == host_call_blocking && never_interrupted(c))
		r = host_call(c->nr, c->host[0], c->host[1], c->host[2], c->host[3], c->host[4], c->host[5]);
	if (r == -EINTR && (c->t->sig_stop || !c->t->kicked) && has_timeout(c))
		return KX_NORESTART_EINTR;
	/* What gives descriptors among the forwarded calls. */
	switch (c->nr) {
	case SYS_epoll_create:
	case SYS_epoll_create1:
	case SYS_timerfd_create:
		return fd_result(r);
	}
	return r;
}

int64_t hc_eperm(struct hcall *c)
{
	(void)c;
	return -EPERM;
}

int64_t fd_result(int64_t fd)
{
	if (fd >= 0 && !fd_admit((int)fd)) {
		close((int)fd);
		return -EMFILE;
	}
	return fd;
}

static KX_TOGETHER pthread_mutex_t fd_limit_lock = PTHREAD_MUTEX_INITIALIZER; /* the limit is the process's */
static __thread struct rlimit fd_limit_old;
static __thread int fd_limit_depth;

void fd_limit_fork_lock(void) { pthread_mutex_lock(&fd_limit_lock); }
void fd_limit_fork_unlock(void) { pthread_mutex_unlock(&fd_limit_lock); }

/* A child of vfork has limits of its own, and must not die with the lock of its parent. */
static bool fd_limit_is_shared(void) { return my_pid() == pvm.pid; }

void fd_limit_lift(void)
{
	if (fd_limit_depth++)
		return;
	if (fd_limit_is_shared())
		pthread_mutex_lock(&fd_limit_lock);
	getrlimit(RLIMIT_NOFILE, &fd_limit_old);
	struct rlimit all = { fd_limit_old.rlim_max, fd_limit_old.rlim_max };
	setrlimit(RLIMIT_NOFILE, &all);
}

void fd_limit_drop(void)
{
	int e = errno;
	if (--fd_limit_depth)
		return;
	setrlimit(RLIMIT_NOFILE, &fd_limit_old);
	if (fd_limit_is_shared())
		pthread_mutex_unlock(&fd_limit_lock);
	errno = e;
}

void fd_limit_forget(void) { fd_limit_depth = 0; }
void fd_limit_kept(struct rlimit *out) { *out = fd_limit_old; }

int fd_hide(int fd)
{
	if (fd < 0)
		return -errno;
	if ((unsigned)fd >= pvm.fd_limit)
		return fd;
	fd_limit_lift();
	int n = fcntl(fd, F_DUPFD_CLOEXEC, pvm.fd_limit), e = errno;
	fd_limit_drop();
	close(fd);
	return n < 0 ? -e : n;
}

/* Descriptors of the monitor's that stay, but those of vCPUs. */
static int *kept[32];
static unsigned nr_kept;

int fd_keep(int *where, int fd)
{
	if ((fd = fd_hide(fd)) < 0)
		return fd;
	*where = fd;
	for (unsigned i = 0; i < nr_kept; i++)
		if (kept[i] == where)
			return 0;
	if (nr_kept == sizeof kept / sizeof kept[0]) {
		close(fd);
		return -EMFILE;
	}
	kept[nr_kept++] = where;
	return 0;
}

static int fd_move(int *where)
{
	if (*where < 0)
		return 0;
	/* The filter lets the monitor's own file be executed by two numbers alone, and this is the second. */
	fd_limit_lift();
	int n = where == &pvm.exe_fd ? dup3(*where, (int)pvm.fd_max, O_CLOEXEC)
				     : fcntl(*where, F_DUPFD_CLOEXEC, (int)pvm.fd_max + 1);
	fd_limit_drop();
	if (n < 0)
		return -errno;
	close(*where);
	keeper_fd_moved(*where, n);
	*where = n;
	return 0;
}

/* A descriptor above the limit that nobody has noted, as what forefathers have left open (batch.c): not the guest's either. */
static void fd_move_stray(const char *name, void *arg)
{
	int fd = atoi(name);
	(void)arg;
	if (fd < (int)pvm.fd_limit || fd >= (int)pvm.fd_max)
		return;
	fd_limit_lift();
	int flags = fcntl(fd, F_GETFD);
	if (flags >= 0 && fcntl(fd, flags & FD_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, (int)pvm.fd_max + 1) >= 0)
		close(fd);
	fd_limit_drop();
}

int fd_grow(void)
{
	int r = 0;
	if (pvm.fd_limit == pvm.fd_max)
		return 0;
	if (is_vfork_child()) /* the numbers are its parent's, too, whose table stays as it is */
		return -EMFILE;
	spare_changed();
	spare_remove();
	serve_lock();
	fd_limit_lift();
	for (unsigned i = 0; i < nr_kept && !r; i++)
		r = fd_move(kept[i]);
	if (!r)
		r = fd_move(&self->vcpu_fd);
	if (!r)
		r = thread_pool_fds(fd_move);
	if (!r)
		r = admit_fds(fd_move);
	fd_limit_drop();
	/* Their locks come before that of the limit: descriptors are made under them. */
	if (!r)
		r = batch_fds(fd_move);
	if (!r)
		r = whole_fds(fd_move);
	if (!r && pvm.is_child)
		procfs_each("self/fd", fd_move_stray, NULL);
	kx_log_use(pvm.log_fd);
	if (!r)
		pvm.fd_limit = pvm.fd_max;
	serve_unlock();
	return r;
}

void log_follow(void)
{
	struct stat log, st;
	int fd = pvm.log_fd;
	if (fd < 0 || is_vfork_child() || fstat(fd, &log) || (!S_ISFIFO(log.st_mode) && !S_ISSOCK(log.st_mode)))
		return;
	for (int i = 0; i < 3; i++)
		if (!fstat(i, &st) && st.st_ino == log.st_ino && st.st_dev == log.st_dev)
			return;
	kx_log_use(-1);
	pvm.log_fd = -1;
	close(fd);
	keeper_fd_closed(fd);
	update_fd_closed(fd);
}

int proc_file(const char *name)
{
	fd_limit_lift();
	int fd = openat(pvm.proc_fd, name, O_RDONLY | O_CLOEXEC);
	fd = fd < 0 ? fd : fd_hide(fd);
	fd_limit_drop();
	return fd;
}

int fd_reopen(int fd, int flags)
{
	char name[40];
	snprintf(name, sizeof name, "self/fd/%d", fd);
	fd_limit_lift();
	long r = HC6(SYS_openat, pvm.proc_fd, name, flags | O_NONBLOCK | O_CLOEXEC, 0, 0, 0);
	fd_limit_drop();
	return (int)r;
}

bool fd_admit(int fd)
{
	/* A message brings up to 253 descriptors at once. In a child of vfork the numbers are its parent's, too. */
	if (fd >= 0 && (unsigned)fd + 256 >= pvm.fd_limit && (unsigned)fd < pvm.fd_max && my_pid() == pvm.pid &&
	    !serve_near_limit())
		fd_grow();
	return fd_is_guest(fd);
}

int get_timespec(uint64_t gva, struct timespec *ts, struct timespec **out)
{
	*out = NULL;
	if (!gva)
		return 0;
	if (guest_read(ts, gva, sizeof *ts))
		return -EFAULT;
	*out = ts;
	return 0;
}

/* A system call that no row names. */
static int64_t unknown_call(struct hcall *c)
{
	uint64_t nr = c->nr;
	__atomic_add_fetch(&pvm.nr_enosys, 1, __ATOMIC_RELAXED);
	if (nr < 1024 && __atomic_fetch_add(&pvm.enosys_count[nr], 1, __ATOMIC_RELAXED) == 0)
		kx_log(KX_LOG_WARN, "libos", "system call %llu (%s) is not implemented: ENOSYS", (unsigned long long)nr,
		       strace_call_name(nr) ? strace_call_name(nr) : "?");
	return -ENOSYS;
}

/* Only into the calling thread's own area: the LibOS's stack is there. */
int64_t hc_seed(struct hcall *c)
{
	uint64_t off = c->arg[0] - c->t->area_gva;
	if (off >= KX_AREA_SIZE || c->arg[1] > 256 || c->arg[1] > KX_AREA_SIZE - off)
		return -EFAULT;
	return HC6(SYS_getrandom, gva_ptr(c->arg[0]), c->arg[1], 0, 0, 0, 0);
}

int64_t hc_trace(struct hcall *c)
{
	uint64_t args[6], off = c->arg[1] - c->t->area_gva;
	if (off >= KX_AREA_SIZE || KX_AREA_SIZE - off < sizeof args)
		return -EFAULT;
	memcpy(args, gva_ptr(c->arg[1]), sizeof args); /* on the LibOS's stack, in this thread's area */
	if (pvm.cfg->strace)
		strace_call(c->t, hc_row_find(c->arg[0]), c->arg[0], args, (int64_t)c->arg[2],
			    c->t->area->slow ? KX_PATH_SLOW : KX_PATH_LIBOS, 0);
	return 0;
}

/* ---- dispatch --------------------------------------------------------------------------------------------------- */

/* Calls that end with EINTR when a handler ran, but not when the process was only held up (signal(7)). */
static bool restarts_after_stop(uint64_t nr)
{
	switch (nr) {
	case SYS_poll:
	case SYS_ppoll:
	case SYS_select:
	case SYS_pselect6:
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
	case SYS_pause:
	case SYS_rt_sigsuspend:
		return true;
	}
	return false;
}

/* Run the handler; a call that was interrupted by nothing that the program may see starts again. */
static int64_t run_handler(struct hcall *c)
{
	struct thread *t = c->t;
	if (c->row->flags & KX_F_NORESTART)
		sig_sync_block(t);
	if (c->row->flags & KX_F_BLOCK) {
		rseq_idle(t);
		trim_before(c);
	}
	int64_t refused = 0;
	hc_handler fn = pipe_handler(c, &refused);
	if (!fn)
		return refused;
	for (;;) {
		int64_t r = fn(c);
		if (r == KX_NORESTART_EINTR)
			return -EINTR;
		if (r != -EINTR || !(c->row->flags & KX_F_BLOCK))
			return r;
		if (t->sig_stop)
			return c->row->flags & KX_F_RESTART ? -KX_ERESTART : -KX_ERESTART_NOHAND;
		t->kicked = 0;
		if (update_call(t))
			continue;
		/* As after a stop and SIGCONT: only some calls tell. */
		bool update = update_poked(), pipe = pipe_poked();
		if ((update || pipe) && restarts_after_stop(c->nr))
			continue;
		if (c->row->flags & KX_F_NORESTART)
			return -EINTR;
	}
}

static bool is_private(uint64_t nr) { return nr >= 1024; }

/* Calls on the way of making a thread, with all signals blocked for a moment; nobody else learns of them. What makes
 * a process brings the mask up to date by itself. */
static bool mask_may_lag(uint64_t nr)
{
	return nr == SYS_mmap || nr == SYS_mprotect || nr == SYS_munmap || nr == SYS_madvise || nr == SYS_clone ||
	       nr == SYS_clone3 || is_private(nr);
}

static void traced(struct hcall *c, int64_t ret)
{
	/* A child's part of it is no call of its own. */
	bool child = !ret && (c->nr == SYS_clone || c->nr == SYS_fork || c->nr == SYS_vfork || c->nr == SYS_clone3);
	if (!is_private(c->nr) && !child && ret != -KX_EIPC_LIVE)
		strace_call(c->t, c->row, c->nr, c->arg,
			    ret <= -KX_ERESTART && ret >= -KX_ERESTART_NOHAND ? -EINTR : ret,
			    c->t->area->slow ? KX_PATH_SLOW : KX_PATH_MONITOR, 0);
}

/* Calls that many children make first and do not come back from. */
static bool ends_soon(uint64_t nr)
{
	return nr == SYS_exit || nr == SYS_exit_group || nr == SYS_execve || nr == SYS_execveat;
}

bool hcall_sets_rights(uint64_t nr)
{
	switch (nr) {
	case SYS_setuid:
	case SYS_setgid:
	case SYS_setreuid:
	case SYS_setregid:
	case SYS_setresuid:
	case SYS_setresgid:
	case SYS_setfsuid:
	case SYS_setfsgid:
	case SYS_setgroups:
	case SYS_capset:
		return true;
	}
	return false;
}

bool hcall_sets_schedule(uint64_t nr)
{
	return nr == SYS_sched_setaffinity || nr == SYS_sched_setscheduler || nr == SYS_sched_setparam ||
	       nr == SYS_sched_setattr || nr == SYS_setpriority || nr == SYS_ioprio_set;
}

void hcall_look_at_parent(uint64_t nr)
{
	static KX_TOGETHER uint32_t asked, idle;
	struct kx_shared *s = pvm.shared;
	uint32_t now = s->ppid_asked, n = __atomic_load_n(&idle, __ATOMIC_RELAXED);
	if (nr == SYS_getppid || now != __atomic_load_n(&asked, __ATOMIC_RELAXED))
		n = 0;
	__atomic_store_n(&asked, now, __ATOMIC_RELAXED);
	__atomic_store_n(&idle, n + (n < PARENT_IDLE), __ATOMIC_RELAXED);
	if (n == PARENT_IDLE) {
		s->ppid_stale = 1;
		return;
	}
	s->ppid = (uint32_t)host_call(SYS_getppid, 0, 0, 0, 0, 0, 0);
	s->ppid_stale = 0;
}

static int64_t sized(struct hcall *c)
{
	bool sizes = sizes_before(c);
	int64_t r = run_handler(c);
	if (sizes)
		sizes_after();
	return r;
}

void hcall_dispatch(struct thread *t)
{
	struct kx_call call = t->area->call;
	struct hcall c = { .t = t, .nr = call.nr };
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	memcpy(c.arg, call.arg, sizeof c.arg);
	c.row = hc_row_find(c.nr);
	t->nr_hcalls++;
	t->last_hcall = c.nr;
	libfile_settle(c.nr, c.arg);
	if (t->robust_head && !t->robust_host)
		robust_renew(t);
	if (t->scratch && is_vfork_child())
		scratch_reset(t->scratch);
	int64_t r;
	if (!c.row) {
		r = unknown_call(&c);
		if (pvm.cfg->strace)
			traced(&c, r);
	} else {
		__atomic_add_fetch(&pvm.hcall_count[c.nr], 1, __ATOMIC_RELAXED);
		t->hcall = &c;
		written_mark_call(c.nr, c.arg);
		if (t->area->hand.owed && !(c.row->flags & KX_F_BLOCK)) /* else before it sleeps */
			futex_owed();
		/* A signal that is already on its way must stop this call from sleeping. */
		sig_prepare(t);
		if (!mask_may_lag(c.nr))
			sig_sync_plain(t);
		serve_before(&c);
		spare_call(&c);
		hot_call(&c);
		if (family_is_due() && !ends_soon(c.nr))
			family_settle();
		if (pvm.cfg->strace)
			strace_before(c.nr, c.arg);
		/* Calls that do not come back are told of before they happen. */
		if (pvm.cfg->strace && (c.nr == SYS_exit || c.nr == SYS_exit_group))
			traced(&c, 0);
		pipe_before_wait(c.nr);
		if (!batch_enter(&c, &r)) {
			r = hcall_check(&c);
			if (!r && !dgram_enter(&c, &r) && !batch_answer(&c, &r))
				r = sized(&c);
			dgram_leave(&c, r);
			batch_leave(&c, r);
		}
		pipe_after(&c, r);
		if (t->area->hand.owed)
			futex_owed();
		if (pvm.cfg->strace)
			traced(&c, r);
		t->hcall = NULL;
	}
	if (libfile_plain >= 0)
		libfile_read(&c, r);
	if (c.nr == SYS_newfstatat)
		libfile_looked(&c, r);
	t->area->call.ret = r;
	unsigned cpu;
	if (!t->area->vfork) /* the page speaks of the parent */
		hcall_look_at_parent(c.nr);
	if (!t->seat && getcpu(&cpu, NULL) == 0)
		t->area->cpu = cpu;
	serve_after(&c);
	sig_prepare(t);
}
