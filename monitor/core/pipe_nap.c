/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exits that readers and writers of rings save each other where not all of them have a CPU.
 *
 * A nap: who finds nothing to read sleeps for a moment before it counts itself among those who must be woken. Who writes
 * meanwhile makes no exit; he notes that he owes a wake-up, and pays it when he would sleep himself. He may compute
 * instead, or be killed: the nap's own end is soon enough then. So a switch from one to the other is one exit, and many
 * messages may be behind it. (To yield instead costs a turn of the CPU each time where others compute.)
 *
 * Whether somebody is left to read, a writer asks the host each few milliseconds. One with many pipes seldom writes to the
 * same one: so all of them are asked about at once.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include "../../util/now.h"
#include "futex_nap.h"
#include "ipc.h"
#include "pipe.h"
#include "pipe_priv.h"
#include "thread.h"

#define NAP_LEAST_NS 100000u
#define NAP_MOST_NS 800000u
#define NAP_MANY 4 /* so many writes in a nap: the next one may be longer */
#define YIELDS 4
#define YIELDS_NS 3000000ull
#define NO_YIELDS 16
#define OTHERS_NS 1000000ull
#define OTHERS_MOST 64

/* Who is about to write may need this CPU, and has it at once. But where others compute, that costs a turn of theirs. */
static bool yielded(struct kx_pipe *o)
{
	uint32_t skip = __atomic_load_n(&o->no_yield, __ATOMIC_RELAXED);
	if (skip) {
		__atomic_store_n(&o->no_yield, skip - 1, __ATOMIC_RELAXED);
		return false;
	}
	for (uint64_t start = now_ns(), i = 0; i < YIELDS && !pipe_used(o); i++) {
		HC6(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
		if (now_ns() - start > YIELDS_NS) {
			__atomic_store_n(&o->no_yield, pipe_used(o) ? 0 : NO_YIELDS, __ATOMIC_RELAXED);
			break;
		}
	}
	return pipe_used(o);
}

void pipe_nap(struct kx_pipe *o)
{
	uint32_t ns = __atomic_load_n(&o->nap_ns, __ATOMIC_RELAXED);
	ns = ns < NAP_LEAST_NS ? NAP_LEAST_NS : ns > NAP_MOST_NS ? NAP_MOST_NS : ns;
	const struct timespec most = { 0, ns };
	if (self->sig_stop || yielded(o))
		return;
	__atomic_store_n(&o->nap_got, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&o->napping, 1, __ATOMIC_SEQ_CST);
	/* Another one who naps here still is not woken after this one's end, but wakes. */
	if (pipe_used(o) || HC6(SYS_futex, &o->napping, FUTEX_WAIT, 1, &most, 0, 0))
		__atomic_store_n(&o->napping, 0, __ATOMIC_SEQ_CST);
	uint32_t got = __atomic_load_n(&o->nap_got, __ATOMIC_RELAXED);
	if (got >= NAP_MANY || got < 2)
		__atomic_store_n(&o->nap_ns, got < 2 ? ns / 2 : ns * 2, __ATOMIC_RELAXED);
}

void pipe_nap_end(struct kx_pipe *o)
{
	if (__atomic_load_n(&o->napping, __ATOMIC_SEQ_CST) && __atomic_exchange_n(&o->napping, 0, __ATOMIC_SEQ_CST))
		HC6(SYS_futex, &o->napping, FUTEX_WAKE, INT_MAX, 0, 0, 0);
}

void pipe_owe(struct kx_pipe *o)
{
	if (__atomic_load_n(&o->napping, __ATOMIC_SEQ_CST))
		kx_pipe_owe(pipe_published(), o, (unsigned)(o - pipe_mem->obj));
}

void pipe_owed(void)
{
	struct kx_pipe_table *t = pipe_published();
	ipc_owed();
	futex_owed();
	if (!pipe_mem || !__atomic_load_n(&t->owes, __ATOMIC_SEQ_CST))
		return;
	__atomic_store_n(&t->owes, 0, __ATOMIC_SEQ_CST);
	for (unsigned k = 0; k < KX_PIPE_OWED; k++)
		for (uint64_t w = __atomic_exchange_n(&t->owed[k], 0, __ATOMIC_SEQ_CST); w; w &= w - 1)
			if (k * 64 + (unsigned)__builtin_ctzll(w) < KX_PIPE_OBJECTS)
				pipe_nap_end(pipe_obj(k * 64 + (unsigned)__builtin_ctzll(w)));
}

/* Those whose answer a poll gives. */
static bool is_asked(uint64_t key)
{
	struct kx_pipe *o = pipe_obj(kx_pipe_obj(key));
	return key && pipe_is_live(o, key) && (kx_pipe_pair(key) ? o->kind != KX_PAIR_DGRAM : kx_pipe_end(key));
}

void pipe_check_others(int fd)
{
	static uint64_t last;
	static uint32_t next;
	struct kx_pipe_fd *e = pipe_published()->fd;
	uint64_t now = now_ns(), before = __atomic_load_n(&last, __ATOMIC_RELAXED), key[OTHERS_MOST];
	uint64_t asked = __atomic_load_n(&pipe_published()->asked, __ATOMIC_RELAXED);
	uint32_t closes[OTHERS_MOST], epoch = __atomic_load_n(&pipe_mem->epoch, __ATOMIC_SEQ_CST), n = 0;
	uint32_t at = __atomic_load_n(&next, __ATOMIC_RELAXED);
	const struct timespec zero = { 0, 0 };
	struct pollfd p[OTHERS_MOST];
	if (!asked || now - before < OTHERS_NS || !pipe_table_is_ours() ||
	    !__atomic_compare_exchange_n(&last, &before, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return;
	for (unsigned k = 0, end = pipe_fds; k < end && n < OTHERS_MOST; k++, at++) {
		unsigned i = (at %= end);
		uint64_t has = pipe_key_get((int)i);
		if ((int)i == fd || !is_asked(has))
			continue;
		key[n] = has;
		closes[n] = __atomic_load_n(&pipe_obj(kx_pipe_obj(has))->closes, __ATOMIC_SEQ_CST);
		p[n++] = (struct pollfd){ (int)i, POLLOUT | POLLRDHUP, 0 };
	}
	__atomic_store_n(&next, at, __ATOMIC_RELAXED);
	if (!n || HC6(SYS_ppoll, p, n, &zero, 0, 0, 0) < 0)
		return;
	for (unsigned k = 0; k < n; k++) {
		if (p[k].revents & (POLLERR | POLLHUP | POLLRDHUP | POLLNVAL) || pipe_key_get(p[k].fd) != key[k])
			continue;
		e[p[k].fd].epoch = epoch;
		e[p[k].fd].closes = closes[k];
		__atomic_store_n(&e[p[k].fd].tsc, asked, __ATOMIC_RELAXED);
	}
}
