/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads and writes of sockets without an exit: out of what epoll_wait fetched, and into the queue that the monitor
 * sends at the next exit. What may be answered here is told by the socket's word and credit; everything else, and all
 * that is odd, goes to the monitor, which settles the account with the kernel first (monitor/core/batch.c).
 */
#include "../../abi/kx_openahead.h"
#include "accept.h"
#include "numbers.h"
#include "seek.h"
#include "sigs.h"

#define NR_read 0
#define NR_write 1
#define NR_close 3
#define NR_lseek 8
#define NR_mmap 9
#define NR_munmap 11
#define NR_ioctl 16
#define NR_readv 19
#define NR_writev 20
#define NR_mremap 25
#define NR_sendfile 40
#define NR_accept 43
#define NR_sendto 44
#define NR_recvfrom 45
#define NR_sendmsg 46
#define NR_recvmsg 47
#define NR_shutdown 48
#define NR_getsockname 51
#define NR_getpeername 52
#define NR_setsockopt 54
#define NR_kill 62
#define NR_epoll_wait 232
#define NR_epoll_ctl 233
#define NR_epoll_pwait 281
#define NR_accept4 288
#define FIONBIO 0x5421u
#define SHUT_WR 1u
#define F_PEEK 2u
#define F_DONTWAIT 0x40u
#define F_NOSIGNAL 0x4000u
#define F_MORE 0x8000u
#define F_CMSG_CLOEXEC 0x40000000u
#define O_NONBLOCK 04000u
#define O_CLOEXEC 02000000u
#define IOV_FEW 64
#define RECORD sizeof(struct kx_brec)

struct vec {
	uint64_t base, len;
};

/* struct user_msghdr */
struct msghdr {
	uint64_t name;
	uint32_t namelen, pad;
	uint64_t iov, iovlen, control, controllen;
	uint32_t flags, pad2;
};

struct io {
	struct kx_bsock *s;
	struct kx_bctx *ctx;
	uint32_t fd, flags;
	uint32_t at, gen; /* *s is of descriptor `at`, where the monitor has it, and was of `gen` */
	uint64_t n;       /* of v */
	uint64_t total;
	struct vec v[IOV_FEW];
};

/* The socket behind fd; false: of this thread there is nothing in batches. */
static bool look(struct kx_thread *t, struct io *io, uint64_t fd, uint32_t *of)
{
	uint32_t ctx = BATCH->ctx_of[t->index % KX_AREA_MAX];
	io->fd = (uint32_t)fd;
	if (!ctx || ctx > KX_BATCH_CTXS || io->fd >= KX_BATCH_FDS || t->vfork)
		return false;
	io->ctx = (struct kx_bctx *)(KX_BATCH_BASE + KX_BATCH_CTX + (uint64_t)(ctx - 1) * 0x100000);
	*of = ctx;
	if (!accept_find(io->ctx, io->fd, &io->at))
		return false;
	io->s = &SOCKS[io->at];
	io->gen = io->s->gen;
	return true;
}

/* The same, if this thread may use it. */
static bool find(struct kx_thread *t, struct io *io, uint64_t fd)
{
	uint32_t ctx;
	return look(t, io, fd, &ctx) && __atomic_load_n(&io->s->owner, __ATOMIC_ACQUIRE) == ctx;
}

static bool one(struct io *io, uint64_t base, uint64_t len)
{
	io->n = 1;
	io->v[0] = (struct vec){ base, len };
	io->total = len;
	return len <= 1 << 30;
}

static bool many(struct io *io, uint64_t iov, uint64_t n)
{
	if (n > IOV_FEW || user_read(io->v, iov, n * sizeof io->v[0]))
		return false;
	io->n = n;
	io->total = 0;
	for (uint64_t i = 0; i < n; i++) {
		if (io->v[i].len > 1 << 30)
			return false;
		io->total += io->v[i].len;
	}
	return true;
}

/* ---- receiving ------------------------------------------------------------------------------------------------- */

static bool scatter(struct io *io, const uint8_t *src, uint64_t len)
{
	for (uint64_t i = 0; len && i < io->n; i++) {
		uint64_t part = io->v[i].len < len ? io->v[i].len : len;
		if (part && user_write(io->v[i].base, src, part))
			return false; /* the kernel finds out how much of it there is */
		src += part;
		len -= part;
	}
	return true;
}

