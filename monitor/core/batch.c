/* SPDX-License-Identifier: Apache-2.0 */
#include "batch.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include "dgram.h"
#include "flusher.h"
#include "gmem.h"
#include "keeper.h"
#include "thread.h"
#include "sig.h"
#include "batch_priv.h"

#define FETCH_MAX 0x4000     /* bytes of one socket in one turn */
#define CREDIT_LOW 0x20000   /* below it the kernel is asked again */
#define LEFT_MAX (64u << 20) /* bytes that the kernel would not take: of all sockets */
#define HINTS 32768
#define LEASES_MAX 16
#define HC_FIRST 1024 /* sig_next */
#define HC_LAST 1029  /* seed */
#define DRAIN_MS 5000 /* how long the end of a socket waits for what the kernel would not take */
#define FILE_IDLE 64  /* calls of a thread until a file that it does not send is forgotten */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sock socks[KX_BATCH_FDS];
static struct ctx ctxs[KX_BATCH_CTXS];
static uint16_t hints[HINTS];                 /* by epoll and data: the descriptor */
static int nr_socks, top_fd, nr_ctxs, no_new; /* top_fd: none is above */
/*
 * Pipes whose write ends children have and keep over exec: when all who could hold a socket of before the fork have
 * ended, the pipe has. A byte in it: a child has passed on a socket.
 */
static int leases[LEASES_MAX], nr_leases, lease_new = -1, lease_mine = -1;
static bool lease_lost; /* nobody can tell: for ever */
static int nr_held;
static bool mapped, selfish;
static size_t left_bytes;

static void close_if(int fd)
{
	if (fd >= 0)
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
}

static struct kx_batch *shared(void) { return gva_ptr(KX_BATCH_BASE); }
static struct kx_bsock *guest_sock(int fd) { return (struct kx_bsock *)gva_ptr(KX_BATCH_BASE + KX_BATCH_SOCKS) + fd; }
static uint64_t ctx_gva(const struct ctx *x)
{
	return KX_BATCH_BASE + KX_BATCH_CTX + (uint64_t)(x - ctxs) * KX_BATCH_CTX;
}

static struct sock *find(int fd) { return fd >= 0 && fd <= top_fd && socks[fd].kind != NONE ? &socks[fd] : NULL; }

struct kx_batch *batch_shared(void) { return shared(); }
struct sock *batch_sock(int fd) { return find(fd); }
int batch_sock_top(void) { return top_fd; }
uint64_t batch_ctx_gva(const struct ctx *x) { return ctx_gva(x); }
int batch_ctxs(struct ctx **all)
{
	*all = ctxs;
	return nr_ctxs;
}
bool batch_is_shared(void) { return nr_leases || lease_lost || no_new || nr_held; }

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

static void settle(int fd, struct sock *s)
{
	if (s->fetched > s->taken)
		settle_by(fd, s, __atomic_load_n(&guest_sock(fd)->rx, __ATOMIC_ACQUIRE));
}

/* Nothing more may be read by the guest itself. */
static void give_up(int fd, struct sock *s)
{
	settle_by(fd, s, __atomic_exchange_n(&guest_sock(fd)->rx, 0, __ATOMIC_SEQ_CST));
	s->fetched = s->taken = 0;
}

/* ---- what was written ---------------------------------------------------------------------------------------------- */

static long try_send(int fd, const void *p, uint32_t len, uint32_t flags)
{
	return HC6(SYS_sendto, fd, p, len, (flags & MSG_MORE) | MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
}

/* EPIPE comes again by itself. */
static void send_failed(int fd, struct sock *s, long r)
{
	__atomic_store_n(&guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
	if (r != -EPIPE)
		s->err = (int)-r;
}

static void keep(int fd, struct sock *s, const uint8_t *p, uint32_t len, uint32_t flags)
{
	struct left *l = left_bytes + len <= LEFT_MAX ? malloc(sizeof *l + len) : NULL, **end = &s->left;
	if (!l)
		pvm_panic("descriptor %d: no room for what it would not send", fd);
	*l = (struct left){ NULL, len, 0, flags };
	memcpy(l->data, p, len);
	left_bytes += len;
	while (*end)
		end = &(*end)->next;
	*end = l;
	flusher_due();
	__atomic_store_n(&guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
}

static void drop_left(struct sock *s)
{
	for (struct left *l = s->left, *next; l; l = next) {
		next = l->next;
		left_bytes -= l->len;
		free(l);
	}
	s->left = NULL;
}

static void drive_left(int fd, struct sock *s)
{
	while (s->left) {
		struct left *l = s->left;
		long r = try_send(fd, l->data + l->done, l->len - l->done, l->flags);
		if (r == -EAGAIN)
			return;
		if (r < 0) {
			send_failed(fd, s, r);
			drop_left(s);
			return;
		}
		l->done += (uint32_t)r;
		if (l->done < l->len)
			continue;
		s->left = l->next;
		left_bytes -= l->len;
		free(l);
	}
}

static void drain_left(int fd, struct sock *s)
{
	for (int ms = 0; s->left && ms < DRAIN_MS; ms += 10) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };
		struct timespec ts = { 0, 10000000 };
		HC6(SYS_ppoll, &p, 1, &ts, 0, 8, 0);
		drive_left(fd, s);
	}
}

static bool length_fits(const struct kx_brec *r)
{
	return r->flags & KX_BREC_FILE    ? r->len == sizeof(struct kx_bfrom)
	       : r->flags & KX_BREC_ADD   ? r->len == sizeof(struct kx_badd)
	       : r->flags & KX_BREC_DEL   ? r->len == sizeof(struct kx_badd)
	       : r->flags & KX_BREC_MOD   ? r->len == sizeof(struct kx_badd)
	       : r->flags & KX_BREC_OPT   ? r->len == sizeof(struct kx_bopt)
	       : r->flags & KX_BREC_CLOSE ? !r->len
					  : true;
}

/* The next record of x, copied: false when there is none. At most a full ring of them is taken between two calls of flush(). */
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
		keep(fd, s, data, len, flags);
		return;
	}
	long n = try_send(fd, data, len, flags);
	if (n < 0 && n != -EAGAIN)
		send_failed(fd, s, n);
	else if (n < (long)len)
		keep(fd, s, data + (n < 0 ? 0 : n), len - (n < 0 ? 0 : (uint32_t)n), flags);
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
		drain_left(fd, s);
		HC6(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
		send_failed(fd, s, -EIO);
	}
}

