/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libos_count.c LIBOS.BIN CALL N: the LibOS's image in an ordinary process, and N calls through its entry as a
 * trampoline makes them. Only calls that it answers itself. Run under a tool that counts instructions, with two
 * different N, it gives the instructions of a call (tests/integration/test_bench.py).
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../abi/kx_abi.h"

static long entry(long nr, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long ret;
	__asm__ volatile("lea 1f(%%rip), %%rcx\n\t"
			 "mov %%rcx, %%r11\n\t"
			 "jmp *%%gs:8\n"
			 "1:"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory", "cc");
	return ret;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	int fd = open(argv[1], O_RDONLY);
	if (fd < 0 || mmap((void *)KX_LIBOS_BASE, 4 << 20, PROT_READ | PROT_WRITE | PROT_EXEC,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)KX_LIBOS_BASE)
		return 2;
	if (read(fd, (void *)KX_LIBOS_BASE, KX_LIBOS_SIZE) <= 0)
		return 2;
	const struct kx_libos_header *header = (const void *)KX_LIBOS_BASE;
	struct kx_shared *shared = (void *)KX_BOOT_BASE;
	struct kx_thread *t = (void *)KX_AREA_BASE;
	if (header->magic != KX_LIBOS_MAGIC)
		return 2;
	shared->pid = shared->nr_threads = 1;
	t->self = KX_AREA_BASE;
	t->entry = header->entry;
	t->frame_top = KX_AREA_BASE + KX_AREA_SIZE;
	t->frame = t->frame_top - sizeof(struct kx_frame);
	t->pid = t->tid = 1;
	t->actions = KX_BOOT_BASE + offsetof(struct kx_shared, sigaction);
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, KX_AREA_BASE))
		return 2;
	/* What calls point to must be where a program's memory can be. */
	unsigned long *mem = mmap((void *)0x1000000000, 4096, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (mem == MAP_FAILED)
		return 2;
	mem[0] = 1ul << (SIGUSR1 - 1);
	const struct {
		const char *name;
		long nr, a, b, c, d;
	} calls[] = {
		{ "getpid", SYS_getpid, 0, 0, 0, 0 },
		{ "getuid", SYS_getuid, 0, 0, 0, 0 },
		{ "rt_sigprocmask", SYS_rt_sigprocmask, SIG_BLOCK, (long)mem, (long)(mem + 1), 8 },
		{ "sigaltstack", SYS_sigaltstack, 0, (long)(mem + 2), 0, 0 },
		{ "futex_wake", SYS_futex, (long)(mem + 8), 1 | 128, 1, 0 },
	};
	unsigned i = 0;
	while (i < sizeof calls / sizeof calls[0] && strcmp(calls[i].name, argv[2]))
		i++;
	if (i == sizeof calls / sizeof calls[0])
		return 2;
	long r = 0;
	for (long n = atol(argv[3]); n > 0 && r >= 0; n--)
		r = entry(calls[i].nr, calls[i].a, calls[i].b, calls[i].c, calls[i].d);
	return r < 0;
}
