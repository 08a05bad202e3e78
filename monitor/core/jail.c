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
#include "jail.h"
#include "net.h"
#include "store.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MNT_DETACH 2 /* <sys/mount.h> and <linux/mount.h> can't both be included */

/* How to graft */
#define G_RO 1
#define G_DEV 2 /* device nodes work */
#define G_ONE 4 /* without the mounts below it */
#define G_OPT 8 /* nothing to do when the source isn't there */
#define G_NEW \
	16 /* what the destination names is missing, in a directory that root_make() has made: no need to look for it */

#define HOST_RO (G_RO | G_OPT)

struct jail {
	const struct kx_config *cfg;
	struct kx_err *err;
	int root;  /* descriptor of the new root */
	dev_t dev; /* its file system */
	bool userns;
	char *mounts;       /* copy of /proc/self/mountinfo, read when needed */
	char cwd[PATH_MAX]; /* "/" when it can't be told */
	bool lost;          /* the current directory has no path: removed, or its mount is gone */
	int cwd_tree;       /* it, when the view has no place for it; -1 */
};

static int fail(struct jail *j, const char *what)
{
	int e = errno;
	const char *remedy = "";
	if (e == ENOSYS)
		remedy = " (KylinX needs Linux 5.12 or later)";
	else if (e == EPERM || e == EACCES)
		remedy = " (a security module or container may forbid it: allow mounts there, or run as root)";
	return kx_err_set(j->err, e, "jail: %s: %s%s", what, strerror(e), remedy);
}

/* ---- paths ---------------------------------------------------------------------------------------------- */

/* p, made absolute by dir, without ".", ".." and empty components. False when it gets too long. */
static bool path_clean(const char *dir, const char *p, char out[PATH_MAX])
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

static bool path_under(const char *p, const char *dir)
{
	size_t n = strlen(dir);
	if (n == 1)
		return true;
	return !strncmp(p, dir, n) && (!p[n] || p[n] == '/');
}

static void path_dir(const char *p, char out[PATH_MAX])
{
	const char *slash = strrchr(p, '/');
	size_t n = slash && slash != p ? (size_t)(slash - p) : 1;
	memcpy(out, p, n);
	out[n] = 0;
}

/* Emulated or made by us: never taken from the host because a program or the current directory is there. */
static bool path_special(const char *p)
{
	return path_under(p, "/proc") || path_under(p, "/sys") || path_under(p, "/dev");
}

/* Too much of the host, or private in the view. */
static bool path_broad(const char *p)
{
	static const char *const broad[] = {
		"/", "/tmp", "/var/tmp", "/home", "/var", "/run", "/root", "/mnt", "/media",
	};
	for (size_t i = 0; i < sizeof(broad) / sizeof(*broad); i++)
		if (!strcmp(p, broad[i]))
			return true;
	return path_special(p);
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

/*
 * Is a procfs mounted at or below path (of the host)? One in the view would show the monitor's own memory to the
 * program. When it can't be told: yes.
 */
static bool holds_proc(struct jail *j, const char *path)
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
			if (path_under(at, path))
				return true;
		}
		line = *end ? end + 1 : end;
	}
	return false;
}

/* ---- the new root --------------------------------------------------------------------------------------- */

/* O_PATH descriptor of what path names in the new root; -1 and errno. */
static int view_open(struct jail *j, const char *path)
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

/* view_make() of a path that may be cut short meanwhile. */
static int view_make_from(struct jail *j, char *path, bool dir)
{
	int fd = view_open(j, *path ? path : "/");
	char *slash = strrchr(path, '/');
	if (fd >= 0 || errno != ENOENT || !slash)
		return fd;
	*slash = 0;
	int up = view_make_from(j, path, true);
	*slash = '/';
	if (up < 0)
		return -1;
	if (!entry_make(j, up, slash + 1, dir))
		fd = view_open(j, path);
	int e = errno;
	close(up);
	errno = e;
	return fd;
}

/* The same, made when missing: directories on the way, and a directory or an empty file at the end. */
static int view_make(struct jail *j, const char *path, bool dir)
{
	char p[PATH_MAX];
	snprintf(p, sizeof(p), "%s", path);
	return view_make_from(j, p, dir);
}

