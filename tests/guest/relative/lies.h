/* SPDX-License-Identifier: Apache-2.0 */
/* What a relative writes into the memory that all members map. Part of relative.c. */
#ifndef KX_GUEST_RELATIVE_LIES_H
#define KX_GUEST_RELATIVE_LIES_H
#include <stddef.h>
#include <sys/types.h>
#include "../../../abi/kx_ipc.h"
#include "../../../abi/kx_pipe.h"
#include "../../../abi/kx_sigwait.h"
#include "../draw.h"

#define PIPES ((struct kx_pipes *)KX_PIPE_BASE)
#define TABLE ((volatile struct kx_pipe_table *)KX_PIPE_TABLE)
#define IPC ((struct kx_ipc *)KX_IPC_BASE)
#define IPC_TABLE ((volatile struct kx_ipc_table *)KX_IPC_TABLE)
#define PUT(x, v) __atomic_store_n(&(x), v, __ATOMIC_SEQ_CST)
#define GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)

/* Whom the lies are about, and who tells them. */
static pid_t honest, liar;
static int sem = -1, queue = -1, mq = -1;
static unsigned mq_id;

static uint64_t any(void)
{
	static const uint64_t v[] = {
		0, 1, ~0ull, KX_PIPE_RING, KX_PIPE_RING + 1, 1ull << 63, 0xffffffff, KX_PIPE_BASE
	};
	uint64_t r = (uint64_t)draw(1u << 31) << 33 | (uint64_t)draw(1u << 31) << 2 | draw(4);
	return draw(2) ? v[draw(8)] : r >> draw(64);
}

/* Of a lock: free, held by somebody who lives, who is dead, or by nobody. */
static uint64_t any_holder(void)
{
	switch (draw(8)) {
	case 0:
		return (uint64_t)liar << 32 | (uint32_t)liar;
	case 1:
		return (uint64_t)honest << 32 | (uint32_t)honest;
	case 2:
		return 1ull << 32 | 1;
	case 3:
		return any();
	}
	return 0;
}

static struct kx_pipe *object_of(int fd)
{
	unsigned i = kx_pipe_obj(TABLE->fd[fd].key);
	return i < KX_PIPE_OBJECTS ? &PIPES->obj[i] : NULL;
}

static void lie_cursors(struct kx_pipe *o)
{
	uint64_t tail = GET(o->tail);
	if (draw(4) == 0)
		tail = draw(2) ? any() : tail + draw(500) * 8;
	PUT(o->tail, tail);
	PUT(o->head, draw(4) ? tail + draw(3) * draw(KX_PIPE_RING / 8) * 8 : any());
}

static void lie_state(struct kx_pipe *o)
{
	uint64_t state = GET(o->state) & ~0xffffffffull;
	if (draw(32) == 0)
		state = any();
	PUT(o->state, (state & ~15ull) | (draw(4) ? KX_PIPE_LIVE + draw(2) : draw(8)));
}

static void lie_words(struct kx_pipe *o)
{
	uint32_t *const w[] = { &o->nonblock[0], &o->nonblock[1], &o->closes,      &o->skip,      &o->reset,
				&o->passed,      &o->kind,        &o->edge,        &o->filled,    &o->watched[0],
				&o->host_first,  &o->moving_len,  &o->moving_base, &o->reset_due, &o->writer,
				&o->sleepers,    &o->token,       &o->napping,     &o->full,      &o->room };
	PUT(*w[draw(sizeof w / sizeof w[0])], draw(3) ? draw(3) : (uint32_t)any());
}

static void lie_holders(struct kx_pipe *o)
{
	const uint32_t who[] = { 0, (uint32_t)liar, (uint32_t)honest, (uint32_t)any(), (uint32_t)liar | KX_PIPE_GUARD };
	uint32_t one = who[draw(5)];
	if (draw(4)) {
		PUT(o->holder[draw(KX_PIPE_HOLDERS)], one);
		return;
	}
	for (unsigned i = 0; i < KX_PIPE_HOLDERS; i++)
		PUT(o->holder[i], one);
}

