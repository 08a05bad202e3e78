/* SPDX-License-Identifier: Apache-2.0 */
/*
 * semop, msgsnd, msgrcv, mq_timedsend and mq_timedreceive on objects that are in the family's memory (abi/kx_ipc.h), as long as nobody has to sleep.
 * All else is the monitor's (monitor/core/ipc.c).
 */
#include "../../abi/kx_ipc.h"
#include "ktime.h"
#include "libos.h"

#define TABLE ((struct kx_ipc_table *)KX_IPC_TABLE)
#define IPC ((struct kx_ipc *)KX_IPC_BASE)
#define IPC_NOWAIT 04000
#define MSG_NOERROR 010000
#define MSG_EXCEPT 020000
#define SEM_MAX 32767
#define MQ_PRIO_MAX 32768
#define SPIN_LEAST 30000u /* cycles */
#define SPIN_MOST 600000u
#define RETRY 16 /* sleeps until one that did not spin tries it again */
#define LOCK_SPINS 2000
#define TURNS_MOST 1000 /* in vain: the monitor's, who sees signals */

enum { NR_semop = 65, NR_msgsnd = 69, NR_msgrcv = 70, NR_semtimedop = 220, NR_mq_send = 242, NR_mq_receive = 243 };

static uint64_t cycles(void) { return __builtin_ia32_rdtsc(); }

static bool is_live(const struct kx_ipc_obj *o, int id)
{
	return kx_ipc_is_live(__atomic_load_n(&o->state, __ATOMIC_ACQUIRE)) && o->id == id;
}

static int64_t seconds(const struct kx_ipc_obj *o)
{
	int64_t s, ns;
	return kt_clock_gettime(0, &s, &ns) ? o->since : s;
}

/* What an exit costs: the shortest of late, since some sleep. */
static int64_t exit_timed(struct kx_thread *t, struct kx_frame *f, bool spun)
{
	uint64_t start = cycles();
	int64_t r = hypercall(t, f->orig_rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8, spun);
	uint64_t d = cycles() - start;
	uint32_t n = d < SPIN_MOST ? (uint32_t)d : SPIN_MOST, old = TABLE->exit_cycles;
	if (TABLE->on)
		TABLE->exit_cycles = n < old ? n : old + ((n - old) >> 6);
	return r;
}

/* Until *word is not `was` any more; as long as that was worth it lately. */
static bool spin(struct kx_thread *t, struct kx_ipc_obj *o, const uint64_t *word, uint64_t was)
{
	uint32_t most = 3 * TABLE->exit_cycles;
	most = most < SPIN_LEAST ? SPIN_LEAST : most > SPIN_MOST ? SPIN_MOST : most;
	uint32_t budget = o->spin < most ? o->spin : most;
	if (TABLE->cpus < 2 || (!budget && o->missed++ % RETRY))
		return false;
	if (!budget)
		budget = most;
	if (__atomic_load_n(&TABLE->owes, __ATOMIC_RELAXED)) /* whoever that is may be the one to wait for */
		hypercall(t, HC_ipc_owed, 0, 0, 0, 0, 0, 0);
	futex_pay(t);
	for (uint64_t end = cycles() + budget; cycles() < end;) {
		if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != was) {
			if (o->spin != most)
				o->spin = most;
			if (o->missed)
				o->missed = 0;
			return true;
		}
		if (__atomic_load_n(&t->work, __ATOMIC_RELAXED) ||
		    !kx_ipc_is_live(__atomic_load_n(&o->state, __ATOMIC_RELAXED)))
			return false;
		__builtin_ia32_pause();
	}
	o->spin = budget > most / 4 ? budget - most / 4 : 0;
	return false;
}

/* Who naps is to learn of a change: the monitor tells him before this process sleeps. */
static void owe(const struct kx_ipc_obj *o)
{
	unsigned i = (unsigned)(o - IPC->sem);
	uint64_t bit = 1ull << i % 64, *w = &TABLE->owed[i / 64 % 3];
	if (!(__atomic_load_n(w, __ATOMIC_RELAXED) & bit))
		__atomic_or_fetch(w, bit, __ATOMIC_SEQ_CST);
	__atomic_store_n(&TABLE->owes, 1, __ATOMIC_SEQ_CST);
}

/* ---- semaphores ------------------------------------------------------------------------------------------------------ */

/* As struct sembuf. */
struct op {
	uint16_t num;
	int16_t op;
	uint16_t flags;
};

