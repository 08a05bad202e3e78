/* SPDX-License-Identifier: Apache-2.0 */
#include "accept.h"
#include "numbers.h"

#define EV_RDHUP 0x2000u
#define EVENTS_MAX (2 * KX_ACCEPT_MAX)

static struct kx_accept *ahead(const struct kx_bctx *c) { return (struct kx_accept *)((uint8_t *)c + KX_ACCEPT_AT); }

/* ---- accept -------------------------------------------------------------------------------------------------------- */

static bool tell_address(const struct kx_accepted *of, const struct kx_frame *f)
{
	int32_t room, len = (int32_t)of->len;
	return !f->rsi || (!user_read(&room, f->rdx, sizeof room) && room >= 0 && (uint32_t)len <= sizeof of->addr &&
			   !user_write(f->rsi, of->addr, (uint64_t)(room < len ? room : len)) &&
			   !user_write(f->rdx, &len, sizeof len));
}

static uint32_t index_of(uint64_t w) { return (uint32_t)w; }
static bool has_more(const struct kx_accept *a, uint64_t w)
{
	return w & KX_ACCEPT_VALID && index_of(w) < a->nr && index_of(w) < KX_ACCEPT_MAX;
}

bool accept_offers(const struct kx_bctx *c, int32_t listener)
{
	const struct kx_accept *a = ahead(c);
	return has_more(a, __atomic_load_n(&a->word, __ATOMIC_ACQUIRE)) && a->listener == listener;
}

const struct kx_accepted *accept_next(struct kx_bctx *c, const struct kx_frame *f, uint32_t flags, int32_t *fd,
				      struct kx_bfd *name)
{
	const struct kx_accept *a = ahead(c);
	uint64_t w = __atomic_load_n(&a->word, __ATOMIC_ACQUIRE);
	if (!has_more(a, w) || a->listener != (int32_t)f->rdi || a->flags != flags)
		return NULL;
	const struct kx_accepted *of = &a->of[index_of(w)];
	*fd = numbers_lowest();
	if (*fd < 0 || *fd > of->fd || of->fd >= KX_BATCH_FDS || !tell_address(of, f))
		return NULL;
	*name = (struct kx_bfd){ a->serial, index_of(w) };
	return of;
}

