/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections accepted ahead. A program that accepts until there is none, as it has three times in a row, or that has accepted
 * four in a row by now, gets what else waits by the exit of an accept (kx_accept.h): at once at the numbers that its next calls
 * would give them. All but one: so the listener is ready to read as long as connections of it are here, for every wait and
 * every thread. Any call that leaves the guest takes back what the program has not got yet, before it is looked at, and
 * keeps it at numbers that the program can't name; the next accepts get those first, in their order.
 *
 * Only of a TCP listener that this process has made, has under one number, and had at no fork: nobody else can accept from
 * it. What is kept here is reset where the listener is closed, as the kernel would; over an exec it goes with the listener.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "../../abi/kx_accept.h"
#include "../../util/together.h"
#include "batch_priv.h"
#include "thread.h"

#define ROUNDS 3
#define RUN 4
#define SKIP_MAX 8 /* 1 << that many chances are left out after as many misses in a row */

static uint8_t own[KX_BATCH_FDS / 8]; /* sockets that only this process has, under this number */
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
static int offering = -1; /* the context that was told of them last, and may accept them by itself; -1 = none */
static unsigned misses, skip;

static struct kx_accept *guest(int ctx) { return gva_ptr(batch_ctx_gva(&batch.ctxs[ctx]) + KX_ACCEPT_AT); }

static bool is_accept(uint64_t nr) { return nr == SYS_accept || nr == SYS_accept4; }
static bool is_own(int fd) { return fd >= 0 && fd < KX_BATCH_FDS && own[fd / 8] >> fd % 8 & 1; }

static void disown(int fd)
{
	if (!is_own(fd))
		return;
	own[fd / 8] &= (uint8_t) ~(1 << fd % 8);
	nr_own--;
}

bool accept_has(void) { return __atomic_load_n(&nr_kept, __ATOMIC_RELAXED); }

bool accept_concerns(const struct hcall *c)
{
	if (c->nr == SYS_socket || accept_has())
		return true;
	return __atomic_load_n(&nr_own, __ATOMIC_RELAXED) &&
	       (c->nr == SYS_close || c->nr == SYS_close_range || c->nr == SYS_dup || c->nr == SYS_dup2 ||
		c->nr == SYS_dup3 || c->nr == SYS_fcntl);
}

bool accept_any(int ctx) { return __atomic_load_n(&guest(ctx)->word, __ATOMIC_RELAXED) & KX_ACCEPT_VALID; }

void accept_reset(int ctx)
{
	rounds[ctx] = (struct round){ .listener = -1 };
	__atomic_store_n(&guest(ctx)->word, 0, __ATOMIC_SEQ_CST);
}

/* What the program has not got of it: no more by itself. */
static void take_back(void)
{
	if (offering < 0)
		return;
	struct kx_accept *g = guest(offering);
	uint64_t w = __atomic_exchange_n(&g->word, 0, __ATOMIC_SEQ_CST);
	offering = -1;
	if (!(w & KX_ACCEPT_VALID))
		return;
	int got = (uint32_t)w < (uint32_t)nr_kept ? (int)(uint32_t)w : nr_kept;
	misses = got == nr_kept ? 0 : misses < SKIP_MAX ? misses + 1 : misses;
	skip = misses ? 1u << misses : 0;
	int n = 0;
	for (int i = got; i < nr_kept; i++) {
		struct sock *s = batch_sock(kept[i].fd);
		if (s)
			batch_drop(kept[i].fd, s);
		int fd = fd_hide(kept[i].fd);
		if (fd >= 0) /* else it is closed: there was no number for it */
			kept[n++] = (struct kept){ fd, kept[i].of };
	}
	nr_kept = n;
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
}

static void closed(unsigned first, unsigned last)
{
	if (nr_kept && (unsigned)kept_from >= first && (unsigned)kept_from <= last)
		reset_all();
	for (unsigned fd = first; nr_own && fd <= last && fd < KX_BATCH_FDS; fd++)
		disown((int)fd);
}

void accept_shared(int fd) { disown(fd); }

/* From here on until the end of it all descriptors may get another holder at any moment. */
void accept_fork_begin(void)
{
	take_back();
	forking++;
	shares++;
	if (nr_own) /* a page less that is written to */
		memset(own, 0, sizeof own);
	nr_own = 0;
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
	forking = 0; /* what was own was given up as the fork began */
}

void accept_hand(struct batch_handed *h)
{
	long flags = nr_kept ? HC6(SYS_fcntl, kept_from, F_GETFD, 0, 0, 0, 0) : -1;
	if (flags < 0 || flags & FD_CLOEXEC)
		return;
	h->listener = kept_from;
	h->nr = nr_kept;
	for (int i = 0; i < nr_kept; i++) {
		h->kept[i].fd = kept[i].fd;
		h->kept[i].of = kept[i].of;
	}
	nr_kept = 0;
	kept_from = -1;
}

void accept_adopt(const struct batch_handed *h)
{
	if (!h->nr)
		return;
	kept_from = h->listener;
	nr_kept = h->nr;
	for (int i = 0; i < nr_kept; i++)
		kept[i] = (struct kept){ h->kept[i].fd, h->kept[i].of };
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
	return r;
}

