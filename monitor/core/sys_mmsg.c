/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several messages by one call. An error behind the first one that was received is the socket's next call's, recvmmsg(2), and
 * whoever waits for the socket is told of it: the kernel keeps it so, in the call that takes the messages alone. So what is
 * there is taken by its own recvmmsg(), which does not sleep, and slept is in poll(). Neither streams that a read may sleep for
 * nor sockets whose data lies in rings of the family's are received from in this way.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/now.h"
#include "pipe.h"
#include "sys_net.h"
#include "update.h"

#define MMSG_LIMIT 1024
#define AT_ONCE 64 /* messages that are taken by one call of the host's */
#define NS_PER_SEC 1000000000ll
#define WAITS_AGAIN 1

int64_t hc_sendmmsg(struct hcall *c)
{
	uint32_t vlen = (uint32_t)c->arg[2], done = 0;
	int64_t r = 0;
	bool whole = true;
	if (vlen > MMSG_LIMIT)
		vlen = MMSG_LIMIT;
	while (done < vlen && whole) {
		uint64_t gva = c->arg[1] + done * sizeof(struct mmsghdr);
		do
			r = message_send(c, gva, (int)c->arg[3], &whole);
		while ((r == -EINTR && update_goes_on(c->t)));
		uint32_t len = (uint32_t)r;
		if (r >= 0 && guest_write(gva + offsetof(struct mmsghdr, msg_len), &len, sizeof len))
			r = -EFAULT;
		if (r < 0)
			break;
		done++;
	}
	return done ? done : r;
}

/* left = total - (now - start), not below 0. */
static void time_left(struct timespec *left, const struct timespec *total, int64_t start)
{
	int64_t spent = (int64_t)now_ns() - start;
	left->tv_sec = total->tv_sec - spent / NS_PER_SEC;
	left->tv_nsec = total->tv_nsec - spent % NS_PER_SEC;
	if (left->tv_nsec < 0) {
		left->tv_nsec += NS_PER_SEC;
		left->tv_sec--;
	}
	if (left->tv_sec < 0)
		left->tv_sec = left->tv_nsec = 0;
}

/* What is received, and how. */
struct many {
	struct hcall *c;
	int fd, flags; /* without MSG_WAITFORONE */
	uint32_t done, all;
	bool nowait;
	int msg_flags; /* of the last one */
	struct timespec ts, left, *timeout;
	int64_t start;
};

static uint64_t header_of(const struct many *m) { return m->c->arg[1] + (uint64_t)m->done * sizeof(struct mmsghdr); }

/* The last one has used up the time, which is looked at between messages alone, as the kernel does. */
static bool is_late(struct many *m)
{
	if (!m->timeout)
		return false;
	time_left(&m->left, &m->ts, m->start);
	return !m->left.tv_sec && !m->left.tv_nsec;
}

static bool is_last(struct many *m) { return m->done == m->all || m->msg_flags & MSG_OOB || is_late(m); }

static int64_t give(struct many *m, int64_t len)
{
	uint32_t n = (uint32_t)len;
	if (guest_write(header_of(m) + offsetof(struct mmsghdr, msg_len), &n, sizeof n))
		return -EFAULT;
	m->done++;
	return 0;
}

/* The next one, by a call for it alone; 0 or an error. */
static int64_t take_one(struct many *m)
{
	int64_t r;
	do
		r = message_receive(m->c, header_of(m), m->flags | (m->nowait ? MSG_DONTWAIT : 0), &m->msg_flags);
	while (r == -EINTR && update_goes_on(m->c->t));
	return r < 0 ? r : give(m, r);
}

static int64_t take_each(struct many *m, bool one)
{
	int64_t r = 0;
	while (m->done < m->all && !(r = take_one(m)) && !is_last(m))
		m->nowait |= one;
	return r;
}

/* A header of which the kernel says e. */
static void spoil(struct msghdr *h, int e)
{
	static struct iovec negative = { NULL, SIZE_MAX };
	*h = (struct msghdr){ .msg_iov = (void *)UINTPTR_MAX, .msg_iovlen = 1 };
	if (e == -EMSGSIZE)
		h->msg_iovlen = IOV_MAX + 1;
	else if (e == -EINVAL)
		h->msg_iov = &negative;
}

/* The headers of the next messages, up to one that is bad. How many; -ENOMEM for the first. */
static int load(const struct many *m, struct message *msg, struct mmsghdr *h, int n)
{
	for (int i = 0; i < n; i++) {
		int e = message_load(&msg[i], header_of(m) + (uint64_t)i * sizeof *h);
		if (!e)
			e = recv_prepare(&msg[i]);
		if (e == -ENOMEM) { /* of the monitor's */
			message_free(&msg[i]);
			return i ? i : e;
		}
		h[i].msg_hdr = msg[i].h;
		if (e) {
			spoil(&h[i].msg_hdr, e);
			return i + 1;
		}
	}
	return n;
}

