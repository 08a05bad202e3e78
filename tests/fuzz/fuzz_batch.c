/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzer of batched socket I/O: records and words that the guest writes, a kernel that takes as much as it likes.
 *	fuzz_batch COUNT SEED
 * plays COUNT rounds, the same ones for the same SEED. In two of three the guest keeps the rules: then each byte must
 * arrive once and in order, an end behind all that was before it, and what was read be taken from the kernel, neither
 * more nor less. In the third it breaks them at any moment, also while the monitor is about to use what it wrote: then the
 * process may end, but nothing beside the guest's memory be touched, nor a descriptor that is not the guest's. Build with
 * ASan and UBSan.
 */
#include "../../monitor/core/batch_io.c"
#include "../../monitor/core/batch_left.c"
#include "../../monitor/core/batch_room.c"
#include "../../monitor/core/batch_socks.c"
#include <setjmp.h>
#include <stdio.h>
#include <sys/mman.h>
#include "../fuzz/random.h"

#define REGION (50ul << 20)
#define GUARD (1ul << 20)
#define CTXS 2
#define FIRST 10 /* descriptors: SOCKS of them, one of a file, one of an epoll */
#define SOCKS 6
#define FILE_FD 20
#define EPOLL_FD 21
#define LIMIT 64
#define ALL_FDS 512
#define STREAM_MAX (1u << 20)
#define FILE_SIZE (300u << 10)

struct pvm pvm;
struct batch_state batch;
static bool hostile;
static jmp_buf ended;
static int panics;
static unsigned long sent_bytes, read_bytes, kept, on_after_close, named;

/* ---- the kernel -------------------------------------------------------------------------------------------------- */

static struct stream {
	uint8_t due[STREAM_MAX]; /* what the guest has sent */
	uint32_t nr_due, got;
	uint32_t end_at; /* of it, before the end was due; UINT32_MAX: it is not */
	bool ended;
	int refs;
	uint32_t rx, rx_read; /* of an endless stream: taken from the kernel, had by the guest */
} streams[256];
static int nr_streams;
static int stream_of[ALL_FDS]; /* -1 = none */
static bool generous;          /* it takes all */

static _Noreturn void wrong(const char *what)
{
	fprintf(stderr, "fuzz_batch: %s\n", what);
	abort();
}

static uint8_t pattern(uint64_t at) { return (uint8_t)(at * 7 + at / 251 + at / 65521); }

static struct stream *open_stream(long fd)
{
	if (fd < 0 || fd >= ALL_FDS || stream_of[fd] < 0)
		return NULL;
	return &streams[stream_of[fd]];
}

static void lies(void);

static long k_send(long fd, const uint8_t *p, size_t n, int flags)
{
	static uint8_t copy[KX_BATCH_FILE_MAX];
	struct stream *s = open_stream(fd);
	if (flags & ~(MSG_MORE | MSG_DONTWAIT | MSG_NOSIGNAL) || !(flags & MSG_DONTWAIT) || n > sizeof copy)
		wrong("a send with other flags, or too long");
	uint64_t in = (uint64_t)p - (uint64_t)gva_ptr(KX_BATCH_BASE), at = in % KX_BATCH_CTX;
	if (in < REGION && (in < KX_BATCH_CTX || at < KX_BATCH_TX || at + n > KX_BATCH_TX + KX_BATCH_TX_SIZE))
		wrong("a send of what is not in a ring");
	memcpy(copy, p, n);
	if (!s)
		return -EBADF;
	if (s->ended)
		return -EPIPE;
	uint64_t take = generous || below(3) ? n : below(n + 1);
	if (!generous && below(3) == 0)
		return -EAGAIN;
	if (!take && n)
		return -EAGAIN;
	if (!hostile && (s->got + take > s->nr_due || memcmp(s->due + s->got, copy, take)))
		wrong("bytes out of order");
	s->got += (uint32_t)take;
	sent_bytes += take;
	return (long)take;
}

static void k_end(struct stream *s)
{
	if (!hostile && !s->ended && (s->end_at == UINT32_MAX || s->got != s->end_at))
		wrong("an end before what was to come");
	s->ended = true;
}

static long k_close(long fd)
{
	struct stream *s = open_stream(fd);
	if (!s)
		return -EBADF;
	stream_of[fd] = -1;
	if (--s->refs == 0)
		k_end(s);
	return 0;
}

