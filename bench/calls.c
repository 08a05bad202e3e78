/* SPDX-License-Identifier: Apache-2.0 */
/* Nanoseconds per operation, best of nine rounds: one "name ns" line each. Run natively and in a pVM by bench/run.py. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

#define BENCH(name, n, ...) \
	do { \
		double best = 1e18; \
		for (int round = 0; round < 9; round++) { \
			double a = now(); \
			for (int i = 0; i < (n); i++) { \
				__VA_ARGS__; \
			} \
			double t = (now() - a) / (n); \
			best = t < best ? t : best; \
		} \
		printf("%s %.1f\n", name, best); \
	} while (0)

static void nothing(int sig) { (void)sig; }

int main(void)
{
	struct timespec t;
	/* mov $39,%eax; syscall; ret, in memory that nobody patches */
	unsigned char *slow = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(slow, "\xb8\x27\0\0\0\x0f\x05\xc3", 8);
	BENCH("getpid_syscall", 200000, syscall(SYS_getpid));
	BENCH("clock_gettime", 1000000, clock_gettime(CLOCK_MONOTONIC, &t));
	BENCH("getpid_unpatched", 1000, ((int (*)(void))slow)());
	BENCH("getpgid_host", 2000, getpgid(0));
	int zero = open("/dev/zero", O_RDONLY), p[2];
	char c;
	BENCH("read_dev_zero", 1000, if (read(zero, &c, 1) != 1) return 1);
	if (pipe(p))
		return 1;
	BENCH("pipe_1_byte", 500, if (write(p[1], "x", 1) != 1 || read(p[0], &c, 1) != 1) return 1);
	BENCH("mmap_munmap_64k", 200, munmap(mmap(NULL, 65536, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 65536));
	signal(SIGUSR1, nothing);
	BENCH("signal_to_self", 500, raise(SIGUSR1));
	BENCH("fork_exit_wait", 10, {
		pid_t p = fork();
		if (!p)
			_exit(0);
		waitpid(p, NULL, 0);
	});
	BENCH("vfork_exit_wait", 10, {
		pid_t p = vfork();
		if (!p)
			_exit(0);
		waitpid(p, NULL, 0);
	});
	return 0;
}