/* Once only: whoever asks again and again without waiting must see what has come. */
static bool nothing_there(struct io *io, uint64_t w, int64_t *ret)
{
	if (!(w & KX_RX_EMPTY) || io->s->epoch != (uint32_t)io->ctx->exits || may_know(io->ctx))
		return false;
	*ret = -KX_EAGAIN;
	return __atomic_compare_exchange_n(&io->s->rx, &w, w & ~KX_RX_EMPTY, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static bool receive(struct io *io, int64_t *ret)
{
	uint64_t w = __atomic_load_n(&io->s->rx, __ATOMIC_ACQUIRE), len = io->total;
	uint32_t pos = KX_RX_POS(w), left = KX_RX_END(w) - pos;
	if (!(w & KX_RX_VALID) || !len || io->flags & ~(F_PEEK | F_DONTWAIT | F_NOSIGNAL | F_CMSG_CLOEXEC))
		return false;
	if (!left && w & KX_RX_EOF) {
		*ret = 0;
		return true;
	}
	if (!left)
		return nothing_there(io, w, ret);
	if (len > left) {
		if (!(w & KX_RX_SHORT))
			return false;
		len = left;
	}
	if (!scatter(io, (const uint8_t *)KX_BATCH_BASE + io->s->buf + pos, len))
		return false;
	*ret = len;
	return __atomic_compare_exchange_n(&io->s->rx, &w, io->flags & F_PEEK ? w : w + len, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_RELAXED);
}

/* ---- sending --------------------------------------------------------------------------------------------------- */

static bool gather(struct io *io, uint8_t *dst)
{
	for (uint64_t i = 0; i < io->n; i++) {
		if (io->v[i].len && user_read(dst, io->v[i].base, io->v[i].len))
			return false;
		dst += io->v[i].len;
	}
	return true;
}

static bool take_credit(struct kx_bsock *s, uint32_t cost)
{
	uint32_t have = __atomic_load_n(&s->credit, __ATOMIC_ACQUIRE);
	return have >= cost &&
	       __atomic_compare_exchange_n(&s->credit, &have, have - cost, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* Room for a record with len bytes, NULL: none. `*head`: where the ring ends then. */
static struct kx_brec *room_for(struct kx_bctx *c, uint64_t len, uint64_t *head)
{
	uint8_t *ring = (uint8_t *)c + KX_BATCH_TX;
	uint64_t tail = __atomic_load_n(&c->tail, __ATOMIC_ACQUIRE);
	uint64_t size = RECORD + ((len + RECORD - 1) & ~(RECORD - 1)), at = c->head % KX_BATCH_TX_SIZE;
	uint64_t fill = at + size > KX_BATCH_TX_SIZE ? KX_BATCH_TX_SIZE - at : 0;
	if (c->head + fill + size - tail > KX_BATCH_TX_SIZE)
		return NULL;
	*head = c->head + fill + size;
	struct kx_brec *r = (struct kx_brec *)(ring + at);
	if (!fill)
		return r;
	*r = (struct kx_brec){ .fd = -1, .len = (uint32_t)(fill - RECORD) };
	return (struct kx_brec *)ring;
}

/* Somebody may have told the program since this thread's last exit that a connection's other side is gone. */
static bool has_news(const struct io *io) { return io->ctx->news == io->ctx->exits; }

/* The same for one that sends `total`; NULL: the socket may not send so much, or the write may have to fail. */
static struct kx_brec *reserve(struct io *io, uint64_t len, uint64_t total, uint64_t *head)
{
	if (!total || (uint32_t)io->ctx->turn - io->s->turn > 1 || has_news(io))
		return NULL;
	struct kx_brec *r = room_for(io->ctx, len, head);
	return r && take_credit(io->s, KX_BATCH_COST((uint32_t)total)) ? r : NULL;
}

static void publish(struct io *io, struct kx_brec *r, uint64_t len, uint32_t flags, uint64_t head)
{
	if (!(flags & (KX_BREC_ADD | KX_BREC_MOD | KX_BREC_DEL | KX_BREC_NAME)))
		io->ctx->said = head;
	*r = (struct kx_brec){ .fd = (int32_t)io->fd, .gen = io->gen, .len = (uint32_t)len, .flags = flags };
	r->ticket = __atomic_fetch_add(&BATCH->ticket, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&io->ctx->head, head, __ATOMIC_SEQ_CST);
}

static bool transmit(struct io *io, int64_t *ret)
{
	uint64_t head;
	if (io->flags & ~(F_DONTWAIT | F_NOSIGNAL | F_MORE))
		return false;
	struct kx_brec *r = io->total <= KX_BATCH_SEND_MAX ? reserve(io, io->total, io->total, &head) : NULL;
	if (!r || !gather(io, (uint8_t *)(r + 1)))
		return false;
	publish(io, r, io->total, io->flags, head);
	*ret = (int64_t)io->total;
	return true;
}

/* Only while no thread has made a call since the file's size was looked at: by one it could have learnt of another. */
static struct kx_bfile *file_of(struct kx_bctx *c, uint64_t fd)
{
	for (int i = 0; i < KX_BATCH_FILES; i++)
		if (c->file[i].fd == (int32_t)fd)
			return c->file[i].calls == __atomic_load_n(&BATCH->calls, __ATOMIC_ACQUIRE) ? &c->file[i]
												    : NULL;
	return NULL;
}

static bool send_file(struct io *io, uint64_t fd, uint64_t at_gva, uint64_t count, int64_t *ret)
{
	struct kx_bfrom from = { .fd = (int32_t)fd };
	struct kx_openahead_file *opened = openahead_file(fd, &from.fd);
	struct kx_bfile *file = (int32_t)fd >= 0 && !opened ? file_of(io->ctx, fd) : NULL;
	uint64_t size = opened ? opened->size : file ? file->size : 0, head;
	if (!at_gva || user_read(&from.offset, at_gva, sizeof from.offset) || from.offset >= size)
		return false;
	if (count > size - from.offset)
		count = size - from.offset;
	if (count > KX_BATCH_FILE_MAX)
		return false;
	uint64_t next = from.offset + count;
	struct kx_brec *r = reserve(io, sizeof from, count, &head);
	if (!r || user_write(at_gva, &next, sizeof next))
		return false;
	from.len = (uint32_t)count;
	*(struct kx_bfrom *)(r + 1) = from;
	publish(io, r, sizeof from, KX_BREC_FILE, head);
	if (file)
		file->uses++;
	*ret = (int64_t)count;
	return true;
}

/* To a file that this thread writes to again and again. */
static bool write_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	uint32_t ctx;
	uint64_t head;
	struct kx_bwrite *w;
	struct kx_brec *r;
	if (!look(t, io, f->rdi, &ctx))
		return false;
	w = (struct kx_bwrite *)((uint8_t *)io->ctx + KX_BATCH_WRITES_AT);
	for (unsigned i = 0; w->fd != (int32_t)io->fd; w++)
		if (++i == KX_BATCH_WRITES)
			return false;
	if (w->calls != __atomic_load_n(&BATCH->calls, __ATOMIC_ACQUIRE) ||
	    !(f->orig_rax == NR_write ? one(io, f->rsi, f->rdx) : many(io, f->rsi, (uint32_t)f->rdx)) || !io->total ||
	    io->total > KX_BATCH_SEND_MAX || !(r = room_for(io->ctx, io->total, &head)) ||
	    !gather(io, (uint8_t *)(r + 1)))
		return false;
	publish(io, r, io->total, KX_BREC_WRITE, head);
	w->uses++;
	*ret = (int64_t)io->total;
	return true;
}

/* ---- signals ------------------------------------------------------------------------------------------------------ */

static bool kill_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	struct kx_bkill k = { (int32_t)f->rdi, (int32_t)f->rsi };
	uint32_t ctx;
	uint64_t head;
	struct kx_brec *r;
	if (!look(t, io, 0, &ctx) || !(r = room_for(io->ctx, sizeof k, &head)) || !sigs_may_kill(io->ctx, &k))
		return false;
	*(struct kx_bkill *)(r + 1) = k;
	publish(io, r, sizeof k, KX_BREC_KILL, head);
	*ret = 0;
	return true;
}

static bool signal_read(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	uint32_t ctx;
	return look(t, io, f->rdi, &ctx) && sigs_read(io->ctx, f, ret);
}

/* ---- connections that come and go --------------------------------------------------------------------------------- */

static bool close_later(struct kx_thread *t, struct io *io, uint64_t fd, int64_t *ret)
{
	uint32_t ctx;
	uint64_t head;
	struct kx_brec *r;
	if (!look(t, io, fd, &ctx) || __atomic_load_n(&io->s->owner, __ATOMIC_ACQUIRE) != ctx ||
	    !(r = room_for(io->ctx, 0, &head)) ||
	    !__atomic_compare_exchange_n(&io->s->owner, &ctx, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	io->s->tcp = 0;
	__atomic_store_n(&io->s->fresh, 0, __ATOMIC_SEQ_CST);
	ahead_gone(io->ctx, (int32_t)io->fd);
	accept_closed(io->ctx, (int32_t)io->fd);
	publish(io, r, 0, KX_BREC_CLOSE, head);
	numbers_closed(ctx, (int32_t)fd);
	*ret = 0;
	return true;
}

/*
 * shutdown(SHUT_WR) of one that may be written to, unless somebody may have told since the last exit that the other side is
 * gone. The room goes with it, so a write that follows is a call, and fails.
 */
static bool shut_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	uint64_t head;
	struct kx_brec *r;
	uint32_t have;
	if ((uint32_t)f->rsi != SHUT_WR || !find(t, io, f->rdi) || !io->s->tcp ||
	    (uint32_t)io->ctx->turn - io->s->turn > 1 || has_news(io) || !(r = room_for(io->ctx, 0, &head)) ||
	    !(have = __atomic_load_n(&io->s->credit, __ATOMIC_ACQUIRE)) ||
	    !__atomic_compare_exchange_n(&io->s->credit, &have, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	ahead_shut(io->ctx, (int32_t)io->fd);
	accept_shut(io->ctx, (int32_t)io->fd);
	publish(io, r, 0, KX_BREC_SHUT, head);
	*ret = 0;
	return true;
}

static bool event_read(struct kx_badd *b, uint64_t gva)
{
	uint8_t ev[12]; /* struct epoll_event is packed */
	if (user_read(ev, gva, sizeof ev))
		return false;
	__builtin_memcpy(&b->events, ev, 4);
	__builtin_memcpy(&b->data, ev + 4, 8);
	return !(b->events & 1u << 28); /* EPOLLEXCLUSIVE: not with everything */
}

/* A connection just accepted, which nobody has done anything with. */
static bool is_fresh(const struct io *io, uint32_t ctx)
{
	const uint32_t owner = __atomic_load_n(&io->s->owner, __ATOMIC_ACQUIRE);
	return (!owner || owner == ctx) && __atomic_load_n(&io->s->fresh, __ATOMIC_ACQUIRE);
}

/* Once only: by a connection that was just accepted, or that this thread has just taken out. */
static bool in_no_epoll(struct io *io, uint32_t ctx)
{
	uint32_t fresh = 1;
	int32_t none = KX_EPOLL_NONE;
	if (!is_fresh(io, ctx))
		fresh = 2;
	return __atomic_compare_exchange_n(&io->s->fresh, &fresh, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED) ||
	       (__atomic_load_n(&io->s->owner, __ATOMIC_ACQUIRE) == ctx &&
		__atomic_compare_exchange_n(&io->s->epoll, &none, KX_EPOLL_UNKNOWN, false, __ATOMIC_SEQ_CST,
					    __ATOMIC_RELAXED));
}

/* Into the epoll that this thread waits with: what can't fail. */
static bool add_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	struct kx_badd add = { .epoll = (int32_t)f->rdi };
	uint32_t ctx;
	uint64_t head;
	struct kx_brec *r;
	if (!look(t, io, f->rdx, &ctx) || add.epoll < 0 || io->ctx->epoll != add.epoll || !event_read(&add, f->r10) ||
	    !(r = room_for(io->ctx, sizeof add, &head)) || !in_no_epoll(io, ctx))
		return false;
	*(struct kx_badd *)(r + 1) = add;
	if (__atomic_load_n(&io->s->owner, __ATOMIC_ACQUIRE) == ctx)
		__atomic_store_n(&io->s->epoll, add.epoll, __ATOMIC_SEQ_CST);
	if (!accept_added(io->ctx, (int32_t)io->fd, &add))
		ahead_added(io->ctx, (int32_t)io->fd, &add);
	publish(io, r, sizeof add, KX_BREC_ADD, head);
	*ret = 0;
	return true;
}

/* Of the epoll that this thread waits with, which has told of it. */
static bool change_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	struct kx_badd mod = { .epoll = (int32_t)f->rdi };
	uint64_t head;
	struct kx_brec *r;
	if (!find(t, io, f->rdx) || mod.epoll < 0 || io->ctx->epoll != mod.epoll ||
	    __atomic_load_n(&io->s->epoll, __ATOMIC_ACQUIRE) != mod.epoll || !event_read(&mod, f->r10) ||
	    !(r = room_for(io->ctx, sizeof mod, &head)))
		return false;
	*(struct kx_badd *)(r + 1) = mod;
	ahead_changed(io->ctx);
	accept_changed(io->ctx);
	publish(io, r, sizeof mod, KX_BREC_MOD, head);
	*ret = 0;
	return true;
}

/* Out of the epoll that this thread waits with, which has told of it. */
static bool remove_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	struct kx_badd del = { .epoll = (int32_t)f->rdi };
	int32_t epoll = del.epoll;
	uint64_t head;
	struct kx_brec *r;
	if (!find(t, io, f->rdx) || epoll < 0 || io->ctx->epoll != epoll ||
	    !(r = room_for(io->ctx, sizeof del, &head)) ||
	    !__atomic_compare_exchange_n(&io->s->epoll, &epoll, KX_EPOLL_NONE, false, __ATOMIC_SEQ_CST,
					 __ATOMIC_RELAXED))
		return false;
	*(struct kx_badd *)(r + 1) = del;
	ahead_gone(io->ctx, (int32_t)io->fd);
	accept_gone(io->ctx, (int32_t)io->fd);
	publish(io, r, sizeof del, KX_BREC_DEL, head);
	*ret = 0;
	return true;
}

/*
 * What a server sets of a connection just accepted, before it knows whether it will ever hear of it. Only what can't
 * fail, and only of a socket that nobody else has seen or that is this thread's.
 */
static bool set_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	struct kx_bopt opt = { .level = (int32_t)f->rsi, .name = (int32_t)f->rdx };
	uint32_t ctx;
	uint64_t head;
	struct kx_brec *r;
	if (!look(t, io, f->rdi, &ctx) || !io->s->tcp || (int32_t)f->r8 < (int32_t)sizeof opt.value ||
	    (__atomic_load_n(&io->s->owner, __ATOMIC_ACQUIRE) != ctx && !is_fresh(io, ctx)) ||
	    user_read(&opt.value, f->r10, sizeof opt.value) || !kx_bopt_fits(&opt) ||
	    !(r = room_for(io->ctx, sizeof opt, &head)))
		return false;
	*(struct kx_bopt *)(r + 1) = opt;
	publish(io, r, sizeof opt, KX_BREC_OPT, head);
	*ret = 0;
	return true;
}

/* ioctl(FIONBIO) of a connection that is in no epoll yet: nothing of it was fetched. */
static bool nonblock_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	struct kx_bopt opt = { .level = KX_BOPT_NONBLOCK };
	uint32_t ctx;
	uint64_t head;
	struct kx_brec *r;
	if ((uint32_t)f->rsi != FIONBIO || !look(t, io, f->rdi, &ctx) || !io->s->tcp || !is_fresh(io, ctx) ||
	    user_read(&opt.value, f->rdx, sizeof opt.value) || !(r = room_for(io->ctx, sizeof opt, &head)))
		return false;
	*(struct kx_bopt *)(r + 1) = opt;
	publish(io, r, sizeof opt, KX_BREC_OPT, head);
	*ret = 0;
	return true;
}

