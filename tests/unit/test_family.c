/* SPDX-License-Identifier: Apache-2.0 */
/* The table of a family: who counts as a member, what a full table does, and what SIGKILL at any instant leaves. */
#define FAMILY_MAX 64
#define FAMILY_CROWD 8
#include "../../monitor/core/family.c"
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

struct pvm pvm = { .proc_fd = -1 };
__thread struct thread *self;

long host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	long r = syscall(nr, a, b, c, d, e, f);
	return r < 0 ? -errno : r;
}
int fd_keep(int *where, int fd)
{
	*where = fd;
	return 0;
}
void stats_share(struct stats_family *f) { (void)f; }
bool thread_is_ours(pid_t tid) { return tid == pvm.pid; }
int procfs_peek(const char *rel, char *buf, size_t len)
{
	int fd = openat(pvm.proc_fd >= 0 ? pvm.proc_fd : AT_FDCWD, rel, O_RDONLY), r = fd < 0 ? -errno : 0;
	if (!r) {
		r = read(fd, buf, len - 1);
		close(fd);
	}
	buf[r > 0 ? r : 0] = 0;
	return r;
}
void fd_limit_lift(void) {}
void fd_limit_drop(void) {}
void fsize_lift(struct fsize *f) { (void)f; }
void fsize_drop(const struct fsize *f) { (void)f; }
int kx_err_set(struct kx_err *err, int code, const char *fmt, ...)
{
	(void)err, (void)fmt;
	return -code;
}

static int failed;
static void check(bool ok, const char *what)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", what);
	failed += !ok;
}

/* A member that does fn() and ends, or sleeps. */
static pid_t spawn(void (*fn)(void))
{
	int slot = family_reserve();
	if (slot < 0)
		return slot;
	pid_t pid = fork();
	if (!pid) {
		pvm.pid = getpid();
		family_child(slot, true);
		if (fn)
			fn();
		else
			for (;;)
				pause();
		_exit(0);
	}
	if (pid > 0)
		family_born(slot, pid);
	else
		family_cancel(slot);
	return pid;
}

static void nothing(void) {}
static unsigned taken(void)
{
	unsigned n = 0;
	for (unsigned i = 0; i < FAMILY_MAX; i++)
		n += load(i) != 0;
	return n;
}
static void count(pid_t pid, void *arg)
{
	(void)pid;
	++*(int *)arg;
}
static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	family_remove(pid);
}

static void lives_and_ends(void)
{
	int n = 0;
	pid_t pid = spawn(NULL);
	check(pid > 0 && family_has(pid) && family_has(getpid()), "a child is a member at once");
	check(!family_has(1) && !family_has(getppid()) && !family_has(0) && !family_has(-1), "others are not");
	check(family_each(count, &n) == 2 && n == 2, "each");
	kill(pid, SIGKILL);
	siginfo_t info;
	waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
	check(family_has(pid), "a zombie is a member");
	waitpid(pid, NULL, 0);
	check(!family_has(pid) && taken() == 1, "who is reaped is none, and its place is free");
	check(table->forks == 1, "forks are counted");
}

static pid_t unwaited(void)
{
	signal(SIGCHLD, SIG_IGN);
	pid_t pid = spawn(nothing);
	for (int i = 0; i < 60000 && !kill(pid, 0); i++)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	signal(SIGCHLD, SIG_DFL);
	return pid;
}

static void nobody_waits(void)
{
	pid_t pid = unwaited(), some[40];
	check(taken() == 2 && !family_has(pid) && taken() == 1, "a child that nobody waited for");
	pid_t alive = spawn(NULL);
	for (int i = 0; i < 40; i++)
		some[i] = unwaited();
	check(taken() <= 2 * FAMILY_CROWD, "those that nobody waits for do not become many");
	check(family_has(alive) && taken() >= 2, "who lives keeps his place");
	for (int i = 0; i < 40; i++)
		family_has(some[i]);
	end(alive);
	check(taken() == 1, "and all have gone");
}

