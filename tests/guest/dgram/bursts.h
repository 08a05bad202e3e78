/* SPDX-License-Identifier: Apache-2.0 */
/* A peer that sends and receives as it is told, and sockets with bursts of datagrams. Part of dgram.c. */
#ifndef KX_GUEST_DGRAM_BURSTS_H
#define KX_GUEST_DGRAM_BURSTS_H
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include "../check.h"
#include "../clock.h"

#define N 24 /* datagrams of a usual burst */
static void *volatile bad_address = (void *)8;

/* ---- the peer: a process that was forked before there was any socket here --------------------------------------- */

enum { OPEN = 1, SEND, RECV, CLOSE, DELAYED, WAIT_BYTE };
struct order {
	int what, n, arg, family, port;
};
struct answer {
	int r, port, n[4];
};
static int to_peer[2], from_peer[2], side[2];

static inline socklen_t address(struct sockaddr_in6 *a, int family, int port)
{
	struct sockaddr_in *in = (void *)a;
	memset(a, 0, sizeof *a);
	if (family == AF_INET6) {
		*a = (struct sockaddr_in6){ .sin6_family = AF_INET6,
					    .sin6_port = htons(port),
					    .sin6_addr = IN6ADDR_LOOPBACK_INIT };
		return sizeof *a;
	}
	in->sin_family = AF_INET;
	in->sin_port = htons(port);
	in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sizeof *in;
}

static inline int bound(int family, int type, int *port)
{
	struct sockaddr_in6 a;
	socklen_t len = address(&a, family, 0);
	int s = socket(family, SOCK_DGRAM | type, 0);
	NEED(s >= 0 && !bind(s, (void *)&a, len) && !getsockname(s, (void *)&a, &len));
	*port = ntohs(a.sin6_port); /* in the same place for both */
	return s;
}

#define MIXED -2

/* Datagram number i has the length that its first byte and `arg` say. */
static inline int length_of(int i, int arg)
{
	static const int mixed[] = { 5, 2047, 2048, 2049, 9000, 1, 20000, 3, 2048, 30000, 700, 2500 };
	if (arg == MIXED)
		return mixed[i % 12];
	return arg ? arg : 1 + i * 37 % 900;
}

static inline void peer_main(void)
{
	static uint8_t buf[65536];
	struct order o;
	int s[2] = { -1, -1 };
	while (read(to_peer[0], &o, sizeof o) == sizeof o) {
		struct answer a = { 0 };
		struct sockaddr_in6 to;
		int k = o.family == AF_INET6;
		socklen_t len = address(&to, o.family, o.port);
		if (o.what == OPEN) {
			if (s[k] >= 0)
				close(s[k]);
			s[k] = bound(o.family, 0, &a.port);
		}
		if (o.what == DELAYED) {
			NEED(write(from_peer[1], &a, sizeof a) == sizeof a);
			nap(60);
		}
		for (int i = 0; (o.what == SEND || o.what == DELAYED) && i < o.n; i++) {
			int n = o.arg == -1 ? 0 : length_of(i, o.arg);
			memset(buf, i, (size_t)n);
			a.r += sendto(s[k], buf, (size_t)n, 0, (void *)&to, len) == n;
		}
		/* arg: how long it may take, in ms */
		for (int i = 0; o.what == RECV && i < o.n; i++) {
			struct pollfd p = { s[k], POLLIN, 0 };
			if (poll(&p, 1, o.arg) != 1)
				break;
			long n = recv(s[k], buf, sizeof buf, 0);
			a.r += n == length_of(i, 0) && buf[0] == (uint8_t)i && buf[n - 1] == (uint8_t)i;
			if (i < 4)
				a.n[i] = (int)n;
		}
		/* Once a byte has come by the side, what was sent before it is there. */
		if (o.what == WAIT_BYTE) {
			char c;
			struct answer go = { .r = 1 };
			NEED(write(from_peer[1], &go, sizeof go) == sizeof go && read(side[0], &c, 1) == 1);
			a.r = (int)recv(s[k], buf, sizeof buf, MSG_DONTWAIT);
		}
		if (o.what == CLOSE) {
			close(s[k]);
			s[k] = -1;
		}
		if (o.what != DELAYED)
			NEED(write(from_peer[1], &a, sizeof a) == sizeof a);
	}
}

static inline struct answer hear(void)
{
	struct answer a;
	NEED(read(from_peer[0], &a, sizeof a) == sizeof a);
	return a;
}

static inline struct answer tell(int what, int n, int arg, int family, int port)
{
	struct order o = { what, n, arg, family, port };
	NEED(write(to_peer[1], &o, sizeof o) == sizeof o);
	return hear();
}

static inline struct answer feed(int n, int arg, int port) { return tell(SEND, n, arg, AF_INET, port); }

/* ---- the sockets here ------------------------------------------------------------------------------------------- */

static int port, peer_port;

static inline void drain(int s)
{
	char buf[64];
	while (recv(s, buf, sizeof buf, MSG_DONTWAIT) >= 0 || errno != EAGAIN)
		;
}

/* A socket from which datagrams are received by habit, one at a time, with waits between them. */
static inline int used(int type)
{
	char buf[1024];
	int s = bound(AF_INET, type, &port);
	struct pollfd p = { s, POLLIN, 0 };
	feed(12, 0, port);
	for (int i = 0; i < 12; i++)
		NEED(poll(&p, 1, 100000) == 1 && recv(s, buf, sizeof buf, 0) == length_of(i, 0));
	return s;
}

/* The same, in bursts up to EAGAIN. */
static inline int greedy(int type)
{
	int s = used(type);
	struct pollfd p = { s, POLLIN, 0 };
	for (int i = 0; i < 4; i++) {
		feed(N, 0, port);
		NEED(poll(&p, 1, 100000) == 1);
		drain(s);
	}
	return s;
}

/* After this some have been received, and the rest is wherever it is. */
static inline int begun(int type, int n, int arg)
{
	char buf[2048];
	int s = greedy(type);
	feed(n, arg, port);
	NEED(recv(s, buf, sizeof buf, 0) >= 0);
	return s;
}

static inline bool takes(int s, int first, int end, int arg)
{
	static uint8_t buf[65536];
	for (int i = first; i < end; i++) {
		long n = recv(s, buf, sizeof buf, MSG_DONTWAIT);
		if (n != length_of(i, arg) || buf[0] != (uint8_t)i || buf[n - 1] != (uint8_t)i)
			return false;
	}
	return recv(s, buf, sizeof buf, MSG_DONTWAIT) == -1 && errno == EAGAIN;
}
#endif
