/* SPDX-License-Identifier: Apache-2.0 */
#include "dgram.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/together.h"
#include "batch.h"
#include "dgram_priv.h"
#include "flusher.h"
#include "gmem.h"
#include "keeper.h"
#include "sys_net.h"
#include "thread.h"

#define RECEIVES_MIN 8 /* of a program that is worth it */
#define SEND_BURST 32
#define SEND_WAIT_MS 20 /* for room in a send buffer; then the datagram is lost, as on the way */
#define HC_FIRST 1024   /* sig_next */
#define HC_LAST 1029    /* seed */
#define DG_SO_PEEK_OFF 42
#define FD_SCAN 4096

struct dgram_fd dgram_fds[KX_DGRAM_FDS];
struct dgram_slot dgram_slots[KX_DGRAM_SOCKS];
struct dgram_reg dgram_regs[DGRAM_REGS];
KX_TOGETHER int dgram_nr_regs;
KX_TOGETHER pthread_mutex_t dgram_lock = PTHREAD_MUTEX_INITIALIZER;

static struct dgram_ctx ctxs[KX_DGRAM_CTXS];
static KX_TOGETHER int nr_ctxs, nr_slots, nr_udp;
static KX_TOGETHER bool mapped;
static KX_TOGETHER bool noted; /* there is something in the tables of descriptors, of sockets, of ports */
static uint16_t ports[65536];  /* UDP sockets of this process by local port */
static KX_TOGETHER int nested[16], nr_nested; /* epolls in epolls: nobody tells them of what lies here */

static int sock_int(int fd, int opt)
{
	int v = -1;
	socklen_t len = sizeof v;
	return HC6(SYS_getsockopt, fd, SOL_SOCKET, opt, &v, &len, 0) < 0 ? -1 : v;
}

/* ---- receiving ahead --------------------------------------------------------------------------------------------- */

bool dgram_has(const struct dgram_slot *s)
{
	uint64_t w = __atomic_load_n(&dgram_sock(s)->rx, __ATOMIC_ACQUIRE);
	return KX_DRX_POS(w) != KX_DRX_END(w);
}

bool dgram_active(void) { return __atomic_load_n(&nr_udp, __ATOMIC_RELAXED); }

bool dgram_is_sole(const struct dgram_slot *s) { return !s->passed && !s->held; }

static bool is_alone(const struct dgram_slot *s) { return dgram_is_sole(s) && !s->crowd; }

void dgram_reader(struct dgram_slot *s, const struct hcall *c)
{
	s->crowd |= s->reader >= 0 && s->reader != c->t->index;
	s->reader = c->t->index;
}

/*
 * Whoever else could have a datagram must not miss it for long. So nothing is received ahead but what the caller is about
 * to ask for, by its habit: as many as in the turn before, and where it asks for more than then, as many again. Of a
 * caller who would sleep when there is none, nobody knows when it stops: nothing.
 */
uint32_t dgram_window(const struct dgram_slot *s, uint32_t want, bool nowait)
{
	const struct kx_dsock *g = dgram_sock(s);
	if (want > KX_DGRAM_AHEAD)
		want = KX_DGRAM_AHEAD;
	uint32_t had = want + (g->attempts < KX_DGRAM_AHEAD ? g->attempts : KX_DGRAM_AHEAD);
	uint32_t most = g->window < KX_DGRAM_AHEAD ? g->window : KX_DGRAM_AHEAD;
	uint32_t more = most > had ? most - had : had > most && had > 1 ? had : 0;
	if (is_alone(s))
		return KX_DGRAM_AHEAD;
	more = nowait ? want + more : want;
	return more < KX_DGRAM_AHEAD ? more : KX_DGRAM_AHEAD;
}

void dgram_looked(bool others)
{
	dgram_shared()->looked = others ? 0 : __atomic_load_n(&dgram_shared()->calls, __ATOMIC_SEQ_CST);
}

void dgram_turn_ends(struct dgram_slot *s)
{
	struct kx_dsock *g = dgram_sock(s);
	if (!g->attempts)
		return;
	g->window = g->attempts;
	g->attempts = 0;
}

/* A socket of this process must find what was sent to it: that is never queued. The port is in the same place for both. */
static bool is_ours(const uint8_t *name)
{
	uint16_t port;
	memcpy(&port, name + offsetof(struct sockaddr_in, sin_port), sizeof port);
	return ports[port] != 0;
}

