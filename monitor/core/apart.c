/* SPDX-License-Identifier: Apache-2.0 */
#include "apart.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "fork.h"
#include "pvm.h"

static pid_t apart[APART_MAX]; /* 0: none */

static int place_of(pid_t pid)
{
	for (int i = 0; i < APART_MAX; i++)
		if (apart[i] == pid)
			return i;
	return -1;
}

pid_t apart_fork(void)
{
	const int i = place_of(0);
	int *tid = fork_tid_word();
	if (i < 0) {
		errno = EAGAIN;
		return -1;
	}
	/* There are no other threads, nor anything else that libc's fork() would do. A debugger of this process would take a clone
	 * without a signal for one of its threads. */
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_UNTRACED | (tid ? CLONE_CHILD_SETTID : 0), NULL, NULL, tid, 0);
	if (pid > 0)
		apart[i] = pid;
	return pid;
}

static int by_number(const void *a, const void *b) { return **(int *const *)a - **(int *const *)b; }

/* The numbers of the standard streams are for those: of a process that was started without, they may be anything's. */
static bool move_up(int *const keep[], int nr)
{
	for (int i = 0; i < nr; i++) {
		int fd = *keep[i] < 3 ? fcntl(*keep[i], F_DUPFD_CLOEXEC, 3) : *keep[i];
		if (fd < 0)
			return false;
		*keep[i] = fd;
	}
	return true;
}

static void close_others(int **keep, int nr)
{
	unsigned next = 3;
	qsort(keep, (size_t)nr, sizeof *keep, by_number);
	for (int i = 0; i < nr; i++) {
		const unsigned fd = (unsigned)*keep[i];
		if (fd > next)
			syscall(SYS_close_range, next, fd - 1, 0);
		next = fd + 1;
	}
	syscall(SYS_close_range, next, ~0u, 0);
}

bool apart_begin(int **keep, int nr, const char *name)
{
	struct rlimit l;
	sigset_t none;
	if (!move_up(keep, nr))
		return false;
	close_others(keep, nr);
	int null = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3 && null >= 0; i++)
		dup2(null, i);
	if (null > 2)
		close(null);
	setsid();
	prctl(PR_SET_NAME, name);
	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (!getrlimit(RLIMIT_NOFILE, &l)) {
		l.rlim_cur = l.rlim_max;
		setrlimit(RLIMIT_NOFILE, &l);
	}
	return !chdir("/");
}

bool apart_is(pid_t pid) { return pid && place_of(pid) >= 0 && my_pid() == pvm.pid; }

bool apart_any(void)
{
	bool any = false;
	for (int i = 0; i < APART_MAX; i++)
		any = any || apart[i];
	return any && my_pid() == pvm.pid;
}

bool apart_reaped(pid_t pid)
{
	if (!apart_is(pid))
		return false;
	apart[place_of(pid)] = 0;
	return true;
}

void apart_fork_child(void) { memset(apart, 0, sizeof apart); }
void apart_import(const pid_t in[APART_MAX]) { memcpy(apart, in, sizeof apart); }

/* A child of vfork has none. */
void apart_export(pid_t out[APART_MAX])
{
	memset(out, 0, sizeof apart);
	if (my_pid() == pvm.pid)
		memcpy(out, apart, sizeof apart);
}
