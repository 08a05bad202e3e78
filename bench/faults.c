/* SPDX-License-Identifier: Apache-2.0 */
/*
 * faults.c: nanoseconds per 4 KiB of memory that is touched first, or written first after a fork, in 4 KiB and in 2 MiB
 * pages. Medians of rounds; one "name ns" line each.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define ROUNDS 7
#define SIZE (16ul << 20)
#define HUGE_SIZE (2ul << 20)

static void report(const char *name, double *v) { printf("%s %.1f\n", name, median(v, ROUNDS)); }

static char *map(int advice)
{
	char *p = mmap(NULL, SIZE + HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *q = (char *)(((uintptr_t)p + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1));
	madvise(q, SIZE, advice);
	return q;
}

static double touch(char *p)
{
	double a = now();
	for (size_t i = 0; i < SIZE; i += 4096)
		p[i]++;
	return (now() - a) * 1e3 / (SIZE / 4096);
}

static void run(int advice, const char *first_name, const char *cow_name)
{
	double first[ROUNDS], cow[ROUNDS];
	double *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < ROUNDS; i++) {
		char *p = map(advice);
		first[i] = touch(p);
		pid_t pid = fork();
		if (!pid) {
			*shared = touch(p);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
		cow[i] = *shared;
		munmap(p, SIZE);
	}
	report(first_name, first);
	report(cow_name, cow);
}

int main(void)
{
	run(MADV_NOHUGEPAGE, "first_touch_4k", "cow_4k");
	run(MADV_HUGEPAGE, "first_touch_2m", "cow_2m");
	return 0;
}
