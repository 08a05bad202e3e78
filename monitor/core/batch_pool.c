/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listeners that several processes have, of which one alone accepts: a worker whose master has made the listener, a server
 * whose child saves. That one accepts ahead as who has a listener alone does (batch_accept.c), and yet as if what its program
 * has not got were in the kernel's backlog, for all who have the listener.
 *
 * Each connection accepted ahead is put into a queue, too, a pair of UNIX sockets that all holders of the listener have: one message
 * for each, in their order. The first ones, as many as the program has got, are taken out before anything that it has done to them is
 * sent (batch_flush()). So whoever is killed leaves there what others are to accept; whoever is taken back from, ends or closes
 * the listener leaves the rest. The queue is registered beside the listener in each epoll that has it, and accepts look there first.
 *
 * Who accepts or waits for the listener, and who may use the queue, is told by locks of a file's bytes, which end with their process:
 *   byte 0, shared: by each process that has accepted, or registered it; by the file itself (F_OFD_SETLK): nobody is to
 *           accept ahead ever again
 *   byte 1: who takes from the queue; who has more in it than others may take
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "batch_listen.h"

#define SKIP_MAX 8 /* 1 << that many chances are left out where others accept, too */

static struct pool {
	int fd;   /* the listener's number here; -1 = none */
	int q[2]; /* where it is read, written */
	int locks;
	int epoll; /* where the queue is registered, with data; -1 = nowhere */
	uint64_t data;
	bool active; /* byte 0 is locked */
	bool holds;  /* byte 1 is: the queue has what this process has put there, and no more */
	bool spoilt;
	bool look; /* the queue has told, or may have something */
	unsigned misses, skip;
} pools[POOLS_MAX] = { [0 ... POOLS_MAX - 1] = { .fd = -1 } };
static int nr_pools;

static struct pool *pool_of(int fd)
{
	for (int i = 0; i < POOLS_MAX && nr_pools && fd >= 0; i++)
		if (pools[i].fd == fd)
			return &pools[i];
	return NULL;
}

bool pool_any(void) { return __atomic_load_n(&nr_pools, __ATOMIC_RELAXED) != 0; }
bool pool_has(int fd) { return pool_of(fd) != NULL; }

static void close_all(struct pool *p)
{
	const int fds[] = { p->q[0], p->q[1], p->locks };
	for (int i = 0; i < 3; i++)
		if (fds[i] >= 0)
			HC6(SYS_close, fds[i], 0, 0, 0, 0, 0);
}

