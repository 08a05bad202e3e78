/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traps of processes that share: children of vfork that are killed at any instant while their parent's other threads
 * go on, stops while another thread is anywhere, locks of relatives that die. Arguments: names of groups to run (all
 * without), or a number: how many children of vfork are killed. The exit status is the number of the first check that
 * failed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../check.h"

static int status_of(pid_t p)
{
	int st = -1;
	pid_t r;
	while ((r = waitpid(p, &st, 0)) < 0 && errno == EINTR)
		;
	return r == p ? st : -1;
}
static bool fine(pid_t p) { return p > 0 && status_of(p) == 0; }
static bool killed(int st, int sig) { return WIFSIGNALED(st) && WTERMSIG(st) == sig; }

static void *shared(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		abort();
	return p;
}

static void us(long n)
{
	struct timespec ts = { n / 1000000, n % 1000000 * 1000 };
	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static bool await(volatile int *p, int n)
{
	for (int i = 0; i < 10000 && __atomic_load_n(p, __ATOMIC_SEQ_CST) < n; i++)
		us(1000);
	return __atomic_load_n(p, __ATOMIC_SEQ_CST) >= n;
}

static uint64_t rng = 12345;
static unsigned draw(unsigned n)
{
	rng = rng * 6364136223846793005ull + 1442695040888963407ull;
	return (rng >> 33) % n;
}

/* ---- a child of vfork is killed at any instant ---------------------------------------------------------------------- */

static volatile int stop;
static volatile long turns[3];

/* What the parent's other threads do meanwhile: all that takes a lock of somebody's. */
static void *mapping(void *arg)
{
	while (!stop) {
		char *m = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (m != MAP_FAILED) {
			m[0] = 1;
			mprotect(m, 4096, PROT_READ);
			munmap(m, 1 << 20);
		}
		void *p = malloc(300000);
		free(p);
		turns[0]++;
	}
	return arg;
}

static void *reading(void *arg)
{
	char buf[4096];
	while (!stop) {
		int fd = open("/proc/self/maps", O_RDONLY);
		if (fd >= 0) {
			while (read(fd, buf, sizeof buf) > 0)
				;
			close(fd);
		}
		turns[1]++;
		us(300);
	}
	return arg;
}

static void *nothing(void *arg) { return arg; }

static void *creating(void *arg)
{
	while (!stop) {
		pthread_t t;
		if (pthread_create(&t, NULL, nothing, NULL) == 0)
			pthread_join(t, NULL);
		turns[2]++;
		us(500);
	}
	return arg;
}

static volatile int victim, victim_after;

static void *killer(void *arg)
{
	for (;;) {
		int p;
		while (!(p = __atomic_load_n(&victim, __ATOMIC_SEQ_CST)) && !stop)
			us(50);
		if (!p)
			return arg;
		us(victim_after);
		__atomic_store_n(&victim, 0, __ATOMIC_SEQ_CST);
		kill(p, SIGKILL);
	}
}

/* A child of vfork: calls that map, allocate in whoever serves them, make processes, all over again. */
static __attribute__((noinline)) void child_calls(int kind)
{
	static char buf[8192];
	static char *argv[200];
	static char *const envp[] = { "A=B", NULL };
	static char *m;
	static long p;
	static int fd;
	for (;;) {
		switch (kind) {
		case 0:
			m = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (m == MAP_FAILED)
				_exit(3);
			mprotect(m, 4096, PROT_READ);
			madvise(m, 1 << 20, MADV_DONTNEED);
			m = mremap(m, 1 << 20, 2 << 20, MREMAP_MAYMOVE);
			munmap(m, 2 << 20);
			break;
		case 1:
			for (int i = 0; i < 199; i++)
				argv[i] = "an argument of some length, so that there is something to copy";
			execve("/etc/passwd", argv, envp);
			break;
		case 2:
			fd = open("/proc/self/status", O_RDONLY);
			if (read(fd, buf, sizeof buf) < 0)
				_exit(4);
			close(fd);
			break;
		case 3:
			p = vfork();
			if (!p)
				_exit(0);
			waitpid(p, NULL, 0);
			break;
		case 4:
			p = syscall(SYS_fork);
			if (!p)
				_exit(0);
			waitpid(p, NULL, 0);
			break;
		case 5: /* a file, executable */
			fd = open("/proc/self/exe", O_RDONLY);
			m = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
			close(fd);
			if (m == MAP_FAILED)
				_exit(5);
			munmap(m, 4096);
			break;
		default:
			fd = open("/proc/self/task", O_RDONLY | O_DIRECTORY);
			while (syscall(SYS_getdents64, fd, buf, sizeof buf) > 0)
				;
			close(fd);
			kill(getppid(), 0);
		}
	}
}

static int kills = 210;

static void vfork_kills(void)
{
	pthread_t t[4];
	static volatile int i, good, kind;
	stop = 0;
	check(pthread_create(&t[0], NULL, mapping, NULL) == 0 && pthread_create(&t[1], NULL, reading, NULL) == 0 &&
		      pthread_create(&t[2], NULL, creating, NULL) == 0 &&
		      pthread_create(&t[3], NULL, killer, NULL) == 0,
	      "vfork kills: threads");
	for (i = good = 0; i < kills; i++) {
		kind = i % 7;
		victim_after = draw(kind == 1 || kind == 4 ? 6000 : 2500);
		pid_t p = vfork();
		if (!p) {
			__atomic_store_n(&victim, (int)syscall(SYS_getpid), __ATOMIC_SEQ_CST);
			child_calls(kind);
		}
		int st = status_of(p);
		if (killed(st, SIGKILL))
			good++;
		else
			printf("kind %d: status %#x\n", kind, st);
		while (victim)
			us(50);
	}
	long now[3] = { turns[0], turns[1], turns[2] };
	bool on = true;
	for (int k = 0; k < 3; k++) {
		for (int n = 0; n < 5000 && turns[k] == now[k]; n++)
			us(1000);
		on = on && turns[k] != now[k];
	}
	check(good == kills, "vfork kills: all of SIGKILL");
	check(on, "vfork kills: the other threads go on");
	stop = 1;
	for (int k = 0; k < 4; k++)
		pthread_join(t[k], NULL);
	char *m = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(m != MAP_FAILED && (m[5] = 1) && munmap(m, 1 << 20) == 0, "vfork kills: memory can be mapped");
	check(fine(FORK(free(malloc(300000)))), "vfork kills: fork");
}

/* The parent is killed while its child of vfork runs: that goes on. */
static void vfork_orphan(void)
{
	int *s = shared(4096);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid_t p = FORK({
		pid_t q = vfork();
		if (!q) {
			s[0] = syscall(SYS_getpid);
			while (!__atomic_load_n(&s[1], __ATOMIC_SEQ_CST))
				us(500);
			char *m = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			m[0] = 1;
			munmap(m, 65536);
			execl("/bin/sh", "sh", "-c", "exit 23", NULL);
			_exit(1);
		}
		_exit(2);
	});
	check(await(&s[0], 1) && kill(p, SIGKILL) == 0 && killed(status_of(p), SIGKILL), "vfork: the parent is killed");
	s[1] = 1;
	int st = status_of(s[0]);
	check(WIFEXITED(st) && WEXITSTATUS(st) == 23, "vfork: and its child goes on to exec");
	s[0] = s[1] = 0;
	p = FORK({
		pid_t q = vfork();
		if (!q) {
			s[0] = syscall(SYS_getpid);
			while (!__atomic_load_n(&s[1], __ATOMIC_SEQ_CST))
				us(500);
			q = syscall(SYS_fork);
			if (!q)
				_exit(7);
			waitpid(q, (int *)&s[2], 0);
			_exit(24);
		}
		_exit(2);
	});
	check(await(&s[0], 1) && kill(p, SIGKILL) == 0 && killed(status_of(p), SIGKILL), "vfork: killed again");
	s[1] = 1;
	st = status_of(s[0]);
	check(WIFEXITED(st) && WEXITSTATUS(st) == 24 && WEXITSTATUS(s[2]) == 7, "vfork: its child goes on to fork");
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	munmap(s, 4096);
}

/* ---- stops ----------------------------------------------------------------------------------------------------------- */

static void *read_proc(void *arg)
{
	char buf[512];
	for (;;) {
		int fd = open(arg, O_RDONLY);
		if (read(fd, buf, sizeof buf) < 0)
			abort();
		close(fd);
	}
}

/* A stop of the whole process is complete wherever its threads are. */
static void stops(void)
{
	pid_t p = FORK({
		pthread_t t;
		pthread_create(&t, NULL, read_proc, "/proc/self/status");
		pthread_create(&t, NULL, read_proc, "/proc/self/maps");
		pthread_create(&t, NULL, mapping, NULL);
		for (;;)
			pause();
	});
	int good = 0;
	for (int i = 0; i < 40; i++) {
		siginfo_t info = { 0 };
		us(draw(3000));
		kill(p, SIGSTOP);
		for (int n = 0; n < 3000 && !info.si_pid; n++) {
			if (waitid(P_PID, p, &info, WSTOPPED | WNOHANG))
				break;
			if (!info.si_pid)
				us(1000);
		}
		good += info.si_pid == p && info.si_code == CLD_STOPPED && info.si_status == SIGSTOP;
		kill(p, SIGCONT);
	}
	check(good == 40, "stop: 40 times, while other threads read /proc and map memory");
	kill(p, SIGKILL);
	check(killed(status_of(p), SIGKILL), "stop: then killed");
}

/* ---- locks of relatives ---------------------------------------------------------------------------------------------- */

struct locks {
	pthread_mutex_t m[3];
	volatile int holds, go;
};

static void locks_init(struct locks *l, bool pi)
{
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	if (pi)
		pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
	for (int i = 0; i < 3; i++)
		pthread_mutex_init(&l->m[i], &a);
	l->holds = l->go = 0;
}

/* Ways to die with a lock held. */
static void holder(struct locks *l, int i, int way)
{
	NEED(pthread_mutex_lock(&l->m[i]) == 0);
	__atomic_add_fetch(&l->holds, 1, __ATOMIC_SEQ_CST);
	if (way == 0)
		for (;;)
			; /* in the program */
	if (way == 1)
		for (;;)
			getppid(); /* in the LibOS, or in a call */
	int fd[2];
	char c;
	if (pipe(fd) || read(fd[0], &c, 1))
		pause();
}

static void robust_one(bool pi, const char *name)
{
	struct locks *l = shared(sizeof *l);
	bool good = true;
	for (int way = 0; way < 3; way++) {
		locks_init(l, pi);
		pid_t p = FORK(holder(l, 0, way));
		good = good && await(&l->holds, 1);
		/* One that waits already, one that comes later. */
		pid_t q = FORK({
			__atomic_add_fetch(&l->go, 1, __ATOMIC_SEQ_CST);
			NEED(pthread_mutex_lock(&l->m[0]) == EOWNERDEAD);
			NEED(pthread_mutex_consistent(&l->m[0]) == 0);
			NEED(pthread_mutex_unlock(&l->m[0]) == 0);
		});
		good = good && await(&l->go, 1);
		us(20000);
		kill(p, SIGKILL);
		good = killed(status_of(p), SIGKILL) && fine(q) && good;
		good = pthread_mutex_lock(&l->m[0]) == 0 && pthread_mutex_unlock(&l->m[0]) == 0 && good;
		p = FORK(holder(l, 1, way));
		good = await(&l->holds, 2) && good;
		kill(p, SIGKILL);
		good = killed(status_of(p), SIGKILL) && good;
		good = pthread_mutex_lock(&l->m[1]) == EOWNERDEAD && good;
		good = pthread_mutex_unlock(&l->m[1]) == 0 && pthread_mutex_lock(&l->m[1]) == ENOTRECOVERABLE && good;
	}
	check(good, name);
	munmap(l, sizeof *l);
}

static void robust(void)
{
	robust_one(false, "robust: killed in the program, in calls, waiting");
	robust_one(true, "robust with priority inheritance: likewise");
}

/* ---- what is new in a child ------------------------------------------------------------------------------------------- */

static void randoms(void)
{
	const int n = 40;
	uint64_t(*volatile r)[2] = shared(8192);
	uint64_t first;
	bool good = getrandom(&first, 8, 0) == 8;
	for (int i = 0; i < n; i++) {
		pid_t p = i % 4 == 3 ? vfork() : fork();
		if (!p) {
			if (getrandom(r[i], 16, 0) != 16)
				_exit(1);
			_exit(0);
		}
		good = good && fine(p);
	}
	good = getrandom(r[n], 16, 0) == 16 && good;
	for (int i = 0; i <= n; i++)
		for (int k = 0; k < i; k++)
			good = good && r[i][0] != r[k][0] && r[i][1] != r[k][1] && r[i][0] != r[k][1];
	check(good, "random numbers of 40 children and their parent are different");
	munmap(r, 8192);
}

static void accepted(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	bool good = l >= 0 && bind(l, (void *)&a, sizeof a) == 0 && listen(l, 5) == 0 &&
		    getsockname(l, (void *)&a, &len) == 0;
	for (int i = 0; i < 5; i++) {
		int c = socket(AF_INET, SOCK_STREAM, 0), s = -1;
		good = connect(c, (void *)&a, sizeof a) == 0 && good;
		int flags = (i & 1 ? SOCK_NONBLOCK : 0) | (i & 2 ? SOCK_CLOEXEC : 0);
		for (int n = 0; n < 1000 && s < 0; n++, us(1000))
			s = i == 4 ? accept(l, NULL, NULL) : accept4(l, NULL, NULL, flags);
		if (i == 4)
			flags = 0;
		good = s >= 0 && !(fcntl(s, F_GETFL) & O_NONBLOCK) == !(flags & SOCK_NONBLOCK) &&
		       !(fcntl(s, F_GETFD) & FD_CLOEXEC) == !(flags & SOCK_CLOEXEC) && good;
		close(c);
		close(s);
	}
	check(good, "accept: O_NONBLOCK and close-on-exec of the listener are not inherited");
	close(l);
}

/* Nobody waits for them, many times the number that have new members look for the dead: each can still be signalled by its
 * parent. (What a full table does is test_family's.) */
static void unwaited(void)
{
	signal(SIGCHLD, SIG_IGN);
	for (volatile int i = 0; i < 1000; i++) {
		pid_t p = vfork();
		if (!p)
			_exit(0);
		if (p < 0) {
			check(false, "unwaited: vfork");
			return;
		}
	}
	pid_t p = FORK(pause());
	check(p > 0 && kill(p, 0) == 0 && kill(p, SIGKILL) == 0,
	      "1,000 children that nobody waits for, and one to signal");
	while (wait(NULL) > 0)
		;
	signal(SIGCHLD, SIG_DFL);
}

static long sleeps_of(int who)
{
	struct rusage u;
	return getrusage(who, &u) ? -1 : u.ru_nvcsw;
}

static void *asleep_before(void *slept)
{
	*(int *)slept += sleeps_of(RUSAGE_THREAD) > 0;
	return slept;
}

enum { STARTS_FIRST = 5, STARTS = 20 };

/* How many of them; -1: no child or no thread. */
static int starts_asleep(void)
{
	int slept = 0;
	for (volatile int i = 0; i < STARTS_FIRST + STARTS; i++) {
		if (i == STARTS_FIRST)
			slept = 0;
		pid_t p = vfork();
		if (!p)
			_exit(0);
		pthread_t t;
		if (p < 0 || waitpid(p, NULL, 0) != p || pthread_create(&t, NULL, asleep_before, &slept) ||
		    pthread_join(t, NULL))
			return -1;
	}
	return slept;
}

/*
 * A host whose kernel sleeps when a vCPU changes hands, which is its own business, need not each time, for the first hundred in
 * a process; so it is a new one. Children of vfork get theirs the same way; what they sleep for besides is not counted here.
 */
static void starts(void)
{
	int status = -1;
	pid_t p = FORK(_exit(starts_asleep()));
	bool ended = p > 0 && waitpid(p, &status, 0) == p && WIFEXITED(status) && WEXITSTATUS(status) <= STARTS;
	check(ended, "starts: children and threads");
	if (!ended)
		return;
	printf("  %d of %d slept before they began\n", WEXITSTATUS(status), STARTS);
	check(WEXITSTATUS(status) < STARTS / 2, "threads do not sleep to begin");
}

static const struct {
	const char *name;
	void (*fn)(void);
} groups[] = {
	{ "stops", stops },     { "vfork_kills", vfork_kills }, { "vfork_orphan", vfork_orphan }, { "robust", robust },
	{ "randoms", randoms }, { "accepted", accepted },       { "unwaited", unwaited },         { "starts", starts },
};

int main(int argc, char **argv)
{
	alarm(argc > 1 ? 900 : 500);
	for (int i = 1; i < argc; i++)
		if (atoi(argv[i])) {
			kills = atoi(argv[i]);
			named++;
		}
	for (unsigned g = 0; g < sizeof groups / sizeof groups[0]; g++) {
		if (is_wanted(argc, argv, groups[g].name) || (argc == 2 && atoi(argv[1])))
			groups[g].fn();
	}
	check_named(argc);
	printf("%s\n", first_failed ? "FAILED" : "SUCCESS");
	return first_failed;
}
