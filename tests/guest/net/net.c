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
#include <limits.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
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
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "../counted.h"

#define MS 1000000LL

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

static void sleep_ms(int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * MS };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static int flags_of(int fd) { return fcntl(fd, F_GETFL); }
static bool cloexec(int fd) { return fcntl(fd, F_GETFD) & FD_CLOEXEC; }

static int get_int(int fd, int level, int opt)
{
	int v = -1;
	socklen_t len = sizeof v;

	return getsockopt(fd, level, opt, &v, &len) ? -1 : v;
}

static int set_int(int fd, int level, int opt, int v) { return setsockopt(fd, level, opt, &v, sizeof v); }

static int set_timeout(int fd, int opt, int ms)
{
	struct timeval tv = { ms / 1000, ms % 1000 * 1000 };

	return setsockopt(fd, SOL_SOCKET, opt, &tv, sizeof tv);
}

/* ---- addresses --------------------------------------------------------------------------------------------- */

union addr {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	struct sockaddr_un un;
	struct sockaddr_storage ss;
};

static socklen_t loopback(union addr *a, int family)
{
	memset(a, 0, sizeof *a);
	a->sa.sa_family = family;
	if (family == AF_INET) {
		a->in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return sizeof a->in;
	}
	a->in6.sin6_addr = in6addr_loopback;
	return sizeof a->in6;
}

static socklen_t abstract(union addr *a, const char *tag)
{
	memset(a, 0, sizeof *a);
	a->un.sun_family = AF_UNIX;
	int n = snprintf(a->un.sun_path + 1, sizeof a->un.sun_path - 1, "kx-net-%d-%s", (int)getpid(), tag);
	return offsetof(struct sockaddr_un, sun_path) + 1 + n;
}

/* Bring lo up where the program may (a network namespace of its own starts with it down). */
static void loopback_up(void)
{
	struct ifreq r = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0)
		return;
	if (ioctl(fd, SIOCGIFFLAGS, &r) == 0 && !(r.ifr_flags & IFF_UP)) {
		r.ifr_flags |= IFF_UP;
		ioctl(fd, SIOCSIFFLAGS, &r);
	}
	close(fd);
}

static bool have(int family)
{
	union addr a;
	socklen_t len = loopback(&a, family), l2 = sizeof a;
	int s = socket(family, SOCK_DGRAM, 0);
	bool ok = s >= 0 && bind(s, &a.sa, len) == 0 && getsockname(s, &a.sa, &l2) == 0 &&
		  sendto(s, "x", 1, MSG_DONTWAIT, &a.sa, l2) == 1;

	if (s >= 0)
		close(s);
	if (!ok)
		printf("skip no loopback for %s\n", family == AF_INET ? "IPv4" : "IPv6");
	return ok;
}

/* A listening socket at a free port; its address in *a. */
static int listener(int family, union addr *a, socklen_t *len)
{
	*len = loopback(a, family);
	int s = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s < 0 || bind(s, &a->sa, *len) || listen(s, 8))
		return -1;
	return getsockname(s, &a->sa, len) ? -1 : s;
}

/* A connected pair of TCP sockets. */
static bool tcp_pair(int family, int sv[2])
{
	union addr a;
	socklen_t len;
	int l = listener(family, &a, &len);

	sv[1] = -1;
	sv[0] = socket(family, SOCK_STREAM, 0);
	if (l < 0 || sv[0] < 0 || connect(sv[0], &a.sa, len))
		return false;
	sv[1] = accept(l, NULL, NULL);
	close(l);
	return sv[1] >= 0;
}

static void close2(int sv[2])
{
	close(sv[0]);
	close(sv[1]);
}

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

/* ---- UNIX -------------------------------------------------------------------------------------------------- */

