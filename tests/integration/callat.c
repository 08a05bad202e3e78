/* SPDX-License-Identifier: Apache-2.0 */
/*
 * callat WHAT CLASS N COMMAND...: does something to COMMAND, a process of one thread, as it is about to make its Nth system call
 * of a class. WHAT: "kill": it is killed; "short": it transfers half as much as it wants, at least a byte; "count": nothing, to any; or
 * an errno, with which the call fails. Exits 0: it was killed there; 1: it had ended before, with status 0; 2: it had failed. If it
 * is not to be killed, with its own status; the file $CALLAT gets a line with the number of the system call, or of each that is
 * counted.
 *
 * callat WHAT CLASS N -p TID: the same with a thread that runs; "kill" kills its process. It prints "ready" when it begins, and
 * those numbers. Then it exits 0 when it has been done, or 1 when its standard input ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	CHANGES = 1, /* something outside of the process: at others it is killed as after the one before */
	FDS = 2,     /* makes descriptors */
	WRITES = 4,  /* to files */
	PARTS = 8,   /* may transfer less */
	WAITS = 16,  /* may be interrupted */
	TELLS = 32,  /* another process, or wakes it */
	READS = 64,
	ALL = 128,
};
static const char *const class_name[] = { "changes", "fds", "writes", "parts", "waits", "tells", "reads", "all" };

static const struct {
	long nr;
	int of;
} calls[] = {
	{ SYS_write, CHANGES | WRITES | PARTS | WAITS },
	{ SYS_pwrite64, CHANGES | WRITES | PARTS | WAITS },
	{ SYS_writev, CHANGES | WRITES | WAITS },
	{ SYS_copy_file_range, CHANGES | READS | WRITES | WAITS },
	{ SYS_sendfile, CHANGES | READS | WRITES | WAITS },
	{ SYS_ftruncate, CHANGES | WRITES },
	{ SYS_fallocate, CHANGES | WRITES | WAITS },
	{ SYS_fchmod, CHANGES },
	{ SYS_fsync, CHANGES | WRITES },
	{ SYS_fdatasync, CHANGES | WRITES },
	{ SYS_link, CHANGES | WRITES },
	{ SYS_linkat, CHANGES | WRITES },
	{ SYS_unlink, CHANGES },
	{ SYS_unlinkat, CHANGES },
	{ SYS_rename, CHANGES | WRITES },
	{ SYS_renameat, CHANGES | WRITES },
	{ SYS_renameat2, CHANGES | WRITES },
	{ SYS_mkdir, CHANGES | WRITES },
	{ SYS_mkdirat, CHANGES | WRITES },
	{ SYS_rmdir, CHANGES },
	{ SYS_flock, CHANGES | WAITS },
	{ SYS_munmap, CHANGES }, /* what was written to a mapping */
	{ SYS_exit_group, CHANGES },
	{ SYS_open, FDS },
	{ SYS_openat, FDS },
	{ SYS_openat2, FDS },
	{ SYS_memfd_create, FDS },
	{ SYS_pipe, FDS },
	{ SYS_pipe2, FDS },
	{ SYS_socket, FDS },
	{ SYS_socketpair, FDS },
	{ SYS_accept, FDS },
	{ SYS_accept4, FDS },
	{ SYS_dup, FDS },
	{ SYS_dup2, FDS },
	{ SYS_dup3, FDS },
	{ SYS_eventfd2, FDS },
	{ SYS_epoll_create1, FDS },
	{ SYS_pidfd_open, FDS },
	{ SYS_pidfd_getfd, FDS },
	{ SYS_read, READS | PARTS | WAITS },
	{ SYS_pread64, READS | PARTS | WAITS },
	{ SYS_getrandom, PARTS | WAITS },
	{ SYS_poll, WAITS },
	{ SYS_ppoll, WAITS },
	{ SYS_nanosleep, WAITS },
	{ SYS_clock_nanosleep, WAITS },
	{ SYS_recvfrom, WAITS },
	{ SYS_recvmsg, WAITS },
	{ SYS_sendto, WAITS | TELLS },
	{ SYS_sendmsg, WAITS | TELLS },
	{ SYS_futex, WAITS | TELLS },
	{ SYS_kill, TELLS },
	{ SYS_tgkill, TELLS },
	{ SYS_rt_sigqueueinfo, TELLS },
	{ SYS_rt_tgsigqueueinfo, TELLS },
	{ SYS_pidfd_send_signal, TELLS },
};