void dgram_heard(struct dgram_slot *s, const uint8_t *name, uint32_t len)
{
	struct kx_dpeer *p = (struct kx_dpeer *)(dgram_buffer(s) + KX_DGRAM_PEERS) + kx_dgram_hash(name, len);
	if (len < sizeof(struct sockaddr_in) || is_ours(name))
		return;
	memcpy(p->name, name, len);
	p->len = len;
	dgram_set_flag(s, KX_DS_HEARD, true);
}

/* ---- what is queued ------------------------------------------------------------------------------------------------ */

struct burst {
	int fd, n;
	uint32_t flags;
	struct mmsghdr m[SEND_BURST];
	struct iovec v[SEND_BURST];
	struct sockaddr_storage name[SEND_BURST];
	_Alignas(8) uint8_t ctl[SEND_BURST][KX_DGRAM_CTL_MAX];
};

/* An error that waited for a call is told, and goes away by that; the datagram then goes. */
static void send_one(struct dgram_slot *s, int fd, struct msghdr *m, uint32_t flags)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	struct timespec ts = { 0, SEND_WAIT_MS * 1000000l };
	long r = HC6(SYS_sendmsg, fd, m, flags, 0, 0, 0);
	if (r == -EAGAIN) {
		HC6(SYS_ppoll, &p, 1, &ts, 0, 8, 0);
		r = HC6(SYS_sendmsg, fd, m, flags, 0, 0, 0);
	}
	if (r >= 0 || r == -EAGAIN)
		return;
	if (HC6(SYS_sendmsg, fd, m, flags, 0, 0, 0) < 0)
		dgram_set_flag(s, KX_DS_SEND, false);
	dgram_set_flag(s, KX_DS_HEARD, false);
	s->err = (int)-r;
}

static void burst_send(struct burst *b)
{
	struct dgram_slot *s = dgram_at(b->fd);
	int done = 0;
	while (s && done < b->n) {
		long r = HC6(SYS_sendmmsg, b->fd, b->m + done, b->n - done, b->flags, 0, 0);
		if (r > 0) {
			done += (int)r;
			continue;
		}
		send_one(s, b->fd, &b->m[done].msg_hdr, b->flags);
		done++;
	}
	b->n = 0;
}

/* Source addresses alone: nothing that names a descriptor or a process. */
static bool control_is_plain(const uint8_t *p, uint32_t n)
{
	struct cmsghdr h;
	if (!n)
		return true;
	if (n < sizeof h)
		return false;
	memcpy(&h, p, sizeof h);
	return h.cmsg_len <= n && KX_D8((uint32_t)h.cmsg_len) >= n &&
	       ((h.cmsg_level == IPPROTO_IP && h.cmsg_type == IP_PKTINFO) ||
		(h.cmsg_level == IPPROTO_IPV6 && h.cmsg_type == IPV6_PKTINFO));
}

static void burst_add(struct burst *b, const struct kx_dsend *r, const uint8_t *p)
{
	const struct dgram_slot *s = dgram_at(r->fd);
	uint32_t named = KX_D8((uint32_t)r->namelen), told = KX_D8((uint32_t)r->ctllen);
	uint32_t flags = (r->flags & MSG_CONFIRM) | MSG_DONTWAIT | MSG_NOSIGNAL;
	if (!s || s->gen != r->gen)
		return; /* closed by another thread at the same moment */
	if (b->n && (b->n == SEND_BURST || b->fd != r->fd || b->flags != flags))
		burst_send(b);
	int i = b->n++;
	b->fd = r->fd;
	b->flags = flags;
	memcpy(&b->name[i], p, r->namelen);
	memcpy(b->ctl[i], p + named, r->ctllen);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (!control_is_plain(b->ctl[i], r->ctllen))
		pvm_panic("LibOS: the queue of datagrams is broken");
	b->v[i] = (struct iovec){ (uint8_t *)p + named + told, r->len };
	b->m[i].msg_hdr = (struct msghdr){ .msg_name = r->namelen ? &b->name[i] : NULL,
					   .msg_namelen = r->namelen,
					   .msg_iov = &b->v[i],
					   .msg_iovlen = 1,
					   .msg_control = r->ctllen ? b->ctl[i] : NULL,
					   .msg_controllen = r->ctllen };
}

