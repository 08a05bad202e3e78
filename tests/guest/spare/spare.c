/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Programs that fork again and again, waiting each time, where a monitor may have made the next child ahead: what a
 * child inherits is what the parent has at its fork, and nobody sees a process that was not forked. Passes on any
 * x86-64 Linux since 5.10. The exit code is the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include "../check.h"

#define ROUNDS 5

static int value = 1; /* data */
static int zero[3000];
static volatile int *shared;
static volatile sig_atomic_t got, got_pid;
static int nice_first;

static int status_of(pid_t p)
{
	int st = -1;
	pid_t r;
	while ((r = waitpid(p, &st, 0)) < 0 && errno == EINTR)
		;
	return r == p && WIFEXITED(st) ? WEXITSTATUS(st) : 1000 + st;
}

/* Enough forks and waits for one to be made ahead, while the last child lives a while. */
static void warm(void)
{
	for (int i = 0; i < 3; i++) {
		pid_t p = fork();
		if (!p) {
			ms(8);
			_exit(0);
		}
		status_of(p);
	}
}

/* What has changed since the child was made ahead, ROUNDS times: `change` in the parent, `look` in the child. */
static bool each(void (*change)(int), bool (*look)(int))
{
	bool good = true;
	warm();
	for (int i = 1; i <= ROUNDS; i++) {
		if (change)
			change(i);
		pid_t p = fork();
		if (!p) {
			bool ok = look(i);
			ms(6);
			_exit(ok ? 7 : 8);
		}
		good = status_of(p) == 7 && good;
	}
	return good;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static int *heap, *map;

static void memory_set(int i)
{
	int here = i;
	value = i * 3;
	zero[2000 + i] = i;
	heap[i * 1000] = i * 5;
	map[i * 1024] = i * 7;
	*shared = here;
}

static bool memory_is(int i)
{
	bool good = value == i * 3 && zero[2000 + i] == i && heap[i * 1000] == i * 5 && map[i * 1024] == i * 7 &&
		    *shared == i;
	for (int k = i + 1; k <= ROUNDS; k++)
		good = good && (i > 1 || !map[k * 1024]);
	*shared = 100 + i; /* shared both ways; the rest is the child's own */
	value = zero[2000 + i] = heap[i * 1000] = map[i * 1024] = -1;
	return good;
}

static bool memory_kept(void)
{
	return value == ROUNDS * 3 && zero[2000 + ROUNDS] == ROUNDS && heap[ROUNDS * 1000] == ROUNDS * 5 &&
	       map[ROUNDS * 1024] == ROUNDS * 7 && *shared == 100 + ROUNDS;
}

static void map_new(int i)
{
	int *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p[i] = i;
	madvise(map, 65536, MADV_DONTNEED);
	map = p;
}

static bool map_is(int i) { return map[i] == i && !map[i + 1]; }

static void brk_grow(int i) { *(int *)sbrk(65536) = i; }
static bool brk_is(int i) { return ((int *)sbrk(0))[-65536 / 4] == i; }

/* Pages where nothing was: of a large mapping, at places of their own in its tables of pages, and far down the stack. */
#define SPARSE (16u << 20)
static uint8_t *sparse;
static uintptr_t stack_page;

static volatile int *sparse_at(int i) { return (int *)(sparse + (unsigned)i * 0x2ff000u); }
static volatile int *stack_at(int i) { return (int *)(stack_page - 0x60000u - (unsigned)i * 0xb3000u); }

static void sparse_set(int i)
{
	*sparse_at(i) = i * 11;
	*stack_at(i) = i * 13;
}

static bool sparse_is(int i)
{
	bool good = true;
	for (int k = 1; k <= ROUNDS; k++)
		good = good && *sparse_at(k) == (k <= i ? k * 11 : 0) && *stack_at(k) == (k <= i ? k * 13 : 0);
	return good;
}

static int deep(int n)
{
	volatile char room[4096];
	room[0] = (char)n;
	if (!n) {
		pid_t p = fork();
		if (!p)
			return 1;
		return status_of(p) == 64 ? 0 : -1;
	}
	int r = deep(n - 1);
	return r > 0 && room[0] == (char)n ? r + 1 : r;
}

static bool deep_forks(void)
{
	bool good = true;
	warm();
	for (int i = 0; i < ROUNDS; i++) {
		int r = deep(63);
		if (r > 0)
			_exit(r);
		good = good && !r;
	}
	return good;
}

static double fp_in = 1;

static bool registers(int i)
{
	double x = fp_in * i, y;
	uint64_t mxcsr = 0, r12 = 0x1234567890ull + (uint64_t)i, out;
	uint32_t csr;
	__asm__ volatile("stmxcsr %0" : "=m"(csr));
	(void)mxcsr;
	__asm__ volatile("mov %1, %0" : "=r"(out) : "r"(r12));
	y = x / i;
	return y == fp_in && out == r12 && (csr & 0x1f80) == 0x1f80;
}

/* ---- descriptors -------------------------------------------------------------------------------------------------- */

static int fd, pipe_fd[2];

static void fd_change(int i)
{
	char b;
	if (i % 2) {
		fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
		pipe(pipe_fd);
	} else {
		close(fd);
		close(pipe_fd[1]);
		if (read(pipe_fd[0], &b, 1) != 1 || read(pipe_fd[0], &b, 1) != 0) /* nobody else has the other end */
			*shared = -1;
		close(pipe_fd[0]);
	}
}

static bool fd_is(int i)
{
	char b = 1;
	if (i % 2)
		return fcntl(fd, F_GETFD) == FD_CLOEXEC && read(fd, &b, 1) == 1 && !b &&
		       fcntl(pipe_fd[1], F_GETFD) == 0 && write(pipe_fd[1], "x", 1) == 1 && dup(0) == pipe_fd[1] + 1;
	return fcntl(fd, F_GETFD) < 0 && fcntl(pipe_fd[1], F_GETFD) < 0 && dup(0) == fd;
}

/* The parent closes its end right after the fork: the child has it, and sees the end of what it closes itself. */
static bool pipe_ends(void)
{
	bool good = true;
	warm();
	for (int i = 0; i < ROUNDS; i++) {
		int a[2];
		char b = 0;
		pipe(a);
		pid_t p = fork();
		if (!p) {
			close(a[0]);
			ms(8);
			_exit(write(a[1], "y", 1) == 1 ? 7 : 8);
		}
		close(a[1]);
		good = good && read(a[0], &b, 1) == 1 && b == 'y' && read(a[0], &b, 1) == 0;
		close(a[0]);
		good = good && status_of(p) == 7;
	}
	return good;
}

/* No descriptor is left to the program: that is its own affair. */
static void fd_full(int i)
{
	struct rlimit r;
	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = 40u + (unsigned)i;
	setrlimit(RLIMIT_NOFILE, &r);
	while (open("/dev/zero", O_RDONLY) >= 0)
		;
	if (errno != EMFILE)
		*shared = -1;
}

static bool fd_is_full(int i)
{
	char b = 1;
	return open("/dev/zero", O_RDONLY) < 0 && errno == EMFILE && read(39 + i, &b, 1) == 1 && !b &&
	       close(39 + i) == 0 && open("/dev/zero", O_RDONLY) == 39 + i;
}

static bool locked_by_parent(int i)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = i, .l_len = 1 };
	return fcntl(fd, F_GETLK, &l) == 0 && l.l_type == F_WRLCK && l.l_pid == getppid();
}

