/* SPDX-License-Identifier: Apache-2.0 */
/* Which sockets take part, in which epoll they are, what there is to read and room to write. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/seldom.h"
#include "batch_priv.h"
#include "gmem.h"

#define CREDIT_LOW 0x20000 /* below it the kernel is asked again */
#define HINTS 32768

static uint16_t hints[HINTS]; /* by epoll and data: the descriptor */
static uint32_t gens;         /* the last socket's: no other's is the same for long */

/* ---- which sockets ------------------------------------------------------------------------------------------------ */

#define DISOWN_MS 1000 /* how long what is left may take if nobody looks after it then */

/* What the guest knows of it, and who else. */
static void end_batching(int fd, struct sock *s)
{
	struct kx_bsock *g = batch_guest_sock(fd);
	__atomic_store_n(&g->credit, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g->fresh, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g->tcp, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g->epoll, KX_EPOLL_UNKNOWN, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g->owner, 0, __ATOMIC_SEQ_CST);
	batch_give_up(fd, s);
	lend_close(fd, s);
}

void batch_drop(int fd, struct sock *s)
{
	end_batching(fd, s);
	if (s->left && !batch_close_left(fd, s))
		batch_drain_left(fd, s, DISOWN_MS);
	batch_drop_left(s);
	if (s->heir)
		heir_closed(s);
	batch.nr_held -= s->held;
	s->held = s->inherited = false;
	s->kind = NONE;
	batch.nr_socks--;
}

/* It is the program's as before, but none of ours; or, with something left, as if others had it for ever. */
void batch_disown(int fd, struct sock *s)
{
	ahead_lost(s);
	heir_lost(s);
	if (!s->held)
		batch_drain_left(fd, s, DISOWN_MS);
	if (!s->left) {
		batch_drop(fd, s);
		return;
	}
	end_batching(fd, s);
	s->inherited = true; /* of nobody who is counted */
	batch.nr_held += !s->held;
	s->held = true;
}

static void drop_fd(int fd)
{
	struct sock *s = batch_sock(fd);
	if (s)
		batch_drop(fd, s);
}

void batch_drop_range(unsigned first, unsigned last)
{
	for (unsigned fd = first; fd <= last && (int)fd <= batch.top_fd; fd++)
		drop_fd((int)fd);
}

static int sock_int(int fd, int opt)
{
	int v = -1;
	socklen_t len = sizeof v;
	return HC6(SYS_getsockopt, fd, SOL_SOCKET, opt, &v, &len, 0) < 0 ? -1 : v;
}

enum sock_kind batch_kind_of(int fd)
{
	if (sock_int(fd, SO_TYPE) != SOCK_STREAM)
		return NONE;
	switch (sock_int(fd, SO_DOMAIN)) {
	case AF_UNIX:
		return UNIX;
	case AF_INET:
	case AF_INET6:
		return sock_int(fd, SO_PROTOCOL) == IPPROTO_TCP ? TCP : NONE;
	}
	return NONE;
}

/* Its close takes long; or a peek does not begin where a read does. It may have that of its listener. */
static bool is_odd(int fd)
{
	struct linger l = { 1, 0 };
	socklen_t len = sizeof l;
	return HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_LINGER, &l, &len, 0) || l.l_onoff ||
	       sock_int(fd, SO_PEEK_OFF) >= 0;
}

/* net.ipv4.tcp_notsent_lowat, as it is at the first look. */
static uint32_t lowat_of_host(void)
{
	static uint32_t lowat;
	char text[16] = "";
	if (lowat)
		return lowat;
	int fd = proc_file("sys/net/ipv4/tcp_notsent_lowat");
	if (fd >= 0) {
		HC6(SYS_read, fd, text, sizeof text - 1, 0, 0, 0);
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	}
	lowat = (uint32_t)strtoul(text, NULL, 10);
	return lowat ? lowat : (lowat = UINT32_MAX);
}

void batch_look_lowat(int fd, struct sock *s)
{
	uint32_t v = 0;
	socklen_t len = sizeof v;
	s->tight = s->kind == TCP && !HC6(SYS_getsockopt, fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &v, &len, 0) &&
		   (v ? v : lowat_of_host()) != UINT32_MAX;
}

bool batch_is_nonblocking(int fd)
{
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	return fl >= 0 && (fl & O_NONBLOCK);
}

