/* SPDX-License-Identifier: Apache-2.0 */
/* Which names there are in procfs, and where the host has what they stand for. */
#include "procfs_priv.h"
#include <errno.h>
#include <stdio.h>
#include "../core/family.h"
#include "../core/ipc.h"
#include "../core/thread.h"

/*
 * Not loginuid and sessionid: as on a kernel without auditing. One that can be read and not be written (nobody in the
 * jail may set it) makes PAM refuse a login.
 */
const struct pid_file proc_pid_files[] = {
	{ "maps", G_MAPS, false },
	{ "smaps", G_SMAPS, false },
	{ "smaps_rollup", G_ROLLUP, false },
	{ "status", G_STATUS, true },
	{ "stat", G_STAT, true },
	{ "statm", G_STATM, true },
	{ "cmdline", G_CMDLINE, true },
	{ "environ", G_ENVIRON, true },
	{ "auxv", G_AUXV, false },
	{ "limits", G_LIMITS, true },
	{ "mounts", G_MOUNTS, true },
	{ "mountinfo", G_THREAD, true },
	{ "comm", G_REAL, true },
	{ "oom_score_adj", G_REAL, true },
	{ "oom_score", G_COPY, true },
	{ "oom_adj", G_COPY, true },
	{ "cgroup", G_THREAD, true },
	{ "io", G_COPY, true },
	{ "wchan", G_COPY, true },
	{ "schedstat", G_COPY, true },
	{ "personality", G_COPY, false },
	{ "coredump_filter", G_COPY, false },
	{ "uid_map", G_THREAD, true },
	{ "gid_map", G_THREAD, true },
	{ "setgroups", G_THREAD, true },
	{ NULL, 0, false },
};

const char *const proc_global_files[] = { "meminfo",     "cpuinfo", "stat",  "uptime", "loadavg",
					  "filesystems", "version", "swaps", "vmstat", NULL };
const char *const proc_net_files[] = { "dev",      "tcp",  "tcp6",      "udp",     "udp6",     "unix", "route",
				       "if_inet6", "snmp", "protocols", "netstat", "sockstat", "arp",  NULL };
/* Of the family's IPC namespace. */
const char *const proc_sysvipc_files[] = { "msg", "sem", "shm", NULL };
/* Below sys/. A star: any name of [a-z0-9_] that starts so. */
const char *const proc_sys_files[] = { "vm/overcommit_memory",
				       "vm/overcommit_ratio",
				       "vm/max_map_count",
				       "vm/mmap_min_addr",
				       "vm/nr_hugepages",
				       "vm/swappiness",
				       "kernel/ngroups_max",
				       "kernel/cap_last_cap",
				       "kernel/pid_max",
				       "kernel/osrelease",
				       "kernel/ostype",
				       "kernel/hostname",
				       "kernel/domainname",
				       "kernel/version",
				       "kernel/threads-max",
				       "kernel/random/boot_id",
				       "kernel/random/uuid",
				       "kernel/random/entropy_avail",
				       "kernel/random/poolsize",
				       "kernel/shmmax",
				       "kernel/shmall",
				       "kernel/shmmni",
				       "kernel/sem",
				       "kernel/msgmax",
				       "kernel/msgmni",
				       "kernel/msgmnb",
				       "kernel/sched_rt_runtime_us",
				       "kernel/sched_rt_period_us",
				       "kernel/numa_balancing",
				       PROC_PTRACE_SCOPE,
				       "kernel/overflowuid",
				       "kernel/overflowgid",
				       "net/core/somaxconn",
				       "net/core/rmem_max",
				       "net/core/wmem_max",
				       "net/core/rmem_default",
				       "net/core/wmem_default",
				       "net/core/netdev_max_backlog",
				       "net/ipv4/ip_local_port_range",
				       "net/ipv4/tcp_*",
				       "net/ipv4/ip_forward",
				       "net/ipv4/ip_nonlocal_bind",
				       "net/ipv6/bindv6only",
				       "net/ipv6/conf/all/disable_ipv6",
				       "fs/file-max",
				       "fs/file-nr",
				       "fs/nr_open",
				       "fs/pipe-max-size",
				       "fs/inotify/*",
				       "fs/mqueue/*",
				       "fs/aio-max-nr",
				       "fs/epoll/*",
				       NULL };

static bool in_list(const char *const *list, const char *name)
{
	for (; *list; list++)
		if (!strcmp(*list, name))
			return true;
	return false;
}

