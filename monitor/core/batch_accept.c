/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections accepted ahead. A program that accepts until there is none, as it has three times in a row, or that has accepted
 * four in a row by now, gets what else waits by the exit of an accept (kx_accept.h): at once at the numbers that its next calls
 * would give them. All but one, so the listener is ready to read as long as connections of it are here, for every wait and
 * every thread; or all, where that is seen to otherwise (batch_bell.c). Any call that leaves the guest takes back what the program
 * has not got yet, before it is looked at, and keeps it at numbers that the program can't name; the next accepts get those first,
 * in their order.
 *
 * Only of a TCP listener that this process has made, has under one number, and had at no fork: nobody else can accept from
 * it; or from which nobody else does: then what is taken back is all holders' (batch_pool.c). What is kept here is reset where
 * the listener is closed, as the kernel would; over an exec it goes with the listener.
 *
 * A program that accepts after a wait has told of the listener, as it did the last four times, gets them by the exit of that
 * wait or, if it had to make one, of its accept; with what they have sent; and the waits that follow are answered by the LibOS,
 * too. So one that accepts one connection for each wait serves several by one exit.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "../../abi/kx_accept.h"
#include "../../util/together.h"
#include "batch_listen.h"
#include "gmem.h"
#include "thread.h"

#define ROUNDS 3
#define RUN 4
#define SKIP_MAX 8 /* 1 << that many chances are left out after as many misses in a row */

static uint8_t own[KX_BATCH_FDS / 8];    /* sockets that only this process has, under this number */
static uint8_t polled[KX_BATCH_FDS / 8]; /* those of them that somebody may look at, and sleep, by poll or select */
static KX_TOGETHER unsigned nr_own, forking;
static KX_TOGETHER uint64_t shares; /* how often all of them may have got other holders */
static uint64_t shares_at[KX_AREA_MAX];

static struct round {
	int listener;  /* -1 = none */
	uint32_t good; /* rounds in a row that ended with none left */
	uint32_t run;  /* accepts in a row, by exits, without a wait */
	bool open;     /* the last call was an accept of it */
	bool drained;  /* ... which has told the LibOS that there is none left */
} rounds[KX_BATCH_CTXS];

/* Accepted, and not the program's yet. */
static struct kept {
	int fd;
	struct kx_accepted of;
} kept[KX_ACCEPT_MAX];
static int nr_kept, kept_from = -1;
static int nr_shown; /* the first of them have numbers of the program's */
static int nr_got;   /* of those, the program has got, as it is known to be for ever; -1 = it may get more */
static bool named[KX_ACCEPT_MAX]; /* by a record */
static unsigned kept_flags;       /* of accept4(2) */
static uint32_t serial;
static bool told_all;     /* the LibOS knows that there were no more */
static int offering = -1; /* the context that was told of them last, and may accept them by itself; -1 = none */
static unsigned misses, skip;
static int nr_put = -1;     /* of a pool's, those that are in its queue; -1: they are no pool's */
static int nr_took;         /* of them, the program has got, and the queue has no more */
static uint32_t nr_numbers; /* that the guest has been told */
/* Numbers that connections had which are closed, or have got another: while some are given without an exit no other call gets
 * those, which has begun before. The listener is there for as long. */
static uint8_t parked[KX_BATCH_FDS / 8];
static int parked_from, parked_to; /* from there to before there */

static struct kx_accept *guest(int ctx) { return gva_ptr(batch_ctx_gva(&batch.ctxs[ctx]) + KX_ACCEPT_AT); }

static bool is_accept(uint64_t nr) { return nr == SYS_accept || nr == SYS_accept4; }
static bool is_own(int fd) { return fd >= 0 && fd < KX_BATCH_FDS && own[fd / 8] >> fd % 8 & 1; }
static bool is_polled(int fd) { return polled[fd / 8] >> fd % 8 & 1; }

static struct kx_numbers *numbers(void) { return gva_ptr(KX_BATCH_BASE + KX_NUMBERS_AT); }

void accept_numbers_reset(int ctx)
{
	if (offering >= 0) /* they are that one's */
		return;
	nr_numbers = 0;
	numbers()->n = 0;
	numbers()->owner = (uint32_t)ctx + 1;
	__atomic_store_n(&numbers()->freed, INT32_MAX, __ATOMIC_SEQ_CST);
}

