/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UDP as a program sees it, where datagrams are received ahead and replies are queued: boundaries, order, addresses,
 * control data, truncation, peeking, several at once, readiness by poll, select and epoll with levels, edges and single
 * shots, errors, time limits, what is sent when, descriptors that others hold (dup, fork, SCM_RIGHTS, threads). The other
 * side is a process of its own. Passes on any Linux.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include "bursts.h"

/* ---- receiving -------------------------------------------------------------------------------------------------- */

/* Another file takes the number of a socket, from one that is too high to be looked at. */
static void test_replaced(void)
{
	struct rlimit was, more;
	char c = 0;
	int p[2], s = begun(SOCK_NONBLOCK, 4, 0);
	NEED(!getrlimit(RLIMIT_NOFILE, &was));
	more = was;
	more.rlim_cur = was.rlim_max < 8192 ? was.rlim_max : 8192;
	NEED(!setrlimit(RLIMIT_NOFILE, &more) && !pipe(p) && write(p[1], "x", 1) == 1);
	int high = fcntl(p[0], F_DUPFD, 4096);
	check(high >= 4096 && dup2(high, s) == s && read(s, &c, 1) == 1 && c == 'x',
	      "replaced: by dup2 from a high number");
	close(high);
	close(p[0]);
	close(p[1]);
	close(s);
	setrlimit(RLIMIT_NOFILE, &was);
}

static void test_order(void)
{
	static uint8_t buf[65536];
	int s = greedy(SOCK_NONBLOCK), good = 0;
	for (int round = 0; round < 4; round++) {
		feed(40, 0, port);
		for (int i = 0; i < 40; i++) {
			struct sockaddr_in from = { 0 };
			socklen_t len = sizeof from;
			long n = recvfrom(s, buf, sizeof buf, 0, (void *)&from, &len);
			good += n == length_of(i, 0) && buf[n - 1] == i && len == sizeof from &&
				from.sin_family == AF_INET && ntohs(from.sin_port) == peer_port &&
				from.sin_addr.s_addr == htonl(INADDR_LOOPBACK);
		}
		good += recv(s, buf, sizeof buf, 0) == -1 && errno == EAGAIN;
		good += recv(s, buf, sizeof buf, 0) == -1 && errno == EAGAIN;
	}
	check(good == 4 * 42, "each datagram by itself, in order, with its sender; then none");
	feed(3, 60000, port);
	check(takes(s, 0, 3, 60000), "long ones");
	feed(200, 100, port);
	check(takes(s, 0, 200, 100), "many");
	good = 0;
	for (int round = 0; round < 12; round++) { /* those with which it begins are others each time */
		feed(round, 100, port);
		check(takes(s, 0, round, 100), "a few short ones");
		feed(12, MIXED, port);
		for (int i = 0; i < 12; i++) {
			long n = recv(s, buf, sizeof buf, 0), same = 0;
			while (same < n && buf[same] == i)
				same++;
			good += n == length_of(i, MIXED) && same == n;
		}
	}
	check(good == 144 && recv(s, buf, 8, 0) == -1 && errno == EAGAIN, "short and long ones in between");
	feed(5, -1, port);
	good = 0;
	for (int i = 0; i < 5; i++)
		good += recv(s, buf, 8, 0) == 0;
	check(good == 5 && recv(s, buf, 8, 0) == -1 && errno == EAGAIN, "empty ones");
	feed(2, 10, port);
	check(read(s, buf, 0) == 0 && read(s, buf, 100) == 10 && recv(s, buf, 0, 0) == 0 && recv(s, buf, 100, 0) == -1,
	      "a read of nothing takes none, a recv of nothing does");
	feed(3, 100, port);
	struct iovec v[2] = { { buf, 3 }, { buf + 100, 40 } };
	check(readv(s, v, 2) == 43 && buf[100] == 0 && read(s, buf, 200) == 100 && buf[99] == 1 &&
		      recv(s, buf, 100, 0) == 100 && buf[0] == 2,
	      "read and readv");
	close(s);
}

