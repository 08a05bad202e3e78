/* SPDX-License-Identifier: Apache-2.0 */
/* Into the view and its rights, and how a program is found there. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "jail_priv.h"
#include "net.h"
#include "registry.h"
#include "store.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MNT_DETACH 2 /* <sys/mount.h> and <linux/mount.h> can't both be included */

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
		return jail_fail(j, "/proc/self/setgroups");
	snprintf(map, sizeof(map), "%u %u 1", uid, uid);
	if (put("/proc/self/uid_map", map))
		return jail_fail(j, "/proc/self/uid_map");
	snprintf(map, sizeof(map), "%u %u 1", gid, gid);
	if (put("/proc/self/gid_map", map))
		return jail_fail(j, "/proc/self/gid_map");
	return 0;
}

static int lo_up(struct jail *j)
{
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), r = 0;
	if (fd < 0)
		return errno == EAFNOSUPPORT ? 0 : jail_fail(j, "socket");
	if (ioctl(fd, SIOCSIFFLAGS, &ifr))
		r = jail_fail(j, "cannot bring lo up");
	close(fd);
	return r;
}

static int ns_enter(struct jail *j)
{
	int flags = CLONE_NEWNS | CLONE_NEWIPC | (j->cfg->net_none || j->cfg->net_private ? CLONE_NEWNET : 0);
	if (unshare(flags)) {
		if (errno != EPERM)
			return jail_fail(j, "cannot make namespaces");
		if (userns_enter(j, flags))
			return -1;
	}
	if (syscall(SYS_mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return jail_fail(j, "cannot make mounts private");
	if (!j->cfg->net_none && !j->cfg->net_private)
		return 0;
	return lo_up(j) ? -1 : net_attach(j->cfg, j->err);
}

/*
 * What of the host's procfs root can change without any capability: for a monitor that was taken over that would be the way
 * out, by core_pattern for instance. Others can't write there.
 */
static int proc_shut(struct jail *j)
{
	static const char *const places[] = {
		"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi",
	};
	if (geteuid())
		return 0;
	EACH(i, places)
		if (jail_shut(places[i]) && errno != ENOENT)
			return jail_fail(j, places[i]);
	return 0;
}

/*
 * A procfs for the monitor: a copy of the host's mount rather than a descriptor of it, since that would lead by ".."
 * to the host's root.
 */
static int proc_keep(struct jail *j)
{
	struct statfs fs;
	if (proc_shut(j))
		return -1;
	int fd = (int)syscall(SYS_open_tree, AT_FDCWD, "/proc", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	if (fd < 0 || fstatfs(fd, &fs))
		return jail_fail(j, "/proc");
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
		return jail_fail(j, "pivot_root");
	}
	if (syscall(SYS_umount2, ".", MNT_DETACH))
		return jail_fail(j, "cannot leave the old root");
	close(j->root);
	j->root = -1;
	if (j->cwd_tree >= 0 && !fchdir(j->cwd_tree))
		return 0;
	return chdir(j->cwd) && chdir("/") ? jail_fail(j, "/") : 0;
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
				return jail_fail(j, "cannot drop capabilities");
		}
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_capget, &hdr, data))
		return jail_fail(j, "capget");
	for (int i = 0; i < 2; i++) {
		data[i].permitted &= keep[i];
		data[i].inheritable &= keep[i];
		data[i].effective = data[i].permitted;
	}
	if (syscall(SYS_capset, &hdr, data))
		return jail_fail(j, "capset");
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? jail_fail(j, "no_new_privs") : 0;
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
	if (!r) {
		store_enter();
		registry_enter();
	}
	r = r || jail_view_build(&j) || root_switch(&j) || caps_drop(&j);
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
			return jail_fail(&j, path);
		if (a.st_ino != b.st_ino || a.st_dev != b.st_dev)
			flags |= kinds[i].flag; /* one's own user namespace can't be entered once more */
	}
	if (syscall(SYS_setns, join->member, flags))
		return jail_fail(&j, "cannot enter the namespaces of the family");
	j.userns = flags & CLONE_NEWUSER;
	if (fstatat(pvm.proc_fd, "self/ns/ipc", &a, 0) || a.st_ino != join->ipc_ino || a.st_dev != join->ipc_dev)
		return kx_err_set(j.err, ESRCH, "jail: the family has ended (see `kylinx ps`)");
	if (chdir(j.cwd) && chdir("/"))
		return jail_fail(&j, "/");
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
