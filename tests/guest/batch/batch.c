/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets of an event loop as a program sees them, where reads and writes are batched: what a read finds behind an
 * epoll_wait, short and empty reads, ends and errors, order on the wire, what is sent when (a program that computes,
 * closes, ends, is killed), levels, edges and single shots, descriptors that others hold (dup, fork, SCM_RIGHTS),
 * threads. The other side is a process of its own. Passes on any Linux. Exit code: 0, or 1 + the number of the first
 * check that failed (at most 120).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <linux/sockios.h>
#include <time.h>
#include <unistd.h>
#include "../clock.h"
#include "../counted.h"

/*
 * The peer: a process that connects when it is told to and does what it reads from a pipe. It was forked before there
 * was any socket, so that what is accepted here is held by this process alone.
 */
enum { CONNECT = 1, SEND, RECV, CLOSE, RESET, SHUT, URGENT, SET_RCVBUF, RECV_TIMED };
struct order {
	int what, n, arg;
	char data[64];
};
struct answer {
	long r;
	int64_t us;
	unsigned sum;
	char data[64];
};
static int to_peer[2], from_peer[2], lsock, epfd;
static volatile int *arrived; /* shared with the peer: it has what RECV_TIMED was to receive */
static struct sockaddr_storage addr;
static socklen_t addr_len;
static bool is_unix;

static unsigned sum_of(unsigned sum, const uint8_t *p, long n)
{
	while (n-- > 0)
		sum = sum * 31 + *p++;
	return sum;
}

static long recv_n(int fd, long n, unsigned *sum, char *first)
{
	static uint8_t buf[65536];
	long got = 0;
	*sum = 0;
	while (got < n) {
		long r = recv(fd, buf, n - got < (long)sizeof buf ? n - got : (long)sizeof buf, 0);
		if (r < 0)
			return -errno;
		if (!r)
			break;
		if (got < 64)
			memcpy(first + got, buf, r < 64 - got ? r : 64 - got);
		*sum = sum_of(*sum, buf, r);
		got += r;
	}
	return got;
}

static void peer(void)
{
	int fd[64];
	struct order o;
	while (read(to_peer[0], &o, sizeof o) == sizeof o) {
		struct answer a = { 0 };
		struct linger hard = { 1, 0 };
		int *s = &fd[o.n & 63];
		switch (o.what) {
		case CONNECT:
			*s = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
			if (o.arg)
				setsockopt(*s, SOL_SOCKET, SO_RCVBUF, &o.arg, sizeof o.arg);
			a.r = connect(*s, (void *)&addr, addr_len);
			break;
		case SEND: {
			int one = 1;
			if (!is_unix)
				setsockopt(*s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
			if (o.arg <= 64) {
				a.r = send(*s, o.data, o.arg, MSG_NOSIGNAL);
			} else {
				char *big = malloc(o.arg);
				for (int i = 0; i < o.arg; i++)
					big[i] = (char)(i * 7 + i / 251);
				for (long at = 0, r; at < o.arg; at += r) {
					r = send(*s, big + at, o.arg - at, MSG_NOSIGNAL);
					if (r < 0)
						break;
					a.r = at + r;
				}
				free(big);
			}
			break;
		}
		case RECV:
			a.r = recv_n(*s, o.arg, &a.sum, a.data);
			break;
		case RECV_TIMED:
			a.r = recv(*s, a.data, 64, 0);
			*arrived = 1;
			break;
		case CLOSE:
			a.r = close(*s);
			break;
		case RESET:
			setsockopt(*s, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
			a.r = close(*s);
			break;
		case SHUT:
			a.r = shutdown(*s, SHUT_WR);
			break;
		case URGENT:
			a.r = send(*s, "!", 1, MSG_OOB);
			break;
		}
		a.us = now_us();
		if (write(from_peer[1], &a, sizeof a) != sizeof a)
			break;
	}
	_exit(0);
}

static struct answer last;
static void ask(int what, int n, int arg, const char *data)
{
	struct order o = { what, n, arg, { 0 } };
	if (data)
		memcpy(o.data, data, arg);
	if (write(to_peer[1], &o, sizeof o) != sizeof o)
		exit(119);
}

static long answer(void)
{
	if (read(from_peer[0], &last, sizeof last) != sizeof last)
		exit(119);
	return last.r;
}

static long tell(int what, int n, int arg, const char *data)
{
	ask(what, n, arg, data);
	return answer();
}

static void peer_start(void)
{
	if (pipe(to_peer) || pipe(from_peer))
		exit(119);
	pid_t pid = fork();
	if (pid < 0)
		exit(119);
	if (!pid) {
		close(to_peer[1]);
		close(from_peer[0]);
		peer();
	}
	close(to_peer[0]);
	close(from_peer[1]);
}

static void peer_stop(void)
{
	close(to_peer[1]);
	close(from_peer[0]);
	wait(NULL);
}

static void listen_now(bool un)
{
	is_unix = un;
	memset(&addr, 0, sizeof addr);
	if (un) {
		struct sockaddr_un *a = (void *)&addr;
		a->sun_family = AF_UNIX;
		snprintf(a->sun_path + 1, 60, "kx-batch-%d", getpid());
		addr_len = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(a->sun_path + 1);
	} else {
		struct sockaddr_in *a = (void *)&addr;
		a->sin_family = AF_INET;
		a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		addr_len = sizeof *a;
	}
	lsock = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(lsock, (void *)&addr, addr_len) || listen(lsock, 64))
		exit(118);
	if (!un)
		getsockname(lsock, (void *)&addr, &addr_len);
}

/* A connection with the peer's end n, non-blocking, in the epoll with these events. */
static int conn_with(int n, uint32_t events, int rcvbuf)
{
	struct epoll_event ev = { .events = events };
	if (tell(CONNECT, n, rcvbuf, NULL))
		exit(117);
	int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	ev.data.u64 = 0xabc00000000ull + (unsigned)fd;
	if (fd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev))
		exit(116);
	return fd;
}

static int conn(int n) { return conn_with(n, EPOLLIN, 0); }

static uint32_t events_of;
/* Wait until fd has an event, 0 = none within ms. */
static int turn(int fd, int ms)
{
	struct epoll_event ev[16];
	int n = epoll_wait(epfd, ev, 16, ms);
	events_of = 0;
	for (int i = 0; i < n; i++)
		if (ev[i].data.u64 == 0xabc00000000ull + (unsigned)fd)
			events_of = ev[i].events;
	return events_of != 0;
}

static void bye(int n, int fd)
{
	close(fd);
	tell(CLOSE, n, 0, NULL);
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

static void test_read(void)
{
	char b[256], c[8], d[8];
	int fd = conn(0);
	tell(SEND, 0, 10, "0123456789");
	check(turn(fd, 30000), "an event when data comes");
	check(read(fd, b, 4) == 4 && !memcmp(b, "0123", 4), "read: the first four bytes");
	check(recv(fd, b, 3, MSG_PEEK) == 3 && !memcmp(b, "456", 3), "recv: MSG_PEEK shows the next three");
	struct iovec v[2] = { { c, 2 }, { d, 2 } };
	check(readv(fd, v, 2) == 4 && !memcmp(c, "45", 2) && !memcmp(d, "67", 2), "readv: into two pieces");
	int left = -1;
	check(ioctl(fd, FIONREAD, &left) == 0 && left == 2, "FIONREAD: two bytes are left");
	check(turn(fd, 0), "level: what is left is told of again");
	check(recv(fd, b, 100, 0) == 2 && !memcmp(b, "89", 2), "recv: a short one ends it");
	fails(recv(fd, b, 100, 0), EAGAIN, "recv: nothing there");
	fails(recv(fd, b, 100, 0), EAGAIN, "recv: still nothing there");
	check(!turn(fd, 0), "level: no event any more");
	fails(read(fd, b, 1), EAGAIN, "read: nothing without an event");
	tell(SEND, 0, 3, "abc");
	check(turn(fd, 30000) && read(fd, b, sizeof b) == 3, "again");
	tell(SEND, 0, 3, "def");
	nap(20);
	check(read(fd, b, sizeof b) == 3 && !memcmp(b, "def", 3),
	      "read: what came after the event, with a call in between");
	tell(SEND, 0, 4, "ghij");
	check(turn(fd, 30000), "event");
	tell(SEND, 0, 4, "klmn");
	check(read(fd, b, 2) == 2, "read: two of what is known");
	check(recv(fd, b, 6, MSG_WAITALL) == 6 && !memcmp(b, "ijklmn", 6), "recv: MSG_WAITALL, across what came later");
	tell(SEND, 0, 4, "opqr");
	check(turn(fd, 30000), "event");
	check(recv(fd, b, 2, MSG_TRUNC) == 2 && read(fd, b, 9) == 2 && !memcmp(b, "qr", 2),
	      "recv: MSG_TRUNC drops two");
	tell(SEND, 0, 4, "stuv");
	check(turn(fd, 30000), "event");
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2, .msg_flags = 0x7777 };
	check(recvmsg(fd, &m, 0) == 4 && !memcmp(c, "st", 2) && !memcmp(d, "uv", 2) && m.msg_flags == 0, "recvmsg");
	tell(SEND, 0, 4, "wxyz");
	check(turn(fd, 30000), "event");
	fails(read(fd, BAD, 4), EFAULT, "read: into nowhere");
	check(read(fd, b, 4) == 4 && !memcmp(b, "wxyz", 4), "read: nothing was lost by that");
	check(read(fd, b, 0) == 0, "read: of no bytes");
	bye(0, fd);
}

