/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files by name: open, stat, links, directories, and what else makes a descriptor from a name.
 *
 * Paths come checked and copied (hcall.h); the host kernel resolves them in the pVM's own view. Names in procfs
 * (c->proc) go to dev/procfs.c, as the view has no procfs.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/log.h"
#include "libfile.h"
#include "openahead.h"
#include "../dev/procfs.h"
#include "admit.h"
#include "hcall.h"
#include "ipc.h"
#include "pipe.h"
#include "vfs.h"

#define PROC_MAGIC 0x9fa0
#define STATX_BYTES 256
#define HOW_MAX 4096 /* the kernel's own limit for struct open_how */

/* ---- open --------------------------------------------------------------------------------------------------- */

/*
 * After EINTR: only what another process opens, too, or a device may sleep for long. Another file there is opened even
 * if a signal has come, as on Linux. Who puts a FIFO in its place meanwhile only harms itself.
 */
static bool may_sleep(int dirfd, long path)
{
	struct stat st;
	return fstatat(dirfd, (const char *)path, &st, 0) == 0 && (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode));
}

/* A pipe that is opened by its number in /proc has one end more than the family's ring knows of. */
static int64_t proc_open(const char *rel, int flags, unsigned mode)
{
	if (gmem_warm_any) /* what is mapped, and how */
		gmem_warm_end(false);
	int64_t fd = procfs_open(rel, flags, mode);
	int r = fd < 0 ? 0 : pipe_opened((int)fd);
	if (!r)
		return fd;
	HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	return r;
}

/* What open() gave. A POSIX queue can be opened so, too. */
static int64_t opened(int64_t r, long path)
{
	if (r >= 0)
		mq_opened((int)r, (const char *)path);
	return fd_result(r);
}

static void file_opened(struct hcall *c, int i, int fd)
{
	libfile_opened(c, i, fd);
	openahead_seen(c, i, fd);
}

/* open, creat. A FIFO or a lease may make it wait. */
int64_t hc_open(struct hcall *c)
{
	bool creat = c->nr == SYS_creat;
	int flags = creat ? O_CREAT | O_WRONLY | O_TRUNC : (int)c->arg[1];
	unsigned mode = (unsigned)c->arg[creat ? 1 : 2];
	if (c->proc[0])
		return proc_open(c->proc[0], flags, mode);
	long r = HB6(SYS_open, c->host[0], flags, mode, 0, 0, 0);
	if (r == -EINTR && !may_sleep(AT_FDCWD, c->host[0]))
		r = HC6(SYS_open, c->host[0], flags, mode, 0, 0, 0);
	r = opened(r, c->host[0]);
	if (!creat)
		file_opened(c, 0, (int)r);
	return r;
}

int64_t hc_openat(struct hcall *c)
{
	if (c->proc[1])
		return proc_open(c->proc[1], (int)c->arg[2], (unsigned)c->arg[3]);
	long r = HB6(SYS_openat, (int)c->host[0], c->host[1], (int)c->arg[2], (unsigned)c->arg[3], 0, 0);
	if (r == -EINTR && !may_sleep((int)c->host[0], c->host[1]))
		r = HC6(SYS_openat, (int)c->host[0], c->host[1], (int)c->arg[2], (unsigned)c->arg[3], 0, 0);
	r = opened(r, c->host[1]);
	file_opened(c, 1, (int)r);
	return r;
}

int64_t hc_openat2(struct hcall *c)
{
	union {
		struct open_how how;
		uint8_t bytes[HOW_MAX];
	} u;
	uint64_t size = c->arg[3];
	if (size < sizeof u.how)
		return -EINVAL;
	if (size > sizeof u)
		return -E2BIG;
	if (guest_read(&u, c->arg[2], size))
		return -EFAULT;
	if (!c->proc[1]) {
		long r = HB6(SYS_openat2, (int)c->host[0], c->host[1], &u, size, 0, 0);
		if (r == -EINTR && !may_sleep((int)c->host[0], c->host[1]))
			r = HC6(SYS_openat2, (int)c->host[0], c->host[1], &u, size, 0, 0);
		return opened(r, c->host[1]);
	}
	for (uint64_t i = sizeof u.how; i < size; i++)
		if (u.bytes[i])
			return -E2BIG;
	if (u.how.flags > INT_MAX || u.how.mode & ~07777ull)
		return -EINVAL;
	if (u.how.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT | RESOLVE_NO_XDEV))
		return -EXDEV;
	return proc_open(c->proc[1], (int)u.how.flags, (unsigned)u.how.mode);
}

int64_t hc_memfd_create(struct hcall *c)
{
	return fd_result(HC6(SYS_memfd_create, c->host[0], (unsigned)c->arg[1], 0, 0, 0, 0));
}

