/* SPDX-License-Identifier: Apache-2.0 */
#include "accept.h"
#include "../../abi/kx_accept.h"

#define O_NONBLOCK 04000u

static struct kx_accept *ahead(struct kx_bctx *c) { return (struct kx_accept *)((uint8_t *)c + KX_ACCEPT_AT); }

void accept_freed(struct kx_bctx *c, int32_t fd)
{
	struct kx_accept *a = ahead(c);
	if (fd < a->freed)
		a->freed = fd;
}

static bool tell_address(const struct kx_accepted *of, const struct kx_frame *f)
{
	int32_t room, len = (int32_t)of->len;
	return !f->rsi || (!user_read(&room, f->rdx, sizeof room) && room >= 0 && (uint32_t)len <= sizeof of->addr &&
			   !user_write(f->rsi, of->addr, (uint64_t)(room < len ? room : len)) &&
			   !user_write(f->rdx, &len, sizeof len));
}

bool accept_call(struct kx_bctx *c, struct kx_frame *f, uint32_t flags, int64_t *ret)
{
	struct kx_accept *a = ahead(c);
	uint64_t w = __atomic_load_n(&a->word, __ATOMIC_ACQUIRE);
	uint32_t i = (uint32_t)w;
	if (!(w & KX_ACCEPT_VALID) || i >= a->nr || i >= KX_ACCEPT_MAX || a->listener != (int32_t)f->rdi ||
	    a->flags != flags)
		return false;
	const struct kx_accepted *of = &a->of[i];
	/* Else the lowest free number is another one. */
	if (a->freed < of->fd || of->fd < 0 || of->fd >= KX_BATCH_FDS || !tell_address(of, f))
		return false;
	struct kx_bsock *s = &SOCKS[of->fd];
	__atomic_store_n(&s->fresh, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&s->tcp, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_compare_exchange_n(&a->word, &w, w + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
		__atomic_store_n(&s->fresh, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&s->tcp, 0, __ATOMIC_SEQ_CST);
		return false;
	}
	c->accepted = of->fd;
	c->accepted_at = (uint32_t)c->exits;
	*ret = of->fd;
	return true;
}
