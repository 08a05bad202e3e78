/* SPDX-License-Identifier: Apache-2.0 */
/* A script of operations on a pair's two ends, in one process or two. Part of pair.c. */
#ifndef KX_GUEST_PAIR_SCRIPT_H
#define KX_GUEST_PAIR_SCRIPT_H
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEED(c) \
	do { \
		if (!(c)) { \
			printf("line %d: %s: %s\n", __LINE__, #c, strerror(errno)); \
			fflush(stdout); \
			_exit(1); \
		} \
	} while (0)

/*
 * w write, W send(DONTWAIT | NOSIGNAL), V writev of three pieces, m sendmsg; r read, R recv(DONTWAIT), P and peek,
 * A recv(WAITALL), U readv of three pieces, M recvmsg(DONTWAIT), N recvfrom with an address, T recv(TRUNC | DONTWAIT);
 * f FIONREAD, p poll, l select for reading, e epoll, s shutdown, c close, d exchange for a copy, t SO_ERROR, n O_NONBLOCK
 * as the number says, x exchange for a copy from 2,000 on, b a bad address to read to, g one to write from,
 * i SO_RCVTIMEO of so many ms; E epoll for reading by edges, O for writing; k EPOLL_CTL_MOD of e's to these events, D take it
 * out; F write so many at a time until there is no room (EAGAIN), G read as much as was written by F
 */
static const char *const scripts[] = {
	"wa5 rb9 wb7 ra3 ra9",
	"Rb9 wa1 Rb9 Rb9 Ra9",
	"wa5 wa5 Pb7 Pb20 fb0 Rb6 fb0 Rb9 fb0 Rb9",
	"Va10 Ub7 Ub9 Va3 Rb9",
	"wa4 Tb2 Rb9 wa4 Nb9 wa4 Nb2 Nb9",
	"wa5 Ab5 wa9 Ab3 Ab6",
	"pa0 pb0 wa5 pb0 pa0 lb0 Rb5 pb0 lb0 pa0",
	"wa5 eb0 Rb3 eb0 Rb3 eb0 wa1 eb0 Rb9 eb0 ea0 wb3 ea0",
	"wa5 Rb5 eb0 wa5 eb0 Rb5 eb0 wb4 ea0 Ra4 ea0",
	"wa5 ma5 wa5 Rb7 Rb20 Rb1",
	"wa5 Mb3 Mb9 Mb9 wa5 Mb9 wb5 ma1 Ra9 Mb1",
	"ma5 Rb9 wb5 Ra9",
	"wa5 sa1 Rb9 Rb9 Rb9 pb0 pa0 wb4 Ra9 Wa1 wb3 sb1 Ra9 Ra9 pa0 pb0",
	"wa5 sb0 Rb9 Rb9 Wa3 wb3 Ra9",
	"wa5 sa2 Rb3 Rb9 Rb9 Wb3 Ra9 pb0",
	"wa5 ca0 pb0 fb0 Rb3 Rb9 Rb9 Wb5 pb0",
	"wa5 cb0 pa0 Ra9 Ra9 Wa5",
	"wa5 Rb5 cb0 pa0 Ra9 Ra9 Wa5",
	"wa5 Rb5 wb6 cb0 pa0 Ra3 Ra9 Ra9",
	"wa5 wb6 cb0 Ra3 Ra9 Ra9 Ra9 pa0",
	"wa5 cb0 ta0 ta0 Ra9",
	"wa5 Rb2 cb0 pa0 Ra9 Ra9",
	"wa5 Rb5 cb0 ta0 pa0 Ra1",
	"wa5 Rb5 eb0 cb0 pa0 Ra9",
	"wa5 Rb5 ea0 cb0 ea0 Ra9",
	"wa5 eb0 wa3 ca0 eb0 Rb9 eb0 Rb9",
	"ca0 Wb5 Rb5 pb0 eb0 lb0",
	"wa5 da0 wa5 db0 Rb9 wb3 Ra9 Rb9",
	"wa5 xb0 Rb3 wa5 Rb9 wb3 Ra9 xa0 wa3 Rb9 wb3 Ra9",
	"nb1 rb5 wa5 rb3 rb5 rb5 nb0 wa5 rb5 na1 ra5 wb4 ra5",
	"wa5 bb3 Rb9 ga3 wa2 Rb9",
	"wa0 Rb0 wa3 Rb0 Wa0 Rb9",
	"na1 wa40000 fb0 Rb40000 Rb1 wa20000 Rb30000",
	"wa30000 Rb10000 wa30000 Rb60000",
	"Wa4096 Wa4096 Pb9000 Rb4000 Pb9000 Rb9000",
	"ib50 rb5 wa5 rb5 rb5 wb3 Ra5",
	"wa5 ib50 rb9 rb5",
	"wa9 sa0 Rb9 Wb5 Ra9",
	"ma5 Mb9 ma3 ma4 Mb2 Mb9 Mb9",
	"Wa5 Mb0 Rb0 Qb3 Qb9 Tb9",
	"Eb0 wa5 Eb0 Eb0 Rb9 wa4 Eb0 Rb9 Eb0 ca0 Eb0",
	"wa5 Eb0 wa3 Eb0 Rb2 wa1 Eb0 Rb9 Eb0 wa2 Eb0",
	"wa5 Eb0 ca0 Eb0 Rb9 Eb0",
	"wa5 Eb0 Rb9 db0 wa5 Eb0 Rb9",
	"Fa1000 pa0 Gb0 pa0 wa5 Rb9",
	"Fa1000 Oa0 Gb0 Oa0 pa0 wa5 Rb9",
	"Oa0 Fa1000 Oa0 Gb0 Oa0 Oa0 wa5 Rb9",
	"eb0 Fa1000 ea0 Gb0 ea0 wa5 eb0 Rb9 eb0 ea0",
	"eb0 Fa100 ea0 cb0 ea0 Wa5",
	"eb0 kb1 wa5 eb0 kb4 eb0 Rb9 kb1 eb0 Db0 wa3 eb0 Rb9",
	"eb0 wa5 mb0 sb1 ma3 Rb9 eb0 Ra9",
};

/* For SOCK_SEQPACKET and SOCK_DGRAM. */
static const char *const records[] = {
	"Rb9 wa5 wa7 Rb9 Rb9 Rb9 wb3 Ra9",
	"wa5 Rb2 Rb9 wa5 wa6 Rb3 Rb9",
	"Wa0 wa3 wa0 Rb9 Rb9 Rb9 Rb9 ma0 Mb9 Va0 Rb9",
	"wa5 Pb3 Pb9 Rb9 Rb9",
	"wa9 Tb3 wa9 Tb20 wa9 Qb3 Qb9 Rb9",
	"wa9 Mb3 wa9 Mb20 ma5 Mb9 ma5 Rb9 Mb9 ma4 Mb0 Mb9",
	"Va10 Ub7 Va10 Ub20 Rb9",
	"wa5 fb0 wa6 fb0 Rb9 fb0 Rb9 fb0",
	"wa5 Rb0 Rb9 wa5 rb0 rb9",
	"wa5 Nb9 wa5 Ab9 wa5 Ab2",
	"wa5 bb3 Rb9 ga3 wa2 Rb9",
	"pa0 pb0 wa5 pb0 lb0 wa6 Rb9 pb0 Rb9 pb0 lb0 Wa0 pb0 Rb9 pb0",
	"wa5 eb0 wa6 eb0 Rb9 eb0 Rb9 eb0 ea0 wb3 ea0 Ra9 ea0",
	"eb0 Wa0 eb0 Rb9 eb0",
	"Eb0 wa5 Eb0 Eb0 wa5 Eb0 Rb9 Eb0 Rb9 wa4 Eb0 Rb9 Eb0",
	"wa31000 Rb60000 wa32000 Rb60000 wa5 Rb9",
	"wa40000 Rb60000 wa5 Rb9",
	"wa5 wa40000 wa7 Rb9 Rb60000 Rb9 wb3 Ra9",
	"Wa250000 wa5 Rb9",
	"wa5 sa1 Rb9 Rb9 wb4 Ra9 Wa1 pb0",
	"wa5 wa6 sa2 Rb9 Rb9 Rb9 Wb3 Ra9",
	"wa5 da0 wa5 db0 Rb9 Rb9 wb3 Ra9",
	"wa5 xb0 Rb9 wa5 Rb9 wb3 Ra9 xa0 wa3 Rb9 wb3 Ra9",
	"nb1 rb5 wa5 rb3 rb5 nb0 wa5 rb5",
	"ib50 rb5 wa5 wa6 rb9 rb5",
	"Fa1000 pa0 Gb0 pa0 wa5 Rb9",
	"Fa20000 pa0 Gb0 pa0 wa5 Rb9",
	"Oa0 Fa1000 Oa0 Gb0 Oa0 wa5 Rb9",
	"eb0 Fa100 ea0 Gb0 ea0 wa5 eb0 Rb9 eb0 ea0",
	"wa5 ca0 pb0 fb0 Rb9 Rb9 Wb5 Wb5 pb0 tb0",
	"wa5 cb0 pa0 ta0 Wa5 Wa5 Ra9 pa0",
	"wa5 Rb9 cb0 pa0 Ra9 Wa5 Wa5",
	"wa5 wb6 cb0 Ra3 Ra9 Ra9 pa0",
	"wa5 Rb9 wb6 wb7 cb0 pa0 Ra9 Ra9 Ra9",
	"wa5 eb0 ea0 cb0 ea0 Ra9",
};

struct end {
	int fd, ep, edges, rooms; /* epolls of e, E and O */
	bool records;
	uint32_t out, in; /* number of the next byte */
};

static char wbuf[300000], rbuf[65536];

static inline const char *err(ssize_t r) { return r < 0 ? strerrorname_np(errno) : ""; }

static inline struct msghdr message(struct iovec *v, char *base, size_t n)
{
	*v = (struct iovec){ base, n };
	return (struct msghdr){ .msg_iov = v, .msg_iovlen = 1 };
}

static inline void pieces(struct iovec v[3], char *base, size_t n)
{
	v[0] = (struct iovec){ base, n / 3 };
	v[1] = (struct iovec){ base + n / 3, 0 };
	v[2] = (struct iovec){ base + n / 3, n - n / 3 };
}

static inline ssize_t write_op(struct end *e, char op, size_t n)
{
	struct iovec v[3];
	struct msghdr m;
	for (size_t i = 0; i < n; i++)
		wbuf[i] = (char)((e->out + i) % 251);
	m = message(v, wbuf, n);
	if (op == 'm')
		return sendmsg(e->fd, &m, MSG_NOSIGNAL);
	pieces(v, wbuf, n);
	return op == 'w'   ? write(e->fd, wbuf, n)
	       : op == 'W' ? send(e->fd, wbuf, n, MSG_DONTWAIT | MSG_NOSIGNAL)
	       : op == 'V' ? writev(e->fd, v, 3)
			   : write(e->fd, (void *)8, n);
}

static inline ssize_t read_op(struct end *e, char op, size_t n, char *more)
{
	struct sockaddr_storage name;
	socklen_t len = sizeof name;
	struct iovec v[3];
	struct msghdr m = message(v, rbuf, n);
	ssize_t r;
	switch (op) {
	case 'r':
		return read(e->fd, rbuf, n);
	case 'R':
		return recv(e->fd, rbuf, n, MSG_DONTWAIT);
	case 'T':
		return recv(e->fd, rbuf, n, MSG_DONTWAIT | MSG_TRUNC);
	case 'P':
		return recv(e->fd, rbuf, n, MSG_DONTWAIT | MSG_PEEK);
	case 'Q':
		return recv(e->fd, rbuf, n, MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC);
	case 'A':
		return recv(e->fd, rbuf, n, MSG_WAITALL);
	case 'b':
		return read(e->fd, (void *)8, n);
	case 'N':
		r = recvfrom(e->fd, rbuf, n, 0, (void *)&name, &len);
		sprintf(more, " name %u", len);
		return r;
	case 'M':
		r = recvmsg(e->fd, &m, MSG_DONTWAIT);
		sprintf(more, " flags %x", m.msg_flags);
		return r;
	}
	pieces(v, rbuf, n);
	return readv(e->fd, v, 3);
}

static inline int epoll_op(int *ep, int fd, uint32_t events)
{
	struct epoll_event ev = { events, { 0 } };
	if (*ep < 0) {
		*ep = epoll_create1(EPOLL_CLOEXEC);
		NEED(epoll_ctl(*ep, EPOLL_CTL_ADD, fd, &ev) == 0);
	}
	int n = epoll_wait(*ep, &ev, 1, 0);
	return n == 1 ? (int)ev.events : n;
}

/* Write until there is no room; the other end reads all of it, whatever it was. */
static inline ssize_t fill_op(struct end *e, size_t n)
{
	ssize_t r;
	for (unsigned i = 0; (r = send(e->fd, wbuf, n, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0; i++)
		;
	return r;
}

static inline ssize_t drain_op(struct end *e)
{
	ssize_t r;
	while ((r = recv(e->fd, rbuf, sizeof rbuf, MSG_DONTWAIT)) > 0)
		;
	return r;
}

static inline ssize_t other_op(struct end *e, char op, int n)
{
	struct pollfd p = { e->fd, POLLIN | POLLOUT | POLLRDHUP, 0 };
	struct timeval now = { 0, 0 }, tv = { 0, n * 1000 };
	socklen_t len = sizeof n;
	int fd, r;
	switch (op) {
	case 'f':
		return ioctl(e->fd, FIONREAD, &n) ? -1 : n;
	case 'p':
		poll(&p, 1, 0);
		return p.revents;
	case 'l': {
		fd_set set;
		FD_ZERO(&set);
		FD_SET(e->fd, &set);
		return select(e->fd + 1, &set, NULL, NULL, &now);
	}
	case 'e':
		return epoll_op(&e->ep, e->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
	case 'E':
		return epoll_op(&e->edges, e->fd, EPOLLIN | EPOLLRDHUP | EPOLLET);
	case 'O':
		return epoll_op(&e->rooms, e->fd, EPOLLOUT | EPOLLET);
	case 'k':
		return epoll_ctl(e->ep, EPOLL_CTL_MOD, e->fd, &(struct epoll_event){ (uint32_t)n, { 0 } });
	case 'D':
		r = epoll_ctl(e->ep, EPOLL_CTL_DEL, e->fd, NULL);
		close(e->ep);
		e->ep = -1;
		return r;
	case 'F':
		return fill_op(e, (size_t)n);
	case 'G':
		return drain_op(e);
	case 's':
		return shutdown(e->fd, n == 0 ? SHUT_RD : n == 1 ? SHUT_WR : SHUT_RDWR);
	case 'c':
		return close(e->fd);
	case 't':
		return getsockopt(e->fd, SOL_SOCKET, SO_ERROR, &n, &len) ? -1 : n;
	case 'n':
		return fcntl(e->fd, F_SETFL, n ? O_NONBLOCK : 0);
	case 'i':
		return setsockopt(e->fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	}
	fd = op == 'd' ? dup(e->fd) : fcntl(e->fd, F_DUPFD, 900);
	r = fd < 0 ? -1 : close(e->fd);
	e->fd = fd;
	return r;
}

/* One operation; what it gave, as text. */
static inline void perform(struct end *e, const char *op, char *out)
{
	char more[64] = "";
	size_t n = (size_t)atoi(op + 2);
	ssize_t r;
	if (strchr("wWVmg", *op)) {
		r = write_op(e, *op, n);
		if (r > 0)
			e->out += (uint32_t)r;
	} else if (strchr("rRTPQAbNMU", *op)) {
		r = read_op(e, *op, n, more);
		if (e->records && r > 0 && n) { /* what was cut off is gone */
			e->in = (unsigned char)rbuf[0];
			sprintf(more + strlen(more), " from %u", e->in);
		}
		for (ssize_t i = 0; i < r && i < (ssize_t)n; i++)
			if (rbuf[i] != (char)((e->in + (uint32_t)i) % 251)) {
				sprintf(more + strlen(more), " WRONG at %zd", i);
				break;
			}
		if (r > 0 && *op != 'P' && *op != 'Q')
			e->in += (uint32_t)r;
	} else {
		r = other_op(e, *op, (int)n);
	}
	sprintf(out, strchr("peEO", *op) ? "%zx %s%s" : "%zd %s%s", r, err(r), more);
}

static inline void serve(struct end *e, int from, int to)
{
	char op[32], out[128] = "";
	while (read(from, op, sizeof op) == sizeof op) {
		perform(e, op, out);
		NEED(write(to, out, sizeof out) == sizeof out);
	}
	_exit(0);
}

static inline void epolls_close(const struct end *e)
{
	if (e->ep >= 0)
		close(e->ep);
	if (e->edges >= 0)
		close(e->edges);
	if (e->rooms >= 0)
		close(e->rooms);
}

static inline void run_script(const char *self, const char *script, int type, int mode)
{
	static const char *const types[] = {
		[SOCK_STREAM] = "stream", [SOCK_DGRAM] = "datagrams", [SOCK_SEQPACKET] = "records"
	};
	bool rec = type != SOCK_STREAM;
	static const char *const modes[] = { "one process", "a child", "a program" };
	int sv[2], to[2], from[2];
	pid_t pid = 0;
	NEED(socketpair(AF_UNIX, type, 0, sv) == 0 && pipe(to) == 0 && pipe(from) == 0);
	struct end a = { sv[0], -1, -1, -1, rec, 0, 0 }, b = { sv[1], -1, -1, -1, rec, 0, 0 };
	fflush(stdout);
	if (mode && (pid = fork()) == 0) {
		char text[4][16];
		close(sv[0]);
		close(to[1]);
		close(from[0]);
		if (mode == 1)
			serve(&b, to[0], from[1]);
		sprintf(text[0], "%d", sv[1]);
		sprintf(text[1], "%d", to[0]);
		sprintf(text[2], "%d", from[1]);
		sprintf(text[3], "%d", rec);
		execl(self, self, "serve", text[0], text[1], text[2], text[3], NULL);
		_exit(1);
	}
	if (mode)
		close(sv[1]);
	close(to[0]);
	close(from[1]);
	printf("%s, %s, %s:\n", script, types[type], modes[mode]);
	char copy[256], *save, *op;
	strcpy(copy, script);
	for (op = strtok_r(copy, " ", &save); op; op = strtok_r(NULL, " ", &save)) {
		char out[128] = "", in[32] = "";
		strcpy(in, op);
		if (op[1] == 'b' && mode) {
			NEED(write(to[1], in, sizeof in) == sizeof in);
			NEED(read(from[0], out, sizeof out) == sizeof out);
		} else {
			perform(op[1] == 'a' ? &a : &b, op, out);
		}
		printf("  %s: %s\n", op, out);
	}
	close(to[1]);
	close(from[0]);
	epolls_close(&a);
	epolls_close(&b);
	close(a.fd);
	if (mode)
		waitpid(pid, NULL, 0);
	else
		close(b.fd);
}
#endif