bool batch_tables(void)
{
	struct tables {
		struct sock socks[KX_BATCH_FDS];
		struct ctx ctxs[KX_BATCH_CTXS];
	} *t = NULL;
	if (batch.socks)
		return true;
	if (!seldom_map((void **)&t, sizeof *t))
		return false;
	batch.socks = t->socks;
	batch.ctxs = t->ctxs;
	return true;
}

/* False: there is no memory, and the socket remains one of the host's alone. */
static bool map_region(void)
{
	if (!batch_tables())
		return false;
	if (!batch.mapped) {
		if (gmem_sys_open(KX_BATCH_BASE))
			return false;
		batch.mapped = true;
		batch_shared()->selfish = batch.selfish;
	}
	return true;
}

static void note_name(struct kx_bname *p, long nr, int fd)
{
	socklen_t len = sizeof p->addr;
	__atomic_store_n(&p->fd, -1, __ATOMIC_SEQ_CST);
	if (batch.socks[fd].kind != TCP || HC6(nr, fd, p->addr, &len, 0, 0, 0) || len > sizeof p->addr)
		return;
	p->gen = batch.socks[fd].gen;
	p->len = len;
	__atomic_store_n(&p->fd, fd, __ATOMIC_SEQ_CST);
}

struct kx_bname *batch_peer_of(const struct ctx *x, int fd)
{
	return (struct kx_bname *)gva_ptr(batch_ctx_gva(x) + KX_BATCH_PEERS) + fd % KX_BATCH_PEERS_MAX;
}

struct kx_bname *batch_local_of(const struct ctx *x, int fd)
{
	return (struct kx_bname *)gva_ptr(batch_ctx_gva(x) + KX_BATCH_LOCALS) + fd % KX_BATCH_PEERS_MAX;
}

/* Who a new connection is from, and to. */
static void note_names(struct ctx *x, int fd)
{
	note_name(batch_peer_of(x, fd), SYS_getpeername, fd);
	x->g->accepted = fd;
	x->g->accepted_at = (uint32_t)x->g->exits;
	note_name(batch_local_of(x, fd), SYS_getsockname, fd);
}

void batch_accepted(struct ctx *x, int fd)
{
	enum sock_kind k = fd < KX_BATCH_FDS && !batch.no_new && !is_odd(fd) ? batch_kind_of(fd) : NONE;
	if (batch_sock(fd)) { /* it can't be there; what is left would be for another connection */
		batch_drop_left(&batch.socks[fd]);
		drop_fd(fd);
	}
	if (k == NONE || !map_region())
		return;
	struct sock *s = &batch.socks[fd];
	*s = (struct sock){ .kind = k, .nonblock = batch_is_nonblocking(fd), .epoll = -1, .gen = ++gens };
	/* Another may have forked before this one is known. */
	s->no_heir = __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) > 1;
	batch_look_lowat(fd, s);
	*batch_guest_sock(fd) = (struct kx_bsock){ .gen = s->gen, .fresh = 1, .tcp = k == TCP, .epoll = -1 };
	batch.nr_socks++;
	if (x)
		note_names(x, fd);
	if (fd > batch.top_fd)
		batch.top_fd = fd;
}

static void rename_note(struct kx_bname *from, struct kx_bname *to, int fd, int new_fd)
{
	if (__atomic_load_n(&from->fd, __ATOMIC_RELAXED) != fd)
		return;
	__atomic_store_n(&to->fd, -1, __ATOMIC_SEQ_CST);
	to->gen = batch.socks[new_fd].gen;
	to->len = from->len;
	memcpy(to->addr, from->addr, sizeof to->addr);
	__atomic_store_n(&to->fd, new_fd, __ATOMIC_SEQ_CST);
}

