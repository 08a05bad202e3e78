/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that a service thread may answer (`kylinx run --io poll`) must not tell whose thread made them: signals that a
 * call sends to its thread, rights of one thread, numbers of descriptors, record locks, calls that wait, in bursts that
 * wake that thread, and around forks. The same natively.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(c) \
	do { \
		if (!(c)) { \
			printf("line %d: %s (errno %d)\n", __LINE__, #c, errno); \
			exit(1); \
		} \
	} while (0)

static volatile sig_atomic_t got[65];
static volatile pid_t got_tid;

static void on_signal(int s)
{
	got[s]++;
	got_tid = (pid_t)syscall(SYS_gettid);
}

static void handle(int s, int flags)
{
	struct sigaction a = { .sa_handler = on_signal, .sa_flags = flags };
	CHECK(!sigaction(s, &a, NULL));
	got[s] = 0;
}

/* Calls enough for the service thread to be there. */
static void burst(void)
{
	for (int i = 0; i < 300; i++)
		CHECK(getpgid(0) == getpgrp());
}

/* SIGPIPE and SIGXFSZ are for the thread that wrote, there when the call returns. */
static void own_signals(void)
{
	int p[2], s[2];
	handle(SIGPIPE, 0);
	for (int i = 1; i <= 60; i++) {
		CHECK(!pipe(p) && !close(p[0]));
		CHECK(write(p[1], "x", 1) == -1 && errno == EPIPE && got[SIGPIPE] == 2 * i - 1);
		CHECK(got_tid == syscall(SYS_gettid));
		CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s) && !close(s[0]));
		CHECK(write(s[1], "x", 1) == -1 && errno == EPIPE && got[SIGPIPE] == 2 * i);
		CHECK(!close(p[1]) && !close(s[1]));
	}
	handle(SIGXFSZ, 0);
	struct rlimit old, one;
	CHECK(!getrlimit(RLIMIT_FSIZE, &old));
	one = (struct rlimit){ 4096, old.rlim_max };
	int fd = open("/tmp/serve-file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0 && !setrlimit(RLIMIT_FSIZE, &one));
	burst();
	CHECK(pwrite(fd, "x", 1, 4096) == -1 && errno == EFBIG && got[SIGXFSZ] == 1);
	CHECK(!setrlimit(RLIMIT_FSIZE, &old) && !close(fd) && !unlink("/tmp/serve-file"));
}

/* The lowest free number, whatever else the process does. */
static void numbers(void)
{
	int fds[900], n = 0;
	for (int i = 0; i < 150; i++) {
		int fd = open("/etc/passwd", O_RDONLY), d = open("/", O_RDONLY | O_DIRECTORY);
		CHECK(fd == 3 && d == 4);
		CHECK(!close(fd) && open("/etc/passwd", O_RDONLY) == 3);
		CHECK(!close(3) && !close(4));
	}
	for (; n < 900; n++)
		CHECK((fds[n] = open("/etc/passwd", O_RDONLY)) == 3 + n);
	while (n)
		CHECK(!close(fds[--n]));
	struct rlimit old, few;
	CHECK(!getrlimit(RLIMIT_NOFILE, &old));
	few = (struct rlimit){ 5, old.rlim_max };
	CHECK(!setrlimit(RLIMIT_NOFILE, &few));
	burst();
	CHECK(open("/etc/passwd", O_RDONLY) == 3 && open("/etc/passwd", O_RDONLY) == 4);
	CHECK(open("/etc/passwd", O_RDONLY) == -1 && errno == EMFILE);
	CHECK(!close(3) && !close(4) && !setrlimit(RLIMIT_NOFILE, &old));
}

