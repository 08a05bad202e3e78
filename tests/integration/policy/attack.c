/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program can try to get code into its memory that a policy does not allow. attack COMMAND ARG...: one line for
 * each attempt, "NAME: ok", "NAME: ran", or the errno by name.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define X (PROT_READ | PROT_EXEC)
#define RW (PROT_READ | PROT_WRITE)

/* mov $77,%eax; ret */
static const uint8_t code[] = { 0xb8, 77, 0, 0, 0, 0xc3 };
static char data_page[2 * PAGE] __attribute__((aligned(PAGE))) = { 1 };

static const char *name_of(int e) { return e ? strerrorname_np(e) : "ok"; }

static void say(const char *what, int e) { printf("%s: %s\n", what, name_of(e)); }

static int err_of(const void *p) { return p == MAP_FAILED ? errno : 0; }

/* Does what is at p run? */
static void try_run(const char *what, const void *p)
{
	fflush(stdout);
	pid_t pid = fork();
	int st;
	if (!pid)
		_exit(((int (*)(void))p)() == 77 ? 7 : 8);
	waitpid(pid, &st, 0);
	printf("%s: %s\n", what, WIFSIGNALED(st) && WTERMSIG(st) == SIGSEGV ? "SIGSEGV" : "ran");
}

/* File offset and length of the first segment with that flag, in whole pages. */
static int segment_of(int fd, unsigned flag, off_t *off, size_t *len)
{
	Elf64_Ehdr e;
	Elf64_Phdr p;
	if (pread(fd, &e, sizeof e, 0) != sizeof e)
		return -1;
	for (int i = 0; i < e.e_phnum && i < 64; i++)
		if (pread(fd, &p, sizeof p, (off_t)(e.e_phoff + (size_t)i * sizeof p)) == sizeof p &&
		    p.p_type == PT_LOAD && p.p_flags & flag) {
			*off = (off_t)(p.p_offset & -PAGE);
			*len = ((p.p_offset + p.p_filesz + PAGE - 1) & -PAGE) - (size_t)*off;
			return 0;
		}
	return -1;
}

static int code_of(int fd, off_t *off, size_t *len) { return segment_of(fd, PF_X, off, len); }

static void try_open(const char *what, void *h)
{
	if (!h) {
		printf("%s: %s\n", what, dlerror());
		return;
	}
	int (*value)(void) = (int (*)(void))dlsym(h, "value");
	printf("%s: value %d\n", what, value ? value() : 0);
}

static int cmd_open(char **path)
{
	for (; *path; path++) {
		try_open("dlopen", dlopen(*path, RTLD_NOW));
		try_open("dlmopen", dlmopen(LM_ID_NEWLM, *path, RTLD_NOW));
	}
	return 0;
}

static int map_code(const char *path, int flags, int prot)
{
	off_t off;
	size_t len;
	int fd = open(path, O_RDONLY | O_CLOEXEC), e;
	if (fd < 0 || code_of(fd, &off, &len)) {
		off = 0;
		len = PAGE;
	}
	void *p = mmap(NULL, len, prot, flags, fd, off);
	e = err_of(p);
	if (!e)
		munmap(p, len);
	if (fd >= 0)
		close(fd);
	return e;
}

/* By hand, without ld.so. */
static int cmd_map(char **path)
{
	for (; *path; path++) {
		say("private", map_code(*path, MAP_PRIVATE, X));
		say("shared", map_code(*path, MAP_SHARED, X));
		say("writable", map_code(*path, MAP_PRIVATE, X | PROT_WRITE));
		int fd = open(*path, O_RDONLY | O_CLOEXEC);
		off_t off;
		size_t len;
		if (fd < 0 || code_of(fd, &off, &len))
			return 1;
		uint8_t *p = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, off);
		say("later", mprotect(p, len, X) ? errno : 0);
		p = mmap(NULL, PAGE, X, MAP_PRIVATE, fd, 0); /* headers: no code */
		say("headers", err_of(p));
		/* What is behind the code is not executable, whatever the length. */
		p = mmap(NULL, len + 4 * PAGE, X, MAP_PRIVATE, fd, off);
		if (p != MAP_FAILED)
			say("behind", mprotect(p, len + PAGE, X) ? errno : 0);
		close(fd);
	}
	return 0;
}

