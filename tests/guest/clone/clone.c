/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clone, clone3 and what libcs make of them: flags and their errors, exit signals, what is shared, who is told; system,
 * popen, posix_spawn; all of it beside threads that are busy. Raw calls by the instruction, with the red zone in use.
 * The exit code is the number of the first check that failed. What a pVM does not do is ENOSYS there: see errors().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../check.h"

/* Not in every libc's headers. */
#define KC_PIDFD 0x1000ull
#define KC_CLEAR_SIGHAND 0x100000000ull
#define KC_INTO_CGROUP 0x200000000ull
#define KC_WCLONE 0x80000000
#define KC_WALL 0x40000000
#define NR_CLONE3 435
struct args3 {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
		cgroup;
};

extern char **environ;
static char self[4096], dir[128];

static int wait_for(pid_t p, int options)
{
	int st = -1;
	pid_t r;
	while ((r = waitpid(p, &st, options)) < 0 && errno == EINTR)
		;
	return r == p ? st : -1;
}
static bool fine(pid_t p) { return p > 0 && wait_for(p, KC_WALL) == 0; }
static bool exited(int st, int code) { return WIFEXITED(st) && WEXITSTATUS(st) == code; }

static void *shared(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		abort();
	return p;
}

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* ---- raw calls ------------------------------------------------------------------------------------------------------ */

static long raw(long nr, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
	long r;
	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}
#define raw_clone(flags, stack, ptid, ctid, tls) \
	raw(SYS_clone, (long)(flags), (long)(stack), (long)(ptid), (long)(ctid), (long)(tls))
#define raw_clone3(a, size) raw(NR_CLONE3, (long)(a), size, 0, 0, 0)

/* A child that only ends: never to be made here, but if it is, it must not go on with the test. */
static long quiet(long r)
{
	if (r == 0)
		_exit(111);
	if (r > 0)
		wait_for(r, KC_WALL);
	return r > 0 ? 1 : r;
}

/* ---- errors --------------------------------------------------------------------------------------------------------- */

#define TH (CLONE_THREAD | CLONE_SIGHAND | CLONE_VM)
static const struct {
	unsigned long flags;
	int want;
} legacy[] = {
	{ CLONE_THREAD, -EINVAL },
	{ CLONE_THREAD | CLONE_VM, -EINVAL },
	{ CLONE_SIGHAND | SIGCHLD, -EINVAL },
	{ CLONE_NEWNS | CLONE_FS | SIGCHLD, -EINVAL },
	{ CLONE_NEWUSER | CLONE_FS | SIGCHLD, -EINVAL },
	{ TH | CLONE_NEWPID, -EINVAL },
	{ TH | CLONE_NEWUSER, -EINVAL },
	{ KC_PIDFD | CLONE_PARENT_SETTID | SIGCHLD, -EINVAL },
	{ KC_PIDFD | CLONE_DETACHED | SIGCHLD, -EINVAL },
	{ CLONE_NEWUTS | SIGCHLD, -EPERM },
	{ CLONE_NEWIPC | SIGCHLD, -EPERM },
	{ CLONE_NEWPID | SIGCHLD, -EPERM },
	{ CLONE_NEWNET | SIGCHLD, -EPERM },
	{ CLONE_NEWNS | SIGCHLD, -EPERM },
	{ CLONE_NEWCGROUP | SIGCHLD, -EPERM },
	{ KC_PIDFD | SIGCHLD, -EFAULT },
	{ CLONE_SETTLS | SIGCHLD, -EPERM },
	{ CLONE_VM | CLONE_VFORK | CLONE_SETTLS | SIGCHLD, -EPERM },
};

