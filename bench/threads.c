/* SPDX-License-Identifier: Apache-2.0 */
/* threads.c: microseconds for a thread to be made and joined, and until it runs. Medians. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ROUNDS 101

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

static void *body(void *at)
{
	*(double *)at = now();
	return NULL;
}

int main(void)
{
	double run[ROUNDS], join[ROUNDS];
	for (int i = 0; i < ROUNDS; i++) {
		pthread_t t;
		double at, a = now();
		if (pthread_create(&t, NULL, body, &at))
			return 1;
		pthread_join(t, NULL);
		join[i] = now() - a;
		run[i] = at - a;
	}
	qsort(run, ROUNDS, sizeof *run, cmp);
	qsort(join, ROUNDS, sizeof *join, cmp);
	printf("thread_runs %.2f\nthread_create_join %.2f\n", run[ROUNDS / 2], join[ROUNDS / 2]);
	return 0;
}
