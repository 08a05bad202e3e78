/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A large program whose memory the monitor keeps in 2 MiB pages: what parent and children have is what they wrote, while
 * that goes on in the background, whatever else happens to the memory; and it is no more memory than before. In a pVM
 * ("pvm") it is in such pages soon: what was in small ones before it was large, and what forks have split.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include "../check.h"

#define MIB (1ul << 20)
#define LEN (72 * MIB)
#define PAGE 4096ul
#define HUGE (2 * MIB)
#define PATIENCE_S 30

static bool pvm;

/* The sum of a field of the mappings in [p, p + len), in KiB. */
static long field(const char *p, size_t len, const char *name)
{
	char line[512];
	unsigned long a, b;
	bool in = false;
	long kb = 0;
	FILE *f = fopen("/proc/self/smaps", "r");
	while (f && fgets(line, sizeof line, f)) {
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
			in = a < (uintptr_t)p + len && b > (uintptr_t)p;
		else if (in && !strncmp(line, name, strlen(name)))
			kb += atol(line + strlen(name));
	}
	if (f)
		fclose(f);
	return kb;
}

/* A region that was mapped in pieces too small for large pages. */
static char *pieces(size_t len)
{
	char *r = mmap(NULL, len + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (r == MAP_FAILED)
		return NULL;
	char *p = (char *)(((uintptr_t)r + HUGE - 1) & -HUGE);
	for (size_t i = 0; i < len; i += MIB)
		if (mmap(p + i, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
		    MAP_FAILED)
			return NULL;
	return p;
}

static uint64_t value(size_t at, unsigned round) { return at * 0x9e3779b97f4a7c15ull + round; }

static void fill(char *p, size_t len, size_t step, unsigned round)
{
	for (size_t i = 0; i < len; i += step)
		*(uint64_t *)(p + i) = *(uint64_t *)(p + i + PAGE - 8) = value(i, round);
}

static bool has(const char *p, size_t len, size_t step, unsigned round)
{
	for (size_t i = 0; i < len; i += step)
		if (*(const uint64_t *)(p + i) != value(i, round) ||
		    *(const uint64_t *)(p + i + PAGE - 8) != value(i, round))
			return false;
	return true;
}

/* Pages at multiples of `step` have that of `round`, the others that of `old`. */
static bool has_both(const char *p, size_t len, size_t step, unsigned round, unsigned old)
{
	for (size_t i = 0; i < len; i += PAGE)
		if (*(const uint64_t *)(p + i) != value(i, i % step ? old : round))
			return false;
	return true;
}

/* All but some MiB of it is in 2 MiB pages within the time. */
static bool becomes_whole(const char *p, size_t len)
{
	for (int i = 0; i < PATIENCE_S * 20; i++) {
		if (field(p, len, "AnonHugePages:") >= (long)(len / 1024) - 8192)
			return true;
		usleep(50000);
	}
	return false;
}

/* Does this host have what it takes? */
static bool host_can(void)
{
	struct utsname u;
	int major = 0, minor = 0;
	char *p = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || uname(&u) || sscanf(u.release, "%d.%d", &major, &minor) != 2)
		return false;
	memset(p, 1, 64 * MIB);
	bool can = field(p, 64 * MIB, "AnonHugePages:") >= 60 * 1024 && major * 100 + minor >= 607;
	munmap(p, 64 * MIB);
	return can;
}

static char *area;
static int stop;

/* Counts in pages of its own all over the area. */
static void *writer(void *arg)
{
	const size_t first = (size_t)(uintptr_t)arg;
	uintptr_t rounds = 0;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		for (size_t i = first * PAGE; i < LEN; i += 64 * PAGE)
			++*(uint64_t *)(area + i + 64);
		rounds++;
	}
	return (void *)rounds;
}

static bool counted(size_t first, uint64_t n)
{
	for (size_t i = first * PAGE; i < LEN; i += 64 * PAGE)
		if (*(uint64_t *)(area + i + 64) != n)
			return false;
	return true;
}