/* Does path name in the view what real names on the host? */
static bool visible_as(struct jail *j, const char *path, const char *real)
{
	struct stat a, b;
	int fd = view_open(j, path);
	bool same = fd >= 0 && !fstat(fd, &a) && !stat(real, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
	if (fd >= 0)
		close(fd);
	return same;
}

static bool visible(struct jail *j, const char *path) { return visible_as(j, path, path); }

static int attach(int tree, int at)
{
	return (int)syscall(SYS_move_mount, tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static int attach_new(struct jail *j, int tree, const char *dst, bool dir)
{
	if (dir ? mkdirat(j->root, dst + 1, 0755) : mknodat(j->root, dst + 1, S_IFREG | 0644, 0))
		return -1;
	return (int)syscall(SYS_move_mount, tree, "", j->root, dst + 1, MOVE_MOUNT_F_EMPTY_PATH);
}

static int attach_found(struct jail *j, int tree, const char *dst, bool dir)
{
	int at = view_make(j, dst, dir), r = at < 0 ? -1 : attach(tree, at), e = errno;
	if (at >= 0)
		close(at);
	errno = e;
	return r;
}

/* Show src of the host as dst of the view. 0, or -1 and errno. */
static int graft(struct jail *j, const char *src, const char *dst, unsigned how)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_NOSUID };
	unsigned rec = how & G_ONE ? 0 : AT_RECURSIVE;
	struct stat st;
	int r = -1;
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, src, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | rec);
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

static int graft_host(struct jail *j, const char *path, unsigned how)
{
	return graft(j, path, path, how) ? fail(j, path) : 0;
}

/* A new file system of a kind, detached. opts: pairs of key and value (NULL: a flag), NULL at the end. */
static int fs_new(const char *type, const char *const *opts, unsigned attr)
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

/* A new file system at dst of the view, which must be there. */
static int fs_graft(struct jail *j, const char *type, const char *const *opts, unsigned attr, const char *dst)
{
	int r = -1, e, mnt = fs_new(type, opts, attr), at = view_open(j, dst);
	if (mnt >= 0 && at >= 0)
		r = attach(mnt, at);
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

#define EACH(i, a) for (size_t i = 0; i < sizeof(a) / sizeof(*(a)); i++)

/* A mount of its own for a directory of ours: "/" becomes read-only, as it is to programs without root's rights. */
static int own_mount(struct jail *j, const char *path)
{
	int tree = (int)syscall(SYS_open_tree, j->root, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	int at = openat(j->root, path, O_PATH | O_CLOEXEC), r = -1;
	if (tree >= 0 && at >= 0)
		r = attach(tree, at);
	int e = errno;
	if (tree >= 0)
		close(tree);
	if (at >= 0)
		close(at);
	errno = e;
	return r ? fail(j, path) : 0;
}

static int root_make(struct jail *j)
{
	static const char *const opts[] = { "mode", "0755", "source", "kylinx", NULL };
	struct stat st;
	j->root = fs_new("tmpfs", opts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	if (j->root < 0 || fstat(j->root, &st) ||
	    syscall(SYS_move_mount, j->root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH))
		return fail(j, "cannot mount a tmpfs");
	j->dev = st.st_dev;
	EACH(i, dirs)
		if (mkdirat(j->root, dirs[i].path, dirs[i].mode))
			return fail(j, dirs[i].path);
	EACH(i, links)
		if (symlinkat(links[i].target, j->root, links[i].path))
			return fail(j, links[i].path);
	/* procfs.c makes directories below /proc. */
	return own_mount(j, "tmp") || own_mount(j, "run") || own_mount(j, "dev") || own_mount(j, "proc") ? -1 : 0;
}

/*
 * The terminal that the family is started on. Its node is in the host's devpts, which is not the view's, so it gets the
 * name that it has in containers. Only what is /dev/tty to the program anyway.
 */
static int console_make(struct jail *j)
{
	char name[64];
	struct stat st;
	unsigned dev = 0;
	int tty = open("/dev/tty", O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), r = 0;
	bool known = tty >= 0 && !ioctl(tty, TIOCGDEV, &dev), found = false;
	for (int fd = 0; known && fd < 3 && !found; fd++)
		found = !fstat(fd, &st) && S_ISCHR(st.st_mode) && st.st_rdev == dev &&
			!ttyname_r(fd, name, sizeof(name));
	if (found && graft(j, name, "/dev/console", G_RO | G_DEV | G_OPT))
		r = fail(j, name);
	if (tty >= 0)
		close(tty);
	return r;
}

static int dev_make(struct jail *j)
{
	static const char *const nodes[] = { "null", "zero", "full", "random", "urandom", "tty" };
	static const char *const pts[] = { "newinstance", NULL, "ptmxmode", "0666", "mode", "0620", NULL };
	char path[32];
	EACH(i, nodes) {
		snprintf(path, sizeof(path), "/dev/%s", nodes[i]);
		/* Read-only is no matter of what is written to a device, but of the node: its owner and mode are the host's. */
		if (graft_host(j, path, G_RO | G_DEV | G_OPT | G_NEW))
			return -1;
	}
	if (fs_graft(j, "devpts", pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, "/dev/pts"))
		return fail(j, "cannot mount devpts");
	/* The queues of the family's IPC namespace. A kernel may have none. */
	static const char *const mq[] = { "source", "mqueue", NULL };
	if (fs_graft(j, "mqueue", mq, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, "/dev/mqueue") &&
	    errno != ENODEV)
		return fail(j, "cannot mount mqueue");
	return console_make(j);
}

#define SYS_CPU "/sys/devices/system/cpu"

/* The processors of --cpus as a list: 0-2,5 */
static void cpus_text(char out[8192])
{
	int n = 0;
	for (int i = 0, last; i < CPU_SETSIZE; i = last + 1) {
		for (last = i; last < CPU_SETSIZE && CPU_ISSET(last, &pvm.cpus);)
			last++;
		if (last == i)
			continue;
		n += sprintf(out + n, last - 1 > i ? "%s%d-%d" : "%s%d", n ? "," : "", i, last - 1);
	}
	strcpy(out + n, "\n");
}

/* A file in the new root with this text. */
static int text_make(struct jail *j, const char *path, const char *text)
{
	int fd = openat(j->root, path + 1, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (fd < 0)
		return fail(j, path);
	ssize_t n = write(fd, text, strlen(text));
	close(fd);
	return n < 0 ? fail(j, path) : 0;
}

/* A directory of the new root with what is mounted in it becomes read-only. */
static int freeze(struct jail *j, const char *path)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	int tree = -1, r = -1, at = view_open(j, path);
	if (at >= 0)
		tree = (int)syscall(SYS_open_tree, at, "",
				    OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH);
	if (tree >= 0 && !syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)))
		r = attach(tree, at);
	if (r)
		fail(j, path);
	if (tree >= 0)
		close(tree);
	if (at >= 0)
		close(at);
	return r;
}

/* The host's, but with the processors of --cpus alone: their directories, and the files that count them. */
static int sys_cpu_make(struct jail *j)
{
	static const char *const lists[] = { "online", "possible", "present" };
	char text[8192], path[64 + NAME_MAX];
	struct dirent *d;
	int r = 0, n;
	DIR *top = opendir(SYS_CPU);
	if (!top)
		return errno == ENOENT ? 0 : fail(j, SYS_CPU);
	if (mkdirat(j->root, &SYS_CPU[1], 0755))
		r = fail(j, SYS_CPU);
	cpus_text(text);
	EACH(i, lists) {
		snprintf(path, sizeof(path), SYS_CPU "/%s", lists[i]);
		r = r ? r : text_make(j, path, text);
	}
	while (!r && (errno = 0, d = readdir(top))) {
		struct stat st;
		snprintf(path, sizeof(path), SYS_CPU "/%s", d->d_name);
		if (d->d_name[0] == '.' || !fstatat(j->root, path + 1, &st, AT_SYMLINK_NOFOLLOW))
			continue;
		if (!strcmp(d->d_name, "offline"))
			r = text_make(j, path, "\n");
		else if (sscanf(d->d_name, "cpu%d", &n) != 1 || (n >= 0 && n < CPU_SETSIZE && CPU_ISSET(n, &pvm.cpus)))
			r = graft_host(j, path, HOST_RO);
	}
	closedir(top);
	return r ? r : freeze(j, SYS_CPU);
}

/* What language runtimes read to learn about the machine. */
static int sys_make(struct jail *j)
{
	static const char *const show[] = {
		"/sys/devices/system/clocksource",
		"/sys/kernel/mm/transparent_hugepage",
		SYS_CPU,
		"/sys/devices/system/node",
	};
	/* With --cpus, processors are not told by node. */
	size_t n = sizeof(show) / sizeof(*show) - (j->cfg->cpus ? 2 : 0);
	for (size_t i = 0; i < n; i++)
		if (graft_host(j, show[i], HOST_RO | G_NEW))
			return -1;
	return j->cfg->cpus ? sys_cpu_make(j) : 0;
}

/* A name in the root directory of the host or of an image: the same symlink, or a read-only graft. */
static int top_make(struct jail *j, const char *dir, const char *name)
{
	char src[PATH_MAX], dst[NAME_MAX + 2], target[PATH_MAX];
	struct stat st;
	if ((size_t)snprintf(src, sizeof(src), "%s/%s", dir, name) >= sizeof(src)) {
		errno = ENAMETOOLONG;
		return fail(j, name);
	}
	snprintf(dst, sizeof(dst), "/%s", name);
	if (lstat(src, &st))
		return errno == ENOENT ? 0 : fail(j, src);
	if (S_ISLNK(st.st_mode)) {
		ssize_t n = readlink(src, target, sizeof(target) - 1);
		if (n < 0)
			return fail(j, src);
		target[n] = 0;
		return symlinkat(target, j->root, name) ? fail(j, dst) : 0;
	}
	if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode))
		return 0;
	if (j->cfg->root && holds_proc(j, src))
		return kx_err_set(j->err, EINVAL,
				  "--root %s: a procfs is mounted below %s (unmount it, or copy "
				  "the image)",
				  j->cfg->root, src);
	return graft(j, src, dst, G_RO | G_NEW) ? fail(j, src) : 0;
}

