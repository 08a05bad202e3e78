/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets as a program sees them: TCP and UDP over IPv4 and IPv6 loopback, UNIX sockets of all types, messages with
 * descriptors and credentials, options, timeouts, errors. Passes on any Linux; threads, no fork. Where the view has
 * no loopback or no IPv6, those checks are skipped and say so. Exit code: 0, or 1 + the number of the first check
 * that failed (at most 120).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
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
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "net.h"
#include "unix.h"

/* ---- TCP --------------------------------------------------------------------------------------------------- */

#define BULK (4 << 20)

static uint8_t pattern(size_t i) { return (uint8_t)(i * 2654435761u >> 13); }

static void *bulk_sender(void *arg)
{
	int fd = *(int *)arg;
	uint8_t *buf = malloc(BULK);
	size_t done = 0;

	for (size_t i = 0; i < BULK; i++)
		buf[i] = pattern(i);
	while (done < BULK) {
		ssize_t n = send(fd, buf + done, BULK - done, MSG_NOSIGNAL);
		if (n <= 0)
			break;
		done += n;
	}
	shutdown(fd, SHUT_WR);
	free(buf);
	return (void *)done;
}

static bool bulk_receive(int fd)
{
	static uint8_t buf[65536];
	size_t got = 0;

	for (;;) {
		ssize_t n = recv(fd, buf, sizeof buf, 0);
		if (n <= 0)
			return n == 0 && got == BULK;
		for (ssize_t i = 0; i < n; i++, got++)
			if (buf[i] != pattern(got))
				return false;
	}
}

static void test_tcp(int family)
{
	union addr a, b;
	socklen_t len, blen = sizeof b;
	int sv[2];
	char buf[64];
	pthread_t th;
	void *sent;

	int l = listener(family, &a, &len);
	check(l >= 0, "tcp listen");
	int c = socket(family, SOCK_STREAM, 0);
	check(connect(c, &a.sa, len) == 0, "tcp connect");
	int s = accept(l, &b.sa, &blen);
	check(s >= 0 && blen == len && b.sa.sa_family == family && !(flags_of(s) & O_NONBLOCK) && !cloexec(s),
	      "accept: address, no flags");
	union addr own, peer;
	socklen_t ownlen = sizeof own, peerlen = sizeof peer;
	check(getsockname(c, &own.sa, &ownlen) == 0 && ownlen == blen && !memcmp(&own, &b, 8), "getsockname");
	check(getpeername(c, &peer.sa, &peerlen) == 0 && peerlen == len && !memcmp(&peer, &a, 8), "getpeername");
	/* A short buffer gets the first bytes and the real length. */
	memset(&peer, 0x5a, sizeof peer);
	peerlen = 4;
	check(getpeername(c, &peer.sa, &peerlen) == 0 && peerlen == len && !memcmp(&peer, &a, 4) &&
		      ((uint8_t *)&peer)[4] == 0x5a,
	      "address cut to the buffer");
	peerlen = -1;
	fails(getpeername(c, &peer.sa, &peerlen), EINVAL, "negative length: EINVAL");
	fails(connect(c, &a.sa, len), EISCONN, "connect again: EISCONN");

	int nb = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	fails(accept4(l, NULL, NULL, 0x40000000), EINVAL, "accept4 bad flags: EINVAL");
	int r = connect(nb, &a.sa, len);
	check(r == 0 || errno == EINPROGRESS, "connect nonblocking");
	struct pollfd p = { nb, POLLOUT, 0 };
	check(poll(&p, 1, 60000) == 1 && get_int(nb, SOL_SOCKET, SO_ERROR) == 0, "connect nonblocking done");
	int s2 = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	check(s2 >= 0 && (flags_of(s2) & O_NONBLOCK) && cloexec(s2), "accept4 NONBLOCK CLOEXEC");
	fails(recv(s2, buf, 1, 0), EAGAIN, "recv nonblocking: EAGAIN");
	close(nb);
	check(poll(&(struct pollfd){ s2, POLLIN, 0 }, 1, 60000) == 1 && recv(s2, buf, 1, 0) == 0, "recv EOF");
	close(s2);
	nb = socket(family, SOCK_STREAM, 0);
	connect(nb, &a.sa, len);
	s2 = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	check(s2 >= 0 && !(flags_of(s2) & O_NONBLOCK) && cloexec(s2), "accept4 CLOEXEC only");
	close(nb);
	close(s2);
	fcntl(l, F_SETFL, O_NONBLOCK);
	fails(accept(l, NULL, NULL), EAGAIN, "accept nonblocking: EAGAIN");
	fails(accept(c, NULL, NULL), EINVAL, "accept on a connected socket: EINVAL");
	close(l);

	sv[0] = c;
	sv[1] = s;
	pthread_create(&th, NULL, bulk_sender, &sv[0]);
	check(bulk_receive(sv[1]), "tcp 4 MiB");
	pthread_join(th, &sent);
	check((size_t)sent == BULK, "tcp 4 MiB sent");
	check(send(sv[1], "back", 4, 0) == 4 && recv(sv[0], buf, sizeof buf, 0) == 4, "half-closed still sends");
	check(shutdown(sv[1], SHUT_RDWR) == 0, "shutdown");
	fails(send(sv[1], "x", 1, MSG_NOSIGNAL), EPIPE, "send after shutdown: EPIPE");
	close2(sv);
	int none = socket(family, SOCK_STREAM, 0);
	fails(connect(none, &a.sa, len), ECONNREFUSED, "connect refused");
	fails(getpeername(none, &peer.sa, &peerlen), ENOTCONN, "getpeername: ENOTCONN");
	fails(shutdown(none, SHUT_RD), ENOTCONN, "shutdown: ENOTCONN");
	close(none);
}

