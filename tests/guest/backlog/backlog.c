/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A master that makes a listener and does not accept, and workers that do, one connection for each wait. Whatever becomes of a
 * worker, what it has not accepted is for whoever accepts next: it is killed, exits, closes the listener, sleeps or computes. Each
 * connection is got once, in the order in which they came. Passes on any Linux. Exit code: 0, or 1 + the number of the first
 * check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../counted.h"
#include "../peer.h"

#define LISTENER ~0ull
#define WARM 3
#define GOT 5 /* connections that a worker takes before it is disturbed */

/* What a worker is to do when it has accepted GOT connections of a round with that many. */
enum way { SERVE, TELL, SPIN, SLEEP, LEAVE, EXIT, EXEC };

static int lsock, epfd, to_master[2], to_worker[2];
static volatile int *spins; /* a worker does, and makes no calls */

static void tell_master(char c)
{
	if (write(to_master[1], &c, 1) != 1)
		_exit(113);
}

/* ---- a worker ------------------------------------------------------------------------------------------------------- */

static void serve_one(int fd)
{
	struct pollfd p = { fd, POLLIN, 0 };
	char c = 0;
	long r = read(fd, &c, 1);
	if (r < 0 && errno == EAGAIN && poll(&p, 1, 60000) == 1) /* accepted before it has sent anything */
		r = read(fd, &c, 1);
	if (r == 1 && write(fd, &c, 1) != 1)
		_exit(112);
	close(fd);
}

static void disturbed(enum way how, const int *fds, int n)
{
	char c;
	if (how == TELL || how == SLEEP)
		tell_master('g');
	if (how == TELL)
		pause();
	if (how == SPIN) {
		*spins = 1;
		while (*spins)
			;
	}
	if (how == SLEEP && read(to_worker[0], &c, 1) != 1)
		_exit(111);
	if (how == LEAVE)
		close(lsock);
	for (int i = 0; i < n; i++)
		serve_one(fds[i]);
	if (how == LEAVE || how == EXIT) {
		tell_master('e');
		_exit(0);
	}
	if (how == EXEC) {
		char number[2][16];
		snprintf(number[0], sizeof number[0], "%d", lsock);
		snprintf(number[1], sizeof number[1], "%d", to_master[1]);
		fcntl(lsock, F_SETFD, 0);
		fcntl(to_master[1], F_SETFD, 0);
		execl("/proc/self/exe", "backlog", number[0], number[1], NULL);
		_exit(110);
	}
}

/* Accepts and serves. Of connection 'a' + 0 on, behind `warm` others, the first GOT are kept until `how` is done. */
static void work(enum way how, int warm)
{
	struct epoll_event ev[MANY + 2], add = { EPOLLIN, { .u64 = LISTENER } };
	int fds[GOT], nr = 0, accepted = 0;
	close(to_peer[1]);
	epfd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_ctl(epfd, EPOLL_CTL_ADD, lsock, &add))
		_exit(109);
	for (;;) {
		int n = epoll_wait(epfd, ev, MANY + 2, -1);
		for (int i = 0; i < n; i++) {
			if (ev[i].data.u64 != LISTENER) {
				serve_one((int)ev[i].data.u64);
				continue;
			}
			int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			if (fd < 0)
				continue;
			if (accepted++ < warm || how == SERVE) {
				struct epoll_event of = { EPOLLIN | EPOLLRDHUP, { .u64 = (uint64_t)fd } };
				epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &of);
				continue;
			}
			if (nr == GOT) { /* it has gone on behind that */
				serve_one(fd);
				continue;
			}
			fds[nr++] = fd;
			if (nr == GOT)
				disturbed(how, fds, nr);
		}
	}
}

static pid_t worker(enum way how, int warm)
{
	pid_t pid = fork();
	if (!pid) {
		work(how, warm);
		_exit(0);
	}
	return pid;
}

/* ---- the master --------------------------------------------------------------------------------------------------------- */

static bool told(char what)
{
	struct pollfd p = { to_master[0], POLLIN, 0 };
	char c = 0;
	return poll(&p, 1, 60000) == 1 && read(to_master[0], &c, 1) == 1 && c == what;
}

static void listener(void)
{
	if ((lsock = peer_listener(false)) < 0)
		exit(118);
	tell('a', addr.sin_port);
}

/* All of a round are answered, in one that nothing happens to. */
static bool round_of(int n)
{
	tell('c', n);
	struct answer a = tell('r', 0);
	bool good = true;
	for (int i = 0; i < n; i++)
		good &= a.got[i] == 'a' + i;
	tell('x', 0);
	return good;
}

