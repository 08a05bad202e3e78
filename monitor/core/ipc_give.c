/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What sleepers on queues in memory get, when, and what becomes of the places of the dead (ipc_live.c says how they come
 * there).
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <time.h>
#include "ipc_place.h"
#include "../../util/now.h"

#define PASS_NS 100000000ull
#define NAP_LEAST_NS 100000u
#define NAP_FIRST_NS 400000u
#define NAP_MOST_NS 800000u

/* The first to have come of those that wait, are `fit` and were not tried yet (a bit for each place), which it is from now
 * on: so whatever others write there meanwhile, each has its turn once. NULL: none. */
static struct kx_ipc_sleeper *next_waiting(const struct kx_ipc_obj *o, uint32_t *tried, uint64_t *ticket,
					   bool (*fit)(const struct kx_ipc_sleeper *s, int64_t what), int64_t what)
{
	struct kx_ipc_sleeper *first = NULL;
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		struct kx_ipc_sleeper *s = &places(o)[i];
		uint64_t t = LOAD(s->ticket);
		if (!(*tried >> i & 1) && waits(o, s) && (!first || t < *ticket) && fit(s, what)) {
			first = s;
			*ticket = t;
		}
	}
	if (first)
		*tried |= 1u << place_nr(o, first);
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
	if (LOAD(s->tid) == (uint32_t)my_tid() || wake(s))
		return true;
	char state = ipc_thread_state(LOAD(s->tid));
	if (state != 'T' && state != 't' && !(*dead = ipc_is_gone(LOAD(s->tid))))
		return true;
	__atomic_and_fetch(&s->flags, ~(KX_IPC_SL_SERVED | KX_IPC_SL_TOO_BIG), __ATOMIC_SEQ_CST);
	return false;
}

void ipc_tail_advance(struct kx_ipc_obj *o)
{
	uint64_t tail, head;
	uint32_t size, bytes;
	if (!cursors(o, &tail, &head))
		return;
	while (tail < head && LOAD(msg_at(o, tail)->state) == KX_IPC_MSG_GONE && msg_sizes(o, tail, &size, &bytes))
		tail += bytes;
	STORE(o->tail, tail);
}

/* ---- what sleepers get -------------------------------------------------------------------------------------------- */

void ipc_asleep_note(struct kx_ipc_obj *o)
{
	uint32_t bits[2] = { 0, 0 };
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		uint32_t flags = LOAD(places(o)[i].flags);
		if (waits(o, &places(o)[i]))
			bits[!!(flags & KX_IPC_SL_NAPS)] |= 1u << i << (flags & KX_IPC_SL_SENDS ? 16 : 0);
	}
	STORE(o->asleep, bits[0]);
	STORE(o->naps, bits[1]);
}

/* Its thread has left, or is dead: what it was given and did not take is the object's again. */
void ipc_place_free(struct kx_ipc_obj *o, struct kx_ipc_sleeper *s)
{
	uint32_t flags = LOAD(s->flags), nr = place_nr(o, s), size;
	uint64_t pos = LOAD(s->want);
	if (LOAD(s->id) == LOAD(o->id)) {
		if (!(flags & KX_IPC_SL_SENDS) && flags & KX_IPC_SL_SERVED &&
		    msg_is(o, pos, KX_IPC_MSG_GIVEN(nr), &size)) {
			STORE(msg_at(o, pos)->state, KX_IPC_MSG_HERE);
			counted(o, size, 1);
		} else if (flags & KX_IPC_SL_SENDS && msg_is(o, pos, KX_IPC_MSG_WAITS(nr), &size)) {
			STORE(msg_at(o, pos)->state, KX_IPC_MSG_GONE);
			ipc_tail_advance(o);
		}
	}
	STORE(s->tid, 0);
}

static void served(struct kx_ipc_sleeper *s) { __atomic_or_fetch(&s->flags, KX_IPC_SL_SERVED, __ATOMIC_SEQ_CST); }

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

/* The message at pos, which is in the queue, to whoever has waited longest for such a one. False: nobody took it. Who is
 * stopped is not tried again with the next one. */