static long lock(const struct pool *p, int how, int type, off_t byte)
{
	struct flock f = { .l_type = (short)type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
	return HC6(SYS_fcntl, p->locks, how, &f, 0, 0, 0);
}

static void join(struct pool *p)
{
	if (!p->active)
		p->active = !lock(p, F_SETLK, F_RDLCK, 0);
}

static void release(struct pool *p)
{
	if (p->holds)
		lock(p, F_SETLK, F_UNLCK, 1);
	p->holds = false;
}

static bool is_empty(const struct pool *p)
{
	return HC6(SYS_recvfrom, p->q[0], NULL, 0, MSG_PEEK | MSG_DONTWAIT, 0, 0) == -EAGAIN;
}

void pool_spoil(int fd)
{
	struct pool *p = pool_any() ? pool_of(fd) : NULL;
	if (p && !__atomic_exchange_n(&p->spoilt, true, __ATOMIC_SEQ_CST))
		lock(p, F_OFD_SETLK, F_RDLCK, 0);
}

/* ---- which listeners -------------------------------------------------------------------------------------------------- */

static void unregister(struct pool *p)
{
	if (p->epoll >= 0)
		HC6(SYS_epoll_ctl, p->epoll, EPOLL_CTL_DEL, p->q[0], NULL, 0, 0);
	p->epoll = -1;
}

static void place(struct pool *p, int epoll, uint32_t events, uint64_t data)
{
	struct epoll_event ev = { events & EPOLLIN ? BELL_EVENT : 0, { .u64 = data } };
	long r = -ENOENT;
	if (p->epoll >= 0 && p->epoll != epoll) { /* in two: not known which one is asked */
		pool_spoil(p->fd);
		return;
	}
	bell_tells(1 + (unsigned)(p - pools), data, &p->look);
	if (p->epoll == epoll)
		r = HC6(SYS_epoll_ctl, epoll, EPOLL_CTL_MOD, p->q[0], &ev, 0, 0);
	if (r == -ENOENT)
		r = HC6(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, p->q[0], &ev, 0, 0);
	if (r || events & (EPOLLET | EPOLLONESHOT))
		pool_spoil(p->fd);
	p->epoll = r ? -1 : epoll;
	p->data = data;
}

void pool_registered(const struct hcall *c)
{
	struct pool *p = pool_of((int)c->arg[2]);
	struct epoll_event ev;
	if (!p)
		return;
	if ((int)c->arg[1] == EPOLL_CTL_DEL) {
		if (p->epoll == (int)c->arg[0])
			unregister(p);
		return;
	}
	join(p);
	if (!guest_read(&ev, c->arg[3], sizeof ev))
		place(p, (int)c->arg[0], ev.events, ev.data.u64);
}

static bool make(struct pool *p)
{
	int q[2] = { -1, -1 }, m;
	fd_limit_lift();
	if (HC6(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, q, 0, 0))
		q[0] = q[1] = -1;
	m = memfd_create("kylinx-listener", MFD_CLOEXEC);
	fd_limit_drop();
	*p = (struct pool){ .fd = -1, .q = { -1, -1 }, .locks = m < 0 ? -1 : fd_hide(m), .epoll = -1 };
	for (int i = 0; i < 2; i++)
		p->q[i] = q[i] < 0 ? -1 : fd_hide(q[i]);
	if (p->q[0] >= 0 && p->q[1] >= 0 && p->locks >= 0)
		return true;
	close_all(p);
	return false;
}

void pool_make(int fd, bool polled)
{
	const struct listening *l = listen_of(fd);
	unsigned n;
	if (polled || pool_of(fd) || !listen_is_waiting(fd, &n))
		return;
	for (int i = 0; i < POOLS_MAX; i++) {
		if (pools[i].fd >= 0)
			continue;
		if (!make(&pools[i]))
			return;
		pools[i].fd = fd;
		nr_pools++;
		if (!l || l->epoll < 0)
			return;
		join(&pools[i]);
		place(&pools[i], l->epoll, l->events, l->data);
		if (l->odd)
			pool_spoil(fd);
		return;
	}
}

void pool_closed(unsigned first, unsigned last)
{
	for (int i = 0; i < POOLS_MAX && nr_pools; i++) {
		struct pool *p = &pools[i];
		if (p->fd < 0)
			continue;
		if (p->epoll >= 0 && (unsigned)p->epoll >= first && (unsigned)p->epoll <= last)
			unregister(p);
		if ((unsigned)p->fd < first || (unsigned)p->fd > last)
			continue;
		unregister(p);
		close_all(p);
		p->fd = -1;
		nr_pools--;
	}
}

/* The child may keep them over its exec, and will not know of the queue. */
void pool_vfork(void)
{
	for (int i = 0; i < POOLS_MAX && nr_pools; i++)
		if (pools[i].fd >= 0 && !(HC6(SYS_fcntl, pools[i].fd, F_GETFD, 0, 0, 0, 0) & FD_CLOEXEC))
			pool_spoil(pools[i].fd);
}

void pool_fork_child(void)
{
	for (int i = 0; i < POOLS_MAX && nr_pools; i++) {
		pools[i].epoll = -1;
		pools[i].active = pools[i].holds = false;
	}
}

void pool_hand(struct batch_handed *h)
{
	h->nr_pools = 0;
	for (int i = 0; i < POOLS_MAX && nr_pools; i++) {
		struct pool *p = &pools[i];
		long flags = p->fd >= 0 ? HC6(SYS_fcntl, p->fd, F_GETFD, 0, 0, 0, 0) : -1;
		if (flags < 0 || flags & FD_CLOEXEC)
			continue;
		flags = p->epoll >= 0 ? HC6(SYS_fcntl, p->epoll, F_GETFD, 0, 0, 0, 0) : -1;
		const int epoll = flags < 0 || flags & FD_CLOEXEC ? -1 : p->epoll; /* with it the registration goes */
		h->pool[h->nr_pools++] =
			(struct batch_pool){ p->fd, { p->q[0], p->q[1], p->locks }, epoll, p->spoilt, p->data };
		for (int k = 0; k < 3; k++)
			HC6(SYS_fcntl, h->pool[h->nr_pools - 1].of[k], F_SETFD, 0, 0, 0, 0);
	}
}

void pool_adopt(const struct batch_handed *h)
{
	for (int i = 0; i < h->nr_pools; i++) {
		const struct batch_pool *b = &h->pool[i];
		for (int k = 0; k < 3; k++)
			HC6(SYS_fcntl, b->of[k], F_SETFD, FD_CLOEXEC, 0, 0, 0);
		if (pool_of(b->fd)) /* the exec has failed */
			continue;
		struct pool *p = &pools[nr_pools++];
		*p = (struct pool){ .fd = b->fd, .q = { b->of[0], b->of[1] }, .locks = b->of[2], .epoll = b->epoll };
		p->spoilt = b->spoilt;
		p->look = true;
		p->data = b->data;
		lock(p, F_SETLK, F_UNLCK, 0); /* of the program before */
		lock(p, F_SETLK, F_UNLCK, 1);
		if (p->epoll >= 0)
			bell_tells(1 + (unsigned)(p - pools), p->data, &p->look);
	}
}

int pool_fds(int (*move)(int *fd))
{
	int r = 0;
	for (int i = 0; i < POOLS_MAX && nr_pools && !r; i++) {
		struct pool *p = &pools[i];
		const int epoll = p->epoll;
		struct epoll_event ev = { BELL_EVENT, { .u64 = p->data } };
		if (p->fd < 0)
			continue;
		unregister(p); /* it is there by its number */
		for (int k = 0; k < 3 && !r; k++)
			r = move(k == 2 ? &p->locks : &p->q[k]);
		if (epoll >= 0 && !HC6(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, p->q[0], &ev, 0, 0))
			p->epoll = epoll;
		if (p->active) { /* the locks have gone with the number */
			p->active = p->holds = false;
			join(p);
		}
	}
	return r;
}

/* ---- what is in the queue ---------------------------------------------------------------------------------------------- */

bool pool_alone(int fd)
{
	struct pool *p = pool_of(fd);
	struct flock f = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
	return p && p->active && !p->spoilt && !HC6(SYS_fcntl, p->locks, F_GETLK, &f, 0, 0, 0) && f.l_type == F_UNLCK;
}

bool pool_begin(int fd)
{
	struct pool *p = pool_of(fd);
	if (!p || p->epoll < 0 || (p->skip && p->skip--))
		return false;
	if (!pool_alone(fd)) {
		release(p);
		p->misses += p->misses < SKIP_MAX;
		p->skip = 1u << p->misses;
		return false;
	}
	p->misses = 0;
	if (!p->holds) {
		p->holds = !lock(p, F_SETLK, F_WRLCK, 1);
		if (p->holds && !is_empty(p)) {
			p->look = true;
			release(p);
		}
	}
	return p->holds;
}

bool pool_put(int listener, const struct kx_accepted *of)
{
	const struct pool *p = pool_of(listener);
	struct iovec v = { (void *)of, sizeof *of };
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} u = { .h = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u };
	memcpy(CMSG_DATA(&u.h), &of->fd, sizeof of->fd);
	return p && HC6(SYS_sendmsg, p->q[1], &m, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0, 0) == sizeof *of;
}

