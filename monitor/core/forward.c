/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The forwarder of published ports: one thread, one epoll, in the helper of net.c. Its listening sockets are of the
 * host's network, what it connects is of the family's.
 *
 * TCP: what one side sends is written to the other; what that does not take is kept, and until it is gone nothing more
 * is read, so a slow reader slows the writer down. The end of a stream is passed on when all before it is, an error as a
 * reset, also after it. A client that has vanished is found by keep-alive probes, as often as the host sends them
 * (net.ipv4.tcp_keepalive_time).
 *
 * UDP: each client has a socket in the family's network of its own, until UDP_IDLE_MS without a datagram.
 *
 * When no descriptor is left, the UDP client that has been quiet for longest gives its up; then clients wait to be accepted.
 *
 * A client of IPv6 is led to the family's IPv6 address, and to the IPv4 one when nobody listens there; and vice versa.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/now.h"

#define CHUNK (256 * 1024)
#define READS 8 /* of one connection before the others have their turn */
#define EVENTS 64
#define DATAGRAMS 64 /* the same for UDP */
#define UDP_IDLE_MS 60000
#define ASSOCS_MAX 4096
#define BUCKETS 1024
#define FULL_MS 200 /* between attempts to accept when no descriptor is left */

enum kind { LISTENER, TCP_SIDE, UDP_INNER, SLIRP_END };

struct source {
	enum kind kind;
	int fd;
	uint32_t mask; /* in the epoll; 0 = not in it */
};

struct listener {
	struct source s;
	struct net_port port;
};

struct side {
	struct source s;
	struct conn *conn;
	uint8_t *kept; /* for this side, not written yet */
	size_t kept_len, kept_at;
	bool eof; /* has sent all */
};

struct conn {
	struct side side[2]; /* the client, the family */
	const struct listener *from;
	bool connecting, second, dead;
	struct conn *next_dead;
};

union addr {
	struct sockaddr sa;
	struct sockaddr_in in4;
	struct sockaddr_in6 in6;
};

union local { /* the host's address that the client knows */
	struct in_pktinfo in4;
	struct in6_pktinfo in6;
};

struct assoc {
	struct source s;
	struct listener *from;
	union addr client;
	union local local;
	struct assoc *next; /* of its bucket */
	struct assoc *older, *newer;
	bool second, dead;
	int64_t used_ms;
};

static int epoll_fd;
static struct listener *listeners;
static int nr_listeners;
static bool full;        /* no descriptor is left: nobody is accepted until a connection ends */
static int reserve = -1; /* the descriptor that the next client's other side will have */
static struct conn *dead_conns;
static struct assoc *buckets[BUCKETS], *oldest, *newest, *dead_assocs;
static int nr_assocs;
static uint8_t *chunk; /* of CHUNK bytes */

static int64_t now_ms(void) { return (int64_t)(now_ns() / 1000000); }

/* With no event wanted it is taken out: an error would be told again and again. */
static bool source_want(struct source *s, uint32_t mask)
{
	struct epoll_event e = { .events = mask, .data.ptr = s };
	if (s->mask == mask)
		return true;
	int op = !mask ? EPOLL_CTL_DEL : s->mask ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
	if (epoll_ctl(epoll_fd, op, s->fd, &e))
		return false;
	s->mask = mask;
	return true;
}

static void assoc_end(struct assoc *a);

static void listeners_want(bool on)
{
	full = !on;
	for (int i = 0; i < nr_listeners; i++)
		if (!listeners[i].port.udp)
			source_want(&listeners[i].s, on ? EPOLLIN : 0);
}

/* The family's address: of the client's kind, or of the other. */
static socklen_t inner_addr(const struct net_port *p, bool second, union addr *a)
{
	memset(a, 0, sizeof *a);
	if ((p->family == AF_INET6) == !second) {
		a->in6.sin6_family = AF_INET6;
		a->in6.sin6_port = htons(p->inner);
		inet_pton(AF_INET6, NET_ADDR6, &a->in6.sin6_addr);
		return sizeof a->in6;
	}
	a->in4.sin_family = AF_INET;
	a->in4.sin_port = htons(p->inner);
	inet_pton(AF_INET, NET_ADDR4, &a->in4.sin_addr);
	return sizeof a->in4;
}

