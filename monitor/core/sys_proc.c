/* SPDX-License-Identifier: Apache-2.0 */
/* Identity, limits, scheduling, waiting, prctl. */
#include <errno.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../dev/procfs.h"
#include "apart.h"
#include "coredump.h"
#include "family.h"
#include "fork.h"
#include "hcall.h"
#include "hot.h"
#include "ipc.h"
#include "keeper.h"
#include "pipe.h"
#include "room.h"
#include "rseq.h"
#include "spare.h"
#include "thread.h"

static void refresh_ids(void)
{
	if (self->area->vfork) /* the page speaks of the parent */
		return;
	pvm.shared->uid = host_call(SYS_getuid, 0, 0, 0, 0, 0, 0);
	pvm.shared->euid = host_call(SYS_geteuid, 0, 0, 0, 0, 0, 0);
	pvm.shared->gid = host_call(SYS_getgid, 0, 0, 0, 0, 0, 0);
	pvm.shared->egid = host_call(SYS_getegid, 0, 0, 0, 0, 0, 0);
}

struct rights {
	long euid, egid, fsuid, fsgid;
};

static struct rights rights_now(void)
{
	return (struct rights){ host_call(SYS_geteuid, 0, 0, 0, 0, 0, 0), host_call(SYS_getegid, 0, 0, 0, 0, 0, 0),
				host_call(SYS_setfsuid, -1, 0, 0, 0, 0, 0),
				host_call(SYS_setfsgid, -1, 0, 0, 0, 0, 0) };
}

/* What is in memory may be somebody else's to see: no core file of it. */
static void rights_compare(const struct rights *before)
{
	const struct rights after = rights_now();
	if (memcmp(before, &after, sizeof after))
		coredump_dumpable = 0;
}

int64_t hc_setfs(struct hcall *c)
{
	const struct rights before = rights_now();
	int64_t r = hc_FWD(c);
	rights_compare(&before);
	return r;
}

/* Of the calling thread alone, as the kernel does: the program's libc makes every thread call. */
int64_t hc_setid(struct hcall *c)
{
	pipe_identity_before();
	mq_plain_all();
	const struct rights before = rights_now();
	long r = host_call(c->nr, (long)c->arg[0], (long)c->arg[1], (long)c->arg[2], 0, 0, 0);
	rights_compare(&before);
	pipe_identity_after();
	ipc_identity_after();
	refresh_ids();
	return r;
}

int64_t hc_getgroups(struct hcall *c)
{
	gid_t list[65536 / 16];
	int n = (int)c->arg[0];
	if (n < 0)
		return -EINVAL;
	if (n > (int)(sizeof list / sizeof list[0]))
		n = sizeof list / sizeof list[0];
	long r = HC6(SYS_getgroups, n, list, 0, 0, 0, 0);
	if (r > 0 && n && guest_write(c->arg[1], list, r * sizeof list[0]))
		return -EFAULT;
	return r;
}

int64_t hc_setgroups(struct hcall *c)
{
	gid_t list[4096];
	if (c->arg[0] > 65536)
		return -EINVAL;
	if (c->arg[0] > 4096)
		return -ENOMEM;
	if (guest_read(list, c->arg[1], c->arg[0] * sizeof list[0]))
		return -EFAULT;
	return HC6(SYS_setgroups, c->arg[0], list, 0, 0, 0, 0);
}

static bool pid_is_ours(int pid) { return pid == 0 || family_owner(pid); }

int64_t hc_setpgid(struct hcall *c)
{
	if (!pid_is_ours((int)c->arg[0]))
		return -ESRCH;
	int pg = (int)c->arg[1];
	if (pg != 0 && pg != getpgrp() && !family_has(pg))
		return -EPERM;
	return HC6(SYS_setpgid, (int)c->arg[0], pg, 0, 0, 0, 0);
}

int64_t hc_getpgid(struct hcall *c)
{
	if (!pid_is_ours((int)c->arg[0]))
		return -ESRCH;
	return HC6(c->nr, (int)c->arg[0], 0, 0, 0, 0, 0);
}

