/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Datagrams without an exit: out of what the monitor has received ahead, and replies into the queue that it sends at the
 * next exit (monitor/core/dgram.c). A reply goes to whoever has sent a datagram of late, by the socket that it
 * came by: of such a send it is known that it can be made. All else is the monitor's.
 */
#include "libos.h"
#define KX_DG_READ user_read
#define KX_DG_WRITE user_write
#include "../../abi/kx_dgram_take.h"

#define NR_read 0
#define NR_write 1
#define NR_poll 7
#define NR_readv 19
#define NR_writev 20
#define NR_sendto 44
#define NR_recvfrom 45
#define NR_sendmsg 46
#define NR_recvmsg 47
#define NR_epoll_wait 232
#define NR_ppoll 271
#define NR_epoll_pwait 281
#define NR_recvmmsg 299
#define NR_sendmmsg 307
#define MSG_CONFIRM 0x800u
#define MSG_WAITALL 0x100u /* of no effect */
#define RECEIVE_FLAGS \
	(KX_MSG_PEEK | KX_MSG_TRUNC | KX_MSG_DONTWAIT | MSG_WAITALL | KX_MSG_NOSIGNAL | KX_MSG_CMSG_CLOEXEC)
#define SEND_FLAGS (KX_MSG_DONTWAIT | KX_MSG_NOSIGNAL | MSG_CONFIRM)
#define IOV_FEW 16
#define POLL_FEW 32
#define MMSG_MAX 1024
#define EV_IN 1u             /* POLLIN, EPOLLIN */
#define EV_READ (EV_IN | 64) /* and RDNORM */
#define EV_WRITE (4u | 256)  /* POLLOUT and WRNORM */
#define EV_ET (1u << 31)
#define RECORD sizeof(struct kx_dsend)

#define DG ((struct kx_dgram *)KX_DGRAM_BASE)

static struct kx_dsock *sock_at(uint64_t fd)
{
	uint32_t n = (uint32_t)fd < KX_DGRAM_FDS ? __atomic_load_n(&DG->sock_of[(uint32_t)fd], __ATOMIC_ACQUIRE) : 0;
	return n && n <= KX_DGRAM_SOCKS ? (struct kx_dsock *)(KX_DGRAM_BASE + KX_DGRAM_SOCK) + n - 1 : NULL;
}

static uint8_t *buffer_of(const struct kx_dsock *s)
{
	uint64_t n = (uint64_t)(s - (struct kx_dsock *)(KX_DGRAM_BASE + KX_DGRAM_SOCK));
	return (uint8_t *)KX_DGRAM_BASE + KX_DGRAM_BUF + n * KX_DGRAM_BUF_SIZE;
}

static struct kx_dctx *ctx_of(const struct kx_thread *t)
{
	uint32_t n = DG->ctx_of[t->index % KX_AREA_MAX];
	return n && n <= KX_DGRAM_CTXS
		       ? (struct kx_dctx *)(KX_DGRAM_BASE + KX_DGRAM_CTX + (uint64_t)(n - 1) * KX_DGRAM_CTX_SIZE)
		       : NULL;
}

static bool iov_get(struct kx_dvec *v, uint64_t iov, uint64_t n)
{
	if (n > IOV_FEW || user_read(v, iov, n * sizeof *v))
		return false;
	for (uint64_t i = 0; i < n; i++)
		if (v[i].len > 1 << 30)
			return false;
	return true;
}

/* ---- receiving ------------------------------------------------------------------------------------------------- */

/* The datagram at word w, its head copied to *r. NULL: none is there. */
static const uint8_t *record_at(const struct kx_dsock *s, uint64_t w, struct kx_dgrec *r)
{
	uint32_t pos = KX_DRX_POS(w), end = KX_DRX_END(w);
	if (pos >= end || end > KX_DGRAM_BUF_SIZE || end - pos < sizeof *r)
		return NULL;
	const uint8_t *p = buffer_of(s) + pos;
	__builtin_memcpy(r, p, sizeof *r);
	return kx_dgrec_ok(r, end - pos) ? p : NULL;
}