static void rename_guest(int from, int fd)
{
	struct kx_bsock *f = batch_guest_sock(from), *t = batch_guest_sock(fd);
	const uint32_t owner = __atomic_exchange_n(&f->owner, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&t->owner, 0, __ATOMIC_SEQ_CST);
	t->gen = batch.socks[fd].gen;
	t->buf = f->buf;
	t->epoch = f->epoch;
	t->turn = f->turn;
	t->epoll = __atomic_exchange_n(&f->epoll, KX_EPOLL_UNKNOWN, __ATOMIC_SEQ_CST);
	t->fresh = __atomic_exchange_n(&f->fresh, 0, __ATOMIC_SEQ_CST);
	t->tcp = __atomic_exchange_n(&f->tcp, 0, __ATOMIC_SEQ_CST);
	t->credit = __atomic_exchange_n(&f->credit, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&t->rx, __atomic_exchange_n(&f->rx, 0, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
	__atomic_store_n(&t->owner, owner, __ATOMIC_SEQ_CST);
}

void batch_renamed(int from, int fd)
{
	batch.socks[fd] = batch.socks[from];
	batch.socks[from] = (struct sock){ .kind = NONE };
	if (fd > batch.top_fd)
		batch.top_fd = fd;
	for (int i = 0; i < batch.nr_ctxs; i++) {
		struct ctx *x = &batch.ctxs[i];
		if (!x->t)
			continue;
		for (uint32_t k = 0; k < x->nr; k++)
			if (x->fd[k] == from)
				x->fd[k] = fd;
		for (uint32_t k = 0; k < x->nr_live; k++)
			if (x->live[k].fd == from)
				x->live[k].fd = fd;
		rename_note(batch_peer_of(x, from), batch_peer_of(x, fd), from, fd);
		rename_note(batch_local_of(x, from), batch_local_of(x, fd), from, fd);
	}
	rename_guest(from, fd);
}

struct sock *batch_inherited(int fd)
{
	enum sock_kind k = batch.no_new || is_odd(fd) ? NONE : batch_kind_of(fd);
	if (k == NONE || !map_region())
		return NULL;
	struct sock *s = &batch.socks[fd];
	*s = (struct sock){ .kind = k,
			    .nonblock = batch_is_nonblocking(fd),
			    .held = true,
			    .inherited = true,
			    .no_heir = true,
			    .epoll = -1,
			    .gen = ++gens };
	batch_look_lowat(fd, s);
	*batch_guest_sock(fd) = (struct kx_bsock){ .gen = s->gen, .epoll = KX_EPOLL_UNKNOWN };
	batch.nr_socks++;
	batch.nr_held++;
	if (fd > batch.top_fd)
		batch.top_fd = fd;
	return s;
}

void batch_look_alone(int fd, struct sock *s)
{
	if (!s->inherited || !heir_is_last(s))
		return;
	s->inherited = false;
	if (batch_has_leases()) /* this process has forked, too */
		return;
	s->held = false;
	batch.nr_held--;
	__atomic_store_n(&batch_guest_sock(fd)->tcp, s->kind == TCP, __ATOMIC_SEQ_CST);
	if (s->epoll >= 0 && !(s->events & EPOLLEXCLUSIVE))
		__atomic_store_n(&batch_guest_sock(fd)->epoll, s->epoll, __ATOMIC_SEQ_CST);
}

static unsigned hint_of(int epoll, uint64_t data)
{
	return (unsigned)((data + (uint64_t)epoll * 0x10001) * 0x9e3779b97f4a7c15ull >> 49);
}

/* What the LibOS has queued it knows; it may have gone on. */
void batch_note_epoll(int fd, struct sock *s, int epoll, uint32_t events, uint64_t data, bool queued)
{
	int32_t known = KX_EPOLL_UNKNOWN;
	struct kx_bsock *g = batch_guest_sock(fd);
	__atomic_store_n(&g->fresh, 0, __ATOMIC_SEQ_CST);
	if (s->held || s->lent || events & EPOLLEXCLUSIVE)
		__atomic_store_n(&g->epoll, KX_EPOLL_UNKNOWN, __ATOMIC_SEQ_CST);
	else if (queued)
		__atomic_compare_exchange_n(&g->epoll, &known, epoll, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&g->epoll, epoll, __ATOMIC_SEQ_CST);
	if (s->heir && !s->inherited) /* what it tells of is not only the child's to read */
		heir_lost(s);
	s->epoll = epoll;
	s->events = events;
	s->data = data;
	ahead_registered(epoll, events);
	hints[hint_of(epoll, data)] = (uint16_t)fd;
}

static void unregistered(int fd, struct sock *s)
{
	s->epoll = -1;
	__atomic_store_n(&batch_guest_sock(fd)->epoll, s->held || s->lent ? KX_EPOLL_UNKNOWN : KX_EPOLL_NONE,
			 __ATOMIC_SEQ_CST);
}

void batch_registered(struct hcall *c)
{
	int epoll = (int)c->arg[0], op = (int)c->arg[1], fd = (int)c->arg[2];
	struct sock *s = batch_sock(fd);
	struct epoll_event ev;
	if (!s)
		return;
	if (op == EPOLL_CTL_DEL) {
		if (s->epoll == epoll)
			unregistered(fd, s);
		return;
	}
	if (guest_read(&ev, c->arg[3], sizeof ev) || (s->epoll >= 0 && s->epoll != epoll)) {
		batch_disown(fd, s); /* two epolls: what one has told of the other still must */
		return;
	}
	batch_note_epoll(fd, s, epoll, ev.events, ev.data.u64, false);
}

/* ---- what is there to read and room to write ----------------------------------------------------------------------- */

void batch_tell_credit(int fd, struct sock *s)
{
	bool none = s->left || s->err || s->shut || s->tight || batch_left_is_much();
	uint32_t room = none ? 0 : batch_room(fd, s->kind == TCP);
	__atomic_store_n(&batch_guest_sock(fd)->credit, room < INT32_MAX ? room : INT32_MAX, __ATOMIC_SEQ_CST);
}

/*
 * What came before the look at the epoll is all in what is fetched; what comes after makes an event of its own. So a
 * read may come out short, and the next one empty, but for an end of the stream that was there already and is not told
 * again: of an edge.
 */
static bool may_be_empty(const struct sock *s, uint32_t events)
{
	if (!(s->events & EPOLLET))
		return true;
	return s->kind == TCP && (s->events & EPOLLRDHUP) && !(events & EPOLLRDHUP);
}

static void fetch(struct ctx *x, int fd, struct sock *s, uint32_t events)
{
	struct kx_bsock *g = batch_guest_sock(fd);
	uint32_t at = KX_BATCH_CTX + (uint32_t)(x - batch.ctxs) * KX_BATCH_CTX + KX_BATCH_RX + x->used;
	uint32_t room = KX_BATCH_RX_SIZE - x->used;
	uint64_t w = KX_RX_VALID;
	if (room > FETCH_MAX)
		room = FETCH_MAX;
	if (!room || x->nr == FETCHES_MAX || (s->lent && !lend_fetch_begin(fd, s)))
		return;
	long n = HC6(SYS_recvfrom, fd, gva_ptr(KX_BATCH_BASE + at), room, MSG_PEEK | MSG_DONTWAIT, 0, 0);
	if (n < 0 && n != -EAGAIN) {
		s->err = (int)-n; /* told once, thus ours to tell on */
		if (s->lent)
			lend_fetch_end(fd, s, 0, 0);
		return;
	}
	if (n == 0)
		w |= KX_RX_EOF;
	if (n < (long)room)
		w |= KX_RX_SHORT | (s->nonblock && may_be_empty(s, events) ? KX_RX_EMPTY : 0);
	s->fetched = n > 0 ? (uint32_t)n : 0;
	s->taken = 0;
	x->fd[x->nr++] = fd;
	x->used += (s->fetched + 63) & ~63u;
	g->buf = at;
	g->epoch = (uint32_t)x->g->exits;
	w |= KX_RX_GEN(s->gen) | (uint64_t)s->fetched << 24;
	if (s->lent)
		lend_fetch_end(fd, s, s->fetched, w);
	else
		__atomic_store_n(&g->rx, w, __ATOMIC_SEQ_CST);
}

/*
 * A connection's process without an event loop: what is there is fetched behind the read that has waited for it. With
 * other threads one of them might be waiting in the kernel for the same data.
 */
bool batch_reads_on(const struct sock *s, int fd)
{
	return s->kind == TCP && !s->nonblock && !s->held && !s->lent && s->epoll < 0 &&
	       __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) == 1 && sock_int(fd, SO_RCVLOWAT) == 1;
}

/* All that was there has been read, and the next read may be EAGAIN. */
static bool may_find_nothing(int fd)
{
	const struct sock *s = batch_sock(fd);
	uint64_t w = s ? __atomic_load_n(&batch_guest_sock(fd)->rx, __ATOMIC_ACQUIRE) : 0;
	return w & KX_RX_VALID && w & KX_RX_EMPTY && KX_RX_POS(w) == KX_RX_END(w);
}

/*
 * An error that comes during the turn must be met by the write that comes after it, not by a later one. And what has
 * come meanwhile is there for the next read: else the EAGAIN that it was to find is still true.
 */
void batch_still_live(struct ctx *x)
{
	struct timespec now = { 0, 0 };
	int only = x->only;
	x->only = -1;
	if (x->nr_live == 1 && x->live[0].fd == only && !sigs_offered())
		return; /* it was told by what nothing has been looked at after */
	for (uint32_t i = 0; i < x->nr_live; i++)
		x->live[i].events = may_find_nothing(x->live[i].fd) ? POLLIN : 0;
	if (!x->nr_live || HC6(SYS_ppoll, x->live, x->nr_live, &now, 0, 8, 0) < 0)
		return;
	for (uint32_t i = 0; i < x->nr_live; i++) {
		const struct pollfd *p = &x->live[i];
		if (p->revents & ~POLLIN && batch_sock(p->fd))
			__atomic_store_n(&batch_guest_sock(p->fd)->credit, 0, __ATOMIC_SEQ_CST);
		else if (p->events && !p->revents)
			__atomic_store_n(&batch_guest_sock(p->fd)->epoch, (uint32_t)x->g->exits, __ATOMIC_SEQ_CST);
	}
}

/*
 * The next turn: what was in neither this nor the last one is out, or, where the thread writes only to what its last wait
 * has told of, what was not in this one: each exit looks at all that is left. For a few sockets that are in another epoll than the one
 * that was waited at, it is none: a process of PostgreSQL's waits for locks in between, and then answers.
 */
void batch_next_turn(struct ctx *x, int epoll)
{
	uint32_t n = 0, turn = (uint32_t)x->g->turn++;
	x->late -= x->late != 0;
	for (uint32_t i = 0; i < x->nr_live; i++) {
		int fd = x->live[i].fd;
		const struct sock *s = batch_sock(fd);
		struct kx_bsock *g = batch_guest_sock(fd);
		if (!s || turn - g->turn > 1)
			continue;
		bool elsewhere = epoll >= 0 && s->epoll >= 0 && s->epoll != epoll && n < ELSEWHERE_MAX;
		if (elsewhere)
			g->turn++;
		if (elsewhere || (g->turn == turn && x->late))
			x->live[n++].fd = fd;
		else if (g->turn == turn)
			g->turn--;
	}
	x->nr_live = n;
}

void batch_may_write(struct ctx *x, int fd)
{
	struct kx_bsock *g = batch_guest_sock(fd);
	if ((uint32_t)x->g->turn - g->turn > 1) { /* else it is there */
		if (x->nr_live == FETCHES_MAX)
			return;
		x->live[x->nr_live++] = (struct pollfd){ .fd = fd };
	}
	g->turn = (uint32_t)x->g->turn;
}

void batch_write_called(struct ctx *x, int fd)
{
	const struct kx_bsock *g = batch_guest_sock(fd);
	if (g->owner == (uint32_t)(x - batch.ctxs) + 1 && (uint32_t)x->g->turn - g->turn == 2)
		x->late = LATE_TURNS;
}

void batch_write_queued(struct ctx *x, int fd)
{
	if (batch_guest_sock(fd)->turn != (uint32_t)x->g->turn)
		x->late = LATE_TURNS;
}

void batch_ready_fresh(struct ctx *x, int fd, struct sock *s, uint32_t events)
{
	struct kx_bsock *g = batch_guest_sock(fd);
	uint32_t owner = (uint32_t)(x - batch.ctxs) + 1;
	batch_give_up(fd, s);
	if (s->held || events & (EPOLLERR | EPOLLHUP))
		return;
	if (g->owner != owner || g->credit < CREDIT_LOW) {
		if (g->owner != owner)
			g->turn = 0;
		__atomic_store_n(&g->owner, 0, __ATOMIC_SEQ_CST);
		batch_tell_credit(fd, s);
	}
	batch_may_write(x, fd);
	s->told_of_data = events & EPOLLIN;
	if (s->told_of_data || s->eager)
		fetch(x, fd, s, events);
	__atomic_store_n(&g->owner, owner, __ATOMIC_SEQ_CST);
}

void batch_ready(struct ctx *x, int fd, struct sock *s, uint32_t events)
{
	if (s->nonblock)
		batch_ready_fresh(x, fd, s, events);
	else
		batch_give_up(fd, s);
}

struct sock *batch_sock_of(int epoll, uint64_t data, int *fd)
{
	struct sock *s = batch_sock(*fd = hints[hint_of(epoll, data)]);
	return s && s->epoll == epoll && s->data == data ? s : NULL;
}