/* What waits, waits; what must not, does not. */
static void waits(void)
{
	int p[2], e = epoll_create1(0);
	char b[8];
	struct epoll_event ev = { .events = EPOLLIN }, out;
	struct timespec t0, t1;
	CHECK(!pipe(p) && !epoll_ctl(e, EPOLL_CTL_ADD, p[0], &ev));
	burst();
	clock_gettime(CLOCK_MONOTONIC, &t0);
	CHECK(epoll_wait(e, &out, 1, 50) == 0);
	CHECK(poll(&(struct pollfd){ p[0], POLLIN, 0 }, 1, 50) == 0);
	clock_gettime(CLOCK_MONOTONIC, &t1);
	CHECK((t1.tv_sec - t0.tv_sec) * 1000 + (t1.tv_nsec - t0.tv_nsec) / 1000000 >= 99);
	handle(SIGALRM, 0);
	struct itimerval it = { { 0, 50000 }, { 0, 50000 } }, off = { { 0, 0 }, { 0, 0 } };
	burst();
	CHECK(!setitimer(ITIMER_REAL, &it, NULL));
	CHECK(read(p[0], b, 1) == -1 && errno == EINTR && got[SIGALRM] >= 1);
	CHECK(!setitimer(ITIMER_REAL, &off, NULL));
	CHECK(write(p[1], "abc", 3) == 3 && epoll_wait(e, &out, 1, -1) == 1 && read(p[0], b, 8) == 3);
	CHECK(!fcntl(p[0], F_SETFL, O_NONBLOCK));
	burst();
	CHECK(read(p[0], b, 1) == -1 && errno == EAGAIN && read(p[0], NULL, 0) <= 0);
	/* A write longer than a pipe's room blocks until it is all in. */
	pid_t pid = fork();
	CHECK(pid >= 0);
	static char big[300000];
	if (!pid) {
		close(p[0]);
		burst();
		_exit(write(p[1], big, sizeof big) != sizeof big);
	}
	size_t total = 0;
	struct pollfd pf = { p[0], POLLIN, 0 };
	while (total < sizeof big) {
		ssize_t n = read(p[0], big, 7000);
		if (n > 0)
			total += n;
		else
			CHECK(n == -1 && errno == EAGAIN && poll(&pf, 1, 100000) == 1);
	}
	int st;
	CHECK(waitpid(pid, &st, 0) == pid && st == 0);
	CHECK(!close(p[0]) && !close(p[1]) && !close(e));
}

/* What sleeps in ways that calls answered elsewhere must not: a FIFO's other end, a connection, a signalfd's thread. */
static void sleeps(void)
{
	char fifo[64];
	snprintf(fifo, sizeof fifo, "/tmp/serve-fifo-%d", getpid());
	struct itimerval it = { { 0, 50000 }, { 0, 50000 } }, off = { { 0, 0 }, { 0, 0 } };
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof in;
	int s = socket(AF_INET, SOCK_STREAM, 0), c, fd;
	CHECK(!mkfifo(fifo, 0600) && !bind(s, (void *)&in, len) && !listen(s, 4) && !getsockname(s, (void *)&in, &len));
	handle(SIGALRM, 0);
	for (int i = 0; i < 3; i++) {
		burst();
		CHECK(!setitimer(ITIMER_REAL, &it, NULL));
		CHECK(open(fifo, O_RDONLY) == -1 && errno == EINTR && got[SIGALRM] >= 1);
		burst();
		CHECK(accept(s, NULL, NULL) == -1 && errno == EINTR);
		CHECK(!setitimer(ITIMER_REAL, &off, NULL));
		burst();
		CHECK((c = socket(AF_INET, SOCK_STREAM, 0)) > 0 && !connect(c, (void *)&in, sizeof in));
		CHECK((fd = accept4(s, NULL, NULL, SOCK_NONBLOCK)) > 0 && fcntl(fd, F_GETFL) & O_NONBLOCK);
		CHECK(accept4(fd, NULL, NULL, 0) == -1 && errno == EINVAL);
		int file = open("/etc/passwd", O_RDONLY);
		char a[64], b[64];
		CHECK(sendfile(fd, file, NULL, 40) == 40 && recv(c, a, sizeof a, 0) == 40);
		CHECK(pread(file, b, 40, 0) == 40 && !memcmp(a, b, 40) && lseek(file, 0, SEEK_CUR) == 40);
		CHECK(!shutdown(fd, SHUT_WR) && recv(c, a, 1, 0) == 0 && !close(fd) && !close(c) && !close(file));
	}
	CHECK(!unlink(fifo) && !close(s));
	sigset_t set, old;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	CHECK(!sigprocmask(SIG_BLOCK, &set, &old));
	struct pollfd p = { signalfd(-1, &set, 0), POLLIN, 0 };
	for (int i = 0; i < 20; i++) {
		struct signalfd_siginfo si;
		burst();
		CHECK(poll(&p, 1, 0) == 0 && !raise(SIGUSR2) && poll(&p, 1, 0) == 1);
		CHECK(read(p.fd, &si, sizeof si) == sizeof si && si.ssi_signo == SIGUSR2);
	}
	CHECK(!close(p.fd) && !sigprocmask(SIG_SETMASK, &old, NULL));
}