static void note_epoll(int fd, struct sock *s, int epoll, uint32_t events, uint64_t data, bool queued);
static bool is_nonblocking(int fd);
static void disown(int fd, struct sock *s);
static void drop(int fd, struct sock *s);

/* To or of an epoll. Where the kernel has no room for one more, the connection ends. */
static void add_to_epoll(int fd, struct sock *s, const uint8_t *data, int op)
{
	struct kx_badd add;
	memcpy(&add, data, sizeof add);
	struct epoll_event ev = { add.events, { .u64 = add.data } };
	if (!fd_is_guest(add.epoll) || add.events & EPOLLEXCLUSIVE)
		pvm_panic("LibOS: the queue of sends is broken");
	settle(fd, s); /* of what was read before, there is no event */
	long r = HC6(SYS_epoll_ctl, add.epoll, op, fd, &ev, 0, 0);
	if (!r && s->epoll >= 0 && s->epoll != add.epoll) {
		disown(fd, s); /* two epolls: what one has told of the other still must */
		return;
	}
	if (!r)
		note_epoll(fd, s, add.epoll, add.events, add.data, true);
	if (!r || (op == EPOLL_CTL_MOD && r == -ENOENT)) /* another thread has just taken it out */
		return;
	HC6(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
	send_failed(fd, s, r);
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
		s->nonblock = is_nonblocking(fd);
		return;
	}
	long r = HC6(SYS_setsockopt, fd, opt.level, opt.name, &opt.value, sizeof opt.value, 0);
	if (!r)
		return;
	HC6(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
	send_failed(fd, s, r);
}

static void close_socket(int fd, struct sock *s)
{
	drop(fd, s);
	HC6(SYS_close, fd, 0, 0, 0, 0, 0);
}

static void send_record(const struct ctx *x, const struct kx_brec *r, const uint8_t *data)
{
	struct sock *s = find(r->fd);
	if (!s || s->gen != r->gen)
		return; /* closed by another thread at the same moment */
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
	else if (r->flags & KX_BREC_CLOSE)
		close_socket(r->fd, s);
	else
		send_data(r->fd, s, data, r->len, r->flags);
}

/*
 * Send all that was queued before, in the order of the writes. What other threads add meanwhile is left to the next
 * call, or they could keep this one here for ever. Its tickets tell; a guest that lies about them finds an end, too.
 */
static void flush(void)
{
	const uint64_t limit = nr_ctxs ? __atomic_load_n(&shared()->ticket, __ATOMIC_SEQ_CST) : 0;
	for (int i = 0; i < nr_ctxs; i++)
		ctxs[i].flushed = ctxs[i].tail;
	for (;;) {
		struct ctx *first = NULL;
		struct kx_brec r, best = { 0 };
		const uint8_t *data, *best_data = NULL;
		for (int i = 0; i < nr_ctxs; i++)
			if (ctxs[i].t && next_record(&ctxs[i], &r, &data) && (int64_t)(r.ticket - limit) < 0 &&
			    (!first || (int64_t)(r.ticket - best.ticket) < 0)) {
				first = &ctxs[i];
				best = r;
				best_data = data;
			}
		if (!first)
			return;
		send_record(first, &best, best_data);
		first->tail += sizeof best + (((uint64_t)best.len + 31) & ~31ull);
		__atomic_store_n(&first->g->tail, first->tail, __ATOMIC_RELEASE);
	}
}

/* ---- which sockets ------------------------------------------------------------------------------------------------ */

static void drop(int fd, struct sock *s)
{
	struct kx_bsock *g = guest_sock(fd);
	__atomic_store_n(&g->credit, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g->fresh, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g->tcp, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g->epoll, KX_EPOLL_UNKNOWN, __ATOMIC_SEQ_CST);
	__atomic_store_n(&g->owner, 0, __ATOMIC_SEQ_CST);
	give_up(fd, s);
	if (s->left)
		drain_left(fd, s);
	drop_left(s);
	nr_held -= s->held;
	s->held = false;
	s->kind = NONE;
	s->gen++;
	nr_socks--;
}

/* It is the program's as before, but none of ours. */
static void disown(int fd, struct sock *s)
{
	ahead_lost(s);
	drop(fd, s);
}

static void drop_fd(int fd)
{
	struct sock *s = find(fd);
	if (s)
		drop(fd, s);
}

static void drop_range(unsigned first, unsigned last)
{
	for (unsigned fd = first; fd <= last && (int)fd <= top_fd; fd++)
		drop_fd((int)fd);
}

static int sock_int(int fd, int opt)
{
	int v = -1;
	socklen_t len = sizeof v;
	return HC6(SYS_getsockopt, fd, SOL_SOCKET, opt, &v, &len, 0) < 0 ? -1 : v;
}

static enum sock_kind kind_of(int fd)
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

/* Its close takes long. */
static bool lingers(int fd)
{
	struct linger l = { 1, 0 };
	socklen_t len = sizeof l;
	return HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_LINGER, &l, &len, 0) || l.l_onoff;
}

