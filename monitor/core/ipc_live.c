/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on objects in memory that the LibOS leaves to the monitor: those that sleep, those that somebody sleeps for,
 * and those that found a lock whose holder has no CPU or was killed.
 *
 * Who sleeps on a queue has one of its places, taken and given up with its lock, and waits on the futex in it. Whoever
 * changes the queue while somebody sleeps for it does so here, and before it gives the lock back it gives each sleeper,
 * in the order in which they came, what it can have now: a message is marked as that sleeper's, a message that waits for
 * room is in the ring already and becomes one of the queue's. So nobody who comes later gets ahead, and what was given is
 * no more in the queue, whether the sleeper has run yet or not; as on Linux. Who sleeps on a semaphore does so in the host.
 *
 * Killed sleepers are found when nobody wakes by a wake-up. Should the waker be killed before that, sleepers look by
 * themselves after 20 ms, then less often, at least each second. Everything is read once and bounded: guests write here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/msg.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/now.h"
#include "gmem.h"
#include "ipc_place.h"
#include "pipe.h"
#include "update.h"

#define WAIT (-5001)    /* it has to sleep */
#define PASS_ON (-5002) /* ... in the host */
#define BACK (-5003)    /* the object is LIVE again */
#define SLICE_FIRST_NS 20000000ull
#define SLICE_LAST_NS 1000000000ull
#define SEM_FIRM_NS 5000000ull
#define TRIES 1000 /* of a compare-and-swap against others who write the word for fun */

/* One operation of the calling thread's. */
struct op {
	struct ipc_call *c;
	struct kx_ipc_obj *o;
	struct kx_ipc_sleeper *s; /* its place; NULL: it has none */
	uint64_t ticket;
	uint32_t tid;
};

/* ---- one operation ---------------------------------------------------------------------------------------------------- */

#define SEM_MAX 32767

/* The word as it is after an operation of this pid's; false: it can't be made now, or (frozen) is the host's. */
static bool word_after(uint64_t w, int operation, uint32_t pid, uint64_t *new)
{
	int v = (int)KX_IPC_VALUE(w), left = v + operation;
	if (operation ? left < 0 || left > SEM_MAX : v != 0)
		return false;
	*new = (w & ~(0x3fffffull << 17 | 0x7fff)) | (uint64_t)(pid & 0x3fffff) << 17 | (uint64_t)left;
	return true;
}

static int64_t sem_try(struct op *x)
{
	unsigned number = (unsigned)(x->c->type >> 32);
	int operation = (int)x->c->type;
	uint64_t *word = word_of(x->o, number), new;
	for (int i = 0; i < TRIES; i++) {
		uint64_t w = LOAD(*word);
		if (number >= LOAD(x->o->nsems) || number >= KX_IPC_SEMS || w & KX_IPC_FROZEN ||
		    w >> 40 != KX_IPC_GEN(ipc_state(x->o)) || (int)KX_IPC_VALUE(w) + operation > SEM_MAX)
			return IPC_NOT_HERE;
		if (!word_after(w, operation, (uint32_t)my_pid(), &new))
			return WAIT;
		if (!ipc_swap(word, w, new))
			continue;
		x->o->otime = time(NULL);
		return 0;
	}
	return IPC_NOT_HERE;
}

/* A message at the head. Where: *pos. 0, IPC_NOT_HERE (no place in the ring), or -EFAULT. */
static int64_t msg_append(struct op *x, uint32_t state, uint64_t *pos)
{
	struct kx_ipc_obj *o = x->o;
	uint32_t size = (uint32_t)x->c->size, bytes = kx_ipc_msg_bytes(size);
	uint64_t tail, head;
	if (!cursors(o, &tail, &head))
		return IPC_NOT_HERE;
	uint32_t rest = KX_IPC_RING - (uint32_t)(head % KX_IPC_RING), fill = rest < bytes ? rest : 0;
	if (head + fill + bytes - tail > KX_IPC_RING)
		return IPC_NOT_HERE;
	struct kx_ipc_msg *m = msg_at(o, head + fill);
	if (size && guest_read(m + 1, x->c->gva, size))
		return -EFAULT;
	if (fill)
		*msg_at(o, head) = (struct kx_ipc_msg){ fill - 16, KX_IPC_MSG_GONE, 0 };
	*m = (struct kx_ipc_msg){ size, state, x->c->type };
	*pos = head + fill;
	STORE(o->head, head + fill + bytes);
	return 0;
}

