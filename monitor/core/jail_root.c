/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The new root is one tmpfs: its directories serve as /tmp, /run, /dev and so on, and everything that comes from the
 * host is grafted into it. A graft is a detached copy of a mount (open_tree) that gets its restrictions before it is
 * attached (move_mount), by descriptors on both sides; places in the new root are looked up with RESOLVE_IN_ROOT, so
 * that no symlink in an image or a volume leads out of it. Directories are made on the tmpfs only, never in a tree
 * that belongs to the host.
 *
 * The new root is mounted over "/": paths keep meaning the old root until pivot_root(2), except through "..", which is
 * why sources are absolute and clean.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "jail_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

int jail_fail(struct jail *j, const char *what)
{
	int e = errno;
	const char *remedy = "see that the host allows mounts, and what else jails are made of";
	if (e == EMFILE || e == ENFILE)
		remedy = "raise `ulimit -n`";
	else if (e == ENOSPC)
		remedy = "raise fs.mount-max by sysctl";
	else if (e == ENOMEM)
		remedy = "free some memory";
	else if (e == ELOOP)
		remedy = "it has become a link meanwhile: start again";
	else if (e == ENOSYS)
		remedy = "KylinX needs Linux 5.12 or later";
	else if (e == EPERM || e == EACCES)
		remedy = "a security module or container may forbid it: allow mounts there, or run as root";
	return kx_err_set(j->err, e, "jail: %s: %s (%s)", what, strerror(e), remedy);
}

/* ---- paths ---------------------------------------------------------------------------------------------- */

bool jail_path_clean(const char *dir, const char *p, char out[PATH_MAX])
{
	char in[2 * PATH_MAX];
	size_t n = 0;
	int len = snprintf(in, sizeof(in), "%s/%s", *p == '/' ? "" : dir, p);
	if (len < 0 || (size_t)len >= sizeof(in))
		return false;
	for (char *save, *s = strtok_r(in, "/", &save); s; s = strtok_r(NULL, "/", &save)) {
		if (!strcmp(s, "."))
			continue;
		if (!strcmp(s, "..")) {
			while (n && out[--n] != '/')
				;
			continue;
		}
		size_t l = strlen(s);
		if (n + l + 2 > PATH_MAX)
			return false;
		out[n++] = '/';
		memcpy(out + n, s, l);
		n += l;
	}
	if (!n)
		out[n++] = '/';
	out[n] = 0;
	return true;
}

bool jail_path_under(const char *p, const char *dir)
{
	size_t n = strlen(dir);
	if (n == 1)
		return true;
	return !strncmp(p, dir, n) && (!p[n] || p[n] == '/');
}

void jail_path_dir(const char *p, char out[PATH_MAX])
{
	const char *slash = strrchr(p, '/');
	size_t n = slash && slash != p ? (size_t)(slash - p) : 1;
	memcpy(out, p, n);
	out[n] = 0;
}

bool jail_path_special(const char *p)
{
	return jail_path_under(p, "/proc") || jail_path_under(p, "/sys") || jail_path_under(p, "/dev");
}

bool jail_path_broad(const char *p)
{
	static const char *const broad[] = {
		"/", "/tmp", "/var/tmp", "/home", "/var", "/run", "/root", "/mnt", "/media",
	};
	for (size_t i = 0; i < sizeof(broad) / sizeof(*broad); i++)
		if (!strcmp(p, broad[i]))
			return true;
	return jail_path_special(p);
}

/* Read all of a small file of unknown size. NULL and errno on failure. */
static char *slurp(const char *path)
{
	size_t cap = 16384, n = 0;
	char *buf = malloc(cap);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t r = fd < 0 ? -1 : 0;
	while (buf && fd >= 0 && (r = read(fd, buf + n, cap - n - 1)) > 0) {
		n += (size_t)r;
		if (cap - n < 4096) {
			char *more = realloc(buf, cap *= 2);
			if (!more)
				free(buf);
			buf = more;
		}
	}
	if (fd >= 0)
		close(fd);
	if (!buf || r < 0) {
		free(buf);
		return NULL;
	}
	buf[n] = 0;
	return buf;
}

/* A path of mountinfo, ended by a blank; other blanks and backslashes are octal. */
static void mount_path(const char *s, char out[PATH_MAX])
{
	size_t n = 0;
	for (; *s && *s != ' ' && n < PATH_MAX - 1; s++) {
		if (*s == '\\' && s[1] && s[2] && s[3]) {
			out[n++] = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
			s += 3;
		} else {
			out[n++] = *s;
		}
	}
	out[n] = 0;
}