void batch_number(int fd)
{
	if (nr_numbers == KX_NUMBERS_MAX)
		return;
	numbers()->free[nr_numbers++] = fd;
	numbers()->n = nr_numbers;
}

static void disown(int fd)
{
	if (!is_own(fd))
		return;
	listen_forget(fd);
	own[fd / 8] &= (uint8_t) ~(1 << fd % 8);
	nr_own--;
}

void accept_polled(int fd)
{
	if (is_own(fd) && !is_polled(fd))
		__atomic_fetch_or(&polled[fd / 8], (uint8_t)(1 << fd % 8), __ATOMIC_SEQ_CST);
	pool_spoil(fd);
}

bool accept_has(void) { return __atomic_load_n(&nr_kept, __ATOMIC_RELAXED); }

bool accept_waits(void) { return accept_has() || pool_any(); }

bool accept_concerns(const struct hcall *c)
{
	if (c->nr == SYS_socket || accept_has() || (pool_any() && (c->nr == SYS_shutdown || c->nr == SYS_connect)))
		return true;
	return (__atomic_load_n(&nr_own, __ATOMIC_RELAXED) || pool_any()) &&
	       (c->nr == SYS_close || c->nr == SYS_close_range || c->nr == SYS_dup || c->nr == SYS_dup2 ||
		c->nr == SYS_dup3 || c->nr == SYS_fcntl || c->nr == SYS_epoll_ctl);
}

void accept_reset(int ctx)
{
	rounds[ctx] = (struct round){ .listener = -1 };
	__atomic_store_n(&guest(ctx)->word, 0, __ATOMIC_SEQ_CST);
	guest(ctx)->has_map = 0;
}

/* ---- what the program has got ------------------------------------------------------------------------------------------ */

static int given(void)
{
	if (nr_got >= 0)
		return nr_got;
	const uint64_t w = __atomic_load_n(&guest(offering)->word, __ATOMIC_SEQ_CST);
	return !(w & KX_ACCEPT_VALID) ? 0 : (uint32_t)w < (uint32_t)nr_shown ? (int)(uint32_t)w : nr_shown;
}

bool accept_holds(int fd)
{
	for (int i = offering >= 0 ? given() : nr_shown; i < nr_shown; i++)
		if (kept[i].fd == fd)
			return true;
	return false;
}

static bool is_parked(int fd) { return fd >= 0 && fd < KX_BATCH_FDS && parked[fd / 8] >> fd % 8 & 1; }

/* In place of what is there. */
static bool park(int fd)
{
	if (HC6(SYS_dup3, kept_from, fd, O_CLOEXEC, 0, 0, 0) < 0)
		return false;
	parked[fd / 8] |= (uint8_t)(1 << fd % 8);
	parked_from = parked_from == parked_to || fd < parked_from ? fd : parked_from;
	parked_to = fd >= parked_to ? fd + 1 : parked_to;
	return true;
}

static void unpark_all(void)
{
	for (int fd = parked_from; fd < parked_to; fd++)
		if (is_parked(fd)) {
			HC6(SYS_close, fd, 0, 0, 0, 0, 0);
			parked[fd / 8] &= (uint8_t) ~(1 << fd % 8);
		}
	parked_from = parked_to = 0;
}

bool accept_closes(int fd) { return offering >= 0 && park(fd); }

int accept_name(int fd, const uint8_t *data)
{
	struct kx_bfd name;
	memcpy(&name, data, sizeof name);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (offering < 0 || name.serial != serial) /* it has not got that one */
		return 0;
	if (name.index >= (uint32_t)nr_shown || fd < 0)
		return -EINVAL;
	if (name.index >= (uint32_t)given())
		return nr_got < 0 ? -EAGAIN : 0;
	struct kept *k = &kept[name.index];
	if (named[name.index] || !is_parked(fd) || is_parked(k->fd) || !batch_sock(k->fd))
		return -EINVAL;
	HC6(SYS_dup3, k->fd, fd, kept_flags & SOCK_CLOEXEC ? O_CLOEXEC : 0, 0, 0, 0);
	parked[fd / 8] &= (uint8_t) ~(1 << fd % 8);
	batch_renamed(k->fd, fd);
	if (!park(k->fd))
		HC6(SYS_close, k->fd, 0, 0, 0, 0, 0);
	named[name.index] = true;
	k->fd = fd;
	return 0;
}