static void ctx_went(struct dgram_ctx *x, uint32_t size)
{
	x->tail += size;
	__atomic_store_n(&x->g->tail, x->tail, __ATOMIC_RELEASE);
}

/* The next record of x before `end`, copied: false when there is none. `at`: how far the ring has been read. */
static bool ring_next(struct dgram_ctx *x, uint64_t *at, uint64_t end, struct kx_dsend *r, const uint8_t **p)
{
	for (;;) {
		uint64_t there = end - *at, off = *at % KX_DGRAM_TX_SIZE;
		if (!there)
			return false;
		const uint8_t *rec = (const uint8_t *)x->g + KX_DGRAM_TX + off;
		memcpy(r, rec, sizeof *r);
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		uint64_t need = sizeof *r + KX_D8((uint64_t)r->namelen) + KX_D8((uint64_t)r->ctllen) + r->len;
		if (there > KX_DGRAM_TX_SIZE || there % sizeof *r || r->size % sizeof *r || r->size < sizeof *r ||
		    r->size > there || off + r->size > KX_DGRAM_TX_SIZE ||
		    (r->fd != -1 && (need > r->size || r->namelen > KX_DGRAM_NAME || r->ctllen > KX_DGRAM_CTL_MAX ||
				     r->len > KX_DGRAM_SEND_MAX)))
			pvm_panic("LibOS: the queue of datagrams is broken");
		*p = rec + sizeof *r;
		if (r->fd != -1)
			return true;
		*at += r->size;
	}
}

/* Send all that is queued now, in the order of the sends. What comes meanwhile waits: it might never end. */
static void flush(void)
{
	static struct burst b;
	uint64_t at[KX_DGRAM_CTXS], end[KX_DGRAM_CTXS];
	for (int i = 0; i < nr_ctxs; i++) {
		at[i] = ctxs[i].tail;
		end[i] = ctxs[i].index >= 0 ? __atomic_load_n(&ctxs[i].g->head, __ATOMIC_ACQUIRE) : at[i];
	}
	for (;;) {
		int first = -1;
		struct kx_dsend r, best = { 0 };
		const uint8_t *p, *best_p = NULL;
		for (int i = 0; i < nr_ctxs; i++)
			if (ctxs[i].index >= 0 && ring_next(&ctxs[i], &at[i], end[i], &r, &p) &&
			    (first < 0 || (int64_t)(r.ticket - best.ticket) < 0)) {
				first = i;
				best = r;
				best_p = p;
			}
		if (first < 0)
			break;
		burst_add(&b, &best, best_p);
		at[first] += best.size;
	}
	burst_send(&b);
	for (int i = 0; i < nr_ctxs; i++)
		if (ctxs[i].index >= 0 && at[i] != ctxs[i].tail)
			ctx_went(&ctxs[i], (uint32_t)(at[i] - ctxs[i].tail));
}

/* ---- which sockets -------------------------------------------------------------------------------------------------- */

static void learn_port(int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof ss;
	struct dgram_fd *f = &dgram_fds[fd];
	if (f->port || HC6(SYS_getsockname, fd, &ss, &len, 0, 0, 0))
		return;
	f->port = ((struct sockaddr_in *)&ss)->sin_port;
	if (f->port)
		ports[f->port]++;
}

static bool is_udp(int fd)
{
	if (sock_int(fd, SO_TYPE) != SOCK_DGRAM || sock_int(fd, SO_PROTOCOL) != IPPROTO_UDP)
		return false;
	int domain = sock_int(fd, SO_DOMAIN);
	return domain == AF_INET || domain == AF_INET6;
}

static void classify(int fd)
{
	struct dgram_fd *f = &dgram_fds[fd];
	noted = true;
	*f = (struct dgram_fd){ .kind = is_udp(fd) ? DG_UDP : DG_OTHER };
	if (f->kind != DG_UDP)
		return;
	__atomic_add_fetch(&nr_udp, 1, __ATOMIC_RELAXED);
	learn_port(fd);
}

static void reg_drop(int i) { dgram_regs[i] = dgram_regs[--dgram_nr_regs]; }