static void test_unix_pair(int type, const char *name)
{
	int sv[2];
	char buf[32];

	printf("# socketpair %s\n", name);
	check(socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0, "socketpair");
	check(cloexec(sv[0]) && cloexec(sv[1]) && (flags_of(sv[0]) & O_NONBLOCK) && (flags_of(sv[1]) & O_NONBLOCK),
	      "socketpair flags");
	check(get_int(sv[0], SOL_SOCKET, SO_TYPE) == type && get_int(sv[0], SOL_SOCKET, SO_DOMAIN) == AF_UNIX,
	      "SO_TYPE");
	fails(read(sv[0], buf, 1), EAGAIN, "pair EAGAIN");
	check(send(sv[0], "ab", 2, 0) == 2 && send(sv[0], "cd", 2, 0) == 2, "pair send");
	if (type == SOCK_STREAM)
		check(recv(sv[1], buf, sizeof buf, 0) == 4 && !memcmp(buf, "abcd", 4), "stream has no boundaries");
	else
		check(recv(sv[1], buf, 1, MSG_TRUNC) == 2 && recv(sv[1], buf, sizeof buf, 0) == 2, "boundaries kept");
	check(write(sv[1], "w", 1) == 1 && read(sv[0], buf, 8) == 1, "pair read, write");
	struct ucred uc;
	socklen_t len = sizeof uc;
	check(getsockopt(sv[0], SOL_SOCKET, SO_PEERCRED, &uc, &len) == 0 && len == sizeof uc && uc.pid == getpid() &&
		      uc.uid == getuid(),
	      "SO_PEERCRED");
	close(sv[1]);
	if (type == SOCK_DGRAM)
		fails(send(sv[0], "x", 1, MSG_NOSIGNAL), ECONNREFUSED, "pair peer gone: ECONNREFUSED");
	else
		fails(send(sv[0], "x", 1, MSG_NOSIGNAL), EPIPE, "pair peer gone: EPIPE");
	close(sv[0]);
}

static void test_unix_named(int type, bool is_abstract)
{
	union addr a, b;
	socklen_t len, blen = sizeof b;
	char buf[16];

	if (is_abstract) {
		len = abstract(&a, "s");
	} else {
		memset(&a, 0, sizeof a);
		a.un.sun_family = AF_UNIX;
		snprintf(a.un.sun_path, sizeof a.un.sun_path, "/tmp/kx-net-%d.sock", (int)getpid());
		unlink(a.un.sun_path);
		len = sizeof a.un;
	}
	int l = socket(AF_UNIX, type, 0), c = socket(AF_UNIX, type, 0);
	fails(connect(c, &a.sa, len), is_abstract ? ECONNREFUSED : ENOENT, "connect to no one");
	check(bind(l, &a.sa, len) == 0, is_abstract ? "bind abstract" : "bind path");
	int again = socket(AF_UNIX, type, 0);
	fails(bind(again, &a.sa, len), EADDRINUSE, "bind again: EADDRINUSE");
	close(again);
	check(getsockname(l, &b.sa, &blen) == 0 &&
		      blen == (is_abstract ? len
					   : offsetof(struct sockaddr_un, sun_path) + strlen(a.un.sun_path) + 1) &&
		      !memcmp(&a, &b, blen),
	      "getsockname UNIX");
	if (type == SOCK_DGRAM) {
		check(sendto(c, "dg", 2, 0, &a.sa, len) == 2 && recvfrom(l, buf, sizeof buf, 0, &b.sa, &blen) == 2 &&
			      blen == 0,
		      "datagram from an unnamed socket");
		sa_family_t f = AF_UNIX; /* autobind: 5 hexadecimal digits */
		check(bind(c, (struct sockaddr *)&f, sizeof f) == 0, "autobind");
		blen = sizeof b;
		sendto(c, "dg", 2, 0, &a.sa, len);
		check(recvfrom(l, buf, sizeof buf, 0, &b.sa, &blen) == 2 && blen == sizeof f + 6, "autobound name");
	} else {
		check(listen(l, 4) == 0 && connect(c, &a.sa, len) == 0, "UNIX connect");
		blen = sizeof b;
		int s = accept(l, &b.sa, &blen);
		check(s >= 0 && blen == sizeof(sa_family_t) && b.sa.sa_family == AF_UNIX, "UNIX accept: unnamed peer");
		check(get_int(l, SOL_SOCKET, SO_ACCEPTCONN) == 1 && get_int(s, SOL_SOCKET, SO_ACCEPTCONN) == 0,
		      "SO_ACCEPTCONN");
		check(send(c, "q", 1, 0) == 1 && recv(s, buf, 1, 0) == 1, "UNIX data");
		close(s);
	}
	close(c);
	close(l);
	if (!is_abstract) {
		check(unlink(a.un.sun_path) == 0, "socket file was there");
		fails(connect(socket(AF_UNIX, type, 0), &a.sa, len), ENOENT, "gone: ENOENT");
	}
}