/* resolv.conf is often a symlink into /run, which is private. */
static int resolv_make(struct jail *j)
{
	char real[PATH_MAX];
	if (!realpath("/etc/resolv.conf", real) || path_under(real, "/etc") || path_under(real, "/usr") ||
	    path_special(real))
		return 0;
	return graft_host(j, real, HOST_RO);
}

static int home_make(struct jail *j)
{
	const char *home = NULL;
	char path[PATH_MAX];
	for (char **e = j->cfg->envp; e && *e; e++)
		if (!strncmp(*e, "HOME=/home/", 11))
			home = *e + 5;
	if (!home || !path_clean("/", home, path) || !path_under(path, "/home"))
		return 0;
	int fd = view_make(j, path, true);
	if (fd < 0)
		return fail(j, path);
	close(fd);
	return 0;
}

static int view_of_host(struct jail *j)
{
	static const char *const top[] = { "usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32" };
	EACH(i, own_dirs)
		if (mkdirat(j->root, own_dirs[i].path, own_dirs[i].mode))
			return fail(j, own_dirs[i].path);
	EACH(i, own_links)
		if (symlinkat(own_links[i].target, j->root, own_links[i].path))
			return fail(j, own_links[i].path);
	if (own_mount(j, "home") || own_mount(j, "root") || own_mount(j, "var"))
		return -1;
	EACH(i, top)
		if (top_make(j, "", top[i]))
			return -1;
	if (resolv_make(j))
		return -1;
	return home_make(j);
}