static void lock(int i)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = i, .l_len = 1 };
	if (fcntl(fd, F_SETLK, &l))
		*shared = -1;
}

/* ---- the process -------------------------------------------------------------------------------------------------- */

static char cwd[64];

static void place_set(int i)
{
	snprintf(cwd, sizeof cwd, "/tmp/spare-%d-%d", getpid(), i);
	mkdir(cwd, 0700);
	chdir(cwd);
	umask((mode_t)i);
}

static bool place_is(int i)
{
	char now[128];
	return getcwd(now, sizeof now) && !strcmp(now, cwd) && umask(0) == (mode_t)i;
}

static void handler(int signo, siginfo_t *info, void *c)
{
	(void)c;
	(void)signo;
	got++;
	got_pid = info->si_pid;
}

static void signals_set(int i)
{
	struct sigaction a = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	sigset_t set;
	signal(SIGUSR1, i % 2 ? SIG_IGN : SIG_DFL);
	sigaction(SIGUSR2, &a, NULL);
	signal(SIGHUP, i % 2 ? SIG_DFL : SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + i);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_SETMASK, &set, NULL);
	kill(getpid(), SIGTERM); /* pending, and not the child's */
}

static bool signals_are(int i)
{
	struct sigaction a, b, c;
	sigset_t set, pending;
	sigaction(SIGUSR1, NULL, &a);
	sigaction(SIGUSR2, NULL, &b);
	sigaction(SIGHUP, NULL, &c);
	sigprocmask(SIG_SETMASK, NULL, &set);
	sigpending(&pending);
	got = 0;
	kill(getpid(), SIGUSR2);
	if (i % 2) /* ignored: nothing happens */
		kill(getpid(), SIGUSR1);
	else
		kill(getpid(), SIGHUP);
	return a.sa_handler == (i % 2 ? SIG_IGN : SIG_DFL) && b.sa_sigaction == handler &&
	       c.sa_handler == (i % 2 ? SIG_DFL : SIG_IGN) && sigismember(&set, SIGRTMIN + i) &&
	       !sigismember(&set, SIGRTMIN + i + 1) && !sigismember(&pending, SIGTERM) && got == 1;
}

