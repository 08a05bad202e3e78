/* SPDX-License-Identifier: Apache-2.0 */
/*
 * meddle PATH SCRIPT COMMAND...: runs COMMAND, and the shell's SCRIPT at the moment at which COMMAND is about to take hold of
 * PATH for its view (open_tree, or openat2 before that). The status of COMMAND; 99: it never was.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int takes(pid_t pid, const char *path)
{
	struct __ptrace_syscall_info i;
	char text[4096];
	const size_t len = strlen(path) + 1;
	if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof i, &i) <= 0 || i.op != PTRACE_SYSCALL_INFO_ENTRY ||
	    (i.entry.nr != SYS_open_tree && i.entry.nr != SYS_openat2) || len > sizeof text)
		return 0;
	struct iovec l = { text, len }, r = { (void *)i.entry.args[1], len };
	return process_vm_readv(pid, &l, 1, &r, 1, 0) == (ssize_t)len && !memcmp(text, path, len);
}

int main(int argc, char **argv)
{
	int status, done = 0;
	pid_t pid = argc > 3 ? fork() : -1;
	if (pid < 0)
		return 98;
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execv(argv[3], argv + 3);
		_exit(98);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
		return 98;
	ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD);
	for (int sig = 0;;) {
		ptrace(done ? PTRACE_DETACH : PTRACE_SYSCALL, pid, 0, (long)sig);
		if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
			return !done ? 99 : WIFEXITED(status) ? WEXITSTATUS(status) : 98;
		sig = WSTOPSIG(status) == (SIGTRAP | 0x80) ? 0 : WSTOPSIG(status);
		if (!sig && takes(pid, argv[1]))
			done = !system(argv[2]);
	}
}