static bool msg_give(struct kx_ipc_obj *o, uint64_t pos, uint32_t size, uint32_t *tried)
{
	struct kx_ipc_msg *m = msg_at(o, pos);
	struct kx_ipc_sleeper *s;
	uint64_t ticket;
	bool dead;
	while ((s = next_waiting(o, tried, &ticket, takes, LOAD(m->type)))) {
		if (!is_mq(o) && size > LOAD(s->size) && !(LOAD(s->flags) & KX_IPC_SL_NOERROR)) {
			__atomic_or_fetch(&s->flags, KX_IPC_SL_TOO_BIG | KX_IPC_SL_SERVED, __ATOMIC_SEQ_CST);
			if (!takes_it(s, &dead) && dead)
				ipc_place_free(o, s);
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
			ipc_place_free(o, s);
	}
	return false;
}

/* The message that comes next, by msgrcv's rules (POSIX: the oldest of the highest priority). False: none. */
bool ipc_msg_next(struct kx_ipc_obj *o, int64_t want, bool except, uint64_t *pos, uint32_t *size)
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

static void messages_give(struct kx_ipc_obj *o, uint32_t *tried)
{
	uint64_t tail, head, pos;
	uint32_t size, bytes;
	if (is_mq(o)) {
		while (any_receiver(o) && ipc_msg_next(o, 0, false, &pos, &size) && msg_give(o, pos, size, tried))
			;
		return;
	}
	if (!any_receiver(o) || !cursors(o, &tail, &head))
		return;
	for (uint64_t at = tail; at < head && msg_sizes(o, at, &size, &bytes); at += bytes)
		if (LOAD(msg_at(o, at)->state) == KX_IPC_MSG_HERE)
			msg_give(o, at, size, tried);
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

static void room_give(struct kx_ipc_obj *o, uint32_t *tried)
{
	struct kx_ipc_sleeper *s;
	uint64_t pos = 0, ticket;
	uint32_t size;
	bool dead;
	for (unsigned i = 0; i < KX_IPC_PLACES && is_mq(o) && has_room(o, 0) && room_next(o, &pos, &size, &s); i++) {
		STORE(msg_at(o, pos)->state, KX_IPC_MSG_HERE);
		served(s);
		counted(o, size, 1);
		if (!takes_it(s, &dead)) {
			STORE(msg_at(o, pos)->state, KX_IPC_MSG_WAITS(place_nr(o, s)));
			counted(o, size, -1);
			if (dead)
				ipc_place_free(o, s);
		}
		pos += kx_ipc_msg_bytes(size);
	}
	while (!is_mq(o) && (s = next_waiting(o, tried, &ticket, sends, 0)))
		if (has_room(o, LOAD(s->size))) {
			served(s);
			if (!takes_it(s, &dead) && dead)
				ipc_place_free(o, s);
		}
}

/* What is in memory is the queue's as long as it is LIVE. */
void ipc_give(struct kx_ipc_obj *o)
{
	uint32_t tried = 0;
	if (!kx_ipc_is_live(ipc_state(o)))
		return;
	messages_give(o, &tried);
	room_give(o, &tried);
	if (is_mq(o))
		messages_give(o, &tried);
	ipc_asleep_note(o);
}

void ipc_dead_sweep(struct kx_ipc_obj *o)
{
	for (unsigned i = 0; i < KX_IPC_PLACES; i++) {
		struct kx_ipc_sleeper *s = &places(o)[i];
		uint32_t tid = LOAD(s->tid);
		if (tid && ipc_is_gone(tid))
			ipc_place_free(o, s);
	}
}

/* ---- naps ---------------------------------------------------------------------------------------------------------- */

void ipc_nap_end(struct kx_ipc_obj *o)
{
	if (is_sem(o)) {
		if (__atomic_exchange_n(&o->naps, 0, __ATOMIC_SEQ_CST))
			HC6(SYS_futex, &o->naps, FUTEX_WAKE, INT_MAX, 0, 0, 0);
		return;
	}
	for (unsigned i = 0; i < KX_IPC_PLACES; i++)
		if (LOAD(places(o)[i].tid) && LOAD(places(o)[i].tid) != (uint32_t)my_tid() &&
		    LOAD(places(o)[i].flags) & KX_IPC_SL_NAPS)
			wake(&places(o)[i]);
}

void ipc_owed(void)
{
	struct kx_ipc_table *t = gva_ptr(KX_IPC_TABLE);
	if (!ipc_mem || !__atomic_load_n(&t->owes, __ATOMIC_SEQ_CST))
		return;
	__atomic_store_n(&t->owes, 0, __ATOMIC_SEQ_CST);
	struct kx_ipc_obj *of[] = { ipc_mem->sem, ipc_mem->msg, ipc_mem->mq };
	for (unsigned k = 0; k < sizeof of / sizeof of[0]; k++)
		for (uint64_t w = __atomic_exchange_n(&t->owed[k], 0, __ATOMIC_SEQ_CST); w; w &= w - 1)
			ipc_nap_end(&of[k][__builtin_ctzll(w)]);
}

int64_t hc_ipc_owed(struct hcall *c)
{
	(void)c;
	ipc_owed();
	return 0;
}

uint32_t ipc_nap_ns(const struct kx_ipc_obj *o)
{
	uint32_t ns = LOAD(o->nap_ns);
	return !ns ? NAP_FIRST_NS : ns < NAP_LEAST_NS ? NAP_LEAST_NS : ns > NAP_MOST_NS ? NAP_MOST_NS : ns;
}

void ipc_napped(struct kx_ipc_obj *o, bool got)
{
	uint32_t ns = ipc_nap_ns(o);
	STORE(o->nap_ns, got ? ns * 2 : ns / 2);
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
	ipc_tail_advance(o);
}

void ipc_recover(struct kx_ipc_obj *o)
{
	if (is_sem(o)) /* one compare-and-swap is all of it */
		return;
	queue_recover(o);
	if (!kx_ipc_is_live(ipc_state(o)))
		return;
	ipc_dead_sweep(o);
	ipc_give(o);
}

bool ipc_is_slept_on(struct kx_ipc_obj *o)
{
	if (is_sem(o))
		return false;
	ipc_dead_sweep(o);
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
	int n = cmd == GETVAL ? (int)KX_IPC_VALUE(LOAD(*word_of(o, (unsigned)number))) : 0;
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
	uint64_t ticket, until = now_ns() + PASS_NS;
	struct kx_ipc_sleeper *s;
	uint32_t tried = 0;
	if (is_sem(o) || LOAD(o->id) != id)
		return;
	while ((s = next_waiting(o, &tried, &ticket, anybody, 0))) {
		wake(s);
		pass_one(s, ticket, until);
	}
}

void ipc_places_drop(struct kx_ipc_obj *o, uint32_t pid)
{
	for (unsigned i = 0; !is_sem(o) && i < KX_IPC_PLACES; i++) {
		struct kx_ipc_sleeper *s = &places(o)[i];
		if (LOAD(s->tid) && LOAD(s->pid) == pid)
			STORE(s->tid, UINT32_MAX); /* whom nobody has: swept as one that died */
	}
}