static int bad_tid = 0, a_tid = 77;
static char stack_space[65536] __attribute__((aligned(16)));
#define P(x) ((uint64_t)(uintptr_t)(x))
static const struct {
	struct args3 a;
	int want, size; /* 0: all */
} modern[] = {
	{ { .flags = 1ull << 40 }, -EINVAL, 0 },
	{ { .flags = 1ull << 63 }, -EINVAL, 0 },
	{ { .flags = SIGCHLD }, -EINVAL, 0 },
	{ { .flags = CLONE_DETACHED }, -EINVAL, 0 },
	{ { .exit_signal = 65 }, -EINVAL, 0 },
	{ { .exit_signal = 0x100 }, -EINVAL, 0 },
	{ { .exit_signal = 1ull << 32 }, -EINVAL, 0 },
	{ { .flags = CLONE_PARENT, .exit_signal = SIGCHLD }, -EINVAL, 0 },
	{ { .flags = TH, .exit_signal = SIGCHLD }, -EINVAL, 0 },
	{ { .flags = CLONE_VM | CLONE_SIGHAND | KC_CLEAR_SIGHAND }, -EINVAL, 0 },
	{ { .exit_signal = SIGCHLD, .stack = P(0x10000) }, -EINVAL, 0 },
	{ { .exit_signal = SIGCHLD, .stack_size = 4096 }, -EINVAL, 0 },
	{ { .exit_signal = SIGCHLD, .stack = ~0ull - 100, .stack_size = 4096 }, -EINVAL, 0 },
	{ { .exit_signal = SIGCHLD, .set_tid_size = 1 }, -EINVAL, 0 },
	{ { .exit_signal = SIGCHLD, .set_tid = 8 }, -EINVAL, 0 },
	{ { .exit_signal = SIGCHLD, .set_tid = 8, .set_tid_size = 1 }, -EFAULT, 0 },
	{ { .exit_signal = SIGCHLD, .set_tid = 8, .set_tid_size = 33 }, -EINVAL, 0 },
	{ { .flags = KC_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = 9999 }, -EBADF, 0 },
	{ { .flags = KC_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = 1ull << 31 }, -EINVAL, 0 },
	{ { .flags = KC_INTO_CGROUP, .exit_signal = SIGCHLD }, -EINVAL, 80 },
	{ { .flags = KC_PIDFD, .exit_signal = SIGCHLD, .pidfd = 8 }, -EFAULT, 0 },
	{ { .flags = CLONE_SIGHAND, .exit_signal = SIGCHLD }, -EINVAL, 0 },
	{ { .flags = 0x80 /* CLONE_NEWTIME */, .exit_signal = SIGCHLD }, -EPERM, 0 },
	{ { .exit_signal = SIGCHLD }, -EINVAL, 63 },
	{ { .exit_signal = SIGCHLD }, -E2BIG, 4097 },
	{ { .exit_signal = SIGCHLD }, 1, 64 },
	{ { .exit_signal = SIGCHLD }, 1, 80 },
	{ { .exit_signal = SIGCHLD, .cgroup = 9999 /* without its flag */ }, 1, 0 },
	{ { .exit_signal = 0 }, 1, 0 },
	{ { .exit_signal = 64 }, 1, 0 },
};

/* In a child without privileges: natively the test may have them. */
static void errors_run(void)
{
	char text[80];
	signal(64, SIG_IGN);
	for (unsigned i = 0; i < sizeof legacy / sizeof legacy[0]; i++) {
		long r = quiet(raw_clone(legacy[i].flags, 0, 8, 0, 0x7ffffffff000));
		snprintf(text, sizeof text, "clone: flags %#lx: %ld", legacy[i].flags, r);
		check(r == legacy[i].want, text);
	}
	for (unsigned i = 0; i < sizeof modern / sizeof modern[0]; i++) {
		long r = quiet(raw_clone3(&modern[i].a, modern[i].size ? modern[i].size : (long)sizeof modern[i].a));
		snprintf(text, sizeof text, "clone3: case %u: %ld", i, r);
		check(r == modern[i].want, text);
	}
	struct args3 a = { .exit_signal = SIGCHLD, .set_tid = P(&bad_tid), .set_tid_size = 1 };
	check(quiet(raw_clone3(&a, sizeof a)) == -EINVAL, "clone3: set_tid of 0");
	a.set_tid = P(&a_tid);
	check(quiet(raw_clone3(&a, sizeof a)) == -EPERM, "clone3: set_tid without the privilege");
	struct {
		struct args3 a;
		uint64_t more;
	} b = { { .exit_signal = SIGCHLD }, 0 };
	check(quiet(raw_clone3(&b, sizeof b)) == 1, "clone3: longer, with zeros");
	b.more = 1;
	check(quiet(raw_clone3(&b, sizeof b)) == -E2BIG, "clone3: longer, with more than zeros");
	check(quiet(raw_clone3(8, sizeof b)) == -EFAULT, "clone3: EFAULT");
	/* The upper half of clone's flags is not looked at. */
	check(quiet(raw_clone(KC_CLEAR_SIGHAND | 1ull << 60 | SIGCHLD, 0, 0, 0, 0)) == 1, "clone: flags are 32 bits");
}

