/* SPDX-License-Identifier: Apache-2.0 */
#include "procfs_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <linux/stat.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "../core/family.h"
#include "../core/fsize.h"
#include "../core/spare.h"

#define MEM_NAME "kxproc:" /* our memory files in links of self/fd */

/* ---- links ----------------------------------------------------------------------------------------------------- */

/* The host names our memory files and its own procfs in its own way. */
/* The terminal of the host's that the view has under this name (jail_view.c)? */
static bool is_console(int fd)
{
	struct stat a, b;
	return !HC6(SYS_fstat, fd, &a, 0, 0, 0, 0) && !HC6(SYS_stat, "/dev/console", &b, 0, 0, 0, 0) &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static long fd_link_text(const struct node *n, char out[PATH_MAX])
{
	static const char mem[] = "/memfd:" MEM_NAME, gone[] = " (deleted)";
	char rel[512], text[PATH_MAX];
	struct statfs fs;
	proc_host_path(n, rel);
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
	if (!strncmp(text, "/dev/pts/", 9) && is_console(n->fd))
		return sprintf(out, "/dev/console");
	memcpy(out, text, (size_t)len + 1);
	return len;
}

int proc_link_text(const struct node *n, char out[PATH_MAX])
{
	long r;
	switch (n->kind) {
	case L_SELF:
		return snprintf(out, PATH_MAX, "%d", pvm.pid);
	case L_THREAD:
		return snprintf(out, PATH_MAX, "%d/task/%d", pvm.pid, my_tid());
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
	case L_CWD: {
		char rel[512];
		r = n->pid ? -ENOENT : HC6(SYS_getcwd, out, PATH_MAX, 0, 0, 0, 0);
		if (r != -ENOENT)
			return r > 0 ? (int)r - 1 : (int)r;
		proc_host_path(n, rel); /* another's, or one that was removed */
		r = HC6(SYS_readlinkat, pvm.proc_fd, rel, out, PATH_MAX - 1, 0, 0);
		if (r >= 0)
			out[r] = 0;
		return (int)r;
	}
	default:
		return -EINVAL;
	}
}

int64_t procfs_readlink(const char *rel, char *buf, size_t len)
{
	struct node n;
	char text[PATH_MAX];
	int r = proc_parse(rel, &n);
	if (!r)
		r = proc_link_text(&n, text);
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
	if (proc_parse(rel, &n))
		return PROCFS_NONE;
	if (n.kind == L_FD) {
		proc_host_path(&n, text);
		*fd = n.fd;
	} else if (n.kind != L_EXE && n.kind != L_CWD && n.kind != L_ROOT) {
		return PROCFS_NONE;
	} else if (proc_link_text(&n, text) < 0) {
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
	proc_dir_path(&d, path);
	int r = proc_make_dirs(path);
	if (r)
		return r;
	proc_fill_dir(&d, path);
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
	struct out t = { 0 };
	struct fsize limit;
	char name[128];
	int64_t fd = proc_generate(n, &t);
	if (!fd)
		fd = t.err;
	if (fd >= 0) {
		snprintf(name, sizeof name, MEM_NAME "%s", rel);
		fd = fd_result(HC6(SYS_memfd_create, name, MFD_ALLOW_SEALING | (flags & O_CLOEXEC ? MFD_CLOEXEC : 0), 0,
				   0, 0, 0));
	}
	if (fd >= 0) {
		/* The guest can put another file of its own in this place meanwhile; the harm is its own. */
		long r = 0;
		fsize_lift(&limit);
		for (size_t done = 0; done < t.len && r >= 0; done += (size_t)r)
			if ((r = HC6(SYS_pwrite64, fd, t.p + done, t.len - done, done, 0, 0)) == 0)
				r = -EIO;
		fsize_drop(&limit);
		HC6(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, 0, 0, 0);
		if (r < 0) {
			HC6(SYS_close, fd, 0, 0, 0, 0, 0);
			fd = r;
		}
	}
	out_free(&t);
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
		proc_host_path(n, path);
		if ((flags & (O_ACCMODE | O_PATH)) != O_RDONLY && HC6(SYS_fstatfs, n->fd, &fs, 0, 0, 0, 0) == 0 &&
		    fs.f_type == PROC_SUPER_MAGIC)
			return -EACCES;
		return fd_result(HB6(SYS_openat, pvm.proc_fd, path, flags, mode, 0, 0));
	}
	int r = proc_link_text(n, path);
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
	proc_host_path(n, host);
	bool own = n->kind == F_PID && n->file->gen == G_REAL && !n->pid;
	if (!(flags & O_PATH) && write && !own)
		return -EACCES;
	bool real = own || ((n->kind == F_NET || (n->kind == F_GLOBAL && !proc_is_changed(n))) && real_is_safe(host));
	if (!real || flags & O_PATH)
		return open_text(n, rel, flags);
	return fd_result(HC6(SYS_openat, pvm.proc_fd, host,
			     (flags & (O_ACCMODE | O_CLOEXEC | O_APPEND | O_NONBLOCK | O_TRUNC)) | O_NOFOLLOW, 0, 0,
			     0));
}

int64_t procfs_open(const char *rel, int flags, unsigned mode)
{
	struct node n;
	int r = proc_parse(rel, &n);
	if (r)
		return r;
	if (proc_is_link(&n)) {
		if (flags & O_NOFOLLOW)
			return flags & O_PATH ? open_link(&n, flags) : -ELOOP;
		proc_follow(&n);
	}
	if (proc_is_dir(&n))
		return proc_open_dir(&n, flags);
	if (proc_is_link(&n))
		return open_target(&n, flags, mode);
	return open_file(&n, rel, flags);
}

/* ---- status ---------------------------------------------------------------------------------------------------- */

static int dir_stat(const struct node *n, struct stat *st)
{
	char path[512];
	proc_dir_path(n, path);
	int r = proc_make_dirs(path);
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
	int r = proc_parse(rel, &n);
	if (r)
		return r;
	if (!nofollow || rel[0] == 0 || rel[strlen(rel) - 1] == '/') {
		proc_follow(&n);
		if (n.pid && n.kind >= L_EXE && n.kind <= L_ROOT) {
			char path[PATH_MAX];
			r = proc_link_text(&n, path);
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
	if (proc_is_dir(&n))
		return dir_stat(&n, st);
	proc_host_path(&n, host);
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
	int r = proc_parse(rel, &n);
	if (!r)
		r = procfs_stat(rel, &st, false);
	if (r || !mode)
		return r;
	proc_follow(&n);
	if (n.pid && n.kind >= L_EXE && n.kind <= L_ROOT) {
		char path[PATH_MAX];
		r = proc_link_text(&n, path);
		return r < 0 ? r : (int)HC6(SYS_access, path, mode, 0, 0, 0, 0);
	}
	proc_host_path(&n, host);
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
	if (proc_is_dir(&n))
		return mode & W_OK ? -EACCES : 0;
	if (mode & X_OK || (mode & W_OK && !(n.kind == F_PID && n.file->gen == G_REAL && !n.pid)))
		return -EACCES;
	return 0;
}

int64_t procfs_chdir(const char *rel)
{
	struct node n;
	char path[PATH_MAX];
	int r = proc_parse(rel, &n);
	if (r)
		return r;
	proc_follow(&n);
	switch (n.kind) {
	case L_FD:
		return HC6(SYS_fchdir, n.fd, 0, 0, 0, 0, 0);
	case L_CWD:
		if (n.pid && (r = proc_link_text(&n, path)) < 0)
			return r;
		return HC6(SYS_chdir, n.pid ? path : ".", 0, 0, 0, 0, 0);
	case L_ROOT:
		return HC6(SYS_chdir, "/", 0, 0, 0, 0, 0);
	default:
		break;
	}
	if (!proc_is_dir(&n))
		return -ENOTDIR;
	proc_dir_path(&n, path);
	if ((r = proc_make_dirs(path)))
		return r;
	proc_fill_dir(&n, path);
	return HC6(SYS_chdir, path, 0, 0, 0, 0, 0);
}

pid_t procfs_pid(int fd)
{
	char rel[64], path[64];
	snprintf(rel, sizeof rel, "self/task/%d/fd/%d", my_tid(), fd);
	long n = fd_is_guest(fd) ? HC6(SYS_readlinkat, pvm.proc_fd, rel, path, sizeof path - 1, 0, 0) : -EBADF;
	int pid;
	if (n < 7)
		return 0;
	path[n] = 0;
	const char *s = path + 6;
	return !strncmp(path, "/proc/", 6) && proc_number(&s, &pid) && !*s ? pid : 0;
}