bool jail_holds_proc(struct jail *j, const char *path)
{
	struct statfs fs;
	if (statfs(path == j->cwd ? "." : path, &fs) || fs.f_type == PROC_SUPER_MAGIC)
		return true;
	if (!j->mounts && !(j->mounts = slurp("/proc/self/mountinfo")))
		return true;
	for (const char *line = j->mounts; *line;) {
		const char *end = strchrnul(line, '\n'), *type = strstr(line, " - proc "), *p = line;
		if (type && type < end) {
			char at[PATH_MAX];
			for (int i = 0; i < 4; i++)
				p = strchrnul(p, ' ') + 1;
			mount_path(p, at);
			if (jail_path_under(at, path))
				return true;
		}
		line = *end ? end + 1 : end;
	}
	return false;
}

/* ---- the new root --------------------------------------------------------------------------------------- */

int jail_open(struct jail *j, const char *path)
{
	struct open_how how = { .flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT };
	long fd;
	do
		fd = syscall(SYS_openat2, j->root, path, &how, sizeof(how));
	while (fd < 0 && errno == EAGAIN); /* some mount or rename of the host's came between */
	return (int)fd;
}

/* The entry `name` of the directory `up`, in the new root's own file system and nowhere else. 0, or -1 and errno. */
static int entry_make(struct jail *j, int up, const char *name, bool dir)
{
	struct stat st;
	if (fstat(up, &st) || st.st_dev != j->dev) {
		errno = ENOENT;
		return -1;
	}
	return dir ? mkdirat(up, name, 0755) : mknodat(up, name, S_IFREG | 0644, 0);
}

/* jail_make() of a path that may be cut short meanwhile. */
static int view_make_from(struct jail *j, char *path, bool dir)
{
	int fd = jail_open(j, *path ? path : "/");
	char *slash = strrchr(path, '/');
	if (fd >= 0 || errno != ENOENT || !slash)
		return fd;
	*slash = 0;
	int up = view_make_from(j, path, true);
	*slash = '/';
	if (up < 0)
		return -1;
	if (!entry_make(j, up, slash + 1, dir))
		fd = jail_open(j, path);
	int e = errno;
	close(up);
	errno = e;
	return fd;
}

int jail_make(struct jail *j, const char *path, bool dir)
{
	char p[PATH_MAX];
	snprintf(p, sizeof(p), "%s", path);
	return view_make_from(j, p, dir);
}

bool jail_visible_as(struct jail *j, const char *path, const char *real)
{
	struct stat a, b;
	int fd = jail_open(j, path);
	bool same = fd >= 0 && !fstat(fd, &a) && !stat(real, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
	if (fd >= 0)
		close(fd);
	return same;
}

bool jail_visible(struct jail *j, const char *path) { return jail_visible_as(j, path, path); }

int jail_attach(int tree, int at)
{
	return (int)syscall(SYS_move_mount, tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

/* A detached copy of what src names. */
static int tree_of(const char *src, unsigned how, unsigned rec)
{
	const unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | rec;
	if (!(how & G_REAL))
		return (int)syscall(SYS_open_tree, AT_FDCWD, src, flags);
	struct open_how real = { .flags = O_PATH | O_CLOEXEC | O_DIRECTORY, .resolve = RESOLVE_NO_SYMLINKS };
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, src, &real, sizeof(real));
	if (fd < 0 && errno == ENOTDIR) {
		real.flags &= ~(uint64_t)O_DIRECTORY;
		fd = (int)syscall(SYS_openat2, AT_FDCWD, src, &real, sizeof(real));
	}
	if (fd < 0)
		return -1;
	int tree = (int)syscall(SYS_open_tree, fd, "", flags | AT_EMPTY_PATH), e = errno;
	close(fd);
	errno = e;
	return tree;
}

int jail_shut(const char *path)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
					       MOUNT_ATTR_NOEXEC };
	int tree = tree_of(path, 0, AT_RECURSIVE);
	if (tree < 0)
		return -1;
	int r = (int)syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr));
	if (!r)
		r = (int)syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH);
	int e = errno;
	close(tree);
	errno = e;
	return r;
}

static int attach_new(struct jail *j, int tree, const char *dst, bool dir)
{
	if (dir ? mkdirat(j->root, dst + 1, 0755) : mknodat(j->root, dst + 1, S_IFREG | 0644, 0))
		return -1;
	return (int)syscall(SYS_move_mount, tree, "", j->root, dst + 1, MOVE_MOUNT_F_EMPTY_PATH);
}

static int attach_found(struct jail *j, int tree, const char *dst, bool dir)
{
	int at = jail_make(j, dst, dir), r = at < 0 ? -1 : jail_attach(tree, at), e = errno;
	if (at >= 0)
		close(at);
	errno = e;
	return r;
}

int jail_graft(struct jail *j, const char *src, const char *dst, unsigned how)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_NOSUID };
	unsigned rec = how & G_ONE ? 0 : AT_RECURSIVE;
	struct stat st;
	int r = -1;
	int tree = tree_of(src, how, rec);
	if (tree < 0)
		return how & G_OPT && errno == ENOENT ? 0 : -1;
	if (how & G_RO)
		attr.attr_set |= MOUNT_ATTR_RDONLY;
	if (!(how & G_DEV))
		attr.attr_set |= MOUNT_ATTR_NODEV;
	if (!syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | rec, &attr, sizeof(attr)) && !fstat(tree, &st))
		r = (how & G_NEW ? attach_new : attach_found)(j, tree, dst, S_ISDIR(st.st_mode));
	int e = errno;
	close(tree);
	errno = e;
	return r;
}

