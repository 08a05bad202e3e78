/* SPDX-License-Identifier: Apache-2.0 */
/* UNIX sockets, and what passes over them. Part of net.c. */
#ifndef KX_GUEST_NET_UNIX_H
#define KX_GUEST_NET_UNIX_H
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#include "net.h"

/* ---- UNIX -------------------------------------------------------------------------------------------------- */

static inline void test_unix_pair(int type, const char *name)
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

static inline void test_unix_named(int type, bool is_abstract)
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

static inline ssize_t send_fds(int s, const int *fds, int n)
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
static inline int recv_fds(int s, int *fds, size_t room, int how, int *flags)
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

static inline void test_rights(int type)
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

static inline ssize_t send_cred(int s, const struct ucred *uc, size_t len)
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

static inline bool recv_cred(int s, struct ucred *uc)
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

static inline void test_credentials(void)
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

static inline void test_msg_errors(void)
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
#endif
