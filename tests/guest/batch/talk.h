/* SPDX-License-Identifier: Apache-2.0 */
/* A peer that does as it is told, and connections with it. Part of batch.c. */
#ifndef KX_GUEST_BATCH_TALK_H
#define KX_GUEST_BATCH_TALK_H
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
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

static inline unsigned sum_of(unsigned sum, const uint8_t *p, long n)
{
	while (n-- > 0)
		sum = sum * 31 + *p++;
	return sum;
}

static inline long recv_n(int fd, long n, unsigned *sum, char *first)
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

static inline void peer(void)
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
static inline void ask(int what, int n, int arg, const char *data)
{
	struct order o = { what, n, arg, { 0 } };
	if (data)
		memcpy(o.data, data, arg);
	if (write(to_peer[1], &o, sizeof o) != sizeof o)
		exit(119);
}

static inline long answer(void)
{
	if (read(from_peer[0], &last, sizeof last) != sizeof last)
		exit(119);
	return last.r;
}

static inline long tell(int what, int n, int arg, const char *data)
{
	ask(what, n, arg, data);
	return answer();
}

static inline void peer_start(void)
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

static inline void peer_stop(void)
{
	close(to_peer[1]);
	close(from_peer[0]);
	wait(NULL);
}

static inline void listen_now(bool un)
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
static inline int conn_with(int n, uint32_t events, int rcvbuf)
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

static inline int conn(int n) { return conn_with(n, EPOLLIN, 0); }

static uint32_t events_of;
/* Wait until fd has an event, 0 = none within ms. */
static inline int turn(int fd, int ms)
{
	struct epoll_event ev[16];
	int n = epoll_wait(epfd, ev, 16, ms);
	events_of = 0;
	for (int i = 0; i < n; i++)
		if (ev[i].data.u64 == 0xabc00000000ull + (unsigned)fd)
			events_of = ev[i].events;
	return events_of != 0;
}

static inline void bye(int n, int fd)
{
	close(fd);
	tell(CLOSE, n, 0, NULL);
}

static inline bool next_turn(int fd)
{
	char b[8];
	tell(SEND, 0, 1, "x");
	return turn(fd, 30000) && read(fd, b, sizeof b) == 1;
}

static volatile sig_atomic_t pipes;
static inline void on_pipe(int s) { pipes += s == SIGPIPE; }
#endif