/* What the LibOS is told of registrations: the one that there is, if it is a plain one. */
static void reg_publish(struct dgram_slot *s)
{
	struct kx_dsock *g = dgram_sock(s);
	int n = 0;
	g->epoll = -1;
	for (int i = 0; i < dgram_nr_regs; i++) {
		const struct dgram_reg *e = &dgram_regs[i];
		if (dgram_at(e->fd) != s)
			continue;
		g->events = e->events;
		g->data = e->data;
		__atomic_store_n(&g->epoll, n++ ? -1 : e->epoll, __ATOMIC_SEQ_CST);
	}
}

static void forget(int fd)
{
	struct dgram_fd *f = fd >= 0 && fd < KX_DGRAM_FDS ? &dgram_fds[fd] : NULL;
	if (!f)
		return;
	struct dgram_slot *s = dgram_at(fd);
	if (mapped)
		__atomic_store_n(&dgram_shared()->sock_of[fd], 0, __ATOMIC_SEQ_CST);
	if (f->port)
		ports[f->port]--;
	if (f->kind == DG_UDP)
		__atomic_sub_fetch(&nr_udp, 1, __ATOMIC_RELAXED);
	*f = (struct dgram_fd){ 0 };
	if (s && --s->nr_fds == 0) {
		dgram_sock(s)->epoll = -1;
		__atomic_store_n(&dgram_sock(s)->rx, KX_DRX_WORD(++s->word, 0), __ATOMIC_SEQ_CST);
		s->gen++;
		nr_slots--;
	}
	for (int i = 0; i < dgram_nr_regs;)
		if (dgram_regs[i].fd == fd || dgram_regs[i].epoll == fd)
			reg_drop(i);
		else
			i++;
	for (int i = 0; i < nr_nested; i++)
		if (nested[i] == fd)
			nested[i--] = nested[--nr_nested];
	for (int i = 0; nr_slots && i < KX_DGRAM_SOCKS; i++)
		if (dgram_slots[i].nr_fds && dgram_sock(&dgram_slots[i])->epoll == fd)
			reg_publish(&dgram_slots[i]);
}

static void forget_range(unsigned first, unsigned last)
{
	for (unsigned fd = first; fd <= last && fd < KX_DGRAM_FDS; fd++)
		if (dgram_fds[fd].kind || dgram_nr_regs)
			forget((int)fd);
}

static void make_plain(int fd)
{
	struct dgram_slot *s = dgram_at(fd);
	if (fd < 0 || fd >= KX_DGRAM_FDS)
		return;
	noted = dgram_fds[fd].plain = true;
	if (!s)
		return;
	s->plain = s->nosend = true;
	dgram_set_flag(s, KX_DS_SEND, false);
	__atomic_and_fetch(&dgram_sock(s)->rx, ~KX_DRX_EMPTY, __ATOMIC_SEQ_CST);
}

static void slot_open(struct dgram_slot *s, int fd)
{
	s->nr_fds++;
	dgram_fds[fd].slot = (uint8_t)(s - dgram_slots + 1);
	__atomic_store_n(&dgram_shared()->sock_of[fd], dgram_fds[fd].slot, __ATOMIC_SEQ_CST);
}

/* A descriptor that was not made here may be another one of a socket that is known. False: it has others that are not. */
static bool find_others(int fd, ino_t ino)
{
	struct stat st;
	for (int i = 0; i < KX_DGRAM_SOCKS; i++)
		if (dgram_slots[i].nr_fds && dgram_slots[i].ino == ino) {
			slot_open(&dgram_slots[i], fd);
			return true;
		}
	bool alone = true;
	for (int other = 0; other < FD_SCAN && other < (int)pvm.fd_limit; other++)
		if (other != fd && !fstat(other, &st) && st.st_ino == ino && S_ISSOCK(st.st_mode)) {
			make_plain(other);
			alone = false;
		}
	return alone;
}

static bool map_region(void)
{
	if (mapped)
		return true;
	mapped = !gmem_sys_open(KX_DGRAM_BASE);
	return mapped;
}

