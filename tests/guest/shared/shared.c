/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A listener that a parent has made and its children accept from, one connection each time that their epoll tells of it, as
 * nginx's workers do: each connection is got once, in the order in which they came, under the lowest free number and with its
 * address; whatever becomes of the child in between, its parent gets the others. Passes on any Linux. Exit code: 0, or 1 + the
 * number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../counted.h"
#include "../peer.h"

#define ROUNDS 10 /* until a child's habits are known */

static int lsock;
static const char *self;

/* ---- a child that accepts ---------------------------------------------------------------------------------------------- */

struct report {
	int n, bad, line; /* connections; of them, what was wrong, where first */
	uint16_t port[MANY];
};

struct child {
	pid_t pid;
	int to, from;
};

static int epfd, base;
static uint32_t events = EPOLLIN | EPOLLRDHUP; /* that a child waits for */
static struct report said;

static void wrong_line(bool is, int line)
{
	if (is && !said.bad++)
		said.line = line;
}
#define wrong(is) wrong_line(is, __LINE__)

static bool is_open[MANY]; /* the connection of number base + i */

static int lowest(void)
{
	int i = 0;
	while (i < MANY && is_open[i])
		i++;
	return base + i;
}

static void accept_one(void)
{
	struct sockaddr_in who = { 0 };
	socklen_t len = sizeof who;
	int fd = accept4(lsock, (void *)&who, &len, SOCK_NONBLOCK);
	struct epoll_event ev = { EPOLLIN | EPOLLRDHUP | EPOLLET, { .fd = fd } };
	if (fd < 0) {
		wrong(errno != EAGAIN);
		return;
	}
	wrong(fd != lowest() || len != sizeof who || who.sin_family != AF_INET);
	if (fd >= base && fd < base + MANY)
		is_open[fd - base] = true;
	if (said.n < MANY)
		said.port[said.n++] = who.sin_port;
	wrong(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) != 0);
}

static void serve_one(int fd)
{
	char c = 0, d;
	wrong(read(fd, &c, 1) != 1 || c < 'a' || c >= 'a' + MANY);
	wrong(read(fd, &d, 1) != -1 || errno != EAGAIN);
	wrong(write(fd, &c, 1) != 1);
	wrong(close(fd) != 0);
	if (fd >= base && fd < base + MANY)
		is_open[fd - base] = false;
}

/* n of them, one by one; less, if none come for `patience` waits of 10 ms. */
static void serve(int n, int patience)
{
	int done = 0, idle = 0;
	while (done < n && idle < patience) {
		struct epoll_event ev[8];
		int k = epoll_wait(epfd, ev, 8, 10);
		idle = k ? 0 : idle + 1;
		wrong(k < 0);
		for (int i = 0; i < k; i++) {
			if (ev[i].data.fd != lsock) {
				serve_one(ev[i].data.fd);
				done++;
			} else if (said.n < n) {
				accept_one();
			}
		}
	}
	wrong(done != n && patience > 100);
}

static void spin(int ms)
{
	struct timespec a, b;
	clock_gettime(CLOCK_MONOTONIC, &a);
	do
		clock_gettime(CLOCK_MONOTONIC, &b);
	while ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < ms);
}

static void report(int from)
{
	if (write(from, &said, sizeof said) != sizeof said)
		_exit(3);
}

static int orders;

/* The same child goes on as a new program. */
static _Noreturn void again(int from)
{
	char number[4][12];
	const int fd[] = { orders, from, lsock, base };
	for (int i = 0; i < 4; i++) {
		snprintf(number[i], sizeof number[i], "%d", fd[i]);
		if (i < 3)
			fcntl(fd[i], F_SETFD, 0);
	}
	execl(self, self, number[0], number[1], number[2], number[3], NULL);
	_exit(5);
}