static void test_large(void)
{
	static uint8_t b[300000];
	int fd = conn(0), n = 200000;
	long got = 0, r = 0;
	bool whole = true;
	ask(SEND, 0, n, NULL);
	while (got < n && turn(fd, 30000))
		while ((r = read(fd, b + got, (got / 1000) % 2 ? 777 : 70000)) > 0)
			got += r;
	answer();
	for (int i = 0; i < n; i++)
		whole &= b[i] == (uint8_t)(i * 7 + i / 251);
	check(got == n && whole, "200,000 bytes in pieces of all sizes");
	bye(0, fd);
}

static void test_ends(void)
{
	char b[64];
	int fd = conn(0), err = -1;
	socklen_t len = sizeof err;
	tell(SEND, 0, 5, "hello");
	tell(SHUT, 0, 0, NULL);
	nap(10);
	check(turn(fd, 30000) && read(fd, b, 64) == 5, "data before the end");
	long r = read(fd, b, 64);
	check(r == 0 || (r == -1 && errno == EAGAIN && turn(fd, 30000) && read(fd, b, 64) == 0), "the end");
	check(read(fd, b, 64) == 0 && read(fd, b, 64) == 0, "the end stays");
	check(write(fd, "reply", 5) == 5, "write: after the other side has shut down");
	check(tell(RECV, 0, 5, NULL) == 5 && !memcmp(last.data, "reply", 5), "... and it arrives");
	bye(0, fd);

	fd = conn(0);
	tell(SEND, 0, 5, "hello");
	check(turn(fd, 30000), "event");
	if (!is_unix) {
		tell(RESET, 0, 0, NULL);
		nap(20);
		check(read(fd, b, 64) == 5, "read: what came before a reset");
		fails(read(fd, b, 64), ECONNRESET, "read: the reset");
		check(read(fd, b, 64) == 0, "read: the end behind it");
		fails(send(fd, "x", 1, MSG_NOSIGNAL), EPIPE, "send: after a reset");
		close(fd);

		fd = conn(0);
		tell(SEND, 0, 1, "x");
		check(turn(fd, 30000) && read(fd, b, 64) == 1, "event");
		tell(RESET, 0, 0, NULL);
		nap(20);
		check(turn(fd, 30000) && events_of & (EPOLLHUP | EPOLLERR), "a reset is an event");
		check(getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err == ECONNRESET,
		      "SO_ERROR: of a reset");
		check(getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) == 0 && err == 0, "SO_ERROR: once");
		close(fd);

		/* A write that is on its way as the reset comes: the error is some later call's. */
		fd = conn(0);
		tell(SEND, 0, 1, "x");
		check(turn(fd, 30000) && read(fd, b, 64) == 1 && write(fd, "a", 1) == 1, "a write before a reset");
		tell(RESET, 0, 0, NULL);
		nap(20);
		r = send(fd, "b", 1, MSG_NOSIGNAL);
		check(r == -1 && (errno == ECONNRESET || errno == EPIPE), "... and one after it");
		close(fd);
	} else {
		bye(0, fd);
	}
}

static volatile sig_atomic_t pipes;
static void on_pipe(int s) { pipes += s == SIGPIPE; }

static void test_sigpipe(void)
{
	char b[8];
	int fd = conn(0);
	signal(SIGPIPE, on_pipe);
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 8) == 1, "event");
	tell(RESET, 0, 0, NULL);
	nap(20);
	int got = 0;
	for (int i = 0; i < 3 && !got; i++) {
		got = write(fd, "y", 1) < 0 && errno == EPIPE;
		nap(5);
	}
	check(got && pipes == 1, "write: EPIPE comes with SIGPIPE");
	close(fd);
	fd = conn(0);
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000) && write(fd, "before", 6) == 6 && shutdown(fd, SHUT_WR) == 0, "shutdown: after a write");
	fails(send(fd, "y", 1, MSG_NOSIGNAL), EPIPE, "send: after one's own shutdown");
	check(tell(RECV, 0, 100, NULL) == 6, "what was written before arrives, and the end behind it");
	check(read(fd, b, 8) == 1, "read: after shutdown for writing");
	bye(0, fd);
	signal(SIGPIPE, SIG_DFL);
}

/* ---- edges ------------------------------------------------------------------------------------------------------------ */

static void test_edge(void)
{
	char b[64];
	int fd = conn_with(0, EPOLLIN | EPOLLET | EPOLLRDHUP, 0);
	turn(fd, 0);
	for (int i = 0; i < 200; i++) {
		ask(SEND, 0, 1 + i % 40, "0123456789012345678901234567890123456789");
		int want = 1 + i % 40, got = 0;
		while (got < want) {
			if (!turn(fd, 30000))
				break;
			for (long r; (r = read(fd, b, i % 3 ? 64 : 7)) > 0;)
				got += r;
		}
		answer();
		if (got != want) {
			check(false, "edge: no data without an event");
			break;
		}
	}
	check(!turn(fd, 0), "edge: none without new data");
	tell(SEND, 0, 4, "abcd");
	check(turn(fd, 30000) && read(fd, b, 2) == 2, "edge: two of four bytes");
	check(!turn(fd, 20), "edge: what is left is not told of again");
	check(read(fd, b, 64) == 2, "edge: ... and still there");
	tell(SEND, 0, 4, "efgh");
	tell(SHUT, 0, 0, NULL);
	nap(10);
	long sum = 0, r = 1;
	for (int i = 0; i < 3 && r; i++) {
		turn(fd, 30000);
		while ((r = read(fd, b, 64)) > 0)
			sum += r;
	}
	check(sum == 4 && r == 0, "edge: the end that came with the data is seen");
	bye(0, fd);
	fd = conn_with(0, EPOLLIN | EPOLLET, 0);
	turn(fd, 0);
	tell(SEND, 0, 4, "efgh");
	tell(SHUT, 0, 0, NULL);
	nap(10);
	check(turn(fd, 30000) && read(fd, b, 64) == 4 && read(fd, b, 64) == 0,
	      "edge without RDHUP: data and end at once");
	bye(0, fd);
	fd = conn_with(0, EPOLLIN | EPOLLONESHOT, 0);
	tell(SEND, 0, 4, "ijkl");
	check(turn(fd, 30000) && read(fd, b, 2) == 2, "one shot");
	tell(SEND, 0, 1, "m");
	check(!turn(fd, 20), "one shot: not again");
	struct epoll_event ev = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 0xabc00000000ull + (unsigned)fd };
	check(!epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev) && turn(fd, 30000) && read(fd, b, 64) == 3,
	      "one shot: armed again");
	bye(0, fd);
}

