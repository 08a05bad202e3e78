/* SPDX-License-Identifier: Apache-2.0 */
/* Futexes: what needs no host. */
#include "../../abi/kx_fnap.h"
#include "ktime.h"
#include "libos.h"

#define FUTEX_PRIVATE 128
#define FUTEX_REALTIME 256
#define FUTEX_CMD 127u
enum {
	F_WAIT = 0,
	F_WAKE = 1,
	F_REQUEUE = 3,
	F_CMP_REQUEUE = 4,
	F_WAIT_BITSET = 9,
	F_WAKE_BITSET = 10,
	F_WAIT_REQUEUE_PI = 11,
	F_CMP_REQUEUE_PI = 12
};
#define FOR_EVER (1u << 31) /* in a bucket: nobody knows how many sleep there */
#define WAITV_MAX 128

static struct kx_futexes *const family = (struct kx_futexes *)KX_FUTEX_BASE;

/*
 * A waiter counts itself in its word's bucket before the host compares the word, a waker looks at the bucket after it
 * changed the word: so a zero means that nobody can be asleep. The buckets of private futexes are the process's; those
 * of shared ones the family's, by the word's place in its page. A waiter that is killed leaves its count behind: wakes of
 * that bucket cost an exit then, none is lost.
 */
static uint32_t *bucket(uint64_t addr, bool private)
{
	return private ? &SHARED->futex_waiters[kx_futex_bucket(addr)] : &family->waiters[kx_futex_slot(addr)];
}

/* ---- spinning ---------------------------------------------------------------------------------------------------- */

/*
 * Sleeping and being woken costs two exits and the host's own work: as long as that it pays to look whether the word
 * changes, if whoever changes it has a CPU meanwhile. What it brought decides: each time for nothing doubles the number of
 * waits that don't try.
 */
#define SPIN_BASE 20000u /* TSC ticks: the host's part */
#define SPIN_MAX 500000u
#define FAILS_MAX 5

static uint64_t ticks(void)
{
	uint32_t lo, hi;
	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (uint64_t)hi << 32 | lo;
}

/* An exit that does not sleep tells what they cost. The shortest of late: others were interrupted. */
static int64_t forward_timed(struct kx_thread *t, struct kx_frame *f)
{
	uint64_t a = ticks();
	int64_t r = forward(t, f);
	uint64_t d = ticks() - a;
	uint32_t cost = d < SPIN_MAX ? (uint32_t)d : SPIN_MAX, old = family->exit_cost;
	family->exit_cost = !old || cost < old ? cost : old + ((cost - old) >> 6);
	return r;
}

/* Does the word at addr stop to be val soon? False also where it can't be read. */
static bool spin(struct kx_thread *t, uint64_t addr, uint32_t val)
{
	uint32_t word, budget = 2 * family->exit_cost + SPIN_BASE;
	if (family->cpus < 2)
		return false;
	if (t->spin_skip) {
		t->spin_skip--;
		return false;
	}
	futex_pay(t);
	for (uint64_t start = ticks(); !t->work && ticks() - start < (budget < SPIN_MAX ? budget : SPIN_MAX);) {
		for (int i = 0; i < 8; i++)
			__builtin_ia32_pause();
		if (uaccess_load32(&word, (const void *)addr))
			return false;
		if (word != val) {
			t->spin_fails = 0;
			return true;
		}
	}
	if (t->spin_fails < FAILS_MAX)
		t->spin_fails++;
	t->spin_skip = (1u << t->spin_fails) - 1;
	return false;
}

/* ---- hand-over ---------------------------------------------------------------------------------------------------- */

#define SURE 3 /* so often in a row an exit has followed soon, for a wake to wait for the next one */

/*
 * Is a wake soon followed by an exit? If it waited for that and it did not come, the nap has ended by itself, a moment late,
 * or not yet: then it must be so more often first, each time twice as often.
 */
void futex_hand_learn(struct kx_thread *t)
{
	uint32_t soon = 2 * family->exit_cost + SPIN_BASE;
	bool good = ticks() - t->hand.since < (soon < SPIN_MAX ? soon : SPIN_MAX);
	t->hand.since = 0;
	if (good) {
		t->hand.sure += t->hand.sure < SURE;
		if (t->hand.owed)
			t->hand.fails = 0;
	} else if (t->hand.owed) {
		t->hand.fails += t->hand.fails < FAILS_MAX;
		t->hand.sure = -(1 << t->hand.fails);
	} else if (t->hand.sure > 0) {
		t->hand.sure = 0;
	}
}