static void test_tcp_flags(void)
{
	int sv[2];
	char buf[64];

	check(tcp_pair(AF_INET, sv), "tcp pair");
	check(send(sv[0], "abc", 3, 0) == 3, "send");
	check(recv(sv[1], buf, 2, MSG_PEEK) == 2 && recv(sv[1], buf, sizeof buf, 0) == 3 && !memcmp(buf, "abc", 3),
	      "MSG_PEEK");
	fails(recv(sv[1], buf, 1, MSG_DONTWAIT), EAGAIN, "MSG_DONTWAIT");
	int one = set_int(sv[1], SOL_SOCKET, SO_OOBINLINE, 0);
	check(one == 0 && send(sv[0], "n", 1, 0) == 1 && send(sv[0], "!", 1, MSG_OOB) == 1, "send MSG_OOB");
	struct pollfd p = { sv[1], POLLPRI, 0 };
	check(poll(&p, 1, 60000) == 1 && (p.revents & POLLPRI), "POLLPRI");
	check(recv(sv[1], buf, 1, MSG_OOB) == 1 && buf[0] == '!', "recv MSG_OOB");
	check(recv(sv[1], buf, 8, 0) == 1 && buf[0] == 'n', "data before it");
	check(sockatmark(sv[1]) == 1, "sockatmark");

	/* MSG_WAITALL over two sends. */
	check(send(sv[0], "12", 2, MSG_MORE) == 2 && send(sv[0], "34", 2, 0) == 2 &&
		      recv(sv[1], buf, 4, MSG_WAITALL) == 4 && !memcmp(buf, "1234", 4),
	      "MSG_MORE, MSG_WAITALL");
	check(send(sv[0], "drop", 4, 0) == 4 && recv(sv[1], NULL, 4, MSG_TRUNC | MSG_WAITALL) == 4,
	      "tcp MSG_TRUNC drops");
	check(sendto(sv[0], "x", 1, 0, NULL, 0) == 1 && recvfrom(sv[1], buf, 1, 0, NULL, NULL) == 1,
	      "sendto no address");
	fails(send(sv[0], BAD, 4, 0), EFAULT, "send: EFAULT");
	check(send(sv[0], "y", 1, 0) == 1, "send y");
	fails(recv(sv[1], BAD, 4, 0), EFAULT, "recv: EFAULT");
	check(set_timeout(sv[1], SO_RCVTIMEO, 50) == 0, "SO_RCVTIMEO");
	recv(sv[1], buf, sizeof buf, MSG_DONTWAIT);
	int64_t t = now();
	fails(recv(sv[1], buf, 1, 0), EAGAIN, "receive timeout: EAGAIN");
	t = now() - t;
	check(t >= 40 * MS && t < 60000 * MS, "receive timeout time");
	check(set_timeout(sv[0], SO_SNDTIMEO, 50) == 0, "SO_SNDTIMEO");
	static char big[1 << 16];
	ssize_t n;
	do
		n = send(sv[0], big, sizeof big, 0);
	while (n > 0);
	check(n == -1 && errno == EAGAIN, "send timeout: EAGAIN");
	struct linger lg = { 1, 0 };
	check(setsockopt(sv[0], SOL_SOCKET, SO_LINGER, &lg, sizeof lg) == 0, "SO_LINGER");
	close(sv[0]);
	do
		n = recv(sv[1], big, sizeof big, MSG_DONTWAIT);
	while (n > 0);
	check(n == -1 && errno == ECONNRESET, "reset by linger 0: ECONNRESET");
	close(sv[1]);
}

/* ---- UDP --------------------------------------------------------------------------------------------------- */

