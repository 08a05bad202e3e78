/* SPDX-License-Identifier: Apache-2.0 */
/* Stressors of sockets. Part of stress.c. */
#ifndef KX_GUEST_STRESS_SOCKETS_H
#define KX_GUEST_STRESS_SOCKETS_H
#include "stress.h"

/* ---- sockets -------------------------------------------------------------------------------------------------- */

static inline bool all_io(int fd, unsigned char *p, size_t len, bool out)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = out ? send(fd, p + done, len - done, MSG_NOSIGNAL) : recv(fd, p + done, len - done, 0);
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

/* Sends back what comes, until the end, from as many connections as come; argument: a listening socket. */
static inline void *echo_server(void *arg)
{
	int fd, lfd = *(int *)arg;
	static unsigned char b[65536];
	while ((fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		ssize_t n;
		while ((n = recv(fd, b, sizeof(b), 0)) > 0)
			expect(all_io(fd, b, (size_t)n, true), "echo");
		close(fd);
	}
	return NULL;
}

static inline uint64_t echo_client(int lfd, const struct sockaddr *addr, socklen_t len)
{
	uint64_t ops = 0;
	pthread_t peer = start(echo_server, &lfd);
	while (!over()) {
		int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		must(fd >= 0 && connect(fd, addr, len) == 0);
		for (int i = 0; i < 50 && !over(); i++, ops++) {
			size_t n = 1 + below(i % 8 ? 1000 : 30000);
			fill(buf[0], n, ops);
			must(all_io(fd, buf[0], n, true) && all_io(fd, buf[1], n, false));
			expect(differs(buf[1], n, ops) == n, "byte %zu of %zu differs", differs(buf[1], n, ops), n);
		}
		must(shutdown(fd, SHUT_WR) == 0);
		expect(recv(fd, buf[0], 1, 0) == 0, "no end of file");
		close(fd);
	}
	must(shutdown(lfd, SHUT_RDWR) == 0);
	/* A listening UNIX socket does not wake an accept by shutdown on every kernel; a connection does. */
	int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	(void)!connect(fd, addr, len);
	close(fd);
	pthread_join(peer, NULL);
	close(lfd);
	return ops;
}

static inline uint64_t st_tcp(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(fd >= 0 && bind(fd, (void *)&a, len) == 0 && listen(fd, 8) == 0 && getsockname(fd, (void *)&a, &len) == 0);
	return echo_client(fd, (void *)&a, len);
}

static inline uint64_t st_udp(void)
{
	uint64_t ops = 0;
	struct sockaddr_in a[2], from;
	struct timeval limit = { 5, 0 };
	int fd[2];
	for (int i = 0; i < 2; i++) {
		socklen_t len = sizeof(a[i]);
		a[i] = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		fd[i] = socket(AF_INET, SOCK_DGRAM, 0);
		must(fd[i] >= 0 && bind(fd[i], (void *)&a[i], len) == 0 &&
		     getsockname(fd[i], (void *)&a[i], &len) == 0);
		must(setsockopt(fd[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0);
	}
	for (; !over(); ops++) {
		size_t n[4];
		int s = (int)(ops & 1);
		for (int i = 0; i < 4; i++) {
			n[i] = below(4000);
			fill(buf[0], n[i], ops + (uint64_t)i);
			must(sendto(fd[s], buf[0], n[i], 0, (void *)&a[!s], sizeof(a[0])) == (ssize_t)n[i]);
		}
		for (int i = 0; i < 4; i++) {
			socklen_t len = sizeof(from);
			ssize_t r = recvfrom(fd[!s], buf[1], sizeof(buf[1]), 0, (void *)&from, &len);
			if (r < 0 && errno == EAGAIN)
				continue; /* lost: it may be */
			expect(r == (ssize_t)n[i] && from.sin_port == a[s].sin_port, "%zd of %zu bytes from %d", r,
			       n[i], ntohs(from.sin_port));
			expect(r < 0 || differs(buf[1], (size_t)r, ops + (uint64_t)i) == (size_t)r,
			       "a datagram differs");
		}
	}
	close(fd[0]);
	close(fd[1]);
	return ops;
}

/* An eventfd through a socket: the received one must be the same object. */
static inline void fd_pass(int out, int in, uint64_t value)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(sizeof(int))];
	} c = { .space = { 0 } };
	char byte = 'x';
	struct {
		void *p;
		size_t n;
	} v = { &byte, 1 };
	struct msghdr m = { .msg_iov = (void *)&v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c) };
	int fd = eventfd(0, EFD_NONBLOCK), got = -1;
	uint64_t r = 0;
	must(fd >= 0);
	c.h.cmsg_level = SOL_SOCKET;
	c.h.cmsg_type = SCM_RIGHTS;
	c.h.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&c.h), &fd, sizeof(int));
	must(sendmsg(out, &m, 0) == 1);
	memset(&c, 0, sizeof(c));
	must(recvmsg(in, &m, MSG_CMSG_CLOEXEC) == 1);
	must(m.msg_controllen >= CMSG_LEN(sizeof(int)) && c.h.cmsg_type == SCM_RIGHTS);
	memcpy(&got, CMSG_DATA(&c.h), sizeof(int));
	must(got >= 0 && got != fd && write(got, &value, 8) == 8);
	expect(read(fd, &r, 8) == 8 && r == value, "a passed descriptor is another");
	close(fd);
	close(got);
}

static inline uint64_t st_unix(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };
	uint64_t ops = 0, all = end_ns, half = now() + (end_ns - now()) / 2;
	int fd[2];
	for (end_ns = half; !over(); ops++) {
		int type = types[ops % 3];
		size_t n = 1 + below(4000), m = 1 + below(4000);
		must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fd) == 0);
		fill(buf[0], n + m, ops);
		must(send(fd[0], buf[0], n, 0) == (ssize_t)n && send(fd[0], buf[0] + n, m, 0) == (ssize_t)m);
		ssize_t r = recv(fd[1], buf[1], sizeof(buf[1]), 0), want = (ssize_t)(type == SOCK_STREAM ? n + m : n);
		expect(r == want && !memcmp(buf[0], buf[1], (size_t)want), "type %d: %zd of %zd bytes", type, r, want);
		if (type != SOCK_STREAM)
			expect(recv(fd[1], buf[1], 1, MSG_TRUNC) == (ssize_t)m, "type %d: the second", type);
		fd_pass(fd[1], fd[0], ops + 1);
		close(fd[0]);
		close(fd[1]);
	}
	end_ns = all;
	snprintf(a.sun_path, sizeof(a.sun_path), "%s/s", dir);
	fd[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(fd[0] >= 0 && bind(fd[0], (void *)&a, sizeof(a)) == 0 && listen(fd[0], 8) == 0);
	ops += echo_client(fd[0], (void *)&a, sizeof(a));
	unlink(a.sun_path);
	return ops;
}

#endif
