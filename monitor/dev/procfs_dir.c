/* SPDX-License-Identifier: Apache-2.0 */
/* Directories of procfs: made, and filled, in a tmpfs when they are opened. */
#include "procfs_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include "../core/family.h"
#include "../core/hcall.h"
#include "../core/keeper.h"

void proc_dir_path(const struct node *n, char out[512])
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

int proc_make_dirs(const char *path)
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
	struct out names; /* what shall be there, each with its NUL */
};

static void fill_path(const struct fill *f, const char *name, char out[1024])
{
	snprintf(out, 1024, "%s/%s", f->dir, name);
}

static void put_name(struct fill *f, const char *name) { out_add(&f->names, name, strlen(name) + 1); }

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

static void fill_fds(struct fill *f, enum kind kind)
{
	struct out t = { 0 };
	char rel[64], target[PATH_MAX];
	snprintf(rel, sizeof rel, "self/task/%d/fd", my_tid());
	if (list_locked(pvm.proc_fd, rel, &t) == 0)
		for (size_t i = 0; i < t.len; i += strlen(t.p + i) + 1) {
			struct node n = { .kind = L_FD, .fd = atoi(t.p + i) };
			if (!fd_is_guest(n.fd))
				continue;
			if (kind == D_FDINFO)
				put_file(f, t.p + i);
			else if (proc_link_text(&n, target) > 0)
				put_link(f, t.p + i, target);
		}
	out_free(&t);
}

/* tasks: of another member. */
static void fill_tasks(struct fill *f, const struct out *tasks)
{
	char name[16];
	if (tasks->p) {
		out_add(&f->names, tasks->p, tasks->len);
	} else if (is_vfork_child()) {
		snprintf(name, sizeof name, "%d", my_pid());
		out_add(&f->names, name, strlen(name) + 1);
	} else {
		pthread_mutex_lock(&pvm.thr_lock);
		for (struct thread *t = pvm.threads; t; t = t->next) {
			snprintf(name, sizeof name, "%d", t->tid);
			out_add(&f->names, name, strlen(name) + 1);
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
	for (unsigned i = 0; proc_pid_files[i].name; i++)
		if (!n->pid || proc_pid_files[i].members)
			put_file(f, proc_pid_files[i].name);
	if (proc_link_text(&l, target) > 0)
		put_link(f, "exe", target);
	l.kind = L_CWD;
	if (proc_link_text(&l, target) > 0)
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
	for (const char *const *l = proc_sys_files; *l; l++) {
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
			struct out t = { 0 };
			char rel[512], full[512];
			*star = 0;
			snprintf(rel, sizeof rel, "sys/%s", n->name);
			if (list_locked(pvm.proc_fd, rel, &t) == 0)
				for (size_t i = 0; i < t.len; i += strlen(t.p + i) + 1)
					if (!strncmp(t.p + i, name, strlen(name)) &&
					    snprintf(full, sizeof full, "%s/%s", n->name, t.p + i) < (int)sizeof full &&
					    proc_sys_kind(full) == 1)
						put_file(f, t.p + i);
			out_free(&t);
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
	snprintf(task, sizeof task, "%d/task/%d", pvm.pid, my_tid());
	put_dir(f, pid);
	family_each(put_member, f);
	put_link(f, "self", pid);
	put_link(f, "thread-self", task);
	put_link(f, "mounts", "self/mounts");
	put_link(f, "net", "self/net");
	put_dir(f, "sys");
	put_dir(f, "sysvipc");
	for (const char *const *l = proc_global_files; *l; l++)
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
	struct out in = { 0 };
	char sub[1024];
	if (HC6(SYS_rmdir, path, 0, 0, 0, 0, 0) != -ENOTEMPTY)
		return;
	if (list_locked(AT_FDCWD, path, &in) == 0)
		for (size_t i = 0; i < in.len; i += strlen(in.p + i) + 1)
			if (snprintf(sub, sizeof sub, "%s/%s", path, in.p + i) < (int)sizeof sub &&
			    HC6(SYS_unlink, sub, 0, 0, 0, 0, 0) && depth)
				prune_tree(sub, depth - 1);
	HC6(SYS_rmdir, path, 0, 0, 0, 0, 0);
	out_free(&in);
}

/* Remove what is no longer true; the numbered directories only, where names come and go. */
static void fill_prune(struct fill *f)
{
	struct out old = { 0 };
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
	out_free(&old);
	free(ids);
}

void proc_fill_dir(const struct node *n, const char *dir)
{
	struct fill f = { .dir = dir };
	struct out tasks = { 0 };
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
		for (const char *const *l = proc_net_files; *l; l++)
			put_file(&f, *l);
		break;
	case D_SYSVIPC:
		for (const char *const *l = proc_sysvipc_files; *l; l++)
			put_file(&f, *l);
		break;
	default:
		break;
	}
	if (n->kind == D_FD || n->kind == D_FDINFO || n->kind == D_TASKS || n->kind == D_ROOT)
		fill_prune(&f);
	proc_leave();
	out_free(&f.names);
	out_free(&tasks);
}

/* First the descriptor, then what is in the directory: a listing of self/fd holds itself, as on Linux. */
int64_t proc_open_dir(const struct node *n, int flags)
{
	char path[512];
	if ((flags & O_TMPFILE) == O_TMPFILE)
		return -EOPNOTSUPP;
	if (!(flags & O_PATH) && ((flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC)))
		return -EISDIR;
	proc_dir_path(n, path);
	int r = proc_make_dirs(path);
	if (r)
		return r;
	int keep = flags & (O_CLOEXEC | O_NONBLOCK | O_PATH);
	int64_t fd = fd_result(HC6(SYS_openat, AT_FDCWD, path, keep | O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0, 0, 0));
	if (fd >= 0)
		proc_fill_dir(n, path);
	return fd;
}