static void test_udp(int family)
{
	union addr a, b, from;
	socklen_t alen = loopback(&a, family), blen = loopback(&b, family), flen = sizeof from;
	int x = socket(family, SOCK_DGRAM, 0), y = socket(family, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	char buf[64];

	check(x >= 0 && y >= 0 && cloexec(x) == 0 && (flags_of(y) & O_NONBLOCK), "udp sockets");
	check(bind(x, &a.sa, alen) == 0 && bind(y, &b.sa, blen) == 0, "udp bind");
	getsockname(x, &a.sa, &alen);
	getsockname(y, &b.sa, &blen);
	fails(recv(y, buf, 1, 0), EAGAIN, "udp recv: EAGAIN");
	check(sendto(y, "hello", 5, 0, &a.sa, alen) == 5, "sendto");
	check(recvfrom(x, buf, sizeof buf, 0, &from.sa, &flen) == 5 && flen == blen && !memcmp(&from, &b, 8),
	      "recvfrom");
	sendto(y, "truncate", 8, 0, &a.sa, alen);
	check(recv(x, buf, 3, MSG_TRUNC) == 8 && !memcmp(buf, "tru", 3), "udp MSG_TRUNC gives the real length");
	check(sendto(y, "", 0, 0, &a.sa, alen) == 0 && recv(x, buf, 1, 0) == 0, "empty datagram");
	check(connect(x, &b.sa, blen) == 0 && send(x, "1", 1, 0) == 1 && recv(y, buf, 1, 0) == 1, "udp connect, send");
	union addr un = { .sa = { .sa_family = AF_UNSPEC } };
	check(connect(x, &un.sa, sizeof un.sa) == 0, "udp disconnect");
	fails(send(x, "1", 1, 0), EDESTADDRREQ, "send: EDESTADDRREQ");
	fails(sendto(x, "1", 1, 0, &b.sa, 200), EINVAL, "address too long: EINVAL");
	fails(sendto(x, "1", 1, 0, &b.sa, -1), EINVAL, "address length negative: EINVAL");
	fails(sendto(x, "1", 1, 0, BAD, alen), EFAULT, "address: EFAULT");
	fails(bind(x, &a.sa, 2), EINVAL, "bind short address: EINVAL");
	close(x); /* a port that the kernel chose is gone after the disconnection */
	x = socket(family, SOCK_DGRAM, 0);
	alen = loopback(&a, family);
	bind(x, &a.sa, alen);
	getsockname(x, &a.sa, &alen);
	/* After the datagram was taken, an address that can't be written is EFAULT. */
	sendto(y, "z", 1, 0, &a.sa, alen);
	flen = sizeof from;
	fails(recvfrom(x, buf, 1, 0, BAD, &flen), EFAULT, "recvfrom address: EFAULT");
	flen = 4;
	memset(&from, 0x5a, sizeof from);
	sendto(y, "z", 1, 0, &a.sa, alen);
	check(recvfrom(x, buf, 1, 0, &from.sa, &flen) == 1 && flen == blen && ((uint8_t *)&from)[4] == 0x5a,
	      "recvfrom address cut");
	int z = socket(family, SOCK_DGRAM, 0);
	fails(bind(z, &a.sa, alen), EADDRINUSE, "bind: EADDRINUSE");
	close(z);
	close(y);
	check(connect(x, &b.sa, blen) == 0, "connect to a closed port");
	send(x, "1", 1, 0);
	fails(recv(x, buf, 1, 0), ECONNREFUSED, "ICMP error: ECONNREFUSED");
	close(x);
}

/* Received ancillary data of IP: where a datagram was sent to, and when. */
static void test_pktinfo(void)
{
	union addr a, from;
	socklen_t alen = loopback(&a, AF_INET);
	int x = socket(AF_INET, SOCK_DGRAM, 0);
	char buf[16], ctl[256];
	struct iovec iov = { buf, sizeof buf };
	struct msghdr m = { &from, sizeof from, &iov, 1, ctl, sizeof ctl, -1 };
	bool info = false, ttl = false, stamp = false;

	bind(x, &a.sa, alen);
	getsockname(x, &a.sa, &alen);
	check(set_int(x, IPPROTO_IP, IP_PKTINFO, 1) == 0 && set_int(x, IPPROTO_IP, IP_RECVTTL, 1) == 0 &&
		      set_int(x, SOL_SOCKET, SO_TIMESTAMP, 1) == 0,
	      "IP_PKTINFO, IP_RECVTTL, SO_TIMESTAMP");
	sendto(x, "i", 1, 0, &a.sa, alen);
	check(recvmsg(x, &m, 0) == 1 && m.msg_namelen == sizeof a.in && m.msg_flags == 0, "recvmsg with control data");
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		info |= c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO &&
			((struct in_pktinfo *)CMSG_DATA(c))->ipi_addr.s_addr == htonl(INADDR_LOOPBACK);
		ttl |= c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL;
		stamp |= c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMP;
	}
	check(info && ttl && stamp, "all three there");
	m.msg_controllen = 8;
	sendto(x, "i", 1, 0, &a.sa, alen);
	check(recvmsg(x, &m, 0) == 1 && (m.msg_flags & MSG_CTRUNC), "MSG_CTRUNC");
	m.msg_controllen = sizeof ctl;
	fails(recvmsg(x, &m, MSG_ERRQUEUE), EAGAIN, "MSG_ERRQUEUE empty");
	close(x);
}

/* ---- many messages ---------------------------------------------------------------------------------------------- */

