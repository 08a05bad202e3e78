/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork and its relatives: what is inherited, what is shared, who is whose child, and forks while everything else is
 * going on. Arguments: names of groups to run (all without). The exit code is the number of the first check that
 * failed. kill(-1) is only done where nobody but the family can be named.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../check.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static volatile int *volatile nowhere = (int *)16;
static char dir[128];

static int status_of(pid_t p)
{
	int st = -1;
	pid_t r;
	while ((r = waitpid(p, &st, 0)) < 0 && errno == EINTR)
		;
	return r == p ? st : -1;
}
static bool fine(pid_t p) { return p > 0 && status_of(p) == 0; }
static bool exited(int st, int code) { return WIFEXITED(st) && WEXITSTATUS(st) == code; }
static bool killed(int st, int sig) { return WIFSIGNALED(st) && WTERMSIG(st) == sig; }

static void *shared(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		abort();
	return p;
}

static void ms(int n)
{
	struct timespec ts = { n / 1000, n % 1000 * 1000000l };
	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Until *p is n, two minutes at most. */
static bool await(volatile int *p, int n)
{
	for (int i = 0; i < 120000 && __atomic_load_n(p, __ATOMIC_SEQ_CST) < n; i++)
		ms(1);
	return __atomic_load_n(p, __ATOMIC_SEQ_CST) >= n;
}

static volatile sig_atomic_t hits[65];
static siginfo_t last[65];
static volatile int queued[64], nr_queued;

static void count(int s, siginfo_t *info, void *uc)
{
	(void)uc;
	hits[s]++;
	last[s] = *info;
	if (info->si_code == SI_QUEUE && nr_queued < 64)
		queued[nr_queued++] = info->si_value.sival_int;
}

static void on(int s, int flags)
{
	struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO | flags };
	sigaction(s, &sa, NULL);
	hits[s] = 0;
}

static void off(int s) { signal(s, SIG_DFL); }

static void blocking(int how, int s)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, s);
	sigprocmask(how, &set, NULL);
}

static bool is_pending(int s)
{
	sigset_t set;
	sigpending(&set);
	return sigismember(&set, s);
}

/* ---- who is who ---------------------------------------------------------------------------------------------------- */

static void *thread_ids(void *arg)
{
	*(bool *)arg = getpid() == (pid_t)syscall(SYS_getpid) && gettid() != getpid();
	return NULL;
}

static void *fork_in_thread(void *arg)
{
	pid_t p = FORK({
		NEED(getpid() == gettid());
		NEED(getpid() == (pid_t)syscall(SYS_gettid));
		bool good = false;
		pthread_t t;
		NEED(pthread_create(&t, NULL, thread_ids, &good) == 0);
		NEED(pthread_join(t, NULL) == 0 && good);
	});
	*(bool *)arg = fine(p);
	return NULL;
}

static void ids(void)
{
	pid_t me = getpid();
	int *s = shared(4096);
	pid_t p = FORK({
		s[0] = getpid();
		s[1] = getppid();
		s[2] = gettid();
		s[3] = syscall(SYS_getpid);
		s[4] = getpgrp();
		s[5] = getsid(0);
		_exit(7);
	});
	int st = status_of(p);
	check(p > 0 && exited(st, 7), "fork: return values and status");
	check(s[0] == p && s[2] == p && s[3] == p, "fork: getpid, gettid in the child");
	check(s[1] == me, "fork: getppid in the child");
	check(s[4] == getpgrp() && s[5] == getsid(0), "fork: group and session inherited");
	check(getpid() == me && gettid() == me, "fork: parent's pid unchanged");
	s[0] = s[1] = s[2] = 0;
	p = vfork();
	if (!p) {
		s[0] = syscall(SYS_getpid);
		s[1] = getppid();
		s[2] = gettid();
		s[3] = getpid();
		_exit(8);
	}
	check(exited(status_of(p), 8) && s[0] == p && s[1] == me && s[2] == p && s[3] == p, "vfork: pids in the child");
	check(getpid() == me && gettid() == me && (pid_t)syscall(SYS_getpid) == me, "vfork: parent's pid unchanged");
	bool good = false;
	pthread_t t;
	pthread_create(&t, NULL, fork_in_thread, &good);
	pthread_join(t, NULL);
	check(good, "fork in a thread: the child's thread is its main thread");
}

/* ---- memory -------------------------------------------------------------------------------------------------------- */

static int global = 1;
static __thread int tls = 5;

static void memory(void)
{
	int local = 3, *heap = malloc(sizeof *heap), *s = shared(4096);
	*heap = 4;
	int fds[2], fds2[2];
	if (pipe(fds) || pipe(fds2))
		abort();
	char c;
	pid_t p = FORK({
		NEED(global == 1 && local == 3 && *heap == 4 && tls == 5);
		NEED(write(fds[1], "a", 1) == 1 && read(fds2[0], &c, 1) == 1);
		NEED(global == 1 && local == 3 && *heap == 4 && tls == 5); /* the parent wrote */
		global = local = *heap = tls = 30;
		s[0] = 77;
		NEED(write(fds[1], "b", 1) == 1 && read(fds2[0], &c, 1) == 1);
	});
	check(read(fds[0], &c, 1) == 1, "memory: child reads what was there");
	global = local = *heap = tls = 20;
	check(write(fds2[1], "a", 1) == 1 && read(fds[0], &c, 1) == 1,
	      "memory: child does not see the parent's writes");
	check(global == 20 && local == 20 && *heap == 20 && tls == 20,
	      "memory: parent does not see the child's writes");
	check(s[0] == 77, "memory: shared anonymous memory is shared");
	check(write(fds2[1], "b", 1) == 1 && fine(p), "memory: child ends");
	for (int i = 0; i < 2; i++) {
		close(fds[i]);
		close(fds2[i]);
	}
	global = 1;
	tls = 5;
	free(heap);
	munmap(s, 4096);

	char path[200];
	snprintf(path, sizeof path, "%s/map", dir);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, 8192))
		abort();
	char *sh = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *pr = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	check(sh != MAP_FAILED && pr != MAP_FAILED, "memory: file mapped");
	pr[4096] = 'p';
	p = FORK({
		NEED(pr[4096] == 'p');
		strcpy(sh, "from child");
		strcpy(pr + 4096, "private");
	});
	check(fine(p) && !strcmp(sh, "from child"), "memory: a shared file mapping is shared");
	check(pr[4096] == 'p' && !pr[4097] && !strcmp(pr, "from child"), "memory: a private file mapping is not");
	char buf[16] = "";
	check(pread(fd, buf, 10, 0) == 10 && !strcmp(buf, "from child"), "memory: the file has it");
	munmap(sh, 8192);
	munmap(pr, 8192);
	close(fd);
	unlink(path);

	char *ro = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ro[0] = 1;
	mprotect(ro, 4096, PROT_READ);
	char *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(killed(status_of(FORK(*(volatile char *)ro = 2)), SIGSEGV),
	      "memory: read-only stays read-only in a child");
	check(killed(status_of(FORK(*(volatile char *)none)), SIGSEGV), "memory: PROT_NONE stays so");
	check(fine(FORK({
		      NEED(mprotect(ro, 4096, PROT_READ | PROT_WRITE) == 0);
		      ro[0] = 9;
		      NEED(munmap(none, 4096) == 0);
		      char *m = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		      NEED(m != MAP_FAILED);
		      m[0] = m[(64 << 20) - 1] = 1;
		      void *b = sbrk(1 << 20);
		      NEED(b != (void *)-1);
		      memset(b, 1, 1 << 20);
	      })),
	      "memory: a child maps and protects");
	check(ro[0] == 1, "memory: and the parent has its own");
	char *wipe = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*wipe = 1;
	if (madvise(wipe, 4096, MADV_WIPEONFORK) == 0)
		check(fine(FORK(NEED(*wipe == 0))) && *wipe == 1, "memory: MADV_WIPEONFORK");
	munmap(wipe, 4096);
	munmap(ro, 4096);
	munmap(none, 4096);
}

#define BIG (256ul << 20)
static void big(void)
{
	uint64_t *m = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const size_t step_q = 4096 / 8, n = BIG / 8;
	for (size_t i = 0; i < n; i += step_q)
		m[i] = i * 3 + 1;
	pid_t p = FORK({
		for (size_t i = 0; i < n; i += step_q)
			NEED(m[i] == i * 3 + 1);
		for (size_t i = 0; i < n; i += 32 * step_q)
			m[i] = ~i;
		for (size_t i = 0; i < n; i += step_q)
			NEED(m[i] == (i % (32 * step_q) ? i * 3 + 1 : ~i));
	});
	for (size_t i = step_q; i < n; i += 32 * step_q)
		m[i] = i ^ 0x5555;
	check(fine(p), "256 MiB: child sees and changes its own");
	bool good = true;
	for (size_t i = 0; i < n; i += step_q)
		good = good && m[i] == (i % (32 * step_q) == step_q ? (i ^ 0x5555) : i * 3 + 1);
	check(good, "256 MiB: parent sees and changes its own");
	munmap(m, BIG);
}