static struct dgram_slot *activate(int fd)
{
	struct dgram_fd *f = &dgram_fds[fd];
	struct dgram_slot *s = NULL;
	struct sockaddr_storage ss;
	socklen_t len = sizeof ss;
	struct stat st;
	for (int i = 0; i < KX_DGRAM_SOCKS && !s; i++)
		if (!dgram_slots[i].nr_fds)
			s = &dgram_slots[i];
	if (!s || !map_region() || fstat(fd, &st) || !batch_flusher_start() ||
	    gmem_sys_open(KX_DGRAM_BASE + KX_DGRAM_BUF + (uint64_t)(s - dgram_slots) * KX_DGRAM_BUF_SIZE))
		return NULL;
	if (!f->born && !find_others(fd, st.st_ino)) {
		f->plain = true;
		return NULL;
	}
	if (f->slot)
		return dgram_at(fd);
	*s = (struct dgram_slot){ .gen = s->gen + 1,
				  .word = s->word,
				  .ino = st.st_ino,
				  .reader = -1,
				  .held = f->held,
				  .passed = f->passed || !f->born };
	*dgram_sock(s) = (struct kx_dsock){ .rx = KX_DRX_WORD(++s->word, 0), .epoll = -1, .gen = s->gen };
	memset(dgram_buffer(s) + KX_DGRAM_PEERS, 0, KX_DGRAM_PEERS_MAX * sizeof(struct kx_dpeer));
	dgram_set_flag(s, KX_DS_CONNECTED, !HC6(SYS_getpeername, fd, &ss, &len, 0, 0, 0));
	nr_slots++;
	slot_open(s, fd);
	reg_publish(s);
	pvm.shared->dgram = 1;
	return s;
}

/* If fd is one, which a call tells that can do nothing. */
static void epoll_in_epoll(int outer, int fd)
{
	if (HC6(SYS_epoll_ctl, fd, EPOLL_CTL_DEL, outer, 0, 0, 0) != -ENOENT)
		return;
	for (int i = 0; i < dgram_nr_regs; i++)
		if (dgram_regs[i].epoll == fd)
			make_plain(dgram_regs[i].fd);
	if (nr_nested < (int)(sizeof nested / sizeof nested[0]))
		nested[nr_nested++] = fd;
}

static void registered(const struct hcall *c)
{
	int epoll = (int)c->arg[0], op = (int)c->arg[1], fd = (int)c->arg[2];
	struct epoll_event ev;
	if (fd < 0 || fd >= KX_DGRAM_FDS)
		return;
	if (dgram_fds[fd].kind == DG_UNKNOWN)
		classify(fd);
	if (dgram_fds[fd].kind != DG_UDP) {
		if (op == EPOLL_CTL_ADD)
			epoll_in_epoll(epoll, fd);
		return;
	}
	for (int i = 0; i < dgram_nr_regs; i++)
		if (dgram_regs[i].fd == fd && dgram_regs[i].epoll == epoll) {
			reg_drop(i);
			break;
		}
	bool plain = false;
	for (int i = 0; i < nr_nested; i++)
		plain |= nested[i] == epoll;
	if (op != EPOLL_CTL_DEL && !guest_read(&ev, c->arg[3], sizeof ev)) {
		plain |= dgram_nr_regs == DGRAM_REGS || ev.events & (EPOLLONESHOT | EPOLLEXCLUSIVE);
		if (dgram_nr_regs < DGRAM_REGS)
			dgram_regs[dgram_nr_regs++] = (struct dgram_reg){ fd, epoll, ev.events, ev.data.u64 };
	}
	if (plain)
		make_plain(fd);
	struct dgram_slot *s = dgram_at(fd);
	if (s) {
		s->fresh = true;
		reg_publish(s);
	}
}

static void duplicated(int from, int to)
{
	if (from < 0 || from == to)
		return;
	forget(to);
	for (int i = 0; i < dgram_nr_regs; i++) /* an epoll of two numbers */
		if (dgram_regs[i].epoll == from)
			make_plain(dgram_regs[i].fd);
	if (from >= KX_DGRAM_FDS || dgram_fds[from].kind != DG_UDP)
		return;
	if (to >= KX_DGRAM_FDS) {
		make_plain(from);
		return;
	}
	struct dgram_slot *s = dgram_at(from);
	if (!s)
		make_plain(from);
	dgram_fds[to] = dgram_fds[from];
	dgram_fds[to].slot = 0;
	__atomic_add_fetch(&nr_udp, 1, __ATOMIC_RELAXED);
	if (dgram_fds[to].port)
		ports[dgram_fds[to].port]++;
	if (s)
		slot_open(s, to);
}

static void made(int fd, bool udp)
{
	if (fd >= KX_DGRAM_FDS)
		return;
	if (dgram_fds[fd].kind == DG_UDP) /* it was closed in a way that nobody saw */
		forget(fd);
	noted = true;
	dgram_fds[fd] = (struct dgram_fd){ .kind = udp ? DG_UDP : DG_OTHER, .born = true };
	if (udp)
		__atomic_add_fetch(&nr_udp, 1, __ATOMIC_RELAXED);
}

