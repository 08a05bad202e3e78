/* SPDX-License-Identifier: Apache-2.0 */
/* Lines that say what calls have returned, for tests whose output in a pVM is compared with that of Linux. */
#ifndef KX_GUEST_TOLD_H
#define KX_GUEST_TOLD_H
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* value, or the error's name */
static inline void line(const char *what, long r)
{
	int e = errno;
	if (r == -1)
		printf("%s: -1 %s\n", what, strerrorname_np(e));
	else
		printf("%s: %ld\n", what, r);
	fflush(stdout);
}
#define R(expr) (errno = 0, line(#expr, (long)(expr)))
#define SECTION(name) printf("\n== %s\n", name), fflush(stdout)

/* A child that runs these statements and exits with 0, within so many seconds. */
#ifndef CHILD_SECONDS
#define CHILD_SECONDS 400
#endif
#define CHILD(...) \
	({ \
		fflush(stdout); \
		pid_t p_ = fork(); \
		if (p_ < 0) \
			exit(1); \
		if (!p_) { \
			alarm(CHILD_SECONDS); \
			__VA_ARGS__; \
			fflush(stdout); \
			_exit(0); \
		} \
		p_; \
	})
#endif