#define VLEN 8

static void test_mmsg(void)
{
	int sv[2];
	char in[VLEN][8], out[VLEN][8];
	struct iovec ii[VLEN], oi[VLEN];
	struct mmsghdr im[VLEN], om[VLEN];
	struct timespec ts;

	memset(im, 0, sizeof im);
	memset(om, 0, sizeof om);
	for (int i = 0; i < VLEN; i++) {
		memset(out[i], 'a' + i, sizeof out[i]);
		oi[i] = (struct iovec){ out[i], 1 + i % 4 };
		ii[i] = (struct iovec){ in[i], sizeof in[i] };
		om[i].msg_hdr.msg_iov = &oi[i];
		im[i].msg_hdr.msg_iov = &ii[i];
		om[i].msg_hdr.msg_iovlen = im[i].msg_hdr.msg_iovlen = 1;
	}
	socketpair(AF_UNIX, SOCK_DGRAM, 0, sv);
	check(sendmmsg(sv[0], om, VLEN, 0) == VLEN && om[5].msg_len == 2 && om[3].msg_len == 4, "sendmmsg");
	check(recvmmsg(sv[1], im, VLEN, 0, NULL) == VLEN && im[3].msg_len == 4 && !memcmp(in[3], "dddd", 4),
	      "recvmmsg");
	fails(recvmmsg(sv[1], im, VLEN, MSG_DONTWAIT, NULL), EAGAIN, "recvmmsg: EAGAIN");
	sendmmsg(sv[0], om, 3, 0);
	check(recvmmsg(sv[1], im, VLEN, MSG_WAITFORONE, NULL) == 3, "MSG_WAITFORONE");
	sendmmsg(sv[0], om, 3, 0);
	check(recvmmsg(sv[1], im, VLEN, MSG_DONTWAIT, NULL) == 3, "recvmmsg takes what is there");
	sendmmsg(sv[0], om, 3, 0);
	ts = (struct timespec){ 0, 0 };
	check(recvmmsg(sv[1], im, VLEN, 0, &ts) == 1, "timeout 0: one datagram");
	ts = (struct timespec){ 100, 0 };
	check(recvmmsg(sv[1], im, 2, 0, &ts) == 2 && ts.tv_sec == 99 && ts.tv_nsec > 0, "remaining time");
	ts = (struct timespec){ 0, 1000000000 };
	fails(recvmmsg(sv[1], im, 2, 0, &ts), EINVAL, "recvmmsg timeout: EINVAL");
	check(sendmmsg(sv[0], om, 0, 0) == 0 && recvmmsg(sv[1], im, 0, 0, NULL) == 0, "none: 0");
	om[2].msg_hdr.msg_iov = BAD;
	check(sendmmsg(sv[0], om, VLEN, 0) == 2, "sendmmsg up to the bad one");
	fails(sendmmsg(sv[0], om + 2, 1, 0), EFAULT, "sendmmsg the bad one first: EFAULT");
	fails(sendmmsg(sv[0], BAD, 1, 0), EFAULT, "sendmmsg vector: EFAULT");
	check(recvmmsg(sv[1], im, 2, 0, NULL) == 2, "two came");
	close2(sv);
}

enum bad { HEADER, LENGTH, BUFFER, BAD_KINDS };

/* An error behind the first message: the call tells how many came, and what comes then is the error. */
static void mmsg_error(int from, int s, enum bad bad, int flags, const char *name)
{
	char in[3][8], line[100];
	struct iovec v[3];
	struct mmsghdr m[3];
	struct pollfd p = { s, POLLIN, 0 };
	bool consumed = bad == BUFFER;
	memset(m, 0, sizeof m);
	for (int i = 0; i < 3; i++) {
		v[i] = (struct iovec){ in[i], sizeof in[i] };
		m[i].msg_hdr.msg_iov = &v[i];
		m[i].msg_hdr.msg_iovlen = 1;
	}
	if (bad == HEADER)
		m[1].msg_hdr.msg_iov = BAD;
	else if (bad == LENGTH)
		m[1].msg_hdr.msg_iovlen = 2000;
	else
		v[1].iov_base = BAD;
	for (const char *t = "abc"; *t; t++)
		if (send(from, t, 1, 0) != 1)
			exit(120);
	snprintf(line, sizeof line, "%s: recvmmsg before a bad %s%s", name,
		 bad == HEADER   ? "header"
		 : bad == LENGTH ? "length"
				 : "buffer",
		 flags & MSG_DONTWAIT ? "" : ", waiting");
	check(recvmmsg(s, m, 3, flags, NULL) == 1 && m[0].msg_len == 1 && in[0][0] == 'a', line);
	check(poll(&p, 1, 0) == 1 && p.revents & POLLERR, "... poll tells of the error");
	fails(recv(s, in[0], 1, MSG_DONTWAIT), bad == LENGTH ? EMSGSIZE : EFAULT, "... which the next call gets");
	check((consumed || (recv(s, in[0], 1, MSG_DONTWAIT) == 1 && in[0][0] == 'b')) &&
		      recv(s, in[0], 1, MSG_DONTWAIT) == 1 && in[0][0] == 'c',
	      "... and nothing is lost");
}

