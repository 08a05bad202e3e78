/* SPDX-License-Identifier: Apache-2.0 */
/* Who is in the library, or in ld.so, when all threads stand. */
#include "update_priv.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include "gmem.h"
#include "relink.h"
#include "unwind.h"

#define SCAN_MAX (1u << 20) /* bytes of a stack that are looked through where its tables end */

void job_note(struct job *j, struct thread *t, const char *what)
{
	j->busy = t ? t->tid : 0;
	if (t)
		snprintf(j->where, sizeof j->where, "thread %d is in %s", t->tid, what);
	else
		snprintf(j->where, sizeof j->where, "%s", what);
}

/* The program's registers at the place where t stands. False: it is somewhere between the program and the monitor. */
bool update_user_regs(struct thread *t, struct unwind_regs *u)
{
	const struct kvm_regs *k = &t->run->s.regs.regs;
	struct kvm_regs now = *k;
	bool in_call = __atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST);
	bool libos = in_libos(now.rip);
	memset(u, 0, sizeof *u);
	if (in_call || libos) {
		struct kx_frame f;
		if (!in_call && !t->gate_call && now.rip != pvm.libos.work && now.rip != pvm.libos.exit)
			return false;
		f = *frame_of(t);
		*u = (struct unwind_regs){ { f.rax, f.rdx, f.rcx, f.rbx, f.rsi, f.rdi, f.rbp, f.rsp, f.r8, f.r9, f.r10,
					     f.r11, f.r12, f.r13, f.r14, f.r15, f.rip } };
		return true;
	}
	/* Ring 0 is in the upper half, all of it; to ask KVM for the segments would take long while all stand. */
	if (now.rip >> 63)
		return false;
	*u = (struct unwind_regs){ { now.rax, now.rdx, now.rcx, now.rbx, now.rsi, now.rdi, now.rbp, now.rsp, now.r8,
				     now.r9, now.r10, now.r11, now.r12, now.r13, now.r14, now.r15,
				     gmem_pc_to_original(now.rip) } };
	return true;
}

struct walk {
	struct job *j;
	bool found;
};

static uint64_t find_table(uint64_t pc, void *arg) { return relink_unwind_table(pc, ((struct walk *)arg)->j->link); }

static bool look(uint64_t pc, uint64_t sp, void *arg)
{
	struct walk *w = arg;
	(void)sp;
	if (relink_where(w->j->link, pc) == RELINK_ELSEWHERE)
		return true;
	relink_name(w->j->link, pc, w->j->found, sizeof w->j->found);
	w->found = true;
	return false;
}

/* Where the tables end: every word up to the end of the stack that could be a return address into the old version. */
static bool scan(struct job *j, uint64_t sp)
{
	uint64_t buf[512];
	struct gmem_region g;
	if (!gmem_query(sp, &g) || g.start > sp)
		return false;
	uint64_t end = g.end - sp > SCAN_MAX ? sp + SCAN_MAX : g.end;
	for (uint64_t a = sp & ~7ull; a < end; a += sizeof buf) {
		size_t n = end - a < sizeof buf ? end - a : sizeof buf;
		if (guest_read(buf, a, n))
			return false;
		for (size_t i = 0; i < n / 8; i++)
			if (relink_where(j->link, buf[i]) == RELINK_OLD) {
				relink_name(j->link, buf[i], j->found, sizeof j->found);
				return true;
			}
	}
	return false;
}

/* A call that the host's kernel is in may write to what it was given, at any time. */
static bool in_call_on_it(const struct job *j, const struct thread *t)
{
	struct kx_call c;
	if (!__atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST))
		return false;
	memcpy(&c, (const void *)&t->area->call, sizeof c);
	for (unsigned i = 0; i < 6; i++)
		if (relink_where(j->link, c.arg[i]) == RELINK_OLD)
			return true;
	return false;
}

/* Is t in the old version, or in ld.so, or in something called from there? */
static bool in_the_way(struct job *j, struct thread *t)
{
	struct unwind_regs u;
	struct walk w = { j, false };
	if (t->vfork_child) {
		job_note(j, t, "a child of vfork");
		return true;
	}
	if (!update_user_regs(t, &u)) {
		job_note(j, t, "a system call");
		return true;
	}
	if (in_call_on_it(j, t)) {
		job_note(j, t, "a system call on the library's variables");
		return true;
	}
	bool whole = unwind_walk(&u, find_table, look, &w);
	if (!w.found && !whole)
		w.found = scan(j, u.r[UNWIND_RSP]);
	if (w.found)
		job_note(j, t, j->found);
	return w.found;
}

/* The calls of a thread are counted, each before it is seen to be in it. */
static struct asleep call_of(struct thread *t)
{
	struct hcall *c = __atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST);
	return (struct asleep){ t, c, __atomic_load_n(&t->nr_hcalls, __ATOMIC_SEQ_CST) };
}

static bool same_call(const struct asleep *a, const struct asleep *b)
{
	return a->t == b->t && a->call && a->call == b->call && a->nr == b->nr;
}

void look_at_sleepers(struct job *j)
{
	unsigned n = 0;
	/* Vacant ones are kept: a thread that is gone by now is seen to be in no call. */
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread *t = pvm.threads; t && n < THREADS_MAX; t = t->next)
		j->thread[n++] = t;
	pthread_mutex_unlock(&pvm.thr_lock);
	j->nr_asleep = 0;
	for (unsigned i = 0; i < n; i++) {
		struct asleep before = call_of(j->thread[i]), after;
		if (!before.call || in_the_way(j, j->thread[i]))
			continue;
		after = call_of(j->thread[i]);
		if (same_call(&before, &after))
			j->asleep[j->nr_asleep++] = after;
	}
}

/* Without its callers: where it takes no time to see that it is no good moment. */
static bool is_inside(struct job *j, struct thread *t)
{
	struct unwind_regs u;
	if (__atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST) || !update_user_regs(t, &u) ||
	    relink_where(j->link, u.r[UNWIND_RIP]) == RELINK_ELSEWHERE)
		return false;
	relink_name(j->link, u.r[UNWIND_RIP], j->found, sizeof j->found);
	job_note(j, t, j->found);
	return true;
}

bool look_is_quiet(struct job *j)
{
	unsigned k = 0;
	for (unsigned i = 0; i < j->nr; i++)
		if (is_inside(j, j->thread[i]))
			return false;
	for (unsigned i = 0; i < j->nr; i++) {
		struct asleep now = call_of(j->thread[i]);
		while (k < j->nr_asleep && j->asleep[k].t != now.t) /* in the order of the list, less some */
			k++;
		if (k < j->nr_asleep && same_call(&j->asleep[k], &now) && !now.t->vfork_child)
			continue;
		if (k == j->nr_asleep)
			k = 0;
		if (in_the_way(j, j->thread[i]))
			return false;
	}
	return true;
}

/* The threads that were looked at are all that there are, and stand. Takes both locks when it is so. */
bool look_lock_still(struct job *j)
{
	struct job *const again = &jobs->again;
	pthread_mutex_lock(&pvm.mm_lock);
	pthread_mutex_lock(&pvm.thr_lock);
	bool same = gate_all_stand(again, false) && again->nr == j->nr &&
		    !memcmp(again->thread, j->thread, j->nr * sizeof *j->thread);
	for (unsigned i = 0; i < j->nr && same; i++)
		same = !j->thread[i]->vfork_child;
	if (!same) {
		pthread_mutex_unlock(&pvm.thr_lock);
		pthread_mutex_unlock(&pvm.mm_lock);
	}
	return same;
}
