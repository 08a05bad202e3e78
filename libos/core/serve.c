/* SPDX-License-Identifier: Apache-2.0 */
/* Hypercalls answered by the monitor's service thread, without an exit: abi/kx_serve.h has the protocol. */
#include "../../abi/kx_serve.h"
#include "libos.h"

#define SERVE ((struct kx_serve *)KX_SERVE_BASE)

static const uint8_t served[KX_SERVE_CALLS] = { KX_SERVED };

static bool swap(uint64_t *slot, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(slot, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* Before the first exit of a request: nobody has taken it. */
static bool await_taken(struct kx_serve *s, uint64_t me)
{
	uint64_t start = __builtin_ia32_rdtsc(), limit = s->take_ticks;
	do {
		for (int i = 0; i < 16; i++) {
			if (__atomic_load_n(&s->slot, __ATOMIC_ACQUIRE) != me)
				return true;
			__builtin_ia32_pause();
		}
	} while (__builtin_ia32_rdtsc() - start < limit);
	if (!swap(&s->slot, me, 0))
		return true;
	s->failed++;
	__atomic_store_n(&s->on, 0, __ATOMIC_RELAXED); /* whoever polls is not running: no one else need try */
	return false;
}

/* A service thread that has been put aside by the host's scheduler gets the CPU of this one. */
static uint64_t await_answer(struct kx_thread *t, struct kx_serve *s)
{
	uint64_t start = __builtin_ia32_rdtsc(), limit = s->wait_ticks, v;
	while (!((v = __atomic_load_n(&s->slot, __ATOMIC_ACQUIRE)) & (KX_SLOT_DONE | KX_SLOT_EXIT))) {
		__builtin_ia32_pause();
		if (__builtin_ia32_rdtsc() - start < limit)
			continue;
		if (v & KX_SLOT_SLEEPS || swap(&s->slot, v, v | KX_SLOT_SLEEPS)) {
			t->call = (struct kx_call){ .nr = HC_serve_wait };
			hypercall_exit();
		}
	}
	return v;
}

bool serve_mask_lags(const struct kx_thread *t) { return t->sigmask & ~t->host_mask & SERVE->plain; }

bool serve_try(struct kx_thread *t, int64_t *ret)
{
	struct kx_serve *s = SERVE;
	if (!__atomic_load_n(&s->on, __ATOMIC_RELAXED) || t->call.nr >= KX_SERVE_CALLS || !served[t->call.nr])
		return false;
	/* A child of vfork is another process than the thread that polls. */
	if (t->vfork || serve_mask_lags(t))
		return false;
	uint64_t seq = __atomic_add_fetch(&s->seq, 1, __ATOMIC_RELAXED);
	uint64_t me = seq << KX_SLOT_SEQ | (t->index + 1);
	if (!swap(&s->slot, 0, me) || !await_taken(s, me))
		return false;
	struct kx_call call = t->call;
	uint64_t v = await_answer(t, s);
	*ret = s->ret;
	__atomic_store_n(&s->slot, 0, __ATOMIC_RELEASE);
	t->call = call;
	return v & KX_SLOT_DONE;
}
