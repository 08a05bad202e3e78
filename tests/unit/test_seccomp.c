/* SPDX-License-Identifier: Apache-2.0 */
/* What the filter lets a monitor do, call by call: each in a child, which tells by its exit status, or is killed. */
#include <errno.h>
#include <linux/audit.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../monitor/core/pvm.h"
#include "../../monitor/core/seccomp.h"
#include "check.h"

struct pvm pvm;

#define DIES (-1000)
#define EXE_FD 900 /* the monitor's own file, as the filter sees it */
#define FD_MAX 1000
#define PAGE 4096

static uint8_t page[2 * PAGE] __attribute__((aligned(PAGE)));

/* 0, -errno, or DIES. Nothing that makes a process or sleeps. */
static int made(long nr, long a, long b, long c, long d, long e, long f)
{
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		struct kx_err err = { 0 };
		pvm.exe_fd = EXE_FD;
		pvm.fd_max = FD_MAX;
		if (seccomp_enter(&err))
			_exit(200);
		long r = syscall(nr, a, b, c, d, e, f);
		syscall(SYS_exit_group, r == -1 ? errno : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -2000;
	if (WIFSIGNALED(status))
		return WTERMSIG(status) == SIGSYS ? DIES : -3000;
	return -WEXITSTATUS(status);
}

static const struct {
	const char *what;
	int want;
	long nr, arg[6];
} calls[] = {
	{ "getpid", 0, SYS_getpid, { 0 } },
	{ "a number beyond all", -ENOSYS, 5000, { 0 } },
	{ "readable memory", 0, SYS_mprotect, { (long)page, PAGE, PROT_READ } },
	{ "code by mprotect", -EPERM, SYS_mprotect, { (long)page, PAGE, PROT_READ | PROT_EXEC } },
	{ "code by pkey_mprotect", -ENOSYS, SYS_pkey_mprotect, { (long)page, PAGE, PROT_READ | PROT_EXEC, -1 } },
	{ "protection keys", -ENOSYS, SYS_pkey_alloc, { 0, 0 } },
	{ "code by shmat", -EPERM, SYS_shmat, { -1, 0, SHM_EXEC } },
	{ "code by READ_IMPLIES_EXEC", -EPERM, SYS_personality, { 0x0400000 } },
	{ "the personality asked for", 0, SYS_personality, { 0xffffffff } },
	{ "execve", DIES, SYS_execve, { (long)"/bin/true", 0, 0 } },
	{ "execveat of another descriptor", DIES, SYS_execveat, { 3, (long)"", 0, 0, 0x1000 } },
	{ "execveat of the monitor's own, which is not open here",
	  -EBADF,
	  SYS_execveat,
	  { EXE_FD, (long)"", 0, 0, 0x1000 } },
	{ "the second number of it", -EBADF, SYS_execveat, { FD_MAX, (long)"", 0, 0, 0x1000 } },
	{ "the same with other upper halves", -EBADF, SYS_execveat, { 1l << 32 | EXE_FD, (long)"", 0, 0, 0x1000 } },
	{ "a child in a user namespace", -EPERM, SYS_clone, { CLONE_NEWUSER | SIGCHLD } },
	{ "a child in a network namespace", -EPERM, SYS_clone, { CLONE_NEWNET | SIGCHLD } },
	{ "clone3", -ENOSYS, SYS_clone3, { 0, 0 } },
	{ "unshare", DIES, SYS_unshare, { CLONE_FILES } },
	{ "setns", DIES, SYS_setns, { 0, 0 } },
	{ "ptrace", DIES, SYS_ptrace, { 0 } },
	{ "another's memory", DIES, SYS_process_vm_writev, { 1, 0, 0, 0, 0, 0 } },
	{ "another's descriptors", DIES, 438, { 0, 0, 0 } },
	{ "io_uring", DIES, SYS_io_uring_setup, { 1, 0 } },
	{ "userfaultfd", DIES, SYS_userfaultfd, { 0 } },
	{ "bpf", DIES, SYS_bpf, { 0 } },
	{ "file handles", DIES, SYS_open_by_handle_at, { 0 } },
	{ "handles of names", -ENOSYS, SYS_name_to_handle_at, { 0 } },
	{ "kcmp", -ENOSYS, SYS_kcmp, { 0 } },
	{ "process_madvise", -ENOSYS, 440, { 0 } },
	{ "memfd_secret", -ENOSYS, 447, { 0 } },
	{ "packets", -EAFNOSUPPORT, SYS_socket, { 17 /* AF_PACKET */, SOCK_RAW, 0 } },
	{ "virtual sockets", -EAFNOSUPPORT, SYS_socket, { 40 /* AF_VSOCK */, SOCK_STREAM, 0 } },
	{ "the kernel's cipher", -EAFNOSUPPORT, SYS_socket, { 38 /* AF_ALG */, SOCK_SEQPACKET, 0 } },
	{ "a family with upper halves", -EAFNOSUPPORT, SYS_socket, { 1l << 32 | 17, SOCK_RAW, 0 } },
	{ "a UNIX socket", 0, SYS_socket, { AF_UNIX, SOCK_STREAM, 0 } },
	{ "typing", -EPERM, SYS_ioctl, { 0, TIOCSTI, (long)page } },
	{ "typing with upper halves", -EPERM, SYS_ioctl, { 0, 1l << 32 | TIOCSTI, (long)page } },
};

int main(void)
{
	for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
		const long *a = calls[i].arg;
		int r = made(calls[i].nr, a[0], a[1], a[2], a[3], a[4], a[5]);
		CHECK(r == calls[i].want, "%s: %d, not %d", calls[i].what, r, calls[i].want);
	}
	printf("%s: %d checks, %d failures\n", failures ? "FAILED" : "SUCCESS", checks, failures);
	return failures != 0;
}