/* Is path below sys/ a file (1), a directory on the way to one (2), or nothing? */
int proc_sys_kind(const char *path)
{
	size_t len = strlen(path);
	for (const char *const *l = proc_sys_files; *l; l++) {
		const char *star = strchr(*l, '*');
		if (star) {
			size_t n = (size_t)(star - *l);
			if (!strncmp(path, *l, n) && path[n] &&
			    !path[n + strspn(path + n, "abcdefghijklmnopqrstuvwxyz0123456789_")])
				return 1;
		} else if (!strcmp(path, *l)) {
			return 1;
		}
		if (!len || (!strncmp(path, *l, len) && (*l)[len] == '/'))
			return 2;
	}
	return 0;
}

bool proc_number(const char **s, int *out)
{
	const char *p = *s;
	long v = 0;
	while (*p >= '0' && *p <= '9' && p - *s < 10)
		v = v * 10 + *p++ - '0';
	if (p == *s || v > INT32_MAX || (**s == '0' && p - *s > 1))
		return false;
	*s = p;
	*out = (int)v;
	return true;
}

static bool set_name(struct node *n, const char *s)
{
	return snprintf(n->name, sizeof n->name, "%s", s) < (int)sizeof n->name;
}

/* What is below self/ or <pid>/ (n->pid), or task/<tid>/ of one (n->tid). */
static int parse_pid(const char *s, struct node *n)
{
	static const struct {
		const char *name;
		enum kind kind;
	} special[] = { { "", D_PID },  { "exe", L_EXE },       { "cwd", L_CWD }, { "root", L_ROOT },
			{ "fd", D_FD }, { "fdinfo", D_FDINFO }, { "net", D_NET } };
	for (unsigned i = 0; i < sizeof special / sizeof *special; i++)
		if (!strcmp(s, special[i].name)) {
			n->kind = special[i].kind;
			return n->pid && (n->kind == D_FD || n->kind == D_FDINFO || n->kind == D_NET) ? -ENOENT : 0;
		}
	for (unsigned i = 0; proc_pid_files[i].name; i++)
		if (!strcmp(s, proc_pid_files[i].name) && (!n->pid || proc_pid_files[i].members)) {
			n->kind = F_PID;
			n->file = &proc_pid_files[i];
			return 0;
		}
	bool info = !strncmp(s, "fdinfo/", 7);
	if (n->pid && strncmp(s, "task", 4))
		return -ENOENT;
	if (info || !strncmp(s, "fd/", 3)) {
		s += info ? 7 : 3;
		if (!proc_number(&s, &n->fd) || *s || !fd_is_guest(n->fd))
			return -ENOENT;
		n->kind = info ? F_FDINFO : L_FD;
		return 0;
	}
	if (!strncmp(s, "net/", 4) && in_list(proc_net_files, s + 4)) {
		n->kind = F_NET;
		return set_name(n, s + 4) ? 0 : -ENOENT;
	}
	if (n->tid || strncmp(s, "task", 4))
		return -ENOENT;
	if (!s[4]) {
		n->kind = D_TASKS;
		return 0;
	}
	s += 5;
	int tid;
	if (s[-1] != '/' || !proc_number(&s, &tid) || !tid || (*s && *s != '/') ||
	    !(n->pid ? task_is_shown(n->pid, tid) : thread_is_ours(tid)))
		return -ENOENT;
	n->tid = tid;
	return parse_pid(*s ? s + 1 : s, n);
}

static int parse_plain(const char *s, struct node *n)
{
	static const struct {
		const char *name;
		enum kind kind;
	} special[] = { { "", D_ROOT },         { ".", D_ROOT },  { "self", L_SELF }, { "thread-self", L_THREAD },
			{ "mounts", L_MOUNTS }, { "net", L_NET }, { "sys", D_SYS },   { "sysvipc", D_SYSVIPC } };
	for (unsigned i = 0; i < sizeof special / sizeof *special; i++)
		if (!strcmp(s, special[i].name)) {
			n->kind = special[i].kind;
			return 0;
		}
	if (!strncmp(s, "self/", 5))
		return parse_pid(s + 5, n);
	if (!strncmp(s, "net/", 4))
		return parse_pid(s, n);
	int pid;
	if (proc_number(&s, &pid)) {
		if ((*s && *s != '/') || !family_has(pid))
			return -ENOENT;
		n->pid = pid;
		return parse_pid(*s ? s + 1 : s, n);
	}
	if (in_list(proc_global_files, s) || (!strncmp(s, "sysvipc/", 8) && in_list(proc_sysvipc_files, s + 8))) {
		n->kind = F_GLOBAL;
		if (!strcmp(s, "sysvipc/msg"))
			ipc_settle();
		return set_name(n, s) ? 0 : -ENOENT;
	}
	int k = !strncmp(s, "sys/", 4) ? proc_sys_kind(s + 4) : 0;
	if (!k || !set_name(n, s + 4))
		return -ENOENT;
	n->kind = k == 1 ? F_SYS : D_SYS;
	return 0;
}

