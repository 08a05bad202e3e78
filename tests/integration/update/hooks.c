/* SPDX-License-Identifier: Apache-2.0 */
/* One answer for each line: what the library of hooked.c says. A second thread allocates memory all the time. */
#include <kylinx.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int version(void);
int picked(void);
long count(void);
const char *text(void);
int times_constructed(void);
int times_aborted(void);
int plain(int x);

static void *allocate(void *arg)
{
	for (;;) {
		void *volatile p = malloc(300);
		free(p);
	}
	return arg;
}

int main(void)
{
	char line[64];
	pthread_t t;
	int (*kept)(int) = plain, (*told)(int) = plain;
	struct kylinx_stats s;
	int pvm = kylinx_is_pvm();
	if (kylinx_pointer_add((void **)&told) != (pvm ? 0 : -1) || kylinx_stats(&s, sizeof s) != (pvm ? 0 : -1))
		return 1;
	if (pvm && (s.threads != 1 || s.sites < 100))
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	pthread_create(&t, NULL, allocate, NULL);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		long c = *line == 'c' ? count() : 0;
		printf("v%d p%d %ld %s c%d a%d %d\n", version(), picked(), c, text(), times_constructed(),
		       times_aborted(), told(0));
		if (*line == 'k')
			printf("%d\n", kept(0));
	}
	return 0;
}