bool accept_given(struct kx_bctx *c, uint32_t index, int32_t fd)
{
	struct kx_accept *a = ahead(c);
	uint64_t w = __atomic_load_n(&a->word, __ATOMIC_ACQUIRE);
	if (!has_more(a, w) || index_of(w) != index ||
	    !__atomic_compare_exchange_n(&a->word, &w, w + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	numbers_take();
	a->as[index] = fd;
	c->accepted = fd;
	c->accepted_at = (uint32_t)c->exits;
	return true;
}

bool accept_find(const struct kx_bctx *c, uint32_t fd, uint32_t *at)
{
	const struct kx_accept *a = ahead(c);
	bool moved = false;
	*at = fd;
	if (!a->has_map)
		return true;
	for (uint32_t i = 0; i < a->nr && i < KX_ACCEPT_MAX; i++) {
		if (a->as[i] == (int32_t)fd) {
			*at = (uint32_t)a->of[i].fd;
			return *at < KX_BATCH_FDS;
		}
		moved |= a->of[i].fd == (int32_t)fd;
	}
	return !moved;
}

/* ---- waits --------------------------------------------------------------------------------------------------------- */

static bool holds(const struct kx_accept *a, uint64_t w, int32_t epoll)
{
	return w & KX_ACCEPT_VALID && a->epoll == epoll && epoll >= 0 && a->waits &&
	       a->calls == __atomic_load_n(&BATCH->calls, __ATOMIC_ACQUIRE) && a->nr_events <= EVENTS_MAX;
}

bool accept_tells(const struct kx_bctx *c, int32_t epoll)
{
	const struct kx_accept *a = ahead(c);
	uint64_t w = __atomic_load_n(&a->word, __ATOMIC_ACQUIRE);
	return holds(a, w, epoll) && (a->nr_events || has_more(a, w));
}

static bool put(const struct kx_frame *f, int32_t n, uint32_t events, uint64_t data)
{
	struct {
		uint32_t events;
		uint64_t data;
	} __attribute__((packed)) ev = { events, data };
	return !user_write(f->rsi + (uint64_t)n * sizeof ev, &ev, sizeof ev);
}

/*
 * An edge is told of once, a level as long as it is one. What is forgotten here if there is an exit after all, that exit's
 * registration of the connection tells again.
 */
bool accept_wait(struct kx_bctx *c, struct kx_frame *f, int64_t *ret)
{
	struct kx_accept *a = ahead(c);
	int32_t max = (int32_t)f->rdx, n = 0;
	uint64_t w = __atomic_load_n(&a->word, __ATOMIC_ACQUIRE);
	uint32_t left = 0;
	if (!holds(a, w, (int32_t)f->rdi) || may_know(c) || max <= 0 || max > INT32_MAX / EV_SIZE ||
	    !user_ok(f->rsi, (uint64_t)max * EV_SIZE))
		return false;
	if (!has_more(a, w) && a->more) /* there is that to tell, too */
		return false;
	if (has_more(a, w) && !put(f, n++, a->events, a->data))
		return false;
	for (uint32_t i = 0; i < a->nr_events; i++) {
		struct kx_bevent e = a->event[i];
		uint32_t events = ahead_still(c, &e);
		if (!(events & ~EV_ET))
			continue;
		if (n == max) {
			a->event[left++] = e;
			continue;
		}
		if ((events & EV_OUT && c->said > c->mark) || !put(f, n++, events & ~EV_ET, e.data)) {
			a->waits = 0;
			return false;
		}
		if (!(e.events & EV_ET))
			a->event[left++] = e;
	}
	a->nr_events = left;
	a->waits--;
	*ret = n;
	if (n)
		return true;
	if ((int32_t)f->r10 || !a->zeros) /* whoever asks again and again must see what has come */
		return false;
	a->zeros--;
	return true;
}

void accept_told(struct kx_bctx *c, int32_t fd, const struct kx_badd *add, uint32_t events)
{
	struct kx_accept *a = ahead(c);
	if (!holds(a, __atomic_load_n(&a->word, __ATOMIC_ACQUIRE), add->epoll) || add->events & EV_ET)
		return;
	if (a->nr_events < EVENTS_MAX)
		a->event[a->nr_events++] = (struct kx_bevent){ add->data, events, fd };
	else
		a->waits = 0;
}

bool accept_added(struct kx_bctx *c, int32_t fd, const struct kx_badd *add)
{
	struct kx_accept *a = ahead(c);
	uint64_t w = __atomic_load_n(&a->word, __ATOMIC_ACQUIRE);
	if (!holds(a, w, add->epoll))
		return false;
	for (uint32_t i = index_of(w); i-- > 0 && i < KX_ACCEPT_MAX;) {
		if (a->as[i] != fd)
			continue;
		uint32_t told = a->of[i].events & (add->events | EV_ALWAYS);
		/* The monitor will register it when it has been told of: that must not tell of the same once more, and disarm it. */
		if (add->events & EV_ONESHOT || (add->events & EV_ET && add->events & EV_OUT) ||
		    a->nr_events >= EVENTS_MAX) {
			a->waits = 0;
			return true;
		}
		if (told)
			a->event[a->nr_events++] = (struct kx_bevent){ add->data, told | (add->events & EV_ET), fd };
		return true;
	}
	a->zeros = 0; /* not known of that one */
	return false;
}

void accept_gone(struct kx_bctx *c, int32_t fd)
{
	struct kx_accept *a = ahead(c);
	if (!a->has_map)
		return;
	for (uint32_t i = 0; i < a->nr_events && i < EVENTS_MAX; i++)
		if (a->event[i].fd == fd)
			a->event[i].events = 0;
}

void accept_closed(struct kx_bctx *c, int32_t fd)
{
	struct kx_accept *a = ahead(c);
	accept_gone(c, fd);
	for (uint32_t i = 0; a->has_map && i < KX_ACCEPT_MAX; i++)
		if (a->as[i] == fd)
			a->as[i] = -1;
}

void accept_changed(struct kx_bctx *c) { ahead(c)->waits = 0; }

/* It may be told of otherwise from now on, if it is told of; one whose other side had ended hangs up. */
void accept_shut(struct kx_bctx *c, int32_t fd)
{
	struct kx_accept *a = ahead(c);
	if (!a->has_map)
		return;
	a->zeros = 0;
	for (uint32_t i = 0; i < KX_ACCEPT_MAX; i++)
		if (a->as[i] == fd) {
			a->waits = a->of[i].events & (EV_RDHUP | EV_ALWAYS) ? 0 : a->waits;
			return;
		}
	for (uint32_t i = 0; i < a->nr_events && i < EVENTS_MAX; i++)
		if (a->event[i].fd == fd && a->event[i].events)
			a->waits = 0;
}