static void in_between(const struct order *o, int from)
{
	struct epoll_event ev = { EPOLLIN, { .fd = lsock } };
	struct rlimit was, l;
	int status, fd;
	switch (o->what) {
	case 'c':
		close(lsock);
		break;
	case 'd':
		wrong(epoll_ctl(epfd, EPOLL_CTL_DEL, lsock, NULL) != 0);
		break;
	case 'D':
		wrong(epoll_ctl(epfd, EPOLL_CTL_ADD, lsock, &ev) != 0);
		break;
	case 'w': /* for what does not come here, while others come */
		fd = epoll_create1(EPOLL_CLOEXEC);
		wrong(fd < 0 || epoll_wait(fd, &ev, 1, 100) != 0);
		close(fd);
		break;
	case 'p':
		spin(200);
		break;
	case 'f':
		if (!fork())
			_exit(fcntl(base, F_GETFD) != -1 || errno != EBADF);
		wrong(wait(&status) < 0 || status);
		break;
	case 'o':
		fd = open("/dev/null", O_RDONLY);
		wrong(fd != base);
		close(fd);
		break;
	case 'l':
		getrlimit(RLIMIT_NOFILE, &was);
		l = (struct rlimit){ (rlim_t)base, was.rlim_max };
		setrlimit(RLIMIT_NOFILE, &l);
		wrong(accept4(lsock, NULL, NULL, SOCK_NONBLOCK) != -1 || errno != EMFILE);
		setrlimit(RLIMIT_NOFILE, &was);
		break;
	case 'x':
		report(from);
		_exit(0);
	case 'k':
		raise(SIGTERM);
		break;
	case 'e':
		execl(self, self, "sleep", NULL);
		break;
	case 'E':
		report(from);
		again(from);
	}
}

static void child(int orders_fd, int from)
{
	struct epoll_event ev = { events, { .fd = lsock } };
	struct order o;
	orders = orders_fd;
	epfd = epoll_create1(EPOLL_CLOEXEC);
	do /* no number below is free */
		base = open("/dev/null", O_RDONLY | O_CLOEXEC);
	while (base >= 0 && (base < epfd || base < from || base < orders || base < lsock || base < to_peer[1]));
	close(base);
	if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, lsock, &ev))
		_exit(4);
	while (read(orders, &o, sizeof o) == sizeof o) {
		said = (struct report){ 0 };
		serve(o.n, o.what == 't' ? 20 : 500);
		in_between(&o, from);
		report(from);
	}
	_exit(0);
}

static struct child begin(void)
{
	int to[2], from[2];
	if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
		exit(117);
	struct child c = { fork(), to[1], from[0] };
	if (!c.pid) {
		close(to[1]);
		close(from[0]);
		child(to[0], from[1]);
	}
	close(to[0]);
	close(from[1]);
	return c;
}

static bool hear(struct child *c, struct report *r)
{
	bool is = read(c->from, r, sizeof *r) == sizeof *r && !r->bad;
	if (!is)
		printf("# %d connections, %d times wrong, first in line %d\n", r->n, r->bad, r->line);
	return is;
}

/* With nobody else's report outstanding. */
static bool ask(struct child *c, char what, int n, struct report *r)
{
	send_order(c->to, what, n);
	return hear(c, r);
}

static int end(struct child *c)
{
	int status;
	close(c->to);
	close(c->from);
	waitpid(c->pid, &status, 0);
	return status;
}

/* ---- the parent -------------------------------------------------------------------------------------------------------- */

static bool reuse;

static void listener(void)
{
	if ((lsock = peer_listener(reuse)) < 0)
		exit(116);
	tell('a', addr.sin_port);
}

