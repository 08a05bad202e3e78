/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server of an event loop that accepts one connection each time a wait tells of its listener, serves it and closes it: whatever calls
 * come in between, each connection is got once, in the order in which they came, under the lowest free number, with its
 * address, its flags and what its other side sent; a wait tells of the listener as long as there are some. Passes on any
 * Linux. Exit code: 0, or 1 + the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../counted.h"
#include "../peer.h"

#define NUMBERS 256
#define LISTENER ~0ull

static int epfd, lsock;
static uint32_t how; /* events of the connections, but for EPOLLIN */
static bool good, used[NUMBERS];
static struct answer said;
static int nr, nr_served; /* of this round: accepted, answered */
static int fds[MANY];     /* -1: closed */

static void listener(void)
{
	struct epoll_event ev = { EPOLLIN, { .u64 = LISTENER } };
	if ((lsock = peer_listener(false)) < 0)
		exit(118);
#ifdef SHARED /* all that follows is a child's */
	int status;
	pid_t pid = fork();
	if (pid) {
		close(lsock);
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			_exit(115);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 114);
	}
	close(epfd);
	epfd = epoll_create1(EPOLL_CLOEXEC);
#endif
	if (epoll_ctl(epfd, EPOLL_CTL_ADD, lsock, &ev))
		exit(118);
	tell('a', addr.sin_port);
}

/* Which numbers are free, as the kernel says. */
static void numbers(void)
{
	for (int i = 0; i < NUMBERS; i++)
		used[i] = fcntl(i, F_GETFD) >= 0;
}

static int lowest(void)
{
	int i = 0;
	while (i < NUMBERS - 1 && used[i])
		i++;
	return i;
}

/* fd is a new descriptor. */
static int opened(int fd)
{
	if (fd != lowest())
		good = false;
	else
		used[fd] = true;
	return fd;
}

static void closes(int fd)
{
	if (close(fd))
		good = false;
	used[fd] = false;
}

static int as = SOCK_NONBLOCK | SOCK_CLOEXEC; /* of accept4(2) */

/* The next one, into the epoll. */
static bool accept_one(void)
{
	struct sockaddr_in who = { 0 };
	socklen_t len = sizeof who;
	int fd = accept4(lsock, (void *)&who, &len, as);
	if (fd < 0 || nr >= MANY || opened(fd) < 0 || who.sin_port != said.port[nr] || who.sin_family != AF_INET)
		return good = false;
	struct epoll_event ev = { EPOLLIN | how, { .u64 = (uint64_t)nr } };
	fds[nr++] = fd;
	return !epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) || (good = false);
}

static void answer(int i)
{
	char c = 0;
	if (read(fds[i], &c, 1) != 1 || c != 'a' + i || read(fds[i], &c, 1) != -1 || errno != EAGAIN ||
	    write(fds[i], &c, 1) != 1)
		good = false;
	closes(fds[i]);
	fds[i] = -1;
	nr_served++;
}

static void begin(int n)
{
	good = true;
	nr = nr_served = 0;
	said = tell('c', n);
}

/* One turn: how many events, -1: something else than what there can be. listener: was it told of? */
static int turn(int timeout, bool *listener, void (*serve)(int))
{
	struct epoll_event ev[MANY + 2];
	int n = epoll_wait(epfd, ev, MANY + 2, timeout);
	*listener = false;
	for (int i = 0; i < n; i++)
		if (ev[i].data.u64 == LISTENER)
			*listener = ev[i].events == EPOLLIN ? true : (good = false);
	for (int i = 0; i < n; i++)
		if (ev[i].data.u64 == LISTENER)
			accept_one();
		else if (ev[i].data.u64 >= (uint64_t)nr || fds[ev[i].data.u64] < 0 || !(ev[i].events & EPOLLIN))
			good = false;
		else
			serve((int)ev[i].data.u64);
	return n;
}

static void until_served(int n)
{
	bool told;
	while (good && nr_served < n)
		if (turn(10000, &told, answer) <= 0 || (told && nr > n))
			good = false;
}

static void finish(int n)
{
	until_served(n);
	if (!good) /* some might never be answered */
		exit(116);
	struct answer a = tell('r', 0);
	for (int i = 0; i < n; i++)
		if (a.got[i] != 'a' + i)
			good = false;
	tell('x', 0);
}

static void rounds(int n)
{
	bool all = true;
	for (int i = 0; i < n; i++) {
		begin(MANY - i % 3);
		finish(MANY - i % 3);
		all &= good;
	}
	good = all;
}