/* ---- TCP ------------------------------------------------------------------------------------------------------------ */

static void conn_close(struct conn *c, bool reset)
{
	struct linger now = { 1, 0 };
	if (c->dead)
		return;
	c->dead = true;
	for (int i = 0; i < 2; i++) {
		if (c->side[i].s.fd < 0)
			continue;
		if (reset)
			setsockopt(c->side[i].s.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
		close(c->side[i].s.fd); /* which takes it out of the epoll */
		free(c->side[i].kept);
	}
	c->next_dead = dead_conns; /* events of this turn may name it */
	dead_conns = c;
	if (full)
		listeners_want(true);
}

static void conn_want(struct conn *c)
{
	bool ok = true;
	for (int i = 0; i < 2 && !c->dead && ok; i++) {
		struct side *me = &c->side[i], *other = &c->side[!i];
		uint32_t mask = me->kept_len ? EPOLLOUT : 0;
		if (c->connecting)
			mask = i ? EPOLLOUT : 0;
		else if (!me->eof && !other->kept_len)
			mask |= EPOLLIN;
		else if (!mask && !other->kept_len)
			mask = EPOLLET; /* an error alone, told once */
		ok = source_want(&me->s, mask);
	}
	if (!ok)
		conn_close(c, true);
}

/* 0, or -errno: nobody listens at either address, or nothing is left to connect with. */
static int conn_connect(struct conn *c)
{
	union addr a;
	int one = 1, r = -ECONNREFUSED;
	for (;; c->second = true) {
		socklen_t len = inner_addr(&c->from->port, c->second, &a);
		int fd = socket(a.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		r = fd < 0 ? -errno : 0;
		if (!r && connect(fd, &a.sa, len) && errno != EINPROGRESS)
			r = -errno;
		if (!r) {
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
			c->side[1].s.fd = fd;
			c->side[1].s.mask = 0;
			c->connecting = true;
			return 0;
		}
		if (fd >= 0)
			close(fd);
		if (c->second)
			return r;
	}
}

static void side_flush(struct conn *c, int i)
{
	struct side *me = &c->side[i];
	while (me->kept_len) {
		ssize_t n = send(me->s.fd, me->kept + me->kept_at, me->kept_len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			conn_close(c, true);
			return;
		}
		me->kept_at += (size_t)n;
		me->kept_len -= (size_t)n;
	}
	free(me->kept);
	me->kept = NULL;
	if (c->side[!i].eof)
		shutdown(me->s.fd, SHUT_WR);
}

/* n bytes at p for side i; what is not taken is kept. */
static bool side_give(struct conn *c, int i, const uint8_t *p, size_t n)
{
	struct side *me = &c->side[i];
	ssize_t w = send(me->s.fd, p, n, MSG_NOSIGNAL);
	if (w < 0 && errno != EAGAIN && errno != EINTR)
		return false;
	w = w < 0 ? 0 : w;
	if ((size_t)w == n)
		return true;
	if (!(me->kept = malloc(n - (size_t)w)))
		return false;
	me->kept_at = 0;
	me->kept_len = n - (size_t)w;
	memcpy(me->kept, p + w, me->kept_len);
	return true;
}

static void side_read(struct conn *c, int i)
{
	for (int turn = 0; turn < READS && !c->side[!i].kept_len; turn++) {
		ssize_t n = recv(c->side[i].s.fd, chunk, CHUNK, 0);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0 || (n && !side_give(c, !i, chunk, (size_t)n))) {
			conn_close(c, true);
			return;
		}
		if (!n) {
			c->side[i].eof = true;
			shutdown(c->side[!i].s.fd, SHUT_WR); /* nothing is kept for it here */
			return;
		}
	}
}

static void conn_connected(struct conn *c)
{
	int e = 0;
	socklen_t len = sizeof e;
	getsockopt(c->side[1].s.fd, SOL_SOCKET, SO_ERROR, &e, &len);
	if (!e) {
		c->connecting = false;
		return;
	}
	close(c->side[1].s.fd);
	c->side[1].s.fd = -1;
	if (c->second) {
		conn_close(c, true);
		return;
	}
	c->second = true;
	if (conn_connect(c))
		conn_close(c, true);
}

static void side_event(struct side *s, uint32_t events)
{
	struct conn *c = s->conn;
	int i = s == &c->side[1];
	if (c->dead || !s->s.mask)
		return;
	if (c->connecting) {
		if (i)
			conn_connected(c);
	} else {
		if (s->kept_len && events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
			side_flush(c, i);
		if (!c->dead && !s->eof && events & (EPOLLIN | EPOLLERR | EPOLLHUP))
			side_read(c, i);
		if (!c->dead && s->eof && events & EPOLLERR && !c->side[!i].kept_len)
			conn_close(c, true);
	}
	if (!c->dead && c->side[0].eof && c->side[1].eof && !c->side[0].kept_len && !c->side[1].kept_len)
		conn_close(c, false);
	if (!c->dead)
		conn_want(c);
}

/*
 * Accepts a client if it can be connected: with the last descriptor it would be accepted to be turned away. -1 with EAGAIN:
 * nobody waits.
 */
static int client_accept(const struct listener *l)
{
	for (;;) {
		if (reserve < 0)
			reserve = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		int fd = reserve < 0 ? -1 : accept4(l->s.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			close(reserve);
			reserve = -1;
			return fd;
		}
		if (errno != EMFILE || !oldest)
			return -1;
		assoc_end(oldest);
	}
}

static void listener_accept(struct listener *l)
{
	int one = 1;
	for (int i = 0; i < EVENTS; i++) {
		int fd = client_accept(l);
		if (fd < 0 && (kx_err_lacks(errno) || errno == ENOBUFS)) {
			listeners_want(false);
			kx_log(KX_LOG_WARN, "net", "no descriptor left for another connection (raise `ulimit -n`)");
		}
		if (fd < 0)
			return;
		struct conn *c = calloc(1, sizeof *c);
		if (!c) {
			close(fd);
			return;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
		for (int k = 0; k < 2; k++)
			c->side[k] = (struct side){ .s = { TCP_SIDE, k ? -1 : fd, 0 }, .conn = c };
		c->from = l;
		if (conn_connect(c))
			conn_close(c, true);
		else
			conn_want(c);
	}
}

/* ---- UDP ------------------------------------------------------------------------------------------------------------ */

static struct assoc **bucket(const struct listener *l, const union addr *a)
{
	const uint8_t *p = a->sa.sa_family == AF_INET6 ? (const uint8_t *)&a->in6.sin6_addr
						       : (const uint8_t *)&a->in4.sin_addr;
	uint32_t h = (uint32_t)(l - listeners) * 31 + a->in4.sin_port; /* at the same place in both */
	for (int i = 0; i < (a->sa.sa_family == AF_INET6 ? 16 : 4); i++)
		h = (h ^ p[i]) * 16777619u;
	return &buckets[(h ^ h >> 16) % BUCKETS];
}

static bool addr_same(const union addr *a, const union addr *b)
{
	if (a->sa.sa_family != b->sa.sa_family || a->in4.sin_port != b->in4.sin_port)
		return false;
	if (a->sa.sa_family == AF_INET)
		return a->in4.sin_addr.s_addr == b->in4.sin_addr.s_addr;
	return !memcmp(&a->in6.sin6_addr, &b->in6.sin6_addr, 16) && a->in6.sin6_scope_id == b->in6.sin6_scope_id;
}

static void assoc_unlink(struct assoc *a)
{
	*(a->older ? &a->older->newer : &oldest) = a->newer;
	*(a->newer ? &a->newer->older : &newest) = a->older;
}

static void assoc_used(struct assoc *a, bool linked)
{
	a->used_ms = now_ms();
	if (linked)
		assoc_unlink(a);
	a->newer = NULL;
	a->older = newest;
	*(newest ? &newest->newer : &oldest) = a;
	newest = a;
}

static void assoc_end(struct assoc *a)
{
	struct assoc **p = bucket(a->from, &a->client);
	while (*p != a)
		p = &(*p)->next;
	*p = a->next;
	assoc_unlink(a);
	nr_assocs--;
	if (a->s.fd >= 0)
		close(a->s.fd);
	a->dead = true;
	a->next = dead_assocs;
	dead_assocs = a;
	if (full)
		listeners_want(true);
}

static int assoc_connect(struct assoc *a)
{
	union addr to;
	socklen_t len = inner_addr(&a->from->port, a->second, &to);
	if (a->s.fd >= 0)
		close(a->s.fd);
	a->s.mask = 0;
	while ((a->s.fd = socket(to.sa.sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) < 0 &&
	       errno == EMFILE && oldest != a)
		assoc_end(oldest);
	return a->s.fd < 0 || connect(a->s.fd, &to.sa, len) || !source_want(&a->s, EPOLLIN) ? -1 : 0;
}

static struct assoc *assoc_find(struct listener *l, const union addr *client)
{
	struct assoc **b = bucket(l, client), *a;
	for (a = *b; a && (a->from != l || !addr_same(&a->client, client)); a = a->next)
		;
	if (a) {
		assoc_used(a, true);
		return a;
	}
	if (nr_assocs >= ASSOCS_MAX)
		assoc_end(oldest);
	if (!(a = calloc(1, sizeof *a)))
		return NULL;
	a->s = (struct source){ UDP_INNER, -1, 0 };
	a->from = l;
	a->client = *client;
	a->next = *b;
	*b = a;
	nr_assocs++;
	assoc_used(a, false);
	a->second = false;
	if (assoc_connect(a) && (a->second = true, assoc_connect(a))) {
		assoc_end(a);
		return NULL;
	}
	return a;
}

/* Refused is known as soon as it is sent, inside one machine: then there is the other address. */
static void assoc_send(struct assoc *a, size_t n)
{
	int e = 0;
	socklen_t len = sizeof e;
	bool refused = send(a->s.fd, chunk, n, MSG_NOSIGNAL) < 0 && errno == ECONNREFUSED;
	getsockopt(a->s.fd, SOL_SOCKET, SO_ERROR, &e, &len);
	if (!refused && e != ECONNREFUSED)
		return;
	a->second = !a->second;
	if (assoc_connect(a))
		assoc_end(a);
	else
		send(a->s.fd, chunk, n, MSG_NOSIGNAL);
}

static void local_read(struct msghdr *m, union local *local)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
			memcpy(&local->in4, CMSG_DATA(c), sizeof local->in4);
		if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO)
			memcpy(&local->in6, CMSG_DATA(c), sizeof local->in6);
	}
}

static void listener_receive(struct listener *l)
{
	_Alignas(struct cmsghdr) uint8_t control[256];
	for (int i = 0; i < DATAGRAMS; i++) {
		union addr client = { 0 };
		union local local = { 0 };
		struct iovec v = { chunk, CHUNK };
		struct msghdr m = { &client, sizeof client, &v, 1, control, sizeof control, 0 };
		ssize_t n = recvmsg(l->s.fd, &m, 0);
		if (n < 0)
			return;
		local_read(&m, &local);
		struct assoc *a = assoc_find(l, &client);
		if (!a)
			continue;
		a->local = local;
		assoc_send(a, (size_t)n);
	}
}

static void assoc_receive(struct assoc *a)
{
	bool v6 = a->from->port.family == AF_INET6;
	_Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(sizeof(struct in6_pktinfo))];
	for (int i = 0; i < DATAGRAMS && !a->dead; i++) {
		struct iovec v = { chunk, CHUNK };
		ssize_t n = recv(a->s.fd, chunk, CHUNK, 0);
		if (n < 0)
			return; /* refused, perhaps: the client finds nobody who answers */
		v.iov_len = (size_t)n;
		memset(control, 0, sizeof control);
		size_t len = v6 ? sizeof a->local.in6 : sizeof a->local.in4;
		struct msghdr m = {
			&a->client, v6 ? sizeof a->client.in6 : sizeof a->client.in4, &v, 1, control, CMSG_SPACE(len), 0
		};
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = v6 ? IPPROTO_IPV6 : IPPROTO_IP;
		c->cmsg_type = v6 ? IPV6_PKTINFO : IP_PKTINFO;
		c->cmsg_len = CMSG_LEN(len);
		if (v6) {
			memcpy(CMSG_DATA(c), &a->local.in6, len);
		} else {
			struct in_pktinfo from = { .ipi_spec_dst = a->local.in4.ipi_spec_dst };
			memcpy(CMSG_DATA(c), &from, len);
		}
		sendmsg(a->from->s.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
		assoc_used(a, true);
	}
}

/* ---- the loop ------------------------------------------------------------------------------------------------------- */

/* It has no need of files or processes any more: a bug in it should be worth nothing. */
static void calls_limit(void)
{
#ifndef KX_DYNAMIC
	static const short allowed[] = {
		SYS_read,          SYS_write,           SYS_recvfrom,   SYS_sendto,
		SYS_recvmsg,       SYS_sendmsg,         SYS_accept4,    SYS_socket,
		SYS_connect,       SYS_shutdown,        SYS_close,      SYS_setsockopt,
		SYS_getsockopt,    SYS_epoll_ctl,       SYS_epoll_wait, SYS_epoll_pwait,
		SYS_mmap,          SYS_munmap,          SYS_mremap,     SYS_madvise,
		SYS_brk,           SYS_futex,           SYS_flock,      SYS_exit_group,
		SYS_clock_gettime, SYS_restart_syscall, SYS_getpid,     SYS_rt_sigprocmask,
		SYS_rt_sigpending, SYS_rt_sigtimedwait,
	};
	enum { N = sizeof allowed / sizeof *allowed };
	struct sock_filter f[N + 6];
	unsigned n = 0;
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, N + 1);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (unsigned i = 0; i < N; i++)
		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)allowed[i], (uint8_t)(N - i),
						      0);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog prog = { (unsigned short)n, f };
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog)) {
		kx_log(KX_LOG_ERROR, "net", "no seccomp filter (KylinX needs one): ports are not published");
		_exit(1);
	}
