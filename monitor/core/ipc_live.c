/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on objects in memory that the LibOS leaves to the monitor: those that sleep, those that somebody sleeps for,
 * and those that found a lock whose holder has no CPU or was killed.
 *
 * Who sleeps has one of the object's places, taken and given up with its lock, and waits on the futex in it. Whoever
 * changes the object while somebody sleeps for it does so here, and before it gives the lock back it gives each sleeper,
 * in the order in which they came, what it can have now: a message is marked as that sleeper's, a semaphore's word is
 * changed on its behalf, a message that waits for room is in the ring already and becomes one of the queue's. So nobody who
 * comes later gets ahead, and what was given is no more in the object, whether the sleeper has run yet or not; as on Linux.
 *
 * Killed sleepers are found when nobody wakes by a wake-up. Should the waker be killed before that, sleepers look by
 * themselves after 20 ms, then less often, at least each second. Everything is read once and bounded: guests write here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <time.h>
#include "gmem.h"
#include "ipc_priv.h"
#include "update.h"
#include "../../util/now.h"

#define WAIT (-5001)    /* it has to sleep */
#define PASS_ON (-5002) /* ... in the host */
#define BACK (-5003)    /* the object is LIVE again */
#define SEM_MAX 32767
#define SLICE_FIRST_NS 20000000ull
#define SLICE_LAST_NS 1000000000ull
#define TRIES 1000 /* of a compare-and-swap against others who write the word for fun */
#define PASS_NS 100000000ull

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define STORE(x, v) __atomic_store_n(&(x), v, __ATOMIC_SEQ_CST)

/* One operation of the calling thread's. */
struct op {
	struct ipc_call *c;
	struct kx_ipc_obj *o;
	struct kx_ipc_sleeper *s; /* its place; NULL: it has none */
	uint64_t ticket;
	uint32_t tid;
};

static struct kx_ipc_sleeper *places(const struct kx_ipc_obj *o) { return ipc_mem->sleeper[o - ipc_mem->sem]; }
static unsigned place_nr(const struct kx_ipc_obj *o, const struct kx_ipc_sleeper *s)
{
	return (unsigned)(s - places(o));
}
static bool is_sem(const struct kx_ipc_obj *o) { return o < ipc_mem->msg; }
static bool is_mq(const struct kx_ipc_obj *o) { return o >= ipc_mem->mq; }
static unsigned number_of(const struct kx_ipc_sleeper *s) { return (unsigned)(LOAD(s->type) >> 32); }
static int operation_of(const struct kx_ipc_sleeper *s) { return (int)LOAD(s->type); }

static bool is_used(const struct kx_ipc_obj *o, const struct kx_ipc_sleeper *s)
{
	return __atomic_load_n(&s->tid, __ATOMIC_ACQUIRE) && LOAD(s->id) == LOAD(o->id);
}
static bool waits(const struct kx_ipc_obj *o, const struct kx_ipc_sleeper *s)
{
	return is_used(o, s) && !(LOAD(s->flags) & (KX_IPC_SL_SERVED | KX_IPC_SL_ENTER));
}

/* The first to have come after *ticket of those that wait and are `fit`. NULL: none. */
static struct kx_ipc_sleeper *next_waiting(const struct kx_ipc_obj *o, uint64_t *ticket,
					   bool (*fit)(const struct kx_ipc_sleeper *s, int64_t what), int64_t what)
{
	struct kx_ipc_sleeper *first = NULL;
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		struct kx_ipc_sleeper *s = &places(o)[i];
		if (waits(o, s) && LOAD(s->ticket) > *ticket && (!first || LOAD(s->ticket) < LOAD(first->ticket)) &&
		    fit(s, what))
			first = s;
	}
	if (first)
		*ticket = LOAD(first->ticket);
	return first;
}

/* False: nobody slept there, since it is awake or dead. */
static bool wake(struct kx_ipc_sleeper *s)
{
	__atomic_add_fetch(&s->word, 1, __ATOMIC_SEQ_CST);
	return HC6(SYS_futex, &s->word, FUTEX_WAKE, 1, 0, 0, 0) > 0;
}