/* ---- what is inherited ------------------------------------------------------------------------------------------- */

static void files(void)
{
	char path[200], buf[8];
	snprintf(path, sizeof path, "%s/file", dir);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	check(write(fd, "0123456789", 10) == 10 && lseek(fd, 0, SEEK_SET) == 0, "files: made");
	check(fine(FORK({
		      NEED(read(fd, buf, 4) == 4 && !memcmp(buf, "0123", 4));
		      NEED(fcntl(fd, F_GETFD) == FD_CLOEXEC);
	      })),
	      "files: child reads by an inherited descriptor");
	check(read(fd, buf, 2) == 2 && !memcmp(buf, "45", 2), "files: the offset is shared");
	check(fine(FORK(NEED(close(fd) == 0))) && lseek(fd, 0, SEEK_CUR) == 6, "files: a child's close is its own");
	check(fine(FORK(NEED(fcntl(fd, F_SETFL, O_APPEND) == 0))) && (fcntl(fd, F_GETFL) & O_APPEND),
	      "files: flags shared");

	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	check(fcntl(fd, F_SETLK, &l) == 0, "files: record lock");
	pid_t me = getpid();
	check(fine(FORK({
		      struct flock g = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		      NEED(fcntl(fd, F_SETLK, &g) == -1 && (errno == EAGAIN || errno == EACCES));
		      NEED(fcntl(fd, F_GETLK, &g) == 0 && g.l_type == F_WRLCK && g.l_pid == me);
	      })),
	      "files: record locks are not inherited, and F_GETLK names the owner");
	l.l_type = F_UNLCK;
	fcntl(fd, F_SETLK, &l);
	check(flock(fd, LOCK_EX) == 0 && fine(FORK({
		      NEED(flock(fd, LOCK_EX | LOCK_NB) == 0);
		      int other = open(path, O_RDWR);
		      NEED(flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
	      })),
	      "files: flock is the open file's");
	int fds[2];
	check(pipe(fds) == 0, "files: pipe");
	pid_t p = FORK({
		close(fds[1]);
		NEED(flock(fd, LOCK_UN) == 0);
		int other = open(path, O_RDWR);
		NEED(flock(other, LOCK_EX) == 0);
		NEED(read(fds[0], buf, 1) == 0);
	});
	close(fds[0]);
	close(fds[1]);
	check(fine(p), "files: a pipe ends with its last writer");
	close(fd);
	unlink(path);

	char was[300];
	mode_t m = umask(027);
	check(getcwd(was, sizeof was) && chdir(dir) == 0, "cwd: chdir");
	check(fine(FORK({
		      char cwd[300];
		      NEED(getcwd(cwd, sizeof cwd) && !strcmp(cwd, dir));
		      NEED(umask(0) == 027);
		      NEED(chdir("/") == 0);
	      })),
	      "cwd and umask inherited");
	check(umask(m) == 027 && getcwd(path, sizeof path) && !strcmp(path, dir), "cwd and umask are the child's own");
	if (chdir(was))
		abort();
}

static void inherited_signals(void)
{
	on(SIGUSR1, 0);
	signal(SIGUSR2, SIG_IGN);
	blocking(SIG_BLOCK, SIGTERM);
	blocking(SIG_BLOCK, SIGRTMIN + 3);
	raise(SIGTERM);
	sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 1 });
	stack_t ss = { .ss_sp = malloc(SIGSTKSZ * 4), .ss_size = SIGSTKSZ * 4 }, none = { .ss_flags = SS_DISABLE };
	sigaltstack(&ss, NULL);
	struct itimerval it = { { 0, 0 }, { 100, 0 } };
	setitimer(ITIMER_REAL, &it, NULL);
	setitimer(ITIMER_VIRTUAL, &it, NULL);
	timer_t timer;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	bool have_timer = timer_create(CLOCK_MONOTONIC, &ev, &timer) == 0;
	check(is_pending(SIGTERM) && is_pending(SIGRTMIN + 3), "signals: pending in the parent");
	pid_t p = FORK({
		struct sigaction sa;
		struct itimerval t;
		struct itimerspec ts;
		stack_t s;
		sigset_t mask;
		NEED(!is_pending(SIGTERM) && !is_pending(SIGRTMIN + 3));
		NEED(sigaction(SIGUSR1, NULL, &sa) == 0 && sa.sa_sigaction == count);
		NEED(sigaction(SIGUSR2, NULL, &sa) == 0 && sa.sa_handler == SIG_IGN);
		NEED(sigprocmask(0, NULL, &mask) == 0 && sigismember(&mask, SIGTERM) && !sigismember(&mask, SIGUSR1));
		NEED(getitimer(ITIMER_REAL, &t) == 0 && !t.it_value.tv_sec && !t.it_value.tv_usec);
		NEED(getitimer(ITIMER_VIRTUAL, &t) == 0 && !t.it_value.tv_sec && !t.it_value.tv_usec);
		NEED(alarm(0) == 0);
		NEED(!have_timer || timer_gettime(timer, &ts) == -1);
		NEED(sigaltstack(NULL, &s) == 0 && s.ss_sp == ss.ss_sp && !s.ss_flags);
		raise(SIGUSR1);
		raise(SIGUSR2);
		NEED(hits[SIGUSR1] == 1);
		raise(SIGTERM);
		NEED(is_pending(SIGTERM));
		blocking(SIG_UNBLOCK, SIGTERM);
		_exit(98);
	});
	check(killed(status_of(p), SIGTERM), "signals: mask and actions inherited; pending ones, timers, alarm not");
	check(hits[SIGUSR1] == 0, "signals: of the child stay there");
	if (have_timer)
		timer_delete(timer);
	it.it_value.tv_sec = 0;
	setitimer(ITIMER_REAL, &it, NULL);
	setitimer(ITIMER_VIRTUAL, &it, NULL);
	sigaltstack(&none, NULL);
	free(ss.ss_sp);
	siginfo_t info;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGRTMIN + 3);
	check(sigwaitinfo(&set, &info) > 0 && sigwaitinfo(&set, &info) > 0, "signals: still pending in the parent");
	blocking(SIG_UNBLOCK, SIGTERM);
	blocking(SIG_UNBLOCK, SIGRTMIN + 3);
	off(SIGUSR1);
	off(SIGUSR2);
}

/* ---- robust mutexes, raw clone ------------------------------------------------------------------------------------ */

static void robust(void)
{
	pthread_mutex_t *m = shared(4096);
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	for (int i = 0; i < 3; i++)
		pthread_mutex_init(&m[i], &a);
	check(fine(FORK(NEED(pthread_mutex_lock(&m[0]) == 0))), "robust: child ends with a mutex locked");
	check(pthread_mutex_lock(&m[0]) == EOWNERDEAD && pthread_mutex_consistent(&m[0]) == 0, "robust: EOWNERDEAD");
	pid_t p = FORK({
		NEED(pthread_mutex_lock(&m[1]) == 0);
		raise(SIGKILL);
	});
	check(killed(status_of(p), SIGKILL) && pthread_mutex_lock(&m[1]) == EOWNERDEAD, "robust: after SIGKILL");
	check(pthread_mutex_lock(&m[2]) == 0 && fine(FORK(NEED(pthread_mutex_trylock(&m[2]) == EBUSY))) &&
		      pthread_mutex_unlock(&m[2]) == 0,
	      "robust: a child's end does not free its parent's mutex");
	pthread_mutex_unlock(&m[0]);
	munmap(m, 4096);
}

static long raw_clone(unsigned long flags, void *stack, int *ptid, int *ctid, unsigned long tlsp)
{
	register int *r10 __asm__("r10") = ctid;
	register unsigned long r8 __asm__("r8") = tlsp;
	long r;
	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "0"(SYS_clone), "D"(flags), "S"(stack), "d"(ptid), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}

/* Calls fn(arg) on its own stack, then exits with what it returns. */
long clone_stack(unsigned long flags, void *stack, int (*fn)(void *), void *arg, int *ctid);
__asm__(".text\n.globl clone_stack\nclone_stack:\n"
	"sub $16, %rsi\n mov %rdx, (%rsi)\n mov %rcx, 8(%rsi)\n mov %r8, %r10\n xor %edx, %edx\n xor %r8d, %r8d\n"
	"mov $56, %eax\n syscall\n test %eax, %eax\n jz 1f\n ret\n"
	"1: xor %ebp, %ebp\n pop %rax\n pop %rdi\n call *%rax\n mov %eax, %edi\n mov $60, %eax\n syscall\n hlt\n");

static int stack_child(void *arg)
{
	int *s = arg;
	volatile char probe[2000];
	memset((void *)probe, 1, sizeof probe);
	s[0] = (uintptr_t)probe >> 12;
	s[1] = syscall(SYS_getpid);
	s[2] = 0;
	for (unsigned i = 0; i < sizeof probe; i++)
		s[2] += probe[i];
	return 21;
}

