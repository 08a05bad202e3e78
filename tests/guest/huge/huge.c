/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that writes much between its forks: what it has is right in parent and children, and in a pVM ("pvm") it is
 * in 2 MiB pages soon, but for what is mostly unused.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "../check.h"

#define MIB (1ul << 20)
#define SOON 4 /* rounds */
#define ROUNDS 6

/* A field of the mapping that p is in, in KiB. -1: not found. */
static long field(const void *p, const char *name)
{
	char line[512];
	unsigned long a, b;
	bool in = false;
	long kb = -1;
	FILE *f = fopen("/proc/self/smaps", "r");
	while (f && kb < 0 && fgets(line, sizeof line, f)) {
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
			in = (uintptr_t)p >= a && (uintptr_t)p < b;
		else if (in && !strncmp(line, name, strlen(name)))
			kb = atol(line + strlen(name));
	}
	if (f)
		fclose(f);
	return kb;
}

static size_t in_use(char *p, size_t len)
{
	static unsigned char in[64 * MIB / 4096];
	size_t n = 0;
	if (mincore(p, len, in))
		return 0;
	for (size_t i = 0; i < len / 4096; i++)
		n += in[i] & 1;
	return n;
}

static char *map(size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static bool has(const char *p, size_t len, char v)
{
	for (size_t i = 0; i < len; i += 4096)
		if (p[i] != v || p[i + 4095] != (char)(v + 1))
			return false;
	return true;
}

static void fill(char *p, size_t len, char v)
{
	for (size_t i = 0; i < len; i += 4096) {
		p[i] = v;
		p[i + 4095] = (char)(v + 1);
	}
}

int main(int argc, char **argv)
{
	const size_t len = 16 * MIB;
	bool pvm = argc > 1 && !strcmp(argv[1], "pvm"), ok = true;
	char *p = map(len), *sparse = map(8 * MIB), *refused = argc > 2 ? map(4 * MIB) : NULL;
	check(p && sparse, "memory");
	if (refused)
		check(madvise(refused, 4 * MIB, MADV_NOHUGEPAGE) == 0, "4 KiB pages, please");
	for (size_t i = 0; i < 8 * MIB; i += 64 << 10)
		sparse[i] = 1;
	const size_t before = in_use(sparse, 8 * MIB);
	long soon = 0;
	for (int i = 0; i < ROUNDS; i++) {
		int status;
		fill(p, len, (char)i);
		pid_t c = FORK({
			usleep(20000); /* so that its parent sleeps */
			NEED(has(p, len, (char)i));
			fill(p, len, 99);
			NEED(has(p, len, 99) && sparse[64 << 10] == 1);
		});
		ok = ok && c > 0 && waitpid(c, &status, 0) == c && status == 0 && has(p, len, (char)i);
		if (pvm && i == SOON) /* not by the kernel's own thread, which comes each ten seconds */
			soon = field(p, "AnonHugePages:");
	}
	check(ok, "parent and children have what they wrote");
	check(in_use(sparse, 8 * MIB) <= before + 16, "what is mostly unused stays so");
	char *large = map(64 * MIB);
	memset(large, 1, 64 * MIB);
	if (pvm && field(large, "AnonHugePages:") >= 60 * 1024) { /* there was enough of them */
		const long kb = field(p, "AnonHugePages:"), most = (long)(len / 1024) - 4096;
		check(refused ? kb == 0 : kb >= most, "in 2 MiB pages, unless refused");
		check(refused || soon >= most, "as soon as it has forked some times");
	}
	return first_failed;
}
