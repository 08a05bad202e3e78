/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Servers with a connection for each request, or a process for each connection, as the program sees them: connections
 * that are shut down before they are closed; that a parent accepts and leaves to a child, with all who may hold them;
 * how long files are that a server asks the length of. The client is a process of its own. Passes on any Linux. Exit
 * code: 0, or 1 + the number of the first check that failed (at most 120).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../clock.h"
#include "../counted.h"

static int lsock, epfd, to_client[2], from_client[2];
static struct sockaddr_in addr;

/* ---- the client: connects, sends, receives, as it is told -------------------------------------------------------- */

enum { CONNECT = 1, SEND, RECV, CLOSE, RESET };
struct order {
	int what, n;
	long arg;
	char text[40];
};
static char got[40];
#define RESETS 40

static void client(void)
{
	static char buf[1 << 16];
	int fd[8] = { 0 };
	struct order o;
	while (read(to_client[0], &o, sizeof o) == sizeof o) {
		struct linger hard = { 1, 0 };
		long r = 0, n = 0;
		struct timeval t = { 30, 0 };
		switch (o.what) {
		case CONNECT:
			fd[o.n] = socket(AF_INET, SOCK_STREAM, 0);
			setsockopt(fd[o.n], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
			r = connect(fd[o.n], (void *)&addr, sizeof addr);
			break;
		case SEND:
			r = send(fd[o.n], o.text, strlen(o.text), MSG_NOSIGNAL);
			break;
		case RECV: /* up to arg bytes, or the end */
			memset(buf, 0, sizeof o.text);
			while (n < o.arg) {
				char *at = buf + (n < 40 ? n : 40);
				long room = buf + sizeof buf - at;
				if ((r = recv(fd[o.n], at, (size_t)(o.arg - n < room ? o.arg - n : room), 0)) <= 0)
					break;
				n += r;
			}
			r = r < 0 ? -errno : n;
			break;
		case RESET:
			setsockopt(fd[o.n], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
			__attribute__((fallthrough));
		case CLOSE:
			r = close(fd[o.n]);
			break;
		}
		memcpy(o.text, buf, sizeof o.text);
		o.arg = r;
		if (write(from_client[1], &o, sizeof o) != sizeof o)
			break;
	}
	_exit(0);
}

static void ask(int what, int n, long arg, const char *text)
{
	struct order o = { .what = what, .n = n, .arg = arg };
	snprintf(o.text, sizeof o.text, "%s", text);
	if (write(to_client[1], &o, sizeof o) != sizeof o)
		exit(119);
}

static long answer(void)
{
	struct order o;
	if (read(from_client[0], &o, sizeof o) != sizeof o)
		exit(119);
	memcpy(got, o.text, sizeof got);
	return o.arg;
}

static long tell(int what, int n, long arg, const char *text)
{
	ask(what, n, arg, text);
	return answer();
}

static bool receives(int n, const char *text)
{
	return tell(RECV, n, (long)strlen(text), "") == (long)strlen(text) && !strcmp(got, text);
}

/* ---- connections -------------------------------------------------------------------------------------------------- */

static int accepted(int n, int flags)
{
	if (tell(CONNECT, n, 0, ""))
		exit(118);
	int fd = accept4(lsock, NULL, NULL, SOCK_CLOEXEC | flags);
	if (fd < 0)
		exit(117);
	return fd;
}

static void in_epoll(int fd, uint32_t events)
{
	struct epoll_event ev = { events, { .u64 = (unsigned)fd } };
	if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev))
		exit(116);
}

/* What the epoll tells of fd within ms; 0 = nothing. */
static uint32_t turn(int fd, int ms)
{
	struct epoll_event ev[8];
	uint32_t told = 0;
	int n = epoll_wait(epfd, ev, 8, ms);
	for (int i = 0; i < n; i++)
		if (ev[i].data.u64 == (unsigned)fd)
			told = ev[i].events;
	return told;
}