static void test_two_epolls(void)
{
	char b[64];
	int fd = conn(0), other = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };
	check(!epoll_ctl(other, EPOLL_CTL_ADD, fd, &ev), "in a second epoll");
	tell(SEND, 0, 2, "ab");
	check(turn(fd, 30000) && epoll_wait(other, &ev, 1, 30000) == 1 && ev.data.fd == fd, "both tell of it");
	check(read(fd, b, 64) == 2 && epoll_wait(other, &ev, 1, 0) == 0 && !turn(fd, 0), "neither any more");
	close(other);
	bye(0, fd);
}

/* ---- writing ---------------------------------------------------------------------------------------------------------- */

static void test_write(void)
{
	char b[64];
	int fd = conn(0), fd2 = conn(1), q = -1;
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 64) == 1, "event");
	struct iovec v[3] = { { "two", 3 }, { NULL, 0 }, { "three", 5 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 3 };
	check(write(fd, "one", 3) == 3 && writev(fd, v, 3) == 8 && send(fd, "four", 4, MSG_MORE) == 4 &&
		      sendmsg(fd, &m, MSG_NOSIGNAL) == 8 && write(fd, "", 0) == 0,
	      "writes of all kinds");
	check(tell(RECV, 0, 23, NULL) == 23 && !memcmp(last.data, "onetwothreefourtwothree", 23),
	      "... arrive in order");
	fails(write(fd, BAD, 4), EFAULT, "write: from nowhere");
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000), "event");
	fails(write(fd, BAD, 4), EFAULT, "write: from nowhere, again");
	check(write(fd, "fine", 4) == 4 && tell(RECV, 0, 4, NULL) == 4 && !memcmp(last.data, "fine", 4),
	      "write: that did no harm");
	if (!is_unix) {
		for (int i = 0; i < 3000 && q; i++) {
			nap(10);
			ioctl(fd, SIOCOUTQ, &q);
		}
		check(q == 0, "SIOCOUTQ: all of it has arrived");
		tell(SEND, 0, 1, "x");
		check(turn(fd, 30000) && send(fd, "a", 1, 0) == 1 && send(fd, "!", 1, MSG_OOB) == 1 &&
			      send(fd, "b", 1, 0) == 1,
		      "urgent data in between");
		check(tell(RECV, 0, 1, NULL) == 1 && last.data[0] == 'a', "... at its place");
		check(tell(RECV, 0, 1, NULL) == 1 && last.data[0] == 'b', "... what follows, too");
	}
	/* Two connections: what was written first is there first. */
	tell(SEND, 0, 1, "x");
	tell(SEND, 1, 1, "x");
	nap(10);
	check(turn(fd, 30000) && turn(fd2, 30000), "events");
	check(write(fd, "A", 1) == 1 && write(fd2, "B", 1) == 1, "writes to two");
	check(tell(RECV, 1, 1, NULL) == 1 && tell(RECV, 0, 1, NULL) == 1, "both arrive");
	bye(0, fd);
	bye(1, fd2);
}

/* A program that goes on computing: what it wrote is sent all the same. */
/*
 * Replies to what the wait before the last one has told of: at once, and after many waits behind which only what was told
 * last was replied to.
 */
static void test_late(void)
{
	char b[8];
	int a = conn(0), c = conn(1);
	bool all = true;
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 4; i++) {
			tell(SEND, 0, 2, "ab");
			all &= turn(a, 30000) && read(a, b, sizeof b) == 2;
			tell(SEND, 1, 2, "cd");
			all &= turn(c, 30000) && read(c, b, sizeof b) == 2;
			all &= write(a, "late", 4) == 4 && write(c, "soon", 4) == 4;
			all &= tell(RECV, 0, 4, NULL) == 4 && !memcmp(last.data, "late", 4);
			all &= tell(RECV, 1, 4, NULL) == 4 && !memcmp(last.data, "soon", 4);
		}
		for (int i = 0; i < 300 && !round; i++) {
			tell(SEND, i & 1, 2, "ef");
			all &= turn(i & 1 ? c : a, 30000) && write(i & 1 ? c : a, "g", 1) == 1;
			all &= read(i & 1 ? c : a, b, sizeof b) == 2 && tell(RECV, i & 1, 1, NULL) == 1;
		}
		check(all, round ? "late: after many replies in time" : "late: replies to the turn before");
	}
	tell(SEND, 0, 2, "ab");
	check(turn(a, 30000) && read(a, b, sizeof b) == 2, "late: data");
	tell(RESET, 0, 0, NULL);
	tell(SEND, 1, 2, "cd");
	for (int i = 0; i < 20; i++)
		if (turn(c, 30000) && read(c, b, sizeof b) == 2)
			break;
	fails(send(a, "late", 4, MSG_NOSIGNAL), is_unix ? EPIPE : ECONNRESET, "late: a reply to one that is gone");
	close(a);
	bye(1, c);
}

static void test_compute(void)
{
	char b[64];
	int fd = conn(0);
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 64) == 1, "event");
	ask(RECV_TIMED, 0, 0, NULL);
	int64_t start = now_us();
	*arrived = 0;
	check(write(fd, "soon", 4) == 4, "a write, then no call");
	while (!*arrived && now_us() - start < 60000000)
		;
	check(*arrived, "it arrives while the program computes");
	check(answer() == 4, "all of it");
	bye(0, fd);
}

static void test_backpressure(void)
{
	static char big[65536];
	char b[8];
	int fd = conn_with(0, EPOLLIN, 4096);
	long total = 0, r = 0, n = 0;
	unsigned sum = 0;
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 8) == 1, "event");
	for (int i = 0; i < 100000; i++) {
		for (int k = 0; k < 1000; k++)
			big[k] = (char)(i + k * 3);
		r = write(fd, big, 1000);
		if (r < 0 && (errno != EAGAIN || n++))
			break;
		if (r < 0)
			nap(100); /* what is acknowledged meanwhile makes room */
		else
			n = 0, sum = sum_of(sum, (void *)big, r);
		total += r < 0 ? 0 : r;
	}
	check(r < 0 && errno == EAGAIN, "write: stops when nobody reads");
	check(total < 32 << 20, "... before long");
	fails(write(fd, big, 1), EAGAIN, "write: no room");
	struct epoll_event ev = { .events = EPOLLOUT, .data.u64 = 0xabc00000000ull + (unsigned)fd };
	epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev);
	check(!turn(fd, 20), "EPOLLOUT: not yet");
	ask(RECV, 0, (int)total, NULL);
	check(turn(fd, 30000) && events_of & EPOLLOUT, "EPOLLOUT: when it is read");
	check(answer() == total && last.sum == sum, "all that was written arrives, once and in order");
	check(write(fd, big, 1) == 1, "write: again");
	bye(0, fd);
}

static void test_close(void)
{
	char b[8];
	int fd = conn(0);
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 8) == 1 && write(fd, "last words", 10) == 10 && close(fd) == 0,
	      "close behind a write");
	check(tell(RECV, 0, 100, NULL) == 10 && !memcmp(last.data, "last words", 10), "it arrives, and the end");
	tell(CLOSE, 0, 0, NULL);
	fails(read(fd, b, 8), EBADF, "read: closed");
	fails(write(fd, b, 8), EBADF, "write: closed");
	/* The number in use for something else. */
	fd = conn(0);
	tell(SEND, 0, 5, "12345");
	check(turn(fd, 30000) && read(fd, b, 2) == 2, "event");
	int p[2];
	check(!pipe(p) && dup2(p[0], fd) == fd && write(p[1], "pipe", 4) == 4, "dup2 over it");
	check(read(fd, b, 8) == 4 && !memcmp(b, "pipe", 4), "read: of what is there now");
	close(p[0]);
	close(p[1]);
	bye(0, fd);
}

static bool next_turn(int fd)
{
	char b[8];
	tell(SEND, 0, 1, "x");
	return turn(fd, 30000) && read(fd, b, sizeof b) == 1;
}

