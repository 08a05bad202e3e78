/* SPDX-License-Identifier: Apache-2.0 */
/*
 * warm.c LIBRARY: calls that are to write into texts and constants, right after the start of a program and after a library
 * is loaded, and what is mapped there. LIBRARY is liba.so (part.c).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define PAGE 4096ul

static const char constant[3 * PAGE] __attribute__((aligned(4096))) = "constant";
static sigjmp_buf out;
static int p[2];

__attribute__((noinline, aligned(4096))) static int code(int x)
{
	__asm__ volatile("");
	return x * 3 + 1;
}

static void fault(int sig)
{
	(void)sig;
	siglongjmp(out, 1);
}

__attribute__((noinline)) static int writable(volatile char *q)
{
	if (sigsetjmp(out, 1))
		return 0;
	*q = *q;
	return 1;
}

__attribute__((noinline)) static int readable(volatile const char *q)
{
	if (sigsetjmp(out, 1))
		return 0;
	(void)*q;
	return 1;
}

static void say(const char *what, long r) { printf("%s: %ld %s\n", what, r, r < 0 ? strerror(errno) : ""); }

/* Each call alone, so that it is the first one. */
static void calls(char *at, int which)
{
	struct iovec v[2] = { { at, 4 }, { at + 8, 4 } };
	int fd;
	switch (which) {
	case 0:
		say("read", read(p[0], at, 4));
		break;
	case 1:
		say("readv", readv(p[0], v, 2));
		break;
	case 2:
		say("fstat", fstat(p[0], (struct stat *)at));
		break;
	case 3:
		say("stat", stat("/", (struct stat *)at));
		break;
	case 4:
		say("getcwd", getcwd(at, 4096) ? 0 : -1);
		break;
	case 5:
		say("readlink", readlink("/proc/self/exe", at, 100));
		break;
	case 6:
		fd = open("/proc/self/cmdline", O_RDONLY);
		say("read of /proc", read(fd, at, 4));
		close(fd);
		break;
	case 7:
		fd = open("/etc/passwd", O_RDONLY);
		say("pread", pread(fd, at, 4, 0));
		say("read of a file", read(fd, at, 4));
		close(fd);
		break;
	case 8:
		say("getrlimit", getrlimit(RLIMIT_NOFILE, (struct rlimit *)at));
		break;
	case 9:
		say("uname", uname((struct utsname *)at));
		break;
	case 10:
		say("sigaction", syscall(SYS_rt_sigaction, SIGUSR1, NULL, at, 8));
		break;
	case 11:
		say("pipe", pipe((int *)at));
		break;
	case 12: /* from writable memory before it into it */
		fd = open("/dev/zero", O_RDONLY);
		char *m = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		char *f = mmap(m + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_DENYWRITE,
			       p[0] ? open("/proc/self/exe", O_RDONLY) : -1, 0);
		long r = read(fd, m + PAGE - 8, 16);
		printf("across: %d, first %c\n", r == 8 || (r < 0 && errno == EFAULT), f[1]);
		break;
	}
}

static void perms(const char *what, const void *at)
{
	static char text[1 << 16];
	unsigned long a, e;
	char prot[8];
	int fd = open("/proc/self/maps", O_RDONLY);
	size_t n = 0;
	for (ssize_t r; (r = read(fd, text + n, sizeof text - 1 - n)) > 0;)
		n += (size_t)r;
	close(fd);
	text[n] = 0;
	for (char *l = strtok(text, "\n"); l; l = strtok(NULL, "\n"))
		if (sscanf(l, "%lx-%lx %7s", &a, &e, prot) == 3 && a <= (unsigned long)at && (unsigned long)at < e)
			printf("%s is %s\n", what, prot);
}

static void child_of(char *self, int which)
{
	char n[8];
	snprintf(n, sizeof n, "%d", which);
	fflush(stdout);
	pid_t c = fork();
	if (!c) {
		execl(self, self, n, NULL);
		_exit(9);
	}
	int st;
	waitpid(c, &st, 0);
	printf("%#x\n", st);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	pipe(p);
	write(p[1], "abcdefghijklmnop", 16);
	signal(SIGSEGV, fault);
	signal(SIGBUS, fault);
	if (argc > 1 && argv[1][0] != '/') {
		int which = atoi(argv[1]);
		calls(which % 2 ? (char *)(uintptr_t)constant : (char *)(uintptr_t)code, which / 2);
		printf("%d %s\n", code(which), constant);
		fflush(stdout);
		return 0;
	}
	printf("%d %s\n", code(1), constant);
	printf("writable %d", writable((char *)(uintptr_t)code));
	printf(" %d\n", writable((char *)(uintptr_t)constant));
	perms("text", (void *)(uintptr_t)code);
	perms("constants", constant);

	/* A library; its text becomes something else. */
	void *h;
	int (*fn)(void) = NULL;
	char *text = NULL;
	for (int i = 0; i < 4; i++) {
		h = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
		fn = h ? (int (*)(void))dlsym(h, "value_a") : NULL;
		text = (char *)((uintptr_t)fn & -PAGE);
		if (!fn)
			return 3;
		printf("%d: %d", i, fn());
		if (i == 1)
			printf(" %d", mprotect(text, PAGE, PROT_READ | PROT_WRITE) || !writable(text));
		if (i == 2)
			printf(" %d", mprotect(text, PAGE, PROT_NONE) || readable(text));
		if (i == 3)
			printf(" %ld", (long)read(p[0], text, 2));
		if (i == 1 || i == 2)
			printf(" %d", mprotect(text, PAGE, PROT_READ | PROT_EXEC));
		printf(" %d", fn());
		printf(" closed %d", dlclose(h));
		printf(", there %d\n", readable(text));
	}
	h = dlopen(argv[1], RTLD_NOW);
	fn = (int (*)(void))dlsym(h, "value_a");
	text = (char *)((uintptr_t)fn & -PAGE);
	fflush(stdout);
	if (!fork()) {
		printf("child %d %d\n", fn(), code(5));
		fflush(stdout);
		_exit(0);
	}
	wait(NULL);
	usleep(1000);
	printf("after it %d\n", fn());
	char self[4096] = "";
	readlink("/proc/self/exe", self, sizeof self - 1);
	for (int i = 0; i < 26; i++)
		child_of(self, i);
	h = dlopen("libm.so.6", RTLD_NOW);
	text = (char *)((uintptr_t)dlsym(h, "j0") & -PAGE);
	printf("part %d, there", munmap(text, PAGE));
	for (int i = -1; i < 2; i++)
		printf(" %d", readable(text + i * (long)PAGE));
	printf("\nzeros %d",
	       mmap(text, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == text);
	printf(" %d, writable", *text);
	for (int i = -1; i < 2; i++)
		printf(" %d", writable(text + i * (long)PAGE));
	printf("\n");
	fflush(stdout);
	_exit(0);
}