static bool ready_by(int how)
{
	struct pollfd p = { lsock, POLLIN, 0 };
	struct timeval tv = { 5, 0 };
	fd_set in;
	FD_ZERO(&in);
	FD_SET(lsock, &in);
	if (how == 0)
		return poll(&p, 1, 5000) == 1 && p.revents == POLLIN;
	if (how == 1)
		return select(lsock + 1, &in, NULL, NULL, &tv) == 1 && FD_ISSET(lsock, &in);
	struct epoll_event ev = { EPOLLIN, { .u64 = 77 } };
	int fd = epoll_create1(EPOLL_CLOEXEC);
	bool is = !epoll_ctl(fd, EPOLL_CTL_ADD, lsock, &ev) && epoll_wait(fd, &ev, 1, 5000) == 1 && ev.data.u64 == 77;
	close(fd);
	return is;
}

/* Those from number n on, here. */
static bool others(const struct answer *a, int n)
{
	for (int i = n; i < MANY; i++) {
		struct sockaddr_in who = { 0 };
		socklen_t len = sizeof who;
		char c = 0;
		if (!ready_by(i % 3))
			return false;
		int fd = accept4(lsock, (void *)&who, &len, 0);
		if (fd < 0 || who.sin_port != a->port[i] || fcntl(fd, F_GETFL) & O_NONBLOCK ||
		    fcntl(fd, F_GETFD) & FD_CLOEXEC || read(fd, &c, 1) != 1 || c != 'a' + i || write(fd, &c, 1) != 1)
			return false;
		struct linger l = { 1, 1 };
		len = sizeof l;
		if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &len) || l.l_onoff || close(fd))
			return false;
	}
	return accept4(lsock, NULL, NULL, 0) == -1 && errno == EAGAIN;
}

static bool all_answered(void)
{
	struct answer a = tell('r', 0);
	bool good = true;
	for (int i = 0; i < MANY; i++)
		good &= a.got[i] == 'a' + i;
	tell('x', 0);
	return good;
}

static bool in_order(const struct answer *a, const struct report *r, int from, int n)
{
	bool good = r->n == n;
	for (int i = 0; i < n; i++)
		good &= r->port[i] == a->port[from + i];
	for (int i = 0; !good && i < r->n; i++)
		printf("# %d of %d, wanted %d from %d: port %d, wanted %d\n", i, r->n, n, from, r->port[i],
		       a->port[(from + i) % MANY]);
	return good;
}

/* All of a round's, n times, by one child. */
static bool rounds(struct child *c, int n)
{
	bool good = true;
	for (int i = 0; i < n; i++) {
		struct report r;
		struct answer a = tell('c', MANY);
		good &= ask(c, 's', MANY, &r) && in_order(&a, &r, 0, MANY) && all_answered();
	}
	return good;
}

/* The child gets some of them, does what it is told, and leaves the others. */
static void leaves(char what, const char *name)
{
	struct child c = begin();
	struct report r;
	bool good = rounds(&c, ROUNDS);
	struct answer a = tell('c', MANY);
	if (what == 'k' || what == 'e')
		send_order(c.to, what, 7);
	else
		good &= ask(&c, what, 7, &r) && in_order(&a, &r, 0, 7);
	if (what == 'k')
		good &= waitpid(c.pid, NULL, 0) == c.pid;
	good &= others(&a, 7) && all_answered();
	if (what == 'c' || what == 'd') { /* the child sees none of them any more */
		a = tell('c', MANY);
		nanosleep(&(struct timespec){ 0, 20000000 }, NULL);
		good &= ask(&c, 's', 0, &r) && r.n == 0 && others(&a, 0) && all_answered();
	}
	end(&c);
	check(good, name);
}

/* ... and goes on with them. */
static void goes_on(char what, const char *name)
{
	struct child c = begin();
	struct report r, s;
	bool good = rounds(&c, ROUNDS);
	for (int i = 0; i < 3; i++) {
		struct answer a = tell('c', MANY);
		good &= ask(&c, what, 7, &r) && in_order(&a, &r, 0, 7);
		if (what == 'd')
			good &= ask(&c, 'D', 0, &s);
		good &= ask(&c, 's', MANY - 7, &s) && in_order(&a, &s, 7, MANY - 7) && all_answered();
	}
	end(&c);
	check(good, name);
}