static int view_of_image(struct jail *j)
{
	static const char *const opts[] = { "mode", "1777", "source", "kylinx", NULL };
	char dir[PATH_MAX];
	struct dirent *d;
	struct stat st;
	DIR *top;
	int r = 0, fd;
	if (!realpath(j->cfg->root, dir) || !(top = opendir(dir)))
		return kx_err_set(j->err, errno, "--root %s: %s (give the directory of a root file system)",
				  j->cfg->root, strerror(errno));
	while (!r && (errno = 0, d = readdir(top))) {
		if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
			continue;
		if (!fstatat(j->root, d->d_name, &st, AT_SYMLINK_NOFOLLOW))
			continue; /* ours, such as /dev */
		r = top_make(j, dir[1] ? dir : "", d->d_name);
	}
	closedir(top);
	if (r || (fd = view_open(j, "/var/tmp")) < 0)
		return r;
	r = fstat(fd, &st) || !S_ISDIR(st.st_mode) || st.st_dev == j->dev;
	close(fd);
	if (!r && fs_graft(j, "tmpfs", opts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, "/var/tmp"))
		return fail(j, "/var/tmp");
	return 0;
}

/* ---- what is there because of where the program is ------------------------------------------------------- */

/* Make the file real (clean and without symlinks) visible as path, with the directory that it is in. */
static int expose(struct jail *j, const char *real, const char *path)
{
	char src[PATH_MAX], dst[PATH_MAX];
	if (path_special(real) || path_special(path) || visible(j, path))
		return 0;
	path_dir(real, src);
	path_dir(path, dst);
	if (path_broad(src) || path_broad(dst) || holds_proc(j, src))
		return graft(j, real, path, HOST_RO) ? fail(j, path) : 0;
	return graft(j, src, dst, HOST_RO) ? fail(j, path) : 0;
}