/* A new worker, which has done so for a while. */
static pid_t warm_worker(enum way how)
{
	pid_t pid = worker(how, WARM * MANY);
	for (int i = 0; i < WARM; i++)
		if (!round_of(MANY))
			exit(117);
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* What became of the connections: those that the disturbed worker had, and the others. either: of those it is not known when
 * the worker was killed. */
static bool served(bool lost, bool either)
{
	struct answer a = tell('r', 0);
	bool good = true;
	for (int i = 0; i < MANY; i++) {
		const bool answered = a.got[i] == 'a' + i, gone = a.got[i] == 'R' || a.got[i] == 'E';
		if (i >= GOT ? !answered : either ? !answered && !gone : lost ? !gone : !answered)
			good = false;
	}
	if (!good)
		printf("# %.*s\n", MANY, a.got);
	tell('x', 0);
	return good;
}

static bool spinning(void)
{
	for (int i = 0; i < 60000 && !*spins; i++)
		usleep(1000);
	return *spins;
}

static void killed(void)
{
	bool good = true;
	for (int k = 0; k < 4; k++) {
		pid_t pid = warm_worker(TELL), other;
		tell('c', MANY);
		good &= told('g');
		end(pid);
		other = worker(SERVE, 0);
		good &= served(true, false);
		end(other);
	}
	check(good, "a worker that is killed behind a call leaves what it has not accepted");
	good = true;
	for (int k = 0; k < 12; k++) {
		pid_t pid = warm_worker(SPIN), other;
		*spins = 0;
		tell('c', MANY);
		good &= spinning();
		usleep((unsigned)k % 4 * 300);
		end(pid);
		*spins = 0;
		other = worker(SERVE, 0);
		good &= served(true, true);
		end(other);
	}
	check(good, "a worker that is killed as it computes leaves it, too");
}

static void leaves(void)
{
	bool good = true;
	for (int k = 0; k < 3; k++) {
		pid_t pid = warm_worker(k ? k == 1 ? LEAVE : EXIT : EXEC), other;
		tell('c', MANY);
		if (!k) {
			good &= served(false, false);
			end(pid);
			continue;
		}
		good &= told('e');
		waitpid(pid, NULL, 0);
		other = worker(SERVE, 0);
		good &= served(false, false) && round_of(MANY);
		end(other);
	}
	check(good, "a worker that executes a program, closes the listener or exits leaves the others");
}

/* Another worker gets what a busy one has not accepted, though that one lives. */
static void busy(void)
{
	bool good = true;
	for (int k = 0; k < 4; k++) {
		const bool sleeps = k % 2;
		pid_t pid = warm_worker(sleeps ? SLEEP : SPIN), other;
		*spins = 0;
		tell('c', MANY);
		good &= sleeps ? told('g') : spinning();
		other = worker(SERVE, 0);
		struct answer a = tell('r', GOT); /* while the first one does nothing */
		for (int i = GOT; i < MANY; i++)
			good &= a.got[i] == 'a' + i;
		*spins = 0;
		good &= !sleeps || write(to_worker[1], "x", 1) == 1;
		a = tell('r', 0);
		for (int i = 0; i < GOT; i++)
			good &= a.got[i] == 'a' + i;
		tell('x', 0);
		good &= round_of(MANY);
		end(other);
		good &= round_of(MANY);
		end(pid);
	}
	check(good, "an idle worker serves what a busy one has not accepted");
	pid_t pid = warm_worker(SERVE), other = worker(SERVE, 0);
	for (int k = 0; k < 8; k++)
		good &= round_of(MANY);
	check(good, "workers beside each other serve all");
	end(pid);
	for (int k = 0; k < 8; k++)
		good &= round_of(MANY);
	end(other);
	check(good, "... and the one that is left");
}

static void by_the_master(void)
{
	pid_t pid = warm_worker(TELL);
	struct pollfd p = { lsock, POLLIN, 0 };
	const struct answer said = tell('c', MANY);
	bool good = told('g') && poll(&p, 1, 10000) == 1;
	int nr = GOT;
	for (; nr < MANY; nr++) {
		struct sockaddr_in who = { 0 };
		socklen_t len = sizeof who;
		int fd = accept4(lsock, (void *)&who, &len, 0);
		good &= fd >= 0 && who.sin_port == said.port[nr] && !(fcntl(fd, F_GETFL) & O_NONBLOCK) &&
			!(fcntl(fd, F_GETFD) & FD_CLOEXEC);
		if (fd < 0)
			break;
		serve_one(fd);
	}
	fails(accept4(lsock, NULL, NULL, 0), EAGAIN, "the master accepts them until there is none");
	good &= poll(&p, 1, 0) == 0;
	end(pid);
	good &= served(true, false);
	check(good, "... in their order, with their addresses");
}

static void executed(char **argv)
{
	lsock = atoi(argv[1]);
	to_master[1] = atoi(argv[2]);
	work(SERVE, 0);
}

int main(int argc, char **argv)
{
	if (argc > 2)
		executed(argv);
	spins = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (spins == MAP_FAILED || !peer_start(read_all))
		return 117;
	if (pipe2(to_master, O_CLOEXEC) || pipe2(to_worker, O_CLOEXEC))
		return 116;
	listener();
	killed();
	leaves();
	busy();
	by_the_master();
	printf("%d checks\n", checks);
	return first_failure;
}