static bool tell_name(const struct io *io, const struct kx_bname *p, struct kx_frame *f, int64_t *ret)
{
	int32_t room, len = (int32_t)p->len;
	if (p->fd != (int32_t)io->at || p->gen != io->gen || !io->s->tcp || (uint32_t)len > sizeof p->addr ||
	    user_read(&room, f->rdx, sizeof room) || room < 0 ||
	    user_write(f->rsi, p->addr, (uint64_t)(room < len ? room : len)) || user_write(f->rdx, &len, sizeof len))
		return false;
	*ret = 0;
	return true;
}

/* Of a connection that this thread accepted, or was told of, by its last exit: a reset since then nobody can have told of. */
static bool peer_name(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	uint32_t ctx;
	if (!look(t, io, f->rdi, &ctx))
		return false;
	uint32_t now = (uint32_t)io->ctx->exits;
	bool accepted = io->ctx->accepted == (int32_t)io->fd && io->ctx->accepted_at == now;
	bool told = __atomic_load_n(&io->s->owner, __ATOMIC_ACQUIRE) == ctx && io->s->epoch == now;
	const struct kx_bname *names = (const struct kx_bname *)((uint8_t *)io->ctx + KX_BATCH_PEERS);
	return (accepted || told) && tell_name(io, &names[io->at % KX_BATCH_PEERS_MAX], f, ret);
}

