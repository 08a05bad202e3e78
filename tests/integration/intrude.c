/* SPDX-License-Identifier: Apache-2.0 */
/*
 * intrude PID NR [ARG...]: has the first thread of a process, which sleeps in a system call, make another, as somebody would
 * who had taken it over; prints what that returned. ARG: a number, or s:TEXT for the address of TEXT.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#define ROOM 8192 /* below the stack pointer and the red zone */

static int put(pid_t pid, unsigned long at, const char *text)
{
	struct iovec l = { (void *)text, strlen(text) + 1 }, r = { (void *)at, strlen(text) + 1 };
	return process_vm_writev(pid, &l, 1, &r, 1, 0) == (ssize_t)l.iov_len ? 0 : -1;
}

int main(int argc, char **argv)
{
	struct user_regs_struct was, now;
	unsigned long arg[6] = { 0 };
	int status;
	if (argc < 3 || argc > 9)
		return 2;
	pid_t pid = atoi(argv[1]);
	if (ptrace(PTRACE_ATTACH, pid, 0, 0) || waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status) ||
	    ptrace(PTRACE_GETREGS, pid, 0, &was)) {
		perror("intrude");
		return 2;
	}
	unsigned long at = was.rsp - ROOM;
	for (int i = 3; i < argc; i++) {
		arg[i - 3] = strncmp(argv[i], "s:", 2) ? strtoul(argv[i], NULL, 0) : at;
		if (arg[i - 3] == at && put(pid, at, argv[i] + 2))
			return 2;
		at += arg[i - 3] == at ? (strlen(argv[i]) + 15) & ~7ul : 0;
	}
	now = was;
	now.rip -= 2; /* the instruction that it sleeps in */
	now.orig_rax = -1ul;
	now.rax = strtoul(argv[2], NULL, 0);
	now.rdi = arg[0], now.rsi = arg[1], now.rdx = arg[2], now.r10 = arg[3], now.r8 = arg[4], now.r9 = arg[5];
	if ((ptrace(PTRACE_PEEKTEXT, pid, now.rip, 0) & 0xffff) != 0x050f || ptrace(PTRACE_SETREGS, pid, 0, &now) ||
	    ptrace(PTRACE_SINGLESTEP, pid, 0, 0) || waitpid(pid, &status, __WALL) != pid)
		return 2;
	if (!WIFSTOPPED(status)) {
		puts("ended");
		return 0;
	}
	if (ptrace(PTRACE_GETREGS, pid, 0, &now))
		return 2;
	printf("%ld\n", (long)now.rax);
	was.rip -= 2; /* and it sleeps again */
	was.rax = was.orig_rax;
	return ptrace(PTRACE_SETREGS, pid, 0, &was) || ptrace(PTRACE_DETACH, pid, 0, 0) ? 2 : 0;
}