/* How many it is worth to have ahead: some more than the program has got, by context `of`, without another call. */
static void learn(int of, int got)
{
	struct listening *l = listen_of(kept_from);
	const bool all = got == nr_shown;
	misses = all ? 0 : misses < SKIP_MAX ? misses + 1 : misses;
	skip = misses ? 1u << misses : 0;
	if (!l)
		return;
	if (all)
		l->want = l->want < KX_ACCEPT_MAX / 2 ? 2 * l->want : KX_ACCEPT_MAX;
	else
		l->want = got ? (unsigned)got + 1 : 1;
	l->loops = all && told_all && batch.ctxs[of].g->drained < 0;
	l->accepts = got ? l->accepts + (unsigned)got : 0;
	l->misses = got ? 0 : l->misses < SKIP_MAX ? l->misses + 1 : l->misses;
	l->skip = got ? 0 : 1u << l->misses;
}

/* The kernel itself tells of a listener where some wait. */
static void tell_waits(void)
{
	unsigned n = 0;
	bell_ring(nr_kept && !(listen_is_waiting(kept_from, &n) && n));
}

/* What the program has not got of it: no more by itself. */
static void take_back(void)
{
	if (offering < 0)
		return;
	const uint64_t w = __atomic_exchange_n(&guest(offering)->word, 0, __ATOMIC_SEQ_CST);
	const int got = !(w & KX_ACCEPT_VALID) ? 0 : (uint32_t)w < (uint32_t)nr_shown ? (int)(uint32_t)w : nr_shown;
	nr_got = got;
	batch_flush(); /* their numbers, as queued by now */
	unpark_all();
	learn(offering, got);
	offering = -1;
	int n = 0;
	for (int i = got; i < nr_kept; i++) {
		struct sock *s = batch_sock(kept[i].fd);
		if (s)
			batch_drop(kept[i].fd, s);
		if (nr_put >= 0) {
			if (i >= nr_put) /* there was no room for it */
				pool_put(kept_from, &kept[i].of);
			HC6(SYS_close, kept[i].fd, 0, 0, 0, 0, 0);
			continue;
		}
		int fd = fd_hide(kept[i].fd);
		if (fd >= 0) /* else it is closed: there was no number for it */
			kept[n++] = (struct kept){ fd, kept[i].of };
	}
	if (nr_put >= 0)
		pool_end(kept_from, nr_kept > got);
	nr_put = -1;
	nr_kept = n;
	tell_waits();
}

void accept_commit(void)
{
	const int got = offering >= 0 && nr_put >= 0 ? given() : 0;
	const int gone = got < nr_put ? got : nr_put;
	if (gone <= nr_took)
		return;
	pool_took(kept_from, (unsigned)(gone - nr_took));
	nr_took = gone;
}

void accept_tick(void)
{
	if (offering < 0 || nr_put < 0 || pool_alone(kept_from))
		return;
	__atomic_add_fetch(&batch_shared()->calls, 1,
			   __ATOMIC_SEQ_CST); /* what was told of the listener holds no more */
	take_back();
}

int accept_ready_fd(int fd)
{
	if (fd == kept_from)
		take_back(); /* or who sleeps then would not be told what another leaves */
	int in_place = bell_fd(fd);
	if (in_place < 0)
		in_place = pool_fd(fd);
	return in_place < 0 ? fd : in_place;
}

static void reset_all(void)
{
	struct linger hard = { 1, 0 };
	for (int i = 0; i < nr_kept; i++) {
		HC6(SYS_setsockopt, kept[i].fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard, 0);
		HC6(SYS_close, kept[i].fd, 0, 0, 0, 0, 0);
	}
	nr_kept = 0;
	kept_from = -1;
	bell_ring(false);
}

static void closed(unsigned first, unsigned last)
{
	if (nr_kept && (unsigned)kept_from >= first && (unsigned)kept_from <= last)
		reset_all();
	listen_closed(first, last);
	pool_closed(first, last);
	for (unsigned fd = first; nr_own && fd <= last && fd < KX_BATCH_FDS; fd++)
		disown((int)fd);
}