/* ---- control messages of UNIX sockets ------------------------------------------------------------------------- */

union ctl {
	char buf[CMSG_SPACE(8 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	struct cmsghdr align;
};

static ssize_t send_fds(int s, const int *fds, int n)
{
	union ctl u;
	struct iovec iov = { "f", 1 };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = CMSG_SPACE(n * sizeof(int))
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	memset(&u, 0, sizeof u);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	return sendmsg(s, &m, 0);
}

/* Descriptors received into fds; *flags: msg_flags. -1: error. */
static int recv_fds(int s, int *fds, size_t room, int how, int *flags)
{
	union ctl u;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = room };

	if (recvmsg(s, &m, how) != 1)
		return -1;
	*flags = m.msg_flags;
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (!c)
		return 0;
	if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
		return -1;
	int n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	memcpy(fds, CMSG_DATA(c), n * sizeof(int));
	return n;
}

static void test_rights(int type)
{
	int sv[2], pf[2], got[8], flags;
	char buf[8];

	check(socketpair(AF_UNIX, type, 0, sv) == 0 && pipe(pf) == 0, "pairs");
	check(send_fds(sv[0], pf, 2) == 1, "send two descriptors");
	check(recv_fds(sv[1], got, sizeof(union ctl), 0, &flags) == 2 && !(flags & MSG_CTRUNC),
	      "receive two descriptors");
	check(got[0] != pf[0] && !cloexec(got[0]), "new numbers");
	check(write(got[1], "thru", 4) == 4 && read(pf[0], buf, 8) == 4 && !memcmp(buf, "thru", 4), "same pipe");
	close2(got);
	send_fds(sv[0], pf, 1);
	check(recv_fds(sv[1], got, sizeof(union ctl), MSG_CMSG_CLOEXEC, &flags) == 1 && cloexec(got[0]),
	      "MSG_CMSG_CLOEXEC");
	close(got[0]);
	send_fds(sv[0], pf, 2);
	check(recv_fds(sv[1], got, CMSG_LEN(sizeof(int)), 0, &flags) == 1 && (flags & MSG_CTRUNC),
	      "one fits: MSG_CTRUNC");
	close(got[0]);
	send_fds(sv[0], pf, 2);
	check(recv_fds(sv[1], got, 0, 0, &flags) == 0 && (flags & MSG_CTRUNC), "none fits: MSG_CTRUNC");
	int bad[3] = { 987654, INT_MAX, -1 };
	for (int i = 0; i < 3; i++)
		fails(send_fds(sv[0], &bad[i], 1), EBADF, "bad descriptor: EBADF");
	int mixed[2] = { pf[0], 987654 };
	fails(send_fds(sv[0], mixed, 2), EBADF, "good and bad: EBADF");
	/* The receiver may hold the last reference. */
	send_fds(sv[0], pf + 1, 1);
	close(pf[1]);
	check(recv_fds(sv[1], got, sizeof(union ctl), 0, &flags) == 1 && write(got[0], "x", 1) == 1,
	      "sender closed it");
	close(got[0]);
	check(read(pf[0], buf, 8) == 1 && read(pf[0], buf, 8) == 0, "then end of file");
	close(pf[0]);
	close2(sv);
}

static ssize_t send_cred(int s, const struct ucred *uc, size_t len)
{
	union ctl u;
	struct iovec iov = { "c", 1 };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = CMSG_SPACE(sizeof *uc)
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	memset(&u, 0, sizeof u);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_CREDENTIALS;
	c->cmsg_len = len;
	memcpy(CMSG_DATA(c), uc, sizeof *uc);
	return sendmsg(s, &m, 0);
}

static bool recv_cred(int s, struct ucred *uc)
{
	union ctl u;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u };

	if (recvmsg(s, &m, 0) != 1)
		return false;
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_CREDENTIALS)
		return false;
	memcpy(uc, CMSG_DATA(c), sizeof *uc);
	return true;
}