/* capget, capset: header and data through host copies; only the caller itself. */
static int64_t capability(struct hcall *c, bool set)
{
	struct __user_cap_header_struct hdr;
	struct __user_cap_data_struct data[2];
	if (guest_read(&hdr, c->arg[0], sizeof hdr))
		return -EFAULT;
	if (hdr.pid && hdr.pid != my_pid() && !thread_is_ours(hdr.pid))
		return set ? -EPERM : -ESRCH;
	uint32_t version = hdr.version;
	size_t size = version == _LINUX_CAPABILITY_VERSION_1 ? sizeof data[0] : sizeof data;
	memset(data, 0, sizeof data);
	if (set && guest_read(data, c->arg[1], size))
		return -EFAULT;
	hdr.pid = 0;
	long r = HC6(c->nr, &hdr, c->arg[1] ? data : NULL, 0, 0, 0, 0);
	/* The version that the kernel prefers, with EINVAL, or 0 when no data were asked for */
	if (hdr.version != version && guest_write(c->arg[0], &hdr.version, sizeof hdr.version))
		return -EFAULT;
	if (r == 0 && !set && c->arg[1] && guest_write(c->arg[1], data, size))
		return -EFAULT;
	return r;
}

int64_t hc_capget(struct hcall *c) { return capability(c, false); }
int64_t hc_capset(struct hcall *c) { return capability(c, true); }

/* ---- limits -------------------------------------------------------------------------------------------------- */

/* Kept here alone: on the host they would hit the monitor (its 512 GiB of address space, its own stack). */
static bool limit_is_virtual(int resource)
{
	return resource == RLIMIT_AS || resource == RLIMIT_DATA || resource == RLIMIT_STACK || resource == RLIMIT_RSS ||
	       resource == RLIMIT_CORE;
}

static struct rlimit virtual_limit[16];
static bool virtual_known[16];

/* A child of vfork has its own, though it shares all memory. */
static struct rlimit *virtual_limits(void) { return self && my_pid() != pvm.pid ? self->limit : virtual_limit; }

void limits_vfork(struct thread *child) { memcpy(child->limit, virtual_limits(), sizeof child->limit); }
void limits_fork_of_vfork(const struct thread *t) { memcpy(virtual_limit, t->limit, sizeof virtual_limit); }

static void limit_get(int resource, struct rlimit *out)
{
	if (limit_is_virtual(resource) && virtual_known[resource]) {
		*out = virtual_limits()[resource];
		return;
	}
	HC6(SYS_prlimit64, 0, resource, 0, out, 0, 0);
	if (resource == RLIMIT_NOFILE) {
		if (out->rlim_max > pvm.fd_max)
			out->rlim_max = pvm.fd_max;
		if (out->rlim_cur > out->rlim_max)
			out->rlim_cur = out->rlim_max;
	}
}

#define DATA_LEAST (672ull << 20) /* what is reserved writable, and the stack */

/* What is reserved for a guest and not used counts on the host. So the limits are lifted there, as far as they can be. */
int limits_lift(struct kx_err *err)
{
	static const int lifted[] = { RLIMIT_AS, RLIMIT_DATA };
	for (unsigned i = 0; i < sizeof lifted / sizeof *lifted; i++) {
		int n = lifted[i];
		limit_get(n, &virtual_limit[n]);
		virtual_known[n] = true;
		struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY }, most = virtual_limit[n];
		most.rlim_cur = most.rlim_max;
		if (!setrlimit(n, &all))
			continue;
		setrlimit(n, &most);
		if (n == RLIMIT_DATA && most.rlim_max < DATA_LEAST)
			return kx_err_set(err, ENOMEM,
					  "data segment: the hard limit is too low (raise `ulimit -Hd` to %u)",
					  (unsigned)(DATA_LEAST >> 10));
	}
	return 0;
}

