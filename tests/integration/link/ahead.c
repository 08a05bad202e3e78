/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ahead.c LIBRARY: what musl's dynamic linker does with a library, up to each step, and then something else. Built with
 * musl, whose linker and C library are one, so that these calls are the linker's. Says what is mapped, from the library's
 * first byte on, and what is in it. What the linker would not do, touch memory between its calls, it does behind a call
 * of another kind.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define UP(x) (((x) + PAGE - 1) & -PAGE)

static const char *path;
static char *base;
static size_t span;
static int fd;
static char text[1 << 16]; /* of maps, read in one call */
static sigjmp_buf out;

static void fault(int sig)
{
	(void)sig;
	siglongjmp(out, 1);
}

/* 1: it can be written (what is there stays). */
static int can_write(volatile char *p)
{
	if (sigsetjmp(out, 1))
		return 0;
	*p = *p;
	return 1;
}

static int can_read(volatile char *p)
{
	if (sigsetjmp(out, 1))
		return 0;
	(void)*p;
	return 1;
}

static void maps(const char *when)
{
	int m = open("/proc/self/maps", O_RDONLY);
	size_t n = 0;
	ssize_t r;
	while ((r = read(m, text + n, sizeof text - 1 - n)) > 0)
		n += (size_t)r;
	text[n] = 0;
	close(m);
	unsigned long from = 0, to = 0, at = 0; /* one line for what goes on as before it */
	char last[4200] = "", now[4200];
	printf("%s:\n", when);
	for (char *l = strtok(text, "\n"); l; l = strtok(NULL, "\n")) {
		unsigned long a, e, off, dev, minor, ino;
		char prot[8], name[4096] = "";
		sscanf(l, "%lx-%lx %7s %lx %lx:%lx %lu %4095s", &a, &e, prot, &off, &dev, &minor, &ino, name);
		if (e <= (unsigned long)base || a >= (unsigned long)base + span)
			continue;
		a = a < (unsigned long)base ? 0 : a - (unsigned long)base;
		e = e > (unsigned long)base + span ? span : e - (unsigned long)base;
		snprintf(now, sizeof now, "%s %s", prot, name[0] == '[' ? "" : name);
		if (a == to && !strcmp(now, last) && (!ino || off == at + (a - from))) {
			to = e;
			continue;
		}
		if (*last)
			printf("  %lx-%lx %lx %s\n", from, to, at, last);
		from = a;
		to = e;
		at = ino ? off : 0;
		strcpy(last, now);
	}
	if (*last)
		printf("  %lx-%lx %lx %s\n", from, to, at, last);
}

static void content(void)
{
	unsigned sum = 0;
	for (size_t i = 0; i < span; i += PAGE) {
		if (!can_read(base + i)) {
			sum = sum * 31 + 1;
			continue;
		}
		for (size_t k = 0; k < PAGE; k++)
			sum = sum * 31 + (unsigned char)base[i + k];
	}
	printf("content %u\n", sum);
}

static void (*between)(void);
static int between_at;

/* Before step n + 1. */
static int step(int n)
{
	if (between && n == between_at)
		between();
	return n;
}