/* It was given something. False: it is dead, or stopped, and so waits no more (until it goes on): the caller takes it back. */
static bool takes_it(struct kx_ipc_sleeper *s, bool *dead)
{
	*dead = false;
	if (wake(s))
		return true;
	char state = ipc_thread_state(LOAD(s->tid));
	if (state != 'T' && state != 't' && !(*dead = ipc_is_gone(LOAD(s->tid))))
		return true;
	__atomic_and_fetch(&s->flags, ~(KX_IPC_SL_SERVED | KX_IPC_SL_TOO_BIG), __ATOMIC_SEQ_CST);
	return false;
}

/* ---- rings ------------------------------------------------------------------------------------------------------------ */

static uint8_t *ring_of(const struct kx_ipc_obj *o) { return ipc_mem->ring[o - ipc_mem->msg]; }
static struct kx_ipc_msg *msg_at(const struct kx_ipc_obj *o, uint64_t pos)
{
	return (struct kx_ipc_msg *)(ring_of(o) + pos % KX_IPC_RING);
}

/* The cursors as they are now. False: nonsense. */
static bool cursors(const struct kx_ipc_obj *o, uint64_t *tail, uint64_t *head)
{
	*tail = LOAD(o->tail);
	*head = LOAD(o->head);
	return *head - *tail <= KX_IPC_RING && *head % 16 == 0 && *tail % 16 == 0;
}

/* Bytes of the text of the message at pos, and of all of it. False: nonsense. */
static bool msg_sizes(const struct kx_ipc_obj *o, uint64_t pos, uint32_t *size, uint32_t *bytes)
{
	*size = LOAD(msg_at(o, pos)->size);
	*bytes = *size > KX_IPC_RING ? 0 : kx_ipc_msg_bytes(*size);
	return *bytes && *bytes <= KX_IPC_RING - pos % KX_IPC_RING;
}

/* Is the message at pos there, in this state? */
static bool msg_is(const struct kx_ipc_obj *o, uint64_t pos, uint32_t state, uint32_t *size)
{
	uint64_t tail, head;
	uint32_t bytes;
	return cursors(o, &tail, &head) && pos - tail < head - tail && pos % 16 == 0 &&
	       msg_sizes(o, pos, size, &bytes) && LOAD(msg_at(o, pos)->state) == state;
}

static void tail_advance(struct kx_ipc_obj *o)
{
	uint64_t tail, head;
	uint32_t size, bytes;
	if (!cursors(o, &tail, &head))
		return;
	while (tail < head && LOAD(msg_at(o, tail)->state) == KX_IPC_MSG_GONE && msg_sizes(o, tail, &size, &bytes))
		tail += bytes;
	STORE(o->tail, tail);
}

static void counted(struct kx_ipc_obj *o, uint32_t size, int n)
{
	STORE(o->qnum, LOAD(o->qnum) + (uint32_t)n);
	STORE(o->cbytes, LOAD(o->cbytes) + (uint64_t)((int64_t)size * n));
}

