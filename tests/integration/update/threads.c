/* SPDX-License-Identifier: Apache-2.0 */
/* Several threads use the library all the time and check every answer. Each line: which version they all have seen last. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int version(void);
int gone(void);
int through_table(int x);
long thread_bump(void);

#define THREADS 4
static volatile int stop, seen[THREADS];
static long total;

static void fail(const char *what, long got)
{
	printf("wrong: %s: %ld\n", what, got);
	exit(1);
}

static void *work(void *arg)
{
	long n = 0;
	while (!stop) {
		int v = version(), g = gone(), t = through_table(3);
		long b = thread_bump();
		if (v != 1 && v != 2)
			fail("version", v);
		if (g != 1 && g != 2)
			fail("gone", g);
		if (t != 9)
			fail("table", t);
		if (b != 2 * n + 8)
			fail("thread-local storage", b);
		n++;
		seen[(long)arg] = v;
		if ((long)arg & 1 && n % 1000 == 0)
			usleep(500);
	}
	__atomic_add_fetch(&total, n, __ATOMIC_SEQ_CST);
	return NULL;
}

int main(void)
{
	pthread_t t[THREADS];
	char line[16];
	for (long i = 0; i < THREADS; i++)
		pthread_create(&t[i], NULL, work, (void *)i);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int all = seen[0];
		for (int i = 1; i < THREADS; i++)
			all = seen[i] == all ? all : 0;
		printf("all see %d\n", all);
		fflush(stdout);
	}
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	printf("ok\n");
	return total < 100;
}
