/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes and socket pairs between more members than CPUs: who writes and then computes is not waited for, nothing is lost
 * or late when many members talk, or are killed meanwhile, and a writer with many ends learns of each dead reader. On all
 * CPUs, then on one. Passes on any Linux. The exit code is the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include "../check.h"

#define MEMBERS 8
#define MESSAGES 60
#define ROUNDS 6
#define TRIES 4
/* The whole machine may be busy: each is late then, and the best of some tells. */
#define LATE_NS 100000000ull

static volatile uint64_t *at; /* shared */

static uint64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static void make(int fd[2], bool pair) { NEED(!(pair ? socketpair(AF_UNIX, SOCK_STREAM, 0, fd) : pipe(fd))); }

static bool ended(pid_t p, int want)
{
	int st;
	while (waitpid(p, &st, 0) < 0)
		if (errno != EINTR)
			return false;
	return st == want;
}

/* So many ns of computing without a call. */
static void spin(uint64_t ns)
{
	uint64_t start = __builtin_ia32_rdtsc(), t = now();
	while (now() - t < 1000000)
		;
	uint64_t per_ms = __builtin_ia32_rdtsc() - start;
	for (start = __builtin_ia32_rdtsc(); __builtin_ia32_rdtsc() - start < per_ms * (ns / 1000000);)
		__asm__ volatile("" : : : "memory");
}

/* A first byte is answered, so that all is warm; after `pause_us` comes the second, whose writer computes then. */
static uint64_t latency(bool pair, long pause_us, bool *good)
{
	int fd[2];
	char b[2];
	make(fd, pair);
	int r = fd[0], w = fd[1];
	at[0] = at[1] = 0;
	pid_t p = FORK(for (int i = 0; i < 2; i++) {
		NEED(read(r, b, 1) == 1);
		at[i] = now();
	});
	NEED(write(w, "a", 1) == 1);
	while (!at[0])
		ms(1);
	uint64_t until = now() + (uint64_t)pause_us * 1000;
	while (now() < until)
		sched_yield();
	uint64_t start = now();
	NEED(write(w, "b", 1) == 1);
	spin(300000000);
	*good = ended(p, 0) && *good;
	close(r);
	close(w);
	return at[1] - start;
}

static bool in_time(bool pair)
{
	static const long pauses[ROUNDS] = { 0, 50, 150, 500, 1500, 20000 };
	uint64_t least = ~0ull;
	bool good = true;
	for (int i = 0; i < ROUNDS; i++) {
		uint64_t n = ~0ull;
		/* Somebody else's work may come between, and last. */
		for (int k = 0; k < TRIES && n >= LATE_NS; k++) {
			uint64_t took = latency(pair, pauses[i], &good);
			n = took < n ? took : n;
		}
		least = n < least ? n : least;
		if (n >= LATE_NS) {
			printf("# pause of %ld us: %lu us at best\n", pauses[i], n / 1000);
			good = false;
		}
	}
	printf("# soonest: %lu us\n", least / 1000);
	return good;
}

/* As many senders as receivers, each to each; the senders numbered, in order at each receiver. */
static bool each_to_each(bool pair, int killed)
{
	int fd[MEMBERS][2];
	pid_t in[MEMBERS], out[MEMBERS];
	bool good = true;
	for (int i = 0; i < MEMBERS; i++)
		make(fd[i], pair);
	for (int i = 0; i < MEMBERS; i++)
		in[i] = FORK({
			uint32_t m[2], next[MEMBERS] = { 0 };
			for (int k = 0; k < MEMBERS; k++)
				close(fd[k][1]);
			ssize_t n;
			while ((n = read(fd[i][0], m, sizeof m)) == sizeof m) {
				NEED(m[0] < MEMBERS && m[1] == next[m[0]]);
				next[m[0]]++;
			}
			NEED(n == 0);
			for (int k = killed; k < MEMBERS; k++)
				NEED(next[k] == MESSAGES);
		});
	for (int i = 0; i < MEMBERS; i++)
		out[i] = FORK({
			for (int k = 0; k < MEMBERS; k++)
				close(fd[k][0]);
			for (uint32_t n = 0; n < MESSAGES || i < killed; n++)
				for (int k = 0; k < MEMBERS; k++) {
					uint32_t m[2] = { (uint32_t)i, n };
					NEED(write(fd[k][1], m, sizeof m) == sizeof m);
				}
		});
	for (int i = 0; i < MEMBERS; i++) {
		close(fd[i][0]);
		close(fd[i][1]);
	}
	ms(killed ? 50 : 0);
	for (int i = 0; i < MEMBERS; i++) {
		if (i < killed)
			kill(out[i], SIGKILL);
		good = ended(out[i], i < killed ? SIGKILL : 0) && good;
	}
	for (int i = 0; i < MEMBERS; i++)
		good = ended(in[i], 0) && good;
	return good;
}

