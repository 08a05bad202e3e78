/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's sockets beneath a pair: tokens, filler, and the way of data from the rings into them.
 *
 * While the pair is live, all that is in a host's socket says something of the ring and is no data: a token that there is
 * some, filler that the writer's end has no room. The writers put them there, under their lock; the reader takes them out,
 * under both.
 *
 * Only who has the end that writes can put data into the other end's socket. So a pair becomes plain first, and then each
 * writer moves what is in its ring, before anything else of its goes through the host (pair_move.c). Who has to have it at once (the
 * end goes to somebody who maps no rings) pokes those who have the other end (`pair_vacate`).
 */
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/now.h"
#include "family.h"
#include "pair_priv.h"
#include "pipe.h"
#include "sig.h"
#include "thread.h"

#define POKE_MAGIC 0x6b78706169720001ull
#define UNITS_MOST \
	16384u /* more messages than a socket has room for, unless somebody sends as fast as they are taken */

static char zeros[65536];
static int poked;

struct pair pair_of(uint64_t key, int fd)
{
	unsigned i = kx_pipe_obj(key), in = kx_pipe_way(key, 0), out = kx_pipe_way(key, 1);
	struct kx_pipe *mine = pipe_obj(i + kx_pipe_end(key));
	return (struct pair){ pipe_obj(i), pipe_obj(in), pipe_obj(out), pipe_ring(in), pipe_ring(out),
			      key,         fd,           mine->dev,     mine->ino };
}

int pair_queued(int fd, unsigned long what)
{
	int n = 0;
	return HC6(SYS_ioctl, fd, what, &n, 0, 0, 0) ? 0 : n;
}

bool pair_locks_get(struct kx_pipe *o)
{
	if (!pipe_lock_get(&o->rlock))
		return false;
	if (pipe_lock_get(&o->wlock))
		return true;
	pipe_lock_put(&o->rlock);
	return false;
}

void pair_locks_put(struct kx_pipe *o)
{
	pipe_lock_put(&o->wlock);
	pipe_lock_put(&o->rlock);
}

