/* SPDX-License-Identifier: Apache-2.0 */
/* The clients of a server under test: a process that holds no listener, and connects, reads and closes as it is told. */
#ifndef KX_GUEST_PEER_H
#define KX_GUEST_PEER_H
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define MANY 24

struct order {
	/* 'a' connect to port n; 'c' that many, each sends its number; 'm' that many more; 'z' as 'c', and they are reset; 'r' what
	 * each reads, from number n on; 'x' close all */
	char what;
	int n;
};

struct answer {
	uint16_t port[MANY];
	char got[MANY]; /* a byte, 'E' the end, 'R' reset */
};

static int to_peer[2], from_peer[2];
static struct sockaddr_in addr = { .sin_family = AF_INET };

static char read_one(int fd)
{
	char c;
	long r = recv(fd, &c, 1, 0);
	return r == 1 ? c : r == 0 ? 'E' : errno == ECONNRESET ? 'R' : '?';
}

/* One answer, and no more. */
static inline char read_all(int fd)
{
	char c = read_one(fd), d = c >= 'a' && c < 'a' + MANY ? read_one(fd) : 'E';
	return d == 'E' ? c : '2';
}

static int dial(uint16_t *port)
{
	struct sockaddr_in me;
	socklen_t len = sizeof me;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (void *)&addr, sizeof addr))
		_exit(1);
	getsockname(fd, (void *)&me, &len);
	*port = me.sin_port;
	return fd;
}

/* A listener at a port that is free, `addr` from here on; share: others may listen there, too. -1: there is none. */
static inline int peer_listener(bool share)
{
	socklen_t len = sizeof addr;
	int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	addr.sin_port = 0;
	if (fd < 0 || (share && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on)) ||
	    bind(fd, (void *)&addr, sizeof addr) || listen(fd, 64) || getsockname(fd, (void *)&addr, &len))
		return -1;
	return fd;
}

/* Until to_peer is closed; get: what is read for 'r'. */
static inline void peer(char (*get)(int))
{
	int fd[MANY], n = 0, end;
	struct order o;
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	while (read(to_peer[0], &o, sizeof o) == sizeof o) {
		struct answer a = { 0 };
		if (o.what == 'a')
			addr.sin_port = (uint16_t)o.n;
		n = o.what == 'c' || o.what == 'z' ? 0 : n;
		end = o.what == 'c' || o.what == 'z' || o.what == 'm' ? n + o.n : n;
		for (; n < end; n++) {
			fd[n] = dial(&a.port[n]);
			if (send(fd[n], &(char){ 'a' + n }, 1, 0) != 1)
				_exit(1);
		}
		for (int i = 0; o.what == 'z' && i < n; i++) { /* gone already */
			setsockopt(fd[i], SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
			close(fd[i]);
		}
		for (int i = o.n; o.what == 'r' && i < n; i++)
			a.got[i] = get(fd[i]);
		for (; o.what == 'x' && n; n--)
			close(fd[n - 1]);
		if (write(from_peer[1], &a, sizeof a) != sizeof a)
			_exit(2);
	}
	_exit(0);
}

/* Its process, which has none of this one's descriptors from 3 on. False: there is none. */
static inline bool peer_start(char (*get)(int))
{
	close_range(3, ~0u, 0);
	if (pipe2(to_peer, 0) || pipe2(from_peer, 0))
		return false;
	if (!fork()) {
		close(to_peer[1]);
		peer(get);
	}
	close(to_peer[0]);
	close(from_peer[1]);
	return true;
}

static inline void send_order(int fd, char what, int n)
{
	if (write(fd, &(struct order){ what, n }, sizeof(struct order)) != sizeof(struct order))
		exit(119);
}

static inline struct answer tell(char what, int n)
{
	struct answer a;
	send_order(to_peer[1], what, n);
	if (read(from_peer[0], &a, sizeof a) != sizeof a)
		exit(118);
	return a;
}
#endif