/* Links whose target is in procfs itself. */
void proc_follow(struct node *n)
{
	switch (n->kind) {
	case L_SELF:
		n->kind = D_PID;
		break;
	case L_THREAD:
		n->kind = D_PID;
		n->tid = my_tid();
		break;
	case L_MOUNTS:
		parse_pid("mounts", n);
		break;
	case L_NET:
		n->kind = D_NET;
		break;
	default:
		break;
	}
}

int proc_parse(const char *rel, struct node *n)
{
	char buf[PATH_MAX + 64];
	size_t len = strnlen(rel, sizeof buf);
	if (len >= sizeof buf)
		return -ENAMETOOLONG;
	memcpy(buf, rel, len + 1);
	bool slash = len && buf[len - 1] == '/';
	if (slash)
		buf[len - 1] = 0;
	memset(n, 0, sizeof *n);
	int r = parse_plain(buf, n);
	if (r || !slash)
		return r;
	proc_follow(n);
	return n->kind > L_NET && n->kind != L_CWD && n->kind != L_ROOT && n->kind != L_FD ? -ENOTDIR : 0;
}

/* Where the host's procfs has it. */
void proc_host_path(const struct node *n, char out[512])
{
	static const char *const link[] = { [L_EXE] = "exe", [L_CWD] = "cwd", [L_ROOT] = "root" };
	char who[64];
	if (n->pid && n->tid)
		snprintf(who, sizeof who, "%d/task/%d", n->pid, n->tid);
	else if (n->pid)
		snprintf(who, sizeof who, "%d", n->pid);
	else if (n->tid)
		snprintf(who, sizeof who, "self/task/%d", n->tid);
	else
		snprintf(who, sizeof who, "self");
	if (n->pid && n->kind >= L_EXE && n->kind <= L_ROOT) {
		snprintf(out, 512, "%s/%s", who, link[n->kind]);
		return;
	}
	switch (n->kind) {
	case L_SELF:
		strcpy(out, "self");
		break;
	case L_THREAD:
		strcpy(out, "thread-self");
		break;
	case L_MOUNTS:
		strcpy(out, "mounts");
		break;
	case L_NET:
		strcpy(out, "net");
		break;
	case L_EXE:
		snprintf(out, 512, "self/task/%d/exe", my_tid());
		break;
	case L_CWD:
		snprintf(out, 512, "self/task/%d/cwd", my_tid());
		break;
	case L_ROOT:
		snprintf(out, 512, "self/task/%d/root", my_tid());
		break;
	case L_FD:
		snprintf(out, 512, "self/task/%d/fd/%d", my_tid(), n->fd);
		break;
	case F_FDINFO:
		snprintf(out, 512, "self/task/%d/fdinfo/%d", my_tid(), n->fd);
		break;
	case F_PID:
		if (n->file->gen == G_COPY || n->file->gen == G_STAT || n->file->gen == G_STATUS ||
		    n->file->gen == G_REAL || n->file->gen == G_LIMITS ||
		    (n->pid && n->file->gen != G_THREAD && n->file->gen != G_MOUNTS))
			snprintf(out, 512, "%s/%s", who, n->file->name);
		else
			snprintf(out, 512, "self/task/%d/%s", my_tid(), n->file->name);
		break;
	case F_GLOBAL:
		snprintf(out, 512, "%s", n->name);
		break;
	case F_NET:
		snprintf(out, 512, "self/task/%d/net/%s", my_tid(), n->name);
		break;
	case F_SYS:
	case D_SYS: /* a kernel without Yama has another file's owner and times */
		snprintf(out, 512, "sys/%s", strcmp(n->name, PROC_PTRACE_SCOPE) ? n->name : "kernel/cap_last_cap");
		break;
	default:
		out[0] = 0;
	}
}