/* Of RLIMIT_AS what is for writable memory, stack included, which is mapped as a whole here. RLIM_INFINITY: no limit. */
uint64_t limits_memory(void)
{
	const struct rlimit *l = virtual_limits();
	if (!virtual_known[RLIMIT_AS] || l[RLIMIT_AS].rlim_cur == RLIM_INFINITY)
		return RLIM_INFINITY;
	uint64_t stack = l[RLIMIT_STACK].rlim_cur;
	stack = stack > 1ull << 30 ? 64ull << 20 : stack;
	return l[RLIMIT_AS].rlim_cur < RLIM_INFINITY - stack ? l[RLIMIT_AS].rlim_cur + stack : RLIM_INFINITY;
}

void limits_init(void)
{
	for (int i = 0; i < 16; i++)
		if (limit_is_virtual(i) && !virtual_known[i]) {
			limit_get(i, &virtual_limit[i]);
			virtual_known[i] = true;
		}
}

uint64_t limits_core(void)
{
	struct rlimit r;
	limit_get(RLIMIT_CORE, &r);
	return r.rlim_cur;
}

void limits_export(struct rlimit out[16]) { memcpy(out, virtual_limits(), sizeof virtual_limit); }

void limits_import(const struct rlimit in[16])
{
	memcpy(virtual_limit, in, sizeof virtual_limit);
	for (int i = 0; i < 16; i++)
		virtual_known[i] = limit_is_virtual(i);
}

static int64_t limit_set(int resource, const struct rlimit *old, const struct rlimit *new)
{
	struct rlimit n = *new;
	if (n.rlim_cur > n.rlim_max)
		return -EINVAL;
	if (limit_is_virtual(resource)) {
		if (n.rlim_max > old->rlim_max && geteuid()) /* not as the guest's memory says */
			return -EPERM;
		virtual_limits()[resource] = n;
		return 0;
	}
	if (resource == RLIMIT_NOFILE) {
		if (n.rlim_max > pvm.fd_max)
			return -EPERM; /* as when it is above fs.nr_open */
		struct rlimit host;
		HC6(SYS_prlimit64, 0, resource, 0, &host, 0, 0);
		n.rlim_max = host.rlim_max; /* the monitor's own descriptors are above */
	}
	return HC6(SYS_prlimit64, 0, resource, &n, 0, 0, 0);
}

/* getrlimit(resource, out), setrlimit(resource, in), prlimit64(pid, resource, in, out) */
int64_t hc_prlimit64(struct hcall *c)
{
	bool full = c->nr == SYS_prlimit64;
	int resource = (int)c->arg[full ? 1 : 0];
	uint64_t in = full ? c->arg[2] : c->nr == SYS_setrlimit ? c->arg[1] : 0;
	uint64_t out = full ? c->arg[3] : c->nr == SYS_getrlimit ? c->arg[1] : 0;
	struct rlimit old, new;
	if (full && c->arg[0] && (int)c->arg[0] != my_pid() && !thread_is_ours((int)c->arg[0]))
		return family_has((int)c->arg[0]) ? -EPERM : -ESRCH; /* its limits are kept in its own monitor */
	if (resource < 0 || resource >= 16)
		return -EINVAL;
	if ((in || c->nr == SYS_setrlimit) && guest_read(&new, in, sizeof new))
		return -EFAULT;
	/* Another thread may have lifted that of descriptors for a moment, and puts the old one back. */
	bool lock = resource == RLIMIT_NOFILE && my_pid() == pvm.pid;
	if (lock)
		fd_limit_fork_lock();
	limit_get(resource, &old);
	int64_t r = in || c->nr == SYS_setrlimit ? limit_set(resource, &old, &new) : 0;
	if (lock)
		fd_limit_fork_unlock();
	if (r)
		return r;
	if ((out || c->nr == SYS_getrlimit) && guest_write(out, &old, sizeof old))
		return -EFAULT;
	return 0;
}

/* ---- scheduling ---------------------------------------------------------------------------------------------- */