int jail_graft_host(struct jail *j, const char *path, unsigned how)
{
	return jail_graft(j, path, path, how) ? jail_fail(j, path) : 0;
}

int jail_fs_new(const char *type, const char *const *opts, unsigned attr)
{
	int fs = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC), mnt = -1, e;
	long r = 0;
	if (fs < 0)
		return -1;
	for (; !r && *opts; opts += 2)
		r = syscall(SYS_fsconfig, fs, opts[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, opts[0], opts[1], 0);
	if (!r && !syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		mnt = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attr);
	e = errno;
	close(fs);
	errno = e;
	return mnt;
}

int jail_fs_graft(struct jail *j, const char *type, const char *const *opts, unsigned attr, const char *dst)
{
	int r = -1, e, mnt = jail_fs_new(type, opts, attr), at = jail_open(j, dst);
	if (mnt >= 0 && at >= 0)
		r = jail_attach(mnt, at);
	e = errno;
	if (mnt >= 0)
		close(mnt);
	if (at >= 0)
		close(at);
	errno = e;
	return r;
}

static const struct {
	const char *path;
	mode_t mode;
} dirs[] = {
	{ "tmp", 01777 }, { "run", 0755 }, { "run/lock", 01777 }, { "proc", 0777 }, { "dev", 0755 },
	{ "dev/pts", 0755 }, { "dev/shm", 01777 }, { "dev/mqueue", 01777 }, { "sys", 0755 }, { "sys/devices", 0755 },
	{ "sys/devices/system", 0755 }, { "sys/kernel", 0755 }, { "sys/kernel/mm", 0755 },
}, own_dirs[] = { /* not with --root: there they are the image's */
	{ "home", 0755 }, { "root", 0700 }, { "var", 0755 }, { "var/tmp", 01777 }, { "var/lib", 0755 },
	{ "var/log", 0755 }, { "var/cache", 0755 },
};

static const struct {
	const char *path, *target;
} links[] = {
	{ "dev/fd", "/proc/self/fd" }, { "dev/stdin", "/proc/self/fd/0" }, { "dev/stdout", "/proc/self/fd/1" },
	{ "dev/stderr", "/proc/self/fd/2" }, { "dev/ptmx", "pts/ptmx" },
}, own_links[] = {
	{ "var/run", "/run" }, { "var/lock", "/run/lock" },
};

int jail_own_mount(struct jail *j, const char *path)
{
	int tree = (int)syscall(SYS_open_tree, j->root, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	int at = openat(j->root, path, O_PATH | O_CLOEXEC), r = -1;
	if (tree >= 0 && at >= 0)
		r = jail_attach(tree, at);
	int e = errno;
	if (tree >= 0)
		close(tree);
	if (at >= 0)
		close(at);
	errno = e;
	return r ? jail_fail(j, path) : 0;
}

int jail_root_make(struct jail *j)
{
	static const char *const opts[] = { "mode", "0755", "source", "kylinx", NULL };
	struct stat st;
	j->root = jail_fs_new("tmpfs", opts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	if (j->root < 0 || fstat(j->root, &st) ||
	    syscall(SYS_move_mount, j->root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH))
		return jail_fail(j, "cannot mount a tmpfs");
	j->dev = st.st_dev;
	EACH(i, dirs)
		if (mkdirat(j->root, dirs[i].path, dirs[i].mode))
			return jail_fail(j, dirs[i].path);
	EACH(i, links)
		if (symlinkat(links[i].target, j->root, links[i].path))
			return jail_fail(j, links[i].path);
	/* procfs.c makes directories below /proc. */
	return jail_own_mount(j, "tmp") || jail_own_mount(j, "run") || jail_own_mount(j, "dev") ||
			       jail_own_mount(j, "proc")
		       ? -1
		       : 0;
}

int jail_own_dirs(struct jail *j)
{
	EACH(i, own_dirs)
		if (mkdirat(j->root, own_dirs[i].path, own_dirs[i].mode))
			return jail_fail(j, own_dirs[i].path);
	EACH(i, own_links)
		if (symlinkat(own_links[i].target, j->root, own_links[i].path))
			return jail_fail(j, own_links[i].path);
	return jail_own_mount(j, "home") || jail_own_mount(j, "root") || jail_own_mount(j, "var") ? -1 : 0;
}

int jail_text_make(struct jail *j, const char *path, const char *text)
{
	int fd = openat(j->root, path + 1, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (fd < 0)
		return jail_fail(j, path);
	ssize_t n = write(fd, text, strlen(text));
	close(fd);
	return n < 0 ? jail_fail(j, path) : 0;
}
