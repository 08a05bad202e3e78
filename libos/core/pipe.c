/* SPDX-License-Identifier: Apache-2.0 */
/*
 * read and write on a pipe or socket pair of the family's, as long as there is data or room, or will be soon. Everything else is the
 * monitor's (monitor/core/pipe.c): sleeping, end of file, SIGPIPE, locks whose holder was killed.
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
#define RETRY 16 /* sleeps until one that did not spin tries it again */
#define PIECES 16
#define NR_sendto 44
#define NR_recvfrom 45
#define MSG_DONTWAIT 0x40u
#define MSG_NOSIGNAL 0x4000u

struct piece {
	uint64_t base, len;
};

struct transfer {
	struct kx_thread *t;
	struct kx_pipe_fd *e;
	struct kx_pipe *o, *first; /* first: of a socket pair, that of both directions; else o */
	uint8_t *ring;
	uint64_t live, fd;
	uint32_t *nonblock;
	uint32_t flags; /* of sendto or recvfrom */
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
	x->send = nr == NR_sendto;
	x->flags = nr == NR_sendto || nr == NR_recvfrom ? (uint32_t)f->r10 : 0;
	if (!key || first >= KX_PIPE_OBJECTS || i >= KX_PIPE_OBJECTS || (!x->pair && kx_pipe_end(key) != writes) ||
	    ((nr == NR_sendto || nr == NR_recvfrom) && (!x->pair || f->r8)) ||
	    x->flags & ~(MSG_DONTWAIT | (writes ? MSG_NOSIGNAL : 0u)))
		return false;
	x->t = t;
	x->o = &PIPES->obj[i];
	x->first = &PIPES->obj[first];
	x->nonblock = &x->first->nonblock[kx_pipe_end(key)];
	x->ring = (uint8_t *)KX_PIPE_BASE + KX_PIPE_DATA + (uint64_t)i * KX_PIPE_RING;
	x->live = kx_pipe_live(key);
	x->n = 1;
	if (nr == 19 || nr == 20) {
		x->n = (uint32_t)f->rdx;
		if (x->n > PIECES || user_read(x->v, f->rsi, x->n * sizeof *x->v))
			return false;
	} else {
		x->v[0] = (struct piece){ f->rsi, f->rdx };
	}
	x->i = 0;
	x->at = x->total = 0;
	for (unsigned k = 0; k < x->n; k++) {
		if (x->v[k].len > 0x7ffff000 || (x->v[k].len && !user_ok(x->v[k].base, x->v[k].len)))
			return false;
		x->total += x->v[k].len;
	}
	return x->total && x->total <= 0x7ffff000 && is_live(x);
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

/* The host was asked a short while ago whether the other side is there, and nothing is known that could be news. */
static bool fresh(struct transfer *x)
{
	struct kx_pipe_fd *e = x->e;
	if (e->epoch != __atomic_load_n(&PIPES->epoch, __ATOMIC_SEQ_CST) ||
	    e->closes != __atomic_load_n(&x->first->closes, __ATOMIC_SEQ_CST))
		return false;
	uint64_t now = cycles();
	if (!e->tsc)
		e->tsc = now;
	return now - e->tsc < CHECK_CYCLES;
}

static void wake(struct transfer *x)
{
	uint64_t start = cycles();
	hypercall(x->t, HC_pipe_wake, x->fd, 0, 0, 0, 0, 0);
	uint64_t n = cycles() - start;
	TABLE->exit_cycles = (3 * TABLE->exit_cycles + (uint32_t)(n < SPIN_MOST ? n : SPIN_MOST)) / 4;
}

static bool never_sleeps(const struct transfer *x)
{
	return x->flags & MSG_DONTWAIT || __atomic_load_n(x->nonblock, __ATOMIC_RELAXED);
}

static bool read_ring(struct transfer *x, int64_t *ret)
{
	struct kx_pipe *o = x->o;
	for (;;) {
		if (!lock(x, &o->rlock))
			return false;
		uint32_t n = is_live(x) ? used_of(o) : 0;
		if (n) {
			n = n < x->total ? n : (uint32_t)x->total;
			uint32_t got = copy(x, o->tail, n, false);
			__atomic_store_n(&o->tail, o->tail + got, __ATOMIC_SEQ_CST);
			unlock(&o->rlock);
			if (got && __atomic_load_n(&o->full, __ATOMIC_SEQ_CST))
				wake(x);
			*ret = got ? (int64_t)got : -KX_EFAULT;
			return true;
		}
		unlock(&o->rlock);
		if (!is_live(x))
			return false;
		if (never_sleeps(x)) {
			if (!fresh(x) || used_of(o))
				return false;
			*ret = -KX_EAGAIN;
			return true;
		}
		if (!wait(x, false, 0))
			return false;
	}
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

static bool write_ring(struct transfer *x, int64_t *ret)
{
	struct kx_pipe *o = x->o;
	uint64_t done = 0;
	uint32_t need = x->total <= KX_PIPE_ATOMIC ? (uint32_t)x->total : 1;
	while (fresh(x) && lock(x, &o->wlock)) {
		/* There is no data in a socket's ring without a token in the host's: only the monitor writes the first. */
		bool token = !x->pair || __atomic_load_n(&o->token, __ATOMIC_SEQ_CST);
		uint32_t room = is_live(x) ? KX_PIPE_RING - used_of(o) : 0, n = 0, got = 0;
		if (room >= need && token) {
			n = room < CHUNK ? room : CHUNK;
			n = n < x->total - done ? n : (uint32_t)(x->total - done);
			got = copy(x, o->head, n, true);
			if (got < n && x->total <= KX_PIPE_ATOMIC)
				got = 0;
			__atomic_store_n(&o->head, o->head + got, __ATOMIC_SEQ_CST);
		}
		unlock(&o->wlock);
		if (!token)
			break;
		done += got;
		if (got && !x->pair && __atomic_load_n(&o->sleepers, __ATOMIC_SEQ_CST) &&
		    !__atomic_load_n(&o->token, __ATOMIC_SEQ_CST))
			wake(x);
		if (done == x->total || got < n) {
			*ret = done ? (int64_t)done : -KX_EFAULT;
			return true;
		}
		if (room >= need)
			continue;
		if (is_live(x) && never_sleeps(x)) {
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
	bool writes = f->orig_rax == 1 || f->orig_rax == 20 || f->orig_rax == NR_sendto;
	if (!setup(&x, t, f, writes))
		return false;
	batch_flush(t);
	before_news(t);
	return writes ? write_ring(&x, ret) : read_ring(&x, ret);
}