static const char *env_get(char **envp, const char *name)
{
	size_t n = strlen(name);
	for (; envp && *envp; envp++)
		if (!strncmp(*envp, name, n) && (*envp)[n] == '=')
			return *envp + n + 1;
	return NULL;
}

/* "/opt/bin/../lib/x" leads through /opt/bin: it is there then, empty unless it is shown for another reason. */
static void steps_expose(struct jail *j, const char *path)
{
	char step[PATH_MAX], clean[PATH_MAX];
	struct stat st;
	for (const char *p = path; (p = strstr(p, "/../")); p += 3) {
		snprintf(step, sizeof step, "%.*s", (int)(p - path), path);
		if (!*step || lstat(step, &st) || !S_ISDIR(st.st_mode) || !path_clean(j->cwd, step, clean) ||
		    path_special(clean) || visible(j, clean))
			continue;
		int fd = view_make(j, clean, true);
		if (fd >= 0)
			close(fd);
	}
}

/* What isn't there, or can't be executed, is path_search()'s to report, later; the view must not hide why. */
static int program_expose(struct jail *j)
{
	char found[4096], dir[PATH_MAX], real[PATH_MAX], typed[PATH_MAX];
	struct stat st;
	char *slash;
	int r = path_search(j->cfg->program, env_get(j->cfg->envp, "PATH"), found, NULL);
	if ((r && (r != -EACCES || !strchr(found, '/'))) || !realpath(found, real) || stat(real, &st) ||
	    !path_clean(j->cwd, found, typed))
		return 0;
	if (S_ISDIR(st.st_mode)) {
		int fd = view_make(j, typed, true);
		if (fd >= 0)
			close(fd);
		return 0;
	}
	steps_expose(j, found);
	/* Where it really is, by the name it has in the real directory, and as typed. */
	slash = strrchr(found, '/');
	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - found) + 1 : 1, slash ? found : ".");
	if (expose(j, real, real))
		return -1;
	char *up = realpath(dir, NULL), at[2 * PATH_MAX];
	if (!up)
		return 0;
	int n = snprintf(at, sizeof(at), "%s/%s", up[1] ? up : "", slash ? slash + 1 : found);
	free(up);
	if (n >= PATH_MAX)
		return 0;
	if (expose(j, at, at))
		return -1;
	return visible(j, typed) ? 0 : expose(j, at, typed);
}

/*
 * The current directory itself, whatever its path leads to: it may have none, be hidden by a mount, or lie below
 * directories that the user may not search. Where the view has no place for it, it becomes the current directory
 * without a path, as it was, but without a way up.
 */
static int cwd_expose(struct jail *j)
{
	static const char *const none[] = { "mode", "0755", "source", "kylinx", NULL };
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY };
	int at = -1, r = -1;
	if (!j->lost && (path_broad(j->cwd) || visible_as(j, j->cwd, ".")))
		return 0;
	unsigned rec = !j->lost && holds_proc(j, j->cwd) ? 0 : AT_RECURSIVE;
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | rec);
	/* Not possible without the mounts below when those are locked (user namespace): then it isn't there. */
	if (tree < 0 && !rec && errno == EINVAL)
		return 0;
	if (tree < 0 && j->lost)
		tree = fs_new("tmpfs", none, 0); /* of its mount nothing can be had any more */
	if (tree < 0 || syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | rec, &attr, sizeof(attr)))
		return fail(j, "the current directory");
	if (!j->lost && (at = view_make(j, j->cwd, true)) >= 0)
		r = attach(tree, at);
	if (at >= 0)
		close(at);
	if (r)
		j->cwd_tree = tree;
	else
		close(tree);
	return 0;
}