/* Connections that come and go while the loop turns, as those of a web server do. */
static void test_churn(void)
{
	char b[8];
	struct epoll_event ev = { .events = EPOLLIN };
	int first = conn(0), fd = -1, again;
	long bad = 0;
	check(next_turn(first), "a turn");
	for (int i = 0; i < 40; i++) {
		fd = conn(1);
		tell(SEND, 1, 2, "ab");
		bad += !turn(fd, 30000) || read(fd, b, 8) != 2 || write(fd, "reply", 5) != 5 || close(fd);
		bad += tell(RECV, 1, 100, NULL) != 5;
		tell(CLOSE, 1, 0, NULL);
	}
	check(!bad, "forty connections");
	fails(read(fd, b, 8), EBADF, "read: closed");
	fails(close(fd), EBADF, "close: closed");
	again = conn(1);
	check(again == fd, "the number is used again");
	fd = again;
	ev.data.u64 = 0xabc00000000ull + (unsigned)fd;
	fails(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev), EEXIST, "EPOLL_CTL_ADD: is there already");
	ev.data.u64 = 5;
	check(!epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev) && tell(SEND, 1, 1, "x") == 1 &&
		      epoll_wait(epfd, &ev, 1, 30000) == 1 && ev.data.u64 == 5,
	      "EPOLL_CTL_MOD: other data");
	check(read(fd, b, 8) == 1 && !epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL) && tell(SEND, 1, 1, "x") == 1 &&
		      !turn(fd, 20),
	      "EPOLL_CTL_DEL");
	fails(epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL), ENOENT, "EPOLL_CTL_DEL: is not there");
	bye(1, fd);
	/* Out of the loop in its own turn, as servers do before they close. */
	fd = conn(1);
	ev = (struct epoll_event){ EPOLLIN, { .u64 = 0xabc00000000ull + (unsigned)fd } };
	tell(SEND, 1, 2, "ab");
	check(turn(fd, 30000) && read(fd, b, 1) == 1 && !epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL), "DEL behind a read");
	check(read(fd, b, 1) == 1 && *b == 'b' && write(fd, "out", 3) == 3, "it is read and written as before");
	fails(epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL), ENOENT, "DEL again");
	tell(SEND, 1, 1, "x");
	check(!turn(fd, 20) && read(fd, b, 8) == 1, "no event from then on");
	check(tell(RECV, 1, 3, NULL) == 3 && !memcmp(last.data, "out", 3), "the write arrives");
	check(!epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) && tell(SEND, 1, 1, "x") == 1 && turn(fd, 30000) &&
		      read(fd, b, 8) == 1,
	      "ADD again");
	check(!epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL) && !epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) &&
		      tell(SEND, 1, 1, "x") == 1 && turn(fd, 30000) && read(fd, b, 8) == 1,
	      "DEL and ADD in one turn");
	/* Changed, and out and in again, in its own turn: as servers do that write what they read. */
	tell(SEND, 1, 1, "x");
	ev = (struct epoll_event){ EPOLLIN | EPOLLOUT, { .u64 = 0xabc00000000ull + (unsigned)fd } };
	check(turn(fd, 30000) && read(fd, b, 8) == 1 && !epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev) &&
		      epoll_wait(epfd, &ev, 1, 0) == 1 && ev.events == EPOLLOUT &&
		      ev.data.u64 == 0xabc00000000ull + (unsigned)fd,
	      "MOD behind a read: room to write is an event");
	ev.data.u64 = 7;
	ev.events = EPOLLIN;
	check(write(fd, "mod", 3) == 3 && !epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev) && !epoll_wait(epfd, &ev, 1, 5) &&
		      tell(RECV, 1, 3, NULL) == 3 && !memcmp(last.data, "mod", 3),
	      "MOD: is none from then on");
	tell(SEND, 1, 2, "xy");
	check(epoll_wait(epfd, &ev, 1, 30000) == 1 && ev.data.u64 == 7 && read(fd, b, 1) == 1, "MOD: the data it gave");
	ev = (struct epoll_event){ EPOLLIN | EPOLLET | EPOLLONESHOT, { .u64 = 8 } };
	check(!epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev) && epoll_wait(epfd, &ev, 1, 30000) == 1 && ev.data.u64 == 8 &&
		      read(fd, b, 8) == 1 && *b == 'y',
	      "MOD: armed anew, what was left unread is an event");
	tell(SEND, 1, 1, "z");
	check(!epoll_wait(epfd, &ev, 1, 20), "once");
	ev = (struct epoll_event){ EPOLLIN, { .u64 = 0xabc00000000ull + (unsigned)fd } };
	check(!epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev) && turn(fd, 30000) && read(fd, b, 8) == 1, "MOD by a call");
	fails(epoll_ctl(epfd, EPOLL_CTL_MOD, fd, BAD), EFAULT, "MOD: an event that can't be read");
	ev.events = EPOLLIN | EPOLLEXCLUSIVE;
	fails(epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev), EINVAL, "MOD: EPOLLEXCLUSIVE");
	ev.events = EPOLLOUT;
	check(!epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL) && !epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev), "out and in");
	fails(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev), EEXIST, "ADD twice");
	check(epoll_wait(epfd, &ev, 1, 0) == 1 && ev.events == EPOLLOUT, "an event for the second");
	ev.events = EPOLLIN;
	check(!epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL) && !epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) &&
		      !epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL) && tell(SEND, 1, 1, "x") == 1 && !turn(fd, 20),
	      "out, in and out");
	fails(epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev), ENOENT, "MOD: is not there");
	check(!epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) && turn(fd, 30000) && read(fd, b, 8) == 1, "in by a call");
	int third = epoll_create1(EPOLL_CLOEXEC);
	tell(SEND, 1, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 8) == 1, "an event");
	fails(epoll_ctl(third, EPOLL_CTL_DEL, fd, NULL), ENOENT, "DEL: of another epoll");
	check(epoll_wait(third, &ev, 1, 0) == 0, "a look at that one");
	fails(epoll_ctl(third, EPOLL_CTL_DEL, fd, NULL), ENOENT, "DEL: of the one looked at last");
	fails(epoll_ctl(lsock, EPOLL_CTL_DEL, fd, NULL), EINVAL, "DEL: of no epoll");
	close(third);
	fails(epoll_ctl(third, EPOLL_CTL_DEL, fd, NULL), EBADF, "DEL: of one closed");
	tell(SEND, 1, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 8) == 1 && !epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL) &&
		      write(fd, "end", 3) == 3 && !close(fd) && tell(RECV, 1, 9, NULL) == 3,
	      "DEL, a write and close");
	tell(CLOSE, 1, 0, NULL);
	tell(CONNECT, 1, 0, NULL);
	tell(SEND, 1, 5, "early");
	check(next_turn(first) && (fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0, "accept4");
	fails(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, BAD), EFAULT, "EPOLL_CTL_ADD: an event that can't be read");
	int other = epoll_create1(0);
	check(other >= 0 && !close(other), "an epoll closed");
	fails(epoll_ctl(other, EPOLL_CTL_ADD, fd, &ev), EBADF, "EPOLL_CTL_ADD: into it");
	fails(epoll_ctl(lsock, EPOLL_CTL_ADD, fd, &ev), EINVAL, "EPOLL_CTL_ADD: into no epoll");
	ev = (struct epoll_event){ EPOLLIN, { .u64 = 0xabc00000000ull + (unsigned)fd } };
	check(!epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) && turn(fd, 30000) && read(fd, b, 8) == 5,
	      "data that came before EPOLL_CTL_ADD makes an event");
	/* Ends with data unread: the peer learns of it. */
	tell(SEND, 1, 6, "unread");
	check(turn(fd, 30000) && read(fd, b, 2) == 2 && !close(fd), "close with data unread");
	nap(5);
	check(tell(RECV, 1, 1, NULL) == -ECONNRESET, "the peer's connection is reset");
	tell(CLOSE, 1, 0, NULL);
	/* A child between a close and a wait: nothing is closed twice, nothing stays open. */
	fd = conn(1);
	tell(SEND, 1, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 8) == 1 && write(fd, "bye", 3) == 3 && !close(fd), "close before a fork");
	pid_t pid = fork();
	if (!pid)
		_exit(fcntl(fd, F_GETFD) != -1 || errno != EBADF);
	int st;
	check(waitpid(pid, &st, 0) == pid && !st && tell(RECV, 1, 100, NULL) == 3, "closed in the child, too");
	tell(CLOSE, 1, 0, NULL);
	struct linger hard = { 1, 0 };
	fd = conn(1);
	tell(SEND, 1, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 8) == 1 && !setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard) &&
		      write(fd, "lost", 4) == 4 && !close(fd),
	      "close: SO_LINGER of no time");
	if (!is_unix)
		check(tell(RECV, 1, 100, NULL) < 5, "what was on its way may be lost");
	tell(CLOSE, 1, 0, NULL);
	bye(0, first);
}

