/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server that accepts until there is none: whatever calls come in between, each connection is got once, in the order in
 * which they came, under the lowest free number, with its address and the flags that were asked for; the listener is
 * ready as long as there is one; those that wait as it is closed are reset. Passes on any Linux. Exit code: 0, or 1 +
 * the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../counted.h"
#include "../peer.h"

static int epfd, lsock, base;

/* ---- the server ------------------------------------------------------------------------------------------------- */

static void listener(void)
{
	struct epoll_event ev = { EPOLLIN, { .fd = -1 } };
	if ((lsock = peer_listener(false)) < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, lsock, &ev))
		exit(118);
	tell('a', addr.sin_port);
}

static int next(int flags, struct sockaddr_in *who)
{
	socklen_t len = sizeof *who;
	return accept4(lsock, (void *)who, &len, flags);
}

/* All that the checks of this round found. */
static bool good;
static int fds[MANY], nr;
static struct answer said;

/* Another one, of number nr. */
static bool got(int fd, const struct sockaddr_in *who)
{
	if (fd < 0 || who->sin_port != said.port[nr] || who->sin_family != AF_INET)
		return good = false;
	fds[nr++] = fd;
	return true;
}

static void take(int n, int first_fd)
{
	for (int i = 0; i < n; i++) {
		struct sockaddr_in who = { 0 };
		int fd = next(SOCK_NONBLOCK | SOCK_CLOEXEC, &who);
		if (!got(fd, &who))
			return;
		if (first_fd >= 0 && fd != first_fd + i)
			good = false;
	}
}

static void ready(bool is)
{
	struct epoll_event ev[4];
	struct pollfd p = { lsock, POLLIN, 0 };
	int n = epoll_wait(epfd, ev, 4, 0);
	if ((n == 1) != is || poll(&p, 1, 0) != is)
		good = false;
}

/* All of them read what their other side sent, and are answered. */
static void serve(void)
{
	struct sockaddr_in who;
	if (next(SOCK_NONBLOCK, &who) != -1 || errno != EAGAIN)
		good = false;
	for (int i = 0; i < nr; i++) {
		char c = 0;
		if (read(fds[i], &c, 1) != 1 || c != 'a' + i || write(fds[i], &c, 1) != 1)
			good = false;
		close(fds[i]);
	}
	struct answer a = tell('r', 0);
	for (int i = 0; i < nr; i++)
		if (a.got[i] != 'a' + i)
			good = false;
	tell('x', 0);
}

static void begin(int n)
{
	struct epoll_event ev;
	good = true;
	nr = 0;
	said = tell('c', n);
	if (epoll_wait(epfd, &ev, 1, 10000) != 1)
		good = false;
}

/* As they come without anything in between. */
static void rounds(int n)
{
	bool all = true;
	for (int i = 0; i < n; i++) {
		begin(MANY - i % 3);
		take(MANY - i % 3, base);
		serve();
		all &= good;
	}
	good = all;
}

/* One that is waited for: from then on this thread's sockets are batched. */
static void first(void)
{
	struct epoll_event ev = { EPOLLIN, { .u64 = 1 } };
	begin(1);
	take(1, base);
	if (epoll_ctl(epfd, EPOLL_CTL_ADD, base, &ev) || epoll_wait(epfd, &ev, 1, 10000) != 1 || ev.data.u64 != 1)
		good = false;
	serve();
	check(good, "a connection in an epoll");
}

static void *opens(void *arg)
{
	*(int *)arg = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return NULL;
}

static volatile int signals;
static void on_signal(int s)
{
	(void)s;
	signals = fcntl(base + 6, F_GETFD) == -1 && errno == EBADF;
}