static int nice_at(int i) { return nice_first + i < 19 ? nice_first + i : 19; }

static void ids_set(int i)
{
	char name[16];
	struct rlimit r;
	cpu_set_t cpus;
	snprintf(name, sizeof name, "spare%d", i);
	prctl(PR_SET_NAME, name);
	getrlimit(RLIMIT_FSIZE, &r);
	r.rlim_cur = 1000000u + (unsigned)i;
	setrlimit(RLIMIT_FSIZE, &r);
	setpriority(PRIO_PROCESS, 0, nice_at(i));
	sched_getaffinity(0, sizeof cpus, &cpus);
	prctl(PR_SET_PDEATHSIG, SIGHUP);
	struct itimerval t = { { 0, 0 }, { 100, 0 } };
	setitimer(ITIMER_REAL, &t, NULL);
	if (i == 3)
		setpgid(0, 0);
}

static bool ids_are(int i)
{
	char name[16], want[16];
	struct rlimit r;
	struct itimerval t;
	int sig = -1;
	snprintf(want, sizeof want, "spare%d", i);
	prctl(PR_GET_NAME, name);
	getrlimit(RLIMIT_FSIZE, &r);
	getitimer(ITIMER_REAL, &t);
	prctl(PR_GET_PDEATHSIG, &sig);
	return !strcmp(name, want) && r.rlim_cur == 1000000u + (unsigned)i &&
	       getpriority(PRIO_PROCESS, 0) == nice_at(i) && !t.it_value.tv_sec && !sig &&
	       getpgrp() == getpgid(getppid()) && getsid(0) == getsid(getppid()) &&
	       getpid() == (int)syscall(SYS_gettid);
}