/* What came in, to the guest: 0, or the error of the first one that can't be given, behind which what came is lost. */
static int64_t give_all(struct many *m, struct message *msg, struct mmsghdr *h, int64_t n)
{
	int64_t r = 0;
	for (int64_t i = 0; i < n; i++) {
		msg[i].h = h[i].msg_hdr;
		if (r) {
			ctl_dropped(&msg[i].h);
			continue;
		}
		ctl_received(&msg[i].h);
		m->msg_flags = msg[i].h.msg_flags;
		r = recv_write_back(&msg[i], header_of(m));
		if (!r)
			r = give(m, h[i].msg_len);
	}
	return r;
}

/* Some of those that are there. 0, an error, -EAGAIN: there is none; *whole: as many as fit. */
static int64_t take_some(struct many *m, bool *whole)
{
	struct {
		struct message msg[AT_ONCE];
		struct mmsghdr h[AT_ONCE];
	} *a = malloc(sizeof *a);
	int want = (int)(m->all - m->done < AT_ONCE ? m->all - m->done : AT_ONCE);
	int64_t r = a ? load(m, a->msg, a->h, want) : -ENOMEM;
	int n = r > 0 ? (int)r : 0;
	*whole = false;
	if (n) {
		struct timespec left = m->left;
		r = HC6(SYS_recvmmsg, m->fd, a->h, n, m->flags | MSG_DONTWAIT, m->timeout ? &left : NULL, 0);
		*whole = r == want;
	}
	if (r > 0)
		r = give_all(m, a->msg, a->h, r);
	for (int i = 0; i < n; i++)
		message_free(&a->msg[i]);
	free(a);
	return r;
}

/* Until there is more: *has says what. WAITS_AGAIN: an error lies there for the next call; else 0 or an error. */
static int64_t wait_for(struct many *m, bool asleep, int *has)
{
	struct pollfd p = { .fd = m->fd, .events = POLLIN };
	struct timeval tv;
	int64_t r;
	do {
		struct timespec ts = { 0, 0 }, *limit = &ts;
		if (asleep && sock_timeout(m->fd, SO_RCVTIMEO, &tv))
			ts = (struct timespec){ tv.tv_sec, tv.tv_usec * 1000 };
		else if (asleep)
			limit = NULL;
		r = HB6(SYS_ppoll, &p, 1, limit, 0, 8, 0);
	} while (r == -EINTR && update_goes_on(m->c->t));
	*has = r > 0 ? p.revents : 0;
	if (r == -EINTR)
		return sock_interrupted(m->c, m->fd, SO_RCVTIMEO);
	if (r < 0)
		return r;
	if (m->done && *has & POLLERR)
		return WAITS_AGAIN;
	return asleep && !r ? -EAGAIN : 0;
}

static int64_t take_there(struct many *m, bool one)
{
	int has = 0;
	for (;;) {
		bool whole;
		int64_t r = take_some(m, &whole);
		if (r && r != -EAGAIN)
			return r;
		if (m->done && one)
			m->nowait = true;
		if (m->done && is_last(m))
			return 0;
		if (m->nowait && !whole)
			return r;
		/* What makes it ready is none of the receive's, a message of the kernel's error queue for instance. */
		if (r == -EAGAIN && has)
			return take_each(m, one);
		if ((r = wait_for(m, !whole, &has)))
			return r == WAITS_AGAIN ? 0 : r;
	}
}

static bool by_host(const struct many *m)
{
	int type = 0;
	socklen_t len = sizeof type;
	if (pipe_is_pair(m->fd) || HC6(SYS_getsockopt, m->fd, SOL_SOCKET, SO_TYPE, &type, &len, 0))
		return false;
	return m->nowait || type != SOCK_STREAM;
}

int64_t hc_recvmmsg(struct hcall *c)
{
	bool one = (int)c->arg[3] & MSG_WAITFORONE;
	struct many m = { .c = c, .fd = (int)c->arg[0], .flags = (int)c->arg[3] & ~MSG_WAITFORONE };
	m.all = (uint32_t)c->arg[2];
	if (get_timespec(c->arg[4], &m.ts, &m.timeout))
		return -EFAULT;
	if (m.timeout && (m.ts.tv_sec < 0 || m.ts.tv_nsec < 0 || m.ts.tv_nsec >= NS_PER_SEC))
		return -EINVAL;
	if (!m.all)
		return 0;
	m.start = m.timeout ? (int64_t)now_ns() : 0;
	m.left = m.ts;
	m.nowait = m.flags & (MSG_DONTWAIT | MSG_ERRQUEUE) || sock_nonblocking(m.fd);
	int64_t r = by_host(&m) ? take_there(&m, one) : take_each(&m, one);
	if (!m.done)
		return r;
	if (m.timeout) {
		time_left(&m.left, &m.ts, m.start);
		if (guest_write(c->arg[4], &m.left, sizeof m.left))
			return -EFAULT;
	}
	return m.done;
}
