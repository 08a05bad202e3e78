/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors: making, copying and closing them, fcntl. Guest numbers are host numbers, below pvm.fd_limit. */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../dev/procfs.h"
#include "family.h"
#include "hcall.h"
#include "../../abi/kx_ipc.h"
#include "ipc.h"
#include "libnext.h"
#include "pipe.h"
#include "thread.h"

/* Of recent kernels; not in every libc's headers. */
#define CMD_DUPFD_QUERY 1027
#define CMD_CREATED_QUERY 1028

/* A standard stream has become another one, or none. */
static int64_t stream_changed(unsigned fd, int64_t r)
{
	if (fd < 3 && r >= 0)
		log_follow();
	return r;
}

int64_t hc_close(struct hcall *c)
{
	mq_gone((int)c->arg[0]);
	int64_t r = pipe_close((int)c->arg[0]);
	mq_gone((int)c->arg[0]);
	return stream_changed((unsigned)c->arg[0], r);
}

static int64_t copied(int64_t r, int fd)
{
	if (r >= 0 && r != fd)
		mq_copied(fd, (int)r);
	return r;
}

static int64_t dup_any(int fd, uint64_t arg, int cmd)
{
	(void)arg, (void)cmd;
	return fd_result(HC6(SYS_dup, fd, 0, 0, 0, 0, 0));
}

static int64_t dup_from(int fd, uint64_t arg, int cmd) { return fd_result(HC6(SYS_fcntl, fd, cmd, (int)arg, 0, 0, 0)); }

int64_t hc_dup(struct hcall *c) { return copied(pipe_dup((int)c->arg[0], dup_any, 0, 0), (int)c->arg[0]); }

int64_t hc_dup2(struct hcall *c)
{
	if (!fd_admit((int)c->arg[1]))
		return -EBADF;
	int64_t r = copied(pipe_dup_to((int)c->arg[0], (int)c->arg[1], 0, true), (int)c->arg[0]);
	return stream_changed((unsigned)c->arg[1], r);
}

int64_t hc_dup3(struct hcall *c)
{
	if ((int)c->arg[2] & ~O_CLOEXEC)
		return -EINVAL;
	if (!fd_admit((int)c->arg[1]))
		return (int)c->arg[0] == (int)c->arg[1] ? -EINVAL : -EBADF;
	int64_t r = copied(pipe_dup_to((int)c->arg[0], (int)c->arg[1], (int)c->arg[2], false), (int)c->arg[0]);
	return stream_changed((unsigned)c->arg[1], r);
}

/*
 * All threads of the monitor must share one table of descriptors (vCPUs change threads). So CLOSE_RANGE_UNSHARE
 * works where it means nothing, with one thread, and else fails as on a kernel that does not know it.
 */
static bool range_is_good(const struct hcall *c)
{
	unsigned first = (unsigned)c->arg[0], last = (unsigned)c->arg[1], flags = (unsigned)c->arg[2];
	return first <= last && !(flags & ~(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC)) &&
	       (!(flags & CLOSE_RANGE_UNSHARE) || __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) == 1);
}

bool hcall_closes_range(const struct hcall *c)
{
	return c->nr == SYS_close_range && range_is_good(c) && !((unsigned)c->arg[2] & CLOSE_RANGE_CLOEXEC);
}

int64_t hc_close_range(struct hcall *c)
{
	unsigned first = (unsigned)c->arg[0], last = (unsigned)c->arg[1], flags = (unsigned)c->arg[2];
	if (!range_is_good(c))
		return -EINVAL;
	if (first >= pvm.fd_limit)
		return 0;
	if (last >= pvm.fd_limit)
		last = pvm.fd_limit - 1;
	int64_t r = pipe_close_range(first, last, flags & ~CLOSE_RANGE_UNSHARE);
	for (unsigned fd = first; !r && !(flags & CLOSE_RANGE_CLOEXEC) && fd <= last && fd < KX_IPC_FDS; fd++)
		mq_gone((int)fd);
	return stream_changed(first, r);
}

/* pipe, pipe2 */
int64_t hc_pipe(struct hcall *c)
{
	int fd[2], flags = c->nr == SYS_pipe2 ? (int)c->arg[1] : 0;
	int64_t r = pipe_make(fd, flags);
	if (r < 0)
		return r;
	r = fd_admit(fd[0]) && fd_admit(fd[1]) ? 0 : -EMFILE;
	if (!r && guest_write(c->arg[0], fd, sizeof fd))
		r = -EFAULT;
	if (r) {
		pipe_close(fd[0]);
		pipe_close(fd[1]);
	}
	return r;
}

/* eventfd, eventfd2 */
int64_t hc_eventfd2(struct hcall *c)
{
	int flags = c->nr == SYS_eventfd2 ? (int)c->arg[1] : 0;
	return fd_result(HC6(SYS_eventfd2, (unsigned)c->arg[0], flags, 0, 0, 0, 0));
}

int64_t hc_vmsplice(struct hcall *c)
{
	return HB6(SYS_vmsplice, (int)c->arg[0], c->host[1], c->arg[2], (unsigned)c->arg[3], 0, 0);
}

/* ---- fcntl -------------------------------------------------------------------------------------------------- */