static void computes(void)
{
	struct child c = begin();
	struct report r;
	bool good = rounds(&c, ROUNDS);
	struct answer a = tell('c', MANY);
	send_order(c.to, 'p', 7);
	nanosleep(&(struct timespec){ 0, 100000000 }, NULL);
	good &= others(&a, 7) && hear(&c, &r) && in_order(&a, &r, 0, 7) && all_answered();
	check(good, "a child computes, and its parent gets the others meanwhile");
	end(&c);
}

static void halted(int sig, const char *what)
{
	struct child c = begin();
	struct report r;
	bool good = rounds(&c, ROUNDS);
	struct answer a = tell('c', MANY);
	good &= ask(&c, 'w', 7, &r) && in_order(&a, &r, 0, 7);
	kill(c.pid, sig);
	good &= others(&a, 7) && all_answered();
	if (sig == SIGSTOP) {
		kill(c.pid, SIGCONT);
		good &= rounds(&c, 1);
	}
	end(&c);
	check(good, what);
}

/* Two of them: all are served, and both had some. */
static void two(void)
{
	struct child c = begin(), d = begin();
	struct report r, s;
	bool good = rounds(&c, ROUNDS) && rounds(&d, ROUNDS);
	int of_c = 0, of_d = 0;
	for (int i = 0; i < 20; i++) {
		tell('c', MANY);
		send_order(c.to, 's', MANY / 2);
		send_order(d.to, 's', MANY / 2);
		good &= hear(&c, &r);
		good &= hear(&d, &s);
		of_c += r.n;
		of_d += s.n;
		good &= r.n + s.n == MANY && all_answered();
	}
	check(good && of_c == 20 * MANY / 2 && of_d == of_c, "two children share the work");
	/* One quits in the middle of it: the other one gets what it had. */
	struct answer a = tell('c', MANY);
	good = ask(&c, 'c', 5, &r) && in_order(&a, &r, 0, 5);
	good &= ask(&d, 's', MANY - 5, &s) && in_order(&a, &s, 5, MANY - 5) && all_answered();
	check(good, "one quits, and the other one gets its");
	end(&d); /* which has the first one's pipes */
	end(&c);
}