static int option(int fd, int level, int name)
{
	int v = -1;
	socklen_t len = sizeof v;
	return getsockopt(fd, level, name, &v, &len) ? -errno : v;
}

/* What servers set of a connection just accepted. */
static void test_options(void)
{
	static const struct {
		int level, name, value;
	} opts[] = {
		{ IPPROTO_TCP, TCP_NODELAY, 1 },    { SOL_SOCKET, SO_KEEPALIVE, 1 },
		{ IPPROTO_TCP, TCP_KEEPIDLE, 300 }, { IPPROTO_TCP, TCP_KEEPINTVL, 100 },
		{ IPPROTO_TCP, TCP_KEEPCNT, 3 },
	};
	struct sockaddr_in a, b;
	socklen_t len = sizeof a;
	char buf[8];
	int first = conn(0), fd, v, bad = 0, one = 1, zero = 0;
	check(next_turn(first), "a turn");
	tell(CONNECT, 1, 0, NULL);
	fd = accept4(lsock, (void *)&a, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
	for (unsigned i = 0; i < sizeof opts / sizeof opts[0]; i++)
		bad += setsockopt(fd, opts[i].level, opts[i].name, &opts[i].value, sizeof opts[i].value) != 0;
	struct epoll_event ev = { EPOLLIN, { .u64 = 0xabc00000000ull + (unsigned)fd } };
	bad += epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) != 0;
	socklen_t lb = sizeof b;
	check(!bad && !getpeername(fd, (void *)&b, &lb) && lb == len && !memcmp(&a, &b, len), "options, getpeername");
	struct sockaddr_in l;
	socklen_t ll = sizeof l;
	check(!getsockname(fd, (void *)&l, &ll) && ll == addr_len && !memcmp(&l, &addr, ll), "getsockname");
	memset(&l, 0xee, sizeof l);
	ll = 6;
	check(!getsockname(fd, (void *)&l, &ll) && ll == addr_len && !memcmp(&l, &addr, 6) &&
		      ((uint8_t *)&l)[6] == 0xee,
	      "getsockname: cut short");
	fails(getsockname(fd, BAD, &lb), EFAULT, "getsockname: an address that can't be written");
	memset(&b, 0xee, sizeof b);
	lb = 4;
	check(!getpeername(fd, (void *)&b, &lb) && lb == len && !memcmp(&a, &b, 4) && ((uint8_t *)&b)[4] == 0xee,
	      "getpeername: cut short");
	lb = (socklen_t)-1;
	fails(getpeername(fd, (void *)&b, &lb), EINVAL, "getpeername: a negative length");
	lb = sizeof b;
	fails(getpeername(fd, BAD, &lb), EFAULT, "getpeername: an address that can't be written");
	fails(getpeername(fd, (void *)&b, BAD), EFAULT, "getpeername: a length that can't be read");
	for (unsigned i = 0; i < sizeof opts / sizeof opts[0]; i++)
		bad += option(fd, opts[i].level, opts[i].name) != opts[i].value;
	check(!bad, "they are set");
	check(!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &zero, sizeof zero) && !option(fd, IPPROTO_TCP, TCP_NODELAY) &&
		      !setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one),
	      "and unset");
	tell(SEND, 1, 1, "x");
	check(turn(fd, 30000) && read(fd, buf, 8) == 1, "an event");
	v = 0;
	fails(setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &v, sizeof v), EINVAL, "TCP_KEEPCNT: 0");
	v = 128;
	fails(setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &v, sizeof v), EINVAL, "TCP_KEEPCNT: 128");
	v = 32768;
	fails(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &v, sizeof v), EINVAL, "TCP_KEEPIDLE: 32768");
	fails(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &v, 3), EINVAL, "TCP_NODELAY: too short");
	fails(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &v, (socklen_t)-1), EINVAL, "TCP_NODELAY: a negative length");
	fails(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, BAD, sizeof v), EFAULT,
	      "TCP_NODELAY: a value that can't be read");
	fails(setsockopt(fd, IPPROTO_TCP, 999, &v, sizeof v), ENOPROTOOPT, "an option that is none");
	fails(setsockopt(fd, SOL_SOCKET, 9 - 32, &v, sizeof v), ENOPROTOOPT, "one of the socket's that is none");
	/* In order with what is written: a cork holds it back, its end sends it. */
	tell(SEND, 1, 1, "x");
	check(turn(fd, 30000) && read(fd, buf, 8) == 1 && !setsockopt(fd, IPPROTO_TCP, TCP_CORK, &one, sizeof one) &&
		      write(fd, "head", 4) == 4 && write(fd, "body", 4) == 4 &&
		      !setsockopt(fd, IPPROTO_TCP, TCP_CORK, &zero, sizeof zero) && write(fd, "!", 1) == 1,
	      "TCP_CORK around two writes");
	ask(RECV_TIMED, 1, 0, NULL);
	answer();
	check((last.r == 8 || last.r == 9) && !memcmp(last.data, "headbody!", last.r), "which arrive as one");
	if (last.r == 8)
		tell(RECV, 1, 1, NULL);
	check(!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) && !close(fd), "an option before close");
	fails(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), EBADF, "setsockopt: closed");
	tell(CLOSE, 1, 0, NULL);
	/* The name of a connection that is gone. */
	tell(CONNECT, 1, 0, NULL);
	check(next_turn(first) && (fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0, "accept4");
	tell(RESET, 1, 0, NULL);
	lb = sizeof b;
	fails(getpeername(fd, (void *)&b, &lb), ENOTCONN, "getpeername: reset, as the peer has told");
	ll = sizeof l;
	check(!getsockname(fd, (void *)&l, &ll) && !memcmp(&l, &addr, ll),
	      "getsockname: it has that name all the same");
	close(fd);
	fails(getsockname(fd, (void *)&l, &ll), EBADF, "getsockname: closed");
	/* Made non-blocking behind accept. */
	tell(CONNECT, 1, 0, NULL);
	check(next_turn(first) && (fd = accept(lsock, NULL, NULL)) >= 0 && !ioctl(fd, FIONBIO, &one), "FIONBIO");
	check(fcntl(fd, F_GETFL) & O_NONBLOCK, "it is set");
	ev.data.u64 = 0xabc00000000ull + (unsigned)fd;
	check(!ioctl(fd, FIONBIO, &zero) && !ioctl(fd, FIONBIO, &one) && !epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev),
	      "FIONBIO off and on, ADD");
	fails(read(fd, buf, 8), EAGAIN, "a read does not wait");
	tell(SEND, 1, 3, "abc");
	check(turn(fd, 30000) && read(fd, buf, 8) == 3 && write(fd, "d", 1) == 1 && tell(RECV, 1, 1, NULL) == 1,
	      "a turn");
	fails(ioctl(fd, FIONBIO, BAD), EFAULT, "FIONBIO: a value that can't be read");
	bye(1, fd);
	tell(CONNECT, 1, 0, NULL);
	check(next_turn(first) && (fd = accept(lsock, NULL, NULL)) >= 0, "accept");
	fails(ioctl(fd, FIONBIO, BAD), EFAULT, "FIONBIO: the same at once");
	check(!(fcntl(fd, F_GETFL) & O_NONBLOCK), "it blocks");
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	check(!connect(fd, &none, sizeof none), "connect: to nowhere");
	ll = sizeof l;
	check(!getsockname(fd, (void *)&l, &ll) && !memcmp(&l, &addr, ll),
	      "getsockname: it was bound, and keeps its name");
	bye(1, fd);
	tell(CONNECT, 1, 0, NULL);
	fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	ev.data.u64 = 0xabc00000000ull + (unsigned)fd;
	int two = dup2(lsock, fd);
	lb = sizeof b;
	check(two == fd, "dup2 over one just accepted");
	fails(getpeername(fd, (void *)&b, &lb), ENOTCONN, "getpeername: of what is there now");
	close(fd);
	tell(CLOSE, 1, 0, NULL);
	/* A child of in between. */
	tell(CONNECT, 1, 0, NULL);
	fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	check(!setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &opts[4].value, sizeof v), "an option before a fork");
	pid_t pid = fork();
	if (!pid)
		_exit(option(fd, IPPROTO_TCP, TCP_KEEPCNT) != 3);
	int st;
	check(waitpid(pid, &st, 0) == pid && !st, "the child finds it set");
	bye(1, fd);
	bye(0, first);
}

