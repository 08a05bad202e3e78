/* SPDX-License-Identifier: Apache-2.0 */
/* Checks that are counted. The exit code of a test is first_failure: 0, or 1 + the number of the first check that failed
 * (at most 120). */
#ifndef KX_GUEST_COUNTED_H
#define KX_GUEST_COUNTED_H
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int checks, first_failure;

static inline void check_line(bool ok, const char *name, int line)
{
	checks++;
	if (ok) {
		printf("ok %s\n", name);
	} else {
		printf("FAIL %s (line %d, errno %d %s)\n", name, line, errno, strerror(errno));
		if (!first_failure)
			first_failure = checks < 120 ? 1 + checks : 120;
	}
	fflush(stdout);
}
#define check(ok, name) check_line(ok, name, __LINE__)
/* r is the result of a call that must fail with e. */
#define fails(r, e, name) check((r) == -1 && errno == (e), name)

/* Never mapped; volatile, so that the compiler does not warn of it. */
static void *volatile bad_address = (void *)8;
#define BAD bad_address
#endif