static void test_cut(void)
{
	char buf[300];
	int s = begun(SOCK_NONBLOCK, 6, 200);
	struct iovec v = { buf, 50 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	check(recvmsg(s, &m, 0) == 50 && m.msg_flags == MSG_TRUNC && buf[0] == 1, "a short buffer: MSG_TRUNC");
	m.msg_flags = 0;
	check(recvmsg(s, &m, MSG_TRUNC) == 200 && m.msg_flags == MSG_TRUNC && buf[0] == 2, "the true length");
	check(recv(s, buf, 20, MSG_TRUNC | MSG_PEEK) == 200 && recv(s, buf, sizeof buf, MSG_PEEK) == 200 && buf[0] == 3,
	      "a peek takes nothing");
	v.iov_len = sizeof buf;
	m.msg_flags = 0;
	check(recvmsg(s, &m, MSG_CMSG_CLOEXEC) == 200 && (unsigned)m.msg_flags == MSG_CMSG_CLOEXEC && buf[0] == 3,
	      "flags come back");
	check(recvfrom(s, bad_address, 10, 0, NULL, NULL) == -1 && errno == EFAULT, "a bad buffer");
	check(takes(s, 5, 6, 200), "... costs a datagram");
	feed(12, 0, port);
	struct sockaddr_in from;
	memset(&from, 0x55, sizeof from);
	socklen_t len = 4;
	check(recvfrom(s, buf, sizeof buf, 0, (void *)&from, &len) == 1 && len == sizeof from &&
		      ntohs(from.sin_port) == peer_port && from.sin_addr.s_addr == 0x55555555,
	      "a short address: its true length");
	len = (socklen_t)-1;
	check(recvfrom(s, buf, sizeof buf, 0, (void *)&from, &len) == -1 && errno == EINVAL, "a negative one");
	check(recvfrom(s, buf, sizeof buf, 0, (void *)&from, NULL) == -1 && errno == EFAULT, "no length of it");
	drain(s);
	close(s);
}

static void test_control(void)
{
	char buf[300];
	union {
		struct cmsghdr h;
		char b[256];
	} ctl;
	int on = 1, s = greedy(SOCK_NONBLOCK);
	setsockopt(s, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
	setsockopt(s, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on);
	setsockopt(s, IPPROTO_IP, IP_RECVTTL, &on, sizeof on);
	feed(6, 100, port);
	struct sockaddr_in from;
	struct iovec v = { buf, sizeof buf };
	struct msghdr m = { .msg_name = &from,
			    .msg_namelen = sizeof from,
			    .msg_iov = &v,
			    .msg_iovlen = 1,
			    .msg_control = &ctl,
			    .msg_controllen = sizeof ctl };
	struct cmsghdr *c[3] = { 0 };
	bool good = true;
	int64_t before = now_ms();
	(void)before;
	for (int i = 0; i < 2; i++) {
		m.msg_controllen = sizeof ctl;
		m.msg_namelen = sizeof from;
		good &= recvmsg(s, &m, 0) == 100 && !m.msg_flags && m.msg_namelen == sizeof from;
		c[0] = CMSG_FIRSTHDR(&m);
		c[1] = c[0] ? CMSG_NXTHDR(&m, c[0]) : NULL;
		c[2] = c[1] ? CMSG_NXTHDR(&m, c[1]) : NULL;
		good &= c[2] && c[0]->cmsg_type == SO_TIMESTAMP && c[1]->cmsg_type == IP_PKTINFO &&
			c[2]->cmsg_type == IP_TTL && m.msg_controllen == 32 + 32 + 24;
		if (!good)
			break;
		struct timeval *tv = (void *)CMSG_DATA(c[0]);
		struct in_pktinfo *pi = (void *)CMSG_DATA(c[1]);
		good &= llabs((long long)tv->tv_sec - time(NULL)) < 300 &&
			pi->ipi_addr.s_addr == htonl(INADDR_LOOPBACK) && *(int *)CMSG_DATA(c[2]) == 64;
	}
	check(good, "control data of each");
	m.msg_controllen = 32 + 20;
	check(recvmsg(s, &m, 0) == 100 && m.msg_flags == MSG_CTRUNC && m.msg_controllen == 52 &&
		      (c[0] = CMSG_FIRSTHDR(&m)) && ((struct cmsghdr *)(ctl.b + 32))->cmsg_len == 20,
	      "control data cut in the second");
	m.msg_controllen = 40;
	check(recvmsg(s, &m, 0) == 100 && m.msg_flags == MSG_CTRUNC && m.msg_controllen == 32,
	      "control data cut before the second");
	m.msg_control = NULL;
	m.msg_controllen = 0;
	check(recvmsg(s, &m, 0) == 100 && m.msg_flags == MSG_CTRUNC && m.msg_controllen == 0, "no room for any");
	m.msg_control = &ctl;
	m.msg_controllen = sizeof ctl;
	check(recvmsg(s, &m, 0) == 100 && recvmsg(s, &m, 0) == -1 && errno == EAGAIN, "and then none");
	close(s);
}

static void test_many(void)
{
	static char buf[40][1000];
	struct mmsghdr m[40];
	struct iovec v[40];
	struct sockaddr_in from[40];
	for (int i = 0; i < 40; i++) {
		v[i] = (struct iovec){ buf[i], 1000 };
		m[i].msg_hdr = (struct msghdr){
			.msg_iov = &v[i], .msg_iovlen = 1, .msg_name = &from[i], .msg_namelen = sizeof from[i]
		};
	}
	int s = greedy(0), good = 0;
	feed(30, 0, port);
	good += recvmmsg(s, m, 10, 0, NULL) == 10;
	for (int i = 0; i < 10; i++)
		good += m[i].msg_len == (unsigned)length_of(i, 0) && buf[i][0] == i &&
			ntohs(from[i].sin_port) == peer_port;
	good += recvmmsg(s, m, 1, 0, NULL) == 1 && buf[0][0] == 10;
	good += recvmmsg(s, m, 40, MSG_DONTWAIT, NULL) == 19 && buf[18][0] == 29;
	check(good == 13, "several at a time");
	check(recvmmsg(s, m, 40, MSG_DONTWAIT, NULL) == -1 && errno == EAGAIN, "none");
	feed(7, 0, port);
	check(recvmmsg(s, m, 40, MSG_WAITFORONE, NULL) == 7, "MSG_WAITFORONE");
	feed(5, 0, port);
	recv(s, buf[0], 1000, 0);
	int64_t t = now_ms();
	tell(DELAYED, 3, 0, AF_INET, port);
	check(recvmmsg(s, m, 7, 0, NULL) == 7 && buf[3][0] == 4 && buf[4][0] == 0 && buf[6][0] == 2 &&
		      now_ms() - t >= 40,
	      "it waits for the rest");
	tell(DELAYED, 3, 0, AF_INET, port);
	check(recvmmsg(s, m, 40, MSG_WAITFORONE, NULL) >= 1, "MSG_WAITFORONE waits for one");
	nap(100);
	drain(s);
	feed(3, 0, port);
	struct timespec ts = { 100, 0 };
	check(recvmmsg(s, m, 3, 0, &ts) == 3 && ts.tv_sec <= 100 && ts.tv_sec >= 40, "with a time limit");
	feed(4, 0, port);
	check(recvmmsg(s, m, 0, 0, NULL) == 0 && recvmmsg(s, m, 4, 0, NULL) == 4, "none asked for");
	close(s);
}

static void test_blocking(void)
{
	char buf[1000];
	int s = begun(0, 4, 0);
	struct timeval tv = { 0, 80000 }, longer = { 100, 0 };
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &longer, sizeof longer);
	int64_t t = now_ms();
	check(recv(s, buf, sizeof buf, 0) == length_of(1, 0) && recv(s, buf, sizeof buf, 0) == length_of(2, 0) &&
		      recv(s, buf, sizeof buf, 0) == length_of(3, 0) && now_ms() - t < 90000,
	      "what is there comes at once");
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	t = now_ms();
	check(recv(s, buf, sizeof buf, 0) == -1 && errno == EAGAIN && now_ms() - t >= 70, "SO_RCVTIMEO");
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &longer, sizeof longer);
	tell(DELAYED, 1, 5, AF_INET, port);
	check(recv(s, buf, sizeof buf, 0) == 5, "it sleeps until one comes");
	fcntl(s, F_SETFL, O_NONBLOCK);
	t = now_ms();
	check(recv(s, buf, sizeof buf, 0) == -1 && errno == EAGAIN && now_ms() - t < 90000, "O_NONBLOCK, set late");
	fcntl(s, F_SETFL, 0);
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	t = now_ms();
	check(recv(s, buf, sizeof buf, 0) == -1 && errno == EAGAIN && now_ms() - t >= 70, "... and cleared");
	feed(3, 50, port);
	int n = -1, ok = ioctl(s, FIONREAD, &n) == 0 && n == 50;
	recv(s, buf, sizeof buf, 0);
	n = -1;
	check(ok && ioctl(s, FIONREAD, &n) == 0 && n == 50, "FIONREAD: the next one's length");
	drain(s);
	check(ioctl(s, FIONREAD, &n) == 0 && n == 0, "FIONREAD: none");
	close(s);
}