/* The one who sleeps for that word naps, and is woken by this thread's next exit. */
static bool hand_over(struct kx_thread *t, uint64_t addr, bool private, const uint32_t *b)
{
	uint64_t key[3], w;
	int64_t s, ns;
	if (t->hand.sure < SURE || t->vfork || kt_clock_gettime(KT_MONOTONIC, &s, &ns))
		return false;
	if (!private)
		batch_flush(t);
	if (private)
		kx_fnap_private(key, SHARED->pid, addr);
	else if (!kx_fnap_shared(SHARED, key, addr))
		return false;
	unsigned at = kx_fnap_at(addr, private, SHARED->pid);
	struct kx_fnap *n = &family->nap[at];
	w = __atomic_load_n(&n->word, __ATOMIC_SEQ_CST);
	/* He was counted before the word said so, and is as long as it does: if the count is 1 meanwhile, it is his. */
	if (KX_FNAP_STATE(w) != KX_FNAP_NAPS || !kx_fnap_is(n, key) ||
	    n->ended != __atomic_load_n(&family->ended, __ATOMIC_SEQ_CST) ||
	    n->until < (uint64_t)s * 1000000000 + (uint64_t)ns || __atomic_load_n(b, __ATOMIC_SEQ_CST) != 1 ||
	    !kx_fnap_swap(n, w, KX_FNAP_AS(w, KX_FNAP_WOKEN)))
		return false;
	t->hand.owed |= 1ull << at;
	if (!t->hand.since)
		t->hand.since = ticks();
	return true;
}

/* ---- calls -------------------------------------------------------------------------------------------------------- */

/* FUTEX_WAIT with a timeout that the host would refuse. */
static bool timeout_ok(uint64_t p)
{
	int64_t ts[2];
	return !p || (!user_read(ts, p, sizeof ts) && ts[0] >= 0 && ts[1] >= 0 && ts[1] < 1000000000);
}

static int64_t wait(struct kx_thread *t, struct kx_frame *f, uint32_t cmd)
{
	bool private = f->rsi & FUTEX_PRIVATE;
	uint64_t addr = f->rdi;
	uint32_t word, val = (uint32_t)f->rdx, *b = bucket(addr, private);
	bool ours = !(cmd == F_WAIT_BITSET && !(uint32_t)f->r9) && !(cmd == F_WAIT && f->rsi & FUTEX_REALTIME) &&
		    timeout_ok(f->r10);
	if (ours) {
		before_news_of(t, !private);
		if (uaccess_load32(&word, (const void *)addr))
			return -KX_EFAULT;
		if (word != val || spin(t, addr, val))
			return -KX_EAGAIN;
	}
	__atomic_add_fetch(b, 1, __ATOMIC_SEQ_CST);
	if (!private) /* the monitor takes it back when the process ends in this call */
		__atomic_store_n(&t->futex_slot, (uint32_t)(b - family->waiters) + 1, __ATOMIC_SEQ_CST);
	int64_t r = forward(t, f);
	if (private || __atomic_exchange_n(&t->futex_slot, 0, __ATOMIC_SEQ_CST))
		__atomic_sub_fetch(b, 1, __ATOMIC_SEQ_CST);
	return r;
}

static int64_t wake(struct kx_thread *t, struct kx_frame *f, uint32_t cmd)
{
	bool private = f->rsi & FUTEX_PRIVATE;
	uint32_t word;
	if (cmd == F_WAKE_BITSET && !(uint32_t)f->r9)
		return forward(t, f);
	if (!private) {
		if (SHARED->futex_outside || __atomic_load_n(&family->outside, __ATOMIC_SEQ_CST))
			return forward_timed(t, f);
		if (uaccess_load32(&word, (const void *)f->rdi))
			return -KX_EFAULT;
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	const uint32_t *b = bucket(f->rdi, private);
	if (!__atomic_load_n(b, __ATOMIC_SEQ_CST))
		return 0;
	if (hand_over(t, f->rdi, private, b))
		return 1;
	int64_t r = forward_timed(t, f);
	if (r > 0)
		t->hand.since = ticks();
	return r;
}

int64_t sys_futex(struct kx_thread *t, struct kx_frame *f)
{
	uint64_t addr = f->rdi;
	uint32_t cmd = f->rsi & FUTEX_CMD;
	if ((addr & 3) || !user_ok(addr, 4))
		return forward(t, f);
	switch (cmd) {
	case F_WAKE:
	case F_WAKE_BITSET:
		return wake(t, f, cmd);
	case F_WAIT:
	case F_WAIT_BITSET:
		return wait(t, f, cmd);
	case F_REQUEUE:
	case F_CMP_REQUEUE:
	case F_WAIT_REQUEUE_PI:
	case F_CMP_REQUEUE_PI:
		/* Sleepers move to the second word without coming by here: its bucket is never empty again. */
		__atomic_or_fetch(bucket(f->r8, f->rsi & FUTEX_PRIVATE), FOR_EVER, __ATOMIC_SEQ_CST);
		return forward(t, f);
	}
	return forward(t, f);
}

/* As a waiter for each word. */
int64_t sys_futex_waitv(struct kx_thread *t, struct kx_frame *f)
{
	struct {
		uint64_t val, addr;
		uint32_t flags, reserved;
	} v;
	uint32_t *in[WAITV_MAX];
	unsigned n = 0;
	for (uint32_t i = 0; i < (uint32_t)f->rsi && i < WAITV_MAX; i++) {
		if (user_read(&v, f->rdi + i * sizeof v, sizeof v))
			break;
		in[n++] = bucket(v.addr, v.flags & FUTEX_PRIVATE);
	}
	for (unsigned i = 0; i < n; i++)
		__atomic_add_fetch(in[i], 1, __ATOMIC_SEQ_CST);
	int64_t r = forward(t, f);
	for (unsigned i = 0; i < n; i++)
		__atomic_sub_fetch(in[i], 1, __ATOMIC_SEQ_CST);
	return r;
}
