/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vforklie pvm: a child of vfork says in its thread area that it is none, and starts a thread, forks, and asks for a descriptor up
 * high. What the monitor has of its own stays out of reach. Natively there is no such area.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../../abi/kx_abi.h"

#define HIGH 70000 /* above where the monitor's own descriptors can be */

static char stack[16384] __attribute__((aligned(16)));
static volatile long started, forked;
static int failures;

static void check(int ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
}

static void lie(void)
{
	struct kx_thread *t;
	__asm__ volatile("mov %%gs:0, %0" : "=r"(t));
	*(volatile uint32_t *)&t->vfork = 0;
}

/* A thread that ends at once: its number or -errno. */
static long thread_start(void)
{
	register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0;
	long r = SYS_clone;
	__asm__ volatile(
		"syscall\n"
		"test %%rax, %%rax\n"
		"jnz 1f\n"
		"xor %%edi, %%edi\n"
		"mov $60, %%eax\n"
		"syscall\n"
		"1:"
		: "+a"(r)
		: "D"((long)(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM)),
		  "S"(stack + sizeof stack), "d"(0L), "r"(r10), "r"(r8)
		: "rcx", "r11", "memory");
	return r;
}

/* Descriptors from 3 on that there are. */
static int descriptors(void)
{
	int n = 0;
	for (int fd = 3; fd < HIGH; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void *nothing(void *arg) { return arg; }

/* A hard limit is as hard for who says in memory that he is root. */
static int stays_limited(void)
{
	struct kx_shared *shared = (struct kx_shared *)KX_BOOT_BASE;
	struct rlimit less = { 1UL << 40, 1UL << 40 }, more = { 1UL << 41, 1UL << 41 };
	if ((!geteuid() && (setgid(65534) || setuid(65534))) || setrlimit(RLIMIT_AS, &less))
		return 0;
	*(volatile uint32_t *)&shared->euid = 0;
	return setrlimit(RLIMIT_AS, &more) < 0 && errno == EPERM;
}

int main(int argc, char **argv)
{
	int status = -1;
	const int inherited = argc > 1 ? descriptors() : 0;
	pthread_t t;
	if (argc < 2 || strcmp(argv[1], "pvm")) {
		puts("skipped natively");
		return 0;
	}
	pid_t pid = vfork();
	if (!pid) {
		lie();
		started = thread_start();
		lie();
		dup2(0, 1020);
		forked = syscall(SYS_fork);
		if (!forked)
			_exit(7);
		_exit(waitpid((pid_t)forked, &status, 0) == forked && WEXITSTATUS(status) == 7 ? 0 : 1);
	}
	check(started == -EAGAIN, "no thread in a child of vfork");
	check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0, "it has a child");
	check(descriptors() == inherited, "no descriptor but the program's own");
	check(pthread_create(&t, NULL, nothing, NULL) == 0 && pthread_join(t, NULL) == 0, "a thread of the parent's");
	pid = fork();
	if (!pid)
		_exit(3);
	check(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 3, "a child of the parent's");
	check(descriptors() == inherited, "no descriptor but the program's own, with threads");
	pid = fork();
	if (!pid)
		_exit(!stays_limited());
	check(waitpid(pid, &status, 0) == pid && status == 0, "a hard limit");
	printf("%s\n", failures ? "FAILED" : "all ok");
	return failures != 0;
}