static void test_mmsg_errors(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_un u = { .sun_family = AF_UNIX };
	socklen_t len = sizeof a, ulen = offsetof(struct sockaddr_un, sun_path) + 1 +
					 (socklen_t)snprintf(u.sun_path + 1, 60, "kx-mmsg-%d", getpid());
	int udp[2] = { socket(AF_INET, SOCK_DGRAM, 0), socket(AF_INET, SOCK_DGRAM, 0) };
	int un[2] = { socket(AF_UNIX, SOCK_DGRAM, 0), socket(AF_UNIX, SOCK_DGRAM, 0) }, err;
	struct iovec v[2] = { { &err, 1 }, { BAD, 1 } };
	struct mmsghdr m[2] = { { { .msg_iov = &v[0], .msg_iovlen = 1 }, 0 },
				{ { .msg_iov = &v[1], .msg_iovlen = 1 }, 0 } };
	if (bind(udp[1], (struct sockaddr *)&a, len) || getsockname(udp[1], (struct sockaddr *)&a, &len) ||
	    connect(udp[0], (struct sockaddr *)&a, len) || bind(un[1], (struct sockaddr *)&u, ulen) ||
	    connect(un[0], (struct sockaddr *)&u, ulen))
		exit(120);
	for (int i = 0; i < 2 * BAD_KINDS; i++) {
		mmsg_error(un[0], un[1], i % BAD_KINDS, i < BAD_KINDS ? MSG_DONTWAIT : MSG_WAITFORONE, "UNIX");
		mmsg_error(udp[0], udp[1], i % BAD_KINDS, i < BAD_KINDS ? MSG_DONTWAIT : 0, "UDP");
	}
	/* By now what comes is received ahead. */
	for (int i = 0; i < 2 * BAD_KINDS; i++)
		mmsg_error(udp[0], udp[1], i % BAD_KINDS, i % 2 ? MSG_DONTWAIT : 0, "UDP");
	check(send(udp[0], "a", 1, 0) == 1 && send(udp[0], "b", 1, 0) == 1 && recvmmsg(udp[1], m, 2, 0, NULL) == 1 &&
		      !getsockopt(udp[1], SOL_SOCKET, SO_ERROR, &err, &(socklen_t){ sizeof err }) && err == EFAULT,
	      "recvmmsg: SO_ERROR tells of the error");
	fails(recv(udp[1], &err, 1, MSG_DONTWAIT), EAGAIN, "... once");
	close2(udp);
	close2(un);
}

/* ---- options ---------------------------------------------------------------------------------------------------- */

