/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Program text that processes share: what one of them writes to its copy is seen by no other, whatever way it takes to
 * write; moved and partly unmapped text works on; /proc/self/maps names the file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) \
	do { \
		if (!(x)) { \
			printf("FAIL %s:%d: %s (errno %d)\n", __func__, __LINE__, #x, errno); \
			exit(1); \
		} \
	} while (0)

struct place {
	uintptr_t start, end, off;
	char perm[5], path[256];
};

static struct place find(const void *at)
{
	struct place p;
	char line[512];
	FILE *f = fopen("/proc/self/maps", "r");
	CHECK(f);
	while (fgets(line, sizeof line, f)) {
		p.path[0] = 0;
		CHECK(sscanf(line, "%lx-%lx %4s %lx %*s %*s %255s", &p.start, &p.end, p.perm, &p.off, p.path) >= 4);
		if (p.start <= (uintptr_t)at && (uintptr_t)at < p.end) {
			fclose(f);
			return p;
		}
	}
	CHECK(!"mapped");
	return p;
}

static void in_child(void (*fn)(void), int expect)
{
	pid_t p = fork();
	int st;
	CHECK(p >= 0);
	if (p == 0) {
		fn();
		_exit(expect);
	}
	CHECK(waitpid(p, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == expect);
}

/* A function of libc that nothing else here calls: its first bytes become `mov $1234, %eax; ret`. */
static void overwrite(void)
{
	unsigned char *f = (unsigned char *)dlsym(RTLD_DEFAULT, "l64a");
	uintptr_t page = (uintptr_t)f & -4096ul;
	CHECK(f);
	CHECK(mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
	memcpy(f, "\xb8\xd2\x04\x00\x00\xc3", 6);
	CHECK(((int (*)(long))(void *)f)(64) == 1234);
	CHECK(mprotect((void *)page, 8192, PROT_READ | PROT_EXEC) == 0);
	CHECK(((int (*)(long))(void *)f)(64) == 1234);
	CHECK(getppid() > 0 && syscall(SYS_getpid) == getpid());
}

static void overwrite_and_fork(void)
{
	overwrite();
	in_child(overwrite, 4);
}

static void unharmed(void) { CHECK(a64l(l64a(123456)) == 123456); }

/* All of libc's text becomes this process's own, and goes on working. */
static void own_all(void)
{
	struct place p = find((void *)dlsym(RTLD_DEFAULT, "l64a"));
	CHECK(mprotect((void *)p.start, p.end - p.start, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
	CHECK(write(1, "", 0) == 0 && getpid() > 0);
	CHECK(mprotect((void *)p.start, p.end - p.start, PROT_READ | PROT_EXEC) == 0);
	struct place q = find((void *)p.start);
	CHECK(q.end == p.end && !strcmp(q.perm, "r-xp"));
	in_child(unharmed, 5);
}

/* A second mapping of the same text, at an address of the kernel's choice: the same code. */
static void second(void)
{
	struct place p = find((void *)dlsym(RTLD_DEFAULT, "l64a"));
	void *lib = dlopen(p.path, RTLD_NOW);
	CHECK(lib);
	unharmed();
	CHECK(mremap((void *)p.start, 0, 4096, MREMAP_MAYMOVE) == MAP_FAILED);
	void *other = dlmopen(LM_ID_NEWLM, p.path, RTLD_NOW | RTLD_LOCAL);
	CHECK(other);
	pid_t (*pid)(void) = (pid_t(*)(void))dlsym(other, "getppid");
	CHECK(pid && pid() == getppid());
	struct place q = find((void *)pid);
	CHECK(q.start != p.start && q.off == p.off && !strcmp(q.path, p.path));
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "exec")) {
		unharmed();
		return 6;
	}
	struct place p = find((void *)dlsym(RTLD_DEFAULT, "l64a"));
	CHECK(!strcmp(p.perm, "r-xp") && strstr(p.path, "libc") && p.off);
	puts("ok named in maps");
	in_child(overwrite, 1);
	unharmed();
	in_child(unharmed, 2);
	in_child(overwrite_and_fork, 3);
	unharmed();
	puts("ok what a child writes is its own");
	in_child(own_all, 7);
	unharmed();
	puts("ok all of it written");
	in_child(second, 8);
	puts("ok mapped twice");
	overwrite();
	pid_t c = fork();
	int st;
	CHECK(c >= 0);
	if (c == 0) {
		execl("/proc/self/exe", argv[0], "exec", NULL);
		_exit(1);
	}
	CHECK(waitpid(c, &st, 0) == c && WIFEXITED(st) && WEXITSTATUS(st) == 6);
	puts("ok not seen after exec");
	puts("SUCCESS");
	return 0;
}
