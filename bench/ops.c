/* SPDX-License-Identifier: Apache-2.0 */
/* ops.c OP N: do one thing N times. Two runs with different N give what one of it costs in exits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int zero, pipes[2], pair[2], ep;
static char buf[4096];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
extern char **environ;

static void nothing(int sig) { (void)sig; }
static void *body(void *p) { return p; }

static int reap(pid_t pid)
{
	int status;
	return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

static int op_getpid(void) { return syscall(SYS_getpid) > 0; }
static int op_clock(void)
{
	struct timespec t;
	return !clock_gettime(CLOCK_MONOTONIC, &t);
}
static int op_random(void) { return getrandom(buf, 16, 0) == 16; }
static int op_sigmask(void)
{
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR2);
	return !sigprocmask(SIG_BLOCK, &s, NULL) && !sigprocmask(SIG_UNBLOCK, &s, NULL);
}
static int op_mutex(void) { return !pthread_mutex_lock(&lock) && !pthread_mutex_unlock(&lock); }
static int op_read(void) { return read(zero, buf, 1) == 1; }
static int op_pipe(void) { return write(pipes[1], "x", 1) == 1 && read(pipes[0], buf, 1) == 1; }
static int op_socket(void) { return send(pair[1], "x", 1, 0) == 1 && recv(pair[0], buf, 1, 0) == 1; }
static int op_epoll(void)
{
	struct epoll_event e;
	return epoll_wait(ep, &e, 1, 0) == 0;
}
static int op_mmap(void)
{
	void *p = mmap(NULL, 65536, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p != MAP_FAILED && !munmap(p, 65536);
}
static int op_open(void)
{
	int fd = open("/dev/null", O_RDONLY);
	return fd >= 0 && !close(fd);
}
static int op_signal(void) { return !raise(SIGUSR1); }
static int op_thread(void)
{
	pthread_t t;
	return !pthread_create(&t, NULL, body, NULL) && !pthread_join(t, NULL);
}
static int op_fork(void)
{
	pid_t pid = fork();
	if (!pid)
		_exit(0);
	return reap(pid);
}
/* With so many MiB written before each. */
static int fork_with(size_t mib)
{
	static char *p, round;
	round++;
	if (!p)
		p = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < mib << 20; i += 4096)
		p[i] = round; /* a store alone: an emulator faults for what is read, too */
	return op_fork();
}
static int op_fork16(void) { return fork_with(16); }
static int op_fork64(void) { return fork_with(64); }
static int op_exec(void)
{
	char *argv[] = { "/bin/true", NULL };
	pid_t pid = fork();
	if (!pid) {
		execv(argv[0], argv);
		_exit(127);
	}
	return reap(pid);
}
static int op_dlopen(void)
{
	void *h = dlopen("libutil.so.1", RTLD_NOW | RTLD_LOCAL);
	return h && !dlclose(h);
}
/* A byte to a child and back. */
static int op_roundtrip(void)
{
	static int to[2], from[2], begun;
	if (!begun++) {
		if (pipe(to) || pipe(from))
			return 0;
		if (!fork()) {
			char c;
			close(to[1]);
			while (read(to[0], &c, 1) == 1 && write(from[1], &c, 1) == 1)
				;
			_exit(0);
		}
		close(to[0]);
		close(from[1]);
	}
	return write(to[1], "x", 1) == 1 && read(from[0], buf, 1) == 1;
}
static int op_spawn(void)
{
	char *argv[] = { "/bin/true", NULL };
	pid_t pid;
	return !posix_spawn(&pid, argv[0], NULL, NULL, argv, environ) && reap(pid);
}

static const struct {
	const char *name;
	int (*fn)(void);
} ops[] = {
	{ "getpid", op_getpid }, { "clock", op_clock }, { "random", op_random }, { "sigmask", op_sigmask },
	{ "mutex", op_mutex },   { "read", op_read },   { "pipe", op_pipe },     { "socket", op_socket },
	{ "epoll", op_epoll },   { "mmap", op_mmap },   { "open", op_open },     { "signal", op_signal },
	{ "thread", op_thread }, { "fork", op_fork },   { "spawn", op_spawn },   { "fork16", op_fork16 },
	{ "fork64", op_fork64 }, { "exec", op_exec },   { "dlopen", op_dlopen }, { "roundtrip", op_roundtrip },
};

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	zero = open("/dev/zero", O_RDONLY);
	ep = epoll_create1(0);
	if (zero < 0 || ep < 0 || pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return 2;
	signal(SIGUSR1, nothing);
	for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
		if (!strcmp(ops[i].name, argv[1])) {
			for (int n = atoi(argv[2]); n > 0; n--)
				if (!ops[i].fn())
					return 1;
			return 0;
		}
	return 2;
}