void accept_enter(const struct hcall *c, int ctx)
{
	take_back();
	struct round *r = ctx >= 0 ? &rounds[ctx] : NULL;
	if (r && r->open && !(is_accept(c->nr) && (int)c->arg[0] == r->listener)) {
		r->open = false;
		r->run = 0;
		r->good = r->drained && batch.ctxs[ctx].g->drained < 0 ? r->good + 1 : 0;
	}
	if (c->nr == SYS_socket)
		shares_at[c->t->index % KX_AREA_MAX] = shares;
	/* As a close, to those who wait. */
	if (nr_kept && (int)c->arg[0] == kept_from &&
	    ((c->nr == SYS_shutdown && (int)c->arg[1] != SHUT_WR) || c->nr == SYS_connect))
		reset_all();
	if (!nr_own && !nr_kept)
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
		disown((int)c->arg[0]);
		break;
	case SYS_dup:
		disown((int)c->arg[0]);
		break;
	case SYS_fcntl:
		if ((int)c->arg[1] == F_DUPFD || (int)c->arg[1] == F_DUPFD_CLOEXEC)
			disown((int)c->arg[0]);
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

bool accept_give(struct hcall *c, int64_t *r)
{
	unsigned flags = c->nr == SYS_accept4 ? (unsigned)c->arg[3] : 0;
	if (!nr_kept || !is_accept(c->nr) || (int)c->arg[0] != kept_from || flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK))
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
	return true;
}

/* ---- ahead ------------------------------------------------------------------------------------------------------------ */

/* How many wait at the listener. */
static unsigned waiting(int fd)
{
	struct tcp_info i = { 0 };
	socklen_t len = sizeof i;
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	if (fl < 0 || !(fl & O_NONBLOCK) || HC6(SYS_getsockopt, fd, IPPROTO_TCP, TCP_INFO, &i, &len, 0) ||
	    i.tcpi_state != TCP_LISTEN)
		return 0;
	return i.tcpi_unacked;
}

/* Descriptor fd, which was accepted, is shown to the LibOS when the program gets it. */
static void prepare(struct ctx *x, int fd)
{
	batch_accepted(x, fd);
	if (!batch_sock(fd))
		return;
	__atomic_store_n(&batch_guest_sock(fd)->fresh, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&batch_guest_sock(fd)->tcp, 0, __ATOMIC_SEQ_CST);
}

static void take(int ctx, int listener, unsigned flags)
{
	struct ctx *x = &batch.ctxs[ctx];
	struct kx_accept *g = guest(ctx);
	int accepted = x->g->accepted;
	unsigned n = waiting(listener);
	if (n < 2)
		return;
	n = n - 1 < KX_ACCEPT_MAX ? n - 1 : KX_ACCEPT_MAX;
	while (nr_kept < (int)n) {
		struct kept *k = &kept[nr_kept];
		socklen_t len = sizeof k->of.addr;
		long fd = HC6(SYS_accept4, listener, k->of.addr, &len, flags, 0, 0);
		if (fd < 0)
			break;
		k->fd = k->of.fd = (int)fd;
		k->of.len = len < sizeof k->of.addr ? len : sizeof k->of.addr;
		g->of[nr_kept++] = k->of;
		prepare(x, (int)fd);
		if (!batch_sock((int)fd)) /* not one that can be batched: by a call of its own */
			break;
	}
	x->g->accepted = accepted;
	if (!nr_kept)
		return;
	kept_from = listener;
	g->listener = listener;
	g->flags = flags;
	g->nr = (uint32_t)nr_kept - (batch_sock(kept[nr_kept - 1].fd) ? 0 : 1);
	g->freed = INT32_MAX;
	offering = ctx;
	__atomic_store_n(&g->word, KX_ACCEPT_VALID, __ATOMIC_SEQ_CST);
}

void accept_note(const struct hcall *c, int64_t r)
{
	if (c->nr != SYS_socket || r < 0 || r >= KX_BATCH_FDS || forking ||
	    shares_at[c->t->index % KX_AREA_MAX] != shares || ((int)c->arg[1] & 0xf) != SOCK_STREAM)
		return;
	if (!is_own((int)r))
		nr_own++;
	own[r / 8] |= (uint8_t)(1 << r % 8);
}

void accept_leave(const struct hcall *c, int ctx, int64_t r)
{
	struct round *d = &rounds[ctx];
	int fd = (int)c->arg[0];
	if (!is_accept(c->nr))
		return;
	if (fd != d->listener)
		*d = (struct round){ .listener = fd };
	if (r == -EAGAIN) {
		d->good += d->open;
		d->open = false;
		d->run = 0;
		return;
	}
	d->run = r >= 0 ? (batch.ctxs[ctx].ahead.nr > 1 ? d->run : 0) + 1 : 0;
	d->open = r >= 0;
	d->drained = batch.ctxs[ctx].g->drained == fd;
	if (r < 0 || (d->good < ROUNDS && d->run < RUN) || nr_kept || !is_own(fd) || forking || batch_is_shared() ||
	    c->t->vcpu_fd < 0 || d->drained)
		return;
	if (skip) {
		skip--;
		return;
	}
	take(ctx, fd, c->nr == SYS_accept4 ? (unsigned)c->arg[3] : 0);
}