/* Signals that come while calls are answered: none lost, none late. */
static void signals_meanwhile(void)
{
	handle(SIGUSR1, SA_RESTART);
	handle(SIGALRM, SA_RESTART);
	struct itimerval it = { { 0, 1000 }, { 0, 1000 } }, off = { { 0, 0 }, { 0, 0 } };
	CHECK(!setitimer(ITIMER_REAL, &it, NULL));
	int fd = open("/dev/zero", O_RDONLY);
	char b[64];
	for (int i = 1; i <= 1000 || got[SIGALRM] < 5; i++) {
		CHECK(read(fd, b, sizeof b) == sizeof b);
		if (i % 10 == 0)
			CHECK(!kill(getpid(), SIGUSR1) && got[SIGUSR1] == i / 10);
	}
	CHECK(!setitimer(ITIMER_REAL, &off, NULL) && !close(fd));
	/* Blocked and ignored: kept for whoever unblocks it with a handler. */
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	signal(SIGUSR2, SIG_IGN);
	for (int i = 1; i <= 10; i++) {
		int p[2];
		char c;
		CHECK(!pipe(p));
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			if (read(p[0], &c, 1) != 1)
				_exit(1);
			_exit(kill(getppid(), SIGUSR2) != 0);
		}
		burst();
		CHECK(!sigprocmask(SIG_BLOCK, &set, NULL) && write(p[1], "x", 1) == 1);
		int st;
		CHECK(waitpid(pid, &st, 0) == pid && !st);
		handle(SIGUSR2, 0);
		CHECK(!sigprocmask(SIG_UNBLOCK, &set, NULL) && got[SIGUSR2] == 1);
		signal(SIGUSR2, SIG_IGN);
		CHECK(!close(p[0]) && !close(p[1]));
	}
}

/* Record locks are the process's; a child of fork has none, and has no service thread either. */
static void forks(void)
{
	int fd = open("/tmp/serve-lock", O_RDWR | O_CREAT, 0600), st;
	CHECK(fd >= 0);
	for (int i = 0; i < 20; i++) {
		struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		burst();
		CHECK(!fcntl(fd, F_SETLK, &l));
		pid_t pid = i % 2 ? fork() : vfork();
		CHECK(pid >= 0);
		if (!pid && i % 2) {
			struct flock k = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
			burst();
			if (fcntl(fd, F_GETLK, &k) || k.l_type != F_WRLCK || k.l_pid != getppid())
				_exit(1);
			_exit(0);
		}
		if (!pid) {
			if (getpgid(0) < 0)
				_exit(1);
			execl("/bin/true", "true", NULL);
			_exit(2);
		}
		CHECK(waitpid(pid, &st, 0) == pid && !st);
		l.l_type = F_UNLCK;
		CHECK(!fcntl(fd, F_SETLK, &l));
	}
	CHECK(!close(fd) && !unlink("/tmp/serve-lock"));
}

static void *churn(void *arg)
{
	int fd = open("/dev/zero", O_RDONLY);
	char b[128];
	for (int i = 0; i < 500; i++) {
		b[0] = 1;
		CHECK(read(fd, b, sizeof b) == sizeof b && !b[0]);
		void *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(p != MAP_FAILED);
		*(volatile char *)p = 1;
		CHECK(!munmap(p, 8192));
	}
	close(fd);
	return arg;
}