static bool is_nonblocking(int fd)
{
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	return fl >= 0 && (fl & O_NONBLOCK);
}

static bool map_region(void)
{
	if (!mapped) {
		gmem_populate(KX_BATCH_BASE);
		mapped = true;
		shared()->selfish = selfish;
	}
	return mapped;
}

static void note_name(struct kx_bname *p, long nr, int fd)
{
	socklen_t len = sizeof p->addr;
	__atomic_store_n(&p->fd, -1, __ATOMIC_SEQ_CST);
	if (socks[fd].kind != TCP || HC6(nr, fd, p->addr, &len, 0, 0, 0) || len > sizeof p->addr)
		return;
	p->gen = socks[fd].gen;
	p->len = len;
	__atomic_store_n(&p->fd, fd, __ATOMIC_SEQ_CST);
}

static struct kx_bname *peer_of(const struct ctx *x, int fd)
{
	return (struct kx_bname *)gva_ptr(ctx_gva(x) + KX_BATCH_PEERS) + fd % KX_BATCH_PEERS_MAX;
}

/* Who a new connection is from, and to. */
static void note_names(struct ctx *x, int fd)
{
	note_name(peer_of(x, fd), SYS_getpeername, fd);
	x->g->accepted = fd;
	x->g->accepted_at = (uint32_t)x->g->exits;
	note_name(&x->g->local[fd % KX_BATCH_NAMES], SYS_getsockname, fd);
}

static void accepted(struct ctx *x, int fd)
{
	enum sock_kind k = fd < KX_BATCH_FDS && !no_new && !lingers(fd) ? kind_of(fd) : NONE;
	drop_fd(fd); /* it can't be there */
	if (k == NONE || !map_region())
		return;
	struct sock *s = &socks[fd];
	*s = (struct sock){ .kind = k, .nonblock = is_nonblocking(fd), .epoll = -1, .gen = s->gen + 1 };
	*guest_sock(fd) = (struct kx_bsock){ .gen = s->gen, .fresh = 1, .tcp = k == TCP, .epoll = -1 };
	nr_socks++;
	if (x)
		note_names(x, fd);
	if (fd > top_fd)
		top_fd = fd;
}

static unsigned hint_of(int epoll, uint64_t data)
{
	return (unsigned)((data + (uint64_t)epoll * 0x10001) * 0x9e3779b97f4a7c15ull >> 49);
}

/* What the LibOS has queued it knows; it may have gone on. */
static void note_epoll(int fd, struct sock *s, int epoll, uint32_t events, uint64_t data, bool queued)
{
	int32_t known = KX_EPOLL_UNKNOWN;
	struct kx_bsock *g = guest_sock(fd);
	__atomic_store_n(&g->fresh, 0, __ATOMIC_SEQ_CST);
	if (s->held || events & EPOLLEXCLUSIVE)
		__atomic_store_n(&g->epoll, KX_EPOLL_UNKNOWN, __ATOMIC_SEQ_CST);
	else if (queued)
		__atomic_compare_exchange_n(&g->epoll, &known, epoll, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&g->epoll, epoll, __ATOMIC_SEQ_CST);
	s->epoll = epoll;
	s->events = events;
	s->data = data;
	ahead_registered(epoll, events);
	hints[hint_of(epoll, data)] = (uint16_t)fd;
}

