/* SPDX-License-Identifier: Apache-2.0 */
/* A library whose hook makes children: between the preparation of an update and the change the program's memory is laid out
 * anew for the sake of its forks. */
#include <kylinx.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 12

static int good = 1;

int version(void) { return V; }
int children_are_good(void) { return good; }

void *kylinx_update_prepare(void)
{
	for (int i = 0; i < CHILDREN; i++) {
		int status = -1;
		pid_t p = fork();
		if (!p)
			_exit(version());
		if (p < 0 || waitpid(p, &status, 0) != p || !WIFEXITED(status) || WEXITSTATUS(status) != V)
			good = 0;
	}
	return &good;
}

int kylinx_update_commit(void *from)
{
	good = *(int *)from;
	return 0;
}