/* The linker's first `steps` calls after open(). How many there are. */
static int load(int steps)
{
	uint64_t buf[120];
	Elf64_Ehdr *eh = (Elf64_Ehdr *)buf;
	struct stat st;
	int n = 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	base = NULL;
	if (fd < 0 || (step(n++) < steps && fstat(fd, &st)))
		exit(1);
	if (step(n++) >= steps)
		return n;
	if (read(fd, buf, sizeof buf) < (ssize_t)sizeof *eh)
		exit(2);
	const Elf64_Phdr *ph = (Elf64_Phdr *)((char *)buf + eh->e_phoff), *first = NULL, *relro = NULL;
	span = 0;
	for (int i = 0; i < eh->e_phnum; i++) {
		if (ph[i].p_type == PT_LOAD && !first)
			first = &ph[i];
		if (ph[i].p_type == PT_LOAD)
			span = UP(ph[i].p_vaddr + ph[i].p_memsz);
		if (ph[i].p_type == PT_GNU_RELRO)
			relro = &ph[i];
	}
	if (step(n++) >= steps)
		return n;
	base = mmap(NULL, span, PROT_READ, MAP_PRIVATE, fd, 0);
	if (base == MAP_FAILED)
		exit(3);
	for (const Elf64_Phdr *p = first + 1; p < ph + eh->e_phnum && p->p_type == PT_LOAD; p++) {
		int prot = (p->p_flags & PF_R ? PROT_READ : 0) | (p->p_flags & PF_W ? PROT_WRITE : 0) |
			   (p->p_flags & PF_X ? PROT_EXEC : 0);
		char *at = base + (p->p_vaddr & -PAGE), *end = base + p->p_vaddr + p->p_filesz;
		if (step(n++) >= steps)
			return n;
		if (mmap(at, base + UP(p->p_vaddr + p->p_memsz) - at, prot, MAP_PRIVATE | MAP_FIXED, fd,
			 (off_t)(p->p_offset & -PAGE)) != at)
			exit(4);
		if (p->p_memsz <= p->p_filesz || !(p->p_flags & PF_W))
			continue;
		char *zero = (char *)UP((uintptr_t)end), *stop = base + UP(p->p_vaddr + p->p_memsz);
		if (zero > end && can_write(end)) /* not where the file ends before it */
			memset(end, 0, (size_t)(zero - end));
		if (zero >= stop)
			continue;
		if (step(n++) >= steps)
			return n;
		if (mmap(zero, (size_t)(stop - zero), prot, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0) != zero)
			exit(5);
	}
	if (step(n++) >= steps)
		return n;
	if (close(fd))
		exit(6);
	if (step(n++) >= steps || !relro)
		return n;
	if (mprotect(base + (relro->p_vaddr & -PAGE),
		     ((relro->p_vaddr + relro->p_memsz) & -PAGE) - (relro->p_vaddr & -PAGE), PROT_READ))
		exit(7);
	return n;
}

static void look(void) { maps("as it is"); }

static void in_a_child(void)
{
	int st;
	fflush(stdout);
	pid_t p = fork();
	if (!p) {
		maps("in a child");
		content();
		fflush(stdout);
		_exit(0);
	}
	waitpid(p, &st, 0);
	maps("after it");
}

static void hole(void)
{
	printf("munmap %d\n", munmap(base + PAGE, PAGE));
	maps("less a page");
}

