/* SPDX-License-Identifier: Apache-2.0 */
/* threads.c: microseconds for a thread to be made and joined, and until it runs. Medians. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "bench.h"

#define ROUNDS 101

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
	printf("thread_runs %.2f\nthread_create_join %.2f\n", median(run, ROUNDS), median(join, ROUNDS));
	return 0;
}