static int volume_make(struct jail *j, const struct kx_volume *v)
{
	char src[PATH_MAX], dst[PATH_MAX];
	struct stat st;
	if (!realpath(v->src, src) || stat(src, &st))
		return kx_err_set(j->err, errno, "--volume %s:%s: %s (check SRC)", v->src, v->dst, strerror(errno));
	if (!path_clean("/", v->dst, dst) || !dst[1] || path_under(dst, "/proc"))
		return kx_err_set(j->err, EINVAL,
				  "--volume %s:%s: cannot be mounted there (choose a DST other than / "
				  "and outside /proc)",
				  v->src, v->dst);
	if (holds_proc(j, src))
		return kx_err_set(j->err, EINVAL, "--volume %s:%s: holds a procfs (choose a directory without one)",
				  v->src, v->dst);
	if (!graft(j, src, dst, (v->ro ? G_RO : 0) | (S_ISDIR(st.st_mode) ? 0 : G_DEV)))
		return 0;
	const char *remedy = "check SRC and DST";
	if (errno == ENOENT)
		remedy = "make the mount point on the host first, or choose a DST that is not inside a host directory";
	return kx_err_set(j->err, errno, "--volume %s:%s: %s (%s)", v->src, v->dst, strerror(errno), remedy);
}

/* ---- namespaces and capabilities ------------------------------------------------------------------------- */

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t n = write(fd, text, strlen(text));
	int e = errno;
	close(fd);
	errno = e;
	return n < 0 ? -1 : 0;
}

static int userns_enter(struct jail *j, int flags)
{
	char map[64];
	uid_t uid = geteuid();
	gid_t gid = getegid();
	if (unshare(flags | CLONE_NEWUSER)) {
		int e = errno;
		const char *why = e == ENOSPC ? "no user namespace left" : strerror(e);
		const char *remedy = "run as root";
		if (e == ENOSPC)
			remedy = "raise user.max_user_namespaces by sysctl, or run as root";
		else if (e == EPERM)
			remedy = "set kernel.unprivileged_userns_clone=1 or "
				 "kernel.apparmor_restrict_unprivileged_userns=0 by sysctl, or run as root";
		return kx_err_set(j->err, e, "jail: cannot make a user namespace: %s (%s)", why, remedy);
	}
	j->userns = true;
	if (put("/proc/self/setgroups", "deny") && errno != ENOENT)
		return fail(j, "/proc/self/setgroups");
	snprintf(map, sizeof(map), "%u %u 1", uid, uid);
	if (put("/proc/self/uid_map", map))
		return fail(j, "/proc/self/uid_map");
	snprintf(map, sizeof(map), "%u %u 1", gid, gid);
	if (put("/proc/self/gid_map", map))
		return fail(j, "/proc/self/gid_map");
	return 0;
}

static int lo_up(struct jail *j)
{
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), r = 0;
	if (fd < 0)
		return errno == EAFNOSUPPORT ? 0 : fail(j, "socket");
	if (ioctl(fd, SIOCSIFFLAGS, &ifr))
		r = fail(j, "cannot bring lo up");
	close(fd);
	return r;
}

