/* SPDX-License-Identifier: Apache-2.0 */
/* Children that a test waits for. */
#ifndef KX_GUEST_CHILDREN_H
#define KX_GUEST_CHILDREN_H
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

/* As waitpid(2) tells it; -1: there is no such child. */
static inline int status_of(pid_t p)
{
	int st = -1;
	pid_t r;
	while ((r = waitpid(p, &st, 0)) < 0 && errno == EINTR)
		;
	return r == p ? st : -1;
}
/* There is none of that number, or soon. Who ends and need not be waited for is there yet when its parent is told. */
static inline bool is_gone(pid_t p)
{
	for (int i = 0; i < 5000; i++) {
		if (kill(p, 0) == -1)
			return errno == ESRCH;
		usleep(1000);
	}
	return false;
}
static inline bool fine(pid_t p) { return p > 0 && status_of(p) == 0; }
#endif
