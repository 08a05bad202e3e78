/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Futexes: a wake without an exit, made by the exit that its thread makes next, as for its own wait ("hand-over").
 *
 * Who waits, and was woken soon the last times, naps: before he goes to sleep on the host's futex he sleeps for a moment on
 * kx_futexes.nap[], where he has told for which word. Who wakes, is used to make an exit soon after, and finds that the one
 * sleeper whom the word's bucket counts naps there for this word, makes NAPS WOKEN by one compare-and-swap and returns 1: what
 * has been changed so has been woken, however its nap ends, by timeout or a signal as well. It notes that the nap is to be
 * ended at its next exit, whatever that is for.
 *
 * Nothing hangs on that exit: a nap ends by itself, within a millisecond. Who wakes may be killed, then, or compute. Who naps
 * and was not woken takes NAPS back, and waits as if he had just come: the host compares the word. So wakes that know nothing
 * of naps (the kernel's at the end of a thread, of others) find him late, not never. Who is killed in a nap may be woken in
 * vain, but only as long as nobody knows of his end (`ended`), and only if nobody else sleeps there. All members can write
 * here: a word that is none of those that can follow his own counts as a wake, which a program must expect at any time.
 */
#ifndef KX_FNAP_H
#define KX_FNAP_H
#include <stdbool.h>
#include "kx_abi.h"

/* A word: state, a number that each nap changes, thread. FREE keeps both: then nobody has been woken. */
#define KX_FNAP_FREE 0u
#define KX_FNAP_MAKES 1u /* somebody is about to nap */
#define KX_FNAP_NAPS 2u
#define KX_FNAP_WOKEN 3u
#define KX_FNAP_STATE(w) ((uint32_t)(w)&3)
#define KX_FNAP_TID(w) ((uint32_t)((w) >> 32))
#define KX_FNAP_AS(w, state) (((w) & ~3ull) | (state))
#define KX_FNAP_NEXT(w, tid) (((uint64_t)(tid) << 32) | (((w) + 4) & 0xfffffffcu) | KX_FNAP_MAKES)

/* The key of a private futex: { KX_FNAP_PRIVATE | process, 0, address }; of a shared one { inode, device, place in the file }. */
#define KX_FNAP_PRIVATE (1ull << 63)

/* Of a private futex: its bucket in kx_shared.futex_waiters[]. */
static inline unsigned kx_futex_bucket(uint64_t addr) { return (unsigned)((addr >> 2) * 0x9e3779b97f4a7c15ull >> 54); }

/* Of a shared one, in kx_futexes.waiters[]: by the place in its page, which is the same in all mappings. */
static inline unsigned kx_futex_slot(uint64_t addr)
{
	unsigned slot = (unsigned)(addr & 4095) >> 2;
	return slot < KX_FUTEX_SLOTS ? slot : KX_FUTEX_SLOTS - 1;
}

/* Where who waits for that word of process `pid` would nap. */
static inline unsigned kx_fnap_at(uint64_t addr, bool private, uint32_t pid)
{
	return (private ? kx_futex_bucket(addr) ^ pid : kx_futex_slot(addr)) % KX_FNAPS;
}

static inline void kx_fnap_private(uint64_t key[3], uint32_t pid, uint64_t addr)
{
	key[0] = KX_FNAP_PRIVATE | pid;
	key[1] = 0;
	key[2] = addr;
}

/* Of a shared one, by what the monitor has found out. False: nothing, yet. */
static inline bool kx_fnap_shared(const struct kx_shared *s, uint64_t key[3], uint64_t addr)
{
	const struct kx_fpage *p = &s->fpage[(addr >> 12) % KX_FPAGES];
	uint32_t seq = __atomic_load_n(&s->fpage_seq, __ATOMIC_ACQUIRE);
	bool found = __atomic_load_n(&p->page, __ATOMIC_RELAXED) == addr >> 12;
	key[0] = __atomic_load_n(&p->ino, __ATOMIC_RELAXED);
	key[1] = __atomic_load_n(&p->dev, __ATOMIC_RELAXED);
	key[2] = __atomic_load_n(&p->off, __ATOMIC_RELAXED) + (addr & 4095);
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return found && !(seq & 1) && __atomic_load_n(&s->fpage_seq, __ATOMIC_RELAXED) == seq;
}

static inline bool kx_fnap_is(const struct kx_fnap *n, const uint64_t key[3])
{
	return __atomic_load_n(&n->key[0], __ATOMIC_RELAXED) == key[0] &&
	       __atomic_load_n(&n->key[1], __ATOMIC_RELAXED) == key[1] &&
	       __atomic_load_n(&n->key[2], __ATOMIC_RELAXED) == key[2];
}

static inline bool kx_fnap_swap(struct kx_fnap *n, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(&n->word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
#endif