static inline void lie_pipe(int fd)
{
	struct kx_pipe *o = object_of(fd);
	if (!o)
		return;
	if (draw(2) && o->pair)
		o++;
	switch (draw(8)) {
	case 0:
		lie_state(o);
		break;
	case 1:
		PUT(*(draw(2) ? &o->rlock : &o->wlock), any_holder());
		break;
	case 2:
		lie_holders(o);
		break;
	case 3:
		PUT(o->moving, draw(2) ? GET(o->tail) << 1 | 1 : any());
		PUT(o->taken, draw(2) ? GET(o->tail) - draw(5000) : any());
		break;
	case 4:
		PUT(*(uint64_t *)(KX_PIPE_BASE + KX_PIPE_DATA + (uint64_t)(o - PIPES->obj) * KX_PIPE_RING +
				  draw(KX_PIPE_RING / 8) * 8),
		    draw(2) ? draw(40000) : any());
		break;
	case 5:
		lie_words(o);
		break;
	default:
		lie_cursors(o);
	}
	if (draw(64) == 0)
		PUT(PIPES->epoch, (uint32_t)any());
}

static struct kx_ipc_obj *ipc_objects(unsigned kind)
{
	return kind == 0   ? &IPC->sem[kx_ipc_slot(sem)]
	       : kind == 1 ? &IPC->msg[kx_ipc_slot(queue)]
			   : &IPC->mq[kx_ipc_slot((int)mq_id)];
}

static void lie_place(struct kx_ipc_obj *o)
{
	struct kx_ipc_sleeper *s = &IPC->sleeper[o - IPC->msg][draw(4)];
	PUT(s->ticket, draw(2) ? draw(40) : any());
	PUT(s->tid, draw(2) ? (uint32_t)(draw(2) ? honest : liar) : (uint32_t)any());
	PUT(s->id, GET(o->id));
	PUT(s->flags, draw(256));
	PUT(s->type, (int64_t)draw(4) - 2);
	PUT(s->want, draw(4) ? draw(64) * 16 : any());
	PUT(s->word, (uint32_t)any());
	PUT(o->asleep, (uint32_t)any());
	PUT(o->naps, (uint32_t)any());
}

static void lie_ring(struct kx_ipc_obj *o)
{
	struct kx_ipc_msg *m = (void *)(IPC->ring[o - IPC->msg] + draw(64) * 16);
	PUT(m->size, draw(4) ? draw(200) : (uint32_t)any());
	PUT(m->state, draw(5) | (draw(2) ? draw(20) << 8 : 0));
	PUT(m->type, draw(2) ? draw(4) : (int64_t)any());
	if (draw(2))
		PUT(o->head, draw(4) ? GET(o->tail) + draw(4096) * 16 : any());
	if (draw(8) == 0)
		PUT(o->tail, draw(2) ? GET(o->head) - draw(4096) * 16 : any());
}

static inline void lie_ipc(void)
{
	unsigned kind = draw(3);
	struct kx_ipc_obj *o = ipc_objects(kind);
	if (!IPC_TABLE->on)
		return;
	switch (draw(6)) {
	case 0:
		PUT(o->state, (GET(o->state) & ~0xffffffffull) | (uint64_t)(draw(2) ? liar : 0) << 4 | draw(6));
		break;
	case 1:
		PUT(o->lock, any_holder());
		break;
	case 2:
		PUT(o->users[draw(KX_IPC_USERS)], any());
		PUT(o->closed, draw(2));
		PUT(o->id, kind == 0 ? sem : kind == 1 ? queue : (int)mq_id);
		break;
	case 3:
		if (kind)
			lie_place(o);
		break;
	case 4:
		if (kind)
			lie_ring(o);
		break;
	default:
		PUT(IPC->word[kx_ipc_slot(sem)][draw(2)],
		    draw(2) ? any() : KX_IPC_WORD(GET(IPC->sem[kx_ipc_slot(sem)].state), 1, draw(3)));
	}
	PUT(IPC->undo[kx_ipc_slot(sem)], 0);
	PUT(o->closed, 0);
}

static inline void lie_sigwait(void)
{
	struct kx_sigw *w = (struct kx_sigw *)KX_SIGW_BASE;
	struct kx_sigw_slot *s = &w->slot[honest % KX_SIGW_SLOTS];
	uint64_t was = GET(s->word);
	PUT(s->word, draw(2) ? any() : was ^ 1ull << draw(64));
	PUT(s->tsc, draw(2) ? __builtin_ia32_rdtsc() : any());
}
#endif
