/* SPDX-License-Identifier: Apache-2.0 */
#include "robust.h"
#include <linux/futex.h>
#include <sys/syscall.h>

#define ROBUST_LIMIT 2048 /* the kernel's */

bool robust_by_host(const struct thread *t) { return !pvm.base && t->pid == pvm.pid; }

void robust_set(struct thread *t, uint64_t head)
{
	t->robust_head = head;
	if (robust_by_host(t))
		host_call(SYS_set_robust_list, (long)(gva_ok(head, sizeof(struct robust_head)) ? head : 0),
			  sizeof(struct robust_head), 0, 0, 0, 0);
}

/* One entry of the list: mark the owner dead and wake a waiter. As handle_futex_death() of the kernel. */
static void death(struct thread *t, uint64_t entry, int64_t offset, bool pending)
{
	uint64_t word = (entry & ~1ull) + offset;
	uint32_t v;
	if (!gva_ok(word, 4) || (word & 3))
		return;
	for (int i = 0; i < 64; i++) {
		if (guest_read(&v, word, 4))
			return;
		/* It had unlocked it, and not woken anybody yet. A lock with priority inheritance is the kernel's to pass on. */
		if (pending && !(entry & 1) && !v)
			host_call(SYS_futex, (long)gva_ptr(word), FUTEX_WAKE, 1, 0, 0, 0);
		if ((v & FUTEX_TID_MASK) != (uint32_t)t->tid)
			return;
		uint32_t want = (v & FUTEX_WAITERS) | FUTEX_OWNER_DIED;
		/* The page was readable just now; a program that unmaps it meanwhile only harms itself. */
		if (guest_write(word, &v, 0) || !__atomic_compare_exchange_n((uint32_t *)gva_ptr(word), &v, want, false,
									     __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			continue;
		if (!(entry & 1) && v & FUTEX_WAITERS)
			host_call(SYS_futex, (long)gva_ptr(word), FUTEX_WAKE, 1, 0, 0, 0);
		return;
	}
}

static void walk(struct thread *t)
{
	struct robust_head head;
	if (guest_read(&head, t->robust_head, sizeof head))
		return;
	uint64_t e = head.next;
	for (int i = 0; i < ROBUST_LIMIT && (e & ~1ull) != t->robust_head; i++) {
		uint64_t next;
		bool bad = guest_read(&next, e & ~1ull, sizeof next);
		if ((e & ~1ull) != (head.pending & ~1ull))
			death(t, e, head.offset, false);
		if (bad)
			break;
		e = next;
	}
	if (head.pending)
		death(t, head.pending, head.offset, true);
}

void robust_exit(struct thread *t)
{
	if (!t->robust_head)
		return;
	walk(t);
	if (t == self && robust_by_host(t))
		host_call(SYS_set_robust_list, 0, sizeof(struct robust_head), 0, 0, 0, 0);
}
