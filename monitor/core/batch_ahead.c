/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits answered ahead. Where a server's turn needs another exit than its wait, a connection's accept or a write to a
 * log, that exit looks at the epoll, too, after its own call: it fetches what there is to read, as a wait would, and
 * leaves the events in guest memory (struct kx_bahead). If the wait is what comes next of all calls of all threads, the
 * LibOS tells the program those events. Any call that comes first puts them back: a level is told again by itself, an
 * edge by EPOLL_CTL_MOD with what it was registered with, which makes the kernel look again.
 *
 * So it must be known of each event with an edge what it is of. Looked at is only an epoll that this process made and
 * has alone, and whose edges are all of batched sockets or in its table here. One that has been in doubt stays `odd`.
 * Others who wait at the same epoll see a level as they would; where there are edges the process must have one thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include "../../util/together.h"
#include "batch_listen.h"
#include "gmem.h"
#include "dgram.h"
#include "thread.h"

#define EPOLLS 8
#define EDGES 16
#define INFO_MAX 16384 /* bytes that the kernel says of an epoll */
#define LOOKS_MAX 64   /* how often it is asked */
#define SKIP_MAX 8     /* 1 << that many chances are left out after as many misses in a row */

static struct epoll {
	bool used;
	bool odd;  /* never again */
	bool edge; /* it has or has had registrations with EPOLLET */
	int fd, nr;
	unsigned closed; /* edges of which that is not known yet are among `of`, by ~fd */
	unsigned looks;
	struct edge {
		int fd;
		struct epoll_event ev;
	} of[EDGES]; /* those of descriptors that are no batched sockets */
} epolls[EPOLLS];
static KX_TOGETHER int nr_epolls;
static KX_TOGETHER bool some_offered; /* to any thread */

static struct kx_bahead *guest(const struct ctx *x) { return gva_ptr(batch_ctx_gva(x) + KX_BATCH_AHEAD); }

bool ahead_is_wait(uint64_t nr) { return nr == SYS_epoll_wait || nr == SYS_epoll_pwait || nr == SYS_epoll_pwait2; }

static bool is_accept(uint64_t nr) { return nr == SYS_accept || nr == SYS_accept4; }
static bool is_create(uint64_t nr) { return nr == SYS_epoll_create || nr == SYS_epoll_create1; }

static bool ends_or_copies(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_close:
	case SYS_dup:
	case SYS_dup2:
	case SYS_dup3:
		return true;
	case SYS_close_range:
		return hcall_closes_range(c);
	case SYS_fcntl:
		return (int)c->arg[1] == F_DUPFD || (int)c->arg[1] == F_DUPFD_CLOEXEC;
	}
	return false;
}

bool ahead_concerns(const struct hcall *c)
{
	return is_create(c->nr) ||
	       (__atomic_load_n(&nr_epolls, __ATOMIC_RELAXED) && (c->nr == SYS_epoll_ctl || ends_or_copies(c)));
}

/* ---- which epolls ------------------------------------------------------------------------------------------------- */

static struct epoll *find(int fd)
{
	for (int i = 0; i < EPOLLS && nr_epolls; i++)
		if (epolls[i].used && epolls[i].fd == fd)
			return &epolls[i];
	return NULL;
}

static void forget(struct epoll *e)
{
	e->used = false;
	nr_epolls--;
}

static void made(int fd)
{
	for (int i = 0; i < EPOLLS; i++) {
		if (epolls[i].used)
			continue;
		epolls[i] = (struct epoll){ .used = true, .fd = fd };
		nr_epolls++;
		return;
	}
}

static struct edge *edge_of(struct epoll *e, int fd)
{
	for (int i = 0; i < e->nr; i++)
		if (e->of[i].fd == fd)
			return &e->of[i];
	return NULL;
}

