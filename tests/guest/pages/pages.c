/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mappings of large pages. The kernel makes them whole pages of their size, whatever length was asked for. Most of it needs
 * none of those: a mapping without reservation is made where there are none. What runs code needs two of 2 MiB, or skips.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../check.h"

#define PAGE 4096UL
#define MiB (1UL << 20)
#define GiB (1UL << 30)
#define HUGE (2 * MiB)
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define LARGE (ANON | MAP_HUGETLB | MAP_NORESERVE)
#define OF_2M (21 << 26)
#define OF_1G (30 << 26)

static sigjmp_buf env;
static void on_fault(int s) { siglongjmp(env, s); }

static int touch(volatile char *p)
{
	volatile int s = sigsetjmp(env, 1);
	if (s == 0)
		*p = *p;
	return s;
}

static int run(char *p)
{
	volatile int s = sigsetjmp(env, 1);
	if (s == 0)
		((void (*)(void))p)();
	return s;
}

/* 2 MiB-aligned memory of 8 MiB. */
static char *aligned(void)
{
	char *p = mmap(NULL, 10 * MiB, RW, ANON, -1, 0);
	char *a = (char *)(((uintptr_t)p + HUGE - 1) & -HUGE);
	memset(a, 7, 8 * MiB);
	return a;
}

static bool all(const char *p, size_t len, char c)
{
	for (size_t i = 0; i < len; i += PAGE)
		if (p[i] != c)
			return false;
	return true;
}

static bool fails(long r, int e) { return r == -1 && errno == e; }

/* All of [p, p + HUGE) is one page, whose parts are nobody's. */
static bool is_whole(char *p)
{
	return fails(munmap(p, PAGE), EINVAL) && fails(munmap(p + PAGE, PAGE), EINVAL) &&
	       fails(mprotect(p + PAGE, PAGE, PROT_READ), EINVAL) && mprotect(p, HUGE, PROT_READ) == 0 &&
	       mprotect(p, HUGE, RW) == 0;
}

static void test_placed(void)
{
	char *p[4];
	bool ok = true;
	for (int i = 0; i < 4; i++) {
		p[i] = mmap(NULL, PAGE, RW, LARGE | OF_2M, -1, 0);
		ok = ok && p[i] != MAP_FAILED && !((uintptr_t)p[i] % HUGE) && is_whole(p[i]);
	}
	check(ok, "placed: each a page");
	for (int i = 0; i < 4; i++)
		ok = ok && munmap(p[i], HUGE) == 0 && touch(p[i] + PAGE) == SIGSEGV;
	check(ok, "and gone as one");
	/* Of the size that the host means by it. */
	p[0] = mmap(NULL, PAGE, RW, LARGE, -1, 0);
	check(p[0] != MAP_FAILED && !((uintptr_t)p[0] % HUGE) && fails(munmap(p[0], PAGE), EINVAL) &&
		      (munmap(p[0], HUGE) == 0 || munmap(p[0], GiB) == 0),
	      "placed: of the usual size");
}

