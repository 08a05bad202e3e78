/* SPDX-License-Identifier: Apache-2.0 */
/* Signals sent, and read from a signalfd, without an exit of their own: abi/kx_sigs.h. */
#include "sigs.h"

static const struct kx_futexes *const family = (const struct kx_futexes *)KX_FUTEX_BASE;

static struct kx_sigs *sigs(struct kx_bctx *c) { return (struct kx_sigs *)((uint8_t *)c + KX_SIGS_AT); }

/* A member that was there at the last exit is there still, as far as anybody in the family knows. */
bool sigs_may_kill(struct kx_bctx *c, const struct kx_bkill *k)
{
	struct kx_sigs *s = sigs(c);
	if (k->pid <= 0 || k->signo < 0 || k->signo > 31 || !(KX_SIGS_LATER >> k->signo & 1) ||
	    s->calls != __atomic_load_n(&BATCH->calls, __ATOMIC_ACQUIRE) ||
	    s->ended != __atomic_load_n(&family->ended, __ATOMIC_SEQ_CST))
		return false;
	for (unsigned i = 0; i < KX_SIGS_TARGETS; i++)
		if (__atomic_load_n(&s->target[i].pid, __ATOMIC_ACQUIRE) == k->pid) {
			s->target[i].uses++;
			return true;
		}
	return false;
}

bool sigs_read(struct kx_bctx *c, struct kx_frame *f, int64_t *ret)
{
	struct kx_sigs *s = sigs(c);
	uint32_t state = KX_AHEAD_OFFERED;
	if (__atomic_load_n(&s->state, __ATOMIC_ACQUIRE) != state || s->fd != (int32_t)f->rdi || s->asked != f->rdx ||
	    s->read_calls != __atomic_load_n(&BATCH->calls, __ATOMIC_ACQUIRE) || s->len > sizeof s->data ||
	    user_write(f->rsi, s->data, s->len))
		return false;
	*ret = s->len;
	return __atomic_compare_exchange_n(&s->state, &state, KX_AHEAD_TAKEN, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_RELAXED);
}