/* The numbers from first to last are closed. A registration outlives that where the file has another number: edges_left(). */
static void closed(unsigned first, unsigned last)
{
	for (int i = 0; i < EPOLLS; i++) {
		struct epoll *e = &epolls[i];
		if (!e->used)
			continue;
		if ((unsigned)e->fd >= first && (unsigned)e->fd <= last) {
			forget(e);
			continue;
		}
		for (int k = 0; k < e->nr; k++)
			if (e->of[k].fd >= 0 && (unsigned)e->of[k].fd >= first && (unsigned)e->of[k].fd <= last) {
				e->of[k].fd = ~e->of[k].fd;
				e->closed++;
			}
	}
}

void ahead_shared(int fd)
{
	struct epoll *e = find(fd);
	if (e)
		forget(e);
	for (int i = 0; i < EPOLLS && nr_epolls; i++)
		if (epolls[i].used && edge_of(&epolls[i], fd))
			epolls[i].odd = true;
}

void ahead_lost(const struct sock *s)
{
	struct epoll *e = find(s->epoll);
	if (e && s->events & EPOLLET)
		e->odd = true;
}

/* A single shot that has been told of can't be put back without arming others. */
void ahead_registered(int epoll, uint32_t events)
{
	struct epoll *e = find(epoll);
	if (!e)
		return;
	e->edge |= (events & EPOLLET) != 0;
	e->odd |= (events & EPOLLONESHOT) != 0;
}

static void edge_note(struct epoll *e, int fd, const struct epoll_event *ev)
{
	struct edge *g = edge_of(e, fd);
	if (!(ev->events & EPOLLET)) {
		if (g)
			*g = e->of[--e->nr];
		return;
	}
	if (!g && e->nr == EDGES) {
		e->odd = true;
		return;
	}
	*(g ? g : &e->of[e->nr++]) = (struct edge){ fd, *ev };
}

static void registration(struct hcall *c)
{
	struct epoll *e = find((int)c->arg[0]), *in = find((int)c->arg[2]);
	struct epoll_event ev = { 0 };
	if (!e)
		return;
	if (in)
		in->odd = true; /* others wait for it, by an edge perhaps */
	if (batch_sock((int)c->arg[2]))
		return; /* batch.c notes it */
	if ((int)c->arg[1] != EPOLL_CTL_DEL && guest_read(&ev, c->arg[3], sizeof ev)) {
		e->odd = true;
		return;
	}
	ahead_registered(e->fd, ev.events);
	edge_note(e, (int)c->arg[2], &ev);
}

void ahead_fork(bool known)
{
	for (int i = 0; i < EPOLLS && !known; i++)
		if (epolls[i].used)
			forget(&epolls[i]);
}

void ahead_fork_child(void)
{
	memset(epolls, 0, sizeof epolls);
	nr_epolls = 0;
}

/* ---- what was offered ----------------------------------------------------------------------------------------------- */

static bool was_told(const struct ahead *a, uint64_t data)
{
	for (int i = 0; i < a->nr_events; i++)
		if (a->event[i].data.u64 == data)
			return true;
	return false;
}

/* The kernel shall tell of them again. */
static void put_back(struct ahead *a)
{
	struct epoll *e = find(a->epoll);
	if (!e || !e->edge || !a->nr_events)
		return;
	for (int fd = 0; fd <= batch.top_fd; fd++) {
		struct sock *s = batch_sock(fd);
		if (!s || s->epoll != e->fd || !(s->events & EPOLLET) || !was_told(a, s->data))
			continue;
		struct epoll_event ev = { s->events, { .u64 = s->data } };
		HC6(SYS_epoll_ctl, e->fd, EPOLL_CTL_MOD, fd, &ev, 0, 0);
	}
	for (int i = 0; i < e->nr; i++)
		if (was_told(a, e->of[i].ev.data.u64)) {
			struct epoll_event ev = e->of[i].ev;
			HC6(SYS_epoll_ctl, e->fd, EPOLL_CTL_MOD, e->of[i].fd, &ev, 0, 0);
		}
}

