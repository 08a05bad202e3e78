/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Socket pairs (AF_UNIX: SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM) in memory: two objects of pipe.c's, side by side, a ring
 * for each direction. State, holders and flags are the first one's; its inode is the first end's, the second one's the
 * other end's. The rings of the latter two types hold records.
 *
 * A pipe's host pipe can be opened again by anybody who has an end of it, a socket can't. So what is in the ring can't be
 * moved into the host's socket by the reader, and another rule takes the place of that: with the lock of the writers free,
 * data in the ring means a token, one byte, in the host's socket. The writer puts it there before the first data, under
 * that lock; the reader takes it out, under both, once the ring is empty and it wants to know what the host says. So the
 * host's poll is right about data at all times, whoever asks and whoever has died.
 *
 * What is in the rings when a pair becomes plain its writers move (pair_move.c). Until they have, a reader takes what is
 * in the ring, then the tokens that there were at that time (`skip`), then what the host has.
 *
 * Lock order: first object before second, readers before writers.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "pair_priv.h"
#include "pipe.h"
#include "family.h"
#include "thread.h"
#include "update.h"

#define NAPS 3 /* before a sleep, which costs its reader and the writer of the next data a token */

/* ---- what there is ---------------------------------------------------------------------------------------------------- */

/* What FIONREAD says of a ring: of datagrams the first one. */
static int ring_inq(struct pair *p)
{
	struct kx_pipe *o = p->in;
	uint32_t n = 0, len;
	if (o->kind == KX_PAIR_STREAM)
		return (int)pipe_used(o);
	if (!pipe_lock_get(&o->rlock))
		return 0;
	for (struct kx_pipe at = *o; pair_record(&at, p->rin, &len); at.tail += kx_pair_slot(len)) {
		n += len;
		if (o->kind == KX_PAIR_DGRAM)
			break;
	}
	pipe_lock_put(&o->rlock);
	return (int)n;
}

int pair_inq(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	pair_settle(key, fd);
	bool first = pair_is_plain(&p) && pair_host_first(&p) == 1;
	int n = first && p.in->kind == KX_PAIR_DGRAM ? 0 : ring_inq(&p);
	if (pair_is_plain(&p) && (p.in->kind != KX_PAIR_DGRAM || !n))
		n += pair_queued(fd, FIONREAD) - (int)pair_word(&p.in->skip);
	return n < 0 ? 0 : n;
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
	pair_locks_put(o);
}

static uint64_t object_gen(unsigned i) { return __atomic_load_n(&pipe_obj(i)->state, __ATOMIC_SEQ_CST) >> 32; }

static uint64_t objects_make(const struct stat st[2], bool nonblock, uint32_t kind)
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
		pipe_obj(i)->kind = pipe_obj(i + 1)->kind = kind;
		pipe_used_up_to(i + 2);
		object_release(i + 1, gen | KX_PIPE_SECOND);
		object_release(i, gen | KX_PIPE_LIVE);
		return gen | KX_PIPE_PAIR | (i + 1);
	}
	return 0;
}

/* What a ring can hold must fit into the host's socket, beside tokens. */
static bool host_has_room(int fd)
{
	int n = 0;
	socklen_t len = sizeof n;
	return !HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_SNDBUF, &n, &len, 0) && n >= KX_PAIR_SNDBUF;
}

static void ring_try(const int fd[2], int flags, uint32_t kind)
{
	struct stat st[2];
	if ((unsigned)fd[0] >= KX_PIPE_FDS || (unsigned)fd[1] >= KX_PIPE_FDS || fstat(fd[0], &st[0]) ||
	    fstat(fd[1], &st[1]) || !host_has_room(fd[0]) || !pipe_map_here())
		return;
	uint64_t key = objects_make(st, flags & SOCK_NONBLOCK, kind);
	if (!key) {
		pipe_sweep();
		key = objects_make(st, flags & SOCK_NONBLOCK, kind);
	}
	if (!key)
		return;
	pipe_key_set(fd[0], key);
	pipe_key_set(fd[1], key | 1 << 16);
}

static int kind_of(int type)
{
	switch (type & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) {
	case SOCK_STREAM:
		return KX_PAIR_STREAM;
	case SOCK_SEQPACKET:
		return KX_PAIR_RECORDS;
	case SOCK_DGRAM:
		return KX_PAIR_DGRAM;
	}
	return -1;
}