bool pair_record(struct kx_pipe *o, const uint8_t *ring, uint32_t *len)
{
	uint32_t n = pipe_used(o);
	uint64_t tail = __atomic_load_n(&o->tail, __ATOMIC_RELAXED);
	if (!n)
		return false;
	memcpy(len, ring + (tail % KX_PIPE_RING & ~7ull), sizeof *len);
	if (n >= KX_PAIR_HEAD && *len <= KX_PAIR_LARGEST && kx_pair_slot(*len) <= n)
		return true;
	__atomic_store_n(&o->tail, __atomic_load_n(&o->head, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
	return false;
}

/* ---- tokens and filler ---------------------------------------------------------------------------------------------- */

static int64_t junk_send(const struct pair *p, size_t n)
{
	return HC6(SYS_sendto, p->fd, zeros, n, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
}

int pair_token_more(struct pair *p)
{
	int64_t r = junk_send(p, 1);
	if (r < 0)
		return (int)r;
	__atomic_add_fetch(&p->out->token, 1, __ATOMIC_SEQ_CST);
	return 0;
}

int pair_token_put(struct pair *p)
{
	if (pair_word(&p->out->token))
		return 0;
	if (!pair_queued(p->fd, SIOCOUTQ))
		return pair_token_more(p);
	__atomic_store_n(&p->out->token, 1, __ATOMIC_SEQ_CST); /* whoever put it there was killed before he said so */
	return 0;
}

/* Bytes of a stream, or one message: how much was taken. */
static uint32_t unit_take(const struct pair *p, uint32_t n)
{
	char buf[4096];
	int64_t r = HC6(SYS_recvfrom, p->fd, buf, n < sizeof buf ? n : sizeof buf, MSG_DONTWAIT, 0, 0);
	if (r == -ECONNRESET) { /* which comes before records */
		if (pair_is_plain(p))
			__atomic_store_n(&p->in->reset_due, 1, __ATOMIC_SEQ_CST);
		r = HC6(SYS_recvfrom, p->fd, buf, n < sizeof buf ? n : sizeof buf, MSG_DONTWAIT, 0, 0);
	}
	return r <= 0 ? 0 : p->in->kind == KX_PAIR_STREAM ? (uint32_t)r : 1;
}

/* Killed within, there is more in the socket than is said: the next one that finds the ring empty takes it. */
static void junk_take(struct pair *p)
{
	struct kx_pipe *o = p->in;
	uint32_t keep = pipe_used(o) ? 1 : 0, got;
	uint32_t n = o->kind == KX_PAIR_STREAM ? (uint32_t)pair_queued(p->fd, FIONREAD)
		     : keep                    ? pair_word(&o->token)
					       : UNITS_MOST;
	if (n < keep)
		return;
	__atomic_store_n(&o->filled, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&o->token, keep, __ATOMIC_SEQ_CST);
	n -= keep;
	for (uint32_t i = 0; i < UNITS_MOST && n && (got = unit_take(p, n)); i++)
		n -= got < n ? got : n;
}

/* As many as it says, but no more than there are: another number is nonsense. */
void pair_skip_take(struct pair *p)
{
	struct kx_pipe *o = p->in;
	uint32_t i = 0;
	for (uint32_t n = pair_word(&o->skip), got; n && i < UNITS_MOST; n -= got < n ? got : n, i++) {
		uint32_t unit = o->kind != KX_PAIR_STREAM ? 1 : n < 4096 ? n : 4096;
		__atomic_store_n(&o->skip, n - unit, __ATOMIC_SEQ_CST);
		if (!(got = unit_take(p, unit)))
			break;
	}
	__atomic_store_n(&o->skip, 0, __ATOMIC_SEQ_CST);
}

void pair_token_take(struct pair *p)
{
	if (pair_live(p))
		junk_take(p);
	else if (pair_is_plain(p))
		pair_skip_take(p);
}

int pair_empty_now(struct pair *p)
{
	if (!pair_locks_get(p->in))
		return -EINTR;
	bool none = !pipe_used(p->in) && (pair_live(p) || pair_is_plain(p));
	if (none)
		pair_token_take(p);
	pair_locks_put(p->in);
	return none;
}

void pair_settle(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	if (!pipe_used(p.in) && (pair_word(&p.in->token) || pair_word(&p.in->skip)))
		pair_empty_now(&p);
}

/* With the writers' lock. The token comes last: it is what is left when the rest is taken. */
static void fill(struct pair *p)
{
	bool stream = p->out->kind == KX_PAIR_STREAM;
	uint32_t n = 0;
	for (int i = 0; i < 16 && pipe_host_poll(p->fd, POLLOUT) & POLLOUT; i++) {
		int64_t r = junk_send(p, 54000);
		if (r <= 0)
			break;
		n += stream ? (uint32_t)r : 1;
	}
	if (n && junk_send(p, 1) == 1)
		n++;
	__atomic_add_fetch(&p->out->token, n, __ATOMIC_SEQ_CST);
}

int pair_fill(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	int full;
	if (!pipe_lock_get(&p.out->wlock))
		return -EINTR;
	/* The reader looks at it behind its cursor, and takes the locks then. */
	uint32_t was = __atomic_exchange_n(&p.out->filled, 1, __ATOMIC_SEQ_CST);
	full = pair_live(&p) && !pair_has_room(p.out);
	if (full && !was)
		fill(&p);
	else if (!was)
		__atomic_store_n(&p.out->filled, 0, __ATOMIC_SEQ_CST);
	pipe_lock_put(&p.out->wlock);
	return full;
}

void pair_room(struct pair *p)
{
	pipe_wake_room(p->in);
	if (!pair_word(&p->in->filled) || !pair_has_room(p->in) || !pair_locks_get(p->in))
		return;
	if (pair_live(p))
		junk_take(p);
	pair_locks_put(p->in);
}

/* ---- to the host ---------------------------------------------------------------------------------------------------- */

bool pair_rest(uint64_t key)
{
	struct pair p = pair_of(key, -1);
	return pair_is_plain(&p) && (pipe_used(p.in) || pair_word(&p.in->skip) || pair_word(&p.in->reset_due));
}

bool pair_owes(uint64_t key)
{
	struct pair p = pair_of(key, -1);
	return pair_is_plain(&p) && pipe_used(p.out);
}

static uint32_t junk_of(uint32_t token, bool any) { return token ? token : any; }

static void becomes_plain(struct pair *p)
{
	struct kx_pipe *in = p->in, *out = p->out;
	junk_take(p);
	uint32_t n = (uint32_t)pair_queued(p->fd, FIONREAD);
	in->skip = in->kind == KX_PAIR_STREAM ? n : junk_of(in->token, n > 0);
	out->skip = pair_queued(p->fd, SIOCOUTQ) ? junk_of(out->token, true) : 0;
	in->taken = in->tail;
	out->taken = out->tail;
	__atomic_store_n(&p->first->state, (p->key & ~0xffffffffull) | KX_PIPE_PLAIN, __ATOMIC_SEQ_CST);
}

int pair_plain(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	struct kx_pipe *second = p.first == p.in ? p.out : p.in;
	if (pair_live(&p)) {
		if (!pair_locks_get(p.first))
			return -EINTR;
		if (!pair_locks_get(second)) {
			pair_locks_put(p.first);
			return -EINTR;
		}
		if (pair_live(&p))
			becomes_plain(&p);
		pair_locks_put(second);
		pair_locks_put(p.first);
		for (int i = 0; i < 2; i++) {
			struct kx_pipe *o = i ? p.in : p.out;
			__atomic_store_n(&o->full, 1, __ATOMIC_SEQ_CST);
			pipe_wake_room(o);
		}
	}
	int r = pair_move_out(&p), other;
	if (r != -EINTR && pipe_used(p.in) && (other = pipe_other_end(key)) >= 0) {
		struct pair q = pair_of(key ^ 1 << 16, other);
		r = pair_move_out(&q);
	}
	pair_settle(key, fd);
	return r == -EINTR ? r : 0;
}

/* ---- what others are to move ----------------------------------------------------------------------------------------- */

/* The numbers are what memory says that programs write: of nobody outside, whom the signal would end. */
static void poke(const struct kx_pipe *first)
{
	siginfo_t info;
	memset(&info, 0, sizeof info);
	info.si_signo = KICK_SIG;
	info.si_code = SI_QUEUE;
	info.si_pid = my_pid();
	info.si_value.sival_ptr = (void *)POKE_MAGIC;
	for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++) {
		uint32_t pid = pair_word(&first->holder[i]);
		if (pid && !(pid & (KX_PIPE_GUARD | KX_PIPE_STALE)) && pid != (uint32_t)my_pid() &&
		    family_seen((pid_t)pid) == 1)
			host_call(SYS_rt_sigqueueinfo, (pid_t)pid, KICK_SIG, (long)&info, 0, 0, 0);
	}
}

bool pipe_is_poke(const siginfo_t *info)
{
	if (info->si_code != SI_QUEUE || (uint64_t)info->si_value.sival_ptr != POKE_MAGIC)
		return false;
	if (my_pid() == pvm.pid)
		__atomic_store_n(&poked, 1, __ATOMIC_SEQ_CST);
	return true;
}

static void owed_move(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	pair_move_out(&p);
}

static bool poke_serve(bool wait)
{
	if (!__atomic_load_n(&poked, __ATOMIC_RELAXED) || my_pid() != pvm.pid)
		return false;
	__atomic_store_n(&poked, 0, __ATOMIC_SEQ_CST);
	if (!pipe_each_pair(owed_move, wait))
		__atomic_store_n(&poked, 1, __ATOMIC_SEQ_CST);
	return true;
}

bool pipe_poked(void) { return poke_serve(true); }

int pair_vacate(uint64_t key, int fd, unsigned ms)
{
	uint64_t end = now_ns() + ms * 1000000ull, most = pipe_wait_until();
	struct timespec nap = { 0, 100000 };
	struct pair p = pair_of(key, fd);
	end = end < most ? end : most;
	for (unsigned i = 0;; i++) {
		pair_settle(key, fd);
		if (!pair_rest(key))
			return 0;
		if (i % 8 == 0) /* one that comes just before a sleep is seen behind it */
			poke(p.first);
		if (now_ns() >= end ||
		    (p.in->kind != KX_PAIR_DGRAM && pipe_host_poll(fd, POLLRDHUP) & (POLLHUP | POLLRDHUP)))
			break;
		if (self && self->sig_stop)
			return -EINTR;
		poke_serve(false); /* they may wait for this one in the same way */
		HC6(SYS_nanosleep, &nap, 0, 0, 0, 0, 0);
		nap.tv_nsec = nap.tv_nsec < 5000000 ? nap.tv_nsec * 2 : nap.tv_nsec;
	}
	return pair_rest(key) ? -EAGAIN : 0;
}

/* The last one that has this end, as far as can be seen, lets it go: who has the other may pass it on, and nobody could
 * move the data then. */
void pair_leaving(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	unsigned holders = 0;
	pair_settle(key, fd);
	/* A child that closes what it has no use for wrote nothing. */
	if (!pipe_used(p.out) || pair_word(&p.out->writer) != (uint32_t)my_pid())
		return;
	for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++)
		holders += pair_word(&p.first->holder[i]) != 0;
	if (holders <= 2)
		pair_plain(key, fd);
}
