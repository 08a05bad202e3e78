/* SPDX-License-Identifier: Apache-2.0 */
/* Children that a test waits for. */
#ifndef KX_GUEST_CHILDREN_H
#define KX_GUEST_CHILDREN_H
#include <errno.h>
#include <stdbool.h>
#include <sys/wait.h>

/* As waitpid(2) tells it; -1: there is no such child. */
static inline int status_of(pid_t p)
{
	int st = -1;
	pid_t r;
	while ((r = waitpid(p, &st, 0)) < 0 && errno == EINTR)
		;
	return r == p ? st : -1;
}
static inline bool fine(pid_t p) { return p > 0 && status_of(p) == 0; }
#endif
