/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way of data from a ring into the host's socket, once the pair is plain, and back out of there as long as some is
 * still in the ring. Both are done with both locks, so nothing else changes the host's queue meanwhile.
 *
 * A mover notes the piece and sends it; one store of `tail` says that it went. Killed between, it leaves a doubt. A writer
 * resolves that by the length of the queue that the mover saw, as long as nothing was taken from it since. A reader counts
 * what it takes (`taken`): of a stream the host then knows; of records, once it has taken all that went before, either
 * this one is there or nothing is. A reader killed as it takes leaves a count that is too low, until the queue is empty.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "pair_priv.h"
#include "thread.h"

#define MOVE_MOST 32768u /* and half the send buffer: one buffer of the host's, that goes as a whole or not at all */
#define PIECES_MOST 1024 /* in one go: more than a ring has, unless its cursors are moved meanwhile */
#define BASE_UNKNOWN 0xffffffffu /* something was taken since */

bool pair_in_doubt(const struct kx_pipe *o)
{
	uint64_t tail = __atomic_load_n(&o->tail, __ATOMIC_SEQ_CST);
	return __atomic_load_n(&o->moving, __ATOMIC_SEQ_CST) == (tail << 1 | 1);
}

/* Moved and not read: bytes of the ring's. */
static uint64_t at_host(const struct kx_pipe *o)
{
	uint64_t n = __atomic_load_n(&o->tail, __ATOMIC_SEQ_CST) - __atomic_load_n(&o->taken, __ATOMIC_SEQ_CST);
	return n >> 63 ? 0 : n;
}

static void taken_set(struct kx_pipe *o, uint64_t n) { __atomic_store_n(&o->taken, n, __ATOMIC_SEQ_CST); }

static void doubt_end(struct kx_pipe *o, bool went)
{
	uint32_t n = pair_word(&o->moving_len);
	if (went && n <= pipe_used(o))
		__atomic_store_n(&o->tail, o->tail + n, __ATOMIC_SEQ_CST);
	__atomic_store_n(&o->moving, 0, __ATOMIC_SEQ_CST);
}

/* ---- the writer --------------------------------------------------------------------------------------------------------- */

static uint32_t piece_most(int fd)
{
	int n = 0;
	socklen_t len = sizeof n;
	if (HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_SNDBUF, &n, &len, 0) || n < 1024)
		return 448;
	return (uint32_t)n / 2 - 64 < MOVE_MOST ? (uint32_t)n / 2 - 64 : MOVE_MOST;
}

/* One piece with both locks. 0 or -errno. */
static int piece_move(struct pair *p, uint32_t most)
{
	struct kx_pipe *o = p->out;
	uint32_t n = pipe_used(o), len, slot;
	uint64_t at = o->tail;
	if (o->kind != KX_PAIR_STREAM) {
		if (!pair_record(o, p->rout, &len))
			return 0;
		slot = kx_pair_slot(len);
		at += KX_PAIR_HEAD;
	} else {
		slot = len = n < most ? n : most;
	}
	uint32_t from = (uint32_t)(at % KX_PIPE_RING), first = KX_PIPE_RING - from < len ? KX_PIPE_RING - from : len;
	struct iovec v[2] = { { p->rout + from, first }, { p->rout, len - first } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2 };
	__atomic_store_n(&o->host_first, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&o->moving_base, (uint32_t)pair_queued(p->fd, SIOCOUTQ), __ATOMIC_SEQ_CST);
	__atomic_store_n(&o->moving_len, slot, __ATOMIC_SEQ_CST);
	__atomic_store_n(&o->moving, o->tail << 1 | 1, __ATOMIC_SEQ_CST);
	int64_t r = HC6(SYS_sendmsg, p->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0, 0);
	if (r < 0) {
		__atomic_store_n(&o->moving, 0, __ATOMIC_SEQ_CST);
		if (r == -ECONNRESET) /* is told once, and to the program */
			__atomic_store_n(&p->in->reset_due, 1, __ATOMIC_SEQ_CST);
		return (int)r;
	}
	__atomic_store_n(&o->tail, o->tail + (o->kind == KX_PAIR_STREAM ? (uint32_t)r : slot), __ATOMIC_SEQ_CST);
	return 0;
}

/* With both locks. 0, -EAGAIN: the reader will know. */
static int doubt_end_writer(struct pair *p)
{
	struct kx_pipe *o = p->out;
	uint32_t queued = (uint32_t)pair_queued(p->fd, SIOCOUTQ), base = pair_word(&o->moving_base);
	if (pair_in_doubt(o)) {
		if (queued && base == BASE_UNKNOWN)
			return -EAGAIN;
		doubt_end(o, queued > base);
	}
	if (!queued)
		taken_set(o, o->tail);
	return 0;
}

int pair_move_out(struct pair *p)
{
	struct kx_pipe *o = p->out;
	int r = 0;
	if (!pair_is_plain(p) || !pipe_used(o))
		return 0;
	if (!pair_locks_get(o))
		return -EINTR;
	if (pair_is_plain(p)) {
		uint32_t most = piece_most(p->fd);
		r = doubt_end_writer(p);
		for (unsigned n = 0; !r && pipe_used(o); n++)
			r = n < PIECES_MOST ? piece_move(p, most) : -EAGAIN;
	}
	pair_locks_put(o);
	return r == -EAGAIN || r == -ENOBUFS || r == -EINTR ? r : 0; /* else nobody can be given it */
}

