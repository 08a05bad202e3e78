/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets, addresses and clocks for the parts of net.c. */
#ifndef KX_GUEST_NET_H
#define KX_GUEST_NET_H
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "../asleep.h"
#include "../counted.h"

#define MS 1000000LL

static inline int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

static inline void sleep_ms(int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * MS };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static inline int flags_of(int fd) { return fcntl(fd, F_GETFL); }
static inline bool cloexec(int fd) { return fcntl(fd, F_GETFD) & FD_CLOEXEC; }

static inline int get_int(int fd, int level, int opt)
{
	int v = -1;
	socklen_t len = sizeof v;

	return getsockopt(fd, level, opt, &v, &len) ? -1 : v;
}

static inline int set_int(int fd, int level, int opt, int v) { return setsockopt(fd, level, opt, &v, sizeof v); }

static inline int set_timeout(int fd, int opt, int ms)
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

static inline socklen_t loopback(union addr *a, int family)
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

static inline socklen_t abstract(union addr *a, const char *tag)
{
	memset(a, 0, sizeof *a);
	a->un.sun_family = AF_UNIX;
	int n = snprintf(a->un.sun_path + 1, sizeof a->un.sun_path - 1, "kx-net-%d-%s", (int)getpid(), tag);
	return offsetof(struct sockaddr_un, sun_path) + 1 + n;
}

/* Bring lo up where the program may (a network namespace of its own starts with it down). */
static inline void loopback_up(void)
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

static inline bool have(int family)
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
static inline int listener(int family, union addr *a, socklen_t *len)
{
	*len = loopback(a, family);
	int s = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s < 0 || bind(s, &a->sa, *len) || listen(s, 8))
		return -1;
	return getsockname(s, &a->sa, len) ? -1 : s;
}

/* A connected pair of TCP sockets. */
static inline bool tcp_pair(int family, int sv[2])
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

static inline void close2(int sv[2])
{
	close(sv[0]);
	close(sv[1]);
}
#endif