/* A round, and one connection after the other: what is expected of the program then. */
static bool accustomed(void)
{
	rounds(1);
	bool all = good;
	for (int k = 0; k < 8; k++) {
		begin(1);
		finish(1);
		all &= good;
	}
	return all;
}

/* Until k connections were accepted. */
static void some(int n, int k)
{
	bool told;
	begin(n);
	while (good && nr < k)
		if (turn(10000, &told, answer) <= 0)
			good = false;
}

static void plain(void)
{
	how = 0;
	rounds(6);
	check(good, "rounds, by level");
	how = EPOLLET | EPOLLRDHUP;
	rounds(6);
	check(good, "rounds, by edge");
	how = EPOLLRDHUP;
	rounds(3);
	check(good, "rounds, by level, with EPOLLRDHUP");
}

/* ---- what comes in between ------------------------------------------------------------------------------------------------- */

static void files(void)
{
	rounds(4);
	bool all = good;
	for (int k = 1; k < 8; k++) {
		some(MANY, k);
		int a = opened(open("/dev/null", O_RDONLY | O_CLOEXEC)), b;
		bool told;
		turn(10000, &told, answer);
		b = opened(dup(a));
		closes(a);
		turn(10000, &told, answer);
		turn(10000, &told, answer);
		closes(b);
		finish(MANY);
		all &= good;
	}
	good = all;
	check(good, "open, dup and close of others in between");
}

static void names(int i)
{
	struct sockaddr_in who = { 0 };
	socklen_t len = sizeof who;
	int one = 1, set = 0;
	good &= !getpeername(fds[i], (void *)&who, &len) && who.sin_port == said.port[i];
	len = sizeof who;
	good &= !getsockname(fds[i], (void *)&who, &len) && who.sin_port == addr.sin_port;
	good &= !setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (i % 5 == 4) {
		len = sizeof set;
		good &= fcntl(fds[i], F_GETFL) & O_NONBLOCK && fcntl(fds[i], F_GETFD) == FD_CLOEXEC &&
			!getsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &set, &len) && set;
	}
	answer(i);
}

static void asks(void)
{
	bool told, all = true;
	rounds(4);
	for (int k = 0; k < 3; k++) {
		begin(MANY);
		while (good && nr_served < MANY)
			if (turn(10000, &told, names) <= 0)
				good = false;
		finish(MANY);
		all &= good;
	}
	good = all;
	check(good, "names, flags and options of them");
}

/* As Python's asyncio: accepts until there is none, asks what else there is, and only then registers them. */
static void registers_late(void)
{
	bool told, all = true;
	how = 0;
	for (int k = 0; k < 12; k++) {
		struct epoll_event ev[MANY + 2];
		begin(MANY - k % 4);
		const int n = MANY - k % 4;
		good &= epoll_wait(epfd, ev, MANY + 2, 10000) == 1 && ev[0].data.u64 == LISTENER;
		while (nr < n && good) {
			struct sockaddr_in who = { 0 };
			socklen_t len = sizeof who;
			int fd = accept4(lsock, (void *)&who, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
			good &= fd >= 0 && opened(fd) >= 0 && who.sin_port == said.port[nr];
			fds[nr++] = fd;
		}
		good &= accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) == -1 && errno == EAGAIN;
		for (int i = 0; i < k % 3; i++)
			good &= epoll_wait(epfd, ev, MANY + 2, 0) == 0;
		for (int i = 0; i < n; i++) {
			struct epoll_event add = { EPOLLIN, { .u64 = (uint64_t)i } };
			good &= !epoll_ctl(epfd, EPOLL_CTL_ADD, fds[i], &add);
		}
		good &= turn(0, &told, answer) == n && !told && nr_served == n;
		good &= epoll_wait(epfd, ev, MANY + 2, 0) == 0;
		finish(n);
		all &= good;
	}
	good = all;
	check(good, "accepts until there is none, and registers them then");
}

static int nr_left;
static void leaves(int i) { (void)i, nr_left++; }

/* A level is told again, with the listener, as long as there is something. */
static void levels(void)
{
	bool told, all = true;
	how = 0;
	rounds(4);
	for (int k = 2; k < 10; k++) {
		some(MANY, k);
		for (int turns = 0; turns < 3; turns++) {
			const int open = nr - nr_served;
			nr_left = 0;
			turn(10000, &told, leaves);
			good &= told && nr_left >= open - 1;
		}
		finish(MANY);
		all &= good;
	}
	good = all;
	check(good, "what is not read is told again, by level");
}

