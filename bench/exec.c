/* SPDX-License-Identifier: Apache-2.0 */
/* exec.c: microseconds for /bin/true to be started and waited for, by fork and by vfork. Medians. */
#define _GNU_SOURCE
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 15

extern char **environ;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int cmp(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

int main(void)
{
	char *argv[] = { "/bin/true", NULL };
	double by_fork[ROUNDS], by_vfork[ROUNDS];
	for (int i = 0; i < ROUNDS; i++) {
		pid_t pid;
		int status = -1;
		double a = now();
		if (!(pid = fork())) {
			execv(argv[0], argv);
			_exit(127);
		}
		if (waitpid(pid, &status, 0) != pid || status)
			return 1;
		by_fork[i] = now() - a;
		a = now();
		if (posix_spawn(&pid, argv[0], NULL, NULL, argv, environ) || waitpid(pid, &status, 0) != pid || status)
			return 1;
		by_vfork[i] = now() - a;
	}
	qsort(by_fork, ROUNDS, sizeof *by_fork, cmp);
	qsort(by_vfork, ROUNDS, sizeof *by_vfork, cmp);
	printf("fork_exec_wait %.1f\nspawn_wait %.1f\n", by_fork[ROUNDS / 2], by_vfork[ROUNDS / 2]);
	return 0;
}
