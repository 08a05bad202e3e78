/* SPDX-License-Identifier: Apache-2.0 */
/*
 * read and write on a pipe or socket pair of the family's, as long as there is data or room, or will be soon. Everything
 * else is the monitor's (monitor/core/pipe.c, pair.c): sleeping, end of file, SIGPIPE, locks whose holder was killed.
 */
#include "../../abi/kx_pipe.h"
#include "../../abi/kx_serve.h"
#include "libos.h"

#define TABLE ((struct kx_pipe_table *)KX_PIPE_TABLE)
#define PIPES ((struct kx_pipes *)KX_PIPE_BASE)
#define CHUNK 16384u              /* a large write is seen by the reader so often */
#define CHECK_CYCLES (1ull << 24) /* so long a writer believes that its reader lives: 4 to 10 ms */
/* Cycles. Sleep and wake-up together cost some exits; to wait as long as that loses no more than it wins. */
#define SPIN_LEAST 30000u
#define SPIN_MOST 600000u
#define RETRY 16        /* sleeps until one that did not spin tries it again */
#define TURNS_MOST 1000 /* that find nothing where something was: the monitor's, who sees signals */
#define PIECES 16
#define NR_sendto 44
#define NR_recvfrom 45
#define NR_sendmsg 46
#define NR_recvmsg 47
#define MSG_PEEK 2u
#define MSG_TRUNC 0x20u
#define MSG_DONTWAIT 0x40u
#define MSG_EOR 0x80u
#define MSG_WAITALL 0x100u
#define MSG_NOSIGNAL 0x4000u
#define MSG_CMSG_CLOEXEC 0x40000000u
#define WRITE_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR)
#define READ_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_PEEK | MSG_WAITALL | MSG_TRUNC | MSG_CMSG_CLOEXEC)

struct piece {
	uint64_t base, len;
};

/* struct user_msghdr of the kernel. */
struct message {
	uint64_t name;
	uint32_t namelen, pad;
	uint64_t iov, iovlen, control, controllen;
	uint32_t flags, pad2;
};

struct transfer {
	struct kx_thread *t;
	struct kx_pipe_fd *e;
	struct kx_pipe *o, *first; /* first: of a socket pair, that of both directions; else o */
	uint8_t *ring;
	uint64_t live, fd;
	uint32_t *nonblock, *watched;
	uint32_t flags;   /* of sendto, recvfrom and the like */
	uint32_t kind;    /* of a pair */
	uint64_t message; /* address of the header */
	uint64_t name;    /* in it */
	bool pair, send;
	struct piece v[PIECES];
	unsigned n, i;
	uint64_t at, total; /* bytes done of piece i; of all */
};

static uint64_t cycles(void) { return __builtin_ia32_rdtsc(); }

static bool is_live(const struct transfer *x) { return __atomic_load_n(&x->first->state, __ATOMIC_ACQUIRE) == x->live; }

static uint32_t used_of(const struct kx_pipe *o)
{
	uint64_t n = __atomic_load_n(&o->head, __ATOMIC_ACQUIRE) - __atomic_load_n(&o->tail, __ATOMIC_ACQUIRE);
	return n > KX_PIPE_RING ? 0 : (uint32_t)n;
}

