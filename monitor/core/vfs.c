/* SPDX-License-Identifier: Apache-2.0 */
#include "vfs.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../dev/procfs.h"
#include "thread.h"

#define EXPAND_MAX 40 /* as the kernel's limit on links in a path */

static dev_t proc_dev;
static bool cwd_in_proc; /* one word, all threads share the directory */

/* A result needs room for "self/task/<tid>/" in the place of "<tid>/" or "thread-self/". */
static __thread char rel_space[2][PATH_MAX + 64];
static __thread char abs_space[2 * PATH_MAX], norm_space[PATH_MAX + 64];

void vfs_init(void)
{
	struct stat st;
	if (stat("/proc", &st) == 0)
		proc_dev = st.st_dev;
	vfs_cwd_changed();
}

bool vfs_is_proc_dir(int fd)
{
	struct stat st;
	struct statfs fs;
	return !fstat(fd, &st) && S_ISDIR(st.st_mode) && !fstatfs(fd, &fs) && fs.f_type == PROC_SUPER_MAGIC;
}

static bool below_proc(const char *s) { return !strncmp(s, "/proc", 5) && (s[5] == '/' || !s[5]); }

/* The working directory's path: its length, or -errno. */
static long cwd_get(char *buf, size_t len)
{
	long n = HC6(SYS_getcwd, buf, len, 0, 0, 0, 0);
	if (n < 0)
		return n;
	return buf[0] == '/' ? n - 1 : -ENOENT; /* "(unreachable)" */
}

void vfs_cwd_changed(void)
{
	char buf[PATH_MAX];
	__atomic_store_n(&cwd_in_proc, cwd_get(buf, sizeof buf) > 0 && below_proc(buf), __ATOMIC_RELAXED);
}

/* The path of the file behind a guest's descriptor. */
static long fd_path(int fd, char *buf, size_t len)
{
	char name[48];
	snprintf(name, sizeof name, "thread-self/fd/%d", fd);
	long n = fd_is_guest(fd) ? HC6(SYS_readlinkat, pvm.proc_fd, name, buf, len - 1, 0, 0) : -EBADF;
	if (n < 0)
		return n;
	buf[n] = 0;
	return buf[0] == '/' ? n : -ENOTDIR;
}

/* Could this text lead into procfs from a directory outside it? Most paths say no. */
static bool suspicious(const char *s)
{
	return strstr(s, "proc") || strstr(s, "dev/fd") || strstr(s, "dev/std") || strstr(s, "dev//") ||
	       strstr(s, "dev/.") || !strcmp(s, "/etc/mtab");
}

