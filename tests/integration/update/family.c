/* SPDX-License-Identifier: Apache-2.0 */
/*
 * family N FORKS: N children look at the library's version all the time. Shared by all is the number of changes that any
 * of them has seen; who sees another version than goes with that number has seen the next change. If one goes on with the
 * old version after another one has seen the new, the number gets too large. FORKS: children make short-lived ones.
 * Commands: e: that number. l N: child N stays inside the library for ever. k N: it is killed. a: how many are alive.
 */
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX 32

int version(void);
long call(void);
int through_table(int x);
int with_callback(int (*f)(int), int x);

static struct {
	atomic_long changes;
	atomic_int inside[MAX];
	atomic_int bad;
} * shared;

static int forever(int n)
{
	shared->inside[n] = 2;
	for (;;)
		pause();
}

static void look(void)
{
	long seen = shared->changes;
	if (version() != 1 + seen % 2)
		atomic_compare_exchange_strong(&shared->changes, &seen, seen + 1);
	if (through_table(1) != 3)
		shared->bad = 1;
}

static void child(int n, int forks)
{
	for (long i = 1;; i++) {
		look();
		if (forks && i % 200 == 0) {
			pid_t p = fork();
			if (!p) {
				for (int k = 0; k < 20 + n * 10; k++) {
					look();
					usleep(200);
				}
				_exit(0);
			}
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
		}
		if (shared->inside[n])
			with_callback(forever, n);
		usleep(200);
	}
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 2, forks = argc > 2 ? atoi(argv[2]) : 0, alive;
	char line[32];
	pid_t pid[MAX];
	setvbuf(stdout, NULL, _IOLBF, 0);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < n; i++)
		if (!(pid[i] = fork()))
			child(i, forks);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		int k = atoi(line + 1);
		switch (*line) {
		case 'e':
			printf("%ld %s\n", (long)shared->changes, shared->bad ? "bad" : "ok");
			break;
		case 'v':
			printf("%d\n", version());
			break;
		case 'l':
			shared->inside[k] = 1;
			while (shared->inside[k] != 2)
				usleep(1000);
			printf("inside %d\n", pid[k]);
			break;
		case 'k':
			kill(pid[k], SIGKILL);
			printf("killed\n");
			break;
		case 'a':
			for (int i = alive = 0; i < n; i++)
				alive += !kill(pid[i], 0) && waitpid(pid[i], NULL, WNOHANG) == 0;
			printf("%d\n", alive);
			break;
		}
	}
	for (int i = 0; i < n; i++)
		kill(pid[i], SIGKILL);
	while (wait(NULL) > 0)
		;
	return 0;
}