/* ---- the reader --------------------------------------------------------------------------------------------------------- */

/* recvmsg tells an empty message from the end of all by nothing but who sent it. */
static bool empty_message_there(const struct pair *p)
{
	char control[CMSG_SPACE(sizeof(struct ucred))];
	struct msghdr m = { .msg_control = control, .msg_controllen = sizeof control };
	int was = 0, on = 1;
	socklen_t len = sizeof was;
	HC6(SYS_getsockopt, p->fd, SOL_SOCKET, SO_PASSCRED, &was, &len, 0);
	HC6(SYS_setsockopt, p->fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on, 0);
	int64_t r = HC6(SYS_recvmsg, p->fd, &m, MSG_PEEK | MSG_DONTWAIT, 0, 0, 0);
	HC6(SYS_setsockopt, p->fd, SOL_SOCKET, SO_PASSCRED, &was, sizeof was, 0);
	return r >= 0 && m.msg_controllen > 0;
}

static bool message_there(const struct pair *p)
{
	int ev = pipe_host_poll(p->fd, POLLIN | POLLRDHUP);
	if (!(ev & POLLIN))
		return false;
	return !(ev & (POLLHUP | POLLRDHUP)) || pair_queued(p->fd, FIONREAD) > 0 ||
	       (p->in->kind != KX_PAIR_STREAM && empty_message_there(p));
}

static void base_forget(struct kx_pipe *o)
{
	if (pair_in_doubt(o))
		__atomic_store_n(&o->moving_base, BASE_UNKNOWN, __ATOMIC_SEQ_CST);
}

/* With both locks. */
static bool host_first_now(struct pair *p)
{
	struct kx_pipe *o = p->in;
	if (!pair_is_plain(p))
		return false;
	if (pair_word(&o->skip)) {
		base_forget(o);
		pair_skip_take(p);
	}
	if (at_host(o) && !message_there(p))
		taken_set(o, o->tail);
	if (pair_in_doubt(o)) {
		uint64_t before = at_host(o);
		if (o->kind == KX_PAIR_STREAM)
			doubt_end(o, (uint64_t)pair_queued(p->fd, FIONREAD) >= before + pair_word(&o->moving_len));
		else if (!before)
			doubt_end(o, message_there(p));
	}
	return at_host(o) > 0;
}

int pair_host_first(struct pair *p)
{
	struct kx_pipe *o = p->in;
	if (!pair_word(&o->host_first) || !pipe_used(o))
		return 0;
	if (!pair_locks_get(o))
		return -EINTR;
	bool first = host_first_now(p);
	pair_locks_put(o);
	return first;
}

bool pair_host_first_still(const struct pair *p)
{
	const struct kx_pipe *o = p->in;
	return pair_is_plain(p) && pair_word(&o->host_first) && pipe_used(o) && (at_host(o) || pair_in_doubt(o));
}

static void pieces_skip(struct pieces *d, uint64_t n)
{
	while (n) {
		uint64_t m = d->v->iov_len - d->at < n ? d->v->iov_len - d->at : n;
		d->at += m;
		n -= m;
		if (n) {
			d->v++;
			d->at = 0;
		}
	}
}

static int64_t host_read(struct pair *p, struct pieces *d, uint64_t left, int flags, int *said)
{
	struct kx_pipe *o = p->in;
	bool stream = o->kind == KX_PAIR_STREAM, peek = flags & MSG_PEEK;
	size_t n = (size_t)(d->end - d->v);
	struct iovec *v = malloc((n + !n) * sizeof *v);
	struct msghdr m = { .msg_iov = v, .msg_iovlen = n };
	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		v[i] = d->v[i];
	if (n) {
		v[0].iov_base = (char *)v[0].iov_base + d->at;
		v[0].iov_len -= d->at;
	}
	if (!peek)
		base_forget(o);
	int64_t r = HC6(SYS_recvmsg, p->fd, &m, MSG_DONTWAIT | (flags & MSG_PEEK) | (stream ? 0 : MSG_TRUNC), 0, 0, 0);
	free(v);
	if (r == -EAGAIN || (stream && !r && left)) {
		taken_set(o, o->tail);
		return PAIR_NOTHING;
	}
	if (r < 0)
		return r;
	if (!peek)
		taken_set(o, o->taken + (stream ? (uint64_t)r : kx_pair_slot((uint32_t)r)));
	if (stream) {
		pieces_skip(d, (uint64_t)r);
		return r;
	}
	*said |= (uint64_t)r > left ? MSG_TRUNC : 0;
	return (uint64_t)r > left && !(flags & MSG_TRUNC) ? (int64_t)left : r;
}

int64_t pair_host_take(struct pair *p, struct pieces *d, uint64_t left, int flags, int *said)
{
	struct kx_pipe *o = p->in;
	int64_t r = PAIR_NOTHING;
	if (!pair_word(&o->host_first) || !pipe_used(o))
		return r;
	if (!pair_locks_get(o))
		return -EINTR;
	if (host_first_now(p))
		r = host_read(p, d, left, flags, said);
	pair_locks_put(o);
	return r;
}