/* Put the absolute form of path into abs_space. 0: it can't be in procfs; 1: done; -errno. */
static int make_absolute(int dirfd, const char *path)
{
	long n = 0;
	if (path[0] != '/') {
		bool look = suspicious(path);
		if (!look && dirfd == AT_FDCWD) {
			look = __atomic_load_n(&cwd_in_proc, __ATOMIC_RELAXED);
		} else if (!look) {
			struct stat st;
			look = HC6(SYS_fstat, dirfd, &st, 0, 0, 0, 0) == 0 && st.st_dev == proc_dev;
		}
		if (!look)
			return 0;
		n = dirfd == AT_FDCWD ? cwd_get(abs_space, PATH_MAX) : fd_path(dirfd, abs_space, PATH_MAX);
		if (n < 0)
			return 0; /* the kernel says what is wrong with it */
		abs_space[n++] = '/';
	} else if (!suspicious(path)) {
		return 0;
	}
	size_t len = strnlen(path, PATH_MAX);
	if (len == PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(abs_space + n, path, len);
	abs_space[n + (long)len] = 0;
	return 1;
}

static bool is_tid(const char *s, size_t len, long *id)
{
	if (!len || len > 9 || *s == '0')
		return false;
	*id = 0;
	for (size_t i = 0; i < len; i++) {
		if (s[i] < '0' || s[i] > '9')
			return false;
		*id = *id * 10 + s[i] - '0';
	}
	return true;
}

/* A component directly below /proc: canonical text, or NULL when it stands for itself. */
static const char *canonical_top(const char *s, size_t len, bool last, char buf[48])
{
	long id;
	if (len == 11 && !memcmp(s, "thread-self", 11)) {
		if (last)
			return NULL;
		snprintf(buf, 48, "self/task/%d", my_tid());
		return buf;
	}
	if (!is_tid(s, len, &id))
		return NULL;
	if (id == my_pid())
		return last ? "self/" : "self";
	if (!thread_is_ours((pid_t)id))
		return NULL; /* another's: procfs.c finds no such name */
	snprintf(buf, 48, "self/task/%ld", id);
	return buf;
}

/* Is "/proc/..." (n bytes) a link to a directory elsewhere? Then what it names goes to out. */
static int expand_link(const char *s, size_t n, char *out, size_t len)
{
	char rel[96];
	if (n <= 6 || n - 6 >= sizeof rel)
		return 0;
	memcpy(rel, s + 6, n - 6);
	rel[n - 6] = 0;
	const char *p = rel;
	if (strncmp(p, "self/", 5)) { /* another member's */
		const char *slash = strchr(p, '/');
		int fd;
		return slash && (!strcmp(slash, "/cwd") || !strcmp(slash, "/root")) &&
		       procfs_target(rel, out, len, &fd) == PROCFS_PATH;
	}
	p += 5;
	if (!strncmp(p, "task/", 5)) {
		p += 5 + strspn(p + 5, "0123456789");
		if (*p++ != '/')
			return 0;
	}
	long r = 0;
	if (!strcmp(p, "root")) {
		r = snprintf(out, len, "/");
	} else if (!strcmp(p, "cwd")) {
		r = cwd_get(out, len);
	} else if (!strncmp(p, "fd/", 3)) {
		long id = 0;
		if (strcmp(p + 3, "0") && !is_tid(p + 3, strlen(p + 3), &id))
			return 0;
		r = fd_path((int)id, out, len);
		if (r == -EBADF)
			r = -ENOENT;
	}
	return r < 0 ? (int)r : r > 0;
}

/*
 * Normalise abs_space into norm_space ("/a/b"). Returns 0; 1 when a link of procfs was met on the way, after which
 * abs_space holds the path that it leads to; -errno. *dir: the path ended in a slash or a dot.
 */
static int normalise(bool *dir)
{
	const char *s = abs_space;
	size_t n = 0;
	*dir = false;
	norm_space[0] = 0;
	while (*s) {
		size_t len = strcspn(s + 1, "/");
		const char *comp = s + 1, *end = comp + len;
		bool last = !*end, dot = len == 0 || (len == 1 && comp[0] == '.');
		bool up = len == 2 && comp[0] == '.' && comp[1] == '.';
		char target[PATH_MAX], top[48];
		int r = n > 5 && below_proc(norm_space) ? expand_link(norm_space, n, target, sizeof target) : 0;
		if (r < 0)
			return r;
		if (r) {
			size_t a = strlen(target), rest = strlen(s);
			if (a + rest >= PATH_MAX)
				return -ENAMETOOLONG;
			memmove(abs_space + a, s, rest + 1);
			memcpy(abs_space, target, a);
			return 1;
		}
		s = end;
		*dir = dot || up;
		if (dot)
			continue;
		if (up) {
			while (n && norm_space[--n] != '/')
				;
			norm_space[n] = 0;
			continue;
		}
		const char *text = n == 5 && below_proc(norm_space) ? canonical_top(comp, len, last, top) : NULL;
		if (text) {
			comp = text;
			len = strlen(text);
		}
		if (n + 1 + len >= sizeof norm_space)
			return -ENAMETOOLONG;
		norm_space[n++] = '/';
		memcpy(norm_space + n, comp, len);
		n += len;
		norm_space[n] = 0;
	}
	return 0;
}

/* /dev/fd and its relations are links into procfs in every view. */
static const char *device_link(const char *s, char buf[PATH_MAX + 64])
{
	static const struct {
		const char *name, *rel;
	} std[] = { { "/dev/stdin", "self/fd/0" },
		    { "/dev/stdout", "self/fd/1" },
		    { "/dev/stderr", "self/fd/2" },
		    { "/dev/fd", "self/fd" } };
	for (unsigned i = 0; i < 4; i++)
		if (!strcmp(s, std[i].name))
			return strcpy(buf, std[i].rel);
	if (!strncmp(s, "/dev/fd/", 8)) {
		snprintf(buf, PATH_MAX + 64, "self/fd/%s", s + 8);
		return buf;
	}
	return NULL;
}

static bool mtab_is_ours(const char *s)
{
	char target[64];
	if (strcmp(s, "/etc/mtab"))
		return false;
	long n = HC6(SYS_readlink, s, target, sizeof target - 1, 0, 0, 0);
	if (n < 0)
		return false;
	target[n] = 0;
	return strstr(target, "proc/");
}

/* Write the path that a link led to over the one that the program gave. */
static int rewrite(struct hcall *c, const char *path)
{
	char *buf = c->nr_paths > 0 ? c->path_buf[c->nr_paths - 1] : NULL;
	size_t len = strlen(abs_space);
	if (buf != path)
		return 0;
	if (len >= PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(buf, abs_space, len + 1);
	return 0;
}

int vfs_path(struct hcall *c, int dirfd, const char *path, const char **proc)
{
	bool dir, moved = false;
	*proc = NULL;
	int r = make_absolute(dirfd, path);
	if (r <= 0)
		return r;
	char *out = rel_space[c->nr_paths > 1];
	for (int i = 0;; i++) {
		if (i == EXPAND_MAX)
			return -ELOOP;
		r = normalise(&dir);
		if (r < 0)
			return r;
		if (r) {
			moved = true;
			continue;
		}
		/* /dev/fd/3/x leads through a link, too. */
		const char *rest = !strncmp(norm_space, "/dev/fd/", 8) ? strchr(norm_space + 8, '/') : NULL;
		if (!rest)
			break;
		char tail[PATH_MAX + 64];
		strcpy(tail, norm_space + 8);
		int len = snprintf(abs_space, sizeof abs_space, "/proc/self/fd/%s%s", tail, dir ? "/" : "");
		if (len >= PATH_MAX)
			return -ENAMETOOLONG;
		moved = true;
	}
	if (below_proc(norm_space)) {
		const char *s = norm_space + 5 + (norm_space[5] == '/');
		size_t n = strlen(s);
		memcpy(out, s, n + 1);
		if (dir && n && out[n - 1] != '/') {
			out[n] = '/';
			out[n + 1] = 0;
		}
		*proc = out;
	} else if (mtab_is_ours(norm_space)) {
		*proc = strcpy(out, "self/mounts");
	} else {
		*proc = device_link(norm_space, out);
	}
	return !*proc && moved ? rewrite(c, path) : 0;
}

/* ---- forwarded calls ------------------------------------------------------------------------------------------- */

static int64_t proc_statfs(struct hcall *c, int fd)
{
	struct statfs fs;
	_Static_assert(sizeof fs == 120, "as the row says");
	int64_t r = HC6(SYS_fstatfs, fd, &fs, 0, 0, 0, 0);
	if (r < 0)
		return r;
	return guest_write(c->arg[1], &fs, sizeof fs) ? -EFAULT : 0;
}

static bool at_first(struct hcall *c) { return c->row->arg[0].kind == KX_A_ATFD; }

/* Does the call act on the link itself? */
static bool acts_on_link(struct hcall *c)
{
	switch (c->nr) {
	case SYS_lchown:
	case SYS_lsetxattr:
	case SYS_lgetxattr:
	case SYS_llistxattr:
	case SYS_lremovexattr:
	case SYS_unlink:
	case SYS_unlinkat:
	case SYS_rename:
	case SYS_renameat:
	case SYS_renameat2:
	case SYS_rmdir:
	case SYS_mkdir:
	case SYS_mkdirat:
	case SYS_symlink:
	case SYS_symlinkat:
	case SYS_link:
		return true;
	case SYS_linkat:
		return !((int)c->arg[4] & AT_SYMLINK_FOLLOW);
	case SYS_fchownat:
		return (int)c->arg[4] & AT_SYMLINK_NOFOLLOW;
	case SYS_utimensat:
	case SYS_faccessat2:
	case 452 /* fchmodat2 */:
		return (int)c->arg[3] & AT_SYMLINK_NOFOLLOW;
	}
	return false;
}

/* self/fd/N as the first path of a call: the same call on the file behind N. -ENOSYS: there is no such form. */
static int64_t forward_fd(struct hcall *c, const char *link, int fd)
{
	switch (c->nr) {
	case SYS_chmod:
		return HC6(SYS_fchmodat, pvm.proc_fd, link, c->arg[1], 0, 0, 0);
	case SYS_chown:
		return HC6(SYS_fchownat, pvm.proc_fd, link, c->arg[1], c->arg[2], 0, 0);
	case SYS_utimes:
		return HC6(SYS_futimesat, pvm.proc_fd, link, c->host[1], 0, 0, 0);
	case SYS_truncate:
		return HC6(SYS_ftruncate, fd, c->arg[1], 0, 0, 0, 0);
	case SYS_statfs:
		return proc_statfs(c, fd);
	case SYS_setxattr:
		return HC6(SYS_fsetxattr, fd, c->host[1], c->host[2], c->host[3], c->host[4], 0);
	case SYS_getxattr:
		return HC6(SYS_fgetxattr, fd, c->host[1], c->host[2], c->host[3], 0, 0);
	case SYS_listxattr:
		return HC6(SYS_flistxattr, fd, c->host[1], c->host[2], 0, 0, 0);
	case SYS_removexattr:
		return HC6(SYS_fremovexattr, fd, c->host[1], 0, 0, 0, 0);
	}
	if (!at_first(c))
		return -ENOSYS;
	return HC6(c->nr, pvm.proc_fd, link, c->host[2], c->host[3], c->host[4], c->host[5]);
}

static int64_t refuse(struct hcall *c, const char *rel)
{
	struct stat st;
	int r;
	switch (c->nr) {
	case SYS_mkdir:
	case SYS_mkdirat:
	case SYS_symlink:
	case SYS_symlinkat:
		return procfs_stat(rel, &st, true) ? -ENOENT : -EEXIST;
	}
	if ((r = procfs_stat(rel, &st, true)))
		return r;
	switch (c->nr) {
	case SYS_setxattr:
	case SYS_lsetxattr:
	case SYS_getxattr:
	case SYS_lgetxattr:
	case SYS_listxattr:
	case SYS_llistxattr:
	case SYS_removexattr:
	case SYS_lremovexattr:
		return -EOPNOTSUPP;
	case SYS_utime:
	case SYS_utimes:
	case SYS_futimesat:
	case SYS_utimensat:
	case SYS_inotify_add_watch:
	case SYS_truncate:
		return -EACCES;
	case SYS_rename:
	case SYS_renameat:
	case SYS_renameat2:
	case SYS_link:
	case SYS_linkat:
		return -EXDEV;
	}
	return -EPERM;
}

int64_t vfs_proc_generic(struct hcall *c)
{
	char link[PATH_MAX];
	int i = 0, fd = -1;
	while (i < 6 && !c->proc[i])
		i++;
	if (i == 6)
		return -EINVAL;
	const char *rel = c->proc[i];
	bool second = i > (at_first(c) ? 1 : 0); /* a new name, or a watch */
	switch (c->nr) {
	case SYS_access:
		return procfs_access(rel, (int)c->arg[1]);
	case SYS_faccessat:
	case SYS_faccessat2:
		return procfs_access(rel, (int)c->arg[2]);
	}
	if (!acts_on_link(c) && (!second || c->nr == SYS_inotify_add_watch)) {
		int64_t r = -ENOSYS;
		switch (procfs_target(rel, link, sizeof link, &fd)) {
		case PROCFS_FD:
			if (!second)
				r = forward_fd(c, link, fd);
			break;
		case PROCFS_PATH:
			c->host[i] = (long)link;
			r = HC6(c->nr, c->host[0], c->host[1], c->host[2], c->host[3], c->host[4], c->host[5]);
			break;
		case PROCFS_NONE:
			break;
		}
		if (r != -ENOSYS)
			return r;
	}
	if (c->nr == SYS_statfs) {
		struct stat st;
		int r = procfs_stat(rel, &st, false);
		return r ? r : proc_statfs(c, pvm.proc_fd);
	}
	return refuse(c, rel);
}