static long k_dup(long fd, long from)
{
	struct stream *s = open_stream(fd);
	if (!s || from != LIMIT)
		wrong("a copy of another descriptor, or into the guest's range");
	for (; from < ALL_FDS; from++)
		if (stream_of[from] < 0) {
			stream_of[from] = stream_of[fd];
			s->refs++;
			on_after_close++;
			return from;
		}
	return -EMFILE;
}

static long k_receive(long fd, uint8_t *p, size_t n, int flags)
{
	struct stream *s = open_stream(fd);
	if (!s)
		return -EBADF;
	if (!(flags & MSG_DONTWAIT) || n > FETCH_MAX)
		wrong("a receive that waits, or is too long");
	if (!generous && n && below(4) == 0)
		n = flags & MSG_PEEK ? below(n + 1) : 1 + below(n);
	if (!n)
		return -EAGAIN;
	for (size_t i = 0; i < n && (flags & MSG_PEEK || !(flags & MSG_TRUNC)); i++)
		p[i] = pattern(s->rx + i);
	if (!(flags & MSG_PEEK))
		s->rx += (uint32_t)n;
	return (long)n;
}

static long k_option(int level, int opt, void *p, socklen_t *len)
{
	uint32_t m[SK_MEMINFO_VARS] = { 0 };
	int v = level == IPPROTO_TCP ? (opt == TCP_MAXSEG ? 1448 : 0)
		: opt == SO_TYPE     ? SOCK_STREAM
		: opt == SO_DOMAIN   ? AF_INET
		: opt == SO_PROTOCOL ? IPPROTO_TCP
				     : -1;
	if (level == SOL_SOCKET && opt == SO_PEEK_OFF)
		return -EOPNOTSUPP;
	if (level == SOL_SOCKET && opt == SO_LINGER) {
		memset(p, 0, sizeof(struct linger));
	} else if (level == SOL_SOCKET && opt == SO_MEMINFO) {
		m[SK_MEMINFO_SNDBUF] = 1u << 20;
		memcpy(p, m, *len < sizeof m ? *len : sizeof m);
	} else {
		memcpy(p, &v, sizeof v);
	}
	return 0;
}

static long k_file(uint8_t *p, size_t n, uint64_t at)
{
	size_t got = at >= FILE_SIZE ? 0 : n < FILE_SIZE - at ? n : FILE_SIZE - at;
	for (size_t i = 0; p && i < got; i++)
		p[i] = pattern(at + i);
	return (long)got;
}

static long k_sendfile(long fd, uint64_t *offset, size_t n)
{
	static uint8_t pages[KX_BATCH_FILE_MAX];
	if (n > sizeof pages)
		wrong("too much of a file");
	long got = k_file(pages, n, *offset);
	return got > 0 ? k_send(fd, pages, (size_t)got, MSG_DONTWAIT) : got;
}

long host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	(void)f;
	if (hostile)
		lies();
	switch (nr) {
	case SYS_sendto:
		return e || c > KX_BATCH_SEND_MAX ? (wrong("a send to an address, or of too much"), 0)
						  : k_send(a, (void *)b, (size_t)c, (int)d);
	case SYS_recvfrom:
		return k_receive(a, (void *)b, (size_t)c, (int)d);
	case SYS_close:
		return k_close(a);
	case SYS_shutdown:
		if (open_stream(a) && c == 0 && b != SHUT_RD)
			k_end(open_stream(a));
		return 0;
	case SYS_connect:
		return open_stream(a) ? (open_stream(a)->ended = true, 0) : -EBADF;
	case SYS_fcntl:
		return b == F_DUPFD_CLOEXEC ? k_dup(a, c) : b == F_GETFL ? O_RDWR | O_NONBLOCK : -EINVAL;
	case SYS_getsockopt:
		return k_option((int)b, (int)c, (void *)d, (socklen_t *)e);
	case SYS_epoll_ctl:
		if (!fd_is_guest((int)a) || !fd_is_guest((int)c))
			wrong("an epoll or a descriptor that is not the guest's");
		return below(8) ? 0 : -ENOENT;
	case SYS_setsockopt:
	case SYS_ioctl:
		return *(volatile int *)(nr == SYS_ioctl ? c : d) ? 0 : 0;
	case SYS_sendfile:
		return b == FILE_FD ? k_sendfile(a, (uint64_t *)c, (size_t)d) : (wrong("another file"), 0);
	case SYS_pread64:
		return a == FILE_FD ? k_file((void *)b, (size_t)c, (uint64_t)d) : (wrong("another file"), 0);
	case SYS_ppoll:
	case SYS_rt_sigprocmask:
	case SYS_rt_sigtimedwait:
	case SYS_getpeername:
	case SYS_getsockname:
		return 0;
	}
	wrong("a call that nobody expected");
}

