/* SPDX-License-Identifier: Apache-2.0 */
/* What was read is taken from the kernel, what was written sent: the guest's records, one by one. */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../abi/kx_openahead.h"
#include "../../abi/kx_sigs.h"
#include "batch_priv.h"
#include "flusher.h"
#include "openahead.h"
#include "sig.h"
#include "writelater.h"

#define SHORT_MS 1000 /* how long the end of a stream that came out short waits for what was before */

/* ---- what was read ----------------------------------------------------------------------------------------------- */

static void discard(int fd, struct sock *s, uint32_t n)
{
	static uint8_t scratch[FETCH_MAX];
	int flags = MSG_DONTWAIT | (s->kind == TCP ? MSG_TRUNC : 0); /* with it, TCP copies nothing */
	while (n) {
		long r = HC6(SYS_recvfrom, fd, scratch, n, flags, 0, 0);
		if (r < 0 && r != -EAGAIN)
			s->err = (int)-r;
		if (r <= 0 || r > n)
			return;
		n -= (uint32_t)r;
	}
}

/* Take from the kernel what the guest has read by word w. */
static void settle_by(int fd, struct sock *s, uint64_t w)
{
	uint32_t pos = KX_RX_POS(w) < s->fetched ? KX_RX_POS(w) : s->fetched;
	if (pos <= s->taken)
		return;
	discard(fd, s, pos - s->taken);
	s->taken = pos;
}

void batch_settle(int fd, struct sock *s)
{
	if (s->lent)
		lend_settle(fd, s, false);
	else if (s->fetched > s->taken)
		settle_by(fd, s, __atomic_load_n(&batch_guest_sock(fd)->rx, __ATOMIC_ACQUIRE));
}

/* Nothing more may be read by the guest itself. */
void batch_give_up(int fd, struct sock *s)
{
	if (s->lent) {
		lend_settle(fd, s, true);
		return;
	}
	settle_by(fd, s, __atomic_exchange_n(&batch_guest_sock(fd)->rx, 0, __ATOMIC_SEQ_CST));
	s->fetched = s->taken = 0;
}

/* ---- what was written ---------------------------------------------------------------------------------------------- */

