/* SPDX-License-Identifier: Apache-2.0 */
/* exec.c: microseconds for /bin/true to be started and waited for, by fork and by vfork. Medians. */
#define _GNU_SOURCE
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define ROUNDS 15

extern char **environ;

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
	printf("fork_exec_wait %.1f\nspawn_wait %.1f\n", median(by_fork, ROUNDS), median(by_vfork, ROUNDS));
	return 0;
}