/* Processes in /proc that are not in the list of what there is. */
static int strangers(pid_t child)
{
	int n = 0, me = getpid();
	char name[64], text[512];
	DIR *d = opendir("/proc");
	for (struct dirent *e; d && (e = readdir(d));) {
		int pid = atoi(e->d_name), ppid = 0;
		if (!pid || pid == me || pid == child)
			continue;
		snprintf(name, sizeof name, "/proc/%d/stat", pid);
		int f = open(name, O_RDONLY);
		ssize_t r = f < 0 ? 0 : read(f, text, sizeof text - 1);
		close(f);
		text[r > 0 ? r : 0] = 0;
		char *p = strrchr(text, ')');
		if (p && sscanf(p + 2, "%*c %d", &ppid) == 1 && ppid == me)
			n++;
	}
	if (d)
		closedir(d);
	return n;
}

/* ---- waits --------------------------------------------------------------------------------------------------------- */

static bool no_child(void)
{
	siginfo_t info;
	int st;
	bool good = true;
#define NONE(call) (good = good && (call) == -1 && errno == ECHILD)
	NONE(waitpid(-1, &st, 0));
	NONE(waitpid(-1, &st, WNOHANG));
	NONE(waitpid(0, &st, 0));
	NONE(waitpid(-1, &st, WUNTRACED | WCONTINUED | __WALL));
	NONE(waitid(P_ALL, 0, &info, WEXITED));
	NONE(waitid(P_ALL, 0, &info, WEXITED | WNOHANG));
	NONE(waitid(P_PGID, (id_t)getpgrp(), &info, WEXITED | WSTOPPED));
	good = good && waitid(P_ALL, 0, &info, 0) == -1 && errno == EINVAL;
	return good && !strangers(0);
}

static bool waits_see_children_alone(void)
{
	bool good = true;
	struct sigaction a = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART }, old;
	warm();
	sigaction(SIGCHLD, &a, &old);
	for (int i = 0; i < ROUNDS; i++) {
		got = 0;
		int st;
		pid_t p = fork();
		if (!p) {
			ms(8);
			_exit(7);
		}
		good = good && !strangers(p) && waitpid(-1, &st, 0) == p && WIFEXITED(st) && WEXITSTATUS(st) == 7 &&
		       got == 1 && got_pid == p && no_child();
	}
	ms(20);
	good = good && got == 1;
	sigaction(SIGCHLD, &old, NULL);
	return good;
}

static bool ignored_children(void)
{
	warm();
	signal(SIGCHLD, SIG_IGN);
	for (int i = 0; i < 3; i++)
		if (!fork()) {
			ms(10);
			_exit(0);
		}
	bool good = waitpid(-1, NULL, 0) == -1 && errno == ECHILD;
	signal(SIGCHLD, SIG_DFL);
	return good && no_child();
}

/* The parent ends at once: the child goes on, and is told of nothing. */
static bool orphans(void)
{
	bool good = true;
	for (int i = 0; i < ROUNDS; i++) {
		int a[2];
		char b[8];
		pipe(a);
		pid_t p = fork();
		if (!p) {
			pid_t me = getpid();
			warm();
			if (!fork()) {
				for (int k = 0; k < 60000 && getppid() == me; k++)
					ms(1);
				ms(10);
				_exit(write(a[1], "orphan", 6) != 6);
			}
			_exit(7);
		}
		close(a[1]);
		good = good && status_of(p) == 7 && read(a[0], b, 8) == 6;
		close(a[0]);
	}
	return good && no_child();
}

/* A subreaper gets the orphans of its descendants, and nobody else. */
static bool reaper(void)
{
	bool good = true;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int i = 0; i < 3; i++) {
		int st;
		pid_t p = fork();
		if (!p) {
			warm();
			_exit(7);
		}
		good = good && waitpid(-1, &st, 0) == p && waitpid(-1, &st, 0) == -1 && errno == ECHILD;
	}
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	return good;
}