static void clones(void)
{
	int *s = shared(4096), mine = 0, child_tid = 0;
	pid_t me = getpid();
	long p = raw_clone(CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD, NULL, &mine, &child_tid, 0);
	if (!p) {
		s[0] = child_tid;
		s[1] = mine;
		_exit(child_tid == (int)syscall(SYS_getpid) && (int)syscall(SYS_getppid) == me ? 0 : 1);
	}
	check(p > 0 && fine(p) && mine == p, "raw clone: PARENT_SETTID");
	check(s[0] == p && child_tid == 0, "raw clone: CHILD_SETTID, in the child only");
	char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p = clone_stack(SIGCHLD, stack + 65536, stack_child, s, NULL);
	check(p > 0 && exited(status_of(p), 21) && s[1] == p && s[2] == 2000, "raw clone: own stack");
	check(s[0] >= (int)((uintptr_t)stack >> 12) && s[0] < (int)(((uintptr_t)stack + 65536) >> 12),
	      "raw clone: the stack is that one");
	p = clone_stack(CLONE_VM | CLONE_VFORK | SIGCHLD, stack + 65536, stack_child, s, NULL);
	check(s[1] == p && exited(status_of(p), 21), "raw clone: CLONE_VM | CLONE_VFORK with own stack");
	int tid = 1;
	p = clone_stack(CLONE_VM | CLONE_VFORK | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD, stack + 65536,
			stack_child, s, &tid);
	check(p > 0 && exited(status_of(p), 21) && tid == 0, "raw clone: CHILD_CLEARTID");
	munmap(stack, 65536);

	double start = now();
	p = raw_clone(CLONE_VFORK | SIGCHLD, NULL, NULL, NULL, 0);
	if (!p) {
		ms(60);
		global = 12;
		_exit(3);
	}
	check(now() - start >= 0.055 && exited(status_of(p), 3) && global == 1,
	      "raw clone: CLONE_VFORK alone waits, copies");

	struct clone_args args = { .flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_PIDFD,
				   .exit_signal = SIGCHLD };
	int pidfd = -1;
	mine = child_tid = 0;
	args.parent_tid = (uintptr_t)&mine;
	args.child_tid = (uintptr_t)&child_tid;
	args.pidfd = (uintptr_t)&pidfd;
	p = syscall(SYS_clone3, &args, sizeof args);
	if (!p) {
		bool good = child_tid == (int)syscall(SYS_getpid);
		pause();
		_exit(!good);
	}
	check(p > 0 && mine == p && pidfd >= 0, "clone3: fork with CLONE_PIDFD");
	check(fcntl(pidfd, F_GETFD) == FD_CLOEXEC, "clone3: the pidfd is close-on-exec");
	check(syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0) == 0, "pidfd_send_signal");
	siginfo_t info = { 0 };
	check(waitid(P_PIDFD, pidfd, &info, WEXITED) == 0 && info.si_pid == p && info.si_status == SIGTERM &&
		      info.si_code == CLD_KILLED,
	      "waitid(P_PIDFD)");
	close(pidfd);
	args.flags = CLONE_CLEAR_SIGHAND;
	on(SIGUSR1, 0);
	signal(SIGUSR2, SIG_IGN);
	p = syscall(SYS_clone3, &args, sizeof args);
	if (!p) {
		struct sigaction a, b;
		sigaction(SIGUSR1, NULL, &a);
		sigaction(SIGUSR2, NULL, &b);
		_exit(a.sa_handler == SIG_DFL && b.sa_handler == SIG_IGN ? 0 : 1);
	}
	check(fine(p), "clone3: CLONE_CLEAR_SIGHAND");
	off(SIGUSR1);
	off(SIGUSR2);
	args.flags = 1ull << 60;
	check(syscall(SYS_clone3, &args, sizeof args) == -1 && (errno == EINVAL || errno == ENOSYS),
	      "clone3: unknown flag");
	args.flags = 0;
	check(syscall(SYS_clone3, &args, 8) == -1 && errno == EINVAL, "clone3: too small");
	munmap(s, 4096);
}

/* ---- vfork, posix_spawn ----------------------------------------------------------------------------------------- */

/* Inline: a child would overwrite the return address of a function. */
static inline __attribute__((always_inline)) long raw_vfork(void)
{
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "0"(SYS_vfork) : "rcx", "r11", "memory");
	return r;
}

static void vforks(void)
{
	static volatile int v;
	double start = now();
	on(SIGUSR1, 0);
	pid_t p = vfork();
	if (!p) {
		struct timespec ts = { 0, 60000000 };
		v = 42;
		signal(SIGUSR1, SIG_IGN);
		signal(SIGUSR2, SIG_IGN);
		blocking(SIG_BLOCK, SIGTERM);
		nanosleep(&ts, NULL);
		_exit(5);
	}
	check(v == 42, "vfork: memory is shared");
	check(now() - start >= 0.055, "vfork: the parent waits");
	check(exited(status_of(p), 5), "vfork: status");
	struct sigaction sa;
	sigset_t mask;
	sigaction(SIGUSR1, NULL, &sa);
	check(sa.sa_sigaction == count, "vfork: the child's sigaction is its own");
	raise(SIGUSR1);
	check(hits[SIGUSR1] == 1, "vfork: the handler still works");
	sigaction(SIGUSR2, NULL, &sa);
	check(sa.sa_handler == SIG_DFL, "vfork: the child's SIG_IGN is its own");
	check(killed(status_of(FORK(raise(SIGUSR2))), SIGUSR2), "vfork: the default action is still in force");
	sigprocmask(0, NULL, &mask);
	check(!sigismember(&mask, SIGTERM), "vfork: the child's mask is its own");
	off(SIGUSR1);

	p = raw_vfork();
	if (!p) {
		v = 43;
		_exit(6);
	}
	check(v == 43 && exited(status_of(p), 6), "vfork: raw system call");
	p = vfork();
	if (!p) {
		kill(getpid(), SIGKILL);
		_exit(1);
	}
	check(killed(status_of(p), SIGKILL), "vfork: child killed");
	p = vfork();
	if (!p) {
		*nowhere = 1;
		_exit(1);
	}
	check(killed(status_of(p), SIGSEGV), "vfork: child with SIGSEGV");
	p = vfork();
	if (!p) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	check(fine(p), "vfork: exec");
	p = vfork();
	if (!p) {
		execl("/nonexistent", "x", (char *)NULL);
		v = errno;
		_exit(127);
	}
	check(exited(status_of(p), 127) && v == ENOENT, "vfork: exec that fails");
	p = vfork();
	if (!p) {
		pid_t q = vfork();
		if (!q)
			_exit(9);
		int st = 0;
		waitpid(q, &st, 0);
		v = 44;
		_exit(WEXITSTATUS(st));
	}
	check(exited(status_of(p), 9) && v == 44, "vfork: in a vfork child");
	p = vfork();
	if (!p) {
		pid_t q = syscall(SYS_fork);
		if (!q) {
			v = 45;
			_exit(11);
		}
		int st = 0;
		waitpid(q, &st, 0);
		_exit(WEXITSTATUS(st));
	}
	check(exited(status_of(p), 11) && v == 44, "fork: in a vfork child");
	int fd = open("/dev/null", O_RDONLY);
	p = vfork();
	if (!p) {
		close(fd);
		_exit(0);
	}
	check(fine(p) && fcntl(fd, F_GETFD) >= 0, "vfork: descriptors are the child's own");
	close(fd);
	static volatile int good, i;
	for (i = good = 0; i < 50; i++) {
		p = vfork();
		if (!p)
			_exit(i);
		good += exited(status_of(p), i);
	}
	check(good == 50, "vfork: 50 in a row");
}

/* A child of vfork that is killed in the middle of anything leaves its parent whole. */
static void vfork_kills(void)
{
	static volatile int *pid;
	static volatile int i, good;
	pid = shared(4096);
	for (i = good = 0; i < 40; i++) {
		*pid = 0;
		pid_t killer = FORK({
			while (!*pid)
				usleep(100);
			usleep(300 + i * 137 % 3000);
			kill(*pid, SIGKILL);
		});
		pid_t p = vfork();
		if (!p) {
			*pid = syscall(SYS_getpid);
			for (;;) {
				char *m = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
					       0);
				mprotect(m, 4096, PROT_READ);
				munmap(m, 1 << 20);
			}
		}
		good += killed(status_of(p), SIGKILL) && fine(killer);
	}
	char *m = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m[0] = 1;
	munmap(m, 1 << 20);
	check(good == 40 && fine(FORK(free(malloc(100000)))), "vfork: 40 children killed while they map memory");
	munmap((void *)pid, 4096);
}

extern char **environ;
static int spawn_status(posix_spawn_file_actions_t *fa, posix_spawnattr_t *at, const char *script)
{
	pid_t p;
	char *argv[] = { "sh", "-c", (char *)script, NULL };
	errno = posix_spawn(&p, "/bin/sh", fa, at, argv, environ);
	return errno ? -1 : status_of(p);
}

