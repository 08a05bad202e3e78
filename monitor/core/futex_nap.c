/* SPDX-License-Identifier: Apache-2.0 */
#include "futex_nap.h"
#include <errno.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "../../abi/kx_fnap.h"
#include "../../util/now.h"
#include "../../util/together.h"
#include "family.h"
#include "gmem.h"
#include "hcall.h"
#include "ipc_priv.h"
#include "keeper.h"
#include "maps.h"
#include "thread.h"

#define NAP_LEAST_NS 100000u
#define NAP_MOST_NS 800000u   /* who is woken later than that does not nap the next time */
#define STALE_NS 100000000ull /* whose nap was over so long ago was killed, or is stopped */
#define LOOK_NS 10000000ull   /* the list of mappings is read once in that time */

static KX_TOGETHER uint32_t unmapped; /* with mm_lock: counts changes of what is mapped shared */

static struct kx_futexes *page(void) { return gva_ptr(KX_FUTEX_BASE); }

/* ---- which word --------------------------------------------------------------------------------------------------- */

void futex_unmapped(void)
{
	struct kx_shared *s = pvm.shared;
	unmapped++;
	if (!s || !s->fpage_seq)
		return;
	__atomic_store_n(&s->fpage_seq, s->fpage_seq | 1, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < KX_FPAGES; i++)
		__atomic_store_n(&s->fpage[i].page, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&s->fpage_seq, (s->fpage_seq + 1) | 2, __ATOMIC_SEQ_CST);
}

struct search {
	uint64_t at; /* host address */
	struct kx_fpage found;
};

static bool line_of(const struct maps_line *l, void *arg)
{
	struct search *s = arg;
	if (s->at < l->start || s->at >= l->end)
		return s->at >= l->end;
	if (l->perm[3] == 's' && l->ino && l->ino < KX_FNAP_PRIVATE) {
		s->found.ino = l->ino;
		s->found.dev = maps_dev(l);
		s->found.off = l->off + ((s->at - l->start) & ~4095ull);
	}
	return false;
}

static uint32_t unmapped_now(void)
{
	pthread_mutex_lock(&pvm.mm_lock);
	uint32_t n = unmapped;
	pthread_mutex_unlock(&pvm.mm_lock);
	return n;
}

/*
 * Which page of which file is mapped there: as the host's list says, if nothing has changed since. Who changes what is
 * mapped holds mm_lock until the host has done it, so what was read between two looks at the count was right.
 */