/* DIR N: files 0..N-1, none of which may be loaded. */
static int cmd_variants(char **arg)
{
	int n = atoi(arg[1]), mapped = 0, loaded = 0, other = 0;
	char path[512];
	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof path, "%s/%d", arg[0], i);
		int e = map_code(path, MAP_PRIVATE, X);
		mapped += !e;
		other += e && e != EACCES;
		void *h = dlopen(path, RTLD_NOW);
		loaded += h != NULL;
		if (!e || h)
			printf("variant %d\n", i);
	}
	printf("of %d: mapped %d, loaded %d, other %d\n", n, mapped, loaded, other);
	return 0;
}

static void text_attacks(void)
{
	static const char nop = (char)0x90;
	uint8_t *text = (uint8_t *)((uintptr_t)text_attacks & -PAGE), was = *text;
	struct iovec from = { (void *)&nop, 1 }, to = { text, 1 };
	int fd, p[2];
	say("text writable and executable", mprotect(text, PAGE, X | PROT_WRITE) ? errno : 0);
	fd = open("/proc/self/mem", O_RDWR);
	say("/proc/self/mem", fd < 0 ? errno : pwrite(fd, &nop, 1, (off_t)(uintptr_t)text) == 1 ? 0 : errno);
	fd = open("/proc/thread-self/mem", O_WRONLY);
	say("/proc/thread-self/mem", fd < 0 ? errno : pwrite(fd, &nop, 1, (off_t)(uintptr_t)text) == 1 ? 0 : errno);
	say("process_vm_writev", process_vm_writev(getpid(), &from, 1, &to, 1, 0) == 1 ? 0 : errno);
	fflush(stdout);
	pid_t pid = fork();
	if (!pid)
		for (;;)
			pause();
	say("ptrace", ptrace(PTRACE_ATTACH, pid, NULL, NULL) ? errno : 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	if (pipe(p) || write(p[1], &nop, 1) != 1)
		exit(1);
	say("read into text", read(p[0], text, 1) == 1 ? 0 : errno);
	say("text unchanged", *text == was ? 0 : EBADMSG);
	fd = open("/proc/self/exe", O_RDONLY);
	uint8_t *q = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
	q[0] = 0xc3;
	say("file page written to", mprotect(q, PAGE, X) ? errno : 0);
	uint8_t *copy = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(copy, text, PAGE);
	say("moved over text", mremap(copy, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q) == MAP_FAILED ? errno : 0);
	say("and executable", mprotect(q, PAGE, X) ? errno : 0);
	/* Last, since the page is the program's: writable, and back. */
	uint8_t *libc = (uint8_t *)((uintptr_t)dlsym(RTLD_DEFAULT, "wcsxfrm") & -PAGE);
	if (!mprotect(libc, PAGE, RW))
		say("text written to", mprotect(libc, PAGE, X) ? errno : 0);
}

static int memfd_with_code(void)
{
	int fd = memfd_create("code", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, PAGE) || pwrite(fd, code, sizeof code, 0) != sizeof code)
		exit(1);
	return fd;
}