static void test_options(void)
{
	int t = socket(AF_INET, SOCK_STREAM, 0), u = socket(AF_INET, SOCK_DGRAM, 0), v = -1;
	socklen_t len;
	char buf[256];
	static const int bools[] = { SO_REUSEADDR, SO_KEEPALIVE, SO_BROADCAST, SO_OOBINLINE,
				     SO_DONTROUTE, SO_REUSEPORT, SO_TIMESTAMP, SO_RCVLOWAT };

	for (unsigned i = 0; i < sizeof bools / sizeof bools[0]; i++)
		check(set_int(t, SOL_SOCKET, bools[i], 1) == 0 && get_int(t, SOL_SOCKET, bools[i]) == 1,
		      "option of int");
	check(set_int(t, SOL_SOCKET, SO_SNDBUF, 20000) == 0 && get_int(t, SOL_SOCKET, SO_SNDBUF) == 40000,
	      "SO_SNDBUF doubles");
	check(set_int(t, SOL_SOCKET, SO_RCVBUF, 20000) == 0 && get_int(t, SOL_SOCKET, SO_RCVBUF) == 40000,
	      "SO_RCVBUF doubles");
	check(get_int(t, SOL_SOCKET, SO_DOMAIN) == AF_INET && get_int(t, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP &&
		      get_int(t, SOL_SOCKET, SO_TYPE) == SOCK_STREAM,
	      "SO_DOMAIN, SO_PROTOCOL, SO_TYPE");
	check(set_int(t, IPPROTO_TCP, TCP_NODELAY, 1) == 0 && get_int(t, IPPROTO_TCP, TCP_NODELAY) == 1, "TCP_NODELAY");
	check(set_int(t, IPPROTO_TCP, TCP_KEEPIDLE, 77) == 0 && get_int(t, IPPROTO_TCP, TCP_KEEPIDLE) == 77,
	      "TCP_KEEPIDLE");
	check(set_int(t, IPPROTO_IP, IP_TTL, 33) == 0 && get_int(t, IPPROTO_IP, IP_TTL) == 33, "IP_TTL");
	check(set_int(t, IPPROTO_IP, IP_TOS, 0x10) == 0 && get_int(t, IPPROTO_IP, IP_TOS) == 0x10, "IP_TOS");
	len = sizeof buf;
	check(getsockopt(t, IPPROTO_TCP, TCP_CONGESTION, buf, &len) == 0 && buf[0] && len <= 16, "TCP_CONGESTION");
	struct tcp_info ti;
	len = sizeof ti;
	check(getsockopt(t, IPPROTO_TCP, TCP_INFO, &ti, &len) == 0 && ti.tcpi_state == TCP_CLOSE, "TCP_INFO");
	struct linger lg = { 1, 5 }, lg2 = { 0, 0 };
	len = sizeof lg2;
	check(setsockopt(t, SOL_SOCKET, SO_LINGER, &lg, sizeof lg) == 0 &&
		      getsockopt(t, SOL_SOCKET, SO_LINGER, &lg2, &len) == 0 && lg2.l_linger == 5,
	      "SO_LINGER");
	struct timeval tv = { 0, 0 };
	set_timeout(t, SO_RCVTIMEO, 1500);
	len = sizeof tv;
	check(getsockopt(t, SOL_SOCKET, SO_RCVTIMEO, &tv, &len) == 0 && tv.tv_sec == 1 && tv.tv_usec >= 500000,
	      "SO_RCVTIMEO value");
	len = 2; /* a short buffer */
	v = -1;
	check(getsockopt(t, SOL_SOCKET, SO_TYPE, &v, &len) == 0 && len == 2 && v == (int)0xffff0001,
	      "value cut to the buffer");
	len = sizeof buf;
	check(getsockopt(t, SOL_SOCKET, SO_TYPE, buf, &len) == 0 && len == 4, "length of the value");
	len = -1;
	fails(getsockopt(t, SOL_SOCKET, SO_TYPE, &v, &len), EINVAL, "getsockopt length: EINVAL");
	fails(getsockopt(t, SOL_SOCKET, SO_TYPE, &v, BAD), EFAULT, "getsockopt length: EFAULT");
	len = 4;
	fails(getsockopt(t, SOL_SOCKET, SO_TYPE, BAD, &len), EFAULT, "getsockopt value: EFAULT");
	fails(setsockopt(t, SOL_SOCKET, SO_REUSEADDR, BAD, 4), EFAULT, "setsockopt value: EFAULT");
	fails(setsockopt(t, SOL_SOCKET, SO_REUSEADDR, &v, 2), EINVAL, "setsockopt short: EINVAL");
	check(setsockopt(t, SOL_SOCKET, SO_REUSEADDR, &v, -1) == -1 && (errno == EINVAL || errno == EFAULT),
	      "setsockopt negative: refused");
	fails(set_int(t, SOL_SOCKET, 9999, 1), ENOPROTOOPT, "unknown option: ENOPROTOOPT");
	fails(set_int(t, IPPROTO_TCP, 9999, 1), ENOPROTOOPT, "unknown TCP option: ENOPROTOOPT");
	check(set_int(u, IPPROTO_IP, IP_MULTICAST_LOOP, 0) == 0 && get_int(u, IPPROTO_IP, IP_MULTICAST_LOOP) == 0,
	      "multicast option");
	fails(set_int(-1, SOL_SOCKET, SO_REUSEADDR, 1), EBADF, "setsockopt: EBADF");
	int pf[2];
	check(pipe(pf) == 0, "pipe");
	fails(set_int(pf[0], SOL_SOCKET, SO_REUSEADDR, 1), ENOTSOCK, "setsockopt: ENOTSOCK");
	close2(pf);
	close(t);
	close(u);
	struct { /* in6_flowlabel_req */
		struct in6_addr to;
		uint32_t label;
		uint8_t action, share;
		uint16_t flags, expires, linger;
		uint32_t pad;
	} flow = { .to = in6addr_loopback, .share = 1 /* exclusive */, .flags = 1 /* create */ };
	if ((u = socket(AF_INET6, SOCK_DGRAM, 0)) >= 0)
		check(setsockopt(u, IPPROTO_IPV6, 32 /* IPV6_FLOWLABEL_MGR */, &flow, sizeof flow) == 0 && flow.label,
		      "a flow label is told by the option's value");
	close(u);
}

/* A classic BPF program that lets 2 bytes through, read back by SO_GET_FILTER. */
static void test_filter(void)
{
	struct sock_filter code[] = { BPF_STMT(BPF_LD | BPF_IMM, 7), BPF_STMT(BPF_RET | BPF_K, 2) }, back[8];
	struct sock_fprog prog = { 2, code };
	socklen_t len = 8;
	int sv[2];
	char buf[8];

	socketpair(AF_UNIX, SOCK_DGRAM, 0, sv);
	check(setsockopt(sv[1], SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog) == 0, "SO_ATTACH_FILTER");
	check(send(sv[0], "12345", 5, 0) == 5 && recv(sv[1], buf, sizeof buf, 0) == 2, "filter cuts");
	check(getsockopt(sv[1], SOL_SOCKET, SO_GET_FILTER, back, &len) == 0 && len == 2 &&
		      !memcmp(back, code, sizeof code),
	      "SO_GET_FILTER");
	prog.filter = BAD;
	fails(setsockopt(sv[1], SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog), EFAULT, "filter: EFAULT");
	prog = (struct sock_fprog){ 0, code };
	fails(setsockopt(sv[1], SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog), EINVAL, "empty filter: EINVAL");
	int zero = 0;
	check(setsockopt(sv[1], SOL_SOCKET, SO_DETACH_FILTER, &zero, sizeof zero) == 0, "SO_DETACH_FILTER");
	check(send(sv[0], "12345", 5, 0) == 5 && recv(sv[1], buf, sizeof buf, 0) == 5, "filter gone");
	close2(sv);
}

/* ---- families ---------------------------------------------------------------------------------------------------- */

static void test_families(void)
{
	fails(socket(9999, SOCK_STREAM, 0), EAFNOSUPPORT, "family: EAFNOSUPPORT");
	fails(socket(AF_INET, 77, 0), EINVAL, "type: EINVAL");
	check(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP) == -1 && errno == EPROTONOSUPPORT, "protocol: EPROTONOSUPPORT");
	fails(socketpair(AF_INET, SOCK_STREAM, 0, (int[2]){ 0, 0 }), EOPNOTSUPP, "socketpair INET: EOPNOTSUPP");
	/* gcc knows the size of the array: through the call itself. */
	fails(syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, BAD), EFAULT, "socketpair: EFAULT");
	fails(bind(-1, NULL, 0), EBADF, "bind: EBADF");
	fails(accept(987654, NULL, NULL), EBADF, "accept: EBADF");

	/* Ask the kernel for its links, as getifaddrs(3) does. */
	int n = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct sockaddr_nl nl = { .nl_family = AF_NETLINK }, from;
	struct {
		struct nlmsghdr h;
		struct rtgenmsg g;
	} req = { { sizeof req, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 }, { AF_UNSPEC } };
	static char buf[32768];
	struct iovec iov = { buf, sizeof buf };
	struct msghdr m = { .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &iov, .msg_iovlen = 1 };

	check(n >= 0 && bind(n, (struct sockaddr *)&nl, sizeof nl) == 0, "NETLINK_ROUTE");
	check(sendto(n, &req, sizeof req, 0, (struct sockaddr *)&nl, sizeof nl) == (ssize_t)sizeof req, "RTM_GETLINK");
	ssize_t got = recvmsg(n, &m, 0);
	struct nlmsghdr *h = (void *)buf;
	check(got > 0 && NLMSG_OK(h, (unsigned)got) && (h->nlmsg_type == RTM_NEWLINK || h->nlmsg_type == NLMSG_DONE) &&
		      m.msg_namelen == sizeof from && from.nl_pid == 0,
	      "links");
	close(n);
}