static void errors(void)
{
	fflush(stdout);
	pid_t p = FORK({
		if (!getuid())
			NEED(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
		errors_run();
		fflush(stdout);
		_exit(first_failed);
	});
	check(fine(p), "clone, clone3: errors");
	if (getenv("KX_PVM")) { /* what a pVM does not do is said, never done differently */
		check(quiet(raw_clone(CLONE_FILES | SIGCHLD, 0, 0, 0, 0)) == -ENOSYS,
		      "pVM: CLONE_FILES alone is ENOSYS");
		check(quiet(raw_clone(CLONE_VM | SIGCHLD, stack_space + 65536, 0, 0, 0)) == -ENOSYS,
		      "pVM: CLONE_VM alone is ENOSYS");
		check(quiet(raw_clone(CLONE_VM | CLONE_VFORK | CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0)) == -ENOSYS,
		      "pVM: CLONE_SIGHAND without CLONE_THREAD is ENOSYS");
		check(quiet(raw_clone(CLONE_PARENT, 0, 0, 0, 0)) == -EINVAL, "pVM: the first process has no sisters");
	}
}

/* ---- exit signals, parents ------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t hits[65];
static siginfo_t last[65];
static void count(int s, siginfo_t *i, void *uc)
{
	(void)uc;
	hits[s]++;
	last[s] = *i;
}

static void exit_signals(void)
{
	static const int signals[] = { SIGUSR1, SIGTERM, SIGCHLD, SIGURG, 0, 40, 64, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	char text[80];
	for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++) {
		int s = signals[i], st = -1;
		struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO }, old, chld;
		sigaction(SIGCHLD, &sa, &chld);
		if (s)
			sigaction(s, &sa, &old);
		memset((void *)hits, 0, sizeof hits);
		long p = raw_clone(s, 0, 0, 0, 0);
		if (!p)
			_exit(20 + i);
		snprintf(text, sizeof text, "exit signal %d: ", s);
		size_t n = strlen(text);
		strcpy(text + n, "made");
		check(p > 0, text);
		siginfo_t info = { 0 };
		while (waitid(P_PID, p, &info, WEXITED | WNOWAIT | KC_WALL) && errno == EINTR)
			;
		strcpy(text + n, "waitid");
		check(info.si_pid == p && info.si_code == CLD_EXITED && info.si_status == (int)(20 + i), text);
		for (int k = 0; s && k < 60000 && !hits[s]; k++)
			ms(1);
		strcpy(text + n, "signal");
		check(!s ? !hits[SIGCHLD]
			 : hits[s] == 1 && last[s].si_code == CLD_EXITED && last[s].si_pid == p &&
				      last[s].si_status == (int)(20 + i) && (s == SIGCHLD || !hits[SIGCHLD]),
		      text);
		strcpy(text + n, "only a wait for clones finds it");
		if (s != SIGCHLD)
			check(waitpid(p, &st, WNOHANG) == -1 && errno == ECHILD &&
				      waitpid(p, &st, WNOHANG | KC_WCLONE) == p && exited(st, 20 + i),
			      text);
		else
			check(waitpid(p, &st, WNOHANG | KC_WCLONE) == -1 && errno == ECHILD &&
				      waitpid(p, &st, WNOHANG) == p && exited(st, 20 + i),
			      text);
		if (s)
			sigaction(s, &old, NULL);
		sigaction(SIGCHLD, &chld, NULL);
	}
	/* exec makes the signal SIGCHLD. */
	struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO }, old;
	sigaction(SIGUSR1, &sa, &old);
	memset((void *)hits, 0, sizeof hits);
	long p = raw_clone(SIGUSR1, 0, 0, 0, 0);
	if (!p) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	check(fine(p) && !hits[SIGUSR1], "exec resets the exit signal");
	sigaction(SIGUSR1, &old, NULL);
}

/* Signals with the numbers of faults, but sent. */
static void like_faults(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	char text[80];
	for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++) {
		int s = signals[i], fds[2];
		struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO }, old;
		sigaction(s, &sa, &old);
		memset((void *)hits, 0, sizeof hits);
		siginfo_t info = { 0 };
		info.si_signo = s;
		info.si_code = 1; /* SEGV_MAPERR and so on */
		info.si_addr = (void *)0x1234;
		long r = raw(SYS_rt_sigqueueinfo, getpid(), s, (long)&info, 0, 0);
		snprintf(text, sizeof text, "signal %d queued to oneself as if a fault", s);
		check(r == 0 && hits[s] == 1 && last[s].si_code == 1 && last[s].si_addr == (void *)0x1234, text);
		if (pipe(fds) || fcntl(fds[0], F_SETOWN, getpid()) || fcntl(fds[0], F_SETSIG, s) ||
		    fcntl(fds[0], F_SETFL, O_ASYNC))
			abort();
		r = write(fds[1], "x", 1);
		for (int k = 0; k < 60000 && hits[s] < 2; k++)
			ms(1);
		snprintf(text, sizeof text, "signal %d by F_SETSIG", s);
		check(r == 1 && hits[s] == 2 && last[s].si_code == SI_SIGIO && last[s].si_fd == fds[0], text);
		close(fds[0]);
		close(fds[1]);
		char buf[8];
		check(raw(SYS_read, 0x7fff, (long)buf, 1, 0, 0) == -EBADF && raw(SYS_uname, 16, 0, 0, 0, 0) == -EFAULT,
		      "and a real one is still told apart");
		sigaction(s, &old, NULL);
		check(WTERMSIG(wait_for(FORK(raw(SYS_rt_sigqueueinfo, getpid(), s, (long)&info, 0, 0)), 0)) == s,
		      "without a handler it kills");
	}
}