static void spawns(void)
{
	char out[200], buf[100] = "";
	snprintf(out, sizeof out, "%s/out", dir);
	posix_spawn_file_actions_t fa;
	posix_spawnattr_t at;
	posix_spawn_file_actions_init(&fa);
	posix_spawnattr_init(&at);
	posix_spawn_file_actions_addopen(&fa, 9, out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	posix_spawn_file_actions_adddup2(&fa, 9, 1);
	posix_spawn_file_actions_addclose(&fa, 9);
	posix_spawn_file_actions_addchdir_np(&fa, dir);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	posix_spawnattr_setsigmask(&at, &set);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	posix_spawnattr_setsigdefault(&at, &set);
	posix_spawnattr_setpgroup(&at, 0);
	posix_spawnattr_setflags(&at, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
					      POSIX_SPAWN_RESETIDS);
	signal(SIGUSR1, SIG_IGN);
	signal(SIGUSR2, SIG_IGN);
	check(exited(spawn_status(&fa, &at, "kill -TERM $$; kill -USR2 $$; pwd; exit 4"), 4),
	      "posix_spawn: file actions and attributes");
	int fd = open(out, O_RDONLY);
	ssize_t n = read(fd, buf, sizeof buf - 1);
	check(n > 0 && !strncmp(buf, dir, strlen(dir)), "posix_spawn: open, dup2, close, chdir");
	close(fd);
	unlink(out);
	check(killed(spawn_status(&fa, &at, "kill -USR1 $$"), SIGUSR1), "posix_spawn: setsigdefault");
	unlink(out);
	signal(SIGUSR1, SIG_DFL);
	signal(SIGUSR2, SIG_DFL);
	posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSID);
	check(fine(FORK({
		      pid_t p;
		      char *argv[] = { "sleep", "100", NULL };
		      NEED(posix_spawn(&p, "/bin/sleep", NULL, &at, argv, environ) == 0);
		      NEED(getsid(p) == p && getpgid(p) == p);
		      NEED(kill(-p, SIGTERM) == 0 && killed(status_of(p), SIGTERM));
	      })),
	      "posix_spawn: setsid");
	posix_spawnattr_setflags(&at, 0);
	pid_t p;
	char *argv[] = { "x", NULL };
	check(posix_spawn(&p, "/nonexistent", NULL, NULL, argv, environ) == ENOENT, "posix_spawn: ENOENT");
	check(posix_spawnp(&p, "true", NULL, NULL, argv, environ) == 0 && fine(p), "posix_spawnp");
	posix_spawn_file_actions_destroy(&fa);
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_addopen(&fa, 5, "/nonexistent", O_RDONLY, 0);
	check(posix_spawn(&p, "/bin/true", &fa, NULL, argv, environ) == ENOENT, "posix_spawn: file action that fails");
	posix_spawn_file_actions_destroy(&fa);
	posix_spawnattr_destroy(&at);
	check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "posix_spawn: nobody left");
	FILE *f = popen("echo $((6*7))", "r");
	check(f && fgets(buf, sizeof buf, f) && !strcmp(buf, "42\n") && pclose(f) == 0, "popen");
	check(exited(system("exit 3"), 3), "system");
}

/* ---- wait ---------------------------------------------------------------------------------------------------------- */

static void stop_continue(void)
{
	int st;
	pid_t p = FORK({
		on(SIGUSR1, 0);
		raise(SIGSTOP);
		while (!hits[SIGUSR1])
			ms(1);
		_exit(17);
	});
	check(waitpid(p, &st, WUNTRACED) == p && WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP, "wait: WUNTRACED");
	check(waitpid(p, &st, WNOHANG | WUNTRACED) == 0, "wait: a stop is told once");
	check(kill(p, SIGCONT) == 0, "wait: SIGCONT");
	siginfo_t info = { 0 };
	check(waitid(P_PID, p, &info, WCONTINUED | WNOWAIT) == 0 && info.si_code == CLD_CONTINUED && info.si_pid == p,
	      "waitid: CLD_CONTINUED");
	check(waitpid(p, &st, WCONTINUED) == p && WIFCONTINUED(st), "wait: WCONTINUED");
	check(kill(p, SIGUSR1) == 0 && exited(status_of(p), 17), "wait: and then the end");
	on(SIGTSTP, 0);
	p = FORK({
		setpgid(0, 0); /* not an orphaned group: there SIGTSTP stops nothing */
		on(SIGCONT, 0);
		raise(SIGTSTP);
		NEED(hits[SIGTSTP] == 1);
		off(SIGTSTP);
		raise(SIGTSTP);
		NEED(hits[SIGCONT] == 1);
	});
	check(waitpid(p, &st, WUNTRACED) == p && WIFSTOPPED(st) && WSTOPSIG(st) == SIGTSTP, "stop: SIGTSTP");
	memset(&info, 0, sizeof info);
	check(kill(p, SIGCONT) == 0 && fine(p), "stop: SIGCONT's handler runs");
	off(SIGTSTP);
}

static void waits(void)
{
	int st;
	struct rusage ru;
	siginfo_t info;
	check(waitpid(-1, &st, WNOHANG) == -1 && errno == ECHILD, "wait: ECHILD");
	pid_t p = FORK(pause());
	check(waitpid(p, &st, WNOHANG) == 0, "wait: WNOHANG");
	check(waitpid(1, &st, 0) == -1 && errno == ECHILD, "wait: not my child");
	memset(&info, 1, sizeof info);
	check(waitid(P_PID, p, &info, WEXITED | WNOHANG) == 0 && info.si_pid == 0 && info.si_signo == 0,
	      "waitid: WNOHANG");
	check(kill(p, SIGKILL) == 0, "wait: kill");
	memset(&info, 0, sizeof info);
	check(waitid(P_PID, p, &info, WEXITED | WNOWAIT) == 0 && info.si_pid == p && info.si_status == SIGKILL &&
		      info.si_code == CLD_KILLED && info.si_signo == SIGCHLD,
	      "waitid: WNOWAIT");
	check(wait4(-1, &st, __WALL, &ru) == p && killed(st, SIGKILL), "wait4: __WALL after WNOWAIT");
	p = FORK({
		volatile unsigned x = 0;
		for (clock_t end = clock() + CLOCKS_PER_SEC / 25; clock() < end;)
			for (int i = 0; i < 100000; i++)
				x++;
		_exit(200);
	});
	check(wait4(p, &st, 0, &ru) == p && exited(st, 200) &&
		      ru.ru_utime.tv_sec * 1000000 + ru.ru_utime.tv_usec + ru.ru_stime.tv_sec * 1000000 +
				      ru.ru_stime.tv_usec >
			      10000,
	      "wait4: rusage");
	bool good = true;
	for (int i = 0; i < 256; i += 51)
		good = good && exited(status_of(FORK(_exit(i))), i);
	check(good, "wait: exit statuses");
	check(killed(status_of(FORK({
			     setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
			     abort();
		     })),
		     SIGABRT),
	      "wait: abort");
	check(killed(status_of(FORK(*nowhere = 1)), SIGSEGV), "wait: SIGSEGV");
	check(killed(status_of(FORK(raise(SIGTERM))), SIGTERM), "wait: SIGTERM");
	check(killed(status_of(FORK(__builtin_trap())), SIGILL), "wait: SIGILL");
	check(killed(status_of(FORK(__asm__ volatile("xor %%ecx, %%ecx\n div %%ecx"
						     :
						     :
						     : "eax", "ecx", "edx"))),
		     SIGFPE),
	      "wait: SIGFPE");
	check(killed(status_of(FORK(raise(SIGRTMIN))), SIGRTMIN), "wait: real-time signal");
	check(killed(status_of(FORK({
			     alarm(1);
			     ualarm(20000, 0);
			     pause();
		     })),
		     SIGALRM),
	      "wait: SIGALRM");
	pid_t g = FORK({
		setpgid(0, 0);
		_exit(1);
	});
	setpgid(g, g);
	pid_t o = FORK(_exit(2));
	check(waitpid(-g, &st, 0) == g && exited(st, 1), "wait: by group");
	check(waitid(P_PGID, getpgrp(), &info, WEXITED) == 0 && info.si_pid == o, "waitid: P_PGID");
	check(waitpid(0, &st, 0) == -1 && errno == ECHILD, "wait: group without children");
	check(waitid(P_ALL, 0, &info, 0) == -1 && errno == EINVAL, "waitid: EINVAL");
	p = FORK(_exit(5));
	ms(20);
	check(waitid(P_ALL, 0, NULL, WEXITED) == 0, "waitid: no siginfo");
	/* EINTR, and restart */
	struct itimerval it = { { 0, 30000 }, { 0, 30000 } };
	int *go = shared(4096);
	p = FORK({
		NEED(await(go, 1));
		ms(120);
	});
	on(SIGALRM, 0);
	setitimer(ITIMER_REAL, &it, NULL);
	check(waitpid(p, &st, 0) == -1 && errno == EINTR && hits[SIGALRM] >= 1, "wait: EINTR");
	on(SIGALRM, SA_RESTART);
	*go = 1;
	check(waitpid(p, &st, 0) == p && hits[SIGALRM] >= 1, "wait: SA_RESTART");
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	off(SIGALRM);
	munmap(go, 4096);
	stop_continue();
}

