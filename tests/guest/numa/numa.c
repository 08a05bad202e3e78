/* SPDX-License-Identifier: Apache-2.0 */
/* Memory policies, as natively. Each check has an exit code of its own, from 1. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int step;

static void check(int good, const char *name)
{
	step++;
	if (!good) {
		printf("FAILED %s (%d): %s\n", name, step, strerror(errno));
		fflush(stdout);
		_exit(step);
	}
	printf("ok %s\n", name);
}

static long get(int *mode, void *nodes, unsigned long max, void *addr, unsigned long flags)
{
	errno = 0;
	return syscall(SYS_get_mempolicy, mode, nodes, max, addr, flags);
}

static long bind_(void *addr, unsigned long len, int mode, void *nodes, unsigned long max, unsigned flags)
{
	errno = 0;
	return syscall(SYS_mbind, addr, len, mode, nodes, max, flags);
}

static long set(int mode, void *nodes, unsigned long max)
{
	errno = 0;
	return syscall(SYS_set_mempolicy, mode, nodes, max);
}

int main(int argc, char **argv)
{
	unsigned long nodes[16] = { 0 }, zero[16] = { 0 };
	int mode = -1, st;
	if (argc > 1)
		return get(&mode, NULL, 0, NULL, 0) == 0 && mode == MPOL_INTERLEAVE ? 9 : 1;
	if (get(NULL, NULL, 0, NULL, 0) && errno == ENOSYS) {
		puts("a kernel without memory policies");
		return 77;
	}
	check(get(&mode, NULL, 0, NULL, 0) == 0 && mode == MPOL_DEFAULT, "the policy is the default");
	check(get(NULL, nodes, 1024, NULL, MPOL_F_MEMS_ALLOWED) == 0 && nodes[0] & 1, "nodes allowed");
	check(get(NULL, nodes, 1 << 20, NULL, MPOL_F_MEMS_ALLOWED) == -1 && errno == EINVAL, "too large a set");
	check(get(&mode, NULL, 0, nodes, 0) == -1 && errno == EINVAL, "an address without its flag");
	check(get(&mode, NULL, 0, NULL, MPOL_F_ADDR) == -1 && errno == EFAULT, "nothing at an address");
	check(get((int *)8, NULL, 0, NULL, 0) == -1 && errno == EFAULT, "no room for the mode");
	char *p = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p[0] = 1;
	mode = -1;
	check(get(&mode, NULL, 0, p, MPOL_F_ADDR | MPOL_F_NODE) == 0 && mode >= 0 && mode < 1024, "node of a page");
	zero[0] = 1;
	check(bind_(p, 1 << 20, MPOL_BIND, zero, 1024, 0) == 0, "mbind");
	memset(p, 1, 1 << 20);
	mode = -1;
	memset(nodes, 0, sizeof nodes);
	check(get(&mode, nodes, 1024, p + 4096, MPOL_F_ADDR) == 0 && mode == MPOL_BIND && nodes[0] == 1, "its policy");
	check(get(&mode, NULL, 0, p + (1 << 20), MPOL_F_ADDR) == 0 && mode == MPOL_DEFAULT, "the policy behind it");
	check(bind_(p + 1, 4096, MPOL_BIND, zero, 1024, 0) == -1 && errno == EINVAL, "mbind between pages");
	check(bind_(p, -1ul, MPOL_BIND, zero, 1024, 0) == 0, "mbind of everything: a length that wraps to 0");
	check(bind_(p, -(1ul << 20), MPOL_BIND, zero, 1024, 0) == -1 && errno == EINVAL, "mbind, an end that wraps");
	check(bind_(p, 1ul << 50, MPOL_BIND, zero, 1024, 0) == -1 && errno == EFAULT, "mbind beyond all addresses");
	check(bind_(p, 4096, 77, zero, 1024, 0) == -1 && errno == EINVAL, "mbind, no such policy");
	check(munmap(p + 4096, 4096) == 0 && bind_(p, 16384, MPOL_BIND, zero, 1024, 0) == -1 && errno == EFAULT,
	      "mbind over a hole");
	check(set(MPOL_BIND, (void *)8, 1024) == -1 && errno == EFAULT, "set_mempolicy, no set");
	check(set(MPOL_INTERLEAVE, zero, 1024) == 0 && get(&mode, NULL, 0, NULL, 0) == 0 && mode == MPOL_INTERLEAVE,
	      "set_mempolicy");
	pid_t child = fork();
	if (!child) {
		execl("/proc/self/exe", argv[0], "child", NULL);
		_exit(1);
	}
	check(waitpid(child, &st, 0) == child && WIFEXITED(st) && WEXITSTATUS(st) == 9, "inherited, also across exec");
	check(set(MPOL_DEFAULT, NULL, 0) == 0 && get(&mode, NULL, 0, NULL, 0) == 0 && mode == MPOL_DEFAULT, "back");
	puts("SUCCESS");
	return 0;
}