/* PATH: a library that may be loaded. */
static int cmd_memory(char **arg)
{
	say("anonymous", err_of(mmap(NULL, PAGE, X, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
	say("anonymous writable", err_of(mmap(NULL, PAGE, X | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
	say("anonymous shared", err_of(mmap(NULL, PAGE, X, MAP_SHARED | MAP_ANONYMOUS, -1, 0)));
	uint8_t *p = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(p, code, sizeof code);
	say("mprotect", mprotect(p, PAGE, X) ? errno : 0);
	try_run("mprotect, run", p);
	say("pkey_mprotect", syscall(SYS_pkey_mprotect, p, PAGE, X, -1) ? errno : 0);
	memcpy(data_page, code, sizeof code);
	say("data", mprotect(data_page, PAGE, X) ? errno : 0);
	try_run("data, run", data_page);
	p = sbrk(2 * PAGE);
	p = (uint8_t *)(((uintptr_t)p + PAGE - 1) & -PAGE);
	memcpy(p, code, sizeof code);
	say("heap", mprotect(p, PAGE, X) ? errno : 0);
	say("stack", mprotect((void *)((uintptr_t)&p & -PAGE), PAGE, X | PROT_WRITE | PROT_GROWSDOWN) ? errno : 0);
	int fd = memfd_with_code();
	say("memfd", err_of(mmap(NULL, PAGE, X, MAP_PRIVATE, fd, 0)));
	say("memfd shared", err_of(mmap(NULL, PAGE, X, MAP_SHARED, fd, 0)));
	p = mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0);
	uint8_t *q = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	say("memfd later", mprotect(q, PAGE, X) ? errno : 0);
	say("memfd shared later", mprotect(p, PAGE, X) ? errno : 0);
	say("memfd again", (q = mremap(p, 0, PAGE, MREMAP_MAYMOVE)) == MAP_FAILED ? errno
			   : mprotect(q, PAGE, X)                                 ? errno
										  : 0);
	int id = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0700);
	say("shmat", err_of(shmat(id, NULL, SHM_EXEC)));
	p = shmat(id, NULL, 0);
	memcpy(p, code, sizeof code);
	say("shmat later", mprotect(p, PAGE, X) ? errno : 0);
	try_run("shmat, run", p);
	shmctl(id, IPC_RMID, NULL);
	say("remap_file_pages", syscall(SYS_remap_file_pages, p, PAGE, 0, 0, 0) ? errno : 0);
	fd = open("/dev/zero", O_RDONLY);
	say("/dev/zero", err_of(mmap(NULL, PAGE, X, MAP_PRIVATE, fd, 0)));
	/* A library's: more than was mapped, and over it. */
	off_t off;
	size_t len;
	fd = open(arg[0], O_RDONLY);
	if (fd < 0 || code_of(fd, &off, &len))
		return 1;
	p = mmap(NULL, len, X, MAP_PRIVATE, fd, off);
	say("library", err_of(p));
	q = mremap(p, len, len + PAGE, MREMAP_MAYMOVE);
	say("grown", err_of(q));
	q = mmap(p, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	memcpy(q, code, sizeof code);
	say("replaced", mprotect(q, PAGE, X) ? errno : 0);
	try_run("replaced, run", q);
	personality(READ_IMPLIES_EXEC);
	p = mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(p, code, sizeof code);
	try_run("read implies execute, run", p);
	text_attacks();
	return 0;
}

/* PATH SECONDS GOOD: load it again and again; only GOOD may come. */
static int cmd_race(char **arg)
{
	time_t end = time(NULL) + atoi(arg[1]);
	int good = atoi(arg[2]), loaded = 0, refused = 0, wrong = 0;
	while (time(NULL) < end ||
	       (time(NULL) < end + 200 && !(loaded && refused))) { /* on a busy machine that takes longer */
		void *h = dlopen(arg[0], RTLD_NOW);
		if (!h) {
			refused++;
			continue;
		}
		int (*value)(void) = (int (*)(void))dlsym(h, "value"), (*data)(void) = (int (*)(void))dlsym(h, "data");
		int v = value ? value() : -2, d = data ? data() : -2;
		loaded++;
		if (v != good || d != good)
			printf("value %d, data %d\n", v, d);
		wrong += v != good || d != good;
		dlclose(h);
	}
	printf("loaded %s, refused %s, wrong %d\n", loaded ? "some" : "none", refused ? "some" : "none", wrong);
	return 0;
}

static uint32_t sum_of(const char *name)
{
	char line[512];
	uint32_t sum = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	while (f && fgets(line, sizeof line, f)) {
		unsigned long a, b;
		char perm[8];
		if (!strstr(line, name) || sscanf(line, "%lx-%lx %7s", &a, &b, perm) != 3 || *perm != 'r')
			continue;
		for (uint8_t *p = (uint8_t *)a; p < (uint8_t *)b; p++)
			sum = sum * 31 + *p;
	}
	if (f)
		fclose(f);
	return sum;
}

/*
 * PATH: what is mapped stays what it is, whatever becomes of the file meanwhile. PATH value: what the library says alone; of a
 * version that is replaced the bytes may be unmapped while they are read.
 */
static int cmd_watch(char **arg)
{
	const char *base = strrchr(arg[0], '/') + 1;
	void *h = dlopen(arg[0], RTLD_NOW);
	if (!h) {
		printf("%s\n", dlerror());
		return 1;
	}
	int (*value)(void) = (int (*)(void))dlsym(h, "value");
	uint32_t sum = arg[1] ? 0 : sum_of(base);
	printf("loaded %d\n", value());
	fflush(stdout);
	getchar();
	if (arg[1])
		return printf("value %d\n", value()) < 0;
	printf("value %d, bytes %s\n", value(), sum && sum_of(base) == sum ? "the same" : "changed");
	return 0;
}

/* PATH: the parts of a file, by hand as ld.so does it. The file changes when the code is mapped. */
static int cmd_parts(char **arg)
{
	struct stat st;
	off_t x, w;
	size_t xlen, wlen;
	int fd = open(arg[0], O_RDONLY);
	if (fd < 0 || fstat(fd, &st) || code_of(fd, &x, &xlen) || segment_of(fd, PF_W, &w, &wlen))
		return 1;
	uint8_t *was = malloc((size_t)st.st_size);
	if (pread(fd, was, (size_t)st.st_size, 0) != st.st_size)
		return 1;
	uint8_t *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	mmap(p + w, wlen, RW, MAP_PRIVATE | MAP_FIXED, fd, w);
	say("code after data", err_of(mmap(p + x, xlen, X, MAP_PRIVATE | MAP_FIXED, fd, x)));
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	say("code", err_of(mmap(p + x, xlen, X, MAP_PRIVATE | MAP_FIXED, fd, x)));
	fflush(stdout);
	getchar();
	say("data", err_of(mmap(p + w, wlen, RW, MAP_PRIVATE | MAP_FIXED, fd, w)));
	printf("bytes: %s\n", memcmp(p, was, (size_t)st.st_size) ? "changed" : "the same");
	return 0;
}

/* DIRECTORY PROGRAM: vfork, chroot, exec. */
static int cmd_vchroot(char **arg)
{
	char *argv[] = { arg[1], NULL };
	int st;
	pid_t pid = vfork();
	if (!pid) {
		if (!chroot(arg[0]))
			execv(arg[1], argv);
		_exit(errno);
	}
	waitpid(pid, &st, 0);
	printf("status: %d\n", WEXITSTATUS(st));
	return 0;
}

static uint8_t *volatile target;

static void *write_to_it(void *arg)
{
	int fd = open("/dev/zero", O_RDONLY);
	for (uint8_t *p; (p = target);)
		(void)!read(fd, p, 1);
	return arg;
}

/* PATH ROUNDS: another thread has the kernel write into a text while it is being mapped. */
static int cmd_window(char **arg)
{
	pthread_t t;
	off_t off;
	size_t len;
	int fd = open(arg[0], O_RDONLY), changed = 0, failed = 0;
	if (fd < 0 || code_of(fd, &off, &len))
		return 1;
	uint8_t *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	target = p + len / 2;
	pthread_create(&t, NULL, write_to_it, NULL);
	for (int i = atoi(arg[1]); i; i--) {
		failed += mmap(p, len, X, MAP_PRIVATE | MAP_FIXED, fd, off) != p;
		changed += p[len / 2] != 0x90;
		mmap(p, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	}
	target = NULL;
	pthread_join(t, NULL);
	printf("failed %d, changed %d\n", failed, changed);
	return 0;
}

/* ---- what an update may write to ---- */

/* kylinx.h: pointers that an update is told of. */
__attribute__((visibility("default"))) uint64_t kylinx_pointers[2];

/*
 * LIBRARY FILE: FILE has a pointer to the library's function among its code, which is mapped to be read. An update is told that it
 * is a pointer. Does it write there, and is that code then?
 */
static int cmd_told(char **arg)
{
	void *h = dlopen(arg[0], RTLD_NOW);
	const void *value = h ? dlsym(h, "value") : NULL;
	off_t off;
	size_t len;
	printf("%p\n", value);
	fflush(stdout);
	getchar();
	if (map_code(arg[1], MAP_PRIVATE, X))
		return 1;
	int fd = open(arg[1], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || code_of(fd, &off, &len))
		return 1;
	uint8_t *p = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, off);
	const uint64_t *word = memmem(p, len, &value, sizeof value);
	if (!word)
		return 2;
	kylinx_pointers[1] = (uint64_t)word;
	kylinx_pointers[0] = 1;
	volatile uint64_t was = ~*word; /* no pointer, which the update would change */
	printf("told\n");
	fflush(stdout);
	getchar();
	printf("%s, %s\n", *word == ~was ? "the same" : "written to", name_of(mprotect(p, len, X) ? errno : 0));
	return 0;
}

/* ---- code of one's own where a text is being mapped ---- */

static __thread sigjmp_buf back;
static volatile int ran;

static void on_segv(int sig) { siglongjmp(back, sig); }

/* What is at target, called: its result. */
static int call_it(const uint8_t *p)
{
	long r = 0;
	__asm__ volatile("call *%1"
			 : "+a"(r)
			 : "r"(p)
			 : "memory", "cc", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11");
	return (int)r;
}

static void *run_it(void *arg)
{
	(void)!sigsetjmp(back, 0);
	for (const uint8_t *p; (p = target);)
		ran += call_it(p) == 77;
	return arg;
}

static void own_code(uint8_t *p, size_t len)
{
	mmap(p, len, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	memcpy(target, code, sizeof code);
}

/* PATH ROUNDS: another thread runs what is there, before a text is mapped or moved over it, or one of them is refused. */
static int cmd_over(char **arg)
{
	struct sigaction sa = { .sa_handler = on_segv, .sa_flags = SA_NODEFER };
	pthread_t t;
	off_t off;
	size_t len;
	int fd = open(arg[0], O_RDONLY), failed = 0;
	if (fd < 0 || code_of(fd, &off, &len))
		return 1;
	uint8_t *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *q;
	target = p + len - 2 * PAGE; /* a big library has `nop`s there, and something that returns behind them */
	sigaction(SIGSEGV, &sa, NULL);
	pthread_create(&t, NULL, run_it, NULL);
	for (int i = atoi(arg[1]); i; i--) {
		own_code(p, len);
		failed += mmap(p, len, X, MAP_PRIVATE | MAP_FIXED | MAP_HUGETLB, fd, off) != MAP_FAILED ||
			  errno != EINVAL;
		failed += mmap(p, len, X, MAP_PRIVATE | MAP_FIXED, fd, off) != p;
		own_code(p, len);
		q = mmap(NULL, len, X, MAP_PRIVATE, fd, off);
		failed += q == MAP_FAILED || mremap(q, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, p) != p;
	}
	target = NULL;
	pthread_join(t, NULL);
	printf("failed %d, ran %d\n", failed, ran);
	return 0;
}

static void *wait_for_it(void *arg)
{
	while (target)
		usleep(1000);
	return arg;
}

/* PATH ROUNDS THREAD: a page of a text loses the right to be executed so often, while there is another thread (THREAD 1) or none. */
static int cmd_unexec(char **arg)
{
	pthread_t t;
	off_t off;
	size_t len;
	int fd = open(arg[0], O_RDONLY), failed = 0, thread = atoi(arg[2]);
	if (fd < 0 || code_of(fd, &off, &len))
		return 1;
	uint8_t *p = mmap(NULL, len, X, MAP_PRIVATE, fd, off);
	target = p;
	if (thread)
		pthread_create(&t, NULL, wait_for_it, NULL);
	for (int i = atoi(arg[1]); i; i--)
		failed += mprotect(p, PAGE, PROT_READ) || mprotect(p, PAGE, X);
	target = NULL;
	if (thread)
		pthread_join(t, NULL);
	printf("failed %d\n", failed);
	return 0;
}

/* ---- calls that fail halfway ---- */

#define PIECES 80000ul /* more than the kernel has mappings for a process, or the monitor regions */

/* What is at p is code of a library's, in two mappings of the kernel's, or two regions. */
static void try_half(const char *what, uint8_t *p, uint8_t *code_at, size_t len)
{
	int e = mprotect(p, len, RW) ? errno : 0;
	volatile int result = 0;
	if (!sigsetjmp(back, 0)) {
		memcpy(code_at, code, sizeof code);
		result = call_it(code_at);
	}
	printf("%s: %s, %s\n", what, name_of(e), result == 77 ? "ran" : "did not run");
}

/* PATH FILE: it can be made writable in part, for want of mappings, or of the monitor's notes of them. */
static int cmd_half(char **arg)
{
	struct sigaction sa = { .sa_handler = on_segv, .sa_flags = SA_NODEFER };
	off_t off;
	size_t len, i;
	int fd = open(arg[0], O_RDONLY), file = open(arg[1], O_RDWR | O_CREAT, 0600);
	if (fd < 0 || file < 0 || code_of(fd, &off, &len) || len < 16 * PAGE || ftruncate(file, PIECES * PAGE))
		return 1;
	sigaction(SIGSEGV, &sa, NULL);
	uint8_t *p = mmap(NULL, 16 * PAGE, X, MAP_PRIVATE, fd, off);
	uint8_t *q = mmap(NULL, 12 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *m = mmap(NULL, PIECES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (madvise(p + 8 * PAGE, 8 * PAGE, MADV_RANDOM) ||
	    mmap(q + 8 * PAGE, 4 * PAGE, X, MAP_PRIVATE | MAP_FIXED, fd, off) == MAP_FAILED)
		return 1;
	for (i = 0; i < PIECES && !madvise(m + i * PAGE, PAGE, MADV_RANDOM); i += 2)
		;
	try_half("mappings", p, p, 12 * PAGE);
	munmap(m, PIECES * PAGE);
	m = mmap(NULL, PIECES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (i = 0; i < PIECES &&
		    mmap(m + i * PAGE, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, file, (off_t)(i * PAGE)) != MAP_FAILED;
	     i++)
		;
	munmap(m + (i - 1) * PAGE, PAGE);
	try_half("regions", q + 4 * PAGE, q + 8 * PAGE, 8 * PAGE);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*fn)(char **arg);
		int args;
	} commands[] = { { "open", cmd_open, 1 },     { "map", cmd_map, 1 },       { "variants", cmd_variants, 2 },
			 { "memory", cmd_memory, 1 }, { "race", cmd_race, 3 },     { "watch", cmd_watch, 1 },
			 { "parts", cmd_parts, 1 },   { "window", cmd_window, 2 }, { "vchroot", cmd_vchroot, 2 },
			 { "over", cmd_over, 2 },     { "told", cmd_told, 2 },     { "half", cmd_half, 2 },
			 { "unexec", cmd_unexec, 3 } };
	for (unsigned i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
		if (!strcmp(argv[1], commands[i].name) && argc >= 2 + commands[i].args)
			return commands[i].fn(argv + 2);
	return argc > 1;
}