static void unregistered(int fd, struct sock *s)
{
	s->epoll = -1;
	__atomic_store_n(&guest_sock(fd)->epoll, s->held ? KX_EPOLL_UNKNOWN : KX_EPOLL_NONE, __ATOMIC_SEQ_CST);
}

static void registered(struct hcall *c)
{
	int epoll = (int)c->arg[0], op = (int)c->arg[1], fd = (int)c->arg[2];
	struct sock *s = find(fd);
	struct epoll_event ev;
	if (!s)
		return;
	if (op == EPOLL_CTL_DEL) {
		if (s->epoll == epoll)
			unregistered(fd, s);
		return;
	}
	if (guest_read(&ev, c->arg[3], sizeof ev) || (s->epoll >= 0 && s->epoll != epoll)) {
		disown(fd, s); /* two epolls: what one has told of the other still must */
		return;
	}
	note_epoll(fd, s, epoll, ev.events, ev.data.u64, false);
}

/* ---- what is there to read and room to write ----------------------------------------------------------------------- */

static void tell_credit(int fd, struct sock *s)
{
	uint32_t m[SK_MEMINFO_VARS] = { 0 }, room = 0;
	socklen_t len = sizeof m;
	if (!s->left && !s->err && HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_MEMINFO, m, &len, 0) == 0) {
		uint32_t used = m[s->kind == TCP ? SK_MEMINFO_WMEM_QUEUED : SK_MEMINFO_WMEM_ALLOC];
		room = m[SK_MEMINFO_SNDBUF] > used ? m[SK_MEMINFO_SNDBUF] - used : 0;
	}
	__atomic_store_n(&guest_sock(fd)->credit, room < INT32_MAX ? room : INT32_MAX, __ATOMIC_SEQ_CST);
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
	struct kx_bsock *g = guest_sock(fd);
	uint32_t at = KX_BATCH_CTX + (uint32_t)(x - ctxs) * KX_BATCH_CTX + KX_BATCH_RX + x->used;
	uint32_t room = KX_BATCH_RX_SIZE - x->used;
	uint64_t w = KX_RX_VALID;
	if (room > FETCH_MAX)
		room = FETCH_MAX;
	if (!room || x->nr == FETCHES_MAX)
		return;
	long n = HC6(SYS_recvfrom, fd, gva_ptr(KX_BATCH_BASE + at), room, MSG_PEEK | MSG_DONTWAIT, 0, 0);
	if (n < 0 && n != -EAGAIN) {
		s->err = (int)-n; /* told once, thus ours to tell on */
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
	__atomic_store_n(&g->rx, w, __ATOMIC_SEQ_CST);
}

/* An error that comes during the turn must be met by the write that comes after it, not by a later one. */
static void still_live(struct ctx *x)
{
	struct timespec now = { 0, 0 };
	if (!x->nr_live || HC6(SYS_ppoll, x->live, x->nr_live, &now, 0, 8, 0) <= 0)
		return;
	for (uint32_t i = 0; i < x->nr_live; i++)
		if (x->live[i].revents && find(x->live[i].fd))
			__atomic_store_n(&guest_sock(x->live[i].fd)->credit, 0, __ATOMIC_SEQ_CST);
}

/* The next turn: what was in neither this nor the last one is out. */
static void next_turn(struct ctx *x)
{
	uint32_t n = 0, turn = (uint32_t)x->g->turn++;
	for (uint32_t i = 0; i < x->nr_live; i++)
		if (find(x->live[i].fd) && guest_sock(x->live[i].fd)->turn == turn)
			x->live[n++].fd = x->live[i].fd;
	x->nr_live = n;
}

static void may_write(struct ctx *x, int fd)
{
	struct kx_bsock *g = guest_sock(fd);
	if ((uint32_t)x->g->turn - g->turn > 1) { /* else it is there */
		if (x->nr_live == FETCHES_MAX)
			return;
		x->live[x->nr_live++] = (struct pollfd){ .fd = fd };
	}
	g->turn = (uint32_t)x->g->turn;
}

void batch_ready_fresh(struct ctx *x, int fd, struct sock *s, uint32_t events)
{
	struct kx_bsock *g = guest_sock(fd);
	uint32_t owner = (uint32_t)(x - ctxs) + 1;
	give_up(fd, s);
	if (s->held || events & (EPOLLERR | EPOLLHUP))
		return;
	if (g->owner != owner || g->credit < CREDIT_LOW) {
		if (g->owner != owner)
			g->turn = 0;
		__atomic_store_n(&g->owner, 0, __ATOMIC_SEQ_CST);
		tell_credit(fd, s);
	}
	may_write(x, fd);
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
		give_up(fd, s);
}

/* ---- contexts ------------------------------------------------------------------------------------------------------- */