/* One request and its reply, in a turn; true: as it should be. */
static bool served(int n, int fd, const char *text)
{
	char b[64];
	ask(SEND, n, 0, text);
	if (answer() != (long)strlen(text) || !turn(fd, 30000))
		return false;
	long r = read(fd, b, sizeof b);
	return r == (long)strlen(text) && !memcmp(b, text, (size_t)r) && write(fd, b, (size_t)r) == r &&
	       read(fd, b, sizeof b) == -1 && errno == EAGAIN && receives(n, text);
}

/* ---- shutdown ------------------------------------------------------------------------------------------------------- */

static void test_shutdown(void)
{
	static char big[300000], b[64];
	struct epoll_event none;
	for (int i = 0; i < 20; i++) {
		int fd = accepted(0, SOCK_NONBLOCK);
		in_epoll(fd, EPOLLIN);
		ask(SEND, 0, 0, "request");
		answer();
		bool ok = turn(fd, 30000) && read(fd, b, sizeof b) == 7 && write(fd, "reply", 5) == 5 &&
			  !shutdown(fd, SHUT_WR);
		if (i % 3)
			ok = ok && !epoll_ctl(epfd, EPOLL_CTL_DEL, fd, &none);
		ok = ok && !close(fd) && tell(RECV, 0, 6, "") == 5 && !strcmp(got, "reply");
		if (!ok || i == 19)
			check(ok, "shutdown: twenty connections, reply and end");
		if (!ok)
			return;
		tell(CLOSE, 0, 0, "");
	}

	int fd = accepted(0, SOCK_NONBLOCK);
	in_epoll(fd, EPOLLIN | EPOLLRDHUP);
	check(served(0, fd, "one"), "a request");
	ask(SEND, 0, 0, "two");
	answer();
	check(turn(fd, 30000) && read(fd, b, sizeof b) == 3 && write(fd, "2", 1) == 1 && !shutdown(fd, SHUT_WR),
	      "shutdown: after a write");
	fails(write(fd, "x", 1), EPIPE, "write: after it");
	check(!shutdown(fd, SHUT_WR), "shutdown: once more");
	check(tell(RECV, 0, 9, "") == 1 && !strcmp(got, "2"), "the other side has the reply, and the end");
	check(tell(SEND, 0, 0, "three") == 5 && turn(fd, 30000) == EPOLLIN && read(fd, b, sizeof b) == 5,
	      "it may still send");
	fails(read(fd, b, sizeof b), EAGAIN, "read: nothing more");
	tell(CLOSE, 0, 0, "");
	uint32_t e = turn(fd, 30000);
	check((e & (EPOLLIN | EPOLLHUP | EPOLLRDHUP)) == (EPOLLIN | EPOLLHUP | EPOLLRDHUP), "both are shut: EPOLLHUP");
	check(read(fd, b, sizeof b) == 0, "read: the end");
	close(fd);

	fd = accepted(0, SOCK_NONBLOCK);
	in_epoll(fd, EPOLLIN);
	for (int i = 0; i < 3; i++) {
		bool ok = tell(SEND, 0, 0, "first") == 5 && turn(fd, 30000) && read(fd, b, sizeof b) == 5;
		getpgid(1);
		ok = ok && read(fd, b, sizeof b) == -1 && errno == EAGAIN && read(fd, b, sizeof b) == -1 &&
		     errno == EAGAIN;
		ok = ok && tell(SEND, 0, 0, "second") == 6 && turn(fd, 30000) && read(fd, b, sizeof b) == 6;
		ok = ok && tell(SEND, 0, 0, "third") == 5 && read(fd, b, sizeof b) == 5 && !memcmp(b, "third", 5);
		getpgid(1);
		ok = ok && read(fd, b, sizeof b) == -1 && errno == EAGAIN;
		if (!ok || i == 2)
			check(ok, "read: nothing, and what has come since, with calls in between");
	}
	tell(CLOSE, 0, 0, "");
	getpgid(1);
	check(read(fd, b, sizeof b) == 0, "read: the end that has come since");
	close(fd);

	fd = accepted(0, SOCK_NONBLOCK);
	in_epoll(fd, EPOLLIN | EPOLLOUT | EPOLLET);
	ask(SEND, 0, 0, "edge");
	answer();
	nap(10);
	check(turn(fd, 30000) & EPOLLIN && read(fd, b, sizeof b) == 4, "edge: a request");
	check(write(fd, "e", 1) == 1 && !shutdown(fd, SHUT_WR), "edge: reply and shutdown");
	check(turn(fd, 30000) & EPOLLOUT, "edge: the shutdown is one");
	check(!turn(fd, 0), "edge: told once");
	fails(shutdown(fd, 77), EINVAL, "shutdown: of nothing known");
	close(fd);
	tell(CLOSE, 0, 0, "");

	fd = accepted(0, SOCK_NONBLOCK);
	in_epoll(fd, EPOLLIN);
	check(served(0, fd, "four"), "a request");
	ask(SEND, 0, 0, "five");
	answer();
	check(turn(fd, 30000) && read(fd, b, sizeof b) == 4, "a request before a reset");
	tell(RESET, 0, 0, "");
	fails(shutdown(fd, SHUT_WR), ENOTCONN, "shutdown: reset, as the client has told");
	close(fd);

	/* A write fails likewise: with the reset itself, then with a broken pipe. */
	int reset = 0, broken = 0;
	for (int i = 0; i < RESETS; i++) {
		fd = accepted(0, SOCK_NONBLOCK);
		in_epoll(fd, EPOLLIN);
		if (!served(0, fd, "six") || tell(SEND, 0, 0, "seven") < 0 || !turn(fd, 30000) ||
		    read(fd, b, sizeof b) != 5)
			break;
		tell(RESET, 0, 0, "");
		int first = write(fd, "e", 1) == -1 ? errno : 0;
		int second = write(fd, "e", 1) == -1 ? errno : 0;
		reset += first == ECONNRESET;
		broken += second == EPIPE;
		if (first != ECONNRESET || second != EPIPE)
			printf("# round %d: %s, then %s\n", i, strerror(first), strerror(second));
		close(fd);
	}
	check(reset == RESETS && broken == RESETS, "write: reset, as the client has told, then a broken pipe");

	fd = accepted(0, SOCK_NONBLOCK);
	in_epoll(fd, EPOLLIN);
	memset(big, 'b', sizeof big);
	ask(SEND, 0, 0, "big");
	answer();
	check(turn(fd, 30000) && read(fd, b, sizeof b) == 3, "a request for much");
	long n = 0, r;
	while ((r = write(fd, big, sizeof big)) > 0)
		n += r;
	ask(RECV, 0, n + 1, "");
	check(!shutdown(fd, SHUT_WR) && !close(fd), "shutdown: with much on its way");
	check(answer() == n, "all of it arrives, then the end");
	tell(CLOSE, 0, 0, "");
}

