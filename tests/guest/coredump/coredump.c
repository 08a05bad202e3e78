/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Core files: who leaves one, where, and who hears of it. Passes on Linux whose core_pattern is `core`; works in a new
 * directory below /tmp. With an argument it is what such a file is of (tests/integration/test_coredump.py).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include "../check.h"

#define FILE_SIZE(s) (stat("core", &s) ? -1 : s.st_size)

static struct stat st;
static volatile int *volatile nowhere = (int *)16;

static void core_limit(rlim_t n) { NEED(setrlimit(RLIMIT_CORE, &(struct rlimit){ n, RLIM_INFINITY }) == 0); }

static int end_of(pid_t pid)
{
	int status = -1;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

static bool dumped(int status, int sig) { return WIFSIGNALED(status) && WTERMSIG(status) == sig && WCOREDUMP(status); }
static bool only_killed(int status, int sig)
{
	return WIFSIGNALED(status) && WTERMSIG(status) == sig && !WCOREDUMP(status);
}
static bool none(void) { return stat("core", &st) && errno == ENOENT; }

/* A core file of x86-64 with notes first. */
static bool is_core(void)
{
	Elf64_Ehdr e;
	Elf64_Phdr p;
	int fd = open("core", O_RDONLY);
	bool ok = fd >= 0 && read(fd, &e, sizeof e) == sizeof e && !memcmp(e.e_ident, ELFMAG, SELFMAG) &&
		  e.e_type == ET_CORE && e.e_machine == EM_X86_64 && read(fd, &p, sizeof p) == sizeof p &&
		  p.p_type == PT_NOTE;
	close(fd);
	return ok;
}

static void *spin(void *arg)
{
	while (*(volatile int *)arg >= 0)
		*(volatile unsigned *)arg = (*(volatile unsigned *)arg + 1) & 0xffff;
	return NULL;
}

static volatile siginfo_t chld;
static void on_chld(int sig, siginfo_t *si, void *uc)
{
	(void)sig, (void)uc;
	*(siginfo_t *)&chld = *si;
}

static void signals(void)
{
	static const int yes[] = {
		SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGXCPU, SIGXFSZ, SIGSYS
	};
	static const int no[] = { SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGALRM, SIGTERM, SIGUSR1, SIGPOLL, 40 };
	bool ok = true;
	for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
		unlink("core");
		ok = ok && dumped(end_of(FORK(raise(yes[i]))), yes[i]) && is_core();
	}
	check(ok, "signals that leave a core file");
	unlink("core");
	for (size_t i = 0; i < sizeof no / sizeof *no; i++)
		ok = ok && only_killed(end_of(FORK(raise(no[i]))), no[i]) && none();
	check(ok, "signals that leave none");
	check(dumped(end_of(FORK(*nowhere = 1)), SIGSEGV) && is_core(), "a fault");
	unlink("core");
	pid_t p = FORK(for (;;) pause());
	usleep(20000);
	kill(p, SIGQUIT);
	check(dumped(end_of(p), SIGQUIT) && is_core(), "one that sleeps is sent it");
	unlink("core");
	static int counter;
	p = FORK(spin(&counter));
	usleep(50000);
	kill(p, SIGABRT);
	check(dumped(end_of(p), SIGABRT) && is_core(), "one that computes is sent it");
	unlink("core");
}

static void told(void)
{
	siginfo_t si;
	memset(&si, 0, sizeof si);
	pid_t p = FORK(abort());
	check(waitid(P_PID, p, &si, WEXITED | WNOWAIT) == 0 && si.si_code == CLD_DUMPED && si.si_status == SIGABRT,
	      "waitid() with WNOWAIT says so");
	check(waitid(P_PID, p, &si, WEXITED) == 0 && si.si_code == CLD_DUMPED, "and the one that reaps");
	struct sigaction sa = { .sa_sigaction = on_chld, .sa_flags = SA_SIGINFO }, old;
	sigaction(SIGCHLD, &sa, &old);
	p = FORK(abort());
	int status = end_of(p);
	check(dumped(status, SIGABRT) && chld.si_pid == p && chld.si_code == CLD_DUMPED, "SIGCHLD says so");
	sigaction(SIGCHLD, &old, NULL);
	check(only_killed(end_of(FORK(core_limit(0); abort())), SIGABRT), "the next child left none");
	unlink("core");
}

