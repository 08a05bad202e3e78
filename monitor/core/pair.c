/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Socket pairs (AF_UNIX, SOCK_STREAM) in memory: two objects of pipe.c's, side by side, a ring for each direction. State,
 * holders and flags are the first one's; its inode is the first end's, the second one's the other end's.
 *
 * A pipe's host pipe can be opened again by anybody who has an end of it, a socket can't. So what is in the ring can't be
 * moved into the host's socket by the reader, and another rule takes the place of that: with the lock of the writers free,
 * data in the ring means a token, one byte, in the host's socket. The writer puts it there before the first data, under
 * that lock; the reader takes it out, under both, once the ring is empty and it wants to know what the host says. So the
 * host's poll is right about data at all times, whoever asks and whoever has died; and there is one token at most, which
 * SIOCOUTQ shows to the writer.
 *
 * A pair that becomes plain leaves its data where it is. Writers go on through the host; a reader takes first what
 * is in the ring, then the token, if there was one at that time (`skip`), then what the host has.
 *
 * Lock order: first object before second, readers before writers.
 */
#include <errno.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "pipe_priv.h"
#include "pipe.h"
#include "family.h"
#include "thread.h"
#include "update.h"

struct pair {
	struct kx_pipe *first, *in, *out;
	uint8_t *rin, *rout;
	uint64_t key;
	int fd;
	uint64_t dev, ino; /* of this end */
};

static struct pair pair_of(uint64_t key, int fd)
{
	unsigned i = kx_pipe_obj(key), in = kx_pipe_way(key, 0), out = kx_pipe_way(key, 1);
	struct kx_pipe *mine = pipe_obj(i + kx_pipe_end(key));
	return (struct pair){ pipe_obj(i), pipe_obj(in), pipe_obj(out), pipe_ring(in), pipe_ring(out),
			      key,         fd,           mine->dev,     mine->ino };
}

static uint64_t state_of(const struct pair *p) { return __atomic_load_n(&p->first->state, __ATOMIC_ACQUIRE); }
static bool live(const struct pair *p) { return state_of(p) == kx_pipe_live(p->key); }
static bool plain(const struct pair *p) { return state_of(p) == ((p->key & ~0xffffffffull) | KX_PIPE_PLAIN); }