/* ---- files ---------------------------------------------------------------------------------------------------------------- */

static int file_with(const char *name, char first, int n)
{
	static char b[5000];
	int f = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	for (int i = 0; i < n; i++)
		b[i] = (char)(first + i % 23);
	if (f < 0 || write(f, b, n) != n)
		exit(115);
	return f;
}

/* The peer gets exactly these bytes: a head of one byte, len bytes of a file of file_with() from offset at, a tail. */
static bool arrives(char first, int at, int len)
{
	static uint8_t b[5002];
	b[0] = 'h';
	for (int i = 0; i < len; i++)
		b[1 + i] = (uint8_t)(first + (at + i) % 23);
	b[1 + len] = 't';
	return tell(RECV, 0, len + 2, NULL) == len + 2 && last.sum == sum_of(0, b, len + 2);
}

static bool one_file(int fd, int f, off_t at, size_t count, long expect)
{
	off_t was = at;
	return write(fd, "h", 1) == 1 && sendfile(fd, f, &at, count) == expect && at == was + expect &&
	       write(fd, "t", 1) == 1;
}

/* Files of more than a record, as fast as they go: nothing is missing, nothing comes twice. */
static void test_sendfile_large(int fd, const char *name)
{
	enum { SIZE = 1 << 20, TIMES = 6 };
	uint8_t *b = malloc(SIZE);
	unsigned sum = 0;
	long bad = 0, sent = 0;
	int f = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	off_t at;
	for (int i = 0; i < SIZE; i++)
		b[i] = (uint8_t)(i * 7 + i / 251);
	check(f >= 0 && write(f, b, SIZE) == SIZE && next_turn(fd), "a large file");
	check(sendfile(fd, f, (at = 0, &at), 100) == 100 && at == 100 && tell(RECV, 0, 100, NULL) == 100, "its head");
	ask(RECV, 0, SIZE * TIMES, NULL);
	for (int i = 0; i < TIMES; i++) {
		sum = sum_of(sum, b, SIZE);
		for (at = 0; at < SIZE;) {
			off_t was = at;
			ssize_t r = sendfile(fd, f, &at, (size_t)(SIZE - at));
			if (r < 0 && errno == EAGAIN) {
				struct epoll_event ev = { EPOLLOUT, { .u64 = 3 } };
				epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev);
				bad += epoll_wait(epfd, &ev, 1, 5000) != 1;
				continue;
			}
			bad += r <= 0 || at != was + r;
			if (r <= 0)
				break;
			sent += r;
		}
	}
	check(!bad && sent == SIZE * TIMES && answer() == SIZE * TIMES && last.sum == sum,
	      "sendfile: all of it, in order");
	struct epoll_event ev = { EPOLLIN, { .u64 = 0xabc00000000ull + (unsigned)fd } };
	check(!epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev), "EPOLL_CTL_MOD");
	close(f);
	free(b);
}

static void test_sendfile(void)
{
	char a[] = "/tmp/kx-batch-XXXXXX", b[sizeof a + 2], buf[8];
	int f = mkstemp(a), fd = conn(0);
	close(f);
	snprintf(b, sizeof b, "%s.b", a);
	f = file_with(a, 'a', 3000);
	for (int i = 0; i < 3; i++)
		check(next_turn(fd) && one_file(fd, f, i, 1000, 1000) && arrives('a', i, 1000),
		      "sendfile: between writes");
	check(next_turn(fd) && one_file(fd, f, 2900, 1000, 100) && arrives('a', 2900, 100), "sendfile: up to the end");
	check(next_turn(fd) && one_file(fd, f, 3000, 10, 0) && arrives('a', 0, 0), "sendfile: at the end");
	check(next_turn(fd) && one_file(fd, f, 5, 0, 0) && arrives('a', 0, 0), "sendfile: of no bytes");
	off_t off = -1;
	next_turn(fd);
	fails(sendfile(fd, f, &off, 10), EINVAL, "sendfile: before the beginning");
	next_turn(fd);
	fails(sendfile(fd, f, BAD, 10), EFAULT, "sendfile: an offset that can't be read");
	next_turn(fd);
	check(lseek(f, 7, SEEK_SET) == 7 && next_turn(fd) && write(fd, "h", 1) == 1 &&
		      sendfile(fd, f, NULL, 20) == 20 && lseek(f, 0, SEEK_CUR) == 27 && write(fd, "t", 1) == 1 &&
		      arrives('a', 7, 20),
	      "sendfile: at the file's position");
	check(next_turn(fd), "turn");
	long sum = 0;
	for (int i = 0; i < 20; i++)
		sum += sendfile(fd, f, (off = i, &off), 500);
	check(sum == 10000 && tell(RECV, 0, 10000, NULL) == 10000, "sendfile: twenty in one turn");
	int g = open(a, O_RDWR);
	check(next_turn(fd) && !ftruncate(g, 1500) && one_file(fd, f, 1000, 1000, 500) && arrives('a', 1000, 500),
	      "sendfile: the file became shorter");
	check(next_turn(fd) && pwrite(g, "bcde", 4, 1500) == 4 && one_file(fd, f, 1490, 1000, 14) &&
		      tell(RECV, 0, 16, NULL) == 16 && !memcmp(last.data + 11, "bcdet", 5),
	      "sendfile: and longer");
	close(g);
	/* The number becomes another file's, with something of the first one on its way. */
	g = file_with(b, 'B', 700);
	check(next_turn(fd) && one_file(fd, f, 0, 600, 600) && dup2(g, f) == f, "dup2 over the file");
	check(arrives('a', 0, 600), "what was sent before is of the old file");
	check(one_file(fd, f, 0, 1000, 700) && arrives('B', 0, 700), "what is sent then, of the new one");
	check(next_turn(fd) && one_file(fd, f, 0, 600, 600) && close(f) == 0 && arrives('B', 0, 600),
	      "close of the file");
	fails(sendfile(fd, f, &off, 1), EBADF, "sendfile: closed");
	check(open(b, O_WRONLY) == f && next_turn(fd), "open for writing");
	fails(sendfile(fd, f, (off = 0, &off), 1), EBADF, "sendfile: not open for reading");
	close(f);
	check(next_turn(fd) && sendfile(fd, g, (off = 0, &off), 9) == 9 && tell(RECV, 0, 9, NULL) == 9, "once more");
	check(next_turn(fd) && sendfile(fd, g, (off = 9, &off), 9) == 9 && !shutdown(fd, SHUT_WR) &&
		      tell(RECV, 0, 100, NULL) == 9,
	      "sendfile and shutdown");
	fails(read(fd, buf, 1), EAGAIN, "read: nothing");
	close(g);
	bye(0, fd);
	fd = conn(0);
	test_sendfile_large(fd, a);
	unlink(a);
	unlink(b);
	bye(0, fd);
}

static void test_dup(void)
{
	char b[8];
	int fd = conn(0), d = -1;
	tell(SEND, 0, 6, "abcdef");
	check(turn(fd, 30000) && read(fd, b, 2) == 2 && (d = dup(fd)) >= 0, "dup behind a read");
	check(read(d, b, 2) == 2 && !memcmp(b, "cd", 2) && read(fd, b, 8) == 2 && !memcmp(b, "ef", 2), "one stream");
	check(write(fd, "a", 1) == 1 && write(d, "b", 1) == 1 && write(fd, "c", 1) == 1, "writes by both");
	check(tell(RECV, 0, 3, NULL) == 3 && !memcmp(last.data, "abc", 3), "in order");
	close(d);
	bye(0, fd);
}