static void limits(void)
{
	check(only_killed(end_of(FORK(core_limit(0); abort())), SIGABRT) && none(), "none with a limit of 0");
	check(only_killed(end_of(FORK(core_limit(4095); abort())), SIGABRT) && none(), "none below a page");
	int s = end_of(FORK(core_limit(20480); abort()));
	check(dumped(s, SIGABRT) && FILE_SIZE(st) > 0 && st.st_blocks * 512 <= 24576, "no more than the limit");
	unlink("core");
	s = end_of(FORK({
		volatile char *p = mmap(NULL, 1ul << 30, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		p[5 << 20] = 1;
		abort();
	}));
	check(dumped(s, SIGABRT) && FILE_SIZE(st) > 1 << 30 && st.st_blocks * 512 < 64 << 20,
	      "what is untouched is a hole");
	unlink("core");
	s = end_of(FORK({
		volatile char *p = mmap(NULL, 256ul << 20, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		NEED(madvise((void *)p, 256ul << 20, MADV_DONTDUMP) == 0);
		abort();
	}));
	check(dumped(s, SIGABRT) && FILE_SIZE(st) < 256 << 20, "MADV_DONTDUMP");
	unlink("core");
	s = end_of(FORK({
		struct rlimit r = { 0, 0 };
		getrlimit(RLIMIT_NOFILE, &r);
		r.rlim_cur = 64;
		setrlimit(RLIMIT_NOFILE, &r);
		while (open("/dev/null", O_RDONLY) >= 0)
			;
		abort();
	}));
	check(dumped(s, SIGABRT) && is_core(), "with all descriptors in use");
	unlink("core");
}

static void places(void)
{
	int fd = open("core", O_CREAT | O_WRONLY, 0644);
	check(fd >= 0 && ftruncate(fd, 64 << 20) == 0, "an old file");
	check(dumped(end_of(FORK(abort())), SIGABRT) && is_core() && FILE_SIZE(st) < 64 << 20,
	      "an old file is replaced");
	check(link("core", "other") == 0 && truncate("core", 0) == 0, "a second name");
	check(dumped(end_of(FORK(abort())), SIGABRT) && is_core() && !stat("other", &st) && st.st_size == 0,
	      "a file with two names is left alone, but for the name");
	unlink("core");
	check(symlink("other", "core") == 0 && dumped(end_of(FORK(abort())), SIGABRT) && is_core() &&
		      !stat("other", &st) && st.st_size == 0,
	      "no link is followed");
	unlink("core");
	check(mkfifo("core", 0600) == 0 && dumped(end_of(FORK(abort())), SIGABRT) && is_core(), "nor a FIFO opened");
	unlink("core");
	check(mkdir("core", 0700) == 0 && only_killed(end_of(FORK(abort())), SIGABRT), "a directory stays");
	rmdir("core");
	check(only_killed(end_of(FORK(NEED(chdir("/proc/self") == 0); abort())), SIGABRT),
	      "nor where nobody can write");
	check(mkdir("sub", 0700) == 0 && dumped(end_of(FORK(NEED(chdir("sub") == 0); umask(0); abort())), SIGABRT) &&
		      none() && !stat("sub/core", &st) && (st.st_mode & 07777) == 0600,
	      "in the program's directory, for its user alone");
	unlink("sub/core");
	rmdir("sub");
	unlink("other");
	fd = openat(AT_FDCWD, "core", O_RDONLY);
	check(fd < 0, "nothing is left");
}

static void secrets(void)
{
	check(prctl(PR_GET_DUMPABLE) == 1, "dumpable at first");
	check(only_killed(end_of(FORK(prctl(PR_SET_DUMPABLE, 0); abort())), SIGABRT) && none(), "PR_SET_DUMPABLE 0");
	check(dumped(end_of(FORK(prctl(PR_SET_DUMPABLE, 0); prctl(PR_SET_DUMPABLE, 1); abort())), SIGABRT),
	      "and 1 again");
	unlink("core");
	if (geteuid()) {
		printf("only root can change the user: not looked at\n");
		return;
	}
	check(only_killed(end_of(FORK(NEED(chmod(".", 0777) == 0 && setresuid(1000, 1000, 1000) == 0);
				      NEED(prctl(PR_GET_DUMPABLE) == 0); abort())),
			  SIGABRT) &&
		      none(),
	      "none after a change of the user");
	check(only_killed(
		      end_of(FORK(NEED(syscall(SYS_setfsgid, 1000) == 0); NEED(prctl(PR_GET_DUMPABLE) == 0); abort())),
		      SIGABRT) &&
		      none(),
	      "nor of the file system's group");
	check(only_killed(end_of(FORK(NEED(setuid(0) == 0); NEED(prctl(PR_GET_DUMPABLE) == 1); core_limit(0); abort())),
			  SIGABRT),
	      "a call that changes nothing changes nothing");
	unlink("core");
}

static void *abort_too(void *arg)
{
	pthread_barrier_wait(arg);
	*nowhere = 1;
	return NULL;
}

static void *exit_too(void *arg)
{
	pthread_barrier_wait(arg);
	usleep(300);
	syscall(SYS_exit_group, 3);
	return NULL;
}

static void threads(void)
{
	bool ok = true;
	for (int i = 0; i < 5 && ok; i++) {
		ok = dumped(end_of(FORK({
				    pthread_t th;
				    pthread_barrier_t b;
				    pthread_barrier_init(&b, NULL, 4);
				    for (int k = 0; k < 3; k++)
					    NEED(!pthread_create(&th, NULL, abort_too, &b));
				    pthread_barrier_wait(&b);
				    *nowhere = 1;
			    })),
			    SIGSEGV) &&
		     is_core();
		unlink("core");
	}
	check(ok, "four threads at once");
	for (int i = 0; i < 10 && ok; i++) {
		int s = end_of(FORK({
			pthread_t th;
			pthread_barrier_t b;
			pthread_barrier_init(&b, NULL, 2);
			NEED(!pthread_create(&th, NULL, exit_too, &b));
			pthread_barrier_wait(&b);
			*nowhere = 1;
		}));
		ok = dumped(s, SIGSEGV) || s == 3 << 8;
		unlink("core");
	}
	check(ok, "another thread ends the process meanwhile");
	int fd[2];
	char byte = 0;
	check(pipe(fd) == 0, "pipe");
	int s = end_of(FORK({
		pthread_t th;
		static int n;
		NEED(!pthread_create(&th, NULL, spin, &n));
		if (fork() == 0) { /* by a parent that dies of one: goes on */
			while (getppid() == (pid_t)st.st_size)
				usleep(1000);
			byte = 'x';
			NEED(write(fd[1], &byte, 1) == 1);
			_exit(0);
		}
		abort();
	}));
	close(fd[1]);
	check(dumped(s, SIGABRT) && is_core() && read(fd[0], &byte, 1) == 1 && byte == 'x', "a child is not stopped");
	close(fd[0]);
	unlink("core");
}

/* The same thing without a copy of the memory. What it does with libc must leave that whole. */
#define VFORK(...) \
	({ \
		fflush(stdout); \
		pid_t p_ = vfork(); \
		if (p_ == 0) { \
			__VA_ARGS__; \
			_exit(0); \
		} \
		p_; \
	})

/* Of the notes: the process, and how many threads. */
static pid_t core_of(int *threads)
{
	static uint8_t text[1 << 16];
	Elf64_Ehdr *e = (void *)text;
	pid_t pid = 0;
	int fd = open("core", O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);
	close(fd);
	*threads = 0;
	if (n < (ssize_t)sizeof *e)
		return 0;
	Elf64_Phdr *p = (void *)(text + e->e_phoff);
	for (size_t at = p->p_offset; at + sizeof(Elf64_Nhdr) < p->p_offset + p->p_filesz && at < (size_t)n;) {
		Elf64_Nhdr *h = (void *)(text + at);
		uint8_t *desc = text + at + sizeof *h + ((h->n_namesz + 3) & ~3u);
		*threads += h->n_type == NT_PRSTATUS;
		if (h->n_type == NT_PRPSINFO)
			memcpy(&pid, desc + 24, sizeof pid); /* pr_pid */
		at = (size_t)(desc - text) + ((h->n_descsz + 3) & ~3u);
	}
	return pid;
}

static volatile int from_child, turns, stop_turning;

static void *turn(void *arg)
{
	while (!stop_turning)
		turns++;
	return arg;
}

static void of_vfork(void)
{
	siginfo_t si;
	struct rlimit core, stack;
	pthread_t th;
	int n, s;
	memset(&si, 0, sizeof si);
	pid_t p = VFORK(from_child = 1; *nowhere = 1);
	s = end_of(p);
	check(dumped(s, SIGSEGV) && is_core() && core_of(&n) == p && n == 1 && from_child == 1,
	      "a fault in a child of vfork");
	unlink("core");
	p = VFORK(kill(getpid(), SIGQUIT));
	check(waitid(P_PID, p, &si, WEXITED) == 0 && si.si_code == CLD_DUMPED && is_core(),
	      "a signal, and waitid() says so");
	unlink("core");
	check(only_killed(end_of(VFORK(kill(getpid(), SIGKILL))), SIGKILL) && none(), "one that leaves none");
	check(!pthread_create(&th, NULL, turn, NULL), "a thread");
	p = VFORK(*nowhere = 1);
	s = end_of(p);
	int before = turns;
	bool runs = false;
	for (int i = 0; i < 60000 && !runs; i++, usleep(1000))
		runs = turns != before;
	check(dumped(s, SIGSEGV) && core_of(&n) == p && n == 1 && runs,
	      "its parent's thread is not in it, and runs on");
	stop_turning = 1;
	pthread_join(th, NULL);
	unlink("core");
	p = VFORK(getrlimit(RLIMIT_STACK, &stack); stack.rlim_cur = 1 << 20; setrlimit(RLIMIT_STACK, &stack);
		  core_limit(0); *nowhere = 1);
	check(only_killed(end_of(p), SIGSEGV) && none(), "none by a limit of its own");
	check(getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_cur == RLIM_INFINITY &&
		      getrlimit(RLIMIT_STACK, &stack) == 0 && stack.rlim_cur != 1 << 20,
	      "which is not its parent's");
	p = VFORK({
		core_limit(0);
		pid_t q = fork();
		if (!q) {
			getrlimit(RLIMIT_CORE, &core);
			_exit(core.rlim_cur ? 1 : 0);
		}
		_exit(end_of(q) ? 2 : 0);
	});
	check(end_of(p) == 0, "but its own child's");
	p = VFORK(mkdir("sub", 0700); NEED(chdir("sub") == 0); *nowhere = 1);
	check(dumped(end_of(p), SIGSEGV) && none() && !stat("sub/core", &st), "in its own directory");
	unlink("sub/core");
	rmdir("sub");
	p = VFORK({
		pid_t q = vfork();
		if (!q)
			*nowhere = 1;
		_exit(dumped(end_of(q), SIGSEGV) && core_of(&n) == q ? 0 : 1);
	});
	check(end_of(p) == 0, "by a child of such a child");
	unlink("core");
	check(dumped(end_of(FORK(abort())), SIGABRT) && core_of(&n) && n == 1, "and a child of fork does as before");
	unlink("core");
}

static void after_exec(const char *self)
{
	pid_t p = FORK(prctl(PR_SET_DUMPABLE, 0); execl(self, self, "abort", NULL));
	check(dumped(end_of(p), SIGABRT) && is_core(), "exec makes dumpable, and keeps the limit");
	unlink("core");
}

/* ---- what test_coredump.py looks at ---- */

static struct {
	char text[64];
	uint64_t number;
	double real;
} data = { "what the core file shows", 0x1122334455667788, 2.5 };
static __thread int own = 7;
static char *heap;
static int there;

__attribute__((noinline)) static void innermost(int depth, int *p)
{
	__asm__ volatile("" ::"r"(&data), "r"(heap), "r"(&own) : "memory");
	if (depth)
		innermost(depth - 1, p);
	else
		*p = 42;
	__asm__ volatile("" ::: "memory");
}

__attribute__((noinline)) static void in_thread(int n)
{
	__atomic_add_fetch(&there, 1, __ATOMIC_SEQ_CST);
	if (n == 1)
		for (volatile int i = 0;; i++)
			;
	for (;;)
		pause();
}

static void *other(void *arg)
{
	own = 100 + (int)(intptr_t)arg;
	in_thread((int)(intptr_t)arg);
	return NULL;
}

int main(int argc, char **argv)
{
	char dir[] = "/tmp/kx-core-XXXXXX";
	if (argc > 1 && !strcmp(argv[1], "abort"))
		abort();
	if (argc > 1) { /* crash, vfork */
		pthread_t th;
		for (intptr_t i = 1; i <= 2; i++)
			NEED(!pthread_create(&th, NULL, other, (void *)i));
		heap = malloc(100000);
		strcpy(heap + 50000, "on the heap");
		while (__atomic_load_n(&there, __ATOMIC_SEQ_CST) < 2)
			usleep(1000);
		usleep(50000);
		pid_t p = strcmp(argv[1], "vfork") ? 0 : vfork();
		if (p)
			return dumped(end_of(p), SIGSEGV) ? 0 : 1;
		__asm__ volatile("vmovdqu %0, %%ymm7" ::"m"(data) : "xmm7");
		innermost(3, (int *)nowhere);
		return 0;
	}
	struct rlimit limit;
	if (getrlimit(RLIMIT_CORE, &limit) || limit.rlim_max != RLIM_INFINITY) {
		printf("the hard limit of core files is not unlimited\n");
		return 77;
	}
	char self[4096] = { 0 }, pattern[16] = { 0 };
	int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY);
	if (fd >= 0 && (read(fd, pattern, sizeof pattern - 1) < 0 || strcmp(pattern, "core\n"))) {
		printf("the kernel puts core files elsewhere\n");
		return 0;
	}
	if (readlink("/proc/self/exe", self, sizeof self - 1) < 0 || !mkdtemp(dir) || chdir(dir))
		return 251;
	core_limit(RLIM_INFINITY);
	signals();
	told();
	limits();
	places();
	secrets();
	threads();
	of_vfork();
	after_exec(self);
	if (chdir("/") || rmdir(dir))
		perror(dir);
	return first_failed;
}