/* ---- signals --------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t nr_signals;

static void on_signal(int signo)
{
	(void)signo;
	nr_signals++;
}

struct poke {
	pthread_t who;
	int fd; /* to write to after the signal, or -1 */
};

static void *poker(void *arg)
{
	struct poke *p = arg;

	asleep(getpid(), getpid());
	pthread_kill(p->who, SIGUSR1);
	sleep_ms(100);
	if (p->fd >= 0 && send(p->fd, "!", 1, 0) != 1)
		return (void *)1;
	return NULL;
}

static void handler(int flags)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = flags };

	sigaction(SIGUSR1, &sa, NULL);
	nr_signals = 0;
}

static void test_signals(void)
{
	int sv[2];
	char buf[4];
	pthread_t th;
	struct poke p = { pthread_self(), -1 };

	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	handler(0);
	pthread_create(&th, NULL, poker, &p);
	fails(recv(sv[1], buf, 1, 0), EINTR, "recv: EINTR");
	pthread_join(th, NULL);
	check(nr_signals == 1, "handler ran");
	handler(SA_RESTART);
	p.fd = sv[0];
	pthread_create(&th, NULL, poker, &p);
	check(recv(sv[1], buf, 1, 0) == 1 && nr_signals == 1, "SA_RESTART: recv goes on");
	pthread_join(th, NULL);
	/* With a timeout there is no restart, signal(7). */
	handler(SA_RESTART);
	p.fd = -1;
	set_timeout(sv[1], SO_RCVTIMEO, 100000);
	pthread_create(&th, NULL, poker, &p);
	fails(recv(sv[1], buf, 1, 0), EINTR, "SO_RCVTIMEO: EINTR in spite of SA_RESTART");
	pthread_join(th, NULL);
	handler(SA_RESTART);
	struct iovec iov = { buf, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	pthread_create(&th, NULL, poker, &p);
	fails(recvmsg(sv[1], &m, 0), EINTR, "recvmsg likewise");
	pthread_join(th, NULL);
	/* A signal that is blocked interrupts nothing. */
	sigset_t set, old;
	handler(0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &old);
	set_timeout(sv[1], SO_RCVTIMEO, 0);
	p.fd = sv[0];
	pthread_create(&th, NULL, poker, &p);
	check(recv(sv[1], buf, 1, 0) == 1 && nr_signals == 0, "blocked signal: recv goes on");
	pthread_join(th, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	check(nr_signals == 1, "it came at the unblocking");
	struct sigaction pipe_sa = { .sa_handler = on_signal };
	sigaction(SIGPIPE, &pipe_sa, NULL);
	nr_signals = 0;
	close(sv[1]);
	fails(send(sv[0], "x", 1, 0), EPIPE, "EPIPE");
	check(nr_signals == 1, "SIGPIPE");
	fails(send(sv[0], "x", 1, MSG_NOSIGNAL), EPIPE, "EPIPE quietly");
	check(nr_signals == 1, "MSG_NOSIGNAL");
	close(sv[0]);

	/* accept waits, with and without a timeout. */
	union addr a;
	socklen_t len = abstract(&a, "acc");
	int l = socket(AF_UNIX, SOCK_STREAM, 0);
	bind(l, &a.sa, len);
	listen(l, 1);
	handler(0);
	p.fd = -1;
	pthread_create(&th, NULL, poker, &p);
	fails(accept(l, NULL, NULL), EINTR, "accept: EINTR");
	pthread_join(th, NULL);
	set_timeout(l, SO_RCVTIMEO, 50);
	fails(accept(l, NULL, NULL), EAGAIN, "accept timeout: EAGAIN");
	close(l);
	signal(SIGUSR1, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
}

/* A thread that waits for a connection while another makes it. */
static void *late_connect(void *arg)
{
	union addr *a = arg;
	int c = socket(AF_INET, SOCK_STREAM, 0);

	sleep_ms(50);
	if (connect(c, &a->sa, sizeof a->in))
		return (void *)1;
	char b = 0;
	bool ok = send(c, "?", 1, 0) == 1 && recv(c, &b, 1, 0) == 1 && b == '!';
	close(c);
	return (void *)(intptr_t)!ok;
}

static void test_threads(void)
{
	union addr a;
	socklen_t len;
	pthread_t th[4];
	void *r;
	int l = listener(AF_INET, &a, &len), ok = 0;

	for (int i = 0; i < 4; i++)
		pthread_create(&th[i], NULL, late_connect, &a);
	for (int i = 0; i < 4; i++) {
		char b = 0;
		int s = accept(l, NULL, NULL);
		ok += s >= 0 && recv(s, &b, 1, 0) == 1 && b == '?' && send(s, "!", 1, 0) == 1;
		close(s);
	}
	check(ok == 4, "four served");
	ok = 0;
	for (int i = 0; i < 4; i++) {
		pthread_join(th[i], &r);
		ok += r == NULL;
	}
	check(ok == 4, "four answered");
	close(l);
}

/* As many as were asked for wait to be accepted. */
static void test_backlog(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int l = socket(AF_INET, SOCK_STREAM, 0), c[300], n = 0;
	check(bind(l, (void *)&a, sizeof a) == 0 && listen(l, 300) == 0 && getsockname(l, (void *)&a, &len) == 0,
	      "backlog: listen");
	for (int i = 0; i < 300; i++) {
		struct pollfd p = { .events = POLLOUT };
		p.fd = c[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if ((connect(c[i], (void *)&a, sizeof a) && errno != EINPROGRESS) || poll(&p, 1, 60000) != 1 ||
		    p.revents != POLLOUT)
			break;
		n++;
	}
	check(n == 300, "backlog: 300 connections wait");
	for (int i = 0; i < n; i++) {
		close(accept(l, NULL, NULL));
		close(c[i]);
	}
	close(l);
}

int main(void)
{
	loopback_up();
	bool inet = have(AF_INET), inet6 = have(AF_INET6);

	test_families();
	test_unix_pair(SOCK_STREAM, "stream");
	test_unix_pair(SOCK_DGRAM, "dgram");
	test_unix_pair(SOCK_SEQPACKET, "seqpacket");
	for (int i = 0; i < 2; i++) {
		test_unix_named(SOCK_STREAM, i);
		test_unix_named(SOCK_SEQPACKET, i);
		test_unix_named(SOCK_DGRAM, i);
	}
	test_rights(SOCK_STREAM);
	test_rights(SOCK_DGRAM);
	test_rights(SOCK_SEQPACKET);
	test_credentials();
	test_msg_errors();
	test_mmsg();
	test_mmsg_errors();
	test_options();
	test_filter();
	test_signals();
	if (inet) {
		test_tcp(AF_INET);
		test_tcp_flags();
		test_backlog();
		test_udp(AF_INET);
		test_pktinfo();
		test_threads();
	}
	if (inet6) {
		test_tcp(AF_INET6);
		test_udp(AF_INET6);
	}
	if (!first_failure)
		printf("SUCCESS\n");
	return first_failure;
}
