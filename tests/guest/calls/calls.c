/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bad arguments for every row of the table of hypercalls, made from the table itself: for each argument, by its kind,
 * pointers that point nowhere or wrap, lengths beyond everything, descriptors that are none, flags with every bit.
 * Once by the system call, once (in a pVM) as a hypercall of our own. What must hold afterwards: the program still
 * works, no call answered with a descriptor or memory of the monitor's, and memory that no call named is unchanged.
 *
 * Natively the same calls go to the kernel, which must survive them, too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../../abi/kx_abi.h"
#include "../../../abi/kx_hcall.h"

struct row {
	const char *name;
	unsigned nr, flags;
	struct kx_arg_desc arg[6];
};

static const struct row rows[] = {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) { #name, nr, flags, { a0, a1, a2, a3, a4, a5 } },
#include "../../../abi/hypercalls.def"
};
#define ROWS (sizeof rows / sizeof *rows)

/* Not with random arguments: they end this process, stop it for good, or pull the floor from under the test. */
static bool spared(const char *name)
{
	static const char *const names[] = {
		"exit",
		"exit_group",
		"fork",
		"vfork",
		"clone",
		"clone3",
		"execve",
		"execveat",
		"pause",
		"rt_sigsuspend",
		"kill",
		"tkill",
		"tgkill",
		"rt_sigqueueinfo",
		"rt_tgsigqueueinfo",
		"pidfd_send_signal",
		"sig_default",
		"sig_stack_fault",
		"alarm",
		"setitimer",
		"timer_settime",
		"close_range",
		"dup2",
		"dup3",
		"close",
		"chroot",
		"setuid",
		"setreuid",
		"setresuid",
		"setgid",
		"setregid",
		"setresgid",
		"setfsuid",
		"setfsgid",
		"setgroups",
		"capset",
		"prlimit64",
		"setrlimit",
		"munmap",
		"mprotect",
		"mremap",
		"brk",
		"mmap",
		"madvise",
		"shmat",
		"wait4",
		"waitid",
		"sync",
		"syncfs",
		"rt_sigtimedwait",
		"vhangup",
		"prctl",
		"arch_prctl",
		"rt_sigprocmask",
		"rt_sigaction",
		"sigaltstack",
		"sigmask_sync",
		"sig_next",
		"trace",
		"seed",
		"sched_setscheduler",
		"sched_setattr",
		"sched_setparam",
		"sched_setaffinity",
		"setpriority",
		"nanosleep",
		"clock_nanosleep",
		"set_tid_address",
		"set_robust_list",
		"mlockall",
		"futex",
		"poll",
		"ppoll",
		"select",
		"pselect6",
		"personality",
		"setsid",
		"setpgid",
		"umask",
		"shmctl",
		"semctl",
		"msgctl",
		"msgrcv",
		"semop",
		"semtimedop",
		"membarrier",
	};
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
		if (!strcmp(names[i], name))
			return true;
	return false;
}

static unsigned char *canary, *none, *ro;
static uint64_t values[64];
static unsigned nr_values;

static void prepare(void)
{
	canary = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(canary, 0xa5, 3 * 4096);
	none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ro = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const uint64_t v[] = {
		0,
		1,
		7,
		4095,
		(uint64_t)none,
		(uint64_t)none - 4,
		(uint64_t)ro,
		KX_USER_END - 1,
		KX_USER_END,
		KX_SPACE_SIZE,
		KX_HIGH_END - 8,
		KX_LIBOS_BASE,
		KX_VVAR_BASE,
		KX_BOOT_BASE,
		KX_AREA_BASE,
		KX_SYS_BASE,
		KX_SYS_BASE + 0x1000,
		KX_SPACE_SIZE - 1,
		KX_SPACE_SIZE,
		KX_SPACE_SIZE + 4096,
		0x7fffffffffff,
		0x800000000000,
		0xffff800000000000,
		0xffffffff80000000,
		0xfffffffffffff000,
		(uint64_t)-1,
		(uint64_t)-4096,
		INT64_MAX,
		INT64_MIN,
		0x7fffffff,
		0x80000000,
		0xffffffff,
		0x100000000,
		(uint64_t)AT_FDCWD,
		1023,
		1024,
		65535,
		65536,
		1 << 20,
	};
	memcpy(values, v, sizeof v);
	nr_values = sizeof v / sizeof *v;
}

/* The system call by the kernel's or the LibOS's entry. */
static long by_syscall(unsigned nr, const uint64_t a[6]) { return syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]); }

/* The hypercall as a hostile program makes it, past the LibOS. */
static long by_port(unsigned nr, const uint64_t a[6])
{
	struct kx_thread *t;
	__asm__ volatile("mov %%gs:0, %0" : "=r"(t));
	t->call.nr = nr;
	memcpy(t->call.arg, a, sizeof t->call.arg);
	__asm__ volatile("out %%eax, %%dx" : : "a"(0), "d"(KX_PORT_HCALL) : "memory");
	long r = t->call.ret;
	return r;
}