static int class_of(const struct user_regs_struct *r)
{
	const long nr = (long)r->orig_rax, flags = (long)(nr == SYS_open ? r->rsi : r->rdx);
	int of = ALL;
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		of |= calls[i].nr == nr ? calls[i].of : 0;
	if ((nr == SYS_open || nr == SYS_openat) && (flags & (O_CREAT | O_TRUNC) || (flags & O_TMPFILE) == O_TMPFILE))
		of |= CHANGES | WRITES;
	if (((nr == SYS_sendmsg || nr == SYS_recvmsg) && r->rdx & MSG_DONTWAIT) ||
	    ((nr == SYS_sendto || nr == SYS_recvfrom) && r->r10 & MSG_DONTWAIT))
		of &= ~WAITS;
	if (nr == SYS_fcntl && (r->rsi == F_DUPFD || r->rsi == F_DUPFD_CLOEXEC))
		of |= FDS;
	return of;
}

static int wanted(const char *name)
{
	for (size_t i = 0; i < sizeof class_name / sizeof *class_name; i++)
		if (!strcmp(name, class_name[i]))
			return 1 << i;
	exit(3);
}

static pid_t pid;

static int next(int sig)
{
	int status;
	if (ptrace(PTRACE_SYSCALL, pid, 0, (long)sig) || waitpid(pid, &status, __WALL) != pid)
		exit(3);
	return status;
}

/* At the entry: it fails, or transfers less, and nobody else sees that it was another call. False: it has ended. */
static int change(struct user_regs_struct r, int error)
{
	const struct user_regs_struct was = r;
	if (error)
		r.orig_rax = SYS_gettid; /* which every filter lets pass */
	else if (r.orig_rax == SYS_getrandom)
		r.rsi = (r.rsi + 1) / 2;
	else
		r.rdx = (r.rdx + 1) / 2;
	ptrace(PTRACE_SETREGS, pid, 0, &r);
	int status = next(0);
	if (!WIFSTOPPED(status))
		return 0;
	ptrace(PTRACE_GETREGS, pid, 0, &r);
	r.orig_rax = was.orig_rax, r.rsi = was.rsi, r.rdx = was.rdx;
	if (error)
		r.rax = (unsigned long)-error;
	ptrace(PTRACE_SETREGS, pid, 0, &r);
	return 1;
}

static int begin(char **argv)
{
	int status;
	const int attached = !strcmp(argv[0], "-p");
	pid = attached ? atoi(argv[1]) : fork();
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execv(argv[0], argv);
		_exit(3);
	}
	const long options = PTRACE_O_TRACESYSGOOD | (attached ? 0 : PTRACE_O_EXITKILL);
	if (pid < 0 || (attached && (ptrace(PTRACE_SEIZE, pid, 0, options) || ptrace(PTRACE_INTERRUPT, pid, 0, 0))) ||
	    waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status) || ptrace(PTRACE_SETOPTIONS, pid, 0, options))
		exit(3);
	return attached;
}

static void say(int attached, long number)
{
	FILE *f = attached ? stdout : fopen(getenv("CALLAT") ? getenv("CALLAT") : "/dev/null", "a");
	if (!f)
		exit(3);
	fprintf(f, "%ld\n", number);
	attached ? fflush(f) : fclose(f);
}

/* Of one that runs: nobody wants more of it. It goes on, since its tracer is gone. */
static void *end(void *arg)
{
	char c;
	while (read(0, &c, 1) > 0)
		;
	_exit(1);
	return arg;
}

int main(int argc, char **argv)
{
	if (argc < 5)
		return 3;
	const int kills = !strcmp(argv[1], "kill"), error = atoi(argv[1]); /* 0: "short" */
	const int of = wanted(argv[2]);
	const int counts = !strcmp(argv[1], "count");
	const long at = atol(argv[3]);
	long seen = 0;
	const int attached = begin(argv + 4);
	pthread_t t;
	if (attached) {
		puts("ready");
		fflush(stdout);
		if (pthread_create(&t, NULL, end, NULL))
			return 3;
	}
	struct user_regs_struct r;
	for (int sig = 0, entry = 0;;) {
		int status = next(sig);
		if (!WIFSTOPPED(status)) {
			if (attached)
				return 0;
			if (kills)
				return WIFEXITED(status) && !WEXITSTATUS(status) ? 1 : 2;
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		}
		struct __ptrace_syscall_info i;
		sig = WSTOPSIG(status) == (SIGTRAP | 0x80) || status >> 16 ? 0 : WSTOPSIG(status);
		entry = WSTOPSIG(status) == (SIGTRAP | 0x80) &&
			ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof i, &i) > 0 && i.op == PTRACE_SYSCALL_INFO_ENTRY;
		if (!entry || ptrace(PTRACE_GETREGS, pid, 0, &r) || !(class_of(&r) & of))
			continue;
		if (counts)
			say(attached, (long)r.orig_rax);
		if (++seen != at || counts)
			continue;
		if (kills)
			break;
		say(attached, (long)r.orig_rax);
		if (!change(r, error))
			continue;
		if (attached) {
			ptrace(PTRACE_DETACH, pid, 0, 0);
			return 0;
		}
	}
	kill(pid, SIGKILL);
	if (attached)
		return 0;
	int status;
	return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? 0 : 3;
}