static void parents(void)
{
	int *s = shared(4096);
	pid_t p = FORK({
		/* A sister of p: a child of ours. */
		long q = raw_clone(CLONE_PARENT, 0, 0, 0, 0);
		if (!q) {
			s[1] = getppid();
			_exit(41);
		}
		NEED(q > 0);
		s[0] = q;
		NEED(waitpid(q, NULL, KC_WALL) == -1 && errno == ECHILD);
		q = raw_clone(CLONE_PARENT | CLONE_VM | CLONE_VFORK | SIGUSR1, 0, 0, 0, 0);
		if (!q) {
			s[3] = raw(SYS_getppid, 0, 0, 0, 0, 0);
			raw(SYS_exit_group, 42, 0, 0, 0, 0);
		}
		NEED(q > 0);
		s[2] = q;
	});
	check(fine(p), "CLONE_PARENT: not the caller's child");
	check(exited(wait_for(s[0], 0), 41) && s[1] == getpid(), "CLONE_PARENT: ours, with the caller's exit signal");
	check(exited(wait_for(s[2], 0), 42) && s[3] == getpid(), "CLONE_PARENT with CLONE_VFORK");
	munmap(s, 4096);
}

/* ---- what is shared ---------------------------------------------------------------------------------------------------- */

static bool at(const char *want)
{
	char cwd[300];
	return getcwd(cwd, sizeof cwd) && !strcmp(cwd, want);
}