/* ---- the rest of the monitor --------------------------------------------------------------------------------------- */

void pvm_panic(const char *fmt, ...)
{
	if (!hostile)
		wrong(fmt);
	panics++;
	longjmp(ended, 1);
}
void fd_limit_lift(void) {}
void fd_limit_drop(void) {}
void flusher_due(void) {}
int proc_file(const char *name) { return (void)name, -1; }
int guest_read(void *dst, uint64_t gva, size_t len) { return memcpy(dst, gva_ptr(gva), len), 0; }
int guest_write(uint64_t gva, const void *src, size_t len) { return memcpy(gva_ptr(gva), src, len), 0; }
int gmem_sys_open(uint64_t gva) { return (void)gva, 0; }
int openahead_fd(int file) { return file ? -1 : FILE_FD; }
bool batch_has_leases(void) { return false; }
void accept_commit(void) {}
bool accept_holds(int fd) { return (void)fd, false; }
bool accept_closes(int fd) { return (void)fd, false; }
/* A connection in no epoll: of the descriptor that the index is. */
int accept_name(int fd, const uint8_t *data)
{
	struct kx_bfd name;
	memcpy(&name, data, sizeof name);
	const int from = (int)name.index;
	const struct sock *s = batch_sock(from);
	if (!s || s->epoll >= 0 || fd < FIRST || fd >= LIMIT || stream_of[fd] >= 0 || batch_sock(fd))
		return -EINVAL;
	stream_of[fd] = stream_of[from];
	stream_of[from] = -1;
	batch_renamed(from, fd);
	named++;
	return 0;
}
void ahead_lost(const struct sock *s) { (void)s; }
void ahead_registered(int epoll, uint32_t events) { (void)epoll, (void)events; }
void heir_closed(struct sock *s) { s->heir = 0; }
void heir_lost(struct sock *s) { s->heir = 0; }
bool heir_is_last(struct sock *s) { return (void)s, false; }
void lend_settle(int fd, struct sock *s, bool end) { (void)fd, (void)s, (void)end; }
void lend_close(int fd, struct sock *s) { (void)fd, (void)s; }
bool lend_fetch_begin(int fd, struct sock *s) { return (void)fd, (void)s, false; }
bool lend_fetch_end(int fd, struct sock *s, uint32_t n, uint64_t w)
{
	return (void)fd, (void)s, (void)n, (void)w, false;
}
bool sigs_offered(void) { return false; }
int sigs_record(const uint8_t *data)
{
	struct kx_bkill k;
	memcpy(&k, data, sizeof k);
	return k.signo > 0 ? 0 : k.signo ? -EAGAIN : -EINVAL;
}
bool writelater_record(int ctx, int fd, const uint8_t *data, uint32_t len)
{
	static uint8_t copy[KX_BATCH_SEND_MAX];
	memcpy(copy, data, len);
	return ctx >= 0 && fd == FILE_FD;
}

/* ---- the guest ------------------------------------------------------------------------------------------------------ */

static struct thread threads[CTXS];

static struct kx_brec *ring_room(struct ctx *x, uint32_t len)
{
	struct kx_bctx *g = x->g;
	uint8_t *ring = (uint8_t *)g + KX_BATCH_TX;
	uint64_t size = sizeof(struct kx_brec) + (((uint64_t)len + 31) & ~31ull), at = g->head % KX_BATCH_TX_SIZE;
	uint64_t fill = at + size > KX_BATCH_TX_SIZE ? KX_BATCH_TX_SIZE - at : 0;
	if (g->head + fill + size - g->tail > KX_BATCH_TX_SIZE)
		return NULL;
	if (fill) {
		*(struct kx_brec *)(ring + at) = (struct kx_brec){ .fd = -1, .len = (uint32_t)(fill - 32) };
		g->head += fill;
	}
	return (struct kx_brec *)(ring + g->head % KX_BATCH_TX_SIZE);
}