static void copied(int fd)
{
	disown(fd);
	pool_spoil(fd);
}

void accept_shared(int fd) { copied(fd); }

/* What is kept for a listener that has a pool now is that one's. */
static void into_pool(void)
{
	if (!nr_kept || !pool_has(kept_from))
		return;
	for (int i = 0; i < nr_kept; i++) {
		kept[i].of.fd = kept[i].fd;
		pool_put(kept_from, &kept[i].of);
		HC6(SYS_close, kept[i].fd, 0, 0, 0, 0, 0);
	}
	pool_end(kept_from, true);
	nr_kept = 0;
	kept_from = -1;
	bell_ring(false);
}

/* From here on until the end of it all descriptors may get another holder at any moment. */
void accept_fork_begin(void)
{
	take_back();
	forking++;
	shares++;
	for (int fd = 0; nr_own && fd < KX_BATCH_FDS; fd += own[fd / 8] ? 1 : 8)
		if (is_own(fd))
			pool_make(fd, is_polled(fd));
	into_pool();
	if (nr_own) /* a page less that is written to */
		memset(own, 0, sizeof own);
	nr_own = 0;
	listen_forget_all(false);
}

void accept_fork_end(void)
{
	forking--;
	shares++;
}

void accept_fork_child(void)
{
	for (int i = 0; i < nr_kept; i++)
		HC6(SYS_close, kept[i].fd, 0, 0, 0, 0, 0);
	nr_kept = 0;
	kept_from = -1;
	bell_fork_child();
	pool_fork_child();
	listen_forget_all(true);
	forking = 0; /* what was own was given up as the fork began */
}

void accept_hand(struct batch_handed *h)
{
	long flags = nr_kept ? HC6(SYS_fcntl, kept_from, F_GETFD, 0, 0, 0, 0) : -1;
	pool_hand(h);
	if (flags < 0 || flags & FD_CLOEXEC)
		return;
	h->listener = kept_from;
	h->nr = nr_kept;
	for (int i = 0; i < nr_kept; i++) {
		h->kept[i].fd = kept[i].fd;
		h->kept[i].of = kept[i].of;
	}
	bell_hand(h);
	nr_kept = 0;
	kept_from = -1;
}

void accept_adopt(const struct batch_handed *h)
{
	pool_adopt(h);
	if (!h->nr)
		return;
	kept_from = h->listener;
	nr_kept = h->nr;
	for (int i = 0; i < nr_kept; i++)
		kept[i] = (struct kept){ h->kept[i].fd, h->kept[i].of };
	bell_adopt(h);
}

void accept_end(void)
{
	take_back();
	reset_all();
}

int accept_fds(int (*move)(int *fd))
{
	int r = 0;
	for (int i = 0; i < nr_kept && !r; i++)
		if (!fd_is_guest(kept[i].fd))
			r = move(&kept[i].fd);
	if (!r)
		r = bell_fds(move);
	return r ? r : pool_fds(move);
}

void accept_enter(const struct hcall *c, int ctx)
{
	take_back();
	if (ctx >= 0)
		guest(ctx)->has_map = 0;
	struct round *r = ctx >= 0 ? &rounds[ctx] : NULL;
	if (r && r->open && !(is_accept(c->nr) && (int)c->arg[0] == r->listener)) {
		r->open = false;
		r->run = 0;
		r->good = r->drained && batch.ctxs[ctx].g->drained < 0 ? r->good + 1 : 0;
	}
	if (c->nr == SYS_socket)
		shares_at[c->t->index % KX_AREA_MAX] = shares;
	/* As a close, to those who wait. */
	if ((c->nr == SYS_shutdown && (int)c->arg[1] != SHUT_WR) || c->nr == SYS_connect) {
		if (nr_kept && (int)c->arg[0] == kept_from)
			reset_all();
		pool_reset((int)c->arg[0]);
	}
	if (!nr_own && !nr_kept && !pool_any())
		return;
	switch (c->nr) {
	case SYS_close:
		closed((unsigned)c->arg[0], (unsigned)c->arg[0]);
		break;
	case SYS_close_range:
		if (hcall_closes_range(c))
			closed((unsigned)c->arg[0], (unsigned)c->arg[1]);
		break;
	case SYS_dup2:
	case SYS_dup3:
		if ((int)c->arg[0] != (int)c->arg[1])
			closed((unsigned)c->arg[1], (unsigned)c->arg[1]);
		copied((int)c->arg[0]);
		break;
	case SYS_dup:
		copied((int)c->arg[0]);
		break;
	case SYS_fcntl:
		if ((int)c->arg[1] == F_DUPFD || (int)c->arg[1] == F_DUPFD_CLOEXEC)
			copied((int)c->arg[0]);
	}
}