/* The host has given the pid to somebody else. */
static void another_with_the_pid(void)
{
	int ready[2];
	char c;
	if (pipe(ready))
		abort();
	pid_t pid = fork();
	if (!pid) {
		c = unshare(CLONE_NEWIPC) && unshare(CLONE_NEWUSER | CLONE_NEWIPC) ? 'n' : 'y';
		if (write(ready[1], &c, 1) == 1)
			for (;;)
				pause();
		_exit(0);
	}
	if (read(ready[0], &c, 1) != 1)
		abort();
	if (c == 'y') {
		swap(1, 0, make_key(pid, 12345));
		check(!family_has(pid) && !load(1), "a stranger with the pid of a member");
		swap(1, 0, make_key(pid, 0));
		check(!family_has(pid) && !load(1), "a stranger with the pid of a member of unknown age");
	} else {
		printf("skip: no IPC namespaces here\n");
	}
	kill(pid, SIGKILL);
	siginfo_t info;
	waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
	swap(1, 0, make_key(pid, 12345));
	check(!family_has(pid) && !load(1), "another's zombie");
	waitpid(pid, NULL, 0);
	close(ready[0]);
	close(ready[1]);
}

static void reserve_and_die(void)
{
	if (family_reserve() < 0)
		_exit(1);
}

static void full(void)
{
	int slots[FAMILY_MAX], n = 0;
	pid_t pid = spawn(reserve_and_die);
	waitpid(pid, NULL, 0);
	while (n < FAMILY_MAX && (slots[n] = family_reserve()) >= 0)
		n++;
	/* All but ours: the places of the dead child, and the one that it had reserved, are had again. */
	check(n == FAMILY_MAX - 1, "a full table has had the places of the dead");
	check(family_reserve() == -EAGAIN && spawn(nothing) == -EAGAIN && family_enter(false) == -EAGAIN,
	      "full: EAGAIN");
	family_cancel(slots[5]);
	pid = spawn(NULL);
	check(pid > 0 && family_has(pid), "one place is enough");
	for (int i = 0; i < n; i++)
		if (i != 5)
			family_cancel(slots[i]);
	end(pid);
	check(taken() == 1, "cancelled");
}

static void fork_for_ever(void)
{
	for (;;) {
		pid_t pid = spawn(nothing);
		if (pid > 0 && pid & 1) {
			waitpid(pid, NULL, 0);
			family_remove(pid);
		}
	}
}

static void killed_at_any_instant(void)
{
	unsigned seed = 1;
	bool ok;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int round = 0; round < 60; round++) {
		pid_t pid[3];
		for (int i = 0; i < 3; i++)
			pid[i] = spawn(fork_for_ever);
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 + rand_r(&seed) % 5000000 }, NULL);
		for (int i = 0; i < 3; i++)
			if (pid[i] > 0)
				end(pid[i]);
	}
	int slots[FAMILY_MAX], n = 0;
	for (int i = 0; i < 2000 && n < FAMILY_MAX - 1; i++) {
		while (waitpid(-1, NULL, WNOHANG) > 0) /* orphans that came to us */
			;
		nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
		while (n < FAMILY_MAX && (slots[n] = family_reserve()) >= 0)
			n++;
	}
	ok = n == FAMILY_MAX - 1;
	for (int i = 0; i < n; i++)
		family_cancel(slots[i]);
	check(ok && family_has(getpid()), "members killed at any instant leave nothing");
}

int main(void)
{
	char out[FAMILY_EXE_MAX];
	struct kx_err err = { 0 };
	setvbuf(stdout, NULL, _IONBF, 0);
	pvm.pid = getpid();
	check(!family_init(-1, &err) && !family_enter(false), "made");
	pvm.proc_fd = open("/proc", O_PATH | O_DIRECTORY);
	check(!family_exe(getpid(), out, sizeof out), "program not known");
	strcpy(pvm.exe, "/usr/bin/x");
	family_set_exe();
	check(family_exe(getpid(), out, sizeof out) && !strcmp(out, "/usr/bin/x"), "program");
	memset(pvm.exe, 'y', 300);
	pvm.exe[0] = '/';
	family_set_exe();
	check(!family_exe(getpid(), out, sizeof out), "path of a program that is too long");
	strcpy(pvm.exe, "/usr/bin/x");
	lives_and_ends();
	nobody_waits();
	another_with_the_pid();
	full();
	killed_at_any_instant();
	return failed != 0;
}
