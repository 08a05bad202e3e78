/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pointers MIB: threads that keep pointers to a library's variables all over their memory, write them to other places all
 * the time, move the pages that they lie in, and check that they are what the library says. Commands on stdin: x: counts.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int *cell_at(int i);
int version(void);

#define KEPT 500
static size_t words;
static long checked;

static void fail(const char *what, void *is, void *want)
{
	printf("wrong: %s: %p, not %p\n", what, is, want);
	fflush(stdout);
	_exit(1);
}

static void *writer(void *arg)
{
	unsigned seed = (unsigned)(long)arg;
	int **at = malloc(words * sizeof *at);
	struct {
		size_t at;
		int cell;
	} kept[KEPT];
	memset(at, 0, words * sizeof *at);
	for (unsigned i = 0; i < KEPT; i++)
		at[kept[i].at = i] = cell_at(kept[i].cell = i % 64);
	for (unsigned n = 0;; n = (n + 1) % KEPT) {
		int *is = at[kept[n].at], *want = cell_at(kept[n].cell);
		if (is != want)
			fail("in the heap", is, want);
		at[kept[n].at] = NULL;
		do
			kept[n].at = rand_r(&seed) % words;
		while (at[kept[n].at]);
		kept[n].cell = rand_r(&seed) % 64;
		at[kept[n].at] = cell_at(kept[n].cell);
		__atomic_add_fetch(&checked, 1, __ATOMIC_RELAXED);
		if (n % 100 == 0)
			usleep(200);
	}
	return NULL;
}

static void *mover(void *arg)
{
	int **p[2], **old;
	for (int i = 0; i < 2; i++)
		p[i] = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p[0][700] = cell_at(7);
	for (;; __atomic_add_fetch(&checked, 1, __ATOMIC_RELAXED)) {
		old = p[0];
		p[0] = mremap(p[0], 16384, 16384, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, p[1]);
		p[1] = old;
		if (p[0][700] != cell_at(7))
			fail("in what was moved", p[0][700], cell_at(7));
		mprotect(p[0], 16384, PROT_READ);
		usleep(100);
		mprotect(p[0], 16384, PROT_READ | PROT_WRITE);
		p[0][700] = cell_at(7); /* was read-only for a while */
	}
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t t;
	char line[16];
	words = (size_t)(argc > 1 ? atoi(argv[1]) : 8) << 17;
	for (long i = 0; i < 2; i++)
		pthread_create(&t, NULL, writer, (void *)(i + 1));
	pthread_create(&t, NULL, mover, NULL);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		printf("%d %ld\n", version(), __atomic_load_n(&checked, __ATOMIC_RELAXED));
		fflush(stdout);
	}
	return 0;
}
