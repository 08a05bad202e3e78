/* SPDX-License-Identifier: Apache-2.0 */
/* vfork and posix_spawn. Part of fork.c. */
#ifndef KX_GUEST_FORK_VFORKS_H
#define KX_GUEST_FORK_VFORKS_H
#include "fork.h"

/* ---- vfork, posix_spawn ----------------------------------------------------------------------------------------- */

/* Inline: a child would overwrite the return address of a function. */
static inline __attribute__((always_inline)) long raw_vfork(void)
{
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "0"(SYS_vfork) : "rcx", "r11", "memory");
	return r;
}

static inline void vforks(void)
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
static inline void vfork_kills(void)
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
static inline int spawn_status(posix_spawn_file_actions_t *fa, posix_spawnattr_t *at, const char *script)
{
	pid_t p;
	char *argv[] = { "sh", "-c", (char *)script, NULL };
	errno = posix_spawn(&p, "/bin/sh", fa, at, argv, environ);
	return errno ? -1 : status_of(p);
}

static inline void spawns(void)
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
#endif