/* By index: the service thread has that of the thread it acts for. */
static struct ctx *ctx_of(const struct thread *t)
{
	for (int i = 0; i < nr_ctxs; i++)
		if (ctxs[i].t && ctxs[i].t->index == t->index)
			return &ctxs[i];
	return NULL;
}

static struct ctx *ctx_make(struct thread *t)
{
	struct ctx *x = NULL;
	if (t->vcpu_fd < 0) /* the service thread */
		return NULL;
	for (int i = 0; i < KX_BATCH_CTXS && !x; i++)
		if (!ctxs[i].t)
			x = &ctxs[i];
	if (!x || !batch_flusher_start())
		return NULL;
	gmem_populate(ctx_gva(x));
	x->t = t;
	x->g = gva_ptr(ctx_gva(x));
	x->tail = x->flushed = x->nr = x->used = x->nr_live = 0;
	*x->g = (struct kx_bctx){ .turn = (uint32_t)x->g->turn + 2 }; /* what an earlier thread had here is over */
	x->g->epoll = x->g->drained = x->g->accepted = -1;
	ahead_ctx_init(x);
	for (int i = 0; i < KX_BATCH_NAMES; i++)
		x->g->local[i].fd = -1;
	for (int i = 0; i < KX_BATCH_PEERS_MAX; i++)
		peer_of(x, i)->fd = -1;
	for (int i = 0; i < KX_BATCH_FILES; i++)
		x->file[i].fd = x->g->file[i].fd = -1;
	if (x - ctxs >= nr_ctxs)
		nr_ctxs = (int)(x - ctxs) + 1;
	__atomic_store_n(&shared()->ctx_of[t->index], (uint8_t)(x - ctxs + 1), __ATOMIC_SEQ_CST);
	pvm.shared->batch = 1;
	return x;
}

/* ---- files that are sent from --------------------------------------------------------------------------------------- */

static void file_forget(struct ctx *x, int i)
{
	x->g->file[i].fd = -1;
	x->file[i].fd = -1;
}

static void file_sent(struct ctx *x, int fd)
{
	struct stat st;
	for (int i = 0; i < KX_BATCH_FILES; i++)
		if (x->file[i].fd == fd)
			return;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return;
	unsigned i = x->next_file++ % KX_BATCH_FILES;
	file_forget(x, (int)i);
	x->file[i] = (struct file){ .fd = fd, .uses = x->g->file[i].uses };
}

/* How long they are now, as the thread may know that makes no call from here on. */
static void files_look(struct ctx *x)
{
	for (int i = 0; i < KX_BATCH_FILES; i++) {
		struct file *f = &x->file[i];
		struct kx_bfile *g = &x->g->file[i];
		struct stat st;
		if (f->fd < 0)
			continue;
		f->idle = f->uses == g->uses ? f->idle + 1 : 0;
		f->uses = g->uses;
		uint64_t calls = __atomic_load_n(&shared()->calls, __ATOMIC_SEQ_CST);
		long fl = HC6(SYS_fcntl, f->fd, F_GETFL, 0, 0, 0, 0);
		if (f->idle > FILE_IDLE || fl < 0 || (fl & O_ACCMODE) == O_WRONLY || fl & O_PATH || fstat(f->fd, &st) ||
		    !S_ISREG(st.st_mode)) {
			file_forget(x, i);
			continue;
		}
		g->size = (uint64_t)st.st_size;
		g->calls = calls;
		__atomic_store_n(&g->fd, f->fd, __ATOMIC_SEQ_CST);
	}
}

static void ctx_give_up(struct ctx *x)
{
	for (uint32_t i = 0; i < x->nr; i++) {
		struct sock *s = find(x->fd[i]);
		if (s)
			give_up(x->fd[i], s);
	}
	x->nr = x->used = 0;
}

static bool all_read(const struct ctx *x)
{
	for (uint32_t i = 0; i < x->nr; i++) {
		const struct sock *s = find(x->fd[i]);
		if (s && s->fetched > KX_RX_POS(__atomic_load_n(&guest_sock(x->fd[i])->rx, __ATOMIC_ACQUIRE)))
			return false;
	}
	return true;
}

void batch_turn(struct ctx *x)
{
	if (all_read(x) || x->used > KX_BATCH_RX_SIZE / 2 || x->nr > FETCHES_MAX / 2)
		ctx_give_up(x);
	next_turn(x);
}

static void ctx_end(struct ctx *x)
{
	ctx_give_up(x);
	shared()->ctx_of[x->t->index] = 0;
	x->t = NULL;
}

static void settle_all(void)
{
	flush();
	for (int i = 0; i < nr_ctxs; i++)
		for (uint32_t k = 0; ctxs[i].t && k < ctxs[i].nr; k++) {
			struct sock *s = find(ctxs[i].fd[k]);
			if (s)
				settle(ctxs[i].fd[k], s);
		}
}