/* ---- killed, and stopped, at any moment ---------------------------------------------------------------------------------- */

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* What nobody else takes: how many, within ms of the last one. */
static int serve_rest(int ms)
{
	struct pollfd p = { lsock, POLLIN, 0 };
	int n = 0;
	while (poll(&p, 1, ms) == 1) {
		char c = 0;
		int fd = accept4(lsock, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			continue;
		n += read(fd, &c, 1) == 1 && write(fd, &c, 1) == 1;
		close(fd);
	}
	return n;
}

/* How many of a round's were answered; -1: one by another's byte, or twice. lost: neither answered nor ended. */
static int answered(void)
{
	struct answer a = tell('r', 0);
	int n = 0;
	for (int i = 0; i < MANY; i++) {
		if (a.got[i] != 'a' + i && a.got[i] != 'R' && a.got[i] != 'E') {
			printf("# connection %d: %c\n", i, a.got[i]);
			n = -MANY;
		}
		n += a.got[i] == 'a' + i;
	}
	tell('x', 0);
	return n < 0 ? -1 : n;
}

#define AT_ONCE 9 /* that a child has accepted and not answered, at most: see serve() */

/* A child is ended or stopped at any moment. What it has not accepted by then is its parent's. */
static void in_the_middle(int sig)
{
	bool good = true;
	int lost = 0, shared = 0;
	for (int i = 0; i < 12; i++) {
		struct child c = begin();
		struct report r;
		good &= rounds(&c, 2);
		uint64_t took = now_us();
		good &= rounds(&c, 1);
		took = now_us() - took;
		tell('c', MANY);
		send_order(c.to, 't', MANY);
		uint64_t until = now_us() + took * (uint64_t)(i + 1) / 40;
		while (now_us() < until)
			;
		kill(c.pid, sig);
		int rest = serve_rest(300);
		shared += rest && rest < MANY;
		if (sig == SIGSTOP) {
			kill(c.pid, SIGCONT);
			struct pollfd p = { c.from, POLLIN, 0 };
			rest += serve_rest(50);
			while (poll(&p, 1, 20000) == 1 && read(c.from, &r, sizeof r) != sizeof r)
				;
			good &= r.n + rest == MANY;
		}
		int n = answered();
		good &= n >= 0;
		lost += MANY - n > AT_ONCE || (sig == SIGSTOP && n != MANY);
		if (MANY - n > AT_ONCE)
			printf("# %d of %d answered, %d by the parent\n", n, MANY, rest);
		end(&c);
	}
	check(good && !lost, sig == SIGKILL ? "a child is killed at any moment: what it had not accepted others get"
					    : "a child is stopped at any moment: what it had not accepted others get");
	printf("# %d times both had some\n", shared);
}

/* ---- other ways to have it, and to wait for it ----------------------------------------------------------------------------- */

/* n children with the events: each connection is served once. */
static void several(uint32_t how, int n, const char *name)
{
	struct child c[4];
	struct report r;
	bool good = true;
	int all = 0;
	events = how;
	for (int i = 0; i < n; i++)
		c[i] = begin();
	for (int i = 0; i < n; i++)
		good &= rounds(&c[i], 2);
	for (int k = 0; k < 10; k++) {
		tell('c', MANY);
		for (int i = 0; i < n; i++)
			send_order(c[i].to, 's', MANY / n);
		for (int i = 0; i < n; i++)
			all += hear(&c[i], &r) ? r.n : -MANY;
		good &= all_answered();
	}
	while (n--)
		end(&c[n]);
	events = EPOLLIN | EPOLLRDHUP;
	check(good && all == 10 * MANY, name);
}

/* Somebody gets the listener who is no child of those who have it. */
static void passed(void)
{
	int sv[2], fd = -1, status;
	char byte = 0;
	struct iovec v = { &byte, 1 };
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} ctl = { .h = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &ctl, .msg_controllen = sizeof ctl };
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv))
		exit(114);
	int was = lsock;
	pid_t p = fork(); /* before there is a listener */
	if (!p) {
		if (recvmsg(sv[1], &m, 0) != 1)
			_exit(1);
		memcpy(&lsock, CMSG_DATA(&ctl.h), sizeof lsock);
		while (recv(sv[1], &byte, 1, MSG_DONTWAIT) < 0)
			serve_rest(10);
		_exit(0);
	}
	close(was);
	listener();
	struct child c = begin();
	struct report r;
	bool good = rounds(&c, ROUNDS);
	fd = lsock;
	memcpy(CMSG_DATA(&ctl.h), &fd, sizeof fd);
	good &= sendmsg(sv[0], &m, 0) == 1;
	for (int i = 0; i < 5; i++) {
		tell('c', MANY);
		good &= ask(&c, 't', MANY, &r) && answered() == MANY;
	}
	good &= write(sv[0], "", 1) == 1 && waitpid(p, &status, 0) == p && !status;
	close(sv[0]);
	close(sv[1]);
	end(&c);
	check(good, "one gets the listener by a message");
}

/* The listener stays open over an exec, and the new program accepts from it. */
static void executes(void)
{
	struct child c = begin();
	struct report r;
	bool good = rounds(&c, ROUNDS);
	for (int i = 0; i < 3; i++) {
		struct answer a = tell('c', MANY);
		good &= ask(&c, 'E', 7, &r) && in_order(&a, &r, 0, 7);
		good &= ask(&c, 's', MANY - 7, &r) && in_order(&a, &r, 7, MANY - 7) && all_answered();
		good &= rounds(&c, 2);
	}
	end(&c);
	check(good, "a child executes, and the new program goes on with them");
}