static void over(void)
{
	char *p = mmap(base + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
	printf("over a part %d\n", p == base + PAGE);
	maps("two pages of other memory");
}

static void away(void)
{
	char *p = mremap(base, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, base + span + 64 * PAGE);
	printf("moved %d, first bytes %.3s\n", p == base + span + 64 * PAGE, p == MAP_FAILED ? "-" : p + 1);
	maps("less its first page");
	munmap(p, PAGE);
}

static void by_the_host(void)
{
	struct iovec v = { base, 8 };
	int z = open("/dev/zero", O_RDONLY);
	for (size_t i = 0; i < span; i += PAGE) {
		char was[8];
		v.iov_base = base + i + 64;
		int can = can_read(v.iov_base);
		if (can)
			memcpy(was, v.iov_base, 8);
		printf(" %zd", readv(z, &v, 1));
		if (can && can_write(v.iov_base))
			memcpy(v.iov_base, was, 8);
	}
	printf(" written by the kernel\n");
	close(z);
}

static void exec_off(void)
{
	printf("mprotect %d\n", mprotect(base, PAGE, PROT_NONE));
	maps("less access to its first page");
}

/* Calls that a linker makes for its own memory, then the rest by hand. */
static void memory(void)
{
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("apart %d\n", p + PAGE <= base || p >= base + span);
	*p = 1;
	munmap(p, PAGE);
	maps("with other memory made");
	if (fcntl(fd, F_GETFD) < 0)
		return;
	char *q = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	printf("again %.3s\n", q == MAP_FAILED ? "-" : q + 1);
	munmap(q, 2 * PAGE);
	maps("after that");
}

static void written(void)
{
	for (size_t i = 0; i < span; i += PAGE)
		printf("%c", can_write(base + i) ? 'w' : can_read(base + i) ? 'r' : '-');
	printf("\n");
	content();
	maps("written to");
}

static void twice(void)
{
	char *was = base;
	size_t s = span;
	int f = fd;
	load(99);
	syscall(SYS_getpgid, 0);
	maps("another one");
	written();
	munmap(base, span);
	base = was;
	span = s;
	fd = f;
	maps("the first one");
}

/* ---- between two steps ---- */

/* Another file has the library's name. */
static void replaced(void)
{
	char was[4200];
	snprintf(was, sizeof was, "%s.was", path);
	rename(path, was);
	int f = open(path, O_WRONLY | O_CREAT | O_EXCL, 0755);
	if (write(f, "no library", 10) != 10)
		exit(8);
	close(f);
}

static void put_back(void)
{
	char was[4200];
	snprintf(was, sizeof was, "%s.was", path);
	rename(was, path);
}

/* Text is another than it was. */
static void changed(void)
{
	int f = open(path, O_RDWR);
	char c = 0;
	if (pread(f, &c, 1, PAGE + 8) == 1) {
		c ^= 1;
		if (pwrite(f, &c, 1, PAGE + 8) != 1)
			exit(9);
	}
	close(f);
}

static void forked(void)
{
	int st;
	pid_t p = fork();
	if (!p)
		_exit(base && base != MAP_FAILED ? base[1] : 0);
	waitpid(p, &st, 0);
	printf("child %#x\n", st);
}

static void heap(void)
{
	char *p = malloc(300000); /* a mapping of its own */
	memset(p, 1, 300000);
	free(p);
	free(sbrk(0) == (void *)-1 ? NULL : malloc(100));
}

static void seen(void)
{
	if (base && base != MAP_FAILED)
		maps("between");
}

static void moved(void) { printf("at %ld\n", (long)lseek(fd, 0, SEEK_SET)); }

static void other(void)
{
	int f = open("/lib64/ld-linux-x86-64.so.2", O_RDONLY | O_CLOEXEC);
	struct stat st;
	printf("other %d %d\n", f >= 0, fstat(f, &st));
	close(f);
}

int main(int argc, char **argv)
{
	static void (*const what[])(void) = { look,        in_a_child, hole,   over,    away,
					      by_the_host, exec_off,   memory, written, twice };
	static void (*const betweens[])(void) = { replaced, changed, forked, heap, seen, moved, other };
	signal(SIGSEGV, fault);
	signal(SIGBUS, fault);
	path = argv[1];
	if (argc < 2)
		return 1;
	int all = load(99);
	munmap(base, span);
	for (unsigned w = 0; w < sizeof what / sizeof what[0]; w++)
		for (int k = 1; k <= all; k++) {
			load(k);
			if (!base) { /* nothing mapped yet: the library's own range is nowhere */
				close(fd);
				continue;
			}
			printf("-- %u, %d steps\n", w, k);
			/* What was told may be made as late as with the next call that leaves the program. */
			syscall(SYS_getpgid, 0);
			what[w]();
			content();
			printf("close %d", close(fd));
			printf(" munmap %d\n", munmap(base, span));
			maps("nothing");
		}
	/* The very next call would write to what is read-only. */
	for (unsigned w = 0; w < 14; w++) {
		int z = open("/dev/zero", O_RDONLY);
		struct iovec v = { NULL, 8 };
		long r = 0;
		load(all - 1 + (int)(w & 1));
		v.iov_base = base + 64;
		errno = 0;
		switch (w >> 1) {
		case 0:
			r = read(z, base + 64, 8);
			break;
		case 1:
			r = syscall(SYS_newfstatat, AT_FDCWD, "/", base + 128, 0);
			break;
		case 2:
			r = readv(z, &v, 1);
			break;
		case 3:
			r = munmap(base, PAGE);
			break;
		case 4:
			r = munmap(base + PAGE, PAGE);
			break;
		case 5:
			r = mprotect(base + PAGE, PAGE, PROT_READ | PROT_WRITE);
			break;
		case 6:
			r = mprotect(base + PAGE, PAGE, PROT_NONE);
		}
		printf("first %u: %ld %d, still %.3s\n", w, r, errno, can_read(base) ? base + 1 : "-");
		v.iov_base = base + 2 * PAGE + 8;
		printf("next page %zd\n", readv(z, &v, 1));
		maps("then");
		written();
		content();
		munmap(base, span);
		close(z);
	}
	for (unsigned b = 0; b < sizeof betweens / sizeof betweens[0]; b++)
		for (between_at = 0; between_at < all; between_at++) {
			between = betweens[b];
			printf("-- between %u, %d\n", b, between_at);
			load(99);
			between = NULL;
			syscall(SYS_getpgid, 0);
			maps("in the end");
			content();
			written();
			munmap(base, span);
			if (betweens[b] == replaced)
				put_back();
			if (betweens[b] == changed)
				changed(); /* as it was */
		}
	return 0;
}
