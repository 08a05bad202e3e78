/* SPDX-License-Identifier: Apache-2.0 */
/* Signal calls. What can be answered without the host is answered in the LibOS (libos/core/signal.c). */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../dev/procfs.h"
#include "coredump.h"
#include "family.h"
#include "hcall.h"
#include "sig.h"
#include "sigwait.h"
#include "thread.h"
#include "update.h"

/* Of pidfd_send_signal(2), Linux 6.9. */
#define SIGNAL_THREAD 1u
#define SIGNAL_THREAD_GROUP 2u

static bool sig_ok(uint64_t s) { return (int)s >= 0 && (int)s <= 64; }

int64_t hc_sig_next(struct hcall *c)
{
	__atomic_and_fetch(&c->t->area->work, ~KX_WORK_MORE, __ATOMIC_RELEASE);
	return 0; /* hcall_dispatch() hands the next one over as it leaves */
}

int64_t hc_sigmask_sync(struct hcall *c) { return sig_mask_set(c->t, c->arg[0]) ? 0 : -EAGAIN; }

/* The LibOS keeps the mask; a guest that calls this by itself gets the host's mask brought up to date. */
int64_t hc_rt_sigprocmask(struct hcall *c) { return sig_mask_set(c->t, c->t->area->sigmask) ? 0 : -EAGAIN; }

/* The stack is the LibOS's to know. The host's call would be about the monitor's own. */
int64_t hc_sigaltstack(struct hcall *c)
{
	(void)c;
	return -EINVAL;
}

int64_t hc_rt_sigaction(struct hcall *c)
{
	int s = (int)c->arg[0];
	if (s < 1 || s > 64 || s == SIGKILL || s == SIGSTOP)
		return -EINVAL;
	struct kx_sigaction act = actions_of(c->t)[s];
	if (act.handler <= (uint64_t)SIG_IGN && (c->t->area->sigmask & SIGBIT(s)))
		sig_sync_block(c->t);
	return sig_set_disposition(s, &act);
}

int64_t hc_sig_default(struct hcall *c)
{
	int s = (int)c->arg[0];
	if (s < 1 || s > 64)
		return -EINVAL;
	switch (s) {
	case SIGCHLD:
	case SIGCONT:
	case SIGURG:
	case SIGWINCH:
		return 0;
	case SIGSTOP:
	case SIGTSTP:
	case SIGTTIN:
	case SIGTTOU:
		return host_call(SYS_kill, my_pid(), SIGSTOP, 0, 0, 0, 0);
	}
	pvm_die_by_signal(s);
}

int64_t hc_sig_stack_fault(struct hcall *c)
{
	if (c->arg[0])
		kx_log(KX_LOG_INFO, "signal", "no stack for the frame of signal %d", (int)c->arg[0]);
	else
		kx_log(KX_LOG_INFO, "signal", "struct rseq or the section that it names is not as it must be");
	pvm_die_by_signal(SIGSEGV);
}

struct group_kill {
	bool everybody; /* but the caller */
	pid_t group;    /* 0: its leader is outside of the PID namespace */
	int signo, hits;
	long error;
};

static void kill_member(pid_t pid, void *arg)
{
	struct group_kill *k = arg;
	if (k->everybody ? pid == my_pid() : getpgid(pid) != k->group)
		return;
	long r = host_call(SYS_kill, pid, k->signo, 0, 0, 0, 0);
	if (r == -ESRCH)
		return;
	k->hits += r == 0;
	k->error = r ? r : k->error;
}

/* Only the family can be named; of a process group or of everybody, its members are. */
int64_t hc_kill(struct hcall *c)
{
	int pid = (int)c->arg[0];
	if (!sig_ok(c->arg[1]))
		return -EINVAL;
	if (pid > 0) {
		sigwait_used();
		if (pid == my_pid() || family_has(pid))
			return host_call(SYS_kill, pid, (int)c->arg[1], 0, 0, 0, 0);
		pid_t owner = family_owner(pid);
		return owner ? host_call(SYS_kill, owner, (int)c->arg[1], 0, 0, 0, 0) : -ESRCH;
	}
	if (pid == INT_MIN) /* no group has its negative */
		return -ESRCH;
	struct group_kill k = { .everybody = pid == -1, .group = pid ? -pid : getpgrp(), .signo = (int)c->arg[1] };
	family_each(kill_member, &k);
	return k.hits ? 0 : k.error ? k.error : -ESRCH;
}

int64_t hc_tgkill(struct hcall *c)
{
	bool with_group = c->nr == SYS_tgkill;
	int tgid = with_group ? (int)c->arg[0] : my_pid(), tid = (int)c->arg[with_group],
	    s = (int)c->arg[1 + with_group];
	if (tgid <= 0 || tid <= 0 || s < 0 || s > 64)
		return -EINVAL;
	if (tgid != my_pid())
		sigwait_used();
	if (!with_group && !thread_is_ours(tid)) /* tkill names a thread of any process */
		tgid = family_owner(tid);
	if (tgid == my_pid() ? !thread_is_ours(tid) : !family_has(tgid))
		return -ESRCH;
	return host_call(SYS_tgkill, tgid, tid, s, 0, 0, 0);
}

