/* SPDX-License-Identifier: Apache-2.0 */
/* See strace_priv.h: which arguments of which calls are more than their kind in hypercalls.def says. */
#include "strace_priv.h"
#include <string.h>
#include <sys/syscall.h>
#include "strace_names.h"

static const struct special special[] = {
#define S(call, n, set) \
	{ \
		SYS_##call, n, H_SET, &ss_##set \
	}
#define I(call, n, f) \
	{ \
		SYS_##call, n, H_IN, &fx_##f \
	}
#define O(call, n, f) \
	{ \
		SYS_##call, n, H_OUT, &fx_##f \
	}
#define W(call, n, f) \
	{ \
		SYS_##call, n, H_WAS, &fx_##f \
	}
#define X(call, n, h) \
	{ \
		SYS_##call, n, h, NULL \
	}
	O(stat, 1, stat),
	O(fstat, 1, stat),
	O(lstat, 1, stat),
	O(newfstatat, 2, stat),
	O(statx, 4, statx),
	S(statx, 2, at_stat),
	S(statx, 3, statx),
	S(faccessat2, 3, at_access),
	X(poll, 0, H_POLLFDS),
	X(ppoll, 0, H_POLLFDS),
	W(ppoll, 2, timespec),
	I(ppoll, 3, sigset),
	S(lseek, 2, seek),
	X(mmap, 5, H_HEX),
	I(rt_sigaction, 1, sigaction),
	O(rt_sigaction, 2, sigaction),
	S(rt_sigprocmask, 0, sigmask),
	I(rt_sigprocmask, 1, sigset),
	O(rt_sigprocmask, 2, sigset),
	O(rt_sigpending, 0, sigset),
	I(rt_sigtimedwait, 0, sigset),
	O(rt_sigtimedwait, 1, siginfo),
	I(rt_sigtimedwait, 2, timespec),
	I(rt_sigsuspend, 0, sigset),
	I(rt_sigqueueinfo, 2, siginfo),
	I(rt_tgsigqueueinfo, 3, siginfo),
	I(sigaltstack, 0, altstack),
	O(sigaltstack, 1, altstack),
	S(ioctl, 1, ioctl),
	X(ioctl, 2, H_IOCTL),
	O(pipe, 0, two_fds),
	O(pipe2, 0, two_fds),
	S(pipe2, 1, open_bits),
	S(dup3, 2, open_bits),
	X(select, 1, H_FDSET),
	X(select, 2, H_FDSET),
	X(select, 3, H_FDSET),
	W(select, 4, timeval),
	X(pselect6, 1, H_FDSET),
	X(pselect6, 2, H_FDSET),
	X(pselect6, 3, H_FDSET),
	W(pselect6, 4, timespec),
	X(pselect6, 5, H_SIGSET_ARG),
	S(madvise, 2, madv),
	S(mlockall, 0, mlockall),
	I(nanosleep, 0, timespec),
	O(getitimer, 1, itimerval),
	S(getitimer, 0, itimer),
	S(setitimer, 0, itimer),
	I(setitimer, 1, itimerval),
	O(setitimer, 2, itimerval),
	{ SYS_sendfile, 2, H_WAS_NOW, &fx_u64 },
	W(splice, 1, u64),
	W(splice, 3, u64),
	S(splice, 5, splice),
	S(tee, 3, splice),
	S(vmsplice, 3, splice),
	W(copy_file_range, 1, u64),
	W(copy_file_range, 3, u64),
	S(socket, 0, family),
	S(socket, 1, socktype),
	X(socket, 2, H_PROTO),
	X(socketpair, 2, H_PROTO),
	S(socketpair, 0, family),
	S(socketpair, 1, socktype),
	O(socketpair, 3, two_fds),
	X(connect, 1, H_SOCKADDR),
	X(bind, 1, H_SOCKADDR),
	X(sendto, 4, H_SOCKADDR),
	X(accept, 1, H_SOCKADDR_OUT),
	X(accept4, 1, H_SOCKADDR_OUT),
	X(getsockname, 1, H_SOCKADDR_OUT),
	X(getpeername, 1, H_SOCKADDR_OUT),
	X(recvfrom, 4, H_SOCKADDR_OUT),
	X(accept, 2, H_SOCKLEN),
	X(accept4, 2, H_SOCKLEN),
	X(getsockname, 2, H_SOCKLEN),
	X(getpeername, 2, H_SOCKLEN),
	X(recvfrom, 5, H_SOCKLEN),
	X(sendmsg, 1, H_MSG_IN),
	X(recvmsg, 1, H_MSG_OUT),
	S(shutdown, 1, shut),
	S(setsockopt, 1, sol),
	S(getsockopt, 1, sol),
	X(setsockopt, 2, H_OPTNAME),
	X(getsockopt, 2, H_OPTNAME),
	X(setsockopt, 3, H_OPT_IN),
	X(getsockopt, 3, H_OPT_OUT),
	X(getsockopt, 4, H_SOCKLEN),
	O(wait4, 1, wstatus),
	S(wait4, 2, wait),
	O(wait4, 3, rusage),
	S(waitid, 0, idtype),
	O(waitid, 2, siginfo),
	S(waitid, 3, wait),
	O(waitid, 4, rusage),
	O(uname, 0, utsname),
	S(fcntl, 1, fcntl),
	X(fcntl, 2, H_FCNTL),
	S(flock, 1, flock),
	X(getdents, 1, H_DIRENTS),
	X(getdents64, 1, H_DIRENTS),
	X(getcwd, 0, H_CSTR),
	O(gettimeofday, 0, timeval),
	S(getrlimit, 0, rlimit),
	O(getrlimit, 1, rlimit),
	S(setrlimit, 0, rlimit),
	I(setrlimit, 1, rlimit),
	S(prlimit64, 1, rlimit),
	I(prlimit64, 2, rlimit),
	O(prlimit64, 3, rlimit),
	S(getrusage, 0, rusage),
	O(getrusage, 1, rusage),
	O(sysinfo, 0, sysinfo),
	O(getresuid, 0, i32),
	O(getresuid, 1, i32),
	O(getresuid, 2, i32),
	O(getresgid, 0, i32),
	O(getresgid, 1, i32),
	O(getresgid, 2, i32),
	X(mknod, 1, H_MKNOD),
	X(mknodat, 2, H_MKNOD),
	X(mknod, 2, H_HEX),
	X(mknodat, 3, H_HEX),
	S(getpriority, 0, prio),
	S(setpriority, 0, prio),
	I(sched_setparam, 1, i32),
	O(sched_getparam, 1, i32),
	S(sched_setscheduler, 1, sched),
	I(sched_setscheduler, 2, i32),
	S(sched_get_priority_max, 0, sched),
	S(sched_get_priority_min, 0, sched),
	O(sched_rr_get_interval, 1, timespec),
	S(prctl, 0, prctl),
	X(prctl, 1, H_PRCTL),
	X(prctl, 2, H_HEX),
	X(prctl, 3, H_HEX),
	X(prctl, 4, H_HEX),
	S(arch_prctl, 0, archp),
	X(arch_prctl, 1, H_ARCH),
	S(setxattr, 4, xattr),
	S(lsetxattr, 4, xattr),
	S(fsetxattr, 4, xattr),
	X(futex, 3, H_FUTEX_4),
	X(sched_setaffinity, 2, H_CPUSET),
	O(time, 0, u64),
	X(sched_getaffinity, 2, H_CPUSET),
	S(fadvise64, 3, fadv),
	S(timer_create, 0, clock),
	O(timer_create, 2, i32),
	S(timer_settime, 1, abstime),
	I(timer_settime, 2, itimerspec),
	O(timer_settime, 3, itimerspec),
	O(timer_gettime, 1, itimerspec),
	S(clock_gettime, 0, clock),
	O(clock_gettime, 1, timespec),
	S(clock_getres, 0, clock),
	O(clock_getres, 1, timespec),
	S(clock_nanosleep, 0, clock),
	S(clock_nanosleep, 1, abstime),
	I(clock_nanosleep, 2, timespec),
	{ SYS_epoll_wait, 1, H_OUT_RET, &fx_epoll_event },
	{ SYS_epoll_pwait, 1, H_OUT_RET, &fx_epoll_event },
	{ SYS_epoll_pwait2, 1, H_OUT_RET, &fx_epoll_event },
	I(epoll_pwait, 4, sigset),
	I(epoll_pwait2, 3, timespec),
	I(epoll_pwait2, 4, sigset),
	S(epoll_ctl, 1, epctl),
	I(epoll_ctl, 3, epoll_event),
	S(epoll_create1, 0, epoll1),
	I(utimes, 1, timeval2),
	I(futimesat, 2, timeval2),
	I(utimensat, 2, timespec2),
	I(mq_timedsend, 4, timespec),
	I(mq_timedreceive, 4, timespec),
	O(mq_timedreceive, 3, i32),
	I(semtimedop, 3, timespec),
	S(inotify_add_watch, 2, inmask),
	S(inotify_init1, 0, in1),
	I(signalfd, 1, sigset),
	I(signalfd4, 1, sigset),
	S(signalfd4, 3, sfd),
	S(timerfd_create, 0, clock),
	S(timerfd_create, 1, tfd),
	S(timerfd_settime, 1, tfdset),
	I(timerfd_settime, 2, itimerspec),
	O(timerfd_settime, 3, itimerspec),
	O(timerfd_gettime, 1, itimerspec),
	S(eventfd2, 1, efd),
	S(fallocate, 1, falloc),
	S(preadv2, 5, rwf),
	S(pwritev2, 5, rwf),
	O(getcpu, 0, i32),
	O(getcpu, 1, i32),
	S(renameat2, 4, rename),
	X(getrandom, 0, H_RANDOM),
	S(getrandom, 2, grnd),
	S(memfd_create, 1, mfd),
	S(membarrier, 0, membar),
	I(pidfd_send_signal, 2, siginfo),
	I(clone3, 0, clone_args),
	S(close_range, 2, closer),
	I(openat2, 2, open_how),
	I(recvmmsg, 4, timespec),
	X(execve, 1, H_ARGV),
	X(execve, 2, H_ENVIRON),
	X(execveat, 2, H_ARGV),
	X(execveat, 3, H_ENVIRON),
	X(sendmmsg, 1, H_MMSG_IN),
	X(recvmmsg, 1, H_MMSG_OUT),
	X(rseq, 1, H_HEX),
	X(rseq, 3, H_HEX),
	O(get_robust_list, 1, addr),
	O(get_robust_list, 2, u64),
#undef S
#undef I
#undef O
#undef W
#undef X
};

const struct special *special_find(uint64_t nr, int arg)
{
	size_t i;

	for (i = 0; i < sizeof(special) / sizeof(special[0]); i++)
		if (special[i].nr == nr && special[i].arg == arg)
			return &special[i];
	return NULL;
}

const struct symset *set_find(const char *name)
{
	static const struct symset *const sets[] = {
		&ss_open, &ss_prot, &ss_map, &ss_mremap, &ss_msync, &ss_access,
		&ss_at,   &ss_atrm, &ss_msg, &ss_sock,   &ss_futex, &ss_clone,
	};
	size_t i;

	for (i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		if (!strcmp(sets[i]->name, name))
			return sets[i];
	return NULL;
}