/* ---- from parent to child ------------------------------------------------------------------------------------------- */

static int go[2], done[2]; /* between parent and child */

static void signal_to(int fd)
{
	if (write(fd, "", 1) != 1)
		_exit(99);
}

static void wait_for(int fd)
{
	char c;
	if (read(fd, &c, 1) != 1)
		_exit(99);
}

/* A child that has an epoll of its own with fd in it. */
static pid_t child_with(int fd)
{
	pid_t p = fork();
	if (p)
		return p;
	alarm(100);
	close(epfd);
	epfd = epoll_create1(EPOLL_CLOEXEC);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	in_epoll(fd, EPOLLIN);
	return 0;
}

static int status_of(pid_t p)
{
	int s = -1;
	return waitpid(p, &s, 0) == p && WIFEXITED(s) ? WEXITSTATUS(s) : -1;
}

static int serve(int n, int fd, int times)
{
	char text[32];
	for (int i = 0; i < times; i++) {
		snprintf(text, sizeof text, "request %d", i);
		if (!served(n, fd, text))
			return 1;
	}
	return 0;
}

static void test_left(void)
{
	char b[64];
	int fd = accepted(0, 0);
	pid_t p = child_with(fd);
	if (!p)
		_exit(serve(0, fd, 50));
	close(fd);
	check(status_of(p) == 0, "a child serves what its parent has accepted");
	check(tell(RECV, 0, 9, "") == 0, "its end is the connection's");
	tell(CLOSE, 0, 0, "");

	/* The parent reads on: what it has read the child must not have, and the other way round. */
	fd = accepted(0, 0);
	p = child_with(fd);
	if (!p) {
		int bad = serve(0, fd, 5);
		for (int i = 0; i < 5 && !bad; i++) {
			ask(SEND, 0, 0, "parentchild");
			answer();
			bad |= !turn(fd, 30000);
			signal_to(done[1]);
			wait_for(go[0]); /* the parent has read six bytes */
			bad |= read(fd, b, sizeof b) != 5 || memcmp(b, "child", 5);
		}
		signal_to(done[1]);
		wait_for(go[0]); /* it has closed its own */
		_exit(bad | serve(0, fd, 20));
	}
	for (int i = 0; i < 5; i++) {
		wait_for(done[0]);
		bool ok = recv(fd, b, 6, MSG_DONTWAIT) == 6 && !memcmp(b, "parent", 6);
		signal_to(go[1]);
		if (!ok || i == 4)
			check(ok, "a parent that has kept it reads, too");
	}
	wait_for(done[0]);
	close(fd);
	signal_to(go[1]);
	check(status_of(p) == 0, "the child's is what its parent has left, later all");
	tell(CLOSE, 0, 0, "");

	/* Two children, and the parent goes. */
	fd = accepted(0, 0);
	p = child_with(fd);
	if (!p) {
		int bad = serve(0, fd, 1);
		signal_to(done[1]);
		for (int i = 0; i < 5; i++) {
			wait_for(go[0]);
			bad |= serve(0, fd, 2);
			signal_to(done[1]);
		}
		_exit(bad);
	}
	wait_for(done[0]);
	pid_t q = child_with(fd);
	if (!q) {
		int bad = 0;
		for (int i = 0; i < 5; i++) {
			bad |= serve(0, fd, 2);
			signal_to(go[1]);
			wait_for(done[0]);
		}
		_exit(bad);
	}
	close(fd);
	check(status_of(q) == 0 && status_of(p) == 0, "two children by turns");
	tell(CLOSE, 0, 0, "");

	/* A grandchild, left by the child. */
	fd = accepted(0, 0);
	p = fork();
	if (!p) {
		q = child_with(fd);
		if (!q)
			_exit(serve(0, fd, 30));
		close(fd);
		_exit(status_of(q));
	}
	close(fd);
	check(status_of(p) == 0, "a grandchild");
	tell(CLOSE, 0, 0, "");

	/* A child that has served forks: its own child takes over, while it still has it. */
	fd = accepted(0, 0);
	p = child_with(fd);
	if (!p) {
		int bad = serve(0, fd, 10);
		q = fork();
		if (!q) {
			bad = serve(0, fd, 10);
			_exit(bad);
		}
		bad |= status_of(q);
		_exit(bad | serve(0, fd, 10));
	}
	close(fd);
	check(status_of(p) == 0, "a child's child, and the child again");
	tell(CLOSE, 0, 0, "");

	/* Another number of it. */
	fd = accepted(0, 0);
	p = fork();
	if (!p) {
		alarm(100);
		int d = dup(fd), bad = d < 0;
		close(epfd);
		epfd = epoll_create1(EPOLL_CLOEXEC);
		fcntl(fd, F_SETFL, O_NONBLOCK);
		in_epoll(fd, EPOLLIN);
		bad |= serve(0, fd, 5);
		for (int i = 0; i < 5; i++) {
			ask(SEND, 0, 0, "firstsecond");
			answer();
			bad |= !turn(fd, 30000) || read(d, b, 5) != 5 || memcmp(b, "first", 5) ||
			       read(fd, b, sizeof b) != 6 || memcmp(b, "second", 6);
		}
		close(fd);
		bad |= tell(SEND, 0, 0, "third") != 5 || !turn(fd, 30000) || read(d, b, sizeof b) != 5;
		_exit(bad);
	}
	close(fd);
	check(status_of(p) == 0, "two numbers of it in a child");
	tell(CLOSE, 0, 0, "");

	/* Passed on by the child. */
	fd = accepted(0, 0);
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		exit(115);
	p = child_with(fd);
	if (!p) {
		char c = 0, space[CMSG_SPACE(sizeof fd)] __attribute__((aligned(8))) = { 0 };
		struct iovec v = { &c, 1 };
		struct msghdr m = {
			.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space
		};
		struct cmsghdr *cm = CMSG_FIRSTHDR(&m);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(cm), &fd, sizeof fd);
		int bad = sendmsg(pair[1], &m, 0) != 1;
		wait_for(go[0]); /* the parent has closed its first */
		bad |= serve(0, fd, 5);
		for (int i = 0; i < 5; i++) {
			ask(SEND, 0, 0, "parentchild");
			answer();
			bad |= !turn(fd, 30000);
			signal_to(done[1]);
			wait_for(go[0]);
			bad |= read(fd, b, sizeof b) != 5 || memcmp(b, "child", 5);
		}
		_exit(bad);
	}
	char c, space[CMSG_SPACE(sizeof fd)] __attribute__((aligned(8)));
	struct iovec v = { &c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };
	int other = -1;
	if (recvmsg(pair[0], &m, 0) == 1 && CMSG_FIRSTHDR(&m))
		memcpy(&other, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof other);
	close(fd);
	signal_to(go[1]);
	bool all = other >= 0;
	for (int i = 0; i < 5; i++) {
		wait_for(done[0]);
		all &= recv(other, b, 6, MSG_DONTWAIT) == 6 && !memcmp(b, "parent", 6);
		signal_to(go[1]);
	}
	check(status_of(p) == 0 && all, "passed back by a message: both read");
	close(other);
	close(pair[0]);
	close(pair[1]);
	check(tell(RECV, 0, 9, "") == 0, "the last of them ends it");
	tell(CLOSE, 0, 0, "");

	/* Blocking, without an epoll: a connection's process that reads and writes. */
	fd = accepted(0, 0);
	p = fork();
	if (!p) {
		int bad = 0;
		alarm(100);
		for (int i = 0; i < 30; i++) {
			if (i % 3)
				ask(SEND, 0, 0, "\4blah");
			else
				ask(SEND, 0, 0, "\4bl");
			answer();
			bad |= read(fd, b, 1) != 1 || b[0] != 4;
			if (!(i % 3)) {
				bad |= read(fd, b, 4) != 2 || memcmp(b, "bl", 2);
				ask(SEND, 0, 0, "ah");
				answer();
				bad |= read(fd, b + 2, 2) != 2;
			} else {
				bad |= recv(fd, b, 2, MSG_PEEK) != 2 || read(fd, b, 4) != 4;
			}
			bad |= memcmp(b, "blah", 4) || write(fd, "so", 2) != 2 || write(fd, "\n", 1) != 1 ||
			       !receives(0, "so\n");
		}
		struct timeval t = { 0, 20000 };
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
		bad |= read(fd, b, 1) != -1 || errno != EAGAIN;
		ask(SEND, 0, 0, "last");
		answer();
		bad |= recv(fd, b, 4, MSG_WAITALL) != 4;
		ask(CLOSE, 0, 0, "");
		answer();
		t.tv_usec = 0;
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
		bad |= read(fd, b, 9) != 0 || read(fd, b, 9) != 0;
		_exit(bad);
	}
	close(fd);
	check(status_of(p) == 0, "a child that reads and writes a blocking one");
}

