/* SPDX-License-Identifier: Apache-2.0 */
/* start.c [SECONDS]: prints CLOCK_MONOTONIC in ns as it is when main() begins, and sleeps. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	printf("main_ns %lld\n", t.tv_sec * 1000000000ll + t.tv_nsec);
	fflush(stdout);
	if (argc > 1)
		sleep(atoi(argv[1]));
	return 0;
}
