/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client in a process of its own, which takes what it is sent when it is told to and lies in small packets until then, and
 * the half of its server: one connection in an epoll, as of an event loop.
 */
#ifndef KX_GUEST_SLOW_CLIENT_H
#define KX_GUEST_SLOW_CLIENT_H
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIECE 16384

/* ---- the client: connects, sends, reads to the end, as it is told -------------------------------------------------- */

enum { CONNECT = 1, SEND, DRAIN };

/* What it makes of its socket before it connects; 0: as it comes. */
struct small {
	int window; /* no more than this may be on the way to it */
	int packet; /* largest */
};
struct order {
	int what, n;
	struct small small;
	socklen_t len;
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_un un;
	} addr;
	char text[32];
};
struct answer {
	long n;
	unsigned sum;
	int err; /* that ended it; 0 = the end of the stream */
};
static int to_client[2], from_client[2];
static int epfd;

static inline unsigned sum_of(unsigned sum, const uint8_t *p, long n)
{
	while (n-- > 0)
		sum = sum * 31 + *p++;
	return sum;
}

static inline void client_main(void)
{
	static uint8_t buf[65536];
	struct order o;
	int s = -1, few = 4096, many = 1 << 20;
	while (read(to_client[0], &o, sizeof o) == sizeof o) {
		struct answer a = { 0 };
		if (o.what == CONNECT) {
			close(s);
			s = socket(o.addr.sa.sa_family, SOCK_STREAM, 0);
			setsockopt(s, SOL_SOCKET, SO_RCVBUF, &few, sizeof few);
			if (o.small.window)
				setsockopt(s, IPPROTO_TCP, TCP_WINDOW_CLAMP, &o.small.window, sizeof o.small.window);
			if (o.small.packet)
				setsockopt(s, IPPROTO_TCP, TCP_MAXSEG, &o.small.packet, sizeof o.small.packet);
			a.n = connect(s, &o.addr.sa, o.len);
		} else if (o.what == SEND) {
			a.n = send(s, o.text, (size_t)o.n, MSG_NOSIGNAL);
		} else {
			setsockopt(s, IPPROTO_TCP, TCP_WINDOW_CLAMP, &many, sizeof many);
			setsockopt(s, SOL_SOCKET, SO_RCVBUF, &many, sizeof many);
			long r;
			for (; (r = recv(s, buf, sizeof buf, 0)) > 0; a.n += r)
				a.sum = sum_of(a.sum, buf, r);
			a.err = r < 0 ? errno : 0;
		}
		if (write(from_client[1], &a, sizeof a) != sizeof a)
			break;
	}
	_exit(0);
}

/* Before any of the others. */
static inline void client_start(void)
{
	if (pipe(to_client) || pipe(from_client))
		exit(119);
	if (!fork()) {
		close(to_client[1]);
		close(from_client[0]);
		client_main();
	}
	close(to_client[0]);
	close(from_client[1]);
	epfd = epoll_create1(EPOLL_CLOEXEC);
}

static inline void client_end(void)
{
	close(to_client[1]);
	wait(NULL);
}

static inline void say(const struct order *o)
{
	if (write(to_client[1], o, sizeof *o) != sizeof *o)
		exit(119);
}

static inline struct answer hear(void)
{
	struct answer a;
	if (read(from_client[0], &a, sizeof a) != sizeof a)
		exit(119);
	return a;
}

static inline struct answer tell(const struct order *o)
{
	say(o);
	return hear();
}

static inline void client_sends(const char *text)
{
	struct order o = { .what = SEND, .n = (int)strlen(text) };
	strcpy(o.text, text);
	if (tell(&o).n != o.n)
		exit(118);
}

/* ---- the server ----------------------------------------------------------------------------------------------------- */

/* A listener, the client told to connect to it. */
static inline int listener(bool un, int lowat, struct small small)
{
	struct order o = { .what = CONNECT, .small = small, .len = sizeof o.addr.in };
	if (un) {
		o.addr.un.sun_family = AF_UNIX;
		o.len = offsetof(struct sockaddr_un, sun_path) + 1 +
			(socklen_t)snprintf(o.addr.un.sun_path + 1, 60, "kx-client-%d", getpid());
	} else {
		o.addr.in.sin_family = AF_INET;
		o.addr.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	int s = socket(o.addr.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (lowat && setsockopt(s, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof lowat))
		exit(117);
	if (bind(s, &o.addr.sa, o.len) || listen(s, 8) || getsockname(s, &o.addr.sa, &o.len) || tell(&o).n)
		exit(116);
	return s;
}

/* The client's connection, non-blocking. */
static inline int connection(bool un, int lowat, struct small small)
{
	int s = listener(un, lowat, small), fd = accept4(s, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		exit(115);
	close(s);
	return fd;
}

static inline void watch(int fd)
{
	struct epoll_event ev = { EPOLLIN, { .fd = fd } };
	if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev))
		exit(114);
}

static inline bool turn(int fd)
{
	struct epoll_event ev = { 0 };
	return epoll_wait(epfd, &ev, 1, 30000) == 1 && ev.data.fd == fd;
}

/* One request, from then on answers are written. */
static inline void asked(int fd)
{
	char c;
	client_sends("?");
	if (!turn(fd) || read(fd, &c, 1) != 1)
		exit(113);
}

/* Behind what was sent: as much as it takes, but for `most` more pieces (0: any number). */
static inline struct answer fill(int fd, struct answer sent, int most)
{
	static uint8_t data[PIECE];
	for (long r, n = 0; sent.n < 8 << 20 && (!most || n < most); sent.n += r, n++) {
		for (int i = 0; i < PIECE; i++)
			data[i] = (uint8_t)(sent.n / 7 + i * 5 + i / 251);
		if ((r = write(fd, data, PIECE)) <= 0)
			break;
		sent.sum = sum_of(sent.sum, data, r);
	}
	return sent;
}
#endif