static void sigchld(void)
{
	blocking(SIG_BLOCK, SIGCHLD);
	on(SIGCHLD, 0);
	sigset_t old;
	sigprocmask(0, NULL, &old);
	sigdelset(&old, SIGCHLD);
	pid_t p = FORK(_exit(33));
	sigsuspend(&old);
	siginfo_t i = last[SIGCHLD];
	check(hits[SIGCHLD] == 1 && i.si_pid == p && i.si_status == 33 && i.si_code == CLD_EXITED &&
		      i.si_uid == getuid(),
	      "SIGCHLD: exit");
	status_of(p);
	p = FORK(pause());
	kill(p, SIGSTOP);
	sigsuspend(&old);
	i = last[SIGCHLD];
	check(i.si_pid == p && i.si_status == SIGSTOP && i.si_code == CLD_STOPPED, "SIGCHLD: stopped");
	kill(p, SIGCONT);
	sigsuspend(&old);
	i = last[SIGCHLD];
	check(i.si_pid == p && i.si_status == SIGCONT && i.si_code == CLD_CONTINUED, "SIGCHLD: continued");
	kill(p, SIGTERM);
	sigsuspend(&old);
	i = last[SIGCHLD];
	check(i.si_pid == p && i.si_status == SIGTERM && i.si_code == CLD_KILLED, "SIGCHLD: killed");
	status_of(p);
	on(SIGCHLD, SA_NOCLDSTOP);
	p = FORK(pause());
	kill(p, SIGSTOP);
	ms(30);
	check(!is_pending(SIGCHLD), "SIGCHLD: SA_NOCLDSTOP");
	kill(p, SIGKILL);
	status_of(p);
	blocking(SIG_UNBLOCK, SIGCHLD);
	on(SIGCHLD, SA_NOCLDWAIT);
	p = FORK(_exit(1));
	int r = waitpid(p, NULL, 0);
	check(r == -1 && errno == ECHILD && await((int *)&hits[SIGCHLD], 1), "SIGCHLD: SA_NOCLDWAIT");
	check(kill(p, 0) == -1 && errno == ESRCH, "SIGCHLD: and the child is gone");
	signal(SIGCHLD, SIG_IGN);
	p = FORK(_exit(1));
	check(waitpid(p, NULL, 0) == -1 && errno == ECHILD, "SIGCHLD: ignored");
	off(SIGCHLD);
	blocking(SIG_BLOCK, SIGCHLD);
	p = FORK(_exit(3));
	sigset_t set;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	ms(20);
	check(sigtimedwait(&set, &info, &(struct timespec){ 60, 0 }) == SIGCHLD && info.si_pid == p &&
		      info.si_status == 3 && exited(status_of(p), 3),
	      "SIGCHLD: default action, blocked, taken by sigtimedwait");
	blocking(SIG_UNBLOCK, SIGCHLD);
	/* A storm of ends, all told of by the count of waits. */
	on(SIGCHLD, SA_RESTART);
	for (int k = 0; k < 10; k++)
		FORK(_exit(0));
	int n = 0;
	while (wait(NULL) > 0 || errno == EINTR)
		n++;
	check(n == 10 && hits[SIGCHLD] > 0, "SIGCHLD: ten children");
	off(SIGCHLD);
}

/* ---- family ------------------------------------------------------------------------------------------------------ */

static void orphans(void)
{
	int *s = shared(4096);
	check(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "subreaper: set");
	pid_t me = getpid();
	pid_t p = FORK({
		pid_t q = FORK({
			pid_t parent = getppid();
			__atomic_store_n(&s[0], getpid(), __ATOMIC_SEQ_CST);
			while (getppid() == parent)
				ms(1);
			s[1] = getppid();
			_exit(66);
		});
		(void)q;
		await(&s[0], 1);
	});
	check(fine(p), "subreaper: the middle one ends");
	int st;
	pid_t r = wait(&st);
	check(r == s[0] && exited(st, 66) && s[1] == me, "subreaper: gets the orphan");
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	s[0] = s[1] = s[2] = 0;
	p = FORK({
		FORK({
			on(SIGUSR1, 0);
			NEED(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0);
			__atomic_store_n(&s[0], 1, __ATOMIC_SEQ_CST);
			for (int i = 0; i < 5000 && !hits[SIGUSR1]; i++)
				ms(1);
			__atomic_store_n(&s[1], hits[SIGUSR1] ? 1 : 2, __ATOMIC_SEQ_CST);
		});
		await(&s[0], 1);
	});
	check(fine(p) && await(&s[1], 1) && s[1] == 1, "PR_SET_PDEATHSIG");
	check(fine(FORK({
		      int sig = -1;
		      NEED(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0);
		      NEED(fine(FORK(NEED(prctl(PR_GET_PDEATHSIG, &sig) == 0 && sig == 0))));
	      })),
	      "PR_SET_PDEATHSIG is not inherited");
	munmap(s, 4096);
}

static void pidfds(void)
{
	pid_t p = FORK(pause());
	int fd = syscall(SYS_pidfd_open, p, 0);
	struct pollfd pf = { fd, POLLIN, 0 };
	check(fd >= 0 && poll(&pf, 1, 0) == 0, "pidfd: open, not readable");
	check(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0, "pidfd: signal 0");
	check(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0) == 0, "pidfd: signal");
	check(poll(&pf, 1, 100000) == 1, "pidfd: readable at the end");
	check(killed(status_of(p), SIGTERM), "pidfd: status");
	check(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0) == -1 && errno == ESRCH, "pidfd: ESRCH when reaped");
	close(fd);
	check(syscall(SYS_pidfd_open, p, 0) == -1 && errno == ESRCH, "pidfd: no such process");
	fd = syscall(SYS_pidfd_open, getpid(), 0);
	on(SIGUSR1, 0);
	check(fd >= 0 && fine(FORK(NEED(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0) == 0))) &&
		      hits[SIGUSR1] == 1,
	      "pidfd: of the parent, in the child");
	off(SIGUSR1);
	close(fd);
}

static bool family_only(void)
{
	return kill(1, 0) == -1 && errno == ESRCH && kill(getppid(), 0) == -1 && errno == ESRCH;
}

static void groups(void)
{
	check(fine(FORK({
		      NEED(setpgid(0, 0) == 0 && setpriority(PRIO_PGRP, getpgrp(), 5) == 0);
		      NEED(getpriority(PRIO_PROCESS, 0) == 5 && getpriority(PRIO_PGRP, getpgrp()) == 5);
		      NEED(syscall(SYS_ioprio_get, 2, getpgrp()) >= 0);
	      })),
	      "priority of one's group, by its number");
	int *s = shared(4096);
	pid_t leader = FORK({
		NEED(setpgid(0, 0) == 0 && getpgrp() == getpid());
		on(SIGUSR1, SA_RESTART);
		for (int k = 0; k < 3; k++)
			FORK({
				on(SIGUSR1, 0);
				__atomic_add_fetch(&s[0], 1, __ATOMIC_SEQ_CST);
				while (!hits[SIGUSR1])
					ms(1);
				__atomic_add_fetch(&s[1], 1, __ATOMIC_SEQ_CST);
			});
		NEED(await(&s[0], 3));
		NEED(kill(0, SIGUSR1) == 0);
		NEED(hits[SIGUSR1] == 1);
		for (int k = 0; k < 3; k++)
			NEED(wait(NULL) > 0);
		s[2] = 1;
		pause();
	});
	setpgid(leader, leader);
	check(getpgid(leader) == leader && await(&s[2], 1) && s[1] == 3, "groups: kill(0) reaches all of the group");
	check(kill(-leader, SIGTERM) == 0 && killed(status_of(leader), SIGTERM), "groups: kill(-pgid)");
	check(kill(-leader, 0) == -1 && errno == ESRCH, "groups: no such group");
	check(setpgid(leader, 0) == -1 && errno == ESRCH, "groups: setpgid of nobody");
	check(fine(FORK({
		      pid_t sid = setsid();
		      NEED(sid == getpid() && getpgrp() == sid && getsid(0) == sid);
		      NEED(setsid() == -1 && errno == EPERM);
		      NEED(fine(FORK(NEED(getsid(0) == sid && getpgrp() == sid))));
		      pid_t p = FORK(pause());
		      NEED(setpgid(p, p) == 0 && getpgid(p) == p && getsid(p) == sid);
		      NEED(kill(p, SIGKILL) == 0 && killed(status_of(p), SIGKILL));
	      })),
	      "sessions: setsid");
	munmap(s, 4096);
}

/* kill(-1): everybody that may be signalled but the sender. */
static void kill_all(void)
{
	if (!family_only())
		return;
	int *s = shared(4096);
	on(SIGUSR2, SA_RESTART);
	pid_t p[3];
	for (int k = 0; k < 3; k++)
		p[k] = FORK({
			hits[SIGUSR2] = 0;
			__atomic_add_fetch(&s[0], 1, __ATOMIC_SEQ_CST);
			while (!hits[SIGUSR2])
				ms(1);
		});
	check(await(&s[0], 3) && kill(-1, SIGUSR2) == 0 && hits[SIGUSR2] == 0, "kill(-1): not to the sender");
	check(fine(p[0]) && fine(p[1]) && fine(p[2]), "kill(-1): to the family");
	p[0] = FORK(NEED(kill(-1, SIGUSR2) == 0));
	check(fine(p[0]) && hits[SIGUSR2] == 1, "kill(-1): from a child to its parent");
	off(SIGUSR2);
	munmap(s, 4096);
}

