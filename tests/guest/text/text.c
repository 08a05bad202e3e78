/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Program text that processes share: what one of them writes to its copy is seen by no other, whatever way it takes to
 * write; text that is copied into memory that takes its place works on; /proc/self/maps names the file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
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

/* Pages of text that were made writable come back as the file has them when they are given up. */
static void given_up(void)
{
	const uintptr_t page = (uintptr_t)dlsym(RTLD_DEFAULT, "getppid") & -4096ul;
	pid_t parent = getppid();
	CHECK(mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
	CHECK(madvise((void *)page, 8192, MADV_DONTNEED) == 0);
	CHECK(getppid() == parent);
	CHECK(mprotect((void *)page, 8192, PROT_READ | PROT_EXEC) == 0);
	CHECK(getppid() == parent && strstr(find((void *)page).path, "libc"));
	overwrite();
	const uintptr_t other = (uintptr_t)dlsym(RTLD_DEFAULT, "l64a") & -4096ul;
	CHECK(mprotect((void *)other, 8192, PROT_READ | PROT_WRITE) == 0);
	CHECK(madvise((void *)other, 8192, MADV_DONTNEED) == 0);
	CHECK(mprotect((void *)other, 8192, PROT_READ | PROT_EXEC) == 0);
	unharmed();
}

/* Text that is moved, and run where it is then. */
static void moved_away(void)
{
	struct place p = find((void *)dlsym(RTLD_DEFAULT, "getppid"));
	void *lib = dlmopen(LM_ID_NEWLM, p.path, RTLD_NOW | RTLD_LOCAL);
	CHECK(lib);
	const uintptr_t f = (uintptr_t)dlsym(lib, "getppid"), page = f & -4096ul;
	CHECK(f && ((pid_t(*)(void))f)() == getppid());
	char *to = mmap(NULL, 3 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(to != MAP_FAILED);
	to += 4096;
	CHECK(mremap((void *)page, 8192, 8192, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	CHECK(((pid_t(*)(void))(to + (f - page)))() == getppid());
	in_child(unharmed, 5);
}

/* ---- large pages for a text ---- */

static volatile sig_atomic_t alarms;
static void on_alarm(int s) { alarms += s == SIGALRM; }

/* None of libc's. */
static inline long call6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long r;
	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}

static inline void copy(void *to, const void *from, size_t n)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

/* Calls of that text, one of them interrupted. */
static void calls_work(pid_t parent)
{
	struct itimerval in = { { 0, 50000 }, { 0, 50000 } }, off = { 0 };
	CHECK(getppid() == parent && getpid() > 0 && write(1, "", 0) == 0);
	CHECK(sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &in, NULL) == 0);
	CHECK(pause() == -1 && errno == EINTR && alarms);
	CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
	in_child(unharmed, 5);
}

/* How node's --use-largepages, and libraries that are preloaded, put a text into large pages. moved: by mremap. */
static void replace_text(bool moved)
{
	struct place p = find((void *)dlsym(RTLD_DEFAULT, "l64a"));
	const long at = (long)p.start, len = (long)(p.end - p.start), rw = PROT_READ | PROT_WRITE,
		   rx = PROT_READ | PROT_EXEC;
	pid_t parent = getppid();
	void *kept = mmap(NULL, (size_t)len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(kept != MAP_FAILED);
	copy(kept, (void *)at, (size_t)len);
	long r = 0;
	if (moved) {
		r |= call6(SYS_mprotect, (long)kept, len, rx, 0, 0, 0);
		r |= call6(SYS_mremap, (long)kept, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at, 0) != at;
	} else {
		r |= call6(SYS_mmap, at, len, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at;
		copy((void *)at, kept, (size_t)len);
		r |= call6(SYS_mprotect, at, len, rx, 0, 0, 0);
	}
	CHECK(!r);
	calls_work(parent);
	/* The file's again, which is patched anew. */
	int fd = open(p.path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	r = call6(SYS_mmap, at, len, rx, MAP_PRIVATE | MAP_FIXED, fd, (long)p.off) != at;
	CHECK(!r);
	calls_work(parent);
}

static void copied_back(void) { replace_text(false); }
static void moved_over(void) { replace_text(true); }

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
	in_child(copied_back, 9);
	puts("ok replaced by a copy");
	in_child(moved_over, 10);
	puts("ok replaced by a copy that is moved there");
	in_child(given_up, 11);
	unharmed();
	puts("ok given up");
	in_child(moved_away, 12);
	puts("ok moved away");
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