#endif
}

static void bury(void)
{
	while (dead_conns) {
		struct conn *c = dead_conns;
		dead_conns = c->next_dead;
		free(c);
	}
	while (dead_assocs) {
		struct assoc *a = dead_assocs;
		dead_assocs = a->next;
		free(a);
	}
}

static void event(struct source *s, uint32_t events)
{
	switch (s->kind) {
	case LISTENER: {
		struct listener *l = (struct listener *)s;
		if (l->port.udp)
			listener_receive(l);
		else
			listener_accept(l);
		break;
	}
	case TCP_SIDE:
		side_event((struct side *)s, events);
		break;
	case UDP_INNER:
		if (!((struct assoc *)s)->dead)
			assoc_receive((struct assoc *)s);
		break;
	case SLIRP_END:
		kx_log(KX_LOG_WARN, "net", "slirp4netns has ended: the family has published ports, but no way out");
		source_want(s, 0);
		break;
	}
}

_Noreturn void forward_run(const struct net_port *ports, int nr, int slirp)
{
	static struct source slirp_end;
	struct epoll_event e[EVENTS];
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	listeners = calloc((size_t)nr + 1, sizeof *listeners);
	chunk = malloc(CHUNK);
	if (epoll_fd < 0 || !listeners || !chunk)
		_exit(1);
	nr_listeners = nr;
	for (int i = 0; i < nr; i++) {
		listeners[i] = (struct listener){ { LISTENER, ports[i].fd, 0 }, ports[i] };
		source_want(&listeners[i].s, EPOLLIN);
	}
	slirp_end = (struct source){ SLIRP_END, slirp, 0 };
	if (slirp >= 0)
		source_want(&slirp_end, EPOLLIN);
	calls_limit();
	for (;;) {
		int64_t left = oldest ? oldest->used_ms + UDP_IDLE_MS - now_ms() : -1;
		int64_t wait = oldest && left < 0 ? 0 : left;
		if (full && (wait < 0 || wait > FULL_MS)) /* what was short may be others' */
			wait = FULL_MS;
		int n = epoll_wait(epoll_fd, e, EVENTS, (int)wait);
		if (!n && full)
			listeners_want(true);
		for (int i = 0; i < n; i++)
			event(e[i].data.ptr, e[i].events);
		while (oldest && oldest->used_ms + UDP_IDLE_MS <= now_ms())
			assoc_end(oldest);
		bury();
	}
}
