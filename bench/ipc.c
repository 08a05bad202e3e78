/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ipc KIND [one]: two processes and what connects them: round trip of one byte (median and 99th percentile, in us), and
 * how much goes through by pieces of 64 bytes, 4 KiB and 64 KiB (MB/s, best of some). "name value" lines. With `one`, on
 * one CPU. Run natively and in a pVM by bench/run.py.
 */
#define _GNU_SOURCE
#include <mqueue.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define TRIPS 2000
#define WARM 200

static cpu_set_t all;

/* The n-th CPU that the process may use, or any. */
static void pin(int n)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &all) && n-- == 0)
			CPU_SET(i, &one);
	if (CPU_COUNT(&one))
		sched_setaffinity(0, sizeof one, &one);
}

/* ---- kinds: a way from parent to child (0), and one back (1) ---------------------------------------------------- */

static int fd[2][2]; /* by way: its reader's, its writer's */
static int id[2];
static mqd_t mq[2];
static struct {
	long type;
	char data[65536];
} msg;

static bool pipe_make(void) { return !pipe(fd[0]) && !pipe(fd[1]); }

static bool pair_make(void)
{
	int s[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s))
		return false;
	fd[0][1] = fd[1][0] = s[0];
	fd[1][1] = fd[0][0] = s[1];
	return true;
}

static void fd_end(void)
{
	for (int i = 0; i < 4; i++)
		close(fd[i / 2][i % 2]);
}

static bool fd_put(int way, const char *p, size_t n) { return write(fd[way][1], p, n) == (ssize_t)n; }
static ssize_t fd_get(int way, char *p, size_t n) { return read(fd[way][0], p, n); }

static bool msg_make(void)
{
	id[0] = msgget(IPC_PRIVATE, 0600);
	id[1] = msgget(IPC_PRIVATE, 0600);
	return id[0] >= 0 && id[1] >= 0;
}

static void msg_end(void)
{
	msgctl(id[0], IPC_RMID, NULL);
	msgctl(id[1], IPC_RMID, NULL);
}

static bool msg_put(int way, const char *p, size_t n)
{
	msg.type = 1;
	memcpy(msg.data, p, n);
	return msgsnd(id[way], &msg, n, 0) == 0;
}

static ssize_t msg_get(int way, char *p, size_t n)
{
	ssize_t r = msgrcv(id[way], &msg, n, 0, 0);
	if (r > 0)
		memcpy(p, msg.data, (size_t)r);
	return r;
}

static bool mq_make(void)
{
	struct mq_attr a = { .mq_maxmsg = 10, .mq_msgsize = 8192 };
	for (int i = 0; i < 2; i++) {
		char name[64];
		snprintf(name, sizeof name, "/kylinx-bench-%d-%d", (int)getpid(), i);
		mq[i] = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &a);
		mq_unlink(name);
	}
	return mq[0] != (mqd_t)-1 && mq[1] != (mqd_t)-1;
}

static void mq_end(void)
{
	mq_close(mq[0]);
	mq_close(mq[1]);
}

static bool mq_put(int way, const char *p, size_t n) { return mq_send(mq[way], p, n, 0) == 0; }
static ssize_t mq_get(int way, char *p, size_t n) { return mq_receive(mq[way], p, n, NULL); }

static const struct kind {
	const char *name;
	bool (*make)(void);
	void (*end)(void);
	bool (*put)(int way, const char *p, size_t n);
	ssize_t (*get)(int way, char *p, size_t n); /* up to n bytes; of a queue n holds any message */
	bool trips;
	size_t most, small, large; /* largest piece; bytes in all, by small pieces and by large ones */
	int rounds;
} kinds[] = {
	{ "pipe", pipe_make, fd_end, fd_put, fd_get, true, 65536, 4 << 20, 64 << 20, 5 },
	{ "socketpair", pair_make, fd_end, fd_put, fd_get, true, 65536, 2 << 20, 32 << 20, 3 },
	/* Their round trips are sync.c's. */
	{ "sysv_msg", msg_make, msg_end, msg_put, msg_get, false, 4096, 1 << 18, 4 << 20, 2 },
	{ "posix_mq", mq_make, mq_end, mq_put, mq_get, false, 4096, 1 << 18, 4 << 20, 2 },
};

/* ---- measurements ------------------------------------------------------------------------------------------------- */

static pid_t partner(const struct kind *k)
{
	if (!k->make()) {
		perror(k->name);
		exit(1);
	}
	return fork();
}

static void joined(const struct kind *k, pid_t p)
{
	int status;
	if (p < 0 || waitpid(p, &status, 0) != p || status) {
		fprintf(stderr, "%s: the other process failed\n", k->name);
		exit(1);
	}
	k->end();
}

static void round_trip(const struct kind *k, const char *suffix, int cpu)
{
	static double v[TRIPS];
	char c = 0;
	pid_t p = partner(k);
	if (p == 0) {
		pin(cpu);
		for (int i = -WARM; i < TRIPS; i++)
			if (k->get(0, &c, 1) != 1 || !k->put(1, &c, 1))
				_exit(1);
		_exit(0);
	}
	for (int i = -WARM; i < TRIPS; i++) {
		double t = now();
		if (!k->put(0, &c, 1) || k->get(1, &c, 1) != 1)
			exit(1);
		if (i >= 0)
			v[i] = now() - t;
	}
	joined(k, p);
	qsort(v, TRIPS, sizeof *v, cmp);
	printf("round_trip%s %.2f\nround_trip_p99%s %.2f\n", suffix, v[TRIPS / 2], suffix, v[TRIPS * 99 / 100]);
	fflush(stdout);
}

static void throughput(const struct kind *k, size_t size, const char *suffix, int cpu)
{
	static char buf[65536];
	double best = 0;
	size_t total = size < 4096 ? k->small : k->large;
	for (int round = 0; round < k->rounds; round++) {
		pid_t p = partner(k);
		if (p == 0) {
			pin(cpu);
			for (size_t n = 0; n < total; n += size)
				if (!k->put(1, buf, size))
					_exit(1);
			_exit(0);
		}
		size_t n = 0;
		double t = 0;
		for (ssize_t r; n < total && (r = k->get(1, buf, sizeof buf)) > 0; n += (size_t)r)
			t = t ? t : now();
		t = now() - t;
		if (n < total)
			exit(1);
		best = n / t > best ? n / t : best;
		joined(k, p);
	}
	printf("mb_per_s_%zu%s %.1f\n", size, suffix, best);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	const struct kind *k = NULL;
	bool one = argc > 2 && !strcmp(argv[2], "one");
	const char *suffix = one ? "_one_cpu" : "";
	for (size_t i = 0; argc > 1 && i < sizeof kinds / sizeof *kinds; i++)
		if (!strcmp(argv[1], kinds[i].name))
			k = &kinds[i];
	if (!k) {
		fprintf(stderr, "usage: ipc pipe|socketpair|sysv_msg|posix_mq [one]\n");
		return 2;
	}
	sched_getaffinity(0, sizeof all, &all);
	pin(0);
	if (k->trips)
		round_trip(k, suffix, !one);
	for (size_t size = 64; size <= k->most; size *= size < 4096 ? 64 : 16)
		throughput(k, size, suffix, !one);
	return 0;
}