int64_t hc_prio(struct hcall *c)
{
	/* PRIO_PROCESS and IOPRIO_WHO_PROCESS have different numbers; groups and users reach beyond the pVM. */
	bool io = c->nr == SYS_ioprio_get || c->nr == SYS_ioprio_set;
	int which = (int)c->arg[0], who = (int)c->arg[1];
	if (which < (io ? 1 : 0) || which > (io ? 3 : 2))
		return -EINVAL;
	bool self_only = which == (io ? 1 : 0), group = which == (io ? 2 : 1);
	if (self_only ? !pid_is_ours(who) : who && who != (group ? (int)getpgrp() : (int)getuid()))
		return -ESRCH;
	if (!self_only) { /* of its group and of its user, the pVM sees itself */
		which = io ? 1 : 0;
		who = 0;
	}
	return HC6(c->nr, which, who, (int)c->arg[2], 0, 0, 0);
}

int64_t hc_sched(struct hcall *c)
{
	if ((int)c->arg[0] < 0)
		return -EINVAL;
	if (!pid_is_ours((int)c->arg[0]))
		return -ESRCH;
	return HC6(c->nr, (int)c->arg[0], c->host[1], c->host[2], 0, 0, 0);
}

int64_t hc_sched_attr(struct hcall *c)
{
	uint8_t buf[256] = { 0 };
	if ((int)c->arg[0] < 0)
		return -EINVAL;
	if (!pid_is_ours((int)c->arg[0]))
		return -ESRCH;
	if (c->nr == SYS_sched_setattr) {
		uint32_t size;
		if (guest_read(&size, c->arg[1], 4))
			return -EFAULT;
		if (!size)
			size = 48;
		if (size < 48 || size > sizeof buf)
			return -E2BIG;
		if (guest_read(buf, c->arg[1], size))
			return -EFAULT;
		memcpy(buf, &size, 4);
		return HC6(c->nr, (int)c->arg[0], buf, c->arg[2], 0, 0, 0);
	}
	uint32_t size = (uint32_t)c->arg[2];
	if (size < 48 || size > 4096)
		return -EINVAL;
	if (size > sizeof buf)
		size = sizeof buf;
	long r = HC6(c->nr, (int)c->arg[0], buf, size, c->arg[3], 0, 0);
	if (r < 0)
		return r;
	memcpy(&size, buf, 4);
	return guest_write(c->arg[1], buf, size <= sizeof buf ? size : sizeof buf);
}

int64_t hc_sched_setaffinity(struct hcall *c)
{
	uint8_t mask[1024];
	uint64_t len = c->arg[1] < sizeof mask ? c->arg[1] : sizeof mask;
	if (!pid_is_ours((int)c->arg[0]))
		return -ESRCH;
	if (guest_read(mask, c->arg[2], len))
		return -EFAULT;
	for (uint64_t i = 0; pvm.cfg->cpus && i < len * 8; i++)
		if (i >= CPU_SETSIZE || !CPU_ISSET(i, &pvm.cpus))
			mask[i / 8] &= ~(1u << i % 8);
	int64_t r = HC6(c->nr, (int)c->arg[0], len, mask, 0, 0, 0);
	if (!r)
		rseq_affinity_changed();
	return r;
}

int64_t hc_sched_getaffinity(struct hcall *c)
{
	uint8_t mask[1024] = { 0 };
	uint64_t len = c->arg[1] < sizeof mask ? c->arg[1] : sizeof mask;
	if (!pid_is_ours((int)c->arg[0]))
		return -ESRCH;
	long r = HC6(c->nr, (int)c->arg[0], len, mask, 0, 0, 0);
	if (r > 0 && guest_write(c->arg[2], mask, r))
		return -EFAULT;
	return r;
}

int64_t hc_membarrier(struct hcall *c)
{
	int cmd = (int)c->arg[0];
	int64_t r = HC6(c->nr, cmd, c->arg[1], (int)c->arg[2], 0, 0, 0);
	if (!r && cmd == MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ)
		rseq_fence(c->arg[1] & MEMBARRIER_CMD_FLAG_CPU ? (int)c->arg[2] : -1);
	return r;
}

/* ---- the rest --------------------------------------------------------------------------------------------------- */

int64_t hc_uname(struct hcall *c)
{
	struct utsname u;
	long r = HC6(SYS_uname, &u, 0, 0, 0, 0, 0);
	return r ? r : guest_write(c->arg[0], &u, sizeof u);
}