static int64_t send_try(struct op *x)
{
	struct kx_ipc_obj *o = x->o;
	uint32_t size = (uint32_t)x->c->size;
	uint64_t pos;
	if (size > LOAD(o->msgmax) || size > KX_IPC_RING / 2)
		return IPC_NOT_HERE;
	if (!has_room(o, size))
		return WAIT;
	int64_t r = msg_append(x, KX_IPC_MSG_HERE, &pos);
	if (r)
		return r;
	counted(o, size, 1);
	o->lspid = my_pid();
	o->stime = time(NULL);
	return 0;
}

/* Its text and type, or priority, to the program: bytes, or -EFAULT. The message is taken in any case. */
static int64_t msg_out(struct op *x, uint64_t pos, uint32_t size)
{
	struct ipc_call *c = x->c;
	struct kx_ipc_msg *m = msg_at(x->o, pos);
	int64_t type = LOAD(m->type);
	uint32_t prio = (uint32_t)type, n = size < c->size ? size : (uint32_t)c->size;
	bool bad = is_mq(x->o) ? c->type_gva && guest_write(c->type_gva, &prio, sizeof prio)
			       : guest_write(c->type_gva, &type, sizeof type);
	bad |= n && guest_write(c->gva, m + 1, n);
	STORE(m->state, KX_IPC_MSG_GONE);
	ipc_tail_advance(x->o);
	return bad ? -EFAULT : (int64_t)n;
}

static int64_t receive_try(struct op *x)
{
	struct kx_ipc_obj *o = x->o;
	uint64_t pos;
	uint32_t size;
	if (is_mq(o) && x->c->size < LOAD(o->msgmax))
		return IPC_NOT_HERE;
	if (!ipc_msg_next(o, x->c->type, x->c->flags & MSG_EXCEPT, &pos, &size))
		return WAIT;
	if (size > x->c->size && !(x->c->flags & MSG_NOERROR) && !is_mq(o))
		return -E2BIG;
	counted(o, size, -1);
	o->lrpid = my_pid();
	o->rtime = time(NULL);
	return msg_out(x, pos, size);
}

/* With the lock, as whoever comes: WAIT, IPC_NOT_HERE, or done. */
static int64_t try(struct op *x)
{
	uint64_t s = ipc_state(x->o);
	if (!kx_ipc_is_live(s) || LOAD(x->o->id) != x->c->n.id)
		return IPC_NOT_HERE;
	int64_t r = is_sem(x->o) ? sem_try(x) : x->c->sends ? send_try(x) : receive_try(x);
	if (r >= 0 || r == -EFAULT) {
		STORE(x->o->ops, LOAD(x->o->ops) + 1);
		if (!is_sem(x->o))
			ipc_give(x->o);
		else if ((int)x->c->type > 0 && LOAD(x->o->naps))
			ipc_nap_end(x->o);
	}
	return r;
}

/* ---- sleeping --------------------------------------------------------------------------------------------------------- */

static struct kx_ipc_sleeper *place_find(struct kx_ipc_obj *o)
{
	for (int round = 0; round < 2; round++) {
		for (unsigned i = 0; i < KX_IPC_PLACES; i++)
			if (!LOAD(places(o)[i].tid))
				return &places(o)[i];
		ipc_dead_sweep(o);
	}
	return NULL;
}