static void turn_over(struct ahead *a)
{
	a->before = a->last;
	a->nr_before = a->nr;
	a->nr = 0;
}

static void resolve(struct ctx *x)
{
	struct ahead *a = &x->ahead;
	a->offered = false;
	if (__atomic_exchange_n(&guest(x)->state, KX_AHEAD_NONE, __ATOMIC_SEQ_CST) == KX_AHEAD_TAKEN) {
		a->misses = 0;
		turn_over(a);
		return;
	}
	put_back(a);
	if (!a->nr_events)
		return;
	a->misses += a->misses < SKIP_MAX;
	a->skip = 1u << a->misses;
}

void ahead_enter(struct hcall *c, struct ctx *own)
{
	for (int i = 0; some_offered && i < batch.nr_ctxs; i++)
		if (batch.ctxs[i].t && batch.ctxs[i].ahead.offered)
			resolve(&batch.ctxs[i]);
	some_offered = false;
	if (own && ahead_is_wait(c->nr)) {
		turn_over(&own->ahead);
		own->ahead.epoll = (int)c->arg[0];
	} else if (own) {
		own->ahead.last = c->nr;
		own->ahead.nr++;
	}
	if (!nr_epolls || !ends_or_copies(c))
		return;
	if (c->nr != SYS_close && c->nr != SYS_close_range)
		ahead_shared((int)c->arg[0]);
	if (c->nr == SYS_close_range)
		closed((unsigned)c->arg[0], (unsigned)c->arg[1]);
	else if (c->nr == SYS_close)
		closed((unsigned)c->arg[0], (unsigned)c->arg[0]);
	else if (c->nr == SYS_dup2 || c->nr == SYS_dup3)
		closed((unsigned)c->arg[1], (unsigned)c->arg[1]);
}

void ahead_note(struct hcall *c, int64_t r)
{
	if (is_create(c->nr) && r >= 0)
		made((int)r);
	else if (c->nr == SYS_epoll_ctl && !r)
		registration(c);
}

/* ---- looking --------------------------------------------------------------------------------------------------------- */

void ahead_ctx_init(struct ctx *x)
{
	x->ahead = (struct ahead){ .epoll = -1 };
	__atomic_store_n(&guest(x)->state, KX_AHEAD_NONE, __ATOMIC_SEQ_CST);
}

uint32_t batch_poll_all(int fd)
{
	struct pollfd p = { .fd = fd,
			    .events = POLLIN | POLLPRI | POLLOUT | EPOLLRDNORM | EPOLLRDBAND | EPOLLWRNORM |
				      EPOLLWRBAND | EPOLLMSG | EPOLLRDHUP };
	struct timespec now = { 0, 0 };
	return HC6(SYS_ppoll, &p, 1, &now, 0, 8, 0) > 0 ? (uint32_t)(uint16_t)p.revents : 0;
}

/* Who accepts until there is none is told so without another exit: once. */
static void accepted(struct ctx *x, struct hcall *c, int64_t r)
{
	struct ahead *a = &x->ahead;
	int fd = (int)c->arg[0];
	if (r == -EAGAIN)
		a->accepts_all = true;
	if (r < 0 || !a->accepts_all)
		return;
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	if (fl < 0 || !(fl & O_NONBLOCK) || accept_has() || batch_poll_all(fd))
		return;
	x->g->drained_at = batch_shared()->calls;
	__atomic_store_n(&x->g->drained, fd, __ATOMIC_SEQ_CST);
}

static bool likely(struct ahead *a, const struct ctx *x, uint64_t nr)
{
	if (nr != a->before)
		return false;
	if (!(is_accept(nr) && a->accepts_all) ? a->nr != a->nr_before : x->g->drained < 0)
		return false;
	if (!a->skip)
		return true;
	a->skip--;
	return false;
}