int64_t hc_sysinfo(struct hcall *c)
{
	struct sysinfo i;
	long r = HC6(SYS_sysinfo, &i, 0, 0, 0, 0, 0);
	if (r)
		return r;
	if (pvm.cfg->memory && i.totalram * i.mem_unit > pvm.cfg->memory) {
		i.totalram = pvm.cfg->memory / i.mem_unit;
		if (i.freeram > i.totalram)
			i.freeram = i.totalram;
	}
	i.procs = pvm.nr_threads;
	return guest_write(c->arg[0], &i, sizeof i);
}

int64_t hc_personality(struct hcall *c)
{
	uint32_t p = (uint32_t)c->arg[0];
	return p == 0xffffffff || p == 0 ? 0 : -EINVAL;
}

/* Of some task's children: one that the program knows. */
static void child_seen(const char *task, void *arg)
{
	char name[64], text[1024];
	bool *any = arg;
	snprintf(name, sizeof name, "self/task/%s/children", task);
	int fd = proc_file(name);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	for (char *at = text, *end; !*any; at = end) {
		pid_t pid = (pid_t)strtol(at, &end, 10);
		if (end == at)
			break;
		*any = !apart_is(pid) && !spare_is(pid);
	}
}

/* A wait for any child, those without an exit signal included: is there none but KylinX's own? */
static bool waits_for_ours(int options)
{
	bool any = false;
	if (!(options & (__WALL | __WCLONE)) || !apart_any())
		return false;
	procfs_each("self/task", child_seen, &any);
	return !any;
}

/* A child that is reaped leaves the family: its number is free from now on. */
static void child_gone(pid_t pid)
{
	family_remove(pid);
	if (!is_vfork_child())
		room_soon();
}

int64_t hc_wait4(struct hcall *c)
{
	int status = 0, id = (int)c->arg[0], options = (int)c->arg[2];
	long r;
	do {
		if (spare_is(id) || apart_is(abs(id)) || (id == -1 && waits_for_ours(options)))
			return -ECHILD;
		r = 0;
		if (!(options & WNOHANG))
			hot_choose(c->t);
		if (spare_look(c->t)) {
			r = HC6(SYS_wait4, id, &status, options | WNOHANG, c->host[3], 0, 0);
			if (!r && !(options & WNOHANG) && spare_wanted(c->t))
				spare_make(c->t);
			if (!r && id == -1 && spare_is_last())
				return -ECHILD;
		}
		if (!r)
			r = HB6(SYS_wait4, id, &status, options, c->host[3], 0, 0);
	} while (r > 0 && ((spare_is(r) && (spare_ended(r), true)) || apart_reaped(r)));
	if (r > 0 && WIFSIGNALED(status) && coredump_of(r, WTERMSIG(status)))
		status |= WCOREFLAG;
	if (r > 0 && (WIFEXITED(status) || WIFSIGNALED(status)))
		child_gone(r);
	if (r > 0 && c->arg[1] && guest_write(c->arg[1], &status, sizeof status))
		return -EFAULT;
	return r;
}

/* It was found by a wait for any child: take it out, and look again. */
static bool own_reaped(siginfo_t *info)
{
	HC6(SYS_wait4, info->si_pid, 0, WNOHANG | __WALL, 0, 0, 0);
	if (!apart_reaped(info->si_pid))
		spare_ended(info->si_pid);
	memset(info, 0, sizeof *info);
	return true;
}