/* ---- readiness -------------------------------------------------------------------------------------------------- */

static void test_poll(void)
{
	char buf[1000];
	int s = begun(SOCK_NONBLOCK, 5, 0), q[2], good = 0;
	NEED(!pipe(q));
	struct pollfd p[3] = { { s, POLLIN | POLLOUT, 0 }, { q[0], POLLIN, 0 }, { -1, POLLIN, 0 } };
	good += poll(p, 3, 100000) == 1 && p[0].revents == (POLLIN | POLLOUT) && !p[1].revents;
	NEED(write(q[1], "x", 1) == 1);
	p[0].events = POLLIN;
	good += poll(p, 3, 100000) == 2 && p[0].revents == POLLIN && p[1].revents == POLLIN;
	recv(s, buf, sizeof buf, 0);
	good += poll(p, 3, 0) == 2;
	recv(s, buf, sizeof buf, 0);
	NEED(read(q[0], buf, 1) == 1);
	good += poll(p, 3, -1) == 1 && p[0].revents == POLLIN && !p[1].revents;
	struct timespec ts = { 1, 0 };
	p[0].events = POLLRDNORM;
	good += ppoll(p, 3, &ts, NULL) == 1 && p[0].revents == POLLRDNORM;
	p[0].events = POLLPRI;
	good += poll(p, 3, 0) == 0;
	p[0].events = POLLIN;
	check(good == 6, "poll of what is left, and of others");
	fd_set in, out;
	FD_ZERO(&in);
	FD_ZERO(&out);
	FD_SET(s, &in);
	FD_SET(q[0], &in);
	FD_SET(s, &out);
	struct timeval tv = { 100, 0 };
	good = select(s + q[0] + 1, &in, &out, NULL, &tv) == 2 && FD_ISSET(s, &in) && FD_ISSET(s, &out) &&
	       !FD_ISSET(q[0], &in);
	FD_ZERO(&in);
	FD_SET(s, &in);
	good += pselect(s + 1, &in, NULL, NULL, NULL, NULL) == 1 && FD_ISSET(s, &in);
	check(good == 2, "select and pselect");
	check(takes(s, 3, 5, 0), "nothing was lost by that");
	int64_t t = now_ms();
	good = poll(p, 1, 50) == 0 && !p[0].revents && now_ms() - t >= 45;
	tv = (struct timeval){ 0, 0 };
	FD_ZERO(&in);
	FD_SET(s, &in);
	good += select(s + 1, &in, NULL, NULL, &tv) == 0 && !FD_ISSET(s, &in);
	tell(DELAYED, 1, 9, AF_INET, port);
	good += poll(p, 1, 100000) == 1 && recv(s, buf, sizeof buf, 0) == 9;
	check(good == 3, "nothing is ready when nothing is left");
	/* Peeking must not keep others from their turn. */
	feed(8, 0, port);
	good = 0;
	NEED(write(q[1], "x", 1) == 1);
	for (int i = 0; i < 4; i++) {
		good += poll(p, 2, 100000) == 2;
		recv(s, buf, sizeof buf, MSG_PEEK);
	}
	check(good == 4 && takes(s, 0, 8, 0), "a peek between polls");
	close(q[0]);
	close(q[1]);
	close(s);
}

