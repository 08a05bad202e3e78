/* SPDX-License-Identifier: Apache-2.0 */
#include "accept.h"

static struct kx_bahead *ahead(struct kx_bctx *c) { return (struct kx_bahead *)((uint8_t *)c + KX_BATCH_AHEAD); }

static bool holds(const struct kx_bahead *a)
{
	return __atomic_load_n(&a->state, __ATOMIC_ACQUIRE) == KX_AHEAD_OFFERED && !a->spoilt &&
	       a->calls == __atomic_load_n(&BATCH->calls, __ATOMIC_ACQUIRE);
}

void ahead_changed(struct kx_bctx *c) { ahead(c)->spoilt = 1; }

void ahead_gone(struct kx_bctx *c, int32_t fd)
{
	struct kx_bahead *a = ahead(c);
	if (!holds(a))
		return;
	for (uint32_t i = 0; i < a->nr && i < KX_AHEAD_MAX; i++)
		if (a->event[i].fd == fd)
			a->event[i].events = 0;
	if (a->fresh == fd)
		a->fresh = -1;
}

/* It may be told of otherwise from now on; by an edge, also if nothing was. */
void ahead_shut(struct kx_bctx *c, int32_t fd)
{
	struct kx_bahead *a = ahead(c);
	if (!holds(a))
		return;
	a->zeros = 0;
	a->spoilt |= a->fresh == fd;
	for (uint32_t i = 0; i < a->nr && i < KX_AHEAD_MAX; i++)
		if (a->event[i].fd == fd)
			a->event[i].events |= a->event[i].events ? KX_AHEAD_SHUT : 0;
}

/* What the connection was ready for as it was accepted is its first event. */
void ahead_added(struct kx_bctx *c, int32_t fd, const struct kx_badd *add)
{
	struct kx_bahead *a = ahead(c);
	uint32_t told = a->fresh_events & (add->events | EV_ALWAYS);
	if (!holds(a))
		return;
	/* The monitor will register it when it has been told of: that must not tell of the same once more, and disarm it. */
	if (fd != a->fresh || add->epoll != a->epoll || add->events & EV_ONESHOT ||
	    (add->events & EV_ET && add->events & EV_OUT) || a->nr >= KX_AHEAD_MAX) {
		a->spoilt = 1;
		return;
	}
	a->fresh = -1;
	if (told) {
		a->event[a->nr++] = (struct kx_bevent){ add->data, told, fd };
		accept_told(c, fd, add, told);
	}
}

uint32_t ahead_still(const struct kx_bctx *c, const struct kx_bevent *e)
{
	uint32_t at;
	if (e->fd < 0 || e->fd >= KX_BATCH_FDS || !(e->events & EV_IN) || !accept_find(c, (uint32_t)e->fd, &at))
		return e->events;
	uint64_t w = __atomic_load_n(&SOCKS[at].rx, __ATOMIC_ACQUIRE);
	if (!(w & KX_RX_VALID) || KX_RX_POS(w) < KX_RX_END(w) || w & KX_RX_EOF || !(w & KX_RX_SHORT))
		return e->events;
	return e->events & ~EV_IN;
}

bool ahead_wait(struct kx_bctx *c, struct kx_frame *f, int64_t *ret)
{
	struct kx_bahead *a = ahead(c);
	int32_t max = (int32_t)f->rdx, n = 0;
	uint32_t state = KX_AHEAD_OFFERED;
	if (!holds(a) || a->epoll != (int32_t)f->rdi || a->epoll < 0 || a->nr > KX_AHEAD_MAX || may_know(c) ||
	    max <= 0 || max > INT32_MAX / EV_SIZE || !user_ok(f->rsi, (uint64_t)max * EV_SIZE))
		return false;
	if (!a->nr && !(int32_t)f->r10 && a->zeros &&
	    !accept_tells(c, a->epoll)) { /* whoever asks again and again must see what has come */
		a->zeros--;
		*ret = 0;
		return true;
	}
	for (uint32_t i = 0; i < a->nr; i++) {
		struct {
			uint32_t events;
			uint64_t data;
		} __attribute__((packed)) ev = { ahead_still(c, &a->event[i]), a->event[i].data };
		if (!ev.events)
			continue;
		if (n == max || ev.events & KX_AHEAD_SHUT || (ev.events & EV_OUT && c->said > c->mark) ||
		    user_write(f->rsi + (uint64_t)n * sizeof ev, &ev, sizeof ev))
			return false;
		n++;
	}
	*ret = n;
	return n && __atomic_compare_exchange_n(&a->state, &state, KX_AHEAD_TAKEN, false, __ATOMIC_SEQ_CST,
						__ATOMIC_RELAXED);
}