static int ns_enter(struct jail *j)
{
	int flags = CLONE_NEWNS | CLONE_NEWIPC | (j->cfg->net_none || j->cfg->net_private ? CLONE_NEWNET : 0);
	if (unshare(flags)) {
		if (errno != EPERM)
			return fail(j, "cannot make namespaces");
		if (userns_enter(j, flags))
			return -1;
	}
	if (syscall(SYS_mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return fail(j, "cannot make mounts private");
	if (!j->cfg->net_none && !j->cfg->net_private)
		return 0;
	return lo_up(j) ? -1 : net_attach(j->cfg, j->err);
}

/*
 * A procfs for the monitor: a copy of the host's mount rather than a descriptor of it, since that would lead by ".."
 * to the host's root.
 */
static int proc_keep(struct jail *j)
{
	struct statfs fs;
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, "/proc", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	if (fd < 0 || fstatfs(fd, &fs))
		return fail(j, "/proc");
	if (fs.f_type != PROC_SUPER_MAGIC)
		return kx_err_set(j->err, ENODEV, "jail: /proc: not a procfs (mount -t proc proc /proc)");
	int r = fd_keep(&pvm.proc_fd, fd);
	return r ? kx_err_set(j->err, -r, "jail: /proc: %s (raise `ulimit -n`)", strerror(-r)) : 0;
}

static int root_switch(struct jail *j)
{
	if (fchdir(j->root) || syscall(SYS_pivot_root, ".", ".")) {
		if (errno == EINVAL)
			return kx_err_set(j->err, EINVAL,
					  "jail: pivot_root: not possible inside chroot or on an "
					  "initramfs (start KylinX from a mounted root file system)");
		return fail(j, "pivot_root");
	}
	if (syscall(SYS_umount2, ".", MNT_DETACH))
		return fail(j, "cannot leave the old root");
	close(j->root);
	j->root = -1;
	if (j->cwd_tree >= 0 && !fchdir(j->cwd_tree))
		return 0;
	return chdir(j->cwd) && chdir("/") ? fail(j, "/") : 0;
}

static const unsigned char kept_caps[] = {
	CAP_CHOWN,   CAP_DAC_OVERRIDE,     CAP_FOWNER,  CAP_FSETID,     CAP_KILL,        CAP_SETGID,  CAP_SETUID,
	CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYS_CHROOT, CAP_AUDIT_WRITE, CAP_SETFCAP,
};

static int caps_drop(struct jail *j)
{
	struct __user_cap_header_struct hdr = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	uint32_t keep[2] = { 0, 0 };
	if (!j->userns || geteuid() == 0)
		EACH(i, kept_caps)
			keep[kept_caps[i] / 32] |= 1u << kept_caps[i] % 32;
	for (unsigned c = 0; c < 64; c++)
		if (!(keep[c / 32] & 1u << c % 32) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0)) {
			if (errno == EINVAL)
				break;      /* the last that the kernel knows was before */
			if (errno != EPERM) /* without SETPCAP it can't be changed, and no_new_privs makes it moot */
				return fail(j, "cannot drop capabilities");
		}
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_capget, &hdr, data))
		return fail(j, "capget");
	for (int i = 0; i < 2; i++) {
		data[i].permitted &= keep[i];
		data[i].inheritable &= keep[i];
		data[i].effective = data[i].permitted;
	}
	if (syscall(SYS_capset, &hdr, data))
		return fail(j, "capset");
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? fail(j, "no_new_privs") : 0;
}

/* In a private network names are resolved by slirp4netns, whatever the host's resolver is. */
static int resolver_make(struct jail *j)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	int r = -1;
	if (text_make(j, "/run/resolv.conf", NET_RESOLVER))
		return -1;
	int tree = (int)syscall(SYS_open_tree, j->root, "run/resolv.conf", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	int at = view_make(j, "/etc/resolv.conf", false);
	if (at < 0 && tree >= 0) /* the host, or the image, has none, and then none is looked for */
		r = 0;
	else if (tree >= 0 && !syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)))
		r = attach(tree, at);
	if (r)
		fail(j, "/etc/resolv.conf");
	if (tree >= 0)
		close(tree);
	if (at >= 0)
		close(at);
	return r;
}

static int view_build(struct jail *j)
{
	const struct kx_config *cfg = j->cfg;
	if (root_make(j) || dev_make(j) || sys_make(j))
		return -1;
	if (cfg->root ? view_of_image(j) : view_of_host(j) || cwd_expose(j) || program_expose(j))
		return -1;
	if (cfg->net_private && resolver_make(j))
		return -1;
	for (int i = 0; i < cfg->nr_volumes; i++)
		if (volume_make(j, &cfg->volumes[i]))
			return -1;
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	if (!cfg->root && syscall(SYS_mount_setattr, j->root, "", AT_EMPTY_PATH, &attr, sizeof(attr)))
		return fail(j, "cannot make / read-only");
	return root_switch(j);
}

int jail_enter(const struct kx_config *cfg, struct kx_err *err)
{
	struct kx_err own = { .code = 0 };
	struct jail j = { .cfg = cfg, .err = err ? err : &own, .root = -1, .cwd_tree = -1 };
	mode_t mask;
	int r;
	j.lost = !getcwd(j.cwd, sizeof(j.cwd)) || j.cwd[0] != '/';
	if (j.lost)
		strcpy(j.cwd, "/");
	mask = umask(0);
	r = ns_enter(&j) || proc_keep(&j);
	if (!r)
		store_enter();
	r = r || view_build(&j) || caps_drop(&j);
	umask(mask);
	free(j.mounts);
	if (j.root >= 0)
		close(j.root);
	if (j.cwd_tree >= 0)
		close(j.cwd_tree);
	return r ? -(j.err->code ? j.err->code : EINVAL) : 0;
}