int64_t pipe_pair_make(int domain, int type, int protocol, int fd[2])
{
	int kind = domain == AF_UNIX ? kind_of(type) : -1;
	if (kind < 0 || !pipe_table_is_ours() || pvm.proc_fd < 0)
		return HC6(SYS_socketpair, domain, type, protocol, fd, 0, 0);
	pipe_table_get();
	int64_t r = HC6(SYS_socketpair, domain, type, protocol, fd, 0, 0);
	if (r == 0 && fd_admit(fd[0]) && fd_admit(fd[1]))
		ring_try(fd, type, (uint32_t)kind);
	pipe_table_put();
	return r;
}

/* ---- reading and writing --------------------------------------------------------------------------------------------- */

static bool sleeps_never(const struct pair *p, int flags)
{
	return flags & MSG_DONTWAIT || __atomic_load_n(&p->first->nonblock[kx_pipe_end(p->key)], __ATOMIC_RELAXED);
}

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
	if (!pair_live(&p) || !(pipe_host_poll(fd, 0) & POLLHUP))
		return;
	if (pipe_used(p.out))
		__atomic_store_n(&p.out->reset, 1, __ATOMIC_SEQ_CST);
	else
		end_of_stream(&p);
}

/* With the readers' lock: a record, as recvmsg tells of it, or PAIR_NOTHING. */
static int64_t record_take(struct pair *p, struct pieces *d, int flags, int *said)
{
	uint32_t len;
	if (!pair_record(p->in, p->rin, &len))
		return PAIR_NOTHING;
	uint64_t tail = p->in->tail;
	uint32_t n = len < d->total ? len : (uint32_t)d->total;
	uint32_t got = pipe_pieces_copy(d, p->rin, tail + KX_PAIR_HEAD, n, false);
	if (!(flags & MSG_PEEK))
		pair_tail_set(p, tail + kx_pair_slot(len));
	*said |= len > d->total ? MSG_TRUNC : 0;
	return got < n ? -EFAULT : flags & MSG_TRUNC ? (int64_t)len : (int64_t)n;
}

/* An error comes before the records. */
static bool reset_first(struct pair *p)
{
	return p->in->kind == KX_PAIR_RECORDS && pair_live(p) && pipe_used(p->in) && pipe_used(p->out) &&
	       !pair_word(&p->out->reset) && pipe_host_poll(p->fd, 0) & POLLHUP;
}

