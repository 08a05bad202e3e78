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
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "files.h"
#include "others.h"
#include "talk.h"

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