/* A place for the caller. WAIT: it has it; 0: look again; IPC_NOT_HERE: there is none. */
static int64_t place_take(struct op *x)
{
	struct kx_ipc_obj *o = x->o;
	struct ipc_call *c = x->c;
	struct kx_ipc_sleeper *s = place_find(o);
	uint64_t pos = 0;
	if (!s)
		return IPC_NOT_HERE;
	if (c->sends && is_mq(o)) {
		int64_t r = msg_append(x, KX_IPC_MSG_WAITS(place_nr(o, s)), &pos);
		if (r)
			return r;
	}
	s->want = pos;
	s->type = c->type;
	s->pid = (uint32_t)my_pid();
	s->id = c->n.id;
	s->size = c->size < UINT32_MAX ? (uint32_t)c->size : UINT32_MAX;
	s->flags = (c->sends ? KX_IPC_SL_SENDS : 0) | (c->flags & MSG_NOERROR ? KX_IPC_SL_NOERROR : 0) |
		   (c->flags & MSG_EXCEPT && c->type > 0 ? KX_IPC_SL_EXCEPT : 0) | KX_IPC_SL_NAPS;
	s->ticket = x->ticket = LOAD(o->tickets) + 1;
	STORE(o->tickets, x->ticket);
	STORE(s->tid, x->tid);
	x->s = s;
	ipc_asleep_note(o);
	return WAIT;
}

static int64_t leave(struct op *x, int64_t r)
{
	ipc_place_free(x->o, x->s);
	x->s = NULL;
	ipc_give(x->o);
	return r;
}

/* It has slept. What it was given; WAIT: nothing. */
static int64_t taken(struct op *x)
{
	struct kx_ipc_obj *o = x->o;
	struct kx_ipc_sleeper *s = x->s;
	uint32_t size;
	if (!(LOAD(s->flags) & KX_IPC_SL_SERVED))
		return WAIT;
	if (is_mq(o) && x->c->sends) {
		STORE(s->tid, 0);
		x->s = NULL;
		return 0;
	}
	if (x->c->sends)
		return WAIT;
	if (LOAD(s->flags) & KX_IPC_SL_TOO_BIG)
		return leave(x, -E2BIG);
	if (!msg_is(o, LOAD(s->want), KX_IPC_MSG_GIVEN(place_nr(o, s)), &size)) {
		__atomic_and_fetch(&s->flags, ~KX_IPC_SL_SERVED, __ATOMIC_SEQ_CST);
		return WAIT;
	}
	int64_t r = msg_out(x, LOAD(s->want), size);
	STORE(s->tid, 0);
	x->s = NULL;
	return r;
}

/* With the lock, after a sleep that ended with e: 0, -EAGAIN (nobody woke it), -EINTR, -ETIMEDOUT. */
static int64_t look(struct op *x, int64_t e)
{
	struct kx_ipc_obj *o = x->o;
	bool napped = __atomic_fetch_and(&x->s->flags, ~KX_IPC_SL_NAPS, __ATOMIC_SEQ_CST) & KX_IPC_SL_NAPS;
	int64_t r = taken(x);
	if (r != WAIT)
		return r;
	unsigned k = ipc_kind_of(ipc_state(o));
	bool ours = LOAD(o->id) == x->c->n.id;
	if (k == KX_IPC_LIVE && ours && (!e || e == -EAGAIN)) {
		if (e && !napped)
			ipc_dead_sweep(o);
		ipc_give(o);
		r = taken(x);
		if (napped)
			ipc_napped(o, r != WAIT || LOAD(x->s->flags) & KX_IPC_SL_SERVED);
		if (r != WAIT)
			return r;
	}
	if (k == KX_IPC_LIVE && ours && x->c->sends && !is_mq(o)) {
		if ((r = try(x)) != WAIT)
			return leave(x, r);
		__atomic_and_fetch(&x->s->flags, ~KX_IPC_SL_SERVED, __ATOMIC_SEQ_CST);
		ipc_asleep_note(o);
	}
	if (e && e != -EAGAIN)
		return leave(x, e == -ETIMEDOUT ? x->c->none : e);
	if (!ours || k == KX_IPC_HOST || k >= KX_IPC_PASS)
		return PASS_ON;
	return WAIT;
}