static void leases_look(void)
{
	struct timespec now = { 0, 0 };
	if (!nr_leases || lease_lost)
		return;
	for (int i = 0; i < nr_leases;) {
		struct pollfd p = { .fd = leases[i], .events = POLLIN };
		if (HC6(SYS_ppoll, &p, 1, &now, 0, 8, 0) <= 0) {
			i++;
			continue;
		}
		lease_lost |= (p.revents & POLLIN) != 0;
		HC6(SYS_close, leases[i], 0, 0, 0, 0, 0);
		leases[i] = leases[--nr_leases];
	}
	if (nr_leases || lease_lost)
		return;
	for (int fd = 0; fd <= top_fd; fd++)
		socks[fd].held = false;
	nr_held = 0;
	dgram_alone_again();
}

void batch_leases_look(void)
{
	if (!__atomic_load_n(&nr_leases, __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&lock);
	leases_look();
	pthread_mutex_unlock(&lock);
}

struct sock *batch_sock_of(int epoll, uint64_t data, int *fd)
{
	struct sock *s = find(*fd = hints[hint_of(epoll, data)]);
	return s && s->epoll == epoll && s->data == data ? s : NULL;
}

static void after_wait(struct hcall *c, int n)
{
	struct ctx *x = ctx_of(c->t);
	leases_look();
	if (x) {
		next_turn(x);
		x->g->epoll = (int)c->arg[0];
	}
	for (int i = 0; i < n; i++) {
		struct epoll_event ev;
		if (guest_read(&ev, c->arg[1] + (uint64_t)i * sizeof ev, sizeof ev))
			return;
		int fd;
		struct sock *s = batch_sock_of((int)c->arg[0], ev.data.u64, &fd);
		if (!s)
			continue;
		if (!x && !(x = ctx_make(c->t)))
			return;
		batch_ready(x, fd, s, ev.events);
	}
}

/* ---- the flusher -------------------------------------------------------------------------------------------------------- */

/* Nobody has made a call for a while. */
static void look(void)
{
	bool busy = false, late = false;
	pthread_mutex_lock(&lock);
	for (int i = 0; i < nr_ctxs; i++) {
		struct ctx *x = &ctxs[i];
		if (!x->t || !x->in_guest)
			continue;
		busy = true;
		late |= x->g->head != x->tail;
	}
	if (late)
		flush();
	for (int fd = 0; left_bytes && fd <= top_fd; fd++)
		if (find(fd) && socks[fd].left)
			drive_left(fd, &socks[fd]);
	if (dgram_tick() || busy || left_bytes)
		flusher_due();
	pthread_mutex_unlock(&lock);
}

bool batch_flusher_start(void) { return flusher_start(look); }

/* ---- calls ------------------------------------------------------------------------------------------------------------ */

static bool is_write(uint64_t nr)
{
	return nr == SYS_write || nr == SYS_writev || nr == SYS_sendto || nr == SYS_sendmsg || nr == SYS_sendmmsg ||
	       nr == SYS_sendfile || nr == SYS_pwritev2;
}

static bool is_read(uint64_t nr)
{
	return nr == SYS_read || nr == SYS_readv || nr == SYS_recvfrom || nr == SYS_recvmsg || nr == SYS_recvmmsg ||
	       nr == SYS_preadv2;
}

static bool ends_it(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_close:
	case SYS_dup:
	case SYS_dup2:
	case SYS_dup3:
	case SYS_shutdown:
		return true;
	case SYS_setsockopt:
		return (int)c->arg[1] == SOL_SOCKET && (int)c->arg[2] == SO_LINGER;
	case SYS_fcntl:
		return (int)c->arg[1] == F_DUPFD || (int)c->arg[1] == F_DUPFD_CLOEXEC;
	}
	return false;
}

static bool ends_descriptor(const struct hcall *c, int fd)
{
	switch (c->nr) {
	case SYS_close:
		return (int)c->arg[0] == fd;
	case SYS_dup2:
	case SYS_dup3:
		return (int)c->arg[1] == fd;
	case SYS_close_range:
		return true;
	}
	return false;
}