static void test_blocking(void)
{
	char b[8];
	int fd = conn(0);
	tell(SEND, 0, 2, "ab");
	check(turn(fd, 30000) && read(fd, b, 1) == 1, "event");
	check(!fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), "made blocking");
	check(read(fd, b, 8) == 1 && b[0] == 'b', "read: the rest");
	fails(recv(fd, b, 8, MSG_DONTWAIT), EAGAIN, "recv: MSG_DONTWAIT");
	struct timeval tv = { 0, 50000 };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	int64_t t = now_us();
	long r = read(fd, b, 8);
	check(r == -1 && errno == EAGAIN && now_us() - t >= 45000, "read: waits for SO_RCVTIMEO");
	int one = 1;
	check(!ioctl(fd, FIONBIO, &one), "FIONBIO");
	fails(read(fd, b, 8), EAGAIN, "read: non-blocking again");
	tell(SEND, 0, 2, "cd");
	check(turn(fd, 30000) && read(fd, b, 8) == 2, "read: as before");
	int low = 4;
	if (is_unix) { /* waits only */
		bye(0, fd);
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
	tell(SEND, 0, 2, "ef");
	check(!turn(fd, 30), "SO_RCVLOWAT: no event");
	check(read(fd, b, 1) == 1, "SO_RCVLOWAT: a read takes what is there");
	tell(SEND, 0, 3, "ghi");
	check(turn(fd, 30000) && read(fd, b, 8) == 4 && !memcmp(b, "fghi", 4), "SO_RCVLOWAT: reached");
	bye(0, fd);
}

/* ---- others --------------------------------------------------------------------------------------------------------------- */

static void test_fork(void)
{
	char b[64];
	int fd = conn(0), st = 0, fd2;
	tell(SEND, 0, 6, "abcdef");
	check(turn(fd, 30000) && read(fd, b, 2) == 2 && write(fd, "1", 1) == 1, "before a fork");
	pid_t pid = fork();
	if (!pid) {
		bool ok = read(fd, b, 2) == 2 && !memcmp(b, "cd", 2) && write(fd, "2", 1) == 1;
		_exit(ok ? 0 : 1);
	}
	check(waitpid(pid, &st, 0) == pid && st == 0, "the child reads on where its parent stopped");
	check(read(fd, b, 64) == 2 && !memcmp(b, "ef", 2) && write(fd, "3", 1) == 1,
	      "and the parent where the child did");
	check(tell(RECV, 0, 3, NULL) == 3 && !memcmp(last.data, "123", 3), "what both wrote is in order");
	/* A child that takes turns of its own while its parent does. */
	fd2 = conn(1);
	pid = fork();
	if (!pid) {
		int ep = epoll_create1(0);
		struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };
		epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
		bool ok = epoll_wait(ep, &ev, 1, 30000) == 1 && read(fd, b, 64) == 3 && write(fd, "child", 5) == 5;
		_exit(ok ? 0 : 1);
	}
	tell(SEND, 1, 2, "xy");
	check(turn(fd2, 30000) && read(fd2, b, 64) == 2 && write(fd2, "parent", 6) == 6, "the parent's turn");
	tell(SEND, 0, 3, "ghi");
	check(waitpid(pid, &st, 0) == pid && st == 0, "the child's turn");
	check(tell(RECV, 0, 5, NULL) == 5 && tell(RECV, 1, 6, NULL) == 6, "both arrive");
	/* One that inherits what it may not lose, by vfork and exec. */
	tell(SEND, 1, 4, "left");
	check(turn(fd2, 30000) && read(fd2, b, 1) == 1 && write(fd2, "v", 1) == 1, "before a vfork");
	pid = vfork();
	if (!pid) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	check(waitpid(pid, &st, 0) == pid && st == 0 && read(fd2, b, 64) == 3, "after a vfork");
	check(tell(RECV, 1, 1, NULL) == 1, "what was written before it is there");
	for (int i = 0; i < 3; i++) {
		tell(SEND, 1, 2, "op");
		check(turn(fd2, 30000) && read(fd2, b, 64) == 2 && write(fd2, "q", 1) == 1 &&
			      tell(RECV, 1, 1, NULL) == 1,
		      "turns after all children have ended");
	}
	bye(0, fd);
	bye(1, fd2);
}

/* A server in a child of its own: it ends by exit, by a signal, by exec, with something written last. */
static void test_death(void)
{
	static const char *const how[] = { "_exit", "a signal", "exec" };
	for (int i = 0; i < 3; i++) {
		if (tell(CONNECT, 0, 0, NULL))
			exit(115);
		pid_t pid = fork();
		if (!pid) {
			char b[8];
			epfd = epoll_create1(0);
			int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0xabc00000000ull + (unsigned)fd };
			epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev);
			if (!turn(fd, 30000) || read(fd, b, 8) != 1 || write(fd, "farewell", 8) != 8)
				_exit(1);
			if (i == 1)
				raise(SIGTERM);
			if (i == 2)
				execl("/bin/true", "true", (char *)NULL);
			_exit(0);
		}
		tell(SEND, 0, 1, "x");
		waitpid(pid, NULL, 0);
		char name[64];
		snprintf(name, sizeof name, "%s: what was written last arrives", how[i]);
		check(tell(RECV, 0, 100, NULL) == 8 && !memcmp(last.data, "farewell", 8), name);
		tell(CLOSE, 0, 0, NULL);
	}
}

static void test_rights(void)
{
	char b[64], ctl[CMSG_SPACE(sizeof(int))] = { 0 };
	int fd = conn(0), sv[2], got = -1;
	struct iovec v = { "f", 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	tell(SEND, 0, 6, "abcdef");
	check(turn(fd, 30000) && read(fd, b, 2) == 2 && write(fd, "1", 1) == 1, "before it is passed on");
	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, sv) && sendmsg(sv[0], &m, 0) == 1, "SCM_RIGHTS");
	v.iov_base = b;
	check(recvmsg(sv[1], &m, 0) == 1 && (c = CMSG_FIRSTHDR(&m)), "received");
	memcpy(&got, CMSG_DATA(c), sizeof got);
	check(read(got, b, 2) == 2 && !memcmp(b, "cd", 2) && read(fd, b, 9) == 2 && write(got, "2", 1) == 1,
	      "one stream");
	check(write(fd, "3", 1) == 1 && tell(RECV, 0, 3, NULL) == 3 && !memcmp(last.data, "123", 3), "in order");
	close(got);
	close(sv[0]);
	close(sv[1]);
	bye(0, fd);
}

/* A process that is its own peer. */
static void test_own_peer(void)
{
	char b[64];
	int a = socket(addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int r = connect(a, (void *)&addr, addr_len);
	check(r == 0 || errno == EINPROGRESS, "connect to oneself");
	int fd = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 0xabc00000000ull + (unsigned)fd };
	struct epoll_event ev2 = { .events = EPOLLIN, .data.u64 = 0xabc00000000ull + (unsigned)a };
	epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev);
	epoll_ctl(epfd, EPOLL_CTL_ADD, a, &ev2);
	for (int i = 0; i < 50; i++) {
		bool ok = write(a, "ping", 4) == 4 && turn(fd, 30000) && read(fd, b, 64) == 4 &&
			  write(fd, "pong", 4) == 4 && turn(a, 30000) && read(a, b, 64) == 4 && !memcmp(b, "pong", 4);
		if (i == 0 || !ok)
			check(ok, "there and back");
	}
	check(write(a, "1", 1) == 1 && turn(fd, 30000) && read(fd, b, 64) == 1 && write(a, "2", 1) == 1, "once more");
	r = read(fd, b, 64);
	check(r == 1 || (!is_unix && r == -1 && turn(fd, 30000) && read(fd, b, 64) == 1),
	      "what one has sent oneself is there");
	close(a);
	check(turn(fd, 30000) && read(fd, b, 64) == 0, "the end");
	close(fd);
}

/* ---- threads ---------------------------------------------------------------------------------------------------------------- */