static void test_fixed(void)
{
	char *p = aligned();
	check(mmap(p, PAGE, RW, LARGE | OF_2M | MAP_FIXED, -1, 0) == p && is_whole(p), "fixed, for 4 KiB");
	check(all(p + HUGE, 6 * MiB, 7), "what is above stays");
	check(munmap(p, HUGE) == 0 && touch(p) == SIGSEGV && touch(p + HUGE - PAGE) == SIGSEGV && touch(p + HUGE) == 0,
	      "unmapped: all of it");
	check(mmap(p + HUGE + PAGE, PAGE, RW, LARGE | OF_2M | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EINVAL,
	      "fixed, not aligned");
	check(all(p + HUGE, 6 * MiB, 7), "changes nothing");
}

static void test_moved(void)
{
	char *p = aligned(), *q = mmap(NULL, PAGE, RW, LARGE | OF_2M, -1, 0);
	check(mremap(q, PAGE, 2 * HUGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL, "moved: not longer");
	check(mremap(q, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + PAGE) == MAP_FAILED && errno == EINVAL,
	      "moved: not to an odd place");
	char *r = mremap(q, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + HUGE);
	if (r == MAP_FAILED && errno == EINVAL) /* Linux before 5.16 */
		check(is_whole(q), "moved: not at all");
	else
		check(r == p + HUGE && is_whole(r) && all(p + 2 * HUGE, 2 * HUGE, 7) && touch(q) == SIGSEGV &&
			      touch(q + PAGE) == SIGSEGV,
		      "moved: all of it");
}

static void test_memory_file(void)
{
	int fd = memfd_create("large", MFD_HUGETLB | OF_2M);
	if (fd < 0)
		return;
	char *p = aligned();
	check(ftruncate(fd, 2 * HUGE) == 0, "memory file");
	char *q = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_NORESERVE, fd, HUGE);
	check(q != MAP_FAILED && is_whole(q) && munmap(q, HUGE) == 0, "placed");
	check(mmap(p, PAGE, RW, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0) == p && is_whole(p) &&
		      all(p + HUGE, 6 * MiB, 7),
	      "fixed");
	check(mmap(NULL, PAGE, RW, MAP_SHARED | MAP_NORESERVE, fd, PAGE) == MAP_FAILED && errno == EINVAL,
	      "from the middle of a page");
	close(fd);
}

/* A page of 1 GiB below where a program's memory can't be any more, in a pVM; or somewhere, natively. */
static void test_giant(void)
{
	char *const last = (char *)(507 * GiB), *other = aligned();
	char *p = mmap(last, PAGE, RW, LARGE | OF_1G | MAP_FIXED, -1, 0);
	if (p == MAP_FAILED && errno == EINVAL) {
		printf("no pages of 1 GiB here\n");
		return;
	}
	check(p == last || (p == MAP_FAILED && errno == ENOMEM), "giant: there, or refused");
	/* All that the machine needs to go on is still there. */
	check(mmap((void *)(505 * GiB), 4 * MiB, RW, ANON | MAP_FIXED, -1, 0) == (void *)(505 * GiB) &&
		      touch((char *)(505 * GiB)) == 0 && all(other, 8 * MiB, 7),
	      "and memory can be had");
	pid_t pid = fork();
	int status = -1;
	if (!pid)
		_exit(touch(other));
	check(waitpid(pid, &status, 0) == pid && !status, "and children");
	p = mmap(NULL, PAGE, RW, LARGE | OF_1G, -1, 0);
	check(p != MAP_FAILED && !((uintptr_t)p % GiB) && fails(munmap(p, HUGE), EINVAL) && munmap(p, GiB) == 0,
	      "giant: placed");
}

/* What was code below a page's end is none when the page is data. */
static void test_code(void)
{
	char *p = aligned();
	for (size_t i = 0; i < HUGE; i += PAGE)
		p[i] = (char)0xc3;
	mprotect(p + PAGE, PAGE, PROT_READ | PROT_EXEC);
	check(run(p + PAGE) == 0, "code");
	char *q = mmap(p, PAGE, RW, (LARGE & ~MAP_NORESERVE) | OF_2M | MAP_FIXED, -1, 0);
	if (q != p) {
		printf("no large pages here: the rest is skipped\n");
		return;
	}
	int pipes[2];
	check(touch(p) == 0 && !pipe(pipes) && write(pipes[1], "\xc3", 1) == 1 && read(pipes[0], p + PAGE, 1) == 1,
	      "written by a call");
	check(run(p + PAGE) == SIGSEGV, "no code any more");
	check(munmap(p, HUGE) == 0, "unmapped");
}

static void test_segment(void)
{
	int id = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | SHM_HUGETLB | SHM_NORESERVE | 0600);
	if (id < 0) {
		check(errno == EPERM || errno == ENOMEM || errno == EINVAL || errno == ENOSYS, "segment: refused");
		return;
	}
	char *p = shmat(id, NULL, 0);
	check(p != (void *)-1 && !((uintptr_t)p % HUGE) && shmdt(p) == 0, "segment");
	shmctl(id, IPC_RMID, NULL);
}

int main(void)
{
	struct sigaction a = { .sa_handler = on_fault };
	sigaction(SIGSEGV, &a, NULL);
	sigaction(SIGBUS, &a, NULL);
	char *p = mmap(NULL, PAGE, RW, LARGE | OF_2M, -1, 0);
	if (p == MAP_FAILED && (errno == EINVAL || errno == ENOSYS) &&
	    mmap(NULL, HUGE, RW, LARGE | OF_2M, -1, 0) == MAP_FAILED) {
		printf("no pages of 2 MiB here\n");
		return 77;
	}
	test_placed();
	test_fixed();
	test_moved();
	test_memory_file();
	test_code();
	test_segment();
	test_giant();
	return verdict();
}