static bool put(struct ctx *x, int fd, uint32_t flags, const void *data, uint32_t len)
{
	struct kx_brec *r = ring_room(x, len);
	if (!r)
		return false;
	*r = (struct kx_brec){ .fd = fd, .gen = batch_guest_sock(fd)->gen, .len = len, .flags = flags };
	r->ticket = batch_shared()->ticket++;
	if (len)
		memcpy(r + 1, data, len);
	x->g->head += sizeof *r + ((len + 31) & ~31u);
	return true;
}

static void guest_writes(struct ctx *x, int fd)
{
	static uint8_t data[KX_BATCH_SEND_MAX];
	struct stream *s = open_stream(fd);
	uint32_t len = (uint32_t)(below(8) ? 1 + below(3000) : 1 + below(sizeof data));
	if (!s || s->end_at != UINT32_MAX || s->nr_due + len > STREAM_MAX)
		return;
	for (uint32_t i = 0; i < len; i++)
		data[i] = (uint8_t)rnd();
	struct kx_brec *r = ring_room(x, len);
	if (!r || !put(x, fd, below(2) ? MSG_MORE : 0, data, len))
		return;
	if (below(16) == 0) { /* of a connection that another thread has closed, and that had this number */
		r->gen--;
		return;
	}
	memcpy(s->due + s->nr_due, data, len);
	s->nr_due += len;
}

static void guest_sends_file(struct ctx *x, int fd)
{
	struct stream *s = open_stream(fd);
	uint32_t len = (uint32_t)(1 + below(100000));
	uint64_t from = below(FILE_SIZE - 100000);
	struct kx_bfrom f = { from, below(2) ? FILE_FD : KX_OPENAHEAD_FD(0), len };
	if (!s || s->end_at != UINT32_MAX || s->nr_due + len > STREAM_MAX || !put(x, fd, KX_BREC_FILE, &f, sizeof f))
		return;
	for (uint32_t i = 0; i < len; i++)
		s->due[s->nr_due++] = pattern(from + i);
}

static void guest_ends(struct ctx *x, int fd, uint32_t how)
{
	struct stream *s = open_stream(fd);
	if (!s || (how == KX_BREC_SHUT && s->end_at != UINT32_MAX) || !put(x, fd, how, NULL, 0))
		return;
	if (s->end_at == UINT32_MAX)
		s->end_at = s->nr_due;
}

static void guest_registers(struct ctx *x, int fd)
{
	static const uint32_t ops[] = { KX_BREC_ADD, KX_BREC_MOD, KX_BREC_DEL };
	struct kx_badd add = { (uint64_t)fd, EPOLLIN, EPOLL_FD };
	struct kx_bopt opt = { IPPROTO_TCP, TCP_NODELAY, 1, 0 };
	struct stream *s = open_stream(fd);
	/* What fails ends the connection. */
	if (s && hostile && below(2))
		put(x, fd, ops[below(3)], &add, sizeof add);
	else if (s)
		put(x, fd, KX_BREC_OPT, &opt, sizeof opt);
}

/* A connection that is in no epoll has another number for the program. */
static void guest_names(struct ctx *x, int fd)
{
	const struct kx_bfd name = { .index = (uint32_t)fd };
	int to = FIRST;
	while (to < fd && (stream_of[to] >= 0 || batch_sock(to)))
		to++;
	if (to >= fd || batch_sock(fd)->epoll >= 0)
		return;
	if (!put(x, to, KX_BREC_NAME, &name, sizeof name))
		wrong("no room for a name");
	batch_flush();
}

/* Of what was fetched. */
static void guest_reads(int fd)
{
	struct kx_bsock *g = batch_guest_sock(fd);
	struct stream *s = open_stream(fd);
	uint64_t w = g->rx;
	if (!s || !(w & KX_RX_VALID) || hostile)
		return;
	uint32_t left = KX_RX_END(w) - KX_RX_POS(w), n = (uint32_t)below(left + 1);
	const uint8_t *p = gva_ptr(KX_BATCH_BASE + g->buf + KX_RX_POS(w));
	for (uint32_t i = 0; i < n; i++)
		if (p[i] != pattern(s->rx_read + i))
			wrong("other bytes to be read than have come");
	s->rx_read += n;
	read_bytes += n;
	g->rx = w + n;
}

