/* SPDX-License-Identifier: Apache-2.0 */
/* Futexes: what needs no host. */
#include "libos.h"

#define FUTEX_PRIVATE 128
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

static uint32_t *bucket(uint64_t addr)
{
	uint64_t h = (addr >> 2) * 0x9e3779b97f4a7c15ull;
	return &SHARED->futex_waiters[h >> 54];
}

/*
 * Private futexes only. A waiter counts itself in its bucket before the host compares the word, a waker looks at the
 * bucket after it changed the word: so a zero means that nobody can be asleep.
 */
int64_t sys_futex(struct kx_thread *t, struct kx_frame *f)
{
	uint64_t addr = f->rdi;
	uint32_t cmd = f->rsi & FUTEX_CMD, word;
	if ((addr & 3) || !user_ok(addr, 4))
		return forward(t, f);
	switch (cmd) {
	case F_WAKE:
	case F_WAKE_BITSET:
		if (!(f->rsi & FUTEX_PRIVATE) || (cmd == F_WAKE_BITSET && !(uint32_t)f->r9))
			return forward(t, f);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		return __atomic_load_n(bucket(addr), __ATOMIC_SEQ_CST) ? forward(t, f) : 0;
	case F_WAIT:
	case F_WAIT_BITSET: {
		if (!f->r10 && !(cmd == F_WAIT_BITSET && !(uint32_t)f->r9)) {
			if (uaccess_load32(&word, (const void *)addr))
				return -KX_EFAULT;
			if (word != (uint32_t)f->rdx)
				return -KX_EAGAIN;
		}
		if (!(f->rsi & FUTEX_PRIVATE))
			return forward(t, f);
		__atomic_add_fetch(bucket(addr), 1, __ATOMIC_SEQ_CST);
		int64_t r = forward(t, f);
		__atomic_sub_fetch(bucket(addr), 1, __ATOMIC_SEQ_CST);
		return r;
	}
	case F_REQUEUE:
	case F_CMP_REQUEUE:
	case F_WAIT_REQUEUE_PI:
	case F_CMP_REQUEUE_PI:
		/* Sleepers move to the second word without coming by here: its bucket is never empty again. */
		__atomic_or_fetch(bucket(f->r8), FOR_EVER, __ATOMIC_SEQ_CST);
		return forward(t, f);
	}
	return forward(t, f);
}

/* As a waiter for each private word. */
int64_t sys_futex_waitv(struct kx_thread *t, struct kx_frame *f)
{
	struct {
		uint64_t val, addr;
		uint32_t flags, reserved;
	} v;
	uint16_t in[WAITV_MAX];
	unsigned n = 0;
	for (uint32_t i = 0; i < (uint32_t)f->rsi && i < WAITV_MAX; i++) {
		if (user_read(&v, f->rdi + i * sizeof v, sizeof v))
			break;
		if (v.flags & FUTEX_PRIVATE)
			in[n++] = bucket(v.addr) - SHARED->futex_waiters;
	}
	for (unsigned i = 0; i < n; i++)
		__atomic_add_fetch(&SHARED->futex_waiters[in[i]], 1, __ATOMIC_SEQ_CST);
	int64_t r = forward(t, f);
	for (unsigned i = 0; i < n; i++)
		__atomic_sub_fetch(&SHARED->futex_waiters[in[i]], 1, __ATOMIC_SEQ_CST);
	return r;
}