void pool_took(int listener, unsigned n)
{
	static struct mmsghdr none[KX_ACCEPT_MAX];
	const struct pool *p = pool_of(listener);
	if (p && n)
		HC6(SYS_recvmmsg, p->q[0], none, n, MSG_DONTWAIT, 0, 0);
}

void pool_end(int listener, bool rest)
{
	struct pool *p = pool_of(listener);
	if (!p || !rest)
		return;
	p->look = true;
	release(p);
}

/* The first one, at a number above the program's. -1: there is none. */
static int take_out(struct pool *p, struct kx_accepted *of)
{
	struct iovec v = { of, sizeof *of };
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} u;
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u };
	int fd = -1;
	if (!p->holds && lock(p, F_SETLK, F_WRLCK, 1)) /* somebody else's at this moment */
		return -1;
	fd_limit_lift();
	if (HC6(SYS_recvmsg, p->q[0], &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, 0, 0, 0) == sizeof *of &&
	    m.msg_controllen >= CMSG_LEN(sizeof fd))
		memcpy(&fd, CMSG_DATA(&u.h), sizeof fd);
	fd_limit_drop();
	p->holds = true;
	release(p);
	return fd;
}

int pool_give(int listener, bool cloexec, struct kx_accepted *of)
{
	struct pool *p = pool_of(listener);
	if (!p)
		return -EAGAIN;
	join(p);
	if (p->epoll >= 0 && !__atomic_exchange_n(&p->look, false, __ATOMIC_SEQ_CST))
		return -EAGAIN;
	if (is_empty(p))
		return -EAGAIN;
	const int fd = (int)HC6(SYS_fcntl, p->q[0], cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, 0, 0, 0, 0);
	__atomic_store_n(&p->look, true, __ATOMIC_SEQ_CST);
	if (fd < 0)
		return fd;
	const int at = take_out(p, of);
	if (at >= 0)
		HC6(SYS_dup3, at, fd, cloexec ? O_CLOEXEC : 0, 0, 0, 0);
	HC6(SYS_close, at >= 0 ? at : fd, 0, 0, 0, 0, 0);
	return at >= 0 ? fd : -EAGAIN;
}

void pool_reset(int listener)
{
	struct linger hard = { 1, 0 };
	struct pool *p = pool_of(listener);
	struct kx_accepted of;
	for (int fd; p && (fd = take_out(p, &of)) >= 0;) {
		HC6(SYS_setsockopt, fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard, 0);
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	}
}

int pool_fd(int listener)
{
	const struct pool *p = pool_of(listener);
	return p && !is_empty(p) ? p->q[0] : -1;
}