/* Record locks: the process on the host is the one of the pVM, so owners are right by themselves. */
static int64_t fcntl_lock(int fd, int cmd, uint64_t arg)
{
	struct flock fl;
	bool wait = cmd == F_SETLKW || cmd == F_OFD_SETLKW, get = cmd == F_GETLK || cmd == F_OFD_GETLK;
	if (guest_read(&fl, arg, sizeof fl))
		return -EFAULT;
	if (cmd == F_SETLK || cmd == F_SETLKW)
		libnext_locks();
	int64_t r = wait ? HB6(SYS_fcntl, fd, cmd, &fl, 0, 0, 0) : HC6(SYS_fcntl, fd, cmd, &fl, 0, 0, 0);
	if (r >= 0 && get && guest_write(arg, &fl, sizeof fl))
		return -EFAULT;
	return r;
}

struct group_look {
	pid_t group;
	int members, others;
};

static void look_at_process(const char *name, void *arg)
{
	struct group_look *g = arg;
	pid_t pid = atoi(name);
	if (pid <= 0 || getpgid(pid) != g->group)
		return;
	if (pid == my_pid() || family_has(pid))
		g->members++;
	else
		g->others++;
}

/* A group that nobody outside the family is in: a script that runs kylinx, or the next program of a pipeline, may be in
 * the caller's own. */
static bool group_is_ours(pid_t group)
{
	struct group_look g = { .group = group };
	return !procfs_each(".", look_at_process, &g) && g.members && !g.others;
}

bool fd_owner_allowed(bool group, pid_t pid)
{
	if (pid == 0)
		return true;
	return group ? group_is_ours(pid) : family_has(pid) || thread_is_ours(pid);
}

static int64_t fcntl_owner(int fd, int cmd, uint64_t arg)
{
	struct f_owner_ex own = { 0 };
	int who = (int)arg;
	int64_t r;
	switch (cmd) {
	case F_SETOWN:
		if (who == INT_MIN)
			return -EINVAL;
		if (!fd_owner_allowed(who < 0, who < 0 ? -who : who))
			return -EPERM;
		return HC6(SYS_fcntl, fd, cmd, who, 0, 0, 0);
	case F_SETOWN_EX:
		if (guest_read(&own, arg, sizeof own))
			return -EFAULT;
		if (own.type != F_OWNER_TID && own.type != F_OWNER_PID && own.type != F_OWNER_PGRP)
			return -EINVAL;
		if (!fd_owner_allowed(own.type == F_OWNER_PGRP, own.pid))
			return -EPERM;
		return HC6(SYS_fcntl, fd, cmd, &own, 0, 0, 0);
	default: /* F_GETOWN_EX */
		r = HC6(SYS_fcntl, fd, cmd, &own, 0, 0, 0);
		return r >= 0 && guest_write(arg, &own, sizeof own) ? -EFAULT : r;
	}
}

static int64_t fcntl_hint(int fd, int cmd, uint64_t arg)
{
	uint64_t hint = 0;
	bool set = cmd == F_SET_RW_HINT || cmd == F_SET_FILE_RW_HINT;
	if (set && guest_read(&hint, arg, sizeof hint))
		return -EFAULT;
	int64_t r = HC6(SYS_fcntl, fd, cmd, &hint, 0, 0, 0);
	if (r >= 0 && !set && guest_write(arg, &hint, sizeof hint))
		return -EFAULT;
	return r;
}

int64_t hc_fcntl(struct hcall *c)
{
	int fd = (int)c->arg[0], cmd = (int)c->arg[1];
	uint64_t arg = c->arg[2];
	switch (cmd) {
	case F_DUPFD:
	case F_DUPFD_CLOEXEC:
		if (!fd_admit((int)arg))
			return HC6(SYS_fcntl, fd, F_GETFD, 0, 0, 0, 0) < 0 ? -EBADF : -EINVAL;
		return copied(pipe_dup(fd, dup_from, arg, cmd), fd);
	case CMD_DUPFD_QUERY:
		return fd_is_guest((int)arg) ? HC6(SYS_fcntl, fd, cmd, (int)arg, 0, 0, 0) : -EBADF;
	case F_GETFD:
	case F_SETFD:
	case F_GETFL:
	case F_SETFL:
	case F_GETOWN:
	case F_SETSIG:
	case F_GETSIG:
	case F_SETPIPE_SZ:
	case F_GETPIPE_SZ:
	case F_ADD_SEALS:
	case F_GET_SEALS:
	case F_NOTIFY:
	case F_SETLEASE:
	case F_GETLEASE:
	case CMD_CREATED_QUERY:
		return HC6(SYS_fcntl, fd, cmd, arg, 0, 0, 0);
	case F_GETLK:
	case F_SETLK:
	case F_SETLKW:
	case F_OFD_GETLK:
	case F_OFD_SETLK:
	case F_OFD_SETLKW:
		return fcntl_lock(fd, cmd, arg);
	case F_SETOWN:
	case F_SETOWN_EX:
	case F_GETOWN_EX:
		return fcntl_owner(fd, cmd, arg);
	case F_GET_RW_HINT:
	case F_SET_RW_HINT:
	case F_GET_FILE_RW_HINT:
	case F_SET_FILE_RW_HINT:
		return fcntl_hint(fd, cmd, arg);
	}
	return HC6(SYS_fcntl, fd, F_GETFD, 0, 0, 0, 0) < 0 ? -EBADF : -EINVAL;
}