/* Readers, some of whom are killed while they wait; the one who writes to all learns it of those alone. */
static bool dead_readers(bool pair)
{
	int fd[MEMBERS][2], broken[MEMBERS] = { 0 };
	pid_t p[MEMBERS], killer;
	char b;
	for (int i = 0; i < MEMBERS; i++)
		make(fd[i], pair);
	for (int i = 0; i < MEMBERS; i++)
		p[i] = FORK({
			for (int k = 0; k < MEMBERS; k++)
				if (k != i)
					close(fd[k][0]);
			for (int k = 0; k < MEMBERS; k++)
				close(fd[k][1]);
			while (read(fd[i][0], &b, 1) == 1)
				;
		});
	for (int i = 0; i < MEMBERS; i++)
		close(fd[i][0]);
	signal(SIGPIPE, SIG_IGN);
	at[0] = 0;
	/* Not by the writer's parent, who would learn of it by himself. */
	killer = FORK({
		ms(20);
		for (int i = 0; i < MEMBERS; i += 2)
			kill(p[i], SIGKILL);
		at[0] = now();
	});
	pid_t writer = FORK({
		uint64_t first = 0;
		for (;;) {
			for (int i = 0; i < MEMBERS; i++)
				if (!broken[i] && write(fd[i][1], "x", 1) != 1) {
					NEED(errno == EPIPE && i % 2 == 0);
					broken[i] = 1;
				}
			if (at[0] && !first)
				first = now();
			if (first && now() - first > 300000000ull)
				break;
			ms(1);
		}
		for (int i = 0; i < MEMBERS; i++)
			NEED(broken[i] == (i % 2 == 0));
	});
	for (int i = 0; i < MEMBERS; i++)
		close(fd[i][1]);
	bool good = ended(writer, 0);
	good = ended(killer, 0) && good;
	for (int i = 0; i < MEMBERS; i++)
		good = ended(p[i], i % 2 == 0 ? SIGKILL : 0) && good;
	signal(SIGPIPE, SIG_DFL);
	return good;
}

/* Request and answer, where each side waits for the other: nobody is forgotten. */
static bool to_and_fro(bool pair)
{
	int go[2], back[2];
	char b;
	make(go, pair);
	make(back, pair);
	pid_t p = FORK(for (int i = 0; i < 300; i++) {
		NEED(read(go[0], &b, 1) == 1);
		NEED(write(back[1], &b, 1) == 1);
	});
	bool good = true;
	for (int i = 0; i < 300 && good; i++)
		good = write(go[1], &i, 1) == 1 && read(back[0], &b, 1) == 1 && b == (char)i;
	good = ended(p, 0) && good;
	for (int i = 0; i < 2; i++) {
		close(go[i]);
		close(back[i]);
	}
	return good;
}

static void all(void)
{
	for (int pair = 0; pair < 2; pair++) {
		check(to_and_fro(pair), pair ? "to and fro by pairs" : "to and fro by pipes");
		check(in_time(pair), pair ? "a pair's reader has it while the writer computes"
					  : "a pipe's reader has it while the writer computes");
		check(each_to_each(pair, 0), pair ? "each to each by pairs" : "each to each by pipes");
		check(each_to_each(pair, 2), pair ? "senders of pairs are killed" : "senders of pipes are killed");
		check(dead_readers(pair), pair ? "readers of pairs are killed" : "readers of pipes are killed");
	}
}

int main(void)
{
	at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	NEED(at != MAP_FAILED);
	all();
	cpu_set_t one;
	NEED(!sched_getaffinity(0, sizeof one, &one));
	for (int i = 0, seen = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &one) && seen++)
			CPU_CLR(i, &one);
	NEED(!sched_setaffinity(0, sizeof one, &one));
	all();
	printf(first_failed ? "FAILED\n" : "SUCCESS\n");
	return first_failed;
}