/* ---- how long files are --------------------------------------------------------------------------------------------- */

enum { APPEND = 1, PWRITE, CUT, GROW, TRUNC, NAMED, VECTOR, COPY, SENDFILE, PWRITEV, INSIDE, ACROSS, KINDS };
static struct {
	volatile int what, done;
} * order;

static void change(int what, const char *path, int fd, int src)
{
	struct iovec v = { "0123456789", 10 };
	struct stat st;
	off_t at = 0;
	fstat(fd, &st);
	long r = -1;
	switch (what) {
	case APPEND: {
		int a = open(path, O_WRONLY | O_APPEND);
		r = write(a, "0123456789", 10);
		close(a);
		break;
	}
	case PWRITE:
		r = pwrite(fd, "0123456789", 10, st.st_size + 5);
		break;
	case CUT:
		r = ftruncate(fd, st.st_size / 2);
		break;
	case GROW:
		r = posix_fallocate(fd, 0, st.st_size + 100);
		break;
	case TRUNC:
		r = close(open(path, O_WRONLY | O_TRUNC));
		break;
	case NAMED:
		r = truncate(path, st.st_size + 17);
		break;
	case VECTOR:
		lseek(fd, 0, SEEK_END);
		r = writev(fd, &v, 1);
		break;
	case COPY:
		lseek(fd, 0, SEEK_END);
		r = copy_file_range(fd, &at, fd, NULL, (size_t)st.st_size / 2, 0);
		break;
	case SENDFILE:
		lseek(fd, 0, SEEK_END);
		r = sendfile(fd, src, &at, 40);
		break;
	case PWRITEV:
		r = pwritev(fd, &v, 1, st.st_size);
		break;
	case INSIDE:
		r = pwrite(fd, "0123456789", st.st_size < 10 ? (size_t)st.st_size : 10, 0);
		break;
	case ACROSS:
		r = pwrite(fd, "0123456789", 10, st.st_size < 5 ? 0 : st.st_size - 5);
		break;
	}
	if (r < 0)
		_exit(98);
}