static void page_learn(uint64_t gva)
{
	static KX_TOGETHER uint64_t last;
	struct search s = { .at = (uint64_t)gva_ptr(gva) };
	uint64_t now = now_ns(), before = __atomic_load_n(&last, __ATOMIC_RELAXED);
	struct gmem_region r;
	if (now - before < LOOK_NS || is_vfork_child() ||
	    !__atomic_compare_exchange_n(&last, &before, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ||
	    !gmem_query(gva, &r) || (r.flags & MAP_TYPE) != MAP_SHARED)
		return;
	uint32_t seen = unmapped_now();
	if (!maps_each(line_of, &s) || !s.found.ino)
		return;
	struct kx_fpage *p = &pvm.shared->fpage[(gva >> 12) % KX_FPAGES];
	pthread_mutex_lock(&pvm.mm_lock);
	if (seen == unmapped) {
		uint32_t seq = pvm.shared->fpage_seq;
		__atomic_store_n(&pvm.shared->fpage_seq, seq | 1, __ATOMIC_SEQ_CST);
		*p = (struct kx_fpage){ gva >> 12, s.found.ino, s.found.dev, s.found.off };
		__atomic_store_n(&pvm.shared->fpage_seq, (seq | 1) + 1, __ATOMIC_SEQ_CST);
	}
	pthread_mutex_unlock(&pvm.mm_lock);
}

/* False: it is not known. Also where others than the family may wake who waits for it. */
static bool key_of(uint64_t gva, bool private, uint64_t key[3])
{
	if (private) {
		kx_fnap_private(key, (uint32_t)pvm.pid, gva);
		return true;
	}
	if (pvm.shared->futex_outside || __atomic_load_n(&page()->outside, __ATOMIC_SEQ_CST))
		return false;
	if (kx_fnap_shared(pvm.shared, key, gva))
		return true;
	page_learn(gva);
	return kx_fnap_shared(pvm.shared, key, gva);
}

static struct kx_fnap *place_of(uint64_t gva, bool private)
{
	return &page()->nap[kx_fnap_at(gva, private, (uint32_t)pvm.pid)];
}

static uint32_t sleepers_of(uint64_t gva, bool private)
{
	uint32_t *b = private ? &pvm.shared->futex_waiters[kx_futex_bucket(gva)] : &page()->waiters[kx_futex_slot(gva)];
	return __atomic_load_n(b, __ATOMIC_SEQ_CST);
}

/* ---- who waits ---------------------------------------------------------------------------------------------------- */

/* The word by which a nap is known from now on; 0: somebody else naps here. */
static uint64_t place_take(struct kx_fnap *n, const uint64_t key[3], uint64_t until)
{
	uint64_t w = __atomic_load_n(&n->word, __ATOMIC_SEQ_CST), next = KX_FNAP_NEXT(w, self->tid);
	if (KX_FNAP_STATE(w) != KX_FNAP_FREE &&
	    until - NAP_MOST_NS < __atomic_load_n(&n->until, __ATOMIC_RELAXED) + STALE_NS)
		return 0;
	if (!kx_fnap_swap(n, w, next))
		return 0;
	for (unsigned i = 0; i < 3; i++)
		__atomic_store_n(&n->key[i], key[i], __ATOMIC_RELAXED);
	__atomic_store_n(&n->ended, __atomic_load_n(&page()->ended, __ATOMIC_SEQ_CST), __ATOMIC_RELAXED);
	__atomic_store_n(&n->until, until, __ATOMIC_RELAXED);
	return kx_fnap_swap(n, next, KX_FNAP_AS(next, KX_FNAP_NAPS)) ? KX_FNAP_AS(next, KX_FNAP_NAPS) : 0;
}

/* It is over. True: somebody has woken him. */
static bool place_leave(struct kx_fnap *n, uint64_t mine)
{
	const uint64_t free = KX_FNAP_AS(mine, KX_FNAP_FREE);
	if (kx_fnap_swap(n, mine, free))
		return false;
	if (kx_fnap_swap(n, KX_FNAP_AS(mine, KX_FNAP_WOKEN), free))
		return true;
	return __atomic_load_n(&n->word, __ATOMIC_SEQ_CST) != free; /* sent to the host's futex */
}

static uint64_t left_ns(clockid_t clock, const struct timespec *until)
{
	struct timespec now;
	if (!until)
		return UINT64_MAX;
	clock_gettime(clock, &now);
	if (until->tv_sec < now.tv_sec)
		return 0;
	if (until->tv_sec - now.tv_sec > 1)
		return UINT64_MAX;
	int64_t ns = (until->tv_sec - now.tv_sec) * 1000000000l + until->tv_nsec - now.tv_nsec;
	return ns > 0 ? (uint64_t)ns : 0;
}

int futex_nap(struct hcall *c, int op, const struct timespec *until)
{
	const bool private = op & FUTEX_PRIVATE_FLAG;
	uint64_t gva = c->arg[0], key[3], ns = 2 * (uint64_t)c->t->woken_ns;
	uint32_t word;
	long r = -EAGAIN;
	if (!ns || self->sig_stop || is_vfork_child() || sleepers_of(gva, private) != 1 || !key_of(gva, private, key))
		return -EAGAIN;
	ns = ns < NAP_LEAST_NS ? NAP_LEAST_NS : ns > NAP_MOST_NS ? NAP_MOST_NS : ns;
	uint64_t left = left_ns(op & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC, until);
	const struct timespec most = { 0, (long)(left < ns ? left : ns) };
	struct kx_fnap *n = place_of(gva, private);
	uint64_t mine = place_take(n, key, now_ns() + NAP_MOST_NS);
	if (!mine)
		return -EAGAIN;
	/* Whoever wakes has changed the word before he looked here. */
	if (!guest_read(&word, gva, sizeof word) && word == (uint32_t)c->arg[2])
		r = HB6(SYS_futex, &n->word, FUTEX_WAIT, (uint32_t)mine, &most, 0, 0);
	return place_leave(n, mine) ? 0 : r == -EINTR ? -EINTR : -EAGAIN;
}

void futex_nap_learn(struct hcall *c, uint64_t since_ns, bool woken)
{
	uint64_t took = now_ns() - since_ns;
	c->t->woken_ns = woken && took < NAP_MOST_NS ? (uint32_t)took + 1 : 0;
}

/* ---- who wakes ---------------------------------------------------------------------------------------------------- */

static long end_nap(struct kx_fnap *n) { return HC6(SYS_futex, &n->word, FUTEX_WAKE, 1, 0, 0, 0); }

int futex_nap_wake(uint64_t gva, bool private)
{
	struct kx_fnap *n = place_of(gva, private);
	uint64_t key[3], w = __atomic_load_n(&n->word, __ATOMIC_SEQ_CST);
	if (KX_FNAP_STATE(w) != KX_FNAP_NAPS)
		return 0;
	if (!key_of(gva, private, key)) {
		futex_nap_evict(gva, private);
		return 0;
	}
	if (!kx_fnap_is(n, key) || !kx_fnap_swap(n, w, KX_FNAP_AS(w, KX_FNAP_WOKEN)))
		return 0;
	/* Nobody sleeps there: he is about to, or to go on; or he was killed, and has not been woken. */
	if (end_nap(n) == 0 && ipc_is_gone(KX_FNAP_TID(w)))
		return kx_fnap_swap(n, KX_FNAP_AS(w, KX_FNAP_WOKEN), KX_FNAP_AS(w, KX_FNAP_FREE)) ? 0 : 1;
	return 1;
}

void futex_nap_evict(uint64_t gva, bool private)
{
	struct kx_fnap *n = place_of(gva, private);
	uint64_t w = __atomic_load_n(&n->word, __ATOMIC_SEQ_CST);
	if (KX_FNAP_STATE(w) == KX_FNAP_NAPS && kx_fnap_swap(n, w, KX_FNAP_AS(w, KX_FNAP_FREE)))
		end_nap(n);
}

void futex_owed(void)
{
	if (!self || !self->area || !__atomic_load_n(&self->area->hand.owed, __ATOMIC_RELAXED))
		return;
	for (uint64_t w = __atomic_exchange_n(&self->area->hand.owed, 0, __ATOMIC_SEQ_CST); w; w &= w - 1) {
		struct kx_fnap *n = &page()->nap[__builtin_ctzll(w)];
		if (KX_FNAP_STATE(__atomic_load_n(&n->word, __ATOMIC_SEQ_CST)) == KX_FNAP_WOKEN)
			end_nap(n);
	}
}

void futex_nap_exec(void)
{
	for (unsigned i = 0; i < KX_FNAPS; i++) {
		struct kx_fnap *n = &page()->nap[i];
		uint64_t w = __atomic_load_n(&n->word, __ATOMIC_SEQ_CST);
		if (KX_FNAP_STATE(w) != KX_FNAP_FREE && n->key[0] == (KX_FNAP_PRIVATE | (uint32_t)pvm.pid))
			kx_fnap_swap(n, w, KX_FNAP_AS(w, KX_FNAP_FREE));
	}
}

int64_t hc_futex_owed(struct hcall *c)
{
	(void)c;
	futex_owed();
	return 0;
}