int64_t hc_waitid(struct hcall *c)
{
	siginfo_t info;
	int type = (int)c->arg[0], options = (int)c->arg[3];
	memset(&info, 0, sizeof info);
	if (type == P_PIDFD && !fd_is_guest((int)c->arg[1]))
		return -EBADF;
	long r;
	do {
		if ((type == P_PID || type == P_PGID) && (spare_is((int)c->arg[1]) || apart_is((int)c->arg[1])))
			return -ECHILD;
		if (type == P_ALL && waits_for_ours(options))
			return -ECHILD;
		r = 0;
		if (!(options & WNOHANG))
			hot_choose(c->t);
		if (spare_look(c->t)) {
			r = HC6(SYS_waitid, type, (int)c->arg[1], &info, options | WNOHANG, c->host[4], 0);
			if (!r && !info.si_pid && !(options & WNOHANG) && spare_wanted(c->t))
				spare_make(c->t);
			if (!r && !info.si_pid && type == P_ALL && spare_is_last())
				return -ECHILD;
		}
		if (!r && !info.si_pid)
			r = HB6(SYS_waitid, type, (int)c->arg[1], &info, options, c->host[4], 0);
	} while (!r && (spare_is(info.si_pid) || apart_is(info.si_pid)) && own_reaped(&info));
	if (!r && info.si_code == CLD_KILLED && coredump_of(info.si_pid, info.si_status))
		info.si_code = CLD_DUMPED;
	bool ended = info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED;
	if (r == 0 && info.si_pid && ended && !(options & WNOWAIT))
		child_gone(info.si_pid);
	if (r == 0 && c->arg[2] && guest_write(c->arg[2], &info, sizeof info))
		return -EFAULT;
	return r;
}

int64_t hc_arch_prctl(struct hcall *c)
{
	(void)c; /* ARCH_SET_FS and GET_FS are the LibOS's; GS is its own */
	return -EINVAL;
}

static int64_t prctl_name(struct hcall *c)
{
	char name[16] = { 0 };
	if ((int)c->arg[0] == PR_SET_NAME) {
		ssize_t n = guest_read_str(name, c->arg[1], 15);
		if (n < 0 && n != -ENAMETOOLONG)
			return n;
		return HC6(SYS_prctl, PR_SET_NAME, name, 0, 0, 0, 0);
	}
	long r = HC6(SYS_prctl, PR_GET_NAME, name, 0, 0, 0, 0);
	return r ? r : guest_write(c->arg[1], name, sizeof name);
}

int64_t hc_prctl(struct hcall *c)
{
	int out = 0;
	long r;
	switch ((int)c->arg[0]) {
	case PR_SET_NAME:
	case PR_GET_NAME:
		return prctl_name(c);
	case PR_GET_DUMPABLE:
		return coredump_dumpable;
	case PR_SET_DUMPABLE:
		if (c->arg[1] > 1)
			return -EINVAL;
		coredump_dumpable = (int)c->arg[1];
		return 0;
	case PR_GET_PDEATHSIG:
	case PR_GET_CHILD_SUBREAPER:
		r = HC6(SYS_prctl, c->arg[0], &out, 0, 0, 0, 0);
		return r ? r : guest_write(c->arg[1], &out, sizeof out);
	case PR_GET_TID_ADDRESS:
		return guest_write(c->arg[1], &c->t->clear_tid, 8);
	case PR_SET_CHILD_SUBREAPER:
		if (c->arg[1])
			__atomic_store_n(family_reapers(), 1, __ATOMIC_SEQ_CST);
		/* fall through */
	case PR_SET_PDEATHSIG:
	case PR_SET_KEEPCAPS:
	case PR_GET_KEEPCAPS:
	case PR_CAPBSET_READ:
	case PR_CAPBSET_DROP:
	case PR_GET_NO_NEW_PRIVS:
	case PR_SET_NO_NEW_PRIVS:
	case PR_SET_TIMERSLACK:
	case PR_GET_TIMERSLACK:
	case PR_GET_SECUREBITS:
	case PR_SET_SECUREBITS:
	case PR_CAP_AMBIENT:
	case PR_SET_THP_DISABLE:
	case PR_GET_THP_DISABLE:
	case PR_GET_TIMING:
	case PR_GET_SPECULATION_CTRL:
	case PR_MCE_KILL_GET:
		return HC6(SYS_prctl, c->arg[0], c->arg[1], c->arg[2], c->arg[3], c->arg[4], 0);
	case PR_SET_MM:
	case PR_SET_SECCOMP:
		return (int)c->arg[0] == PR_SET_MM ? -EPERM : -EINVAL;
	}
	kx_log(KX_LOG_INFO, "prctl", "option %d is not known: EINVAL", (int)c->arg[0]);
	return -EINVAL;
}
