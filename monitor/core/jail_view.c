/* SPDX-License-Identifier: Apache-2.0 */
/* What the view shows: devices, the host's system directories or an image, and what is there because of where the
 * program is. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "jail_priv.h"
#include "net.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

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
	if (found && jail_graft(j, name, "/dev/console", G_RO | G_DEV | G_OPT))
		r = jail_fail(j, name);
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
		if (jail_graft_host(j, path, G_RO | G_DEV | G_OPT | G_NEW))
			return -1;
	}
	if (jail_fs_graft(j, "devpts", pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, "/dev/pts"))
		return jail_fail(j, "cannot mount devpts");
	/* The queues of the family's IPC namespace. A kernel may have none. */
	static const char *const mq[] = { "source", "mqueue", NULL };
	if (jail_fs_graft(j, "mqueue", mq, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, "/dev/mqueue") &&
	    errno != ENODEV)
		return jail_fail(j, "cannot mount mqueue");
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

/* A directory of the new root with what is mounted in it becomes read-only. */
static int freeze(struct jail *j, const char *path)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	int tree = -1, r = -1, at = jail_open(j, path);
	if (at >= 0)
		tree = (int)syscall(SYS_open_tree, at, "",
				    OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH);
	if (tree >= 0 && !syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)))
		r = jail_attach(tree, at);
	if (r)
		jail_fail(j, path);
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
		return errno == ENOENT ? 0 : jail_fail(j, SYS_CPU);
	if (mkdirat(j->root, &SYS_CPU[1], 0755))
		r = jail_fail(j, SYS_CPU);
	cpus_text(text);
	EACH(i, lists) {
		snprintf(path, sizeof(path), SYS_CPU "/%s", lists[i]);
		r = r ? r : jail_text_make(j, path, text);
	}
	while (!r && (errno = 0, d = readdir(top))) {
		struct stat st;
		snprintf(path, sizeof(path), SYS_CPU "/%s", d->d_name);
		if (d->d_name[0] == '.' || !fstatat(j->root, path + 1, &st, AT_SYMLINK_NOFOLLOW))
			continue;
		if (!strcmp(d->d_name, "offline"))
			r = jail_text_make(j, path, "\n");
		else if (sscanf(d->d_name, "cpu%d", &n) != 1 || (n >= 0 && n < CPU_SETSIZE && CPU_ISSET(n, &pvm.cpus)))
			r = jail_graft_host(j, path, HOST_RO);
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
		if (jail_graft_host(j, show[i], HOST_RO | G_NEW))
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
		return jail_fail(j, name);
	}
	snprintf(dst, sizeof(dst), "/%s", name);
	if (lstat(src, &st))
		return errno == ENOENT ? 0 : jail_fail(j, src);
	if (S_ISLNK(st.st_mode)) {
		ssize_t n = readlink(src, target, sizeof(target) - 1);
		if (n < 0)
			return jail_fail(j, src);
		target[n] = 0;
		return symlinkat(target, j->root, name) ? jail_fail(j, dst) : 0;
	}
	if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode))
		return 0;
	if (j->cfg->root && jail_holds_proc(j, src))
		return kx_err_set(j->err, EINVAL,
				  "--root %s: a procfs is mounted below %s (unmount it, or copy "
				  "the image)",
				  j->cfg->root, src);
	return jail_graft(j, src, dst, G_RO | G_NEW | (j->cfg->root ? G_REAL : 0)) ? jail_fail(j, src) : 0;
}

/* resolv.conf is often a symlink into /run, which is private. */
static int resolv_make(struct jail *j)
{
	char real[PATH_MAX];
	if (!realpath("/etc/resolv.conf", real) || jail_path_under(real, "/etc") || jail_path_under(real, "/usr") ||
	    jail_path_special(real))
		return 0;
	return jail_graft_host(j, real, HOST_RO);
}

static int home_make(struct jail *j)
{
	const char *home = NULL;
	char path[PATH_MAX];
	for (char **e = j->cfg->envp; e && *e; e++)
		if (!strncmp(*e, "HOME=/home/", 11))
			home = *e + 5;
	if (!home || !jail_path_clean("/", home, path) || !jail_path_under(path, "/home"))
		return 0;
	int fd = jail_make(j, path, true);
	if (fd < 0)
		return jail_fail(j, path);
	close(fd);
	return 0;
}

