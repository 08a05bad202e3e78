/* SPDX-License-Identifier: Apache-2.0 */
#include "procfs_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <linux/stat.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "../core/family.h"
#include "../core/fsize.h"
#include "../core/gmem.h"
#include "../core/ipc.h"
#include "../core/keeper.h"
#include "../core/spare.h"
#include "../core/thread.h"

#define MEM_NAME "kxproc:" /* our memory files in links of self/fd */
/* ---- names ----------------------------------------------------------------------------------------------------- */

/*
 * Not loginuid and sessionid: as on a kernel without auditing. One that can be read and not be written (nobody in the
 * jail may set it) makes PAM refuse a login.
 */
static const struct pid_file pid_files[] = {
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
};

static const char *const global_files[] = { "meminfo",     "cpuinfo", "stat",  "uptime", "loadavg",
					    "filesystems", "version", "swaps", "vmstat", NULL };
static const char *const net_files[] = { "dev",      "tcp",  "tcp6",      "udp",     "udp6",     "unix", "route",
					 "if_inet6", "snmp", "protocols", "netstat", "sockstat", "arp",  NULL };
/* Of the family's IPC namespace. */
static const char *const sysvipc_files[] = { "msg", "sem", "shm", NULL };
/* Below sys/. A star: any name of [a-z0-9_] that starts so. */
static const char *const sys_files[] = { "vm/overcommit_memory",
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
static int sys_kind(const char *path)
{
	size_t len = strlen(path);
	for (const char *const *l = sys_files; *l; l++) {
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

static bool number(const char **s, int *out)
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
	for (unsigned i = 0; i < sizeof pid_files / sizeof *pid_files; i++)
		if (!strcmp(s, pid_files[i].name) && (!n->pid || pid_files[i].members)) {
			n->kind = F_PID;
			n->file = &pid_files[i];
			return 0;
		}
	bool info = !strncmp(s, "fdinfo/", 7);
	if (n->pid && strncmp(s, "task", 4))
		return -ENOENT;
	if (info || !strncmp(s, "fd/", 3)) {
		s += info ? 7 : 3;
		if (!number(&s, &n->fd) || *s || !fd_is_guest(n->fd))
			return -ENOENT;
		n->kind = info ? F_FDINFO : L_FD;
		return 0;
	}
	if (!strncmp(s, "net/", 4) && in_list(net_files, s + 4)) {
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
	if (s[-1] != '/' || !number(&s, &tid) || !tid || (*s && *s != '/') ||
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
	if (number(&s, &pid)) {
		if ((*s && *s != '/') || !family_has(pid))
			return -ENOENT;
		n->pid = pid;
		return parse_pid(*s ? s + 1 : s, n);
	}
	if (in_list(global_files, s) || (!strncmp(s, "sysvipc/", 8) && in_list(sysvipc_files, s + 8))) {
		n->kind = F_GLOBAL;
		if (!strcmp(s, "sysvipc/msg"))
			ipc_settle();
		return set_name(n, s) ? 0 : -ENOENT;
	}
	int k = !strncmp(s, "sys/", 4) ? sys_kind(s + 4) : 0;
	if (!k || !set_name(n, s + 4))
		return -ENOENT;
	n->kind = k == 1 ? F_SYS : D_SYS;
	return 0;
}

static bool is_dir(const struct node *n) { return n->kind <= D_SYS; }
static bool is_link(const struct node *n) { return n->kind >= L_SELF && n->kind <= L_FD; }

/* Links whose target is in procfs itself. */
static void follow(struct node *n)
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

static int parse(const char *rel, struct node *n)
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
	follow(n);
	return n->kind > L_NET && n->kind != L_CWD && n->kind != L_ROOT && n->kind != L_FD ? -ENOTDIR : 0;
}

/* Where the host's procfs has it. */
static void host_path(const struct node *n, char out[512])
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
	case D_SYS:
		snprintf(out, 512, "sys/%s", n->name);
		break;
	default:
		out[0] = 0;
	}
}

/* ---- other files ------------------------------------------------------------------------------------------------ */

/* A range of guest memory; what can't be read is left out, as by the kernel. */
static void put_guest(struct out *t, uint64_t start, uint64_t end)
{
	if (end <= start || !gva_ok(start, end - start))
		return;
	while (start < end) {
		size_t n = end - start > 65536 ? 65536 : end - start;
		if (!out_room(t, n) || guest_read(t->p + t->len, start, n))
			return;
		t->len += n;
		start += n;
	}
}

/* As the kernel: a program that wrote over the NUL at the end of its arguments goes on into its environment. */
static void gen_cmdline(struct out *t)
{
	put_guest(t, pvm.arg_start, pvm.arg_end);
	if (!t->len || !t->p[t->len - 1])
		return;
	if (pvm.env_start == pvm.arg_end)
		put_guest(t, pvm.env_start, pvm.env_end);
	size_t n = strnlen(t->p, t->len);
	t->len = n < t->len ? n + 1 : n;
}

int gen_limits(struct out *t, const char *host)
{
	struct out in = { 0 };
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		unsigned long long soft, hard;
		if (sscanf(p, "Max open files %llu %llu", &soft, &hard) == 2 && hard > pvm.fd_max)
			out_printf(t, "%-25s %-20llu %-20u %-10s\n", "Max open files", soft, pvm.fd_max, "files");
		else
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_free(&in);
	return 0;
}

/* The view's mounts; its /proc looks as it should. */
int gen_mounts(struct out *t, const char *host)
{
	static const char proc[] = "proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n";
	struct out in = { 0 };
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		char *dir = memchr(p, ' ', (size_t)(eol - p));
		if (!dir || strncmp(dir, " /proc ", 7))
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_add(t, proc, sizeof proc - 1);
	out_free(&in);
	return 0;
}

static uint64_t private_bytes(void)
{
	struct vm_sizes s = vm_sizes();
	return s.data + s.stack;
}

/* A program that may have less than the host has shall see less. */
static int gen_meminfo(struct out *t)
{
	struct out in = { 0 };
	int r = host_read("meminfo", &in);
	if (r < 0)
		return r;
	uint64_t limit = pvm.cfg->memory >> 10, used = private_bytes() >> 10, total = 0;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		const char *colon = memchr(p, ':', (size_t)(eol - p));
		uint64_t v = colon ? strtoull(colon + 1, NULL, 10) : 0, max = limit;
		if (key_is(p, "MemTotal:"))
			total = v;
		else if (key_is(p, "MemFree:") || key_is(p, "MemAvailable:"))
			max = used < limit ? limit - used : 0;
		else if (key_is(p, "SwapTotal:") || key_is(p, "SwapFree:") || key_is(p, "SwapCached:"))
			max = 0;
		bool kb = colon && !memcmp(eol - 3, " kB", 3) && !key_is(p, "Vmalloc") && !key_is(p, "DirectMap") &&
			  !key_is(p, "Hugepagesize");
		if (kb && total > limit && v > max)
			out_printf(t, "%-16.*s%8" PRIu64 " kB\n", (int)(colon + 1 - p), p, max);
		else
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_free(&in);
	return 0;
}

/* What is told of one processor: from its own line on, or that line alone. */
static bool cpu_is_shown(const char *number)
{
	char *end;
	unsigned long n = strtoul(number, &end, 10);
	return end != number && n < CPU_SETSIZE && CPU_ISSET(n, &pvm.cpus);
}

static int gen_cpuinfo(struct out *t)
{
	struct out in = { 0 };
	bool shown = true;
	int r = host_read("cpuinfo", &in);
	for (char *p = in.p, *eol; r >= 0 && (eol = strchr(p, '\n')); p = eol + 1) {
		char *colon = memchr(p, ':', (size_t)(eol - p));
		if (key_is(p, "processor\t") && colon)
			shown = cpu_is_shown(colon + 2);
		if (shown)
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_free(&in);
	return r < 0 ? r : 0;
}

#define STAT_COLUMNS 10

/* The line of all processors is the sum of those that are shown. */
static int gen_cpu_stat(struct out *t)
{
	struct out in = { 0 }, lines = { 0 }, rest = { 0 };
	uint64_t sum[STAT_COLUMNS] = { 0 };
	int r = host_read("stat", &in);
	for (char *p = in.p, *eol; r >= 0 && (eol = strchr(p, '\n')); p = eol + 1) {
		if (!key_is(p, "cpu")) {
			out_add(&rest, p, (size_t)(eol + 1 - p));
		} else if (p[3] != ' ' && cpu_is_shown(p + 3)) {
			char *at = strchr(p, ' ');
			for (int i = 0; i < STAT_COLUMNS && at && at < eol; i++)
				sum[i] += strtoull(at, &at, 10);
			out_add(&lines, p, (size_t)(eol + 1 - p));
		}
	}
	if (r >= 0) {
		out_printf(t, "cpu ");
		for (int i = 0; i < STAT_COLUMNS; i++)
			out_printf(t, " %" PRIu64, sum[i]);
		out_printf(t, "\n");
		out_add(t, lines.p ? lines.p : "", lines.len);
		out_add(t, rest.p ? rest.p : "", rest.len);
	}
	out_free(&in);
	out_free(&lines);
	out_free(&rest);
	return r < 0 ? r : 0;
}

/* Files about the machine that the options change. */
static const struct machine_file {
	const char *name;
	int (*gen)(struct out *t);
	bool cpus; /* by --cpus, else by --memory */
} machine_files[] = { { "meminfo", gen_meminfo, false },
		      { "cpuinfo", gen_cpuinfo, true },
		      { "stat", gen_cpu_stat, true } };

/* NULL: as the host has it. */
static const struct machine_file *changed_file(const struct node *n)
{
	if (n->kind != F_GLOBAL || !pvm.cfg)
		return NULL;
	for (unsigned i = 0; i < sizeof machine_files / sizeof *machine_files; i++)
		if (!strcmp(n->name, machine_files[i].name))
			return (machine_files[i].cpus ? pvm.cfg->cpus != 0 : pvm.cfg->memory != 0) ? &machine_files[i]
												   : NULL;
	return NULL;
}

static int generate(const struct node *n, struct out *t)
{
	char host[512];
	host_path(n, host);
	if (n->kind != F_PID)
		return changed_file(n) ? changed_file(n)->gen(t) : host_read(host, t);
	if (n->pid)
		return member_generate(n, host, t);
	switch (n->file->gen) {
	case G_MAPS:
	case G_SMAPS:
	case G_ROLLUP:
		return gen_maps(t, n->file->gen);
	case G_STATUS:
		return gen_status(t, host);
	case G_STAT:
		return gen_stat(t, host);
	case G_STATM:
		return gen_statm(t, host);
	case G_CMDLINE:
		gen_cmdline(t);
		return 0;
	case G_ENVIRON:
		put_guest(t, pvm.env_start, pvm.env_end);
		return 0;
	case G_AUXV:
		out_add(t, pvm.auxv, pvm.auxv_len < sizeof pvm.auxv ? pvm.auxv_len : sizeof pvm.auxv);
		return 0;
	case G_LIMITS:
		return gen_limits(t, host);
	case G_MOUNTS:
		return gen_mounts(t, host);
	default:
		return host_read(host, t);
	}
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

static void dir_path(const struct node *n, char out[512])
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

static int make_dirs(const char *path)
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

static int link_text(const struct node *n, char out[PATH_MAX]);

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
			else if (link_text(&n, target) > 0)
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
	for (unsigned i = 0; i < sizeof pid_files / sizeof *pid_files; i++)
		if (!n->pid || pid_files[i].members)
			put_file(f, pid_files[i].name);
	if (link_text(&l, target) > 0)
		put_link(f, "exe", target);
	l.kind = L_CWD;
	if (link_text(&l, target) > 0)
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
	for (const char *const *l = sys_files; *l; l++) {
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
					    sys_kind(full) == 1)
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
	for (const char *const *l = global_files; *l; l++)
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

static void fill_dir(const struct node *n, const char *dir)
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
		for (const char *const *l = net_files; *l; l++)
			put_file(&f, *l);
		break;
	case D_SYSVIPC:
		for (const char *const *l = sysvipc_files; *l; l++)
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
static int64_t open_dir(const struct node *n, int flags)
{
	char path[512];
	if ((flags & O_TMPFILE) == O_TMPFILE)
		return -EOPNOTSUPP;
	if (!(flags & O_PATH) && ((flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC)))
		return -EISDIR;
	dir_path(n, path);
	int r = make_dirs(path);
	if (r)
		return r;
	int keep = flags & (O_CLOEXEC | O_NONBLOCK | O_PATH);
	int64_t fd = fd_result(HC6(SYS_openat, AT_FDCWD, path, keep | O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0, 0, 0));
	if (fd >= 0)
		fill_dir(n, path);
	return fd;
}

/* ---- links ----------------------------------------------------------------------------------------------------- */

/* The host names our memory files and its own procfs in its own way. */
/* The terminal of the host's that the view has under this name (jail.c)? */
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
	host_path(n, rel);
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

static int link_text(const struct node *n, char out[PATH_MAX])
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
		host_path(n, rel); /* another's, or one that was removed */
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
	int r = parse(rel, &n);
	if (!r)
		r = link_text(&n, text);
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
	if (parse(rel, &n))
		return PROCFS_NONE;
	if (n.kind == L_FD) {
		host_path(&n, text);
		*fd = n.fd;
	} else if (n.kind != L_EXE && n.kind != L_CWD && n.kind != L_ROOT) {
		return PROCFS_NONE;
	} else if (link_text(&n, text) < 0) {
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
	dir_path(&d, path);
	int r = make_dirs(path);
	if (r)
		return r;
	fill_dir(&d, path);
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
	int64_t fd = generate(n, &t);
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
		host_path(n, path);
		if ((flags & (O_ACCMODE | O_PATH)) != O_RDONLY && HC6(SYS_fstatfs, n->fd, &fs, 0, 0, 0, 0) == 0 &&
		    fs.f_type == PROC_SUPER_MAGIC)
			return -EACCES;
		return fd_result(HB6(SYS_openat, pvm.proc_fd, path, flags, mode, 0, 0));
	}
	int r = link_text(n, path);
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
	host_path(n, host);
	bool own = n->kind == F_PID && n->file->gen == G_REAL && !n->pid;
	if (!(flags & O_PATH) && write && !own)
		return -EACCES;
	bool real = own || ((n->kind == F_NET || (n->kind == F_GLOBAL && !changed_file(n))) && real_is_safe(host));
	if (!real || flags & O_PATH)
		return open_text(n, rel, flags);
	return fd_result(HC6(SYS_openat, pvm.proc_fd, host,
			     (flags & (O_ACCMODE | O_CLOEXEC | O_APPEND | O_NONBLOCK | O_TRUNC)) | O_NOFOLLOW, 0, 0,
			     0));
}

int64_t procfs_open(const char *rel, int flags, unsigned mode)
{
	struct node n;
	int r = parse(rel, &n);
	if (r)
		return r;
	if (is_link(&n)) {
		if (flags & O_NOFOLLOW)
			return flags & O_PATH ? open_link(&n, flags) : -ELOOP;
		follow(&n);
	}
	if (is_dir(&n))
		return open_dir(&n, flags);
	if (is_link(&n))
		return open_target(&n, flags, mode);
	return open_file(&n, rel, flags);
}

/* ---- status ---------------------------------------------------------------------------------------------------- */

static int dir_stat(const struct node *n, struct stat *st)
{
	char path[512];
	dir_path(n, path);
	int r = make_dirs(path);
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
	int r = parse(rel, &n);
	if (r)
		return r;
	if (!nofollow || rel[0] == 0 || rel[strlen(rel) - 1] == '/') {
		follow(&n);
		if (n.pid && n.kind >= L_EXE && n.kind <= L_ROOT) {
			char path[PATH_MAX];
			r = link_text(&n, path);
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
	if (is_dir(&n))
		return dir_stat(&n, st);
	host_path(&n, host);
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
	int r = parse(rel, &n);
	if (!r)
		r = procfs_stat(rel, &st, false);
	if (r || !mode)
		return r;
	follow(&n);
	if (n.pid && n.kind >= L_EXE && n.kind <= L_ROOT) {
		char path[PATH_MAX];
		r = link_text(&n, path);
		return r < 0 ? r : (int)HC6(SYS_access, path, mode, 0, 0, 0, 0);
	}
	host_path(&n, host);
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
	if (is_dir(&n))
		return mode & W_OK ? -EACCES : 0;
	if (mode & X_OK || (mode & W_OK && !(n.kind == F_PID && n.file->gen == G_REAL && !n.pid)))
		return -EACCES;
	return 0;
}

int64_t procfs_chdir(const char *rel)
{
	struct node n;
	char path[PATH_MAX];
	int r = parse(rel, &n);
	if (r)
		return r;
	follow(&n);
	switch (n.kind) {
	case L_FD:
		return HC6(SYS_fchdir, n.fd, 0, 0, 0, 0, 0);
	case L_CWD:
		if (n.pid && (r = link_text(&n, path)) < 0)
			return r;
		return HC6(SYS_chdir, n.pid ? path : ".", 0, 0, 0, 0, 0);
	case L_ROOT:
		return HC6(SYS_chdir, "/", 0, 0, 0, 0, 0);
	default:
		break;
	}
	if (!is_dir(&n))
		return -ENOTDIR;
	dir_path(&n, path);
	if ((r = make_dirs(path)))
		return r;
	fill_dir(&n, path);
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
	return !strncmp(path, "/proc/", 6) && number(&s, &pid) && !*s ? pid : 0;
}
