/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A table of the program's holds the address of the library's function, in a page of its own. "r", "x", "w": the library's
 * hook makes it read-only, executable, or writable; "m": the program makes it writable; "v": version by name and by the table, and whether the kernel may write to
 * the table for the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int version(void);
void protect_page(void *page, int prot);

static int (*table[512])(void) __attribute__((aligned(4096))) = { version };

static const char *may_write(void)
{
	int fd[2];
	if (pipe(fd) || write(fd[1], "x", 1) != 1)
		return "no pipe";
	ssize_t n = read(fd[0], (char *)table + 4000, 1);
	const char *r = n == 1 ? "written" : errno == EFAULT ? "read-only" : strerror(errno);
	close(fd[0]);
	close(fd[1]);
	return r;
}

int main(void)
{
	char line[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		int (*volatile f)(void) = table[0];
		if (*line == 'm' && mprotect(table, sizeof table, PROT_READ | PROT_WRITE))
			return 1;
		if (*line == 'r' || *line == 'x' || *line == 'w')
			protect_page(table, *line == 'r'   ? PROT_READ
					    : *line == 'x' ? PROT_READ | PROT_EXEC
							   : PROT_READ | PROT_WRITE);
		printf("v%d table v%d %s\n", version(), f(), may_write());
	}
	return 0;
}
