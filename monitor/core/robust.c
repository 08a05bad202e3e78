/* SPDX-License-Identifier: Apache-2.0 */
#include "robust.h"
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/together.h"
#include "sig.h"
#include "vcpu.h"

#define ROBUST_LIMIT 2048 /* the kernel's */
#define LET_GO_MS 2000    /* a thread that forks, for instance, takes no kick meanwhile */

#define MISSES_MAX 3

static int vforks; /* children of vfork in this memory; atomic */
/* Where libc has a thread's list, behind its thread pointer; 0 = not known. How often it was not there. */
static KX_TOGETHER uint64_t behind_tls, behind_misses;

bool robust_by_host(const struct thread *t) { return t->robust_host; }

static void drop(struct thread *t)
{
	host_call(SYS_set_robust_list, 0, sizeof(struct robust_head), 0, 0, 0, 0);
	t->robust_host = 0;
}

void robust_renew(struct thread *t)
{
	if (pvm.base || !t->robust_head || t->robust_host || t->pid != pvm.pid ||
	    __atomic_load_n(&vforks, __ATOMIC_SEQ_CST) || !gva_ok(t->robust_head, sizeof(struct robust_head)))
		return;
	t->robust_host = 1;
	host_call(SYS_set_robust_list, (long)t->robust_head, sizeof(struct robust_head), 0, 0, 0, 0);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(&vforks, __ATOMIC_SEQ_CST)) /* the kick may have come before the call */
		drop(t);
}

void robust_set(struct thread *t, uint64_t head)
{
	if (t->robust_host)
		drop(t);
	t->robust_head = head;
	robust_renew(t);
}

void robust_kicked(struct thread *t)
{
	if (t->robust_host && __atomic_load_n(&vforks, __ATOMIC_SEQ_CST))
		drop(t);
	else
		robust_renew(t);
}

void robust_pause(void)
{
	if (self->robust_host)
		drop(self);
}

void robust_fork_child(struct thread *t)
{
	uint64_t head = t->robust_head;
	vforks = 0;
	t->robust_host = 0;
	/* Whoever is asked shows none until libc has set it, to the same in each child. Locks on it are the parent's, by their
	 * words: nothing comes of it before. */
	robust_set(t, pvm.base ? 0 : head);
	t->area->robust_ready = t->robust_host ? head : 0;
	if (!t->robust_host)
		t->robust_head = 0;
}

uint64_t robust_expect(struct thread *creator, uint64_t tls)
{
	uint64_t behind = __atomic_load_n(&behind_tls, __ATOMIC_RELAXED);
	if (__atomic_load_n(&behind_misses, __ATOMIC_RELAXED) >= MISSES_MAX || creator->pid != pvm.pid)
		return 0;
	if (!behind && creator->robust_head && !creator->area->robust_ready) {
		behind = creator->robust_head - vcpu_fs_base(creator);
		__atomic_store_n(&behind_tls, behind, __ATOMIC_RELAXED);
	}
	return behind ? tls + behind : 0;
}

void robust_thread_start(struct thread *t, uint64_t head)
{
	struct robust_head h;
	if (!head)
		return;
	/* An empty list points to itself: nothing else looks like that. */
	if ((head & 7) || guest_read(&h, head, sizeof h) || h.next != head || h.pending) {
		__atomic_store_n(&behind_tls, 0, __ATOMIC_RELAXED);
		__atomic_add_fetch(&behind_misses, 1, __ATOMIC_RELAXED);
		return;
	}
	robust_set(t, head);
	t->area->robust_ready = t->robust_host ? head : 0;
	if (!t->robust_host)
		t->robust_head = 0;
}

/* How many threads other than the caller's have theirs with the kernel (or, not `held`, have one that is not). */
static int others(bool held, bool kick)
{
	int n = 0;
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread *t = pvm.threads; t; t = t->next)
		if (t != self && t->robust_head && !t->robust_host == !held) {
			n++;
			if (kick)
				sig_kick(t);
		}
	pthread_mutex_unlock(&pvm.thr_lock);
	return n;
}

bool robust_vfork_begin(void)
{
	if (pvm.base || my_pid() != pvm.pid) /* its parent has seen to it, and does until it has ended */
		return true;
	__atomic_add_fetch(&vforks, 1, __ATOMIC_SEQ_CST);
	robust_pause();
	for (int i = 0; pvm.nr_threads > 1 && others(true, i % 200 == 0); i++) {
		if (i == LET_GO_MS * 10)
			return false;
		usleep(100);
	}
	return true;
}

void robust_vfork_end(void)
{
	if (pvm.base || my_pid() != pvm.pid || __atomic_sub_fetch(&vforks, 1, __ATOMIC_SEQ_CST))
		return;
	robust_renew(self);
	if (pvm.nr_threads > 1)
		others(false, true);
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
		int r = guest_swap(word, &v, (v & FUTEX_WAITERS) | FUTEX_OWNER_DIED);
		if (r == -EAGAIN)
			continue;
		if (r)
			return;
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
	if (t == self && t->robust_host)
		drop(t);
}