static bool is_harmless(const struct hcall *c)
{
	return c->nr == SYS_epoll_ctl || c->nr == SYS_fstat || c->nr == SYS_getsockname || c->nr == SYS_getpeername;
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

/* The call names socket fd. True: *r is its result. */
static bool touch(struct hcall *c, int fd, struct sock *s, int64_t *r)
{
	if (ends_it(c)) {
		if (c->nr == SYS_close)
			drop(fd, s);
		else
			disown(fd, s);
		return false;
	}
	if (is_harmless(c))
		return false;
	if (c->nr == SYS_connect) /* with AF_UNSPEC it has no names any more */
		__atomic_store_n(&guest_sock(fd)->tcp, 0, __ATOMIC_SEQ_CST);
	if (s->left)
		drive_left(fd, s);
	s->eager |= is_read(c->nr) && !s->told_of_data;
	if (!is_write(c->nr))
		give_up(fd, s);
	if (!is_read(c->nr))
		__atomic_store_n(&guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
	if (batch_error_due(c, is_write(c->nr) || is_read(c->nr), &s->err, r))
		return true;
	if (s->left && s->nonblock && (is_write(c->nr) || c->nr == SYS_splice)) {
		*r = -EAGAIN;
		return true;
	}
	return false;
}

static bool touch_all(struct hcall *c, int64_t *r)
{
	bool done = false;
	if (c->nr == SYS_close_range)
		drop_range((unsigned)c->arg[0], (unsigned)c->arg[1]);
	for (int i = 0; i < 6 && !done && c->row->arg[i].kind != KX_A_NONE; i++) {
		int k = c->row->arg[i].kind, fd = (int)c->arg[i];
		if (k != KX_A_FD && k != KX_A_FDN && k != KX_A_FDNEW && k != KX_A_ATFD)
			continue;
		struct sock *s = find(fd);
		if (s)
			done = touch(c, fd, s, r);
	}
	return done;
}

/* Calls of the LibOS's own that nobody outside learns of. */
static bool is_inner(uint64_t nr) { return nr >= HC_FIRST && nr <= HC_LAST; }

bool batch_active(void)
{
	return __atomic_load_n(&nr_socks, __ATOMIC_RELAXED) || __atomic_load_n(&nr_ctxs, __ATOMIC_RELAXED);
}

bool batch_may_serve(struct hcall *c)
{
	if (!ahead_is_wait(c->nr) || !batch_active())
		return true;
	pthread_mutex_lock(&lock);
	bool has = ctx_of(c->t) != NULL;
	pthread_mutex_unlock(&lock);
	return has;
}

bool batch_enter(struct hcall *c, int64_t *r)
{
	bool done = false;
	if ((!nr_socks && !nr_ctxs && !ahead_concerns(c)) || is_vfork_child() || is_inner(c->nr))
		return false;
	pthread_mutex_lock(&lock);
	struct ctx *x = ctx_of(c->t);
	if (mapped)
		__atomic_add_fetch(&shared()->calls, 1, __ATOMIC_SEQ_CST);
	if (x) {
		x->in_guest = false;
		x->g->exits++;
	}
	settle_all();
	ahead_enter(c, x);
	if (x && ahead_is_wait(c->nr))
		ctx_give_up(x);
	if (x && c->nr == SYS_exit)
		ctx_end(x);
	if (nr_socks)
		done = touch_all(c, r);
	for (int i = 0; i < nr_ctxs; i++)
		if (ctxs[i].t && ends_descriptor(c, ctxs[i].g->epoll))
			ctxs[i].g->epoll = -1;
	pthread_mutex_unlock(&lock);
	return done;
}

static void note_result(struct hcall *c, int64_t r)
{
	int fd = (int)c->arg[0];
	struct sock *s = find(fd);
	struct ctx *x;
	switch (c->nr) {
	case SYS_accept:
	case SYS_accept4:
		if (r >= 0)
			accepted(ctx_of(c->t), (int)r);
		return;
	case SYS_epoll_ctl:
		if (r == 0)
			registered(c);
		return;
	case SYS_fcntl:
	case SYS_ioctl:
		if (s && r >= 0)
			s->nonblock = is_nonblocking(fd);
		if (s && !s->nonblock && s->left)
			drain_left(fd, s);
		return;
	}
	if (ahead_is_wait(c->nr) && r > 0)
		after_wait(c, (int)r);
	else if (s && is_write(c->nr) && !s->held && (x = ctx_of(c->t)) &&
		 guest_sock(fd)->owner == (uint32_t)(x - ctxs) + 1) {
		tell_credit(fd, s);
		may_write(x, fd);
		if (c->nr == SYS_sendfile && r > 0 && c->arg[2])
			file_sent(x, (int)c->arg[1]);
	}
}

/* Now, or later by itself. */
static bool may_connect(int64_t r)
{
	return r >= 0 || r == -EINPROGRESS || r == -EALREADY || r == -EINTR || r <= -KX_ERESTART;
}

void batch_leave(struct hcall *c, int64_t r)
{
	bool accepts = c->nr == SYS_accept || c->nr == SYS_accept4;
	if (is_vfork_child() || is_inner(c->nr))
		return;
	if (c->nr == SYS_connect && may_connect(r) && !selfish && kind_of((int)c->arg[0]) != NONE) {
		selfish = true;
		if (mapped)
			shared()->selfish = 1;
	}
	if (!nr_socks && !nr_ctxs && !accepts && !ahead_concerns(c))
		return;
	pthread_mutex_lock(&lock);
	ahead_note(c, r);
	note_result(c, r);
	if (mapped)
		__atomic_add_fetch(&shared()->calls, 1, __ATOMIC_SEQ_CST);
	struct ctx *x = ctx_of(c->t);
	if (x) {
		ahead_leave(x, c, r);
		still_live(x);
		files_look(x);
		x->g->mark = x->g->head;
		x->in_guest = true;
		flusher_due();
	}
	pthread_mutex_unlock(&lock);
}

/* batch_enter() has done it. */
int64_t hc_batch_flush(struct hcall *c)
{
	(void)c;
	return 0;
}

/* ---- processes ------------------------------------------------------------------------------------------------------------ */

void batch_share(int fd)
{
	if (is_vfork_child())
		return;
	if (lease_mine >= 0)
		HC6(SYS_write, lease_mine, "", 1, 0, 0, 0);
	pthread_mutex_lock(&lock);
	ahead_shared(fd);
	if (find(fd))
		disown(fd, find(fd));
	pthread_mutex_unlock(&lock);
}

void batch_fork_lock(void) { pthread_mutex_lock(&lock); }

void batch_fork_share(void)
{
	settle_all();
	ahead_fork(lease_new >= 0);
	for (int fd = 0; fd <= top_fd; fd++) {
		struct sock *s = find(fd);
		if (!s)
			continue;
		__atomic_store_n(&guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&guest_sock(fd)->fresh, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&guest_sock(fd)->tcp, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&guest_sock(fd)->epoll, KX_EPOLL_UNKNOWN, __ATOMIC_SEQ_CST);
		__atomic_store_n(&guest_sock(fd)->owner, 0, __ATOMIC_SEQ_CST);
		give_up(fd, s);
		drain_left(fd, s);
		s->held = true;
	}
	nr_held = nr_socks;
}

int batch_fds(int (*move)(int *fd))
{
	int r = 0;
	pthread_mutex_lock(&lock);
	for (int i = 0; i < nr_leases && !r; i++)
		r = move(&leases[i]);
	int *const inherited[] = { &lease_new, &lease_mine };
	for (int i = 0; i < 2 && !r; i++)
		if (*inherited[i] >= 0 && !(r = move(inherited[i])))
			fcntl(*inherited[i], F_SETFD, 0);
	if (!r)
		r = flusher_fds(move);
	pthread_mutex_unlock(&lock);
	return r;
}

void batch_lease_begin(bool files)
{
	int fd[2] = { -1, -1 };
	if (is_vfork_child() || (!nr_socks && !dgram_active()))
		return;
	fd_limit_lift();
	bool ok = !files && !pipe2(fd, O_CLOEXEC | O_NONBLOCK);
	fd_limit_drop();
	fd[0] = fd_hide(fd[0]);
	fd[1] = fd_hide(fd[1]);
	ok = ok && fd[0] >= 0 && fd[1] >= 0 && !fcntl(fd[1], F_SETFD, 0);
	pthread_mutex_lock(&lock);
	leases_look();
	if (ok && nr_leases < LEASES_MAX && lease_new < 0) {
		leases[nr_leases++] = fd[0];
		lease_new = fd[1];
	} else {
		lease_lost = true;
		close_if(fd[0]);
		close_if(fd[1]);
	}
	pthread_mutex_unlock(&lock);
}

void batch_lease_end(void)
{
	if (is_vfork_child())
		return;
	pthread_mutex_lock(&lock);
	close_if(lease_new);
	lease_new = -1;
	pthread_mutex_unlock(&lock);
}

void batch_fork_unlock(void) { pthread_mutex_unlock(&lock); }

void batch_vfork_begin(void)
{
	if (is_vfork_child())
		return;
	batch_fork_lock();
	batch_fork_share();
	no_new++;
	batch_fork_unlock();
}

void batch_vfork_end(void)
{
	if (is_vfork_child())
		return;
	pthread_mutex_lock(&lock);
	no_new--;
	pthread_mutex_unlock(&lock);
}

void batch_fork_child(void)
{
	if (mapped)
		memset(shared()->ctx_of, 0, sizeof shared()->ctx_of);
	pvm.shared->batch = 0;
	for (int i = 0; i < nr_ctxs; i++)
		ctxs[i].t = NULL;
	for (int fd = 0; fd <= top_fd; fd++) {
		socks[fd].kind = NONE;
		socks[fd].held = false;
	}
	for (int i = 0; i < nr_leases; i++)
		close_if(leases[i]);
	if (lease_new >= 0)
		lease_mine = lease_new; /* those of further forefathers stay open */
	lease_new = -1;
	lease_lost = false;
	flusher_fork_child();
	ahead_fork_child();
	nr_ctxs = no_new = top_fd = nr_socks = nr_held = nr_leases = 0;
}

void batch_end(void)
{
	struct timespec soon;
	if ((!nr_socks && !nr_ctxs) || my_pid() != pvm.pid)
		return;
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_sec += 1;
	if (pthread_mutex_timedlock(&lock, &soon))
		return;
	settle_all();
	for (int fd = 0; fd <= top_fd; fd++)
		if (find(fd) && socks[fd].left)
			drain_left(fd, &socks[fd]);
	pthread_mutex_unlock(&lock);
}