/* False after a while: its holder lost the CPU, or was killed. */
static bool lock(const struct transfer *x, uint64_t *l)
{
	uint64_t me = (uint64_t)x->t->pid << 32 | x->t->tid;
	for (unsigned i = 0; i < 2000; i++) {
		uint64_t none = 0;
		if (!__atomic_load_n(l, __ATOMIC_RELAXED) &&
		    __atomic_compare_exchange_n(l, &none, me, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return true;
		__builtin_ia32_pause();
	}
	return false;
}

static void unlock(uint64_t *l) { __atomic_store_n(l, 0, __ATOMIC_RELEASE); }

/* Flags and vector of one that is a message. */
static bool message(struct transfer *x, const struct kx_frame *f, bool writes)
{
	struct message m;
	x->flags = (uint32_t)f->rdx;
	x->message = f->rsi;
	if (user_read(&m, f->rsi, sizeof m) || m.iovlen > PIECES ||
	    (writes && (m.controllen || (m.name && m.namelen))) || user_read(x->v, m.iov, m.iovlen * sizeof *x->v))
		return false;
	x->name = m.name;
	x->n = (unsigned)m.iovlen;
	return true;
}

/* recvmsg has received: `truncated` of a record. */
static int64_t message_done(const struct transfer *x, bool truncated, int64_t ret)
{
	uint32_t none = 0, flags = (x->flags & MSG_CMSG_CLOEXEC) | (truncated ? MSG_TRUNC : 0);
	uint64_t no_control = 0;
	if (!x->message || ret < 0)
		return ret;
	if ((x->name && user_write(x->message + offsetof(struct message, namelen), &none, sizeof none)) ||
	    user_write(x->message + offsetof(struct message, flags), &flags, sizeof flags) ||
	    user_write(x->message + offsetof(struct message, controllen), &no_control, sizeof no_control))
		return -KX_EFAULT;
	return ret;
}

static bool is_socket_call(uint64_t nr) { return nr >= NR_sendto && nr <= NR_recvmsg; }

static bool setup(struct transfer *x, struct kx_thread *t, struct kx_frame *f, bool writes)
{
	x->fd = f->rdi;
	/* Whoever learns of this may send a signal that is blocked here, and ignored by the host, which does not know: an exit
	 * tells it first. */
	if ((uint32_t)x->fd >= KX_PIPE_FDS || !TABLE->on || t->vfork || serve_mask_lags(t))
		return false;
	x->e = &TABLE->fd[(uint32_t)x->fd];
	uint64_t key = __atomic_load_n(&x->e->key, __ATOMIC_ACQUIRE), nr = f->orig_rax;
	unsigned i = kx_pipe_way(key, writes), first = kx_pipe_obj(key);
	x->pair = kx_pipe_pair(key);
	x->send = nr == NR_sendto || nr == NR_sendmsg;
	x->message = 0;
	x->flags = nr == NR_sendto || nr == NR_recvfrom ? (uint32_t)f->r10 : 0;
	if (!key || first >= KX_PIPE_OBJECTS || i >= KX_PIPE_OBJECTS || (!x->pair && kx_pipe_end(key) != writes) ||
	    (is_socket_call(nr) && !x->pair) || ((nr == NR_sendto || nr == NR_recvfrom) && f->r8) ||
	    ((nr == NR_sendmsg || nr == NR_recvmsg) && !message(x, f, writes)) ||
	    x->flags & ~(writes ? WRITE_FLAGS : READ_FLAGS))
		return false;
	x->t = t;
	x->o = &PIPES->obj[i];
	x->first = &PIPES->obj[first];
	x->kind = x->pair ? x->o->kind : KX_PAIR_STREAM;
	x->nonblock = &x->first->nonblock[kx_pipe_end(key)];
	x->watched = &x->first->watched[kx_pipe_end(key)];
	x->ring = (uint8_t *)KX_PIPE_BASE + KX_PIPE_DATA + (uint64_t)i * KX_PIPE_RING;
	x->live = kx_pipe_live(key);
	if (nr == NR_sendmsg || nr == NR_recvmsg) {
		;
	} else if (nr == 19 || nr == 20) {
		x->n = (uint32_t)f->rdx;
		if (x->n > PIECES || user_read(x->v, f->rsi, x->n * sizeof *x->v))
			return false;
	} else {
		x->n = 1;
		x->v[0] = (struct piece){ f->rsi, f->rdx };
	}
	x->i = 0;
	x->at = x->total = 0;
	for (unsigned k = 0; k < x->n; k++) {
		if (x->v[k].len > 0x7ffff000 || (x->v[k].len && !user_ok(x->v[k].base, x->v[k].len)))
			return false;
		x->total += x->v[k].len;
	}
	return x->total && x->total <= (x->kind == KX_PAIR_STREAM || !writes ? 0x7ffff000 : KX_PAIR_LARGEST) &&
	       is_live(x);
}

/* Between the ring at pos and the program, len bytes or until a fault: how many. */
static uint32_t copy(struct transfer *x, uint64_t pos, uint32_t len, bool writes)
{
	uint32_t done = 0;
	while (done < len) {
		const struct piece *p = &x->v[x->i];
		if (x->at == p->len) {
			x->i++;
			x->at = 0;
			continue;
		}
		uint32_t off = (uint32_t)((pos + done) % KX_PIPE_RING), n = len - done;
		if (n > KX_PIPE_RING - off)
			n = KX_PIPE_RING - off;
		if (n > p->len - x->at)
			n = (uint32_t)(p->len - x->at);
		void *user = (void *)(p->base + x->at);
		if (writes ? uaccess_copy(x->ring + off, user, n) : uaccess_copy(user, x->ring + off, n))
			break;
		x->at += n;
		done += n;
	}
	return done;
}

static uint32_t spin_most(void)
{
	uint32_t n = 3 * TABLE->exit_cycles;
	return n < SPIN_LEAST ? SPIN_LEAST : n > SPIN_MOST ? SPIN_MOST : n;
}

/* Until there is something to read, or room; as long as that was worth it lately. */
static bool wait(struct transfer *x, bool writes, uint32_t need)
{
	struct kx_pipe_fd *e = x->e;
	uint32_t most = spin_most(), budget = e->spin < most ? e->spin : most;
	if (TABLE->cpus < 2 || (!budget && e->missed++ % RETRY))
		return false;
	if (!budget)
		budget = most;
	futex_pay(x->t);
	for (uint64_t end = cycles() + budget; cycles() < end;) {
		uint32_t n = used_of(x->o);
		if (writes ? KX_PIPE_RING - n >= need : n) {
			e->spin = most;
			e->missed = 0;
			return true;
		}
		if (__atomic_load_n(&x->t->work, __ATOMIC_RELAXED) || !is_live(x))
			return false;
		__builtin_ia32_pause();
	}
	e->spin = budget > most / 4 ? budget - most / 4 : 0;
	return false;
}

/* Nothing is known that the host was not asked about since. */
static bool no_news(const struct transfer *x)
{
	return x->e->epoch == __atomic_load_n(&PIPES->epoch, __ATOMIC_SEQ_CST) &&
	       x->e->closes == __atomic_load_n(&x->first->closes, __ATOMIC_SEQ_CST);
}

/* The host was asked a short while ago whether the other side is there, and nothing is known that could be news. */
static bool fresh(struct transfer *x)
{
	struct kx_pipe_fd *e = x->e;
	if (!no_news(x))
		return false;
	uint64_t now = cycles();
	if (!e->tsc)
		e->tsc = now;
	return now - e->tsc < CHECK_CYCLES;
}

static void wake(struct transfer *x, bool wrote)
{
	uint64_t start = cycles();
	hypercall(x->t, HC_pipe_wake, x->fd, wrote, 0, 0, 0, 0);
	uint64_t n = cycles() - start;
	TABLE->exit_cycles = (3 * TABLE->exit_cycles + (uint32_t)(n < SPIN_MOST ? n : SPIN_MOST)) / 4;
}

static bool never_sleeps(const struct transfer *x)
{
	return x->flags & MSG_DONTWAIT || __atomic_load_n(x->nonblock, __ATOMIC_RELAXED);
}

/* With the readers' lock, of n bytes that are there: what the call gives; *far: how far the cursor goes. 0: nothing. */
static int64_t take(struct transfer *x, uint32_t n, uint32_t *far, bool *truncated)
{
	struct kx_pipe *o = x->o;
	uint64_t tail = o->tail;
	if (x->kind == KX_PAIR_STREAM) {
		n = n < x->total ? n : (uint32_t)x->total;
		*far = copy(x, tail, n, false);
		return *far ? (int64_t)*far : -KX_EFAULT;
	}
	uint32_t len = (uint32_t) * (volatile uint64_t *)(x->ring + (tail % KX_PIPE_RING & ~7ull));
	if (len > KX_PAIR_LARGEST || kx_pair_slot(len) > n)
		return 0; /* nonsense is the monitor's */
	uint32_t m = len < x->total ? len : (uint32_t)x->total;
	*far = kx_pair_slot(len);
	*truncated = len > x->total;
	if (copy(x, tail + KX_PAIR_HEAD, m, false) < m)
		return -KX_EFAULT;
	return x->flags & MSG_TRUNC ? len : m;
}

static bool read_ring(struct transfer *x, int64_t *ret)
{
	struct kx_pipe *o = x->o;
	for (unsigned turn = 0; turn < TURNS_MOST; turn++) {
		/* An error comes before records: the other end may have been closed. */
		if (x->kind == KX_PAIR_RECORDS && !no_news(x))
			return false;
		if (!lock(x, &o->rlock))
			return false;
		uint32_t n = is_live(x) ? used_of(o) : 0, far = 0;
		bool truncated = false, all = !(x->flags & MSG_WAITALL) || x->kind != KX_PAIR_STREAM;
		if (n && (all || n >= x->total)) {
			int64_t r = take(x, n, &far, &truncated);
			if (!(x->flags & MSG_PEEK))
				__atomic_store_n(&o->tail, o->tail + far, __ATOMIC_SEQ_CST);
			unlock(&o->rlock);
			if (!far && r >= 0)
				return false;
			if (far && !(x->flags & MSG_PEEK) &&
			    (__atomic_load_n(&o->full, __ATOMIC_SEQ_CST) ||
			     __atomic_load_n(&o->filled, __ATOMIC_SEQ_CST)))
				wake(x, false);
			*ret = message_done(x, truncated, r);
			return true;
		}
		unlock(&o->rlock);
		if (n || !is_live(x))
			return false;
		if (never_sleeps(x)) {
			/* Whoever holds the lock may have told the host already of what comes. */
			if (!fresh(x) || (x->pair && __atomic_load_n(&o->wlock, __ATOMIC_SEQ_CST)) || used_of(o))
				return false;
			*ret = -KX_EAGAIN;
			return true;
		}
		if (!wait(x, false, 0))
			return false;
	}
	return false;
}

/* The rest of a write that is too long to be atomic, by the monitor. */
static int64_t write_rest(struct transfer *x, int64_t done)
{
	for (; x->i < x->n; x->i++, x->at = 0) {
		uint64_t len = x->v[x->i].len - x->at;
		if (!len)
			continue;
		int64_t r = hypercall(x->t, x->send ? NR_sendto : 1, x->fd, x->v[x->i].base + x->at, len, x->flags, 0,
				      0);
		if (r <= 0)
			break;
		done += r;
		if ((uint64_t)r < len)
			break;
	}
	return done;
}

/* With the writers' lock, n bytes for which there is room: how many went; a record as a whole. */
static uint32_t put(struct transfer *x, uint32_t n)
{
	struct kx_pipe *o = x->o;
	uint64_t head = o->head;
	bool stream = x->kind == KX_PAIR_STREAM;
	if (!stream)
		*(volatile uint64_t *)(x->ring + (head % KX_PIPE_RING & ~7ull)) = n;
	uint32_t got = copy(x, stream ? head : head + KX_PAIR_HEAD, n, true);
	if (got < n && (!stream || x->total <= KX_PIPE_ATOMIC))
		return 0;
	o->writer = x->t->pid;
	__atomic_store_n(&o->head, head + (stream ? got : kx_pair_slot(n)), __ATOMIC_SEQ_CST);
	return got;
}

static bool write_ring(struct transfer *x, int64_t *ret)
{
	struct kx_pipe *o = x->o;
	uint64_t done = 0;
	bool stream = x->kind == KX_PAIR_STREAM;
	uint32_t need = !stream                      ? kx_pair_slot((uint32_t)x->total)
			: x->total <= KX_PIPE_ATOMIC ? (uint32_t)x->total
						     : 1;
	while (fresh(x) && lock(x, &o->wlock)) {
		/* There is no data in a socket's ring without a token in the host's: only the monitor writes the first. */
		bool token = !x->pair || __atomic_load_n(&o->token, __ATOMIC_SEQ_CST);
		uint32_t room = is_live(x) ? KX_PIPE_RING - used_of(o) : 0, n = 0, got = 0;
		if (room >= need && token) {
			n = room < CHUNK || !stream ? room : CHUNK;
			n = n < x->total - done ? n : (uint32_t)(x->total - done);
			got = put(x, n);
		}
		unlock(&o->wlock);
		if (!token)
			break;
		done += got;
		if (got && __atomic_load_n(&o->napping, __ATOMIC_SEQ_CST))
			kx_pipe_owe(TABLE, o, (unsigned)(o - PIPES->obj));
		if (got && x->pair ? __atomic_load_n(&o->edge, __ATOMIC_SEQ_CST)
				   : got && __atomic_load_n(&o->sleepers, __ATOMIC_SEQ_CST) &&
					     !__atomic_load_n(&o->token, __ATOMIC_SEQ_CST))
			wake(x, true);
		if (done == x->total || got < n) {
			*ret = done ? (int64_t)done : -KX_EFAULT;
			return true;
		}
		if (room >= need)
			continue;
		if (is_live(x) && never_sleeps(x)) {
			if (x->pair && __atomic_load_n(x->watched, __ATOMIC_SEQ_CST))
				break; /* the host is to know that there is no room */
			*ret = done ? (int64_t)done : -KX_EAGAIN;
			return true;
		}
		if (!is_live(x) || !wait(x, true, need))
			break;
	}
	if (!done)
		return false;
	*ret = write_rest(x, (int64_t)done);
	return true;
}

bool pipe_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret)
{
	struct transfer x;
	uint64_t nr = f->orig_rax;
	bool writes = nr == 1 || nr == 20 || nr == NR_sendto || nr == NR_sendmsg;
	if (!setup(&x, t, f, writes))
		return false;
	batch_flush(t);
	before_news(t);
	if (!writes)
		return read_ring(&x, ret);
	if (write_ring(&x, ret))
		return true;
	__atomic_store_n(&TABLE->asked, cycles(), __ATOMIC_RELAXED);
	return false;
}
