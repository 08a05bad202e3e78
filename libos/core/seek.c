/* SPDX-License-Identifier: Apache-2.0 */
/* lseek(fd, 0, SEEK_END) of files that the last exit has looked at: monitor/core/batch_seek.c. */
#include "seek.h"

#define SEEK_END 2

static struct kx_futexes *const family = (struct kx_futexes *)KX_FUTEX_BASE;

bool seek_end(struct kx_bctx *c, struct kx_frame *f, int64_t *ret)
{
	struct kx_bseek *s = (struct kx_bseek *)((uint8_t *)c + KX_BATCH_SEEKS_AT);
	if (f->rsi || (uint32_t)f->rdx != SEEK_END || (int32_t)f->rdi < 0)
		return false;
	for (unsigned i = 0; __atomic_load_n(&s->fd, __ATOMIC_ACQUIRE) != (int32_t)f->rdi; s++)
		if (++i == KX_BATCH_SEEKS)
			return false;
	*ret = s->size;
	if (s->calls != __atomic_load_n(&BATCH->calls, __ATOMIC_SEQ_CST) ||
	    s->ticket != __atomic_load_n(&BATCH->ticket, __ATOMIC_SEQ_CST) ||
	    s->resized != __atomic_load_n(&family->resized, __ATOMIC_SEQ_CST) || family->outside ||
	    family->mapped_outside)
		return false;
	s->uses++;
	return true;
}