static void test_length(void)
{
	char path[] = "/tmp/kx-conn-XXXXXX", b[64];
	struct stat st;
	order = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int tmp = mkstemp(path), src = open("/proc/self/exe", O_RDONLY);
	if (tmp < 0 || src < 0)
		exit(114);
	pid_t p = fork();
	if (!p) { /* it changes the file when memory says so, and tells by memory */
		alarm(100);
		int fd = open(path, O_RDWR);
		for (int seen = 0;;) {
			if (order->what == seen || !order->what)
				continue;
			seen = order->what;
			if (seen < 0)
				_exit(0);
			change(seen % 16, path, fd, src);
			__atomic_store_n(&order->done, seen, __ATOMIC_SEQ_CST);
		}
	}
	int c = accepted(0, SOCK_NONBLOCK), fd = open(path, O_RDWR);
	in_epoll(c, EPOLLIN);
	bool ok = serve(0, c, 3) == 0;
	long last = 0;
	for (int i = 0; i < 8 * KINDS && ok; i++) {
		int what = i % KINDS;
		if (!served(0, c, "how long"))
			ok = false;
		lseek(fd, 0, SEEK_END);
		lseek(fd, 0, SEEK_END);
		if (what && i % 2) { /* by the other process: no call of this one's until it is done */
			__atomic_store_n(&order->what, 16 * (i + 1) + what, __ATOMIC_SEQ_CST);
			while (order->done != 16 * (i + 1) + what)
				;
			last = lseek(fd, 0, SEEK_END);
			fstat(fd, &st);
			if (last != st.st_size)
				ok = false;
		} else if (what) {
			change(what, path, fd, src);
			last = lseek(fd, 0, SEEK_END);
			fstat(fd, &st);
			if (last != st.st_size)
				ok = false;
		}
		if (lseek(fd, 0, SEEK_CUR) != last && what)
			ok = false;
		if (!ok)
			printf("# change %d, %s: %ld, not %ld\n", what, i % 2 ? "another's" : "its own", last,
			       (long)st.st_size);
	}
	check(ok, "lseek: how long a file is, whoever has changed it");
	__atomic_store_n(&order->what, -1, __ATOMIC_SEQ_CST);
	check(status_of(p) == 0, "by another process");

	/* The position. */
	ftruncate(fd, 0);
	ok = pwrite(fd, "0123456789", 10, 0) == 10;
	for (int i = 0; i < 4; i++) {
		ok &= served(0, c, "where") && lseek(fd, 0, SEEK_END) == 10 + i && lseek(fd, 0, SEEK_END) == 10 + i;
		ok &= lseek(fd, 3, SEEK_SET) == 3 && lseek(fd, 0, SEEK_END) == 10 + i && read(fd, b, 4) == 0;
		ok &= lseek(fd, 3, SEEK_SET) == 3 && read(fd, b, 2) == 2 && !memcmp(b, "34", 2);
		ok &= lseek(fd, 0, SEEK_END) == 10 + i && write(fd, "x", 1) == 1;
	}
	check(ok, "lseek: is where the next write goes");
	int d = dup(fd);
	lseek(fd, 0, SEEK_END);
	ok = served(0, c, "two numbers") && lseek(d, 2, SEEK_SET) == 2 && lseek(fd, 0, SEEK_END) == 14 &&
	     lseek(d, 0, SEEK_CUR) == 14;
	check(ok, "lseek: of both numbers");
	close(d);

	/* Whoever has it from this process moves it, too, and tells by memory. */
	close(fd);
	fd = open(path, O_RDWR);
	for (int i = 0; i < 3; i++) {
		ok &= served(0, c, "own") && lseek(fd, 0, SEEK_END) == 14;
		lseek(fd, 0, SEEK_END);
	}
	order->what = order->done = 0;
	p = fork();
	if (!p) {
		alarm(100);
		for (int seen = 0;;) {
			if (order->what == seen)
				continue;
			seen = order->what;
			if (seen < 0)
				_exit(0);
			lseek(fd, 1, SEEK_SET);
			order->done = seen;
		}
	}
	long size = 14;
	for (int i = 1; i < 8; i++) {
		ok &= served(0, c, "shared") && lseek(fd, 0, SEEK_END) == size && lseek(fd, 0, SEEK_END) == size;
		order->what = i;
		while (order->done != i)
			;
		ok &= lseek(fd, 0, SEEK_END) == size && write(fd, "y", 1) == 1 && !fstat(fd, &st) &&
		      st.st_size == ++size;
	}
	order->what = -1;
	check(status_of(p) == 0 && ok, "lseek: a position that a child moves");
	close(c);
	tell(CLOSE, 0, 0, "");
	close(fd);
	fd = open("/dev/null", O_RDWR);
	check(lseek(fd, 0, SEEK_END) == 0, "lseek: of a device");
	close(fd);
	close(src);
	close(tmp);
	unlink(path);
}

int main(void)
{
	socklen_t len = sizeof addr;
	alarm(400);
	signal(SIGPIPE, SIG_IGN);
	addr.sin_family = AF_INET;
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	lsock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(lsock, (void *)&addr, len) || listen(lsock, 64) || getsockname(lsock, (void *)&addr, &len) ||
	    pipe(to_client) || pipe(from_client) || pipe(go) || pipe(done))
		return 120;
	if (!fork()) {
		close(to_client[1]);
		close(from_client[0]);
		close(lsock);
		client();
	}
	close(to_client[0]);
	close(from_client[1]);
	epfd = epoll_create1(EPOLL_CLOEXEC);
	test_shutdown();
	test_left();
	test_length();
	close(to_client[1]);
	wait(NULL);
	printf("%d checks\n", checks);
	return first_failure;
}