/* merge: what the host has may follow in the same call. *said: flags of the message. */
static int64_t pair_read(struct hcall *c, struct pair *p, struct pieces *d, int flags, bool merge, int *said)
{
	unsigned napped = 0;
	bool slept = false, alone = false, stream = p->in->kind == KX_PAIR_STREAM;
	int64_t done = 0, rec = PAIR_NOTHING;
	for (unsigned turn = 0;; turn++) {
		if (pipe_in_vain(turn))
			return done ? done : -EINTR;
		uint32_t epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&p->first->closes, __ATOMIC_SEQ_CST);
		int64_t r = pair_host_take(p, d, d->total - (uint64_t)done, flags, said);
		if (r != PAIR_NOTHING) {
			done += r > 0 ? r : 0;
			turn = r > 0 ? 0 : turn;
			if (r > 0 && stream && (uint64_t)done < d->total && flags & MSG_WAITALL && !(flags & MSG_PEEK))
				continue;
			return done ? done : r;
		}
		if (!done && reset_first(p))
			return end_of_stream(p);
		if (!done && pair_word(&p->in->reset_due) &&
		    __atomic_exchange_n(&p->in->reset_due, 0, __ATOMIC_SEQ_CST))
			return -ECONNRESET;
		if (!pipe_lock_get(&p->in->rlock))
			return done ? done : -EINTR;
		if (pair_host_first_still(p)) { /* some was moved just now */
			pipe_lock_put(&p->in->rlock);
			continue;
		}
		uint32_t n = pair_live(p) || pair_is_plain(p) ? pipe_used(p->in) : 0, got = 0;
		if (n && !stream) {
			rec = record_take(p, d, flags, said);
		} else if (n) {
			uint64_t left = d->total - (uint64_t)done;
			n = n < left || !d->total ? n : (uint32_t)left;
			got = !d->total ? 0 : pipe_pieces_copy(d, p->rin, p->in->tail, n, false);
			if (!(flags & MSG_PEEK))
				pair_tail_set(p, p->in->tail + got);
		}
		bool still = pair_live(p);
		pipe_lock_put(&p->in->rlock);
		if (n && !d->total && stream)
			return 0;
		if (rec != PAIR_NOTHING) {
			pair_room(p);
			pipe_note_check(p->fd, epoch, closes);
			if (!still)
				pair_settle(p->key, p->fd);
			return rec;
		}
		if (n && stream) {
			done += got;
			if (got) {
				turn = 0;
				pair_room(p);
			}
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
			/* Somebody may wait for it, whose poke came between two sleeps. */
			if (p->in->kind != KX_PAIR_DGRAM && pair_move_out(p) == -EINTR)
				return done ? done : -EINTR;
			if (pair_is_plain(p) && (pair_empty_now(p) != 1 || (!done && pair_word(&p->in->reset_due))))
				continue;
			return done ? host_rest(p, d, done, flags, false) : gone(p, slept);
		}
		if (alone)
			return done ? done : end_of_stream(p);
		if (sleeps_never(p, flags)) {
			/* A writer puts the token before the data: who was told of it waits for that. */
			if (__atomic_load_n(&p->in->wlock, __ATOMIC_SEQ_CST)) {
				if (!pipe_lock_get(&p->in->wlock))
					return done ? done : -EINTR;
				pipe_lock_put(&p->in->wlock);
			}
			if (pipe_used(p->in))
				continue;
			if (pipe_host_poll(p->fd, POLLIN | POLLRDHUP) & (POLLHUP | POLLRDHUP)) {
				alone = true;
				continue;
			}
			pipe_note_check(p->fd, epoch, closes);
			return done ? done : -EAGAIN;
		}
		if (napped < NAPS) {
			pipe_owed();
			pipe_nap(p->in);
			napped++;
			continue;
		}
		r = pair_empty_now(p);
		if (r < 0)
			return done ? done : r;
		if (!r || !pair_live(p))
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

/* What was written into the ring of one that is plain goes first. 0, -EAGAIN, -EINTR. */
static int owed(struct hcall *c, struct pair *p, int flags)
{
	const struct timespec slice = { 0, ROOM_SLICE_NS };
	for (unsigned turn = 0;; turn++) {
		int r = pipe_in_vain(turn) ? -EINTR : pair_move_out(p);
		if (r == 0 || r == -EINTR)
			return r;
		if (sleeps_never(p, flags))
			return -EAGAIN;
		struct pollfd pfd = { p->fd, pair_in_doubt(p->out) ? 0 : POLLOUT, 0 };
		struct timespec t = slice;
		if (HB6(SYS_ppoll, &pfd, 1, &t, 0, 0, 0) == -EINTR && !update_goes_on(c->t))
			return -EINTR;
	}
}

/* The host's own answer to who writes and has nobody to read it, with its signal. */
static int64_t broken(struct pair *p, int flags)
{
	int64_t r = HC6(SYS_sendto, p->fd, "", 1, flags & MSG_NOSIGNAL, 0, 0);
	return r < 0 ? r : -EPIPE;
}

/* With the writers' lock: data is about to follow, or there is no room for it. */
static int token_before(struct pair *p, bool room)
{
	uint32_t n = pair_word(&p->out->token);
	/* Who watches by edges is to be told once, and to find the data then: behind it. */
	if (pair_word(&p->out->edge))
		return 0;
	/* Nothing but a message tells whether the other end of datagrams is there. */
	if (p->out->kind == KX_PAIR_DGRAM && n)
		return n < 64 ? pair_token_more(p) : -EAGAIN;
	return room ? pair_token_put(p) : 0;
}

/* With the writers' lock, where room is. *got of n bytes; true: it is written. */
static bool ring_put(struct pair *p, struct pieces *d, uint32_t n, uint32_t *got)
{
	struct kx_pipe *o = p->out;
	bool stream = o->kind == KX_PAIR_STREAM;
	uint64_t head = o->head, len = n;
	if (!stream)
		memcpy(p->rout + (head % KX_PIPE_RING & ~7ull), &len, sizeof len);
	*got = pipe_pieces_copy(d, p->rout, stream ? head : head + KX_PAIR_HEAD, n, true);
	if (*got < n && (!stream || d->total <= KX_PIPE_ATOMIC)) {
		*got = 0;
		return false;
	}
	o->writer = (uint32_t)my_pid();
	__atomic_store_n(&o->head, head + (stream ? *got : kx_pair_slot(n)), __ATOMIC_SEQ_CST);
	return true;
}

static int64_t pair_write(struct hcall *c, struct pair *p, struct pieces *d, int flags)
{
	uint32_t kind = p->out->kind;
	bool slept = false, stream = kind == KX_PAIR_STREAM;
	uint64_t done = 0;
	int r;
	if (!stream && d->total > KX_PAIR_LARGEST && (r = pair_plain(p->key, p->fd)))
		return r;
	uint32_t need = !stream                      ? kx_pair_slot((uint32_t)d->total)
			: d->total <= KX_PIPE_ATOMIC ? (uint32_t)d->total
						     : 1;
	pipe_check_others(p->fd);
	for (unsigned turn = 0;; turn++) {
		if (pipe_in_vain(turn))
			return done ? (int64_t)done : -EINTR;
		uint32_t epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_SEQ_CST);
		uint32_t closes = __atomic_load_n(&p->first->closes, __ATOMIC_SEQ_CST);
		if (kind != KX_PAIR_DGRAM && pipe_host_poll(p->fd, POLLOUT) & POLLHUP) {
			if (slept && !done && end_of_stream(p) < 0) /* as the host's, to who waited for room */
				return -ECONNRESET;
			return done ? (int64_t)done : broken(p, flags);
		}
		if (kind != KX_PAIR_DGRAM)
			pipe_note_check(p->fd, epoch, closes);
		if (!d->total && stream)
			return 0;
		if (!pipe_lock_get(&p->out->wlock))
			return done ? (int64_t)done : -EINTR;
		if (!pair_live(p)) {
			pipe_lock_put(&p->out->wlock);
			if (pair_is_plain(p) && (r = owed(c, p, flags)))
				return done ? (int64_t)done : r;
			if (pair_is_plain(p) && done)
				return host_rest(p, d, (int64_t)done, flags, true);
			return done ? (int64_t)done : gone(p, slept);
		}
		uint32_t room = KX_PIPE_RING - pipe_used(p->out), got = 0, n = 0;
		bool put = false;
		int token = token_before(p, room >= need);
		if (room >= need && !token) {
			n = room < d->total - done ? room : (uint32_t)(d->total - done);
			put = ring_put(p, d, stream ? n : (uint32_t)d->total, &got);
			if (put && pair_word(&p->out->edge) && (r = pair_token_more(p)) && r != -EAGAIN &&
			    r != -ENOBUFS)
				token = r;
		}
		pipe_lock_put(&p->out->wlock);
		if (token == -EAGAIN || token == -ENOBUFS || token == -EINTR) {
			/* The host has no room even for that: it knows what to say. */
			r = pair_plain(p->key, p->fd);
			if (r)
				return done ? (int64_t)done : r;
			continue;
		}
		if (token)
			return done ? (int64_t)done : kind == KX_PAIR_DGRAM ? token : broken(p, flags);
		if (kind == KX_PAIR_DGRAM)
			pipe_note_check(p->fd, epoch, closes);
		done += got;
		turn = got ? 0 : turn;
		if (put)
			pipe_owe(p->out);
		if (put && done == d->total)
			return (int64_t)done;
		if (room >= need && (!put || got < n))
			return done ? (int64_t)done : -EFAULT;
		if (sleeps_never(p, flags)) {
			if (pair_is_watched(p->key) && (r = pair_fill(p->key, p->fd)) <= 0) {
				if (r == 0)
					continue;
				return done ? (int64_t)done : r;
			}
			return done ? (int64_t)done : -EAGAIN;
		}
		uint32_t seq = __atomic_load_n(&p->out->room, __ATOMIC_SEQ_CST);
		__atomic_store_n(&p->out->full, 1, __ATOMIC_SEQ_CST);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (KX_PIPE_RING - pipe_used(p->out) >= need || !pair_live(p))
			continue;
		pipe_nap_end(p->out);
		const struct timespec slice = { 0, ROOM_SLICE_NS }; /* the reader may be killed */
		int64_t ret = HB6(SYS_futex, &p->out->room, FUTEX_WAIT, seq, &slice, 0, 0);
		if (ret == -EINTR && !update_goes_on(c->t))
			return done ? (int64_t)done : -EINTR;
		slept = true;
		if (pipe_key_for(p->fd) != p->key)
			return done ? (int64_t)done : gone(p, slept);
	}
}

