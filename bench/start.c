/* SPDX-License-Identifier: Apache-2.0 */
/* start.c [SECONDS [CHILDREN]]: prints CLOCK_MONOTONIC in ns as it is when main() begins, forks, and sleeps. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	if (argc > 2)
		for (int i = atoi(argv[2]); i; i--) {
			pid_t pid = fork();
			if (pid < 0)
				return 2;
			if (!pid) {
				sleep(atoi(argv[1]));
				_exit(0);
			}
		}
	printf("main_ns %lld\n", t.tv_sec * 1000000000ll + t.tv_nsec);
	fflush(stdout);
	if (argc > 1)
		sleep(atoi(argv[1]));
	return 0;
}