static void sharing(void)
{
	char was[300];
	mode_t mask = umask(022);
	check(getcwd(was, sizeof was) != NULL, "getcwd");
	long p = raw_clone(CLONE_FS | SIGCHLD, 0, 0, 0, 0);
	if (!p) {
		NEED(chdir(dir) == 0);
		umask(077);
		_exit(0);
	}
	check(fine(p) && at(dir) && umask(022) == 077, "CLONE_FS: directory and umask are shared");
	p = raw_clone(CLONE_FS | SIGCHLD, 0, 0, 0, 0);
	if (!p)
		_exit(execl("/bin/sh", "sh", "-c", "cd /", (char *)NULL));
	check(fine(p) && at("/"), "CLONE_FS: also after exec");
	p = raw_clone(CLONE_FS | CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (!p) {
		raw(SYS_chdir, (long)"/", 0, 0, 0, 0);
		raw(SYS_exit_group, 0, 0, 0, 0, 0);
	}
	check(fine(p) && at("/"), "CLONE_FS with CLONE_VFORK");
	p = raw_clone(CLONE_FILES | CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (!p) {
		raw(SYS_dup2, 1, 77, 0, 0, 0);
		raw(SYS_exit_group, 0, 0, 0, 0, 0);
	}
	check(fine(p) && fcntl(77, F_GETFD) == 0 && close(77) == 0, "CLONE_FILES with CLONE_VFORK");
	if (chdir(was))
		abort();
	umask(mask);

	int id = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
	struct sembuf up = { 0, 1, SEM_UNDO };
	check(id >= 0 && semctl(id, 0, SETVAL, 0) == 0, "semget");
	for (int vf = 0; vf < 2; vf++) {
		p = FORK({
			long q = vf ? raw_clone(CLONE_SYSVSEM | CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0)
				    : raw_clone(CLONE_SYSVSEM | SIGCHLD, 0, 0, 0, 0);
			if (!q) {
				semop(id, &up, 1);
				raw(SYS_exit_group, 0, 0, 0, 0, 0);
			}
			NEED(fine(q));
			NEED(semctl(id, 0, GETVAL) == 1); /* the list is undone when its last owner ends */
		});
		check(fine(p) && semctl(id, 0, GETVAL) == 0,
		      vf ? "CLONE_SYSVSEM with CLONE_VFORK" : "CLONE_SYSVSEM: one list of undos");
	}
	semctl(id, 0, IPC_RMID);
	p = raw_clone(CLONE_IO | CLONE_UNTRACED | CLONE_PTRACE | CLONE_DETACHED | SIGCHLD, 0, 0, 0, 0);
	if (!p)
		_exit(0);
	check(fine(p), "CLONE_IO and flags without effect");
}

/* ---- numbers and pidfds ------------------------------------------------------------------------------------------------- */

static void numbers(void)
{
	int pidfd = -5, tid = -5, ctid = -5;
	struct sigaction ign = { .sa_handler = SIG_IGN }, old;
	sigaction(SIGUSR2, &ign, &old); /* which may come at once */
	long p = raw_clone(KC_PIDFD | CLONE_CHILD_SETTID | SIGUSR2, 0, &pidfd, &ctid, 0);
	if (!p)
		_exit(pidfd == -5 && ctid == (int)raw(SYS_getpid, 0, 0, 0, 0, 0) ? 7 : 1);
	siginfo_t info = { 0 };
	check(p > 0 && pidfd >= 0 && fcntl(pidfd, F_GETFD) == FD_CLOEXEC && ctid == -5, "CLONE_PIDFD");
	while (waitid(3 /* P_PIDFD */, pidfd, &info, WEXITED | KC_WALL) && errno == EINTR)
		;
	check(info.si_pid == p && info.si_status == 7, "CLONE_PIDFD: is the child's");
	close(pidfd);
	sigaction(SIGUSR2, &old, NULL);

	/* In shared memory the child finds what its parent is told. */
	struct args3 a = { .flags = KC_PIDFD | CLONE_PARENT_SETTID | CLONE_VM | CLONE_VFORK,
			   .pidfd = P(&pidfd),
			   .parent_tid = P(&tid),
			   .exit_signal = SIGCHLD };
	static volatile int seen[4];
	pidfd = tid = -5;
	p = raw_clone3(&a, sizeof a);
	if (!p) {
		seen[0] = *(volatile int *)&pidfd;
		seen[1] = *(volatile int *)&tid;
		seen[2] = raw(SYS_getpid, 0, 0, 0, 0, 0);
		seen[3] = raw(SYS_fcntl, seen[0], F_GETFD, 0, 0, 0);
		raw(SYS_exit_group, 0, 0, 0, 0, 0);
	}
	check(fine(p) && seen[0] == pidfd && pidfd >= 0 && seen[1] == p && tid == p && seen[2] == p,
	      "CLONE_VFORK: pid and pidfd are told before the child runs");
	check(seen[3] == -EBADF, "CLONE_VFORK: the pidfd is not the child's");
	close(pidfd);

	/* No descriptor left: no child. */
	check(fine(FORK({
		      struct rlimit rl = { 32, 32 };
		      setrlimit(RLIMIT_NOFILE, &rl);
		      while (dup(2) >= 0)
			      ;
		      NEED(quiet(raw_clone(KC_PIDFD | SIGCHLD, 0, &pidfd, 0, 0)) == -EMFILE);
		      NEED(quiet(raw_clone(KC_PIDFD | CLONE_VM | CLONE_VFORK | SIGCHLD, 0, &pidfd, 0, 0)) == -EMFILE);
		      NEED(waitpid(-1, NULL, KC_WALL) == -1 && errno == ECHILD);
	      })),
	      "CLONE_PIDFD: EMFILE");
	int *s = shared(4096);
	for (int i = 0; i < 3; i++) {
		s[0] = -1;
		p = raw_clone(CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD, 0, 0, s, 0);
		if (!p) {
			if (s[0] != (int)raw(SYS_gettid, 0, 0, 0, 0, 0))
				_exit(1);
			if (i == 2)
				execl("/bin/true", "true", (char *)NULL);
			raw(i ? SYS_exit_group : SYS_exit, 0, 0, 0, 0, 0);
		}
		check(fine(p) && s[0] == p, "CLONE_CHILD_CLEARTID: only where the memory has other users");
	}
	munmap(s, 4096);
}

/* ---- CLONE_VFORK with memory of its own ---------------------------------------------------------------------------------- */

static int value = 1;
static void waits(void)
{
	int fds[2];
	if (pipe(fds))
		abort();
	double start = now();
	long p = raw_clone(CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (!p) {
		value = 2;
		ms(80);
		close(fds[1]);
		dup2(fds[0], 0);
		execl("/bin/cat", "cat", (char *)NULL); /* lives until we close the pipe */
		_exit(1);
	}
	check(now() - start >= 0.075 && value == 1, "CLONE_VFORK alone: waits, with memory of its own");
	check(waitpid(p, NULL, WNOHANG) == 0, "CLONE_VFORK alone: until the exec");
	close(fds[0]);
	close(fds[1]);
	check(fine(p), "CLONE_VFORK alone: then both run");
	if (pipe(fds))
		abort();
	start = now();
	p = raw_clone(CLONE_VFORK, 0, 0, 0, 0);
	if (!p) {
		if (!fork()) { /* a grandchild does not count: it lives until we close the pipe */
			char c;
			close(fds[1]);
			_exit(read(fds[0], &c, 1) != 0);
		}
		ms(50);
		_exit(5);
	}
	check(now() - start >= 0.045 && exited(wait_for(p, KC_WALL), 5), "CLONE_VFORK alone: until the end");
	close(fds[0]);
	close(fds[1]);
}

/* ---- the red zone ---------------------------------------------------------------------------------------------------------- */

/* 128 bytes below the stack pointer hold data over a clone, in both. Returns 0 when they did, in the child by exit. */
long red_zone(long flags);
__asm__(".text\n.globl red_zone\n.type red_zone, @function\nred_zone:\n"
	"mov $0x1234567890abcdef, %rax\n mov %rax, -8(%rsp)\n mov %rax, -64(%rsp)\n mov %rax, -128(%rsp)\n"
	"xor %esi, %esi\n xor %edx, %edx\n xor %r10d, %r10d\n xor %r8d, %r8d\n mov $56, %eax\n syscall\n"
	"mov $0x1234567890abcdef, %rcx\n xor %edx, %edx\n"
	"cmp %rcx, -8(%rsp)\n jne 1f\n cmp %rcx, -64(%rsp)\n jne 1f\n cmp %rcx, -128(%rsp)\n je 2f\n"
	"1: mov $1, %edx\n"
	"2: test %eax, %eax\n jz 3f\n test %edx, %edx\n jz 4f\n mov $-1, %rax\n"
	"4: ret\n"
	"3: mov %edx, %edi\n mov $231, %eax\n syscall\n hlt\n"
	".size red_zone, . - red_zone\n");

static void red_zones(void)
{
	bool good = true;
	for (int i = 0; i < 10; i++)
		good = good && fine(red_zone(SIGCHLD));
	check(good, "red zone over fork");
	check(fine(red_zone(SIGURG)), "red zone over clone with another signal");
}

/* ---- libc's ways ------------------------------------------------------------------------------------------------------------ */

static int run_out(const char *cmd, char *buf, size_t n)
{
	FILE *f = popen(cmd, "r");
	if (!f)
		return -1;
	size_t r = fread(buf, 1, n - 1, f);
	buf[r] = 0;
	return pclose(f);
}

static bool libc_once(void)
{
	char buf[100];
	bool good = exited(system("exit 3"), 3) && system(NULL) &&
		    run_out("echo hello; exit 4", buf, sizeof buf) == 4 << 8 && !strcmp(buf, "hello\n");
	FILE *f = popen("read x; test \"$x\" = text", "w");
	good = good && f && fputs("text\n", f) >= 0 && pclose(f) == 0;
	pid_t p;
	good = good && !posix_spawn(&p, "/bin/true", NULL, NULL, (char *[]){ "true", NULL }, environ) && fine(p);
	good = good && posix_spawnp(&p, "kx-nothing", NULL, NULL, (char *[]){ "x", NULL }, environ) == ENOENT;
	p = vfork();
	if (!p) {
		execl("/bin/false", "false", (char *)NULL);
		_exit(99);
	}
	good = good && exited(wait_for(p, 0), 1);
	p = vfork();
	if (!p)
		_exit(17);
	return good && exited(wait_for(p, 0), 17);
}

static void spawns(void)
{
	check(libc_once(), "system, popen, posix_spawn, vfork");
	/* The signals that system() changes are as they were, also in its child. */
	struct sigaction sa;
	check(WIFSIGNALED(system("kill -INT $$; exit 1")), "system: child killed by SIGINT");
	check(!sigaction(SIGINT, NULL, &sa) && sa.sa_handler == SIG_DFL, "system: SIGINT is as before");

	posix_spawnattr_t a;
	posix_spawn_file_actions_t f;
	sigset_t set, mask;
	pid_t p;
	char path[200], text[100] = "";
	posix_spawnattr_init(&a);
	posix_spawn_file_actions_init(&f);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	signal(SIGUSR1, SIG_IGN);
	check(!posix_spawnattr_setsigdefault(&a, &set) && !posix_spawnattr_setsigmask(&a, &mask) &&
		      !posix_spawnattr_setpgroup(&a, 0) &&
		      !posix_spawnattr_setflags(&a, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
							    POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_RESETIDS),
	      "posix_spawn: attributes");
	snprintf(path, sizeof path, "%s/spawned", dir);
	check(!posix_spawn_file_actions_addopen(&f, 5, path, O_RDWR | O_CREAT, 0600) &&
		      !posix_spawn_file_actions_adddup2(&f, 5, 1) && !posix_spawn_file_actions_addclose(&f, 5) &&
		      !posix_spawn_file_actions_addopen(&f, 0, "/dev/null", O_RDONLY, 0) &&
		      !posix_spawn_file_actions_addchdir_np(&f, dir),
	      "posix_spawn: file actions");
	check(!posix_spawn(&p, self, &f, &a, (char *[]){ self, "role", "spawned", dir, NULL }, environ) && fine(p),
	      "posix_spawn: all of them in the child");
	int fd = open(path, O_RDONLY);
	check(fd >= 0 && read(fd, text, sizeof text - 1) == 9 && !strcmp(text, "from here"), "posix_spawn: output");
	close(fd);
	unlink(path);
	posix_spawnattr_setflags(&a, 0x80 /* POSIX_SPAWN_SETSID */);
	check(!posix_spawn(&p, self, NULL, &a, (char *[]){ self, "role", "session", NULL }, environ) && fine(p),
	      "posix_spawn: SETSID");
	posix_spawn_file_actions_addopen(&f, 6, "/nonexistent/file", O_RDONLY, 0);
	check(posix_spawn(&p, "/bin/true", &f, NULL, (char *[]){ "true", NULL }, environ) == ENOENT,
	      "posix_spawn: a failing action");
	posix_spawnattr_destroy(&a);
	posix_spawn_file_actions_destroy(&f);
	signal(SIGUSR1, SIG_DFL);
	check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "no child left of those that failed");
}

static int role(int argc, char **argv)
{
	sigset_t mask;
	struct sigaction sa;
	char c;
	if (!strcmp(argv[2], "session"))
		return getsid(0) == getpid() ? 0 : 1;
	if (argc < 4 || strcmp(argv[2], "spawned"))
		return 50;
	if (sigaction(SIGUSR1, NULL, &sa) || sa.sa_handler != SIG_DFL)
		return 51;
	if (sigprocmask(0, NULL, &mask) || !sigismember(&mask, SIGUSR2) || sigismember(&mask, SIGUSR1))
		return 52;
	if (getpgrp() != getpid() || fcntl(5, F_GETFD) != -1 || read(0, &c, 1) != 0)
		return 53;
	if (!at(argv[3]))
		return 54;
	return write(1, "from here", 9) == 9 ? 0 : 55;
}

/* ---- beside busy threads ------------------------------------------------------------------------------------------------------ */

static volatile bool stop;
static int pipes[2], futex_word;

static void *in_malloc(void *arg)
{
	while (!stop) {
		void *p[20];
		for (int i = 0; i < 20; i++)
			p[i] = malloc(10 + i * 997);
		for (int i = 0; i < 20; i++)
			free(p[i]);
	}
	return arg;
}
static void *in_read(void *arg)
{
	char c;
	while (read(pipes[0], &c, 1) == 1)
		;
	return arg;
}
static void *in_futex(void *arg)
{
	struct timespec ts = { 0, 3000000 };
	while (!stop)
		syscall(SYS_futex, &futex_word, 128 /* FUTEX_WAIT_PRIVATE */, 0, &ts, NULL, 0);
	return arg;
}
static void *in_write(void *arg)
{
	while (!stop)
		if (write(pipes[1], "x", 1) != 1)
			break;
	return arg;
}
static void *nothing(void *arg) { return arg; }
static void *in_threads(void *arg)
{
	pthread_t t;
	while (!stop)
		if (!pthread_create(&t, NULL, nothing, NULL))
			pthread_join(t, NULL);
	return arg;
}
static void *in_mmap(void *arg)
{
	while (!stop) {
		char *p = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		p[0] = p[40000] = 1;
		munmap(p, 1 << 16);
	}
	return arg;
}
static void *in_signals(void *arg)
{
	while (!stop) {
		pthread_kill(*(pthread_t *)arg, SIGUSR2);
		ms(1);
	}
	return NULL;
}

static void caught(int s) { (void)s; }

static void busy(void)
{
	static void *(*const what[])(
		void *) = { in_malloc, in_read, in_futex, in_write, in_threads, in_mmap, in_signals };
	enum { N = sizeof what / sizeof what[0] };
	pthread_t t[N], me = pthread_self();
	struct sigaction sa = { .sa_handler = caught, .sa_flags = SA_RESTART };
	sigaction(SIGUSR2, &sa, NULL);
	stop = false;
	if (pipe(pipes))
		abort();
	for (int i = 0; i < N; i++)
		if (pthread_create(&t[i], NULL, what[i], &me))
			abort();
	bool forks = true, vforks = true, libc = true, mallocs = true;
	for (int i = 0; i < 12; i++) {
		forks = fine(FORK({
				pthread_t c;
				NEED(getpid() == gettid());
				NEED(!pthread_create(&c, NULL, nothing, NULL) && !pthread_join(c, NULL));
			})) &&
			forks;
		mallocs = fine(FORK({
				  for (int k = 0; k < 100; k++) {
					  char *m = malloc(k * 100 + 1);
					  NEED(m);
					  m[0] = 1;
					  if (k % 2)
						  free(m);
				  }
			  })) &&
			  mallocs;
		pid_t p = vfork();
		if (!p)
			_exit(9);
		vforks = exited(wait_for(p, 0), 9) && vforks;
		if (i % 4 == 0)
			libc = libc_once() && libc;
	}
	int pidfd = -1;
	long p = raw_clone(KC_PIDFD | SIGCHLD, 0, &pidfd, 0, 0);
	if (!p)
		_exit(pidfd == -1 ? 6 : 1);
	siginfo_t info = { 0 };
	while (waitid(3, pidfd, &info, WEXITED) && errno == EINTR)
		;
	check(info.si_pid == p && info.si_status == 6 && fcntl(pidfd, F_GETFD) == FD_CLOEXEC,
	      "beside busy threads: CLONE_PIDFD");
	close(pidfd);
	double start = now();
	p = raw_clone(CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (!p) {
		ms(40);
		_exit(4);
	}
	check(now() - start > 0.035 && exited(wait_for(p, 0), 4), "beside busy threads: CLONE_VFORK alone");
	stop = true;
	close(pipes[1]);
	for (int i = 0; i < N; i++)
		pthread_join(t[i], NULL);
	close(pipes[0]);
	check(forks, "beside busy threads: fork, threads in the child");
	check(mallocs, "beside busy threads: fork, malloc in the child");
	check(vforks, "beside busy threads: vfork");
	check(libc, "beside busy threads: system, popen, posix_spawn");
	signal(SIGUSR2, SIG_DFL);
	/* The threads are gone: everything that needs one thread works. */
	p = raw_clone(SIGURG, 0, 0, 0, 0);
	if (!p)
		_exit(0);
	check(fine(p), "after threads: another exit signal");
}

/* ---- random numbers ---------------------------------------------------------------------------------------------------------- */

static void randoms(void)
{
	enum { N = 24 };
	uint64_t(*r)[2] = shared(4096);
	pid_t p[N];
	bool good = true;
	for (int i = 0; i < N; i++) {
		int flags = i % 3 == 0 ? SIGCHLD : i % 3 == 1 ? SIGURG : CLONE_VM | CLONE_VFORK | SIGCHLD;
		p[i] = raw_clone(flags, 0, 0, 0, 0);
		if (!p[i]) {
			raw(SYS_getrandom, (long)&r[i][0], 16, 0, 0, 0);
			raw(SYS_exit_group, 0, 0, 0, 0, 0);
		}
	}
	for (int i = 0; i < N; i++)
		good = fine(p[i]) && good;
	getrandom(r[N], 16, 0);
	for (int i = 0; i < 2 * N + 2; i++)
		for (int k = 0; k < i; k++)
			good = good && r[i / 2][i % 2] != r[k / 2][k % 2];
	check(good, "random numbers of children differ");
	munmap(r, 4096);
}

/* ---- depth ---------------------------------------------------------------------------------------------------------------------- */

static int deep(int n)
{
	if (!n)
		return 30;
	long p = raw_clone(n % 2 ? SIGCHLD : SIGURG, 0, 0, 0, 0);
	if (!p)
		_exit(deep(n - 1));
	int st = p > 0 ? wait_for(p, KC_WALL) : -1;
	return WIFEXITED(st) ? WEXITSTATUS(st) : 99;
}

int main(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (argc > 2 && !strcmp(argv[1], "role"))
		return role(argc, argv);
	if (argc > 1 && !strcmp(argv[1], "pvm"))
		setenv("KX_PVM", "1", 1);
	setvbuf(stdout, NULL, _IOLBF, 4096);
	snprintf(dir, sizeof dir, "%s/kx-clone-XXXXXX", tmp ? tmp : "/tmp");
	if (n < 0 || !mkdtemp(dir))
		return 255;
	errors();
	exit_signals();
	like_faults();
	parents();
	sharing();
	numbers();
	waits();
	red_zones();
	spawns();
	randoms();
	check(deep(12) == 30, "twelve generations by clone");
	busy();
	rmdir(dir);
	check(waitpid(-1, NULL, WNOHANG | KC_WALL) == -1 && errno == ECHILD, "no child left");
	puts(first_failed ? "FAILED" : "SUCCESS");
	return first_failed;
}