/* Is registration g of a number that has been closed still there? As the kernel says. */
static bool is_left(const char *info, const struct edge *g)
{
	unsigned long long data;
	unsigned events;
	int fd;
	for (const char *p = info; (p = strstr(p, "tfd:")); p += 4)
		if (sscanf(p, "tfd: %d events: %x data: %llx", &fd, &events, &data) != 3 ||
		    (fd == ~g->fd && data == g->ev.data.u64))
			return true;
	return false;
}

static void edges_left(struct epoll *e)
{
	static char info[INFO_MAX];
	char name[40];
	snprintf(name, sizeof name, "self/fdinfo/%d", e->fd);
	int fd = ++e->looks > LOOKS_MAX ? -1 : proc_file(name);
	size_t len = 0;
	for (long r = 1; fd >= 0 && r > 0 && len<sizeof info - 1; len += r> 0 ? (size_t)r : 0)
		r = HC6(SYS_read, fd, info + len, sizeof info - 1 - len, 0, 0, 0);
	if (fd >= 0)
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	info[len] = 0;
	e->odd |= fd < 0 || !len || len == sizeof info - 1;
	for (int i = 0; i < e->nr && !e->odd;)
		if (e->of[i].fd >= 0)
			i++;
		else if (is_left(info, &e->of[i]))
			e->odd = true;
		else
			e->of[i] = e->of[--e->nr];
	e->closed = 0;
}

static bool allowed(struct epoll *e)
{
	if (!e || e->odd || batch_is_shared() || dgram_active() ||
	    (e->edge && __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) > 1))
		return false;
	if (e->closed)
		edges_left(e);
	return !e->odd;
}

bool ahead_allows(int epoll) { return allowed(find(epoll)); }

bool ahead_is_level(int epoll, uint64_t data)
{
	const struct epoll *e = find(epoll);
	for (int i = 0; e && i < e->nr; i++)
		if (e->of[i].ev.data.u64 == data)
			return false;
	return e != NULL;
}

static void offer(struct ctx *x, int n, int accepted)
{
	struct ahead *a = &x->ahead;
	struct kx_bahead *g = guest(x);
	struct sock *s = batch_sock(accepted);
	batch_turn(x);
	for (int i = 0; i < n; i++) {
		const struct epoll_event *ev = &a->event[i];
		int fd;
		struct sock *of = batch_sock_of(a->epoll, ev->data.u64, &fd);
		g->event[i] = (struct kx_bevent){ ev->data.u64, ev->events, of ? fd : -1 };
		if (of)
			batch_ready(x, fd, of, ev->events);
	}
	g->fresh = -1;
	if (s && s->epoll < 0) {
		g->fresh_events = batch_poll_all(accepted);
		batch_ready_fresh(x, accepted, s, g->fresh_events);
		g->fresh = accepted;
	}
	g->nr = (uint32_t)n;
	g->epoll = a->epoll;
	g->calls = batch_shared()->calls;
	g->spoilt = 0;
	g->zeros = n || gmem_is_seen() ? 0 : KX_AHEAD_ZEROS; /* who shares memory may know of more without a call */
	a->offered = some_offered = true;
	__atomic_store_n(&g->state, KX_AHEAD_OFFERED, __ATOMIC_SEQ_CST);
}

void ahead_leave(struct ctx *x, struct hcall *c, int64_t r)
{
	struct ahead *a = &x->ahead;
	x->g->drained = -1;
	if (c->t->vcpu_fd < 0 || ahead_is_wait(c->nr))
		return;
	if (is_accept(c->nr))
		accepted(x, c, r);
	if (!likely(a, x, c->nr) || !allowed(find(a->epoll)))
		return;
	long n = HC6(SYS_epoll_wait, a->epoll, a->event, KX_AHEAD_MAX, 0, 0, 0);
	a->nr_events = n < 0 ? 0 : (int)n;
	if (n == KX_AHEAD_MAX) /* there may be more: the program's own wait has room for as many as it wants */
		put_back(a);
	else if (n >= 0)
		offer(x, a->nr_events = bell_tell(a->event, (int)n), is_accept(c->nr) && r >= 0 ? (int)r : -1);
}