/* They are shut for writing, and closed when their other side is seen to have ended. */
static void shuts(int i)
{
	char c = 0;
	good &= read(fds[i], &c, 1) == 1 && c == 'a' + i && write(fds[i], &c, 1) == 1 && !shutdown(fds[i], SHUT_WR) &&
		!epoll_ctl(epfd, EPOLL_CTL_DEL, fds[i], NULL);
	closes(fds[i]);
	fds[i] = -1;
	nr_served++;
}

static void shut(void)
{
	bool told, all = true;
	rounds(4);
	for (int k = 0; k < 4; k++) {
		begin(MANY);
		while (good && nr_served < MANY)
			if (turn(10000, &told, shuts) <= 0)
				good = false;
		finish(MANY);
		all &= good;
	}
	good = all;
	check(good, "shutdown and EPOLL_CTL_DEL before the close");
}

static void out_of_it(void)
{
	struct epoll_event ev = { EPOLLIN, { .u64 = LISTENER } };
	bool told;
	rounds(4);
	some(MANY, 6);
	good &= !epoll_ctl(epfd, EPOLL_CTL_DEL, lsock, NULL);
	while (nr_served < nr && turn(10000, &told, answer) > 0)
		good &= !told;
	good &= turn(50, &told, answer) == 0;
	good &= !epoll_ctl(epfd, EPOLL_CTL_ADD, lsock, &ev);
	finish(MANY);
	check(good, "the listener is taken out of the epoll for a while");
}

/* How often the listener is told of, by one way. */
static bool told_by(int way)
{
	struct epoll_event ev[MANY + 2];
	struct pollfd p = { lsock, POLLIN, 0 }, q = { epfd, POLLIN, 0 };
	bool told = false;
	fd_set set;
	if (way == 0)
		return poll(&p, 1, 0) == 1 && p.revents == POLLIN;
	if (way == 1)
		return poll(&q, 1, 0) == 1 && q.revents == POLLIN;
	if (way == 2) {
		FD_ZERO(&set);
		FD_SET(lsock, &set);
		struct timeval now = { 0, 0 };
		return select(lsock + 1, &set, NULL, NULL, &now) == 1 && FD_ISSET(lsock, &set);
	}
	for (int i = 0, n = epoll_wait(epfd, ev, MANY + 2, 0); i < n; i++)
		told |= ev[i].data.u64 == LISTENER;
	return told;
}

/* What a wait has told of and is not accepted is told of by all that looks, and accepted later. */
static void not_yet(void)
{
	bool told, all = true;
	how = EPOLLRDHUP;
	for (int n = 1; n < 10; n += 4)
		for (int way = 0; way < 4; way++) {
			if (!way) { /* nobody has polled this one */
				closes(lsock);
				listener();
				numbers();
			}
			all &= accustomed();
			begin(n);
			struct epoll_event ev;
			good &= epoll_wait(epfd, &ev, 1, 10000) == 1 && ev.data.u64 == LISTENER && ev.events == EPOLLIN;
			good &= told_by(way) && told_by(3) && told_by(way);
			good &= turn(10000, &told, answer) == 1 && told && nr == 1;
			good &= n == 1 || (told_by(3) && told_by(way));
			finish(n);
			good &= !told_by(way) && !told_by(3);
			all &= good;
		}
	good = all;
	check(good, "what is not accepted yet is told of by epoll_wait, poll and select");
}

/* A connection that a wait has told of is there for an accept with other flags, too. */
static void other_flags(void)
{
	bool all = true;
	how = 0;
	for (int n = 1; n < 10; n += 4) {
		all &= accustomed();
		begin(n);
		as = SOCK_NONBLOCK;
		finish(n);
		as = SOCK_NONBLOCK | SOCK_CLOEXEC;
		all &= good;
	}
	good = all;
	check(good, "accepted with other flags than those before");
}