static void queues(void)
{
	int *s = shared(4096);
	const int rt = SIGRTMIN + 2;
	pid_t p = FORK({
		blocking(SIG_BLOCK, rt);
		on(rt, 0);
		__atomic_store_n(&s[0], 1, __ATOMIC_SEQ_CST);
		await(&s[1], 1);
		blocking(SIG_UNBLOCK, rt);
		NEED(nr_queued == 40);
		for (int i = 0; i < 40; i++)
			NEED(queued[i] == i * 7);
		NEED(last[rt].si_pid == getppid());
	});
	await(&s[0], 1);
	bool good = true;
	for (int i = 0; i < 40; i++)
		good = good && sigqueue(p, rt, (union sigval){ .sival_int = i * 7 }) == 0;
	__atomic_store_n(&s[1], 1, __ATOMIC_SEQ_CST);
	check(good && fine(p), "sigqueue: 40 values in order to another process");
	on(rt, 0);
	nr_queued = 0;
	pid_t me = getpid();
	p = FORK({
		for (int i = 0; i < 20; i++)
			NEED(sigqueue(me, rt, (union sigval){ .sival_int = i }) == 0);
	});
	check(fine(p) && await(&nr_queued, 20) && last[rt].si_pid == p, "sigqueue: child to parent, all of them");
	good = true;
	for (int i = 0; i < 20; i++)
		good = good && queued[i] == i;
	check(good, "sigqueue: in order without blocking");
	off(rt);
	munmap(s, 4096);
}

/* ---- forks in the middle of things --------------------------------------------------------------------------------- */

static volatile int stop;
static int nr_made;

static void *nothing(void *arg) { return arg; }

static void *allocating(void *arg)
{
	unsigned seed = (uintptr_t)arg;
	void *p[32] = { 0 };
	while (!stop) {
		unsigned i = rand_r(&seed) % 32;
		free(p[i]);
		p[i] = malloc(rand_r(&seed) % 20000);
		if (p[i])
			memset(p[i], 1, 16);
	}
	for (int i = 0; i < 32; i++)
		free(p[i]);
	return NULL;
}