/* A child that looks at the memory until it is told, or killed; then it has what was there at the fork. */
static void forked(unsigned round, bool killed)
{
	int gate[2], status;
	const size_t step = 16 * PAGE;
	check(pipe(gate) == 0, "a pipe");
	pid_t c = FORK({
		char b;
		close(gate[1]);
		fill(area, LEN, HUGE, round); /* writes of its own, as it was */
		NEED(read(gate[0], &b, 1) == 0);
		NEED(has(area, LEN, PAGE, round));
	});
	close(gate[0]);
	fill(area, LEN, step, round + 1);
	check(has_both(area, LEN, step, round + 1, round), "the parent has what it wrote and what it had");
	if (pvm)
		check(becomes_whole(area, LEN), "while a child shares it: in 2 MiB pages again");
	check(has_both(area, LEN, step, round + 1, round), "and nothing has changed by that");
	if (killed)
		kill(c, SIGKILL);
	close(gate[1]);
	check(c > 0 && waitpid(c, &status, 0) == c && (killed ? WIFSIGNALED(status) : status == 0),
	      "its child has what was there, or was killed");
	fill(area, LEN, PAGE, round + 1);
	check(has(area, LEN, PAGE, round + 1), "written again");
	check(field(area, LEN, "Rss:") <= (long)(LEN / 1024), "no more memory than it maps");
}

/* The memory changes under the one that makes pages of it. */
static void changes(void)
{
	int status;
	bool ok = true;
	for (int i = 0; i < 3 && ok; i++) {
		fill(area, LEN, PAGE, 50);
		pid_t c = FORK({
			usleep(30000);
			NEED(has(area, LEN, PAGE, 50));
		});
		fill(area, LEN, 8 * PAGE, 51);
		for (size_t at = 0; at < LEN; at += 4 * MIB) {
			char *p = area + at + MIB / 2;
			ok = ok && !madvise(p, MIB, MADV_DONTNEED) && !*p && !p[MIB - 1];
			ok = ok && !mprotect(p, MIB, PROT_READ) && !p[MIB / 2] &&
			     !mprotect(p, MIB, PROT_READ | PROT_WRITE);
			ok = ok && !munmap(p, MIB) &&
			     mmap(p, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p;
			p[MIB / 2] = 1;
			ok = ok && *(uint64_t *)(area + at) == value(at, 51) && p[MIB / 2] == 1 && !p[0];
		}
		ok = ok && c > 0 && waitpid(c, &status, 0) == c && status == 0;
	}
	check(ok, "unmapped, protected, cleared meanwhile");
}

/* The program asks for 4 KiB pages somewhere. */
static void refuses(void)
{
	char *p = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int gate[2], status;
	check(p != MAP_FAILED && !madvise(p, HUGE, MADV_NOHUGEPAGE) && !pipe(gate), "4 KiB pages, please");
	pid_t c = FORK({
		char b;
		close(gate[1]);
		NEED(read(gate[0], &b, 1) == 0);
	});
	fill(area, LEN, 16 * PAGE, 60);
	usleep(500000);
	if (pvm)
		check(field(area, LEN, "AnonHugePages:") <= (long)(LEN / 1024 / 4), "then no more of the others");
	close(gate[1]);
	check(c > 0 && waitpid(c, &status, 0) == c && status == 0, "the child's end");
}

int main(int argc, char **argv)
{
	pvm = argc > 1 && !strcmp(argv[1], "pvm");
	pvm = pvm && host_can();
	check((area = pieces(LEN)) != NULL, "memory");
	fill(area, LEN, PAGE, 1);
	if (pvm)
		check(becomes_whole(area, LEN), "what was small pages is 2 MiB pages");
	check(has(area, LEN, PAGE, 1), "and has what was written");
	/* So many that the monitor's descriptors have to move. */
	int top = 0;
	for (int fd; top < 2000 && (fd = dup(1)) >= 0; top = fd)
		;
	for (int fd = 3; fd <= top; fd++)
		close(fd);
	forked(1, false);
	forked(2, true);
	changes();

	pthread_t t[2];
	void *n[2];
	for (size_t i = 0; i < LEN; i += PAGE)
		*(uint64_t *)(area + i + 64) = 0;
	for (uintptr_t i = 0; i < 2; i++)
		check(!pthread_create(&t[i], NULL, writer, (void *)(i * 7)), "a thread");
	pid_t c[4];
	for (int i = 0; i < 4; i++) {
		c[i] = FORK({ usleep(200000); });
		usleep(50000);
	}
	bool ended = true;
	for (int i = 0, status; i < 4; i++)
		ended = waitpid(c[i], &status, 0) == c[i] && status == 0 && ended;
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], &n[i]);
	check(ended && counted(0, (uintptr_t)n[0]) && counted(7, (uintptr_t)n[1]), "no write of a thread's is lost");
	refuses();
	return first_failed;
}