static int view_of_host(struct jail *j)
{
	static const char *const top[] = { "usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32" };
	if (jail_own_dirs(j))
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
	if (r || (fd = jail_open(j, "/var/tmp")) < 0)
		return r;
	r = fstat(fd, &st) || !S_ISDIR(st.st_mode) || st.st_dev == j->dev;
	close(fd);
	if (!r && jail_fs_graft(j, "tmpfs", opts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, "/var/tmp"))
		return jail_fail(j, "/var/tmp");
	return 0;
}

/* ---- what is there because of where the program is ------------------------------------------------------- */

/* Make the file real (clean and without symlinks) visible as path, with the directory that it is in. */
static int expose(struct jail *j, const char *real, const char *path)
{
	char src[PATH_MAX], dst[PATH_MAX];
	if (jail_path_special(real) || jail_path_special(path) || jail_visible(j, path))
		return 0;
	jail_path_dir(real, src);
	jail_path_dir(path, dst);
	if (jail_path_broad(src) || jail_path_broad(dst) || jail_holds_proc(j, src))
		return jail_graft(j, real, path, HOST_RO) ? jail_fail(j, path) : 0;
	return jail_graft(j, src, dst, HOST_RO | G_REAL) ? jail_fail(j, path) : 0;
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
		if (!*step || lstat(step, &st) || !S_ISDIR(st.st_mode) || !jail_path_clean(j->cwd, step, clean) ||
		    jail_path_special(clean) || jail_visible(j, clean))
			continue;
		int fd = jail_make(j, clean, true);
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
	    !jail_path_clean(j->cwd, found, typed))
		return 0;
	if (S_ISDIR(st.st_mode)) {
		int fd = jail_make(j, typed, true);
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
	return jail_visible(j, typed) ? 0 : expose(j, at, typed);
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
	if (!j->lost && (jail_path_broad(j->cwd) || jail_visible_as(j, j->cwd, ".")))
		return 0;
	unsigned rec = !j->lost && jail_holds_proc(j, j->cwd) ? 0 : AT_RECURSIVE;
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | rec);
	/* Not possible without the mounts below when those are locked (user namespace): then it isn't there. */
	if (tree < 0 && !rec && errno == EINVAL)
		return 0;
	if (tree < 0 && j->lost)
		tree = jail_fs_new("tmpfs", none, 0); /* of its mount nothing can be had any more */
	if (tree < 0 || syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | rec, &attr, sizeof(attr)))
		return jail_fail(j, "the current directory");
	if (!j->lost && (at = jail_make(j, j->cwd, true)) >= 0)
		r = jail_attach(tree, at);
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
	if (!jail_path_clean("/", v->dst, dst) || !dst[1] || jail_path_under(dst, "/proc"))
		return kx_err_set(j->err, EINVAL,
				  "--volume %s:%s: cannot be mounted there (choose a DST other than / "
				  "and outside /proc)",
				  v->src, v->dst);
	if (jail_holds_proc(j, src))
		return kx_err_set(j->err, EINVAL, "--volume %s:%s: holds a procfs (choose a directory without one)",
				  v->src, v->dst);
	if (!jail_graft(j, src, dst, G_REAL | (v->ro ? G_RO : 0) | (S_ISDIR(st.st_mode) ? 0 : G_DEV)))
		return 0;
	const char *remedy = "check SRC and DST";
	if (errno == ENOENT)
		remedy = "make the mount point on the host first, or choose a DST that is not inside a host directory";
	return kx_err_set(j->err, errno, "--volume %s:%s: %s (%s)", v->src, v->dst, strerror(errno), remedy);
}

/* ---- all of it ------------------------------------------------------------------------------------------- */

/* In a private network names are resolved by slirp4netns, whatever the host's resolver is. */
static int resolver_make(struct jail *j)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	int r = -1;
	if (jail_text_make(j, "/run/resolv.conf", NET_RESOLVER))
		return -1;
	int tree = (int)syscall(SYS_open_tree, j->root, "run/resolv.conf", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	int at = jail_make(j, "/etc/resolv.conf", false);
	if (at < 0 && tree >= 0) /* the host, or the image, has none, and then none is looked for */
		r = 0;
	else if (tree >= 0 && !syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)))
		r = jail_attach(tree, at);
	if (r)
		jail_fail(j, "/etc/resolv.conf");
	if (tree >= 0)
		close(tree);
	if (at >= 0)
		close(at);
	return r;
}

int jail_view_build(struct jail *j)
{
	const struct kx_config *cfg = j->cfg;
	if (jail_root_make(j) || dev_make(j) || sys_make(j))
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
		return jail_fail(j, "cannot make / read-only");
	return 0;
}
