/* SPDX-License-Identifier: Apache-2.0 */
/* Library N of version V; needs what it is linked with. Text and data say which version it is. */
#ifdef HOOK
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#endif
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)

int CAT(data, N)[100] = { V };
static int *CAT(table, N)[20] = { CAT(data, N), CAT(data, N) + 1 };
int CAT(f, N)(int x) { return CAT(table, N)[x & 1][0] == V ? V * 1000 + N : -1; }

#ifdef HOOK
static void *body(void *arg) { return arg; }

/* A constructor that opens a file and leaves it open, starts a thread, a process. */
__attribute__((constructor)) static void hook(void)
{
	pthread_t t;
	int fd = open("/dev/null", O_RDONLY);
	printf("constructor: opened %d\n", fd);
	fflush(stdout);
	if (HOOK == 1)
		return;
	if (HOOK == 2 && !pthread_create(&t, NULL, body, NULL))
		pthread_join(t, NULL);
	if (HOOK == 3) {
		pid_t p = fork();
		if (!p) {
			int next = dup(0);
			printf("child: next %d\n", next);
			fflush(stdout);
			_exit(0);
		}
		waitpid(p, NULL, 0);
	}
}
#endif
