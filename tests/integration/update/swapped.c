/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeps pointers to a library's variables in memory that it has the host put away. Commands on stdin: o: how many pages are
 * not in memory then; c: whether all pointers are what the library says.
 */
#include <stdio.h>
#include <sys/mman.h>

int *cell_at(int i);
int version(void);

#define PAGES 512
#define WORDS 512 /* of a page */

static int out(int **p)
{
	unsigned char in[PAGES];
	int n = 0;
	if (madvise(p, PAGES * WORDS * 8, MADV_PAGEOUT) || mincore(p, PAGES * WORDS * 8, in))
		return -1;
	for (int i = 0; i < PAGES; i++)
		n += !(in[i] & 1);
	return n;
}

static int wrong(int **p)
{
	int n = 0;
	for (int i = 0; i < PAGES; i++)
		n += p[i * WORDS + 3] != cell_at(i % 64);
	return n;
}

int main(void)
{
	int **p = mmap(NULL, PAGES * WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char line[16];
	if (p == MAP_FAILED)
		return 1;
	madvise(p, PAGES * WORDS * 8, MADV_NOHUGEPAGE);
	for (int i = 0; i < PAGES; i++)
		p[i * WORDS + 3] = cell_at(i % 64);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (*line == 'o')
			printf("%d\n", out(p));
		else
			printf("%d: %d wrong\n", version(), wrong(p));
		fflush(stdout);
	}
	return 0;
}