static uint64_t left_ns(const struct ipc_call *c)
{
	struct timespec now;
	if (!c->deadline_ns)
		return UINT64_MAX;
	clock_gettime(c->n.kind == IPC_MQ ? CLOCK_REALTIME : CLOCK_MONOTONIC, &now);
	uint64_t ns = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
	return ns < c->deadline_ns ? c->deadline_ns - ns : 0;
}

/* Until word is not seq, for a slice of the time at most: e of look(). */
static int64_t sleep_once(struct op *x, uint32_t seq, uint64_t *slice)
{
	uint64_t left = left_ns(x->c), ns = left < *slice ? left : *slice;
	const struct timespec ts = { (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	if (!left)
		return -ETIMEDOUT;
	int64_t r = HB6(SYS_futex, &x->s->word, FUTEX_WAIT, seq, &ts, 0, 0);
	*slice = *slice * 2 < SLICE_LAST_NS ? *slice * 2 : SLICE_LAST_NS;
	return r == -ETIMEDOUT ? -EAGAIN : r == -EINTR && !update_goes_on(self) ? -EINTR : 0;
}

static void rest_note(struct ipc_call *c)
{
	uint64_t left = left_ns(c);
	if (c->rest)
		*c->rest = (struct timespec){ (time_t)(left / 1000000000), (long)(left % 1000000000) };
}

/* In the host, which the object has gone to. BACK: it is LIVE already. */
static int64_t pass_on(struct op *x)
{
	struct ipc_call *c = x->c;
	struct ipc_visit v = { x->o, ipc_announce(x->o, c->n.id) };
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	unsigned k = ipc_kind_of(ipc_state(x->o));
	if (LOAD(x->o->id) == c->n.id && k != KX_IPC_HOST && k < KX_IPC_PASS) {
		ipc_leave(&v);
		return BACK;
	}
	rest_note(c);
	__atomic_or_fetch(&x->s->flags, KX_IPC_SL_ENTER, __ATOMIC_SEQ_CST);
	int64_t r = c->host(c, true);
	if (r >= 0)
		c->done(c, &v);
	STORE(x->s->tid, 0);
	ipc_leave(&v);
	return r == -EINVAL && c->n.kind != IPC_MQ ? -EIDRM : r;
}

static int64_t sleep_on(struct op *x)
{
	uint64_t slice = ipc_nap_ns(x->o);
	int64_t r, e = 0;
	bool first = true;
	do {
		uint32_t seq = __atomic_load_n(&x->s->word, __ATOMIC_SEQ_CST);
		r = first ? WAIT : look(x, e);
		first = false;
		ipc_unlock(x->o);
		if (r == PASS_ON)
			r = pass_on(x);
		if (r != WAIT && r != BACK)
			break;
		bool naps = LOAD(x->s->flags) & KX_IPC_SL_NAPS;
		e = r == WAIT ? sleep_once(x, seq, &slice) : self->sig_stop ? -EINTR : 0;
		if (naps)
			slice = SLICE_FIRST_NS;
		if (!ipc_lock(x->o, true)) {
			/* Whom nobody has: what it was given is found by the sweep for the dead. */
			ipc_swap32(&x->s->tid, x->tid, UINT32_MAX);
			return -EINTR;
		}
		if (LOAD(x->s->tid) != x->tid || LOAD(x->s->ticket) != x->ticket) {
			ipc_unlock(x->o); /* taken for dead: only if somebody writes nonsense here */
			return -EINTR;
		}
	} while (true);
	if (r == IPC_NOT_HERE) {
		rest_note(x->c);
		x->c->spun = true;
	}
	return r;
}

/* For so long, while others have not changed what the sleepers have noted. */
static int64_t sem_sleep(struct kx_ipc_obj *o, uint32_t how, uint64_t ns)
{
	const struct timespec ts = { 0, (long)ns };
	if (!how) /* ended before it began */
		return -EAGAIN;
	return ns ? HB6(SYS_futex, &o->naps, FUTEX_WAIT, how, &ts, 0, 0) : -ETIMEDOUT;
}

/* Who changes the set sees that somebody naps, or is to be woken at once. How it is now. */
static uint32_t sem_nap_note(struct kx_ipc_obj *o, bool firm)
{
	if (firm)
		STORE(o->naps, KX_IPC_NAPS_FIRM);
	else
		ipc_swap32(&o->naps, 0, KX_IPC_NAPS);
	return __atomic_load_n(&o->naps, __ATOMIC_SEQ_CST);
}

/*
 * A semaphore's value is too small: before the set moves, a moment in which somebody may change it who need not make an
 * exit for that, and a longer one in which he must. IPC_NOT_HERE: it is to sleep in the host. With the set's lock, which
 * is not held while others are woken: they may get this CPU. False: without it.
 */
static bool sem_nap(struct op *x, int64_t *r)
{
	struct kx_ipc_obj *o = x->o;
	uint64_t left = left_ns(x->c), now = now_ns(), most = now + (left < SEM_FIRM_NS ? left : SEM_FIRM_NS);
	uint64_t nap = now + ipc_nap_ns(o), end = nap < most ? nap : most;
	int64_t e = 0;
	bool firm = false;
	x->c->spun = true;
	ipc_unlock(o);
	pipe_owed(); /* which ends naps: not this one */
	do {
		uint32_t how = sem_nap_note(o, firm);
		*r = -EINTR;
		if (!ipc_lock(o, false))
			return false;
		if ((*r = try(x)) != WAIT) {
			ipc_napped(o, !firm);
			return true;
		}
		ipc_unlock(o);
		e = sem_sleep(o, how, end > now ? end - now : 0);
		now = now_ns();
		if (now >= end && !firm) {
			firm = true;
			end = most;
			e = e == -ETIMEDOUT ? 0 : e;
		}
	} while ((!e || e == -EAGAIN) && now < end);
	if (e) /* others who still nap here are not woken after this one's end, but wake */
		STORE(o->naps, 0);
	*r = -EINTR;
	if (!ipc_lock(o, false))
		return false;
	*r = try(x);
	ipc_napped(o, *r != WAIT && !firm);
	if (*r != WAIT)
		return true;
	rest_note(x->c);
	*r = e == -EINTR && !update_goes_on(self) ? -EINTR : !left_ns(x->c) ? x->c->none : IPC_NOT_HERE;
	return true;
}

/* Those who nap wait for what a newcomer could have: they come first. */
static bool is_behind(const struct op *x)
{
	struct kx_ipc_obj *o = x->o;
	uint32_t naps = is_sem(o) ? 0 : LOAD(o->naps), size;
	uint64_t pos;
	if (x->c->sends)
		return naps >> 16 && has_room(o, (uint32_t)x->c->size);
	return naps & 0xffff && ipc_msg_next(o, x->c->type, x->c->flags & MSG_EXCEPT, &pos, &size);
}

int64_t ipc_live(struct ipc_call *c, struct kx_ipc_obj *o)
{
	struct op x = { c, o, NULL, 0, (uint32_t)my_tid() };
	if (!kx_ipc_is_live(ipc_state(o)) || LOAD(o->id) != c->n.id || !ipc_is_here())
		return IPC_NOT_HERE;
	if (!ipc_lock(o, false))
		return -EINTR;
	if (is_behind(&x))
		ipc_give(o);
	int64_t r = try(&x);
	bool sleeps = r == WAIT && c->waits && left_ns(c);
	/* A semop() that sleeps is ended by SIGSTOP and SIGCONT (signal(7)), which a futex does not tell of. */
	if (sleeps && is_sem(o)) {
		r = IPC_NOT_HERE;
		if ((int)c->type && !sem_nap(&x, &r))
			return r;
	}
	if (r == WAIT)
		r = sleeps ? place_take(&x) : c->none;
	if (r == WAIT)
		return sleep_on(&x);
	ipc_unlock(o);
	return r;
}
