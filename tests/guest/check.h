/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of processes share. The exit status of a test is the number of the first check that failed. */
#ifndef KX_GUEST_CHECK_H
#define KX_GUEST_CHECK_H
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int step, first_failed;

static inline void check_at(bool good, const char *name, int line)
{
	int e = errno;
	step++;
	if (good) {
		printf("ok %s\n", name);
		fflush(stdout);
		return;
	}
	printf("FAILED %s (%d, line %d): %s\n", name, step, line, strerror(e));
	fflush(stdout);
	if (!first_failed)
		first_failed = step > 250 ? 250 : step;
}
#define check(good, name) check_at(good, name, __LINE__)

static int named;

/* Whether the arguments name this group of checks; without arguments it is any. */
static inline bool is_wanted(int argc, char **argv, const char *name)
{
	bool wanted = argc < 2;
	for (int i = 1; i < argc; i++) {
		wanted = wanted || !strcmp(argv[i], name);
		named += !strcmp(argv[i], name);
	}
	return wanted;
}

/* After the last group. */
static inline void check_named(int argc)
{
	if (argc > 1 && named < argc - 1)
		check(false, "an argument that names no group");
}

/* At the end of main(). */
static inline int verdict(void)
{
	if (first_failed)
		printf("FAILED, first check %d\n", first_failed);
	else
		puts("SUCCESS");
	return first_failed;
}

static inline void ms(int n)
{
	struct timespec ts = { n / 1000, n % 1000 * 1000000l };
	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

/* In a child: say where, and end. */
#define NEED(c) \
	do { \
		if (!(c)) { \
			dprintf(2, "line %d: %s: %s\n", __LINE__, #c, strerror(errno)); \
			_exit(99); \
		} \
	} while (0)

/* The pid of a child that does this and ends with FORK_STATUS. */
#ifndef FORK_STATUS
#define FORK_STATUS 0
#endif
#define FORK(...) \
	({ \
		fflush(stdout); \
		pid_t p_ = fork(); \
		if (p_ == 0) { \
			__VA_ARGS__; \
			_exit(FORK_STATUS); \
		} \
		p_; \
	})
#endif