static void *mapping(void *arg)
{
	while (!stop) {
		char *m = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (m != MAP_FAILED) {
			m[4096] = 1;
			mprotect(m, 4096, PROT_READ);
			munmap(m, 65536);
		}
		usleep(100);
	}
	return arg;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static void *locking(void *arg)
{
	while (!stop) {
		struct timespec ts;
		clock_gettime(CLOCK_REALTIME, &ts);
		ts.tv_nsec += 200000;
		if (ts.tv_nsec >= 1000000000) {
			ts.tv_sec++;
			ts.tv_nsec -= 1000000000;
		}
		pthread_mutex_lock(&lock);
		pthread_cond_timedwait(&cond, &lock, &ts);
		pthread_mutex_unlock(&lock);
		fprintf(arg, "line of text %d\n", 5);
	}
	return NULL;
}

static void *creating(void *arg)
{
	while (!stop) {
		pthread_t t;
		if (pthread_create(&t, NULL, nothing, NULL) == 0)
			pthread_join(t, NULL);
		else
			break;
		__atomic_add_fetch(&nr_made, 1, __ATOMIC_RELAXED);
		usleep(100);
	}
	return arg;
}

static void *forking(void *arg)
{
	int n = *(int *)arg, good = 0;
	for (int i = 0; i < n; i++) {
		pid_t p = FORK({
			char *m = malloc(100000);
			NEED(m);
			memset(m, i, 100000);
			free(m);
			if (i % 4 == 0) {
				pthread_t t;
				NEED(pthread_create(&t, NULL, nothing, NULL) == 0 && pthread_join(t, NULL) == 0);
			}
			NEED(getpid() == gettid());
		});
		good += fine(p);
	}
	*(int *)arg = good;
	return NULL;
}

#define NR_FORKS 200
static void busy(void)
{
	pthread_t t[4], f;
	FILE *null = fopen("/dev/null", "w");
	int n = NR_FORKS;
	stop = 0;
	int r = pthread_create(&t[0], NULL, allocating, (void *)7) | pthread_create(&t[1], NULL, mapping, NULL) |
		pthread_create(&t[2], NULL, locking, null) | pthread_create(&t[3], NULL, creating, NULL) |
		pthread_create(&f, NULL, forking, &n);
	errno = r;
	check(r == 0, "five threads made");
	if (r)
		return;
	pthread_join(f, NULL);
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	fclose(null);
	check(n == NR_FORKS, "200 forks while four threads allocate, map, lock, print, create threads");
	check(nr_made > 0, "and those go on");
}

static void storms(void)
{
	int *s = shared(4096);
	check(fine(FORK({
		      setpgid(0, 0);
		      on(SIGUSR1, SA_RESTART);
		      pid_t group = getpid();
		      pid_t q = FORK({
			      signal(SIGUSR1, SIG_IGN);
			      s[0] = 1;
			      for (int i = 0; !s[1]; i++) {
				      kill(-group, SIGUSR1);
				      if (i % 16 == 0)
					      ms(1);
			      }
		      });
		      NEED(await(&s[0], 1));
		      for (int i = 0; i < 30; i++) {
			      pid_t p = fork();
			      if (!p)
				      _exit(getpid() == gettid() ? i : 255);
			      NEED(p > 0 && exited(status_of(p), i));
		      }
		      s[1] = 1;
		      NEED(fine(q));
		      NEED(hits[SIGUSR1] > 0);
	      })),
	      "30 forks in a storm of signals to the group");
	on(SIGALRM, SA_RESTART);
	struct itimerval it = { { 0, 500 }, { 0, 500 } }, none = { 0 };
	setitimer(ITIMER_REAL, &it, NULL);
	bool good = true;
	for (int i = 0; i < 30; i++) {
		pid_t p = fork();
		if (!p)
			_exit(i);
		good = good && p > 0 && exited(status_of(p), i);
		if (i % 3 == 0) {
			p = vfork();
			if (!p)
				_exit(i);
			good = good && p > 0 && exited(status_of(p), i);
		}
	}
	setitimer(ITIMER_REAL, &none, NULL);
	check(good && hits[SIGALRM] > 0, "30 forks and 10 vforks in a storm of alarms");
	off(SIGALRM);
	munmap(s, 4096);
}

static void crowd(void)
{
	int *s = shared(4096);
	pid_t p[50];
	for (int i = 0; i < 50; i++)
		p[i] = FORK({
			__atomic_add_fetch(&s[0], 1, __ATOMIC_SEQ_CST);
			while (!__atomic_load_n(&s[1], __ATOMIC_SEQ_CST))
				ms(20);
			_exit(i);
		});
	check(await(&s[0], 50), "50 children alive at once");
	s[1] = 1;
	bool good = true;
	for (int i = 0; i < 50; i++)
		good = good && exited(status_of(p[i]), i);
	check(good, "50 children end");
	s[0] = s[1] = 0;
	pid_t q = fork();
	for (int depth = 0; !q; depth++) {
		s[2 + depth] = getpid();
		NEED(depth == 0 || getppid() == s[1 + depth]);
		if (depth == 9)
			_exit(10);
		q = fork();
		if (q) {
			int st = status_of(q);
			_exit(WIFEXITED(st) ? WEXITSTATUS(st) : 1);
		}
	}
	check(exited(status_of(q), 10), "ten generations");
	munmap(s, 4096);
}

static void fd_limit(void)
{
	check(fine(FORK({
		      struct rlimit rl;
		      NEED(getrlimit(RLIMIT_NOFILE, &rl) == 0);
		      rl.rlim_cur = 64;
		      NEED(setrlimit(RLIMIT_NOFILE, &rl) == 0);
		      int n = 0;
		      while (dup(2) >= 0)
			      n++;
		      NEED(errno == EMFILE && n > 40);
		      NEED(fine(FORK(NEED(dup(2) == -1 && errno == EMFILE))));
		      NEED(fine(FORK({
			      close(63);
			      NEED(open("/dev/null", O_RDONLY) == 63);
		      })));
		      for (int i = 60; i < 64; i++)
			      fcntl(i, F_SETFD, FD_CLOEXEC); /* exec needs one for the libraries */
		      pid_t p = vfork();
		      if (!p) {
			      execl("/bin/true", "true", (char *)NULL);
			      _exit(1);
		      }
		      NEED(fine(p));
		      p = FORK(execl("/bin/sh", "sh", "-c", "exit $(ulimit -n)", (char *)NULL));
		      NEED(exited(status_of(p), 64));
		      pthread_t t;
		      NEED(pthread_create(&t, NULL, nothing, NULL) == 0 && pthread_join(t, NULL) == 0);
	      })),
	      "fork, exec and threads at the limit of descriptors");
}

static void randoms(void)
{
	uint64_t(*r)[2] = shared(8192);
	bool good = true;
	getrandom(&r[200][0], 8, 0);
	for (int i = 0; i < 100; i += 10) {
		pid_t p[10];
		for (int k = 0; k < 10; k++)
			p[k] = FORK({
				NEED(getrandom(&r[i + k][0], 8, 0) == 8);
#if __GLIBC_PREREQ(2, 36)
				arc4random_buf(&r[i + k][1], 8);
#else
				NEED(getrandom(&r[i + k][1], 8, 0) == 8);
#endif
			});
		for (int k = 0; k < 10; k++)
			good = fine(p[k]) && good;
	}
	getrandom(&r[100][0], 16, 0);
	uint64_t *all = &r[0][0];
	for (int i = 0; i < 202; i++)
		for (int k = 0; k < i; k++)
			good = good && all[i] != all[k] && all[i];
	check(good, "random numbers of 100 children and their parent all differ");
	munmap(r, 8192);
}

/* ---- registers ------------------------------------------------------------------------------------------------------ */

__attribute__((target("avx"))) static bool avx_fork(void)
{
	uint64_t in[16][4], out[16][4], parent[16][4];
	for (int i = 0; i < 16; i++)
		for (int k = 0; k < 4; k++)
			in[i][k] = i * 1000003ull + k * 77 + 1;
	uint16_t cw = 0x0e7f, cw2 = 0;
	unsigned csr = 0x7f80, csr2 = 0;
	double top = 0, pushed = 12.5;
	long pid;
	__asm__ volatile(
		"vmovdqu (%1), %%ymm0\n vmovdqu 32(%1), %%ymm1\n vmovdqu 224(%1), %%ymm7\n"
		"vmovdqu 480(%1), %%ymm15\n fldcw %3\n ldmxcsr %4\n fldl %5\n"
		"mov $57, %%eax\n syscall\n"
		"vmovdqu %%ymm0, (%2)\n vmovdqu %%ymm1, 32(%2)\n vmovdqu %%ymm7, 224(%2)\n vmovdqu %%ymm15, 480(%2)\n"
		"fnstcw %6\n stmxcsr %7\n fstpl %8\n"
		: "=&a"(pid)
		: "r"(in), "r"(out), "m"(cw), "m"(csr), "m"(pushed), "m"(cw2), "m"(csr2), "m"(top)
		: "rcx", "r11", "memory", "xmm0", "xmm1", "xmm7", "xmm15");
	_mm_setcsr(0x1f80);
	uint16_t dfl = 0x037f;
	__asm__ volatile("fldcw %0\n vzeroupper" : : "m"(dfl));
	memcpy(parent, out, sizeof parent);
	bool good = cw2 == cw && csr2 == csr && top == 12.5;
	for (int i = 0; i < 16; i++)
		if (i < 2 || i == 7 || i == 15)
			good = good && !memcmp(in[i], parent[i], 32);
	if (!pid)
		_exit(good ? 0 : 1);
	return fine(pid) && good;
}

static void registers(void)
{
	if (__builtin_cpu_supports("avx"))
		check(avx_fork(), "AVX, x87 and MXCSR across fork");
	uint64_t r[6];
	long pid;
	__asm__ volatile("mov $0x1111111111, %%rbx\n mov $0x2222222222, %%r12\n mov $0x3333333333, %%r13\n"
			 "mov $0x4444444444, %%r14\n mov $0x5555555555, %%r15\n mov $0x6666666666, %%r9\n"
			 "mov $57, %%eax\n syscall\n mov %%rbx, (%1)\n mov %%r12, 8(%1)\n mov %%r13, 16(%1)\n"
			 "mov %%r14, 24(%1)\n mov %%r15, 32(%1)\n mov %%r9, 40(%1)\n"
			 : "=&a"(pid)
			 : "D"(r)
			 : "rbx", "r12", "r13", "r14", "r15", "r9", "rcx", "r11", "memory");
	bool good = true;
	for (int i = 0; i < 6; i++)
		good = good && r[i] == 0x1111111111ull * (i + 1);
	if (!pid)
		_exit(good ? 0 : 1);
	check(good && fine(pid), "general registers across fork");
}

/* ---- talking across fork ---------------------------------------------------------------------------------------------- */

struct locks {
	pthread_mutex_t m;
	pthread_cond_t c;
	pthread_barrier_t b;
	pthread_rwlock_t rw;
	sem_t a, z;
	int turn, sum, word;
};

static void pshared(void)
{
	struct locks *l = shared(4096);
	pthread_mutexattr_t ma;
	pthread_condattr_t ca;
	pthread_barrierattr_t ba;
	pthread_mutexattr_init(&ma);
	pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED);
	pthread_condattr_init(&ca);
	pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED);
	pthread_barrierattr_init(&ba);
	pthread_barrierattr_setpshared(&ba, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&l->m, &ma);
	pthread_cond_init(&l->c, &ca);
	pthread_barrier_init(&l->b, &ba, 2);
	sem_init(&l->a, 1, 0);
	sem_init(&l->z, 1, 0);
	pid_t p = FORK({
		for (int i = 0; i < 5000; i++) {
			pthread_mutex_lock(&l->m);
			l->sum++;
			pthread_mutex_unlock(&l->m);
		}
		for (int i = 0; i < 200; i++) {
			pthread_mutex_lock(&l->m);
			while (l->turn != 1)
				pthread_cond_wait(&l->c, &l->m);
			l->turn = 0;
			pthread_cond_broadcast(&l->c);
			pthread_mutex_unlock(&l->m);
		}
		for (int i = 0; i < 200; i++) {
			sem_wait(&l->a);
			sem_post(&l->z);
		}
		pthread_barrier_wait(&l->b);
	});
	for (int i = 0; i < 5000; i++) {
		pthread_mutex_lock(&l->m);
		l->sum++;
		pthread_mutex_unlock(&l->m);
	}
	for (int i = 0; i < 200; i++) {
		pthread_mutex_lock(&l->m);
		while (l->turn != 0)
			pthread_cond_wait(&l->c, &l->m);
		l->turn = 1;
		pthread_cond_broadcast(&l->c);
		pthread_mutex_unlock(&l->m);
	}
	for (int i = 0; i < 200; i++) {
		sem_post(&l->a);
		sem_wait(&l->z);
	}
	pthread_barrier_wait(&l->b);
	check(fine(p) && l->sum == 10000, "process-shared mutex, condition, semaphore, barrier");
	p = FORK({
		ms(20);
		l->word = 1;
		NEED(syscall(SYS_futex, &l->word, FUTEX_WAKE, 1, NULL, NULL, 0) >= 0);
	});
	while (!__atomic_load_n(&l->word, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, &l->word, FUTEX_WAIT, 0, NULL, NULL, 0);
	check(fine(p), "futex across processes");
	munmap(l, 4096);
}

static bool rounds(int rd, int wr, int rd2, int wr2, int n)
{
	pid_t p = FORK({
		int x;
		for (int i = 0; i < n; i++) {
			NEED(read(rd, &x, sizeof x) == sizeof x && x == i);
			x = -x;
			NEED(write(wr2, &x, sizeof x) == sizeof x);
		}
	});
	bool good = true;
	for (int i = 0; i < n && good; i++) {
		int x = i;
		good = write(wr, &x, sizeof x) == sizeof x && read(rd2, &x, sizeof x) == sizeof x && x == -i;
	}
	return fine(p) && good;
}

static void pingpong(void)
{
	int a[2], b[2], s[2];
	if (pipe(a) || pipe(b) || socketpair(AF_UNIX, SOCK_STREAM, 0, s))
		abort();
	check(rounds(a[0], a[1], b[0], b[1], 5000), "5,000 rounds over pipes");
	check(rounds(s[1], s[0], s[0], s[1], 5000), "5,000 rounds over a socket pair");
	for (int i = 0; i < 2; i++) {
		close(a[i]);
		close(b[i]);
		close(s[i]);
	}
	int e = eventfd(0, EFD_SEMAPHORE);
	uint64_t v = 3, w = 0;
	check(fine(FORK(NEED(write(e, &v, 8) == 8))) && read(e, &w, 8) == 8 && w == 1, "eventfd");
	close(e);
}

static int shm_mem(void)
{
	char name[64];
	snprintf(name, sizeof name, "/kx-fork-%d", getpid());
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, 4096))
		return 0;
	char *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pid_t p = FORK({
		int f = shm_open(name, O_RDWR, 0);
		NEED(f >= 0);
		char *c = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
		strcpy(c + 5, "second");
		strcpy(m + 100, "first");
	});
	int good = fine(p) && !strcmp(m + 5, "second") && !strcmp(m + 100, "first");
	munmap(m, 4096);
	close(fd);
	return shm_unlink(name) == 0 && good;
}