static void between(void)
{
	int fd, status;
	struct sockaddr_in who = { 0 };
	pthread_t t;

	rounds(6);
	check(good, "rounds");

	begin(MANY);
	take(5, base);
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	check(fd == base + 5, "open gets the lowest number");
	take(5, base + 6);
	close(fd);
	take(1, base + 5);
	take(MANY - 11, base + 11);
	serve();
	check(good, "... and the accepts around it, too");

	rounds(4);
	begin(MANY);
	take(5, base);
	fails(fcntl(base + 5, F_GETFD), EBADF, "the next number is none yet");
	fails(read(base + 5, &(char){ 0 }, 1), EBADF, "... nor can it be read");
	ready(true);
	take(MANY - 5, base + 5);
	serve();
	check(good, "the listener is ready between two accepts");

	rounds(4);
	begin(MANY);
	take(4, base);
	close(fds[3]);
	nr--;
	who = (struct sockaddr_in){ 0 };
	fd = next(SOCK_NONBLOCK, &who);
	check(fd == base + 3 && who.sin_port == said.port[4], "a number that was closed is the next one's");
	tell('x', 0);
	close(fd);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	for (int i = 5; i < MANY; i++) {
		fd = next(SOCK_NONBLOCK, &who);
		good &= fd == base && who.sin_port == said.port[i];
		close(fd);
	}
	check(good && next(0, &who) == -1 && errno == EAGAIN, "... and so for each");

	rounds(4);
	begin(MANY);
	take(5, base);
	fd = accept(lsock, NULL, NULL);
	check(fd == base + 5 && !(fcntl(fd, F_GETFL) & O_NONBLOCK) && !(fcntl(fd, F_GETFD) & FD_CLOEXEC),
	      "other flags");
	fds[nr++] = fd;
	fd = accept4(lsock, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	check(fd == base + 6 && (fcntl(fd, F_GETFL) & O_NONBLOCK) && (fcntl(fd, F_GETFD) & FD_CLOEXEC),
	      "... and again");
	fds[nr++] = fd;
	fails(accept4(lsock, NULL, NULL, 77), EINVAL, "flags that are none");
	socklen_t some = 4;
	struct sockaddr_in small = { 0 };
	fd = accept4(lsock, (void *)&small, &some, SOCK_NONBLOCK);
	check(fd == base + 7 && some == sizeof small && small.sin_port == said.port[7] && !small.sin_addr.s_addr,
	      "a part of the address");
	fds[nr++] = fd;
	take(MANY - 8, base + 8);
	serve();
	check(good, "... and the rest of that round");

	rounds(4);
	begin(MANY);
	take(5, base);
	signals = 0;
	raise(SIGUSR1);
	take(5, base + 5);
	check(good && signals, "a signal's handler");
	take(MANY - 10, base + 10);
	serve();
	check(good, "... and what comes then");

	rounds(4);
	begin(MANY);
	take(5, base);
	pthread_create(&t, NULL, opens, &fd);
	pthread_join(t, NULL);
	check(fd == base + 5, "another thread's open gets the lowest number");
	close(fd);
	take(MANY - 5, base + 5);
	serve();
	check(good, "... and the accepts then");

	rounds(4);
	begin(MANY);
	take(5, base);
	struct rlimit was, l;
	getrlimit(RLIMIT_NOFILE, &was);
	l = (struct rlimit){ (rlim_t)base + 8, was.rlim_max };
	setrlimit(RLIMIT_NOFILE, &l);
	take(3, base + 5);
	fails(next(SOCK_NONBLOCK, &who), EMFILE, "no number left");
	ready(true);
	setrlimit(RLIMIT_NOFILE, &was);
	take(MANY - 8, base + 8);
	serve();
	check(good, "... and then there are");

	rounds(4);
	begin(MANY);
	take(5, base);
	check(close_range((unsigned)lsock, (unsigned)lsock, CLOSE_RANGE_CLOEXEC) == 0, "the listener is marked");
	take(MANY - 5, base + 5);
	serve();
	check(good, "... and stays open");

	rounds(4);
	begin(MANY);
	take(5, base);
	pid_t pid = fork();
	if (!pid)
		_exit(fcntl(base + 5, F_GETFD) != -1 || errno != EBADF);
	waitpid(pid, &status, 0);
	check(status == 0, "a child has what its parent got, no more");
	take(MANY - 5, base + 5);
	serve();
	check(good, "... and its parent the others");
}

static void ends(void)
{
	/* Of before the fork others may have had it. */
	close(lsock);
	listener();
	rounds(6);
	begin(MANY);
	take(6, base);
	int l = dup(lsock);
	check(l == base + 6, "dup gets the lowest number");
	close(l);
	take(MANY - 6, base + 6);
	serve();
	check(good, "a listener that had another number for a while");

	close(lsock);
	listener();
	rounds(6);
	begin(MANY);
	take(6, base);
	for (int i = 0; i < 6; i++)
		if (write(fds[i], "y", 1) != 1)
			good = false;
	close(lsock);
	for (int i = 0; i < 6; i++)
		close(fds[i]);
	struct answer a = tell('r', 0);
	for (int i = 0; i < MANY; i++)
		good &= i < 6 ? a.got[i] == 'y' || a.got[i] == 'R' : a.got[i] == 'R';
	check(good, "those that wait as the listener is closed are reset");
	tell('x', 0);

	listener();
	rounds(6);
	check(good, "another listener");
	begin(MANY);
	take(6, base);
	if (shutdown(lsock, SHUT_RD))
		good = false;
	fails(next(0, &(struct sockaddr_in){ 0 }), EINVAL, "a listener that was shut down");
	for (int i = 0; i < 6; i++)
		close(fds[i]);
	a = tell('r', 0);
	for (int i = 6; i < MANY; i++)
		good &= a.got[i] == 'R';
	check(good, "... has reset those that waited");
	tell('x', 0);
}

/* ---- over an exec: those that wait go with the listener ----------------------------------------------------------------- */

static void execute(const char *self)
{
	char number[2][16];
	close(lsock);
	listener();
	fcntl(lsock, F_SETFD, 0);
	rounds(6);
	begin(MANY);
	take(6, base);
	int state = memfd_create("said", 0);
	check(good && write(state, &said, sizeof said) == sizeof said,
	      "some of those that wait are accepted before an exec");
	snprintf(number[0], sizeof number[0], "%d", lsock);
	snprintf(number[1], sizeof number[1], "%d", state);
	fails(execl("/nonexistent", "x", NULL), ENOENT, "an exec that fails");
	if (first_failure)
		return;
	execl(self, self, number[0], number[1], NULL);
	check(false, "exec");
}

static void executed(char **argv)
{
	struct epoll_event ev = { EPOLLIN, { .fd = -1 } };
	lsock = atoi(argv[1]);
	to_peer[1] = 100;
	from_peer[0] = 101;
	epfd = epoll_create1(EPOLL_CLOEXEC);
	good = pread(atoi(argv[2]), &said, sizeof said, 0) == sizeof said &&
	       !epoll_ctl(epfd, EPOLL_CTL_ADD, lsock, &ev);
	ready(true);
	nr = 6;
	take(MANY - 6, -1);
	check(good && nr == MANY, "the others are accepted behind it, in their order");
	if (first_failure)
		return;
	fails(next(0, &(struct sockaddr_in){ 0 }), EAGAIN, "... and then there is none");
	for (int i = 6; i < nr; i++) {
		char c = 0;
		good &= read(fds[i], &c, 1) == 1 && c == 'a' + i && write(fds[i], &c, 1) == 1 && !close(fds[i]);
	}
	struct answer a = tell('r', 0);
	for (int i = 0; i < MANY; i++)
		good &= a.got[i] == (i < 6 ? 'R' : 'a' + i);
	check(good, "... and are served");
	tell('x', 0);
}

int main(int argc, char **argv)
{
	if (argc > 2) {
		executed(argv);
		return first_failure;
	}
	struct sigaction sa = { .sa_handler = on_signal };
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGUSR1, &sa, NULL);
	if (!peer_start(read_one))
		return 117;
	dup2(to_peer[1], 100);
	close(to_peer[1]);
	to_peer[1] = 100;
	dup2(from_peer[0], 101);
	close(from_peer[0]);
	from_peer[0] = 101;
	epfd = epoll_create1(EPOLL_CLOEXEC);
	epfd = fcntl(epfd, F_DUPFD_CLOEXEC, 102);
	close(3);
	listener();
	base = lsock + 1;
	first();
	between();
	ends();
	execute(argv[0]);
	return first_failure;
}