/* ---- what is kept ----------------------------------------------------------------------------------------------------- */

/* As the kernel copies it; where that fails the connection is gone. */
static int tell_address(const struct hcall *c, const struct kx_accepted *of)
{
	int room, len = (int)of->len;
	if (!c->arg[1])
		return 0;
	if (guest_read(&room, c->arg[2], sizeof room))
		return -EFAULT;
	if (room < 0)
		return -EINVAL;
	return guest_write(c->arg[1], of->addr, (size_t)(room < len ? room : len)) ||
			       guest_write(c->arg[2], &len, sizeof len)
		       ? -EFAULT
		       : 0;
}

static bool give_of_pool(const struct hcall *c, unsigned flags, int64_t *r)
{
	struct kx_accepted of;
	const int fd = pool_give((int)c->arg[0], flags & SOCK_CLOEXEC, &of);
	if (fd == -EAGAIN)
		return false;
	*r = fd;
	if (fd < 0)
		return true;
	HC6(SYS_fcntl, fd, F_SETFL, flags & SOCK_NONBLOCK ? O_NONBLOCK : 0, 0, 0, 0);
	const int e = tell_address(c, &of);
	if (e) {
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
		*r = e;
	}
	return true;
}

bool accept_give(struct hcall *c, int64_t *r)
{
	unsigned flags = c->nr == SYS_accept4 ? (unsigned)c->arg[3] : 0;
	if (!is_accept(c->nr) || flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK))
		return false;
	take_back(); /* what another thread has been offered since */
	if (pool_has((int)c->arg[0]))
		return give_of_pool(c, flags, r);
	if (!nr_kept || (int)c->arg[0] != kept_from)
		return false;
	long fd = HC6(SYS_fcntl, kept[0].fd, flags & SOCK_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, 0, 0, 0, 0);
	if (fd < 0) {
		*r = fd;
		return true;
	}
	HC6(SYS_fcntl, fd, F_SETFL, flags & SOCK_NONBLOCK ? O_NONBLOCK : 0, 0, 0, 0);
	*r = tell_address(c, &kept[0].of);
	if (*r)
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	else
		*r = fd;
	HC6(SYS_close, kept[0].fd, 0, 0, 0, 0, 0);
	memmove(kept, kept + 1, (unsigned)--nr_kept * sizeof kept[0]);
	if (!nr_kept)
		bell_ring(false);
	return true;
}

/* ---- ahead ------------------------------------------------------------------------------------------------------------ */

/*
 * Descriptor fd, which was accepted, is that thread's alone, which knows whether its program has got it. fetch: with what it
 * has sent, since its own wait may be answered without an exit.
 */
static void prepare(struct ctx *x, int fd, struct kx_accepted *of, bool fetch)
{
	batch_accepted(x, fd);
	struct sock *s = batch_sock(fd);
	if (!s)
		return;
	of->events = 0;
	if (fetch) {
		of->events = batch_poll_all(fd);
		batch_ready_fresh(x, fd, s, of->events);
	}
	__atomic_store_n(&batch_guest_sock(fd)->owner, (uint32_t)(x - batch.ctxs) + 1, __ATOMIC_SEQ_CST);
}

/* What was taken back, at the lowest free number again. */
static bool bring_down(struct kept *k, unsigned flags)
{
	long fd = HC6(SYS_fcntl, k->fd, flags & SOCK_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, 0, 0, 0, 0);
	if (fd < 0)
		return false;
	HC6(SYS_fcntl, fd, F_SETFL, flags & SOCK_NONBLOCK ? O_NONBLOCK : 0, 0, 0, 0);
	HC6(SYS_close, k->fd, 0, 0, 0, 0, 0);
	k->fd = k->of.fd = (int)fd;
	return true;
}