int64_t hc_rt_sigqueueinfo(struct hcall *c)
{
	siginfo_t info;
	if (guest_read(&info, c->arg[2], sizeof info))
		return -EFAULT;
	if (!sig_ok(c->arg[1]))
		return -EINVAL;
	if (!family_owner((int)c->arg[0]))
		return -ESRCH;
	info.si_signo = (int)c->arg[1];
	return host_call(SYS_rt_sigqueueinfo, (int)c->arg[0], (int)c->arg[1], (long)&info, 0, 0, 0);
}

int64_t hc_rt_tgsigqueueinfo(struct hcall *c)
{
	siginfo_t info;
	if (guest_read(&info, c->arg[3], sizeof info))
		return -EFAULT;
	if (!sig_ok(c->arg[2]) || (int)c->arg[0] <= 0 || (int)c->arg[1] <= 0)
		return -EINVAL;
	if ((int)c->arg[0] == my_pid() ? !thread_is_ours((int)c->arg[1]) : !family_has((int)c->arg[0]))
		return -ESRCH;
	info.si_signo = (int)c->arg[2];
	if (info.si_code == SI_QUEUE)
		sig_mark_thread(&info);
	return host_call(SYS_rt_tgsigqueueinfo, (int)c->arg[0], (int)c->arg[1], (int)c->arg[2], (long)&info, 0, 0);
}

int64_t hc_rt_sigpending(struct hcall *c)
{
	uint64_t set = 0, size = c->arg[1];
	if (size > 8)
		return -EINVAL;
	long r = host_call(SYS_rt_sigpending, (long)&set, 8, 0, 0, 0, 0);
	if (r < 0)
		return r;
	set = (set | c->t->held) & c->t->area->sigmask;
	return guest_write(c->arg[0], &set, size);
}

static long wait_signal(struct thread *t)
{
	long r;
	do
		r = HB6(SYS_pause, 0, 0, 0, 0, 0, 0);
	while (r == -EINTR && update_goes_on(t));
	return r;
}

int64_t hc_rt_sigsuspend(struct hcall *c)
{
	uint64_t mask;
	if (c->arg[1] != 8)
		return -EINVAL;
	if (guest_read(&mask, c->arg[0], 8))
		return -EFAULT;
	if (!sig_mask_enter(c->t, mask))
		return -KX_ERESTART_ALWAYS;
	return sig_mask_leave(c->t, wait_signal(c->t));
}

int64_t hc_pause(struct hcall *c) { return wait_signal(c->t); }

int64_t hc_rt_sigtimedwait(struct hcall *c)
{
	uint64_t set;
	struct timespec ts, *timeout;
	siginfo_t info;
	if (c->arg[3] != 8)
		return -EINVAL;
	if (guest_read(&set, c->arg[0], 8) || get_timespec(c->arg[2], &ts, &timeout))
		return -EFAULT;
	sigwait_used();
	uint64_t host_set = set & ~SIGBIT(KICK_SIG);
	while (!sig_take_held(c->t, set, &info)) {
		long r = HB6(SYS_rt_sigtimedwait, &host_set, &info, timeout, 8, 0, 0);
		if (r == -EINTR && !c->t->sig_stop && (c->t->held & set))
			continue;
		if (r < 0)
			return r;
		break;
	}
	coredump_tell(&info);
	if (c->arg[1] && guest_write(c->arg[1], &info, sizeof info))
		return -EFAULT;
	return info.si_signo;
}

int64_t hc_signalfd4(struct hcall *c)
{
	uint64_t mask;
	int flags = c->nr == SYS_signalfd4 ? (int)c->arg[3] : 0;
	if (c->arg[2] != 8)
		return -EINVAL;
	if (guest_read(&mask, c->arg[1], 8))
		return -EFAULT;
	mask &= ~SIGBIT(KICK_SIG); /* those of the monitor's own hold addresses of its memory; the program's are held */
	return fd_result(HC6(SYS_signalfd4, (int)c->arg[0], &mask, 8, flags, 0, 0));
}

int64_t hc_pidfd_open(struct hcall *c)
{
	if ((int)c->arg[0] <= 0)
		return -EINVAL;
	if ((int)c->arg[0] != my_pid() && !family_has((int)c->arg[0]))
		return -ESRCH;
	return fd_result(HC6(SYS_pidfd_open, (int)c->arg[0], c->arg[1], 0, 0, 0, 0));
}

int64_t hc_pidfd_send_signal(struct hcall *c)
{
	siginfo_t info;
	if ((unsigned)c->arg[3] &
	    ~(SIGNAL_THREAD | SIGNAL_THREAD_GROUP)) /* a group may have others in it than the family */
		return -EINVAL;
	if (c->arg[2] && guest_read(&info, c->arg[2], sizeof info))
		return -EFAULT;
	long r = HC6(SYS_pidfd_send_signal, c->arg[0], c->arg[1], c->arg[2] ? &info : NULL, c->arg[3], 0, 0);
	pid_t pid = r == -EBADF ? procfs_pid((int)c->arg[0]) : 0;
	if (!pid)
		return r;
	/* The kernel takes a process's directory in /proc as well; ours is none of the kernel's. */
	if (pid != my_pid() && !family_has(pid))
		return -ESRCH;
	fd_limit_lift();
	long fd = HC6(SYS_pidfd_open, pid, 0, 0, 0, 0, 0);
	if (fd >= 0)
		fd = fd_hide((int)fd);
	fd_limit_drop();
	if (fd < 0)
		return fd;
	r = HC6(SYS_pidfd_send_signal, fd, c->arg[1], c->arg[2] ? &info : NULL, c->arg[3], 0, 0);
	close((int)fd);
	return r;
}
