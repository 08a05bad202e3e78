/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals on the way into a call. A call whose result is there gives it, whatever signals wait; one that would sleep
 * ends. SIGALRM comes often, its handler is without SA_RESTART. Each check has an exit code of its own, from 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 1500
#define SLEEPS 200
#define LOST_US 60000000

static volatile int alarms;
static int step, p[2], sv[2], ev, ep, sem, msq, lsock;
static struct sockaddr_un addr = { .sun_family = AF_UNIX };

static volatile int again; /* whoever was too early tries again */

static void every(long first_us, long us)
{
	struct itimerval it = { { us / 1000000, us % 1000000 }, { 0, first_us } };
	setitimer(ITIMER_REAL, &it, NULL);
}

static void on_alarm(int s)
{
	(void)s;
	alarms++;
	if (again)
		every(1000, LOST_US);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int rd(void) { return read(p[0], &(char){ 0 }, 1); }
static int wr(void) { return write(p[1], "x", 1); }
static int rdv(void) { return readv(p[0], &(struct iovec){ &(char){ 0 }, 1 }, 1); }
static int snd(void) { return send(sv[0], "x", 1, 0); }
static int rcv(void) { return recv(sv[1], &(char){ 0 }, 1, 0); }
static int evw(void) { return eventfd_write(ev, 1); }
static int evr(void) { return eventfd_read(ev, &(eventfd_t){ 0 }); }
static int pol(void) { return poll(&(struct pollfd){ p[1], POLLOUT, 0 }, 1, -1) == 1 ? 0 : -1; }
static int epo(void) { return epoll_wait(ep, &(struct epoll_event){ 0 }, 1, -1) == 1 ? 0 : -1; }
static int up(void) { return semop(sem, &(struct sembuf){ 0, 1, 0 }, 1); }
static int down(void) { return semop(sem, &(struct sembuf){ 0, -1, 0 }, 1); }

static int sel(void)
{
	fd_set w;
	FD_ZERO(&w);
	FD_SET(p[1], &w);
	return select(p[1] + 1, NULL, &w, NULL, NULL) == 1 ? 0 : -1;
}

struct text {
	long type;
	char c;
};
static int msnd(void) { return msgsnd(msq, &(struct text){ 1, 'x' }, 1, 0); }
static int mrcv(void) { return msgrcv(msq, &(struct text){ 0 }, 1, 0, 0); }

static int con(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	int r = connect(fd, (struct sockaddr *)&addr, sizeof addr), e = errno;
	close(fd);
	errno = e;
	return r;
}

static int acc(void)
{
	int fd = accept(lsock, NULL, NULL);
	return fd < 0 ? fd : close(fd);
}

static int opn(void)
{
	int fd = open("/etc/passwd", O_RDONLY);
	return fd < 0 ? fd : close(fd);
}

static const struct {
	const char *name;
	int (*fn[2])(void); /* by turns */
} ready[] = {
	{ "pipe", { wr, rd } },      { "pipe, readv", { wr, rdv } }, { "socket", { snd, rcv } },
	{ "eventfd", { evw, evr } }, { "poll", { pol, pol } },       { "select", { sel, sel } },
	{ "epoll", { epo, epo } },   { "semaphore", { up, down } },  { "message queue", { msnd, mrcv } },
	{ "accept", { con, acc } },  { "open", { opn, opn } },
};

static void fail(const char *name, const char *what, long n)
{
	printf("FAILED %s: %s %ld\n", name, what, n);
	exit(step);
}

/* Nothing here ever has to wait. */
static void no_eintr(void)
{
	for (unsigned k = 0; k < sizeof ready / sizeof ready[0]; k++) {
		int before = alarms;
		step++;
		every(200, 200);
		double end = now() + 60000;
		for (int i = 0; i < ROUNDS || i & 1 || (alarms == before && now() < end); i++)
			if (ready[k].fn[i & 1]() < 0)
				fail(ready[k].name, strerror(errno), i);
		every(0, 0);
		if (alarms == before)
			fail(ready[k].name, "no signal came", 0);
		printf("ok %s\n", ready[k].name);
	}
}

static int sleep_read(void) { return read(p[0], &(char){ 0 }, 1); }
static int sleep_poll(void) { return poll(NULL, 0, -1); }
static int sleep_fifo(void) { return open("ready.fifo", O_RDONLY); }
static int sleep_sem(void) { return down(); }
static int sleep_accept(void) { return accept(lsock, NULL, NULL); }
static int sleep_child(void) { return wait(NULL); }

static const struct {
	const char *name;
	int (*fn)(void);
} sleeps[] = { { "sleeping read", sleep_read },           { "sleeping poll", sleep_poll },
	       { "sleeping open of a FIFO", sleep_fifo }, { "sleeping semop", sleep_sem },
	       { "sleeping accept", sleep_accept },       { "sleeping wait", sleep_child } };

/*
 * A signal comes some time around the beginning of each. If its handler runs before the call, it has the next one come a
 * moment later. One that the call has slept over comes to its handler with the one after a minute.
 */
static void eintr(void)
{
	pid_t child = fork();
	if (!child)
		for (;;)
			pause();
	again = 1;
	for (unsigned k = 0; k < sizeof sleeps / sizeof sleeps[0]; k++) {
		step++;
		for (int i = 0; i < SLEEPS; i++) {
			double start = now();
			every(5 + i * 2, LOST_US);
			if (sleeps[k].fn() >= 0 || errno != EINTR)
				fail(sleeps[k].name, strerror(errno), i);
			every(0, 0);
			if (now() - start > LOST_US / 2000)
				fail(sleeps[k].name, "slept over a signal:", i);
		}
		printf("ok %s\n", sleeps[k].name);
	}
	again = 0;
	every(0, 0);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

int main(void)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	const char *tmp = getenv("TMPDIR");
	if (chdir(tmp ? tmp : "/tmp"))
		return 100;
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGALRM, &sa, NULL);
	snprintf(addr.sun_path, sizeof addr.sun_path, "ready.sock");
	ev = eventfd(0, 0);
	ep = epoll_create1(0);
	sem = semget(IPC_PRIVATE, 1, 0600);
	msq = msgget(IPC_PRIVATE, 0600);
	lsock = socket(AF_UNIX, SOCK_STREAM, 0);
	unlink("ready.fifo");
	unlink(addr.sun_path);
	if (pipe(p) || socketpair(AF_UNIX, SOCK_STREAM, 0, sv) || sem < 0 || msq < 0 || mkfifo("ready.fifo", 0600) ||
	    bind(lsock, (struct sockaddr *)&addr, sizeof addr) || listen(lsock, 4) ||
	    epoll_ctl(ep, EPOLL_CTL_ADD, p[1], &(struct epoll_event){ .events = EPOLLOUT }))
		return 101;
	no_eintr();
	eintr();
	semctl(sem, 0, IPC_RMID);
	msgctl(msq, IPC_RMID, NULL);
	unlink("ready.fifo");
	unlink(addr.sun_path);
	puts("SUCCESS");
	return 0;
}