static bool has_room(const struct kx_ipc_obj *o, uint32_t size)
{
	uint64_t limit = LOAD(o->qbytes), n = LOAD(o->qnum);
	return is_mq(o) ? n < limit : LOAD(o->cbytes) + size <= limit && n + 1 <= limit;
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

/* ---- what sleepers get -------------------------------------------------------------------------------------------- */

static void asleep_note(struct kx_ipc_obj *o)
{
	uint32_t bits = 0;
	for (unsigned i = 0; i < KX_IPC_PLACES; i++)
		if (waits(o, &places(o)[i]))
			bits |= 1u << i << (LOAD(places(o)[i].flags) & KX_IPC_SL_SENDS ? 16 : 0);
	STORE(o->asleep, bits);
}

/* Its thread has left, or is dead: what it was given and did not take is the object's again. */
static void place_free(struct kx_ipc_obj *o, struct kx_ipc_sleeper *s)
{
	uint32_t flags = LOAD(s->flags), nr = place_nr(o, s), size;
	uint64_t pos = LOAD(s->want);
	if (!is_sem(o) && LOAD(s->id) == LOAD(o->id)) {
		if (!(flags & KX_IPC_SL_SENDS) && flags & KX_IPC_SL_SERVED &&
		    msg_is(o, pos, KX_IPC_MSG_GIVEN(nr), &size)) {
			STORE(msg_at(o, pos)->state, KX_IPC_MSG_HERE);
			counted(o, size, 1);
		} else if (flags & KX_IPC_SL_SENDS && msg_is(o, pos, KX_IPC_MSG_WAITS(nr), &size)) {
			STORE(msg_at(o, pos)->state, KX_IPC_MSG_GONE);
			tail_advance(o);
		}
	}
	STORE(s->tid, 0);
}

static void served(struct kx_ipc_sleeper *s)
{
	__atomic_and_fetch(&s->flags, ~KX_IPC_SL_GIVING, __ATOMIC_SEQ_CST);
	__atomic_or_fetch(&s->flags, KX_IPC_SL_SERVED, __ATOMIC_SEQ_CST);
}

static bool takes(const struct kx_ipc_sleeper *s, int64_t type)
{
	uint32_t flags = LOAD(s->flags);
	return !(flags & KX_IPC_SL_SENDS) && kx_ipc_takes(LOAD(s->type), flags & KX_IPC_SL_EXCEPT, type);
}
static bool sends(const struct kx_ipc_sleeper *s, int64_t what)
{
	(void)what;
	return LOAD(s->flags) & KX_IPC_SL_SENDS;
}

/* The message at pos, which is in the queue, to whoever has waited longest for such a one. False: nobody took it. */
static bool msg_give(struct kx_ipc_obj *o, uint64_t pos, uint32_t size)
{
	struct kx_ipc_msg *m = msg_at(o, pos);
	struct kx_ipc_sleeper *s;
	bool dead;
	for (uint64_t ticket = 0; (s = next_waiting(o, &ticket, takes, LOAD(m->type)));) {
		if (!is_mq(o) && size > LOAD(s->size) && !(LOAD(s->flags) & KX_IPC_SL_NOERROR)) {
			__atomic_or_fetch(&s->flags, KX_IPC_SL_TOO_BIG | KX_IPC_SL_SERVED, __ATOMIC_SEQ_CST);
			if (!takes_it(s, &dead) && dead)
				place_free(o, s);
			continue;
		}
		STORE(s->want, pos);
		STORE(m->state, KX_IPC_MSG_GIVEN(place_nr(o, s)));
		served(s);
		counted(o, size, -1);
		if (takes_it(s, &dead)) {
			o->lrpid = (int32_t)LOAD(s->pid);
			o->rtime = time(NULL);
			return true;
		}
		STORE(m->state, KX_IPC_MSG_HERE);
		counted(o, size, 1);
		if (dead)
			place_free(o, s);
	}
	return false;
}

/* The message that comes next, by msgrcv's rules (POSIX: the oldest of the highest priority). False: none. */
static bool msg_next(struct kx_ipc_obj *o, int64_t want, bool except, uint64_t *pos, uint32_t *size)
{
	uint64_t tail, head;
	uint32_t n, bytes;
	int64_t best = 0;
	bool found = false;
	if (!cursors(o, &tail, &head))
		return false;
	for (uint64_t at = tail; at < head && msg_sizes(o, at, &n, &bytes); at += bytes) {
		int64_t type = LOAD(msg_at(o, at)->type);
		if (LOAD(msg_at(o, at)->state) != KX_IPC_MSG_HERE || (!is_mq(o) && !kx_ipc_takes(want, except, type)))
			continue;
		if (!found || (is_mq(o) ? type > best : type < best)) {
			*pos = at;
			*size = n;
			best = type;
			found = true;
		}
		if (!is_mq(o) && want >= 0)
			break;
	}
	return found;
}

static bool any_receiver(const struct kx_ipc_obj *o)
{
	for (unsigned i = 0; i < KX_IPC_PLACES; i++)
		if (waits(o, &places(o)[i]) && !(LOAD(places(o)[i].flags) & KX_IPC_SL_SENDS))
			return true;
	return false;
}

static void messages_give(struct kx_ipc_obj *o)
{
	uint64_t tail, head, pos;
	uint32_t size, bytes;
	if (is_mq(o)) {
		while (any_receiver(o) && msg_next(o, 0, false, &pos, &size) && msg_give(o, pos, size))
			;
		return;
	}
	if (!any_receiver(o) || !cursors(o, &tail, &head))
		return;
	for (uint64_t at = tail; at < head && msg_sizes(o, at, &size, &bytes); at += bytes)
		if (LOAD(msg_at(o, at)->state) == KX_IPC_MSG_HERE)
			msg_give(o, at, size);
}

/* The first message from *pos on that waits for room in a POSIX queue. False: none. */
static bool room_next(struct kx_ipc_obj *o, uint64_t *pos, uint32_t *size, struct kx_ipc_sleeper **s)
{
	uint64_t tail, head;
	uint32_t bytes;
	if (!cursors(o, &tail, &head))
		return false;
	for (*pos = *pos < tail ? tail : *pos; *pos < head && msg_sizes(o, *pos, size, &bytes); *pos += bytes) {
		uint32_t state = LOAD(msg_at(o, *pos)->state), nr = state >> 8;
		if (state != KX_IPC_MSG_WAITS(nr) || nr >= KX_IPC_PLACES)
			continue;
		*s = &places(o)[nr];
		if (waits(o, *s) && LOAD((*s)->flags) & KX_IPC_SL_SENDS && LOAD((*s)->want) == *pos)
			return true;
		STORE(msg_at(o, *pos)->state, KX_IPC_MSG_GONE); /* of somebody who left it */
	}
	return false;
}

static void room_give(struct kx_ipc_obj *o)
{
	struct kx_ipc_sleeper *s;
	uint64_t pos = 0, ticket = 0;
	uint32_t size;
	bool dead;
	while (is_mq(o) && has_room(o, 0) && room_next(o, &pos, &size, &s)) {
		STORE(msg_at(o, pos)->state, KX_IPC_MSG_HERE);
		served(s);
		counted(o, size, 1);
		if (!takes_it(s, &dead)) {
			STORE(msg_at(o, pos)->state, KX_IPC_MSG_WAITS(place_nr(o, s)));
			counted(o, size, -1);
			if (dead)
				place_free(o, s);
		}
		pos += kx_ipc_msg_bytes(size);
	}
	while (!is_mq(o) && (s = next_waiting(o, &ticket, sends, 0)))
		if (has_room(o, LOAD(s->size))) {
			served(s);
			if (!takes_it(s, &dead) && dead)
				place_free(o, s);
		}
}

static void queue_settle(struct kx_ipc_obj *o)
{
	messages_give(o);
	room_give(o);
	if (is_mq(o))
		messages_give(o);
	asleep_note(o);
}

/* ---- semaphores ------------------------------------------------------------------------------------------------------- */

static uint64_t *word_of(const struct kx_ipc_obj *o, unsigned number)
{
	return &ipc_mem->word[(o - ipc_mem->sem) % KX_IPC_OBJECTS][number % KX_IPC_SEMS];
}

static bool waits_zero(const struct kx_ipc_sleeper *s, int64_t number)
{
	return number_of(s) == (unsigned)number && !operation_of(s);
}
static bool waits_more(const struct kx_ipc_sleeper *s, int64_t number)
{
	return number_of(s) == (unsigned)number && operation_of(s) < 0;
}

/* The word as it is after an operation of this pid's; false: it can't be made now, or (frozen) is the host's. */
static bool word_after(uint64_t w, int operation, uint32_t pid, uint64_t *new)
{
	int v = (int)KX_IPC_VALUE(w), left = v + operation;
	if (operation ? left < 0 || left > SEM_MAX : v != 0)
		return false;
	*new = (w & ~(0x3fffffull << 17 | 0x7fff)) | (uint64_t)(pid & 0x3fffff) << 17 | (uint64_t)left;
	return true;
}

/* What s waits for, if the value allows it. */
static void sem_give(struct kx_ipc_obj *o, struct kx_ipc_sleeper *s, uint64_t *word)
{
	uint64_t w = LOAD(*word), new;
	bool dead;
	if (w & KX_IPC_FROZEN || !word_after(w, operation_of(s), LOAD(s->pid), &new))
		return;
	STORE(s->want, new);
	__atomic_or_fetch(&s->flags, KX_IPC_SL_GIVING, __ATOMIC_SEQ_CST);
	if (!ipc_swap(word, w, new)) { /* nobody but its spoiler changes it now */
		__atomic_and_fetch(&s->flags, ~KX_IPC_SL_GIVING, __ATOMIC_SEQ_CST);
		return;
	}
	served(s);
	if (takes_it(s, &dead)) {
		o->otime = time(NULL);
		return;
	}
	ipc_swap(word, new, w);
	if (dead)
		place_free(o, s);
}

static void waited_note(struct kx_ipc_obj *o, unsigned number)
{
	bool any = false;
	for (unsigned i = 0; i < KX_IPC_PLACES; i++)
		any |= waits(o, &places(o)[i]) && number_of(&places(o)[i]) == number;
	if (any)
		__atomic_or_fetch(word_of(o, number), KX_IPC_WAITED, __ATOMIC_SEQ_CST);
	else
		__atomic_and_fetch(word_of(o, number), ~KX_IPC_WAITED, __ATOMIC_SEQ_CST);
}

/* As the kernel does it: at zero those that wait for it; then the others in their order, as far as the value goes, which
 * may be zero. */
static void sem_settle(struct kx_ipc_obj *o, unsigned number)
{
	uint64_t *word = word_of(o, number);
	struct kx_ipc_sleeper *s;
	for (int round = 0; round < 3; round++)
		for (uint64_t ticket = 0; (s = next_waiting(o, &ticket, round == 1 ? waits_more : waits_zero, number));)
			sem_give(o, s, word);
	waited_note(o, number);
}

/* What is in memory is the object's as long as it is LIVE. */
static void settle(struct kx_ipc_obj *o, unsigned number)
{
	if (!kx_ipc_is_live(ipc_state(o)))
		return;
	if (is_sem(o))
		sem_settle(o, number % KX_IPC_SEMS);
	else
		queue_settle(o);
}

/* ---- one operation ---------------------------------------------------------------------------------------------------- */

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
	tail_advance(x->o);
	return bad ? -EFAULT : (int64_t)n;
}

