/* SPDX-License-Identifier: Apache-2.0 */
/*
 * churn LIBRARY SECONDS SEED: mappings come and go at random in a stretch of memory, the library's (lib.c with PAGES: each page of
 * its code returns 1000 + its number) and the program's own code, which returns 77. A second thread runs all that is there,
 * children do as well. One line: how often code of the program's own ran, or a page of the library's was another.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define ROOM 48 /* pages */
#define RW (PROT_READ | PROT_WRITE)
#define RX (PROT_READ | PROT_EXEC)
#define OWN 77
#define PAGES_OF_CODE 32 /* lib.c */

static const uint8_t own[] = { 0xb8, OWN, 0, 0, 0, 0xc3 }; /* mov $77,%eax; ret */
static uint8_t *room, *pristine;
static off_t code_off;
static unsigned ran, wrong, good;
static int library, memory, segment;
static volatile int stop;
static __thread sigjmp_buf back;
static __thread uint64_t rng;

static unsigned below(unsigned n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (unsigned)((rng >> 11) % n);
}

static void on_fault(int sig) { siglongjmp(back, sig); }

/* What it returns; -1: a fault. */
static int run(const uint8_t *p)
{
	long r = 0;
	if (sigsetjmp(back, 0))
		return -1;
	__asm__ volatile("call *%1"
			 : "+a"(r)
			 : "r"(p)
			 : "memory", "cc", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11");
	return (int)r;
}

static void run_page(unsigned k)
{
	int r = run(room + k * PAGE);
	if (r == OWN)
		__atomic_fetch_add(&ran, 1, __ATOMIC_RELAXED);
	else if (r >= 1000 && r < 1000 + PAGES_OF_CODE)
		__atomic_fetch_add(&good, 1, __ATOMIC_RELAXED);
	else if (r != -1)
		__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
}

static void *runner(void *arg)
{
	while (!stop)
		for (unsigned k = 0; k < ROOM; k++)
			run_page(k);
	return arg;
}

/* Nobody else is there: what can be executed is a page of the library's, whole. */
static void look(void)
{
	for (unsigned k = 0; k < ROOM; k++) {
		const uint8_t *p = room + k * PAGE;
		int r = run(p);
		if (r == OWN || (r != -1 && (r < 1000 || r >= 1000 + PAGES_OF_CODE ||
					     memcmp(p, pristine + (unsigned)(r - 1000) * PAGE, PAGE))))
			__atomic_fetch_add(r == OWN ? &ran : &wrong, 1, __ATOMIC_RELAXED);
	}
}

static void put_own(uint8_t *p, unsigned n)
{
	if (sigsetjmp(back, 0))
		return;
	for (unsigned i = 0; i < n; i++)
		memcpy(p + i * PAGE, own, sizeof own);
}

static int a_prot(void)
{
	static const int prot[] = { PROT_NONE, PROT_READ, RW, RX, RX, RW | PROT_EXEC };
	return prot[below(6)];
}

static void advise(uint8_t *p, size_t len)
{
	static const int advice[] = { MADV_DONTNEED,
				      MADV_FREE,
				      MADV_REMOVE,
				      MADV_HUGEPAGE,
				      MADV_NOHUGEPAGE,
				      MADV_WILLNEED,
				      MADV_WIPEONFORK,
				      MADV_KEEPONFORK,
				      20 /* COLD */,
				      21 /* PAGEOUT */,
				      22 /* POPULATE_READ */,
				      23 /* POPULATE_WRITE */,
				      24 /* DONTNEED_LOCKED */,
				      25 /* COLLAPSE */ };
	madvise(p, len, advice[below(sizeof advice / sizeof *advice)]);
}

static void child(void)
{
	int st = 0;
	pid_t pid = fork();
	if (!pid) {
		ran = wrong = 0;
		look();
		_exit((ran ? 1 : 0) | (wrong ? 2 : 0));
	}
	if (waitpid(pid, &st, 0) == pid && (!WIFEXITED(st) || WEXITSTATUS(st)))
		__atomic_fetch_add(WIFEXITED(st) && WEXITSTATUS(st) == 1 ? &ran : &wrong, 1, __ATOMIC_RELAXED);
}

static void step(void)
{
	unsigned n = 1 + below(6), k = below(ROOM - n), to = below(ROOM - n);
	uint8_t *p = room + k * PAGE, *q = room + to * PAGE;
	size_t len = n * PAGE;
	off_t off = code_off + (off_t)below(PAGES_OF_CODE - n) * PAGE;
	switch (below(18)) {
	case 0:
		if (mmap(p, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p)
			put_own(p, n);
		break;
	case 1:
	case 2:
		mmap(p, len, RX, MAP_PRIVATE | MAP_FIXED, library, off);
		break;
	case 3:
		mmap(p, len, PROT_READ, MAP_PRIVATE | MAP_FIXED, library, off);
		break;
	case 4:
		if (mmap(p, len, RW, MAP_PRIVATE | MAP_FIXED, library, off) == p)
			put_own(p, n);
		break;
	case 5:
	case 6:
		mprotect(p, len, a_prot());
		break;
	case 7:
		mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, q);
		break;
	case 8:
		mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | 4 /* DONTUNMAP */, q);
		break;
	case 9:
		munmap(p, len);
		break;
	case 10:
		advise(p, len);
		break;
	case 11: /* the host's kernel writes there */
		(void)!pread(memory, p, len, 0);
		break;
	case 12:
		mmap(p, len, RW, MAP_SHARED | MAP_FIXED, memory, 0);
		break;
	case 13:
		shmat(segment, p, SHM_REMAP | (below(2) ? SHM_EXEC : 0));
		break;
	case 14:
		if (below(2))
			shmdt(p);
		else
			mmap(p, len, a_prot(), MAP_PRIVATE | MAP_FIXED | MAP_HUGETLB, library, off); /* refused */
		break;
	case 15:
		mremap(p, len, (1 + below(6)) * PAGE, below(2) ? MREMAP_MAYMOVE | MREMAP_FIXED : 0, q);
		break;
	case 16:
		mmap(p, len, a_prot(), MAP_PRIVATE | MAP_FIXED_NOREPLACE | MAP_ANONYMOUS, -1, 0);
		put_own(p, n);
		break;
	case 17:
		if (!below(8))
			child();
		else
			put_own(p, n);
		break;
	}
}