/* EPIPE comes again by itself. */
void batch_send_failed(int fd, struct sock *s, long r)
{
	__atomic_store_n(&batch_guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
	if (r != -EPIPE)
		s->err = (int)-r;
}

/* An error that came by a call of ours. */
bool batch_error_due(struct hcall *c, bool meets, int *err, int64_t *r)
{
	int len;
	if (!*err)
		return false;
	if (meets) {
		*r = -*err;
	} else if (c->nr == SYS_getsockopt && (int)c->arg[1] == SOL_SOCKET && (int)c->arg[2] == SO_ERROR) {
		if (guest_read(&len, c->arg[4], sizeof len) || len < (int)sizeof *err)
			return false;
		len = sizeof *err;
		*r = guest_write(c->arg[3], err, sizeof *err) || guest_write(c->arg[4], &len, sizeof len) ? -EFAULT : 0;
	} else {
		return false;
	}
	*err = 0;
	return true;
}

static bool length_fits(const struct kx_brec *r)
{
	return r->flags & KX_BREC_FILE    ? r->len == sizeof(struct kx_bfrom)
	       : r->flags & KX_BREC_KILL  ? r->len == sizeof(struct kx_bkill)
	       : r->flags & KX_BREC_ADD   ? r->len == sizeof(struct kx_badd)
	       : r->flags & KX_BREC_DEL   ? r->len == sizeof(struct kx_badd)
	       : r->flags & KX_BREC_MOD   ? r->len == sizeof(struct kx_badd)
	       : r->flags & KX_BREC_OPT   ? r->len == sizeof(struct kx_bopt)
	       : r->flags & KX_BREC_NAME  ? r->len == sizeof(struct kx_bfd)
	       : r->flags & KX_BREC_CLOSE ? !r->len
					  : true;
}

/* The next record of x, copied: false when there is none. At most a full ring of them is taken between two calls of batch_flush(). */
static bool next_record(struct ctx *x, struct kx_brec *r, const uint8_t **data)
{
	const uint8_t *ring = (const uint8_t *)x->g + KX_BATCH_TX;
	for (;;) {
		uint64_t there = __atomic_load_n(&x->g->head, __ATOMIC_ACQUIRE) - x->tail;
		if (!there || x->tail - x->flushed >= KX_BATCH_TX_SIZE)
			return false;
		uint64_t at = x->tail % KX_BATCH_TX_SIZE;
		memcpy(r, ring + at, sizeof *r);
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		uint64_t size = sizeof *r + (((uint64_t)r->len + 31) & ~31ull);
		if (there > KX_BATCH_TX_SIZE || there % 32 || size > there || at + size > KX_BATCH_TX_SIZE ||
		    (r->fd != -1 && r->len > KX_BATCH_SEND_MAX) || (r->fd != -1 && !length_fits(r)))
			pvm_panic("LibOS: the queue of sends is broken");
		*data = ring + at + sizeof *r;
		if (r->fd != -1)
			return true;
		x->tail += size;
		__atomic_store_n(&x->g->tail, x->tail, __ATOMIC_RELEASE);
	}
}

static void send_data(int fd, struct sock *s, const uint8_t *data, uint32_t len, uint32_t flags)
{
	if (s->left) {
		batch_keep(fd, s, data, len, flags);
		return;
	}
	long n = batch_try_send(fd, data, len, flags);
	if (n < 0 && n != -EAGAIN)
		batch_send_failed(fd, s, n);
	else if (n < (long)len)
		batch_keep(fd, s, data + (n < 0 ? 0 : n), len - (n < 0 ? 0 : (uint32_t)n), flags);
}

/* Without a copy of it: how much the kernel has taken. The signal of a broken connection is not the program's yet. */
static uint32_t send_pages(int fd, const struct kx_bfrom *from)
{
	uint64_t pipe = SIGBIT(SIGPIPE), old, offset = from->offset;
	struct timespec now = { 0, 0 };
	if (HC6(SYS_rt_sigprocmask, SIG_BLOCK, &pipe, &old, sizeof old, 0, 0))
		return 0;
	long r = HC6(SYS_sendfile, fd, from->fd, &offset, from->len, 0, 0);
	if (r == -EPIPE)
		HC6(SYS_rt_sigtimedwait, &pipe, 0, &now, sizeof pipe, 0, 0);
	HC6(SYS_rt_sigprocmask, SIG_SETMASK, &old, 0, sizeof old, 0, 0);
	return r > 0 ? (uint32_t)r : 0;
}

/* The program has been told that all of it went: where the file has become shorter meanwhile, the stream ends. */
static void send_file(const struct ctx *x, int fd, struct sock *s, const uint8_t *data)
{
	static uint8_t buf[KX_BATCH_SEND_MAX];
	struct kx_bfrom from;
	bool known = false;
	memcpy(&from, data, sizeof from);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (from.fd < -1 && (from.fd = openahead_fd(KX_OPENAHEAD_FD(from.fd))) >= 0)
		known = true;
	for (int i = 0; i < KX_BATCH_FILES; i++)
		known |= from.fd >= 0 && x->file[i].fd == from.fd;
	if (!known || from.len > KX_BATCH_FILE_MAX || from.offset > INT64_MAX - KX_BATCH_FILE_MAX)
		pvm_panic("LibOS: the queue of sends is broken");
	uint32_t got = from.len > sizeof buf && !s->left && s->nonblock ? send_pages(fd, &from) : 0;
	while (got < from.len) {
		uint32_t part = from.len - got < sizeof buf ? from.len - got : sizeof buf;
		long r = HC6(SYS_pread64, from.fd, buf, part, from.offset + got, 0, 0);
		if (r <= 0)
			break;
		got += (uint32_t)r;
		send_data(fd, s, buf, (uint32_t)r, got < from.len ? MSG_MORE : 0);
	}
	if (got < from.len) {
		batch_drain_left(fd, s, SHORT_MS);
		HC6(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
		batch_send_failed(fd, s, -EIO);
	}
}

/* To or of an epoll. Where the kernel has no room for one more, the connection ends. */
static void add_to_epoll(int fd, struct sock *s, const uint8_t *data, int op)
{
	struct kx_badd add;
	memcpy(&add, data, sizeof add);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	struct epoll_event ev = { add.events, { .u64 = add.data } };
	if (!fd_is_guest(add.epoll) || add.events & EPOLLEXCLUSIVE)
		pvm_panic("LibOS: the queue of sends is broken");
	batch_settle(fd, s); /* of what was read before, there is no event */
	long r = HC6(SYS_epoll_ctl, add.epoll, op, fd, &ev, 0, 0);
	if (!r && s->epoll >= 0 && s->epoll != add.epoll) {
		batch_disown(fd, s); /* two epolls: what one has told of the other still must */
		return;
	}
	if (!r)
		batch_note_epoll(fd, s, add.epoll, add.events, add.data, true);
	if (!r || (op == EPOLL_CTL_MOD && r == -ENOENT)) /* another thread has just taken it out */
		return;
	HC6(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
	batch_send_failed(fd, s, r);
}

static void remove_from_epoll(int fd, struct sock *s, const uint8_t *data)
{
	struct kx_badd del;
	memcpy(&del, data, sizeof del);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (!fd_is_guest(del.epoll))
		pvm_panic("LibOS: the queue of sends is broken");
	HC6(SYS_epoll_ctl, del.epoll, EPOLL_CTL_DEL, fd, NULL, 0, 0);
	if (s->epoll == del.epoll)
		s->epoll = -1; /* what the LibOS knows may have gone on */
}

/* Fails where an administrator's program (BPF) forbids it. */
static void set_option(int fd, struct sock *s, const uint8_t *data)
{
	struct kx_bopt opt;
	memcpy(&opt, data, sizeof opt);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (s->kind != TCP || !kx_bopt_fits(&opt))
		pvm_panic("LibOS: the queue of sends is broken");
	if (opt.level == KX_BOPT_NONBLOCK) {
		HC6(SYS_ioctl, fd, FIONBIO, &opt.value, 0, 0, 0);
		s->nonblock = batch_is_nonblocking(fd);
		return;
	}
	long r = HC6(SYS_setsockopt, fd, opt.level, opt.name, &opt.value, sizeof opt.value, 0);
	if (!r)
		return;
	HC6(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
	batch_send_failed(fd, s, r);
}

static void close_socket(int fd, struct sock *s)
{
	batch_drop(fd, s);
	if (!accept_closes(fd))
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
}

/* Where it fails a write would, too, and tells. */
static void shut_socket(int fd, struct sock *s) { batch_shut_left(fd, s); }

/* False: not in this thread, nor what comes after it. */
static bool send_record(struct ctx *x, const struct kx_brec *r, const uint8_t *data)
{
	if (r->flags == KX_BREC_WRITE) {
		if (!writelater_record((int)(x - batch.ctxs), r->fd, data, r->len))
			pvm_panic("LibOS: the queue of sends is broken");
		return true;
	}
	if (r->flags == KX_BREC_KILL) {
		int e = sigs_record(data);
		if (e == -EINVAL)
			pvm_panic("LibOS: the queue of sends is broken");
		return !e;
	}
	if (r->flags == KX_BREC_NAME) {
		int e = accept_name(r->fd, data);
		if (e == -EINVAL)
			pvm_panic("LibOS: the queue of sends is broken");
		return !e;
	}
	struct sock *s = batch_sock(r->fd);
	if (!s || s->gen != r->gen)
		return true; /* closed by another thread at the same moment */
	if (accept_holds(r->fd))
		pvm_panic("LibOS: the queue of sends is broken");
	if (!(r->flags & (KX_BREC_ADD | KX_BREC_MOD | KX_BREC_DEL | KX_BREC_OPT | KX_BREC_CLOSE))) {
		batch_write_queued(x, r->fd);
		batch_settle(r->fd, s); /* who is killed behind this has read what he answers: no reset */
	}
	if (r->flags & KX_BREC_FILE)
		send_file(x, r->fd, s, data);
	else if (r->flags & KX_BREC_ADD)
		add_to_epoll(r->fd, s, data, EPOLL_CTL_ADD);
	else if (r->flags & KX_BREC_MOD)
		add_to_epoll(r->fd, s, data, EPOLL_CTL_MOD);
	else if (r->flags & KX_BREC_DEL)
		remove_from_epoll(r->fd, s, data);
	else if (r->flags & KX_BREC_OPT)
		set_option(r->fd, s, data);
	else if (r->flags & KX_BREC_SHUT)
		shut_socket(r->fd, s);
	else if (r->flags & KX_BREC_CLOSE)
		close_socket(r->fd, s);
	else
		send_data(r->fd, s, data, r->len, r->flags);
	return true;
}

/* Of the contexts that have something queued, one whose next record is the oldest, and that; NULL: none before `limit`. */
static struct ctx *oldest(struct ctx *const *of, int n, uint64_t limit, struct kx_brec *best, const uint8_t **best_data)
{
	struct ctx *first = NULL;
	struct kx_brec r;
	const uint8_t *data;
	for (int i = 0; i < n; i++)
		if (next_record(of[i], &r, &data) && (int64_t)(r.ticket - limit) < 0 &&
		    (!first || (int64_t)(r.ticket - best->ticket) < 0)) {
			first = of[i];
			*best = r;
			*best_data = data;
		}
	return first;
}

/*
 * Send all that was queued before, in the order of the writes. What other threads add meanwhile is left to the next
 * call, or they could keep this one here for ever. Its tickets tell; a guest that lies about them finds an end, too.
 */
void batch_flush(void)
{
	struct ctx *queued[KX_BATCH_CTXS], *first;
	struct kx_brec r = { 0 };
	const uint8_t *data = NULL;
	int n = 0;
	const uint64_t limit = batch.nr_ctxs ? __atomic_load_n(&batch_shared()->ticket, __ATOMIC_SEQ_CST) : 0;
	for (int i = 0; i < batch.nr_ctxs; i++) {
		struct ctx *x = &batch.ctxs[i];
		x->flushed = x->tail;
		if (x->t && __atomic_load_n(&x->g->head, __ATOMIC_ACQUIRE) != x->tail)
			queued[n++] = x;
	}
	accept_commit();
	while (n && (first = oldest(queued, n, limit, &r, &data)) && send_record(first, &r, data)) {
		first->tail += sizeof r + (((uint64_t)r.len + 31) & ~31ull);
		__atomic_store_n(&first->g->tail, first->tail, __ATOMIC_RELEASE);
	}
}
