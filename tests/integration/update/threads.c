/* SPDX-License-Identifier: Apache-2.0 */
/* threads SECONDS: several threads use the library all the time and check every answer. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int version(void);
int gone(void);
int through_table(int x);
long thread_bump(void);

static volatile int stop;
static int changes;
static long total;

static void fail(const char *what, long got)
{
	printf("wrong: %s: %ld\n", what, got);
	exit(1);
}

static void *work(void *arg)
{
	int last = 0, first = 0;
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
		if (v != last)
			__atomic_add_fetch(&changes, first, __ATOMIC_SEQ_CST);
		first = 1;
		last = v;
		if (arg && n % 1000 == 0)
			usleep(500);
	}
	__atomic_add_fetch(&total, n, __ATOMIC_SEQ_CST);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t[4];
	(void)argc;
	for (long i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, work, (void *)(i & 1));
	printf("ready\n");
	fflush(stdout);
	for (time_t end = time(NULL) + atoi(argv[1]); time(NULL) < end;)
		if (getppid() == 1 || (getchar(), 1))
			break;
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	printf("changes %d\nok\n", changes);
	return total < 100;
}