/* What the monitor looks at next, and all but right. */
static void plausible(struct ctx *x, struct kx_brec *r)
{
	int fd = FIRST + (int)below(SOCKS);
	struct kx_bfrom f = { below(FILE_SIZE), FILE_FD, (uint32_t)below(4 * KX_BATCH_FILE_MAX) };
	*r = (struct kx_brec){ .fd = fd, .gen = batch_guest_sock(fd)->gen, .len = (uint32_t)below(KX_BATCH_TX_SIZE) };
	if (below(3) == 0) {
		r->flags = KX_BREC_FILE;
		r->len = sizeof f;
		if ((uint8_t *)(r + 2) <= (uint8_t *)x->g + KX_BATCH_TX + KX_BATCH_TX_SIZE)
			memcpy(r + 1, &f, sizeof f);
	}
	x->g->head = x->tail + (below(2) ? KX_BATCH_TX_SIZE : 32 * below(KX_BATCH_TX_SIZE / 32));
}

/* Anything, anywhere; what the monitor reads most of all. */
static void lies(void)
{
	if (below(4))
		return;
	struct ctx *x = &batch.ctxs[below(CTXS)];
	uint8_t *ring = (uint8_t *)x->g + KX_BATCH_TX;
	struct kx_bsock *g = batch_guest_sock(FIRST + (int)below(SOCKS));
	static const uint32_t flags[] = { KX_BREC_FILE, KX_BREC_CLOSE, KX_BREC_ADD,   KX_BREC_DEL,  KX_BREC_MOD,
					  KX_BREC_OPT,  KX_BREC_SHUT,  KX_BREC_WRITE, KX_BREC_KILL, KX_BREC_NAME };
	uint64_t at = (x->tail + 32 * below(64)) % KX_BATCH_TX_SIZE;
	struct kx_brec *r = (struct kx_brec *)(ring + (at & ~31ull));
	switch (below(14)) {
	case 12:
	case 13:
		plausible(x, (struct kx_brec *)(ring + x->tail % KX_BATCH_TX_SIZE));
		break;
	case 0:
		r->len = below(2) ? (uint32_t)rnd() : (uint32_t)below(70000);
		break;
	case 1:
		r->flags = flags[below(10)] | (below(4) ? 0 : (uint32_t)rnd());
		r->len = below(2) ? 16 : below(2) ? sizeof(struct kx_bfd) : r->len;
		break;
	case 2:
		r->fd = below(2) ? (int)rnd() : (int)below(LIMIT) - 2;
		break;
	case 3:
		x->g->head = below(2) ? rnd() : x->g->head + 32 * below(40);
		break;
	case 4:
		g->rx = below(2) ? rnd() : g->rx + below(1u << 25);
		break;
	case 5:
		g->gen = (uint32_t)below(4);
		g->turn = (uint32_t)rnd();
		break;
	case 6:
		r->ticket = rnd();
		break;
	case 7:
		g->buf = (uint32_t)rnd();
		g->owner = (uint32_t)below(4);
		break;
	case 8:
		x->g->exits = rnd();
		x->g->turn = rnd();
		break;
	default:
		for (int i = 0; i < 16; i++)
			((uint8_t *)r)[32 + below(64)] = (uint8_t)(below(2) ? rnd() : 0xff);
	}
}

/* ---- a round --------------------------------------------------------------------------------------------------------- */

static void accept_one(int fd)
{
	if (nr_streams == (int)(sizeof streams / sizeof *streams))
		return;
	struct stream *s = &streams[nr_streams];
	s->nr_due = s->got = s->rx = s->rx_read = 0;
	s->ended = false;
	s->refs = 1;
	s->end_at = UINT32_MAX;
	stream_of[fd] = nr_streams++;
	batch_accepted(&batch.ctxs[0], fd);
	if (!batch_sock(fd))
		wrong("a connection that is not batched");
}

static void begin(void)
{
	memset(stream_of, -1, sizeof stream_of);
	batch_closed_fork_child();
	for (int fd = 0; fd <= batch.top_fd; fd++)
		batch_drop_left(&batch.socks[fd]);
	if (batch.left_bytes && !hostile && !panics)
		wrong("memory of nobody's");
	memset(batch.socks, 0, KX_BATCH_FDS * sizeof *batch.socks);
	memset(batch.ctxs, 0, KX_BATCH_CTXS * sizeof *batch.ctxs);
	batch = (struct batch_state){ .socks = batch.socks, .ctxs = batch.ctxs };
	memset(gva_ptr(KX_BATCH_BASE), 0, KX_BATCH_CTX);
	nr_streams = 0;
	batch.mapped = true;
	batch.nr_ctxs = CTXS;
	for (int i = 0; i < CTXS; i++) {
		struct ctx *x = &batch.ctxs[i];
		x->t = &threads[i];
		x->g = gva_ptr(batch_ctx_gva(x));
		x->tail = 32 * below(1u << 20);
		*x->g = (struct kx_bctx){ .epoll = -1, .head = x->tail, .tail = x->tail };
		x->file[0].fd = FILE_FD;
		for (int k = 1; k < KX_BATCH_FILES; k++)
			x->file[k].fd = -1;
	}
	for (int i = 0; i < SOCKS; i++)
		accept_one(FIRST + i);
}