/* One wait names the listener once, also when more have come since some were told of. */
static void told_once(void)
{
	bool told, all = true;
	closes(lsock); /* nobody has polled the next one */
	listener();
	numbers();
	for (int n = 2; n < 6; n++) {
		rounds(5);
		struct epoll_event ev[MANY + 2];
		int times = 0;
		all &= good;
		some(n, 1);
		good &= nr_served == n || told_by(3);
		const struct answer more = tell('m', 3);
		memcpy(said.port + n, more.port + n, 3 * sizeof more.port[0]);
		for (int i = 0, k = epoll_wait(epfd, ev, MANY + 2, 10000); i < k; i++) {
			times += ev[i].data.u64 == LISTENER;
			good &= ev[i].data.u64 != LISTENER || ev[i].events == EPOLLIN;
		}
		good &= times == 1;
		while (good && nr_served < n + 3)
			if (turn(10000, &told, answer) <= 0)
				good = false;
		finish(n + 3);
		all &= good;
	}
	good = all;
	check(good, "one wait names the listener once");
}

static void no_numbers(void)
{
	struct rlimit was, l;
	bool told, all = true;
	getrlimit(RLIMIT_NOFILE, &was);
	for (int k = 2; k < 8; k++) {
		rounds(2);
		some(MANY, k);
		int fd = lowest();
		l = (struct rlimit){ (rlim_t)fd, was.rlim_max };
		good &= !setrlimit(RLIMIT_NOFILE, &l);
		good &= accept4(lsock, NULL, NULL, SOCK_NONBLOCK) == -1 && errno == EMFILE;
		struct pollfd p = { lsock, POLLIN, 0 };
		good &= poll(&p, 1, 0) == 1;
		setrlimit(RLIMIT_NOFILE, &was);
		turn(10000, &told, answer);
		finish(MANY);
		all &= good;
	}
	good = all;
	check(good, "no number left for a while");
}

/* ---- threads ------------------------------------------------------------------------------------------------------------ */

static void *reads(void *arg)
{
	int i = *(int *)arg;
	answer(i);
	return NULL;
}

static void by_another(int i)
{
	pthread_t t;
	if (i % 6 != 3) {
		answer(i);
		return;
	}
	pthread_create(&t, NULL, reads, &i);
	pthread_join(t, NULL);
}

static void threads(void)
{
	bool told, all = true;
	rounds(4);
	for (int k = 0; k < 3; k++) {
		begin(MANY);
		while (good && nr_served < MANY)
			if (turn(10000, &told, by_another) <= 0)
				good = false;
		finish(MANY);
		all &= good;
	}
	good = all;
	check(good, "another thread serves some of them");
}

static volatile bool stop;
static void *makes_calls(void *arg)
{
	while (!stop) {
		(void)!fcntl(lsock, F_GETFD);
		for (volatile int i = 0; i < 3000; i++)
			;
	}
	return arg;
}

static void beside(void)
{
	pthread_t t;
	rounds(4);
	stop = false;
	pthread_create(&t, NULL, makes_calls, NULL);
	rounds(12);
	bool was = good;
	stop = true;
	pthread_join(t, NULL);
	rounds(4);
	check(good && was, "another thread makes calls all the time");
}

/* ---- processes, and ends -------------------------------------------------------------------------------------------------- */

static void ends(void)
{
	int status;
	bool all = true;
	for (int k = 3; k < 7; k++) {
		rounds(4);
		some(MANY, k);
		closes(lsock);
		const int before = nr;
		for (int i = 0; i < before; i++)
			if (fds[i] >= 0)
				answer(i);
		struct answer a = tell('r', 0);
		for (int i = 0; i < MANY; i++)
			good &= a.got[i] == (i < before ? 'a' + i : 'R');
		tell('x', 0);
		all &= good;
		listener();
		numbers();
	}
	good = all;
	check(good, "those that wait as the listener is closed are reset");

	rounds(4);
	some(MANY, 5);
	const int next = lowest();
	pid_t pid = fork();
	if (!pid)
		_exit(fcntl(next, F_GETFD) != -1 || errno != EBADF || fcntl(next - 1, F_GETFD) == -1);
	waitpid(pid, &status, 0);
	good &= status == 0;
	finish(MANY);
	check(good, "a child in the middle has what its parent has, no more");
	rounds(4);
	check(good, "... and rounds then");
}

int main(void)
{
	if (!peer_start(read_all))
		return 117;
	epfd = epoll_create1(EPOLL_CLOEXEC);
	listener();
	numbers();
	plain();
	files();
	asks();
	levels();
	registers_late();
	how = EPOLLET | EPOLLRDHUP;
	shut();
	out_of_it();
	not_yet();
	other_flags();
	told_once();
	no_numbers();
	threads();
	beside();
	ends();
	printf("%d checks\n", checks);
	return first_failure;
}