/* The next datagram of s. False: none is here. */
static bool take(struct kx_dsock *s, uint32_t flags, const struct kx_dto *to, struct kx_dgrec *r, struct kx_dgot *got)
{
	for (;;) {
		uint64_t w = __atomic_load_n(&s->rx, __ATOMIC_ACQUIRE);
		const uint8_t *p = record_at(s, w, r);
		if (!p)
			return false;
		kx_dgram_deliver(r, p, to, flags, got);
		uint64_t next = flags & KX_MSG_PEEK ? w : w + r->size;
		if (__atomic_compare_exchange_n(&s->rx, &w, next, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			break;
	}
	if (!(flags & KX_MSG_PEEK))
		s->attempts++;
	return true;
}

static bool waits_not(const struct kx_dsock *s, uint32_t flags)
{
	return flags & KX_MSG_DONTWAIT || s->flags & KX_DS_NONBLOCK;
}

/* Once only: whoever asks again and again without waiting must see what has come. */
static bool nothing_there(struct kx_dsock *s, uint32_t flags, int64_t *ret)
{
	uint64_t w = __atomic_load_n(&s->rx, __ATOMIC_ACQUIRE);
	if (!(w & KX_DRX_EMPTY) || KX_DRX_POS(w) != KX_DRX_END(w) || !waits_not(s, flags) ||
	    s->calls != __atomic_load_n(&DG->calls, __ATOMIC_ACQUIRE))
		return false;
	s->attempts++;
	*ret = -KX_EAGAIN;
	return __atomic_compare_exchange_n(&s->rx, &w, w & ~KX_DRX_EMPTY, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static bool receive(struct kx_dsock *s, struct kx_frame *f, const struct kx_dvec *v, uint64_t n, int64_t *ret)
{
	bool from = f->orig_rax == NR_recvfrom;
	struct kx_dto to = { .v = v, .n = n };
	uint32_t flags = from ? (uint32_t)f->r10 : 0;
	struct kx_dgrec r;
	struct kx_dgot got;
	if (flags & ~RECEIVE_FLAGS)
		return false;
	if (!take(s, flags, &to, &r, &got))
		return nothing_there(s, flags, ret);
	*ret = from && f->r8 ? kx_dgram_from(&r, f->r8, f->r9, &got) : got.r;
	return true;
}

/*
 * A message into the header at gva; with w the one at *w, which moves on, while the socket's word does not. 1: done, *ret is
 * what recvmsg says; 0: none is here; -1: the monitor's.
 */
static int receive_message(struct kx_dsock *s, uint64_t gva, uint32_t flags, uint64_t *w, int64_t *ret)
{
	struct kx_dvec v[IOV_FEW];
	struct kx_dmsghdr m;
	struct kx_dgrec r;
	struct kx_dgot got;
	if (user_read(&m, gva, sizeof m) || (m.name && m.namelen < 0) || !iov_get(v, m.iov, m.iovlen))
		return -1;
	struct kx_dto to = { v, m.iovlen, m.control, m.controllen };
	const uint8_t *p = w ? record_at(s, *w, &r) : NULL;
	if (w ? !p : !take(s, flags, &to, &r, &got))
		return 0;
	if (p) {
		kx_dgram_deliver(&r, p, &to, flags, &got);
		*w += r.size;
	}
	*ret = kx_dgram_header(&r, &m, gva, &got);
	return 1;
}

static bool receive_one(struct kx_dsock *s, struct kx_frame *f, int64_t *ret)
{
	uint32_t flags = (uint32_t)f->rdx;
	if (flags & ~RECEIVE_FLAGS)
		return false;
	int done = receive_message(s, f->rsi, flags, NULL, ret);
	return done > 0 || (!done && nothing_there(s, flags, ret));
}

/* Are those all here that a call for n gives? Either n are, or nothing was left behind these and no call began since. */
static bool all_here(const struct kx_dsock *s, uint32_t n)
{
	uint64_t w = __atomic_load_n(&s->rx, __ATOMIC_ACQUIRE);
	uint32_t pos = KX_DRX_POS(w), end = KX_DRX_END(w);
	struct kx_dgrec r;
	if (w & KX_DRX_EMPTY && s->calls == __atomic_load_n(&DG->calls, __ATOMIC_ACQUIRE))
		return true;
	for (; n; n--, pos += r.size) {
		if (pos >= end || end > KX_DGRAM_BUF_SIZE || end - pos < sizeof r)
			return false;
		__builtin_memcpy(&r, buffer_of(s) + pos, sizeof r);
		if (!kx_dgrec_ok(&r, end - pos))
			return false;
	}
	return true;
}

/*
 * As many as there are. Where the call would wait for the rest, or more may have come, the monitor makes it; so it does where a
 * message can't be given, which is an error of this call's or the next one's.
 */
static bool receive_many(struct kx_dsock *s, struct kx_frame *f, int64_t *ret)
{
	uint32_t n = (uint32_t)f->rdx, flags = (uint32_t)f->r10, done = 0;
	uint64_t w = __atomic_load_n(&s->rx, __ATOMIC_ACQUIRE), at = w;
	int64_t r = 0;
	int is = 0;
	if (flags & ~(RECEIVE_FLAGS | KX_MSG_WAITFORONE) || flags & KX_MSG_PEEK || f->r8 ||
	    !(waits_not(s, flags) || flags & KX_MSG_WAITFORONE) || !all_here(s, n))
		return false;
	for (; done < n; done++) {
		uint64_t gva = f->rsi + (uint64_t)done * KX_DMMSG_SIZE;
		if ((is = receive_message(s, gva, flags & RECEIVE_FLAGS, &at, &r)) <= 0)
			break;
		uint32_t len = (uint32_t)r;
		if (r < 0 || user_write(gva + KX_DMMSG_LEN, &len, sizeof len))
			return false;
	}
	if (is < 0 || !__atomic_compare_exchange_n(&s->rx, &w, at, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	s->attempts += done + (done < n); /* it would have taken more */
	*ret = (int64_t)done;
	return done || (n && nothing_there(s, flags, ret));
}

/* ---- sending --------------------------------------------------------------------------------------------------- */

static bool same(const uint8_t *a, const uint8_t *b, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (a[i] != b[i])
			return false;
	return true;
}

/* Has one come from there of late? Without a name: from the peer? AF_INET is compared without what pads it. */
static bool is_reply(const struct kx_dsock *s, const uint8_t *name, uint32_t n)
{
	const struct kx_dpeer *p = (const struct kx_dpeer *)(buffer_of(s) + KX_DGRAM_PEERS);
	if (!n)
		return (s->flags & (KX_DS_CONNECTED | KX_DS_HEARD)) == (KX_DS_CONNECTED | KX_DS_HEARD);
	uint32_t family = name[0] | (uint32_t)name[1] << 8;
	if (!(family == 2 && n >= 16) && !(family == 10 && n == KX_DGRAM_NAME))
		return false;
	n = family == 2 ? 16 : n;
	p += kx_dgram_hash(name, n);
	return p->len == n && same(name, p->name, family == 2 ? 8 : n);
}

/* Source addresses (IP_PKTINFO, IPV6_PKTINFO) alone. */
static bool control_is_plain(const uint8_t *p, uint64_t n)
{
	struct {
		uint64_t len;
		int32_t level, type;
	} h;
	if (!n)
		return true;
	if (n < sizeof h)
		return false;
	__builtin_memcpy(&h, p, sizeof h);
	if (h.len > n || KX_D8(h.len) < n)
		return false;
	return (h.level == 0 && h.type == 8 && h.len == sizeof h + 12) ||
	       (h.level == 41 && h.type == 50 && h.len == sizeof h + 20);
}

struct out {
	uint64_t name, control;
	uint64_t namelen, controllen;
	struct kx_dvec v[IOV_FEW];
	uint64_t n;
};

/* Room for `size` bytes behind *head, which moves on. */
static struct kx_dsend *room_for(struct kx_dctx *c, uint64_t size, uint64_t *head)
{
	uint8_t *ring = (uint8_t *)c + KX_DGRAM_TX;
	uint64_t tail = __atomic_load_n(&c->tail, __ATOMIC_ACQUIRE), at = *head % KX_DGRAM_TX_SIZE;
	uint64_t fill = at + size > KX_DGRAM_TX_SIZE ? KX_DGRAM_TX_SIZE - at : 0;
	if (*head + fill + size - tail > KX_DGRAM_TX_SIZE)
		return NULL;
	*head += fill + size;
	struct kx_dsend *r = (struct kx_dsend *)(ring + at);
	if (!fill)
		return r;
	*r = (struct kx_dsend){ .fd = -1, .size = (uint32_t)fill };
	return (struct kx_dsend *)ring;
}

static bool take_credit(struct kx_dsock *s, uint32_t cost)
{
	uint32_t have = __atomic_load_n(&s->credit, __ATOMIC_ACQUIRE);
	return have >= cost &&
	       __atomic_compare_exchange_n(&s->credit, &have, have - cost, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* Write a record of o behind *head. False: it is not one to queue. Its length in *len. */
static bool enqueue(struct kx_dsock *s, struct kx_dctx *c, uint32_t fd, const struct out *o, uint32_t flags,
		    uint64_t *head, uint64_t *len)
{
	uint8_t name[32], ctl[KX_DGRAM_CTL_MAX];
	uint64_t total = 0;
	if (o->namelen > KX_DGRAM_NAME || o->controllen > sizeof ctl || (o->namelen && o->namelen < 16) ||
	    (o->namelen && user_read(name, o->name, o->namelen)) ||
	    (o->controllen && user_read(ctl, o->control, o->controllen)))
		return false;
	for (uint64_t i = 0; i < o->n; i++)
		total += o->v[i].len;
	if (!total || total > KX_DGRAM_SEND_MAX || !control_is_plain(ctl, o->controllen) ||
	    !is_reply(s, name, (uint32_t)o->namelen))
		return false;
	uint64_t named = KX_D8(o->namelen), told = KX_D8(o->controllen);
	uint64_t size = (RECORD + named + told + total + RECORD - 1) & ~(RECORD - 1);
	struct kx_dsend *r = room_for(c, size, head);
	if (!r || !take_credit(s, KX_DGRAM_COST((uint32_t)total)))
		return false;
	uint8_t *p = (uint8_t *)(r + 1);
	uaccess_copy(p, name, o->namelen); /* of any length: not string instructions for a few bytes */
	uaccess_copy(p + named, ctl, o->controllen);
	p += named + told;
	for (uint64_t i = 0; i < o->n; i++) {
		if (o->v[i].len && user_read(p, o->v[i].base, o->v[i].len))
			return false;
		p += o->v[i].len;
	}
	*r = (struct kx_dsend){ .fd = (int32_t)fd,
				.gen = s->gen,
				.len = (uint32_t)total,
				.flags = flags,
				.namelen = (uint16_t)o->namelen,
				.ctllen = (uint16_t)o->controllen,
				.size = (uint32_t)size };
	r->ticket = __atomic_fetch_add(&DG->ticket, 1, __ATOMIC_SEQ_CST);
	*len = total;
	return true;
}

static struct kx_dctx *may_send(struct kx_thread *t, const struct kx_dsock *s, uint32_t flags)
{
	return s->flags & KX_DS_SEND && !(flags & ~SEND_FLAGS) ? ctx_of(t) : NULL;
}

static bool send_out(struct kx_thread *t, struct kx_dsock *s, uint32_t fd, const struct out *o, uint32_t flags,
		     int64_t *ret)
{
	struct kx_dctx *c = may_send(t, s, flags);
	uint64_t head = c ? c->head : 0, len;
	if (!c || !enqueue(s, c, fd, o, flags, &head, &len))
		return false;
	__atomic_store_n(&c->head, head, __ATOMIC_SEQ_CST);
	*ret = (int64_t)len;
	return true;
}

static bool out_of_header(struct out *o, uint64_t gva)
{
	struct kx_dmsghdr m;
	if (user_read(&m, gva, sizeof m) || !iov_get(o->v, m.iov, m.iovlen) || m.namelen < 0)
		return false;
	o->n = m.iovlen;
	o->name = m.name;
	o->namelen = m.name ? (uint64_t)m.namelen : 0;
	o->control = m.control;
	o->controllen = m.controllen;
	return true;
}

/* All of them, or none. */
static bool send_many(struct kx_thread *t, struct kx_dsock *s, struct kx_frame *f, int64_t *ret)
{
	uint32_t n = (uint32_t)f->rdx, flags = (uint32_t)f->r10;
	struct kx_dctx *c = may_send(t, s, flags);
	uint64_t head = c ? c->head : 0, len;
	struct out o;
	if (!c || !n || n > MMSG_MAX)
		return false;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t gva = f->rsi + (uint64_t)i * KX_DMMSG_SIZE;
		if (!out_of_header(&o, gva) || !enqueue(s, c, (uint32_t)f->rdi, &o, flags, &head, &len))
			return false;
		uint32_t told = (uint32_t)len;
		if (user_write(gva + KX_DMMSG_LEN, &told, sizeof told))
			return false;
	}
	__atomic_store_n(&c->head, head, __ATOMIC_SEQ_CST);
	*ret = n;
	return true;
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

/*
 * A wait that has at least one answer here needs no look at the others: they were looked at when the buffer was filled,
 * and nobody could learn of anything since. But only where something was received since the last one: other
 * descriptors must have their turn.
 */
static bool has(const struct kx_dsock *s)
{
	uint64_t w = __atomic_load_n(&s->rx, __ATOMIC_ACQUIRE);
	return KX_DRX_POS(w) < KX_DRX_END(w);
}

/* Since all were looked at, and nothing but datagrams was ready, nobody could learn of anything. */
static bool nothing_new(void) { return DG->looked == __atomic_load_n(&DG->calls, __ATOMIC_ACQUIRE); }

/* A wait ends a turn: what was asked for in it says what is received ahead in the next. */
static void turn_ends(struct kx_dsock *s)
{
	if (!s->attempts)
		return;
	s->window = s->attempts;
	s->attempts = 0;
}

static bool wait_poll(struct kx_frame *f, int64_t *ret)
{
	struct {
		int32_t fd;
		uint16_t events, revents;
	} p[POLL_FEW];
	uint64_t n = (uint32_t)f->rsi;
	int64_t ready = 0;
	bool went_on = false;
	if (!n || n > POLL_FEW || !nothing_new() || user_read(p, f->rdi, n * sizeof p[0]))
		return false;
	for (uint64_t i = 0; i < n; i++) {
		struct kx_dsock *s = p[i].fd >= 0 ? sock_at((uint32_t)p[i].fd) : NULL;
		if (p[i].fd >= 0 && p[i].events & EV_WRITE)
			return false; /* ready, as a rule */
		p[i].revents = s && p[i].events & EV_READ && has(s) ? p[i].events & EV_READ : 0;
		ready += p[i].revents != 0;
		went_on |= s && s->attempts;
	}
	if (!ready || !went_on)
		return false;
	for (uint64_t i = 0; i < n; i++) {
		struct kx_dsock *s = p[i].fd >= 0 ? sock_at((uint32_t)p[i].fd) : NULL;
		if (s)
			turn_ends(s);
		if (user_write(f->rdi + i * sizeof p[0] + 6, &p[i].revents, sizeof p[i].revents))
			return false;
	}
	*ret = ready;
	return true;
}

static bool wait_epoll(struct kx_frame *f, int64_t *ret)
{
	int32_t max = (int32_t)f->rdx;
	int64_t n = 0;
	bool went_on = false;
	for (uint32_t i = 0; i < KX_DGRAM_SOCKS && !went_on && nothing_new(); i++) {
		const struct kx_dsock *s = (struct kx_dsock *)(KX_DGRAM_BASE + KX_DGRAM_SOCK) + i;
		went_on = s->epoll >= 0 && s->epoll == (int32_t)f->rdi && s->attempts;
	}
	for (uint32_t i = 0; went_on && i < KX_DGRAM_SOCKS && n < max; i++) {
		struct kx_dsock *s = (struct kx_dsock *)(KX_DGRAM_BASE + KX_DGRAM_SOCK) + i;
		if (s->epoll < 0 || s->epoll != (int32_t)f->rdi || s->events & (EV_ET | EV_WRITE) ||
		    !(s->events & EV_READ) || !has(s))
			continue;
		struct {
			uint32_t events;
			uint64_t data;
		} __attribute__((packed)) ev = { s->events & EV_READ, s->data };
		if (user_write(f->rsi + (uint64_t)n * sizeof ev, &ev, sizeof ev))
			return false;
		n++;
	}
	for (uint32_t i = 0; n && i < KX_DGRAM_SOCKS; i++) {
		struct kx_dsock *s = (struct kx_dsock *)(KX_DGRAM_BASE + KX_DGRAM_SOCK) + i;
		if (s->epoll == (int32_t)f->rdi)
			turn_ends(s);
	}
	*ret = n;
	return n > 0;
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static bool on_socket(struct kx_thread *t, struct kx_dsock *s, struct kx_frame *f, int64_t *ret)
{
	uint32_t fd = (uint32_t)f->rdi;
	struct kx_dvec v[IOV_FEW];
	struct out o; /* not all of it cleared: `v` is long */
	o.name = o.namelen = o.control = o.controllen = 0;
	if (__atomic_load_n(&s->flags, __ATOMIC_ACQUIRE) & KX_DS_ERR)
		return false;
	switch (f->orig_rax) {
	case NR_read:
	case NR_recvfrom:
		v[0] = (struct kx_dvec){ f->rsi, f->rdx };
		return f->rdx && f->rdx <= 1 << 30 && receive(s, f, v, 1, ret);
	case NR_readv:
		return f->rdx && iov_get(v, f->rsi, (uint32_t)f->rdx) && v[0].len &&
		       receive(s, f, v, (uint32_t)f->rdx, ret);
	case NR_recvmsg:
		return receive_one(s, f, ret);
	case NR_recvmmsg:
		return receive_many(s, f, ret);
	case NR_sendto:
		o.name = f->r8;
		o.namelen = f->r8 ? (uint32_t)f->r9 : 0;
		/* fall through */
	case NR_write:
		o.v[0] = (struct kx_dvec){ f->rsi, f->rdx };
		o.n = 1;
		return f->rdx <= 1 << 30 &&
		       send_out(t, s, fd, &o, f->orig_rax == NR_sendto ? (uint32_t)f->r10 : 0, ret);
	case NR_writev:
		o.n = (uint32_t)f->rdx;
		return iov_get(o.v, f->rsi, o.n) && send_out(t, s, fd, &o, 0, ret);
	case NR_sendmsg:
		return out_of_header(&o, f->rsi) && send_out(t, s, fd, &o, (uint32_t)f->rdx, ret);
	case NR_sendmmsg:
		return send_many(t, s, f, ret);
	}
	return false;
}

bool dgram_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret)
{
	struct kx_dsock *s;
	bool done = false;
	if (t->vfork)
		return false;
	switch (f->orig_rax) {
	case NR_read:
	case NR_write:
	case NR_readv:
	case NR_writev:
	case NR_sendto:
	case NR_recvfrom:
	case NR_sendmsg:
	case NR_recvmsg:
	case NR_recvmmsg:
	case NR_sendmmsg:
		done = (s = sock_at(f->rdi)) && on_socket(t, s, f, ret);
		break;
	case NR_poll:
		done = wait_poll(f, ret);
		break;
	case NR_ppoll:
		done = !f->r10 && wait_poll(f, ret);
		break;
	case NR_epoll_wait:
		done = wait_epoll(f, ret);
		break;
	case NR_epoll_pwait:
		done = !f->r10 && wait_epoll(f, ret);
		break;
	}
	if (done)
		SHARED->batched++;
	return done;
}

void dgram_flush(struct kx_thread *t)
{
	const struct kx_dctx *c = t->vfork ? NULL : ctx_of(t);
	__atomic_add_fetch(&DG->calls, 1, __ATOMIC_SEQ_CST);
	if (c && c->head != __atomic_load_n(&c->tail, __ATOMIC_ACQUIRE))
		hypercall(t, HC_batch_flush, 0, 0, 0, 0, 0, 0);
}