static bool timeout_ok(uint64_t p)
{
	int64_t ts[2];
	return !p || (!user_read(ts, p, sizeof ts) && ts[0] >= 0 && ts[1] >= 0 && ts[1] < 1000000000);
}

static bool sem_op(struct kx_thread *t, struct kx_frame *f, int64_t *ret, bool *spun)
{
	int id = (int)f->rdi;
	struct kx_ipc_obj *o = &IPC->sem[kx_ipc_slot(id)];
	struct op op;
	if (!is_live(o, id) || f->rdx != 1 || user_read(&op, f->rsi, sizeof op) || op.flags & ~IPC_NOWAIT ||
	    op.num >= o->nsems || op.num >= KX_IPC_SEMS || (f->orig_rax == NR_semtimedop && !timeout_ok(f->r10)))
		return false;
	uint64_t *word = &IPC->word[kx_ipc_slot(id)][op.num];
	batch_flush(t);
	before_news(t);
	for (unsigned turn = 0; turn < TURNS_MOST; turn++) {
		uint64_t s = __atomic_load_n(&o->state, __ATOMIC_ACQUIRE), w = __atomic_load_n(word, __ATOMIC_ACQUIRE);
		int v = (int)KX_IPC_VALUE(w), left = v + op.op;
		if (!kx_ipc_is_live(s) || o->id != id || w & KX_IPC_FROZEN || w >> 40 != KX_IPC_GEN(s) ||
		    left > SEM_MAX)
			return false;
		if (op.op ? left >= 0 : !v) {
			if (!__atomic_compare_exchange_n(word, &w, KX_IPC_WORD(s, t->pid, (uint32_t)left), false,
							 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
				continue;
			o->otime = seconds(o);
			o->ops++;
			uint32_t naps = op.op > 0 ? __atomic_load_n(&o->naps, __ATOMIC_SEQ_CST) : 0;
			if (naps)
				owe(o);
			if (naps == KX_IPC_NAPS_FIRM)
				hypercall(t, HC_ipc_owed, 0, 0, 0, 0, 0, 0);
			*ret = 0;
			return true;
		}
		if (op.flags & IPC_NOWAIT) {
			*ret = -KX_EAGAIN;
			return true;
		}
		if (!spin(t, o, word, w)) {
			*spun = true;
			return false;
		}
	}
	return false;
}

/* ---- queues ----------------------------------------------------------------------------------------------------------- */

static struct kx_ipc_msg *msg_at(struct kx_ipc_obj *o, uint64_t pos)
{
	return (struct kx_ipc_msg *)(IPC->ring[o - IPC->msg] + pos % KX_IPC_RING); /* SysV, then POSIX */
}

/* Bytes in the ring of the message at pos, and of its text. 0: nonsense. Read once: others may write there without the lock. */
static uint32_t msg_bytes(struct kx_ipc_obj *o, uint64_t pos, uint32_t *size)
{
	uint32_t left = KX_IPC_RING - (uint32_t)(pos % KX_IPC_RING);
	*size = __atomic_load_n(&msg_at(o, pos)->size, __ATOMIC_RELAXED);
	return *size > KX_IPC_RING || kx_ipc_msg_bytes(*size) > left || pos % 16 ? 0 : kx_ipc_msg_bytes(*size);
}

/* The cursors, likewise. False: nonsense. */
static bool cursors(const struct kx_ipc_obj *o, uint64_t *tail, uint64_t *head)
{
	*tail = __atomic_load_n(&o->tail, __ATOMIC_RELAXED);
	*head = __atomic_load_n(&o->head, __ATOMIC_RELAXED);
	return *head >= *tail && *head - *tail <= KX_IPC_RING && *head % 16 == 0;
}

/* False after a while: its holder lost the CPU, or was killed. Or the queue is not here any more. */
static bool lock(struct kx_thread *t, struct kx_ipc_obj *o, int id)
{
	uint64_t me = (uint64_t)t->pid << 32 | t->tid;
	for (unsigned i = 0; i < LOCK_SPINS; i++) {
		uint64_t none = 0;
		if (!__atomic_load_n(&o->lock, __ATOMIC_RELAXED) &&
		    __atomic_compare_exchange_n(&o->lock, &none, me, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			if (is_live(o, id) && o->head - o->tail <= KX_IPC_RING)
				return true;
			__atomic_store_n(&o->lock, 0, __ATOMIC_RELEASE);
			return false;
		}
		__builtin_ia32_pause();
	}
	return false;
}

static void unlock(struct kx_ipc_obj *o) { __atomic_store_n(&o->lock, 0, __ATOMIC_RELEASE); }

/* Room for a message of `size`: its place in *at, the head's in *head. NULL: not in the ring. */
static struct kx_ipc_msg *msg_room(struct kx_ipc_obj *o, uint64_t size, uint64_t *head, uint64_t *at)
{
	uint64_t tail;
	if (!cursors(o, &tail, head))
		return NULL;
	uint32_t rest = KX_IPC_RING - (uint32_t)(*head % KX_IPC_RING), bytes = kx_ipc_msg_bytes((uint32_t)size);
	*at = *head + (rest < bytes ? rest : 0);
	return *at + bytes - tail > KX_IPC_RING ? NULL : msg_at(o, *at);
}

/* The text is there: the message is in the queue. */
static void msg_put(struct kx_ipc_obj *o, uint64_t head, uint64_t at, uint64_t size, int64_t type)
{
	if (at != head)
		*msg_at(o, head) = (struct kx_ipc_msg){ (uint32_t)(at - head) - 16, KX_IPC_MSG_GONE, 0 };
	*msg_at(o, at) = (struct kx_ipc_msg){ (uint32_t)size, KX_IPC_MSG_HERE, type };
	__atomic_store_n(&o->head, at + kx_ipc_msg_bytes((uint32_t)size), __ATOMIC_SEQ_CST);
	o->cbytes += size;
	o->qnum++;
	o->ops++;
	if (o->naps)
		owe(o);
}

static void msg_take(struct kx_ipc_obj *o, struct kx_ipc_msg *m, uint32_t size)
{
	uint64_t tail, head;
	uint32_t n, bytes;
	__atomic_store_n(&m->state, KX_IPC_MSG_GONE, __ATOMIC_SEQ_CST);
	o->cbytes -= size;
	o->qnum--;
	o->ops++;
	if (cursors(o, &tail, &head)) {
		while (tail < head && msg_at(o, tail)->state == KX_IPC_MSG_GONE && (bytes = msg_bytes(o, tail, &n)))
			tail += bytes;
		__atomic_store_n(&o->tail, tail, __ATOMIC_SEQ_CST);
	}
	if (o->naps)
		owe(o);
}

/* Does somebody sleep who is to get a message of this type, or to be told of room? With the lock. */
static bool is_waited_for(const struct kx_ipc_obj *o, int64_t type)
{
	for (uint32_t bits = o->asleep & 0xffff; bits; bits &= bits - 1) {
		const struct kx_ipc_sleeper *s = &IPC->sleeper[o - IPC->msg][__builtin_ctz(bits) % KX_IPC_PLACES];
		if (kx_ipc_takes(s->type, s->flags & KX_IPC_SL_EXCEPT, type))
			return true;
	}
	return false;
}
static bool is_room_waited_for(const struct kx_ipc_obj *o) { return o->asleep >> 16; }
/* Who naps for the same has come before, so the monitor says whose it is. */
static bool is_behind(const struct kx_ipc_obj *o, bool sends) { return sends ? o->naps >> 16 : o->naps & 0xffff; }

/* ---- SysV ------------------------------------------------------------------------------------------------------------- */

static bool msg_send(struct kx_thread *t, struct kx_frame *f, int64_t *ret, bool *spun)
{
	int id = (int)f->rdi;
	struct kx_ipc_obj *o = &IPC->msg[kx_ipc_slot(id)];
	uint64_t size = f->rdx;
	int64_t type;
	if (!is_live(o, id) || size > o->msgmax || size > KX_IPC_RING / 2 || user_read(&type, f->rsi, sizeof type) ||
	    type < 1 || !user_ok(f->rsi + 8, size))
		return false;
	batch_flush(t);
	before_news(t);
	for (unsigned turn = 0; turn < TURNS_MOST && lock(t, o, id); turn++) {
		uint64_t tail = o->tail;
		if (o->cbytes + size > o->qbytes || o->qnum + 1 > o->qbytes) {
			unlock(o);
			*ret = -KX_EAGAIN;
			if (f->r10 & IPC_NOWAIT)
				return true;
			if (spin(t, o, &o->tail, tail))
				continue;
			*spun = true;
			return false;
		}
		if (is_waited_for(o, type) || is_behind(o, true)) {
			unlock(o);
			return false;
		}
		uint64_t head, at;
		struct kx_ipc_msg *m = msg_room(o, size, &head, &at);
		bool bad = m && uaccess_copy(m + 1, (const void *)(f->rsi + 8), size);
		if (m && !bad) {
			msg_put(o, head, at, size, type);
			o->lspid = (int32_t)t->pid;
			o->stime = seconds(o);
		}
		unlock(o);
		*ret = bad ? -KX_EFAULT : 0;
		return m;
	}
	return false;
}

/* A message that was found. */
struct found {
	uint64_t head; /* as it was then */
	struct kx_ipc_msg *m;
	int64_t type;
	uint32_t size;
};

static void found_set(struct found *x, struct kx_ipc_msg *m, int64_t type, uint32_t size)
{
	x->m = m;
	x->type = type;
	x->size = size;
}

/* The message that msgrcv(2) means; x->m NULL: there is none. False: nonsense. */
static bool msg_find(struct kx_ipc_obj *o, int64_t want, bool except, struct found *x)
{
	int64_t least = INT64_MAX;
	uint64_t tail;
	uint32_t n, size;
	x->m = NULL;
	if (!cursors(o, &tail, &x->head))
		return false;
	for (uint64_t pos = tail; pos < x->head; pos += n) {
		struct kx_ipc_msg *m = msg_at(o, pos);
		if (!(n = msg_bytes(o, pos, &size)))
			return false;
		if (m->state != KX_IPC_MSG_HERE)
			continue;
		int64_t type = __atomic_load_n(&m->type, __ATOMIC_RELAXED);
		if (!want || (want > 0 && (type == want) != except)) {
			found_set(x, m, type, size);
			return true;
		}
		if (want < 0 && type <= -want && type < least) {
			least = type;
			found_set(x, m, type, size);
			if (least == 1)
				break;
		}
	}
	return true;
}

static bool msg_receive(struct kx_thread *t, struct kx_frame *f, int64_t *ret, bool *spun)
{
	int id = (int)f->rdi, flags = (int)f->r8;
	struct kx_ipc_obj *o = &IPC->msg[kx_ipc_slot(id)];
	int64_t type = (int64_t)f->r10;
	if (!is_live(o, id) || (int64_t)f->rdx < 0 || flags & ~(IPC_NOWAIT | MSG_NOERROR | MSG_EXCEPT) ||
	    type == INT64_MIN || !user_ok(f->rsi, 8) || !user_ok(f->rsi + 8, f->rdx))
		return false;
	batch_flush(t);
	before_news(t);
	for (unsigned turn = 0; turn < TURNS_MOST && lock(t, o, id); turn++) {
		struct found x;
		if (!msg_find(o, type, flags & MSG_EXCEPT, &x) ||
		    (x.m && (is_room_waited_for(o) || is_behind(o, false)))) {
			unlock(o);
			return false;
		}
		if (!x.m) {
			unlock(o);
			*ret = -KX_ENOMSG;
			if (flags & IPC_NOWAIT)
				return true;
			if (spin(t, o, &o->head, x.head))
				continue;
			*spun = true;
			return false;
		}
		uint64_t n = x.size;
		if (n > f->rdx) {
			if (!(flags & MSG_NOERROR)) {
				unlock(o);
				*ret = -KX_E2BIG;
				return true;
			}
			n = f->rdx;
		}
		bool bad = user_write(f->rsi, &x.type, sizeof x.type) || uaccess_copy((void *)(f->rsi + 8), x.m + 1, n);
		msg_take(o, x.m, x.size);
		o->lrpid = (int32_t)t->pid;
		o->rtime = seconds(o);
		unlock(o);
		*ret = bad ? -KX_EFAULT : (int64_t)n;
		return true;
	}
	return false;
}

/* ---- POSIX ------------------------------------------------------------------------------------------------------------ */

/* The queue of a descriptor that has this right; NULL: the monitor's matter. *nowait: who would sleep won't. */
static struct kx_ipc_obj *mq_of(int fd, unsigned right, int *id, bool *nowait)
{
	uint64_t key = fd < KX_IPC_FDS ? __atomic_load_n(&TABLE->mq[fd], __ATOMIC_ACQUIRE) : 0;
	*id = KX_IPC_MQ_ID(key);
	*nowait = key & KX_IPC_MQ_NOWAIT;
	struct kx_ipc_obj *o = &IPC->mq[kx_ipc_slot(*id)];
	return key & right && is_live(o, *id) ? o : NULL;
}

static bool mq_send(struct kx_thread *t, struct kx_frame *f, int64_t *ret, bool *spun)
{
	int id;
	bool nowait;
	struct kx_ipc_obj *o = mq_of((int)f->rdi, KX_IPC_MQ_WRITE, &id, &nowait);
	uint64_t size = f->rdx;
	uint32_t prio = (uint32_t)f->r10;
	if (!o || size > o->msgmax || size > KX_IPC_RING / 2 || prio >= MQ_PRIO_MAX || !user_ok(f->rsi, size) ||
	    !timeout_ok(f->r8))
		return false;
	batch_flush(t);
	before_news(t);
	for (unsigned turn = 0; turn < TURNS_MOST && lock(t, o, id); turn++) {
		uint64_t tail = o->tail;
		if (o->qnum >= o->qbytes) {
			unlock(o);
			if (!nowait && spin(t, o, &o->tail, tail))
				continue;
			*spun = true;
			return false;
		}
		if (is_waited_for(o, 0) || is_behind(o, true)) {
			unlock(o);
			return false;
		}
		uint64_t head, at;
		struct kx_ipc_msg *m = msg_room(o, size, &head, &at);
		bool bad = m && uaccess_copy(m + 1, (const void *)f->rsi, size);
		if (m && !bad)
			msg_put(o, head, at, size, prio);
		unlock(o);
		*ret = bad ? -KX_EFAULT : 0;
		return m;
	}
	return false;
}

/* The oldest of those with the highest priority. */
static bool mq_find(struct kx_ipc_obj *o, struct found *x)
{
	int64_t most = -1;
	uint64_t tail;
	uint32_t n, size;
	x->m = NULL;
	if (!cursors(o, &tail, &x->head))
		return false;
	for (uint64_t pos = tail; pos < x->head; pos += n) {
		struct kx_ipc_msg *m = msg_at(o, pos);
		if (!(n = msg_bytes(o, pos, &size)))
			return false;
		int64_t type = __atomic_load_n(&m->type, __ATOMIC_RELAXED);
		if (m->state == KX_IPC_MSG_HERE && type > most) {
			most = type;
			found_set(x, m, type, size);
		}
	}
	return true;
}

static bool mq_receive(struct kx_thread *t, struct kx_frame *f, int64_t *ret, bool *spun)
{
	int id;
	bool nowait;
	struct kx_ipc_obj *o = mq_of((int)f->rdi, KX_IPC_MQ_READ, &id, &nowait);
	if (!o || f->rdx < o->msgmax || !user_ok(f->rsi, f->rdx) || !timeout_ok(f->r8))
		return false;
	batch_flush(t);
	before_news(t);
	for (unsigned turn = 0; turn < TURNS_MOST && lock(t, o, id); turn++) {
		struct found x;
		if (!mq_find(o, &x) || (x.m && (is_room_waited_for(o) || is_behind(o, false)))) {
			unlock(o);
			return false;
		}
		if (!x.m) {
			unlock(o);
			if (!nowait && spin(t, o, &o->head, x.head))
				continue;
			*spun = true;
			return false;
		}
		uint64_t n = x.size < f->rdx ? x.size : f->rdx;
		uint32_t prio = (uint32_t)x.type;
		bool bad = uaccess_copy((void *)f->rsi, x.m + 1, n) ||
			   (f->r10 && user_write(f->r10, &prio, sizeof prio));
		msg_take(o, x.m, x.size);
		unlock(o);
		*ret = bad ? -KX_EFAULT : (int64_t)n;
		return true;
	}
	return false;
}

static bool here(struct kx_thread *t, struct kx_frame *f, int64_t *ret, bool *spun)
{
	if (!__atomic_load_n(&TABLE->on, __ATOMIC_ACQUIRE) || t->vfork || (int)f->rdi < 0)
		return false;
	switch (f->orig_rax) {
	case NR_msgsnd:
		return msg_send(t, f, ret, spun);
	case NR_msgrcv:
		return msg_receive(t, f, ret, spun);
	case NR_mq_send:
		return mq_send(t, f, ret, spun);
	case NR_mq_receive:
		return mq_receive(t, f, ret, spun);
	}
	return sem_op(t, f, ret, spun);
}

int64_t ipc_call(struct kx_thread *t, struct kx_frame *f)
{
	for (bool again = false;; again = true) {
		bool spun = false;
		int64_t r;
		if (here(t, f, &r, &spun))
			return r;
		r = exit_timed(t, f, spun || again); /* LIVE, and not for this call: it sleeps */
		if (r != -KX_EIPC_LIVE)
			return r;
		t->call.nr = ~0ull; /* the exit was no call of the program's */
	}
}
