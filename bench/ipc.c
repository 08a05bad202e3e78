/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two processes and pipes: round trip of one byte (median and 99th percentile), and how much goes through by writes of
 * 64 bytes, 4 KiB and 64 KiB (MB/s, best of five). "name value" lines. With `one`, on one CPU. Run natively and in a
 * pVM by bench/run.py.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define TRIPS 2000

static cpu_set_t all;

/* The n-th CPU that the process may use, or any. */
static void pin(int n)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &all) && n-- == 0)
			CPU_SET(i, &one);
	if (CPU_COUNT(&one))
		sched_setaffinity(0, sizeof one, &one);
}

static void round_trip(const char *suffix, int cpu)
{
	static double v[TRIPS];
	int a[2], b[2];
	char c = 0;
	if (pipe(a) || pipe(b))
		exit(1);
	pid_t p = fork();
	if (p == 0) {
		pin(cpu);
		close(a[1]);
		while (read(a[0], &c, 1) == 1 && write(b[1], &c, 1) == 1)
			;
		_exit(0);
	}
	for (int i = -200; i < TRIPS; i++) {
		double t = now();
		if (write(a[1], &c, 1) != 1 || read(b[0], &c, 1) != 1)
			exit(1);
		if (i >= 0)
			v[i] = now() - t;
	}
	close(a[1]);
	waitpid(p, NULL, 0);
	close(a[0]), close(b[0]), close(b[1]);
	qsort(v, TRIPS, sizeof *v, cmp);
	printf("round_trip%s %.2f\nround_trip_p99%s %.2f\n", suffix, v[TRIPS / 2], suffix, v[TRIPS * 99 / 100]);
	fflush(stdout);
}

static void throughput(size_t size, const char *suffix, int cpu)
{
	static char buf[65536];
	double best = 0;
	size_t total = size < 4096 ? 4 << 20 : 64 << 20;
	for (int round = 0; round < 5; round++) {
		int a[2];
		if (pipe(a))
			exit(1);
		pid_t p = fork();
		if (p == 0) {
			pin(cpu);
			close(a[0]);
			for (size_t n = 0; n < total; n += size)
				if (write(a[1], buf, size) != (ssize_t)size)
					_exit(1);
			_exit(0);
		}
		close(a[1]);
		size_t n = 0;
		double t = 0;
		for (ssize_t r; (r = read(a[0], buf, sizeof buf)) > 0; n += r)
			t = t ? t : now();
		t = now() - t;
		best = n / t > best ? n / t : best;
		waitpid(p, NULL, 0);
		close(a[0]);
	}
	printf("mb_per_s_%zu%s %.1f\n", size, suffix, best);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int one = argc > 1 && !strcmp(argv[1], "one");
	const char *suffix = one ? "_one_cpu" : "";
	sched_getaffinity(0, sizeof all, &all);
	pin(0);
	round_trip(suffix, !one);
	throughput(64, suffix, !one);
	throughput(4096, suffix, !one);
	throughput(65536, suffix, !one);
	return argc < 0;
}