static bool signals_reach_the_group(void)
{
	bool good = true;
	struct sigaction a = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO }, old;
	warm();
	sigaction(SIGUSR2, &a, &old);
	for (int i = 0; i < ROUNDS; i++) {
		pid_t p = fork();
		if (!p) {
			got = 0;
			*shared = 1;
			for (int k = 0; k < 60000 && !got; k++)
				ms(1);
			_exit(got == 1 ? 7 : 8);
		}
		for (int k = 0; k < 60000 && *shared != 1; k++)
			ms(1);
		*shared = 0;
		got = 0;
		good = kill(i % 2 ? 0 : p, SIGUSR2) == 0 && good;
		good = status_of(p) == 7 && got == i % 2 && good;
	}
	/* One that is killed at once is killed, whatever it was before. */
	for (int i = 0; i < ROUNDS; i++) {
		int st;
		pid_t p = fork();
		if (!p)
			for (;;)
				pause();
		kill(p, SIGTERM);
		good = waitpid(p, &st, 0) == p && WIFSIGNALED(st) && WTERMSIG(st) == SIGTERM && good;
		warm();
	}
	sigaction(SIGUSR2, &old, NULL);
	return good;
}

static bool stranger_is_nobody(void)
{
	bool good = true;
	warm();
	for (pid_t p = getpid() + 1; p < getpid() + 60; p++)
		good = good && waitpid(p, NULL, WNOHANG) == -1 && errno == ECHILD &&
		       (kill(p, 0) == 0 || errno == ESRCH || errno == EPERM);
	return good;
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "after")) { /* exec, from a process that was about to fork */
		check(no_child(), "exec: no child");
		printf(first_failed ? "FAILED\n" : "SUCCESS\n");
		return first_failed;
	}
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	heap = calloc(1, 100000);
	map = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_page = (uintptr_t)__builtin_frame_address(0) & -4096ul;
	sparse = mmap(NULL, SPARSE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	setpgid(0, 0);
	nice_first = getpriority(PRIO_PROCESS, 0);
	check(each(memory_set, memory_is) && memory_kept(), "memory as it was at the fork, each its own after it");
	check(each(map_new, map_is), "mappings made and dropped between");
	check(each(brk_grow, brk_is), "heap");
	check(each(sparse_set, sparse_is), "where nothing was");
	check(deep_forks(), "deep in the stack");
	check(each(NULL, registers), "registers");
	check(each(fd_change, fd_is) && *shared >= 0, "descriptors made and closed between");
	check(pipe_ends(), "ends of pipes");
	pid_t p = FORK(_exit(each(fd_full, fd_is_full) && *shared >= 0 ? 0 : 1));
	check(!status_of(p), "all descriptors in use");
	check(each(place_set, place_is), "directory and umask");
	chdir("/");
	umask(022);
	for (int i = 1; i <= ROUNDS; i++) {
		snprintf(cwd, sizeof cwd, "/tmp/spare-%d-%d", getpid(), i);
		rmdir(cwd);
	}
	p = FORK(_exit(each(signals_set, signals_are) ? 0 : 1));
	check(!status_of(p), "signals");
	p = FORK(_exit(each(ids_set, ids_are) ? 0 : 1));
	check(!status_of(p), "name, limits, priority, timers, group");
	check(waits_see_children_alone(), "waits see children alone");
	check(ignored_children(), "children of nobody");
	check(orphans(), "orphans");
	p = FORK(_exit(reaper() ? 0 : 1));
	check(!status_of(p), "subreaper");
	check(signals_reach_the_group(), "signals reach the group");
	check(stranger_is_nobody(), "nobody else");
	char name[] = "/tmp/spare-lock-XXXXXX";
	fd = mkstemp(name);
	p = FORK(_exit(each(lock, locked_by_parent) && *shared >= 0 ? 0 : 1));
	check(!status_of(p), "record locks");
	unlink(name);
	check(no_child(), "no child left");
	if (first_failed) {
		printf("FAILED\n");
		return first_failed;
	}
	warm();
	fflush(stdout);
	execl("/proc/self/exe", argv[0], "after", "x", (char *)NULL);
	return 251;
}