#define WRITE_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR | MSG_MORE)
#define READ_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_PEEK | MSG_WAITALL | MSG_TRUNC | MSG_CMSG_CLOEXEC)

/* What the rings have no answer for, and the host shall do. 0, or -errno; NOT_HERE: the host can. */
static int64_t by_host(struct hcall *c, struct pair *p, int flags, bool writes)
{
	int r = pair_plain(p->key, p->fd);
	if (!r && writes)
		r = owed(c, p, flags);
	return r ? r : writes || !pair_rest(p->key) ? NOT_HERE : 0;
}

int64_t pair_io(struct hcall *c, uint64_t key, int fd, struct pieces *d, bool writes)
{
	struct pair p = pair_of(key, fd);
	bool msg = c->nr == SYS_sendto || c->nr == SYS_recvfrom, stream = p.in->kind == KX_PAIR_STREAM;
	bool vector = c->nr == SYS_readv || c->nr == SYS_writev;
	int flags = msg ? (int)c->arg[3] : 0, zero = 0, said = 0;
	bool named = msg && writes && c->arg[4] && (int)c->arg[5];
	int64_t r = 0;
	if (named && p.in->kind != KX_PAIR_RECORDS) /* refused, or for somebody else */
		return NOT_HERE;
	if (flags & ~(writes ? WRITE_FLAGS : READ_FLAGS) || named)
		if ((r = by_host(c, &p, flags, writes)))
			return r;
	if (!d->total && (vector || (!writes && !msg)))
		return 0;
	r = writes ? pair_write(c, &p, d, flags) : pair_read(c, &p, d, flags, stream, &said);
	if (r >= 0 && c->nr == SYS_recvfrom && c->arg[4] && c->arg[5] && guest_write(c->arg[5], &zero, sizeof zero))
		return -EFAULT;
	return r;
}

