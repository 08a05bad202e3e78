/* SPDX-License-Identifier: Apache-2.0 */
/* Places of sleepers and rings of messages, for ipc_give.c and ipc_live.c. Everything is read once: guests write there. */
#ifndef KX_IPC_PLACE_H
#define KX_IPC_PLACE_H
#include "ipc_priv.h"

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define STORE(x, v) __atomic_store_n(&(x), v, __ATOMIC_SEQ_CST)

static inline struct kx_ipc_sleeper *places(const struct kx_ipc_obj *o) { return ipc_mem->sleeper[o - ipc_mem->msg]; }
static inline unsigned place_nr(const struct kx_ipc_obj *o, const struct kx_ipc_sleeper *s)
{
	return (unsigned)(s - places(o));
}
static inline bool is_sem(const struct kx_ipc_obj *o) { return o < ipc_mem->msg; }
static inline bool is_mq(const struct kx_ipc_obj *o) { return o >= ipc_mem->mq; }

static inline bool is_used(const struct kx_ipc_obj *o, const struct kx_ipc_sleeper *s)
{
	return __atomic_load_n(&s->tid, __ATOMIC_ACQUIRE) && LOAD(s->id) == LOAD(o->id);
}
static inline bool waits(const struct kx_ipc_obj *o, const struct kx_ipc_sleeper *s)
{
	return is_used(o, s) && !(LOAD(s->flags) & (KX_IPC_SL_SERVED | KX_IPC_SL_ENTER));
}

static inline uint8_t *ring_of(const struct kx_ipc_obj *o) { return ipc_mem->ring[o - ipc_mem->msg]; }
static inline struct kx_ipc_msg *msg_at(const struct kx_ipc_obj *o, uint64_t pos)
{
	return (struct kx_ipc_msg *)(ring_of(o) + pos % KX_IPC_RING);
}

/* The cursors as they are now. False: nonsense. */
static inline bool cursors(const struct kx_ipc_obj *o, uint64_t *tail, uint64_t *head)
{
	*tail = LOAD(o->tail);
	*head = LOAD(o->head);
	return *head - *tail <= KX_IPC_RING && *head % 16 == 0 && *tail % 16 == 0;
}

/* Bytes of the text of the message at pos, and of all of it. False: nonsense. */
static inline bool msg_sizes(const struct kx_ipc_obj *o, uint64_t pos, uint32_t *size, uint32_t *bytes)
{
	*size = LOAD(msg_at(o, pos)->size);
	*bytes = *size > KX_IPC_RING ? 0 : kx_ipc_msg_bytes(*size);
	return *bytes && *bytes <= KX_IPC_RING - pos % KX_IPC_RING;
}

/* Is the message at pos there, in this state? */
static inline bool msg_is(const struct kx_ipc_obj *o, uint64_t pos, uint32_t state, uint32_t *size)
{
	uint64_t tail, head;
	uint32_t bytes;
	return cursors(o, &tail, &head) && pos - tail < head - tail && pos % 16 == 0 &&
	       msg_sizes(o, pos, size, &bytes) && LOAD(msg_at(o, pos)->state) == state;
}

static inline void counted(struct kx_ipc_obj *o, uint32_t size, int n)
{
	STORE(o->qnum, LOAD(o->qnum) + (uint32_t)n);
	STORE(o->cbytes, LOAD(o->cbytes) + (uint64_t)((int64_t)size * n));
}

static inline bool has_room(const struct kx_ipc_obj *o, uint32_t size)
{
	uint64_t limit = LOAD(o->qbytes), n = LOAD(o->qnum);
	return is_mq(o) ? n < limit : LOAD(o->cbytes) + size <= limit && n + 1 <= limit;
}

static inline uint64_t *word_of(const struct kx_ipc_obj *o, unsigned number)
{
	return &ipc_mem->word[(o - ipc_mem->sem) % KX_IPC_OBJECTS][number % KX_IPC_SEMS];
}

/* ---- ipc_give.c: all with the queue's lock ---- */

void ipc_tail_advance(struct kx_ipc_obj *o);
/* Which places wait, for the LibOS. */
void ipc_asleep_note(struct kx_ipc_obj *o);
/* The thread of this place has left, or is dead: what it was given and did not take is the object's again. */
void ipc_place_free(struct kx_ipc_obj *o, struct kx_ipc_sleeper *s);
/* The places of threads that are dead are free. */
void ipc_dead_sweep(struct kx_ipc_obj *o);
/* The message that comes next, by msgrcv's rules (POSIX: the oldest of the highest priority). False: none. */
bool ipc_msg_next(struct kx_ipc_obj *o, int64_t want, bool except, uint64_t *pos, uint32_t *size);
/* To each sleeper what it can have now, if the queue is LIVE. */
void ipc_give(struct kx_ipc_obj *o);
/* ... these two without. Who naps here is to look. */
void ipc_nap_end(struct kx_ipc_obj *o);
/* How long a nap is worth while; `got`: the last one has brought something. */
uint32_t ipc_nap_ns(const struct kx_ipc_obj *o);
void ipc_napped(struct kx_ipc_obj *o, bool got);
#endif