static bool accept_one(int listener, struct kept *k, unsigned flags)
{
	socklen_t len = sizeof k->of.addr;
	long fd = HC6(SYS_accept4, listener, k->of.addr, &len, flags, 0, 0);
	if (fd < 0)
		return false;
	k->fd = k->of.fd = (int)fd;
	k->of.len = len < sizeof k->of.addr ? len : sizeof k->of.addr;
	return true;
}

/* What the last exit has told the program of is so until the program changes it, but for edges. False: it is not known. */
static bool repeat(struct kx_accept *g, const struct listening *l, const struct epoll_event *ev, int n)
{
	uint32_t nr = 0;
	if (n < 0 || n > KX_ACCEPT_MAX)
		return false;
	for (int i = 0; i < n; i++) {
		const uint64_t data = ev[i].data.u64;
		int fd;
		if (data == l->data)
			continue;
		const struct sock *s = batch_sock_of(l->epoll, data, &fd);
		if (s ? !(s->events & EPOLLET) : ahead_is_level(l->epoll, data))
			g->event[nr++] = (struct kx_bevent){ data, ev[i].events, s ? fd : -1 };
	}
	g->nr_events = nr;
	return true;
}

/* A wait, or a look ahead, has told of ev[0..n); n < 0: nothing was told. all: that is all that there was. */
struct told {
	const struct epoll_event *ev;
	int n;
	bool all;
};

/* The LibOS may give the first nr of what is kept to the program. more: that is not all. */
static void show(int ctx, const struct listening *l, unsigned flags, uint32_t nr, bool more, const struct told *told)
{
	struct kx_accept *g = guest(ctx);
	const bool waits = l && listen_is_level(l) && ahead_allows(l->epoll) && repeat(g, l, told->ev, told->n);
	g->listener = kept_from;
	g->flags = flags;
	g->nr = nr;
	g->serial = serial;
	g->has_map = 1;
	g->more = more;
	g->epoll = waits ? l->epoll : -1;
	g->events = waits ? l->events & (EPOLLIN | EPOLLRDNORM) : 0;
	g->data = waits ? l->data : 0;
	g->calls = batch_shared()->calls;
	g->waits = waits ? 2 * nr + 4 : 0;
	g->zeros = waits && told->all && !gmem_is_seen() ? KX_AHEAD_ZEROS : 0;
	__atomic_store_n(&g->word, KX_ACCEPT_VALID, __ATOMIC_SEQ_CST);
}

/* May it look to the kernel as if nothing waited at l? */
static bool may_be_empty(const struct listening *l)
{
	return l && listen_is_level(l) && !is_polled(l->fd) && !(l->events & EPOLLEXCLUSIVE) &&
	       bell_register(l->fd, l->epoll, l->data);
}

/*
 * At most n of a listener's, those first that were taken back; all that wait there, or all but one. Who is not told of any more
 * then is told so once if he asks.
 */
static void take(int ctx, int listener, unsigned flags, unsigned n, const struct told *told)
{
	struct ctx *x = &batch.ctxs[ctx];
	struct kx_accept *g = guest(ctx);
	const struct listening *l = listen_of(listener);
	const int accepted = x->g->accepted, had = nr_kept;
	const bool pool = pool_has(listener);
	const unsigned least = pool || may_be_empty(l) ? 0 : 1;
	unsigned waiting;
	uint32_t nr = 0;
	if (!listen_is_waiting(listener, &waiting) || (had && waiting < least))
		return;
	bell_ring(false);
	kept_from = listener;
	kept_flags = flags;
	offering = ctx;
	nr_got = -1;
	nr_put = pool ? 0 : -1;
	nr_took = 0;
	serial++;
	memset(named, 0, sizeof named);
	while (nr < n && nr < KX_ACCEPT_MAX) {
		struct kept *k = &kept[nr];
		const bool old = (int)nr < had;
		if (!old && waiting <= least)
			break;
		if (!(old ? bring_down(k, flags) : accept_one(listener, k, flags)))
			break;
		waiting -= !old;
		nr_kept += !old;
		const bool put = !pool || pool_put(listener, &k->of);
		nr_put += pool && put;
		batch_number(k->fd);
		prepare(x, k->fd, &k->of, l != NULL);
		g->of[nr] = k->of;
		g->as[nr] = -1;
		if (!batch_sock(k->fd)) /* not one that can be batched: by a call of its own */
			break;
		nr++;
		if (!put)
			break;
	}
	nr_shown = (int)nr;
	x->g->accepted = accepted;
	if (!nr_kept) {
		offering = nr_put = -1;
		return;
	}
	const bool more = waiting || nr < (unsigned)nr_kept;
	show(ctx, l, flags, nr, more, told);
	told_all = !more;
	if (!more) {
		x->g->drained_at = batch_shared()->calls;
		__atomic_store_n(&x->g->drained, listener, __ATOMIC_SEQ_CST);
	}
}