static bool makes_descriptor(const char *name)
{
	return strstr(name, "open") || strstr(name, "socket") || strstr(name, "epoll_create") ||
	       strstr(name, "eventfd") || strstr(name, "timerfd_create") || strstr(name, "memfd") ||
	       strstr(name, "inotify_init") || strstr(name, "dup") || strstr(name, "creat") ||
	       strstr(name, "signalfd") || strstr(name, "accept");
}

static unsigned long calls, taken;

static void one(const struct row *r, const uint64_t a[6], long (*call)(unsigned, const uint64_t *))
{
	long x = call(r->nr, a);
	calls++;
	taken += x >= 0;
	if (x > 2 && x < 70000 && makes_descriptor(r->name))
		close(x);
}

static void sweep(const struct row *r, long (*call)(unsigned, const uint64_t *), bool in_pvm)
{
	unsigned n = 0;
	while (n < 6 && r->arg[n].kind != KX_A_NONE)
		n++;
	/* A call that blocks must find nothing to wait for: descriptors of this list are closed or files. */
	for (unsigned i = 0; i < n; i++)
		for (unsigned v = 0; v < nr_values; v++) {
			uint64_t a[6];
			for (unsigned k = 0; k < 6; k++)
				a[k] = r->arg[k].kind == KX_A_FD || r->arg[k].kind == KX_A_ATFD ? (uint64_t)-1
												: (uint64_t)none;
			a[i] = values[v];
			if ((r->arg[i].kind == KX_A_FD || r->arg[i].kind == KX_A_ATFD) && values[v] < 3)
				continue;
			one(r, a, call);
			/* the monitor's own descriptors */
			if (in_pvm && r->arg[i].kind == KX_A_FD)
				for (uint64_t fd = 15000; fd < 20100; fd += 211) {
					a[i] = fd;
					one(r, a, call);
				}
		}
}

static uint64_t seed = 88172645463325252ull;
static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static void *thread(void *arg) { return (char *)arg + 1; }
static volatile int got;
static void on_usr1(int s) { got = s; }

int main(int argc, char **argv)
{
	bool in_pvm = argc > 1 && !strcmp(argv[1], "pvm");
	/* What the calls make of SysV objects must not stay on the host. A pVM has a namespace of its own already. */
	if (!in_pvm && unshare(CLONE_NEWIPC) && unshare(CLONE_NEWUSER | CLONE_NEWIPC))
		return perror("FAIL IPC namespace"), 7;
	prepare();
	signal(SIGPIPE, SIG_IGN);
	/* Not the null device: chmod and chown of it would stay on the host. */
	int empty = memfd_create("calls", 0);
	dup2(empty, 0);
	for (unsigned i = 0; i < ROWS; i++) {
		if (spared(rows[i].name) || rows[i].nr >= 1024)
			continue;
		sweep(&rows[i], by_syscall, in_pvm);
		if (in_pvm)
			sweep(&rows[i], by_port, in_pvm);
	}
	printf("ok every argument of %zu rows, %lu calls, %lu answered\n", ROWS, calls, taken);
	for (unsigned i = 0; i < 20000; i++) {
		const struct row *r = &rows[rnd() % ROWS];
		uint64_t a[6];
		for (int k = 0; k < 6; k++)
			a[k] = rnd() & 1 ? values[rnd() % nr_values] : rnd() >> (rnd() & 63);
		if (spared(r->name) || r->nr >= 1024 || (r->flags & KX_F_BLOCK))
			continue;
		/* nothing random may name the memory that we live in */
		for (int k = 0; k < 6; k++)
			if (r->arg[k].kind == KX_A_FD || r->arg[k].kind == KX_A_ATFD)
				a[k] = (uint32_t)a[k] < 3 ? (uint64_t)-1 : a[k];
			else if (r->arg[k].kind >= KX_A_OUT && r->arg[k].kind <= KX_A_PTR && a[k] > 4096)
				a[k] = values[rnd() % nr_values];
		one(r, a, in_pvm && (rnd() & 1) ? by_port : by_syscall);
	}
	puts("ok random arguments");
	/* Numbers that no row names (0x80000000 and up: other personalities of the system call table) */
	for (unsigned nr = 470; nr < 1024; nr++) {
		errno = 0;
		if (syscall(nr, 1, 2, 3, 4, 5, 6) != -1 || errno != ENOSYS)
			return puts("FAIL unknown number"), 4;
	}
	puts("ok unknown numbers are ENOSYS");
	for (int i = 0; i < 3 * 4096; i++)
		if (canary[i] != 0xa5)
			return puts("FAIL canary"), 2;
	puts("ok memory that no call named is as it was");
	pthread_t t;
	void *ret;
	if (pthread_create(&t, NULL, thread, canary) || pthread_join(t, &ret) || ret != canary + 1)
		return puts("FAIL thread"), 3;
	signal(SIGUSR1, on_usr1);
	raise(SIGUSR1);
	if (got != SIGUSR1)
		return puts("FAIL signal"), 5;
	pid_t p = fork();
	int st;
	if (p == 0)
		_exit(9);
	if (p < 0 || waitpid(p, &st, 0) != p || WEXITSTATUS(st) != 9)
		return puts("FAIL fork"), 6;
	puts("ok threads, signals and processes work on");
	puts("SUCCESS");
	return 0;
}
