/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork.c [MiB...]: fork with so much memory written before: microseconds until the parent goes on, until the child runs
 * its first instructions, until it has ended and was waited for. Medians; one "name us" line each. Run natively and in
 * a pVM by bench/run.py.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define ROUNDS 41

static void run(size_t mib, double *child_at)
{
	size_t size = mib << 20;
	char *p = size ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL;
	double parent[ROUNDS], child[ROUNDS], all[ROUNDS];
	int rounds = mib > 200 ? 9 : ROUNDS;
	for (int i = -1; i < rounds; i++) {
		for (size_t k = 0; k < size; k += 4096)
			p[k]++;
		usleep(2000); /* what the last child left to be cleaned up */
		double a = now();
		pid_t pid = fork();
		double b = now();
		if (pid == 0) {
			*child_at = b;
			_exit(0);
		}
		waitpid(pid, NULL, 0);
		if (i < 0)
			continue;
		parent[i] = b - a;
		child[i] = *child_at - a;
		all[i] = now() - a;
	}
	printf("fork_%zum_parent %.1f\nfork_%zum_child %.1f\nfork_%zum_exit_wait %.1f\n", mib, median(parent, rounds),
	       mib, median(child, rounds), mib, median(all, rounds));
	fflush(stdout);
	if (size)
		munmap(p, size);
}

int main(int argc, char **argv)
{
	double *child_at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (argc < 2)
		run(0, child_at);
	for (int i = 1; i < argc; i++)
		run(atoi(argv[i]), child_at);
	return 0;
}
