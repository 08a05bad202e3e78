/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storm DIR: threads that use the library, fork children that use it, exec, load and unload another library, and map and
 * unmap memory, all the time. A line on standard input: how much was done since the last one, and "ok".
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int version(void);
int through_table(int x);
long push(int v);

static volatile long done[5], bad;
static char other[512];

static void *uses(void *arg)
{
	for (;;) {
		int v = version();
		bad |= (v != 1 && v != 2) || through_table(3) != 9;
		done[0]++;
	}
	return arg;
}

static void *forks(void *arg)
{
	for (;;) {
		int status = -1;
		pid_t p = fork();
		if (!p) {
			int v = version();
			_exit(v > 0 && v < 3 && through_table(2) == 6 && push(1) > 0 ? 0 : 1);
		}
		bad |= p < 0 || waitpid(p, &status, 0) != p || status ? 2 : 0;
		done[1]++;
	}
	return arg;
}

static void *execs(void *arg)
{
	for (;;) {
		int status = -1;
		pid_t p = vfork();
		if (!p) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		bad |= p < 0 || waitpid(p, &status, 0) != p || status ? 4 : 0;
		done[2]++;
		usleep(2000);
	}
	return arg;
}

static void *loads(void *arg)
{
	for (;;) {
		void *h = dlopen(other, RTLD_NOW);
		long (*look)(void) = h ? (long (*)(void))dlsym(h, "other") : NULL;
		bad |= !look || look() != 42 || dlclose(h) ? 8 : 0;
		done[3]++;
		usleep(500);
	}
	return arg;
}

static void *maps(void *arg)
{
	for (;;) {
		size_t n = 65536 + (size_t)(done[4] % 7) * 4096;
		char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		bad |= p == MAP_FAILED ? 16 : 0;
		memset(p, 1, n);
		munmap(p, n);
		done[4]++;
	}
	return arg;
}

int main(int argc, char **argv)
{
	void *(*const all[])(void *) = { uses, forks, execs, loads, maps };
	char line[16];
	pthread_t t;
	snprintf(other, sizeof other, "%s/other.so", argc > 1 ? argv[1] : ".");
	for (int i = 0; i < 5; i++)
		pthread_create(&t, NULL, all[i], NULL);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		printf("%d", version());
		for (int i = 0; i < 5; i++)
			printf(" %ld", done[i]);
		if (bad)
			printf(" bad %ld\n", bad);
		else
			printf(" ok\n");
		fflush(stdout);
	}
	_exit(0);
}