/* ---- messages ---------------------------------------------------------------------------------------------------------- */

static uint64_t pieces_of(struct pieces *d, const struct msghdr *h)
{
	*d = (struct pieces){ .v = h->msg_iov, .end = h->msg_iov + h->msg_iovlen };
	for (size_t i = 0; i < h->msg_iovlen; i++)
		d->total += h->msg_iov[i].iov_len;
	if (d->total > 0x7ffff000)
		d->total = 0x7ffff000;
	return d->total;
}

bool pipe_is_pair(int fd)
{
	uint64_t key = pipe_mem ? pipe_key_for(fd) : 0;
	return key && kx_pipe_pair(key);
}

bool pipe_recvmsg(struct hcall *c, int fd, struct msghdr *h, int flags, int64_t *r)
{
	uint64_t key = pipe_mem ? pipe_key_for(fd) : 0;
	struct pieces d;
	int said = 0;
	if (!key || !kx_pipe_pair(key))
		return false;
	struct pair p = pair_of(key, fd);
	if (!pair_live(&p) && !pair_rest(key))
		return false;
	*r = flags & ~READ_FLAGS ? by_host(c, &p, flags, false) : 0;
	if (*r)
		return *r != NOT_HERE;
	pieces_of(&d, h);
	*r = pair_read(c, &p, &d, flags, false, &said);
	if (*r == NOT_HERE)
		return false;
	h->msg_controllen = 0;
	h->msg_namelen = 0;
	h->msg_flags = said | (flags & MSG_CMSG_CLOEXEC);
	return true;
}

bool pipe_sendmsg(struct hcall *c, int fd, const struct msghdr *h, int flags, int64_t *r)
{
	uint64_t key = pipe_mem ? pipe_key_for(fd) : 0;
	struct pieces d;
	if (!key || !kx_pipe_pair(key))
		return false;
	struct pair p = pair_of(key, fd);
	if (h->msg_namelen && p.in->kind != KX_PAIR_RECORDS) /* refused, or for somebody else */
		return false;
	pieces_of(&d, h);
	*r = flags & ~WRITE_FLAGS || h->msg_controllen ? by_host(c, &p, flags, true) : pair_write(c, &p, &d, flags);
	return *r != NOT_HERE;
}

int64_t pair_message(struct hcall *c)
{
	uint64_t key = pipe_key_for((int)c->arg[0]);
	int64_t r = hc_fn(c->row)(c);
	if (key)
		pipe_forget((int)c->arg[0], key);
	return r;
}