/* Two listeners of one port: each process has its own. */
static void reuseport(void)
{
	int on = 1, was = lsock;
	close(was);
	reuse = true;
	listener();
	struct child c = begin();
	struct report r;
	bool good = rounds(&c, ROUNDS);
	int second = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	good &= !setsockopt(second, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) &&
		!bind(second, (void *)&addr, sizeof addr) && !listen(second, 64);
	for (int i = 0; i < 5; i++) {
		tell('c', MANY);
		send_order(c.to, 't', MANY); /* those of its listener */
		int first = lsock;
		lsock = second;
		int mine = serve_rest(200);
		lsock = first;
		good &= hear(&c, &r) && r.n + mine == MANY && answered() == MANY;
	}
	close(second);
	end(&c);
	check(good, "two listeners of one port");
}

static void gone(void)
{
	struct child c = begin();
	bool good = rounds(&c, ROUNDS);
	end(&c);
	int n = 0;
	tell('z', MANY);
	for (int fd; (fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK)) >= 0; n++) {
		char b;
		long r = read(fd, &b, 1);
		good &= r == 1 || (r == -1 && errno == ECONNRESET);
		close(fd);
	}
	check(good && errno == EAGAIN && n == MANY, "connections whose other side has gone");
}

/* The last one closes it: those that wait are reset. */
static void last(void)
{
	struct child c = begin();
	struct report r;
	bool good = rounds(&c, ROUNDS);
	struct answer a = tell('c', MANY);
	close(lsock);
	good &= ask(&c, 'x', 7, &r) && in_order(&a, &r, 0, 7);
	end(&c);
	a = tell('r', 0);
	for (int i = 0; i < MANY; i++)
		good &= a.got[i] == (i < 7 ? 'a' + i : 'R');
	check(good, "the last one ends, and those that wait are reset");
	tell('x', 0);
}

int main(int argc, char **argv)
{
	self = argv[0];
	if (argc > 4) {
		lsock = atoi(argv[3]);
		fcntl(lsock, F_SETFD, FD_CLOEXEC);
		to_peer[1] = atoi(argv[4]) - 1;
		child(atoi(argv[1]), atoi(argv[2]));
	}
	if (argc > 1) {
		pause();
		return 0;
	}
	signal(SIGPIPE, SIG_IGN);
	if (pipe2(to_peer, O_CLOEXEC) || pipe2(from_peer, O_CLOEXEC))
		return 115;
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	pid_t p = fork();
	if (!p) {
		close(to_peer[1]);
		close(from_peer[0]);
		peer(read_all);
	}
	close(to_peer[0]);
	close(from_peer[1]);
	listener();

	struct child c = begin();
	check(rounds(&c, 2 * ROUNDS), "rounds");
	end(&c);
	leaves('c', "a child closes the listener, and its parent gets the others");
	leaves('d', "... takes it out of its epoll");
	leaves('x', "... exits");
	leaves('k', "... is ended by a signal");
	goes_on('w', "a child waits for something else, and goes on");
	goes_on('f', "... forks");
	goes_on('o', "... opens a file, which gets the lowest number");
	goes_on('l', "... has no number left for a while");
	goes_on('d', "... takes it out of its epoll, and puts it in again");
	computes();
	halted(SIGKILL, "a child that waited is killed, and its parent gets the others");
	halted(SIGSTOP, "a child is stopped, and its parent gets the others");
	two();
	in_the_middle(SIGKILL);
	in_the_middle(SIGSTOP);
	several(EPOLLIN | EPOLLEXCLUSIVE, 2, "two children, told one at a time");
	several(EPOLLIN | EPOLLEXCLUSIVE, 4, "four of them");
	several(EPOLLIN, 4, "four children, all told");
	executes();
	gone();
	passed();
	reuseport();
	last();
	close(to_peer[1]);
	waitpid(p, NULL, 0);
	return first_failure;
}