/* ---- contexts ------------------------------------------------------------------------------------------------------- */

static struct dgram_ctx *ctx_of(const struct thread *t)
{
	for (int i = 0; i < nr_ctxs; i++)
		if (ctxs[i].index == t->index)
			return &ctxs[i];
	return NULL;
}

static void ctx_make(const struct thread *t)
{
	int i = 0;
	if (t->vcpu_fd < 0 || ctx_of(t)) /* the first: the service thread */
		return;
	while (i < nr_ctxs && ctxs[i].index >= 0)
		i++;
	if (i == KX_DGRAM_CTXS)
		return;
	uint64_t gva = KX_DGRAM_BASE + KX_DGRAM_CTX + (uint64_t)i * KX_DGRAM_CTX_SIZE;
	if (gmem_sys_open(gva))
		return;
	ctxs[i] = (struct dgram_ctx){ .index = t->index, .g = gva_ptr(gva) };
	*ctxs[i].g = (struct kx_dctx){ 0 };
	if (i == nr_ctxs)
		nr_ctxs++;
	__atomic_store_n(&dgram_shared()->ctx_of[t->index], (uint8_t)(i + 1), __ATOMIC_SEQ_CST);
}

static void ctx_end(const struct thread *t)
{
	struct dgram_ctx *x = ctx_of(t);
	if (!x)
		return;
	dgram_shared()->ctx_of[t->index] = 0;
	x->index = -1;
}

/* ---- calls ------------------------------------------------------------------------------------------------------------ */

static bool is_inner(uint64_t nr) { return nr >= HC_FIRST && nr <= HC_LAST; }

static bool is_send(uint64_t nr)
{
	return nr == SYS_write || nr == SYS_writev || nr == SYS_sendto || nr == SYS_sendmsg || nr == SYS_sendmmsg;
}

static bool is_maker(uint64_t nr)
{
	return nr == SYS_socket || nr == SYS_accept || nr == SYS_accept4 || nr == SYS_epoll_ctl;
}

/* Nothing here concerns it. */
static bool passes(const struct hcall *c)
{
	return is_vfork_child() || is_inner(c->nr) ||
	       (!__atomic_load_n(&nr_udp, __ATOMIC_RELAXED) && !is_maker(c->nr) &&
		!(c->nr == SYS_recvfrom || c->nr == SYS_recvmsg || c->nr == SYS_recvmmsg));
}

/* Not a recvmmsg(2) that takes some and sleeps for the rest: it can't go back. */
bool dgram_may_serve(const struct hcall *c)
{
	if (!pvm.shared->dgram)
		return true;
	return !dgram_is_wait(c->nr) && (c->nr != SYS_recvmmsg || (int)c->arg[3] & MSG_WAITFORONE || dgram_nowait(c));
}

/* A receive by fd: the socket of ours that it is, or becomes. */
static struct dgram_slot *receiver(const struct hcall *c, int fd)
{
	if (fd < 0 || fd >= KX_DGRAM_FDS)
		return NULL;
	struct dgram_fd *f = &dgram_fds[fd];
	if (f->kind == DG_UNKNOWN && c->nr != SYS_read && c->nr != SYS_readv)
		classify(fd);
	if (f->kind != DG_UDP || (f->plain && !f->slot))
		return NULL;
	if (!f->slot && (++f->count < RECEIVES_MIN || !activate(fd))) {
		if (f->count >= RECEIVES_MIN)
			f->count = RECEIVES_MIN - 1;
		return NULL;
	}
	ctx_make(c->t);
	dgram_reader(dgram_at(fd), c);
	return dgram_at(fd);
}

/* Errors and lengths that the program is to be told of. */
static bool told(struct hcall *c, struct dgram_slot *s, int64_t *r)
{
	struct kx_dgrec rec;
	int v;
	if (c->nr == SYS_ioctl && (uint32_t)c->arg[1] == FIONREAD && dgram_has(s)) {
		memcpy(&rec, dgram_buffer(s) + KX_DRX_POS(dgram_sock(s)->rx) % KX_DGRAM_BUF_SIZE, sizeof rec);
		v = (int)rec.len;
		*r = guest_write(c->arg[2], &v, sizeof v);
		return true;
	}
	if (!batch_error_due(c, is_send(c->nr), &s->err, r))
		return false;
	dgram_set_flag(s, KX_DS_ERR, false);
	return true;
}