/* The pages that lib.c has numbered. */
static int code_find(void)
{
	static const uint8_t first[] = { 0xb8, 1000 & 255, 1000 >> 8, 0, 0, 0xc3 };
	pristine = malloc(PAGES_OF_CODE * PAGE);
	for (code_off = PAGE; pread(library, pristine, PAGES_OF_CODE * PAGE, code_off) == PAGES_OF_CODE * PAGE;
	     code_off += PAGE)
		if (!memcmp(pristine, first, sizeof first))
			return 0;
	return -1;
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_fault, .sa_flags = SA_NODEFER | SA_ONSTACK };
	uint8_t page[PAGE] = { 0 };
	pthread_t t;
	if (argc < 4 || (library = open(argv[1], O_RDONLY | O_CLOEXEC)) < 0 || code_find())
		return 2;
	rng = (uint64_t)atoll(argv[3]) * 0x9e3779b97f4a7c15 + 1;
	memcpy(page, own, sizeof own);
	memory = memfd_create("own", MFD_CLOEXEC);
	segment = shmget(IPC_PRIVATE, 4 * PAGE, IPC_CREAT | 0700);
	for (int i = 0; i < 16; i++)
		if (write(memory, page, PAGE) != PAGE)
			return 2;
	uint8_t *s = shmat(segment, NULL, 0);
	for (int i = 0; i < 4; i++)
		memcpy(s + i * PAGE, page, PAGE);
	shmctl(segment, IPC_RMID, NULL);
	for (int i = 0; i < 5; i++)
		sigaction((int[]){ SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE }[i], &sa, NULL);
	room = mmap(NULL, (ROOM + 16) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	time_t end = time(NULL) + atoi(argv[2]);
	unsigned steps = 0;
	for (unsigned round = 0; time(NULL) < end; round++) {
		stop = 0;
		if (pthread_create(&t, NULL, runner, NULL))
			return 2;
		for (int i = 0; i < 400; i++, steps++)
			step();
		stop = 1;
		pthread_join(t, NULL);
		look();
	}
	fprintf(stderr, "%u steps, %u runs of the library's\n", steps, good);
	printf("ran %u, wrong %u, %s\n", ran, wrong, good ? "some good" : "none good");
	return 0;
}
