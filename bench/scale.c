/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scale.c fds|threads N...: microseconds that fork() takes the parent, and until the child was waited for, with N
 * descriptors open or N more threads asleep. Medians; one "name us" line each.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define ROUNDS 15

static void *asleep(void *p)
{
	pause();
	return p;
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	struct rlimit r;
	int have = 0;
	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
	for (int i = 2; i < argc; i++) {
		pthread_t t;
		for (; have < atoi(argv[i]); have++)
			if (!strcmp(kind, "threads") ? pthread_create(&t, NULL, asleep, NULL)
						     : open("/dev/null", O_RDONLY) < 0)
				return 1;
		double parent[ROUNDS], all[ROUNDS];
		for (int k = 0; k < ROUNDS; k++) {
			double a = now();
			pid_t pid = fork();
			double b = now();
			if (!pid)
				_exit(0);
			waitpid(pid, NULL, 0);
			parent[k] = b - a;
			all[k] = now() - a;
		}
		printf("fork_parent_%s_%d %.1f\nfork_wait_%s_%d %.1f\n", kind, have, median(parent, ROUNDS), kind, have,
		       median(all, ROUNDS));
	}
	fflush(stdout);
	_exit(0);
}