static void test_credentials(void)
{
	int sv[2];
	struct ucred uc = { getpid(), getuid(), getgid() }, got;

	socketpair(AF_UNIX, SOCK_DGRAM, 0, sv);
	check(set_int(sv[1], SOL_SOCKET, SO_PASSCRED, 1) == 0 && get_int(sv[1], SOL_SOCKET, SO_PASSCRED) == 1,
	      "SO_PASSCRED");
	check(send_cred(sv[0], &uc, CMSG_LEN(sizeof uc)) == 1, "send credentials");
	memset(&got, 0, sizeof got);
	check(recv_cred(sv[1], &got) && got.pid == getpid() && got.uid == getuid() && got.gid == getgid(),
	      "credentials");
	check(send(sv[0], "p", 1, 0) == 1 && recv_cred(sv[1], &got) && got.pid == getpid(),
	      "credentials without asking");
	fails(send_cred(sv[0], &uc, CMSG_LEN(4)), EINVAL, "credentials too short: EINVAL");
	fails(send_cred(sv[0], &uc, 3), EINVAL, "broken control message: EINVAL");
	close2(sv);
}

static void test_msg_errors(void)
{
	int sv[2];
	char buf[8];
	struct iovec iov = { "abc", 3 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	static struct iovec many[1025];

	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	fails(sendmsg(sv[0], BAD, 0), EFAULT, "sendmsg header: EFAULT");
	fails(recvmsg(sv[0], BAD, MSG_DONTWAIT), EFAULT, "recvmsg header: EFAULT");
	m.msg_iov = BAD;
	fails(sendmsg(sv[0], &m, 0), EFAULT, "sendmsg vector: EFAULT");
	m.msg_iov = many;
	m.msg_iovlen = 1025;
	fails(sendmsg(sv[0], &m, 0), EMSGSIZE, "vector too long: EMSGSIZE");
	for (int i = 0; i < 1024; i++)
		many[i] = (struct iovec){ "v", 1 };
	m.msg_iovlen = 1024;
	static char big[2048];
	check(sendmsg(sv[0], &m, 0) == 1024 && recv(sv[1], big, sizeof big, MSG_WAITALL | MSG_DONTWAIT) == 1024 &&
		      big[1023] == 'v',
	      "vector of 1024");
	iov.iov_base = BAD;
	m.msg_iov = &iov;
	m.msg_iovlen = 1;
	fails(sendmsg(sv[0], &m, 0), EFAULT, "sendmsg data: EFAULT");
	iov = (struct iovec){ buf, (size_t)-1 };
	fails(sendmsg(sv[0], &m, 0), EINVAL, "vector length negative: EINVAL");
	iov = (struct iovec){ "abc", 3 };
	m.msg_control = BAD;
	m.msg_controllen = 64;
	fails(sendmsg(sv[0], &m, 0), EFAULT, "control data: EFAULT");
	m.msg_controllen = 1ul << 33;
	fails(sendmsg(sv[0], &m, 0), ENOBUFS, "control data too long: ENOBUFS");
	m.msg_control = NULL;
	m.msg_controllen = 0;
	m.msg_name = buf;
	m.msg_namelen = -1;
	fails(sendmsg(sv[0], &m, 0), EINVAL, "name length negative: EINVAL");
	m.msg_name = NULL; /* then the length means nothing */
	m.msg_iov = NULL;
	m.msg_iovlen = 0;
	check(sendmsg(sv[0], &m, 0) == 0, "no vector: 0");
	/* A scattered read. */
	struct iovec two[2] = { { buf, 2 }, { buf + 4, 2 } };
	m = (struct msghdr){ .msg_iov = two, .msg_iovlen = 2, .msg_flags = -1 };
	check(send(sv[0], "abcd", 4, 0) == 4 && recvmsg(sv[1], &m, 0) == 4 && !memcmp(buf, "ab", 2) &&
		      !memcmp(buf + 4, "cd", 2) && m.msg_flags == 0 && m.msg_controllen == 0,
	      "recvmsg scattered");
	close2(sv);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, sv);
	two[0].iov_len = two[1].iov_len = 1;
	check(send(sv[0], "abcd", 4, 0) == 4 && recvmsg(sv[1], &m, 0) == 2 && (m.msg_flags & MSG_TRUNC),
	      "msg_flags MSG_TRUNC");
	close2(sv);
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