/* Will the program accept from l when a wait tells of it? */
static bool is_expected(const struct listening *l) { return l && l->accepts >= RUN && listen_is_level(l); }

static bool left_out(unsigned *n) { return *n && (*n)--; }

static bool may_take(const struct hcall *c, int fd)
{
	return offering < 0 && (!nr_kept || kept_from == fd) && (is_own(fd) || pool_has(fd)) && !forking &&
	       !batch_is_shared() && c->t->vcpu_fd >= 0;
}

/* Nobody else wants them. */
static bool is_alone(int fd) { return is_own(fd) || pool_begin(fd); }

/* A wait of r events has ended. */
static void after_wait(const struct hcall *c, int ctx, int64_t r)
{
	struct epoll_event ev[KX_ACCEPT_MAX];
	const int n = r <= KX_ACCEPT_MAX ? (int)r : 0;
	struct listening *l = r > 0 ? listen_told(c, (int)r) : NULL;
	if (!is_expected(l) || !may_take(c, l->fd) || left_out(&l->skip) || !is_alone(l->fd))
		return;
	const bool known = n && !guest_read(ev, c->arg[1], (size_t)n * sizeof ev[0]);
	take(ctx, l->fd, l->flags, l->want, &(struct told){ ev, known ? n : -1, r < (int)c->arg[2] });
}

void accept_note(const struct hcall *c, int64_t r)
{
	if (c->nr == SYS_epoll_ctl && !r) {
		bell_follow(c);
		pool_registered(c);
		if (is_own((int)c->arg[2]) || pool_has((int)c->arg[2]))
			listen_registered(c);
	}
	if (c->nr != SYS_socket || r < 0 || r >= KX_BATCH_FDS || forking ||
	    shares_at[c->t->index % KX_AREA_MAX] != shares || ((int)c->arg[1] & 0xf) != SOCK_STREAM)
		return;
	if (!is_own((int)r))
		nr_own++;
	own[r / 8] |= (uint8_t)(1 << r % 8);
	__atomic_fetch_and(&polled[r / 8], (uint8_t) ~(1 << r % 8), __ATOMIC_SEQ_CST);
}

void accept_leave(const struct hcall *c, int ctx, int64_t r)
{
	struct round *d = &rounds[ctx];
	const struct ahead *a = &batch.ctxs[ctx].ahead;
	int fd = (int)c->arg[0];
	struct listening *l = listen_of(fd);
	const unsigned flags = c->nr == SYS_accept4 ? (unsigned)c->arg[3] : 0;
	if (ahead_is_wait(c->nr))
		after_wait(c, ctx, r);
	if (!is_accept(c->nr))
		return;
	if (l && r >= 0) {
		l->accepts++;
		l->flags = flags;
	}
	if (fd != d->listener)
		*d = (struct round){ .listener = fd };
	if (r == -EAGAIN) {
		d->good += d->open;
		d->open = false;
		d->run = 0;
		return;
	}
	d->run = r >= 0 ? (a->nr > 1 ? d->run : 0) + 1 : 0;
	d->open = r >= 0;
	d->drained = batch.ctxs[ctx].g->drained == fd;
	if (r < 0 || d->drained || !may_take(c, fd))
		return;
	const struct told told = { a->event, a->offered ? a->nr_events : -1, true };
	if (is_expected(l) && (told.n >= 0 || l->loops) &&
	    !left_out(&l->skip)) { /* the wait that comes next needs no exit */
		if (is_alone(fd))
			take(ctx, fd, flags, l->want, &told);
	} else if ((d->good >= ROUNDS || d->run >= RUN) && !left_out(&skip) && is_alone(fd)) {
		take(ctx, fd, flags, KX_ACCEPT_MAX, &told);
	}
}