static int64_t receive_try(struct op *x)
{
	struct kx_ipc_obj *o = x->o;
	uint64_t pos;
	uint32_t size;
	if (is_mq(o) && x->c->size < LOAD(o->msgmax))
		return IPC_NOT_HERE;
	if (!msg_next(o, x->c->type, x->c->flags & MSG_EXCEPT, &pos, &size))
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
		settle(x->o, (unsigned)(x->c->type >> 32));
	}
	return r;
}

/* ---- sleeping --------------------------------------------------------------------------------------------------------- */

static void dead_sweep(struct kx_ipc_obj *o)
{
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		struct kx_ipc_sleeper *s = &places(o)[i];
		uint32_t tid = LOAD(s->tid);
		if (tid && ipc_is_gone(tid))
			place_free(o, s);
	}
}

static struct kx_ipc_sleeper *place_find(struct kx_ipc_obj *o)
{
	for (int round = 0; round < 2; round++) {
		for (unsigned i = 0; i < KX_IPC_PLACES; i++)
			if (!LOAD(places(o)[i].tid))
				return &places(o)[i];
		dead_sweep(o);
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
		   (c->flags & MSG_EXCEPT && c->type > 0 ? KX_IPC_SL_EXCEPT : 0);
	s->ticket = x->ticket = LOAD(o->tickets) + 1;
	STORE(o->tickets, x->ticket);
	STORE(s->tid, x->tid);
	x->s = s;
	if (!is_sem(o)) {
		asleep_note(o);
		return WAIT;
	}
	/* From here on nobody changes the word without the lock; it may have changed just before. */
	unsigned number = number_of(s);
	__atomic_or_fetch(word_of(o, number), KX_IPC_WAITED, __ATOMIC_SEQ_CST);
	int64_t r = sem_try(x);
	if (r == WAIT)
		return WAIT;
	STORE(s->tid, 0);
	x->s = NULL;
	settle(o, number);
	return r;
}

static int64_t leave(struct op *x, int64_t r)
{
	place_free(x->o, x->s);
	x->s = NULL;
	settle(x->o, (unsigned)(x->c->type >> 32));
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
	if (is_sem(o) || (is_mq(o) && x->c->sends)) {
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
	int64_t r = taken(x);
	if (r != WAIT)
		return r;
	unsigned k = ipc_kind_of(ipc_state(o));
	bool ours = LOAD(o->id) == x->c->n.id;
	if (k == KX_IPC_LIVE && ours && (!e || e == -EAGAIN)) {
		if (e)
			dead_sweep(o);
		settle(o, (unsigned)(x->c->type >> 32));
		if ((r = taken(x)) != WAIT)
			return r;
	}
	if (k == KX_IPC_LIVE && ours && x->c->sends && !is_mq(o)) {
		if ((r = try(x)) != WAIT)
			return leave(x, r);
		__atomic_and_fetch(&x->s->flags, ~KX_IPC_SL_SERVED, __ATOMIC_SEQ_CST);
		asleep_note(o);
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
static int64_t nap(struct op *x, uint32_t seq, uint64_t *slice)
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
	uint64_t slice = SLICE_FIRST_NS;
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
		e = r == WAIT ? nap(x, seq, &slice) : 0;
		if (!ipc_lock(x->o, true))
			return -EINTR; /* of a process that ends */
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

int64_t ipc_live(struct ipc_call *c, struct kx_ipc_obj *o)
{
	struct op x = { c, o, NULL, 0, (uint32_t)my_tid() };
	if (!kx_ipc_is_live(ipc_state(o)) || LOAD(o->id) != c->n.id || !ipc_is_here())
		return IPC_NOT_HERE;
	if (!ipc_lock(o, false))
		return -EINTR;
	int64_t r = try(&x);
	if (r == WAIT)
		r = c->waits && left_ns(c) ? place_take(&x) : c->none;
	if (r == WAIT)
		return sleep_on(&x);
	ipc_unlock(o);
	return r;
}

/* ---- what others see of it -------------------------------------------------------------------------------------------- */

/* Which messages are whose, and how many there are, from the ring itself. */
static void queue_recover(struct kx_ipc_obj *o)
{
	uint64_t tail, head, pos = 0;
	uint32_t size, bytes, n = 0, given = 0;
	uint64_t sum = 0;
	if (!cursors(o, &tail, &head))
		return;
	for (uint64_t at = tail; at < head && msg_sizes(o, at, &size, &bytes); at += bytes) {
		struct kx_ipc_msg *m = msg_at(o, at);
		uint32_t state = LOAD(m->state), nr = state >> 8;
		struct kx_ipc_sleeper *s = nr < KX_IPC_PLACES ? &places(o)[nr] : NULL;
		if (s && state == KX_IPC_MSG_GIVEN(nr)) {
			if (is_used(o, s) && !(LOAD(s->flags) & KX_IPC_SL_SENDS) && LOAD(s->want) == at) {
				served(s);
				given |= 1u << nr;
			} else {
				STORE(m->state, KX_IPC_MSG_HERE);
			}
		}
		if (LOAD(m->state) == KX_IPC_MSG_HERE) {
			n++;
			sum += size;
		}
	}
	STORE(o->qnum, n);
	STORE(o->cbytes, sum);
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		struct kx_ipc_sleeper *s = &places(o)[i];
		pos = LOAD(s->want);
		if (!is_used(o, s))
			continue;
		if (LOAD(s->flags) & KX_IPC_SL_SENDS) {
			if (is_mq(o) && msg_is(o, pos, KX_IPC_MSG_HERE, &size))
				served(s);
		} else if (!(given >> i & 1) && !(LOAD(s->flags) & KX_IPC_SL_TOO_BIG)) {
			__atomic_and_fetch(&s->flags, ~KX_IPC_SL_SERVED, __ATOMIC_SEQ_CST);
		}
	}
	tail_advance(o);
}

static void sem_recover(struct kx_ipc_obj *o)
{
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		struct kx_ipc_sleeper *s = &places(o)[i];
		if (!is_used(o, s) || !(LOAD(s->flags) & KX_IPC_SL_GIVING))
			continue;
		if (LOAD(*word_of(o, number_of(s))) == LOAD(s->want))
			served(s);
		else
			__atomic_and_fetch(&s->flags, ~KX_IPC_SL_GIVING, __ATOMIC_SEQ_CST);
	}
}

void ipc_recover(struct kx_ipc_obj *o)
{
	if (is_sem(o))
		sem_recover(o);
	else
		queue_recover(o);
	if (!kx_ipc_is_live(ipc_state(o)))
		return;
	dead_sweep(o);
	uint32_t n = is_sem(o) ? LOAD(o->nsems) : 1;
	for (unsigned i = 0; i < n && i < KX_IPC_SEMS; i++)
		settle(o, i);
}

bool ipc_is_slept_on(struct kx_ipc_obj *o)
{
	dead_sweep(o);
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		const struct kx_ipc_sleeper *s = &places(o)[i];
		if (LOAD(s->tid) && !(LOAD(s->flags) & KX_IPC_SL_ENTER))
			return true;
	}
	return false;
}

/* LIVE, with its lock. */
static bool look_at(struct ipc_name n, struct kx_ipc_obj **o)
{
	*o = ipc_object(n);
	if (!*o || !kx_ipc_is_live(ipc_state(*o)) || LOAD((*o)->id) != n.id || !ipc_lock(*o, false))
		return false;
	if (kx_ipc_is_live(ipc_state(*o)) && LOAD((*o)->id) == n.id)
		return true;
	ipc_unlock(*o);
	return false;
}

bool ipc_queue_seen(struct ipc_name n, uint64_t *messages, uint64_t *bytes)
{
	struct kx_ipc_obj *o;
	if (!look_at(n, &o))
		return false;
	*messages = LOAD(o->qnum);
	*bytes = LOAD(o->cbytes);
	ipc_unlock(o);
	return true;
}

int ipc_sem_seen(int id, int number, int cmd)
{
	struct kx_ipc_obj *o;
	if (number < 0 || number >= KX_IPC_SEMS || !look_at((struct ipc_name){ IPC_SEM, id, -1 }, &o))
		return -1;
	int n = 0;
	if (cmd == GETVAL)
		n = (int)KX_IPC_VALUE(LOAD(*word_of(o, (unsigned)number)));
	else
		dead_sweep(o);
	for (unsigned i = 0; cmd != GETVAL && i < KX_IPC_PLACES; i++) {
		const struct kx_ipc_sleeper *s = &places(o)[i];
		n += waits(o, s) && (cmd == GETNCNT ? waits_more(s, number) : waits_zero(s, number));
	}
	ipc_unlock(o);
	return n;
}

static bool anybody(const struct kx_ipc_sleeper *s, int64_t what)
{
	(void)s, (void)what;
	return true;
}

/* s was woken: until it sleeps in the host, or won't. */
static void pass_one(struct kx_ipc_sleeper *s, uint64_t ticket, uint64_t until)
{
	const struct timespec nap = { 0, 50000 };
	while (now_ns() < until && !ipc_must_leave()) {
		uint32_t tid = LOAD(s->tid);
		if (!tid || LOAD(s->ticket) != ticket)
			return;
		char state = ipc_thread_state(tid);
		bool entered = LOAD(s->flags) & KX_IPC_SL_ENTER;
		if (!state || strchr("TtZX", state) || (entered && (state == 'S' || state == 'D')))
			return;
		HC6(SYS_nanosleep, &nap, 0, 0, 0, 0, 0);
	}
}

void ipc_pass(struct kx_ipc_obj *o, int id)
{
	uint64_t ticket = 0, until = now_ns() + PASS_NS;
	struct kx_ipc_sleeper *s;
	if (LOAD(o->id) != id)
		return;
	while ((s = next_waiting(o, &ticket, anybody, 0))) {
		wake(s);
		pass_one(s, ticket, until);
	}
}

void ipc_places_drop(struct kx_ipc_obj *o, uint32_t pid)
{
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		struct kx_ipc_sleeper *s = &places(o)[i];
		if (LOAD(s->tid) && LOAD(s->pid) == pid)
			STORE(s->tid, UINT32_MAX); /* whom nobody has: swept as one that died */
	}
}