static void drive_all(void)
{
	for (int fd = 0; fd <= batch.top_fd; fd++)
		if (batch_sock(fd) && batch.socks[fd].left) {
			kept++;
			batch_drive_left(fd, &batch.socks[fd]);
		}
	batch_drive_closed();
}

static void step(void)
{
	struct ctx *x = &batch.ctxs[below(CTXS)];
	int fd = FIRST + (int)below(SOCKS);
	struct sock *s = batch_sock(fd);
	switch (below(14)) {
	case 0:
	case 1:
	case 2:
	case 3:
		guest_writes(x, fd);
		break;
	case 4:
		guest_sends_file(x, fd);
		break;
	case 5:
		if (below(3) == 0)
			guest_ends(x, fd, KX_BREC_SHUT);
		break;
	case 6:
		if (below(3) == 0) {
			guest_ends(x, fd, KX_BREC_CLOSE);
			batch_flush();
		}
		break;
	case 7:
		guest_registers(x, fd);
		break;
	case 8:
		drive_all();
		break;
	case 9:
		if (s)
			batch_ready(x, fd, s, EPOLLIN);
		break;
	case 10:
		guest_reads(fd);
		break;
	case 11:
		if (s) {
			batch_give_up(fd, s);
			if (!hostile && open_stream(fd)->rx != open_stream(fd)->rx_read)
				wrong("more or less was taken than was read");
		}
		break;
	case 12:
		if (stream_of[fd] < 0 && !s)
			accept_one(fd);
		else if (s && ring_room(x, 4096))
			guest_names(x, fd);
		break;
	default:
		batch_flush();
	}
}

/* What a call finds must be what the guest has left: all is taken, and all sent in the end. */
static void finish(void)
{
	generous = true;
	batch_flush();
	for (int i = 0; i < SOCKS; i++) {
		struct sock *s = batch_sock(FIRST + i);
		if (s)
			batch_give_up(FIRST + i, s);
	}
	drive_all();
	for (int i = 0; !hostile && i < nr_streams; i++) {
		struct stream *s = &streams[i];
		if (s->got != s->nr_due)
			wrong("bytes that never came");
		if (s->rx != s->rx_read && s->refs)
			wrong("more or less was taken than was read");
		if (s->end_at != UINT32_MAX && !s->ended)
			wrong("an end that never came");
	}
	if (!hostile && (batch.left_bytes || batch_has_closed()))
		wrong("something is left of what was sent");
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: fuzz_batch COUNT SEED\n");
		return 2;
	}
	state = strtoull(argv[2], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
	uint8_t *p = mmap(NULL, REGION + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED || mprotect(p + GUARD, REGION, PROT_READ | PROT_WRITE) || !batch_tables())
		return 2;
	pvm.base = (void *)((uintptr_t)(p + GUARD) - KX_BATCH_BASE);
	pvm.fd_limit = pvm.fd_max = LIMIT;
	unsigned long count = strtoul(argv[1], NULL, 0);
	for (unsigned long i = 0; i < count; i++) {
		hostile = generous = false;
		begin();
		generous = below(4) == 0;
		hostile = i % 3 == 2;
		if (setjmp(ended))
			continue;
		for (int n = 0; n < 60; n++)
			step();
		finish();
	}
	if (count >= 300 &&
	    (!panics || sent_bytes < count * 1000 || !read_bytes || !kept || !on_after_close || !named)) {
		fprintf(stderr, "fuzz_batch: %d ends, %lu bytes sent, %lu read, %lu kept, %lu on after close\n", panics,
			sent_bytes, read_bytes, kept, on_after_close);
		return 1;
	}
	printf("fuzz_batch: %s rounds, %d ended, no failure\n", argv[1], panics);
	return 0;
}
