/* SPDX-License-Identifier: Apache-2.0 */
/* One answer for each line: what the library of forking.c says, in a child, too. */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int version(void);
int children_are_good(void);

int main(void)
{
	char line[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		int status = -1;
		pid_t p = fork();
		if (!p)
			_exit(version());
		if (p < 0 || waitpid(p, &status, 0) != p)
			status = -1;
		printf("v%d child v%d %s\n", version(), WIFEXITED(status) ? WEXITSTATUS(status) : -1,
		       children_are_good() ? "good" : "bad");
	}
	return 0;
}