/* This one a reset doesn't take away. */
static bool local_name(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	uint32_t ctx;
	if (!look(t, io, f->rdi, &ctx))
		return false;
	const struct kx_bname *names = (const struct kx_bname *)((uint8_t *)io->ctx + KX_BATCH_LOCALS);
	return tell_name(io, &names[io->at % KX_BATCH_PEERS_MAX], f, ret);
}

/* ---- waits -------------------------------------------------------------------------------------------------------- */

static bool wait_ahead(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	uint32_t ctx;
	if (!look(t, io, 0, &ctx))
		return false;
	libfile_flush(t);
	return ahead_wait(io->ctx, f, ret) || accept_wait(io->ctx, f, ret);
}

static bool length(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	uint32_t ctx;
	if (!look(t, io, 0, &ctx))
		return false;
	libfile_flush(t);
	return seek_end(io->ctx, f, ret);
}

/* accept: there was no further connection as the last one was accepted. Once only. */
static bool no_more(struct kx_thread *t, struct io *io, struct kx_frame *f, uint64_t flags, int64_t *ret)
{
	uint32_t ctx;
	if ((uint32_t)flags & ~(O_CLOEXEC | O_NONBLOCK) || !look(t, io, f->rdi, &ctx) ||
	    accept_offers(io->ctx, (int32_t)f->rdi) || io->ctx->drained != (int32_t)f->rdi || (int32_t)f->rdi < 0 ||
	    may_know(io->ctx) || io->ctx->drained_at != __atomic_load_n(&BATCH->calls, __ATOMIC_ACQUIRE))
		return false;
	io->ctx->drained = -1;
	*ret = -KX_EAGAIN;
	return true;
}

