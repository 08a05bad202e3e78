/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of files and of descriptors share: they pass on any Linux with a writable /tmp (or $TMPDIR), work in a directory of
 * their own and remove it. The exit status of a failure is the number of the group of tests, from 10.
 */
#ifndef KX_GUEST_SCRATCH_H
#define KX_GUEST_SCRATCH_H
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BAD ((void *)8) /* page 0 is never mapped */
#define CHECK(x) check((x), #x, __LINE__)
#define FAILS(x, err) fails((long)(x), (err), #x, __LINE__)

static char dir[PATH_MAX];
static int status;
static const char *group;

static inline int clean_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st, (void)type, (void)at;
	return remove(path);
}

static inline void clean(void)
{
	if (chdir("/") || nftw(dir, clean_one, 16, FTW_DEPTH | FTW_PHYS))
		printf("could not remove %s\n", dir);
}

static inline void fail(const char *what, int line)
{
	printf("FAIL %s: line %d: %s (errno %d, %s)\n", group, line, what, errno, strerror(errno));
	fflush(stdout);
	clean();
	_exit(status);
}

static inline void check(bool ok, const char *what, int line)
{
	if (!ok)
		fail(what, line);
}

static inline void fails(long r, int err, const char *what, int line)
{
	if (r != -1 || errno != err) {
		printf("result %ld, wanted errno %d\n", r, err);
		fail(what, line);
	}
}

static inline void skip(const char *what) { printf("skip %s: %s\n", what, strerror(errno)); }

static inline void sleep_ms(int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static inline int make(const char *name, const char *text)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);

	CHECK(fd >= 0);
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	return fd;
}

static inline bool holds(const char *name, const char *text)
{
	char buf[256];
	int fd = open(name, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof buf);

	if (fd >= 0)
		close(fd);
	return n == (ssize_t)strlen(text) && !memcmp(buf, text, n);
}

static inline int next_fd(void)
{
	int fd = dup(0);

	CHECK(fd >= 0);
	close(fd);
	return fd;
}

/* Runs fn(arg) in a thread; finished() says within a time whether it came back. */
struct job {
	pthread_t thread;
	long (*fn)(long);
	long arg, ret;
	int err, done;
};

static inline void *job_main(void *p)
{
	struct job *j = p;

	j->ret = j->fn(j->arg);
	j->err = errno;
	__atomic_store_n(&j->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static inline void job_start(struct job *j, long (*fn)(long), long arg)
{
	*j = (struct job){ .fn = fn, .arg = arg };
	CHECK(pthread_create(&j->thread, NULL, job_main, j) == 0);
}

static inline bool job_waits(struct job *j)
{
	sleep_ms(30);
	return !__atomic_load_n(&j->done, __ATOMIC_ACQUIRE);
}

static inline long job_end(struct job *j)
{
	CHECK(pthread_join(j->thread, NULL) == 0);
	errno = j->err;
	return j->ret;
}

struct group {
	const char *name;
	void (*fn)(void);
};

/* Runs them in a directory of their own, NAME.*, and ends the program. */
static inline void groups_run(const struct group *tests, size_t n, const char *name)
{
	const char *tmp = getenv("TMPDIR");
	char template[PATH_MAX];

	snprintf(template, sizeof template, "%s/%s.XXXXXX", tmp && *tmp ? tmp : "/tmp", name);
	if (!mkdtemp(template) || !realpath(template, dir) || chdir(dir)) {
		perror(template);
		exit(1);
	}
	for (size_t i = 0; i < n; i++) {
		group = tests[i].name;
		status = 10 + (int)i;
		tests[i].fn();
		printf("ok %s\n", group);
		fflush(stdout);
	}
	clean();
	puts("SUCCESS");
	exit(0);
}
#endif
