/* SPDX-License-Identifier: Apache-2.0 */
/*
 * killat N COMMAND...: kills COMMAND, a process of one thread, as it is about to make its Nth system call that changes
 * something, or comes to its end. Exits 0: it was killed there; 1: it had ended before, with status 0; 2: it had failed.
 * Those that change nothing outside of the process are not counted: at them it would be as after the one before.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int changes(pid_t pid)
{
	struct __ptrace_syscall_info i;
	if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof i, &i) <= 0 || i.op != PTRACE_SYSCALL_INFO_ENTRY)
		return 0;
	switch (i.entry.nr) {
	case SYS_open:
		return (i.entry.args[1] & (O_CREAT | O_TRUNC)) != 0;
	case SYS_openat:
		return (i.entry.args[2] & (O_CREAT | O_TRUNC)) != 0 || (i.entry.args[2] & O_TMPFILE) == O_TMPFILE;
	case SYS_write:
	case SYS_pwrite64:
	case SYS_ftruncate:
	case SYS_fallocate:
	case SYS_fchmod:
	case SYS_fsync:
	case SYS_link:
	case SYS_linkat:
	case SYS_unlink:
	case SYS_unlinkat:
	case SYS_rename:
	case SYS_renameat:
	case SYS_renameat2:
	case SYS_mkdir:
	case SYS_mkdirat:
	case SYS_rmdir:
	case SYS_flock:
	case SYS_munmap: /* what was written to a mapping */
	case SYS_exit_group:
		return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	long left = argc > 2 ? atol(argv[1]) : 0;
	int status;
	pid_t pid = fork();
	if (left < 1 || pid < 0)
		return 3;
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execv(argv[2], argv + 2);
		_exit(3);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
		return 3;
	ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD);
	for (int sig = 0;;) {
		ptrace(PTRACE_SYSCALL, pid, 0, (long)sig);
		if (waitpid(pid, &status, 0) != pid)
			return 3;
		if (!WIFSTOPPED(status))
			return WIFEXITED(status) && !WEXITSTATUS(status) ? 1 : 2;
		sig = WSTOPSIG(status) == (SIGTRAP | 0x80) ? 0 : WSTOPSIG(status);
		if (!sig && changes(pid) && !--left)
			break;
	}
	kill(pid, SIGKILL);
	return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? 0 : 3;
}