/* One that was accepted ahead, at the lowest free number. */
static bool accept_ahead(struct io *io, struct kx_frame *f, uint32_t flags, int64_t *ret)
{
	struct kx_bfd name;
	int32_t fd;
	uint64_t head;
	const struct kx_accepted *of = accept_next(io->ctx, f, flags, &fd, &name);
	if (!of)
		return false;
	if (fd != of->fd) {
		struct kx_brec *r = room_for(io->ctx, sizeof name, &head);
		if (!r)
			return false;
		io->fd = (uint32_t)fd;
		*(struct kx_bfd *)(r + 1) = name;
		publish(io, r, sizeof name, KX_BREC_NAME, head);
	}
	*ret = fd;
	return accept_given(io->ctx, name.index, fd);
}

static bool accepts(struct kx_thread *t, struct io *io, struct kx_frame *f, uint64_t flags, int64_t *ret)
{
	uint32_t ctx;
	if (!look(t, io, f->rdi, &ctx))
		return false;
	libfile_flush(t);
	return accept_ahead(io, f, (uint32_t)flags, ret) || no_more(t, io, f, flags, ret);
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

/* A message without an address and control data. What the kernel writes back then: no address, no control data. */
static bool message(struct io *io, struct kx_frame *f, bool in, int64_t *ret)
{
	struct msghdr m;
	io->flags = f->rdx;
	uint32_t told = io->flags & F_CMSG_CLOEXEC;
	if (user_read(&m, f->rsi, sizeof m) || m.name || m.control || m.controllen || !many(io, m.iov, m.iovlen))
		return false;
	if (!in)
		return transmit(io, ret);
	/* Written first: where that fails nothing was read. */
	return !user_write(f->rsi + offsetof(struct msghdr, flags), &told, sizeof told) && receive(io, ret);
}

static bool try_call(struct io *io, struct kx_frame *f, int64_t *ret)
{
	io->flags = 0;
	switch (f->orig_rax) {
	case NR_read:
		return one(io, f->rsi, f->rdx) && receive(io, ret);
	case NR_readv:
		return many(io, f->rsi, (uint32_t)f->rdx) && receive(io, ret);
	case NR_recvfrom:
		io->flags = f->r10;
		return !f->r8 && one(io, f->rsi, f->rdx) && receive(io, ret);
	case NR_recvmsg:
		return message(io, f, true, ret);
	case NR_write:
		return one(io, f->rsi, f->rdx) && transmit(io, ret);
	case NR_writev:
		return many(io, f->rsi, (uint32_t)f->rdx) && transmit(io, ret);
	case NR_sendfile:
		return send_file(io, f->rsi, f->rdx, f->r10, ret);
	case NR_sendto:
		io->flags = f->r10;
		return !f->r8 && one(io, f->rsi, f->rdx) && transmit(io, ret);
	case NR_sendmsg:
		return message(io, f, false, ret);
	}
	return false;
}

static bool register_later(struct kx_thread *t, struct io *io, struct kx_frame *f, int64_t *ret)
{
	switch ((uint32_t)f->rsi) {
	case 1: /* EPOLL_CTL_ADD */
		return add_later(t, io, f, ret);
	case 2: /* EPOLL_CTL_DEL */
		return remove_later(t, io, f, ret);
	case 3: /* EPOLL_CTL_MOD */
		return change_later(t, io, f, ret);
	default:
		return false;
	}
}

bool batch_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret)
{
	static const uint64_t mine = 1ull << NR_read | 1ull << NR_write | 1ull << NR_readv | 1ull << NR_writev |
				     1ull << NR_sendfile | 1ull << NR_sendto | 1ull << NR_recvfrom |
				     1ull << NR_sendmsg | 1ull << NR_recvmsg;
	struct io io;
	bool done = openahead_call(f, ret);
	if (done) {
		SHARED->batched++;
		return true;
	}
	switch (f->orig_rax) {
	case NR_epoll_wait:
		done = wait_ahead(t, &io, f, ret);
		break;
	case NR_epoll_pwait:
		done = !f->r8 && wait_ahead(t, &io, f, ret);
		break;
	case NR_accept:
		done = accepts(t, &io, f, 0, ret);
		break;
	case NR_accept4:
		done = accepts(t, &io, f, f->r10, ret);
		break;
	case NR_epoll_ctl:
		done = register_later(t, &io, f, ret);
		break;
	case NR_setsockopt:
		done = set_later(t, &io, f, ret);
		break;
	case NR_ioctl:
		done = nonblock_later(t, &io, f, ret);
		break;
	case NR_getsockname:
		done = local_name(t, &io, f, ret);
		break;
	case NR_getpeername:
		done = peer_name(t, &io, f, ret);
		break;
	case NR_mmap:
	case NR_munmap:
	case NR_mremap:
		done = recycle_call(t, f, ret);
		break;
	case NR_lseek:
		done = length(t, &io, f, ret);
		break;
	case NR_shutdown:
		done = shut_later(t, &io, f, ret);
		break;
	case NR_kill:
		libfile_flush(t);
		done = kill_later(t, &io, f, ret);
		break;
	case NR_close:
		done = close_later(t, &io, f->rdi, ret);
		break;
	default:
		if (f->orig_rax > 63 || !(mine >> f->orig_rax & 1))
			return false;
		libfile_flush(t);
		if (find(t, &io, f->rdi))
			done = try_call(&io, f, ret);
		else if (f->orig_rax == NR_read)
			done = signal_read(t, &io, f, ret);
		else if (f->orig_rax == NR_write || f->orig_rax == NR_writev)
			done = write_later(t, &io, f, ret);
	}
	if (done)
		SHARED->batched++;
	return done;
}

void batch_news(struct kx_thread *t, bool outside)
{
	uint32_t n = BATCH->ctx_of[t->index % KX_AREA_MAX];
	openahead_stale();
	__atomic_add_fetch(&BATCH->calls, 1, __ATOMIC_SEQ_CST);
	if (n && n <= KX_BATCH_CTXS) {
		struct kx_bctx *c = (struct kx_bctx *)(KX_BATCH_BASE + KX_BATCH_CTX + (uint64_t)(n - 1) * 0x100000);
		c->exits++;
		if (outside)
			c->news = c->exits;
	}
}

void batch_flush(struct kx_thread *t)
{
	if (SHARED->dgram)
		dgram_flush(t);
	uint32_t n = SHARED->batch && !t->vfork ? BATCH->ctx_of[t->index % KX_AREA_MAX] : 0;
	if (!n || n > KX_BATCH_CTXS)
		return;
	const struct kx_bctx *c = (const struct kx_bctx *)(KX_BATCH_BASE + KX_BATCH_CTX + (uint64_t)(n - 1) * 0x100000);
	if (c->head != __atomic_load_n(&c->tail, __ATOMIC_ACQUIRE))
		hypercall(t, HC_batch_flush, 0, 0, 0, 0, 0, 0);
}
