/* SPDX-License-Identifier: Apache-2.0 */
#include "../../abi/kx_recycle.h"
#include "libos.h"

#define NR_mmap 9
#define NR_munmap 11
#define PROT_RW 3u
#define MAP_PRIVATE_ANONYMOUS 0x22u
#define MREMAP_MAYMOVE 1ul

static struct kx_recycle *const pool = (struct kx_recycle *)KX_RECYCLE_BASE;

static uint64_t pages_up(uint64_t n) { return (n + 4095) & -4096ul; }

static bool take(const struct kx_frame *f, int64_t *ret)
{
	if (f->rdi || (uint32_t)f->rdx != PROT_RW || (uint32_t)f->r10 != MAP_PRIVATE_ANONYMOUS || f->r9 ||
	    pages_up(f->rsi) != pool->len)
		return false;
	for (uint32_t i = 0; i < pool->nr && i < KX_RECYCLE_MAX; i++) {
		if (pool->piece[i].state != KX_RECYCLE_FREE)
			continue;
		pool->piece[i] = (struct kx_recycled){ KX_RECYCLE_HAS, (uint32_t)pool->len };
		*ret = (int64_t)(pool->first + i * pool->len);
		return true;
	}
	return false;
}

/* The piece that begins at `at`, of which the program has `len` bytes. */
static struct kx_recycled *piece_of(uint64_t at, uint64_t len)
{
	uint64_t i = (at - pool->first) / pool->len;
	if (at < pool->first || i >= pool->nr || i >= KX_RECYCLE_MAX || at != pool->first + i * pool->len)
		return NULL;
	struct kx_recycled *p = &pool->piece[i];
	return p->state == KX_RECYCLE_HAS && p->has == pages_up(len) ? p : NULL;
}

bool recycle_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret)
{
	if (!pool->on || !pool->len || t->vfork)
		return false;
	if (f->orig_rax == NR_mmap)
		return take(f, ret);
	struct kx_recycled *p = piece_of(f->rdi, f->rsi);
	if (!p)
		return false;
	if (f->orig_rax == NR_munmap) {
		p->state = KX_RECYCLE_BACK;
		*ret = 0;
		return true;
	}
	/* mremap, to less */
	uint64_t less = pages_up(f->rdx);
	if (!less || less >= p->has || f->r10 & ~MREMAP_MAYMOVE)
		return false;
	p->has = (uint32_t)less;
	*ret = (int64_t)f->rdi;
	return true;
}