/* ---- the view of others ---------------------------------------------------------------------------------- */

int jail_join(const struct kx_join *join, struct kx_err *err)
{
	static const struct {
		const char *name;
		int flag;
	} kinds[] = {
		{ "user", CLONE_NEWUSER }, { "mnt", CLONE_NEWNS },  { "ipc", CLONE_NEWIPC },
		{ "net", CLONE_NEWNET },   { "uts", CLONE_NEWUTS },
	};
	struct kx_err own = { .code = 0 };
	struct jail j = { .err = err ? err : &own, .root = -1 };
	struct stat a, b;
	char path[32];
	int flags = 0;
	if (!getcwd(j.cwd, sizeof(j.cwd)) || j.cwd[0] != '/')
		strcpy(j.cwd, "/");
	EACH(i, kinds) {
		snprintf(path, sizeof(path), "/proc/self/ns/%s", kinds[i].name);
		if (stat(path, &a) || fstatat(join->member_proc, path + 11, &b, 0))
			return fail(&j, path);
		if (a.st_ino != b.st_ino || a.st_dev != b.st_dev)
			flags |= kinds[i].flag; /* one's own user namespace can't be entered once more */
	}
	if (syscall(SYS_setns, join->member, flags))
		return fail(&j, "cannot enter the namespaces of the family");
	j.userns = flags & CLONE_NEWUSER;
	if (fstatat(pvm.proc_fd, "self/ns/ipc", &a, 0) || a.st_ino != join->ipc_ino || a.st_dev != join->ipc_dev)
		return kx_err_set(j.err, ESRCH, "jail: the family has ended (see `kylinx ps`)");
	if (chdir(j.cwd) && chdir("/"))
		return fail(&j, "/");
	return caps_drop(&j) ? -j.err->code : 0;
}

/* ---- PATH ------------------------------------------------------------------------------------------------ */

/* 0 when it can be executed; ENOENT, ENOTDIR, EACCES, ... */
static int executable(const char *path)
{
	struct stat st;
	if (stat(path, &st))
		return errno;
	if (!S_ISREG(st.st_mode))
		return S_ISDIR(st.st_mode) ? EISDIR : EACCES;
	return faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) ? errno : 0;
}

static int path_error(const char *name, int e, struct kx_err *err)
{
	bool slash = strchr(name, '/');
	if (e == ENOENT && slash)
		return kx_err_exit(err, e, 127, "%.300s: %s (if the host has it, show it to the pVM with --volume)",
				   name, strerror(e));
	if (e == ENOENT)
		return kx_err_exit(err, e, 127, "%.300s: not found in PATH (give its path, or set PATH with --env)",
				   name);
	if (e == EISDIR)
		return kx_err_exit(err, EACCES, 126, "%.300s: is a directory (name a program)", name);
	if (e == EACCES)
		return kx_err_exit(err, e, 126, "%.300s: %s (is it executable?)", name, strerror(e));
	return kx_err_exit(err, e, 126, "%.300s: %s (check the path)", name, strerror(e));
}

int path_search(const char *name, const char *path_env, char out[4096], struct kx_err *err)
{
	int e, kept = ENOENT;
	if (!*name)
		return kx_err_exit(err, ENOENT, 127, "'': not found (name a program)");
	if (strchr(name, '/')) {
		if (strlen(name) >= 4096)
			return path_error(name, ENAMETOOLONG, err);
		strcpy(out, name);
		e = executable(name);
		return e ? path_error(name, e, err) : 0;
	}
	if (!path_env)
		path_env = "/bin:/usr/bin";
	for (const char *p = path_env, *end;; p = end + 1) {
		end = strchrnul(p, ':');
		int n = snprintf(out, 4096, "%.*s%s%s", (int)(end - p), p, end == p ? "" : "/", name);
		if (n > 0 && n < 4096) {
			e = executable(out);
			if (!e)
				return 0;
			if (e == EACCES || e == EISDIR)
				kept = e;
		}
		if (!*end)
			return path_error(name, kept, err);
	}
}