static void changes(const struct hcall *c, int fd)
{
	struct dgram_slot *s = dgram_at(fd);
	switch (c->nr) {
	case SYS_close:
		forget(fd);
		break;
	case SYS_shutdown:
		make_plain(fd);
		break;
	case SYS_setsockopt:
		if (s)
			dgram_sock(s)->credit = 0;
		if (c->arg[1] == IPPROTO_UDP || (c->arg[1] == SOL_SOCKET && c->arg[2] == DG_SO_PEEK_OFF))
			make_plain(fd);
		break;
	}
}

/* Without the lock. What it meets is the next call's. */
static void receive_rest(struct hcall *c, int64_t *r)
{
	int fd = (int)c->arg[0], err = 0;
	*r = dgram_receive_rest(c, *r, &err);
	if (!err)
		return;
	pthread_mutex_lock(&dgram_lock);
	if (dgram_at(fd))
		dgram_keep_error(dgram_at(fd), err);
	pthread_mutex_unlock(&dgram_lock);
}

bool dgram_enter(struct hcall *c, int64_t *r)
{
	bool done = false, many = false, waits = false;
	int fd = (int)c->arg[0];
	if (passes(c))
		return false;
	pthread_mutex_lock(&dgram_lock);
	if (mapped) {
		struct dgram_ctx *x = ctx_of(c->t);
		__atomic_add_fetch(&dgram_shared()->calls, 1, __ATOMIC_SEQ_CST);
		if (x)
			x->in_guest = false;
		flush();
	}
	bool ours = fd >= 0 && fd < KX_DGRAM_FDS && dgram_fds[fd].kind == DG_UDP;
	/* The LibOS may have answered all its receives; or others make them. */
	if (ours && dgram_at(fd) && is_send(c->nr))
		ctx_make(c->t);
	if (dgram_is_receive(c->nr)) {
		struct dgram_slot *s = receiver(c, fd);
		done = s && dgram_receive(c, s, r, &many);
	} else if (dgram_is_wait(c->nr)) {
		waits = nr_slots != 0;
	} else if (ours && dgram_at(fd) && told(c, dgram_at(fd), r)) {
		done = true;
	} else if (ours || c->nr == SYS_close) {
		changes(c, fd);
	} else if (hcall_closes_range(c)) {
		forget_range((unsigned)c->arg[0], (unsigned)c->arg[1]);
	} else if (c->nr == SYS_exit) {
		ctx_end(c->t);
	}
	pthread_mutex_unlock(&dgram_lock);
	if (done && many)
		receive_rest(c, r);
	return done || (waits && dgram_wait(c, r));
}

static void note_result(struct hcall *c, int64_t r)
{
	int fd = (int)c->arg[0];
	bool ours = fd >= 0 && fd < KX_DGRAM_FDS && dgram_fds[fd].kind == DG_UDP;
	struct dgram_slot *s = dgram_at(fd);
	struct sockaddr_storage ss;
	socklen_t len = sizeof ss;
	switch (c->nr) {
	case SYS_socket:
		if (r >= 0)
			made((int)r, (c->arg[0] == AF_INET || c->arg[0] == AF_INET6) &&
					     (c->arg[1] & 0xf) == SOCK_DGRAM &&
					     (!c->arg[2] || c->arg[2] == IPPROTO_UDP));
		return;
	case SYS_accept:
	case SYS_accept4:
		if (r >= 0)
			made((int)r, false);
		return;
	case SYS_dup:
	case SYS_dup2:
	case SYS_dup3:
		if (r >= 0)
			duplicated(fd, (int)r);
		return;
	case SYS_fcntl:
		if (r >= 0 && ((int)c->arg[1] == F_DUPFD || (int)c->arg[1] == F_DUPFD_CLOEXEC))
			duplicated(fd, (int)r);
		/* fall through */
	case SYS_ioctl:
		if (s)
			dgram_set_flag(s, KX_DS_NONBLOCK, sock_nonblocking(fd));
		return;
	case SYS_epoll_ctl:
		if (r == 0)
			registered(c);
		return;
	case SYS_connect:
		if (s) {
			dgram_set_flag(s, KX_DS_CONNECTED, !HC6(SYS_getpeername, fd, &ss, &len, 0, 0, 0));
			dgram_set_flag(s, KX_DS_HEARD, false);
		}
		/* fall through */
	case SYS_bind:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_sendmmsg:
		if (ours)
			learn_port(fd);
		return;
	}
	/* It has slept, or missed what came at that moment. */
	if (dgram_is_receive(c->nr) && s && !s->plain && r >= 0 && !dgram_has(s)) {
		uint32_t n = dgram_window(s, 1, dgram_nowait(c)) - 1;
		dgram_sock(s)->attempts++;
		dgram_note_sender(c, s, r);
		dgram_fetch(s, fd, n);
		s->fresh = dgram_has(s);
	}
}