/* inotify_init, inotify_init1 */
int64_t hc_inotify(struct hcall *c)
{
	int flags = c->nr == SYS_inotify_init1 ? (int)c->arg[0] : 0;
	return fd_result(HC6(SYS_inotify_init1, flags, 0, 0, 0, 0, 0));
}

/* ---- status ------------------------------------------------------------------------------------------------- */

/* stat, lstat, newfstatat; the last also with AT_EMPTY_PATH, which has no name to be in procfs. */
int64_t hc_fstatat(struct hcall *c)
{
	bool at = c->nr == SYS_newfstatat;
	int name = at ? 1 : 0, buf = name + 1, flags = at ? (int)c->arg[3] : 0;
	struct stat st;
	if (!c->proc[name])
		return HC6(c->nr, c->host[0], c->host[1], c->host[2], c->host[3], 0, 0);
	if (flags & ~(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH))
		return -EINVAL;
	memset(&st, 0, sizeof st);
	int r = procfs_stat(c->proc[name], &st, c->nr == SYS_lstat || flags & AT_SYMLINK_NOFOLLOW);
	if (r < 0)
		return r;
	return guest_write(c->arg[buf], &st, sizeof st) ? -EFAULT : 0;
}

int64_t hc_statx(struct hcall *c)
{
	uint64_t stx[STATX_BYTES / 8] = { 0 };
	if (!c->proc[1])
		return HC6(SYS_statx, (int)c->host[0], c->host[1], (int)c->arg[2], (unsigned)c->arg[3], c->host[4], 0);
	int r = procfs_statx(c->proc[1], (int)c->arg[2], (unsigned)c->arg[3], stx);
	if (r < 0)
		return r;
	return guest_write(c->arg[4], stx, sizeof stx) ? -EFAULT : 0;
}

/* readlink, readlinkat */
int64_t hc_readlinkat(struct hcall *c)
{
	int name = c->nr == SYS_readlinkat ? 1 : 0, size = (int)c->arg[name + 2];
	char target[PATH_MAX];
	if (size <= 0)
		return -EINVAL;
	if (!c->proc[name])
		return HC6(c->nr, c->host[0], c->host[1], c->host[2], c->host[3], 0, 0);
	int64_t n = procfs_readlink(c->proc[name], target, size < PATH_MAX ? size : PATH_MAX);
	if (n < 0)
		return n;
	return guest_write(c->arg[name + 1], target, n) ? -EFAULT : n;
}

/* ---- directories -------------------------------------------------------------------------------------------- */

int64_t hc_getcwd(struct hcall *c) { return HC6(SYS_getcwd, c->host[0], c->arg[1], 0, 0, 0, 0); }

int64_t hc_chdir(struct hcall *c)
{
	int64_t r = c->proc[0] ? procfs_chdir(c->proc[0]) : HC6(SYS_chdir, c->host[0], 0, 0, 0, 0, 0);
	if (r == 0)
		vfs_cwd_changed();
	return r;
}

/* A real procfs must never become the place from which names are resolved. */
int64_t hc_fchdir(struct hcall *c)
{
	struct statfs fs;
	int fd = (int)c->arg[0];
	int64_t r = HC6(SYS_fstatfs, fd, &fs, 0, 0, 0, 0);
	if (r < 0)
		return r;
	if (fs.f_type == PROC_MAGIC)
		return -EACCES;
	r = HC6(SYS_fchdir, fd, 0, 0, 0, 0, 0);
	if (r == 0)
		vfs_cwd_changed();
	return r;
}

int64_t hc_chroot(struct hcall *c)
{
	if (c->proc[0])
		return vfs_proc_generic(c);
	int64_t r = admit_chroot((const char *)c->host[0]);
	if (r == 0)
		vfs_cwd_changed();
	return r;
}

int64_t hc_getdents64(struct hcall *c)
{
	return HC6(SYS_getdents64, (int)c->arg[0], c->host[1], (unsigned)c->arg[2], 0, 0, 0);
}

/* mknod, mknodat: no devices, whatever rights the monitor has. */
int64_t hc_mknod(struct hcall *c)
{
	int name = c->nr == SYS_mknodat ? 1 : 0;
	unsigned mode = (unsigned)c->arg[name + 1];
	if (c->proc[name])
		return -EACCES;
	switch (mode & S_IFMT) {
	case 0:
	case S_IFREG:
	case S_IFIFO:
	case S_IFSOCK:
		return HC6(SYS_mknodat, name ? (int)c->host[0] : AT_FDCWD, c->host[name], mode, 0, 0, 0);
	case S_IFCHR:
	case S_IFBLK:
	case S_IFDIR:
		return -EPERM;
	}
	return -EINVAL;
}