static int queued(int fd, unsigned long what)
{
	int n = 0;
	return HC6(SYS_ioctl, fd, what, &n, 0, 0, 0) ? 0 : n;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------- */

/* With the lock of the writers, before data. */
static bool token_put(struct pair *p)
{
	if (__atomic_load_n(&p->out->token, __ATOMIC_SEQ_CST))
		return true;
	if (!queued(p->fd, SIOCOUTQ) && HC6(SYS_sendto, p->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0) != 1)
		return false;
	__atomic_store_n(&p->out->token, 1, __ATOMIC_SEQ_CST);
	return true;
}

static void byte_take(int fd)
{
	char c;
	HC6(SYS_recvfrom, fd, &c, 1, MSG_DONTWAIT, 0, 0);
}

/* With both locks of p->in, and no data in it. */
static void token_take(struct pair *p)
{
	if (live(p)) {
		__atomic_store_n(&p->in->token, 0, __ATOMIC_SEQ_CST);
		if (queued(p->fd, FIONREAD))
			byte_take(p->fd);
	} else if (plain(p) && __atomic_exchange_n(&p->in->skip, 0, __ATOMIC_SEQ_CST)) {
		byte_take(p->fd);
	}
}

static bool locks_get(struct kx_pipe *o)
{
	if (!pipe_lock_get(&o->rlock))
		return false;
	if (pipe_lock_get(&o->wlock))
		return true;
	pipe_lock_put(&o->rlock);
	return false;
}

static void locks_put(struct kx_pipe *o)
{
	pipe_lock_put(&o->wlock);
	pipe_lock_put(&o->rlock);
}

/* 1: there is nothing to read; 0: there is, or it is another's; -EINTR. */
static int empty_now(struct pair *p)
{
	if (!locks_get(p->in))
		return -EINTR;
	bool none = !pipe_used(p->in) && (live(p) || plain(p));
	if (none)
		token_take(p);
	locks_put(p->in);
	return none;
}

void pair_settle(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	if (!pipe_used(p.in) && (__atomic_load_n(&p.in->token, __ATOMIC_SEQ_CST) || p.in->skip))
		empty_now(&p);
}

bool pair_rest(uint64_t key)
{
	struct pair p = pair_of(key, -1);
	return plain(&p) && (pipe_used(p.in) || __atomic_load_n(&p.in->skip, __ATOMIC_SEQ_CST));
}

int pair_inq(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	int n = (int)pipe_used(p.in);
	if (plain(&p))
		n += queued(fd, FIONREAD) - !!p.in->skip;
	return n;
}

/* ---- making and giving up ------------------------------------------------------------------------------------------- */

static bool object_take(unsigned i, uint64_t gen)
{
	struct kx_pipe *o = pipe_obj(i);
	uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
	if ((state & KX_PIPE_KIND) != KX_PIPE_FREE ||
	    !__atomic_compare_exchange_n(&o->state, &state, gen | (uint64_t)pvm.pid << 4 | KX_PIPE_MAKE, false,
					 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	if (pipe_locks_take(o))
		return true;
	__atomic_store_n(&o->state, gen | KX_PIPE_FREE, __ATOMIC_SEQ_CST);
	return false;
}

static void object_release(unsigned i, uint64_t state)
{
	struct kx_pipe *o = pipe_obj(i);
	__atomic_store_n(&o->state, state, __ATOMIC_SEQ_CST);
	locks_put(o);
}

static uint64_t object_gen(unsigned i) { return __atomic_load_n(&pipe_obj(i)->state, __ATOMIC_SEQ_CST) >> 32; }

static uint64_t objects_make(const struct stat st[2], bool nonblock)
{
	for (unsigned i = 0; i + 1 < KX_PIPE_OBJECTS; i++) {
		uint64_t a = object_gen(i), b = object_gen(i + 1), gen = ((a > b ? a : b) + 1) << 32;
		if (!object_take(i, gen))
			continue;
		if (!object_take(i + 1, gen)) {
			object_release(i, gen | KX_PIPE_FREE);
			continue;
		}
		pipe_reset(pipe_obj(i), &st[0], nonblock, false);
		pipe_reset(pipe_obj(i + 1), &st[1], nonblock, true);
		pipe_obj(i)->pair = 1;
		pipe_used_up_to(i + 2);
		object_release(i + 1, gen | KX_PIPE_SECOND);
		object_release(i, gen | KX_PIPE_LIVE);
		return gen | KX_PIPE_PAIR | (i + 1);
	}
	return 0;
}

static void ring_try(const int fd[2], int flags)
{
	struct stat st[2];
	if ((unsigned)fd[0] >= KX_PIPE_FDS || (unsigned)fd[1] >= KX_PIPE_FDS || fstat(fd[0], &st[0]) ||
	    fstat(fd[1], &st[1]) || !pipe_map_here())
		return;
	uint64_t key = objects_make(st, flags & SOCK_NONBLOCK);
	if (!key) {
		pipe_sweep();
		key = objects_make(st, flags & SOCK_NONBLOCK);
	}
	if (!key)
		return;
	pipe_key_set(fd[0], key);
	pipe_key_set(fd[1], key | 1 << 16);
}

int64_t pipe_pair_make(int domain, int type, int protocol, int fd[2])
{
	bool ring = domain == AF_UNIX && (type & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) == SOCK_STREAM;
	if (!ring || !pipe_table_is_ours() || pvm.proc_fd < 0)
		return HC6(SYS_socketpair, domain, type, protocol, fd, 0, 0);
	pthread_mutex_lock(&pipe_table_lock);
	int64_t r = HC6(SYS_socketpair, domain, type, protocol, fd, 0, 0);
	if (r == 0 && fd_admit(fd[0]) && fd_admit(fd[1]))
		ring_try(fd, type);
	pthread_mutex_unlock(&pipe_table_lock);
	return r;
}

int pair_plain(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	struct kx_pipe *second = p.first == p.in ? p.out : p.in;
	if (!live(&p)) {
		pair_settle(key, fd);
		return 0;
	}
	if (!locks_get(p.first))
		return -EINTR;
	if (!locks_get(second)) {
		locks_put(p.first);
		return -EINTR;
	}
	if (live(&p)) {
		if (!pipe_used(p.in))
			token_take(&p);
		p.in->skip = queued(fd, FIONREAD) > 0;
		p.out->skip = queued(fd, SIOCOUTQ) > 0;
		__atomic_store_n(&p.first->state, (key & ~0xffffffffull) | KX_PIPE_PLAIN, __ATOMIC_SEQ_CST);
	}
	locks_put(second);
	locks_put(p.first);
	for (int i = 0; i < 2; i++) {
		struct kx_pipe *o = i ? p.in : p.out;
		__atomic_store_n(&o->full, 1, __ATOMIC_SEQ_CST);
		pipe_wake_room(o);
	}
	return 0;
}

/* ---- reading and writing --------------------------------------------------------------------------------------------- */

/* The rest of a call by the host: `done` is what was moved before. */
static int64_t host_rest(struct pair *p, struct pieces *d, int64_t done, int flags, bool writes)
{
	size_t n = (size_t)(d->end - d->v);
	struct iovec *v = malloc((n + !n) * sizeof *v);
	struct msghdr m = { .msg_iov = v, .msg_iovlen = n };
	if (!v || !n) {
		free(v);
		return done;
	}
	for (size_t i = 0; i < n; i++)
		v[i] = d->v[i];
	v[0].iov_base = (char *)v[0].iov_base + d->at;
	v[0].iov_len -= d->at;
	int64_t r = HB6(writes ? SYS_sendmsg : SYS_recvmsg, p->fd, &m, flags, 0, 0, 0);
	free(v);
	return r > 0 ? done + r : done;
}

/* As gone() in pipe.c. */
static int64_t gone(const struct pair *p, bool slept)
{
	struct stat st;
	return slept && (fstat(p->fd, &st) || st.st_dev != p->dev || st.st_ino != p->ino) ? -EBADF : NOT_HERE;
}

/* The other end is closed. Its unread data makes an error, once; the host's own idea of that counts tokens. */
static int64_t end_of_stream(struct pair *p)
{
	int e;
	socklen_t len = sizeof e;
	HC6(SYS_getsockopt, p->fd, SOL_SOCKET, SO_ERROR, &e, &len, 0);
	return pipe_used(p->out) && !__atomic_exchange_n(&p->out->reset, 1, __ATOMIC_SEQ_CST) ? -ECONNRESET : 0;
}

void pair_error_asked(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	if (!live(&p) || !(pipe_host_poll(fd, 0) & POLLHUP))
		return;
	if (pipe_used(p.out))
		__atomic_store_n(&p.out->reset, 1, __ATOMIC_SEQ_CST);
	else
		end_of_stream(&p);
}

/* merge: what the host has may follow in the same call. */
static int64_t pair_read(struct hcall *c, struct pair *p, struct pieces *d, int flags, bool merge)
{
	bool slept = false, alone = false;
	int64_t done = 0;
	for (;;) {
		uint32_t epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&p->first->closes, __ATOMIC_SEQ_CST);
		if (!pipe_lock_get(&p->in->rlock))
			return done ? done : -EINTR;
		uint32_t n = live(p) || plain(p) ? pipe_used(p->in) : 0, got = 0;
		if (n) {
			uint64_t left = d->total - (uint64_t)done;
			n = n < left ? n : (uint32_t)left;
			got = pipe_pieces_copy(d, p->rin, p->in->tail, n, false);
			if (!(flags & MSG_PEEK))
				__atomic_store_n(&p->in->tail, p->in->tail + got, __ATOMIC_SEQ_CST);
		}
		bool still = live(p);
		pipe_lock_put(&p->in->rlock);
		if (n) {
			done += got;
			if (got)
				pipe_wake_room(p->in);
			if (got < n || (uint64_t)done == d->total || !(flags & MSG_WAITALL) || flags & MSG_PEEK) {
				if (!still)
					pair_settle(p->key, p->fd);
				if (!still && merge && got == n && (uint64_t)done < d->total && !pair_rest(p->key) &&
				    !(flags & MSG_PEEK))
					return host_rest(p, d, done, flags | MSG_DONTWAIT, false);
				return done ? done : -EFAULT;
			}
			continue;
		}
		if (!still) {
			if (plain(p) && empty_now(p) != 1)
				continue;
			return done ? host_rest(p, d, done, flags, false) : gone(p, slept);
		}
		if (alone)
			return done ? done : end_of_stream(p);
		if (flags & MSG_DONTWAIT ||
		    __atomic_load_n(&p->first->nonblock[kx_pipe_end(p->key)], __ATOMIC_RELAXED)) {
			if (pipe_host_poll(p->fd, POLLIN | POLLRDHUP) & (POLLHUP | POLLRDHUP)) {
				alone = true;
				continue;
			}
			pipe_note_check(p->fd, epoch, closes);
			return done ? done : -EAGAIN;
		}
		int r = empty_now(p);
		if (r < 0)
			return done ? done : r;
		if (!r || !live(p))
			continue;
		struct pollfd pfd = { p->fd, POLLIN | POLLRDHUP, 0 };
		int64_t ret = HB6(SYS_ppoll, &pfd, 1, 0, 0, 0, 0);
		if (ret == -EINTR && update_goes_on(c->t))
			continue;
		if (ret < 0)
			return done ? done : ret;
		slept = true;
		if (pfd.revents & POLLNVAL || pipe_key_for(p->fd) != p->key)
			return done ? done : gone(p, slept);
		alone = pfd.revents & (POLLHUP | POLLRDHUP);
	}
}

static int64_t pair_write(struct hcall *c, struct pair *p, struct pieces *d, int flags)
{
	uint64_t done = 0;
	bool slept = false;
	uint32_t need = d->total <= KX_PIPE_ATOMIC ? (uint32_t)d->total : 1;
	for (;;) {
		uint32_t epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&p->first->closes, __ATOMIC_SEQ_CST);
		if (pipe_host_poll(p->fd, POLLOUT) & POLLHUP) {     /* the host's own answer, with its signal */
			if (slept && !done && end_of_stream(p) < 0) /* as the host's, to who waited for room */
				return -ECONNRESET;
			int64_t r = done ? 0 : HC6(SYS_sendto, p->fd, "", 1, flags & MSG_NOSIGNAL, 0, 0);
			return done ? (int64_t)done : r < 0 ? r : -EPIPE;
		}
		pipe_note_check(p->fd, epoch, closes);
		if (!d->total)
			return 0;
		if (!pipe_lock_get(&p->out->wlock))
			return done ? (int64_t)done : -EINTR;
		if (!live(p)) {
			pipe_lock_put(&p->out->wlock);
			if (plain(p) && done)
				return host_rest(p, d, (int64_t)done, flags, true);
			return done ? (int64_t)done : gone(p, slept);
		}
		uint32_t room = KX_PIPE_RING - pipe_used(p->out), got = 0, n = 0;
		bool token = room < need || token_put(p);
		if (room >= need && token) {
			n = room < d->total - done ? room : (uint32_t)(d->total - done);
			got = pipe_pieces_copy(d, p->rout, p->out->head, n, true);
			if (got < n && d->total <= KX_PIPE_ATOMIC)
				got = 0;
			__atomic_store_n(&p->out->head, p->out->head + got, __ATOMIC_SEQ_CST);
		}
		pipe_lock_put(&p->out->wlock);
		if (!token) { /* the host has no room even for that: it knows what to say */
			int r = pair_plain(p->key, p->fd);
			if (r)
				return done ? (int64_t)done : r;
			continue;
		}
		done += got;
		if (done == d->total)
			return (int64_t)done;
		if (got < n)
			return done ? (int64_t)done : -EFAULT;
		if (flags & MSG_DONTWAIT || __atomic_load_n(&p->first->nonblock[kx_pipe_end(p->key)], __ATOMIC_RELAXED))
			return done ? (int64_t)done : -EAGAIN;
		uint32_t seq = __atomic_load_n(&p->out->room, __ATOMIC_SEQ_CST);
		__atomic_store_n(&p->out->full, 1, __ATOMIC_SEQ_CST);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (KX_PIPE_RING - pipe_used(p->out) >= need || !live(p))
			continue;
		const struct timespec slice = { 0, ROOM_SLICE_NS }; /* the reader may be killed */
		int64_t r = HB6(SYS_futex, &p->out->room, FUTEX_WAIT, seq, &slice, 0, 0);
		if (r == -EINTR && !update_goes_on(c->t))
			return done ? (int64_t)done : -EINTR;
		slept = true;
		if (pipe_key_for(p->fd) != p->key)
			return done ? (int64_t)done : gone(p, slept);
	}
}

int64_t pair_io(struct hcall *c, uint64_t key, int fd, struct pieces *d, bool writes)
{
	struct pair p = pair_of(key, fd);
	bool msg = c->nr == SYS_sendto || c->nr == SYS_recvfrom;
	int flags = msg ? (int)c->arg[3] : 0, zero = 0;
	int known = MSG_DONTWAIT | (writes ? MSG_NOSIGNAL : MSG_PEEK | MSG_WAITALL);
	/* What the rings have no answer for. */
	if (flags & ~known || (msg && (c->arg[4] || (!writes && !d->total)))) {
		int r = pair_plain(key, fd);
		if (r || writes || !pair_rest(key))
			return r ? r : NOT_HERE;
	}
	if (!writes && !d->total)
		return msg ? NOT_HERE : 0;
	int64_t r = writes ? pair_write(c, &p, d, flags) : pair_read(c, &p, d, flags, true);
	if (r > 0 && c->nr == SYS_recvfrom && c->arg[4] && c->arg[5] && guest_write(c->arg[5], &zero, sizeof zero))
		return -EFAULT;
	return r;
}

bool pipe_recvmsg(struct hcall *c, int fd, struct msghdr *h, int flags, int64_t *r)
{
	uint64_t key = pipe_mem ? pipe_key_for(fd) : 0;
	struct pieces d = { .v = h->msg_iov, .end = h->msg_iov + h->msg_iovlen };
	if (!key || !kx_pipe_pair(key) || !pair_rest(key))
		return false;
	for (size_t i = 0; i < h->msg_iovlen; i++)
		d.total += h->msg_iov[i].iov_len;
	struct pair p = pair_of(key, fd);
	if (!d.total)
		return false;
	*r = pair_read(c, &p, &d, flags, false);
	if (*r == NOT_HERE)
		return false;
	h->msg_controllen = 0;
	h->msg_namelen = 0;
	h->msg_flags = flags & MSG_CMSG_CLOEXEC;
	return true;
}