static void test_epoll(void)
{
	char buf[1000];
	int s = begun(SOCK_NONBLOCK, 6, 0), q[2], ep = epoll_create1(0), good = 0;
	struct epoll_event e = { EPOLLIN, { .u64 = 77 } }, got[4];
	NEED(!pipe(q) && !epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	e.data.u64 = 78;
	NEED(!epoll_ctl(ep, EPOLL_CTL_ADD, q[0], &e));
	good += epoll_wait(ep, got, 4, 100000) == 1 && got[0].events == EPOLLIN && got[0].data.u64 == 77;
	good += epoll_wait(ep, got, 4, 0) == 1 && got[0].data.u64 == 77;
	recv(s, buf, sizeof buf, 0);
	NEED(write(q[1], "x", 1) == 1);
	good += epoll_wait(ep, got, 4, 0) == 2 && got[0].data.u64 + got[1].data.u64 == 77 + 78;
	uint64_t first = epoll_wait(ep, got, 1, 0) == 1 ? got[0].data.u64 : 0;
	good += epoll_wait(ep, got, 1, 0) == 1 && got[0].data.u64 + first == 77 + 78;
	check(good == 4, "levels: what is left, with others, one at a time");
	struct pollfd p = { ep, POLLIN, 0 };
	NEED(read(q[0], buf, 1) == 1);
	check(poll(&p, 1, 0) == 1, "poll of the epoll");
	e = (struct epoll_event){ EPOLLIN | EPOLLOUT, { .u64 = 79 } };
	good = epoll_ctl(ep, EPOLL_CTL_MOD, s, &e) == 0;
	good += epoll_wait(ep, got, 4, 0) == 1 && got[0].events == (EPOLLIN | EPOLLOUT) && got[0].data.u64 == 79;
	e.events = EPOLLOUT;
	good += epoll_ctl(ep, EPOLL_CTL_MOD, s, &e) == 0 && epoll_wait(ep, got, 4, 0) == 1 && got[0].events == EPOLLOUT;
	e.events = EPOLLIN;
	epoll_ctl(ep, EPOLL_CTL_MOD, s, &e);
	check(good == 3, "EPOLL_CTL_MOD");
	check(takes(s, 2, 6, 0) && epoll_wait(ep, got, 4, 0) == 0, "and then nothing");
	feed(3, 0, port);
	good = epoll_wait(ep, got, 4, 0) == 1 && recv(s, buf, sizeof buf, 0) > 0;
	good += epoll_ctl(ep, EPOLL_CTL_DEL, s, NULL) == 0 && epoll_wait(ep, got, 4, 0) == 0;
	good += epoll_ctl(ep, EPOLL_CTL_ADD, s, &e) == 0 && epoll_wait(ep, got, 4, 0) == 1;
	check(good == 3 && takes(s, 1, 3, 0), "EPOLL_CTL_DEL and again ADD");
	/* Edges: one event for each arrival, and none for what is only left. */
	e.events = EPOLLIN | EPOLLET;
	epoll_ctl(ep, EPOLL_CTL_MOD, s, &e);
	feed(4, 0, port);
	good = epoll_wait(ep, got, 4, 100000) == 1 && epoll_wait(ep, got, 4, 20) == 0;
	good += recv(s, buf, sizeof buf, 0) > 0;
	feed(1, 0, port);
	good += epoll_wait(ep, got, 4, 100000) == 1;
	while (recv(s, buf, sizeof buf, 0) > 0)
		;
	good += epoll_wait(ep, got, 4, 20) == 0;
	feed(1, 0, port);
	good += epoll_wait(ep, got, 4, 100000) == 1;
	check(good == 5, "edges");
	drain(s);
	e.events = EPOLLIN | EPOLLONESHOT;
	epoll_ctl(ep, EPOLL_CTL_MOD, s, &e);
	feed(4, 0, port);
	good = epoll_wait(ep, got, 4, 100000) == 1 && epoll_wait(ep, got, 4, 20) == 0 &&
	       recv(s, buf, sizeof buf, 0) > 0;
	feed(1, 0, port);
	good += epoll_wait(ep, got, 4, 20) == 0;
	good += epoll_ctl(ep, EPOLL_CTL_MOD, s, &e) == 0 && epoll_wait(ep, got, 4, 0) == 1;
	check(good == 3, "EPOLLONESHOT");
	drain(s);
	close(s);
	/* A whole server's turn, again and again, with each kind of wait. */
	good = 0;
	s = greedy(SOCK_NONBLOCK);
	e = (struct epoll_event){ EPOLLIN, { .u64 = 80 } };
	NEED(!epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	for (int round = 0; round < 10; round++) {
		feed(30, 0, port);
		for (int i = 0; i < 30; i++)
			good += epoll_wait(ep, got, 4, 100000) == 1 && got[0].data.u64 == 80 &&
				recv(s, buf, sizeof buf, 0) == length_of(i, 0);
		good += epoll_wait(ep, got, 4, 0) == 0;
	}
	check(good == 310, "one datagram for each wait");
	/* An epoll in another one. */
	int outer = epoll_create1(0);
	e.data.u64 = 5;
	NEED(!epoll_ctl(outer, EPOLL_CTL_ADD, ep, &e));
	feed(20, 0, port);
	good = 0;
	for (int i = 0; i < 20; i++)
		good += epoll_wait(outer, got, 1, 1000) == 1 && recv(s, buf, sizeof buf, 0) > 0;
	check(good == 20 && epoll_wait(outer, got, 1, 0) == 0, "an epoll in an epoll");
	close(outer);
	close(ep);
	close(q[0]);
	close(q[1]);
	close(s);
}

/* ---- sending ----------------------------------------------------------------------------------------------------- */

static long reply(int s, int i, const struct sockaddr *to, socklen_t len, int how)
{
	char buf[1000];
	int n = length_of(i, 0);
	struct iovec v[2] = { { buf, 1 }, { buf + 1, (size_t)n - 1 } };
	union {
		struct cmsghdr h;
		char b[64];
	} ctl;
	memset(buf, i, (size_t)n);
	memset(&ctl, 0, sizeof ctl);
	struct msghdr m = { .msg_name = (void *)to, .msg_namelen = len, .msg_iov = v, .msg_iovlen = 2 };
	if (how == 0)
		return sendto(s, buf, (size_t)n, 0, to, len);
	if (how == 2) {
		struct in_pktinfo pi = { .ipi_spec_dst.s_addr = htonl(INADDR_LOOPBACK) };
		m.msg_control = &ctl;
		m.msg_controllen = CMSG_SPACE(sizeof pi);
		ctl.h.cmsg_level = IPPROTO_IP;
		ctl.h.cmsg_type = IP_PKTINFO;
		ctl.h.cmsg_len = CMSG_LEN(sizeof pi);
		memcpy(CMSG_DATA(&ctl.h), &pi, sizeof pi);
	}
	if (how < 3)
		return sendmsg(s, &m, 0);
	struct mmsghdr mm[1] = { { .msg_hdr = m } };
	return sendmmsg(s, mm, 1, 0) == 1 ? (long)mm[0].msg_len : -1;
}

static void test_reply(void)
{
	static const char *const names[] = { "replies: sendto", "replies: sendmsg", "replies: with a source address",
					     "replies: sendmmsg" };
	char buf[1000];
	int s = greedy(SOCK_NONBLOCK);
	for (int how = 0; how < 4; how++) {
		int good = 0;
		feed(N, 0, port);
		for (int i = 0; i < N; i++) {
			struct sockaddr_in from;
			socklen_t len = sizeof from;
			good += recvfrom(s, buf, sizeof buf, 0, (void *)&from, &len) > 0 &&
				reply(s, i, (void *)&from, len, how) == length_of(i, 0);
		}
		check(good == N && tell(RECV, N, 100000, AF_INET, 0).r == N, names[how]);
	}
	/* All at once. */
	static char data[N][1000];
	struct mmsghdr m[N];
	struct iovec v[N];
	struct sockaddr_in from[N];
	feed(N, 0, port);
	for (int i = 0; i < N; i++) {
		v[i] = (struct iovec){ data[i], sizeof data[i] };
		m[i].msg_hdr = (struct msghdr){
			.msg_iov = &v[i], .msg_iovlen = 1, .msg_name = &from[i], .msg_namelen = sizeof from[i]
		};
	}
	bool good = recvmmsg(s, m, N, 0, NULL) == N;
	for (int i = 0; i < N; i++)
		v[i].iov_len = m[i].msg_len;
	good &= sendmmsg(s, m, N, 0) == N && m[5].msg_len == (unsigned)length_of(5, 0);
	check(good && tell(RECV, N, 100000, AF_INET, 0).r == N, "all by recvmmsg and sendmmsg");
	/* With those that have come since others were received ahead. */
	feed(2, 40, port);
	NEED(recv(s, buf, sizeof buf, 0) == 40);
	feed(2, 40, port);
	for (int i = 0; i < 4; i++)
		v[i].iov_len = sizeof data[i];
	check(recvmmsg(s, m, 4, 0, NULL) == 3, "recvmmsg takes also what has come since");
	/* What is sent is there before what the program does next, also without a call. */
	struct order o = { WAIT_BYTE, 0, 0, AF_INET, 0 };
	feed(2, 40, port);
	struct sockaddr_in to;
	socklen_t len = sizeof to;
	NEED(recvfrom(s, buf, sizeof buf, 0, (void *)&to, &len) == 40);
	NEED(write(to_peer[1], &o, sizeof o) == sizeof o);
	hear();
	NEED(recvfrom(s, buf, sizeof buf, 0, (void *)&to, &len) == 40);
	NEED(sendto(s, buf, 17, 0, (void *)&to, len) == 17 && write(side[1], "x", 1) == 1);
	check(hear().r == 17, "sent before the write that follows");
	feed(2, 40, port);
	NEED(recvfrom(s, buf, sizeof buf, 0, (void *)&to, &len) == 40);
	o = (struct order){ RECV, 1, 400, AF_INET, 0 };
	NEED(write(to_peer[1], &o, sizeof o) == sizeof o);
	NEED(recvfrom(s, buf, sizeof buf, 0, (void *)&to, &len) == 40);
	memset(buf, 0, 1);
	NEED(sendto(s, buf, 1, 0, (void *)&to, len) == 1);
	int64_t until = now_ms() + 800;
	struct pollfd p = { from_peer[0], POLLIN, 0 };
	while (now_ms() < until)
		; /* no call: the clock is in the vDSO */
	check(poll(&p, 1, 0) == 1 && hear().r == 1, "sent while the program computes");
	/* To somebody else than the sender, and what can't be sent. */
	int other_port, other = bound(AF_INET, SOCK_NONBLOCK, &other_port);
	struct sockaddr_in6 a;
	feed(3, 40, port);
	NEED(recvfrom(s, buf, sizeof buf, 0, (void *)&to, &len) == 40);
	len = address(&a, AF_INET, other_port);
	check(sendto(s, buf, 21, 0, (void *)&a, len) == 21 && recv(other, buf, sizeof buf, 0) == 21,
	      "to a socket of its own");
	check(sendto(s, buf, 21, 0, NULL, 0) == -1 && errno == EDESTADDRREQ, "to nobody");
	static char big[70000];
	check(sendto(s, big, sizeof big, 0, (void *)&to, sizeof to) == -1 && errno == EMSGSIZE, "too long");
	check(sendto(s, big, 9000, 0, (void *)&to, sizeof to) == 9000 && tell(RECV, 1, 100000, AF_INET, 0).n[0] == 9000,
	      "long");
	check(sendto(s, bad_address, 10, 0, (void *)&to, sizeof to) == -1 && errno == EFAULT, "a bad buffer to send");
	check(sendto(s, buf, 0, 0, (void *)&to, sizeof to) == 0 && tell(RECV, 1, 100000, AF_INET, 0).n[0] == 0,
	      "an empty one to send");
	/* Each answers the other's socket here: both are found. */
	drain(s);
	struct sockaddr_in6 here;
	len = address(&here, AF_INET, port);
	int round = 0;
	for (; round < 30; round++) {
		if (sendto(other, "ping", 4, 0, (void *)&here, len) != 4 ||
		    recvfrom(s, buf, sizeof buf, 0, (void *)&to, &len) != 4 ||
		    sendto(s, "pong!", 5, 0, (void *)&to, len) != 5 || recv(other, buf, sizeof buf, 0) != 5)
			break;
	}
	check(round == 30, "between two sockets of one process");
	close(other);
	close(s);
}

static void test_connected(void)
{
	char buf[1000];
	int s = begun(SOCK_NONBLOCK, 6, 0), err = 0, good = 0;
	struct sockaddr_in6 a, none = { .sin6_family = AF_UNSPEC };
	socklen_t len = address(&a, AF_INET, peer_port), elen = sizeof err;
	NEED(!connect(s, (void *)&a, len));
	check(takes(s, 1, 6, 0), "connected: what came before");
	for (int i = 0; i < 2; i++) {
		feed(N, 0, port);
		for (int k = 0; k < N; k++) {
			long n = read(s, buf, sizeof buf);
			good += n == length_of(k, 0) &&
				(i ? write(s, buf, (size_t)n) : send(s, buf, (size_t)n, MSG_NOSIGNAL)) == n;
		}
		good += tell(RECV, N, 100000, AF_INET, 0).r == N;
	}
	check(good == 2 * N + 2, "connected: replies");
	NEED(!connect(s, (void *)&none, sizeof none));
	check(send(s, buf, 5, 0) == -1 && errno == EDESTADDRREQ, "disconnected");
	NEED(!connect(s, (void *)&a, len));
	struct sockaddr_in6 here; /* with the address went the port */
	socklen_t hlen = sizeof here;
	NEED(!getsockname(s, (void *)&here, &hlen));
	port = ntohs(here.sin6_port);
	feed(4, 0, port);
	recv(s, buf, sizeof buf, 0);
	tell(CLOSE, 0, 0, AF_INET, 0);
	good = send(s, buf, 5, 0) == 5;
	nap(20);
	drain(s);
	/* However the error came: it is told once, by one of the two, or by the drain. */
	good += getsockopt(s, SOL_SOCKET, SO_ERROR, &err, &elen) == 0;
	send(s, buf, 5, 0);
	nap(20);
	struct pollfd p = { s, POLLIN, 0 };
	good += poll(&p, 1, 100000) == 1 && p.revents & POLLERR;
	good += recv(s, buf, sizeof buf, 0) == -1 && errno == ECONNREFUSED;
	good += recv(s, buf, sizeof buf, 0) == -1 && errno == EAGAIN;
	send(s, buf, 5, 0);
	nap(20);
	good += getsockopt(s, SOL_SOCKET, SO_ERROR, &err, &elen) == 0 && err == ECONNREFUSED;
	good += getsockopt(s, SOL_SOCKET, SO_ERROR, &err, &elen) == 0 && err == 0;
	check(good == 7, "connected: refused");
	close(s);
	peer_port = tell(OPEN, 0, 0, AF_INET, 0).port;
	s = begun(SOCK_NONBLOCK, 3, 0);
	shutdown(s, SHUT_RD);
	check(recv(s, buf, sizeof buf, 0) > 0, "shut down: what came before");
	close(s);
}

static void test_ipv6(void)
{
	char buf[1000];
	int on = 1, s = bound(AF_INET6, SOCK_NONBLOCK, &port), good = 0;
	int p6 = tell(OPEN, 0, 0, AF_INET6, 0).port;
	setsockopt(s, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
	union {
		struct cmsghdr h;
		char b[128];
	} ctl;
	for (int round = 0; round < 4; round++) {
		tell(SEND, N, 0, AF_INET6, port);
		for (int i = 0; i < N; i++) {
			struct sockaddr_in6 from;
			struct iovec v = { buf, sizeof buf };
			struct msghdr m = { .msg_name = &from,
					    .msg_namelen = sizeof from,
					    .msg_iov = &v,
					    .msg_iovlen = 1,
					    .msg_control = &ctl,
					    .msg_controllen = sizeof ctl };
			long n = recvmsg(s, &m, 0);
			good += n == length_of(i, 0) && m.msg_namelen == sizeof from && ntohs(from.sin6_port) == p6 &&
				CMSG_FIRSTHDR(&m) && ctl.h.cmsg_type == IPV6_PKTINFO;
			v.iov_len = (size_t)n;
			good += n > 0 && sendmsg(s, &m, 0) == n; /* the control data as it came */
		}
		good += tell(RECV, N, 100000, AF_INET6, 0).r == N;
	}
	check(good == 4 * (2 * N + 1), "IPv6, with source addresses");
	close(s);
}

/* ---- others who have it ------------------------------------------------------------------------------------------ */

static int count(int s, uint8_t *seen)
{
	uint8_t buf[1000];
	int n = 0;
	while (recv(s, buf, sizeof buf, MSG_DONTWAIT) > 0) {
		seen[buf[0]]++;
		n++;
	}
	return n;
}

static bool each_once(const uint8_t *seen, int first, int end)
{
	for (int i = first; i < end; i++)
		if (seen[i] != 1)
			return false;
	return true;
}

static void test_shared(void)
{
	char buf[1000];
	uint8_t seen[256] = { 0 };
	int s = begun(SOCK_NONBLOCK, 10, 0), d = dup(s), q[2];
	check(recv(d, buf, sizeof buf, 0) == length_of(1, 0) && recv(s, buf, sizeof buf, 0) == length_of(2, 0), "dup");
	close(s);
	struct pollfd p = { d, POLLIN, 0 };
	check(poll(&p, 1, 0) == 1 && takes(d, 3, 10, 0), "dup, and the first closed");
	feed(6, 0, port);
	recv(d, buf, sizeof buf, 0);
	s = dup2(d, 100);
	check(s == 100 && takes(s, 1, 6, 0), "dup2");
	close(d);
	/* fork: each datagram goes to one of the two. */
	NEED(!pipe(q));
	feed(30, 0, port);
	recv(s, buf, sizeof buf, 0);
	pid_t pid = FORK({
		uint8_t mine[256] = { 0 };
		count(s, mine);
		NEED(write(q[1], mine, sizeof mine) == sizeof mine);
	});
	uint8_t theirs[256];
	NEED(read(q[0], theirs, sizeof theirs) == sizeof theirs && waitpid(pid, NULL, 0) == pid);
	count(s, seen);
	for (int i = 0; i < 256; i++)
		seen[i] += theirs[i];
	check(each_once(seen, 1, 30), "fork: none lost, none twice");
	/* Two that receive from it at the same time. */
	memset(seen, 0, sizeof seen);
	volatile int *all_sent = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid = FORK({
		uint8_t mine[256] = { 0 };
		struct pollfd w = { s, POLLIN, 0 };
		while (!*all_sent)
			if (poll(&w, 1, 20) == 1)
				count(s, mine);
		count(s, mine);
		NEED(write(q[1], mine, sizeof mine) == sizeof mine);
	});
	for (int i = 0; i < 4; i++) {
		struct order o = { DELAYED, 60, 60, AF_INET, port };
		NEED(write(to_peer[1], &o, sizeof o) == sizeof o);
		hear();
	}
	/* The answer to this one comes when all have been sent. */
	struct order last = { SEND, 0, 0, AF_INET, port };
	NEED(write(to_peer[1], &last, sizeof last) == sizeof last);
	struct pollfd both[2] = { { s, POLLIN, 0 }, { from_peer[0], POLLIN, 0 } };
	while (poll(both, 2, -1) >= 1 && !both[1].revents)
		count(s, seen);
	hear();
	*all_sent = 1;
	count(s, seen);
	NEED(read(q[0], theirs, sizeof theirs) == sizeof theirs && waitpid(pid, NULL, 0) == pid);
	bool good = true;
	for (int i = 0; i < 60; i++)
		good &= seen[i] + theirs[i] == 4;
	check(good, "two processes: none lost, none twice");
	/* The child has ended: as before. */
	feed(N, 0, port);
	check(takes(s, 0, N, 0), "after the child");
	/* SCM_RIGHTS, to itself. */
	int u[2];
	union {
		struct cmsghdr h;
		char b[CMSG_SPACE(sizeof(int))];
	} ctl;
	struct iovec v = { buf, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &ctl, .msg_controllen = sizeof ctl };
	NEED(!socketpair(AF_UNIX, SOCK_STREAM, 0, u));
	ctl.h = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(&ctl.h), &s, sizeof s);
	feed(9, 0, port);
	recv(s, buf, sizeof buf, 0);
	NEED(sendmsg(u[0], &m, 0) == 1 && recvmsg(u[1], &m, 0) == 1);
	memcpy(&d, CMSG_DATA(&ctl.h), sizeof d);
	memset(seen, 0, sizeof seen);
	count(d, seen);
	count(s, seen);
	check(d != s && each_once(seen, 1, 9), "a descriptor passed on");
	close(d);
	close(s);
	close(u[0]);
	close(u[1]);
	/* exec of another program with the socket open; and vfork. */
	s = begun(SOCK_NONBLOCK, 5, 0);
	pid = vfork();
	if (!pid) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	NEED(waitpid(pid, NULL, 0) == pid);
	check(takes(s, 1, 5, 0), "after a vfork and exec");
	close(s);
	close(q[0]);
	close(q[1]);
}

static int shared_s;
static uint8_t got_by[4][256];
static volatile int stop;

static void *receiver(void *arg)
{
	uint8_t buf[1000], *mine = arg;
	while (!stop) {
		struct timeval tv = { 0, 50000 };
		setsockopt(shared_s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
		if (recv(shared_s, buf, sizeof buf, 0) > 0)
			mine[buf[0]]++;
	}
	return NULL;
}

static void *slow_receiver(void *arg)
{
	char buf[1000];
	if (recv(shared_s, buf, sizeof buf, 0) > 0)
		__atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 60000 && __atomic_load_n((int *)arg, __ATOMIC_SEQ_CST) < 3; i++)
		nap(1); /* whatever else has come is the others' */
	return NULL;
}

static void test_threads(void)
{
	pthread_t t[4];
	shared_s = greedy(0);
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, receiver, got_by[i]);
	for (int i = 0; i < 8; i++) {
		feed(50, 0, port);
		nap(5);
	}
	nap(120);
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	bool good = true;
	static uint8_t rest[256];
	count(shared_s, rest); /* the machine may be slow */
	for (int i = 0; i < 50; i++)
		good &= got_by[0][i] + got_by[1][i] + got_by[2][i] + got_by[3][i] + rest[i] == 8;
	check(good, "threads: none lost, none twice");
	int got = 0;
	struct timeval none = { 0, 0 };
	setsockopt(shared_s, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
	for (int i = 0; i < 3; i++)
		pthread_create(&t[i], NULL, slow_receiver, &got);
	nap(50);
	feed(3, 0, port);
	for (int i = 0; i < 60000 && __atomic_load_n(&got, __ATOMIC_SEQ_CST) < 3; i++)
		nap(1);
	check(__atomic_load_n(&got, __ATOMIC_SEQ_CST) == 3,
	      "threads: none keeps from the others what it does not ask for");
	while (got < 3)
		feed(1, 0, port), got++;
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	close(shared_s);
}

static void on_alarm(int sig) { (void)sig; }

static void test_signals(void)
{
	char buf[1000];
	struct sigaction sa = { .sa_handler = on_alarm };
	struct itimerspec in = { { 0, 30000000 }, { 0, 30000000 } };
	timer_t timer;
	int s = begun(0, 3, 0);
	sigaction(SIGALRM, &sa, NULL);
	NEED(!timer_create(CLOCK_MONOTONIC, NULL, &timer) && !timer_settime(timer, 0, &in, NULL));
	check(recv(s, buf, sizeof buf, 0) > 0 && recv(s, buf, sizeof buf, 0) > 0 && recv(s, buf, sizeof buf, 0) == -1 &&
		      errno == EINTR,
	      "a signal ends a receive that sleeps");
	timer_delete(timer);
	close(s);
}

int main(void)
{
	NEED(!pipe(to_peer) && !pipe(from_peer) && !pipe(side));
	pid_t peer = FORK({
		close(to_peer[1]);
		peer_main();
	});
	close(to_peer[0]);
	peer_port = tell(OPEN, 0, 0, AF_INET, 0).port;
	test_replaced();
	test_order();
	test_cut();
	test_control();
	test_many();
	test_blocking();
	test_poll();
	test_epoll();
	test_reply();
	test_connected();
	test_ipv6();
	test_shared();
	test_threads();
	test_signals();
	close(to_peer[1]);
	NEED(waitpid(peer, NULL, 0) == peer);
	return first_failed;
}
