/* SPDX-License-Identifier: Apache-2.0 */
/* exit_group by one thread while another joins it: the joiner must not see it end and give its own status. */
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void *end(void *arg)
{
	usleep(500);
	_exit(4);
	return arg;
}

int main(void)
{
	for (int i = 0; i < 60; i++) {
		pid_t p = fork();
		if (p == 0) {
			pthread_t t;
			pthread_create(&t, NULL, end, NULL);
			pthread_join(t, NULL);
			_exit(0);
		}
		int st;
		if (p < 0 || waitpid(p, &st, 0) != p || !WIFEXITED(st) || WEXITSTATUS(st) != 4) {
			printf("FAIL round %d\n", i);
			return 1;
		}
	}
	puts("ok the status is that of exit_group");
	puts("SUCCESS");
	return 0;
}