static void threads(void)
{
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&t[i], NULL, churn, NULL));
	for (int i = 0; i < 6; i++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			burst();
			_exit(0);
		}
		int st;
		CHECK(waitpid(pid, &st, 0) == pid && !st);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
}

/* Rights given up are given up, also where another thread opens files. */
static void rights(void)
{
	int st;
	if (getuid())
		return;
	for (int i = 0; i < 2; i++) {
		int fd = open("/tmp/serve-secret", O_RDWR | O_CREAT, 0600);
		CHECK(fd >= 0 && !close(fd));
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			burst();
			CHECK((fd = open("/tmp/serve-secret", O_RDONLY)) >= 0);
			if (i == 0)
				CHECK(!setuid(12345));
			else
				CHECK(syscall(SYS_setfsuid, 12345) == 0);
			burst();
			for (int k = 0; k < 200; k++)
				CHECK(open("/tmp/serve-secret", O_RDONLY) == -1 && errno == EACCES);
			_exit(0);
		}
		CHECK(waitpid(pid, &st, 0) == pid && !st && !unlink("/tmp/serve-secret"));
	}
}

/* A program that writes into what it shares with the service thread harms itself alone. Not natively. */
#define SLOT_PAGE 0x7f000af000ul
#define AREAS 0x7f00200000ul
#define AREA_SIZE 0x8000ul
#define AREA_CALL 0x80ul

static void *scribble(void *arg)
{
	static const int calls[] = { 0,  1,  2,  4,  7,   8,   9,   11,  17,  19,   20,
				     45, 46, 47, 72, 202, 217, 232, 257, 332, 1024, 60 };
	unsigned seed = (unsigned)(unsigned long)arg;
	volatile unsigned long *slot = (void *)SLOT_PAGE;
	for (;;) {
		unsigned long index = rand_r(&seed) % 8 ? rand_r(&seed) % 6 : rand_r(&seed) % 70000;
		volatile unsigned long *call = (void *)(AREAS + index % 6 * AREA_SIZE + AREA_CALL);
		if (index % 6 > 3) { /* nobody's */
			call[0] = calls[rand_r(&seed) % (sizeof calls / sizeof calls[0])];
			for (int i = 1; i < 7; i++)
				call[i] = rand_r(&seed) % 3 ? (unsigned long)rand_r(&seed) % 4096
							    : (unsigned long)rand_r(&seed) << rand_r(&seed) % 40;
		}
		slot[1] = (unsigned long)rand_r(&seed) << 32 | (rand_r(&seed) % 4 ? 0 : (rand_r(&seed) & 0xf0000)) |
			  index;
		if (rand_r(&seed) % 16 == 0)
			slot[0] = rand_r(&seed) % 2;
		if (rand_r(&seed) % 64 == 0)
			slot[2] = rand_r(&seed);
	}
	return NULL;
}

static void hostile(void)
{
	for (unsigned long i = 0; i < 3; i++) {
		int st;
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			pthread_t t;
			burst();
			signal(SIGALRM, SIG_DFL);
			alarm(2); /* it may lose its answers, and hang */
			for (unsigned long k = 0; k < 2; k++)
				if (pthread_create(&t, NULL, scribble, (void *)(i * 2 + k + 1)))
					_exit(2);
			for (;;)
				getpgid(0);
		}
		CHECK(waitpid(pid, &st, 0) == pid);
		CHECK((WIFSIGNALED(st) && WTERMSIG(st) == SIGALRM) || WIFEXITED(st));
	}
}

int main(int argc, char **argv)
{
	for (int fd = 3; fd < 1024; fd++) /* inherited */
		close(fd);
	setlinebuf(stdout);
	own_signals();
	puts("own_signals");
	numbers();
	puts("numbers");
	waits();
	puts("waits");
	sleeps();
	puts("sleeps");
	signals_meanwhile();
	puts("signals_meanwhile");
	forks();
	puts("forks");
	threads();
	puts("threads");
	rights();
	puts("rights");
	if (argc > 1 && !strcmp(argv[1], "pvm"))
		hostile();
	puts("serve: ok");
	return 0;
}