void dgram_leave(struct hcall *c, int64_t r)
{
	if (passes(c))
		return;
	if (nr_slots && r > 0 && dgram_is_wait(c->nr))
		dgram_waited(c, r);
	pthread_mutex_lock(&dgram_lock);
	note_result(c, r);
	struct dgram_ctx *x = mapped ? ctx_of(c->t) : NULL;
	if (x) {
		x->in_guest = true;
		flusher_due();
	}
	pthread_mutex_unlock(&dgram_lock);
}

bool dgram_tick(void)
{
	bool busy = false, late = false;
	if (!mapped)
		return false;
	pthread_mutex_lock(&dgram_lock);
	for (int i = 0; i < nr_ctxs; i++) {
		struct dgram_ctx *x = &ctxs[i];
		if (x->index < 0 || !x->in_guest)
			continue;
		busy = true;
		late |= x->g->head != x->tail;
	}
	if (late)
		flush();
	pthread_mutex_unlock(&dgram_lock);
	return busy;
}

/* ---- processes ---------------------------------------------------------------------------------------------------------- */

void dgram_share(int fd)
{
	if (is_vfork_child() || fd < 0 || fd >= KX_DGRAM_FDS)
		return;
	pthread_mutex_lock(&dgram_lock);
	noted = dgram_fds[fd].passed = true;
	if (dgram_at(fd))
		dgram_at(fd)->passed = true;
	pthread_mutex_unlock(&dgram_lock);
}

void dgram_fork_lock(void) { pthread_mutex_lock(&dgram_lock); }
void dgram_fork_unlock(void) { pthread_mutex_unlock(&dgram_lock); }

void dgram_fork_share(void)
{
	for (int fd = 0; nr_udp && fd < KX_DGRAM_FDS; fd++)
		dgram_fds[fd].held = true;
	for (int i = 0; nr_slots && i < KX_DGRAM_SOCKS; i++)
		dgram_slots[i].held = true;
	if (mapped)
		flush();
}

void dgram_alone_again(void)
{
	pthread_mutex_lock(&dgram_lock);
	for (int fd = 0; fd < KX_DGRAM_FDS; fd++)
		dgram_fds[fd].held = false;
	for (int i = 0; i < KX_DGRAM_SOCKS; i++)
		dgram_slots[i].held = false;
	pthread_mutex_unlock(&dgram_lock);
}

/* What lies in buffers stays the parent's. All that is known of descriptors may be of another time (spare.h). */
void dgram_fork_child(void)
{
	if (mapped) {
		memset(dgram_shared()->ctx_of, 0, sizeof dgram_shared()->ctx_of);
		memset(dgram_shared()->sock_of, 0, sizeof dgram_shared()->sock_of);
		memset(dgram_sock(dgram_slots), 0, KX_DGRAM_SOCKS * sizeof(struct kx_dsock));
	}
	pvm.shared->dgram = 0;
	if (noted) { /* else it would be a fault for each page */
		memset(dgram_fds, 0, sizeof dgram_fds);
		memset(dgram_slots, 0, sizeof dgram_slots);
		memset(ports, 0, sizeof ports);
	}
	noted = false;
	nr_ctxs = nr_slots = nr_udp = nr_nested = dgram_nr_regs = 0;
}

void dgram_end(void)
{
	struct timespec soon;
	if (!mapped || my_pid() != pvm.pid)
		return;
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_sec += 1;
	if (pthread_mutex_timedlock(&dgram_lock, &soon))
		return;
	flush();
	pthread_mutex_unlock(&dgram_lock);
}