static void sysv(void)
{
	check(shm_mem(), "shm_open across fork");
	int id = shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600);
	char *m = shmat(id, NULL, 0);
	struct shmid_ds ds;
	check(id >= 0 && m != (void *)-1, "shmat");
	pid_t p = FORK({
		strcpy(m, "inherited");
		char *c = shmat(id, NULL, 0);
		NEED(c != (void *)-1 && c != m);
		strcpy(c + 4096, "again");
		NEED(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 3);
		NEED(shmdt(m) == 0);
		NEED(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 2);
	});
	check(fine(p) && !strcmp(m, "inherited") && !strcmp(m + 4096, "again"), "SysV shared memory across fork");
	check(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1, "SysV shared memory: count of attachments");
	check(shmdt(m) == 0 && shmctl(id, IPC_RMID, NULL) == 0, "SysV shared memory removed");

	id = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
	struct sembuf up = { 0, 1, SEM_UNDO }, down = { 0, -1, 0 };
	check(id >= 0 && semctl(id, 0, SETVAL, 0) == 0, "semget");
	p = FORK({ NEED(semop(id, &up, 1) == 0 && semctl(id, 0, GETVAL) == 1); });
	check(fine(p) && semctl(id, 0, GETVAL) == 0, "SEM_UNDO at the child's end");
	p = FORK({
		NEED(semop(id, &up, 1) == 0);
		raise(SIGKILL);
	});
	check(killed(status_of(p), SIGKILL) && semctl(id, 0, GETVAL) == 0, "SEM_UNDO after SIGKILL");
	up.sem_flg = 0;
	p = FORK({
		ms(10);
		NEED(semop(id, &up, 1) == 0);
	});
	check(semop(id, &down, 1) == 0 && fine(p), "semop wakes another process");
	semctl(id, 0, IPC_RMID);

	struct {
		long type;
		char text[16];
	} msg = { 5, "hello" }, got = { 0 };
	id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	p = FORK({
		NEED(msgrcv(id, &got, 16, 5, 0) == 16 && !strcmp(got.text, "hello"));
		msg.type = 6;
		strcpy(msg.text, "answer");
		NEED(msgsnd(id, &msg, 16, 0) == 0);
	});
	check(msgsnd(id, &msg, 16, 0) == 0 && msgrcv(id, &got, 16, 6, 0) == 16 && !strcmp(got.text, "answer") &&
		      fine(p),
	      "SysV messages across fork");
	msgctl(id, IPC_RMID, NULL);
}

static void passing(void)
{
	int s[2], fds[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) || pipe(fds))
		abort();
	char buf[CMSG_SPACE(sizeof(int))], c = 'x';
	struct iovec iov = { &c, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = buf, .msg_controllen = sizeof buf };
	pid_t p = FORK({
		close(fds[0]);
		close(fds[1]);
		NEED(recvmsg(s[1], &m, 0) == 1);
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		NEED(h && h->cmsg_type == SCM_RIGHTS);
		int fd;
		memcpy(&fd, CMSG_DATA(h), sizeof fd);
		NEED(write(fd, "through", 7) == 7);
	});
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(h), &fds[1], sizeof(int));
	char text[8] = "";
	check(sendmsg(s[0], &m, 0) == 1 && read(fds[0], text, 7) == 7 && !strcmp(text, "through") && fine(p),
	      "SCM_RIGHTS to a child");
	for (int i = 0; i < 2; i++) {
		close(s[i]);
		close(fds[i]);
	}
}

/* ---- atfork, deep stacks -------------------------------------------------------------------------------------------- */

static char order[16];
static void before(void) { strcat(order, "b"); }
static void in_parent(void) { strcat(order, "p"); }
static void in_child(void) { strcat(order, "c"); }

static int deep(int n)
{
	volatile char pad[1024];
	memset((void *)pad, n, sizeof pad);
	if (n == 0) {
		pid_t p = fork();
		return p;
	}
	int r = deep(n - 1);
	for (unsigned i = 0; i < sizeof pad; i++)
		if (pad[i] != (char)n)
			return -1;
	return r;
}

static volatile pid_t child;
static void forks(int s)
{
	(void)s;
	child = syscall(SYS_fork);
	if (!child)
		_exit(14);
}

static void stacks(void)
{
	int p = deep(200);
	if (!p)
		_exit(0);
	check(p > 0 && fine(p), "fork 200 frames deep, both return through them");
	static bool once;
	if (!once)
		pthread_atfork(before, in_parent, in_child);
	once = true;
	order[0] = 0;
	check(fine(FORK(NEED(!strcmp(order, "bc")))) && !strcmp(order, "bp"), "pthread_atfork");
	/* fork in a signal handler */
	struct sigaction sa = { .sa_handler = forks };
	sigaction(SIGUSR1, &sa, NULL);
	raise(SIGUSR1);
	check(exited(status_of(child), 14), "fork in a signal handler");
	off(SIGUSR1);
}

static void *forker(void *arg)
{
	for (;;)
		FORK();
	return arg;
}

/* The children of a process that ends in another thread while it forks are not ending for that. */
static void endings(void)
{
	int n = 0, st;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int i = 0; i < 25; i++) {
		pid_t p = FORK({
			pthread_t t;
			NEED(pthread_create(&t, NULL, forker, NULL) == 0);
			usleep(3000 + i * 211 % 5000);
			syscall(SYS_exit_group, 0);
		});
		status_of(p);
	}
	for (int i = 0; i < 100000; i++) {
		pid_t r = waitpid(-1, &st, WNOHANG);
		n += r > 0;
		if (r < 0)
			break;
		if (!r)
			ms(1);
	}
	check(waitpid(-1, &st, WNOHANG) < 0 && errno == ECHILD, "exit_group during a fork: each child ends");
	prctl(PR_SET_CHILD_SUBREAPER, 0);
}

#define GENERATIONS 4
#define AT_ONCE 12

static pthread_barrier_t all_here;
static uint64_t highest;

/* gs is 0 natively; in a pVM it is the thread's area, of which there is a limited number. */
static void *meet(void *arg)
{
	uint64_t gs = 0, old = __atomic_load_n(&highest, __ATOMIC_SEQ_CST);
	if (getauxval(AT_HWCAP2) & 2)
		__asm__("rdgsbase %0" : "=r"(gs));
	while (gs > old && !__atomic_compare_exchange_n(&highest, &old, gs, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
	pthread_barrier_wait(&all_here);
	return arg;
}

/* A line of children, each with threads: what the threads of one took, those of the next have again. */
static void generations(void)
{
	uint64_t *top = shared(4096);
	int fds[2];
	char none;
	if (pipe(fds))
		abort();
	pid_t p = fork();
	if (p == 0) {
		close(fds[0]);
		for (int g = 0; g < GENERATIONS; g++) {
			pthread_t t[AT_ONCE];
			highest = 0;
			pthread_barrier_init(&all_here, NULL, AT_ONCE + 1);
			for (int i = 0; i < AT_ONCE; i++)
				NEED(pthread_create(&t[i], NULL, meet, NULL) == 0);
			pthread_barrier_wait(&all_here);
			for (int i = 0; i < AT_ONCE; i++)
				pthread_join(t[i], NULL);
			top[g] = highest + 1;
			pid_t next = fork();
			NEED(next >= 0);
			if (next)
				_exit(0);
		}
		_exit(0);
	}
	close(fds[1]);
	check(read(fds[0], &none, 1) == 0, "generations: all have ended");
	close(fds[0]);
	check(fine(p), "generations: the first ended");
	check(top[0] && top[GENERATIONS - 1] == top[0], "generations: threads take what their parents' had taken");
	munmap(top, 4096);
}

static const struct group {
	const char *name;
	void (*run)(void);
} all[] = { { "ids", ids },
	    { "memory", memory },
	    { "big", big },
	    { "files", files },
	    { "signals", inherited_signals },
	    { "robust", robust },
	    { "clones", clones },
	    { "vforks", vforks },
	    { "vfork_kills", vfork_kills },
	    { "spawns", spawns },
	    { "waits", waits },
	    { "sigchld", sigchld },
	    { "orphans", orphans },
	    { "pidfds", pidfds },
	    { "groups", groups },
	    { "kill_all", kill_all },
	    { "queues", queues },
	    { "busy", busy },
	    { "storms", storms },
	    { "crowd", crowd },
	    { "fd_limit", fd_limit },
	    { "randoms", randoms },
	    { "registers", registers },
	    { "pshared", pshared },
	    { "pingpong", pingpong },
	    { "sysv", sysv },
	    { "passing", passing },
	    { "stacks", stacks },
	    { "endings", endings },
	    { "generations", generations } };

int main(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	setvbuf(stdout, NULL, _IOLBF, 4096);
	snprintf(dir, sizeof dir, "%s/kx-fork-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		return 255;
	for (unsigned i = 0; i < sizeof all / sizeof all[0]; i++) {
		bool wanted = argc < 2;
		for (int k = 1; k < argc; k++)
			wanted = wanted || !strcmp(argv[k], all[i].name);
		double start = now();
		if (wanted)
			all[i].run();
		if (wanted && getenv("VERBOSE"))
			printf("# %s: %.0f ms\n", all[i].name, (now() - start) * 1e3);
	}
	rmdir(dir);
	check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "no child left");
	puts(first_failed ? "FAILED" : "SUCCESS");
	return first_failed;
}