static volatile int stop;
static _Atomic long served;

static void *loop(void *arg)
{
	int ep = *(int *)arg;
	char b[256];
	struct epoll_event ev[8];
	while (!stop) {
		int n = epoll_wait(ep, ev, 8, 20);
		for (int i = 0; i < n; i++) {
			long r = read(ev[i].data.fd, b, sizeof b);
			for (long at = 0, w; at<r; at += w> 0 ? w : 0)
				w = write(ev[i].data.fd, b + at, r - at);
			served += r > 0 ? r : 0;
		}
	}
	return NULL;
}

static void test_threads(void)
{
	pthread_t t[4];
	int ep[4], fd[16];
	bool ok = true;
	stop = 0;
	served = 0;
	for (int i = 0; i < 4; i++)
		ep[i] = epoll_create1(EPOLL_CLOEXEC);
	for (int i = 0; i < 16; i++) {
		struct epoll_event ev = { .events = EPOLLIN };
		tell(CONNECT, i, 0, NULL);
		ev.data.fd = fd[i] = accept4(lsock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		epoll_ctl(ep[i % 3], EPOLL_CTL_ADD, fd[i], &ev);
	}
	ep[3] = ep[2]; /* two threads on one epoll */
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, loop, &ep[i]);
	for (int round = 0; round < 40; round++) {
		for (int i = 0; i < 16; i++) {
			char d[16];
			snprintf(d, sizeof d, "%07d", round * 16 + i);
			ask(SEND, i, 8, d);
		}
		for (int i = 0; i < 16; i++)
			answer();
		for (int i = 0; i < 16; i++) {
			char d[16];
			snprintf(d, sizeof d, "%07d", round * 16 + i);
			ok &= tell(RECV, i, 8, NULL) == 8 && !memcmp(last.data, d, 8);
		}
	}
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	check(ok && served == 40 * 16 * 8, "four threads with three epolls echo all of it, once and in order");
	/* A socket that goes from one thread to another. */
	tell(SEND, 0, 6, "abcdef");
	struct epoll_event ev;
	char b[8];
	check(epoll_wait(ep[0], &ev, 1, 30000) == 1 && read(fd[0], b, 2) == 2 && write(fd[0], "1", 1) == 1,
	      "a turn here");
	stop = 0;
	pthread_create(&t[0], NULL, loop, &ep[0]);
	tell(RECV, 0, 5, NULL);
	stop = 1;
	pthread_join(t[0], NULL);
	check(last.r == 5 && !memcmp(last.data, "1cdef", 5), "the next thread goes on");
	for (int i = 0; i < 16; i++)
		bye(i, fd[i]);
	for (int i = 0; i < 3; i++)
		close(ep[i]);
}

static void test_signals(void)
{
	char b[64];
	int fd = conn(0);
	pipes = 0;
	signal(SIGPIPE, on_pipe);
	tell(SEND, 0, 2, "ab");
	check(turn(fd, 30000), "event");
	raise(SIGPIPE);
	check(pipes == 1 && read(fd, b, 64) == 2, "a handler between event and read");
	signal(SIGPIPE, SIG_DFL);
	/* Asked again and again without waiting, what comes must be seen. */
	tell(SEND, 0, 1, "x");
	check(turn(fd, 30000) && read(fd, b, 64) == 1, "event");
	ask(SEND, 0, 1, "y");
	int64_t t = now_us();
	long r;
	while ((r = read(fd, b, 64)) < 0 && now_us() - t < 60000000)
		;
	check(r == 1 && b[0] == 'y', "a read that is repeated without epoll_wait");
	answer();
	bye(0, fd);
}

static void test_speed(void)
{
	char b[64];
	int fd = conn(0), n = 10000;
	tell(SEND, 0, 15000, NULL);
	nap(20);
	turn(fd, 30000);
	int64_t t = now_us();
	for (int i = 0; i < n; i++)
		if (read(fd, b, 1) != 1)
			break;
	printf("# %d reads of one byte: %lld us\n", n, (long long)(now_us() - t));
	bye(0, fd);
}

/* ---- many at a time ------------------------------------------------------------------------------------------------ */

enum { MANY = 12, LARGE = 5, LARGE_LEN = 60000, GONE = 7 };

/* Each has been asked something and answers in two pieces, all in one turn. gone: this one's peer has closed. */
static bool many_turn(const int *fd, int gone)
{
	static char big[LARGE_LEN];
	struct epoll_event ev[16];
	char b[8];
	long first[MANY], second[MANY];
	unsigned sum = 0;
	bool ok = true;
	for (int i = 0; i < MANY; i++)
		ask(SEND, i, 2, "ab");
	for (int i = 0; i < MANY; i++)
		ok &= answer() == 2;
	if (gone >= 0)
		tell(CLOSE, gone, 0, NULL);
	for (int i = 0; i < 1000 && epoll_wait(epfd, ev, 16, 30000) < MANY; i++)
		nap(1);
	for (int i = 0; i < MANY; i++)
		ok &= read(fd[i], b, sizeof b) == 2;
	for (int i = 0; i < LARGE_LEN; i++)
		big[i] = (char)(i * 7 + i / 251);
	pipes = 0;
	for (int i = 0; i < MANY; i++) {
		b[0] = (char)('A' + i);
		first[i] = i == LARGE ? write(fd[i], big, LARGE_LEN) : write(fd[i], b, 1);
	}
	for (int i = 0; i < MANY; i++)
		second[i] = write(fd[i], "xyz", 3);
	nap(10); /* a call sends it */
	for (int i = 0; i < MANY; i++) {
		long len = i == LARGE ? LARGE_LEN : 1;
		ok &= first[i] == len;
		if (i == gone)
			continue;
		ok &= second[i] == 3 && tell(RECV, i, (int)len + 3, NULL) == len + 3;
		if (i == LARGE)
			ok &= last.sum == sum_of(sum_of(sum, (uint8_t *)big, len), (const uint8_t *)"xyz", 3);
		else
			ok &= last.data[0] == 'A' + i && !memcmp(last.data + 1, "xyz", 3);
	}
	/* The second write is refused, or the next one is: each with its signal, and none without. */
	if (gone >= 0) {
		ok &= pipes == (second[gone] < 0);
		ok &= write(fd[gone], "1", 1) == -1 && errno == EPIPE && pipes == 1 + (second[gone] < 0);
	}
	return ok;
}

static bool many_turns(void)
{
	int fd[MANY];
	bool ok = true;
	for (int i = 0; i < MANY; i++)
		fd[i] = conn(i);
	for (int round = 0; round < 3; round++)
		ok &= many_turn(fd, -1);
	if (!is_unix)
		ok &= many_turn(fd, GONE);
	for (int i = 0; i < MANY; i++)
		if (is_unix || i != GONE)
			bye(i, fd[i]);
		else
			close(fd[i]);
	return ok;
}

static void test_many(void)
{
	int status;
	signal(SIGPIPE, on_pipe);
	check(many_turns(), "twelve answers in one turn: all arrive, whole and in order, whatever becomes of one");
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		epfd = epoll_create1(EPOLL_CLOEXEC);
		_exit(!many_turns());
	}
	check(waitpid(pid, &status, 0) == pid && status == 0, "... by a child, of its own connections");
	check(many_turns(), "... and by the parent, behind that");
	signal(SIGPIPE, SIG_DFL);
}

static void all(bool un)
{
	listen_now(un);
	peer_start();
	epfd = epoll_create1(EPOLL_CLOEXEC);
	test_read();
	test_large();
	test_ends();
	if (!un)
		test_sigpipe();
	test_edge();
	test_two_epolls();
	test_write();
	test_late();
	test_compute();
	test_backpressure();
	test_close();
	test_churn();
	if (!un)
		test_options();
	test_sendfile();
	test_dup();
	test_blocking();
	test_rights();
	test_threads();
	test_many();
	test_signals();
	test_speed();
	test_fork();
	test_death();
	test_own_peer();
	close(epfd);
	close(lsock);
	peer_stop();
}

int main(void)
{
	alarm(500);
	arrived = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	all(false);
	all(true);
	printf("%d checks\n", checks);
	return first_failure;
}
